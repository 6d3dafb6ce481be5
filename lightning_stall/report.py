"""Findings and causes as text: in the terminal, as `stall_report.md`, as one HTML page; of a dead run too.

Texts are written as the catalogue writes them: sentences, `names` in backticks, code in lines indented by four spaces.
Every form leaves code whole, escapes what is not code, and wraps nothing but sentences.
"""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from lightning_stall.catalogue import CATALOGUE
from lightning_stall.catalogue.entry import CODE_INDENT
from lightning_stall.finding import SEVERITIES, Cause, Finding

if TYPE_CHECKING:
    from rich.console import RenderableType

Findings = Sequence[Finding]
Causes = Sequence[Cause]
Facts = Mapping[str, str]

WIDTH = 100  # columns of a terminal line
NAMED = 5  # modules, columns or batches named before "and 12 more"


def render_finding(finding: Finding) -> str:
    """What was seen, where, why it stalls training, what to change, how to mute it: plain text for a terminal."""
    head = f"{finding.severity}: {finding.code} at step {finding.step} (epoch {finding.epoch})"
    parts = {
        "Where": where(finding),
        "Why it stalls training": _why(finding.code),
        "What to change": _advice(finding),
        "Done": finding.remedy or "",
        "Mute only this": f'mute=("{finding.code}",)',
    }
    return "\n".join(
        [head, _wrap(finding.summary), *(_wrap(_part(name, text)) for name, text in parts.items() if text)]
    )


def render_markdown(findings: Findings, causes: Causes, outcome: str, facts: Facts) -> str:
    """The report as Markdown: the verdict, what was told, what was only noted, and the facts of the run."""
    return _compose(_Markdown(), findings, causes, outcome, facts)


def render_html(findings: Findings, causes: Causes, outcome: str, facts: Facts) -> str:
    """The same report as one page that needs nothing else: no scripts, no fonts, light or dark as the reader has it."""
    return _compose(_Html(), findings, causes, outcome, facts)


