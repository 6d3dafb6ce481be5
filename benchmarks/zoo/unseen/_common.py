"""Tasks and small shared pieces of the unseen cases. Each task is a function of the seed; inputs are float32."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from lightning.pytorch import LightningModule
from sklearn.datasets import make_friedman1
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.zoo.data import Split, generator, predict, split

Score = Callable[[LightningModule], float]


class Fit(LightningModule):
    """A net, a loss of (output, target) and a recipe for the optimizer; logs train_loss and val_loss."""

    def __init__(self, net: nn.Module, loss: Callable[..., Tensor], optimizer: Callable[..., Any]) -> None:
        super().__init__()
        self.net = net
        self.loss = loss
        self.make_optimizer = optimizer

    def forward(self, x: Tensor) -> Any:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = self.loss(self(x), y)
        self.log("train_loss", loss, on_step=True, on_epoch=False, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", self.loss(self(x), y), prog_bar=True)

    def configure_optimizers(self) -> Any:
        return self.make_optimizer(self.parameters())


def adam(lr: float = 1e-3, **options: Any) -> Callable[..., torch.optim.Optimizer]:
    return lambda parameters: torch.optim.Adam(parameters, lr=lr, **options)


def adamw(lr: float = 1e-3, **options: Any) -> Callable[..., torch.optim.Optimizer]:
    return lambda parameters: torch.optim.AdamW(parameters, lr=lr, **options)


def sgd(lr: float = 0.1, **options: Any) -> Callable[..., torch.optim.Optimizer]:
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, **options)


def dense(*widths: int, act: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers of these widths with `act` between them and nothing after the last."""
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), act()]
    return nn.Sequential(*layers[:-1])


def conv_net(classes: int = 4, width: int = 8, act: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Two convolutions and a linear head for the 12 x 12 pictures of `shapes`."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        act(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        act(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * width * 9, classes),
    )


def batches(x: Any, y: Any, size: int = 32, **options: Any) -> DataLoader[Any]:
    """Shuffled batches of (x, y)."""
    return DataLoader(TensorDataset(x, y), batch_size=size, **{"shuffle": True, **options})


def dicts(size: int = 32, shuffle: bool = True, **columns: Tensor) -> DataLoader[Any]:
    """Batches that are dicts of these columns."""
    rows: Any = [{k: v[i] for k, v in columns.items()} for i in range(len(next(iter(columns.values()))))]
    return DataLoader(rows, batch_size=size, shuffle=shuffle)


def held_out(x: Tensor, y: Tensor, size: int = 256) -> DataLoader[Any]:
    return DataLoader(TensorDataset(x, y), batch_size=size)


def balanced_accuracy(module: LightningModule, x: Tensor, y: Tensor, decide: Callable[[Tensor], Tensor]) -> float:
    """Recall averaged over the classes: 1 / classes for a constant answer."""
    answer = decide(predict(module, x))
    return torch.stack([(answer[y == k] == k).float().mean() for k in y.unique()]).mean().item()


def minus_loss(x: Tensor, y: Tensor, loss: Callable[..., Tensor]) -> Score:
    """A score: minus the loss on these data."""
    return lambda module: -loss(predict(module, x), y).item()


def shapes(seed: int, n: int = 900, noise: float = 0.25) -> Split:
    """Noisy 12 x 12 pictures (N, 1, 12, 12) of a disc, a square's outline, a cross or stripes at a random place."""
    g = generator(seed, 31)
    total = n + 500
    y = torch.randint(4, (total,), generator=g)
    row, column = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    cy, cx = (4 + torch.randint(5, (total, 1, 1), generator=g) - 0.0 for _ in range(2))
    dy, dx = (row - cy).abs(), (column - cx).abs()
    inside = torch.maximum(dy, dx) <= 3
    drawn = torch.stack(
        [
            dy**2 + dx**2 <= 9,
            torch.maximum(dy, dx) == 3,
            inside & ((dy == 0) | (dx == 0)),
            inside & ((row + column) % 3 == 0),
        ]
    ).float()
    x = drawn[y, torch.arange(total)] + noise * torch.randn(total, 12, 12, generator=g)
    x = x[:, None]
    return Split(x[:n], y[:n], x[n:], y[n:])


