"""Losses whose graph does not show the targets: differences squared by hand, L1, smoothed labels. Seen as they are made.

A note is left in the `metadata` of the autograd node, and goes with it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lightning_stall.measure.loss_match import Pair, Records

DIFFERENCE = "lightning_stall.difference"
SMOOTHED = "lightning_stall.smoothed"
CALLED = "lightning_stall.called"
MATCHED = "lightning_stall.matched"


@dataclass(frozen=True)
class Difference:
    """A prediction minus a target, or the other way round, both of the same shape."""

    prediction: Tensor
    target: Tensor


@dataclass(frozen=True)
class Smoothed:
    """What a cross-entropy with smoothed labels was given."""

    logits: Tensor
    target: Tensor
    smoothing: float
    ignore_index: int
    mean: bool
    weighted: bool


@dataclass(frozen=True)
class Called:
    """A loss function whose graph does not show it, and what it was given by name."""

    name: str
    given: Mapping[str, Any]

    def tensor(self, name: str) -> Tensor | None:
        value = self.given.get(name)
        return value.detach() if isinstance(value, Tensor) else None


class LossNotes(TorchFunctionMode):
    """While it is open, notes what is subtracted from what in Python, and what some losses are given.

    Args:
        records: takes down what is made and met near the loss, where that is wanted.
    """

    def __init__(self, records: Records | None = None) -> None:
        super().__init__()
        self.records = records

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        note = _SUBTRACT.get(getattr(func, "__name__", "")) or _LOSSES.get(func)
        if note is not None:
            with suppress(Exception):  # what was not noted is not known
                note(result, args, kwargs or {})
        if self.records is not None:
            with suppress(Exception):
                self.records.add(result, args, kwargs or {})
        return result


def _note_subtraction(result: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
    if len(args) == 2 and isinstance(result, Tensor):
        _note_difference(result.grad_fn, result, *args)


def _note_difference(node: Any, result: Tensor, a: Any, b: Any) -> None:
    if node is None or not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.shape != b.shape:
        return
    if a.requires_grad != b.requires_grad and a.shape == result.shape:
        prediction, target = (a, b) if a.requires_grad else (b, a)
        node.metadata[DIFFERENCE] = Difference(prediction.detach(), target.detach())


def _note_l1(result: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
    """Its graph is that of the mean of an absolute difference."""
    prediction = args[0] if args else kwargs.get("input")
    target = args[1] if len(args) > 1 else kwargs.get("target")
    node = result.grad_fn if isinstance(result, Tensor) else None
    for _ in range(3):
        if node is None:
            return
        if node.name() == "SubBackward0":
            if isinstance(prediction, Tensor):
                _note_difference(node, prediction, prediction, target)
            return
        node = node.next_functions[0][0] if node.next_functions else None


def _note_smoothing(result: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
    names = ("input", "target", "weight", "size_average", "ignore_index", "reduce", "reduction", "label_smoothing")
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    smoothing, target = given.get("label_smoothing", 0.0), given.get("target")
    if not smoothing or not isinstance(target, Tensor) or target.is_floating_point() or result.grad_fn is None:
        return
    mean = given.get("reduction", "mean") == "mean" and given.get("reduce") is None
    weighted = given.get("weight") is not None
    logits = given["input"].detach()
    ignore = int(given.get("ignore_index", -100))
    result.grad_fn.metadata[SMOOTHED] = Smoothed(logits, target, float(smoothing), ignore, mean, weighted)


def _note_call(function: Any) -> Any:
    """Notes all arguments under their names."""
    signature = inspect.signature(function)

    def note(result: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
        if result.grad_fn is not None:
            given = signature.bind(*args, **kwargs).arguments
            result.grad_fn.metadata[CALLED] = Called(function.__name__, given)

    return note


_SUBTRACT = dict.fromkeys(("sub", "__sub__", "subtract", "rsub", "__rsub__"), _note_subtraction)
_LOSSES = {F.l1_loss: _note_l1, F.cross_entropy: _note_smoothing}
# of labels -1 and 1, of logarithms, of rates and of means with a spread
_FORMULAS = (
    F.cosine_embedding_loss,
    F.hinge_embedding_loss,
    F.margin_ranking_loss,
    F.soft_margin_loss,
    F.kl_div,
    F.ctc_loss,
    F.poisson_nll_loss,
    F.gaussian_nll_loss,
)
_LOSSES.update({function: _note_call(function) for function in _FORMULAS})


def difference(node: Any) -> tuple[str, Difference] | None:
    """Where this node squares a noted difference, or takes its absolute value: which of the two, and the difference."""
    name, below = node.name(), [child for child, _ in node.next_functions if child is not None]
    try:
        squared = (name == "PowBackward0" and float(node._saved_exponent) == 2.0) or (
            name == "MulBackward0" and len(below) == 2 and below[0] is below[1]
        )
    except (RuntimeError, AttributeError):
        return None
    if not below or not (squared or name == "AbsBackward0"):
        return None
    noted = below[0].metadata.get(DIFFERENCE)
    return None if noted is None else ("mse" if squared else "l1", noted)


def smoothed(node: Any) -> Smoothed | None:
    """What this cross-entropy with smoothed labels was given, where it was noted."""
    found: Smoothed | None = node.metadata.get(SMOOTHED)
    return found


def called(node: Any) -> Called | None:
    """The call whose last operation this node is, where it was noted."""
    found: Called | None = node.metadata.get(CALLED)
    return found


def matched(node: Any) -> Pair | None:
    """The prediction and the targets of which this node's value was found to be a known loss."""
    found: Pair | None = node.metadata.get(MATCHED)
    return found


def entropy_of(share: Tensor) -> Tensor:
    """In nats."""
    return -torch.xlogy(share, share).sum()
