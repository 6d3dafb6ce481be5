"""Gradients that grow or fade, units that die or sit at their limits, and first weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.eighth._common import (
    Encoder,
    Plain,
    Series,
    Task,
    Tastes,
    beat_net,
    beats,
    commands,
    loader,
    marks,
    minus,
    mlp,
    notes,
    picture_net,
    visits,
    walks,
    yields,
)

# --- gradients that grow ----------------------------------------------------------------------------------------------


class Rolled(nn.Module):
    """A hand-written linear recurrence over the steps of a series, with a gain on the hidden state."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(1, 16), nn.Linear(16, 1)
        self.turn = nn.Parameter(gain * torch.linalg.qr(torch.randn(16, 16)).Q)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 16)
        for t in range(x.shape[1]):
            h = F.relu(h @ self.turn + self.enter(x[:, t])) + 0.1 * h
        return self.leave(h)


@sick("k-rolled-series", "rnn", "exploding-gradients", "bad-initialization", twin=lambda s: rolled_series(s, False))
def rolled_series(seed: int, ill: bool = True) -> Training:
    d = walks(seed)
    module = Task(Rolled(1.5 if ill else 0.9), F.mse_loss, lr=0.01, kind="SGD")
    return Training(module, loader(d.x, d.y), d.r2, trainer={"max_epochs": 7})


class Deep(nn.Module):
    """Residual blocks without a normalisation; the branch's scale is the depth's business."""

    def __init__(self, blocks: int, scale: float) -> None:
        super().__init__()
        self.first = nn.Linear(64, 32)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)) for _ in range(blocks)
        )
        for block in self.blocks:
            for layer in (block[0], block[2]):
                nn.init.kaiming_normal_(layer.weight)
        self.last = nn.Linear(32, 10)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for block in self.blocks:
            h = h + self.scale * block(h)
        return self.last(h)


@sick(
    "k-residual-twelve",
    "mlp",
    "exploding-gradients",
    "bad-initialization",
    "learning-rate-too-high",
    twin=lambda s: residual_twelve(s, False),
    note="a branch at full gain doubles the signal at every block",
)
def residual_twelve(seed: int, ill: bool = True) -> Training:
    d = data.digits(seed)
    module = Task(Deep(12, 1.0 if ill else 0.1), F.cross_entropy, lr=0.05, kind="SGD")
    return Training(module, d.train(50), d.accuracy, d.val(), {"max_epochs": 7})


class Fitted(nn.Module):
    """Euler steps of a learned field: y' = f(y) from each start, over `length` of time."""

    def __init__(self, stiffness: float) -> None:
        super().__init__()
        self.field = mlp(2, 24, 2, act=nn.Tanh)
        self.rate = nn.Parameter(torch.tensor(stiffness))

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(20):
            x = x + 0.25 * (self.field(x) + self.rate * x)
        return x


@sick(
    "k-ode-of-a-spiral",
    "neural-ode",
    "exploding-gradients",
    "loss-diverging",
    "bad-initialization",
    twin=lambda s: ode_spiral(s, False),
)
def ode_spiral(seed: int, ill: bool = True) -> Training:
    g = data.generator(seed, 91)
    x = torch.randn(1400, 2, generator=g)
    turn = torch.tensor([[0.3, -0.8], [0.8, 0.3]])
    y = torch.tanh(x @ turn.T)
    module = Task(Fitted(0.75 if ill else -0.3), F.mse_loss, lr=3e-3, kind="SGD", momentum=0.9)
    score = minus(F.mse_loss, x[1000:], y[1000:])
    return Training(module, loader(x[:1000], y[:1000], size=50), score, trainer={"max_epochs": 8})


# --- gradients that fade ----------------------------------------------------------------------------------------------


@sick("k-seven-deep", "mlp", "vanishing-gradients", "saturated-activations", twin=lambda s: seven_deep(s, False))
def seven_deep(seed: int, ill: bool = True) -> Training:
    d = data.digits(seed)
    net = mlp(64, *[48] * 6, 10, act=nn.Sigmoid if ill else nn.ReLU)
    return Training(Task(net, F.cross_entropy, lr=2e-3), d.train(50), d.accuracy, trainer={"max_epochs": 11})


@sick("k-beats-six-filters", "cnn1d", "vanishing-gradients", "bad-initialization", twin=lambda s: six_filters(s, False))
def six_filters(seed: int, ill: bool = True) -> Training:
    d = beats(seed)
    layers: list[nn.Module] = []
    for k in range(6):
        conv = nn.Conv1d(12 if k else 1, 12, 5, padding=2)
        nn.init.normal_(conv.weight, std=0.01) if ill else nn.init.kaiming_normal_(conv.weight)
        nn.init.zeros_(conv.bias)
        layers += [conv, nn.ReLU()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool1d(4), nn.Flatten(), nn.Linear(48, 4))
    module = Task(net, F.cross_entropy, lr=0.01, kind="SGD", momentum=0.9)
    return Training(module, loader(d.x, d.y, size=40), d.accuracy, trainer={"max_epochs": 14})


