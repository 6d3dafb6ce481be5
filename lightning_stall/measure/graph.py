"""What the autograd graph of a loss tells before the backward pass runs. Costs microseconds a node, and no wait."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

Node = Any  # torch.autograd.graph.Node, whose saved fields differ by kind


def nodes(root: Node | None, limit: int = 200_000) -> Iterator[Node]:
    """Every node below `root`, each once, nearest first; at most `limit` of them."""
    seen: set[Node] = set()
    queue = [root] if root is not None else []
    while queue and len(seen) < limit:
        following: list[Node] = []
        for node in queue:
            if node in seen:
                continue
            seen.add(node)
            yield node
            following.extend(child for child, _ in node.next_functions if child is not None)
        queue = following


def forward_order(loss: Tensor) -> dict[int, int]:
    """When each parameter was first used in the forward pass: id(parameter) to a number that grows with depth.

    Autograd numbers its nodes in the order the forward pass made them; a parameter is as deep as its first user. Empty
    where the graph is opaque (a compiled step is one node) or the loss needs no gradient.
    """
    order: dict[int, int] = {}
    for node in nodes(loss.grad_fn):
        number = None
        for child, _ in node.next_functions:
            if child is None or not hasattr(child, "variable"):
                continue
            if number is None:
                number = node._sequence_nr()
            key = id(child.variable)
            order[key] = min(order.get(key, number), number)
    return order if len(set(order.values())) > 1 else {}


def leaves(loss: Tensor) -> tuple[list[Parameter], list[Tensor]]:
    """What asks for a gradient of this loss, each once, in no order: parameters, and tensors that are none."""
    variables = (getattr(node, "variable", None) for node in nodes(loss.grad_fn))
    found = {id(v): v for v in variables if isinstance(v, Tensor)}.values()
    return [v for v in found if isinstance(v, Parameter)], [v for v in found if not isinstance(v, Parameter)]


def saved(node: Node, name: str) -> Tensor | None:
    """A tensor that autograd keeps for the backward pass; None where it cannot be had without running anything."""
    raw = getattr(node, f"_raw_saved_{name}", None)
    if raw is None or getattr(raw, "unpack_hook", raw) is not None:
        return None  # packed by checkpointing (to read it would run the forward pass again), or too old to tell
    try:
        value = getattr(node, f"_saved_{name}")
    except RuntimeError:  # freed, or changed in place since
        return None
    return value if isinstance(value, Tensor) and value.layout is torch.strided else None


def in_front(node: Node, far: int = 12) -> tuple[int, bool]:
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
