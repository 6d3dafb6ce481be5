"""What the autograd graph of a loss tells before the backward pass runs. Costs microseconds a node, and no wait."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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


def leaves(loss: Tensor) -> list[Parameter]:
    """The parameters that the loss depends on through the graph, each once, in no order."""
    found: dict[int, Parameter] = {}
    for node in nodes(loss.grad_fn):
        variable = getattr(node, "variable", None)
        if isinstance(variable, Parameter):
            found[id(variable)] = variable
    return list(found.values())
