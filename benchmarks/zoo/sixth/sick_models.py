"""Heads, losses, activations and modes that do not fit."""

from __future__ import annotations

import copy
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import Split, generator, predict
from benchmarks.zoo.sixth._common import (
    DeepSet,
    Factors,
    GraphNet,
    Learner,
    Mixture,
    Recur,
    Rows,
    Words,
    baskets,
    branches,
    clips,
    clouds,
    explains,
    flow,
    glyph_net,
    glyphs,
    harvest,
    hits,
    loader,
    mixture_nll,
    mlp,
    networks,
    optim,
    overlap,
    per_place,
    recalls,
    riddles,
    spot_net,
    spots,
    stars,
    supervised,
    tags,
    turbines,
)

# --- what the loss receives -------------------------------------------------------------------------------------------


@sick("q-copies-a-player", "imitation", "probabilities-as-logits", twin=lambda s: copies(s, False))
def copies(seed: int, shares: bool = True) -> Training:
    g = generator(seed, 120)
    state = torch.randn(1200, 6, generator=g)
    move = (state @ torch.randn(6, 5, generator=g) + 1.5 * state[:, :5] * state[:, 1:]).argmax(1)
    net = mlp(6, 48, 5, act=nn.Tanh)
    if shares:
        net.append(nn.Softmax(-1))

    def imitate(out: Tensor, y: Tensor) -> Tensor:
        return -torch.distributions.Categorical(logits=out).log_prob(y).mean()

    module = Learner(net, supervised(imitate), optim("Adam", 2e-3), "imitation")
    score = lambda m: -imitate(predict(m, state[800:]), move[800:]).item()  # noqa: E731
    return Training(module, loader(state[:800], move[:800]), score, None, {"max_epochs": 10})


class Labeller(LightningModule):
    """Six yes-or-no answers under a focal loss that takes logits."""

    def __init__(self, squash: bool) -> None:
        super().__init__()
        self.body = mlp(12, 40, 40, 6)
        self.squash = squash

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x)
        return torch.sigmoid(out) if self.squash else out

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        each = F.binary_cross_entropy_with_logits(self(x), y, reduction="none")
        loss = ((1 - torch.exp(-each)).square() * each).mean()
        self.log("focal", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


@sick("q-six-answers-a-row", "multi-label", "probabilities-as-logits", twin=lambda s: six_answers(s, False))
def six_answers(seed: int, squash: bool = True) -> Training:
    d = tags(seed)
    score = lambda m: -F.binary_cross_entropy_with_logits(predict(m, d.x_test), d.y_test).item()  # noqa: E731
    return Training(Labeller(squash), loader(d.x, d.y), score, None, {"max_epochs": 10})


@sick("q-visits-of-a-ward", "counts", "loss-shape-mismatch", twin=lambda s: ward(s, True))
def ward(seed: int, same: bool = False) -> Training:
    d = harvest(seed)
    y, y_test = (torch.poisson(torch.exp(0.9 * t + 0.8), generator=generator(seed, 121))[:, 0] for t in (d.y, d.y_test))

    def counts(out: Tensor, y: Tensor) -> Tensor:
        return (torch.exp(out) - (y[:, None] if same else y) * out).mean()

    module = Learner(mlp(6, 32, 1), supervised(counts), optim("Adam", 4e-3), "poisson")

    def score(m: LightningModule) -> float:
        out = predict(m, d.x_test)[:, 0]
        return -(out.exp() - y_test * out).mean().item()

    return Training(module, loader(d.x, y), score, None, {"max_epochs": 10})


@sick("q-heat-over-a-disc", "denoiser", "loss-shape-mismatch", twin=lambda s: heat(s, True))
def heat(seed: int, channel: bool = False) -> Training:
    d = spots(seed)
    target = d.y if channel else d.y[:, 0]

    def apart(out: Tensor, clean: Tensor) -> Tensor:
        return (out - clean).abs().mean() + (out - clean).square().mean()

    module = Learner(spot_net(), supervised(apart), optim("Adam", 4e-3), "pixel_loss")
    return Training(module, loader(d.x, target, size=20), explains(d.x_test, d.y_test), None, {"max_epochs": 8})


@sick("q-one-unit-yes-or-no", "point set", "wrong-loss-for-task", twin=lambda s: one_unit(s, False))
def one_unit(seed: int, classes: bool = True) -> Training:
    d = clouds(seed).map_targets(lambda y: (y == 0).float()[:, None])
    loss = F.cross_entropy if classes else F.binary_cross_entropy_with_logits
    module = Learner(DeepSet(out=1), supervised(loss), optim("Adam", 3e-3))
    score = lambda m: recalls((predict(m, d.x_test) > 0).float(), d.y_test)  # noqa: E731
    return Training(module, loader(d.x, d.y), score, None, {"max_epochs": 8})


class Likeness(LightningModule):
    """Brings a clip and what was written about it close together."""

    def __init__(self, sign: float) -> None:
        super().__init__()
        self.sound, self.text = mlp(12, 32, 8), mlp(6, 32, 8)
        self.sign = sign

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.sound(x[:, :12]), self.text(x[:, 12:])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x,) = batch
        a, b = self(x)
        near = F.cosine_similarity(a, b)
        far = F.cosine_similarity(a, b.roll(1, 0)).clamp(min=0)
        loss = (self.sign * near + 0.5 * far).mean()
        self.log_dict({"near": near.mean(), "loss": loss})
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@sick("q-sounds-beside-their-texts", "contrastive", "wrong-loss-for-task", twin=lambda s: beside_texts(s, -1.0))
def beside_texts(seed: int, sign: float = 1.0) -> Training:
    g = generator(seed, 122)
    z = torch.randn(1100, 4, generator=g)
    views = [(z @ torch.randn(4, k, generator=g)).tanh() + 0.1 * torch.randn(1100, k, generator=g) for k in (12, 6)]
    x = torch.cat(views, 1)

    def score(m: LightningModule) -> float:
        a, b = (F.normalize(v, dim=-1) for v in predict(m, x[800:]))
        return ((a @ b.T).argsort(descending=True)[:, :30] == torch.arange(300)[:, None]).any(1).float().mean().item()

    return Training(Likeness(sign), loader(x[:800], size=40), score, None, {"max_epochs": 10})


