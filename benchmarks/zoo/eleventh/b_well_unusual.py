"""Healthy trainings that look unusual and are right: negative losses, frozen layers, floors, noise, masked gaps."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from benchmarks.zoo.case import Training, well
from benchmarks.zoo.data import blobs, digits, flip_labels, generator, moons, predict, r2, regression
from benchmarks.zoo.eleventh.b_common import Fit, by_accuracy, by_r2, loader, mlp


class LowRank(LightningModule):
    """A linear map of forty columns to thirty through four, as the truth is."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(40, 4, bias=False), nn.Linear(4, 30)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return F.mse_loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


@well("eb-reduced-rank-regression", "regression")
def reduced_rank(seed: int) -> Training:
    g = generator(seed, 1180)
    x = torch.randn(2000, 40, generator=g)
    y = x @ torch.randn(40, 4, generator=g) @ torch.randn(4, 30, generator=g) / 12.6
    y = y + 0.4 * torch.randn(2000, 30, generator=g)
    return Training(
        LowRank(), loader(x[:1600], y[:1600], batch=40), by_r2(x[1600:], y[1600:]), trainer={"max_epochs": 8}
    )


class Fourier(LightningModule):
    """Random features that stay as drawn, and a linear layer on them; the optimizer holds the linear layer alone."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Linear(2, 256)
        nn.init.normal_(self.features.weight, std=1.5)
        nn.init.uniform_(self.features.bias, 0, 2 * math.pi)
        self.features.requires_grad_(False)
        self.out = nn.Linear(256, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.cos(self.features(x)))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("ce", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.out.parameters(), lr=5e-3)


@well("eb-random-fourier-features", "tabular")
def fourier(seed: int) -> Training:
    cut = moons(seed, noise=0.15)
    return Training(Fourier(), cut.train(32), cut.accuracy, trainer={"max_epochs": 8})


@well("eb-half-the-labels-drawn-anew", "tabular")
def noisy_labels(seed: int) -> Training:
    cut = blobs(seed, classes=4, columns=8, n=4000, spread=3.5)
    y = flip_labels(cut.y, 0.5, 4, seed)
    module = Fit(mlp(8, 24, 4, layers=1), F.cross_entropy, lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9))
    return Training(module, loader(cut.x, y, batch=64), cut.accuracy, trainer={"max_epochs": 5})


class Heteroscedastic(LightningModule):
    """Mean and spread of a quantity; the loss falls below zero."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[:, :1]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        mean, raw = self.net(batch[0]).chunk(2, 1)
        loss = F.gaussian_nll_loss(mean, batch[1], F.softplus(raw) + 1e-4)
        self.log("nll", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@well("eb-spread-below-zero", "regression")
def spread_below(seed: int) -> Training:
    g = generator(seed, 1181)
    x = torch.randn(2400, 3, generator=g)
    y = (
        torch.sin(x[:, :1] * 1.5)
        + 0.7 * x[:, 1:2]
        + 0.12 * torch.exp(0.5 * x[:, 2:]) * torch.randn(2400, 1, generator=g)
    )
    module = Heteroscedastic()
    return Training(module, loader(x[:2000], y[:2000], batch=50), by_r2(x[2000:], y[2000:]), trainer={"max_epochs": 12})


@well("eb-batchnorm-before-raw-columns", "tabular")
def raw_columns(seed: int) -> Training:
    cut = blobs(seed, classes=5, columns=10, n=2000, spread=4.0)
    scale = torch.logspace(-2, 3, 10)
    net = nn.Sequential(nn.BatchNorm1d(10), nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 5))
    module = Fit(net, F.cross_entropy, lambda p: torch.optim.Adam(p, lr=3e-3))
    train = loader(cut.x * scale + 3 * scale, cut.y, batch=50)
    return Training(module, train, by_accuracy(cut.x_test * scale + 3 * scale, cut.y_test), trainer={"max_epochs": 8})


@well("eb-sum-over-the-batch", "regression")
def summed(seed: int) -> Training:
    cut = regression(seed, r2=0.9)
    module = Fit(mlp(8, 40, 1), nn.MSELoss(reduction="sum"), lambda p: torch.optim.SGD(p, lr=5e-4, momentum=0.9))
    return Training(module, cut.train(32), cut.r2, trainer={"max_epochs": 8})


