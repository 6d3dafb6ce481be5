"""From the numbers of some short fits to what they settle. Plain floats in, no torch: a verdict can be made again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from lightning_stall.trials.records import WIN, Conclusion, Fit, Fits, Situation

LEARNT = 0.1  # of what there was to gain at the start, below which the run has learnt nothing
FITTED = 0.5  # of what there was to gain, that fitting one batch by heart takes away
THERE = 0.12  # of the targets' variance, that nearest others, or a line, must explain above what the model does
FEW_WEIGHTS = 4.0  # weights a target below which a model may be too small to fit one batch by heart
OF_A_NAME = 3.0  # weights a name: a level, a factor, and what little else there is
MANY_WEIGHTS = 64.0  # weights a target, below which it should fit one batch by heart whatever it is made of
MOSTLY = 0.6  # of the targets' variance, that nearest others, or a line, explain
# units that pass no gradient are why the weights are stuck: a fresh start that learns bears that out
STUCK = ("dead-activations", "saturated-activations", "vanishing-gradients")
# and these, once told, are why inputs may seem to tell nothing
DATA = frozenset(
    {
        "categorical-as-numeric",
        "class-imbalance",
        "constant-inputs",
        "corrupt-samples",
        "disparate-feature-scales",
        "duplicate-randomness",
        "batchnorm-small-batch",
        "too-little-data",
        "unshuffled-data",
    }
)
MAYBE = 10.0  # a rate that far too low is no certain cause
FAR_ABOVE = 3.0  # times a constant predictor's loss
FAR_AHEAD = (
    0.3  # of what there was to gain, that a higher rate gains in a trial of a run that has stalled and crawls on
)
LEAST_PACE = 0.02  # which goes on gaining this
CRAWLS = 5.0  # times what its own rate does
SLOWER = 3.0  # times what a run gains that gains it with a higher rate, which is then far better
MUCH_MORE = 0.15  # of what there was to gain, and so much at least
LOWERED = 2.0  # times the present rate, up to which the highest was much the same
UNHEARD_OF = 0.05  # change of the weights in a step, over their size
MUCH_LOWER = 0.05  # times the present rate
SHORT = 1e-3  # the same, under which a step is short
BOND = 3.0  # standard deviations above shuffled targets: the samples do tell something, whatever this model finds
AS_FAST = 0.8  # shuffled targets that take no more than the true ones' steps over this are fitted as fast


def conclude(s: Situation, fits: Fits) -> list[Conclusion]:
    """What these fits settle; empty where they settle nothing."""
    now, fresh = fits.rates("now"), fits.rates("fresh")
    if not fits.all or not math.isfinite(s.reference):
        return []
    same = now.get(1.0)
    if same is not None and s.won(same):
        # as it is, the run learns these batches well enough: there is nothing to explain, but that it is slow
        fast = now.get(10.0)
        slow = s.explained < LEARNT and s.won(fast) and fast is not None and s.gain(fast) > SLOWER * s.gain(same)
        return [_told(s, fits, "learning-rate-too-low", fast, same)] if slow else []
    said: list[Conclusion] = []
    again = fresh.get(1.0)
    if _starts_as_badly(s, again):
        return []  # whatever a lower rate does for it, it has to come down first
    scaled = fits.get(start="fresh", scaled=True)
    low, high = _best(s, now, below=True), _best(s, now, below=False)
    low = low if low is None or s.better(low, same) else None
    high = high if high is None or s.better(high, same) else None
    fresh_low, fresh_high = _best(s, fresh, below=True), _best(s, fresh, below=False)
    if _held_down(s):
        low = fresh_low = None
    if "unscaled-inputs" in s.spoken and scaled is None:  # so low a rate is what inputs of such a size need
        low, fresh_low = (f if f is None or f.arm.factor >= MUCH_LOWER else None for f in (low, fresh_low))
    peak = fresh.get(s.peak)
    if again is not None and _died_of_its_start(s, again):
        said.append(_told(s, fits, "bad-initialization", again, None))
    elif low is not None and not high:
        said.append(_told(s, fits, "learning-rate-too-high", low, same))
    elif again is not None and s.peak > 1 and s.won(again) and peak is not None and not s.won(peak):
        said.append(_told(s, fits, "learning-rate-too-high", again, peak))
    elif again is not None and s.won(again) and fresh_low is not None and s.better(fresh_low, again):
        # fresh weights live with this rate for a while, and better with a lower one
        said.append(_told(s, fits, "learning-rate-too-high", fresh_low, again))
    elif again is not None and s.won(again):
        said += _afresh(s, fits, now, again)
    elif s.won(scaled) and _wants_scale(s, now, fresh):
        # to bring each column to one scale is to bring all of them to the scale of 1: the columns tell which it was
        uneven = "disparate-feature-scales" in s.spoken or (s.uneven and "unscaled-inputs" not in s.spoken)
        said.append(_told(s, fits, "disparate-feature-scales" if uneven else "unscaled-inputs", scaled, again))
    elif _either(low, fresh_low) and not _either(high, fresh_high):
        said.append(_told(s, fits, "learning-rate-too-high", _either(low, fresh_low), same or again))
    elif (
        (s.steady or (s.state == "learning" and s.explained < LEARNT))
        and high
        and not _either(low, fresh_low)
        and not _freed(s, fits, high)
    ):
        # a rate that was higher once has been lowered too early, if anything
        code = "learning-rate-too-low" if s.peak < 10 else "learning-rate-decayed-early"
        # and one that has moved the run from where it began is no rate at which the weights hardly move
        # though to find the level of the targets is no learning, where the steps are short
        idle = s.baseline is not None and s.explained < LEARNT and s.moved < SHORT
        creeps = s.gain(same) if same is not None and s.state == "stalled" else 0.0
        crawls = creeps > LEAST_PACE and s.gain(high) > max(FAR_AHEAD, CRAWLS * creeps)  # as if each step were as good
        told = (s.peak < LOWERED and (idle or crawls or max(s.gained, s.explained) < LEARNT)) or code in s.spoken
        # steps as long as the weights shake loose what is stuck, and then no rate is to blame
        if told and not (s.spoken & set(STUCK) and s.moved * high.arm.factor > UNHEARD_OF):
            # many a sound rate could be ten times higher; what hinders a run at one that could not is something else
            sure = code in s.spoken or high.arm.factor > MAYBE
            said.append(_told(s, fits, code, high, same or again, weight=1.0 if sure else 0.5))
    elif fresh_high is not None and s.peak == 1 and not fresh_low:
        said += _afresh(s, fits, now, fresh_high)  # the same rate does nothing for the weights as they are
    elif fresh_high is not None and "learning-rate-decayed-early" in s.spoken and s.peak >= 10:
        said.append(_told(s, fits, "learning-rate-decayed-early", fresh_high, same or again))
    for start, control in (("now", same), ("fresh", again)):
        free = fits.get(start=start, free=True)
        rated = (low, high) if start == "now" else (low, high, fresh_low, fresh_high)
        freed = not any(rated) or (low is fresh_low is None and _freed(s, fits, high))
        if free is not None and s.won(free) and not s.won(control) and freed and not s.won(again):
            said.append(_told(s, fits, "excess-regularization", free, control))
            break
    if not any(s.won(f) for f in fits.all.values()) or (s.falls_short(fits) and not said):
        said += _nothing_learns(s, fits)
    said += _refuted(s, fits, {c.code for c in said})
    return said


def outlearnt(s: Situation, fits: Fits) -> list[Conclusion]:
    """Fresh weights at a lower rate have learnt more than the run, and more than fresh ones at its own rate."""
    again, low = fits.rates("fresh").get(1.0), _best(s, fits.rates("fresh"), below=True)
    if low is None or s.won(again) or not s.better(low, again):
        return []
    if s.off_scale and low.arm.factor < MUCH_LOWER:
        return []  # so low a rate is what inputs of such a size need
    if s.start is not None and s.baseline is not None and s.start > FAR_ABOVE * s.baseline:
        return []  # whatever a lower rate does for it, it had to come down first
    return [_told(s, fits, "learning-rate-too-high", low, again)]


def creeps(s: Situation, fits: Fits) -> list[Conclusion]:
    """The run learns, and ten times its rate gains several times as much in as many steps."""
    same, fast = fits.get(), fits.get(factor=10.0)
    if same is None or fast is None or not s.won(fast):
        return []
    if not s.gain(fast) > max(SLOWER * s.gain(same), MUCH_MORE):
        return []
    return [_told(s, fits, "learning-rate-too-low", fast, same)]


def calmed(s: Situation, fits: Fits) -> list[Conclusion]:
    """A lower rate betters what long steps have brought to rest, or does better from fresh weights; its own does not."""
    same = fits.get()
    lower = [f for a in ("now", "fresh") for factor, f in fits.rates(a).items() if factor < 1 and s.bettered(f)]
    low = max(lower, key=s.gain, default=None)
    if low is None or not s.bettered(low, same):
        return []
    return [_told(s, fits, "learning-rate-too-high", low, same)]


def falls_short(s: Situation, fits: Fits) -> list[Conclusion]:
    """A small model explains far less than its samples tell without it, and no rate and no other start brings it on."""
    if not fits.all or any(map(s.won, fits.all.values())):
        return []
    best = max(fits.all.values(), key=s.gain)
    return [_told(s, fits, "insufficient-capacity", best, None, weight=0.5, shown=s.shown)]


def started_badly(s: Situation, fits: Fits) -> list[Conclusion]:
    """Weights as the layers draw them have learnt far more than the run has from its own."""
    again = fits.get(start="fresh")
    return [_told(s, fits, "bad-initialization", again, None)] if again is not None and s.won(again) else []


def _held_down(s: Situation) -> bool:
    """Whether a penalty in the loss was told that holds the run back: a lower rate only swings less about what it leaves."""
    return "excess-regularization" in s.spoken and not s.regularised and s.explained < LEARNT


def _freed(s: Situation, fits: Fits, high: Fit | None) -> bool:
    """Whether leaving decay and dropout out does far more good than a higher rate, which outruns the decay too."""
    free = [f for a in ("now", "fresh") if (f := fits.get(start=a, free=True)) is not None and s.won(f)]
    return high is not None and any(s.better(f, high) for f in free)


def _best(s: Situation, rates: Mapping[float, Fit], below: bool) -> Fit | None:
    """The arm with another rate that won by most."""
    won = [f for factor, f in rates.items() if (factor < 1 if below else factor > 1) and s.won(f)]
    return max(won, key=s.gain, default=None)


def _either(first: Fit | None, second: Fit | None) -> Fit | None:
    return first if first is not None else second


def _afresh(s: Situation, fits: Fits, now: Mapping[float, Fit], again: Fit) -> list[Conclusion]:
    """The run's own optimizer learns from a fresh initialisation, at its own rate or a higher one."""
    stuck = len(now) >= 3 and not any(s.won(f) for f in now.values())
    seen = [c for c in ("bad-initialization", *STUCK) if c in s.spoken]
    lower = _best(s, fits.rates("fresh"), below=True)
    if "unscaled-targets" in s.spoken:
        return []  # they are what a higher rate, and other first weights, come to sooner
    worse = lower is None or s.better(again, lower)  # then it is not the rate that a fresh start is better for
    if seen and seen[0] in STUCK and "learning-rate-too-high" in s.spoken and lower is not None and not worse and stuck:
        # its first steps threw the weights about: that they end where no gradient flows is no other cause
        return [_told(s, fits, "learning-rate-too-high", lower, again)]
    if (s.steady or seen) and s.explained < LEARNT and stuck:
        if not seen and "excess-regularization" in s.spoken:
            return []  # it was not so that they began: they were worn away
        if "batchnorm-stale-statistics" in s.spoken:
            return []  # a fresh start has fresh statistics too
        return [_told(s, fits, seen[0] if seen else "bad-initialization", again, now.get(1.0))]
    return []


