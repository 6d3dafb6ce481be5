"""Data and small networks that the modules of this prefix share: pictures, signals, reviews, a graph, ratings, series."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.zoo.data import Split, digits, generator, predict

LossFn = Callable[[Tensor, Tensor], Tensor]


class Plain(LightningModule):
    """A network, a loss and an optimizer, as in the first page of a tutorial."""

    def __init__(self, net: nn.Module, loss: LossFn, optimizer: Callable[[Any], Any], log: str | None = None) -> None:
        super().__init__()
        self.net = net
        self.criterion = loss
        self.make = optimizer
        self.log_as = log

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = self.criterion(self(x), y)
        if self.log_as:
            self.log(self.log_as, loss)
        return loss

    def configure_optimizers(self) -> Any:
        return self.make(self.parameters())


def dense(*sizes: int, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers of these sizes with `act` between them."""
    layers: list[nn.Module] = []
    for i in range(len(sizes) - 1):
        layers.append(nn.Linear(sizes[i], sizes[i + 1]))
        if i < len(sizes) - 2:
            layers.append(act())
    return nn.Sequential(*layers)


def loader(tensors: Iterable[Tensor], batch_size: int, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*tensors), batch_size, **{"shuffle": True, **options})


def steps(count: int, **more: Any) -> dict[str, Any]:
    """Trainer settings for `count` optimizer steps, whatever the number of epochs."""
    return {"max_steps": count, "max_epochs": -1, **more}


def standard(train: Tensor, *others: Tensor) -> list[Tensor]:
    """All of them in units of the first one's columns: mean 0, deviation 1."""
    mean, std = train.mean(0), train.std(0)
    return [(t - mean) / std for t in (train, *others)]


def figures(seed: int, *, n: int = 500, size: int = 16, radius: float = 4.0) -> Split:
    """Noisy pictures (N, 1, size, size) with a square and a disc; per pixel 0 background, 1 square, 2 disc."""
    g = generator(seed, 21)
    total = n + 200
    rows, cols = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    y = torch.zeros(total, size, size, dtype=torch.int64)
    for kind in (1, 2):
        r = radius * (0.6 + 0.4 * torch.rand(total, 1, 1, generator=g))
        cy, cx = (2 + (size - 4) * torch.rand(2, total, 1, 1, generator=g)).unbind(0)
        dy, dx = (rows - cy).abs(), (cols - cx).abs()
        inside = torch.maximum(dy, dx) <= 0.85 * r if kind == 1 else (dy.square() + dx.square()) <= r.square()
        y[inside] = kind
    level = torch.tensor([-0.6, 0.9, 0.5])
    x = level[y] + 0.35 * torch.randn(total, size, size, generator=g)
    x = x[:, None]
    return Split(x[:n], y[:n], x[n:], y[n:])


def iou(logits: Tensor, y: Tensor, classes: int = 3) -> float:
    """Mean over the classes of intersection over union; `logits` (N, classes, H, W)."""
    guess = logits.argmax(1)
    ratios = [((guess == k) & (y == k)).sum() / ((guess == k) | (y == k)).sum().clamp(min=1) for k in range(classes)]
    return torch.stack(ratios).mean().item()


def tones(seed: int, *, n: int = 900, length: int = 96, classes: int = 5, noise: float = 0.7) -> Split:
    """Signals (N, 1, length): the class is the pitch, the phase is at random, noise on top."""
    g = generator(seed, 22)
    total = n + 500
    y = torch.randint(classes, (total,), generator=g)
    pitch = 0.25 * 1.45 ** y.float()[:, None] * (1 + 0.04 * torch.randn(total, 1, generator=g))
    phase = 2 * math.pi * torch.rand(total, 1, generator=g)
    x = torch.sin(pitch * torch.arange(length) + phase) + noise * torch.randn(total, length, generator=g)
    x = x[:, None] / x.std()
    return Split(x[:n], y[:n], x[n:], y[n:])


