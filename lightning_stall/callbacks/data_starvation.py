"""DataStarvationMonitor: steps that wait for data, loaders that make them wait, and steps that never end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor
from torch.optim import Optimizer

from lightning_stall.callback import StallCallback, guarded
from lightning_stall.errors import require
from lightning_stall.measure.pipeline import usable_cores
from lightning_stall.pipeline.clock import PHASES, StepClock, Window
from lightning_stall.pipeline.loaders import Loader, Starved, advice, ms, train_loaders

FLOOR = 0.002  # seconds a batch; a shorter wait is not worth a person's time, whatever its share
TOLD_AFTER = 0.5  # seconds lost so far before it is worth a word
ENOUGH = 6  # steady batches that make a verdict
PATIENCE = 3  # verdicts in a row
EPOCH_START = 0.5  # seconds an epoch loses before its first batch, from which on it is worth a word


class DataStarvationMonitor(StallCallback):
    """Watches the way of a batch to the step: how long the step waits for it, and in which part.

    The wait is the fetch itself, as the loop makes it; not the gap between two steps, in which loggers, checkpoints and
    other callbacks work as well. The first batch of an epoch, for which workers start, is counted apart.

    Says: data-starvation.

    Logs: `stall/data/fetch_seconds`, `stall/data/wait_share`, `stall/data/epoch_start_seconds`, and
    `stall/step/<phase>_seconds` for fetch, transfer, forward, backward, optimizer and rest. Seconds are means a batch,
    on the host's clock.

    Args:
        threshold: share of the step's time from which on waiting is starvation, between 0 and 1. Waits under 2 ms a
            batch are never starvation.
        every_n_steps: optimizer steps between checks; None takes the Trainer's `log_every_n_steps`.
        mute: codes never to be told.
    """

    codes = ("data-starvation",)
    shares = ("fetch_seconds", "step_seconds")
    STATE: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        threshold: float = 0.3,
        *,
        auto_remedy: bool = False,
        every_n_steps: int | None = None,
        mute: Sequence[str] = (),
    ) -> None:
        super().__init__(auto_remedy=auto_remedy, every_n_steps=every_n_steps, mute=mute)
        require(
            0 < threshold < 1, "threshold", threshold, "give a share of the step's time between 0 and 1, such as 0.3"
        )
        self.threshold = threshold
        self._reset()

    def _reset(self) -> None:
        self.clock = StepClock()
        self.recent = Window()  # what the next verdict rests on
        self.last = Window()  # what the last check saw
        self.lost = 0.0  # seconds waited in steady batches, in this fit
        self.starved_in_a_row = 0
        self.well_in_a_row = 0
        self.epoch_starts: list[float] = []  # seconds, one an epoch

    # ------------------------------------------------------------------ verbs

    def begin(self) -> None:
        self._reset()
        self.cores = usable_cores()
        self.clock.attach(self.hub.trainer)

    @guarded
    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.clock.new_epoch()

    def before_backward(self, loss: Tensor) -> None:
        self.clock.backward_starts()

    def after_backward(self) -> None:
        self.clock.backward_ends()

    def before_step(self, optimizer: Optimizer) -> None:
        self.clock.optimizer_starts()

    def check(self) -> None:
        window = self.clock.take()
        if not window.batches:
            return
        self.last = window
        self.lost += sum(window.fetches)
        self.recent.add(window)
        if self.recent.batches >= ENOUGH:
            seen, self.recent = self.recent, Window()
            self._judge(seen)

    def epoch_end(self) -> None:
        self.epoch_starts.append(self.clock.first_fetch)
        self.clock.enter("between epochs")

    def detach(self) -> None:
        self.clock.detach()

    def share(self) -> Mapping[str, float]:
        return {"fetch_seconds": self.last.wait, "step_seconds": self.last.step}

    def numbers(self) -> Mapping[str, float]:
        window = self.last
        if not window.batches:
            return {}
        values = {"stall/data/fetch_seconds": window.wait, "stall/data/wait_share": window.share}
        values["stall/data/epoch_start_seconds"] = self.clock.first_fetch
        values |= {f"stall/step/{phase}_seconds": window.spent[phase] / window.batches for phase in PHASES}
        return values

    def panels(self) -> Mapping[str, Sequence[str]]:
        return {
            "where a step's time goes": ["stall/step/.*_seconds$"],
            "wait for data": ["stall/data/.*"],
        }

    # ------------------------------------------------------------------ what it looks for

    def _judge(self, seen: Window) -> None:
        """One verdict: three in a row that say starved are told, two that say well take it back."""
        # time in which other programs had the cores is no fault of the loader
        wait = seen.wait * (1 - seen.queued)
        long_waits = sum(f >= FLOOR for f in seen.fetches)
        starved = seen.share > self.threshold and wait >= FLOOR and long_waits >= max(3, seen.batches // 20)
        self.starved_in_a_row = self.starved_in_a_row + 1 if starved else 0
        self.well_in_a_row = 0 if starved else self.well_in_a_row + 1
        if self.starved_in_a_row >= PATIENCE and self.lost >= TOLD_AFTER:
            self._tell_starved(seen)
        elif self.well_in_a_row >= 2:
            self.retract("data-starvation")

    def _tell_starved(self, seen: Window) -> None:
        loaders = train_loaders(self.hub.trainer)
        loader = min(loaders, key=lambda one: one.workers) if loaders else Loader("training loader", None)
        busy = seen.step - seen.wait
        case = Starved(
            wait=seen.wait,
            busy=busy,
            cpu=seen.fetch_cpu / max(sum(seen.fetches), 1e-9) if not loader.workers else 1.0,
            cores=self.cores,
            accelerator=self.hub.trainer.strategy.root_device.type != "cpu",
        )
        fine = busy * self.threshold / (1 - self.threshold)
        self.tell(
            "data-starvation",
            f"Training waits {ms(seen.wait)} for each batch, {seen.share:.0%} of the time of a step of "
            f"{ms(seen.step)} (mean of {seen.batches} batches, epoch starts left out; {ms(self.lost)} lost so far). "
            f"{self.threshold:.0%}, which is {ms(max(fine, FLOOR))}, would pass.{self._by_rank()} "
            f"The {loader.name} has {loader.settings()}; {self.cores} core{'s' * (self.cores > 1)} usable.",
            advice=advice(loader, case),
            evidence={
                "fetch_seconds": seen.wait,
                "wait_share": seen.share,
                "step_seconds": seen.step,
                "lost_seconds": self.lost,
                "threshold": self.threshold,
                "cores": float(self.cores),
                "num_workers": float(loader.workers),
            },
            where=[loader.name],
        )

    def _by_rank(self) -> str:
        """The wait on each rank where they differ: one rank's loader holds up all."""
        waits = self.hub.shared.get("fetch_seconds", [])
        if len(waits) < 2 or max(waits) < 2 * min(waits):
            return ""
        worst = max(range(len(waits)), key=lambda r: waits[r])
        return f" Rank {worst} waits longest, {ms(waits[worst])}; the least is {ms(min(waits))}."
