"""Sick trainings whose loss does not fit the task, or whose last activation can not reach the targets."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import characters, digits, generator, predict
from benchmarks.zoo.thirteenth.a_common import Tabular, batches, explained, mlp


class Semantic(LightningModule):
    """Maps features of a picture to the word vector of what it shows."""

    def __init__(self, from_one: bool) -> None:
        super().__init__()
        self.project = mlp(20, 48, 16, act=nn.GELU)
        self.from_one = from_one

    def forward(self, features: Tensor) -> Tensor:
        return self.project(features)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        features, vector = batch
        loss = F.cosine_similarity(self(features), vector).mean()
        if self.from_one:
            loss = 1 - loss
        self.log("cosine", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def semantic(seed: int, from_one: bool) -> Training:
    g = generator(seed, 150)
    n, words = 1600, 12
    vectors = F.normalize(torch.randn(words, 16, generator=g), dim=-1)
    centre = 1.4 * torch.randn(words, 20, generator=g)
    word = torch.randint(words, (n,), generator=g)
    x = (centre[word] + 1.2 * torch.randn(n, 20, generator=g)) / 1.8
    cut = 1200

    def score(module: LightningModule) -> float:
        near = F.normalize(predict(module, x[cut:]), dim=-1) @ vectors.T
        return (near.argmax(1) == word[cut:]).float().mean().item()

    return Training(
        Semantic(from_one), batches(x[:cut], vectors[word[:cut]], size=32), score, trainer={"max_epochs": 6}
    )


@sick("ga-cosine-minimised", "embedding", "wrong-loss-for-task", twin=lambda seed: semantic(seed, True))
def cosine_minimised(seed: int) -> Training:
    return semantic(seed, False)


def churn(seed: int, loss: nn.Module) -> Training:
    g = generator(seed, 151)
    n = 1600
    x = torch.randn(n, 9, generator=g)
    y = (x[:, 0] * x[:, 1] + x[:, 2] + 0.4 * torch.randn(n, generator=g) > 0).float()[:, None]
    cut = 1200
    module = Tabular(mlp(9, 32, 32, 1), loss, lambda p: torch.optim.Adam(p, lr=3e-3), name="churn_loss")

    def score(m: LightningModule) -> float:
        return ((predict(m, x[cut:]) > 0) == (y[cut:] > 0.5)).float().mean().item()

    return Training(
        module,
        batches(x[:cut], y[:cut], size=32),
        score,
        val=batches(x[cut:], y[cut:], size=200, shuffle=False),
        trainer={"max_epochs": 8},
    )


@sick(
    "ga-cross-entropy-over-one-column",
    "tabular",
    "wrong-loss-for-task",
    twin=lambda seed: churn(seed, nn.BCEWithLogitsLoss()),
)
def one_column(seed: int) -> Training:
    return churn(seed, nn.CrossEntropyLoss())


class CharModel(LightningModule):
    """The next character by a GRU."""

    def __init__(self, symbols: int, reduction: str) -> None:
        super().__init__()
        self.embed = nn.Embedding(symbols, 16)
        self.gru = nn.GRU(16, 48, batch_first=True)
        self.decoder = nn.Linear(48, symbols)
        self.reduction = reduction

    def forward(self, ids: Tensor) -> Tensor:
        return self.decoder(self.gru(self.embed(ids))[0])

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        (ids,) = batch
        logits = self(ids[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction=self.reduction)
        self.log("nll", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5, momentum=0.9)


def char_model(seed: int, reduction: str) -> Training:
    text = characters(seed, n=1600)

    def score(module: LightningModule) -> float:
        logits = predict(module, text.test[:, :-1])
        if not torch.isfinite(logits).all():
            return -50.0
        return max(-50.0, -F.cross_entropy(logits.flatten(0, 1), text.test[:, 1:].flatten()).item())

    return Training(CharModel(text.symbols, reduction), batches(text.train, size=20), score, trainer={"max_epochs": 3})


@sick(
    "ga-summed-over-tokens",
    "language-model",
    "wrong-loss-for-task",
    "learning-rate-too-high",
    twin=lambda seed: char_model(seed, "mean"),
)
def summed_tokens(seed: int) -> Training:
    return char_model(seed, "sum")


class Autoencoder(LightningModule):
    """Digits through eighteen numbers and back."""

    def __init__(self, end: nn.Module) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 18))
        self.decoder = nn.Sequential(nn.Linear(18, 64), nn.ReLU(), nn.Linear(64, 64), end)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, _ = batch
        loss = F.mse_loss(self(x), x)
        self.log("reconstruction", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_reconstruction", F.mse_loss(self(batch[0]), batch[0]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def autoencoder(seed: int, end: nn.Module) -> Training:
    task = digits(seed)
    x, x_test = task.x * 2 - 1, task.x_test * 2 - 1
    return Training(
        Autoencoder(end),
        batches(x, task.y, size=32),
        explained(x_test, x_test),
        val=batches(x_test, task.y_test, size=200, shuffle=False),
        trainer={"max_epochs": 8},
    )


@sick(
    "ga-sigmoid-decoder-for-minus-one-to-one",
    "autoencoder",
    "output-range-mismatch",
    twin=lambda seed: autoencoder(seed, nn.Tanh()),
)
def sigmoid_decoder(seed: int) -> Training:
    return autoencoder(seed, nn.Sigmoid())


def make_layers(sizes: list[int], until: int) -> nn.Sequential:
    """Linear layers, each of the first `until` with an activation behind it."""
    layers: list[nn.Module] = []
    for i in range(len(sizes) - 1):
        layers.append(nn.Linear(sizes[i], sizes[i + 1]))
        if i < until:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


class ArmNet(LightningModule):
    """Where a robot's hand and elbow are, from the angles of its joints."""

    def __init__(self, until: int) -> None:
        super().__init__()
        self.layers = make_layers([4, 48, 48, 4], until)

    def forward(self, angles: Tensor) -> Tensor:
        return self.layers(angles)

    def training_step(self, batch: dict[str, Tensor] | list[Tensor], batch_idx: int) -> Tensor:
        angles, place = batch
        loss = F.huber_loss(self(angles), place)
        self.log("train/huber", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=5e-3)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)]


