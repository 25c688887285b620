"""Difficulty-aware re-weighting of classes (DRS, Eqs. 3-5).

Notation (name -> symbol in the paper):
    dice        -> λ_{k,e}, Dice of class k in update e
    unlearned   -> du_k, how much the Dice of class k fell over the last τ updates (Eq. 3)
    learned     -> dl_k, how much it rose (Eq. 4)
    difficulty  -> d_k = (du_k + 1e-8) / (dl_k + 1e-8)
    weight      -> w_k = mean(1 - λ_k)·d_k^α, then scaled to mean 1 (Eq. 5)
"""

import torch
from torch import Tensor, nn

_LOG_FLOOR = 1e-3
_EPSILON = 1e-8


class DifficultyWeights(nn.Module):
    """Class weights from how fast each class is learned and forgotten; a module only for its buffers.

    Everything stays on the device of its buffers and nothing is read back, so that an update inside a train step
    costs no synchronisation. Each class counts its own updates: a class that was absent loses no history.

    Args:
        num_classes: K, the classes that are weighted.
        window: τ, the last updates of a class that count.
        alpha: Exponent of the difficulty.

    Raises:
        ValueError: If ``num_classes`` or ``window`` is below 1.
    """

    last_dice: Tensor
    num_updates: Tensor
    errors: Tensor
    falls: Tensor
    rises: Tensor

    def __init__(self, num_classes: int, window: int = 50, alpha: float = 0.2):
        super().__init__()
        if num_classes < 1 or window < 1:
            raise ValueError(f"got num_classes={num_classes}, window={window}; both must be at least 1")
        self.window = window
        self.alpha = alpha
        # Rings: row i holds, for each class, what its update number i modulo window brought.
        self.register_buffer("errors", torch.zeros(window, num_classes))
        self.register_buffer("falls", torch.zeros(window, num_classes))
        self.register_buffer("rises", torch.zeros(window, num_classes))
        self.register_buffer("last_dice", torch.zeros(num_classes))
        self.register_buffer("num_updates", torch.zeros(num_classes, dtype=torch.int64))
        self._before_update: list[Tensor] = []

    @torch.no_grad()
    def update(self, dice: Tensor, present: Tensor | None = None) -> Tensor:
        """Take in the Dice of one iteration and return the new weights.

        Args:
            dice: λ (K,), in [0, 1].
            present: bool (K,); classes that are neither in prediction nor in label are ``False`` and keep their
                history. ``None``: all present.

        Returns:
            Weights (K,), float32, mean 1.

        Raises:
            ValueError: If ``dice`` or ``present`` is not of shape (K,).
        """
        dice = torch.as_tensor(dice).to(self.errors).clamp(0, 1)
        present = torch.ones_like(dice) if present is None else torch.as_tensor(present, device=dice.device)
        present = present.bool()
        if not dice.shape == present.shape == self.last_dice.shape:
            raise ValueError(
                f"dice has shape {tuple(dice.shape)} and present {tuple(present.shape)}; expected one value for each "
                f"of {len(self.last_dice)} classes"
            )
        self._before_update = [buffer.clone() for buffer in self.buffers()]
        has_predecessor = self.num_updates > 0
        log_ratio = dice.clamp_min(_LOG_FLOOR).log() - self.last_dice.clamp_min(_LOG_FLOOR).log()
        # |min(Δ, 0)·ln(λ_e / λ_{e-1})| and |max(Δ, 0)·ln(λ_e / λ_{e-1})|; a first update makes no difference.
        delta = (dice - self.last_dice) * has_predecessor
        self._write(self.errors, 1 - dice, present)
        self._write(self.falls, (delta.clamp_max(0) * log_ratio).abs(), present & has_predecessor)
        self._write(self.rises, (delta.clamp_min(0) * log_ratio).abs(), present & has_predecessor)
        self.last_dice.copy_(torch.where(present, dice, self.last_dice))
        self.num_updates.add_(present)
        return self.weights()

    @torch.no_grad()
    def undo_update(self, condition: Tensor) -> None:
        """Take the last update back where a condition, bool (), holds: the train step it belongs to was skipped."""
        if self._before_update:
            for buffer, before in zip(self.buffers(), self._before_update, strict=True):
                buffer.copy_(torch.where(condition, before, buffer))
            self._before_update = []

    @torch.no_grad()
    def weights(self) -> Tensor:
        """Return the present weights (K,), float32, mean 1; all ones before the first update."""
        count = self.num_updates.clamp(1, self.window)
        difficulty = (self.falls.sum(0) + _EPSILON) / (self.rises.sum(0) + _EPSILON)
        weight = self.errors.sum(0) / count * difficulty**self.alpha
        weight = torch.where(self.num_updates > 0, weight, 1.0)
        mean = weight.mean()
        return torch.where(mean > 0, weight / mean.clamp_min(torch.finfo(weight.dtype).tiny), 1.0)

    def _write(self, ring: Tensor, value: Tensor, where: Tensor) -> None:
        row = (self.num_updates % self.window)[None]
        ring.scatter_(0, row, torch.where(where, value, ring.gather(0, row)[0])[None])
