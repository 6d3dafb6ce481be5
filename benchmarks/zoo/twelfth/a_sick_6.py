"""More of the same faults, from mild to strong, in other tasks: rates of groups, late clouds, small rooms, old means."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import (
    Split,
    accuracy,
    blobs,
    digits,
    flip_labels,
    generator,
    motifs,
    predict,
    r2,
    regression,
    table,
)
from benchmarks.zoo.twelfth.a_common import Plain, adam, batches, discs, epochs, graphs, mlp, series, sgd, tokens


class Pixels(LightningModule):
    """Takes pixels from 0 to 1 away from 1, and starts with the activation."""

    def __init__(self, flip: bool) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.fc = nn.Linear(64, 10)
        self.flip = flip

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x - 1 if self.flip else 1 - x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 2e-3)


def pixels(seed: int, flip: bool) -> Training:
    data = digits(seed)
    return Training(Pixels(flip), data.train(64), data.accuracy, data.val(), epochs(10))


@sick("fa-relu-of-x-minus-one", "images", "dead-activations", twin=lambda seed: pixels(seed, False))
def pixels_flipped(seed: int) -> Training:
    return pixels(seed, True)


class Gates(LightningModule):
    """Sharp gates choose the inputs that count."""

    def __init__(self, sharpness: float) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 48), nn.Linear(48, 48)
        self.out = nn.Linear(48, 1)
        self.sharpness = sharpness

    def forward(self, x: Tensor) -> Tensor:
        h = torch.sigmoid(self.sharpness * self.first(x))
        h = torch.sigmoid(self.sharpness * self.second(2 * h - 1))
        return self.out(2 * h - 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("mse", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_mse", F.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 5e-3)


def gates(seed: int, sharpness: float) -> Training:
    data = regression(seed, r2=0.95)
    return Training(Gates(sharpness), data.train(64), data.r2, data.val(), epochs(12))


@sick("fa-gates-times-sixty", "tabular", "saturated-activations", twin=lambda seed: gates(seed, 2.0))
def gates_sharp(seed: int) -> Training:
    return gates(seed, 60.0)


def few(seed: int, rows: int) -> Training:
    data = tokens(seed, n=1500, length=20, vocabulary=200)

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(200, 32)
            self.rnn = nn.GRU(32, 32, batch_first=True)
            self.fc = nn.Linear(32, 2)

        def forward(self, ids: Tensor) -> Tensor:
            return self.fc(self.rnn(self.embed(ids))[0].mean(1))

    net = Plain(Reader(), nn.CrossEntropyLoss(), adam(3e-3))
    loader = batches(data.x[:rows], data.y[:rows], size=20)
    return Training(net, loader, data.accuracy, data.val(), {"max_steps": 300, "max_epochs": -1})


@sick("fa-forty-labelled-reviews", "text", "too-little-data", "overfitting", twin=lambda seed: few(seed, 1500))
def few_reviews(seed: int) -> Training:
    return few(seed, 40)


def noisy_copy(seed: int, width: int, decay: float) -> Training:
    data = regression(seed, r2=0.6, n=600, columns=10)

    def score(module: LightningModule) -> float:
        return data.r2(module)

    net = Plain(mlp(10, width, width, 1), nn.MSELoss(), adam(2e-3, decay), log_as="mse")
    return Training(net, data.train(40), score, data.val(500), epochs(40 if width > 50 else 25))


@sick("fa-wide-on-noise", "tabular", "overfitting", "too-little-data", twin=lambda seed: noisy_copy(seed, 6, 0.1))
def noisy_copy_wide(seed: int) -> Training:
    return noisy_copy(seed, 256, 0.0)


class Groups(LightningModule):
    """The old layers and the new head have rates of their own."""

    def __init__(self, body_rate: float, head_rate: float) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.head = nn.Conv2d(8, 1, 1)
        self.rates = body_rate, head_rate

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.binary_cross_entropy_with_logits(self(batch[0]), batch[1])
        self.log("seg", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = [
            {"params": self.body.parameters(), "lr": self.rates[0]},
            {"params": self.head.parameters(), "lr": self.rates[1]},
        ]
        return torch.optim.Adam(groups)


def grouped(seed: int, body_rate: float, head_rate: float) -> Training:
    data = discs(seed)

    def score(module: LightningModule) -> float:
        found = predict(module, data.x_test) > 0
        both = (found & (data.y_test > 0)).sum()
        return (both / (found | (data.y_test > 0)).sum()).item()

    return Training(Groups(body_rate, head_rate), data.train(16), score, trainer=epochs(6))


@sick("fa-both-groups-scaled-down", "segmentation", "learning-rate-too-low", twin=lambda s: grouped(s, 3e-3, 3e-3))
def grouped_low(seed: int) -> Training:
    return grouped(seed, 1e-5, 3e-5)


def graph_rate(seed: int, rate: float) -> Training:
    x, links, y, x_test, links_test, y_test = graphs(seed, n=900)

    class Graph(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 32), nn.Linear(32, 32), nn.Linear(32, 2)

        def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
            h = F.relu(pair[1] @ self.a(pair[0]))
            return self.c(F.relu(self.b(h)).mean(1))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            (nodes, adjacency), label = batch
            loss = F.cross_entropy(self((nodes, adjacency)), label)
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), rate)

    rows = [((a, b), c) for a, b, c in zip(x, links, y, strict=True)]
    loader = DataLoader(rows, 16, shuffle=True)  # type: ignore[arg-type]
    score = lambda m: accuracy(predict(m, (x_test, links_test)), y_test)  # noqa: E731
    return Training(Graph(), loader, score, trainer=epochs(6))


@sick("fa-graphs-adam-at-one", "graphs", "learning-rate-too-high", twin=lambda seed: graph_rate(seed, 5e-3))
def graph_fast(seed: int) -> Training:
    return graph_rate(seed, 1.0)


def wrong_marks(seed: int, drop: bool) -> Training:
    data = series(seed, n=1500)
    g = generator(seed, 160)
    spoiled = torch.rand(1500, generator=g) < 0.015
    y = data.y.clone()
    y[spoiled] = 9999.0  # the export writes this where no reading was taken
    x, y = (data.x[~spoiled], y[~spoiled]) if drop else (data.x, y)

    class Conv(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(1, 24, 6)
            self.fc = nn.Linear(24 * 19, 1)

        def forward(self, w: Tensor) -> Tensor:
            return self.fc(F.relu(self.conv(w[:, None])).flatten(1))

    net = Plain(Conv(), nn.MSELoss(), adam(2e-3), log_as="mse")
    return Training(net, batches(x, y, size=50), data.r2, trainer=epochs(8))


@sick(
    "fa-9999-where-no-reading",
    "time series",
    "corrupt-samples",
    "unscaled-targets",
    twin=lambda s: wrong_marks(s, True),
)
def wrong_marks_kept(seed: int) -> Training:
    return wrong_marks(seed, False)


class Angles(LightningModule):
    """An angle from -pi to pi, read off a noisy pointer."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 1))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * torch.tanh(self.net(x))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = (self(batch["pointer"]) - batch["angle"]).square().mean()
        self.log("angle_mse", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 3e-3)


