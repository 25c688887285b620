"""Which word of a file name says mask, structure or channel, and which part of it is the case."""

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from nnunet_ad.conversion.hospital.labels import Labels
from nnunet_ad.conversion.volume_files import image_suffix

MASK_WORDS = ("mask", "masks", "seg", "segmentation", "label", "labels", "labelmap")
SEPARATORS = "_-. "
_WILDCARDS = {"*": "(.*)", "?": "(.)"}


def composed(name: str) -> str:
    """Return a name with accents as systems compare them: some write one character for ``é``, others two."""
    return unicodedata.normalize("NFC", name)


def is_utf8(path: Path) -> bool:
    """Return whether a path is valid UTF-8, which the libraries that read volumes want."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def split_last_word(name: str, words: Iterable[str]) -> tuple[str, str | None]:
    """Split one of the words off the end of a name, whatever the case.

    >>> split_last_word("p01_T1", ["t1", "t2"])
    ('p01', 't1')
    >>> split_last_word("start1", ["t1"])
    ('start1', None)
    """
    # A letter may become two whatever the case, so that the ending's length in the name is not the word's.
    starts = {name[start:].casefold(): start for start in reversed(range(len(name)))}
    for word in sorted(words, key=len, reverse=True):
        start = starts.get(word.casefold())
        if start == 0:
            return "", word
        if start is not None and name[start - 1] in SEPARATORS:
            return name[: start - 1], word
    return name, None


def has_word(name: str, word: str) -> bool:
    """Return whether one of a name's words, between separators, is this one, whatever the case."""
    return word.casefold() in re.split(f"[{re.escape(SEPARATORS)}]", name.casefold())


def without_fixed_parts(name: str, pattern: str) -> str:
    """Return what ``*`` and ``?`` of a file name's pattern stand for, without the ending of an image file.

    >>> without_fixed_parts("p01_pre.nii.gz", "*_pre*")
    'p01'
    """
    match = re.fullmatch("".join(map(_as_expression, re.split(r"([*?]|\[.*?\])", pattern))), name)
    if match is None:
        return name
    end_of_stem = len(name) - len(image_suffix(Path(name)) or "")
    spans = [match.span(group) for group in range(1, match.re.groups + 1)]
    return "".join(name[start : min(end, end_of_stem)] for start, end in spans).strip(SEPARATORS)


def _as_expression(part: str) -> str:
    """Return the regular expression of a part of a pattern: a group for ``*`` and ``?``, none for sets and letters."""
    if part in _WILDCARDS:
        return _WILDCARDS[part]
    if part.startswith("[") and part.endswith("]"):
        return f"[^{part[2:]}" if part.startswith("[!") else part
    return re.escape(part)


def split_mask_name(name: str, labels: Labels) -> tuple[str, str | None]:
    """Split a word for mask and a structure's name, in any order, off the end of a file's stem.

    >>> from nnunet_ad.conversion.hospital.labels import Structure
    >>> labels = Labels((Structure("liver", (1,), ("liver",)),), Structure("background", (0,), ()))
    >>> split_mask_name("p01_liver_mask", labels)
    ('p01', 'liver')
    >>> split_mask_name("p01_seg", labels)
    ('p01', '')

    Returns:
        The case and the structure's name, "" where there is only a word for mask, None where there is neither.
    """
    structures = [source for structure in (*labels.structures, labels.background) for source in structure.sources]
    rest, mask_word = split_last_word(name, MASK_WORDS)
    rest, structure = split_last_word(rest, structures)
    if mask_word is None and structure is not None:
        rest, mask_word = split_last_word(rest, MASK_WORDS)
    if structure is None and mask_word is None:
        return name, None
    return rest, structure or ""


def natural_key(name: str) -> tuple[tuple[int, int | str], ...]:
    """Return a sort key by which ``case2`` comes before ``case10``."""
    return tuple((0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", name.casefold()))
