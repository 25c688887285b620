"""Registration with nnU-Net in scratch environments: wheel and editable installs, and after they are gone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import SimpleITK as sitk

from nnunet_ad.registration import EXT_TRAINER_VARIABLE, OPT_OUT_VARIABLE
from nnunet_ad.testing.made_dataset import write_made_dataset

REPOSITORY = Path(__file__).resolve().parents[1]
TRAINERS = [
    "nnUNetTrainerAD",
    *(f"nnUNetTrainerAD_{length}" for length in ("1epoch", "5epochs", "20epochs", "50epochs", "100epochs")),
    *(
        f"nnUNetTrainerAD_{part}"
        for part in ("Paper", "demo", "NoSVDA", "NoDiffusion", "NoDRS", "NoRS", "NoDecoupling")
    ),
]

LOOK = """
import json, os, pickle, sys
torch_at_start = "torch" in sys.modules
variable = os.environ.get("nnUNet_extTrainer")
import nnunet_ad
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
found = {}
for name in sys.argv[1:]:
    try:
        trainer = recursive_find_trainer_class_by_name(name)
    except RuntimeError:
        continue
    found[name] = trainer.__module__
    if trainer.__module__.startswith("nnunet_ad."):
        assert pickle.loads(pickle.dumps(trainer)) is trainer
