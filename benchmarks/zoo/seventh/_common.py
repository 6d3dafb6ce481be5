"""Tasks and pieces that the cases of this part share. Every task is a function of the seed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.zoo.data import Split, generator, predict


class Model(LightningModule):
    """A net, a loss and a function from the parameters to what configure_optimizers returns."""

    def __init__(self, net: nn.Module, loss: Callable[..., Tensor], optimizers: Callable[..., Any], log: bool = True):
        super().__init__()
        self.net = net
        self.criterion = loss
        self.optimizers_of = optimizers
        self.logs = log

    def forward(self, x: Any) -> Any:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        loss = self.criterion(self(x), y)
        if self.logs:
            self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", self.criterion(self(x), y))

    def configure_optimizers(self) -> Any:
        return self.optimizers_of(self.parameters())


def adam(lr: float, **options: Any) -> Callable[..., Any]:
    return lambda p: torch.optim.Adam(p, lr=lr, **options)


def adamw(lr: float, **options: Any) -> Callable[..., Any]:
    return lambda p: torch.optim.AdamW(p, lr=lr, **options)


def sgd(lr: float, **options: Any) -> Callable[..., Any]:
    return lambda p: torch.optim.SGD(p, lr=lr, **options)


def mlp(*sizes: int, act: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), act()]
    return nn.Sequential(*layers[:-1])


def small_cnn(classes: int, width: int = 8, act: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """For 8 x 8 pictures of one channel."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        act(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        act(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * width, classes),
    )


class LastStep(nn.Module):
    """A recurrent layer and a head on its last output."""

    def __init__(self, rnn: nn.RNNBase, out: int) -> None:
        super().__init__()
        self.rnn = rnn
        self.head = nn.Linear(rnn.hidden_size, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Reader(nn.Module):
    """A small transformer encoder over token ids with mean pooling."""

    def __init__(self, symbols: int = 60, classes: int = 2, dim: int = 32, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, dim)
        layer = nn.TransformerEncoderLayer(dim, 4, 2 * dim, dropout=dropout, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(x)).mean(1))


class BagOfWords(nn.Module):
    def __init__(self, symbols: int = 60, classes: int = 2, dim: int = 16) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(symbols, dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embedding(x))


class Factors(nn.Module):
    """A recommender: ids (N, 2) of users and items to a rating (N,)."""

    def __init__(self, users: int = 60, items: int = 40, dim: int = 6) -> None:
        super().__init__()
        self.users = nn.Embedding(users, dim)
        self.items = nn.Embedding(items, dim)
        self.offset = nn.Parameter(torch.zeros(()))
        nn.init.normal_(self.users.weight, std=0.3)
        nn.init.normal_(self.items.weight, std=0.3)

    def forward(self, ids: Tensor) -> Tensor:
        return (self.users(ids[:, 0]) * self.items(ids[:, 1])).sum(1) + self.offset


def loader(x: Tensor, y: Tensor, size: int = 32, shuffle: bool = True, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(x, y), batch_size=size, shuffle=shuffle, **options)


def balanced(module: nn.Module, d: Split, logits: bool = True) -> float:
    """Mean recall over the classes."""
    out = predict(module, d.x_test)
    answer = out.argmax(-1) if logits else (out.reshape(-1) > 0).long()
    return torch.stack([(answer[d.y_test == k] == k).float().mean() for k in d.y_test.unique()]).mean().item()


def iou(module: nn.Module, d: Split) -> float:
    """Intersection over union of the masks."""
    mask = predict(module, d.x_test).reshape(d.y_test.shape) > 0
    truth = d.y_test > 0.5
    return ((mask & truth).sum() / (mask | truth).sum().clamp(min=1)).item()


