"""Data, small models and plain modules that the `ta-` cases share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from benchmarks.zoo.data import Split, generator, predict

Optim = Callable[[Iterator[nn.Parameter]], Any]


class Plain(LightningModule):
    """`(x, y)` batches, one loss, one optimizer; logs under the given names."""

    def __init__(
        self,
        net: nn.Module,
        criterion: Callable[[Tensor, Tensor], Tensor],
        optim: Optim,
        log: str | None = None,
        val: str | None = "val_loss",
    ) -> None:
        super().__init__()
        self.net = net
        self.criterion = criterion
        self._optim = optim
        self._names = (log, val)

    def forward(self, x: Any) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = self.criterion(self(x), y)
        if self._names[0]:
            self.log(self._names[0], loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        if self._names[1]:
            self.log(self._names[1], self.criterion(self(x), y))

    def configure_optimizers(self) -> Any:
        return self._optim(self.parameters())


class Records(Dataset[dict[str, Tensor]]):
    """Columns of equal length, served as dicts."""

    def __init__(self, **columns: Tensor) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {k: v[index] for k, v in self.columns.items()}


class Item(NamedTuple):
    signal: Tensor
    label: Tensor


class Items(Dataset[Item]):
    """Signals and labels, served as named tuples."""

    def __init__(self, signal: Tensor, label: Tensor) -> None:
        self.signal, self.label = signal, label

    def __len__(self) -> int:
        return len(self.signal)

    def __getitem__(self, index: int) -> Item:
        return Item(self.signal[index], self.label[index])


def loader(*tensors: Tensor, batch: int, shuffle: bool = True, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*tensors), batch, shuffle=shuffle, **options)


def mlp(*widths: int, act: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in pairwise(widths[:-1]):
        layers += [nn.Linear(a, b), act()]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


def balanced_accuracy(module: nn.Module, x: Any, y: Tensor) -> float:
    """Mean recall over the classes that `y` holds; `module` gives logits, or one logit a sample."""
    out = predict(module, x)
    guess = out.argmax(-1) if out.dim() > y.dim() and out.shape[-1] > 1 else (out.reshape(y.shape) > 0).long()
    return torch.stack([(guess[y == c] == c).float().mean() for c in y.unique()]).mean().item()


def tones(seed: int, *, n: int = 1000, length: int = 96, classes: int = 5, noise: float = 0.4) -> Split:
    """One-channel signals (N, 1, length): a tone of one of `classes` frequencies at a random phase, in noise."""
    g = generator(seed, 11)
    y = torch.randint(classes, (n + 600,), generator=g)
    t = torch.arange(length) / length
    phase = 2 * math.pi * torch.rand(n + 600, 1, generator=g)
    x = torch.sin(2 * math.pi * (4 + 4 * y[:, None]) * t + phase) + noise * torch.randn(n + 600, length, generator=g)
    x = x[:, None]
    return Split(x[:n], y[:n], x[n:], y[n:])


def reviews(seed: int, *, n: int = 1500, length: int = 20, vocab: int = 60, classes: int = 3) -> Split:
    """Token ids (N, length), 0 is padding: a few of a review's words are its class's own, the others anyone's."""
    g = generator(seed, 12)
    total = n + 800
    y = torch.randint(classes, (total,), generator=g)
    x = torch.randint(1, vocab, (total, length), generator=g)
    words = torch.randperm(vocab - 1, generator=g)[: 6 * classes].view(classes, 6) + 1
    own = words[y[:, None], torch.randint(6, (total, length), generator=g)]
    x = torch.where(torch.rand(total, length, generator=g) < 0.35, own, x)
    end = torch.randint(8, length + 1, (total, 1), generator=g)
    x = torch.where(torch.arange(length) < end, x, torch.zeros_like(x))
    return Split(x[:n], y[:n], x[n:], y[n:])


def shapes(seed: int, *, n: int = 800, size: int = 16, noise: float = 0.15) -> tuple[Split, Split]:
    """Images (N, 1, size, size) in [0, 1] of a square, a cross, a ring or a bar; by class, and by mask of the shape."""
    g = generator(seed, 13)
    total = n + 400
    y = torch.randint(4, (total,), generator=g)
    stamp = torch.zeros(4, 7, 7)
    stamp[0, 1:6, 1:6] = 1
    stamp[1, 3, :] = stamp[1, :, 3] = 1
    stamp[2, 0:7, 0:7] = 1
    stamp[2, 1:6, 1:6] = 0
    stamp[3, :, 2:5] = 1
    mask = torch.zeros(total, size, size)
    place = torch.randint(size - 7, (total, 2), generator=g)
    for i, (r, c) in enumerate(place.tolist()):
        mask[i, r : r + 7, c : c + 7] = stamp[y[i]]
    x = (0.15 + 0.6 * mask + noise * torch.randn(total, size, size, generator=g)).clamp(0, 1)[:, None]
    return Split(x[:n], y[:n], x[n:], y[n:]), Split(x[:n], mask[:n, None], x[n:], mask[n:, None])


