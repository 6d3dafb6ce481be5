"""Signals that die on their way: vanishing, dead, saturated, badly initialised, or too little to compute with."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.unseen._common import (
    Fit,
    Recurrent,
    adam,
    batches,
    conv_net,
    dense,
    factors,
    friedman,
    held_out,
    keyword,
    sgd,
    shapes,
)

# --- vanishing --------------------------------------------------------------------------------------------------------


@sick("u-nine-sigmoids", "mlp", "vanishing-gradients", twin=lambda s: deep_sigmoid(s, nn.SiLU))
def deep_sigmoid(seed: int, act: Any = nn.Sigmoid) -> Training:
    d = data.digits(seed)
    net = dense(64, *[40] * 9, 10, act=act)
    if act is not nn.Sigmoid:
        for layer in net:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return Training(
        Fit(net, F.cross_entropy, adam(2e-3)), d.train(32), d.accuracy, held_out(d.x_test, d.y_test), {"max_epochs": 8}
    )


class Deep(nn.Module):
    """Tanh blocks over pictures, with or without a way around each."""

    def __init__(self, skip: bool, depth: int = 14, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1) for _ in range(depth)])
        self.head = nn.Linear(width * 36, 4)
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            y = torch.tanh(block(x))
            x = x + y if self.skip else y
        return self.head(x.flatten(1))


@sick("u-tanh-convs-without-skips", "cnn", "vanishing-gradients", twin=lambda s: deep_tanh(s, True))
def deep_tanh(seed: int, skip: bool = False) -> Training:
    d = shapes(seed)
    return Training(Fit(Deep(skip), F.cross_entropy, sgd(0.02)), batches(d.x, d.y), d.accuracy, None, {"max_epochs": 8})


class FirstToken(LightningModule):
    """The key is the first of forty tokens; a plain RNN reads it at the far end."""

    def __init__(self, pool: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.rnn = Recurrent(nn.RNN, 16, 24, 4, pool=pool)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(self.embedding(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch["tokens"]), batch["key"])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@sick("u-rnn-forgets-forty-steps", "rnn", "vanishing-gradients", twin=lambda s: forgets(s, True))
def forgets(seed: int, pool: bool = False) -> Training:
    g = data.generator(seed, 41)
    x = torch.randint(4, 20, (1200, 40), generator=g)
    x[:, 0] = y = torch.randint(4, (1200,), generator=g)
    train = [{"tokens": a, "key": b} for a, b in zip(x[:800], y[:800], strict=True)]
    loader: Any = torch.utils.data.DataLoader(train, 32, shuffle=True)  # type: ignore[arg-type]
    d = data.Split(x[:800], y[:800], x[800:], y[800:])
    return Training(FirstToken(pool), loader, d.accuracy, trainer={"max_epochs": 16})


# --- dead -------------------------------------------------------------------------------------------------------------


@sick("u-bias-minus-five", "mlp", "dead-activations", "bad-initialization", twin=lambda s: bias_minus(s, 0.0))
def bias_minus(seed: int, bias: float = -6.0) -> Training:
    d = data.digits(seed)
    net = dense(64, 64, 64, 10)
    nn.init.constant_(net[2].bias, bias)
    return Training(Fit(net, F.cross_entropy, adam(3e-3)), d.train(32), d.accuracy, d.val(), {"max_epochs": 8})


class Shocked(Fit):
    """The first steps are taken at a rate a thousand times that of the rest."""

    first = 4.0

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05)
        shock = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.first / 0.05 if step < 4 else 1.0)
        return [optimizer], [{"scheduler": shock, "interval": "step"}]


@sick("u-killed-by-four-steps", "cnn", "dead-activations", "learning-rate-too-high", twin=lambda s: killed(s, 0.05))
def killed(seed: int, first: float = 4.0) -> Training:
    d = shapes(seed)
    module = Shocked(conv_net(), nn.CrossEntropyLoss(), sgd())
    module.first = first
    return Training(module, batches(d.x, d.y), d.accuracy, held_out(d.x_test, d.y_test), {"max_epochs": 10})


class Sparse(LightningModule):
    """An autoencoder whose code is a ReLU, in a training_step that returns a dict."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.enc, self.dec, self.shift = nn.Linear(20, 64), nn.Linear(64, 20), shift

    def forward(self, x: Tensor) -> Tensor:
        return self.dec(torch.relu(self.enc(x) - self.shift))

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        x = batch[0]
        loss = F.mse_loss(self(x), x)
        self.log("recon", loss)
        return {"loss": loss}

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


