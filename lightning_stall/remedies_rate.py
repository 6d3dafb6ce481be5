"""Raising a learning rate that is too low, tenfold at a time, as long as the run is no worse for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

ENOUGH = 1e-3  # update-to-weight ratio from which on the rate is raised no more
LEAP = 1e-4  # the ratio up to which a raise may go at once: weights so moved are hardly another model
SOON = 10  # optimizer steps, after which a raise that has hardly moved the weights may be followed by the next
TIMES = 10.0
FAR = 0.5  # of the loss, by which it has grown beyond what short steps may do


@dataclass
class RateClimb:
    """Decides when to raise the rate and when to take a raise back. Plain numbers, no Trainer.

    Each raise is judged `cooldown` optimizer steps after it: the next follows where the loss is no worse, beyond its
    noise; else the last is taken back, and there are no more.
    """

    cooldown: int = 20  # optimizer steps
    factor: float = 1.0  # what the schedule's rate is multiplied by
    last: float = 1.0  # the factor before the last raise
    raised_at: int = 0  # optimizer step; 0 before the first raise
    level: float = math.nan  # of the loss before the last raise
    ended: bool = False
    tried: bool = False  # the raise has been tried on a copy, and is the last
    goal: float = 0.0  # times the schedule's rate up to which it is raised, however far steps move the weights

    def begin(self, step: int, ratio: float, level: float, tried: float | None = None, goal: float = 0.0) -> str | None:
        """The rate is too low at this update-to-weight ratio: raise it, to `tried` times where a copy has borne that.

        Returns what was done.
        """
        self.goal = goal
        if self.ended or self.raised_at or not 0 < ratio < ENOUGH:
            return None
        if tried is not None:
            return self.heed(step, level, tried)
        return self._raise(step, max(TIMES, 10 ** math.floor(math.log10(max(LEAP / ratio, 1.0)))), level)

    def heed(self, step: int, level: float, tried: float) -> str:
        """A copy has learnt by a rate `tried` times as high, however far steps move the weights."""
        self.tried = True
        return self._raise(step, tried, level) + ", as on a copy that learnt by it"

    def judge(self, step: int, ratio: float, level: float, noise: float) -> str | None:
        """At each verdict on the outcome: go on, stay, or go back. Returns what was done, None where nothing was.

        Args:
            step: optimizer steps made.
            ratio: update-to-weight ratio with the present factor.
            level: mean loss since the last raise.
            noise: standard deviation of a mean over as many steps.
        """
        cooldown = self.cooldown if ratio >= LEAP else SOON
        if self.ended or not self.raised_at or step < self.raised_at + cooldown:
            return None
        # steps that hardly move the weights make nothing worse, unless the few that do move are all that counts
        allowed = 3 * noise if ratio >= LEAP else max(3 * noise, FAR * abs(self.level))
        if not level <= self.level + allowed:
            was, self.factor, self.ended = self.factor, self.last, True
            return f"took the raise of step {self.raised_at} back, from {was:g} to {self.factor:g} times the schedule's rate"
        left = self.goal / self.factor
        if self.tried or (ratio >= ENOUGH and left < 1.5):
            self.ended = True
            return None
        return self._raise(step, TIMES if ratio < ENOUGH else min(TIMES, left), level)

    def _raise(self, step: int, times: float, level: float) -> str:
        self.last, self.factor = self.factor, self.factor * times
        self.raised_at, self.level = step, level
        return f"raised the learning rate at step {step}, to {self.factor:g} times the schedule's"

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        for name in self.state_dict():
            if name in state:
                setattr(self, name, state[name])
