"""Schedules that spend the learning rate too early, or count in another unit than they are stepped in. Floats in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from lightning_stall.outcome import LossCurve
from lightning_stall.verdicts.inputs import Verdict

RISING = 0.95  # share of a run, up to which its rate rose all along
HARDLY = 0.3  # share of a constant predictor's loss, up to which a run that still warms up has hardly begun
USUAL = 2e-3  # update-to-weight ratio that suits most networks, at most
DEAD = 0.01  # share of its height under which a learning rate is spent
GONE, GONE_BY = 2e-3, 0.3  # share of its height under which nothing is left, and of the run by which it was spent
EARLY = 0.6  # share of the planned run; a rate spent before is spent early
LONG = 0.2  # share of the planned run for which it must have been spent
FALL = 0.03  # of what there was to gain: a loss that fell so much in the last quarter before was still falling
MOVES = 3  # epochs after the first
AGAINST = 0.75  # share of these in which the loss fell and the metric went the way that counts as worse
APART = 3.0  # times; a length so far from the number of its own steps is in another unit
LEARNT = 0.85  # share of a constant predictor's loss, from which on a rate that is spent has done its work

ADVICE = (
    "Give the schedule the length of the whole run, in the unit it is stepped in:\n\n"
    "    scheduler = CosineAnnealingLR(opt, T_max=self.trainer.estimated_stepping_batches)\n"
    '    return {"optimizer": opt, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}'
)


def spent_early(step: int, alive_until: int, planned: float) -> bool:
    """Whether the rate was spent long before the planned end, and long ago."""
    return math.isfinite(planned) and alive_until < EARLY * planned and step - alive_until >= LONG * planned


def nothing_left(rate: float, top: float, alive_until: int, planned: float) -> bool:
    """Whether next to no rate is left for most of the run, which nobody plans."""
    return alive_until < GONE_BY * planned and rate < GONE * top


def still_falling(curve: LossCurve, alive_until: int) -> tuple[float, float] | None:
    """How much the loss fell in the last quarter before the rate was spent, and since; None where that is not clear.

    Both as a share of what had been gained until then.
    """
    quarter = alive_until // 4
    if quarter < 5:
        return None
    before = curve.between(alive_until - 2 * quarter, alive_until - quarter)
    then, now = curve.between(alive_until - quarter, alive_until), curve.between(curve.n - quarter, curve.n)
    gained = max(curve.first, default=math.nan) - then
    error = curve.noise() * math.sqrt(2 / quarter)
    fell, since = before - then, then - now
    if not (gained > 0 and fell > max(FALL * gained, 4 * error) and since < fell):
        return None
    return fell / gained, since / gained


def waits_for_worse(
    monitor: str, mode: str, values: Sequence[float], losses: Sequence[float], rate: float, top: float
) -> Verdict | None:
    """A schedule that lowers the rate whenever a metric does not fall (or rise), where getting better is the other way.

    Args:
        monitor, mode: of the schedule.
        values: of the metric, an epoch.
        losses: the training loss then. A validation loss that gets worse by overfitting has been better before.
        rate, top: now, and at its highest.
    """
    moves = list(zip(pairwise(values), pairwise(losses), strict=False))
    worse = 1.0 if mode == "min" else -1.0
    against = sum(worse * (b - a) > 0 and after < before for (a, b), (before, after) in moves)
    best = min(values, default=0.0) if mode == "min" else max(values, default=0.0)
    if len(moves) < MOVES or best != values[0] or against < AGAINST * len(moves) or not rate < 0.1 * top:
        return None
    other = "max" if mode == "min" else "min"
    return Verdict(
        "learning-rate-decayed-early",
        f'`ReduceLROnPlateau(mode="{mode}")` watches `{monitor}`, which goes the other way as the training loss falls: from '
        f"{values[0]:.4g} to {values[-1]:.4g} in {len(values)} epochs, never better than in the first. So each epoch counts "
        f"as bad, and the rate is {rate:.3g}, from {top:.3g}.",
        f'Tell it which way is better:\n\n    ReduceLROnPlateau(optimizer, mode="{other}")',
        {"rate": rate, "top_rate": top, "first": values[0], "last": values[-1], "strength": 0.95},
        (monitor,),
        statistical=False,
    )


def decayed_early(
    rate: float,
    top: float,
    alive_until: int,
    planned: float,
    level: float,
    falling: tuple[float, float] | None,
    certain: bool,
) -> Verdict:
    """The rate was spent early; `falling` as `still_falling` gives it; `certain` where the run need not be bad."""
    told = f"the loss stays at {level:.4g}"
    if falling is not None:
        told = (
            f"the loss, which in the last quarter before had fallen by {falling[0]:.0%} of all it had gained, has fallen "
            f"by {max(falling[1], 0.0):.1%} of it since"
        )
    return Verdict(
        "learning-rate-decayed-early",
        f"The learning rate was spent at step {alive_until} of {planned:.0f}: it is {rate:.3g}, {100 * rate / top:.2g} % "
        f"of its height of {top:.3g}, and {told}. Above {100 * DEAD:.0f} % until the last third would be usual.",
        ADVICE,
        {
            "rate": rate,
            "top_rate": top,
            "spent_at": float(alive_until),
            "strength": 0.9,
            **({"fell": falling[0], "since": falling[1]} if falling else {}),
        },
        statistical=not certain,
    )


def wrong_unit(kind: str, length: float, interval: str, calls: float, steps: float, epochs: float) -> Verdict | None:
    """A schedule whose length is given in optimizer steps and which is stepped once an epoch, or the other way round.

    Args:
        kind: the scheduler's class.
        length: its `total_steps`, `T_max` or `total_iters`.
        interval: "epoch" or "step": when it is stepped.
        calls: how often it will be stepped in the planned run.
        steps: optimizer steps planned.
        epochs: epochs planned.
    """
    by_epoch = interval == "epoch" and length > APART * calls and 0.5 * steps <= length <= 2.0 * steps
    by_step = interval == "step" and length * APART < calls and 0.5 * epochs <= length <= 1.5 * epochs
    if not (by_epoch or by_step):
        return None
    unit, other = ("optimizer steps", "epoch") if by_epoch else ("epochs", "optimizer step")
    end = (
        f"it will have done {calls / length:.1%} of its way at the end"
        if by_epoch
        else f"it is through after {length / calls:.1%} of the run"
    )
    return Verdict(
        "learning-rate-decayed-early",
        f"`{kind}` has a length of {length:.0f}, which is this run's in {unit}, and is stepped once an {other}, "
        f"{calls:.0f} times in all: {end}; 100 % would be right.",
        ADVICE,
        {"length": length, "calls": calls, "strength": 0.9},
        (kind,),
        # one cycle that is never gone through leaves the rate at its start, a fraction of what was wanted
        statistical=not (by_epoch and kind == "OneCycleLR"),
    )


def never_risen(ratio: float, rate: float, steps: int) -> Verdict | None:
    """The rate was still on its way up when the run ended, at steps that are shorter than usual.

    Args:
        ratio: median update-to-weight ratio of the last steps.
        rate: the last one.
        steps: made in all.
    """
    if not ratio < USUAL:
        return None
    return Verdict(
        "learning-rate-too-low",
        f"The learning rate rose in all of the {steps} steps and ended at {rate:.3g}, where a step moves the weights by "
        f"{ratio:.2g} of their size; {USUAL:g} is usual: the warm-up is longer than the run.",
        f"Warm up over a tenth of the run:\n\n    warmup_steps = {max(1, steps // 10)}",
        {"ratio": ratio, "rate": rate, "steps": float(steps), "strength": 0.6},
    )
