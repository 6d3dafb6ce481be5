"""Healthy runs on rows and pictures that look odd at first sight."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.case import Training, well
from benchmarks.zoo.data import Split, blobs, digits, flip_labels, generator, regression, table
from benchmarks.zoo.seventh._common import (
    Model,
    adam,
    adamw,
    balanced,
    iou,
    latent,
    loader,
    mlp,
    sales,
    scenes,
    sgd,
    small_cnn,
)


def rows(
    seed: int, d: Split, net: nn.Module, optimizers: Callable[..., Any], size: int = 50, **trainer: Any
) -> Training:
    module = Model(net, F.mse_loss, optimizers)
    return Training(module, d.train(size), d.r2, d.val(), {"max_epochs": 8, **trainer})


def classes(d: Split, net: nn.Module, optimizers: Callable[..., Any], size: int = 50, **trainer: Any) -> Training:
    module = Model(net, nn.CrossEntropyLoss(), optimizers)
    return Training(module, d.train(size), d.accuracy, d.val(), {"max_epochs": 8, **trainer})


@well("p-raw-into-norm", "regression", "inputs in the thousands meet a normalising layer first")
def raw_into_norm(seed: int) -> Training:
    d = sales(seed)
    d = Split(1500 * d.x + 6000, d.y, 1500 * d.x_test + 6000, d.y_test)
    return rows(seed, d, nn.Sequential(nn.BatchNorm1d(10), mlp(10, 64, 64, 3)), adam(4e-3), log_every_n_steps=10)


def warmed(seed: int) -> tuple[Split, nn.Sequential]:
    """A net that knows the digits upside down, for a task with the digits as they are."""
    d = digits(seed)
    net = mlp(64, 64, 10)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for k in range(150):
        rows_of = torch.arange(64 * k, 64 * k + 64) % len(d.x)
        optimizer.zero_grad()
        F.cross_entropy(net(d.x[rows_of] + 0.3 * d.x[rows_of].flip(1)), d.y[rows_of]).backward()
        optimizer.step()
    return d, net


@well("p-digits-tuned", "transfer", "a rate that is low and right, from weights that are nearly good")
def digits_tuned(seed: int) -> Training:
    d, net = warmed(seed)
    return classes(d, net, adamw(2e-4), 32, max_epochs=3)


@well("p-digits-tuned-short", "transfer", "sixty steps suffice")
def digits_tuned_short(seed: int) -> Training:
    d, net = warmed(seed)
    return classes(d, net, sgd(0.02, momentum=0.9), 32, max_steps=60, log_every_n_steps=1)


@well("p-digits-rate-one", "mlp", "plain gradient descent at a rate of 1 on a normalised net")
def digits_rate_one(seed: int) -> Training:
    d = digits(seed)
    net = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, 10))
    return classes(d, net, sgd(0.6), 64, max_epochs=8)


@well("p-rare-class-found", "table", "three of a hundred, and told apart")
def rare_class_found(seed: int) -> Training:
    d = blobs(seed, classes=2, n=3000, spread=4.0, shares=torch.tensor([0.97, 0.03]))
    module = Model(mlp(10, 32, 2), F.cross_entropy, adam(5e-3))
    return Training(module, d.train(50), lambda m: balanced(m, d), d.val(), {"max_epochs": 5})


@well("p-pairs-groupnorm", "cnn", "batches of two, normalised by groups")
def pairs_groupnorm(seed: int) -> Training:
    d = digits(seed).to_images()
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.GroupNorm(4, 16), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2), nn.GroupNorm(4, 16),
        nn.ReLU(), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip
    return classes(d, net, adam(1e-3), 2, max_epochs=-1, max_steps=600)


@well("p-masks-batchnorm-fours", "segmentation", "four pictures hold a thousand values a channel")
def masks_batchnorm_fours(seed: int) -> Training:
    d = scenes(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 5, padding=2), nn.BatchNorm2d(8),
        nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1),
    )  # fmt: skip
    module = Model(net, F.binary_cross_entropy_with_logits, adam(4e-3))
    return Training(module, d.train(4), lambda m: iou(m, d), d.val(50), {"max_epochs": 3})


class Half(LightningModule):
    """A frozen first half; only the head is handed to the optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(64, 256), nn.ReLU()).requires_grad_(False)
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = self.features(x)
        return self.head(h)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.head.parameters(), lr=0.01)


