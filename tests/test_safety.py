"""What others wrote is shown, never obeyed: hostile names in reports, damaged files of findings, no network, no code."""

from __future__ import annotations

import ast
import json
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from markdown_it import MarkdownIt
from torch import Tensor, nn
from torch.nn import functional as F
from twin_runs import QUIET

import lightning_stall
from lightning_stall import StallCallback, StallReport, stall_callbacks
from lightning_stall.cli import main
from lightning_stall.finding import Cause, Finding
from lightning_stall.history import Curves
from lightning_stall.replay import FINDINGS_FILE, read_run
from lightning_stall.report import render_fragment, render_html, render_markdown
from lightning_stall.sinks import ConsoleSink, StallWarning
from lightning_stall.testing import blobs, healthy

ROOT = Path(lightning_stall.__file__).parent
HOSTILE = (
    "<script>alert(1)</script>",
    "'\"><svg onload=alert(1)>",
    "<img src=x onerror=alert(1)>",
    "&lt;script&gt;",
    "a|b",
    "a\\|b",
    "`a|b`",
    "`a\\`|b",
    "\\",
    "`",
    "``",
    "](http://evil.example)",
    "[a](http://evil.example)",
    "![x](http://evil.example/a.png)",
    "[a](javascript:alert(1))",
    "<http://evil.example>",
    "two\nlines",
    "two\r\nlines",
    "\n<script>alert(1)</script>",
    "\u2028<b>",
    "\n| a | b |\n",
    "\x00<b>",
    "x`<script>`y",
    "</td></tr></table><iframe>",
    "</style><script>alert(1)</script>",
    "*a* **b** ~c~",
    "__init__ and _a_",
    "`<img src=x onerror=alert(1)>",
    "``<b>x</b>`",
    "x\n    ```\n    <b>",
    "```",
    "~~~",
    "[net]: http://evil.example",
    "[`net]: http://evil.example`",
    "\n[net]: http://evil.example\n\n[net]",
    "\n\n| a | b |\n|---|---|\n| c | d |\n",
    "# a",
    "- a",
    "1. a",
    "\x1b[31m",
    "\ud800",
)
TEXT_TAGS = {*("h1", "h2", "h3", "p", "code", "pre", "table", "thead", "tbody", "tr", "th", "td")}
PAGE_TAGS = {*TEXT_TAGS, "html", "head", "meta", "title", "style", "body", "div"}
DRAWN_TAGS = {"figure", "figcaption", "svg", "path", "text", "g", "rect", "ol", "li"}
CALLED = ("script", "onload", "onerror", "href", "src", "action", "srcset", "xlink:href", "data", "formaction")


