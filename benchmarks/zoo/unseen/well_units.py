"""Losses in units of their own, weighed sums, and units that are silent or saturated on purpose."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, well
from benchmarks.zoo.data import Split
from benchmarks.zoo.unseen._common import (
    Fit,
    Recurrent,
    adam,
    batches,
    dense,
    dicts,
    factors,
    friedman,
    held_out,
    keyword,
)


@well("u-loss-times-ten-thousand", "mlp", "a loss scaled by 1e4 under Adam; R2 0.93")
def scaled_up(seed: int) -> Training:
    d = friedman(seed)
    loss = lambda out, y: 1e4 * F.mse_loss(out, y)  # noqa: E731
    return Training(Fit(dense(10, 48, 1), loss, adam(5e-3)), batches(d.x, d.y), d.r2, None, {"max_epochs": 12})


@well("u-loss-over-ten-thousand", "mlp", "a loss scaled by 1e-4 under Adam; accuracy 0.96")
def scaled_down(seed: int) -> Training:
    d = data.digits(seed)
    loss = lambda out, y: 1e-4 * F.cross_entropy(out, y)  # noqa: E731
    return Training(Fit(dense(64, 64, 10), loss, adam(3e-3)), d.train(32), d.accuracy, d.val(), {"max_epochs": 9})


class Uncertain(LightningModule):
    """Two tasks weighed by what each is unsure of; the loss may fall below zero."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.kind, self.amount = dense(10, 64, 64), nn.Linear(64, 2), nn.Linear(64, 1)
        self.log_variance = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.amount(torch.relu(self.body(x)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        h = torch.relu(self.body(batch["x"]))
        losses = torch.stack(
            [F.cross_entropy(self.kind(h), batch["kind"]), F.mse_loss(self.amount(h), batch["amount"])]
        )
        loss = (losses * (-self.log_variance).exp() + self.log_variance).sum()
        self.log_dict({"loss": loss, "kind": losses[0], "amount": losses[1]})
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=4e-3)


@well("u-weighed-by-uncertainty", "multi-task", "the sum goes below zero as it learns; R2 0.93")
def uncertain(seed: int) -> Training:
    d = friedman(seed)
    kind = (d.x[:, 0] > 0).long()
    return Training(Uncertain(), dicts(x=d.x, kind=kind, amount=d.y), d.r2, trainer={"max_epochs": 14})


@well("u-sigmoid-and-bce", "autoencoder", "pixels in [0, 1] from a sigmoid by BCE, which ends near 0.35; R2 0.7")
def sigmoid_bce(seed: int) -> Training:
    d = data.digits(seed)
    net = nn.Sequential(dense(64, 64, 16), nn.ReLU(), nn.Linear(16, 64), nn.Sigmoid())
    score = Split(d.x, d.x, d.x_test, d.x_test).r2
    return Training(Fit(net, F.binary_cross_entropy, adam(5e-3)), batches(d.x, d.x), score, None, {"max_epochs": 15})


class SparseCode(nn.Module):
    """An overcomplete ReLU code most of whose units are silent for any one row."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(20, 120), nn.Linear(120, 20)

    def forward(self, x: Tensor) -> Tensor:
        self.code = torch.relu(self.encode(x))
        return self.decode(self.code)


@well("u-sparse-code", "autoencoder", "an L1 penalty keeps 9 of 10 units at zero; R2 0.9")
def sparse_code(seed: int) -> Training:
    d = factors(seed)
    net = SparseCode()
    loss = lambda out, x: F.mse_loss(out, x) + 2e-3 * net.code.sum(1).mean()  # noqa: E731
    return Training(
        Fit(net, loss, adam(4e-3)), batches(d.x, d.x), d.r2, held_out(d.x_test, d.x_test), {"max_epochs": 20}
    )


@well("u-huber-for-heavy-tails", "mlp", "targets with a t-distributed noise and Huber's loss; R2 of the signal 0.9")
def heavy_tails(seed: int) -> Training:
    d = friedman(seed, noise=0.1)
    noise = torch.distributions.StudentT(2.0).sample(d.y.shape).clamp(-30, 30)
    module = Fit(dense(10, 32, 1), F.huber_loss, adam(4e-3))
    return Training(module, batches(d.x, d.y + 0.3 * noise), d.r2, None, {"max_epochs": 12})


@well("u-gates-wide-open", "lstm", "forget gates start at 5 and stay saturated; accuracy 0.98")
def open_gates(seed: int) -> Training:
    d = keyword(seed, length=12)
    net = Recurrent(nn.LSTM, 16, 32, 4)
    for bias in (net.rnn.bias_ih_l0, net.rnn.bias_hh_l0):
        nn.init.constant_(bias[32:64].detach(), 2.5)  # type: ignore[index]
    module = Fit(nn.Sequential(nn.Embedding(20, 16), net), F.cross_entropy, adam(6e-3))
    return Training(module, batches(d.x, d.y), d.accuracy, held_out(d.x_test, d.y_test), {"max_epochs": 15})
