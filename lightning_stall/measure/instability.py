"""Which operation made the first value that is no number, from the graph of the loss and what autograd keeps there."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from lightning_stall.measure.graph import in_front, nodes, saved
from lightning_stall.measure.quiet import quiet


@dataclass(frozen=True)
class Instability:
    """An operation that finite values went into, and that gave, or whose gradient is, none.

    Attributes:
        operation: what was computed, as in "log of a value that is not positive".
        mend: an expression that would have been safe.
        source: id of the nearest parameter in front of it, 0 where there is none.
        order: autograd's number of the node; the smallest came first.
        kind: autograd's name of it.
    """

    operation: str
    mend: str
    source: int
    order: int
    kind: str = ""


SQUARES = 1e19  # in float32; beyond, a slope that divides by the square is 0, or no number

Rule = Callable[[Any, bool], "tuple[str, str] | None"]


def find(loss: Tensor, in_gradient: bool = False) -> Instability | None:
    """The first such operation in the forward pass. Waits for the device: call it when the damage is known.

    Args:
        loss: before its backward pass.
        in_gradient: the loss is finite and a gradient is not: look for slopes that are infinite, too.
    """
    found = []
    for node in nodes(loss.grad_fn):
        rule = _rule(node.name())
        verdict = rule(node, in_gradient) if rule is not None else None
        if verdict is not None:
            found.append(Instability(*verdict, source=in_front(node)[0], order=node._sequence_nr(), kind=node.name()))
    return min(found, key=lambda i: i.order) if found else None


def take_for_zero(loss: Tensor, kind: str) -> None:
    """In the backward pass of this loss, have slopes of such operations that are not finite taken for 0.

    The gradient of a sum over samples is lost by one of them; so it is that of all the others. No wait.

    Args:
        loss: before its backward pass.
        kind: autograd's name of the operation, as `find` gave it; empty for every operation.
    """
    for node in nodes(loss.grad_fn):
        if node.name() == kind or (not kind and not hasattr(node, "variable")):
            node.register_hook(_without_holes)


def _without_holes(into: tuple[Tensor | None, ...], out: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    dense = [g is not None and g.layout is torch.strided for g in into]
    return tuple(torch.nan_to_num(g, 0.0, 0.0, 0.0) if d else g for g, d in zip(into, dense, strict=True))  # type: ignore[arg-type]


def _rule(name: str) -> Rule | None:
    if name.startswith("ScaledDotProduct"):
        return _attention
    return _RULES.get(name)


def _has(values: Tensor | None) -> bool:
    return values is not None and bool(values.any())


def _log(node: Any, in_gradient: bool) -> tuple[str, str] | None:
    x = saved(node, "self")
    if x is not None and _has(x <= 0):
        return "the logarithm of a value that is not positive", "torch.log(x.clamp_min(1e-6))"
    return None


def _log1p(node: Any, in_gradient: bool) -> tuple[str, str] | None:
    x = saved(node, "self")
    if x is not None and _has(x <= -1):
        return "log1p of a value of -1 or less", "torch.log1p(x.clamp_min(-1 + 1e-6))"
    return None


def _div(node: Any, in_gradient: bool) -> tuple[str, str] | None:
    x = saved(node, "other")
    if x is not None and in_gradient and _has(x.abs() > SQUARES):
        return "a division by values whose squares overflow", "torch.softmax(x, -1)  # or scale the values down first"
    return ("a division by 0", "x / y.clamp_min(1e-6)") if x is not None and _has(x == 0) else None


_PRODUCTS = ("Addmm", "Mm", "Bmm", "Convolution", "Add", "Mul")


def _mul(node: Any, in_gradient: bool) -> tuple[str, str] | None:
    made = [child.name() for child, _ in node.next_functions if child is not None]
    if any(name.startswith(_PRODUCTS) for name in made):
        return None  # values that have grown until one overflowed
    x, y = saved(node, "self"), saved(node, "other")
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        return None
    none = ((x == 0) & y.isinf()) | (x.isinf() & (y == 0))
    return ("0 times infinity", "torch.xlogy(p, p)  # in place of p * p.log()") if _has(none) else None


def _reciprocal(node: Any, in_gradient: bool) -> tuple[str, str] | None:
    y = saved(node, "result")
    return ("a division by 0", "1 / y.clamp_min(1e-6)") if y is not None and _has(y.isinf()) else None


def _exp(node: Any, in_gradient: bool) -> tuple[str, str] | None:
    y = saved(node, "result")
    if y is not None and _has(y.isinf()):
        return "an exponential that overflows", "torch.exp(x.clamp_max(20))  # or torch.logsumexp, log_softmax"
    return None


def _sqrt(node: Any, in_gradient: bool) -> tuple[str, str] | None:
    y = saved(node, "result")
    if y is None:
        return None
    if _has(y.isnan()):  # in a gradient, too: what is chosen away afterwards still multiplies it
        return "the square root of a negative value", "torch.sqrt(x.clamp_min(1e-6))"
    if in_gradient and _has(y == 0):
        return "a square root at 0, whose slope is infinite", "torch.sqrt(x + 1e-6)"
    return None


def _rsqrt(node: Any, in_gradient: bool) -> tuple[str, str] | None:
    y = saved(node, "result")
    if y is not None and _has(~y.isfinite()):
        return "one over the square root of a value that is not positive", "torch.rsqrt(x.clamp_min(1e-6))"
    return None


def _pow(node: Any, in_gradient: bool) -> tuple[str, str] | None:
    x, exponent = saved(node, "self"), getattr(node, "_saved_exponent", None)
    if x is None or not isinstance(exponent, int | float):
        return None
    if (exponent < 0 or (in_gradient and 0 < exponent < 1)) and _has(x == 0):
        return f"0 to the power of {exponent:g}", f"(x + 1e-6) ** {exponent:g}"
    if exponent != int(exponent) and _has(x < 0):
        return f"a negative value to the power of {exponent:g}", f"x.clamp_min(1e-6) ** {exponent:g}"
    return None


def _std(node: Any, in_gradient: bool) -> tuple[str, str] | None:
    y = saved(node, "result")
    if y is not None and _has((y == 0) if in_gradient else y.isnan()):
        return "a standard deviation of equal values, whose slope is infinite", "(x.var(0) + 1e-6).sqrt()"
    return None


def _softmax(node: Any, in_gradient: bool) -> tuple[str, str] | None:
    y = saved(node, "result")
    if y is not None and _has(y.isnan()):
        return "a softmax over a row that is all -inf, or overflowed", "scores.masked_fill(mask, -1e4)"
    return None


def _attention(node: Any, in_gradient: bool) -> tuple[str, str] | None:
    query = saved(node, "query")
    for name in ("output", "out"):
        y = saved(node, name)
        if y is not None and query is not None and _has(y.isnan()) and not _has(query.isnan()):
            return "attention over a row that is all masked", "let each row attend to itself at least"
    return None


def _arc(node: Any, in_gradient: bool) -> tuple[str, str] | None:
    x = saved(node, "self")
    if x is not None and _has(x.abs() >= 1 if in_gradient else x.abs() > 1):
        return "an arc cosine or sine at or beyond 1", "torch.acos(x.clamp(-1 + 1e-6, 1 - 1e-6))"
    return None


_RULES: dict[str, Rule] = {
    "LogBackward0": _log,
    "Log2Backward0": _log,
    "Log10Backward0": _log,
    "Log1PBackward0": _log1p,
    "DivBackward0": _div,
    "MulBackward0": _mul,
    "ReciprocalBackward0": _reciprocal,
    "ExpBackward0": _exp,
    "Expm1Backward0": _exp,
    "SqrtBackward0": _sqrt,
    "RsqrtBackward0": _rsqrt,
    "PowBackward0": _pow,
    "StdBackward0": _std,
    "SoftmaxBackward0": _softmax,
    "AcosBackward0": _arc,
    "AsinBackward0": _arc,
}


HUGE = 1e15  # values that overflow by themselves in the next product
LARGE = 1e6  # values that have grown


class BreakWatch(TorchFunctionMode):
    """Finds, while a batch is run once more, the first operation of torch that makes something else of finite values.

    What is put in on purpose, as a constant that is not finite, is no operation's doing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operation = ""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not self.operation and not _fine(out, torch.inf):
            given = tree_leaves((args, kwargs or {}))
            numbers = all(math.isfinite(v) for v in given if isinstance(v, float))
            if numbers and _fine(given, torch.inf) and any(isinstance(v, Tensor) for v in given):
                self.operation = getattr(func, "__name__", "").strip("_") or "-"
        return out