@sick("q-which-way-and-how-far", "regression", "output-range-mismatch", twin=lambda s: which_way(s, False))
def which_way(seed: int, unit: bool = True) -> Training:
    d = flow(seed).map_targets(lambda y: 3 * y)

    class Direction(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp(2, 48, 48, 2, act=nn.SiLU)

        def forward(self, x: Tensor) -> Tensor:
            out = self.body(x)
            return F.normalize(out, dim=-1) if unit else out

    module = Learner(Direction(), supervised(F.mse_loss), optim("Adam", 5e-3), "mse")
    return Training(module, loader(d.x, d.y), explains(d.x_test, d.y_test), None, {"max_epochs": 10})


@sick("q-cells-of-a-grid", "detection head", "output-range-mismatch", twin=lambda s: grid(s, nn.Identity))
def grid(seed: int, last: type[nn.Module] = nn.Sigmoid) -> Training:
    g = generator(seed, 123)
    place = torch.randint(1, 9, (1000, 2), generator=g)
    x = 0.2 * torch.randn(1000, 1, 10, 10, generator=g)
    x[torch.arange(1000), 0, place[:, 0], place[:, 1]] += 2.0
    y = place.float()
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(800, 32), nn.ReLU())
    net.extend([nn.Linear(32, 2), last()])
    module = Learner(net, supervised(F.l1_loss), optim("Adam", 3e-3), "l1")
    return Training(module, loader(x[:700], y[:700], size=28), explains(x[700:], y[700:]), None, {"max_epochs": 10})


# --- too small, too straight, too large -------------------------------------------------------------------------------


@sick("q-clouds-by-one-number", "point set", "insufficient-capacity", twin=lambda s: one_number(s, 24))
def one_number(seed: int, width: int = 1) -> Training:
    d = clouds(seed)
    net = DeepSet(2, width, 3, act=nn.Tanh)
    module = Learner(net, supervised(F.cross_entropy), optim("Adam", 1e-2), "ce")
    return Training(module, loader(d.x, d.y), hits(d.x_test, d.y_test), None, {"max_epochs": 14})


