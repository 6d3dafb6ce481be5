"""What the first trained layers receive: the batch as it is, or what a step has made of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Module

from lightning_stall.measure.batches import Field
from lightning_stall.measure.quiet import compiled, quiet

MOST_ENTRIES = 8
MOST_IDS = 64  # columns of a table that may hold ids
NORMALISING = ("BatchNorm", "SyncBatchNorm", "LayerNorm", "GroupNorm", "InstanceNorm", "RMSNorm")


@dataclass(frozen=True)
class Entry:
    """One tensor that entered a layer with weights and carries no gradient, so nothing trained stands before it."""

    module: str
    layer: str  # class name
    field: str | None  # the batch's field whose memory it is; None for something computed
    rms: float
    spreads: float  # largest over smallest standard deviation of its columns, those that vary; NaN where unknown
    shape: tuple[int, ...] = ()  # of one sample, as it enters

    @property
    def normalises(self) -> bool:
        return self.layer.startswith(NORMALISING)


@dataclass
class EntryHooks:
    """Hooks for one forward pass. Statistics are taken inside the hook, as what follows may work in place."""

    _handles: list[Any] = field(default_factory=list, repr=False)
    _lookups: list[tuple[str, Tensor]] = field(default_factory=list, repr=False)
    _seen: list[tuple[str, str, str | None, tuple[int, ...], Tensor]] = field(default_factory=list, repr=False)

    def install(self, module: Module, fields: Sequence[Field]) -> None:
        """Watch every layer that holds weights itself and has no children that do; not in a compiled model."""
        self.remove()
        self._seen, self._lookups = [], []
        if compiled(module):
            return
        memory = {f.tensor.untyped_storage().data_ptr(): f.name for f in reversed(fields)}
        for name, layer in module.named_modules():
            own = next(layer.parameters(recurse=False), None)
            if own is not None and all(next(c.parameters(), None) is None for c in layer.children()):
                table = isinstance(layer, nn.Embedding | nn.EmbeddingBag)
                hook = (
                    _LookUp(fields, self._lookups) if table else _Look(name, type(layer).__name__, memory, self._seen)
                )
                self._handles.append(layer.register_forward_pre_hook(quiet(hook), with_kwargs=True))

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def ids(self) -> dict[str, set[int]]:
        """Columns of float fields, by field, that were looked up in an embedding; waits for the device."""
        found: dict[str, set[int]] = {}
        for name, same in self._lookups:
            found.setdefault(name, set()).update(torch.nonzero(same).flatten().tolist())
        return found

    def read(self) -> list[Entry]:
        """What entered; waits for the device."""
        entries = []
        for module, layer, name, shape, numbers in self._seen:
            rms, spreads = numbers.tolist()
            entries.append(Entry(module, layer, name, rms, spreads, shape))
        return entries


@dataclass
class _LookUp:
    """Which columns of float tables hold the ids that an embedding is given."""

    fields: Sequence[Field]
    seen: list[tuple[str, Tensor]]

    def __call__(self, module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
        if x is None or x.is_floating_point() or len(self.seen) >= MOST_ENTRIES:
            return
        for f in self.fields:
            rows = len(f.tensor) if f.tensor.ndim == 2 else 0
            if f.floating and rows > 1 and x.numel() % rows == 0:
                given = x.detach().reshape(rows, -1, 1)[:, :MOST_IDS]
                if f.tensor.shape[1] <= MOST_IDS and f.tensor.device == x.device:
                    same = (given == f.tensor.detach()[:, None, :]).all(0).any(0)
                    self.seen.append((f.name, same))


@dataclass
class _Look:
    name: str
    layer: str
    memory: Mapping[int, str]
    seen: list[tuple[str, str, str | None, tuple[int, ...], Tensor]]

    def __call__(self, module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for x in (*args, *kwargs.values()):
            if len(self.seen) >= MOST_ENTRIES or not isinstance(x, Tensor) or not x.is_floating_point():
                continue
            if (x.requires_grad and not x.is_leaf) or not x.numel() or x.layout is not torch.strided:
                continue
            if type(x) not in (Tensor, torch.nn.Parameter):  # spread over ranks, for one
                continue
            with torch.no_grad():
                whose = self.memory.get(x.untyped_storage().data_ptr())
                self.seen.append((self.name, self.layer, whose, tuple(x.shape[1:]), _numbers(x)))


def _numbers(x: Tensor) -> Tensor:
    values = x.detach().float()
    spreads = torch.full((), math.nan, device=x.device, dtype=torch.float32)
    if values.ndim == 2 and len(values) > 1:
        std = values.std(0)
        smallest = torch.where(std > 0, std, torch.full_like(std, math.inf)).min()
        spreads = std.max() / smallest
    return torch.stack([values.square().mean().sqrt(), spreads])
