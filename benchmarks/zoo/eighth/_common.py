"""Tasks and shared pieces of the eighth part. Each task is a function of the seed alone."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.zoo.data import Split, generator, predict


class Task(LightningModule):
    """A net, a loss of (output, target), and an optimizer by name."""

    def __init__(
        self, net: nn.Module, loss: Callable[..., Tensor], lr: float = 1e-3, kind: str = "Adam", **options: Any
    ):
        super().__init__()
        self.net, self.loss = net, loss
        self.lr, self.kind, self.options = lr, kind, options

    def forward(self, *x: Tensor) -> Any:
        return self.net(*x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        *x, y = batch
        loss = self.loss(self(*x), y)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        *x, y = batch
        self.log("val/loss", self.loss(self(*x), y))

    def configure_optimizers(self) -> Any:
        return getattr(torch.optim, self.kind)(self.parameters(), lr=self.lr, **self.options)


class Plain(LightningModule):
    """A base that logs nothing and leaves `step_loss` to the case: x, y tuples by default."""

    def __init__(self, net: nn.Module, lr: float = 1e-3) -> None:
        super().__init__()
        self.net, self.lr = net, lr

    def forward(self, x: Tensor) -> Any:
        return self.net(x)

    def step_loss(self, batch: Any) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": self.step_loss(batch)}

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), self.lr)


class Module(LightningDataModule):
    """A DataModule over two tuples of tensors."""

    def __init__(self, train: tuple[Tensor, ...], val: tuple[Tensor, ...], size: int = 32) -> None:
        super().__init__()
        self.fit_rows, self.val_rows, self.size = train, val, size

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*self.fit_rows), self.size, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*self.val_rows), 256)


def loader(*rows: Tensor, size: int = 32, shuffle: bool = True, **options: Any) -> Any:
    return DataLoader(TensorDataset(*rows), size, shuffle=shuffle, **options)


def mlp(*widths: int, act: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers with `act` between them."""
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), act()]
    return nn.Sequential(*layers[:-1])


