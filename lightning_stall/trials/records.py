"""What a trial is in plain floats: an arm, the fit it made, the run's situation, and what it means to win. No torch.

An arm *wins* where it brings batches it was not fitted on well below both the run's own loss on them and a constant
predictor's, beyond the spread from batch to batch. Fitting a few batches by heart is no win, at any rate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Literal

WIN = 0.1  # of what there was to gain, by which an arm must better the run
LEFT = 0.2  # of what a run that rests had still to gain, by which a calmer one must better it
SURE = 3.0  # and as many standard errors over the batches
SHORT = 0.3  # of the variance of the targets: so much less than the samples tell is far less
WORSE = 0.2  # of what there was to gain, by which a loss that rose has diverged


@dataclass(frozen=True)
class Arm:
    """One what-if: where it starts, and what is changed."""

    start: Literal["now", "fresh"] = "now"  # from the run's weights, or from a fresh initialisation
    factor: float = 1.0  # of the run's rate, by the run's own optimizer
    adam: float = 0.0  # or a plain Adam at this rate
    scaled: bool = False  # inputs standardised
    free: bool = False  # without weight decay and dropout
    shuffled: bool = False  # targets given to other samples
    one: int = -1  # only this batch, by heart; -1 for all

    @property
    def name(self) -> str:
        optimizer = f"Adam at {self.adam:g}" if self.adam else f"rate x{self.factor:g}"
        extras = {
            "standardised inputs": self.scaled,
            "no decay or dropout": self.free,
            "shuffled targets": self.shuffled,
            "one batch": self.one >= 0,
        }
        start = "fresh weights" if self.start == "fresh" else "the weights as they are"
        return ", ".join([optimizer, start, *(k for k, v in extras.items() if v)])


@dataclass(frozen=True)
class Fit:
    """What one arm did: mean losses of each batch, before and after `steps` optimizer steps."""

    arm: Arm
    steps: int
    seconds: float
    losses: tuple[float, ...]  # of each step
    before: tuple[float, ...]  # of batches it is not fitted on (of the fitted ones, where there are no others)
    after: tuple[float, ...]  # the same, at the best of a few looks

    @property
    def lived(self) -> bool:
        return bool(self.after) and all(map(math.isfinite, (*self.after, *self.losses)))

    @property
    def halved(self) -> int:
        """Steps until its loss was half of what it was at first; all of them where it never was."""
        return next((i for i, loss in enumerate(self.losses, 1) if loss < 0.5 * self.losses[0]), len(self.losses))


@dataclass(frozen=True)
class Situation:
    """What is known of the run when the trials are made."""

    state: str  # the outcome
    level: tuple[float, ...] = ()  # the run's own loss on the judged batches; empty where not finite
    baseline: float | None = None
    floor: float | None = None
    start: float | None = None  # the run's first loss
    rate: float = math.nan
    peak: float = 1.0  # how many times the present rate the run's highest was
    gained: float = 0.0  # share of what there was to gain at the start that the run gained
    shown: float = math.nan  # share of the targets' variance that nearest others, or a line, explain without the model
    names: int = 0  # how many there are in two columns that tell it, as tables of factors
    bond: float = math.nan  # of samples and targets without the model, in standard deviations above shuffled ones
    explained: float = math.nan  # share of a constant predictor's loss that the run explains; `gained` without one
    absolute: bool = False  # the loss is of absolute errors, not of their squares
    moved: float = math.nan  # median change of the weights in a step, over their size
    finite_steps: int = 0  # steps with a finite loss so far
    weights: int = 0  # trainable
    targets: int = 0  # numbers in the targets of one batch; 0 where not known
    regularised: bool = False  # there is weight decay, or dropout
    off_scale: bool = False  # the inputs are far from unit scale
    uneven: bool = False  # and their columns from each other's
    apart: bool = True  # arms are judged on batches they are not fitted on
    spoken: frozenset[str] = frozenset()  # causes told by others

    @property
    def steady(self) -> bool:
        """Whether the loss stands still, rather than running away."""
        return self.state in ("never learned", "stalled")

    @property
    def of_variance(self) -> float:
        """Share of the targets' variance that the run explains, about: to halve the errors is to quarter their squares."""
        known = max(self.explained, 0.0)
        return 1 - (1 - min(known, 1.0)) ** 2 if self.absolute else known

    @property
    def reference(self) -> float:
        """What an arm has to better: the run's loss or a constant predictor's, whichever is less."""
        known = [fmean(self.level)] if self.level else []
        known += [self.baseline] if self.baseline is not None else []
        return min(known, default=math.nan)

    @property
    def scale(self) -> float:
        """What there was to gain when the run began: a small step near the end of a good run is no win."""
        top = self.baseline if self.baseline is not None else self.start
        top = self.reference if top is None or not math.isfinite(top) else max(top, self.reference)
        return max(top - self.floor if self.floor is not None else abs(top), 1e-12)

    def gain(self, fit: Fit) -> float:
        """Share of what there is to gain that this arm gained; negative where it is worse than the run."""
        if not fit.lived or not math.isfinite(self.reference):
            return -math.inf
        return (self.reference - fmean(fit.after)) / self.scale

    def won(self, fit: Fit | None) -> bool:
        if fit is None or fit.arm.one >= 0 or fit.arm.shuffled or self.gain(fit) < WIN:
            return False
        if fmean(fit.losses[-max(1, len(fit.losses) // 4) :]) > self.reference:
            return False  # it had it, and lost it again
        if len(fit.after) < 2:
            return self.gain(fit) > 2 * WIN
        # against the run's own loss batch by batch; against a constant predictor's, which is known for all only
        paired = self.reference != self.baseline and len(self.level) == len(fit.after)
        of = self.level if paired else (self.reference,) * len(fit.after)
        falls = [a - b for a, b in zip(of, fit.after, strict=True)]
        return fmean(falls) > SURE * stdev(falls) / math.sqrt(len(falls))

    def bettered(self, fit: Fit, than: Fit | None = None) -> bool:
        """Whether an arm did better than the run itself, or than another, by a part of what it still had to gain."""
        of = self.level if than is None else than.after
        if not fit.lived or len(of) != len(fit.after) or len(of) < 2:
            return False
        lead = [b - a for a, b in zip(fit.after, of, strict=True)]
        left = fmean(of) - (self.floor if self.floor is not None else 0.0)
        sure = SURE if than is None else 1.0  # its own rate goes up and down, and may have had luck
        return fmean(lead) > max(LEFT * abs(left), sure * stdev(lead) / math.sqrt(len(lead)))

    def falls_short(self, fits: Fits) -> bool:
        """Whether what the samples tell without the model is far more than the best of these fits has come to."""
        gained = max((self.gain(f) for f in fits.all.values() if self.won(f)), default=0.0)
        return self.shown - self.of_variance - gained > SHORT

    def better(self, fit: Fit, than: Fit | None) -> bool:
        """Whether one arm did better than another on the same batches, beyond noise."""
        if than is None or not than.lived:
            return fit.lived
        lead = [b - a for a, b in zip(fit.after, than.after, strict=True)]
        error = stdev(lead) / math.sqrt(len(lead)) if len(lead) > 1 else 0.0
        return fmean(lead) > max(0.5 * WIN * self.scale, SURE * error)

    def diverged(self, fit: Fit | None) -> bool:
        return fit is not None and (not fit.lived or fmean(fit.after) > fmean(fit.before) + WORSE * self.scale)


@dataclass(frozen=True)
class Conclusion:
    """What the trials say of one code: `weight` from 1 (it holds) to -1 (it does not)."""

    code: str
    weight: float
    summary: str
    evidence: Mapping[str, float] = field(default_factory=dict)
    advice: str = ""


class Fits:
    """The fits made so far, by arm."""

    def __init__(self, fits: Iterable[Fit] = ()) -> None:
        self.all = {f.arm: f for f in fits}

    def add(self, fit: Fit) -> None:
        self.all[fit.arm] = fit

    def get(self, **arm: object) -> Fit | None:
        return self.all.get(Arm(**arm))  # type: ignore[arg-type]

    def rates(self, start: str) -> dict[float, Fit]:
        """Fits by the run's own optimizer that differ in the rate alone, by factor."""
        return {
            a.factor: f
            for a, f in self.all.items()
            if a == Arm(start=start, factor=a.factor)  # type: ignore[arg-type]
        }

    @property
    def seconds(self) -> float:
        return sum(f.seconds for f in self.all.values())
