"""What `auto_remedy` does about an ill run, told as done, and the run that learns for it; nothing where it is off."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_stall import (
    BatchNormBatchSizeGuard,
    InputHealth,
    OptimizerHealth,
    PlateauWatch,
    StallReport,
    stall_callbacks,
)
from lightning_stall.sinks import StallWarning
from lightning_stall.testing import Classifier, blobs, healthy, mlp, watch

ROW = 7  # the corrupt one


def family(auto_remedy: bool) -> list[Any]:
    """All but the report, which `watch` brings along."""
    return list(stall_callbacks(auto_remedy=auto_remedy)[:-1])


def done(report: StallReport, code: str = "") -> list[str]:
    return [f.remedy for f in report.findings if f.remedy and code in ("", f.code)]


def top(report: StallReport) -> str:
    return report.causes[0].code if report.causes else ""


def accuracy(module: Classifier, data: DataLoader[Any] | None = None) -> float:
    x, y = (data or blobs(draw=1)).dataset.tensors  # type: ignore[attr-defined]
    with torch.no_grad():
        return float((module.eval()(x).argmax(1) == y).float().mean())


class Regressor(LightningModule):
    """A regression under MSE and plain SGD."""

    def __init__(self, net: nn.Module, rate: float) -> None:
        super().__init__()
        self.net, self.rate = net, rate

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self.rate)

    def unexplained(self, data: DataLoader[Any]) -> float:
        """Share of the variance."""
        x, y = data.dataset.tensors  # type: ignore[attr-defined]
        with torch.no_grad():
            return float(F.mse_loss(self.net(x), y) / y.var())


# ------------------------------------------------------------------------------------------------- a corrupt sample


def table(size: float = 1.0) -> DataLoader[Any]:
    """A regression in which one row of the inputs is `size` times too large."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(512, 6, generator=g)
    y = torch.tanh(x[:, :1]) + 0.5 * x[:, 1:2] + 0.1 * torch.randn(512, 1, generator=g)
    x[ROW] *= size
    return DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True)


def small(seed: int = 0) -> Regressor:
    torch.manual_seed(seed)
    return Regressor(nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 1)), rate=0.05)


@pytest.mark.parametrize("seed", range(2))
def test_a_corrupt_sample_is_left_out_with_its_batch(seed: int) -> None:
    mended, clean = small(seed), small(seed)
    report = watch(mended, table(1e4), *family(True), max_epochs=12, seed=seed)
    watch(clean, table(), max_epochs=12, seed=seed)
    (remedy,) = done(report, "corrupt-samples")
    assert remedy.startswith("left out each such batch from step ")
    first = int(remedy.split()[-2])
    assert min(report.hub.spared) >= first
    # one batch of 16 an epoch, but for that in which it was found
    epochs = 12 - (first - 1) // 16
    assert len(report.hub.spared) in (epochs - 1, epochs)
    assert mended.unexplained(table()) < 1.2 * clean.unexplained(table())
    assert report.outcome == "converged"
    assert top(report) == "corrupt-samples", "though the run went on to learn"


def test_a_corrupt_sample_is_only_told_of_without_a_remedy() -> None:
    module = small()
    report = watch(module, table(1e4), *family(False), max_epochs=12)
    assert top(report) == "corrupt-samples"
    assert done(report) == []
    assert report.hub.spared == set()
    assert not module.unexplained(table()) < 1.0


def test_nothing_is_left_out_of_clean_data() -> None:
    report = watch(small(), table(), *family(True), max_epochs=12)
    assert report.hub.spared == set()
    assert report.findings == []


def test_a_resumed_run_keeps_the_limits(tmp_path: Path, make_trainer: Callable[..., Trainer]) -> None:
    seed_everything(0, verbose=False)
    first, again = InputHealth(auto_remedy=True), InputHealth(auto_remedy=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StallWarning)
        trainer = make_trainer([first, StallReport(table=False)], max_epochs=3)
        trainer.fit(small(), table(1e4))
        trainer.save_checkpoint(tmp_path / "c.ckpt")
        kept = first.state()["limits"]
        assert list(kept) == ["batch[0]"]
        report = StallReport(table=False)
        # every batch of the first epoch after it, so before anything could be learnt anew
        make_trainer([again, report], max_epochs=4).fit(small(1), table(1e4), ckpt_path=tmp_path / "c.ckpt")
    assert torch.equal(again.state()["limits"]["batch[0]"], kept["batch[0]"])
    assert len(report.hub.spared) == 1
    assert 48 < min(report.hub.spared) <= 64


# --------------------------------------------------------------------------------------------- a start that explodes


