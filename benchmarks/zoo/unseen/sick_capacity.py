"""Nets that can not express what they should learn: nothing between their layers, or too few units."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.unseen._common import Fit, adam, batches, dense, factors, friedman, held_out, rings


@sick(
    "u-three-linear-layers", "mlp", "missing-nonlinearity", "insufficient-capacity", twin=lambda s: linears(s, nn.ReLU)
)
def linears(seed: int, act: Any = nn.Identity) -> Training:
    d = rings(seed)
    net = nn.Sequential(nn.Linear(2, 64), act(), nn.Linear(64, 64), act(), nn.Linear(64, 3))
    if act is nn.Identity:
        net = nn.Sequential(*[layer for layer in net if isinstance(layer, nn.Linear)])
    return Training(Fit(net, F.cross_entropy, adam(5e-3)), batches(d.x, d.y), d.accuracy, None, {"max_epochs": 15})


class Plain(LightningModule):
    """Two layers called one after the other in forward."""

    def __init__(self, act: Any) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(2, 40), nn.Linear(40, 40), nn.Linear(40, 3)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.act(self.second(self.act(self.first(x)))))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch["point"]), batch["ring"])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@sick("u-forward-without-relu", "mlp", "missing-nonlinearity", twin=lambda s: without_relu(s, torch.relu))
def without_relu(seed: int, act: Any = lambda x: x) -> Training:
    d = rings(seed)
    rows: Any = [{"point": x, "ring": y} for x, y in zip(d.x, d.y, strict=True)]
    return Training(
        Plain(act), torch.utils.data.DataLoader(rows, 32, shuffle=True), d.accuracy, trainer={"max_epochs": 15}
    )


@sick("u-one-unit-for-rings", "mlp", "insufficient-capacity", twin=lambda s: one_unit(s, 64))
def one_unit(seed: int, width: int = 1) -> Training:
    d = rings(seed)
    return Training(
        Fit(dense(2, width, 3, act=nn.Tanh), F.cross_entropy, adam(0.02)),
        batches(d.x, d.y, 64),
        d.accuracy,
        held_out(d.x_test, d.y_test),
        {"max_epochs": 30},
    )


@sick("u-code-of-one-number", "autoencoder", "insufficient-capacity", twin=lambda s: one_number(s, 6))
def one_number(seed: int, code: int = 1) -> Training:
    d = factors(seed, hidden=6)
    net = nn.Sequential(dense(20, 48, code), dense(code, 48, 20))
    return Training(Fit(net, F.mse_loss, adam(4e-3)), batches(d.x, d.y), d.r2, trainer={"max_epochs": 15})


@sick("u-linear-for-friedman", "linear", "insufficient-capacity", twin=lambda s: straight(s, dense(10, 64, 1)))
def straight(seed: int, net: nn.Module | None = None) -> Training:
    d = friedman(seed, noise=0.2)
    module = Fit(net or nn.Linear(10, 1), F.mse_loss, adam(1e-2))
    return Training(module, batches(d.x, d.y), d.r2, held_out(d.x_test, d.y_test), {"max_epochs": 15})
