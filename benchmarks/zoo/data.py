"""Data for the zoo: sklearn's bundled tables and synthetic tasks whose best reachable score is known.

Everything is a function of the seed alone. Tensors are float32 (inputs), int64 (classes) or float32 (targets).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from sklearn import datasets
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

Table = Literal["diabetes", "wine", "breast_cancer", "iris"]


@dataclass(frozen=True)
class Split:
    """A task cut in two: `x`, `y` to train on, `x_test`, `y_test` to judge by. Rows are samples."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor

    def train(self, batch_size: int, **options: Any) -> DataLoader[Any]:
        """Shuffled batches of `(x, y)`; `options` go to the DataLoader."""
        return DataLoader(TensorDataset(self.x, self.y), batch_size, **{"shuffle": True, **options})

    def val(self, batch_size: int = 256) -> DataLoader[Any]:
        return DataLoader(TensorDataset(self.x_test, self.y_test), batch_size)

    def accuracy(self, module: nn.Module) -> float:
        """Share of test samples whose largest output is their class."""
        return accuracy(predict(module, self.x_test), self.y_test)

    def r2(self, module: nn.Module) -> float:
        """Share of the test targets' variance that the outputs explain."""
        return r2(predict(module, self.x_test), self.y_test)

    def to_images(self) -> Split:
        """Digits as images: (N, 64) to (N, 1, 8, 8)."""
        return replace(self, x=self.x.view(-1, 1, 8, 8), x_test=self.x_test.view(-1, 1, 8, 8))

    def standardised(self) -> Split:
        """Columns to mean 0 and deviation 1, by the training part; columns that never change are only centred."""
        mean, std = self.x.mean(0), self.x.std(0)
        std = torch.where(std > 0, std, torch.ones_like(std))
        return replace(self, x=(self.x - mean) / std, x_test=(self.x_test - mean) / std)

    def map_targets(self, change: Callable[[Tensor], Tensor]) -> Split:
        return replace(self, y=change(self.y), y_test=change(self.y_test))


def predict(module: nn.Module, x: Any) -> Any:
    """`module(x)` in evaluation mode without gradients; each module's training flag is put back."""
    flags = [(m, m.training) for m in module.modules()]
    module.eval()
    with torch.no_grad():
        out = module(x)
    for part, training in flags:
        part.training = training
    return out


def accuracy(logits: Tensor, y: Tensor) -> float:
    return (logits.argmax(-1) == y).float().mean().item()


def r2(prediction: Tensor, y: Tensor) -> float:
    y = y.reshape(prediction.shape)
    return 1 - ((prediction - y).square().mean() / (y - y.mean(0)).square().mean()).item()


def generator(seed: int, stream: int = 0) -> torch.Generator:
    """A generator of its own for each `(seed, stream)`, so that data do not depend on what else draws numbers."""
    return torch.Generator().manual_seed(1_000_003 * (stream + 1) + seed)


def split(x: Tensor, y: Tensor, seed: int, share: float = 0.75) -> Split:
    """Cut at random: `share` of the samples to train on, the rest to judge by."""
    order = torch.randperm(len(x), generator=generator(seed))
    cut = int(share * len(x))
    return Split(x[order[:cut]], y[order[:cut]], x[order[cut:]], y[order[cut:]])


def digits(seed: int) -> Split:
    """1797 handwritten digits, 64 pixels in [0, 1], ten classes. A small network reaches 0.96 to 0.99."""
    x, y = datasets.load_digits(return_X_y=True)
    return split(torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y), seed)


def table(name: Table, seed: int, *, standardise: bool = True) -> Split:
    """A bundled table. `diabetes` is a regression (targets standardised too, R2 0.5 at best), the others classes."""
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    regression = name == "diabetes"
    target = torch.tensor(y, dtype=torch.float32 if regression else torch.int64)
    cut = split(torch.tensor(x, dtype=torch.float32), target, seed)
    if regression and standardise:
        mean, std = cut.y.mean(), cut.y.std()
        cut = cut.map_targets(lambda t: (t - mean) / std)
    return cut.standardised() if standardise else cut


