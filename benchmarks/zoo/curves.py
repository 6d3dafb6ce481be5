"""Loss curves of the bare runs: `python -m benchmarks.zoo.curves OUT.json [--match SUBSTR] [--seeds 0,1,2]`.

OUT.json is `{case: {seed: {"loss": [...], "val": [...], "score": .., "causes": [...]}}}`, rewritten after each run, so
that a run cut short leaves what it has.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from benchmarks.zoo.run import Result, load_cases, run


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo.curves", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--match", default="", help="only cases whose name or family holds this text")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--well-only", action="store_true")
    parser.add_argument("--keep", action="store_true", help="leave runs that OUT already holds, and add the missing")
    options = parser.parse_args()
    curves: dict[str, dict[str, Any]] = {}
    if options.keep and options.out.exists():
        curves = json.loads(options.out.read_text())
    for case in load_cases().values():
        if options.match not in f"{case.name} {case.family}" or (options.well_only and not case.well):
            continue
        runs = curves.setdefault(case.name, {})
        for seed in map(int, options.seeds.split(",")):
            if str(seed) in runs:
                continue
            result = run(case, seed)
            runs[str(seed)] = record(result, case.causes, case.family)
            options.out.write_text(json.dumps(curves))
            print(line(result), flush=True)


def record(result: Result, causes: tuple[str, ...], family: str) -> dict[str, Any]:
    """One run as plain values; a loss that is not finite becomes the text "nan", "inf" or "-inf"."""
    loss = [x if x is None or math.isfinite(x) else str(x) for x in result.loss]
    return {
        "loss": loss,
        "val": [{k: v if math.isfinite(v) else str(v) for k, v in entry.items()} for entry in result.val],
        "score": result.score,
        "causes": list(causes),
        "family": family,
        "seconds": round(result.seconds, 2),
        "steps": result.steps,
        "error": result.error,
    }


def line(result: Result) -> str:
    score = "none" if result.score is None else f"{result.score:.4f}"
    ends = [x for x in result.loss if x is not None]
    tail = ends[-20:]
    loss = f"{ends[0]:.4g} -> {sum(tail) / len(tail):.4g}" if ends else "not returned"
    text = (
        f"{result.name:34} seed {result.seed}  score {score:>9}  {result.steps:5} steps {result.seconds:5.1f} s  {loss}"
    )
    return text if result.error is None else f"{text}\n{result.error}"


if __name__ == "__main__":
    main()
