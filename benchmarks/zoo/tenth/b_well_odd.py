"""Healthy trainings that are set up in an unusual way and right."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from benchmarks.zoo.case import Training, well
from benchmarks.zoo.data import Split, blobs, digits, flip_labels, generator, predict, table
from benchmarks.zoo.tenth.b_common import Classifier, Logged, Plain, adam, adamw, dense, r2_on, sgd, tones


@well("tb-unusual-density-below-zero", "tabular")
def density_below_zero(seed: int) -> Training:
    """The negative log density of precise targets falls far below zero."""
    g = generator(seed, 270)
    x = torch.randn(2600, 4, generator=g)
    mean = torch.tanh(x[:, :1]) + 0.5 * x[:, 1:2]
    mean = mean / mean.std()
    y = mean + 0.04 * torch.exp(0.5 * x[:, 2:3]) * torch.randn(2600, 1, generator=g)
    task = Split(x[:2000], y[:2000], x[2000:], y[2000:])

    def loss(out: Tensor, target: Tensor) -> Tensor:
        return F.gaussian_nll_loss(out[:, :1], target, F.softplus(out[:, 1:]) + 1e-4)

    def score(fitted: LightningModule) -> float:
        return r2_on(FirstColumn(fitted), task.x_test, task.y_test)

    module = Logged(dense(4, 48, 48, 2, act=nn.SiLU), loss, adam(2e-3))
    return Training(module, task.train(50), score, task.val(), {"max_epochs": 12, "gradient_clip_val": 5.0})


class FirstColumn(nn.Module):
    """The first output of a module."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[:, :1]


