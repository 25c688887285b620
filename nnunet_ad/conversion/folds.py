"""Public split lists, and who is labelled, kept aside and unlabelled in a fold."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from nnunet_ad.conversion.errors import ConversionError

VALIDATION_KEPT_ASIDE = "kept aside: cases of the training set whose labels train nothing"
VALIDATION_IS_LABELED = "the labelled cases themselves (the paper's choice)"


@dataclass(frozen=True)
class Fold:
    """One fold of ``splits_final.json``: case names that train with labels, validate, and train without labels."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    unlabeled: tuple[str, ...]

    @property
    def validation(self) -> str:
        """What ``val`` is, in the sidecar's words."""
        return VALIDATION_IS_LABELED if set(self.val) <= set(self.train) else VALIDATION_KEPT_ASIDE

    def as_json(self) -> dict[str, list[str]]:
        """Return the fold as ``splits_final.json`` stores it."""
        return {"train": list(self.train), "val": list(self.val), "unlabeled": list(self.unlabeled)}


def load_public_split(name: str) -> dict[str, Any]:
    """Return a benchmark's public split lists, which the package brings along.

    Args:
        name: Name of the list, as ``LASeg``.

    Returns:
        The content of ``splits/<name>.json``.

    Raises:
        ConversionError: The package was installed without the list.
    """
    file = resources.files("nnunet_ad.conversion") / "splits" / f"{name}.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConversionError(
            f"the public split list {name}.json is missing in the installed package nnunet_ad; install it again"
        ) from None


def make_fold(training: Sequence[str], num_labeled: int, num_val: int) -> Fold:
    """Divide the training cases of a benchmark by their order in its public list.

    The first ``num_labeled`` cases are labelled, as in the public protocols. The last ``num_val`` cases are kept aside
    with their labels as ``val``; with ``num_val`` 0, ``val`` is the labelled cases themselves, the paper's choice.
    All other cases are unlabelled.

    Raises:
        ConversionError: There is no labelled case, or there are more labelled and kept-aside cases than cases.
    """
    if num_labeled < 1 or num_val < 0:
        raise ConversionError(
            f"{num_labeled} labelled and {num_val} kept-aside cases were asked for; "
            "give at least 1 labelled case, and 0 or more to keep aside"
        )
    if num_labeled + num_val > len(training):
        raise ConversionError(
            f"{num_labeled} labelled and {num_val} kept-aside cases were asked for, but the training set has "
            f"{len(training)} cases; ask for fewer"
        )
    end = len(training) - num_val
    train = tuple(training[:num_labeled])
    return Fold(train=train, val=tuple(training[end:]) or train, unlabeled=tuple(training[num_labeled:end]))


def make_public_fold(
    labeled: Sequence[str], unlabeled: Sequence[str], num_val: int, public_val: Sequence[str] | None, option: str
) -> Fold:
    """Return the fold of a benchmark's public lists.

    Args:
        labeled: The list of labelled cases.
        unlabeled: The list of unlabelled cases.
        num_val: Cases to keep aside from the end of the unlabelled ones, as :func:`make_fold`.
        public_val: The list of val cases if the user wants it, else None.
        option: The option that asks for it, for the message.

    Raises:
        ConversionError: As :func:`make_fold`, or both kinds of val cases are asked for.
    """
    if public_val is None:
        return make_fold([*labeled, *unlabeled], len(labeled), num_val)
    if num_val:
        raise ConversionError(f"--val {num_val} and {option} both say what to validate on; give one of them")
    return Fold(train=tuple(labeled), val=tuple(public_val), unlabeled=tuple(unlabeled))
