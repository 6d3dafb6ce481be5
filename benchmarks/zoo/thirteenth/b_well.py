"""Eight trainings with nothing wrong, four of them everyday and four unusual."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, well
from benchmarks.zoo.thirteenth import b_common as common


@well("ha-well-wine-mlp", "tabular")
def wine(seed: int) -> Training:
    cut = data.table("wine", seed)
    net = nn.Sequential(nn.Linear(13, 32), nn.ReLU(), nn.Linear(32, 3))
    module = common.Supervised(net, F.cross_entropy, lambda p: torch.optim.Adam(p, lr=5e-3, weight_decay=1e-3))
    return Training(module, cut.train(16), cut.accuracy, trainer={"max_epochs": 12})


class DigitsNet(LightningModule):
    """The usual: convolutions, batch norm, one cycle."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.conv = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.fc = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).flatten(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        logits = self(x)
        self.log("val_loss", F.cross_entropy(logits, y))
        self.log("val_acc", (logits.argmax(1) == y).float().mean())

    def configure_optimizers(self) -> dict[str, Any]:
        opt = torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        cycle = torch.optim.lr_scheduler.OneCycleLR(opt, 0.1, total_steps=self.steps)
        return {"optimizer": opt, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}


@well("ha-well-digits-one-cycle", "image")
def digits(seed: int) -> Training:
    cut = data.digits(seed).to_images()
    loader = cut.train(64)
    return Training(DigitsNet(8 * len(loader)), loader, cut.accuracy, cut.val(), {"max_epochs": 8})


class MotifGRU(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(1, 24, batch_first=True, bidirectional=True)
        self.out = nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.gru(x)[0].amax(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=6e-3)


@well("ha-well-motif-gru", "sequence")
def motif(seed: int) -> Training:
    cut = data.motifs(seed)
    return Training(MotifGRU(), cut.train(48), cut.accuracy, trainer={"max_epochs": 10, "gradient_clip_val": 1.0})


class LoadNet(LightningModule):
    """A forecaster with validation and a plateau schedule."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch["past"]), batch["next"])
        self.log("train/mse", loss, batch_size=len(batch["next"]))
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val/mse", F.mse_loss(self(x), y))

    def configure_optimizers(self) -> dict[str, Any]:
        opt = torch.optim.AdamW(self.parameters(), lr=2e-3, weight_decay=1e-2)
        drop = torch.optim.lr_scheduler.ReduceLROnPlateau(opt, factor=0.5, patience=3)
        return {"optimizer": opt, "lr_scheduler": {"scheduler": drop, "monitor": "val/mse"}}


@well("ha-well-load-plateau", "time-series")
def load(seed: int) -> Training:
    cut = common.load_curve(seed)
    rows = [{"past": x, "next": y} for x, y in zip(cut.x, cut.y, strict=True)]
    return Training(LoadNet(), DataLoader(rows, 64, shuffle=True), cut.r2, cut.val(), {"max_epochs": 15})


class RandomFeatures(LightningModule):
    """Cosines of random directions, which stay as drawn, and a linear layer over them."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        g = data.generator(seed, 52)
        self.directions = nn.Linear(6, 400)
        with torch.no_grad():
            self.directions.weight.copy_(0.5 * torch.randn(400, 6, generator=g))
            self.directions.bias.copy_(2 * math.pi * torch.rand(400, generator=g))
        self.directions.requires_grad_(False)
        self.weights = nn.Linear(400, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.weights(torch.cos(self.directions(x)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("ce", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.weights.parameters(), lr=1e-2)


@well("ha-well-random-cosines", "kernel", note="the first layer is random on purpose, as the method has it")
def cosines(seed: int) -> Training:
    cut = common.rings(seed, n=2000)
    return Training(RandomFeatures(seed), cut.train(64), cut.accuracy, trainer={"max_epochs": 14})


@well(
    "ha-well-returns-r2-0.15",
    "regression",
    note="nine tenths of the variance is noise; the loss soon lies at its floor",
)
def returns(seed: int) -> Training:
    cut = data.regression(seed, r2=0.15, n=6000, columns=4)
    net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
    module = common.Supervised(net, F.mse_loss, lambda p: torch.optim.Adam(p, lr=5e-3))
    return Training(module, cut.train(128), cut.r2, trainer={"max_epochs": 8})


class Density(LightningModule):
    """A mixture density: the loss is a negative log-likelihood that goes below zero."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(1, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh())
        self.head = nn.Linear(48, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def nll(self, x: Tensor, y: Tensor) -> Tensor:
        mean, log_std = self(x).split(1, 1)
        return -torch.distributions.Normal(mean, log_std.clamp(-5, 3).exp()).log_prob(y).mean()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.nll(*batch)
        self.log("nll", loss)
        return loss

    def configure_optimizers(self) -> Any:
        opt = torch.optim.Adam(self.parameters(), lr=1e-2)
        waves = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(opt, 120)
        return [opt], [{"scheduler": waves, "interval": "step"}]


@well("ha-well-density-below-zero", "density", note="the loss ends below zero, and the rate returns every 120 steps")
def density(seed: int) -> Training:
    g = data.generator(seed, 53)
    x = 4 * torch.rand(3000, 1, generator=g) - 2
    y = torch.sin(2 * x) + (0.03 + 0.1 * (x > 0)) * torch.randn(3000, 1, generator=g)
    return Training(
        Density(),
        DataLoader(TensorDataset(x[:2400], y[:2400]), 60, shuffle=True),
        lambda m: -m.nll(x[2400:], y[2400:]).item(),
        trainer={"max_epochs": 18},
    )


class SummedBags(LightningModule):
    """Manual optimisation; gradients of four small batches are summed by design, with a rate for sums."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.bag = nn.EmbeddingBag(60, 16, mode="mean", sparse=False)
        self.out = nn.Linear(16, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.bag(ids))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        ids, y = batch
        loss = F.cross_entropy(self(ids), y, reduction="sum")
        self.manual_backward(loss)
        if batch_idx % 4 == 3:
            opt = self.optimizers()
            opt.step()
            opt.zero_grad()
        self.log("summed", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adagrad(self.parameters(), lr=0.1)


@well("ha-well-summed-in-fours", "text", note="the losses are sums over rows, four batches a step, under Adagrad")
def summed(seed: int) -> Training:
    cut = common.sentences(seed, n=1280)
    return Training(SummedBags(), cut.train(16), cut.accuracy, trainer={"max_epochs": 10})