def regression(seed: int, *, r2: float, n: int = 2000, columns: int = 8, n_test: int = 2000) -> Split:
    """A smooth function of standard normal columns plus normal noise, (N, 1) targets of variance 1.

    No model explains more than `r2` of the variance; a network with a few dozen units comes close.
    """
    g = generator(seed, 1)
    x = torch.randn(n + n_test, columns, generator=g)
    direction = torch.randn(columns, 2, generator=g)
    hidden = x @ (direction / direction.norm(dim=0))
    signal = hidden[:, :1] + torch.sin(1.5 * hidden[:, 1:])
    signal = (signal - signal.mean()) / signal.std()
    y = math.sqrt(r2) * signal + math.sqrt(1 - r2) * torch.randn(n + n_test, 1, generator=g)
    return Split(x[:n], y[:n], x[n:], y[n:])


def blobs(
    seed: int, *, classes: int = 5, columns: int = 10, n: int = 3000, spread: float = 2.5, shares: Tensor | None = None
) -> Split:
    """Unit normal clouds, their centres `spread` from the origin and at right angles; `shares` weighs the classes."""
    g = generator(seed, 2)
    total = n + 2000
    centres = spread * torch.linalg.qr(torch.randn(columns, classes, generator=g)).Q.T
    weights = torch.ones(classes) if shares is None else shares
    y = torch.multinomial(weights, total, replacement=True, generator=g)
    x = centres[y] + torch.randn(total, columns, generator=g)
    return Split(x[:n], y[:n], x[n:], y[n:])


def moons(seed: int, *, n: int = 1000, noise: float = 0.1) -> Split:
    """Two interleaved half circles, standardised."""
    x, y = datasets.make_moons(2 * n, noise=noise, random_state=seed)
    return split(torch.tensor(x, dtype=torch.float32), torch.tensor(y), seed, 0.5).standardised()


def flip_labels(y: Tensor, share: float, classes: int, seed: int) -> Tensor:
    """A copy of `y` where a random `share` of the labels is drawn anew from all classes."""
    g = generator(seed, 3)
    drawn = torch.randint(classes, y.shape, generator=g)
    return torch.where(torch.rand(y.shape, generator=g) < share, drawn, y)


def motifs(seed: int, *, n: int = 1200, length: int = 32, classes: int = 4) -> Split:
    """Noisy sequences (N, length, 1) with one of `classes` short shapes at a random place; the shape is the class."""
    g = generator(seed, 4)
    time = torch.linspace(0, 2 * math.pi, 10)
    shapes = torch.stack([torch.sin((k // 2 + 1) * time + math.pi * (k % 2)) for k in range(classes)])
    y = torch.randint(classes, (n + 800,), generator=g)
    x = 0.25 * torch.randn(n + 800, length, generator=g)
    place = torch.randint(length - 10, (n + 800,), generator=g)
    x.scatter_add_(1, place[:, None] + torch.arange(10), 1.5 * shapes[y])
    return Split(x[:n, :, None], y[:n], x[n:, :, None], y[n:])


@dataclass(frozen=True)
class Text:
    """A text of made-up words as character ids, in windows (N, length + 1). `floor`: its entropy, nats a character."""

    train: Tensor
    test: Tensor
    symbols: int
    floor: float


def characters(seed: int, *, words: int = 30, length: int = 32, n: int = 2000) -> Text:
    """Words drawn by a Zipf law and set apart by blanks. No model of characters does better than `floor`."""
    g = generator(seed, 5)
    lengths = torch.randint(3, 7, (words,), generator=g).tolist()
    lexicon = list({tuple(torch.randint(1, 20, (k,), generator=g).tolist()) for k in lengths})
    lexicon.sort()
    share = 1 / torch.arange(1.0, len(lexicon) + 1)
    share = share / share.sum()
    windows = n + 400
    drawn = torch.multinomial(share, windows * (length + 1) // 4 + 100, replacement=True, generator=g).tolist()
    ids = torch.tensor([c for w in drawn for c in (*lexicon[w], 0)])[: windows * (length + 1)].view(windows, length + 1)
    word_length = sum(p * (len(w) + 1) for p, w in zip(share.tolist(), lexicon, strict=True))
    floor = -(share * share.log()).sum().item() / word_length
    return Text(ids[:n], ids[n:], 20, floor)
