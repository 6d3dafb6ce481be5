"""Shared pieces of the `fa-` cases: a plain module, loaders, and small synthetic tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.zoo.data import Split, generator

Criterion = Callable[[Tensor, Tensor], Tensor]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], Any]


class Plain(LightningModule):
    """A network, a loss on `(x, y)` batches and an optimizer."""

    def __init__(self, net: nn.Module, criterion: Criterion, optimizer: MakeOptimizer, log_as: str = "") -> None:
        super().__init__()
        self.net = net
        self.criterion = criterion
        self.make_optimizer = optimizer
        self.log_as = log_as

    def forward(self, x: Any) -> Any:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = self.criterion(self(x), y)
        if self.log_as:
            self.log(f"train_{self.log_as}", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log(f"val_{self.log_as or 'loss'}", self.criterion(self(x), y))

    def configure_optimizers(self) -> Any:
        return self.make_optimizer(self.parameters())


def adam(rate: float, decay: float = 0.0) -> MakeOptimizer:
    return lambda parameters: torch.optim.AdamW(parameters, rate, weight_decay=decay)


def sgd(rate: float, momentum: float = 0.9, decay: float = 0.0) -> MakeOptimizer:
    return lambda parameters: torch.optim.SGD(parameters, rate, momentum=momentum, weight_decay=decay)


def mlp(*sizes: int, act: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(sizes)):
        if i:
            layers.append(act())
        layers.append(nn.Linear(a, b))
    return nn.Sequential(*layers)


def batches(*tensors: Tensor, size: int = 32, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*tensors), size, **{"shuffle": True, **options})


def epochs(n: int, **more: Any) -> dict[str, Any]:
    return {"max_epochs": n, **more}


def waves(seed: int, *, n: int = 900, n_test: int = 500, length: int = 64, noise: float = 0.3) -> Split:
    """Noisy audio-like signals (N, 1, length); the class is one of four pitches, the phase is free."""
    g = generator(seed, 40)
    total = n + n_test
    y = torch.randint(4, (total,), generator=g)
    time = torch.arange(length) / length
    pitch = torch.tensor([3.0, 5.0, 8.0, 12.0])[y][:, None]
    phase = 2 * math.pi * torch.rand(total, 1, generator=g)
    x = torch.sin(2 * math.pi * pitch * time + phase) + noise * torch.randn(total, length, generator=g)
    x = x[:, None]
    return Split(x[:n], y[:n], x[n:], y[n:])


def series(seed: int, *, n: int = 1200, n_test: int = 500, window: int = 24, noise: float = 0.2) -> Split:
    """Windows (N, window) of a seasonal series and the value that follows, (N, 1), variance near 1."""
    g = generator(seed, 41)
    total = n + n_test + window
    time = torch.arange(total, dtype=torch.float32)
    value = torch.sin(2 * math.pi * time / 12) + 0.7 * torch.sin(2 * math.pi * time / 31 + 1)
    value = value + noise * torch.randn(total, generator=g)
    frames = value.unfold(0, window + 1, 1)
    frames = frames[torch.randperm(len(frames), generator=g)]
    x, y = frames[:, :window], frames[:, window:]
    return Split(x[:n], y[:n], x[n:], y[n:])


def discs(seed: int, *, n: int = 400, n_test: int = 120, size: int = 16) -> Split:
    """Noisy images (N, 1, size, size) of one bright disc and its mask, (N, 1, size, size) of 0 and 1."""
    g = generator(seed, 42)
    total = n + n_test
    grid = torch.arange(size, dtype=torch.float32)
    centre = 4 + (size - 8) * torch.rand(total, 2, generator=g)
    radius = 3 + 2 * torch.rand(total, generator=g)
    far = (grid[None, :, None] - centre[:, 0, None, None]) ** 2 + (grid[None, None, :] - centre[:, 1, None, None]) ** 2
    mask = (far < radius[:, None, None] ** 2).float()[:, None]
    x = 1.5 * (mask - 0.25) + 0.7 * torch.randn(total, 1, size, size, generator=g)
    return Split(x[:n], mask[:n], x[n:], mask[n:])


def tokens(seed: int, *, n: int = 1000, n_test: int = 500, length: int = 16, vocabulary: int = 50) -> Split:
    """Token sequences (N, length); the class says whether more tokens are from the first half of the words."""
    g = generator(seed, 43)
    total = n + n_test
    lean = torch.where(torch.rand(total, 1, generator=g) < 0.5, 0.3, 0.7)
    first = torch.rand(total, length, generator=g) < lean
    word = torch.randint(vocabulary // 2, (total, length), generator=g)
    x = torch.where(first, word, word + vocabulary // 2)
    y = (first.float().mean(1) > 0.5).long()
    return Split(x[:n], y[:n], x[n:], y[n:])


def ratings(
    seed: int, *, users: int = 80, items: int = 60, rank: int = 3, n: int = 3000, n_test: int = 600
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pairs of user and item (N, 2) and their rating, from a low-rank table of variance 1 plus noise."""
    g = generator(seed, 44)
    table = torch.randn(users, rank, generator=g) @ torch.randn(rank, items, generator=g)
    table = table / table.std()
    flat = torch.randperm(users * items, generator=g)[: n + n_test]
    pairs = torch.stack([flat // items, flat % items], 1)
    y = table[pairs[:, 0], pairs[:, 1]] + 0.2 * torch.randn(len(flat), generator=g)
    return pairs[:n], y[:n], pairs[n:], y[n:]


def graphs(
    seed: int, *, n: int = 500, n_test: int = 300, nodes: int = 10, columns: int = 6
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Random graphs: node features, normalised adjacency with loops, and a graph label made of neighbour sums."""
    g = generator(seed, 45)
    total = n + n_test
    edges = (torch.rand(total, nodes, nodes, generator=g) < 0.25).float().triu(1)
    adjacency = edges + edges.transpose(1, 2) + torch.eye(nodes)
    adjacency = adjacency / adjacency.sum(2, keepdim=True)
    x = torch.randn(total, nodes, columns, generator=g)
    weight = torch.randn(columns, 2, generator=g)
    around = adjacency @ x @ (weight / weight.norm(dim=0))
    level = around.relu().mean(1)
    y = (level[:, 0] > level[:, 1]).long()
    return x[:n], adjacency[:n], y[:n], x[n:], adjacency[n:], y[n:]
