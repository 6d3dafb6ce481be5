"""Matrix layers in a graph with nothing nonlinear between them, and a place one unit wide."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from lightning_stall.measure.loss_graph import Edge, Node, children, saved, shape, short, walk

MOST_NODES = 20_000
MOST_ROUNDS = 4
FEW = 2  # features that a head may make many numbers of, and be too narrow for it
WIDER = 4  # times as many

_MATRIX = frozenset({"Addmm", "Mm", "Convolution"})
# Affine in their one input, or a choice of its elements. Whatever is not listed counts as nonlinear.
_AFFINE = frozenset(
    {"ToCopy", "Alias", "Clone", "View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "T", "Transpose"}
    | {"Permute", "Reshape", "Select", "Slice", "Split", "SplitWithSizes", "Unbind", "Narrow", "Expand", "Repeat"}
    | {"Add", "Sub", "Rsub", "Neg", "Mean", "Sum", "AvgPool1D", "AvgPool2D", "AdaptiveAvgPool1D", "AdaptiveAvgPool2D"}
    | {"Embedding", "EmbeddingBag", "Index", "IndexSelect", "IndexAdd", "Gather", "ScatterAdd"}
    | {"Pad", "ConstantPadNd", "NativeDropout", "NativeBatchNorm", "CudnnBatchNorm", "Flip", "Roll", "Cat", "Stack"}
)
_SCALED = frozenset({"Mul", "Div"})  # affine where the factor needs no gradient: dropout's mask, a constant


@dataclass(frozen=True)
class Layer:
    """A matrix layer, `inside` features to `outside`, by its edge; `plain` unless it is grouped or transposed."""

    edge: Edge
    inside: int
    outside: int
    weight: Any  # the parameter, or None where it is frozen or computed
    plain: bool


@dataclass
class Stack:
    """What a model's graph holds.

    Attributes:
        layers: its matrix layers, from the output down.
        pairs: (upper, lower) neighbours that compute no more than one layer could: nothing nonlinear between them, no
            third user of what lies between, and no rank that the narrow middle would take away.
        nonlinear: whether any operation is nonlinear, or unknown.
        attention: whether it attends; there bare products are the rule (values and their output, an input projection).
        depth: layers on the longest way through a model that is nowhere nonlinear; 0 else.
        bottleneck: (upper, lower) around a place one unit wide that every path goes through; None where there is none.
        head: the last layer, where it makes far more numbers than are computed for it; None elsewhere.
    """

    layers: list[Layer] = field(default_factory=list)
    pairs: list[tuple[Layer, Layer]] = field(default_factory=list)
    nonlinear: bool = False
    attention: bool = False
    depth: int = 0
    bottleneck: tuple[Layer, Layer] | None = None
    head: Layer | None = None


def stack(edge: Edge) -> Stack:
    """The matrix layers below a prediction. Walks the whole graph once; do it at the start of a run only."""
    users: Counter[Node] = Counter()
    found = Stack()
    walked = 0
    for node, nr in walk(edge, MOST_NODES):
        walked += 1
        for child, _ in children(node):
            users[child] += 1
        name = short(node)
        if name in _MATRIX:
            layer = _layer((node, nr))
            if layer is None:
                found.nonlinear |= not _by_constant(node)
            else:
                found.layers.append(layer)
        elif not _is_leaf(node) and not _affine(node, name):
            found.nonlinear = True
        found.attention |= (
            (name == "Bmm" and not _by_constant(node)) or name == "Softmax" or name.startswith("ScaledDotProduct")
        )
    if walked >= MOST_NODES:
        found.nonlinear = True  # not all of it was seen
    at = {layer.edge[0]: layer for layer in found.layers}
    for upper in found.layers:
        lower = _directly_below(upper, at, users)
        if lower is not None and _redundant(upper, lower, found.nonlinear):
            found.pairs.append((upper, lower))
    found.bottleneck = _bottleneck(edge, at)
    found.head = _narrow_head(edge, at)
    found.depth = 0 if found.nonlinear else _depth(edge, at)
    return found


def _depth(edge: Edge, at: dict[Node, Layer]) -> int:
    """The most layers on one way down, however the ways fork and join; those that narrow it, as a code does, not."""
    known: dict[Node, int] = {}
    order = [node for node, _ in walk(edge, MOST_NODES)]
    for _ in range(MOST_ROUNDS):
        before = dict(known)
        for node in reversed(order):
            below = max((known.get(child, 0) for child, _ in children(node)), default=0)
            layer = at.get(node)
            counts = layer is not None and layer.weight is not None and layer.outside >= layer.inside
            known[node] = below + counts
        if known == before:
            break
    return known.get(edge[0], 0)


def _by_constant(node: Node) -> bool:
    """A matrix product of which one operand needs no gradient, and the other is no weight: linear in that one."""
    if short(node) not in ("Bmm", "Mm"):
        return False
    needed = [child for child, _ in node.next_functions[:2] if child is not None]
    return len(needed) == 1


def _is_leaf(node: Node) -> bool:
    return hasattr(node, "variable")


def _affine(node: Node, name: str) -> bool:
    if name == "LeakyRelu":
        return bool(saved(node, "negative_slope") == 1)
    if name == "Bmm":
        return _by_constant(node)
    if name in _SCALED:
        return len(children(node)) == 1 and node.next_functions[0][0] is not None
    return name in _AFFINE


def _weight(edge: Edge) -> Any:
    """The parameter behind an operand, through transposes and casts; None where the operand is no parameter."""
    for _ in range(6):
        if _is_leaf(edge[0]):
            return edge[0].variable
        inner = children(edge[0])
        if len(inner) != 1 or short(edge[0]) not in ("T", "Transpose", "ToCopy", "View", "Permute"):
            return None
        edge = inner[0]
    return None


def _operands(node: Node) -> tuple[Edge | None, Edge | None]:
    """(data, weight) of a matrix layer, each None where it needs no gradient."""
    first, second = node.next_functions[:2]
    if short(node) == "Addmm":
        first, second = node.next_functions[1:3]
    data = (first[0], first[1]) if first[0] is not None else None
    weight = (second[0], second[1]) if second[0] is not None else None
    return data, weight


def _layer(edge: Edge) -> Layer | None:
    node = edge[0]
    weight = _operands(node)[1]
    parameter = _weight(weight) if weight is not None else None
    if weight is not None and (parameter is None or parameter.ndim < 2):
        return None  # a product of two activations, or a weight that is itself computed
    if short(node) == "Convolution":
        plain = saved(node, "groups") == 1 and not saved(node, "transposed")
        if parameter is None:
            return Layer(edge, 0, 0, None, False)
        outside, inside = int(parameter.shape[0]), int(math.prod(parameter.shape[1:]))
        return Layer(edge, inside, outside, parameter, bool(plain))
    outside = (shape(edge) or (0,))[-1]
    inside = parameter.numel() // outside if parameter is not None and outside else 0
    return Layer(edge, inside, outside, parameter, parameter is not None)


def _directly_below(upper: Layer, at: dict[Node, Layer], users: Counter[Node]) -> Layer | None:
    """The layer whose output reaches `upper` and nothing else, changed by nothing but affine operations."""
    edge = _operands(upper.edge[0])[0]
    for _ in range(24):
        if edge is None or users[edge[0]] != 1:
            return None
        if edge[0] in at:
            return at[edge[0]]
        name = short(edge[0])
        if not _affine(edge[0], name):
            return None
        inner = [e for e in children(edge[0]) if not _is_leaf(e[0])]
        if name in ("NativeBatchNorm", "CudnnBatchNorm"):
            inner = inner[:1]
        edge = inner[0] if len(inner) == 1 else None
    return None


def _redundant(upper: Layer, lower: Layer, nonlinear: bool) -> bool:
    """Whether one layer could do what both do. A middle narrower than either side limits the rank on purpose (low-rank
    adapters, factorised embeddings, linear codes). In a net that is nonlinear elsewhere convolutions may be stacked to
    widen their field, and grouped ones are meant to be followed by a mixing one."""
    if not (upper.plain and lower.plain) or upper.weight is lower.weight:
        return False
    kernels = [layer.weight.shape[2:] for layer in (upper, lower) if short(layer.edge[0]) == "Convolution"]
    if nonlinear and kernels and (len(kernels) < 2 or all(math.prod(k) > 1 for k in kernels)):
        return False
    return lower.outside >= min(lower.inside, upper.outside)


def _narrow_head(edge: Edge, at: dict[Node, Layer]) -> Layer | None:
    """The first linear layer on the one way down from the output, where hardly any computed features enter it."""
    for _ in range(100):
        layer = at.get(edge[0])
        if layer is not None:
            linear = layer.plain and layer.weight.ndim == 2 and _operands(edge[0])[0] is not None
            return layer if linear and 0 < layer.inside <= FEW and layer.outside >= WIDER * layer.inside else None
        inner = [e for e in children(edge[0]) if not _is_leaf(e[0])]
        if len(inner) != 1:
            return None
        edge = inner[0]
    return None


def _bottleneck(edge: Edge, at: dict[Node, Layer]) -> tuple[Layer, Layer] | None:
    """Follows the one way down from the output as long as it does not fork, and looks for a layer of one unit."""
    above: Layer | None = None
    for _ in range(2_000):
        layer = at.get(edge[0])
        if layer is not None:
            if above is not None and layer.outside == 1 and layer.plain and layer.inside > 1 and above.outside > 1:
                return above, layer
            above = layer
            data = _operands(edge[0])[0]
        else:
            inner = [e for e in children(edge[0]) if not _is_leaf(e[0])]
            data = inner[0] if len(inner) == 1 else None
        if data is None or _is_leaf(data[0]):
            return None
        edge = data
    return None
