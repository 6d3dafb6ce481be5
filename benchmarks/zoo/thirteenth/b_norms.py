"""Normalisation, regularisation and what a network can express: eight trainings with their mended twins."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.thirteenth import b_common as common


def credit(seed: int, batch_size: int, steps: int) -> Training:
    cut = common.rings(seed, n=1200)
    net = nn.Sequential(
        nn.Linear(6, 32),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.Linear(32, 32),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.Linear(32, 3),
    )
    module = common.Supervised(net, F.cross_entropy, lambda p: torch.optim.Adam(p, lr=3e-3))
    settings = {"max_steps": steps, "max_epochs": -1}
    return Training(module, cut.train(batch_size), cut.accuracy, trainer=settings)


@sick(
    "ha-credit-pairs",
    "tabular",
    "batchnorm-small-batch",
    twin=lambda seed: credit(seed, 48, 400),
    note="two rows a batch: what is normalised is only which of the two is larger",
)
def credit_pairs(seed: int) -> Training:
    return credit(seed, 2, 600)


class Embedder(LightningModule):
    """Bags of words to a topic, with a normalised layer between."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(60, 24, mode="mean")
        self.norm = nn.BatchNorm1d(24)
        self.top = nn.Linear(24, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.top(torch.relu(self.norm(self.bag(ids))))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch["ids"]), batch["topic"])
        self.log("ce", loss, batch_size=len(batch["topic"]))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def bags(seed: int, drop_last: bool) -> Training:
    cut = common.sentences(seed, n=897)
    rows = [{"ids": x, "topic": y} for x, y in zip(cut.x, cut.y, strict=True)]
    loader = DataLoader(rows, 32, shuffle=True, drop_last=drop_last)
    return Training(Embedder(), loader, cut.accuracy, trainer={"max_epochs": 10})


@sick(
    "ha-bags-one-row-left",
    "text",
    "batchnorm-small-batch",
    twin=lambda seed: bags(seed, True),
    note="897 rows in batches of 32 leave one row over, on which the layer raises",
)
def bags_left(seed: int) -> Training:
    return bags(seed, False)


