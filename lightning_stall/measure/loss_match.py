"""Losses written by hand that are, number for number, a known one: its value is compared with what known formulas give.

A graph of logarithms, products and sums tells little of what was meant. The training step's own tensors tell it: of those
near the loss that a model has made, and those that met them without a gradient, one pair gives the loss by a known
formula, and does so again for the next batch.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

MADE = 48  # last tensors with a gradient that are kept
MET = 12  # last ones without, that met one with a gradient
LARGEST = 1 << 20  # entries of either
SAME = 1e-4  # of the loss: rounding, and what is added to keep a logarithm finite
LEAST = 1e-6
OFF = 1e-3  # of the sum of shares
BATCHES = 3  # that the same pair must give the loss of by the same formula

Formula = Literal["logits", "signs", "shares", "classes", "class shares", "mse", "rmse", "l1"]


@dataclass(frozen=True)
class Pair:
    """A prediction and its targets, in the form in which the built-in loss would be given them."""

    formula: Formula
    prediction: Tensor
    target: Tensor


@dataclass
class Records:
    """What the training step has made and met, nearest to the loss last; emptied after every loss."""

    made: deque[Tensor] = field(default_factory=lambda: deque(maxlen=MADE))
    met: deque[Tensor] = field(default_factory=lambda: deque(maxlen=MET))

    def add(self, result: Any, args: Any, kwargs: Any) -> None:
        if not isinstance(result, Tensor) or not result.requires_grad:
            return
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and not t.requires_grad and t.ndim]
        for other in given:
            if 1 < other.numel() <= LARGEST and not other.is_complex() and not any(other is m for m in self.met):
                self.met.append(other)
        if result.ndim and 1 < result.numel() <= LARGEST and result.is_floating_point():
            self.made.append(result.detach())

    def clear(self) -> None:
        self.made.clear()
        self.met.clear()


@dataclass
class LossMatch:
    """Finds the formula in the first batches, and the pair that it is of in every later one."""

    key: tuple[int, int, Formula] | None = None  # how far from the loss the two stand, and what it makes of them
    seen: int = 0  # batches for which it was so
    hopeless: bool = False
    _candidates: set[tuple[int, int, Formula]] = field(default_factory=set)

    @property
    def found(self) -> bool:
        return self.key is not None and self.seen >= BATCHES

    def update(self, records: Records, value: Callable[[], float] | None) -> Pair | None:
        """The pair that gives this loss, once that is known.

        Args:
            records: of the training step up to this loss.
            value: gives the loss as it was meant; None where that would wait for the device.
        """
        if self.hopeless:
            return None
        if self.found and self.key is not None:
            pair = _taken(records, self.key)
            self.hopeless = value is not None and (pair is None or not _same(float(_value(pair)), value()))
            return None if self.hopeless else pair
        if value is None:
            return None
        loss = value()
        if not math.isfinite(loss) or abs(loss) < LEAST:
            return None
        now = _matching(records, loss)
        self._candidates = now if not self.seen else self._candidates & now
        self.seen += 1
        if not self._candidates:
            self.hopeless = True
        elif self.seen >= BATCHES:
            self.key = min(self._candidates)  # the pair nearest to the loss
            return _taken(records, self.key)
        return None


def _matching(records: Records, loss: float) -> set[tuple[int, int, Formula]]:
    """All pairs and formulas that give this loss."""
    keys, values = list[tuple[int, int, Formula]](), list[Tensor]()
    for i, made in enumerate(reversed(records.made)):
        for j, met in enumerate(reversed(records.met)):
            if met.device != made.device:
                continue
            for pair in _pairs(made, met):
                keys.append((i, j, pair.formula))
                values.append(_value(pair).cpu())
    found = torch.stack(values).tolist() if values else []
    return {key for key, v in zip(keys, found, strict=True) if _same(v, loss)}


def _same(value: float, loss: float) -> bool:
    return abs(value - loss) <= SAME * abs(loss) + LEAST


def _taken(records: Records, key: tuple[int, int, Formula]) -> Pair | None:
    i, j, formula = key
    if i >= len(records.made) or j >= len(records.met):
        return None
    return _form(formula, records.made[-1 - i], records.met[-1 - j])


def _pairs(made: Tensor, met: Tensor) -> Iterator[Pair]:
    """The forms in which these two may be a prediction and its targets, by their values; waits for the device."""
    for formula in _FORMULAS:
        pair = _form(formula, made, met)
        if pair is not None and _plausible(pair, met):
            yield pair


_FORMULAS: tuple[Formula, ...] = ("logits", "shares", "signs", "mse", "rmse", "l1", "classes", "class shares")
_BINARY = frozenset({"logits", "shares", "signs"})
_OF_CLASSES = frozenset({"classes", "class shares"})


def _form(formula: Formula, made: Tensor, met: Tensor) -> Pair | None:
    """The pair in the form that the formula wants it; None where their shapes forbid it."""
    if formula in _OF_CLASSES:
        if made.ndim != 2 or made.shape[1] < 2:
            return None
        if met.numel() == len(made) and not met.is_floating_point() and met.dtype is not torch.bool:
            return Pair(formula, made.float(), met.reshape(-1).long())
        return Pair(formula, made.float(), met.float().argmax(1)) if met.shape == made.shape else None
    if met.numel() != made.numel() or met.squeeze().shape != made.squeeze().shape:
        return None
    target = (met.float() + 1) / 2 if formula == "signs" else met.float()
    return Pair(formula, made.reshape(met.shape).float(), target)


def _plausible(pair: Pair, met: Tensor) -> bool:
    p, y = pair.prediction, pair.target
    if pair.formula in _OF_CLASSES:
        if met.shape == p.shape and not bool((((met == 0) | (met == 1)).all(1) & (met.sum(1) == 1)).all()):
            return False
        shares = pair.formula == "classes" or bool((p >= 0).all() & ((p.sum(1) - 1).abs().max() < OFF))
        return shares and bool((y >= 0).all() & (y < p.shape[1]).all())
    if pair.formula in _BINARY:
        shares = pair.formula != "shares" or bool((p >= 0).all() & (p <= 1).all())
        hard = pair.formula != "signs" or bool(((y == 0) | (y == 1)).all())
        return shares and hard and bool((y >= 0).all() & (y <= 1).all())
    return len(y.unique()) > 2  # of two values the distance is many another loss, too, while outputs are small


def _value(pair: Pair) -> Tensor:
    """The loss that the known formula gives for a pair, a scalar."""
    p, y = pair.prediction, pair.target
    if pair.formula in ("logits", "signs"):
        return (F.softplus(p) - p * y).mean()
    if pair.formula == "shares":
        return -(torch.xlogy(y, p) + torch.xlogy(1 - y, 1 - p)).mean()
    if pair.formula in _OF_CLASSES:
        logs = p.log_softmax(1) if pair.formula == "classes" else p.log()
        return -logs.gather(1, y[:, None]).mean()
    if pair.formula == "l1":
        return (p - y).abs().mean()
    squared = (p - y).square().mean()
    return squared.sqrt() if pair.formula == "rmse" else squared


def shares(pair: Pair) -> Tensor:
    """What a pair of classes or of yes and no predicts: the log-shares of the classes, or the share of yes."""
    p = pair.prediction
    if pair.formula in _OF_CLASSES:
        return p.log_softmax(1) if pair.formula == "classes" else p.log()
    return p if pair.formula == "shares" else p.sigmoid()
