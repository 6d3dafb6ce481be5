"""Tasks of the later sick cases. Each is a function of the seed alone; inputs are float32 or ids."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from benchmarks.zoo.data import Split, generator, predict, r2

Score = Callable[[LightningModule], float]


def loader(*columns: Tensor, size: int = 32, shuffle: bool = True, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*columns), batch_size=size, shuffle=shuffle, **options)


class Records(Dataset[dict[str, Tensor]]):
    """Samples that are dicts of named columns."""

    def __init__(self, **columns: Tensor) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {name: column[i] for name, column in self.columns.items()}


def explained(x: Tensor, y: Tensor) -> Score:
    """R2 on these data, at least -1, and -1 for predictions that are not finite."""

    def score(module: LightningModule) -> float:
        value = r2(predict(module, x), y)
        return max(value, -1.0) if math.isfinite(value) else -1.0

    return score


def recall(x: Tensor, y: Tensor, decide: Callable[[Tensor], Tensor]) -> Score:
    """The mean over the classes of the share found; `decide` turns outputs to classes."""

    def score(module: LightningModule) -> float:
        answer = decide(predict(module, x))
        return torch.stack([(answer[y == k] == k).float().mean() for k in y.unique()]).mean().item()

    return score


def pick(logits: Tensor) -> Tensor:
    return logits.argmax(-1)


def _cut(x: Tensor, y: Tensor, n: int) -> Split:
    return Split(x[:n], y[:n], x[n:], y[n:])


def tones(seed: int, n: int = 800, length: int = 96) -> Split:
    """Sound-like waves (N, 1, length): a steady tone, a rising one, a beat of two, a burst; noise on all."""
    g = generator(seed, 71)
    total = n + 500
    t = torch.linspace(0, 1, length)
    y = torch.randint(4, (total,), generator=g)
    pitch = 8 + 6 * torch.rand(total, 1, generator=g)
    phase = 6.2832 * torch.rand(total, 1, generator=g)
    steady = torch.sin(6.2832 * pitch * t + phase)
    rising = torch.sin(6.2832 * (0.4 * pitch * t + 1.2 * pitch * t**2) + phase)
    beat = steady * torch.sin(6.2832 * 2.5 * t + 2 * phase) * 1.4
    centre = 0.2 + 0.6 * torch.rand(total, 1, generator=g)
    burst = 2 * steady * torch.exp(-(((t - centre) / 0.08) ** 2))
    x = torch.stack([steady, rising, beat, burst])[y, torch.arange(total)]
    x = x + 0.2 * torch.randn(total, length, generator=g)
    return _cut(x[:, None], y, n)


def solids(seed: int, n: int = 700, points: int = 24) -> Split:
    """Point clouds (N, points, 3) from the surface of a ball, a box, a cylinder or a saddle, turned about z."""
    g = generator(seed, 72)
    total = n + 400
    y = torch.randint(4, (total,), generator=g)
    ball = nn.functional.normalize(torch.randn(total, points, 3, generator=g), dim=-1)
    box = 2 * torch.rand(total, points, 3, generator=g) - 1
    box = box / box.abs().amax(-1, keepdim=True)
    angle = 6.2832 * torch.rand(total, points, generator=g)
    height = 2 * torch.rand(total, points, generator=g) - 1
    cylinder = torch.stack([angle.cos(), angle.sin(), height], -1)
    flat = 2 * torch.rand(total, points, 2, generator=g) - 1
    saddle = torch.cat([flat, (flat[..., :1] ** 2 - flat[..., 1:] ** 2)], -1)
    x = torch.stack([ball, 0.8 * box, 0.9 * cylinder, saddle])[y, torch.arange(total)]
    turn = 6.2832 * torch.rand(total, 1, generator=g)
    a, b = x[..., 0], x[..., 1]
    x = torch.stack([a * turn.cos() - b * turn.sin(), a * turn.sin() + b * turn.cos(), x[..., 2]], -1)
    return _cut(x + 0.05 * torch.randn(total, points, 3, generator=g), y, n)


def reviews(seed: int, n: int = 1000, length: int = 20) -> Split:
    """Token ids (N, length) below 60, padded with 0: words 1-8 praise, 9-16 blame; the class is which are more."""
    g = generator(seed, 73)
    total = n + 500
    x = torch.randint(17, 60, (total, length), generator=g)
    praise = torch.randint(1, 9, (total, length), generator=g)
    blame = torch.randint(9, 17, (total, length), generator=g)
    lean = torch.rand(total, 1, generator=g) * 0.5 + 0.05
    good = torch.rand(total, 1, generator=g) < 0.5
    lean = torch.where(good, lean + 0.25, 0.55 - lean).clamp(0.05, 0.95)
    toned = torch.rand(total, length, generator=g) < 0.45
    x = torch.where(toned, torch.where(torch.rand(total, length, generator=g) < lean, praise, blame), x)
    size = torch.randint(length // 2, length + 1, (total, 1), generator=g)
    x = torch.where(torch.arange(length) < size, x, torch.zeros_like(x))
    up, down = ((x >= 1) & (x < 9)).sum(1), ((x >= 9) & (x < 17)).sum(1)
    return _cut(x, (up > down).long(), n)


def communities(seed: int, nodes: int = 320, groups: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """A graph of groups: node features (nodes, 8), adjacency (nodes, nodes) without loops, and the group of a node."""
    g = generator(seed, 74)
    y = torch.arange(nodes) % groups
    same = y[:, None] == y
    chance = torch.where(same, 0.08, 0.012)
    upper = torch.triu(torch.rand(nodes, nodes, generator=g) < chance, 1)
    a = (upper | upper.T).float()
    centre = torch.randn(groups, 8, generator=g)
    return 0.6 * centre[y] + torch.randn(nodes, 8, generator=g), a, y


def bags(seed: int, n: int = 1000, size: int = 10) -> Split:
    """Sets (N, size, 2); the target (N, 1), of variance 1, adds the largest first number and the mean second one."""
    g = generator(seed, 75)
    x = torch.randn(n + 500, size, 2, generator=g)
    x[..., 1] += torch.randn(n + 500, 1, generator=g)
    y = x[..., 0].amax(1, keepdim=True) + 1.5 * x[..., 1].mean(1, keepdim=True)
    return _cut(x, (y - y.mean()) / y.std(), n)


def demand(seed: int, n: int = 900, length: int = 24) -> Split:
    """Hourly load (N, length, 1) with a daily and a slow swing; the target (N, 1) is the next hour's."""
    g = generator(seed, 76)
    hours = torch.arange(n + 600 + length).float()
    noise = 0.15 * torch.randn(len(hours), generator=g)
    load = torch.sin(hours * 2 * math.pi / 24) + 0.6 * torch.sin(hours * 2 * math.pi / 7.3) + noise
    load = load + 0.5 * torch.sin(hours * 2 * math.pi / 400)
    x = load.unfold(0, length, 1)[: n + 500]
    y = load[length : length + n + 500, None]
    return _cut(x[..., None].contiguous(), y, n)


