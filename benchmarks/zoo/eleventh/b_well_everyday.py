"""Everyday healthy trainings: images, tables, text, series, a recommender."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.zoo.case import Training, well
from benchmarks.zoo.data import accuracy, characters, digits, generator, predict, r2, table
from benchmarks.zoo.eleventh.b_common import Fit, by_r2, loader, mlp


class DigitData(LightningDataModule):
    def __init__(self, seed: int) -> None:
        super().__init__()
        self.cut = digits(seed).to_images()

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(self.cut.x, self.cut.y), 64, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(self.cut.x_test, self.cut.y_test), 225)


class SmallResNet(LightningModule):
    """Kaggle style: OneCycle, label smoothing, metrics of both parts."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.block = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16),
        )  # fmt: skip
        self.head = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.2), nn.Linear(256, 10))
        self.criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.relu(x + self.block(x)))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        logits = self(batch[0])
        loss = self.criterion(logits, batch[1])
        self.log_dict({"train_loss": loss, "train_acc": accuracy(logits, batch[1])})
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        logits = self(batch[0])
        self.log_dict({"val_loss": self.criterion(logits, batch[1]), "val_acc": accuracy(logits, batch[1])})

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=0.01)
        plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plan, "interval": "step"}}


@well("eb-resnet-onecycle-smoothing", "images")
def resnet_onecycle(seed: int) -> Training:
    data = DigitData(seed)
    return Training(SmallResNet(8 * (len(data.cut.x) // 64)), data, data.cut.accuracy, trainer={"max_epochs": 8})


@well("eb-cancer-logistic-sgd", "tabular")
def cancer_logistic(seed: int) -> Training:
    cut = table("breast_cancer", seed)
    module = Fit(nn.Linear(30, 2), F.cross_entropy, lambda p: torch.optim.SGD(p, lr=0.1))
    return Training(module, cut.train(32), cut.accuracy, trainer={"max_epochs": 15})


class Diabetes(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(-1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", F.mse_loss(self(batch[0]), batch[1]), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3, weight_decay=1e-3)


@well("eb-diabetes-noise-floor", "regression")
def diabetes_floor(seed: int) -> Training:
    cut = table("diabetes", seed)
    return Training(Diabetes(), cut.train(16), cut.r2, cut.val(), {"max_epochs": 12})


@well("eb-wine-batches-of-eight", "tabular")
def wine_eights(seed: int) -> Training:
    cut = table("wine", seed)
    module = Fit(mlp(13, 24, 3, layers=1), F.cross_entropy, lambda p: torch.optim.RMSprop(p, lr=1e-3))
    return Training(module, cut.train(8), cut.accuracy, trainer={"max_epochs": 12})


class CharModel(LightningModule):
    def __init__(self, symbols: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(symbols, 24)
        self.lstm = nn.LSTM(24, 64, batch_first=True)
        self.out = nn.Linear(64, symbols)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.lstm(self.embed(ids))[0])

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        ids = batch[0]
        loss = F.cross_entropy(self(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        self.log("train/nll", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@well("eb-characters-lstm-clipped", "text")
def characters_lstm(seed: int) -> Training:
    text = characters(seed)

    def score(module: LightningModule) -> float:
        logits = predict(module, text.test[:, :-1])
        return text.floor - F.cross_entropy(logits.flatten(0, 1), text.test[:, 1:].flatten()).item()

    return Training(
        CharModel(text.symbols),
        loader(text.train, batch=50),
        score,
        trainer={"max_epochs": 5, "gradient_clip_val": 1.0},
    )


class PixelAutoencoder(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.ELU(), nn.Linear(64, 12))
        self.decoder = nn.Sequential(nn.Linear(12, 64), nn.ELU(), nn.Linear(64, 64), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = F.binary_cross_entropy(self(batch[0]), batch[0])
        self.log("bce", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@well("eb-digits-autoencoder-bce", "autoencoder")
def digits_autoencoder(seed: int) -> Training:
    cut = digits(seed)
    return Training(PixelAutoencoder(), cut.train(64), by_r2(cut.x_test, cut.x_test), trainer={"max_epochs": 15})


class Pairwise(LightningModule):
    """Items a user took against items drawn at random, ranked by BPR."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(100, 8), nn.Embedding(80, 8)
        nn.init.normal_(self.user.weight, std=0.1)
        nn.init.normal_(self.item.weight, std=0.1)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return (self.user(user) * self.item(item)).sum(-1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        user, taken, other = batch[0].unbind(1)
        loss = -F.logsigmoid(self(user, taken) - self(user, other)).mean()
        self.log("bpr", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


@well("eb-bpr-random-negatives", "ranking")
def bpr(seed: int) -> Training:
    g = generator(seed, 1170)
    taste = 2 * torch.randn(100, 3, generator=g) @ torch.randn(3, 80, generator=g)

    def draw(n: int) -> Tensor:
        user = torch.randint(100, (n,), generator=g)
        a, b = torch.randint(80, (2, n), generator=g)
        first = torch.rand(n, generator=g) < torch.sigmoid(taste[user, a] - taste[user, b])
        return torch.stack([user, torch.where(first, a, b), torch.where(first, b, a)], 1)

    train, test = draw(12000), draw(3000)

    def score(module: Any) -> float:
        user, taken, other = test.unbind(1)
        with torch.no_grad():
            return (module(user, taken) > module(user, other)).float().mean().item()

    return Training(Pairwise(), loader(train, batch=128), score, trainer={"max_epochs": 6})


class Seasons(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.out = nn.GRU(2, 24, batch_first=True), nn.Linear(24, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.gru(x)[1][-1])

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", F.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=8e-3)
        plan = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=1)
        return {"optimizer": optimizer, "lr_scheduler": plan, "monitor": "val_loss"}


@well("eb-seasons-gru-plateau-schedule", "time-series")
def seasons(seed: int) -> Training:
    g = generator(seed, 1171)
    t = torch.arange(1530.0)
    drive = torch.randn(1530, generator=g)
    value = torch.zeros(1530)
    for i in range(1, 1530):
        value[i] = 0.8 * value[i - 1] + 0.6 * drive[i] * math.cos(0.26 * i)
    value = value + torch.sin(2 * math.pi * t / 24)
    series = torch.stack([(value - value.mean()) / value.std(), torch.sin(2 * math.pi * t / 24)], 1)
    windows = series.unfold(0, 25, 1).mT
    x, y = windows[:, :24], windows[:, 24, :1]
    val = loader(x[1000:1200], y[1000:1200], batch=200, shuffle=False)
    return Training(
        Seasons(), loader(x[:1000], y[:1000], batch=40), lambda m: r2(predict(m, x[1200:]), y[1200:]), val,
        {"max_epochs": 10},
    )  # fmt: skip
