"""Depth and time: what gradients become on a long way, and what the first weights make of them."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.fourth._a_common import (
    bodies,
    bowl,
    explained,
    finite,
    gratings,
    hits,
    loader,
    minus,
    molecules,
    records,
)

# --- growing ------------------------------------------------------------------------------------------------------


class StateSpace(LightningModule):
    """A linear state with a matrix of its own, read out at the end; `bounded` keeps the matrix's modes below one."""

    def __init__(self, bounded: bool) -> None:
        super().__init__()
        self.bounded = bounded
        self.modes = nn.Parameter(torch.linspace(1.04, 0.6, 24) if not bounded else torch.linspace(4.0, 0.5, 24))
        self.inlet = nn.Linear(1, 24)
        self.read = nn.Sequential(nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 1))

    def forward(self, x: Tensor) -> Tensor:
        modes = torch.sigmoid(self.modes) if self.bounded else self.modes
        u = self.inlet(x)
        h = torch.zeros_like(u[:, 0])
        for t in range(x.shape[1]):
            h = modes * h + u[:, t]
        return self.read[2](self.read[1](self.read[0](h))) + 0.1 * h.mean(1, keepdim=True)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch["x"]), batch["y"])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.02)


def decaying_sum(seed: int, n: int = 1400, length: int = 70) -> data.Split:
    g = data.generator(seed, 420)
    x = torch.randn(n, length, 1, generator=g)
    y = torch.zeros(n, 1)
    for t in range(length):
        y = 0.9 * y + x[:, t]
    y = y / y.std() + 0.1 * torch.randn(n, 1, generator=g)
    return data.Split(x[:900], y[:900], x[900:], y[900:])


@sick(
    "w-traces-free-modes", "state-space", "exploding-gradients", "bad-initialization", "nonfinite-loss",
    twin=lambda s: traces_modes(s, True),
)  # fmt: skip
def traces_modes(seed: int, bounded: bool = False) -> Training:
    d = decaying_sum(seed)
    batches = records(30, x=d.x, y=d.y)
    return Training(StateSpace(bounded), batches, explained(d.x_test, d.y_test), trainer={"max_epochs": 20})


class Pull(LightningModule):
    """Fits the strength of a force by rolling the motion forward and comparing where it ends."""

    def __init__(self) -> None:
        super().__init__()
        self.force = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))

    def forward(self, start: Tensor, steps: int = 10) -> Tensor:
        x = start
        for _ in range(steps):
            x = x + self.force(x)
        return x

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        start, end = batch
        loss = F.mse_loss(self(start), end)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


