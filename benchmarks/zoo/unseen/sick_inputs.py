"""Inputs as they come from a sensor, a spreadsheet or a careless export."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import Split, generator
from benchmarks.zoo.unseen._common import (
    Fit,
    Recurrent,
    adam,
    batches,
    conv_net,
    dense,
    dicts,
    friedman,
    held_out,
    series,
    sgd,
    shapes,
)

# --- unscaled ---------------------------------------------------------------------------------------------------------


@sick("u-pixels-to-255-sgd", "cnn", "unscaled-inputs", twin=lambda s: pixels(s, 1.0))
def pixels(seed: int, scale: float = 255.0) -> Training:
    d = shapes(seed)
    module = Fit(conv_net(), F.cross_entropy, sgd(0.03, momentum=0.9))
    train, val = batches(scale * d.x, d.y), held_out(scale * d.x_test, d.y_test)
    return Training(module, train, Split(d.x, d.y, scale * d.x_test, d.y_test).accuracy, val, {"max_epochs": 8})


@sick("u-pressure-in-pascal", "lstm", "unscaled-inputs", "saturated-activations", twin=lambda s: pascal(s, 0.0, 1.0))
def pascal(seed: int, mean: float = 101_325.0, std: float = 900.0) -> Training:
    d = series(seed)
    x, x_test = mean + std * d.x, mean + std * d.x_test
    module = Fit(Recurrent(nn.LSTM, 1, 24, 1), F.mse_loss, adam(5e-3))
    return Training(module, batches(x, d.y), Split(x, d.y, x_test, d.y_test).r2, trainer={"max_epochs": 8})


class Spectrum(LightningModule):
    """Concentrations from absorptions; batches are dicts."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(10, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
        self.out = nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(x))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.huber_loss(self(batch["absorption"]), batch["concentration"])
        self.log("train/huber", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


@sick("u-absorptions-of-a-millionth", "mlp", "unscaled-inputs", twin=lambda s: absorptions(s, 1.0))
def absorptions(seed: int, scale: float = 1e-5) -> Training:
    d = friedman(seed)
    train = dicts(absorption=scale * d.x, concentration=d.y)
    score = Split(d.x, d.y, scale * d.x_test, d.y_test).r2
    return Training(Spectrum(), train, score, trainer={"max_epochs": 10})


# --- columns of different spread --------------------------------------------------------------------------------------


@sick("u-income-beside-ratios", "mlp", "disparate-feature-scales", "unscaled-inputs", twin=lambda s: income(s, False))
def income(seed: int, raw: bool = True) -> Training:
    d = friedman(seed)
    if raw:
        scale = torch.tensor([1.0, 1, 0.5, 1, 2, 40_000, 1, 1, 3000, 1])
        shift = torch.tensor([0.0, 0, 0, 0, 0, 52_000, 0, 0, 2000, 0])
        d = Split(d.x * scale + shift, d.y, d.x_test * scale + shift, d.y_test)
    module = Fit(dense(10, 64, 1), F.mse_loss, adam(2e-3))
    return Training(module, batches(d.x, d.y), d.r2, held_out(d.x_test, d.y_test), {"max_epochs": 12})


@sick("u-wine-as-measured", "mlp", "disparate-feature-scales", "unscaled-inputs", twin=lambda s: wine(s, True))
def wine(seed: int, standardise: bool = False) -> Training:
    d = data.table("wine", seed, standardise=standardise)
    module = Fit(dense(13, 24, 3), nn.CrossEntropyLoss(), sgd(0.02, momentum=0.9))
    return Training(module, d.train(16), d.accuracy, trainer={"max_epochs": 25})


@sick("u-cells-as-measured", "linear", "disparate-feature-scales", "unscaled-inputs", twin=lambda s: cells(s, True))
def cells(seed: int, standardise: bool = False) -> Training:
    d = data.table("breast_cancer", seed, standardise=standardise)
    module = Fit(nn.Linear(30, 2), nn.CrossEntropyLoss(), adam(1e-2))
    return Training(module, d.train(32), d.accuracy, d.val(), {"max_epochs": 12})


# --- codes used as numbers --------------------------------------------------------------------------------------------


def towns(seed: int, kinds: int, one_hot: bool, classes: bool) -> Split:
    """A town and a shop type as codes, two numbers beside them; what is sold depends mostly on the codes."""
    g = generator(seed, 42)
    n = 3000
    town, shop = torch.randint(kinds, (n,), generator=g), torch.randint(7, (n,), generator=g)
    numbers = torch.randn(n, 2, generator=g)
    level = 1.5 * torch.randn(kinds, generator=g)[town] + torch.randn(7, generator=g)[shop] + 0.3 * numbers[:, 0]
    y = (level > level.median()).long() if classes else ((level - level.mean()) / level.std())[:, None]
    if one_hot:
        x = torch.cat([F.one_hot(town, kinds), F.one_hot(shop, 7), numbers], 1).float()
    else:
        x = torch.cat([town[:, None], shop[:, None], numbers], 1).float()
    return data.split(x, y, seed)


@sick("u-town-code-as-float", "mlp", "categorical-as-numeric", twin=lambda s: town_code(s, True))
def town_code(seed: int, one_hot: bool = False) -> Training:
    d = towns(seed, 30, one_hot, classes=False)
    module = Fit(dense(d.x.shape[1], 32, 1), F.mse_loss, adam(5e-3))
    return Training(module, d.train(32), d.r2, d.val(), {"max_epochs": 7})


@sick("u-product-code-logistic", "linear", "categorical-as-numeric", twin=lambda s: product(s, True))
def product(seed: int, one_hot: bool = False) -> Training:
    d = towns(seed, 12, one_hot, classes=True)
    module = Fit(nn.Linear(d.x.shape[1], 2), F.cross_entropy, adam(0.02))
    return Training(module, d.train(64), d.accuracy, d.val(), {"max_epochs": 10})


# --- inputs that never change -----------------------------------------------------------------------------------------


class Normalising(LightningModule):
    """Divides by 255 what is already in [0, 1] and casts it to bytes: every picture is black."""

    def __init__(self, bytes_: bool) -> None:
        super().__init__()
        self.net, self.bytes = conv_net(), bytes_

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


@sick("u-pictures-all-black", "cnn", "constant-inputs", twin=lambda s: black(s, 255.0))
def black(seed: int, factor: float = 0.01) -> Training:
    d = shapes(seed)

    def store(x: Tensor) -> Tensor:
        return (x.clamp(0, 1) * factor).to(torch.uint8).float() / 255

    d = Split(store(d.x), d.y, store(d.x_test), d.y_test)
    return Training(Normalising(factor < 1), batches(d.x, d.y), d.accuracy, None, {"max_epochs": 8})


class FirstRow(torch.utils.data.Dataset[Any]):
    """Reads the wrong index: the features of row 0 beside the target of row i."""

    def __init__(self, d: Split, right: bool) -> None:
        self.d, self.right = d, right

    def __len__(self) -> int:
        return len(self.d.x)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"absorption": self.d.x[i if self.right else 0], "concentration": self.d.y[i]}


@sick("u-always-row-zero", "mlp", "constant-inputs", twin=lambda s: row_zero(s, True))
def row_zero(seed: int, right: bool = False) -> Training:
    d = friedman(seed)
    loader: Any = torch.utils.data.DataLoader(FirstRow(d, right), batch_size=32, shuffle=True)
    return Training(Spectrum(), loader, d.r2, trainer={"max_epochs": 8})


@sick(
    "u-lost-columns",
    "mlp",
    "constant-inputs",
    note="eight of ten columns are filled with -1",
    twin=lambda s: lost(s, 10),
)
def lost(seed: int, kept: int = 2) -> Training:
    d = friedman(seed)
    x, x_test = d.x.clone(), d.x_test.clone()
    mask = torch.ones(10, dtype=torch.bool)
    mask[[7, 8] if kept == 2 else list(range(10))] = False
    x[:, mask], x_test[:, mask] = -1.0, -1.0
    d = Split(x, d.y, x_test, d.y_test)
    return Training(Fit(dense(10, 32, 1), F.mse_loss, adam(4e-3)), batches(x, d.y), d.r2, None, {"max_epochs": 10})
