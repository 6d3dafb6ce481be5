"""What a loss is given: probabilities for logits, shapes that broadcast, one unit, the batch for the classes.

Each rule holds for certain from the graph and names its healthy look-alikes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_stall.measure.graph import Node, nodes
from lightning_stall.measure.loss_fault import Fault, Given, capital, log_softmax, softmax_size, text
from lightning_stall.measure.loss_graph import (
    BUILT_IN,
    BY_HAND,
    LAYERS,
    REGRESSION,
    Edge,
    Term,
    both_need_gradients,
    children,
    difference,
    error_below,
    prediction,
    producer,
    saved,
    shape,
    short,
)

MOST_VOTES = 64  # parts whose mean is looked into


def given_wrong(term: Term, given: Given) -> Iterator[Fault]:
    """Everything that is wrong with what this term is given; waits for the device."""
    one = next(_one_unit(term, given), None)
    if one is not None:
        yield one  # and whatever else there is follows from it
        return
    yield from _probabilities(term, given)
    yield from _batch_axis(term, given)
    yield from _other_axis(term, given)
    yield from _broadcast(term, given)
    yield from _columns_against_an_index(term, given)


def _one_unit(term: Term, given: Given) -> Iterator[Fault]:
    """A softmax over one unit is 1 and its logarithm 0, for every input. Several samples are needed: a contrastive loss
    over a last batch of one has one candidate, too."""
    log = log_softmax(term)
    if log is not None and softmax_size(log)[1] == 1 and math.prod(shape(log)) >= 2:
        yield Fault(
            "wrong-loss-for-task",
            f"Cross-entropy over one output, of shape {text(shape(log))}: the softmax of one unit is 1, so the loss "
            "is 0 and has no gradient; it takes at least 2 outputs.",
            "For yes or no with one output use binary cross-entropy, with targets of the output's shape:\n\n"
            "    loss = F.binary_cross_entropy_with_logits(self(x).squeeze(-1), y.float())\n\n"
            "For C classes end the model in `nn.Linear(width, C)`.",
            {"outputs": 1.0, "samples": float(math.prod(shape(log)))},
            given.names.of_loss("cross-entropy"),
        )
        return
    found = prediction(term) if term.kind in BUILT_IN | BY_HAND else None
    if found is None or found.op != "Softmax" or softmax_size(found.edge)[1] != 1 or math.prod(found.shape) < 2:
        return
    who, where = given.names.of("Softmax", found.edge)
    yield Fault(
        "output-range-mismatch",
        f"{capital(who)} runs over one unit, of shape {text(found.shape)}: its output is 1 for every input and its "
        "gradient 0; it takes at least 2 units.",
        "Drop the softmax. For two classes with one output:\n\n"
        "    loss = F.binary_cross_entropy_with_logits(self(x).squeeze(-1), y.float())",
        {"units": 1.0, "samples": float(math.prod(found.shape))},
        where,
    )


def _probabilities(term: Term, given: Given) -> Iterator[Fault]:
    """Healthy: log-softmax twice, NLL of log-probabilities, a softmax deeper in the model, or one with a factor."""
    log = log_softmax(term)
    if log is not None:
        edge = averaged(producer(children(log[0])[0]), "Softmax")
        classes = softmax_size(log)[1]
        if edge is not None and softmax_size(edge)[1] == classes:
            yield _twice(given, "Softmax", edge, "cross-entropy", _least(classes), classes)
    elif term.kind == "cross-entropy":
        yield from _likelihood_of(term, given)
    elif term.kind == "binary cross-entropy with logits":
        found = prediction(term)
        for op in ("Sigmoid", "Softmax"):
            if found is not None and (edge := averaged(found.edge, op)) is not None:
                yield _twice(given, op, edge, "binary cross-entropy with logits", math.log1p(math.exp(-1)), 2)


def normalised_twice(loss: Tensor, given: Given) -> Iterator[Fault]:
    """The same inside a loss written by hand, as a focal one, or `Categorical(logits=...)`: the first such place."""
    for node in nodes(loss.grad_fn):
        below = children(node)
        if short(node) == "BinaryCrossEntropyWithLogits" and below and node.next_functions[0][0] is not None:
            found = producer(below[0])
            if short(found[0]) == "Sigmoid":
                least = math.log1p(math.exp(-1))
                yield _twice(given, "Sigmoid", found, "binary cross-entropy with logits", least, 2)
                return
            continue
        softmax = _softmax_of_softmax(node)
        if softmax is not None:
            classes = softmax_size(softmax)[1]
            yield _twice(given, "Softmax", softmax, "the loss", _least(classes), classes)
            return


def _softmax_of_softmax(node: Node) -> Edge | None:
    """The softmax whose logarithm this is of as though it were logits: by `log_softmax`, or less its `logsumexp`."""
    below = children(node)
    if short(node) == "LogSoftmax" and below:
        found = producer(below[0])
        alike = softmax_size(found) == softmax_size((node, 0)) if short(found[0]) == "Softmax" else False
        return found if alike else None
    if short(node) == "Sub" and len(below) == 2 and short(producer(below[1])[0]) == "Logsumexp":
        found, inside = producer(below[0]), children(producer(below[1])[0])
        same = bool(inside) and producer(inside[0])[0] is found[0]
        return found if same and short(found[0]) == "Softmax" else None
    return None


def averaged(edge: Edge, op: str, divided: bool = False) -> Edge | None:
    """The operation `op` that made this, or the first of those that this is the mean of, as where several parts vote."""
    name, below = short(edge[0]), [producer(e) for e in children(edge[0])]
    if name == op:
        return edge
    by_constant = name in ("Div", "Mul") and len(below) == 1 and short(below[0][0]) in ("Add", "Sum", "Stack")
    if not by_constant and name not in ("Mean", "Stack", "Add") and not (name == "Sum" and divided):
        return None
    if not 0 < len(below) <= MOST_VOTES:
        return None
    found = [averaged(e, op, divided or by_constant) for e in below]
    return found[0] if all(f is not None for f in found) else None


def _least(classes: int) -> float:
    """The least cross-entropy of outputs between 0 and 1 that sum to 1."""
    return math.log1p((classes - 1) / math.e)


def _twice(given: Given, op: str, edge: Edge, loss: str, floor: float, classes: int) -> Fault:
    who, where = given.names.of(op, edge)
    own = "sigmoid" if loss.startswith("binary") else "softmax"
    return Fault(
        "probabilities-as-logits",
        f"{capital(who)} makes probabilities of the output, and {loss} applies its own {own} to them: for a sure and "
        f"right answer the loss is still {floor:.3g}, where logits reach 0.",
        f"Return logits: drop {who.rstrip(',')}; the loss applies it. Make probabilities only where they are shown or "
        f"used:\n\n    probabilities = logits.{'sigmoid()' if own == 'sigmoid' else 'softmax(dim=-1)'}  # in "
        "predict_step",
        {"least_loss": floor, "classes": float(classes)},
        where,
    )


def _likelihood_of(term: Term, given: Given) -> Iterator[Fault]:
    """`nll_loss` of something that is no log-probability: of a softmax, or of a layer's raw output above 0."""
    found = prediction(term)
    if found is None or found.op not in ("Softmax", *LAYERS):
        return
    if found.op == "Softmax":
        who, where = given.names.of("Softmax", found.edge)
        yield Fault(
            "probabilities-as-logits",
            f"`nll_loss` receives probabilities from {who.rstrip(',')}, where it takes log-probabilities: the loss "
            "lies between -1 and 0 and hardly pushes a wrong answer, whose gradient should be the largest.",
            "Pair `nll_loss` with a log-softmax, or hand logits to cross-entropy, which is the same:\n\n"
            "    loss = F.nll_loss(F.log_softmax(logits, dim=-1), y)\n"
            "    loss = F.cross_entropy(logits, y)",
            {"least_loss": -1.0},
            where,
        )
        return
    values = saved(term.node, "self")
    top = float(values.max()) if isinstance(values, Tensor) and values.numel() else -math.inf
    if top > 1e-3 and not term.weighted and term.sign > 0:
        yield Fault(
            "wrong-loss-for-task",
            f"`nll_loss` receives the raw output of a layer, up to {top:.3g}, where it takes log-probabilities, which "
            "are never above 0: the loss falls without bound and learns nothing about the other classes.",
            "Hand logits to cross-entropy:\n\n    loss = F.cross_entropy(logits, y)",
            {"largest": top, "limit": 0.0},
            given.names.of_loss("cross-entropy"),
        )


