"""Which samples there are, in what order, how many, with which targets, and what it takes to fetch them."""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.thirteenth.d_common import Columns, SignalNet, Supervised, mlp, tones


class SpotFinder(LightningModule):
    """Marks the few pixels of a faint spot in a noisy picture."""

    def __init__(self, weight: float | None) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 1)
        )
        self.weight = None if weight is None else torch.tensor(weight)

    def forward(self, picture: Tensor) -> Tensor:
        return self.net(picture)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        logits = self(batch["picture"])
        loss = F.binary_cross_entropy_with_logits(logits, batch["spot"], pos_weight=self.weight)
        self.log("seg_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def spots(seed: int, weight: float | None) -> Training:
    g = data.generator(seed, 430)
    total, size = 800, 16
    spot = torch.zeros(total, 1, size, size)
    row, column = torch.randint(1, size - 2, (2, total), generator=g)
    index = torch.arange(total)
    for down in (0, 1):
        for right in (0, 1):
            spot[index, 0, row + down, column + right] = 1.0
    picture = 0.9 * spot + torch.randn(total, 1, size, size, generator=g)

    def score(module: LightningModule) -> float:
        chosen = data.predict(module, picture[600:]) > 0
        truth = spot[600:] > 0.5
        return 0.5 * (chosen[truth].float().mean() + (~chosen)[~truth].float().mean()).item()

    train = DataLoader(Columns(picture=picture[:600], spot=spot[:600]), 25, shuffle=True)
    return Training(SpotFinder(weight), train, score, trainer={"max_epochs": 8})


@sick("ja-spots-few-pixels", "segmentation", "class-imbalance", twin=lambda seed: spots(seed, 60.0))
def spots_plain(seed: int) -> Training:
    return spots(seed, None)


def machines(seed: int, shuffle: bool) -> Training:
    """Sounds of six machines, recorded one after another: a folder each, joined."""
    cut = tones(seed, n=1500)
    folders = [TensorDataset(cut.x[cut.y == k], cut.y[cut.y == k]) for k in range(6)]
    joined: Dataset[Any] = ConcatDataset(folders)
    module = Supervised(SignalNet(6, 24), F.cross_entropy, 4e-3)
    return Training(
        module,
        DataLoader(joined, batch_size=20, shuffle=shuffle),
        cut.accuracy,
        cut.val(),
        {"max_epochs": 4},
    )


@sick("ja-machines-folder-by-folder", "signals", "unshuffled-data", twin=lambda seed: machines(seed, True))
def machines_in_order(seed: int) -> Training:
    return machines(seed, False)


class Churn(LightningDataModule):
    """Customers who stay or leave, a sixth of the records uncertain; a part is kept for validation."""

    def __init__(self, seed: int, shared: bool) -> None:
        super().__init__()
        g = data.generator(seed, 431)
        x = torch.randn(3000, 12, generator=g)
        y = (x[:, 0] * x[:, 1] + x[:, 2] + 0.3 * x[:, 3] > 0).long()
        self.test = (x[1800:], y[1800:])
        y = data.flip_labels(y, 0.3, 2, seed)
        rows = TensorDataset(x[:1800], y[:1800])
        order = torch.randperm(1800, generator=g).tolist()
        self.fit_rows = Subset(rows, order[:1200])
        self.val_rows = Subset(rows, order[700:1200] if shared else order[1200:1700])

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.fit_rows, 48, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.val_rows, 250)


def churn(seed: int, shared: bool) -> Training:
    held = Churn(seed, shared)
    x, y = held.test

    def score(module: LightningModule) -> float:
        return -F.cross_entropy(data.predict(module, x), y).item()

    stop = EarlyStopping("val_loss", patience=2)
    module = Supervised(mlp(12, 96, 96, 2), F.cross_entropy, 2e-3)
    return Training(module, held, score, trainer={"max_epochs": 30, "callbacks": [stop]})


@sick("ja-churn-slices-overlap", "tabular", "train-val-leakage", twin=lambda seed: churn(seed, False))
def churn_overlap(seed: int) -> Training:
    return churn(seed, True)


