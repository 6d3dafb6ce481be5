"""What a user calls an operation found in the graph: the module that made it, or the line of their code."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_stall.measure.loss_graph import Edge
from lightning_stall.measure.quiet import quiet

MODULES: dict[str, tuple[type[nn.Module], ...]] = {
    "Softmax": (nn.Softmax, nn.Softmax2d, nn.Softmin),
    "LogSoftmax": (nn.LogSoftmax,),
    "Sigmoid": (nn.Sigmoid,),
    "Hardsigmoid": (nn.Hardsigmoid,),
    "Tanh": (nn.Tanh,),
    "Relu": (nn.ReLU,),
    "Hardtanh": (nn.Hardtanh,),
    "Softplus": (nn.Softplus,),
    "LogSigmoid": (nn.LogSigmoid,),
}
CALLS = {
    "Softmax": r"softmax|softmin",
    "LogSoftmax": r"log_softmax",
    "Sigmoid": r"sigmoid",
    "Hardsigmoid": r"hardsigmoid",
    "Tanh": r"tanh",
    "Relu": r"relu_?",
    "Hardtanh": r"hardtanh|relu6",
    "Softplus": r"softplus",
    "LogSigmoid": r"logsigmoid",
    "Exp": r"exp",
    "Clamp": r"clamp|clip",
}
LOSSES = {
    "cross-entropy": r"(?:cross_entropy|nll_loss|CrossEntropyLoss|NLLLoss)\(",
    "log-softmax": r"(?:cross_entropy|log_softmax|CrossEntropyLoss)\(",
    "binary cross-entropy": r"(?:binary_cross_entropy|BCELoss)\(",
    "binary cross-entropy with logits": r"(?:binary_cross_entropy_with_logits|BCEWithLogitsLoss)\(",
    "mse": r"(?:mse_loss|MSELoss)\(",
    "smooth l1": r"(?:smooth_l1_loss|huber_loss|SmoothL1Loss|HuberLoss)\(",
    "square": r"\*\*\s*2\b|(?:square|pow)\(",
    "absolute": r"(?:l1_loss|L1Loss|abs)\(",
    "norm": r"norm\(",
}
_NOT_THE_USERS = ("torch.", "lightning.", "pytorch_lightning.", "lightning_stall.", "torchmetrics.")


@dataclass
class Names:
    """Names operations by the modules that were seen to make them during one forward pass (between watch and stop)."""

    module: nn.Module
    made: dict[Any, str] = field(default_factory=dict)  # node -> path of the module whose output it made
    _handles: list[Any] = field(default_factory=list)
    _lines: dict[str, str | None] = field(default_factory=dict)  # sources are read once: that takes milliseconds

    def watch(self) -> None:
        """Hook the activation modules; a few of them, for one batch."""
        kinds = tuple(kind for group in MODULES.values() for kind in group)
        for path, module in self.module.named_modules():
            if isinstance(module, kinds):
                self._handles.append(module.register_forward_hook(quiet(self._note(path))))

    def _note(self, path: str) -> Callable[[Any, Any, Any], None]:
        def note(module: Any, args: Any, out: Any) -> None:
            if isinstance(out, Tensor) and out.grad_fn is not None:
                self.made[out.grad_fn] = path

        return note

    def stop(self) -> None:
        """Take the hooks out and forget the graph."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.made.clear()

    def of(self, op: str, edge: Edge | None = None) -> tuple[str, list[str]]:
        """How to call this operation in a sentence, and where it is: ("`nn.Softmax` at `net.5`", ["net.5"])."""
        kinds = MODULES.get(op, ())
        path = self.made.get(edge[0]) if edge is not None else None
        if path is not None:
            return f"`nn.{type(self.module.get_submodule(path)).__name__}` at `{path}`", [path]
        line = self._line(rf"(?:{CALLS.get(op, op.lower())})\(")
        if line is not None:
            return f"the {_word(op)} in {line}", [line]
        paths = [p for p, m in self.module.named_modules() if kinds and isinstance(m, kinds)]
        if len(paths) == 1:
            return f"`nn.{type(self.module.get_submodule(paths[0])).__name__}` at `{paths[0]}`", paths
        if paths:
            return f"a {_word(op)}, probably `nn.{op}` at `{paths[-1]}`,", paths[::-1]
        return f"a functional {_word(op)}", []

    def of_loss(self, kind: str) -> list[str]:
        """Where the user calls this loss: one line of their code, or nothing."""
        line = self._line(LOSSES[kind]) if kind in LOSSES else None
        return [] if line is None else [line]

    def _line(self, pattern: str) -> str | None:
        if pattern not in self._lines:
            self._lines[pattern] = source_line(self.module, pattern)
        return self._lines[pattern]


def _word(op: str) -> str:
    return {"Relu": "ReLU", "LogSoftmax": "log-softmax", "Exp": "`exp`", "Clamp": "`clamp`"}.get(op, op.lower())


def source_line(module: nn.Module, pattern: str) -> str | None:
    """The one line of the user's own code that this matches, as "`model.py`, line 42"; None unless there is just one.

    A line of `training_step` comes before those of other methods.
    """
    classes = {k for m in module.modules() for k in type(m).__mro__}
    places: list[Any] = [getattr(type(module), "training_step", None)]
    for place in (places, classes):
        found = {line for p in place if p is not None and not _foreign(p) for line in _matches(p, pattern)}
        if len(found) == 1:
            return found.pop()
    return None


def _foreign(place: Any) -> bool:
    return f"{getattr(place, '__module__', '')}.".startswith(("builtins.", "typing.", "abc.", *_NOT_THE_USERS))


def _matches(place: Any, pattern: str) -> Iterator[str]:
    try:
        lines, first = inspect.getsourcelines(place)
        name = Path(inspect.getsourcefile(place) or "").name
    except (OSError, TypeError):  # a notebook cell that is gone, or a class made on the fly
        return
    for number, line in enumerate(lines, first):
        if re.search(rf"(?<!\w)(?:{pattern})", line.partition("#")[0]):
            yield f"`{name}`, line {number}"


def parameter_owner(module: nn.Module, parameter: torch.Tensor) -> str:
    """Path of the layer that owns a parameter: "net.0" for `net.0.weight`."""
    name = next((n for n, p in module.named_parameters() if p is parameter), "")
    return name.rpartition(".")[0] or name
