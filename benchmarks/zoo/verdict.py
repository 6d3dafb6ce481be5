"""What the package says about one run of a case, and what the case scores bare, under remedies and mended."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.zoo.case import Case
from benchmarks.zoo.run import part, run

TIMED = ("scores are equal", "seconds a step separate it")  # in the note of a case whose time is ill, not its score


@dataclass
class Scores:
    """The same case fitted in other ways, with the same seed. A well case has no twin.

    `pace` is seconds a step by name of the run. `same_watched` and `same_remedied` say whether the callbacks, only
    watching and acting, left the final weights bitwise those of the bare run; None where a second bare run already
    ended with others, so that nothing can be said.
    """

    bare: float | None
    remedied: float | None
    twin: float | None
    pace: dict[str, float | None]
    same_watched: bool | None
    same_remedied: bool | None
    acted: list[str]  # "code: what was done", by each remedy, in order and without repeats
    error: str | None  # what the remedied fit raised


@dataclass
class Verdict:
    """What the package said about one run. `said` holds (step, code) of each finding above "info", in order."""

    name: str
    family: str
    seed: int
    expected: list[str]
    causes: list[tuple[str, float]]
    said: list[tuple[int, str]]
    score: float | None
    seconds: float
    steps: int
    error: str | None
    part: str = "seen"
    timed: bool = False
    scores: Scores | None = None
    top1: bool = field(init=False)
    top3: bool = field(init=False)
    first_right: int | None = field(init=False)  # optimizer step of the first right word
    extra: list[str] = field(init=False)  # codes told that are not expected

    def __post_init__(self) -> None:
        codes = [code for code, _ in self.causes]
        self.top1 = any(code in self.expected for code in codes[:1])
        self.top3 = any(code in self.expected for code in codes[:3])
        self.first_right = min((step for step, code in self.said if code in self.expected), default=None)
        self.extra = sorted({code for _, code in self.said if code not in self.expected})

    @property
    def well(self) -> bool:
        return not self.expected

    @property
    def false_alarm(self) -> bool:
        return self.well and bool(self.causes or self.said)

    @property
    def good(self) -> bool:
        """What is wanted of it: silence on a well run, a right first cause on a sick one."""
        return not self.false_alarm if self.well else self.top1

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for strict JSON: a number that is not finite becomes text."""
        return plain(asdict(self))


def timed(case: Case) -> bool:
    return any(text in case.note for text in TIMED)


def examine(case: Case, seed: int, remedy: bool = False, scores: bool = False) -> Verdict:
    """Fit the case under `stall_callbacks` and read its report; with `scores` fit it in the other ways too."""
    result, causes, findings = _watched(case, seed, remedy)
    return Verdict(
        case.name,
        case.family,
        seed,
        list(case.causes),
        [(cause.code, float(cause.confidence)) for cause in causes],
        [(finding.step, finding.code) for finding in findings if finding.severity != "info"],
        result.score,
        round(result.seconds, 2),
        result.steps,
        result.error,
        part(case),
        timed(case),
        _scores(case, seed, None if remedy else result.weights) if scores else None,
    )


def _watched(case: Case, seed: int, remedy: bool) -> Any:
    from lightning_stall import stall_callbacks

    callbacks: Any = stall_callbacks(auto_remedy=remedy)
    report = callbacks[-1]
    report.table = report.html = False  # what it found is read below, and hundreds of tables hide ours
    result = run(case, seed, callbacks)
    return result, report.causes, report.findings


def _scores(case: Case, seed: int, watched: str | None) -> Scores:
    bare = run(case, seed)
    twin = run(case, seed, twin=True) if case.twin is not None else None
    remedied, _, findings = _watched(case, seed, True)
    same = [None if w is None else w == bare.weights for w in (watched, remedied.weights)]
    if False in same and run(case, seed).weights != bare.weights:
        same = [None, None]  # workers, threads or a clock decide what this case computes
    return Scores(
        bare.score,
        remedied.score,
        twin.score if twin else None,
        {"bare": bare.pace, "remedied": remedied.pace, "twin": twin.pace if twin else None},
        same[0],
        same[1],
        list(dict.fromkeys(f"{f.code}: {f.remedy}" for f in findings if f.remedy)),
        remedied.error if remedied.error != bare.error else None,
    )


def plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value
