"""Models trained in parts, in pairs or by unusual rules, that end well."""

from __future__ import annotations

import copy
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, well
from benchmarks.zoo.data import Split, predict
from benchmarks.zoo.unseen._common import (
    Fit,
    batches,
    dense,
    held_out,
    shapes,
)


class Ring(LightningModule):
    """A GAN for a ring of points: two optimizers, neither loss falls."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.critic = dense(4, 64, 64, 2), dense(2, 64, 64, 1, act=lambda: nn.LeakyReLU(0.2))

    def forward(self, z: Tensor) -> Tensor:
        return self.generator(z)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        (real,) = batch
        for_generator, for_critic = self.optimizers()  # type: ignore[misc,union-attr]
        fake = self(torch.randn(len(real), 4))
        critic_loss = F.softplus(-self.critic(real)).mean() + F.softplus(self.critic(fake.detach())).mean()
        for_critic.zero_grad()
        self.manual_backward(critic_loss)
        for_critic.step()
        generator_loss = F.softplus(-self.critic(fake)).mean()
        for_generator.zero_grad()
        self.manual_backward(generator_loss)
        for_generator.step()
        self.log_dict({"g_loss": generator_loss, "d_loss": critic_loss}, prog_bar=True)

    def configure_optimizers(self) -> Any:
        make = lambda net, lr: torch.optim.Adam(net.parameters(), lr=lr, betas=(0.0, 0.9))  # noqa: E731
        return [make(self.generator, 1e-3), make(self.critic, 3e-3)], []


@well("u-gan-of-a-ring", "gan", "minus the mean distance of generated points from the ring, 0.1 and better")
def gan(seed: int) -> Training:
    g = data.generator(seed, 81)
    angle = 6.2832 * torch.rand(1500, 1, generator=g)
    points = torch.cat([angle.cos(), angle.sin()], 1) + 0.03 * torch.randn(1500, 2, generator=g)
    train = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(points), 128, shuffle=True, drop_last=True)
    z = torch.randn(500, 4, generator=g)
    score = lambda m: -(predict(m, z).norm(dim=1) - 1).abs().mean().item()  # noqa: E731
    return Training(Ring(), train, score, trainer={"max_epochs": 55})


class Pretrained(LightningModule):
    """A frozen convolutional body in evaluation mode and a head that is trained."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body.requires_grad_(False).eval()
        self.head = nn.Linear(72, 4)

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        self.body.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.head.parameters(), lr=0.01)


def pretrain(net: nn.Module, x: Tensor, y: Tensor, steps: int = 120) -> nn.Module:
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for _ in range(steps):
        rows = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        F.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
    return net


@well("u-frozen-body", "cnn", "most parameters get no gradient on purpose; accuracy 0.97")
def frozen_body(seed: int) -> Training:
    source, d = shapes(seed + 100), shapes(seed)
    net: Any = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(72, 4),
    )
    body = pretrain(net, source.x, source.y)[:-1]  # type: ignore[index]
    return Training(Pretrained(body), batches(d.x, d.y), d.accuracy, held_out(d.x_test, d.y_test), {"max_epochs": 6})


class LowRank(nn.Module):
    """A frozen linear layer plus a product of two thin matrices, the second of which starts at zero."""

    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(rank, base.in_features) / rank)
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.a.T @ self.b.T


@well("u-low-rank-adapters", "mlp", "LoRA on a frozen net: one factor starts at zero, the other without gradient; 0.9")
def low_rank(seed: int) -> Training:
    d = data.digits(seed)
    base: Any = pretrain(dense(64, 64, 64, 10), d.x, d.y)
    flipped = d.map_targets(lambda y: 9 - y)
    net = nn.Sequential(LowRank(base[0]), nn.ReLU(), LowRank(base[2]), nn.ReLU(), LowRank(base[4], 8))
    chosen = lambda ps: torch.optim.AdamW([p for p in ps if p.requires_grad], 0.01)  # noqa: E731
    return Training(
        Fit(net, F.cross_entropy, chosen), flipped.train(32), flipped.accuracy, flipped.val(), {"max_epochs": 10}
    )


class Teacher(LightningModule):
    """A student follows labels on few rows and a slow copy of itself on many."""

    def __init__(self) -> None:
        super().__init__()
        self.student = dense(64, 64, 10)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.teacher(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        with torch.no_grad():
            soft = self.teacher(x).softmax(1)
        logits = self.student(x + 0.1 * torch.randn_like(x))
        loss = F.cross_entropy(logits, y) + 0.5 * F.mse_loss(logits.softmax(1), soft)
        self.log("train_loss", loss)
        return loss

    def on_train_batch_end(self, *args: Any) -> None:
        with torch.no_grad():
            for slow, fast in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                slow.lerp_(fast, 0.05)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.student.parameters(), lr=3e-3)


