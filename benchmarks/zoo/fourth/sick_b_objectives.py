"""Trainings that go wrong between the last layer and the loss, or in an operation on the way."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import digits, generator, predict
from benchmarks.zoo.fourth._b_common import (
    curve,
    explained,
    explains,
    hums,
    right,
    rows,
    solids,
    usage,
    weaves,
    windows,
)


class Pointer(LightningModule):
    """Points at the largest number of a list: additive attention from a query to each place."""

    def __init__(self, softmax: bool) -> None:
        super().__init__()
        self.encode = nn.GRU(2, 32, batch_first=True, bidirectional=True)
        self.query, self.keys, self.v = nn.Linear(64, 32), nn.Linear(64, 32), nn.Linear(32, 1, bias=False)
        self.softmax = softmax

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.encode(x)
        scores = self.v(torch.tanh(self.keys(h) + self.query(h.mean(1, keepdim=True)))).squeeze(-1)
        return torch.softmax(scores, dim=-1) if self.softmax else scores

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, place = batch
        loss = F.cross_entropy(self(x), place)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.04, momentum=0.9)


@sick("x-pointer-over-forty-places", "rnn", "probabilities-as-logits", twin=lambda s: pointer(s, False))
def pointer(seed: int, softmax: bool = True) -> Training:
    g = generator(seed, 94)
    x = torch.rand(1300, 40, 2, generator=g) * 2 - 1
    place = x.sum(-1).argmax(1)
    return Training(
        Pointer(softmax), rows(x[:900], place[:900], size=36), right(x[900:], place[900:]), None,
        {"max_epochs": 8, "gradient_clip_val": 1.0},
    )  # fmt: skip


class Matching(LightningModule):
    """Pulls the two halves of a digit together, in-batch negatives, temperature learnt."""

    def __init__(self, normalise: Any) -> None:
        super().__init__()
        self.top = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 24))
        self.bottom = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 24))
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.normalise = normalise

    def forward(self, halves: tuple[Tensor, Tensor]) -> Tensor:
        a, b = F.normalize(self.top(halves[0]), dim=-1), F.normalize(self.bottom(halves[1]), dim=-1)
        return self.scale.exp() * a @ b.T

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        similarity = self(tuple(batch))
        target = torch.arange(len(similarity), device=self.device)
        rows_, columns = self.normalise(similarity), self.normalise(similarity.T)
        loss = (F.cross_entropy(rows_, target) + F.cross_entropy(columns, target)) / 2
        self.log("contrastive", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def softmax(similarity: Tensor) -> Tensor:
    return similarity.softmax(-1)


@sick("x-halves-matched-in-the-batch", "contrastive", "probabilities-as-logits", twin=lambda s: halves(s, lambda z: z))
def halves(seed: int, normalise: Any = softmax) -> Training:
    d = digits(seed)
    test = (4 * d.x_test[:100, :32] - 1.2, 4 * d.x_test[:100, 32:] - 1.2)

    def score(module: LightningModule) -> float:
        similarity = predict(module, test)
        return -F.cross_entropy(similarity, torch.arange(100)).item()

    loader = rows(4 * d.x[:, :32] - 1.2, 4 * d.x[:, 32:] - 1.2, size=64, drop_last=True)
    return Training(Matching(normalise), loader, score, None, {"max_epochs": 14})


class Outline(LightningModule):
    """A label for each pixel out of twelve classes; the softmax is the last module of the net."""

    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 24, 5, padding=2),
            nn.ReLU(),
            nn.Conv2d(24, 24, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(24, 12, 1),
            last,
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        image, mask = batch
        loss = nn.CrossEntropyLoss()(self(image), mask)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.2, momentum=0.9)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.5)}


@sick("x-softmax2d-on-the-mask", "dense", "probabilities-as-logits", twin=lambda s: softmax2d(s, nn.Identity()))
def softmax2d(seed: int, last: nn.Module | None = None) -> Training:
    x = weaves(seed, n=400, noise=0.05).x.repeat(2, 1, 1, 1)
    mask = ((F.avg_pool2d(x, 3, 1, 1)[:, 0] + 1.2) * 5).long().clamp(0, 11)
    items: Any = list(zip(x[:400], mask[:400], strict=True))
    loader = DataLoader(items, batch_size=20, shuffle=True)
    other = weaves(seed + 50, n=200, noise=0.05).x
    truth = ((F.avg_pool2d(other, 3, 1, 1)[:, 0] + 1.2) * 5).long().clamp(0, 11)
    return Training(
        Outline(last or nn.Softmax2d()), loader,
        lambda m: (predict(m, other).argmax(1) == truth).float().mean().item(), None, {"max_epochs": 8},
    )  # fmt: skip


class Cleaner(LightningModule):
    """Takes the noise from a wave; channels first, as convolutions want it."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = nn.Sequential(
            nn.Conv1d(1, 16, 9, padding=4),
            nn.Tanh(),
            nn.Conv1d(16, 16, 9, padding=4),
            nn.Tanh(),
            nn.Conv1d(16, 1, 9, padding=4),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.stack(x.unsqueeze(1))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = ((self(batch["noisy"]) - batch["clean"]) ** 2).mean()
        self.log("mse", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@sick("x-channel-axis-left-in", "cnn", "loss-shape-mismatch", twin=lambda s: channel_axis(s, True))
def channel_axis(seed: int, kept: bool = False) -> Training:
    g = generator(seed, 95)
    pitch, phase = 0.1 + 0.4 * torch.rand(1000, 1, generator=g), 6.2832 * torch.rand(1000, 1, generator=g)
    clean = torch.sin(pitch * torch.arange(48) + phase)
    noisy = clean + 0.5 * torch.randn(1000, 48, generator=g)
    target = clean[:, None] if kept else clean
    items: Any = [{"noisy": a, "clean": b} for a, b in zip(noisy[:700], target[:700], strict=True)]
    loader = DataLoader(items, batch_size=28, shuffle=True)
    return Training(Cleaner(), loader, explains(noisy[700:], clean[700:]), None, {"max_epochs": 8})


class MeanAndSpread(LightningModule):
    """A mean and a spread for each row, likelihood by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 48), nn.ELU(), nn.Linear(48, 48), nn.ELU())
        self.mean, self.log_std = nn.Linear(48, 1), nn.Linear(48, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mean(self.trunk(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        h = self.trunk(x)
        mu, log_std = self.mean(h), self.log_std(h).clamp(-4, 4)
        nll = 0.5 * ((y - mu) / log_std.exp()) ** 2 + log_std + 0.5 * math.log(2 * math.pi)
        self.log("nll", nll.mean())
        return nll.mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW([{"params": self.trunk.parameters()}, {"params": self.mean.parameters()},
                                  {"params": self.log_std.parameters(), "lr": 1e-3}], lr=3e-3)  # fmt: skip


@sick("x-likelihood-of-flat-targets", "mlp", "loss-shape-mismatch", twin=lambda s: flat_targets(s, True))
def flat_targets(seed: int, column: bool = False) -> Training:
    d = curve(seed)
    y = d.y[:, None] if column else d.y
    return Training(MeanAndSpread(), rows(d.x, y, size=40), explains(d.x_test, d.y_test), None, {"max_epochs": 12})


class Twins(LightningModule):
    """How far apart in time are two windows of the same machine? One encoder for both."""

    def __init__(self, keepdim: bool) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 8))
        self.keepdim = keepdim

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        a, b = (self.encoder(x) for x in pair)
        return (a - b).abs().sum(1, keepdim=self.keepdim)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        a, b, gap = batch
        loss = torch.log(torch.cosh(self((a, b)) - gap)).mean()
        self.log("log_cosh", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.RMSprop(self.parameters(), lr=2e-3)


@sick("x-distance-with-keepdim", "siamese", "loss-shape-mismatch", twin=lambda s: keepdim(s, False))
def keepdim(seed: int, keep: bool = True) -> Training:
    x, _ = windows(usage(seed, 1800))
    g = generator(seed, 96)
    first, second = torch.randint(len(x), (2, 1600), generator=g)
    hour = (first - second).abs() % 24
    gap = torch.minimum(hour, 24 - hour).float() / 4
    a, b = x[first], x[second]
    return Training(
        Twins(keep), rows(a[:1100], b[:1100], gap[:1100], size=44), explains((a[1100:], b[1100:]), gap[1100:]), None,
        {"max_epochs": 12},
    )  # fmt: skip


class Similar(LightningModule):
    """Cosine embedding of pairs: same pitch or not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 16, 12, stride=4)
        self.proj = nn.Linear(16, 12)
        self.criterion = nn.CosineEmbeddingLoss(margin=0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(F.relu(self.conv(x)).mean(-1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (a, b), same = batch
        loss = self.criterion(self(a), self(b), same)
        self.log("cosine_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@sick("x-same-is-one-else-nought", "siamese", "wrong-loss-for-task", twin=lambda s: same_or_not(s, -1.0))
def same_or_not(seed: int, other: float = 0.0) -> Training:
    d = hums(seed, noise=0.2)
    g = generator(seed, 97)
    first, second = torch.randint(len(d.x), (2, 1200), generator=g)
    same = torch.where(d.y[first] == d.y[second], 1.0, other)
    items: Any = [((d.x[i], d.x[j]), s) for i, j, s in zip(first.tolist(), second.tolist(), same, strict=True)]

    def score(module: LightningModule) -> float:
        e = F.normalize(predict(module, d.x_test), dim=-1)
        alike = d.y_test[:, None] == d.y_test
        cosine = e @ e.T
        return (cosine[alike].mean() - cosine[~alike].mean()).item()

    return Training(Similar(), DataLoader(items, batch_size=32, shuffle=True), score, None, {"max_epochs": 8})


class Screening(LightningModule):
    """Logistic net whose labels are as the file has them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Dropout(0.1), nn.Linear(40, 1))
        self.loss = nn.BCEWithLogitsLoss()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).squeeze(-1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(self(batch["x"]), batch["group"])
        self.log("bce", loss, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@sick("x-groups-called-one-and-two", "mlp", "wrong-loss-for-task", twin=lambda s: one_and_two(s, 0.0))
def one_and_two(seed: int, first: float = 1.0) -> Training:
    d = curve(seed)
    group = (d.y > 0).float() + first
    items: Any = [{"x": a, "group": b} for a, b in zip(d.x, group, strict=True)]
    loader = DataLoader(items, batch_size=32, shuffle=True)
    return Training(
        Screening(), loader, right(d.x_test, (d.y_test > 0).long()), None, {"max_epochs": 10, "log_every_n_steps": 10}
    )


class Overlap(LightningModule):
    """Finds the bright threads of a cloth; the criterion is the soft overlap of mask and answer."""

    def __init__(self, criterion: Any) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 1, 3, padding=1))
        self.criterion = criterion

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, mask = batch
        loss = self.criterion(torch.sigmoid(self(x)), mask)
        self.log("train_dice", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, mask = batch
        answer = torch.sigmoid(self(x))
        self.log("val_loss", self.criterion(answer, mask))
        self.log("val_iou", ((answer > 0.5) & (mask > 0)).sum() / ((answer > 0.5) | (mask > 0)).sum().clamp(min=1))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def dice(answer: Tensor, mask: Tensor) -> Tensor:
    both = (answer * mask).sum((1, 2, 3))
    return ((2 * both + 1) / (answer.sum((1, 2, 3)) + mask.sum((1, 2, 3)) + 1)).mean()


def one_minus_dice(answer: Tensor, mask: Tensor) -> Tensor:
    return 1 - dice(answer, mask)


@sick("x-threads-by-their-dice", "dense", "wrong-loss-for-task", twin=lambda s: threads(s, one_minus_dice))
def threads(seed: int, criterion: Any = dice) -> Training:
    d = weaves(seed, n=600, noise=0.0)
    mask, mask_test = ((x > 0.5).float() for x in (d.x, d.x_test))
    g = generator(seed, 104)
    x, x_test = (v + 0.4 * torch.randn(v.shape, generator=g) for v in (d.x, d.x_test))
    return Training(
        Overlap(criterion), rows(x, mask, size=25),
        lambda m: ((predict(m, x_test) > 0).float() == mask_test).float().mean().item(),
        rows(x_test, mask_test, size=250, shuffle=False), {"max_epochs": 8},
    )  # fmt: skip


class Wheel(LightningModule):
    """Steering angle from a road picture, tanh at the end as policies have it."""

    def __init__(self) -> None:
        super().__init__()
        self.see = nn.Sequential(nn.Conv2d(1, 12, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(588, 48), nn.ReLU())
        self.steer = nn.Sequential(nn.Linear(48, 1), nn.Tanh())

    def forward(self, road: Tensor) -> Tensor:
        return self.steer(self.see(road)).squeeze(-1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.smooth_l1_loss(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


@sick("x-steering-in-degrees", "cnn", "output-range-mismatch", "unscaled-targets", twin=lambda s: steering(s, 1 / 30))
def steering(seed: int, unit: float = 1.0) -> Training:
    g = generator(seed, 98)
    bend = torch.rand(1200, 1, 1, generator=g) * 2 - 1
    t = torch.linspace(0, 1, 16)
    middle = bend * t[:, None] ** 2 + 0.2 * torch.randn(1200, 1, 1, generator=g)
    x = torch.exp(-((t * 2 - 1 - middle) ** 2) / 0.05) * 2 + 0.2 * torch.randn(1200, 16, 16, generator=g)
    angle = 28 * bend[:, 0, 0] * unit
    x = x[:, None]
    return Training(
        Wheel(), rows(x[:800], angle[:800], size=32), explains(x[800:], angle[800:]), None, {"max_epochs": 8}
    )


class Codec(LightningModule):
    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
        self.decoder = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), last)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x,) = batch
        loss = F.mse_loss(self(x), x)
        self.log("reconstruction", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


@sick(
    "x-normalised-then-sigmoid", "autoencoder", "output-range-mismatch", twin=lambda s: then_sigmoid(s, nn.Identity())
)
def then_sigmoid(seed: int, last: nn.Module | None = None) -> Training:
    d = digits(seed)
    mean, std = d.x.mean(), d.x.std()
    x, x_test = (d.x - mean) / std, (d.x_test - mean) / std
    module = Codec(last or nn.Sigmoid())
    return Training(module, rows(x, size=48), explains(x_test, x_test), None, {"max_epochs": 12})


class Tide(LightningModule):
    """The hidden state of an LSTM with one unit is the forecast itself."""

    def __init__(self, head: bool) -> None:
        super().__init__()
        self.first = nn.LSTM(1, 24, batch_first=True)
        self.last: nn.Module = nn.Linear(24, 1) if head else nn.LSTM(24, 1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.last(self.first(x.unsqueeze(-1))[0])
        return (h[0] if isinstance(h, tuple) else h)[:, -1, 0]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("train_mse", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=6e-3)


@sick("x-forecast-is-the-hidden-state", "rnn", "output-range-mismatch", twin=lambda s: hidden_state(s, True))
def hidden_state(seed: int, head: bool = False) -> Training:
    x, y = windows(1.6 * usage(seed) + 2.5)
    return Training(
        Tide(head), rows(x[:1200], y[:1200], size=40), explains(x[1200:], y[1200:]), None, {"max_epochs": 8}
    )


class Communities(LightningModule):
    """Message passing over a list of edges, mean per graph."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(3, 24)
        self.edge = nn.Linear(48, 24)
        self.leave = nn.Linear(24, 1)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        h = F.relu(self.enter(batch["nodes"]))
        source, target = batch["edges"]
        for _ in range(2):
            message = F.relu(self.edge(torch.cat([h[source], h[target]], 1)))
            h = h + torch.zeros_like(h).index_add(0, target, message) / 4
        graphs = int(batch["graph"].max()) + 1
        return self.leave(h.new_zeros(graphs, 24).index_add(0, batch["graph"], h) / 8).squeeze(1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch), batch["y"])
        self.log("loss", loss, batch_size=len(batch["y"]))
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=4e-3)


def stack(items: list[Any], offset: bool) -> dict[str, Tensor]:
    """One graph out of many; `offset` renumbers the nodes of each."""
    edges = [edge + (8 * i if offset else 0) for i, (_, edge, _) in enumerate(items)]
    return {
        "nodes": torch.cat([n for n, _, _ in items]),
        "edges": torch.cat(edges, 1),
        "graph": torch.arange(len(items)).repeat_interleave(8),
        "y": torch.stack([y for _, _, y in items]),
    }


@sick("x-graphs-put-end-to-end", "graph", "batch-mixing", twin=lambda s: end_to_end(s, True))
def end_to_end(seed: int, offset: bool = False) -> Training:
    g = generator(seed, 99)
    items: Any = []
    for _ in range(1100):
        nodes = torch.randn(8, 3, generator=g)
        edge = torch.randint(8, (2, 16), generator=g)
        y = (nodes[edge[0], 0] * nodes[edge[1], 0]).clamp(-2, 2).sum() / 4
        items.append((nodes, edge, y))
    test = stack(items[800:], True)
    loader = DataLoader(items[:800], batch_size=20, shuffle=True, collate_fn=lambda b: stack(b, offset))
    return Training(Communities(), loader, explains(test, test["y"]), None, {"max_epochs": 10})


class Halving(LightningModule):
    """Which points lie in the upper half of their cloud: each point's features beside those of the whole."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.point = nn.Sequential(nn.Linear(3, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU())
        self.label = nn.Sequential(nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 2))
        self.axis = axis

    def forward(self, cloud: Tensor) -> Tensor:
        h = self.point(cloud)
        whole = h.mean(self.axis, keepdim=True).expand_as(h)
        return self.label(torch.cat([h, whole], -1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]).flatten(0, 1), batch[1].flatten())
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=5e-3)


@sick("x-upper-half-of-each-cloud", "set", "batch-mixing", twin=lambda s: upper_half(s, 1))
def upper_half(seed: int, axis: int = 0) -> Training:
    d = solids(seed)
    g = generator(seed, 105)
    x, x_test = (v + 1.2 * torch.randn(len(v), 1, 3, generator=g) for v in (d.x, d.x_test))
    y, y_test = ((v[..., 2] > v[..., 2].mean(1, keepdim=True)).long() for v in (x, x_test))
    return Training(Halving(axis), rows(x, y, size=28), right(x_test, y_test), None, {"max_epochs": 10})


class Clips(LightningModule):
    """A picture net for each frame, then a GRU over the frames of a clip."""

    def __init__(self, swap: bool) -> None:
        super().__init__()
        self.frame = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9, 16), nn.ReLU()
        )
        self.gru = nn.GRU(16, 16, batch_first=True)
        self.head = nn.Linear(16, 4)
        self.swap = swap

    def forward(self, clip: Tensor) -> Tensor:
        n, t = clip.shape[:2]
        h = self.frame(clip.flatten(0, 1))
        h = h.view(t, n, -1).transpose(0, 1) if self.swap else h.view(n, t, -1)
        return self.head(self.gru(h)[0][:, -1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch["clip"]), batch["heading"])
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=4e-3)


@sick("x-frames-of-clips-viewed", "video", "batch-mixing", twin=lambda s: frames(s, False))
def frames(seed: int, swap: bool = True) -> Training:
    g = generator(seed, 100)
    heading = torch.randint(4, (1000,), generator=g)
    step = torch.tensor([[0.7, 0.0], [-0.7, 0.0], [0.0, 0.7], [0.0, -0.7]])[heading]
    place = 3.5 + torch.randn(1000, 2, generator=g) * 0.7
    t = torch.arange(6.0) - 2.5
    at = place[:, None] + t[:, None] * step[:, None]
    grid = torch.arange(8.0)
    row = torch.exp(-((grid - at[..., :1]) ** 2) / 1.5)
    column = torch.exp(-((grid - at[..., 1:]) ** 2) / 1.5)
    clip = 2 * row[..., :, None] * column[..., None, :] + 0.2 * torch.randn(1000, 6, 8, 8, generator=g)
    clip = clip[:, :, None]
    items: Any = [{"clip": a, "heading": b} for a, b in zip(clip[:700], heading[:700], strict=True)]
    return Training(
        Clips(swap), DataLoader(items, batch_size=25, shuffle=True), right(clip[700:], heading[700:]), None,
        {"max_epochs": 8},
    )  # fmt: skip


class Cosine(LightningModule):
    """Scores a text against four topics by cosine; some texts hold none of the known words."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.words = nn.Embedding(61, 24, padding_idx=0)
        self.topics = nn.Parameter(torch.randn(4, 24))
        self.eps = eps

    def forward(self, ids: Tensor) -> Tensor:
        text = self.words(ids).sum(1)
        text = text / (text.square().sum(1, keepdim=True) + self.eps).sqrt()
        return 8 * text @ F.normalize(self.topics, dim=1).T

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)


@sick(
    "x-texts-of-unknown-words", "text", "unstable-operation", "nonfinite-loss", "nonfinite-gradients",
    twin=lambda s: unknown_words(s, 1e-8),
)  # fmt: skip
def unknown_words(seed: int, eps: float = 0.0) -> Training:
    g = generator(seed, 101)
    y = torch.randint(4, (1300,), generator=g)
    x = torch.randint(1, 61, (1300, 10), generator=g)
    x[:, :4] = 1 + 15 * y[:, None] + torch.randint(15, (1300, 4), generator=g)
    x = x * (torch.rand(1300, 10, generator=g) < 0.7)
    x[100:900:160] = 0
    return Training(Cosine(eps), rows(x[:900], y[:900], size=30), right(x[900:], y[900:]), None, {"max_epochs": 8})


class Policy(LightningModule):
    """Imitates a player under a mask of legal moves, with a bonus for entropy."""

    def __init__(self, floor: float) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 6))
        self.floor = floor

    def forward(self, state: tuple[Tensor, Tensor]) -> Tensor:
        board, legal = state
        return self.net(board).masked_fill(~legal, -torch.inf if self.floor == 0 else -self.floor)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        logits = self((batch["board"], batch["legal"]))
        log_p = logits.log_softmax(-1)
        entropy = -(log_p.exp() * log_p).sum(-1).mean()
        loss = F.nll_loss(log_p, batch["move"]) - 0.01 * entropy
        self.log_dict({"loss": loss, "entropy": entropy})
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@sick("x-entropy-under-a-mask", "policy", "unstable-operation", "nonfinite-loss", twin=lambda s: under_a_mask(s, 1e4))
def under_a_mask(seed: int, floor: float = 0.0) -> Training:
    g = generator(seed, 102)
    board = torch.randn(1400, 16, generator=g)
    legal = torch.rand(1400, 6, generator=g) < 0.7
    legal[:, 0] = True
    worth = board[:, :6] + 0.5 * board[:, 6:12]
    move = worth.masked_fill(~legal, -1e9).argmax(1)
    items: Any = [{"board": b, "legal": m, "move": k} for b, m, k in zip(board, legal, move, strict=True)]
    test = (board[1000:], legal[1000:])
    return Training(
        Policy(floor), DataLoader(items[:1000], batch_size=40, shuffle=True),
        lambda m: (predict(m, test).nan_to_num(0.0).argmax(-1) == move[1000:]).float().mean().item(), None,
        {"max_epochs": 10},
    )  # fmt: skip


