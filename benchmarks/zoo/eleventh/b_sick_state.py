"""Sick trainings whose activations, modes or statistics are at fault."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import accuracy, blobs, digits, generator, motifs, predict, regression
from benchmarks.zoo.eleventh.b_common import Fit, by_accuracy, loader


class Regressor(LightningModule):
    def __init__(self, drop: Any) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 64), nn.Linear(64, 64), nn.Linear(64, 1)
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(F.relu(self.a(x)), self.training)
        x = self.drop(F.relu(self.b(x)), self.training)
        return self.c(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("train_mse", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_mse", F.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def functional_dropout(seed: int, drop: Any) -> Training:
    cut = regression(seed, r2=0.95, columns=6)
    return Training(Regressor(drop), cut.train(64), cut.r2, cut.val(), {"max_epochs": 12})


@sick(
    "eb-functional-dropout-always",
    "regression",
    "mode-mismatch",
    twin=lambda seed: functional_dropout(seed, lambda x, training: F.dropout(x, 0.3, training)),
)
def dropout_always(seed: int) -> Training:
    return functional_dropout(seed, lambda x, training: F.dropout(x, 0.3))


class Scans(LightningModule):
    """Small volumes, so large in life that only two fit the memory."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(216, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 24), nn.BatchNorm1d(24),
            nn.ReLU(), nn.Linear(24, 3),
        )  # fmt: skip

    def forward(self, volume: Tensor) -> Tensor:
        return self.net(volume)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def scans(seed: int, batch: int, accumulate: int) -> Training:
    g = generator(seed, 1160)
    y = torch.randint(3, (1400,), generator=g)
    x = torch.randn(1400, 1, 6, 6, 6, generator=g)
    for k in range(3):
        x[y == k, 0, 2 * k : 2 * k + 2, 1:5, 1:5] += 0.8
    return Training(
        Scans(),
        loader(x[:1000], y[:1000], batch=batch),
        by_accuracy(x[1000:], y[1000:]),
        trainer={"max_epochs": 6, "accumulate_grad_batches": accumulate},
    )


@sick("eb-volumes-two-at-a-time", "images", "batchnorm-small-batch", twin=lambda seed: scans(seed, 32, 1))
def volumes_two(seed: int) -> Training:
    return scans(seed, 2, 16)