@well("p-random-features", "transfer", "the first layer is frozen by design")
def random_features(seed: int) -> Training:
    d = digits(seed)
    return Training(Half(), d.train(64), d.accuracy, trainer={"max_epochs": 8})


@well("p-digits-dropout-half", "mlp")
def digits_dropout_half(seed: int) -> Training:
    net = nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 128), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(128, 10),
    )  # fmt: skip
    return classes(digits(seed), net, adam(2e-3), 64, max_epochs=12)


@well("p-blobs-noisy-labels", "mlp", "three labels in ten are drawn anew; the loss cannot fall far")
def blobs_noisy_labels(seed: int) -> Training:
    d = blobs(seed, spread=3.5)
    train = loader(d.x, flip_labels(d.y, 0.3, 5, seed), 50)
    module = Model(mlp(10, 32, 5), F.cross_entropy, adam(3e-3))
    return Training(module, train, d.accuracy, trainer={"max_epochs": 4})


@well("p-patients-decay", "regression", "a heavy decay that the few rows need")
def patients_decay(seed: int) -> Training:
    d = table("diabetes", seed).map_targets(lambda y: y[:, None])
    return rows(seed, d, mlp(10, 64, 1), adamw(3e-3, weight_decay=3.0), 32, max_epochs=15)


@well("p-digits-adam-clip", "cnn", "a tight clip that Adam does not mind")
def digits_adam_clip(seed: int) -> Training:
    return classes(digits(seed).to_images(), small_cnn(10), adam(5e-3), 64, max_epochs=10, gradient_clip_val=0.05)


class Levels(LightningModule):
    """Denoising at a noise level drawn per batch, weighed by its precision: gradient norms span a thousandfold."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(25, 64, 24)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(torch.cat([x, torch.zeros(len(x), 1)], 1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, _ = batch
        level = 10 ** (-1.5 * torch.rand(()))
        out = self.net(torch.cat([x + level * torch.randn_like(x), level.expand(len(x), 1).log10()], 1))
        return F.mse_loss(out, x) / level**2

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@well("p-noise-levels", "self-supervised", "losses and gradients vary a thousandfold by design")
def noise_levels(seed: int) -> Training:
    d = latent(seed)
    return Training(Levels(), d.train(48), d.r2, trainer={"max_epochs": 12, "log_every_n_steps": 1})


@well("p-parity", "mlp", "a plateau that ends")
def parity(seed: int) -> Training:
    x = torch.randint(2, (2400, 8), generator=generator(seed, 92)) * 2.0 - 1
    y = (x[:, :3].prod(1) > 0).long()
    d = Split(x[:1600], y[:1600], x[1600:], y[1600:])
    return classes(d, mlp(8, 64, 64, 2), sgd(0.1, momentum=0.8), 40, max_epochs=12)


def scheduled(make: Callable[[Any], Any], lr: float) -> Callable[..., Any]:
    def build(parameters: Any) -> Any:
        optimizer = torch.optim.AdamW(parameters, lr=lr)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": make(optimizer), "interval": "step"}}

    return build


@well("p-orders-restarts", "regression", "the rate jumps back, and the loss with it")
def orders_restarts(seed: int) -> Training:
    make = scheduled(lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 60), 0.01)
    return rows(seed, sales(seed), mlp(10, 64, 64, 3), make, max_steps=240, max_epochs=-1)


@well("p-digits-long-warmup", "mlp", "half of the run is warm-up")
def digits_long_warmup(seed: int) -> Training:
    make = scheduled(lambda o: torch.optim.lr_scheduler.LinearLR(o, 1e-3, 1.0, 130), 0.01)
    return classes(digits(seed), mlp(64, 64, 10), make, 64, max_steps=260, max_epochs=-1)


@well("p-low-rank", "autoencoder", "linear layers one on another make the rank low on purpose")
def low_rank(seed: int) -> Training:
    g = generator(seed, 93)
    x = torch.randn(1800, 3, generator=g) @ torch.randn(3, 16, generator=g) / 1.7
    x = x + 0.1 * torch.randn(1800, 16, generator=g)
    d = Split(x[:1200], x[:1200], x[1200:], x[1200:])
    return rows(seed, d, nn.Sequential(nn.Linear(16, 3, bias=False), nn.Linear(3, 16)), adam(0.01), 40, max_epochs=10)


class Highway(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.change, self.gate = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.constant_(self.gate.bias, -2.0)

    def forward(self, x: Tensor) -> Tensor:
        share = self.gate(x).sigmoid()
        return share * self.change(x).relu() + (1 - share) * x


@well("p-highway", "mlp", "gates that begin nearly shut")
def highway(seed: int) -> Training:
    net = nn.Sequential(nn.Linear(10, 48), *(Highway(48) for _ in range(5)), nn.Linear(48, 3))
    return rows(seed, sales(seed), net, adam(4e-3))


@well("p-wide-relu", "mlp", "a wide layer of which each sample uses a part")
def wide_relu(seed: int) -> Training:
    return classes(digits(seed), mlp(64, 400, 10), adam(2e-3), 64, max_epochs=8, log_every_n_steps=1)


@well("p-digits-eighths", "mlp", "eight small batches to a step")
def digits_eighths(seed: int) -> Training:
    return classes(digits(seed), mlp(64, 64, 10), adam(5e-3), 8, max_epochs=8, accumulate_grad_batches=8)


class InUnits(LightningModule):
    """Learns standardised amounts, answers and validates in the unit of the data."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.net, self.mean, self.std = mlp(8, 48, 1), mean, std

    def forward(self, x: Tensor) -> Tensor:
        return self.mean + self.std * self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self.net(x), (y - self.mean) / self.std)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", F.mse_loss(self(x), y))

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(self.parameters(), lr=5e-3)]


