"""Ill sets of samples: sorted by label, the same rows on both sides, too few to learn from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset, TensorDataset, random_split

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.sick._tabular import (
    Classifier,
    Regressor,
    Score,
    accuracy,
    digits,
    explained,
    loader,
    mlp,
    predict,
    r2,
    surface,
    waves,
)

# --- unshuffled-data --------------------------------------------------------------------------------------------------


@sick("folders-of-digits", "mlp", "unshuffled-data", twin=lambda seed: folders_of_digits(seed, shuffle=True))
def folders_of_digits(seed: int, shuffle: bool = False) -> Training:
    """Read folder by folder, one folder a class."""
    torch.manual_seed(seed)
    rows = digits(seed)
    order = rows.y.argsort(stable=True)
    train = loader(rows.x[order], rows.y[order], shuffle=shuffle)
    module = Classifier(nn.Sequential(nn.Flatten(), mlp(64, 64, 10)), lr=0.1, optimizer="SGD")
    return Training(module, train, accuracy(rows.x_test, y=rows.y_test), trainer={"max_epochs": 10})


class WaveNet(Classifier):
    def __init__(self) -> None:
        super().__init__(nn.GRU(1, 24, batch_first=True), lr=5e-3)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net(x)[0].mean(1))


class WaveData(LightningDataModule):
    """Recordings, one machine after another; each machine has its own frequency."""

    def __init__(self, seed: int, shuffle: bool) -> None:
        super().__init__()
        self.rows, self.shuffle = waves(seed), shuffle

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        order = self.rows.y.argsort(stable=True)
        return loader(self.rows.x[order], self.rows.y[order], batch_size=16, shuffle=self.shuffle)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return loader(self.rows.x_test, self.rows.y_test, batch_size=75, shuffle=False)


@sick("one-machine-after-another", "gru", "unshuffled-data", twin=lambda seed: machine_by_machine(seed, shuffle=True))
def machine_by_machine(seed: int, shuffle: bool = False) -> Training:
    torch.manual_seed(seed)
    data = WaveData(seed, shuffle)
    return Training(WaveNet(), data, accuracy(data.rows.x_test, y=data.rows.y_test), trainer={"max_epochs": 8})


# --- train-val-leakage ------------------------------------------------------------------------------------------------


def _less_distance(judge: Callable[..., Score], val: tuple[Tensor, Tensor], unseen: tuple[Tensor, Tensor]) -> Score:
    return lambda module: -abs(judge(val[0], y=val[1])(module) - judge(unseen[0], y=unseen[1])(module))


@sick(
    "doubled-before-the-split",
    "mlp",
    "train-val-leakage",
    twin=lambda seed: doubled_before_split(seed, copies=1),
    note="the score is minus the distance between R2 on the validation rows and R2 on rows nobody saw",
)
def doubled_before_split(seed: int, copies: int = 3) -> Training:
    """Every row was put in three times, to have more of them, and then the set was split."""
    torch.manual_seed(seed)
    rows = surface(seed, rows=2000, columns=24, noise=0.0)
    everything = TensorDataset(rows.x[:500].repeat(copies, 1), rows.y[:500].repeat(copies))
    train, val = random_split(everything, [0.6, 0.4])
    score = _less_distance(r2, everything[val.indices], (rows.x_test, rows.y_test))  # type: ignore[arg-type]
    return Training(
        Regressor(mlp(24, 64, 64, 1), lr=2e-3),
        DataLoader(train, batch_size=16, shuffle=True),
        score,
        DataLoader(val, batch_size=100),
        {"max_epochs": 12},
    )


@sick(
    "trained-on-the-whole-set",
    "cnn",
    "train-val-leakage",
    twin=lambda seed: trained_on_whole_set(seed, whole=False),
    note="the score is minus the distance between the accuracy on the validation rows and that on rows nobody saw",
)
def trained_on_whole_set(seed: int, whole: bool = True) -> Training:
    """The split was made, and then the loader was given the whole set instead of its first part."""
    torch.manual_seed(seed)
    rows = digits(seed)
    everything = TensorDataset(rows.x[:240] + 0.35 * torch.randn(240, 1, 8, 8), rows.y[:240])
    train, val = Subset(everything, range(160)), Subset(everything, range(160, 240))
    unseen = rows.x_test + 0.35 * torch.randn(rows.x_test.shape)
    net = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1152, 10))
    return Training(
        Classifier(net, lr=1e-3),
        DataLoader(everything if whole else train, batch_size=16, shuffle=True),
        _less_distance(accuracy, everything[160:], (unseen, rows.y_test)),  # type: ignore[arg-type]
        DataLoader(val, batch_size=80),
        {"max_epochs": 18},
    )


# --- too-little-data --------------------------------------------------------------------------------------------------


class DigitNet(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, padding=1)
        self.fc1 = nn.Linear(256, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv(x)), 2).flatten(1)
        return self.fc2(F.relu(self.fc1(x)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", F.cross_entropy(self(x), y))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@sick("ten-digits", "cnn", "too-little-data", twin=lambda seed: ten_digits(seed, rows=1300, epochs=8))
def ten_digits(seed: int, rows: int = 10, epochs: int = 250) -> Training:
    """A prototype on a handful of images, trained until it knows them."""
    torch.manual_seed(seed)
    data = digits(seed)
    train = loader(data.x[:rows], data.y[:rows], batch_size=min(rows, 32))
    val = loader(data.x_test, data.y_test, batch_size=128, shuffle=False)
    return Training(
        DigitNet(), train, accuracy(data.x_test, y=data.y_test), val, {"max_epochs": epochs, "log_every_n_steps": 5}
    )


@sick("a-dozen-rows", "mlp", "too-little-data", twin=lambda seed: a_dozen_rows(seed, rows=900, epochs=15))
def a_dozen_rows(seed: int, rows: int = 12, epochs: int = 200) -> Training:
    torch.manual_seed(seed)
    data = surface(seed, rows=1200)
    train = loader(data.x[:rows], data.y[:rows], batch_size=min(rows // 2, 32))
    val = loader(data.x_test, data.y_test, batch_size=150, shuffle=False)
    module = Regressor(mlp(6, 64, 64, 1), lr=3e-3)
    return Training(module, train, r2(data.x_test, y=data.y_test), val, {"max_epochs": epochs, "log_every_n_steps": 1})


class ScanAutoencoder(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
        self.decode = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64))

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x,) = batch
        loss = F.mse_loss(self(x), x)
        self.log("loss/train", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        (x,) = batch
        self.log("loss/val", F.mse_loss(self(x), x))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@sick("eight-scans", "autoencoder", "too-little-data", twin=lambda seed: eight_scans(seed, rows=1300, epochs=8))
def eight_scans(seed: int, rows: int = 8, epochs: int = 300) -> Training:
    torch.manual_seed(seed)
    data = digits(seed)
    x, x_test = data.x[:rows].flatten(1), data.x_test.flatten(1)
    return Training(
        ScanAutoencoder(),
        loader(x, batch_size=min(rows, 32)),
        lambda module: explained(predict(module, x_test), x_test),
        loader(x_test, batch_size=150, shuffle=False),
        {"max_epochs": epochs, "check_val_every_n_epoch": max(1, epochs // 30), "log_every_n_steps": 5},
    )
