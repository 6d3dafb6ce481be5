"""Losses that are the wrong way round, so that training makes things worse without bound."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from lightning_stall.measure.loss_fault import Fault, Given, log_softmax
from lightning_stall.measure.loss_graph import (
    BUILT_IN,
    BY_HAND,
    Expression,
    both_need_gradients,
    children,
    difference,
    saved,
    short,
    walk,
)

ENDLESS = 300.0  # times its start, below zero
OPPOSITE = -0.5  # mean cosine similarity: outputs turned away from their targets on purpose


def maximised(loss: Expression, given: Given) -> Iterator[Fault]:
    """The whole loss is a known loss with a minus. Healthy: an adversary (it has its own optimizer, or other terms
    beside it), weighted terms as in a policy gradient, and a double minus."""
    main = loss.main
    if not loss.whole or not main or given.optimizers != 1:
        return
    for term in main:
        known = term.kind in BUILT_IN or (term.kind in BY_HAND and difference(term) is not None)
        if term.sign >= 0 or term.weighted or not known or both_need_gradients(term):
            return
        if term.kind == "cross-entropy" and log_softmax(term) is None:
            return
    kinds = {"square": "squared error", "absolute": "absolute error"}
    name = kinds.get(main[0].kind, main[0].kind)
    yield Fault(
        "wrong-loss-for-task",
        f"The loss is minus a {name}, {given.value:.4g} here, so training makes the error larger without bound; a "
        "loss of this kind is at least 0.",
        f"Drop the minus in front of the {name}. What is to be maximised, as a likelihood, gets one; an error does "
        "not.",
        {"loss": given.value, "limit": 0.0},
    )


def divergence_sign(loss: Expression) -> Iterator[Fault]:
    """`1 + logvar - mean^2 - exp(logvar)` added where it should be subtracted: unbounded below in logvar."""
    squares = [t for t in loss.terms if t.kind == "square" and t.sign < 0 and not t.weighted]
    for term in loss.terms:
        if short(term.node) != "Exp" or term.sign >= 0 or term.weighted or not squares:
            continue
        log = children(term.node)[0]
        if loss.signs.get(log) == 1 and any(children(s.node)[0] != log for s in squares):
            yield Fault(
                "wrong-loss-for-task",
                "The loss holds minus a Kullback-Leibler divergence, `logvar - mean**2 - exp(logvar)` with a plus: it "
                "falls without bound as the variance grows; the divergence has to be added.",
                "Turn its sign:\n\n"
                "    kl = -0.5 * (1 + logvar - mean.pow(2) - logvar.exp()).sum(1).mean()\n"
                "    loss = reconstruction + kl",
                {"sign": -1.0, "limit": 1.0},
            )
            return


def endless(first: float, now: float) -> Fault | None:
    """A loss that has fallen so far below zero that nothing holds it: what should be small is being made large.

    Likelihoods of continuous data, critics and rewards go below zero too, to a level of the size of their start.

    Args:
        first: the first loss.
        now: the mean of the last ones.
    """
    if not now < -ENDLESS * (1.0 + abs(first)):
        return None
    return Fault(
        "wrong-loss-for-task",
        f"The loss has fallen from {first:.4g} to {now:.4g} and has no floor: what is minimised is the opposite of what "
        f"is meant; a loss that measures something stays above {-ENDLESS * (1.0 + abs(first)):.3g}.",
        "Turn its sign, or what grows in it: a likelihood is maximised, so its loss gets a minus:\n\n"
        "    loss = -distribution.log_prob(y).mean()",
        {"first": first, "loss": now},
    )


def similarity(loss: Expression, given: Given) -> Iterator[Fault]:
    """The whole loss is the cosine similarity with given vectors, and has been driven far below 0. Healthy: one minus
    it, minus it, similarity between two outputs, and any of it as one term of several."""
    if len(loss.terms) != 1 or not loss.whole:
        return
    term = loss.terms[0]
    if term.sign <= 0 or not term.weighted or not OPPOSITE > given.value >= -1.001:
        return
    if short(term.node) != "Div" or not _normalised(term.node):
        return
    products = [e[0] for e in loss.signs if short(e[0]) == "Mul" and children(e[0]) == [term.edge]]
    other = next((v for node in products for v in (saved(node, "other"), saved(node, "self")) if v is not None), None)
    if not isinstance(other, Tensor) or other.ndim < 2:
        return
    if float((other.detach().float().norm(dim=-1) - 1).abs().max()) > 1e-2:
        return
    yield Fault(
        "wrong-loss-for-task",
        f"The loss is the cosine similarity itself, {given.value:.3g} by now: training turns the output away from its "
        "target; a falling loss should bring it towards 1.",
        "Minimise its opposite:\n\n    loss = 1 - F.cosine_similarity(prediction, target).mean()",
        {"similarity": given.value, "limit": 1.0},
    )


def overlap(loss: Expression, given: Given) -> Iterator[Fault]:
    """The whole loss is the overlap of an answer with a given mask: Dice's coefficient, or intersection over union.
    Healthy: one minus it, minus its logarithm, and an overlap that is to be small beside another loss."""
    if len(loss.main) != 1 or not loss.whole or given.optimizers != 1:
        return
    term = loss.main[0]
    sides = children(term.node) if short(term.node) == "Div" else []
    if term.sign <= 0 or len(sides) != 2 or not 0 <= given.value <= 1.01:
        return
    answer = _summed_under_mask(sides[0])
    if answer is None or not any(edge == answer for edge in walk(sides[1], 12)):
        return
    yield Fault(
        "wrong-loss-for-task",
        f"The loss is the overlap of answer and mask itself, {given.value:.3g} here, so training drives it to 0; a falling "
        "loss should bring it to 1.",
        "Minimise what is missing from it:\n\n    loss = 1 - dice",
        {"overlap": given.value, "limit": 1.0},
    )


def _summed_under_mask(edge: Any) -> Any:
    """The answer of `2 * (answer * mask).sum() + 1`, with a mask of 0 and 1; None where it is none."""
    for _ in range(6):
        name, below = short(edge[0]), children(edge[0])
        if len(below) != 1:
            return None
        if name == "Mul":
            factors = [f for f in (saved(edge[0], "self"), saved(edge[0], "other")) if isinstance(f, Tensor)]
            if len(factors) == 1 and factors[0].numel() > 1:
                values = factors[0].detach().float()
                return below[0] if bool(((values == 0) | (values == 1)).all()) else None
        elif name not in ("Add", "Sum", "Mean", "View", "Squeeze", "ToCopy"):
            return None
        edge = below[0]
    return None


def _normalised(node: Any) -> bool:
    """Whether this quotient is a vector over its own length."""
    inner = children(node)
    if len(inner) != 2:
        return False
    edge = inner[1]
    for _ in range(5):
        if short(edge[0]) == "LinalgVectorNorm":
            return children(edge[0])[0] == inner[0]
        below = children(edge[0])
        if short(edge[0]) not in ("Clone", "ClampMin", "Expand", "ToCopy") or len(below) != 1:
            return False
        edge = below[0]
    return False