print()
print(json.dumps({"file": nnunet_ad.__file__, "variable": variable, "found": found, "torch_at_start": torch_at_start}))
"""

RUN_COMMAND = """
import sys
from importlib.metadata import entry_points
sys.argv = sys.argv[1:]
(command,) = entry_points(group="console_scripts", name=sys.argv[0])
sys.exit(command.load()())
"""


class Scratch:
    """An environment that has this one's packages, apart from nnunet_ad in whatever form it is installed here."""

    def __init__(self, folder: Path):
        self.folder = folder
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
        self.python = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
        self.site_packages = Path(self.run("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
        dependencies = folder / "dependencies"
        _link_dependencies(dependencies)
        line = f"import site; site.addsitedir({str(dependencies)!r})\n"
        (self.site_packages / "dependencies.pth").write_text(line)

    def run(self, *arguments, check=True, **variables: str) -> str:
        """Run python outside the repository, without this process's variables for nnU-Net; return what it prints."""
        ours = ("nnUNet", "NNUNET_AD", "PYTHON", "VIRTUAL_ENV")
        environment = {key: value for key, value in os.environ.items() if not key.startswith(ours)} | variables
        result = subprocess.run(
            [self.python, *map(str, arguments)],
            **{"cwd": self.folder, "env": environment, "text": True, "capture_output": True, "check": False},
        )
        if check:
            assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-6000:]
        return result.stdout + result.stderr

    def pip(self, *arguments):
        self.run("-m", "pip", "--disable-pip-version-check", "--no-input", *arguments)

    def look(self, *trainers: str, **variables: str) -> dict:
        """Return which of the trainers nnU-Net finds, and where the package and the variable point."""
        return json.loads(self.run("-W", "ignore", "-c", LOOK, *trainers, **variables).splitlines()[-1])


def _link_dependencies(folder: Path) -> None:
    folder.mkdir()
    installed = [Path(entry) for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
    for entry in (entry for packages in installed if packages.is_dir() for entry in packages.iterdir()):
        link = folder / entry.name
        if "nnunet_ad" not in entry.name and not link.is_symlink():
            link.symlink_to(entry)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = ["-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, REPOSITORY]
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    return next(folder.glob("nnunet_ad-*.whl"))


def _install(kind: str, folder: Path, wheel: Path) -> Scratch:
    scratch = Scratch(folder)
    what = ["--editable", REPOSITORY] if kind == "editable" else [wheel]
    scratch.pip("install", "--no-deps", "--no-build-isolation", *what)
    return scratch


@pytest.fixture(scope="module", params=["wheel", "editable"])
def scratch(request, tmp_path_factory, wheel):
    scratch = _install(request.param, tmp_path_factory.mktemp(f"scratch {request.param}"), wheel)
    scratch.kind = request.param
    return scratch


@pytest.fixture
def own_trainers(tmp_path):
    """A folder of the user with a trainer of their own."""
    (tmp_path / "own_trainer_module.py").write_text(
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n\n\n"
        "class OwnTrainer(nnUNetTrainer):\n    pass\n"
    )
    return tmp_path


def _package_folder(scratch: Scratch) -> Path:
    return REPOSITORY / "nnunet_ad" if scratch.kind == "editable" else scratch.site_packages / "nnunet_ad"


def test_every_trainer_is_found_right_after_installation(scratch):
    report = scratch.look(*TRAINERS)
    assert Path(report["file"]) == _package_folder(scratch) / "__init__.py"
    assert list(report["found"]) == TRAINERS
    assert all(module.startswith("nnunet_ad.trainer") for module in report["found"].values())
    assert report["variable"] == str(_package_folder(scratch) / "external_trainers")
    assert not report["torch_at_start"]


def test_the_users_own_trainers_stay_and_stay_first(scratch, own_trainers):
    report = scratch.look("OwnTrainer", "nnUNetTrainerAD", **{EXT_TRAINER_VARIABLE: str(own_trainers)})
    assert list(report["found"]) == ["OwnTrainer", "nnUNetTrainerAD"]
    expected = [own_trainers, _package_folder(scratch) / "external_trainers"]
    assert report["variable"] == os.pathsep.join(map(str, expected))


def test_a_variable_set_by_hand_is_left_alone(scratch):
    by_hand = str(_package_folder(scratch) / "external_trainers")
    report = scratch.look("nnUNetTrainerAD", **{EXT_TRAINER_VARIABLE: by_hand})
    assert report["variable"] == by_hand and report["found"]


def test_opting_out_leaves_the_variable_alone(scratch, own_trainers):
    assert scratch.look("nnUNetTrainerAD", **{OPT_OUT_VARIABLE: "1"})["variable"] is None
    variables = {OPT_OUT_VARIABLE: "1", EXT_TRAINER_VARIABLE: str(own_trainers)}
    report = scratch.look("OwnTrainer", "nnUNetTrainerAD", **variables)
    assert report["variable"] == str(own_trainers) and list(report["found"]) == ["OwnTrainer"]


def test_the_doctor_agrees(scratch):
    report = scratch.run("-m", "nnunet_ad.cli.main", "doctor", check=False)
    assert f"registration: active through {scratch.site_packages / 'nnunet_ad.pth'}" in report
    assert "ok       trainer: nnU-Net finds nnUNetTrainerAD" in report
    assert "FAULT    nnUNet_raw: not set" in report


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_nothing_is_left_after_uninstalling(kind, tmp_path, wheel):
    scratch = _install(kind, tmp_path, wheel)
    scratch.pip("uninstall", "--yes", "nnunet_ad")
    left = [path for path in scratch.site_packages.rglob("*nnunet_ad*")]
    assert not left
    assert scratch.run("-c", "import os; print(os.environ.get('nnUNet_extTrainer'))") == "None\n"


def test_a_pth_file_whose_package_is_gone_is_silent(tmp_path, wheel):
    scratch = _install("wheel", tmp_path, wheel)
    shutil.rmtree(scratch.site_packages / "nnunet_ad")
    assert (scratch.site_packages / "nnunet_ad.pth").is_file()
    assert scratch.run("-c", "import os; print(os.environ.get('nnUNet_extTrainer'))") == "None\n"


def test_a_target_folder_works_with_the_variable_set_by_hand(tmp_path, wheel):
    scratch, target = Scratch(tmp_path), tmp_path / "target"
    scratch.pip("install", "--no-deps", "--target", target, wheel)
    report = scratch.look("nnUNetTrainerAD", PYTHONPATH=str(target))
    assert report["variable"] is None and not report["found"]
    by_hand = {EXT_TRAINER_VARIABLE: str(target / "nnunet_ad" / "external_trainers")}
    assert scratch.look("nnUNetTrainerAD", PYTHONPATH=str(target), **by_hand)["found"]


@pytest.mark.parametrize("scratch", ["wheel", pytest.param("editable", marks=pytest.mark.slow)], indirect=True)
def test_the_three_commands_run_from_a_scratch_environment(scratch, tmp_path, own_trainers):
    raw = write_made_dataset(
        tmp_path / "nnUNet_raw", 101, shape=(24, 28, 24), num_labeled=2, num_unlabeled=2, num_test=1
    )
    variables = {name: str(tmp_path / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    variables |= {"NNUNET_AD_ITERATIONS": "2", "nnUNet_compile": "f", "nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1"}
    if scratch.kind == "wheel":  # once with trainers of the user's own, once without
        variables[EXT_TRAINER_VARIABLE] = str(own_trainers)
    out = tmp_path / "out"
    trainer = "nnUNetTrainerAD_1epoch"
    for command in (
        "nnUNetv2_plan_and_preprocess -d 101 -c 3d_fullres -np 1 -npfp 1",
        f"nnUNetv2_train 101 3d_fullres 0 -tr {trainer} -device cpu",
        f"nnUNetv2_predict -d 101 -i {raw}/imagesTs -o {out} -c 3d_fullres -tr {trainer} -f 0 -device cpu",
    ):
        scratch.run("-c", RUN_COMMAND, *command.split(), **variables)
    (prediction,) = out.glob("*.nii.gz")
    predicted = sitk.ReadImage(str(prediction))
    image = sitk.ReadImage(str(next((raw / "imagesTs").iterdir())))
    assert predicted.GetSize() == image.GetSize()
    assert predicted.GetSpacing() == pytest.approx(image.GetSpacing(), abs=1e-5)
    assert predicted.GetOrigin() == pytest.approx(image.GetOrigin(), abs=1e-4)
    assert predicted.GetDirection() == pytest.approx(image.GetDirection(), abs=1e-5)
