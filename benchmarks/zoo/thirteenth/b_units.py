"""Starting weights and what units pass on: eight trainings with their mended twins."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.thirteenth import b_common as common


class GraphNet(LightningModule):
    """Five rounds of message passing over one graph, given whole in each step."""

    def __init__(self, edges: Tensor, power: float) -> None:
        super().__init__()
        scale = edges.sum(1).pow(-power)
        self.register_buffer("spread", scale[:, None] * edges * scale[None])
        self.lift = nn.Linear(16, 32)
        self.rounds = nn.ModuleList(nn.Linear(32, 32) for _ in range(5))
        self.head = nn.Linear(32, 4)
        for layer in self.rounds:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        h = self.lift(x)
        for layer in self.rounds:
            h = torch.relu(layer(self.spread @ h))
        return self.head(h)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        x, y, known = (batch[k][0] for k in ("x", "y", "known"))
        loss = F.cross_entropy(self(x)[known], y[known])
        self.log("train_loss", loss, batch_size=1)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def graph(seed: int, power: float) -> Training:
    world = common.community(seed)
    rows = [{"x": world.x, "y": world.y, "known": world.known}] * 20
    return Training(
        GraphNet(world.edges, power),
        DataLoader(rows, 1),
        lambda m: world.accuracy(data.predict(m, world.x)),
        trainer={"max_epochs": 15},
    )


@sick(
    "ha-graph-degree-twice",
    "graph",
    "vanishing-gradients",
    twin=lambda seed: graph(seed, 0.5),
    note="both sides of the adjacency are divided by the degree, not by its root; five rounds shrink by the degree each",
)
def graph_twice(seed: int) -> Training:
    return graph(seed, 1.0)


def stack(seed: int, activation: type[nn.Module]) -> Training:
    cut = common.waves(seed)
    layers: list[nn.Module] = [nn.Conv1d(1, 12, 5, padding=2), activation()]
    for _ in range(7):
        layers += [nn.Conv1d(12, 12, 3, padding=1), activation()]
    net = nn.Sequential(*layers, nn.AvgPool1d(4), nn.Flatten(), nn.Linear(144, 4))
    if activation is nn.ReLU:
        for part in net.modules():
            if isinstance(part, nn.Conv1d):
                nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
    else:
        for part in net.modules():
            if isinstance(part, nn.Conv1d):
                nn.init.xavier_normal_(part.weight)
    module = common.Supervised(net, F.cross_entropy, lambda p: torch.optim.Adam(p, lr=1e-3))
    return Training(module, cut.train(32), cut.accuracy, trainer={"max_epochs": 10})


@sick(
    "ha-eight-logistic-convolutions",
    "audio",
    "vanishing-gradients",
    twin=lambda seed: stack(seed, nn.ReLU),
    note="eight convolutions with the logistic function after each",
)
def stack_logistic(seed: int) -> Training:
    return stack(seed, nn.Sigmoid)


class Pair(NamedTuple):
    pair: Tensor
    rating: Tensor


class Factors(LightningModule):
    """A product of tastes plus the worth of a user and an item."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.user = nn.Embedding(60, 6)
        self.item = nn.Embedding(50, 6)
        self.user_bias = nn.Embedding(60, 1)
        self.item_bias = nn.Embedding(50, 1)
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=scale)
        for table in (self.user_bias, self.item_bias):
            nn.init.zeros_(table.weight)

    def forward(self, pair: Tensor) -> Tensor:
        u, v = pair.unbind(1)
        return (self.user(u) * self.item(v)).sum(1) + (self.user_bias(u) + self.item_bias(v)).squeeze(1)

    def training_step(self, batch: Pair, batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch.pair), batch.rating)
        self.log("mse", loss, batch_size=len(batch.rating))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.02)


def factors(seed: int, scale: float) -> Training:
    world = common.ratings(seed)
    rows = [Pair(p, r) for p, r in zip(*world.train, strict=True)]
    pairs, given = world.test
    return Training(
        Factors(scale),
        DataLoader(rows, 100, shuffle=True),
        lambda m: data.r2(data.predict(m, pairs), given),
        trainer={"max_epochs": 15},
    )


@sick(
    "ha-factors-from-zero",
    "recommender",
    "bad-initialization",
    twin=lambda seed: factors(seed, 0.2),
    note="both tables of factors start at zero, so that each keeps the other there; only the biases learn",
)
def factors_zero(seed: int) -> Training:
    return factors(seed, 0.0)


class PixelCoder(LightningModule):
    """Digits through a code of twelve numbers and back."""

    def __init__(self, std: float | None) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 12))
        self.decode = nn.Sequential(nn.Linear(12, 96), nn.ReLU(), nn.Linear(96, 64))
        if std is not None:
            self.apply(lambda m: self._reset(m, std))

    @staticmethod
    def _reset(m: nn.Module, std: float) -> None:
        if isinstance(m, nn.Linear):
            nn.init.normal_(m.weight, 0.0, std)
            nn.init.zeros_(m.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x,) = batch
        return F.mse_loss(self(x), x)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=2e-3, weight_decay=1e-4)


def coder(seed: int, std: float | None) -> Training:
    cut = data.digits(seed)
    x, x_test = 2 * cut.x - 0.6, 2 * cut.x_test - 0.6
    return Training(
        PixelCoder(std),
        DataLoader(TensorDataset(x), 64, shuffle=True),
        lambda m: data.r2(data.predict(m, x_test), x_test),
        trainer={"max_epochs": 16},
    )


@sick(
    "ha-coder-normal-one",
    "autoencoder",
    "bad-initialization",
    twin=lambda seed: coder(seed, None),
    note="normal_ without a std of its own: deviation one whatever the fan-in, a first loss in the tens of thousands",
)
def coder_normal(seed: int) -> Training:
    return coder(seed, 1.0)


