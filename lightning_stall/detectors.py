"""Conditions over a series of plain numbers: `update(value) -> bool` says whether the condition holds now.

A detector's settings are its constructor's arguments; its state is every other field, plain numbers and lists, so that
it is reset, shown and kept in a checkpoint without further code. Every duration is in updates of that detector.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, insort
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from statistics import median
from typing import Any, Literal


class Detector:
    """What all detectors share: their state as plain numbers."""

    def update(self, value: float) -> bool:
        """Take the next value; True while the condition holds."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """The state alone (settings come from the constructor again), fit for a checkpoint.

        A field that repr does not show follows from the others, and is not kept.
        """
        state = ((f.name, getattr(self, f.name)) for f in fields(self) if f.repr and not f.init)  # type: ignore[arg-type]
        return {name: list(value) if isinstance(value, list) else value for name, value in state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where `state_dict` was taken."""
        for name in self.state_dict():
            if name in state:
                value = state[name]
                setattr(self, name, list(value) if isinstance(value, list) else value)


LEFT_BEHIND = 0.25  # share of a constant predictor's loss, by which validation may stay above training


@dataclass
class Sustained(Detector):
    """Holds once the value has been above `limit` for `patience` updates in a row. NaN counts as above."""

    limit: float
    patience: int = 3
    run: int = field(default=0, init=False)

    def update(self, value: float) -> bool:
        self.run = 0 if value <= self.limit else self.run + 1
        return self.run >= self.patience


