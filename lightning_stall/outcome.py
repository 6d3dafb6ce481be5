"""How the run fares, judged from its training loss alone: the gate for everything statistical we say.

The loss is kept as a curve of at most 128 bins whose width doubles with the run, so that memory and cost stay flat
while the whole shape remains. Levels are compared against the noise between neighbouring steps, against the run's own
past, and against what a constant predictor would reach on the labels seen (`baseline`), where that is known.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from statistics import fmean, median
from typing import Any, Literal

State = Literal[
    "too early", "learning", "converged", "stalled", "never learned", "diverging", "oscillating", "non-finite"
]
BAD: frozenset[str] = frozenset({"stalled", "never learned", "diverging", "oscillating", "non-finite"})

FEW_STEPS = 20  # optimizer steps under which nothing but a non-finite loss is judged
LONG_ENOUGH = 100  # optimizer steps at the full rate before "never learned" may be said
SIGNED = 4.0  # times its first values, that a loss of either sign must rise by to diverge
WORSE = 0.95  # times its start and a constant predictor's, that most steps of a young run that swings must stand at
SHARED = 0.1  # share of the first loss, from which on it has fallen by what samples have in common at least
MASTERED = 0.2  # share of a constant class's errors, from which on a classifier has learnt something
BINS = 128
AGAIN = 3.0  # times the rate of the step before, above which a rate has come back rather than crept up
LATELY = 12  # optimizer steps, that are set beside as many before them
MOST_LEAP = 30.0  # times the first loss, beyond which no plan adds to a loss
RECENT = 64  # optimizer steps kept one by one, for what happens suddenly


@dataclass(frozen=True)
class Outcome:
    """How the run fares at `step`, with the numbers that decided it.

    `evidence` may hold: start, best, level (smoothed losses), baseline (a constant predictor's loss), noise (standard
    deviation from step to step), gain (start minus level, as a share of what there was to gain), explained (share of
    the baseline that the model explains), trend (change of the level over the last quarter of the run, same unit), fall
    and fall_error (that change as a fall of the loss, and its standard error).
    """

    state: State = "too early"
    step: int = 0
    evidence: Mapping[str, float] = field(default_factory=dict)

    @property
    def bad(self) -> bool:
        """Whether statistical findings may speak."""
        return self.state in BAD


@dataclass
class LossCurve:
    """The training loss so far, in bounded memory. `horizon` is the number of optimizer steps planned, if known."""

    horizon: float = math.inf
    n: int = field(default=0, init=False)
    width: int = field(default=1, init=False)  # optimizer steps a bin
    means: list[float] = field(default_factory=list, init=False)
    jumps: list[float] = field(default_factory=list, init=False)  # mean squared difference of neighbours, by bin
    filled: int = field(default=0, init=False)  # steps in the last bin
    first: list[float] = field(default_factory=list, init=False)
    recent: list[float] = field(default_factory=list, init=False)
    last: float = field(default=math.nan, init=False)
    bad_steps: int = field(default=0, init=False)  # non-finite losses in a row
    rate: float = field(default=math.inf, init=False)  # of the last step
    top_rate: float = field(default=0.0, init=False)
    epochs: list[int] = field(
        default_factory=list, init=False
    )  # steps with a finite loss before each of the last epochs
    leaps: list[int] = field(default_factory=list, init=False)  # of these, those at which the loss leapt
    rising_until: int = field(default=0, init=False)  # the last step at which the learning rate was still warming up
    restarts: list[int] = field(default_factory=list, init=False)  # the last two steps at which a rate came back

    def update(self, loss: float, rate: float = 0.0, new_epoch: bool = False) -> None:
        """Take the loss of the next optimizer step, the learning rate it was taken with, and whether an epoch begins."""
        if new_epoch and rate <= 1.5 * self.rate:  # a loss that leaps with its rate leaps for it
            self.epochs = [*self.epochs[-7:], self.n]
        if AGAIN * self.rate < rate <= self.top_rate * 1.001:
            self.restarts = [*self.restarts[-1:], self.n]
        self.rate = rate
        if rate > self.top_rate * 1.001:
            if self.top_rate > 0:
                self.rising_until = self.n + 1
            self.top_rate = rate
        if not math.isfinite(loss):
            self.bad_steps += 1
            return
        self.bad_steps = 0
        self.n += 1
        jump = (loss - self.last) ** 2 if self.n > 1 else 0.0
        self.last = loss
        if len(self.first) < FEW_STEPS:
            self.first.append(loss)
        self.recent.append(loss)
        if len(self.recent) > RECENT:
            del self.recent[0]
        if not self.means or self.filled == self.width:
            if len(self.means) == BINS:
                self._halve()
            self.means.append(loss)
            self.jumps.append(jump)
            self.filled = 1
        else:
            self.filled += 1
            self.means[-1] += (loss - self.means[-1]) / self.filled
            self.jumps[-1] += (jump - self.jumps[-1]) / self.filled

    @property
    def warm(self) -> float:
        """Steps since the learning rate reached its height; what still rises in the second half warms nothing up."""
        return self.n - min(self.rising_until, 0.5 * self.horizon)

    @property
    def restarted(self) -> bool:
        """Whether the rate has come back, in one step, to a height it once had, and half as long again has not passed.

        With warm restarts the loss leaps there and comes down again with the rate.
        """
        if not self.restarts:
            return False
        lasted = self.restarts[-1] - (self.restarts[-2] if len(self.restarts) > 1 else 0)
        return lasted >= FEW_STEPS and self.n - self.restarts[-1] < lasted / 2

    @property
    def level_lately(self) -> bool:
        """Whether the last `LATELY` steps were no better, beyond noise, than as many before them."""
        before, now = self.recent[-2 * LATELY : -LATELY], self.recent[-LATELY:]
        return len(before) == LATELY and fmean(before) - fmean(now) < 2 * self.noise() * math.sqrt(2 / LATELY)

    def fall_of_half(self) -> tuple[float, float]:
        """How far the straight line through the second half of the curve falls in a quarter of it; its standard error."""
        half = self.means[len(self.means) // 2 :]
        n = len(half)
        if n < 4:
            return 0.0, math.inf
        middle, level = (n - 1) / 2, fmean(half)
        spread = sum((i - middle) ** 2 for i in range(n))
        slope = sum((i - middle) * (v - level) for i, v in enumerate(half)) / spread
        left = sum((v - level - slope * (i - middle)) ** 2 for i, v in enumerate(half))
        return -slope * n / 2, math.sqrt(left / (n - 2) / spread) * n / 2

    def _halve(self) -> None:
        self.means = [(a + b) / 2 for a, b in zip(self.means[::2], self.means[1::2], strict=True)]
        self.jumps = [(a + b) / 2 for a, b in zip(self.jumps[::2], self.jumps[1::2], strict=True)]
        self.width *= 2

    def state_dict(self) -> dict[str, Any]:
        state = ((f.name, getattr(self, f.name)) for f in fields(self) if not f.init)
        return {name: list(value) if isinstance(value, list) else value for name, value in state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in self.state_dict():
            if name in state:
                value = state[name]
                setattr(self, name, list(value) if isinstance(value, list) else value)

    def new_phase(self) -> int:
        """Steps since the loss leapt where an epoch began, as where a plan adds a term to it, and did not rise further.

        0 where it did not; where it did so at the first such place, or at another, as over sorted samples.
        """
        offset = self.n - len(self.recent)
        starts = [e for e in self.epochs if e > 0]
        for e in starts:
            before, after = (
                self.recent[max(0, e - offset - LATELY) : max(0, e - offset)],
                self.recent[max(0, e - offset) :],
            )
            if len(before) < LATELY // 2 or len(after) < LATELY:
                continue
            rise, half = median(after) - median(before), len(after) // 2
            above = sorted(after[:LATELY])[1] > max(before)  # all but one of the next steps, however noisy
            if not above or not 0.25 * abs(self.first[0]) < rise < MOST_LEAP * abs(self.first[0]):
                continue
            self.leaps = sorted({*self.leaps, e})
            stays = fmean(after[half:]) < fmean(after[:half]) + 0.1 * rise
            if stays and self.leaps == [e] and starts[0] < e:
                return len(after)
        return 0

    @property
    def leaps_now(self) -> bool:
        """Whether an epoch has just begun, and the loss with it stands above all that came before."""
        since = self.n - self.epochs[-1] if self.epochs else 0
        if (
            not 0 < since < 2 * LATELY
            or not math.isfinite(self.last)
            or len(self.recent) < since + LATELY // 2
            or len(self.epochs) < 3
        ):
            return False
        return min(self.recent[-since:]) > max(self.recent[-since - LATELY : -since])

    def since(self, steps: int) -> LossCurve:
        """A curve of the last steps alone, of which there are no more than are kept one by one."""
        new = LossCurve(horizon=self.horizon - (self.n - steps))
        for loss in self.recent[-steps:]:
            new.update(loss, self.top_rate)
        return new

    def level(self, steps: int) -> float:
        """Mean loss over about the last `steps` optimizer steps; NaN before the first."""
        if not self.means:
            return math.nan
        if steps <= len(self.recent):
            return fmean(self.recent[-steps:])
        return fmean(self.means[-max(1, round(steps / self.width)) :])

    def between(self, first: int, last: int) -> float:
        """Mean loss over about the optimizer steps from `first` to `last`; NaN before the first of all."""
        if not self.means:
            return math.nan
        low = max(0, min(first // self.width, len(self.means) - 1))
        return fmean(self.means[low : max(low + 1, math.ceil(last / self.width))])

    def steps_below(self, limit: float) -> int:
        """For how many optimizer steps, up to now, the local mean has been under `limit`."""
        below = 0
        for mean in reversed(self.means):
            if mean >= limit:
                break
            below += 1
        return below * self.width

    def noise(self, bins: slice = slice(None)) -> float:
        """Standard deviation of one step's loss around its local level (von Neumann's estimate), over these bins.

        The median over bins keeps one spike from passing for noise.
        """
        jumps = self.jumps[1:][bins] if bins == slice(None) else self.jumps[bins]
        if not jumps:
            return 0.0
        # the median of a chi-squared variable with one degree of freedom is 0.455 times its mean
        shrink = 0.455 if self.width == 1 else 1.0
        typical = median(jumps) / shrink
        return math.sqrt(min(typical, fmean(jumps)) / 2)


def judge(
    curve: LossCurve, step: int, baseline: float | None = None, floor: float | None = None, mastered: float = math.nan
) -> Outcome:
    """How a run with this loss curve fares.

    Args:
        curve: the losses so far.
        step: the optimizer step to put on the verdict.
        baseline: the loss of the best constant predictor on the labels seen, where known.
        floor: the least value this loss can take (0 for cross-entropy on hard labels, MSE, L1), where known.
        mastered: share of the errors of always naming the largest class that are made no more, NaN where not known. A
            classifier that is right is no constant one, whatever a few sure and wrong answers make of its loss.
    """
    if curve.bad_steps:
        return Outcome("non-finite", step, {"steps in a row": float(curve.bad_steps)})
    if curve.n < FEW_STEPS:
        return Outcome("too early", step)
    shape = _Shape.of(curve, baseline, floor)
    state = _state(curve, shape)
    evidence = shape.evidence()
    if not math.isnan(mastered):
        evidence["mastered"] = mastered
        if state == "never learned" and mastered > MASTERED:
            state = "stalled"
    return Outcome(state, step, evidence)


def paired(outcome: Outcome, learnt: bool | None, exact: bool, asked: bool = False, again: bool = True) -> Outcome:
    """The verdict on a loss of unknown scale, where it is known whether the model minds whose targets it is given.

    A loss around zero (a policy's, a critic's) is noisy: there it must not mind at all, which is `exact`. One that has
    fallen by what all samples share may be about to tell them apart: it is asked `again` before a word is said.
    """
    e = outcome.evidence
    if learnt is None and asked and outcome.state == "never learned":
        return Outcome("too early", outcome.step, e)  # it minds a little
    if learnt is False and not again and e.get("gain", 0.0) > SHARED:
        return Outcome("too early", outcome.step, e)
    if (
        learnt is None
        or outcome.state == "learning"
        or (not exact and abs(e.get("level", 0.0)) < 3 * e.get("noise", 0.0))
    ):
        return outcome
    return Outcome("converged" if learnt else "never learned", outcome.step, {**e, "paired": float(learnt)})


@dataclass(frozen=True)
class _Shape:
    start: float
    best: float
    level: float
    noise: float  # of one step, recently
    scale: float  # what there was to gain at the start
    floor: float | None
    baseline: float | None
    fall: float  # level of the third quarter minus level of the last
    fall_error: float  # standard error of `fall`
    projected: float  # level at the planned end, if the last half's slope went on

    @classmethod
    def of(cls, curve: LossCurve, baseline: float | None, floor: float | None) -> _Shape:
        n, bins = curve.n, len(curve.means)
        start = fmean(curve.first[: max(1, min(FEW_STEPS, n // 50))])
        quarter = max(1, bins // 4)
        late, before = fmean(curve.means[-quarter:]), fmean(curve.means[-2 * quarter : -quarter])
        noise = curve.noise(slice(-2 * quarter, None))
        steps = quarter * curve.width
        lately = curve.level(max(8, n // 10))
        level = min(late, lately) if late < before else lately
        span = min(bins, max(1, bins // 16, math.ceil(5 / curve.width)))
        sums = list(itertools.accumulate(curve.means, initial=0.0))
        best = min(b - a for a, b in zip(sums, sums[span:], strict=False)) / span
        top = max(start, baseline) if baseline is not None else start
        if floor is not None:
            scale = top - floor
        elif baseline is not None:
            scale = abs(baseline)
        else:
            scale = max(abs(start), start - best)
        slope = (before - late) / steps
        left = curve.horizon - n if math.isfinite(curve.horizon) else 10.0 * n
        return cls(
            start=start,
            best=best,
            level=level,
            noise=noise,
            scale=max(scale, 1e-12),
            floor=floor,
            baseline=baseline,
            fall=before - late,
            # neighbouring losses are not independent (shared weights, shared batches): twice the naive error
            fall_error=2 * noise * math.sqrt(2 / steps),
            projected=level - slope * max(0.0, left),
        )

    @property
    def gain(self) -> float:
        return (self.start - self.level) / self.scale

    @property
    def explained(self) -> float:
        """Share of the constant predictor's loss that the model has explained; from the start where none is known."""
        if self.baseline is None:
            return self.gain
        return (self.baseline - self.level) / max(abs(self.baseline - (self.floor or 0.0)), 1e-12)

    def evidence(self) -> dict[str, float]:
        numbers = {
            "start": self.start,
            "best": self.best,
            "level": self.level,
            "noise": self.noise,
            "gain": self.gain,
            "trend": -self.fall / self.scale,
            "fall": self.fall,
            "fall_error": self.fall_error,
        }
        if self.baseline is not None:
            numbers |= {"baseline": self.baseline, "explained": self.explained}
        return numbers


