"""Single operations: where numbers leave the line, and where one row meets another."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.fourth._a_common import (
    arrivals,
    beats,
    bodies,
    gratings,
    hits,
    loader,
    minus,
    records,
    switches,
)

# --- off the line -------------------------------------------------------------------------------------------------


class Directions(LightningModule):
    """Bags of id vectors as directions; a bag of blanks has none."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.table = nn.Embedding(5, 16, padding_idx=0)
        self.mix = nn.GRU(16, 32, batch_first=True)
        self.out = nn.Linear(32, 4)

    def forward(self, ids: Tensor) -> Tensor:
        e = self.table(ids)
        e = e / (e.norm(dim=-1, keepdim=True) + self.eps)
        return self.out(self.mix(e)[0][:, -1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@sick("w-switches-unit-vectors", "gru", "unstable-operation", "nonfinite-loss", twin=lambda s: switches_unit(s, 1e-6))
def switches_unit(seed: int, eps: float = 0.0) -> Training:
    d = switches(seed)
    return Training(Directions(eps), loader(d.x, d.y, size=45), hits(d.x_test, d.y_test), trainer={"max_epochs": 10})


class Roots(LightningModule):
    """How far each point stands out of a learnt shell."""

    def __init__(self, safe: bool) -> None:
        super().__init__()
        self.safe = safe
        self.shell = nn.Parameter(torch.tensor(0.3))
        self.local = nn.Sequential(nn.Linear(1, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.out = nn.Linear(32, 4)

    def radius(self, x: Tensor) -> Tensor:
        gap = x.square().sum(-1, keepdim=True) - self.shell
        if self.safe:
            return torch.where(gap > 0, gap, torch.ones_like(gap)).sqrt() * (gap > 0)
        return torch.where(gap > 0, gap.sqrt(), torch.zeros_like(gap))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.local(self.radius(x)).mean(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch["points"]), batch["label"])

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(self.parameters(), lr=1e-2)]


@sick(
    "w-bodies-root-where-positive", "pointnet", "unstable-operation", "nonfinite-gradients",
    twin=lambda s: bodies_root(s, True),
)  # fmt: skip
def bodies_root(seed: int, safe: bool = False) -> Training:
    d = bodies(seed)
    batches = records(28, points=d.x, label=d.y)
    return Training(Roots(safe), batches, hits(d.x_test, d.y_test), trainer={"max_epochs": 16})


def softplus(x: Tensor, beta: float) -> Tensor:
    return torch.log(1 + torch.exp(beta * x)) / beta


class Rates(LightningModule):
    """Rates of visits through a softplus, the author's own or the library's."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.positive = softplus if own else F.softplus
        self.first, self.second, self.last = nn.Linear(6, 48), nn.Linear(48, 48), nn.Linear(48, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.positive(self.first(x), 40.0)
        return self.last(self.positive(self.second(h), 40.0))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        log_rate = self(batch[0])
        loss = F.poisson_nll_loss(log_rate, batch[1])
        self.log("nll", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


@sick(
    "w-arrivals-own-softplus", "mlp", "unstable-operation", "nonfinite-loss", twin=lambda s: arrivals_softplus(s, False)
)
def arrivals_softplus(seed: int, own: bool = True) -> Training:
    d = arrivals(seed)
    return Training(
        Rates(own), loader(d.x, d.y, size=25), minus(F.poisson_nll_loss, d.x_test, d.y_test), trainer={"max_epochs": 8}
    )


class Turned(LightningModule):
    """Stripes; the features of a batch shall stand at wide angles to each other."""

    def __init__(self, margin: float) -> None:
        super().__init__()
        self.margin = margin
        self.conv = nn.Sequential(nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.AdaptiveMaxPool2d(2), nn.Flatten())
        self.project = nn.Linear(64, 16)
        self.out = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.project(self.conv(x)))

    def spread(self, h: Tensor) -> Tensor:
        h = F.normalize(h, dim=-1)
        limit = 1.0 - self.margin
        return torch.acos((h @ h.T).clamp(-limit, limit)).mean()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        h = self.project(self.conv(x))
        loss = F.cross_entropy(self.out(h), y) - 0.05 * self.spread(h)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


@sick(
    "w-gratings-wide-angles", "cnn", "unstable-operation", "nonfinite-gradients", "nonfinite-loss",
    twin=lambda s: gratings_angles(s, 1e-4),
)  # fmt: skip
def gratings_angles(seed: int, margin: float = 0.0) -> Training:
    d = gratings(seed)
    return Training(Turned(margin), loader(d.x, d.y, size=32), hits(d.x_test, d.y_test), trainer={"max_epochs": 12})


# --- row meets row ------------------------------------------------------------------------------------------------


class Attend(LightningModule):
    """Which readings of a row matter: scores, shares, a weighted sum."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.table = nn.Embedding(5, 32)
        self.place = nn.Parameter(torch.randn(16, 32))
        self.score = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 1))
        self.out = nn.Linear(32, 4)

    def forward(self, ids: Tensor) -> Tensor:
        e = self.table(ids)
        place = self.place.expand(len(ids), -1, -1)
        share = (4 * self.score(torch.cat([e, place], -1))).softmax(self.dim)
        return self.out((share * e).sum(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        ids, label = batch
        loss = F.cross_entropy(self(ids), label)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        ids, label = batch
        self.log("val_acc", (self(ids).argmax(1) == label).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


@sick("w-switches-shares", "attention", "batch-mixing", twin=lambda s: switches_shares(s, 1))
def switches_shares(seed: int, dim: int = 0) -> Training:
    d = switches(seed)
    score = minus(F.cross_entropy, d.x_test, d.y_test)
    return Training(Attend(dim), loader(d.x, d.y, size=30), score, d.val(), {"max_epochs": 12})


class Frames(LightningModule):
    """A wave cut into frames and read by an LSTM that wants time first."""

    def __init__(self, view: bool) -> None:
        super().__init__()
        self.view = view
        self.lstm = nn.LSTM(8, 32)
        self.out = nn.Linear(32, 3)

    def forward(self, wave: Tensor) -> Tensor:
        frames = wave.reshape(len(wave), 8, 8)
        frames = frames.view(8, len(wave), 8) if self.view else frames.transpose(0, 1)
        return self.out(self.lstm(frames)[0].mean(0))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch["wave"]), batch["rhythm"])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


@sick("w-beats-frames-by-view", "lstm", "batch-mixing", twin=lambda s: beats_frames(s, False))
def beats_frames(seed: int, view: bool = True) -> Training:
    d = beats(seed, 1800)
    return Training(
        Frames(view), records(45, wave=d.x, rhythm=d.y), hits(d.x_test, d.y_test), trainer={"max_epochs": 14}
    )


class Bodies(LightningModule):
    """Each point by the way to its four nearest neighbours."""

    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.flat = flat
        self.edge = nn.Sequential(nn.Linear(16, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU())
        self.out = nn.Linear(48, 4)

    def neighbours(self, x: Tensor) -> Tensor:
        far = torch.cdist(x, x) + 1e3 * torch.eye(x.shape[1])
        pick = far.topk(4, dim=-1, largest=False).indices
        rows = torch.arange(len(x))[:, None, None]
        return x[rows, pick] - x[:, :, None]

    def forward(self, x: Tensor) -> Tensor:
        ways = self.neighbours(x.reshape(1, -1, 3) if self.flat else x).reshape(*x.shape[:2], 4, 3)
        edges = torch.cat([ways, ways.norm(dim=-1, keepdim=True)], -1).flatten(2)
        return self.out(self.edge(edges).mean(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@sick("w-bodies-nearest-point", "pointnet", "batch-mixing", twin=lambda s: bodies_nearest(s, False))
def bodies_nearest(seed: int, flat: bool = True) -> Training:
    d = bodies(seed)
    score = minus(F.cross_entropy, d.x_test, d.y_test)
    return Training(Bodies(flat), loader(d.x, d.y, size=35), score, trainer={"max_epochs": 14})
