"""Loaders slow, busy or endless that keep nobody waiting."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, well
from benchmarks.zoo.data import Split
from benchmarks.zoo.unseen._common import (
    Fit,
    adam,
    batches,
    conv_net,
    dense,
    friedman,
    held_out,
    shapes,
)


class Slow(Dataset[Any]):
    """Validation rows that take a while each."""

    def __init__(self, d: Split) -> None:
        self.d = d

    def __len__(self) -> int:
        return 120

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        time.sleep(0.004)
        return self.d.x_test[i], self.d.y_test[i]


@well("u-slow-validation", "mlp", "validation takes most of the time, training waits for nothing; R2 0.9")
def slow_validation(seed: int) -> Training:
    d = friedman(seed)
    val: Any = DataLoader(Slow(d), 40)
    return Training(Fit(dense(10, 48, 1), F.mse_loss, adam(6e-3)), batches(d.x, d.y), d.r2, val, {"max_epochs": 8})


@well("u-two-workers", "cnn", "two persistent workers for a quick data set; accuracy 0.98")
def two_workers(seed: int) -> Training:
    d = shapes(seed)
    train = batches(d.x, d.y, 32, num_workers=2, persistent_workers=True)
    return Training(Fit(conv_net(), F.cross_entropy, adam(5e-3)), train, d.accuracy, None, {"max_epochs": 8})


class Endless(IterableDataset[Any]):
    """Draws rows for ever; max_steps ends the run."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        g = torch.Generator().manual_seed(self.seed)
        while True:
            x = torch.randn(6, generator=g)
            yield x, torch.sin(2 * x[:1]) + x[1:2] * x[2:3]


@well("u-endless-stream", "mlp", "an IterableDataset without length; R2 0.85")
def endless(seed: int) -> Training:
    x = torch.randn(800, 6, generator=data.generator(seed, 94))
    y = torch.sin(2 * x[:, :1]) + x[:, 1:2] * x[:, 2:3]
    train: Any = DataLoader(Endless(seed), 32)
    module = Fit(dense(6, 64, 64, 1), F.mse_loss, adam(5e-3))
    return Training(
        module,
        train,
        Split(x, y, x, y).r2,
        held_out(x, y),
        {"max_steps": 500, "val_check_interval": 100, "check_val_every_n_epoch": None},
    )
