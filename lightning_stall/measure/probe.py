"""Whether a few hundred samples tell anything about their targets, asked without the model; on the host."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

NEIGHBOURS = 5
MOST_FEATURES = 4096  # columns, squares and codes that are asked one by one
SEVERE = 0.7  # the largest of many scores strays further than their mean does
SHUFFLES = 64
NO_SIGNAL = 2.5  # standard deviations above shuffled targets, of so many shuffles
LEAST = 96  # samples below which no answer is given
MOST_CLASSES = 64
MOST_CODES = 64
FEW_CODES = 20  # up to which codes are suspected without a look at the targets


@dataclass(frozen=True)
class Signal:
    """How well samples predict their targets: each score is in standard deviations above shuffled targets."""

    neighbours: float  # do near samples have like targets
    linear: float  # does a ridge regression, each sample left out, point the right way
    alone: float  # does any one column, its square or one of its codes, go with them
    samples: int
    line: float = 0.0  # share of the targets' variance that the regression explains of samples left out

    @property
    def best(self) -> float:
        return max(self.neighbours, self.linear, self.alone)


def signal(x: Tensor, y: Tensor, categorical: bool) -> Signal | None:
    """Look for any bond of inputs and targets, near by (nearest neighbours), at large (ridge regression), in one column.

    Args:
        x: (n, D) rows.
        y: (n, k) targets; class numbers in one column where `categorical`.

    Returns:
        None where there are too few different samples, or the targets do not vary.
    """
    raw = x
    x, kept = _different(x.double())
    encoded = _encode(y[kept].double(), categorical)
    if encoded is None or len(x) < LEAST or not x.shape[1]:
        return None
    y = encoded - encoded.mean(0)
    power = y.square().sum()
    if not float(power) > 0:
        return None
    kernel = x @ x.T / x.shape[1]
    squares = kernel.diagonal()
    far = squares[:, None] + squares[None] - 2 * kernel
    far.fill_diagonal_(torch.inf)
    near = torch.zeros_like(kernel).scatter_(1, far.topk(NEIGHBOURS, largest=False).indices, 1 / NEIGHBOURS)
    others = left_out(kernel)
    generator = torch.Generator().manual_seed(0)
    shuffled = [y, *(y[torch.randperm(len(x), generator=generator)] for _ in range(SHUFFLES))]
    targets = torch.cat(shuffled, 1)
    scores = torch.stack(
        [((w @ targets) * targets).sum(0).reshape(len(shuffled), -1).sum(1) / power for w in (near, others)], 1
    )
    # one column among hundreds, as a word to be remembered, drowns in both; it is asked by itself
    bonds = (_features(raw[kept]).T @ targets.float()).square().reshape(-1, len(shuffled), y.shape[1]).sum(2)
    scores = torch.cat([scores, bonds.amax(0)[:, None].double()], 1)
    chance = scores[1:]
    deviations = ((scores[0] - chance.mean(0)) / chance.std(0).clamp_min(1e-12)).tolist()
    line = 1.0 - float((y - others @ y).square().sum() / power)
    return Signal(deviations[0], deviations[1], SEVERE * deviations[2], len(x), line)


def _features(x: Tensor) -> Tensor:
    """Each column, its square, and where it holds few codes which one it is: standardised, (n, F) float32, F limited."""
    x = x.float()
    x = (x - x.mean(0)) / x.std(0).clamp_min(1e-30)
    found = [x, x.square()]
    room = MOST_FEATURES - 2 * x.shape[1]
    for column in x.T:
        levels, codes, counts = torch.unique(column, return_inverse=True, return_counts=True)
        if not 3 <= len(levels) <= FEW_CODES or len(levels) > room:
            continue
        room -= len(levels)
        found.append(torch.nn.functional.one_hot(codes, len(levels)).float()[:, counts >= NEIGHBOURS])
    features = torch.cat(found, 1)[:, : max(MOST_FEATURES, x.shape[1])]
    features = features - features.mean(0)
    return features / features.norm(dim=0).clamp_min(1e-20)


def explained_without(x: Tensor, y: Tensor, categorical: bool) -> float:
    """Share of the targets' variance that each sample's nearest others explain, or a line or a parabola through all others.

    The best of the three; NaN where none is known. What they explain is there to be learnt; a model may well explain
    more. Classes count as one column each.

    Args:
        x: (n, D) rows.
        y: (n, k) targets; class numbers in one column where `categorical`.
    """
    x, kept = _different(x.double())
    y = _encode(y[kept].double(), categorical)  # type: ignore[assignment]
    if y is None or len(x) < LEAST // 2 or not x.shape[1]:
        return math.nan
    y = y - y.mean(0)
    far = torch.cdist(x, x)
    far.fill_diagonal_(torch.inf)
    near = y[far.topk(NEIGHBOURS, largest=False).indices].mean(1)
    alike = x @ x.T / x.shape[1]
    line, bent = left_out(alike) @ y, left_out((1 + alike).square()) @ y
    return 1.0 - min(float((y - guess).square().sum()) for guess in (near, line, bent)) / float(y.square().sum())


def left_out(kernel: Tensor) -> Tensor:
    """The weights with which a ridge regression guesses each sample's target from those of all others: (n, n)."""
    mean = kernel.diagonal().mean()
    hat = torch.linalg.solve(kernel + 0.1 * mean * torch.eye(len(kernel), dtype=kernel.dtype), kernel)
    leverage = hat.diagonal().clamp_max(0.999)
    return (hat - torch.diag(hat.diagonal())) / (1 - leverage)[:, None]