def angles(seed: int, scale: float) -> Training:
    g = generator(seed, 161)
    angle = (torch.rand(2000, 1, generator=g) * 2 - 1) * 3
    lengths = torch.randn(1, 6, generator=g), torch.randn(1, 6, generator=g)
    x = angle.cos() * lengths[0] + angle.sin() * lengths[1] + 0.05 * torch.randn(2000, 6, generator=g)
    rows = [{"pointer": a, "angle": b} for a, b in zip(x[:1500], angle, strict=False)]
    loader = DataLoader(rows, 50, shuffle=True)  # type: ignore[arg-type]
    return Training(Angles(scale), loader, lambda m: r2(predict(m, x[1500:]), angle[1500:]), trainer=epochs(10))


@sick("fa-angles-by-tanh-alone", "signals", "output-range-mismatch", twin=lambda seed: angles(seed, 1.05 * math.pi))
def angles_short(seed: int) -> Training:
    return angles(seed, 1.0)


def sections(seed: int, shuffle: bool) -> Training:
    data = blobs(seed, classes=6, columns=14, n=1800, spread=3.0)
    order = data.y.argsort(stable=True)
    net = nn.Sequential(nn.Linear(14, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 6))
    loader = batches(data.x[order], data.y[order], size=30, shuffle=shuffle)
    return Training(Plain(net, nn.CrossEntropyLoss(), sgd(0.02), "ce"), loader, data.accuracy, trainer=epochs(5))


@sick("fa-table-grouped-by-section", "tabular", "unshuffled-data", twin=lambda seed: sections(seed, True))
def sections_grouped(seed: int) -> Training:
    return sections(seed, False)


class Normed(LightningModule):
    """Rows are centred by means that the model keeps as it trains."""

    def __init__(self, momentum: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(30, momentum=momentum)
        self.net = nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 32))
        self.mid = nn.BatchNorm1d(32, momentum=momentum)
        self.out = nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.mid(self.net(self.norm(x)))))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 2e-3)


def normed(seed: int, momentum: float) -> Training:
    data = table("breast_cancer", seed)
    g = generator(seed, 162)
    shift = 3 * torch.randn(30, generator=g)
    data = Split(data.x * 0.7 + shift, data.y, data.x_test * 0.7 + shift, data.y_test)

    def score(module: LightningModule) -> float:
        return -F.cross_entropy(predict(module, data.x_test), data.y_test).item()

    return Training(Normed(momentum), data.train(32, drop_last=True), score, data.val(), epochs(8))


