"""Times the train step beside a plain one and beside stock nnU-Net's, in one run on the same device.

(a) is this package's step, (b) Algorithm 1 read off the page (``reference_step.py``, in float32 and with torch's own
layers), (c) the supervised step of stock nnU-Net on the same plans. Each has a process of its own; they take turns.
A unit is one forward pass of encoder and one decoder on one batch; (c) is three. Memory is the peak of two steps above
what was there before: on a CPU of the first two, on CUDA after a step in which all three are built and compiled at the
same time, so that neither gradients nor momentum count.

    python benchmarks/train_step.py --size tiny
    python benchmarks/train_step.py --size laseg --device cuda --compile --profile
    python benchmarks/train_step.py --plans nnUNetPlans.json --configuration 3d_fullres --channels 1 --classes 3
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

REPEATS, WARM_UP = 7, 3
NAMES = {"a": "this package", "b": "plain, float32", "c": "stock nnU-Net, supervised"}


@dataclass(frozen=True)
class Size:
    """What a step works on: voxels of a patch, patches a batch, features of the first stage, channels, classes."""

    patch: tuple[int, ...]
    batch: int
    features: int
    channels: int = 1
    classes: int = 2


SIZES = {
    "tiny": Size((32, 32, 32), batch=2, features=16, classes=3),
    "coarse-laseg": Size((40, 56, 80), batch=2, features=16),
    "small-laseg": Size((56, 56, 40), batch=4, features=16),
    "laseg": Size((112, 112, 80), batch=4, features=32),
}


def main() -> None:
    """Time the steps, measure their memory and print the comparison."""
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        set_environment(Path(folder), arguments.compile)
        plans, dataset_json, configuration = describe(arguments)
        settings = plans["configurations"][configuration]
        data = Path(folder) / "nnUNet_preprocessed" / plans["dataset_name"] / settings["data_identifier"]
        data.mkdir(parents=True)
        (data / "case.b2nd").touch()  # the trainers look which kind of file there is
        print(f"{device_name(arguments.device)}, torch {torch.__version__}, {torch.get_num_threads()} threads")
        print(f"patch {settings['patch_size']}, batch {settings['batch_size']}, S = {arguments.sampling_steps}")
        times, memory, profile = measure(plans, dataset_json, configuration, arguments)
    print_table(times, memory, arguments.sampling_steps, arguments.paper)
    if profile:
        print(profile)


def parse_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--plans", type=Path, help="a plans file instead of a size")
    parser.add_argument("--configuration", default="3d_fullres", help="of --plans")
    parser.add_argument("--channels", type=int, default=1, help="of --plans")
    parser.add_argument("--classes", type=int, default=2, help="with background, of --plans")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--sampling-steps", type=int, default=10, help="S of DDIM (default: %(default)s, the paper's)")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--compile", action="store_true", help="compile (a) and (c) on a GPU, DDIM of (a) on a CPU")
    parser.add_argument("--paper", action="store_true", help="the step of nnUNetTrainerAD_Paper")
    parser.add_argument("--recompute", action="store_true", help="let (a) keep less and compute it again")
    parser.add_argument("--profile", action="store_true", help="print where (a) spends its time")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device here; the benchmark is ready to run where there is one")
    return arguments


def set_environment(folder: Path, compiled: bool) -> None:
    """Point nnU-Net's variables into a folder, before it is imported."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ[name] = str(folder / name)
    os.environ.update(nnUNet_compile="t" if compiled else "f", NNUNET_AD_SEED="0")


def describe(arguments: argparse.Namespace) -> tuple[dict, dict, str]:
    """Return plans, dataset.json and the configuration to time."""
    if arguments.plans:
        plans = json.loads(arguments.plans.read_text())
        return plans, dataset_of(arguments.channels, arguments.classes), arguments.configuration
    size = SIZES[arguments.size]
    return plans_of(size), dataset_of(size.channels, size.classes), "3d_fullres"


def dataset_of(channels: int, classes: int) -> dict:
    """Return a dataset.json."""
    return {
        "channel_names": {str(i): "image" for i in range(channels)},
        "labels": {"background": 0} | {f"class {k}": k for k in range(1, classes)},
        "numTraining": 4,
        "file_ending": ".nii.gz",
    }


