"""Tasks of the `a` files: waves, pictures, graphs, sets, walks, words and tables; each is a function of the seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.zoo.data import Split, generator, predict

Score = Callable[[LightningModule], float]


def loader(*columns: Tensor, size: int = 32, **options: Any) -> DataLoader[Any]:
    """Shuffled tuples of these columns."""
    return DataLoader(TensorDataset(*columns), batch_size=size, **{"shuffle": True, **options})


def records(size: int = 32, shuffle: bool = True, **columns: Tensor) -> DataLoader[Any]:
    """Shuffled dicts of these columns."""
    rows: Any = [{k: v[i] for k, v in columns.items()} for i in range(len(next(iter(columns.values()))))]
    return DataLoader(rows, batch_size=size, shuffle=shuffle)


def finite(score: float) -> float:
    """A floor under scores: -1 for what is not a number or is worse than that."""
    return max(score, -1.0) if math.isfinite(score) else -1.0


def explained(x: Any, y: Tensor) -> Score:
    """The share of the variance of `y` that the outputs explain, -1 at the least."""

    def score(module: LightningModule) -> float:
        out = predict(module, x).reshape(y.shape)
        return finite(1 - ((out - y).square().mean() / (y - y.mean(0)).square().mean()).item())

    return score


def hits(x: Any, y: Tensor) -> Score:
    """The share of places where the largest output is the class."""
    return lambda module: (predict(module, x).argmax(-1) == y).float().mean().item()


def minus(loss: Callable[..., Tensor], x: Any, y: Tensor) -> Score:
    """Minus the loss on these data, -1000 at the least."""

    def score(module: LightningModule) -> float:
        value = loss(predict(module, x), y).item()
        return max(-value, -1000.0) if math.isfinite(value) else -1000.0

    return score


def beats(seed: int, n: int = 900, length: int = 64, noise: float = 0.3) -> Split:
    """Heart beats (N, 1, length): regular, early every third, or without a pause; the rhythm is the class."""
    g = generator(seed, 401)
    total = n + 500
    y = torch.randint(3, (total,), generator=g)
    at = torch.zeros(total, length)
    gaps = torch.tensor([[12, 12, 12, 12, 12], [12, 6, 18, 12, 6], [7, 15, 9, 17, 8]])
    place = torch.randint(4, (total,), generator=g)
    for k in range(5):
        at[torch.arange(total), place.clamp(max=length - 1)] += 1.0
        place = place + gaps[y, k] + torch.randint(-1, 2, (total,), generator=g)
    pulse = torch.tensor([0.2, 1.0, -0.5, 0.1])
    x = torch.nn.functional.conv1d(at[:, None], pulse.flip(0)[None, None], padding=3)[..., :length]
    x = 2.0 * x + noise * torch.randn(total, 1, length, generator=g)
    return Split(x[:n], y[:n], x[n:], y[n:])


def gratings(seed: int, n: int = 800, side: int = 12, noise: float = 0.5) -> Split:
    """Stripes (N, 1, side, side) of one of four directions and any phase; the direction is the class."""
    g = generator(seed, 402)
    total = n + 500
    y = torch.randint(4, (total,), generator=g)
    angle = y * math.pi / 4 + 0.1 * torch.randn(total, generator=g)
    phase = 2 * math.pi * torch.rand(total, 1, 1, generator=g)
    row, column = torch.meshgrid(torch.arange(float(side)), torch.arange(float(side)), indexing="ij")
    wave = angle.cos()[:, None, None] * row + angle.sin()[:, None, None] * column
    x = (torch.sin(1.4 * wave + phase) + noise * torch.randn(total, side, side, generator=g))[:, None]
    return Split(x[:n], y[:n], x[n:], y[n:])


def bodies(seed: int, n: int = 700, points: int = 24) -> Split:
    """Points (N, points, 3) on a ball, a tube, a plate or a rod, turned at random; the body is the class."""
    g = generator(seed, 403)
    total = n + 400
    y = torch.randint(4, (total,), generator=g)
    raw = torch.randn(total, points, 3, generator=g)
    flat = 2 * torch.rand(total, points, 3, generator=g) - 1
    ball = raw / raw.norm(dim=-1, keepdim=True)
    tube = torch.cat([raw[..., :2] / raw[..., :2].norm(dim=-1, keepdim=True), 1.5 * flat[..., 2:]], -1)
    plate = torch.cat([1.3 * flat[..., :2], 0.1 * flat[..., 2:]], -1)
    rod = torch.cat([0.2 * flat[..., :2], 2.0 * flat[..., 2:]], -1)
    x = torch.stack([ball, tube, plate, rod])[y, torch.arange(total)]
    turn = torch.linalg.qr(torch.randn(total, 3, 3, generator=g)).Q
    x = x @ turn + 0.05 * torch.randn(total, points, 3, generator=g)
    return Split(x[:n], y[:n], x[n:], y[n:])


def molecules(seed: int, n: int = 700, nodes: int = 9, kinds: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Graphs: kinds (N, nodes), adjacency (N, nodes, nodes), and the number of bonds of unlike atoms, standardised."""
    g = generator(seed, 404)
    kind = torch.randint(kinds, (n, nodes), generator=g)
    upper = torch.triu((torch.rand(n, nodes, nodes, generator=g) < 0.3).float(), 1)
    adjacency = upper + upper.transpose(1, 2)
    unlike = (kind[:, :, None] != kind[:, None, :]).float()
    target = (upper * unlike).sum((1, 2))
    return kind, adjacency, ((target - target.mean()) / target.std())[:, None]