class Visits(LightningModule):
    """Mean and spread of a patient's visits go into a small net; the mask tells which visits there are."""

    def __init__(self, unbiased: bool) -> None:
        super().__init__()
        self.each = nn.Linear(3, 24)
        self.net = nn.Sequential(nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 1))
        self.less = 1 if unbiased else 0

    def forward(self, patient: tuple[Tensor, Tensor]) -> Tensor:
        visits, there = patient
        h = torch.tanh(self.each(visits)) * there[..., None]
        n = there.sum(1)[:, None]
        mean = h.sum(1) / n
        spread = (((h - mean[:, None]) ** 2) * there[..., None]).sum(1) / (n - self.less)
        return self.net(torch.cat([mean, spread], 1)).squeeze(-1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        visits, there, risk = batch
        loss = F.mse_loss(self((visits, there)), risk)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return {"optimizer": torch.optim.AdamW(self.parameters(), lr=5e-3)}


@sick(
    "x-spread-of-a-single-visit", "set", "unstable-operation", "nonfinite-loss", twin=lambda s: single_visit(s, False)
)
def single_visit(seed: int, unbiased: bool = True) -> Training:
    g = generator(seed, 103)
    count = torch.randint(2, 8, (1200,), generator=g)
    count[50:850:90] = 1
    there = (torch.arange(7) < count[:, None]).float()
    visits = torch.randn(1200, 7, 3, generator=g) * there[..., None]
    risk = (visits[..., 0].sum(1) + (visits[..., 1] > 1).float().sum(1)) / count.sqrt()
    test = (visits[850:], there[850:])
    return Training(
        Visits(unbiased), rows(visits[:850], there[:850], risk[:850], size=25),
        lambda m: explained(predict(m, test), risk[850:]), None, {"max_epochs": 8},
    )  # fmt: skip
