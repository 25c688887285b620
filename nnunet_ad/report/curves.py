"""How a training went: one small figure a topic."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from nnunet_ad.report.progress import Progress
from nnunet_ad.report.svg import PageFigure, line_style, shortened

MAX_POINTS = 300  # a line; more are not seen


@dataclass(frozen=True)
class Topic:
    """What one figure shows.

    Attributes:
        title: its heading.
        text: what it means, in plain words.
        unit: of the upright axis.
        lines: name of a curve in `Progress` -> label; a curve with several entries gives a line for each.
        logarithmic: whether the upright axis is.
        whole: whether the upright axis goes from 0 to 1.
    """

    title: str
    text: str
    unit: str
    lines: dict[str, str]
    logarithmic: bool = False
    whole: bool = False


@dataclass(frozen=True)
class DrawnTopic:
    """A topic and its figure."""

    topic: Topic
    svg: Markup


TOPICS = (
    Topic(
        "Agreement with the reference during training",
        "Mean Dice on pieces of the validation cases. θ is the part of the network that makes the final segmentation; "
        "ψ and ξ are the two parts that teach it on cases without labels.",
        "Dice",
        {"val_dice_theta": "θ (used)", "val_dice_psi": "ψ", "val_dice_xi": "ξ"},
        whole=True,
    ),
    Topic(
        "Agreement by structure",
        "The same for each structure, for θ alone.",
        "Dice",
        {"val_dice_per_class_theta": ""},
        whole=True,
    ),
    Topic(
        "Training error",
        "What training makes smaller. ξ and ψ learn from the labelled cases, θ from its teachers' labels of the cases "
        "without labels. A line that still falls at the end could gain from longer training.",
        "loss",
        {"loss_denoising": "ξ, labelled", "loss_difficulty": "ψ, labelled", "loss_unlabeled": "θ, unlabelled"},
    ),
    Topic(
        "Do the two teachers agree on unlabelled cases?",
        "Share of the foreground in which ξ and ψ say the same, and how much of a piece they call foreground at all. "
        "A share of foreground near zero means that the teachers find nothing.",
        "share of voxels",
        {"agreement": "ξ and ψ agree", "pseudo_foreground": "called foreground"},
        whole=True,
    ),
    Topic(
        "Weight of each structure",
        "Structures that are hard to learn get more weight when ψ learns. Their mean is 1; the background has 1.",
        "weight",
        {"class_weights": ""},
    ),
    Topic("Weight of the unlabelled cases", "μ rises while the teachers are still learning.", "μ", {"mu": "μ"}),
    Topic("Learning rate", "Size of the training steps.", "learning rate", {"learning_rate": "learning rate"}),
    Topic(
        "ξ by amount of noise",
        "Dice of ξ on labelled pieces, from little noise (1) to a label that is nothing but noise (5).",
        "Dice",
        {"dice_by_t": "noise"},
        whole=True,
    ),
    Topic(
        "Pull of each part on the shared network",
        "Size of the gradients. One line far above the others drowns them.",
        "gradient norm",
        {"gradient_denoising": "ξ", "gradient_difficulty": "ψ", "gradient_unlabeled": "θ, with μ"},
        logarithmic=True,
    ),
)


def draw_topics(progress: Progress, structures: Sequence[str]) -> list[DrawnTopic]:
    """Draw every topic that has a number.

    Args:
        progress: the curves.
        structures: names of the foreground classes, in the order of their labels.
    """
    drawn = []
    for number, topic in enumerate(TOPICS):
        lines = _lines(topic, progress, structures)
        if not lines or (topic.lines.keys() == {"val_dice_per_class_theta"} and len(lines) < 2):
            continue
        drawn.append(DrawnTopic(topic, _draw(topic, lines, f"curves-{number}")))
    return drawn


def _lines(topic: Topic, progress: Progress, structures: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    lines = {}
    for name, label in topic.lines.items():
        values = progress.curves.get(name)
        if values is None or not np.isfinite(values).any():
            continue
        if values.ndim == 1:
            lines[label] = values
            continue
        labels = [f"{label} {i + 1}" for i in range(values.shape[1])] if label else _names(values.shape[1], structures)
        lines |= dict(zip(labels, values.T, strict=True))
    return lines


def _names(count: int, structures: Sequence[str]) -> list[str]:
    """Return a name for each entry: of the structures, with the background if that makes the number right."""
    for names in (list(structures), ["background", *structures]):
        if len(names) == count:
            return names
    return [f"class {i}" for i in range(count)]


def _draw(topic: Topic, lines: dict[str, NDArray[np.float64]], name: str) -> Markup:
    with PageFigure(5.2, 3.1 + 0.2 * (len(lines) // 4)) as page:
        axes = page.axes
        for index, (label, values) in enumerate(lines.items()):
            epochs = np.arange(1, len(values) + 1)
            kept = np.unique(np.linspace(0, len(values) - 1, min(len(values), MAX_POINTS)).round().astype(int))
            marker = "o" if len(values) == 1 else None
            axes.plot(epochs[kept], values[kept], label=shortened(label), marker=marker, **line_style(index))
        axes.set(xlabel="epoch", ylabel=topic.unit)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if topic.logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        if topic.whole:
            axes.set_ylim(-0.02, 1.02)
        if len(lines) > 1:
            page.figure.legend(loc="outside lower center", ncols=min(4, len(lines)), fontsize=9)
        return page.svg(name, f"{topic.title}. {_in_words(lines)}")


def _in_words(lines: dict[str, NDArray[np.float64]]) -> str:
    """Say where each line starts and ends."""
    parts = []
    for label, values in lines.items():
        finite = values[np.isfinite(values)]
        if finite.size:
            parts.append(f"{label}: from {finite[0]:.3g} to {finite[-1]:.3g}")
    return "; ".join(parts) + "."
