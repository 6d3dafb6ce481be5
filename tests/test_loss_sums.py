"""Losses that are sums: the level that a constant predictor reaches, and the verdicts that need one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_stall import stall_callbacks
from lightning_stall.hub import Hub
from lightning_stall.measure.by_hand import LossNotes
from lightning_stall.measure.loss_sums import SumLabels, addends
from lightning_stall.testing import mlp, watch


def parts(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, nn.Parameter]:
    """Predictions (40, 3), classes (40,), targets (40, 3) and a weight."""
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(40, 3, generator=g).requires_grad_()
    return (
        z,
        torch.randint(3, (40,), generator=g),
        torch.randn(40, 3, generator=g),
        nn.Parameter(torch.randn(5, 5, generator=g)),
    )


def known(loss: Tensor) -> list[tuple[str, float]] | None:
    found = addends(loss)
    return None if found is None else [(seen.kind, round(factor, 6)) for seen, factor in found.losses]


SUMS: dict[str, Any] = {
    "two tasks": lambda z, c, t, w: 0.3 * F.cross_entropy(z, c) + F.mse_loss(z, t) / 4,
    "a difference of numbers": lambda z, c, t, w: F.mse_loss(z, t) - (-F.cross_entropy(z, c)),
    "python's sum": lambda z, c, t, w: sum([F.mse_loss(z, t), F.l1_loss(z, t)]),
    "stacked": lambda z, c, t, w: torch.stack([F.mse_loss(z, t), F.cross_entropy(z, c)]).mean(),
    "by hand": lambda z, c, t, w: ((z - t) ** 2).mean() + F.cross_entropy(z, c),
    "a penalty": lambda z, c, t, w: F.cross_entropy(z, c) + 0.01 * w.abs().sum(),
    "penalties": lambda z, c, t, w: F.mse_loss(z, t) + 1e-3 * sum(p.pow(2).sum() for p in (w, w)),
}
FOUND = {
    "two tasks": [("cross-entropy", 0.3), ("mse", 0.25)],
    "a difference of numbers": [("mse", 1.0), ("cross-entropy", 1.0)],
    "python's sum": [("mse", 1.0), ("l1", 1.0)],
    "stacked": [("mse", 0.5), ("cross-entropy", 0.5)],
    "by hand": [("mse", 1.0), ("cross-entropy", 1.0)],
    "a penalty": [("cross-entropy", 1.0)],
    "penalties": [("mse", 1.0)],
}


@pytest.mark.parametrize("name", SUMS)
def test_addends(name: str) -> None:
    z, c, t, w = parts()
    with LossNotes():
        loss = SUMS[name](z, c, t, w)
    assert sorted(known(loss) or []) == sorted(FOUND[name])


@pytest.mark.parametrize("name", SUMS)
def test_the_level_of_the_best_constants(name: str) -> None:
    z, c, t, w = parts()
    sums = SumLabels()
    for _ in range(2):
        with LossNotes():
            loss = SUMS[name](z, c, t, w)
        sums.update(addends(loss))
        sums.calibrate(addends(loss), float(loss.detach()))
    assert sums.seen
    # constants found by descent; the weight stays as it is
    constant = {"z": torch.zeros(1, 3, requires_grad=True), "t": torch.zeros(1, 3, requires_grad=True)}
    apart = len(FOUND[name]) > 1  # each addend has a constant of its own
    step = torch.optim.Adam(constant.values(), 0.05)
    for _ in range(400):
        step.zero_grad()
        classes, numbers = constant["z"].expand(40, 3), constant["t" if apart else "z"].expand(40, 3)
        tasks = {
            "cross-entropy": lambda z=classes: F.cross_entropy(z, c),
            "mse": lambda z=numbers: F.mse_loss(z, t),
            "l1": lambda z=classes: F.l1_loss(z, t),
        }
        value = sum(factor * tasks[kind]() for kind, factor in FOUND[name])
        value.backward()
        step.step()
    penalty = {"a penalty": 0.01 * w.abs().sum(), "penalties": 2e-3 * w.pow(2).sum()}.get(name, torch.tensor(0.0))
    assert sums.baseline() == pytest.approx(float(value.detach() + penalty.detach()), rel=0.03)
    assert sums.floor == pytest.approx(float(penalty.detach()), abs=1e-5)


def test_what_is_no_such_sum() -> None:
    z, c, t, w = parts()
    assert addends(F.cross_entropy(z, c)) is None  # no sum
    assert addends(z.exp().mean() + z.square().mean()) is None
    assert addends(0.1 * w.abs().sum() + w.norm()) is None  # penalties alone
    for other in (z.exp().mean(), F.l1_loss(z, t) * w.sum()):  # of a factor that is learnt
        found = addends(F.mse_loss(z, t) + other)
        assert found is not None
        assert found.others
        sums = SumLabels()
        sums.update(found)
        sums.calibrate(found, 3.0)
        assert (sums.seen, sums.baseline()) == (False, None)


def test_what_has_no_level() -> None:
    z, c, t, _ = parts()
    changing = SumLabels()
    for factor in (1.0, 0.5):
        changing.update(addends(factor * F.cross_entropy(z, c) + F.mse_loss(z, t)))
    assert changing.baseline() is None
    alike = SumLabels()  # as a discriminator's, whose addends have targets of one kind each
    loss = F.mse_loss(z, torch.ones_like(z)) + F.mse_loss(2 * z, torch.zeros_like(z))
    for _ in range(2):
        alike.update(addends(loss))
        alike.calibrate(addends(loss), float(loss.detach()))
    assert alike.baseline() is None
    shifted = SumLabels()  # somebody adds a number
    loss = F.mse_loss(z, t) + F.cross_entropy(z, c) + 3.0
    shifted.update(addends(loss))
    shifted.calibrate(addends(loss), float(loss.detach()))
    assert not shifted.usable
    assert math.isnan(shifted.mastered())


class Penalised(LightningModule):
    """A classifier with the absolute values of its weights in the loss."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.net, self.weight = mlp(8, 3, 32), weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        penalty = torch.stack([p.abs().sum() for p in self.parameters()]).sum()
        return F.cross_entropy(self(x), y) + self.weight * penalty

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 3e-3)