@well("p-rents", "regression", "targets in thousands, scaled inside; validation is in the square of the unit")
def rents(seed: int) -> Training:
    d = regression(seed, r2=0.9).map_targets(lambda y: 900 * y + 7000)
    return Training(InUnits(7000.0, 900.0), d.train(50), d.r2, d.val(), {"max_epochs": 6, "val_check_interval": 0.5})


@well("p-easy-first", "mlp", "the order of the rows is a curriculum")
def easy_first(seed: int) -> Training:
    d = blobs(seed, n=2500)
    centres = torch.stack([d.x[d.y == k].mean(0) for k in range(5)])
    order = (d.x - centres[d.y]).norm(dim=1).argsort()
    train = loader(d.x[order], d.y[order], 50, shuffle=False)
    return Training(Model(mlp(10, 32, 5), F.cross_entropy, adam(3e-3)), train, d.accuracy, d.val(), {"max_epochs": 4})


@well("p-padded-columns", "table", "six columns that never change stand beside ten that matter")
def padded_columns(seed: int) -> Training:
    d = sales(seed)
    d = Split(F.pad(d.x, (0, 6)), d.y, F.pad(d.x_test, (0, 6)), d.y_test)
    return rows(seed, d, mlp(16, 64, 64, 3), adam(4e-3))


@well("p-counted-items", "regression", "whole numbers that are amounts")
def counted_items(seed: int) -> Training:
    g = generator(seed, 94)
    x = torch.randint(0, 7, (2000, 5), generator=g).float()
    y = (x @ torch.tensor([0.5, 0.3, -0.4, 0.1, 0.2]) + 0.1 * x[:, 0] * x[:, 1] - 1)[:, None]
    y = (y - y.mean()) / y.std() + 0.1 * torch.randn(2000, 1, generator=g)
    return rows(seed, Split(x[:1400], y[:1400], x[1400:], y[1400:]), mlp(5, 48, 1), adam(3e-3))