def friedman(seed: int, n: int = 1000, noise: float = 0.5) -> Split:
    """Friedman's first function of five of ten columns, all standardised; targets (N, 1), R2 about 0.97 at best."""
    x, y = make_friedman1(2 * n, noise=noise, random_state=seed)
    d = split(torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)[:, None], seed, 0.5)
    mean, std = d.y.mean(), d.y.std()
    return d.standardised().map_targets(lambda t: (t - mean) / std)


def rings(seed: int, n: int = 900) -> Split:
    """Three rings around each other, in two columns: no line tells them apart."""
    g = generator(seed, 32)
    y = torch.randint(3, (2 * n,), generator=g)
    angle = 6.2832 * torch.rand(2 * n, generator=g)
    radius = 0.4 + 0.7 * y + 0.1 * torch.randn(2 * n, generator=g)
    x = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    return Split(x[:n], y[:n], x[n:], y[n:])


def series(seed: int, n: int = 800, length: int = 20) -> Split:
    """Windows (N, length, 1) of sines of random phase and pitch with noise; the target (N, 1) is the next value."""
    g = generator(seed, 33)
    pitch = 0.2 + 0.4 * torch.rand(2 * n, 1, generator=g)
    phase = 6.2832 * torch.rand(2 * n, 1, generator=g)
    wave = torch.sin(pitch * torch.arange(length + 1) + phase) + 0.05 * torch.randn(2 * n, length + 1, generator=g)
    x, y = wave[:, :-1, None], wave[:, -1:]
    return Split(x[:n], y[:n], x[n:], y[n:])


def tokens(seed: int, n: int = 800, length: int = 16, symbols: int = 12) -> Split:
    """Sequences (N, length) of ids; the label of each place counts the high ids at it and before it."""
    g = generator(seed, 34)
    x = torch.randint(symbols, (n + 400, length), generator=g)
    before = torch.cat([torch.zeros(n + 400, 1, dtype=torch.long), x[:, :-1]], 1)
    y = (2 * x >= symbols).long() + (2 * before >= symbols).long()
    return Split(x[:n], y[:n], x[n:], y[n:])


def keyword(seed: int, n: int = 1000, length: int = 24, symbols: int = 20) -> Split:
    """Sequences (N, length) of ids 4.. with one of the keys 0..3 somewhere; the key is the class."""
    g = generator(seed, 35)
    x = torch.randint(4, symbols, (n + 600, length), generator=g)
    y = torch.randint(4, (n + 600,), generator=g)
    x[torch.arange(n + 600), torch.randint(length, (n + 600,), generator=g)] = y
    return Split(x[:n], y[:n], x[n:], y[n:])


def factors(seed: int, n: int = 1000, columns: int = 20, hidden: int = 4) -> Split:
    """Rows (N, columns) of variance 1 that are tanh of `hidden` numbers plus a little noise; the target is the row."""
    g = generator(seed, 36)
    z = torch.randn(2 * n, hidden, generator=g)
    x = torch.tanh(z @ torch.randn(hidden, columns, generator=g)) + 0.1 * torch.randn(2 * n, columns, generator=g)
    x = (x - x.mean(0)) / x.std(0)
    return Split(x[:n], x[:n], x[n:], x[n:])


class Tagger(nn.Module):
    """A small transformer: a class for each place (`pool=False`) or for the whole sequence."""

    def __init__(self, symbols: int, classes: int, *, dim: int = 32, length: int = 32, pool: bool, layers: int = 1):
        super().__init__()
        self.embedding = nn.Embedding(symbols, dim)
        self.position = nn.Parameter(0.1 * torch.randn(length, dim))
        block = nn.TransformerEncoderLayer(dim, 4, 2 * dim, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.head = nn.Linear(dim, classes)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        h = self.encoder(self.embedding(x) + self.position[: x.shape[1]])
        return self.head(h.mean(1) if self.pool else h)


def token_loss(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), y.flatten())


class Recurrent(nn.Module):
    """A recurrent layer over (N, T, F) and a linear head on its last output, or on the mean of all."""

    def __init__(self, kind: type[nn.RNNBase], columns: int, hidden: int, out: int, pool: bool = False, **options: Any):
        super().__init__()
        self.rnn = kind(columns, hidden, batch_first=True, **options)
        self.head = nn.Linear(hidden, out)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        h = self.rnn(x)[0]
        return self.head(h.mean(1) if self.pool else h[:, -1])
