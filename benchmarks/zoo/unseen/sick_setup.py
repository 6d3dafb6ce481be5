"""Wiring: parameters nobody steps, gradients kept or lost, modes left behind, weights pulled to zero."""

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
    Tagger,
    adam,
    adamw,
    batches,
    conv_net,
    dense,
    factors,
    friedman,
    held_out,
    keyword,
    rings,
    series,
    sgd,
    shapes,
)

# --- parameters-not-optimized -----------------------------------------------------------------------------------------


class Listed(LightningModule):
    """Blocks in a plain list, which torch does not see."""

    def __init__(self, seen: bool) -> None:
        super().__init__()
        blocks = [nn.Linear(2, 10), nn.Linear(10, 10)]
        self.blocks = nn.ModuleList(blocks) if seen else blocks
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = torch.tanh(block(x))
        return self.head(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.02)


@sick("u-blocks-in-a-list", "mlp", "parameters-not-optimized", twin=lambda s: listed(s, True))
def listed(seed: int, seen: bool = False) -> Training:
    d = rings(seed)
    return Training(Listed(seen), batches(d.x, d.y), d.accuracy, held_out(d.x_test, d.y_test), {"max_epochs": 12})


@sick("u-optimizer-of-the-head-only", "lstm", "parameters-not-optimized", twin=lambda s: head_only(s, True))
def head_only(seed: int, whole: bool = False) -> Training:
    d = series(seed)
    net = Recurrent(nn.LSTM, 1, 16, 1)
    chosen = net if whole else net.head
    module = Fit(net, F.mse_loss, lambda _: torch.optim.Adam(chosen.parameters(), lr=5e-3))
    return Training(module, batches(d.x, d.y), d.r2, trainer={"max_epochs": 10})


