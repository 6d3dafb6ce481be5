"""How well the diagnosis names what ails the zoo: `python -m benchmarks.zoo [--seeds 0] [--match S] [--remedy] ...`.

Each case is fitted under the whole callback family. A sick one should end with its true cause first; a well one
should end with no cause and no finding above "info".
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.zoo.case import Case
from benchmarks.zoo.run import load_cases, run

BINS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # edges of the confidence bins of the reliability table


@dataclass
class Verdict:
    """What the package said about one run. `said` holds (step, code) of each finding above "info", in order."""

    name: str
    family: str
    seed: int
    expected: list[str]
    causes: list[tuple[str, float]]
    said: list[tuple[int, str]]
    score: float | None
    seconds: float
    steps: int
    error: str | None
    top1: bool = field(init=False)
    top3: bool = field(init=False)
    first_right: int | None = field(init=False)  # optimizer step of the first right word
    extra: list[str] = field(init=False)  # codes told that are not expected

    def __post_init__(self) -> None:
        codes = [code for code, _ in self.causes]
        self.top1 = any(code in self.expected for code in codes[:1])
        self.top3 = any(code in self.expected for code in codes[:3])
        self.first_right = min((step for step, code in self.said if code in self.expected), default=None)
        self.extra = sorted({code for _, code in self.said if code not in self.expected})

    @property
    def well(self) -> bool:
        return not self.expected

    @property
    def false_alarm(self) -> bool:
        return self.well and bool(self.causes or self.said)


def examine(case: Case, seed: int, remedy: bool) -> Verdict:
    """Fit the case under `stall_callbacks` and read its report."""
    from lightning_stall import stall_callbacks

    callbacks = stall_callbacks(auto_remedy=remedy)
    result = run(case, seed, callbacks)
    report = callbacks[-1]
    return Verdict(
        case.name,
        case.family,
        seed,
        list(case.causes),
        [(cause.code, float(cause.confidence)) for cause in report.causes],
        [(finding.step, finding.code) for finding in report.findings if finding.severity != "info"],
        result.score,
        round(result.seconds, 2),
        result.steps,
        result.error,
    )


def table_of(verdicts: Sequence[Verdict]) -> Table:
    table = Table(title="zoo", title_justify="left")
    for column in ("case", "expected", "top-1", "top-3"):
        table.add_column(column, overflow="fold")
    for column in ("confidence", "first right", "score"):
        table.add_column(column, justify="right")
    table.add_column("extra warnings", overflow="fold")
    for v in verdicts:
        good = not v.false_alarm if v.well else v.top1
        first, confidence = v.causes[0] if v.causes else ("-", None)
        table.add_row(
            f"{v.name} #{v.seed}",
            " | ".join(v.expected) or "well",
            f"[{'green' if good else 'red'}]{first}[/]",
            "yes" if v.top3 else ("" if v.well else f"no: {', '.join(code for code, _ in v.causes[1:3])}"),
            "" if confidence is None else f"{confidence:.2f}",
            "" if v.first_right is None else str(v.first_right),
            "none" if v.score is None else f"{v.score:.3f}",
            ", ".join(v.extra) + (" [red](the fit raised)[/]" if v.error else ""),
        )
    return table


def reliability(verdicts: Sequence[Verdict]) -> Table:
    """Of the first causes said with a confidence in a bin, how many were right. On a well run none is right."""
    table = Table(title="reliability of the first cause", title_justify="left")
    for column in ("confidence", "runs", "mean confidence", "right"):
        table.add_column(column, justify="right")
    first = [(v.causes[0][1], v.top1) for v in verdicts if v.causes]
    for low, high in pairwise(BINS):
        inside = [(c, right) for c, right in first if low <= c < high or (high == 1.0 and c >= 1.0)]
        if inside:
            mean = sum(c for c, _ in inside) / len(inside)
            share = sum(right for _, right in inside) / len(inside)
            table.add_row(f"{low:.1f} - {high:.1f}", str(len(inside)), f"{mean:.2f}", f"{share:.0%}")
    return table


def summary(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """The figures of the whole; shares are of the sick or of the well runs, None where there were none."""
    sick, fine = [v for v in verdicts if not v.well], [v for v in verdicts if v.well]
    steps = [v.first_right for v in sick if v.first_right is not None]
    return {
        "sick runs": len(sick),
        "top-1": _share(v.top1 for v in sick),
        "top-3": _share(v.top3 for v in sick),
        "abstained on sick": _share(not v.causes for v in sick),
        "well runs": len(fine),
        "false alarms on well": sum(v.false_alarm for v in fine),
        "false alarm share": _share(v.false_alarm for v in fine),
        "median first right step": median(steps) if steps else None,
        "extra warnings a sick run": sum(len(v.extra) for v in sick) / len(sick) if sick else None,
        "fits that raised": sum(v.error is not None for v in verdicts),
    }


def _share(flags: Any) -> float | None:
    flags = list(flags)
    return sum(flags) / len(flags) if flags else None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__)
    parser.add_argument("--seeds", default="0", help="comma separated")
    parser.add_argument("--match", default="", help="only cases whose name, family or causes hold this text")
    parser.add_argument("--well-only", action="store_true")
    parser.add_argument("--sick-only", action="store_true")
    parser.add_argument("--remedy", action="store_true", help="let the callbacks act")
    parser.add_argument("--json", type=Path, help="write every verdict and the summary here")
    options = parser.parse_args()
    console = Console()
    console = console if console.is_terminal else Console(width=180)
    verdicts: list[Verdict] = []
    for case in load_cases().values():
        unwanted = (options.well_only and not case.well) or (options.sick_only and case.well)
        if unwanted or options.match not in " ".join((case.name, case.family, *case.causes)):
            continue
        for seed in map(int, options.seeds.split(",")):
            verdicts.append(examine(case, seed, options.remedy))
            last = verdicts[-1]
            said = ", ".join(f"{code} {confidence:.2f}" for code, confidence in last.causes[:3]) or "nothing"
            mark = "ok" if (not last.false_alarm if last.well else last.top1) else "WRONG"
            print(f"{mark:6}{last.name} #{seed}: {said} ({last.seconds:.1f} s)", flush=True)
            if options.json:
                rows = {"verdicts": [asdict(v) for v in verdicts], "summary": summary(verdicts)}
                options.json.write_text(json.dumps(rows, indent=1))
    console.print(table_of(verdicts))
    console.print(reliability(verdicts))
    for name, value in summary(verdicts).items():
        figure = "-" if value is None else f"{value:.1%}" if isinstance(value, float) and value <= 1 else value
        console.print(f"{name:28} {figure}")


if __name__ == "__main__":
    main()
