"""Trainings that differ in their recipe: rates, schedules, momentum, decay, initial weights, own loops, averaging."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.fifth._common import (
    Recurrent,
    held,
    houses,
    levelled,
    marks,
    meter,
    minus,
    mlp,
    notes,
    nuclei,
    pairs,
    plants,
    r2_of,
    right,
)


class Recipe(LightningModule):
    """A net, a loss, and a function that makes whatever `configure_optimizers` may return."""

    def __init__(self, net: nn.Module, loss: Callable[..., Tensor], recipe: Callable[[Any], Any]) -> None:
        super().__init__()
        self.net, self.loss, self.recipe = net, loss, recipe

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = self.loss(self.net(x), y)
        self.log("loss/train", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("loss/val", self.loss(self.net(x), y))

    def configure_optimizers(self) -> Any:
        return self.recipe(self)


def sgd(lr: float, **options: Any) -> Callable[[LightningModule], Any]:
    return lambda m: torch.optim.SGD(m.parameters(), lr=lr, **options)


def adam(lr: float, **options: Any) -> Callable[[LightningModule], Any]:
    return lambda m: torch.optim.Adam(m.parameters(), lr=lr, **options)


def cnn(classes: int = 5) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 16, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 32),
        nn.ReLU(),
        nn.Linear(32, classes),
    )


# --- the rate ---------------------------------------------------------------------------------------------------------


@sick("z-strokes-rate-of-two", "cnn", "learning-rate-too-high", twin=lambda s: strokes_sgd(s, 0.03))
def strokes_sgd(seed: int, lr: float = 2.0) -> Training:
    d = marks(seed)
    module = Recipe(cnn(), F.cross_entropy, sgd(lr, momentum=0.9))
    return Training(module, pairs(d.x, d.y), right(d), held(d), {"max_epochs": 9})


@sick("z-strokes-from-a-fine-tuning", "cnn", "learning-rate-too-low", twin=lambda s: strokes_adam(s, 3e-3))
def strokes_adam(seed: int, lr: float = 1e-6) -> Training:
    d = marks(seed)
    module = Recipe(cnn(), F.cross_entropy, adam(lr))
    return Training(module, pairs(d.x, d.y), right(d), held(d), {"max_epochs": 8})


@sick("z-load-by-small-steps", "gru", "learning-rate-too-low", "never-learned", twin=lambda s: small(s, 0.1))
def small(seed: int, lr: float = 1e-5) -> Training:
    d = meter(seed)
    module = Recipe(Recurrent(nn.GRU, 1, 24, 1), F.mse_loss, sgd(lr, momentum=0.9))
    return Training(module, pairs(d.x, d.y), r2_of(d), None, {"max_epochs": 8})


@sick("z-homes-by-steepest-descent", "linear", "loss-diverging", "learning-rate-too-high", twin=lambda s: ball(s, 0.02))
def ball(seed: int, lr: float = 0.95) -> Training:
    """A line by descent with a rate just above what its curvature bears."""
    d = levelled(houses(seed).standardised())
    module = Recipe(nn.Linear(6, 1), F.mse_loss, sgd(lr))
    return Training(module, pairs(d.x, d.y, 50), r2_of(d), held(d), {"max_epochs": 10, "log_every_n_steps": 5})


@sick("z-homes-there-and-back", "linear", "loss-oscillating", "learning-rate-too-high", twin=lambda s: back(s, 0.02))
def back(seed: int, lr: float = 1.5) -> Training:
    """Absolute errors of a line: each step is as long as the last."""
    d = levelled(houses(seed).standardised())
    module = Recipe(nn.Linear(6, 1), F.l1_loss, sgd(lr, momentum=0.5))
    return Training(module, pairs(d.x, d.y, 25), r2_of(d), held(d), {"max_epochs": 6})


@sick(
    "z-homes-one-rate-throughout",
    "linear",
    "loss-plateau",
    "learning-rate-too-high",
    twin=lambda s: throughout(s, True),
)
def throughout(seed: int, steps: bool = False) -> Training:
    """The loss falls at first, then hovers; the twin's rate is cut to a fifth twice."""
    d = levelled(houses(seed).standardised()).map_targets(lambda t: t + 2)

    def recipe(m: LightningModule) -> Any:
        optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
        if not steps:
            return optimizer
        schedule = lr_scheduler.MultiStepLR(optimizer, [100, 220], 0.2)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    module = Recipe(nn.Linear(6, 1), F.mse_loss, recipe)
    return Training(module, pairs(d.x, d.y, 2), r2_of(d), held(d), {"max_steps": 400})


