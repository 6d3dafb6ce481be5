"""Trainings on tables: homes, plants, spectra, clinics, rentals; plain and dict batches, one DataModule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import Split, generator, predict
from benchmarks.zoo.fifth._common import (
    held,
    houses,
    levelled,
    mlp,
    named,
    pairs,
    plants,
    r2_of,
    recalls,
    right,
)


class Regressor(LightningModule):
    """A price from a row; batches are dicts."""

    def __init__(self, columns: int = 6, lr: float = 3e-3, hidden: int = 64) -> None:
        super().__init__()
        self.net = mlp(columns, hidden, hidden, 1)
        self.lr = lr

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        prediction = self(batch["features"])
        loss = F.mse_loss(prediction, batch["price"])
        self.log_dict({"train/loss": loss, "train/mae": (prediction - batch["price"]).abs().mean()})
        return {"loss": loss}

    def configure_optimizers(self) -> Any:
        return {"optimizer": torch.optim.Adam(self.parameters(), lr=self.lr)}


class Classifier(LightningModule):
    """A kind from a row; batches are pairs."""

    def __init__(self, net: nn.Module, lr: float = 3e-3, weight: Tensor | None = None) -> None:
        super().__init__()
        self.net = net
        self.criterion = nn.CrossEntropyLoss(weight=weight)
        self.lr = lr

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        logits = self(x)
        loss = self.criterion(logits, y)
        self.log("train_loss", loss)
        self.log("train_acc", (logits.argmax(1) == y).float().mean(), prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", self.criterion(self(x), y))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


# --- the scale of columns and targets ---------------------------------------------------------------------------------


@sick("z-homes-as-listed", "mlp", "disparate-feature-scales", "unscaled-inputs", twin=lambda s: homes(s, True))
def homes(seed: int, standard: bool = False) -> Training:
    d = levelled(houses(seed))
    d = d.standardised() if standard else d
    train = named(32, features=d.x, price=d.y)
    return Training(Regressor(), train, r2_of(d), None, {"max_epochs": 6, "log_every_n_steps": 10})


@sick("z-panel-of-ratios", "mlp", "disparate-feature-scales", twin=lambda s: ratios(s, True))
def ratios(seed: int, standard: bool = False) -> Training:
    """All columns are centred; some are shares of a thousandth, one has a spread of thirty."""
    d = plants(seed)
    spread = torch.tensor([30.0, 3e-3, 2e-3, 5e-3, 10.0, 1e-3, 4e-3, 2e-3, 20.0, 3e-3, 1e-3, 2e-3])
    d = replace(d, x=d.x * spread, x_test=d.x_test * spread)
    d = d.standardised() if standard else d
    module = Classifier(mlp(12, 48, 3))
    return Training(module, pairs(d.x, d.y), right(d), held(d), {"max_epochs": 8})


class Spectra(LightningDataModule):
    """Channel counts of a spectrometer, with or without the standardising step."""

    def __init__(self, d: Split) -> None:
        super().__init__()
        self.d = d

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(self.d.x, self.d.y), 25, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(self.d.x_test, self.d.y_test), 300)


@sick("z-spectra-in-counts", "mlp", "unscaled-inputs", twin=lambda s: spectra(s, True))
def spectra(seed: int, standard: bool = False) -> Training:
    d = plants(seed, columns=32)
    d = replace(d, x=20_000 + 4_000 * d.x, x_test=20_000 + 4_000 * d.x_test)
    d = d.standardised() if standard else d
    return Training(Classifier(mlp(32, 48, 3)), Spectra(d), right(d), None, {"max_steps": 200})


@sick("z-price-of-a-home", "mlp", "unscaled-targets", twin=lambda s: price(s, True))
def price(seed: int, level: bool = False) -> Training:
    d = houses(seed).standardised()
    d = levelled(d) if level else d
    train = named(32, features=d.x, price=d.y)
    return Training(Regressor(), train, r2_of(d), None, {"max_epochs": 8, "log_every_n_steps": 10})


# --- what stands in the columns ---------------------------------------------------------------------------------------


def rentals(seed: int, one_hot: bool, n: int = 1200) -> Split:
    """Bicycles lent in an hour: temperature, wind, and a code of the weather station's zone (0 to 9, no order)."""
    g = generator(seed, 60)
    z = torch.randn(n + 600, 2, generator=g)
    code = torch.randint(10, (n + 600,), generator=g)
    level = torch.tensor([1.6, -1.2, 0.4, -1.7, 1.1, -0.3, 1.8, -1.5, 0.9, -1.1])
    y = (level[code] + 0.5 * z[:, 0] - 0.3 * z[:, 1] + 0.2 * torch.randn(n + 600, generator=g))[:, None]
    zone = F.one_hot(code, 10).float() if one_hot else code[:, None].float()
    x = torch.cat([z, zone], 1)
    return levelled(Split(x[:n], y[:n], x[n:], y[n:]))


