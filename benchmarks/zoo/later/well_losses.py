"""Losses of likelihoods, ranks, angles and margins, each trained to what the data allow."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule
from sklearn.datasets import load_wine
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.case import Training, well
from benchmarks.zoo.data import generator, predict, split
from benchmarks.zoo.later._well_common import explained, hit_rate, loader, stack


class FocalScreen(LightningModule):
    """Focal loss: tiny from the start, since easy negatives count for almost nothing."""

    def __init__(self, gamma: float = 2.0) -> None:
        super().__init__()
        self.gamma = gamma
        self.net = stack(6, 32, 32, 1)
        nn.init.constant_(self.net[-1].bias, math.log(0.06 / 0.94))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(-1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        z = self(x)
        p = torch.where(y > 0, z.sigmoid(), (-z).sigmoid())
        weight = torch.where(y > 0, 0.75, 0.25)
        loss = (weight * (1 - p) ** self.gamma * F.binary_cross_entropy_with_logits(z, y, reduction="none")).mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@well("v-focal-screening", "tabular", "one positive in seventeen; area under the curve; a linear rule reaches 0.99")
def focal(seed: int) -> Training:
    g = generator(seed, 501)
    y = (torch.rand(5000, generator=g) < 0.06).float()
    x = torch.randn(5000, 6, generator=g)
    x[:, :3] += 1.9 * y[:, None]

    def score(m: Any) -> float:
        return float(roc_auc_score(y[3000:], predict(m, x[3000:])))

    return Training(FocalScreen(), loader(x[:3000], y[:3000], size=128), score, trainer={"max_epochs": 8})


class Votes(LightningModule):
    """Predicts how annotators split their votes; the divergence sinks to the noise of twelve voters."""

    def __init__(self) -> None:
        super().__init__()
        self.body = stack(5, 48, 4, act=nn.Tanh)

    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax(self.body(x), -1)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        x, votes = batch
        return {"loss": F.kl_div(self(x), votes, reduction="batchmean")}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_kl", F.kl_div(self(batch[0]), batch[1], reduction="batchmean"))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=4e-3, weight_decay=1e-3)


@well("v-votes-of-annotators", "tabular", "minus the divergence from the true shares; 0 is perfect")
def votes(seed: int) -> Training:
    g = generator(seed, 502)
    x = torch.randn(2600, 5, generator=g)
    truth = (0.8 * x @ torch.randn(5, 4, generator=g)).softmax(-1)
    drawn = torch.multinomial(truth, 12, replacement=True, generator=g)
    counts = F.one_hot(drawn, 4).float().mean(1)
    score = lambda m: -F.kl_div(predict(m, x[2000:]), truth[2000:], reduction="batchmean").item()  # noqa: E731
    train, val = loader(x[:2000], counts[:2000]), loader(x[2000:], counts[2000:], shuffle=False)
    return Training(Votes(), train, score, val, {"max_epochs": 8})


class Bearing(LightningModule):
    """Minus the cosine of the angle between a predicted and a true direction: from 0 to almost -1."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(12, 64), nn.SiLU(), nn.Linear(64, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.encoder(x), dim=-1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, u = batch
        loss = -F.cosine_similarity(self(x), u).mean()
        self.log("neg_cosine", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        opt = torch.optim.Adam(self.parameters(), lr=5e-3)
        return [opt], [torch.optim.lr_scheduler.CosineAnnealingLR(opt, 15)]


@well("v-bearings-by-cosine", "regression", "mean cosine on new rows")
def bearing(seed: int) -> Training:
    g = generator(seed, 503)
    u = F.normalize(torch.randn(2500, 3, generator=g), dim=-1)
    mixed = torch.tanh(u @ torch.randn(3, 12, generator=g))
    x = mixed + 0.25 * torch.randn(2500, 12, generator=g)
    score = lambda m: (predict(m, x[1500:]) * u[1500:]).sum(-1).mean().item()  # noqa: E731
    return Training(Bearing(), loader(x[:1500], u[:1500]), score, trainer={"max_epochs": 15})


class Grades(LightningModule):
    """Ordered grades: one number against learnt, ordered thresholds."""

    def __init__(self, grades: int = 5) -> None:
        super().__init__()
        self.latent = nn.Sequential(nn.Linear(7, 32), nn.ReLU(), nn.Linear(32, 1))
        self.first = nn.Parameter(torch.tensor(-1.5))
        self.gaps = nn.Parameter(torch.zeros(grades - 2))

    def thresholds(self) -> Tensor:
        return torch.cat([self.first[None], self.first + F.softplus(self.gaps).cumsum(0)])

    def forward(self, x: Tensor) -> Tensor:
        return self.latent(x) - self.thresholds()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        above = (y[:, None] > torch.arange(4)).float()
        loss = F.binary_cross_entropy_with_logits(self(x), above, reduction="none").sum(1).mean()
        self.log("train/ordinal", loss, on_epoch=True, on_step=False)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(
            [
                {"params": self.latent.parameters(), "lr": 8e-3},
                {"params": [self.first, self.gaps], "lr": 2e-2},
            ]
        )


@well("v-ordered-grades", "ordinal", "minus the mean distance of grades; about -0.35 is the noise")
def grades(seed: int) -> Training:
    g = generator(seed, 504)
    x = torch.randn(3000, 7, generator=g)
    hidden = 1.5 * x[:, 0] + x[:, 1] * x[:, 2] + 0.5 * torch.randn(3000, generator=g)
    y = torch.bucketize(hidden, torch.tensor([-2.0, -0.7, 0.7, 2.0]))
    score = lambda m: -((predict(m, x[2000:]) > 0).sum(1) - y[2000:]).abs().float().mean().item()  # noqa: E731
    return Training(Grades(), loader(x[:2000], y[:2000], size=50), score, trainer={"max_epochs": 10})


class Lifetimes(LightningModule):
    """Weibull likelihood of lifetimes, half of them censored."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Linear(4, 1)
        self.log_shape = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale(x).squeeze(-1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        log_scale, k = self(batch["x"]), self.log_shape.exp()
        u = k * (batch["time"].log() - log_scale)
        loss = (u.exp() - batch["seen"] * (self.log_shape + u - batch["time"].log())).mean()
        self.log_dict({"nll": loss, "shape": k})
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-2)


@well("v-censored-lifetimes", "survival", "R2 of the log scale, a linear truth")
def lifetimes(seed: int) -> Training:
    g = generator(seed, 505)
    x = torch.randn(2000, 4, generator=g)
    log_scale = x @ torch.tensor([0.8, -0.5, 0.3, 0.0]) + 0.4
    death = log_scale.exp() * (-torch.rand(2000, generator=g).clamp_min(1e-6).log()) ** (1 / 1.7)
    end = 3 * torch.rand(2000, generator=g)
    time, seen = torch.minimum(death, end).clamp_min(1e-3), (death <= end).float()
    rows: Any = [{"x": x[i], "time": time[i], "seen": seen[i]} for i in range(1200)]
    train = torch.utils.data.DataLoader(rows, batch_size=80, shuffle=True)
    return Training(Lifetimes(), train, explained(x[1200:], log_scale[1200:]), trainer={"max_epochs": 14})


class Hazard(LightningModule):
    """Cox's partial likelihood: each death against all who were alive, so rows of a batch meet in the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.risk = nn.Sequential(nn.Linear(5, 24), nn.ELU(), nn.Dropout(0.1), nn.Linear(24, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.risk(x)[:, 0]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, time, seen = batch
        order = time.argsort(descending=True)
        risk = self(x)[order]
        loss = -((risk - risk.logcumsumexp(0)) * seen[order]).sum() / seen.sum().clamp_min(1)
        self.log("partial", loss)
        return loss

    def configure_optimizers(self) -> Any:
        opt = torch.optim.AdamW(self.parameters(), lr=4e-3, weight_decay=1e-2)
        sched = torch.optim.lr_scheduler.OneCycleLR(opt, 1e-2, total_steps=self.trainer.estimated_stepping_batches)
        return {"optimizer": opt, "lr_scheduler": {"scheduler": sched, "interval": "step"}}


@well("v-cox-in-the-batch", "survival", "concordance; the true risks reach about 0.78")
def cox(seed: int) -> Training:
    g = generator(seed, 506)
    x = torch.randn(2400, 5, generator=g)
    risk = x[:, 0] + 0.7 * x[:, 1] ** 2 - 0.6 * x[:, 2]
    death = -torch.rand(2400, generator=g).clamp_min(1e-6).log() / risk.exp()
    end = 2 * torch.rand(2400, generator=g)
    time, seen = torch.minimum(death, end), (death <= end).float()

    def score(m: Any) -> float:
        r, t, s = predict(m, x[1600:]), time[1600:], seen[1600:]
        pairs = (t[:, None] < t[None, :]) & (s[:, None] > 0)
        return (r[:, None] > r[None, :])[pairs].float().mean().item()

    train = loader(x[:1600], time[:1600], seen[:1600], size=160, drop_last=True)
    return Training(Hazard(), train, score, trainer={"max_epochs": 20, "log_every_n_steps": 5})


class Arrivals(LightningModule):
    """An inhomogeneous point process over a day; the likelihood is summed over windows of unlike event counts."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 32), nn.Tanh(), nn.Linear(32, 1))
        self.register_buffer("grid", (torch.arange(48) + 0.5) / 48)

    def forward(self, t: Tensor) -> Tensor:
        a = 2 * math.pi * t
        waves = torch.stack([a.sin(), a.cos(), (2 * a).sin(), (2 * a).cos(), t], -1)
        return self.net(waves).squeeze(-1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        times, mask = batch
        inside = (self(times) * mask).sum(1)
        return (self(self.grid).exp().mean() - inside).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.RMSprop(self.parameters(), lr=2e-3)


@well("v-arrivals-of-a-day", "point-process", "R2 of the rate over the day; the loss is below zero")
def arrivals(seed: int) -> Training:
    g = generator(seed, 507)
    rate = lambda t: 18 * torch.exp(0.9 * torch.sin(2 * math.pi * t) + 0.5 * torch.cos(4 * math.pi * t))  # noqa: E731
    t = torch.rand(600, 80, generator=g)
    mask = (torch.rand(600, 80, generator=g) < rate(t) / 80).float()
    grid = torch.linspace(0, 1, 100)
    score = lambda m: explained(grid, rate(grid).log())(m)  # noqa: E731
    return Training(Arrivals(), loader(t, mask, size=40), score, trainer={"max_epochs": 24})


class Branches(LightningModule):
    """A mixture density net for a many-valued inverse."""

    def __init__(self, parts: int = 4) -> None:
        super().__init__()
        self.net = stack(1, 48, 48, 3 * parts, act=nn.Tanh)

    def nll(self, x: Tensor, y: Tensor) -> Tensor:
        weight, mean, raw = self.net(x).chunk(3, -1)
        std = F.softplus(raw) + 0.01
        each = -0.5 * ((y - mean) / std) ** 2 - std.log() - 0.5 * math.log(2 * math.pi)
        return -torch.logsumexp(weight.log_softmax(-1) + each, -1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.nll(*batch).mean()
        self.log("nll", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_nll", self.nll(*batch).mean())

    def configure_optimizers(self) -> Any:
        opt = torch.optim.Adam(self.parameters(), lr=1e-2)
        sched = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: max(0.02, (1 - step / 800) ** 1.0))
        return {"optimizer": opt, "lr_scheduler": {"scheduler": sched, "interval": "step"}}


@well("v-mixture-of-branches", "density", "minus the mean likelihood on new rows; a plain Gaussian reaches about -0.2")
def branches(seed: int) -> Training:
    g = generator(seed, 508)
    y = 2 * torch.rand(3000, 1, generator=g) - 1
    x = y + 0.45 * torch.sin(2 * math.pi * y) + 0.05 * torch.randn(3000, 1, generator=g)

    def score(m: Any) -> float:
        with torch.no_grad():
            return -m.nll(x[2000:], y[2000:]).mean().item()

    train, val = loader(x[:2000], y[:2000], size=100), loader(x[2000:], y[2000:], size=500, shuffle=False)
    return Training(Branches(), train, score, val, {"max_epochs": 40})


class Cultivars(LightningModule):
    """A margin loss that is exactly zero for most batches soon after the start."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(13, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return F.multi_margin_loss(self(x), y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_acc", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)


