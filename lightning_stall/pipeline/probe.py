"""What loader workers are doing: a probe that runs in each of them and writes into shared memory.

A probe reads clocks and states of generators. It draws nothing, changes no sample and leaves the loader as it was: it
rides on `worker_init_fn` for the moment in which the workers start.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import shutil
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data._utils import fetch as torch_fetch

from lightning_stall.measure.pipeline import cpu_time
from lightning_stall.pipeline.randomness import SAMPLES, content, fingerprint, generators, moves
from lightning_stall.pipeline.stacks import EVERY, LOOKS, PARTS, Looks, PartCodes, StackSampler
from lightning_stall.remedies import swap

BATCHES = 8  # batches a worker makes whose generator states are noted
LINE = 160  # bytes for the line of code a worker spends most time in
IDLE = 0.05  # seconds between two looks at whether samples are wanted
STACK_SIGNAL = getattr(signal, "SIGUSR2", None)

SECONDS, CPU, QUEUED, COUNT, STACKS = range(5)  # columns of `Board.made`


@dataclass(frozen=True)
class Making:
    """How workers make a batch, on the mean."""

    seconds: float
    computing: float  # share of it in which it computes or could; the rest waits for a disk or a network
    queued: float  # share of what it computes or could in which no core was free


@dataclass
class Board:
    """Shared memory that the workers of one iterator write to, one row a worker."""

    made: Tensor  # (W, 5) float64, the columns above: of all fetches, and whether stacks can be asked for
    looks: Tensor  # (W, 3) int64: samples by part
    line: Tensor  # (W, LINE) uint8
    states: Tensor  # (W, BATCHES + 1, G) int64: fingerprints at the start and after each batch
    wanted: Tensor  # (1,) uint8: whether samples are wanted
    names: list[str]  # of the G generators, the last of them the samples themselves
    folder: str  # for stacks
    judged: bool = False  # whether its states have been compared

    @classmethod
    def make(cls, workers: int, names: list[str], folder: str) -> Board:
        def shared(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype).share_memory_()

        return cls(
            made=shared(workers, 5, dtype=torch.float64),
            looks=shared(workers, len(PARTS), dtype=torch.int64),
            line=shared(workers, LINE, dtype=torch.uint8),
            states=shared(workers, BATCHES + 1, len(names), dtype=torch.int64),
            wanted=shared(1, dtype=torch.uint8),
            names=names,
            folder=folder,
        )

    def making(self) -> Making | None:
        """What the workers need for a batch; None before the first."""
        seconds, cpu, queued, count = (float(self.made[:, column].sum()) for column in (SECONDS, CPU, QUEUED, COUNT))
        if not count or seconds <= 0:
            return None
        return Making(seconds / count, min(1.0, (cpu + queued) / seconds), queued / max(cpu + queued, 1e-9))

    def seen(self) -> Looks:
        """What the samples of all workers say."""
        looks = Looks()
        looks.parts.update({part: int(n) for part, n in zip(PARTS, self.looks.sum(0).tolist(), strict=True) if n})
        for row, count in zip(self.line.tolist(), self.looks.sum(1).tolist(), strict=True):
            text = bytes(row).rstrip(b"\0").decode(errors="replace")
            line, _, share = text.rpartition("|")
            if line:
                looks.lines[line] += int(float(share) * count)
        return looks

    def moves(self) -> dict[str, list[list[int]]]:
        """For each generator the states it went through in each worker, without those it started in."""
        states = self.states.tolist()
        return {name: [moves([at[g] for at in worker]) for worker in states] for g, name in enumerate(self.names)}

    def batches(self) -> int:
        """How many the slowest worker has made."""
        return int(self.made[:, COUNT].min())

    def stack_file(self, worker: int) -> Path:
        return Path(self.folder) / f"worker-{id(self)}-{worker}.txt"


class WorkerProbe:
    """A `worker_init_fn` that calls the user's own first and then watches the worker it runs in."""

    def __init__(self, inner: Callable[[int], Any] | None, board: Board, stack_files: list[str], dataset: Any) -> None:
        self.inner, self.board, self.stack_files = inner, board, stack_files

    def __call__(self, worker_id: int) -> None:
        if self.inner is not None:
            self.inner(worker_id)
        with contextlib.suppress(Exception):  # a worker that cannot be watched must work all the same
            self._install(worker_id)

    def _install(self, worker: int) -> None:
        info = torch.utils.data.get_worker_info()
        board, dataset = self.board, info.dataset if info is not None else None
        held = generators(dataset)
        sources = [held.get(name) for name in board.names if name != SAMPLES]
        made, states = board.made[worker], board.states[worker]
        note(states[0], sources)
        states[0, -1] = 1
        doing = threading.Event()
        first = threading.Event()

        def watched(original: Callable[..., Any]) -> Callable[..., Any]:
            def fetch(fetcher: Any, index: Any) -> Any:
                if not first.is_set():
                    first.set()
                    codes = PartCodes.of(fetcher.dataset, fetcher.collate_fn)
                    threading.Thread(target=sample, args=(board, worker, codes, doing, main), daemon=True).start()
                began, before = time.perf_counter(), cpu_time()
                doing.set()
                try:
                    batch = original(fetcher, index)
                finally:
                    doing.clear()
                    made[SECONDS] += time.perf_counter() - began
                    after = cpu_time()
                    if before is not None and after is not None:
                        made[CPU] += after.running - before.running
                        made[QUEUED] += after.queued - before.queued
                    made[COUNT] += 1
                count = int(made[COUNT])
                if count <= BATCHES:
                    with contextlib.suppress(Exception):  # a batch of a kind that has no bytes
                        note(states[count], sources)
                        states[count, -1] = content(batch)
                return batch

            return fetch

        main = threading.get_ident()
        for kind in (torch_fetch._MapDatasetFetcher, torch_fetch._IterableDatasetFetcher):
            kind.fetch = watched(kind.fetch)  # type: ignore[method-assign]
        if STACK_SIGNAL is not None and signal.getsignal(STACK_SIGNAL) == signal.SIG_DFL:
            faulthandler.register(STACK_SIGNAL, file=open(self.stack_files[worker], "w"), all_threads=False)  # noqa: SIM115
            made[STACKS] = 1


