"""The targets as they reached the loss: classes batch by batch, what the model predicts, the scale of numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_stall.measure.columns import most_rows, sample_rows
from lightning_stall.measure.losses import SeenLoss

MOST_CLASSES = 4096
ENTRIES = 1 << 16  # of one batch's targets
BLOCKS = 512  # batches remembered
GUESSES = 200  # predictions that are enough to say so, from as few of the last batches as give them
ROBUST = 1.7  # times the standard error of a variance, that of one from the median deviation has
RECENT = 8  # measured batches that say what the model predicts now
SMALLEST_BLOCK = 8  # samples; smaller batches are joined


@dataclass(frozen=True)
class ClassCounts:
    """Classes of the targets seen, as plain numbers."""

    counts: list[float]
    predicted: list[float]  # over the last measured batches
    batches: int
    blocks: int
    grouping: float  # 0 where batches are drawn at random, 1 where each holds one class; NaN where not known
    error: float  # standard error of `grouping` under random order
    weighted: bool
    dense: bool  # several targets a sample (pixels, tokens)


@dataclass(frozen=True)
class TargetScale:
    """Moments of regression targets, over all entries."""

    mean: float
    std: float
    residual: float  # root mean square error of the model, over the last measured batches
    rows: int
    batches: int
    grouping: float  # share of the variance that lies between batches, beyond chance
    error: float  # its standard error under random order
    single: bool  # all are the same number


@dataclass
class LabelWatch:
    """Takes the losses recognised in the graph; on the device, no waits but in `classes` and `scale`."""

    kind: str | None = field(default=None, init=False)
    mixed: bool = field(default=False, init=False)  # losses of several kinds: nothing is said
    weights: list[Tensor] = field(default_factory=list, init=False, repr=False)  # of the classes, if the loss has any
    dense: bool = field(default=False, init=False)
    columns: int = field(default=1, init=False)
    batches: int = field(default=0, init=False)
    rows: int = field(default=0, init=False)
    sample: list[Tensor] = field(default_factory=list, init=False, repr=False)
    _histograms: list[Tensor] = field(default_factory=list, init=False, repr=False)
    _predicted: list[Tensor] = field(default_factory=list, init=False, repr=False)
    _sums: list[Tensor] = field(default_factory=list, init=False, repr=False)  # (5,) a batch, see `_measure_numbers`

    def update(self, seen: SeenLoss, keep_rows: bool) -> None:
        """Take the loss of one batch."""
        if self.kind not in (None, seen.kind):
            self.mixed = True
        if self.mixed or not seen.target.numel():
            return
        self.kind = seen.kind
        if seen.weighted and not self.weights:
            self.weights = _weights(seen)
        self.batches += 1
        self.rows += len(seen.target) if seen.target.ndim else 1
        if seen.kind == "cross-entropy":
            self._count(*_classes(seen))
            self.dense = self.dense or seen.prediction.ndim > 2 or seen.target.ndim > 1
        elif seen.kind == "binary cross-entropy":
            self.columns = seen.target[0].numel() if seen.target.ndim > 1 else 1
            self.dense = self.dense or self.columns > 1
            self._count(*_binary(seen))
        else:
            self._measure_numbers(seen)
        if keep_rows and seen.target.ndim and sum(map(len, self.sample)) < most_rows(self.columns):
            self.sample.append(sample_rows(seen.target.unsqueeze(-1)))

    def _count(self, target: Tensor, predicted: Tensor, valid: Tensor, classes: int) -> None:
        if classes > MOST_CLASSES or (self._histograms and len(self._histograms[0]) != classes):
            self.mixed = True
            return
        weight = valid.float()
        for into, values in ((self._histograms, target), (self._predicted, predicted)):
            bins = torch.zeros(classes, device=target.device, dtype=torch.float32)
            into.append(bins.scatter_add_(0, values.clamp(0, classes - 1), weight))
        del self._histograms[:-BLOCKS], self._predicted[:-RECENT]

    def _measure_numbers(self, seen: SeenLoss) -> None:
        target = seen.target.detach().reshape(-1)[:ENTRIES].float()
        error = seen.prediction.detach().float().reshape(-1)[: len(target)]
        error = error - target if len(error) == len(target) else target
        squares = torch.stack([target, error]).square().mean(1)
        self._sums.append(torch.stack([target.mean(), squares[0], target.var(correction=0), squares[1]]))
        del self._sums[:-BLOCKS]

    def classes(self) -> ClassCounts | None:
        """Class counts so far; None for regressions and mixed losses."""
        if self.mixed or not self._histograms:
            return None
        table = torch.stack(self._histograms).double().cpu()
        grouping, error, blocks = _grouping(_blocks(table))
        return ClassCounts(
            counts=table.sum(0).tolist(),
            predicted=_latest(torch.stack(self._predicted).cpu()),
            batches=len(table),
            blocks=blocks,
            grouping=grouping,
            error=error,
            weighted=any(_uneven(w) for w in self.weights),
            dense=self.dense,
        )

    def scale(self) -> TargetScale | None:
        """Moments of the targets so far; None for classifications and mixed losses."""
        if self.mixed or not self._sums:
            return None
        table = torch.stack(self._sums).double().cpu()
        # medians over the batches, which a few corrupt ones do not move
        mean, within = float(table[:, 0].median()), float(table[:, 2].median())
        between = float((1.4826 * (table[:, 0] - mean).abs().median()).square())
        variance, size = within + between, self.rows / self.batches
        grouping = math.nan
        if len(table) >= 8 and size >= SMALLEST_BLOCK and variance > 0:
            grouping = max(0.0, between - within / (size - 1)) / variance
        return TargetScale(
            mean=mean,
            std=math.sqrt(variance),
            residual=math.sqrt(float(table[-RECENT:, 3].median())),
            rows=self.rows,
            batches=self.batches,
            grouping=min(1.0, grouping) if math.isfinite(grouping) else math.nan,
            single=bool((table[:, 2] == 0).all() and (table[:, 0] == table[0, 0]).all()),
            error=ROBUST * math.sqrt(2 / len(table)) / max(size, 1.0),
        )


def _classes(seen: SeenLoss) -> tuple[Tensor, Tensor, Tensor, int]:
    axis = 1 if seen.prediction.ndim > 1 else 0
    classes = seen.prediction.shape[axis]
    target = seen.target.detach().reshape(-1)
    predicted = seen.prediction.detach().argmax(axis).reshape(-1)
    stride = -(-len(target) // ENTRIES)
    target, predicted = target[::stride], predicted[::stride]
    valid = (target >= 0) & (target < classes)
    if seen.ignore_index is not None:
        valid &= target != seen.ignore_index
    return target, predicted, valid, classes


def _binary(seen: SeenLoss) -> tuple[Tensor, Tensor, Tensor, int]:
    target, prediction = seen.target.detach().reshape(-1)[:ENTRIES], seen.prediction.detach().reshape(-1)[:ENTRIES]
    threshold = 0.0 if "Logits" in seen.node.name() else 0.5
    hard = (target == 0) | (target == 1)  # graded targets are of no class
    return target.round().long(), (prediction > threshold).long(), hard, 2


def _weights(seen: SeenLoss) -> list[Tensor]:
    """Class weights of a cross-entropy, or the weight of the positive class against 1."""
    found = [getattr(seen.node, name, None) for name in ("_saved_weight", "_saved_pos_weight")]
    positive = isinstance(found[1], Tensor)
    kept = [w.detach().reshape(-1) for w in found if isinstance(w, Tensor)]
    return [torch.cat([w, torch.ones_like(w)]) if positive else w for w in kept]


def _uneven(weights: Tensor) -> bool:
    return bool(weights.max() > 1.5 * weights.min())


def _blocks(table: Tensor) -> Tensor:
    """Rows of class counts, neighbours joined until each holds at least eight samples."""
    if float(table.sum(1).min()) >= SMALLEST_BLOCK:
        return table
    out, current = [], torch.zeros(table.shape[1], dtype=table.dtype)
    for row in table:
        current = current + row
        if float(current.sum()) >= SMALLEST_BLOCK:
            out.append(current)
            current = torch.zeros_like(row)
    return torch.stack(out) if out else table[:0]


def _grouping(blocks: Tensor) -> tuple[float, float, int]:
    """How much likelier two samples of one batch share their class than two of any batches, as a share of what is left.

    The intraclass correlation of the classes: 0 under random order, 1 where each batch holds a single class.
    """
    sizes, total = blocks.sum(1), blocks.sum(0)
    n = float(sizes.sum())
    if len(blocks) < 4 or n < 2:
        return math.nan, math.nan, len(blocks)
    alike = (blocks * (blocks - 1)).sum(1) / (sizes * (sizes - 1))
    overall = float((total * (total - 1)).sum() / (n * (n - 1)))
    if overall > 1 - 1e-9:
        return math.nan, math.nan, len(blocks)
    error = math.sqrt(2 * overall / float((sizes * (sizes - 1)).sum())) / (1 - overall) + 1e-9
    return (float(alike.mean()) - overall) / (1 - overall), error, len(blocks)


def _latest(predicted: Tensor) -> list[float]:
    """Counts by class over as few of the last batches as hold `GUESSES` predictions: shape (batches, C) to C numbers."""
    enough = (predicted.sum(1).flip(0).cumsum(0) < GUESSES).sum() + 1
    counts: list[float] = predicted[-int(enough) :].sum(0).tolist()
    return counts