@well("v-margins-of-wine", "linear", "accuracy on 45 rows, as a linear SVM")
def cultivars(seed: int) -> Training:
    x, y = load_wine(return_X_y=True)
    d = split(torch.tensor(x, dtype=torch.float32), torch.tensor(y), seed).standardised()
    score = hit_rate(d.x_test, d.y_test)
    return Training(Cultivars(), loader(d.x, d.y, size=16), score, d.val(), {"max_epochs": 20})


class Claims(LightningModule):
    """Tweedie deviance for claims that are nearly all nought."""

    def __init__(self, power: float = 1.5) -> None:
        super().__init__()
        self.power = power
        self.net = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(-1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        eta, p = self(x), self.power
        loss = (torch.exp((2 - p) * eta) / (2 - p) - y * torch.exp((1 - p) * eta) / (1 - p)).mean()
        self.log("tweedie", loss, on_step=True)
        return loss

    def configure_optimizers(self) -> Any:
        opt = torch.optim.Adam(self.parameters(), lr=2e-2)
        return {"optimizer": opt, "lr_scheduler": torch.optim.lr_scheduler.ExponentialLR(opt, 0.8)}


@well("v-claims-mostly-nought", "counts", "R2 of the log of the expected claim, a linear truth; losses are very noisy")
def claims(seed: int) -> Training:
    g = generator(seed, 509)
    x = torch.randn(8000, 6, generator=g)
    eta = x @ torch.tensor([0.6, 0.4, -0.5, 0.0, 0.3, 0.0]) - 0.3
    count = torch.poisson(0.4 * torch.ones(8000), generator=g)
    size = torch.stack([-torch.rand(8000, generator=g).clamp_min(1e-6).log() for _ in range(6)])
    y = (size * (torch.arange(6)[:, None] < count)).sum(0) * eta.exp() / 0.4
    score = explained(x[6000:], eta[6000:])
    return Training(Claims(), loader(x[:6000], y[:6000], size=200), score, trainer={"max_epochs": 12})


class Crps(LightningModule):
    """The continuous ranked probability score of a normal forecast with its own spread."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 32), nn.GELU(), nn.Linear(32, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def crps(self, x: Tensor, y: Tensor) -> Tensor:
        mean, log_std = self(x).unbind(-1)
        z = (y - mean) / log_std.exp()
        density = torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
        share = 0.5 * (1 + torch.erf(z / math.sqrt(2)))
        return (log_std.exp() * (z * (2 * share - 1) + 2 * density - 1 / math.sqrt(math.pi))).mean()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.crps(*batch)
        self.log("crps", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/crps", self.crps(*batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.NAdam(self.parameters(), lr=6e-3)


@well("v-forecast-with-spread", "density", "minus the score on new rows over that of the true law")
def crps(seed: int) -> Training:
    g = generator(seed, 510)
    x = torch.randn(4000, 3, generator=g)
    mean, std = torch.sin(1.5 * x[:, 0]) + 0.5 * x[:, 1], torch.exp(0.5 * x[:, 2] - 0.7)
    y = mean + std * torch.randn(4000, generator=g)
    best = (std / math.sqrt(math.pi)).mean().item()

    def score(m: Any) -> float:
        with torch.no_grad():
            return -m.crps(x[3000:], y[3000:]).item() / best

    train, val = loader(x[:3000], y[:3000], size=60), loader(x[3000:], y[3000:], size=1000, shuffle=False)
    return Training(Crps(), train, score, val, {"max_epochs": 16, "val_check_interval": 0.5})


class Tastes(LightningModule):
    """Bayesian personalised ranking with sparse embeddings: each batch moves few rows."""

    def __init__(self, users: int, items: int, dim: int = 8) -> None:
        super().__init__()
        self.users = nn.Embedding(users, dim, sparse=True)
        self.items = nn.Embedding(items, dim, sparse=True)
        nn.init.normal_(self.users.weight, std=0.1)
        nn.init.normal_(self.items.weight, std=0.1)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return (self.users(user) * self.items(item)).sum(-1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        user, liked, other = batch
        loss = F.softplus(self(user, other) - self(user, liked)).mean()
        self.log("bpr", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SparseAdam(list(self.parameters()), lr=1e-2)


@well("v-tastes-in-pairs", "embeddings", "share of new pairs in the right order; the true tastes get 0.87")
def tastes(seed: int) -> Training:
    g = generator(seed, 511)
    u, v = torch.randn(120, 4, generator=g), torch.randn(80, 4, generator=g)
    user = torch.randint(120, (16000,), generator=g)
    a, b = (torch.randint(80, (16000,), generator=g) for _ in range(2))
    gap = (u[user] * (v[a] - v[b])).sum(-1)
    first = torch.rand(16000, generator=g) < torch.sigmoid(1.5 * gap)
    liked, other = torch.where(first, a, b), torch.where(first, b, a)
    n = 13000

    def score(m: Any) -> float:
        with torch.no_grad():
            return (m(user[n:], liked[n:]) > m(user[n:], other[n:])).float().mean().item()

    return Training(Tastes(120, 80), loader(user[:n], liked[:n], other[:n], size=256), score, trainer={"max_epochs": 8})
