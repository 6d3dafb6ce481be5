"""Values that stand for a missing one, as -999 or 1e20: seen by being the same each time, and far outside all others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FAR = 20.0  # times the usual largest magnitude of a batch, from which on
GAP = 10.0  # times the largest of the other batches
FEW = 3  # batches that hold it, at least
OTHERS = 5  # batches without, at least
MOST = 0.8  # of the batches, more of which are the usual ones
FAR_INSIDE = 50.0  # times all other entries of one batch
MOST_ROWS = 0.3  # of one batch


@dataclass(frozen=True)
class FillValue:
    """A magnitude that comes again and again, and what is usual without it."""

    size: float
    usual: float
    column: int  # -1 where the field is read as a whole
    with_it: tuple[int, ...]  # optimizer steps
    without: tuple[int, ...]


def across_batches(sizes: Tensor, steps: Sequence[int], epochs: Sequence[int]) -> FillValue | None:
    """The same largest magnitude in several batches, nothing between it and the others. Heavy tails have something there.

    Args:
        sizes: largest magnitudes, (batches, columns), on the host.
        steps: the optimizer step of each batch.
        epochs: the epoch of each: one sample that comes again in the next is one sample.
    """
    for column in range(sizes.shape[1]):
        values = sizes[:, column]
        size = values.max()
        hits = values == size
        count, rest = int(hits.sum()), values[~hits]
        if count < FEW or max(Counter(e for e, hit in zip(epochs, hits.tolist(), strict=True) if hit).values()) < FEW:
            continue
        if count > MOST * len(values) or len(rest) < OTHERS:
            continue
        usual = rest.median()
        if not usual > 0 or size < FAR * usual or size < GAP * rest.max() or not rest.std() > 0:
            continue
        return FillValue(
            float(size),
            float(usual),
            column if sizes.shape[1] > 1 else -1,
            tuple(s for s, hit in zip(steps, hits.tolist(), strict=True) if hit),
            tuple(s for s, hit in zip(steps, hits.tolist(), strict=True) if not hit),
        )
    return None


def inside_batch(x: Tensor, peak: float) -> float:
    """The largest magnitude of all other entries, where several share `peak` far outside them, in few samples; 0 else."""
    sizes = x.detach().reshape(len(x), -1).abs()
    same = sizes == peak
    if int(same.sum()) < 2 or float(same.any(1).float().mean()) > MOST_ROWS:
        return 0.0
    rest = sizes[~same]
    most = float(rest.max())
    return most if most * FAR_INSIDE < peak and bool((rest != rest[0]).any()) and torch.isfinite(rest).all() else 0.0