def plans_of(size: Size) -> dict:
    """Return plans as nnU-Net's planner writes them, for an isotropic PlainConv network of a size."""
    from nnunet_ad.planning.small_plans import shrink_plans

    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    function = "resample_data_or_seg_to_shape"
    module = "torch.nn.modules"
    settings = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [64, 64, 64],
        "median_image_size_in_voxels": [128.0, 128.0, 128.0],
        "spacing": [1.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"] * size.channels,
        "use_mask_for_norm": [False] * size.channels,
        **{f"resampling_fn_{kind}": function for kind in ("data", "seg", "probabilities")},
        **{f"resampling_fn_{kind}_kwargs": resampling for kind in ("data", "seg", "probabilities")},
        "batch_dice": False,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": 6,
                "features_per_stage": [32, 64, 128, 256, 320, 320],
                "conv_op": f"{module}.conv.Conv3d",
                "kernel_sizes": [[3] * 3] * 6,
                "strides": [[1] * 3] + [[2] * 3] * 5,
                "n_conv_per_stage": [2] * 6,
                "n_conv_per_stage_decoder": [2] * 5,
                "conv_bias": True,
                "norm_op": f"{module}.instancenorm.InstanceNorm3d",
                "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    plans = {
        "dataset_name": "Dataset999_Benchmark",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0] * 3,
        "original_median_shape_after_transp": [128] * 3,
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": settings},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {},
    }
    return shrink_plans(plans, "3d_fullres", size.features, size.patch, size.batch, "nnUNetPlansBenchmark")


def make_step(
    name: str, plans: dict, dataset_json: dict, configuration: str, arguments: argparse.Namespace
) -> Callable:
    """Return a function without arguments that takes one step of (a), (b) or (c) on a fixed batch."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from reference_step import ReferenceStep

    from nnunet_ad.trainer import nnUNetTrainerAD, nnUNetTrainerAD_Paper

    if name == "b":
        leave_memory_to_torch()
    device = torch.device(arguments.device)
    trainer_class = nnUNetTrainer
    if name != "c":
        base = nnUNetTrainerAD_Paper if arguments.paper else nnUNetTrainerAD
        config = replace(
            base.config,
            num_sampling_steps=arguments.sampling_steps,
            rampup_epochs=0,
            recompute_activations=arguments.recompute and name == "a",
        )
        trainer_class = type("nnUNetTrainerAD_benchmark", (base,), {"config": config})
    trainer = trainer_class(plans | {"continue_training": False}, configuration, 0, dataset_json, device)
    trainer.initialize()
    trainer.network.train()
    batch = make_batch(trainer)
    if name == "b":
        use_torchs_own_layers(trainer.network)
        for group in trainer.optimizer.param_groups:
            group["fused"] = None
    step = ReferenceStep(trainer) if name == "b" else trainer.train_step
    return lambda: step(batch)


def leave_memory_to_torch() -> None:
    """Turn off, in this process, what the package does about the layout and the reuse of memory."""
    from nnunet_ad.network import channels_last, encoder
    from nnunet_ad.trainer import two_stream

    encoder.channels_last = channels_last.channels_last = lambda x: x
    two_stream.keep_freed_memory = lambda: False


def use_torchs_own_layers(network: torch.nn.Module) -> None:
    """Put torch's instance normalisation and convolution back, in place; parameters stay."""
    for module in network.modules():
        if isinstance(module, (torch.nn.modules.instancenorm._InstanceNorm, torch.nn.Conv3d)):
            module.__class__ = getattr(torch.nn, type(module).__name__)


def make_batch(trainer) -> dict:
    """Return a batch of noise with random labels, as the loaders would give it."""
    patch, batch = trainer.configuration_manager.patch_size, trainer.batch_size
    generator = torch.Generator().manual_seed(0)
    num_classes = trainer.label_manager.num_segmentation_heads
    target = torch.randint(num_classes, (batch, 1, *patch), generator=generator).to(torch.int16)
    images = torch.randn((2, batch, trainer.num_input_channels, *patch), generator=generator)
    if trainer.enable_deep_supervision:
        scales = trainer._get_deep_supervision_scales()
        target = [torch.nn.functional.interpolate(target.float(), scale_factor=s, mode="nearest") for s in scales]
    return {"data": images[0], "unlabeled_data": images[1], "target": target}


