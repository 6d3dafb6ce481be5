"""From findings to causes: explain-away, certain before statistical, abstention; every rule over known codes."""

from __future__ import annotations

from lightning_stall.catalogue import CATALOGUE
from lightning_stall.diagnosis import RULES, diagnose
from lightning_stall.finding import Finding
from lightning_stall.outcome import Outcome

BAD = Outcome("never learned", 200)
WELL = Outcome("learning", 200)


def seen(code: str, step: int = 10, severity: str = "warning", remedy: str | None = None, **evidence: float) -> Finding:
    return Finding(code, step, 0, severity, "seen", evidence=evidence, remedy=remedy)  # type: ignore[arg-type]


def codes(*findings: Finding, outcome: Outcome = BAD) -> list[str]:
    return [c.code for c in diagnose(findings, outcome)]


def test_rules_name_codes_of_the_catalogue_once() -> None:
    causes = [r.cause for r in RULES]
    assert len(causes) == len(set(causes))
    for rule in RULES:
        assert rule.cause in CATALOGUE
        assert set(rule.effects) <= set(CATALOGUE), rule.cause
        assert rule.cause not in rule.effects
        assert rule.reason


def test_nothing_seen_nothing_said() -> None:
    assert codes() == []
    assert codes(seen("unscaled-inputs", severity="info")) == [], "a note is no cause"


def test_a_cause_explains_its_symptoms_away() -> None:
    assert codes(seen("never-learned"), seen("vanishing-gradients", strength=0.5)) == ["vanishing-gradients"]
    ranked = diagnose([seen("dead-activations", strength=0.5), seen("unscaled-inputs", strength=0.8)], BAD)
    assert [c.code for c in ranked] == ["unscaled-inputs", "dead-activations"]
    assert ranked[0].confidence > 2 * ranked[1].confidence
    assert codes(seen("nonfinite-loss", severity="critical"), seen("nonfinite-inputs", severity="critical")) == [
        "nonfinite-inputs"
    ]


def test_a_weak_cause_does_not_explain_a_strong_one() -> None:
    ranked = diagnose([seen("learning-rate-too-low", strength=1.0), seen("vanishing-gradients", strength=0.0)], BAD)
    assert {c.code for c in ranked} == {"learning-rate-too-low", "vanishing-gradients"}


def test_certain_outranks_statistical() -> None:
    assert codes(seen("insufficient-capacity", strength=0.4), seen("loss-shape-mismatch", severity="critical"))[0] == (
        "loss-shape-mismatch"
    )


def test_a_lone_symptom_is_named_with_little_confidence() -> None:
    (cause,) = diagnose([seen("never-learned")], BAD)
    assert (cause.code, cause.confidence) == ("never-learned", 0.4)


def test_a_mended_symptom_in_a_run_that_is_well_is_no_cause() -> None:
    assert codes(seen("nonfinite-loss", severity="critical", remedy="left out step 5"), outcome=WELL) == []


def test_the_order_of_findings_does_not_matter() -> None:
    findings = [
        seen("never-learned"),
        seen("unscaled-inputs", 20, strength=0.8),
        seen("dead-activations", 5, strength=0.9),
    ]
    assert diagnose(findings, BAD) == diagnose(findings[::-1], BAD)
