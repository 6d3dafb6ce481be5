"""Moments, extremes and a few rows of one float tensor of the batches, gathered on its device, read only when asked."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_stall.measure.fill_values import FillValue, across_batches

WIDEST = 512  # columns of a table that are looked at one by one
MOST_CHANNELS = 16
ELEMENTS = 1 << 18  # of one batch; of larger ones the first rows are read
LATER = 1 << 15  # of a batch, once so many batches are known
KNOWN = 32
ROWS = 512  # kept of all
NARROW = 64  # columns, up to which twice as many are: faint bonds with the targets show in many samples only
ROWS_A_BATCH = 128
HISTORY = 256  # batches whose extremes are remembered
STEADY = 48  # batches after which columns may be taken together
EVEN = 10.0  # largest over smallest usual magnitude of such columns
STILL = 1e-6  # change of a value, relative to the largest, that is none


def column_axis(x: Tensor, layer: str = "") -> int | None:
    """The dimension that tells columns apart: of tables the last, of images the channels; None where there is none.

    Args:
        x: a field, samples first.
        layer: class name of the layer it enters, which settles what a sequence (N, a, b) means.
    """
    if x.ndim == 2:
        return 1 if 2 <= x.shape[1] <= WIDEST else None
    axis = 1
    if layer.startswith(("Linear", "LSTM", "GRU", "RNN", "LayerNorm")):
        axis = x.ndim - 1
    elif x.ndim < 4 and not layer.startswith(("Conv", "BatchNorm")):
        return None
    return axis if x.ndim > 2 and 2 <= x.shape[axis] <= MOST_CHANNELS else None


def is_table(x: Tensor) -> bool:
    """Whether a field's columns are looked at one by one."""
    return x.ndim == 2 and 2 <= x.shape[1] <= WIDEST


def extremes(x: Tensor) -> Tensor:
    """Largest magnitude of each column of a table, (C,), or of all, (1,). NaN and infinities stand out in it."""
    x = x.detach()
    if is_table(x):
        return x.abs().amax(0).float()
    low, high = torch.aminmax(x)
    return torch.maximum(-low, high).float().reshape(1)


def extreme(x: Tensor) -> float:
    """Largest magnitude of all as a number; NaN or infinite where any entry is. For the CPU: it waits elsewhere."""
    x = x.detach()
    least, greatest = x.amin().item(), x.amax().item()  # a third quicker than `aminmax`
    return least if math.isnan(least) else max(-least, greatest)


@dataclass(frozen=True)
class Moments:
    """What was gathered of one field, as plain numbers; lists have an entry a column, one without columns."""

    batches: int
    rows: int
    mean: list[float]
    std: list[float]
    nonzero_rms: float  # root mean square of the entries that are not 0, in the median batch
    rms: float  # of all, in the median batch: a few corrupt ones do not move it
    changes: bool  # whether any entry of a sample ever changed
    single_value: bool  # whether every entry of every sample is the same number


