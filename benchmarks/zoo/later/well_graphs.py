"""Graphs, sets, clouds of points, ids and experts."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from benchmarks.zoo.case import Training, well
from benchmarks.zoo.data import generator, predict
from benchmarks.zoo.later._well_common import explained, hit_rate, loader, stack


class Citizens(LightningModule):
    """One graph, one batch: forty labelled nodes, the rest are judged."""

    def __init__(self, adjacency: Tensor) -> None:
        super().__init__()
        full = adjacency + torch.eye(len(adjacency))
        degree = full.sum(1).rsqrt()
        self.register_buffer("norm", degree[:, None] * full * degree[None])
        self.one, self.two = nn.Linear(16, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.dropout(F.relu(self.norm @ self.one(x)), 0.5, self.training)
        return self.norm @ self.two(h)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y, known = batch
        return F.cross_entropy(self(x)[known], y[known])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2, weight_decay=5e-3)


@well("v-forty-known-citizens", "gcn", "accuracy on unlabelled nodes, 0.9 and more; one batch an epoch")
def citizens(seed: int) -> Training:
    g = generator(seed, 581)
    y = torch.arange(300) % 3
    x = torch.randn(300, 16, generator=g) + 0.6 * F.one_hot(y, 16)
    chance = torch.where(y[:, None] == y, 0.08, 0.01)
    upper = (torch.rand(300, 300, generator=g) < chance).float().triu(1)
    known = torch.zeros(300, dtype=torch.bool)
    known[:40] = True
    graph = [(x, y, known)]
    score = lambda m: (predict(m, x).argmax(1) == y)[~known].float().mean().item()  # noqa: E731
    train = DataLoader(graph, batch_size=None)
    return Training(Citizens(upper + upper.T), train, score, trainer={"max_epochs": 150, "log_every_n_steps": 1})


class Bonds(LightningModule):
    """Messages along bonds of small molecules of unlike size, joined to one large graph by the collate function."""

    def __init__(self) -> None:
        super().__init__()
        self.atom = nn.Embedding(4, 24)
        self.message = nn.ModuleList(nn.Linear(48, 24) for _ in range(2))
        self.update = nn.GRUCell(24, 24)
        self.read = stack(24, 24, 1)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        h, (a, b) = self.atom(batch["atoms"]), batch["bonds"]
        for message in self.message:
            sent = F.relu(message(torch.cat([h[a], h[b]], 1)))
            h = self.update(torch.zeros_like(h).index_add(0, b, sent), h)
        return torch.zeros(len(batch["y"])).index_add(0, batch["owner"], self.read(h)[:, 0])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.l1_loss(self(batch), batch["y"])
        self.log("mae", loss, batch_size=len(batch["y"]))
        return loss

    def configure_optimizers(self) -> Any:
        opt = torch.optim.Adam(self.parameters(), lr=6e-3)
        return {"optimizer": opt, "lr_scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(opt, 14)}


def join(rows: list[Any]) -> dict[str, Tensor]:
    sizes = torch.tensor([len(r[0]) for r in rows])
    shift = F.pad(sizes.cumsum(0), (1, 0))[:-1]
    return {
        "atoms": torch.cat([r[0] for r in rows]),
        "bonds": torch.cat([r[1] + s for r, s in zip(rows, shift, strict=True)], 1),
        "owner": torch.arange(len(rows)).repeat_interleave(sizes),
        "y": torch.stack([r[2] for r in rows]),
    }


@well("v-sums-over-bonds", "mpnn", "R2 of a sum over bonds of pair energies, with noise")
def bonds(seed: int) -> Training:
    g = generator(seed, 582)
    pair = torch.randn(4, 4, generator=g)
    rows: list[Any] = []
    for _ in range(900):
        n = int(torch.randint(4, 9, (1,), generator=g))
        atoms = torch.randint(4, (n,), generator=g)
        a = torch.arange(1, n)
        b = (torch.rand(n - 1, generator=g) * a).long()
        y = (pair + pair.T)[atoms[a], atoms[b]].sum() / 3 + 0.1 * torch.randn((), generator=g)
        rows.append((atoms, torch.stack([torch.cat([a, b]), torch.cat([b, a])]), y))
    new = join(rows[600:])
    train = DataLoader(rows[:600], batch_size=30, shuffle=True, collate_fn=join)
    return Training(Bonds(), train, explained(new, new["y"]), trainer={"max_epochs": 14})


class Spread(LightningModule):
    """A sum over a set of numbers, then a net: learns the logarithm of the set's deviation."""

    def __init__(self) -> None:
        super().__init__()
        self.phi, self.rho = stack(1, 32, 32), stack(32, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.rho(self.phi(x[..., None]).mean(1))[:, 0]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("mse", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_mse", F.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        opt = torch.optim.Adam(self.parameters(), lr=3e-3)
        plan = torch.optim.lr_scheduler.ReduceLROnPlateau(opt, factor=0.3, patience=2)
        return {"optimizer": opt, "lr_scheduler": {"scheduler": plan, "monitor": "val_mse"}}


@well("v-spread-of-a-set", "deep-sets", "R2 of the true spread")
def spread(seed: int) -> Training:
    g = generator(seed, 583)
    y = torch.randn(2400, generator=g) * 0.5
    x = y.exp()[:, None] * torch.randn(2400, 40, generator=g) + torch.randn(2400, 1, generator=g)
    val = loader(x[1800:], y[1800:], size=300, shuffle=False)
    return Training(
        Spread(), loader(x[:1800], y[:1800], size=60), explained(x[1800:], y[1800:]), val, {"max_epochs": 24}
    )


class Cloud(LightningModule):
    """The greatest of each feature over a cloud: most points get no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.point = nn.Sequential(nn.Conv1d(3, 32, 1), nn.BatchNorm1d(32), nn.ReLU(), nn.Conv1d(32, 64, 1))
        self.out = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.point(x.transpose(1, 2)).amax(2))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch["points"]), batch["label"])

    def configure_optimizers(self) -> Any:
        opt = torch.optim.AdamW(self.parameters(), lr=4e-3)
        return [opt], [{"scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(opt, 240), "interval": "step"}]


@well("v-clouds-of-four-kinds", "pointnet", "accuracy on new clouds, 0.95 and more")
def clouds(seed: int) -> Training:
    g = generator(seed, 584)
    label = torch.randint(4, (1100,), generator=g)
    u = F.normalize(torch.randn(1100, 32, 3, generator=g), dim=-1)
    flat = 2 * torch.rand(1100, 32, 3, generator=g) - 1
    plane = flat * torch.tensor([1.0, 1.0, 0.0])
    pole = torch.cat([F.normalize(u[..., :2], dim=-1) * 0.6, flat[..., 2:]], -1)
    kinds = torch.stack([u, flat, plane, pole])[label, torch.arange(1100)]
    turn = torch.linalg.qr(torch.randn(1100, 3, 3, generator=g)).Q
    points = kinds @ turn + 0.05 * torch.randn(1100, 32, 3, generator=g)
    rows: Any = [{"points": points[i], "label": label[i]} for i in range(800)]
    train = DataLoader(rows, batch_size=40, shuffle=True)
    return Training(Cloud(), train, hit_rate(points[800:], label[800:]), trainer={"max_epochs": 12})


class Pairwise(LightningModule):
    """A factorisation machine over one-hot fields: each batch touches a few rows of the tables."""

    def __init__(self, sizes: tuple[int, ...] = (40, 30, 12, 7), dim: int = 4) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor([0, *sizes[:-1]]).cumsum(0))
        self.bias = nn.Parameter(torch.zeros(()))
        self.single, self.factor = nn.Embedding(sum(sizes), 1), nn.Embedding(sum(sizes), dim)
        nn.init.zeros_(self.single.weight)
        nn.init.normal_(self.factor.weight, std=0.1)

    def forward(self, ids: Tensor) -> Tensor:
        v = self.factor(ids + self.shift)
        pairs = 0.5 * (v.sum(1).square() - v.square().sum(1)).sum(1)
        return self.bias + self.single(ids + self.shift).sum((1, 2)) + pairs

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        ids, clicked = batch
        loss = F.binary_cross_entropy_with_logits(self(ids), clicked)
        self.log("logloss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_logloss", F.binary_cross_entropy_with_logits(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=8e-3, weight_decay=1e-5)


@well("v-clicks-by-factors", "factorisation", "R2 of the true log-odds; clicks themselves are half chance")
def clicks(seed: int) -> Training:
    g = generator(seed, 585)
    sizes = (40, 30, 12, 7)
    ids = torch.stack([torch.randint(s, (24000,), generator=g) for s in sizes], 1)
    single = [0.5 * torch.randn(s, generator=g) for s in sizes]
    factor = [0.6 * torch.randn(s, 2, generator=g) for s in sizes]
    v = torch.stack([f[ids[:, k]] for k, f in enumerate(factor)], 1)
    odds = sum(w[ids[:, k]] for k, w in enumerate(single)) + 0.5 * (v.sum(1) ** 2 - (v**2).sum(1)).sum(1) - 1
    y = (torch.rand(24000, generator=g) < odds.sigmoid()).float()
    train = loader(ids[:20000], y[:20000], size=256)
    val = loader(ids[20000:], y[20000:], size=2000, shuffle=False)
    return Training(Pairwise(), train, explained(ids[20000:], odds[20000:]), val, {"max_epochs": 5})


class Ratings(LightningModule):
    """Biases and factors of users and films; the noise of the ratings is most of the error."""

    def __init__(self, users: int, films: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(3.5))
        self.user_bias, self.film_bias = nn.Embedding(users, 1), nn.Embedding(films, 1)
        self.user, self.film = nn.Embedding(users, 3), nn.Embedding(films, 3)
        for table in (self.user_bias, self.film_bias):
            nn.init.zeros_(table.weight)
        for table in (self.user, self.film):
            nn.init.normal_(table.weight, std=0.05)

    def forward(self, pair: Tensor) -> Tensor:
        u, f = pair.unbind(1)
        biases = self.mean + self.user_bias(u)[:, 0] + self.film_bias(f)[:, 0]
        return biases + (self.user(u) * self.film(f)).sum(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        pair, stars = batch
        error = (self(pair) - stars).square().mean()
        used = self.user(pair[:, 0]).square().sum(1) + self.film(pair[:, 1]).square().sum(1)
        self.log("rmse", error.sqrt())
        return error + 0.02 * used.mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


@well("v-stars-for-films", "factorisation", "R2 of the ratings, 0.6 at best with noise of 0.7 stars")
def stars(seed: int) -> Training:
    g = generator(seed, 586)
    pair = torch.stack([torch.randint(150, (16000,), generator=g), torch.randint(90, (16000,), generator=g)], 1)
    bias_u, bias_f = 0.4 * torch.randn(150, generator=g), 0.4 * torch.randn(90, generator=g)
    u, f = 0.65 * torch.randn(150, 2, generator=g), 0.9 * torch.randn(90, 2, generator=g)
    clean = 3.4 + bias_u[pair[:, 0]] + bias_f[pair[:, 1]] + (u[pair[:, 0]] * f[pair[:, 1]]).sum(1)
    y = clean + 0.7 * torch.randn(16000, generator=g)
    train = loader(pair[:13000], y[:13000], size=200)
    return Training(Ratings(150, 90), train, explained(pair[13000:], y[13000:]), trainer={"max_epochs": 8})


class Experts(LightningModule):
    """Four experts behind a gate, with a term that keeps the gate in balance."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = stack(6, 16, 4)
        self.experts = nn.ModuleList(stack(6, 24, 1) for _ in range(4))

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        share = self.gate(x).softmax(-1)
        out = torch.cat([e(x) for e in self.experts], 1)
        return (share * out).sum(1), share

    def forward(self, x: Tensor) -> Tensor:
        return self.route(x)[0]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        out, share = self.route(x)
        used = F.one_hot(share.argmax(1), 4).float().mean(0)
        balance = 4 * (used * share.mean(0)).sum()
        loss = F.mse_loss(out, y)
        self.log_dict({"mse": loss, "balance": balance})
        return loss + 0.01 * balance

    def configure_optimizers(self) -> Any:
        opt = torch.optim.Adam(self.parameters(), lr=8e-3)
        sched = torch.optim.lr_scheduler.OneCycleLR(opt, 1.5e-2, total_steps=480)
        return [opt], [{"scheduler": sched, "interval": "step"}]


@well("v-four-experts", "moe", "R2 where the sign of a column picks the rule; 0.92 at best")
def experts(seed: int) -> Training:
    g = generator(seed, 587)
    x = torch.randn(4000, 6, generator=g)
    rule = (x[:, 0] > 0).long()
    slopes = torch.tensor([[1.0, 0, 0, 1], [0, -1, 1, 0]])
    y = (x[:, 2:] * slopes[rule]).sum(1) / 1.414
    y = y + 0.3 * torch.randn(4000, generator=g)
    train = loader(x[:3000], y[:3000], size=100)
    return Training(Experts(), train, explained(x[3000:], y[3000:]), trainer={"max_epochs": 16})


class Links(LightningModule):
    """Which nodes are joined: inner products of learnt vectors against drawn strangers."""

    def __init__(self, nodes: int) -> None:
        super().__init__()
        self.vectors = nn.Embedding(nodes, 8)
        nn.init.normal_(self.vectors.weight, std=0.3)
        self.bias = nn.Parameter(torch.zeros(()))
        self.nodes = nodes

    def forward(self, pair: Tensor) -> Tensor:
        a, b = self.vectors(pair).unbind(-2)
        return (a * b).sum(-1) + self.bias

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (pair,) = batch
        strangers = torch.stack([pair[:, 0].repeat(3), torch.randint(self.nodes, (3 * len(pair),))], 1)
        loss = F.softplus(-self(pair)).mean() + F.softplus(self(strangers)).mean()
        self.log("nce", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adagrad(self.parameters(), lr=0.2)


@well("v-who-knows-whom", "embeddings", "share of hidden friends ranked over strangers; the true blocks give 0.87")
def links(seed: int) -> Training:
    g = generator(seed, 588)
    block = torch.randint(5, (250,), generator=g)
    chance = torch.where(block[:, None] == block, 0.32, 0.02)
    met = (torch.rand(250, 250, generator=g) < chance).triu(1)
    edges = met.nonzero()[torch.randperm(int(met.sum()), generator=g)]
    known, hidden = edges[400:], edges[:400]
    apart = torch.randint(250, (2000, 2), generator=g)
    apart = apart[~(met | met.T)[apart[:, 0], apart[:, 1]] & (apart[:, 0] != apart[:, 1])]

    def score(m: Any) -> float:
        with torch.no_grad():
            a, b = m(hidden)[:, None], m(apart)
            return (a > b).float().mean().item()

    train = loader(torch.cat([known, known.flip(1)]), size=128)
    return Training(Links(250), train, score, trainer={"max_epochs": 10})
