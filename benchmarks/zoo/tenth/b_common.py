"""Tasks, small networks and plain modules that the cases of this prefix share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.data import Split, generator, predict, r2

Loss = Callable[[Tensor, Tensor], Tensor]
Optim = Callable[[Iterable[Any]], Any]


def adam(rate: float = 1e-3, **options: Any) -> Optim:
    return lambda parameters: torch.optim.Adam(parameters, lr=rate, **options)


def adamw(rate: float = 1e-3, **options: Any) -> Optim:
    return lambda parameters: torch.optim.AdamW(parameters, lr=rate, **options)


def sgd(rate: float = 0.1, momentum: float = 0.0, **options: Any) -> Optim:
    return lambda parameters: torch.optim.SGD(parameters, lr=rate, momentum=momentum, **options)


class Plain(LightningModule):
    """A network, a loss and an optimizer; logs nothing."""

    def __init__(self, net: nn.Module, loss: Loss, optimizer: Optim) -> None:
        super().__init__()
        self.net = net
        self.loss_fn = loss
        self.make_optimizer = optimizer

    def forward(self, x: Any) -> Any:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        return self.loss_fn(self(x), y)

    def configure_optimizers(self) -> Any:
        return self.make_optimizer(self.parameters())


class Logged(Plain):
    """The same with the losses of training and validation logged."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        loss = self.loss_fn(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", self.loss_fn(self(x), y), prog_bar=True)


class Classifier(LightningModule):
    """Cross-entropy with accuracy logged, as introductions write it."""

    def __init__(self, net: nn.Module, optimizer: Optim) -> None:
        super().__init__()
        self.model = net
        self.make_optimizer = optimizer
        self.criterion = nn.CrossEntropyLoss()

    def forward(self, x: Any) -> Tensor:
        return self.model(x)

    def _step(self, batch: Any, stage: str) -> Tensor:
        x, y = batch
        logits = self(x)
        loss = self.criterion(logits, y)
        self.log(f"{stage}_loss", loss)
        self.log(f"{stage}_acc", (logits.argmax(1) == y).float().mean(), prog_bar=True)
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._step(batch, "train")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._step(batch, "val")

    def configure_optimizers(self) -> Any:
        return self.make_optimizer(self.parameters())


