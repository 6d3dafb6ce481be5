"""Keeps what an unstable operation is given inside where it is defined, once one has spoilt several steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lightning_stall.remedies import swap

NEAR = 1e-6  # of an edge, which a value is kept away from it
LARGEST = 40.0  # exponent: exp(40)**2 is still a number in single precision

Keeper = Callable[[Any, tuple[Any, ...], Mapping[str, Any]], Any]


def _moved(bad: Callable[[Tensor], Tensor], to: float) -> Keeper:
    """The operation, of its first argument with values that are `bad` moved to another, where it has no slope."""

    def keep(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        x = args[0]
        return func(torch.where(bad(x), torch.full_like(x, to), x), *args[1:], **kwargs)

    return keep


def _exponential(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Exponents no larger than `LARGEST`, which keep their slope, so that they may come down."""
    x = args[0]
    high = x > LARGEST
    y = func(torch.where(high, torch.full_like(x, LARGEST), x), *args[1:], **kwargs)
    return torch.where(high, y * (1 + x - x.detach()), y)


def _quotient(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """0 where it is divided by 0."""
    x, y = args[0], args[1]
    nought = y == 0
    return torch.where(nought, 0.0, func(x, torch.where(nought, torch.ones_like(y), y), *args[2:], **kwargs))


def _inverse(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    y = args[0]
    nought = y == 0
    return torch.where(nought, 0.0, func(torch.where(nought, torch.ones_like(y), y), *args[1:], **kwargs))


def _product(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """0 where 0 is multiplied by infinity, as a probability by its logarithm."""
    x, y = torch.as_tensor(args[0]), torch.as_tensor(args[1])
    none = ((x == 0) & y.isinf()) | (x.isinf() & (y == 0))
    parts = (torch.where(none, torch.ones_like(v), v) for v in (x, y))
    return torch.where(none, 0.0, func(*parts, *args[2:], **kwargs))


def _power(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    x, exponent = args[0], args[1]
    if not isinstance(exponent, int | float) or (exponent > 0 and exponent == int(exponent)):
        return func(*args, **kwargs)
    bad = x == 0 if exponent == int(exponent) else x <= 0
    return func(torch.where(bad, torch.full_like(x, NEAR), x), *args[1:], **kwargs)


def _row(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Even shares where a whole row of scores is minus infinity."""
    x, dim = args[0], kwargs["dim"] if "dim" in kwargs else args[1]
    return func(x.masked_fill((x == -torch.inf).all(dim, keepdim=True), 0.0), *args[1:], **kwargs)


def _named(keep: Keeper, *names: str) -> dict[str, Keeper]:
    return dict.fromkeys(names, keep)


_above_nought = _moved(lambda x: x <= 0, NEAR)
# autograd's name of an operation -> by the name of the function that a training step calls, what is done instead
_KEEPERS: dict[str, dict[str, Keeper]] = {
    **{f"{name}Backward0": _named(_above_nought, name.lower()) for name in ("Log", "Log2", "Log10", "Sqrt", "Rsqrt")},
    "Log1PBackward0": _named(_moved(lambda x: x <= -1, NEAR - 1), "log1p"),
    "DivBackward0": _named(_quotient, "div", "divide", "true_divide", "__truediv__"),
    "ReciprocalBackward0": _named(_inverse, "reciprocal", "__rtruediv__", "__rdiv__"),
    "MulBackward0": _named(_product, "mul", "multiply", "__mul__", "__rmul__"),
    "ExpBackward0": _named(_exponential, "exp"),
    "Expm1Backward0": _named(_exponential, "expm1"),
    "PowBackward0": _named(_power, "pow", "__pow__"),
    "SoftmaxBackward0": _named(_row, "softmax"),
}


class OperationGuard(TorchFunctionMode):
    """While a training step runs, operations of the guarded kinds leave values out that they are not defined for.

    All other values, and all other operations, come out bit by bit as they would.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kinds: list[str] = []
        self._keepers: dict[str, Keeper] = {}
        self._undo: Callable[[], None] | None = None

    @staticmethod
    def knows(kind: str) -> bool:
        """Whether there is anything to do for this operation, by autograd's name of it."""
        return kind in _KEEPERS

    def add(self, kind: str, strategy: Any) -> None:
        """Guard this kind from the next training step on."""
        self.kinds.append(kind)
        self._keepers.update(_KEEPERS[kind])
        if self._undo is None:
            self._undo = swap(strategy, "training_step", self._around)

    def remove(self) -> None:
        """Let training steps run as they are."""
        if self._undo is not None:
            self._undo()
            self._undo = None

    def _around(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*args: Any, **kwargs: Any) -> Any:
            with self:
                return step(*args, **kwargs)

        return guarded

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        keep = self._keepers.get(getattr(func, "__name__", ""))
        if keep is not None:
            with suppress(Exception):  # what it is given is none of ours: it is called as it was
                return keep(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))