def seasons(seed: int, *, n: int = 1500, window: int = 24, ahead: int = 1) -> Split:
    """Windows (N, window) of one series with two cycles and noise, and what comes `ahead` steps on, (N, 1)."""
    g = generator(seed, 14)
    t = torch.arange(float(n + 600 + window + ahead))
    s = (
        torch.sin(2 * math.pi * t / 24)
        + 0.6 * torch.sin(2 * math.pi * t / 7 + 1)
        + 0.2 * torch.randn(len(t), generator=g)
    )
    x = s.unfold(0, window, 1)[: n + 600]
    y = s[window + ahead - 1 :][: n + 600, None]
    return Split(x[:n], y[:n], x[n:], y[n:])


def ratings(seed: int, *, users: int = 120, items: int = 80, rank: int = 4, n: int = 6000) -> Split:
    """(user, item) pairs and standardised ratings from user and item traits."""
    g = generator(seed, 15)
    a, b = torch.randn(users, rank, generator=g), torch.randn(items, rank, generator=g)
    pair = torch.stack([torch.randint(k, (n + 2000,), generator=g) for k in (users, items)], 1)
    y = (a[pair[:, 0]] * b[pair[:, 1]]).sum(1) / rank**0.5 + 0.3 * torch.randn(n + 2000, generator=g)
    return Split(pair[:n], y[:n], pair[n:], y[n:])


class Community(NamedTuple):
    """A graph with its normalised adjacency, node features, node classes and the nodes to train on."""

    adjacency: Tensor
    x: Tensor
    y: Tensor
    known: Tensor


def community(seed: int, *, nodes: int = 300, classes: int = 4) -> Community:
    """Nodes link mostly within their class; their features say little by themselves."""
    g = generator(seed, 16)
    y = torch.arange(nodes) % classes
    same = y[:, None] == y[None]
    link = torch.rand(nodes, nodes, generator=g) < torch.where(same, 0.10, 0.01)
    link = (link.triu(1) | link.triu(1).T | torch.eye(nodes, dtype=torch.bool)).float()
    scale = link.sum(1).rsqrt()
    x = torch.randn(nodes, 12, generator=g)
    x[:, :classes] += 0.9 * F.one_hot(y, classes)
    return Community(scale[:, None] * link * scale, x, y, torch.randperm(nodes, generator=g)[: nodes // 2])


class Conv(nn.Sequential):
    """Two convolutions and a head for small images."""

    def __init__(self, classes: int, size: int = 16, act: Callable[[], nn.Module] = nn.ReLU, width: int = 8) -> None:
        super().__init__(
            nn.Conv2d(1, width, 3, padding=1),
            act(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            act(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(2 * width * (size // 4) ** 2, classes),
        )


class Listener(nn.Sequential):
    """Strided convolutions over a one-channel signal."""

    def __init__(self, classes: int, channels: int = 1, width: int = 16) -> None:
        super().__init__(
            nn.Conv1d(channels, width, 9, stride=2, padding=4),
            nn.ReLU(),
            nn.Conv1d(width, width, 9, stride=2, padding=4),
            nn.ReLU(),
            nn.AdaptiveMaxPool1d(1),
            nn.Flatten(),
            nn.Linear(width, classes),
        )


class Bag(nn.Module):
    """Word vectors averaged over a review's words, then a small head."""

    def __init__(self, vocab: int, classes: int, width: int = 16) -> None:
        super().__init__()
        self.words = nn.Embedding(vocab, width, padding_idx=0)
        self.head = mlp(width, 32, classes)

    def forward(self, ids: Tensor) -> Tensor:
        kept = (ids > 0).float()[..., None]
        return self.head((self.words(ids) * kept).sum(1) / kept.sum(1).clamp(min=1))


class Gcn(LightningModule):
    """Two graph convolutions over the whole graph; a batch is a set of nodes to be scored."""

    def __init__(
        self, adjacency: Tensor, x: Tensor, dropout: float = 0.0, decay: float = 1e-4, log: str = "loss"
    ) -> None:
        super().__init__()
        self.register_buffer("adjacency", adjacency)
        self.register_buffer("x", x)
        self.one, self.two = nn.Linear(12, 24), nn.Linear(24, 4)
        self.dropout, self.decay, self.log_name = dropout, decay, log

    def forward(self, nodes: Tensor) -> Tensor:
        h = F.dropout(torch.relu(self.one(self.adjacency @ self.x)), self.dropout, self.training)
        return self.two(self.adjacency @ h)[nodes]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        nodes, label = batch
        loss = F.cross_entropy(self(nodes), label)
        self.log(self.log_name, loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2, weight_decay=self.decay)
