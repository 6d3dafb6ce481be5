"""What is said about a pipeline: a summary with its numbers, and what to change, in code that can be pasted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_stall.finding import Severity
from lightning_stall.pipeline.clock import Window
from lightning_stall.pipeline.loaders import Loader, ms, plural
from lightning_stall.pipeline.randomness import SAMPLES, Alike
from lightning_stall.pipeline.verdict import CROWDED, FLOOR, Crowd, Verdict


@dataclass(frozen=True)
class Saying:
    """One thing to be told, as `StallCallback.tell` takes it."""

    code: str
    summary: str
    advice: str = ""
    severity: Severity = "warning"
    evidence: Mapping[str, float] = field(default_factory=dict)
    where: Sequence[str] = ()


@dataclass(frozen=True)
class Starved:
    """What is known when a loader is found too slow; seconds a batch."""

    wait: float
    busy: float  # everything of a step but the wait
    making: float  # what one process needs to make a batch
    cpu: float  # share of the wait in which this process was computing (0 workers) or its workers were
    cores: int  # for this process
    accelerator: bool
    part: str = ""  # "fetch", "transform", "collate" or "" where it was not seen
    line: str = ""  # the line of code most of the time is spent in


def workers_wanted(loader: Loader, case: Starved) -> int:
    """How many workers hide the wait behind the step, as far as cores and prudence go."""
    enough = math.ceil(case.making / max(case.busy, 1e-4))
    # work on the cores cannot be spread over more of them than there are; waiting for a disk can
    most = case.cores if case.cpu > 0.5 else 4 * case.cores
    return max(1, min(enough, most, 32))


def expected_step(loader: Loader, case: Starved, workers: int) -> float:
    """Seconds a step would take with so many workers, if they do not get into each other's way."""
    return max(case.busy, case.making / workers)


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
            f"The slow part is reading a sample, and it waits more than it computes.{where} Use fewer and larger "
            "files, a local disk, or keep samples in memory."
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


def starved(seen: Window, verdict: Verdict, loader: Loader, case: Starved, waits: Sequence[float]) -> Saying:
    """Steps that wait for batches, with the number that would pass.

    Args:
        waits: seconds a batch on each rank; empty for one process.
    """
    fine = max(case.busy * verdict.threshold / (1 - verdict.threshold), FLOOR)
    part = f" Most of it is {case.part}{f', at {case.line}' if case.line else ''}." if case.part else ""
    return Saying(
        "data-starvation",
        f"Training waits {ms(seen.wait)} for each batch, {seen.share:.0%} of a step of {ms(seen.step)} (mean of "
        f"{seen.batches} batches without the first of each epoch; {ms(verdict.lost)} lost so far). "
        f"{ms(fine)}, a share of {verdict.threshold:.0%}, would pass.{part}{_by_rank(waits)} The {loader.name} has "
        f"{loader.settings()}; {plural(case.cores, 'core')} usable.",
        advice=advice(loader, case),
        evidence={
            "fetch_seconds": seen.wait,
            "wait_share": seen.share,
            "step_seconds": seen.step,
            "lost_seconds": verdict.lost,
            "threshold": verdict.threshold,
            "cores": float(case.cores),
            "num_workers": float(loader.workers),
        },
        where=[f"{loader.name}, {case.part}" if case.part else loader.name],
    )


def tuned(seen: Window, loader: Loader) -> Saying:
    """How it stands after, or while, settings are tried."""
    return Saying(
        "data-starvation",
        f"Training now waits {ms(seen.wait)} for each batch, {seen.share:.0%} of a step of {ms(seen.step)}. The "
        f"{loader.name} has {loader.settings()}.",
        advice=f"Write them into your script, so that they hold from the first epoch on:\n\n"
        f"    DataLoader(..., {loader.settings()})\n",
        evidence={"fetch_seconds": seen.wait, "wait_share": seen.share, "step_seconds": seen.step},
        where=[loader.name],
    )


def slow_starts(verdict: Verdict, loader: Loader, cores: int) -> Saying:
    """Epochs whose start, not whose batches, loses the time."""
    starts, steady = verdict.starts[1:], verdict.steady[1:]
    mean, share = sum(starts) / len(starts), sum(starts) / (sum(starts) + sum(steady))
    crowded = loader.workers > cores
    if loader.workers and not loader.persistent:
        fewer = f"num_workers={max(1, cores)}, " if crowded else f"num_workers={loader.workers}, "
        change = f"Keep the workers from epoch to epoch:\n\n    DataLoader(..., {fewer}persistent_workers=True)\n"
    else:
        change = "Make the first batch cheaper: what the dataset opens or reads when it is first asked, keep."
    return Saying(
        "too-many-workers" if crowded else "data-starvation",
        f"Each epoch waits {ms(mean)} before its first batch, {share:.0%} of its time (mean of {len(starts)} epochs, "
        f"the first left out); {verdict.threshold:.0%} would pass. The {loader.name} has {loader.settings()}; "
        f"{plural(cores, 'core')} usable.",
        advice=change,
        evidence={
            "epoch_start_seconds": mean,
            "epoch_start_share": share,
            "lost_seconds": sum(starts),
            "num_workers": float(loader.workers),
            "cores": float(cores),
        },
        where=[f"{loader.name}, epoch start"],
    )


