"""Remedies for bad batches: leave out the step they spoilt, fill what is not finite where most batches hold such
values, and standardise inputs that are far from unit scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from lightning_stall.measure.batches import replace_tensors
from lightning_stall.measure.columns import FieldWatch, is_table
from lightning_stall.measure.entries import Entry
from lightning_stall.remedies import BufferSnapshot, StepControl, batchnorm_layers, swap

# whose remedy gives other inputs: what weights have learnt of the old ones is void
RESCALED = ("unscaled-inputs", "disparate-feature-scales")


@dataclass
class LeaveOut:
    """Leaves a step out and puts BatchNorm's statistics back to what they were before its batch."""

    module: Module
    skipped: int = 0  # steps left out, where the host knows
    scaled: bool = False  # a GradScaler leaves such steps out by itself
    _control: StepControl = field(default_factory=StepControl)
    _buffers: BufferSnapshot = field(init=False)

    def __post_init__(self) -> None:
        self._buffers = BufferSnapshot([m for _, m in batchnorm_layers(self.module)])

    def before_batch(self, window_starts: bool, bad: bool | Tensor, always: bool) -> None:
        """Keep the statistics: on a CPU before the first bad batch of a window, elsewhere before each window.

        Elsewhere, and with `always`, the host does not know whether the batch will turn out bad.
        """
        if window_starts:
            self._buffers.taken = False
        known = isinstance(bad, bool) and not always
        if not self._buffers.taken and (bad if known else window_starts):
            self._buffers.take()

    def apply(self, optimizer: Optimizer, bad: Tensor) -> bool:
        """Leave this step out where `bad`, a device scalar, is true; whether the host knows that it was."""
        self._buffers.restore(bad)
        known = not self.scaled and bool(self._control.skip(optimizer, bad))
        self.skipped += known
        return known

    def remove(self) -> None:
        self._control.remove()


@dataclass
class InputScale:
    """(x - mean) / std, of one tensor, or in front of a layer, of the first float tensor that is given to it."""

    mean: Tensor
    std: Tensor
    once: ClassVar[bool] = True  # done a second time it would do harm

    def __call__(self, x: Any, args: Any = None, kwargs: Any = None) -> Any:
        if isinstance(x, Module):
            return self._in_front(args, kwargs)
        return self.put(x) if isinstance(x, Tensor) and x.is_floating_point() else x

    def put(self, x: Tensor) -> Tensor:
        mean = self.mean.to(x.device, non_blocking=True)
        scaled = (x.to(torch.promote_types(x.dtype, torch.float32)) - mean) / self.std.to(x.device, non_blocking=True)
        return scaled.to(x.dtype)

    def _in_front(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = [*args, *kwargs.values()]
        first = next((i for i, v in enumerate(given) if isinstance(v, Tensor) and v.is_floating_point()), None)
        if first is not None:
            given[first] = self(given[first])
        return tuple(given[: len(args)]), dict(zip(kwargs, given[len(args) :], strict=True))


class InputFill(InputScale):
    """`mean` in the place of values that are not finite, of one tensor or in front of a layer."""

    once = False  # and where the input is the target too, it must be done in both places

    def put(self, x: Tensor) -> Tensor:
        return torch.where(x.isfinite(), x, self.mean.to(x.device, x.dtype, non_blocking=True))


@dataclass
class Standardizer:
    """(x - mean) / std for some fields of a batch.

    Where a field enters layers as it is, in front of those layers: the model takes the data as they are from then on,
    under a Trainer or without, and keeps doing so. Elsewhere in front of a strategy's steps. New tensors are made, so
    what a dataset holds is not changed.
    """

    put: type[InputScale] = InputScale  # what stands in front
    statistics: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    layers: dict[str, list[str]] = field(default_factory=dict)  # field -> the layers that it enters
    _undo: dict[str, Callable[[], None]] = field(default_factory=dict, repr=False)

    def fit(self, name: str, watch: FieldWatch, entries: Sequence[Entry] = ()) -> bool:
        """Take a field's statistics, and where it enters; False where there are none yet."""
        found = watch.statistics()
        if found is None:
            return False
        self._take(name, found, tuple(watch.shape), entries)
        return True

    def fit_finite(self, name: str, x: Tensor, entries: Sequence[Entry] = ()) -> None:
        """Take the mean of what is finite in this field of one batch, by column of a table, 0 where nothing is."""
        known = torch.where(x.isfinite(), x, torch.nan).float()
        mean = torch.nan_to_num(known.nanmean(0) if is_table(x) else known.nanmean())
        self._take(name, (mean, torch.ones_like(mean)), tuple(x.shape[1:]), entries)

    def _take(self, name: str, found: tuple[Tensor, Tensor], shape: tuple[int, ...], entries: Sequence[Entry]) -> None:
        mine, flat = [e for e in entries if e.field == name], (math.prod(shape),)
        if found[0].ndim and mine and all(e.shape == flat != shape for e in mine):
            # its memory enters a layer as one row a sample: so do its columns' numbers
            mean, std = (v.expand(1, *shape).reshape(1, -1) for v in found)
            found, shape = (mean, std), flat
        self.statistics[name] = found
        if mine and all(not found[0].ndim or e.shape == shape for e in mine):
            self.layers[name] = [e.module for e in mine]

    def __call__(self, batch: Any) -> Any:
        put = self.put
        left = {name: put(*s) for name, s in self.statistics.items() if not (put.once and name in self.layers)}
        return replace_tensors(batch, left) if left else batch

    def attach(self, module: Module) -> None:
        """Stand in front of the layers that the fields enter, once."""
        for name, paths in self.layers.items():
            for path in paths:
                layer = module.get_submodule(path)
                if all(type(hook) is not self.put for hook in layer._forward_pre_hooks.values()):
                    layer.register_forward_pre_hook(self.put(*self.statistics[name]), with_kwargs=True)

    def install(self, strategy: Any, stages: Sequence[str]) -> None:
        """Stand in front of these stages' steps ("training", "validation" ...), once."""
        for stage in stages:
            if stage not in self._undo:
                self._undo[stage] = swap(strategy, f"{stage}_step", self._in_front)

    def _in_front(self, step: Callable[..., Any]) -> Callable[..., Any]:
        return lambda batch, *args, **kwargs: step(self(batch), *args, **kwargs)

    def remove(self) -> None:
        """Leave the strategy; a layer keeps what stands in front of it, since its weights have learnt behind that."""
        for undo in self._undo.values():
            undo()
        self._undo.clear()

    def state_dict(self) -> dict[str, dict[str, Any]]:
        return {
            name: {"mean": mean, "std": std, "layers": self.layers.get(name, [])}
            for name, (mean, std) in self.statistics.items()
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        self.statistics = {name: (s["mean"], s["std"]) for name, s in state.items()}
        self.layers = {name: list(s["layers"]) for name, s in state.items() if s.get("layers")}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_undo": {}}
