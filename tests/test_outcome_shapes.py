"""The judgement of real healthy trainings with the loss curves that mislead: none of them is called bad, or blamed."""

from __future__ import annotations

import pytest

from benchmarks.zoo.run import load_cases, run
from lightning_stall import StallReport, stall_callbacks

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
