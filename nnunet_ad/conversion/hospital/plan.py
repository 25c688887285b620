"""The cases to write: neutral names for what was found, one case for each volume of a 4-D file."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from nnunet_ad.conversion.cases import Role
from nnunet_ad.conversion.errors import ConversionError
from nnunet_ad.conversion.hospital.images import Channel
from nnunet_ad.conversion.hospital.masks import MaskSource
from nnunet_ad.conversion.hospital.sources import Source
from nnunet_ad.conversion.volume_files import num_frames

ALL_FRAMES = "all"
Frames = tuple[int, ...] | str | None  # numbers, ALL_FRAMES, or None for 3-D only
CaseKey = tuple[str, int | None]  # a case's name in the input, and the number of its volume in a 4-D file


@dataclass(frozen=True)
class PlannedCase:
    """One case with its neutral name.

    Attributes:
        name: As ``Liver_0001``, with nothing of the source in it.
        source: What was found.
        channels: The images, none if the source cannot be used.
        mask: The mask, if there is one.
        position: Where it stands, as ``labeled 3 of 8``, so that the user can find it.
    """

    name: str
    source: Source
    channels: tuple[Channel, ...]
    mask: MaskSource | None
    position: str

    @property
    def role(self) -> Role:
        """What the case is used for."""
        return self.source.role

    @property
    def frame(self) -> int | None:
        """Number of the volume in a 4-D file, or None."""
        return self.channels[0].frame if self.channels else None


def plan_cases(
    dataset_name: str, sources: Sequence[Source], frames: Frames, earlier: Mapping[CaseKey, str] | None = None
) -> list[PlannedCase]:
    """Name the cases in the order of the sources.

    Args:
        dataset_name: What the names begin with.
        sources: The cases as found, labelled ones first.
        frames: Which volumes of 4-D files become cases.
        earlier: Names that cases of the same dataset keep. New cases get the numbers behind the highest of these.
    """
    unnamed = []
    counts, counter = Counter(source.role for source in sources), Counter[Role]()
    for source in sources:
        counter[source.role] += 1
        position = f"{source.role} {counter[source.role]} of {counts[source.role]}"
        try:
            chosen = _frames_of(source, frames) if source.error is None else (None,)
        except ConversionError as error:
            source, chosen = replace(source, error=error), (None,)
        for frame in chosen:
            channels = () if source.error else tuple(Channel(each, frame) for each in source.channels)
            has_mask = source.masks and not source.error
            mask = MaskSource(source.masks, source.name, frame, len(chosen)) if has_mask else None
            words = position if frame is None else f"{position}, frame {frame}"
            unnamed.append(PlannedCase("", source, channels, mask, words))
    names = _names(dataset_name, [(case.source.name, case.frame) for case in unnamed], earlier or {})
    return [replace(case, name=name) for case, name in zip(unnamed, names, strict=True)]


def _names(dataset_name: str, keys: Sequence[CaseKey], earlier: Mapping[CaseKey, str]) -> list[str]:
    """Return a name for each case, an earlier one if it has one that is like ours and nobody else's."""
    pattern = re.compile(rf"{re.escape(dataset_name)}_([0-9]+)")
    numbers = {name: int(match.group(1)) for name in earlier.values() if (match := pattern.fullmatch(name))}
    free = set(numbers)
    kept = []
    for key in keys:
        name = earlier.get(key)
        kept.append(name if name in free else None)
        free.discard(name or "")
    last = max(numbers.values(), default=0)
    width = max(4, len(str(last + kept.count(None))))
    new = (f"{dataset_name}_{number:0{width}d}" for number in count(last + 1))
    return [name or next(new) for name in kept]


def _frames_of(source: Source, frames: Frames) -> tuple[int | None, ...]:
    """Return the volumes of a source that become cases; (None,) for a 3-D one or where none was chosen."""
    files = [channel for channel in source.channels if isinstance(channel, Path)]
    if frames is None or not files:
        return (None,)
    numbers = [num_frames(file) for file in files]
    if frames == "all" and len(set(numbers)) > 1:
        raise ConversionError(
            f"the channels' files have {', '.join(map(str, numbers))} volumes, expected as many in each; write those "
            "that belong together to files of their own"
        )
    if max(numbers) == 1:
        return (None,)
    if isinstance(frames, str):
        return tuple(range(numbers[0]))
    return frames