@dataclass
class FieldWatch:
    """Streaming statistics of one float field. `update` launches a few kernels and never waits."""

    layer: str = ""
    batches: int = field(default=0, init=False)
    rows: int = field(default=0, init=False)
    axis: int | None = field(default=None, init=False)
    shape: tuple[int, ...] = field(default=(), init=False)
    sample: list[Tensor] = field(default_factory=list, init=False, repr=False)
    _reference: Tensor | None = field(default=None, init=False, repr=False)
    _shift: Tensor | None = field(default=None, init=False, repr=False)
    _sums: Tensor | None = field(default=None, init=False, repr=False)  # (2, C) float64: of x - shift, and its square
    _sizes: list[Tensor] = field(default_factory=list, init=False, repr=False)  # (2,) a batch: mean square, non-zeros
    _range: Tensor | None = field(default=None, init=False, repr=False)  # (3,): -least, greatest, largest change
    _entries: int = field(default=0, init=False)

    def update(self, x: Tensor, keep_rows: bool) -> None:
        """Take one batch; entries that are not finite count as 0."""
        if not x.ndim:
            return
        self.rows += len(x)
        per_row = max(1, x[0].numel())
        most = ELEMENTS if self.batches < KNOWN else LATER
        x = torch.nan_to_num(x.detach()[: max(1, most // per_row)].float(), 0.0, 0.0, 0.0)
        if self.batches == 0:
            self.axis = column_axis(x, self.layer)
            self.shape = tuple(x.shape[1:])
            self._reference = x[0].clone()
            self._shift = self._columns(x).mean(0)
        if self._shift is None or x.ndim != len(self.shape) + 1:
            return
        columns = self._columns(x)
        if columns.shape[1] != len(self._shift):
            return
        away = columns - self._shift
        sums = torch.stack([away.sum(0), away.square().sum(0)]).double()
        sizes = torch.stack([columns.square().mean(), (columns != 0).float().mean()])
        change = self._change(x)
        reach = torch.stack([-columns.min(), columns.max(), change])
        self._sums = sums if self._sums is None else self._sums + sums
        self._sizes.append(sizes)
        del self._sizes[:-HISTORY]
        self._range = reach if self._range is None else torch.maximum(self._range, reach)
        self._entries += columns.shape[0]
        self.batches += 1
        if keep_rows and tuple(x.shape[1:]) == self.shape and sum(map(len, self.sample)) < most_rows(per_row):
            self.sample.append(sample_rows(x))

    def _columns(self, x: Tensor) -> Tensor:
        return x.reshape(-1, 1) if self.axis is None else x.movedim(self.axis, -1).reshape(-1, x.shape[self.axis])

    def _change(self, x: Tensor) -> Tensor:
        if self._reference is None or x.shape[1:] != self._reference.shape:
            self._reference = None  # samples of another length than the first: no doubt that they change
            return torch.full((), math.inf, device=x.device, dtype=torch.float32)
        return (x - self._reference).abs().max()

    def read(self) -> Moments | None:
        """The numbers so far; waits for the device."""
        if self._sums is None or self._range is None or self._shift is None:
            return None
        n = max(1, self._entries)
        first, second = self._sums[0] / n, self._sums[1] / n
        mean = first + self._shift
        std = (second - first.square()).clamp_min(0).sqrt()
        sizes = torch.stack(self._sizes).cpu()
        squares = float(sizes[:, 0].median())
        nonzero = float((sizes[:, 0] / sizes[:, 1].clamp_min(1e-30)).median())
        low, high, change = self._range.tolist()
        size = max(abs(low), abs(high))
        return Moments(
            batches=self.batches,
            rows=self.rows,
            mean=mean.tolist(),
            std=std.tolist(),
            nonzero_rms=math.sqrt(nonzero),
            rms=math.sqrt(squares),
            changes=change > STILL * size,
            single_value=high + low <= STILL * size,
        )

    def statistics(self) -> tuple[Tensor, Tensor] | None:
        """Mean and standard deviation, shaped to broadcast against the field.

        A column that has not changed yet is given the deviation of the median one, as it may change later; if none has,
        1. Columns of images are no features of their own: none counts as steadier than a tenth of all.
        """
        moments = self.read()
        if moments is None:
            return None
        mean, std = torch.tensor(moments.mean, dtype=torch.float32), torch.tensor(moments.std, dtype=torch.float32)
        still = std <= STILL * mean.abs().clamp_min(1e-30)
        usual = std[~still].median() if not bool(still.all()) else torch.ones(())
        std = torch.where(still, usual, std)
        if len(self.shape) >= 3:
            std = std.clamp_min(0.1 * float(std.square().mean().sqrt()))
        if self.axis is None or len(mean) == 1:  # one number fits whatever shape the field is given later
            return mean.reshape(()), std.reshape(())
        shape = [1] * (len(self.shape) + 1)
        shape[self.axis] = len(mean)
        return mean.reshape(shape), std.reshape(shape)


def most_rows(width: int) -> int:
    """How many rows of so many columns are kept."""
    return 2 * ROWS if width <= NARROW else ROWS


def sample_rows(x: Tensor) -> Tensor:
    """The first 128 samples as rows (n, at most 512), wide ones read at an even stride."""
    rows = x.detach()[:ROWS_A_BATCH].reshape(min(len(x), ROWS_A_BATCH), -1).float()
    stride = -(-rows.shape[1] // WIDEST)
    return rows[:, ::stride].clone()


@dataclass(frozen=True)
class Leap:
    """A batch whose largest magnitude stands far outside what the others have."""

    step: int
    batch_idx: int
    epoch: int
    column: int  # -1 where the field is read as a whole
    ratio: float  # over the median batch
    limit: float  # ratio that would pass for the batches' own spread
    usual: float
    row: int = -1


@dataclass
class ExtremeHistory:
    """The largest magnitudes of recent batches, for outliers that come with one batch in hundreds."""

    factor: float = 10.0
    sigmas: float = 8.0
    entries: deque[tuple[int, int, int, Tensor | float]] = field(
        default_factory=lambda: deque(maxlen=HISTORY), repr=False
    )  # step, epoch, batch, largest magnitude of each column or of all
    rows: dict[int, int] = field(default_factory=dict)  # step -> row of the largest entry, where it was looked for
    judged: int = 0  # last step judged
    inside: tuple[int, float, float] | None = None  # a batch with a fill value: its step, the value, the largest other
    usual: float = math.nan  # median over batches of the largest magnitude
    even: bool = False  # columns are alike, so that the largest of all tells enough

    def add(self, step: int, epoch: int, batch_idx: int, largest: Tensor | float) -> None:
        if self.entries and _width(self.entries[-1][3]) != _width(largest):
            self.entries.clear()
        self.entries.append((step, epoch, batch_idx, largest))

    def limits(self) -> Tensor | None:
        """The magnitude of each column, or of all, beyond which a batch leaps out of the history; on its device."""
        if len(self.entries) < 8:
            return None
        last = self.entries[-1][3]
        _, middle, limit = self._bounds(self._sizes())
        most = (middle + limit).exp()
        most[middle <= math.log(1e-29)] = math.inf  # nothing but zeros so far
        fill = self.fill_value()
        if fill is not None:
            most[max(fill.column, 0)] = math.sqrt(fill.usual * fill.size)
        return most.to(last.device) if isinstance(last, Tensor) else most

    def fill_value(self) -> FillValue | None:
        """What stands for missing values in some batches; waits for the device."""
        if not self.entries:
            return None
        return across_batches(self._sizes(), [e[0] for e in self.entries], [e[1] for e in self.entries])

    def _sizes(self) -> Tensor:
        """The magnitudes, (batches, columns), those that are not finite as 0; waits for the device."""
        values = [e[3] for e in self.entries]
        tensors = [v for v in values if isinstance(v, Tensor)]
        sizes = torch.stack(tensors).cpu() if tensors else torch.tensor(values, dtype=torch.float32)[:, None]
        return torch.where(sizes.isfinite(), sizes, torch.zeros_like(sizes))

    def _bounds(self, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logarithms of the magnitudes, their medians, and how far above these one may lie."""
        logs = sizes.clamp_min(1e-30).log()
        middle = logs.median(0).values
        spread = 1.4826 * (logs - middle).abs().median(0).values
        return logs, middle, (self.sigmas * spread).clamp_min(math.log(self.factor))

    def leaps(self) -> list[Leap]:
        """Batches not judged before that leap out of the history, worst first; waits for the device."""
        if len(self.entries) < 8:
            return []
        sizes = self._sizes()
        logs, middle, limit = self._bounds(sizes)
        usual = sizes.median(0).values
        over = (logs - middle - limit) * (usual > 0)
        found = []
        for i in torch.nonzero(over.amax(1) > 0).flatten().tolist():
            step, epoch, batch_idx, _ = self.entries[i]
            if step > self.judged:
                column = int(over[i].argmax())
                found.append(
                    Leap(
                        step=step,
                        batch_idx=batch_idx,
                        epoch=epoch,
                        column=column if sizes.shape[1] > 1 else -1,
                        ratio=math.exp(float(logs[i, column] - middle[column])),
                        limit=math.exp(float(limit[column])),
                        usual=math.exp(float(middle[column])),
                        row=self.rows.get(step, -1),
                    )
                )
        self.judged = self.entries[-1][0]
        self.usual = float(sizes.amax(1).median())
        tensors = [v for *_, v in self.entries if isinstance(v, Tensor)]
        if tensors and tensors[0].device.type == "cpu" and len(tensors) >= STEADY:
            known = usual[usual > 0]
            if not len(known) or float(known.max()) < EVEN * float(known.min()):
                self.even = True
                for i, largest in enumerate(sizes.amax(1).tolist()):
                    self.entries[i] = (*self.entries[i][:3], largest)
        return sorted(found, key=lambda leap: -leap.ratio)


def _width(largest: Tensor | float) -> int:
    return len(largest) if isinstance(largest, Tensor) else 0


def row_of_largest(x: Tensor) -> Tensor:
    """Which sample holds the largest magnitude, on the device."""
    return x.detach().reshape(len(x), -1).abs().amax(1).argmax()


def robust_spreads(rows: Tensor) -> list[float]:
    """Standard deviation of each column that a few outliers do not move: the median over stretches of sixteen rows.

    0 for columns that are constant, or of two values only. `rows` is (n, C), on the host.
    """
    count = max(1, len(rows) // 16)
    stretches = rows[: count * 16].reshape(count, -1, rows.shape[1]) if len(rows) >= 16 else rows[None]
    spreads = stretches.std(1, correction=0).median(0).values
    low, high = rows.min(0).values, rows.max(0).values
    two = ((rows == low) | (rows == high)).all(0)
    return torch.where(two | (spreads <= STILL * rows.abs().amax(0)), torch.zeros_like(spreads), spreads).tolist()


def stacked(parts: Sequence[Tensor]) -> Tensor | None:
    """Kept rows as one tensor on the host, as many as `most_rows` says; None where there are none.

    Batches whose rows have another shape than the first (a short last one, where rows are targets of every pair) do not
    belong to it and are left out.
    """
    alike = [part for part in parts if part.shape[1:] == parts[0].shape[1:]]
    return torch.cat(alike)[: most_rows(alike[0].shape[1])].cpu() if alike else None
