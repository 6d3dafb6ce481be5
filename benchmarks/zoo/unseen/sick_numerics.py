"""Numbers that leave the range of floats, or leave it on the way back."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import Split, predict
from benchmarks.zoo.unseen._common import (
    Fit,
    Recurrent,
    adam,
    batches,
    conv_net,
    dense,
    dicts,
    friedman,
    held_out,
    series,
    sgd,
    shapes,
)

# --- exploding --------------------------------------------------------------------------------------------------------


@sick("u-rnn-grows-each-step", "rnn", "exploding-gradients", "bad-initialization", twin=lambda s: grows(s, None))
def grows(seed: int, gain: float | None = 2.2) -> Training:
    d = series(seed)
    net = Recurrent(nn.RNN, 1, 24, 1, nonlinearity="relu")
    if gain is not None:
        nn.init.orthogonal_(net.rnn.weight_hh_l0, gain)  # type: ignore[arg-type]
    module = Fit(net, F.mse_loss, sgd(0.02, momentum=0.5))
    return Training(module, batches(d.x, d.y), d.r2, held_out(d.x_test, d.y_test), {"max_epochs": 12})


@sick(
    "u-deep-mlp-gain-three",
    "mlp",
    "exploding-gradients",
    "bad-initialization",
    twin=lambda s: gain_three(s, 2**0.5),
)
def gain_three(seed: int, gain: float = 3.5) -> Training:
    d = data.digits(seed)
    net = dense(64, *[48] * 8, 10)
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=gain / layer.in_features**0.5)
    return Training(
        Fit(net, F.cross_entropy, sgd(0.01, momentum=0.9)), d.train(32), d.accuracy, None, {"max_epochs": 6}
    )


# --- operations that break --------------------------------------------------------------------------------------------


class OwnEntropy(nn.Module):
    """Cross-entropy from probabilities, by the book: log of a softmax without its maximum taken off."""

    def __init__(self, safe: bool) -> None:
        super().__init__()
        self.safe = safe

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        if self.safe:
            z = z - z.max(1, keepdim=True).values
        e = z.exp()
        p = e[torch.arange(len(y)), y] / e.sum(1)
        return -(p + 1e-9 * self.safe).log().mean()


@sick(
    "u-own-softmax-overflows",
    "cnn",
    "unstable-operation",
    "nonfinite-loss",
    twin=lambda s: own_softmax(s, True),
)
def own_softmax(seed: int, safe: bool = False) -> Training:
    d = shapes(seed)
    scaled = nn.Sequential(conv_net(), _Times(500.0))
    module = Fit(scaled, OwnEntropy(safe), adam(5e-4))
    return Training(module, batches(d.x, d.y), d.accuracy, held_out(d.x_test, d.y_test), {"max_epochs": 14})


class _Times(nn.Module):
    """A fixed inverse temperature."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


class Siamese(LightningModule):
    """Pairs of pictures: near if of one kind, apart if not. Some pairs are a picture and itself."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.net, self.eps = dense(64, 48, 8), eps

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        gap = self(batch["a"]) - self(batch["b"])
        distance = torch.sqrt(gap.square().sum(1) + self.eps)
        same = batch["same"]
        loss = (same * distance + (1 - same) * F.relu(2 - distance)).mean()
        self.log("contrastive", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def pairs(seed: int) -> tuple[Split, dict[str, Tensor]]:
    d = data.digits(seed)
    g = data.generator(seed, 61)
    i, j = torch.randint(len(d.x), (2, 1500), generator=g)
    by_kind = [torch.where(d.y == k)[0] for k in range(10)]
    half = torch.arange(0, 1500, 2)
    j[half] = torch.stack([by_kind[d.y[a]][torch.randint(len(by_kind[d.y[a]]), (), generator=g)] for a in i[half]])
    j[::97] = i[::97]  # a picture beside itself
    return d, {"a": d.x[i], "b": d.x[j], "same": (d.y[i] == d.y[j]).float()}


@sick(
    "u-distance-of-a-picture-to-itself",
    "siamese",
    "unstable-operation",
    "nonfinite-gradients",
    twin=lambda s: siamese(s, 1e-6),
)
def siamese(seed: int, eps: float = 0.0) -> Training:
    d, rows = pairs(seed)

    def nearest(m: Any) -> float:
        distance = torch.cdist(predict(m, d.x_test), predict(m, d.x))
        return (d.y[distance.nan_to_num(1e9).argmin(1)] == d.y_test).float().mean().item()

    return Training(Siamese(eps), dicts(**rows), nearest, trainer={"max_epochs": 8})


class RowNorm(nn.Module):
    """Each picture to mean 0 and deviation 1, also those that are blank."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + self.eps)


