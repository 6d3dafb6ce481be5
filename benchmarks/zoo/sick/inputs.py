"""Ill inputs: missing and infinite values, inputs that never change, a few broken samples."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.sick._tabular import (
    Classifier,
    Regressor,
    accuracy,
    digits,
    loader,
    mlp,
    r2,
    split,
    standardise,
    surface,
    table,
    waves,
)

# --- nonfinite-inputs -------------------------------------------------------------------------------------------------


@sick("bmi-not-measured", "mlp", "nonfinite-inputs", twin=lambda seed: bmi_not_measured(seed, fill=True))
def bmi_not_measured(seed: int, fill: bool = False) -> Training:
    """Six patients whose body mass index was not taken."""
    torch.manual_seed(seed)
    rows = standardise(split(*table("diabetes"), seed))
    x, y = rows.x.clone(), (rows.y - 150) / 80
    x[torch.randperm(len(x))[:6], 2] = torch.nan
    if fill:
        x = torch.where(x.isnan(), x.nanmean(0), x)
    train = loader(x, y, batch_size=16)
    return Training(
        Regressor(mlp(10, 32, 1)), train, r2(rows.x_test, y=(rows.y_test - 150) / 80), trainer={"max_epochs": 15}
    )


@sick("logarithm-of-concavity", "mlp", "nonfinite-inputs", twin=lambda seed: log_of_zero(seed, offset=1e-3))
def log_of_zero(seed: int, offset: float = 0.0) -> Training:
    """Skewed measurements put on a logarithmic scale; some cells have no concavity at all."""
    torch.manual_seed(seed)
    x, y = table("breast_cancer")
    rows = split((x + offset).log(), y, seed)
    module = Classifier(mlp(30, 64, 32, 2))
    return Training(module, loader(rows.x, rows.y), accuracy(rows.x_test, y=rows.y_test), trainer={"max_epochs": 20})


@sick("divide-by-pixel-spread", "cnn", "nonfinite-inputs", twin=lambda seed: divide_by_spread(seed, eps=1e-3))
def divide_by_spread(seed: int, eps: float = 0.0) -> Training:
    """Every pixel standardised by its own spread, which is zero in the corners."""
    torch.manual_seed(seed)
    rows = digits(seed)
    mean, std = rows.x.mean(0), rows.x.std(0)
    x, x_test = (rows.x - mean) / (std + eps), (rows.x_test - mean) / (std + eps)
    net = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10))
    return Training(
        Classifier(net), loader(x, rows.y, batch_size=64), accuracy(x_test, y=rows.y_test), trainer={"max_epochs": 8}
    )


class Recordings(Dataset[dict[str, Tensor]]):
    """Recordings of one sensor with their labels."""

    def __init__(self, signal: Tensor, label: Tensor) -> None:
        self.signal, self.label = signal, label

    def __len__(self) -> int:
        return len(self.signal)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"signal": self.signal[index], "label": self.label[index]}


class RecordingNet(LightningModule):
    def __init__(self, hidden: int = 24) -> None:
        super().__init__()
        self.rnn = nn.GRU(1, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 3)

    def forward(self, signal: Tensor) -> Tensor:
        states, _ = self.rnn(signal)
        return self.head(states.mean(1))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        loss = F.cross_entropy(self(batch["signal"]), batch["label"])
        self.log("train_loss", loss)
        return {"loss": loss}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


@sick("sensor-dropout", "gru", "nonfinite-inputs", twin=lambda seed: sensor_dropout(seed, fill=True))
def sensor_dropout(seed: int, fill: bool = False) -> Training:
    """The sensor lost a reading in one recording of a hundred."""
    torch.manual_seed(seed)
    rows = waves(seed)
    signal = rows.x.clone()
    lost = torch.randperm(len(signal))[: len(signal) // 100]
    signal[lost, torch.randint(signal.shape[1], (len(lost),))] = 0.0 if fill else torch.nan
    train = DataLoader(Recordings(signal, rows.y), batch_size=32, shuffle=True)
    return Training(RecordingNet(), train, accuracy(rows.x_test, y=rows.y_test), trainer={"max_epochs": 10})


# --- constant-inputs --------------------------------------------------------------------------------------------------


class Pixels(Dataset[tuple[Tensor, Tensor]]):
    """Images of 8 bits a pixel, brought to 0 to 1 as they are read."""

    def __init__(self, images: Tensor, labels: Tensor, whole: bool) -> None:
        self.images, self.labels, self.whole = images, labels, whole

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.images[index]
        image = image // 255 if self.whole else image / 255
        return image.float(), self.labels[index]


@sick("integer-division-of-pixels", "cnn", "constant-inputs", twin=lambda seed: integer_division(seed, whole=False))
def integer_division(seed: int, whole: bool = True) -> Training:
    torch.manual_seed(seed)
    rows = digits(seed)
    train = Pixels((rows.x * 240).to(torch.uint8), rows.y, whole)
    test = Pixels((rows.x_test * 240).to(torch.uint8), rows.y_test, whole)
    x_test = torch.stack([image for image, _ in test])  # type: ignore[attr-defined]
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )
    return Training(
        Classifier(net, lr=3e-3),
        DataLoader(train, batch_size=64, shuffle=True),
        accuracy(x_test, y=rows.y_test),
        val=DataLoader(test, batch_size=128),
        trainer={"max_epochs": 8},
    )


@sick("mean-over-the-only-channel", "lstm", "constant-inputs", twin=lambda seed: centred_waves(seed, dim=1))
def centred_waves(seed: int, dim: int = -1) -> Training:
    """Each recording less its mean; (N, steps, 1) has one channel, and its mean is the value itself."""
    torch.manual_seed(seed)
    rows = waves(seed)
    x, x_test = rows.x - rows.x.mean(dim, keepdim=True), rows.x_test - rows.x_test.mean(dim, keepdim=True)
    return Training(RecordingNet(), _recordings(x, rows.y), accuracy(x_test, y=rows.y_test), trainer={"max_epochs": 8})


def _recordings(x: Tensor, y: Tensor) -> DataLoader[dict[str, Tensor]]:
    return DataLoader(Recordings(x, y), batch_size=32, shuffle=True)


class TwoViews(LightningModule):
    """An image and a table of measurements, joined before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 32), nn.ReLU())
        self.table = nn.Sequential(nn.Linear(6, 32), nn.ReLU())
        self.head = nn.Linear(64, 1)

    def forward(self, image: Tensor, measured: Tensor) -> Tensor:
        return self.head(torch.cat([self.image(image), self.table(measured)], 1)).squeeze(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        image, measured, y = batch
        loss = nn.functional.smooth_l1_loss(self(image, measured), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@sick("join-found-no-rows", "multimodal", "constant-inputs", twin=lambda seed: join_found_no_rows(seed, joined=True))
def join_found_no_rows(seed: int, joined: bool = False) -> Training:
    """The measurements were joined by a key that never matched, and the gaps were filled with zeros."""
    torch.manual_seed(seed)
    rows, pictures = surface(seed), digits(seed)
    images = pictures.x[: len(rows.x) + len(rows.x_test)]
    # the picture says a little about the target, the measurements say the rest
    y = rows.y + images[: len(rows.y), 0, 3:5, 3:5].mean((1, 2))
    y_test = rows.y_test + images[len(rows.y) :, 0, 3:5, 3:5].mean((1, 2))
    x, x_test = (rows.x, rows.x_test) if joined else (torch.zeros_like(rows.x), torch.zeros_like(rows.x_test))
    train = loader(images[: len(y)], x, y, batch_size=32)
    return Training(
        TwoViews(), train, r2(images[len(y) :], x_test, y=y_test), trainer={"max_epochs": 15, "log_every_n_steps": 10}
    )


# --- corrupt-samples --------------------------------------------------------------------------------------------------


@sick("wrong-unit-in-four-rows", "mlp", "corrupt-samples", twin=lambda seed: wrong_unit(seed, factor=1.0))
def wrong_unit(seed: int, factor: float = 1e5) -> Training:
    """Four rows of a survey were written down in another unit."""
    torch.manual_seed(seed)
    rows = surface(seed)
    x = rows.x.clone()
    x[torch.randperm(len(x))[:4]] *= factor
    module = Regressor(mlp(6, 64, 64, 1), lr=3e-3)
    return Training(module, loader(x, rows.y), r2(rows.x_test, y=rows.y_test), trainer={"max_epochs": 12})


class SpikeNet(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(1, 16, 5, padding=2)
        self.conv2 = nn.Conv1d(16, 16, 5, padding=2, stride=2)
        self.out = nn.Linear(16, 3)
        self.criterion = nn.CrossEntropyLoss()

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x.transpose(1, 2)))
        return self.out(F.relu(self.conv2(x)).mean(2))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = self.criterion(self(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


@sick("electrode-spikes", "cnn", "corrupt-samples", twin=lambda seed: electrode_spikes(seed, height=0.0))
def electrode_spikes(seed: int, height: float = 1e5) -> Training:
    """Five recordings hold a spike of the electrode, far beyond any signal."""
    torch.manual_seed(seed)
    rows = waves(seed)
    x = rows.x.clone()
    x[torch.randperm(len(x))[:5], 10] += height
    return Training(SpikeNet(), loader(x, rows.y), accuracy(rows.x_test, y=rows.y_test), trainer={"max_epochs": 20})


class Autoencoder(LightningModule):
    def __init__(self, lr: float = 3e-3) -> None:
        super().__init__()
        self.lr = lr
        self.encoder = mlp(64, 48, 16)
        self.decoder = mlp(16, 48, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x,) = batch
        loss = F.mse_loss(self(x), x)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


@sick("scans-of-sixteen-bits", "autoencoder", "corrupt-samples", twin=lambda seed: sixteen_bits(seed, scale=1.0))
def sixteen_bits(seed: int, scale: float = 65535.0) -> Training:
    """Eight scans among a thousand were saved with 16 bits a pixel."""
    torch.manual_seed(seed)
    rows = digits(seed)
    x, x_test = rows.x.flatten(1).clone(), rows.x_test.flatten(1)
    x[torch.randperm(len(x))[:8]] *= scale
    return Training(Autoencoder(), loader(x), r2(x_test, y=x_test), trainer={"max_epochs": 12})