def reviews(seed: int, *, n: int = 1200, length: int = 20, words: int = 80, topics: int = 4) -> Split:
    """Word ids (N, length), 0 pads the end. Each topic prefers some words; the topic is the class."""
    g = generator(seed, 23)
    total = n + 600
    taste = torch.softmax(1.6 * torch.randn(topics, words - 1, generator=g), 1)
    y = torch.randint(topics, (total,), generator=g)
    x = torch.multinomial(taste[y], length, replacement=True, generator=g) + 1
    ends = torch.randint(length // 2, length + 1, (total, 1), generator=g)
    x = x * (torch.arange(length) < ends)
    return Split(x[:n], y[:n], x[n:], y[n:])


def series(seed: int, *, n: int = 1000, window: int = 24, noise: float = 0.15) -> Split:
    """Windows (N, window, 1) of a two-tone signal of drifting phase, and the value three steps on, (N, 1); unit scale."""
    g = generator(seed, 24)
    total = n + 500
    start = 400 * torch.rand(total, 1, generator=g)
    t = start + torch.arange(window + 3)
    clean = torch.sin(0.5 * t) + 0.7 * torch.sin(0.23 * t + 1)
    noisy = clean + noise * torch.randn(clean.shape, generator=g)
    scale = noisy.std()
    x, y = noisy[:, :window, None] / scale, noisy[:, -1:] / scale
    return Split(x[:n], y[:n], x[n:], y[n:])


class Network:
    """A graph of communities: `features` (N, 12), `labels` (N,), the normalised `adjacency` (N, N), `train` and `test` ids."""

    def __init__(self, seed: int, nodes: int = 400, groups: int = 4) -> None:
        g = generator(seed, 25)
        self.labels = torch.randint(groups, (nodes,), generator=g)
        same = self.labels[:, None] == self.labels
        edges = torch.rand(nodes, nodes, generator=g) < torch.where(same, 0.06, 0.008)
        edges = (edges.triu(1) | edges.triu(1).T | torch.eye(nodes, dtype=torch.bool)).float()
        degree = edges.sum(1).rsqrt()
        self.adjacency = degree[:, None] * edges * degree
        centres = torch.randn(groups, 12, generator=g)
        self.features = 0.7 * centres[self.labels] + torch.randn(nodes, 12, generator=g)
        order = torch.randperm(nodes, generator=g)
        self.train, self.test = order[: nodes // 2], order[nodes // 2 :]


def ratings(seed: int, *, n: int = 4000, users: int = 50, items: int = 60, noise: float = 0.3) -> Split:
    """Pairs of ids (N, 2) and a centred rating (N,) of unit scale from three hidden tastes."""
    g = generator(seed, 26)
    a, b = torch.randn(users, 3, generator=g), torch.randn(items, 3, generator=g)
    total = n + 1500
    x = torch.stack([torch.randint(users, (total,), generator=g), torch.randint(items, (total,), generator=g)], 1)
    y = (a[x[:, 0]] * b[x[:, 1]]).sum(1) / math.sqrt(3) + noise * torch.randn(total, generator=g)
    y = y / y.std()
    return Split(x[:n], y[:n], x[n:], y[n:])


def ink(seed: int) -> Split:
    """The digits with one mean and one deviation over all pixels."""
    d = digits(seed)
    mean, std = d.x.mean(), d.x.std()
    return Split((d.x - mean) / std, d.y, (d.x_test - mean) / std, d.y_test)


def log_likelihood(module: nn.Module, x: Tensor, y: Tensor) -> float:
    """Minus the cross-entropy of the class outputs (last axis) on these data."""
    logits = predict(module, x)
    return -F.cross_entropy(logits.reshape(-1, logits.shape[-1]), y.reshape(-1)).item()


def balanced(guess: Tensor, y: Tensor) -> float:
    """Mean over the classes of the share found."""
    return torch.stack([(guess[y == k] == k).float().mean() for k in y.unique()]).mean().item()
