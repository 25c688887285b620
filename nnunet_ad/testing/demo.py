"""The demo: made hospital data, then this package's and nnU-Net's own commands, then how good the result is."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from nnunet_ad.testing.hospital_folder import DOMAINS_FILE, LABELS_FILE, ROLES, write_hospital_folder
from nnunet_ad.testing.overlay import OverlayCase, draw_overlay

# The length of the training: on two CPU cores the whole demo stays under ten minutes.
TRAINER = "nnUNetTrainerAD_demo"
ITERATIONS_PER_EPOCH = 44

# Plans small enough for a CPU. A window sees two thirds of a volume along each axis: in windows of background only, of
# which larger volumes have many, so short a training finds structures that are not there, nnU-Net's own does, too.
PLANS = "nnUNetPlansDemo"
SHAPE = (32, 48, 48)
FEATURES, PATCH_SIZE, BATCH_SIZE = 16, (24, 32, 32), 2

DATASET_ID, DATASET_NAME = 500, "Made"
NUM_LABELED, NUM_UNLABELED, NUM_TEST = 4, 12, 4
SEED = 0
CONFIGURATION, FOLD = "3d_fullres", 0
STRUCTURES = {"organ": 1, "vessel": 2}
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
HOSPITAL, PREDICTIONS, SCORES, OVERLAY = "hospital", "predictions", "scores", "overlay.png"
MARKER = ".nnunet_ad_demo"  # a folder with this file is ours to empty


def run_demo(folder: Path, converter: Path) -> float:
    """Run the whole demo with live output and return the mean Dice over test cases and structures.

    Args:
        folder: Where everything is written; an earlier demo in it is removed.
        converter: ``scripts/convert_hospital_data.py``.

    Raises:
        FileExistsError: The folder holds something else than an earlier demo.
        subprocess.CalledProcessError: A command failed; its output was shown.
    """
    start = time.monotonic()
    empty_folder(folder)
    environment = demo_environment(folder)
    device = find_device()
    print(f"Writing {NUM_LABELED} labelled, {NUM_UNLABELED} unlabelled and {NUM_TEST} test volumes to {folder}")
    write_hospital_folder(
        folder / HOSPITAL,
        seed=SEED,
        num_labeled=NUM_LABELED,
        num_unlabeled=NUM_UNLABELED,
        num_test=NUM_TEST,
        shape=SHAPE,
    )
    for name in demo_variables(folder):
        print(f"$ export {name}={shlex.quote(environment[name])}")
    for command in demo_commands(folder, converter, device):
        run_command(command, environment)

    evaluation = json.loads((folder / SCORES / "evaluation.json").read_text(encoding="utf-8"))
    overlay = draw_overlay(_overlay_cases(folder), STRUCTURES, folder / OVERLAY)
    curves = next((folder / "nnUNet_results").rglob("progress_ad.png"))
    print(f"\nDice on the test cases\n{dice_table(evaluation)}\n")
    print(f"Overlay: {overlay}\nCurves:  {curves}\nTime:    {(time.monotonic() - start) / 60:.1f} minutes on {device}")
    mean = mean_dice(evaluation)
    print(f"mean Dice {mean:.2f}")
    return mean


def empty_folder(folder: Path) -> None:
    """Make ``folder`` an empty folder of the demo.

    Raises:
        FileExistsError: It holds something else than an earlier demo.
    """
    if folder.exists():
        if any(folder.iterdir()) and not (folder / MARKER).is_file():
            raise FileExistsError(f"{folder} holds other files; name another folder for the demo")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / MARKER).touch()
    for name in FOLDERS:
        (folder / name).mkdir()


def find_device() -> str:
    """Return the device to train on: ``cuda``, ``mps`` or ``cpu``."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def demo_variables(folder: Path) -> dict[str, str]:
    """Return the environment variables that the demo sets, by name."""
    return {
        **{name: str(folder / name) for name in FOLDERS},
        "NNUNET_AD_ITERATIONS": str(ITERATIONS_PER_EPOCH),
        "NNUNET_AD_SEED": str(SEED),
        "nnUNet_compile": "f",  # compiling takes longer than it saves here
        "nnUNet_n_proc_DA": "1",
        "nnUNet_def_n_proc": "2",
        # Threads that wait for long by spinning slow down whatever shares the cores; ones that never do are slow.
        "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "30000"),
    }


