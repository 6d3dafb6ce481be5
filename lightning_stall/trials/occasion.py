"""When trials are made, and how what they settle is told."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from lightning_stall.diagnosis import explains, outdone, stands_alone
from lightning_stall.finding import Finding
from lightning_stall.outcome import LONG_ENOUGH
from lightning_stall.trials.placement import placement
from lightning_stall.trials.plan import Trials
from lightning_stall.trials.records import Conclusion

# what a trial may yet question: causes that come from statistics, and those that they bring with them
OPEN = frozenset(
    {
        "learning-rate-too-high",
        "learning-rate-too-low",
        "learning-rate-decayed-early",
        "insufficient-capacity",
        "uninformative-targets",
        "unscaled-inputs",
        "bad-initialization",
        "vanishing-gradients",
        "dead-activations",
        "saturated-activations",
        "excess-regularization",
    }
)


# a bad start, and what comes of it
STARTS = frozenset({"bad-initialization", "saturated-activations", "vanishing-gradients", "exploding-gradients"})
LONG = 40  # optimizer steps
FEW = 60  # optimizer steps of a run that fresh weights may be set beside
RUSHED = 1e-2  # change of the weights in a step, over their size: 1e-4 to 1e-2 is usual
CREPT = 2e-3  # the same, of a run that may be going slowly
NOTHING = 0.05  # share of a constant predictor's loss, less than which a run has learnt nothing
UNLEARNT = 0.3  # share of a constant predictor's loss, up to which samples may well have met others' targets
BOTTOMLESS = 10.0  # times the size of its first values, that a loss has fallen below 0


@dataclass
class Occasions:
    """Makes trials once the run fares badly and nothing certain explains it: at most once an epoch, ever more seldom.

    Args:
        trials: what makes them.
        tell: `StallCallback.tell` of the callback that speaks for them, which mutes what is muted.
    """

    trials: Trials
    tell: Callable[..., None]
    at: int = field(default=0, init=False)  # optimizer step of the last trials; 0 before any
    epoch: int = field(default=-1, init=False)  # and their epoch
    settled: bool = field(default=False, init=False)  # a cause was borne out
    hurried: bool = field(default=False, init=False)  # fresh weights were set beside a run of long steps, on its way
    paired: bool = field(default=False, init=False)  # told what a deal of the targets has shown
    placed: bool = field(default=False, init=False)  # asked whether the order of samples matters

    @property
    def hub(self) -> Any:
        return self.trials.hub

    def judged(self) -> None:
        """There is a new verdict on the outcome."""
        self._say_pairing()
        if not self.hurried and not self.settled and self.trials.ready and self._stuck and self._rushes:
            self.hurried = True
            self._settle(self.trials.from_scratch((0.1, 0.01, 0.001)))
        # what was not settled in one epoch is seldom settled in the next
        if (
            not self.settled
            and self.trials.ready
            and self.hub.gate_open
            and self._stands
            and self.hub.epoch > self.epoch
            and self.hub.step >= 2 * self.at
        ):
            self._make()

    @property
    def _stands(self) -> bool:
        """A loss that has fallen before often goes on to fall: it must have stood for a while to be tried."""
        hub = self.hub
        return hub.outcome.state != "stalled" or hub.step - hub.well_at >= max(LONG, hub.curve.n // 4)

    def finish(self) -> None:
        self._say_pairing()
        self._last()

    def _last(self) -> None:
        """The fit ends: short runs reach their verdict only here, and what nothing has helped is looked at once more."""
        hub = self.hub
        rests = not hub.gate_open and not hub.mediocre and hub.half_way and hub.curve.n >= LONG_ENOUGH
        if rests and self.trials.kept.queue and not self._explained():
            self._settle(self.trials.too_small(self._told), certain=True)  # what was held back speaks with it
        if (
            (not self.settled or "learning-rate-too-high" in hub.journal.held)  # a trial on the way, not heard so far
            and hub.settled_badly
            and hub.curve.n >= FEW
            and self.trials.kept.queue
            and not self._explained()
        ):
            self._settle(self.trials.calmer(), certain=True)
        if self.settled:
            return
        if hub.gate_open and (not self.at or self.trials.hopeless):
            self._make()
        elif not hub.gate_open and hub.mediocre and self.trials.kept.queue:
            if (held := self._still_better()) is not None:
                self.tell(held.code, held.summary, advice=held.advice, evidence=held.evidence, where=held.where)
            elif hub.outcome.state == "stalled" and hub.curve.n >= LONG_ENOUGH:
                self._make(certain=True)
            elif hub.outcome.state in ("learning", "too early") and hub.curve.n >= FEW and self._rushes:
                self._settle(self.trials.from_scratch(), certain=True)
            elif hub.outcome.state == "learning" and hub.curve.n >= LONG_ENOUGH and self._creeps:
                self._settle(self.trials.faster(), certain=True)
            elif hub.curve.n >= LONG_ENOUGH and self._started_badly:
                self._settle(self.trials.fresh_start(), certain=True)

    def _still_better(self) -> Finding | None:
        """A trial made on the way, whose fresh weights had come further in a few steps than the run has in all."""
        held = (f for f, _ in self.hub.journal.held.values() if f.code == "learning-rate-too-high")
        return next((f for f in held if outdone(f, self.hub.outcome)), None)

    @property
    def _started_badly(self) -> bool:
        """Whether its first weights are thought unfit, and nothing else is known."""
        return "bad-initialization" in self._told <= STARTS

    @property
    def _told(self) -> frozenset[str]:
        """The causes that others have told, or would once the run fares badly."""
        return frozenset(f.code for f in self.hub.journal.known() if stands_alone(f))

    @property
    def _stuck(self) -> bool:
        """Whether the run has stopped gaining with most of its task before it."""
        hub = self.hub
        return hub.mediocre and hub.curve.warm >= FEW and hub.curve.level_lately

    @property
    def _rushes(self) -> bool:
        """Whether the last measured step was long, for the weights that it moved, and nothing else is known."""
        started = any(f.code == "bad-initialization" for f in self.hub.journal.known())  # which a fresh start shares
        long = RUSHED if self.hub.explained > NOTHING else RUSHED / 2
        return bool(self.hub.readings.usual_update() > long) and not started and not self._explained()

    @property
    def _creeps(self) -> bool:
        """Whether the last measured step was short, for the weights that it moved, and nothing else is known."""
        return bool(self.hub.readings.usual_update() < CREPT) and not self._told and not self._explained()

    def _explained(self) -> bool:
        """Whether somebody has told something that no trial could question."""
        causes = [f for f in self.hub.journal.known() if stands_alone(f)]
        state = self.hub.outcome.state
        return any((f.code not in OPEN or f.severity == "critical") and explains(f.code, state) for f in causes)

    def facts(self) -> dict[str, str]:
        """A line for the report; none where no trial was thought of."""
        if self.trials.declined is not None:
            return {"trials": f"none: {self.trials.declined}"}
        return {"trials": f"{self.trials.made} fits in {self.trials.spent:.2g} s"} if self.trials.made else {}

    def state(self) -> dict[str, int]:
        return {"at": self.at, "epoch": self.epoch, "settled": self.settled, "hurried": self.hurried}

    def load_state(self, state: dict[str, int]) -> None:
        self.at, self.epoch = state.get("at", 0), state.get("epoch", -1)
        self.settled, self.hurried = bool(state.get("settled", False)), bool(state.get("hurried", False))

    def _say_pairing(self) -> None:
        """What was seen when a copy's targets were dealt out anew: all met all, or a loss without a bottom."""
        found = self.trials.pairing.found
        if found is None or self.paired:
            return
        evidence = {"own": found.own, "others": found.others, "samples": float(found.samples)}
        first = max(map(abs, self.hub.curve.first), default=math.inf)
        # a policy's loss may well be less for others' actions; one that runs away below zero is no policy's
        if found.own < -BOTTOMLESS * first and (found.learnt is False or found.reversed):
            self.paired = True
            self.tell(
                "wrong-loss-for-task",
                f"With the targets dealt out anew the loss is {found.others:.4g}, and {found.own:.4g} with each sample's own: "
                f"it has fallen far below its start (at most {first:.3g} in size), and does not rise with others' targets, as "
                "a loss without a bottom does.",
                advice="Look for a sign: minimise the negative of a likelihood, a score or a similarity:\n\n"
                "    loss = -log_likelihood.mean()",
                severity="critical",
                evidence={**evidence, "strength": 0.9},
                where=("the loss",),
            )
        if found.crossed is None or not found.exact:
            return
        self.paired = True
        target, prediction = found.crossed
        self.tell(
            "loss-shape-mismatch",
            f"The loss compares targets of shape {target} with predictions of shape {prediction}, each with each: with "
            f"the targets dealt out anew it is {found.others:.6g}, and {found.own:.6g} with each sample's own. It should "
            "rise.",
            advice=f"Give both the same shape, as in\n\n    target = target.reshape({prediction})  # or prediction.squeeze(-1)",
            severity="critical",
            evidence=evidence,
            where=("the loss",),
        )

    def _say_mixed(self) -> bool:
        """What was seen when the samples of a batch changed places, of a loss whose level shows that nothing was learnt."""
        hub = self.hub
        if self.placed or hub.baseline is None or hub.explained >= UNLEARNT:
            return False
        self.placed = True
        found = placement(hub.trainer, hub.module, self.trials.kept.of_one_epoch())
        if found is None or not found.mixed:
            return False
        self.settled = True
        self.tell(
            "batch-mixing",
            f"The same {found.samples} samples in another order have a loss of {found.other:.6g}, not {found.own:.6g}: a mean "
            "over samples has no order, so some sample's output meets another's target.",
            advice="Look for a `view`, `reshape` or `transpose` that runs over the batch, and keep dimension 0 for it:\n\n"
            "    loss = F.cross_entropy(logits.flatten(0, 1), y.flatten())  # both (N, T) -> (N * T)",
            severity="critical",
            evidence={"loss": found.own, "reordered": found.other, "samples": float(found.samples), "strength": 0.7},
            where=("the loss",),
        )
        return True

    def _make(self, certain: bool = False) -> None:
        hub = self.hub
        # those that are held back will speak as soon as this judgement is over
        if self._explained():
            return
        self.at, self.epoch = hub.step, hub.epoch
        if self._say_mixed():
            return
        spoken = self._told
        self._settle(self.trials.run(spoken), spoken, certain)

    def _settle(self, said: Sequence[Conclusion], spoken: Set[str] = frozenset(), certain: bool = False) -> None:
        for conclusion in said:
            self.settled = self.settled or conclusion.weight > 0
            self._say(conclusion, conclusion.code in spoken, certain)

    def _say(self, said: Conclusion, known: bool, certain: bool = False) -> None:
        hub = self.hub
        if known:
            # another has told it: the trial speaks for or against that, and nobody is warned twice
            finding = Finding(
                said.code, hub.step, hub.epoch, "info", said.summary, said.advice, evidence=dict(said.evidence)
            )
            hub.journal.note(finding)
            return
        strength = said.weight * min(1.0, 0.3 + max(0.0, said.evidence.get("gain", 0.0)))
        evidence = {**said.evidence, "strength": strength}
        self.tell(said.code, said.summary, advice=said.advice, statistical=not certain, evidence=evidence)
