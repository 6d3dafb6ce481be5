"""Everyday trainings in many families, as tutorials and colleagues hold them."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, well
from benchmarks.zoo.ninth._common import (
    Bag,
    Bare,
    Factors,
    Last,
    Learner,
    Messages,
    Reader,
    adam,
    adamw,
    balanced,
    bce,
    calls,
    ce,
    cnn,
    colonies,
    conv1d,
    dice,
    first_word,
    frozen_order,
    furnace,
    loader,
    minus,
    mlp,
    molecules,
    mse,
    notes,
    pulses,
    ratings,
    sgd,
    surveys,
    tides,
    unet,
)


def fit(
    net: nn.Module, d: Any, loss: Any, optimizer: Any, score: Any = None, size: int = 32, **settings: Any
) -> Training:
    """A Learner with a validation set."""
    val = frozen_order(d.x_test, d.y_test)
    return Training(Learner(net, loss, optimizer), loader(d.x, d.y, size=size), score or d.accuracy, val, settings)


# --- usual ones -------------------------------------------------------------------------------------------------------


@well("n-digits-cnn-adam", "cnn")
def digits_cnn(seed: int) -> Training:
    return fit(cnn(), data.digits(seed).to_images(), ce, adam(2e-3), max_epochs=6)


@well("n-surveys-three-layers", "mlp")
def surveys_layers(seed: int) -> Training:
    return fit(mlp(10, 64, 64, 3), surveys(seed), ce, adamw(3e-3), max_epochs=7, log_every_n_steps=1)


@well("n-pulses-batchnorm", "cnn1d")
def pulses_norm(seed: int) -> Training:
    net = conv1d(width=16)
    net.insert(1, nn.BatchNorm1d(16))
    return fit(net, pulses(seed), ce, adam(3e-3), max_epochs=6, val_check_interval=0.5)


@well("n-notes-mean-of-words", "text")
def notes_mean(seed: int) -> Training:
    return fit(Bag(), notes(seed), ce, adam(5e-3), max_epochs=6, log_every_n_steps=10)


@well("n-first-word-lstm", "lstm")
def first_lstm(seed: int) -> Training:
    d = first_word(seed, length=8)
    return fit(Last(nn.LSTM, 12, 32, 4, symbols=16), d, ce, adam(1e-2), max_epochs=8, gradient_clip_val=1.0)


@well("n-tides-two-layer-gru", "forecast")
def tides_gru(seed: int) -> Training:
    d = tides(seed)
    return fit(Last(nn.GRU, 1, 20, 1, num_layers=2), d, mse, adam(5e-3), d.r2, max_epochs=6)


@well("n-shoppers-factors", "recommender")
def shoppers(seed: int) -> Training:
    d = ratings(seed)
    return fit(Factors(), d, mse, adamw(0.02, weight_decay=0.01), d.r2, size=128, max_epochs=8)


@well("n-molecules-two-rounds", "graph")
def molecules_rounds(seed: int) -> Training:
    d, a, a_test = molecules(seed)
    score = minus(mse, d.x_test, a_test, d.y_test)
    val = frozen_order(d.x_test, a_test, d.y_test)
    return Training(Learner(Messages(), mse, adam(5e-3)), loader(d.x, a, d.y), score, val, {"max_epochs": 8})


class Segment(Bare):
    rate = 5e-3

    def __init__(self) -> None:
        super().__init__()
        self.net = unet()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def step(self, batch: Any, stage: str) -> Tensor:
        x, mask = batch
        out = self(x)
        p = torch.sigmoid(out)
        overlap = 1 - (2 * (p * mask).sum() + 1) / (p.sum() + mask.sum() + 1)
        loss = bce(out, mask) + overlap
        self.log(f"{stage}/loss", loss)
        self.log(f"{stage}/dice", 1 - overlap)
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.step(batch, "train")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.step(batch, "val")


@well("n-colonies-entropy-and-overlap", "segmentation")
def colonies_both(seed: int) -> Training:
    d = colonies(seed)
    score = lambda m: dice(data.predict(m, d.x_test), d.y_test)  # noqa: E731
    return Training(Segment(), loader(d.x, d.y), score, frozen_order(d.x_test, d.y_test), {"max_epochs": 7})


class Vae(Bare):
    rate = 2e-3

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp(64, 64, 16), mlp(8, 64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.decoder(self.encoder(x)[:, :8]))

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        mean, log_var = self.encoder(batch[0]).chunk(2, 1)
        z = mean + torch.randn_like(mean) * (0.5 * log_var).exp()
        rebuild = F.binary_cross_entropy_with_logits(self.decoder(z), batch[0], reduction="none").sum(1).mean()
        kl = -0.5 * (1 + log_var - mean**2 - log_var.exp()).sum(1).mean()
        self.log("kl", kl)
        return {"loss": rebuild + kl, "rebuild": rebuild.detach()}


@well("n-digits-variational", "vae")
def digits_vae(seed: int) -> Training:
    d = data.digits(seed)
    return Training(Vae(), loader(d.x, size=64), minus(mse, d.x_test, d.x_test), trainer={"max_epochs": 10})


class Noised(Bare):
    """A denoiser of digits."""

    rate = 2e-3

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
        self.net.append(nn.Conv2d(16, 1, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.l1_loss(self(batch[0] + 0.4 * torch.randn_like(batch[0])), batch[0])
        self.log("l1", loss, prog_bar=True)
        return loss


@well("n-digits-denoised", "denoising")
def digits_denoised(seed: int) -> Training:
    d = data.digits(seed).to_images()
    noisy = d.x_test + 0.4 * torch.randn(d.x_test.shape, generator=data.generator(seed, 3))
    return Training(Noised(), loader(d.x), minus(F.l1_loss, noisy, d.x_test), trainer={"max_epochs": 5})


@well("n-calls-poisson", "count")
def calls_poisson(seed: int) -> Training:
    d = calls(seed)
    loss = lambda out, y: F.poisson_nll_loss(out[:, 0], y)  # noqa: E731
    return fit(mlp(5, 48, 1), d, loss, adam(5e-3), minus(loss, d.x_test, d.y_test), max_epochs=6)


class Spell(Bare):
    rate = 3e-3

    def __init__(self, symbols: int) -> None:
        super().__init__()
        self.net = Reader(symbols, symbols, causal=True)

    def forward(self, ids: Tensor) -> Tensor:
        return self.net(ids)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (ids,) = batch
        loss = ce(self(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        self.log("train_loss", loss)
        return loss


@well("n-letters-causal", "language")
def letters_causal(seed: int) -> Training:
    t = data.characters(seed, n=1200)
    score = lambda m: -ce(data.predict(m, t.test[:, :-1]).transpose(1, 2), t.test[:, 1:]).item()  # noqa: E731
    return Training(Spell(t.symbols), loader(t.train), score, trainer={"max_epochs": 5, "gradient_clip_val": 1.0})


class Table(LightningDataModule):
    def __init__(self, d: data.Split, size: int) -> None:
        super().__init__()
        self.d, self.size = d, size

    def train_dataloader(self) -> Any:
        return self.d.train(self.size, drop_last=True)

    def val_dataloader(self) -> Any:
        return self.d.val()


@well("n-cancer-datamodule", "mlp")
def cancer_module(seed: int) -> Training:
    d = data.table("breast_cancer", seed)
    module = Learner(nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 2)), ce, adam(2e-3))
    return Training(module, Table(d, 16), d.accuracy, None, {"max_epochs": 8})


class Shared(Bare):
    """A digit, and whether it is even."""

    rate = 3e-3

    def __init__(self) -> None:
        super().__init__()
        self.body, self.digit, self.even = mlp(64, 64, 32), nn.Linear(32, 10), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.digit(torch.relu(self.body(x)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        h = torch.relu(self.body(x))
        first, second = ce(self.digit(h), y), bce(self.even(h)[:, 0], (y % 2 == 0).float())
        self.log_dict({"digit": first, "even": second})
        return first + 0.5 * second


@well("n-digits-and-even-or-odd", "multitask")
def digits_even(seed: int) -> Training:
    d = data.digits(seed)
    return Training(Shared(), loader(d.x, d.y), d.accuracy, None, {"max_epochs": 6, "precision": "bf16-mixed"})


# --- short ones -------------------------------------------------------------------------------------------------------


@well("n-wine-thirty-six-steps", "mlp")
def wine_short(seed: int) -> Training:
    return fit(mlp(13, 32, 3), data.table("wine", seed), ce, adam(1e-2), size=16, max_epochs=4)


@well("n-iris-forty-steps", "mlp")
def iris_short(seed: int) -> Training:
    return fit(mlp(4, 16, 3), data.table("iris", seed), ce, adam(2e-2), size=16, max_steps=40)


@well("n-blobs-twenty-steps", "mlp")
def blobs_short(seed: int) -> Training:
    return fit(mlp(10, 32, 5), data.blobs(seed, spread=3.0), ce, adam(1e-2), size=128, max_steps=22)


@well("n-digits-sixty-steps", "mlp")
def digits_short(seed: int) -> Training:
    return fit(mlp(64, 64, 10), data.digits(seed), ce, adam(5e-3), max_steps=60, log_every_n_steps=1)


@well("n-gauges-eighty-steps", "regression")
def gauges_short(seed: int) -> Training:
    d = furnace(seed)
    return fit(mlp(6, 64, 64, 3), d, mse, adam(1e-2), d.r2, size=64, max_steps=80)


@well("n-cancer-logistic-in-four-passes", "linear")
def cancer_short(seed: int) -> Training:
    return fit(nn.Linear(30, 2), data.table("breast_cancer", seed), ce, sgd(0.1), max_epochs=4)


@well("n-moons-seventy-steps", "mlp")
def moons_short(seed: int) -> Training:
    return fit(mlp(2, 32, 32, 2), data.moons(seed), ce, adam(1e-2), max_steps=70)


@well("n-tides-seventy-two-steps", "forecast")
def tides_short(seed: int) -> Training:
    d = tides(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 1))
    return fit(net, d, mse, adam(1e-2), d.r2, max_steps=72)


# --- plain descent ----------------------------------------------------------------------------------------------------


@well("n-digits-momentum", "cnn")
def digits_momentum(seed: int) -> Training:
    return fit(cnn(), data.digits(seed).to_images(), ce, sgd(0.05, momentum=0.9), max_epochs=6)


@well("n-surveys-nesterov", "mlp")
def surveys_nesterov(seed: int) -> Training:
    recipe = sgd(0.05, momentum=0.9, nesterov=True, weight_decay=1e-4)
    return fit(mlp(10, 64, 64, 3), surveys(seed), ce, recipe, max_epochs=9)


@well("n-gauges-descent", "regression")
def gauges_descent(seed: int) -> Training:
    d = furnace(seed)
    return fit(mlp(6, 64, 3, act=nn.Tanh), d, mse, sgd(0.1, momentum=0.9), d.r2, max_epochs=9)


@well("n-wine-softmax-regression", "linear")
def wine_descent(seed: int) -> Training:
    return fit(nn.Linear(13, 3), data.table("wine", seed), ce, sgd(0.1), size=16, max_epochs=12, log_every_n_steps=10)


@well("n-pulses-momentum", "cnn1d")
def pulses_descent(seed: int) -> Training:
    return fit(conv1d(width=16), pulses(seed), ce, sgd(0.05, momentum=0.9), max_epochs=10)


@well("n-notes-descent", "text")
def notes_descent(seed: int) -> Training:
    return fit(Bag(), notes(seed), ce, sgd(0.5, momentum=0.9), max_epochs=8)


# --- a middling score is the best -------------------------------------------------------------------------------------


@well("n-diabetes-small-net", "regression")
def diabetes(seed: int) -> Training:
    d = data.table("diabetes", seed)
    loss = lambda out, y: mse(out[:, 0], y)  # noqa: E731
    return fit(mlp(10, 16, 1), d, loss, sgd(0.02, momentum=0.5, weight_decay=1e-3), d.r2, max_epochs=10)


@well("n-a-third-explained", "regression")
def third(seed: int) -> Training:
    d = data.regression(seed, r2=0.35)
    return fit(mlp(8, 32, 1), d, mse, adam(3e-3), d.r2, size=64, max_epochs=6)


@well("n-blobs-that-overlap", "mlp")
def blobs_overlap(seed: int) -> Training:
    return fit(mlp(10, 24, 5), data.blobs(seed, spread=1.2), ce, adam(3e-3), size=64, max_epochs=5)


@well("n-digits-a-third-relabelled", "mlp")
def digits_relabelled(seed: int) -> Training:
    d = data.digits(seed)
    y = data.flip_labels(d.y, 0.33, 10, seed)
    module = Learner(mlp(64, 32, 10), ce, adam(2e-3))
    return Training(module, loader(d.x, y), d.accuracy, trainer={"max_epochs": 6})


@well("n-surveys-careless-answers", "mlp")
def surveys_noise(seed: int) -> Training:
    d = surveys(seed, n=2500)
    y, y_test = (data.flip_labels(t, 0.4, 3, seed + 9) for t in (d.y, d.y_test))
    return fit(mlp(10, 32, 3), data.Split(d.x, y, d.x_test, y_test), ce, adam(4e-3), size=64, max_epochs=6)


@well("n-gauges-behind-noise", "regression")
def gauges_noise(seed: int) -> Training:
    d = furnace(seed, n=4000, noise=0.8)
    return fit(mlp(6, 32, 32, 3), d, F.smooth_l1_loss, adam(5e-3), d.r2, size=64, max_epochs=5)


# --- mild imbalance ---------------------------------------------------------------------------------------------------


@well("n-blobs-five-to-one", "mlp")
def blobs_shares(seed: int) -> Training:
    d = data.blobs(seed, shares=torch.tensor([5.0, 3.0, 2.0, 1.0, 1.0]))
    return fit(mlp(10, 32, 5), d, ce, adam(5e-3), lambda m: balanced(m, d.x_test, d.y_test), size=64, max_epochs=5)


@well("n-digits-is-it-a-seven", "cnn")
def digits_seven(seed: int) -> Training:
    d = data.digits(seed).to_images().map_targets(lambda y: (y == 7).long())
    return fit(cnn(2), d, ce, adam(3e-3), lambda m: balanced(m, d.x_test, d.y_test), max_epochs=4)


@well("n-cancer-weighed", "mlp")
def cancer_weighed(seed: int) -> Training:
    d = data.table("breast_cancer", seed)
    weight = 1 / torch.bincount(d.y).float()
    loss = lambda out, y: F.cross_entropy(out, y, weight=weight / weight.sum())  # noqa: E731
    return fit(mlp(30, 24, 2), d, loss, adam(2e-3), size=16, max_epochs=6)


@well("n-notes-two-rare-topics", "text")
def notes_rare(seed: int) -> Training:
    d = notes(seed, n=2000)
    keep = (d.y < 3) | (torch.arange(len(d.y)) % 4 == 0)
    d = data.Split(d.x[keep], d.y[keep], d.x_test, d.y_test)
    return fit(Bag(), d, ce, adam(5e-3), max_epochs=7)


# --- bodies that have been trained before -----------------------------------------------------------------------------


def trained(net: nn.Module, x: Tensor, y: Tensor, steps: int = 60) -> nn.Module:
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        ce(net(x), y).backward()
        optimizer.step()
    return net


@well("n-digits-new-head-two-rates", "finetune")
def tuned_rates(seed: int) -> Training:
    d = data.digits(seed)
    net: Any = trained(mlp(64, 64, 32, 2), d.x, d.y % 2)
    net[-1] = nn.Linear(32, 10)

    def recipe(m: Any) -> Any:
        return torch.optim.AdamW(
            [{"params": m.net[:-1].parameters(), "lr": 1e-3}, {"params": m.net[-1].parameters()}], 1e-2
        )

    return fit(net, d, ce, recipe, max_epochs=5)


@well("n-digits-probe", "finetune")
def tuned_probe(seed: int) -> Training:
    d = data.digits(seed).to_images()
    net: Any = trained(cnn(), d.x.flip(3), d.y)
    for p in net[:-1].parameters():
        p.requires_grad_(False)
    net[-1] = nn.Linear(256, 10)
    recipe = lambda m: torch.optim.Adam(m.net[-1].parameters(), lr=5e-3)  # noqa: E731
    return fit(net, d, ce, recipe, max_epochs=5)


@well("n-pulses-go-on-gently", "finetune")
def tuned_pulses(seed: int) -> Training:
    old, d = pulses(seed + 100), pulses(seed)
    net = trained(conv1d(), old.x, old.y, 80)
    return fit(net, data.Split(0.8 * d.x, d.y, 0.8 * d.x_test, d.y_test), ce, adamw(3e-4), max_epochs=5)


@well("n-notes-table-from-before", "finetune")
def tuned_notes(seed: int) -> Training:
    old, d = notes(seed + 100), notes(seed)
    net: Any = trained(Bag(), old.x, old.y, 30)
    net.bag.weight.requires_grad_(False)
    return fit(net, d, ce, adam(2e-3), max_epochs=5)


# --- schedules --------------------------------------------------------------------------------------------------------


class Cycle(Learner):
    """One cycle over the estimated number of steps."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        total = int(self.trainer.estimated_stepping_batches)
        cycle = lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}


