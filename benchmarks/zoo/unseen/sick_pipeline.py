"""Loaders that can not keep up, hang, or are too many; steps that hang; ranks that part.

The score of these does not separate case and twin: the time a step takes does.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import Split
from benchmarks.zoo.unseen._common import Fit, adam, batches, conv_net, dense, friedman, held_out, sgd, shapes

TIME = "seconds a step separate it from its twin, not the score"


class Stored(Dataset[Any]):
    """Rows behind a slow disk: `wait` seconds a sample."""

    def __init__(self, x: Tensor, y: Tensor, wait: float) -> None:
        self.x, self.y, self.wait = x, y, wait

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        if self.wait:
            time.sleep(self.wait)
        return self.x[i], self.y[i]


@sick("u-slow-disk", "mlp", "data-starvation", note=TIME, twin=lambda s: slow_disk(s, 0.0))
def slow_disk(seed: int, wait: float = 0.003) -> Training:
    d = data.digits(seed)
    train: Any = DataLoader(Stored(d.x, d.y, wait), 16, shuffle=True)
    return Training(Fit(dense(64, 64, 10), F.cross_entropy, adam(3e-3)), train, d.accuracy, None, {"max_steps": 100})


class Decoding(Dataset[Any]):
    """Pictures blurred and sharpened many times over on the one core of the main process."""

    def __init__(self, d: Split, rounds: int) -> None:
        self.d, self.rounds = d, rounds

    def __len__(self) -> int:
        return len(self.d.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        x = self.d.x[i]
        for _ in range(self.rounds):
            blurred = F.avg_pool2d(x[None], 3, 1, 1)[0]
            x = x + 1e-6 * (x - blurred)
        return x, self.d.y[i]


@sick("u-transform-of-150-passes", "cnn", "data-starvation", note=TIME, twin=lambda s: transform(s, 1))
def transform(seed: int, rounds: int = 150) -> Training:
    d = shapes(seed)
    train: Any = DataLoader(Decoding(d, rounds), 16, shuffle=True)
    return Training(Fit(conv_net(), F.cross_entropy, adam(5e-3)), train, d.accuracy, None, {"max_steps": 112})


class Collate:
    """Pads, copies and sorts as if each batch had to be put together from a remote index."""

    def __init__(self, wait: float) -> None:
        self.wait = wait

    def __call__(self, rows: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        time.sleep(self.wait)
        x, y = zip(*rows, strict=True)
        return {"x": torch.stack(x), "y": torch.stack(y)}


class FromDict(Fit):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(self(batch["x"]), batch["y"])
        self.log("train_loss", loss)
        return loss


@sick("u-collate-asks-a-server", "mlp", "data-starvation", note=TIME, twin=lambda s: collate(s, 0.0))
def collate(seed: int, wait: float = 0.04) -> Training:
    d = friedman(seed)
    rows: Any = list(zip(d.x, d.y, strict=True))
    train = DataLoader(rows, 32, shuffle=True, collate_fn=Collate(wait))
    return Training(FromDict(dense(10, 48, 1), F.mse_loss, adam(5e-3)), train, d.r2, None, {"max_steps": 120})


class Rows(IterableDataset[Any]):
    """A stream read through one slow worker."""

    def __init__(self, d: Split, wait: float) -> None:
        self.d, self.wait = d, wait

    def __iter__(self) -> Any:
        for i in torch.randperm(len(self.d.x)).tolist():
            time.sleep(self.wait)
            yield self.d.x[i], self.d.y[i]


@sick("u-one-worker-on-a-slow-stream", "mlp", "data-starvation", note=TIME, twin=lambda s: stream(s, 0.0))
def stream(seed: int, wait: float = 0.0015) -> Training:
    d = friedman(seed)
    train: Any = DataLoader(Rows(d, wait), 25, num_workers=1)
    return Training(Fit(dense(10, 48, 1), F.mse_loss, sgd(0.05)), train, d.r2, None, {"max_epochs": 3})


def many() -> int:
    """Four workers for each core this process may use, at most 32."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(4 * cores, 32)


