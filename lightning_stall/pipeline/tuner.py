"""Finds loader settings by trying them, an epoch each: up the hill that the clock shows, and back to the best."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace

from lightning_stall.pipeline.loaders import Loader, ms

BETTER = 0.95  # times the best so far; less of a gain is noise
LADDER = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
MOST_PREFETCH = 8  # batches a worker; each takes memory


@dataclass(frozen=True)
class Setting:
    """What is tuned of a loader."""

    workers: int
    prefetch: int | None
    pinned: bool

    @classmethod
    def of(cls, loader: Loader) -> Setting:
        it = loader.it
        return cls(int(it.num_workers), it.prefetch_factor, bool(it.pin_memory))

    def apply(self, loader: Loader) -> None:
        """Set them; they hold from the loader's next iterator on. Persistent workers are sent home first."""
        it = loader.it
        if getattr(it, "_iterator", None) is not None:
            it._iterator._shutdown_workers()
            it._iterator = None
        it.num_workers = self.workers
        it.prefetch_factor = (self.prefetch or 2) if self.workers else self.prefetch
        it.pin_memory = self.pinned

    def __str__(self) -> str:
        prefetch = f", prefetch_factor={self.prefetch or 2}" if self.workers else ""
        return f"num_workers={self.workers}{prefetch}, pin_memory={self.pinned}"


class Tuner:
    """One climb. `epoch(seconds)` takes what a batch cost in the epoch that ended and says what to try next.

    Args:
        start: the settings the user gave.
        wanted: workers that should hide the wait, by calculation; the first to be tried.
        most: never more workers than this.
        accelerator: whether pinned memory can help.
    """

    def __init__(self, start: Setting, wanted: int, most: int, accelerator: bool) -> None:
        self.start = self.best = self.present = start
        self.wanted, self.most, self.accelerator = wanted, most, accelerator
        self.seconds: dict[Setting, float] = {}  # a batch, by setting tried
        self.done = False
        self._climb: Generator[Setting, float, None] | None = None

    def epoch(self, seconds: float) -> Setting | None:
        """The setting to use from now on, or None where the present one stays."""
        if self.done:
            return None
        before = self.present
        self.seconds[before] = seconds
        try:
            if self._climb is None:
                self._climb = self._try()
                self.present = next(self._climb)
            else:
                self.present = self._climb.send(seconds)
        except StopIteration:
            self.done = True
            self.present = self.best
        return self.present if self.present != before else None

    def _try(self) -> Generator[Setting, float, None]:
        for move in (self._to_wanted, self._more_workers, self._fewer_workers, self._more_prefetch, self._pin):
            while (candidate := move(self.best)) is not None and candidate not in self.seconds:
                got = yield candidate
                if got >= BETTER * self.seconds[self.best]:
                    break
                self.best = candidate

    def _to_wanted(self, best: Setting) -> Setting | None:
        wanted = min(self.wanted, self.most)
        return replace(best, workers=wanted) if wanted != best.workers else None

    def _more_workers(self, best: Setting) -> Setting | None:
        more = next((w for w in LADDER if best.workers < w <= self.most), None)
        return replace(best, workers=more) if more is not None else None

    def _fewer_workers(self, best: Setting) -> Setting | None:
        fewer = max((w for w in LADDER if w < best.workers), default=None)
        return replace(best, workers=fewer) if fewer is not None else None

    def _more_prefetch(self, best: Setting) -> Setting | None:
        more = 2 * (best.prefetch or 2)
        return replace(best, prefetch=more) if best.workers and more <= MOST_PREFETCH else None

    def _pin(self, best: Setting) -> Setting | None:
        return replace(best, pinned=True) if self.accelerator and not best.pinned else None

    def result(self) -> str:
        """What the climb found, in the past tense."""
        tried = len(self.seconds) - 1
        if self.best == self.start:
            return f"tried {tried} other settings, found none 5 % better, and went back to {self.start}"
        before, after = self.seconds[self.start], self.seconds[self.best]
        return (
            f"set {self.best} instead of {self.start}, the best of {tried + 1} settings tried for an epoch each: "
            f"{ms(after)} a batch instead of {ms(before)}. Samples come in another order than they would have"
        )


def refusal(loaders: list[Loader], reloads: bool) -> str:
    """Why these loaders cannot be tuned; "" where they can."""
    for loader in loaders:
        if not loader.is_loader:
            return f"the {loader.name} is a {type(loader.it).__name__}, which has no settings"
        if loader.iterable:
            return f"the {loader.name} reads an IterableDataset, whose samples depend on the number of workers"
    if reloads:
        return "`reload_dataloaders_every_n_epochs` makes the loaders anew"
    return "" if loaders else "there is no loader"


def apply(setting: Setting, loaders: list[Loader]) -> None:
    """Set it on every loader."""
    for loader in loaders:
        setting.apply(loader)
