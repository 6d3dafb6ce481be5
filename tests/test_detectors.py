"""Tables of series with the exact updates at which each detector holds; and properties that no threshold may break."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_stall.detectors import Detector, Oscillation, Overfitting, Plateau, Spike, Sustained, Trend


def holds(detector: Detector, series: list[float]) -> list[int]:
    """The indices at which it holds."""
    return [i for i, v in enumerate(series) if detector.update(v)]


@pytest.mark.parametrize(
    ("detector", "series", "expected"),
    [
        (Sustained(limit=1.0, patience=3), [2, 2, 1, 2, 2, 2, 2, 0], [5, 6]),
        (Sustained(limit=1.0, patience=2), [math.nan, math.nan, 0.0], [1]),
        (Spike(factor=10, warmup=3), [1, 1, 1, 9, 11, 1], [4]),
        (Spike(factor=10, warmup=3), [1, 1, 1, math.nan, math.inf, 1], [3, 4]),
        (Spike(factor=10, warmup=3), [1, 1, 1, 0, 0, 0, 1], []),
        (Spike(factor=2, sigmas=6, warmup=6), [1, 2, 4, 1, 2, 4, 9, 9], []),  # wild by nature
        (Plateau(patience=3), [5, 4, 3, 3, 3, 3, 3], [5, 6]),
        (Plateau(patience=3), [5, 4, 3, math.nan, math.inf, 3], [5]),
        (Plateau(patience=3, mode="max"), [1, 2, 2, 2, 2, 3, 3], [4]),
        (Oscillation(turns=3), [1, 2, 1, 2, 1, 2, 3, 4], [4, 5]),
        (Trend(factor=10, window=6), [1, 1, 2, 4, 8, 16, 32, 64], [5, 6, 7]),
    ],
)
def test_holds_at(detector: Detector, series: list[float], expected: list[int]) -> None:
    assert holds(detector, series) == expected


def test_plateau_counts_steps_not_values() -> None:
    detector = Plateau(patience=100)
    assert not detector.update(1.0, 50)
    assert [detector.update(1.0, 50) for _ in range(3)] == [False, False, True], "three values, and 100 steps"


def test_plateau_wants_more_than_noise() -> None:
    detector = Plateau(patience=3)
    assert [detector.update(v, 1, noise=0.5) for v in (3.0, 2.8, 2.7, 2.6, 2.4)] == [False, False, False, True, False]


def test_a_new_normal_is_accepted() -> None:
    detector = Spike(factor=10, warmup=3, history=5)
    assert holds(detector, [1.0] * 5 + [100.0] * 12) == list(range(5, 10))


positive = st.lists(st.floats(1e-3, 1e3), min_size=5, max_size=100)
DETECTORS = [lambda: Spike(warmup=3), lambda: Plateau(patience=4), lambda: Oscillation(), lambda: Trend(window=9)]


@pytest.mark.parametrize("make", DETECTORS)
@given(positive, st.integers(-20, 20))
def test_scale_free(make, series: list[float], power: int) -> None:  # type: ignore[no-untyped-def]
    scaled = [v * 2.0**power for v in series]
    assert holds(make(), series) == holds(make(), scaled)


@pytest.mark.parametrize("make", DETECTORS)
@given(positive)
def test_silent_on_any_series_that_falls(make, series: list[float]) -> None:  # type: ignore[no-untyped-def]
    falling = [1e3 / 1.01**i for i, _ in enumerate(series)]
    assert holds(make(), falling) == []


@pytest.mark.parametrize("make", [*DETECTORS, lambda: Sustained(1.0)])
@given(positive, st.integers(1, 50))
def test_state_goes_on_exactly(make, series: list[float], cut: int) -> None:  # type: ignore[no-untyped-def]
    whole, first, second = make(), make(), make()
    expected = [whole.update(v) for v in series]
    got = [first.update(v) for v in series[:cut]]
    second.load_state_dict(first.state_dict())
    got += [second.update(v) for v in series[cut:]]
    assert got == expected
    assert second.state_dict() == whole.state_dict()


def test_overfitting_needs_more_than_a_bad_epoch() -> None:
    def holds_at(validation: list[float], train: list[float]) -> list[int]:
        watch = Overfitting()
        return [i for i, (v, t) in enumerate(zip(validation, train, strict=True)) if watch.update(v, t)]

    falling = [1.0 / (i + 1) for i in range(12)]
    assert holds_at([1, 0.8, 0.6, 0.5, 0.55, 0.62, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2], falling) == [8, 9, 10, 11]
    assert holds_at([1, 0.8, 0.6, 0.5, 0.9, 0.5, 0.48, 0.47, 0.47, 0.46, 0.46, 0.45], falling) == []
    assert holds_at([1, 0.8, 0.6, 0.5, 0.55, 0.62, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2], [0.3] * 12) == []
    assert holds_at([0.5, 0.9, 0.4, 1.0, 0.5, 0.9, 0.6, 1.1, 0.5, 0.8, 0.6, 1.0], falling) == []