@sick("z-plants-first-look", "mlp", "training-too-short", twin=lambda s: look(s, 12))
def look(seed: int, epochs: int = 1) -> Training:
    d = plants(seed)
    module = Recipe(mlp(12, 48, 3), F.cross_entropy, adam(2e-3))
    return Training(module, pairs(d.x, d.y, 16), right(d), held(d), {"max_epochs": epochs})


# --- the schedule -----------------------------------------------------------------------------------------------------


@sick("z-strokes-decay-each-step", "cnn", "learning-rate-decayed-early", twin=lambda s: each(s, "epoch"))
def each(seed: int, interval: str = "step") -> Training:
    d = marks(seed)

    def recipe(m: LightningModule) -> Any:
        optimizer = torch.optim.Adam(m.parameters(), lr=3e-3)
        schedule = lr_scheduler.ExponentialLR(optimizer, gamma=0.85)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": interval}}

    module = Recipe(cnn(), F.cross_entropy, recipe)
    return Training(module, pairs(d.x, d.y), right(d), held(d), {"max_epochs": 9})


@sick("z-topics-line-of-40", "mlp", "learning-rate-decayed-early", twin=lambda s: line(s, 320))
def line(seed: int, total: int = 40) -> Training:
    """The rate goes to nothing along a line; its length is that of another run."""
    d = notes(seed)

    def recipe(m: LightningModule) -> Any:
        optimizer = torch.optim.AdamW(m.parameters(), lr=3e-3)
        schedule = lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / total))
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    net = nn.Sequential(nn.EmbeddingBag(120, 32), nn.ReLU(), nn.Linear(32, 4))
    return Training(Recipe(net, F.cross_entropy, recipe), pairs(d.x, d.y, 25), right(d), None, {"max_epochs": 8})


# --- what is optimised ------------------------------------------------------------------------------------------------


