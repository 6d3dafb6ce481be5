"""Data and a plain supervised module that the modules with the prefix `b_` share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from benchmarks.zoo import data


class Supervised(LightningModule):
    """`(x, y)` batches, a network, a loss, and an optimizer made by `make(parameters)`."""

    def __init__(
        self,
        net: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        make: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
    ) -> None:
        super().__init__()
        self.net = net
        self.loss = loss
        self.make = make

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = self.loss(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", self.loss(self(x), y))

    def configure_optimizers(self) -> Any:
        return self.make(self.parameters())


def waves(seed: int, *, n: int = 800, length: int = 48, noise: float = 0.4) -> data.Split:
    """Noisy tones (N, 1, length) of one of four pitches at a random phase; the pitch is the class."""
    g = data.generator(seed, 41)
    total = n + 600
    y = torch.randint(4, (total,), generator=g)
    pitch = torch.tensor([2.0, 4.0, 7.0, 11.0])[y]
    phase = 2 * math.pi * torch.rand(total, 1, generator=g)
    time = torch.arange(length) / length
    x = 1.4 * torch.sin(2 * math.pi * pitch[:, None] * time + phase) + noise * torch.randn(total, length, generator=g)
    x = x[:, None]
    return data.Split(x[:n], y[:n], x[n:], y[n:])


@dataclass(frozen=True)
class Pictures:
    """Images (N, 1, 12, 12) with the kind of the figure in each and the pixels it covers, to train and to test."""

    kinds: data.Split
    masks: data.Split


def pictures(seed: int, *, n: int = 800, noise: float = 0.35) -> Pictures:
    """A row, a column, a diagonal or a frame of ones at a random place among normal noise."""
    g = data.generator(seed, 42)
    total = n + 400
    figures = torch.zeros(4, 5, 5)
    figures[0, 2] = 1
    figures[1, :, 2] = 1
    figures[2] = torch.eye(5)
    figures[3, :, [0, 4]] = 1
    figures[3, [0, 4]] = 1
    y = torch.randint(4, (total,), generator=g)
    place = torch.randint(8, (total, 2), generator=g)
    mask = torch.zeros(total, 1, 12, 12)
    for k in range(total):
        r, c = place[k].tolist()
        mask[k, 0, r : r + 5, c : c + 5] = figures[y[k]]
    x = 2 * (mask - 0.08) + noise * torch.randn(mask.shape, generator=g)
    return Pictures(data.Split(x[:n], y[:n], x[n:], y[n:]), data.Split(x[:n], mask[:n], x[n:], mask[n:]))


def overlap(logits: Tensor, mask: Tensor) -> float:
    """Intersection over union of the pixels with positive logits and the mask; 0 where the logits are not finite."""
    found, true = logits > 0, mask > 0.5
    return (found & true).sum().item() / max((found | true).sum().item(), 1)


def sentences(seed: int, *, n: int = 900, length: int = 20, vocabulary: int = 60) -> data.Split:
    """Token ids (N, length); a third of the words comes from the topic's own twelve, the rest from all."""
    g = data.generator(seed, 43)
    total = n + 600
    y = torch.randint(4, (total,), generator=g)
    own = 12 * y[:, None] + torch.randint(12, (total, length), generator=g)
    x = torch.randint(vocabulary, (total, length), generator=g)
    x = torch.where(torch.rand(total, length, generator=g) < 0.33, own, x)
    return data.Split(x[:n], y[:n], x[n:], y[n:])


@dataclass(frozen=True)
class Graph:
    """Nodes with features (N, 16), a community each, edges as a 0/1 matrix with self loops, and who is labelled."""

    x: Tensor
    edges: Tensor
    y: Tensor
    known: Tensor

    def accuracy(self, logits: Tensor) -> float:
        return data.accuracy(logits[~self.known], self.y[~self.known])


def community(seed: int, *, n: int = 200) -> Graph:
    """Four communities, densely linked inside, and noisy features of the community."""
    g = data.generator(seed, 44)
    y = torch.randint(4, (n,), generator=g)
    same = y[:, None] == y[None]
    chance = torch.where(same, 0.2, 0.008)
    upper = torch.triu((torch.rand(n, n, generator=g) < chance).float(), 1)
    centres = torch.randn(4, 16, generator=g)
    x = 0.8 * centres[y] + torch.randn(n, 16, generator=g)
    known = torch.rand(n, generator=g) < 0.5
    return Graph(x, upper + upper.T + torch.eye(n), y, known)


def load_curve(seed: int, *, n: int = 1200, window: int = 24) -> data.Split:
    """Windows (N, window) of a daily load with two periods and noise of memory, and the next value (N, 1)."""
    g = data.generator(seed, 45)
    total = n + 500 + window + 50
    time = torch.arange(total, dtype=torch.float32)
    shocks = 0.35 * torch.randn(total, generator=g)
    series = torch.zeros(total)
    level = 0.0
    for k in range(total):
        level = 0.6 * level + shocks[k].item()
        series[k] = level
    series = series + torch.sin(2 * math.pi * time / 12) + 0.6 * torch.sin(2 * math.pi * time / 31)
    series = (series - series[:n].mean()) / series[:n].std()
    windows = series.unfold(0, window + 1, 1)[: n + 500]
    x, y = windows[:, :-1], windows[:, -1:]
    return data.Split(x[:n], y[:n], x[n:], y[n:])


@dataclass(frozen=True)
class Ratings:
    """Pairs of user and item (N, 2) and what the one gave the other (N,), to train and to test."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    users: int = 60
    items: int = 50


def ratings(seed: int, *, n: int = 2000) -> Ratings:
    """Products of three hidden tastes, plus what a user and an item are worth by themselves, plus noise."""
    g = data.generator(seed, 46)
    u, v = torch.randn(60, 3, generator=g), torch.randn(50, 3, generator=g)
    bu, bv = 0.5 * torch.randn(60, generator=g), 0.5 * torch.randn(50, generator=g)
    pairs = torch.stack([torch.randint(60, (n + 600,), generator=g), torch.randint(50, (n + 600,), generator=g)], 1)
    i, j = pairs.T
    r = 0.7 * (u[i] * v[j]).sum(1) + bu[i] + bv[j] + 0.2 * torch.randn(n + 600, generator=g)
    r = (r - r[:n].mean()) / r[:n].std()
    return Ratings((pairs[:n], r[:n]), (pairs[n:], r[n:]))


def rings(seed: int, *, n: int = 900, columns: int = 6) -> data.Split:
    """Standard normal columns; the class is the third of the distance from the origin in the first three."""
    g = data.generator(seed, 47)
    x = torch.randn(n + 800, columns, generator=g)
    radius = x[:, :3].norm(dim=1)
    y = (radius > 1.24).long() + (radius > 1.83).long()
    return data.Split(x[:n], y[:n], x[n:], y[n:])
