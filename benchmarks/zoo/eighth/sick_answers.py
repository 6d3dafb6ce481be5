"""Losses, heads, operations, modes and batch statistics."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import generator, predict
from benchmarks.zoo.eighth._common import (
    Encoder,
    Module,
    Plain,
    Series,
    Task,
    beat_net,
    beats,
    commands,
    loader,
    mask_net,
    minus,
    mlp,
    notes,
    overlap,
    picture_net,
    spots,
    visits,
    walks,
    yields,
)

# --- losses that stop being numbers -----------------------------------------------------------------------------------


def found(p: Tensor, y: Tensor, ill: bool) -> Tensor:
    """The share of each mask that was found; a picture without a spot has a mask of nothing."""
    extra = 0.0 if ill else 1.0
    return ((p * y).sum((1, 2, 3)) + extra) / (y.sum((1, 2, 3)) + extra)


@sick("k-found-spots", "segmentation", "nonfinite-loss", "unstable-operation", twin=lambda s: found_spots(s, False))
def found_spots(seed: int, ill: bool = True) -> Training:
    d = spots(seed)
    x, y = d.x.clone(), d.y.clone()
    x[::50], y[::50] = x[::50] - y[::50], 0.0
    loss = lambda z, t: F.binary_cross_entropy_with_logits(z, t) + (1 - found(z.sigmoid(), t, ill)).mean()  # noqa: E731
    module = Task(mask_net(), loss, lr=4e-3)
    return Training(module, loader(x, y, size=20), overlap(d), trainer={"max_epochs": 9})


class Masked(Plain):
    """Only places that carry a label count; a batch without any has a mean of nothing."""

    ill = True

    def step_loss(self, batch: Any) -> Tensor:
        x, y, known = batch
        error = F.cross_entropy(self(x), y, reduction="none")
        if self.ill:
            return (error * known).sum() / known.sum()
        return (error * known).sum() / known.sum().clamp(min=1)


@sick("k-partly-labelled", "transformer", "nonfinite-loss", "unstable-operation", twin=lambda s: partly(s, False))
def partly(seed: int, ill: bool = True) -> Training:
    d = commands(seed)
    known = torch.rand(len(d.x), generator=generator(seed, 101)) < 0.2
    module = Masked(Encoder(16, 4), 4e-3)
    module.ill = ill
    rows = loader(d.x, d.y, known, size=10)
    return Training(module, rows, d.accuracy, trainer={"max_epochs": 3, "log_every_n_steps": 10})


class Density(nn.Module):
    """Mean and deviation of a normal; the deviation is a ReLU, or a softplus with a floor."""

    def __init__(self, ill: bool) -> None:
        super().__init__()
        self.net, self.ill = mlp(6, 48, 48, 2), ill

    def forward(self, x: Tensor) -> Tensor:
        mean, raw = self.net(x).unbind(1)
        spread = torch.relu(raw) if self.ill else F.softplus(raw) + 0.05
        return torch.stack([mean, spread], 1)


def gaussian(out: Tensor, y: Tensor) -> Tensor:
    mean, spread = out.unbind(1)
    return (spread.log() + 0.5 * ((y.flatten() - mean) / spread) ** 2).mean()


@sick("k-mean-and-spread", "density", "nonfinite-loss", "unstable-operation", twin=lambda s: mean_spread(s, False))
def mean_spread(seed: int, ill: bool = True) -> Training:
    d = yields(seed)
    score = minus(gaussian, d.x_test, d.y_test)
    return Training(Task(Density(ill), gaussian, lr=4e-3), loader(d.x, d.y), score, trainer={"max_epochs": 8})


# --- gradients that stop being numbers --------------------------------------------------------------------------------


class Pairs(Plain):
    """Contrastive pairs; the distance is a square root that now and then stands at nought."""

    ill = True

    def step_loss(self, batch: Any) -> Tensor:
        a, b, same = batch
        square = (self(a) - self(b)).square().sum(1)
        distance = square.sqrt() if self.ill else (square + 1e-8).sqrt()
        return torch.where(same, square, F.relu(1 - distance) ** 2).mean()


@sick(
    "k-pairs-of-digits",
    "metric-learning",
    "nonfinite-gradients",
    "unstable-operation",
    twin=lambda s: pairs(s, False),
    note="a picture paired with itself",
)
def pairs(seed: int, ill: bool = True) -> Training:
    d = data.digits(seed)
    g = generator(seed, 102)
    other = torch.randint(len(d.x), (len(d.x),), generator=g)
    other[::60] = torch.arange(len(d.x))[::60]
    module = Pairs(mlp(64, 48, 8), 2e-3)
    module.ill = ill
    rows = loader(d.x, d.x[other], d.y == d.y[other])

    def score(m: Any) -> float:
        near = torch.cdist(predict(m, d.x_test), predict(m, d.x)).argmin(1)
        return (d.y[near] == d.y_test).float().mean().item()

    return Training(module, rows, score, trainer={"max_epochs": 6})


class Power(nn.Module):
    """A learned exponent over absolute values, as in a compression layer of an audio net."""

    def __init__(self, ill: bool) -> None:
        super().__init__()
        self.exponent = nn.Parameter(torch.tensor(0.5))
        self.floor = 0.0 if ill else 1e-3

    def forward(self, x: Tensor) -> Tensor:
        return (x.abs() + self.floor) ** self.exponent * x.sign()


@sick("k-compressed-beats", "cnn1d", "nonfinite-gradients", "unstable-operation", twin=lambda s: compressed(s, False))
def compressed(seed: int, ill: bool = True) -> Training:
    d = beats(seed)
    x = d.x.clone()
    x[::80, :, 30:] = 0.0
    body = beat_net()
    net = nn.Sequential(nn.Conv1d(1, 12, 7, padding=3, bias=False), Power(ill), *body[2:])
    return Training(Task(net, F.cross_entropy, lr=3e-3), loader(x, d.y, size=40), d.accuracy, trainer={"max_epochs": 8})


class Norm(nn.Module):
    """Rows divided by their own deviation, which is nought for a row of equal numbers."""

    def __init__(self, floor: float) -> None:
        super().__init__()
        self.floor = floor

    def forward(self, h: Tensor) -> Tensor:
        centred = h - h.mean(1, keepdim=True)
        return centred / (centred.square().mean(1, keepdim=True) + self.floor).sqrt()


class Normed(nn.Module):
    """A skip of masked places hides the bad quotient in the forward; its backward is still taken."""

    def __init__(self, ill: bool) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Linear(6, 32, bias=False), Norm(0.0 if ill else 1e-5), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.one(x)
        empty = (h.abs().sum(1, keepdim=True) == 0).expand_as(h)
        return self.two(torch.relu(torch.where(empty, h, self.norm(h))))


@sick("k-empty-forms", "mlp", "nonfinite-gradients", "unstable-operation", twin=lambda s: empty_forms(s, False))
def empty_forms(seed: int, ill: bool = True) -> Training:
    d = yields(seed)
    x = d.x.clone()
    x[::150] = 0.0
    return Training(Task(Normed(ill), F.mse_loss, lr=5e-3), loader(x, d.y), d.r2, trainer={"max_epochs": 8})


# --- operations -------------------------------------------------------------------------------------------------------


class Weights(nn.Module):
    """Attention weights over a series, by hand."""

    def __init__(self, ill: bool) -> None:
        super().__init__()
        self.ill = ill

    def forward(self, z: Tensor) -> Tensor:
        if self.ill:
            e = torch.exp(z)
            return e / e.sum(1, keepdim=True)
        return torch.softmax(z, 1)


class Attending(nn.Module):
    def __init__(self, ill: bool) -> None:
        super().__init__()
        self.cell, self.ask = nn.GRU(1, 24, batch_first=True), nn.Linear(24, 1)
        self.weights, self.head = Weights(ill), nn.Linear(24, 1)
        nn.init.constant_(self.ask.bias, 21.0)

    def forward(self, x: Tensor) -> Tensor:
        h = self.cell(x)[0]
        return self.head((self.weights(4 * self.ask(h)) * h).sum(1))


@sick("k-hand-made-attention", "gru", "unstable-operation", "nonfinite-loss", twin=lambda s: attention(s, False))
def attention(seed: int, ill: bool = True) -> Training:
    d = walks(seed)
    return Training(
        Task(Attending(ill), F.mse_loss, lr=0.01), loader(d.x, d.y, size=45), d.r2, trainer={"max_epochs": 10}
    )


class Rate(nn.Module):
    """The logarithm of one more than the answer, which nothing keeps above minus one."""

    def __init__(self, ill: bool) -> None:
        super().__init__()
        self.ill = ill

    def forward(self, z: Tensor) -> Tensor:
        return torch.log1p(z if self.ill else 0.99 * F.elu(z))


@sick("k-log-of-a-rate", "poisson", "unstable-operation", "nonfinite-loss", twin=lambda s: log_rate(s, False))
def log_rate(seed: int, ill: bool = True) -> Training:
    d = visits(seed)
    body = mlp(5, 32, 1)
    with torch.no_grad():
        body[-1].bias.fill_(0.5)
    net = nn.Sequential(body, Rate(ill), nn.Flatten(0))
    loss = nn.PoissonNLLLoss()
    return Training(
        Task(net, loss, lr=4e-3), loader(d.x, d.y), minus(loss, d.x_test, d.y_test), trainer={"max_epochs": 7}
    )


class Angle(nn.Module):
    """The angle between a code and its class's direction."""

    def __init__(self, ill: bool) -> None:
        super().__init__()
        self.centre, self.ill = nn.Parameter(torch.randn(10, 16)), ill

    def forward(self, h: Tensor) -> Tensor:
        cosine = F.normalize(h, dim=1) @ F.normalize(self.centre, dim=1).T
        if self.ill:
            cosine = cosine * 1.02
        return -6 * torch.acos(cosine if self.ill else cosine.clamp(-0.999, 0.999))


