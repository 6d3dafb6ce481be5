"""Sick trainings whose fault came in with the data: codes, merges, sentinels, gaps, misaligned rows."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import accuracy, generator, predict
from benchmarks.zoo.eleventh.b_common import Fit, by_accuracy, by_r2, loader, mlp


class Delivery(LightningModule):
    """Minutes to deliver, from four numbers and the district."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.net = mlp(columns, 24, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, minutes = batch
        loss = F.huber_loss(self(x), minutes)
        self.log("huber", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def delivery(seed: int, expand: bool) -> Training:
    g = generator(seed, 1110)
    district = torch.randint(14, (3000,), generator=g)
    offset = torch.randn(14, generator=g)
    slope = torch.randn(14, generator=g)
    z = torch.randn(3000, 4, generator=g)
    y = offset[district] + slope[district] * z[:, 0] + 0.4 * z[:, 1] + 0.25 * torch.randn(3000, generator=g)
    y = (y - y.mean()) / y.std()
    code = F.one_hot(district, 14).float() if expand else district.float().unsqueeze(1)
    x = torch.cat([z, code], 1)
    return Training(
        Delivery(x.shape[1]),
        loader(x[:2200], y[:2200], batch=64),
        by_r2(x[2200:], y[2200:]),
        trainer={"max_epochs": 12},
    )


@sick("eb-delivery-district-number", "tabular", "categorical-as-numeric", twin=lambda seed: delivery(seed, True))
def delivery_number(seed: int) -> Training:
    return delivery(seed, False)


def bars(seed: int, n: int) -> tuple[Tensor, Tensor]:
    """Pictures of 12 by 12 bytes with a bright row, column, diagonal or nothing."""
    g = generator(seed, 1111)
    y = torch.randint(4, (n,), generator=g)
    image = 60 * torch.rand(n, 12, 12, generator=g)
    place = torch.randint(12, (n,), generator=g)
    for i in range(n):
        if y[i] == 0:
            image[i, place[i]] += 120
        elif y[i] == 1:
            image[i, :, place[i]] += 120
        elif y[i] == 2:
            image[i, torch.arange(12), (torch.arange(12) + place[i]) % 12] += 120
    return image.to(torch.uint8), y


class BarData(LightningDataModule):
    def __init__(self, image: Tensor, label: Tensor, scale: Any) -> None:
        super().__init__()
        self.image, self.label, self.scale = image, label, scale

    def collate(self, rows: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        image = torch.stack([row[0] for row in rows])
        return {"image": self.scale(image).float().unsqueeze(1), "label": torch.stack([row[1] for row in rows])}

    def train_dataloader(self) -> DataLoader[Any]:
        data = TensorDataset(self.image[:1200], self.label[:1200])
        return DataLoader(data, 48, shuffle=True, collate_fn=self.collate)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(self.image[1200:], self.label[1200:]), 200, collate_fn=self.collate)


class BarNet(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 24, 3, stride=2), nn.ReLU()
        )
        self.classify = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(24, 4))

    def forward(self, image: Tensor) -> Tensor:
        return self.classify(self.features(image))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        loss = F.cross_entropy(self(batch["image"]), batch["label"])
        self.log("train_loss", loss)
        return {"loss": loss}

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val_acc", accuracy(self(batch["image"]), batch["label"]))

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.Adam(self.parameters(), lr=5e-3)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)}


def bar_training(seed: int, scale: Any) -> Training:
    image, label = bars(seed, 1600)
    x = scale(image[1200:]).float().unsqueeze(1)
    return Training(
        BarNet(), BarData(image, label, scale), by_accuracy(x, label[1200:]), trainer={"max_epochs": 10}
    )  # the data module brings its own validation loader


