"""What `OptimizerHealth` does about a learning rate that is too low."""

from __future__ import annotations

import math
from statistics import median
from typing import TYPE_CHECKING

from lightning_stall.finding import Finding
from lightning_stall.hub import EARLY_ENOUGH
from lightning_stall.trials.plan import STEPS
from lightning_stall.verdicts import rates
from lightning_stall.verdicts.inputs import Verdict

if TYPE_CHECKING:
    from lightning_stall.callbacks.optimizer_health import OptimizerHealth

EARLY_STEPS = 32  # optimizer steps, by the check of which it is known whether gradients are clipped too tightly
HARDLY = 0.02  # relative way that all steps together can move the weights, under which no copy need be asked


class RateHelp:
    """Raises a rate that is too low: on the word of a copy where one can be asked, else a step at a time.

    Args:
        owner: the `OptimizerHealth` that measures the updates, and speaks. Its `climb` decides.
    """

    def __init__(self, owner: OptimizerHealth) -> None:
        self.owner = owner
        self.asked = False  # a copy, before there was a verdict on the run
        self.unlimited = False  # and it learnt as it is: a limit in user code, which a copy does not run, may be why

    def judge(self) -> None:
        """At each verdict on the run: whether what was raised stays, is raised further, or goes back."""
        owner, climb, hub = self.owner, self.owner.climb, self.owner.hub
        if not climb.raised_at or climb.ended:
            return
        if not climb.tried and (limit := self._limit) is not None:
            climb.goal = 1 / limit.evidence["left"]
        ratio = median(owner.medians) if owner.medians else 0.0
        noise = hub.outcome.evidence.get("noise", 0.0) / math.sqrt(climb.cooldown)
        if owner.medians or hub.curve.bad_steps:  # a check has measured the new rate
            level = math.inf if hub.curve.bad_steps else self._level()
            self._climbed(climb.judge(hub.step, ratio, level, noise))

    def heed(self) -> None:
        """Raise the rate to what a trial on a copy has learnt by, whoever asked for it."""
        owner, hub = self.owner, self.owner.hub
        if self._settled or not hub.gate_open:
            return
        told = (f for f in reversed(hub.journal.findings) if f.code == "learning-rate-too-low")
        tried = next((f for f in told if f.evidence.get("trial", 0.0) > 0 and f.evidence.get("factor", 0.0) > 1), None)
        if tried is not None and not tried.evidence.get("fresh"):
            self._climbed(owner.climb.heed(hub.step, self._level(), tried.evidence["factor"]))

    def act(self, ratio: float) -> None:
        """Raise a rate that is too low, unless it is a limit that makes it so, and that has just been loosened."""
        if self._settled or not self.owner.hub.gate_open:
            return
        limit = self._limit
        if limit is None or not self._to_be_loosened:
            self._begin_climb(ratio, self._tried(ratio, limit), limit)

    def _begin_climb(self, ratio: float, tried: float | None, limit: Finding | None) -> None:
        goal = 1 / limit.evidence["left"] if limit is not None else 0.0
        self._climbed(self.owner.climb.begin(self.owner.hub.step, ratio, self._level(), tried, goal))

    @property
    def _limit(self) -> Finding | None:
        """What is known of a gradient limit that is too tight."""
        return next((f for f in self.owner.hub.journal.known() if f.code == "clipping-too-tight"), None)

    @property
    def _to_be_loosened(self) -> bool:
        """Whether the Trainer's limit is another's to loosen, and that has not been done, or only just now."""
        hub = self.owner.hub
        loosens = any("clipping-too-tight" in m.codes and m.auto_remedy and not m.failed for m in hub.members)
        mended = hub.mended.get("clipping-too-tight", hub.step)
        return bool(loosens and hub.trainer.gradient_clip_val and hub.step < mended + self.owner.climb.cooldown)

    @property
    def _settled(self) -> bool:
        """Whether the rate has been raised already, or another is about to ask whether other first weights learn by it."""
        climb = self.owner.climb
        anew = any(getattr(m, "may_begin_anew", False) and not m.failed for m in self.owner.hub.members)
        return bool(climb.raised_at or climb.ended or anew)

    def _tried(self, ratio: float, limit: Finding | None) -> float | None:
        """How many times a copy bore the rate; where it learnt as it is, the user's own limit is what it was rid of."""
        trials = self.owner.hub.trials
        if trials is None:
            return None
        tried = self._higher_rate(ratio)
        return 1 / limit.evidence["left"] if tried is None and limit is not None and trials.does_well else tried

    def _higher_rate(self, ratio: float) -> float | None:
        """How many times a copy bore the rate, and learnt by it, at this update-to-weight ratio."""
        most = 10 * rates.times_to_raise(ratio)
        found: float | None = self.owner.hub.trials.better_rate([10.0**i for i in range(1, 8) if 10.0**i <= most])
        return found

    def early(self) -> None:
        """Once, where nothing has been gained at an unusual rate: ask a copy before there is a verdict on the run."""
        hub = self.owner.hub
        if self._settled:
            return
        if hub.trials is None or not hub.nothing_yet or not hub.trials.ready or not self.owner.medians:
            return
        limit, ratio = self._limit, median(self.owner.medians)
        if limit is not None and self._to_be_loosened:
            return  # the limit makes it slow, and is about to be loosened
        low = rates.too_low(ratio, self.owner.planned, self.owner.rate)
        if low is not None and hub.here <= EARLY_STEPS:
            return  # by the check of that step it is known whether a limit is what makes it slow
        if low is not None and (not self.asked or (self.unlimited and limit is not None)):
            self._raise_early(low, ratio, limit)
        elif not self.asked and low is None and max(ratio, self.owner.largest_early) > rates.MUCH:
            self.asked = True
            for said in hub.trials.from_scratch((0.1, 0.01, 0.001), steps=STEPS):  # `PlateauWatch` heeds a trial
                self.owner.tell(
                    said.code, said.summary, advice=said.advice, evidence={**said.evidence, "strength": 0.6}
                )

    def _raise_early(self, low: Verdict, ratio: float, limit: Finding | None) -> None:
        """Raise a rate that can lead nowhere, where a copy bears it, or where none can be asked and it is very low."""
        trials, asked = self.owner.hub.trials, self.asked
        tried = 1 / limit.evidence["left"] if asked and limit is not None else self._tried(ratio, limit)
        declined = trials.declined is not None and not asked
        self.unlimited = not asked and tried is None and not declined and trials.does_well  # of a limit in user code
        self.asked = not declined or self.owner.hub.curve.warm >= 2 * EARLY_ENOUGH
        if tried is not None or (declined and (limit is not None or low.evidence["reach"] < HARDLY)):
            self.asked = True
            if limit is None:
                self.owner.tell(low.code, low.summary, advice=low.advice, evidence={**low.evidence, "trial": 1.0})
            else:  # the rate is raised for the limit, which is the cause
                self.owner.tell(
                    limit.code, limit.summary, advice=limit.advice, evidence=limit.evidence, where=limit.where
                )
            self._begin_climb(ratio, tried, limit)

    def _level(self) -> float:
        return self.owner.hub.curve.level(self.owner.climb.cooldown) if self.owner.hub.curve.n else math.nan

    def _climbed(self, done: str | None) -> None:
        """Apply what the climb decided, and tell it."""
        if done is None:
            return
        hub = self.owner.hub
        hub.rate.set(self.owner.state_key, self.owner.climb.factor)
        self.owner.medians = [
            m * self.owner.climb.factor / self.owner.climb.last for m in self.owner.medians[-1:]
        ]  # what the next check will see
        self.owner.tell(
            "learning-rate-too-low",
            f"The loss stands at {self._level():.4g} at step {hub.step}; the schedule's rate is "
            f"{self.owner.rate / max(self.owner.climb.last, 1e-30):.3g}.",
            severity="info",
            evidence={
                "factor_before": self.owner.climb.last,
                "factor_after": self.owner.climb.factor,
                "level": self._level(),
            },
            remedy=done,
        )