@sick("k-angles-to-centres", "metric-learning", "unstable-operation", "nonfinite-loss", twin=lambda s: angles(s, False))
def angles(seed: int, ill: bool = True) -> Training:
    d = data.digits(seed)
    module = Task(nn.Sequential(mlp(64, 48, 16), Angle(ill)), F.cross_entropy, lr=5e-3)
    return Training(module, d.train(45), d.accuracy, d.val(), {"max_epochs": 8})


# --- heads and losses -------------------------------------------------------------------------------------------------


@sick("k-digits-softmax-head", "mlp", "probabilities-as-logits", twin=lambda s: digits_softmax_head(s, False))
def digits_softmax_head(seed: int, ill: bool = True) -> Training:
    d = data.digits(seed)
    net = nn.Sequential(mlp(64, 32, 10), nn.Softmax(dim=1) if ill else nn.Identity())
    module = Task(net, nn.CrossEntropyLoss(), lr=0.05, kind="SGD")
    return Training(module, d.train(32), d.accuracy, d.val(), {"max_epochs": 9})


@sick("k-spots-sigmoid", "segmentation", "probabilities-as-logits", twin=lambda s: spots_sigmoid(s, False))
def spots_sigmoid(seed: int, ill: bool = True) -> Training:
    d = spots(seed)

    class Masks(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sigmoid(self.net(x)) if ill else self.net(x)

        def step_loss(self, batch: Any) -> Tensor:
            x, y = batch
            return F.binary_cross_entropy_with_logits(self(x), y)

    return Training(Masks(mask_net(), 4e-3), loader(d.x, d.y, size=20), overlap(d), trainer={"max_epochs": 8})


@sick("k-forecast-flat-target", "gru", "loss-shape-mismatch", twin=lambda s: flat_target(s, False))
def flat_target(seed: int, ill: bool = True) -> Training:
    d = walks(seed)
    y = d.y.flatten() if ill else d.y
    module = Task(Series(nn.GRU, 1, 20, 1), nn.HuberLoss(), lr=5e-3)
    return Training(module, loader(d.x, y), d.r2, trainer={"max_epochs": 6, "precision": "bf16-mixed"})


class OwnLoss(nn.Module):
    """A weighted squared error: the weights are kept as a column or flat."""

    def __init__(self, ill: bool) -> None:
        super().__init__()
        self.ill = ill

    def forward(self, out: Tensor, y: Tensor) -> Tensor:
        y = y.flatten() if self.ill else y
        return ((out - y).square() * (1 + 0.2 * y.abs())).mean()


@sick("k-own-weighted-error", "mlp", "loss-shape-mismatch", twin=lambda s: own_weighted(s, False))
def own_weighted(seed: int, ill: bool = True) -> Training:
    d = yields(seed)
    return Training(Task(mlp(6, 48, 48, 1), OwnLoss(ill), lr=4e-3), Module((d.x, d.y), (d.x_test, d.y_test)), d.r2,
                    trainer={"max_epochs": 7})  # fmt: skip


@sick("k-class-numbers", "cnn1d", "wrong-loss-for-task", twin=lambda s: class_numbers(s, False))
def class_numbers(seed: int, ill: bool = True) -> Training:
    g = generator(seed, 103)
    d = beats(seed)
    other = torch.randperm(4, generator=g)
    d = replace(d, y=other[d.y], y_test=other[d.y_test])
    net = beat_net(1 if ill else 4)

    def loss(out: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(out[:, 0], y.float()) if ill else F.cross_entropy(out, y)

    def score(m: Any) -> float:
        out = predict(m, d.x_test)
        answer = out[:, 0].round().long() if ill else out.argmax(1)
        return (answer == d.y_test).float().mean().item()

    return Training(Task(net, loss, lr=2e-3), loader(d.x, d.y), score, trainer={"max_epochs": 4})


@sick("k-one-score", "text", "wrong-loss-for-task", "output-range-mismatch", twin=lambda s: one_score(s, False))
def one_score(seed: int, ill: bool = True) -> Training:
    d = notes(seed)
    net = nn.Sequential(nn.EmbeddingBag(40, 16), nn.Linear(16, 1))

    class Notes(Plain):
        def step_loss(self, batch: Any) -> Tensor:
            x, y = batch
            out = self(x)
            if ill:
                return F.cross_entropy(out, y.float()[:, None])
            return F.binary_cross_entropy_with_logits(out, y.float()[:, None])

    score = lambda m: ((predict(m, d.x_test)[:, 0] > 0) == (d.y_test == 1)).float().mean().item()  # noqa: E731
    return Training(Notes(net, 0.01), loader(d.x, d.y), score, trainer={"max_epochs": 5})


@sick("k-forecast-sigmoid-head", "lstm", "output-range-mismatch", twin=lambda s: sigmoid_head(s, False))
def sigmoid_head(seed: int, ill: bool = True) -> Training:
    d = walks(seed)
    net = nn.Sequential(Series(nn.LSTM, 1, 20, 1), nn.Sigmoid() if ill else nn.Identity())
    return Training(Task(net, F.mse_loss, lr=6e-3), loader(d.x, d.y), d.r2, trainer={"max_epochs": 8})


@sick("k-decoder-relu", "autoencoder", "output-range-mismatch", twin=lambda s: decoder_relu(s, False))
def decoder_relu(seed: int, ill: bool = True) -> Training:
    d = data.digits(seed).standardised()
    net = nn.Sequential(mlp(64, 48, 20, 48, 64), nn.ReLU() if ill else nn.Identity())
    score = lambda m: data.r2(predict(m, d.x_test), d.x_test)  # noqa: E731
    return Training(Task(net, F.mse_loss, lr=3e-3), loader(d.x, d.x), score, trainer={"max_epochs": 7})


# --- rows that see each other -----------------------------------------------------------------------------------------


@sick("k-softmax-of-rows", "gru", "batch-mixing", twin=lambda s: softmax_rows(s, False))
def softmax_rows(seed: int, ill: bool = True) -> Training:
    d = commands(seed)

    class Pool(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.cell = nn.Embedding(16, 16), nn.GRU(16, 24, batch_first=True)
            self.ask, self.head = nn.Linear(24, 1), nn.Linear(24, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = self.cell(self.embed(x))[0]
            weight = torch.softmax(self.ask(h), 0 if ill else 1)
            return self.head((weight * h).sum(1))

    module = Task(Pool(), F.cross_entropy, lr=3e-3)
    return Training(module, loader(d.x, d.y, size=40), d.accuracy, trainer={"max_epochs": 6})


@sick("k-reshaped-signals", "cnn1d", "batch-mixing", twin=lambda s: reshaped(s, False))
def reshaped(seed: int, ill: bool = True) -> Training:
    d = beats(seed)

    class Channels(nn.Module):
        """Convolution channels laid flat for the head, by a transpose or by a wrong one."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv1d(1, 12, 9, stride=4), nn.Linear(120, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.conv(x))
            flat = h.transpose(0, 1).reshape(len(x), -1) if ill else h.reshape(len(x), -1)
            return self.head(flat)

    module = Task(Channels(), F.cross_entropy, lr=4e-3)
    return Training(module, loader(d.x, d.y), d.accuracy, loader(d.x_test, d.y_test, shuffle=False), {"max_epochs": 7})


# --- modes ------------------------------------------------------------------------------------------------------------


class Noisy(nn.Module):
    """Dropout by function: its `training` argument is left at its default, or handed on."""

    def __init__(self, ill: bool) -> None:
        super().__init__()
        self.one, self.two, self.ill = nn.Linear(64, 64), nn.Linear(64, 10), ill

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.one(x))
        return self.two(F.dropout(h, 0.7, training=True if self.ill else self.training))


@sick("k-functional-dropout", "mlp", "mode-mismatch", twin=lambda s: functional_dropout(s, False))
def functional_dropout(seed: int, ill: bool = True) -> Training:
    d = data.digits(seed)
    return Training(Task(Noisy(ill), F.cross_entropy, lr=2e-3), d.train(32), d.accuracy, d.val(), {"max_epochs": 5})


class LeftInEval(Task):
    """A validation on a few fixed pictures at each epoch's start, which sets the net to evaluation."""

    ill = True

    def on_train_epoch_start(self) -> None:
        self.net.eval()
        with torch.no_grad():
            self.net(torch.zeros(2, 1, 8, 8))
        if not self.ill:
            self.net.train()


@sick("k-peek-at-epoch-start", "cnn", "mode-mismatch", "batchnorm-stale-statistics", twin=lambda s: peek(s, False))
def peek(seed: int, ill: bool = True) -> Training:
    d = data.digits(seed).to_images()
    x, test = d.x * 10 + 20, d.x_test * 10 + 20
    module = LeftInEval(nn.Sequential(nn.BatchNorm2d(1), picture_net(norm=True)), F.cross_entropy, lr=0.02, kind="SGD")
    module.ill = ill
    return Training(module, loader(x, d.y), replace(d, x_test=test).accuracy, trainer={"max_epochs": 5})


# --- batch statistics -------------------------------------------------------------------------------------------------


@sick("k-digits-in-twos", "mlp", "batchnorm-small-batch", twin=lambda s: in_twos(s, False))
def in_twos(seed: int, ill: bool = True) -> Training:
    d = data.digits(seed)
    norm = lambda w: nn.BatchNorm1d(w) if ill else nn.LayerNorm(w)  # noqa: E731
    net = nn.Sequential(
        nn.Linear(64, 48), norm(48), nn.ReLU(), nn.Linear(48, 48), norm(48), nn.ReLU(), nn.Linear(48, 10)
    )
    settings = {"max_steps": 350, "max_epochs": -1}
    return Training(Task(net, F.cross_entropy, lr=2e-3), loader(d.x, d.y, size=2), d.accuracy, d.val(), settings)


@sick("k-forecast-in-pairs", "gru", "batchnorm-small-batch", twin=lambda s: in_pairs(s, False))
def in_pairs(seed: int, ill: bool = True) -> Training:
    d = walks(seed)
    net = nn.Sequential(Series(nn.GRU, 1, 24, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1))
    settings = {"max_steps": 350, "max_epochs": -1}
    rows = loader(d.x, d.y, size=2 if ill else 32, drop_last=True)
    return Training(Task(net, F.mse_loss, lr=3e-3), rows, d.r2, trainer=settings)


@sick("k-digits-in-threes", "cnn", "batchnorm-small-batch", twin=lambda s: in_threes(s, False))
def in_threes(seed: int, ill: bool = True) -> Training:
    d = data.digits(seed).to_images()
    size, accumulate = (3, 8) if ill else (24, 1)
    net = nn.Sequential(
        nn.Conv2d(1, 32, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.BatchNorm1d(128),
        nn.Linear(128, 32),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )
    settings = {"max_steps": 150, "max_epochs": -1, "accumulate_grad_batches": accumulate}
    return Training(Task(net, F.cross_entropy, lr=8e-3), loader(d.x, d.y, size=size), d.accuracy, d.val(), settings)


@sick("k-slow-average", "cnn", "batchnorm-stale-statistics", twin=lambda s: slow_average(s, False))
def slow_average(seed: int, ill: bool = True) -> Training:
    d = data.digits(seed).to_images()
    net = picture_net(norm=True)
    for layer in net:
        if isinstance(layer, nn.BatchNorm2d) and ill:
            layer.momentum = 0.0005
    x, test = d.x * 12 - 3, d.x_test * 12 - 3
    score = replace(d, x_test=test)
    module = Task(net, F.cross_entropy, lr=3e-3)
    return Training(module, loader(x, d.y), score.accuracy, score.val(), {"max_epochs": 4})


@sick(
    "k-body-from-elsewhere", "fine-tuning", "batchnorm-stale-statistics", "mode-mismatch", twin=lambda s: body(s, False)
)
def body(seed: int, ill: bool = True) -> Training:
    d = data.digits(seed).to_images()
    net = picture_net(norm=True)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    g = generator(seed, 104)
    for _ in range(40):
        rows = torch.randint(len(d.x), (32,), generator=g)
        optimizer.zero_grad()
        F.cross_entropy(net(30 * d.x[rows] + 60), d.y[rows] % 5).backward()
        optimizer.step()

    class Tuned(Task):
        def on_train_epoch_start(self) -> None:
            if ill:
                for layer in self.net.modules():
                    if isinstance(layer, nn.BatchNorm2d):
                        layer.eval()

    module = Tuned(net, F.cross_entropy, lr=0.02, kind="SGD")
    return Training(module, loader(d.x, d.y), d.accuracy, d.val(), {"max_epochs": 5})
