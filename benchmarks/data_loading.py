"""Is the device ever waiting for data? Trains some steps on a preprocessed dataset and times what each step waits for.

Beside it, the time of a batch when nothing but loading is done, and the number of worker processes.

    python benchmarks/data_loading.py -d 101 -c 3d_fullres -p nnUNetPlans -device cuda
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch


def main() -> None:
    """Train, load, and print both."""
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["nnUNet_results"] = folder  # noqa: SIM112 (the host's spelling); what the trainer writes is not kept
        trainer = make_trainer(arguments)
        loaders = trainer.dataloader_train, trainer.dataloader_val = trainer.get_dataloaders()
        try:
            print(f"{len(multiprocessing.active_children())} worker processes, for both streams and for validation")
            waiting, stepping = train(trainer, arguments)
            alone = load(loaders[0], arguments.steps)
        finally:
            for loader in loaders:
                if hasattr(loader, "_finish"):
                    loader._finish()
    step, wait = statistics.median(stepping), statistics.median(waiting)
    share = sum(waiting) / (sum(waiting) + sum(stepping))
    print(f"a step {step:.3f} s; before it {wait:.4f} s of waiting for its batch, {100 * share:.1f} % of all time")
    print(f"a batch {alone:.3f} s when nothing else is done: {step / alone:.1f} batches are made during a step")


def parse_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", dest="dataset", required=True)
    parser.add_argument("-c", dest="configuration", default="3d_fullres")
    parser.add_argument("-f", dest="fold", type=int, default=0)
    parser.add_argument("-p", dest="plans", default="nnUNetPlans")
    parser.add_argument("-device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--steps", type=int, default=20)
    return parser.parse_args()


def make_trainer(arguments: argparse.Namespace):
    """Return an initialised trainer."""
    from nnunetv2.paths import nnUNet_preprocessed
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

    from nnunet_ad.trainer import nnUNetTrainerAD

    folder = Path(nnUNet_preprocessed.require()) / maybe_convert_to_dataset_name(arguments.dataset)
    plans = json.loads((folder / f"{arguments.plans}.json").read_text()) | {"continue_training": False}
    dataset_json = json.loads((folder / "dataset.json").read_text())
    device = torch.device(arguments.device)
    trainer = nnUNetTrainerAD(plans, arguments.configuration, arguments.fold, dataset_json, device)
    trainer.initialize()
    trainer.network.train()
    return trainer


def train(trainer, arguments: argparse.Namespace, warm_up: int = 3) -> tuple[list[float], list[float]]:
    """Return the seconds that each step waits for its batch and the seconds that it then takes."""
    waiting, stepping = [], []
    for i in range(warm_up + arguments.steps):
        start = time.perf_counter()
        batch = next(trainer.dataloader_train)
        loaded = time.perf_counter()
        trainer.train_step(batch)
        if arguments.device == "cuda":
            torch.cuda.synchronize()
        if i >= warm_up:
            waiting.append(loaded - start)
            stepping.append(time.perf_counter() - loaded)
    return waiting, stepping


def load(loader, num_batches: int) -> float:
    """Return the seconds of a batch when they are fetched as fast as they come, those that were ready left out."""
    for _ in range(8):
        next(loader)
    start = time.perf_counter()
    for _ in range(num_batches):
        next(loader)
    return (time.perf_counter() - start) / num_batches


if __name__ == "__main__":
    main()
