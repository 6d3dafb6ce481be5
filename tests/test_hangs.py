"""Runs that stand still: who waits for what is told while they stand, and the run ends where it was asked to."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_stall import DataStarvationMonitor
from lightning_stall.finding import Finding
from lightning_stall.pipeline.watchdog import TrainingHang
from lightning_stall.sinks import StallWarning

pytestmark = pytest.mark.alone
MakeTrainer = Callable[..., Trainer]


class Samples(Dataset[Tensor]):
    """`at` calls `what` when its sample is made; the others are made at once."""

    def __init__(self, what: Callable[[], None], at: int, count: int = 64) -> None:
        self.what, self.at, self.count = what, at, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Tensor:
        if i == self.at:
            self.what()
        return torch.full((2,), float(i))


class Net(LightningModule):
    def __init__(self, what: Callable[[int], None] = lambda i: None) -> None:
        super().__init__()
        self.layer, self.what = nn.Linear(2, 1), what

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.what(batch_idx)
        return self.layer(batch).mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.what(-1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-3)


def block() -> None:
    time.sleep(60)


def spin(seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def nap() -> None:
    time.sleep(1.5)


def findings(monitor: DataStarvationMonitor) -> list[Finding]:
    return [f for f in monitor.hub.journal.findings if f.code.endswith("-hang")]


def stand_still(make_trainer: MakeTrainer, what: Callable[[], None], workers: int) -> tuple[str, list[int], Finding]:
    """Fit until the third batch never comes; the error, the workers' pids and the finding."""
    monitor = DataStarvationMonitor(hang_timeout=0.6, hang_action="raise")
    pids: list[int] = []

    class Pids(Callback):
        def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
            for iterator in trainer.fit_loop._combined_loader._iterator.iterators:
                pids[:] = [w.pid for w in getattr(iterator, "_workers", [])]

    loader = DataLoader(Samples(what, at=21), batch_size=4, num_workers=workers)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.warns(StallWarning, match="dataloader-hang"), pytest.raises(TrainingHang) as raised:
        make_trainer([Pids(), monitor]).fit(Net(), loader)
    assert signal.getsignal(signal.SIGINT) is handler
    return str(raised.value), pids, findings(monitor)[0]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_worker_that_blocks_is_named_with_its_stack_and_ended(make_trainer: MakeTrainer) -> None:
    text, pids, finding = stand_still(make_trainer, block, workers=2)
    assert finding.code == "dataloader-hang"
    assert finding.severity == "critical"
    assert f"Worker 1 (pid {pids[1]}) stands: state S" in text
    assert "It is the one waited for" in text
    assert "in block" in text.split("Stack of worker 1")[1].split("Stack of the main thread")[0]
    assert "dataloader.py" in text.split("Stack of the main thread")[1]
    assert len(pids) == 2
    assert not any(alive(pid) for pid in pids)


def test_a_worker_that_spins_is_told_from_one_that_blocks(make_trainer: MakeTrainer) -> None:
    text, pids, _ = stand_still(make_trainer, spin, workers=2)
    assert f"Worker 1 (pid {pids[1]}) is busy: state R" in text
    assert "in spin" in text
    assert not any(alive(pid) for pid in pids)


def test_a_dataset_that_blocks_without_workers(make_trainer: MakeTrainer) -> None:
    text, pids, finding = stand_still(make_trainer, block, workers=0)
    assert not pids
    assert finding.where[0] == "fetch"
    assert "in block" in text


def test_a_killed_worker_is_named(make_trainer: MakeTrainer) -> None:
    monitor = DataStarvationMonitor()
    loader = DataLoader(Samples(die, at=21), batch_size=4, num_workers=2)
    with pytest.warns(StallWarning, match="dataloader-hang"), pytest.raises((RuntimeError, OSError)):
        make_trainer([monitor]).fit(Net(), loader)
    (finding,) = findings(monitor)
    assert "worker 1" in finding.summary
    assert "exit code -9" in finding.summary
    assert "memory" in finding.summary


def test_a_step_that_blocks_is_told_and_goes_on(make_trainer: MakeTrainer) -> None:
    monitor = DataStarvationMonitor(hang_timeout=0.6)
    module = Net(lambda i: nap() if i == 8 else None)
    with pytest.warns(StallWarning, match="training-hang"):
        make_trainer([monitor], log_every_n_steps=1).fit(module, DataLoader(Samples(nap, at=-1), batch_size=4))
    (finding,) = findings(monitor)
    assert finding.where == ("forward",)
    assert finding.evidence["deadline"] == pytest.approx(0.6)
    assert "in nap" in finding.summary
    assert "training-hang" not in monitor.hub.journal.told  # it went on, and does not hold any more


