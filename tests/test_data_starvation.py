"""Steps that wait for data: how long, in which part, what helps; and pipelines about which there is nothing to say."""

from __future__ import annotations

import json
import os
import pickle
import random
import socket
import subprocess
import sys
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate, get_worker_info

from lightning_stall import DataStarvationMonitor, StallReport
from lightning_stall.errors import MisconfigurationException
from lightning_stall.finding import Finding
from lightning_stall.measure.pipeline import cpu_quota, usable_cores
from lightning_stall.pipeline.clock import PHASES, Window
from lightning_stall.pipeline.device import DeviceGaps
from lightning_stall.pipeline.loaders import Loader
from lightning_stall.pipeline.randomness import AlikeWatch, fingerprint, generators, moves
from lightning_stall.pipeline.sayings import Starved, advice, timed_out
from lightning_stall.pipeline.tuner import Setting, Tuner
from lightning_stall.pipeline.verdict import Crowd, Verdict
from lightning_stall.sinks import StallWarning
from lightning_stall.testing import Classifier, mlp

pytestmark = pytest.mark.alone
MakeTrainer = Callable[..., Trainer]


class Slow(Dataset[tuple[Tensor, Tensor]]):
    """`count` samples, each of which takes `seconds`, in `transform` where there is one."""

    def __init__(self, seconds: float, count: int = 96, transform: Any = None) -> None:
        self.seconds, self.count, self.transform = seconds, count, transform

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        x = torch.full((4,), float(i))
        if self.transform is not None:
            return self.transform(x), x[:1]
        if self.seconds:
            time.sleep(self.seconds)
        return x, x[:1]


class SlowTransform:
    def __call__(self, x: Tensor) -> Tensor:
        time.sleep(0.008)
        return x


def slow_collate(samples: list[Any]) -> Any:
    time.sleep(0.02)
    return default_collate(samples)


class Net(LightningModule):
    """A step of about `seconds`."""

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__()
        self.layer, self.seconds = nn.Linear(4, 1), seconds

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.seconds:
            time.sleep(self.seconds)
        return (self.layer(batch[0]) - batch[1]).square().mean() / 1e4

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        time.sleep(0.02)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-6)


