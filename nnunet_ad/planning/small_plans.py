"""Smaller plans from nnU-Net's own: fewer features, a smaller patch, the same preprocessed data.

The default planner fills a GPU; on a CPU its networks take minutes an iteration. :func:`shrink_plans` keeps everything
that the preprocessed data depend on, so that the data of the original plans are used as they are.
"""

import json
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ad.json_file import read_json
from nnunet_ad.whole_file import written_whole

MIN_BOTTLENECK = 4  # voxels along each axis, as nnU-Net's planner
_SHRUNK_FROM = "shrunk_from"  # marks the plans written here, which alone may be replaced; nnU-Net passes over it
_SHRUNK = "shrunk_configurations"  # the names of those that are smaller than in the plans it was shrunk from
_BLOCK_COUNTS = ("n_conv_per_stage", "n_blocks_per_stage")  # PlainConv and ResidualEncoder plans


def shrink_plans(
    plans: dict, configuration: str, base_features: int, patch_size: Sequence[int], batch_size: int, name: str
) -> dict:
    """Return a copy of ``plans`` with a smaller network, patch and batch in one configuration.

    Stages, strides and kernel sizes follow from the patch and the spacing by nnU-Net's own rule: an axis is halved as
    long as at least four voxels remain, coarse axes are spared at first. Features double from stage to stage up to the
    largest number in the original plans. The data identifier is kept: the preprocessed data are shared.

    Args:
        plans: Content of a plans file.
        configuration: Name of the configuration to shrink, for example ``3d_fullres``.
        base_features: Features of the first stage.
        patch_size: Voxels along the axes of the preprocessed data; rounded up so that every stage halves evenly.
        batch_size: Patches a batch.
        name: Name of the new plans, for ``-p``.

    Returns:
        The new plans.

    Raises:
        ValueError: The configuration is unknown or takes its architecture from another one, the patch has another
            number of axes than the configuration or an axis shorter than four voxels, a number is not positive, or
            the name is that of plans that were not shrunk.
    """
    _check(plans, configuration, base_features, patch_size, batch_size, name)
    small = deepcopy(plans)
    small["plans_name"] = name
    settings = small["configurations"][configuration]
    _, strides, kernel_sizes, patch_size, _ = get_pool_and_conv_props(
        _spacing(plans, configuration), list(patch_size), MIN_BOTTLENECK, max_numpool=999
    )
    settings["patch_size"] = [int(size) for size in patch_size]
    settings["batch_size"] = batch_size
    _shrink_architecture(settings["architecture"]["arch_kwargs"], base_features, strides, kernel_sizes)
    return small


def write_small_plans(
    preprocessed_dataset_folder: Path,
    configuration: str,
    base_features: int,
    patch_size: Sequence[int],
    batch_size: int,
    name: str,
    source_name: str = "nnUNetPlans",
) -> Path:
    """Write smaller plans beside the plans ``source_name`` of a planned dataset, and return the new file's path.

    The other arguments are those of :func:`shrink_plans`. Plans of that name are replaced if they were written here.
    Where ``name`` is ``source_name``, they keep their other configurations, and the one to shrink is taken anew from
    the plans that they were shrunk from.

    Raises:
        FileNotFoundError: The dataset has no plans of that name.
        ValueError: As :func:`shrink_plans`, or the new file would replace the original plans or others, or plans with
            another shrunk configuration.
    """
    folder = Path(preprocessed_dataset_folder)
    plans, target = _read(folder, source_name), folder / f"{name}.json"
    is_in_place = source_name == name and _is_ours(target)
    if is_in_place:
        source_name = plans[_SHRUNK_FROM]
        original = _read(folder, source_name)["configurations"]
        plans["configurations"] |= {key: original[key] for key in original if key == configuration}
    small = shrink_plans(plans, configuration, base_features, patch_size, batch_size, name)
    small |= {_SHRUNK_FROM: source_name, _SHRUNK: sorted({*plans.get(_SHRUNK, ()), configuration})}
    if not is_in_place:
        _check_may_be_written(target, folder / f"{source_name}.json", small[_SHRUNK])
    with written_whole(target) as temporary:
        temporary.write_text(json.dumps(small, indent=4) + "\n", encoding="utf-8")
    return target


