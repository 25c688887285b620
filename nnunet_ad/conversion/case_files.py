"""Finding the files of a benchmark's cases, whose names and places the public dataset fixes."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import SimpleITK as sitk

from nnunet_ad.conversion.cases import Case, Role, Volume
from nnunet_ad.conversion.errors import ConversionError, naming
from nnunet_ad.conversion.volumes import read_volume

SEARCH_DEPTH = 3  # folder levels below the input in which a dataset's folder is looked for


@dataclass(frozen=True)
class Layout:
    """One way in which a benchmark is stored.

    Attributes:
        words: Where the images are, for error messages.
        image: Returns where the image of a case is, below a folder that all cases share.
        label: The same for its label.
    """

    words: str
    image: Callable[[str], str]
    label: Callable[[str], str]


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case; whether there is a label has not been looked at."""

    image: Path
    label: Path


def find_cases(root: Path, names: Collection[str], layouts: Sequence[Layout]) -> dict[str, CaseFiles]:
    """Find the files of each case in one of a benchmark's layouts.

    Args:
        root: The input folder: the one that all cases share, or one at most three levels above it.
        names: The cases to find; other files are ignored.
        layouts: The layouts to look for.

    Returns:
        The files of each case.

    Raises:
        ConversionError: A case is missing or found twice, or the cases are of different layouts.
    """
    found: dict[str, list[tuple[Layout, CaseFiles]]] = {name: [] for name in names}
    for folder in (root, *subfolders(root, SEARCH_DEPTH)):
        for layout in layouts:
            for name in found:
                files = CaseFiles(folder / layout.image(name), folder / layout.label(name))
                if files.image.is_file():
                    found[name].append((layout, files))

    missing = sorted(name for name in found if not found[name])
    if missing:
        raise ConversionError(
            f"{len(missing)} of the {len(found)} cases of the public lists are missing, the first of them "
            f"{', '.join(missing[:3])}; expected {' or '.join(layout.words for layout in layouts)}, in {root} or at "
            f"most {SEARCH_DEPTH} levels below it; give the folder of the complete dataset with -i, and compress files "
            "again that were unpacked to .nii"
        )
    for name in sorted(found):
        if len(found[name]) > 1:
            images = " and ".join(str(files.image.relative_to(root)) for _, files in found[name])
            raise ConversionError(f"case {name} was found more than once, as {images}; leave one of them in the input")
    counts = Counter(layout.words for [(layout, _)] in found.values())
    if len(counts) > 1:
        (first, num_first), (second, num_second), *_ = counts.most_common()
        raise ConversionError(
            f"{num_first} cases are stored as {first} and {num_second} as {second}, which may be of different origin; "
            "give a folder in which all cases are of one layout"
        )
    return {name: files for name, [(_, files)] in found.items()}


def describe_case(
    name: str,
    role: Role,
    domain: str,
    files: CaseFiles,
    root: Path,
    read_label: Callable[[Path], sitk.Image] = read_volume,
) -> Case:
    """Describe a case with one image, and one label where its role lets it have one.

    Args:
        name: The case.
        role: Its role. An unlabelled case does not get to know its label, and nothing looks whether there is one.
        domain: Its domain.
        files: Its files.
        root: The input folder, which error messages leave out.
        read_label: Reads a label file as the dataset's label values.

    Raises:
        ConversionError: The label of a labelled or test case is missing.
    """
    image, label = (str(file.relative_to(root)) for file in (files.image, files.label))
    channels = (Volume(image, partial(read_volume, files.image)),)
    if role is Role.UNLABELED:
        return Case(name, role, domain, channels)
    with naming(name, label):
        if not files.label.is_file():
            raise ConversionError("there is no such file; add it")
    return Case(name, role, domain, channels, Volume(label, partial(read_label, files.label)))


def subfolders(root: Path, depth: int) -> Iterator[Path]:
    """Yield all folders down to a depth, in the order of their names."""
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        yield folder
        if depth > 1:
            yield from subfolders(folder, depth - 1)
