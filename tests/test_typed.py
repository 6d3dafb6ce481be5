"""The package as users get it: a wheel that installs, carries its types, and is checked as one of their own imports."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[1]

GOOD = """
from lightning.pytorch import Trainer

from lightning_stall import Cause, Finding, GradientHealth, PlateauWatch, StallCallback, StallReport, explain, stall_callbacks


class LossWatch(StallCallback):
    codes = ("loss-diverging",)

    def check(self) -> None:
        self.tell("loss-diverging", "It rose.", evidence={"loss": 1.0}, where=["head"])


def sink(finding: Finding) -> None:
    print(finding.code, finding.evidence.get("loss", 0.0))


report = StallReport(sinks=[sink], table=False)
watch = PlateauWatch(auto_remedy=True, factor=0.5, monitor="val_loss", mode="min", patience=10)
trainer = Trainer(callbacks=[GradientHealth(every_n_steps=5), watch, LossWatch(), report])
causes: list[Cause] = report.causes
named: str = causes[0].code if causes else explain("loss-plateau")
whole = Trainer(callbacks=stall_callbacks(auto_remedy=False, mute=("class-imbalance",)))
"""
BAD = """
from lightning_stall import GradientHealth, PlateauWatch

GradientHealth(every_n_steps="often")
PlateauWatch(mode="least")
"""


def run(*command: str | Path, check: bool = True) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, cwd=ROOT)
    assert not check or done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel in it, and this one's packages behind."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("needs hatchling to build the wheel")
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder / "dist")
    (wheel,) = (folder / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "lightning_stall/py.typed" in names
    assert not [n for n in names if n.startswith(("tests/", "benchmarks/", "notebooks/"))]
    run(sys.executable, "-m", "venv", folder / "env")
    made = folder / "env" / "bin" / "python"
    site = Path(run(made, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "behind.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(made, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel)
    return made


def test_it_runs_from_the_wheel(python: Path, tmp_path: Path) -> None:
    where = run(python, "-I", "-c", "import lightning_stall; print(lightning_stall.__file__)")
    assert str(python.parents[1]) in where
    assert "loss-plateau" in run(python.with_name("lightning-stall"), "explain", "loss-plateau")
    groups = run(
        python,
        "-I",
        "-c",
        "from importlib.metadata import entry_points as e; print(e(group='lightning.pytorch.callbacks_factory'))",
    )
    assert "callbacks_from_environment" in groups


def test_mypy_of_a_users_project(python: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("needs mypy")
    (tmp_path / "good.py").write_text(GOOD)
    (tmp_path / "bad.py").write_text(BAD)
    mypy = (
        sys.executable,
        "-m",
        "mypy",
        "--config-file=",
        "--strict",
        "--python-executable",
        python,
        "--cache-dir",
        tmp_path,
    )
    said = run(*mypy, tmp_path / "good.py")
    assert "Success" in said, said
    said = run(*mypy, tmp_path / "bad.py", check=False)
    assert said.count("[arg-type]") == 2, said


def test_pyright_of_a_users_project(python: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("pyright") is None:
        pytest.skip("needs pyright")
    (tmp_path / "good.py").write_text(GOOD)
    (tmp_path / "bad.py").write_text(BAD)
    pyright = (sys.executable, "-m", "pyright", "--pythonpath", python)
    said = run(*pyright, tmp_path / "good.py", check=False)
    if "error" in said and "node" in said.lower():
        pytest.skip("pyright has no Node to run on")
    assert "0 errors" in said, said
    assert "2 errors" in run(*pyright, tmp_path / "bad.py", check=False)
