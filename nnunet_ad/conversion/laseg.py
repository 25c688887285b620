"""LASeg: the left atrium in late-gadolinium MR, 2018 Atrial Segmentation Challenge.

Semi-supervised protocol of the public lists: 80 training cases, of which the first 4 (5 %) or 8 (10 %) are labelled,
and 20 test cases. A case keeps its public id as its name, so that the public lists can be read off the folders.

Two layouts of the same 100 cases are read:

``<id>/mri_norm2.h5``
    What semi-supervised papers use and publish numbers on. Whoever made the files cropped each volume in-plane to the
    ground truth plus a random margin, **test cases included**, and normalised each volume to zero mean and unit
    variance. So the location of the atrium is partly given away, and results are comparable only within this layout.
    Arrays are (x, y, z) with z the 88 slices, the order in which the challenge's files store them; the NIfTI keeps it.
    The files state no geometry: 0.625 mm isotropic, origin 0 and identity direction are written.

``<id>/lgemri.nrrd`` and ``<id>/laendo.nrrd``
    The challenge's own files, uncropped. Their geometry is kept; a file without one gets 0.625 mm isotropic.
    In the label 255 is the atrium.
"""

import argparse
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import SimpleITK as sitk

from nnunet_ad.conversion.case_files import subfolders
from nnunet_ad.conversion.cases import Case, Role, Volume
from nnunet_ad.conversion.command_line import Converter
from nnunet_ad.conversion.dataset import Dataset, Provenance
from nnunet_ad.conversion.errors import ConversionError, naming
from nnunet_ad.conversion.folds import load_public_split, make_fold
from nnunet_ad.conversion.volumes import has_default_geometry, map_label_values, read_volume

H5_FILE, NRRD_IMAGE, NRRD_LABEL = "mri_norm2.h5", "lgemri.nrrd", "laendo.nrrd"
SEARCH_DEPTH = 3  # folder levels below the input in which a case's folder is looked for
SPACING = (0.625, 0.625, 0.625)  # mm, of all volumes according to the challenge
DOMAIN = "LGE-MR"

PROVENANCE = Provenance(
    name="2018 Atrial Segmentation Challenge",
    description="Left atrium in late-gadolinium-enhanced MR; public semi-supervised split, 80 training, 20 test cases.",
    url="https://www.cardiacatlas.org/atriaseg2018-challenge/",
    citation="Z. Xiong et al., A global benchmark of algorithms for segmenting the left atrium from late "
    "gadolinium-enhanced cardiac magnetic resonance imaging, Medical Image Analysis 67, 2021. "
    "Split and h5 layout: L. Yu et al., Uncertainty-aware self-ensembling model for semi-supervised 3D left atrium "
    "segmentation, MICCAI 2019.",
)
H5_NOTE = (
    "h5 layout: its makers cropped every volume in-plane around the ground truth, test cases included, and normalised "
    "it; 0.625 mm isotropic and the identity direction were assumed, since the files state no geometry"
)
NRRD_NOTE = "nrrd layout: uncropped; geometry as in the files, 0.625 mm isotropic for files without one"


def describe(arguments: argparse.Namespace) -> Dataset:
    """Find the cases under ``arguments.input`` and return the dataset to write.

    Args:
        arguments: Parsed command line with ``input``, ``dataset_id``, ``labeled`` and ``val``.

    Raises:
        ConversionError: A case of the public lists is missing or found twice, or the numbers of cases do not fit.
    """
    split = load_public_split("LASeg")
    fold = make_fold(split["train"], _num_labeled(arguments.labeled, split), arguments.val)
    roles = dict.fromkeys(split["test"], Role.TEST) | dict.fromkeys(fold.unlabeled, Role.UNLABELED)
    roles |= dict.fromkeys((*fold.train, *fold.val), Role.LABELED)
    files = find_images(arguments.input, roles)
    return Dataset(
        dataset_id=arguments.dataset_id,
        name="LASeg",
        channel_names=(DOMAIN,),
        labels={"background": 0, "left_atrium": 1},
        cases=tuple(_case(name, roles[name], files[name], arguments.input) for name in sorted(roles)),
        folds=(fold,),
        provenance=PROVENANCE,
        setting="semi-supervised",
        notes=_notes(files.values()),
    )


def find_images(root: Path, names: Collection[str]) -> dict[str, Path]:
    """Find the image file of each case in a folder called as the case, at most three levels below ``root``.

    Args:
        root: The input folder.
        names: The cases to find; other folders are ignored.

    Returns:
        The image file of each case.

    Raises:
        ConversionError: A case is missing or found twice, or the cases are of different layouts.
    """
    found: dict[str, list[Path]] = {name: [] for name in names}
    for folder in subfolders(root, SEARCH_DEPTH):
        if folder.name in found:
            found[folder.name] += [folder / file for file in (H5_FILE, NRRD_IMAGE) if (folder / file).is_file()]

    missing = sorted(name for name in names if not found[name])
    if missing:
        raise ConversionError(
            f"{len(missing)} of the {len(names)} cases of the public lists are missing, the first of them "
            f"{', '.join(missing[:3])}; expected <case>/{H5_FILE} or <case>/{NRRD_IMAGE} at most {SEARCH_DEPTH} levels "
            f"below {root}; give the folder of the complete dataset with -i"
        )
    for name in sorted(names):
        if len(found[name]) > 1:
            files = " and ".join(str(file.relative_to(root)) for file in found[name])
            raise ConversionError(f"case {name} was found more than once, as {files}; leave one of them in the input")
    layouts = Counter(files[0].name for files in found.values())
    if len(layouts) > 1:
        raise ConversionError(
            f"{layouts[H5_FILE]} cases have a {H5_FILE} and {layouts[NRRD_IMAGE]} a {NRRD_IMAGE}, whose images are not "
            "alike; give a folder in which all cases are of one layout"
        )
    return {name: files[0] for name, files in found.items()}


