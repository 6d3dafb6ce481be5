"""GradientHealth: each code on its patient, silence on the twin, the remedy, and what it logs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_stall import GradientHealth, StallReport
from lightning_stall.testing import Classifier, blobs, deep_sigmoid, healthy, mlp, nan_batch, spikes, watch


def told(report: StallReport) -> list[str]:
    return [f.code for f in report.findings if f.speaks]


def finite(module: LightningModule) -> bool:
    return all(bool(t.isfinite().all()) for t in module.state_dict().values())


@pytest.mark.parametrize("seed", range(2))
def test_vanishing_on_the_way_to_the_input(seed: int) -> None:
    report = watch(deep_sigmoid(), blobs(), GradientHealth(), seed=seed)
    (finding,) = [f for f in report.findings if f.code == "vanishing-gradients" and f.speaks]
    assert finding.where[0] == "net.0", "the layer nearest to the input comes first"
    assert finding.evidence["decay"] < 1e-4
    assert report.causes[0].code == "vanishing-gradients"


@pytest.mark.parametrize("seed", range(2))
def test_the_twin_with_relu_and_residuals_is_well(seed: int) -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            return x + 0.3 * self.b(torch.relu(self.a(x)))

    net = nn.Sequential(nn.Linear(8, 32), *(Residual() for _ in range(6)), nn.Linear(32, 4))
    report = watch(Classifier(net, rate=1e-3), blobs(), GradientHealth(), seed=seed)
    assert told(report) == []
    assert report.causes == []


@pytest.mark.parametrize("optimizer", ["adam", "fused-adam", "sgd", "momentum"])
def test_a_nan_batch_is_named_and_left_out(optimizer: Any) -> None:
    rate = 1e-2 if "adam" in optimizer else 0.1
    ill, mended = nan_batch(optimizer=optimizer, rate=rate), nan_batch(optimizer=optimizer, rate=rate)
    bare = watch(ill, blobs(), GradientHealth())
    assert not finite(ill)
    first = next(f for f in bare.findings if f.code == "nonfinite-loss")
    assert (first.step, first.epoch, first.severity, first.where) == (6, 0, "critical", ("batch 5",))
    assert first.remedy is None
    assert bare.outcome == "non-finite"

    report = watch(mended, blobs(), GradientHealth(auto_remedy=True))
    assert finite(mended), "weights and BatchNorm's statistics"
    assert all(f.remedy for f in report.findings if f.code == "nonfinite-loss")
    assert report.outcome in ("learning", "converged")


def test_the_first_batch_of_all_may_be_the_bad_one() -> None:
    for optimizer in ("fused-adam", "momentum"):
        module = nan_batch(at=0, optimizer=optimizer)  # type: ignore[arg-type]
        watch(module, blobs(), GradientHealth(auto_remedy=True))
        assert finite(module)


def test_which_micro_batch_went_bad() -> None:
    report = watch(nan_batch(at=6), blobs(), GradientHealth(), accumulate_grad_batches=4)
    first = next(f for f in report.findings if f.code == "nonfinite-loss")
    assert (first.step, first.where, first.evidence["micro_batch"]) == (2, ("batch 6",), 2.0)


class RootOfZero(LightningModule):
    """The loss is finite; the gradient of sqrt at 0 is infinite, and times 0 it is NaN."""

    def __init__(self, safe: bool) -> None:
        super().__init__()
        self.first, self.second, self.safe = nn.Linear(8, 16), nn.Linear(16, 4), safe

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        hidden = torch.relu(self.first(batch[0]))
        if batch_idx == 3:
            hidden = hidden * 0.0
        length = (hidden.square().sum(1, keepdim=True) + (1e-6 if self.safe else 0.0)).sqrt()
        return F.cross_entropy(self.second(hidden + length), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


def test_a_finite_loss_with_a_gradient_that_is_none_names_the_parameter() -> None:
    report = watch(RootOfZero(safe=False), blobs(), GradientHealth())
    finding = next(f for f in report.findings if f.code == "nonfinite-gradients")
    assert finding.step == 4
    assert finding.where[0] == "first.bias", "the last one before the fault"
    assert "second.weight" not in finding.where, "what lies between the fault and the loss is sound"
    assert told(watch(RootOfZero(safe=True), blobs(), GradientHealth())) == []


def test_a_spike_that_costs_the_run_is_told_and_one_that_does_not_is_not() -> None:
    thrown = watch(spikes(optimizer="sgd", rate=0.5), blobs(), GradientHealth(), max_epochs=20)
    assert "exploding-gradients" in [f.code for f in thrown.findings]
    shrugged = watch(spikes(size=30.0, rate=1e-3), blobs(), GradientHealth(), max_epochs=20)
    assert told(shrugged) == []


def test_growth_before_the_first_nan() -> None:
    class Unstable(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.full((8, 1), 0.1))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.mse_loss(batch[0] @ self.w, batch[1].float()[:, None])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 50.0)

    report = watch(Unstable(), blobs(), GradientHealth())
    finding = next(f for f in report.findings if f.code == "exploding-gradients" and f.severity == "critical")
    assert finding.evidence["growth"] > 100


@pytest.mark.parametrize("seed", range(2))
def test_silent_on_the_healthy(seed: int) -> None:
    report = watch(healthy(), blobs(), GradientHealth(auto_remedy=True), seed=seed)
    assert report.findings == []
    assert report.causes == []


def test_panels_and_numbers(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="")
    watcher = GradientHealth()
    make_trainer([watcher], logger=logger, max_epochs=2, log_every_n_steps=10).fit(healthy(), blobs())
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert {"stall/gradients/total_norm", "stall/updates/ratio"} <= set(tags)
    assert {f"stall/gradients/layers/net.{i}" for i in (0, 2, 4)} <= set(tags)
    steps = [e.step for e in events.Scalars("stall/gradients/total_norm")]
    assert steps == [0, 1, 3, 7, 9, 15, 19, 29, 31], "checks 1, 2, 4 ... on Lightning's axis, which begins at 0"
    ratio = [e.value for e in events.Scalars("stall/updates/ratio")]
    assert all(1e-5 < r < 1.0 for r in ratio)
    assert "custom_scalars__config__" in events.Tags()["tensors"]


def test_the_update_ratio_is_what_it_says() -> None:
    class Keeps(GradientHealth):
        truth: list[float]

        def before_step(self, optimizer: Any) -> None:
            super().before_step(optimizer)
            self.old = [p.detach().clone() for p in self.hub.readings.gradients(optimizer).params]

        def check(self) -> None:
            params = self.hub.readings.named(self.hub.readings.optimizers[0])[1]
            ratios = [float((p.detach() - o).norm() / o.norm()) for p, o in zip(params, self.old, strict=True)]
            super().check()
            self.pair = (self.ratio, statistics.median(ratios))

    keeper = Keeps(every_n_steps=1)
    watch(Classifier(mlp(), rate=1e-3), blobs(), keeper, max_epochs=1)
    assert keeper.pair[0] == pytest.approx(keeper.pair[1], rel=1e-4)
    assert not math.isnan(keeper.pair[0])


class Recall(LightningModule):
    """Says at the end of a sequence what stood at its start; only a gate that stays open carries it there."""

    def __init__(self, lstm: bool) -> None:
        super().__init__()
        self.read = nn.LSTM(4, 16, batch_first=True) if lstm else nn.RNN(4, 16, batch_first=True)
        if lstm:  # forget gates start open
            nn.init.constant_(self.read.bias_hh_l0[16:32], 6.0)
        self.head = nn.Linear(16, 4)

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        places = torch.zeros(len(batch[0]), 60, 4)
        places[:, 0] = F.one_hot(batch[1], 4).float()
        return places, batch[1]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.head(self.read(batch[0])[0][:, -1]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 3e-3)


@pytest.mark.parametrize("seed", range(2))
def test_vanishing_along_a_sequence(seed: int) -> None:
    report = watch(Recall(lstm=False), blobs(), GradientHealth(), max_epochs=10, seed=seed)
    (finding,) = [f for f in report.findings if f.code == "vanishing-gradients" and f.speaks]
    assert finding.evidence["places"] == 60
    assert "first 20 have no part" in finding.summary
    twin = watch(Recall(lstm=True), blobs(), GradientHealth(), max_epochs=10, seed=seed)
    assert "vanishing-gradients" not in told(twin)


class Stack(Classifier):
    """Twenty residual blocks that are added up as they are, or scaled down."""

    def __init__(self, scale: float) -> None:
        class Residual(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a = nn.Linear(32, 32)

            def forward(self, x: Tensor) -> Tensor:
                return x + scale * torch.relu(self.a(x))

        super().__init__(nn.Sequential(nn.Linear(8, 32), *(Residual() for _ in range(20)), nn.Linear(32, 4)), rate=0.05)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.05)


@pytest.mark.parametrize("seed", range(2))
def test_steep_from_the_start(seed: int) -> None:
    report = watch(Stack(3.0), blobs(), GradientHealth(), seed=seed)
    first = next(f for f in report.findings if f.code == "exploding-gradients" and f.speaks)
    assert first.evidence["steepness"] > 100
    assert first.step <= 16
    assert told(watch(Stack(0.1), blobs(), GradientHealth(), seed=seed)) == []


class Centred(nn.Module):
    """Divides by a deviation that is 0 in a column that never changes."""

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, torch.ones(len(x), 1)], 1)
        return (x - x.mean(0)) / (x.std(0) + self.epsilon)


def test_a_module_that_breaks_before_the_first_weight() -> None:
    net = lambda epsilon: Classifier(nn.Sequential(Centred(epsilon), nn.Linear(9, 4)))  # noqa: E731
    report = watch(net(0.0), blobs(), GradientHealth(), max_epochs=1)
    (finding,) = [f for f in report.findings if f.code == "unstable-operation"]
    assert finding.step == 1
    assert finding.where == ("net.0 (Centred)",)
    assert report.causes[0].code == "unstable-operation"
    assert told(watch(net(1e-3), blobs(), GradientHealth(), max_epochs=1)) == []
