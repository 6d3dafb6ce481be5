"""The texts, compared whole on small cases; what a file of findings gives back."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from lightning_stall.catalogue import CATALOGUE
from lightning_stall.finding import Cause, Finding
from lightning_stall.replay import read_findings
from lightning_stall.report import (
    WIDTH,
    render_finding,
    render_html,
    render_markdown,
    rich_table,
)

SPIKE = Finding(
    "exploding-gradients",
    step=12,
    epoch=0,
    severity="warning",
    summary="Gradient norm 4.2e+05; below 31 would be usual.",
    advice="Clip by a fixed limit:\n\n    trainer = Trainer(gradient_clip_val=1.0)  # or AutoClip()\n\n"
    "Then look for the cause.",
    evidence={"norm": 4.2e5, "limit": 31.0, "loss": math.nan},
    where=("net.0", "net.2"),
    remedy="Clipped to 31.",
)
# a code of somebody else's detector, and names that no format may take for markup
FOREIGN = Finding("my-own", 3, 0, "critical", "Column <b>x|y</b> & `__init__` jumped", where=("<b>", "a_b[0]"))
NOTE = Finding("vanishing-gradients", 40, 1, "info", "Gradients are 1e-9; above 1e-4 would be fine.")
RATE = Cause(
    "learning-rate-too-high", 0.87, "Updates are 30 % of the weights; 0.1 % would be usual.", "Use `lr=1e-4`.", (SPIKE,)
)


def again(finding: Finding, step: int, severity: str = "warning") -> Finding:
    return Finding.from_dict({**finding.to_dict(), "step": step, "severity": severity})


def test_a_finding_has_five_parts_and_says_how_to_mute_it() -> None:
    why = CATALOGUE["exploding-gradients"].why
    text = render_finding(SPIKE)
    lines = text.split("\n")
    assert lines[:3] == [
        "warning: exploding-gradients at step 12 (epoch 0)",
        "  Gradient norm 4.2e+05; below 31 would be usual.",
        "  Where: net.0, net.2",
    ]
    start = lines.index("  What to change: Clip by a fixed limit:")
    assert " ".join(line.strip() for line in lines[3:start]) == f"Why it stalls training: {why}"
    assert lines[start + 1 :] == [
        "      trainer = Trainer(gradient_clip_val=1.0)  # or AutoClip()",
        "    Then look for the cause.",
        "  Done: Clipped to 31.",
        '  Mute only this: mute=("exploding-gradients",)',
    ]


def test_parts_without_content_are_left_out() -> None:
    assert render_finding(Finding("my-own", 3, 0, "critical", "It jumped.")) == (
        'critical: my-own at step 3 (epoch 0)\n  It jumped.\n  Mute only this: mute=("my-own",)'
    )


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (1, "a0"),
        (5, "a0, a1, a2, a3, a4"),
        (6, "a0, a1, a2, a3, a4 and 1 more"),
        (17, "a0, a1, a2, a3, a4 and 12 more"),
    ],
)
def test_five_places_are_named(count: int, shown: str) -> None:
    text = render_finding(Finding("my-own", 1, 0, "warning", "s", where=tuple(f"a{i}" for i in range(count))))
    assert f"  Where: {shown}\n" in text


@pytest.mark.parametrize("code", sorted(CATALOGUE))
def test_the_catalogue_speaks_where_a_finding_has_no_advice_and_its_code_can_be_pasted(code: str) -> None:
    text = render_finding(Finding(code, 1, 0, "warning", "word " * 60))
    entry = CATALOGUE[code]
    pasteable = [line[4:] for line in entry.advice.split("\n") if line.startswith("    ")]
    lines = text.split("\n")
    assert all("      " + line in lines for line in pasteable), "code is neither wrapped nor lost"
    assert all(len(line) <= WIDTH for line in lines if line[6:] not in pasteable), "sentences are wrapped"
    squeezed = " ".join(text.split())
    assert " ".join(entry.why.split()) in squeezed
    assert " ".join(entry.advice.split()) in squeezed


def test_advice_that_is_only_code_stays_code() -> None:
    text = render_finding(Finding("my-own", 1, 0, "warning", "s", "    a = 1\n\n    if a:\n        b = 2"))
    assert "  What to change:\n      a = 1\n\n      if a:\n          b = 2\n  Mute" in text


def test_markdown_whole() -> None:
    findings = [FOREIGN, SPIKE, NOTE, again(SPIKE, 13, "critical"), again(SPIKE, 90)]
    why = CATALOGUE["learning-rate-too-high"].why
    spike = CATALOGUE["exploding-gradients"]
    assert render_markdown(findings, [RATE], "diverging", {"steps": "90", "world size": "1"}) == "\n".join(
        [
            "# Why is this training stalled?",
            "",
            f"Outcome: diverging. The most likely cause: {RATE_TITLE} (`learning-rate-too-high`, 87 % sure).",
            "",
            f"## 1. {RATE_TITLE} (`learning-rate-too-high`), 87 % sure",
            "",
            "Updates are 30 % of the weights; 0.1 % would be usual.",
            "",
            f"Why it stalls training: {why}",
            "",
            "What to change: Use `lr=1e-4`.",
            "",
            'Mute only this: `mute=("learning-rate-too-high",)`',
            "",
            "| Evidence | Step | Seen | Numbers | Where |",
            "| --- | --- | --- | --- | --- |",
            "| `exploding-gradients` | 12 | Gradient norm 4.2e+05; below 31 would be usual. |"
            " norm = 4.2e+05, limit = 31, loss = nan | `net.0`, `net.2` |",
            "",
            "## What was told",
            "",
            "| Step | Epoch | Severity | Finding | Seen | Where | Done |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            r"| 3 | 0 | critical | `my-own` | Column \<b\>x\|y\</b\> \& `__init__` jumped | `<b>`, `a_b[0]` |  |",
            "| 12 to 90 (3 times) | 0 | critical | `exploding-gradients` | Gradient norm 4.2e+05; below 31"
            " would be usual. | `net.0`, `net.2` | Clipped to 31. |",
            "",
            "### My own (`my-own`)",
            "",
            'Mute only this: `mute=("my-own",)`',
            "",
            f"### {spike.title} (`exploding-gradients`)",
            "",
            f"Why it stalls training: {spike.why}",
            "",
            "What to change: Clip by a fixed limit:",
            "",
            "```python",
            "trainer = Trainer(gradient_clip_val=1.0)  # or AutoClip()",
            "```",
            "",
            "Then look for the cause.",
            "",
            'Mute only this: `mute=("exploding-gradients",)`',
            "",
            "## Notes",
            "",
            "Seen, and no reason for alarm by itself: kept as information.",
            "",
            "| Step | Epoch | Severity | Finding | Seen | Where | Done |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            "| 40 | 1 | info | `vanishing-gradients` | Gradients are 1e-9; above 1e-4 would be fine. |  |  |",
            "",
            "## Facts",
            "",
            "| Fact | Value |",
            "| --- | --- |",
            "| steps | 90 |",
            "| world size | 1 |",
            "",
        ]
    )


RATE_TITLE = CATALOGUE["learning-rate-too-high"].title


@pytest.mark.parametrize(
    ("findings", "outcome", "sentence"),
    [
        ([], "learning", "Outcome: learning. The run is well: nothing stalls it."),
        ([NOTE], "converged", "Outcome: converged. The run is well: nothing stalls it."),
        ([SPIKE], "learning", "Outcome: learning. The run is well: nothing stalls it. 1 finding was told on the way."),
        ([], "too early", "Not judged: too few steps to tell how the run fares."),
        (
            [SPIKE, FOREIGN],
            "stalled",
            "Outcome: stalled. No cause could be named from what was seen. 2 findings were told on the way.",
        ),
    ],
)
def test_a_run_without_causes_gets_a_clear_sentence(findings: list[Finding], outcome: str, sentence: str) -> None:
    assert render_markdown(findings, [], outcome, {}).split("\n\n")[1].strip() == sentence
    assert f"<p>{sentence}</p>" in render_html(findings, [], outcome, {})


def test_a_run_that_learns_may_still_be_held_back() -> None:
    assert "Outcome: learning. What holds it back: " in render_markdown([SPIKE], [RATE], "learning", {})


class Words(HTMLParser):
    """The tags of a page, those left open, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert not {"src", "href"} & dict(attrs).keys(), "the page needs nothing else"
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_html_escapes_everything_and_says_what_markdown_says() -> None:
    page = render_html([FOREIGN, SPIKE, NOTE], [RATE], "diverging", {"name": '<script>"x"</script>'})
    words = Words()
    words.feed(page)
    assert not words.open
    assert not {"b", "script", "img", "link"} & words.tags
    for text in (
        "Column <b>x|y</b> & __init__ jumped",
        "<b>",
        "a_b[0]",
        '<script>"x"</script>',
        "87 % sure",
        "Use lr=1e-4.",
    ):
        assert text in words.text
    assert "<pre>trainer = Trainer(gradient_clip_val=1.0)  # or AutoClip()</pre>" in page
    assert "<td>Column &lt;b&gt;x|y&lt;/b&gt; &amp; <code>__init__</code> jumped</td>" in page
    assert "prefers-color-scheme: dark" in page
    markdown = render_markdown([FOREIGN, SPIKE, NOTE], [RATE], "diverging", {"name": '<script>"x"</script>'})
    headings = [line.lstrip("# ").replace("`", "") for line in markdown.split("\n") if line.startswith("#")]
    assert all(heading in words.text for heading in headings)