def dense(*sizes: int, act: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers with an activation between them."""
    layers: list[nn.Module] = []
    for k, (a, b) in enumerate(itertools.pairwise(sizes)):
        layers.append(nn.Linear(a, b))
        if k < len(sizes) - 2:
            layers.append(act())
    return nn.Sequential(*layers)


def tagging(seed: int, *, n: int = 1500, length: int = 14, symbols: int = 40, tags: int = 12) -> Split:
    """Token sequences; a token's tag follows from its own group and that of the token before it."""
    g = generator(seed, 201)
    total = n + 400
    group = torch.randint(tags, (symbols,), generator=g)
    x = torch.randint(symbols, (total, length), generator=g)
    before = torch.cat([torch.zeros(total, 1, dtype=torch.long), group[x][:, :-1]], 1)
    y = torch.where(before % 2 == 0, group[x], (group[x] + 1) % tags)
    return Split(x[:n], y[:n], x[n:], y[n:])


def shapes(seed: int, *, n: int = 700, size: int = 16, noise: float = 0.35) -> Split:
    """Images (N, 1, size, size) with one to three discs on a noisy ground; the target is their mask, same shape."""
    g = generator(seed, 202)
    total = n + 200
    rows, cols = torch.meshgrid(torch.arange(size).float(), torch.arange(size).float(), indexing="ij")
    mask = torch.zeros(total, size, size)
    count = torch.randint(1, 4, (total,), generator=g)
    for k in range(3):
        centre = 2 + (size - 4) * torch.rand(total, 2, generator=g)
        radius = 1.6 + 1.6 * torch.rand(total, generator=g)
        distance = (rows - centre[:, 0, None, None]) ** 2 + (cols - centre[:, 1, None, None]) ** 2
        disc = (distance < radius[:, None, None] ** 2) & (count > k)[:, None, None]
        mask = torch.maximum(mask, disc.float())
    x = mask + noise * torch.randn(total, size, size, generator=g)
    x = (x - x.mean()) / x.std()
    x, mask = x[:, None], mask[:, None]
    return Split(x[:n], mask[:n], x[n:], mask[n:])


def iou(mask: Tensor, truth: Tensor) -> float:
    both = ((mask > 0.5) & (truth > 0.5)).sum().item()
    either = ((mask > 0.5) | (truth > 0.5)).sum().item()
    return both / max(either, 1)


def tones(seed: int, *, n: int = 1000, length: int = 96, classes: int = 4, noise: float = 0.5) -> Split:
    """Signals (N, 1, length) of one frequency per class at a random phase, with noise."""
    g = generator(seed, 203)
    total = n + 500
    y = torch.randint(classes, (total,), generator=g)
    rate = 0.08 + 0.07 * y.float() + 0.01 * torch.rand(total, generator=g)
    phase = 2 * math.pi * torch.rand(total, generator=g)
    time = torch.arange(length).float()
    x = math.sqrt(2) * torch.sin(2 * math.pi * rate[:, None] * time + phase[:, None])
    x = (x + noise * torch.randn(total, length, generator=g))[:, None]
    x = x / x.std()
    return Split(x[:n], y[:n], x[n:], y[n:])


def seasons(seed: int, *, n: int = 1200, window: int = 24, noise: float = 0.15) -> Split:
    """Windows (N, window, 1) of seasonal series and their next value (N, 1), all of unit scale."""
    g = generator(seed, 204)
    total = n + 500
    period = 8 + 8 * torch.rand(total, 1, generator=g)
    phase = 2 * math.pi * torch.rand(total, 1, generator=g)
    size = 0.8 + 0.8 * torch.rand(total, 1, generator=g)
    time = torch.arange(window + 1).float()
    series = size * torch.sin(2 * math.pi * time / period + phase) + noise * torch.randn(total, window + 1, generator=g)
    series = series / series.std()
    x, y = series[:, :-1, None], series[:, -1:]
    return Split(x[:n], y[:n], x[n:], y[n:])


def ratings(
    seed: int, *, users: int = 80, items: int = 60, rank: int = 5, share: float = 0.7, noise: float = 0.3
) -> Split:
    """Pairs (user, item) as int64 (N, 2) and standardised ratings (N,) of a low-rank table with noise."""
    g = generator(seed, 205)
    u, v = torch.randn(users, rank, generator=g), torch.randn(items, rank, generator=g)
    table = u @ v.T / math.sqrt(rank)
    table = (table + noise * torch.randn(users, items, generator=g)) / math.sqrt(1 + noise**2)
    pairs = torch.cartesian_prod(torch.arange(users), torch.arange(items))
    order = torch.randperm(len(pairs), generator=g)
    pairs = pairs[order]
    y = table[pairs[:, 0], pairs[:, 1]]
    cut = int(share * len(pairs))
    return Split(pairs[:cut], y[:cut], pairs[cut:], y[cut:])


def molecules(seed: int, *, n: int = 1000, nodes: int = 8, kinds: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Graphs: normalised adjacency (N, V, V), one-hot kinds (N, V, kinds), a standardised target (N,) of both."""
    g = generator(seed, 206)
    edges = (torch.rand(n, nodes, nodes, generator=g) < 0.3).float().triu(1)
    edges = edges + edges.transpose(1, 2)
    kind = torch.randint(kinds, (n, nodes), generator=g)
    feature = F.one_hot(kind, kinds).float()
    bond = torch.randn(kinds, kinds, generator=g)
    bond = (bond + bond.T) / 2
    value = torch.randn(kinds, generator=g)
    y = torch.einsum("nij,nik,njl,kl->n", edges, feature, feature, bond) / 2 + feature.sum(1) @ value
    y = (y - y.mean()) / y.std()
    adjacency = edges + torch.eye(nodes)
    return adjacency / 3, feature, y


def topics(
    seed: int, *, n: int = 1500, classes: int = 6, symbols: int = 300, length: int = 20, clear: float = 0.35
) -> Split:
    """Documents (N, length) of token ids: a share `clear` of the tokens comes from the topic's own words."""
    g = generator(seed, 207)
    total = n + 600
    y = torch.randint(classes, (total,), generator=g)
    own = symbols // (2 * classes)
    common = torch.randint(own * classes, symbols, (total, length), generator=g)
    special = y[:, None] * own + torch.randint(own, (total, length), generator=g)
    x = torch.where(torch.rand(total, length, generator=g) < clear, special, common)
    return Split(x[:n], y[:n], x[n:], y[n:])


def rings(seed: int, *, n: int = 1500, columns: int = 6) -> Split:
    """Standard normal columns; the class is whether the first three are far from the origin."""
    g = generator(seed, 208)
    x = torch.randn(n + 1000, columns, generator=g)
    y = (x[:, :3].square().sum(1) > 2.366).long()
    return Split(x[:n], y[:n], x[n:], y[n:])


def r2_on(module: nn.Module, x: Any, y: Tensor) -> float:
    return r2(predict(module, x).reshape(-1), y.reshape(-1))