class ModuleWatch:
    """Finds, while a batch is run once more, the first module that makes something else of finite values.

    For what the graph does not keep: custom functions, and all that is computed before the first weight. A module that
    received huge values, or whose own weights are not finite, is a victim. Take `hooks` off with `release`.
    """

    def __init__(self, module: Module) -> None:
        self.name = ""
        self.handed = ""  # the first module to end that was given what is not finite
        self._hooks = [
            part.register_forward_hook(quiet(self._look(name, part)), with_kwargs=True)
            for name, part in module.named_modules()
            if name
        ]

    def release(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()

    def _look(self, name: str, part: Module) -> Callable[..., None]:
        def hook(module: Module, args: Any, kwargs: Any, output: Any) -> None:
            if self.name or _fine(output, torch.inf):
                return
            if not _fine([args, kwargs], torch.inf):
                self.handed = self.handed or f"{name} ({type(part).__name__})"
                return  # a victim; one around it may have made what it was given
            # the first to end with such an output is the innermost that made it; where its other values are huge too,
            # they had grown until some overflowed
            rest = [torch.nan_to_num(t.detach(), 0.0, 0.0, 0.0) for t in _floats(output)]
            sane = _fine([args, kwargs, list(part.parameters())], HUGE) and _fine(rest, LARGE)
            self.name = f"{name} ({type(part).__name__})" if sane else "-"

        return hook

    @property
    def found(self) -> str | None:
        """Its name and kind; None where there is none, or the first was a victim."""
        return self.name if self.name not in ("", "-") else None


def _floats(values: Any) -> list[Tensor]:
    return [t for t in tree_leaves(values) if isinstance(t, Tensor) and t.is_floating_point()]


def _fine(values: Any, limit: float) -> bool:
    return all(bool((t.detach().abs() < limit).all()) for t in _floats(values))
