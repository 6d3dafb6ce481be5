"""Training and evaluation mixed up, and BatchNorm with too little or too old statistics."""

from __future__ import annotations

import copy
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import Split
from benchmarks.zoo.unseen._common import Fit, adam, batches, friedman, held_out, sgd, shapes


def normed(classes: int = 4, width: int = 8, **options: Any) -> nn.Sequential:
    """Two convolutions with BatchNorm; `options` go to BatchNorm."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width, **options),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.BatchNorm2d(2 * width, **options),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * width, classes),
    )


# --- mode-mismatch ----------------------------------------------------------------------------------------------------


class Peeking(Fit):
    """Prints a prediction at the start of each epoch in evaluation mode, and stays there."""

    back = False
    sample: Tensor

    def on_train_epoch_start(self) -> None:
        self.eval()
        with torch.no_grad():
            self.shown = self(self.sample).argmax(1)
        if self.back:
            self.train()


@sick("u-peeks-and-stays-in-eval", "cnn", "mode-mismatch", "batchnorm-stale-statistics", twin=lambda s: peeks(s, True))
def peeks(seed: int, back: bool = False) -> Training:
    d = shapes(seed)
    d = Split(20 * d.x + 120, d.y, 20 * d.x_test + 120, d.y_test)
    module = Peeking(nn.Sequential(nn.BatchNorm2d(1), *normed()), F.cross_entropy, sgd(0.02, momentum=0.9))
    module.back, module.sample = back, d.x[:4]
    return Training(module, batches(d.x, d.y), d.accuracy, None, {"max_epochs": 8})


class AlwaysDropping(nn.Module):
    """`F.dropout` without `training=self.training` drops in evaluation too."""

    def __init__(self, right: bool) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(10, 128), nn.Linear(128, 128), nn.Linear(128, 1)
        self.right = right

    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, training=self.training) if self.right else F.dropout(x, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.drop(torch.relu(self.second(self.drop(torch.relu(self.first(x)))))))


@sick("u-functional-dropout-always-on", "mlp", "mode-mismatch", twin=lambda s: always_dropping(s, True))
def always_dropping(seed: int, right: bool = False) -> Training:
    d = friedman(seed)
    module = Fit(AlwaysDropping(right), F.mse_loss, adam(3e-3))
    return Training(module, batches(d.x, d.y), d.r2, held_out(d.x_test, d.y_test, 50), {"max_epochs": 15})


class Body(LightningModule):
    """A body with BatchNorm that is set to eval() as if it were pretrained, though it is trained from scratch."""

    def __init__(self, evaluating: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(30, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 48), nn.BatchNorm1d(48), nn.ReLU()
        )
        self.head = nn.Linear(48, 2)
        if evaluating:
            self.body.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


@sick(
    "u-body-in-eval-from-scratch", "mlp", "mode-mismatch", "batchnorm-stale-statistics", twin=lambda s: body(s, False)
)
def body(seed: int, evaluating: bool = True) -> Training:
    d = data.table("breast_cancer", seed)
    d = Split(0.01 * d.x, d.y, 0.01 * d.x_test, d.y_test)
    train = d.train(32, drop_last=True)
    return Training(Body(evaluating), train, d.accuracy, d.val(), {"max_epochs": 12})


# --- batchnorm-small-batch --------------------------------------------------------------------------------------------


@sick("u-batchnorm-of-two", "mlp", "batchnorm-small-batch", twin=lambda s: norm_of_two(s, 32))
def norm_of_two(seed: int, size: int = 2) -> Training:
    d = friedman(seed, n=600)
    net = nn.Sequential(
        nn.Linear(10, 48),
        nn.BatchNorm1d(48),
        nn.ReLU(),
        nn.Linear(48, 48),
        nn.BatchNorm1d(48),
        nn.ReLU(),
        nn.Linear(48, 1),
    )
    settings = {"max_epochs": 3 if size == 2 else 30}
    train = batches(d.x, d.y, size, drop_last=True)
    return Training(Fit(net, F.mse_loss, adam(2e-3)), train, d.r2, held_out(d.x_test, d.y_test), settings)


@sick("u-micro-batches-of-two", "mlp", "batchnorm-small-batch", twin=lambda s: micro(s, 32))
def micro(seed: int, size: int = 2) -> Training:
    d = data.digits(seed)
    net = nn.Sequential(
        nn.Linear(64, 64),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    settings = {"max_epochs": 4, "accumulate_grad_batches": 32 // size}
    module = Fit(net, F.cross_entropy, sgd(0.1, momentum=0.9))
    return Training(module, d.train(size, drop_last=True), d.accuracy, d.val(), settings)


@sick(
    "u-one-left-over",
    "mlp",
    "batchnorm-small-batch",
    note="raises at the last batch of the first epoch",
    twin=lambda s: left_over(s, True),
)
def left_over(seed: int, drop_last: bool = False) -> Training:
    d = data.digits(seed)
    net = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))
    module = Fit(net, F.cross_entropy, adam(3e-3))
    train = batches(d.x[:1281], d.y[:1281], 64, drop_last=drop_last)
    return Training(module, train, d.accuracy, None, {"max_epochs": 10})


# --- batchnorm-stale-statistics ---------------------------------------------------------------------------------------


@sick("u-batchnorm-momentum-tiny", "cnn", "batchnorm-stale-statistics", twin=lambda s: momentum_tiny(s, 0.1))
def momentum_tiny(seed: int, momentum: float = 1e-4) -> Training:
    d = shapes(seed)
    d = Split(4 * d.x + 3, d.y, 4 * d.x_test + 3, d.y_test)
    module = Fit(normed(momentum=momentum), F.cross_entropy, adam(5e-3))
    return Training(module, batches(d.x, d.y), d.accuracy, held_out(d.x_test, d.y_test), {"max_epochs": 8})


class Averaged(Fit):
    """Evaluates a running average of the weights; what is averaged is `parameters()`, or the buffers as well."""

    buffers_too = False

    def setup(self, stage: str) -> None:
        if not hasattr(self, "average"):
            self.average = copy.deepcopy(self.net).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) if self.training else self.average(x)

    def on_train_batch_end(self, *args: Any) -> None:
        with torch.no_grad():
            for mean, now in zip(self.average.parameters(), self.net.parameters(), strict=True):
                mean.lerp_(now, 0.1)
            if self.buffers_too:
                for mean, now in zip(self.average.buffers(), self.net.buffers(), strict=True):
                    mean.copy_(now)

    def configure_optimizers(self) -> Any:
        return self.make_optimizer(self.net.parameters())


@sick("u-average-without-buffers", "cnn", "batchnorm-stale-statistics", twin=lambda s: averaged(s, True))
def averaged(seed: int, buffers_too: bool = False) -> Training:
    d = shapes(seed)
    d = Split(3 * d.x + 4, d.y, 3 * d.x_test + 4, d.y_test)
    module = Averaged(normed(), F.cross_entropy, adam(5e-3))
    module.buffers_too = buffers_too
    return Training(module, batches(d.x, d.y), d.accuracy, held_out(d.x_test, d.y_test), {"max_epochs": 8})


class Restored(Fit):
    """Puts the running statistics of an older run back after each epoch, as a careless checkpoint hook does."""

    keep = False

    def on_fit_start(self) -> None:
        self.old = {k: v.clone() for k, v in self.named_buffers()}

    def on_train_epoch_end(self) -> None:
        if not self.keep:
            for name, buffer in self.named_buffers():
                buffer.copy_(self.old[name])


@sick("u-statistics-put-back", "mlp", "batchnorm-stale-statistics", twin=lambda s: put_back(s, True))
def put_back(seed: int, keep: bool = False) -> Training:
    d = friedman(seed)
    d = Split(2 * d.x + 5, d.y, 2 * d.x_test + 5, d.y_test)
    net = nn.Sequential(nn.BatchNorm1d(10), nn.Linear(10, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 1))
    module = Restored(net, F.mse_loss, sgd(0.05))
    module.keep = keep
    return Training(module, batches(d.x, d.y, 25), d.r2, held_out(d.x_test, d.y_test), {"max_epochs": 10})
