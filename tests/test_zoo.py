"""The zoo's command on a few cases, and its figures from verdicts that are made up."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.zoo import figures, peers
from benchmarks.zoo.run import load_cases, part, run
from benchmarks.zoo.verdict import Scores, Verdict
from benchmarks.zoo.words import WORDS, codes_meant
from lightning_stall.catalogue import CATALOGUE

ROOT = Path(__file__).parent.parent


def scores(bare: float | None, twin: float | None, remedied: float | None = None, **settings: Any) -> Scores:
    pace = {"bare": 0.02, "remedied": 0.02, "twin": 0.02}
    same: dict[str, Any] = {"same_watched": True, "same_remedied": True, "same_unclipped": None}
    return Scores(bare, remedied, twin, **{"pace": pace, **same, "acted": [], "error": None, **settings})


def verdict(name: str, expected: list[str], causes: list[tuple[str, float]] | None = None, **settings: Any) -> Verdict:
    fields: dict[str, Any] = {"family": "mlp", "seed": 0, "said": [], "score": 0.5, "seconds": 1.0, "steps": 100}
    return Verdict(name, expected=expected, causes=causes or [], **{**fields, "error": None, **settings})


LOW, HIGH, DEAD = "learning-rate-too-low", "learning-rate-too-high", "dead-activations"


@pytest.mark.slow
def test_the_command_judges_scores_and_writes_strict_json(tmp_path: Path) -> None:
    out = tmp_path / "zoo.json"
    asked = ["--match", "wine-missing-measurement,u-lbfgs", "--part", "all", "--scores", "--json", str(out)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.zoo", *asked],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "top-1" in done.stdout
    assert "reliability of causes" in done.stdout
    rows = json.loads(out.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    by_name = {v["name"]: v for v in rows["verdicts"]}
    sick, well = by_name["wine-missing-measurement"], by_name["u-lbfgs"]
    assert sick["causes"][0][0] == "nonfinite-inputs"
    assert sick["top1"]
    assert sick["first_right"] is not None
    assert sick["scores"]["bare"] < 0.5 < sick["scores"]["remedied"]
    assert sick["scores"]["twin"] > 0.9
    assert not well["causes"]
    assert not well["said"]
    assert rows["refused"] == []
    assert rows["summary"]["runs changed by watching"] == 0
    assert rows["summary"]["false alarms on well"] == 0


def test_every_case_expects_codes_of_the_catalogue_and_has_a_part() -> None:
    cases = load_cases().values()
    assert {part(case) for case in cases} == {
        "seen",
        "unseen",
        "later",
        "fourth",
        "fifth",
        "sixth",
        "seventh",
        "eighth",
        "ninth",
        "tenth",
        "eleventh",
        "twelfth",
        "thirteenth",
        "fourteenth",
        "fifteenth",
    }
    assert {code for case in cases for code in case.causes} <= set(CATALOGUE)
    assert all(case.twin is not None for case in cases if not case.well)


@pytest.mark.parametrize(
    ("pairs", "stands"),
    [
        ([(0.30, 0.90)], True),
        ([(0.889, 0.90)], False),  # within 0.02
        ([(0.30, 0.90), (0.91, 0.90)], False),  # one seed is enough to refuse it
        ([(0.80, 0.90), (0.55, 0.60)], False),  # the twin itself varies by 0.15 over the seeds
        ([(math.nan, 0.90)], True),
        ([(-math.inf, 0.90)], True),
        ([(None, 0.90)], True),
        ([(0.30, math.nan)], False),
        ([(-1.00, -0.99)], False),  # minus losses: within 2 %
        ([(-1.00, -0.50)], True),
    ],
)
def test_a_case_stands_where_its_twin_is_better_on_all_seeds(pairs: list[tuple[Any, Any]], stands: bool) -> None:
    runs = [verdict("a", [LOW], seed=i, scores=scores(*pair)) for i, pair in enumerate(pairs)]
    assert figures.separates(runs) is stands
    assert figures.refused([*runs, verdict("b", [])]) == ([] if stands else ["a"])


@pytest.mark.parametrize(("bare", "stands"), [(0.10, True), (0.0215, False), (None, True)])
def test_a_case_whose_time_is_ill_is_compared_by_seconds_a_step(bare: float | None, stands: bool) -> None:
    pace = {"bare": bare, "remedied": 0.02, "twin": 0.02}
    ill = verdict("a", ["data-starvation"], timed=True, scores=scores(0.9, 0.9, pace=pace))
    assert figures.separates([ill]) is stands
    assert not figures.remediable(ill)


def test_the_figures_are_those_of_the_verdicts() -> None:
    verdicts = [
        verdict("right", [LOW], [(LOW, 0.85), (DEAD, 0.2)], said=[(40, LOW)]),
        verdict("third", [DEAD], [(LOW, 0.85), (HIGH, 0.3), (DEAD, 0.2)], said=[(10, LOW), (60, DEAD)]),
        verdict("mute", [DEAD]),
        verdict("fine", []),
        verdict("blamed", [], [(HIGH, 0.65)]),
        verdict("warned", [], said=[(5, HIGH)]),
    ]
    found = figures.summary(verdicts)
    assert found["top-1"] == pytest.approx(1 / 3)
    assert found["top-3"] == pytest.approx(2 / 3)
    assert found["abstained on sick"] == pytest.approx(1 / 3)
    assert found["false alarms on well"] == 2
    assert found["median first right step"] == 50
    assert found["extra warnings a sick run"] == pytest.approx(1 / 3)
    assert "refused cases" not in found
    assert figures.wrong_words(verdicts) == [
        (DEAD, LOW, 1),
        (DEAD, "nothing", 1),
        ("well", "a finding", 1),
        ("well", HIGH, 1),
    ]
    first = {row[:2]: row[2:] for row in figures.reliability(verdicts)}
    assert first == {(0.6, 0.7): (1, 0.65, 0.0), (0.8, 0.9): (2, 0.85, 0.5)}
    (lowest,) = (row for row in figures.reliability(verdicts, first_only=False) if row[:2] == (0.0, 0.4))
    assert lowest[2:] == (3, pytest.approx(0.7 / 3), pytest.approx(1 / 3))


def test_a_remedy_counts_where_the_bare_score_is_far_and_the_case_stands() -> None:
    verdicts = [
        verdict("mended", [LOW], scores=scores(0.2, 0.9, 0.85)),
        verdict("not mended", [LOW], scores=scores(0.2, 0.9, 0.5)),
        verdict("lost", [LOW], scores=scores(0.2, 0.9, None)),
        verdict("was near", [LOW], scores=scores(0.85, 0.9, 0.85)),
        verdict("refused", [LOW], scores=scores(0.9, 0.9, 0.1)),
        verdict("for a person", ["uninformative-targets"], scores=scores(0.2, 0.9, 0.2)),
        verdict("well", [], scores=scores(0.9, None, 0.9)),
        verdict("clipped", [], scores=scores(0.9, None, 0.9, same_remedied=False, same_unclipped=True)),
        verdict("clock", [], scores=scores(0.9, None, 0.9, same_remedied=None)),
    ]
    found = figures.summary(verdicts)
    assert found["refused cases"] == 1
    assert found["runs with a remedy"] == 4
    assert found["near the twin bare"] == 0.25
    assert found["near the twin remedied"] == 0.5
    assert found["of those far off bare"] == pytest.approx(1 / 3)
    assert found["well runs changed by remedies"] == 1
    assert found["the same without AutoClip's"] == 0
    assert found["runs that do not repeat bare"] == 1


def test_words_of_other_tools_mean_codes_of_the_catalogue() -> None:
    assert set().union(*(codes for _, codes in WORDS)) <= set(CATALOGUE)
    assert HIGH in codes_meant("Loss became NaN/Inf: LR too high, fp16/bf16 overflow, or a bad batch.")
    assert DEAD in codes_meant("Dead units in net.3: 100% of units are persistently dead")
    assert codes_meant("Training looks good.") == set()


def test_a_tool_that_kills_a_well_run_has_harmed_it() -> None:
    case = load_cases()["planted-healthy"]
    reaction = peers.react("SpikeDetection", case, 0, run(case, 0))
    assert reaction.kind == "killed"
    found = peers.figures([reaction])
    assert found["alarms on well"] == 1.0
    assert found["well runs harmed"] == 1


def test_a_tool_is_right_by_any_of_its_words() -> None:
    def said(expected: list[str], kind: str, *codes: str, score: float = 0.9) -> peers.Reaction:
        return peers.Reaction("x", "case", 0, expected, kind, [], list(codes), score, 0.9)

    found = peers.figures(
        [
            said([LOW], "warned", HIGH, LOW),
            said([LOW], "warned", HIGH),
            said([LOW], "killed", HIGH),
            said([LOW], "silent"),
            said([], "silent"),
            said([], "stopped", score=0.3),
        ]
    )
    assert found["it reacts"] == 0.75
    assert found["a right word"] == 0.25
    assert found["codes its words may mean"] == 1.0
    assert found["alarms on well"] == 0.5
    assert found["well runs harmed"] == 1
    assert found["sick runs killed"] == 1
