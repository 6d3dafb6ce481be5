"""A run read back from the file it left, so that it can be judged again without torch, after it died or years later."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_stall.finding import Finding
from lightning_stall.history import Curves
from lightning_stall.outcome import Outcome

FINDINGS_FILE = "stall_findings.jsonl"


@dataclass
class Record:
    """What one run left: its findings in order, how it fared when it ended ("too early" where it was killed), curves."""

    findings: list[Finding] = field(default_factory=list)
    outcome: Outcome = field(default_factory=Outcome)
    curves: Curves | None = None


def read_run(path: str | Path) -> Record:
    """The last run in a `stall_findings.jsonl`, or in the directory that holds it.

    A file holds a line a finding; a line with "run" begins a new run, one with "curves" holds what is drawn of it,
    and one with "outcome" ends it. Half a line, left by a
    run that was killed while writing, is passed over.

    Raises:
        OSError: where there is no such file.
        ValueError: where a whole line is none of these; names the line.
    """
    path = Path(path)
    path = path / FINDINGS_FILE if path.is_dir() else path
    record = Record()
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), 1):
        try:
            data = json.loads(line)
        except json.JSONDecodeError:
            continue
        try:
            if "run" in data:
                record = Record()
            elif "curves" in data:
                record.curves = Curves.from_dict(data["curves"])
            elif "outcome" in data:
                record.outcome = Outcome(data["outcome"], data["step"], _numbers(data))
            else:
                record.findings.append(Finding.from_dict({**data, "evidence": _numbers(data)}))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}:{number} is no finding ({error}): {line[:80]}") from error
    return record


def read_findings(path: str | Path) -> list[Finding]:
    """The findings of the last run in a file or directory, in order; see `read_run`."""
    return read_run(path).findings


def _numbers(data: Mapping[str, Any]) -> dict[str, float]:
    """Strict JSON has no word for NaN and infinity: `float` reads "nan", "inf", "-inf"; null becomes NaN."""
    return {k: float("nan" if v is None else v) for k, v in data.get("evidence", {}).items()}