def fit(trainer: Trainer, *data: Any, step: float = 0.0) -> None:
    """Fit, and let the monitor speak without a test failing for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StallWarning)
        trainer.fit(Net(step), *data)


def said(monitor: DataStarvationMonitor, code: str | None = None) -> list[Finding]:
    return [f for f in monitor.hub.journal.findings if code is None or f.code == code]


class Windows(Callback):
    """Everything that the monitor measured, check by check, beside the true fetches."""

    def __init__(self, monitor: DataStarvationMonitor) -> None:
        self.monitor, self.seen = monitor, Window()

    def on_train_batch_end(self, *args: Any) -> None:
        last = self.monitor.run.last
        if last is not getattr(self, "last", None):
            self.last = last
            self.seen.add(last)


# ---------------------------------------------------------------------- the wait is measured


class Timed(DataLoader[Any]):
    """Times its own `next`, as the truth of this very run: a busy machine sleeps longer than it was told to."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.truth: list[float] = []

    def __iter__(self) -> Any:
        batches = super().__iter__()
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            self.truth.append(time.perf_counter() - began)
            yield batch


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("planted", [0.005, 0.02, 0.05])
def test_the_wait_is_what_was_planted(make_trainer: MakeTrainer, planted: float, workers: int) -> None:
    """With validation between the steps and another callback that sleeps, neither of which is a wait for data."""
    monitor = DataStarvationMonitor(every_n_steps=1)
    windows = Windows(monitor)

    class Sleeps(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            time.sleep(0.004)

    count, step = 24, 0.01  # two workers make a batch each in the time of two steps and two waits
    data = Slow(planted if workers == 0 else 2 * (planted + step + 0.005), count)
    loader = Timed(data, batch_size=1, num_workers=workers)
    trainer = make_trainer([monitor, windows, Sleeps()], val_check_interval=12, num_sanity_val_steps=0)
    fit(trainer, loader, DataLoader(Slow(0.0, 4), batch_size=4), step=step)
    steady = loader.truth[1 : 1 + windows.seen.batches]
    assert windows.seen.batches >= count - 3
    assert sum(windows.seen.fetches) == pytest.approx(sum(steady), rel=0.05, abs=0.0005 * len(steady))
    assert windows.seen.wait >= 0.95 * planted or workers  # beside a step that takes longer, workers make good
    assert windows.seen.spent["rest"] / windows.seen.batches > 0.004
    assert windows.seen.spent["forward"] / windows.seen.batches > step


def test_phases_add_up_to_the_time_of_the_loop(make_trainer: MakeTrainer) -> None:
    monitor = DataStarvationMonitor(every_n_steps=1)
    windows = Windows(monitor)
    times: list[float] = []

    class Stamp(Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            times.append(time.perf_counter())

    fit(make_trainer([monitor, windows, Stamp()]), DataLoader(Slow(0.002), batch_size=4), step=0.003)
    assert windows.seen.total == pytest.approx(times[-2] - times[0], rel=0.1)


@pytest.mark.parametrize("kind", ["accumulated", "stream", "by hand"])
def test_other_loops_are_measured_as_well(make_trainer: MakeTrainer, kind: str) -> None:
    monitor = DataStarvationMonitor(every_n_steps=1)
    windows = Windows(monitor)

    class Stream(IterableDataset[tuple[Tensor, Tensor]]):
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return (Slow(0.005)[i] for i in range(60))

    class ByHand(Net):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
            loss = super().training_step(batch, batch_idx)
            self.optimizers().zero_grad()  # type: ignore[union-attr]
            self.manual_backward(loss)
            self.optimizers().step()  # type: ignore[union-attr]

    data = Stream() if kind == "stream" else Slow(0.005, 60)
    extra = {"accumulate_grad_batches": 3} if kind == "accumulated" else {}
    trainer = make_trainer([monitor, windows], **extra)
    loader = Timed(data, batch_size=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StallWarning)
        trainer.fit(ByHand() if kind == "by hand" else Net(), loader)
    assert windows.seen.batches >= 11
    # a stream without a length is read one batch ahead
    steady = loader.truth[2 if kind == "stream" else 1 :][: windows.seen.batches]
    assert windows.seen.wait == pytest.approx(sum(steady) / len(steady), rel=0.15, abs=0.001)
    assert windows.seen.wait > 0.015
    for phase in ("backward", "optimizer", "forward"):
        assert windows.seen.spent[phase] > 0


def test_epoch_starts_are_counted_apart(make_trainer: MakeTrainer) -> None:
    monitor = DataStarvationMonitor(every_n_steps=1)
    windows = Windows(monitor)

    class SlowToOpen(Slow):
        opened = False

        def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
            if not self.opened:
                time.sleep(0.4)
                self.opened = True
            return super().__getitem__(i)

    loader = DataLoader(SlowToOpen(0.0, 40), batch_size=4, num_workers=1)
    fit(make_trainer([monitor, windows], max_epochs=2), loader)
    assert monitor.run.epoch_start > 0.2
    assert max(windows.seen.fetches) < 0.2


def test_what_is_logged(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    trainer = make_trainer([DataStarvationMonitor()], logger=logger, log_every_n_steps=10)
    fit(trainer, DataLoader(Slow(0.001), batch_size=4))
    header = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()[0]
    for tag in ("stall/data/fetch_seconds", "stall/data/wait_share", *(f"stall/step/{p}_seconds" for p in PHASES)):
        assert tag in header


# ---------------------------------------------------------------------- starvation is told, with its part


def starve(make_trainer: MakeTrainer, loader: DataLoader[Any], **settings: Any) -> Finding:
    monitor = DataStarvationMonitor()
    fit(make_trainer([monitor], **{"max_epochs": 2, **settings}), loader, step=0.004)
    found = said(monitor, "data-starvation")
    assert found, monitor.run.verdict
    assert found[0].severity == "warning"
    return found[0]


def test_a_slow_store_is_named_with_its_line_and_what_workers_would_give(make_trainer: MakeTrainer) -> None:
    finding = starve(make_trainer, DataLoader(Slow(0.005, 160), batch_size=4))
    assert finding.where == ("training loader, fetch",)
    assert "in __getitem__" in finding.summary
    assert finding.evidence["fetch_seconds"] >= 0.02
    assert finding.evidence["wait_share"] > 0.5
    assert "num_workers=" in finding.advice
    assert "persistent_workers=True" in finding.advice


def test_a_slow_transform_is_named(make_trainer: MakeTrainer) -> None:
    finding = starve(make_trainer, DataLoader(Slow(0.0, 160, SlowTransform()), batch_size=4))
    assert finding.where == ("training loader, transform",)
    assert "in __call__" in finding.summary


def test_a_slow_collate_is_named_in_workers_too(make_trainer: MakeTrainer) -> None:
    for workers in (0, 1):
        loader = DataLoader(Slow(0.0, 240), batch_size=4, collate_fn=slow_collate, num_workers=workers)
        finding = starve(make_trainer, loader)
        assert finding.where == ("training loader, collate",), workers
        assert "in slow_collate" in finding.summary


def test_an_iterable_dataset_is_told_how_to_share_itself_out(make_trainer: MakeTrainer) -> None:
    class Stream(IterableDataset[tuple[Tensor, Tensor]]):
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return (Slow(0.005)[i] for i in range(240))

    assert "get_worker_info" in starve(make_trainer, DataLoader(Stream(), batch_size=4)).advice


# ---------------------------------------------------------------------- and nothing is told of the well


def gentle_collate(samples: list[Any]) -> Any:
    return default_collate(samples)


@pytest.mark.parametrize("kind", ["in memory", "python collate", "workers that keep up", "short epochs"])
def test_healthy_pipelines_draw_no_word(make_trainer: MakeTrainer, kind: str) -> None:
    memory = TensorDataset(torch.randn(1600, 4), torch.randn(1600, 1))
    settings: dict[str, Any] = {"max_epochs": 2}
    step = 0.001
    if kind == "in memory":
        loader: DataLoader[Any] = DataLoader(memory, batch_size=32, shuffle=True)
    elif kind == "python collate":
        loader = DataLoader(memory, batch_size=32, shuffle=True, collate_fn=gentle_collate)
    elif kind == "workers that keep up":
        loader, step = DataLoader(Slow(0.002, 320), batch_size=4, num_workers=2), 0.02
    else:
        loader, settings = DataLoader(memory, batch_size=400, num_workers=1), {"max_epochs": 8}
    monitor = DataStarvationMonitor()
    make_trainer([monitor], **settings).fit(Net(step), loader)  # a StallWarning would fail the test
    assert not monitor.failed
    assert not [f for f in monitor.hub.journal.findings if f.speaks]


# ---------------------------------------------------------------------- verdicts, as tables


def window(wait: float, busy: float, n: int = 20) -> Window:
    made = Window(fetches=[wait] * n)
    made.spent["fetch"], made.spent["forward"] = wait * n, busy * n
    return made


@pytest.mark.parametrize(
    ("wait", "busy", "held_up", "idle", "starved"),
    [
        (0.02, 0.01, 0.0, None, True),
        (0.001, 0.0005, 0.0, None, False),  # a share of two thirds, of nothing
        (0.02, 0.2, 0.0, None, False),
        (0.004, 0.004, 0.7, None, False),  # other programs had the cores
        (0.02, 0.01, 0.0, 0.05, False),  # the accelerator is busy all the while
        (0.02, 0.01, 0.0, 0.5, True),
    ],
)
def test_when_waiting_is_starvation(
    wait: float, busy: float, held_up: float, idle: float | None, starved: bool
) -> None:
    verdict = Verdict(0.3)
    for count in range(4):
        verdict.lost += 1.0
        verdict.update(window(wait, busy), (wait * (1 - held_up), busy), idle, None)
        assert verdict.starved == (starved and count >= 2)
    verdict.update(window(0.0, 0.01), (0.0, 0.01), None, None)
    verdict.update(window(0.0, 0.01), (0.0, 0.01), None, None)
    assert not verdict.starved


def test_one_slow_batch_is_no_starvation() -> None:
    verdict = Verdict(0.3)
    for _ in range(5):
        seen = window(0.0001, 0.01)
        seen.fetches[3] += 1.0
        seen.spent["fetch"] += 1.0
        verdict.lost += 1.0
        verdict.update(seen, (seen.wait, 0.01), None, None)
    assert not verdict.starved


@pytest.mark.parametrize(("computing", "queued", "crowded"), [(1.0, 0.8, True), (0.1, 0.9, False), (1.0, 0.1, False)])
def test_workers_that_wait_for_a_disk_may_outnumber_the_cores(computing: float, queued: float, crowded: bool) -> None:
    verdict = Verdict(0.3)
    for _ in range(3):
        verdict.update(window(0.02, 0.01), (0.02, 0.01), None, Crowd(6, 2, computing, queued))
    assert verdict.crowded == crowded


@pytest.mark.parametrize(("computing", "crowded"), [(1.0, True), (0.1, False)])
def test_four_computing_workers_a_core_crowd_each_other_at_once(computing: float, crowded: bool) -> None:
    verdict = Verdict(0.3)
    verdict.update(window(0.0, 0.01), (0.0, 0.01), None, Crowd(8, 2, computing, 0.0))
    assert verdict.crowded == crowded


def test_advice_follows_the_machine() -> None:
    loader = Loader("training loader", DataLoader(Slow(0.0), batch_size=8))
    bound = Starved(wait=0.03, busy=0.01, making=0.03, cpu=1.0, cores=2, accelerator=True)
    assert "num_workers=2" in advice(loader, bound)
    assert "pin_memory=True" in advice(loader, bound)
    waits = Starved(wait=0.03, busy=0.01, making=0.03, cpu=0.1, cores=2, accelerator=False)
    assert "num_workers=3" in advice(loader, waits)
    assert "pin_memory" not in advice(loader, waits)
    full = Loader("training loader", DataLoader(Slow(0.0), batch_size=8, num_workers=2))
    assert "More workers will not help" in advice(full, bound)
    assert "DataLoader" in advice(Loader("training loader", [1, 2]), bound)


# ---------------------------------------------------------------------- randomness


class Noisy(Slow):
    """Augments with a generator that the dataset holds."""

    def __init__(self, rng: Any, count: int = 64) -> None:
        super().__init__(0.0, count)
        self.rng = rng

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        x, y = super().__getitem__(i)
        return x + float(self.rng.normal()), y


class SeededByIndex(Noisy):
    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        self.rng = np.random.default_rng(i)
        return super().__getitem__(i)


class DrawsOnce(Noisy):
    offset: float | None = None

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        if self.offset is None:
            self.offset = float(self.rng.normal())
        return Slow.__getitem__(self, i)


class GlobalNoise(Slow):
    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        x, y = super().__getitem__(i)
        return x + float(np.random.randn()) + random.random() + torch.randn(4), y


class ShuffledStream(IterableDataset[tuple[Tensor, Tensor]]):
    """Every worker shuffles alike and takes its own share, as it should."""

    def __init__(self) -> None:
        self.rng = random.Random(0)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        info = get_worker_info()
        order = list(range(96))
        self.rng.shuffle(order)
        for i in order[info.id :: info.num_workers]:
            self.rng.random()
            yield Slow(0.0)[i]


class SameStream(ShuffledStream):
    """Every worker makes the same samples up."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (Slow(0.0)[int(self.rng.random() * 96)] for _ in range(48))


def seed_all_alike(worker: int) -> None:
    np.random.seed(0)


@pytest.mark.parametrize(
    ("data", "init", "name"),
    [
        (Noisy(np.random.default_rng(0)), None, "dataset.rng"),
        (GlobalNoise(0.0, 64), seed_all_alike, "numpy.random"),
        (SameStream(), None, "dataset.rng"),
        (GlobalNoise(0.0, 64), None, None),
        (SeededByIndex(np.random.default_rng(0)), None, None),
        (DrawsOnce(np.random.default_rng(0)), None, None),
        (ShuffledStream(), None, None),
        (Slow(0.0, 64), None, None),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, (Dataset, IterableDataset)) else getattr(v, "__name__", str(v)),
)
def test_workers_that_draw_the_same_numbers(make_trainer: MakeTrainer, data: Any, init: Any, name: str | None) -> None:
    monitor = DataStarvationMonitor()
    loader = DataLoader(data, batch_size=8, num_workers=2, worker_init_fn=init)
    fit(make_trainer([monitor], max_epochs=3), loader)
    assert not monitor.failed
    assert [f.where[0] for f in said(monitor, "duplicate-randomness")] == ([name] if name else [])


def test_fingerprints_draw_nothing() -> None:
    held = generators(Noisy(np.random.default_rng(0)))
    assert list(held) == ["random", "numpy.random", "torch", "dataset.rng"]
    marks = {name: fingerprint(g) for name, g in held.items()}
    assert marks == {name: fingerprint(g) for name, g in held.items()}
    held["dataset.rng"].normal()
    torch.rand(1)
    changed = {name for name, g in held.items() if fingerprint(g) != marks[name]}
    assert changed == {"dataset.rng", "torch"}


def test_few_common_states_prove_nothing() -> None:
    watch = AlikeWatch()
    watch.add({"torch": [moves([1, 2, 3, 4, 5]), moves([1, 2, 3, 9, 8])]})
    assert watch.found(same_samples=False) is None
    watch.add({"torch": [moves([1, 2, 3, 4, 5]), moves([1, 2, 3, 4, 5])]})
    assert watch.found(same_samples=False) is not None
    assert watch.found(same_samples=True) is None


@pytest.mark.parametrize("workers", [0, 2])
def test_watching_changes_no_sample(make_trainer: MakeTrainer, workers: int) -> None:
    def batches(callbacks: list[Callback]) -> list[Tensor]:
        seed_everything(3, workers=True, verbose=False)
        seen: list[Tensor] = []

        class Keep(Callback):
            def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, *args: Any) -> None:
                seen.append(batch[0].clone())

        loader = DataLoader(GlobalNoise(0.0, 40), batch_size=4, shuffle=True, num_workers=workers)
        make_trainer([Keep(), *callbacks], max_epochs=2).fit(Net(), loader)
        seen.append(torch.rand(3))
        return seen

    plain, watched = batches([]), batches([DataStarvationMonitor()])
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))


# ---------------------------------------------------------------------- too many workers


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_far_too_many_workers_are_told(make_trainer: MakeTrainer) -> None:
    workers = 4 * usable_cores()

    class Busy(Slow):
        def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
            end = time.thread_time() + 0.004
            while time.thread_time() < end:
                pass
            return super().__getitem__(i)

    monitor = DataStarvationMonitor()
    fit(make_trainer([monitor], max_epochs=2), DataLoader(Busy(0.0, 320), batch_size=4, num_workers=workers))
    (finding,) = said(monitor, "too-many-workers")
    assert finding.evidence["workers"] == workers
    assert not said(monitor, "data-starvation")


# ---------------------------------------------------------------------- the remedy


def test_the_tuner_cuts_the_step(make_trainer: MakeTrainer) -> None:
    monitor = DataStarvationMonitor(auto_remedy=True)
    loader = DataLoader(Slow(0.01, 96), batch_size=2, shuffle=True)
    fit(make_trainer([monitor], max_epochs=8), loader, step=0.004)
    tuner = monitor._tuner
    assert tuner is not None
    assert tuner.best.workers >= 2
    assert loader.num_workers == tuner.present.workers
    assert tuner.seconds[tuner.best] < 0.6 * tuner.seconds[tuner.start]
    remedy = [f.remedy for f in said(monitor) if f.remedy][-1]
    assert "num_workers=0" in remedy
    assert "order" in remedy


def test_the_tuner_goes_back_to_the_best() -> None:
    costs = {0: 10.0, 4: 6.0, 6: 5.0, 8: 5.5, 3: 7.0}
    tuner = Tuner(Setting(0, None, False), wanted=4, most=8, accelerator=True)
    setting: Setting | None = tuner.start
    tried = []
    while setting is not None:
        tried.append(setting)
        setting = tuner.epoch(costs.get(setting.workers, 9.0) + (0.5 if setting.pinned else 0.0))
    assert tuner.done
    assert tuner.best == tried[-1] == Setting(6, None, False)
    assert [s.workers for s in tried[:4]] == [0, 4, 6, 8]
    assert any(s.prefetch for s in tried)
    assert any(s.pinned for s in tried)


def test_the_tuner_leaves_a_stream_alone(make_trainer: MakeTrainer) -> None:
    class Stream(IterableDataset[tuple[Tensor, Tensor]]):
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return (Slow(0.005)[i] for i in range(160))

    monitor = DataStarvationMonitor(auto_remedy=True)
    loader = DataLoader(Stream(), batch_size=4)
    fit(make_trainer([monitor], max_epochs=2), loader)
    assert loader.num_workers == 0
    assert "IterableDataset" in [f.remedy for f in said(monitor) if f.remedy][-1]


# ---------------------------------------------------------------------- small parts


class Event:
    """A device's event, on the clock of this process; passed once `at` has come."""

    now = 0.0

    def record(self) -> None:
        self.at = Event.now

    def query(self) -> bool:
        return True

    def elapsed_time(self, later: Event) -> float:
        return (later.at - self.at) * 1e3


def test_gaps_of_the_device_are_between_batches_only() -> None:
    gaps = DeviceGaps(Event)
    for _ in range(3):
        Event.now += 0.02
        gaps.batch_starts()
        Event.now += 0.03
        gaps.batch_ends()
    gaps.pause()
    Event.now += 10.0
    gaps.batch_starts()
    idle, total, batches = gaps.take()
    assert (idle, total, batches) == (pytest.approx(0.04), pytest.approx(0.1), 2)
    assert DeviceGaps.of(torch.device("cpu")) is None


def test_no_event_outlives_the_run() -> None:
    """One that a garbage collector ends in a worker, a fork in which CUDA cannot be called, would end the worker."""
    gaps, made = DeviceGaps(Event), []
    gaps.new_event = lambda: made.append(weakref.ref(event := Event())) or event  # type: ignore[func-returns-value]
    for _ in range(3):
        gaps.batch_starts()
        gaps.batch_ends()
    assert any(ref() for ref in made)
    gaps.release()
    assert not any(ref() for ref in made)


@pytest.mark.parametrize(
    ("files", "membership", "quota"),
    [
        ({"cpu.max": "150000 100000"}, "0::/", 1.5),
        ({"cpu.max": "max 100000", "job/cpu.max": "50000 100000"}, "0::/job", 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "1:cpu,cpuacct:/", None),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, "1:cpu:/\n4:memory:/x", 3.0),
        ({}, "", None),
    ],
)
def test_the_quota_of_a_container(tmp_path: Path, files: dict[str, str], membership: str, quota: float | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    (tmp_path / "membership").write_text(membership)
    assert cpu_quota(tmp_path, tmp_path / "membership") == quota


@pytest.mark.parametrize(
    "wrong",
    [{"threshold": 0}, {"threshold": 1.5}, {"hang_timeout": 0}, {"hang_action": "stop"}, {"mute": ("nothing",)}],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(MisconfigurationException):
        DataStarvationMonitor(**wrong)


def test_it_pickles_before_and_after_a_fit(make_trainer: MakeTrainer) -> None:
    monitor = DataStarvationMonitor(threshold=0.4)
    assert pickle.loads(pickle.dumps(monitor)).threshold == 0.4
    fit(make_trainer([monitor]), DataLoader(Slow(0.0, 16), batch_size=4))
    assert pickle.loads(pickle.dumps(monitor)).threshold == 0.4


# ---------------------------------------------------------------------- two ranks

PROGRAM = """
import json, os, sys, time, warnings
import torch
from torch.utils.data import DataLoader
torch.set_num_threads(1)
warnings.simplefilter("ignore")
from lightning.pytorch import Trainer
from lightning_stall import DataStarvationMonitor, StallReport
from test_data_starvation import Net, Slow

rank = int(os.environ["LOCAL_RANK"])
monitor = DataStarvationMonitor(auto_remedy=True, every_n_steps=8)
trainer = Trainer(
    accelerator="cpu", devices=2, strategy="ddp", max_epochs=4, callbacks=[monitor], logger=False,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=sys.argv[1],
)
loader = DataLoader(Slow(0.01 if rank == 1 else 0.0, 128), batch_size=4, shuffle=True)
trainer.fit(Net(), loader)
out = {
    "findings": [[f.code, f.summary, list(f.where), f.remedy] for f in monitor.hub.journal.findings],
    "failed": monitor.failed, "workers": trainer.fit_loop._combined_loader.flattened[0].num_workers,
}
with open(os.path.join(sys.argv[1], f"rank{rank}.json"), "w") as f:
    json.dump(out, f)
"""


@pytest.mark.slow
def test_the_starving_rank_is_named_and_all_ranks_are_tuned_alike(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(PROGRAM)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    here = Path(__file__).parent
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "NODE_RANK": "0"}
    shared["PYTHONPATH"] = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    ranks = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / "train.py"), str(tmp_path)], env={**shared, "LOCAL_RANK": str(r)}
        )
        for r in range(2)
    ]
    try:
        assert [p.wait(timeout=120) for p in ranks] == [0, 0]
    finally:
        for p in ranks:
            p.kill()
    first, second = (json.loads((tmp_path / f"rank{r}.json").read_text()) for r in range(2))
    assert first["failed"] is None
    assert first["findings"] == second["findings"]
    code, summary, where, _ = first["findings"][0]
    assert code == "data-starvation"
    assert "Rank 1 waits longest" in summary
    assert where == ["rank 1: training loader, fetch"]
    assert first["workers"] == second["workers"] > 0


