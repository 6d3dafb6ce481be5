"""How well the diagnosis names what ails the zoo: `python -m benchmarks.zoo [--part all] [--seeds 0,1] [--scores] ...`.

Each case is fitted under the whole callback family. A sick one should end with its true cause first; a well one
should end with no cause and no finding above "info". With `--scores` the zoo measures its own truth too, and what the
remedies are worth; a sick case whose twin is no better is refused. README.md says how to read the tables.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.zoo.case import Case
from benchmarks.zoo.figures import near_twin, refused, reliability, remediable, summary, wrong_words
from benchmarks.zoo.run import HELD_OUT, load_cases, part
from benchmarks.zoo.verdict import Verdict, examine, plain


def chosen(options: argparse.Namespace) -> list[Case]:
    """The cases asked for, in the order they were registered."""

    def wanted(case: Case) -> bool:
        if (options.well_only and not case.well) or (options.sick_only and case.well):
            return False
        text = " ".join((case.name, case.family, *case.causes))
        return options.part in ("all", part(case)) and any(word in text for word in options.match.split(","))

    return [case for case in load_cases().values() if wanted(case)]


def judge(job: tuple[str, int], remedy: bool, scores: bool, opt_in: bool) -> Verdict:
    """One run, in whichever process."""
    name, seed = job
    return examine(load_cases()[name], seed, remedy, scores, opt_in)


def judged(options: argparse.Namespace) -> Iterator[Verdict]:
    work = [(case.name, seed) for case in chosen(options) for seed in map(int, options.seeds.split(","))]
    one = partial(judge, remedy=options.remedy, scores=options.scores, opt_in=options.opt_in)
    if options.jobs == 1:
        yield from map(one, work)
        return
    # a fresh process each: torch must not be forked once it has threads
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn"), _workers_as_usual) as pool:
        yield from pool.map(one, work)


def _workers_as_usual() -> None:
    """Loaders in this process start their workers as the platform does, and not as this process was started."""
    multiprocessing.set_start_method(None, force=True)


def grid(title: str, left: Sequence[str], right: Sequence[str] = ()) -> Table:
    table = Table(title=title, title_justify="left")
    for column in left:
        table.add_column(column, overflow="fold")
    for column in right:
        table.add_column(column, justify="right")
    return table


def number(value: float | None, form: str = ".3f") -> str:
    return "none" if value is None else f"{value:{form}}"


def cases_table(verdicts: Sequence[Verdict]) -> Table:
    table = grid(
        "zoo", ("case", "expected", "top-1", "top-3", "extra warnings"), ("confidence", "first right", "score")
    )
    scored = any(v.scores for v in verdicts)
    if scored:
        table.add_column("remedied", justify="right")
        table.add_column("twin", justify="right")
    for v in verdicts:
        first, confidence = v.causes[0] if v.causes else ("-", None)
        row = [
            f"{v.name} #{v.seed}",
            " | ".join(v.expected) or "well",
            f"[{'green' if v.good else 'red'}]{first}[/]",
            "yes" if v.top3 else ("" if v.well else f"no: {', '.join(code for code, _ in v.causes[1:3])}"),
            ", ".join(v.extra) + (" [red](the fit raised)[/]" if v.error else ""),
            "" if confidence is None else f"{confidence:.2f}",
            "" if v.first_right is None else str(v.first_right),
            number(v.scores.bare if v.scores else v.score),
        ]
        if scored:
            row += [number(v.scores.remedied), "" if v.well else number(v.scores.twin)] if v.scores else ["", ""]
        table.add_row(*row)
    return table


def confusion_table(verdicts: Sequence[Verdict]) -> Table:
    table = grid("wrong first words", ("expected", "said"), ("runs",))
    for expected, said, runs in wrong_words(verdicts):
        table.add_row(expected, said, str(runs))
    return table


def reliability_table(verdicts: Sequence[Verdict]) -> Table:
    """Of the causes said with a confidence in a bin, how many were right: the first of each run, and all of them."""
    table = grid(
        "reliability of causes", (), ("confidence", "first causes", "mean", "right", "all causes", "mean", "right")
    )
    firsts = {row[:2]: row[2:] for row in reliability(verdicts)}
    for low, high, *every in reliability(verdicts, first_only=False):
        cells = [
            cell for n, mean, right in (firsts.get((low, high), (0, 0, 0)), every) for cell in _cells(n, mean, right)
        ]
        table.add_row(f"{low:.1f} - {high:.1f}", *cells)
    return table


def _cells(runs: float, mean: float, right: float) -> tuple[str, str, str]:
    return (str(runs), f"{mean:.2f}", f"{right:.0%}") if runs else ("", "", "")


def refused_table(verdicts: Sequence[Verdict]) -> Table:
    table = grid("refused: the twin is no better", ("case", "ill"), ("bare", "twin", "bare s/step", "twin s/step"))
    names = refused(verdicts)
    for v in verdicts:
        if v.name in names and v.scores:
            pace = [number(v.scores.pace[name], ".4f") for name in ("bare", "twin")]
            ill = "time" if v.timed else "score"
            table.add_row(f"{v.name} #{v.seed}", ill, number(v.scores.bare), number(v.scores.twin), *pace)
    return table


def remedies_table(verdicts: Sequence[Verdict]) -> Table:
    """Where remedies fell short: a remediable case still far from its twin, or a well run that they changed."""
    table = grid("remedies that fell short", ("case", "expected", "what acted"), ("bare", "remedied", "twin"))
    names = refused(verdicts)
    for v in verdicts:
        s = v.scores
        if s is None or v.name in names:
            continue
        far = remediable(v) and not near_twin(s.remedied, s.twin)
        # one line under the table says how many AutoClip alone has changed
        if far or (v.well and (s.same_unclipped is False or s.error)):
            acted = "; ".join(s.acted) + (" [red](the fit raised)[/]" if s.error else "")
            row = (f"{v.name} #{v.seed}", " | ".join(v.expected) or "well", acted or "nothing")
            table.add_row(*row, number(s.bare), number(s.remedied), "" if v.well else number(s.twin))
    return table


def pace_table(verdicts: Sequence[Verdict]) -> Table:
    table = grid("seconds a step, where time is what ails", ("case", "what acted"), ("bare", "remedied", "twin"))
    for v in verdicts:
        if v.timed and v.scores:
            pace = [number(v.scores.pace[name], ".4f") for name in ("bare", "remedied", "twin")]
            table.add_row(f"{v.name} #{v.seed}", "; ".join(v.scores.acted) or "nothing", *pace)
    return table


def wide() -> Console:
    """A console whose tables stay wide in a file."""
    console = Console()
    return console if console.is_terminal else Console(width=180)


def show(verdicts: Sequence[Verdict], console: Console) -> None:
    out = set(refused(verdicts))
    counted = [v for v in verdicts if v.name not in out]
    tables = [cases_table(verdicts), confusion_table(counted), reliability_table(counted)]
    if any(v.scores for v in verdicts):
        tables += [refused_table(verdicts), remedies_table(verdicts), pace_table(verdicts)]
    for table in tables:
        if table.row_count:
            console.print(table)
    for name, value in summary(verdicts).items():
        share = isinstance(value, float) and name not in ("median first right step", "extra warnings a sick run")
        figure = "-" if value is None else f"{value:.1%}" if share else f"{value:.4g}"
        console.print(f"{name:30} {figure}")


def save(verdicts: Sequence[Verdict], path: Path) -> None:
    """Verdicts and figures as JSON; see README.md."""
    out = set(refused(verdicts))
    counted = [v for v in verdicts if v.name not in out]
    rows = {
        "verdicts": [v.to_dict() for v in verdicts],
        "summary": plain(summary(verdicts)),
        "refused": sorted(out),
        "wrong words": wrong_words(counted),
        "reliability": {"first": reliability(counted), "all": reliability(counted, first_only=False)},
    }
    path.write_text(json.dumps(rows, indent=1, allow_nan=False))


def arguments() -> argparse.ArgumentParser:
    """Which cases and seeds; the comparison with other tools takes the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("seen", *HELD_OUT, "all"), default="all")
    parser.add_argument("--seeds", default="0", help="comma separated")
    parser.add_argument("--match", default="", help="only cases whose name, family or causes hold one of these texts")
    parser.add_argument("--well-only", action="store_true")
    parser.add_argument("--sick-only", action="store_true")
    parser.add_argument("--json", type=Path, help="write every verdict and the figures here, after each run")
    return parser


def main() -> None:
    parser = arguments()
    parser.prog = "python -m benchmarks.zoo"
    parser.add_argument("--remedy", action="store_true", help="let the callbacks act in the run that is judged")
    parser.add_argument("--scores", action="store_true", help="fit each case bare, remedied and mended too")
    parser.add_argument("--opt-in", action="store_true", help="let remedies act that are asked for by name")
    parser.add_argument(
        "--jobs", type=int, default=1, help="processes; more than cores to spare spoils the timed cases"
    )
    options = parser.parse_args()
    verdicts: list[Verdict] = []
    for last in judged(options):
        verdicts.append(last)
        said = ", ".join(f"{code} {confidence:.2f}" for code, confidence in last.causes[:3]) or "nothing"
        scores = last.scores
        ends = f", {number(scores.bare)} > {number(scores.remedied)} > {number(scores.twin)}" if scores else ""
        mark = "ok" if last.good else "WRONG"
        print(f"{mark:6}{last.name} #{last.seed}: {said} ({last.seconds:.1f} s{ends})", flush=True)
        if options.json:
            save(verdicts, options.json)
    show(verdicts, wide())


if __name__ == "__main__":
    main()
