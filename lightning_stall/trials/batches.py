"""The last few training batches, kept for trials, and what a trial may do to one: standardise it, shuffle its targets.

A batch is kept by reference, so that keeping costs a few microseconds and waits for no device. Where the training step
turns out to change its batches in place, they are copied instead.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lightning_stall.measure.factors import explained_by_factors
from lightning_stall.measure.probe import explained_without, signal

KEEP = 16  # micro-batches
ROOM = 64 * 2**20  # bytes that all of them together may take
MOST_ROWS = 1024  # samples that neighbours are looked for among
MOST_COLUMNS = 4096
MOST_NAMES = 4  # columns of names
OFF_SCALE = 10.0  # a typical input this many times away from 1 is worth standardising
UNEVEN = 100.0  # times the spread of one column, that another's may be


def tensors(batch: Any) -> list[Tensor]:
    """The tensors of a batch made of tuples, lists and dicts, in order."""
    return [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]


def cloned(batch: Any) -> Any:
    """The same batch in tensors of its own; what is no tensor is shared."""
    return tree_map(lambda t: t.detach().clone().requires_grad_(t.requires_grad) if isinstance(t, Tensor) else t, batch)


@dataclass(frozen=True, eq=False)
class Kept:
    """One micro-batch as `training_step` was given it, and the versions its tensors had then."""

    batch: Any
    index: int
    epoch: int
    size: int  # bytes
    versions: tuple[int, ...]

    @property
    def whole(self) -> bool:
        """Whether nothing has been written into it since."""
        return tuple(t._version for t in tensors(self.batch)) == self.versions


@dataclass
class KeptBatches:
    """The last `KEEP` micro-batches, in at most `ROOM` bytes."""

    queue: deque[Kept] = field(default_factory=deque)
    size: int = 0  # bytes
    passed: int = 0  # micro-batches since it was last empty
    copying: bool = False  # the training step writes into its batches

    def add(self, batch: Any, index: int, epoch: int) -> None:
        if self.queue and not self.copying and not self.queue[-1].whole:
            self.copying = True
            self.clear()
        self.passed += 1
        found = tensors(batch)
        if not found or any(t.is_inference() or t.layout is not torch.strided or t.is_nested for t in found):
            return
        size = sum(t.nbytes for t in found)
        if size > ROOM:
            return
        if self.copying:
            batch = cloned(batch)
            found = tensors(batch)
        self.queue.append(Kept(batch, index, epoch, size, tuple(t._version for t in found)))
        self.size += size
        while len(self.queue) > KEEP or self.size > ROOM:
            self.size -= self.queue.popleft().size

    def clear(self) -> None:
        self.queue.clear()
        self.size = self.passed = 0

    def of_one_epoch(self) -> list[Kept]:
        """Those of the epoch that most are from: within an epoch, no sample comes twice."""
        whole = [k for k in self.queue if k.whole]
        if not whole:
            return []
        epoch = max(Counter(k.epoch for k in whole).items(), key=lambda pair: (pair[1], pair[0]))[0]
        return [k for k in whole if k.epoch == epoch]


def split(kept: Sequence[Kept]) -> tuple[list[Kept], list[Kept]]:
    """Batches to fit, and about a third to judge the fit on; none of these where there is only one batch."""
    if len(kept) < 2:
        return list(kept), []
    judged = list(kept[1::3])
    return [k for k in kept if k not in judged], judged


# ---------------------------------------------------------------------- inputs and targets


def find_target(batch: Any, target: Tensor) -> int | None:
    """Which of `tensors(batch)` holds the values the loss was given as targets; None where none or several do."""
    flat = target.detach().reshape(-1)
    same = []
    for i, leaf in enumerate(tensors(batch)):
        if leaf.numel() != flat.numel() or leaf.device != flat.device or not leaf.numel():
            continue
        if leaf.data_ptr() == flat.data_ptr() or torch.equal(leaf.detach().reshape(-1).to(flat.dtype), flat):
            same.append(i)
    return same[0] if len(same) == 1 else None


def replaced(batch: Any, new: dict[int, Tensor]) -> Any:
    """The batch with some of `tensors(batch)` exchanged."""
    numbered = iter(range(len(tensors(batch))))
    return tree_map(lambda leaf: new.get(next(numbered), leaf) if isinstance(leaf, Tensor) else leaf, batch)


def shuffled(batch: Any, target: int, seed: int) -> Any:
    """The batch with its targets in another order; the samples keep theirs."""
    values = tensors(batch)[target]
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))
    return replaced(batch, {target: values.detach()[order.to(values.device)]})


@dataclass(frozen=True)
class Known:
    """What these samples tell of their targets without the model; NaN where that is not known."""

    shown: float = (
        math.nan
    )  # share of the targets' variance that nearest others, or a line, explain, of one float input
    bond: float = math.nan  # standard deviations above shuffled targets, of whatever the batch holds (see `signal`)
    names: int = 0  # how many there are in two columns, where `shown` is what these tell together, as tables of factors


def without_model(batches: Sequence[Any], target: int | None, classes: bool) -> Known:
    """Ask the samples themselves what they tell of their targets (see `explained_without` and `signal`)."""
    first = tensors(batches[0])
    if target is None or not first[target].ndim:
        return Known()
    rows = len(first[target])
    inputs = [i for i, t in enumerate(first) if i != target and t.ndim and len(t) == rows and not t.is_complex()]
    found = [tensors(b) for b in batches]
    y = _rows([t[target] for t in found])
    if not inputs or y is None or (classes and y.shape[1] != 1):
        return Known()
    x = {i: _rows([t[i] for t in found]) for i in inputs}
    known = [v for v in x.values() if v is not None and len(v) == len(y) and v.shape[1] <= MOST_COLUMNS]
    bond = signal(torch.cat(known, 1), y, classes) if known else None
    floats = [i for i in inputs if first[i].is_floating_point() and first[i].ndim >= 2]
    alone = x[floats[0]] if len(floats) == 1 else None
    if not floats and y.shape[1] == 1:
        shown, names = _by_names(found, inputs, target, classes)
        return Known(shown, math.nan if bond is None else bond.best, names)
    if alone is None or len(alone) != len(y) or _alike(alone, y):
        return Known(bond=math.nan if bond is None else bond.best)
    return Known(explained_without(alone, y, classes), math.nan if bond is None else bond.best)


def _by_names(
    found: Sequence[Sequence[Tensor]], inputs: Sequence[int], target: int, classes: bool
) -> tuple[float, int]:
    """What the best two of a few columns of whole numbers tell together of one number, or of yes or no, and how many
    names these hold; NaN and 0 of others.
    """
    columns: list[Tensor] = []
    for i in inputs:
        whole = torch.cat([t[i].detach().reshape(len(t[i]), -1).cpu() for t in found]) if _one_width(found, i) else None
        if whole is not None and not whole.is_floating_point() and whole.shape[1] <= MOST_NAMES:
            columns += list(whole.long().unbind(1))
    y = torch.cat([t[target].detach().reshape(len(t[target]), -1).cpu() for t in found])[:, 0]
    if not 2 <= len(columns) <= MOST_NAMES or (classes and int(y.max()) > 1) or not bool(y.isfinite().all()):
        return math.nan, 0
    pairs = [(explained_by_factors(a, b, y), len(a.unique()) + len(b.unique())) for a, b in combinations(columns, 2)]
    return max((p for p in pairs if not math.isnan(p[0])), default=(math.nan, 0))


def _one_width(found: Sequence[Sequence[Tensor]], i: int) -> bool:
    return len({t[i].shape[1:] for t in found}) == 1


def _alike(x: Tensor, y: Tensor) -> bool:
    """Whether the targets are the inputs, perhaps with noise on them: how much passes is the model's own choice."""
    return (
        x.shape == y.shape and x.shape[1] > 1 and bool((x - y).square().mean() < 0.5 * (y - y.mean(0)).square().mean())
    )


