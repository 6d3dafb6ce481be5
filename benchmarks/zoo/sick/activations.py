"""Layers whose units are silent, or stand at their limits."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.sick._tabular import Classifier, accuracy, digits, loader, mlp, r2, split, surface

# --- dead-activations -------------------------------------------------------------------------------------------------


@sick(
    "prior-on-every-layer",
    "cnn",
    "dead-activations",
    "bad-initialization",
    twin=lambda seed: prior_on_every_layer(seed, everywhere=False),
    note="a negative starting bias, meant for a detector's last layer, given to all of them",
)
def prior_on_every_layer(seed: int, everywhere: bool = True) -> Training:
    torch.manual_seed(seed)
    rows = digits(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)
    )
    for layer in net if everywhere else net[-1:]:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.constant_(layer.bias, -4.6)
    module = Classifier(net, lr=2e-3)
    val = loader(rows.x_test, rows.y_test, batch_size=150, shuffle=False)
    return Training(module, loader(rows.x, rows.y), accuracy(rows.x_test, y=rows.y_test), val, {"max_epochs": 8})


class HotStart(Classifier):
    """A high rate for the first steps, a low one for the rest."""

    def __init__(self, hot: float) -> None:
        super().__init__(nn.Sequential(nn.Flatten(), mlp(64, 64, 64, 10)))
        self.hot = hot

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.hot if step < 10 else 1.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


@sick(
    "hot-start",
    "mlp",
    "dead-activations",
    "learning-rate-too-high",
    twin=lambda seed: hot_start(seed, hot=0.1),
    note="ten steps at a rate a hundred times too high silence the ReLUs; the rate is sound from then on",
)
def hot_start(seed: int, hot: float = 100.0) -> Training:
    torch.manual_seed(seed)
    rows = digits(seed)
    train = loader(rows.x, rows.y)
    return Training(HotStart(hot), train, accuracy(rows.x_test, y=rows.y_test), trainer={"max_epochs": 8})


class SpectrumNet(LightningModule):
    """Activation first, then the layer, as in residual networks."""

    def __init__(self, bands: int, first: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Sequential(first, nn.Linear(bands, 32))
        self.block = nn.Sequential(nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.block(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@sick("logarithms-of-shares", "residual", "dead-activations", twin=lambda seed: log_shares(seed, first=nn.Identity()))
def log_shares(seed: int, first: nn.Module | None = None) -> Training:
    """The share of the power in each of twelve bands, as a logarithm and thus below zero; a ReLU receives it."""
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    y = torch.randint(4, (1000,), generator=random)
    power = torch.randn(1000, 12, generator=random) + torch.randn(4, 12, generator=random)[y]
    rows = split(F.log_softmax(power, dim=1), y, seed)
    module = SpectrumNet(12, first or nn.ReLU())
    return Training(module, loader(rows.x, rows.y), accuracy(rows.x_test, y=rows.y_test), trainer={"max_epochs": 12})


# --- saturated-activations --------------------------------------------------------------------------------------------


@sick(
    "sigmoids-a-hundredfold",
    "mlp",
    "saturated-activations",
    "bad-initialization",
    twin=lambda seed: sigmoids_hundredfold(seed, factor=4.0),
)
def sigmoids_hundredfold(seed: int, factor: float = 400.0) -> Training:
    torch.manual_seed(seed)
    rows = digits(seed)
    net = nn.Sequential(nn.Flatten(), *mlp(64, 48, 48, 48, 10, activation=nn.Sigmoid))
    with torch.no_grad():
        for layer in net[:-1]:
            if isinstance(layer, nn.Linear):
                layer.weight *= factor
    module = Classifier(net, lr=5e-3)
    return Training(module, loader(rows.x, rows.y), accuracy(rows.x_test, y=rows.y_test), trainer={"max_epochs": 15})


class GatedNet(LightningModule):
    """Units scaled by gates; the temperature sets how hard the gates and the units are."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.gate, self.value = nn.Linear(6, 48), nn.Linear(6, 48)
        self.mix = nn.Linear(48, 48)
        self.head = nn.Linear(48, 1)
        self.temperature = temperature

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.gate(x) / self.temperature) * torch.tanh(self.value(x) / self.temperature)
        return self.head(torch.tanh(self.mix(x) / self.temperature)).squeeze(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@sick("gates-too-cold", "gated", "saturated-activations", twin=lambda seed: gates_too_cold(seed, temperature=1.0))
def gates_too_cold(seed: int, temperature: float = 0.01) -> Training:
    torch.manual_seed(seed)
    rows = surface(seed)
    train = loader(rows.x, rows.y)
    return Training(GatedNet(temperature), train, r2(rows.x_test, y=rows.y_test), trainer={"max_epochs": 20})
