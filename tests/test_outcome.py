"""How a run fares, on series with known shapes and on real trainings. More in the zoo."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_stall.measure.losses import Labels, recognise
from lightning_stall.outcome import BINS, LossCurve, Outcome, judge


def verdicts(
    series: list[float], baseline: float | None = None, floor: float | None = 0.0, rates: list[float] | None = None
) -> list[str]:
    """The outcome every ten steps."""
    curve = LossCurve(horizon=len(series))
    out = []
    for i, loss in enumerate(series):
        curve.update(loss, rates[i] if rates else 0.1)
        if (i + 1) % 10 == 0:
            out.append(judge(curve, i + 1, baseline, floor).state)
    return out


def noisy(shape: list[float], sigma: float, seed: int = 0) -> list[float]:
    draw = random.Random(seed)
    return [v + draw.gauss(0, sigma) for v in shape]


FALL = [0.1 + 2.2 * math.exp(-i / 80) for i in range(600)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("name", "series", "baseline"),
    [
        ("falls", FALL, 2.3),
        ("falls in steps", [2.0] * 5 + [1.2] * 200 + [0.6] * 200 + [0.3] * 200, 2.3),
        ("half explained is all there is", [2.0 * math.exp(-i / 10) + 1.0 for i in range(500)], 2.0),
        ("converged at once", [2.3, 1.0, 0.1] + [0.001] * 300, 2.3),
        ("was good from the start", [0.05] * 400, 2.3),
        ("warm restarts", [0.3 + 0.3 * math.cos(i / 30) ** 2 + 1.5 * math.exp(-i / 60) for i in range(500)], 2.3),
    ],
)
def test_well_shapes_are_never_called_lost(name: str, series: list[float], baseline: float, seed: int) -> None:
    lost = {"never learned", "diverging", "oscillating", "non-finite"}
    assert not lost & set(verdicts(noisy(series, 0.05, seed), baseline))


@pytest.mark.parametrize("seed", range(3))
def test_never_learned_is_said_by_step_110(seed: int) -> None:
    said = verdicts(noisy([2.3] * 300, 0.08, seed), 2.3)
    assert "never learned" not in said[:9]
    assert said[10:] == ["never learned"] * len(said[10:])


def test_warm_up_is_waited_for() -> None:
    rates = [i / 170 for i in range(170)] + [1.0] * 180
    said = verdicts(noisy([2.3] * 350, 0.05), 2.3, rates=rates)
    assert set(said[:26]) == {"too early"}
    assert said[-1] == "never learned"


def test_a_warm_up_as_long_as_the_run_is_none() -> None:
    rates = [i / 1000 for i in range(350)]
    said = verdicts(noisy([2.3] * 350, 0.05), 2.3, rates=rates)
    assert set(said[:26]) == {"too early"}
    assert said[-1] == "never learned"


@pytest.mark.parametrize("seed", range(3))
def test_divergence_is_seen_within_twenty_steps(seed: int) -> None:
    onset = 200
    series = noisy(FALL[:onset], 0.05, seed) + [0.3 * 1.6 ** min(i, 30) for i in range(60)]
    said = verdicts(series, 2.3)
    first = said.index("diverging") if "diverging" in said else -1
    assert onset / 10 <= first <= (onset + 20) / 10


def test_swings_between_two_values_are_seen() -> None:
    assert verdicts([3.0 + (-1) ** i for i in range(100)], 2.3)[-1] == "oscillating"


def test_not_finite() -> None:
    assert verdicts([1.0] * 9 + [math.nan])[-1] == "non-finite"
    assert verdicts([1.0] * 19 + [math.nan] + [1.0] * 10)[-1] != "non-finite"


@given(st.lists(st.floats(1e-3, 1e3), min_size=30, max_size=400))
@settings(max_examples=50, deadline=None)
def test_any_falling_series_is_well(values: list[float]) -> None:
    """Sorted downwards by a clear margin, it may be slow or fast, but it is neither diverging nor swinging."""
    series = sorted(values, reverse=True)
    assert not {"diverging", "oscillating", "non-finite"} & set(verdicts(series))


@given(st.floats(1e-6, 1e6))
@settings(max_examples=20, deadline=None)
def test_the_verdict_is_scale_free(scale: float) -> None:
    series = noisy(FALL, 0.05)
    assert verdicts([v * scale for v in series], 2.3 * scale) == verdicts(series, 2.3)


def test_memory_is_bounded_and_the_mean_is_kept() -> None:
    curve = LossCurve()
    for i in range(10_000):
        curve.update(float(i % 7))
    assert len(curve.means) <= BINS
    assert sum(curve.means[:-1]) / len(curve.means[:-1]) == pytest.approx(3.0, abs=0.01)
    assert curve.noise() == pytest.approx(2.0, rel=0.5)


def test_state_goes_on_exactly() -> None:
    whole, first, second = LossCurve(), LossCurve(), LossCurve()
    for i, v in enumerate(noisy(FALL, 0.1)):
        whole.update(v)
        if i == 313:
            second.load_state_dict(first.state_dict())
        (first if i < 313 else second).update(v)
    assert second.state_dict() == whole.state_dict()


def test_too_early_says_nothing() -> None:
    assert judge(LossCurve(), 0) == Outcome("too early", 0)
    assert not Outcome().bad


def test_a_classifier_that_is_right_has_learnt_whatever_its_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(4, (256,), generator=generator)
    logits = 0.1 * torch.randn(256, 4, generator=generator)
    for right, least, most in ((0, 0.0, 0.0), (256, 0.85, 1.0)):
        labels = Labels()
        sure = logits.clone().requires_grad_()
        scores = sure + 30.0 * torch.nn.functional.one_hot(target, 4) * (torch.arange(256) < right)[:, None]
        seen = recognise(torch.nn.functional.cross_entropy(scores, target))
        assert seen is not None
        labels.update(seen)
        assert least <= labels.mastered() <= most
    curve = LossCurve()
    for _ in range(150):
        curve.update(1.4)
    assert judge(curve, 150, baseline=1.386, floor=0.0).state == "never learned"
    assert judge(curve, 150, baseline=1.386, floor=0.0, mastered=0.6).state == "stalled"