class Body(nn.Module):
    """A body and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*list(cnn())[:-1])
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


@sick("z-strokes-second-stage", "cnn", "parameters-not-optimized", twin=lambda s: stage(s, True))
def stage(seed: int, thawed: bool = False) -> Training:
    """The body was to be thawed for this stage; it never had a first one."""
    d = marks(seed)
    net = Body()
    net.body.requires_grad_(thawed)
    module = Recipe(
        net, F.cross_entropy, lambda m: torch.optim.Adam([p for p in m.parameters() if p.requires_grad], 3e-3)
    )
    return Training(module, pairs(d.x, d.y), right(d), held(d), {"max_epochs": 8})


class OwnLoop(Recipe):
    """Steps the optimizer itself; `order` says when the gradients are cleared."""

    def __init__(self, net: nn.Module, order: str) -> None:
        super().__init__(net, F.cross_entropy, adam(5e-3))
        self.automatic_optimization = False
        self.order = order

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        loss = self.loss(self.net(batch[0]), batch[1])
        if self.order == "first":
            optimizer.zero_grad()
        self.manual_backward(loss)
        if self.order == "between":
            optimizer.zero_grad()
        optimizer.step()
        self.log("loss/train", loss)
        return loss


@sick("z-plants-own-loop", "mlp", "gradients-not-cleared", twin=lambda s: own(s, "first"))
def own(seed: int, order: str = "between") -> Training:
    d = plants(seed)
    module = OwnLoop(mlp(12, 32, 3), order)
    return Training(module, pairs(d.x, d.y, 25), right(d), held(d), {"max_epochs": 5})


# --- weights: their start, their decay --------------------------------------------------------------------------------


@sick("z-plants-all-noughts", "mlp", "bad-initialization", "never-learned", twin=lambda s: noughts(s, False))
def noughts(seed: int, zero: bool = True) -> Training:
    d = plants(seed)
    net = mlp(12, 48, 48, 3)
    if zero:
        for p in net.parameters():
            nn.init.zeros_(p)
    module = Recipe(net, F.cross_entropy, sgd(0.1, momentum=0.9))
    return Training(module, pairs(d.x, d.y, 25), right(d), held(d), {"max_epochs": 6})


@sick("z-homes-normal-of-one", "mlp", "bad-initialization", twin=lambda s: normal(s, False))
def normal(seed: int, unit: bool = True) -> Training:
    d = levelled(houses(seed).standardised())
    net = mlp(6, 128, 128, 1)
    if unit:
        for layer in net:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight)
    return Training(Recipe(net, F.mse_loss, adam(2e-3)), pairs(d.x, d.y), r2_of(d), held(d), {"max_epochs": 6})


@sick("z-homes-decay-of-two", "mlp", "excess-regularization", twin=lambda s: decay(s, 1e-4))
def decay(seed: int, weight_decay: float = 2.0) -> Training:
    d = levelled(houses(seed).standardised())
    module = Recipe(mlp(6, 64, 64, 1), F.mse_loss, adam(3e-3, weight_decay=weight_decay))
    return Training(module, pairs(d.x, d.y), r2_of(d), held(d), {"max_epochs": 8})


# --- depth ------------------------------------------------------------------------------------------------------------


@sick("z-plants-twelve-deep", "mlp", "vanishing-gradients", twin=lambda s: twelve(s, nn.ReLU))
def twelve(seed: int, act: Callable[[], nn.Module] = nn.Sigmoid) -> Training:
    d = plants(seed)
    net = mlp(12, *[32] * 12, 3, act=act)
    if act is nn.ReLU:
        for layer in net:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return Training(Recipe(net, F.cross_entropy, adam(1e-3)), pairs(d.x, d.y, 25), right(d), None, {"max_epochs": 7})


class Residual(nn.Module):
    """Sums of blocks without any normalisation."""

    def __init__(self, blocks: int, width: int = 32, norm: bool = False) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, width), nn.Linear(width, 1)

        def block() -> nn.Module:
            second = nn.Linear(width, width)
            layers = [nn.Linear(width, width), nn.ReLU(), second]
            for layer in (layers[0], second):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            return nn.Sequential(*([nn.LayerNorm(width)] if norm else []), *layers)

        self.blocks = nn.ModuleList([block() for _ in range(blocks)])

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for block in self.blocks:
            h = h + block(h)
        return self.last(h)


@sick("z-homes-sums-of-blocks", "mlp", "exploding-gradients", "bad-initialization", twin=lambda s: sums(s, True))
def sums(seed: int, norm: bool = False) -> Training:
    d = levelled(houses(seed).standardised())
    module = Recipe(Residual(14, norm=norm), F.mse_loss, adam(1e-3))
    return Training(module, pairs(d.x, d.y, 50), r2_of(d), held(d), {"max_epochs": 10})


# --- normalisation ----------------------------------------------------------------------------------------------------


class Averaged(Recipe):
    """Is judged by a moving mean of its weights."""

    def __init__(self, net: nn.Module, buffers: bool) -> None:
        super().__init__(net, F.cross_entropy, adam(3e-3))
        self.mean_net = copy.deepcopy(net).requires_grad_(False)
        self.buffers = buffers

    def forward(self, x: Tensor) -> Tensor:
        return self.mean_net(x)

    def on_train_batch_end(self, *args: Any) -> None:
        with torch.no_grad():
            for slow, fast in zip(self.mean_net.parameters(), self.net.parameters(), strict=True):
                slow.lerp_(fast, 0.1)
            if self.buffers:
                for slow, fast in zip(self.mean_net.buffers(), self.net.buffers(), strict=True):
                    slow.copy_(fast)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("loss/val", self.loss(self(batch[0]), batch[1]))


@sick("z-strokes-mean-of-the-weights", "cnn", "batchnorm-stale-statistics", twin=lambda s: mean(s, True))
def mean(seed: int, buffers: bool = False) -> Training:
    d = marks(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(3),
        nn.Conv2d(12, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.Flatten(), nn.Linear(384, 5),
    )  # fmt: skip
    module = Averaged(net, buffers)
    return Training(
        module,
        pairs(2 * d.x, d.y),
        lambda m: data.accuracy(data.predict(m, 2 * d.x_test), d.y_test),
        None,
        {"max_epochs": 6},
    )


@sick("z-nuclei-one-at-a-time", "segmentation", "batchnorm-small-batch", twin=lambda s: one(s, 16))
def one(seed: int, size: int = 1) -> Training:
    """Normalised maps of two by two, from single pictures; the twin's batches hold sixteen."""
    d = nuclei(seed, noise=0.6)
    net = nn.Sequential(
        nn.Conv2d(1, 12, 4, stride=4), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 32, 2, stride=2), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Upsample(scale_factor=8), nn.Conv2d(32, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1),
    )  # fmt: skip
    loss = F.binary_cross_entropy_with_logits
    module = Recipe(net, loss, adam(3e-3))
    return Training(module, pairs(d.x, d.y, size), minus(d, loss), None, {"max_steps": 300})
