"""Rules that came with the ninth part of the zoo: each where it speaks, and where it must not."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_stall import LossCheck, OptimizerHealth, PlateauWatch, StallReport, stall_callbacks
from lightning_stall.detectors import Overfitting
from lightning_stall.finding import Finding
from lightning_stall.journal import Journal
from lightning_stall.outcome import LossCurve
from lightning_stall.testing import watch
from lightning_stall.trials.pairing import Pairing
from lightning_stall.trials.records import Arm, Fit, Fits, Situation
from lightning_stall.trials.verdict import calmed
from lightning_stall.verdicts.inputs import InputNumbers, lost_columns
from lightning_stall.verdicts.schedules import wrong_unit
from lightning_stall.verdicts.targets import class_imbalance


def spoken(report: StallReport) -> list[str]:
    return [f.code for f in report.findings if f.speaks]


def rows(x: Tensor, y: Tensor, size: int = 32) -> DataLoader[Any]:
    return DataLoader(TensorDataset(x, y), size, shuffle=True)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Regression(LightningModule):
    """A squared error; the first layer is frozen for the first `asleep` steps, and the rate falls by `gamma` a step."""

    def __init__(self, net: nn.Module, rate: float, asleep: int = 0, gamma: float = 1.0) -> None:
        super().__init__()
        self.net, self.rate, self.asleep, self.gamma = net, rate, asleep, gamma

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.asleep:
            self.net[0].requires_grad_(self.global_step >= self.asleep)  # type: ignore[index]
        return F.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.net.parameters(), self.rate)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, self.gamma)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


# ------------------------------------------------------------------------------------------------ steps that were long


def fit(level: float, spread: float = 0.01, **arm: Any) -> Fit:
    after = tuple(level + spread * (i % 2) for i in range(6))
    return Fit(Arm(**arm), 100, 0.1, (level,) * 100, after, after)


RESTS = Situation(
    state="converged", level=(0.40, 0.41) * 3, baseline=1.0, floor=0.0, start=5.0, explained=0.6, rate=0.3, gained=0.9
)


@pytest.mark.parametrize(
    ("now", "low", "fresh", "told"),
    [
        (0.41, 0.25, 0.45, ["learning-rate-too-high"]),  # from its own weights
        (0.41, 0.40, 0.20, ["learning-rate-too-high"]),  # from fresh ones
        (0.41, 0.36, 0.42, []),  # less than a fifth of what was left
        (0.22, 0.21, 0.30, []),  # its own rate does it too, in as many steps
    ],
)
def test_a_calmer_run_is_told_by_a_fifth_of_what_was_left(
    now: float, low: float, fresh: float, told: list[str]
) -> None:
    fits = Fits([fit(now), fit(low, factor=0.1), fit(fresh, start="fresh", factor=0.1)])
    assert [c.code for c in calmed(RESTS, fits)] == told


def test_a_noisy_comparison_tells_nothing() -> None:
    fits = Fits([fit(0.41), fit(0.25, spread=0.6, factor=0.1)])
    assert calmed(RESTS, fits) == []


def wavy() -> tuple[Tensor, Tensor]:
    x = randn(800, 6)
    return x, torch.sin(2 * x[:, :1]) + 0.5 * x[:, 1:2] * x[:, 2:3]


def test_a_rate_that_brings_a_run_to_rest_half_way() -> None:
    def net() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 48), nn.Tanh(), nn.Linear(48, 1))

    ill = watch(Regression(net(), 0.5), rows(*wavy()), *stall_callbacks()[:-1], max_epochs=12)
    assert ill.causes[0].code == "learning-rate-too-high"
    well = watch(Regression(net(), 5e-3), rows(*wavy()), *stall_callbacks()[:-1], max_epochs=12)
    assert "learning-rate-too-high" not in spoken(well)


# ------------------------------------------------------------------------------------------------ what may be meant


def finding(code: str, **evidence: float) -> Finding:
    return Finding(code, 1, 0, "warning", "seen", evidence=evidence)


def test_what_may_be_meant_is_told_only_of_a_poor_run() -> None:
    for meant in (True, False):
        journal = Journal()
        journal.submit(finding("parameters-not-optimized", strength=1.0, meant=1.0), statistical=True)
        journal.submit(finding("saturated-activations", strength=1.0), statistical=True)
        told = {f.code for f in journal.promote(9, 0, least=0.9, meant=meant)}
        assert told == {"saturated-activations", *(["parameters-not-optimized"] if meant else [])}


def test_a_layer_that_is_frozen_for_a_while_is_taken_back() -> None:
    x = randn(640, 6)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 1))
    module = Regression(net, 1e-3, asleep=60)
    report = watch(module, rows(x, x[:, :1]), OptimizerHealth(), max_epochs=8, log_every_n_steps=10)
    (held,) = [f for f in report.findings if f.code == "parameters-not-optimized"]
    assert held.severity == "info"
    assert "parameters-not-optimized" not in report.hub.journal.held
    assert "parameters-not-optimized" not in report.hub.journal.told


def test_a_rate_that_is_spent_where_the_task_is_learnt() -> None:
    x = randn(640, 6)
    torch.manual_seed(0)
    module = Regression(nn.Linear(6, 1), 0.1, gamma=0.93)
    report = watch(module, rows(x, x @ randn(6, 1, seed=1)), OptimizerHealth(), max_epochs=10)
    assert report.hub.outcome.evidence["explained"] > 0.9
    assert spoken(report) == []
    slow = Regression(nn.Linear(6, 1), 0.005, gamma=0.93)
    assert "learning-rate-decayed-early" in spoken(watch(slow, rows(x, x @ randn(6, 1, seed=1)), OptimizerHealth()))


def test_targets_that_nearly_all_share_tell_nothing() -> None:
    same = {"own": 0.5, "others": 0.5, "error": 0.01, "samples": 200}
    assert Pairing(**same).learnt is False
    assert Pairing(**same, changed=0.06).learnt is None
    assert Pairing(own=0.2, others=0.5, error=0.01, samples=200, changed=0.06).learnt is True


# ------------------------------------------------------------------------------------------------ models and data


@pytest.mark.parametrize(("width", "outputs", "told"), [(2, 12, True), (2, 4, False), (4, 20, False)])
def test_a_head_that_makes_many_numbers_of_two_features(width: int, outputs: int, told: bool) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, width), nn.Tanh(), nn.Linear(width, outputs))
    x = randn(320, 6)
    report = watch(Regression(net, 1e-3), rows(x, randn(320, outputs, seed=2)), LossCheck(), max_epochs=1)
    assert ("insufficient-capacity" in [f.code for f in report.findings]) == told


def test_two_columns_of_a_table_are_no_narrow_head() -> None:
    net = nn.Linear(2, 12)
    report = watch(Regression(net, 1e-3), rows(randn(320, 2), randn(320, 12, seed=2)), LossCheck(), max_epochs=1)
    assert report.findings == []


def table(still: dict[int, float], nonzero: float = 1.0, columns: int = 10) -> InputNumbers:
    mean = [still.get(i, 0.1) for i in range(columns)]
    std = [0.0 if i in still else 1.0 for i in range(columns)]
    return InputNumbers("x", batches=20, rows=600, rms=nonzero**0.5, nonzero_rms=1.0, mean=mean, std=std)


@pytest.mark.parametrize(
    ("still", "nonzero", "strength"),
    [
        (dict.fromkeys(range(4), -1.0), 1.0, 0.6),  # a default
        (dict.fromkeys(range(6), -1.0), 1.0, 0.7),  # most of them
        (dict.fromkeys(range(2), -1.0), 1.0, None),  # two may be so
        (dict.fromkeys(range(4), 0.0), 0.6, 0.6),  # no key agreed, and the others are never 0
        (dict.fromkeys(range(4), 0.0), 0.3, None),  # nothing was counted, as often in the others
        ({0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0}, 1.0, None),  # each of its own
    ],
)
def test_columns_that_a_default_has_filled(still: dict[int, float], nonzero: float, strength: float | None) -> None:
    found = lost_columns(table(still, nonzero))
    assert (None if found is None else found.evidence["strength"]) == strength


def test_a_class_that_is_still_named_alone() -> None:
    counts, predicted = [950.0, 50.0], [500.0, 0.0]
    young, settled = (class_imbalance(counts, predicted, False, s) for s in (False, True))
    assert young is not None
    assert settled is not None
    assert young.evidence["strength"] < settled.evidence["strength"] == 0.9
    assert class_imbalance(counts, [480.0, 20.0], False, True) is None


def test_a_validation_left_far_behind() -> None:
    for last, held in ((0.45, True), (0.2, False)):
        watching = Overfitting()
        for i in range(16):
            watching.update(max(last, 1 - 0.2 * i), max(0.02, 1 - 0.25 * i), 1.0)
        assert watching.left_behind(1.0) == held


# ------------------------------------------------------------------------------------------------ short and empty


def test_a_run_of_which_nothing_can_be_said_was_too_short() -> None:
    x = randn(2000, 8)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
    hard = torch.sin(3 * x[:, :1]) * x[:, 1:2]
    report = watch(Regression(net, 3e-4), rows(x, hard), PlateauWatch(), max_epochs=1)
    assert report.hub.outcome.state == "too early"
    assert [c.code for c in report.causes] == ["training-too-short"]


def test_a_curve_without_a_loss_has_no_level() -> None:
    curve = LossCurve()
    assert math.isnan(curve.level(20))
    assert math.isnan(curve.between(0, 5))
    for loss in (3.0, 2.0, 1.0, 1.0):
        curve.update(loss)
    assert curve.between(-4, 1) == 3.0


def test_a_schedule_in_a_run_without_epochs() -> None:
    assert wrong_unit("CosineAnnealingLR", 100.0, "step", 400.0, 400.0, 0.0) is None
    assert wrong_unit("CosineAnnealingLR", 10.0, "step", 400.0, 400.0, 10.0) is not None
