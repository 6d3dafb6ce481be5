"""How many values per channel BatchNorm layers are given, from the shapes of their inputs alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm


def values_per_channel(shape: Sequence[int]) -> int:
    """Numbers that a mean over batch and space is made of: N for (N, C), N * L for (N, C, L), and so on."""
    return math.prod(shape) // max(1, shape[1])


def leading_size(batch: Any) -> int | None:
    """Rows of the first tensor in a batch of any structure; None where there is none. Does not look at values."""
    if isinstance(batch, Tensor):
        return batch.shape[0] if batch.ndim else None
    if isinstance(batch, dict):
        batch = list(batch.values())
    if isinstance(batch, (list, tuple)):
        for part in batch:
            size = leading_size(part)
            if size is not None:
                return size
    return None


def copied(batch: Any) -> Any:
    """The batch with tensors of its own, so that a step that writes into them leaves the original as it is."""
    if isinstance(batch, Tensor):
        return batch.clone()
    if isinstance(batch, dict):
        return {k: copied(v) for k, v in batch.items()}
    if isinstance(batch, (list, tuple)):
        parts = [copied(part) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return batch


@dataclass
class ValuesSeen:
    """How many values per channel each layer is given in training mode, from the shapes of its inputs alone.

    In eager code a hook notes the shape, and is there only between `open` and `close`. In compiled code the hook is
    part of the graph (one number written to a small buffer) and stays, for taking it out would compile it anew.
    """

    layers: list[_BatchNorm]
    look: Callable[[int, _BatchNorm, Tensor], None] | None = None  # shown each input in eager code, in either mode
    calls: dict[int, list[int]] = field(default_factory=dict, init=False)  # layer -> values per channel, by call
    compiled: set[int] = field(default_factory=set, init=False)
    _slots: Tensor | None = field(default=None, init=False, repr=False)  # (layers,), int64
    _handles: dict[int, Any] = field(default_factory=dict, init=False, repr=False)

    def open(self) -> None:
        """Start to look."""
        self.calls.clear()
        if self._slots is not None:
            self._slots.zero_()
        if self._slots is None and self.layers:
            home = next((b for b in (*self.layers[0].parameters(), *self.layers[0].buffers())), torch.zeros(0)).device
            self._slots = torch.zeros(len(self.layers), dtype=torch.int64, device=home)
        for index, layer in enumerate(self.layers):
            if index not in self._handles:
                self._handles[index] = layer.register_forward_pre_hook(self._hook(index))

    def read(self) -> None:
        """Take what compiled layers wrote since `open`, where there may be any (this waits for the device)."""
        if self._slots is None or len(self.calls) == len(self.layers):
            return
        for index, values in enumerate(self._slots.tolist()):
            if values:
                self.compiled.add(index)
                self.calls[index] = [values]

    def close(self) -> None:
        """Stop to look."""
        for index in [i for i in self._handles if i not in self.compiled]:
            self._handles.pop(index).remove()

    def remove(self) -> None:
        """Take every hook out."""
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()

    def _hook(self, index: int) -> Any:
        assert self._slots is not None
        slot, calls = self._slots[index], self.calls

        def note(layer: _BatchNorm, args: tuple[Any, ...]) -> None:
            x = args[0] if args else None
            if torch.compiler.is_compiling():
                if layer.training:
                    slot.fill_(x.numel() // x.shape[1])  # type: ignore[union-attr]
                return
            # a checkpointed block runs once more inside the backward pass
            if not isinstance(x, Tensor) or x.ndim < 2 or torch._C._current_graph_task_id() != -1:
                return
            if layer.training:
                calls.setdefault(index, []).append(values_per_channel(x.shape))
            if self.look is not None:
                self.look(index, layer, x)

        return note
