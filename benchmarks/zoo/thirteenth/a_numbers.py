"""Sick trainings whose gradients vanish or explode, or that meet values that are not finite."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import generator, moons, motifs
from benchmarks.zoo.thirteenth.a_common import Records, Tabular, batches, explained, hit_rate, mlp


class IntentRNN(LightningModule):
    """Reads a padded utterance and classifies it from one state of the recurrence."""

    def __init__(self, use_lengths: bool) -> None:
        super().__init__()
        self.use_lengths = use_lengths
        self.embedding = nn.Embedding(25, 16, padding_idx=0)
        self.rnn = nn.RNN(16, 32, batch_first=True)
        self.classifier = nn.Linear(32, 4)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        states, _ = self.rnn(self.embedding(batch["tokens"]))
        last = states[torch.arange(len(states)), batch["length"] - 1] if self.use_lengths else states[:, -1]
        return self.classifier(last)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch), batch["intent"])
        self.log("loss/train", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def utterances(seed: int, use_lengths: bool) -> Training:
    g = generator(seed, 100)
    n, width = 2000, 48
    length = torch.randint(3, 8, (n,), generator=g)
    intent = torch.randint(4, (n,), generator=g)
    tokens = torch.randint(5, 25, (n, width), generator=g)
    place = (torch.rand(n, generator=g) * length).long()
    tokens[torch.arange(n), place] = intent + 1
    tokens[torch.arange(width)[None] >= length[:, None]] = 0
    cut = 1500
    train = Records(tokens=tokens[:cut], length=length[:cut], intent=intent[:cut])
    test = {"tokens": tokens[cut:], "length": length[cut:]}
    return Training(
        IntentRNN(use_lengths),
        DataLoader(train, 32, shuffle=True),
        hit_rate(test, intent[cut:]),
        trainer={"max_epochs": 5},
    )


@sick("ga-last-state-after-padding", "sequence", "vanishing-gradients", twin=lambda seed: utterances(seed, True))
def last_state(seed: int) -> Training:
    return utterances(seed, False)


class ScaledBlocks(nn.Module):
    """Convolution blocks whose output is scaled by a small constant, as in Inception-ResNet."""

    def __init__(self, blocks: int, width: int, scale: float, skip: bool) -> None:
        super().__init__()
        self.stem = nn.Conv1d(1, width, 5, padding=2)
        self.blocks = nn.ModuleList(nn.Conv1d(width, width, 5, padding=2) for _ in range(blocks))
        self.scale, self.skip = scale, skip
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x.transpose(1, 2)))
        for block in self.blocks:
            out = self.scale * F.relu(block(x))
            x = x + out if self.skip else out
        return self.head(x.amax(-1))


def scaled_blocks(seed: int, skip: bool) -> Training:
    task = motifs(seed, n=1600)
    net = ScaledBlocks(5, 24, 0.2, skip)
    module = Tabular(net, F.cross_entropy, lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.9), name="ce")
    return Training(module, task.train(32), task.accuracy, val=task.val(), trainer={"max_epochs": 6})


@sick("ga-scaled-branch-never-added", "signal", "vanishing-gradients", twin=lambda seed: scaled_blocks(seed, True))
def scaled_branch(seed: int) -> Training:
    return scaled_blocks(seed, False)


class NeighbourMean(LightningModule):
    """Two rounds of neighbour averages, then a mean over the nodes, to a number a molecule."""

    def __init__(self, least: float) -> None:
        super().__init__()
        self.least = least
        self.first = nn.Linear(6, 32)
        self.second = nn.Linear(32, 32)
        self.readout = nn.Linear(32, 1)

    def gather(self, h: Tensor, adjacency: Tensor) -> Tensor:
        degree = adjacency.sum(-1, keepdim=True)
        return adjacency @ h / degree.clamp(min=self.least)

    def forward(self, graph: dict[str, Tensor]) -> Tensor:
        h = F.relu(self.first(self.gather(graph["nodes"], graph["adjacency"])))
        h = F.relu(self.second(self.gather(h, graph["adjacency"])))
        return self.readout(h.mean(1)).squeeze(-1)

    def training_step(self, graph: dict[str, Tensor], batch_idx: int) -> Tensor:
        return F.mse_loss(self(graph), graph["energy"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def molecules(seed: int, least: float) -> Training:
    g = generator(seed, 101)
    n, nodes = 1200, 8
    upper = (torch.rand(n, nodes, nodes, generator=g) < 0.62).float().triu(1)
    adjacency = upper + upper.transpose(1, 2)
    x = torch.randn(n, nodes, 6, generator=g)
    around = adjacency @ x / adjacency.sum(-1, keepdim=True).clamp(min=1)
    weights = torch.randn(6, generator=g)
    y = F.relu(around @ weights).mean(1) - 0.5 * F.relu(-around[..., 0]).mean(1)
    y = (y - y.mean()) / y.std()
    cut = 900
    train = Records(nodes=x[:cut], adjacency=adjacency[:cut], energy=y[:cut])
    test = {"nodes": x[cut:], "adjacency": adjacency[cut:]}
    return Training(
        NeighbourMean(least), DataLoader(train, 20, shuffle=True), explained(test, y[cut:]), trainer={"max_epochs": 8}
    )


@sick("ga-isolated-node-degree", "graph", "unstable-operation", twin=lambda seed: molecules(seed, 1.0))
def isolated_node(seed: int) -> Training:
    return molecules(seed, 0.0)


class BasketAttention(LightningModule):
    """Pools the items of a shopping basket by attention and guesses the kind of customer."""

    def __init__(self, fill: float) -> None:
        super().__init__()
        self.fill = fill
        self.items = nn.Embedding(40, 16)
        self.query = nn.Linear(16, 1)
        self.out = nn.Linear(16, 3)

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        ids, size = batch
        h = torch.tanh(self.items(ids))
        padded = torch.arange(ids.shape[1])[None] >= size[:, None]
        weight = self.query(h).squeeze(-1).masked_fill(padded, self.fill).softmax(-1)
        return self.out((weight[..., None] * h).sum(1))

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        ids, size, kind = batch
        loss = F.cross_entropy(self((ids, size)), kind)
        self.log("basket_loss", loss, on_step=True, on_epoch=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def baskets(seed: int, fill: float) -> Training:
    g = generator(seed, 102)
    n, width = 2400, 10
    kind = torch.randint(3, (n,), generator=g)
    own = torch.randint(12, (n, width), generator=g) + 12 * kind[:, None]
    ids = torch.where(torch.rand(n, width, generator=g) < 0.6, own, torch.randint(40, (n, width), generator=g))
    size = torch.randint(2, width + 1, (n,), generator=g)
    cut = 1800
    size[:cut][torch.rand(cut, generator=g) < 0.006] = 0
    size[17] = 0
    return Training(
        BasketAttention(fill),
        batches(ids[:cut], size[:cut], kind[:cut], size=32),
        hit_rate((ids[cut:], size[cut:]), kind[cut:]),
        trainer={"max_epochs": 5},
    )


@sick("ga-empty-basket-attention", "set", "unstable-operation", "nonfinite-loss", twin=lambda seed: baskets(seed, -1e4))
def empty_basket(seed: int) -> Training:
    return baskets(seed, float("-inf"))


class FilterBank(nn.Module):
    """Learnt filters over frames of a waveform, their power in logarithms, and a classifier."""

    def __init__(self, clamp: bool) -> None:
        super().__init__()
        self.clamp = clamp
        self.filters = nn.Linear(16, 24, bias=False)
        self.classifier = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, wave: Tensor) -> Tensor:
        power = self.filters(wave.unfold(1, 16, 8)).square()
        if self.clamp:
            level = torch.log(power.clamp(min=1e-2))
        else:
            level = torch.where(power > 1e-2, torch.log(power), torch.full_like(power, -4.6))
        return self.classifier(level.mean(1) / 2 + 1)


def waves(seed: int, clamp: bool) -> Training:
    g = generator(seed, 103)
    n = 1600
    y = torch.randint(4, (n,), generator=g)
    time = torch.arange(96.0)
    pitch = torch.tensor([0.25, 0.6, 1.1, 1.8])[y]
    phase = 6.28 * torch.rand(n, 1, generator=g)
    x = 1.4 * torch.sin(pitch[:, None] * time + phase) + 0.4 * torch.randn(n, 96, generator=g)
    silent = torch.rand(n, generator=g) < 0.015
    x[silent, 60:] = 0.0
    x[5, 60:] = 0.0
    cut = 1200
    module = Tabular(FilterBank(clamp), F.cross_entropy, lambda p: torch.optim.Adam(p, lr=3e-3), name="xent")
    return Training(module, batches(x[:cut], y[:cut], size=24), hit_rate(x[cut:], y[cut:]), trainer={"max_epochs": 5})


@sick(
    "ga-log-power-digital-silence",
    "audio",
    "unstable-operation",
    "nonfinite-gradients",
    twin=lambda seed: waves(seed, True),
)
def digital_silence(seed: int) -> Training:
    return waves(seed, False)


class Flow(nn.Module):
    """A field integrated by Euler's rule from time 0 to time 1."""

    def __init__(self, steps: int, dt: float) -> None:
        super().__init__()
        self.lift = nn.Linear(2, 24)
        self.field = nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 24))
        self.head = nn.Linear(24, 2)
        self.steps, self.dt = steps, dt

    def forward(self, x: Tensor) -> Tensor:
        h = self.lift(x)
        for _ in range(self.steps):
            h = h + self.dt * self.field(h)
        return self.head(h)


