"""Sick trainings whose loss receives the wrong thing: probabilities for logits, or tensors of shapes that broadcast."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import generator, predict
from benchmarks.zoo.thirteenth.a_common import Records, batches, explained, f1, hit_rate, mlp


class GenreTagger(LightningModule):
    """Several genres a film, from its plot's word counts."""

    def __init__(self, end: nn.Module) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(40, 48), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Sequential(nn.Linear(48, 12), end)
        self.criterion = nn.BCEWithLogitsLoss()

    def forward(self, counts: Tensor) -> Tensor:
        return self.head(self.encoder(counts))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        counts, genres = batch
        loss = self.criterion(self(counts), genres)
        self.log("bce", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_bce", self.criterion(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def films(seed: int, end: nn.Module, threshold: float) -> Training:
    g = generator(seed, 140)
    n = 1600
    x = torch.randn(n, 40, generator=g)
    weight = torch.randn(40, 12, generator=g) / 40**0.5
    y = (x @ weight * 3 + 0.4 * torch.randn(n, 12, generator=g) > 2.6).float()
    cut = 1200

    def score(module: LightningModule) -> float:
        return f1(predict(module, x[cut:]) > threshold, y[cut:] > 0.5)

    return Training(
        GenreTagger(end),
        batches(x[:cut], y[:cut], size=32),
        score,
        val=batches(x[cut:], y[cut:], size=200, shuffle=False),
        trainer={"max_epochs": 8},
    )


@sick(
    "ga-genre-head-ends-in-sigmoid",
    "multi-label",
    "probabilities-as-logits",
    twin=lambda seed: films(seed, nn.Identity(), 0.0),
)
def genre_sigmoid(seed: int) -> Training:
    return films(seed, nn.Sigmoid(), 0.5)


class Pointer(LightningModule):
    """Points at the one candidate answer that fits the question."""

    def __init__(self, weights: bool) -> None:
        super().__init__()
        self.weights = weights
        self.question = nn.Linear(12, 24)
        self.candidate = nn.Linear(12, 24)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        q = self.question(batch["question"])[:, None]
        k = self.candidate(batch["candidates"])
        match = (q * k).sum(-1) / 24**0.5
        return match.softmax(-1) if self.weights else match

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        attention = self(batch)
        loss = F.cross_entropy(attention, batch["answer"])
        self.log("pointer_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.5)


def pointer(seed: int, weights: bool) -> Training:
    g = generator(seed, 141)
    n, k = 1600, 60
    question = torch.randn(n, 12, generator=g)
    answer = torch.randint(k, (n,), generator=g)
    candidates = torch.randn(n, k, 12, generator=g)
    turn = torch.linalg.qr(torch.randn(12, 12, generator=g)).Q
    candidates[torch.arange(n), answer] = question @ turn + 0.4 * torch.randn(n, 12, generator=g)
    cut = 1200
    train = Records(question=question[:cut], candidates=candidates[:cut], answer=answer[:cut])
    test = {"question": question[cut:], "candidates": candidates[cut:]}
    return Training(
        Pointer(weights), DataLoader(train, 24, shuffle=True), hit_rate(test, answer[cut:]), trainer={"max_epochs": 4}
    )


@sick(
    "ga-pointer-weights-to-cross-entropy",
    "attention",
    "probabilities-as-logits",
    twin=lambda seed: pointer(seed, False),
)
def pointer_weights(seed: int) -> Training:
    return pointer(seed, True)


class LoadForecast(LightningModule):
    """The next hours of a load curve by convolutions over the past ones."""

    def __init__(self, drop_channel: bool) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv1d(1, 16, 9), nn.ReLU(), nn.Conv1d(16, 16, 9), nn.ReLU(), nn.Conv1d(16, 1, 9))
        self.drop_channel = drop_channel

    def forward(self, past: Tensor) -> Tensor:
        ahead = self.net(past)
        return ahead.squeeze(1) if self.drop_channel else ahead

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        past, ahead = batch
        mae = (self(past) - ahead).abs().mean()
        self.log("mae", mae)
        return mae

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=3e-3)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]


def load_curves(seed: int, drop_channel: bool) -> Training:
    g = generator(seed, 142)
    n, horizon = 1200, 12
    time = torch.arange(36.0 + horizon)
    phase = 6.28 * torch.rand(n, 1, generator=g)
    strength = 0.5 + torch.rand(n, 1, generator=g)
    curve = strength * torch.sin(time * 6.2832 / 24 + phase) + 0.4 * torch.sin(time * 6.2832 / 12 + 2 * phase)
    curve = curve + 0.1 * torch.randn(n, len(time), generator=g)
    past, ahead = curve[:, None, :36], curve[:, 36:]
    return Training(
        LoadForecast(drop_channel),
        batches(past[:900], ahead[:900], size=20),
        explained(past[900:], ahead[900:]),
        trainer={"max_epochs": 7},
    )


@sick(
    "ga-channel-axis-kept-in-forecast", "time-series", "loss-shape-mismatch", twin=lambda seed: load_curves(seed, True)
)
def channel_kept(seed: int) -> Training:
    return load_curves(seed, False)


class ValueNet(LightningModule):
    """Values of the actions of a bandit with context, learnt from logged rewards by hand-driven steps."""

    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.q = mlp(6, 48, 4)
        self.flat = flat

    def forward(self, context: Tensor) -> Tensor:
        return self.q(context)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        optimizer = self.optimizers()
        taken = self(batch["context"]).gather(1, batch["action"][:, None])
        if self.flat:
            taken = taken.squeeze(1)
        td = taken - batch["reward"]
        loss = torch.where(td.abs() < 1, 0.5 * td**2, td.abs() - 0.5).mean()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.log("q_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def bandit(seed: int, flat: bool) -> Training:
    g = generator(seed, 143)
    n = 3000
    context = torch.randn(n, 6, generator=g)
    worth = torch.tanh(context @ torch.randn(6, 4, generator=g) * 0.8)
    action = torch.randint(4, (n,), generator=g)
    reward = worth[torch.arange(n), action] + 0.2 * torch.randn(n, generator=g)
    cut = 2400
    train = Records(context=context[:cut], action=action[:cut], reward=reward[:cut])

    def score(module: LightningModule) -> float:
        chosen = predict(module, context[cut:]).argmax(1)
        return worth[cut:][torch.arange(n - cut), chosen].mean().item()

    return Training(ValueNet(flat), DataLoader(train, 64, shuffle=True), score, trainer={"max_epochs": 8})


@sick("ga-gathered-value-against-reward", "bandit", "loss-shape-mismatch", twin=lambda seed: bandit(seed, True))
def gathered_value(seed: int) -> Training:
    return bandit(seed, False)