def measure(plans: dict, dataset_json: dict, configuration: str, arguments: argparse.Namespace) -> tuple:
    """Return the seconds of each step, its memory in GiB, and the profile of (a) if asked for."""
    context = multiprocessing.get_context("spawn")
    workers = {}
    for name in NAMES:
        ours, theirs = context.Pipe()
        process = context.Process(
            target=serve, args=(theirs, name, plans, dataset_json, configuration, arguments), daemon=True
        )
        process.start()
        workers[name] = ours
    if arguments.device == "cuda":
        for worker in workers.values():
            worker.send("build")
        for worker in workers.values():
            worker.recv()
    memory = {name: ask(worker, "memory") for name, worker in workers.items()}
    times: dict[str, list[float]] = {name: [] for name in NAMES}
    for repeat in range(WARM_UP + arguments.repeats):
        for name, worker in workers.items():
            seconds = ask(worker, "step")
            if repeat >= WARM_UP:
                times[name].append(seconds)
    profile = ask(workers["a"], "profile") if arguments.profile else ""
    for worker in workers.values():
        worker.send("end")
    return times, memory, profile


def ask(worker, what: str):
    """Let a process do something and return its answer."""
    worker.send(what)
    return worker.recv()


def serve(pipe, name: str, plans: dict, dataset_json: dict, configuration: str, arguments) -> None:
    """Take steps as asked for until the process is ended."""
    step = make_step(name, plans, dataset_json, configuration, arguments)
    answers = {
        "build": lambda: build(step),
        "memory": lambda: peak_memory(step, arguments.device),
        "step": lambda: seconds_of(step, arguments.device),
        "profile": lambda: profile_of(step, arguments.device),
    }
    while (question := pipe.recv()) != "end":
        pipe.send(answers[question]())


def build(step: Callable) -> None:
    """Take the first step, in which torch compiles; cuDNN is to choose its algorithms later, with the GPU to itself."""
    seconds_of(step, "cuda")
    torch.backends.cudnn.benchmark = True  # as nnU-Net's command


def seconds_of(step: Callable, device: str) -> float:
    """Return the time of one step until the device has finished it."""
    start = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def profile_of(step: Callable, device: str, num_steps: int = 3) -> str:
    """Return the operators that take most of the step's time and, on a GPU, the share of time it is busy."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        seconds = sum(seconds_of(step, device) for _ in range(num_steps))
    table = profile.key_averages().table(sort_by=f"self_{device}_time_total", row_limit=10, max_name_column_width=60)
    if device == "cpu":
        return table
    kernels = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    busy = length_of_union([(event.time_range.start, event.time_range.end) for event in kernels]) / 1e6
    return f"{table}\ndevice busy {100 * busy / seconds:.1f} % of {num_steps} steps"


def length_of_union(intervals: list[tuple[float, float]]) -> float:
    """Return how much of the line some intervals cover together."""
    covered, end = 0.0, float("-inf")
    for first, last in sorted(intervals):
        covered += max(0.0, last - max(first, end))
        end = max(end, last)
    return covered


def peak_memory(step: Callable, device: str) -> float:
    """Return the peak memory of two steps in GiB above that before the first: of the GPU, or resident on Linux."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    step()
    step()
    return ((torch.cuda.max_memory_allocated() if device == "cuda" else resident("VmHWM")) - before) / 2**30


def resident(field: str) -> int:
    """Return a value of this process's status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/self/status")


def print_table(times: dict[str, list[float]], memory: dict[str, float], sampling_steps: int, paper: bool) -> None:
    """Print medians, ratios, memory and the count of units."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"\n{'step':<32}{'median':>10}{'min':>10}{'max':>10}{'memory':>12}")
    for name, label in NAMES.items():
        row = (medians[name], min(times[name]), max(times[name]))
        print(f"({name}) {label:<28}" + "".join(f"{value:>9.3f}s" for value in row) + f"{memory[name]:>8.2f} GiB")
    psi = 0.5 if paper else 1.0  # without CutMix E(x_u) is shared
    units = 9 + psi + sampling_steps
    print(f"\ntime   (a)/(b) {medians['a'] / medians['b']:.2f}")
    print(f"memory (a)/(b) {memory['a'] / memory['b']:.2f}")
    print(
        f"{units:g} units: three flows forward and backward 9, p^{{u;ψ}} {psi:g}, {sampling_steps} DDIM steps\n"
        f"(a) / (units * (c)/3) {medians['a'] / (units * medians['c'] / 3):.2f}"
    )


def device_name(device: str) -> str:
    """Return the processor's or GPU's name."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return "CPU"


if __name__ == "__main__":
    main()
