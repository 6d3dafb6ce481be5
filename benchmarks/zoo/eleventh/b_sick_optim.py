"""Sick trainings whose optimizer is at fault: its rate, its schedule, what it holds, what is cleared and clipped."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import generator, predict, r2, regression
from benchmarks.zoo.eleventh.b_common import Fit, by_accuracy, by_r2, loader, mlp


class Tagger(LightningModule):
    """A small transformer that says in which order three words stand in a sentence."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.lr = lr
        self.emb, self.pos = nn.Embedding(30, 24), nn.Parameter(0.1 * torch.randn(12, 24))
        layer = nn.TransformerEncoderLayer(24, 4, 48, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)
        self.out = nn.Linear(24, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.encoder(self.emb(ids) + self.pos).mean(1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_ce", loss, on_epoch=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


def sentences(seed: int, lr: float) -> Training:
    g = generator(seed, 1140)
    y = torch.randint(3, (1600,), generator=g)
    ids = torch.randint(6, 30, (1600, 12), generator=g)
    place = torch.rand(1600, 12, generator=g).argsort(1)[:, :3].sort(1).values
    ids.scatter_(1, place, torch.tensor([[0, 1, 2], [1, 2, 0], [2, 0, 1]])[y])
    return Training(
        Tagger(lr), loader(ids[:1200], y[:1200], batch=32), by_accuracy(ids[1200:], y[1200:]), trainer={"max_epochs": 6}
    )


@sick("eb-tagger-adamw-tenth", "text", "learning-rate-too-high", twin=lambda seed: sentences(seed, 3e-3))
def tagger_tenth(seed: int) -> Training:
    return sentences(seed, 0.1)


class TwoTasks(LightningModule):
    """A class and a number from one trunk; batches are nested."""

    def __init__(self, **adagrad: float) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(10, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU())
        self.kind, self.amount = nn.Linear(48, 3), nn.Linear(48, 1)
        self.adagrad = adagrad

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x)
        return self.kind(h), self.amount(h).squeeze(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, (kind, amount) = batch
        logits, guess = self(x)
        a, b = F.cross_entropy(logits, kind), F.mse_loss(guess, amount)
        self.log_dict({"kind": a, "amount": b})
        return a + b

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adagrad(self.parameters(), **self.adagrad)


def two_tasks(seed: int, **adagrad: float) -> Training:
    g = generator(seed, 1141)
    x = torch.randn(2400, 10, generator=g)
    kind = (x @ torch.randn(10, 3, generator=g) + 0.3 * torch.randn(2400, 3, generator=g)).argmax(1)
    amount = torch.tanh(x[:, 0] + x[:, 1]) * 1.2 + 0.6 * x[:, 2]
    rows = [(x[i], (kind[i], amount[i])) for i in range(2000)]

    def score(module: LightningModule) -> float:
        logits, guess = predict(module, x[2000:])
        return 0.5 * (logits.argmax(1) == kind[2000:]).float().mean().item() + 0.5 * r2(guess, amount[2000:])

    train = torch.utils.data.DataLoader(rows, 50, shuffle=True)
    return Training(TwoTasks(**adagrad), train, score, trainer={"max_epochs": 7})


@sick("eb-adagrad-keras-default", "multi-task", "learning-rate-too-low", twin=lambda seed: two_tasks(seed, lr=0.03))
def adagrad_default(seed: int) -> Training:
    return two_tasks(seed, lr=1e-3)


class Vae(LightningModule):
    def __init__(self, every: str) -> None:
        super().__init__()
        self.enc, self.dec = mlp(16, 48, 8, layers=1), mlp(4, 48, 16, layers=1)
        self.every = every

    def forward(self, x: Tensor) -> Tensor:
        return self.dec(self.enc(x)[:, :4])

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        mean, log_var = self.enc(batch[0]).chunk(2, 1)
        z = mean + torch.randn_like(mean) * (0.5 * log_var).exp()
        recon = F.mse_loss(self.dec(z), batch[0], reduction="none").sum(1).mean()
        kl = -0.5 * (1 + log_var - mean**2 - log_var.exp()).sum(1).mean()
        self.log_dict({"recon": recon, "kl": kl})
        return recon + 0.1 * kl

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=4e-3)
        decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.85)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": decay, "interval": self.every}}


