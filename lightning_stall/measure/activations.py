"""What activation functions put out, read from the graph of the loss: modules and functional calls alike, no hooks.

Autograd keeps the output of ReLU, sigmoid, tanh and softmax for the backward pass, and the input of ReLU6 and the
shrinking functions; it is looked at there, on its device, and not copied. What activation checkpointing has packed away is left alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from lightning_stall.measure.graph import Node, in_front, nodes, saved

Kind = Literal["relu", "sigmoid", "tanh", "softmax"]
_KINDS: dict[str, Kind] = {
    "ReluBackward0": "relu",
    "SigmoidBackward0": "sigmoid",
    "TanhBackward0": "tanh",
    "SoftmaxBackward0": "softmax",
    # these keep what went in, and let nothing below a threshold through
    "HardtanhBackward0": "relu",
    "ThresholdBackward0": "relu",
    "SoftshrinkBackward0": "relu",
    "HardshrinkBackward0": "relu",
}
_RESHAPES = frozenset(
    f"{name}Backward0"
    for name in ("Rsub", "View", "Unsqueeze", "Expand", "Reshape", "UnsafeView", "Transpose", "Permute")
)
MOST = 2**18  # values of an activation over many places that are looked at
LEAST = 8  # samples
ROW = 4  # values that a softmax shares one among, at least, to be looked at
EDGE = 0.01  # of its range: a sigmoid under 0.01 or over 0.99 passes less than a hundredth of a gradient


@dataclass(frozen=True)
class Activation:
    """One activation's output in one forward pass.

    Attributes:
        kind: which function.
        order: autograd's number of the node; grows along the forward pass.
        source: id of the nearest parameter in front of it, 0 where there is none.
        output: the values, of any shape with samples first; do not keep it.
        channel: the dimension that counts units.
        gate: a sigmoid that other activations are multiplied by; to stand at its limits is what it is for.
        hidden: a layer with parameters comes behind it; the output's own sigmoid stands at its limits where it is sure.
    """

    kind: Kind
    order: int
    source: int
    output: Tensor
    channel: int
    hidden: bool = True
    gate: bool = False


def activations(loss: Tensor) -> list[Activation]:
    """Every ReLU, sigmoid, tanh and softmax that the loss depends on, in the order of the forward pass."""
    found = []
    gates: set[Node] = set()
    last = 0  # where the last parameter is used
    for node in nodes(loss.grad_fn):
        if any(child is not None and hasattr(child, "variable") for child, _ in node.next_functions):
            last = max(last, node._sequence_nr())
        gates.update(_gates(node))
        kind = _KINDS.get(node.name())
        if kind is None:
            continue
        output = _output(node, kind)
        if output is None or output.ndim < 2:
            continue
        if kind == "softmax":
            dim = int(getattr(node, "_saved_dim", output.ndim - 1))
            dim = (dim - 2**64 if dim >= 2**63 else dim) % output.ndim
            if output.shape[dim] < ROW:
                continue
            found.append(Activation(kind, node._sequence_nr(), in_front(node)[0], output.detach(), dim))
            continue
        source, convolution = in_front(node)
        channel = 1 if convolution or output.ndim == 4 else output.ndim - 1
        found.append(
            Activation(
                kind, node._sequence_nr(), source, output.detach(), channel, gate=kind == "sigmoid" and node in gates
            )
        )
    return sorted((replace(a, hidden=a.order < last) for a in found), key=lambda a: a.order)


def _gates(node: Node) -> list[Node]:
    """The sigmoids that this product of two computed values multiplies by, or one less them; a parent comes first."""
    inside = [child for child, _ in node.next_functions if child is not None]
    if node.name() not in ("MulBackward0", "LerpBackward1") or len(inside) < 2 or len(set(inside)) < 2:
        return []
    found = []
    for child in inside:
        for _ in range(4):
            if child.name() == "SigmoidBackward0":
                found.append(child)
            if child.name() not in _RESHAPES or not child.next_functions:
                break
            child = child.next_functions[0][0] or child
    return found


def _output(node: Node, kind: Kind) -> Tensor | None:
    """What it put out; of a function with a threshold, something above zero where it put out anything."""
    if (result := saved(node, "result")) is not None:
        return result
    x = saved(node, "self") if kind == "relu" else None
    if x is None:
        return None
    if (around := getattr(node, "_saved_lambd", None)) is not None:
        return x.detach().abs() - float(around)
    least = getattr(node, "_saved_min_val", getattr(node, "_saved_threshold", None))
    if not isinstance(least, int | float) or not math.isfinite(least):
        return None
    if least == 0:
        return x.detach()
    # a threshold of its own; what a clamp lets through above another limit is no sign of life or death
    return x.detach() - float(least) if node.name() == "ThresholdBackward0" else None


def fired(output: Tensor, channel: int) -> Tensor:
    """For each unit, whether it was above zero, or not a number, for any sample or place; shape (units,), bool."""
    output = _some(output)
    if channel == 1 and output.ndim > 2 and output.numel():
        output = output.flatten(2).amax(2)  # a tenth of the time; what is not a number stays so
    return (~(output <= 0)).any(dim=[d for d in range(output.ndim) if d != channel])


def _some(output: Tensor) -> Tensor:
    """All of it, or of many places a sample as many samples as hold `MOST` values, and `LEAST` at least."""
    if output.ndim < 3 or output.numel() <= MOST:
        return output
    return output[: max(LEAST, MOST * len(output) // output.numel())]


def spread(output: Tensor) -> Tensor:
    """How much units differ from sample to sample: mean over units of the standard deviation over samples; shape ()."""
    return output.float().std(0, correction=0).mean()


def at_the_edge(output: Tensor, kind: Kind, channel: int = -1) -> Tensor:
    """Share of all values within `EDGE` of the function's limits, of a softmax of its rows; shape ()."""
    output = _some(output)
    if kind == "softmax":
        return (output > 1 - EDGE).any(channel).float().mean()
    if kind == "sigmoid":
        return ((output < EDGE) | (output > 1 - EDGE)).float().mean()
    return (output.abs() > 1 - 2 * EDGE).float().mean()
