"""Findings and causes in a terminal: readable at 80 columns, code left whole so that it can be pasted."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from lightning_stall.finding import Finding
from lightning_stall.report.words import (
    Causes,
    Findings,
    advice,
    folded,
    part,
    percent,
    pieces,
    shown,
    steps,
    title,
    verdict,
    where,
    why,
    worst,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

WIDTH = 80  # columns of a terminal line
NOTHING = "lightning_stall: nothing to report."


def render_finding(finding: Finding) -> str:
    """What was seen, where, why it stalls training, what to change, how to mute it: plain text, not yet `shown`."""
    head = f"{finding.severity}: {finding.code} at step {finding.step} (epoch {finding.epoch})"
    parts = {
        "Where": where(finding),
        "Why it stalls training": why(finding.code),
        "What to change": advice(finding),
        "Done": finding.remedy or "",
        "Mute only this": f'mute=("{finding.code}",)',
    }
    return "\n".join([head, _wrap(finding.summary), *(_wrap(part(name, text)) for name, text in parts.items() if text)])


def rich_table(findings: Findings, causes: Causes, outcome: str) -> RenderableType:
    """The verdict for the terminal at the end of a fit: a line for each cause, and for each code told."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    def plain(text: str, style: str = "") -> Text:
        return Text(shown(text), style)  # not str: rich would read "[0]" in a module's name as markup

    def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
        made = Table(*header, box=None, pad_edge=False)
        for row in rows:
            made.add_row(*map(plain, row))
        return made

    lines: list[RenderableType] = [plain(verdict(findings, causes, outcome), "bold")]
    if causes:
        rows = [(title(c.code), percent(c.confidence), c.summary) for c in causes]
        lines += [table(("Cause", "Sure", "Evidence"), rows), plain(_wrap(part("What to change", advice(causes[0]))))]
    told = folded([f for f in findings if f.speaks])
    if told:
        rows = [(steps(g), f"{worst(g).severity}: {g[0].code}", worst(g).summary) for g in told]
        lines.append(table(("Step", "Told", "Seen"), rows))
    return Group(*lines)


def _wrap(text: str) -> str:
    """For a terminal: sentences wrapped, two columns in and what follows them four; code whole, six columns in."""
    lines = []
    for code, piece in pieces(text):
        if code:
            lines.append(textwrap.indent(piece, " " * 6))
        else:  # names and codes hold hyphens: broken there, they could not be searched for or pasted
            first = "    " if lines else "  "
            wrapper = textwrap.TextWrapper(WIDTH, first, "    ", break_long_words=False, break_on_hyphens=False)
            lines.append(wrapper.fill(piece))
    return "\n".join(lines)
