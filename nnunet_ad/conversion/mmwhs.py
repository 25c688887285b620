"""MM-WHS: the heart in MR and in CT, the training cases of the 2017 Multi-Modality Whole Heart Segmentation challenge.

Unsupervised domain adaptation by the public lists, from MR to CT or from CT to MR: 16 labelled cases of the source
modality, 13 unlabelled and 4 test cases of the target modality. A case keeps its public id, as ``ct_train_1003``, as
its name; its domain is ``MR`` or ``CT``.

The list's 3 labelled target cases are used for nothing and need not be in the input, unless ``--target-val`` makes them
``val``. ``--val N`` instead keeps the last N cases of the target's unlabelled list aside with their labels. Without
either, ``val`` is the labelled source cases themselves, named so, and no label of the target is opened before the end
but those of the test cases, which are copied.

Both modalities are normalised alike, each image by itself to zero mean and unit variance. nnU-Net's CT normalisation
would be fitted on one modality and applied to the other.

Labels are numbers of the challenge. By default four structures remain, those of the public protocol: 205 myocardium of
the left ventricle, 420 left atrium and a stray 421 in it, 500 blood cavity of the left ventricle, 820 ascending aorta.
All else becomes background: the challenge's 550, 600 and 850, unless ``--all-structures`` keeps them, and any other
number, for which a line is printed.

Images and labels keep their grids and intensities. The authors' public preprocessing does not do so: resizing, cropping
by the ground truth and images interpolated by nearest neighbour are among its steps over the four benchmarks, and a
crop by the ground truth tells where to look. So published numbers may stem from other inputs than these.
"""

import argparse
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from tqdm import tqdm

from nnunet_ad.conversion.case_files import Layout, describe_case, find_cases
from nnunet_ad.conversion.cases import Role
from nnunet_ad.conversion.command_line import Converter
from nnunet_ad.conversion.dataset import Dataset, Provenance
from nnunet_ad.conversion.errors import ConversionError
from nnunet_ad.conversion.folds import Fold, load_public_split, make_public_fold
from nnunet_ad.conversion.volumes import map_label_values, read_volume

DATASET_IDS = {"mr2ct": 103, "ct2mr": 104}
CHANNEL = "zscore"  # nnU-Net's name for normalising each image by itself, whatever its modality
STRUCTURES = ("MYO", "LAC", "LVC", "AA")
ALL_STRUCTURES = (*STRUCTURES, "RA", "RV", "PA")
CODES = {205: "MYO", 420: "LAC", 421: "LAC", 500: "LVC", 820: "AA", 550: "RA", 600: "RV", 850: "PA"}


def _in_train_folder(case: str, kind: str) -> str:
    return f"{case.rpartition('_')[0]}/{case}_{kind}.nii.gz"


def _in_modality_folder(case: str, kind: str, ending: str) -> str:
    return f"{_modality(case)}/{'labelsTr' if kind == 'label' else 'imagesTr'}/{case}{ending}.nii.gz"


LAYOUTS = (
    Layout(
        "{ct,mr}_train/{ct,mr}_train_10NN_image.nii.gz",
        partial(_in_train_folder, kind="image"),
        partial(_in_train_folder, kind="label"),
    ),
    *(
        Layout(
            f"{{CT,MR}}/imagesTr/{{ct,mr}}_train_10NN{image_ending}.nii.gz",
            partial(_in_modality_folder, kind="image", ending=image_ending),
            partial(_in_modality_folder, kind="label", ending=label_ending),
        )
        for image_ending, label_ending in (("_image", "_label"), ("_0000", ""), ("", ""))
    ),
)

PROVENANCE = Provenance(
    name="Multi-Modality Whole Heart Segmentation challenge 2017 (MM-WHS)",
    description="Heart structures in MR and CT; public split for unsupervised domain adaptation between them.",
    url="https://zmiclab.github.io/zxh/0/mmwhs/",
    citation="X. Zhuang and J. Shen, Multi-scale patch and multi-modality atlases for whole heart segmentation of MRI, "
    "Medical Image Analysis 31, 2016.",
)
NORMALISATION_NOTE = "both modalities are normalised alike, each image by itself (z-score)"
GRID_NOTE = (
    "volumes keep their grids and intensities, neither resized nor cropped; the authors' public preprocessing changes "
    "images, so compare with published numbers with care"
)


def describe(arguments: argparse.Namespace) -> Dataset:
    """Find the cases under ``arguments.input`` and return the dataset to write.

    Args:
        arguments: Parsed command line with ``input``, ``dataset_id`` (None for the default of the direction), ``val``,
            ``direction``, ``target_val`` and ``all_structures``.

    Raises:
        ConversionError: A case of the public lists or its label is missing, a case is found twice, or ``val`` is
            chosen twice.
    """
    split = load_public_split("MMWHS")[arguments.direction]
    public_val = split["val"] if arguments.target_val else None
    fold = make_public_fold(split["labeled"], split["unlabeled"], arguments.val, public_val, "--target-val")
    roles = dict.fromkeys(split["test"], Role.TEST) | dict.fromkeys(fold.unlabeled, Role.UNLABELED)
    roles |= dict.fromkeys((*fold.train, *fold.val), Role.LABELED)
    files = find_cases(arguments.input, roles, LAYOUTS)
    structures = ALL_STRUCTURES if arguments.all_structures else STRUCTURES
    return Dataset(
        dataset_id=arguments.dataset_id or DATASET_IDS[arguments.direction],
        name=f"MMWHS_{arguments.direction.upper()}",
        channel_names=(CHANNEL,),
        labels={"background": 0} | {name: value for value, name in enumerate(structures, start=1)},
        cases=tuple(
            describe_case(
                name,
                roles[name],
                _modality(name),
                files[name],
                arguments.input,
                partial(read_label, case=name, structures=structures),
            )
            for name in sorted(roles)
        ),
        folds=(fold,),
        provenance=PROVENANCE,
        setting="unsupervised domain adaptation",
        notes=(_codes_note(structures), NORMALISATION_NOTE, *_val_notes(fold, split["val"]), GRID_NOTE),
    )


