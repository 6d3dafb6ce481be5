"""Whether a long run stays as cheap and as small as it began: `python -m benchmarks.flat --steps 100000`.

One real training of a small MLP on one batch that comes again and again, under the whole family, without a logger, and
with a check every 50 steps. At steps 1,000, 10,000, 50,000 and 100,000 a table says what a step cost, in processor time
as the median over blocks of 1,000 steps since the row before, and what is held: KiB whose innermost Python line is ours
(tracemalloc), KiB of all Python, objects of our classes, all tracked objects and live tensors. The run is "flat" where
its last 10,000 steps cost at most 1.05 times its steps 5,000 to 15,000. Tracing slows each step alike, so these costs
are for comparing with each other: what the family costs beside bare Lightning, `python -m benchmarks.overhead` says.
The lines, ours and others', that grew most between the last two rows follow. `--bare` leaves the family out: what the machine, torch
and Lightning do by themselves. `--json F` writes the numbers. Exits with 1 where the cost is not flat.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import statistics
import sys
import tempfile
import time
import tracemalloc
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F

import lightning_stall
from benchmarks.gradients import Repeat
from benchmarks.overhead import family

MARKS = (1_000, 10_000, 50_000, 100_000)  # optimizer steps at which a row is printed
BLOCK = 1_000  # optimizer steps timed together
SETTLED = (5_000, 15_000)  # the steps that the last ones are held against
LAST = 10_000
ALLOWED = 1.05
EVERY = 50  # optimizer steps between checks
OURS = str(Path(lightning_stall.__file__).parent / "*")


class Tiny(LightningModule):
    """Two layers; hardly anything beside Lightning's own work."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 10))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-4)


@dataclass(frozen=True)
class Row:
    """What is held at one step, and what the blocks since the row before cost."""

    step: int
    ms: float  # a step, median over blocks
    ours: float  # KiB
    python: float  # KiB
    objects: int  # of our classes
    tracked: int  # by the garbage collector
    tensors: int


class Rows(Callback):
    """Times each block of steps, and counts at the marks; what counting costs is in no block."""

    def __init__(self) -> None:
        self.blocks: list[float] = []  # seconds of processor time a step
        self.rows: list[Row] = []
        self.pictures: list[tracemalloc.Snapshot] = []
        self.begun = 0.0
        self.since = 0  # the first block of the next row

    def on_train_start(self, trainer: Any, *args: Any) -> None:
        self.begun = time.process_time()

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        step = trainer.global_step
        if step % BLOCK == 0:
            self.blocks.append((time.process_time() - self.begun) / BLOCK)
            if step in MARKS or step == trainer.max_steps:
                self._count(step)
            self.begun = time.process_time()

    def _count(self, step: int) -> None:
        gc.collect()
        picture = tracemalloc.take_snapshot()
        ours = picture.filter_traces([tracemalloc.Filter(True, OURS)])
        tracked = gc.get_objects()
        row = Row(
            step,
            1e3 * statistics.median(self.blocks[self.since :]),
            sum(trace.size for trace in ours.traces) / 1024,
            sum(trace.size for trace in picture.traces) / 1024,
            sum(str(type(o).__module__).startswith("lightning_stall") for o in tracked),
            len(tracked),
            sum(
                issubclass(type(o), Tensor) for o in tracked
            ),  # not isinstance, which asks proxies for what they stand for
        )
        self.pictures = [*self.pictures[-1:], picture]
        self.since = len(self.blocks)
        self.rows.append(row)
        print(
            f"  {row.step:>8,} {row.ms:9.3f} {row.ours:10.1f} {row.python:11.1f} {row.objects:9,} {row.tracked:9,} {row.tensors:8,}",
            flush=True,
        )


def measure(steps: int, bare: bool) -> Rows:
    """Fit, and print a row at each mark."""
    torch.manual_seed(0)
    batch, rows = (torch.randn(32, 16), torch.randint(0, 10, (32,))), Rows()
    ours = [] if bare else family()
    print(
        f"\n{steps:,} steps of a small MLP {'bare' if bare else 'under the whole family'}, traced\n"
        f"  {'step':>8} {'ms a step':>9} {'ours, KiB':>10} {'Python, KiB':>11} {'our objs':>9} {'all objs':>9} {'tensors':>8}"
    )
    tracemalloc.start()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            default_root_dir=folder,
            max_epochs=-1,
            max_steps=steps,
            log_every_n_steps=EVERY,
            callbacks=[*ours, rows],
        )
        trainer.fit(Tiny(), Repeat(batch, BLOCK))
    tracemalloc.stop()
    failed = [c for c in ours if c.failed]
    if failed:
        raise RuntimeError(f"{type(failed[0]).__name__} failed: {failed[0].failed}")
    return rows


def grown(rows: Rows, ours: bool, most: int = 5) -> list[str]:
    """The lines of ours, or of all others, that hold more at the last mark than at the one before, the worst first."""
    if len(rows.pictures) < 2:
        return []
    before, after = (p.filter_traces([tracemalloc.Filter(ours, OURS)]) for p in rows.pictures)
    found = sorted(after.compare_to(before, "lineno"), key=lambda d: -d.size_diff)
    return [
        f"{'/'.join(Path(d.traceback[0].filename).parts[-2:])}:{d.traceback[0].lineno} {d.size_diff / 1024:+.1f} KiB "
        f"({d.count_diff:+d} blocks)"
        for d in found[:most]
        if d.size_diff > 0
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=100_000, help="length of the run; from 25000 on it is judged")
    parser.add_argument("--bare", action="store_true", help="without the family")
    parser.add_argument("--json", metavar="F", help="write the numbers to this file")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = measure(arguments.steps, arguments.bare)
    lines = {"ours": grown(rows, True), "others": grown(rows, False)}
    for whose, grew in lines.items():
        print(f"  grown between the last two rows, {whose}: {'; '.join(grew) or 'nothing'}")
    out: dict[str, Any] = {"steps": arguments.steps, "rows": [asdict(row) for row in rows.rows], "grown": lines}
    out["blocks"] = rows.blocks
    flat = True
    if arguments.steps >= SETTLED[1] + LAST:
        early = statistics.median(rows.blocks[SETTLED[0] // BLOCK : SETTLED[1] // BLOCK])
        late = statistics.median(rows.blocks[-(LAST // BLOCK) :])
        flat = late <= ALLOWED * early
        out |= {"early_ms": 1e3 * early, "late_ms": 1e3 * late, "flat": flat}
        print(
            f"  {'flat' if flat else 'NOT flat'}: the last {LAST:,} steps cost {1e3 * late:.3f} ms each, steps {SETTLED[0]:,} "
            f"to {SETTLED[1]:,} {1e3 * early:.3f} ms: {late / early:.3f} times as much; {ALLOWED} is allowed"
        )
    else:
        print(f"  too short to be judged: {SETTLED[1] + LAST:,} steps are needed")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(out, indent=1))
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())
