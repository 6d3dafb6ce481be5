"""What a formula presumes of what it is given: labels of -1 and 1, and logarithms of probabilities."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from lightning_stall.measure.by_hand import Called, called
from lightning_stall.measure.loss_fault import Fault, Given, capital, text
from lightning_stall.measure.loss_graph import Edge, Expression, Node, children, producer, saved, short
from lightning_stall.measure.loss_reach import MATERIAL, beyond, bounds, interval, squashed

_HINGES = ("Clamp", "ClampMin", "Relu", "Maximum")
_SHIFTS = ("Rsub", "Add", "Sub")
_LOGISTIC = ("Softplus", "LogSigmoid", "Exp")
_THROUGH = ("Neg", "Log", "Log1P", "Log1p", "Add", *("Squeeze", "Unsqueeze", "View", "ToCopy", "Pow"))
SUMS_TO_ONE = 1e-3
ABOVE_ZERO = 1e-4  # a logarithm of a probability is at most 0, up to rounding

_LIKELIHOODS = ("poisson_nll_loss", "gaussian_nll_loss")
_MARGINS = {
    "cosine_embedding_loss": "pairs of unlike ones are left out of it",
    "hinge_embedding_loss": "unlike ones count as both alike and unlike",
    "margin_ranking_loss": "pairs with 0 have no gradient",
    "soft_margin_loss": "samples with 0 have no gradient",
}


def given_by_formula(loss: Expression, given: Given) -> Iterator[Fault]:
    """What noted losses, and margins written by hand, are given that their formula does not take; waits for the device."""
    for edge in loss.signs:
        call = called(edge[0])
        if call is not None and call.name in _MARGINS:
            yield from _labels_of(call)
        elif call is not None and call.name in _LIKELIHOODS:
            yield from _out_of_reach(call, given)
        elif call is not None:
            yield from _no_logarithm(call)
    for term in loss.main:
        labels = _factor_in_margin(term.edge)
        if labels is not None and _yes_and_no(labels):
            yield _unsigned("The margin in the loss", "those with 0 have no gradient and are not learnt", labels)
            return


def _labels_of(call: Called) -> Iterator[Fault]:
    target = call.tensor("target")
    if target is not None and _yes_and_no(target):
        yield _unsigned(f"`{call.name}`", _MARGINS[call.name], target)


def _unsigned(who: str, so: str, target: Tensor) -> Fault:
    nought = float((target == 0).float().mean())
    return Fault(
        "wrong-loss-for-task",
        f"{who} takes labels of -1 and 1 and is given 0 and 1, {nought:.0%} of them 0: {so}; 0 % would be right.",
        "Give it the signs:\n\n    y = 2 * y - 1  # 0 and 1 -> -1 and 1",
        {"share_of_nought": nought, "labels": float(target.numel())},
    )


def _yes_and_no(target: Tensor) -> bool:
    """Whether it holds 0, and one other value which is 1 or -1."""
    if target.is_complex() or target.numel() < 2:
        return False
    values = target.detach().float()
    low, high = values.min(), values.max()
    whole = ((values == 0) | (values.abs() == 1)).all()
    return bool(whole & (low * high == 0) & (high - low == 1))


def _factor_in_margin(edge: Edge) -> Tensor | None:
    """`y` of `relu(1 - y * f)`, `softplus(-y * f)` or `exp(-y * f)`; masks stand outside, or under a difference."""
    node: Node = edge[0]
    shifted = hinged = logistic = False
    for _ in range(8):
        name, below = short(node), children(node)
        if name == "Mul" and len(below) == 1 and ((hinged and shifted) or logistic):
            factors = [f for f in (saved(node, "self"), saved(node, "other")) if isinstance(f, Tensor)]
            return factors[0] if len(factors) == 1 and factors[0].numel() > 1 else None
        if len(below) != 1 or (name in ("Add", "Sub") and None not in (c for c, _ in node.next_functions)):
            return None
        if name in _HINGES:
            hinged = True
        elif name in _SHIFTS and hinged:
            shifted = True
        elif name in _LOGISTIC:
            logistic = True
        elif name not in _THROUGH:
            return None
        node = below[0][0]
    return None


def _no_logarithm(call: Called) -> Iterator[Fault]:
    """Divergences and alignments take logarithms of probabilities."""
    argument = "input" if call.name == "kl_div" else "log_probs"
    values = call.tensor(argument)
    if values is None or not values.numel() or not values.is_floating_point():
        return
    values = values.float()
    top, least = float(values.max()), float(values.min())
    if not top > ABOVE_ZERO:
        return
    shares = values.sum(-1) if values.ndim else values
    if least >= 0 and float((shares - 1).abs().max()) < SUMS_TO_ONE:
        yield Fault(
            "probabilities-as-logits",
            f"`{call.name}` receives probabilities, of shape {text(tuple(values.shape))} and up to {top:.3g}, as its "
            f"`{argument}`, where it takes their logarithms, which are never above 0.",
            "Hand it logarithms:\n\n    log_p = logits.log_softmax(dim=-1)",
            {"largest": top, "limit": 0.0},
        )
        return
    yield Fault(
        "wrong-loss-for-task",
        f"`{call.name}` receives `{argument}` of up to {top:.3g}, where it takes logarithms of probabilities, which are "
        "never above 0: the loss falls without bound.",
        "Normalise first:\n\n    log_p = logits.log_softmax(dim=-1)",
        {"largest": top, "limit": 0.0},
    )


def _out_of_reach(call: Called, given: Given) -> Iterator[Fault]:
    """Means that the last activation cannot reach, of a likelihood whose graph does not keep the targets."""
    answer, target = call.given.get("input"), call.tensor("target")
    if not isinstance(answer, Tensor) or answer.grad_fn is None or target is None or target.shape != answer.shape:
        return
    edge = producer((answer.grad_fn, answer.output_nr))
    reach = bounds(short(edge[0]), edge)
    if reach is None:
        return
    low, high = reach
    if call.name == "poisson_nll_loss" and call.given.get("log_input", True):
        low, high = (math.exp(min(v, 80.0)) if math.isfinite(v) else math.inf if v > 0 else 0.0 for v in reach)
    numbers = beyond(target, low, high)
    if numbers is None:
        return
    least, largest, share = numbers
    source = squashed(edge)
    who, where = given.names.of(short(source[0]), source)
    yield Fault(
        "output-range-mismatch",
        f"{capital(who)} lets `{call.name}` have means {interval((low, high))}, and {share:.0%} of the targets, from {least:.4g} "
        f"to {largest:.4g}, lie beyond them; less than {MATERIAL:.0%} would do.",
        "End the model in what has the targets' range:\n\n"
        "    rate = F.softplus(self.head(h))  # with log_input=False; or log_rate = self.head(h)",
        {"share_beyond": share, "reach_low": low, "reach_high": high, "strength": 0.5 + 0.5 * share},
        where,
    )
