"""Plans that fit a GPU: nnU-Net's own planners, which choose patch and batch for the memory of A&D's train step.

nnU-Net's estimate counts the elements that the convolutions of its network put out for one patch, and holds them
against a count known to fill some GB. Here the same unit counts what A&D's step holds at its peak, for a labelled patch
and the unlabelled one beside it. With E, D the outputs of encoder and one decoder, K classes and V voxels in a patch::

    2 E + D + 5 K V

- 2 E: labelled and unlabelled patches are encoded in one call, and kept until all decoders have gone back.
- D: one decoder at a time is kept, on one patch. The denoising flow, E + D, has been freed before.
- The gradients of features that wait for the encoder's backward pass cost about what additive skips save over nnU-Net's
  concatenation. Neither is counted.
- 5 K V: noisy labels, logits of several flows and their losses, mostly in float32, beyond the logits in D. The number
  comes from counting the bytes of all tensors in train steps of small networks in mixed precision on a CPU.

Parameters, which three decoders have more of, and a GPU's working memory are not counted: nnU-Net's constants leave
room for its own.
"""

import contextlib
import io
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    ResEncUNetPlanner,
    nnUNetPlannerResEncL,
    nnUNetPlannerResEncM,
    nnUNetPlannerResEncXL,
)
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.json_export import recursive_fix_for_json_export

from nnunet_ad.data.folds import SPLITS_FILE, dataset_number, read_splits
from nnunet_ad.data.images import num_channels, unlabeled_images
from nnunet_ad.data.unlabeled import DatasetFolders
from nnunet_ad.regions import as_classes
from nnunet_ad.whole_file import written_whole

_LABEL_MAPS = 5  # the 5 of 5 K V
_MIN_EDGE = 4  # voxels along each axis on average, as nnU-Net's smallest feature map
_DATA_WORKERS = "nnUNet_n_proc_DA"
_FINGERPRINT = "dataset_fingerprint.json"


class ADPlanner(ExperimentPlanner):
    """nnU-Net's default planner with the memory of A&D, and with unlabelled cases in the limit of the batch size.

    Args:
        dataset: Name of the dataset, which has a fingerprint.
        gpu_memory_target_in_gb: Memory of the GPU.
        plans_name: Name of the plans; ``None``: the name nnU-Net gives its own, and ``AD``.
    """

    def __init__(self, dataset: str, gpu_memory_target_in_gb: float, plans_name: str | None = None):
        super().__init__(dataset)  # without the target: ResEnc planners warn of any but their own
        self.UNet_vram_target_GB = gpu_memory_target_in_gb
        self.plans_identifier: str = plans_name or f"{self.plans_identifier}AD"
        self.dataset_json: dict = as_classes(self.dataset_json)
        self.num_unlabeled = len(unlabeled_images(Path(self.raw_dataset_folder), self.dataset_json))

    @staticmethod
    def static_estimate_VRAM_usage(  # noqa: N802 (the host's name)
        patch_size: Sequence[int],
        input_channels: int,
        output_channels: int,
        arch_class_name: str,
        arch_kwargs: dict,
        arch_kwargs_req_import: Sequence[str],
    ) -> int:
        """Return 2 E + D + 5 K V, see the module, for a labelled patch and the unlabelled one beside it.

        Raises:
            ValueError: The patch is too small to train on: the planner found no larger one that fits.
        """
        num_voxels = math.prod(int(size) for size in patch_size)
        if num_voxels < _MIN_EDGE ** len(patch_size):
            raise ValueError(
                f"no patch of at least {_MIN_EDGE} voxels along each axis fits the memory target; give a larger one"
            )
        with torch.device("meta"):  # shapes only
            host = get_network_from_plans(
                arch_class_name, arch_kwargs, arch_kwargs_req_import, input_channels, output_channels, allow_init=False
            )
        # Ours puts out as much as nnU-Net's decoder: the same convolutions, which read fewer channels.
        encoder, decoder = (part.compute_conv_feature_map_size(patch_size) for part in (host.encoder, host.decoder))
        return int(2 * encoder + decoder + _LABEL_MAPS * output_channels * num_voxels)

    def get_plans_for_configuration(
        self, spacing, median_shape, data_identifier: str, approximate_n_voxels_dataset: float, _cache: dict
    ) -> dict:
        """As the host, with another limit of the batch size, and never more than the target.

        The host limits the voxels of a step to a share of the labelled ones (5 %, ResEnc 100 %). A step of A&D sees two
        patches where the host's sees one, and all cases are seen.
        """
        all_per_labeled = 1 + self.num_unlabeled / self.dataset_json["numTraining"]
        plan = super().get_plans_for_configuration(
            spacing, median_shape, data_identifier, approximate_n_voxels_dataset * all_per_labeled / 2, _cache
        )
        # The host rounds to the nearest batch size, which may be above the target.
        fitting = math.floor(self.UNet_vram_target_GB / self.step_memory(plan | {"batch_size": 1}))
        plan["batch_size"] = max(self.UNet_min_batch_size, min(plan["batch_size"], fitting))
        return plan

    def step_memory(self, settings: dict) -> float:
        """Return the estimated GB of A&D's train step with patch, batch and network of a configuration."""
        elements = self.static_estimate_VRAM_usage(
            settings["patch_size"],
            num_channels(self.dataset_json),
            len(self.dataset_json["labels"]),
            settings["architecture"]["network_class_name"],
            settings["architecture"]["arch_kwargs"],
            settings["architecture"]["_kw_requires_import"],
        )
        reference = (
            self.UNet_reference_val_2d * self.UNet_reference_val_corresp_bs_2d
            if len(settings["patch_size"]) == 2
            else self.UNet_reference_val_3d * self.UNet_reference_val_corresp_bs_3d
        )
        return elements * settings["batch_size"] / reference * self.UNet_reference_val_corresp_GB

    def generate_data_identifier(self, configuration_name: str) -> str:
        """As the host's ResEnc planners: 2d and 3d_fullres share the preprocessed data of the default plans."""
        return ResEncUNetPlanner.generate_data_identifier(self, configuration_name)