class Reader(nn.Module):
    """The last state of a recurrent layer with ReLU, whose weights make more of each state than there was."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.read, self.head = nn.RNN(1, 24, nonlinearity="relu", batch_first=True), nn.Linear(24, 1)
        nn.init.orthogonal_(self.read.weight_hh_l0, gain=gain)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.read(x)[0][:, -1])
        return out


def waves(length: int = 40) -> DataLoader[Any]:
    """Sine waves, and the value after each."""
    g = torch.Generator().manual_seed(0)
    pace, phase = 0.2 + 0.3 * torch.rand(256, 1, generator=g), 6.3 * torch.rand(256, 1, generator=g)
    wave = torch.sin(torch.arange(length + 1.0) * pace + phase)
    return DataLoader(TensorDataset(wave[:, :-1, None], wave[:, -1:]), batch_size=32, shuffle=True)


@pytest.mark.parametrize("seed", range(2))
def test_a_start_that_explodes_is_cut_and_begun_again(seed: int) -> None:
    torch.manual_seed(seed)
    module = Regressor(Reader(1.8), rate=0.03)
    report = watch(module, waves(), *family(True), max_epochs=25, seed=seed)
    cut = done(report, "exploding-gradients")[0]
    assert cut.startswith("cut all gradients to a norm of 1 from step ")
    assert int(cut.split()[-2]) <= 5
    assert done(report, "loss-diverging")[0] == "went back to the weights of step 0"
    assert all(bool(p.isfinite().all()) for p in module.parameters())
    assert module.unexplained(waves()) < 0.1
    assert top(report) == "exploding-gradients", "though the run went on to learn"


def test_a_start_that_explodes_without_a_remedy() -> None:
    torch.manual_seed(0)
    module = Regressor(Reader(1.8), rate=0.03)
    report = watch(module, waves(), *family(False), max_epochs=5)
    assert done(report) == []
    assert report.outcome == "non-finite"
    assert not module.unexplained(waves()) < 1.0


# --------------------------------------------------------------------------------------------- a limit far too tight


def slow(auto_remedy: bool) -> tuple[StallReport, Classifier]:
    torch.manual_seed(0)
    module = healthy(optimizer="sgd", rate=0.1)
    report = watch(module, blobs(), *family(auto_remedy), max_epochs=20, gradient_clip_val=1e-4)
    return report, module


def test_the_trainers_limit_is_loosened_and_put_back() -> None:
    report, module = slow(auto_remedy=True)
    (remedy,) = done(report, "clipping-too-tight")
    assert remedy.startswith("loosened the Trainer's limit to ")
    assert float(remedy.removeprefix("loosened the Trainer's limit to ").split()[0]) > 0.01
    assert module.trainer.gradient_clip_val == 1e-4
    assert accuracy(module) > 0.9
    assert [r for r in done(report) if "learning rate" in r] == [], "one remedy for one cause"
    assert top(report) == "clipping-too-tight", "though the run went on to learn"


def test_the_trainers_limit_stays_without_a_remedy() -> None:
    report, module = slow(auto_remedy=False)
    assert top(report) == "clipping-too-tight"
    assert done(report) == []
    assert module.trainer.gradient_clip_val == 1e-4
    assert accuracy(module) < 0.5


# ------------------------------------------------------------------------------------------------- batches of two


class Statistics(Callback):
    """Keeps a copy of every running statistic after each step."""

    def __init__(self) -> None:
        self.means: list[Tensor] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.means.append(torch.cat([m.running_mean for m in norms(pl_module)]).clone())


def norms(module: nn.Module) -> list[nn.BatchNorm1d]:
    return [m for m in module.modules() if isinstance(m, nn.BatchNorm1d)]


def by_twos(auto_remedy: bool, seed: int) -> tuple[StallReport, Classifier, Statistics]:
    torch.manual_seed(seed)
    module, statistics = Classifier(mlp(batchnorm=True), rate=3e-3), Statistics()
    guard = BatchNormBatchSizeGuard(auto_remedy=auto_remedy)
    assert guard.remedy == "auto"
    report = watch(module, blobs(samples=400, batch_size=2), guard, statistics, max_epochs=3, seed=seed)
    return report, module, statistics


@pytest.mark.parametrize("seed", range(2))
def test_batches_of_two_are_normalised_by_running_statistics(seed: int) -> None:
    report, module, statistics = by_twos(True, seed)
    (remedy,) = done(report, "batchnorm-small-batch")
    assert remedy.startswith("normalised every batch from here on by the running statistics")
    assert all(m.training for m in norms(module)), "the flags are back after the fit"
    step = next(f.step for f in report.findings if f.remedy)
    late = statistics.means[step:]
    assert all(not torch.equal(a, b) for a, b in pairwise(late)), "they follow the batches"
    _, without, _ = by_twos(False, seed)
    assert loss_of(module) < loss_of(without)
    assert accuracy(module) >= accuracy(without)
    assert top(report) == "batchnorm-small-batch"


def loss_of(module: Classifier) -> float:
    x, y = blobs(draw=1).dataset.tensors  # type: ignore[attr-defined]
    with torch.no_grad():
        return float(F.cross_entropy(module.eval()(x), y))


# ------------------------------------------------------------------------------------------- statistics that lag behind


def shifted() -> DataLoader[Any]:
    """Inputs away from 0, so that the statistics which a layer begins with fit nothing."""
    data = blobs()
    data.dataset.tensors[0].mul_(3.0).add_(4.0)  # type: ignore[attr-defined]
    return data


def lagging(auto_remedy: bool, momentum: float = 1e-4, seed: int = 0) -> tuple[StallReport, Classifier]:
    torch.manual_seed(seed)
    module = Classifier(mlp(batchnorm=True), rate=3e-3)
    for layer in norms(module):
        layer.momentum = momentum
    guard = BatchNormBatchSizeGuard(auto_remedy=auto_remedy)
    return watch(module, shifted(), guard, max_epochs=16, seed=seed), module


@pytest.mark.parametrize("seed", range(2))
def test_stale_statistics_are_estimated_anew(seed: int) -> None:
    report, module = lagging(True, seed=seed)
    (remedy,) = done(report)
    assert remedy.startswith("estimated them anew from the last ")
    x, y = shifted().dataset.tensors  # type: ignore[attr-defined]
    evaluated = accuracy(module, shifted())
    with torch.no_grad():
        trained = float((module.train()(x).argmax(1) == y).float().mean())
    assert evaluated > trained - 0.03
    assert trained > 0.9
    assert top(report) == "batchnorm-stale-statistics"


def test_stale_statistics_stay_without_a_remedy() -> None:
    report, module = lagging(False)
    assert done(report) == []
    assert accuracy(module, shifted()) < 0.8


def test_a_healthy_batchnorm_net_keeps_its_buffers_bitwise() -> None:
    kept = []
    for auto_remedy in (True, False):
        report, module = lagging(auto_remedy, momentum=0.1)
        assert report.findings == []
        kept.append([t.clone() for t in (*module.buffers(), *module.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*kept, strict=True))


# ------------------------------------------------------------------------------------------------- a rate far too low


@pytest.mark.parametrize("seed", range(2))
def test_a_rate_too_low_is_raised_once_to_what_a_copy_has_borne(seed: int) -> None:
    torch.manual_seed(seed)
    module = healthy(rate=1e-7)
    report = watch(module, blobs(), *family(True), max_epochs=30, seed=seed)
    (remedy,) = done(report)
    assert remedy.startswith("raised the learning rate at step ")
    assert remedy.endswith("as on a copy that learnt by it")
    assert accuracy(module) > 0.9
    assert module.trainer.optimizers[0].param_groups[0]["lr"] == 1e-7, "the schedule's own rate is left alone"
    assert top(report) == "learning-rate-too-low", "though the run went on to learn"


def test_the_rate_is_not_lowered_where_it_is_too_low() -> None:
    """A plateau, by the patience given, of a run that has not moved from where it was."""
    torch.manual_seed(0)
    watchers = OptimizerHealth(), PlateauWatch(patience=20, auto_remedy=True)
    report = watch(healthy(rate=1e-7), blobs(), *watchers, max_epochs=15)
    assert top(report) == "learning-rate-too-low"
    assert done(report) == []


def test_a_rate_too_low_stays_without_a_remedy() -> None:
    torch.manual_seed(0)
    module = healthy(rate=1e-7)
    report = watch(module, blobs(), *family(False), max_epochs=15)
    assert top(report) == "learning-rate-too-low"
    assert done(report) == []
    assert accuracy(module) < 0.5


@pytest.mark.parametrize("seed", range(2))
def test_a_rate_far_too_high_is_lowered_to_what_fresh_weights_have_borne(seed: int) -> None:
    torch.manual_seed(seed)
    module, members = Classifier(mlp(depth=3), rate=10.0), family(True)
    report = watch(module, blobs(), *members, max_epochs=8, seed=seed)
    (remedy,) = done(report)
    assert remedy.endswith("at step 30, and went back to the weights it began with")
    assert accuracy(module) > 0.9
    assert [c.code for c in report.causes] == ["learning-rate-too-high"]
    (health,) = [m for m in members if isinstance(m, OptimizerHealth)]
    assert health.scheduled == 10.0, "what a remedy makes of the rate is not the schedule's doing"
    assert health.rate < 0.2
