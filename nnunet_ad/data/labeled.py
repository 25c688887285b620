"""Are the labelled cases of a fold fit to train on? Said before the first epoch, not by a worker in the middle."""

from collections.abc import Callable, Hashable, Iterable

from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.utilities.label_handling.label_handling import LabelManager

LOCATIONS = "class_locations"


def check_labeled(
    train: nnUNetBaseDataset,
    val: nnUNetBaseDataset,
    labels: LabelManager,
    fold_of_dataset: str,
    log: Callable[[str], None],
) -> None:
    """Open every file of the labelled cases, and look for a voxel of each class; warn of classes without one.

    Opening reads the head and the size of an image or label file, which shows missing and truncated ones.

    Args:
        train: Labelled training cases.
        val: Validation cases.
        labels: Of the dataset.
        fold_of_dataset: For messages.
        log: Takes each line for the user.

    Raises:
        ValueError: If a file of a case is missing or damaged, or if no training case has any foreground.
    """
    present: set[Hashable] = set()
    for case in train.identifiers:
        present |= {key for key, places in _open(train, case)[LOCATIONS].items() if len(places)}
    for case in val.identifiers:
        _open(val, case)
    classes = _foreground_classes(labels)
    absent = [name for key, name in classes.items() if key not in present]
    if len(absent) == len(classes):
        raise ValueError(
            f"{fold_of_dataset}: the labels of all {len(train.identifiers)} training case(s) "
            f"({_shortened(train.identifiers)}) are background; expected voxels of {_shortened(absent)}. Repair the "
            "files in labelsTr/ and run nnUNetv2_preprocess again, or take other cases into the fold."
        )
    if absent:
        log(f"WARNING: no labelled training case of {fold_of_dataset} has {_shortened(absent)}: it can't be learned.")


def _open(dataset: nnUNetBaseDataset, case: str) -> dict:
    try:
        image, label, _, properties = dataset.load_case(case)
        shapes = tuple(image.shape[1:]), tuple(label.shape[1:])
        properties[LOCATIONS].keys()
    except Exception as error:  # the readers raise whatever they like
        raise damaged(dataset, case, f"{type(error).__name__}: {error}") from error
    if shapes[0] != shapes[1]:
        raise damaged(dataset, case, f"image of {shapes[0]} and label of {shapes[1]} voxels")
    return properties


def damaged(dataset: nnUNetBaseDataset, case: str, found: str) -> ValueError:
    """Return the error for a labelled case whose preprocessed files are not as they should be."""
    return ValueError(
        f"labelled case {case}: a preprocessed file in {dataset.source_folder} is missing or damaged ({found}); "
        f"expected {case}.b2nd, {case}_seg.b2nd and {case}.pkl as nnU-Net writes them. Run nnUNetv2_preprocess again."
    )


def _foreground_classes(labels: LabelManager) -> dict[Hashable, str]:
    """Return the name of each foreground class or region by its key in ``class_locations``."""
    names = {_key(value, labels.has_regions): name for name, value in labels.label_dict.items()}
    foreground = labels.foreground_regions if labels.has_regions else labels.foreground_labels
    return {key: names.get(key, str(key)) for key in foreground}


def _key(value: int | list[int], has_regions: bool) -> Hashable:
    if not isinstance(value, list | tuple):
        return value
    return tuple(value) if has_regions or len(value) > 1 else value[0]


def _shortened(names: Iterable[str], most: int = 5) -> str:
    listed = list(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")