class LoadConv(LightningModule):
    """A window of a load curve to its next value, by convolutions with norms."""

    def __init__(self, momentum: float) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for inp, out in ((1, 12), (12, 16), (16, 16)):
            conv = nn.Conv1d(inp, out, 3, padding=1, bias=False)
            blocks += [conv, nn.BatchNorm1d(out, eps=1e-3, momentum=momentum), nn.ReLU()]
        self.body = nn.Sequential(*blocks)
        self.head = nn.Linear(16 * 24, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x[:, None]).flatten(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("train_mse", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_mse", F.mse_loss(self(x), y))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def load_conv(seed: int, momentum: float) -> Training:
    cut = common.load_curve(seed)
    return Training(LoadConv(momentum), cut.train(60), cut.r2, cut.val(), {"max_epochs": 10})


@sick(
    "ha-load-momentum-1e-4",
    "time-series",
    "batchnorm-stale-statistics",
    twin=lambda seed: load_conv(seed, 0.1),
    note="one minus 0.9999, a momentum for long runs: after 200 steps the statistics are where they began",
)
def load_conv_stale(seed: int) -> Training:
    return load_conv(seed, 1e-4)


class Averaged(LightningModule):
    """A classifier judged by a slow copy of its weights."""

    def __init__(self, with_buffers: bool) -> None:
        super().__init__()
        self.with_buffers = with_buffers
        self.student = nn.Sequential(
            nn.Conv2d(1, 12, 3),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.Conv2d(12, 16, 3),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 4),
        )
        self.slow = copy.deepcopy(self.student).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.student(x) if self.training else self.slow(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_ce", loss)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        with torch.no_grad():
            for mean, now in zip(self.slow.parameters(), self.student.parameters(), strict=True):
                mean.lerp_(now, 0.1)
            if self.with_buffers:
                for mean, now in zip(self.slow.buffers(), self.student.buffers(), strict=True):
                    mean.copy_(now)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_ce", F.cross_entropy(self(x), y))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.student.parameters(), lr=0.1, momentum=0.9)


def averaged(seed: int, with_buffers: bool) -> Training:
    drawn = common.pictures(seed, noise=0.6).kinds
    cut = data.Split(drawn.x, drawn.y, drawn.x_test, drawn.y_test)
    return Training(Averaged(with_buffers), cut.train(40), cut.accuracy, cut.val(), {"max_epochs": 8})


@sick(
    "ha-slow-copy-without-buffers",
    "image",
    "batchnorm-stale-statistics",
    twin=lambda seed: averaged(seed, True),
    note="the slow copy follows the parameters alone, and its running statistics stay as they were made",
)
def averaged_parameters(seed: int) -> Training:
    return averaged(seed, False)


class KeepNet(LightningModule):
    """Ported: a share of the units is kept."""

    def __init__(self, drop: float) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(64, 64),
            nn.ReLU(),
            nn.Dropout(drop),
            nn.Linear(64, 32),
            nn.ReLU(),
            nn.Dropout(drop),
            nn.Linear(32, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", F.cross_entropy(self(x), y))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def keep(seed: int, drop: float) -> Training:
    cut = data.digits(seed)
    cut = data.Split(2 * cut.x - 0.6, cut.y, 2 * cut.x_test - 0.6, cut.y_test)
    return Training(KeepNet(drop), cut.train(64), cut.accuracy, cut.val(), {"max_epochs": 15})


@sick(
    "ha-keep-prob-as-dropout",
    "image",
    "excess-regularization",
    twin=lambda seed: keep(seed, 0.1),
    note="keep_prob=0.9 handed to Dropout, which takes the share to drop",
)
def keep_prob(seed: int) -> Training:
    return keep(seed, 0.9)


class Tastes(LightningModule):
    """Users and items through a small tower to a rating."""

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.user = nn.Embedding(60, 8)
        self.item = nn.Embedding(50, 8)
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=0.3)
        self.tower = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, pair: Tensor) -> Tensor:
        u, v = self.user(pair[:, 0]), self.item(pair[:, 1])
        return (u * v).sum(1) + self.tower(torch.cat([u, v], 1)).squeeze(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        pair, rating = batch
        loss = F.mse_loss(self(pair), rating)
        self.log("rmse", loss.detach().sqrt())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=5e-3, weight_decay=self.decay)


def tastes(seed: int, decay: float) -> Training:
    world = common.ratings(seed, n=2400)
    pairs, given = world.test
    return Training(
        Tastes(decay),
        DataLoader(TensorDataset(*world.train), 80, shuffle=True),
        lambda m: data.r2(data.predict(m, pairs), given),
        trainer={"max_epochs": 12},
    )


@sick(
    "ha-tastes-decay-20",
    "recommender",
    "excess-regularization",
    twin=lambda seed: tastes(seed, 0.02),
    note="a decay of 20 where 0.02 was meant (a penalty by thousands of rows)",
)
def tastes_decay(seed: int) -> Training:
    return tastes(seed, 20.0)


class TinyVision(LightningModule):
    def __init__(self, multiplier: float) -> None:
        super().__init__()
        c1, c2 = max(1, int(24 * multiplier)), max(1, int(40 * multiplier))
        self.stem = nn.Conv2d(1, c1, 3, padding=1)
        self.block = nn.Conv2d(c1, c2, 3, stride=2, padding=1)
        self.fc = nn.Linear(c2, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.block(F.leaky_relu(self.stem(x), 0.1)), 0.1)
        return self.fc(torch.cat([h.flatten(2)], 1).logsumexp(2))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def vision(seed: int, multiplier: float) -> Training:
    cut = data.digits(seed).to_images()
    cut = data.Split(2 * cut.x - 0.6, cut.y, 2 * cut.x_test - 0.6, cut.y_test)
    return Training(TinyVision(multiplier), cut.train(64), cut.accuracy, trainer={"max_epochs": 20})


@sick(
    "ha-width-multiplier-0.04",
    "image",
    "insufficient-capacity",
    twin=lambda seed: vision(seed, 1.0),
    note="a width multiplier of 0.04 leaves one channel in each layer for ten classes",
)
def vision_narrow(seed: int) -> Training:
    return vision(seed, 0.04)


class Layered(LightningModule):
    """A tower of equal steps, each a linear map, a norm and maybe what the configuration calls its activation."""

    def __init__(self, act: str | None) -> None:
        super().__init__()
        known = {"relu": nn.ReLU, "gelu": nn.GELU}
        parts: list[nn.Module] = []
        width = 6
        for _ in range(3):
            parts += [nn.Linear(width, 40), nn.BatchNorm1d(40), known[act]() if act in known else nn.Identity()]
            width = 40
        self.tower = nn.Sequential(*parts)
        self.head = nn.Linear(40, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.tower(x))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch["features"]), batch["band"])
        self.log("train_loss", loss, batch_size=len(batch["band"]))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def layered(seed: int, act: str) -> Training:
    cut = common.rings(seed, n=1200)
    rows = [{"features": x, "band": y} for x, y in zip(cut.x, cut.y, strict=True)]
    return Training(Layered(act), DataLoader(rows, 60, shuffle=True), cut.accuracy, trainer={"max_epochs": 12})


@sick(
    "ha-unknown-activation-name",
    "tabular",
    "missing-nonlinearity",
    twin=lambda seed: layered(seed, "gelu"),
    note="the configuration says 'GeLU', which the table does not know, and the layer falls back to Identity",
)
def layered_identity(seed: int) -> Training:
    return layered(seed, "GeLU")
