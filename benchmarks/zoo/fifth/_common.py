"""Tasks, scores and small nets of the fifth part. Each task is a function of the seed; inputs are float32."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.zoo import data
from benchmarks.zoo.data import Split, generator, predict

Score = Callable[[LightningModule], float]
Loss = Callable[[Tensor, Tensor], Tensor]
TIME = "seconds a step separate it from its twin, not the score"


# --- scores -----------------------------------------------------------------------------------------------------------


def tame(value: float) -> float:
    """Not below -10, and -10 for NaN, so that two scores can always be compared."""
    return -10.0 if math.isnan(value) else max(value, -10.0)


def r2_of(d: Split) -> Score:
    return lambda module: tame(data.r2(predict(module, d.x_test), d.y_test))


def right(d: Split) -> Score:
    """Share of right answers among all places (the classes are the last dimension)."""
    return lambda module: tame(data.accuracy(predict(module, d.x_test), d.y_test))


def recalls(d: Split, decide: Callable[[Tensor], Tensor] = lambda z: z.argmax(-1)) -> Score:
    """Recall averaged over the classes."""

    def score(module: LightningModule) -> float:
        answer = decide(predict(module, d.x_test))
        return torch.stack([(answer[d.y_test == k] == k).float().mean() for k in d.y_test.unique()]).mean().item()

    return score


def minus(d: Split, loss: Loss) -> Score:
    return lambda module: tame(-loss(predict(module, d.x_test), d.y_test).item())


# --- loaders and nets -------------------------------------------------------------------------------------------------


def pairs(x: Tensor, y: Tensor, size: int = 32, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(x, y), batch_size=size, **{"shuffle": True, **options})


def held(d: Split, size: int = 250) -> DataLoader[Any]:
    return DataLoader(TensorDataset(d.x_test, d.y_test), batch_size=size)


def named(size: int = 32, shuffle: bool = True, **columns: Tensor) -> DataLoader[Any]:
    """Batches that are dicts of these columns."""
    rows: Any = [{k: v[i] for k, v in columns.items()} for i in range(len(next(iter(columns.values()))))]
    return DataLoader(rows, batch_size=size, shuffle=shuffle)


def mlp(*widths: int, act: Callable[[], nn.Module] | None = nn.ReLU) -> nn.Sequential:
    """Linear layers with `act` between them and nothing after the last."""
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers.append(nn.Linear(a, b))
        if act is not None:
            layers.append(act())
    return nn.Sequential(*layers[: len(layers) - (act is not None)])


# --- tasks ------------------------------------------------------------------------------------------------------------


def houses(seed: int, n: int = 1000) -> Split:
    """Homes: living area (m2), rooms, age, km to the centre, interest (a share), income (a year); price (N, 1)."""
    g = generator(seed, 51)
    z = torch.randn(n + 600, 6, generator=g)
    x = torch.tensor([110.0, 4.0, 35.0, 9.0, 0.03, 42000.0]) + z * torch.tensor([35.0, 1.2, 18.0, 4.0, 0.008, 11000.0])
    signal = z[:, 0] + 0.5 * z[:, 1] - 0.6 * z[:, 2] * (z[:, 3] > 0) - 0.8 * z[:, 4] + 0.7 * torch.sin(1.5 * z[:, 5])
    y = 350_000 + 60_000 * (signal + 0.3 * torch.randn(n + 600, generator=g))[:, None]
    return Split(x[:n], y[:n], x[n:], y[n:])


def levelled(d: Split) -> Split:
    """Targets to mean 0 and deviation 1."""
    mean, std = d.y.mean(), d.y.std()
    return d.map_targets(lambda t: (t - mean) / std)


def marks(seed: int, n: int = 800, noise: float = 0.3) -> Split:
    """Noisy 12 x 12 pictures (N, 1, 12, 12) of one of five strokes at a random place."""
    g = generator(seed, 52)
    total = n + 500
    y = torch.randint(5, (total,), generator=g)
    row, column = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    cy, cx = (3.0 + torch.randint(6, (total, 1, 1), generator=g) for _ in range(2))
    dy, dx = row - cy, column - cx
    near = torch.maximum(dy.abs(), dx.abs()) <= 3
    distance = (dy**2 + dx**2).sqrt()
    drawn = torch.stack(
        [near & (dy == 0), near & (dx == 0), near & (dy == dx), near & (dy == -dx), (distance - 2.5).abs() < 0.6]
    ).float()
    x = (drawn[y, torch.arange(total)] + noise * torch.randn(total, 12, 12, generator=g))[:, None]
    return Split(x[:n], y[:n], x[n:], y[n:])


def nuclei(seed: int, n: int = 300, noise: float = 0.4, most: float = 3.0) -> Split:
    """Noisy 16 x 16 pictures with one to three bright discs, and their masks (N, 1, 16, 16)."""
    g = generator(seed, 53)
    total = n + 100
    row, column = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    mask = torch.zeros(total, 16, 16)
    for k in range(3):
        cy, cx = (2 + 12 * torch.rand(total, 1, 1, generator=g) for _ in range(2))
        radius = 1.2 + (most - 1.2) * torch.rand(total, 1, 1, generator=g)
        there = (torch.rand(total, 1, 1, generator=g) < 0.6) | (k == 0)
        mask = torch.maximum(mask, (((row - cy) ** 2 + (column - cx) ** 2 < radius**2) & there).float())
    x = mask + noise * torch.randn(total, 16, 16, generator=g)
    return Split(x[:n, None], mask[:n, None], x[n:, None], mask[n:, None])


def notes(seed: int, n: int = 1000, length: int = 16, words: int = 120, clear: float = 1.0) -> Split:
    """Texts (N, length) of word ids of four topics; three words of each come from the topic's own fifteen."""
    g = generator(seed, 54)
    total = n + 600
    y = torch.randint(4, (total,), generator=g)
    x = torch.randint(60, words, (total, length), generator=g)
    for _ in range(3):
        topic = torch.where(torch.rand(total, generator=g) < clear, y, torch.randint(4, (total,), generator=g))
        x[torch.arange(total), torch.randint(length, (total,), generator=g)] = 15 * topic + torch.randint(
            15, (total,), generator=g
        )
    return Split(x[:n], y[:n], x[n:], y[n:])


