"""DataStarvationMonitor: steps that wait for data, loaders that make them wait, and runs that stand still."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor
from torch.optim import Optimizer

from lightning_stall.callback import StallCallback, guarded
from lightning_stall.errors import require
from lightning_stall.pipeline import watchdog
from lightning_stall.pipeline.clock import PHASES
from lightning_stall.pipeline.loaders import live_iterators
from lightning_stall.pipeline.probe import LoaderWatch
from lightning_stall.pipeline.run import PipelineRun
from lightning_stall.pipeline.sayings import Saying, dead_worker, timed_out, tuned, workers_wanted
from lightning_stall.pipeline.tuner import Setting, Tuner, apply, refusal
from lightning_stall.remedies import swap
from lightning_stall.sinks import themes


class DataStarvationMonitor(StallCallback):
    """Watches the way of a batch to the step: how long the step waits for it, in which part, and if it comes at all.

    The wait is the fetch itself, as the loop makes it; not the gap between two steps, in which loggers, checkpoints and
    other callbacks work as well. The first batch of an epoch, for which workers start, is counted apart.

    Says: data-starvation (with the part: fetch, transform or collate, in workers too, and the line of code),
    too-many-workers, duplicate-randomness, dataloader-hang and training-hang (with the stacks of the worker waited for
    and of the training, printed by each rank).

    Logs: `stall/data/fetch_seconds`, `stall/data/wait_share`, `stall/data/epoch_start_seconds`,
    `stall/data/device_idle_share` (CUDA), and `stall/step/<phase>_seconds` for fetch, transfer, forward, backward,
    optimizer and rest: means a batch on the host's clock.

    Args:
        threshold: share of the step's time from which on waiting is starvation, between 0 and 1. Waits under 3.5 ms a
            batch are never starvation.
        auto_remedy: once the training starves, try other `num_workers`, `prefetch_factor` and `pin_memory`, one epoch
            each, and keep the fastest. This changes the order of later epochs' samples. A loader of an
            `IterableDataset` is left alone: its samples depend on the number of workers.
        every_n_steps: optimizer steps between checks; None takes the Trainer's `log_every_n_steps`.
        mute: codes never to be told.
        hang_timeout: seconds without any progress that are a hang, at the least; ten times the run's own longest batch
            where that is more. None takes 300 seconds, and, in a run of one process, tells already after 6 where nobody
            computes: neither the training nor the worker it waits for. The first batch of all has half an hour; validation and
            checkpoints have all the time they take.
        hang_action: "report" tells the hang and goes on waiting; "raise" ends the run with an error that says all of it
            and kills the workers.

    >>> from lightning_stall.testing import blobs, healthy, watch
    >>> watch(healthy(), blobs(), DataStarvationMonitor()).causes
    []
    """

    reads_norms = False
    codes = ("data-starvation", "too-many-workers", "duplicate-randomness", "dataloader-hang", "training-hang")
    shares = ("fetch_seconds", "step_seconds", "starved", "workers_wanted")

    def __init__(
        self,
        threshold: float = 0.3,
        *,
        auto_remedy: bool = False,
        every_n_steps: int | None = None,
        mute: Sequence[str] = (),
        hang_timeout: float | None = None,
        hang_action: Literal["report", "raise"] = "report",
    ) -> None:
        super().__init__(auto_remedy=auto_remedy, every_n_steps=every_n_steps, mute=mute)
        require(
            0 < threshold < 1, "threshold", threshold, "give a share of the step's time between 0 and 1, such as 0.3"
        )
        require(
            hang_timeout is None or hang_timeout > 0,
            "hang_timeout",
            hang_timeout,
            "give a number of seconds above 0, or None for 300",
        )
        require(hang_action in ("report", "raise"), "hang_action", hang_action, 'give "report" or "raise"')
        self.threshold, self.hang_timeout, self.hang_action = threshold, hang_timeout, hang_action
        self._watch: LoaderWatch | None = None
        self._unwatch: Callable[[], None] | None = None
        self._reset()

    def _reset(self) -> None:
        self._run: PipelineRun | None = None
        self._tuner: Tuner | None = None
        self._refused = False
        self._shared: list[float] = []  # seconds a step on the mean of the ranks, one a check of this epoch

    # ------------------------------------------------------------------ before and after the training proper

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Workers of the first epoch start before the training does: have them watched from here on."""
        try:
            self._release()
            watch = self._watch = LoaderWatch()

            def process(call: Any) -> Any:
                return lambda loader: call(loader) if trainer.sanity_checking else watch.watch(call(loader))

            self._unwatch = swap(trainer.strategy, "process_dataloader", process)
        except Exception as error:
            self.fail(repr(error))

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        self._release()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        self._release()

    def _release(self) -> None:
        """Leave the strategy and the loaders as they were."""
        if self._unwatch is not None:
            self._unwatch()
            self._unwatch = None
        if self._watch is not None:
            self._watch.release()
            self._watch = None

    # ------------------------------------------------------------------ verbs

    def begin(self) -> None:
        self._reset()
        self._watch = self._watch or LoaderWatch()
        self._run = PipelineRun(
            self.hub.trainer,
            self._watch,
            self.threshold,
            hang_floor=self.hang_timeout,
            on_hang=self._hangs,
            interrupt=self.hang_action == "raise",
        )

    @property
    def run(self) -> PipelineRun:
        """This fit's measurements."""
        if self._run is None:
            raise RuntimeError("the fit has not begun")
        return self._run

    @guarded
    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.run.new_epoch()

    @property
    def rare(self) -> frozenset[str]:
        gapless = self.run.gaps is None  # no accelerator whose idle time is to be measured
        return frozenset({"before_batch", "step_end", "micro_batch_end"}) if gapless else frozenset()

    def before_batch(self, batch: Any, batch_idx: int) -> None:
        self.run.batch_starts()

    def before_backward(self, loss: Tensor) -> None:
        self.run.clock.enter("backward")

    def after_backward(self) -> None:
        self.run.clock.backward_ends()

    def before_step(self, optimizer: Optimizer) -> None:
        self.run.clock.enter("optimizer")

    def micro_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.run.batch_ends()

    def step_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.run.batch_ends()

    def validated(self) -> None:
        self.run.pause()

    def check(self) -> None:
        told, gone = self.run.check(self.hub.shared.get("fetch_seconds", []))
        elsewhere = self.hub.distributed and any(self.hub.shared.get("starved", []))
        for code in gone:
            if not elsewhere:  # what holds on one rank holds in the report of all
                self.retract(code)
        for saying in told:
            self._say(saying)
        if self.hub.distributed:
            self._shared.append(self.hub.mean_shared("step_seconds"))

    def epoch_end(self) -> None:
        for saying in self.run.epoch_end():
            self._say(saying)
        seconds = self.run.epoch_cost()
        shared, self._shared = [s for s in self._shared if s == s], []
        if self.hub.distributed:  # all ranks see the same numbers, so that all change the same
            seconds = sum(shared) / len(shared) if shared else float("nan")
        if self.auto_remedy and seconds == seconds:
            self._tune(seconds)

    def finish(self) -> None:
        if not self.hub.distributed:
            self.check()  # the batches since the last check are a window, too
        if self._tuner is not None and not self._tuner.done:
            self._say_tuned(f"{self._tuner.result()}; the fit ended before all had been tried")

    def aborted(self, error: BaseException) -> None:
        if isinstance(error, watchdog.TrainingHang):
            for iterator in live_iterators(self.hub.trainer):
                watchdog.end_workers(iterator)
        elif isinstance(error, Exception):  # no Ctrl-C, which ends workers as well
            iterators = live_iterators(self.hub.trainer, ended=True)
            if isinstance(error, (OSError, EOFError)):
                watchdog.wait_for_deaths(iterators)
            saying = dead_worker(error, iterators) or timed_out(error)
            if saying is not None:
                self._say(saying)

    def detach(self) -> None:
        if self._run is not None:
            self._run.end()
        self._release()

    def share(self) -> Mapping[str, float]:
        run = self.run
        return {
            "fetch_seconds": run.last.wait,
            "step_seconds": run.last.step,
            "starved": float(run.verdict.starved or run.verdict.crowded),
            "workers_wanted": float(workers_wanted(run.slowest, run.case(run.last))),
        }

    def numbers(self) -> Mapping[str, float]:
        run, window = self.run, self.run.last
        if not window.batches:
            return {}
        values = {
            "stall/data/fetch_seconds": window.wait,
            "stall/data/wait_share": window.share,
            "stall/data/epoch_start_seconds": run.clock.first_fetch,
        }
        values |= {f"stall/step/{phase}_seconds": window.spent[phase] / window.batches for phase in PHASES}
        if run.device_idle is not None:
            values["stall/data/device_idle_share"] = run.device_idle
        return values

    def panels(self) -> Mapping[str, Sequence[str]]:
        return {themes.TIME: ["stall/step/.*_seconds$"], themes.WAIT: ["stall/data/.*_share$"]}

    def __getstate__(self) -> dict[str, Any]:
        """Threads, timers and what is patched belong to one fit in one process."""
        return {**super().__getstate__(), **dict.fromkeys(("_run", "_tuner", "_watch", "_unwatch"))}

    # ------------------------------------------------------------------ what it says and does

    def _say(self, saying: Saying, remedy: str | None = None) -> None:
        self.tell(
            saying.code,
            saying.summary,
            advice=saying.advice,
            severity=saying.severity,
            evidence=saying.evidence,
            where=saying.where,
            remedy=remedy,
        )

    def _hangs(self, hang: watchdog.Hang) -> None:
        """Called in the watching thread, while the training stands still."""
        if hang.code not in self.mute:
            self._say(self.run.say_hang(hang, self.hub.rank))

    def _tune(self, seconds: float) -> None:
        """An epoch ended, with so many seconds a batch: go on to the next setting, or begin where it starves."""
        run, loaders = self.run, self.run.loaders
        if self._tuner is None:
            if not self._agreed("starved", float(run.verdict.starved or run.verdict.crowded or run.slow_starts)):
                return
            why_not = refusal(loaders, bool(self.hub.trainer.reload_dataloaders_every_n_epochs))
            if why_not:
                if not self._refused:
                    self._refused = True
                    self._say_tuned(f"left the loader as it is, for {why_not}")
                return
            wanted = int(self._agreed("workers_wanted", float(workers_wanted(run.slowest, run.case(run.last)))))
            most = max(wanted, 2 * run.cores)
            self._tuner = Tuner(Setting.of(run.slowest), wanted, most, run.gaps is not None)
        tuner = self._tuner
        if tuner.done:
            return
        setting = tuner.epoch(seconds)
        if setting is not None:
            run.watch.quiet = True
            apply(setting, loaders)
        if tuner.done:
            self._say_tuned(tuner.result())

    def _agreed(self, name: str, own: float) -> float:
        """The largest of all ranks' numbers."""
        return max(self.hub.shared.get(name, []), default=0.0) if self.hub.distributed else own

    def _say_tuned(self, remedy: str) -> None:
        self._say(tuned(self.run.last, self.run.slowest), remedy)
