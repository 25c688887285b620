"""Are the labelled cases of a fold fit to train on? Said before the first epoch, not by a worker in the middle."""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_ad.data.folds import preprocess_command

LOCATIONS = "class_locations"
_SHAPE_BEFORE = "shape_after_cropping_and_before_resampling"
# Other preprocessors and functions may choose another grid than the spacing of the plans gives.
_PREPROCESSOR = "DefaultPreprocessor"
_RESAMPLING = ("resample_data_or_seg_to_shape", "resample_torch_simple", "resample_torch_fornnunet")


@dataclass(frozen=True)
class Grids:
    """On which grids a configuration has its cases.

    Attributes:
        plans: Plans of the training.
        configuration: Name of its configuration.
    """

    plans: PlansManager
    configuration: str

    def check(self, dataset: nnUNetBaseDataset, case: str, properties: dict, shape: tuple[int, ...]) -> None:
        """Refuse a labelled case that was resampled by other plans, which may have the same folder.

        A voxel more or less is what the last digit of a spacing makes.

        Raises:
            ValueError: If the case has another size than the spacing of the plans gives, or does not say what it was.
        """
        manager = self.plans.get_configuration(self.configuration)
        resampling = manager.configuration.get("resampling_fn_data")
        if manager.preprocessor_name != _PREPROCESSOR or resampling not in _RESAMPLING:
            return
        lacking = [key for key in (_SHAPE_BEFORE, "spacing") if key not in properties]
        if lacking:
            raise damaged(dataset, case, f"no {', '.join(lacking)}")
        expected = _resampled_shape(properties, self.plans, manager)
        if any(abs(a - b) > 1 for a, b in zip(shape, expected, strict=True)):
            name = self.plans.plans_name
            command = preprocess_command(self.plans.dataset_name, self.configuration, name)
            raise ValueError(
                f"labelled case {case} in {dataset.source_folder} has {_sizes(shape)} voxels, and the spacing of "
                f"{self.configuration} in {name} gives {_sizes(expected)}: other plans preprocessed it. Plan under a "
                f"name of its own (-overwrite_plans_name), or, if no other plans need that folder, run {command}."
            )


def check_labeled(
    train: nnUNetBaseDataset,
    val: nnUNetBaseDataset,
    labels: LabelManager,
    grids: Grids,
    fold_of_dataset: str,
    log: Callable[[str], None],
) -> None:
    """Open every file of the labelled cases, and look for a voxel of each class; warn of classes without one.

    Opening reads the head and the size of an image or label file, which shows missing and truncated ones, and ones of
    other plans.

    Args:
        train: Labelled training cases.
        val: Validation cases.
        labels: Of the training, without regions.
        grids: Of the configuration.
        fold_of_dataset: For messages.
        log: Takes each line for the user.

    Raises:
        ValueError: If a file of a case is missing or damaged, if a case was preprocessed by other plans, or if no
            training case has any foreground.
    """
    has_voxels: dict[Hashable, bool] = {}
    for case in train.identifiers:
        for key, places in _open(train, case, grids)[LOCATIONS].items():
            has_voxels[key] = has_voxels.get(key, False) or len(places) > 0
    for case in val.identifiers:
        _open(val, case, grids)
    classes = _foreground_classes(labels)
    absent = [name for value, name in classes.items() if _is_absent(value, has_voxels)]
    if len(absent) == len(classes):
        raise ValueError(
            f"{fold_of_dataset}: the labels of all {len(train.identifiers)} training case(s) "
            f"({_shortened(train.identifiers)}) are background; expected voxels of {_shortened(absent)}. Repair the "
            "files in labelsTr/ and run nnUNetv2_preprocess again, or take other cases into the fold."
        )
    if absent:
        log(f"WARNING: no labelled training case of {fold_of_dataset} has {_shortened(absent)}: it can't be learned.")


def _resampled_shape(properties: dict, plans: PlansManager, manager: ConfigurationManager) -> tuple[int, ...]:
    before = properties[_SHAPE_BEFORE]
    spacing = [properties["spacing"][axis] for axis in plans.transpose_forward]
    missing = len(before) - len(manager.spacing)  # slices of 2d keep their distance
    return tuple(int(size) for size in compute_new_shape(before, spacing, [*spacing[:missing], *manager.spacing]))


def _sizes(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape))


def _open(dataset: nnUNetBaseDataset, case: str, grids: Grids) -> dict:
    try:
        image, label, _, properties = dataset.load_case(case)
        shapes = tuple(image.shape[1:]), tuple(label.shape[1:])
        properties[LOCATIONS].keys()
    except Exception as error:  # the readers raise whatever they like
        raise damaged(dataset, case, f"{type(error).__name__}: {error}") from error
    if shapes[0] != shapes[1]:
        raise damaged(dataset, case, f"image of {shapes[0]} and label of {shapes[1]} voxels")
    grids.check(dataset, case, properties, shapes[0])
    return properties


def damaged(dataset: nnUNetBaseDataset, case: str, found: str) -> ValueError:
    """Return the error for a labelled case whose preprocessed files are not as they should be."""
    return ValueError(
        f"labelled case {case}: a preprocessed file in {dataset.source_folder} is missing or damaged ({found}); "
        f"expected image, label and {case}.pkl as nnU-Net writes them. Run nnUNetv2_preprocess again."
    )


def _foreground_classes(labels: LabelManager) -> dict[int, str]:
    """Return the name of each foreground class by its value."""
    names = {value[0] if isinstance(value, list | tuple) else value: name for name, value in labels.label_dict.items()}
    return {value: names.get(value, str(value)) for value in labels.foreground_labels}


def _is_absent(value: int, has_voxels: dict[Hashable, bool]) -> bool:
    """Return whether a value has no voxel; preprocessing looks for voxels of values or, where declared, of regions.

    A region with voxels does not say which of its values they have; one without says that there are none of each.
    """
    found = [has for key, has in has_voxels.items() if value in (key if isinstance(key, tuple) else (key,))]
    return not found or not all(found)


def _shortened(names: Iterable[str], most: int = 5) -> str:
    listed = list(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")
