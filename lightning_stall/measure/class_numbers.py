"""Class numbers under a regression loss: what they look like, and whether their samples know an order among them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import permutations

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_stall.measure.by_hand import difference as noted_difference
from lightning_stall.measure.loss_fault import Fault
from lightning_stall.measure.loss_graph import REGRESSION, Expression, Term, prediction, saved
from lightning_stall.measure.probe import left_out

ENOUGH = 200  # targets to judge their kind by
MOST_KINDS = 64  # different values above which they are no classes
UNEVEN = 2.0  # times the even share, or its inverse: quantities pile up in the middle or at 0, classes need not
MOST_ROWS = 640  # samples kept
MOST_COLUMNS = 128  # of each; more are thinned out
FEW_TO_ORDER = 4  # classes below which any order is one of too few
UNORDERED = 0.25  # share of orders by chance that fit the samples as well as the numbers do
ORDERS = 2000
ROUNDED = 0.15  # of the samples, more of which a plain rule names right than the model's rounded answers
MOST_RIGHT = 0.9  # of the model's rounded answers, from which on it knows the classes
LEAST_EACH = 5  # samples of a class


@dataclass
class Indices:
    """Targets of a regression loss, one a sample, counted by value while they are few whole numbers."""

    counts: Counter[float] = field(default_factory=Counter)
    usable: bool = True
    rows: list[Tensor] = field(default_factory=list)  # inputs of some hundred samples, on the host
    kinds: list[Tensor] = field(default_factory=list)  # and their targets
    right: list[float] = field(default_factory=list)  # share of right ones among the rounded answers of each batch

    def update(self, loss: Expression, samples: int, batch: Sequence[Tensor] = ()) -> None:
        """Count one batch's targets; waits for the device."""
        terms = loss.main
        pair = _pair(terms[0]) if self.usable and len(terms) == 1 else None
        if pair is None or pair[0].numel() != samples != 0:
            self.usable = False
            self.rows.clear()
            return
        answer, target = pair
        if target.numel() != samples:  # broadcast, which is told elsewhere
            return
        target = target.detach().float().reshape(-1)
        values, counts = torch.unique(target, return_counts=True)
        self.usable = len(values) <= MOST_KINDS and bool((values == values.round()).all())
        if self.usable:
            self.counts.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
            self.usable = len(self.counts) <= MOST_KINDS
        if not self.usable:
            self.rows.clear()
            return
        self.right.append(float((answer.detach().float().reshape(-1).round() == target).float().mean()))
        self._keep(batch, target)

    def _keep(self, batch: Sequence[Tensor], target: Tensor) -> None:
        if sum(map(len, self.rows)) >= MOST_ROWS:
            return
        rows = [_row(t) for t in batch if t.ndim and len(t) == len(target) and t.numel() > len(t)]
        if rows:
            kept = torch.cat(rows, 1)
            if not self.rows or kept.shape[1] == self.rows[0].shape[1]:
                self.rows.append(kept.cpu())
                self.kinds.append(target.cpu())

    def fault(self) -> Fault | None:
        """Healthy look-alikes: counts and ratings (they pile up), yes or no, numbers with gaps."""
        total = sum(self.counts.values())
        kinds = len(self.counts)
        if not self.usable or total < ENOUGH or kinds < 3 or set(self.counts) != set(range(kinds)):
            return None
        even = total / kinds
        if min(self.counts.values()) * UNEVEN < even or max(self.counts.values()) > UNEVEN * even:
            return None
        return Fault(
            "wrong-loss-for-task",
            f"A regression loss receives targets that look like class numbers: of {total} all are whole, from 0 to "
            f"{kinds - 1} without a gap and about equally frequent ({min(self.counts.values()) / total:.0%} to "
            f"{max(self.counts.values()) / total:.0%} each); it pretends that class 3 lies between 2 and 4.",
            _advice(kinds),
            {"classes": float(kinds), "targets": float(total)},
            certain=False,
        )

    def unordered(self, short: bool = False) -> Fault | None:
        """The same, shown by the samples: a plain rule names their classes, the model's answers round to few of them, and
        the classes lie in no order. Healthy: grades and counts (their means follow one another), and what is learnt.

        Args:
            short: whether the run has ended short of its task. Then a rule that knows something of the classes will do.
        """
        looks = self.fault()
        if looks is None or not self.rows or len(self.right) < 2:
            return None
        kinds = len(self.counts)
        x, y = torch.cat(self.rows)[:MOST_ROWS], torch.cat(self.kinds)[:MOST_ROWS].long()
        if kinds < FEW_TO_ORDER or len(y) < ENOUGH or int(torch.bincount(y, minlength=kinds).min()) < LEAST_EACH:
            return None
        named, rounded = _named(x, y, kinds), sum(self.right[-2:]) / 2
        chance = _share_of_orders(x, y, kinds)
        by_chance = 1 / kinds + 3 * math.sqrt((1 - 1 / kinds) / kinds / len(y))
        least = by_chance if short and rounded < MOST_RIGHT else rounded + ROUNDED
        if not named > least or not chance > UNORDERED:
            return None
        return Fault(
            "wrong-loss-for-task",
            f"A regression loss receives class numbers from 0 to {kinds - 1} that are in no order: {chance:.0%} of orders "
            f"by chance fit the samples as well (under {UNORDERED:.0%} would for a scale). A line through the inputs "
            f"tells {named:.0%} of {len(y)} samples by their class; the model's answers, rounded, are right for "
            f"{rounded:.0%}.",
            _advice(kinds),
            {"classes": float(kinds), "named": named, "rounded": rounded, "orders": chance, "targets": float(len(y))},
        )


