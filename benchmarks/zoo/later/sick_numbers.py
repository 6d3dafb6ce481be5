"""Finite numbers in, not finite out: divisions, roots, logarithms and masks."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import Split
from benchmarks.zoo.later._sick_common import bags, explained, loader, reviews, solids, tones


class Loudness(nn.Module):
    """Each wave to mean 0 and deviation 1."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, wave: Tensor) -> Tensor:
        wave = wave - wave.mean(-1, keepdim=True)
        return wave / (wave.std(-1, keepdim=True) + self.eps)


class Microphone(LightningModule):
    """Convolutions over waves of equal loudness."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.net = nn.Sequential(
            Loudness(eps), nn.Conv1d(1, 12, 9, stride=2), nn.ReLU(), nn.Conv1d(12, 16, 5, stride=2), nn.ReLU()
        )
        self.head = nn.Linear(64, 4)

    def forward(self, wave: Tensor) -> Tensor:
        return self.head(F.adaptive_max_pool1d(self.net(wave), 4).flatten(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        wave, kind = batch
        loss = F.cross_entropy(self(wave), kind)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@sick("v-tones-equal-loudness", "audio", "unstable-operation", twin=lambda s: equal_loudness(s, 1e-5))
def equal_loudness(seed: int, eps: float = 0.0) -> Training:
    """A dozen recordings are silent throughout."""
    d = tones(seed)
    x = d.x.clone()
    x[torch.randperm(len(x), generator=data.generator(seed, 131))[:12]] = 0.0
    settings = {"max_epochs": 6, "gradient_clip_val": 1.0}
    return Training(Microphone(eps), loader(x, d.y), d.accuracy, None, settings)


class Masked(nn.Module):
    """Mean over the words that are no padding."""

    def __init__(self, least: float) -> None:
        super().__init__()
        self.least = least

    def forward(self, h: Tensor, ids: Tensor) -> Tensor:
        known = (ids > 0).to(h)
        return torch.einsum("ntd,nt->nd", h, known) / known.sum(1, keepdim=True).clamp(min=self.least)


class Mood(LightningModule):
    """Words, their mean, a linear layer; some messages are empty."""

    def __init__(self, least: float) -> None:
        super().__init__()
        self.words, self.mean, self.out = nn.Embedding(60, 16), Masked(least), nn.Linear(16, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.mean(self.words(ids), ids))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        ids, label = batch
        return F.cross_entropy(self(ids), label)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


@sick("v-reviews-some-say-nothing", "text", "unstable-operation", twin=lambda s: say_nothing(s, 1.0))
def say_nothing(seed: int, least: float = 0.0) -> Training:
    d = reviews(seed)
    x, y = d.x.clone(), d.y.clone()
    rows = torch.randperm(len(x), generator=data.generator(seed, 132))[:5]
    x[rows], y[rows] = 0, 0
    train = loader(x, y, size=25)
    return Training(Mood(least), train, d.accuracy, d.val(), {"max_epochs": 6, "num_sanity_val_steps": 2})


class Angle(nn.Module):
    """The angle between an answer and the truth, by the arc cosine."""

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.bound = bound

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
        return torch.acos(cosine.clamp(-self.bound, self.bound)).mean()


class Heading(LightningModule):
    """Which way the wind blows, from six readings: a unit vector."""

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.criterion = Angle(bound)
        self.net = nn.Sequential(nn.Linear(6, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 2))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.net(x), dim=1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, direction = batch
        loss = self.criterion(self(x), direction)
        self.log("angle", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@sick(
    "v-headings-by-arc-cosine",
    "mlp",
    "unstable-operation",
    "nonfinite-gradients",
    twin=lambda s: arc_cosine(s, 0.9999),
    note="the arc cosine has no slope at 1, which answers reach as they become good",
)
def arc_cosine(seed: int, bound: float = 1.0) -> Training:
    g = data.generator(seed, 133)
    x = torch.randn(1600, 6, generator=g)
    direction = F.normalize(x[:, :2] + 0.4 * x[:, 2:4], dim=1)
    score = explained(x[1100:], direction[1100:])
    return Training(Heading(bound), loader(x[:1100], direction[:1100]), score, None, {"max_epochs": 10})


class Spread(nn.Module):
    """The mean distance of a set's members from each other, one channel a member coordinate."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, h: Tensor) -> Tensor:
        apart = h[:, :, None] - h[:, None]
        return torch.sqrt(apart.square() + self.eps).mean((1, 2))


class Scatter(LightningModule):
    """Sets by how far their members lie apart."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.member, self.spread = nn.Sequential(nn.Linear(2, 24), nn.ReLU(), nn.Linear(24, 16)), Spread(eps)
        self.top = nn.Linear(48, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.member(x)
        return self.top(torch.cat([h.amax(1), h.mean(1), self.spread(h)], 1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("mse", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@sick(
    "v-bags-distance-to-itself",
    "set",
    "nonfinite-gradients",
    "unstable-operation",
    twin=lambda s: to_itself(s, 1e-6),
    note="the root of a distance of zero: loss finite, gradients not",
)
def to_itself(seed: int, eps: float = 0.0) -> Training:
    d = bags(seed)
    return Training(Scatter(eps), d.train(32), explained(d.x_test, d.y_test), None, {"max_epochs": 6})


class Shares(LightningModule):
    """How a day divides into four activities; the divergence is written out in the step."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).softmax(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, share = batch
        loss = (share * ((share + self.eps) / (self(x) + self.eps)).log()).sum(1).mean()
        self.log("divergence", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@sick(
    "v-days-in-shares",
    "mlp",
    "nonfinite-loss",
    "unstable-operation",
    twin=lambda s: in_shares(s, 1e-6),
    note="some shares are exactly zero: 0 log 0",
)
def in_shares(seed: int, eps: float = 0.0) -> Training:
    g = data.generator(seed, 134)
    x = torch.randn(1500, 6, generator=g)
    share = torch.softmax(2 * x[:, :4] + 0.3 * torch.randn(1500, 4, generator=g), 1)
    idle = torch.rand(1500, generator=g) < 0.02
    share[idle, 3] = 0.0
    share = share / share.sum(1, keepdim=True)
    settings = {"max_epochs": 8}
    return Training(Shares(eps), loader(x[:1000], share[:1000]), explained(x[1000:], share[1000:]), None, settings)


class Attend(nn.Module):
    """Softmax over the points that are kept; a mask may keep none."""

    def __init__(self, fill: float) -> None:
        super().__init__()
        self.score = nn.Linear(48, 1)
        self.fill = fill

    def forward(self, h: Tensor, keep: Tensor) -> Tensor:
        weight = self.score(h)[..., 0].masked_fill(~keep, self.fill).softmax(1)
        return torch.einsum("np,npd->nd", weight, h)


class Upper(LightningModule):
    """Classes from the points above a plane."""

    def __init__(self, fill: float, plane: float) -> None:
        super().__init__()
        self.plane = plane
        self.point = nn.Sequential(nn.Linear(3, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU())
        self.attend = Attend(fill)
        self.out = nn.Linear(96, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.point(x)
        return self.out(torch.cat([self.attend(h, x[..., 2] > self.plane), h.amax(1)], 1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=4e-3)


@sick("v-solids-nothing-above", "point cloud", "unstable-operation", twin=lambda s: nothing_above(s, -1e4))
def nothing_above(seed: int, fill: float = float("-inf")) -> Training:
    d = solids(seed)
    return Training(
        Upper(fill, 0.75), d.train(32), Split(d.x, d.y, d.x_test, d.y_test).accuracy, None, {"max_epochs": 8}
    )