@sick("z-rentals-by-zone", "mlp", "categorical-as-numeric", twin=lambda s: rented(s, True))
def rented(seed: int, one_hot: bool = False) -> Training:
    d = rentals(seed, one_hot)
    module = Regressor(d.x.shape[1], lr=5e-3, hidden=16)
    return Training(module, named(40, features=d.x, price=d.y), r2_of(d), None, {"max_epochs": 7})


@sick("z-churn-by-tariff-number", "linear", "categorical-as-numeric", twin=lambda s: tariff(s, True))
def tariff(seed: int, one_hot: bool = False) -> Training:
    d = rentals(seed, one_hot)
    d = d.map_targets(lambda t: (t[:, 0] > 0).long())
    module = Classifier(nn.Linear(d.x.shape[1], 2), lr=2e-2)
    return Training(module, pairs(d.x, d.y, 40), right(d), held(d), {"max_epochs": 6})


@sick("z-turbines-after-the-merge", "mlp", "constant-inputs", twin=lambda s: turbines(s, True))
def turbines(seed: int, joined: bool = False) -> Training:
    """Half of the columns came out of a merge that matched no key and were filled with 0."""
    d = plants(seed)
    if not joined:
        g = generator(seed, 61)
        axis = torch.zeros(12).index_fill(0, torch.randperm(12, generator=g)[:8], 1.0)
        d = replace(d, x=d.x * (1 - axis), x_test=d.x_test * (1 - axis))
    return Training(Classifier(mlp(12, 32, 3)), pairs(d.x, d.y, 25), right(d), held(d), {"max_epochs": 6})


@sick("z-clinic-lab-values", "mlp", "nonfinite-inputs", twin=lambda s: clinic(s, True))
def clinic(seed: int, filled: bool = False) -> Training:
    """One laboratory value was not taken for four patients in a hundred."""
    d = plants(seed)
    lost = torch.rand(len(d.x), generator=generator(seed, 62)) < 0.04
    x = d.x.clone()
    x[lost, 7] = d.x[:, 7].median() if filled else torch.nan
    return Training(Classifier(mlp(12, 32, 3)), pairs(x, d.y, 25), right(d), held(d), {"max_epochs": 5})


@sick("z-orders-typed-by-hand", "mlp", "corrupt-samples", twin=lambda s: orders(s, True))
def orders(seed: int, checked: bool = False) -> Training:
    """Five of a thousand prices carry some zeros too many."""
    d = levelled(houses(seed).standardised())
    y = d.y.clone()
    wrong = torch.randperm(len(y), generator=generator(seed, 63))[:5]
    if not checked:
        y[wrong] = 3000 * (1 + y[wrong].abs())
    module = Regressor(lr=5e-3)
    return Training(module, named(32, features=d.x, price=y), r2_of(d), None, {"max_epochs": 8, "log_every_n_steps": 1})


# --- the classes, the rows and their order ----------------------------------------------------------------------------


