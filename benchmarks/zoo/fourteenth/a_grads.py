"""Signals that grow, die or stick on their way through the layers, and weights that start in the wrong place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import blobs, digits, predict, r2, regression
from benchmarks.zoo.fourteenth.a_common import batches, glyphs, waves

# --- a deep residual network ----------------------------------------------------------------------------------------


class Unit(nn.Module):
    def __init__(self, width: int, keep_input: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(width, width), nn.Linear(width, width)
        self.keep_input = keep_input

    def forward(self, h: Tensor) -> Tensor:
        out = self.b(F.silu(self.a(h)))
        return h + out if self.keep_input else out


class DeepTable(LightningModule):
    def __init__(self, depth: int, keep_input: bool) -> None:
        super().__init__()
        self.stem = nn.Linear(10, 32)
        self.units = nn.ModuleList(Unit(32, keep_input) for _ in range(depth))
        self.top = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for unit in self.units:
            h = h + unit(h)
        return self.top(h)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_ce", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_ce", F.cross_entropy(self(x), y))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.02)


def residual(seed: int, keep_input: bool) -> Training:
    cut = blobs(seed, n=1280, spread=3.0)
    return Training(DeepTable(10, keep_input), cut.train(32), cut.accuracy, cut.val(500), {"max_epochs": 5})


@sick("na-residual-added-twice", "tabular", "exploding-gradients", twin=lambda s: residual(s, False))
def residual_twice(seed: int) -> Training:
    return residual(seed, True)


# --- a leaky integrator ---------------------------------------------------------------------------------------------


class Reservoir(LightningModule):
    def __init__(self, leak: float | None, width: int = 32) -> None:
        super().__init__()
        self.leak = leak
        self.width = width
        self.inp = nn.Linear(1, width)
        self.rec = nn.Linear(width, width)
        self.read = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), self.width)
        for t in range(x.shape[1]):
            drive = torch.relu(self.inp(x[:, t]) + self.rec(h))
            h = h + drive if self.leak is None else (1 - self.leak) * h + self.leak * drive
        return self.read(h)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = (self(x) - y).pow(2).mean()
        self.log("mse", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def integrate(seed: int, leak: float | None) -> Training:
    cut = waves(seed, length=24, n=640)
    return Training(Reservoir(leak), cut.train(32), cut.r2, None, {"max_epochs": 12})


@sick("na-integrator-without-leak", "time-series", "exploding-gradients", twin=lambda s: integrate(s, 0.5))
def integrate_no_leak(seed: int) -> Training:
    return integrate(seed, None)


# --- depth without a path for the gradient --------------------------------------------------------------------------


class TallDigits(LightningModule):
    def __init__(self, skip: bool, depth: int = 14) -> None:
        super().__init__()
        self.skip = skip
        self.first = nn.Linear(64, 40)
        self.hidden = nn.ModuleList(nn.Linear(40, 40) for _ in range(depth))
        self.last = nn.Linear(40, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        for layer in self.hidden:
            out = torch.tanh(layer(h))
            h = h + out if self.skip else out
        return self.last(h)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.03, momentum=0.5)


def tall(seed: int, skip: bool) -> Training:
    cut = digits(seed)
    return Training(TallDigits(skip), cut.train(32), cut.accuracy, None, {"max_epochs": 8})


@sick("na-digits-tall-tanh", "images", "vanishing-gradients", twin=lambda s: tall(s, True))
def tall_digits(seed: int) -> Training:
    return tall(seed, False)


class Gate(nn.Module):
    def __init__(self, width: int, carry: bool) -> None:
        super().__init__()
        self.value, self.gate = nn.Linear(width, width), nn.Linear(width, width)
        self.carry = carry

    def forward(self, h: Tensor) -> Tensor:
        out = self.value(h) * torch.sigmoid(self.gate(h))
        return h + out if self.carry else out


class GatedRegressor(LightningModule):
    def __init__(self, carry: bool) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 32), *[Gate(32, carry) for _ in range(10)], nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def step(self, batch: Any, stage: str) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log(f"{stage}_mse", loss)
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.step(batch, "train")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.step(batch, "val")

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


def gated(seed: int, carry: bool) -> Training:
    cut = regression(seed, r2=0.9, n=1600)
    settings = {"max_epochs": 14, "gradient_clip_val": 2.0}
    return Training(GatedRegressor(carry), cut.train(40), cut.r2, cut.val(500), settings)


@sick("na-gates-without-carry", "tabular", "vanishing-gradients", twin=lambda s: gated(s, True))
def gates(seed: int) -> Training:
    return gated(seed, False)


# --- units that never fire ------------------------------------------------------------------------------------------


class PrototypeNet(LightningModule):
    def __init__(self, radius: float) -> None:
        super().__init__()
        self.radius = radius
        self.points = nn.Parameter(torch.randn(64, 10))
        self.near = nn.ReLU()
        self.vote = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.vote(self.near(self.radius - torch.cdist(x, self.points)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("ce", loss, on_epoch=True, on_step=False)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def prototypes(seed: int, radius: float) -> Training:
    cut = blobs(seed, n=1200, spread=3.0)
    return Training(PrototypeNet(radius), cut.train(40), cut.accuracy, None, {"max_epochs": 6})


@sick("na-prototypes-narrow-radius", "metric-learning", "dead-activations", twin=lambda s: prototypes(s, 6.0))
def prototypes_narrow(seed: int) -> Training:
    return prototypes(seed, 1.0)


class MobileGlyphs(LightningModule):
    def __init__(self, act: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, 12, 5), act(), nn.Conv2d(12, 16, 3), act())
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.fc = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.conv(x)).flatten(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("acc_val", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=4e-3)


def mobile(seed: int, act: Callable[[], nn.Module]) -> Training:
    cut = glyphs(seed)
    return Training(MobileGlyphs(act), cut.train(32), cut.accuracy, cut.val(250), {"max_epochs": 8})


@sick("na-glyphs-threshold-six", "images", "dead-activations", twin=lambda s: mobile(s, nn.ReLU6))
def glyphs_threshold(seed: int) -> Training:
    return mobile(seed, lambda: nn.Threshold(6.0, 0.0))


# --- units at their limits ------------------------------------------------------------------------------------------


class HashCodes(LightningModule):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit
        self.encoder = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 16))
        self.code = nn.Tanh()
        self.decoder = nn.Sequential(nn.Linear(16, 48), nn.ReLU(), nn.Linear(48, 64))
        self.steepness = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.code(self.steepness * self.encoder(x)))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        now = self.current_epoch if self.unit == "epoch" else self.global_step
        self.steepness = 1.0 + 0.2 * now

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0]
        loss = F.mse_loss(self(x), x)
        self.log("reconstruction", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def codes(seed: int, unit: str) -> Training:
    cut = digits(seed)
    return Training(
        HashCodes(unit),
        batches(cut.x, size=64),
        lambda m: r2(predict(m, cut.x_test), cut.x_test),
        None,
        {"max_epochs": 18},
    )


@sick("na-codes-steeper-by-step", "autoencoder", "saturated-activations", twin=lambda s: codes(s, "epoch"))
def codes_by_step(seed: int) -> Training:
    return codes(seed, "step")


class SoftStep(nn.Module):
    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.squash = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return self.squash(x / self.temperature)


class SoftRules(LightningModule):
    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Linear(8, 48), SoftStep(temperature), nn.Linear(48, 48), SoftStep(temperature), nn.Linear(48, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return F.mse_loss(self(x), y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_r2", torch.tensor(r2(self(x), y)))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def rules(seed: int, temperature: float) -> Training:
    cut = regression(seed, r2=0.92, n=1600)
    return Training(SoftRules(temperature), cut.train(32), cut.r2, cut.val(1000), {"max_epochs": 16})


@sick("na-rules-final-temperature", "tabular", "saturated-activations", twin=lambda s: rules(s, 0.7))
def rules_cold(seed: int) -> Training:
    return rules(seed, 0.004)


# --- where the weights start ----------------------------------------------------------------------------------------


class Tower(LightningModule):
    def __init__(self, init: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(8, 64), nn.LeakyReLU(), nn.Linear(64, 64), nn.LeakyReLU(), nn.Linear(64, 64), nn.LeakyReLU()
        )
        self.out = nn.Linear(64, 1)
        for m in self.modules():
            if isinstance(m, nn.Linear):
                init(m.weight)
                nn.init.zeros_(m.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layers(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def tower(seed: int, init: Callable[[Tensor], Any]) -> Training:
    cut = regression(seed, r2=0.9, n=1600)
    return Training(Tower(init), cut.train(64), cut.r2, None, {"max_epochs": 10})


@sick(
    "na-tower-normal-positional",
    "tabular",
    "bad-initialization",
    twin=lambda s: tower(s, lambda w: nn.init.normal_(w, std=0.1)),
)
def tower_positional(seed: int) -> Training:
    return tower(seed, lambda w: nn.init.normal_(w, 0.1))


class DigitCapsule(LightningModule):
    def __init__(self, start: str) -> None:
        super().__init__()
        self.w1, self.b1 = nn.Parameter(torch.empty(64, 32)), nn.Parameter(torch.zeros(32))
        self.w2, self.b2 = nn.Parameter(torch.empty(32, 10)), nn.Parameter(torch.zeros(10))
        for w in (self.w1, self.w2):
            if start == "glorot_uniform":
                nn.init.xavier_uniform_(w)
            else:
                nn.init.constant_(w, 1 / len(w))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x @ self.w1 + self.b1) @ self.w2 + self.b2

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adagrad(self.parameters(), lr=0.05)


def capsule(seed: int, start: str) -> Training:
    cut = digits(seed)
    return Training(DigitCapsule(start), cut.train(64), cut.accuracy, None, {"max_epochs": 10})


@sick("na-digits-one-over-fan", "images", "bad-initialization", twin=lambda s: capsule(s, "glorot_uniform"))
def digits_fan(seed: int) -> Training:
    return capsule(seed, "fan")
