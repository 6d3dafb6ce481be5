"""Inputs on the wrong scale: far from one, columns far from one another, codes used as numbers."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.sick._tabular import (
    Classifier,
    Regressor,
    accuracy,
    digits,
    explained,
    loader,
    mlp,
    predict,
    r2,
    split,
    standardise,
    surface,
    table,
    waves,
)

# --- unscaled-inputs --------------------------------------------------------------------------------------------------


@sick("pixels-0-to-255", "mlp", "unscaled-inputs", twin=lambda seed: pixels_0_to_255(seed, scale=1.0))
def pixels_0_to_255(seed: int, scale: float = 255.0) -> Training:
    """Images as the file has them, and plain SGD."""
    torch.manual_seed(seed)
    rows = digits(seed)
    net = nn.Sequential(nn.Flatten(), *mlp(64, 64, 32, 10))
    return Training(
        Classifier(net, lr=0.05, optimizer="SGD", momentum=0.9),
        loader(rows.x * scale, rows.y),
        accuracy(rows.x_test * scale, y=rows.y_test),
        val=loader(rows.x_test * scale, rows.y_test, batch_size=128, shuffle=False),
        trainer={"max_epochs": 10},
    )


class ScanNet(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.fc = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc(x.flatten(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


@sick("divided-by-255-twice", "cnn", "unscaled-inputs", twin=lambda seed: divided_twice(seed, divisor=1.0))
def divided_twice(seed: int, divisor: float = 255.0) -> Training:
    """The reader divides by 255, and so does the transform."""
    torch.manual_seed(seed)
    rows = digits(seed)
    x, x_test = rows.x / divisor, rows.x_test / divisor
    return Training(ScanNet(), loader(x, rows.y), accuracy(x_test, y=rows.y_test), trainer={"max_epochs": 8})


@sick("lengths-in-micrometres", "mlp", "unscaled-inputs", twin=lambda seed: micrometres(seed, unit=1.0))
def micrometres(seed: int, unit: float = 1e4) -> Training:
    torch.manual_seed(seed)
    rows = surface(seed)
    module = Regressor(mlp(6, 64, 64, 1), lr=1e-3)
    train = loader(rows.x * unit, rows.y, batch_size=32)
    return Training(module, train, r2(rows.x_test * unit, y=rows.y_test), trainer={"max_epochs": 25})


class VoltageNet(LightningModule):
    def __init__(self, hidden: int = 24) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0].mean(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@sick("microvolts-in-volts", "lstm", "unscaled-inputs", twin=lambda seed: microvolts(seed, unit=1.0))
def microvolts(seed: int, unit: float = 1e-5) -> Training:
    torch.manual_seed(seed)
    rows = waves(seed)
    train = loader(rows.x * unit, rows.y)
    return Training(VoltageNet(), train, accuracy(rows.x_test * unit, y=rows.y_test), trainer={"max_epochs": 10})


# --- disparate-feature-scales -----------------------------------------------------------------------------------------


@sick(
    "wine-as-measured",
    "mlp",
    "disparate-feature-scales",
    "unscaled-inputs",
    twin=lambda seed: wine_as_measured(seed, scaled=True),
    note="proline is near 750 and the other columns near 1: both names send the user to a scaler",
)
def wine_as_measured(seed: int, scaled: bool = False) -> Training:
    torch.manual_seed(seed)
    rows = split(*table("wine"), seed)
    rows = standardise(rows) if scaled else rows
    return Training(
        Classifier(mlp(13, 32, 3), lr=0.02, optimizer="SGD"),
        loader(rows.x, rows.y, batch_size=16),
        accuracy(rows.x_test, y=rows.y_test),
        trainer={"max_epochs": 30},
    )


@sick("one-column-in-cents", "mlp", "disparate-feature-scales", twin=lambda seed: column_in_cents(seed, scaled=True))
def column_in_cents(seed: int, scaled: bool = False) -> Training:
    """Ratios of a few hundredths beside amounts of some dozens; the ratios decide."""
    torch.manual_seed(seed)
    rows = surface(seed)
    spread = torch.tensor([3e-3, 1e-2, 3e-3, 1e-2, 10.0, 30.0])
    rows = rows._replace(x=rows.x * spread, x_test=rows.x_test * spread)
    rows = standardise(rows) if scaled else rows
    train = loader(rows.x, rows.y)
    val = loader(rows.x_test, rows.y_test, shuffle=False)
    return Training(
        Regressor(mlp(6, 64, 64, 1), lr=3e-3), train, r2(rows.x_test, y=rows.y_test), val, {"max_epochs": 20}
    )


class CellAutoencoder(LightningModule):
    """Cells described by thirty measurements, brought down to eight numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(30, 32), nn.Tanh(), nn.Linear(32, 8))
        self.decoder = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 30))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0]
        loss = F.mse_loss(self(x), x)
        self.log("reconstruction", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@sick(
    "cells-as-measured",
    "autoencoder",
    "disparate-feature-scales",
    "unscaled-inputs",
    twin=lambda seed: cells_as_measured(seed, scaled=True),
    note="areas near 900, smoothness near 0.1; the score is R2 averaged over the columns",
)
def cells_as_measured(seed: int, scaled: bool = False) -> Training:
    torch.manual_seed(seed)
    rows = split(*table("breast_cancer"), seed)
    rows = standardise(rows) if scaled else rows

    def score(module: LightningModule) -> float:
        again = predict(module, rows.x_test)
        return sum(explained(again[:, i], rows.x_test[:, i]) for i in range(30)) / 30

    return Training(CellAutoencoder(), loader(rows.x, batch_size=16), score, trainer={"max_epochs": 15})


# --- categorical-as-numeric -------------------------------------------------------------------------------------------


@sick("shop-number", "mlp", "categorical-as-numeric", twin=lambda seed: shop_number(seed, one_hot=True))
def shop_number(seed: int, one_hot: bool = False) -> Training:
    """Sales by shop: sixteen shops, numbered as they opened, beside price and season."""
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    shop, other = torch.randint(16, (1200,), generator=random), torch.randn(1200, 2, generator=random)
    level = torch.tensor([1.6, -1.2, 0.4, -0.3, 1.1, -1.7, 0.8, -0.9, 1.9, -0.1, -1.4, 1.3, -0.6, 0.2, -1.8, 1.0])
    y = level[shop] + 0.3 * other[:, 0] + 0.1 * torch.randn(1200, generator=random)
    column = F.one_hot(shop, 16).float() if one_hot else shop[:, None].float()
    rows = split(torch.cat([column, other], 1), y, seed)
    module = Regressor(mlp(rows.x.shape[1], 32, 32, 1), lr=3e-3)
    return Training(module, loader(rows.x, rows.y), r2(rows.x_test, y=rows.y_test), trainer={"max_epochs": 15})


class ChurnNet(LightningModule):
    def __init__(self, columns: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(columns, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Dropout(0.1), nn.Linear(48, 1)
        )
        self.loss = nn.BCEWithLogitsLoss()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).squeeze(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = self.loss(self(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@sick("plan-and-region-codes", "mlp", "categorical-as-numeric", twin=lambda seed: plan_and_region(seed, one_hot=True))
def plan_and_region(seed: int, one_hot: bool = False) -> Training:
    """Who leaves, from the codes of plan and region and from three measured columns."""
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    plan, region = torch.randint(10, (1500,), generator=random), torch.randint(12, (1500,), generator=random)
    usage = torch.randn(1500, 3, generator=random)
    by_plan = torch.tensor([2.0, -2.0, 1.0, -2.5, 2.5, -1.0, 2.0, -2.0, 1.5, -1.5])
    by_region = torch.tensor([-2.0, 2.0, -1.0, 1.0, -2.5, 2.5, 2.0, -2.0, 1.5, -1.5, 2.0, -2.0])
    y = (by_plan[plan] + by_region[region] + 0.3 * usage[:, 0] > 0).float()
    codes = [plan[:, None], region[:, None]]
    if one_hot:
        codes = [F.one_hot(plan, 10), F.one_hot(region, 12)]
    rows = split(torch.cat([*(c.float() for c in codes), usage], 1), y, seed)

    def score(module: LightningModule) -> float:
        return ((predict(module, rows.x_test) > 0).float() == rows.y_test).float().mean().item()

    return Training(ChurnNet(rows.x.shape[1]), loader(rows.x, rows.y), score, trainer={"max_epochs": 12})


class NextEvent(LightningModule):
    """The next event of a log."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(columns, 32, batch_first=True)
        self.head = nn.Linear(32, 40)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


@sick("event-numbers", "lstm", "categorical-as-numeric", twin=lambda seed: event_numbers(seed, one_hot=True))
def event_numbers(seed: int, one_hot: bool = False) -> Training:
    """Forty kinds of event, numbered in no order; each calls for one other, most of the time."""
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    follows = torch.randperm(40, generator=random)
    events = torch.randint(40, (1200, 9), generator=random)
    for step in range(1, 9):
        usual = torch.rand(1200, generator=random) < 0.9
        events[:, step] = torch.where(usual, follows[events[:, step - 1]], events[:, step])
    past = events[:, :-1]
    x = F.one_hot(past, 40).float() if one_hot else past[..., None].float()
    rows = split(x, events[:, -1], seed)
    train = loader(rows.x, rows.y)
    return Training(NextEvent(x.shape[-1]), train, accuracy(rows.x_test, y=rows.y_test), trainer={"max_epochs": 12})