def _wants_scale(s: Situation, now: Mapping[float, Fit], fresh: Mapping[float, Fit]) -> bool:
    """Whether inputs of another scale do what no rate and no other start does, for a run that has not learnt as it is."""
    if "unscaled-inputs" in s.spoken:
        return True
    return s.explained < LEARNT and not any(map(s.won, (*now.values(), *fresh.values())))


def _starts_as_badly(s: Situation, again: Fit | None) -> bool:
    """Whether a bad start was told, and a fresh one begins as far above what a constant predictor has."""
    if "bad-initialization" not in s.spoken or s.baseline is None or again is None or not again.losses:
        return False
    return again.losses[0] > FAR_ABOVE * s.baseline > 0


def _died_of_its_start(s: Situation, again: Fit | None) -> bool:
    """The run was lost within a few steps, and from a fresh start as it is it lives through twice as many."""
    early = s.state == "non-finite" and 2 * s.finite_steps <= (again.steps if again is not None else 0)
    return early and again is not None and again.lived and fmean(again.after) <= fmean(again.before)


def _nothing_learns(s: Situation, fits: Fits) -> list[Conclusion]:
    """No arm betters the run: can one batch be learnt by heart, and does it matter which targets it has?"""
    true = {a.one: f for a, f in fits.all.items() if a.one >= 0 and not a.shuffled}
    mixed = {a.one: f for a, f in fits.all.items() if a.one >= 0 and a.shuffled}
    heart = [s.gain(f) for f in true.values()]
    if not heart or s.spoken & DATA:
        return []
    best = max(true.values(), key=s.gain)
    if max(heart) < FITTED:
        small = s.steady and few_weights(s) and "uninformative-targets" not in s.spoken
        # a model at the noise of its targets fits no batch by heart either; one too small leaves what others find
        small = small and s.shown > s.of_variance + THERE
        at_its_end = (small and (s.names or _flat(best.losses))) or _blind(s)
        if at_its_end and best.lived and best.losses[-1] < best.losses[0]:
            # targets that mean nothing are as hard to learn by heart: half a witness
            return [_told(s, fits, "insufficient-capacity", best, None, weight=0.5)]
        return []
    pairs = [(true[i], mixed[i]) for i in true if i in mixed]
    # units that are stuck in the run are so in its copies, and what is worn away or dropped is no proof of the targets
    stuck = bool(s.spoken & {*STUCK, "excess-regularization"})
    if (
        s.apart
        and s.steady
        and len(pairs) >= 2
        and not stuck
        and not s.bond > BOND
        and _no_better_than_a_guess(s, fits)
    ):
        ratio = sum(t.halved for t, _ in pairs) / max(1, sum(m.halved for _, m in pairs))
        if ratio >= AS_FAST:
            return [_told(s, fits, "uninformative-targets", pairs[0][0], pairs[0][1], pace=ratio)]
    return []


