"""What BatchNorm gets and makes of it: values per channel, sizes of the batches to come, batch against running statistics."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

LEAST_SHARE = 1e-3  # weight of the batch in a running average below which the batch cannot be told from rounding


def values_per_channel(shape: Sequence[int]) -> int:
    """Numbers that a mean over batch and space is made of: N for (N, C), N * L for (N, C, L), N * H * W for (N, C, H, W)."""
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


@dataclass
class ValuesSeen:
    """How many values per channel each layer is given in training mode, from the shapes of its inputs alone.

    In eager code a hook notes the shape, and is there only between `open` and `close`. In compiled code the hook is part
    of the graph (one constant written to a small buffer) and stays, for taking it out would compile the graph anew.
    """

    layers: list[_BatchNorm]
    raising: bool = field(default=True)
    calls: dict[int, list[int]] = field(default_factory=dict, init=False)  # layer -> values per channel, by call
    compiled: set[int] = field(default_factory=set, init=False)
    _slots: Tensor | None = field(default=None, init=False, repr=False)  # (layers,), int64
    _handles: dict[int, Any] = field(default_factory=dict, init=False, repr=False)

    def open(self) -> None:
        """Start to look."""
        self.calls.clear()
        if self._slots is None and self.layers:
            home = next((b for b in (*self.layers[0].parameters(), *self.layers[0].buffers())), torch.zeros(0)).device
            self._slots = torch.zeros(len(self.layers), dtype=torch.int64, device=home)
        for index, layer in enumerate(self.layers):
            if index not in self._handles:
                self._handles[index] = layer.register_forward_pre_hook(self._hook(index))

    def close(self) -> None:
        """Stop to look, and read what compiled layers wrote (this waits for the device)."""
        if self._slots is not None:
            for index, values in enumerate(self._slots.tolist()):
                if values:
                    self.compiled.add(index)
                    self.calls.setdefault(index, [values])
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
            if isinstance(x, Tensor) and x.ndim > 1 and layer.training and torch._C._current_graph_task_id() == -1:
                calls.setdefault(index, []).append(values_per_channel(x.shape))

        return note


@dataclass(frozen=True)
class LoaderPlan:
    """The sizes of the batches that a loader is about to give, known without drawing one."""

    samples: int | None  # in all; None where the batches are listed one by one
    usual: int  # samples of a full batch
    batches: int
    odd: tuple[tuple[int, int], ...]  # (batch index, samples) of those that hold fewer

    @classmethod
    def of(cls, loader: Any) -> LoaderPlan | None:
        """None where the sizes are not known beforehand: an iterable dataset, a batch sampler with a way of its own."""
        if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
            return None
        sampler = loader.batch_sampler
        if isinstance(sampler, (list, tuple)):
            sizes = [len(indices) for indices in sampler]
            usual = max(sizes, default=0)
            return cls(None, usual, len(sizes), tuple((i, n) for i, n in enumerate(sizes) if n < usual))
        # a subclass that makes its batches in another way cannot be counted without drawing random numbers
        if not isinstance(sampler, BatchSampler) or type(sampler).__iter__ is not BatchSampler.__iter__:
            return None
        try:
            samples = len(sampler.sampler)  # type: ignore[arg-type]
        except TypeError:
            return None
        full, rest = divmod(samples, sampler.batch_size)
        if not rest or sampler.drop_last:
            return cls(samples, sampler.batch_size, full, ())
        return cls(samples, sampler.batch_size, full + 1, ((full, rest),))


def small_batches(plans: Sequence[LoaderPlan | None], mode: str, limits: Sequence[float]) -> Iterator[tuple[int, int, int]]:
    """Batches that hold fewer samples than usual: (batch index in the epoch, loader, samples).

    Args:
        plans: one a loader, in the order of `CombinedLoader.flattened`.
        mode: how CombinedLoader puts them together. One after the other ("sequential") adds up; side by side, each
            loader's own batch index is the epoch's.
        limits: batches that may be taken of each loader.
    """
    before = 0.0
    for i, (plan, limit) in enumerate(zip(plans, limits, strict=True)):
        if plan is not None:
            for index, samples in plan.odd:
                if index < limit:
                    yield int(before) + index, i, samples
        if mode == "sequential":
            if plan is None and not math.isfinite(limit):
                return
            before += min(limit, plan.batches if plan is not None else limit)