@pytest.mark.parametrize(("what", "told"), [(lambda: time.sleep(4.0), True), (lambda: spin(4.0), False)])
@pytest.mark.parametrize("where", ["worker", "loader", "step"])
def test_where_nobody_computes_it_is_told_early(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, what: Callable[[], None], told: bool, where: str
) -> None:
    """With the default timeout, and on: a step of four seconds is unusual, but may be work."""
    monkeypatch.setattr("lightning_stall.pipeline.run.ASLEEP", 2.0)
    monitor = DataStarvationMonitor(hang_action="raise")  # an early word ends nothing
    module = Net(lambda i: what() if where == "step" and i == 8 else None)
    data = Samples(what, at=-1 if where == "step" else 33)
    loader = DataLoader(data, batch_size=4, num_workers=1 if where == "worker" else 0)
    with pytest.warns(StallWarning) if told else contextlib.nullcontext():
        make_trainer([monitor], log_every_n_steps=1).fit(module, loader)
    codes = ["training-hang" if where == "step" else "dataloader-hang"] if told else []
    assert [f.code for f in findings(monitor)] == codes
    assert all("while nobody computes" in f.summary for f in findings(monitor))


def test_a_step_that_blocks_ends_the_run_where_asked(make_trainer: MakeTrainer) -> None:
    monitor = DataStarvationMonitor(hang_timeout=0.6, hang_action="raise")
    module = Net(lambda i: block() if i == 8 else None)
    began = time.monotonic()
    with pytest.warns(StallWarning, match="training-hang"), pytest.raises(TrainingHang, match="in block"):
        make_trainer([monitor]).fit(module, DataLoader(Samples(nap, at=-1), batch_size=4))
    assert time.monotonic() - began < 10


def test_a_step_that_holds_the_interpreter_prints_all_stacks(
    make_trainer: MakeTrainer, capfd: pytest.CaptureFixture[str]
) -> None:
    """No Python thread runs while it does; the timer of faulthandler does."""
    import ctypes

    hold = ctypes.PyDLL(None).usleep  # PyDLL, unlike CDLL, keeps the lock
    monitor = DataStarvationMonitor(hang_timeout=0.3)
    module = Net(lambda i: hold(2_500_000) if i == 8 else time.sleep(0.02))
    make_trainer([monitor]).fit(module, DataLoader(Samples(nap, at=-1), batch_size=4))
    printed = capfd.readouterr().err
    assert "Timeout" in printed
    assert "training_step" in printed


def test_a_slow_first_epoch_is_no_hang(make_trainer: MakeTrainer) -> None:
    """Slow, but alive: a first batch longer than the timeout, and all others longer than a tenth of it."""
    monitor = DataStarvationMonitor(hang_timeout=0.5, hang_action="raise")

    class Cold(Samples):
        def __getitem__(self, i: int) -> Tensor:
            time.sleep(1.0 if i == 0 else 0.15)
            return super().__getitem__(i)

    make_trainer([monitor]).fit(Net(), DataLoader(Cold(nap, at=-1, count=20), batch_size=4, num_workers=1))
    assert not findings(monitor)


def test_validation_and_checkpoints_take_their_time(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    monitor = DataStarvationMonitor(hang_timeout=0.4, hang_action="raise")

    class Slow(Callback):
        def on_save_checkpoint(self, *args: Any) -> None:
            time.sleep(1.0)

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 6:
                trainer.save_checkpoint(tmp_path / "a.ckpt")

    module = Net(lambda i: time.sleep(0.9) if i < 0 else None)
    data = Samples(nap, at=-1)
    trainer = make_trainer([monitor, Slow()], limit_val_batches=1, num_sanity_val_steps=0, val_check_interval=8)
    trainer.fit(module, DataLoader(data, batch_size=4), DataLoader(data, batch_size=4))
    assert not findings(monitor)


def test_nothing_stays_behind(make_trainer: MakeTrainer) -> None:
    def state() -> tuple[Any, ...]:
        return (
            signal.getsignal(signal.SIGINT),
            signal.getsignal(signal.SIGUSR2),
            faulthandler.is_enabled(),
            sorted(t.name for t in threading.enumerate() if t.name.startswith("lightning-stall")),
        )

    before = state()
    loader = DataLoader(Samples(nap, at=-1), batch_size=4, num_workers=1)
    trainer = make_trainer([DataStarvationMonitor(hang_timeout=5, hang_action="raise")])
    trainer.fit(Net(), loader)
    assert state() == before
    assert "_get_iterator" not in vars(loader)
    assert "lightning_stall" not in type(loader.worker_init_fn).__module__
    for thing, name in (
        (trainer, "save_checkpoint"),
        (trainer.strategy, "training_step"),
        (trainer.strategy, "batch_to_device"),
        (trainer.strategy, "process_dataloader"),
        (trainer.fit_loop.epoch_loop, "_on_before_fetch"),
        (trainer.fit_loop.epoch_loop.val_loop, "run"),
    ):
        assert name not in vars(thing)