def read_label(path: Path, case: str, structures: tuple[str, ...]) -> sitk.Image:
    """Read a label of the challenge, with the structures numbered from 1 and all else 0.

    A number that is none of the challenge's, and a structure that does not occur, are printed.

    Args:
        path: The file.
        case: The case, for what is printed.
        structures: The structures to keep, names of :data:`CODES`, in the order of their new values.

    Raises:
        ConversionError: The file is missing or damaged, is not one 3-D volume, has values that are no whole numbers,
            or has none of the structures.
    """
    label = read_volume(path)
    found = np.unique(sitk.GetArrayViewFromImage(label)).tolist()
    fractions = [value for value in found if not float(value).is_integer()]
    if fractions:
        raise ConversionError(
            f"the label has the value {float(fractions[0])!r}, expected whole numbers; repair or replace the label file"
        )
    mapping = {value: structures.index(CODES[value]) + 1 for value in CODES if CODES[value] in structures}
    if not mapping.keys() & set(found):
        raise ConversionError(
            f"the label has the values {_listed(found)}, none of them a structure to keep, expected "
            f"{_listed(mapping, limit=len(mapping))}; repair or replace the label file"
        )
    strays = sorted(set(found) - CODES.keys() - {0})
    if strays:
        tqdm.write(
            f"note: case {case}: the label has the values {_listed(strays)}, which the challenge does not define and "
            "which become background"
        )
    absent = [name for name in structures if not any(CODES.get(value) == name for value in found)]
    if absent:
        tqdm.write(f"note: case {case}: the label has no {', '.join(absent)}")
    return map_label_values(label, {value: mapping.get(value, 0) for value in found})


def _modality(case: str) -> str:
    """Return the modality of a case, which is its domain, as ``CT`` of ``ct_train_1003``."""
    return case.partition("_")[0].upper()


def _listed(values: Iterable[float], limit: int = 5) -> str:
    """Return the first numbers in brackets, with an ellipsis where more follow."""
    words = [f"{value:g}" for value in sorted(values)]
    return f"[{', '.join(words[:limit])}{', ...' if len(words) > limit else ''}]"


def _codes_note(structures: tuple[str, ...]) -> str:
    """Return the rule by which label values were mapped."""
    kept = ", ".join(
        f"{code} to {structures.index(name) + 1} ({name})" for code, name in CODES.items() if name in structures
    )
    return f"label values mapped: {kept}; any other to background"


def _val_notes(fold: Fold, public_val: list[str]) -> tuple[str, ...]:
    """Return what became of the target's labels outside the test cases."""
    notes = []
    kept_aside = [name for name in fold.val if name not in fold.train]
    if kept_aside:
        notes.append(
            f"nnU-Net's fingerprint, hence its plans, saw images and labels of the {len(kept_aside)} kept-aside cases "
            f"of the target, too: {', '.join(kept_aside)}; they set no intensity of the normalisation"
        )
    if not set(public_val) <= set(fold.val):
        notes.append(
            f"the public list's labelled target cases {', '.join(public_val)} are left out of the dataset; "
            "--target-val makes them val"
        )
    return tuple(notes)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--direction",
        choices=tuple(DATASET_IDS),
        default="mr2ct",
        help="from the labelled to the unlabelled modality (default: %(default)s)",
    )
    parser.add_argument(
        "--target-val",
        action="store_true",
        help="validate on the public list's 3 labelled target cases (default: they are left out)",
    )
    parser.add_argument(
        "--all-structures",
        action="store_true",
        help=f"keep all seven structures {', '.join(ALL_STRUCTURES)} (default: {', '.join(STRUCTURES)})",
    )


CONVERTER = Converter(
    script="Dataset103_MMWHS.py",
    description="Convert MM-WHS (heart, MR and CT, 2017 challenge) for nnU-Net: 16 labelled cases of one modality, "
    "13 unlabelled and 4 test cases of the other.",
    input_tree="""\
  INPUT/**/{ct,mr}_train/{ct,mr}_train_10NN_{image,label}.nii.gz
                                             the challenge's own folders
or
  INPUT/**/{CT,MR}/imagesTr/{ct,mr}_train_10NN_image.nii.gz and {CT,MR}/labelsTr/{ct,mr}_train_10NN_label.nii.gz
                                             or without _image and _label, or with _0000 for _image

The folder that both modalities share is INPUT or at most 3 levels below it. The labels of unlabelled cases are not
opened and may be missing.""",
    dataset_id=None,
    add_arguments=_add_arguments,
    describe=describe,
    default_ids=", ".join(f"{number} for {direction}" for direction, number in DATASET_IDS.items()),
)
