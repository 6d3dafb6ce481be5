"""Targets that the last activation, or the loss itself, can not reach."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_stall.measure.loss_fault import Fault, Given, capital
from lightning_stall.measure.loss_graph import (
    BY_HAND,
    REGRESSION,
    Edge,
    Term,
    both_need_gradients,
    children,
    difference,
    prediction,
    producer,
    saved,
    short,
)

MOST_STATES = 64  # of a sequence, that are looked at
MATERIAL = 0.05  # share of the targets out of reach, and of their variance that is lost by it
MARGIN = (
    0.05  # of the reachable range, or of the targets' size where it is open: nearer than that is reached well enough
)

_RANGES = {
    "Sigmoid": (0.0, 1.0),
    "Hardsigmoid": (0.0, 1.0),
    "Softmax": (0.0, 1.0),
    "Tanh": (-1.0, 1.0),
    "Relu": (0.0, math.inf),
    "Softplus": (0.0, math.inf),
    "Exp": (0.0, math.inf),
    "LogSoftmax": (-math.inf, 0.0),
    "LogSigmoid": (-math.inf, 0.0),
}


def bounds(op: str, edge: Edge) -> tuple[float, float] | None:
    """The values this operation can give; None where all numbers, or not known. Waits for the device."""
    if op in ("Mul", "Div", "Neg") and len(children(edge[0])) == 1:
        factor, below = _factor(op, edge), producer(children(edge[0])[0])
        inner = bounds(short(below[0]), below) if factor is not None else None
        if inner is None or factor is None:
            return None
        low, high = sorted(factor * v for v in inner)
        return low, high
    if op in ("Clamp", "Hardtanh"):
        names = ("min", "max") if op == "Clamp" else ("min_val", "max_val")
        low, high = (saved(edge[0], name) for name in names)
        low = -math.inf if low is None else low
        high = math.inf if high is None else high
        if isinstance(low, (int, float)) and isinstance(high, (int, float)) and (low, high) != (-math.inf, math.inf):
            return float(low), float(high)
        return None
    if op not in _RANGES and (_is_state(edge) or _is_direction(edge)):
        return -1.0, 1.0
    return _RANGES.get(op)


def _is_direction(edge: Edge) -> bool:
    """Whether this was divided by its own length, as `F.normalize` does."""
    node = edge[0]
    below = [producer(e) for e in children(node)]
    if short(node) != "Div" or len(below) != 2:
        return False
    length = below[1]
    for _ in range(3):
        inside = children(length[0])
        if short(length[0]) not in ("Expand", "ClampMin", "Clamp", "Add") or not inside:
            break
        length = producer(inside[0])
    inside = children(length[0])
    norm = short(length[0]) in ("LinalgVectorNorm", "Norm")
    return norm and bool(inside) and producer(inside[0])[0] is below[0][0]


def _is_state(edge: Edge, depth: int = 2) -> bool:
    """Whether this is the hidden state of a recurrent cell, which lies between -1 and 1: of a layer, or of a cell."""
    node, number = edge
    name, below = short(node), [producer(e) for e in children(node)]
    kinds = [short(e[0]) for e in below]
    if name == "MkldnnRnnLayer":
        return number < 2  # not the cell's memory
    if name == "CudnnRnn":
        return number < 2 and saved(node, "mode") in (1, 2, 3) and not saved(node, "proj_size")
    if name.startswith("ThnnFused"):
        return number == 0
    if name == "Stack" and depth:
        return len(below) > 0 and all(short(e[0]) == "Tanh" or _is_state(e, depth - 1) for e in below[:MOST_STATES])
    if name == "Mul":  # LSTM: how much is shown of a squashed memory
        return sorted(kinds) == ["Sigmoid", "Tanh"]
    if name == "Add" and sorted(kinds) == ["Mul", "Tanh"]:  # GRU: between the state before and a new one
        gate = [producer(e) for e in children(below[kinds.index("Mul")][0])]
        return sorted(short(e[0]) for e in gate) == ["Sigmoid", "Sub"]
    return False


def _factor(op: str, edge: Edge) -> float | None:
    """The constant that this multiplies by; None where it is none, or more than one number."""
    if op == "Neg":
        return -1.0
    if op == "Div" and edge[0].next_functions[0][0] is None:
        return None  # something over it
    value = saved(edge[0], "other") if saved(edge[0], "other") is not None else saved(edge[0], "self")
    value = float(value) if isinstance(value, Tensor) and value.numel() == 1 else value
    if not isinstance(value, int | float) or value == 0 or not math.isfinite(value):
        return None
    return float(value) if op == "Mul" else 1 / float(value)


def squashed(edge: Edge) -> Edge:
    """The operation that limits a value, below constant factors."""
    while short(edge[0]) in ("Mul", "Div", "Neg") and len(children(edge[0])) == 1:
        edge = producer(children(edge[0])[0])
    return edge


def out_of_reach(term: Term, given: Given, alone: bool) -> Iterator[Fault]:
    """Healthy: targets a little beyond the limits, as noise puts them, and masked ones whose filler lies anywhere."""
    if term.weighted or both_need_gradients(term) or saved(term.node, "weight") is not None:
        return
    if term.kind.startswith("binary"):
        yield from _not_between_0_and_1(term, given)
        yield from _never_below_a_half(term, given)
        return
    if term.kind not in REGRESSION | BY_HAND:
        return
    found = prediction(term)
    reach = bounds(found.op, found.edge) if found is not None else None
    if found is None or reach is None:
        return
    if term.kind in REGRESSION:
        numbers = beyond(saved(term.node, "target"), *reach)
    else:
        target = _target_by_hand(term, given, *reach)
        numbers = beyond(target, *reach) if target is not None else _beyond_by_hand(saved(term.node, "self"), *reach)
    if numbers is None:
        return
    state = found.op not in _RANGES and found.op not in ("Clamp", "Hardtanh")
    kind = "a vector divided by its length" if _is_direction(found.edge) else "the hidden state of a recurrent layer"
    source = squashed(found.edge)
    state = state and short(source[0]) not in _RANGES
    who, where = (kind, []) if state else given.names.of(short(source[0]), source)
    low, high, share = numbers
    spread = f" from {low:.4g} to {high:.4g}" if not math.isnan(low) else ""
    yield Fault(
        "output-range-mismatch",
        f"{capital(who)} gives values {interval(reach)}, and {share:.0%} of the targets{spread} lie beyond them; "
        f"less than {MATERIAL:.0%} would do.",
        "End the model without it, or stretch it to the targets' range:\n\n"
        "    prediction = self.head(h)  # any real number"
        + (
            f"\n    prediction = {low:.4g} + {high - low:.4g} * torch.sigmoid(self.head(h))  # the range seen"
            if not math.isnan(low) and high > low
            else ""
        ),
        {
            "share_beyond": share,
            "reach_low": reach[0],
            "reach_high": reach[1],
            "target_min": low,
            "target_max": high,
            "strength": 0.5 + 0.5 * share,
        },
        where,
        certain=alone,
    )


def beyond(target: object, low: float, high: float) -> tuple[float, float, float] | None:
    """(least target, largest target, share out of reach), where a material part of the variance is lost by it."""
    if not isinstance(target, Tensor) or target.numel() < 2 or target.is_complex():
        return None
    t = target.detach().float()
    excess = (low - t).clamp_min(0) + (t - high).clamp_min(0)
    size = t.square().mean().sqrt()
    margin = MARGIN * (high - low) if math.isfinite(high - low) else MARGIN * size
    lost = excess.square().mean() / t.var(unbiased=False).clamp_min(1e-12)
    share = (excess > margin).float().mean()
    least, largest, share_, lost_ = torch.stack([t.min(), t.max(), share, lost]).tolist()
    if not (math.isfinite(least) and math.isfinite(largest)) or share_ <= MATERIAL or lost_ <= MATERIAL:
        return None
    return least, largest, share_


def _target_by_hand(term: Term, given: Given, low: float, high: float) -> Tensor | None:
    """The tensor of the batch that a hand-written difference was taken with: added to it, it gives a prediction that
    lies wholly within reach, which no other tensor would."""
    gap, edge = saved(term.node, "self"), difference(term)
    if not isinstance(gap, Tensor) or edge is None or gap.numel() < 8:
        return None
    gap = gap.detach().float() if edge[0].next_functions[0][0] is not None else -gap.detach().float()
    slack = 1e-3 * float(gap.abs().max())
    for tensor in given.batch:
        if tensor.numel() != gap.numel() or not tensor.is_floating_point():
            continue
        made = gap + tensor.detach().float().reshape(gap.shape)
        if float(made.min()) >= low - slack and float(made.max()) <= high + slack:
            return tensor
    return None


def _beyond_by_hand(gap: object, low: float, high: float) -> tuple[float, float, float] | None:
    """From prediction minus target alone: where it is wider than the whole range, the target lies beyond it."""
    width = high - low
    if not isinstance(gap, Tensor) or not math.isfinite(width) or gap.numel() < 2:
        return None
    excess = (gap.detach().float().abs() - width).clamp_min(0)
    share, mean = torch.stack([(excess > MARGIN * width).float().mean(), excess.mean()]).tolist()
    if share <= MATERIAL or not mean > MARGIN * width:
        return None
    return math.nan, math.nan, share


def _not_between_0_and_1(term: Term, given: Given) -> Iterator[Fault]:
    numbers = beyond(saved(term.node, "target"), 0.0, 1.0)
    if numbers is None or saved(term.node, "pos_weight") is not None:
        return
    low, high, share = numbers
    logits = term.kind.endswith("logits")
    yield Fault(
        "wrong-loss-for-task" if logits else "output-range-mismatch",
        f"Binary cross-entropy receives targets from {low:.4g} to {high:.4g}, {share:.0%} of them outside 0 to 1, "
        "where only probabilities have a meaning; the loss then falls without bound.",
        "Bring the targets to 0 and 1, or take a loss for numbers:\n\n"
        "    y = (y > 0).float()  # labels of -1 and 1\n"
        f"    y = (y - {low:.4g}) / {high - low:.4g}  # pixels: the range seen\n"
        "    loss = F.mse_loss(prediction, y)  # numbers",
        {"share_beyond": share, "target_min": low, "target_max": high},
        given.names.of_loss(term.kind),
    )


def _never_below_a_half(term: Term, given: Given) -> Iterator[Fault]:
    """Logits of one sign name one class alone. Healthy: targets that are all of that class, as of a mined set."""
    found = prediction(term) if term.kind.endswith("logits") else None
    reach = bounds(found.op, found.edge) if found is not None else None
    target = saved(term.node, "target")
    if found is None or reach is None or not isinstance(target, Tensor) or target.numel() < 2:
        return
    if found.op in ("Sigmoid", "Softmax"):
        return  # a probability in a logit's place is another fault
    low, high = reach
    other = (target < 0.5) if low >= 0 else (target > 0.5)
    share = float(other.float().mean()) if low >= 0 or high <= 0 else 0.0
    if share <= MATERIAL:
        return
    who, where = given.names.of(found.op, found.edge)
    yield Fault(
        "output-range-mismatch",
        f"{capital(who)} gives logits {interval(reach)}, which stand for probabilities "
        f"{'of at least' if low >= 0 else 'of at most'} 0.5, and {share:.0%} of the targets are of the other class; "
        f"less than {MATERIAL:.0%} would do.",
        "End the model without it: a logit is any real number\n\n    logits = self.head(h)",
        {"share_beyond": share, "reach_low": low, "reach_high": high, "strength": 0.5 + 0.5 * share},
        where,
    )


def interval(reach: tuple[float, float]) -> str:
    low, high = reach
    if math.isinf(high):
        return f"of at least {low:g}"
    return f"of at most {high:g}" if math.isinf(low) else f"from {low:g} to {high:g}"
