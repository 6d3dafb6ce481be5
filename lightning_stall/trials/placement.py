"""Whether the loss of a batch depends on the order of its samples, which no mean over samples does.

Where a reshape runs over the wrong axis, or an output is read along the batch, each sample is compared with another's
target: the loss of the same samples in another order is then another one. It is asked of a copy, on kept batches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from lightning_stall.trials.batches import Kept, replaced, tensors
from lightning_stall.trials.pairing import loss_of
from lightning_stall.trials.sandbox import DeclinedError, Sandbox, apart, why_not

ORDERS = 4
FEWEST = 4  # samples
ROUNDING = 2e-4  # of the loss, that an order of summation may make in single precision


@dataclass(frozen=True)
class Placement:
    """Loss of one batch, and the one furthest from it among other orders of the same samples."""

    own: float
    other: float
    samples: int

    @property
    def mixed(self) -> bool:
        return abs(self.other - self.own) > ROUNDING * max(abs(self.own), abs(self.other))


def placement(trainer: Any, module: Any, kept: Sequence[Kept]) -> Placement | None:
    """Ask it of a copy; None where it cannot be asked, where dimension 0 need not count samples, or a step draws numbers."""
    loader = trainer.train_dataloader
    if not isinstance(loader, DataLoader) or loader.collate_fn is not default_collate:
        return None  # only the default collation makes it sure which dimension counts samples
    if not str(trainer.precision).startswith("32") or why_not(trainer, module) is not None:
        return None
    full = next((k for k in reversed(kept) if _rows(tensors(k.batch)) == loader.batch_size), None)
    rows = _rows(tensors(full.batch)) if full is not None else 0
    if full is None or rows < FEWEST:
        return None

    def ask() -> Placement | None:
        box = Sandbox(trainer, module)
        with box.undisturbed():
            own, again = (loss_of(box, full.batch, full.index, seed) for seed in (0, 1))
            if own != again or not math.isfinite(own):
                return None
            others = [loss_of(box, _reordered(full.batch, rows, seed), full.index) for seed in range(ORDERS)]
        return Placement(own, max(others, key=lambda v: abs(v - own)), rows)

    answer = apart(module, ask)
    return None if isinstance(answer, DeclinedError) else answer


def _rows(found: Sequence[Tensor]) -> int:
    """How many samples all of these tensors have; 0 where they differ."""
    sizes = {len(t) if t.ndim else 0 for t in found}
    return sizes.pop() if len(sizes) == 1 else 0


def _reordered(batch: Any, rows: int, seed: int) -> Any:
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    return replaced(batch, {i: t.detach()[order.to(t.device)] for i, t in enumerate(tensors(batch))})
