"""The mask files of a case as one label map in the dataset's values, on the grid of the images.

A single file that no structure is named after is a label map, and where structures have values also one that is called
as its case. Otherwise each file is a structure's binary mask, or all are DICOM-SEG or RTSTRUCT objects, whose segments
and contours have names.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from nnunet_ad.conversion.errors import ConversionError, SourceError
from nnunet_ad.conversion.hospital.grid import Grid, on_grid
from nnunet_ad.conversion.hospital.images import check_file
from nnunet_ad.conversion.hospital.labels import Labels
from nnunet_ad.conversion.hospital.names import composed, split_mask_name
from nnunet_ad.conversion.volume_files import image_suffix, num_frames, read_file, stem
from nnunet_ad.conversion.volumes import map_label_values

if TYPE_CHECKING:
    from nnunet_ad.conversion.dicom.series import Series

MAX_ROUNDING = 1e-6  # of a value; factors in headers are of single precision, 6e-8
MAX_VOLUME_CHANGE = 0.1  # of a structure by resampling, above which a case carries a warning


@dataclass(frozen=True)
class MaskOptions:
    """How masks are read.

    Attributes:
        labels: The structures.
        resample: Bring masks on another grid onto that of the image, nearest neighbour.
        later_wins: Where structures overlap, the later one in ``labels.json`` counts; otherwise that is an error.
        accept_other_series: Read DICOM masks that refer to another series than the image or state another patient, with
            a warning.
    """

    labels: Labels
    resample: bool
    later_wins: bool
    accept_other_series: bool


@dataclass(frozen=True)
class Mask:
    """A label map, and what the user should know about it."""

    image: sitk.Image
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class MaskSource:
    """The mask files of one case.

    Attributes:
        files: The files, at least one.
        case: The name of the case in the input, which file names may begin with.
        frame: Number of the volume in a 4-D file, or None.
        num_frames: How many volumes of the image become cases.
    """

    files: tuple[Path, ...]
    case: str
    frame: int | None = None
    num_frames: int = 1

    def check_intact(self) -> None:
        """Check that the files are whole; DICOM objects are checked when they are read.

        Raises:
            ConversionError: One is not.
        """
        for file in self.files:
            if image_suffix(file) is not None:
                with _counted(file, self.files):
                    check_file(file)

    def read(self, grid: Grid, options: MaskOptions, series: "Sequence[Series]" = ()) -> Mask:
        """Read the label map.

        Args:
            grid: The grid of the images.
            options: How masks are read.
            series: The DICOM series of the images; none if they are files.

        Returns:
            A uint8 volume on ``grid``.

        Raises:
            ConversionError: A file cannot be read or is on another grid, a value or name is not in ``labels.json`` or a
                name could be one of several structures, a DICOM mask refers to another series or is another patient's,
                structures overlap, or nothing is marked.
        """
        if self._is_label_map(options.labels):
            return self._read_label_map(grid, options)
        numbers = [self._number_of(file, options.labels) for file in self.files]
        composed = _Composition(grid, options)
        warnings: list[str] = []
        for file, number in zip(self.files, numbers, strict=True):
            with _counted(file, self.files):
                if series and image_suffix(file) is None:
                    warnings += _check_series(file, series, options.accept_other_series)
                for structure in self._structures(file, number, grid, options, series):
                    warnings += composed.add(structure, file)
        return Mask(composed.image(), tuple(dict.fromkeys(warnings)))

    def _is_label_map(self, labels: Labels) -> bool:
        """Return whether the mask is one file that is no structure's.

        A case may itself have a name that a structure's pattern matches, so a file called as the case says nothing.

        Raises:
            ConversionError: Its name could be that of one of several structures.
        """
        if len(self.files) != 1 or image_suffix(self.files[0]) is None:
            return False
        name = composed(stem(self.files[0]))
        if labels.has_values and (name == self.case or split_mask_name(name, labels) == (self.case, "")):
            return True
        return self._number_of(self.files[0], labels) is None

    def _number_of(self, file: Path, labels: Labels) -> int | None:
        """Return the structure that a file is named after.

        Raises:
            ConversionError: That could be one of several.
        """
        if image_suffix(file) is None:
            return None
        name = composed(stem(file))
        names = [file.name, name, split_mask_name(name, labels)[1] or ""]
        if name.startswith(self.case):
            names.append(name[len(self.case) :].lstrip("_-. "))
        with _counted(file, self.files):
            return labels.number_of(each for each in names if each)

    def _read_label_map(self, grid: Grid, options: MaskOptions) -> Mask:
        if not options.labels.has_values:
            raise ConversionError(
                "the mask is a label map, but labels.json gives no structure a value; add them, as in "
                '{"liver": {"value": 1}}'
            )
        image = self._read_file(self.files[0])
        _check_other_value(image, options.labels)
        image, warnings = _bring_to(image, grid, options.resample)
        return Mask(map_label_values(image, options.labels.values), warnings)

    def _structures(
        self, file: Path, number: int | None, grid: Grid, options: MaskOptions, series: "Sequence[Series]"
    ) -> Iterator["_MarkedStructure"]:
        """Yield the structures that a file marks."""
        if image_suffix(file) is not None:
            if number is None and not options.labels.ignores_others:
                raise SourceError(
                    f"one of {len(self.files)} mask files is named after no structure of labels.json; name the file, "
                    "or add its name to the sources of a structure or of the background",
                    file.name,
                )
            if number:
                image = self._read_file(file)
                _check_binary(image)
                image, warnings = _bring_to(image, grid, options.resample)
                yield _MarkedStructure(number, sitk.GetArrayFromImage(image) != 0, warnings)
            return
        yield from _read_dicom(file, grid, options, series)

    def _read_file(self, file: Path) -> sitk.Image:
        return _in_whole_numbers(read_file(file, self._frame_in(file)))

    def _frame_in(self, file: Path) -> int | None:
        """Return which volume of a file is the mask; the only one where it was drawn on one volume of the image."""
        found = num_frames(file)
        if self.frame is None and found > 1:
            raise ConversionError(
                f"the mask has {found} volumes, but the image is one, expected one label map, or one file a structure; "
                "give such files, each with one volume"
            )
        if self.frame is None or found > 1:
            return self.frame
        if self.num_frames > 1:
            raise ConversionError(
                f"the mask is one volume, but {self.num_frames} volumes of the image become cases; choose the volume "
                "that it was drawn on, as by --frames 0, or give a mask with all volumes"
            )
        return None


@dataclass(frozen=True)
class _MarkedStructure:
    """The voxels of one structure, by its number in the dataset, and warnings about how they came about."""

    number: int
    voxels: NDArray[np.bool_]
    warnings: tuple[str, ...]


class _Composition:
    """A label map to which structures are added one by one, in any order."""

    def __init__(self, grid: Grid, options: MaskOptions):
        self._grid, self._options = grid, options
        self._values = np.zeros(grid.size[::-1], dtype=np.uint8)
        self._marked_in: dict[int, Path] = {}

    def add(self, structure: "_MarkedStructure", file: Path) -> list[str]:
        """Mark a structure and return warnings.

        Raises:
            ConversionError: It overlaps another one, and neither may win.
        """
        name = _name(structure.number, self._options.labels)
        others = structure.voxels & (self._values != 0) & (self._values != structure.number)
        num_overlapping = int(np.count_nonzero(others))
        if num_overlapping and not self._options.later_wins:
            other = _name(int(self._values[others][0]), self._options.labels)
            raise ConversionError(
                f"{num_overlapping} voxel(s) are both {name} and {other}, expected one structure a voxel; mend the "
                "masks, or add --overlaps later, so that the later one in labels.json counts there"
            )
        is_marked_twice = (
            self._marked_in.setdefault(structure.number, file) != file
            and (structure.voxels & (self._values == structure.number)).any()
        )
        words = f"several mask files mark the same voxels as {name}, and are united; leave out earlier versions"
        self._values[structure.voxels & (self._values <= structure.number)] = structure.number
        return list(structure.warnings) + ([words] if is_marked_twice else [])

    def image(self) -> sitk.Image:
        """Return the label map.

        Raises:
            ConversionError: No voxel is marked.
        """
        if not self._values.any():
            raise ConversionError("the mask is empty, no voxel is marked; repair or replace the mask")
        return on_grid(sitk.GetImageFromArray(self._values), self._grid)


def _check_series(file: Path, series: "Sequence[Series]", accept: bool) -> tuple[str, ...]:
    """Check that a DICOM mask was drawn on one of the images, or return a warning that it was not.

    Raises:
        ConversionError: It refers to another series or states another patient, and that is not accepted.
    """
    from nnunet_ad.conversion.dicom.references import is_of_another_patient, refers_to

    if any(refers_to(file, each) for each in series):
        return ()
    words = "the mask refers to another DICOM series and frame of reference than the image, as another patient's would"
    if any(is_of_another_patient(file, each) for each in series):
        words = "the mask states another patient (PatientID) than the image, and does not refer to its DICOM series"
    if accept:
        return (f"{words}; check that it is the same patient's",)
    raise ConversionError(
        f"{words}; find the right partner, or, if identifiers were replaced, add --accept-other-series"
    )


def _read_dicom(file: Path, grid: Grid, options: MaskOptions, series: "Sequence[Series]") -> Iterator[_MarkedStructure]:
    """Yield the structures of a DICOM-SEG or RTSTRUCT that have a name in ``labels.json``."""
    from nnunet_ad.conversion.dicom import require_dicom

    require_dicom()
    from nnunet_ad.conversion.dicom.files import modality_of, read_dataset
    from nnunet_ad.conversion.dicom.rtstruct import read_rtstruct, structure_names
    from nnunet_ad.conversion.dicom.segmentation import (
        place_on_grid,
        read_segmentation,
        segment_names,
        skips_empty_slices,
    )

    has_contours = modality_of(read_dataset(file, ("Modality",))) == "RTSTRUCT"
    found = structure_names(file) if has_contours else segment_names(file)
    numbers = {name: options.labels.number_of([name]) for name in found}
    unnamed = [name for name, number in numbers.items() if number is None]
    if unnamed and not options.labels.ignores_others:
        raise SourceError(
            f"{len(unnamed)} of {len(found)} {'contours' if has_contours else 'segments'} have no name in labels.json; "
            "add their names to the sources of a structure or of the background, or '*' to those of the background to "
            "leave all others out",
            ", ".join(repr(name) for name in unnamed),
        )
    wanted = {name: number for name, number in numbers.items() if number}
    template = grid.empty_image()
    volumes = read_rtstruct(file, template, wanted) if has_contours else read_segmentation(file, wanted, template)
    # The grid is that of the first channel.
    skips_empty = cache(lambda: bool(series) and skips_empty_slices(file, series[0].uid))
    for name, volume in volumes:
        placed = volume if has_contours else place_on_grid(volume, template, options.resample, skips_empty)
        warnings = _changed(volume, placed, _name(wanted[name], options.labels))
        yield _MarkedStructure(wanted[name], sitk.GetArrayFromImage(placed) != 0, warnings)


@contextmanager
def _counted(file: Path, files: Sequence[Path]) -> Iterator[None]:
    """Say in front of an error in which of several mask files it is, by number, and in private by name."""
    try:
        yield
    except ConversionError as error:
        if len(files) == 1:
            raise
        public = getattr(error, "public_message", str(error))
        details = file.name if public == str(error) else f"{file.name}: {error}"
        raise SourceError(f"mask file {files.index(file) + 1} of {len(files)}: {public}", details) from None


def _name(number: int, labels: Labels) -> str:
    return labels.structures[number - 1].name


def _in_whole_numbers(image: sitk.Image) -> sitk.Image:
    """Return a mask with its values rounded, which the factor in a header may have left a little beside them.

    Raises:
        ConversionError: They are no whole numbers.
    """
    values = sitk.GetArrayViewFromImage(image)
    if values.dtype.kind != "f":
        return image
    whole = np.rint(values)
    if not np.isfinite(values).all() or not np.isclose(values, whole, rtol=MAX_ROUNDING, atol=1e-12).all():
        raise ConversionError(
            "the mask holds values that are no whole numbers, expected label values; give the mask, not an image or a "
            "probability map, and resample masks with nearest neighbour only"
        )
    rounded = sitk.GetImageFromArray(whole)
    rounded.CopyInformation(image)
    return rounded


def _check_other_value(image: sitk.Image, labels: Labels) -> None:
    """Check that a binary mask of the only structure has its value, as 1 and not 255.

    Raises:
        ConversionError: It has another one.
    """
    others = [int(value) for value in np.unique(sitk.GetArrayViewFromImage(image)).tolist() if value]
    if len(labels.structures) == 1 and len(others) == 1 and others[0] not in labels.values:
        (structure,) = labels.structures
        expected = " or ".join(map(str, structure.values))
        values = ", ".join(map(str, (*structure.values, *others)))
        raise ConversionError(
            f"the mask has the value {others[0]} beside 0, expected {expected} for {structure.name}; if it marks that, "
            f'add the value to labels.json, as in {{"{structure.name}": [{values}]}}'
        )


def _check_binary(image: sitk.Image) -> None:
    found = np.unique(sitk.GetArrayViewFromImage(image))
    if len(found) > 2 or (len(found) == 2 and 0 not in found):
        shown = ", ".join(f"{value:g}" for value in found[:5].tolist())
        raise ConversionError(
            f"the mask of one structure has the values {shown}{', ...' if len(found) > 5 else ''}, expected 0 and one "
            "other; give one file a structure, or one label map with values in labels.json"
        )


def _bring_to(image: sitk.Image, grid: Grid, resample: bool) -> tuple[sitk.Image, tuple[str, ...]]:
    """Return a mask on the grid of the image, and a warning if its structures changed size on the way.

    Raises:
        ConversionError: It is on another grid and must not be resampled.
    """
    found = Grid.of(image)
    if found.matches(grid):
        return on_grid(image, grid), ()
    if not resample:
        raise ConversionError(
            f"the mask lies on another grid than the image: {found.unlike(grid)}; find the right partner, or add "
            "--resample-masks"
        )
    resampled = sitk.Resample(image, grid.empty_image(), sitk.Transform(), sitk.sitkNearestNeighbor, 0)
    return resampled, _changed(image, resampled, "the structures")


def _changed(before: sitk.Image, after: sitk.Image, what: str) -> tuple[str, ...]:
    """Return a warning if the marked volume is another one after resampling."""
    first, second = (
        np.count_nonzero(sitk.GetArrayViewFromImage(image)) * float(np.prod(image.GetSpacing()))
        for image in (before, after)
    )
    if abs(second - first) <= MAX_VOLUME_CHANGE * first:
        return ()
    return (
        f"resampling changed {what} from {first / 1000:.3g} to {second / 1000:.3g} ml; check that mask and image "
        "belong together",
    )