@sick("q-swing-by-two-units", "neural ode", "insufficient-capacity", twin=lambda s: two_units(s, 48))
def two_units(seed: int, width: int = 2) -> Training:
    d = flow(seed)
    module = Learner(mlp(2, width, 2, act=nn.Tanh), supervised(F.mse_loss), optim("Adam", 1e-2), "field")
    return Training(module, loader(d.x, d.y), explains(d.x_test, d.y_test), None, {"max_epochs": 16})


@sick("q-filters-after-filters", "conv over time", "missing-nonlinearity", twin=lambda s: filters(s, nn.GELU))
def filters(seed: int, act: type[nn.Module] = nn.Identity) -> Training:
    d = clips(seed)
    net = nn.Sequential(nn.Conv1d(1, 12, 7), act(), nn.Conv1d(12, 12, 7), act(), nn.AdaptiveAvgPool1d(1))
    net.extend([nn.Flatten(), nn.Linear(12, 3)])
    module = Learner(net, supervised(F.cross_entropy), optim("Adam", 5e-3), "xent")
    return Training(module, loader(d.x, d.y), hits(d.x_test, d.y_test), None, {"max_epochs": 10})


class Chain(nn.Module):
    """Residual blocks of one layer each."""

    def __init__(self, bend: bool, width: int = 32) -> None:
        super().__init__()
        self.start, self.end = nn.Linear(6, width), nn.Linear(width, 1)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(4))
        self.norm = nn.Dropout(0.0)
        self.bend = bend

    def forward(self, x: Tensor) -> Tensor:
        h = self.start(x)
        for block in self.blocks:
            h = h + self.norm(torch.tanh(block(h)) if self.bend else block(h))
        return self.end(h)


@sick("q-four-sums-of-sums", "residual mlp", "missing-nonlinearity", twin=lambda s: sums_of_sums(s, True))
def sums_of_sums(seed: int, bend: bool = False) -> Training:
    d = harvest(seed)
    module = Learner(Chain(bend), supervised(F.mse_loss), optim("Adam", 2e-3), "mse")
    return Training(module, Rows(d), explains(d.x_test, d.y_test), None, {"max_epochs": 12})


@sick("q-tables-of-many-factors", "recommender", "overfitting", twin=lambda s: many_factors(s, 3, 0.3))
def many_factors(seed: int, dim: int = 64, decay: float = 0.0) -> Training:
    d = stars(seed, 900)
    module = Learner(
        Factors(dim=dim, scale=0.1), supervised(F.mse_loss), optim("AdamW", 1e-2, weight_decay=decay), "mse"
    )
    val = loader(d.x_test, d.y_test, size=250, shuffle=False)
    return Training(module, loader(d.x, d.y, size=45), explains(d.x_test, d.y_test), val, {"max_epochs": 25})


@sick("q-short-sounds-read-raw", "audio", "overfitting", "too-little-data", twin=lambda s: read_raw(s, True))
def read_raw(seed: int, watched: bool = False) -> Training:
    d = clips(seed, 150)
    g = generator(seed, 124)
    x, x_test = ((x + 1.0 * torch.randn(x.shape, generator=g)).flatten(1) for x in (d.x, d.x_test))
    other = torch.rand(150, generator=g) < 0.3
    y = torch.where(other, torch.randint(3, (150,), generator=g), d.y)
    module = Learner(mlp(48, 128, 128, 3), supervised(F.cross_entropy), optim("Adam", 1e-3), "ce")
    val = loader(x_test, d.y_test, size=200, shuffle=False)
    score = lambda m: -F.cross_entropy(predict(m, x_test), d.y_test).item()  # noqa: E731
    stops = [EarlyStopping("val_ce", patience=5)] if watched else []
    return Training(module, loader(x, y, size=25), score, val, {"max_epochs": 70, "callbacks": stops})


# --- units ------------------------------------------------------------------------------------------------------------