@well("n-surveys-one-cycle", "mlp")
def surveys_cycle(seed: int) -> Training:
    d = surveys(seed)
    module = Cycle(mlp(10, 64, 64, 3), ce, adam())
    return Training(module, loader(d.x, d.y), d.accuracy, frozen_order(d.x_test, d.y_test), {"max_epochs": 7})


@well("n-pulses-warm-restarts", "cnn1d")
def pulses_restarts(seed: int) -> Training:
    def recipe(m: nn.Module) -> Any:
        optimizer = torch.optim.Adam(m.parameters(), lr=5e-3)
        return [optimizer], [lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 3)]

    return fit(conv1d(), pulses(seed), ce, recipe, max_epochs=9)


@well("n-gauges-watched-loss", "regression")
def gauges_watched(seed: int) -> Training:
    d = furnace(seed)

    def recipe(m: nn.Module) -> Any:
        optimizer = torch.optim.Adam(m.parameters(), lr=1e-2)
        plateau = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=2)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}

    return fit(mlp(6, 48, 48, 3), d, mse, recipe, d.r2, size=48, max_epochs=12)


@well("n-first-word-warm-then-cosine", "transformer")
def first_cosine(seed: int) -> Training:
    total = 7 * 32

    def rate(s: int) -> float:
        return s / 25 if s < 25 else 0.5 * (1 + math.cos(math.pi * (s - 25) / (total - 25)))

    def recipe(m: nn.Module) -> Any:
        optimizer = torch.optim.AdamW(m.parameters(), lr=3e-3)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": lr_scheduler.LambdaLR(optimizer, rate), "interval": "step"},
        }

    return fit(Reader(16, 4), first_word(seed), ce, recipe, max_epochs=7)