def vae(seed: int, every: str) -> Training:
    g = generator(seed, 1142)
    factors = torch.randn(2000, 3, generator=g)
    x = torch.tanh(factors @ torch.randn(3, 16, generator=g)) + 0.1 * torch.randn(2000, 16, generator=g)
    x = (x - x.mean(0)) / x.std(0)
    return Training(Vae(every), loader(x[:1600], batch=40), by_r2(x[1600:], x[1600:]), trainer={"max_epochs": 8})


@sick("eb-vae-decay-every-step", "vae", "learning-rate-decayed-early", twin=lambda seed: vae(seed, "epoch"))
def vae_every_step(seed: int) -> Training:
    return vae(seed, "step")


class Residuals(LightningModule):
    def __init__(self, hold: Any) -> None:
        super().__init__()
        self.first = nn.Linear(8, 24)
        self.blocks = hold([nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 24)) for _ in range(3)])
        self.last = nn.Linear(24, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for block in self.blocks:
            h = h + block(h)
        return self.last(h)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("mse", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def residuals(seed: int, hold: Any) -> Training:
    cut = regression(seed, r2=0.95)
    return Training(Residuals(hold), cut.train(50), cut.r2, trainer={"max_epochs": 8})


@sick(
    "eb-blocks-in-a-plain-list",
    "regression",
    "parameters-not-optimized",
    twin=lambda seed: residuals(seed, nn.ModuleList),
)
def blocks_list(seed: int) -> Training:
    return residuals(seed, list)


class EncoderHead(LightningModule):
    """Manual optimisation: one optimizer for the encoder and one for the head."""

    def __init__(self, clear: str) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.encoder = nn.Sequential(nn.Linear(6, 48), nn.Tanh(), nn.Linear(48, 16), nn.Tanh())
        self.head = nn.Linear(16, 4)
        self.clear = clear

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        first, second = self.optimizers()
        loss = F.cross_entropy(self(batch[0]), batch[1])
        second.zero_grad()
        if self.clear == "both":
            first.zero_grad()
        self.manual_backward(loss)
        if self.clear == "late":
            first.zero_grad()
            second.zero_grad()
        first.step()
        second.step()
        self.log("loss", loss)

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.SGD(self.encoder.parameters(), lr=0.1, momentum=0.9),
            torch.optim.SGD(self.head.parameters(), lr=0.1, momentum=0.9),
        ]


def rings(seed: int, clear: str) -> Training:
    g = generator(seed, 1143)
    x = torch.randn(2400, 6, generator=g)
    y = 2 * (x[:, 0] * x[:, 1] > 0).long() + (x[:, 2] + x[:, 3] > 0).long()
    return Training(
        EncoderHead(clear),
        loader(x[:2000], y[:2000], batch=40),
        by_accuracy(x[2000:], y[2000:]),
        trainer={"max_epochs": 8},
    )


@sick("eb-encoder-gradients-carried", "manual", "gradients-not-cleared", twin=lambda seed: rings(seed, "both"))
def encoder_carried(seed: int) -> Training:
    return rings(seed, "head")


def spectra(seed: int, **trainer: Any) -> Training:
    """The width of a peak from forty channels."""
    g = generator(seed, 1144)
    channel = torch.linspace(-2, 2, 40)
    width = 0.2 + 0.8 * torch.rand(2200, 1, generator=g)
    centre = 0.6 * torch.randn(2200, 1, generator=g)
    x = torch.exp(-((channel - centre) / width).square()) + 0.05 * torch.randn(2200, 40, generator=g)
    x, y = (x - x.mean()) / x.std(), (width - 0.6) / 0.23
    module = Fit(mlp(40, 48, 1), nn.L1Loss(), lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9))
    return Training(
        module, loader(x[:1800], y[:1800], batch=36), by_r2(x[1800:], y[1800:]), trainer={"max_epochs": 8, **trainer}
    )


