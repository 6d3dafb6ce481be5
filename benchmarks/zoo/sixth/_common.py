"""Tasks, loaders and small modules that the cases of this part share. Every task is a function of the seed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.zoo.data import Split, accuracy, generator, predict, r2

Score = Callable[[LightningModule], float]


class Learner(LightningModule):
    """A net, an objective of (net, batch) and a recipe for its optimizers."""

    def __init__(
        self, net: nn.Module, objective: Callable[..., Tensor], recipe: Callable[..., Any], name: str = "loss"
    ):
        super().__init__()
        self.net = net
        self.objective = objective
        self.recipe = recipe
        self.name = name

    def forward(self, *inputs: Any) -> Any:
        return self.net(*inputs)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.objective(self.net, batch)
        if self.name:
            self.log(self.name, loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log(f"val_{self.name or 'loss'}", self.objective(self.net, batch), batch_size=64)

    def configure_optimizers(self) -> Any:
        return self.recipe(self.parameters())


class Rows(LightningDataModule):
    """Training and held-out rows of a split."""

    def __init__(self, d: Split, size: int = 32, shuffle: bool = True) -> None:
        super().__init__()
        self.d, self.size, self.shuffle = d, size, shuffle

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(self.d.x, self.d.y), batch_size=self.size, shuffle=self.shuffle)

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(self.d.x_test, self.d.y_test), batch_size=200)


def supervised(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The objective of a batch (x, y)."""
    return lambda net, batch: loss(net(batch[0]), batch[1])


def optim(kind: str, lr: float, **options: Any) -> Callable[..., torch.optim.Optimizer]:
    """`optim("SGD", 0.1, momentum=0.9)`: a recipe."""
    return lambda parameters: getattr(torch.optim, kind)(parameters, lr=lr, **options)


def loader(*columns: Tensor, size: int = 32, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*columns), batch_size=size, **{"shuffle": True, **options})


def records(size: int = 32, **columns: Tensor) -> DataLoader[Any]:
    """Shuffled batches that are dicts."""
    rows: Any = [{k: v[i] for k, v in columns.items()} for i in range(len(next(iter(columns.values()))))]
    return DataLoader(rows, batch_size=size, shuffle=True)


def explains(x: Any, y: Tensor) -> Score:
    return lambda m: r2(predict(m, x), y)


def hits(x: Any, y: Tensor) -> Score:
    return lambda m: accuracy(predict(m, x), y)


def recalls(answer: Tensor, y: Tensor) -> float:
    """Recall averaged over the classes of y."""
    return torch.stack([(answer[y == k] == k).float().mean() for k in y.unique()]).mean().item()


def mlp(*widths: int, act: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), act()]
    return nn.Sequential(*layers[:-1])


class Recur(nn.Module):
    """A recurrent layer over (N, T, C) and a linear head on its last state."""

    def __init__(self, kind: type[nn.RNNBase], columns: int, hidden: int, out: int, **options: Any) -> None:
        super().__init__()
        self.body = kind(columns, hidden, batch_first=True, **options)
        self.head = nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)[0][:, -1])


