"""The two modules most cases share, written as in Lightning's own tutorials."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

Optimizers = Callable[[LightningModule], Any]


def mlp(*sizes: int, act: type[nn.Module] = nn.ReLU, dropout: float = 0.0) -> nn.Sequential:
    """Linear layers of the given sizes with `act` (and dropout) between them."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(sizes)):
        layers.append(nn.Linear(a, b))
        if i < len(sizes) - 2:
            layers.append(act())
            if dropout:
                layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers)


class Classifier(LightningModule):
    """Cross-entropy on logits, Adam unless `optimizers(module)` says otherwise."""

    def __init__(self, net: nn.Module, lr: float = 1e-3, optimizers: Optimizers | None = None) -> None:
        super().__init__()
        self.net = net
        self.lr = lr
        self.optimizers_fn = optimizers

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        logits = self(x)
        loss = F.cross_entropy(logits, y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        logits = self(x)
        self.log("val_loss", F.cross_entropy(logits, y), prog_bar=True)
        self.log("val_acc", (logits.argmax(1) == y).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> Any:
        if self.optimizers_fn is not None:
            return self.optimizers_fn(self)
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class Regressor(LightningModule):
    """Mean squared error (or `loss`), Adam unless `optimizers(module)` says otherwise."""

    def __init__(
        self,
        net: nn.Module,
        lr: float = 1e-3,
        loss: nn.Module | None = None,
        optimizers: Optimizers | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.lr = lr
        self.criterion = loss or nn.MSELoss()
        self.optimizers_fn = optimizers

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = self.criterion(self.net(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", self.criterion(self.net(x), y))

    def configure_optimizers(self) -> Any:
        if self.optimizers_fn is not None:
            return self.optimizers_fn(self)
        return torch.optim.Adam(self.parameters(), lr=self.lr)