@sick("q-filters-above-a-bar", "segmentation", "dead-activations", "bad-initialization", twin=lambda s: bar(s, 0.0))
def bar(seed: int, height: float = 9.0) -> Training:
    d = spots(seed)
    net = spot_net()
    for layer in (net[0], net[3]):
        nn.init.constant_(layer.bias, -height)
    module = Learner(net, supervised(F.binary_cross_entropy_with_logits), optim("Adam", 3e-3), "bce")
    return Training(module, loader(d.x, d.y, size=20), overlap(d.x_test, d.y_test), None, {"max_epochs": 8})


@sick("q-loudness-below-full-scale", "mlp", "dead-activations", "unscaled-inputs", twin=lambda s: full_scale(s, 0.0))
def full_scale(seed: int, floor: float = 60.0) -> Training:
    """Loudness in decibel under full scale, all negative, into layers that began with positive weights."""
    d = harvest(seed)
    x, x_test = 4 * d.x - floor, 4 * d.x_test - floor
    net = mlp(6, 32, 32, 1)
    with torch.no_grad():
        net[0].weight.abs_().div_(4)
    module = Learner(net, supervised(F.mse_loss), optim("SGD", 0.02, momentum=0.9), "mse")
    return Training(module, loader(x, d.y), explains(x_test, d.y_test), None, {"max_epochs": 10})


class Pointed(nn.Module):
    """Attends to one word of a basket; how sharply is set by a temperature."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.table = nn.Embedding(31, 16)
        self.query = nn.Parameter(torch.randn(16))
        self.gate = nn.Sequential(nn.Linear(16, 16), nn.Tanh())
        self.head = nn.Linear(16, 3)
        self.temperature = temperature

    def forward(self, ids: Tensor) -> Tensor:
        h = self.gate[1](self.gate[0](self.table(ids)) / self.temperature)
        weight = (self.table(ids) @ self.query / (4 * self.temperature)).softmax(-1)
        return self.head((weight[..., None] * h).sum(1))


@sick("q-sharp-eye-on-a-basket", "attention", "saturated-activations", twin=lambda s: sharp_eye(s, 1.0))
def sharp_eye(seed: int, temperature: float = 1e-3) -> Training:
    d = baskets(seed)
    module = Learner(Pointed(temperature), supervised(F.cross_entropy), optim("Adam", 5e-3), "ce")
    return Training(module, loader(d.x, d.y, size=45), hits(d.x_test, d.y_test), None, {"max_epochs": 10})


@sick(
    "q-autoencoder-of-wide-sigmoids",
    "autoencoder",
    "saturated-activations",
    "bad-initialization",
    twin=lambda s: wide_sigmoids(s, 0.4),
)
def wide_sigmoids(seed: int, spread: float = 12.0) -> Training:
    g = generator(seed, 125)
    z = torch.randn(1000, 4, generator=g)
    x = torch.tanh(z @ torch.randn(4, 20, generator=g)) + 0.05 * torch.randn(1000, 20, generator=g)
    net = mlp(20, 24, 8, 24, 20, act=nn.Sigmoid)
    for layer in net[::2]:
        nn.init.normal_(layer.weight, std=spread / layer.in_features**0.5 * 2)
    with torch.no_grad():
        net[-1].weight.mul_(0.4 / spread)
    module = Learner(net, lambda n, b: F.mse_loss(n(b[0]), b[0]), optim("Adam", 4e-3), "rebuild")
    return Training(module, loader(x[:700], size=28), explains(x[700:], x[700:]), None, {"max_epochs": 16})


# --- depth ------------------------------------------------------------------------------------------------------------


class Centred(nn.Module):
    """A sigmoid about nought."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x) - 0.5


@sick("q-ten-rounds-of-messages", "graph", "vanishing-gradients", twin=lambda s: ten_rounds(s, True))
def ten_rounds(seed: int, skip: bool = False) -> Training:
    d = networks(seed)
    net = GraphNet(16, 10, Centred, skip)
    module = Learner(net, supervised(F.mse_loss), optim("SGD", 0.01, momentum=0.9), "mse")
    return Training(module, loader(d.x, d.y), explains(d.x_test, d.y_test), None, {"max_epochs": 15})


