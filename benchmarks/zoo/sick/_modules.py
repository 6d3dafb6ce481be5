"""The LightningModules that most of the sick trainings share: a classifier and a regressor around any network."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]


def adam(lr: float = 1e-3, **options: Any) -> OptimizerFactory:
    return lambda parameters: torch.optim.Adam(parameters, lr=lr, **options)


def adamw(lr: float = 1e-3, **options: Any) -> OptimizerFactory:
    return lambda parameters: torch.optim.AdamW(parameters, lr=lr, **options)


def sgd(lr: float = 0.1, **options: Any) -> OptimizerFactory:
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, **options)


class Classifier(LightningModule):
    """Cross-entropy over the logits of `net`; logs the loss and, with a validation set, loss and accuracy."""

    def __init__(self, net: nn.Module, optimizer: OptimizerFactory | None = None) -> None:
        super().__init__()
        self.net = net
        self.optimizer = optimizer or adam()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        logits = self(x)
        self.log("val_loss", F.cross_entropy(logits, y))
        self.log("val_acc", (logits.argmax(1) == y).float().mean())

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters())


class Regressor(LightningModule):
    """Mean squared error of `net` against targets of the same shape."""

    def __init__(self, net: nn.Module, optimizer: OptimizerFactory | None = None) -> None:
        super().__init__()
        self.net = net
        self.optimizer = optimizer or adam()
        self.criterion = nn.MSELoss()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = self.criterion(self(x), y)
        self.log("train/mse", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        self.log("val/mse", self.criterion(self(x), y), prog_bar=True)

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters())


def mlp(*widths: int, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers of these widths with `act` between them."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths[:-1]):
        layers += [nn.Linear(fan_in, fan_out), act()]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


class Recurrent(nn.Module):
    """A recurrent layer over (N, T, F) and a linear head on its last state."""

    def __init__(self, cell: nn.RNNBase, outputs: int) -> None:
        super().__init__()
        self.cell = cell
        self.head = nn.Linear(cell.hidden_size, outputs)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.cell(x)
        return self.head(states[:, -1])


def small_cnn(channels: int = 16) -> nn.Sequential:
    """Two convolutions with pooling for (N, 1, 8, 8) and ten classes."""
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(channels, 2 * channels, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * channels, 10),
    )


class RowTransformer(nn.Module):
    """Reads the eight rows of a digit as eight tokens; pre- or post-norm encoder, mean pooling."""

    def __init__(self, width: int = 32, depth: int = 2, norm_first: bool = True) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.position = nn.Parameter(torch.randn(8, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x) + self.position).mean(1))
