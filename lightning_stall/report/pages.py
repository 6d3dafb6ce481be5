"""The report as Markdown and as HTML; of a run that is over or of one that goes on."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from lightning_stall.finding import Cause, Finding
from lightning_stall.history import Curves
from lightning_stall.report import words
from lightning_stall.report.charts import draw
from lightning_stall.report.words import Causes, Findings

Facts = Mapping[str, str]
Link = Callable[[str], str]  # from a module's name to an address, or "" for none


def render_markdown(findings: Findings, causes: Causes, outcome: str, facts: Facts, link: Link | None = None) -> str:
    """The report as Markdown: the verdict, what was told, what was only noted, and the facts of the run.

    Args:
        findings: what was seen, in order.
        causes: why, most likely first.
        outcome: how the run fares.
        facts: what else a reader wants to know, by name.
        link: where a place that is named can be looked up; by default none is linked.
    """
    return _compose(_Markdown(link), findings, causes, outcome, facts, None)


def render_html(findings: Findings, causes: Causes, outcome: str, facts: Facts, curves: Curves | None = None) -> str:
    """The same report as one page that needs nothing else: no scripts, no fonts, light or dark as the reader has it.

    `curves` are drawn where they are given: the loss, gradient norms by depth and step, with the findings marked.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n<title>Stall report</title>\n'
        f"<style>{_PAGE}</style>\n</head>\n<body>\n"
        f"{render_fragment(findings, causes, outcome, facts, curves)}</body>\n</html>\n"
    )


def render_fragment(
    findings: Findings, causes: Causes, outcome: str, facts: Facts, curves: Curves | None = None
) -> str:
    """The same as a part of somebody else's page, such as a notebook: its style reaches nothing but itself."""
    body = _compose(_Html(), findings, causes, outcome, facts, curves)
    return f'<div class="stall-report">\n<style>{_STYLE}</style>\n{body}\n</div>\n'


_COLUMNS = ("Step", "Epoch", "Severity", "Finding", "Seen", "Where", "Done")


def _compose(
    page: _Markdown | _Html, findings: Findings, causes: Causes, outcome: str, facts: Facts, curves: Curves | None
) -> str:
    page.heading(1, "Why is this training stalled?")
    page.paragraph(words.verdict(findings, causes, outcome))
    if curves is not None:
        page.pictures(draw(curves, findings))
    for rank, cause in enumerate(causes, 1):
        page.heading(2, f"{rank}. {words.title(cause.code)} (`{cause.code}`), {words.percent(cause.confidence)} sure")
        page.paragraph(cause.summary)
        _explain(page, cause)
        rows = [(f"`{f.code}`", str(f.step), f.summary, words.numbers(f), page.places(f)) for f in cause.findings]
        if rows:
            page.table(("Evidence", "Step", "Seen", "Numbers", "Where"), rows)
    told, notes = [f for f in findings if f.speaks], [f for f in findings if not f.speaks]
    if told:
        page.heading(2, "What was told")
        page.table(_COLUMNS, [_row(page, group) for group in words.folded(told)])
        explained = {cause.code for cause in causes}
        for worst in map(words.worst, words.folded([f for f in told if f.code not in explained])):
            page.heading(3, f"{words.title(worst.code)} (`{worst.code}`)")
            _explain(page, worst)
    if notes:
        page.heading(2, "Notes")
        page.paragraph("Seen, and no reason for alarm by itself: kept as information.")
        page.table(_COLUMNS, [_row(page, group) for group in words.folded(notes)])
    if facts:
        page.heading(2, "Facts")
        page.table(("Fact", "Value"), facts.items())
    return words.shown(page.finish())


def _explain(page: _Markdown | _Html, said: Finding | Cause) -> None:
    for name, text in (("Why it stalls training", words.why(said.code)), ("What to change", words.advice(said))):
        for code, part in words.pieces(words.part(name, text)):
            (page.code if code else page.paragraph)(part)
    page.paragraph(f'Mute only this: `mute=("{said.code}",)`')


def _row(page: _Markdown | _Html, group: Findings) -> tuple[str, str, str, str, str, str, str]:
    worst = words.worst(group)
    done = next((f.remedy for f in group if f.remedy), "")
    seen, places = worst.summary, page.places(worst)
    return words.steps(group), str(group[0].epoch), worst.severity, f"`{worst.code}`", seen, places, done


