"""Models that cannot fit, layers in the wrong mode, weights that start in the wrong place."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.sick._tabular import (
    Classifier,
    Split,
    accuracy,
    digits,
    loader,
    mlp,
    r2,
    split,
    waves,
)

# --- insufficient-capacity --------------------------------------------------------------------------------------------


def _rings(seed: int) -> Split:
    """Two noisy rings, one within the other."""
    random = torch.Generator().manual_seed(seed)
    y = torch.randint(2, (1000,), generator=random)
    angle = 2 * math.pi * torch.rand(1000, generator=random)
    x = (1 + y[:, None]) * torch.stack([angle.cos(), angle.sin()], 1) + 0.15 * torch.randn(1000, 2, generator=random)
    return split(x, y, seed)


@sick("logistic-rings", "linear", "insufficient-capacity", twin=lambda seed: logistic_rings(seed, widths=(2, 32, 2)))
def logistic_rings(seed: int, widths: tuple[int, ...] = (2, 2)) -> Training:
    torch.manual_seed(seed)
    rows = _rings(seed)
    module = Classifier(mlp(*widths), lr=2e-2)
    return Training(module, loader(rows.x, rows.y), accuracy(rows.x_test, y=rows.y_test), trainer={"max_epochs": 20})


class ScanCoder(LightningModule):
    def __init__(self, code: int) -> None:
        super().__init__()
        self.encoder = mlp(64, 64, code)
        self.decoder = mlp(code, 64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x,) = batch
        loss = F.mse_loss(self(x), x)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@sick("code-of-one-number", "autoencoder", "insufficient-capacity", twin=lambda seed: code_of_one(seed, code=20))
def code_of_one(seed: int, code: int = 1) -> Training:
    torch.manual_seed(seed)
    rows = digits(seed)
    x, x_test = rows.x.flatten(1), rows.x_test.flatten(1)
    return Training(ScanCoder(code), loader(x), r2(x_test, y=x_test), trainer={"max_epochs": 15})


class ScanNet(Classifier):
    """Convolutions, an average over the picture and a head."""

    def __init__(self, channels: int) -> None:
        net = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1),
            nn.ELU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ELU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(4 * channels, 10),
        )
        super().__init__(net, lr=1e-2)


@sick("one-channel-for-ten-digits", "cnn", "insufficient-capacity", twin=lambda seed: one_channel(seed, channels=24))
def one_channel(seed: int, channels: int = 1) -> Training:
    torch.manual_seed(seed)
    rows = digits(seed)
    val = loader(rows.x_test, rows.y_test, batch_size=150, shuffle=False)
    return Training(
        ScanNet(channels), loader(rows.x, rows.y), accuracy(rows.x_test, y=rows.y_test), val, {"max_epochs": 12}
    )


# --- missing-nonlinearity ---------------------------------------------------------------------------------------------


@sick("four-layers-for-rings", "mlp", "missing-nonlinearity", twin=lambda seed: four_layers(seed, activation=nn.ReLU))
def four_layers(seed: int, activation: Callable[[], nn.Module] | None = None) -> Training:
    torch.manual_seed(seed)
    rows = _rings(seed)
    if activation is None:
        net = nn.Sequential(nn.Linear(2, 64), nn.Linear(64, 64), nn.Linear(64, 32), nn.Linear(32, 2))
    else:
        net = mlp(2, 64, 64, 32, 2, activation=activation)
    module = Classifier(net, lr=3e-3)
    return Training(module, loader(rows.x, rows.y), accuracy(rows.x_test, y=rows.y_test), trainer={"max_epochs": 15})


class Interaction(LightningModule):
    """A target made of products of columns."""

    def __init__(self, rectify: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(4, 64)
        self.fc2 = nn.Linear(64, 64)
        self.fc3 = nn.Linear(64, 1)
        self.rectify = rectify

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        x = self.fc2(F.relu(x) if self.rectify else x)
        return self.fc3(F.relu(x) if self.rectify else x).squeeze(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@sick("products-of-columns", "mlp", "missing-nonlinearity", twin=lambda seed: products_of_columns(seed, rectify=True))
def products_of_columns(seed: int, rectify: bool = False) -> Training:
    torch.manual_seed(seed)
    x = torch.randn(1600, 4, generator=torch.Generator().manual_seed(seed))
    rows = split(x, (x[:, 0] * x[:, 1] + x[:, 2] * x[:, 3]) / 2**0.5, seed)
    train = loader(rows.x, rows.y)
    return Training(Interaction(rectify), train, r2(rows.x_test, y=rows.y_test), trainer={"max_epochs": 15})


@sick("convolutions-alone", "cnn", "missing-nonlinearity", twin=lambda seed: convolutions_alone(seed, between=nn.ReLU))
def convolutions_alone(seed: int, between: Callable[[], nn.Module] | None = None) -> Training:
    """Three frequencies in random phase, told apart by convolutions and an average over time."""
    torch.manual_seed(seed)
    rows = waves(seed)
    rows = rows._replace(x=rows.x.transpose(1, 2), x_test=rows.x_test.transpose(1, 2))
    layers: list[nn.Module] = []
    for inside, outside in ((1, 16), (16, 16), (16, 16)):
        layers.append(nn.Conv1d(inside, outside, 5, padding=2))
        if between is not None:
            layers.append(between())
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 3))
    module = Classifier(net, lr=5e-3)
    return Training(module, loader(rows.x, rows.y), accuracy(rows.x_test, y=rows.y_test), trainer={"max_epochs": 12})
