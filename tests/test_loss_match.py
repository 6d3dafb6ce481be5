"""Losses written by hand that are, number for number, a known one: they have its level of knowing nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_stall import stall_callbacks
from lightning_stall.measure.loss_match import LossMatch, Records
from lightning_stall.testing import watch

DRAW = torch.Generator().manual_seed(3)
X = torch.randn(640, 6, generator=DRAW)
YES = (X[:, 0] + 0.3 * torch.randn(640, generator=DRAW) > 0).float()
KIND = (X @ torch.randn(6, 4, generator=DRAW)).argmax(1)
PRICE = 2 * X[:, 0] + 1 + 0.1 * torch.randn(640, generator=DRAW)


class Net(LightningModule):
    def __init__(self, outputs: int, loss: Callable[[Tensor, Tensor], Tensor], by_hand: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, outputs))
        self.criterion, self.automatic_optimization = loss, not by_hand

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.criterion(self.net(batch[0]), batch[1])
        if not self.automatic_optimization:
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def fitted(module: LightningModule, y: Tensor, epochs: int = 2, **trainer: Any) -> Any:
    loader = DataLoader(TensorDataset(X, y), 32, shuffle=True)
    return watch(module, loader, *stall_callbacks()[:-1], max_epochs=epochs, **trainer).hub


def logs(z: Tensor, y: Tensor) -> Tensor:
    p = torch.sigmoid(z[:, 0])
    return -(y * torch.log(p + 1e-7) + (1 - y) * torch.log(1 - p + 1e-7)).mean()


BY_HAND: dict[str, tuple[int, Tensor, Callable[[Tensor, Tensor], Tensor], str]] = {
    "logs of shares": (1, YES, logs, "binary cross-entropy"),
    "softplus": (1, YES, lambda z, y: (F.softplus(z[:, 0]) - y * z[:, 0]).mean(), "binary cross-entropy"),
    "where": (1, YES, lambda z, y: torch.where(y > 0, -F.logsigmoid(z[:, 0]), -F.logsigmoid(-z[:, 0])).mean(), "binary cross-entropy"),
    "Bernoulli": (1, YES, lambda z, y: -torch.distributions.Bernoulli(logits=z[:, 0]).log_prob(y).mean(), "binary cross-entropy"),
    "one-hot": (4, KIND, lambda z, y: -(F.one_hot(y, 4) * F.log_softmax(z, 1)).sum(1).mean(), "cross-entropy"),
    "log of softmax": (4, KIND, lambda z, y: -torch.log(z.softmax(1)[torch.arange(len(y)), y]).mean(), "cross-entropy"),
    "Categorical": (4, KIND, lambda z, y: -torch.distributions.Categorical(logits=z).log_prob(y).mean(), "cross-entropy"),
    "root of squares": (1, PRICE, lambda z, y: torch.sqrt((z[:, 0] - y).square().mean()), "mse"),
    "norm": (1, PRICE, lambda z, y: (z[:, 0] - y).norm() / len(y) ** 0.5, "mse"),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("by_hand", [False, True])
def test_a_loss_written_by_hand_has_the_level_of_the_known_one(name: str, by_hand: bool) -> None:
    outputs, y, loss, kind = BY_HAND[name]
    hub = fitted(Net(outputs, loss, by_hand), y)
    assert hub.labels.kind == kind
    if kind == "mse":
        level = float(y.std())
    else:
        share = torch.bincount(y.long()) / len(y)
        level = float(-(share * share.log()).sum())
    assert hub.baseline == pytest.approx(level, rel=0.03)
    assert 0.2 < hub.outcome.evidence["explained"] < 1


@pytest.mark.parametrize("trainer", [{"accumulate_grad_batches": 2}, {"gradient_clip_val": 1.0}])
def test_it_is_so_under_accumulation_and_clipping(trainer: dict[str, Any]) -> None:
    assert fitted(Net(1, logs), YES, epochs=3, **trainer).labels.kind == "binary cross-entropy"


NONE: dict[str, tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]] = {
    "hinge": (YES, lambda z, y: F.relu(1 - (2 * y - 1) * z[:, 0]).mean()),
    "weighted": (YES, lambda z, y: (F.softplus(z[:, 0]) * (1 - y) + 3 * F.softplus(-z[:, 0]) * y).mean()),
    "focal": (YES, lambda z, y: (F.softplus(-z[:, 0] * (2 * y - 1)) * torch.sigmoid(-z[:, 0] * (2 * y - 1))).mean()),
    "likelihood": (PRICE, lambda z, y: -torch.distributions.Normal(z[:, 0], 1.0).log_prob(y).mean()),
    "pinball": (PRICE, lambda z, y: torch.maximum(0.9 * (y - z[:, 0]), 0.1 * (z[:, 0] - y)).mean()),
}


@pytest.mark.parametrize("name", NONE)
def test_another_loss_is_none_of_them(name: str) -> None:
    y, loss = NONE[name]
    hub = fitted(Net(1, loss), y)
    assert hub.baseline is None
    assert hub.level.match.hopeless or not hub.level.match.found


def test_a_loss_that_was_one_for_a_while_has_no_level() -> None:
    steps = iter(range(10_000))
    module = Net(1, lambda z, y: logs(z, y) * (1.0 if next(steps) < 6 else 1.5))
    hub = fitted(module, YES)
    assert hub.level.match.hopeless
    assert hub.baseline is None


def test_weights_are_bitwise_those_of_the_run_alone() -> None:
    nets = [Net(1, logs), Net(1, logs)]
    for net, callbacks in zip(nets, ([], stall_callbacks()[:-1]), strict=True):
        torch.manual_seed(1)
        watch(net, DataLoader(TensorDataset(X, YES), 32, shuffle=True), *callbacks, max_epochs=2)
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_nothing_is_compared_that_is_not_finite() -> None:
    match, records = LossMatch(), Records()
    assert match.update(records, lambda: math.nan) is None
    assert match.update(records, lambda: 0.0) is None
    assert not match.hopeless
    assert match.update(records, lambda: 1.0) is None  # nothing was made
    assert match.hopeless


def test_records_stay_few_and_large_ones_are_left_out() -> None:
    records, x = Records(), torch.ones(4, requires_grad=True)
    for _ in range(200):
        records.add(x * 2, (x, torch.ones(4)), {})
    assert len(records.made) <= 48
    assert len(records.met) <= 12
    assert not any(t.requires_grad for t in records.made)
    records.clear()
    records.add(torch.ones(1 << 21).requires_grad_() * 1, (), {})
    assert not records.made
