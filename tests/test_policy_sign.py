"""A policy gradient of the wrong sign: told by the graph, and by a logged reward that falls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_stall import stall_callbacks
from lightning_stall.measure.policy_sign import raises_chances
from lightning_stall.testing import watch

NET = nn.Linear(3, 4)
X, WEIGHT = torch.randn(8, 3), torch.randn(8)
CHOSEN = torch.randint(4, (8,))


def chance() -> Tensor:
    return Categorical(logits=NET(X)).log_prob(CHOSEN)


@pytest.mark.parametrize(
    ("loss", "raised"),
    [
        (lambda: -(chance() * WEIGHT).mean(), True),
        (lambda: (-chance() * WEIGHT).sum() / 8, True),
        (lambda: (chance() * WEIGHT).mean(), False),
        (lambda: (chance() * WEIGHT).mean() * -1.0, True),
        (lambda: (chance() * WEIGHT).mean() - 0.01 * Categorical(logits=NET(X)).entropy().mean(), False),
        (lambda: (F.log_softmax(NET(X), 1)[torch.arange(8), CHOSEN] * WEIGHT).mean(), False),
        (lambda: chance().mean(), None),  # no weights
        (lambda: F.cross_entropy(NET(X), CHOSEN), None),
        (lambda: (NET(X)[:, 0] * WEIGHT).mean(), None),
        (lambda: (chance() * WEIGHT).mean() - (chance() * WEIGHT).mean(), None),  # both ways
    ],
)
def test_which_way_a_loss_moves_the_chances(loss: Any, raised: bool | None) -> None:
    assert raises_chances(loss()) is raised


class Policy(LightningModule):
    def __init__(self, sign: float, cost: bool) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 4))
        self.sign, self.cost = sign, cost

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, pays = batch
        policy = Categorical(logits=self.net(x))
        action = policy.sample()
        reward = pays.gather(1, action[:, None])[:, 0]
        self.log("reward", reward.mean())
        weight = reward.mean() - reward if self.cost else reward - reward.mean()
        return self.sign * (policy.log_prob(action) * weight).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


@pytest.mark.parametrize(
    ("sign", "cost", "expected"), [(1.0, False, ["wrong-loss-for-task"]), (-1.0, False, []), (1.0, True, [])]
)
def test_a_policy_that_learns_what_pays_least(sign: float, cost: bool, expected: list[str]) -> None:
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(4)
    x = torch.randn(1280, 6, generator=draw)
    pays = torch.tanh(x @ torch.randn(6, 4, generator=draw))
    loader = DataLoader(TensorDataset(x, pays), 64, shuffle=True)
    report = watch(Policy(sign, cost), loader, *stall_callbacks()[:-1], max_epochs=10)
    assert [cause.code for cause in report.causes] == expected
