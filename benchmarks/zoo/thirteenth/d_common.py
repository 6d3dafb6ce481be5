"""Data, small models and helpers that the modules `d_*` share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import Dataset

from benchmarks.zoo import data


class Columns(Dataset[dict[str, Tensor]]):
    """Rows of several tensors as dicts."""

    def __init__(self, **columns: Tensor) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: column[index] for name, column in self.columns.items()}


class Supervised(LightningModule):
    """A network, a loss of `(output, target)` and Adam, with or without a logged validation."""

    def __init__(
        self,
        net: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        rate: float = 3e-3,
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
        **options: Any,
    ) -> None:
        super().__init__()
        self.net = net
        self.loss = loss
        self.rate = rate
        self.optimizer = optimizer
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = self.loss(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", self.loss(self(x), y))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters(), lr=self.rate, **self.options)


def mlp(*sizes: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), activation()]
    return nn.Sequential(*layers[:-1])


def tones(seed: int, *, n: int = 1200, length: int = 64, classes: int = 6, noise: float = 0.4) -> data.Split:
    """Short recordings (N, 1, length) with one tone each, at a random phase; its pitch is the class."""
    g = data.generator(seed, 401)
    total = n + 600
    y = torch.randint(classes, (total,), generator=g)
    phase = 2 * math.pi * torch.rand(total, 1, generator=g)
    loud = 0.7 + 0.6 * torch.rand(total, 1, generator=g)
    time = torch.arange(length) / length
    x = loud * torch.sin(2 * math.pi * (3 + 3 * y[:, None]) * time + phase)
    x = (x + noise * torch.randn(total, length, generator=g))[:, None]
    return data.Split(x[:n], y[:n], x[n:], y[n:])


def waves(seed: int, *, n: int = 1200, length: int = 24, noise: float = 0.15) -> data.Split:
    """Windows (N, length, 1) of two superposed waves, and the value two steps ahead (N,), of variance near 1."""
    g = data.generator(seed, 402)
    total = n + 600
    phase = 2 * math.pi * torch.rand(total, 2, generator=g)
    size = 0.6 + 0.8 * torch.rand(total, 2, generator=g)
    time = torch.arange(length + 2, dtype=torch.float32)[None]
    series = size[:, :1] * torch.sin(2 * math.pi * time / 12 + phase[:, :1])
    series = series + size[:, 1:] * torch.sin(2 * math.pi * time / 7 + phase[:, 1:])
    seen = series[:, :length] + noise * torch.randn(total, length, generator=g)
    y = series[:, -1] + noise * torch.randn(total, generator=g)
    return data.Split(seen[:n, :, None], y[:n], seen[n:, :, None], y[n:])


class SignalNet(nn.Module):
    """Two convolutions along time, the mean over time, a linear head."""

    def __init__(self, outputs: int, width: int = 16, kernel: int = 9) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(1, width, kernel, padding=kernel // 2)
        self.conv2 = nn.Conv1d(width, width, kernel, padding=kernel // 2, stride=2)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(self.conv1(x).relu()).relu()
        return self.head(h.mean(-1))


class LastState(nn.Module):
    """A GRU over (N, T, C); a linear head on its last state."""

    def __init__(self, columns: int, outputs: int, width: int = 24) -> None:
        super().__init__()
        self.rnn = nn.GRU(columns, width, batch_first=True)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        _, state = self.rnn(x)
        return self.head(state[-1])