class Keyword(LightningModule):
    def __init__(self, momentum: float) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for a, b in ((1, 16), (16, 24)):
            parts += [nn.Conv1d(a, b, 5, padding=2), nn.ReLU(), nn.BatchNorm1d(b, momentum=momentum), nn.MaxPool1d(2)]
        self.body = nn.Sequential(*parts)
        self.out = nn.Linear(24 * 8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(x.mT).flatten(1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        logits = self(batch[0])
        self.log("train/acc", accuracy(logits, batch[1]))
        return F.cross_entropy(logits, batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        logits = self(batch[0])
        self.log_dict({"val/acc": accuracy(logits, batch[1]), "val/ce": F.cross_entropy(logits, batch[1])})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def keywords(seed: int, momentum: float) -> Training:
    cut = motifs(seed)
    return Training(Keyword(momentum), cut.train(48), cut.accuracy, cut.val(), {"max_epochs": 8})


@sick("eb-keywords-tf-momentum", "audio", "batchnorm-stale-statistics", twin=lambda seed: keywords(seed, 0.1))
def keywords_momentum(seed: int) -> Training:
    return keywords(seed, 1e-3)


def positive_start(seed: int, start: Any) -> Training:
    """Classes from log-probabilities, all below zero, as another model gave them."""
    cut = blobs(seed, classes=5, columns=10, n=2000, spread=4.0)
    net = nn.Sequential(nn.LogSoftmax(1), nn.Linear(10, 48), nn.ReLU(), nn.Linear(48, 5))
    if start is not None:
        start(net[1].weight)
    module = Fit(net, F.cross_entropy, lambda p: torch.optim.SGD(p, lr=0.05))
    return Training(module, cut.train(40), cut.accuracy, trainer={"max_epochs": 8})


@sick(
    "eb-log-probabilities-positive-weights",
    "tabular",
    "dead-activations",
    "bad-initialization",
    twin=lambda seed: positive_start(seed, None),
)
def positive_weights(seed: int) -> Training:
    return positive_start(seed, lambda w: nn.init.uniform_(w, 0.0, 0.3))


class Hashing(LightningModule):
    """Codes of sixteen near-binary values; alike items get alike codes."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
        self.squash = nn.Tanh()
        self.beta = beta

    def forward(self, x: Tensor) -> Tensor:
        return self.squash(self.beta * self.encode(x))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        code = self(batch[0])
        alike = (batch[1][:, None] == batch[1]).float() * 2 - 1
        loss = F.mse_loss(code @ code.T / 16, alike * 0.6 + 0.4)
        self.log("pairs", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.3, momentum=0.9)


def hashing(seed: int, beta: float) -> Training:
    cut = digits(seed).standardised()

    def nearest(module: LightningModule) -> float:
        near = predict(module, cut.x_test) @ predict(module, cut.x).T
        return (cut.y[near.topk(15).indices].mode(1).values == cut.y_test).float().mean().item()

    return Training(Hashing(beta), cut.train(64), nearest, trainer={"max_epochs": 12})


@sick("eb-hashing-starts-binary", "metric", "saturated-activations", twin=lambda seed: hashing(seed, 1.0))
def hashing_binary(seed: int) -> Training:
    return hashing(seed, 60.0)


def tower(activation: type[nn.Module]) -> nn.Sequential:
    parts: list[nn.Module] = []
    for a, b in zip((64, 48, 48, 48, 48), (48, 48, 48, 48, 48), strict=True):
        parts += [nn.Linear(a, b), activation()]
    return nn.Sequential(*parts, nn.Linear(48, 10))


def tall(seed: int, activation: type[nn.Module]) -> Training:
    cut = digits(seed).standardised()
    module = Fit(tower(activation), F.cross_entropy, lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9))
    return Training(module, cut.train(32), cut.accuracy, trainer={"max_epochs": 10})


@sick("eb-tower-of-sigmoids", "images", "vanishing-gradients", twin=lambda seed: tall(seed, nn.ReLU))
def tower_sigmoid(seed: int) -> Training:
    return tall(seed, nn.Sigmoid)


class Distances(nn.Module):
    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, z: Tensor) -> Tensor:
        return ((z[:, None] - z[None]) ** 2).sum(-1).add(self.eps).sqrt()


class Metric(LightningModule):
    """Pulls alike rows together and pushes others beyond a margin."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 4))
        self.distances = Distances(eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        d = self.distances(self(x))
        same = y[:, None] == y
        loss = torch.where(same, d**2, F.relu(2.0 - d) ** 2).mean()
        self.log("contrastive", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def metric(seed: int, eps: float) -> Training:
    cut = blobs(seed, classes=5, columns=10, n=1200, spread=4.0)

    def nearest(module: LightningModule) -> float:
        near = torch.cdist(predict(module, cut.x_test), predict(module, cut.x)).argmin(1)
        return (cut.y[near] == cut.y_test).float().mean().item()

    return Training(Metric(eps), cut.train(40), nearest, trainer={"max_epochs": 8})


@sick("eb-distance-to-itself", "metric", "unstable-operation", twin=lambda seed: metric(seed, 1e-8))
def distance_itself(seed: int) -> Training:
    return metric(seed, 0.0)


class Topics(LightningModule):
    """The topic of a text from the mean of its words; batches are dicts."""

    def __init__(self, grad: Any) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 3)
        self.head = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 4))
        self.grad = grad

    def forward(self, ids: Tensor) -> Tensor:
        with self.grad():
            pooled = self.table(ids).mean(1)
        return self.head(pooled)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch["ids"]), batch["topic"])
        self.log("topic_ce", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(self.parameters(), lr=5e-3)


def topics(seed: int, grad: Any) -> Training:
    g = generator(seed, 1161)
    y = torch.randint(4, (1600,), generator=g)
    share = torch.ones(4, 40)
    for k in range(4):
        share[k, 10 * k : 10 * k + 10] = 5.0
    ids = torch.multinomial(share[y], 16, replacement=True, generator=g)
    data = [{"ids": ids[i], "topic": y[i]} for i in range(1200)]
    train = torch.utils.data.DataLoader(data, 30, shuffle=True)
    return Training(Topics(grad), train, by_accuracy(ids[1200:], y[1200:]), trainer={"max_epochs": 8})


@sick(
    "eb-topics-lookup-without-grad",
    "text",
    "parameters-not-optimized",
    twin=lambda seed: topics(seed, torch.enable_grad),
)
def topics_no_grad(seed: int) -> Training:
    return topics(seed, torch.no_grad)
