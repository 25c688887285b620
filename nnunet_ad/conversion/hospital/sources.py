"""Finds the cases in a folder, and which of their files are images and which masks. Opens no voxel.

Three layouts are known, and may not be mixed with the first:

``images/`` and ``masks/``   an entry of ``images/`` is a case; the entry of ``masks/`` with the same name is its mask
``<case>/…``                 a folder is a case, with whatever is below it
``<case>.nii.gz``            a file is a case, and ``<case>_mask.nii.gz`` its mask

Files beside each other are of one case if their names are alike without the word, or what is fixed in the pattern, that
tells channels and masks apart.

Outside ``masks/``, a file is a mask if ``--mask-pattern`` matches it; without that option, if its name is or ends with
a word for mask (``mask``, ``seg`` …) or is a structure's in ``labels.json``, or if it is a DICOM-SEG or RTSTRUCT.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_ad.conversion.cases import Role
from nnunet_ad.conversion.errors import ConversionError, SourceError
from nnunet_ad.conversion.hospital.labels import Labels
from nnunet_ad.conversion.hospital.names import (
    MASK_WORDS,
    composed,
    has_word,
    is_utf8,
    natural_key,
    split_last_word,
    split_mask_name,
    without_fixed_parts,
)
from nnunet_ad.conversion.volume_files import image_suffix, stem
from nnunet_ad.parallel import Workers

if TYPE_CHECKING:
    from nnunet_ad.conversion.dicom.series import Series

IMAGES, MASKS = "images", "masks"
DICOM_SUFFIXES = (".dcm", ".ima", ".dicom")
DICOM_MAGIC, DICOM_MAGIC_OFFSET = b"DICM", 128
# Files that go with images and are none.
COMPANIONS = (".json", ".csv", ".tsv", ".txt", ".md", ".xml", ".pdf", ".html", ".bval", ".bvec", ".log")
SYSTEM_FILES = ("thumbs.db", "desktop.ini", "dicomdir")


@dataclass(frozen=True)
class Rules:
    """How files are told apart.

    Attributes:
        channels: Name of each channel.
        image_patterns: For each channel the pattern of its file name, or None. With one channel, a file that is a case
            by itself need not match.
        series_patterns: For each channel the regular expression of its DICOM series' description, or None.
        mask_pattern: Pattern of the names of masks, or None for the rule of this module.
        labels: The structures, whose names a mask may have.
    """

    channels: tuple[str, ...]
    image_patterns: tuple[str | None, ...]
    series_patterns: tuple[str | None, ...]
    mask_pattern: str | None
    labels: Labels


@dataclass(frozen=True)
class Source:
    """One case as it was found.

    Attributes:
        name: Its name in the folder, without a file's ending.
        role: What its folder is for.
        channels: A file or a DICOM series for each channel; empty if that could not be decided.
        masks: Its mask files; empty for an unlabelled case.
        paths: Where it was found.
        error: Why it cannot be used, or None.
    """

    name: str
    role: Role
    channels: "tuple[Path | Series, ...]"
    masks: tuple[Path, ...]
    paths: tuple[Path, ...]
    error: ConversionError | None = None


@dataclass
class _Pile:
    """The files of one case, sorted by what they are."""

    images: list[Path] = field(default_factory=list)
    masks: list[Path] = field(default_factory=list)
    dicom: list[Path] = field(default_factory=list)
    dicom_masks: list[Path] = field(default_factory=list)
    unknown: list[Path] = field(default_factory=list)
    top: list[Path] = field(default_factory=list)
    errors: list[ConversionError] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        return not (self.images or self.masks or self.dicom or self.dicom_masks or self.unknown)

    @contextmanager
    def keeping_errors(self) -> Iterator[None]:
        """Keep what is wrong with one case from hiding the others."""
        try:
            yield
        except SourceError as error:
            self.errors.append(error)
        except OSError as error:
            self.errors.append(
                SourceError(
                    f"a file or folder cannot be read ({error.strerror}); look at its permissions",
                    Path(error.filename or "").name,
                )
            )


def find_sources(folder: Path, role: Role, rules: Rules, workers: Workers) -> list[Source]:
    """Find the cases in the folder of a role.

    Args:
        folder: The folder.
        role: The role. Masks of unlabelled cases are not even listed.
        rules: How files are told apart.
        workers: Who reads the headers of DICOM files.

    Returns:
        The cases in natural order of their names. One that is incomplete or ambiguous carries an error.

    Raises:
        ConversionError: The folder is missing or empty, cannot be listed, or is of no known layout.
    """
    try:
        entries = _entries(folder)
        subfolders = {entry.name.casefold(): entry for entry in entries if entry.is_dir()}
        if IMAGES in subfolders:
            piles = _paired(subfolders[IMAGES], subfolders.get(MASKS), rules)
            for entry in entries:
                if entry not in (subfolders[IMAGES], subfolders.get(MASKS)) and not _is_companion(entry):
                    pile = piles.setdefault(f"{entry.name} beside {IMAGES}/ and {MASKS}/", _Pile())
                    pile.unknown.append(entry)
                    pile.top.append(entry)
        elif MASKS in subfolders:
            raise ConversionError(f"--{role}: there is a folder {MASKS}/ but no {IMAGES}/ beside it; add it")
        else:
            piles = _one_by_one(entries, rules)
        if role is Role.UNLABELED:
            piles = _without_likely_images_as_masks(piles, rules)
    except OSError as error:
        raise ConversionError(f"--{role}: the folder cannot be listed ({error.strerror}); give another one") from None
    if not piles:
        raise ConversionError(f"--{role}: the folder holds no case; see --help for the layouts that are read")
    names = sorted(piles, key=lambda name: (natural_key(name), name))
    resolve = partial(_resolve, role=role, rules=rules)
    named = [(name, piles[name]) for name in names]
    return workers.map(resolve, named, f"finding {role}", delay=1)  # only DICOM takes time


def _entries(folder: Path) -> list[Path]:
    """Return what is in a folder, sorted, hidden files apart."""
    return sorted(path for path in folder.iterdir() if not _is_hidden(path))


def _check_entry(entry: Path) -> None:
    """Check that an entry of a folder can be opened.

    Raises:
        SourceError: It is neither a file nor a folder, or has a name that libraries cannot open.
    """
    if not is_utf8(entry):
        raise SourceError("the name of a file or folder is no valid UTF-8; rename it", ascii(entry.name))
    if not (entry.is_file() or entry.is_dir()):
        raise SourceError("an entry is a broken link or no file at all, as a pipe; repair or remove it", entry.name)


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".") or path.name.casefold() in SYSTEM_FILES


def _is_companion(path: Path) -> bool:
    return path.is_file() and path.suffix.casefold() in COMPANIONS


def _files_below(entry: Path) -> Iterable[Path]:
    _check_entry(entry)
    if entry.is_file():
        yield entry
        return
    for child in _entries(entry):
        yield from _files_below(child)


def _one_by_one(entries: Sequence[Path], rules: Rules) -> dict[str, _Pile]:
    """Sort the entries of a folder by cases: each folder is one, files by their stem."""
    piles: dict[str, _Pile] = {}
    entries = [entry for entry in entries if not _is_companion(entry)]
    masks = {entry for entry in entries if not entry.is_dir() and _is_mask(entry, rules)}
    for entry in sorted(entries, key=masks.__contains__):  # masks last, when all cases are known
        name = _name_of_mask(entry, piles, rules) if entry in masks else _name_of_image(entry, rules)
        pile = piles.setdefault(name, _Pile())
        pile.top.append(entry)
        with pile.keeping_errors():
            _check_entry(entry)
            if entry.is_dir():
                for file in _files_below(entry):
                    in_masks = any(part.casefold() == MASKS for part in file.relative_to(entry).parts[:-1])
                    _sort_in(file, pile, in_masks or _is_mask(file, rules), in_masks)
            elif _is_dicom(entry):
                pile.unknown.append(entry)  # slices of whom?
            else:
                _sort_in(entry, pile, entry in masks, False)
    return piles


def _without_likely_images_as_masks(piles: dict[str, _Pile], rules: Rules) -> dict[str, _Pile]:
    """Return piles where files that only end in a structure's name are masks only beside an image.

    Where no mask is expected, ``Patient_a.nii.gz`` is rather the image of a patient than the mask of a structure a.
    """
    sorted_anew: dict[str, _Pile] = {}
    for name, pile in piles.items():
        likely = [] if rules.mask_pattern else [file for file in pile.masks if not _has_mask_word(file, rules)]
        if pile.images or pile.dicom or not likely:
            sorted_anew[name] = pile
        elif any(entry.is_dir() for entry in pile.top):
            sorted_anew[name] = replace(pile, images=likely, masks=[file for file in pile.masks if file not in likely])
        else:
            for file in likely:
                sorted_anew[_name_of_image(file, rules)] = replace(pile, images=[file], masks=[], top=[file])
    return sorted_anew


def _has_mask_word(file: Path, rules: Rules) -> bool:
    name, structure = split_mask_name(composed(stem(file)), rules.labels)
    return structure == "" or split_last_word(name, MASK_WORDS)[1] is not None


def _paired(images: Path, masks: Path | None, rules: Rules) -> dict[str, _Pile]:
    """Sort the entries of ``images/`` by cases, and those of ``masks/`` to them."""
    piles: dict[str, _Pile] = {}
    for entry in _entries(images):
        if not _is_companion(entry):
            pile = piles.setdefault(_name_of_image(entry, rules), _Pile())
            pile.top.append(entry)
            with pile.keeping_errors():
                for file in _files_below(entry):
                    _sort_in(file, pile, False, False)
    for entry in _entries(masks) if masks else []:
        if _is_companion(entry):
            continue
        name = _printable(entry.name if entry.is_dir() else stem(entry))
        if name not in piles:
            name = split_mask_name(name, rules.labels)[0] or name
        pile = piles.setdefault(name, _Pile())
        pile.top.append(entry)
        with pile.keeping_errors():
            for file in _files_below(entry):
                _sort_in(file, pile, True, True)
    return piles


def _name_of_image(entry: Path, rules: Rules) -> str:
    """Return the case of a folder, or of an image that is no folder."""
    if entry.is_dir():
        return _printable(entry.name)
    name = _printable(stem(entry))
    if len(rules.channels) == 1:
        return name
    for pattern in filter(None, rules.image_patterns):
        if fnmatchcase(composed(entry.name), composed(pattern)):
            return without_fixed_parts(composed(entry.name), composed(pattern)) or name
    return split_last_word(name, rules.channels)[0] or name


def _name_of_mask(file: Path, cases: Collection[str], rules: Rules) -> str:
    """Return the case of a mask that is no folder: with a pattern, that of these which is its name without the rest."""
    name = _printable(stem(file))
    case = split_mask_name(name, rules.labels)[0]
    if rules.mask_pattern is None:
        return case or name
    rest = without_fixed_parts(composed(file.name), composed(rules.mask_pattern))
    possible = (name, case, rest, split_mask_name(rest, rules.labels)[0])
    return next((each for each in possible if each in cases), possible[-1] or name)


def _printable(name: str) -> str:
    """Return a name that can be written anywhere."""
    return composed(name) if is_utf8(Path(name)) else ascii(name)


def _is_mask(file: Path, rules: Rules) -> bool:
    if image_suffix(file) is None:
        return False
    if rules.mask_pattern is not None:
        return fnmatchcase(composed(file.name), composed(rules.mask_pattern))
    if rules.labels.knows((file.name, stem(file))):
        return True
    return split_mask_name(composed(stem(file)), rules.labels)[1] is not None


def _is_dicom(file: Path) -> bool:
    if image_suffix(file) is not None:
        return False
    if file.suffix.casefold() in DICOM_SUFFIXES:
        return True
    with file.open("rb") as opened:
        opened.seek(DICOM_MAGIC_OFFSET)
        return opened.read(len(DICOM_MAGIC)) == DICOM_MAGIC


def _sort_in(file: Path, pile: _Pile, is_mask: bool, in_masks: bool) -> None:
    if image_suffix(file) is not None:
        (pile.masks if is_mask else pile.images).append(file)
    elif file.suffix.casefold() in COMPANIONS:
        return
    elif _is_dicom(file):
        (pile.dicom_masks if in_masks else pile.dicom).append(file)
    else:
        pile.unknown.append(file)


def _resolve(named: tuple[str, _Pile], role: Role, rules: Rules) -> Source:
    """Decide which file or series is which channel, and which are masks."""
    name, pile = named
    channels: tuple[Path | Series, ...] = ()
    masks: tuple[Path, ...] = ()
    error: ConversionError | None = None
    try:
        if pile.errors:
            raise pile.errors[0]
        if pile.is_empty:
            raise SourceError("the folder holds no image; add the image or remove the folder")
        if pile.unknown:
            raise SourceError(
                f"{len(pile.unknown)} file(s) are no NIfTI, NRRD or MHA, nor DICOM in a folder of its own; convert "
                "or remove them",
                _names(pile.unknown),
            )
        masks = tuple(pile.masks + pile.dicom_masks)
        channels, dicom_masks = _choose_series(pile, role, rules) if pile.dicom else ((), ())
        masks += dicom_masks
        if not channels:
            channels = _choose_files(pile, rules)
        if role is Role.LABELED and not masks:
            raise SourceError(
                f"found {len(pile.images) or 'no'} image file(s) and no mask, expected a mask; add it, or say by "
                "--mask-pattern which file it is, or move the case to the unlabelled ones",
                _names(pile.images),
            )
    except ConversionError as problem:
        error = problem
    if role is Role.UNLABELED:
        masks = ()
    return Source(name, role, channels, masks, tuple(pile.top), error)


def _choose_files(pile: _Pile, rules: Rules) -> tuple[Path, ...]:
    """Return the image file of each channel."""
    chosen = []
    for channel, pattern in zip(rules.channels, rules.image_patterns, strict=True):
        if pattern is not None:
            pattern = composed(pattern)
            need_not = pile.top if len(rules.channels) == 1 else ()
            files = [file for file in pile.images if file in need_not or fnmatchcase(composed(file.name), pattern)]
        elif len(rules.channels) > 1:
            files = [file for file in pile.images if has_word(composed(stem(file)), composed(channel))]
        else:
            files = pile.images
        if len(files) != 1:
            which = f" for the channel {channel}" if len(rules.channels) > 1 else ""
            how = "--channels NAME=PATTERN" if len(rules.channels) > 1 else "--image-pattern and --mask-pattern"
            raise SourceError(
                f"found {len(files) or 'no'} image file(s){which} among {len(pile.images)} and {len(pile.masks)} "
                f"mask file(s), expected one; add or remove files, or say by {how} which is which",
                f"images: {_names(pile.images)}; masks: {_names(pile.masks)}",
            )
        chosen.append(files[0])
    if not any(rules.image_patterns) and len(pile.images) > len(chosen):
        others = [file for file in pile.images if file not in chosen]
        raise SourceError(
            f"{len(others)} image file(s) belong to no channel; remove them, or say by --channels NAME=PATTERN which "
            "files are the channels",
            _names(others),
        )
    if len(set(chosen)) < len(chosen):
        raise SourceError(
            "one file was found for two channels; say by --channels NAME=PATTERN which file is which", _names(chosen)
        )
    return tuple(chosen)


def _choose_series(pile: _Pile, role: Role, rules: Rules) -> "tuple[tuple[Series, ...], tuple[Path, ...]]":
    """Return the DICOM series of each channel, none if files are the images, and the DICOM files that are masks."""
    from nnunet_ad.conversion.dicom import require_dicom

    require_dicom()
    from nnunet_ad.conversion.dicom.references import referenced_series
    from nnunet_ad.conversion.dicom.series import choose_series, find_series

    (folder, *others) = [entry for entry in pile.top if any(file.is_relative_to(entry) for file in pile.dicom)]
    if others or folder.is_file():
        raise SourceError("a DICOM file lies outside a folder of its own case; give each case a folder")
    images, mask_series = find_series(pile.dicom)
    masks = tuple(file for series in mask_series for file in series.files)
    if pile.images and images:
        raise SourceError(
            f"found {len(pile.images)} image file(s) and {len(images)} DICOM series, expected one kind; leave one",
            _names(pile.images),
        )
    if pile.images:
        return (), masks
    if not images:
        raise SourceError(f"none of {len(pile.dicom)} DICOM file(s) is an image that can be read; add the image series")
    if role is not Role.UNLABELED and len(images) > 1 and rules.series_patterns == (None,):
        segmented = {referenced_series(file) for file in (*masks, *pile.dicom_masks)}
        images = [series for series in images if series.uid in segmented] or images
    return tuple(choose_series(images, pattern) for pattern in rules.series_patterns), masks


def _names(files: Iterable[Path]) -> str:
    return ", ".join(file.name for file in files)