def read_h5(path: Path, key: str) -> sitk.Image:
    """Read one array of a case's h5 file.

    Args:
        path: The file.
        key: ``image`` or ``label``. Nothing else in the file is read.

    Returns:
        A float32 volume whose axes x, y, z are the array's axes 0, 1, 2, at 0.625 mm with identity direction.

    Raises:
        ConversionError: The file is damaged, has no such array, or the array is not 3-D and numeric.
    """
    with _open_h5(path) as file:
        if not isinstance(file.get(key), h5py.Dataset):
            raise ConversionError(
                f"the file has the keys {sorted(file)}, expected also {key!r}; get the file again from its source"
            )
        values = np.asarray(file[key][()])
    if values.ndim != 3 or not values.size or values.dtype.kind not in "biuf":
        raise ConversionError(
            f"the array {key!r} has the shape {values.shape} and the type {values.dtype}, expected a 3-D array of "
            "numbers; get the file again from its source"
        )
    image = sitk.GetImageFromArray(np.ascontiguousarray(values.T, dtype=np.float32))
    image.SetSpacing(SPACING)
    return image


def read_nrrd(path: Path) -> sitk.Image:
    """Read one of the challenge's files with its own geometry, or at 0.625 mm isotropic where it states none.

    Raises:
        ConversionError: The file is missing or damaged, or is not one 3-D volume.
    """
    image = read_volume(path)
    if has_default_geometry(image):
        image.SetSpacing(SPACING)
    return image


def read_nrrd_label(path: Path) -> sitk.Image:
    """Read the challenge's label, in which 255 is the atrium, as 0 and 1.

    Raises:
        ConversionError: As :func:`read_nrrd`, or there is a value other than 0 and 255.
    """
    return map_label_values(read_nrrd(path), {0: 0, 255: 1})


def _case(name: str, role: Role, file: Path, root: Path) -> Case:
    """Describe a case by its image file; only labelled and test cases get to know their label."""
    is_h5 = file.name == H5_FILE
    label_path = file if is_h5 else file.with_name(NRRD_LABEL)
    image = Volume(str(file.relative_to(root)), partial(read_h5, file, "image") if is_h5 else partial(read_nrrd, file))
    label = Volume(
        str(label_path.relative_to(root)),
        partial(read_h5, label_path, "label") if is_h5 else partial(read_nrrd_label, label_path),
    )
    with_label = role is Role.LABELED or (role is Role.TEST and _has_label(label_path, name, root))
    return Case(name, role, DOMAIN, (image,), label if with_label else None)


def _has_label(label_path: Path, name: str, root: Path) -> bool:
    """Return whether a test case comes with a label, without reading it."""
    if label_path.name != H5_FILE:
        return label_path.is_file()
    with naming(name, str(label_path.relative_to(root))), _open_h5(label_path) as file:
        return "label" in file


@contextmanager
def _open_h5(path: Path) -> Iterator[h5py.File]:
    """Open an h5 file for reading; a damaged one, also where it is read later, raises ConversionError."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError):
        raise ConversionError(
            "the file cannot be read as HDF5, it may be truncated; get it again from its source"
        ) from None


def _notes(files: Collection[Path]) -> tuple[str, ...]:
    """Return what the user should know about the layout, odd spacings of the challenge's files included."""
    if any(file.name == H5_FILE for file in files):
        return (H5_NOTE,)
    odd = [
        spacing for spacing in map(_header_spacing, files) if spacing and not np.allclose(spacing, SPACING, atol=0.01)
    ]
    if not odd:
        return (NRRD_NOTE,)
    return (
        NRRD_NOTE,
        f"{len(odd)} of {len(files)} files state a spacing other than 0.625 mm, as {odd[0]} mm, which was kept",
    )


def _header_spacing(file: Path) -> tuple[float, ...] | None:
    """Return the spacing that a file's header states, or None where it states no 3-D geometry or is damaged."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return None  # reading the volume says what is wrong
    if reader.GetDimension() != 3 or has_default_geometry(reader):
        return None
    return tuple(round(spacing, 4) for spacing in reader.GetSpacing())


def _num_labeled(labeled: str, split: dict) -> int:
    """Return the number of labelled cases that ``--labeled`` asks for, a number or the name of a public list."""
    return int(labeled) if labeled.isdecimal() else len(split["labeled"][labeled])


def _labeled(text: str) -> str:
    if not text.isdecimal() and text not in ("5pct", "10pct"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of cases nor 5pct or 10pct")
    return text


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--labeled",
        type=_labeled,
        default="4",
        metavar="4|8|N|5pct|10pct",
        help="number of labelled cases, the first of the public list; 5pct is 4, 10pct is 8 (default: %(default)s)",
    )


CONVERTER = Converter(
    script="Dataset101_LASeg.py",
    description="Convert LASeg (left atrium, late-gadolinium MR, 2018 Atrial Segmentation Challenge) for nnU-Net.",
    input_tree=f"""\
  INPUT/**/<case>/{H5_FILE}                  keys image and label: the layout of semi-supervised papers,
                                                as in '2018LA_Seg_Training Set/<case>/{H5_FILE}'
or
  INPUT/**/<case>/{NRRD_IMAGE} and {NRRD_LABEL}   the challenge's own files, 255 = atrium,
                                                as in 'Training Set/<case>/{NRRD_IMAGE}'

The folders <case> are those of the public lists (80 training, 20 test), at most {SEARCH_DEPTH} levels below INPUT.
Test cases need no label.""",
    dataset_id=101,
    add_arguments=_add_arguments,
    describe=describe,
)