def _state(curve: LossCurve, s: _Shape) -> State:
    if not curve.restarted and _diverging(curve, s):
        return "diverging"
    warm = curve.warm
    if warm < FEW_STEPS:
        return "too early"
    falling = s.fall > 3 * s.fall_error and s.fall > 0.002 * s.scale
    if falling and not _too_slow(curve, s):
        return "learning"
    if _comes_down_from_a_step(curve, s):
        return "learning"
    if not curve.restarted and _oscillating(curve, s):
        return "oscillating"
    if s.explained >= 0.5:
        return "converged"
    if warm < LONG_ENOUGH:
        return "too early"
    if _nothing_learned(curve, s):
        return "never learned"
    if s.baseline is None and s.floor is None:
        return "converged"  # no scale to measure what is left: abstain
    return "stalled"


def _too_slow(curve: LossCurve, s: _Shape) -> bool:
    """The loss falls, yet at this pace the planned run ends where it began, or above a constant predictor."""
    if curve.warm < LONG_ENOUGH:
        return False
    end_gain = (s.start - s.projected) / s.scale
    if s.gain < 0.02 and end_gain < 0.1:
        return True
    return s.baseline is not None and s.gain < 0.1 and s.level > 1.2 * s.baseline and s.projected > s.baseline


def _nothing_learned(curve: LossCurve, s: _Shape) -> bool:
    error = s.noise * (1 / math.sqrt(max(8, curve.n // 10)) + 1 / math.sqrt(max(1, min(FEW_STEPS, curve.n // 50))))
    if s.baseline is not None:
        spread = 3 * s.noise / math.sqrt(max(8, curve.n // 10))
        if s.explained >= 0.05 or spread >= 0.5 * s.scale:
            return False
        # one that has just come down to the constant predictor has learnt the targets' mean, and may go on
        return curve.steps_below(s.level + 0.2 * abs(s.baseline)) >= LONG_ENOUGH
    if abs(s.level) < 3 * s.noise:  # a loss around zero (policy gradients, differences of critics) tells no level
        return False
    return s.gain < 0.02 or (s.gain * s.scale < 2 * error and error < 0.1 * s.scale)


def _diverging(curve: LossCurve, s: _Shape) -> bool:
    """Ten steps in a row worse than the start and than a constant predictor, far beyond noise, and not coming back."""
    last, before = curve.recent[-10:], curve.recent[-20:-10]
    if len(before) < 10:
        return False
    now = median(last)
    top = max(s.start, s.baseline if s.baseline is not None else s.start)
    # before the rise, where there is enough of it to tell: a diverging loss is its own noise
    noise = curve.noise(slice(1, max(2, len(curve.means) * 3 // 4))) if curve.n >= 40 else curve.noise()
    rise = now - s.best
    if s.baseline is None and s.floor is None and s.best < 0 and rise < SIGNED * max(map(abs, curve.first)):
        return False  # a loss of either sign, as a policy's or a critic's, wanders about zero
    beyond_noise = rise > 6 * noise and now > top + 4 * noise / math.sqrt(len(last))
    if not beyond_noise or rise < 0.25 * s.scale or now < top + 0.1 * s.scale:
        return False
    coming_back = median(last[5:]) < median(last[:5]) - 0.1 * rise and now < median(before)
    coming_back = coming_back or _comes_down_from_a_step(curve, s)
    return not coming_back and min(last) > s.best + 0.1 * s.scale


def _comes_down_from_a_step(curve: LossCurve, s: _Shape) -> bool:
    """The loss rose once, from one step to the next, as where a term is added to it, and falls smoothly from there."""
    recent = curve.recent
    if len(recent) < 2 * LATELY:
        return False
    jumps = [b - a for a, b in itertools.pairwise(recent)]
    at = max(range(len(jumps)), key=jumps.__getitem__)
    before, after = recent[max(0, at - LATELY + 1) : at + 1], recent[at + 1 :]
    if len(before) < LATELY // 2 or len(after) < LATELY:
        return False
    rise = median(after[:5]) - median(before)
    rough = median(abs(b - a) for a, b in itertools.pairwise([*before, *after]))
    if rise < 0.25 * s.scale or jumps[at] < 0.6 * rise:
        return False
    if rough > 0.05 * rise:
        return False
    first, second = median(after[: len(after) // 2]), median(after[len(after) // 2 :])
    return second < first - 0.05 * rise and median(after[-5:]) > median(before) + 0.1 * rise


def _oscillating(curve: LossCurve, s: _Shape) -> bool:
    """The loss swings around a level it does not leave: by turns (full batches), or far wider than at the start."""
    window = curve.recent[-40:]
    if len(window) < 30 or s.level < 0.3 * s.scale + (s.floor or 0.0):
        return False
    mean = fmean(window)
    off = [v - mean for v in window]
    power = sum(v * v for v in off)
    spread = math.sqrt(power / len(off))
    if spread < 0.03 * s.scale:
        return False
    turns = sum(a * b for a, b in itertools.pairwise(off)) / power
    if turns < -0.5:
        # batches of two kinds by turns swing too, and a run that learns from them is well
        return s.explained < 0.5 or s.fall <= 0
    start_noise = curve.noise(slice(1, max(3, FEW_STEPS // curve.width)))
    top = max(s.start, s.baseline if s.baseline is not None else s.start)
    if curve.n < LONG_ENOUGH and median(window) < WORSE * top:
        return False  # most steps are better than at the start: answers grow surer, and few samples swing by that alone
    return max(s.gain, s.explained) < 0.3 and spread > 0.3 * max(s.scale, abs(s.level)) and spread > 3 * start_noise