class Deep(nn.Module):
    """Every point through fourteen tanh layers, then their mean."""

    def __init__(self, skip: bool) -> None:
        super().__init__()
        self.start, self.head = nn.Linear(2, 24), nn.Linear(24, 3)
        self.layers = nn.ModuleList(nn.Linear(24, 24) for _ in range(14))
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        h = self.start(x)
        for layer in self.layers:
            h = h + torch.tanh(layer(h)) if self.skip else torch.tanh(layer(h))
        return self.head(h.mean(1))


@sick("q-points-through-many-layers", "point set", "vanishing-gradients", twin=lambda s: many_layers(s, True))
def many_layers(seed: int, skip: bool = False) -> Training:
    d = clouds(seed)
    module = Learner(Deep(skip), supervised(F.cross_entropy), optim("SGD", 0.01, momentum=0.9), "train/xent")
    return Training(module, Rows(d, 35), hits(d.x_test, d.y_test), None, {"max_epochs": 12})


# --- samples that see each other --------------------------------------------------------------------------------------


class Biggest(nn.Module):
    """A set by the largest value of every feature."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.each, self.head = mlp(2, 32, 32), nn.Linear(32, 3)
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        h = self.each(x)
        top = h.amax(self.axis, keepdim=True)
        return self.head((top - 0 * h).mean(1) + 0.02 * h.mean(1))


@sick("q-largest-of-each-feature", "point set", "batch-mixing", twin=lambda s: largest(s, 1))
def largest(seed: int, axis: int = 0) -> Training:
    d = clouds(seed)
    module = Learner(Biggest(axis), supervised(F.cross_entropy), optim("Adam", 3e-3), "ce")
    score = hits(d.x_test, d.y_test)
    return Training(module, loader(d.x, d.y, size=28), score, None, {"max_epochs": 8, "log_every_n_steps": 5})


class Contracted(nn.Module):
    """Messages written as one contraction."""

    def __init__(self, rule: str) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 32), nn.Linear(64, 32)
        self.head = mlp(32, 32, 1)
        self.rule = rule

    def forward(self, both: Tensor) -> Tensor:
        a, h = both[..., :-4], torch.relu(self.first(both[..., -4:]))
        near = torch.einsum(self.rule, a, h)
        return self.head(torch.relu(self.second(torch.cat([h, near], -1))).sum(1) / 3)


@sick("q-messages-in-one-line", "graph", "batch-mixing", twin=lambda s: one_line(s, "bij,bjf->bif"))
def one_line(seed: int, rule: str = "bij,cjf->bif") -> Training:
    d = networks(seed)
    module = Learner(Contracted(rule), supervised(F.mse_loss), optim("Adam", 3e-3), "mse")
    return Training(module, loader(d.x, d.y), explains(d.x_test, d.y_test), None, {"max_epochs": 14})


# --- modes ------------------------------------------------------------------------------------------------------------


class Thawed(LightningModule):
    """A body that is kept fixed for the first epoch and then trained with the head."""

    def __init__(self, wake: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(12, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU())
        self.head = nn.Linear(48, 6)
        self.wake = wake

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def on_fit_start(self) -> None:
        self.body.eval()
        self.body.requires_grad_(False)

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            self.body.requires_grad_(True)
            if self.wake:
                self.body.train()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.binary_cross_entropy_with_logits(self(x), y)
        self.log("bce", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


@sick("q-body-thawed-after-an-epoch", "multi-label", "mode-mismatch", twin=lambda s: thawed(s, True))
def thawed(seed: int, wake: bool = False) -> Training:
    d = tags(seed)
    x, x_test = 30 * d.x + 60, 30 * d.x_test + 60
    score = lambda m: ((predict(m, x_test) > 0).float() == d.y_test).float().mean().item()  # noqa: E731
    return Training(Thawed(wake), loader(x, d.y), score, None, {"max_epochs": 10})


class Noisy(nn.Module):
    """Words with whole features dropped."""

    def __init__(self, always: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(31, 24, padding_idx=0)
        self.head = mlp(24, 24, 3)
        self.always = always

    def forward(self, ids: Tensor) -> Tensor:
        h = self.table(ids).mean(1)
        h = F.alpha_dropout(h, 0.6, training=self.always or self.training)
        return self.head(h)


@sick("q-features-left-out", "embedding bag", "mode-mismatch", twin=lambda s: left_out(s, False))
def left_out(seed: int, always: bool = True) -> Training:
    d = baskets(seed)
    module = Learner(Noisy(always), supervised(F.cross_entropy), optim("Adam", 1e-2), "ce")
    return Training(module, Rows(d, 30), hits(d.x_test, d.y_test), None, {"max_epochs": 8})


# --- first weights ----------------------------------------------------------------------------------------------------


@sick(
    "q-large-word-vectors",
    "transformer",
    "bad-initialization",
    "saturated-activations",
    twin=lambda s: large_vectors(s, 1),
)
def large_vectors(seed: int, spread: float = 40.0) -> Training:
    d = riddles(seed)
    net = Words(10, 10, 8)
    nn.init.normal_(net.table.weight, std=spread)
    module = Learner(net, supervised(per_place), optim("Adam", 3e-3), "xent")
    return Training(module, loader(d.x, d.y), hits(d.x_test, d.y_test), None, {"max_epochs": 10})


@sick("q-every-gate-the-same", "gru", "bad-initialization", twin=lambda s: same_gates(s, False))
def same_gates(seed: int, same: bool = True) -> Training:
    d = turbines(seed)
    net = Recur(nn.GRU, 3, 24, 1)
    if same:
        for p in net.parameters():
            nn.init.constant_(p, 0.05)
    module = Learner(net, supervised(F.mse_loss), optim("Adam", 5e-3), "mse")
    return Training(module, loader(d.x, d.y), explains(d.x_test, d.y_test), None, {"max_epochs": 10})


# --- penalties --------------------------------------------------------------------------------------------------------


@sick("q-sets-with-decay", "point set", "excess-regularization", twin=lambda s: with_decay(s, 0.01))
def with_decay(seed: int, decay: float = 25.0) -> Training:
    d = clouds(seed)
    module = Learner(DeepSet(act=nn.SiLU), supervised(F.cross_entropy), optim("AdamW", 4e-3, weight_decay=decay), "ce")
    return Training(module, Rows(d, 35), hits(d.x_test, d.y_test), None, {"max_epochs": 10})


class Penalised(Learner):
    """Adds the squares of all weights to the loss."""

    weight = 0.5

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.objective(self.net, batch)
        penalty = sum(p.square().sum() for p in self.net.parameters())
        self.log_dict({"nll": loss, "penalty": penalty})
        return loss + self.weight * penalty


@sick("q-folded-curve-small-weights", "mixture density", "excess-regularization", twin=lambda s: small_weights(s, 1e-5))
def small_weights(seed: int, weight: float = 0.3) -> Training:
    d = branches(seed)
    module = Penalised(Mixture(), supervised(mixture_nll), optim("Adam", 8e-3), "nll")
    module.weight = weight
    score = lambda m: -mixture_nll(predict(m, d.x_test), d.y_test).item()  # noqa: E731
    return Training(module, loader(d.x, d.y), score, None, {"max_epochs": 12})


# --- what the optimizer holds -----------------------------------------------------------------------------------------


class Fresh(LightningModule):
    """Starts every fit from a fresh copy of the net."""

    def __init__(self, late: bool) -> None:
        super().__init__()
        self.template = glyph_net()
        self.net = self.template
        self.late = late

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def setup(self, stage: str) -> None:
        if not self.late:
            self.net = copy.deepcopy(self.template)

    def on_train_start(self) -> None:
        if self.late:
            self.net = copy.deepcopy(self.template)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.net.parameters(), lr=3e-3)


@sick("q-fresh-net-for-each-fit", "cnn", "parameters-not-optimized", twin=lambda s: fresh_net(s, False))
def fresh_net(seed: int, late: bool = True) -> Training:
    d = glyphs(seed)
    return Training(Fresh(late), loader(d.x, d.y), hits(d.x_test, d.y_test), None, {"max_epochs": 9})


class Machine(LightningModule):
    """A factorization machine over three ids; rates by kind of parameter."""

    def __init__(self, all_groups: bool) -> None:
        super().__init__()
        self.linear = nn.Embedding(110, 1)
        self.factors = nn.Embedding(110, 6)
        self.bias = nn.Parameter(torch.zeros(1))
        self.all_groups = all_groups
        nn.init.normal_(self.factors.weight, std=0.3)

    def forward(self, pairs: Tensor) -> Tensor:
        ids = pairs + torch.tensor([0, 60])
        v = self.factors(ids)
        return self.bias + self.linear(ids).sum((1, 2)) + 0.5 * (v.sum(1).square() - v.square().sum(1)).sum(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        pairs, y = batch
        loss = F.mse_loss(self(pairs), y)
        self.log("fm_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        groups: list[dict[str, Any]] = [{"params": [self.bias], "lr": 1e-2}, {"params": self.linear.parameters()}]
        if self.all_groups:
            groups.append({"params": self.factors.parameters()})
        return torch.optim.Adam(groups, lr=2e-2)


@sick("q-pairs-of-ids-by-groups", "recommender", "parameters-not-optimized", twin=lambda s: by_groups(s, True))
def by_groups(seed: int, all_groups: bool = False) -> Training:
    d = stars(seed)
    return Training(
        Machine(all_groups), loader(d.x, d.y, size=60), explains(d.x_test, d.y_test), None, {"max_epochs": 9}
    )


class TwoParts(LightningModule):
    """A code of the row and an answer from the code, each with an optimizer of its own."""

    def __init__(self, both: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.code, self.answer = mlp(6, 32, 12), mlp(12, 32, 1)
        self.both = both

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(torch.tanh(self.code(x)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        first, second = self.optimizers()
        if self.both:
            first.zero_grad()
        second.zero_grad()
        loss = F.mse_loss(self(x), y)
        self.manual_backward(loss)
        first.step()
        second.step()
        self.log("mse", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(p.parameters(), lr=0.1, momentum=0.9) for p in (self.code, self.answer)]


@sick("q-code-and-answer", "regression", "gradients-not-cleared", twin=lambda s: code_and_answer(s, True))
def code_and_answer(seed: int, both: bool = False) -> Training:
    d = harvest(seed)
    return Training(TwoParts(both), loader(d.x, d.y), explains(d.x_test, d.y_test), None, {"max_epochs": 10})


class SelfPaced(LightningModule):
    """Own loop: clears once in a while, as if it accumulated, but steps each time."""

    def __init__(self, every: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.every = every
        self.net = Recur(nn.LSTM, 3, 24, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        optimizer = self.optimizers()
        if batch_idx % self.every == 0:
            optimizer.zero_grad()
        loss = F.smooth_l1_loss(self(x), y)
        self.manual_backward(loss)
        optimizer.step()
        self.log("loss", loss, prog_bar=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.15, momentum=0.9)


@sick(
    "q-clears-now-and-then",
    "lstm",
    "gradients-not-cleared",
    "learning-rate-too-high",
    twin=lambda s: now_and_then(s, 1),
)
def now_and_then(seed: int, every: int = 1000) -> Training:
    d = turbines(seed)
    return Training(SelfPaced(every), loader(d.x, d.y, size=28), explains(d.x_test, d.y_test), None, {"max_epochs": 12})


# --- batch statistics -------------------------------------------------------------------------------------------------


@sick("q-two-rows-a-step", "mlp", "batchnorm-small-batch", twin=lambda s: two_rows(s, nn.LayerNorm))
def two_rows(seed: int, norm: Any = nn.BatchNorm1d) -> Training:
    d = harvest(seed)
    net = nn.Sequential(nn.Linear(6, 32), norm(32), nn.ReLU(), nn.Linear(32, 32), norm(32), nn.ReLU(), nn.Linear(32, 1))
    module = Learner(net, supervised(F.mse_loss), optim("Adam", 2e-3), "mse")
    return Training(module, loader(d.x, d.y, size=2), explains(d.x_test, d.y_test), None, {"max_steps": 450})


class Eye(nn.Module):
    """Points one by one with a normalised code of the whole set."""

    def __init__(self) -> None:
        super().__init__()
        self.each = mlp(2, 32, 32)
        self.whole = nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32))
        self.norm, self.head = nn.BatchNorm1d(32), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.whole(self.each(x).amax(1)))))


@sick("q-sets-two-at-a-time", "point set", "batchnorm-small-batch", twin=lambda s: sets_two(s, 16, 1))
def sets_two(seed: int, size: int = 2, steps: int = 8) -> Training:
    d = clouds(seed)
    module = Learner(Eye(), supervised(F.cross_entropy), optim("Adam", 3e-3), "ce")
    settings = {"max_epochs": 6, "accumulate_grad_batches": steps}
    return Training(module, loader(d.x, d.y, size=size), hits(d.x_test, d.y_test), None, settings)


@sick(
    "q-one-long-sound-a-step",
    "audio",
    "batchnorm-small-batch",
    twin=lambda s: one_sound(s, lambda c: nn.GroupNorm(1, c)),
)
def one_sound(seed: int, norm: Any = nn.BatchNorm1d) -> Training:
    d = clips(seed)
    net = nn.Sequential(nn.Conv1d(1, 12, 24, stride=12), norm(12), nn.ReLU(), nn.Conv1d(12, 16, 2), norm(16), nn.ReLU())
    net.extend([nn.Flatten(), nn.Linear(32, 3)])
    module = Learner(net, supervised(F.cross_entropy), optim("Adam", 3e-3), "xent")
    return Training(module, loader(d.x, d.y, size=1), hits(d.x_test, d.y_test), None, {"max_steps": 500})


@sick("q-statistics-as-elsewhere", "cnn", "batchnorm-stale-statistics", twin=lambda s: elsewhere(s, 0.1))
def elsewhere(seed: int, momentum: float = 0.0003) -> Training:
    d = glyphs(seed)
    d = Split(3 * d.x + 2, d.y, 3 * d.x_test + 2, d.y_test)
    net = glyph_net()
    net.insert(1, nn.BatchNorm2d(8, momentum=momentum))
    net.insert(5, nn.BatchNorm2d(16, momentum=momentum))
    module = Learner(net, supervised(F.cross_entropy), optim("Adam", 3e-3), "ce")
    return Training(module, Rows(d, 28), hits(d.x_test, d.y_test), None, {"max_epochs": 9})


class Unsure(LightningModule):
    """After every epoch asks itself, with dropout on, how sure it is about blank pictures."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.net = spot_net(8, lambda c: nn.Sequential(nn.BatchNorm2d(c, momentum=0.2), nn.Dropout(0.1)))
        self.whole = whole

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.binary_cross_entropy_with_logits(self(x), y)
        self.log("bce", loss)
        return loss

    def on_train_epoch_end(self) -> None:
        self.net.eval()
        for part in self.net.modules():
            if self.whole or isinstance(part, nn.Dropout):
                part.training = True
        with torch.no_grad():
            answers = torch.stack([torch.sigmoid(self.net(torch.full((8, 1, 12, 12), -4.0))) for _ in range(20)])
        self.log("unsure", answers.std(0).mean())
        self.net.train()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=4e-3)