class Recall(nn.Module):
    """The first id of the sequence is to be told after the last one."""

    def __init__(self, cell: type[nn.RNNBase]) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 12)
        self.cell = cell(12, 24, batch_first=True)
        if cell is nn.RNN:
            with torch.no_grad():
                self.cell.weight_hh_l0.mul_(0.4)
        else:
            with torch.no_grad():
                self.cell.bias_hh_l0[24:48] = 3.0
        self.head = nn.Linear(24, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(self.embed(x))[0][:, -1])


@sick("k-first-id", "rnn", "vanishing-gradients", twin=lambda s: first_id(s, False))
def first_id(seed: int, ill: bool = True) -> Training:
    g = data.generator(seed, 92)
    x = torch.randint(8, (1400, 24), generator=g)
    module = Task(Recall(nn.RNN if ill else nn.GRU), F.cross_entropy, lr=5e-3)
    score = lambda m: data.accuracy(data.predict(m, x[1000:]), x[1000:, 0])  # noqa: E731
    return Training(module, loader(x[:1000], x[:1000, 0]), score, trainer={"max_epochs": 10})


# --- units ------------------------------------------------------------------------------------------------------------


class Shifted(Plain):
    """A net whose hidden biases were set by a custom init function."""

    def __init__(self, net: nn.Module, lr: float, bias: float) -> None:
        super().__init__(net, lr)
        self.bias = bias
        self.apply(self.reset)

    def reset(self, layer: nn.Module) -> None:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
            nn.init.constant_(layer.bias, self.bias)


@sick("k-digits-own-reset", "cnn", "dead-activations", "bad-initialization", twin=lambda s: own_reset(s, False))
def own_reset(seed: int, ill: bool = True) -> Training:
    d = data.digits(seed).to_images()
    module = Shifted(picture_net(), 1e-3, -4.0 if ill else 0.01)
    return Training(module, d.train(32), d.accuracy, trainer={"max_epochs": 5, "log_every_n_steps": 10})


@sick("k-visits-sgd", "poisson", "learning-rate-too-high", "dead-activations", twin=lambda s: visits_sgd(s, False))
def visits_sgd(seed: int, ill: bool = True) -> Training:
    d = visits(seed)
    net = nn.Sequential(mlp(5, 32, 32, 1), nn.Flatten(0))
    loss = nn.PoissonNLLLoss()
    module = Task(net, loss, lr=2.0 if ill else 0.02, kind="SGD")
    settings = {"max_epochs": 6, "gradient_clip_val": 5.0}
    return Training(module, loader(d.x, d.y, size=40), minus(loss, d.x_test, d.y_test), trainer=settings)


class Gated(nn.Sequential):
    """Two tanh layers whose weights are multiplied by a gain, as in a port of an old paper."""

    def __init__(self, gain: float) -> None:
        first, second = nn.Linear(6, 64), nn.Linear(64, 64)
        with torch.no_grad():
            first.weight.mul_(gain)
            second.weight.mul_(gain)
        super().__init__(first, nn.Tanh(), second, nn.Tanh(), nn.Linear(64, 1))


@sick("k-yields-gain", "mlp", "saturated-activations", "bad-initialization", twin=lambda s: yields_gain(s, False))
def yields_gain(seed: int, ill: bool = True) -> Training:
    d = yields(seed)
    module = Task(Gated(40.0 if ill else 2.0), F.mse_loss, lr=3e-3)
    return Training(module, loader(d.x, d.y), d.r2, loader(d.x_test, d.y_test, shuffle=False), {"max_epochs": 8})