@sick(
    "u-workers-four-a-core", "mlp", "too-many-workers", note=f"{TIME}; well on 32 cores", twin=lambda s: workers(s, 1)
)
def workers(seed: int, n: int = 0) -> Training:
    d = data.digits(seed)
    module = Fit(dense(64, 64, 10), F.cross_entropy, adam(3e-3))
    train = d.train(64, num_workers=n or many(), persistent_workers=True)
    return Training(module, train, d.accuracy, None, {"max_epochs": 4})


class Busy(Dataset[Any]):
    """Real work for each sample, so that workers above the number of cores only stand in each other's way."""

    def __init__(self, d: Split) -> None:
        self.d = d

    def __len__(self) -> int:
        return len(self.d.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        noise = torch.randn(120, 120)
        return self.d.x[i] + 0 * (noise @ noise).sum(), self.d.y[i]


@sick(
    "u-busy-workers-restarted", "cnn", "too-many-workers", note=f"{TIME}; well on 32 cores", twin=lambda s: busy(s, 1)
)
def busy(seed: int, n: int = 0) -> Training:
    d = shapes(seed)
    train: Any = DataLoader(Busy(d), 32, shuffle=True, num_workers=n or many())
    return Training(Fit(conv_net(), F.cross_entropy, adam(5e-3)), train, d.accuracy, None, {"max_epochs": 3})


# --- hangs ------------------------------------------------------------------------------------------------------------


class Locked(Dataset[Any]):
    """Sample 700 waits for a lock that nobody gives back; here only for `wait` seconds."""

    def __init__(self, d: Split, wait: float) -> None:
        self.d, self.wait, self.lock = d, wait, threading.Lock()
        self.lock.acquire()

    def __len__(self) -> int:
        return len(self.d.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        if i == 700 and self.wait:
            self.lock.acquire(timeout=self.wait)
        return self.d.x[i], self.d.y[i]


@sick(
    "u-worker-waits-for-a-lock",
    "mlp",
    "dataloader-hang",
    note=f"blocks 12 s once; {TIME}",
    twin=lambda s: locked(s, 0.0),
)
def locked(seed: int, wait: float = 12.0) -> Training:
    d = data.digits(seed)
    train: Any = DataLoader(Locked(d, wait), 32, num_workers=1)
    return Training(Fit(dense(64, 32, 10), F.cross_entropy, adam(3e-3)), train, d.accuracy, None, {"max_epochs": 1})


class Waiting(Fit):
    """Step 60 waits for an answer of a metrics server that does not come."""

    wait = 12.0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.global_step == 60:
            threading.Event().wait(self.wait)
        return super().training_step(batch, batch_idx)


@sick(
    "u-step-waits-for-an-event", "mlp", "training-hang", note=f"blocks 12 s once; {TIME}", twin=lambda s: waits(s, 0.0)
)
def waits(seed: int, wait: float = 12.0) -> Training:
    d = friedman(seed)
    module = Waiting(dense(10, 32, 1), F.mse_loss, adam(3e-3))
    module.wait = wait
    return Training(module, batches(d.x, d.y), d.r2, held_out(d.x_test, d.y_test), {"max_epochs": 4})


# --- ranks ------------------------------------------------------------------------------------------------------------


class Parting(LightningModule):
    """Draws its head anew on each rank once the replicas were made alike, and updates it outside the reducer's sight."""

    def __init__(self, alike: bool) -> None:
        super().__init__()
        self.body, self.head, self.alike = dense(10, 32, 32), nn.Linear(32, 1), alike

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(x)))

    def on_train_start(self) -> None:
        if not self.alike and self.global_rank:
            with torch.no_grad():
                nn.init.normal_(self.head.weight, std=2.0)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


@sick(
    "u-head-drawn-on-each-rank",
    "mlp",
    "replicas-diverged",
    twin=lambda s: parting(s, True),
    note="two forked processes; what the callbacks hold stays in the children, only weights and the journal come back",
)
def parting(seed: int, alike: bool = False) -> Training:
    d = friedman(seed)
    settings = {"max_epochs": 12, "devices": 2, "strategy": "ddp_fork", "accelerator": "cpu"}
    return Training(Parting(alike), batches(d.x, d.y), d.r2, trainer=settings)
