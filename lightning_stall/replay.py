"""A run read back from the file it left, so that it can be judged again without torch, after it died or years later."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from lightning_stall.finding import SEVERITIES, Finding
from lightning_stall.history import Curves
from lightning_stall.outcome import Outcome, State

FINDINGS_FILE = "stall_findings.jsonl"
FAR = 2**63  # a step or an epoch from here on is none


@dataclass
class Record:
    """What one run left: its findings in order, how it fared when it ended ("too early" where it was killed), curves."""

    findings: list[Finding] = field(default_factory=list)
    outcome: Outcome = field(default_factory=Outcome)
    curves: Curves | None = None
    passed_over: int = 0  # lines since the run began that are none of these


def read_run(path: str | Path) -> Record:
    """The last run in a `stall_findings.jsonl`, or in the directory that holds it.

    A file holds a line a finding; a line with "run" begins a new run, one with "curves" holds what is drawn of it,
    and one with "outcome" ends it. What is none of these, such as half a line left by a run that was killed while
    writing, is passed over and counted.

    Raises:
        OSError: where there is no such file.
        ValueError: where it holds lines, and not one of these.
    """
    path = Path(path)
    path = path / FINDINGS_FILE if path.is_dir() else path
    record, taken = Record(), False
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        if not line.strip():
            continue
        part = _part(line)
        taken = taken or part is not None
        if isinstance(part, Record):
            record = part
        elif isinstance(part, Finding):
            record.findings.append(part)
        elif isinstance(part, Curves):
            record.curves = part
        elif isinstance(part, Outcome):
            record.outcome = part
        else:
            record.passed_over += 1
    if record.passed_over and not taken:
        raise ValueError(f"{path} holds no finding: its lines are damaged, or of something else")
    return record


def read_findings(path: str | Path) -> list[Finding]:
    """The findings of the last run in a file or directory, in order; see `read_run`."""
    return read_run(path).findings


def _part(line: str) -> Finding | Curves | Outcome | Record | None:
    """What a line holds: an empty record where a run begins; None where it is damaged or of something else."""
    try:
        data = json.loads(line)
        if not isinstance(data, dict):
            return None
        if "code" in data:
            return _finding(data)
        if "run" in data:
            return Record()
        if "curves" in data:
            return _curves(data["curves"])
        return Outcome(cast(State, _text(data["outcome"])), _step(data["step"]), _numbers(data))
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError):
        return None


def _finding(data: dict[str, Any]) -> Finding:
    """Unknown keys are left out, so that a newer file can still be read. The errors are those that `_part` catches."""
    where, remedy = data.get("where", []), data.get("remedy")
    if not isinstance(where, list):
        raise TypeError
    return Finding(
        code=_text(data["code"]),
        step=_step(data["step"]),
        epoch=_step(data["epoch"]),
        severity=SEVERITIES[SEVERITIES.index(data["severity"])],
        summary=_text(data["summary"]),
        advice=_text(data.get("advice", "")),
        evidence=_numbers(data),
        where=tuple(str(place) for place in where),
        remedy=None if remedy is None else _text(remedy),
    )


def _curves(data: dict[str, Any]) -> Curves:
    baseline = data["baseline"]
    curves = Curves.from_dict({**data, "baseline": None if baseline is None else float(baseline)})
    if not all(len(row) == len(curves.steps) for row in (*curves.lines.values(), *curves.layers.values())):
        raise ValueError
    if not all(abs(step) < FAR for step in (*curves.steps, *(step for step, _ in curves.loss))):
        raise ValueError
    return curves


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _step(value: Any) -> int:
    if type(value) is not int or abs(value) >= FAR:  # True is an int too
        raise ValueError
    return value


def _numbers(data: dict[str, Any]) -> dict[str, float]:
    """Strict JSON has no word for NaN and infinity: `float` reads "nan", "inf", "-inf"; null becomes NaN."""
    return {k: float("nan" if v is None else v) for k, v in data.get("evidence", {}).items()}