class SmallCNN(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        logits = self(x)
        self.log("val_loss", F.cross_entropy(logits, y))
        self.log("val_acc", (logits.argmax(-1) == y).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=5e-3)


def scans(seed: int, limit: int | None) -> Training:
    cut = data.digits(seed).to_images()
    rows: Dataset[Any] = TensorDataset(cut.x, cut.y)
    if limit is not None:
        rows = Subset(rows, range(limit))
    return Training(
        SmallCNN(),
        DataLoader(rows, 16, shuffle=True),
        cut.accuracy,
        cut.val(),
        {"max_steps": 250, "max_epochs": -1, "check_val_every_n_epoch": None, "val_check_interval": 50},
    )


@sick("ja-digits-debug-subset", "images", "too-little-data", twin=lambda seed: scans(seed, None))
def digits_subset(seed: int) -> Training:
    return scans(seed, 40)


def gestures(seed: int, key: bool) -> Training:
    """Two exports of one experiment, signals and annotations, each in an order of its own; `key` is the join."""
    cut = tones(seed, n=1000, classes=4)
    g = data.generator(seed, 432)
    order = torch.randperm(1000, generator=g)
    number = torch.argsort(order)  # row of each annotation's signal in the second export
    annotations = cut.y[order]
    y = annotations[number] if key else annotations
    module = Supervised(SignalNet(4), nn.CrossEntropyLoss(), 5e-3, torch.optim.RMSprop)
    train = DataLoader(TensorDataset(cut.x, y), 32, shuffle=True)
    return Training(module, train, cut.accuracy, trainer={"max_steps": 200})


@sick("ja-gestures-joined-by-row", "signals", "uninformative-targets", twin=lambda seed: gestures(seed, True))
def gestures_by_row(seed: int) -> Training:
    return gestures(seed, False)


class Factors(LightningModule):
    """Ratings as products of user and item factors, with offsets."""

    def __init__(self, width: int, penalty: float) -> None:
        super().__init__()
        self.user = nn.Embedding(120, width)
        self.item = nn.Embedding(70, width)
        self.user_offset = nn.Embedding(120, 1)
        self.item_offset = nn.Embedding(70, 1)
        for table in (self.user, self.item, self.user_offset, self.item_offset):
            nn.init.normal_(table.weight, std=0.1)
        self.penalty = penalty

    def forward(self, pairs: Tensor) -> Tensor:
        user, item = pairs[..., 0], pairs[..., 1]
        offsets = self.user_offset(user) + self.item_offset(item)
        return (self.user(user) * self.item(item)).sum(-1) + offsets[..., 0]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        error = F.mse_loss(self(batch["pair"]), batch["rating"])
        self.log("rating/train", error)
        squares = self.user(batch["pair"][:, 0]).square().sum(-1) + self.item(batch["pair"][:, 1]).square().sum(-1)
        return error + self.penalty * squares.mean()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("rating/val", F.mse_loss(self(batch["pair"]), batch["rating"]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-2)


def ratings(seed: int, width: int, penalty: float) -> Training:
    g = data.generator(seed, 433)
    user, item = torch.randn(120, 2, generator=g), torch.randn(70, 2, generator=g)
    taste, fame = torch.randn(120, generator=g), torch.randn(70, generator=g)
    pairs = torch.stack([torch.randint(120, (4200,), generator=g), torch.randint(70, (4200,), generator=g)], 1)
    u, i = pairs.T
    rating = 0.6 * (user[u] * item[i]).sum(-1) + 0.5 * taste[u] + 0.5 * fame[i]
    rating = rating / rating.std() + 0.9 * torch.randn(4200, generator=g)
    return Training(
        Factors(width, penalty),
        DataLoader(Columns(pair=pairs[:2600], rating=rating[:2600]), 128, shuffle=True),
        lambda m: data.r2(data.predict(m, pairs[3400:]), rating[3400:]),
        DataLoader(Columns(pair=pairs[2600:3400], rating=rating[2600:3400]), 400),
        {"max_epochs": 24},
    )


@sick("ja-ratings-wide-factors", "recommender", "overfitting", twin=lambda seed: ratings(seed, 3, 0.02))
def ratings_wide(seed: int) -> Training:
    return ratings(seed, 48, 0.0)


class Simulator(Dataset[tuple[Tensor, Tensor]]):
    """Draws a fresh signal of one of five classes whenever it is asked."""

    def __init__(self, length: int, source: np.random.Generator | None) -> None:
        self.length = length
        self.source = source

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        draw = self.source or np.random.default_rng(int(torch.randint(2**31, ()).item()))
        kind = int(draw.integers(5))
        time = np.linspace(0, 2 * math.pi, 48)
        pitch, phase = 2 + 2 * kind + draw.uniform(-0.7, 0.7), draw.uniform(0, 2 * math.pi)
        signal = draw.uniform(0.5, 1.5) * np.sin(pitch * time + phase) + 0.7 * draw.standard_normal(48)
        return torch.tensor(signal, dtype=torch.float32), torch.tensor(kind)


def simulated(seed: int, own: bool) -> Training:
    source = np.random.default_rng(1000 + seed)
    check = Simulator(800, np.random.default_rng(50_000 + seed))
    x_test, y_test = (torch.stack(part) for part in zip(*(check[k] for k in range(800)), strict=True))
    train = DataLoader(Simulator(192, source if own else None), 16, num_workers=2)
    module = Supervised(mlp(48, 128, 64, 5), F.cross_entropy, 2e-3)
    return Training(
        module,
        train,
        lambda m: data.accuracy(data.predict(m, x_test), y_test),
        trainer={"max_epochs": 24},
    )


@sick("ja-simulator-own-source", "signals", "duplicate-randomness", twin=lambda seed: simulated(seed, False))
def simulator_own(seed: int) -> Training:
    return simulated(seed, True)


class Archive(Dataset[tuple[Tensor, Tensor]]):
    """Rows of a packed table, unpacked on the way; with `hold` the unpacked table is kept."""

    def __init__(self, x: Tensor, y: Tensor, hold: bool) -> None:
        padded = np.concatenate([x.numpy(), np.random.default_rng(0).random((12_000, x.shape[1]), np.float32)])
        self.packed = zlib.compress(padded.tobytes(), 1)
        self.columns, self.y, self.hold = x.shape[1], y, hold
        self.table: np.ndarray[Any, Any] | None = None

    def unpack(self) -> np.ndarray[Any, Any]:
        if self.table is not None:
            return self.table
        table = np.frombuffer(zlib.decompress(self.packed), np.float32).reshape(-1, self.columns)
        if self.hold:
            self.table = table
        return table

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.tensor(self.unpack()[index]), self.y[index]


def archive(seed: int, hold: bool) -> Training:
    cut = data.blobs(seed, columns=10, n=640, spread=3.0)
    train = DataLoader(Archive(cut.x, cut.y, hold), 8, shuffle=True)
    return Training(
        Supervised(mlp(10, 32, 5), F.cross_entropy, 5e-3),
        train,
        cut.accuracy,
        trainer={"max_epochs": 2},
    )


@sick(
    "ja-archive-unpacked-each-row",
    "tabular",
    "data-starvation",
    twin=lambda seed: archive(seed, True),
    note="scores are equal; seconds a step separate it from its twin",
)
def archive_each_row(seed: int) -> Training:
    return archive(seed, False)
