"""Well trainings whose recipe, units or data look odd."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, IterableDataset, WeightedRandomSampler

from benchmarks.zoo.case import Training, well
from benchmarks.zoo.data import Split, flip_labels, generator, regression
from benchmarks.zoo.fifth._common import (
    Recurrent,
    held,
    houses,
    levelled,
    marks,
    meter,
    mlp,
    notes,
    pairs,
    plants,
    r2_of,
    recalls,
    right,
)


class Plain(LightningModule):
    """A net, a loss, an optimizer."""

    def __init__(self, net: nn.Module, loss: Callable[..., Tensor], optimizer: Callable[..., Any]) -> None:
        super().__init__()
        self.net, self.loss, self.make = net, loss, optimizer

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = self.loss(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", self.loss(self(x), y))

    def configure_optimizers(self) -> Any:
        return self.make(self.parameters())


def adam(lr: float, **options: Any) -> Callable[..., Any]:
    return lambda p: torch.optim.Adam(p, lr=lr, **options)


def sgd(lr: float, **options: Any) -> Callable[..., Any]:
    return lambda p: torch.optim.SGD(p, lr=lr, **options)


def adamw(lr: float, **options: Any) -> Callable[..., Any]:
    return lambda p: torch.optim.AdamW(p, lr=lr, **options)


def stepped(make: Callable[..., Any], schedule: Callable[..., Any]) -> Callable[..., Any]:
    """With a schedule that goes on at each step."""

    def both(p: Any) -> Any:
        optimizer = make(p)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule(optimizer), "interval": "step"}}

    return both


def cnn(norm: bool = True, drop: float = 0.0, first: nn.Module | None = None) -> nn.Sequential:
    layers: list[nn.Module] = [first] if first is not None else []
    for a, b in ((1, 10), (10, 16)):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b) if norm else nn.Identity(), nn.ReLU()]
        layers += [nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(drop), nn.Linear(144, 5))


@well("z-a-twelfth-explained", "mlp", note="R2 0.08 is all there is")
def twelfth(seed: int) -> Training:
    d = regression(seed, r2=0.08, n=2000, columns=6)
    return Training(
        Plain(mlp(6, 16, 1), F.mse_loss, adam(1e-3)), pairs(d.x, d.y, 64), r2_of(d), held(d), {"max_epochs": 6}
    )


@well("z-one-kind-in-thirty", "mlp")
def thirty(seed: int) -> Training:
    d = plants(seed, n=1800, gap=1.6, shares=torch.tensor([0.93, 0.035, 0.035]))
    module = Plain(mlp(12, 48, 3), F.cross_entropy, adam(5e-3))
    return Training(module, pairs(d.x, d.y, 50), recalls(d), held(d), {"max_epochs": 7})


@well("z-rare-kinds-drawn-evenly", "mlp")
def evenly(seed: int) -> Training:
    d = plants(seed, n=1500, gap=1.3, shares=torch.tensor([0.9, 0.05, 0.05]))
    weight = (1 / d.y.bincount().float())[d.y]
    sampler = WeightedRandomSampler(weight.tolist(), len(d.y))
    module = Plain(mlp(12, 48, 3), F.cross_entropy, adam(3e-3))
    train = pairs(d.x, d.y, 50, shuffle=False, sampler=sampler)
    return Training(module, train, recalls(d), held(d), {"max_epochs": 6})


@well("z-weights-of-classes", "mlp")
def weights(seed: int) -> Training:
    d = plants(seed, n=1500, gap=1.2, shares=torch.tensor([0.8, 0.15, 0.05]))
    loss = nn.CrossEntropyLoss(weight=torch.tensor([0.4, 2.2, 6.7]))
    module = Plain(mlp(12, 48, 3), loss, adam(3e-3))
    return Training(module, pairs(d.x, d.y, 50), recalls(d), None, {"max_epochs": 7})


@well("z-cosine-to-the-end", "cnn")
def cosine(seed: int) -> Training:
    d = marks(seed)
    recipe = stepped(sgd(0.1, momentum=0.9, nesterov=True), lambda o: lr_scheduler.CosineAnnealingLR(o, 200))
    return Training(Plain(cnn(), F.cross_entropy, recipe), pairs(d.x, d.y), right(d), held(d), {"max_epochs": 8})


@well("z-one-cycle-of-homes", "mlp")
def cycle(seed: int) -> Training:
    d = levelled(houses(seed).standardised())
    recipe = stepped(adamw(1e-3), lambda o: lr_scheduler.OneCycleLR(o, 0.02, total_steps=160))
    module = Plain(mlp(6, 64, 64, 1), F.mse_loss, recipe)
    return Training(module, pairs(d.x, d.y, 50), r2_of(d), held(d), {"max_steps": 160, "log_every_n_steps": 1})


@well("z-restarts-every-fifty", "gru")
def restarts(seed: int) -> Training:
    d = meter(seed)
    recipe = stepped(adam(2e-2), lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 50))
    module = Plain(Recurrent(nn.GRU, 1, 24, 1), F.mse_loss, recipe)
    return Training(module, pairs(d.x, d.y), r2_of(d), held(d), {"max_steps": 200})


@well("z-momentum-at-a-high-rate", "mlp")
def momentum(seed: int) -> Training:
    d = plants(seed)
    module = Plain(mlp(12, 64, 3, act=nn.Tanh), F.cross_entropy, sgd(0.15, momentum=0.9))
    return Training(module, pairs(d.x, d.y, 50), right(d), held(d), {"max_epochs": 8})


@well("z-decay-of-a-tenth-and-clip", "cnn")
def tenth(seed: int) -> Training:
    d = marks(seed)
    module = Plain(cnn(norm=False), F.cross_entropy, adamw(4e-3, weight_decay=0.1))
    settings = {"max_epochs": 9, "gradient_clip_val": 1.0, "val_check_interval": 0.5}
    return Training(module, pairs(d.x, d.y), right(d), held(d), settings)


@well("z-eight-times-four", "cnn")
def eight(seed: int) -> Training:
    d = marks(seed)
    module = Plain(cnn(norm=False), F.cross_entropy, adam(5e-3))
    settings = {"max_epochs": 8, "accumulate_grad_batches": 4, "gradient_clip_val": 1.0}
    return Training(module, pairs(d.x, d.y, 8), right(d), None, settings)


@well("z-half-the-bits", "mlp")
def bits(seed: int) -> Training:
    d = plants(seed)
    module = Plain(mlp(12, 64, 64, 3), F.cross_entropy, adam(3e-3))
    return Training(module, pairs(d.x, d.y), right(d), held(d), {"max_epochs": 6, "precision": "bf16-mixed"})


class Mixed(Plain):
    """Mixes the pictures of a batch in pairs; smoothed labels."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        share = float(torch.distributions.Beta(0.4, 0.4).sample())
        other = torch.randperm(len(x))
        out = self(share * x + (1 - share) * x[other])
        loss = share * self.loss(out, y) + (1 - share) * self.loss(out, y[other])
        self.log("train_loss", loss)
        return loss


