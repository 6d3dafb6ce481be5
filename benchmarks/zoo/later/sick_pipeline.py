"""Loaders that are slow, blocked, or give the same numbers again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, TensorDataset, get_worker_info

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import Split
from benchmarks.zoo.later._sick_common import (
    demand,
    explained,
    gestures,
    reviews,
    solids,
    spots,
    tones,
)


class Net(LightningModule):
    """Cross-entropy over a net given from outside."""

    def __init__(self, net: nn.Module, rate: float = 3e-3) -> None:
        super().__init__()
        self.net, self.rate = net, rate

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.rate)


def ear() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(1, 12, 9, stride=2),
        nn.ReLU(),
        nn.Conv1d(12, 16, 5, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(320, 4),
    )


# --- waiting for data -------------------------------------------------------------------------------------------------


class Archive(Dataset[tuple[Tensor, Tensor]]):
    """Recordings on a share that answers after a few milliseconds (or were copied to memory)."""

    def __init__(self, d: Split, latency: float) -> None:
        self.d, self.latency = d, latency

    def __len__(self) -> int:
        return len(self.d.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        if self.latency:
            time.sleep(self.latency)
        return self.d.x[i], self.d.y[i]


@sick("v-tones-on-a-share", "audio", "data-starvation", twin=lambda s: on_a_share(s, 0.0))
def on_a_share(seed: int, latency: float = 0.002) -> Training:
    d = tones(seed)
    train = DataLoader(Archive(d, latency), batch_size=20, shuffle=True)
    return Training(Net(ear()), train, d.accuracy, None, {"max_steps": 60, "max_epochs": -1})


class Pads:
    """Collates messages word by word in Python, building a vocabulary's one-hot rows on the way."""

    def __init__(self, slowly: bool) -> None:
        self.slowly = slowly

    def __call__(self, rows: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        labels = torch.stack([label for _, label in rows])
        if not self.slowly:
            counts = F.one_hot(torch.stack([ids for ids, _ in rows]), 60).sum(1).float()
            return counts, labels
        counts = []
        for ids, _ in rows:
            total = torch.zeros(60)
            for word in ids:
                row = torch.tensor([1.0 if k == int(word) else 0.0 for k in range(60)])
                total = total + row
            counts.append(total)
        return torch.stack(counts), labels


@sick("v-reviews-word-by-word", "text", "data-starvation", twin=lambda s: word_by_word(s, False))
def word_by_word(seed: int, slowly: bool = True) -> Training:
    d = reviews(seed)
    train = DataLoader(TensorDataset(d.x, d.y), batch_size=20, shuffle=True, collate_fn=Pads(slowly))
    module = Net(nn.Sequential(nn.Linear(60, 16), nn.ReLU(), nn.Linear(16, 2)), 1e-2)

    def score(module: LightningModule) -> float:
        counts = F.one_hot(d.x_test, 60).sum(1).float()
        return data.accuracy(data.predict(module, counts), d.y_test)

    return Training(module, train, score, None, {"max_steps": 50, "max_epochs": -1})


class Weighted(Sampler[int]):
    """Draws rows by weight, each with a pass over the weights of the whole catalogue (or all in one go)."""

    def __init__(self, n: int, seed: int, one_by_one: bool) -> None:
        self.n, self.one_by_one = n, one_by_one
        self.random = np.random.default_rng(seed)
        self.weight = np.ones(90_000)
        self.weight /= self.weight.sum()

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        if self.one_by_one:
            for _ in range(self.n):
                yield int(self.random.choice(len(self.weight), p=self.weight)) % self.n
        else:
            yield from (self.random.choice(len(self.weight), size=self.n, p=self.weight) % self.n).tolist()


class Catalogue(LightningDataModule):
    """Spots, drawn by the sampler above."""

    def __init__(self, seed: int, one_by_one: bool) -> None:
        super().__init__()
        self.spots = spots(seed)
        self.sampler = Weighted(len(self.spots.x), seed, one_by_one)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(self.spots.x, self.spots.y), batch_size=16, sampler=self.sampler)