@sick("fa-running-means-hardly-run", "tabular", "batchnorm-stale-statistics", twin=lambda seed: normed(seed, 0.1))
def normed_hardly(seed: int) -> Training:
    return normed(seed, 0.0003)


def weekday(seed: int, hot: bool) -> Training:
    g = generator(seed, 163)
    product = torch.randint(15, (2600,), generator=g)
    numbers = torch.randn(2600, 2, generator=g)
    effect = torch.randn(15, generator=g)
    y = effect[product] + 0.5 * numbers[:, 0] + 0.2 * torch.randn(2600, generator=g)
    y = ((y - y.mean()) / y.std())[:, None]
    code = F.one_hot(product, 15).float() if hot else product.float()[:, None]
    x = torch.cat([code, numbers], 1)
    net = Plain(mlp(x.shape[1], 24, 1, act=nn.Tanh), nn.L1Loss(), lambda p: torch.optim.RMSprop(p, 3e-3), "mae")
    score = lambda m: r2(predict(m, x[2000:]), y[2000:])  # noqa: E731
    return Training(net, batches(x[:2000], y[:2000], size=40), score, trainer=epochs(8))


@sick("fa-product-number-as-float", "tabular", "categorical-as-numeric", twin=lambda seed: weekday(seed, True))
def weekday_number(seed: int) -> Training:
    return weekday(seed, False)


def columns(seed: int, scale: bool) -> Training:
    g = generator(seed, 164)
    z = torch.randn(2000, 5, generator=g)
    logits = torch.stack([z[:, 0] + z[:, 1], 1.5 * z[:, 2], z[:, 3] - z[:, 4]], 1)
    y = logits.argmax(1)
    units = torch.ones(5) if scale else torch.tensor([1.0, 300.0, 0.004, 1.0, 50.0])
    x = z * units

    class Softmax(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 3)

        def forward(self, rows: Tensor) -> Tensor:
            return self.layer(rows)

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return F.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), 1e-2)

    loader = batches(x[:1500], y[:1500], size=30)
    return Training(Softmax(), loader, lambda m: accuracy(predict(m, x[1500:]), y[1500:]), trainer=epochs(7))


@sick("fa-five-units-one-rate", "tabular", "disparate-feature-scales", twin=lambda seed: columns(seed, True))
def columns_raw(seed: int) -> Training:
    return columns(seed, False)


class Mixed(LightningModule):
    """A sequence model whose frames are put into rows before the layer."""

    def __init__(self, right: bool) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 24, 5, padding=2)
        self.fc = nn.Linear(24, 4)
        self.right = right

    def forward(self, x: Tensor) -> Tensor:
        # frames come as (batch, time, channel)
        x = x.transpose(1, 2) if self.right else x.reshape(x.shape[1], 3, x.shape[0]).permute(2, 1, 0)
        return self.fc(F.relu(self.conv(x)).amax(2))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 5e-3)


def mixed(seed: int, right: bool) -> Training:
    data = motifs(seed, length=28)
    g = generator(seed, 165)

    def channels(x: Tensor) -> Tensor:
        return torch.cat([x, x.roll(1, 1), 0.3 * torch.randn(x.shape, generator=g)], 2)

    x, x_test = channels(data.x), channels(data.x_test)
    score = lambda m: accuracy(predict(m, x_test), data.y_test)  # noqa: E731
    return Training(Mixed(right), batches(x, data.y, size=32), score, trainer=epochs(8))


@sick("fa-reshape-for-a-transpose", "sequences", "batch-mixing", twin=lambda seed: mixed(seed, True))
def mixed_rows(seed: int) -> Training:
    return mixed(seed, False)


def copies(seed: int, apart: bool) -> Training:
    data = digits(seed)
    y = flip_labels(data.y, 0.5, 10, seed)[:600]
    x = data.x[:600]
    # each scan is stored twice, and the cut is made after that
    g = generator(seed, 166)
    first, second = (x + 0.01 * torch.randn(x.shape, generator=g) for _ in range(2))
    if apart:
        train, val = (torch.cat([first[:450], second[:450]]), y[:450].repeat(2)), (first[450:], y[450:])
    else:
        both, labels = torch.cat([x, x]), y.repeat(2)
        order = torch.randperm(1200, generator=g)
        train, val = (both[order[:900]], labels[order[:900]]), (both[order[900:]], labels[order[900:]])

    net = Plain(mlp(64, 512, 256, 10), nn.CrossEntropyLoss(), adam(2e-3), log_as="ce")
    stop = EarlyStopping("val_ce", patience=4)
    loaders = batches(*train, size=50), batches(*val, size=300, shuffle=False)
    return Training(net, loaders[0], data.accuracy, loaders[1], epochs(40, callbacks=[stop]))


@sick("fa-scans-stored-twice", "images", "train-val-leakage", twin=lambda seed: copies(seed, True))
def copies_cut(seed: int) -> Training:
    return copies(seed, False)