def demo_environment(folder: Path) -> dict[str, str]:
    """Return the environment of the demo's commands, with this interpreter's commands first in ``PATH``."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, **demo_variables(folder), "PATH": path, "PYTHONUNBUFFERED": "1"}


def demo_commands(folder: Path, converter: Path, device: str) -> list[str]:
    """Return the commands of the demo in order, each as a user would type it."""
    raw, hospital = _dataset_folder(folder), folder / HOSPITAL
    images, references, predictions, scores = (
        shlex.quote(str(path)) for path in (raw / "imagesTs", raw / "labelsTs", folder / PREDICTIONS, folder / SCORES)
    )
    roles = " ".join(f"--{role} {shlex.quote(str(hospital / role))}" for role in ROLES)
    tables = " ".join(
        f"--{option} {shlex.quote(str(hospital / file))}"
        for option, file in (("labels", LABELS_FILE), ("domains", DOMAINS_FILE))
    )
    patch = " ".join(map(str, PATCH_SIZE))
    model = f"-p {PLANS} -tr {TRAINER} -device {device}"
    return [
        "nnunet_ad doctor",
        f"python {shlex.quote(str(converter))} -d {DATASET_ID} -n {DATASET_NAME} {roles} {tables}",
        f"nnUNetv2_plan_and_preprocess -d {DATASET_ID} -c {CONFIGURATION} -npfp 2 -np 2",
        f"nnunet_ad shrink-plans -d {DATASET_ID} -c {CONFIGURATION} -o {PLANS}"
        f" --features {FEATURES} --patch {patch} --batch {BATCH_SIZE}",
        f"nnUNetv2_train {DATASET_ID} {CONFIGURATION} {FOLD} {model}",
        f"nnUNetv2_predict -d {DATASET_ID} -i {images} -o {predictions} -c {CONFIGURATION} -f {FOLD} {model}"
        " -npp 1 -nps 1",
        f"nnunet_ad evaluate -p {predictions} -r {references} -d {DATASET_ID} -o {scores} -np 1",
    ]


def run_command(command: str, environment: dict[str, str]) -> None:
    """Show a command, then run it with its output shown as it comes.

    Raises:
        subprocess.CalledProcessError: It failed.
    """
    print(f"\n$ {command}", flush=True)
    program, *arguments = shlex.split(command)
    found = shutil.which(program, path=environment["PATH"]) or program
    subprocess.run([found, *arguments], env=environment, check=True)


def dice_table(evaluation: dict) -> str:
    """Return the Dice of each structure, and their mean, for each domain and for all, as text.

    Args:
        evaluation: Content of ``evaluation.json``.
    """
    rows = {
        **{domain: {} for domain in sorted({row["domain"] for row in evaluation["per_domain"]})},
        "all": {row["structure"]: _mean_dice_of(row) for row in evaluation["overall"]},
    }
    for row in evaluation["per_domain"]:
        rows[row["domain"]][row["structure"]] = _mean_dice_of(row)
    columns = list(rows["all"])
    lines = [f"{'domain':<10}" + "".join(f"{column:>10}" for column in columns)]
    lines += [f"{name:<10}" + "".join(f"{row[column]:>10.2f}" for column in columns) for name, row in rows.items()]
    return "\n".join(lines)


def mean_dice(evaluation: dict) -> float:
    """Return the Dice averaged over cases, then structures, from the content of ``evaluation.json``."""
    (row,) = (row for row in evaluation["overall"] if row["structure"] == "mean")
    return _mean_dice_of(row)


def _mean_dice_of(row: dict) -> float:
    return row["metrics"]["Dice"]["mean"]


def _dataset_folder(folder: Path) -> Path:
    return folder / "nnUNet_raw" / f"Dataset{DATASET_ID:03d}_{DATASET_NAME}"


def _overlay_cases(folder: Path) -> list[OverlayCase]:
    dataset = _dataset_folder(folder)
    domains = json.loads((dataset / "nnunet_ad.json").read_text(encoding="utf-8"))["domains"]
    cases = []
    for reference in sorted((dataset / "labelsTs").iterdir()):
        case = reference.name.split(".")[0]
        image = dataset / "imagesTs" / reference.name.replace(case, f"{case}_0000")
        title = f"{case}, domain {domains[case]}"
        cases.append(OverlayCase(title, image, reference, folder / PREDICTIONS / reference.name))
    return cases
