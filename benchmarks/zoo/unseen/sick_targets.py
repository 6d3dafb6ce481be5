"""Targets of the wrong size, targets that tell nothing, too few of them, and validation sets that lie."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import Split, generator
from benchmarks.zoo.unseen._common import (
    Fit,
    Recurrent,
    Tagger,
    adam,
    adamw,
    batches,
    conv_net,
    dense,
    dicts,
    friedman,
    held_out,
    keyword,
    series,
    shapes,
    token_loss,
    tokens,
)

# --- unscaled ---------------------------------------------------------------------------------------------------------


@sick("u-prices-in-dollars", "mlp", "unscaled-targets", twin=lambda s: dollars(s, 0.0, 1.0))
def dollars(seed: int, mean: float = 310_000.0, std: float = 90_000.0) -> Training:
    d = friedman(seed).map_targets(lambda y: mean + std * y)
    module = Fit(dense(10, 64, 32, 1), F.mse_loss, adam(2e-3))
    return Training(module, batches(d.x, d.y), d.r2, held_out(d.x_test, d.y_test), {"max_epochs": 12})


@sick("u-load-in-watts", "lstm", "unscaled-targets", twin=lambda s: watts(s, 0.0, 1.0))
def watts(seed: int, mean: float = 4000.0, std: float = 1500.0) -> Training:
    d = series(seed).map_targets(lambda y: mean + std * y)
    module = Fit(Recurrent(nn.LSTM, 1, 24, 1), nn.L1Loss(), adam(4e-3))
    return Training(module, batches(d.x, d.y), d.r2, trainer={"max_epochs": 10})


class TwoTasks(LightningModule):
    """A class and an amount from one body; their losses are added up."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(10, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU())
        self.kind, self.amount = nn.Linear(48, 2), nn.Linear(48, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.kind(self.body(x))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        h = self.body(batch["x"])
        kind = F.cross_entropy(self.kind(h), batch["kind"])
        amount = F.mse_loss(self.amount(h), batch["amount"])
        self.log_dict({"train/kind": kind, "train/amount": amount})
        return {"loss": kind + amount}

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@sick("u-amounts-drown-classes", "multi-task", "unscaled-targets", twin=lambda s: amounts(s, 1.0))
def amounts(seed: int, scale: float = 2500.0) -> Training:
    d = friedman(seed)
    kind, kind_test = ((x[:, 5] * x[:, 6] > 0).long() for x in (d.x, d.x_test))
    score = Split(d.x, kind, d.x_test, kind_test).accuracy
    return Training(TwoTasks(), dicts(x=d.x, kind=kind, amount=scale * d.y), score, trainer={"max_epochs": 15})


# --- uninformative ----------------------------------------------------------------------------------------------------


@sick("u-join-went-wrong", "mlp", "uninformative-targets", twin=lambda s: join(s, False))
def join(seed: int, wrong: bool = True) -> Training:
    d = friedman(seed, n=2000)
    y = d.y[torch.randperm(len(d.y), generator=generator(seed, 51))] if wrong else d.y
    module = Fit(dense(10, 24, 1), F.mse_loss, adam(2e-3))
    return Training(module, batches(d.x, y), d.r2, held_out(d.x_test, d.y_test), {"max_epochs": 6})


@sick("u-labels-one-file-late", "cnn", "uninformative-targets", twin=lambda s: one_late(s, 0))
def one_late(seed: int, shift: int = 1) -> Training:
    d = shapes(seed, n=1500)
    y = d.y.roll(shift)
    module = Fit(conv_net(width=6), F.cross_entropy, adam(2e-3))
    return Training(module, batches(d.x, y), d.accuracy, held_out(d.x_test, d.y_test.roll(shift)), {"max_epochs": 6})


@sick("u-tags-of-another-corpus", "transformer", "uninformative-targets", twin=lambda s: other_tags(s, False))
def other_tags(seed: int, wrong: bool = True) -> Training:
    d = tokens(seed)
    y = d.y.flip(0) if wrong else d.y
    module = Fit(Tagger(12, 3, pool=False), token_loss, adamw(0.01))
    return Training(module, batches(d.x, y), d.accuracy, trainer={"max_epochs": 12})


# --- too little, too long ---------------------------------------------------------------------------------------------


@sick("u-twelve-digits", "mlp", "too-little-data", "overfitting", twin=lambda s: few_digits(s, 1300))
def few_digits(seed: int, n: int = 12) -> Training:
    d = data.digits(seed)
    module = Fit(dense(64, 128, 10), F.cross_entropy, adam(1e-3))
    epochs = max(1, 2600 // n) if n < 100 else 8
    return Training(module, batches(d.x[:n], d.y[:n], 8), d.accuracy, d.val(), {"max_epochs": epochs})


@sick("u-ten-sequences", "transformer", "too-little-data", "overfitting", twin=lambda s: few_sequences(s, 1000))
def few_sequences(seed: int, n: int = 10) -> Training:
    d = keyword(seed)
    module = Fit(Tagger(20, 4, pool=True), F.cross_entropy, adam(3e-3))
    settings = {"max_epochs": 120 if n < 100 else 10}
    return Training(module, batches(d.x[:n], d.y[:n], 10), d.accuracy, held_out(d.x_test, d.y_test), settings)


@sick("u-learns-the-noise", "mlp", "overfitting", twin=lambda s: learns_noise(s, 10, 0.05))
def learns_noise(seed: int, epochs: int = 60, decay: float = 0.0) -> Training:
    d = friedman(seed, n=300, noise=6.0)
    module = Fit(dense(10, 128, 128, 1), F.mse_loss, adamw(3e-3, weight_decay=decay))
    return Training(module, batches(d.x, d.y), d.r2, held_out(d.x_test, d.y_test), {"max_epochs": epochs})


@sick("u-wide-net-on-flipped-labels", "mlp", "overfitting", twin=lambda s: flipped(s, 6))
def flipped(seed: int, epochs: int = 50) -> Training:
    d = data.digits(seed)
    y = data.flip_labels(d.y, 0.4, 10, seed)[:600]
    y_val = data.flip_labels(d.y_test, 0.4, 10, seed + 1)
    module = Fit(dense(64, 256, 10), F.cross_entropy, adam(2e-3))
    return Training(module, batches(d.x[:600], y), d.accuracy, held_out(d.x_test, y_val), {"max_epochs": epochs})


@sick("u-diabetes-for-ever", "mlp", "overfitting", twin=lambda s: for_ever(s, 6))
def for_ever(seed: int, epochs: int = 60) -> Training:
    d = data.table("diabetes", seed)
    y, y_test = (d.y.reshape(-1, 1), d.y_test.reshape(-1, 1))
    module = Fit(dense(10, 96, 96, 1), F.mse_loss, adam(2e-3))
    return Training(module, batches(d.x, y), d.r2, held_out(d.x_test, y_test), {"max_epochs": epochs})


# --- leakage: the score is minus how far validation accuracy lies from the truth --------------------------------------


def honesty(val: Split, fresh: Split) -> Any:
    return lambda module: -abs(val.accuracy(module) - fresh.accuracy(module))


@sick("u-validates-on-trained-rows", "mlp", "train-val-leakage", twin=lambda s: leaks(s, False))
def leaks(seed: int, leak: bool = True) -> Training:
    whole = data.digits(seed)
    d = data.split(whole.x, data.flip_labels(whole.y, 0.4, 10, seed), seed, 0.7)
    fresh = Split(d.x, d.y, whole.x_test, data.flip_labels(whole.y_test, 0.4, 10, seed + 1))
    val = Split(d.x, d.y, d.x[:400], d.y[:400]) if leak else Split(d.x, d.y, d.x_test, d.y_test)
    module = Fit(dense(64, 256, 10), F.cross_entropy, adam(2e-3))
    train = batches(d.x, d.y)
    return Training(module, train, honesty(val, fresh), held_out(val.x_test, val.y_test), {"max_epochs": 40})


@sick("u-oversampled-before-the-cut", "mlp", "train-val-leakage", twin=lambda s: oversampled(s, False))
def oversampled(seed: int, leak: bool = True) -> Training:
    g = generator(seed, 52)
    x, y = torch.randn(500, 12, generator=g), torch.randint(2, (500,), generator=g)
    x[:, 0] += 0.8 * y
    fresh = Split(x[400:], y[400:], x[400:], y[400:])
    x, y = x[:400], y[:400]
    if leak:
        d = data.split(x.repeat(3, 1), y.repeat(3), seed, 0.7)
    else:
        d = data.split(x, y, seed, 0.7)
        d = Split(d.x.repeat(3, 1), d.y.repeat(3), d.x_test, d.y_test)
    module = Fit(dense(12, 96, 2), F.cross_entropy, adam(3e-3))
    return Training(module, batches(d.x, d.y), honesty(d, fresh), held_out(d.x_test, d.y_test), {"max_epochs": 15})


# --- the same numbers in every worker ---------------------------------------------------------------------------------


class Simulated(IterableDataset[Any]):
    """Rows drawn as they are asked for, from a generator made once in the constructor."""

    def __init__(self, seed: int, apart: bool, n: int) -> None:
        self.rng, self.apart, self.n = np.random.default_rng(seed), apart, n

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        info: Any = get_worker_info()
        rng = np.random.default_rng(info.seed) if self.apart else self.rng
        for _ in range(self.n // 2):
            x = rng.normal(size=10).astype("float32")
            y = np.sin(x[:1] * 2) + x[1:2] * x[2:3] + 0.3 * rng.normal()
            yield torch.from_numpy(x), torch.from_numpy(y.astype("float32"))


@sick("u-simulator-forked-with-generator", "mlp", "duplicate-randomness", twin=lambda s: simulator(s, True))
def simulator(seed: int, apart: bool = False) -> Training:
    train: Any = DataLoader(Simulated(seed, apart, 400), batch_size=20, num_workers=2)
    rng = np.random.default_rng(10_000 + seed)
    x = torch.tensor(rng.normal(size=(600, 10)), dtype=torch.float32)
    y = torch.sin(2 * x[:, :1]) + x[:, 1:2] * x[:, 2:3]
    module = Fit(dense(10, 64, 1), F.mse_loss, adam(4e-3))
    return Training(module, train, Split(x, y, x, y).r2, trainer={"max_epochs": 12})


class Rendered(torch.utils.data.Dataset[Any]):
    """Pictures of two kinds of waves under noise, drawn anew at each call by a torch generator of the data set."""

    def __init__(self, seed: int) -> None:
        self.g = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return 160

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        phase = 6.28 * torch.rand(1, generator=self.g)
        tilt = 0.5 if i % 2 else 0.65
        wave = torch.sin(phase + tilt * torch.arange(40.0))
        return wave + 2.0 * torch.randn(40, generator=self.g), torch.tensor(i % 2)


def reseed(worker: int) -> None:
    info: Any = get_worker_info()
    info.dataset.g.manual_seed(info.seed)


@sick("u-rendering-repeats", "mlp", "duplicate-randomness", "overfitting", twin=lambda s: rendering(s, reseed))
def rendering(seed: int, init: Any = None) -> Training:
    train: Any = DataLoader(Rendered(seed), 16, shuffle=True, num_workers=2, worker_init_fn=init)
    fresh = Rendered(1000 + seed)
    pairs = [fresh[i] for _ in range(5) for i in range(160)]
    x, y = torch.stack([a for a, _ in pairs]), torch.stack([b for _, b in pairs])
    module = Fit(dense(40, 64, 2), F.cross_entropy, adam(3e-3))
    return Training(module, train, Split(x, y, x, y).accuracy, held_out(x, y), {"max_epochs": 25})
