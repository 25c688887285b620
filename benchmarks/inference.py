"""Times nnU-Net's sliding window with this package's network beside stock nnU-Net's, same plans, no mirroring.

Both networks have random weights, which cost what trained ones do; they predict the same volume in turns. Also prints
the row of the paper's Table 9 (parameters, time a volume) for this network.

    python benchmarks/inference.py --size tiny
    python benchmarks/inference.py --size laseg --volume 88 142 194 --device cuda
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from train_step import SIZES, dataset_of, device_name, plans_of, set_environment


def main() -> None:
    """Time both and print the comparison."""
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        set_environment(Path(folder), compiled=False)
        os.environ["nnUNet_compile"] = "f"  # noqa: SIM112 (the host's spelling)
        torch.backends.cudnn.benchmark = True  # as nnU-Net's commands
        size = SIZES[arguments.size]
        volume = arguments.volume or [2 * length for length in size.patch]
        print(f"{device_name(arguments.device)}, torch {torch.__version__}, {torch.get_num_threads()} threads")
        print(f"patch {list(size.patch)}, {size.features} features, volume {list(volume)}, no mirroring")
        networks = make_networks(size)
        image = torch.randn((size.channels, *volume), generator=torch.Generator().manual_seed(0))
        predictors = {name: make_predictor(network, size, arguments.device) for name, network in networks.items()}
        times = time_in_turns(predictors, image, arguments.repeats)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, values in times.items():
        print(f"{name:<16} median {medians[name]:.3f} s, {min(values):.3f} to {max(values):.3f} s a volume")
    print(f"ratio {medians['this package'] / medians['stock nnU-Net']:.2f} (goal: at most 1.0)")
    ours = networks["this package"]
    used = count_parameters(ours.encoder.image_encoder) + count_parameters(ours.unlabeled_decoder)
    print(
        f"Table 9: {used / 1e6:.2f} M parameters at inference, {count_parameters(ours) / 1e6:.2f} M in training, "
        f"{medians['this package']:.2f} s a volume"
    )


def parse_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--volume", type=int, nargs="+", help="voxels; by default twice the patch along each axis")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device here; the benchmark is ready to run where there is one")
    return arguments


def make_networks(size) -> dict[str, torch.nn.Module]:
    """Return both networks of the same plans."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from nnunet_ad.trainer import nnUNetTrainerAD

    plans, configuration = managers(size)
    build = {"this package": nnUNetTrainerAD, "stock nnU-Net": nnUNetTrainer}
    return {
        name: trainer.build_network_architecture(
            plans, configuration, size.channels, size.classes, enable_deep_supervision=False
        )
        for name, trainer in build.items()
    }


def managers(size) -> tuple:
    """Return the host's views of the plans and of their configuration."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(plans_of(size))
    return plans, plans.get_configuration("3d_fullres")


def make_predictor(network: torch.nn.Module, size, device: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return nnU-Net's sliding window with a network."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device(device), allow_tqdm=False)
    dataset_json = dataset_of(size.channels, size.classes)
    plans, configuration = managers(size)
    predictor.manual_initialization(
        network, plans, configuration, [network.state_dict()], dataset_json, "nnUNetTrainer", None
    )
    network.to(device)
    return predictor.predict_sliding_window_return_logits


def time_in_turns(
    predictors: dict[str, Callable], image: torch.Tensor, repeats: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Return the seconds that each takes for the image."""
    times: dict[str, list[float]] = {name: [] for name in predictors}
    for repeat in range(warm_up + repeats):
        for name, predict in predictors.items():
            start = time.perf_counter()
            predict(image)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat >= warm_up:
                times[name].append(time.perf_counter() - start)
    return times


def count_parameters(module: torch.nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


if __name__ == "__main__":
    main()