def _rows(parts: Sequence[Tensor]) -> Tensor | None:
    """Some hundred samples as rows on the host; None where they do not fit together or are not numbers."""
    if len({p.shape[1:] for p in parts}) > 1:
        return None
    rows = torch.cat([p.detach().float().reshape(len(p), -1).cpu() for p in parts])[:MOST_ROWS]
    return rows if bool(rows.isfinite().all()) else None


@dataclass(frozen=True)
class InputScale:
    """Mean and spread of the float inputs over some batches, by column for tables and as a whole for the rest."""

    means: dict[int, Tensor]
    spreads: dict[int, Tensor]
    typical: float = 1.0  # root mean square of the middle column
    uneven: float = 1.0  # largest spread of a column of a table over the smallest

    @property
    def off(self) -> bool:
        """Whether standardising could matter at all."""
        return not 1 / OFF_SCALE <= self.typical <= OFF_SCALE or self.uneven > UNEVEN

    @classmethod
    def of(cls, batches: Sequence[Any], target: int | None) -> InputScale:
        """Measured on these batches; waits for the device."""
        first = tensors(batches[0])
        floats = [i for i, t in enumerate(first) if t.is_floating_point() and t.ndim >= 2 and i != target]
        if target is None:
            floats = floats[:1]
        means, spreads, typical, uneven = {}, {}, 1.0, 1.0
        for n, i in enumerate(floats):
            parts = [tensors(b)[i].detach().float() for b in batches]
            if parts[0].ndim == 2 and all(p.shape[1:] == parts[0].shape[1:] for p in parts):
                values = torch.cat(parts)
            else:
                values = torch.cat([p.reshape(-1, 1) for p in parts])
            mean, spread = values.mean(0), values.std(0, unbiased=False)
            lives = spread > 1e-12 * (1 + mean.abs())
            means[i], spreads[i] = mean, torch.where(lives, spread, torch.ones_like(spread))
            if n == 0 and bool(lives.any()):
                typical = float((mean.square() + spread.square()).sqrt()[lives].median())
                uneven = float(spread[lives].max() / spread[lives].min())
        return cls(means, spreads, typical, uneven)

    def standardise(self, batch: Any) -> Any:
        """The batch with these inputs brought to mean 0 and spread 1."""
        found = tensors(batch)
        new = {i: ((found[i] - m) / self.spreads[i]).to(found[i].dtype) for i, m in self.means.items()}
        return replaced(batch, new)