def meter(seed: int, n: int = 800, length: int = 24) -> Split:
    """Windows (N, length, 1) of a load with two rhythms and noise; the next value (N, 1); deviation about 1."""
    g = generator(seed, 55)
    time = torch.arange(n + 400 + length + 1.0)
    wave = torch.sin(2 * math.pi * time / 12) + 0.6 * torch.sin(2 * math.pi * time / 31 + 1)
    wave = wave * (1 + 0.3 * torch.sin(2 * math.pi * time / 90)) + 0.15 * torch.randn(len(time), generator=g)
    windows = wave.unfold(0, length + 1, 1)[: n + 400]
    x, y = windows[:, :-1, None], windows[:, -1:]
    return Split(x[:n], y[:n], x[n:], y[n:])


def dots(seed: int, n: int = 1000) -> Split:
    """8 x 8 pictures, flat, of one soft dot: its place, its width and its strength are all there is."""
    g = generator(seed, 56)
    total = n + 500
    cy, cx = (1 + 5 * torch.rand(total, 1, 1, generator=g) for _ in range(2))
    width = 0.8 + torch.rand(total, 1, 1, generator=g)
    row, column = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    x = torch.exp(-((row - cy) ** 2 + (column - cx) ** 2) / (2 * width**2)).flatten(1)
    x = (x * (0.6 + 0.4 * torch.rand(total, 1, generator=g)) + 0.02 * torch.rand(total, 64, generator=g)).clamp(0, 1)
    return Split(x[:n], x[:n], x[n:], x[n:])


def board(seed: int, n: int = 1000) -> Split:
    """Points of the plane; the class is the colour of their field on a board of four by four."""
    g = generator(seed, 57)
    x = 4 * torch.rand(n + 600, 2, generator=g) - 2
    y = (x.floor().sum(1) % 2).long()
    return Split(x[:n], y[:n], x[n:], y[n:])


def plants(seed: int, n: int = 1000, columns: int = 12, gap: float = 1.0, shares: Tensor | None = None) -> Split:
    """Three kinds in unit normal columns, two modes a kind: no plane parts them, a small net does."""
    g = generator(seed, 58)
    total = n + 900
    y = torch.multinomial(torch.ones(3) if shares is None else shares, total, replacement=True, generator=g)
    side = torch.where(torch.rand(total, 1, generator=g) < 0.5, 1.0, -1.0)
    axes = torch.linalg.qr(torch.randn(columns, 3, generator=g)).Q.T
    x = torch.randn(total, columns, generator=g) + 3 * gap * side * axes[y]
    return Split(x[:n], y[:n], x[n:], y[n:])


class Recurrent(nn.Module):
    """A recurrent layer over (N, T, F) and a linear head on its last output."""

    def __init__(self, kind: type[nn.RNNBase], columns: int, hidden: int, out: int, **options: Any) -> None:
        super().__init__()
        self.rnn = kind(columns, hidden, batch_first=True, **options)
        self.head = nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])
