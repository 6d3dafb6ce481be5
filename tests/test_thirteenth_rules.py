"""Corrupt targets, soft targets of losses written by hand, columns apart, the end of a run: each rule with its healthy twin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_stall import stall_callbacks
from lightning_stall.diagnosis import diagnose
from lightning_stall.finding import Finding
from lightning_stall.measure.batches import soft_target
from lightning_stall.outcome import LossCurve, Outcome
from lightning_stall.testing import blobs, healthy, watch
from lightning_stall.trials.plan import Trials
from lightning_stall.verdicts.inputs import Outlier, corrupt_samples

SIZE = 960
DRAW = torch.Generator().manual_seed(7)
X = torch.randn(SIZE, 6, generator=DRAW)
PRICE = 1.5 + 0.7 * X[:, 0] - 0.4 * X[:, 1].abs() + 0.2 * torch.randn(SIZE, generator=DRAW)
CLASSES = (X @ torch.randn(6, 4, generator=DRAW)).argmax(1)


@pytest.fixture(autouse=True)
def _same_weights() -> None:
    torch.manual_seed(0)


class Trained(LightningModule):
    def __init__(self, outputs: int, loss: Callable[[Tensor, Tensor], Tensor], rate: float = 5e-3) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, outputs))
        self.criterion, self.rate = loss, rate

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return self.criterion(self.model(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.rate)


class Descending(Trained):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.rate)


def causes(module: LightningModule, *tensors: Tensor, epochs: int = 6) -> list[str]:
    loader = DataLoader(TensorDataset(*tensors), 32, shuffle=True)
    report = watch(module, loader, *stall_callbacks()[:-1], max_epochs=epochs)
    return [cause.code for cause in report.causes]


def squared(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction.squeeze(1) - target).square().mean()


def test_a_few_targets_in_another_unit_are_corrupt_samples() -> None:
    price = PRICE.clone()
    price[torch.randperm(SIZE, generator=torch.Generator().manual_seed(1))[:6]] *= 100
    assert causes(Trained(1, squared), X, price)[:1] == ["corrupt-samples"]
    assert causes(Trained(1, squared), X, PRICE) == []


def test_targets_with_heavy_tails_are_not_corrupt() -> None:
    claims = (1.2 * X[:, 0] + 1.2 * torch.randn(SIZE, generator=torch.Generator().manual_seed(2))).exp()
    assert "corrupt-samples" not in causes(Trained(1, squared), X, claims)


@pytest.mark.parametrize(
    ("ratio", "hurt", "told"), [(40.0, 500.0, True), (40.0, 30.0, False), (400.0, 30.0, True), (400.0, 3.0, False)]
)
def test_what_leaps_less_far_must_hurt_more(ratio: float, hurt: float, told: bool) -> None:
    outlier = Outlier("batch[1]", "batch 3 of epoch 0", 3, 1, ratio, 10.0, hurt, 1.0)
    assert (corrupt_samples([outlier], 100) is not None) == told


LOGITS = torch.randn(8, 3, generator=DRAW)
SHARES = torch.rand(8, 3, generator=DRAW)


@pytest.mark.parametrize(
    "loss",
    [
        lambda z, t: F.cross_entropy(z, t),
        lambda z, t: -(t * F.log_softmax(z, -1)).sum(-1).mean(),
        lambda z, t: (-t * F.log_softmax(z, 1)).sum(1).mean(),
        lambda z, t: -(F.log_softmax(z, -1) * t).sum() / len(t),
        lambda z, t: -(t * F.log_softmax(z, -1)).mean(),
        lambda z, t: -torch.sum(t * torch.log(F.softmax(z, -1)), 1).mean(),
    ],
)
def test_soft_targets_are_found_however_the_loss_is_written(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    found = soft_target(loss(LOGITS.clone().requires_grad_(), SHARES))
    assert found is not None
    assert torch.equal(found, SHARES)


def by_hand(prediction: Tensor, target: Tensor) -> Tensor:
    return -(target * F.log_softmax(prediction, -1)).sum(-1).mean()


def test_soft_targets_by_hand_must_sum_to_one() -> None:
    shares = 0.8 * F.one_hot(CLASSES, 4) + 0.05
    assert causes(Descending(4, by_hand, 0.3), X, shares / 60)[:1] == ["unscaled-targets"]
    assert causes(Descending(4, by_hand, 0.3), X, shares) == []


def test_columns_apart_come_before_the_scale_of_all() -> None:
    units = torch.tensor([300.0, 1.0, 0.004, 0.003, 0.003, 0.004])
    loader = DataLoader(TensorDataset(X * units, CLASSES), 32, shuffle=True)
    module = Trained(4, F.cross_entropy, 2e-3)
    report = watch(module, loader, *stall_callbacks()[:-1], max_epochs=6)
    assert [cause.code for cause in report.causes][:1] == ["disparate-feature-scales"]


# ------------------------------------------------------------------------------------------------ at the end of a run


@pytest.mark.parametrize(
    ("explained", "steps", "strength", "told"),
    [
        (0.6, 120, 0.75, True),
        (0.85, 120, 0.78, True),
        (0.85, 120, 0.7, False),
        (0.6, 40, 0.75, False),
        (0.62, 120, 0.65, False),
        (0.55, 120, 0.65, True),
    ],
)
def test_what_is_fairly_strong_speaks_at_the_end_of_a_run_that_has_left_some_of_its_task(
    explained: float, steps: int, strength: float, told: bool
) -> None:
    hub = watch(healthy(), blobs(), max_steps=10, max_epochs=-1).hub
    hub.curve = LossCurve()
    for _ in range(steps):
        hub.curve.update(1 - explained)
    hub.outcome = Outcome("learning", steps, {"level": 1 - explained, "baseline": 1.0, "explained": explained})
    assert hub.baseline is not None
    for code, meant in (("saturated-activations", {}), ("parameters-not-optimized", {"meant": 1.0})):
        evidence = {"strength": strength, **meant}
        hub.journal.submit(Finding(code, 9, 0, "warning", "Seen.", evidence=evidence), True, False)
    hub._promote_last()
    assert [f.code for f in hub.journal.findings if f.speaks] == (["saturated-activations"] if told else [])


@pytest.mark.parametrize(("rate", "told"), [(3e-4, ["learning-rate-too-low"]), (1e-3, []), (5e-3, [])])
def test_a_run_that_creeps_is_told_so_at_its_end(rate: float, told: list[str]) -> None:
    module = Trained(4, F.cross_entropy, rate)
    report = watch(
        module, DataLoader(TensorDataset(X, CLASSES), 32, shuffle=True), *stall_callbacks()[:-1], max_epochs=6
    )
    assert [cause.code for cause in report.causes] == told
    assert (report.outcome == "learning") == (rate < 5e-3)


@pytest.mark.parametrize(("explained", "step", "kept"), [(0.6, 280, 1), (0.95, 280, 0), (0.6, 200, 0)])
def test_a_run_that_has_left_some_of_its_task_keeps_its_last_batches(explained: float, step: int, kept: int) -> None:
    hub = watch(healthy(), blobs(), max_steps=10, max_epochs=-1).hub
    hub.curve = LossCurve(horizon=300)
    hub.outcome = Outcome("learning", step, {"level": 1 - explained, "baseline": 1.0, "explained": explained})
    hub.step = step
    trials = Trials(hub)
    trials.keep((X[:8], CLASSES[:8]), 0)
    assert len(trials.kept.queue) == kept


@pytest.mark.parametrize(
    ("cause", "effect"),
    [
        ("unshuffled-data", "learning-rate-too-high"),
        ("unshuffled-data", "learning-rate-too-low"),
        ("wrong-loss-for-task", "saturated-activations"),
        ("probabilities-as-logits", "uninformative-targets"),
    ],
)
def test_what_a_cause_brings_about_comes_after_it(cause: str, effect: str) -> None:
    sure = {"trial": 1.0, "after": 0.1, "strength": 1.0} if cause == "unshuffled-data" else {"strength": 1.0}
    findings = [
        Finding(cause, 20, 0, "warning", "Seen.", evidence={"strength": 0.8}),
        Finding(effect, 220, 0, "warning", "Seen.", evidence=sure),
    ]
    ranked = diagnose(findings, Outcome("stalled", 300, {"level": 1.0, "baseline": 1.0, "explained": 0.0}))
    assert [c.code for c in ranked[:2]] == [cause, effect]
    assert ranked[1].confidence < 0.5
    alone = diagnose(findings[1:], Outcome("stalled", 300, {"level": 1.0, "baseline": 1.0, "explained": 0.0}))
    assert alone[0].confidence > 0.8
