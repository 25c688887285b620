"""Makes a report: collects what there is, draws it, and says what is not there."""

from datetime import date
from pathlib import Path

from markupsafe import Markup

import nnunet_ad
from nnunet_ad.evaluation.cases import ENDINGS
from nnunet_ad.evaluation.dataset import DATASET_JSON, read_dataset
from nnunet_ad.evaluation.result import Evaluation
from nnunet_ad.report import tables
from nnunet_ad.report.boxplots import draw_boxes
from nnunet_ad.report.curves import DrawnTopic, draw_topics
from nnunet_ad.report.montage import Montage, draw_montage
from nnunet_ad.report.overlays import CaseOverlay, draw_overlays
from nnunet_ad.report.page import Page
from nnunet_ad.report.pictures import Picture, picture_of_file
from nnunet_ad.report.progress import PROGRESS_FILE, read_progress
from nnunet_ad.report.scores import RankedCase, rank, score
from nnunet_ad.report.sources import Sources, find_sources
from nnunet_ad.report.summary import summarise
from nnunet_ad.whole_file import written_whole

_BOXES = ("Dice", "HD95")
_CURVES_PICTURE = "progress_ad.png"


def write_report(
    folder: Path,
    output: Path,
    references: Path | None = None,
    dataset: str | None = None,
    images: Path | None = None,
    processes: int | None = None,
    progress: bool = True,
) -> Page:
    """Write one self-contained HTML page on a training or on predictions, and return its parts.

    Args:
        folder: a training (``…/fold_0``) or a folder of predictions.
        output: the page to write.
        references: folder of references; a training knows its own.
        dataset: number, name or folder of the dataset that names structures and origins.
        images: folder of images for the pictures; by default those of the dataset.
        processes: parallel processes for scoring.
        progress: show a progress bar while scoring.

    Raises:
        ValueError: the input does not fit together; one sentence for the user.
        OSError: the page cannot be written.
    """
    if output.is_dir():
        raise ValueError(f"{output} is a folder; name the HTML file to write.")
    page = make_page(find_sources(folder, references, dataset, images), processes, progress)
    output.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(output) as temporary:
        temporary.write_text(page.as_html(), encoding="utf-8")
    return page


def make_page(sources: Sources, processes: int | None = None, progress: bool = True) -> Page:
    """Return the parts of a report.

    Args:
        sources: where they come from.
        processes: parallel processes for scoring.
        progress: show a progress bar while scoring.

    Raises:
        ValueError: as for `write_report`.
    """
    absent: dict[str, str] = {}
    evaluation = _evaluation(sources, absent, processes, progress)
    cases = rank(evaluation) if evaluation else []
    topics, curves_picture = _curves(sources, absent)
    return Page(
        title=f"How good are the segmentations? {sources.name}",
        subtitle=_subtitle(sources),
        made_by=f"nnunet_ad {nnunet_ad.__version__}, {date.today().isoformat()}",
        summary=summarise(sources, evaluation, cases),
        tables=_tables(evaluation, cases),
        boxes=_boxes(evaluation),
        overlays=_overlays(sources, evaluation, absent),
        montage=_montage(sources, absent),
        topics=topics,
        curves_picture=curves_picture,
        absent=absent,
    )


def _subtitle(sources: Sources) -> str:
    folder = sources.folder.resolve()
    if sources.training:
        return f"Training {folder.parent.name}, {folder.name}: its validation cases"
    return f"Predictions in the folder {folder.name}"


def _evaluation(sources: Sources, absent: dict[str, str], processes: int | None, progress: bool) -> Evaluation | None:
    if sources.predictions is None and any((sources.folder / "validation").glob("*.tif*")):
        absent["scores"] = (
            f"TIFF files are not scored, as their spacing is in another file; expected one of {', '.join(ENDINGS)}."
        )
    elif sources.predictions is None:
        absent["scores"] = (
            "the training has no predictions of its validation cases yet; they are made at its end, or by the same "
            "nnUNetv2_train command with --val."
        )
    elif sources.references is None:
        absent["scores"] = (
            "the references of this dataset were not found in nnUNet_preprocessed or nnUNet_raw; set these variables, "
            "or pass the folder of references with -r."
        )
    else:
        return score(sources, processes, progress)
    return None


def _tables(evaluation: Evaluation | None, cases: list[RankedCase]) -> tuple[tables.SortableTable, ...]:
    if evaluation is None:
        return ()
    found = (tables.structure_table(evaluation), tables.domain_table(evaluation), tables.case_table(evaluation, cases))
    return tuple(table for table in found if table is not None)


def _boxes(evaluation: Evaluation | None) -> tuple[tuple[str, Markup], ...]:
    if evaluation is None:
        return ()
    drawn = ((metric, draw_boxes(evaluation, metric)) for metric in _BOXES)
    return tuple((metric, svg) for metric, svg in drawn if svg is not None)


def _overlays(sources: Sources, evaluation: Evaluation | None, absent: dict[str, str]) -> tuple[CaseOverlay, ...]:
    if evaluation is None:
        absent["overlays"] = "no case was scored."
        return ()
    overlays = tuple(draw_overlays(sources, evaluation))
    if not any(overlay.pictures for overlay in overlays):
        notes = sorted({overlay.note for overlay in overlays})
        absent["overlays"] = (
            " ".join(notes) if sources.images else "the images are not known; pass their folder with --images."
        )
        return ()
    return overlays


def _montage(sources: Sources, absent: dict[str, str]) -> Montage | None:
    if not sources.training:
        absent["montage"] = "only a training keeps these pictures; pass the folder of a training to see them."
        return None
    montage = draw_montage(sources.folder, sources.spacing, _trained_classes(sources.folder))
    if montage is None:
        absent["montage"] = "this training kept no snapshots of an unlabelled case."
    return montage


def _curves(sources: Sources, absent: dict[str, str]) -> tuple[tuple[DrawnTopic, ...], Picture | None]:
    if not sources.training:
        absent["curves"] = "only a training has curves; pass the folder of a training to see them."
        return (), None
    found = read_progress(sources.folder)
    if found is not None and found.num_epochs:
        return tuple(draw_topics(found, _trained_classes(sources.folder))), None
    absent["curves"] = f"this training wrote no {PROGRESS_FILE}."
    picture = sources.folder / _CURVES_PICTURE
    if not picture.is_file():
        return (), None
    try:
        return (), picture_of_file(picture.read_bytes(), "Curves of the training, as the trainer drew them.")
    except OSError:
        return (), None


def _trained_classes(training: Path) -> list[str]:
    """Return the names of the foreground classes in the order of their labels; none if they are not known.

    Those of the training, which has classes where its dataset may have regions.
    """
    model = training.resolve().parent
    if not (model / DATASET_JSON).is_file():
        return []
    structures = read_dataset(str(model)).labels.structures
    return [structure.name for structure in sorted(structures, key=lambda structure: structure.values)]
