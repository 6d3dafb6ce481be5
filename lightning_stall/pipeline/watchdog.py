"""A run that does not move any more: who waits for what, told once, while it still stands."""

from __future__ import annotations

import contextlib
import faulthandler
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lightning_stall.measure.pipeline import cpu_time, process_state
from lightning_stall.pipeline.clock import StepClock
from lightning_stall.pipeline.loaders import ms

FLOOR = 300.0  # seconds; the least that is called a hang where the user names no time
ASLEEP = 6.0  # seconds; the least where nobody computes: neither the training nor the worker it waits for
IDLE = 0.03  # share of a core, under which nobody computes
TIMES = 10.0  # times the run's own longest batch, which may be short by chance
FIRST = 1800.0  # seconds; the first batch compiles, tunes kernels and starts workers
SUSPENDED = frozenset({"validation", "checkpoint", "between epochs"})  # as long as they take
GRACE = 5.0  # seconds between two attempts to interrupt
ATTEMPTS = 3

_NOT_SHOWN = ("lightning-stall", "QueueFeederThread")  # our threads, and those that feed a queue of a worker
_MAIN_DEPTH = 14  # innermost calls of a stack that are shown


class TrainingHang(RuntimeError):
    """Ends a run that hangs, with `hang_action="raise"`; the message is the whole report."""


@dataclass(frozen=True)
class Hang:
    """What stands still. Built while it does, by the watching thread."""

    code: str  # "dataloader-hang" or "training-hang"
    phase: str
    seconds: float
    deadline: float
    batches: int
    longest: float
    first: bool  # no batch has been completed yet
    asleep: bool = False  # told early, since nobody computes
    workers: list[str] = field(default_factory=list)  # a line a worker, the one waited for first
    stacks: list[str] = field(default_factory=list)  # the worker waited for, then the main thread, then others

    def summary(self) -> str:
        """What was seen, in a few lines."""
        usual = f"the longest of {self.batches} batches took {ms(self.longest)}" if self.longest else "no batch is done"
        what = {
            "fetch": "No batch arrives",
            "epoch start": "The first batch of the epoch does not arrive",
        }.get(self.phase, f"Nothing moves in `{self.phase}`")
        sleeps = ", while nobody computes" if self.asleep else ""
        lines = [f"{what} for {ms(self.seconds)}{sleeps}; {usual}, and up to {ms(self.deadline)} would pass."]
        return " ".join([*lines, *self.workers])

    def report(self) -> str:
        """The summary with every stack."""
        return "\n".join([self.summary(), *self.stacks])