def _different(x: Tensor) -> tuple[Tensor, Tensor]:
    """Standardised columns that vary, of rows that are not copies of an earlier one; and which rows those are."""
    spread = x.std(0)
    x = x[:, spread > 1e-9 * x.abs().amax(0).clamp_min(1e-30)]
    if not x.shape[1]:
        return x, torch.arange(len(x))
    _, group = torch.unique(x, dim=0, return_inverse=True)
    first = torch.full((int(group.max()) + 1,), len(x)).scatter_reduce_(0, group, torch.arange(len(x)), "amin")
    # few different rows are all there is to a few codes; copies of richer rows would give their own targets away
    kept = first.sort().values if len(first) > len(x) // 4 else torch.arange(len(x))
    x = x[kept]
    return (x - x.mean(0)) / x.std(0).clamp_min(1e-30), kept


def _encode(y: Tensor, categorical: bool) -> Tensor | None:
    if not categorical:
        spread = y.std(0)
        return (y - y.mean(0)) / spread.clamp_min(1e-30) if len(y) > 1 else None
    values, codes = torch.unique(y[:, 0], return_inverse=True)
    if y.shape[1] != 1 or not 2 <= len(values) <= MOST_CLASSES:
        return None
    return torch.nn.functional.one_hot(codes, len(values)).double()


@dataclass(frozen=True)
class Codes:
    """A column of whole numbers, and what it says about the targets as categories and as a smooth curve."""

    levels: int
    as_categories: float  # share of the targets' variance explained by a value for each level
    as_curve: float  # and by a polynomial of up to the third degree


def code_column(column: Tensor, y: Tensor | None, categorical: bool) -> Codes | None:
    """Whether a column holds codes 0..k-1 or 1..k with 3 to 64 levels, each of them common; None if not.

    Args:
        column: (n,) values.
        y: (n, k) targets of the same samples, if known.
    """
    values = column.double()
    if len(values) < 24 or not bool((values == values.round()).all()):
        return None
    levels, codes, counts = torch.unique(values, return_inverse=True, return_counts=True)
    k = len(levels)
    if not 3 <= k <= MOST_CODES or float(levels[0]) not in (0.0, 1.0) or float(levels[-1] - levels[0]) != k - 1:
        return None
    # categories are drawn about alike; counts and pixels pile up at one end
    if float(counts.max()) > 4 * len(values) / k:
        return None
    target = _encode(y.double(), categorical) if y is not None and len(y) == len(values) else None
    if target is None or len(values) < 6 * k:
        return Codes(k, 0.0, 0.0) if k <= FEW_CODES else None
    t = (values - values.mean()) / values.std().clamp_min(1e-30)
    degree = min(3, k - 2)
    curve = torch.stack([t**p for p in range(degree + 1)], 1)
    dummies = torch.nn.functional.one_hot(codes, k).double()
    return Codes(k, _explained(dummies, target), _explained(curve, target))


def neighbours(rows: Tensor) -> float:
    """Correlation of each value of (n, places) sequences with the next one; NaN where they do not vary."""
    return float(torch.corrcoef(torch.stack([rows[:, :-1].reshape(-1), rows[:, 1:].reshape(-1)]))[0, 1])


def _explained(design: Tensor, y: Tensor) -> float:
    """Adjusted share of variance explained by least squares, no less than 0."""
    n, p = design.shape
    residual = y - design @ torch.linalg.lstsq(design, y).solution
    total = (y - y.mean(0)).square().sum()
    if not float(total) > 0 or n <= p:
        return 0.0
    return max(0.0, 1 - float(residual.square().sum() / total) * (n - 1) / (n - p))
