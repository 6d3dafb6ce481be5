"""Learning rates and decays that lead nowhere: floats in, a verdict out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace

from lightning_stall.verdicts.inputs import Verdict

STUCK = ("dead-activations", "saturated-activations")
ABSURD = 1.0  # update-to-weight ratio of one of the first steps, at which nothing is left of how the weights began
ALIVE = 0.6  # share of a layer's units that fired for no sample, up to which it was alive
NEARLY = 0.9  # share of a constant predictor's loss, from which on a run has learnt whatever its first steps were
REACH = 0.05  # relative way the weights must be able to go by the planned end; less is standing still
BACK = 0.3  # cosine of a step with the gradient after it, from which on it went too far
MUCH = 0.05  # update-to-weight ratio of one step above which steps can throw the weights about
THROWN = 0.2  # the same in the first checks, above which they may have thrown the weights where nothing learns
HEALTHY = 1e-3  # update-to-weight ratio of a rate that suits most networks
WORN = 0.25  # share of its first norm under which a decayed weight is worn away
FEW_WORN = 3  # weights worn away at least, where it is not known by what: one may well shrink by itself
ALL = 0.75  # share of the weights that must be worn away where it is not known by what
MOST_OF = 0.5  # share of the weights that a group must hold to hinder the run by a rate too low
LITTLE = 0.1  # share of a constant predictor's loss
USUAL = 0.1  # weight decay up to which one is usual
USUAL_IN_GRADIENT = (
    0.01  # the same where it is part of a gradient that the optimizer then brings to one scale, as in Adam
)
HIDDEN = 0.35  # share of a constant predictor's loss that dropout may cost
STRONG = 0.5  # dropout below this is never too much
DROPOUT = 0.75  # dropout probabilities above this leave too little to learn from


def times_to_raise(ratio: float) -> float:
    """How many times a rate may be raised to bring its ratio to about `HEALTHY`: a power of ten, at most a million."""
    return float(10 ** round(min(6.0, max(1.0, math.log10(HEALTHY / ratio)))))


def too_low(ratio: float, planned: float, rate: float) -> Verdict | None:
    """All the steps of the run together cannot move the weights.

    Args:
        ratio: median update-to-weight ratio of a step.
        planned: optimizer steps in all.
        rate: the learning rate.
    """
    reach = ratio * planned
    if not 0 < reach < REACH:
        return None
    times = times_to_raise(ratio)
    return Verdict(
        "learning-rate-too-low",
        f"A step moves the weights by {ratio:.2g} of their size, so all {planned:.0f} steps together cannot move them by "
        f"more than {100 * reach:.2g} %; {100 * REACH:.0f} % would be the least. The rate is {rate:.3g}.",
        f"Raise the learning rate by {times:.0f} times at first:\n\n    lr = {rate * times:.2g}\n\n"
        "or let `OptimizerHealth(auto_remedy=True)` raise it while it trains.",
        {
            "ratio": ratio,
            "reach": reach,
            "rate": rate,
            "strength": min(1.0, 0.3 - math.log10(reach / REACH) / 3),
        },
    )


def nought() -> Verdict:
    """The rate has been 0 from the first step on."""
    return Verdict(
        "learning-rate-too-low",
        "The learning rate has been 0 at every step so far: nothing moves the weights; any rate above 0 would.",
        "Give the optimizer a rate, and look whether a schedule multiplies it by 0:\n\n"
        "    torch.optim.AdamW(self.parameters(), lr=1e-3)",
        {"rate": 0.0, "strength": 1.0},
    )


def of_group(verdict: Verdict, group: int, share: float) -> Verdict:
    """The same of one parameter group: some are slow on purpose, so it is less sure."""
    return replace(
        verdict,
        summary=f"Parameter group {group}, with {100 * share:.0f} % of the weights: {verdict.summary}",
        evidence={**verdict.evidence, "group": float(group), "strength": 0.7 * verdict.evidence["strength"]},
        where=(f"parameter group {group}",),
    )


def too_high(
    state: str, e: Mapping[str, float], ratio: float, first: float, overshoot: float, growth: float, rate: float
) -> Verdict | None:
    """Steps that are large beside the weights, in a run that is thrown about.

    Args:
        state: how the run fares.
        e: the outcome's numbers.
        ratio: median update-to-weight ratio of the last checks.
        first: the largest such median of the first steps.
        overshoot: cosine between a step and the gradient after it.
        growth: of the loss, from its least to its last finite value.
        rate: the learning rate.
    """
    above = "baseline" in e and e["level"] > 1.3 * e["baseline"] and e.get("gain", 1.0) < 0.5
    # weights that began near 0 grow by large first steps, too, and learn
    learnt = e.get("explained", e.get("gain", 0.0)) > LITTLE
    absurd = first > THROWN and (state == "never learned" or (state == "stalled" and not learnt))
    wild = absurd or state in ("diverging", "oscillating") or (state == "non-finite" and growth > 10) or above
    too_far = first > MUCH or ratio > MUCH or (overshoot > BACK and ratio > 0.2 * MUCH)
    if not (wild and too_far):
        return None
    strength = 0.3 + 0.3 * (state in ("diverging", "oscillating")) + 0.2 * (overshoot > BACK) + 0.2 * (ratio > 2 * MUCH)
    beyond = (
        f", and the gradient after it points back along it with a cosine of {overshoot:.2f} (0 would be fine)"
        if overshoot > BACK
        else ""
    )
    return Verdict(
        "learning-rate-too-high",
        f"A step changes the weights by {max(ratio, first):.2g} times their size ({MUCH:g} is much){beyond}, while the loss "
        f"is {state}. The rate is {rate:.3g}.",
        f"Lower the learning rate:\n\n    lr = {rate / 10:.2g}\n\n"
        "or let `PlateauWatch(auto_remedy=True)` lower it while it trains.",
        {"ratio": max(ratio, first), "overshoot": overshoot, "rate": rate, "strength": strength},
    )


def threw(first: float, rate: float, stuck: str) -> Verdict:
    """Steps longer than the weights themselves, and units that have passed no gradient since.

    Args:
        first: the largest median update-to-weight ratio of the first steps.
        rate: the highest learning rate so far.
        stuck: what was told of the units.
    """
    return Verdict(
        "learning-rate-too-high",
        f"One of the first steps changed the weights by {first:.2g} times their size ({MUCH:g} is much), and units have "
        f"come to pass no gradient ({stuck}). The rate was {rate:.3g}.",
        f"Lower the learning rate:\n\n    lr = {rate / 10:.2g}",
        {"ratio": first, "rate": rate, "strength": 0.9},
    )


def worn_away(
    first: Mapping[str, float],
    now: Mapping[str, float],
    decay: float,
    penalised: Set[str] = frozenset(),
    usual: float = USUAL,
) -> Verdict | None:
    """Weight decay, or a penalty in the loss, has worn weights down.

    Args:
        first, now: norms by weight, at the first check and now.
        decay: of the optimizer, the largest of its groups.
        penalised: weights whose size is a term of the loss.
        usual: decay up to which one is usual, `USUAL` or `USUAL_IN_GRADIENT`.
    """
    left = sorted((now[n] / v, n) for n, v in first.items() if n in now and v > 0 and now[n] < WORN * v)
    told = [(share, n) for share, n in left if n in penalised]
    if told:
        return Verdict(
            "excess-regularization",
            f"The loss holds a penalty on the size of weights, which has brought {len(told)} of them down to "
            f"{100 * told[0][0]:.2g} % of their first norm; above {100 * WORN:.0f} % would be usual.",
            "Lower the penalty's factor, by tens, until the rest of the loss falls:\n\n"
            "    loss = misfit + 1e-4 * penalty",
            {"norm_left": told[0][0], "penalised": float(len(told)), "strength": 0.7},
            tuple(name for _, name in told),
        )
    if decay <= 0 and len(left) >= max(FEW_WORN, ALL * len(first)):
        return Verdict(
            "excess-regularization",
            f"{len(left)} of {len(first)} weights have shrunk to less than {100 * WORN:.0f} % of their first norm, the "
            f"smallest to {100 * left[0][0]:.2g} %, though the optimizer has no decay: something else pulls them to 0.",
            "Look for a penalty in a hook of yours, such as one that is added to the gradients, and lower its factor by "
            "tens.",
            {"norm_left": left[0][0], "weights": float(len(left)), "strength": 0.7},
            tuple(name for _, name in left),
        )
    if not left or decay <= 0:
        return None
    return Verdict(
        "excess-regularization",
        f"Weight decay has worn {len(left)} weights down to {100 * left[0][0]:.2g} % of their first norm; above "
        f"{100 * WORN:.0f} % would be usual. The decay is {decay:.3g}.",
        "Lower the decay:\n\n    torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=1e-2)",
        # a usual decay wears weights away only where something else is wrong
        {
            "norm_left": left[0][0],
            "weight_decay": decay,
            "strength": 0.1 if decay <= usual else 0.8 if decay <= 10 * usual else 0.95,
        },
        tuple(name for _, name in left),
    )


def outweighed(misfit: float, level: float, rest: float) -> Verdict:
    """The built-in part of a loss stands at a constant predictor's level, and other terms have gone to nothing."""
    return Verdict(
        "excess-regularization",
        f"What the loss adds to the misfit has gone down to {rest:.2g}, while the misfit stays at {misfit:.4g}, and a constant "
        f"prediction has {level:.4g}: the added terms, such as a divergence, outweigh it, and the model tells nothing apart.",
        "Lower the factor of what is added, by tens, or raise it from 0 over the first epochs:\n\n"
        "    loss = misfit + beta * divergence  # beta = 1e-3",
        {"misfit": misfit, "level": level, "rest": rest, "strength": 0.7},
        ("the loss",),
        statistical=False,
    )


