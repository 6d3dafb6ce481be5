"""Sick trainings whose start values, penalties or batch statistics are wrong."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import Split, accuracy, digits, generator, regression
from benchmarks.zoo.tenth.b_common import (
    Classifier,
    Logged,
    adam,
    dense,
    r2_on,
    sgd,
    tones,
    topics,
)


def keras_kernels(module: nn.Module) -> None:
    """The initializers of a configuration file: kernels `constant`, biases `zeros`."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.constant_(module.weight, 0.02)
        nn.init.zeros_(module.bias)


def glorot_kernels(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


def configured(seed: int, initializer: Any) -> Training:
    task = digits(seed).to_images()
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 48),
        nn.ReLU(),
        nn.Linear(48, 10),
    )
    net.apply(initializer)
    return Training(Classifier(net, adam(2e-3)), task.train(32), task.accuracy, task.val(), {"max_epochs": 6})


@sick("tb-digits-kernels-of-config", "images", "bad-initialization", twin=lambda seed: configured(seed, glorot_kernels))
def digits_constant(seed: int) -> Training:
    return configured(seed, keras_kernels)


class Reader(LightningModule):
    """Embeds tokens, mixes them with a transformer layer and classifies the mean."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(300, 64)
        self.block = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.1, batch_first=True, norm_first=True)
        self.head = nn.Linear(64, 6)
        for weight in self.parameters():
            if weight.dim() > 1:
                nn.init.normal_(weight, std=std)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.block(self.embed(tokens)).mean(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss/train", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("loss/val", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=0.01)


def reader(seed: int, std: float) -> Training:
    task = topics(seed)
    return Training(Reader(std), task.train(32), task.accuracy, task.val(), {"max_epochs": 5})


@sick("tb-topic-reader-unit-normal", "text", "bad-initialization", twin=lambda seed: reader(seed, 0.05))
def reader_unit_normal(seed: int) -> Training:
    return reader(seed, 1.0)


class Mixer(nn.Module):
    """Residual convolutions over a signal, dropout after each."""

    def __init__(self, drop: float) -> None:
        super().__init__()
        self.stem = nn.Conv1d(1, 24, 9, 4, 4)
        self.convs = nn.ModuleList(nn.Conv1d(24, 24, 5, padding=2) for _ in range(3))
        self.drop = nn.Dropout(drop)
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for conv in self.convs:
            x = x + self.drop(F.relu(conv(x)))
        return self.head(self.drop(x.amax(-1)))


def keep_rate(seed: int, drop: float) -> Training:
    task = tones(seed, noise=1.0)
    module = Classifier(Mixer(drop), adam(2e-3))
    return Training(module, task.train(32), task.accuracy, task.val(), {"max_epochs": 8})


@sick("tb-tones-keep-rate-as-drop", "audio", "excess-regularization", twin=lambda seed: keep_rate(seed, 0.1))
def tones_keep_rate(seed: int) -> Training:
    return keep_rate(seed, 0.95)


class CountModel(LightningModule):
    """Poisson regression of counts with a small network and a ridge penalty written out."""

    def __init__(self, penalty: float) -> None:
        super().__init__()
        self.net = dense(8, 32, 32, 1, act=nn.SiLU)
        self.penalty = penalty

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, count = batch
        fit = F.poisson_nll_loss(self(x), count)
        ridge = sum(p.square().sum() for p in self.parameters())
        self.log_dict({"poisson": fit, "ridge": self.penalty * ridge})
        return fit + self.penalty * ridge

    def configure_optimizers(self) -> Any:
        return torch.optim.RMSprop(self.parameters(), lr=4e-3)


def counts(seed: int, penalty: float) -> Training:
    g = generator(seed, 240)
    x = torch.randn(3200, 8, generator=g)
    rate = torch.exp(0.7 * torch.tanh(x[:, :1] + x[:, 1:2]) + 0.6 * torch.sin(1.5 * x[:, 2:3]) + 0.8)
    y = torch.poisson(rate, generator=g)
    task = Split(x[:2400], y[:2400], x[2400:], y[2400:])

    def score(fitted: LightningModule) -> float:
        """Explained variance of the true log rate."""
        return r2_on(fitted, task.x_test, rate[2400:].log())

    return Training(CountModel(penalty), task.train(32), score, trainer={"max_epochs": 8})


@sick("tb-counts-ridge-on-the-sum", "tabular", "excess-regularization", twin=lambda seed: counts(seed, 1e-5))
def counts_ridge(seed: int) -> Training:
    return counts(seed, 0.1)


class PooledNet(nn.Module):
    """Convolutions, global pooling, then a normalised hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()
        )
        self.hidden = nn.Sequential(
            nn.Linear(32 * 4, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 48), nn.BatchNorm1d(48), nn.ReLU()
        )
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.features(x), 2)
        return self.head(self.hidden(x.flatten(1)))


