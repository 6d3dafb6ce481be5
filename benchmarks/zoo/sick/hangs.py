"""Trainings in which nothing happens for a while: a worker that waits, a step that waits. Each ends by itself."""

from __future__ import annotations

import queue
import time

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.sick._data import Split, accuracy, cancer, digits, friedman, r2, waves
from benchmarks.zoo.sick._modules import Classifier, Recurrent, Regressor, adam, mlp, sgd, small_cnn

BLOCK = 8.0  # seconds; long beside a step of milliseconds, short enough for a benchmark


class Shared(Dataset[tuple[Tensor, Tensor]]):
    """Samples of which some lie on a volume that is mounted on first use."""

    def __init__(self, split: Split, slow: int | None) -> None:
        self.split, self.slow = split, slow

    def __len__(self) -> int:
        return len(self.split.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if index == self.slow:
            time.sleep(BLOCK)
            self.slow = None  # mounted now
        return self.split.x[index], self.split.y[index]


def _volume(seed: int, slow: int | None) -> Training:
    torch.manual_seed(seed)
    split = digits().shaped(1, 8, 8)
    loader = DataLoader(Shared(split, slow), batch_size=32, shuffle=True, num_workers=1, persistent_workers=True)
    return Training(Classifier(small_cnn(8), adam(5e-3)), loader, accuracy(split), None, {"max_epochs": 5})


@sick(
    "digits-volume-not-mounted",
    "cnn",
    "dataloader-hang",
    twin=lambda seed: _volume(seed, None),
    note="scores are equal; one worker blocks for some seconds",
)
def digits_volume(seed: int) -> Training:
    return _volume(seed, 700)


class Feed(IterableDataset[tuple[Tensor, Tensor]]):
    """Takes samples from a queue that a reader fills; the reader of the last part is late."""

    def __init__(self, split: Split, missing: bool) -> None:
        self.split, self.missing = split, missing

    def __iter__(self):  # type: ignore[no-untyped-def]
        worker, inbox = get_worker_info(), queue.Queue()  # type: ignore[var-annotated]
        count = len(self.split.x)
        for index in range(worker.id if worker else 0, count, worker.num_workers if worker else 1):
            if not (self.missing and index == count // 2):
                inbox.put(index)
            try:
                index = inbox.get(timeout=BLOCK)
            except queue.Empty:
                continue
            yield self.split.x[index], self.split.y[index]


def _feed(seed: int, missing: bool) -> Training:
    torch.manual_seed(seed)
    split = friedman()
    loader = DataLoader(Feed(split, missing), batch_size=15, num_workers=2)
    return Training(Regressor(mlp(10, 64, 1), sgd(0.05)), loader, r2(split), None, {"max_epochs": 1})


@sick(
    "friedman-late-reader",
    "regression",
    "dataloader-hang",
    twin=lambda seed: _feed(seed, False),
    note="scores are equal; a worker waits on an empty queue",
)
def friedman_late_reader(seed: int) -> Training:
    return _feed(seed, True)


class Reporting(Classifier):
    """Asks a tracking service now and then, and waits for its answer."""

    def __init__(self, net: nn.Module, answers: bool) -> None:
        super().__init__(net, adam(3e-3))
        self.answers: queue.Queue[str] = queue.Queue()
        if answers:
            self.answers.put("ok")

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        if self.global_step == 60:
            try:
                self.answers.get(timeout=BLOCK)
            except queue.Empty:
                self.log("unanswered", 1.0)
        return super().training_step(batch, batch_idx)


def _reporting(seed: int, answers: bool) -> Training:
    torch.manual_seed(seed)
    split = cancer()
    return Training(Reporting(mlp(30, 32, 2), answers), split.train(16), accuracy(split), None, {"max_epochs": 5})


@sick(
    "cancer-unanswered-report",
    "tabular",
    "training-hang",
    twin=lambda seed: _reporting(seed, True),
    note="scores are equal; the training step waits",
)
def cancer_report(seed: int) -> Training:
    return _reporting(seed, False)


class Locked(Regressor):
    """Waits, before one step, for a file lock that another process holds."""

    def __init__(self, net: nn.Module, locked: bool) -> None:
        super().__init__(net, adam(3e-3))
        self.locked = locked

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.locked and self.global_step == 40:
            until = time.monotonic() + BLOCK
            while time.monotonic() < until:
                time.sleep(0.05)


def _locked(seed: int, locked: bool) -> Training:
    torch.manual_seed(seed)
    split = waves()
    module = Locked(Recurrent(nn.GRU(1, 16, batch_first=True), 1), locked)
    return Training(module, split.train(24), r2(split), None, {"max_epochs": 4})


@sick(
    "waves-file-lock",
    "rnn",
    "training-hang",
    twin=lambda seed: _locked(seed, False),
    note="scores are equal; the optimizer step waits for a lock",
)
def waves_file_lock(seed: int) -> Training:
    return _locked(seed, True)