def rich_table(findings: Findings, causes: Causes, outcome: str) -> RenderableType:
    """The verdict for the terminal at the end of a fit: a line for each cause, and for each code told."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
        made = Table(*header, box=None, pad_edge=False)
        for row in rows:
            made.add_row(*map(Text, row))  # not str: rich would read "[0]" in a module's name as markup
        return made

    lines: list[RenderableType] = [Text(_verdict(findings, causes, outcome), style="bold")]
    if causes:
        rows = [(_title(c.code), _percent(c.confidence), c.summary) for c in causes]
        lines += [table(("Cause", "Sure", "Seen"), rows), Text(_wrap(_part("What to change", _advice(causes[0]))))]
    told = _folded([f for f in findings if f.speaks])
    if told:
        rows = [(_steps(g), f"{_worst(g).severity}: {g[0].code}", _worst(g).summary) for g in told]
        lines.append(table(("Step", "Told", "Seen"), rows))
    return Group(*lines)


def where(finding: Finding, mark: str = "") -> str:
    """The first few places, each between two `mark`: "net.0, net.2 and 12 more"."""
    places = ", ".join(f"{mark}{name}{mark}" for name in finding.where[:NAMED])
    rest = len(finding.where) - NAMED
    return f"{places} and {rest} more" if rest > 0 else places


_COLUMNS = ("Step", "Epoch", "Severity", "Finding", "Seen", "Where", "Done")


def _compose(page: _Markdown | _Html, findings: Findings, causes: Causes, outcome: str, facts: Facts) -> str:
    page.heading(1, "Why is this training stalled?")
    page.paragraph(_verdict(findings, causes, outcome))
    for rank, cause in enumerate(causes, 1):
        page.heading(2, f"{rank}. {_title(cause.code)} (`{cause.code}`), {_percent(cause.confidence)} sure")
        page.paragraph(cause.summary)
        _explain(page, cause)
        rows = [(f"`{f.code}`", str(f.step), f.summary, _numbers(f), where(f, "`")) for f in cause.findings]
        if rows:
            page.table(("Evidence", "Step", "Seen", "Numbers", "Where"), rows)
    told, notes = [f for f in findings if f.speaks], [f for f in findings if not f.speaks]
    if told:
        page.heading(2, "What was told")
        page.table(_COLUMNS, map(_row, _folded(told)))
        explained = {cause.code for cause in causes}
        for worst in map(_worst, _folded([f for f in told if f.code not in explained])):
            page.heading(3, f"{_title(worst.code)} (`{worst.code}`)")
            _explain(page, worst)
    if notes:
        page.heading(2, "Notes")
        page.paragraph("Seen, and no reason for alarm by itself: kept as information.")
        page.table(_COLUMNS, map(_row, _folded(notes)))
    if facts:
        page.heading(2, "Facts")
        page.table(("Fact", "Value"), facts.items())
    return page.finish()


def _explain(page: _Markdown | _Html, said: Finding | Cause) -> None:
    for name, text in (("Why it stalls training", _why(said.code)), ("What to change", _advice(said))):
        for code, part in _pieces(_part(name, text)):
            (page.code if code else page.paragraph)(part)
    page.paragraph(f'Mute only this: `mute=("{said.code}",)`')


def _verdict(findings: Findings, causes: Causes, outcome: str) -> str:
    """The sentence a user reads first."""
    well = outcome in ("learning", "converged")
    if causes:
        best = causes[0]
        lead = "What holds it back" if well else "The most likely cause"
        return f"Outcome: {outcome}. {lead}: {_title(best.code)} (`{best.code}`, {_percent(best.confidence)} sure)."
    told = len({f.code for f in findings if f.speaks})
    told_too = f" {told} {'finding was' if told == 1 else 'findings were'} told on the way." if told else ""
    if well:
        return f"Outcome: {outcome}. The run is well: nothing stalls it.{told_too}"
    if outcome in ("", "too early"):
        return f"Not judged: too few steps to tell how the run fares.{told_too}"
    return f"Outcome: {outcome}. No cause could be named from what was seen.{told_too}"


def _row(group: Findings) -> tuple[str, str, str, str, str, str, str]:
    worst = _worst(group)
    done = next((f.remedy for f in group if f.remedy), "")
    return _steps(group), str(group[0].epoch), worst.severity, f"`{worst.code}`", worst.summary, where(worst, "`"), done


def _folded(findings: Findings) -> list[list[Finding]]:
    """The findings by code, in the order in which each code was first seen."""
    groups: dict[str, list[Finding]] = {}
    for finding in findings:
        groups.setdefault(finding.code, []).append(finding)
    return list(groups.values())


def _worst(group: Findings) -> Finding:
    """The most severe, the first of these: its numbers are the ones that decided."""
    return max(group, key=lambda f: SEVERITIES.index(f.severity))


def _steps(group: Findings) -> str:
    return str(group[0].step) if len(group) == 1 else f"{group[0].step} to {group[-1].step} ({len(group)} times)"


def _numbers(finding: Finding) -> str:
    return ", ".join(f"{name} = {value:.4g}" for name, value in finding.evidence.items())


def _percent(confidence: float) -> str:
    return f"{100 * confidence:.0f} %"


def _title(code: str) -> str:
    return CATALOGUE[code].title if code in CATALOGUE else code.replace("-", " ").capitalize()


def _why(code: str) -> str:
    return CATALOGUE[code].why if code in CATALOGUE else ""


def _advice(said: Finding | Cause) -> str:
    return said.advice or (CATALOGUE[said.code].advice if said.code in CATALOGUE else "")


def _pieces(text: str) -> list[tuple[bool, str]]:
    """`text` cut into (is it code, text): a paragraph of prose each, and blocks of code without their indent."""
    pieces: list[tuple[bool, str]] = []
    for line in text.splitlines():
        code = line.startswith(CODE_INDENT)
        if pieces and pieces[-1][0] and (code or not line.strip()):
            pieces[-1] = (True, f"{pieces[-1][1]}\n{line}")  # an empty line inside code is part of it
        elif line.strip():
            pieces.append((code, line))
    return [(code, textwrap.dedent(part).strip("\n") if code else part.strip()) for code, part in pieces]


def _part(name: str, text: str) -> str:
    """`text` under its name; empty where there is none."""
    return text and f"{name}:{chr(10) if text.startswith(CODE_INDENT) else ' '}{text}"


def _wrap(text: str) -> str:
    """For a terminal: sentences wrapped, two columns in and what follows them four; code whole, six columns in."""
    lines = []
    for code, part in _pieces(text):
        if code:
            lines.append(textwrap.indent(part, " " * 6))
        else:  # names and codes hold hyphens: broken there, they could not be searched for or pasted
            first = "    " if lines else "  "
            wrapper = textwrap.TextWrapper(WIDTH, first, "    ", break_long_words=False, break_on_hyphens=False)
            lines.append(wrapper.fill(part))
    return "\n".join(lines)


def _spans(text: str) -> list[tuple[bool, str]]:
    """`text` cut into (is it in backticks, text without them)."""
    return [(bool(i % 2), part) for i, part in enumerate(re.split(r"`([^`\n]+)`", text)) if part]


class _Markdown:
    def __init__(self) -> None:
        self.blocks: list[str] = []

    def heading(self, level: int, text: str) -> None:
        self.blocks.append(f"{'#' * level} {self._inline(text)}")

    def paragraph(self, text: str) -> None:
        self.blocks.append(self._inline(text))

    def code(self, lines: str) -> None:
        self.blocks.append(f"```python\n{lines}\n```")

    def table(self, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        lines = [header, ["---"] * len(header)]
        lines += [[self._inline(" ".join(cell.split())).replace("|", "\\|") for cell in row] for row in rows]
        self.blocks.append("\n".join(f"| {' | '.join(line)} |" for line in lines))

    def finish(self) -> str:
        return "\n\n".join(self.blocks) + "\n"

    @staticmethod
    def _inline(text: str) -> str:
        """A "<b>" is no HTML, "__init__" not bold, "[0](x)" no link; "a_b" and "[0]" stay readable."""
        special = r"([\\<>&*]|\](?=\()|(?<!\w)_|_(?!\w))"
        return "".join(f"`{s}`" if code else re.sub(special, r"\\\1", s) for code, s in _spans(text))


_STYLE = """
:root { color-scheme: light dark; --line: #d0d7de; --code: #f3f4f6; }
@media (prefers-color-scheme: dark) { :root { --line: #3d444d; --code: #22272e; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { border: 1px solid var(--line); padding: .3rem .6rem; text-align: left; vertical-align: top; }
code, pre { font: .9em ui-monospace, monospace; background: var(--code); border-radius: 4px; padding: .1em .3em; }
pre { padding: .8rem; overflow-x: auto; }
"""


class _Html:
    def __init__(self) -> None:
        self.blocks: list[str] = []

    def heading(self, level: int, text: str) -> None:
        self.blocks.append(f"<h{level}>{self._inline(text)}</h{level}>")

    def paragraph(self, text: str) -> None:
        self.blocks.append(f"<p>{self._inline(text)}</p>")

    def code(self, lines: str) -> None:
        self.blocks.append(f"<pre>{html.escape(lines)}</pre>")

    def table(self, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        lines = ["".join(f"<th>{self._inline(cell)}</th>" for cell in header)]
        lines += ["".join(f"<td>{self._inline(cell)}</td>" for cell in row) for row in rows]
        self.blocks.append("<table>\n" + "\n".join(f"<tr>{line}</tr>" for line in lines) + "\n</table>")

    def finish(self) -> str:
        body = "\n".join(self.blocks)
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width">\n<title>Stall report</title>\n'
            f"<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
        )

    @staticmethod
    def _inline(text: str) -> str:
        return "".join(f"<code>{html.escape(s)}</code>" if code else html.escape(s) for code, s in _spans(text))
