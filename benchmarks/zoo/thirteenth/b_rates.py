"""Step sizes, schedules and gradient norms: seven trainings with their mended twins."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.thirteenth import b_common as common


class TopicGRU(LightningModule):
    """Token ids to one of four topics by the mean state of a GRU."""

    def __init__(self, learning_rate: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.embed = nn.Embedding(60, 16)
        self.gru = nn.GRU(16, 24, batch_first=True)
        self.out = nn.Linear(24, 4)

    def forward(self, ids: Tensor) -> Tensor:
        states, _ = self.gru(self.embed(ids))
        return self.out(states.mean(1))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        loss = F.cross_entropy(self(batch["input_ids"]), batch["labels"])
        return {"loss": loss}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.hparams["learning_rate"])


def topics(seed: int, learning_rate: float) -> Training:
    cut = common.sentences(seed, n=1200)
    rows = [{"input_ids": x, "labels": y} for x, y in zip(cut.x, cut.y, strict=True)]
    return Training(
        TopicGRU(learning_rate),
        DataLoader(rows, 32, shuffle=True),
        cut.accuracy,
        trainer={"max_epochs": 8},
    )


@sick(
    "ha-topic-gru-rate-3e-1",
    "sequence",
    "learning-rate-too-high",
    twin=lambda seed: topics(seed, 3e-3),
    note="3e-1 typed for 3e-3",
)
def topic_rate(seed: int) -> Training:
    return topics(seed, 3e-1)


def masks(seed: int, rate: float) -> Training:
    cut = common.pictures(seed).masks
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.GELU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.GELU(),
        nn.Conv2d(8, 1, 3, padding=1),
    )
    module = common.Supervised(
        net, F.binary_cross_entropy_with_logits, lambda p: torch.optim.SGD(p, lr=rate, momentum=0.9)
    )
    return Training(
        module,
        cut.train(32),
        lambda m: common.overlap(data.predict(m, cut.x_test), cut.y_test),
        trainer={"max_epochs": 10},
    )


@sick(
    "ha-mask-scaled-by-batch",
    "segmentation",
    "learning-rate-too-high",
    twin=lambda seed: masks(seed, 0.2 * 32 / 256),
    note="the base rate is multiplied by the batch size, and not divided by 256",
)
def mask_rate(seed: int) -> Training:
    return masks(seed, 0.2 * 32)


class LoadForecaster(LightningModule):
    def __init__(self, lr: float) -> None:
        super().__init__()
        self.lr = lr
        self.inp = nn.Linear(24, 32)
        self.mid = nn.Linear(32, 32)
        self.head = nn.Linear(32, 1)

    def forward(self, window: Tensor) -> Tensor:
        h = F.leaky_relu(self.inp(window))
        return self.head(F.leaky_relu(self.mid(h)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        window, target = batch
        error = F.smooth_l1_loss(self(window), target)
        self.log("huber", error, prog_bar=True)
        return error

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        window, target = batch
        self.log("val/huber", F.smooth_l1_loss(self(window), target))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, nesterov=True)


def load(seed: int, lr: float) -> Training:
    cut = common.load_curve(seed)
    return Training(LoadForecaster(lr), cut.train(64), cut.r2, cut.val(), {"max_epochs": 14})


@sick(
    "ha-load-rate-over-samples",
    "time-series",
    "learning-rate-too-low",
    twin=lambda seed: load(seed, 0.05),
    note="the rate is divided by the number of samples, though the loss is a mean already",
)
def load_rate(seed: int) -> Training:
    return load(seed, 0.05 / 1200)


class SignalTransformer(LightningModule):
    """Pieces of a signal to a pitch, by one layer of attention, with a linear warmup."""

    def __init__(self, warmup: int) -> None:
        super().__init__()
        self.warmup = warmup
        self.patch = nn.Linear(8, 24)
        self.place = nn.Parameter(0.02 * torch.randn(6, 24))
        self.layer = nn.TransformerEncoderLayer(24, 2, 48, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        pieces = self.patch(x.view(-1, 6, 8)) + self.place
        return self.head(self.layer(pieces).mean(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        opt = torch.optim.AdamW(self.parameters(), lr=3e-3, weight_decay=0.01)
        ramp = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: min(1.0, (step + 1) / self.warmup))
        return {"optimizer": opt, "lr_scheduler": {"scheduler": ramp, "interval": "step"}}


def warmed(seed: int, warmup: int) -> Training:
    cut = common.waves(seed)
    return Training(SignalTransformer(warmup), cut.train(32), cut.accuracy, trainer={"max_epochs": 10})


@sick(
    "ha-signal-warmup-40000",
    "audio",
    "learning-rate-too-low",
    twin=lambda seed: warmed(seed, 40),
    note="a warmup copied from a run of a million steps; the rate stays below a hundredth of what is asked for",
)
def warmup_long(seed: int) -> Training:
    return warmed(seed, 40_000)


class TagModule(LightningModule):
    """Manual optimisation; the schedule is moved on once an epoch or once a batch."""

    def __init__(self, each_batch: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.each_batch = each_batch
        self.features = nn.Sequential(nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Conv2d(12, 16, 3), nn.ReLU())
        self.classes = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.classes(self.features(x).amax((2, 3)))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        opt, sch = self.optimizers(), self.lr_schedulers()
        loss = F.cross_entropy(self(x), y)
        opt.zero_grad()
        self.manual_backward(loss)
        opt.step()
        self.log("ce", loss)
        if self.each_batch or self.trainer.is_last_batch:
            sch.step()

    def configure_optimizers(self) -> Any:
        opt = torch.optim.Adam(self.parameters(), lr=4e-3)
        return [opt], [torch.optim.lr_scheduler.ExponentialLR(opt, 0.92)]


def tags(seed: int, each_batch: bool) -> Training:
    cut = common.pictures(seed).kinds
    return Training(TagModule(each_batch), cut.train(32), cut.accuracy, trainer={"max_epochs": 10})


@sick(
    "ha-manual-decay-each-batch",
    "image",
    "learning-rate-decayed-early",
    twin=lambda seed: tags(seed, False),
    note="a decay meant for epochs is stepped in every training_step",
)
def decay_each_batch(seed: int) -> Training:
    return tags(seed, True)


class TableData(LightningDataModule):
    def __init__(self, cut: data.Split, batch_size: int = 64) -> None:
        super().__init__()
        self.cut = cut
        self.batch_size = batch_size

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(self.cut.x, self.cut.y), self.batch_size, shuffle=True)

    def val_dataloader(self) -> Any:
        return self.cut.val()


class TableRegressor(LightningModule):
    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode
        self.mlp = nn.Sequential(nn.Linear(4, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("train/mse", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val/mse", F.mse_loss(self(x), y))

    def configure_optimizers(self) -> dict[str, Any]:
        opt = torch.optim.Adam(self.parameters(), lr=5e-4)
        drop = torch.optim.lr_scheduler.ReduceLROnPlateau(opt, mode=self.mode, factor=0.2, patience=0)
        return {"optimizer": opt, "lr_scheduler": {"scheduler": drop, "monitor": "val/mse"}}


def plateau(seed: int, mode: str) -> Training:
    cut = data.regression(seed, r2=0.95, n=2000, columns=4)
    module = TableRegressor(mode)
    source = TableData(cut)
    return Training(module, source.train_dataloader(), cut.r2, source.val_dataloader(), {"max_epochs": 20})


@sick(
    "ha-plateau-mode-max",
    "tabular",
    "learning-rate-decayed-early",
    twin=lambda seed: plateau(seed, "min"),
    note="mode='max' on an error, kept from a version that watched accuracy; every gain cuts the rate",
)
def plateau_max(seed: int) -> Training:
    return plateau(seed, "max")


class RunningTotal(LightningModule):
    """A ReLU recurrence that starts as the identity and reads one value after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(1, 32)
        self.rec = nn.Linear(32, 32, bias=False)
        self.out = nn.Linear(32, 1)
        with torch.no_grad():
            self.rec.weight.copy_(torch.eye(32))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), 32)
        for step in self.inp(x).unbind(1):
            h = F.relu(step + self.rec(h))
        return self.out(h / 4)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("mse", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3, momentum=0.9)


def total(seed: int, clip: float | None) -> Training:
    g = data.generator(seed, 48)
    x = torch.randn(1800, 40, 1, generator=g)
    y = x.sum(1)
    y = y / y[:1200].std()
    cut = data.Split(x[:1200], y[:1200], x[1200:], y[1200:])
    settings: dict[str, Any] = {"max_epochs": 12}
    if clip is not None:
        settings["gradient_clip_val"] = clip
    return Training(RunningTotal(), cut.train(50), cut.r2, trainer=settings)


@sick(
    "ha-identity-recurrence-unclipped",
    "sequence",
    "exploding-gradients",
    "learning-rate-too-high",
    twin=lambda seed: total(seed, 0.5),
    note="forty steps through a ReLU recurrence without clipping, which its recipe asks for",
)
def total_unclipped(seed: int) -> Training:
    return total(seed, None)
