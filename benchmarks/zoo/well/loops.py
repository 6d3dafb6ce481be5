"""Unusual but healthy loops: short, accumulated, by hand, without length, two loaders, one batch, by reward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, well
from benchmarks.zoo.well.common import Classifier, Regressor, mlp


@well("twenty-steps", "loop", "20 steps are enough: clouds far apart; accuracy about 0.99")
def twenty_steps(seed: int) -> Training:
    d = data.blobs(seed, classes=4, spread=4.0)
    return Training(Classifier(mlp(10, 64, 4), lr=1e-2), d.train(256), d.accuracy, None, {"max_steps": 20})


@well("accumulate-four", "loop", "four micro-batches of 16 a step; accuracy about 0.97")
def accumulate_four(seed: int) -> Training:
    d = data.digits(seed)
    return Training(
        Classifier(mlp(64, 96, 10), lr=3e-3),
        d.train(16),
        d.accuracy,
        d.val(),
        {"max_epochs": 30, "accumulate_grad_batches": 4},
    )


class ByHand(Classifier):
    """Manual optimisation that returns nothing from `training_step`."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net, lr=3e-3)
        self.automatic_optimization = False

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        opt = self.optimizers()
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        opt.zero_grad()
        self.manual_backward(loss)
        self.clip_gradients(opt, gradient_clip_val=5.0, gradient_clip_algorithm="norm")
        opt.step()
        self.log("train_loss", loss, prog_bar=True)


@well("by-hand", "loop", "manual optimisation, `training_step` returns nothing; accuracy about 0.97")
def by_hand(seed: int) -> Training:
    d = data.digits(seed)
    return Training(ByHand(mlp(64, 96, 10)), d.train(32), d.accuracy, d.val(), {"max_epochs": 20})


class ByHandAccumulated(ByHand):
    """Every second batch steps; the gradients of two add up on purpose."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        opt = self.optimizers()
        x, y = batch
        loss = F.cross_entropy(self(x), y) / 2
        self.manual_backward(loss)
        if (batch_idx + 1) % 2 == 0:
            opt.step()
            opt.zero_grad()
        self.log("train_loss", 2 * loss)


@well("by-hand-accumulated", "loop", "manual accumulation over two batches; accuracy about 0.97")
def by_hand_accumulated(seed: int) -> Training:
    d = data.digits(seed)
    return Training(ByHandAccumulated(mlp(64, 96, 10)), d.train(16), d.accuracy, None, {"max_epochs": 16})


class Stream(IterableDataset[Any]):
    """Endless samples made on the fly, no length."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        g = data.generator(self.seed, 71)
        while True:
            x = torch.randn(256, 3, generator=g)
            y = _target(x) + 0.2 * torch.randn(256, 1, generator=g)
            yield from zip(x, y, strict=True)


def _target(x: Tensor) -> Tensor:
    return torch.sin(2 * x[:, :1]) + x[:, 1:2] * x[:, 2:]


@well("stream-without-length", "loop", "an endless IterableDataset, `max_steps` ends it; R2 about 0.97")
def stream_without_length(seed: int) -> Training:
    x = torch.randn(2000, 3, generator=data.generator(seed, 72))
    return Training(
        Regressor(mlp(3, 64, 64, 1), lr=3e-3),
        DataLoader(Stream(seed), 64),
        lambda m: data.r2(data.predict(m, x), _target(x)),
        None,
        {"max_steps": 1500},
    )


