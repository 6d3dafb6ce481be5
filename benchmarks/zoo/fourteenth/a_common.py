"""Data and small helpers that the modules of this prefix share."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.zoo.data import Split, generator


def batches(*tensors: Tensor, size: int = 32, **options: Any) -> DataLoader[Any]:
    """Shuffled batches of tuples; `options` go to the DataLoader."""
    return DataLoader(TensorDataset(*tensors), size, **{"shuffle": True, **options})


def tones(seed: int, *, n: int = 640, n_test: int = 500, noise: float = 0.6, classes: int = 4) -> Split:
    """Signals (N, 1, 64) of one of `classes` pitches at a random phase in noise; the pitch is the class."""
    g = generator(seed, 21)
    y = torch.randint(classes, (n + n_test,), generator=g)
    phase = 2 * math.pi * torch.rand(n + n_test, 1, generator=g)
    time = torch.arange(64.0)[None]
    x = torch.sin(2 * math.pi * (0.05 + 0.06 * y[:, None]) * time + phase)
    x = (x + noise * torch.randn(n + n_test, 64, generator=g))[:, None]
    return Split(x[:n], y[:n], x[n:], y[n:])


def discs(seed: int, *, n: int = 256, n_test: int = 128, noise: float = 0.4) -> Split:
    """Noisy images (N, 1, 16, 16) of a bright disc; the targets are its pixels."""
    g = generator(seed, 22)
    total = n + n_test
    centre = 4 + 8 * torch.rand(total, 2, 1, 1, generator=g)
    radius = 3 + 2 * torch.rand(total, 1, 1, generator=g)
    axis = torch.arange(16.0)
    distance = ((axis[None, :, None] - centre[:, 0]) ** 2 + (axis[None, None, :] - centre[:, 1]) ** 2).sqrt()
    mask = (distance < radius).float()[:, None]
    x = mask + noise * torch.randn(total, 1, 16, 16, generator=g) - 0.25
    return Split(x[:n], mask[:n], x[n:], mask[n:])


def glyphs(seed: int, *, n: int = 640, n_test: int = 500, noise: float = 0.3) -> Split:
    """Images (N, 1, 12, 12) with a bar, a pole, a cross or a frame at a random place; the shape is the class."""
    g = generator(seed, 23)
    total = n + n_test
    stencil = torch.zeros(4, 5, 5)
    stencil[0, 2] = 1
    stencil[1, :, 2] = 1
    stencil[2, 2] = stencil[2, :, 2] = 1
    stencil[3] = 1
    stencil[3, 1:4, 1:4] = 0
    y = torch.randint(4, (total,), generator=g)
    place = torch.randint(0, 8, (total, 2), generator=g).tolist()
    x = noise * torch.randn(total, 1, 12, 12, generator=g)
    for i, (row, column) in enumerate(place):
        x[i, 0, row : row + 5, column : column + 5] += 1.5 * stencil[y[i]]
    return Split(x[:n], y[:n], x[n:], y[n:])


def reviews(seed: int, *, n: int = 1000, n_test: int = 600, vocabulary: int = 120, length: int = 16) -> Split:
    """Token ids (N, length); a fifth of the words speak for, a fifth against, and the balance is the class."""
    g = generator(seed, 24)
    value = torch.zeros(vocabulary)
    value[: vocabulary // 5] = 1.0
    value[vocabulary // 5 : 2 * (vocabulary // 5)] = -1.0
    x = torch.randint(vocabulary, (3 * (n + n_test), length), generator=g)
    total = value[x].sum(1)
    keep = total.abs() > 0.5
    x, y = x[keep][: n + n_test], (total[keep] > 0).long()[: n + n_test]
    return Split(x[:n], y[:n], x[n:], y[n:])


def ratings(seed: int, *, users: int = 60, items: int = 50, n: int = 2000, rank: int = 3) -> Split:
    """Pairs (user, item) and a rating of deviation about 1: biases, a part of low rank, and a little noise."""
    g = generator(seed, 25)
    u, v = torch.randn(users, rank, generator=g), torch.randn(items, rank, generator=g)
    table = u @ v.T / math.sqrt(rank)
    table = table + 0.5 * torch.randn(users, 1, generator=g) + 0.5 * torch.randn(1, items, generator=g)
    cells = torch.randperm(users * items, generator=g)
    x = torch.stack([cells // items, cells % items], 1)
    y = table[x[:, 0], x[:, 1]] + 0.2 * torch.randn(len(x), generator=g)
    y = (y - y[:n].mean()) / y[:n].std()
    return Split(x[:n], y[:n], x[n:], y[n:])


def waves(seed: int, *, n: int = 800, n_test: int = 400, length: int = 24) -> Split:
    """Windows (N, length, 1) of an oscillation of random pitch and phase in noise, and its next value (N, 1)."""
    g = generator(seed, 26)
    total = n + n_test
    pitch = 0.2 + 0.6 * torch.rand(total, 1, generator=g)
    phase = 2 * math.pi * torch.rand(total, 1, generator=g)
    series = 1.3 * torch.sin(pitch * torch.arange(length + 1.0) + phase)
    x = series[:, :-1] + 0.1 * torch.randn(total, length, generator=g)
    x, y = x[..., None], series[:, -1:]
    return Split(x[:n], y[:n], x[n:], y[n:])


def bags(seed: int, *, n: int = 800, n_test: int = 400, size: int = 20) -> Split:
    """Sets (N, size, 2) of points, and the standardised spread of each set (N, 1)."""
    g = generator(seed, 27)
    total = n + n_test
    scale = 0.3 + 1.7 * torch.rand(total, 1, 1, generator=g)
    x = scale * torch.randn(total, size, 2, generator=g) + 0.5 * torch.randn(total, 1, 2, generator=g)
    y = (scale[:, 0] - 1.15) / 0.49
    return Split(x[:n], y[:n], x[n:], y[n:])


def graph(seed: int, *, nodes: int = 240, groups: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features, 0/1 adjacency, classes and a training mask of a graph whose groups hold together."""
    g = generator(seed, 28)
    y = torch.randint(groups, (nodes,), generator=g)
    same = (y[:, None] == y[None]).float()
    upper = (torch.rand(nodes, nodes, generator=g) < 0.01 + 0.12 * same).float().triu(1)
    x = torch.randn(nodes, 12, generator=g)
    x[torch.arange(nodes), y] += 1.5
    return x, upper + upper.T, y, torch.rand(nodes, generator=g) < 0.5


def iou(logits: Tensor, mask: Tensor) -> float:
    """Overlap of the predicted and the true pixels over their union."""
    found, true = logits > 0, mask > 0.5
    return ((found & true).sum() / (found | true).sum().clamp(min=1)).item()
