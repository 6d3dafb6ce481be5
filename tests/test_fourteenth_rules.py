"""What was wrong from the start, rates that come back, batches left out, tables that are frozen: each rule with its twin."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_stall import InputHealth, stall_callbacks
from lightning_stall.diagnosis import diagnose
from lightning_stall.finding import Finding
from lightning_stall.measure.class_numbers import Indices
from lightning_stall.measure.fill_values import across_batches, inside_batch
from lightning_stall.outcome import LossCurve, Outcome, judge
from lightning_stall.testing import watch


@pytest.fixture(autouse=True)
def _same_weights() -> None:
    torch.manual_seed(0)


def causes(module: LightningModule, *tensors: Tensor, epochs: int = 6) -> list[str]:
    loader = DataLoader(TensorDataset(*tensors), 32, shuffle=True)
    report = watch(module, loader, *stall_callbacks()[:-1], max_epochs=epochs)
    return [cause.code for cause in report.causes]


# --- units at their limits in a run that gets on all the same ---------------------------------------------------------


class Squashed(LightningModule):
    def __init__(self, gain: float) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 1))
        for layer in (self.net[0], self.net[2]):
            assert isinstance(layer, nn.Linear)
            nn.init.orthogonal_(layer.weight, gain)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return F.mse_loss(self.net(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


@pytest.mark.parametrize(("gain", "expected"), [(24.0, True), (1.0, False)])
def test_units_that_start_at_their_limits_are_told_of_a_run_that_ends_short(gain: float, expected: bool) -> None:
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(960, 8, generator=draw)
    y = torch.sin(x[:, :1]) + 0.5 * x[:, 1:2] * x[:, 2:3].tanh()
    found = causes(Squashed(gain), x, y / y.std())
    assert bool(found) is expected
    assert not found or found[0] in ("saturated-activations", "bad-initialization")


def _found(code: str, strength: float, **evidence: float) -> Finding:
    return Finding(
        step=4,
        epoch=0,
        code=code,
        severity="warning",
        summary="",
        evidence={"strength": strength, **evidence},
    )


@pytest.mark.parametrize(
    ("explained", "strength", "said"),
    [(0.85, 0.8, True), (0.93, 0.8, False), (0.93, 0.97, True), (0.98, 0.97, False), (0.85, 0.7, False)],
)
def test_what_was_strongly_wrong_from_the_start_does_not_pass_before_the_task_is_mastered(
    explained: float, strength: float, said: bool
) -> None:
    outcome = Outcome("converged", 300, {"baseline": 1.0, "explained": explained, "level": 1 - explained})
    assert bool(diagnose([_found("saturated-activations", strength)], outcome)) is said


def test_frozen_tables_are_no_cause_once_half_is_learnt_and_frozen_layers_are() -> None:
    outcome = Outcome("converged", 300, {"baseline": 1.0, "explained": 0.6, "level": 0.4})
    assert not diagnose([_found("parameters-not-optimized", 1.0, meant=1.0, tables=1.0)], outcome)
    assert diagnose([_found("parameters-not-optimized", 1.0, meant=1.0)], outcome)


# --- a rate that comes back -------------------------------------------------------------------------------------------


def restarted(again: float, cycle: int = 120) -> LossCurve:
    """A loss below zero that comes down with a cosine, and leaps as the rate comes back in one step to `again`."""
    curve = LossCurve(horizon=3.0 * cycle)
    draw = torch.Generator().manual_seed(1)
    for step in range(cycle + 20):
        phase = step % cycle
        first = step < cycle
        rate = (1.0 if first else again) * 0.5 * (1 + math.cos(math.pi * phase / cycle))
        leap = 0.0 if first else (8.0 if phase < 8 else 2.0)
        level = 1.2 - 2.2 * (1 - math.exp(-step / 25)) + leap
        curve.update(level + 0.15 * float(torch.randn((), generator=draw)), rate)
    return curve


def test_a_warm_restart_is_no_swing() -> None:
    assert restarted(1.0).restarted
    assert judge(restarted(1.0), 140).state not in ("oscillating", "diverging")


def test_a_rate_that_was_never_so_high_excuses_nothing() -> None:
    assert not restarted(5.0).restarted


def test_rates_that_alternate_from_step_to_step_come_back_to_nothing() -> None:
    curve = LossCurve()
    for step in range(200):
        curve.update(1.0, 0.1 if step % 2 else 0.001)
    assert not curve.restarted


# --- batches left out -------------------------------------------------------------------------------------------------


class Careful(LightningModule):
    """Makes no loss of a batch that gives none."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        x, y = batch
        loss = F.mse_loss(self.net(x), y)
        return loss if loss.isfinite() else None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@pytest.mark.parametrize(("share", "expected"), [(0.04, ["nonfinite-inputs"]), (0.001, []), (0.0, [])])
@pytest.mark.filterwarnings("ignore:.*`training_step` returned `None`.*")
def test_batches_that_train_nothing_for_a_few_values(share: float, expected: list[str]) -> None:
    draw = torch.Generator().manual_seed(5)
    x = torch.randn(960, 6, generator=draw)
    y = x[:, :1].sin() + 0.3 * x[:, 1:2]
    x[torch.rand(960, generator=draw) < share, 2] = torch.nan
    assert [c for c in causes(Careful(), x, y) if c != "training-too-short"] == expected


# --- class numbers in no order ----------------------------------------------------------------------------------------


