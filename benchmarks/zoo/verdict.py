"""What the package says about one run of a case, and what the case scores bare, under remedies and mended."""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.zoo.case import Case
from benchmarks.zoo.run import part, run

OPT_IN = {
    "InputHealth": {"standardize": True},
    "ActivationHealth": {"reinitialize": True},
}  # remedies asked for by name
TIMED = ("scores are equal", "seconds a step separate it")  # in the note of a case whose time is ill, not its score


@dataclass
class Scores:
    """The same case fitted in other ways, with the same seed. A well case has no twin.

    `pace` is seconds a step by name of the run. `same_watched` and `same_remedied` say whether the callbacks, only
    watching and acting, left the final weights bitwise those of the bare run. `same_unclipped` says it of a well run
    under all remedies but AutoClip's, whose limit cuts healthy gradients too; it is made where `same_remedied` is
    false. All are None where they were not asked, or where a second bare run ended with other weights than the first.
    """

    bare: float | None
    remedied: float | None
    twin: float | None
    pace: dict[str, float | None]
    same_watched: bool | None
    same_remedied: bool | None
    same_unclipped: bool | None
    acted: list[str]  # "code: what was done (x how often)", numbers left out
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


def examine(case: Case, seed: int, remedy: bool = False, scores: bool = False, opt_in: bool = False) -> Verdict:
    """Fit the case under `stall_callbacks` and read its report; with `scores` fit it in the other ways too.

    `opt_in` lets `OPT_IN` act as well where remedies do, which `stall_callbacks(auto_remedy=True)` alone does not.
    """
    result, causes, findings = _watched(case, seed, remedy, opt_in)
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
        _scores(case, seed, opt_in, None if remedy else result.weights) if scores else None,
    )


def _watched(case: Case, seed: int, remedy: bool, opt_in: bool, but: str = "") -> Any:
    """(result, causes, findings) of a run under the family, all of which acts on `remedy` but the class called `but`."""
    from lightning_stall import stall_callbacks
    from lightning_stall.sinks.console import StallWarning

    callbacks: Any = stall_callbacks(auto_remedy=remedy)
    for callback in callbacks:
        name = type(callback).__name__
        callback.auto_remedy = callback.auto_remedy and name != but
        for setting, value in OPT_IN.get(name, {}).items() if opt_in and remedy else ():
            setattr(callback, setting, value)
    report = callbacks[-1]
    report.table = report.html = False  # what it found is read here, and hundreds of tables would hide ours
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StallWarning)
        result = run(case, seed, callbacks)
    return result, report.causes, report.findings


def _scores(case: Case, seed: int, opt_in: bool, watched: str | None) -> Scores:
    bare = run(case, seed)
    twin = run(case, seed, twin=True) if case.twin is not None else None
    remedied, _, findings = _watched(case, seed, True, opt_in)
    unclipped = None
    if case.well and remedied.weights != bare.weights:
        unclipped, _, others = _watched(case, seed, True, opt_in, but="AutoClip")
        unclipped, findings = unclipped.weights, [*findings, *others]
    same = [None if w is None else w == bare.weights for w in (watched, remedied.weights, unclipped)]
    if False in same and run(case, seed).weights != bare.weights:
        same = [None, None, None]  # workers, threads or a clock decide what this case computes
    return Scores(
        bare.score,
        remedied.score,
        twin.score if twin else None,
        {"bare": bare.pace, "remedied": remedied.pace, "twin": twin.pace if twin else None},
        *same,
        _deeds(findings),
        remedied.error if remedied.error != bare.error else None,
    )


def _deeds(findings: Any) -> list[str]:
    """What remedies did, the same deed once: a run may leave out a hundred steps."""
    texts = (re.sub(r"[-+]?\d[\d.e+-]*", "N", f.remedy) for f in findings if f.remedy)
    codes = (f.code for f in findings if f.remedy)
    counts = Counter(
        f"{code}: {text if len(text) < 90 else text[:87] + '...'}" for code, text in zip(codes, texts, strict=True)
    )
    return [deed if n == 1 else f"{deed} (x {n})" for deed, n in counts.items()]


def plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value
