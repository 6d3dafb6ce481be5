"""The README's and the notebooks' code runs, and the README's table is the catalogue's."""

from __future__ import annotations

import doctest
import importlib
import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import lightning_stall
from lightning_stall.catalogue import CATALOGUE

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_the_readmes_code_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(block, "README.md", "exec", dont_inherit=True), {"__name__": "readme"})


RUN = """
import json, sys, warnings
warnings.simplefilter("ignore")
space = {"__name__": "notebook"}
with open(sys.argv[1]) as file:
    cells = json.load(file)["cells"]
for cell in cells:
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), sys.argv[1], "exec", dont_inherit=True), space)
"""


@pytest.fixture(scope="module")
def notebooks(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[Path, Future[subprocess.CompletedProcess[str]]]]:
    """All of them, each in a process of its own, two at a time."""
    own = {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def run(path: Path) -> subprocess.CompletedProcess[str]:
        command, folder = [sys.executable, "-c", RUN, str(path)], tmp_path_factory.mktemp("notebook")
        return subprocess.run(
            command, cwd=folder, env={**os.environ, **own}, capture_output=True, text=True, timeout=300
        )

    with ThreadPoolExecutor(2) as pool:
        yield {path: pool.submit(run, path) for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_a_notebook_runs_and_holds_its_outputs(path: Path, notebooks: Mapping[Path, Future[Any]]) -> None:
    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    assert any(c["outputs"] for c in cells)
    assert not any(o["output_type"] == "error" for c in cells for o in c["outputs"])
    done = notebooks[path].result()
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_readme_lists_every_code() -> None:
    for code in CATALOGUE:
        assert f"`{code}`" in README, code


def test_the_readmes_pictures_are_there() -> None:
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    assert pictures
    for picture in pictures:
        assert (ROOT / picture).stat().st_size > 10_000, picture


def test_the_readmes_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"(?<!!)\[[^\]]+\]\(([^)#]+)", README) if "://" not in link]
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_a_notebook_shows_no_machine_and_no_chatter(path: Path) -> None:
    shown = [output for cell in json.loads(path.read_text())["cells"] for output in cell.get("outputs", [])]
    text = json.dumps([{k: v for k, v in o.items() if k != "data"} for o in shown]) + json.dumps(
        [o.get("data", {}).get("text/plain", "") for o in shown]
    )
    for word in ("GPU available", "litlogger", "/home/", "/root/", "/tmp/", "/work/"):
        assert word not in text, word


PUBLIC = [name for name in lightning_stall.__all__ if not name.startswith("_")]
PURE = ("lightning_stall.history", "lightning_stall.report.charts", "lightning_stall.sinks.themes")


def run_examples(thing: object, name: str, space: dict[str, object]) -> int:
    """How many examples the docstring of `thing` holds; each must do what it says."""
    (test,) = doctest.DocTestFinder(recurse=False).find(thing, name, globs=space)
    result = doctest.DocTestRunner(verbose=False).run(test)
    assert result.failed == 0, f"{name}: see the output above"
    return result.attempted


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_an_example_that_runs(name: str) -> None:
    thing = getattr(lightning_stall, name)
    space = dict(vars(importlib.import_module(thing.__module__)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert run_examples(thing, name, space) > 0


@pytest.mark.parametrize("name", PURE)
def test_examples_elsewhere_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0
