"""Weights that start equal, far too small or far too large."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.sick._tabular import Classifier, Regressor, accuracy, digits, loader, mlp, r2, split, surface, waves


def _fill(module: nn.Module, weight: float, bias: float = 0.0) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.constant_(layer.weight, weight)
            nn.init.constant_(layer.bias, bias)


@sick("weights-set-to-zero", "mlp", "bad-initialization", twin=lambda seed: weights_set_to_zero(seed, fill=False))
def weights_set_to_zero(seed: int, fill: bool = True) -> Training:
    torch.manual_seed(seed)
    rows = digits(seed)
    module = Classifier(nn.Sequential(nn.Flatten(), mlp(64, 64, 10)), lr=3e-3)
    if fill:
        _fill(module, 0.0)
    return Training(module, loader(rows.x, rows.y), accuracy(rows.x_test, y=rows.y_test), trainer={"max_epochs": 8})


@sick("weights-set-to-a-tenth", "cnn", "bad-initialization", twin=lambda seed: weights_set_to_a_tenth(seed, fill=False))
def weights_set_to_a_tenth(seed: int, fill: bool = True) -> Training:
    torch.manual_seed(seed)
    rows = digits(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )
    if fill:
        _fill(net, 0.1)
    module = Classifier(net, lr=3e-3)
    return Training(module, loader(rows.x, rows.y), accuracy(rows.x_test, y=rows.y_test), trainer={"max_epochs": 8})


@sick("normal-of-one-in-ten-thousand", "mlp", "bad-initialization", twin=lambda seed: tiny_normal(seed, std=None))
def tiny_normal(seed: int, std: float | None = 1e-4) -> Training:
    torch.manual_seed(seed)
    rows = surface(seed)
    net = mlp(6, 64, 64, 64, 1, activation=nn.Tanh)
    if std is not None:
        for layer in net:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=std)
                nn.init.zeros_(layer.bias)
    module = Regressor(net, lr=0.02, optimizer="SGD", momentum=0.9)
    val = loader(rows.x_test, rows.y_test, batch_size=75, shuffle=False)
    return Training(module, loader(rows.x, rows.y), r2(rows.x_test, y=rows.y_test), val, {"max_epochs": 25})


class MostFrequent(LightningModule):
    """Which token of the sequence comes most often."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 32)
        self.encoder = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.head = nn.Linear(32, 12)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=std)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(x)).mean(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


@sick("normal-of-ten", "transformer", "bad-initialization", twin=lambda seed: normal_of_ten(seed, std=0.1))
def normal_of_ten(seed: int, std: float = 10.0) -> Training:
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    y = torch.randint(12, (1200,), generator=random)
    x = torch.randint(12, (1200, 12), generator=random)
    x = torch.where(torch.rand(x.shape, generator=random) < 0.4, y[:, None], x)
    rows = split(x, y, seed)
    return Training(
        MostFrequent(std), loader(rows.x, rows.y), accuracy(rows.x_test, y=rows.y_test), trainer={"max_epochs": 8}
    )


class WaveNet(LightningModule):
    def __init__(self, gain: float) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, 24, batch_first=True)
        self.head = nn.Linear(24, 3)
        for name, parameter in self.lstm.named_parameters():
            if "weight" in name:
                nn.init.normal_(parameter, std=gain)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0].mean(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@sick("lstm-normal-of-ten", "lstm", "bad-initialization", twin=lambda seed: lstm_normal(seed, gain=0.2))
def lstm_normal(seed: int, gain: float = 10.0) -> Training:
    torch.manual_seed(seed)
    rows = waves(seed)
    return Training(
        WaveNet(gain), loader(rows.x, rows.y), accuracy(rows.x_test, y=rows.y_test), trainer={"max_epochs": 10}
    )