class Masked(nn.Module):
    """Missing values are put at 0 and told apart by a second set of columns."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(20, 64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(torch.cat([x.nan_to_num(0.0), x.isnan().float()], 1))


@well("p-questionnaire", "regression", "the model knows what to do with a missing value")
def questionnaire(seed: int) -> Training:
    d = sales(seed)
    holes = [torch.rand(x.shape, generator=generator(seed, 95)) < 0.05 for x in (d.x, d.x_test)]
    d = Split(d.x.masked_fill(holes[0], torch.nan), d.y, d.x_test.masked_fill(holes[1], torch.nan), d.y_test)
    return rows(seed, d, Masked(), adam(5e-3))


class Spread(Model):
    """A mean and a spread; the likelihood's logarithm makes the loss negative."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        mean, spread = self.net(x).chunk(2, 1)
        loss = F.gaussian_nll_loss(mean, y, F.softplus(spread) + 1e-4)
        self.log("train_nll", loss, prog_bar=True)
        return loss

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[:, :1]


@well("p-mean-and-spread", "regression", "the loss goes below zero")
def mean_and_spread(seed: int) -> Training:
    d = regression(seed, r2=0.97).map_targets(lambda y: 0.3 * y)
    return Training(Spread(mlp(8, 64, 2), F.mse_loss, adam(4e-3)), d.train(50), d.r2, trainer={"max_epochs": 8})


@well("p-digits-bf16", "cnn")
def digits_bf16(seed: int) -> Training:
    return classes(digits(seed).to_images(), small_cnn(10), adam(5e-3), 64, max_epochs=8, precision="bf16-mixed")


class Many(LightningModule):
    """Two sets of rows with a head each, from two loaders at once."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.kind, self.amount = mlp(10, 48, 48), nn.Linear(48, 5), nn.Linear(48, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.kind(self.trunk(x).relu())

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        x, y = batch["kinds"]
        loss = F.cross_entropy(self(x), y)
        x, y = batch["amounts"]
        return loss + 0.5 * F.mse_loss(self.amount(self.trunk(x).relu()), y)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        x, y = batch
        loss = F.mse_loss(self.amount(self.trunk(x).relu()), y) if dataloader_idx else F.cross_entropy(self(x), y)
        self.log("val_loss", loss)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@well("p-two-loaders", "multi-task")
def two_loaders(seed: int) -> Training:
    a, b = blobs(seed, n=1500), sales(seed)
    return Training(
        Many(), {"kinds": a.train(50), "amounts": b.train(50)}, a.accuracy, [a.val(), b.val()], {"max_epochs": 7}
    )


class Soft(Model):
    """Rows and labels are mixed in pairs."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        share, order = torch.distributions.Beta(0.4, 0.4).sample().item(), torch.randperm(len(x))
        target = F.one_hot(y, 10).float()
        mixed = share * target + (1 - share) * target[order]
        return F.cross_entropy(self(share * x + (1 - share) * x[order]), mixed)


@well("p-mixed-pairs", "mlp", "the training loss stays above the validation loss")
def mixed_pairs(seed: int) -> Training:
    d = digits(seed)
    return Training(
        Soft(mlp(64, 96, 10), F.cross_entropy, adam(3e-3)), d.train(64), d.accuracy, d.val(), {"max_epochs": 10}
    )


class Averaged(Model):
    """Judged by a running average of the weights, which takes no gradient."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.shadow = copy.deepcopy(self.net).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.net if self.training else self.shadow)(x)

    def on_train_batch_end(self, *_: Any) -> None:
        with torch.no_grad():
            for slow, p in zip(self.shadow.parameters(), self.net.parameters(), strict=True):
                slow.lerp_(p, 0.05)


@well("p-running-average", "mlp", "half of the parameters never receive a gradient")
def running_average(seed: int) -> Training:
    d = blobs(seed, n=2500)
    return Training(Averaged(mlp(10, 32, 5), F.cross_entropy, adam(4e-3)), d.train(50), d.accuracy, d.val(),
                    {"max_epochs": 5})  # fmt: skip