def few_weights(s: Situation) -> bool:
    """Whether the model may be too small: to fit one batch by heart, or, of names, to give each more than a factor."""
    return 0 < s.weights < (OF_A_NAME * s.names if s.names else FEW_WEIGHTS * s.targets)


def _blind(s: Situation) -> bool:
    """Whether samples tell most of their targets, the run has found nothing of it, and nobody knows of another reason."""
    moderate = 0 < s.weights < MANY_WEIGHTS * s.targets
    return s.steady and moderate and not s.names and not s.spoken and s.shown > MOSTLY and s.explained < LEARNT


def _no_better_than_a_guess(s: Situation, fits: Fits) -> bool:
    """No fit from fresh weights, which have seen none of the judged batches, does better on them than a constant."""
    fresh = [f for a, f in fits.all.items() if a.start == "fresh" and a.one < 0 and f.lived]
    if s.baseline is None or not fresh or not s.explained < 2 * LEARNT:
        return False
    return min(fmean(f.after) for f in fresh) > s.baseline - 0.5 * WIN * abs(s.baseline - (s.floor or 0.0))


def _flat(losses: Sequence[float]) -> bool:
    """Whether a fit had come to its end: the last quarter gained next to nothing of what the fit gained in all."""
    quarter = max(1, len(losses) // 4)
    fell = losses[0] - fmean(losses[-quarter:])
    return fell > 0 and fmean(losses[-2 * quarter : -quarter]) - fmean(losses[-quarter:]) < 0.05 * fell


def _refuted(s: Situation, fits: Fits, held: set[str]) -> list[Conclusion]:
    """Causes that others told and these fits speak against."""
    now, fresh = fits.rates("now"), fits.rates("fresh")
    again = fresh.get(1.0)
    against: dict[str, Fit | None] = {}
    if s.won(again) and s.peak == 1:
        # from another start the run's own rate is right
        against["learning-rate-too-low"] = again
        lower = _best(s, fresh, below=True)
        if not _best(s, now, below=True) and not (lower is not None and s.better(lower, again)):
            against["learning-rate-too-high"] = again
    if s.won(again) and s.peak > 1:
        against["learning-rate-decayed-early"] = again  # from a fresh start, what is left of the rate is enough
    raised = [f for factor, f in now.items() if factor > 1]
    if len(raised) >= 2 and any(map(s.diverged, raised)) and not any(map(s.won, raised)):
        against["learning-rate-too-low"] = min(raised, key=lambda f: -s.gain(f))
    # the run's own weights have seen the judged batches in earlier epochs
    winner = next((f for f in fits.all.values() if f.arm.start == "fresh" and s.won(f)), None)
    if winner is not None and s.apart:
        against["uninformative-targets"] = winner
    rated = [f for rates in (now, fresh) for factor, f in rates.items() if factor != 1 and s.won(f)]
    if rated and not s.won(again) and again is not None:
        against["bad-initialization"] = again
    out = []
    for code, fit in against.items():
        if fit is not None and code in s.spoken and code not in held:
            out.append(_told(s, fits, code, fit, now.get(1.0), weight=-1.0))
    return out


# ---------------------------------------------------------------------- words

_WORDS = {
    "learning-rate-too-high": "so the rate is too high",
    "learning-rate-too-low": "so the rate is too low",
    "learning-rate-decayed-early": "so the rate was lowered too early",
    **dict.fromkeys(STUCK, "so the rate is right and it is the weights that are stuck"),
    "bad-initialization": "so it is the start that hinders it, not the rate",
    "unscaled-inputs": "so it is the scale of the inputs that hinders it",
    "disparate-feature-scales": "so it is the scales of the columns, which differ, that hinder it",
    "excess-regularization": "so decay or dropout hold it back",
    "insufficient-capacity": "so it is too small for the task",
    "uninformative-targets": "so the inputs tell it nothing about the targets",
}


def _told(
    s: Situation, fits: Fits, code: str, fit: Fit | None, control: Fit | None, weight: float = 1.0, **extra: float
) -> Conclusion:
    assert fit is not None
    after = fmean(fit.after) if fit.after else math.inf
    against = f"; {control.arm.name}: to {fmean(control.after):.4g}" if control is not None and control.after else ""
    where = "batches it was not fitted on" if s.apart and fit.arm.one < 0 else "the batches it was fitted on"
    so = _WORDS[code] if weight > 0 else f"which speaks against {code}"
    if code == "uninformative-targets" and weight > 0:
        where = "one batch learnt by heart, no other any better"
    summary = (
        f"Trial on a copy, {fit.steps} steps: {fit.arm.name} brings the loss on {where} to {after:.4g}{against}; the run "
        f"is at {s.reference:.4g} there, {s.reference - WIN * s.scale:.4g} would be a gain. {so[0].upper() + so[1:]}."
    )
    evidence = {
        "trial": weight,
        "after": after,
        "run": s.reference,
        "gain": s.gain(fit),
        "factor": fit.arm.factor,
        "fresh": float(fit.arm.start == "fresh"),
        "steps": float(fit.steps),
        "seconds": fits.seconds,
        **extra,
    }
    if control is not None and control.lived:
        evidence["control"] = fmean(control.after)
    advice = ""
    if code.startswith("learning-rate") and math.isfinite(s.rate):
        advice = f"Try the rate that the copy learnt with:\n\n    lr = {s.rate * fit.arm.factor:.2g}"
    return Conclusion(code, weight, summary, evidence, advice)