class Coder(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.down, self.gate, self.up = nn.Linear(64, 24), nn.Sigmoid(), nn.Linear(24, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.gate(self.down(x * self.scale)))


@sick("k-code-of-sigmoids", "autoencoder", "saturated-activations", "unscaled-inputs", twin=lambda s: codes(s, False))
def codes(seed: int, ill: bool = True) -> Training:
    d = data.digits(seed)
    module = Task(Coder(200.0 if ill else 2.0), F.mse_loss, lr=0.01)
    score = lambda m: data.r2(data.predict(m, d.x_test), d.x_test)  # noqa: E731
    return Training(module, loader(d.x, d.x, size=45), score, trainer={"max_epochs": 7})


# --- first weights ----------------------------------------------------------------------------------------------------


@sick("k-beats-ones", "cnn1d", "bad-initialization", twin=lambda s: beats_ones(s, False))
def beats_ones(seed: int, ill: bool = True) -> Training:
    d = beats(seed)
    net = beat_net()
    if ill:
        for p in net.parameters():
            nn.init.constant_(p, 0.1)
    return Training(Task(net, F.cross_entropy, lr=2e-3), loader(d.x, d.y), d.accuracy, trainer={"max_epochs": 7})


@sick(
    "k-embeddings-at-nought",
    "recommender",
    "bad-initialization",
    twin=lambda s: at_nought(s, False),
    note="both tables of a dot product start at zero, so neither gets a gradient",
)
def at_nought(seed: int, ill: bool = True) -> Training:
    d = marks(seed)
    net = Tastes(scale=0.0 if ill else 0.3)
    score = minus(F.mse_loss, d.x_test, d.y_test)
    return Training(Task(net, F.mse_loss, lr=0.02), loader(d.x, d.y, size=96), score, trainer={"max_epochs": 10})


@sick(
    "k-commands-wide-head",
    "transformer",
    "bad-initialization",
    twin=lambda s: wide_head(s, False),
    note="the head starts with a standard deviation of twelve: a first loss far above log 4",
)
def wide_head(seed: int, ill: bool = True) -> Training:
    d = commands(seed)
    net = Encoder(16, 4)
    if ill:
        nn.init.normal_(net.head.weight, std=12.0)
        nn.init.normal_(net.embed.weight, std=8.0)
    module = Task(net, F.cross_entropy, lr=0.1, kind="SGD")
    return Training(module, loader(d.x, d.y), d.accuracy, trainer={"max_steps": 250, "max_epochs": -1})


# --- too small, too linear --------------------------------------------------------------------------------------------


@sick("k-digits-two-wide", "cnn", "insufficient-capacity", twin=lambda s: two_wide(s, False))
def two_wide(seed: int, ill: bool = True) -> Training:
    d = data.digits(seed).to_images()
    width = 1 if ill else 24
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(72, width), nn.Tanh(), nn.Linear(width, 10)
    )
    return Training(Task(net, F.cross_entropy, lr=5e-3), d.train(32), d.accuracy, trainer={"max_epochs": 7})


@sick("k-forecast-one-cell", "lstm", "insufficient-capacity", twin=lambda s: one_cell(s, False))
def one_cell(seed: int, ill: bool = True) -> Training:
    d = walks(seed)
    module = Task(Series(nn.LSTM, 1, 1 if ill else 24, 1), F.mse_loss, lr=0.02)
    return Training(module, loader(d.x, d.y), d.r2, trainer={"max_epochs": 10})


@sick("k-yields-five-layers", "mlp", "missing-nonlinearity", twin=lambda s: five_layers(s, False))
def five_layers(seed: int, ill: bool = True) -> Training:
    d = yields(seed)
    act: Any = nn.Identity if ill else nn.SiLU
    net = mlp(6, 64, 64, 64, 1, act=act)
    return Training(Task(net, F.mse_loss, lr=3e-3), loader(d.x, d.y), d.r2, trainer={"max_epochs": 8})


class Body(nn.Module):
    """Functional style: the activation is in forward, where it was or was not written."""

    def __init__(self, bent: bool) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Conv1d(1, 12, 7), nn.Conv1d(12, 12, 5), nn.Linear(12, 4)
        self.bent = bent

    def forward(self, x: Tensor) -> Tensor:
        h = self.two(F.gelu(self.one(x)) if self.bent else self.one(x))
        return self.out((F.gelu(h) if self.bent else h).mean(-1))


@sick("k-beats-functional", "cnn1d", "missing-nonlinearity", twin=lambda s: beats_functional(s, False))
def beats_functional(seed: int, ill: bool = True) -> Training:
    d = beats(seed)
    return Training(
        Task(Body(not ill), F.cross_entropy, lr=5e-3), loader(d.x, d.y), d.accuracy, trainer={"max_epochs": 8}
    )


@sick(
    "k-notes-bottleneck",
    "text",
    "dead-activations",
    twin=lambda s: notes_bottleneck(s, False),
    note="the bias of a hidden layer starts at minus nine",
)
def notes_bottleneck(seed: int, ill: bool = True) -> Training:
    d = notes(seed)
    inner = nn.Linear(16, 16)
    if ill:
        with torch.no_grad():
            inner.bias.fill_(-9.0)
    net = nn.Sequential(nn.EmbeddingBag(40, 16), inner, nn.ReLU(), nn.Linear(16, 2))
    return Training(Task(net, F.cross_entropy, lr=4e-3), loader(d.x, d.y), d.accuracy, trainer={"max_epochs": 6})