@dataclass
class Spike(Detector):
    """Holds when a positive value leaps `factor` times above the median of its last `history` values.

    The leap must also stand `sigmas` robust deviations (1.4826 times the median absolute deviation of the logarithm)
    above it, so that a series that is wild by nature has to be wilder still. Scale-free. Spikes and non-finite values
    do not enter the history, until `history` of them in a row make them the new normal.
    """

    factor: float = 10.0
    sigmas: float = 6.0
    history: int = 64
    warmup: int = 8
    logs: list[float] = field(default_factory=list, init=False)
    ordered: list[float] = field(default_factory=list, init=False, repr=False)  # the same, by size
    outside: int = field(default=0, init=False)

    def update(self, value: float) -> bool:
        if not math.isfinite(value):
            return True
        if value <= 0:
            return False
        log = math.log(value)
        leaps = len(self.logs) >= self.warmup and self._leaps(log)
        self.outside = self.outside + 1 if leaps else 0
        if leaps and self.outside < self.history:
            return True
        if leaps:
            self.logs.clear()
            self.ordered.clear()
            self.outside = 0
        self.logs.append(log)
        insort(self.ordered, log)
        if len(self.logs) > self.history:
            del self.ordered[bisect_left(self.ordered, self.logs.pop(0))]
        return leaps

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.ordered = sorted(self.logs)

    def _leaps(self, log: float) -> bool:
        """Whether it lies above the threshold, whose dearer half is worked out only where the cheap one is passed."""
        return log > self.ordered[(len(self.ordered) - 1) // 2] + math.log(self.factor) and log > self.threshold_log

    @property
    def threshold_log(self) -> float:
        """Logarithm of the least value that would be a spike now."""
        if not self.logs:
            return math.inf
        middle = median(self.logs)
        deviation = 1.4826 * median([abs(v - middle) for v in self.logs])
        return middle + max(math.log(self.factor), self.sigmas * deviation)

    @property
    def typical(self) -> float:
        """Median of the history, NaN while it is empty."""
        return math.exp(median(self.logs)) if self.logs else math.nan


@dataclass
class Plateau(Detector):
    """Holds once the value has not beaten its best by more than `threshold` (relative) for `patience` steps.

    `mode` "min" reads smaller as better. NaN and infinite values never count as progress. At least three values must
    have failed to beat the best: one bad epoch is no plateau, however many steps it had.
    """

    patience: int = 10
    threshold: float = 1e-3
    mode: Literal["min", "max"] = "min"
    best: float = field(default=math.nan, init=False)
    since: int = field(default=0, init=False)  # steps since the best
    failed: int = field(default=0, init=False)  # values since the best

    def update(self, value: float, steps: int = 1, noise: float = 0.0) -> bool:
        """Take the next value, `steps` after the last; it must beat the best by more than `noise` as well."""
        signed = value if self.mode == "min" else -value
        margin = max(self.threshold * abs(self.best), noise) if not math.isnan(self.best) else 0.0
        if math.isfinite(signed) and (math.isnan(self.best) or signed < self.best - margin):
            self.best, self.since, self.failed = signed, 0, 0
        else:
            self.since += steps
            self.failed += 1
        return self.failed >= 3 and self.since >= self.patience


@dataclass
class Oscillation(Detector):
    """Holds once the series has changed direction `turns` times in a row. Scale-free."""

    turns: int = 6
    last: float = field(default=math.nan, init=False)
    sign: int = field(default=0, init=False)
    run: int = field(default=0, init=False)

    def update(self, value: float) -> bool:
        sign = (value > self.last) - (value < self.last)
        self.run = self.run + 1 if sign * self.sign < 0 else 0
        self.last, self.sign = value, sign
        return self.run >= self.turns


@dataclass
class Trend(Detector):
    """Holds while the value has grown `factor` times over the last `window` updates. For positive values, scale-free."""

    factor: float = 10.0
    window: int = 20
    values: list[float] = field(default_factory=list, init=False)

    def update(self, value: float) -> bool:
        if math.isfinite(value) and value > 0:
            self.values.append(value)
            del self.values[: -self.window]
        if len(self.values) < self.window:
            return False
        third = self.window // 3
        return median(self.values[-third:]) > self.factor * median(self.values[:third])


@dataclass
class Overfitting(Detector):
    """Holds once a validation loss has risen from its best for `patience` validations while training went on falling.

    The rise must be `rise` of the best, and three times what validations differ by from one to the next, so that one bad
    epoch, or a noisy metric, is none. `update` takes the training loss of the same moment beside it, and, where it is
    known, what a constant predictor would reach (else the first loss): a rise of less than a twenty-fifth of that costs
    nobody a model.
    """

    patience: int = 3
    rise: float = 0.1
    values: list[float] = field(default_factory=list, init=False)
    trains: list[float] = field(default_factory=list, init=False)
    least: float = field(default=0.0, init=False)

    def update(self, value: float, train: float = math.nan, baseline: float = 0.0) -> bool:
        self.least = 0.04 * abs(baseline)
        self.values.append(value)
        self.trains.append(train)
        if len(self.values) > 512:  # the best is kept: what goes is the oldest that is not
            drop = 1 if self.values.index(min(self.values)) == 0 else 0
            del self.values[drop], self.trains[drop]
        if self.since < self.patience or len(self.values) < self.patience + 2:
            return False
        fell = self.train_now < self.train_then - 0.1 * abs(self.train_then)
        latest = self.values[-self.patience :]
        return fell and min(latest) > self.best + self.allowed

    def left_behind(self, baseline: float) -> bool:
        """Whether training has learnt nearly all, and validation far less, and no more of it for half of the run.

        Args:
            baseline: a constant predictor's loss, above 0.
        """
        half = len(self.values) // 2
        if half < 2 * self.patience or not baseline > 0 or not self.train_now < 0.1 * baseline:
            return False
        still = min(self.values[:half]) - self.best < 0.1 * baseline
        return still and self.recent > max(0.3 * baseline, self.train_now + LEFT_BEHIND * baseline)

    @property
    def best(self) -> float:
        """The least value so far."""
        return min(self.values)

    @property
    def since(self) -> int:
        """Validations since the best."""
        return len(self.values) - 1 - self.values.index(self.best)

    @property
    def recent(self) -> float:
        """Median of the last `patience` values."""
        return median(self.values[-self.patience :])

    @property
    def allowed(self) -> float:
        """The rise that passes for noise."""
        jumps = [b - a for a, b in itertools.pairwise(self.values)]
        middle = median(jumps)
        noise = 1.4826 * median([abs(j - middle) for j in jumps]) / math.sqrt(2)
        return max(self.rise * abs(self.best), 3 * noise, self.least)

    @property
    def train_then(self) -> float:
        """Training loss at the best validation."""
        return self.trains[self.values.index(self.best)]

    @property
    def train_now(self) -> float:
        """Training loss now."""
        return self.trains[-1]
