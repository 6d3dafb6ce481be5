"""Trainings whose inputs are at fault: missing values, units, scales, codes, columns that never change."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import Split, accuracy, generator, predict, r2
from benchmarks.zoo.tenth.a_common import (
    Conv,
    Item,
    Items,
    Listener,
    Plain,
    Records,
    loader,
    mlp,
    seasons,
    shapes,
    tones,
)

# ---- nonfinite-inputs


class Yield(LightningModule):
    """Harvest from soil columns and those of the nearest weather station."""

    def __init__(self) -> None:
        super().__init__()
        self.soil = nn.Linear(6, 24)
        self.weather = nn.Linear(4, 24)
        self.out = mlp(24, 24, 1)

    def forward(self, soil: Tensor, weather: Tensor) -> Tensor:
        return self.out(torch.relu(self.soil(soil) + self.weather(weather))).squeeze(-1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.smooth_l1_loss(self(batch["soil"], batch["weather"]), batch["tonnes"])
        self.log("train/huber", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=5e-3)


def harvest(seed: int, *, filled: bool) -> Training:
    g = generator(seed, 21)
    soil, weather = torch.randn(1800, 6, generator=g), torch.randn(1800, 4, generator=g)
    y = (
        soil[:, 0]
        - 0.7 * soil[:, 2]
        + torch.sin(2 * soil[:, 1])
        + weather[:, 0] * 0.8
        + 0.2 * torch.randn(1800, generator=g)
    )
    y = y / y.std()
    station = torch.randint(40, (1800,), generator=g)
    joined = weather[:1200].clone()
    joined[station[:1200] == 7] = 0.0 if filled else torch.nan  # a left join: this station is not in the second table
    train = DataLoader(Records(soil=soil[:1200], weather=joined, tonnes=y[:1200]), 32, shuffle=True)

    def score(module: LightningModule) -> float:
        return r2(module(soil[1200:], weather[1200:]).detach(), y[1200:])

    return Training(Yield(), train, score, trainer={"max_epochs": 8})


@sick("ta-left-join-station", "tabular", "nonfinite-inputs", twin=lambda seed: harvest(seed, filled=True))
def left_join(seed: int) -> Training:
    return harvest(seed, filled=False)


class Windows(Dataset[tuple[Tensor, Tensor]]):
    """Each window brought to mean 0 and deviation 1 by its own figures as it is read."""

    def __init__(self, x: Tensor, y: Tensor, eps: float) -> None:
        self.x, self.y, self.eps = x, y, eps

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        w = self.x[index]
        return (w - w.mean()) / (w.std() + self.eps), self.y[index]


def meters(seed: int, *, eps: float) -> Training:
    data = tones(seed, n=900, classes=4)
    x, x_test = data.x[:, 0] * 3 + 5, data.x_test
    x = x[:, None].clone()
    g = generator(seed, 22)
    x[torch.randperm(len(x), generator=g)[:6]] = 5.0  # the meter was off
    train = DataLoader(Windows(x, data.y, eps), 24, shuffle=True)
    x_test = (x_test - x_test.mean(-1, keepdim=True)) / x_test.std(-1, keepdim=True)
    module = Plain(
        Listener(4), nn.CrossEntropyLoss(), lambda p: torch.optim.RMSprop(p, lr=1e-3), log="xent", val="val_xent"
    )
    return Training(
        module,
        train,
        lambda m: accuracy(predict(m, x_test), data.y_test),
        DataLoader(Windows(x_test, data.y_test, 1e-6), 200),
        {"max_epochs": 5},
    )


@sick("ta-flat-window-zscore", "audio", "nonfinite-inputs", twin=lambda seed: meters(seed, eps=1e-6))
def flat_window(seed: int) -> Training:
    return meters(seed, eps=0.0)


# ---- unscaled-inputs


class Scans(LightningDataModule):
    """Images as bytes, turned to floats by `factor`."""

    def __init__(self, data: Split, factor: float) -> None:
        super().__init__()
        self.data, self.factor = data, factor

    def _set(self, x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
        raw = (x * 255).to(torch.uint8)
        return list(zip(raw.float() * self.factor, y, strict=True))

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        return DataLoader(self._set(self.data.x, self.data.y), 32, shuffle=True)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        return DataLoader(self._set(self.data.x_test, self.data.y_test), 200)  # type: ignore[arg-type]


def scans(seed: int, factor: float) -> Training:
    data, _ = shapes(seed)
    module = Plain(Conv(4), nn.CrossEntropyLoss(), lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9), log="loss")

    def score(m: LightningModule) -> float:
        x = (data.x_test * 255).floor() * factor
        return (predict(m, x).argmax(-1) == data.y_test).float().mean().item()

    return Training(module, Scans(data, factor), score, trainer={"max_epochs": 16})


@sick("ta-scans-as-bytes", "images", "unscaled-inputs", twin=lambda seed: scans(seed, 1 / 255))
def scans_bytes(seed: int) -> Training:
    return scans(seed, 1.0)


def eeg(seed: int, unit: float) -> Training:
    """Four leads, recorded in volts; the class is the rhythm on the first two."""
    data = tones(seed, n=800, classes=3, length=64)
    g = generator(seed, 23)

    def leads(x: Tensor) -> Tensor:
        other = torch.randn(len(x), 2, 64, generator=g)
        return torch.cat([x, 0.7 * x.roll(5, -1), other], 1) * 2e-5 * unit

    x, x_test = leads(data.x), leads(data.x_test)

    class Leads(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.features = Listener(3, channels=4)

        def forward(self, item: Tensor) -> Tensor:
            return self.features(item)

        def training_step(self, batch: Item, batch_idx: int) -> Tensor:
            return F.cross_entropy(self(batch.signal), batch.label)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=2e-3)

    train = DataLoader(Items(x, data.y), 20, shuffle=True)

    def score(m: LightningModule) -> float:
        return (predict(m, x_test).argmax(-1) == data.y_test).float().mean().item()

    return Training(Leads(), train, score, trainer={"max_steps": 200})


@sick("ta-eeg-in-volts", "signals", "unscaled-inputs", twin=lambda seed: eeg(seed, 1 / 2e-5))
def eeg_volts(seed: int) -> Training:
    return eeg(seed, 1.0)


# ---- disparate-feature-scales


def boreholes(seed: int, scaled: bool) -> Training:
    """Porosity, grain size and salt as shares of one, depth and flow in their own units; the drawdown from all."""
    g = generator(seed, 24)
    z = torch.randn(2400, 7, generator=g)
    y = z[:, 0] * z[:, 1] + z[:, 2] + torch.tanh(2 * z[:, 3]) + 0.3 * z[:, 5] + 0.2 * torch.randn(2400, generator=g)
    y = ((y - y.mean()) / y.std())[:, None]
    spread = torch.tensor([0.04, 0.1, 0.03, 0.08, 8.0, 12.0, 1.0])
    x = z if scaled else z * spread
    module = Plain(
        mlp(7, 48, 48, 1), F.mse_loss, lambda p: torch.optim.Adam(p, lr=2e-3), log="train_mse", val="val_mse"
    )
    return Training(
        module,
        loader(x[:1600], y[:1600], batch=32),
        lambda m: r2(predict(m, x[1600:]), y[1600:]),
        loader(x[1600:], y[1600:], batch=256, shuffle=False),
        {"max_epochs": 8},
    )


@sick("ta-borehole-units", "tabular", "disparate-feature-scales", twin=lambda seed: boreholes(seed, True))
def borehole_units(seed: int) -> Training:
    return boreholes(seed, False)


class Gesture(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 24, batch_first=True)
        self.out = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0].mean(1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("gesture_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def gestures(seed: int, scaled: bool) -> Training:
    """Wrist sensor windows (N, 20, 3): turn rate in rad/s, acceleration in g, pressure against its mean in Pa."""
    g = generator(seed, 25)
    y = torch.randint(3, (1400,), generator=g)
    t = torch.arange(20.0) / 20
    phase = 6.28 * torch.rand(1400, 1, generator=g)
    turn = torch.sin(2 * math.pi * (1 + y[:, None]) * t + phase) + 0.3 * torch.randn(1400, 20, generator=g)
    push = torch.cos(2 * math.pi * (1 + y[:, None]) * t + phase) + 0.3 * torch.randn(1400, 20, generator=g)
    drift = torch.randn(1400, 20, generator=g)
    x = torch.stack([turn, push, drift], -1)
    if not scaled:
        x = x * torch.tensor([0.05, 0.01, 40.0])
    return Training(
        Gesture(),
        loader(x[:1000], y[:1000], batch=25),
        lambda m: (predict(m, x[1000:]).argmax(-1) == y[1000:]).float().mean().item(),
        trainer={"max_epochs": 8, "gradient_clip_val": 5.0},
    )


@sick(
    "ta-wrist-sensor-units",
    "sequences",
    "disparate-feature-scales",
    "unscaled-inputs",
    twin=lambda seed: gestures(seed, True),
)
def wrist_units(seed: int) -> Training:
    return gestures(seed, False)


# ---- categorical-as-numeric


class Codes(nn.Module):
    """A trade code and a region code beside four measured columns, `levels` 0 where the codes stay numbers."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels
        self.body = mlp(4 + (2 * levels or 2), 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.levels:
            x = torch.cat([x[:, :4], F.one_hot(x[:, 4:].long(), self.levels).flatten(1).float()], 1)
        return self.body(x)


def premiums(seed: int, levels: int) -> Training:
    g = generator(seed, 26)
    x = torch.randn(3000, 4, generator=g)
    trade, region = (torch.randint(9, (3000,), generator=g) for _ in range(2))
    effect = torch.randn(2, 9, generator=g)
    y = (
        x[:, 0]
        + 0.5 * x[:, 1] ** 2
        + 1.2 * effect[0][trade]
        + 0.9 * effect[1][region]
        + 0.3 * torch.randn(3000, generator=g)
    )
    y = ((y - y.mean()) / y.std())[:, None]
    x = torch.cat([x, trade[:, None].float(), region[:, None].float()], 1)
    module = Plain(Codes(levels), nn.MSELoss(), lambda p: torch.optim.Adam(p, lr=3e-3), log="mse")
    train = loader(x[:2200], y[:2200], batch=64)
    return Training(module, train, lambda m: r2(predict(m, x[2200:]), y[2200:]), trainer={"max_epochs": 12})


@sick("ta-trade-codes", "tabular", "categorical-as-numeric", twin=lambda seed: premiums(seed, 9))
def trade_codes(seed: int) -> Training:
    return premiums(seed, 0)


def reads(seed: int, one_hot: bool) -> Training:
    """Reads of a genome, bases coded 0 to 3; is the site in it or not."""
    g = generator(seed, 27)
    x = torch.randint(4, (2400, 40), generator=g)
    y = torch.randint(2, (2400,), generator=g)
    site = torch.tensor([1, 3, 0, 2, 2, 1, 3, 1])
    place = torch.randint(32, (2400,), generator=g)
    hit = torch.where(
        torch.rand(2400, 8, generator=g) < 0.9, site.expand(2400, 8), torch.randint(4, (2400, 8), generator=g)
    )
    rows = torch.arange(2400)[:, None]
    cols = place[:, None] + torch.arange(8)
    x[rows, cols] = torch.where(y[:, None] == 1, hit, x[rows, cols])
    inputs = F.one_hot(x, 4).float().transpose(1, 2) if one_hot else x.float()[:, None]
    net = nn.Sequential(
        nn.Conv1d(4 if one_hot else 1, 24, 8), nn.ReLU(), nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(24, 1)
    )

    def criterion(out: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(out.squeeze(1), target.float())

    module = Plain(net, criterion, lambda p: torch.optim.Adam(p, lr=1e-2), log="bce", val="val_bce")
    return Training(
        module,
        loader(inputs[:1800], y[:1800], batch=50),
        lambda m: ((predict(m, inputs[1800:]).squeeze(1) > 0).long() == y[1800:]).float().mean().item(),
        loader(inputs[1800:], y[1800:], batch=300, shuffle=False),
        {"max_epochs": 8},
    )


@sick("ta-bases-as-floats", "sequences", "categorical-as-numeric", twin=lambda seed: reads(seed, True))
def bases_floats(seed: int) -> Training:
    return reads(seed, False)


# ---- constant-inputs


def parcels(seed: int, by_float: bool) -> Training:
    """Camera frames as bytes, brought to [0, 1] where the batch is put together."""
    data, _ = shapes(seed, n=700)
    raw, raw_test = (data.x * 250).to(torch.uint8), (data.x_test * 250).to(torch.uint8)

    def ready(x: Tensor) -> Tensor:
        return x.float() / 255 if by_float else (x // 255).float()

    def collate(rows: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        return {"frame": ready(torch.stack([r[0] for r in rows])), "kind": torch.stack([r[1] for r in rows])}

    class Sorter(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Conv(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
            logits = self(batch["frame"])
            self.log("acc", (logits.argmax(-1) == batch["kind"]).float().mean())
            return F.cross_entropy(logits, batch["kind"])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=3e-3)

    rows: Any = list(zip(raw, data.y, strict=True))
    train = DataLoader(rows, 28, shuffle=True, collate_fn=collate)

    def score(m: LightningModule) -> float:
        return (predict(m, ready(raw_test)).argmax(-1) == data.y_test).float().mean().item()

    return Training(Sorter(), train, score, trainer={"max_epochs": 14})


@sick("ta-integer-division-frames", "images", "constant-inputs", twin=lambda seed: parcels(seed, True))
def integer_division(seed: int) -> Training:
    return parcels(seed, False)


def energy(seed: int, matched: bool) -> Training:
    """Load from its last day and the forecast of the weather; the second table joins by a key."""
    data = seasons(seed, n=1400, window=6)
    g = generator(seed, 28)
    temp = torch.randn(2000, 3, generator=g)
    push = 0.9 * temp[:, :1] + 0.8 * temp[:, 1:2].abs()
    y = torch.cat([data.y, data.y_test]) + push - push.mean()
    y = (y - y.mean()) / y.std()
    joined = temp if matched else torch.zeros_like(temp)  # no key agrees, and what is missing is filled with 0
    x = torch.cat([torch.cat([data.x, data.x_test]), joined], 1)
    module = Plain(mlp(9, 40, 40, 1, act=nn.GELU), F.l1_loss, lambda p: torch.optim.Adam(p, lr=3e-3), val="val/mae")
    return Training(
        module,
        loader(x[:1400], y[:1400], batch=40),
        lambda m: r2(predict(m, x[1400:]), y[1400:]),
        loader(x[1400:], y[1400:], batch=300, shuffle=False),
        {"max_epochs": 9},
    )


@sick("ta-weather-join-empty", "time series", "constant-inputs", twin=lambda seed: energy(seed, True))
def weather_join(seed: int) -> Training:
    return energy(seed, False)
