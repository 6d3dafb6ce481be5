"""What the package says: a finding (one thing seen) and a cause (why), as plain immutable records."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypeVar

Severity = Literal["info", "warning", "critical"]
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "critical")

_T = TypeVar("_T")


@dataclass(frozen=True)
class Finding:
    """One thing seen, with the numbers that decided it.

    Attributes:
        code: a code of the catalogue, in kebab-case.
        step: the optimizer step it was seen at (1 is the first step of the run).
        epoch: the epoch, counted from 0 as Lightning does.
        severity: "info" (kept for the report), "warning" (told) or "critical" (the run is being lost).
        summary: what was seen, with its number and the number that would have been fine.
        advice: what to change, an imperative with code to paste.
        evidence: the numbers that decided it, by name.
        where: modules, parameters, columns or batches concerned, worst first.
        remedy: what the program did about it, in the past tense, or None.

    >>> finding = Finding("loss-plateau", 100, 2, "warning", "Loss changed by 0.1 %; 1 % would be progress.")
    >>> finding.speaks, Finding.from_dict(finding.to_dict()) == finding
    (True, True)
    """

    code: str
    step: int
    epoch: int
    severity: Severity
    summary: str
    advice: str = ""
    evidence: Mapping[str, float] = field(default_factory=dict)
    where: tuple[str, ...] = ()
    remedy: str | None = None

    @property
    def speaks(self) -> bool:
        """Whether a user is told at once; an "info" finding waits for a bad outcome."""
        return self.severity != "info"

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers: fit for JSON and for a checkpoint read with `weights_only=True`."""
        return {**asdict(self), "evidence": dict(self.evidence), "where": list(self.where)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Finding:
        """The finding `to_dict` wrote. Unknown keys are left out, so that a newer file can still be read."""
        known = _known(cls, data)
        known["where"] = tuple(known.get("where", ()))
        known["evidence"] = {k: math.nan if v is None else v for k, v in known.get("evidence", {}).items()}
        return cls(**known)


@dataclass(frozen=True)
class Cause:
    """Why the run fares badly, with the findings it rests on.

    Attributes:
        code: a code of the catalogue.
        confidence: from 0 to 1; of the causes said with 0.8 about 80 % should be right.
        summary: the sentence a user reads first.
        advice: what to change.
        findings: the evidence, strongest first.

    >>> Cause("learning-rate-too-low", 0.9, "Steps of 1e-7.", "Multiply the rate by ten.").to_dict()["code"]
    'learning-rate-too-low'
    """

    code: str
    confidence: float
    summary: str
    advice: str
    findings: tuple[Finding, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `Finding.to_dict`."""
        return {
            **{f.name: getattr(self, f.name) for f in fields(self)},
            "findings": [f.to_dict() for f in self.findings],
        }


def _known(cls: type[_T], data: Mapping[str, Any]) -> dict[str, Any]:
    names = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    return {k: v for k, v in data.items() if k in names}
