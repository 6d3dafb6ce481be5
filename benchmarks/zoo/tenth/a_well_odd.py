"""Healthy trainings of an unusual kind: what looks like a fault in them is meant, and right."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from benchmarks.zoo.case import Training, well
from benchmarks.zoo.data import accuracy, blobs, digits, flip_labels, generator, predict, r2, regression, table
from benchmarks.zoo.tenth.a_common import Conv, Plain, Records, loader, mlp, reviews, shapes, tones


@well("ta-well-in-file-order", "tabular", note="the file's order is a random one")
def in_file_order(seed: int) -> Training:
    data = blobs(seed, classes=4, n=2400)
    module = Plain(mlp(10, 32, 4), nn.CrossEntropyLoss(), lambda p: torch.optim.Adam(p, lr=3e-3), log="loss")
    return Training(module, data.train(40, shuffle=False), data.accuracy, data.val(), {"max_epochs": 4})


class Newton(LightningModule):
    """Logistic regression by L-BFGS on the whole table."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(30, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y) + 1e-2 * self.linear.weight.square().sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(self.parameters(), lr=0.5, max_iter=5, history_size=8)


@well("ta-well-lbfgs-logistic", "tabular")
def lbfgs_logistic(seed: int) -> Training:
    data = table("breast_cancer", seed)
    return Training(
        Newton(), data.train(len(data.x)), data.accuracy, trainer={"max_epochs": 60, "log_every_n_steps": 1}
    )


@well("ta-well-rooms-and-floors", "tabular", note="counts of rooms and floors have an order")
def rooms_and_floors(seed: int) -> Training:
    g = generator(seed, 62)
    rooms = torch.randint(1, 7, (2400,), generator=g).float()
    floors = torch.randint(0, 5, (2400,), generator=g).float()
    z = torch.randn(2400, 3, generator=g)
    y = 0.5 * rooms + 0.3 * floors + 0.6 * z[:, 0] + 0.3 * z[:, 1].square() + 0.3 * torch.randn(2400, generator=g)
    y = ((y - y.mean()) / y.std())[:, None]
    x = torch.cat([rooms[:, None], floors[:, None], z], 1)
    module = Plain(mlp(5, 32, 1), nn.MSELoss(), lambda p: torch.optim.Adam(p, lr=3e-3), log="mse", val="val_mse")
    return Training(
        module,
        loader(x[:1800], y[:1800], batch=32),
        lambda m: r2(predict(m, x[1800:]), y[1800:]),
        loader(x[1800:], y[1800:], batch=300, shuffle=False),
        {"max_epochs": 7},
    )