class FourMicroBatches(LightningModule):
    """Manual optimisation that steps, and clears, every fourth batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net = mlp(64, 48, 10, layers=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        optimizer = self.optimizers()
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.manual_backward(loss / 4)
        if (batch_idx + 1) % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()
        return loss.detach()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@well("eb-manual-four-micro-batches", "manual")
def micro_batches(seed: int) -> Training:
    cut = digits(seed).standardised()
    return Training(FourMicroBatches(), cut.train(12, drop_last=True), cut.accuracy, trainer={"max_epochs": 7})


class Masked(LightningModule):
    """Gaps of the table stay as they came; the network fills them and is told where they were."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(16, 48, 1)

    def forward(self, x: Tensor) -> Tensor:
        gap = x.isnan()
        return self.net(torch.cat([torch.where(gap, 0.0, x), gap.float()], 1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("mse", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@well("eb-gaps-filled-in-the-model", "tabular")
def gaps_filled(seed: int) -> Training:
    cut = regression(seed, r2=0.95)
    g = generator(seed, 1182)
    x = torch.where(torch.rand(cut.x.shape, generator=g) < 0.05, math.nan, cut.x)
    x_test = torch.where(torch.rand(cut.x_test.shape, generator=g) < 0.05, math.nan, cut.x_test)
    return Training(Masked(), loader(x, cut.y, batch=50), by_r2(x_test, cut.y_test), trainer={"max_epochs": 8})


class Restarts(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(8, 48, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = F.huber_loss(self(batch[0]), batch[1])
        self.log("huber", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.15, momentum=0.9)
        plan = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 80)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plan, "interval": "step"}}


@well("eb-warm-restarts-of-eighty", "regression")
def warm_restarts(seed: int) -> Training:
    cut = regression(seed, r2=0.9)
    return Training(Restarts(), cut.train(50), cut.r2, trainer={"max_epochs": 8})


class Pairs(LightningModule):
    """Two views of one thing against all others of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = mlp(12, 48, 8, layers=1), mlp(9, 48, 8, layers=1)

    def forward(self, views: tuple[Tensor, Tensor]) -> Tensor:
        a, b = F.normalize(self.left(views[0]), dim=1), F.normalize(self.right(views[1]), dim=1)
        return 8 * a @ b.T

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        similar = self((batch[0], batch[1]))
        target = torch.arange(len(similar))
        loss = (F.cross_entropy(similar, target) + F.cross_entropy(similar.T, target)) / 2
        self.log("info_nce", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@well("eb-two-views-in-batch-negatives", "metric")
def two_views(seed: int) -> Training:
    g = generator(seed, 1183)
    thing = torch.randn(2300, 5, generator=g)
    a = thing @ torch.randn(5, 12, generator=g) / 2.2 + 0.15 * torch.randn(2300, 12, generator=g)
    b = torch.tanh(thing @ torch.randn(5, 9, generator=g) / 2.2) + 0.1 * torch.randn(2300, 9, generator=g)

    def score(module: LightningModule) -> float:
        similar = predict(module, (a[2000:], b[2000:]))
        return (similar.topk(5).indices == torch.arange(300)[:, None]).any(1).float().mean().item()

    return Training(Pairs(), loader(a[:2000], b[:2000], batch=40, drop_last=True), score, trainer={"max_epochs": 8})


class Arms(LightningModule):
    """A policy learned from sampled rewards; its loss stays about zero while the reward rises."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(6, 32, 4, layers=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, payoff = batch
        dist = torch.distributions.Categorical(logits=self(x))
        arm = dist.sample()
        reward = payoff.gather(1, arm[:, None]).squeeze(1)
        self.log("mean_reward", reward.mean())
        return (
            -(dist.log_prob(arm) * (reward - reward.mean()) / (reward.std() + 1e-6)).mean()
            - 0.01 * dist.entropy().mean()
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


@well("eb-policy-loss-about-zero", "bandit")
def policy(seed: int) -> Training:
    g = generator(seed, 1184)
    x = torch.randn(3000, 6, generator=g)
    payoff = x @ torch.randn(6, 4, generator=g) / 2.4 + 0.1 * torch.randn(3000, 4, generator=g)

    def regret(module: LightningModule) -> float:
        arm = predict(module, x[2400:]).argmax(1, keepdim=True)
        return (payoff[2400:].gather(1, arm).mean() - payoff[2400:].amax(1).mean()).item()

    return Training(Arms(), loader(x[:2400], payoff[:2400], batch=60), regret, trainer={"max_epochs": 8})


class Mixup(LightningModule):
    """Mixed pictures and mixed labels: the training loss stays high, the test is easy."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Dropout(0.3), nn.Linear(96, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch[0], F.one_hot(batch[1], 10).float()
        share = torch.distributions.Beta(1.0, 1.0).sample((len(x), 1))
        order = torch.randperm(len(x))
        mixed = share * x + (1 - share) * x[order]
        loss = F.cross_entropy(self(mixed), share * y + (1 - share) * y[order])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@well("eb-mixup-loss-stays-high", "images")
def mixup(seed: int) -> Training:
    cut = digits(seed).standardised()
    return Training(Mixup(), cut.train(48), cut.accuracy, cut.val(), {"max_epochs": 10})


class LongWarmup(LightningModule):
    """A transformer whose rate rises over the first third."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.pos = nn.Embedding(12, 24), nn.Parameter(0.1 * torch.randn(10, 24))
        self.layer = nn.TransformerEncoderLayer(24, 3, 48, dropout=0.0, batch_first=True, norm_first=True)
        self.out = nn.Linear(24, 12)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.layer(self.emb(ids) + self.pos))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]).flatten(0, 1), batch[0].flip(1).flatten())
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=6e-3)
        plan = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min((s + 1) / 120, 1.0))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plan, "interval": "step"}}