def rows() -> DataLoader[Any]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(480, 8, generator=g)
    return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), 24, shuffle=True)


@pytest.mark.parametrize(("weight", "ill"), [(0.1, True), (1e-5, False)])
def test_a_loss_that_falls_by_its_penalty_alone(weight: float, ill: bool) -> None:
    torch.manual_seed(0)
    module = Penalised(weight)
    report = watch(module, rows(), *stall_callbacks()[:-1], max_epochs=10)
    assert [c.code for c in report.causes[:1]] == (["excess-regularization"] if ill else [])
    assert isinstance(report.hub, Hub)
    assert isinstance(report.hub.labels, SumLabels)


class Codes(LightningModule):
    """A variational autoencoder of a few directions."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.encoder, self.decoder, self.beta = nn.Linear(12, 6), nn.Linear(3, 12), beta

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x,) = batch
        mean, log_variance = self.encoder(x).chunk(2, 1)
        z = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
        return F.mse_loss(self.decoder(z), x) + self.beta * divergence

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 1e-2)


@pytest.mark.parametrize(("beta", "ill"), [(5.0, True), (0.01, False)])
def test_a_divergence_that_outweighs_the_misfit(beta: float, ill: bool) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(640, 3, generator=g) @ torch.randn(3, 12, generator=g) / 2
    data = DataLoader(TensorDataset(x), 32, shuffle=True)
    report = watch(Codes(beta), data, *stall_callbacks()[:-1], max_epochs=16)
    assert [c.code for c in report.causes[:1]] == (["excess-regularization"] if ill else [])


def test_terms_that_fall_below_nothing_outweigh_no_misfit() -> None:
    """As of a policy, whose gain is around 0, beside a critic that has learnt nothing."""
    z, _, t, _ = parts()
    for least, ill in ((0.0, True), (-0.5, False)):
        sums = SumLabels()
        found = addends(F.mse_loss(0 * z + t.mean(0), t) + z.exp().mean())
        assert found is not None
        misfit = float(F.mse_loss(t.mean(0).expand(40, 3), t))
        for other in (1.0, 0.8, least, 0.0, 0.0, 0.0):
            sums.update(found)
            sums.calibrate(found, misfit + other)
        assert (sums.outweighed() is not None) == ill
