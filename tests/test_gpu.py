"""On a CUDA device: nothing waits between checks, and what is said there is what is said on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_stall import AutoClip, GradientHealth, PlateauWatch, StallReport, stall_callbacks
from lightning_stall.hub import due
from lightning_stall.sinks import StallWarning
from lightning_stall.testing import Classifier, blobs, mlp, nan_batch

pytestmark = pytest.mark.gpu

EVERY = 50


class NoWaits(Callback):
    """Between checks, any wait of the host for the device is an error."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.fit_loop.epoch_loop._batches_that_stepped + 1
        quiet = step > 2 and not due(step, EVERY) and not due(step - 1, EVERY)
        torch.cuda.set_sync_debug_mode("error" if quiet else "default")
        if quiet:
            self.steps.append(step)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        torch.cuda.set_sync_debug_mode("default")


class Silent(Classifier):
    """Logs nothing: Lightning's own logging waits."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0] if self.corrupt is None else self.corrupt(batch[0], batch_idx)
        return F.cross_entropy(self(x), batch[1])


def fit(module: Any, callbacks: list[Any], tmp_path: Any, **settings: Any) -> Trainer:
    trainer = Trainer(
        accelerator="gpu",
        devices=1,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        log_every_n_steps=EVERY,
        **{"max_epochs": 8, **settings},
    )
    trainer.fit(module, blobs(pin_memory=True))
    return trainer


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("optimizer", ["adam", "fused-adam", "momentum"])
def test_the_whole_family_never_waits_between_checks(tmp_path: Any, precision: Any, optimizer: Any) -> None:
    guard = NoWaits()
    callbacks = [guard, *stall_callbacks()]
    fit(Silent(mlp(batchnorm=True), optimizer=optimizer, rate=1e-3), callbacks, tmp_path, precision=precision)
    assert [c.failed for c in callbacks[1:]] == [None] * (len(callbacks) - 1)
    assert len(guard.steps) > 100


class ByHand(Silent):
    """Its cross-entropy is written with logarithms."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        shares = self(batch[0]).float().softmax(1)
        return -(F.one_hot(batch[1], 4) * torch.log(shares + 1e-9)).sum(1).mean()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_a_loss_written_by_hand_is_recognised_without_waits_between_checks(tmp_path: Any, precision: Any) -> None:
    guard = NoWaits()
    callbacks = [guard, *stall_callbacks()]
    scaled = precision == "16-mixed"  # a GradScaler's own step waits
    fit(ByHand(mlp(), rate=1e-3), callbacks[scaled:], tmp_path, precision=precision)
    assert [c.failed for c in callbacks[1:]] == [None] * (len(callbacks) - 1)
    hub = callbacks[-1].hub
    assert hub.labels.kind == "cross-entropy"
    assert hub.baseline == pytest.approx(1.386, rel=0.03)
    assert scaled or len(guard.steps) > 100


def test_clipping_a_fused_optimizer_never_waits(tmp_path: Any) -> None:
    guard = NoWaits()
    callbacks = [guard, GradientHealth(auto_remedy=True), AutoClip(), PlateauWatch()]
    fit(Silent(mlp(), optimizer="fused-adam"), callbacks, tmp_path)
    assert [c.failed for c in callbacks[1:]] == [None] * 3
    assert len(guard.steps) > 100


@pytest.mark.parametrize("optimizer", ["adam", "fused-adam", "momentum"])
@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
def test_a_nan_batch_is_left_out(tmp_path: Any, optimizer: Any, precision: Any) -> None:
    ill = nan_batch(optimizer=optimizer, rate=1e-2)
    report = StallReport(table=False)
    watcher = GradientHealth(auto_remedy=True)
    with pytest.warns(StallWarning):
        fit(ill, [watcher, report], tmp_path, precision=precision)
    assert watcher.failed is None
    assert all(bool(t.isfinite().all()) for t in ill.state_dict().values())
    assert "nonfinite-loss" in [f.code for f in report.findings]


def test_readings_are_those_of_the_cpu(tmp_path: Any) -> None:
    curves = []
    for accelerator in ("cpu", "gpu"):
        torch.manual_seed(0)
        watcher = GradientHealth()
        module = Silent(nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 4)), rate=1e-3)
        loader = blobs(shuffle=False)
        Trainer(
            accelerator=accelerator,
            devices=1,
            callbacks=[watcher],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            max_epochs=3,
        ).fit(module, loader)
        assert watcher.hub.curve.n == 48
        curves.append(watcher.hub.curve.means)
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)
