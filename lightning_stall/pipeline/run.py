"""One fit's pipeline under watch: what is measured, collected and judged, from its start to its end."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from lightning_stall.measure.pipeline import memory_left, private_memory, usable_cores
from lightning_stall.pipeline import sayings
from lightning_stall.pipeline.clock import StepClock, Window
from lightning_stall.pipeline.device import DeviceGaps
from lightning_stall.pipeline.loaders import Loader, live_iterators, train_loaders
from lightning_stall.pipeline.probe import BATCHES, LoaderWatch, Making
from lightning_stall.pipeline.randomness import AlikeWatch
from lightning_stall.pipeline.sayings import Saying, Starved
from lightning_stall.pipeline.stacks import Looks, PartCodes, StackSampler
from lightning_stall.pipeline.verdict import ENOUGH, Crowd, Verdict, processes_here
from lightning_stall.pipeline.watchdog import ASLEEP, FLOOR, Hang, Watchdog, awaited, worker_lines

SCARCE = 0.05  # share of the machine's memory; below it the system may soon kill a worker


class PipelineRun:
    """Measures and judges one fit.

    Args:
        trainer: in its fit, loaders made.
        watch: of the loaders; its probes may already run in their workers.
        threshold: share of the step's time from which on waiting is starvation.
        hang_floor: seconds; the least that is a hang. None takes what the watchdog does.
        on_hang: takes a `Hang`, in another thread.
        interrupt: whether a hang ends the run.
    """

    def __init__(
        self,
        trainer: Any,
        watch: LoaderWatch,
        threshold: float,
        hang_floor: float | None,
        on_hang: Callable[[Hang], None],
        interrupt: bool,
    ) -> None:
        self._trainer, self.watch = weakref.ref(trainer), watch
        self.processes = processes_here(trainer)
        self.host_cores = usable_cores()
        self.cores = max(1, self.host_cores // self.processes)  # for this process
        self.clock = StepClock()
        self.gaps = DeviceGaps.of(trainer.strategy.root_device)
        self.verdict = Verdict(threshold)
        self.last = Window()  # what the last check saw
        self.device_idle: float | None = None  # share of the device's time
        self.epoch_start = 0.0  # seconds before the last epoch's first batch
        self.slow_starts = False
        self._recent = Window()  # what the next verdict rests on
        self._epoch = Window()
        self._idle = [0.0, 0.0]  # seconds of the device, idle and in all
        self._sampler: StackSampler | None = None
        self._alike = AlikeWatch()
        self._alike_told = False
        self._epoch_over = False
        self.dog = Watchdog(
            self.clock,
            self._look_at_workers,
            on_hang,
            floor=FLOOR if hang_floor is None else hang_floor,
            interrupt=interrupt,
            # where ranks wait for each other, sleeping tells nothing
            asleep=ASLEEP if hang_floor is None and trainer.world_size == 1 else None,
            waited_for=self._waited_for,
            over=self._over,
        )
        try:
            self.clock.attach(trainer)
            self.new_epoch()
            self.dog.listen()
            self.dog.start()
        except BaseException:
            self.end()
            raise

    @property
    def trainer(self) -> Any:
        """The Trainer, held weakly: what is read here outlives its fit."""
        return self._trainer()

    @property
    def loaders(self) -> list[Loader]:
        return train_loaders(self.trainer)

    @property
    def slowest(self) -> Loader:
        """The loader most likely to be waited for: of several, the one with the fewest workers."""
        return min(self.loaders, key=lambda one: one.workers, default=Loader("training loader", None))

    def end(self) -> None:
        """Take everything out."""
        self.dog.stop()
        if self._sampler is not None:
            self._sampler.stop()
        self.clock.detach()
        if self.gaps is not None:
            self.gaps.release()

    # ------------------------------------------------------------------ moments

    def new_epoch(self) -> None:
        self.clock.new_epoch()
        for loader in self.loaders:  # they may have been made anew
            self.watch.watch(loader.it)

    def batch_starts(self) -> None:
        if self.gaps is not None:
            self.gaps.batch_starts()

    def batch_ends(self) -> None:
        if self.gaps is not None:
            self.gaps.batch_ends()

    def pause(self) -> None:
        """What comes now is no step."""
        if self.gaps is not None:
            self.gaps.pause()

    def check(self, waits: Sequence[float] = ()) -> tuple[list[Saying], list[str]]:
        """What is to be told now, and the codes that do not hold any more.

        Args:
            waits: seconds a batch on each rank, as of the last check; empty for one process.
        """
        self._collect()
        told = self._randomness() + self._memory()
        gone: list[str] = []
        if self.dog.hang is not None and self.dog.moved_on:
            gone.append(self.dog.hang.code)
        if self._recent.batches < ENOUGH:
            return told, gone
        seen, self._recent = self._recent, Window()
        idle, self._idle = self._idle, [0.0, 0.0]
        # no event of the device has come back yet: nothing is known against it
        self.device_idle = None if self.gaps is None else idle[0] / max(idle[1], 1e-9)
        loaders = self.loaders
        crowding = self._crowd(loaders)
        self.verdict.update(seen, self._fair(seen), self.device_idle, crowding)
        self._want_samples(self.verdict.suspected)
        if self.verdict.crowded and crowding is not None:
            busiest = max(loaders, key=lambda one: one.workers)
            told.append(sayings.crowded(crowding, busiest, self.processes))
            gone.append("data-starvation")
        elif self.verdict.starved:
            told.append(sayings.starved(seen, self.verdict, self.slowest, self.case(seen), waits))
        elif not self.slow_starts:
            gone += ["data-starvation", "too-many-workers"]
        return told, gone

    def epoch_end(self) -> list[Saying]:
        """The epoch is over; what its starts have to say."""
        self.clock.enter("between epochs")
        self.clock.close_batch()
        self._collect()
        started, self.watch.started = self.watch.started, 0.0
        self.epoch_start = self.clock.first_fetch + started
        self.verdict.starts.append(self.epoch_start)
        self.verdict.steady.append(self._epoch.total)
        self.pause()
        self._epoch_over = True
        told = self._randomness()
        self._epoch_over = False
        busiest = max(self.loaders, key=lambda one: one.workers, default=None)
        self.slow_starts = busiest is not None and self.verdict.starts_slowly(self._many(self.loaders))
        if not self.slow_starts or busiest is None or self.verdict.starved or self.verdict.crowded:
            return told
        return [*told, sayings.slow_starts(self.verdict, busiest, self.cores)]

    def epoch_cost(self) -> float:
        """Mean seconds a batch of the epoch that ended, its start included; begins the next epoch's sum."""
        epoch, self._epoch = self._epoch, Window()
        return (epoch.total + self.epoch_start) / (epoch.batches + 1)

    def _collect(self) -> None:
        window = self.clock.take()
        if window.batches:
            self.last = window
            self.verdict.lost += sum(window.fetches)
            self._recent.add(window)
            self._epoch.add(window)
        if self.gaps is not None:
            idle, total, _ = self.gaps.take()
            self._idle = [self._idle[0] + idle, self._idle[1] + total]

    # ------------------------------------------------------------------ which part is slow

    def case(self, seen: Window) -> Starved:
        """What is known of a slow loader."""
        loader = self.slowest
        looks = self._looks(loader)
        making = self._making(loader)
        return Starved(
            wait=seen.wait,
            busy=seen.step - seen.wait,
            making=making.seconds if making else (seen.wait if not loader.workers else seen.step * loader.workers),
            cpu=making.computing
            if making
            else (seen.fetch_cpu / max(sum(seen.fetches), 1e-9) if not loader.workers else 1.0),
            cores=self.cores,
            accelerator=self.gaps is not None,
            part=looks.part(),
            line=looks.line(),
        )

    def _fair(self, seen: Window) -> tuple[float, float]:
        """Seconds of wait and of everything else a batch would take if no other program had the cores.

        Workers that would keep up then are not to blame for what they cannot do now.
        """
        busy = (seen.step - seen.wait) * (1 - seen.queued)
        making, workers = self._making(self.slowest), self.slowest.workers
        if making is None:
            if seen.fetch_pauses < 0.5 * seen.batches:  # it never slept: what it did not compute, others took from it
                return min(seen.wait, seen.fetch_cpu / seen.batches), busy
            return seen.wait * (1 - seen.queued), busy
        alone = making.seconds * (1 - making.computing * making.queued) / workers
        return min(seen.wait, max(alone - busy, 0.0) + seen.fetch_cpu / seen.batches), busy

    def _many(self, loaders: list[Loader]) -> bool:
        return sum(loader.workers for loader in loaders) * self.processes >= 2 * self.host_cores

    def _crowd(self, loaders: list[Loader]) -> Crowd | None:
        """How far more workers than cores fare; None where there are not so many."""
        making = [m for loader in loaders if (m := self._making(loader)) is not None]
        if not making or not self._many(loaders):
            return None
        workers = sum(loader.workers for loader in loaders) * self.processes
        worst = max(making, key=lambda m: m.queued)
        return Crowd(workers, self.host_cores, worst.computing, worst.queued)

    def _making(self, loader: Loader) -> Making | None:
        board = self.watch.board(loader.it)
        return board.making() if board is not None and loader.workers else None

    def _looks(self, loader: Loader) -> Looks:
        board = self.watch.board(loader.it)
        if board is not None and loader.workers:
            return board.seen()
        return self._sampler.looks if self._sampler is not None else Looks()

    def _want_samples(self, wanted: bool) -> None:
        """Have the makers of batches looked at while they seem slow: workers, or this thread."""
        loader = self.slowest
        board = self.watch.board(loader.it)
        if loader.workers:
            if board is not None:
                board.wanted[0] = int(wanted)
        elif wanted and self._sampler is None:
            codes = PartCodes.of(getattr(loader.it, "dataset", None), getattr(loader.it, "collate_fn", None))
            clock = self.clock
            self._sampler = StackSampler(codes, lambda: clock.phase == "fetch", threading.get_ident())
            self._sampler.start()

    def _over(self) -> bool:
        """For threads of ours: whether the fit was broken off, or its Trainer is gone."""
        trainer = self.trainer
        return trainer is None or trainer.state.status == "interrupted"

    # ------------------------------------------------------------------ workers

    def _randomness(self) -> list[Saying]:
        """Whether workers draw alike; each iterator's are asked once, when they have made enough or are done."""
        for loader in self.loaders:
            board = self.watch.board(loader.it)
            if board is None or loader.workers < 2 or self._alike_told:
                continue
            done = board.batches() >= BATCHES or (self._epoch_over and not loader.persistent)
            if board.judged or not done:
                continue
            board.judged = True
            self._alike.add(board.moves())
            found = self._alike.found(same_samples=loader.iterable)
            if found is not None:
                self._alike_told = True
                return [sayings.alike(loader, found)]
        return []

    def _memory(self) -> list[Saying]:
        left = memory_left() if any(loader.workers for loader in self.loaders) else None
        if left is None or left[0] > SCARCE * left[1]:
            return []
        workers = [worker.pid for iterator in live_iterators(self.trainer) for worker in iterator._workers]
        taken = sum(private_memory(pid) for pid in workers)
        # memory that others took is not for fewer workers to give back
        return [sayings.scarce_memory(left, taken, len(workers))] if taken > left[0] else []

    def _look_at_workers(self) -> tuple[list[str], list[str]]:
        """For the watchdog, in its thread: a line a worker, and the stack of the one waited for."""
        lines: list[str] = []
        stacks: list[str] = []
        for iterator in live_iterators(self.trainer):
            its_lines, waited_for = worker_lines(iterator)
            lines += its_lines
            loader = next((one.it for one in self.loaders if one.of(iterator)), None)
            if waited_for is None or loader is None:
                continue
            stack = self.watch.stack_of(loader, waited_for, iterator._workers[waited_for].pid)
            if stack:
                stacks.append(f"Stack of worker {waited_for}:\n{stack}")
        return lines, stacks

    def _waited_for(self) -> int | None:
        """For the watchdog: the worker whose batch the training waits for."""
        if self.clock.phase not in ("fetch", "epoch start"):
            return None
        return next((pid for i in live_iterators(self.trainer) if (pid := awaited(i)) is not None), None)

    def say_hang(self, hang: Hang, rank: int) -> Saying:
        """A hang as it is told; of several ranks each prints its own report at once, for they cannot meet any more."""
        alone = self.trainer.world_size == 1
        if not alone:
            print(f"lightning_stall, rank {rank}: {hang.code}\n{hang.report()}", file=sys.stderr, flush=True)
        return Saying(
            hang.code,
            hang.report() if alone else hang.summary(),
            severity="warning" if hang.first or hang.asleep else "critical",
            evidence={"seconds": hang.seconds, "deadline": hang.deadline, "batches": float(hang.batches)},
            where=[hang.phase, *hang.workers[:1]],
        )
