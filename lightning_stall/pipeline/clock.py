"""Where the time of a training step goes, by the host's clock: a few clock readings a step, and no wait."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lightning_stall.measure.pipeline import CpuTime, cpu_time, thread_pauses
from lightning_stall.remedies import swap

# A batch's time from one fetch to the next. "rest" is loggers, other callbacks and the loop itself.
PHASES = ("fetch", "transfer", "forward", "backward", "optimizer", "rest")
# Not a step's time, and none in which a step is late.
OUTSIDE = ("epoch start", "validation", "checkpoint", "between epochs")

_now = time.perf_counter


@dataclass
class Window:
    """The steady batches since the last look: all but the first of each epoch."""

    fetches: list[float] = field(default_factory=list)  # seconds, one a batch
    spent: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))  # seconds, by phase
    fetch_cpu: float = 0.0  # seconds of the fetches in which this thread was computing
    fetch_pauses: float = 0.0  # times this thread gave its core away within the fetches: it slept, or waited for a disk
    longest: float = 0.0  # seconds, of one batch
    queued: float = 0.0  # share of the time in which this thread found no core free

    @property
    def batches(self) -> int:
        return len(self.fetches)

    @property
    def total(self) -> float:
        """Seconds, all phases."""
        return sum(self.spent.values())

    @property
    def wait(self) -> float:
        """Mean seconds a batch was waited for."""
        return sum(self.fetches) / len(self.fetches) if self.fetches else 0.0

    @property
    def step(self) -> float:
        """Mean seconds from one batch to the next."""
        return self.total / len(self.fetches) if self.fetches else 0.0

    @property
    def share(self) -> float:
        """Share of the time that was spent waiting for batches."""
        return sum(self.fetches) / self.total if self.total > 0 else 0.0

    def add(self, other: Window) -> None:
        """Take in the batches of another window."""
        for phase, seconds in other.spent.items():
            self.spent[phase] += seconds
        batches = self.batches + other.batches
        if batches:
            self.queued = (self.queued * self.batches + other.queued * other.batches) / batches
        self.fetches += other.fetches
        self.fetch_cpu += other.fetch_cpu
        self.fetch_pauses += other.fetch_pauses
        self.longest = max(self.longest, other.longest)


class StepClock:
    """Follows one fit from phase to phase.

    `phase` and `since` are also its heartbeat: another thread reads them to see whether the run is alive.
    """

    def __init__(self) -> None:
        self.phase = "epoch start"
        self.since = _now()  # when this phase began
        self.batches = 0  # batches fetched in this fit
        self.stepping = False  # inside the optimizer's window of a batch: from training_step on
        self.first_fetch = 0.0  # seconds, of this epoch's first batch
        self.longest = 0.0  # seconds, the longest batch of this fit, an epoch's first included
        self._window = Window()
        self._batch = dict.fromkeys(PHASES, 0.0)
        self._fetch = 0.0
        self._fetch_cpu = 0.0
        self._fetch_pauses = 0.0
        self._cpu_before = self._paused_before = 0.0
        self._began = self.since
        self._first = True  # the batch under way is its epoch's first
        self._mark: tuple[float, CpuTime | None] = (_now(), cpu_time())
        self._undo: list[Callable[[], None]] = []

    # ------------------------------------------------------------------ phases

    def enter(self, phase: str) -> str:
        """Go over to `phase`; returns the one that ends."""
        now, ends = _now(), self.phase
        if ends in self._batch:
            self._batch[ends] += now - self.since
        self.phase, self.since = phase, now
        return ends

    def new_epoch(self) -> None:
        """The next fetch is an epoch's first: it starts workers and fills queues."""
        self.enter("epoch start")
        self.close_batch()
        self._first = True

    def before_fetch(self) -> None:
        self._outer = self.enter("fetch")
        self.close_batch()
        self._began, self._cpu_before, self._paused_before = self.since, time.thread_time(), thread_pauses()

    def after_fetch(self) -> None:
        # `training_step(dataloader_iter)` fetches inside the step
        self.enter("forward" if self._outer == "forward" else "rest")
        self._fetch += self.since - self._began
        self._fetch_cpu += time.thread_time() - self._cpu_before
        self._fetch_pauses += thread_pauses() - self._paused_before
        self.batches += 1
        if self._first:
            self.first_fetch = self._fetch

    def close_batch(self) -> None:
        """The batch before this moment is complete; an epoch's first one is left out."""
        if self._fetch:
            total = sum(self._batch.values())
            if not self._first:
                window = self._window
                for phase, seconds in self._batch.items():
                    window.spent[phase] += seconds
                window.fetches.append(self._fetch)
                window.fetch_cpu += self._fetch_cpu
                window.fetch_pauses += self._fetch_pauses
                window.longest = max(window.longest, total)
            self._first = False
            self.longest = max(self.longest, total, self.first_fetch)
        for phase in PHASES:
            self._batch[phase] = 0.0
        self._fetch = self._fetch_cpu = self._fetch_pauses = 0.0

    def take(self) -> Window:
        """The steady batches since the last call."""
        window, self._window = self._window, Window()
        (then, before), (now, after) = self._mark, (_now(), cpu_time())
        if before is not None and after is not None and now > then:
            window.queued = min(1.0, max(0.0, (after.queued - before.queued) / (now - then)))
        self._mark = (now, after)
        return window

    # ------------------------------------------------------------------ where the phases are seen

    def attach(self, trainer: Any) -> None:
        """Listen at the loops and the strategy of this Trainer, on these instances alone, until `detach`."""
        epoch_loop, strategy = trainer.fit_loop.epoch_loop, trainer.strategy
        self._undo += [
            swap(epoch_loop, "_on_before_fetch", lambda call: self._then(call, self.before_fetch)),
            swap(epoch_loop, "_on_after_fetch", lambda call: self._first_then(self.after_fetch, call)),
            swap(strategy, "batch_to_device", lambda call: self._during("transfer", call, trainer)),
            swap(strategy, "training_step", lambda call: self._during("forward", call)),
            swap(epoch_loop.val_loop, "run", lambda call: self._during("validation", call)),
            swap(trainer, "save_checkpoint", lambda call: self._during("checkpoint", call)),
        ]
        for optimizer in trainer.optimizers:
            raw = getattr(optimizer, "optimizer", optimizer)
            if hasattr(raw, "register_step_post_hook"):
                handle = raw.register_step_post_hook(lambda *_: self.optimizer_ends())
                self._undo.append(handle.remove)

    def detach(self) -> None:
        for undo in self._undo:
            undo()
        self._undo.clear()

    def backward_ends(self) -> None:
        self.enter("forward" if self.stepping else "rest")

    def optimizer_ends(self) -> None:
        if self.phase == "optimizer":
            self.enter("forward" if self.stepping else "rest")

    def _then(self, call: Any, after: Callable[[], None]) -> Callable[[], None]:
        def both() -> None:
            call()
            after()

        return both

    def _first_then(self, before: Callable[[], None], call: Any) -> Callable[[], None]:
        def both() -> None:
            before()
            call()

        return both

    def _during(self, phase: str, call: Any, trainer: Any = None) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            if trainer is not None and not trainer.training:  # validation moves batches too
                return call(*args, **kwargs)
            stepping = self.stepping
            self.stepping = stepping or phase == "forward"
            outer = self.enter(phase)
            try:
                return call(*args, **kwargs)
            finally:
                self.stepping = stepping
                self.enter(outer)

        return timed