def dropped(heavy: Sequence[tuple[str, float]]) -> Verdict | None:
    """Dropout layers by name and probability, those above `DROPOUT`."""
    if not heavy:
        return None
    most = max(p for _, p in heavy)
    return Verdict(
        "excess-regularization",
        f"Dropout drops {100 * most:.0f} % of its inputs; up to 50 % is usual.",
        "Lower it:\n\n    nn.Dropout(0.2)",
        {"dropout": most, "strength": 0.7},
        tuple(name for name, _ in heavy),
    )


def hidden(dropped: float, whole: float, baseline: float, noise: float, most: float) -> Verdict | None:
    """What the model has learnt shows only without dropout.

    Args:
        dropped, whole: loss of one batch with dropout, and without.
        baseline: a constant predictor's loss.
        noise: of one step's loss.
        most: the largest probability of a layer.
    """
    gap = dropped - whole
    if not (gap > HIDDEN * baseline and gap > 4 * noise and most >= STRONG):
        return None
    return Verdict(
        "excess-regularization",
        f"Dropout hides what was learnt: the same batch has a loss of {dropped:.4g} with it and of {whole:.4g} without, and "
        f"{baseline:.4g} is a constant predictor's; a gap up to {HIDDEN * baseline:.3g} would be usual.",
        f"Lower the largest probability, now {most:g}:\n\n    nn.Dropout(0.2)",
        {"loss_dropped": dropped, "loss_whole": whole, "dropout": most, "strength": min(0.8, 0.3 + gap / baseline)},
    )
