"""Regressions that end on their noise floor, or at nearly no loss, and look flat for most of the way."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, well
from benchmarks.zoo.well.common import Regressor, mlp


@well("half-noise", "regression", "half of the targets' variance is noise: R2 0.5 is all there is")
def half_noise(seed: int) -> Training:
    d = data.regression(seed, r2=0.5, n=6000)
    return Training(Regressor(mlp(8, 32, 1), lr=3e-3), d.train(64), d.r2, d.val(), {"max_epochs": 12})


@well("mostly-noise", "regression", "four fifths noise: R2 0.2 after two epochs, then flat for the rest of the run")
def mostly_noise(seed: int) -> Training:
    d = data.regression(seed, r2=0.2, n=12000)
    model = Regressor(mlp(8, 16, 1), optimizers=lambda m: torch.optim.AdamW(m.parameters(), lr=4e-3, weight_decay=0.01))
    return Training(model, d.train(128), d.r2, d.val(), {"max_epochs": 14})


@well("diabetes", "regression", "331 patients, R2 about 0.45 is what the table holds; linear plus a few units")
def diabetes(seed: int) -> Training:
    d = data.table("diabetes", seed).map_targets(lambda y: y[:, None])
    model = Regressor(
        mlp(10, 8, 1, act=nn.Tanh),
        optimizers=lambda m: torch.optim.AdamW(m.parameters(), lr=2e-3, weight_decay=0.1),
    )
    return Training(model, d.train(32), d.r2, d.val(), {"max_epochs": 40})


@well("huber-heavy-tails", "regression", "noise with heavy tails: single batches cost ten times the mean; Huber loss")
def huber_heavy_tails(seed: int) -> Training:
    d = data.regression(seed, r2=0.98, n=3000)
    g = data.generator(seed, 11)
    tails = torch.where(torch.rand(d.y.shape, generator=g) < 0.05, 6.0, 0.1) * torch.randn(d.y.shape, generator=g)
    d = data.Split(d.x, d.y + tails, d.x_test, d.y_test)
    return Training(
        Regressor(mlp(8, 48, 1), lr=3e-3, loss=nn.HuberLoss()), d.train(32), d.r2, d.val(), {"max_epochs": 14}
    )


class GaussianRegressor(LightningModule):
    """Predicts a mean and a log-variance."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(1, 32, 32, 2, act=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[:, :1]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        mean, log_var = self.net(x).chunk(2, dim=1)
        loss = F.gaussian_nll_loss(mean, y, log_var.exp())
        self.log("train_nll", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@well("gaussian-nll", "regression", "the loss crosses zero and ends negative; R2 of the mean about 0.98")
def gaussian_nll(seed: int) -> Training:
    g = data.generator(seed, 12)
    x = 4 * torch.rand(4000, 1, generator=g) - 2
    clean = torch.sin(2 * x)
    y = clean + (0.03 + 0.1 * x.abs()) * torch.randn(4000, 1, generator=g)
    d = data.Split(x[:2000], y[:2000], x[2000:], clean[2000:])
    return Training(GaussianRegressor(), d.train(64), d.r2, None, {"max_epochs": 25})


@well("function-fit", "regression", "one full batch a step, falls over five orders of magnitude to about 1e-5")
def function_fit(seed: int) -> Training:
    x = torch.linspace(-1, 1, 256)[:, None]
    y = torch.sin(5 * x) * torch.exp(-x.square())
    d = data.Split(x, y, x, y)
    model = Regressor(mlp(1, 64, 64, 1, act=nn.Tanh), lr=3e-3)
    return Training(model, d.train(256), d.r2, None, {"max_epochs": 1200})


class PendulumNet(LightningModule):
    """Solves u'' + u = 0, u(0) = 1, u'(0) = 0 on [0, 2] by the residual at random points."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(1, 32, 32, 1, act=nn.Tanh)

    def forward(self, t: Tensor) -> Tensor:
        return self.net(t)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        t = batch[0].requires_grad_()
        u = self(t)
        (du,) = torch.autograd.grad(u.sum(), t, create_graph=True)
        (ddu,) = torch.autograd.grad(du.sum(), t, create_graph=True)
        start = torch.zeros(1, 1, requires_grad=True)
        u0 = self(start)
        (du0,) = torch.autograd.grad(u0.sum(), start, create_graph=True)
        loss = (ddu + u).square().mean() + 10 * ((u0 - 1).square().mean() + du0.square().mean())
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        adam = torch.optim.Adam(self.parameters(), lr=1e-2)
        return [adam], [torch.optim.lr_scheduler.ExponentialLR(adam, gamma=0.98)]


@well(
    "pinn-oscillator", "regression", "residual of a differential equation, second derivatives in the loss; R2 about 1"
)
def pinn_oscillator(seed: int) -> Training:
    t = 2 * torch.rand(384, 1, generator=data.generator(seed, 13))
    grid = torch.linspace(0, 2, 200)[:, None]
    return Training(
        PendulumNet(),
        DataLoader(TensorDataset(t), 64, shuffle=True),
        lambda m: data.r2(data.predict(m, grid), torch.cos(grid)),
        None,
        {"max_epochs": 200},
    )


@well("lbfgs", "regression", "full-batch LBFGS, many closures a step; R2 above 0.9 of 0.95")
def lbfgs(seed: int) -> Training:
    d = data.regression(seed, r2=0.95, n=2000, columns=4)

    def optimizers(m: LightningModule) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(m.parameters(), lr=1.0, max_iter=10, line_search_fn="strong_wolfe")

    return Training(
        Regressor(mlp(4, 16, 1, act=nn.Tanh), optimizers=optimizers), d.train(2000), d.r2, None, {"max_epochs": 40}
    )


@well(
    "log-price",
    "regression",
    "targets around 12: the first loss is 150 times the variance, then falls fast; R2 about 0.9",
)
def log_price(seed: int) -> Training:
    d = data.regression(seed, r2=0.95).map_targets(lambda y: 12 + 0.6 * y)
    return Training(Regressor(mlp(8, 64, 1), lr=1e-2), d.train(32), d.r2, d.val(), {"max_epochs": 22})


class CountRegressor(LightningModule):
    """Poisson regression: the net gives the log of the rate."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp(6, 32, 1)
        self.loss = nn.PoissonNLLLoss()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        x, y = batch
        return {"loss": self.loss(self(x), y)}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@well("poisson-counts", "regression", "Poisson likelihood without its constant: the loss is negative from the start")
def poisson_counts(seed: int) -> Training:
    g = data.generator(seed, 14)
    x = torch.randn(6000, 6, generator=g)
    rate = torch.exp(1.2 + 0.5 * x[:, :1] + 0.4 * torch.sin(2 * x[:, 1:2]))
    y = torch.poisson(rate, generator=g)
    d = data.Split(x[:4000], y[:4000], x[4000:], rate[4000:].log())
    return Training(CountRegressor(), d.train(64), d.r2, None, {"max_epochs": 14})


class QuantileRegressor(LightningModule):
    """The 10th, 50th and 90th percentile at once, by the pinball loss."""

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.body = nn.Sequential(nn.Linear(8, 48), nn.LeakyReLU(), nn.Linear(48, 3))
        self.register_buffer("q", torch.tensor([0.1, 0.5, 0.9]))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        error = y - self(x)
        loss = torch.maximum(self.q * error, (self.q - 1) * error).mean()
        self.log("pinball", loss, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        adam = torch.optim.AdamW(self.parameters(), lr=3e-3)
        return [adam], [torch.optim.lr_scheduler.CosineAnnealingLR(adam, T_max=12)]


@well("quantiles", "regression", "pinball loss on noisy targets; minus the distance of each coverage to its quantile")
def quantiles(seed: int) -> Training:
    d = data.regression(seed, r2=0.6, n=6000)

    def coverage(m: LightningModule) -> float:
        below = (d.y_test <= data.predict(m, d.x_test)).float().mean(0)
        return -(below - torch.tensor([0.1, 0.5, 0.9])).abs().max().item()

    return Training(QuantileRegressor(), d.train(64), coverage, None, {"max_epochs": 12})


class OrdinalRegressor(LightningModule):
    """One score and ordered cut points; the chance to be above each cut is a sigmoid (proportional odds)."""

    def __init__(self, columns: int, levels: int) -> None:
        super().__init__()
        self.score = mlp(columns, 32, 1)
        self.first = nn.Parameter(torch.tensor(-1.0))
        self.gaps = nn.Parameter(torch.zeros(levels - 2))

    def forward(self, x: Tensor) -> Tensor:
        cuts = self.first + torch.cat([self.gaps.new_zeros(1), F.softplus(self.gaps).cumsum(0)])
        return self.score(x) - cuts

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        logits = self(x)
        above = (y[:, None] > torch.arange(logits.shape[1], device=y.device)).float()
        loss = F.binary_cross_entropy_with_logits(logits, above)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@well(
    "ordinal-levels", "regression", "five ordered levels from a noisy scale; minus the mean error in levels, about -0.5"
)
def ordinal_levels(seed: int) -> Training:
    d = data.regression(seed, r2=0.7, n=4000)
    edges = torch.tensor([-1.0, -0.3, 0.3, 1.0]) * math.sqrt(1.2)
    d = d.map_targets(lambda y: torch.bucketize(y[:, 0], edges))

    def score(m: LightningModule) -> float:
        level = (data.predict(m, d.x_test) > 0).sum(1)
        return -(level - d.y_test).abs().float().mean().item()

    return Training(OrdinalRegressor(8, 5), d.train(64), score, None, {"max_epochs": 12})
