"""Ill targets: far from unit scale, one class in a hundred, without any bond to the inputs."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.sick._tabular import (
    Classifier,
    Regressor,
    accuracy,
    balanced,
    digits,
    loader,
    mlp,
    predict,
    r2,
    split,
    standardise,
    surface,
    table,
    waves,
)

# --- unscaled-targets -------------------------------------------------------------------------------------------------


@sick("prices-in-full", "mlp", "unscaled-targets", twin=lambda seed: prices_in_full(seed, mean=0.0, spread=1.0))
def prices_in_full(seed: int, mean: float = 240_000.0, spread: float = 60_000.0) -> Training:
    """House prices in the currency they are paid in."""
    torch.manual_seed(seed)
    rows = surface(seed)
    y, y_test = mean + spread * rows.y, mean + spread * rows.y_test
    module = Regressor(mlp(6, 64, 64, 1), lr=1e-3)
    train, val = loader(rows.x, y), loader(rows.x_test, y_test, shuffle=False)
    return Training(module, train, r2(rows.x_test, y=y_test), val, {"max_epochs": 20})


class LoadNet(LightningModule):
    """The load of the grid after a day of readings."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(1, 24, batch_first=True)
        self.head = nn.Linear(24, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1]).squeeze(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.l1_loss(self(x), y)
        self.log("train_mae", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@sick("load-in-watts", "gru", "unscaled-targets", twin=lambda seed: load_in_watts(seed, unit=1.0))
def load_in_watts(seed: int, unit: float = 5e4) -> Training:
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(900, 24, 1, generator=random)
    weight = torch.linspace(0, 0.5, 24)
    rows = split(x, unit * ((x[..., 0] * weight).sum(1) + 2), seed)
    return Training(LoadNet(), loader(rows.x, rows.y), r2(rows.x_test, y=rows.y_test), trainer={"max_epochs": 15})


class Student(LightningModule):
    """Learns from the opinions of several readers, given for each class."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, padding=1)
        self.fc1 = nn.Linear(256, 64)
        self.fc2 = nn.Linear(64, 10)
        self.criterion = nn.CrossEntropyLoss()

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv(x)), 2).flatten(1)
        return self.fc2(F.relu(self.fc1(x)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, opinions = batch
        loss = self.criterion(self(x), opinions)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


@sick("opinions-in-percent", "cnn", "unscaled-targets", twin=lambda seed: opinions_in_percent(seed, whole=1.0))
def opinions_in_percent(seed: int, whole: float = 100.0) -> Training:
    torch.manual_seed(seed)
    rows = digits(seed)
    opinions = whole * (0.9 * F.one_hot(rows.y, 10) + 0.01)
    return Training(
        Student(), loader(rows.x, opinions), accuracy(rows.x_test, y=rows.y_test), trainer={"max_epochs": 8}
    )


# --- class-imbalance --------------------------------------------------------------------------------------------------


class FraudNet(LightningModule):
    def __init__(self, weight: float) -> None:
        super().__init__()
        self.net = mlp(8, 32, 16, 1)
        self.register_buffer("weight", torch.tensor(weight))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.binary_cross_entropy_with_logits(self(x), y, pos_weight=self.weight)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_acc", ((self(x) > 0).float() == y).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@sick("one-fraud-in-a-hundred", "mlp", "class-imbalance", twin=lambda seed: one_fraud_in_a_hundred(seed, weight=99.0))
def one_fraud_in_a_hundred(seed: int, weight: float = 1.0) -> Training:
    """The score is accuracy averaged over the two classes."""
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)

    def payments(rows: int, share: float) -> tuple[Tensor, Tensor]:
        y = (torch.arange(rows) < rows * share).float()
        return torch.randn(rows, 8, generator=random) + 0.7 * y[:, None], y

    (x, y), (x_test, y_test) = payments(4000, 0.01), payments(1000, 0.5)

    def score(module: LightningModule) -> float:
        logit = predict(module, x_test)
        return balanced(torch.stack([-logit, logit], 1), y_test)

    train, val = loader(x, y, batch_size=64), loader(*payments(500, 0.01), batch_size=100, shuffle=False)
    return Training(FraudNet(weight), train, score, val, {"max_epochs": 6})


class DefectNet(LightningModule):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 3), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(192, 2)
        self.criterion = nn.CrossEntropyLoss(weight=weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = self.criterion(self(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@sick("one-defect-in-a-hundred", "cnn", "class-imbalance", twin=lambda seed: one_defect(seed, weight=(1.0, 99.0)))
def one_defect(seed: int, weight: tuple[float, float] = (1.0, 1.0)) -> Training:
    """Faint bright spots on noisy pictures; the score is accuracy averaged over the two classes."""
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)

    def pictures(rows: int, share: float) -> tuple[Tensor, Tensor]:
        y = (torch.rand(rows, generator=random) < share).long()
        x = torch.randn(rows, 1, 8, 8, generator=random)
        x[:, 0, 3:6, 3:6] += 0.8 * y[:, None, None]
        return x, y

    (x, y), (x_test, y_test) = pictures(3000, 0.01), pictures(800, 0.5)
    train = loader(x, y, batch_size=50)
    return Training(
        DefectNet(torch.tensor(weight)),
        train,
        lambda module: balanced(predict(module, x_test), y_test),
        trainer={"max_epochs": 4},
    )


# --- uninformative-targets --------------------------------------------------------------------------------------------


@sick("labels-read-in-another-order", "cnn", "uninformative-targets", twin=lambda seed: other_order(seed, same=True))
def other_order(seed: int, same: bool = False) -> Training:
    """Images and labels come from two lists of files, and only one of them was shuffled."""
    torch.manual_seed(seed)
    rows = digits(seed)
    y = rows.y if same else rows.y[torch.randperm(len(rows.y))]
    net = nn.Sequential(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10))
    module = Classifier(net, lr=3e-3)
    return Training(module, loader(rows.x, y), accuracy(rows.x_test, y=rows.y_test), trainer={"max_epochs": 6})


@sick("header-row-skipped-once", "mlp", "uninformative-targets", twin=lambda seed: header_row(seed, shift=0))
def header_row(seed: int, shift: int = 1) -> Training:
    """Features and targets in two files, one of them read without its first row."""
    torch.manual_seed(seed)
    rows = surface(seed, rows=2400)
    train = loader(rows.x, rows.y.roll(shift), batch_size=64)
    module = Regressor(mlp(6, 64, 64, 1), lr=2e-3)
    val = loader(rows.x_test, rows.y_test.roll(shift), batch_size=128, shuffle=False)
    return Training(module, train, r2(rows.x_test, y=rows.y_test), val, {"max_epochs": 12})


@sick("labels-one-step-late", "lstm", "uninformative-targets", twin=lambda seed: one_step_late(seed, shift=0))
def one_step_late(seed: int, shift: int = 1) -> Training:
    """Each recording carries the label of the one before it."""
    torch.manual_seed(seed)
    rows = waves(seed, rows=1200)

    class WaveNet(Classifier):
        def __init__(self) -> None:
            super().__init__(nn.LSTM(1, 24, batch_first=True), lr=5e-3)
            self.head = nn.Linear(24, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.net(x)[0].mean(1))

    train = loader(rows.x, rows.y.roll(shift))
    return Training(WaveNet(), train, accuracy(rows.x_test, y=rows.y_test), trainer={"max_epochs": 10})


@sick("probability-cast-to-integer", "mlp", "uninformative-targets", twin=lambda seed: cast_to_integer(seed, half=0.5))
def cast_to_integer(seed: int, half: float = 0.0) -> Training:
    """The labels are graded between 0 and 1, and a cast to integer takes each of them to 0."""
    torch.manual_seed(seed)
    rows = standardise(split(*table("breast_cancer"), seed))
    graded = 0.1 + 0.8 * rows.y
    train = loader(rows.x, (graded + half).long(), batch_size=16)
    module = Classifier(mlp(30, 32, 2))

    def score(module: LightningModule) -> float:
        return balanced(predict(module, rows.x_test), rows.y_test)

    return Training(module, train, score, trainer={"max_epochs": 10})


class MaskNet(LightningModule):
    """A class for each pixel: background, edge or body of the stroke."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.relu(self.conv1(x)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        image, mask = batch
        loss = F.cross_entropy(self(image), mask)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@sick("masks-divided-with-images", "cnn", "uninformative-targets", twin=lambda seed: masks_divided(seed, divisor=1.0))
def masks_divided(seed: int, divisor: float = 255.0) -> Training:
    """One transform for images and masks divides both by 255; the masks are then cast to integers."""
    torch.manual_seed(seed)
    rows = digits(seed)
    mask, mask_test = (x[:, 0].mul(2.99).long() for x in (rows.x, rows.x_test))
    noise = 0.05 * torch.randn(rows.x.shape)

    def score(module: LightningModule) -> float:
        return balanced(predict(module, rows.x_test).movedim(1, -1).reshape(-1, 3), mask_test.reshape(-1))

    return Training(MaskNet(), loader(rows.x + noise, (mask / divisor).long()), score, trainer={"max_epochs": 6})
