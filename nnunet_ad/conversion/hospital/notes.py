"""What is said of a conversion: decisions about volumes, folds and patients that the user may want otherwise."""

from collections.abc import Mapping, Sequence

from nnunet_ad.conversion.folds import Fold
from nnunet_ad.conversion.hospital.groups import stated_patients, untrained_structures
from nnunet_ad.conversion.hospital.options import DEFAULT_CHANNEL, Options
from nnunet_ad.conversion.hospital.survey import SurveyedCase

MAX_MINIMUM_OF_CT = -900.0  # Hounsfield units, of air


def notes_on_volumes(options: Options, good: Sequence[SurveyedCase], channel_names: tuple[str, ...]) -> tuple[str, ...]:
    """Return what was decided about the volumes of the good cases."""
    notes = [f"channels: {', '.join(channel_names)}; nnU-Net normalises CT by the training cases, others one by one"]
    notes += [
        words
        for is_chosen, words in (
            (options.resample_channels, "channels on another grid were resampled onto that of the first, linearly"),
            (options.resample_masks, "masks on another grid were resampled onto that of the image, nearest neighbour"),
            (options.later_wins, "where structures overlap, the later one of the label list was kept"),
            (
                options.accept_other_series,
                "DICOM masks that refer to another series or patient than the image were accepted",
            ),
            (options.reorient, f"axes were swapped and flipped to {options.reorient}; no voxel was changed"),
            (options.accept_outliers, "cases unlike the rest in spacing, intensities or orientation were accepted"),
            (options.frames is not None, "volumes of 4-D files are cases of their own"),
        )
        if is_chosen
    ]
    num_like_ct = sum(each.channels[0].minimum <= MAX_MINIMUM_OF_CT for each in good)
    if channel_names == (DEFAULT_CHANNEL,) and 2 * num_like_ct > len(good):
        notes.append("intensities look like Hounsfield units; if the images are CT, convert again with --modality CT")
    return tuple(notes)


def notes_on_folds(
    folds: Sequence[Fold], unlabeled: Sequence[str], structures: Mapping[str, Sequence[str]]
) -> tuple[str, ...]:
    """Return what the folds lack.

    Args:
        folds: The folds.
        unlabeled: Names of all unlabelled cases.
        structures: The structures that each labelled case holds.
    """
    notes = [] if unlabeled else ["there are no unlabelled cases, which nnUNetTrainerAD needs"]
    num_unused = sum(len(unlabeled) - len(fold.unlabeled) for fold in folds)
    if num_unused:
        notes.append(f"{num_unused} times an unlabelled case is not used in a fold, since its patient is in its val")
    for number, fold in enumerate(folds):
        if lacking := untrained_structures(fold, structures):
            notes.append(
                f"in fold {number} no training case has {', '.join(lacking)}, hence none learns it; "
                "take another --seed or number of --folds, or label more cases"
            )
    return tuple(notes)


def notes_on_patients(options: Options, good: Sequence[SurveyedCase], patients: dict[str, str]) -> tuple[str, ...]:
    """Return how the patients (of each case, by name) were told apart, where no option said it."""
    if options.tell_patients:
        return ()
    num_stated = sum(patients[each.case.name] in stated_patients(each.case.source) for each in good)
    if not num_stated:
        words = "each file or folder counts as a patient of its own"
        return (f"{words}; say by --patients or --patient-regex whose case it is",)
    note = "patients are told apart by the DICOM headers"
    if num_stated < len(good):
        note += f"; {len(good) - num_stated} case(s) that state none count as patients of their own"
    return (note,)