class Repeats(IterableDataset[Any]):
    """A stream that seeds itself, so that every worker goes through all of it; or each through its own part."""

    def __init__(self, shared: bool) -> None:
        self.shared = shared

    def __iter__(self) -> Any:
        info = torch.utils.data.get_worker_info()
        number = 0 if info is None or not self.shared else info.id
        generator = torch.Generator().manual_seed(7 + number)
        for _ in range(256):
            x = torch.randn(8, generator=generator)
            yield x, int(x.sum() > 0)


@pytest.mark.parametrize("shared", [False, True])
def test_a_stream_that_every_worker_repeats(make_trainer: MakeTrainer, shared: bool) -> None:
    monitor = DataStarvationMonitor()
    report = StallReport(table=False)
    trainer = make_trainer([monitor, report], max_epochs=3)
    loader = DataLoader(Repeats(shared), batch_size=16, num_workers=2)
    trainer.fit(Classifier(mlp()), loader)
    told = [f for f in report.findings if f.code == "duplicate-randomness"]
    assert bool(told) != shared
    assert all("gave the same samples" in f.summary for f in told)


def test_a_loaders_own_timeout_is_a_hang() -> None:
    saying = timed_out(RuntimeError("DataLoader timed out after 2 seconds"))
    assert saying is not None
    assert saying.code == "dataloader-hang"
    assert timed_out(RuntimeError("out of memory")) is None