class Cut(LightningModule):
    """An autoencoder whose code is detached on its way to the decoder."""

    def __init__(self, detach: bool) -> None:
        super().__init__()
        self.encoder, self.decoder, self.detach = dense(20, 32, 3), dense(3, 32, 20), detach

    def forward(self, x: Tensor) -> Tensor:
        code = self.encoder(x)
        if self.detach:
            code = code.detach()
        return self.decoder(code)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, _ = batch
        loss = F.mse_loss(self(x), x)
        self.log("recon", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@sick("u-code-detached", "autoencoder", "parameters-not-optimized", twin=lambda s: detached(s, False))
def detached(seed: int, detach: bool = True) -> Training:
    d = factors(seed, hidden=3)
    return Training(Cut(detach), batches(d.x, d.y), d.r2, held_out(d.x_test, d.y_test), {"max_epochs": 12})


class Replaced(Fit):
    """The first layer is exchanged for one of the right width after the optimizer was made."""

    late = True

    def setup(self, stage: str) -> None:
        if not self.late:
            self.exchange()

    def on_train_start(self) -> None:
        if self.late:
            self.exchange()

    def exchange(self) -> None:
        net: Any = self.net
        net[3] = nn.Conv2d(8, 16, 3, padding=1)
        net[7] = nn.Linear(16 * 9, 4)


@sick("u-layers-exchanged-late", "cnn", "parameters-not-optimized", twin=lambda s: exchanged(s, False))
def exchanged(seed: int, late: bool = True) -> Training:
    d = shapes(seed)
    module = Replaced(conv_net(width=8), F.cross_entropy, sgd(0.01, momentum=0.9))
    module.late = late
    return Training(module, batches(d.x, d.y), d.accuracy, trainer={"max_epochs": 6})


@sick("u-frozen-and-forgotten", "transformer", "parameters-not-optimized", twin=lambda s: frozen(s, False))
def frozen(seed: int, forgotten: bool = True) -> Training:
    d = keyword(seed, length=12)
    net = Tagger(20, 4, pool=True, dim=16)
    net.requires_grad_(not forgotten)
    net.head.bias.requires_grad_(True)
    module = Fit(net, F.cross_entropy, lambda p: torch.optim.Adam([q for q in p if q.requires_grad], 5e-3))
    return Training(module, batches(d.x, d.y), d.accuracy, held_out(d.x_test, d.y_test), {"max_epochs": 8})


# --- gradients-not-cleared --------------------------------------------------------------------------------------------


class Loop(LightningModule):
    """Manual optimisation; `clear` says when the gradients are set to zero: before, never, or too soon."""

    def __init__(self, net: nn.Module, clear: str, make: Any, loss: Any = F.cross_entropy) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net, self.clear, self.make, self.loss = net, clear, make, loss

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        optimizer: Any = self.optimizers()
        if self.clear == "before":
            optimizer.zero_grad()
        loss = self.loss(self(x), y)
        self.manual_backward(loss)
        if self.clear == "too soon":
            optimizer.zero_grad(set_to_none=False)
        optimizer.step()
        self.log("train_loss", loss, prog_bar=True)
        return loss.detach()

    def configure_optimizers(self) -> Any:
        return self.make(self.parameters())


@sick("u-never-zeroed-sgd", "mlp", "gradients-not-cleared", twin=lambda s: never_zeroed(s, "before"))
def never_zeroed(seed: int, clear: str = "never") -> Training:
    d = data.digits(seed)
    return Training(Loop(dense(64, 48, 10), clear, sgd(0.1)), d.train(32), d.accuracy, d.val(), {"max_epochs": 8})


@sick("u-zeroed-before-the-step", "gru", "gradients-not-cleared", twin=lambda s: too_soon(s, "before"))
def too_soon(seed: int, clear: str = "too soon") -> Training:
    d = series(seed)
    module = Loop(Recurrent(nn.GRU, 1, 20, 1), clear, adam(5e-3), F.mse_loss)
    return Training(module, batches(d.x, d.y), d.r2, trainer={"max_epochs": 8})


class NoClearing(Fit):
    """Overrides Lightning's clearing, meant for accumulation, and forgets to do it at all."""

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        if epoch < 0:
            optimizer.zero_grad()


@sick("u-hook-that-clears-nothing", "cnn", "gradients-not-cleared", twin=lambda s: no_clearing(s, Fit))
def no_clearing(seed: int, kind: type[Fit] = NoClearing) -> Training:
    d = shapes(seed)
    module = kind(conv_net(), F.cross_entropy, adam(5e-3))
    return Training(module, batches(d.x, d.y), d.accuracy, held_out(d.x_test, d.y_test), {"max_epochs": 10})


# --- excess-regularization --------------------------------------------------------------------------------------------


@sick("u-decay-of-thirty", "transformer", "excess-regularization", twin=lambda s: decay_thirty(s, 0.01))
def decay_thirty(seed: int, decay: float = 30.0) -> Training:
    d = keyword(seed, length=12)
    module = Fit(Tagger(20, 4, pool=True), F.cross_entropy, adamw(3e-3, weight_decay=decay))
    return Training(module, batches(d.x, d.y), d.accuracy, held_out(d.x_test, d.y_test), {"max_epochs": 10})


@sick("u-sgd-decay-half", "cnn", "excess-regularization", twin=lambda s: decay_half(s, 5e-4))
def decay_half(seed: int, decay: float = 0.5) -> Training:
    d = shapes(seed)
    module = Fit(conv_net(), F.cross_entropy, sgd(0.03, momentum=0.9, weight_decay=decay))
    return Training(module, batches(d.x, d.y), d.accuracy, trainer={"max_epochs": 10})


@sick("u-dropout-of-97-percent", "mlp", "excess-regularization", twin=lambda s: dropout_97(s, 0.1))
def dropout_97(seed: int, p: float = 0.97) -> Training:
    d = friedman(seed)
    net = nn.Sequential(
        nn.Linear(10, 64), nn.ReLU(), nn.Dropout(p), nn.Linear(64, 64), nn.ReLU(), nn.Dropout(p), nn.Linear(64, 1)
    )
    module = Fit(net, F.mse_loss, adam(3e-3))
    return Training(module, batches(d.x, d.y), d.r2, held_out(d.x_test, d.y_test), {"max_epochs": 12})


class Lasso(LightningModule):
    """An L1 penalty on all weights, added to the loss by hand."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.net, self.strength = dense(10, 48, 1), strength

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        fit = F.mse_loss(self(x), y)
        penalty = sum(p.abs().sum() for p in self.parameters())
        self.log_dict({"fit": fit, "penalty": penalty})
        return fit + self.strength * penalty

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@sick("u-lasso-too-strong", "mlp", "excess-regularization", twin=lambda s: lasso(s, 1e-5))
def lasso(seed: int, strength: float = 0.3) -> Training:
    d = friedman(seed)
    return Training(Lasso(strength), batches(d.x, d.y), d.r2, trainer={"max_epochs": 10})
