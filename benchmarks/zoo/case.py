"""What a zoo case is: a training as a user would write it, its true cause, and its mended twin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch import LightningModule


@dataclass
class Training:
    """All that one call of `Trainer(**trainer).fit(module, train, val)` needs.

    `score(module)` judges the fitted module, larger is better (accuracy, R2, minus loss), on data it fixes itself.
    """

    module: LightningModule
    train: Any
    score: Callable[[LightningModule], float]
    val: Any = None
    trainer: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One entry of the zoo. `causes` are the codes that are a right first answer; empty for a well training."""

    name: str
    family: str
    build: Callable[[int], Training]
    causes: tuple[str, ...] = ()
    twin: Callable[[int], Training] | None = None
    note: str = ""

    @property
    def well(self) -> bool:
        return not self.causes


CASES: dict[str, Case] = {}


def well(name: str, family: str, note: str = "") -> Callable[[Callable[[int], Training]], Callable[[int], Training]]:
    """Register a healthy training: `@well("cosine-to-zero", "mlp")` above `def build(seed) -> Training`."""

    def register(build: Callable[[int], Training]) -> Callable[[int], Training]:
        return _add(Case(name, family, build, note=note))

    return register


def sick(
    name: str, family: str, *causes: str, twin: Callable[[int], Training], note: str = ""
) -> Callable[[Callable[[int], Training]], Callable[[int], Training]]:
    """Register an ill training with the codes that are right first answers, and its mended twin."""

    def register(build: Callable[[int], Training]) -> Callable[[int], Training]:
        return _add(Case(name, family, build, causes, twin, note))

    return register


def _add(case: Case) -> Callable[[int], Training]:
    if case.name in CASES:
        raise ValueError(f"two zoo cases are called {case.name!r}; rename one")
    CASES[case.name] = case
    return case.build
