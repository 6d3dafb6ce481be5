"""A loss that is a sum, with constant factors: what a constant predictor reaches where its addends are built-in losses.

An addend that is the size of weights alone, a penalty, has no targets; it counts as the level it now has. Where there are
others, such as a divergence, the sum has no level; what they are worth beside the built-in ones is kept all the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from torch import Tensor

from lightning_stall.measure.graph import saved
from lightning_stall.measure.loss_graph import SIZES, short
from lightning_stall.measure.losses import FACTORS, LEAST, Labels, SeenLoss, recognise_from

MOST = 12  # addends; a penalty has one a weight, and they may be many more
MOST_NODES = 1024
LATELY = 3  # checks
KEPT = 256  # checks whose shares are remembered; every second of a longer run
NEAR = 0.1  # of a constant predictor's loss: what that of some batches may be below it, where nothing was learnt
GONE = 0.1  # share of the built-in losses, under which the others have gone to nothing
ALIKE = 0.01  # share of the loss by which its addends may miss it
_SAME = {"ToCopy", "Alias", "Clone", "Squeeze", "Unsqueeze", "View", "ReshapeAlias"}


@dataclass(frozen=True)
class Addends:
    """The built-in losses that a loss is made of, each with its constant factor, and what the rest are."""

    losses: list[tuple[SeenLoss, float]]
    penalised: bool  # there are penalties on weights among the rest
    others: bool = False  # and something else


def addends(loss: Tensor) -> Addends | None:
    """Take a loss apart; None where it is no sum, where no addend is a built-in loss, or a factor is no constant."""
    losses: list[tuple[SeenLoss, float]] = []
    queue: list[tuple[Any, float]] = [(loss.grad_fn, 1.0)]
    penalties, others, read = 0, 0, 0
    while queue:
        node, factor = queue.pop()
        read += 1
        if node is None or read > MOST_NODES or not math.isfinite(factor):
            return None
        below = _parts(node, factor)
        if below is not None:
            queue += below
        elif (seen := recognise_from(node)) is not None:
            # a sum over the samples is their number times a mean: constant, where it is divided by their number again
            losses.append((replace(seen, mean=seen.mean or seen.summed), factor * _entries(seen)))
        elif _is_penalty(node):
            penalties += 1
        else:
            others += 1
    if not losses or len(losses) > MOST or len(losses) + penalties + others < 2:
        return None
    losses.reverse()  # as they stand in the sum
    return Addends(losses, penalties > 0, others > 0)


def _entries(seen: SeenLoss) -> float:
    """How many times the mean over all entries this is."""
    return seen.scale * (max(1, len(seen.target)) if seen.summed and seen.target.ndim else 1)


def _parts(node: Any, factor: float) -> list[tuple[Any, float]] | None:
    """What is summed at this node, or is multiplied by a constant; None where it is neither."""
    name = short(node)
    below = [child for child, _ in node.next_functions if child is not None]
    if name in ("Add", "Sub"):
        sign = -1.0 if name == "Sub" else 1.0
        alpha = float(getattr(node, "_saved_alpha", 1))
        first, second = (child for child, _ in node.next_functions[:2])
        parts = [(first, factor), (second, sign * alpha * factor)]
        # a number that is added has no gradient, and no targets
        return [(child, by) for child, by in parts if child is not None] if below else None
    if name in _SAME and len(below) == 1:
        return [(below[0], factor)]
    if name == "Neg":
        return [(below[0], -factor)]
    if name in ("Mul", "Div") and len(below) == 1 and node.next_functions[0][0] is below[0]:
        other = saved(node, "other")
        if other is None or other.ndim or other.device.type != "cpu" or other.requires_grad:
            return None
        by = float(other)
        return [(below[0], factor * by if name == "Mul" else factor / by if by else math.nan)]
    if name in ("Sum", "Mean") and len(below) == 1 and short(below[0]) == "Stack":
        each = [child for child, _ in below[0].next_functions]
        return [(child, factor / len(each) if name == "Mean" else factor) for child in each if child is not None]
    return None


def _is_penalty(node: Any) -> bool:
    """Whether this is the size of one weight: a sum of its powers, of its absolute values, or a norm."""
    for _ in range(8):
        if hasattr(node, "variable"):
            return True
        below = {child for child, _ in node.next_functions if child is not None}
        if len(below) != 1 or short(node) not in SIZES | {"Sum", "Mean"}:
            return False
        (node,) = below
    return False


@dataclass
class SumLabels:
    """Stands where `Labels` does, for a sum of losses; the same questions, answered for all of them together."""

    terms: list[Labels] = field(default_factory=list)
    factors: list[float] = field(default_factory=list)
    usable: bool = True
    penalty: float = 0.0  # what the size of weights adds to the loss at present
    kind: str | None = "sum"
    shares: list[tuple[float, float]] = field(default_factory=list)  # (built-in ones, others) at checks
    _others: bool = False
    _matched: int = 0  # checks at which the addends made up the loss

    def update(self, found: Addends | None) -> None:
        """Add one batch's labels; None where this loss was no such sum."""
        if found is None:
            self.usable = False
        if found is None or not self.usable:
            return
        if not self.terms:
            self.terms = [Labels() for _ in found.losses]
        factors = [factor for _, factor in found.losses]
        same = len(self.terms) == len(found.losses) and (not self.factors or self.factors == factors)
        self.factors, self._others = factors, found.others
        self.usable = same and all(factor > 0 for factor in factors)
        for labels, (seen, _) in zip(self.terms, found.losses, strict=False):
            labels.update(seen)
        self.usable = self.usable and all(labels.usable for labels in self.terms)

    def calibrate(self, found: Addends | None, loss: float) -> None:
        """Compare the loss as it was returned with what its addends give; the rest is what penalties add. Waits."""
        if found is None or not self.usable or not math.isfinite(loss):
            return
        known = 0.0
        for seen, factor in found.losses:
            value = seen.value()
            known += math.nan if value is None else factor * float(value)
        if not math.isfinite(known):
            self.usable = False
            return
        if found.others:
            self.shares.append((known, loss - known))
            if len(self.shares) > KEPT:
                del self.shares[LATELY::2]
            return
        self.penalty = loss - known if found.penalised else 0.0
        # a number that somebody adds, or a loss that is not what its graph seems to say
        fits = abs(loss - known) <= ALIKE * max(abs(loss), abs(known)) or (found.penalised and self.penalty > 0)
        self.usable = fits
        self._matched += fits

    @property
    def calibrated(self) -> bool:
        return not self.usable or (self._matched >= FACTORS and not self.penalty and not self._others)

    @property
    def noted(self) -> bool:
        return any(labels.noted for labels in self.terms)

    @property
    def seen(self) -> bool:
        return self.usable and bool(self.terms) and self._matched > 0 and not self._others

    def outweighed(self) -> tuple[float, float, float] | None:
        """Where other terms have gone to nothing, and the built-in ones have learnt nothing: these, their level, and the rest.

        As a divergence that outweighs the misfit does: a code that tells nothing costs nothing.
        """
        values = [labels.baseline() for labels in self.terms] if self._others and self.usable else [None]
        late, first = self.shares[len(self.shares) // 2 :], [other for _, other in self.shares[:LATELY]]
        if None in values or len(self.shares) < 2 * LATELY:
            return None
        level = sum(f * v for f, v in zip(self.factors, values, strict=True) if v is not None)
        if min(other for _, other in self.shares) < -ALIKE * level:  # a policy's gain, or a score
            return None
        known, rest = fmean(a for a, _ in late), fmean(b for _, b in late)
        return (
            (known, level, rest) if known > (1 - NEAR) * level and rest < min(GONE * known, max(first) / 10) else None
        )

    def baseline(self) -> float | None:
        """What the best constant predictions reach together; None where one of them is not known."""
        if not self.seen:
            return None
        each = [labels.baseline() for labels in self.terms]
        # targets that are all alike in one addend, as of a discriminator, may not be so over all
        return None if any(value is not None and value < LEAST for value in each) else self._total(each)

    @property
    def floor(self) -> float | None:
        return self._total([labels.floor for labels in self.terms]) if self.seen else None

    def _total(self, each: list[float | None]) -> float | None:
        known = [value for value in each if value is not None]
        if len(known) < len(each):
            return None
        return self.penalty + sum(factor * value for factor, value in zip(self.factors, known, strict=True))

    def mastered(self) -> float:
        """Of a single classifier under penalties; NaN where there are more losses."""
        return self.terms[0].mastered() if len(self.terms) == 1 and self.usable else math.nan

    @property
    def even_odds(self) -> float | None:
        return None