def ratings(seed: int, n: int = 3000, users: int = 60, items: int = 40) -> Split:
    """Ids (N, 2) and ratings (N,) of rank three with little noise."""
    g = generator(seed, 71)
    p, q = torch.randn(users, 3, generator=g), torch.randn(items, 3, generator=g)
    total = n + 800
    u, i = torch.randint(users, (total,), generator=g), torch.randint(items, (total,), generator=g)
    r = (p[u] * q[i]).sum(1) / 1.7 + 0.2 * torch.randn(total, generator=g)
    ids = torch.stack([u, i], 1)
    return Split(ids[:n], r[:n], ids[n:], r[n:])


def scenes(seed: int, n: int = 400, size: int = 16) -> Split:
    """Pictures (N, 1, size, size) of a disc and a bar in noise; the mask (N, 1, size, size) is the disc's."""
    g = generator(seed, 72)
    total = n + 150
    row, column = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    cy, cx = (3 + torch.randint(size - 6, (total, 1, 1), generator=g) for _ in range(2))
    radius = 2 + 2 * torch.rand(total, 1, 1, generator=g)
    mask = ((row - cy) ** 2 + (column - cx) ** 2 <= radius**2).float()
    bar = (row == torch.randint(size, (total, 1, 1), generator=g)).float()
    x = torch.maximum(mask, bar) + 0.3 * torch.randn(total, size, size, generator=g)
    x, mask = x[:, None], mask[:, None]
    return Split(x[:n], mask[:n], x[n:], mask[n:])


def unet(width: int = 8) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, 5, padding=2),
        nn.ReLU(),
        nn.Conv2d(width, 1, 3, padding=1),
    )


def waves(seed: int, n: int = 900, length: int = 20, ahead: int = 3) -> Split:
    """Windows (N, length, 1) of noisy sines; the targets (N, ahead) are what follows."""
    g = generator(seed, 73)
    total = n + 500
    pitch = 0.25 + 0.4 * torch.rand(total, 1, generator=g)
    time = torch.arange(length + ahead) + 25 * torch.rand(total, 1, generator=g)
    w = torch.sin(pitch * time) + 0.05 * torch.randn(total, length + ahead, generator=g)
    x, y = w[:, :length, None], w[:, length:]
    return Split(x[:n], y[:n], x[n:], y[n:])


def reviews(seed: int, n: int = 1200, length: int = 20, symbols: int = 60, shares: tuple[float, ...] = ()) -> Split:
    """Token ids (N, length); eight words speak for either of two classes, the others for none."""
    g = generator(seed, 74)
    total = n + 800
    y = torch.multinomial(torch.tensor(shares or (1.0, 1.0)), total, replacement=True, generator=g)
    kind = torch.multinomial(torch.tensor([0.22, 0.08, 0.7]), total * length, replacement=True, generator=g)
    kind = kind.view(total, length)
    word = torch.randint(8, (total, length), generator=g)
    other = torch.randint(16, symbols, (total, length), generator=g)
    x = torch.where(kind == 2, other, word + 8 * ((y[:, None] + kind) % 2))
    return Split(x[:n], y[:n], x[n:], y[n:])


def sales(seed: int, n: int = 1500) -> Split:
    """Ten columns, three targets of unit variance that are smooth functions of them."""
    g = generator(seed, 75)
    x = torch.randn(n + 800, 10, generator=g)
    y = torch.stack([x[:, 0] * x[:, 1] + x[:, 2], (2 * x[:, 3]).sin() + x[:, 4], x[:, 5].abs() + 0.5 * x[:, 6]], 1)
    y = (y - y.mean(0)) / y.std(0) + 0.1 * torch.randn(y.shape, generator=g)
    return Split(x[:n], y[:n], x[n:], y[n:])


def latent(seed: int, n: int = 1200, columns: int = 24, hidden: int = 4) -> Split:
    """Rows of unit variance made from four numbers; the target is the row itself."""
    g = generator(seed, 76)
    z = torch.randn(n + 600, hidden, generator=g)
    x = (z @ torch.randn(hidden, columns, generator=g)).tanh() + 0.1 * torch.randn(n + 600, columns, generator=g)
    x = (x - x.mean(0)) / x.std(0)
    return Split(x[:n], x[:n], x[n:], x[n:])
