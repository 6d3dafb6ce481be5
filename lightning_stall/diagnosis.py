"""From findings and the outcome to ranked causes: pure, and the same from a running fit or a file.

A rule is data with its reason. A cause explains away the symptoms it produces; certain facts outrank statistics; what
was there earlier outranks what came later; without evidence nothing is said.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from statistics import fmean

from lightning_stall.catalogue import CATALOGUE
from lightning_stall.finding import SEVERITIES, Cause, Finding
from lightning_stall.outcome import Outcome


@dataclass(frozen=True)
class Rule:
    """`cause` produces `effects`; `reason` says how."""

    cause: str
    effects: tuple[str, ...]
    reason: str


_LOSS = ("loss-plateau", "never-learned", "loss-diverging", "loss-oscillating")
_FLAT = ("loss-plateau", "never-learned")
_WILD = ("loss-diverging", "loss-oscillating", "exploding-gradients")
_BROKEN = ("nonfinite-loss", "nonfinite-gradients")

RULES: tuple[Rule, ...] = (
    Rule("nonfinite-inputs", (*_BROKEN, *_LOSS, "corrupt-samples"), "a NaN in the batch makes loss and gradients NaN"),
    Rule(
        "unstable-operation",
        (*_BROKEN, *_LOSS, "dead-activations"),
        "the operation makes the first non-finite value itself",
    ),
    Rule(
        "corrupt-samples",
        (
            *_WILD,
            *_BROKEN,
            *_FLAT,
            "unscaled-inputs",
            "unscaled-targets",
            "uninformative-targets",
            "bad-initialization",
            "dead-activations",
            "learning-rate-too-low",
            "learning-rate-too-high",
        ),
        "outliers throw the loss, the gradients and the weights, to where units pass nothing on",
    ),
    Rule(
        "unscaled-inputs",
        (
            *_LOSS,
            *_BROKEN,
            "exploding-gradients",
            "vanishing-gradients",
            "dead-activations",
            "saturated-activations",
            "learning-rate-too-high",
            "learning-rate-too-low",
            "bad-initialization",
        ),
        "inputs far from unit scale blow up or starve every gradient behind them",
    ),
    Rule(
        "disparate-feature-scales",
        (*_LOSS, "unscaled-inputs", "exploding-gradients", "learning-rate-too-high", "learning-rate-too-low"),
        "one column rules the gradient, and no rate suits both it and the rest",
    ),
    Rule(
        "unscaled-targets",
        (
            *_LOSS,
            *_BROKEN,
            "saturated-activations",
            "exploding-gradients",
            "learning-rate-too-high",
            "learning-rate-too-low",
            "dead-activations",
        ),
        "the error is as large as the targets, and so are the gradients",
    ),
    Rule(
        "learning-rate-too-high",
        (
            *_LOSS,
            *_BROKEN,
            "exploding-gradients",
            "vanishing-gradients",
            "dead-activations",
            "saturated-activations",
            "learning-rate-too-low",
            "class-imbalance",
        ),
        "steps that overshoot raise the loss, push units where no gradient flows, and leave one class as the only answer",
    ),
    Rule("learning-rate-too-low", (*_FLAT, "training-too-short"), "the weights hardly move"),
    Rule("learning-rate-decayed-early", (*_FLAT, "learning-rate-too-low", "training-too-short"), "the rate is spent"),
    Rule(
        "bad-initialization",
        (
            *_LOSS,
            *_BROKEN,
            "vanishing-gradients",
            "exploding-gradients",
            "dead-activations",
            "saturated-activations",
            "learning-rate-too-high",
            "learning-rate-too-low",
            "training-too-short",
        ),
        "activations start too small, too large or all alike",
    ),
    Rule("saturated-activations", (*_FLAT, "vanishing-gradients"), "a unit at its limit passes no gradient"),
    Rule(
        "dead-activations",
        (*_FLAT, "vanishing-gradients", "parameters-not-optimized"),
        "a unit that is always zero passes no gradient",
    ),
    Rule(
        "vanishing-gradients",
        (*_LOSS, "learning-rate-too-low", "learning-rate-too-high"),
        "the first layers do not learn",
    ),
    Rule("exploding-gradients", (*_BROKEN, *_LOSS, "learning-rate-too-high"), "huge steps throw the weights away"),
    Rule(
        "parameters-not-optimized",
        (*_FLAT, "vanishing-gradients", "learning-rate-too-low"),
        "what is not updated does not learn",
    ),
    Rule(
        "gradients-not-cleared",
        (*_LOSS, "exploding-gradients", "vanishing-gradients", "learning-rate-too-high", "learning-rate-too-low"),
        "old gradients add up, or none is left for the step",
    ),
    Rule(
        "clipping-too-tight",
        (*_FLAT, "learning-rate-too-low", "class-imbalance"),
        "clipped gradients move nothing, and what a model names first is the largest class",
    ),
    Rule(
        "excess-regularization",
        (*_FLAT, "vanishing-gradients", "dead-activations"),
        "decay outweighs the gradient, and what is worn to nothing passes nothing on",
    ),
    Rule(
        "probabilities-as-logits",
        (
            *_FLAT,
            "vanishing-gradients",
            "learning-rate-too-low",
            "saturated-activations",
            "training-too-short",
            "uninformative-targets",
        ),
        "the loss squashes its input twice, and its gradient fades",
    ),
    Rule("loss-shape-mismatch", (*_LOSS, "uninformative-targets"), "every prediction is compared with every target"),
    Rule(
        "wrong-loss-for-task",
        (
            *_LOSS,
            *_BROKEN,
            "exploding-gradients",
            "learning-rate-too-high",
            "vanishing-gradients",
            "parameters-not-optimized",
            "saturated-activations",
            "dead-activations",
        ),
        "a loss that does not measure the task leads elsewhere",
    ),
    Rule(
        "output-range-mismatch",
        (
            *_FLAT,
            "saturated-activations",
            "vanishing-gradients",
            "unscaled-targets",
            "dead-activations",
            "parameters-not-optimized",
            "learning-rate-too-high",
            "learning-rate-too-low",
            "loss-oscillating",
        ),
        "the output cannot reach the targets, and saturates in trying",
    ),
    Rule(
        "batch-mixing",
        (*_LOSS, "uninformative-targets", "learning-rate-too-low", "learning-rate-too-high", "insufficient-capacity"),
        "samples see each other instead of themselves",
    ),
    Rule(
        "mode-mismatch",
        (
            *_LOSS,
            *_BROKEN,
            "overfitting",
            "batchnorm-stale-statistics",
            "batchnorm-small-batch",
            "learning-rate-too-low",
            "learning-rate-too-high",
            "exploding-gradients",
            "unscaled-inputs",
        ),
        "layers act as in the other mode",
    ),
    Rule("missing-nonlinearity", (*_FLAT, "insufficient-capacity"), "stacked linear layers are one linear layer"),
    Rule(
        "insufficient-capacity",
        (*_FLAT, "learning-rate-too-low"),
        "the model cannot represent the task, whatever the rate",
    ),
    Rule(
        "categorical-as-numeric",
        (*_FLAT, "uninformative-targets", "unscaled-inputs"),
        "no smooth curve passes through numbered codes",
    ),
    Rule(
        "uninformative-targets",
        (*_FLAT, "overfitting", "insufficient-capacity", "categorical-as-numeric"),
        "there is nothing to learn",
    ),
    Rule(
        "constant-inputs",
        (*_FLAT, "uninformative-targets", "dead-activations"),
        "inputs that never change carry nothing",
    ),
    Rule(
        "class-imbalance",
        (*_FLAT, "training-too-short", "overfitting", "uninformative-targets"),
        "always naming the large class is nearly right, and wrong where classes are more alike",
    ),
    Rule(
        "unshuffled-data",
        (*_LOSS, "dead-activations", "saturated-activations", "learning-rate-too-high", "learning-rate-too-low"),
        "each stretch of one class undoes the last, and pushes units to where nothing brings them back",
    ),
    Rule(
        "too-little-data",
        ("overfitting", "training-too-short", "uninformative-targets", "class-imbalance"),
        "few samples are learnt by heart",
    ),
    Rule(
        "batchnorm-small-batch",
        (*_LOSS, "batchnorm-stale-statistics", "overfitting", "uninformative-targets", "insufficient-capacity"),
        "statistics of a few values are noise",
    ),
    Rule(
        "batchnorm-stale-statistics",
        ("overfitting", "dead-activations", "saturated-activations"),
        "evaluation normalises with other numbers than training, and so do layers that train in evaluation mode",
    ),
    Rule("data-starvation", (), "the device waits"),
    Rule("too-many-workers", ("data-starvation",), "workers fight for the cores"),
)
_BY_CAUSE = {rule.cause: rule for rule in RULES}

CERTAIN = 0.9  # confidence of a certain fact; of a statistical one STATISTICAL, times how strong it is
STATISTICAL = 0.6
SYMPTOM = 0.4  # a symptom that nothing explains is named itself, with this
BEHIND = 0.75  # of which it keeps this share where another symptom produces it
EXPLAINED = 0.3  # what a stronger cause explains keeps this share of its confidence
SUPPORT = 0.05  # each symptom that a cause explains adds this
TRIED = 0.5  # a trial that bears a cause out brings it this much of the way to SURE
SURE = 0.96
REFUTED = 0.3  # what a trial speaks against keeps this share of its confidence

# a trial is fitted on the batches that the run was given of late, and its gradients are cut as the run's are
SPOILS_TRIALS = frozenset({"unshuffled-data", "corrupt-samples", "clipping-too-tight"})

_SYMPTOM_OF = {
    "stalled": "loss-plateau",
    "never learned": "never-learned",
    "diverging": "loss-diverging",
    "oscillating": "loss-oscillating",
    "non-finite": "nonfinite-loss",
}


MUCH = 0.1  # of a constant predictor's loss, that a copy must be ahead of the run to speak of it still
AHEAD = 0.1  # share of the targets, that a single column must tell more of than the run has learnt
LEARNT = 0.8  # share of a constant predictor's loss: a run that has explained so much was held back by none of these
FAIR = 0.5  # the same of frozen tables of embeddings: trained ones look much like those torch draws
MASTERED = 0.97  # the same of what was wrong from the start, and strongly so
TELLS_UNTIL = ((0.75, 0.9), (0.9, MASTERED))  # strength, and the share up to which one of that strength is told
FROM_THE_START = (
    "saturated-activations",
    "bad-initialization",
    "unscaled-inputs",
    "unscaled-targets",
    "disparate-feature-scales",
    "unshuffled-data",
)
PASSING = frozenset(
    {
        *_LOSS,
        "exploding-gradients",
        "vanishing-gradients",
        "dead-activations",
        "saturated-activations",
        "bad-initialization",
        "learning-rate-too-high",
        "learning-rate-too-low",
        "insufficient-capacity",
        "uninformative-targets",
        "unscaled-inputs",
        "disparate-feature-scales",
        "unscaled-targets",
        "categorical-as-numeric",
        "class-imbalance",
        "clipping-too-tight",
        "missing-nonlinearity",
    }
)


def explains(code: str, state: str) -> bool:
    """Whether this code is a cause that produces an outcome of this state."""
    rule = _BY_CAUSE.get(code)
    return rule is not None and _SYMPTOM_OF.get(state) in rule.effects


def diagnose(findings: Sequence[Finding], outcome: Outcome) -> list[Cause]:
    """The causes of a stall, most likely first; empty where the run is well or nothing is known.

    What statistics said of a run that went on to learn its task was wrong, or is over.

    Args:
        findings: all of a run, in order. Those with severity "info" are evidence, never a cause by themselves.
        outcome: how the run fares, or fared at its end.
    """
    e = outcome.evidence
    over = not outcome.bad and (("baseline" in e and e.get("explained", 0.0) >= LEARNT) or e.get("paired") == 1.0)
    over = over and not any(f.remedy and f.code in PASSING for f in findings)  # it learnt by what was done about it
    fair = not outcome.bad and "baseline" in e and e.get("explained", 0.0) >= FAIR
    left = [f for f in findings if f.speaks and not (over and _passes(f, outcome))]
    spoken = _worst_by_code(f for f in left if not (fair and f.evidence.get("tables")))
    causes = {code: f for code, f in spoken.items() if stands_alone(f)}
    # a note says what a callback does, not what it saw; a trial speaks for or against what another saw
    seen = {f.code for f in findings if "note" not in f.evidence and "trial" not in f.evidence}
    trials: dict[str, list[Finding]] = {}
    for f in findings:
        if "trial" in f.evidence:
            trials.setdefault(f.code, []).append(f)
    own = {code: _own(finding, trials.get(code, ())) for code, finding in causes.items()}
    borne_out = {code for code in causes if sum(f.evidence["trial"] for f in trials.get(code, ())) > 0.5}
    explained = _explained(causes, own, borne_out)
    ranked = []
    for code, finding in causes.items():
        effects = _BY_CAUSE[code].effects if code in _BY_CAUSE else ()
        support = [spoken[e] for e in effects if e in spoken and CATALOGUE[e].kind == "symptom"]
        noted = sum(1 for e in effects if e in seen and e not in spoken)
        confidence = own[code] + SUPPORT * (len(support) + 0.5 * noted)
        if code in explained:
            confidence *= EXPLAINED
        tried = [f for f in trials.get(code, ()) if f is not finding]
        ranked.append(_cause(finding, min(confidence, 0.98), [finding, *tried, *support]))
    reached = explained | {e for code in causes for e in (_BY_CAUSE[code].effects if code in _BY_CAUSE else ())}
    behind = {e for code in spoken if code not in causes and code in _BY_CAUSE for e in _BY_CAUSE[code].effects}
    for code, finding in spoken.items():
        if code == "never-learned" and not outcome.bad:
            continue  # it did, later
        # a symptom that was mended and did not come back has cost nothing
        if code not in causes and code not in reached and (outcome.bad or finding.remedy is None):
            ranked.append(_cause(finding, SYMPTOM * (BEHIND if code in behind else 1.0), [finding]))
    ranked.sort(key=lambda c: (-c.confidence, c.findings[0].step))
    return ranked


def _passes(finding: Finding, outcome: Outcome) -> bool:
    """Whether this counts for nothing once the run has learnt its task."""
    noted = finding.code in PASSING and finding.severity == "warning" and not finding.remedy
    return noted and not held_back(finding, outcome.evidence.get("explained", 1.0)) and not outdone(finding, outcome)


def held_back(finding: Finding, explained: float) -> bool:
    """Whether what was wrong from the start still tells, the more strongly it was the closer the run came to its task."""
    strength = finding.evidence.get("strength", 0.0)
    return finding.code in FROM_THE_START and any(strength >= s and explained < e for s, e in TELLS_UNTIL)


def outdone(finding: Finding, outcome: Outcome) -> bool:
    """Whether a trial came much further, in a few steps, than this run had at its end."""
    e = outcome.evidence
    least = e.get("level", math.nan) - MUCH * abs(e.get("baseline", math.nan))
    return finding.evidence.get("trial", 0.0) > 0 and finding.evidence.get("after", math.inf) < least


def in_reach(finding: Finding, outcome: Outcome) -> bool:
    """Whether one column, its codes read as names, explains far more of the targets than this run had at its end."""
    e = outcome.evidence
    return "baseline" in e and finding.evidence.get("as_categories", 0.0) > e.get("explained", 1.0) + AHEAD


def stands_alone(finding: Finding) -> bool:
    """Whether it is a cause: by its code, or, of a symptom, since its callback says how surely nothing lies under it."""
    return CATALOGUE[finding.code].kind == "cause" or "strength" in finding.evidence


def _worst_by_code(findings: Iterable[Finding]) -> dict[str, Finding]:
    worst: dict[str, Finding] = {}
    for f in findings:
        known = worst.get(f.code)
        if known is None or SEVERITIES.index(f.severity) > SEVERITIES.index(known.severity):
            worst[f.code] = f
    return {code: f for code, f in worst.items() if code in CATALOGUE}


def _explained(causes: Mapping[str, Finding], own: Mapping[str, float], borne_out: Set[str]) -> set[str]:
    """Codes that a cause at least as strong produces. Of two that explain each other, the stronger, then the earlier.

    What a trial speaks against explains nothing, and what it bears out is explained by a stronger cause alone.
    """
    out = set()
    for code, finding in causes.items():
        for effect in _BY_CAUSE[code].effects if code in _BY_CAUSE else ():
            other = causes.get(effect)
            if other is None:
                continue
            mutual = effect in _BY_CAUSE and code in _BY_CAUSE[effect].effects
            if own[code] < 0.5 * STATISTICAL or (
                effect in borne_out and own[code] < own[effect] and code not in SPOILS_TRIALS
            ):
                continue
            if not mutual or (own[code], -finding.step) >= (own[effect], -other.step):
                out.add(effect)
    return out


def _own(finding: Finding, trials: Sequence[Finding] = ()) -> float:
    """Confidence from the finding alone, and from the trials of it where any were made.

    `strength` in a finding's evidence, from 0 to 1, is the callback's own judgement; `trial`, from -1 to 1, says how much
    a trial speaks for it. Of several trials the mean counts.
    """
    strength = finding.evidence.get("strength", math.nan)
    if math.isfinite(strength):
        own = STATISTICAL + (CERTAIN - STATISTICAL) * max(0.0, min(1.0, strength))
    else:
        own = CERTAIN if finding.severity == "critical" else 0.5 * (CERTAIN + STATISTICAL)
    weight = fmean(max(-1.0, min(1.0, f.evidence["trial"])) for f in trials) if trials else 0.0
    if weight < 0:
        return own * (1 + weight * (1 - REFUTED))
    return own + max(0.0, SURE - own) * TRIED * min(weight, 1.0) if weight > 0 else own


def _cause(finding: Finding, confidence: float, findings: Sequence[Finding]) -> Cause:
    return Cause(finding.code, round(confidence, 3), finding.summary, finding.advice, tuple(findings))
