"""What two columns of names tell of a number together, as a table of few factors would have it.

Matrix factorisation by alternating least squares with a ridge (Koren, Bell and Volinsky 2009): each name gets a level and
a few factors, and a sample's number is the product of those of its two names. Judged on samples that were not fitted.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

FACTORS = (2, 6)
ROUNDS = 12
RIDGE = 1.0  # in units of the spread of what is explained
LEAST = 400  # samples
MOST = 8192
OFTEN = 6  # samples a name, on average, of those fitted
JUDGED = 4  # every such sample is kept apart to judge


def explained_by_factors(first: Tensor, second: Tensor, y: Tensor) -> float:
    """Share of the variance of held-out targets that few factors of two names explain.

    Args:
        first, second: names as whole numbers, each of shape (N,).
        y: targets as numbers, shape (N,).

    Returns:
        The better of what few and some factors explain; NaN where samples are too few for their names.
    """
    first, a = torch.unique(first[:MOST].cpu(), return_inverse=True)
    second, b = torch.unique(second[:MOST].cpu(), return_inverse=True)
    y = y[:MOST].detach().cpu().double()
    n = len(y)
    if n < LEAST or min(len(first), len(second)) < 3 or n < OFTEN * max(len(first), len(second)):
        return math.nan
    judged = torch.arange(n) % JUDGED == 0
    spread = float(y[judged].var())
    if not spread > 0:
        return math.nan
    mean, std = float(y[~judged].mean()), float(y[~judged].std())
    z = (y - mean) / max(std, 1e-12)
    best = -math.inf
    for factors in FACTORS:
        made = _fit(a, b, z, ~judged, (len(first), len(second)), factors)
        best = max(best, 1 - float((z - made)[judged].square().mean()) * std**2 / spread)
    return best


def _fit(a: Tensor, b: Tensor, z: Tensor, fitted: Tensor, sizes: tuple[int, int], factors: int) -> Tensor:
    """What the factors that fit some of the samples make of all of them, shape (N,)."""
    generator = torch.Generator().manual_seed(0)
    # the last two columns: this table's level times 1, and 1 times the other's
    u = torch.randn(sizes[0], factors + 2, generator=generator, dtype=torch.float64)
    v = torch.randn(sizes[1], factors + 2, generator=generator, dtype=torch.float64)
    u[:, -2], u[:, -1], v[:, -2], v[:, -1] = 0.0, 1.0, 1.0, 0.0
    for _ in range(ROUNDS):
        _solve(u, v[b], a, z, fitted, len(u[0]) - 1)
        _solve(v, u[a], b, z, fitted, len(v[0]) - 2)
    return (u[a] * v[b]).sum(1)


def _solve(table: Tensor, other: Tensor, names: Tensor, z: Tensor, fitted: Tensor, fixed: int) -> None:
    """Ridge regression for each row of a table on its partners' rows; the column `fixed` stays 1."""
    free = [i for i in range(table.shape[1]) if i != fixed]
    x, y, names = other[fitted][:, free], (z - other[:, fixed])[fitted], names[fitted]
    rows, width = len(table), len(free)
    gram = torch.zeros(rows, width, width, dtype=x.dtype).index_add_(0, names, x[:, :, None] * x[:, None, :])
    side = torch.zeros(rows, width, dtype=x.dtype).index_add_(0, names, x * y[:, None])
    table[:, free] = torch.linalg.solve(gram + RIDGE * torch.eye(width, dtype=x.dtype), side)
