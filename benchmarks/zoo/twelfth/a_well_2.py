"""Healthy trainings that are unusual: noise floors, counts, rare classes, policies, adversaries, frozen layers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, WeightedRandomSampler

from benchmarks.zoo.case import Training, well
from benchmarks.zoo.data import accuracy, blobs, digits, flip_labels, generator, predict, r2, regression, table
from benchmarks.zoo.twelfth.a_common import Plain, adam, batches, epochs, mlp, ratings, sgd


@well("fa-labels-half-random", "tabular", note="half of the training labels are drawn anew; the test labels are clean")
def half_random(seed: int) -> Training:
    data = blobs(seed, classes=4, columns=12, n=3000, spread=3.5)
    loader = batches(data.x, flip_labels(data.y, 0.5, 4, seed), size=128)
    net = Plain(mlp(12, 24, 4), nn.CrossEntropyLoss(), adam(2e-3, 1e-2), log_as="xent")
    return Training(net, loader, data.accuracy, data.val(), epochs(8))


@well("fa-returns-r2-of-0.05", "tabular", note="the inputs explain a twentieth of the variance, and the model finds it")
def faint(seed: int) -> Training:
    data = regression(seed, r2=0.05, n=8000, columns=6)

    def score(module: LightningModule) -> float:
        return data.r2(module) / 0.05

    net = Plain(mlp(6, 16, 1, act=nn.Tanh), nn.MSELoss(), adam(2e-3, 1e-2))
    return Training(net, data.train(256), score, data.val(), epochs(8))


class Stars(LightningModule):
    """Ratings from 1 to 5 as numbers."""

    def __init__(self, mean: float) -> None:
        super().__init__()
        self.net = mlp(10, 32, 1)
        nn.init.constant_(self.net[-1].bias, mean)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(-1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, stars = batch
        loss = F.mse_loss(self(x), stars.float())
        self.log("mse", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 5e-3)


@well("fa-stars-as-numbers", "ordinal", note="integer labels with an order, so a squared error is right")
def stars(seed: int) -> Training:
    g = generator(seed, 70)
    x = torch.randn(2000, 10, generator=g)
    weight = torch.randn(10, generator=g)
    taste = x @ (weight / weight.norm()) + 0.4 * torch.randn(2000, generator=g)
    y = torch.bucketize(taste, torch.tensor([-1.4, -0.5, 0.4, 1.3])) + 1
    x, x_test, y, y_test = x[:1500], x[1500:], y[:1500], y[1500:]

    def score(module: LightningModule) -> float:
        return r2(predict(module, x_test), y_test.float())

    return Training(Stars(y.float().mean().item()), batches(x, y, size=64), score, trainer=epochs(10))


class FineTuned(LightningModule):
    """Layers fitted before, all of them tuned gently."""

    def __init__(self, body: nn.Module, frozen: int, rate: float) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(64, 10)
        self.rate = rate
        for layer in list(body.children())[:frozen]:
            layer.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = [
            {"params": [p for p in self.body.parameters() if p.requires_grad], "lr": self.rate},
            {"params": self.head.parameters(), "lr": 1e-2},
        ]
        return torch.optim.AdamW(groups, weight_decay=1e-3)


def fitted_body(seed: int) -> nn.Sequential:
    """Layers that already tell the digits apart, fitted on images turned by a quarter."""
    data = digits(seed).to_images()
    body = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, 64), nn.ReLU()),
    )
    head = nn.Linear(64, 10)
    optimizer = torch.optim.Adam([*body.parameters(), *head.parameters()], 3e-3)
    for start in range(0, 6 * 1280, 64):
        rows = slice(start % 1280, start % 1280 + 64)
        loss = F.cross_entropy(head(body(data.x[rows].rot90(1, (2, 3)))), data.y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return body


@well("fa-finetune-frozen-convs", "images", note="the convolutions are frozen on purpose; the rest has two rates")
def finetune(seed: int) -> Training:
    data = digits(seed).to_images()
    net = FineTuned(fitted_body(seed), 4, 1e-3)
    return Training(net, data.train(64), data.accuracy, data.val(), epochs(8))


@well("fa-tune-at-5e-5", "images", note="the model is nearly there from the start; a small rate is all it needs")
def gentle(seed: int) -> Training:
    data = digits(seed).to_images()
    body = fitted_body(seed)
    head = nn.Linear(64, 10)
    net = nn.Sequential(body, head)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for start in range(0, 25 * 1280, 64):
        rows = slice(start % 1280, start % 1280 + 64)
        loss = F.cross_entropy(net(data.x[rows]), data.y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Training(Plain(net, nn.CrossEntropyLoss(), adam(5e-5)), data.train(64), data.accuracy, trainer=epochs(6))


@well("fa-bag-of-words-sparse", "text", note="each column is zero in 97 of 100 rows")
def bag_of_words(seed: int) -> Training:
    g = generator(seed, 71)
    share = (2.5 * torch.randn(5, 300, generator=g)).softmax(1)
    y = torch.randint(5, (2000,), generator=g)
    words = torch.multinomial(share[y], 10, replacement=True, generator=g)
    x = torch.zeros(2000, 300).scatter_(1, words, 1.0)
    x, x_test, y, y_test = x[:1500], x[1500:], y[:1500], y[1500:]

    def score(module: LightningModule) -> float:
        return accuracy(predict(module, x_test), y_test)

    net = Plain(mlp(300, 32, 5), nn.CrossEntropyLoss(), adam(2e-3, 1e-2), log_as="nll")
    return Training(net, batches(x, y, size=32), score, batches(x_test, y_test, size=100, shuffle=False), epochs(5))


class ClaimCounts(LightningModule):
    """A log-linear model of counts with the time at risk as an offset."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 1)
        nn.init.zeros_(self.linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).squeeze(-1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        log_rate = self(batch["x"]) + batch["exposure"].log()
        loss = F.poisson_nll_loss(log_rate, batch["claims"], log_input=True)
        self.log("poisson_nll", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 2e-2)


@well("fa-claims-poisson-glm", "counts", note="most counts are zero, the loss is that of Poisson's law")
def claims(seed: int) -> Training:
    g = generator(seed, 72)
    x = torch.randn(3000, 5, generator=g)
    weight = torch.tensor([0.5, -0.4, 0.3, 0.0, 0.2])
    exposure = 0.2 + 0.8 * torch.rand(3000, generator=g)
    log_rate = x @ weight - 0.7
    count = torch.poisson(exposure * log_rate.exp(), generator=g)
    rows = [{"x": a, "exposure": b, "claims": c} for a, b, c in zip(x[:2500], exposure, count, strict=False)]

    def score(module: LightningModule) -> float:
        return r2(predict(module, x[2500:]), log_rate[2500:])

    loader = DataLoader(rows, 64, shuffle=True)  # type: ignore[arg-type]
    return Training(ClaimCounts(), loader, score, trainer=epochs(8))


class RingGan(LightningModule):
    """Two optimizers by hand; neither loss is meant to fall."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.gen = mlp(4, 64, 64, 2)
        self.critic = mlp(2, 64, 64, 1, act=lambda: nn.LeakyReLU(0.2))

    def forward(self, z: Tensor) -> Tensor:
        return self.gen(z)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        (real,) = batch
        opt_g, opt_d = self.optimizers()  # type: ignore[misc]
        fake = self(torch.randn(len(real), 4))
        real = real.requires_grad_()
        logits = self.critic(real)
        loss_d = F.softplus(-logits).mean() + F.softplus(self.critic(fake.detach())).mean()
        (slope,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
        opt_d.zero_grad()
        self.manual_backward(loss_d + 0.5 * slope.square().sum(1).mean())
        opt_d.step()
        loss_g = F.softplus(-self.critic(fake)).mean()
        opt_g.zero_grad()
        self.manual_backward(loss_g)
        opt_g.step()
        self.log_dict({"d_loss": loss_d, "g_loss": loss_g})

    def configure_optimizers(self) -> Any:
        gen = torch.optim.Adam(self.gen.parameters(), 1e-3, betas=(0.5, 0.9))
        return [gen, torch.optim.Adam(self.critic.parameters(), 1e-3, betas=(0.5, 0.9))], []


@well("fa-ring-gan", "gan", note="both losses stay near their balance; the score is how near the ring the samples are")
def ring_gan(seed: int) -> Training:
    angle = 2 * math.pi * torch.rand(3000, generator=generator(seed, 73))
    real = torch.stack([angle.cos(), angle.sin()], 1) + 0.05 * torch.randn(3000, 2, generator=generator(seed, 74))

    def score(module: LightningModule) -> float:
        made = predict(module, torch.randn(2000, 4, generator=generator(seed, 75)))
        off = (made.norm(dim=1) - 1).abs().mean().item()
        uneven = made.mean(0).norm().item()
        return 1 - off - uneven

    return Training(RingGan(), batches(real, size=128, drop_last=True), score, trainer=epochs(32))


class DigitVae(LightningModule):
    def __init__(self, steps: int) -> None:
        super().__init__()
        self.encoder = mlp(64, 96, 16)
        self.decoder = mlp(8, 96, 64)
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.decoder(self.encoder(x).chunk(2, 1)[0]))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0]
        mean, log_var = self.encoder(x).chunk(2, 1)
        z = mean + torch.randn_like(mean) * (0.5 * log_var).exp()
        reconstruction = F.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="none").sum(1).mean()
        kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(1).mean()
        beta = min(1.0, self.global_step / self.steps)
        self.log_dict({"rec": reconstruction, "kl": kl, "beta": beta})
        return reconstruction + beta * kl

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 3e-3)


@well("fa-vae-kl-anneal", "vae", note="the weight of the divergence grows, so the sum stays high")
def vae(seed: int) -> Training:
    data = digits(seed)

    def score(module: LightningModule) -> float:
        return r2(predict(module, data.x_test), data.x_test)

    return Training(DigitVae(200), data.train(64), score, trainer=epochs(16))


class Policy(LightningModule):
    """A contextual bandit: draws an arm, sees its reward, and follows the score-function gradient."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.net = mlp(6, 32, 4)
        self.value = nn.Linear(6, 1)
        self.best = torch.randn(6, 4, generator=generator(seed, 76))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (context,) = batch
        law = torch.distributions.Categorical(logits=self(context))
        arm = law.sample()
        reward = (arm == (context @ self.best).argmax(1)).float() + 0.1 * torch.randn(len(arm))
        baseline = self.value(context).squeeze(1)
        advantage = reward - baseline.detach()
        policy = -(law.log_prob(arm) * advantage).mean()
        self.log("reward", reward.mean())
        return policy + 0.5 * F.mse_loss(baseline, reward) - 0.01 * law.entropy().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 5e-3)


