"""Sick trainings that are ill from the start: initial weights, activations that die or saturate, too little of a model."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.eleventh.a_common import Plain, dense, figures, ink, iou, loader, log_likelihood, reviews, steps


class Tied(LightningModule):
    """A recurrent language model whose output layer is its embedding table."""

    def __init__(self, symbols: int, std: float | None) -> None:
        super().__init__()
        self.embed = nn.Embedding(symbols, 100)
        if std is not None:
            nn.init.normal_(self.embed.weight, std=std)
        self.gru = nn.GRU(100, 100, batch_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        out, _ = self.gru(10 * self.embed(ids))  # times the root of the width
        return out @ self.embed.weight.T

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        ids = batch[0]
        loss = F.cross_entropy(self(ids[:, :-1]).transpose(1, 2), ids[:, 1:])
        self.log("lm_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def tied(seed: int, *, std: float | None = 0.1) -> Training:
    text = data.characters(seed)
    return Training(
        Tied(text.symbols, std),
        loader([text.train], 32),
        lambda m: log_likelihood(m, text.test[:, :-1], text.test[:, 1:]),
        trainer=steps(150),
    )


@sick("ea-tied-table-of-unit-normals", "language", "bad-initialization", twin=tied)
def tied_wide(seed: int) -> Training:
    return tied(seed, std=None)


class Digits(LightningModule):
    def __init__(self, constant: float | None) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
        for layer in (self.fc1, self.fc2):
            if constant is None:
                nn.init.xavier_uniform_(layer.weight)
            else:
                nn.init.constant_(layer.weight, constant)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("acc_val", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def digit_dense(seed: int, *, constant: float | None = None) -> Training:
    d = data.digits(seed)
    return Training(Digits(constant), d.train(64), d.accuracy, d.val(), steps(220))


@sick("ea-weights-all-0.05", "images", "bad-initialization", twin=digit_dense)
def digit_dense_constant(seed: int) -> Training:
    return digit_dense(seed, constant=0.05)


class Curve(LightningModule):
    """Keras' RandomNormal written by hand; the spread is the argument."""

    def __init__(self, spread: float) -> None:
        super().__init__()
        self.net = dense(8, 128, 128, 128, 1)
        for m in self.net:
            if isinstance(m, nn.Linear):
                nn.init.normal_(m.weight, 0.0, spread)
                nn.init.zeros_(m.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.smooth_l1_loss(self(x), y)
        self.log("huber", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def curve(seed: int, *, spread: float = 0.1) -> Training:
    d = data.regression(seed, r2=0.92)
    return Training(Curve(spread), d.train(64), d.r2, trainer=steps(300))


@sick("ea-random-normal-of-one", "tabular", "bad-initialization", twin=curve)
def curve_wide(seed: int) -> Training:
    return curve(seed, spread=1.0)


class Detector(LightningModule):
    """Pixels of an object or not; the prior of rare objects goes into a bias."""

    def __init__(self, only_last: bool) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()
        )
        self.score = nn.Conv2d(16, 1, 3, padding=1)
        for name, m in self.named_modules():
            if isinstance(m, nn.Conv2d) and (name == "score" or not only_last):
                nn.init.constant_(m.bias, -math.log((1 - 0.05) / 0.05))

    def forward(self, x: Tensor) -> Tensor:
        return self.score(self.backbone(x))[:, 0]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, mask = batch
        loss = F.binary_cross_entropy_with_logits(self(x), (mask > 0).float())
        self.log("train_bce", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def detector(seed: int, *, only_last: bool = True) -> Training:
    d = figures(seed)

    def score(module: LightningModule) -> float:
        logits = data.predict(module, d.x_test)
        return iou(torch.stack([-logits, logits], 1), (d.y_test > 0).long(), 2)

    return Training(Detector(only_last), d.train(32), score, trainer=steps(150))


@sick("ea-prior-bias-in-every-layer", "segmentation", "dead-activations", "bad-initialization", twin=detector)
def detector_prior(seed: int) -> Training:
    return detector(seed, only_last=False)


class Pixels(LightningModule):
    """Layers drawn within plus and minus a bound of the fan-in, after the text book."""

    def __init__(self, power: float) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(64, 48), nn.Linear(48, 48), nn.Linear(48, 10)
        for layer in (self.a, self.b):
            bound = layer.in_features**power
            nn.init.uniform_(layer.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def pixels(seed: int, *, power: float = -0.5) -> Training:
    d = ink(seed)
    return Training(Pixels(power), d.train(48), d.accuracy, trainer=steps(250))


@sick("ea-bound-root-of-fan-in", "images", "saturated-activations", "bad-initialization", twin=pixels)
def pixels_wide(seed: int) -> Training:
    return pixels(seed, power=0.5)


class Gate(LightningModule):
    """Highway layers: a gate decides how much of each layer's input passes by."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.enter = nn.Linear(8, 32)
        self.carry = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))
        self.change = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))
        for layer in self.carry:
            nn.init.constant_(layer.bias, bias)
        self.leave = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        for carry, change in zip(self.carry, self.change, strict=True):
            keep = carry(h).sigmoid()
            h = keep * h + (1 - keep) * torch.relu(change(h))
        return self.leave(h)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("fit", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def gate(seed: int, *, bias: float = 1.0) -> Training:
    d = data.regression(seed, r2=0.95)
    return Training(Gate(bias), d.train(64), d.r2, trainer=steps(300))


@sick("ea-highway-gates-at-20", "tabular", "saturated-activations", "bad-initialization", twin=gate)
def gate_shut(seed: int) -> Training:
    return gate(seed, bias=20.0)


def deep(seed: int, *, act: type[nn.Module] = nn.ReLU) -> Training:
    d = ink(seed)
    net = dense(64, 48, 48, 48, 48, 48, 10, act=act)
    module = Plain(net, nn.CrossEntropyLoss(), lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), log="loss")
    return Training(module, d.train(64), d.accuracy, trainer=steps(300))


@sick("ea-six-sigmoid-layers", "images", "vanishing-gradients", twin=deep)
def deep_sigmoid(seed: int) -> Training:
    return deep(seed, act=nn.Sigmoid)


class FirstWord(LightningModule):
    """What stood at the start of a line decides; the state after the last symbol is read."""

    def __init__(self, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.embed = nn.Embedding(16, 24)
        self.cell = nn.RNNCell(24, 24)
        self.read = nn.Linear(24, 8)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        h = x.new_zeros(len(ids), 24)
        for t in range(x.shape[1]):
            h = h + 0.2 * self.cell(x[:, t], h) if self.residual else self.cell(x[:, t], h)
        return self.read(h)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def first_word(seed: int, *, residual: bool = True) -> Training:
    g = data.generator(seed, 32)
    ids = torch.randint(8, 16, (2000, 30), generator=g)
    ids[:, 0] = torch.randint(8, (2000,), generator=g)
    d = data.Split(ids[:1500], ids[:1500, 0], ids[1500:], ids[1500:, 0])
    return Training(FirstWord(residual), d.train(64), d.accuracy, trainer=steps(250, gradient_clip_val=1.0))


@sick("ea-plain-cell-thirty-steps", "sequence", "vanishing-gradients", twin=first_word)
def first_word_plain(seed: int) -> Training:
    return first_word(seed, residual=False)


class Rings(LightningModule):
    def __init__(self, assign: bool) -> None:
        super().__init__()
        self.assign = assign
        self.l1, self.l2, self.l3 = nn.Linear(2, 32), nn.Linear(32, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.l1(x)
        if self.assign:
            x = F.relu(x)
        x = self.l2(x)
        if self.assign:
            x = F.relu(x)
        return self.l3(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch["point"]), batch["ring"])
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def rings(seed: int, *, assign: bool = True) -> Training:
    g = data.generator(seed, 33)
    ring = torch.randint(3, (1600,), generator=g)
    turn = 2 * math.pi * torch.rand(1600, generator=g)
    radius = 0.5 + 0.7 * ring + 0.12 * torch.randn(1600, generator=g)
    point = radius[:, None] * torch.stack([turn.cos(), turn.sin()], 1)
    rows = [{"point": p, "ring": r} for p, r in zip(point[:1000], ring[:1000], strict=True)]
    train = torch.utils.data.DataLoader(rows, 50, shuffle=True)
    return Training(
        Rings(assign), train, lambda m: data.accuracy(data.predict(m, point[1000:]), ring[1000:]), trainer=steps(200)
    )


@sick("ea-rings-without-relu", "tabular", "missing-nonlinearity", twin=rings)
def rings_linear(seed: int) -> Training:
    return rings(seed, assign=False)


class Blocks(LightningModule):
    """Convolutions from a list of layer names, as a configuration file has them."""

    def __init__(self, recipe: list[str]) -> None:
        super().__init__()
        made: list[nn.Module] = []
        channels = 1
        for word in recipe:
            if word.startswith("c"):
                made.append(nn.Conv2d(channels, int(word[1:]), 3, padding=1))
                channels = int(word[1:])
            else:
                made.append({"r": nn.ReLU, "b": lambda width=channels: nn.BatchNorm2d(width), "a": nn.Identity}[word]())
        self.features = nn.Sequential(*made)
        self.head = nn.Linear(channels, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def texture(seed: int, *, recipe: str = "c8 b r c16 b r") -> Training:
    """Stripes across or along, of either sign and any phase."""
    g = data.generator(seed, 34)
    y = torch.randint(2, (1400,), generator=g)
    phase = 2 * math.pi * torch.rand(1400, 1, 1, generator=g)
    line = torch.sin(1.3 * torch.arange(12.0) + phase).expand(-1, 12, -1)
    x = torch.where(y[:, None, None] == 0, line, line.transpose(1, 2)) + 0.5 * torch.randn(1400, 12, 12, generator=g)
    d = data.Split(x[:900, None], y[:900], x[900:, None], y[900:])
    return Training(Blocks(recipe.split()), d.train(32), d.accuracy, trainer=steps(200))


@sick("ea-recipe-of-identities", "images", "missing-nonlinearity", twin=texture)
def texture_linear(seed: int) -> Training:
    return texture(seed, recipe="c8 b a c16 b a")


def narrow(seed: int, *, share: int = 1) -> Training:
    d = data.digits(seed)
    net = dense(64, 64 // share, 10, act=nn.Tanh)
    module = Plain(net, nn.CrossEntropyLoss(), lambda p: torch.optim.Adam(p, lr=1e-2), log="ce")
    return Training(module, d.train(64), d.accuracy, d.val(), steps(300))


@sick("ea-two-hidden-units", "images", "insufficient-capacity", twin=narrow)
def narrow_two(seed: int) -> Training:
    return narrow(seed, share=32)


class Outline(LightningModule):
    def __init__(self, kernel: int) -> None:
        super().__init__()
        pad = kernel // 2
        self.a, self.b = nn.Conv2d(1, 16, kernel, padding=pad), nn.Conv2d(16, 16, kernel, padding=pad)
        self.c = nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.gelu(self.b(F.gelu(self.a(x)))))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("pixel_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_iou", iou(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def outline(seed: int, *, kernel: int = 5) -> Training:
    d = figures(seed)
    return Training(
        Outline(kernel), d.train(25), lambda m: iou(data.predict(m, d.x_test), d.y_test), d.val(), steps(160)
    )


@sick("ea-pixelwise-kernels", "segmentation", "insufficient-capacity", twin=outline)
def outline_pixelwise(seed: int) -> Training:
    return outline(seed, kernel=1)


class Bag(LightningModule):
    """The mean of the word vectors, and a layer on top."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(80, width, padding_idx=0)
        self.head = nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, 8))

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.table(ids).sum(1) / (ids != 0).sum(1, keepdim=True))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def bag(seed: int, *, width: int = 32) -> Training:
    d = reviews(seed, topics=8, n=2400)
    return Training(Bag(width), d.train(64), d.accuracy, trainer=steps(600))


@sick("ea-word-vectors-of-one", "text", "insufficient-capacity", twin=bag)
def bag_narrow(seed: int) -> Training:
    return bag(seed, width=1)
