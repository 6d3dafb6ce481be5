"""Signals, texts, pictures and tables of these cases, each a function of the seed, and two safe scores."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.zoo.data import Split, generator, predict


def rows(*columns: Tensor, size: int = 32, **options: Any) -> DataLoader[Any]:
    """Shuffled batches of these tensors."""
    return DataLoader(TensorDataset(*columns), batch_size=size, **{"shuffle": True, **options})


def explained(prediction: Tensor, y: Tensor) -> float:
    """R2, and -10 where it is lower or no number."""
    y = y.reshape(prediction.shape)
    value = 1 - ((prediction - y).square().mean() / (y - y.mean(0)).square().mean()).item()
    return max(value, -10.0) if math.isfinite(value) else -10.0


def explains(x: Any, y: Tensor) -> Callable[[LightningModule], float]:
    return lambda module: explained(predict(module, x), y)


def right(x: Any, y: Tensor) -> Callable[[LightningModule], float]:
    """Share of right answers; an answer that is no number is wrong."""

    def score(module: LightningModule) -> float:
        out = predict(module, x)
        answer = out.argmax(-1) if out.dim() > y.dim() else (out > 0).long()
        return ((answer == y) & torch.isfinite(out).reshape(*y.shape, -1).all(-1)).float().mean().item()

    return score


def recall(answer: Tensor, y: Tensor) -> float:
    """Recall averaged over the classes."""
    return torch.stack([(answer[y == k] == k).float().mean() for k in y.unique()]).mean().item()


def hums(seed: int, n: int = 900, length: int = 128, noise: float = 0.4) -> Split:
    """Sounds (N, 1, length) in [-1, 1]; the class is one of four pitches, loudness and phase vary."""
    g = generator(seed, 71)
    y = torch.randint(4, (n + 500,), generator=g)
    pitch = torch.tensor([0.25, 0.4, 0.65, 1.0])[y, None] * (1 + 0.05 * torch.randn(n + 500, 1, generator=g))
    loud = 0.4 + 0.6 * torch.rand(n + 500, 1, generator=g)
    phase = 6.2832 * torch.rand(n + 500, 1, generator=g)
    x = loud * torch.sin(pitch * torch.arange(length) + phase) + noise * torch.randn(n + 500, length, generator=g)
    x = (0.5 * x).clamp(-1, 1)[:, None]
    return Split(x[:n], y[:n], x[n:], y[n:])


def tickets(seed: int, n: int = 1000, length: int = 18, vocabulary: int = 150, shares: Any = (1, 1, 1, 1)) -> Split:
    """Texts (N, length) of word ids from 2 on; each holds three of its class's eight words."""
    g = generator(seed, 72)
    total = n + 600
    y = torch.multinomial(torch.tensor(shares, dtype=torch.float32), total, replacement=True, generator=g)
    first = 2 + 8 * len(shares)
    x = torch.randint(first, vocabulary, (total, length), generator=g)
    for _ in range(3):
        place = torch.randint(length, (total,), generator=g)
        x[torch.arange(total), place] = 2 + 8 * y + torch.randint(8, (total,), generator=g)
    return Split(x[:n], y[:n], x[n:], y[n:])


def weaves(seed: int, n: int = 800, size: int = 16, noise: float = 0.6, classes: int = 4) -> Split:
    """Pictures (N, 1, size, size), about unit scale: gratings in one of `classes` directions."""
    g = generator(seed, 73)
    total = n + 500
    y = torch.randint(classes, (total,), generator=g)
    angle = math.pi * y[:, None, None] / classes + 0.08 * torch.randn(total, 1, 1, generator=g)
    wave = 0.9 + 0.5 * torch.rand(total, 1, 1, generator=g)
    phase = 6.2832 * torch.rand(total, 1, 1, generator=g)
    row, column = torch.meshgrid(torch.arange(float(size)), torch.arange(float(size)), indexing="ij")
    x = torch.sin(wave * (row * angle.sin() + column * angle.cos()) + phase)
    x = (x + noise * torch.randn(total, size, size, generator=g))[:, None]
    return Split(x[:n], y[:n], x[n:], y[n:])


def solids(seed: int, n: int = 700, points: int = 40) -> Split:
    """Clouds (N, points, 3) about the origin on a ball, a box, a pole or a disc, turned about the upright axis."""
    g = generator(seed, 74)
    total = n + 400
    y = torch.randint(4, (total,), generator=g)
    ball = torch.nn.functional.normalize(torch.randn(total, points, 3, generator=g), dim=-1)
    box = ball / ball.abs().amax(-1, keepdim=True)
    stretch = torch.tensor([[1.0, 1, 1], [0.8, 0.8, 0.8], [0.45, 0.45, 1.6], [1.3, 1.3, 0.25]])[y]
    x = torch.where((y == 1)[:, None, None], box, ball) * stretch[:, None]
    turn = 6.2832 * torch.rand(total, 1, generator=g)
    flat = torch.stack(
        [x[..., 0] * turn.cos() - x[..., 1] * turn.sin(), x[..., 0] * turn.sin() + x[..., 1] * turn.cos()]
    )
    x = torch.cat([flat.permute(1, 2, 0), x[..., 2:]], -1) + 0.08 * torch.randn(total, points, 3, generator=g)
    return Split(x[:n], y[:n], x[n:], y[n:])


def usage(seed: int, hours: int = 1600, noise: float = 0.15) -> Tensor:
    """An hourly series of about unit scale: a day, a week, and a slow wander."""
    g = generator(seed, 75)
    t = torch.arange(float(hours))
    wander = torch.randn(hours, generator=g).cumsum(0) * 0.02
    day = torch.sin(6.2832 * t / 24 + 6.2832 * torch.rand(1, generator=g))
    week = 0.5 * torch.sin(6.2832 * t / 168)
    return day + week + wander - wander.mean() + noise * torch.randn(hours, generator=g)


def windows(series: Tensor, length: int = 24) -> tuple[Tensor, Tensor]:
    """Windows (N, length) and the value that follows each."""
    cut = series.unfold(0, length + 1, 1)
    return cut[:, :-1].contiguous(), cut[:, -1].contiguous()


def curve(seed: int, n: int = 1000, columns: int = 6, noise: float = 0.2) -> Split:
    """Normal columns and a bent function of them with noise, targets (N,) of variance near one."""
    g = generator(seed, 76)
    x = torch.randn(n + 800, columns, generator=g)
    y = torch.sin(2 * x[:, 0]) + 0.7 * x[:, 1] * x[:, 2] + 0.5 * x[:, 3] + noise * torch.randn(n + 800, generator=g)
    y = y / 1.2
    return Split(x[:n], y[:n], x[n:], y[n:])
