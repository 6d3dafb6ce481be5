"""Small models, measures and data that the `pa-` cases share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.zoo.data import generator

Optim = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def mlp(*sizes: int, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers of these sizes with `act` between them."""
    parts: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(sizes)):
        parts.append(nn.Linear(a, b))
        if i < len(sizes) - 2:
            parts.append(act())
    return nn.Sequential(*parts)


class Fit(LightningModule):
    """A network, a loss of (outputs, targets) and an optimizer, on batches of `(x, y)`."""

    def __init__(self, net: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], optim: Optim) -> None:
        super().__init__()
        self.net = net
        self.loss = loss
        self.optim = optim

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return self.loss(self(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optim(self.parameters())


class Logged(Fit):
    """The same with a validation step and logs."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", self.loss(self(x), y))


def adam(lr: float, **options: Any) -> Optim:
    return lambda p: torch.optim.Adam(p, lr=lr, **options)


def sgd(lr: float, momentum: float = 0.9, **options: Any) -> Optim:
    return lambda p: torch.optim.SGD(p, lr=lr, momentum=momentum, **options)


def batches(*tensors: Tensor, size: int, shuffle: bool = True, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*tensors), size, shuffle=shuffle, **options)


def epochs(count: int, **options: Any) -> dict[str, Any]:
    return {"max_epochs": count, "num_sanity_val_steps": 0, **options}


def f1(found: Tensor, truth: Tensor) -> float:
    """F1 of two boolean tensors."""
    hit = (found & truth).sum().item()
    return 2 * hit / max(1, found.sum().item() + truth.sum().item())


def recalls(found: Tensor, truth: Tensor) -> float:
    """Mean of the recalls of the classes that occur in `truth`."""
    return sum((found[truth == c] == c).float().mean().item() for c in truth.unique()) / len(truth.unique())


def bursts(seed: int, n: int, length: int = 64) -> tuple[Tensor, Tensor]:
    """Signals (N, 1, length) of noise with a short tone somewhere, and the samples (N, length) it covers as 0 and 1."""
    g = generator(seed, 31)
    time = torch.arange(length)
    start = torch.randint(4, length - 16, (n, 1), generator=g)
    mask = ((time >= start) & (time < start + 10)).float()
    tone = torch.sin(1.4 * time + 6 * torch.rand(n, 1, generator=g))
    x = 0.35 * torch.randn(n, length, generator=g) + 1.6 * mask * tone
    return x[:, None], mask


def seasons(seed: int, n: int, length: int = 24) -> tuple[Tensor, Tensor]:
    """Windows (N, length) of seasonal series of different swing, over all of deviation 1, and the next value (N, 1)."""
    g = generator(seed, 32)
    time = torch.arange(length + 1)
    swing = 0.4 + torch.empty(n, 1).exponential_(1.0, generator=g)
    period = 8 + 6 * torch.rand(n, 1, generator=g)
    x = swing * torch.sin(6.283 * (time / period + torch.rand(n, 1, generator=g)))
    x = x + 0.1 * torch.randn(n, length + 1, generator=g)
    x = x / x.std()
    return x[:, :-1], x[:, -1:]


def graphs(seed: int, n: int, nodes: int = 10, sparse: float = 0.35) -> tuple[Tensor, Tensor, Tensor]:
    """Symmetric graphs (N, nodes, nodes) without loops, node features (N, nodes, 4), and a class from linked features.

    The class says whether neighbours resemble each other in the first feature.
    """
    g = generator(seed, 33)
    x = torch.randn(n, nodes, 4, generator=g)
    y = torch.randint(2, (n,), generator=g)
    alike = x[:, :, None, 0] * x[:, None, :, 0]
    drawn = torch.rand(n, nodes, nodes, generator=g)
    upper = torch.triu(drawn < sparse * torch.sigmoid((2.0 * y[:, None, None] - 1) * 3 * alike) * 2, diagonal=1).float()
    return upper + upper.transpose(1, 2), x, y
