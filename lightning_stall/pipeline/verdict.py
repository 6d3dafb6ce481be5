"""When a wait for data is worth a word, and the words for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lightning_stall.pipeline.clock import Window

FLOOR = 0.0035  # seconds a batch; a shorter wait is not worth a person's time, whatever its share
LOST = 0.5  # seconds lost so far before a word
PLAIN = 0.6  # share of the step's time, from which on half of that will do
ENOUGH = 6  # steady batches that make a verdict
PATIENCE = 3  # verdicts in a row
CROWDED = 0.3  # share of their time that workers stand in line for a core, from which on they crowd each other
ABSURD = 4  # workers a core, from which on it needs no wait for them to crowd each other
COMPUTING = 0.5  # share of the making of a batch; workers that compute less may well outnumber the cores
START = 2.0  # seconds before an epoch's first batch, from which on they count
CROWDED_START = 0.2  # the same where there are at least twice as many workers as cores
STARTS = 3  # epochs but the first


@dataclass
class Verdict:
    """Judges window after window. `starved` and `crowded` hold after three bad ones in a row, until two are well.

    Args:
        threshold: share of the step's time.
    """

    threshold: float
    starved: bool = field(default=False, init=False)
    crowded: bool = field(default=False, init=False)
    suspected: bool = field(default=False, init=False)  # the last window was bad
    lost: float = field(default=0.0, init=False)  # seconds waited in steady batches
    _bad: int = field(default=0, init=False)
    _well: int = field(default=0, init=False)
    _crowded: int = field(default=0, init=False)
    starts: list[float] = field(default_factory=list, init=False)  # seconds before the first batch, an epoch
    steady: list[float] = field(default_factory=list, init=False)  # seconds of an epoch's other batches

    def update(self, seen: Window, fair: tuple[float, float], device_idle: float | None, crowd: Crowd | None) -> None:
        """Take a window of steady batches.

        Args:
            seen: at least `ENOUGH` batches.
            fair: seconds of wait, and of the rest of a step, if no other program had the cores.
            device_idle: share of its time an accelerator stood idle; None where there is none.
            crowd: how far more workers than cores fare; None where there are not so many.
        """
        wait, busy = fair
        long_waits = sum(f >= FLOOR for f in seen.fetches)
        share = min(seen.share, wait / max(wait + busy, 1e-9))
        waits = share > self.threshold and wait >= FLOOR and long_waits >= max(3, seen.batches // 20)
        self.suspected = waits and (device_idle is None or device_idle > self.threshold)
        self._bad = self._bad + 1 if self.suspected else 0
        self._well = 0 if self.suspected else self._well + 1
        plain = share > PLAIN and wait >= 2 * FLOOR
        if self._bad >= PATIENCE and self.lost >= (0.5 * LOST if plain else LOST):
            self.starved = True
        elif self._well >= 2:
            self.starved = False
        crowding = crowd is not None and crowd.crowding and (self.suspected or seen.queued >= CROWDED)
        self._crowded = self._crowded + 1 if crowding else 0
        if crowd is not None and crowd.absurd:
            self._crowded = PATIENCE
        self.crowded = self._crowded >= PATIENCE

    def starts_slowly(self, many: bool) -> bool:
        """Whether the starts of epochs, rather than their batches, lose the time. The first epoch is left out.

        Args:
            many: whether there are at least twice as many workers as cores.
        """
        starts, steady = self.starts[1:], self.steady[1:]
        lost, total = sum(starts), sum(starts) + sum(steady)
        return (
            len(starts) >= STARTS
            and min(starts[-STARTS:]) >= (CROWDED_START if many else START)
            and lost > self.threshold * total
        )


@dataclass(frozen=True)
class Crowd:
    """Far more workers than cores: how they fare."""

    workers: int  # of all processes on this host
    cores: int
    computing: float  # share of the making of a batch in which a worker computes or could
    queued: float  # share of that in which it stood in line for a core

    @property
    def absurd(self) -> bool:
        """So many more workers than cores that a few of them would make the batches as fast."""
        return self.workers >= ABSURD * self.cores and self.computing >= COMPUTING

    @property
    def crowding(self) -> bool:
        """Workers that wait for a disk may outnumber the cores; those that compute may not."""
        return self.queued >= CROWDED and self.computing >= COMPUTING


def processes_here(trainer: Any) -> int:
    """Training processes of this host that share its cores."""
    return max(1, min(int(trainer.world_size), int(trainer.num_devices)))
