"""Everything gathered from the batches of one fit: their fields, moments, extremes, labels and order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DistributedSampler, IterableDataset, SequentialSampler

from lightning_stall.measure.batches import Field, Roles, batch_size, find_roles, loss_terms, match, soft_target
from lightning_stall.measure.columns import ExtremeHistory, FieldWatch, extreme, extremes, is_table, row_of_largest
from lightning_stall.measure.entries import Entry, EntryHooks
from lightning_stall.measure.fill_values import inside_batch
from lightning_stall.measure.hashes import Overlap
from lightning_stall.measure.labels import LabelWatch
from lightning_stall.measure.losses import recognise

FIRST = 32  # batches that are all measured; of smaller ones, as many as hold 256 samples
LEAST_ROWS = 256
LONGEST = 128
MOST_TERMS = 8
LOOKED_INSIDE = 16  # batches looked into for values that stand for missing ones
SUSPICIOUS = 10.0  # times the usual extreme, at which the row is looked for


@dataclass
class BadBatch:
    """A batch with entries that are not finite, where it can be looked into at once (on the CPU)."""

    step: int
    epoch: int
    batch_idx: int
    field: str
    rows: int
    row: int
    columns: list[int]  # of a table; empty else
    width: int
    share: float


@dataclass
class SoftTargets:
    """Sums of the rows of class probabilities, (4,) on the device: mean, deviation, whether all are 0 or 1, least."""

    numbers: Tensor
    rows: int
    field: str


@dataclass
class BatchWatch:
    """Feeds each batch to what measures it. Waits for the device only where `look` and `measure` are told it may."""

    roles: Roles = field(default_factory=Roles)
    entries: list[Entry] = field(default_factory=list)
    ids: dict[str, set[int]] = field(default_factory=dict)  # columns of float fields that an embedding is given
    inputs: dict[str, FieldWatch] = field(default_factory=dict)
    integers: dict[str, FieldWatch] = field(default_factory=dict)
    extremes: dict[str, ExtremeHistory] = field(default_factory=dict)
    labels: LabelWatch = field(default_factory=LabelWatch)
    overlap: Overlap = field(default_factory=Overlap)
    terms: dict[int, LabelWatch] = field(default_factory=dict)  # of a weighed sum of built-in losses, by place
    soft: SoftTargets | None = None
    computed: bool | None = None  # whether a step makes its targets of a field of the batch; None where nobody asked
    guessed: FieldWatch | None = None  # a float field that may be the target, where the loss does not tell
    bad: BadBatch | None = None  # the first of this window, on the CPU
    bad_here: bool | Tensor = False  # whether this accumulation window holds such a batch
    limits: dict[str, Tensor] = field(default_factory=dict)  # by field, of a magnitude; none until one is set
    far_here: bool | Tensor = False  # whether this window holds a batch with a magnitude beyond its limit
    batches: int = 0  # all that were looked at
    measured: int = 0
    rows: int = 0
    plain: bool = True  # the loss is one built-in loss
    turned: bool = False  # it was recognised with its two classes changed about
    _step: int = 0  # of the last look
    _hooks: EntryHooks = field(default_factory=EntryHooks)

    @property
    def starting(self) -> bool:
        """Whether every batch is still measured."""
        return self.measured < FIRST or (self.rows < LEAST_ROWS and self.measured < LONGEST)

    def pass_by(self, step: int) -> None:
        """A batch that is not looked at, or not yet."""
        self.batches += 1
        self._step = step

    def look(self, found: Sequence[Field], step: int, epoch: int, batch_idx: int, again: bool = False) -> None:
        """The extremes of each float field of a batch, and whether they are finite; `again` where it was passed by."""
        self.batches += not again
        self._step = step
        for f in found:
            if not f.floating:
                continue
            history = self.extremes.setdefault(f.name, ExtremeHistory())
            if f.tensor.device.type != "cpu":
                largest = extremes(f.tensor)
                history.add(step, epoch, batch_idx, largest)
                self.bad_here = ~torch.isfinite(largest).all() | self.bad_here
                if self.limits:
                    self._compare(f.name, largest)
                continue
            if is_table(f.tensor) and not history.even:
                columns = extremes(f.tensor)
                history.add(step, epoch, batch_idx, columns)
                peak = float(columns.max())  # NaN where any is
                if self.limits:
                    self._compare(f.name, columns)
            else:
                peak = extreme(f.tensor)
                history.add(step, epoch, batch_idx, peak)
                if self.limits:
                    self._compare(f.name, torch.tensor([peak]))
            if not math.isfinite(peak):
                self.bad_here = True
                if self.bad is None:
                    self.bad = locate(f, step, epoch, batch_idx)
            elif f.tensor.ndim and peak > SUSPICIOUS * history.usual:
                history.rows[step] = int(row_of_largest(f.tensor))
            elif self.batches <= LOOKED_INSIDE and f.tensor.ndim and peak > SUSPICIOUS and history.inside is None:
                other = inside_batch(f.tensor, peak)
                history.inside = (step, peak, other) if other else None

    @property
    def odd(self) -> bool:
        """Whether the host knows of something in the present batch that its gradients are to be looked at for."""
        far = self.far_here is not False or self.bad_here is not False
        return far or any(self._step in history.rows for history in self.extremes.values())

    def set_limits(self, name: str) -> bool:
        """From now on note batches in which this field leaps out of its history; waits for the device."""
        limits = self.extremes[name].limits() if name in self.extremes else None
        if limits is not None:
            self.limits[name] = limits
        return limits is not None

    def _compare(self, name: str, largest: Tensor) -> None:
        limit = self.limits.get(name)
        if limit is not None and limit.shape != largest.shape and self.set_limits(name):
            limit = self.limits[name]  # columns that turned out alike are one by now
        if limit is None or limit.shape != largest.shape:
            return
        far = (largest > limit.to(largest.device)).any()
        self.far_here = (bool(far) if far.device.type == "cpu" else far) | self.far_here

    def watch_entries(self, module: Any, found: Sequence[Field]) -> None:
        """Watch what the first trained layers receive in the forward pass that follows."""
        self._hooks.install(module, found)

    def close(self) -> None:
        self._hooks.remove()

    def settle(self, loss: Tensor, found: Sequence[Field]) -> None:
        """Tell inputs from targets, now that the loss is there. Waits for the device."""
        self._hooks.remove()
        self.entries = self._hooks.read() or self.entries
        self.ids = self._hooks.ids() or self.ids
        self.roles = find_roles(found, loss_terms(loss))
        entered = {e.field for e in self.entries}
        both = [f.name for f in found if f.name in self.roles.targets and f.name in entered and f.floating]
        self.roles.inputs += [name for name in both if name not in self.roles.inputs]  # an autoencoder's
        target = soft_target(loss)
        if target is None and not self.roles.certain and (seen := recognise(loss)) is not None:
            target = seen.target  # of a loss written by hand that is a known one
            self.turned = seen.kind == "binary cross-entropy" and match(target, found) is None
            if self.turned:
                target, self.labels = 1 - target, LabelWatch()
        if target is not None and (name := match(target, found)) is not None:
            self.roles = Roles([n for n in self.roles.inputs if n != name], [name], True)
            if not self.roles.inputs:
                self.roles.inputs = [f.name for f in found if f.floating and f.name != name]

    def measure(self, loss: Tensor, found: Sequence[Field], keep_rows: bool) -> None:
        """One batch in full. `keep_rows` while no sample comes twice."""
        self.measured += 1
        self.rows += batch_size(found)
        for f in found:
            if f.name in self.roles.inputs:
                watch = self.inputs.setdefault(f.name, FieldWatch(self._layer(f.name)))
                watch.update(f.tensor, keep_rows)
            elif f.floating and f.name in self.roles.targets and not self.roles.certain:
                self.guessed = self.guessed or FieldWatch()
                self.guessed.update(f.tensor, False)
            elif not f.floating and f.name not in self.roles.targets:
                self.integers.setdefault(f.name, FieldWatch()).update(f.tensor, keep_rows)
        self.measure_labels(loss, keep_rows)

    def measure_labels(self, loss: Tensor, keep_rows: bool) -> None:
        """The targets of one batch, as they reached the loss."""
        seen = recognise(loss)
        self.plain = self.plain and seen is not None
        if seen is not None and self.turned:
            seen = replace(seen, target=1 - seen.target, prediction=1 - seen.prediction)
        if seen is not None:
            self.labels.update(seen, keep_rows)
            return
        for place, term in enumerate(loss_terms(loss)[:MOST_TERMS]):
            self.terms.setdefault(place, LabelWatch()).update(term, False)
        if self.measured <= FIRST and (target := soft_target(loss)) is not None and self.roles.certain:
            sums = target.detach().float().sum(1)
            hard = ((target == 0) | (target == 1)).all().float()
            numbers = torch.stack([sums.mean(), sums.std(correction=0), hard, target.min().float()])
            self.soft = SoftTargets(numbers, len(target), self.roles.targets[0] if self.roles.targets else "")

    def _layer(self, name: str) -> str:
        return next((e.layer for e in self.entries if e.field == name), "")

    def entry(self, name: str) -> tuple[Entry | None, bool]:
        """The layer that a field enters as it is; else what enters first instead of it. And whether it is as it is."""
        own = next((e for e in self.entries if e.field == name), None)
        if own is not None:
            return own, True
        return next((e for e in self.entries if e.field is None), None), False

    def hashed(self, found: Sequence[Field]) -> list[Tensor]:
        """The float inputs of a batch that share its number of samples, for telling samples apart."""
        size = batch_size(found)
        names = self.roles.inputs
        return [f.tensor for f in found if f.name in names and f.tensor.ndim and len(f.tensor) == size > 0]


def locate(f: Field, step: int, epoch: int, batch_idx: int) -> BadBatch:
    """Which rows and columns of a field are not finite; waits for the device."""
    bad = ~torch.isfinite(f.tensor.detach())
    rows, columns = [0], []
    if bad.ndim:
        rows = torch.nonzero(bad.reshape(len(bad), -1).any(1)).flatten().tolist()
        if bad.ndim == 2:
            columns = torch.nonzero(bad.any(0)).flatten().tolist()
    width = bad.shape[-1] if bad.ndim else 1
    return BadBatch(step, epoch, batch_idx, f.name, len(rows), rows[0], columns, width, float(bad.float().mean()))


def recall(watch: BatchWatch, step: int) -> BadBatch | None:
    """The bad batch of an earlier step, as far as its extremes tell (on an accelerator the batch itself is gone)."""
    for name, history in watch.extremes.items():
        for at, epoch, batch_idx, largest in history.entries:
            if at != step or not isinstance(largest, Tensor):
                continue
            finite = torch.isfinite(largest)
            if not bool(finite.all()):
                columns = torch.nonzero(~finite).flatten().tolist() if len(largest) > 1 else []
                return BadBatch(step, epoch, batch_idx, name, 1, -1, columns, len(largest), float("nan"))
    return None


def draws_at_random(loader: Any) -> bool | None:
    """Whether this loader shuffles; None where it does not say (a stream). A sampler of one's own counts as random."""
    if isinstance(getattr(loader, "dataset", None), IterableDataset) or not hasattr(loader, "sampler"):
        return None
    batches = getattr(loader, "batch_sampler", None)
    if batches is not None and type(batches) is not BatchSampler and not hasattr(batches, "sampler"):
        return True
    sampler = getattr(batches, "sampler", None)
    sampler = loader.sampler if sampler is None else sampler  # one that is empty by now is false
    if isinstance(sampler, DistributedSampler):
        return bool(sampler.shuffle)
    return not isinstance(sampler, SequentialSampler)