def _indices(order: list[int], right: float) -> Indices:
    draw = torch.Generator().manual_seed(0)
    place = torch.randint(5, (400,), generator=draw)
    x = torch.cat([place[:, None] + 0.9 * torch.randn(400, 1, generator=draw), torch.randn(400, 3, generator=draw)], 1)
    y = torch.tensor(order)[place].float()
    indices = Indices(rows=[x], kinds=[y], right=[right, right])
    indices.counts.update(y.tolist())
    return indices


@pytest.mark.parametrize(
    ("order", "right", "short", "told"),
    [
        ([3, 0, 4, 1, 2], 0.6, True, True),
        ([3, 0, 4, 1, 2], 0.6, False, False),
        ([3, 0, 4, 1, 2], 0.95, True, False),  # its rounded answers are right
        ([0, 1, 2, 3, 4], 0.6, True, False),  # a scale
    ],
)
def test_class_numbers_without_an_order(order: list[int], right: float, short: bool, told: bool) -> None:
    assert (_indices(order, right).unordered(short) is not None) is told


# --- values that stand for missing ones -------------------------------------------------------------------------------


def _sizes(*largest: float) -> Tensor:
    return torch.tensor(largest)[:, None]


USUAL = [2.1, 2.4, 1.9, 2.2, 2.8, 2.0]


@pytest.mark.parametrize(
    ("largest", "found"),
    [
        ([*USUAL, 999.0, 999.0, 999.0], True),
        ([*USUAL, 999.0, 999.0], False),  # too few to tell
        ([*USUAL, 999.0, 640.0, 870.0], False),  # far outside, and no two alike
        ([*USUAL, 999.0, 999.0, 999.0, 150.0], False),  # something between them: a heavy tail that is cut off
        ([*USUAL, 12.0, 12.0, 12.0], False),  # not far
        ([0.0] * 6 + [1.0] * 3, False),  # a flag that is seldom set
        ([2.0] * 6 + [900.0] * 3, False),  # two settings
    ],
)
def test_one_value_far_outside_all_others_again_and_again(largest: list[float], found: bool) -> None:
    one_epoch, three = [0] * len(largest), [i // 3 for i in range(len(largest))]
    assert across_batches(_sizes(*largest[::-1][::2], *largest[::-1][1::2]), range(len(largest)), three) is None
    value = across_batches(_sizes(*largest), range(len(largest)), one_epoch)
    assert (value is not None) is found
    assert value is None or (value.size == 999.0 and value.with_it == (6, 7, 8))


def test_such_a_value_inside_one_batch() -> None:
    x = torch.randn(30, 1, 8, 8)
    x[3, :, 5:, 5:] = -9999.0
    assert 2 < inside_batch(x, 9999.0) < 10
    everywhere = torch.cat([torch.randn(30, 3), torch.full((30, 1), 1.7e9)], 1)
    assert not inside_batch(everywhere, 1.7e9)  # a column of its own
    mask = torch.zeros(30, 8)
    mask[2, 4:] = -1e9
    assert not inside_batch(mask, 1e9)  # nothing beside it


class Plain(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return F.mse_loss(self.net(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@pytest.mark.parametrize("value", [-999.0, 0.0])
def test_marks_of_missing_readings(value: float) -> None:
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(1280, 6, generator=draw)
    y = x[:, :1].sin() + 0.4 * x[:, 1:2] + 0.1 * torch.randn(1280, 1, generator=draw)
    x[torch.rand(1280, generator=draw) < 0.015, 3] = value
    found = causes(Plain(), x, y, epochs=5)
    assert found[:1] == (["corrupt-samples"] if value else [])


@pytest.mark.filterwarnings("ignore:.*`training_step` returned `None`.*")
def test_what_would_be_left_out_is_filled_where_that_is_wanted() -> None:
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(5)
    x = torch.randn(960, 6, generator=draw)
    y = x[:, :1].sin() + 0.3 * x[:, 1:2]
    holed = x.clone()
    holed[torch.rand(960, generator=draw) < 0.05, 2] = torch.nan
    loader = DataLoader(TensorDataset(holed, y), 32, shuffle=True)
    module = Careful()
    report = watch(module, loader, InputHealth(auto_remedy=True), max_epochs=8)
    assert any(f.code == "nonfinite-inputs" and f.speaks and f.remedy for f in report.findings)
    assert float(F.mse_loss(module.net(x), y).detach()) < 0.2 * float(y.var())


# --- classes under a loss written by hand -----------------------------------------------------------------------------


class ByHand(LightningModule):
    def __init__(self, weight: float) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 1))
        self.weight = weight

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        z = self.net(x).squeeze(-1)
        return (self.weight * y * F.softplus(-z) + (1 - y) * F.softplus(z)).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


@pytest.mark.parametrize(("weight", "told"), [(1.0, True), (30.0, False)])
def test_rare_classes_under_a_loss_written_by_hand(weight: float, told: bool) -> None:
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(6)
    y = (torch.rand(4000, generator=draw) < 0.03).float()
    x = torch.randn(4000, 6, generator=draw)
    x[:, 0] += 0.7 * y
    loader = DataLoader(TensorDataset(x, y), 40, shuffle=True)
    report = watch(ByHand(weight), loader, *stall_callbacks()[:-1], max_epochs=2)
    found = [cause for cause in report.causes if cause.code == "class-imbalance"]
    assert bool(found) is told
    assert not found or (
        report.causes[0].code == "class-imbalance" and found[0].summary.startswith("Class 0 makes up 9")
    )