def _advice(kinds: int) -> str:
    return (
        "If the numbers are names and no quantities, give each class an output:\n\n"
        f"    self.head = nn.Linear(width, {kinds})\n"
        "    loss = F.cross_entropy(self(x), y.long())"
    )


def _pair(term: Term) -> tuple[Tensor, Tensor] | None:
    """Prediction and target of a regression loss that the graph, or a note, holds."""
    if term.weighted:
        return None
    if term.kind in REGRESSION:
        target, answer = saved(term.node, "target"), saved(term.node, "self")
        found = prediction(term)
        if isinstance(target, Tensor) and isinstance(answer, Tensor) and found is not None:
            return (answer if answer.numel() == math.prod(found.given) else answer[:0]), target
        return None
    noted = noted_difference(term.node)
    return None if noted is None else (noted[1].prediction, noted[1].target)


def _row(values: Tensor) -> Tensor:
    """(N, D) floats: measured values as they are, thinned out; ids as how often each occurs."""
    values = values.detach()
    if not values.is_floating_point() and values.ndim == 2:
        return F.one_hot(values.long().remainder(MOST_COLUMNS), MOST_COLUMNS).sum(1).float()
    flat = values.float().reshape(len(values), -1)
    return flat[:, :: max(1, -(-flat.shape[1] // MOST_COLUMNS))].clone()


def _named(x: Tensor, y: Tensor, kinds: int) -> float:
    """Share of samples whose class a ridge regression through all others names."""
    x = torch.nan_to_num(x.double())
    x = (x - x.mean(0)) / x.std(0).clamp_min(1e-12)
    wanted = F.one_hot(y, kinds).double()
    guess = left_out(x @ x.T / x.shape[1]) @ (wanted - wanted.mean(0)) + wanted.mean(0)
    return float((guess.argmax(1) == y).float().mean())


def _share_of_orders(x: Tensor, y: Tensor, kinds: int) -> float:
    """Share of all orders of the classes in which their means' distances go with those of the numbers at least as well."""
    x = torch.nan_to_num(x.double())
    x = (x - x.mean(0)) / x.std(0).clamp_min(1e-12)
    wanted = F.one_hot(y, kinds).double()
    means = (wanted.T @ x) / wanted.sum(0)[:, None]
    apart = torch.cdist(means, means).square()
    generator = torch.Generator().manual_seed(0)
    if kinds <= 6:
        orders = torch.tensor(list(permutations(range(kinds))))
    else:
        orders = torch.stack([torch.randperm(kinds, generator=generator) for _ in range(ORDERS)])
    upper = torch.triu_indices(kinds, kinds, 1)
    steps = (upper[0] - upper[1]).abs().double()
    steps = steps - steps.mean()
    fits = apart[orders[:, upper[0]], orders[:, upper[1]]] @ steps
    return float((fits >= apart[upper[0], upper[1]] @ steps - 1e-9).float().mean())
