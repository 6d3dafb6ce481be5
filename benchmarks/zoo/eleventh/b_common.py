"""Small shared pieces of the modules `b_*`: test scores and a plain classifier and regressor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.zoo.data import accuracy, predict, r2


def loader(*tensors: Tensor, batch: int, shuffle: bool = True, **options: Any) -> DataLoader[Any]:
    """A DataLoader of tuples of `tensors`."""
    return DataLoader(TensorDataset(*tensors), batch, shuffle=shuffle, **options)


def by_accuracy(x: Any, y: Tensor) -> Callable[[LightningModule], float]:
    """Score: share of right classes on `(x, y)`."""
    return lambda module: accuracy(predict(module, x), y)


def by_r2(x: Any, y: Tensor) -> Callable[[LightningModule], float]:
    """Score: explained variance on `(x, y)`."""
    return lambda module: r2(predict(module, x), y)


def mlp(inputs: int, hidden: int, outputs: int, layers: int = 2) -> nn.Sequential:
    """`layers` hidden ReLU layers and a linear output."""
    parts: list[nn.Module] = []
    for _ in range(layers):
        parts += [nn.Linear(inputs, hidden), nn.ReLU()]
        inputs = hidden
    return nn.Sequential(*parts, nn.Linear(inputs, outputs))


class Fit(LightningModule):
    """A network, a loss on `(x, y)` and an optimizer, with nothing else."""

    def __init__(
        self,
        net: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        optimizer: Callable[[Any], torch.optim.Optimizer],
    ) -> None:
        super().__init__()
        self.net = net
        self.loss = loss
        self.make_optimizer = optimizer

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return self.loss(self(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make_optimizer(self.parameters())
