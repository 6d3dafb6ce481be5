"""What activation functions put out, read from the graph of the loss: modules and functional calls alike, no hooks.

Autograd keeps the output of ReLU, sigmoid, tanh and softmax for the backward pass; it is looked at there, on its device,
and not copied. What activation checkpointing has packed away is left alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_stall.measure.graph import nodes

Kind = Literal["relu", "sigmoid", "tanh"]
_KINDS: dict[str, Kind] = {"ReluBackward0": "relu", "SigmoidBackward0": "sigmoid", "TanhBackward0": "tanh"}
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
    """

    kind: Kind
    order: int
    source: int
    output: Tensor
    channel: int


def activations(loss: Tensor) -> list[Activation]:
    """Every ReLU, sigmoid and tanh that the loss depends on, in the order of the forward pass."""
    found = []
    for node in nodes(loss.grad_fn):
        kind = _KINDS.get(node.name())
        if kind is None:
            continue
        output = _saved(node, "result")
        if output is None or output.ndim < 2:
            continue
        source, convolution = _in_front(node)
        channel = 1 if convolution or output.ndim == 4 else output.ndim - 1
        found.append(Activation(kind, node._sequence_nr(), source, output.detach(), channel))
    return sorted(found, key=lambda a: a.order)


def fired(output: Tensor, channel: int) -> Tensor:
    """For each unit, whether it was above zero for any sample or place; shape (units,), bool."""
    others = [d for d in range(output.ndim) if d != channel]
    return (output > 0).any(dim=others[0]) if len(others) == 1 else (output > 0).transpose(0, channel).flatten(1).any(1)


def at_the_edge(output: Tensor, kind: Kind) -> Tensor:
    """Share of all values within `EDGE` of the function's limits; shape ()."""
    if kind == "sigmoid":
        return ((output < EDGE) | (output > 1 - EDGE)).float().mean()
    return (output.abs() > 1 - 2 * EDGE).float().mean()


def _saved(node: Any, name: str) -> Tensor | None:
    raw = getattr(node, f"_raw_saved_{name}", None)
    if raw is None or getattr(raw, "unpack_hook", raw) is not None:
        return None  # packed by checkpointing (to read it would run the forward pass again), or too old to tell
    try:
        value = getattr(node, f"_saved_{name}")
    except RuntimeError:  # freed, or changed in place since
        return None
    return value if isinstance(value, Tensor) and value.layout is torch.strided else None


def _in_front(node: Any, far: int = 12) -> tuple[int, bool]:
    """Id of the nearest parameter in front of a node, and whether the layer that holds it is a convolution."""
    queue, convolution = [node], False
    for _ in range(far):
        following: list[Any] = []
        for n in queue:
            convolution = convolution or "Convolution" in n.name()
            for child, _ in n.next_functions:
                if child is None:
                    continue
                if hasattr(child, "variable"):
                    return id(child.variable), convolution
                following.append(child)
        queue = following[:8]
    return 0, convolution