class DeepSet(nn.Module):
    """Points (N, P, C) one by one, their mean and their maximum, then a head."""

    def __init__(self, columns: int = 2, width: int = 32, out: int = 3, act: Callable[[], nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.each = mlp(columns, width, width, act=act)
        self.head = mlp(2 * width, width, out, act=act)

    def forward(self, x: Tensor) -> Tensor:
        h = self.each(x)
        return self.head(torch.cat([h.mean(1), h.amax(1)], -1))


class Words(nn.Module):
    """Embedded ids (N, T), a self-attention block, and a class for each place or for all."""

    def __init__(self, symbols: int, out: int, length: int, dim: int = 24, pool: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(symbols, dim)
        self.place = nn.Parameter(0.3 * torch.randn(length, dim))
        self.block = nn.TransformerEncoderLayer(dim, 2, 2 * dim, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(dim, out)
        self.pool = pool

    def forward(self, ids: Tensor) -> Tensor:
        h = self.block(self.table(ids) + self.place)
        return self.head(h.mean(1) if self.pool else h)


def per_place(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), y.flatten())


# --- tasks ------------------------------------------------------------------------------------------------------------


def harvest(seed: int, n: int = 800, noise: float = 0.2) -> Split:
    """Six standard columns; the target (N, 1), of variance about 1, bends in four of them. R2 0.95 at best."""
    g = generator(seed, 61)
    x = torch.randn(n + 400, 6, generator=g)
    y = torch.sin(1.5 * x[:, 0]) + 0.6 * x[:, 1] * x[:, 2].tanh() + 0.4 * x[:, 3].abs() - 0.3
    y = (y + noise * torch.randn(n + 400, generator=g))[:, None]
    return Split(x[:n], y[:n], x[n:], y[n:])


def glyphs(seed: int, n: int = 700, noise: float = 0.3) -> Split:
    """Pictures (N, 1, 10, 10) of a stroke: upright, level, falling or rising, at a random place."""
    g = generator(seed, 62)
    total = n + 400
    y = torch.randint(4, (total,), generator=g)
    x = noise * torch.randn(total, 1, 10, 10, generator=g)
    top, left = (torch.randint(6, (total,), generator=g) for _ in range(2))
    rows = torch.arange(total)
    for k in range(5):
        down = torch.stack([top + k, top + 2, top + k, top + 4 - k])[y, rows]
        right = torch.stack([left + 2, left + k, left + k, left + k])[y, rows]
        x[rows, 0, down.clamp(max=9), right.clamp(max=9)] += 1.0
    return Split(x[:n], y[:n], x[n:], y[n:])


def glyph_net(out: int = 4, width: int = 8) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * width, out),
    )


def turbines(seed: int, n: int = 700, length: int = 20) -> Split:
    """Windows (N, T, 3) of drifting channels; the target (N, 1) joins the drifts and the last level."""
    g = generator(seed, 63)
    total = n + 400
    slope, level = (torch.randn(total, 1, 3, generator=g) for _ in range(2))
    time = torch.linspace(-1, 1, length)[:, None]
    x = level * 0.6 + slope * time * 0.8 + 0.3 * torch.randn(total, length, 3, generator=g)
    y = 0.7 * slope[:, 0, :1] + 0.6 * (level[:, 0, 1:2] * slope[:, 0, 2:3]).tanh() + 0.3 * level[:, 0, 2:3]
    return Split(x[:n], y[:n], x[n:], y[n:])


def baskets(seed: int, n: int = 900, length: int = 10, symbols: int = 30) -> Split:
    """Ids (N, T) with padding 0 at the end; each of three kitchens favours ten of the ids."""
    g = generator(seed, 64)
    total = n + 400
    y = torch.randint(3, (total,), generator=g)
    own = torch.randint(10, (total, length), generator=g) * 3 + y[:, None]
    strange = torch.randint(symbols, (total, length), generator=g)
    x = 1 + torch.where(torch.rand(total, length, generator=g) < 0.5, own, strange)
    kept = torch.randint(4, length + 1, (total, 1), generator=g)
    x = x * (torch.arange(length) < kept)
    return Split(x[:n], y[:n], x[n:], y[n:])


def clouds(seed: int, n: int = 700, points: int = 18) -> Split:
    """Sets of points (N, P, 2) on a ring, on a turned line or in a heap."""
    g = generator(seed, 65)
    total = n + 400
    y = torch.randint(3, (total,), generator=g)
    angle = 2 * math.pi * torch.rand(total, points, generator=g)
    turn = 2 * math.pi * torch.rand(total, 1, generator=g)
    along = 2 * torch.randn(total, points, generator=g).tanh()
    ring = torch.stack([angle.cos(), angle.sin()], -1)
    line = torch.stack([along * turn.cos(), along * turn.sin()], -1)
    heap = 0.8 * torch.randn(total, points, 2, generator=g)
    x = torch.stack([ring, line, heap])[y, torch.arange(total)] + 0.15 * torch.randn(total, points, 2, generator=g)
    return Split(x[:n], y[:n], x[n:], y[n:])


def networks(seed: int, n: int = 600, nodes: int = 8) -> Split:
    """Graphs as (N, V, V + 4): normalised adjacency beside four columns; a target (N, 1) of neighbouring nodes."""
    g = generator(seed, 66)
    total = n + 300
    edges = (torch.rand(total, nodes, nodes, generator=g) < 0.3).float().triu(1)
    edges = edges + edges.mT + torch.eye(nodes)
    x = torch.randn(total, nodes, 4, generator=g)
    a = edges / edges.sum(-1, keepdim=True)
    near = a @ x
    y = (x[..., 0] * near[..., 1] + (near[..., 2] * 2).tanh()).sum(1, keepdim=True)
    y = (y - y.mean()) / y.std()
    both = torch.cat([a, x], -1)
    return Split(both[:n], y[:n], both[n:], y[n:])


class GraphNet(nn.Module):
    """Messages along the rows of the adjacency, summed over the nodes."""

    def __init__(self, width: int = 32, layers: int = 2, act: Callable[[], nn.Module] = nn.ReLU, skip: bool = True):
        super().__init__()
        self.start = nn.Linear(4, width)
        self.own = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.near = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(layers))
        self.act, self.skip = act(), skip
        self.head = mlp(width, width, 1)

    def forward(self, both: Tensor) -> Tensor:
        a, h = both[..., :-4], self.start(both[..., -4:])
        for own, near in zip(self.own, self.near, strict=True):
            new = self.act(own(h) + near(a @ h))
            h = h + new if self.skip else new
        return self.head(h.sum(1) / 3)


