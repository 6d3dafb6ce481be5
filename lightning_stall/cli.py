"""`lightning-stall demo | explain CODE | codes | report DIR`. Starts fast: torch is imported by the demo alone."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_stall.version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="lightning-stall", description="Why is my training stalled, and what do I change?"
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="train one healthy model and five sick ones on scikit-learn's digits")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--out", type=Path, default=Path(".demo"), help="where TensorBoard's files go (%(default)s)")

    explain = commands.add_parser("explain", help="what a code means, an example and how it is mended, what to do")
    explain.add_argument("code", nargs="?", help="such as loss-plateau; all of them where left out")

    commands.add_parser("codes", help="every code with its kind and meaning")

    report = commands.add_parser("report", help="judge a finished or dead run again from its stall_findings.jsonl")
    report.add_argument("directory", type=Path, help="the log directory of the run, or the file itself")
    report.add_argument("--html", type=Path, help="write the report as one HTML page to this file")

    args = parser.parse_args(argv)
    if args.command == "demo":
        return _demo(args.seed, args.out)
    if args.command == "explain":
        return _explain(args.code)
    if args.command == "codes":
        return _explain(None)
    return _report(args.directory, args.html)


def _demo(seed: int, out: Path) -> int:
    from lightning_stall.demo import main as run  # trains: needs torch

    return run(seed, out)


def _explain(code: str | None) -> int:
    from lightning_stall.catalogue import CATALOGUE, explain
    from lightning_stall.report import shown

    if code is None:
        for entry in CATALOGUE.values():
            print(f"{entry.code:30} {entry.means}")
        return 0
    try:
        print(explain(code))
    except ValueError as error:  # MisconfigurationException is one
        print(shown(str(error)), file=sys.stderr)
        return 2
    return 0


def _report(directory: Path, page: Path | None) -> int:
    from rich.console import Console

    from lightning_stall.diagnosis import diagnose
    from lightning_stall.replay import read_run
    from lightning_stall.report import render_html, rich_table, shown

    try:
        run = read_run(directory)
        causes = diagnose(run.findings, run.outcome)
    except (OSError, ValueError, OverflowError) as error:  # the last two also of evidence that cannot be weighed
        print(shown(f"no run can be read there: {error}"), file=sys.stderr)
        return 2
    Console().print(rich_table(run.findings, causes, run.outcome.state))
    if page is not None:
        facts = {name: f"{value:.4g}" for name, value in run.outcome.evidence.items()}
        page.write_text(render_html(run.findings, causes, run.outcome.state, facts, run.curves), encoding="utf-8")
        print(shown(f"written to {page}"))
    if run.passed_over:
        lines = "1 line was" if run.passed_over == 1 else f"{run.passed_over} lines were"
        print(f"{lines} passed over: damaged, or of something else", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