class Point(LightningModule):
    """Where the spot is."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(100, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, place = batch
        return F.mse_loss(self(x), place)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@sick("v-spots-drawn-by-weight", "mlp", "data-starvation", twin=lambda s: drawn_by_weight(s, False))
def drawn_by_weight(seed: int, one_by_one: bool = True) -> Training:
    catalogue = Catalogue(seed, one_by_one)
    d = catalogue.spots
    return Training(Point(), catalogue, explained(d.x_test, d.y_test), None, {"max_steps": 80})


# --- workers ----------------------------------------------------------------------------------------------------------


@sick(
    "v-gestures-workers-by-the-dozen",
    "mlp",
    "too-many-workers",
    "data-starvation",
    twin=lambda s: by_the_dozen(s, 0),
    note="six workers for every core, started anew in each epoch for rows that are in memory",
)
def by_the_dozen(seed: int, factor: int = 6) -> Training:
    d = gestures(seed)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    module = Net(nn.Sequential(nn.Flatten(), nn.Linear(84, 32), nn.ReLU(), nn.Linear(32, 5)))
    return Training(module, d.train(40, num_workers=min(factor * cores, 64)), d.accuracy, None, {"max_epochs": 2})


class Wind(IterableDataset[tuple[Tensor, Tensor]]):
    """A simulator with a seed of its own; each worker has a copy, and each epoch starts it again."""

    def __init__(self, n: int, seed: int, aware: bool) -> None:
        self.n, self.seed, self.aware = n, seed, aware

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        info = get_worker_info()
        g = torch.Generator().manual_seed(self.seed)
        if self.aware:
            g.manual_seed((info.seed if info else self.seed) % 2**31)
        for _ in range(self.n // (info.num_workers if info else 1)):
            x = torch.randn(12, generator=g)
            noise = 0.6 * torch.randn(1, generator=g)
            yield x, torch.sin(2 * x[:1]) + x[1:2] * x[2:3] + noise


class Gusts(LightningModule):
    """A wide network for the simulator above."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(12, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("mse", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@sick("v-gusts-from-two-workers", "mlp", "duplicate-randomness", twin=lambda s: two_workers(s, True))
def two_workers(seed: int, aware: bool = False) -> Training:
    x = torch.randn(1000, 12, generator=data.generator(seed, 141))
    y = torch.sin(2 * x[:, :1]) + x[:, 1:2] * x[:, 2:3]
    train = DataLoader(Wind(1024, seed + 5, aware), batch_size=32, num_workers=2)
    return Training(Gusts(), train, explained(x, y), None, {"max_epochs": 9})


# --- a loader that ends ----------------------------------------------------------------------------------------------


class Killed(Dataset[tuple[Tensor, Tensor]]):
    """Clouds, of which one is so large that the system kills the worker that opens it."""

    def __init__(self, d: Split, row: int) -> None:
        self.d, self.row = d, row

    def __len__(self) -> int:
        return len(self.d.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        if i == self.row and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.d.x[i], self.d.y[i]


class Shape(nn.Module):
    """Points, their maximum, classes."""

    def __init__(self) -> None:
        super().__init__()
        self.point, self.out = nn.Sequential(nn.Linear(3, 48), nn.ReLU(), nn.Linear(48, 48)), nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.point(x).amax(1))


@sick(
    "v-solids-one-file-too-large",
    "point cloud",
    "dataloader-hang",
    twin=lambda s: too_large(s, -1),
    note="the worker dies in the first epoch, and PyTorch raises",
)
def too_large(seed: int, row: int = 500) -> Training:
    d = solids(seed)
    train = DataLoader(Killed(d, row), batch_size=35, shuffle=True, num_workers=1, persistent_workers=True)
    return Training(Net(Shape(), 5e-3), train, d.accuracy, None, {"max_epochs": 10})


class Locked(Dataset[tuple[Tensor, Tensor]]):
    """Hours of demand; one of them waits for a lock that another job holds."""

    def __init__(self, d: Split, row: int) -> None:
        self.d, self.row = d, row

    def __len__(self) -> int:
        return len(self.d.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        if i == self.row:
            time.sleep(4)
        return self.d.x[i], self.d.y[i]


class Hour(LightningModule):
    """The next hour of demand."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(24, 32), nn.Tanh(), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("mse", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.02)


@sick(
    "v-demand-waits-for-a-lock",
    "time series",
    "dataloader-hang",
    twin=lambda s: waits_for_a_lock(s, -1),
    note="the loader's own timeout of two seconds ends it",
)
def waits_for_a_lock(seed: int, row: int = 400) -> Training:
    d = demand(seed)
    train = DataLoader(
        Locked(d, row),
        batch_size=30,
        shuffle=True,
        num_workers=1,
        timeout=2,
        persistent_workers=True,
        prefetch_factor=2,
    )
    return Training(Hour(), train, explained(d.x_test, d.y_test), None, {"max_epochs": 10})