class Products(LightningModule):
    """Features multiplied by features, four times over; an output of high degree."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(4, 32)
        self.factors = nn.ModuleList(nn.Linear(4, 32) for _ in range(4))
        self.out = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.start(x)
        for factor in self.factors:
            h = h * (1 + 2 * factor(x))
        return self.out(h)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        return {"loss": F.mse_loss(self(batch[0]), batch[1])}

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)


@sick(
    "w-bowl-high-degree", "polynomial", "exploding-gradients", "learning-rate-too-high",
    twin=lambda s: bowl_products(s, 0.5),
)  # fmt: skip
def bowl_products(seed: int, clip: float | None = None) -> Training:
    d = bowl(seed)
    options = {"max_epochs": 16, "gradient_clip_val": clip}
    return Training(Products(), loader(d.x, d.y, size=45), explained(d.x_test, d.y_test), trainer=options)


# --- fading -------------------------------------------------------------------------------------------------------


class Reader(LightningModule):
    """An LSTM over twenty-four ids that must keep the first; the bias of the forget gate is set by hand."""

    def __init__(self, forget: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 24)
        self.lstm = nn.LSTM(24, 48, batch_first=True)
        self.out = nn.Linear(48, 4)
        with torch.no_grad():
            self.lstm.bias_ih_l0[48:96] = forget
            self.lstm.bias_hh_l0[48:96] = 0.0

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.lstm(self.embed(ids))[0][:, -1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        ids, first = batch
        logits = self(ids)
        loss = F.cross_entropy(logits, first)
        self.log_dict({"loss": loss, "acc": (logits.argmax(1) == first).float().mean()})
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@sick(
    "w-first-of-twenty-four", "lstm", "vanishing-gradients", "bad-initialization",
    twin=lambda s: first_of_many(s, 2.0),
)  # fmt: skip
def first_of_many(seed: int, forget: float = -3.0) -> Training:
    g = data.generator(seed, 421)
    ids = torch.randint(4, 9, (4500, 24), generator=g)
    y = torch.randint(4, (4500,), generator=g)
    ids[:, 0] = y
    return Training(
        Reader(forget), loader(ids[:4000], y[:4000], size=40), hits(ids[4000:], y[4000:]), trainer={"max_epochs": 3}
    )


class Gated(nn.Module):
    def __init__(self, width: int, carry: bool) -> None:
        super().__init__()
        self.mask, self.carry = nn.Linear(width, width), carry

    def forward(self, h: Tensor) -> Tensor:
        gated = torch.sigmoid(self.mask(h)) * h
        return h + gated if self.carry else gated


class Masks(LightningModule):
    """Sixteen masks in a row over features of the ink."""

    def __init__(self, carry: bool) -> None:
        super().__init__()
        self.stem = nn.Linear(64, 48)
        self.masks = nn.Sequential(*(Gated(48, carry) for _ in range(16)))
        self.scale = 1.0 if not carry else 1.5**-16
        self.out = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.scale * self.masks(F.relu(self.stem(x))))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.004, momentum=0.9)


@sick("w-digits-sixteen-masks", "mlp", "vanishing-gradients", twin=lambda s: digits_masks(s, True))
def digits_masks(seed: int, carry: bool = False) -> Training:
    d = data.digits(seed)
    score = minus(F.cross_entropy, d.x_test, d.y_test)
    return Training(Masks(carry), d.train(45), score, d.val(225), {"max_epochs": 14})


class Deep(LightningModule):
    """Fourteen narrow convolutions; `norm` between them or nothing."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        blocks: list[nn.Module] = [nn.Conv2d(1, 12, 3, stride=2, padding=1)]
        for _ in range(14):
            blocks += [nn.GroupNorm(3, 12)] if norm else []
            blocks += [nn.Softsign(), nn.Conv2d(12, 12, 3, padding=1)]
        self.blocks = nn.Sequential(*blocks)
        self.out = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.blocks(x).amax((2, 3)))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch["image"]), batch["target"])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)


@sick("w-gratings-fourteen-softsigns", "cnn", "vanishing-gradients", twin=lambda s: gratings_deep(s, True))
def gratings_deep(seed: int, norm: bool = False) -> Training:
    d = gratings(seed)
    return Training(Deep(norm), records(32, image=d.x, target=d.y), hits(d.x_test, d.y_test), trainer={"max_epochs": 8})