def _read(folder: Path, name: str) -> dict:
    file = folder / f"{name}.json"
    if not file.is_file():
        raise FileNotFoundError(f"no plans {file}: plan the dataset first with nnUNetv2_plan_and_preprocess")
    return read_json(file)


def _check_may_be_written(target: Path, source: Path, shrunk: Sequence[str]) -> None:
    if not target.exists():
        return
    if target.samefile(source):
        raise ValueError(f"{target} has the original plans, which would be lost; give the new ones another name")
    if not _is_ours(target):
        raise ValueError(
            f"{target} exists and has no mark of nnunet_ad shrink-plans; give the new plans another name, or delete "
            "that file if an earlier version of the command wrote it"
        )
    if lost := _shrunk_configurations(target) - set(shrunk):
        raise ValueError(
            f"{target} has a smaller {', '.join(sorted(lost))}, which would have its full size again; to keep it, "
            f"change these plans: -p {target.stem} -o {target.stem}; else give the new ones another name"
        )


def _shrunk_configurations(file: Path) -> set[str]:
    """Return which configurations of plans that were written here are smaller than in those they were shrunk from."""
    plans = _read(file.parent, file.stem)
    if _SHRUNK in plans:
        return set(plans[_SHRUNK])
    source = file.with_name(f"{plans[_SHRUNK_FROM]}.json")  # plans of earlier versions do not name them
    original = _read(source.parent, source.stem)["configurations"] if source.is_file() else plans["configurations"]
    return {name for name, each in plans["configurations"].items() if each != original.get(name)}


def _is_ours(file: Path) -> bool:
    try:
        plans = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:  # no JSON
        return False
    # A copy that was made by hand still has the name of what it was copied from.
    return isinstance(plans, dict) and _SHRUNK_FROM in plans and plans.get("plans_name") == file.stem


def _spacing(plans: dict, configuration: str) -> list[float]:
    """Return the spacing of a configuration, which it may inherit."""
    return PlansManager(plans).get_configuration(configuration).spacing


def _check(plans: dict, configuration: str, base_features: int, patch_size: Sequence[int], batch_size: int, name: str):
    if configuration not in plans["configurations"]:
        known = ", ".join(plans["configurations"])
        raise ValueError(f"plans {plans['plans_name']} have no configuration {configuration!r}; they have {known}")
    settings = plans["configurations"][configuration]
    if "architecture" not in settings:
        parent = settings.get("inherits_from")
        raise ValueError(f"configuration {configuration!r} takes its architecture from {parent!r}: shrink that one")
    axes = len(_spacing(plans, configuration))
    if len(patch_size) != axes:
        raise ValueError(f"patch size {list(patch_size)}: configuration {configuration!r} has {axes} axes")
    if min(patch_size) < MIN_BOTTLENECK:
        raise ValueError(f"patch size {list(patch_size)}: every axis needs at least {MIN_BOTTLENECK} voxels")
    if base_features < 1 or batch_size < 1:
        raise ValueError(f"features and batch size must be positive, got {base_features} and {batch_size}")
    if name == plans["plans_name"] and _SHRUNK_FROM not in plans:
        raise ValueError(f"the new plans need another name than the original ones, {name!r}")


def _shrink_architecture(
    arch_kwargs: dict, base_features: int, strides: Sequence[Sequence[int]], kernel_sizes: Sequence[Sequence[int]]
) -> None:
    num_stages = len(strides)
    max_features = max(arch_kwargs["features_per_stage"])
    arch_kwargs["n_stages"] = num_stages
    arch_kwargs["features_per_stage"] = [min(base_features * 2**stage, max_features) for stage in range(num_stages)]
    arch_kwargs["strides"] = [list(stride) for stride in strides]
    arch_kwargs["kernel_sizes"] = [list(kernel_size) for kernel_size in kernel_sizes]
    for key in _BLOCK_COUNTS:
        if key in arch_kwargs:
            arch_kwargs[key] = _resize(arch_kwargs[key], num_stages)
    arch_kwargs["n_conv_per_stage_decoder"] = _resize(arch_kwargs["n_conv_per_stage_decoder"], num_stages - 1)


def _resize(counts: Sequence[int], length: int) -> list[int]:
    """Return the first ``length`` counts, the last one repeated if there are fewer."""
    return [*counts, *[counts[-1]] * (length - len(counts))][:length]
