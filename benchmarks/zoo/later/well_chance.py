"""Trainings with chance, adversaries or sums inside, which keep the loss high, level or huge."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.case import Training, well
from benchmarks.zoo.data import generator, predict
from benchmarks.zoo.later._well_common import explained, hit_rate, loader, stack


class Fan(LightningModule):
    """Nine quantiles that cannot cross: a first one and softplus gaps."""

    def __init__(self) -> None:
        super().__init__()
        self.net = stack(4, 32, 9, act=nn.SiLU)
        self.register_buffer("levels", torch.arange(0.1, 0.95, 0.1))

    def forward(self, x: Tensor) -> Tensor:
        first, gaps = self.net(x).split([1, 8], 1)
        return torch.cat([first, first + F.softplus(gaps).cumsum(1)], 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        miss = y[:, None] - self(x)
        loss = torch.maximum(self.levels * miss, (self.levels - 1) * miss).mean()
        self.log("pinball", loss)
        return loss

    def configure_optimizers(self) -> Any:
        opt = torch.optim.AdamW(self.parameters(), lr=2e-2)
        return [opt], [torch.optim.lr_scheduler.CosineAnnealingLR(opt, 10)]


@well("v-nine-quantiles-in-order", "quantiles", "R2 of the true median; the loss stops at the pinball of the noise")
def fan(seed: int) -> Training:
    g = generator(seed, 701)
    x = torch.randn(4000, 4, generator=g)
    middle = torch.sin(x[:, 0]) + 0.5 * x[:, 1]
    y = middle + (0.3 + 0.4 * x[:, 2].sigmoid()) * torch.randn(4000, generator=g)

    def score(m: Any) -> float:
        said = predict(m, x[3000:])[:, 4]
        return 1 - ((said - middle[3000:]) ** 2).mean().item() / middle[3000:].var().item()

    return Training(Fan(), loader(x[:3000], y[:3000], size=100), score, trainer={"max_epochs": 10})


class Flip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return -ctx.weight * grad, None


class TwoHospitals(LightningModule):
    """Features that tell the illness but not the hospital; the hospital's loss stays near a coin's by design."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 16), nn.ReLU())
        self.illness, self.place = nn.Linear(16, 3), stack(16, 32, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.illness(self.features(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y, place = batch
        h = self.features(x)
        own = place == 0
        illness = F.cross_entropy(self.illness(h[own]), y[own])
        where = F.cross_entropy(self.place(Flip.apply(h, 0.3)), place)
        self.log_dict({"illness": illness, "place": where})
        return illness + where

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


@well("v-one-hospital-for-another", "adversarial", "accuracy in the hospital without labels, 0.85 and more")
def hospitals(seed: int) -> Training:
    g = generator(seed, 702)
    y, place = torch.randint(3, (5000,), generator=g), torch.randint(2, (5000,), generator=g)
    x = torch.randn(5000, 12, generator=g)
    x[:, :6] += 1.4 * torch.cat([F.one_hot(y, 3), F.one_hot(y, 3)], 1)
    x[:, 8:] += 0.8 * place[:, None]
    there = place[4000:] == 1
    x_new, y_new = x[4000:][there], y[4000:][there]
    train = loader(x[:4000], y[:4000], place[:4000], size=100)
    return Training(TwoHospitals(), train, hit_rate(x_new, y_new), trainer={"max_epochs": 8})


class Spread(nn.Module):
    """A linear layer whose weights are drawn anew for each batch from learnt normals."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.randn(b, a) / a**0.5)
        self.raw = nn.Parameter(torch.full((b, a), -4.0))
        self.bias = nn.Parameter(torch.zeros(b))

    def forward(self, x: Tensor) -> Tensor:
        middle = F.linear(x, self.mean, self.bias)
        if not self.training:
            return middle
        std = F.softplus(self.raw)
        return middle + F.linear(x**2, std**2).clamp_min(1e-12).sqrt() * torch.randn_like(middle)

    def divergence(self) -> Tensor:
        var = F.softplus(self.raw) ** 2
        return 0.5 * (var + self.mean**2 - 1 - var.log()).sum()


class Bayes(LightningModule):
    def __init__(self, rows: int) -> None:
        super().__init__()
        self.one, self.two, self.rows = Spread(6, 32), Spread(32, 1), rows

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.tanh(self.one(x)))[:, 0]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        fit = 2.0 * (self(x) - y).square().mean()
        cost = (self.one.divergence() + self.two.divergence()) / self.rows
        self.log_dict({"fit": fit, "cost": cost})
        return fit + cost

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_mse", F.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        opt = torch.optim.Adam(self.parameters(), lr=1.5e-2)
        return {"optimizer": opt, "lr_scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(opt, 14)}


@well("v-weights-with-a-spread", "bayes", "R2 against 0.75 at best; the cost of the weights is a good part of the loss")
def bayes(seed: int) -> Training:
    g = generator(seed, 703)
    x = torch.randn(4000, 6, generator=g)
    clean = torch.tanh(x[:, 0] + 0.5 * x[:, 1]) + 0.5 * x[:, 2]
    y = 0.866 * clean / clean.std() + 0.5 * torch.randn(4000, generator=g)
    val = loader(x[3000:], y[3000:], size=500, shuffle=False)
    train = loader(x[:3000], y[:3000], size=100)
    return Training(Bayes(3000), train, explained(x[3000:], y[3000:]), val, {"max_epochs": 14})


class Pairwise(LightningModule):
    """Denoises pictures with noisy pictures as targets: four fifths of the loss is noise that stays."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(24, 24, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(24, 1, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (clean,) = batch
        a, b = (clean + 0.3 * torch.randn_like(clean) for _ in range(2))
        loss = F.mse_loss(self(a), b)
        self.log("mse", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@well("v-noise-for-a-target", "denoiser", "minus the error of clean pictures over that of the noisy ones")
def noise(seed: int) -> Training:
    g = generator(seed, 704)
    x = torch.tensor(load_digits().data, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    x = x[torch.randperm(len(x), generator=g)]
    noisy = x[1400:] + 0.3 * torch.randn(len(x) - 1400, 1, 8, 8, generator=g)
    score = lambda m: -F.mse_loss(predict(m, noisy), x[1400:]).item() / 0.09  # noqa: E731
    return Training(Pairwise(), loader(x[:1400], size=64), score, trainer={"max_epochs": 14})


class SumOfSquares(LightningModule):
    """The loss is a sum over pixels and rows: hundreds, with gradients of hundreds, and Adam does not mind."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.widen = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)), stack(10, 64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.widen(self.squeeze(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[0], reduction="sum")
        self.log("sum_of_squares", loss)
        return loss

    def configure_optimizers(self) -> Any:
        opt = torch.optim.Adam(self.parameters(), lr=4e-3)
        return [opt], [{"scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(opt, 500), "interval": "step"}]


@well(
    "v-sum-over-all-pixels",
    "autoencoder",
    "R2 of new digits through ten numbers; principal parts get 0.86 about the mean picture",
)
def all_pixels(seed: int) -> Training:
    x = torch.tensor(load_digits().data, dtype=torch.float32) / 16
    x = x[torch.randperm(len(x), generator=generator(seed, 705))]
    return Training(
        SumOfSquares(), loader(x[:1400], size=70), explained(x[1400:], x[1400:]), trainer={"max_steps": 500}
    )


class Hidden(LightningModule):
    """A hidden Markov chain by the forward recursion; its likelihood is summed over sixty places."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.zeros(3))
        self.move = nn.Parameter(2 * torch.eye(3))
        self.mean = nn.Parameter(torch.tensor([-0.5, 0.0, 0.5]))
        self.log_std = nn.Parameter(torch.zeros(3))

    def log_prob(self, x: Tensor) -> Tensor:
        each = torch.distributions.Normal(self.mean, self.log_std.exp()).log_prob(x[..., None])
        move = self.move.log_softmax(1)
        a = self.start.log_softmax(0) + each[:, 0]
        for t in range(1, x.shape[1]):
            a = torch.logsumexp(a[:, :, None] + move, 1) + each[:, t]
        return torch.logsumexp(a, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return -self.log_prob(batch[0]).mean()

    def configure_optimizers(self) -> Any:
        opt = torch.optim.Adam(self.parameters(), lr=5e-2)
        return [opt], [torch.optim.lr_scheduler.ExponentialLR(opt, 0.8)]


@well("v-three-hidden-states", "hmm", "minus the distance of the means from the true ones; 0.05 and less")
def hidden(seed: int) -> Training:
    g = generator(seed, 706)
    means, state = torch.tensor([-2.0, 0.3, 2.0]), torch.randint(3, (800,), generator=g)
    rows = []
    for _ in range(24):
        go = torch.rand(800, generator=g) < 0.2
        state = torch.where(go, torch.randint(3, (800,), generator=g), state)
        rows.append(means[state] + 0.6 * torch.randn(800, generator=g))
    score = lambda m: -(m.mean.detach().sort().values - means).abs().mean().item()  # noqa: E731
    return Training(Hidden(), loader(torch.stack(rows, 1), size=50), score, trainer={"max_epochs": 12})


class Gates(LightningModule):
    """Gates drawn by chance choose columns; a price on open gates closes most of them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.full((30,), 1.0))
        self.net = stack(30, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        z = self.gate
        if self.training:
            u = torch.rand(len(x), 30).clamp(1e-4, 1 - 1e-4)
            z = (z + u.log() - (1 - u).log()) / 0.5
            return self.net(x * z.sigmoid())[:, 0]
        return self.net(x * (z > 0))[:, 0]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        fit = F.mse_loss(self(x), y)
        open_gates = self.gate.sigmoid().sum()
        self.log_dict({"fit": fit, "open": open_gates})
        return fit + 0.01 * open_gates

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam([{"params": [self.gate], "lr": 3e-2}, {"params": self.net.parameters(), "lr": 4e-3}])


@well("v-gates-by-chance", "selection", "R2 against 0.8 at best; four of thirty columns matter")
def gates(seed: int) -> Training:
    g = generator(seed, 707)
    x = torch.randn(4000, 30, generator=g)
    clean = x[:, 0] - x[:, 1] + torch.sin(2 * x[:, 2]) + 0.7 * x[:, 3]
    y = 0.894 * clean / clean.std() + 0.447 * torch.randn(4000, generator=g)
    return Training(
        Gates(), loader(x[:3000], y[:3000], size=80), explained(x[3000:], y[3000:]), trainer={"max_epochs": 16}
    )
