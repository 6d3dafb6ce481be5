"""Input pipelines that are slow, crowded, repeat themselves or stop."""

from __future__ import annotations

import gzip
import json
import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, get_worker_info

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.sick._data import Split, accuracy, digits, messages, r2, waves
from benchmarks.zoo.sick._modules import Classifier, Recurrent, Regressor, adam, mlp, small_cnn

# --- slow


class Records(Dataset[tuple[Tensor, Tensor]]):
    """Digits kept as compressed text, one record an image; unpacked on every access, or once where `cached`."""

    def __init__(self, split: Split, cached: bool) -> None:
        # many exposures of every image, as the scanner wrote them
        self.blobs = [
            gzip.compress(json.dumps((x.tolist() * 32, int(y))).encode(), 1)
            for x, y in zip(split.x, split.y, strict=True)
        ]
        self.items = [self.unpack(blob) for blob in self.blobs] if cached else None

    @staticmethod
    def unpack(blob: bytes) -> tuple[Tensor, Tensor]:
        pixels, label = json.loads(gzip.decompress(blob))
        return torch.tensor(pixels).view(32, 64).mean(0), torch.tensor(label)

    def __len__(self) -> int:
        return len(self.blobs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.items[index] if self.items else self.unpack(self.blobs[index])


def _records(seed: int, cached: bool) -> Training:
    torch.manual_seed(seed)
    split = digits().head(512)
    loader = DataLoader(Records(split, cached), batch_size=32, shuffle=True)
    return Training(Classifier(mlp(64, 64, 10), adam(5e-3)), loader, accuracy(split), None, {"max_epochs": 8})


@sick(
    "digits-compressed-records",
    "mlp",
    "data-starvation",
    twin=lambda seed: _records(seed, True),
    note="scores are equal; wall time differs",
)
def digits_records(seed: int) -> Training:
    return _records(seed, False)


class Remote(Dataset[tuple[Tensor, Tensor]]):
    """Reads each sample from a store that answers after `latency` seconds."""

    def __init__(self, split: Split, latency: float) -> None:
        self.split, self.latency = split, latency

    def __len__(self) -> int:
        return len(self.split.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if self.latency:
            time.sleep(self.latency)
        return self.split.x[index], self.split.y[index]


def _remote(seed: int, latency: float) -> Training:
    torch.manual_seed(seed)
    split = waves()
    loader = DataLoader(Remote(split, latency), batch_size=24, shuffle=True)
    module = Regressor(Recurrent(nn.GRU(1, 16, batch_first=True), 1), adam(5e-3))
    return Training(module, loader, r2(split), split.val(), {"max_epochs": 4})


@sick(
    "waves-remote-store",
    "rnn",
    "data-starvation",
    twin=lambda seed: _remote(seed, 0.0),
    note="scores are equal; wall time differs",
)
def waves_remote(seed: int) -> Training:
    return _remote(seed, 0.0015)


def _count_one_by_one(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Word counts of a batch of messages, as shares."""
    counts = torch.zeros(len(samples), 24)
    for row, (words, _) in enumerate(samples):
        for column in range(16):
            counts[row, int(words[column].item())] += 1
    return counts / counts.sum(1, keepdim=True), torch.stack([label for _, label in samples])


def _count_words(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    words = torch.stack([words for words, _ in samples]).long()
    counts = torch.zeros(len(samples), 24).scatter_add_(1, words, torch.ones(words.shape))
    return counts / counts.sum(1, keepdim=True), torch.stack([label for _, label in samples])


def _collated(seed: int, collate: Any) -> Training:
    torch.manual_seed(seed)
    split = messages()
    data = TensorDataset(split.x, split.y)
    loader = DataLoader(data, batch_size=64, shuffle=True, collate_fn=collate)
    test_x, test_y = _count_words(list(zip(split.test_x, split.test_y, strict=True)))
    judge = accuracy(Split(split.x, split.y, test_x, test_y))
    return Training(Classifier(mlp(24, 32, 4), adam(5e-3)), loader, judge, None, {"max_epochs": 8})


@sick(
    "messages-counted-by-word",
    "text",
    "data-starvation",
    twin=lambda seed: _collated(seed, _count_words),
    note="scores are equal; wall time differs; the time is lost in collate",
)
def messages_counted(seed: int) -> Training:
    return _collated(seed, _count_one_by_one)


# --- crowded


def _workers(seed: int, workers: int) -> Training:
    torch.manual_seed(seed)
    split = digits().shaped(1, 8, 8)
    loader = split.train(64, num_workers=workers)
    return Training(Classifier(small_cnn(8), adam(0.01)), loader, accuracy(split), None, {"max_epochs": 4})


@sick(
    "digits-sixteen-workers",
    "cnn",
    "too-many-workers",
    twin=lambda seed: _workers(seed, 1),
    note="scores are equal; wall time differs, most of it spent starting workers every epoch",
)
def digits_sixteen_workers(seed: int) -> Training:
    return _workers(seed, 16)


class Windows(Dataset[tuple[Tensor, Tensor]]):
    """Smooths each window on access."""

    def __init__(self, split: Split) -> None:
        self.x, self.y = split.x.numpy(), split.y.numpy()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        smooth = np.convolve(self.x[index, :, 0], np.ones(2) / 2, "same")
        return np.stack([self.x[index, :, 0], smooth.astype(np.float32)], 1), self.y[index]


def _windows(seed: int, workers: int) -> Training:
    torch.manual_seed(seed)
    split = waves()
    data = Windows(split)
    test_x = torch.from_numpy(
        np.stack([Windows(Split(split.test_x, split.test_y, split.x, split.y))[i][0] for i in range(len(split.test_x))])
    )
    loader = DataLoader(data, batch_size=32, shuffle=True, num_workers=workers, persistent_workers=True)
    net = nn.Sequential(nn.Flatten(), *mlp(80, 64, 1))
    judge = r2(Split(split.x, split.y, test_x, split.test_y))
    return Training(Regressor(net, adam(3e-3)), loader, judge, None, {"max_epochs": 8})


@sick(
    "waves-twelve-workers",
    "mlp",
    "too-many-workers",
    twin=lambda seed: _windows(seed, 1),
    note="scores are equal; wall time differs a little",
)
def waves_twelve_workers(seed: int) -> Training:
    return _windows(seed, 12)


# --- repeating itself


class Tones(IterableDataset[tuple[np.ndarray, int]]):
    """Draws `size` noisy tones an epoch, shared out among the workers; the class is the shape of the wave."""

    def __init__(self, size: int, own: bool) -> None:
        self.size = size
        self.rng = np.random.default_rng(0) if own else None

    def __iter__(self) -> Iterator[tuple[np.ndarray, int]]:
        worker = get_worker_info()
        rng = self.rng or np.random.default_rng(worker.seed if worker else None)
        for _ in range(self.size // (worker.num_workers if worker else 1)):
            yield tone(rng)


def tone(rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """48 samples of a sine, square or sawtooth wave of random pitch and phase, in noise."""
    kind = int(rng.integers(3))
    turns = np.arange(48) / rng.uniform(8, 20) + rng.uniform()
    wave = (np.sin(2 * np.pi * turns), np.sign(np.sin(2 * np.pi * turns)), 2 * (turns % 1) - 1)[kind]
    return (wave + rng.normal(0, 0.25, 48)).astype(np.float32), kind


def _tones(seed: int, own: bool) -> Training:
    torch.manual_seed(seed)
    fixed = np.random.default_rng(7)
    x, y = zip(*(tone(fixed) for _ in range(600)), strict=True)
    test_x, test_y = torch.from_numpy(np.stack(x)), torch.tensor(y)
    net = nn.Sequential(
        nn.Unflatten(1, (1, 48)),
        nn.Conv1d(1, 16, 7),
        nn.ReLU(),
        nn.Conv1d(16, 16, 7, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(288, 3),
    )
    loader = DataLoader(Tones(128, own), batch_size=16, num_workers=2)
    judge = accuracy(Split(test_x, test_y, test_x, test_y))
    return Training(Classifier(net, adam(3e-3)), loader, judge, None, {"max_epochs": 30})


@sick(
    "tones-own-generator",
    "cnn",
    "duplicate-randomness",
    twin=lambda seed: _tones(seed, False),
    note="both workers draw the same samples, and the same ones every epoch",
)
def tones(seed: int) -> Training:
    return _tones(seed, True)


class Simulator(Dataset[tuple[Tensor, Tensor]]):
    """Draws a pendulum's starting state on access; the target is where it stands a while later."""

    def __init__(self, size: int, own: bool) -> None:
        self.size = size
        self.rng = np.random.default_rng(0) if own else None

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        start = self.rng.uniform(-2, 2, 4) if self.rng else (torch.rand(4) * 4 - 2).numpy()
        return torch.tensor(start, dtype=torch.float32), torch.tensor([swing(*start)], dtype=torch.float32)


def swing(angle: float, speed: float, pull: float, damping: float) -> float:
    """Angle of a damped pendulum twenty small steps on."""
    for _ in range(20):
        speed -= 0.1 * (math.sin(angle) * (2 + pull / 2) + 0.1 * damping * speed)
        angle += 0.1 * speed
    return angle


def _simulated(seed: int, own: bool) -> Training:
    torch.manual_seed(seed)
    x = torch.rand(500, 4, generator=torch.Generator().manual_seed(3)) * 4 - 2
    y = torch.tensor([[swing(*row)] for row in x.tolist()])
    split = Split(x, y, x, y)
    loader = DataLoader(Simulator(64, own), batch_size=8, num_workers=2)
    return Training(Regressor(mlp(4, 64, 64, 1), adam(3e-3)), loader, r2(split), split.val(), {"max_epochs": 30})


@sick(
    "pendulum-own-generator",
    "regression",
    "duplicate-randomness",
    twin=lambda seed: _simulated(seed, False),
    note="both workers draw the same samples, and the same ones every epoch",
)
def pendulum(seed: int) -> Training:
    return _simulated(seed, True)
