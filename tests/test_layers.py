"""Imports go down: a file imports only from the layers above it in this list."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import lightning_stall

ROOT = Path(lightning_stall.__file__).parent
LAYERS = [
    ["version"],
    ["catalogue", "finding"],
    ["detectors", "history", "outcome"],
    ["diagnosis", "replay", "report"],
    ["errors"],
    ["measure"],
    ["verdicts"],
    ["readings"],
    ["remedies"],
    ["remedies_batchnorm", "remedies_inputs", "remedies_operations", "remedies_rate", "remedies_start"],
    ["sinks"],
    ["journal", "logbook", "pipeline"],
    ["hub"],
    ["trials"],
    ["callback"],
    ["callbacks"],
    ["family"],
    ["testing"],
    ["demo"],
    ["plugin", "cli"],
    ["__main__"],
]
RANK = {name: i for i, layer in enumerate(LAYERS) for name in layer}
PURE = {"catalogue", "finding", "detectors", "history", "outcome", "diagnosis", "replay", "report"}
FILES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


def imports(path: Path) -> list[str]:
    """Modules imported when the file is: not under TYPE_CHECKING, not inside a function."""
    found: list[str] = []

    def walk(body: list[ast.stmt]) -> None:
        for node in body:
            if isinstance(node, ast.Import):
                found.extend(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.append(node.module)
            elif isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
                walk(node.body + node.orelse)
            elif isinstance(node, ast.Try):
                walk(node.body)

    walk(ast.parse(path.read_text()).body)
    return found


def part(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert own in RANK, f"{own} has no place in the layers"
    for module in imports(path):
        if module.startswith("lightning_stall."):
            other = part(module)
            same_package = other == own and own in (
                "catalogue",
                "measure",
                "sinks",
                "pipeline",
                "verdicts",
                "report",
                "trials",
            )
            assert RANK[other] < RANK[own] or same_package, f"{path.name} imports {module}"


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.relative_to(ROOT).parts[0].removesuffix(".py") in PURE], ids=str
)
def test_verdicts_know_neither_torch_nor_lightning(path: Path) -> None:
    assert not {m.split(".")[0] for m in imports(path)} & {"torch", "lightning", "pytorch_lightning", "torchmetrics"}


def test_callbacks_do_not_import_each_other() -> None:
    for path in (ROOT / "callbacks").glob("*.py"):
        assert not [m for m in imports(path) if m.startswith("lightning_stall.callbacks")], path.name
