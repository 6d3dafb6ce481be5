"""What validation batches hold, and what came of them: values that are not finite, training samples, the loss."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_stall.measure.batch_watch import BadBatch, locate
from lightning_stall.measure.batches import Field
from lightning_stall.measure.columns import extreme, extremes

LESS_IS_BETTER = re.compile(r"loss|mse|mae|nll|error|entropy|perplexity")
# the same as whole words, between what is neither letter nor digit
SHORT = frozenset(
    {"ce", "bce", "xent", "kl", "ppl", "l1", "l2", "huber", "hinge", "cost", "objective", "deviance", "crps"}
)


@dataclass
class ValidationWatch:
    """Fed each validation batch; `read` waits for the device, `look` only on a CPU."""

    best: float = math.inf
    last: float = math.nan
    unread: bool = False  # a validation is over and not yet read
    _bad: BadBatch | None = None
    _flags: dict[str, Tensor] = field(default_factory=dict)  # on an accelerator: field -> whether any batch was bad

    def look(self, found: Sequence[Field], step: int, epoch: int, batch_idx: int) -> None:
        """Note the first batch with values that are not finite."""
        for f in found:
            if not f.floating:
                continue
            if f.tensor.device.type != "cpu":
                bad = ~torch.isfinite(extremes(f.tensor)).all()
                self._flags[f.name] = self._flags.get(f.name, bad) | bad
            elif self._bad is None and not math.isfinite(extreme(f.tensor)):
                self._bad = locate(f, step, epoch, batch_idx)

    def read(self, metrics: Mapping[str, Any], step: int, epoch: int) -> BadBatch | None:
        """Take the validation loss; returns the bad batch where that loss is not finite."""
        self.unread = False
        bad, self._bad = self._bad, None
        for name, flag in self._flags.items():
            if bad is None and bool(flag):
                bad = BadBatch(step, epoch, -1, name, 1, -1, [], 1, math.nan)
        self._flags = {}
        value = validation_loss(metrics)
        if value is None:
            return None
        self.last = value
        if math.isfinite(value):
            self.best = min(self.best, value)
            return None
        return bad


def less_is_better(name: str) -> bool:
    """Whether a metric's name says that it is a loss."""
    low = name.lower()
    return bool(LESS_IS_BETTER.search(low)) or not SHORT.isdisjoint(re.split(r"[^a-z0-9]+", low))


def validation_loss(metrics: Mapping[str, Any]) -> float | None:
    """The loss of the last validation among what was logged, by its name; None where none looks like one. Waits."""
    for name, value in metrics.items():
        low = name.lower()
        if "val" in low and (less_is_better(name) or "elbo" in low):
            return float(value)
    return None
