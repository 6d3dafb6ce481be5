"""Last activations that cannot reach the targets."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.sick._tabular import (
    Regressor,
    diagnosis,
    digits,
    loader,
    mlp,
    r2,
    split,
    standardise,
    surface,
    table,
)

# --- output-range-mismatch --------------------------------------------------------------------------------------------


@sick(
    "progression-through-a-sigmoid",
    "mlp",
    "output-range-mismatch",
    twin=lambda seed: progression_sigmoid(seed, nn.Identity),
)
def progression_sigmoid(seed: int, last: type[nn.Module] = nn.Sigmoid) -> Training:
    """Scores between 0 and 5."""
    torch.manual_seed(seed)
    rows = standardise(split(*table("diabetes"), seed))
    net = nn.Sequential(mlp(10, 32, 1), last())
    train = loader(rows.x, rows.y / 70, batch_size=16)
    return Training(Regressor(net, lr=5e-3), train, r2(rows.x_test, y=rows.y_test / 70), trainer={"max_epochs": 15})


@sick("percent-through-a-sigmoid", "mlp", "output-range-mismatch", twin=lambda seed: percent_sigmoid(seed, nn.Identity))
def percent_sigmoid(seed: int, last: type[nn.Module] = nn.Sigmoid) -> Training:
    """Moisture of the soil in percent."""
    torch.manual_seed(seed)
    rows = surface(seed)
    y, y_test = (50 + 15 * rows.y).clamp(0, 100), (50 + 15 * rows.y_test).clamp(0, 100)
    net = nn.Sequential(mlp(6, 64, 64, 1), last())
    module = Regressor(net, lr=1e-2)
    return Training(module, loader(rows.x, y), r2(rows.x_test, y=y_test), trainer={"max_epochs": 30})


class Thermometer(LightningModule):
    """Degrees below the set point, from the last readings."""

    def __init__(self, rectify: bool) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 16, 5, padding=2)
        self.fc = nn.Linear(16, 1)
        self.rectify = rectify

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(F.relu(self.conv(x.transpose(1, 2))).mean(2)).squeeze(1)
        return F.relu(x) if self.rectify else x

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.huber_loss(self(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


@sick("degrees-below-zero", "cnn", "output-range-mismatch", twin=lambda seed: degrees_below_zero(seed, rectify=False))
def degrees_below_zero(seed: int, rectify: bool = True) -> Training:
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    level = torch.rand(900, generator=random)
    x = (level[:, None] + 0.3) * torch.randn(900, 24, generator=random)
    rows = split(x[..., None], -0.5 - 2 * x.abs().mean(1), seed)
    module = Thermometer(rectify)
    return Training(module, loader(rows.x, rows.y), r2(rows.x_test, y=rows.y_test), trainer={"max_epochs": 15})


@sick("softmax-over-one-unit", "mlp", "output-range-mismatch", twin=lambda seed: softmax_one_unit(seed, nn.Sigmoid()))
def softmax_one_unit(seed: int, last: nn.Module | None = None) -> Training:
    torch.manual_seed(seed)
    return diagnosis(seed, last or nn.Softmax(dim=1), nn.BCELoss(), 0.5)


class ScanCoder(LightningModule):
    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 24)
        )
        self.decoder = nn.Sequential(nn.Linear(24, 128), nn.ReLU(), nn.Linear(128, 64), last)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x)).view_as(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x,) = batch
        loss = F.mse_loss(self(x), x)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


@sick(
    "tanh-for-standard-scores",
    "autoencoder",
    "output-range-mismatch",
    twin=lambda seed: tanh_scores(seed, nn.Identity()),
)
def tanh_scores(seed: int, last: nn.Module | None = None) -> Training:
    """Pixels in units of a quarter of their range, so that most of them lie beyond 1."""
    torch.manual_seed(seed)
    rows = digits(seed)
    x, x_test = rows.x * 4, rows.x_test * 4
    module = ScanCoder(last or nn.Tanh())
    return Training(module, loader(x), r2(x_test, y=x_test), trainer={"max_epochs": 12})
