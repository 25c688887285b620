"""Orders cases by the disagreement of the three decoders."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from nnunet_ad.data.dataset import UnlabeledDataset
from nnunet_ad.data.preprocessed import stamp_of
from nnunet_ad.ranking.branches import DECODERS, ThreeDecoders
from nnunet_ad.ranking.contact_sheet import Tile
from nnunet_ad.ranking.disagreement import disagreement_per_class, mean_disagreement, most_contested_slice
from nnunet_ad.ranking.so_far import RankingSoFar


@dataclass(frozen=True)
class CaseDisagreement:
    """What the three decoders make of one case.

    Attributes:
        case: Its identifier.
        per_class: Disagreement on each foreground class, NaN where no decoder predicts it.
        volumes_ml: Predicted volume in ml, (3, classes), decoders in the order of ``DECODERS``; NaN where
            the image is 2-D, since its thickness is not known.
    """

    case: str
    per_class: np.ndarray
    volumes_ml: np.ndarray

    @property
    def disagreement(self) -> float:
        """Mean over the classes that some decoder predicts; NaN where none predicts any."""
        return mean_disagreement(self.per_class)

    @property
    def order(self) -> tuple[float, str]:
        """Sorts the largest disagreement first, equal ones by name, undefined ones last."""
        return (math.inf if math.isnan(self.disagreement) else -self.disagreement), self.case


@dataclass(frozen=True)
class Ranking:
    """Cases in the order in which to annotate them.

    Attributes:
        structures: Name of each foreground class and its label value.
        cases: Largest disagreement first; cases in which no decoder predicts anything come last.
        tiles: Pictures of the first cases, in the same order.
    """

    structures: Mapping[str, int]
    cases: tuple[CaseDisagreement, ...]
    tiles: tuple[Tile, ...]

    @property
    def without_prediction(self) -> list[str]:
        """Cases in which no decoder predicts anything: the ranking can say nothing about them."""
        return [case.case for case in self.cases if math.isnan(case.disagreement)]

    @property
    def has_volumes(self) -> bool:
        """Whether the volume of any case is known, which those of 2-D images are not."""
        return not all(np.isnan(case.volumes_ml).all() for case in self.cases)


def rank_cases(
    dataset: UnlabeledDataset,
    decoders: ThreeDecoders,
    structures: Mapping[str, int],
    num_tiles: int,
    so_far: RankingSoFar,
) -> Ranking:
    """Predict every case with the three decoders and order the cases by their disagreement.

    Args:
        dataset: The cases, preprocessed.
        decoders: Predict the label maps.
        structures: Name and label value of the classes to compare, without background.
        num_tiles: Pictures to keep.
        so_far: Has the cases that need not be predicted again, and gets the others one by one.
    """
    cases: list[CaseDisagreement] = []
    kept: list[tuple[CaseDisagreement, Tile]] = []
    with tqdm(total=len(DECODERS) * len(dataset.identifiers), desc="Ranking", unit="prediction") as progress:
        for identifier in dataset.identifiers:
            progress.set_postfix_str(identifier)
            properties = dataset.load_properties(identifier)
            if (arrays := so_far.load(identifier, stamp_of(properties))) is not None:
                case, tile = _from_arrays(identifier, arrays)
                progress.update(len(DECODERS))
            else:
                image = np.asarray(dataset.load_case(identifier)[0][:])
                case, tile = _look_at(identifier, image, properties, decoders, structures, progress)
                so_far.save(identifier, stamp_of(properties), _as_arrays(case, tile))
            cases.append(case)
            kept = sorted([*kept, (case, tile)], key=lambda pair: pair[0].order)[:num_tiles]
    return Ranking(structures, tuple(sorted(cases, key=lambda case: case.order)), tuple(tile for _, tile in kept))


def _as_arrays(case: CaseDisagreement, tile: Tile) -> dict[str, np.ndarray]:
    of_case = {"per_class": case.per_class, "volumes_ml": case.volumes_ml}
    scalars = {"title": np.array(tile.title), "aspect": np.array(tile.aspect)}
    return of_case | scalars | {"image": tile.image, "label_maps": tile.label_maps}


def _from_arrays(identifier: str, arrays: Mapping[str, np.ndarray]) -> tuple[CaseDisagreement, Tile]:
    tile = Tile(str(arrays["title"]), arrays["image"], arrays["label_maps"], float(arrays["aspect"]))
    return CaseDisagreement(identifier, arrays["per_class"], arrays["volumes_ml"]), tile


def _look_at(
    identifier: str,
    image: np.ndarray,
    properties: dict,
    decoders: ThreeDecoders,
    structures: Mapping[str, int],
    progress: tqdm,
) -> tuple[CaseDisagreement, Tile]:
    label_maps = decoders.predict(image, progress.update)
    spacing = grid_spacing(properties, image.shape[1:], decoders.transpose_forward)
    values = list(structures.values())
    counts = [[np.count_nonzero(label_map == value) for value in values] for label_map in label_maps]
    voxel_ml = math.nan if _is_2d(properties) else spacing.prod() / 1000
    volumes_ml = np.array(counts) * voxel_ml
    case = CaseDisagreement(identifier, disagreement_per_class(label_maps, values), volumes_ml)
    index = most_contested_slice(label_maps, values)
    aspect = float(spacing[1] / spacing[2])
    slices = image[0, index].copy(), label_maps[:, index].copy()  # a view would keep the volumes of every tile
    return case, Tile(_title(case, structures, index), *slices, aspect)


def grid_spacing(properties: dict, shape: tuple[int, ...], transpose_forward: list[int]) -> np.ndarray:
    """Return the spacing in mm of a preprocessed image, from what nnU-Net's preprocessor noted.

    Args:
        properties: Of the case.
        shape: Voxels of the preprocessed image.
        transpose_forward: Order of the axes in the plans.
    """
    spacing = np.array([properties["spacing"][axis] for axis in transpose_forward], dtype=float)
    return spacing * np.array(properties["shape_after_cropping_and_before_resampling"]) / np.array(shape)


def _title(case: CaseDisagreement, structures: Mapping[str, int], index: int) -> str:
    first_line = f"{case.case}: disagreement {case.disagreement:.2f} (slice {index})"
    if math.isnan(case.disagreement):
        return f"{case.case}: no structure predicted (slice {index})"
    if len(structures) == 1:
        return first_line
    worst = sorted((-value, name) for name, value in zip(structures, case.per_class, strict=True) if value >= 0)[:3]
    return "\n".join((first_line, ", ".join(f"{name} {-value:.2f}" for value, name in worst)))


def _is_2d(properties: Mapping[str, Any]) -> bool:
    """Return whether an image is 2-D: nnU-Net makes up a thickness of 999 times the larger spacing for these."""
    thickness, *in_plane = properties["spacing"]
    return thickness >= 999 * max(in_plane)
