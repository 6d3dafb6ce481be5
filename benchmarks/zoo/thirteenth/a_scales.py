"""Sick trainings whose inputs or targets come in the wrong units, the wrong form, or never change."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import digits, generator, predict
from benchmarks.zoo.thirteenth.a_common import Records, Tabular, batches, explained, hit_rate, mlp


class DigitImages(LightningDataModule):
    """Eight by eight digits, their bytes turned into floats as the samples are read."""

    def __init__(self, seed: int, divisors: tuple[float, ...]) -> None:
        super().__init__()
        task = digits(seed).to_images()
        self.train_set = TensorDataset(self.convert(task.x, divisors), task.y)
        self.val_set = TensorDataset(self.convert(task.x_test, divisors), task.y_test)

    @staticmethod
    def convert(images: Tensor, divisors: tuple[float, ...]) -> Tensor:
        pixels = images * 255
        for divisor in divisors:
            pixels = pixels / divisor
        return pixels

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train_set, 32, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.val_set, 256)


class DigitNet(LightningModule):
    """A small convolution network with SGD and a cosine schedule."""

    def __init__(self, total: int) -> None:
        super().__init__()
        self.total = total
        self.features = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(12, 24, 3, padding=1), nn.ReLU()
        )
        self.fc = nn.Linear(24 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).flatten(1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        out = self(x)
        loss = F.cross_entropy(out, y)
        self.log_dict({"train/loss": loss, "train/acc": (out.argmax(1) == y).float().mean()})
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, y = batch
        out = self(x)
        self.log_dict({"val/loss": F.cross_entropy(out, y), "val/acc": (out.argmax(1) == y).float().mean()})

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def digit_images(seed: int, divisors: tuple[float, ...]) -> Training:
    data = DigitImages(seed, divisors)
    images, labels = data.val_set.tensors
    return Training(DigitNet(6 * 43), data, hit_rate(images, labels), trainer={"max_epochs": 6})


@sick("ga-divided-by-255-twice", "images", "unscaled-inputs", twin=lambda seed: digit_images(seed, (255.0,)))
def divided_twice(seed: int) -> Training:
    return digit_images(seed, (255.0, 255.0))


class Barometer(LightningModule):
    """Guesses tomorrow's wind from a day of pressure readings."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(1, 24, batch_first=True)
        self.out = nn.Linear(24, 1)

    def forward(self, x: Tensor) -> Tensor:
        _, h = self.gru(x)
        return self.out(h[-1]).squeeze(-1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        pressure, wind = batch
        loss = F.mse_loss(self(pressure), wind)
        self.log("mse", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def barometer(seed: int, hectopascal_anomaly: bool) -> Training:
    g = generator(seed, 110)
    n, hours = 1200, 18
    slope = torch.randn(n, 1, generator=g)
    level = torch.randn(n, 1, generator=g)
    time = torch.linspace(-1, 1, hours)
    pressure = 101325 + 500 * level + 450 * slope * time + 120 * torch.randn(n, hours, generator=g)
    wind = torch.tanh(-1.2 * slope[:, 0]) + 0.3 * level[:, 0] + 0.15 * torch.randn(n, generator=g)
    wind = (wind - wind.mean()) / wind.std()
    x = pressure[..., None]
    if hectopascal_anomaly:
        x = (x - 101325) / 600
    return Training(
        Barometer(), batches(x[:900], wind[:900], size=24), explained(x[900:], wind[900:]), trainer={"max_epochs": 8}
    )


@sick("ga-pressure-in-pascal", "time-series", "unscaled-inputs", twin=lambda seed: barometer(seed, True))
def pascal(seed: int) -> Training:
    return barometer(seed, False)


class PairRanker(LightningModule):
    """RankNet: of two offers, which one is bought."""

    def __init__(self) -> None:
        super().__init__()
        self.scorer = mlp(4, 24, 1)

    def forward(self, offer: Tensor) -> Tensor:
        return self.scorer(offer).squeeze(-1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        margin = self(batch["left"]) - self(batch["right"])
        loss = F.binary_cross_entropy_with_logits(margin, batch["left_bought"])
        self.log("train_ranknet", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def offers(seed: int, scaled: bool) -> Training:
    g = generator(seed, 111)
    n = 2000
    raw = torch.randn(2, n, 4, generator=g)
    worth = raw @ torch.tensor([0.2, 0.7, 1.8, -1.4])
    bought = (worth[0] - worth[1] + 0.3 * torch.randn(n, generator=g) > 0).float()
    # clicks less their mean, stars less their mean, click-through rate and returns as shares less their mean
    units = torch.ones(4) if scaled else torch.tensor([350.0, 0.9, 0.004, 0.003])
    x = raw * units
    cut = 1500
    train = Records(left=x[0, :cut], right=x[1, :cut], left_bought=bought[:cut])

    def score(module: LightningModule) -> float:
        first, second = predict(module, x[0, cut:]), predict(module, x[1, cut:])
        return ((first > second) == (worth[0, cut:] > worth[1, cut:])).float().mean().item()

    return Training(PairRanker(), DataLoader(train, 50, shuffle=True), score, trainer={"max_epochs": 10})


@sick("ga-clicks-beside-rates", "ranking", "disparate-feature-scales", twin=lambda seed: offers(seed, True))
def clicks_beside_rates(seed: int) -> Training:
    return offers(seed, False)


def powers(seed: int, standardise: bool) -> Training:
    g = generator(seed, 112)
    n = 1600
    x = 6 * torch.rand(n, 2, generator=g)
    y = ((x[:, 0] - 3).square() + 1.4 * (x[:, 1] - 3).square() + 0.4 * torch.randn(n, generator=g) > 4.5).long()
    columns = [x[:, 0] ** a * x[:, 1] ** b for a in range(4) for b in range(4) if 0 < a + b < 5]
    features = torch.stack(columns, 1)
    if standardise:
        features = (features - features.mean(0)) / features.std(0)
    module = Tabular(
        mlp(features.shape[1], 16, 2, act=nn.Tanh), F.cross_entropy, lambda p: torch.optim.SGD(p, 0.05, momentum=0.9)
    )
    cut = 1200
    return Training(
        module,
        batches(features[:cut], y[:cut], size=32),
        hit_rate(features[cut:], y[cut:]),
        trainer={"max_epochs": 8},
    )


@sick(
    "ga-polynomial-features-raw",
    "tabular",
    "disparate-feature-scales",
    "unscaled-inputs",
    twin=lambda seed: powers(seed, True),
)
def polynomial_raw(seed: int) -> Training:
    return powers(seed, False)


class Weather(NamedTuple):
    """What the demand model sees of an hour."""

    numbers: Tensor
    station: Tensor


class BikeDemand(LightningModule):
    """Demand at a docking station, by the hour and the weather."""

    def __init__(self, stations: int, table: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(stations, 6) if table else None
        self.net = mlp(5 + (6 if table else 1), 24, 1)

    def forward(self, hour: Weather) -> Tensor:
        station = hour.station.float() if self.table is None else self.table(hour.station.squeeze(-1).long())
        return self.net(torch.cat([hour.numbers, station], -1)).squeeze(-1)

    def training_step(self, batch: tuple[Weather, Tensor], batch_idx: int) -> Tensor:
        hour, demand = batch
        loss = F.smooth_l1_loss(self(hour), demand)
        self.log("huber", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=4e-3)


class Hours(Dataset[tuple[Weather, Tensor]]):
    """Hours and the demand in each."""

    def __init__(self, hour: Weather, demand: Tensor) -> None:
        self.hour, self.demand = hour, demand

    def __len__(self) -> int:
        return len(self.demand)

    def __getitem__(self, i: int) -> tuple[Weather, Tensor]:
        return Weather(self.hour.numbers[i], self.hour.station[i]), self.demand[i]


def bikes(seed: int, table: bool) -> Training:
    g = generator(seed, 113)
    n, stations = 2000, 12
    numbers = torch.randn(n, 5, generator=g)
    station = torch.randint(stations, (n, 1), generator=g).float()
    effect = 1.6 * torch.randn(stations, generator=g)
    y = numbers[:, 0] + torch.sin(2 * numbers[:, 1]) + effect[station[:, 0].long()] + 0.3 * torch.randn(n, generator=g)
    y = (y - y.mean()) / y.std()
    cut = 1500
    test = Weather(numbers[cut:], station[cut:])
    train = Hours(Weather(numbers[:cut], station[:cut]), y[:cut])
    return Training(
        BikeDemand(stations, table),
        DataLoader(train, 32, shuffle=True),
        explained(test, y[cut:]),
        trainer={"max_epochs": 8},
    )


@sick("ga-station-number-as-float", "tabular", "categorical-as-numeric", twin=lambda seed: bikes(seed, True))
def station_number(seed: int) -> Training:
    return bikes(seed, False)


class Peptides(nn.Module):
    """Looks for a short pattern anywhere in a chain of residues."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, 32, 3)
        self.fc = nn.Linear(32, 3)

    def forward(self, chain: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv(chain.transpose(1, 2))).amax(-1))


def peptides(seed: int, one_hot: bool) -> Training:
    g = generator(seed, 114)
    n, length, letters = 2000, 16, 12
    ids = torch.randint(letters, (n, length), generator=g)
    y = torch.randint(3, (n,), generator=g)
    patterns = torch.stack([torch.randperm(letters, generator=g)[:3] for _ in range(3)])
    place = torch.randint(length - 3, (n,), generator=g)
    ids.scatter_(1, place[:, None] + torch.arange(3), patterns[y])
    x = F.one_hot(ids, letters).float() if one_hot else ids[..., None].float()
    module = Tabular(
        Peptides(x.shape[-1]), F.cross_entropy, lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=1e-3), name="nll"
    )
    return Training(
        module, batches(x[:1500], y[:1500], size=40), hit_rate(x[1500:], y[1500:]), trainer={"max_epochs": 8}
    )


@sick("ga-residues-as-numbers", "bioinformatics", "categorical-as-numeric", twin=lambda seed: peptides(seed, True))
def residues(seed: int) -> Training:
    return peptides(seed, False)


class Gratings(Dataset[dict[str, Tensor]]):
    """Stripes at one of four angles, kept as bytes."""

    def __init__(self, pixels: Tensor, angle: Tensor, floor: bool) -> None:
        self.pixels, self.angle, self.floor = pixels, angle, floor

    def __len__(self) -> int:
        return len(self.angle)

    def scale(self, pixels: Tensor) -> Tensor:
        return (pixels // 255).float() if self.floor else pixels / 255

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"image": self.scale(self.pixels[i]), "angle": self.angle[i]}


class AngleNet(LightningModule):
    """A convolution network over dict batches."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(8 * 16, 32),
            nn.ReLU(),
            nn.Linear(32, 4),
        )

    def forward(self, image: Tensor) -> Tensor:
        return self.net(image)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch["image"]), batch["angle"])

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("validation_accuracy", (self(batch["image"]).argmax(1) == batch["angle"]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def gratings(seed: int, floor: bool) -> Training:
    g = generator(seed, 115)
    n, side = 1200, 12
    angle = torch.randint(4, (n,), generator=g)
    theta = angle * math.pi / 4
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    along = theta.cos()[:, None, None] * column + theta.sin()[:, None, None] * row
    stripes = torch.sin(1.3 * along + 6.28 * torch.rand(n, 1, 1, generator=g))
    pixels = 125 + 60 * stripes + 30 * torch.randn(n, side, side, generator=g)
    pixels = pixels.clamp(0, 254).to(torch.uint8)[:, None]
    train, test = (Gratings(pixels[a], angle[a], floor) for a in (slice(900), slice(900, n)))
    return Training(
        AngleNet(),
        DataLoader(train, 30, shuffle=True),
        hit_rate(test.scale(test.pixels), test.angle),
        val=DataLoader(test, 100),
        trainer={"max_epochs": 8},
    )


@sick("ga-bytes-floor-divided", "images", "constant-inputs", twin=lambda seed: gratings(seed, False))
def floor_divided(seed: int) -> Training:
    return gratings(seed, True)


def humidity(seed: int, percent: bool) -> Training:
    g = generator(seed, 116)
    n = 1600
    share = 0.05 + 0.9 * torch.rand(n, 5, generator=g)
    rest = torch.randn(n, 2, generator=g)
    y = 2 * share[:, 0] * share[:, 1] + torch.sin(5 * share[:, 2]) - share[:, 3] + 0.35 * rest[:, 0]
    y = (y - y.mean()) / y.std() + 0.2 * torch.randn(n, generator=g)
    reading = share * 100 if percent else share
    x = torch.cat([(reading.clamp(0, 1) - 0.5) / 0.26, rest], 1)
    module = Tabular(
        mlp(7, 32, 16, 1, act=nn.GELU),
        lambda p, t: F.mse_loss(p.squeeze(-1), t),
        lambda p: torch.optim.AdamW(p, 5e-3),
        name="yield_mse",
    )
    return Training(
        module,
        batches(x[:1200], y[:1200], size=30),
        explained(x[1200:], y[1200:]),
        val=batches(x[1200:], y[1200:], size=200, shuffle=False),
        trainer={"max_epochs": 10},
    )


@sick("ga-percent-clamped-to-one", "tabular", "constant-inputs", twin=lambda seed: humidity(seed, False))
def percent_clamped(seed: int) -> Training:
    return humidity(seed, True)


class BoxRegressor(LightningModule):
    """Centre and size of the bright box in an image."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten())
        self.box = nn.Sequential(nn.Linear(8 * 64, 48), nn.ReLU(), nn.Linear(48, 4))

    def forward(self, image: Tensor) -> Tensor:
        return self.box(self.backbone(image))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        image, box = batch
        loss = F.smooth_l1_loss(self(image), box)
        self.log("loss_bbox", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def boxes(seed: int, pixels: bool) -> Training:
    g = generator(seed, 117)
    n, side = 1200, 16
    centre = 0.3 + 0.4 * torch.rand(n, 2, generator=g)
    size = 0.2 + 0.3 * torch.rand(n, 2, generator=g)
    axis = (torch.arange(side) + 0.5) / side
    soft = torch.sigmoid((size[:, :, None] / 2 - (axis - centre[:, :, None]).abs()) * 40)
    image = (soft[:, 1, :, None] * soft[:, 0, None, :])[:, None] + 0.1 * torch.randn(n, 1, side, side, generator=g)
    box = torch.cat([centre, size], 1)
    box = box * 1280 if pixels else (box - torch.tensor([0.5, 0.5, 0.35, 0.35])) * 8
    return Training(
        BoxRegressor(),
        batches(image[:900], box[:900], size=16),
        explained(image[900:], box[900:]),
        trainer={"max_epochs": 6},
    )


@sick("ga-boxes-in-pixels", "detection", "unscaled-targets", twin=lambda seed: boxes(seed, False))
def boxes_in_pixels(seed: int) -> Training:
    return boxes(seed, True)


class SoftLabelNet(LightningModule):
    """Learns the annotators' opinion of a digit."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, opinion = batch
        loss = -(opinion * F.log_softmax(self(x), -1)).sum(-1).mean()
        self.log("soft_ce", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.2)


def opinions(seed: int, annotators: int | None) -> Training:
    task = digits(seed)
    g = generator(seed, 118)
    votes = torch.zeros(len(task.y), 10)
    for _ in range(5):
        choice = torch.where(
            torch.rand(len(task.y), generator=g) < 0.9, task.y, torch.randint(10, task.y.shape, generator=g)
        )
        asked = torch.rand(len(task.y), generator=g) < 0.7
        asked |= votes.sum(1) == 0
        votes += F.one_hot(choice, 10) * asked[:, None]
    opinion = votes / annotators if annotators else votes / votes.sum(1, keepdim=True)
    return Training(
        SoftLabelNet(),
        batches(task.x * 2 - 0.6, opinion, size=32),
        hit_rate(task.x_test * 2 - 0.6, task.y_test),
        trainer={"max_epochs": 8},
    )


@sick("ga-votes-over-all-annotators", "soft-labels", "unscaled-targets", twin=lambda seed: opinions(seed, None))
def votes_over_all(seed: int) -> Training:
    return opinions(seed, 300)
