"""Layers, starting weights, penalties, modes and normalisation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo import data
from benchmarks.zoo.case import Training
from benchmarks.zoo.ninth._common import (
    Bag,
    Bare,
    Factors,
    Learner,
    adam,
    bce,
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
    mse,
    notes,
    pulses,
    ratings,
    sgd,
    sick,
    surveys,
    tides,
)


def plain(
    net: nn.Module, d: Any, loss: Any, optimizer: Any, epochs: int, score: Any = None, **settings: Any
) -> Training:
    """Batches of 32 with a validation set."""
    module = Learner(net, loss, optimizer)
    val = frozen_order(d.x_test, d.y_test)
    return Training(module, loader(d.x, d.y), score or d.accuracy, val, {"max_epochs": epochs, **settings})


# --- gradients that fade ----------------------------------------------------------------------------------------------


@sick("n-digits-through-a-narrow-place", "autoencoder", "vanishing-gradients", note="eight layers of sigmoids")
def rows_squash(seed: int, ill: bool) -> Training:
    d = data.digits(seed)
    act = nn.Sigmoid if ill else nn.Tanh
    widths = (64, 32, 32, 32, 16, 32, 32, 32, 64)
    module = Learner(mlp(*widths, act=act), mse, adam(4e-3))
    return Training(module, loader(d.x, d.x), minus(mse, d.x_test, d.x_test), trainer={"max_epochs": 8})


class Skips(nn.Module):
    """Convolutions over time; in one form each adds to what came before."""

    def __init__(self, skip: bool, depth: int = 10) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, 12, 5, padding=2)
        self.blocks = nn.ModuleList(nn.Conv1d(12, 12, 5, padding=2) for _ in range(depth))
        self.out, self.skip = nn.Linear(12, 4), skip

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        for block in self.blocks:
            new = torch.sigmoid(block(h))
            h = h + new if self.skip else new
        return self.out(h.mean(-1))


@sick("n-pulses-sum-left-out", "cnn1d", "vanishing-gradients", note="the shortcut is not added")
def pulses_sum(seed: int, ill: bool) -> Training:
    return plain(Skips(not ill), pulses(seed), ce, adam(3e-3), 7)


class Steps(nn.Module):
    """A plain recurrence over eighteen steps; its answer is of the first."""

    def __init__(self, gated: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 16)
        self.rnn = nn.GRU(16, 32, batch_first=True) if gated else nn.RNN(16, 32, batch_first=True)
        self.out = nn.Linear(32, 4)
        if not gated:
            nn.init.normal_(self.rnn.weight_hh_l0, std=0.05 / math.sqrt(32))

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.rnn(self.table(ids))[0][:, -1])


@sick("n-first-word-and-far-to-go", "rnn", "vanishing-gradients", note="a shrinking recurrence forgets the beginning")
def first_far(seed: int, ill: bool) -> Training:
    return plain(Steps(not ill), first_word(seed, length=18), ce, adam(5e-3), 14)


# --- units ------------------------------------------------------------------------------------------------------------


def start(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.uniform_(module.weight, -0.3, 0.0)


@sick(
    "n-digits-one-sided-filters",
    "cnn",
    "dead-activations",
    "bad-initialization",
    note="uniform(-a, 0) over pixels that are never negative",
)
def digits_one_sided(seed: int, ill: bool) -> Training:
    d = data.digits(seed).to_images()
    net = cnn()
    if ill:
        net.apply(start)
    return plain(net, d, ce, adam(2e-3), 4)


class Gate(nn.Module):
    """Lets through what lies above a level that is learnt."""

    def __init__(self, columns: int, level: float) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.full((columns,), level))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x - self.level)


@sick("n-surveys-level-set-high", "mlp", "dead-activations", note="a learnt level that starts above all values")
def surveys_level(seed: int, ill: bool) -> Training:
    level = 4.0 if ill else 0.0
    net = nn.Sequential(nn.Linear(10, 48), Gate(48, level), nn.Linear(48, 48), Gate(48, level / 8), nn.Linear(48, 3))
    return plain(net, surveys(seed), ce, adam(3e-3), 6)


@sick("n-gauges-gain-of-the-fan", "regression", "saturated-activations", "bad-initialization", note="x fan, not / fan")
def gauges_gain(seed: int, ill: bool) -> Training:
    net = mlp(6, 64, 64, 3, act=nn.Tanh)
    for layer in net:
        if isinstance(layer, nn.Linear) and ill and layer.out_features > 3:
            nn.init.normal_(layer.weight, std=math.sqrt(layer.in_features))
    d = furnace(seed)
    return plain(net, d, mse, sgd(0.03, momentum=0.9), 8, d.r2)


class Attend(nn.Module):
    """Attention of one learnt question over the words."""

    def __init__(self, factor: float, words: int = 120, dim: int = 32, out: int = 5) -> None:
        super().__init__()
        self.table, self.place = nn.Embedding(words, dim), nn.Parameter(torch.randn(40, dim))
        self.key, self.value, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, out)
        self.ask, self.factor = nn.Parameter(torch.randn(dim)), factor

    def forward(self, ids: Tensor) -> Tensor:
        h = self.table(ids) + self.place[: ids.shape[1]]
        weight = ((self.key(h) @ self.ask) * self.factor).softmax(1)
        return self.out((weight[..., None] * self.value(h)).sum(1))


@sick("n-notes-attended-scaled-up", "attention", "saturated-activations", note="times the dimension, not by its root")
def notes_scaled(seed: int, ill: bool) -> Training:
    return plain(Attend(32.0 if ill else 32**-0.5), notes(seed), ce, adam(3e-3), 8)


# --- starting weights -------------------------------------------------------------------------------------------------


class Tied(Bare):
    """Next-letter model whose output shares the table."""

    def __init__(self, symbols: int, std: float) -> None:
        super().__init__()
        self.table = nn.Embedding(symbols, 48)
        nn.init.normal_(self.table.weight, std=std)
        self.rnn = nn.GRU(48, 48, batch_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        return F.layer_norm(self.rnn(self.table(ids))[0], (48,)) @ self.table.weight.T

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        ids = batch[0]
        loss = ce(self(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        self.log("nats", loss, prog_bar=True)
        return loss


@sick("n-letters-table-of-wide-rows", "language", "bad-initialization", note="a tied table drawn at N(0, 5)")
def letters_wide(seed: int, ill: bool) -> Training:
    t = data.characters(seed, n=1000)

    def score(m: Any) -> float:
        return -ce(data.predict(m, t.test[:, :-1]).flatten(0, 1), t.test[:, 1:].flatten()).item()

    return Training(Tied(t.symbols, 5.0 if ill else 0.05), loader(t.train), score, trainer={"max_epochs": 4})


@sick("n-digits-all-channels-alike", "cnn", "bad-initialization", note="constant filters: every channel stays the same")
def digits_alike(seed: int, ill: bool) -> Training:
    d = data.digits(seed).to_images()
    net = cnn()
    for m in net:
        if ill and isinstance(m, nn.Conv2d | nn.Linear):
            nn.init.constant_(m.weight, 0.02)
    return plain(net, d, ce, adam(2e-3), 5)


class Flow(Bare):
    """Three hidden layers, each drawn by hand."""

    def __init__(self, ill: bool) -> None:
        super().__init__()
        self.net = mlp(10, 64, 64, 64, 3, act=nn.ReLU)
        for layer in self.net:
            if isinstance(layer, nn.Linear):
                fan = layer.weight.shape[1]
                std = 1 / fan**2 if ill else math.sqrt(2 / fan)
                nn.init.trunc_normal_(layer.weight, std=std)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        return {"loss": ce(self(batch[0]), batch[1])}

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


@sick("n-surveys-drawn-by-the-square", "mlp", "bad-initialization", "vanishing-gradients", note="std 1 / fan squared")
def surveys_square(seed: int, ill: bool) -> Training:
    d = surveys(seed)
    return Training(Flow(ill), loader(d.x, d.y), d.accuracy, frozen_order(d.x_test, d.y_test), {"max_epochs": 8})


# --- penalties --------------------------------------------------------------------------------------------------------


class Variational(Bare):
    def __init__(self, weight: float) -> None:
        super().__init__()
        self.inward, self.outward, self.weight = mlp(64, 64, 16), mlp(8, 64, 64), weight

    def forward(self, x: Tensor) -> Tensor:
        return self.outward(self.inward(x).chunk(2, -1)[0])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x,) = batch
        mean, log_var = self.inward(x).chunk(2, -1)
        back = self.outward(mean + torch.randn_like(mean) * (0.5 * log_var).exp())
        kl = -0.5 * (1 + log_var - mean.square() - log_var.exp()).sum(-1).mean()
        rebuild = (back - x).square().sum(-1).mean()
        self.log_dict({"rebuild": rebuild, "kl": kl})
        return rebuild + self.weight * kl


@sick("n-digits-code-held-to-the-prior", "vae", "excess-regularization", note="the KL term weighs thirtyfold")
def digits_prior(seed: int, ill: bool) -> Training:
    d = data.digits(seed)
    score = minus(mse, d.x_test, d.x_test)
    return Training(Variational(30.0 if ill else 0.2), loader(d.x), score, trainer={"max_epochs": 7})


@sick("n-shoppers-decay-in-adam", "recommender", "excess-regularization", note="L2 in Adam on sparse tables")
def shoppers_decay(seed: int, ill: bool) -> Training:
    d = ratings(seed)
    module = Learner(Factors(), mse, adam(0.02, weight_decay=0.3 if ill else 1e-5))
    return Training(module, loader(d.x, d.y, size=64), d.r2, frozen_order(d.x_test, d.y_test), {"max_epochs": 6})


@sick("n-pulses-channels-dropped-thrice", "cnn1d", "excess-regularization", note="heavy dropout after every layer")
def pulses_dropped(seed: int, ill: bool) -> Training:
    p = 0.85 if ill else 0.1
    net = conv1d(width=16)
    net.insert(2, nn.Dropout1d(p))
    net.insert(5, nn.Dropout1d(p))
    net.insert(8, nn.Dropout(p))
    return plain(net, pulses(seed), ce, adam(3e-3), 12)


# --- too small --------------------------------------------------------------------------------------------------------


@sick(
    "n-digits-pooled-to-a-mean", "cnn", "insufficient-capacity", note="three channels, then the mean over the picture"
)
def digits_pooled(seed: int, ill: bool) -> Training:
    d = data.digits(seed).to_images()
    width = 2 if ill else 16
    net = nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3), nn.ReLU(), nn.Flatten())
    if ill:
        net.insert(4, nn.AdaptiveAvgPool2d(1))
    net.append(nn.Linear(width if ill else width * 16, 10))
    return plain(net, d, ce, adam(5e-3), 8)


@sick("n-gauges-one-unit-wide", "regression", "insufficient-capacity", note="every function through one unit")
def gauges_narrow(seed: int, ill: bool) -> Training:
    d = furnace(seed)
    width = 1 if ill else 32
    return plain(mlp(6, 32, width, 32, 3, act=nn.Tanh), d, mse, adam(5e-3), 8, d.r2)


@sick("n-letters-state-of-two", "language", "insufficient-capacity", note="a state of two numbers for twenty letters")
def letters_two(seed: int, ill: bool) -> Training:
    t = data.characters(seed, n=1000)
    net = nn.ModuleList([nn.Embedding(t.symbols, 2 if ill else 24), nn.GRU(2 if ill else 24, 2 if ill else 48)])

    class Speller(Bare):
        rate = 1e-2

        def __init__(self) -> None:
            super().__init__()
            self.net, self.out = net, nn.Linear(2 if ill else 48, t.symbols)

        def forward(self, ids: Tensor) -> Tensor:
            return self.out(self.net[1](self.net[0](ids.T))[0]).transpose(0, 1)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            out = self(batch[0][:, :-1])
            return ce(out.transpose(1, 2), batch[0][:, 1:])

    def score(m: Any) -> float:
        return -ce(data.predict(m, t.test[:, :-1]).transpose(1, 2), t.test[:, 1:]).item()

    return Training(Speller(), loader(t.train), score, trainer={"max_epochs": 6})


class Stack(nn.Module):
    """`act` is made and, in one form, never called."""

    def __init__(self, call: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(10, 48), nn.Linear(48, 48), nn.Linear(48, 3)])
        self.norms = nn.ModuleList([nn.BatchNorm1d(48), nn.BatchNorm1d(48)])
        self.act, self.call = nn.GELU(), call

    def forward(self, x: Tensor) -> Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=False):
            x = norm(layer(x))
            x = self.act(x) if self.call else x
        return self.layers[-1](x)


@sick("n-surveys-norms-between", "mlp", "missing-nonlinearity", note="norms between the layers, no activation")
def surveys_norms(seed: int, ill: bool) -> Training:
    return plain(Stack(not ill), surveys(seed), ce, adam(5e-3), 7)


@sick("n-field-of-matrices", "ode", "missing-nonlinearity", note="a field of two matrices: a spiral, never a cycle")
def field_matrices(seed: int, ill: bool) -> Training:
    g = data.generator(seed, 7)
    here = 1.5 * torch.randn(1600, 2, generator=g)
    x, v = here[:, 0], here[:, 1]
    slope = torch.stack([v, 1.5 * (1 - x**2) * v - x], 1)
    there = torch.tanh(here + 0.2 * slope)
    field = mlp(2, 48, 48, 2, act=nn.Identity if ill else nn.Tanh)

    class Euler(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.field = field

        def forward(self, z: Tensor) -> Tensor:
            for _ in range(4):
                z = z + 0.25 * self.field(z)
            return z

    d = data.split(here, there - here, seed)
    return plain(Euler(), data.Split(d.x, d.y + d.x, d.x_test, d.y_test + d.x_test), mse, adam(5e-3), 7, d_r2(d))


def d_r2(d: Any) -> Callable[[Any], float]:
    """R2 of the change, not of the place."""
    return lambda m: data.r2(data.predict(m, d.x_test) - d.x_test, d.y_test)


# --- learnt by heart --------------------------------------------------------------------------------------------------


@sick("n-admissions-wide-and-long", "mlp", "overfitting", "too-little-data", note="a fifth of the labels is wrong")
def admissions_wide(seed: int, ill: bool) -> Training:
    d = data.blobs(seed, classes=3, columns=20, n=240, spread=2.0)
    y = data.flip_labels(d.y, 0.3, 3, seed)
    module = Learner(mlp(20, 256, 256, 3), ce, adam(1e-3))
    score = minus(ce, d.x_test, d.y_test)
    epochs = 60 if ill else 4
    return Training(module, loader(d.x, y), score, frozen_order(d.x_test, d.y_test), {"max_epochs": epochs})


@sick("n-shoppers-forty-numbers-each", "recommender", "overfitting", note="large tables, few ratings a user")
def shoppers_forty(seed: int, ill: bool) -> Training:
    d = ratings(seed, n=1200)
    net = Factors(dim=40 if ill else 3)
    module = Learner(net, mse, adam(0.02, weight_decay=0.0 if ill else 2e-3))
    return Training(
        module, loader(d.x, d.y, size=64), d.r2, frozen_order(d.x_test, d.y_test), {"max_epochs": 20 if ill else 12}
    )


@sick("n-notes-fifty-passes", "text", "overfitting", note="no stopping, no dropout, few texts")
def notes_fifty(seed: int, ill: bool) -> Training:
    d = notes(seed, n=300)
    module = Learner(Bag(dim=64), ce, adam(5e-3))
    score = minus(ce, d.x_test, d.y_test)
    epochs = 40 if ill else 12
    return Training(module, loader(d.x, d.y), score, frozen_order(d.x_test, d.y_test), {"max_epochs": epochs})


@sick("n-nine-recordings", "cnn1d", "too-little-data", "overfitting", note="nine signals a few hundred times")
def nine_recordings(seed: int, ill: bool) -> Training:
    d = pulses(seed, n=9 if ill else 900)
    module = Learner(conv1d(), ce, adam(3e-3))
    settings = {"max_steps": 200, "check_val_every_n_epoch": 10 if ill else 1}
    return Training(
        module, loader(d.x, d.y, size=9 if ill else 32), d.accuracy, frozen_order(d.x_test, d.y_test), settings
    )


@sick("n-gauges-pilot-of-sixteen", "regression", "too-little-data", "overfitting", note="sixteen rows, three answers")
def gauges_pilot(seed: int, ill: bool) -> Training:
    d = furnace(seed, n=16 if ill else 1200)
    module = Learner(mlp(6, 64, 64, 3), mse, adam(2e-3))
    return Training(module, loader(d.x, d.y, size=16), d.r2, frozen_order(d.x_test, d.y_test), {"max_steps": 240})


# --- samples that meet ------------------------------------------------------------------------------------------------


class Halves(nn.Module):
    """Means of the first and the second half of a text, side by side."""

    def __init__(self, ill: bool) -> None:
        super().__init__()
        self.table, self.out, self.ill = nn.Embedding(120, 24), mlp(48, 32, 5), ill

    def forward(self, ids: Tensor) -> Tensor:
        h = self.table(ids)
        n = len(ids)
        h = h.view(2, -1, n, 24).mean(1).transpose(0, 1) if self.ill else h.view(n, 2, -1, 24).mean(2)
        return self.out(h.flatten(1))


@sick("n-notes-in-two-halves", "text", "batch-mixing", note="a view with the batch as its last axis but one")
def notes_halves(seed: int, ill: bool) -> Training:
    return plain(Halves(ill), notes(seed), ce, adam(5e-3), 8)


class Frames(nn.Module):
    """Cuts each series into four frames that a shared layer reads."""

    def __init__(self, ill: bool) -> None:
        super().__init__()
        self.read, self.out, self.ill = nn.Linear(6, 16), mlp(64, 32, 1), ill

    def forward(self, x: Tensor) -> Tensor:
        frames = x.reshape(4, len(x), 6) if self.ill else x.reshape(len(x), 4, 6)
        h = torch.relu(self.read(frames))
        return self.out(h.transpose(0, 1).flatten(1) if self.ill else h.flatten(1))


@sick("n-tides-frames-first", "forecast", "batch-mixing", note="reshape to frames-first moves values between samples")
def tides_frames(seed: int, ill: bool) -> Training:
    d = tides(seed)
    return plain(Frames(ill), d, mse, adam(5e-3), 8, d.r2)


# --- modes ------------------------------------------------------------------------------------------------------------


class Noted(nn.Module):
    """A functional dropout whose flag is left at its default in one form."""

    def __init__(self, ill: bool) -> None:
        super().__init__()
        self.bag, self.a, self.b, self.ill = nn.EmbeddingBag(120, 32), nn.Linear(32, 32), nn.Linear(32, 5), ill

    def forward(self, ids: Tensor) -> Tensor:
        on = True if self.ill else self.training
        h = F.dropout(self.bag(ids), 0.5, on)
        return self.b(F.dropout(torch.relu(self.a(h)), 0.5, on))


@sick("n-notes-drops-when-asked", "text", "mode-mismatch", note="F.dropout on in evaluation too")
def notes_drops(seed: int, ill: bool) -> Training:
    return plain(Noted(ill), notes(seed), ce, adam(5e-3), 8)


class Sampled(Learner):
    """Looks at a few answers at the start of each epoch."""

    ill = False

    def on_train_epoch_start(self) -> None:
        self.net.eval()
        with torch.no_grad():
            self.log("spread", self.net(torch.randn(16, 1, 8, 8)).std())
        if not self.ill:
            self.net.train()


@sick("n-digits-answers-shown-first", "cnn", "mode-mismatch", note="eval() for a preview is never undone")
def digits_shown(seed: int, ill: bool) -> Training:
    d = data.digits(seed).to_images()
    d = data.Split(40 * d.x + 100, d.y, 40 * d.x_test + 100, d.y_test)
    net = nn.Sequential(nn.BatchNorm2d(1), *cnn(), nn.Dropout(0.0))
    net.insert(2, nn.BatchNorm2d(8))
    module = Sampled(net, ce, sgd(0.02))
    module.ill = ill
    return Training(module, loader(d.x, d.y), d.accuracy, frozen_order(d.x_test, d.y_test), {"max_epochs": 5})


# --- batch statistics -------------------------------------------------------------------------------------------------


def normed(momentum: float | None = 0.1) -> nn.Sequential:
    net = conv1d(width=12)
    net.insert(1, nn.BatchNorm1d(12, momentum=momentum))
    net.insert(4, nn.BatchNorm1d(12, momentum=momentum))
    return net


@sick("n-gauges-two-at-a-time", "regression", "batchnorm-small-batch", note="pairs of rows through batch norm")
def gauges_pairs(seed: int, ill: bool) -> Training:
    d = furnace(seed, n=600)
    net = nn.Sequential(
        nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU()
    )
    net.append(nn.Linear(32, 3))
    module = Learner(net, mse, adam(3e-3))
    val = frozen_order(d.x_test, d.y_test)
    return Training(module, loader(d.x, d.y, size=2 if ill else 32), d.r2, val, {"max_steps": 300})


@sick("n-rows-three-and-accumulate", "mlp", "batchnorm-small-batch", note="accumulation does not widen the statistics")
def rows_three(seed: int, ill: bool) -> Training:
    d = surveys(seed, n=900)
    net = nn.Sequential(
        nn.Linear(10, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 48), nn.BatchNorm1d(48), nn.ReLU()
    )
    net.append(nn.Linear(48, 3))
    settings = {"max_steps": 180, "accumulate_grad_batches": 12 if ill else 1}
    module = Learner(net, ce, adam(5e-3))
    size = 2 if ill else 32
    return Training(module, loader(d.x, d.y, size=size), d.accuracy, frozen_order(d.x_test, d.y_test), settings)


@sick(
    "n-pulses-momentum-of-the-other-kind", "cnn1d", "batchnorm-stale-statistics", note="Keras' 0.999 turned into 0.001"
)
def pulses_momentum(seed: int, ill: bool) -> Training:
    d = pulses(seed)
    d = data.Split(6 * d.x + 20, d.y, 6 * d.x_test + 20, d.y_test)
    return plain(normed(0.001 if ill else 0.1), d, ce, adam(3e-3), 7)


class Kept(Learner):
    """Loads statistics with its weights."""

    ill = False

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.ill:
            for m in self.modules():
                if isinstance(m, nn.BatchNorm2d):
                    m.reset_running_stats()


@sick("n-colonies-statistics-reset", "segmentation", "batchnorm-stale-statistics", note="a hook resets them each step")
def colonies_reset(seed: int, ill: bool) -> Training:
    d = colonies(seed)
    d = data.Split(d.x + 3, d.y, d.x_test + 3, d.y_test)
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
    net.extend([nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 1, 1)])
    module = Kept(net, bce, adam(5e-3))
    module.ill = ill
    score = lambda m: dice(data.predict(m, d.x_test), d.y_test)  # noqa: E731
    return Training(module, loader(d.x, d.y), score, frozen_order(d.x_test, d.y_test), {"max_epochs": 8})


# --- steps that leap --------------------------------------------------------------------------------------------------


class Carry(nn.Module):
    """A linear recurrence with a gain."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.inward, self.outward = nn.Linear(1, 24), nn.Linear(24, 1)
        self.carry = nn.Parameter(gain * torch.linalg.qr(torch.randn(24, 24)).Q)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), 24)
        for t in range(x.shape[1]):
            h = torch.relu(self.inward(x[:, t]) + h @ self.carry) if t % 2 else self.inward(x[:, t]) + h @ self.carry
        return self.outward(h)


@sick(
    "n-tides-carried-with-a-gain",
    "rnn",
    "exploding-gradients",
    "bad-initialization",
    "learning-rate-too-high",
    note="each step of the recurrence multiplies by 1.6",
)
def tides_gain(seed: int, ill: bool) -> Training:
    d = tides(seed, n=700)
    return plain(Carry(1.6 if ill else 0.9), d, mse, adam(2e-3), 8, d.r2)


@sick(
    "n-digits-sum-of-blocks", "residual", "exploding-gradients", "bad-initialization", note="ten blocks, each doubled"
)
def digits_blocks(seed: int, ill: bool) -> Training:
    d = data.digits(seed)

    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(64, 64) for _ in range(10))
            for b in self.blocks:
                nn.init.normal_(b.weight, std=0.4 if ill else 0.04)
            self.out = nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            for b in self.blocks:
                x = x + torch.relu(b(x))
            return self.out(x)

    return plain(Blocks(), d, ce, sgd(0.02, momentum=0.9), 5)
