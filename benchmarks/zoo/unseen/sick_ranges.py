"""Outputs that can not reach their targets, and outputs that depend on the other samples of the batch."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import Split, predict
from benchmarks.zoo.unseen._common import Fit, Recurrent, adam, batches, dense, friedman, held_out, keyword, series

# --- output-range-mismatch --------------------------------------------------------------------------------------------


def ranged(seed: int, last: nn.Module, mean: float, std: float, family: Any = None) -> Training:
    d = friedman(seed).map_targets(lambda y: mean + std * y)
    net = family or nn.Sequential(nn.Linear(10, 48), nn.ReLU(), nn.Linear(48, 1), last)
    return Training(Fit(net, F.mse_loss, adam(5e-3)), batches(d.x, d.y), d.r2, None, {"max_epochs": 15})


@sick("u-sigmoid-for-percent", "mlp", "output-range-mismatch", twin=lambda s: ranged(s, nn.Identity(), 5.0, 1.5))
def sigmoid_percent(seed: int) -> Training:
    return ranged(seed, nn.Sigmoid(), 5.0, 1.5)


@sick("u-relu-for-returns", "mlp", "output-range-mismatch", twin=lambda s: ranged(s, nn.Identity(), -1.0, 1.0))
def relu_returns(seed: int) -> Training:
    return ranged(seed, nn.ReLU(), -1.0, 1.0)


@sick("u-softplus-for-changes", "lstm", "output-range-mismatch", twin=lambda s: changes(s, nn.Identity()))
def changes(seed: int, last: nn.Module | None = None) -> Training:
    d = series(seed).map_targets(lambda y: y - 0.8)
    net = nn.Sequential(Recurrent(nn.LSTM, 1, 24, 1), last or nn.Softplus())
    val = held_out(d.x_test, d.y_test)
    return Training(Fit(net, F.mse_loss, adam(5e-3)), batches(d.x, d.y), d.r2, val, {"max_epochs": 10})


@sick("u-softmax-of-one-unit", "mlp", "output-range-mismatch", twin=lambda s: one_unit(s, nn.Sigmoid()))
def one_unit(seed: int, last: nn.Module | None = None) -> Training:
    d = data.moons(seed, n=800).map_targets(lambda y: y[:, None].float())
    net = nn.Sequential(dense(2, 32, 1), last or nn.Softmax(dim=1))
    score = lambda m: ((predict(m, d.x_test) > 0.5) == d.y_test.bool()).float().mean().item()  # noqa: E731
    return Training(Fit(net, F.binary_cross_entropy, adam(1e-2)), d.train(32), score, None, {"max_epochs": 10})


# --- batch-mixing -----------------------------------------------------------------------------------------------------


class Weighed(nn.Module):
    """Attention over the tokens whose softmax runs over `dim`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.embedding, self.score, self.head = nn.Embedding(20, 24), nn.Linear(24, 1), nn.Linear(24, 4)
        self.softmax = nn.Softmax(dim=dim)

    def forward(self, x: Tensor) -> Tensor:
        e = self.embedding(x)
        return self.head((self.softmax(4 * self.score(e)) * e).sum(1))


@sick("u-attention-over-the-batch", "attention", "batch-mixing", twin=lambda s: over_batch(s, 1))
def over_batch(seed: int, dim: int = 0) -> Training:
    d = keyword(seed, length=12)
    module = Fit(Weighed(dim), F.cross_entropy, adam(5e-3))

    def one_by_one(m: LightningModule) -> float:
        rows = zip(d.x_test, d.y_test, strict=True)
        return sum(Split(d.x, d.y, x[None], y[None]).accuracy(m) for x, y in rows) / len(d.x_test)

    return Training(module, batches(d.x, d.y), one_by_one, held_out(d.x_test, d.y_test), {"max_epochs": 18})


class Weather(LightningModule):
    """An LSTM that takes (time, batch, features) and is given (batch, time, features)."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, 24, batch_first=batch_first)
        self.head = nn.Linear(24, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return F.mse_loss(self(x), y)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@sick("u-batch-first-forgotten", "lstm", "batch-mixing", twin=lambda s: batch_first(s, True))
def batch_first(seed: int, right: bool = False) -> Training:
    d = series(seed)
    return Training(Weather(right), batches(d.x, d.y), d.r2, trainer={"max_epochs": 10})


class Folded(nn.Module):
    """Moves channels behind time by `view` instead of `transpose`, over the batch as well."""

    def __init__(self, right: bool) -> None:
        super().__init__()
        self.conv, self.head, self.right = nn.Conv1d(1, 16, 5, padding=2), nn.Linear(16 * 20, 1), right

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.conv(x.transpose(1, 2)))
        h = h.permute(0, 2, 1) if self.right else h.permute(1, 2, 0).reshape(len(x), 20, 16)
        return self.head(h.flatten(1))


@sick("u-reshape-across-samples", "cnn", "batch-mixing", twin=lambda s: across(s, True))
def across(seed: int, right: bool = False) -> Training:
    d = series(seed)
    module = Fit(Folded(right), F.mse_loss, adam(3e-3))
    return Training(module, batches(d.x, d.y, 40), d.r2, held_out(d.x_test, d.y_test), {"max_epochs": 10})
