"""The judgement of real healthy trainings with the loss curves that mislead: none of them is called bad, or blamed."""

from __future__ import annotations

from typing import Any

import pytest
from lightning.pytorch import Callback

from benchmarks.zoo.run import load_cases, run
from lightning_stall import StallReport, stall_callbacks
from lightning_stall.testing import Classifier, blobs, mlp, watch

SHAPES = {
    "tiny-batches": "noisy mini-batch losses",
    "multistep-decay": "falls in steps after rate drops",
    "warmup-from-zero": "warm-up from zero",
    "cosine-to-zero": "a rate that goes to zero",
    "warm-restarts": "warm restarts",
    "half-noise": "a noise floor: R2 of 0.5 is the best there is",
    "zero-loss-for-long": "converged at 0 for epochs",
    "gan": "two adversaries",
    "flow-likelihood": "a loss below zero",
    "triplet": "exactly 0 on many batches",
    "summed-over-lengths": "summed over varying lengths",
    "twenty-steps": "a run of 20 steps",
    "accumulate-four": "accumulated gradients",
    "by-hand": "manual optimisation that returns nothing",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_a_healthy_shape_is_not_called_bad(name: str) -> None:
    callbacks = stall_callbacks()
    report = callbacks[-1]
    assert isinstance(report, StallReport)
    report.table = False
    result = run(load_cases()[name], 1, callbacks)
    assert result.error is None
    assert report.causes == []
    assert [f.code for f in report.findings if f.speaks] == []
    assert report.outcome in ("too early", "learning", "converged"), SHAPES[name]


class Leap(Callback):
    """The learning rate leaps at optimizer step 200, and the run falls apart."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def on_train_batch_start(self, trainer: Any, *rest: Any) -> None:
        if trainer.global_step == 200:
            trainer.optimizers[0].param_groups[0]["lr"] = self.rate


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("optimizer", "before", "after"), [("sgd", 0.1, 10.0), ("adam", 0.01, 1.0)])
def test_falling_apart_is_seen_within_20_steps(optimizer: Any, before: float, after: float, seed: int) -> None:
    module = Classifier(mlp(), rate=before, optimizer=optimizer)
    report = watch(module, blobs(), Leap(after), *stall_callbacks()[:-1], seed=seed, max_epochs=16)
    told = {f.code: f.step for f in reversed(report.findings) if f.speaks}
    assert min(told.values()) > 200
    assert min(told[code] for code in ("loss-diverging", "loss-oscillating") if code in told) <= 220
    assert told.get("loss-diverging", 0) <= 256  # or it swings
    assert report.causes[0].code == "learning-rate-too-high"