def customers(seed: int, n: int = 2400) -> Split:
    """Three in a hundred leave; those who do differ by a deviation and a half along one direction."""
    g = generator(seed, 65)
    y = (torch.rand(n + 2000, generator=g) < 0.03).long()
    axis = F.normalize(torch.randn(8, generator=g), dim=0)
    x = torch.randn(n + 2000, 8, generator=g) + 1.5 * y[:, None] * axis
    return Split(x[:n], y[:n], x[n:], y[n:])


@sick("z-churn-in-a-quiet-year", "mlp", "class-imbalance", twin=lambda s: churn(s, True))
def churn(seed: int, weighted: bool = False) -> Training:
    d = customers(seed)
    weight = torch.tensor([0.52, 16.7]) if weighted else None
    module = Classifier(mlp(8, 16, 2), lr=2e-3, weight=weight)
    return Training(module, pairs(d.x, d.y, 50), recalls(d), held(d), {"max_epochs": 5})


@sick("z-plants-bed-by-bed", "mlp", "unshuffled-data", twin=lambda s: beds(s, True))
def beds(seed: int, shuffle: bool = False) -> Training:
    d = plants(seed, gap=0.8)
    order = d.y.argsort(stable=True)
    module = Beds(mlp(12, 48, 3))
    train = pairs(d.x[order], d.y[order], 20, shuffle=shuffle)
    return Training(module, train, right(d), held(d), {"max_epochs": 4})


class Beds(Classifier):
    """The same by descent with momentum."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.8)


@sick("z-kinds-merged-by-row", "mlp", "uninformative-targets", twin=lambda s: merged(s, True))
def merged(seed: int, by_key: bool = False) -> Training:
    """Features and labels come from two tables, one of them sorted otherwise."""
    d = plants(seed)
    y = d.y if by_key else d.y[torch.randperm(len(d.y), generator=generator(seed, 64))]
    module = Classifier(mlp(12, 16, 3), lr=5e-3)
    return Training(module, pairs(d.x, y, 40), right(d), held(d), {"max_epochs": 8, "log_every_n_steps": 5})


# --- the net and the loss ---------------------------------------------------------------------------------------------


class Column(Regressor):
    """Batches are pairs; the targets may have lost their second axis."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("loss", loss, prog_bar=True)
        return loss


@sick("z-homes-from-a-frame", "mlp", "loss-shape-mismatch", twin=lambda s: frame(s, True))
def frame(seed: int, column: bool = False) -> Training:
    d = levelled(houses(seed).standardised())
    y = d.y if column else d.y[:, 0]
    return Training(Column(), pairs(d.x, y), r2_of(d), None, {"max_epochs": 6})