@sick("u-threshold-too-far", "autoencoder", "dead-activations", twin=lambda s: threshold(s, 0.0))
def threshold(seed: int, shift: float = 8.0) -> Training:
    d = factors(seed)
    return Training(Sparse(shift), batches(d.x, d.y, 40), d.r2, trainer={"max_epochs": 12})


# --- saturated --------------------------------------------------------------------------------------------------------


@sick("u-tanh-drawn-wide", "mlp", "saturated-activations", "bad-initialization", twin=lambda s: drawn_wide(s, None))
def drawn_wide(seed: int, std: float | None = 8.0) -> Training:
    d = friedman(seed)
    net = dense(10, 40, 40, 1, act=nn.Tanh)
    if std is not None:
        for layer in (net[0], net[2]):
            nn.init.normal_(layer.weight, std=std)
    module = Fit(net, F.mse_loss, adam(3e-3))
    return Training(module, batches(d.x, d.y), d.r2, held_out(d.x_test, d.y_test), {"max_epochs": 10})


class Attention(LightningModule):
    """One head of dot-product attention that finds the key; `scale` divides the scores."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(64))
        self.key = nn.Linear(20, 64)
        self.head = nn.Linear(20, 4)
        self.softmax = nn.Softmax(dim=1)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        e = F.one_hot(x, 20).float()
        weights = self.softmax(self.key(e) @ self.query / self.scale)
        return self.head((weights[..., None] * e).sum(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("ce", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.3, momentum=0.9)


@sick("u-attention-not-scaled", "attention", "saturated-activations", twin=lambda s: attention(s, 8.0))
def attention(seed: int, scale: float = 0.02) -> Training:
    d = keyword(seed)
    return Training(Attention(scale), batches(d.x, d.y), d.accuracy, held_out(d.x_test, d.y_test), {"max_epochs": 10})


@sick("u-sigmoids-pushed-to-one", "mlp", "saturated-activations", "bad-initialization", twin=lambda s: pushed(s, 0.0))
def pushed(seed: int, bias: float = 25.0) -> Training:
    d = data.digits(seed)
    net = dense(64, 48, 10, act=nn.Sigmoid)
    nn.init.constant_(net[0].bias, bias)
    return Training(Fit(net, F.cross_entropy, sgd(0.5, momentum=0.9)), d.train(32), d.accuracy, None, {"max_epochs": 6})


# --- initialised badly ------------------------------------------------------------------------------------------------


def initialise(net: nn.Module, draw: Any) -> nn.Module:
    for parameter in net.parameters():
        if parameter.dim() > 1:
            draw(parameter)
    return net


@sick("u-all-weights-alike", "mlp", "bad-initialization", twin=lambda s: alike(s, nn.init.xavier_uniform_))
def alike(seed: int, draw: Any = lambda w: nn.init.constant_(w, 0.02)) -> Training:
    d = data.digits(seed)
    module = Fit(initialise(dense(64, 50, 30, 10), draw), F.cross_entropy, adam(2e-3))
    return Training(module, d.train(32), d.accuracy, d.val(), {"max_epochs": 10})


@sick("u-unit-normal-convs", "cnn", "bad-initialization", twin=lambda s: unit_normal(s, nn.init.kaiming_normal_))
def unit_normal(seed: int, draw: Any = lambda w: nn.init.normal_(w, std=3.0)) -> Training:
    d = shapes(seed)
    module = Fit(initialise(conv_net(width=16), draw), F.cross_entropy, adam(1e-3))
    return Training(module, batches(d.x, d.y), d.accuracy, held_out(d.x_test, d.y_test), {"max_epochs": 6})


@sick(
    "u-drawn-at-a-thousandth",
    "mlp",
    "bad-initialization",
    "vanishing-gradients",
    twin=lambda s: thousandth(s, nn.init.kaiming_normal_),
)
def thousandth(seed: int, draw: Any = lambda w: nn.init.normal_(w, std=1e-3)) -> Training:
    d = friedman(seed)
    module = Fit(initialise(dense(10, 32, 32, 32, 1), draw), F.mse_loss, sgd(0.05, momentum=0.9))
    return Training(module, batches(d.x, d.y), d.r2, trainer={"max_epochs": 10})