def _batch_axis(term: Term, given: Given) -> Iterator[Fault]:
    """A softmax over the samples. Healthy: (N, N) similarities, and one score a sample as in listwise ranking."""
    n = given.batch_size
    log = log_softmax(term)
    candidates = [log] if log is not None and term.kind == "cross-entropy" else []
    below = producer(children(log[0])[0]) if log is not None else None
    found = prediction(term) if log is None and term.kind in BUILT_IN else None
    inner = [_under_log(e) for e in (below, found.edge if found else None) if e is not None]
    candidates += [e for e in inner if short(e[0]) == "Softmax"]
    for edge in candidates:
        dim, length = softmax_size(edge)
        size = shape(edge)
        if dim != 0 or len(size) != 2 or length != n or n < 2 or size[1] in (1, n):
            continue
        op = short(edge[0])
        who, where = given.names.of(op, edge)
        yield Fault(
            "batch-mixing",
            f"{capital(who)} runs over dimension 0 of the output {text(size)}, the {n} samples of the batch, so each "
            f"sample's output depends on its neighbours; dimension 1, the {size[1]} classes, would be right.",
            "Normalise over the classes:\n\n    logits.log_softmax(dim=-1)  # or softmax(dim=-1); never dim=0",
            {"dim": 0.0, "samples": float(n), "classes": float(size[1])},
            where,
            certain=term.kind == "cross-entropy",
        )
        return


