"""Inputs and targets in units that the training was not made for."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import blobs, digits, generator, predict, r2, regression
from benchmarks.zoo.fourteenth.b_common import Fit, Logged, adam, batches, epochs, mlp, seasons, sgd

# --- digits as images; the reader of the files already brings them to [0, 1]


def scans(seed: int, top: float) -> Training:
    cut = digits(seed).to_images()
    x, held = cut.x / top, cut.x_test / top
    net = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(192, 48), nn.ReLU(),
        nn.Linear(48, 10),
    )  # fmt: skip
    model = Fit(net, F.cross_entropy, sgd(0.05))
    return Training(
        model,
        batches(x, cut.y, size=32),
        lambda m: (predict(m, held).argmax(1) == cut.y_test).float().mean().item(),
        None,
        epochs(6),
    )


@sick("pa-scans-over-255", "images", "unscaled-inputs", twin=lambda s: scans(s, 1.0))
def scans_twice(seed: int) -> Training:
    return scans(seed, 255.0)


# --- a heating model from six thermometers


class Rooms(LightningDataModule):
    def __init__(self, seed: int, kelvin: bool) -> None:
        super().__init__()
        cut = regression(seed, r2=0.92, n=1600, columns=6, n_test=800)
        degrees = (lambda x: 291.0 + 6.0 * x) if kelvin else (lambda x: x)
        self.fit = TensorDataset(degrees(cut.x), cut.y)
        self.held = TensorDataset(degrees(cut.x_test), cut.y_test)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.fit, 40, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.held, 200)


def rooms(seed: int, kelvin: bool) -> Training:
    data = Rooms(seed, kelvin)
    x, y = data.held.tensors
    model = Logged(mlp(6, 48, 24, 1, act=nn.GELU), F.mse_loss, adam(3e-3))
    return Training(model, data.train_dataloader(), lambda m: r2(predict(m, x), y), data.val_dataloader(), epochs(8))


@sick("pa-rooms-kelvin", "tabular", "unscaled-inputs", twin=lambda s: rooms(s, False))
def rooms_kelvin(seed: int) -> Training:
    return rooms(seed, True)


# --- the load of a grid, one hour ahead


class Load(LightningModule):
    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.mean, self.std = mean, std
        self.rnn = nn.GRU(1, 24, batch_first=True)
        self.out = nn.Linear(24, 1)

    def forward(self, past: Tensor) -> Tensor:
        return self.out(self.rnn(past[..., None])[0][:, -1]) * self.std + self.mean

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        out = (self(batch["past"]) - self.mean) / self.std
        loss = F.mse_loss(out, (batch["next"] - self.mean) / self.std)
        self.log("mse", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 4e-3)


def load(seed: int, known: bool) -> Training:
    x, y = seasons(seed, 2000, 16)
    watts = 3200 + 700 * y
    model = Load(3200.0, 700.0) if known else Load(0.0, 1.0)
    rows = [{"past": a, "next": b} for a, b in zip(x[:1500], watts[:1500], strict=True)]
    return Training(
        model,
        DataLoader(rows, 50, shuffle=True),  # type: ignore[arg-type]
        lambda m: r2(predict(m, x[1500:]), watts[1500:]),
        None,
        epochs(8),
    )


@sick("pa-load-watts", "time series", "unscaled-targets", twin=lambda s: load(s, True))
def load_watts(seed: int) -> Training:
    return load(seed, False)


# --- returns as fractions


def returns(seed: int, unit: float) -> Training:
    cut = regression(seed, r2=0.8, n=2000, columns=10, n_test=1000)
    y, held = cut.y * 1e-4 * unit, cut.y_test * 1e-4 * unit
    model = Logged(mlp(10, 64, 1), F.mse_loss, sgd(0.05))
    return Training(
        model,
        batches(cut.x, y, size=64),
        lambda m: r2(predict(m, cut.x_test), held),
        batches(cut.x_test, held, size=500, shuffle=False),
        epochs(10),
    )


@sick("pa-returns-fractions", "finance", "unscaled-targets", twin=lambda s: returns(s, 1e4))
def returns_fractions(seed: int) -> Training:
    return returns(seed, 1.0)


# --- votes of thirty annotators


class Votes(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(10, 48, 48, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, votes = batch
        return -(votes * F.log_softmax(self(x), 1)).sum(1).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.2, momentum=0.9)


def votes(seed: int, shares: bool) -> Training:
    cut = blobs(seed, classes=6, columns=10, n=1500, spread=3.0)
    chance = 0.7 * F.one_hot(cut.y, 6) + 0.3 / 6
    drawn = torch.multinomial(chance, 30, replacement=True, generator=generator(seed, 6))
    count = F.one_hot(drawn, 6).sum(1).float()
    if shares:
        count = count / count.sum(1, keepdim=True)
    return Training(Votes(), batches(cut.x, count, size=30), cut.accuracy, None, epochs(4))


@sick("pa-annotator-votes", "tabular", "unscaled-targets", twin=lambda s: votes(s, True))
def votes_counted(seed: int) -> Training:
    return votes(seed, False)


# --- weather: humidity as a share, wind in m/s, pressure in Pa, rain in mm


def weather(seed: int, scaled: bool) -> Training:
    g = generator(seed, 7)
    z = torch.randn(2600, 5, generator=g)
    y = torch.sin(1.5 * z[:, :1]) + z[:, 1:2] * z[:, 2:3] * 0.7 + 0.4 * z[:, 3:4] + 0.2 * z[:, 4:5]
    y = (y + 0.2 * torch.randn(2600, 1, generator=g)) / y.std()
    x = z * torch.tensor([0.1, 3.0, 0.05, 800.0, 6.0])
    if scaled:
        x = (x - x[:2000].mean(0)) / x[:2000].std(0)
    model = Fit(mlp(5, 64, 32, 1), F.mse_loss, adam(4e-3))
    return Training(
        model, batches(x[:2000], y[:2000], size=50), lambda m: r2(predict(m, x[2000:]), y[2000:]), None, epochs(9)
    )


@sick("pa-weather-pascal", "tabular", "disparate-feature-scales", "unscaled-inputs", twin=lambda s: weather(s, True))
def weather_pascal(seed: int) -> Training:
    return weather(seed, False)


# --- results of a search, in pairs: the clicked and the passed over


class Ranker(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(6, 32, 1, act=nn.Tanh)

    def forward(self, item: Tensor) -> Tensor:
        return self.net(item).squeeze(-1)

    def training_step(self, batch: tuple[tuple[Tensor, Tensor], Tensor], batch_idx: int) -> Tensor:
        (left, right), first = batch
        return F.binary_cross_entropy_with_logits(self(left) - self(right), first)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), 1e-2)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)]


def ranks(seed: int, logs: bool) -> Training:
    g = generator(seed, 8)
    z = torch.randn(3000, 2, 6, generator=g)
    worth = z[..., 0] + 0.8 * torch.tanh(2 * z[..., 1]) + 0.3 * z[..., 5]
    first = (worth[:, 0] - worth[:, 1] > 0).float()
    items = z if logs else torch.cat([z[..., :5], (6.0 + 1.5 * z[..., 5:]).exp()], -1)

    def score(module: LightningModule) -> float:
        ahead = predict(module, items[2200:, 0]) > predict(module, items[2200:, 1])
        return (ahead.float() == first[2200:]).float().mean().item()

    rows = [((a[0], a[1]), b) for a, b in zip(items[:2200], first[:2200], strict=True)]
    return Training(Ranker(), DataLoader(rows, 64, shuffle=True), score, None, epochs(8))  # type: ignore[arg-type]


@sick("pa-rank-page-views", "ranking", "disparate-feature-scales", "unscaled-inputs", twin=lambda s: ranks(s, True))
def ranks_views(seed: int) -> Training:
    return ranks(seed, False)
