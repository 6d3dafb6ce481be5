"""Small, honest data for the sick trainings: bundled tables and images, generated series, and how they are judged."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from lightning.pytorch import LightningModule
from sklearn import datasets
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

Score = Callable[[LightningModule], float]


@dataclass(frozen=True)
class Split:
    """Training and held-out tensors of one task. Fixed, whatever the seed of the run."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor

    def train(self, batch_size: int = 32, shuffle: bool = True, **options: Any) -> DataLoader:
        return DataLoader(TensorDataset(self.x, self.y), batch_size=batch_size, shuffle=shuffle, **options)

    def val(self, batch_size: int = 256) -> DataLoader:
        return DataLoader(TensorDataset(self.test_x, self.test_y), batch_size=batch_size)

    def head(self, count: int) -> Split:
        """The same task with only the first `count` training samples."""
        return Split(self.x[:count], self.y[:count], self.test_x, self.test_y)

    def with_train(self, x: Tensor, y: Tensor) -> Split:
        return Split(x, y, self.test_x, self.test_y)

    def shaped(self, *shape: int) -> Split:
        return Split(self.x.reshape(-1, *shape), self.y, self.test_x.reshape(-1, *shape), self.test_y)


def _split(x: Any, y: Any, *, stratify: bool = False) -> Split:
    parts = train_test_split(x, y, test_size=0.25, random_state=0, stratify=y if stratify else None)
    x_train, x_test, y_train, y_test = (torch.as_tensor(part) for part in parts)
    return Split(x_train.float(), y_train, x_test.float(), y_test)


def _standardised(x: Any, y: Any, *, stratify: bool = False) -> Split:
    split = _split(x, y, stratify=stratify)
    scaler = StandardScaler().fit(split.x.numpy())
    x_train, x_test = (torch.as_tensor(scaler.transform(part.numpy())).float() for part in (split.x, split.test_x))
    return Split(x_train, split.y, x_test, split.test_y)


def _scaled_targets(split: Split) -> Split:
    """Standardise regression targets and give them the shape (N, 1)."""
    mean, std = split.y.float().mean(), split.y.float().std()
    return Split(
        split.x, ((split.y.float() - mean) / std)[:, None], split.test_x, ((split.test_y.float() - mean) / std)[:, None]
    )


@cache
def digits() -> Split:
    """1347 + 450 handwritten digits as (N, 64) in [0, 1]; classes 0 to 9."""
    x, y = datasets.load_digits(return_X_y=True)
    return _split(x / 16.0, y, stratify=True)


@cache
def wine() -> Split:
    """133 + 45 wines, 13 standardised columns, 3 classes."""
    return _standardised(*datasets.load_wine(return_X_y=True), stratify=True)


@cache
def cancer() -> Split:
    """426 + 143 tumours, 30 standardised columns, 2 classes."""
    return _standardised(*datasets.load_breast_cancer(return_X_y=True), stratify=True)


@cache
def diabetes() -> Split:
    """331 + 111 patients, 10 standardised columns, standardised target (N, 1); R2 of about 0.4 is what it gives."""
    return _scaled_targets(_standardised(*datasets.load_diabetes(return_X_y=True)))


@cache
def friedman(samples: int = 1200) -> Split:
    """Friedman's first function of ten columns, with noise; standardised, target (N, 1). R2 of 0.9 is within reach."""
    return _scaled_targets(_standardised(*datasets.make_friedman1(samples, noise=1.0, random_state=0)))


@cache
def moons() -> Split:
    """Two interleaved half-moons in the plane, 2 classes."""
    return _standardised(*datasets.make_moons(1200, noise=0.15, random_state=0), stratify=True)


@cache
def waves(samples: int = 800, length: int = 40) -> Split:
    """Noisy sums of two sines, (N, length, 1), about unit scale; the target (N, 1) is the next value."""
    rng = torch.Generator().manual_seed(0)
    phase = torch.rand(samples, 2, 1, generator=rng) * 2 * math.pi
    period = torch.tensor([[11.0], [17.0]])
    time = torch.arange(length + 1.0)
    clean = torch.sin(time * 2 * math.pi / period + phase).sum(1)
    series = clean + 0.1 * torch.randn(clean.shape, generator=rng)
    cut = samples * 3 // 4
    x, y = series[:, :-1, None], series[:, -1:]
    return Split(x[:cut], y[:cut], x[cut:], y[cut:])


@cache
def first_sign(samples: int = 1200, length: int = 100) -> Split:
    """Noise sequences (N, length, 2) whose class is the sign of the one value that is flagged, near the start."""
    rng = torch.Generator().manual_seed(0)
    values = torch.randn(samples, length, generator=rng)
    flags = torch.zeros(samples, length)
    flags[torch.arange(samples), torch.randint(0, 5, (samples,), generator=rng)] = 1.0
    y = ((values * flags).sum(1) > 0).long()
    x, cut = torch.stack([values, flags], 2), samples * 3 // 4
    return Split(x[:cut], y[:cut], x[cut:], y[cut:])


@cache
def messages(samples: int = 1600, length: int = 16, words: int = 24) -> Split:
    """Token rows (N, length), 0 as padding; the class (0 to 3) is the group of words that most of a row are of."""
    rng = torch.Generator().manual_seed(0)
    y = torch.randint(0, 4, (samples,), generator=rng)
    size = (words - 1) // 4
    own = 1 + y[:, None] * size + torch.randint(0, size, (samples, length), generator=rng)
    other = torch.randint(1, words, (samples, length), generator=rng)
    x = torch.where(torch.rand(samples, length, generator=rng) < 0.45, own, other)
    lengths = torch.randint(4, length + 1, (samples, 1), generator=rng)
    x = x.masked_fill(torch.arange(length) >= lengths, 0)
    cut = samples * 3 // 4
    return Split(x[:cut], y[:cut], x[cut:], y[cut:])


def _predict(module: LightningModule, x: Tensor) -> Tensor:
    module.eval()
    with torch.no_grad():
        return module(x)


def accuracy(split: Split) -> Score:
    """Share of held-out samples that are classed rightly; 0 where the outputs are not finite."""

    def score(module: LightningModule) -> float:
        out = _predict(module, split.test_x)
        if not out.isfinite().all():
            return 0.0
        guess = out.argmax(1) if out.ndim == 2 and out.shape[1] > 1 else (out.reshape(-1) > 0).long()
        return (guess == split.test_y.reshape(-1).long()).float().mean().item()

    return score


def r2(split: Split) -> Score:
    """Share of the held-out targets' variance that is explained; minus infinity where the outputs are not finite."""

    def score(module: LightningModule) -> float:
        out = _predict(module, split.test_x)
        target = split.test_y.float().reshape(out.shape)
        value = (1 - (out - target).square().mean() / target.var(correction=0)).item()
        return value if math.isfinite(value) else -math.inf

    return score


def reconstruction(split: Split) -> Score:
    """R2 of the held-out inputs rebuilt from themselves; minus infinity where that is not finite."""
    return r2(Split(split.x, split.x, split.test_x, split.test_x))
