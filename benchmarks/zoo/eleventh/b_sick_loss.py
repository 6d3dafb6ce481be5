"""Sick trainings whose loss or output does not fit the task."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import digits, generator, predict, r2
from benchmarks.zoo.eleventh.b_common import loader, mlp


def cells(seed: int, n: int) -> tuple[Tensor, Tensor]:
    """Pictures of 16 by 16 with one or two discs on noise, and the mask of the discs."""
    g = generator(seed, 1120)
    grid = torch.arange(16.0)
    mask = torch.zeros(n, 16, 16, dtype=torch.bool)
    for _ in range(2):
        centre = 3 + 10 * torch.rand(n, 2, 1, 1, generator=g)
        radius = 1.5 + 1.5 * torch.rand(n, 1, 1, generator=g)
        mask |= (grid[:, None] - centre[:, 0]).square() + (grid - centre[:, 1]).square() < radius.square()
    image = 1.2 * mask + 0.8 * torch.randn(n, 16, 16, generator=g)
    return ((image - image.mean()) / image.std()).unsqueeze(1), mask.float().unsqueeze(1)


class Segmenter(LightningModule):
    def __init__(self, activation: nn.Module, criterion: nn.Module) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU())
        self.up = nn.Conv2d(12, 1, 3, padding=1)
        self.activation = activation
        self.criterion = criterion

    def forward(self, image: Tensor) -> Tensor:
        return self.activation(self.up(self.down(image)))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        image, mask = batch
        loss = self.criterion(self(image), mask)
        self.log("seg_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def segmentation(seed: int, criterion: nn.Module) -> Training:
    image, mask = cells(seed, 900)

    def dice(module: LightningModule) -> float:
        found = (predict(module, image[700:]) > 0.5).float()
        both = (found * mask[700:]).sum()
        return (2 * both / (found.sum() + mask[700:].sum())).item()

    module = Segmenter(nn.Sigmoid(), criterion)
    return Training(module, loader(image[:700], mask[:700], batch=16), dice, trainer={"max_epochs": 5})


@sick(
    "eb-mask-sigmoid-then-logits-loss",
    "segmentation",
    "probabilities-as-logits",
    twin=lambda seed: segmentation(seed, nn.BCELoss()),
)
def mask_sigmoid(seed: int) -> Training:
    return segmentation(seed, nn.BCEWithLogitsLoss())


class KerasDigits(LightningModule):
    """Ported layer by layer: Dense(64, relu), Dense(64, relu), Dense(10, ...)."""

    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.dense = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10), last)
        self.sparse_categorical_crossentropy = nn.CrossEntropyLoss()

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.sparse_categorical_crossentropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.sparse_categorical_crossentropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.3)


def keras_digits(seed: int, last: nn.Module) -> Training:
    cut = digits(seed).standardised()
    return Training(KerasDigits(last), cut.train(64), cut.accuracy, cut.val(), {"max_epochs": 9})


@sick(
    "eb-keras-digits-softmax",
    "images",
    "probabilities-as-logits",
    twin=lambda seed: keras_digits(seed, nn.Identity()),
)
def keras_softmax(seed: int) -> Training:
    return keras_digits(seed, nn.Softmax(dim=-1))


class SetRegressor(LightningModule):
    """A property of a set of atoms, each a row of five numbers."""

    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.phi = mlp(5, 32, 32, layers=1)
        self.rho = mlp(32, 32, 1, layers=1)
        self.flat = flat

    def forward(self, atoms: Tensor) -> Tensor:
        out = self.rho(self.phi(atoms).mean(1))
        return out.flatten() if self.flat else out

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        atoms, energy = batch
        diff = self(atoms) - energy
        loss = (diff**2).mean()
        self.log("mse", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def molecules(seed: int, flat: bool) -> Training:
    g = generator(seed, 1121)
    atoms = torch.randn(2000, 9, 5, generator=g)
    energy = (atoms[..., 0] * atoms[..., 1]).mean(1) + atoms[..., 2].tanh().mean(1)
    energy = (energy - energy.mean()) / energy.std()
    return Training(
        SetRegressor(flat),
        loader(atoms[:1500], energy[:1500], batch=50),
        lambda m: r2(predict(m, atoms[1500:]).flatten(), energy[1500:]),
        trainer={"max_epochs": 10},
    )


@sick("eb-set-energy-column-minus-row", "graph", "loss-shape-mismatch", twin=lambda seed: molecules(seed, True))
def energy_column(seed: int) -> Training:
    return molecules(seed, False)


class Policy(LightningModule):
    """Chooses one of five arms from the context; the log holds which arm was pulled and what it paid."""

    def __init__(self, objective: Any) -> None:
        super().__init__()
        self.arms = mlp(8, 32, 5)
        self.objective = objective

    def forward(self, context: Tensor) -> Tensor:
        return self.arms(context)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        context, payoff = batch
        dist = torch.distributions.Categorical(logits=self(context))
        arm = dist.sample()
        reward = payoff.gather(1, arm[:, None]).squeeze(1)
        loss = self.objective(dist, arm, reward - payoff.mean())
        self.log_dict({"reward": reward.mean(), "policy_loss": loss})
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def bandit(seed: int, objective: Any) -> Training:
    g = generator(seed, 1122)
    context = torch.randn(3000, 8, generator=g)
    payoff = torch.tanh(context @ torch.randn(8, 5, generator=g) / 2) + 0.1 * torch.randn(3000, 5, generator=g)

    def score(module: LightningModule) -> float:
        arm = predict(module, context[2400:]).argmax(1, keepdim=True)
        return payoff[2400:].gather(1, arm).mean().item()

    return Training(
        Policy(objective), loader(context[:2400], payoff[:2400], batch=64), score, trainer={"max_epochs": 8}
    )


def reinforce(dist: Any, arm: Tensor, advantage: Tensor) -> Tensor:
    return -(dist.log_prob(arm) * advantage).mean()


def weighted(dist: Any, arm: Tensor, advantage: Tensor) -> Tensor:
    return (dist.log_prob(arm) * advantage).mean()


@sick("eb-bandit-forgot-the-minus", "bandit", "wrong-loss-for-task", twin=lambda seed: bandit(seed, reinforce))
def bandit_minus(seed: int) -> Training:
    return bandit(seed, weighted)


class Spam(LightningModule):
    """Bag of tokens, one output."""

    def __init__(self, criterion: Any) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(120, 16)
        self.fc = nn.Linear(16, 1)
        self.criterion = criterion

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc(self.words(tokens))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        tokens, spam = batch
        loss = self.criterion(self(tokens), spam)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def spam(seed: int, criterion: Any) -> Training:
    g = generator(seed, 1123)
    y = torch.randint(2, (2000, 1), generator=g)
    weights = torch.ones(2, 120)
    weights[1, :15] = 4.0
    tokens = torch.stack([torch.multinomial(weights[int(k)], 20, replacement=True, generator=g) for k in y])

    def score(module: LightningModule) -> float:
        return ((predict(module, tokens[1500:]) > 0).long() == y[1500:]).float().mean().item()

    return Training(
        Spam(criterion), loader(tokens[:1500], y.float()[:1500], batch=32), score, trainer={"max_epochs": 6}
    )


@sick(
    "eb-spam-crossentropy-one-column",
    "text",
    "wrong-loss-for-task",
    twin=lambda seed: spam(seed, F.binary_cross_entropy_with_logits),
)
def spam_one_column(seed: int) -> Training:
    return spam(seed, F.cross_entropy)