def pooled(seed: int, batch_size: int, accumulate: int) -> Training:
    task = digits(seed).to_images()
    module = Classifier(PooledNet(), adam(2e-3))
    loader = task.train(batch_size, drop_last=True)
    return Training(module, loader, task.accuracy, task.val(), {"max_epochs": 5, "accumulate_grad_batches": accumulate})


@sick("tb-digits-two-at-a-time", "images", "batchnorm-small-batch", twin=lambda seed: pooled(seed, 32, 1))
def digits_two_at_a_time(seed: int) -> Training:
    return pooled(seed, 2, 16)


def remainder(seed: int, **options: Any) -> Training:
    task = regression(seed, r2=0.9, n=1217)
    net = nn.Sequential(nn.Linear(8, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, 1))
    module = Logged(net, nn.L1Loss(), adam(5e-3))
    return Training(module, task.train(64, **options), task.r2, task.val(), {"max_epochs": 12})


@sick("tb-table-of-1217-rows", "tabular", "batchnorm-small-batch", twin=lambda seed: remainder(seed, drop_last=True))
def table_remainder(seed: int) -> Training:
    return remainder(seed)


class SignalNet(nn.Module):
    """Normalised convolutions; the momentum comes from a configuration."""

    def __init__(self, momentum: float, classes: int) -> None:
        super().__init__()
        widths = [1, 16, 24, 32, 32]
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(nn.Conv1d(a, b, 7, 2, 3), nn.BatchNorm1d(b, momentum=momentum), nn.ReLU())
                for a, b in itertools.pairwise(widths)
            )
        )
        self.head = nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).mean(-1))


def signal_net(seed: int, momentum: float) -> Training:
    task = tones(seed, classes=6, noise=1.5)
    module = Classifier(SignalNet(momentum, 6), sgd(0.03, 0.9))
    return Training(module, task.train(40), task.accuracy, task.val(), {"max_epochs": 4})


@sick("tb-tones-momentum-of-tensorflow", "audio", "batchnorm-stale-statistics", twin=lambda seed: signal_net(seed, 0.1))
def tones_momentum(seed: int) -> Training:
    return signal_net(seed, 0.001)


class SensorNet(LightningModule):
    """Sensor rows to classes; the running statistics can be started afresh for each validation."""

    def __init__(self, fresh: bool) -> None:
        super().__init__()
        self.net = nn.Sequential(*self.block(12), *self.block(48), *self.block(48), nn.Linear(48, 6))
        self.restart = fresh

    @staticmethod
    def block(width: int) -> list[nn.Module]:
        return [nn.Linear(width, 48), nn.BatchNorm1d(48), nn.ReLU()]

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def on_validation_epoch_start(self) -> None:
        if self.restart:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm1d):
                    module.reset_running_stats()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits = self(batch[0])
        self.log_dict({"val_ce": F.cross_entropy(logits, batch[1]), "val_acc": accuracy(logits, batch[1])})

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def sensor_rows(seed: int, fresh: bool) -> Training:
    g = generator(seed, 241)
    n, classes = 2000, 6
    y = torch.randint(classes, (n,), generator=g)
    code = torch.randn(classes, 2, 12, generator=g)
    side = torch.randint(2, (n,), generator=g)
    x = code[y, side] + 0.8 * torch.randn(n, 12, generator=g)
    x = (x - x.mean(0)) / x.std(0)
    task = Split(x[:1500], y[:1500], x[1500:], y[1500:])
    return Training(SensorNet(fresh), task.train(50), task.accuracy, task.val(125), {"max_epochs": 8})


@sick(
    "tb-sensor-rows-fresh-statistics",
    "tabular",
    "batchnorm-stale-statistics",
    twin=lambda seed: sensor_rows(seed, False),
)
def sensor_rows_fresh(seed: int) -> Training:
    return sensor_rows(seed, True)
