"""What the BatchNorm layers of one fit were given, and what the epoch still holds for them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_stall.measure.batch_sizes import LoaderPlan, small_batches
from lightning_stall.measure.batchnorm import ValuesSeen, copied
from lightning_stall.measure.batchnorm_modes import Gap, RunningGap, gap, losses_both_ways, readable, reestimate

T = TypeVar("T")

REMEMBER = 5  # checks
WHOLE = ("SingleDeviceStrategy", "DDPStrategy")  # strategies under which a rank holds all weights


@dataclass
class BatchNormReadings:
    """Each layer's values per channel and distance from its running statistics, at the last checks.

    Layers are known by their index. `open` before a batch and `close` after it; only at checks, for both may wait.
    """

    names: list[str]
    layers: list[_BatchNorm]
    devices: int = 1  # that SyncBatchNorm layers share their statistics with
    values: dict[int, list[int]] = field(default_factory=dict)  # fewest values per channel of a call, by check
    rows: list[int] = field(default_factory=list)  # of the batches of the last checks
    gaps: dict[int, list[Gap]] = field(default_factory=dict)
    frozen: dict[int, list[Gap]] = field(default_factory=dict)  # the same of layers that are kept from updating
    _ratio: dict[int, tuple[int, int] | None] = field(default_factory=dict)  # (values, rows); None where that changes
    _looked: dict[int, Tensor] = field(default_factory=dict)  # gaps on their device
    _seen: ValuesSeen = field(init=False)
    _running: RunningGap = field(init=False)

    def __post_init__(self) -> None:
        self._seen = ValuesSeen(self.layers, self._look)
        self._running = RunningGap(self.layers)

    def open(self) -> None:
        self._looked.clear()
        self._running.take()
        self._seen.open()

    def learn(self, rows: int | None) -> bool:
        """Take what the layers were given in this batch of so many rows, so far; whether any was given something."""
        self._seen.read()
        for index, calls in self._seen.calls.items():
            now = (min(calls), rows or 0)
            known = self._ratio.get(index, now)
            same = known is not None and known[0] * now[1] == known[1] * now[0]
            self._ratio[index] = now if same and rows else None
        return bool(self._seen.calls)

    def close(self, rows: int | None) -> None:
        """The batch has ended."""
        self.learn(rows)
        self._seen.close()
        self.rows = [*self.rows[1 - REMEMBER :], rows] if rows else self.rows
        for index, calls in self._seen.calls.items():
            _remember(self.values, index, min(calls) * self.sharing(index))
        for index, pair in self._running.read().items():
            _remember(self.gaps, index, pair)
        for index, pair_on_device in self._looked.items():
            distance, spread = pair_on_device.tolist()
            if math.isfinite(distance) and math.isfinite(spread):
                _remember(self.gaps if self.layers[index].training else self.frozen, index, (distance, spread))

    def remove(self) -> None:
        self._seen.remove()

    def _look(self, index: int, layer: _BatchNorm, x: Tensor) -> None:
        """The batch's statistics, where the buffers cannot tell them: layers that do not update."""
        frozen = (
            not layer.training and layer.weight is not None and layer.weight.requires_grad and torch.is_grad_enabled()
        )
        hidden = layer.training and layer.track_running_stats and not readable(layer)
        if layer.running_mean is None or layer.running_var is None or not (frozen or hidden):
            return
        with torch.no_grad():
            var, mean = torch.var_mean(x.detach().float(), [d for d in range(x.ndim) if d != 1], correction=0)
            self._looked[index] = gap(mean, var, layer.running_mean, layer.running_var, layer.eps)

    # ------------------------------------------------------------------ questions

    def sharing(self, index: int) -> int:
        """Devices over which this layer's statistics are taken."""
        return self.devices if isinstance(self.layers[index], nn.SyncBatchNorm) else 1

    def expected(self, index: int, rows: int) -> int | None:
        """Values per channel that a batch of so many rows gives this layer, if its shape so far tells."""
        ratio = self._ratio.get(index)
        if ratio is None or ratio[0] * rows % ratio[1]:
            return None
        return ratio[0] * rows // ratio[1] * self.sharing(index)

    def expected_of(self, batch: SmallBatch, index: int) -> int | None:
        """The same for a batch to come, from the loader that gives it.

        With several loaders side by side the parts may be joined before they reach the layer: then it is certain only
        where the layer was called with as many rows as a loader of this batch size gives, as often as there are such.
        """
        calls, ratio, usual = self._seen.calls.get(index, []), self._ratio.get(index), batch.plan.usual
        if ratio is None or not usual:
            return None
        if batch.twins:
            return batch.samples * self.sharing(index) if calls.count(usual) >= batch.twins else None
        if ratio[1] % usual or ratio[0] * batch.samples % usual:
            return None
        return ratio[0] * batch.samples // usual * self.sharing(index)

    def usual(self, index: int) -> float | None:
        """Values per channel over the last checks; None before the third."""
        history = self.values.get(index, [])
        return median(history) if len(history) >= 3 else None

    def last_alone(self) -> str | None:
        """The layer that was given one value per channel last."""
        return next((self.names[i] for i, v in reversed(self._seen.calls.items()) if v[-1] == 1), None)

    def worst(self) -> list[tuple[float, int]]:
        """(gap, layer) of the last check, largest first: distance or spread, whichever is larger."""
        return sorted(((max(g[-1]), i) for i, g in self.gaps.items()), reverse=True)


