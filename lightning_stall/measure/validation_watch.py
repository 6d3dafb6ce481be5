"""What validation batches hold, and what came of them: values that are not finite, training samples, the loss."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence, Set
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


PHASES = frozenset(
    {"train", "training", "tr", "trn", "fit", "val", "valid", "validation", "dev", "eval", "test", "step", "epoch"}
)
ALIKE = 1e-5  # relative difference of two numbers that are one
OFTEN = 2  # validations before which a metric was the training loss


@dataclass
class LossTwins:
    """Which validation metrics are the training loss under another name: `rating/val`, where `rating/train` is the loss.

    Told by the numbers: what was logged in training under the same name, but for the phase, is the loss of a late step.
    """

    times: dict[str, int] = field(default_factory=dict)

    def update(self, logged: Iterable[str], metrics: Mapping[str, Any], losses: Sequence[float]) -> None:
        """Take what stands in `metrics` after a validation that logged some of it, and the last training losses. Waits."""
        for name in logged:
            if less_is_better(name):
                continue
            for other, value in metrics.items():
                if other == name or _without_phase(other) != _without_phase(name):
                    continue
                number = float(value)
                if number and any(math.isclose(number, loss, rel_tol=ALIKE) for loss in losses):
                    self.times[name] = self.times.get(name, 0) + 1
                    break

    @property
    def names(self) -> frozenset[str]:
        """Those that have been it often enough."""
        return frozenset(name for name, times in self.times.items() if times >= OFTEN)


def validation_losses(trainer: Any, also: Set[str] = frozenset()) -> dict[str, float]:
    """What the module logged in this validation under a metric name that says that less is better, or one of `also`."""
    metrics = trainer.callback_metrics
    found = {n: metrics[n] for n in logged_in_validation(trainer) if (less_is_better(n) or n in also) and n in metrics}
    return {name: float(value) for name, value in found.items() if math.isfinite(value)}


def logged_in_validation(trainer: Any) -> set[str]:
    """Names of the metrics that the last validation has logged."""
    results = getattr(trainer.fit_loop.epoch_loop.val_loop, "_results", {})
    return {key.split(".", 1)[-1] for key in results if key.startswith(("validation_", "on_validation_"))}


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]


def _without_phase(name: str) -> tuple[str, ...]:
    return tuple(word for word in _words(name) if word not in PHASES)


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

    def read(self, metrics: Mapping[str, Any], step: int, epoch: int, also: Set[str] = frozenset()) -> BadBatch | None:
        """Take the validation loss, which may be named as one `also` is; returns the bad batch where that loss is not finite."""
        self.unread = False
        bad, self._bad = self._bad, None
        for name, flag in self._flags.items():
            if bad is None and bool(flag):
                bad = BadBatch(step, epoch, -1, name, 1, -1, [], 1, math.nan)
        self._flags = {}
        value = validation_loss(metrics, also)
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
    return bool(LESS_IS_BETTER.search(low)) or not SHORT.isdisjoint(_words(name))


def validation_loss(metrics: Mapping[str, Any], also: Set[str] = frozenset()) -> float | None:
    """The loss of the last validation among what was logged, by its name; None where none looks like one. Waits."""
    for name, value in metrics.items():
        low = name.lower()
        if name in also or ("val" in low and (less_is_better(name) or "elbo" in low)):
            return float(value)
    return None
