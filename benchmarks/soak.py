"""Does a long training leak? Trains on tiny made volumes through the real trainer and data workers, and watches itself.

Prints resident memory, open file handles and processes every so many iterations, checkpoints, pictures and validation
included. Fails if memory grows by 2 % or more after warm-up, or if handles or processes are left. Linux only.

    python benchmarks/soak.py --iterations 2000 --seed 0
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

MAX_GROWTH = 0.02  # of resident memory
MAX_HANDLES = 10  # more than at first; batches on their way hold some, a leak would hold hundreds
MAX_LEFT = 20  # handles after training: the fonts of its pictures stay open
WARM_UP = 0.25  # of the samples
WINDOW = 5  # samples whose median is compared: after warm-up, and at the end
DATASET = "Dataset500_Made"
PATHS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


@dataclass(frozen=True)
class Sample:
    """What the processes of a training hold.

    Attributes:
        iterations: Done so far.
        main: Resident memory of the training process, MiB.
        workers: That of all its data workers together, MiB.
        handles: Open files, sockets and pipes of all of them.
        processes: How many there are.
    """

    iterations: int
    main: float
    workers: float
    handles: int
    processes: int

    @classmethod
    def take(cls, iterations: int) -> "Sample":
        """Look at this process and its children."""
        main, children = os.getpid(), children_of(os.getpid())
        handles = sum(len(list(Path(f"/proc/{process}/fd").iterdir())) for process in (main, *children))
        return cls(iterations, resident(main), sum(map(resident, children)), handles, 1 + len(children))

    def row(self) -> str:
        """Return the sample as a row of the table."""
        return f"| {self.iterations} | {self.main:.1f} | {self.workers:.1f} | {self.handles} | {self.processes} |"


def main() -> int:
    """Train, print, judge."""
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        set_environment(Path(folder), arguments)
        make_dataset(arguments)
        before, start = Sample.take(0), time.perf_counter()
        samples = train(arguments)
        seconds, after = time.perf_counter() - start, Sample.take(arguments.iterations)
    print(f"{seconds:.0f} s, before:\n{before.row()}\nafter:\n{after.row()}")
    faults = [*growth(samples), *left(before, after)]
    print("\n".join(faults) or "no leak")
    return 1 if faults else 0


def parse_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--every", type=int, default=50, help="iterations between samples, the length of an epoch")
    parser.add_argument("--patch", type=int, default=16, help="edge in voxels")
    parser.add_argument("--features", type=int, default=4, help="of the first stage")
    parser.add_argument("--workers", type=int, default=2, help="processes that load training data")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def set_environment(folder: Path, arguments: argparse.Namespace) -> None:
    """Set the variables that nnU-Net and this package read, before they are imported."""
    for name in PATHS:
        (folder / name).mkdir()
        os.environ[name] = str(folder / name)
    os.environ |= {
        "nnUNet_compile": "f",
        "nnUNet_def_n_proc": "1",
        "nnUNet_n_proc_DA": str(arguments.workers),
        "NNUNET_AD_ITERATIONS": str(arguments.every),
        "NNUNET_AD_SEED": str(arguments.seed),
    }


def make_dataset(arguments: argparse.Namespace) -> None:
    """Write made volumes, plan and preprocess them."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess

    from nnunet_ad.planning.small_plans import write_small_plans
    from nnunet_ad.testing.made_dataset import write_made_dataset

    shape = (arguments.patch + 4, arguments.patch + 8, arguments.patch + 6)
    write_made_dataset(
        Path(os.environ["nnUNet_raw"]),  # noqa: SIM112 (the host's spelling)
        seed=arguments.seed,
        shape=shape,
        num_labeled=2,
        num_val=1,
        num_unlabeled=4,
        num_test=0,
    )
    extract_fingerprints([500], num_processes=1)
    plan_experiments([500])
    preprocess([500], configurations=["3d_fullres"], num_processes=[1])
    write_small_plans(preprocessed_folder(), "3d_fullres", arguments.features, (arguments.patch,) * 3, 2, "Soak")


def preprocessed_folder() -> Path:
    """Return the folder of the preprocessed dataset."""
    return Path(os.environ["nnUNet_preprocessed"]) / DATASET  # noqa: SIM112


def train(arguments: argparse.Namespace) -> list[Sample]:
    """Train to the end; return a sample an epoch."""
    import torch

    from nnunet_ad.trainer import nnUNetTrainerAD

    torch.set_num_threads(1)  # the patches are too small for more
    samples: list[Sample] = []

    class Watched(nnUNetTrainerAD):
        config = replace(
            nnUNetTrainerAD.config, num_epochs=arguments.iterations // arguments.every, num_sampling_steps=3
        )

        def on_epoch_end(self) -> None:
            super().on_epoch_end()
            samples.append(Sample.take(self.current_epoch * arguments.every))
            print(samples[-1].row(), flush=True)

        def print_to_log_file(self, *args, also_print_to_console: bool = True, add_timestamp: bool = True) -> None:
            super().print_to_log_file(*args, also_print_to_console=False, add_timestamp=add_timestamp)

    plans = json.loads((preprocessed_folder() / "Soak.json").read_text()) | {"continue_training": False}
    dataset_json = json.loads((preprocessed_folder() / "dataset.json").read_text())
    print("| iterations | main, MiB | workers, MiB | handles | processes |\n|---:|---:|---:|---:|---:|")
    Watched(plans, "3d_fullres", 0, dataset_json, torch.device("cpu")).run_training()
    return samples


def growth(samples: list[Sample]) -> list[str]:
    """Return what grew from after warm-up to the end, one line each; print all comparisons."""
    first = samples[int(WARM_UP * len(samples)) :][:WINDOW]
    last = samples[-WINDOW:]
    faults = []
    for name in ("main", "workers", "handles", "processes"):
        early, late = (statistics.median(getattr(s, name) for s in window) for window in (first, last))
        limit = {"handles": early + MAX_HANDLES, "processes": early}.get(name, early * (1 + MAX_GROWTH))
        line = f"{name}: {early:.1f} after {first[0].iterations} iterations, {late:.1f} at the end"
        print(f"{line} ({100 * (late / early - 1):+.2f} %)")
        if late > limit:
            faults.append(f"LEAK of {line}")
    return faults


def left(before: Sample, after: Sample) -> list[str]:
    """Return what the training left behind, one line each."""
    faults = []
    if after.processes > before.processes:
        faults.append(f"LEFT: {after.processes - before.processes} process(es)")
    if after.handles > before.handles + MAX_LEFT:
        faults.append(f"LEFT: {after.handles - before.handles} handles")
    return faults


def children_of(process: int) -> list[int]:
    """Return the processes that one has started and that still run, from /proc."""
    threads = Path(f"/proc/{process}/task").iterdir()
    return [int(child) for thread in threads for child in (thread / "children").read_text().split()]


def resident(process: int) -> float:
    """Return the resident memory of a process in MiB."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    sys.exit(main())