def _other_axis(term: Term, given: Given) -> Iterator[Fault]:
    """Log-probabilities over another dimension than the one in which `nll_loss` looks for classes, which is 1."""
    log = log_softmax(term) if term.kind == "cross-entropy" else None
    dim, length = softmax_size(log) if log is not None else (1, 0)
    size = shape(log) if log is not None else ()
    if log is None or dim == 1 or len(size) < 3 or producer(children(term.node)[0]) != children(term.node)[0]:
        return
    who, where = given.names.of("LogSoftmax", log)
    yield Fault(
        "batch-mixing" if dim == 0 else "wrong-loss-for-task",
        f"{capital(who)} runs over dimension {dim} of {text(size)}, {length} places, where `nll_loss` looks for classes in "
        f"dimension 1, of {size[1]}: the shares of no place add up to 1.",
        "Normalise over the classes:\n\n    loss = F.cross_entropy(logits, y)  # logits (N, C, ...), or log_softmax(dim=1)",
        {"dim": float(dim), "places": float(length), "classes": float(size[1])},
        where,
    )


def _under_log(edge: Edge) -> Edge:
    """What `log(p)`, `log(p + eps)` or `log(p.clamp(eps))` is the logarithm of; what else it is, itself."""
    if short(edge[0]) != "Log":
        return edge
    found = edge
    while short(found[0]) in ("Log", "Add", "Clamp", "ClampMin") and len(children(found[0])) == 1:
        found = producer(children(found[0])[0])
    return found


