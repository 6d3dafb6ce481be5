"""What two columns of names tell of a number together."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_stall.measure.factors import LEAST, explained_by_factors
from lightning_stall.trials.batches import without_model


def _ratings(rows: int, rank: int, noise: float, names: int = 30) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(5)
    tables = [torch.randn(names, max(rank, 1), generator=g) for _ in range(2)]
    a, b = (torch.randint(names, (rows,), generator=g) for _ in range(2))
    told = (tables[0][a] * tables[1][b]).sum(1) / max(rank, 1) ** 0.5 * (rank > 0)
    return a, b, told + noise * torch.randn(rows, generator=g)


@pytest.mark.parametrize(
    ("rank", "noise", "least", "most"), [(1, 0.1, 0.9, 1.0), (4, 0.3, 0.7, 0.95), (0, 1.0, -1.0, 0.05)]
)
def test_factors_explain_what_there_is(rank: int, noise: float, least: float, most: float) -> None:
    assert least < explained_by_factors(*_ratings(1500, rank, noise)) < most


def test_levels_without_factors_are_found() -> None:
    a, b, _ = _ratings(1500, 0, 1.0)
    g = torch.Generator().manual_seed(6)
    assert explained_by_factors(a, b, torch.randn(30, generator=g)[a] + torch.randn(30, generator=g)[b]) > 0.99


def test_names_may_be_any_whole_numbers_and_the_random_state_stays() -> None:
    a, b, y = _ratings(1500, 2, 0.1)
    before = torch.get_rng_state()
    assert explained_by_factors(a * 1000 - 7, b + 10**9, y * 1e4 + 3) == pytest.approx(explained_by_factors(a, b, y))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("rows", [0, 1, LEAST - 1])
def test_too_few_samples_tell_nothing(rows: int) -> None:
    assert math.isnan(explained_by_factors(*_ratings(rows, 2, 0.1)))


def test_too_many_names_and_constant_targets_tell_nothing() -> None:
    a, b, y = _ratings(1500, 2, 0.1)
    assert math.isnan(explained_by_factors(torch.arange(1500), b, y))
    assert math.isnan(explained_by_factors(a, b, torch.ones(1500)))


def test_columns_of_a_batch() -> None:
    a, b, y = _ratings(1500, 2, 0.1)
    apart = [(i, j, v) for i, j, v in zip(a.split(100), b.split(100), y.split(100), strict=True)]
    known = without_model(apart, 2, False)
    assert known.names == 60
    assert known.shown > 0.9
    together = [(torch.stack((i, torch.zeros_like(i), j), 1), v.unsqueeze(1)) for i, j, v in apart]
    assert without_model(together, 1, False).shown == pytest.approx(known.shown)
    yes = without_model([(i, j, (v > 0).float()) for i, j, v in apart], 2, True)
    assert yes.names == 60
    assert yes.shown > 0.3
    kinds = without_model([(i, j, v.round().abs().long()) for i, j, v in apart], 2, True)
    assert not kinds.names  # more than two: their numbers are no quantities
    words = without_model([(torch.randint(9, (100, 12)), v) for _, _, v in apart], 1, False)
    assert not words.names
    assert math.isnan(words.shown)