def tags(seed: int, n: int = 900, labels: int = 6) -> Split:
    """Rows of twelve columns with six yes-or-no answers each, every one a bent function of three columns."""
    g = generator(seed, 67)
    x = torch.randn(n + 400, 12, generator=g)
    w = torch.randn(12, labels, generator=g) / 2
    y = ((x @ w) + 0.8 * x[:, :labels] * x[:, labels:] > 0.3).float()
    return Split(x[:n], y[:n], x[n:], y[n:])


def grades(seed: int, n: int = 800) -> Split:
    """Five ordered grades cut from a smooth score of six columns."""
    d = harvest(seed, n, 0.15)
    edges = torch.tensor([-1.0, -0.35, 0.35, 1.0])
    return d.map_targets(lambda y: torch.bucketize(y[:, 0], edges))


def stars(seed: int, n: int = 2400, users: int = 60, items: int = 50, rank: int = 3) -> Split:
    """Pairs of ids (N, 2) and a rating (N,) of variance about 1 from factors of this rank."""
    g = generator(seed, 68)
    u, v = torch.randn(users, rank, generator=g), torch.randn(items, rank, generator=g)
    pairs = torch.stack(
        [torch.randint(users, (n + 500,), generator=g), torch.randint(items, (n + 500,), generator=g)], 1
    )
    y = (u[pairs[:, 0]] * v[pairs[:, 1]]).sum(1) / rank**0.5 + 0.2 * torch.randn(n + 500, generator=g)
    return Split(pairs[:n], y[:n], pairs[n:], y[n:])


class Factors(nn.Module):
    """A dot product of two tables and a bias for each id."""

    def __init__(self, users: int = 60, items: int = 50, dim: int = 6, scale: float = 0.3) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(users, dim), nn.Embedding(items, dim)
        self.offset = nn.Embedding(items, 1)
        for table in (self.users, self.items, self.offset):
            nn.init.normal_(table.weight, std=scale)

    def forward(self, pairs: Tensor) -> Tensor:
        u, v = pairs.unbind(1)
        return (self.users(u) * self.items(v)).sum(1) + self.offset(v)[:, 0]


def lifetimes(seed: int, n: int = 800) -> Split:
    """Five columns; the target (N, 2) is a time and whether the end was seen."""
    g = generator(seed, 69)
    x = torch.randn(n + 400, 5, generator=g)
    risk = 0.9 * x[:, 0] - 0.7 * x[:, 1] + 0.6 * (x[:, 2].abs() - 0.8)
    time = -torch.log(torch.rand(n + 400, generator=g).clamp(min=1e-6)) * torch.exp(-risk)
    end = 3 * torch.rand(n + 400, generator=g) + 0.2
    y = torch.stack([torch.minimum(time, end), (time <= end).float()], 1)
    return Split(x[:n], y[:n], x[n:], y[n:])


def concordance(risk: Tensor, y: Tensor) -> float:
    """Share of comparable pairs in which the one that ended first has the higher risk."""
    time, seen = y.unbind(1)
    first = (time[:, None] < time[None]) & (seen[:, None] > 0)
    return (risk[:, None] > risk[None])[first].float().mean().item()


def cox(risk: Tensor, y: Tensor) -> Tensor:
    """Minus the mean partial log-likelihood within the batch."""
    time, seen = y.unbind(1)
    risk = risk.reshape(-1)
    later = time[None] >= time[:, None]
    total = torch.where(later, risk[None], torch.tensor(-1e9)).logsumexp(1)
    return -((risk - total) * seen).sum() / seen.sum().clamp(min=1)


