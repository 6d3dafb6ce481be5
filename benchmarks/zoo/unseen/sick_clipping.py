"""Clipping so tight that plain SGD can not move."""

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
    batches,
    conv_net,
    dense,
    held_out,
    series,
    sgd,
    shapes,
)

# --- clipping-too-tight -----------------------------------------------------------------------------------------------


@sick("u-clip-norm-of-a-thousandth", "cnn", "clipping-too-tight", twin=lambda s: clip_norm(s, 1.0))
def clip_norm(seed: int, value: float = 1e-3) -> Training:
    d = shapes(seed)
    module = Fit(conv_net(), F.cross_entropy, sgd(0.05, momentum=0.9))
    return Training(module, batches(d.x, d.y), d.accuracy, None, {"max_epochs": 8, "gradient_clip_val": value})


@sick("u-clip-each-value", "lstm", "clipping-too-tight", twin=lambda s: clip_value(s, 0.5))
def clip_value(seed: int, value: float = 1e-5) -> Training:
    d = series(seed)
    module = Fit(Recurrent(nn.LSTM, 1, 20, 1), F.mse_loss, sgd(0.3, momentum=0.9))
    settings = {"max_epochs": 12, "gradient_clip_val": value, "gradient_clip_algorithm": "value"}
    return Training(module, batches(d.x, d.y), d.r2, held_out(d.x_test, d.y_test), settings)


class ByHand(LightningModule):
    """Manual optimisation that clips with torch's own function."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net, self.limit = dense(64, 48, 10), limit

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        optimizer: Any = self.optimizers()
        loss = F.cross_entropy(self(x), y)
        optimizer.zero_grad()
        self.manual_backward(loss)
        nn.utils.clip_grad_norm_(self.parameters(), self.limit)
        optimizer.step()
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@sick("u-clipped-by-hand", "mlp", "clipping-too-tight", twin=lambda s: by_hand(s, 5.0))
def by_hand(seed: int, limit: float = 5e-3) -> Training:
    d = data.digits(seed)
    return Training(ByHand(limit), d.train(32), d.accuracy, d.val(), {"max_epochs": 8})