@sick(
    "u-blank-picture-over-its-deviation", "mlp", "unstable-operation", "nonfinite-loss", twin=lambda s: blank(s, 1e-4)
)
def blank(seed: int, eps: float = 0.0) -> Training:
    d = data.digits(seed)
    x = d.x.clone()
    x[torch.randperm(len(x), generator=data.generator(seed, 62))[:5]] = 0.0
    module = Fit(nn.Sequential(RowNorm(eps), dense(64, 48, 10)), F.cross_entropy, adam(2e-3))
    return Training(module, batches(x, d.y), d.accuracy, d.val(), {"max_epochs": 8})


class Rates(LightningModule):
    """Counts from a Poisson law, its rate the bare exponential of a linear score of inputs with heavy tails."""

    def __init__(self, cap: float) -> None:
        super().__init__()
        self.net, self.cap = nn.Linear(6, 1), cap
        nn.init.constant_(self.net.weight, 0.4)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).clamp(max=self.cap).exp()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        rate = self(x)
        loss = (rate - y * torch.log(rate)).mean()
        self.log("nll", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


@sick(
    "u-exp-of-a-long-tail",
    "glm",
    "unstable-operation",
    "corrupt-samples",
    "nonfinite-loss",
    twin=lambda s: long_tail(s, 4.0),
)
def long_tail(seed: int, cap: float = float("inf")) -> Training:
    g = data.generator(seed, 63)
    x = torch.randn(1600, 6, generator=g)
    y = torch.poisson((x @ torch.tensor([[0.5], [0.3], [0.0], [-0.4], [0.2], [0.0]]) + 0.5).exp(), generator=g)
    x[:1000:90, 0] = 400.0
    d = Split(x[:1000], y[:1000], x[1000:], y[1000:])
    return Training(Rates(cap), batches(d.x, d.y), d.r2, trainer={"max_epochs": 12})


class Angles(LightningModule):
    """Regresses the angle between prediction and direction; acos has no slope at 1."""

    def __init__(self, margin: float) -> None:
        super().__init__()
        self.net, self.margin = dense(3, 24, 3), margin
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x + 0.5 * self.net(x), dim=1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        cosine = (self(x) * y).sum(1)
        cosine = cosine.clamp(-1 + self.margin, 1 - self.margin)
        loss = torch.acos(cosine).mean()
        self.log("angle", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@sick(
    "u-acos-at-one", "mlp", "unstable-operation", "nonfinite-gradients", "nonfinite-loss", twin=lambda s: acos(s, 1e-4)
)
def acos(seed: int, margin: float = 0.0) -> Training:
    x = F.normalize(torch.randn(1400, 3, generator=data.generator(seed, 64)), dim=1)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=data.generator(0, 65))).Q
    y = F.normalize(x + 0.4 * torch.tanh(2 * x @ turn), dim=1)
    x[:800:7] = y[:800:7] = torch.tensor([1.0, 0.0, 0.0])  # some directions do not turn
    score = lambda m: (predict(m, x[800:]) * y[800:]).sum(1).mean().item()  # noqa: E731
    return Training(Angles(margin), batches(x[:800], y[:800]), score, trainer={"max_epochs": 20})


@sick("u-log-of-a-relu", "mlp", "nonfinite-loss", "unstable-operation", twin=lambda s: log_relu(s, 1.0))
def log_relu(seed: int, offset: float = 0.0) -> Training:
    d = friedman(seed).map_targets(lambda y: (3 + y).clamp(min=0.1))
    loss = lambda z, y: F.mse_loss(torch.log(torch.relu(z) + offset), torch.log(y + offset))  # noqa: E731
    module = Fit(dense(10, 48, 1), loss, adam(3e-3))
    return Training(module, batches(d.x, d.y), d.r2, trainer={"max_epochs": 10})
