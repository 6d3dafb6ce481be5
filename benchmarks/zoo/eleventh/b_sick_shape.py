"""Sick trainings whose architecture does not fit: outputs out of reach, missing layers, too few units, wrong axes."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import accuracy, generator, predict, r2
from benchmarks.zoo.eleventh.b_common import Fit, by_accuracy, by_r2, loader


class Autoencoder(LightningModule):
    def __init__(self, decode: nn.Module) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 6))
        self.decoder = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 20), decode)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        (x,) = batch
        loss = F.mse_loss(self(x), x)
        self.log("recon", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def sensors(seed: int, decode: nn.Module) -> Training:
    g = generator(seed, 1130)
    factors = torch.randn(2500, 4, generator=g)
    x = factors @ torch.randn(4, 20, generator=g) + 0.2 * torch.randn(2500, 20, generator=g)
    x = (x - x.mean(0)) / x.std(0)
    return Training(
        Autoencoder(decode), loader(x[:2000], batch=64), by_r2(x[2000:], x[2000:]), trainer={"max_epochs": 12}
    )


@sick(
    "eb-autoencoder-sigmoid-on-zscores",
    "autoencoder",
    "output-range-mismatch",
    twin=lambda seed: sensors(seed, nn.Identity()),
)
def sigmoid_decoder(seed: int) -> Training:
    return sensors(seed, nn.Sigmoid())


class Forecast(LightningModule):
    """The next eight values from the last thirty-two; validation and a scheduler on it."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.rnn = nn.GRU(1, 24, batch_first=True)
        self.head = head

    def forward(self, past: Tensor) -> Tensor:
        return self.head(self.rnn(past)[0][:, -1])

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = F.smooth_l1_loss(self(batch[0]), batch[1])
        self.log("train", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("valid", F.smooth_l1_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=8e-3)
        plan = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=3)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plan, "monitor": "valid"}}


def forecast(seed: int, head: nn.Module) -> Training:
    g = generator(seed, 1131)
    t = torch.arange(40.0)
    phase, pace = 2 * math.pi * torch.rand(1500, 1, generator=g), 0.25 + 0.15 * torch.rand(1500, 1, generator=g)
    wave = torch.sin(pace * t + phase) * 1.4 + 0.1 * torch.randn(1500, 40, generator=g)
    x, y = wave[:, :32, None], wave[:, 32:]
    val = loader(x[1000:1200], y[1000:1200], batch=200, shuffle=False)
    return Training(
        Forecast(head), loader(x[:1000], y[:1000], batch=32), by_r2(x[1200:], y[1200:]), val, {"max_epochs": 10}
    )


@sick(
    "eb-forecast-relu-on-the-way-out",
    "time-series",
    "output-range-mismatch",
    twin=lambda seed: forecast(seed, nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 8))),
)
def forecast_relu(seed: int) -> Training:
    return forecast(seed, nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 8), nn.ReLU()))


def patches(seed: int, net: nn.Module) -> Training:
    """Whether two spots of a picture, each dark or bright, are alike."""
    g = generator(seed, 1132)
    sign = torch.randint(2, (2400, 2), generator=g) * 2.0 - 1
    image = 0.5 * torch.randn(2400, 1, 8, 8, generator=g)
    image[:, 0, 1:4, 1:4] += sign[:, 0, None, None]
    image[:, 0, 4:7, 4:7] += sign[:, 1, None, None]
    y = (sign[:, 0] == sign[:, 1]).long()
    module = Fit(net, F.cross_entropy, lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9))
    return Training(module, loader(image[:1800], y[:1800], batch=32), by_accuracy(image[1800:], y[1800:]),
                    trainer={"max_epochs": 6})  # fmt: skip


def conv_stack(between: type[nn.Module] | None) -> nn.Sequential:
    parts: list[nn.Module] = []
    for a, b in ((1, 8), (8, 16)):
        parts.append(nn.Conv2d(a, b, 3, padding=1))
        parts += [between()] if between else []
    parts += [nn.Flatten(), nn.Linear(1024, 32)]
    parts += [between()] if between else []
    return nn.Sequential(*parts, nn.Linear(32, 2))


@sick(
    "eb-convs-with-nothing-between",
    "images",
    "missing-nonlinearity",
    twin=lambda seed: patches(seed, conv_stack(nn.ReLU)),
)
def convs_bare(seed: int) -> Training:
    return patches(seed, conv_stack(None))


class Factors(LightningModule):
    """Ratings as the product of a vector a user and a vector an item."""

    def __init__(self, users: int, items: int, rank: int) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(users, rank), nn.Embedding(items, rank)
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=0.3)

    def forward(self, pair: Tensor) -> Tensor:
        return (self.user(pair[:, 0]) * self.item(pair[:, 1])).sum(-1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        pair, rating = batch
        loss = F.mse_loss(self(pair), rating)
        self.log("rating_mse", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.02)


def ratings(seed: int, rank: int) -> Training:
    g = generator(seed, 1133)
    truth = torch.randn(80, 5, generator=g) @ torch.randn(5, 60, generator=g) / 5**0.5
    pair = torch.cartesian_prod(torch.arange(80), torch.arange(60))[torch.randperm(4800, generator=g)]
    rating = truth[pair[:, 0], pair[:, 1]] + 0.1 * torch.randn(4800, generator=g)
    return Training(
        Factors(80, 60, rank),
        loader(pair[:3800], rating[:3800], batch=128),
        lambda m: r2(predict(m, pair[3800:]), rating[3800:]),
        trainer={"max_epochs": 18},
    )


@sick("eb-ratings-rank-one", "ranking", "insufficient-capacity", twin=lambda seed: ratings(seed, 6))
def ratings_one(seed: int) -> Training:
    return ratings(seed, 1)


class Gesture(LightningModule):
    def __init__(self, rnn: nn.LSTM) -> None:
        super().__init__()
        self.lstm = rnn
        self.fc = nn.Linear(32, 4)

    def forward(self, motion: Tensor) -> Tensor:
        out, _ = self.lstm(motion)
        return self.fc(out[:, -1, :])

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        motion, kind = batch
        logits = self(motion)
        self.log("acc", accuracy(logits, kind))
        return F.cross_entropy(logits, kind)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=8e-3)


def gestures(seed: int, rnn: Any) -> Training:
    g = generator(seed, 1134)
    y = torch.randint(4, (1500,), generator=g)
    t = torch.arange(18.0)
    angle = (0.3 + 0.3 * (y % 2))[:, None] * t * torch.where(y > 1, 1.0, -1.0)[:, None]
    angle = angle + 2 * math.pi * torch.rand(1500, 1, generator=g)
    x = torch.stack([angle.cos(), angle.sin()], -1) + 0.3 * torch.randn(1500, 18, 2, generator=g)
    return Training(
        Gesture(rnn()), loader(x[:1200], y[:1200], batch=24), by_accuracy(x[1200:], y[1200:]), trainer={"max_epochs": 7}
    )


@sick(
    "eb-lstm-time-axis-first",
    "sequences",
    "batch-mixing",
    twin=lambda seed: gestures(seed, lambda: nn.LSTM(2, 32, batch_first=True)),
)
def lstm_axis(seed: int) -> Training:
    return gestures(seed, lambda: nn.LSTM(2, 32))
