"""OptimizerHealth: each code on its patient, silence on the twin."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler

from lightning_stall import OptimizerHealth, StallReport
from lightning_stall.measure.weights import untrained
from lightning_stall.testing import Classifier, blobs, healthy, mlp, watch


def told(report: StallReport) -> list[str]:
    return [f.code for f in report.findings if f.speaks]


def top(report: StallReport) -> str:
    return report.causes[0].code if report.causes else ""


@pytest.mark.parametrize("seed", range(3))
def test_silent_on_the_healthy(seed: int) -> None:
    assert watch(healthy(), blobs(), OptimizerHealth(), seed=seed).findings == []


@pytest.mark.parametrize(("rate", "optimizer"), [(1e-7, "adam"), (1e-6, "sgd")])
def test_too_low(rate: float, optimizer: Any) -> None:
    report = watch(healthy(rate=rate, optimizer=optimizer), blobs(), OptimizerHealth(), max_epochs=15)
    assert top(report) == "learning-rate-too-low"
    assert report.causes[0].findings[0].evidence["reach"] < 0.05


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("rate", "optimizer"), [(3.0, "momentum"), (1.0, "adam")])
def test_too_high(rate: float, optimizer: Any, seed: int) -> None:
    module = Classifier(mlp(depth=3), rate=rate, optimizer=optimizer)
    assert top(watch(module, blobs(), OptimizerHealth(), max_epochs=15, seed=seed)) == "learning-rate-too-high"


class Decays(Classifier):
    def __init__(self, gamma: float) -> None:
        super().__init__(mlp(), rate=1e-3)
        self.gamma = gamma

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.01)
        scheduler = lr_scheduler.ExponentialLR(optimizer, self.gamma)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def test_decayed_early_and_its_twin() -> None:
    report = watch(Decays(0.8), blobs(), OptimizerHealth(), max_epochs=25)
    assert top(report) == "learning-rate-decayed-early"
    assert watch(Decays(0.9995), blobs(), OptimizerHealth(), max_epochs=25).causes == []


class HeadOnly(Classifier):
    """The optimizer holds the last layer; the twin freezes the rest and says so."""

    def __init__(self, freeze: bool) -> None:
        super().__init__(mlp())
        if freeze:
            torch.manual_seed(1)
            for p in self.net[:-1].parameters():
                nn.init.normal_(p, std=0.3)  # weights from elsewhere
                p.requires_grad_(False)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.net[-1].parameters(), 1e-2)


def test_parameters_no_optimizer_holds_are_told_at_once() -> None:
    report = watch(HeadOnly(freeze=False), blobs(), OptimizerHealth())
    (finding,) = [f for f in report.findings if f.code == "parameters-not-optimized"]
    assert finding.step == 1
    assert finding.where == ("net.0", "net.2")
    assert watch(HeadOnly(freeze=True), blobs(), OptimizerHealth()).causes == []


class Detached(Classifier):
    def __init__(self) -> None:
        super().__init__(mlp(width=8), rate=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.net[:-1](x).detach()
        out: Tensor = self.net[-1](hidden * 0.01)
        return out


def test_layers_cut_off_are_told_once_the_run_is_bad() -> None:
    report = watch(Detached(), blobs(features=8), OptimizerHealth(), max_epochs=15)
    assert "parameters-not-optimized" in [f.code for f in report.findings]


class Manual(LightningModule):
    """Manual optimisation that clears its gradients before the backward pass, before the step, or never."""

    def __init__(self, clears: str) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net, self.clears = mlp(), clears

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        if self.clears == "right":
            optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(self.net(batch[0]), batch[1]))
        if self.clears == "early":
            optimizer.zero_grad()
        optimizer.step()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.05)


@pytest.mark.parametrize("clears", ["never", "early"])
def test_gradients_not_cleared(clears: str) -> None:
    report = watch(Manual(clears), blobs(), OptimizerHealth())
    first = next(f for f in report.findings if f.code == "gradients-not-cleared")
    assert first.step <= 8
    assert top(report) == "gradients-not-cleared"


def test_gradients_cleared_rightly() -> None:
    assert told(watch(Manual("right"), blobs(), OptimizerHealth())) == []
    assert told(watch(healthy(), blobs(), OptimizerHealth(), accumulate_grad_batches=4)) == []


class Decayed(Classifier):
    def __init__(self, decay: float) -> None:
        super().__init__(mlp(depth=3))
        self.decay = decay

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-2, weight_decay=self.decay)


def test_excess_regularization() -> None:
    assert top(watch(Decayed(20.0), blobs(), OptimizerHealth(), max_epochs=20)) == "excess-regularization"
    assert watch(Decayed(0.01), blobs(), OptimizerHealth(), max_epochs=20).findings == []


def test_untrained_knows_torchs_own_initialisation() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(32, 32), nn.Conv2d(3, 16, 3), nn.LSTM(8, 16)]
    assert all(untrained(layer) for layer in layers)
    for layer in layers:
        for p in layer.parameters():
            nn.init.normal_(p, std=0.1)
    assert not any(untrained(layer) for layer in layers)
    assert not untrained(nn.LayerNorm(64))
    assert not untrained(nn.LazyLinear(4))