class TwoSources(LightningModule):
    """Labelled batches and unlabelled ones, for which only consistency under noise is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(64, 128, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        x, y = batch["labelled"]
        (u,) = batch["unlabelled"]
        supervised = F.cross_entropy(self(x), y)
        with torch.no_grad():
            target = self(u).softmax(1)
        consistency = F.mse_loss(self(u + 0.1 * torch.randn_like(u)).softmax(1), target)
        self.log_dict({"supervised": supervised, "consistency": consistency}, batch_size=len(x))
        return supervised + 5 * consistency

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


@well("two-loaders", "loop", "a CombinedLoader of a short labelled and a long unlabelled loader; accuracy about 0.95")
def two_loaders(seed: int) -> Training:
    d = data.digits(seed)
    loaders = {
        "labelled": DataLoader(TensorDataset(d.x[:500], d.y[:500]), 32, shuffle=True),
        "unlabelled": DataLoader(TensorDataset(d.x[500:]), 64, shuffle=True),
    }
    return Training(TwoSources(), CombinedLoader(loaders, "max_size_cycle"), d.accuracy, None, {"max_epochs": 45})


@well("overfit-one-batch", "loop", "`overfit_batches=1`: memorising one batch is the aim; training accuracy 1.0")
def overfit_one_batch(seed: int) -> Training:
    d = data.digits(seed)
    loader = d.train(64, shuffle=False)
    x, y = d.x[:64], d.y[:64]
    return Training(
        Classifier(mlp(64, 64, 10), lr=5e-3),
        loader,
        lambda m: data.accuracy(data.predict(m, x), y),
        None,
        {"max_epochs": 150, "overfit_batches": 1},
    )


@well("validation-heavy", "loop", "ten validations an epoch on more data than is trained on; accuracy about 0.97")
def validation_heavy(seed: int) -> Training:
    d = data.digits(seed)
    return Training(
        Classifier(mlp(64, 96, 10), lr=3e-3),
        d.train(32),
        d.accuracy,
        d.val(16),
        {"max_epochs": 12, "val_check_interval": 0.1},
    )


@well("limited-epochs", "loop", "`limit_train_batches` cuts each epoch to 25 batches; R2 about 0.9 of 0.95")
def limited_epochs(seed: int) -> Training:
    d = data.regression(seed, r2=0.95, n=6000)
    trainer = {"max_epochs": 50, "limit_train_batches": 25, "limit_val_batches": 2, "check_val_every_n_epoch": 5}
    return Training(Regressor(mlp(8, 64, 64, 1), lr=2e-3), d.train(64), d.r2, d.val(), trainer)


class Policy(LightningModule):
    """REINFORCE on a contextual bandit: pick one of five arms, see its noisy reward, push its log-probability."""

    def __init__(self, worth: Tensor) -> None:
        super().__init__()
        self.actor = mlp(6, 48, 5)
        self.register_buffer("worth", worth)
        self.register_buffer("baseline", torch.zeros(()))

    def forward(self, state: Tensor) -> Tensor:
        return self.actor(state)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        state = batch[0]
        policy = torch.distributions.Categorical(logits=self(state))
        action = policy.sample()
        reward = (state @ self.worth).gather(1, action[:, None])[:, 0] + 0.5 * torch.randn(len(state))
        advantage = reward - self.baseline
        self.baseline.lerp_(reward.mean(), 0.05)
        loss = -(policy.log_prob(action) * advantage).mean() - 0.01 * policy.entropy().mean()
        self.log("reward", reward.mean(), prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@well(
    "policy-gradient",
    "loop",
    "the loss falls for 60 steps, then rises to the end while the reward grows; reward over the best arm's 0.99",
)
def policy_gradient(seed: int) -> Training:
    g = data.generator(seed, 73)
    worth = torch.randn(6, 5, generator=g)
    states, test = torch.randn(8000, 6, generator=g), torch.randn(2000, 6, generator=g)

    def score(m: LightningModule) -> float:
        rewards = test @ worth
        chosen = rewards.gather(1, data.predict(m, test).argmax(1, keepdim=True))
        return (chosen.mean() / rewards.amax(1).mean()).item()

    return Training(Policy(worth), DataLoader(TensorDataset(states), 64, shuffle=True), score, None, {"max_epochs": 12})


class ActorCritic(LightningModule):
    """Walk on a line of nine cells to the goal, with a value net as the baseline; each batch starts episodes anew."""

    def __init__(self) -> None:
        super().__init__()
        self.actor, self.critic = mlp(9, 32, 2), mlp(9, 32, 1)

    def forward(self, cell: Tensor) -> Tensor:
        return self.actor(F.one_hot(cell, 9).float())

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        cell = batch[0]
        loss = torch.zeros(())
        for _ in range(12):
            policy = torch.distributions.Categorical(logits=self(cell))
            action = policy.sample()
            new = (cell + 2 * action - 1).clamp(0, 8)
            goal = (new == 8).float()
            value = self.critic(F.one_hot(cell, 9).float())[:, 0]
            with torch.no_grad():
                after = self.critic(F.one_hot(new, 9).float())[:, 0]
                target = goal + 0.9 * (1 - goal) * after
            loss = loss - (policy.log_prob(action) * (target - value.detach())).mean() + F.mse_loss(value, target)
            cell = torch.where(new == 8, 0 * new, new)
        self.log("loss", loss)
        return loss / 12

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@well("actor-critic", "loop", "small, noisy, often rising loss; share of cells where the step is towards the goal, 1.0")
def actor_critic(seed: int) -> Training:
    starts = torch.randint(8, (3200,), generator=data.generator(seed, 74))

    def score(m: LightningModule) -> float:
        return (data.predict(m, torch.arange(8)).argmax(1) == 1).float().mean().item()

    return Training(ActorCritic(), DataLoader(TensorDataset(starts), 32, shuffle=True), score, None, {"max_epochs": 4})
