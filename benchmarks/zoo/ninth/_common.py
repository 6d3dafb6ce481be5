"""Tasks and small shared pieces of this part. Each task is a function of the seed; inputs are float32."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.zoo import case
from benchmarks.zoo.case import Training
from benchmarks.zoo.data import Split, generator, predict

Make = Callable[[int, bool], Training]


def sick(name: str, family: str, *causes: str, note: str = "") -> Callable[[Make], Make]:
    """Register `make(seed, ill)`: the case is `make(seed, True)`, its twin `make(seed, False)`."""

    def register(make: Make) -> Make:
        @wraps(make)
        def build(seed: int) -> Training:
            return make(seed, True)

        @wraps(make)
        def twin(seed: int) -> Training:
            return make(seed, False)

        case.sick(name, family, *causes, twin=twin, note=note)(build)
        return make

    return register


class Learner(LightningModule):
    """A net, a loss of (output, target), and `optimizer(module)` for what configure_optimizers returns."""

    def __init__(self, net: nn.Module, loss: Callable[..., Tensor], optimizer: Callable[..., Any]) -> None:
        super().__init__()
        self.net = net
        self.criterion = loss
        self.make_optimizer = optimizer

    def forward(self, *x: Any) -> Any:
        return self.net(*x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        *x, y = batch
        loss = self.criterion(self(*x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        *x, y = batch
        self.log("val_loss", self.criterion(self(*x), y), prog_bar=True)

    def configure_optimizers(self) -> Any:
        return self.make_optimizer(self)


class Bare(LightningModule):
    """The optimizer of most demos; the rest is the subclass's."""

    rate = 1e-3

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.rate)


def adam(lr: float = 1e-3, **options: Any) -> Callable[[nn.Module], torch.optim.Optimizer]:
    return lambda module: torch.optim.Adam(module.parameters(), lr=lr, **options)


def adamw(lr: float = 1e-3, **options: Any) -> Callable[[nn.Module], torch.optim.Optimizer]:
    return lambda module: torch.optim.AdamW(module.parameters(), lr=lr, **options)


def sgd(lr: float = 0.05, **options: Any) -> Callable[[nn.Module], torch.optim.Optimizer]:
    return lambda module: torch.optim.SGD(module.parameters(), lr=lr, **options)