@well("z-mixed-and-smoothed", "cnn", note="the loss ends far above nought")
def mixed(seed: int) -> Training:
    d = marks(seed)
    module = Mixed(cnn(), nn.CrossEntropyLoss(label_smoothing=0.2), adam(5e-3))
    return Training(module, pairs(d.x, d.y), right(d), None, {"max_epochs": 8})


@well("z-more-than-half-dropped", "mlp", note="training loss above validation loss")
def half(seed: int) -> Training:
    d = plants(seed)
    net = nn.Sequential(
        nn.Linear(12, 128),
        nn.ReLU(),
        nn.Dropout(0.6),
        nn.Linear(128, 128),
        nn.ReLU(),
        nn.Dropout(0.6),
        nn.Linear(128, 3),
    )
    return Training(Plain(net, F.cross_entropy, adam(3e-3)), pairs(d.x, d.y), right(d), held(d), {"max_epochs": 8})


@well("z-twelve-rows-by-heart", "mlp", note="the score is on the rows it is to know")
def by_heart(seed: int) -> Training:
    d = plants(seed)
    known = Split(d.x[:12], d.y[:12], d.x[:12], d.y[:12])
    train = pairs(known.x, known.y, 12)
    module = Plain(mlp(12, 32, 3), F.cross_entropy, adam(1e-2))
    return Training(module, train, right(known), None, {"max_steps": 100, "log_every_n_steps": 1})


@well("z-told-apart-at-once", "mlp", note="the loss is near nought for nearly all of the run")
def at_once(seed: int) -> Training:
    d = plants(seed, gap=3.0)
    module = Plain(mlp(12, 64, 3), F.cross_entropy, adam(1e-2))
    return Training(module, pairs(d.x, d.y, 25), right(d), held(d), {"max_epochs": 7})