class Page(HTMLParser):
    """The tags, attributes and text of a page, and the number of cells in each row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[tuple[str, str]] = set()
        self.rows: list[int] = []
        self.tables = 0
        self.text = self.style = ""
        self.inside: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update((name, value or "") for name, value in attrs)
        self.tables += tag == "table"
        if tag == "tr":
            self.rows.append(0)
        elif tag in ("td", "th"):
            self.rows[-1] += 1
        if tag == "style":
            self.inside.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if tag == "style":
            self.inside.pop()

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.style += data
        else:
            self.text += data


def inert(page: Page, tags: set[str]) -> None:
    """No tag but these, nothing that is called or fetched, and styles that reach for nothing."""
    assert page.tags <= tags, page.tags - tags
    for name, value in page.attributes:
        assert name not in CALLED, (name, value)
        assert not name.startswith("on"), (name, value)
        assert not re.search(r"https?:|javascript:|data:|url\(", value), (name, value)
    assert not re.search(r"url\(|@import|expression\(|https?:", page.style)


def markdown(text: str) -> Page:
    """As a reader that lets raw HTML through, the worst of them, shows it."""
    return Page(MarkdownIt("commonmark").enable("table").render(text))


def said(text: str) -> tuple[list[Finding], list[Cause], Curves]:
    """A report whose every free field holds `text`."""
    findings = [
        Finding("exploding-gradients", 1, 0, "warning", text, f"Do so: {text}", {text: 1.0}, (text, text), text),
        Finding("vanishing-gradients", 2, 0, "info", f"Seen in {text}.", where=(f"net.{text}", text)),
        Finding("my-own", 3, 0, "critical", text, where=(f"batch[{text!r}]: column 3",)),
    ]
    causes = [Cause("exploding-gradients", 0.5, text, text, tuple(findings))]
    curves = Curves(
        loss=[(1, 2.0), (2, 1.0)],
        baseline=1.0,
        steps=[1, 2],
        lines={"stall/gradients/total_norm": [1.0, 2.0]},
        layers={text: [1.0, 2.0], f"b {text}": [2.0, 3.0]},
    )
    return findings, causes, curves


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_nothing_of_a_text_is_live_in_the_page(text: str) -> None:
    findings, causes, curves = said(text)
    facts = {text: text}
    usual = Page(plain_page())
    page = Page(render_html(findings, causes, "stalled", facts, curves))
    inert(page, PAGE_TAGS | DRAWN_TAGS)
    assert page.rows == usual.rows, "no cell more, none less"
    assert page.attributes <= usual.attributes | {a for a in page.attributes if a[0] in ("d", "x", "y")}
    inert(Page(render_fragment(findings, causes, "stalled", facts, curves)), PAGE_TAGS | DRAWN_TAGS)


def plain_page() -> str:
    findings, causes, curves = said("plain")
    return render_html(findings, causes, "stalled", {"plain": "plain"}, curves)


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_markdown_keeps_its_shape_and_makes_no_tags_or_links(text: str) -> None:
    findings, causes, _ = said(text)
    page = markdown(render_markdown(findings, causes, "stalled", {text: text, "other": text}))
    plain, said_plainly, _ = said("plain")
    usual = markdown(render_markdown(plain, said_plainly, "stalled", {"plain": "plain", "other": "plain"}))
    inert(page, TEXT_TAGS)
    assert page.rows == usual.rows
    assert page.tables == usual.tables


# ---------------------------------------------------------------------- a run whose own names are hostile

NAME = "<script>alert(1)</script>|`](http://evil\"'\n"


class Batches:
    """Eight batches under a hostile key; one column is a million times too large."""

    def __iter__(self) -> Any:
        generator = torch.Generator().manual_seed(0)
        for _ in range(8):
            x = torch.randn(16, 8, generator=generator)
            x[:, 3] *= 1e6
            yield {NAME: x, "y": torch.randint(4, (16,), generator=generator)}

    def __len__(self) -> int:
        return 8


class Named(LightningModule):
    """Layers, a logged metric and a batch under hostile names; ill in several ways, and an exception at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.ModuleDict({NAME: nn.Linear(8, 16), f"b{NAME}": nn.Sequential(nn.ReLU(), nn.Linear(16, 4))})

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[NAME]
        if self.global_step == 20:
            x = x * float("nan")
        if self.global_step == 60:
            raise RuntimeError(f"out of {NAME}")
        for layer in self.net.values():
            x = layer(x)
        self.log(NAME, x.mean())
        return F.cross_entropy(x, batch["y"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.net[f"b{NAME}"].parameters(), 0.1)  # the first layer is forgotten


@pytest.mark.filterwarnings("ignore::lightning_stall.sinks.console.StallWarning")
def test_a_run_with_hostile_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seed_everything(0, verbose=False)
    family = stall_callbacks()
    trainer = Trainer(
        callbacks=family, **{**QUIET, "default_root_dir": tmp_path, "max_epochs": -1, "log_every_n_steps": 5}
    )
    with pytest.raises(RuntimeError, match="out of"):
        trainer.fit(Named(), Batches())
    assert not [c.failed for c in family if c.failed]
    report = family[-1]
    assert any(NAME in place for f in report.findings for place in f.where), "the names do reach it"  # type: ignore[attr-defined]
    page = Page((tmp_path / "stall_report.html").read_text())
    inert(page, PAGE_TAGS | DRAWN_TAGS)
    assert "alert(1)" in page.text
    inert(Page(report._repr_html_()), PAGE_TAGS | DRAWN_TAGS)  # type: ignore[attr-defined]
    text = (tmp_path / "stall_report.md").read_text()
    inert(markdown(text), TEXT_TAGS)
    assert set(markdown(text).rows) <= {2, 5, 7}, "as many cells as the header has, in each table"
    for line in (tmp_path / FINDINGS_FILE).read_text().splitlines():
        json.loads(line)
    capsys.readouterr()
    assert main(["report", str(tmp_path), "--html", str(tmp_path / "again.html")]) == 0
    inert(Page((tmp_path / "again.html").read_text()), PAGE_TAGS | DRAWN_TAGS)


# ---------------------------------------------------------------------- damaged files

FINDING = Finding("exploding-gradients", 12, 0, "warning", "Norm 4e5.", evidence={"norm": 4e5}, where=("net.0",))
CURVES = {
    "loss": [[1, 2.0], [2, 1.0]],
    "baseline": 1.0,
    "steps": [1, 2],
    "lines": {"stall/gradients/total_norm": [1.0, 2.0]},
    "layers": {"a": [1.0, 2.0], "b": [2.0, 3.0]},
}


def finding(**changed: Any) -> str:
    return json.dumps({**FINDING.to_dict(), **changed})


def curves(**changed: Any) -> str:
    return json.dumps({"curves": {**CURVES, **changed}})


def outcome(**changed: Any) -> str:
    return json.dumps({"outcome": "stalled", "step": 12, "evidence": {"level": 1.0}, **changed})


GOOD = (finding(), curves(), outcome())
# lines that may be odd and are still what they say
BORNE: dict[str, Sequence[str]] = {
    "a line of a megabyte": (finding(summary="x" * 2**20), curves(), outcome()),
    "an unknown code": (finding(), finding(code="my-own"), finding(code="", severity="info"), outcome()),
    "an unknown outcome": (finding(), outcome(outcome="splendid")),
    "keys of a later version": (finding(later=1, run=2), curves(later=2), outcome(later=3)),
    "a step below 0": (finding(step=-5), curves(), outcome()),
    "places that are numbers": (finding(where=[3]), curves(), outcome()),
    "evidence that is no number": (finding(evidence={"strength": "nan", "b": None, "c": "-inf"}), outcome()),
    "evidence out of reach": (finding().replace("400000.0", "1e999"), curves(), outcome()),
    "huge losses": (finding(), curves(loss=[[1, 1.79e308], [2, -1.79e308]]), outcome()),
    "the largest losses": (finding(), curves(loss=[[1, 1.7976931348623157e308], [2, 1.0]]), outcome()),
    "the smallest losses": (finding(), curves(loss=[[1, 5e-324], [2, 5e-324]], baseline=None), outcome()),
    "huge and tiny layers": (finding(), curves(layers={"a": [1.79e308, 1.0], "b": [5e-324, 2.0]}), outcome()),
    "losses that are no numbers": (
        finding(),
        curves(loss=[[1, None], [2, None]]),
        outcome(evidence={"level": "nan"}),
    ),
    "no lines": (),
    "empty lines": ("", *GOOD, "", ""),
    "lines that end as on Windows": tuple(f"{line}\r" for line in GOOD),
    "texts with control characters": (finding(summary="a\x00b\x07", where=["\x08"]), *GOOD[1:]),
    "half a character": (finding(summary="\ud800", where=["\udfff"], remedy="\ud800"), *GOOD[1:]),
    "a second run": ('{"run": "now"}', *GOOD, '{"run": "later"}', *GOOD),
}
BIG = 10**400
# lines that are none of a run's: damaged, or of something else
PASSED_OVER: dict[str, str] = {
    "half a line": finding()[:40],
    "half a line of curves": curves()[:60],
    "a megabyte that is no JSON": "x" * 2**20,
    "nested without end": "[" * 200_000,
    "a number of 5000 digits": finding(step=1).replace('"step": 1', f'"step": {"9" * 5000}'),
    **{f"{word} alone": word for word in ("[1, 2]", '["run"]', '"a run"', "12", "null", "true")},
    "no step": json.dumps({k: v for k, v in FINDING.to_dict().items() if k != "step"}),
    **{
        f"a finding whose {name} is {ascii(value)[:12]}": finding(**{name: value})
        for name, values in {
            "code": ([1], None),
            "step": ("7", "<script>alert(1)</script>", None, True, 1.5, math.nan, math.inf, BIG),
            "epoch": ("7", None, BIG),
            "severity": ("fatal", None, ["info"]),
            "summary": (None, ["a"]),
            "advice": (None, 3),
            "remedy": (3,),
            "where": (3, None, "net", {"net": 1}),
            "evidence": ([1], None, {"a": {}}, {"a": "many"}, {"a": BIG}),
        }.items()
        for value in values
    },
    **{
        f"curves whose {name} is {ascii(value)[:12]}": curves(**{name: value})
        for name, values in {
            "loss": ([["a", "b"]], [[1, 2, 3]], [[1, BIG]], [[math.inf, 1]]),
            "baseline": ("a", BIG, []),
            "steps": ([1], [1, math.inf], [1, math.nan], [1, BIG // 10**300]),
            "lines": ([], {"stall/gradients/total_norm": 1}),
            "layers": ([], {"a": [1.0], "b": [2.0]}),
        }.items()
        for value in values
    },
    **{f"curves that are {word}": f'{{"curves": {word}}}' for word in ("null", "[]", "{}", '"run"')},
    "an outcome without a step": '{"outcome": "stalled"}',
    "an outcome that is a list": outcome(outcome=[]),
    "an outcome of 400 digits": outcome(evidence={"level": BIG}),
}


@pytest.mark.parametrize("name", [*BORNE, *PASSED_OVER])
def test_a_damaged_line_costs_no_other(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = BORNE.get(name) if name in BORNE else (finding(), curves(), PASSED_OVER[name], outcome())
    (tmp_path / FINDINGS_FILE).write_text("".join(f"{line}\n" for line in lines or ()))
    assert main(["report", str(tmp_path), "--html", str(tmp_path / "page.html")]) == 0
    told = capsys.readouterr()
    assert "Outcome: " in told.out or "Not judged" in told.out
    assert told.err == ("" if name in BORNE else "1 line was passed over: damaged, or of something else\n")
    inert(Page((tmp_path / "page.html").read_text()), PAGE_TAGS | DRAWN_TAGS)
    record = read_run(tmp_path)
    if name in PASSED_OVER:
        assert record.findings == [FINDING]
        assert record.outcome.state == "stalled"
        assert record.curves is not None
    elif lines:
        assert record.findings[0].code == FINDING.code, "the whole lines count"


RUBBISH = {
    "every byte": bytes(range(256)) * 50,
    "zeros": bytes(2**20),
    "gzip": b"\x1f\x8b\x08\x00" + bytes(200),
    "utf-16": "\n".join(GOOD).encode("utf-16"),
    "one byte": b"\xff",
    "metrics": b'{"loss": 1.0}\n{"loss": 0.5}\n',
}


@pytest.mark.parametrize("name", RUBBISH)
def test_a_file_of_something_else(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / FINDINGS_FILE
    file.write_bytes(RUBBISH[name])
    assert main(["report", str(tmp_path)]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("no run can be read there: ")
    file.write_bytes("".join(f"{line}\n" for line in GOOD).encode() + RUBBISH[name])
    assert main(["report", str(tmp_path)]) == 0
    assert "passed over" in capsys.readouterr().err
    assert read_run(file).findings == [FINDING], "what was whole before it is still read"


ESCAPES = "\x1b]0;owned\x07\x1b[31mred\x9b2J\rover\u202eback\x7f"


def test_no_escape_sequence_reaches_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = dict.fromkeys(("summary", "advice", "remedy"), ESCAPES) | {"where": [ESCAPES]}
    (tmp_path / FINDINGS_FILE).write_text(
        f"{finding(**odd)}\n{finding(**odd, code=ESCAPES)}\n{outcome(outcome=ESCAPES)}"
    )
    assert main(["report", str(tmp_path), "--html", str(tmp_path / "page.html")]) == 0
    assert main(["report", str(tmp_path / ESCAPES)]) == 2
    assert main(["explain", ESCAPES]) == 2
    told = capsys.readouterr()
    with pytest.warns(StallWarning) as warned:
        ConsoleSink()(Finding("my-own", 1, 0, "warning", ESCAPES, where=(ESCAPES,)))
    findings, causes, _ = said(ESCAPES)
    shown = (told.out, told.err, str(warned[0].message), render_markdown(findings, causes, "stalled", {}))
    for text in (*shown, (tmp_path / "page.html").read_text()):
        assert "owned" in text
        assert not set(text) & set("\x1b\x07\x9b\r\u202e\x7f")


def test_a_step_carries_no_script() -> None:
    odd = Finding("my-own", "<script>alert(1)</script>", 0, "warning", "s")  # type: ignore[arg-type]
    inert(Page(render_html([odd], [], "stalled", {}, Curves())), PAGE_TAGS | DRAWN_TAGS)


@pytest.mark.filterwarnings("ignore::lightning_stall.sinks.console.StallWarning")
def test_a_name_that_cannot_be_encoded_costs_no_report(tmp_path: Path) -> None:
    class Odd(StallCallback):
        codes = ("dead-activations",)

        def step_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.tell("dead-activations", "Seen.", where=["\ud800"])  # as `os.fsdecode` makes of odd names of files

    report = StallReport()
    Trainer(callbacks=[Odd(), report], **{**QUIET, "default_root_dir": tmp_path}).fit(healthy(), blobs())
    assert report.failed is None
    for name in ("stall_report.md", "stall_report.html"):
        assert r"\ud800" in (tmp_path / name).read_text()
    assert read_run(tmp_path).findings[0].where == ("\ud800",)


@pytest.mark.parametrize("where", ["nowhere", "nowhere/stall_findings.jsonl", "folder"])
def test_no_file(where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "folder" / FINDINGS_FILE).mkdir(parents=True)
    assert main(["report", str(tmp_path / where)]) == 2
    assert "no run can be read there" in capsys.readouterr().err


# ---------------------------------------------------------------------- no network, no code

ALONE = """
import sys
FORBIDDEN = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.bind", "urllib.Request",
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "pickle.find_class", "webbrowser.open")
seen = []
import warnings, logging
warnings.simplefilter("ignore")
logging.disable(logging.WARNING)
import torch
torch.set_num_threads(1)
from lightning.pytorch import Trainer
from lightning_stall import stall_callbacks
from lightning_stall.testing import blobs, nan_batch
import lightning_stall.cli
trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
    enable_model_summary=False, max_epochs=4, default_root_dir=sys.argv[1], callbacks=stall_callbacks(auto_remedy=True))
sys.addaudithook(lambda event, args: seen.append((event, str(args)[:80])) if event in FORBIDDEN else None)
trainer.fit(nan_batch(), blobs())
assert lightning_stall.cli.main(["report", sys.argv[1], "--html", sys.argv[1] + "/page.html"]) == 0
print("SEEN", seen)
"""


def test_a_fit_and_its_report_reach_for_no_network_process_or_pickle(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", ALONE, str(tmp_path)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "SEEN []"


FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "input", "breakpoint"}
FORBIDDEN_ATTRIBUTES = {
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "torch.load", "torch.hub", "numpy.load", "np.load"),
    *("os.system", "os.popen", "os.startfile", "ctypes.CDLL", "marshal.loads"),
}
FORBIDDEN_IMPORTS = {
    *("socket", "http", "urllib.request", "ftplib", "smtplib", "ssl", "requests", "httpx", "aiohttp", "webbrowser"),
    *("subprocess", "yaml", "marshal", "shelve", "dill", "cloudpickle", "joblib", "ctypes", "runpy", "code"),
}


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_is_evaluated_or_fetched(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        place = f"{path.name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in FORBIDDEN_CALLS, place
        elif isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in FORBIDDEN_ATTRIBUTES, place
        elif isinstance(node, ast.Import):
            assert not {a.name for a in node.names} & FORBIDDEN_IMPORTS, place
        elif isinstance(node, ast.ImportFrom):
            assert node.module not in FORBIDDEN_IMPORTS, place
            names = {f"{node.module}.{a.name}" for a in node.names}
            assert not names & (FORBIDDEN_IMPORTS | FORBIDDEN_ATTRIBUTES), place
