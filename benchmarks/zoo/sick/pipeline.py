"""Input pipelines that are slow, crowded, repeat themselves or stop."""

from __future__ import annotations

import gzip
import json
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.sick._data import Split, accuracy, digits, messages, r2, waves
from benchmarks.zoo.sick._modules import Classifier, Recurrent, Regressor, adam, mlp, small_cnn

# --- slow


class Records(Dataset[tuple[Tensor, Tensor]]):
    """Digits kept as compressed text, one record an image; unpacked on every access, or once where `cached`."""

    def __init__(self, split: Split, cached: bool) -> None:
        # eight views of every image, as a data lake stores them
        self.blobs = [
            gzip.compress(json.dumps((x.tolist() * 64, int(y))).encode(), 1)
            for x, y in zip(split.x, split.y, strict=True)
        ]
        self.items = [self.unpack(blob) for blob in self.blobs] if cached else None

    @staticmethod
    def unpack(blob: bytes) -> tuple[Tensor, Tensor]:
        pixels, label = json.loads(gzip.decompress(blob))
        return torch.tensor(pixels).view(64, 64).mean(0), torch.tensor(label)

    def __len__(self) -> int:
        return len(self.blobs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.items[index] if self.items else self.unpack(self.blobs[index])


def _records(seed: int, cached: bool) -> Training:
    torch.manual_seed(seed)
    split = digits().head(512)
    loader = DataLoader(Records(split, cached), batch_size=32, shuffle=True)
    return Training(Classifier(mlp(64, 64, 10)), loader, accuracy(split), None, {"max_epochs": 6})


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
    return Training(module, loader, r2(split), split.val(), {"max_epochs": 5})


@sick(
    "waves-remote-store",
    "rnn",
    "data-starvation",
    twin=lambda seed: _remote(seed, 0.0),
    note="scores are equal; wall time differs",
)
def waves_remote(seed: int) -> Training:
    return _remote(seed, 0.002)


def _pad_by_word(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Copies a batch word by word into a padded table, with one-hot columns for later use."""
    tokens = torch.zeros(len(samples), 16)
    counts = torch.zeros(len(samples), 24)
    for row, (words, _) in enumerate(samples):
        for column in range(16):
            tokens[row, column] = words[column]
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
    "messages-padded-by-word",
    "text",
    "data-starvation",
    twin=lambda seed: _collated(seed, _count_words),
    note="scores are equal; wall time differs; the time is lost in collate",
)
def messages_padded(seed: int) -> Training:
    return _collated(seed, _pad_by_word)


# --- crowded


def _workers(seed: int, workers: int) -> Training:
    torch.manual_seed(seed)
    split = digits().shaped(1, 8, 8)
    loader = split.train(64, num_workers=workers)
    return Training(Classifier(small_cnn(8)), loader, accuracy(split), None, {"max_epochs": 4})


@sick(
    "digits-sixteen-workers",
    "cnn",
    "too-many-workers",
    "data-starvation",
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


class Placed(Dataset[tuple[Tensor, Tensor]]):
    """Digits put at a random place of a larger canvas, over noise."""

    def __init__(self, split: Split, own: bool) -> None:
        self.split = split
        self.rng = torch.Generator().manual_seed(0) if own else None

    def __len__(self) -> int:
        return len(self.split.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return place(self.split.x[index], self.rng), self.split.y[index]


def place(image: Tensor, rng: torch.Generator | None) -> Tensor:
    canvas = torch.rand(14, 14, generator=rng) * 0.3
    top, left = torch.randint(0, 7, (2,), generator=rng).tolist()
    canvas[top : top + 8, left : left + 8] += image.view(8, 8)
    return canvas.flatten()


def _placed(seed: int, own: bool) -> Training:
    torch.manual_seed(seed)
    split = digits().head(400)
    fixed = torch.Generator().manual_seed(9)
    test_x = torch.stack([place(image, fixed) for image in split.test_x])
    loader = DataLoader(Placed(split, own), batch_size=40, num_workers=2, shuffle=True)
    judge = accuracy(Split(split.x, split.y, test_x, split.test_y))
    return Training(Classifier(mlp(196, 128, 10)), loader, judge, None, {"max_epochs": 40})


class Simulator(Dataset[tuple[Tensor, Tensor]]):
    """Draws a pendulum's starting state on access; the target is where it stands a while later."""

    def __init__(self, size: int, own: bool) -> None:
        self.size = size
        self.rng = np.random.default_rng(0) if own else None

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        start = torch.from_numpy(self.rng.uniform(-2, 2, 4)).float() if self.rng else torch.rand(4) * 4 - 2
        return start, swing(start[None])[0]


def swing(start: Tensor) -> Tensor:
    """Angle of a damped pendulum from (angle, speed, pull, damping), thirty small steps on; (N, 4) to (N, 1)."""
    angle, speed, pull, damping = start.unbind(1)
    for _ in range(30):
        speed = speed - 0.1 * (torch.sin(angle) * (2 + pull / 2) + 0.1 * damping * speed)
        angle = angle + 0.1 * speed
    return angle[:, None]


def _simulated(seed: int, own: bool) -> Training:
    torch.manual_seed(seed)
    test_x = torch.rand(500, 4, generator=torch.Generator().manual_seed(3)) * 4 - 2
    split = Split(test_x, swing(test_x), test_x, swing(test_x))
    loader = DataLoader(Simulator(64, own), batch_size=16, num_workers=2)
    return Training(Regressor(mlp(4, 64, 64, 1), adam(3e-3)), loader, r2(split), split.val(), {"max_epochs": 60})


@sick(
    "pendulum-own-generator",
    "regression",
    "duplicate-randomness",
    twin=lambda seed: _simulated(seed, False),
    note="both workers draw the same samples, and the same ones every epoch",
)
def pendulum(seed: int) -> Training:
    return _simulated(seed, True)


@sick("digits-placed-at-random", "mlp", "duplicate-randomness", twin=lambda seed: _placed(seed, False))
def digits_placed(seed: int) -> Training:
    return _placed(seed, True)