@sick(
    "eb-bytes-floor-divided", "images", "constant-inputs", twin=lambda seed: bar_training(seed, lambda b: b / 127.5 - 1)
)
def bytes_floor_divided(seed: int) -> Training:
    return bar_training(seed, lambda b: b // 255)


class Halts(LightningModule):
    """Whether the price ends above where a window of returns began."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(1, 24, batch_first=True)
        self.out = nn.Linear(24, 1)

    def forward(self, returns: Tensor) -> Tensor:
        return self.out(self.gru(returns.unsqueeze(-1))[1][-1]).squeeze(-1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        returns, up = batch
        loss = F.binary_cross_entropy_with_logits(self(returns), up)
        self.log("loss/train", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def halts(seed: int, fill: bool) -> Training:
    g = generator(seed, 1112)
    step = torch.randn(1800, 24, generator=g)
    up = (step[:, 14:].sum(1) + 0.3 * torch.randn(1800, generator=g) > 0).float()
    price = 100 * torch.exp(0.01 * torch.cat([torch.zeros(1800, 1), step.cumsum(1)], 1))
    for row in torch.randint(300, 1400, (5,), generator=g).tolist():
        price[row, 10:13] = 0.0  # trading was halted
    if fill:
        price[:, 10:13] = torch.where(price[:, 10:13] > 0, price[:, 10:13], price[:, 9:10])
    returns = torch.log(price[:, 1:] / price[:, :-1]) / 0.01
    return Training(
        Halts(),
        loader(returns[:1400], up[:1400], batch=32),
        lambda m: ((predict(m, returns[1400:]) > 0).float() == up[1400:]).float().mean().item(),
        trainer={"max_epochs": 8},
    )


@sick("eb-returns-of-halted-prices", "time-series", "nonfinite-inputs", twin=lambda seed: halts(seed, True))
def halted_prices(seed: int) -> Training:
    return halts(seed, False)


def station(seed: int, drop: bool) -> Training:
    g = generator(seed, 1113)
    reading = torch.randn(2600, 6, generator=g) * 7 + 12  # degrees of six thermometers
    z = (reading - 12) / 7
    y = torch.tanh(z[:, 0] * z[:, 1]) + z[:, 2] + 0.5 * z[:, 3].sin() + 0.2 * torch.randn(2600, generator=g)
    y = ((y - y.mean()) / y.std()).unsqueeze(1)
    broken = torch.randperm(2000, generator=g)[:9]
    reading[broken, torch.randint(6, (9,), generator=g)] = -9999.0  # what the logger writes when a probe is gone
    x = (reading - 12) / 7
    keep = torch.ones(2600, dtype=torch.bool)
    if drop:
        keep[broken] = False
    module = Fit(mlp(6, 32, 1), nn.MSELoss(), lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9))
    train = loader(x[:2000][keep[:2000]], y[:2000][keep[:2000]], batch=40)
    return Training(module, train, by_r2(x[2000:], y[2000:]), trainer={"max_epochs": 8})


@sick("eb-thermometer-minus-9999", "regression", "corrupt-samples", twin=lambda seed: station(seed, True))
def thermometers(seed: int) -> Training:
    return station(seed, False)


class Load(LightningModule):
    """Power drawn in the next hour, from the last day."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(1, 16, 5), nn.ReLU(), nn.Conv1d(16, 16, 5), nn.ReLU(), nn.Flatten())
        self.out = nn.Linear(16 * 16, 1)

    def forward(self, day: Tensor) -> Tensor:
        return self.out(self.body(day[:, None])).squeeze(-1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return F.mse_loss(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_mse", F.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def power(seed: int, to_target: Any) -> Training:
    g = generator(seed, 1114)
    hours = torch.arange(25)
    phase = 2 * math.pi * torch.rand(2500, 1, generator=g)
    size = 0.5 + torch.rand(2500, 1, generator=g)
    curve = size * torch.sin(2 * math.pi * hours / 24 + phase) + 0.15 * torch.randn(2500, 25, generator=g)
    watts = 38000 + 9000 * curve[:, -1]
    x, y = curve[:, :24] / curve[:, :24].std(), to_target(watts)
    val = loader(x[1800:2100], y[1800:2100], batch=300, shuffle=False)
    return Training(
        Load(), loader(x[:1800], y[:1800], batch=64), by_r2(x[2100:], y[2100:]), val, trainer={"max_epochs": 12}
    )


@sick(
    "eb-load-in-watts",
    "time-series",
    "unscaled-targets",
    twin=lambda seed: power(seed, lambda watts: (watts - 38000) / 7000),
)
def load_in_watts(seed: int) -> Training:
    return power(seed, lambda watts: watts)


class Churn(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters({"hidden": 48, "lr": 2e-3})
        self.mlp = mlp(10, 48, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch["x"]), batch["segment"])
        self.log("tr", loss)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        logits = self(batch["x"])
        self.log_dict({"va": F.cross_entropy(logits, batch["segment"]), "va_acc": accuracy(logits, batch["segment"])})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(self.parameters(), lr=1e-3)


def churn(seed: int, on_key: bool) -> Training:
    g = generator(seed, 1115)
    customer = torch.randperm(3000, generator=g)  # rows of the table of features, in the order of the export
    x = torch.randn(3000, 10, generator=g)
    score = x @ torch.randn(10, 3, generator=g) + (x[:, :3] * x[:, 3:6])
    segment = (score + 0.3 * torch.randn(3000, 3, generator=g)).argmax(1)
    labels = torch.empty_like(segment)
    labels[customer] = segment  # the table of labels is sorted by customer
    y = labels[customer] if on_key else labels
    x_test, y_test = x[2400:], segment[2400:]

    def rows(start: int, end: int) -> list[dict[str, Tensor]]:
        return [{"x": x[i], "segment": y[i]} for i in range(start, end)]

    return Training(
        Churn(),
        DataLoader(rows(0, 2000), 50, shuffle=True),
        by_accuracy(x_test, y_test),
        DataLoader(rows(2000, 2400), 200),
        {"max_epochs": 8},
    )


@sick("eb-labels-joined-by-position", "tabular", "uninformative-targets", twin=lambda seed: churn(seed, True))
def joined_by_position(seed: int) -> Training:
    return churn(seed, False)
