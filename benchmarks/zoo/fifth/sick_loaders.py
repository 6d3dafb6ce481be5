"""Trainings whose loader is slow, crowded, repeats itself or stands still, and one whose step does.

Where the note says so, time separates case and twin, not the score. The standing ones stand for twelve seconds, once.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import Split
from benchmarks.zoo.fifth._common import TIME, marks, meter, mlp, notes, pairs, plants, r2_of, right


class Net(LightningModule):
    """A net and a loss."""

    def __init__(self, net: nn.Module, loss: Any = F.cross_entropy, lr: float = 5e-3) -> None:
        super().__init__()
        self.net, self.loss, self.lr = net, loss, lr

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class Items(Dataset[Any]):
    """Samples, with something done to each before it is handed out."""

    def __init__(self, d: Split, before: Any = None) -> None:
        self.d, self.before = d, before

    def __len__(self) -> int:
        return len(self.d.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        if self.before is not None:
            self.before(i)
        return self.d.x[i], self.d.y[i]


class Files(LightningDataModule):
    """Pictures that are opened one by one; opening takes `wait` seconds."""

    def __init__(self, d: Split, wait: float) -> None:
        super().__init__()
        self.d, self.wait = d, wait

    def open(self, i: int) -> None:
        if self.wait:
            time.sleep(self.wait)

    def train_dataloader(self) -> Any:
        return DataLoader(Items(self.d, self.open), 20, shuffle=True)


def small_cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)
    )


@sick("z-strokes-opened-one-by-one", "cnn", "data-starvation", note=TIME, twin=lambda s: opened(s, 0.0))
def opened(seed: int, wait: float = 0.002) -> Training:
    d = marks(seed)
    return Training(Net(small_cnn()), Files(d, wait), right(d), None, {"max_epochs": 2})


class Pages(IterableDataset[Any]):
    """Texts from a service that hands out pages of fifty."""

    def __init__(self, d: Split, wait: float) -> None:
        self.d, self.wait = d, wait

    def __iter__(self) -> Any:
        for k, i in enumerate(torch.randperm(len(self.d.x)).tolist()):
            if k % 50 == 0 and self.wait:
                time.sleep(self.wait)
            yield self.d.x[i], self.d.y[i]


@sick("z-topics-page-by-page", "bag", "data-starvation", note=TIME, twin=lambda s: pages(s, 0.0))
def pages(seed: int, wait: float = 0.05) -> Training:
    d = notes(seed)
    net = nn.Sequential(nn.EmbeddingBag(120, 32), nn.ReLU(), nn.Linear(32, 4))
    return Training(Net(net, lr=1e-2), DataLoader(Pages(d, wait), 25), right(d), None, {"max_epochs": 3})


def crowd() -> int:
    """Five workers for each core, at most 40."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(5 * cores, 40)


@sick("z-plants-workers-of-the-server", "mlp", "too-many-workers", note=TIME, twin=lambda s: server(s, 1))
def server(seed: int, workers: int = 0) -> Training:
    """The number of workers comes from the settings of a larger machine."""
    d = plants(seed)
    train = pairs(d.x, d.y, 10, num_workers=workers or crowd(), persistent_workers=True)
    return Training(Net(mlp(12, 48, 3), lr=3e-3), train, right(d), None, {"max_epochs": 3})


# --- random numbers ---------------------------------------------------------------------------------------------------


class Springs(IterableDataset[Any]):
    """Swings simulated on the fly: ten noisy places of a damped spring, and its next; each worker has `rng`."""

    def __init__(self, seed: int, n: int, apart: bool) -> None:
        self.n, self.apart = n, apart
        self.rng = np.random.default_rng(seed)

    def one(self, rng: Any) -> tuple[Tensor, Tensor]:
        pitch, damp, phase, size = rng.uniform([0.3, 0.0, 0.0, 0.5], [1.6, 0.12, 6.28, 2.0])
        time_ = np.arange(14)
        wave = size * np.exp(-damp * time_) * np.sin(pitch * time_ + phase)
        x = wave[:10] + 0.15 * rng.normal(size=10)
        return torch.tensor(x, dtype=torch.float32), torch.tensor(wave[13:], dtype=torch.float32)

    def __iter__(self) -> Any:
        info = get_worker_info()
        rng, share = self.rng, self.n
        if info is not None:
            share = self.n // info.num_workers
            if self.apart:
                rng = np.random.default_rng(info.seed)
        for _ in range(share):
            yield self.one(rng)


@sick("z-springs-made-on-the-fly", "mlp", "duplicate-randomness", twin=lambda s: springs(s, True))
def springs(seed: int, apart: bool = False) -> Training:
    """Two workers, each with a copy of the same generator, and a new copy of it each epoch."""
    rows = [Springs(0, 0, True).one(np.random.default_rng(10_000 + seed + k)) for k in range(500)]
    x, y = (torch.stack([r[k] for r in rows]) for k in (0, 1))
    train: Any = DataLoader(Springs(seed, 240, apart), 20, num_workers=2)
    return Training(Net(mlp(10, 64, 64, 1), F.mse_loss), train, r2_of(Split(x, y, x, y)), None, {"max_epochs": 20})


# --- standing still ---------------------------------------------------------------------------------------------------


class Mount:
    """A network drive that does not answer for one sample."""

    def __init__(self, which: int, wait: float) -> None:
        self.which, self.wait = which, wait

    def __call__(self, i: int) -> None:
        if i == self.which and self.wait:
            time.sleep(self.wait)


@sick("z-plants-on-a-drive", "mlp", "dataloader-hang", note=f"12 s once; {TIME}", twin=lambda s: drive(s, 0.0))
def drive(seed: int, wait: float = 12.0) -> Training:
    d = plants(seed)
    train: Any = DataLoader(Items(d, Mount(700, wait)), 10, num_workers=1)
    return Training(Net(mlp(12, 48, 3)), train, right(d), None, {"max_epochs": 1})


class Reports(Net):
    """Hands its loss to a reporting thread each step; the thread may end after 70 of them."""

    wait = 12.0

    def on_train_start(self) -> None:
        self.box: queue.Queue[float] = queue.Queue(maxsize=1)
        self.given_up = False
        threading.Thread(target=self._read, args=(70 if self.wait else 10_000,), daemon=True).start()

    def _read(self, times: int) -> None:
        for _ in range(times):
            if self.box.get() < 0:
                return

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if not self.given_up:
            try:
                self.box.put(loss.item(), timeout=self.wait or None)
            except queue.Full:
                self.given_up = True  # a real run would wait for ever
        return loss

    def on_train_end(self) -> None:
        if not self.wait:
            self.box.put(-1.0)


@sick("z-load-reported-by-a-thread", "mlp", "training-hang", note=f"12 s once; {TIME}", twin=lambda s: reported(s, 0.0))
def reported(seed: int, wait: float = 12.0) -> Training:
    d = meter(seed)
    module = Reports(nn.Sequential(nn.Flatten(), mlp(24, 32, 1)), F.mse_loss)
    module.wait = wait
    return Training(module, pairs(d.x, d.y), r2_of(d), None, {"max_epochs": 5})