def flow(seed: int, dt: float) -> Training:
    task = moons(seed)
    module = Tabular(Flow(50, dt), F.cross_entropy, lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9))
    return Training(module, task.train(32), hit_rate(task.x_test, task.y_test), trainer={"max_epochs": 18})


@sick(
    "ga-euler-without-dt",
    "neural-ode",
    "exploding-gradients",
    "bad-initialization",
    twin=lambda seed: flow(seed, 1 / 50),
)
def euler(seed: int) -> Training:
    return flow(seed, 1.0)


def lagged(seed: int, drop: bool) -> Training:
    g = generator(seed, 104)
    n = 1800
    time = torch.arange(float(n))
    noise = 0.3 * torch.randn(n, generator=g)
    series = torch.sin(time / 5) + 0.6 * torch.sin(time * 6.2832 / 14) + noise
    series = (series - series.mean()) / series.std()
    lags = (1, 2, 3, 7, 14, 28)
    x = torch.full((n, len(lags)), float("nan"))
    for k, lag in enumerate(lags):
        x[lag:, k] = series[:-lag]
    cut = 1400
    start = 28 if drop else 0
    module = Tabular(
        mlp(6, 32, 1), lambda p, y: F.mse_loss(p.squeeze(-1), y), lambda p: torch.optim.Adam(p, 3e-3), "mse"
    )
    return Training(
        module,
        batches(x[start:cut], series[start:cut], size=16),
        explained(x[cut:], series[cut:]),
        val=batches(x[cut:], series[cut:], size=100, shuffle=False),
        trainer={"max_epochs": 4},
    )


