"""What gradient norms mean: floats in, a verdict out. Knows neither torch nor Lightning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import median

from lightning_stall.verdicts.inputs import Verdict

DECAY = 1e-4  # a gradient this much smaller at the input than at the output has vanished on the way
LEAST = 2e-3  # the same where it shrinks from layer to layer, over many of them, and nothing is learnt
MANY = 8  # layers
LOST = 1e-6  # so much smaller, from the start: the layers at the input cannot have learnt anything
NOTHING = 1e-8  # root mean square gradient an element; Adam's epsilon, below which it does not move a weight either
GROWTH = 100.0  # times its first steps: gradients that grew so much before a non-finite loss led to it
STEEP = 100.0  # times the loss: what the first gradient promises for a step as long as the weights
SOON = 16  # optimizer steps within which a steep start breaks
UNDERFLOW = 1e-20  # of the largest gradient: what is less is about to fade to 0 by itself
LOOKS = 3  # checks whose median counts

Layer = tuple[str, float]  # name, gradient norm


def layers(names: Sequence[str], norms: Sequence[float], only: frozenset[str] | None = None) -> list[Layer]:
    """Gradient norm of each layer (the module that owns the parameters), in the order of `names`."""
    squares: dict[str, float] = {}
    for name, norm in zip(names, norms, strict=True):
        if only is None or name in only:
            layer = name.rpartition(".")[0] or name
            squares[layer] = squares.get(layer, 0.0) + norm * norm
    return [(layer, math.sqrt(square)) for layer, square in squares.items()]


def largest(of: Sequence[Layer]) -> tuple[str, ...]:
    """Names, the largest norm first."""
    return tuple(name for name, _ in sorted(of, key=lambda pair: -pair[1]))


def near_zero(total: float, elements: int, of: Sequence[Layer], first: Sequence[float]) -> Verdict | None:
    """All gradients are too small for any optimizer; what has made them so since the `first` steps is to be asked."""
    rms = total / math.sqrt(elements) if elements else math.nan
    if not rms < NOTHING:
        return None
    return Verdict(
        "vanishing-gradients",
        f"All gradients are near zero: {rms:.2g} an element (root mean square); {NOTHING:.0e} is Adam's epsilon, below "
        "which no optimizer moves a weight.",
        evidence={
            "rms": rms,
            "total_norm": total,
            "strength": 0.1 if first and median(first) > GROWTH * total else 0.5,
        },
        where=tuple(name for name, _ in of),
    )


def ends(of: Sequence[Layer]) -> tuple[float, float] | None:
    """Typical gradient norms of the third of the layers nearest to the input, and to the output."""
    moving = [v for _, v in of if v > 0 and math.isfinite(v)]
    if len(moving) < 4:
        return None
    third = max(1, len(moving) // 3)
    return _geometric(moving[:third]), _geometric(moving[-third:])


def vanished(
    decays: Sequence[float], of: Sequence[Layer], at_first: float = math.nan, unlearnt: bool = False
) -> Verdict | None:
    """Gradients shrink on their way to the input: since the start by the way the model is built, later by what befell it.

    Args:
        decays: log10 of input over output gradient, of the last checks.
        at_first: the same of the first two steps.
        of: the layers at the last one, in the order of the forward pass.
        unlearnt: nothing at all has been learnt so far.
    """
    moving = [(n, v) for n, v in of if v > 0 and math.isfinite(v)]
    limit = LEAST if unlearnt and _steadily([v for _, v in moving]) else DECAY
    if len(decays) < LOOKS or 10 ** median(decays) >= limit:
        return None
    (first, least), (last, most) = moving[0], moving[-1]
    decay, both = 10 ** median(decays), ends(of) or (math.nan, math.nan)
    strength = 0.5 if decay < DECAY else 0.4
    if at_first - median(decays) > math.log10(GROWTH):
        strength = 0.1
    elif decay < LOST and 10**at_first < LOST:
        strength = 0.92
    return Verdict(
        "vanishing-gradients",
        f"Gradients shrink {1 / decay:.3g}-fold on the way from the output to the input (`{last}` has {most:.2g}, "
        f"`{first}` has {least:.2g}); less than {1 / limit:.3g}-fold would do.",
        evidence={
            "decay": decay,
            "decay_at_first": 10**at_first,
            "input_norm": both[0],
            "output_norm": both[1],
            "limit": limit,
            "strength": strength,
        },
        where=tuple(name for name, _ in moving[: max(1, len(moving) // 3)]),
    )


def _steadily(norms: Sequence[float]) -> bool:
    """Whether they grow from each of many layers to the next, but for one in eight."""
    falls = sum(b < a for a, b in pairwise(norms))
    return len(norms) >= MANY and falls <= len(norms) // 8


def _unpadded(profile: Sequence[float]) -> Sequence[float]:
    """Without the places at either end that have no gradient at all next to some that have a good one: padding."""
    largest = max(profile, default=0.0)
    first, last = 0, len(profile)
    while last > 0 and profile[last - 1] == 0.0:
        last -= 1
    while first < last and profile[first] == 0.0:
        first += 1
    if last and profile[last - 1] < UNDERFLOW * largest:
        last = len(profile)  # it fades until nothing is left
    if first < last and profile[first] < UNDERFLOW * largest:
        first = 0
    return profile[first:last]


def vanished_in_time(profile: Sequence[float], where: str) -> Verdict | None:
    """The loss does not feel one end of its sequences.

    Args:
        profile: norm of the gradient with respect to each place of a sequence, in order.
        where: what the sequence is.
    """
    profile = _unpadded(profile)
    third = len(profile) // 3
    if third < 3 or not all(math.isfinite(v) for v in profile):
        return None
    early, late = max(profile[:third]), max(profile[-third:])
    decay = min(early, late) / max(early, late) if max(early, late) > 0 else math.nan
    if not decay < DECAY:
        return None
    return Verdict(
        "vanishing-gradients",
        f"Gradients shrink at least {1 / max(decay, 1e-30):.3g}-fold along the {len(profile)} places of {where}: the "
        f"{'first' if early < late else 'last'} {third} have no part in what is learnt; less than {1 / DECAY:.0e}-fold "
        "would do.",
        "Give the gradient a shorter way: attention or a mean over all places instead of the last state, a shorter "
        "sequence, or an LSTM or GRU whose forget gates start open:\n\n"
        "    for name, bias in lstm.named_parameters():\n"
        '        if "bias_hh" in name:\n'
        "            torch.nn.init.constant_(bias[lstm.hidden_size : 2 * lstm.hidden_size], 3.0)\n",
        evidence={"decay": decay, "places": float(len(profile)), "limit": DECAY, "strength": 0.3},
        where=(where,),
    )


def bad_loss(value: float, micro: int, batch: int, epoch: int, step: int) -> Verdict:
    """The loss of a micro-batch is not finite."""
    return Verdict(
        "nonfinite-loss",
        f"The loss is {value} in batch {batch} of epoch {epoch} (step {step}); a finite number would do.",
        evidence={"loss": value, "micro_batch": float(micro), "batch_idx": float(batch)},
        where=(f"batch {batch}",),
        statistical=False,
        severity="critical",
    )


def bad_gradients(loss: float, bad: Sequence[str], of: int, micro: int, batch: int, epoch: int) -> Verdict:
    """The loss is finite, and gradients are not.

    Args:
        loss: the mean over micro-batches.
        bad: names of such parameters in the order of the forward pass, which ends nearest to the loss.
        of: how many parameters there are.
        micro: the first micro-batch with such a gradient.
        batch: its index in the epoch.
        epoch: from 0.
    """
    return Verdict(
        "nonfinite-gradients",
        f"The loss is finite ({loss:.4g}), yet {len(bad)} of {of} parameters have a non-finite gradient after batch "
        f"{batch} of epoch {epoch}; nearest to the loss is `{bad[-1]}`, so the fault lies in what uses its output, or in "
        "itself.",
        evidence={
            "nonfinite_parameters": float(len(bad)),
            "parameters": float(of),
            "micro_batch": float(micro),
            "batch_idx": float(batch),
        },
        where=tuple(reversed(bad)),
        statistical=False,
        severity="critical",
    )


def broken_module(module: str, batch: int, epoch: int) -> Verdict:
    """A module made values that are not finite of values that are."""
    return Verdict(
        "unstable-operation",
        f"Batch {batch} of epoch {epoch} met `{module}`: what went in is finite, and so are its weights; what came out is "
        "not.",
        "Look in its `forward` for a division, a logarithm, a root or an exponential, and keep its input where it is "
        "defined:\n\n    y = x / scale.clamp_min(1e-6)",
        evidence={"batch_idx": float(batch), "strength": 0.9},
        where=(module,),
        statistical=False,
        severity="critical",
    )


def broken_step(operation: str, module: str, batch: int, epoch: int) -> Verdict:
    """The step made values that are not finite of a batch that is, before any module had a part in it."""
    return Verdict(
        "unstable-operation",
        f"Batch {batch} of epoch {epoch} is finite; `{operation}` makes values of it that are not, before the step hands it to "
        f"`{module}`, the first of its modules.",
        "Look in `training_step`, before that module is called, for a division, a logarithm or a root, and keep its input "
        "where it is defined:\n\n    x = x / x.norm(dim=1, keepdim=True).clamp_min(1e-6)",
        evidence={"batch_idx": float(batch), "strength": 0.9},
        where=(module,),
        statistical=False,
        severity="critical",
    )


def leapt(total: float, usual: float, limit: float, steps: int, batch_idx: int, of: Sequence[Layer]) -> Verdict:
    """One norm stands far above those before."""
    return Verdict(
        "exploding-gradients",
        f"The gradient norm leapt to {total:.3g}, {total / usual:.3g} times its usual {usual:.3g} over the last {steps} "
        f"steps; up to {limit:.3g} would pass for noise.",
        evidence={"total_norm": total, "usual_norm": usual, "limit": limit, "batch_idx": float(batch_idx)},
        where=largest(of),
    )


def grown(first: Sequence[float], recent: Sequence[float]) -> float:
    """How far the gradient norm has come from its first steps; 0 where none was seen."""
    return max(recent, default=0.0) / max(median(first), 1e-30) if first else 0.0


def burst(
    first: Sequence[float], recent: Sequence[float], steepness: float, step: int, of: Sequence[Layer]
) -> Verdict | None:
    """A value is not finite: whether the gradients grew to it, or were so steep from the start that one step was enough.

    Args:
        first: total norms of the first steps, with a finite value.
        recent: those of the last ones.
        steepness: norm of the first gradient times that of the weights over the loss, or over that of a constant
            predictor where this is less; without a unit. Between 1 and 60 in networks that train.
        step: the optimizer step.
        of: the layers at the first check.
    """
    growth = grown(first, recent)
    if growth > GROWTH:
        return Verdict(
            "exploding-gradients",
            f"Before the first non-finite value the gradient norm had grown {growth:.3g}-fold, from {median(first):.3g} "
            f"to {max(recent):.3g}; under {GROWTH:.0f}-fold is usual.",
            evidence={"growth": growth, "total_norm": max(recent), "first_norm": median(first)},
            statistical=False,
            severity="critical",
        )
    if steepness > STEEP and step <= SOON:
        return Verdict(
            "exploding-gradients",
            f"The first gradient was {steepness:.3g} times as steep as the loss is high (its norm times that of the "
            f"weights, over the loss, or over a constant predictor's where that is less), and after {step} steps a value is not finite; under {STEEP:.0f} would do.",
            evidence={"steepness": steepness, "limit": STEEP, "strength": 0.7},
            where=largest(of),
            statistical=False,
            severity="critical",
        )
    return None


def _geometric(values: Sequence[float]) -> float:
    return math.exp(sum(math.log(v) for v in values) / len(values))
