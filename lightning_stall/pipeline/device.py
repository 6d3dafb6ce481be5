"""How long an accelerator stands idle between two batches, by its own clock. The host waiting is not the same thing."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch

PENDING = 64  # batches whose events may be on their way; more than the device lags behind


class DeviceGaps:
    """Times the device between the end of one batch's work and the start of the next one's, without a wait.

    A host that runs ahead may wait long for a batch while the device still works: then there is no gap. Events are
    recorded on the current stream and read once they have passed.

    Args:
        new_event: makes an event with `record()`, `query()` and `elapsed_time(later)` in milliseconds.
    """

    def __init__(self, new_event: Callable[[], Any]) -> None:
        self.new_event = new_event
        self._ended: Any = None
        self._started: Any = None
        self._pending: deque[tuple[Any, Any, Any]] = deque()  # (last start, last end, start)
        self._free: list[Any] = []
        self.idle = self.total = 0.0  # seconds since the last `take`
        self.batches = 0

    @classmethod
    def of(cls, device: torch.device) -> DeviceGaps | None:
        """For a CUDA device; None for all others."""
        return cls(lambda: torch.cuda.Event(enable_timing=True)) if device.type == "cuda" else None

    def batch_starts(self) -> None:
        event = self._record()
        if self._ended is not None and self._started is not None:
            self._pending.append((self._started, self._ended, event))
        self._started, self._ended = event, None
        self.collect()

    def batch_ends(self) -> None:
        self._ended = self._record()

    def pause(self) -> None:
        """What comes between now and the next start (an epoch's end, a validation) is no gap."""
        self._ended = self._started = None

    def release(self) -> None:
        """Let go of all events now: none may be left to a garbage collector that runs in a worker, where CUDA is none."""
        self.pause()
        self._pending.clear()
        self._free.clear()

    def collect(self) -> None:
        """Read the events that have passed, oldest first."""
        while self._pending and self._pending[0][2].query():
            before, ended, started = self._pending.popleft()
            self.idle += ended.elapsed_time(started) / 1e3
            self.total += before.elapsed_time(started) / 1e3
            self.batches += 1
            self._free += [before, ended]
        while len(self._pending) > PENDING:
            self._pending.popleft()

    def take(self) -> tuple[float, float, int]:
        """Seconds idle, seconds in all, and batches, since the last call."""
        taken = (self.idle, self.total, self.batches)
        self.idle = self.total = 0.0
        self.batches = 0
        return taken

    def _record(self) -> Any:
        event = self._free.pop() if self._free else self.new_event()
        event.record()
        return event