def mlp(*widths: int, act: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    layers: list[nn.Module] = []
    for k in range(len(widths) - 1):
        layers += [nn.Linear(widths[k], widths[k + 1]), act()]
    return nn.Sequential(*layers[:-1])


def cnn(classes: int = 10, width: int = 8, channels: int = 1) -> nn.Sequential:
    """For the 8 x 8 digits."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * width * 16, classes),
    )


def conv1d(classes: int = 4, width: int = 12) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(1, width, 7, stride=2),
        nn.ReLU(),
        nn.Conv1d(width, width, 5),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(width, classes),
    )


class Last(nn.Module):
    """A recurrent net over (N, T, C) or ids (N, T), and a linear head on its last state."""

    def __init__(self, kind: Any, columns: int, hidden: int, out: int, symbols: int = 0, **options: Any) -> None:
        super().__init__()
        self.table = nn.Embedding(symbols, columns) if symbols else nn.Identity()
        self.rnn = kind(columns, hidden, batch_first=True, **options)
        self.out = nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(self.table(x))[0][:, -1])


class Reader(nn.Module):
    """A small pre-norm transformer over ids: one answer per text, or (`causal`) one per place."""

    def __init__(self, symbols: int, out: int, dim: int = 32, length: int = 40, causal: bool = False, depth: int = 1):
        super().__init__()
        self.table = nn.Embedding(symbols, dim)
        self.place = nn.Parameter(0.1 * torch.randn(length, dim))
        layer = nn.TransformerEncoderLayer(dim, 4, 2 * dim, dropout=0.0, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, depth, norm=nn.LayerNorm(dim), enable_nested_tensor=False)
        self.out = nn.Linear(dim, out)
        self.causal = causal

    def forward(self, ids: Tensor) -> Tensor:
        length = ids.shape[1]
        h = self.table(ids) + self.place[:length]
        if self.causal:
            return self.out(self.body(h, mask=torch.triu(torch.full((length, length), -1e9), 1)))
        return self.out(self.body(h).mean(1))


def loader(*columns: Tensor, size: int = 32, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*columns), size, **{"shuffle": True, **options})


def frozen_order(*columns: Tensor, size: int = 256) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*columns), size)


def minus(loss: Callable[..., Tensor], *columns: Tensor) -> Callable[[LightningModule], float]:
    """A score: minus the loss of the answers to these columns, the last of which is the target."""
    *x, y = columns
    return lambda m: -loss(predict(lambda_module(m), tuple(x)), y).item()


class _Spread(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: tuple[Tensor, ...]) -> Any:
        return self.inner(*x)


def lambda_module(inner: nn.Module) -> nn.Module:
    """`inner` taking its inputs as one tuple."""
    return _Spread(inner)


def balanced(module: LightningModule, x: Tensor, y: Tensor) -> float:
    """Recall averaged over the classes."""
    answer = predict(module, x).argmax(-1)
    return torch.stack([(answer[y == k] == k).float().mean() for k in y.unique()]).mean().item()


def pulses(seed: int, n: int = 900, length: int = 48) -> Split:
    """Signals (N, 1, length) of one of four pitches with random phase and noise."""
    g = generator(seed, 91)
    y = torch.randint(4, (n + 600,), generator=g)
    phase = 2 * math.pi * torch.rand(n + 600, 1, generator=g)
    x = torch.sin((0.25 + 0.22 * y[:, None]) * torch.arange(length) + phase)
    x = (x + 0.4 * torch.randn(x.shape, generator=g))[:, None]
    return Split(x[:n], y[:n], x[n:], y[n:])


def first_word(seed: int, n: int = 1000, length: int = 12, symbols: int = 16) -> Split:
    """Ids (N, length); the class (four) is the id at the first place."""
    g = generator(seed, 92)
    x = torch.randint(4, symbols, (n + 500, length), generator=g)
    y = torch.randint(4, (n + 500,), generator=g)
    x[:, 0] = y
    return Split(x[:n], y[:n], x[n:], y[n:])


def tides(seed: int, n: int = 900, length: int = 24) -> Split:
    """Windows (N, length, 1) of two waves with noise; the target (N, 1) is the value two steps on."""
    g = generator(seed, 93)
    total = n + 500
    t = torch.arange(length + 2)
    a, b = (2 * math.pi * torch.rand(total, 1, generator=g) for _ in range(2))
    wave = torch.sin(0.5 * t + a) + 0.5 * torch.sin(1.1 * t + b) + 0.05 * torch.randn(total, length + 2, generator=g)
    x, y = wave[:, :length, None], wave[:, -1:]
    return Split(x[:n], y[:n], x[n:], y[n:])


def ratings(seed: int, n: int = 4000, users: int = 60, items: int = 50) -> Split:
    """Pairs of ids (N, 2) and ratings (N,) of variance about 1: biases and three hidden tastes, some noise."""
    g = generator(seed, 94)
    total = n + 2000
    ids = torch.stack([torch.randint(k, (total,), generator=g) for k in (users, items)], 1)
    p, q = torch.randn(users, 3, generator=g), torch.randn(items, 3, generator=g)
    bias = 0.4 * torch.randn(items, generator=g)
    y = 0.5 * (p[ids[:, 0]] * q[ids[:, 1]]).sum(1) + bias[ids[:, 1]] + 0.2 * torch.randn(total, generator=g)
    return Split(ids[:n], y[:n], ids[n:], y[n:])


def notes(seed: int, n: int = 1200, length: int = 14, words: int = 120) -> Split:
    """Texts (N, length) of word ids on one of five topics; a third of the words are of the topic."""
    g = generator(seed, 95)
    total = n + 600
    y = torch.randint(5, (total,), generator=g)
    own = y[:, None] * 12 + torch.randint(12, (total, length), generator=g)
    x = torch.where(torch.rand(total, length, generator=g) < 0.33, own, torch.randint(words, own.shape, generator=g))
    return Split(x[:n], y[:n], x[n:], y[n:])


def colonies(seed: int, n: int = 500, size: int = 16) -> Split:
    """Pictures (N, 1, size, size) of one to three bright discs in noise, and their masks."""
    g = generator(seed, 96)
    total = n + 200
    row, column = torch.meshgrid(torch.arange(float(size)), torch.arange(float(size)), indexing="ij")
    mask = torch.zeros(total, size, size)
    for k in range(3):
        cy, cx = (size * torch.rand(total, 1, 1, generator=g) for _ in range(2))
        radius = 1.5 + 2 * torch.rand(total, 1, 1, generator=g)
        here = ((row - cy) ** 2 + (column - cx) ** 2 <= radius**2).float()
        mask = torch.maximum(mask, here * (torch.rand(total, 1, 1, generator=g) < 1 - 0.3 * k))
    x = mask + 0.5 * torch.randn(mask.shape, generator=g)
    x, mask = x[:, None], mask[:, None]
    return Split(x[:n], mask[:n], x[n:], mask[n:])


def furnace(seed: int, n: int = 1200, outputs: int = 3, noise: float = 0.1) -> Split:
    """Six standard normal gauges and `outputs` smooth functions of them (N, outputs), each of variance 1."""
    g = generator(seed, 97)
    x = torch.randn(n + 800, 6, generator=g)
    h = torch.sin(x @ torch.randn(6, 10, generator=g) * 0.7)
    y = h @ torch.randn(10, outputs, generator=g)
    y = (y - y.mean(0)) / y.std(0)
    y = y + noise * torch.randn(y.shape, generator=g)
    return Split(x[:n], y[:n], x[n:], y[n:])


def calls(seed: int, n: int = 1500) -> Split:
    """Five columns, and counts (N,) whose logarithm of the mean is a smooth function of them."""
    g = generator(seed, 98)
    x = torch.randn(n + 1000, 5, generator=g)
    rate = torch.exp(0.6 + 0.6 * x[:, 0] - 0.4 * x[:, 1] + 0.5 * torch.sin(2 * x[:, 2]))
    y = torch.poisson(rate, generator=g)
    return Split(x[:n], y[:n], x[n:], y[n:])


def surveys(seed: int, n: int = 1500, columns: int = 10) -> Split:
    """Standard normal columns and a class of three, by two products and a sum: no line tells them apart."""
    g = generator(seed, 99)
    x = torch.randn(n + 1000, columns, generator=g)
    s = x[:, 0] * x[:, 1] + 0.8 * x[:, 2] + 0.7 * x[:, 3].abs() + 0.15 * torch.randn(n + 1000, generator=g)
    y = (s > 0).long() + (s > 1).long()
    return Split(x[:n], y[:n], x[n:], y[n:])


def flows(seed: int, n: int = 1500) -> Tensor:
    """Points (N, 2) on a wobbly ring."""
    g = generator(seed, 100)
    a = 2 * math.pi * torch.rand(n, generator=g)
    r = 1.2 + 0.3 * torch.sin(3 * a) + 0.1 * torch.randn(n, generator=g)
    return torch.stack([r * a.cos(), r * a.sin()], 1)


def molecules(seed: int, n: int = 900, nodes: int = 9) -> tuple[Split, Tensor, Tensor]:
    """Node features (N, nodes, 4), a target (N, 1) made of sums over neighbours; and both parts' adjacencies."""
    g = generator(seed, 101)
    total = n + 500
    a = torch.triu((torch.rand(total, nodes, nodes, generator=g) < 0.3).float(), 1)
    a = a + a.transpose(1, 2) + torch.eye(nodes)
    a = a / a.sum(-1, keepdim=True)
    x = torch.randn(total, nodes, 4, generator=g)
    y = (torch.relu(a @ x @ torch.randn(4, 6, generator=g)) @ torch.randn(6, 1, generator=g)).mean(1)
    y = (y - y.mean()) / y.std()
    return Split(x[:n], y[:n], x[n:], y[n:]), a[:n], a[n:]


class Factors(nn.Module):
    """Ratings as a product of two tables, with a bias for each item."""

    def __init__(self, users: int = 60, items: int = 50, dim: int = 6, scale: float = 0.3) -> None:
        super().__init__()
        self.user, self.item, self.bias = nn.Embedding(users, dim), nn.Embedding(items, dim), nn.Embedding(items, 1)
        for part in (self.user, self.item, self.bias):
            nn.init.normal_(part.weight, std=scale)

    def forward(self, ids: Tensor) -> Tensor:
        u, i = ids[:, 0], ids[:, 1]
        return (self.user(u) * self.item(i)).sum(-1) + self.bias(i)[:, 0]


class Bag(nn.Module):
    def __init__(self, words: int = 120, classes: int = 5, dim: int = 24) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(words, dim)
        self.out = mlp(dim, 32, classes)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.bag(ids))


class Messages(nn.Module):
    """Two rounds of messages over a normalised adjacency, then the mean of the nodes."""

    def __init__(self, columns: int = 4, hidden: int = 24, out: int = 1) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Linear(columns, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, out)

    def forward(self, x: Tensor, a: Tensor) -> Tensor:
        h = torch.relu(self.one(a @ x))
        h = torch.relu(self.two(a @ h))
        return self.out(h.mean(1))


def unet(width: int = 8) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 1, 1),
    )


def dice(logits: Tensor, mask: Tensor) -> float:
    answer = (logits > 0).float()
    return (2 * (answer * mask).sum() / (answer.sum() + mask.sum() + 1e-6)).item()


mse, ce, bce = F.mse_loss, F.cross_entropy, F.binary_cross_entropy_with_logits
