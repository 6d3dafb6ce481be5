"""The command line: fast, and the same causes from a file as from the run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from lightning.pytorch import Trainer

from lightning_stall import stall_callbacks
from lightning_stall.cli import main
from lightning_stall.diagnosis import diagnose
from lightning_stall.replay import read_run
from lightning_stall.sinks import StallWarning
from lightning_stall.testing import blobs, healthy, nan_batch


def fit(module, folder: Path):  # type: ignore[no-untyped-def]
    callbacks = stall_callbacks()
    callbacks[-1].table = False  # type: ignore[attr-defined]
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    Trainer(accelerator="cpu", callbacks=callbacks, logger=False, default_root_dir=folder, max_epochs=12, **quiet).fit(
        module, blobs()
    )
    return callbacks[-1]


def test_a_run_judged_again_from_its_file_has_the_same_causes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.warns(StallWarning):
        report = fit(nan_batch(), tmp_path)
    record = read_run(tmp_path)
    again = diagnose(record.findings, record.outcome)
    assert [(c.code, c.confidence) for c in again] == [(c.code, c.confidence) for c in report.causes]
    assert again
    assert main(["report", str(tmp_path), "--html", str(tmp_path / "page.html")]) == 0
    assert "nonfinite" in capsys.readouterr().out
    assert "<html" in (tmp_path / "page.html").read_text()


def test_a_second_run_in_one_directory_is_judged_alone(tmp_path: Path) -> None:
    with pytest.warns(StallWarning):
        fit(nan_batch(), tmp_path)
    fit(healthy(), tmp_path)
    record = read_run(tmp_path)
    assert not [f for f in record.findings if f.speaks]
    assert record.outcome.state in ("learning", "converged")
    assert "The run is well" in (tmp_path / "stall_report.md").read_text()


def test_explain(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "loss-plateau"]) == 0
    assert 'mute=("loss-plateau",)' in capsys.readouterr().out
    assert main(["explain", "loss-plateu"]) == 2
    assert "loss-plateau" in capsys.readouterr().err
    assert main(["explain"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 49


def test_no_run_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "no run can be read there" in capsys.readouterr().err


def test_explaining_does_not_wait_for_torch() -> None:
    program = "import sys; from lightning_stall.cli import main; main(['explain', 'loss-plateau']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0
