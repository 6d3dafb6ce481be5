"""The training loaders as Lightning runs them: their settings, and what to change in them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, IterableDataset


@dataclass(frozen=True)
class Loader:
    """One loader of the training; `name` is how a user knows it."""

    name: str
    it: Any

    @property
    def is_loader(self) -> bool:
        """Whether it is PyTorch's DataLoader: a list or a generator has nothing to set."""
        return isinstance(self.it, DataLoader)

    @property
    def iterable(self) -> bool:
        return self.is_loader and isinstance(self.it.dataset, IterableDataset)

    @property
    def workers(self) -> int:
        return int(self.it.num_workers) if self.is_loader else 0

    def settings(self) -> str:
        """The settings that decide how fast it is, as a person would write them."""
        if not self.is_loader:
            return f"a {type(self.it).__name__}, which prepares batches in the training process"
        it = self.it
        parts = [f"batch_size={it.batch_size}", f"num_workers={it.num_workers}"]
        if it.num_workers:
            parts += [f"prefetch_factor={it.prefetch_factor}", f"persistent_workers={it.persistent_workers}"]
        return ", ".join([*parts, f"pin_memory={it.pin_memory}"])

    def iterators(self, trainer: Any) -> list[Any]:
        """Its live iterator with workers, if it has one."""
        return [i for i in live_iterators(trainer) if getattr(i, "_dataset", None) is getattr(self.it, "dataset", self)]


def train_loaders(trainer: Any) -> list[Loader]:
    """The loaders of the running fit, after Lightning has put its samplers in."""
    combined = trainer.fit_loop._combined_loader
    leaves = list(combined.flattened) if combined is not None else []
    if len(leaves) == 1:
        return [Loader("training loader", leaves[0])]
    return [Loader(f"training loader {i}", leaf) for i, leaf in enumerate(leaves)]


def live_iterators(trainer: Any) -> list[Any]:
    """The iterators that run worker processes now, in the order of the loaders."""
    combined = trainer.fit_loop._combined_loader
    modes = getattr(combined, "_iterator", None)
    found = list(getattr(modes, "iterators", []))
    if combined is not None:
        found += [getattr(leaf, "_iterator", None) for leaf in combined.flattened]
    alive = [i for i in found if getattr(i, "_workers", None) and not getattr(i, "_shutdown", False)]
    return list({id(i): i for i in alive}.values())


@dataclass(frozen=True)
class Starved:
    """What is known when a loader is found too slow; seconds a batch."""

    wait: float
    busy: float  # everything of a step but the wait
    cpu: float  # share of the wait in which this process was computing (0 workers) or its workers were
    cores: int  # for this process
    accelerator: bool
    part: str = ""  # "fetch", "transform", "collate" or "" where it was not seen
    line: str = ""  # the line of code most of the time is spent in


def workers_wanted(loader: Loader, case: Starved) -> int:
    """How many workers hide the wait behind the step, as far as cores and prudence go."""
    making = case.wait if not loader.workers else (case.wait + case.busy) * loader.workers  # seconds of work a batch
    enough = math.ceil(making / max(case.busy, 1e-4))
    # work on the cores cannot be spread over more of them than there are; waiting for a disk can
    most = case.cores if case.cpu > 0.5 else 4 * case.cores
    return max(1, min(enough, most, 32))


def expected_step(loader: Loader, case: Starved, workers: int) -> float:
    """Seconds a step would take with so many workers, if they do not get into each other's way."""
    making = case.wait if not loader.workers else (case.wait + case.busy) * loader.workers
    return max(case.busy, making / workers)


def advice(loader: Loader, case: Starved) -> str:
    """What to change in this loader, in code that can be pasted."""
    if not loader.is_loader:
        return (
            f"The {loader.name} is {loader.settings()}. Wrap its data in a `DataLoader` with workers, which prepare "
            f"batches beside the step:\n\n{_code('dataset', loader, max(1, case.cores - 1), case)}"
        )
    if loader.iterable and not loader.workers:
        return (
            "Let workers read beside the step. Each worker runs the whole `IterableDataset`, so give each its share:"
            "\n\n    def __iter__(self):\n        info = torch.utils.data.get_worker_info()\n"
            "        first, step = (info.id, info.num_workers) if info else (0, 1)\n"
            "        yield from itertools.islice(self.samples(), first, None, step)\n\n"
            + _code("dataset", loader, max(1, case.cores - 1), case)
        )
    wanted = workers_wanted(loader, case)
    texts = []
    if wanted > loader.workers and (loader.workers or case.cores > 1 or case.cpu <= 0.5):
        expected = expected_step(loader, case, wanted)
        texts.append(
            f"Prepare batches beside the step: {wanted} worker{'s' * (wanted > 1)} instead of {loader.workers} "
            f"({case.cores} core{'s' * (case.cores > 1)} usable here). A step would then take about {ms(expected)} "
            f"instead of {ms(case.wait + case.busy)}:\n\n{_code('dataset', loader, wanted, case)}"
        )
    else:
        texts.append(
            f"More workers will not help: {loader.workers} of them for {case.cores} usable "
            f"core{'s' * (case.cores > 1)}, and the time goes into computing. Make a sample cheaper: "
            "decode and resize once, beforehand, or transform whole batches on the device, in "
            "`on_after_batch_transfer`."
        )
    texts.append(_advice_on_part(case))
    return "\n".join(t for t in texts if t)


def _advice_on_part(case: Starved) -> str:
    where = f" Most of it is spent at {case.line}." if case.line else ""
    if case.part == "collate":
        return f"The slow part is `collate_fn`.{where} Return tensors or arrays, not lists of Python numbers."
    if case.part == "transform":
        return f"The slow part is the transform.{where} Do what is the same each time once, beforehand."
    if case.part == "fetch" and case.cpu <= 0.5:
        return (
            f"The slow part is reading a sample, and it waits more than it computes.{where} Use fewer and larger files, "
            "a local disk, or keep samples in memory."
        )
    if case.part == "fetch":
        return f"The slow part is `__getitem__`.{where}"
    return ""


def _code(dataset: str, loader: Loader, workers: int, case: Starved) -> str:
    size = getattr(loader.it, "batch_size", None)
    arguments = [dataset]
    if size is not None:
        arguments.append(f"batch_size={size}")
    arguments += [f"num_workers={workers}", "persistent_workers=True", "prefetch_factor=4"]
    if case.accelerator:
        arguments.append("pin_memory=True")
    return f"    DataLoader({', '.join(arguments)})\n"


def ms(seconds: float) -> str:
    """A duration as a person reads it: "4.2 ms", "310 ms", "2.5 s"."""
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms"
