"""The words that every form of a report uses: the verdict, titles, steps, places, and texts cut into prose and code."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

from lightning_stall.catalogue import CATALOGUE
from lightning_stall.catalogue.entry import CODE_INDENT
from lightning_stall.finding import SEVERITIES, Cause, Finding

Findings = Sequence[Finding]
Causes = Sequence[Cause]

NAMED = 5  # modules, columns or batches named before "and 12 more"


# What a terminal obeys instead of showing it, what turns the order of the letters around, and halves of a character,
# which no file can hold. Tabs and ends of lines stay.
_UNSHOWN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]|\r(?!\n)")


def shown(text: str) -> str:
    """`text` fit to be shown in a terminal and to be written to any file: a control character as its escape in Python.

    >>> print(shown("\\x1b[31mred"))
    \\x1b[31mred
    """
    return _UNSHOWN.sub(lambda found: ascii(found[0])[1:-1], text)


def where(finding: Finding, mark: str = "") -> str:
    """The first few places, each between two `mark`: "net.0, net.2 and 12 more"."""
    places = ", ".join(f"{mark}{name}{mark}" for name in finding.where[:NAMED])
    rest = len(finding.where) - NAMED
    return f"{places} and {rest} more" if rest > 0 else places


def verdict(findings: Findings, causes: Causes, outcome: str) -> str:
    """The sentence a user reads first."""
    well = outcome in ("learning", "converged")
    if causes:
        best = causes[0]
        lead = "What holds it back" if well else "The most likely cause"
        return f"Outcome: {outcome}. {lead}: {title(best.code)} (`{best.code}`, {percent(best.confidence)} sure)."
    told = len({f.code for f in findings if f.speaks})
    told_too = f" {told} {'finding was' if told == 1 else 'findings were'} told on the way." if told else ""
    if well:
        return f"Outcome: {outcome}. The run is well: nothing stalls it.{told_too}"
    if outcome in ("", "too early"):
        return f"Not judged: too few steps to tell how the run fares.{told_too}"
    return f"Outcome: {outcome}. No cause could be named from what was seen.{told_too}"


def folded(findings: Findings) -> list[list[Finding]]:
    """The findings by code, in the order in which each code was first seen."""
    groups: dict[str, list[Finding]] = {}
    for finding in findings:
        groups.setdefault(finding.code, []).append(finding)
    return list(groups.values())


def worst(group: Findings) -> Finding:
    """The most severe, the first of these: its numbers are the ones that decided."""
    return max(group, key=lambda f: SEVERITIES.index(f.severity))


def steps(group: Findings) -> str:
    return str(group[0].step) if len(group) == 1 else f"{group[0].step} to {group[-1].step} ({len(group)} times)"


def numbers(finding: Finding) -> str:
    return ", ".join(f"{name} = {value:.4g}" for name, value in finding.evidence.items())


def percent(confidence: float) -> str:
    return f"{100 * confidence:.0f} %"


def title(code: str) -> str:
    return CATALOGUE[code].title if code in CATALOGUE else code.replace("-", " ").capitalize()


def why(code: str) -> str:
    return CATALOGUE[code].why if code in CATALOGUE else ""


def advice(said: Finding | Cause) -> str:
    return said.advice or (CATALOGUE[said.code].advice if said.code in CATALOGUE else "")


def pieces(text: str) -> list[tuple[bool, str]]:
    """`text` cut into (is it code, text): a paragraph of prose each, and blocks of code without their indent."""
    pieces: list[tuple[bool, str]] = []
    for line in text.splitlines():
        code = line.startswith(CODE_INDENT)
        if pieces and pieces[-1][0] and (code or not line.strip()):
            pieces[-1] = (True, f"{pieces[-1][1]}\n{line}")  # an empty line inside code is part of it
        elif line.strip():
            pieces.append((code, line))
    return [(code, textwrap.dedent(part).strip("\n") if code else part.strip()) for code, part in pieces]


def part(name: str, text: str) -> str:
    """`text` under its name; empty where there is none."""
    return text and f"{name}:{chr(10) if text.startswith(CODE_INDENT) else ' '}{text}"


def spans(text: str) -> list[tuple[bool, str]]:
    """`text` cut into (is it in backticks, text without them)."""
    return [(bool(i % 2), part) for i, part in enumerate(re.split(r"`([^`\n]+)`", text)) if part]