# in prose: what may begin HTML, an entity, emphasis, code, a link, an image or the definition of one
_LIVE = re.compile(r"[\\<>&*~`]|\](?=[(:\[])|(?<![^\W_])_|_(?![^\W_])")
# at the beginning of a paragraph: what may make it a heading, a list, a rule or the definition of a link; after digits
_BEGINS = re.compile(r"^(\d{1,9}(?=[.)](?:\s|$))|(?=[#+=\[]|-(?:[\s-]|$)))")


def _quoted(name: str) -> str:
    return f"`{name}`"


def _safe(text: str, code: Callable[[str], str] = _quoted) -> str:
    """`text` as one line of Markdown that shows it and does nothing else; "a_b" and "[0]" stay readable.

    A "<b>" is no HTML, "__init__" not bold, "[0](x)" no link, a single backtick no code. `code` writes what stands
    between two backticks: it holds none itself, so that one around it is enough.
    """
    parts = words.spans(" ".join(text.split()))
    return "".join(code(part) if quoted else _LIVE.sub(r"\\\g<0>", part) for quoted, part in parts)


class _Markdown:
    def __init__(self, link: Link | None) -> None:
        self.blocks: list[str] = []
        self.link = link

    def heading(self, level: int, text: str) -> None:
        self.blocks.append(f"{'#' * level} {_safe(text)}")

    def paragraph(self, text: str) -> None:
        self.blocks.append(_BEGINS.sub(r"\1\\", _safe(text)))

    def code(self, lines: str) -> None:
        longest = max(map(len, re.findall("`+", lines)), default=0)
        fence = "`" * max(3, longest + 1)  # nothing within may end it
        self.blocks.append(f"{fence}python\n{lines}\n{fence}")

    def places(self, finding: Finding) -> str:
        return words.where(finding, "`")

    def pictures(self, drawn: Iterable[str]) -> None:
        """Markdown has none."""

    def table(self, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        lines = [header, ["---"] * len(header)]
        for row in rows:
            cells = [
                _safe(cell, self._linked if name == "Where" else _quoted)
                for name, cell in zip(header, row, strict=True)
            ]
            lines.append([cell.replace("|", "\\|") for cell in cells])
        self.blocks.append("\n".join(f"| {' | '.join(line)} |" for line in lines))

    def finish(self) -> str:
        return "\n\n".join(self.blocks) + "\n"

    def _linked(self, name: str) -> str:
        address = self.link(name) if self.link is not None else ""
        return f"[{_quoted(name)}]({address})" if address else _quoted(name)


_PAGE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
"""

_STYLE = """
.stall-report { --line: #d0d7de; --code: #f3f4f6; --ink: #0969da; --soft: #6e7781; --warn: #bc4c00; --bad: #cf222e; }
@media (prefers-color-scheme: dark) {
.stall-report { --line: #3d444d; --code: #22272e; --ink: #58a6ff; --soft: #8b949e; --warn: #f0883e; --bad: #ff7b72; }
}
.stall-report table { border-collapse: collapse; display: block; overflow-x: auto; }
.stall-report th, .stall-report td {
border: 1px solid var(--line); padding: .3rem .6rem; text-align: left; vertical-align: top;
}
.stall-report code, .stall-report pre {
font: .9em ui-monospace, monospace; background: var(--code); border-radius: 4px; padding: .1em .3em;
}
.stall-report pre { padding: .8rem; overflow-x: auto; }
.stall-report svg { width: 100%; height: auto; max-width: 60rem; display: block; margin: .5rem 0; }
.stall-report svg text { font: 11px system-ui, sans-serif; fill: currentColor; }
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

    def places(self, finding: Finding) -> str:
        return words.where(finding, "`")

    def pictures(self, drawn: Iterable[str]) -> None:
        self.blocks.extend(drawn)

    def table(self, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        lines = ["".join(f"<th>{self._inline(cell)}</th>" for cell in header)]
        lines += ["".join(f"<td>{self._inline(cell)}</td>" for cell in row) for row in rows]
        self.blocks.append("<table>\n" + "\n".join(f"<tr>{line}</tr>" for line in lines) + "\n</table>")

    def finish(self) -> str:
        return "\n".join(self.blocks)

    @staticmethod
    def _inline(text: str) -> str:
        return "".join(f"<code>{html.escape(s)}</code>" if code else html.escape(s) for code, s in words.spans(text))