def visits(seed: int, n: int = 1200) -> Split:
    """Six normal columns and a count (N, 1) drawn by a Poisson law around exp of a smooth function."""
    g = generator(seed, 77)
    x = torch.randn(n + 600, 6, generator=g)
    rate = torch.exp(1.2 + 0.5 * x[:, :1] - 0.6 * x[:, 1:2].abs() + 0.4 * x[:, 2:3] * x[:, 3:4].sign())
    return _cut(x, torch.poisson(rate, generator=g), n)


def ratings(seed: int, users: int = 60, films: int = 50, n: int = 2200) -> Split:
    """Pairs of ids (N, 2), user and film, and a rating (N,) of variance about 1: tastes times traits, plus noise."""
    g = generator(seed, 78)
    taste, trait = torch.randn(users, 3, generator=g), torch.randn(films, 3, generator=g)
    which = torch.randperm(users * films, generator=g)[: n + 600]
    pair = torch.stack([which // films, which % films], 1)
    y = (taste[pair[:, 0]] * trait[pair[:, 1]]).sum(1) / 3**0.5
    return _cut(pair, y + 0.3 * torch.randn(len(y), generator=g), n)


def spots(seed: int, n: int = 800) -> Split:
    """Pictures (N, 1, 10, 10) with one soft spot; the target (N, 2) is its place in [0, 1]."""
    g = generator(seed, 79)
    total = n + 400
    place = 1 + 7 * torch.rand(total, 2, generator=g)
    row, column = torch.meshgrid(torch.arange(10.0), torch.arange(10.0), indexing="ij")
    distance = (row - place[:, :1, None]) ** 2 + (column - place[:, 1:, None]) ** 2
    x = torch.exp(-distance / 2) + 0.15 * torch.randn(total, 10, 10, generator=g)
    return _cut(x[:, None], place / 9, n)


def gestures(seed: int, n: int = 800, length: int = 28) -> Split:
    """Strokes (N, length, 3), two coordinates and a pressure: circle, line, zigzag, figure of eight, spiral."""
    g = generator(seed, 80)
    total = n + 500
    t = torch.linspace(0, 1, length) + 0.15 * torch.rand(total, 1, generator=g)
    y = torch.randint(5, (total,), generator=g)
    w = 2 * math.pi * t
    zigzag = 2 * ((3 * t) % 1 - 0.5).abs() - 0.5
    across = torch.stack([w.cos(), 2 * t - 1, 2 * t - 1, w.sin(), t * (2 * w).cos()])
    along = torch.stack([w.sin(), 1.2 * t - 0.6, 2 * zigzag, (2 * w).sin(), t * (2 * w).sin()])
    rows = torch.arange(total)
    x = torch.stack([across[y, rows], along[y, rows], torch.sin(math.pi * t)], -1)
    return _cut(x + 0.12 * torch.randn(total, length, 3, generator=g), y, n)


def melodies(seed: int, n: int = 700, length: int = 20, notes: int = 12) -> Split:
    """Sequences of notes (N, length) from a sparse chain of order one; the target is the sequence one step on."""
    g = generator(seed, 81)
    chain = torch.softmax(3.0 * torch.randn(notes, notes, generator=g), 1)
    rows = [torch.randint(notes, (n + 300,), generator=g)]
    for _ in range(length):
        rows.append(torch.multinomial(chain[rows[-1]], 1, generator=g)[:, 0])
    song = torch.stack(rows, 1)
    return _cut(song[:, :-1], song[:, 1:], n)