class ADPlannerResEncM(ADPlanner, nnUNetPlannerResEncM):
    """nnU-Net's ResEnc M planner with the changes of :class:`ADPlanner`."""


class ADPlannerResEncL(ADPlanner, nnUNetPlannerResEncL):
    """nnU-Net's ResEnc L planner with the changes of :class:`ADPlanner`."""


class ADPlannerResEncXL(ADPlanner, nnUNetPlannerResEncXL):
    """nnU-Net's ResEnc XL planner with the changes of :class:`ADPlanner`."""


PLANNERS: dict[str, tuple[type[ADPlanner], Callable[[str], ExperimentPlanner]]] = {
    "plain": (ADPlanner, ExperimentPlanner),
    "resenc_m": (ADPlannerResEncM, nnUNetPlannerResEncM),
    "resenc_l": (ADPlannerResEncL, nnUNetPlannerResEncL),
    "resenc_xl": (ADPlannerResEncXL, nnUNetPlannerResEncXL),
}


@dataclass(frozen=True)
class Choice:
    """Patch size, labelled patches a batch (and as many unlabelled), and estimated GB of A&D's train step."""

    patch_size: list[int]
    batch_size: int
    memory: float


@dataclass(frozen=True)
class MemoryPlans:
    """Plans that were written.

    Attributes:
        path: The plans file.
        chosen: By configuration.
        stock: By configuration, what nnU-Net's own planner chooses for the same target, with A&D's memory for it.
        data: By configuration, the folder of the preprocessed data.
    """

    path: Path
    chosen: dict[str, Choice]
    stock: dict[str, Choice]
    data: dict[str, Path]


