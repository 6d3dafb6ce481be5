"""The terms a loss is made of, and the operation that made the prediction of each, read off its autograd graph.

A loss is taken apart along sums, means, signs and constant factors, down to the terms that are no longer linear. Only
shapes, dimensions and constants are read; what a node saved is read at the loss itself and nowhere below it, because a
checkpointed region would run again for it. About a microsecond a node, and no wait for the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Node = Any  # torch.autograd.graph.Node, whose saved fields differ by kind
Edge = tuple[Node, int]  # a node and which of its outputs

MOST_NODES = 256  # of a loss's expression; a longer one is read in part, which can only make us say less

KINDS = {
    "NllLoss": "cross-entropy",
    "NllLoss2D": "cross-entropy",
    "BinaryCrossEntropyWithLogits": "binary cross-entropy with logits",
    "BinaryCrossEntropy": "binary cross-entropy",
    "MseLoss": "mse",
    "L1Loss": "l1",
    "SmoothL1Loss": "smooth l1",
    "HuberLoss": "smooth l1",
}
REGRESSION = frozenset({"mse", "l1", "smooth l1"})
BY_HAND = frozenset({"square", "absolute"})  # of a difference, written by the user
LAYERS = ("Addmm", "Mm", "Convolution", "Bmm")  # matrix products with a weight, or of two activations
BUILT_IN = frozenset(KINDS.values())

_VIEWS = {"ToCopy", "Alias", "Clone", "View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "T", "Transpose"}
_VIEWS |= {"Permute", "Select", "Slice", "Split", "SplitWithSizes", "Unbind", "Unfold"}  # values pass unchanged
_MASKS = {"Index", "MaskedSelect", "MaskedFill", "Where", "Gather", "IndexSelect"}
_MANY = {"Add", "Stack", "Cat"}
SIZES = {"Pow", "Abs", "Mul", "LinalgVectorNorm", "Norm", "Sqrt", *_VIEWS}
_PASS = _VIEWS | {"Sqrt"}  # a root keeps the order of losses


def short(node: Node) -> str:
    """The operation of a node: "MulBackward0" is "Mul"."""
    return str(node.name()).partition("Backward")[0]


def shape(edge: Edge) -> tuple[int, ...]:
    """Shape of the tensor on this edge; () where it is not known."""
    try:
        return tuple(int(n) for n in edge[0]._input_metadata[edge[1]].shape)
    except (AttributeError, IndexError, RuntimeError, TypeError):
        return ()


def saved(node: Node, name: str) -> Any:
    """A saved field of a node at the loss; None where there is none, or it is freed."""
    try:
        return getattr(node, f"_saved_{name}")
    except (AttributeError, RuntimeError):
        return None


def children(node: Node) -> list[Edge]:
    """What this node was computed from and needs a gradient."""
    return [(child, nr) for child, nr in node.next_functions if child is not None]


@dataclass(frozen=True)
class Term:
    """One term of the loss: `sign * factor * reduced(node)`.

    Attributes:
        kind: one of KINDS's values, "square", "absolute", "norm", "log-softmax", or "other".
        sign: +1 or -1; 0 where a factor's sign is not known.
        divided: the product of constants it was divided by (2.0 for `loss / 2`).
        mean: whether it was averaged, rather than summed, on its way or inside.
        weighted: whether samples or elements were weighted, masked or picked on the way.
    """

    kind: str
    edge: Edge
    sign: int
    divided: float = 1.0
    mean: bool = False
    weighted: bool = False

    @property
    def node(self) -> Node:
        return self.edge[0]


@dataclass
class Expression:
    """A loss taken apart. `signs` holds every edge on the way with its sign, for patterns over several terms."""

    terms: list[Term] = field(default_factory=list)
    signs: dict[Edge, int] = field(default_factory=dict)
    whole: bool = True  # False where MOST_NODES cut it short

    @property
    def main(self) -> list[Term]:
        """The terms that are losses, without the uniform part that label smoothing adds to a cross-entropy."""
        known = {producer(e)[0] for t in self.terms if t.kind == "cross-entropy" for e in children(t.node)[:1]}
        return [t for t in self.terms if not (t.kind == "log-softmax" and t.node in known)]


def take_apart(loss: Tensor, wait: bool = False) -> Expression:
    """The terms of a loss.

    Args:
        loss: what is about to be differentiated.
        wait: whether a constant factor on an accelerator may be read, which waits for it.
    """
    found = Expression()
    if loss.grad_fn is None:
        return found
    todo = [Term("other", (loss.grad_fn, loss.output_nr), 1)]
    steps = 0
    while todo:
        term = todo.pop()
        steps += 1
        if steps > MOST_NODES:
            found.whole = False
            break
        found.signs.setdefault(term.edge, term.sign)
        further = _open(term, wait)
        if further is None:
            found.terms.append(_close(term))
        else:
            todo.extend(further)
    return found


def _with(term: Term, edge: Edge, **changes: Any) -> Term:
    return Term(**{**vars(term), "edge": edge, **changes})


def _open(term: Term, wait: bool) -> list[Term] | None:
    """The terms below a linear operation; None where the operation is not linear."""
    node = term.node
    name = short(node)
    inner = children(node)
    if name in _PASS and len(inner) == 1:
        return [_with(term, inner[0])]
    if name in _MASKS:
        return [_with(term, edge, weighted=True) for edge in inner]
    if name in _MANY:
        return [_with(term, edge) for edge in inner]
    if name in ("Mean", "Sum") and len(inner) == 1:
        return [_with(term, inner[0], mean=term.mean or name == "Mean")]
    if name in ("Neg", "Rsub"):
        first = node.next_functions[0][0]
        return [_with(term, e, sign=-term.sign if e[0] is first or name == "Neg" else term.sign) for e in inner]
    if name == "Sub":
        first, second = node.next_functions[0], node.next_functions[1]
        signed = ((first, term.sign), (second, -term.sign))
        return [_with(term, edge, sign=sign) for edge, sign in signed if edge[0] is not None]
    if name in ("Mul", "Div") and len(inner) == 1:
        return _scaled(term, node, name, inner[0], wait)
    return None


def _scaled(term: Term, node: Node, name: str, inner: Edge, wait: bool) -> list[Term] | None:
    if name == "Div" and node.next_functions[0][0] is None:
        return None  # something over a prediction is not linear in it
    # a product saves the factor under the side that it stands on
    factor = saved(node, "other") if saved(node, "other") is not None else saved(node, "self")
    if isinstance(factor, Tensor):
        if factor.numel() != 1:
            return [_with(term, inner, weighted=True)]
        if factor.device.type != "cpu" and not wait:
            return [_with(term, inner, sign=0)]
        factor = factor.item()
    if not isinstance(factor, (int, float)) or factor == 0:
        return [_with(term, inner, sign=0)]
    sign = term.sign if factor > 0 else -term.sign
    divided = term.divided * (abs(factor) if name == "Div" else 1 / abs(factor))
    return [_with(term, inner, sign=sign, divided=divided)]


def _close(term: Term) -> Term:
    """Name a term that can not be taken apart further."""
    node = term.node
    name = short(node)
    if name in KINDS:
        reduction = saved(node, "reduction")
        return _with(term, term.edge, kind=KINDS[name], mean=term.mean or reduction == 1)
    if name == "LogSoftmax":
        return _with(term, term.edge, kind="log-softmax")
    inner = node.next_functions
    if name == "Pow" and saved(node, "exponent") == 2:
        return _with(term, term.edge, kind="square")
    if name == "Mul" and len(inner) == 2 and inner[0][0] is not None and inner[0] == inner[1]:
        return _with(term, term.edge, kind="square")
    if name == "Abs":
        return _with(term, term.edge, kind="absolute")
    if name == "LinalgVectorNorm":
        return _with(term, term.edge, kind="norm")
    return term


@dataclass(frozen=True)
class Prediction:
    """What a term was given: the operation that made it, and what stands between.

    Attributes:
        op: the operation ("Softmax", "Sigmoid", "Addmm" ...); views and casts are looked through.
        edge: its output.
        shape: of that output.
        given: shape of what the loss received, before it was broadcast.
    """

    op: str
    edge: Edge
    shape: tuple[int, ...]
    given: tuple[int, ...]


def producer(edge: Edge) -> Edge:
    """Looks down through views and casts, to what computed the values."""
    for _ in range(16):
        inner = children(edge[0])
        if short(edge[0]) not in _VIEWS or len(inner) != 1:
            break
        edge = inner[0]
    return edge


def below_broadcast(edge: Edge) -> Edge:
    """Looks through the broadcasting of a built-in regression loss."""
    for _ in range(3):
        if short(edge[0]) not in ("Expand", "ToCopy"):
            break
        edge = children(edge[0])[0]
    return edge


def prediction(term: Term) -> Prediction | None:
    """What this term was computed from; None where it can not be told."""
    edge = _argument(term)
    if edge is None:
        return None
    given = below_broadcast(edge)
    source = producer(given)
    return Prediction(short(source[0]), source, shape(source), shape(given))


def _argument(term: Term) -> Edge | None:
    inner = children(term.node)
    if term.kind in BUILT_IN:
        first = term.node.next_functions[0]
        return first if first[0] is not None else None
    if term.kind in BY_HAND or term.kind == "norm":
        sub = difference(term)
        inside = children(sub[0]) if sub is not None else []
        return inside[0] if len(inside) == 1 else None
    return inner[0] if term.kind == "log-softmax" and inner else None


def difference(term: Term) -> Edge | None:
    """The subtraction right under a hand-written square, absolute value or norm; None where there is none."""
    for edge in children(term.node)[:1]:
        while short(edge[0]) == "ToCopy":
            edge = children(edge[0])[0]
        if short(edge[0]) == "Sub":
            return edge
    return None


def error_below(term: Term) -> Edge | None:
    """The subtraction under any elementwise function of one tensor, as in `log(cosh(y - p))`; None where there is none."""
    edge = term.edge
    for _ in range(6):
        below = children(edge[0])
        if len(below) != 1 or short(edge[0]) in LAYERS or shape(below[0]) != shape(edge):
            return None
        edge = below[0]
        if short(edge[0]) == "Sub":
            return edge
    return None


def both_need_gradients(term: Term) -> bool:
    """Whether prediction and target are both computed by the model: then neither is a given target."""
    if term.kind in BY_HAND or term.kind == "norm":
        sub = difference(term)
        return sub is None or len(children(sub[0])) != 1
    return len(children(term.node)) > 1


def penalised(loss: Tensor) -> set[int]:
    """Ids of the parameters whose size is a term of the loss: a power, an absolute value or a norm of the weight alone."""
    found = set()
    for term in take_apart(loss).terms:
        below = [term.edge]
        for _ in range(4):
            if len({node for node, _ in below}) != 1:
                break
            node = below[0][0]
            if short(node) == "torch::autograd::AccumulateGrad":
                found.add(id(node.variable))
                break
            if short(node) not in SIZES:
                break
            below = children(node)
    return found


def walk(edge: Edge, limit: int = 20_000) -> Iterator[Edge]:
    """Every edge from here down, each node once, nearest first."""
    seen: set[Node] = set()
    level = [edge]
    while level and len(seen) < limit:
        following: list[Edge] = []
        for node, nr in level:
            if node in seen:
                continue
            seen.add(node)
            yield node, nr
            following.extend(children(node))
        level = following