@pytest.mark.parametrize("causes", [[], [RATE]])
def test_rich_takes_no_name_for_markup(causes: list[Cause]) -> None:
    odd = Finding("my-own", 3, 0, "critical", "At [0] and [/red]")
    console = Console(width=140, file=io.StringIO())
    console.print(rich_table([odd, NOTE], causes, "stalled"))
    text = console.file.getvalue()
    assert "At [0] and [/red]" in text
    assert "critical: my-own" in text
    assert "vanishing" not in text, "notes are for the report"
    assert ("What to change: Use `lr=1e-4`." in text) == bool(causes)


def test_reading_passes_over_half_a_line_and_knows_strict_numbers(tmp_path: Path) -> None:
    file = tmp_path / "stall_findings.jsonl"
    data = SPIKE.to_dict() | {"evidence": {"a": "nan", "b": "inf", "c": "-inf", "d": None, "e": 1.5}, "later": "field"}
    whole = json.dumps(data)
    file.write_text(f"{whole}\n{whole[:40]}\n\n{json.dumps(NOTE.to_dict())}\n{whole[:-1]}")
    first, second = read_findings(tmp_path)
    assert second == NOTE
    assert {k: str(v) for k, v in first.evidence.items()} == {
        "a": "nan",
        "b": "inf",
        "c": "-inf",
        "d": "nan",
        "e": "1.5",
    }
    assert (first.where, first.remedy, first.advice) == (SPIKE.where, SPIKE.remedy, SPIKE.advice)
    assert read_findings(file)[1] == NOTE


@pytest.mark.parametrize("line", ['{"loss": 1.0}', "12", '{"evidence": {"a": "many"}}'])
def test_a_file_of_something_else_is_refused(tmp_path: Path, line: str) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text(f"{line}\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl holds no finding"):
        read_findings(file)
    file.write_text(f"{line}\n{json.dumps(NOTE.to_dict())}\n")
    assert read_findings(file) == [NOTE]


def test_no_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_findings(tmp_path)


def test_a_report_needs_neither_torch_nor_lightning_nor_rich() -> None:
    code = "import sys, lightning_stall.report; print([m for m in ('torch', 'lightning', 'rich') if m in sys.modules])"
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