@sick("ga-lag-columns-first-rows", "time-series", "nonfinite-inputs", twin=lambda seed: lagged(seed, True))
def lag_columns(seed: int) -> Training:
    return lagged(seed, False)


class Conversion(LightningModule):
    """Whether a campaign pays, from its ratios and its channel."""

    def __init__(self) -> None:
        super().__init__()
        self.channel = nn.Embedding(5, 4)
        self.body = mlp(7, 32, 2)

    def forward(self, batch: dict[str, Any]) -> Tensor:
        return self.body(torch.cat([batch["ratios"], self.channel(batch["channel"])], -1))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(self(batch), batch["pays"])}

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.RMSprop(self.parameters(), lr=2e-3)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 4, 0.5)}


def campaigns(seed: int, guard: bool) -> Training:
    g = generator(seed, 105)
    n = 2000
    visits = torch.randint(1, 9, (n,), generator=g).float()
    visits[:1500][torch.rand(1500, generator=g) < 0.008] = 0.0
    visits[40] = 0.0
    orders = torch.poisson(3 + visits, generator=g)
    ratio = orders / visits
    if guard:
        ratio = torch.where(visits > 0, ratio, torch.zeros_like(ratio))
    rest = torch.randn(n, 2, generator=g)
    channel = torch.randint(5, (n,), generator=g)
    lift = torch.tensor([1.0, -1.0, 0.5, -0.5, 0.0])[channel]
    pays = ((orders / visits.clamp(min=1) - 1.9) + lift + rest[:, 0] > 0).long()
    ratios = torch.cat([ratio[:, None] - 1.5, rest], 1)
    cut = 1500
    train = Records(ratios=ratios[:cut], channel=channel[:cut], pays=pays[:cut])
    test = {"ratios": ratios[cut:], "channel": channel[cut:]}
    return Training(
        Conversion(), DataLoader(train, 50, shuffle=True), hit_rate(test, pays[cut:]), trainer={"max_epochs": 8}
    )


@sick("ga-orders-per-zero-visits", "tabular-dict", "nonfinite-inputs", twin=lambda seed: campaigns(seed, True))
def zero_visits(seed: int) -> Training:
    return campaigns(seed, False)