def note(row: Tensor, sources: list[Any]) -> None:
    """Write down the states of these generators."""
    for i, source in enumerate(sources):
        row[i] = fingerprint(source) if source is not None else 0


def sample(board: Board, worker: int, codes: PartCodes, doing: threading.Event, thread_id: int) -> None:
    """In a worker: look at its main thread while samples are wanted and a batch is being made."""
    sampler = StackSampler(codes, doing.is_set, thread_id)
    while sampler.looks.count < LOOKS:
        if not int(board.wanted[0]):
            time.sleep(IDLE)
            continue
        time.sleep(EVERY)
        if doing.is_set():
            sampler.look()
            for i, part in enumerate(PARTS):
                board.looks[worker, i] = sampler.looks.parts[part]
            line, times = sampler.looks.lines.most_common(1)[0] if sampler.looks.lines else ("", 0)
            text = f"{line[: LINE - 12]}|{times / max(sampler.looks.count, 1):.3f}".encode()[:LINE]
            board.line[worker, : len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)


def _own_part(stack: str) -> str:
    """A worker's stack down to where it began to work; further out stands the process it was forked from."""
    lines: list[str] = []
    for line in stack.strip().splitlines():
        if line.endswith("in _worker_loop"):
            break
        lines.append(line)
    return "\n".join(lines)


class LoaderWatch:
    """Puts a probe into the workers of every loader it watches, each time they start."""

    def __init__(self) -> None:
        self.boards: dict[int, Board] = {}  # id of a loader -> what its present workers write
        self.quiet = False  # whether PyTorch's warning of more workers than cores is kept back: they are being tried
        self.started: float = 0.0  # seconds spent on starting workers since it was last asked
        self._undo: dict[int, Callable[[], None]] = {}
        self._folder: str | None = None

    def watch(self, loader: Any) -> Any:
        """Watch this loader's next iterators; returns the loader."""
        if isinstance(loader, DataLoader) and id(loader) not in self._undo and hasattr(loader, "_get_iterator"):
            self._undo[id(loader)] = swap(loader, "_get_iterator", lambda start: lambda: self._start(loader, start))
        return loader

    def _start(self, loader: Any, start: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        inner = loader.worker_init_fn
        if loader.num_workers > 0:
            with contextlib.suppress(Exception):  # no shared memory left, no room for stacks: then unwatched
                loader.worker_init_fn = self._probe(loader, inner)
        try:
            with warnings.catch_warnings():
                if self.quiet:
                    warnings.filterwarnings("ignore", "This DataLoader will create .* worker processes")
                return start()
        finally:
            loader.worker_init_fn = inner
            self.started += time.perf_counter() - began

    def _probe(self, loader: Any, inner: Any) -> WorkerProbe:
        if self._folder is None:
            self._folder = tempfile.mkdtemp(prefix="lightning-stall-")
        board = Board.make(loader.num_workers, [*generators(loader.dataset), SAMPLES], self._folder)
        self.boards[id(loader)] = board
        files = [str(board.stack_file(w)) for w in range(loader.num_workers)]
        return WorkerProbe(inner, board, files, loader.dataset)

    def board(self, loader: Any) -> Board | None:
        return self.boards.get(id(loader))

    def stack_of(self, loader: Any, worker: int, pid: int) -> str:
        """The stack of a worker, innermost line first; "" where it cannot be asked. Takes up to half a second."""
        board = self.board(loader)
        if board is None or STACK_SIGNAL is None or not bool(board.made[worker, STACKS]):
            return ""
        path = board.stack_file(worker)
        before = path.stat().st_size if path.exists() else 0
        os.kill(pid, STACK_SIGNAL)
        for _ in range(25):
            time.sleep(0.02)
            if path.exists() and path.stat().st_size > before:
                time.sleep(0.02)  # a stack is written line by line
                return _own_part(path.read_text()[before:])
        return ""

    def release(self) -> None:
        """Leave the loaders as they were and remove the files; workers that run on keep what they have."""
        for undo in self._undo.values():
            undo()
        self._undo.clear()
        self.boards.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
