"""Sick trainings whose inputs came in the wrong unit: sound, pixels and a table of applicants."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import digits, generator, predict
from benchmarks.zoo.eleventh.b_common import Fit, by_accuracy, loader, mlp


def recordings(seed: int, n: int) -> tuple[Tensor, Tensor]:
    """Frames of 128 samples as 16-bit counts; the class is which of four tones sounds."""
    g = generator(seed, 1101)
    y = torch.randint(4, (n,), generator=g)
    t = torch.arange(128) / 128
    phase = 2 * math.pi * torch.rand(n, 1, generator=g)
    tone = torch.sin(2 * math.pi * (4 + 5 * y[:, None]) * t + phase)
    wave = tone * (0.5 + 0.5 * torch.rand(n, 1, generator=g)) + 0.3 * torch.randn(n, 128, generator=g)
    return (wave * 9000).round(), y


class ToneNet(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(1, 12, 9, stride=2)
        self.conv2 = nn.Conv1d(12, 24, 7, stride=2)
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x.unsqueeze(1)))
        x = F.relu(self.conv2(x)).mean(-1)
        return self.head(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        frames, label = batch
        loss = F.cross_entropy(self(frames), label)
        self.log("ce", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def tones(seed: int, full_scale: float) -> Training:
    x, y = recordings(seed, 2000)
    x = x / full_scale
    return Training(
        ToneNet(), loader(x[:1500], y[:1500], batch=32), by_accuracy(x[1500:], y[1500:]), trainer={"max_epochs": 8}
    )


@sick("eb-pcm-counts-to-convnet", "audio", "unscaled-inputs", twin=lambda seed: tones(seed, 9000.0))
def pcm_counts(seed: int) -> Training:
    return tones(seed, 1.0)


def digit_photos(seed: int, transform: Any) -> Training:
    cut = digits(seed).to_images()
    x, x_test = transform(cut.x), transform(cut.x_test)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 64), nn.ReLU(),
        nn.Linear(64, 10),
    )  # fmt: skip
    module = Fit(net, F.cross_entropy, lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9))
    return Training(module, loader(x, cut.y, batch=64), by_accuracy(x_test, cut.y_test), trainer={"max_epochs": 15})


@sick(
    "eb-pixels-divided-twice",
    "images",
    "unscaled-inputs",
    twin=lambda seed: digit_photos(seed, lambda x: (x - 0.5) / 0.5),
)
def pixels_twice(seed: int) -> Training:
    return digit_photos(seed, lambda x: x / 255)


class Applicant(NamedTuple):
    features: Tensor
    default: Tensor


class Applicants(Dataset[Applicant]):
    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Applicant:
        return Applicant(self.x[i], self.y[i])


class CreditModel(LightningModule):
    def __init__(self, columns: int) -> None:
        super().__init__()
        self.layers = mlp(columns, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).squeeze(-1)

    def step(self, batch: Applicant, name: str) -> Tensor:
        loss = F.binary_cross_entropy_with_logits(self(batch.features), batch.default)
        self.log(name, loss)
        return loss

    def training_step(self, batch: Applicant, batch_idx: int) -> Tensor:
        return self.step(batch, "train/bce")

    def validation_step(self, batch: Applicant, batch_idx: int) -> None:
        self.step(batch, "val/bce")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def credit(seed: int, standardise: bool) -> Training:
    g = generator(seed, 1102)
    z = torch.randn(3500, 6, generator=g)
    logit = 2 * z[:, 1] - 2 * z[:, 2] * z[:, 3] + 1.5 * z[:, 4] + z[:, 0] * 0.5
    y = (torch.rand(3500, generator=g) < torch.sigmoid(2 * logit)).float()
    # income, share of debt, utilisation, age in decades, delinquency rate, loan amount
    x = z * torch.tensor([18000.0, 0.11, 0.2, 1.3, 0.04, 7000.0]) + torch.tensor([52000.0, 0.4, 0.5, 4.2, 0.1, 15000.0])
    if standardise:
        x = (x - x[:2000].mean(0)) / x[:2000].std(0)
    train = DataLoader(Applicants(x[:2000], y[:2000]), 64, shuffle=True)
    val = DataLoader(Applicants(x[2000:2500], y[2000:2500]), 250)

    def score(module: LightningModule) -> float:
        return ((predict(module, x[2500:]) > 0).float() == y[2500:]).float().mean().item()

    return Training(CreditModel(6), train, score, val, {"max_epochs": 10})


@sick(
    "eb-credit-dollars-beside-shares",
    "tabular",
    "disparate-feature-scales",
    "unscaled-inputs",
    twin=lambda seed: credit(seed, True),
)
def credit_raw(seed: int) -> Training:
    return credit(seed, False)