@well("fa-bandit-policy", "bandit", note="the loss says nothing about progress; the reward does")
def bandit(seed: int) -> Training:
    context = torch.randn(6000, 6, generator=generator(seed, 77))
    test = torch.randn(1500, 6, generator=generator(seed, 78))

    def score(module: LightningModule) -> float:
        return accuracy(predict(module, test), (test @ module.best).argmax(1))  # type: ignore[operator]

    return Training(Policy(seed), batches(context, size=64), score, trainer=epochs(6))


def rare(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    data = blobs(seed, classes=2, columns=8, n=4000, spread=2.5, shares=torch.tensor([0.96, 0.04]))
    return data.x, data.y.float(), data.x_test, data.y_test


def balanced(seed: int, module: LightningModule) -> float:
    _, _, x, y = rare(seed)
    found = predict(module, x).squeeze(-1) > 0
    return 0.5 * (found[y == 1].float().mean() + (~found[y == 0]).float().mean()).item()


class Fraud(LightningModule):
    def __init__(self, weight: float) -> None:
        super().__init__()
        self.net = mlp(8, 24, 1)
        self.register_buffer("weight", torch.tensor(weight))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(-1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.binary_cross_entropy_with_logits(self(batch[0]), batch[1], pos_weight=self.weight)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits = self(batch[0])
        self.log("val_loss", F.binary_cross_entropy_with_logits(logits, batch[1].float(), pos_weight=self.weight))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 3e-3)


@well("fa-fraud-pos-weight", "tabular", note="one row in 25 is positive, and the loss is weighted for it")
def fraud(seed: int) -> Training:
    x, y, x_test, y_test = rare(seed)
    val = batches(x_test, y_test, size=500, shuffle=False)
    return Training(Fraud(24.0), batches(x, y, size=128), lambda m: balanced(seed, m), val, epochs(8))


@well("fa-fraud-resampled", "tabular", note="one row in 25 is positive, and the sampler draws as many of both")
def resampled(seed: int) -> Training:
    x, y, _, _ = rare(seed)
    weights = torch.where(y == 1, (y == 0).sum() / (y == 1).sum(), torch.tensor(1.0))
    sampler = WeightedRandomSampler(weights.tolist(), 3000, generator=generator(seed, 79))
    loader = batches(x, y, size=100, shuffle=False, sampler=sampler)
    return Training(Fraud(1.0), loader, lambda m: balanced(seed, m), trainer=epochs(6))


class Factors(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(80, 4), nn.Embedding(60, 4)
        for table_ in (self.user, self.item):
            nn.init.normal_(table_.weight, std=0.3)
        self.user_bias, self.item_bias = nn.Embedding(80, 1), nn.Embedding(60, 1)

    def forward(self, pairs: Tensor) -> Tensor:
        user, item = pairs.unbind(1)
        offset = self.user_bias(user) + self.item_bias(item)
        return (self.user(user) * self.item(item)).sum(1) + offset.squeeze(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        pairs, rating = batch
        loss = (self(pairs) - rating).square().mean()
        self.log("rmse", loss.sqrt(), on_epoch=True, on_step=False)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 2e-2, weight_decay=1e-5)


@well("fa-factorise-ratings", "recommender", note="a row of a table gets a gradient only when its user is drawn")
def factorise(seed: int) -> Training:
    pairs, y, pairs_test, y_test = ratings(seed)
    loader = batches(pairs, y, size=64)
    return Training(Factors(), loader, lambda m: r2(predict(m, pairs_test), y_test), trainer=epochs(10))


class Growing(LightningModule):
    """Copies a sequence in reverse; the sequences grow longer as training goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 24)
        self.rnn = nn.GRU(24, 48, batch_first=True, bidirectional=True)
        self.out = nn.Linear(96, 8)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.rnn(self.embed(ids))[0])

    def training_step(self, ids: Tensor, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(ids).transpose(1, 2), ids.flip(1))
        self.log("len", float(ids.shape[1]))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


class Stages(torch.utils.data.IterableDataset[Tensor]):
    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __iter__(self) -> Iterator[Tensor]:
        g = generator(self.seed, 80)
        for length, rounds in ((3, 60), (4, 80), (5, 120), (6, 240)):
            for _ in range(rounds):
                yield torch.randint(8, (64, length), generator=g)


@well("fa-curriculum-lengths", "sequences", note="the loss leaps each time that the task grows harder")
def curriculum(seed: int) -> Training:
    test = torch.randint(8, (400, 6), generator=generator(seed, 81))

    def score(module: LightningModule) -> float:
        return (predict(module, test).argmax(-1) == test.flip(1)).float().mean().item()

    return Training(Growing(), DataLoader(Stages(seed), batch_size=None), score, trainer=epochs(1))


@well("fa-iris-full-batch", "tabular", note="110 rows in one batch, no noise in the gradient")
def iris(seed: int) -> Training:
    data = table("iris", seed)
    net = Plain(mlp(4, 12, 3, act=nn.Tanh), nn.CrossEntropyLoss(), sgd(0.3))
    return Training(net, data.train(200), data.accuracy, trainer=epochs(120))
