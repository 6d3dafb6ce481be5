"""Sick trainings whose samples are at fault: too few, in the wrong order, in both parts, slow or drawn twice."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import accuracy, digits, generator, predict, r2, regression
from benchmarks.zoo.eleventh.b_common import by_accuracy, by_r2, loader, mlp


class Genes(LightningModule):
    """Which of two kinds a tissue is, from fifty expressions, with labels that are now and then wrong."""

    def __init__(self, dropout: float, decay: float) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(50, 128), nn.ReLU(), nn.Dropout(dropout), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 2)
        )
        self.decay = decay

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=self.decay)


def tissues(seed: int, n: int) -> tuple[Tensor, Tensor]:
    g = generator(seed, 1150)
    x = torch.randn(n, 50, generator=g)
    y = (x[:, :5].sum(1) + 0.8 * torch.randn(n, generator=g) > 0).long()
    return x, torch.where(torch.rand(n, generator=g) < 0.1, 1 - y, y)


def minus_entropy(x: Tensor, y: Tensor) -> Any:
    return lambda module: -F.cross_entropy(predict(module, x), y).item()


def genes(seed: int, dropout: float, decay: float, epochs: int, stop: Any = None) -> Training:
    x, y = tissues(seed, 3000)
    val = loader(x[600:1200], y[600:1200], batch=300, shuffle=False)
    return Training(
        Genes(dropout, decay),
        loader(x[:600], y[:600], batch=40),
        minus_entropy(x[1200:], y[1200:]),
        val,
        {"max_epochs": epochs, "callbacks": [stop] if stop else []},
    )


@sick(
    "eb-genes-forty-epochs",
    "tabular",
    "overfitting",
    twin=lambda seed: genes(seed, 0.3, 0.05, 40, EarlyStopping("val_loss", patience=2)),
)
def genes_long(seed: int) -> Training:
    return genes(seed, 0.0, 0.0, 40)


def resampled(seed: int, first_split: bool) -> Training:
    """A table whose rows were drawn with replacement, before or after a fifth was set aside to stop by."""
    x, y = tissues(seed, 3000)
    g = generator(seed, 1151)
    if first_split:
        rows = torch.randint(560, (1120,), generator=g)
        train, val = rows, torch.arange(560, 700)
    else:
        rows = torch.randint(700, (1400,), generator=g)
        train, val = rows[:1120], rows[1120:]
    return Training(
        Genes(0.0, 0.0),
        loader(x[train], y[train], batch=40),
        minus_entropy(x[700:], y[700:]),
        loader(x[val], y[val], batch=280, shuffle=False),
        {"max_epochs": 25, "callbacks": [EarlyStopping("val_loss", patience=2)]},
    )


@sick("eb-resampled-before-the-split", "tabular", "train-val-leakage", twin=lambda seed: resampled(seed, True))
def resampled_first(seed: int) -> Training:
    return resampled(seed, False)


class Curve(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.f = mlp(8, 64, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return F.mse_loss(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val/mse", F.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def curve(seed: int, rows: range | None) -> Training:
    cut = regression(seed, r2=0.9)
    data: Any = TensorDataset(cut.x, cut.y)
    if rows is not None:
        data = Subset(data, rows)
    train = DataLoader(data, 32, shuffle=True)
    return Training(
        Curve(), train, cut.r2, cut.val(), {"max_steps": 300, "max_epochs": -1, "check_val_every_n_epoch": 1}
    )


@sick(
    "eb-subset-left-from-debugging", "regression", "too-little-data", "overfitting", twin=lambda seed: curve(seed, None)
)
def subset_left(seed: int) -> Training:
    return curve(seed, range(64))


class Beats(LightningModule):
    def __init__(self, weight: Tensor | None) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv1d(1, 10, 5), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(10, 16, 5), nn.ReLU())
        self.fc = nn.Linear(16, 1)
        self.register_buffer("weight", weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).amax(-1)).squeeze(1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = F.binary_cross_entropy_with_logits(self(batch[0]), batch[1], pos_weight=self.weight)
        self.log("bce", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.03, momentum=0.9)


def beats(seed: int, weight: float | None) -> Training:
    """Heartbeats; one in thirty is wider than the others."""
    g = generator(seed, 1152)
    y = (torch.rand(5000, generator=g) < 0.033).float()
    y[3500:] = (torch.arange(1500) % 2).float()
    t = torch.arange(40.0)
    centre = 15 + 10 * torch.rand(5000, 1, generator=g)
    x = 3 * torch.exp(-(((t - centre) / (2 + 1.6 * y[:, None])) ** 2)) + 0.9 * torch.randn(5000, 40, generator=g)
    x = ((x - x.mean()) / x.std()).unsqueeze(1)

    def balanced(module: LightningModule) -> float:
        return ((predict(module, x[3500:]) > 0).float() == y[3500:]).float().mean().item()

    module = Beats(None if weight is None else torch.tensor(weight))
    return Training(module, loader(x[:3500], y[:3500], batch=100), balanced, trainer={"max_epochs": 10})


@sick("eb-heartbeats-one-in-thirty", "audio", "class-imbalance", twin=lambda seed: beats(seed, 29.0))
def beats_rare(seed: int) -> Training:
    return beats(seed, None)


class Folders(LightningDataModule):
    """Pictures as they lie on the disk: one folder a class, one after the other."""

    def __init__(self, seed: int, **options: Any) -> None:
        super().__init__()
        cut = digits(seed).to_images()
        order = cut.y.argsort(stable=True)
        self.data = TensorDataset(cut.x[order] * 2 - 1, cut.y[order])
        self.check = TensorDataset(cut.x_test * 2 - 1, cut.y_test)
        self.options = options

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.data, batch_size=32, **self.options)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.check, batch_size=256)


class FolderNet(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_acc", accuracy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def folders(seed: int, **options: Any) -> Training:
    data = Folders(seed, **options)
    return Training(FolderNet(), data, by_accuracy(*data.check.tensors), trainer={"max_epochs": 7})


@sick("eb-folders-one-after-another", "images", "unshuffled-data", twin=lambda seed: folders(seed, shuffle=True))
def folders_in_order(seed: int) -> Training:
    return folders(seed)


class Simulated(Dataset[tuple[Tensor, Tensor]]):
    """Draws a pendulum at random each time it is asked."""

    def __len__(self) -> int:
        return 128

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        pace, phase = np.random.uniform(0.3, 1.2), np.random.uniform(0, 2 * math.pi)
        wave = np.sin(pace * np.arange(30) + phase) + 0.2 * np.random.randn(30)
        return torch.tensor(wave, dtype=torch.float32), torch.tensor([(pace - 0.75) / 0.26], dtype=torch.float32)


def zero_seed(worker: int) -> None:
    np.random.seed(0)


def own_seed(worker: int) -> None:
    np.random.seed(torch.initial_seed() % 2**32)


class Pendulum(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(30, 64, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def pendulum(seed: int, init: Any) -> Training:
    g = generator(seed, 1153)
    pace = 0.3 + 0.9 * torch.rand(600, 1, generator=g)
    x = torch.sin(pace * torch.arange(30) + 2 * math.pi * torch.rand(600, 1, generator=g))
    x = x + 0.2 * torch.randn(600, 30, generator=g)
    train = DataLoader(Simulated(), 16, num_workers=2, worker_init_fn=init)
    return Training(Pendulum(), train, by_r2(x, (pace - 0.75) / 0.26), trainer={"max_epochs": 40})


@sick(
    "eb-simulator-seeded-with-zero", "time-series", "duplicate-randomness", twin=lambda seed: pendulum(seed, own_seed)
)
def simulator_zero(seed: int) -> Training:
    return pendulum(seed, zero_seed)


class Lines(Dataset[tuple[Tensor, Tensor]]):
    """Numbers as lines of a text; `read` says when a line is parsed."""

    def __init__(self, x: Tensor, y: Tensor, early: bool) -> None:
        self.lines = [",".join(f"{v:.5f}" for v in row.tolist()) for row in x]
        self.y = y
        self.rows = [self.parse(line) for line in self.lines] if early else None

    @staticmethod
    def parse(line: str) -> Tensor:
        return torch.tensor([float(v) for v in line.split(",")])

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        if self.rows is not None:
            return self.rows[i], self.y[i]
        time.sleep(0.001)  # the file lies on a network drive
        return self.parse(self.lines[i]), self.y[i]


def lines(seed: int, early: bool) -> Training:
    cut = regression(seed, r2=0.9, n=1000)
    train = DataLoader(Lines(cut.x, cut.y, early), 32, shuffle=True)
    return Training(Curve(), train, lambda m: r2(predict(m, cut.x_test), cut.y_test), trainer={"max_epochs": 4})


@sick(
    "eb-lines-parsed-one-by-one",
    "regression",
    "data-starvation",
    twin=lambda seed: lines(seed, True),
    note="scores are equal; seconds a step separate it from its twin",
)
def lines_late(seed: int) -> Training:
    return lines(seed, False)
