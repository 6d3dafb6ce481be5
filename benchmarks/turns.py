"""Trainings of one process that take turns, a few steps each: what callbacks cost, on a machine that is not quiet.

Runs that are timed one after the other meet different minutes of the machine, and on a shared one that is worth more
than a few per cent. Here each variant trains in a thread of its own, and one thread alone runs at a time: it makes a
block of steps and hands over to the next. A round is one block of each, some tens of milliseconds apart, and what a
variant costs is the median over rounds of its block over the bare one's: that of a step between checks. The ratio of
the means, each without the outermost twentieth on either side, holds our checks, which fall into one block of some six.
"""

from __future__ import annotations

import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule

BLOCK = 8  # steps; the first of them finds the caches of another, and is not timed
TRIM = 0.05


def keep_memory(module: str) -> None:
    """Begin `python -m module` anew with an allocator that gives nothing back, unless it was begun so.

    Large tensors that are mapped and unmapped at each step cost page faults, more in one training than in its twin.
    """
    large = str(2**32)
    wanted = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": large}
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], {**os.environ, **wanted})


@dataclass
class Ring:
    """Whose turn it is; each waits for its own."""

    gates: list[threading.Semaphore]
    running: list[bool]
    errors: list[BaseException] = field(default_factory=list)

    def after(self, index: int) -> None:
        """Let the next one run that has not ended yet."""
        for step in range(1, len(self.gates) + 1):
            at = (index + step) % len(self.gates)
            if self.running[at]:
                self.gates[at].release()
                return


class Turn(Callback):
    """Stands in front of all others: times a block of steps, and hands over."""

    def __init__(self, ring: Ring, index: int, first: int, block: int) -> None:
        self.ring, self.index, self.first, self.block = ring, index, first, block
        self.seen, self.begun, self.blocks = 0, 0.0, list[float]()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.seen += 1
        at = (self.seen - self.first) % self.block
        if self.seen < self.first:
            return
        if at == 0:
            if self.begun:
                self.blocks.append((time.perf_counter() - self.begun) / (self.block - 1))
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize()
            self.ring.after(self.index)
            self.ring.gates[self.index].acquire()
        if at == 1:
            self.begun = time.perf_counter()


def taking_turns(
    title: str,
    fit: Callable[..., None],
    make: Callable[[], LightningModule],
    batch: Any,
    rounds: int,
    variants: dict[str, Callable[[], Sequence[Any]]],
    first: int = 34,
    block: int = BLOCK,
    aim: float | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Milliseconds a step and cost over the bare step by variant, of which "bare" is the first.

    `fit(module, batch, steps, callbacks, **settings)` trains; steps up to `first` are not timed. A variant that fails
    raises its error here.
    """
    ring = Ring([threading.Semaphore(0) for _ in variants], [True] * len(variants))
    turns = [Turn(ring, i, first, block) for i in range(len(variants))]
    threads_each = torch.get_num_threads()

    def train(turn: Turn, callbacks: Callable[[], Sequence[Any]]) -> None:
        ring.gates[turn.index].acquire()
        try:
            torch.set_num_threads(threads_each)
            ours = callbacks()
            fit(make(), batch, first + rounds * block + 1, [turn, *ours], **settings)
            if failed := [c for c in ours if getattr(c, "failed", None)]:
                raise RuntimeError(f"{type(failed[0]).__name__} failed: {failed[0].failed}")
        except BaseException as error:
            ring.errors.append(error)
        finally:
            ring.running[turn.index] = False
            ring.after(turn.index)

    threads = [
        threading.Thread(target=train, args=(turn, callbacks), daemon=True)
        for turn, callbacks in zip(turns, variants.values(), strict=True)
    ]
    for thread in threads:
        thread.start()
    ring.gates[0].release()
    for thread in threads:
        thread.join()
    if ring.errors:
        raise ring.errors[0]
    return table(title, {name: turn.blocks for name, turn in zip(variants, turns, strict=True)}, aim)


def table(title: str, blocks: dict[str, list[float]], aim: float | None) -> dict[str, Any]:
    """Print and give what each variant took, and what it costs over the bare one."""
    bare, out = blocks["bare"], dict[str, Any]()
    print(f"\n{title}; {len(bare)} rounds of turns" + (f"; to reach: {aim:.1%}" if aim else ""))
    for name, own in blocks.items():
        costs = sorted(a / b - 1 for a, b in zip(own, bare, strict=True))
        quarter = len(costs) // 4
        out[name] = {
            "ms": statistics.median(own) * 1e3,
            "over_bare": statistics.median(costs),
            "mean_over_bare": _inner_mean(own) / _inner_mean(bare) - 1,
        }
        line = f"  {name:26} {out[name]['ms']:9.3f} ms"
        if name != "bare":
            line += f"  {out[name]['over_bare']:+8.2%}  mean {out[name]['mean_over_bare']:+8.2%}"
            line += f"  (half of the rounds between {costs[quarter]:+.2%} and {costs[-1 - quarter]:+.2%})"
        print(line, flush=True)
    return out


def _inner_mean(values: Sequence[float]) -> float:
    """The mean without the outermost `TRIM` on either side."""
    cut = int(TRIM * len(values))
    return statistics.fmean(sorted(values)[cut : len(values) - cut])