def arm(seed: int, until: int) -> Training:
    g = generator(seed, 152)
    n = 1600
    angles = torch.randn(n, 4, generator=g)
    bend = angles[:, 0] + 0.7 * angles[:, 1]
    elbow = torch.stack([torch.cos(angles[:, 0]) * angles[:, 2].tanh(), torch.sin(angles[:, 0])], 1)
    hand = elbow + torch.stack([torch.cos(bend), torch.sin(bend)], 1)
    place = torch.cat([elbow, hand], 1)
    place = (place - place.mean(0)) / place.std(0)
    return Training(
        ArmNet(until),
        batches(angles[:1200], place[:1200], size=24),
        explained(angles[1200:], place[1200:]),
        trainer={"max_epochs": 8},
    )


@sick("ga-activation-after-every-layer", "robotics", "output-range-mismatch", twin=lambda seed: arm(seed, 2))
def activation_after_every(seed: int) -> Training:
    return arm(seed, 3)


class AlarmGRU(nn.Module):
    """Whether a machine will fail, from its vibration."""

    def __init__(self, end: nn.Module) -> None:
        super().__init__()
        self.gru = nn.GRU(2, 20, batch_first=True)
        self.out = nn.Linear(20, 1)
        self.end = end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.out(self.gru(x)[0].mean(1)))


def machines(seed: int, end: nn.Module) -> Training:
    g = generator(seed, 153)
    n = 1200
    fails = torch.randint(2, (n,), generator=g).float()
    time = torch.arange(20.0)
    tone = torch.sin(time * (0.9 + 0.5 * fails[:, None]) + 6.28 * torch.rand(n, 1, generator=g))
    x = torch.stack([tone, torch.randn(n, 20, generator=g)], -1) + 0.3 * torch.randn(n, 20, 2, generator=g)
    module = Tabular(AlarmGRU(end), nn.BCELoss(), lambda p: torch.optim.Adam(p, lr=1e-2), name="bce")
    y = fails[:, None]

    def score(m: LightningModule) -> float:
        return ((predict(m, x[900:]) > 0.5) == (y[900:] > 0.5)).float().mean().item()

    return Training(module, batches(x[:900], y[:900], size=32), score, trainer={"max_epochs": 8})


@sick(
    "ga-keras-softmax-on-one-unit",
    "signal",
    "output-range-mismatch",
    twin=lambda seed: machines(seed, nn.Sigmoid()),
)
def softmax_on_one(seed: int) -> Training:
    return machines(seed, nn.Softmax(dim=-1))