def write_memory_plans(
    dataset: str | int, gpu_memory_target: float, planner: str = "plain", name: str | None = None
) -> MemoryPlans:
    """Plan a dataset for A&D on a GPU of ``gpu_memory_target`` GB and write the plans.

    Args:
        dataset: Number or name of a dataset in nnU-Net's raw folder, with a fingerprint.
        gpu_memory_target: GB, in nnU-Net's sense.
        planner: Key of :data:`PLANNERS`.
        name: Name of the plans; ``None``: the name that nnU-Net's planner gives, and ``AD``.

    Raises:
        ValueError: The target is not positive or too small, the dataset lacks its raw folder or fingerprint, the
            values of its regions have a gap, its two copies of the splits differ, or plans of that name exist.
        RuntimeError: nnU-Net does not know the dataset, or one of its path variables is not set.
    """
    if not 0 < gpu_memory_target < math.inf:
        raise ValueError(f"the memory target is {gpu_memory_target}; expected a positive number of GB")
    folders = DatasetFolders.of(maybe_convert_to_dataset_name(dataset))
    _check_is_fingerprinted(folders)
    _check_number_of_folds(folders)
    planner_class, stock_class = PLANNERS[planner]
    ours = _make(lambda: planner_class(folders.name, gpu_memory_target, name), folders)
    path = folders.preprocessed / f"{ours.plans_identifier}.json"
    if path.exists():
        raise ValueError(f"plans {path} exist; give the new ones another name, or delete that file")
    plans = _plan_in_memory(ours)
    stock = _make(lambda: stock_class(folders.name), folders)
    stock.UNet_vram_target_GB = gpu_memory_target
    stock_plans = _plan_in_memory(stock)
    _write(path, plans)
    settings = {key: value for key, value in plans["configurations"].items() if "data_identifier" in value}
    data = {key: folders.preprocessed / value["data_identifier"] for key, value in settings.items()}
    return MemoryPlans(path, _choices(ours, plans), _choices(ours, stock_plans), data)


def _check_is_fingerprinted(folders: DatasetFolders) -> None:
    if folders.raw is None:
        raise ValueError(f"{folders.name} is not in nnUNet_raw, where planning reads dataset.json and counts the cases")
    if not (folders.preprocessed / _FINGERPRINT).is_file():
        raise ValueError(
            f"no fingerprint {folders.preprocessed / _FINGERPRINT}: run nnUNetv2_plan_and_preprocess -d "
            f"{dataset_number(folders.name)} first"
        )


def _check_number_of_folds(folders: DatasetFolders) -> None:
    """Refuse further folds in the raw dataset, on which the host's comparison of the splits ends in an IndexError."""
    files = [folder / SPLITS_FILE for folder in (folders.raw, folders.preprocessed) if folder is not None]
    if not all(file.is_file() for file in files):
        return
    in_raw, in_copy = (len(read_splits(file)) for file in files)
    if in_raw > in_copy:
        raise ValueError(
            f"{SPLITS_FILE} of {folders.raw} has more folds than that of {folders.preprocessed}, which training "
            "reads; copy the further folds there"
        )


def _make(make: Callable[[], ExperimentPlanner], folders: DatasetFolders) -> ExperimentPlanner:
    try:
        return make()
    except AssertionError as error:  # the host's only check there compares the splits
        raise ValueError(
            f"splits_final.json of {folders.raw} and of {folders.preprocessed} differ; make them the same"
        ) from error


def _plan_in_memory(planner: ExperimentPlanner) -> dict:
    """Return the plans as they would be read from the file that the host would write."""
    planner.save_plans = recursive_fix_for_json_export
    # Networks are made for their shapes only; much is printed.
    with torch.device("meta"), contextlib.redirect_stdout(io.StringIO()), _a_data_worker_at_least():
        return planner.plan_experiment()


@contextlib.contextmanager
def _a_data_worker_at_least() -> Iterator[None]:
    """The host's planners take the number of data workers for one of threads, which cannot be 0."""
    if get_allowed_n_proc_DA() > 0:
        yield
        return
    without = os.environ[_DATA_WORKERS]
    os.environ[_DATA_WORKERS] = "1"
    try:
        yield
    finally:
        os.environ[_DATA_WORKERS] = without


def _write(path: Path, plans: dict) -> None:
    """Write a file that appears as a whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(plans, indent=4) + "\n", encoding="utf-8")


def _choices(planner: ADPlanner, plans: dict) -> dict[str, Choice]:
    return {
        name: Choice(settings["patch_size"], settings["batch_size"], planner.step_memory(settings))
        for name, settings in plans["configurations"].items()
        if "patch_size" in settings  # others inherit
    }