@sick(
    "eb-clip-by-value-1e-4",
    "regression",
    "clipping-too-tight",
    twin=lambda seed: spectra(seed, gradient_clip_val=1.0, gradient_clip_algorithm="value"),
)
def clip_by_value(seed: int) -> Training:
    return spectra(seed, gradient_clip_val=1e-4, gradient_clip_algorithm="value")


def dropped(seed: int, keep: float) -> Training:
    """A regression by a network with dropout between its layers, ported from a graph with `keep_prob`."""
    cut = regression(seed, r2=0.9, columns=6)
    net = nn.Sequential(
        nn.Linear(6, 64), nn.ReLU(), nn.Dropout(keep), nn.Linear(64, 64), nn.ReLU(), nn.Dropout(keep), nn.Linear(64, 1)
    )
    module = Fit(net, nn.MSELoss(), lambda p: torch.optim.Adam(p, lr=3e-3))
    return Training(module, cut.train(64), cut.r2, trainer={"max_epochs": 10})


@sick("eb-dropout-is-not-keep-prob", "regression", "excess-regularization", twin=lambda seed: dropped(seed, 0.05))
def keep_prob(seed: int) -> Training:
    return dropped(seed, 0.95)


class GraphNet(LightningModule):
    """Two rounds of messages over a dense adjacency; the whole graph is one sample."""

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 32), nn.Linear(32, 32), nn.Linear(32, 3)
        self.decay = decay

    def forward(self, graph: dict[str, Tensor]) -> Tensor:
        h = F.relu(graph["adj"] @ self.a(graph["x"]))
        return self.out(F.relu(graph["adj"] @ self.b(h)).mean(1))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch), batch["y"])
        self.log("graph/loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3, weight_decay=self.decay)


def graphs(seed: int, decay: float) -> Training:
    g = generator(seed, 1145)
    y = torch.randint(3, (1400,), generator=g)
    edge = torch.rand(1400, 10, 10, generator=g) < (0.15 + 0.2 * y)[:, None, None]
    adj = ((edge | edge.mT).float() + torch.eye(10)) / 5
    x = torch.cat([torch.ones(1400, 10, 1), 0.5 * torch.randn(1400, 10, 5, generator=g)], 2)
    data = [{"adj": adj[i], "x": x[i], "y": y[i]} for i in range(1100)]
    test = {"adj": adj[1100:], "x": x[1100:]}
    train = torch.utils.data.DataLoader(data, 32, shuffle=True)
    return Training(GraphNet(decay), train, by_accuracy(test, y[1100:]), trainer={"max_epochs": 8})


@sick("eb-graphs-decay-in-adam", "graph", "excess-regularization", twin=lambda seed: graphs(seed, 1e-5))
def graphs_decay(seed: int) -> Training:
    return graphs(seed, 0.5)


def constant_start(seed: int, start: Any) -> Training:
    g = generator(seed, 1146)
    angle, radius = 2 * math.pi * torch.rand(2000, generator=g), torch.rand(2000, generator=g) * 2
    x = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    y = ((radius * 2).long() + (angle > math.pi).long()) % 3
    net = mlp(2, 40, 3)
    if start is not None:
        for layer in net:
            if isinstance(layer, nn.Linear):
                start(layer.weight)
                nn.init.zeros_(layer.bias)
    module = Fit(net, F.cross_entropy, lambda p: torch.optim.Adam(p, lr=1e-2))
    return Training(
        module, loader(x[:1500], y[:1500], batch=50), by_accuracy(x[1500:], y[1500:]), trainer={"max_epochs": 14}
    )


@sick("eb-spiral-all-weights-a-tenth", "tabular", "bad-initialization", twin=lambda seed: constant_start(seed, None))
def weights_tenth(seed: int) -> Training:
    return constant_start(seed, lambda w: nn.init.constant_(w, 0.1))