class PrincipalParts(LightningModule):
    """A linear encoder and decoder: principal components by gradient descent."""

    def __init__(self, columns: int, parts: int) -> None:
        super().__init__()
        self.encode = nn.Linear(columns, parts, bias=False)
        self.decode = nn.Linear(parts, columns)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[0])
        self.log("reconstruction", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


@well("tb-unusual-principal-parts", "autoencoder")
def principal_parts(seed: int) -> Training:
    g = generator(seed, 271)
    x = torch.randn(1500, 4, generator=g) @ torch.randn(4, 24, generator=g) / 2 + 0.3 * torch.randn(
        1500, 24, generator=g
    )
    x = (x - x.mean(0)) / x.std(0)
    loader = DataLoader(TensorDataset(x[:1200]), 40, shuffle=True)
    return Training(PrincipalParts(24, 4), loader, lambda m: r2_on(m, x[1200:], x[1200:]), trainer={"max_epochs": 10})


class PairNet(LightningModule):
    """Two encoders whose matching pairs are told apart from all others of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = dense(10, 64, 16), dense(14, 64, 16)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        left, right = F.normalize(self.left(pair[0]), dim=-1), F.normalize(self.right(pair[1]), dim=-1)
        return self.log_scale.exp() * left @ right.T

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        logits = self((batch[0], batch[1]))
        own = torch.arange(len(logits))
        loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        self.log("contrastive", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


@well("tb-unusual-pairs-of-the-batch", "metric")
def pairs_of_batch(seed: int) -> Training:
    g = generator(seed, 272)
    cause = torch.randn(2300, 6, generator=g)
    a = torch.tanh(cause @ torch.randn(6, 10, generator=g) / 2) + 0.05 * torch.randn(2300, 10, generator=g)
    b = torch.tanh(cause @ torch.randn(6, 14, generator=g) / 2) + 0.05 * torch.randn(2300, 14, generator=g)
    a, b = (a - a.mean(0)) / a.std(0), (b - b.mean(0)) / b.std(0)

    def score(fitted: LightningModule) -> float:
        """Share of 300 pairs found among 300."""
        logits = predict(fitted, (a[2000:], b[2000:]))
        return (logits.argmax(1) == torch.arange(300)).float().mean().item()

    loader = DataLoader(TensorDataset(a[:2000], b[:2000]), 64, shuffle=True, drop_last=True)
    return Training(PairNet(), loader, score, trainer={"max_epochs": 14})


@well("tb-unusual-lbfgs-whole-table", "tabular")
def lbfgs_table(seed: int) -> Training:
    task = table("wine", seed)

    def loss(out: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(out, y)

    class Regularised(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) + 0.005 * self.net.weight.square().sum()

    module = Regularised(nn.Linear(13, 3), loss, lambda p: torch.optim.LBFGS(p, lr=0.5, max_iter=4))
    loader = task.train(len(task.x), shuffle=False)
    return Training(module, loader, task.accuracy, trainer={"max_epochs": 60})


@well("tb-unusual-hashed-columns", "text")
def hashed_columns(seed: int) -> Training:
    """Counts of hashed words: 300 columns of which a row fills some fifteen."""
    g = generator(seed, 273)
    share = torch.rand(4, 300, generator=g) ** 6 + 0.02
    y = torch.randint(4, (2600,), generator=g)
    drawn = torch.multinomial(share[y], 15, replacement=True, generator=g)
    x = torch.zeros(2600, 300).scatter_add_(1, drawn, torch.ones(2600, 15))
    task = Split(x[:2000], y[:2000], x[2000:], y[2000:])
    module = Classifier(nn.Linear(300, 4), adamw(1e-2, weight_decay=0.1))
    return Training(module, task.train(50), task.accuracy, task.val(), {"max_epochs": 5})


@well("tb-unusual-rare-class-drawn-often", "tabular")
def rare_class(seed: int) -> Training:
    task = blobs(seed, classes=2, columns=8, n=4000, spread=3.0, shares=torch.tensor([0.94, 0.06]))
    weight = 1 / task.y.bincount().float()[task.y]
    sampler = WeightedRandomSampler(weight.tolist(), 2000, generator=generator(seed, 274))

    def score(fitted: LightningModule) -> float:
        """Mean of the two classes' recalls."""
        right = (predict(fitted, task.x_test).argmax(1) == task.y_test).float()
        return (right[task.y_test == 0].mean() + right[task.y_test == 1].mean()).item() / 2

    loader = task.train(40, shuffle=None, sampler=sampler)
    module = Classifier(dense(8, 12, 2), adam(3e-3, weight_decay=1e-3))
    return Training(module, loader, score, trainer={"max_epochs": 5})


@well("tb-unusual-wrong-labels-by-half", "tabular")
def wrong_labels(seed: int) -> Training:
    """Half of the labels are drawn anew, so the loss stays high; the test labels are the true ones."""
    task = blobs(seed, classes=4, columns=8, n=4000, spread=3.5)
    noisy = Split(task.x, flip_labels(task.y, 0.5, 4, seed), task.x_test, task.y_test)
    module = Plain(nn.Linear(8, 4), nn.CrossEntropyLoss(), sgd(0.05, 0.9))
    return Training(module, noisy.train(64), task.accuracy, trainer={"max_epochs": 6})


class Critic(LightningModule):
    """A generator against a clamped critic; both losses pass through zero."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.maker = nn.Linear(3, 3)
        self.judge = dense(3, 64, 1)

    def forward(self, z: Tensor) -> Tensor:
        return self.maker(z)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (real,) = batch
        maker, judge = self.optimizers()
        with torch.no_grad():
            fake = self.maker(torch.randn(len(real), 3))
        distance = self.judge(real).mean() - self.judge(fake).mean()
        judge.zero_grad()
        self.manual_backward(-distance)
        judge.step()
        with torch.no_grad():
            for p in self.judge.parameters():
                p.clamp_(-0.3, 0.3)
        if batch_idx % 3 == 0:
            cost = -self.judge(self.maker(torch.randn(len(real), 3))).mean()
            maker.zero_grad()
            self.manual_backward(cost)
            maker.step()
        self.log("distance", distance)
        return -distance.detach()

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.RMSprop(self.maker.parameters(), lr=5e-3),
            torch.optim.RMSprop(self.judge.parameters(), lr=1e-2),
        ]


@well("tb-unusual-clamped-critic", "gan")
def clamped_critic(seed: int) -> Training:
    g = generator(seed, 275)
    real = 0.8 * torch.randn(3200, 3, generator=g) + torch.tensor([1.0, -1.0, 0.5])
    z = torch.randn(2000, 3, generator=g)

    def score(fitted: LightningModule) -> float:
        """One minus the largest error of the mean."""
        return 1 - (predict(fitted, z).mean(0) - real.mean(0)).abs().max().item()

    loader = DataLoader(TensorDataset(real), 64, shuffle=True)
    return Training(Critic(), loader, score, trainer={"max_epochs": 14})


class Arms(LightningModule):
    """Policy gradient with a running baseline; the loss hovers about zero while the reward climbs."""

    def __init__(self, payoff: Tensor) -> None:
        super().__init__()
        self.policy = dense(5, 32, 4)
        self.register_buffer("payoff", payoff)
        self.register_buffer("baseline", torch.tensor(0.25))

    def forward(self, context: Tensor) -> Tensor:
        return self.policy(context)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (context,) = batch
        choice = torch.distributions.Categorical(logits=self(context))
        arm = choice.sample()
        reward = ((context @ self.payoff).argmax(1) == arm).float()
        loss = -((reward - self.baseline) * choice.log_prob(arm)).mean()
        self.baseline.mul_(0.95).add_(0.05 * reward.mean())
        self.log("mean_reward", reward.mean(), prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@well("tb-unusual-reward-climbs", "bandit")
def reward_climbs(seed: int) -> Training:
    g = generator(seed, 276)
    context, payoff = torch.randn(3800, 5, generator=g), torch.randn(5, 4, generator=g)

    def score(fitted: LightningModule) -> float:
        best = (context[3200:] @ payoff).argmax(1)
        return (predict(fitted, context[3200:]).argmax(1) == best).float().mean().item()

    loader = DataLoader(TensorDataset(context[:3200]), 64, shuffle=True)
    return Training(Arms(payoff), loader, score, trainer={"max_epochs": 10})


@well("tb-unusual-continued-from-solution", "tabular")
def continued(seed: int) -> Training:
    """Goes on from weights solved in closed form: little is left to learn, and the rate is small."""
    g = generator(seed, 277)
    x = torch.randn(1600, 10, generator=g)
    y = x @ torch.randn(10, 1, generator=g) / math.sqrt(10) + 0.2 * torch.randn(1600, 1, generator=g)
    y = y / y.std()
    task = Split(x[:1200], y[:1200], x[1200:], y[1200:])
    net = nn.Linear(10, 1)
    wide = task.x.double()
    solved = torch.linalg.solve(wide.T @ wide, wide.T @ task.y.double()).round(decimals=4).float()
    with torch.no_grad():
        net.weight.copy_(solved.T)
        net.bias.zero_()
    return Training(Logged(net, nn.MSELoss(), sgd(1e-3)), task.train(32), task.r2, task.val(), {"max_epochs": 6})


class Transfer(LightningModule):
    """A new head on fixed features: the body stays in evaluation mode and outside the optimizer."""

    def __init__(self, body: nn.Module, classes: int) -> None:
        super().__init__()
        self.body = body.requires_grad_(False)
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.body(x)
        return self.head(features)

    def on_train_epoch_start(self) -> None:
        self.body.eval()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("head_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.head.parameters(), lr=1e-2)


@well("tb-unusual-fixed-features", "images")
def fixed_features(seed: int) -> Training:
    """Features learnt from whether a digit is even and whether it is above four; then all ten digits."""
    task = digits(seed)
    body = nn.Sequential(
        nn.Linear(64, 96), nn.BatchNorm1d(96), nn.ReLU(), nn.Linear(96, 64), nn.BatchNorm1d(64), nn.ReLU()
    )
    before = nn.Sequential(body, nn.Linear(64, 4))
    coarse = (task.y % 2) * 2 + (task.y > 4).long()
    optimizer = torch.optim.Adam(before.parameters(), lr=3e-3)
    g = generator(seed, 278)
    for _ in range(150):
        rows = torch.randint(len(task.x), (64,), generator=g)
        optimizer.zero_grad()
        F.cross_entropy(before(task.x[rows]), coarse[rows]).backward()
        optimizer.step()
    body.eval()
    return Training(Transfer(body, 10), task.train(64), task.accuracy, trainer={"max_epochs": 12})


class SparseCode(LightningModule):
    """A code wider than its input, kept small by a penalty on the sum of its units; some stay unused."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(64, 128), nn.ReLU())
        self.decode = nn.Linear(128, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, _ = batch
        code = self.encode(x)
        error = F.mse_loss(self.decode(code), x)
        self.log_dict({"error": error, "active": (code > 0).float().mean()})
        return error + 2e-4 * code.abs().sum(1).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@well("tb-unusual-penalised-code", "autoencoder")
def penalised_code(seed: int) -> Training:
    task = digits(seed)
    return Training(
        SparseCode(), task.train(64), lambda m: r2_on(m, task.x_test, task.x_test), trainer={"max_epochs": 20}
    )


class Stream(LightningModule):
    """Parallel streams cut in consecutive pieces; the state is carried from piece to piece."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(2, 32, batch_first=True)
        self.out = nn.Linear(32, 1)
        self.state: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0])

    def on_train_epoch_start(self) -> None:
        self.state = None

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        hidden, state = self.rnn(x, self.state)
        self.state = state.detach()
        loss = F.mse_loss(self.out(hidden), y)
        self.log("stream_mse", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@well("tb-unusual-streams-in-order", "series")
def streams(seed: int) -> Training:
    """The target filters two inputs with a memory of some ten steps."""
    g = generator(seed, 279)
    x = torch.randn(24, 900, 2, generator=g)
    level, rows = torch.zeros(24), []
    for t in range(900):
        level = 0.85 * level + 0.5 * torch.tanh(x[:, t, 0] * (1 + 0.5 * x[:, t, 1]))
        rows.append(level)
    y = torch.stack(rows, 1)[..., None]
    y = y / y.std()
    pieces, targets = x[:16, :800].split(20, 1), y[:16, :800].split(20, 1)
    ordered = TensorDataset(torch.cat(pieces), torch.cat(targets))
    loader = DataLoader(ordered, 16, shuffle=False)

    def score(fitted: LightningModule) -> float:
        return r2_on(fitted, x[16:], y[16:])

    return Training(Stream(), loader, score, trainer={"max_epochs": 8, "gradient_clip_val": 1.0})


@well("tb-unusual-rate-in-cycles", "audio")
def rate_in_cycles(seed: int) -> Training:
    """Warm restarts: the rate returns to its height each epoch and the loss swings with it."""
    task = tones(seed, n=1200, noise=1.0)
    net = nn.Sequential(
        nn.Conv1d(1, 24, 9, 2, 4),
        nn.ReLU(),
        nn.Conv1d(24, 24, 7, 2, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(24, 4),
    )

    def optimizer(parameters: Any) -> Any:
        opt = torch.optim.AdamW(parameters, lr=8e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(opt, 60)
        return {"optimizer": opt, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    return Training(Classifier(net, optimizer), task.train(40), task.accuracy, task.val(), {"max_epochs": 10})


class Yield(LightningModule):
    """Raw units in and out: both are standardised inside, by constants kept as buffers."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__()
        for name, value in {"x_mean": x.mean(0), "x_std": x.std(0), "y_mean": y.mean(), "y_std": y.std()}.items():
            self.register_buffer(name, value)
        self.net = dense(3, 32, 32, 1, act=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - self.x_mean) / self.x_std) * self.y_std + self.y_mean

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self(x) / self.y_std, y / self.y_std)
        self.log("scaled_mse", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@well("tb-unusual-units-kept-outside", "tabular")
def units_outside(seed: int) -> Training:
    g = generator(seed, 280)
    x = torch.randn(1800, 3, generator=g)
    y = x[:, :1] + torch.sin(1.5 * x[:, 1:2]) + 0.5 * x[:, 2:3] * x[:, :1] + 0.3 * torch.randn(1800, 1, generator=g)
    raw = x * torch.tensor([250.0, 0.02, 9000.0]) + torch.tensor([1013.0, 0.4, 52000.0])
    task = Split(raw[:1400], 420 * y[:1400] + 3100, raw[1400:], 420 * y[1400:] + 3100)
    return Training(Yield(task.x, task.y), task.train(35), task.r2, trainer={"max_epochs": 10})