def switches(seed: int, n: int = 900, length: int = 16, symbols: int = 4) -> Split:
    """Sequences (N, length) of blanks (0) and a few symbols; the class is the last symbol that is no blank."""
    g = generator(seed, 405)
    total = n + 500
    x = torch.randint(1, symbols + 1, (total, length), generator=g)
    x = x * (torch.rand(total, length, generator=g) < 0.35)
    x[:, 0] = torch.randint(1, symbols + 1, (total,), generator=g)
    last = (torch.arange(length) * (x > 0)).argmax(1)
    y = x[torch.arange(total), last] - 1
    return Split(x[:n], y[:n], x[n:], y[n:])


def attractor(seed: int, n: int = 1200, noise: float = 0.0) -> Tensor:
    """A path (n, 3) of Lorenz's equations, standardised."""
    g = generator(seed, 406)
    state = torch.tensor([1.0, 1.0, 25.0]) + torch.randn(3, generator=g)
    path = []
    for step in range(n + 200):
        for _ in range(4):
            a, b, c = state.tolist()
            state = state + 0.005 * torch.tensor([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c])
        if step >= 200:
            path.append(state)
    rows = torch.stack(path)
    rows = (rows - rows.mean(0)) / rows.std(0)
    return rows + noise * torch.randn(rows.shape, generator=g)


def arrivals(seed: int, n: int = 1000, columns: int = 6) -> Split:
    """Counts (N, 1) whose logarithmic rate is a smooth function of standard normal columns."""
    g = generator(seed, 407)
    x = torch.randn(n + 1000, columns, generator=g)
    rate = (0.8 + 0.6 * x[:, 0] - 0.5 * x[:, 1] + 0.5 * torch.sin(2 * x[:, 2])).clamp(-3, 3).exp()
    y = torch.poisson(rate, generator=g)[:, None]
    return Split(x[:n], y[:n], x[n:], y[n:])


def bowl(seed: int, n: int = 900, columns: int = 4, noise: float = 0.1) -> Split:
    """A surface of hills and a bowl over a cube: targets (N, 1) of variance about 1 that no plane explains."""
    g = generator(seed, 408)
    x = 2 * torch.rand(n + 900, columns, generator=g) - 1
    y = (x**2).sum(1, keepdim=True) - columns / 3 + 0.6 * torch.sin(3.0 * x[:, :1]) * torch.cos(3.0 * x[:, 1:2])
    y = y / y.std() + noise * torch.randn(len(x), 1, generator=g)
    x = x * math.sqrt(3)
    return Split(x[:n], y[:n], x[n:], y[n:])


def purchases(seed: int, users: int = 60, items: int = 50, n: int = 4000, rank: int = 3) -> Split:
    """Pairs (N, 2) of a user and an item, and how much one liked the other: low rank and a little noise."""
    g = generator(seed, 409)
    table = torch.randn(users, rank, generator=g) @ torch.randn(rank, items, generator=g) / math.sqrt(rank)
    total = n + 1000
    pair = torch.stack([torch.randint(users, (total,), generator=g), torch.randint(items, (total,), generator=g)], 1)
    y = table[pair[:, 0], pair[:, 1]][:, None] + 0.2 * torch.randn(total, 1, generator=g)
    return Split(pair[:n], y[:n], pair[n:], y[n:])


def verses(seed: int, n: int = 700, length: int = 20, symbols: int = 16) -> tuple[Tensor, Tensor, float]:
    """Rows (N, length) of a chain where two symbols decide the next; train, test, and its entropy a symbol."""
    g = generator(seed, 410)
    table = torch.softmax(2.5 * torch.randn(symbols, symbols, symbols, generator=g), -1)
    total = n + 300
    rows = torch.randint(symbols, (total, length), generator=g)
    entropy = 0.0
    for t in range(2, length):
        p = table[rows[:, t - 2], rows[:, t - 1]]
        rows[:, t] = torch.multinomial(p, 1, generator=g)[:, 0]
        entropy += -(p * p.log()).sum(-1).mean().item() / (length - 2)
    return rows[:n], rows[n:], entropy