@sick("q-asks-how-sure-it-is", "segmentation", "batchnorm-stale-statistics", twin=lambda s: how_sure(s, False))
def how_sure(seed: int, whole: bool = True) -> Training:
    d = spots(seed)
    return Training(Unsure(whole), loader(d.x, d.y, size=20), overlap(d.x_test, d.y_test), None, {"max_epochs": 12})


class Momentum(Learner):
    """Lowers the momentum of its statistics as it goes."""

    every = 1

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        value = 0.5 * 0.5 ** (self.global_step // self.every)
        for part in self.net.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.momentum = max(value, 1e-5)


@sick("q-points-with-falling-momentum", "point set", "batchnorm-stale-statistics", twin=lambda s: falling(s, 100))
def falling(seed: int, every: int = 1) -> Training:
    d = clouds(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 48))
    net.extend([nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 3)])
    order = d.x.norm(dim=-1).argsort(1)[..., None].expand(-1, -1, 2), d.x_test.norm(dim=-1).argsort(1)[..., None]
    x, x_test = d.x.gather(1, order[0]), d.x_test.gather(1, order[1].expand(-1, -1, 2))
    module = Momentum(net, supervised(F.cross_entropy), optim("SGD", 0.1, momentum=0.9), "ce")
    module.every = every
    return Training(module, loader(x, d.y, size=28), hits(x_test, d.y_test), None, {"max_epochs": 12})
