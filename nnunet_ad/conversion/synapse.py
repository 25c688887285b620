"""Synapse: 13 abdominal organs in CT, the training cases of the 2015 challenge Beyond the Cranial Vault (BTCV).

Class-imbalanced semi-supervised protocol of the public lists at 20 %: 4 labelled, 16 unlabelled, 4 val and 6 test
cases. A case keeps its public id, as ``0009`` of ``img0009.nii.gz``, as its name.

nnU-Net normalises CT by the intensities under the labels of ``imagesTr``, so whoever is there shapes the input of all
cases. By default that is the 4 labelled cases only, and ``val`` is these labelled cases themselves, named so: no other
label is opened before the end. The list's 4 val cases are then left out, and need not be in the input. ``--val-cases``
makes them ``val``; ``--val N`` instead keeps the last N cases of the unlabelled list aside with their labels. nnU-Net's
fingerprint sees such cases, labels included, and the sidecar says so.

Images and labels keep their grids and intensities. The authors' public preprocessing does not do so: resizing, cropping
by the ground truth and images interpolated by nearest neighbour are among its steps over the four benchmarks, and a
crop by the ground truth tells where to look. So published numbers may stem from other inputs than these.
"""

import argparse

from nnunet_ad.conversion.case_files import Layout, describe_case, find_cases
from nnunet_ad.conversion.cases import Role
from nnunet_ad.conversion.command_line import Converter
from nnunet_ad.conversion.dataset import Dataset, Provenance
from nnunet_ad.conversion.folds import Fold, load_public_split, make_public_fold

LABELED_LIST = "20pct"
CHANNEL = DOMAIN = "CT"  # as a channel's name it chooses nnU-Net's CT normalisation
LABELS = {
    "background": 0,
    "spleen": 1,
    "right_kidney": 2,
    "left_kidney": 3,
    "gallbladder": 4,
    "esophagus": 5,
    "liver": 6,
    "stomach": 7,
    "aorta": 8,
    "inferior_vena_cava": 9,
    "portal_and_splenic_veins": 10,
    "pancreas": 11,
    "right_adrenal_gland": 12,
    "left_adrenal_gland": 13,
}
LAYOUTS = tuple(
    Layout(
        f"{images}/imgNNNN.nii.gz",
        image=f"{images}/img{{}}.nii.gz".format,
        label=f"{labels}/label{{}}.nii.gz".format,
    )
    for images, labels in (("img", "label"), ("imagesTr", "labelsTr"))
)

PROVENANCE = Provenance(
    name="Multi-Atlas Labeling Beyond the Cranial Vault, abdomen (BTCV, Synapse)",
    description="13 organs in abdominal CT; public class-imbalanced semi-supervised split at 20 % labelled cases.",
    url="https://www.synapse.org/#!Synapse:syn3193805",
    citation="B. Landman et al., MICCAI Multi-Atlas Labeling Beyond the Cranial Vault - Workshop and Challenge, 2015.",
)
GRID_NOTE = (
    "volumes keep their grids and Hounsfield units, neither resized nor cropped; the authors' public preprocessing "
    "changes images, so compare with published numbers with care"
)


def describe(arguments: argparse.Namespace) -> Dataset:
    """Find the cases under ``arguments.input`` and return the dataset to write.

    Args:
        arguments: Parsed command line with ``input``, ``dataset_id``, ``val`` and ``val_cases``.

    Raises:
        ConversionError: A case of the public lists or its label is missing, a case is found twice, or ``val`` is
            chosen twice.
    """
    split = load_public_split("Synapse")
    public_val = split["val"] if arguments.val_cases else None
    labeled, unlabeled = (split[role][LABELED_LIST] for role in ("labeled", "unlabeled"))
    fold = make_public_fold(labeled, unlabeled, arguments.val, public_val, "--val-cases")
    roles = dict.fromkeys(split["test"], Role.TEST) | dict.fromkeys(fold.unlabeled, Role.UNLABELED)
    roles |= dict.fromkeys((*fold.train, *fold.val), Role.LABELED)
    files = find_cases(arguments.input, roles, LAYOUTS)
    return Dataset(
        dataset_id=arguments.dataset_id,
        name="Synapse",
        channel_names=(CHANNEL,),
        labels=LABELS,
        cases=tuple(describe_case(name, roles[name], DOMAIN, files[name], arguments.input) for name in sorted(roles)),
        folds=(fold,),
        provenance=PROVENANCE,
        setting="class-imbalanced semi-supervised",
        notes=_notes(fold, split["val"]),
    )


def _notes(fold: Fold, public_val: list[str]) -> tuple[str, ...]:
    """Return what the user should know about normalisation, val cases and grids."""
    kept_aside = [name for name in fold.val if name not in fold.train]
    if kept_aside:
        seen = (
            f"nnU-Net's fingerprint, hence its CT normalisation and its plans, saw images and labels of the "
            f"{len(kept_aside)} kept-aside cases, too: {', '.join(kept_aside)}"
        )
    else:
        seen = (
            f"nnU-Net's fingerprint, hence its CT normalisation and its plans, sees the {len(fold.train)} labelled "
            "cases only"
        )
    if set(public_val) <= set(fold.val):
        return (seen, GRID_NOTE)
    left_out = (
        f"the public list's val cases {', '.join(public_val)} are left out of the dataset; --val-cases makes them val"
    )
    return (seen, left_out, GRID_NOTE)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--val-cases",
        action="store_true",
        help="validate on the public list's 4 val cases; nnU-Net's fingerprint, hence its CT normalisation, then sees "
        "them with their labels (default: they are left out)",
    )


CONVERTER = Converter(
    script="Dataset102_Synapse.py",
    description="Convert Synapse (13 abdominal organs, CT, BTCV challenge) for nnU-Net: 4 labelled, 16 unlabelled, "
    "6 test cases.",
    input_tree="""\
  INPUT/**/img/imgNNNN.nii.gz and label/labelNNNN.nii.gz
                                             the challenge's own folders, as in RawData/Training
or
  INPUT/**/imagesTr/imgNNNN.nii.gz and labelsTr/labelNNNN.nii.gz

NNNN are the ids of the public lists, within 0001-0010 and 0021-0040; the shared folder of both is INPUT or at most
3 levels below it. The labels of unlabelled cases are not opened and may be missing.""",
    dataset_id=102,
    add_arguments=_add_arguments,
    describe=describe,
)