def crowded(seen: Crowd, loader: Loader, processes: int) -> Saying:
    """More workers than cores, and that it hurts."""
    each = max(1, seen.cores // processes - 1)
    others = f" in each of {processes} processes" if processes > 1 else ""
    return Saying(
        "too-many-workers",
        f"{plural(seen.workers, 'loader worker')} share {plural(seen.cores, 'usable core')} with the training, and "
        f"stand in line for {seen.queued:.0%} of the time in which they could compute; under {CROWDED:.0%} would pass. "
        f"Making a batch is {seen.computing:.0%} computing, which more workers than cores do not speed up. "
        f"The {loader.name} has {loader.settings()}.",
        advice=f"Use no more workers than cores, less one for the training{others}:\n\n"
        f"    DataLoader(..., num_workers={each}, persistent_workers=True)\n",
        evidence={
            "workers": float(seen.workers),
            "cores": float(seen.cores),
            "queued_share": seen.queued,
            "computing_share": seen.computing,
        },
        where=[loader.name],
    )


def scarce_memory(left: tuple[float, float], taken: float, workers: int) -> Saying:
    """Hardly any memory left, and workers that hold much."""
    share = left[0] / left[1]
    return Saying(
        "too-many-workers",
        f"{share:.1%} of the machine's memory is left ({left[0] / 2**30:.2g} GiB), and "
        f"{plural(workers, 'loader worker')} hold {taken / 2**30:.2g} GiB of their own; 5% left would pass. When it is "
        "used up the system kills a worker.",
        evidence={"memory_left": share, "workers_gib": taken / 2**30, "workers": float(workers)},
    )


def dead_worker(error: Exception, iterators: Sequence[Any]) -> Saying | None:
    """A worker that died, from the error that ended the fit and what is left of the workers; None if none did.

    PyTorch's own error says so mostly; a worker that died while it handed over a batch shows as a broken connection.
    """
    dead = [
        f"worker {i} (pid {w.pid}, exit code {w.exitcode})"
        for iterator in iterators
        for i, w in enumerate(iterator._workers)
        if w.exitcode
    ]
    if not dead and ("DataLoader worker" not in str(error) or str(error).startswith("Caught ")):
        return None  # an exception of the dataset, which a worker handed on, is no death
    killed = any("exit code -9" in text for text in dead) or "Killed" in str(error)
    said = (str(error) or repr(error)).splitlines()[0]
    why = " The system kills with this signal when memory runs out." if killed else ""
    return Saying(
        "dataloader-hang",
        f"No batch arrives any more: {' and '.join(dead) or 'a loader worker'} died. {said}{why}",
        advice="Look for a worker that runs out of memory: fewer workers, a smaller `prefetch_factor`, and the dataset "
        "in one array instead of a list of objects. Find a crash in C code in the training process:\n\n"
        "    DataLoader(..., num_workers=0)\n",
        severity="critical",
        evidence={"dead_workers": float(max(1, len(dead)))},
        where=dead,
    )


def timed_out(error: Exception) -> Saying | None:
    """The loader's own `timeout` ended the fit: a worker gave no batch for that long; None for any other error."""
    said = str(error).splitlines()[0] if str(error) else ""
    if not said.startswith("DataLoader timed out"):
        return None
    return Saying(
        "dataloader-hang",
        f"No batch came within the loader's own `timeout`, which ended the run: {said}",
        advice="A worker waits for something, such as a lock, a file or a server. To see for what, take the timeout out; "
        "its stack is then told after `hang_timeout` seconds:\n\n"
        "    DataLoader(..., timeout=0)\n    DataStarvationMonitor(hang_timeout=30)",
        severity="critical",
        where=["train_dataloader"],
    )


def alike(loader: Loader, found: Alike) -> Saying:
    """Workers that draw the same numbers."""
    name = found.name
    if name == SAMPLES:
        return Saying(
            "duplicate-randomness",
            f"Workers {found.one} and {found.other} of the {loader.name} gave the same samples in {found.common} of "
            f"{found.batches} batches: each has a copy of the iterable dataset and goes through all of it; workers that "
            "share the work have none in common.",
            advice="Let each worker draw, or read, its own part:\n\n"
            "    info = torch.utils.data.get_worker_info()  # in __iter__\n"
            "    rng = np.random.default_rng(info.seed)  # differs from worker to worker and from epoch to epoch\n"
            "    items = itertools.islice(items, info.id, None, info.num_workers)  # for a stream that is read\n",
            evidence={
                "common_states": float(found.common),
                "batches": float(found.batches),
                "num_workers": float(loader.workers),
            },
            where=[name],
        )
    held = name not in ("random", "numpy.random", "torch")
    advice = ""
    if held:
        attribute = name.partition(".")[2] or "rng"
        advice = (
            "Make the generator inside the worker, from the seed PyTorch gives to it:\n\n"
            "    def seed_worker(worker_id):\n        info = torch.utils.data.get_worker_info()\n"
            f"        info.dataset.{attribute} = np.random.default_rng(info.seed)\n\n"
            f"    DataLoader(..., num_workers={loader.workers}, worker_init_fn=seed_worker)\n"
        )
    return Saying(
        "duplicate-randomness",
        f"Workers {found.one} and {found.other} of the {loader.name} drew the same numbers from `{name}`: after "
        f"{found.common} of {found.batches} batches it was in the same state in both; workers seeded apart have no "
        f"state in common.{' New workers draw them again each epoch.' if found.again else ''}",
        advice=advice,
        evidence={
            "common_states": float(found.common),
            "batches": float(found.batches),
            "num_workers": float(loader.workers),
        },
        where=[name],
    )


def _by_rank(waits: Sequence[float]) -> str:
    """The wait on each rank where they differ: one rank's loader holds up all."""
    if len(waits) < 2 or max(waits) < 2 * min(waits) or max(waits) < FLOOR:
        return ""
    worst, least = max(range(len(waits)), key=lambda r: waits[r]), min(waits)
    return f" Rank {worst} waits longest, {ms(waits[worst])}; rank {list(waits).index(least)} waits {ms(least)}."