def branches(seed: int, n: int = 900) -> Split:
    """A curve that folds back: up to three answers (N, 1) for one x (N, 1)."""
    g = generator(seed, 70)
    y = torch.rand(n + 400, 1, generator=g)
    x = y + 0.3 * torch.sin(2 * math.pi * y) + 0.03 * torch.randn(n + 400, 1, generator=g)
    x, y = 4 * (x - 0.5), 4 * (y - 0.5)
    return Split(x[:n], y[:n], x[n:], y[n:])


class Mixture(nn.Module):
    """Shares, centres and log widths of five normals."""

    def __init__(self, width: int = 32, parts: int = 5) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, 3 * parts))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def mixture_nll(out: Tensor, y: Tensor) -> Tensor:
    share, centre, width = out.chunk(3, -1)
    width = width.clamp(-4, 4)
    each = share.log_softmax(-1) - width - 0.5 * ((y - centre) / width.exp()).square()
    return -each.logsumexp(-1).mean() + 0.919


def flow(seed: int, n: int = 900) -> Split:
    """States (N, 2) and their rates of change (N, 2) under a damped swing."""
    g = generator(seed, 71)
    x = 1.5 * torch.randn(n + 400, 2, generator=g)
    y = torch.stack([x[:, 1], -torch.sin(2 * x[:, 0]) - 0.3 * x[:, 1] * x[:, 0].square().clamp(max=4)], 1)
    y = y + 0.05 * torch.randn(n + 400, 2, generator=g)
    return Split(x[:n], y[:n], x[n:], y[n:])


def riddles(seed: int, n: int = 800, length: int = 8, symbols: int = 10) -> Split:
    """Ids (N, T); the answer at each place is the id at the mirrored place."""
    g = generator(seed, 72)
    x = torch.randint(symbols, (n + 300, length), generator=g)
    y = x.flip(1)
    return Split(x[:n], y[:n], x[n:], y[n:])


def clips(seed: int, n: int = 700, length: int = 48) -> Split:
    """Sounds (N, 1, T) of three pitches with random phase and loudness."""
    g = generator(seed, 73)
    total = n + 400
    y = torch.randint(3, (total,), generator=g)
    pitch = torch.tensor([0.35, 0.7, 1.2])[y][:, None]
    phase, loud = 6.28 * torch.rand(total, 1, generator=g), 0.6 + torch.rand(total, 1, generator=g)
    x = loud * torch.sin(pitch * torch.arange(length) + phase) + 0.4 * torch.randn(total, length, generator=g)
    return Split(x[:n, None], y[:n], x[n:, None], y[n:])


class ClipNet(nn.Module):
    """Two convolutions over time, then the mean and the deviation of every channel."""

    def __init__(self, width: int = 12, out: int = 3, floor: float = 1e-4) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(1, width, 5, padding=2), nn.ReLU(), nn.Conv1d(width, width, 5, stride=2), nn.ReLU()
        )
        self.head = nn.Linear(2 * width, out)
        self.floor = floor

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        spread = (h.var(-1) + self.floor).sqrt()
        return self.head(torch.cat([h.mean(-1), spread], 1))


def spots(seed: int, n: int = 400, side: int = 12) -> Split:
    """Noisy pictures (N, 1, S, S) of a bright disc, and its mask of the same shape."""
    g = generator(seed, 74)
    total = n + 200
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    cy, cx = (2 + (side - 4) * torch.rand(total, 1, 1, generator=g) for _ in range(2))
    size = 1.5 + 1.5 * torch.rand(total, 1, 1, generator=g)
    mask = ((row - cy).square() + (column - cx).square() < size.square()).float()[:, None]
    x = mask + 0.6 * torch.randn(total, 1, side, side, generator=g)
    return Split(x[:n], mask[:n], x[n:], mask[n:])


def spot_net(width: int = 8, norm: Callable[[int], nn.Module] = nn.Identity) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        norm(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        norm(width),
        nn.ReLU(),
        nn.Conv2d(width, 1, 3, padding=1),
    )


def overlap(x: Tensor, mask: Tensor) -> Score:
    """Twice the common area over the sum of both."""

    def score(m: LightningModule) -> float:
        found = (predict(m, x) > 0).float()
        return (2 * (found * mask).sum() / (found.sum() + mask.sum()).clamp(min=1)).item()

    return score