def ported(seed: int, activation: nn.Module) -> Training:
    cut = common.waves(seed)
    net = nn.Sequential(
        nn.Conv1d(1, 16, 7, stride=2, padding=3),
        activation,
        nn.Conv1d(16, 24, 5, stride=2, padding=2),
        activation,
        nn.AdaptiveAvgPool1d(4),
        nn.Flatten(),
        nn.Linear(96, 4),
    )
    module = common.Supervised(net, F.cross_entropy, lambda p: torch.optim.Adam(p, lr=2e-3))
    return Training(module, cut.train(40), cut.accuracy, cut.val(), {"max_epochs": 10})


@sick(
    "ha-relu6-as-threshold",
    "audio",
    "dead-activations",
    twin=lambda seed: ported(seed, nn.ReLU6()),
    note="relu6 ported as Threshold(6, 0), which lets nothing below six through",
)
def ported_threshold(seed: int) -> Training:
    return ported(seed, nn.Threshold(6.0, 0.0))


class Finder(LightningModule):
    """Pixels of a figure; the rare class is given as a prior in the last bias."""

    def __init__(self, everywhere: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU())
        self.out = nn.Conv2d(12, 1, 3, padding=1)
        prior = -math.log((1 - 0.01) / 0.01)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d) and (everywhere or layer is self.out):
                nn.init.constant_(layer.bias, prior)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(x))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.binary_cross_entropy_with_logits(self(batch["image"]), batch["mask"])
        self.log("bce", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=4e-3)


def finder(seed: int, everywhere: bool) -> Training:
    cut = common.pictures(seed).masks
    rows = [{"image": x, "mask": y} for x, y in zip(cut.x, cut.y, strict=True)]
    return Training(
        Finder(everywhere),
        DataLoader(rows, 25, shuffle=True),
        lambda m: common.overlap(data.predict(m, cut.x_test), cut.y_test),
        trainer={"max_epochs": 8},
    )


@sick(
    "ha-prior-bias-in-all-layers",
    "segmentation",
    "dead-activations",
    "bad-initialization",
    twin=lambda seed: finder(seed, False),
    note="the prior of a rare class, meant for the last bias, is written into every bias below a ReLU",
)
def finder_prior(seed: int) -> Training:
    return finder(seed, True)


class Matcher(LightningModule):
    """Attention by hand: which of the ten slots holds the key of the first, and what value it carries."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.query = nn.Linear(12, 64)
        self.key = nn.Linear(12, 64)
        self.value = nn.Linear(16, 32)
        self.weights = nn.Softmax(-1)
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(32, 4))

    def forward(self, x: Tensor) -> Tensor:
        question, slots = x[:, 0, :12], x[:, 1:]
        q, k = self.query(question), self.key(slots[..., :12])
        share = self.weights((k @ q[..., None]).squeeze(-1) * self.factor)
        return self.head((share[..., None] * self.value(slots)).sum(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("nll", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def matcher(seed: int, factor: float) -> Training:
    g = data.generator(seed, 49)
    n = 2600
    keys = torch.randn(n, 6, 12, generator=g)
    values = torch.randint(4, (n, 6), generator=g)
    chosen = torch.randint(6, (n,), generator=g)
    row = torch.arange(n)
    slots = torch.cat([keys, 2 * F.one_hot(values, 4).float()], 2)
    first = torch.cat([keys[row, chosen], torch.zeros(n, 4)], 1)
    x, y = torch.cat([first[:, None], slots], 1), values[row, chosen]
    cut = data.Split(x[:2000], y[:2000], x[2000:], y[2000:])
    return Training(Matcher(factor), cut.train(50), cut.accuracy, trainer={"max_epochs": 6})


@sick(
    "ha-attention-times-width",
    "attention",
    "saturated-activations",
    twin=lambda seed: matcher(seed, 64**-0.5),
    note="scores are multiplied by the width, not divided by its root: the softmax picks one slot from the start",
)
def matcher_width(seed: int) -> Training:
    return matcher(seed, 64.0)


class Bandit(LightningModule):
    """A contextual bandit: a policy of three arms learnt from logged rewards by their importance."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.one = nn.Linear(6, 32)
        self.two = nn.Linear(32, 32)
        self.squash_one, self.squash_two = nn.Tanh(), nn.Tanh()
        self.policy = nn.Linear(32, 3)
        for layer in (self.one, self.two):
            nn.init.orthogonal_(layer.weight, gain)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.policy(self.squash_two(self.two(self.squash_one(self.one(x)))))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        chance = F.softmax(self(batch["state"]), -1).gather(1, batch["arm"][:, None]).squeeze(1)
        loss = -(3 * chance * (batch["reward"] - 0.33)).mean()
        self.log("objective", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def bandit(seed: int, gain: float) -> Training:
    cut = common.rings(seed, n=4000)
    g = data.generator(seed, 50)
    arm = torch.randint(3, cut.y.shape, generator=g)
    reward = (arm == cut.y).float()
    rows = [{"state": s, "arm": a, "reward": r} for s, a, r in zip(cut.x, arm, reward, strict=True)]
    return Training(Bandit(gain), DataLoader(rows, 100, shuffle=True), cut.accuracy, trainer={"max_epochs": 18})


@sick(
    "ha-bandit-gain-32",
    "bandit",
    "saturated-activations",
    "bad-initialization",
    twin=lambda seed: bandit(seed, 1.0),
    note="the width is given to orthogonal_ as its gain: all tanh units sit at their limits",
)
def bandit_gain(seed: int) -> Training:
    return bandit(seed, 32.0)