def _broadcast(term: Term, given: Given) -> Iterator[Fault]:
    """(N, 1) against (N,). Healthy: weights and biases that broadcast, and distances between all pairs of one tensor or
    of two that were given a new dimension for it. A batch of one proves nothing."""
    if term.kind not in REGRESSION | BY_HAND | {"norm", "other"} or both_need_gradients(term):
        return
    found = prediction(term)
    edge = term.edge if term.kind in REGRESSION else error_below(term) if term.kind == "other" else difference(term)
    if edge is None or (found is None and term.kind != "other"):
        return
    inside = children(edge[0])
    if found is None and len(inside) != 1:
        return
    shown = shape(inside[0]) if found is None else found.given
    values = saved(term.node, "self") if found is not None else None
    size = tuple(values.shape) if isinstance(values, Tensor) else shape(edge)
    if len(size) < 2 or size[0] != size[1] or size[0] < 2:
        return
    n, rest = size[0], size[2:]
    column, row = (n, 1, *rest), (n, *rest)
    if shown == column:
        target = row
    elif shown == row:
        target = column
    else:
        return
    if term.kind in REGRESSION:
        if not _stretched(saved(term.node, "target"), 0 if target == row else 1):
            return
    elif _new_dimension(term) or not (
        any(tuple(t.shape) == target for t in given.batch) or _made_in_the_step(term, inside[0], n, given)
    ):
        return
    yield Fault(
        "loss-shape-mismatch",
        f"The prediction {text(shown)} and the target {text(target)} broadcast against each other to "
        f"{text(size)}: each prediction is compared with the targets of all {n} samples, {n * n} pairs in place of "
        f"{n}.",
        "Give both the same shape, and let a wrong one fail:\n\n"
        + (
            "    prediction = prediction.squeeze(1)  # (N, 1) -> (N,)\n"
            if shown == column
            else "    y = y.squeeze(1)  # (N, 1) -> (N,)\n"
        )
        + "    assert prediction.shape == y.shape, (prediction.shape, y.shape)",
        {"pairs": float(n * n), "samples": float(n)},
        given.names.of_loss(term.kind),
    )


def _made_in_the_step(term: Term, edge: Edge, n: int, given: Given) -> bool:
    """Whether the target may be made of the batch: a mean square of each against each measures nothing. Absolute values
    of all pairs are a distance of distributions, and what is compared with a parameter is a kernel's grid."""
    return n == given.batch_size and term.kind == "square" and "AccumulateGrad" not in short(producer(edge)[0])


def _stretched(target: object, dim: int) -> bool:
    """Whether this target repeats along `dim`, as broadcasting makes it."""
    if not isinstance(target, Tensor) or target.ndim <= dim:
        return False
    if target.stride(dim) == 0:
        return True
    return bool((target == target.narrow(dim, 0, 1)).all())  # a cast made a whole copy of it


def _new_dimension(term: Term) -> bool:
    """Whether the prediction was given a dimension right before the difference, as one does to compare all pairs."""
    edge = error_below(term) if term.kind == "other" else difference(term)
    inside = children(edge[0])[0] if edge is not None else None
    return inside is not None and short(inside[0]) in ("Unsqueeze", "View", "UnsafeView")


def _columns_against_an_index(term: Term, given: Given) -> Iterator[Fault]:
    """K outputs of which each is drawn towards the index of the class. Healthy: an ensemble on one real target."""
    found = prediction(term) if term.kind in REGRESSION and not both_need_gradients(term) else None
    target = saved(term.node, "target") if found is not None else None
    if found is None or not isinstance(target, Tensor) or target.ndim != 2 or found.given != tuple(target.shape):
        return
    n, classes = found.given
    if classes < 3 or n < 2 or target.stride(1) != 0:
        return
    column = target[:, 0].float()
    low, high, whole, kinds = torch.stack(
        [
            column.min(),
            column.max(),
            (column == column.round()).all().float(),
            (column[1:] != column[:-1]).sum().float(),
        ]
    ).tolist()
    if whole and low >= 0 and high == classes - 1 and kinds >= 2:
        yield Fault(
            "wrong-loss-for-task",
            f"{term.kind.upper()} draws all {classes} outputs towards one class index from 0 to {high:.0f}; "
            f"cross-entropy takes {classes} outputs and an index.",
            "    loss = F.cross_entropy(self(x), y.long().reshape(-1))",
            {"outputs": float(classes), "largest_target": high},
            given.names.of_loss(term.kind),
            certain=classes > 3,  # three members of an ensemble on three grades are thinkable, many are not
        )