class Watchdog(threading.Thread):
    """Watches the heartbeat of a `StepClock`, which costs the training nothing.

    What is late is learnt from the run: ten times its longest batch, and never less than `floor`; where neither the
    training nor the worker it waits for uses a core, `asleep` is enough to tell it. The first batch has half an hour;
    validation, checkpoints and the pause between epochs have all the time they take, and what lies between two batches
    (other callbacks, loggers) has twice as much. Where Python code cannot run because a step holds the interpreter's
    lock, `faulthandler` prints all stacks to standard error; there is one such timer a process.

    Args:
        clock: of the running fit.
        look: called when it hangs, for (workers, stacks of workers); may take a second.
        tell: takes the `Hang`.
        floor: seconds.
        asleep: seconds; None where only `floor` counts. It tells, and never ends a wait.
        interrupt: end the wait of the main thread; needs `listen` to have been called there.
        waited_for: the process whose batch is waited for.
        over: whether the fit has ended; the watch then ends by itself.
    """

    def __init__(
        self,
        clock: StepClock,
        look: Callable[[], tuple[list[str], list[str]]],
        tell: Callable[[Hang], None],
        floor: float = FLOOR,
        interrupt: bool = False,
        asleep: float | None = None,
        waited_for: Callable[[], int | None] = lambda: None,
        over: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(name="lightning-stall-watchdog", daemon=True)
        self.clock, self.look, self.tell, self.floor, self.interrupt = clock, look, tell, floor, interrupt
        self.asleep, self.waited_for, self.over = asleep, waited_for, over
        self.hang: Hang | None = None  # the last one told
        self.raised = False
        self._ended = threading.Event()
        self._main = threading.main_thread().ident or 0
        self._wanted: TrainingHang | None = None
        self._armed = False
        self._told_at = 0.0  # the heartbeat it was told at
        self._old_handler: Any = None
        self._handler: Any = None
        self._computed: tuple[float, float, float] | None = None  # (heartbeat, when, seconds computed until then)

    # ------------------------------------------------------------------ the watching thread

    @property
    def moved_on(self) -> bool:
        """Whether the run went on after it was told to hang."""
        return self.clock.since != self._told_at

    def deadline(self, floor: float) -> float:
        """Seconds without a heartbeat from which on the run hangs; infinite where it may take its time."""
        clock = self.clock
        if clock.phase in SUSPENDED:
            return float("inf")
        if not clock.longest:
            return max(FIRST, TIMES * floor) if clock.phase != "rest" else float("inf")
        learnt = max(floor, TIMES * clock.longest)
        return 2 * learnt if clock.phase in ("rest", "epoch start") else learnt

    def run(self) -> None:
        pause = min(5.0, max(0.05, min(self.floor, self.asleep or self.floor) / 10))
        while not self._ended.wait(pause):
            if self.over():  # nobody may have called `stop`: a user's own `on_exception` may raise before ours
                break
            with contextlib.suppress(Exception):  # what cannot be looked at must not end the watch
                self._once()
        self._disarm()

    def _once(self) -> None:
        since, deadline = self.clock.since, self.deadline(self.floor)
        told = self.hang is not None and not self.moved_on
        late = time.perf_counter() - since
        if late <= deadline:
            self._arm(deadline)
            if told or self.asleep is None or late < 1.0 or not self._sleeps(since):
                return
            deadline = self.deadline(self.asleep)
            if late <= deadline:
                return
            self._report(since, deadline, asleep=True)
        elif not told or (self.interrupt and self.hang is not None and self.hang.asleep):
            self._disarm()
            hang = self._report(since, deadline, asleep=False)
            if self.interrupt and hang is not None and not hang.first:
                self._end_the_wait(hang)

    def _sleeps(self, since: float) -> bool:
        """Whether nobody has computed since shortly after the last heartbeat; False until that can be said."""
        now, worker = time.perf_counter(), self.waited_for()
        had = cpu_time(worker) if worker is not None else None
        computed = time.process_time() + (had.ready if had is not None else 0.0)
        if self._computed is None or self._computed[0] != since:
            self._computed = (since, now, computed)
            return False
        return computed - self._computed[2] < IDLE * max(now - self._computed[1], 1.0)

    def _report(self, since: float, deadline: float, asleep: bool) -> Hang | None:
        """Look who waits for whom, and tell it; None where the run moved on meanwhile."""
        workers, stacks = self.look()
        if self.clock.since != since:
            return None
        loading = self.clock.phase in ("fetch", "epoch start")
        self._told_at = since
        self.hang = Hang(
            code="dataloader-hang" if loading else "training-hang",
            phase=self.clock.phase,
            seconds=time.perf_counter() - since,
            deadline=deadline,
            batches=self.clock.batches,
            longest=self.clock.longest,
            first=not self.clock.longest,
            asleep=asleep,
            workers=workers if loading else [],
            stacks=[*(stacks if loading else []), *thread_stacks(self._main)],
        )
        self.tell(self.hang)
        return self.hang

    def _arm(self, deadline: float) -> None:
        """Have faulthandler speak where no Python code can. Every look puts it off: a run that moves never hears it."""
        if deadline == float("inf"):
            self._disarm()
        else:
            faulthandler.dump_traceback_later(deadline * 1.25 + 1, file=2)
            self._armed = True

    def _disarm(self) -> None:
        if self._armed:
            faulthandler.cancel_dump_traceback_later()
            self._armed = False

    def _end_the_wait(self, hang: Hang) -> None:
        for _ in range(ATTEMPTS):
            self._wanted = TrainingHang(hang.report())
            signal.pthread_kill(self._main, signal.SIGINT)
            if self._ended.wait(GRACE) or self.clock.since != self._told_at:
                return
        print("The wait cannot be interrupted from within; end the process with SIGKILL.", file=sys.stderr, flush=True)

    # ------------------------------------------------------------------ the main thread

    def listen(self) -> None:
        """Let the main thread be interrupted. Ctrl-C goes on to work as before."""
        if not self.interrupt or threading.current_thread() is not threading.main_thread():
            self.interrupt = False
            return
        self._old_handler = signal.getsignal(signal.SIGINT)
        self._handler = self._on_interrupt  # one object, so that it is known again
        signal.signal(signal.SIGINT, self._handler)

    def _on_interrupt(self, number: int, frame: Any) -> None:
        wanted, self._wanted = self._wanted, None
        if wanted is not None:
            self.raised = True
            raise wanted
        if callable(self._old_handler):
            self._old_handler(number, frame)
        elif self._old_handler == signal.SIG_DFL:
            raise KeyboardInterrupt

    def stop(self) -> None:
        """End the thread, its timer and its handler."""
        self._ended.set()
        if self.is_alive() and threading.current_thread() is not self:
            self.join(timeout=2)
        self._disarm()
        if self._handler is not None and signal.getsignal(signal.SIGINT) is self._handler:
            signal.signal(signal.SIGINT, self._old_handler)
        self._handler = None


def thread_stacks(main: int) -> list[str]:
    """The stack of the main thread, and in short those of the other threads that are not ours."""
    names = {t.ident: t.name for t in threading.enumerate()}
    out = []
    for ident, frame in sorted(sys._current_frames().items(), key=lambda pair: pair[0] != main):
        name = names.get(ident, "a thread Python did not start")
        if name.startswith(_NOT_SHOWN):
            continue
        calls = traceback.extract_stack(frame)[-(_MAIN_DEPTH if ident == main else 3) :]
        lines = [f"  {c.filename}:{c.lineno} in {c.name}: {c.line}" for c in reversed(calls)]
        title = "the main thread" if ident == main else f"thread {name!r}"
        out.append("\n".join([f"Stack of {title}, innermost call first:", *lines]))
    return out


def worker_lines(iterator: Any) -> tuple[list[str], int | None]:
    """One sentence a worker of a loader's iterator, the one that is waited for first; and which that is.

    Takes a fifth of a second: a worker that computes is told from one that stands by the time it spends.
    """
    workers = iterator._workers
    waited_for = _waited_for(iterator)
    before = [cpu_time(w.pid) for w in workers]
    time.sleep(0.2)
    lines = []
    for i, worker in enumerate(workers):
        if not worker.is_alive():
            doing = f"is dead (exit code {worker.exitcode})"
        else:
            then, now = before[i], cpu_time(worker.pid)
            busy = (now.ready - then.ready) / 0.2 if then is not None and now is not None else 0.0
            look = "is busy" if busy > 0.3 else "stands"
            doing = f"{look}: {process_state(worker.pid)}, computes {min(busy, 1.0):.0%} of the time"
        waiting = " It is the one waited for." if i == waited_for else ""
        lines.append(f"Worker {i} (pid {worker.pid}) {doing}, {_queued(iterator, i)}.{waiting}")
    order = sorted(range(len(lines)), key=lambda i: i != waited_for)
    return [lines[i] for i in order], waited_for


def awaited(iterator: Any) -> int | None:
    """The process of the worker whose batch is next."""
    worker = _waited_for(iterator)
    return int(iterator._workers[worker].pid) if worker is not None else None


def _waited_for(iterator: Any) -> int | None:
    """Which worker makes the batch that is next."""
    task = getattr(iterator, "_task_info", {}).get(getattr(iterator, "_rcvd_idx", None))
    return int(task[0]) if task else None


def _queued(iterator: Any, worker: int) -> str:
    """How many batches it has still to begin."""
    try:
        return f"{iterator._index_queues[worker].qsize()} more in its queue"
    except (NotImplementedError, OSError, AttributeError):  # macOS cannot count
        return "its queue unknown"


def wait_for_deaths(iterators: list[Any], seconds: float = 0.5) -> None:
    """A connection breaks a moment before the worker at its other end counts as dead."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and all(w.is_alive() for i in iterators for w in i._workers):
        time.sleep(0.01)


def end_workers(iterator: Any) -> None:
    """Kill the workers of an iterator that would wait for them for ever, and close its queues. No orphan stays."""
    from torch.utils.data._utils import signal_handling

    with contextlib.suppress(Exception):
        if iterator._worker_pids_set:  # or PyTorch would raise an error of its own about the first that dies
            signal_handling._remove_worker_pids(id(iterator))
            iterator._worker_pids_set = False
    for worker in iterator._workers:
        worker.kill()
    for worker in iterator._workers:
        worker.join(timeout=5)
    with contextlib.suppress(Exception):
        iterator._shutdown_workers()