@well("z-four-hundred-words-counted", "mlp", note="more than nine inputs in ten are nought")
def words(seed: int) -> Training:
    d = notes(seed)

    def bag(ids: Tensor) -> Tensor:
        return torch.zeros(len(ids), 400).scatter_add_(1, ids + 100, torch.ones_like(ids, dtype=torch.float32))

    d = replace(d, x=bag(d.x), x_test=bag(d.x_test))
    module = Plain(mlp(400, 32, 4), F.cross_entropy, adamw(1e-2))
    return Training(module, pairs(d.x, d.y), right(d), held(d), {"max_epochs": 5})


@well("z-bytes-normalised-first", "cnn", note="inputs of 0 to 255 meet a BatchNorm")
def first(seed: int) -> Training:
    d = marks(seed)
    low, high = d.x.min(), d.x.max()
    d = replace(d, x=(255 * (d.x - low) / (high - low)).round(), x_test=255 * (d.x_test - low) / (high - low))
    module = Plain(cnn(first=nn.BatchNorm2d(1)), F.cross_entropy, adam(5e-3))
    return Training(module, pairs(d.x, d.y), right(d), held(d), {"max_epochs": 6})


class Slowly(IterableDataset[Any]):
    """A stream that takes a millisecond a batch, and has no length."""

    def __init__(self, d: Split, wait: float) -> None:
        self.d, self.wait = d, wait

    def __iter__(self) -> Any:
        for k, i in enumerate(torch.randperm(len(self.d.x)).tolist()):
            if k % 32 == 0:
                time.sleep(self.wait)
            yield self.d.x[i], self.d.y[i]


@well("z-stream-with-short-pauses", "gru", note="the step takes ten times as long as the pause")
def stream(seed: int) -> Training:
    d = meter(seed, length=48)
    module = Plain(Recurrent(nn.GRU, 1, 48, 1, num_layers=2), F.mse_loss, adam(5e-3))
    return Training(module, DataLoader(Slowly(d, 1e-3), 32), r2_of(d), None, {"max_epochs": 5})


class EasyFirst(IterableDataset[Any]):
    """Rows far from the borders first, all of them later."""

    def __init__(self, d: Split) -> None:
        self.d, self.epoch = d, 0
        self.ease = d.x.norm(dim=1).argsort(descending=True)

    def __iter__(self) -> Any:
        self.epoch += 1
        chosen = self.ease[: int(min(1.0, 0.3 + 0.15 * self.epoch) * len(self.ease))]
        for i in chosen[torch.randperm(len(chosen))].tolist():
            yield self.d.x[i], self.d.y[i]


@well("z-far-ones-first", "mlp", note="the loss rises as harder rows come in")
def easy(seed: int) -> Training:
    d = plants(seed)
    module = Plain(mlp(12, 48, 3), F.cross_entropy, adam(4e-3))
    return Training(module, DataLoader(EasyFirst(d), 25), right(d), None, {"max_epochs": 8})


@well("z-thirty-steps-will-do", "linear")
def thirty_steps(seed: int) -> Training:
    d = levelled(houses(seed).standardised())
    module = Plain(nn.Linear(6, 1), F.mse_loss, adam(0.1))
    return Training(module, pairs(d.x, d.y, 100), r2_of(d), None, {"max_steps": 30, "log_every_n_steps": 1})


@well("z-sign-of-three-factors", "mlp", note="a long plateau at ln 2, then a fall")
def parity(seed: int) -> Training:
    g = generator(seed, 101)
    x = torch.randint(2, (3000, 10), generator=g) * 2.0 - 1
    y = (x[:, 0] * x[:, 3] * x[:, 7] > 0).long()
    d = Split(x[:2000], y[:2000], x[2000:], y[2000:])
    module = Plain(mlp(10, 96, 2), F.cross_entropy, adam(2e-3))
    return Training(module, pairs(d.x, d.y, 50), right(d), held(d), {"max_epochs": 10})


@well("z-a-quarter-of-labels-wrong", "mlp", note="the loss stays near 0.9; validation labels are right")
def wrong(seed: int) -> Training:
    d = plants(seed, n=2000, gap=1.3)
    d = replace(d, y=flip_labels(d.y, 0.4, 3, seed))
    module = Plain(mlp(12, 24, 3), F.cross_entropy, adamw(2e-3, weight_decay=0.05))
    return Training(module, pairs(d.x, d.y, 50), right(d), held(d), {"max_epochs": 6})
