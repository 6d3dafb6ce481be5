"""Rates that change, rates that look odd, and runs short, early or loud, all of which end well."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, well
from benchmarks.zoo.unseen._common import (
    Fit,
    Recurrent,
    Tagger,
    adam,
    adamw,
    batches,
    conv_net,
    dense,
    factors,
    friedman,
    held_out,
    keyword,
    minus_loss,
    rings,
    series,
    sgd,
    shapes,
    token_loss,
    tokens,
)


class Planned(Fit):
    """Fit with a scheduler stepped after each optimizer step; `plan(optimizer, steps)` makes it."""

    def __init__(self, net: nn.Module, loss: Any, optimizer: Any, plan: Any) -> None:
        super().__init__(net, loss, optimizer)
        self.plan = plan

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.parameters())
        steps = int(self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.plan(optimizer, steps), "interval": "step"}}


@well("u-warmup-half-the-run", "transformer", "warm-up over half of the run, then linear to zero; accuracy 0.99")
def warmup(seed: int) -> Training:
    d = tokens(seed)

    def plan(optimizer: Any, steps: int) -> Any:
        return lr_scheduler.LambdaLR(optimizer, lambda k: min(k / (0.5 * steps), (steps - k) / (0.5 * steps)))

    module = Planned(Tagger(12, 3, pool=False), token_loss, adamw(0.02), plan)
    return Training(module, batches(d.x, d.y), d.accuracy, held_out(d.x_test, d.y_test), {"max_epochs": 14})


@well("u-cosine-to-nothing", "cnn", "the rate ends at exactly zero; accuracy 0.99")
def cosine(seed: int) -> Training:
    d = shapes(seed)
    plan = lambda o, steps: lr_scheduler.CosineAnnealingLR(o, steps, eta_min=0.0)  # noqa: E731
    module = Planned(conv_net(), F.cross_entropy, sgd(0.05, momentum=0.9), plan)
    return Training(module, batches(d.x, d.y), d.accuracy, held_out(d.x_test, d.y_test), {"max_epochs": 12})


@well("u-restarts-every-60", "mlp", "the loss jumps at each restart; R2 0.95")
def restarts(seed: int) -> Training:
    d = friedman(seed)
    plan = lambda o, _: lr_scheduler.CosineAnnealingWarmRestarts(o, 60)  # noqa: E731
    module = Planned(dense(10, 64, 1), F.mse_loss, adam(0.02), plan)
    return Training(module, batches(d.x, d.y), d.r2, held_out(d.x_test, d.y_test), {"max_epochs": 15})


@well("u-onecycle-peak-at-0.4", "mlp", "SGD with a peak rate of 0.4; accuracy 0.96")
def one_cycle(seed: int) -> Training:
    d = data.digits(seed)
    plan = lambda o, steps: lr_scheduler.OneCycleLR(o, 0.4, total_steps=steps, pct_start=0.3)  # noqa: E731
    module = Planned(dense(64, 64, 10), F.cross_entropy, sgd(0.04, momentum=0.8), plan)
    return Training(module, d.train(64), d.accuracy, d.val(), {"max_epochs": 14})


@well("u-drops-a-hundredfold-at-the-end", "lstm", "two milestones late in the run; R2 0.97")
def late_milestones(seed: int) -> Training:
    d = series(seed)
    plan = lambda o, steps: lr_scheduler.MultiStepLR(o, [int(0.7 * steps), int(0.9 * steps)], 0.1)  # noqa: E731
    module = Planned(Recurrent(nn.LSTM, 1, 24, 1), F.mse_loss, adam(0.01), plan)
    return Training(module, batches(d.x, d.y), d.r2, trainer={"max_epochs": 14})


class OnPlateau(Fit):
    """ReduceLROnPlateau over the validation loss; it acts after the task is done."""

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.parameters())
        scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=3)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}


@well("u-reduced-at-the-noise-floor", "mlp", "half of the variance is noise; R2 about 0.45 of 0.5")
def noise_floor(seed: int) -> Training:
    d = data.regression(seed, r2=0.5, n=3000)
    module = OnPlateau(dense(8, 24, 1), F.mse_loss, adam(3e-3, weight_decay=1e-4))
    return Training(module, d.train(64), d.r2, d.val(), {"max_epochs": 9})


@well("u-sgd-rate-of-three", "linear", "softmax regression of pixels in [0, 1] takes a rate of 3; accuracy 0.94")
def rate_three(seed: int) -> Training:
    d = data.digits(seed)
    return Training(
        Fit(nn.Linear(64, 10), F.cross_entropy, sgd(3.0)), d.train(128), d.accuracy, d.val(), {"max_epochs": 20}
    )


@well("u-rate-of-5e-4-on-sums", "linear", "the loss is a sum over 100 rows and 20 columns, the rate fits it; R2 0.9")
def small_rate_on_sums(seed: int) -> Training:
    d = factors(seed)
    loss = lambda out, y: (out - y).square().sum()  # noqa: E731
    net = nn.Sequential(nn.Linear(20, 4, bias=False), nn.Linear(4, 20))
    return Training(Fit(net, loss, sgd(5e-4)), batches(d.x, d.y, 50), d.r2, None, {"max_epochs": 25})


@well("u-momentum-099", "mlp", "momentum 0.99 with a small rate overshoots and settles; accuracy 0.95")
def momentum_099(seed: int) -> Training:
    d = data.digits(seed)
    module = Fit(dense(64, 48, 10), F.cross_entropy, sgd(0.005, momentum=0.99, nesterov=True))
    return Training(module, d.train(64), d.accuracy, d.val(), {"max_epochs": 25})


@well("u-pretrained-and-1e-5", "mlp", "already solved when it starts, tuned on at a rate of 1e-5; accuracy 0.99")
def tuned_on(seed: int) -> Training:
    d = rings(seed)
    net = dense(2, 64, 3)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(250):
        optimizer.zero_grad()
        F.cross_entropy(net(d.x), d.y).backward()
        optimizer.step()
    module = Fit(net, F.cross_entropy, adam(1e-5))
    return Training(module, batches(d.x, d.y), d.accuracy, held_out(d.x_test, d.y_test), {"max_epochs": 6})


@well("u-twenty-steps", "linear", "twenty steps are enough for well separated clouds; accuracy 0.97")
def twenty(seed: int) -> Training:
    d = data.blobs(seed, classes=3, columns=8, n=640, spread=4.0)
    module = Fit(nn.Linear(8, 3), F.cross_entropy, adam(0.05))
    return Training(module, d.train(32), d.accuracy, d.val(), {"max_epochs": 1})


@well("u-solved-then-forty-epochs", "cnn", "the loss is near zero after a quarter of the run; accuracy 0.99")
def long_after(seed: int) -> Training:
    d = shapes(seed, n=400)
    module = Fit(conv_net(), F.cross_entropy, adam(5e-3))
    return Training(module, batches(d.x, d.y), d.accuracy, held_out(d.x_test, d.y_test), {"max_epochs": 40})


@well("u-one-batch-sanity-run", "mlp", "overfit_batches=1 on purpose; the score is minus the loss on that batch")
def one_batch(seed: int) -> Training:
    d = data.digits(seed)
    train = batches(d.x[:32], d.y[:32], 32, shuffle=False)
    module = Fit(dense(64, 64, 10), F.cross_entropy, adam(3e-3))
    score = minus_loss(d.x[:32], d.y[:32], F.cross_entropy)
    return Training(module, train, score, None, {"overfit_batches": 1, "max_epochs": 120})


@well("u-clipped-nine-times-in-ten", "gru", "gradient_clip_val=0.25 acts on most steps of Adam; R2 0.97")
def often_clipped(seed: int) -> Training:
    d = series(seed)
    loss = lambda out, y: 20 * F.mse_loss(out, y)  # noqa: E731
    module = Fit(Recurrent(nn.GRU, 1, 24, 1), loss, adam(8e-3))
    return Training(module, batches(d.x, d.y), d.r2, trainer={"max_epochs": 10, "gradient_clip_val": 0.25})


@well("u-accumulates-eight", "cnn", "eight micro-batches of four to a step; accuracy 0.98")
def accumulates(seed: int) -> Training:
    d = shapes(seed)
    module = Fit(conv_net(), F.cross_entropy, adam(8e-3))
    settings = {"max_epochs": 8, "accumulate_grad_batches": 8}
    return Training(module, batches(d.x, d.y, 4), d.accuracy, held_out(d.x_test, d.y_test), settings)


class Curriculum(LightningModule):
    """Noise on the pictures grows with the epochs, so the loss rises while the net gets better."""

    def __init__(self) -> None:
        super().__init__()
        self.net = conv_net(width=12)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x + 0.08 * self.current_epoch * torch.randn_like(x)), y)
        self.log("train_loss", loss, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=4e-3)


@well(
    "u-curriculum-of-noise", "cnn", "the training loss rises by design; accuracy on fresh noisy pictures 0.8 and more"
)
def curriculum(seed: int) -> Training:
    d = shapes(seed, noise=0.2)
    g = data.generator(seed, 71)
    test = data.Split(d.x, d.y, d.x_test + 0.4 * torch.randn(d.x_test.shape, generator=g), d.y_test)
    return Training(Curriculum(), batches(d.x, d.y), test.accuracy, None, {"max_epochs": 12})


@well("u-bfloat16", "transformer", "bf16-mixed on the CPU; accuracy 0.99")
def bfloat16(seed: int) -> Training:
    d = keyword(seed)
    module = Fit(Tagger(20, 4, pool=True), F.cross_entropy, adamw(5e-3))
    settings = {"max_epochs": 7, "precision": "bf16-mixed"}
    return Training(module, batches(d.x, d.y), d.accuracy, held_out(d.x_test, d.y_test), settings)


@well("u-decay-of-a-tenth", "mlp", "AdamW with weight decay 0.1 and a warm-up; accuracy 0.96")
def sane_decay(seed: int) -> Training:
    d = data.digits(seed)
    plan = lambda o, steps: lr_scheduler.LambdaLR(o, lambda k: min(1.0, (k + 1) / 40))  # noqa: E731
    module = Planned(dense(64, 96, 10, act=nn.GELU), F.cross_entropy, adamw(4e-3, weight_decay=0.1), plan)
    return Training(module, d.train(32), d.accuracy, d.val(), {"max_epochs": 10})