class Stack(LightningModule):
    """Twelve graph layers with the squashing function of the paper, no way around them."""

    def __init__(self, skip: bool) -> None:
        super().__init__()
        self.skip = skip
        self.embed = nn.Embedding(3, 24)
        self.layers = nn.ModuleList(nn.Linear(48, 24) for _ in range(10))
        self.out = nn.Linear(24, 1)

    def forward(self, graph: tuple[Tensor, Tensor]) -> Tensor:
        kind, adjacency = graph
        h = self.embed(kind)
        for layer in self.layers:
            new = torch.sigmoid(layer(torch.cat([h, adjacency @ h / 3], -1)))
            h = h + 0.3 * (new - 0.5) if self.skip else new
        return self.out(h).sum(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.smooth_l1_loss(self(batch[:2]), batch[2])
        self.log("loss", loss, on_step=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@sick("w-molecules-twelve-layers", "graph", "vanishing-gradients", twin=lambda s: molecules_deep(s, True))
def molecules_deep(seed: int, skip: bool = False) -> Training:
    kind, adjacency, y = molecules(seed, 1000)
    return Training(
        Stack(skip),
        loader(kind[:700], adjacency[:700], y[:700], size=35),
        explained((kind[700:], adjacency[700:]), y[700:]),
        trainer={"max_epochs": 14},
    )


# --- the first weights --------------------------------------------------------------------------------------------


class Adapter(nn.Module):
    """A frozen layer and a thin correction of it."""

    def __init__(self, base: nn.Linear, rank: int, std: float) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(std * torch.randn(rank, base.in_features))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T


class Adapted(LightningModule):
    """A net taught on the digits below five, adapted to the rest with every layer of it frozen."""

    def __init__(self, std: float, d: data.Split) -> None:
        super().__init__()
        net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5))
        optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
        low = d.y < 5
        for _ in range(60):
            optimizer.zero_grad()
            F.cross_entropy(net(d.x[low]), d.y[low]).backward()
            optimizer.step()
        for i in (0, 2, 4):
            net[i] = Adapter(net[i], 4, std)
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y - 5)
        self.log("adapt_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW((p for p in self.parameters() if p.requires_grad), lr=5e-3)


@sick("w-digits-adapters", "adapters", "bad-initialization", twin=lambda s: digits_adapters(s, 0.1))
def digits_adapters(seed: int, std: float = 0.0) -> Training:
    d = data.digits(seed)
    high, high_test = d.y >= 5, d.y_test >= 5
    module = Adapted(std, d)
    score = hits(d.x_test[high_test], d.y_test[high_test] - 5)
    return Training(module, loader(d.x[high], d.y[high], size=30), score, trainer={"max_epochs": 12})


class Dense(nn.Module):
    """The author's own layer."""

    def __init__(self, inputs: int, outputs: int, centred: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        if centred:
            with torch.no_grad():
                self.weight.sub_(0.5).mul_(2 * math.sqrt(3 / inputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("oi,...i->...o", self.weight, x) + self.bias


class OwnLayers(LightningModule):
    def __init__(self, centred: bool) -> None:
        super().__init__()
        self.first, self.second, self.third = Dense(3, 48, centred), Dense(48, 48, centred), Dense(48, 4, centred)

    def forward(self, points: Tensor) -> Tensor:
        h = F.relu(self.second(F.relu(self.first(points))))
        return self.third(h.mean(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@sick("w-bodies-own-layer", "pointnet", "bad-initialization", twin=lambda s: bodies_own(s, True))
def bodies_own(seed: int, centred: bool = False) -> Training:
    d = bodies(seed)
    score = minus(F.cross_entropy, d.x_test, d.y_test)
    return Training(OwnLayers(centred), loader(d.x, d.y, size=35), score, trainer={"max_epochs": 26})


class Waves(LightningModule):
    """A picture of a function by sines of sines, with the weights that linear layers come with times their pace."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.pace = 10.0
        self.layers = nn.ModuleList([nn.Linear(4, 64), nn.Linear(64, 64), nn.Linear(64, 64)])
        self.out = nn.Linear(64, 1)
        for layer in self.layers:
            nn.init.normal_(layer.weight, std=std / math.sqrt(layer.in_features))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.sin(self.pace * layer(x))
        return self.out(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.mse_loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@sick("w-bowl-sines-of-sines", "siren", "bad-initialization", twin=lambda s: bowl_sines(s, 0.06))
def bowl_sines(seed: int, std: float = 1.5) -> Training:
    d = bowl(seed)
    return Training(Waves(std), loader(d.x, d.y, size=30), explained(d.x_test, d.y_test), trainer={"max_epochs": 12})


@sick("w-pull-rolled-forward", "dynamics", "exploding-gradients", twin=lambda s: pull_steps(s, 0.5))
def pull_steps(seed: int, clip: float | None = None) -> Training:
    g = data.generator(seed, 422)
    start = 2 * torch.rand(1300, 1, generator=g) - 1
    x = start
    for _ in range(10):
        x = x + 0.15 * torch.sin(3.0 * x)
    end = x + 0.02 * torch.randn(x.shape, generator=g)

    def score(module: LightningModule) -> float:
        with torch.no_grad():
            out = module(start[800:])
        return finite(data.r2(out, end[800:]))

    options = {"max_epochs": 28, "gradient_clip_val": clip}
    return Training(Pull(), loader(start[:800], end[:800], size=40), score, trainer=options)