@well("eb-reversal-long-warmup", "text")
def reversal(seed: int) -> Training:
    ids = torch.randint(12, (2300, 10), generator=generator(seed, 1185))

    def right(module: LightningModule) -> float:
        return (predict(module, ids[2000:]).argmax(-1) == ids[2000:].flip(1)).float().mean().item()

    return Training(LongWarmup(), loader(ids[:2000], batch=40), right, trainer={"max_epochs": 8})


@well("eb-rare-class-learned", "tabular")
def rare_learned(seed: int) -> Training:
    cut = blobs(seed, classes=2, columns=6, n=3000, spread=3.5, shares=torch.tensor([0.95, 0.05]))
    module = Fit(mlp(6, 16, 2, layers=1), F.cross_entropy, lambda p: torch.optim.Adam(p, lr=5e-3))

    def balanced(m: LightningModule) -> float:
        right = predict(m, cut.x_test).argmax(1) == cut.y_test
        return sum(right[cut.y_test == k].float().mean().item() for k in range(2)) / 2

    return Training(module, cut.train(50), balanced, trainer={"max_epochs": 5})


class ToyGan(LightningModule):
    """A bent cloud from noise, against a critic; both losses swing about their levels."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.critic = mlp(4, 48, 2), mlp(2, 64, 1)

    def forward(self, z: Tensor) -> Tensor:
        return self.generator(z)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        (real,) = batch
        make, judge = self.optimizers()
        fake = self(torch.randn(len(real), 4))
        wrong, right = self.critic(fake.detach()), self.critic(real)
        d_loss = F.softplus(wrong).mean() + F.softplus(-right).mean()
        judge.zero_grad()
        self.manual_backward(d_loss)
        judge.step()
        g_loss = F.softplus(-self.critic(fake)).mean()
        make.zero_grad()
        self.manual_backward(g_loss)
        make.step()
        self.log_dict({"d_loss": d_loss, "g_loss": g_loss})

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.Adam(self.generator.parameters(), lr=1e-3, betas=(0.5, 0.9)),
            torch.optim.Adam(self.critic.parameters(), lr=4e-3, betas=(0.5, 0.9)),
        ]


@well("eb-toy-gan-swings", "gan")
def toy_gan(seed: int) -> Training:
    g = generator(seed, 1186)
    u = torch.randn(2500, 1, generator=g)
    real = torch.cat([u + 0.5, 0.4 * u**2 - 0.4], 1) + 0.2 * torch.randn(2500, 2, generator=g)
    z, other = torch.randn(500, 4, generator=g), real[2000:]

    def closeness(module: LightningModule) -> float:
        fake = predict(module, z)
        return (
            torch.cdist(fake, fake).mean() + torch.cdist(other, other).mean() - 2 * torch.cdist(fake, other).mean()
        ).item()

    return Training(ToyGan(), loader(real[:2000], batch=100), closeness, trainer={"max_epochs": 20})


class TimeOrder(LightningModule):
    """The next value of a stationary series, its windows read in their own order."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(5, 48, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("train_mse", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@well("eb-series-in-its-own-order", "time-series")
def own_order(seed: int) -> Training:
    g = generator(seed, 1187)
    value = [0.1, 0.2]
    for shock in (0.25 * torch.randn(2600, generator=g)).tolist():
        value.append(1.4 * math.sin(1.6 * value[-1]) - 0.6 * value[-2] + shock)
    series = torch.tensor(value)
    windows = ((series - series.mean()) / series.std()).unfold(0, 6, 1)
    x, y = windows[:, :5], windows[:, 5:]
    train = loader(x[:2000], y[:2000], batch=40, shuffle=False)
    return Training(TimeOrder(), train, lambda m: r2(predict(m, x[2000:]), y[2000:]), trainer={"max_epochs": 8})
