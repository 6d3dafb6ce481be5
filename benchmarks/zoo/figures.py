"""The zoo's figures, from verdicts alone: which cases count, shares, and how far a confidence can be believed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise
from statistics import fmean, median, pstdev
from typing import Any

from benchmarks.zoo.verdict import Verdict
from lightning_stall.catalogue import CATALOGUE

BINS = (0.0, 0.4, 0.6, 0.7, 0.8, 0.9, 1.0)  # edges of the confidence bins of the reliability table
NEAR = 0.1  # a remedied score this share of the twin's below it has still ended well
_FLOOR = 0.02  # differences of score below this are noise: absolute for shares and R2, else a share of the twin's score
_PACE = 0.1  # the same for seconds a step, as a share of the twin's


def worth(score: float | None) -> float:
    """The score as a number that can be compared: none at all, or NaN, is the worst there is."""
    return -math.inf if score is None or math.isnan(score) else score


def noise(twins: Sequence[float]) -> float:
    """What a score may differ by without meaning: the twin's deviation over seeds, at least 0.02 (or 2 %)."""
    floor = _FLOOR if all(0 <= t <= 1 for t in twins) else _FLOOR * fmean(abs(t) for t in twins)
    return max(floor, pstdev(twins))


def separates(runs: Sequence[Verdict]) -> bool:
    """Whether one sick case's twin is better than it beyond noise on every seed; by pace where time is what ails it."""
    scored = [v.scores for v in runs if v.scores is not None]
    if runs[0].timed:
        ill, mended = ([s.pace[name] for s in scored] for name in ("bare", "twin"))
        if None in ill or None in mended:
            return None not in mended  # not a step was made
        margin = max(_PACE * fmean(mended), pstdev(mended))
        return all(a - b > margin for a, b in zip(ill, mended, strict=True))
    twins = [worth(s.twin) for s in scored]
    if not all(map(math.isfinite, twins)):
        return False
    margin = noise(twins)
    return all(t - worth(s.bare) > margin for t, s in zip(twins, scored, strict=True))


def refused(verdicts: Sequence[Verdict]) -> list[str]:
    """Names of the sick cases whose ill the scores do not show; what the package says of them counts for nothing."""
    sick = sorted((v for v in verdicts if not v.well and v.scores is not None), key=lambda v: v.name)
    return [name for name, runs in groupby(sick, lambda v: v.name) if not separates(list(runs))]


def remediable(verdict: Verdict) -> bool:
    """Whether the first expected code has a remedy, and the score can tell whether it helped."""
    first = CATALOGUE.get(verdict.expected[0]) if verdict.expected else None
    return verdict.scores is not None and not verdict.timed and first is not None and first.remedy is not None


def near_twin(score: float | None, twin: float | None) -> bool:
    return worth(score) >= worth(twin) - NEAR * abs(worth(twin))


def wrong_words(verdicts: Sequence[Verdict]) -> list[tuple[str, str, int]]:
    """(expected, first said, how often), the wrong ones only, the commonest first."""
    pairs = Counter(
        (" | ".join(v.expected) or "well", v.causes[0][0] if v.causes else "nothing" if not v.well else "a finding")
        for v in verdicts
        if not v.good
    )
    return [(*pair, n) for pair, n in sorted(pairs.items(), key=lambda item: (-item[1], item[0]))]


def reliability(verdicts: Sequence[Verdict], first_only: bool = True) -> list[tuple[float, float, int, float, float]]:
    """(from, to, how many, mean confidence, share right) of each bin with causes in it. On a well run none is right."""
    said = [
        (confidence, code in v.expected)
        for v in verdicts
        for code, confidence in (v.causes[:1] if first_only else v.causes)
    ]
    rows = []
    for low, high in pairwise(BINS):
        inside = [(c, right) for c, right in said if low <= c < high or (high == BINS[-1] and c >= high)]
        if inside:
            rows.append((low, high, len(inside), fmean(c for c, _ in inside), fmean(right for _, right in inside)))
    return rows


def summary(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """The figures of the whole, without the refused cases. Shares are None where there was no run to count."""
    out = set(refused(verdicts))
    verdicts = [v for v in verdicts if v.name not in out]
    sick, fine = [v for v in verdicts if not v.well], [v for v in verdicts if v.well]
    steps = [v.first_right for v in sick if v.first_right is not None]
    figures = {
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
    return figures | _of_scores(verdicts, len(out)) if any(v.scores for v in verdicts) or out else figures


def _of_scores(verdicts: Sequence[Verdict], refusals: int) -> dict[str, Any]:
    sick = [v.scores for v in verdicts if remediable(v) and v.scores]
    ill = [s for s in sick if not near_twin(s.bare, s.twin)]
    fine = [v.scores for v in verdicts if v.well and v.scores]
    everything = [v.scores for v in verdicts if v.scores]
    return {
        "refused cases": refusals,
        "runs with a remedy": len(sick),
        "near the twin bare": _share(near_twin(s.bare, s.twin) for s in sick),
        "near the twin remedied": _share(near_twin(s.remedied, s.twin) for s in sick),
        "of those far off bare": _share(near_twin(s.remedied, s.twin) for s in ill),
        "runs changed by watching": sum(s.same_watched is False for s in everything),
        "well runs changed by remedies": sum(s.same_remedied is False for s in fine),
        "the same without AutoClip's": sum(s.same_unclipped is False for s in fine),
        "runs that do not repeat bare": sum(s.same_remedied is None for s in everything),
    }


def _share(flags: Iterable[bool]) -> float | None:
    listed = list(flags)
    return sum(listed) / len(listed) if listed else None