@well("u-slow-teacher", "mlp", "an exponential average of the weights is what is scored; accuracy 0.96")
def teacher(seed: int) -> Training:
    d = data.digits(seed)
    return Training(Teacher(), d.train(32), d.accuracy, trainer={"max_epochs": 10})


@well("u-sparse-embedding", "embedding", "SparseAdam: most rows have no gradient in any one step; accuracy 0.92")
def sparse_embedding(seed: int) -> Training:
    g = data.generator(seed, 82)
    kind = torch.randint(3, (400,), generator=g)
    x = torch.randint(400, (3000, 5), generator=g)
    y = F.one_hot(kind[x], 3).sum(1).argmax(1)
    d = data.split(x, y, seed)
    net = nn.EmbeddingBag(400, 3, mode="sum", sparse=True)
    module = Fit(net, F.cross_entropy, lambda p: torch.optim.SparseAdam(list(p), lr=0.05))
    return Training(module, d.train(64), d.accuracy, d.val(), {"max_epochs": 20})


@well("u-lbfgs", "linear", "LBFGS calls the closure twenty times a step; accuracy 0.97")
def lbfgs(seed: int) -> Training:
    d = data.table("wine", seed)
    module = Fit(nn.Linear(13, 3), F.cross_entropy, lambda p: torch.optim.LBFGS(p, lr=0.5, max_iter=10))
    return Training(module, batches(d.x, d.y, len(d.x)), d.accuracy, None, {"max_epochs": 20})


class Policy(LightningModule):
    """REINFORCE on a contextual bandit: the surrogate loss hovers about zero while the reward grows."""

    def __init__(self) -> None:
        super().__init__()
        self.net = dense(6, 32, 4)
        self.register_buffer("baseline", torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, best = batch
        policy = torch.distributions.Categorical(logits=self(x))
        action = policy.sample()
        reward = (action == best).float()
        loss = -((reward - self.baseline) * policy.log_prob(action)).mean() - 0.01 * policy.entropy().mean()
        self.baseline.lerp_(reward.mean(), 0.1)
        self.log_dict({"reward": reward.mean(), "surrogate": loss})
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)


@well("u-bandit-reinforce", "rl", "the loss says nothing, the reward does; share of best actions 0.95")
def bandit(seed: int) -> Training:
    d = data.blobs(seed, classes=4, columns=6, n=3000, spread=3.5)
    return Training(Policy(), d.train(64), d.accuracy, trainer={"max_epochs": 8})


class Contrast(LightningModule):
    """InfoNCE over the batch: each picture must find its own other view, so samples depend on each other on purpose."""

    def __init__(self) -> None:
        super().__init__()
        self.net = dense(64, 96, 24)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.net(x), dim=1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0]
        a, b = (self(x * (torch.rand_like(x) > 0.2) + 0.05 * torch.randn_like(x)) for _ in range(2))
        logits = a @ b.T / 0.2
        loss = F.cross_entropy(logits, torch.arange(len(x)))
        self.log("info_nce", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


@well("u-two-views", "contrastive", "the loss ends near 1; nearest neighbour accuracy 0.93")
def two_views(seed: int) -> Training:
    d = data.digits(seed)

    def nearest(m: Any) -> float:
        found = (predict(m, d.x_test) @ predict(m, d.x).T).argmax(1)
        return (d.y[found] == d.y_test).float().mean().item()

    return Training(Contrast(), d.train(64, drop_last=True), nearest, trainer={"max_epochs": 15})


class VAE(LightningModule):
    """A variational autoencoder; the loss is a sum over pixels and a divergence that is warmed up."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = dense(64, 96, 16), dense(8, 96, 64)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.decoder(self.encoder(x)[:, :8]))

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        x, _ = batch
        mean, log_variance = self.encoder(x).chunk(2, 1)
        z = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        bce = F.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="none").sum(1).mean()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
        self.log_dict({"bce": bce, "kl": kl})
        return {"loss": bce + min(1.0, self.global_step / 200) * kl}

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@well("u-vae-of-digits", "vae", "a loss near 22 that does not go to zero; R2 of the pictures 0.5 and more")
def vae(seed: int) -> Training:
    d = data.digits(seed)
    score = Split(d.x, d.x, d.x_test, d.x_test).r2
    return Training(VAE(), d.train(64), score, trainer={"max_epochs": 25})