def _remember(history: dict[int, list[Any]], index: int, value: Any) -> None:
    kept = history.setdefault(index, [])
    kept.append(value)
    del kept[:-REMEMBER]


@dataclass
class Rehearsal:
    """Runs training steps on a copy that shares the weights, where that says something and disturbs nothing.

    So not where a step does more than return its loss (manual optimisation), where a rank holds a part of the weights,
    or where ranks would wait for each other; and never again once a step has failed, as one that asks its Trainer does.
    """

    trainer: Any
    module: Any
    seen: BatchNormReadings
    failed: bool = False

    def losses(self, batch: Any, batch_idx: int) -> tuple[float, float] | None:
        """Loss of this batch by its own statistics and by the running ones. Waits for the device."""
        return self._run(lambda: losses_both_ways(self.module, self._step(batch, batch_idx)))

    def reestimate(self, layers: list[_BatchNorm], batches: list[tuple[Any, int]]) -> int:
        """Set these layers' running statistics to the average over (batch, batch_idx); returns how many were set."""
        if not layers or not batches:
            return 0
        return self._run(lambda: reestimate(self.module, layers, [self._step(b, i) for b, i in batches])) or 0

    def _run(self, call: Callable[[], T]) -> T | None:
        shared = any(self.seen.sharing(i) > 1 for i in range(len(self.seen.layers)))
        whole = type(self.trainer.strategy).__name__ in WHOLE
        if self.failed or shared or not whole or not self.module.automatic_optimization:
            return None
        try:
            return call()
        except Exception:
            self.failed = True
            return None

    def _step(self, batch: Any, batch_idx: int) -> Callable[[Any], Any]:
        def step(twin: Any) -> Any:
            more = (batch_idx,) if len(inspect.signature(twin.training_step).parameters) > 1 else ()
            with self.trainer.precision_plugin.train_step_context():
                return twin.training_step(copied(batch), *more)

        return step


@dataclass(frozen=True)
class SmallBatch:
    """A batch to come that holds fewer samples than usual."""

    index: int  # in the epoch
    samples: int
    plan: LoaderPlan
    twins: int  # loaders side by side that give batches of the usual size; 0 where it comes alone
    last: bool  # of the epoch
    alone: bool  # the Trainer has one loader


def small_batches_ahead(trainer: Any, batch_idx: int, window: int) -> list[SmallBatch]:
    """The small batches that this epoch will reach, as Lightning will run it: its limits and its own sampler.

    Args:
        trainer: of the fit.
        batch_idx: of the present batch.
        window: micro-batches an optimizer step, against `max_steps`.
    """
    combined = trainer.fit_loop._combined_loader
    plans = [LoaderPlan.of(leaf) for leaf in combined.flattened]
    limits = combined.limits or [math.inf] * len(plans)
    steps_left = trainer.max_steps - trainer.global_step if (trainer.max_steps or -1) >= 0 else math.inf
    ahead = []
    for index, leaf, samples in small_batches(plans, limits):
        plan = plans[leaf]
        reached = batch_idx < index < trainer.num_training_batches and (index - batch_idx) // window < steps_left
        if plan is None or not reached:
            continue
        single = len(plans) == 1
        twins = 0 if single else sum(p is not None and p.usual == plan.usual for p in plans)
        ahead.append(SmallBatch(index, samples, plan, twins, index == trainer.num_training_batches - 1, single))
    return ahead