class YesNo(LightningModule):
    """Does the home sell above the median? One output."""

    def __init__(self, binary: bool) -> None:
        super().__init__()
        self.net = mlp(6, 32, 1)
        self.loss = nn.BCEWithLogitsLoss() if binary else nn.CrossEntropyLoss()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = self.loss(self(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@sick("z-sold-above-the-median", "mlp", "wrong-loss-for-task", twin=lambda s: median(s, True))
def median(seed: int, binary: bool = False) -> Training:
    d = levelled(houses(seed).standardised()).map_targets(lambda t: (t > 0).float())
    decide = recalls(d.map_targets(lambda t: t[:, 0].long()), lambda z: (z[:, 0] > 0).long())
    return Training(YesNo(binary), pairs(d.x, d.y), decide, None, {"max_epochs": 5})


@sick("z-homes-summed-errors", "mlp", "wrong-loss-for-task", "learning-rate-too-high", twin=lambda s: summed(s, "mean"))
def summed(seed: int, reduction: str = "sum") -> Training:
    d = levelled(houses(seed).standardised())
    return Training(Summed(reduction), pairs(d.x, d.y, 50), r2_of(d), held(d), {"max_epochs": 8})


class Summed(LightningModule):
    """Least squares by plain descent."""

    def __init__(self, reduction: str) -> None:
        super().__init__()
        self.net = mlp(6, 32, 1, act=nn.Tanh)
        self.loss = nn.MSELoss(reduction=reduction)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_mse", F.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def tide(seed: int, n: int = 800) -> Split:
    """A level (N, 1) that swings several times over the range of one column."""
    g = generator(seed, 66)
    x = 4 * torch.rand(n + 400, 1, generator=g) - 2
    y = torch.sin(4 * x) + 0.4 * x + 0.1 * torch.randn(n + 400, 1, generator=g)
    return levelled(Split(x[:n], y[:n], x[n:], y[n:]))


@sick("z-tide-through-two-units", "mlp", "insufficient-capacity", twin=lambda s: tides(s, 64))
def tides(seed: int, hidden: int = 2) -> Training:
    d = tide(seed)
    net = mlp(1, hidden, hidden, 1, act=nn.Tanh)
    return Training(Tide(net), pairs(d.x, d.y, 40), r2_of(d), held(d), {"max_epochs": 25})


class Tide(LightningModule):
    """A curve through points, by Adam."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return ((self(x) - y) ** 2).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_rmse", ((self(x) - y) ** 2).mean().sqrt())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


@sick("z-plants-stacked-layers", "mlp", "missing-nonlinearity", twin=lambda s: stacked(s, True))
def stacked(seed: int, act: bool = False) -> Training:
    d = plants(seed)
    net = mlp(12, 64, 64, 3, act=nn.ReLU if act else None)
    return Training(Classifier(net), pairs(d.x, d.y), right(d), held(d), {"max_epochs": 6})


@sick("z-plants-forty-epochs", "mlp", "overfitting", twin=lambda s: long(s, True))
def long(seed: int, regular: bool = False) -> Training:
    """A wide net on 300 rows of kinds that overlap, and its twin with dropout and fewer units."""
    d = plants(seed, n=300, gap=0.45)
    wide = mlp(12, 256, 256, 3)
    small = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Dropout(0.5), nn.Linear(24, 3))

    def score(module: LightningModule) -> float:
        module.eval()
        with torch.no_grad():
            return -F.cross_entropy(module(d.x_test), d.y_test).item()

    return Training(Classifier(small if regular else wide), pairs(d.x, d.y), score, held(d), {"max_epochs": 30})


@sick("z-two-clinics-eighteen-patients", "mlp", "too-little-data", "overfitting", twin=lambda s: patients(s, 1000))
def patients(seed: int, n: int = 18) -> Training:
    d = plants(seed)
    module = Classifier(mlp(12, 64, 3))
    train = pairs(d.x[:n], d.y[:n], 18)
    return Training(
        module, train, right(d), held(d), {"max_steps": 200, "check_val_every_n_epoch": None, "val_check_interval": 20}
    )


class OneFile(LightningDataModule):
    """Rows to train on and rows to validate by, each read from the path it was given."""

    def __init__(self, train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.paths = {"train": train, "val": val}

    def setup(self, stage: str) -> None:
        self.sets = {k: TensorDataset(*v) for k, v in self.paths.items()}

    def train_dataloader(self) -> Any:
        return DataLoader(self.sets["train"], 25, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self.sets["val"], 200)


@sick(
    "z-plants-from-two-paths",
    "mlp",
    "train-val-leakage",
    twin=lambda s: paths(s, True),
    note="the score is minus the gap between the watched accuracy and that on rows never seen",
)
def paths(seed: int, apart: bool = False) -> Training:
    """The path of the validation rows is a part of the file that is trained on."""
    d = plants(seed, n=600, gap=0.8)
    val = (d.x_test[:200], d.y_test[:200]) if apart else (d.x[:200], d.y[:200])

    def score(module: LightningModule) -> float:
        watched = (predict(module, val[0]).argmax(1) == val[1]).float().mean().item()
        return -abs(watched - (predict(module, d.x_test[200:]).argmax(1) == d.y_test[200:]).float().mean().item())

    module = Classifier(mlp(12, 128, 3), lr=5e-3)
    return Training(module, OneFile((d.x, d.y), val), score, None, {"max_epochs": 12})
