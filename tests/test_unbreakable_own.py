"""Faults of our own, of disks, of loggers and of other ranks: the training goes on, or ends, as without us."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from twin_runs import PIPES, Made, Program, ranks, twins

from lightning_stall import DataStarvationMonitor, StallCallback, StallReport, stall_callbacks
from lightning_stall.callback import VERBS
from lightning_stall.finding import Finding
from lightning_stall.hub import Hub
from lightning_stall.journal import Journal
from lightning_stall.logbook import Logbook
from lightning_stall.outcome import LossCurve
from lightning_stall.readings import Readings
from lightning_stall.replay import FINDINGS_FILE
from lightning_stall.sinks import StallWarning
from lightning_stall.testing import Classifier, blobs, mlp, nan_batch


def program(**settings: Any) -> Program:
    return Program(
        lambda: Classifier(mlp(batchnorm=True, depth=1)),
        lambda: blobs(samples=256),
        val=lambda: blobs(samples=64, draw=1, shuffle=False),
        settings=settings,
    )


class OurFault(Exception):
    """Stands for any mistake of ours."""


# ---------------------------------------------------------------------- inside each hook of ours


def family_that_fails_in(verb: str, error: type[BaseException], at: int) -> Callable[[], Sequence[Any]]:
    """The whole family, each member of which raises in `verb` from its `at`-th call on."""

    def make() -> Sequence[Any]:
        family = stall_callbacks()
        for member in family:
            calls = 0

            def raises(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls >= at:
                    raise error("ours")
                return {}

            member.__dict__[verb] = raises
            if verb in VERBS:
                member.verbs |= {verb}  # type: ignore[attr-defined]
        return family

    return make


OTHERS = ("begin", "numbers", "panels", "share", "state")


@pytest.mark.parametrize("error", [OurFault, StopIteration])
@pytest.mark.parametrize("verb", [*VERBS, *OTHERS])
def test_every_verb_of_every_callback_may_fail(verb: str, error: type[BaseException], tmp_path: Path) -> None:
    at = 1 if error is StopIteration else 2
    saves = {"before": lambda: [Saves()]} if verb == "state" else {}
    # without `detach` a callback cannot take out what it put in
    leave = ("module hooks", "optimizer hooks", "put on", "threads", "files") if verb == "detach" else ()
    made = program()
    made.before = saves.get("before", list)  # type: ignore[assignment]
    _, watched = twins(made, tmp_path, family_that_fails_in(verb, error, at), may_fail=True, may_leave=leave)
    for member in watched.ours:  # whoever failed in `detach` is asked to end its threads by hand
        member.__dict__.pop("detach", None)
        if verb == "detach" and member._hub is not None:
            member.detach()


class Saves(Callback):
    """Writes a checkpoint in the middle of the run."""

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 6:
            trainer.save_checkpoint(os.path.join(trainer.default_root_dir, "a.ckpt"))


SHARED = [
    (Readings, "before_backward"),
    (Readings, "after_backward"),
    (Readings, "post"),
    (Readings, "collect"),
    (Readings, "gradients"),
    (Readings, "sample_weights"),
    (Readings, "measure_updates"),
    (LossCurve, "update"),
    (Journal, "submit"),
    (Journal, "promote"),
    (Logbook, "write"),
    (Logbook, "draw"),
    (Hub, "__init__"),
    (Hub, "_judge"),
    (Hub, "state_dict"),
    (Hub, "_steps_done"),
    (Hub, "_accumulating"),
    (Hub, "_every"),
    (Hub, "_check"),
]


@pytest.mark.parametrize("at", [1, 5])
@pytest.mark.parametrize(("owner", "name"), SHARED, ids=lambda v: v if isinstance(v, str) else v.__name__)
def test_what_they_share_may_fail(
    owner: type, name: str, at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = getattr(owner, name), [0]

    def raises(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] >= at:
            raise OurFault("shared")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(owner, name, raises)
    made = program()
    made.before = lambda: [Saves()]
    twins(made, tmp_path, may_fail=True)


def test_a_sink_of_a_third_party_may_fail(tmp_path: Path) -> None:
    def sink(finding: Finding) -> None:
        raise OurFault("theirs")

    bad = Program(lambda: nan_batch(), lambda: blobs(samples=256))
    _, watched = twins(bad, tmp_path, lambda: [*stall_callbacks()[:-1], StallReport(sinks=[sink])], may_fail=True)
    assert (watched.folder / FINDINGS_FILE).exists()


# ---------------------------------------------------------------------- loggers


class Grumbles(Logger):
    """Raises wherever it is told to."""

    def __init__(self, at: str) -> None:
        super().__init__()
        self.at = at

    def _may(self, where: str, answer: Any) -> Any:
        if self.at == where:
            raise OSError(f"no {where}")
        return answer

    @property
    def name(self) -> str:
        return self._may("name", "grumbles")

    @property
    def version(self) -> int:
        return 0

    @property
    def save_dir(self) -> str | None:
        return self._may("save_dir", None)

    @property
    def experiment(self) -> Any:
        return self._may("experiment", None)

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        # the user's own numbers pass: only ours are refused
        self._may("log_metrics" if any(name.startswith("stall/") for name in metrics) else "", None)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        self._may("log_hyperparams", None)

    def finalize(self, status: str) -> None:
        self._may("finalize", None)

    def after_save_checkpoint(self, *args: Any) -> None: ...


@pytest.mark.parametrize("at", ["log_metrics", "experiment", "save_dir", "name", "finalize", "log_hyperparams"])
def test_a_logger_that_raises(at: str, tmp_path: Path) -> None:
    _, watched = twins(program(logger=Made(lambda: Grumbles(at))), tmp_path)
    told = [str(w.message) for w in watched.warnings if issubclass(w.category, StallWarning)]
    if at == "log_metrics":
        assert sum("Grumbles refused numbers" in text for text in told) == 1


# ---------------------------------------------------------------------- disks


def full(folder: Path) -> Path:
    """Every file of ours is a device that is full."""
    for name in (FINDINGS_FILE, "stall_report.md", "stall_report.html"):
        (folder / name).symlink_to("/dev/full")
    return folder


def read_only(folder: Path) -> Path:
    return Path("/proc/sys/kernel")


def a_file(folder: Path) -> Path:
    (folder / "file").write_text("in the way")
    return folder / "file"


def folders_in_the_way(folder: Path) -> Path:
    for name in (FINDINGS_FILE, "stall_report.md", "stall_report.html"):
        (folder / name).mkdir()
    return folder


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux")
@pytest.mark.parametrize("place", [full, read_only, a_file, folders_in_the_way], ids=lambda f: f.__name__)
def test_the_disk_is_full_or_read_only(place: Callable[[Path], Path], tmp_path: Path) -> None:
    where = place(tmp_path)
    made = Program(lambda: nan_batch(), lambda: blobs(samples=256), settings={"default_root_dir": where})
    _, watched = twins(made, tmp_path / "runs")
    told = [str(w.message) for w in watched.warnings if issubclass(w.category, StallWarning)]
    assert sum("Findings are not kept" in text for text in told) == 1, "said once"
    assert "nonfinite-loss" in [f.code for f in watched.report.findings]


# ---------------------------------------------------------------------- ranks

RANKS = """
import os, signal, sys, warnings, logging
import torch
torch.set_num_threads(1)
warnings.simplefilter("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
from datetime import timedelta
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy
from lightning_stall import stall_callbacks
from lightning_stall.testing import Classifier, blobs, mlp

class Killed(Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_rank == 1 and trainer.global_step == 12:
            how = sys.argv[2]
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ArithmeticError("on one rank")

def corrupt(x, batch_idx):
    return x * float("nan") if batch_idx == 2 else x

seed_everything(0, verbose=False)
watched = sys.argv[3] == "watched"
trainer = Trainer(
    accelerator="cpu", devices=2, strategy=DDPStrategy(timeout=timedelta(seconds=20)), max_epochs=3,
    callbacks=[Killed(), *(stall_callbacks() if watched else [])], logger=False, log_every_n_steps=5,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=sys.argv[1],
)
try:
    trainer.fit(Classifier(mlp(), corrupt=corrupt), blobs(batch_size=16))
except BaseException as error:
    print("ENDED", type(error).__name__, flush=True)
    raise
"""


def ended(folder: Path, how: str, kind: str) -> tuple[list[int], list[str], float]:
    """Exit codes, what the ranks printed of their end, and the seconds it took."""
    began = time.monotonic()
    both = ranks(RANKS, folder, how, kind)
    ends = [next((line for line in text.splitlines() if line.startswith("ENDED")), "") for _, text in both]
    return [code for code, _ in both], ends, time.monotonic() - began


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill"])
def test_a_rank_that_dies_ends_the_others_as_without_us(how: str, tmp_path: Path) -> None:
    codes, ends, bare = ended(tmp_path / "bare", how, "bare")
    assert (codes[1] == -signal.SIGKILL) == (how == "kill")
    watched_codes, watched_ends, watched = ended(tmp_path / "watched", how, "watched")
    assert watched_codes == codes
    assert watched_ends == ends
    assert watched < bare + 15, "nobody waits for the dead"
    lines = (tmp_path / "watched" / FINDINGS_FILE).read_text()
    assert "nonfinite" in lines, "what was known is on disk"
    assert (tmp_path / "watched" / "stall_report.md").exists()


# ---------------------------------------------------------------------- what comes by a signal while our code runs


class Busy(StallCallback):
    """Is at work when the loader's worker is killed: torch's word of it then comes up in this very line."""

    def step_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.hub.step == 3:
            (worker,) = multiprocessing.active_children()
            os.kill(worker.pid or 0, signal.SIGKILL)
            end = time.monotonic() + 5
            while time.monotonic() < end:
                pass


@pytest.mark.filterwarnings("ignore")
def test_a_worker_that_dies_while_our_code_runs_ends_the_run_as_ever(make_trainer: Callable[..., Any]) -> None:
    busy, monitor = Busy(), DataStarvationMonitor()
    loader = blobs(num_workers=1, multiprocessing_context="fork")
    trainer = make_trainer([busy, monitor])
    with pytest.raises(PIPES, match=r"killed by signal|exited unexpectedly|Connection|Broken|EOF"):
        trainer.fit(Classifier(mlp()), loader)
    assert busy.failed is None, "it is no fault of ours"
    assert monitor.failed is None