def picture_net(classes: int = 10, width: int = 8, norm: bool = False) -> nn.Sequential:
    """Two convolutions for 8 x 8 digits."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width) if norm else nn.Identity(),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.BatchNorm2d(2 * width) if norm else nn.Identity(),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * width * 16, classes),
    )


def yields(seed: int, n: int = 1200, columns: int = 6) -> Split:
    """Rows of standard normals; targets (N, 1) of unit scale, a smooth function with products. R2 0.95 at best."""
    g = generator(seed, 81)
    x = torch.randn(n + 600, columns, generator=g)
    y = x[:, 0] * x[:, 1] + torch.sin(2 * x[:, 2]) + 0.7 * x[:, 3]
    y = (y - y[:n].mean()) / y[:n].std() + 0.2 * torch.randn(n + 600, generator=g)
    return Split(x[:n], y[:n, None], x[n:], y[n:, None])


def beats(seed: int, n: int = 960, length: int = 48) -> Split:
    """Signals (N, 1, length) of one of four pitches, any phase, with noise; the pitch is the class."""
    g = generator(seed, 82)
    y = torch.randint(4, (n + 500,), generator=g)
    phase = 6.2832 * torch.rand(n + 500, 1, generator=g)
    t = torch.arange(length)[None]
    pitch = torch.tensor([0.25, 0.45, 0.75, 1.2])[y][:, None]
    x = torch.sin(pitch * t + phase) + 0.5 * torch.randn(n + 500, length, generator=g)
    return Split(x[:n, None], y[:n], x[n:, None], y[n:])


def beat_net(classes: int = 4, width: int = 12, act: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(1, width, 7, padding=3),
        act(),
        nn.MaxPool1d(2),
        nn.Conv1d(width, width, 5, padding=2),
        act(),
        nn.AdaptiveAvgPool1d(4),
        nn.Flatten(),
        nn.Linear(4 * width, classes),
    )


def notes(seed: int, n: int = 1000, length: int = 14, symbols: int = 40) -> Split:
    """Bags of word ids (N, length): words below half lean to class 1, the others to class 0, a tenth of noise."""
    g = generator(seed, 83)
    y = torch.randint(2, (n + 600,), generator=g)
    lean = torch.rand(n + 600, length, generator=g) < 0.68
    half = symbols // 2
    low = torch.randint(half, (n + 600, length), generator=g)
    x = torch.where(lean == (y[:, None] == 1), low, low + half)
    return Split(x[:n], y[:n], x[n:], y[n:])


def walks(seed: int, n: int = 900, length: int = 16) -> Split:
    """Series (N, length, 1); the target (N, 1) is the next value of a noisy oscillation."""
    g = generator(seed, 84)
    pitch = 0.25 + 0.5 * torch.rand(n + 500, 1, generator=g)
    phase = 6.2832 * torch.rand(n + 500, 1, generator=g)
    w = torch.sin(pitch * torch.arange(length + 1) + phase) + 0.08 * torch.randn(n + 500, length + 1, generator=g)
    return Split(w[:n, :-1, None], w[:n, -1:], w[n:, :-1, None], w[n:, -1:])


def marks(seed: int, n: int = 2400, users: int = 60, items: int = 40) -> Split:
    """Pairs (N, 2) of user and item with a rating of unit scale (N,) from three hidden tastes."""
    g = generator(seed, 85)
    u, v = torch.randn(users, 3, generator=g), torch.randn(items, 3, generator=g)
    x = torch.stack([torch.randint(users, (n + 600,), generator=g), torch.randint(items, (n + 600,), generator=g)], 1)
    y = (u[x[:, 0]] * v[x[:, 1]]).sum(1) / 1.8 + 0.2 * torch.randn(n + 600, generator=g)
    return Split(x[:n], y[:n], x[n:], y[n:])


def spots(seed: int, n: int = 400, side: int = 12) -> Split:
    """Noisy pictures (N, 1, side, side) of a bright disc; the target is its mask of the same shape, 0 or 1."""
    g = generator(seed, 86)
    row, column = torch.meshgrid(torch.arange(float(side)), torch.arange(float(side)), indexing="ij")
    at = 3 + (side - 6) * torch.rand(n + 150, 2, generator=g)
    radius = 1.5 + 1.5 * torch.rand(n + 150, 1, 1, generator=g)
    mask = ((row - at[:, :1, None]) ** 2 + (column - at[:, 1:, None]) ** 2 < radius**2).float()
    x = mask + 0.4 * torch.randn(n + 150, side, side, generator=g)
    return Split(x[:n, None], mask[:n, None], x[n:, None], mask[n:, None])


def visits(seed: int, n: int = 1200) -> Split:
    """Five normal columns; the target (N,) is a count with a log-linear rate of about two."""
    g = generator(seed, 87)
    x = torch.randn(n + 600, 5, generator=g)
    rate = torch.exp(0.6 + 0.5 * x[:, 0] - 0.4 * x[:, 1] + 0.3 * x[:, 2] * x[:, 3])
    y = torch.poisson(rate.clamp(max=20), generator=g)
    return Split(x[:n], y[:n], x[n:], y[n:])


def commands(seed: int, n: int = 1000, length: int = 12, symbols: int = 16) -> Split:
    """Sequences (N, length) of ids; the class (of four) is the only id below four, at any place."""
    g = generator(seed, 88)
    x = torch.randint(4, symbols, (n + 500, length), generator=g)
    y = torch.randint(4, (n + 500,), generator=g)
    x[torch.arange(n + 500), torch.randint(length, (n + 500,), generator=g)] = y
    return Split(x[:n], y[:n], x[n:], y[n:])


class Encoder(nn.Module):
    """A transformer encoder over ids: one answer a sequence, or one a place where `causal`."""

    def __init__(self, symbols: int, out: int, dim: int = 24, layers: int = 1, causal: bool = False, drop: float = 0.0):
        super().__init__()
        self.embed = nn.Embedding(symbols, dim)
        self.place = nn.Parameter(0.05 * torch.randn(64, dim))
        block = nn.TransformerEncoderLayer(dim, 4, 2 * dim, drop, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.head = nn.Linear(dim, out)
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) + self.place[: x.shape[1]]
        if self.causal:
            mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
            return self.head(self.body(h, mask=mask, is_causal=True))
        return self.head(self.body(h).mean(1))


class Series(nn.Module):
    """A recurrent layer and a linear head on its last output."""

    def __init__(self, kind: type[nn.RNNBase], columns: int, hidden: int, out: int, **options: Any) -> None:
        super().__init__()
        self.cell = kind(columns, hidden, batch_first=True, **options)
        self.head = nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


class Tastes(nn.Module):
    """Dot products of user and item vectors."""

    def __init__(self, users: int = 60, items: int = 40, dim: int = 6, scale: float = 0.3) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(users, dim), nn.Embedding(items, dim)
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=scale)

    def forward(self, x: Tensor) -> Tensor:
        return (self.user(x[:, 0]) * self.item(x[:, 1])).sum(1)


def mask_net(width: int = 8) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 1, 1),
    )


def overlap(d: Split) -> Callable[[LightningModule], float]:
    """Dice of the thresholded mask, where the net's output is a logit."""

    def score(module: LightningModule) -> float:
        p = (predict(module, d.x_test) > 0).float()
        return (2 * (p * d.y_test).sum() / (p.sum() + d.y_test.sum() + 1e-6)).item()

    return score


def minus(loss: Callable[..., Tensor], x: Tensor, y: Tensor) -> Callable[[LightningModule], float]:
    """Minus the loss on these data; -1e9 where it is not finite."""

    def score(module: LightningModule) -> float:
        value = -loss(predict(module, x), y)
        return value.item() if torch.isfinite(value) else -1e9

    return score