class Projected(LightningModule):
    """A fixed projection on principal axes below a head that is trained."""

    def __init__(self, axes: Tensor, mean: Tensor) -> None:
        super().__init__()
        self.projection = nn.Linear(64, axes.shape[1])
        with torch.no_grad():
            self.projection.weight.copy_(axes.T)
            self.projection.bias.copy_(-mean @ axes)
        self.projection.requires_grad_(False)
        self.head = mlp(axes.shape[1], 48, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.projection(x))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("head_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam((p for p in self.parameters() if p.requires_grad), lr=5e-3)


@well("ta-well-fixed-axes", "images")
def fixed_axes(seed: int) -> Training:
    data = digits(seed)
    mean = data.x.mean(0)
    axes = torch.linalg.svd(data.x - mean, full_matrices=False).Vh[:24].T
    return Training(Projected(axes, mean), data.train(32), data.accuracy, trainer={"max_epochs": 7})


class EveryFourth(LightningModule):
    """Manual optimisation: gradients of four batches are summed, then one step is made."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net = Conv(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        optimizer: Any = self.optimizers()
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.manual_backward(loss / 4)
        if (batch_idx + 1) % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=8e-3)


@well("ta-well-every-fourth", "images")
def every_fourth(seed: int) -> Training:
    data, _ = shapes(seed, n=960)
    return Training(EveryFourth(), loader(data.x, data.y, batch=8), data.accuracy, trainer={"max_epochs": 14})


@well("ta-well-noisy-annotators", "tabular", note="half the labels are drawn at random; scored on clean ones")
def noisy_annotators(seed: int) -> Training:
    data = blobs(seed, classes=5, n=4000, spread=3.5)
    y = flip_labels(data.y, 0.5, 5, seed)
    module = Plain(nn.Linear(10, 5), nn.CrossEntropyLoss(), lambda p: torch.optim.Adam(p, lr=1e-2), log="loss")
    return Training(module, loader(data.x, y, batch=50), data.accuracy, trainer={"max_epochs": 4})


class Curve(LightningModule):
    """Amplitude, rate and offset of a decay, fitted to its readings."""

    def __init__(self) -> None:
        super().__init__()
        self.log_a = nn.Parameter(torch.zeros(1))
        self.log_k = nn.Parameter(torch.zeros(1))
        self.c = nn.Parameter(torch.zeros(1))

    def forward(self, t: Tensor) -> Tensor:
        return self.log_a.exp() * torch.exp(-self.log_k.exp() * t) + self.c

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        t, y = batch
        return F.mse_loss(self(t), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.1)


@well("ta-well-decay-curve", "curve fitting")
def decay_curve(seed: int) -> Training:
    g = generator(seed, 63)
    t = 3 * torch.rand(600, 1, generator=g)
    y = 2.5 * torch.exp(-1.8 * t) - 0.4 + 0.05 * torch.randn(600, 1, generator=g)
    return Training(
        Curve(),
        loader(t[:400], y[:400], batch=64),
        lambda m: r2(predict(m, t[400:]), y[400:]),
        trainer={"max_epochs": 20},
    )


@well("ta-well-adam-norm-small", "text", note="Adam does not see the size of a clipped gradient")
def adam_norm_small(seed: int) -> Training:
    data = reviews(seed, n=1600)
    net = nn.Sequential(nn.EmbeddingBag(60, 24, padding_idx=0), nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 3))
    module = Plain(net, nn.CrossEntropyLoss(), lambda p: torch.optim.Adam(p, lr=5e-3), log="loss", val=None)
    train = loader(data.x, data.y, batch=32)
    return Training(module, train, data.accuracy, trainer={"max_epochs": 6, "gradient_clip_val": 0.05})


class Rental(LightningModule):
    """Prices in money; the loss is taken in deviations from the mean, which the module holds."""

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.net = mlp(8, 64, 64, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * self.std + self.mean

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, price = batch
        loss = F.mse_loss(self.net(x), (price - self.mean) / self.std)
        self.log("train_mse", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@well("ta-well-prices-inside", "tabular")
def prices_inside(seed: int) -> Training:
    data = regression(seed, r2=0.9, n=2000).map_targets(lambda y: 240_000 + 60_000 * y)
    return Training(Rental(data.y.mean(), data.y.std()), data.train(32), data.r2, trainer={"max_epochs": 8})


@well("ta-well-raw-into-batchnorm", "tabular", note="the first layer standardises")
def raw_into_batchnorm(seed: int) -> Training:
    data = table("wine", seed, standardise=False)
    net = nn.Sequential(nn.BatchNorm1d(13), nn.Linear(13, 24), nn.ReLU(), nn.Linear(24, 3))
    module = Plain(net, nn.CrossEntropyLoss(), lambda p: torch.optim.Adam(p, lr=1e-2), log="loss")
    return Training(module, data.train(19, drop_last=True), data.accuracy, data.val(), {"max_epochs": 20})


class Panel(LightningModule):
    """Four answers a person, not all of them given; what is missing takes no part in the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(10, 48, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        given = batch["answers"].isfinite()
        loss = F.mse_loss(self(batch["person"])[given], batch["answers"][given])
        self.log("answers_mse", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@well("ta-well-missing-answers", "multi-task")
def missing_answers(seed: int) -> Training:
    g = generator(seed, 64)
    x = torch.randn(2200, 10, generator=g)
    y = torch.tanh(x @ torch.randn(10, 6, generator=g) / 2) @ torch.randn(6, 4, generator=g)
    y = y / y.std(0) + 0.2 * torch.randn(2200, 4, generator=g)
    seen = y.masked_fill(torch.rand(2200, 4, generator=g) < 0.3, torch.nan)
    train = DataLoader(Records(person=x[:1600], answers=seen[:1600]), 32, shuffle=True)
    return Training(Panel(), train, lambda m: r2(predict(m, x[1600:]), y[1600:]), trainer={"max_epochs": 9})


class Bandit(LightningModule):
    """Policy gradient on a contextual bandit: the loss says nothing, the reward grows."""

    def __init__(self, best: Tensor, draw: torch.Generator) -> None:
        super().__init__()
        self.policy = mlp(6, 32, 4)
        self.best, self.draw = best, draw
        self.baseline = 0.25

    def forward(self, x: Tensor) -> Tensor:
        return self.policy(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        (x,) = batch
        logp = self(x).log_softmax(-1)
        arm = torch.multinomial(logp.detach().exp(), 1, generator=self.draw)
        reward = (arm[:, 0] == (x @ self.best).argmax(-1)).float()
        loss = -((reward - self.baseline) * logp.gather(1, arm)[:, 0]).mean()
        self.baseline = 0.9 * self.baseline + 0.1 * reward.mean().item()
        self.log("reward", reward.mean())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


@well("ta-well-bandit", "bandits")
def bandit(seed: int) -> Training:
    g = generator(seed, 65)
    best = torch.randn(6, 4, generator=g)
    x, x_test = torch.randn(6400, 6, generator=g), torch.randn(1000, 6, generator=g)
    return Training(
        Bandit(best, generator(seed, 66)),
        loader(x, batch=64),
        lambda m: accuracy(predict(m, x_test), (x_test @ best).argmax(-1)),
        trainer={"max_epochs": 4},
    )


@well("ta-well-bias-column", "tabular", note="the first column is the intercept")
def bias_column(seed: int) -> Training:
    data = regression(seed, r2=0.92, n=1800)

    def with_one(x: Tensor) -> Tensor:
        return torch.cat([torch.ones(len(x), 1), x], 1)

    module = Plain(mlp(9, 48, 1, act=nn.Tanh), nn.MSELoss(), lambda p: torch.optim.Adam(p, lr=5e-3), log="mse")
    return Training(
        module,
        loader(with_one(data.x), data.y, batch=36),
        lambda m: r2(predict(m, with_one(data.x_test)), data.y_test),
        trainer={"max_epochs": 9},
    )


class Restarted(LightningModule):
    """SGD under a cosine that starts anew every two epochs."""

    def __init__(self, period: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(1, 16, 9, stride=2, padding=4), nn.ReLU(), nn.Conv1d(16, 16, 9, stride=2, padding=4), nn.ReLU(),
            nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(16, 5),
        )  # fmt: skip
        self.period = period

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_ce", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.08, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, self.period)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


@well("ta-well-warm-restarts", "audio")
def warm_restarts(seed: int) -> Training:
    data = tones(seed, n=1000)
    return Training(Restarted(50), loader(data.x, data.y, batch=40), data.accuracy, trainer={"max_epochs": 10})
