"""No change to the script: the entry point, in both packages; a real LightningCLI, by YAML and by flags."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_stall import GradientHealth, PlateauWatch, StallCallback, StallReport, stall_callbacks
from lightning_stall.errors import MisconfigurationException
from lightning_stall.plugin import callbacks_from_environment
from lightning_stall.testing import blobs, mlp

PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def module_of(lib: Any, rate: float = 1e-2) -> Any:
    class Module(lib.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), rate)

    return Module()


def quiet(folder: Path, **settings: Any) -> dict[str, Any]:
    return {
        "accelerator": "cpu", "max_epochs": 2, "logger": False, "enable_progress_bar": False,
        "enable_model_summary": False, "default_root_dir": folder, **settings,
    }  # fmt: skip


def test_silent_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "0", "off", "no"):
        monkeypatch.setenv("LIGHTNING_STALL", value)
        assert callbacks_from_environment() == []


def test_codes_are_muted_by_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_STALL", "observe")
    monkeypatch.setenv("LIGHTNING_STALL_MUTE", "loss-plateau, overfitting,")
    assert {c.mute for c in callbacks_from_environment()} == {("loss-plateau", "overfitting")}  # type: ignore[attr-defined]
    monkeypatch.setenv("LIGHTNING_STALL_MUTE", "loss-plateu")
    with pytest.raises(MisconfigurationException, match="loss-plateau"):
        callbacks_from_environment()


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("by_hand", ["none", "two", "all"])
def test_never_twice_beside_callbacks_given_by_hand(package: str, by_hand: str, tmp_path: Path) -> None:
    lib = importlib.import_module(package)
    hand = {"none": [], "two": [GradientHealth(every_n_steps=7), PlateauWatch()], "all": stall_callbacks()}[by_hand]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIGHTNING_STALL", "observe")
        # what Lightning does with the entry point, which is known to it only once this package is installed
        added = callbacks_from_environment()
    trainer = lib.Trainer(callbacks=[*hand, *added], **quiet(tmp_path))
    trainer.fit(module_of(lib), blobs())
    first = (hand or added)[0]
    assert isinstance(first, StallCallback)
    members = first.hub.members
    assert len(members) == len({type(m) for m in members}) == 10
    assert all(callback in members for callback in hand)
    assert [m.failed for m in members] == [None] * 10
    checkpoint = trainer.checkpoint_callback.best_model_path
    again = lib.Trainer(callbacks=[*hand, *added], **quiet(tmp_path, max_epochs=3))
    again.fit(module_of(lib), blobs(), ckpt_path=checkpoint)
    assert first.hub.curve.n == 48


SCRIPT = """
import warnings
warnings.simplefilter("ignore")
from lightning.pytorch.cli import LightningCLI
from lightning_stall.testing import Classifier, blobs, mlp
from lightning.pytorch import LightningDataModule

class Data(LightningDataModule):
    def train_dataloader(self):
        return blobs()

class Model(Classifier):
    def __init__(self, rate: float = 1e-2):
        super().__init__(mlp(), rate)

    def validation_step(self, batch, batch_idx):
        pass

if __name__ == "__main__":
    cli = LightningCLI(Model, Data, save_config_callback=None)
    print("FITTED", [(type(c).__name__, c.auto_remedy) for c in cli.trainer.callbacks if hasattr(c, "auto_remedy")])
"""

YAML = """
trainer:
  max_epochs: 2
  accelerator: cpu
  logger: false
  enable_progress_bar: false
  enable_checkpointing: false
  callbacks:
    - class_path: lightning_stall.PlateauWatch
      init_args: {auto_remedy: true, factor: 0.25, min_lr: 1.0e-6}
    - class_path: lightning_stall.StallReport
      init_args: {table: true, verbose: true}
"""


def cli(folder: Path, *arguments: str) -> str:
    (folder / "train.py").write_text(SCRIPT)
    (folder / "config.yaml").write_text(YAML)
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "train.py", "fit", *arguments], cwd=folder, capture_output=True, text=True, timeout=240,
        env={"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin", "HOME": str(folder), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_real_cli_by_yaml_and_by_flags(tmp_path: Path) -> None:
    flags = ("--trainer.callbacks+=lightning_stall.AutoClip", "--trainer.callbacks.auto_remedy=false")
    out = cli(tmp_path, "--config", "config.yaml", *flags)
    assert "FITTED [('PlateauWatch', True), ('StallReport', False), ('AutoClip', False)]" in out
    assert "lightning_stall: nothing to report." in out
    assert (tmp_path / "stall_report.html").exists()


def test_print_config_shows_every_setting(tmp_path: Path) -> None:
    every = [c for c in stall_callbacks() if not isinstance(c, StallReport)]
    flags = [f"--trainer.callbacks+=lightning_stall.{type(c).__name__}" for c in every]
    out = cli(tmp_path, "--config", "config.yaml", *flags, "--print_config")
    for callback in every:
        assert f"class_path: lightning_stall.{type(callback).__name__}" in out
    assert out.count("auto_remedy:") >= 10
    assert "factor: 0.25" in out
    assert "min_lr: 1.0e-06" in out
