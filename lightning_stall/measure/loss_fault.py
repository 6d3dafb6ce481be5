"""A fault of a loss, and what the rules that look for faults may know."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from lightning_stall.measure.loss_graph import Edge, Term, children, producer, saved, shape, short
from lightning_stall.measure.loss_names import Names


@dataclass(frozen=True)
class Fault:
    """Something wrong with a loss.

    `certain` faults hold whatever the run does. The others are the cause only of a run that fares badly in one of
    `states`: too few layers do not make a loss infinite. What may be meant (`may_be_meant`), as a linear model of what
    is linear, is certain and no fault of a run that learns its task.
    """

    code: str
    summary: str
    advice: str = ""
    evidence: dict[str, float] = field(default_factory=dict)
    where: list[str] = field(default_factory=list)
    certain: bool = True
    states: frozenset[str] = frozenset({"stalled", "never learned"})
    may_be_meant: bool = False


@dataclass(frozen=True)
class Given:
    """What the rules may know beside the loss.

    Attributes:
        names: calls operations by their modules.
        batch: the tensors of the batch.
        optimizers: how many the run has; an adversary has its own.
        value: of the loss, undivided; NaN where unknown.
    """

    names: Names
    batch: Sequence[Tensor] = ()
    optimizers: int = 1
    value: float = math.nan

    @property
    def batch_size(self) -> int:
        """Samples in the batch, by the first dimension most of its tensors share; 0 where unknown."""
        sizes = [len(t) for t in self.batch if t.ndim]
        return max(set(sizes), key=sizes.count) if sizes else 0


def softmax_size(edge: Edge) -> tuple[int, int]:
    """(dimension, its length) of a softmax or log-softmax."""
    size, dim = shape(edge), saved(edge[0], "dim")  # a plain number: no tensor is unpacked for it
    if not size or not isinstance(dim, int):
        return -1, 0
    dim = dim if dim < 2**63 else dim - 2**64
    dim %= len(size)
    return dim, size[dim]


def log_softmax(term: Term) -> Edge | None:
    """The log-softmax of a cross-entropy, with class indices or with soft targets."""
    if term.kind == "log-softmax":
        return term.edge
    if term.kind == "cross-entropy":
        edge = producer(children(term.node)[0])
        return edge if short(edge[0]) == "LogSoftmax" else None
    return None


def text(size: Sequence[int]) -> str:
    return f"({', '.join(str(n) for n in size)}{',' if len(size) == 1 else ''})"


def capital(words: str) -> str:
    return words[:1].upper() + words[1:]
