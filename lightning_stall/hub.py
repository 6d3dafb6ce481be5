"""The hub: one a Trainer, shared by all our callbacks. It reads once, checks on schedule and agrees across ranks.

Only one callback, the first in the Trainer's list, drives it; the others are called by it, in their order, each behind
a guard. So a step is read once however many callbacks there are, and a fault of one of them ends that one alone.
"""

from __future__ import annotations

import math
import traceback
import weakref
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torch.optim import Optimizer

from lightning_stall.diagnosis import MASTERED, held_back, in_reach, outdone
from lightning_stall.errors import of_a_worker
from lightning_stall.finding import Finding
from lightning_stall.history import Curves
from lightning_stall.journal import Journal, merge
from lightning_stall.logbook import Logbook
from lightning_stall.measure.loss_level import LossLevel
from lightning_stall.measure.loss_sums import SumLabels
from lightning_stall.measure.losses import Labels
from lightning_stall.measure.probe import NO_SIGNAL, Signal
from lightning_stall.measure.quiet import compiled
from lightning_stall.measure.validation_watch import LossTwins, logged_in_validation
from lightning_stall.outcome import FEW_STEPS, LONG_ENOUGH, LossCurve, Outcome, State, judge, paired
from lightning_stall.readings import Readings, StepReading, planned_steps
from lightning_stall.remedies import RateScale, swap
from lightning_stall.sinks import ConsoleSink, JsonlSink
from lightning_stall.sinks.console import tell

if TYPE_CHECKING:
    from lightning_stall.callback import StallCallback

EARLY_CHECKS = frozenset({1, 2, 4, 8, 16, 32})  # optimizer steps
DEFAULT_EVERY = 50  # optimizer steps, where the Trainer logs never
LOOK_AT_LABELS = 32  # optimizer steps whose labels and gradients are all looked at; later perhaps those of checks only
THROWN = 0.3  # change of the weights in one of the first steps, over their size, that no sound rate makes
NEARLY = 0.9  # share of a constant predictor's loss, less than which a run with such steps might have come further
HALF_WAY = 0.8  # share of a constant predictor's loss, less than which strong evidence alone speaks of a run at its end
STRONG = 0.9
EARLY_ENOUGH = 30  # optimizer steps at the full rate, after which a run that has gained nothing may be helped
STANDING = 45  # the same, after which what is rather strong need not wait for the verdict
RATHER_STRONG = 0.75
FAIRLY_STRONG = 0.7  # what is told at the end of a run that has left some of its task, if nobody may have meant it so
SIX_TENTHS = (
    0.6  # share of a constant predictor's loss, less than which, or where one of unknown scale ends above its start,
)
MODERATE = 0.6  # evidence of this strength will do
BORN_SO = ("bad-initialization", "saturated-activations")
LEAST_GAIN = 0.02  # share of what there was to gain
MEDIOCRE = 0.5  # share of a constant predictor's loss, less than which a run may end with a fault that it got on with
FAINT = 0.01  # share of a constant predictor's loss, from which on a run that explains hardly anything is asked twice
FAINT_LINE = 0.15  # share of the targets' variance that a line explains, up to which little may be there to be learnt
HALF_OF_LINE = 0.5  # and of that, what a run must have learnt to have learnt as much
LATELY = 20  # optimizer steps whose mean the present level is
SETTLED = 4  # the optimizer step by which it is known what kind of loss is trained
UNLEARNT = 0.1  # share of a constant predictor's loss, less than which a run that has ended has not learnt
LOST = -0.5  # the same for a run that was too short to be judged
JUDGE_EVERY = 10  # optimizer steps between two verdicts on the outcome, apart from checks

FLEETING = ("never learned", "oscillating", "diverging")  # what a single look at a noisy loss may mistake it for
LAST_VERBS = ("aborted", "conclude", "detach")  # called while the run ends, come what may
FAR = 1.5  # times its start and a constant predictor's loss, above which a loss that diverges is no passing swing
PHASES = 3  # parts of a plan with a loss of their own, after the first, that a run is believed to have
LOOKS = 3  # judgements, of which two must be alike where one may be mistaken
ASKED = ("converged", "learning", "never learned")  # states of a loss of unknown scale in which a copy is asked

_HEAD = 6  # numbers in front of the losses in the row that ranks exchange

_HUBS: weakref.WeakKeyDictionary[Any, Hub] = weakref.WeakKeyDictionary()


def due(step: int, every: int) -> bool:
    """Whether a check falls on this optimizer step: 1, 2, 4, 8, 16, 32 and then each `every`-th."""
    return step in EARLY_CHECKS or step % every == 0


def _mean_known(numbers: Tensor) -> float:
    """Mean of those that are numbers; NaN where none is."""
    known = numbers[numbers.isfinite()]
    return float(known.mean()) if len(known) else math.nan


def _bounded(loss: float) -> float:
    """The loss, where its square is still a number; a run in float64 may go beyond."""
    return loss if -1e100 < loss < 1e100 or not math.isfinite(loss) else math.copysign(1e100, loss)


class Hub:
    """What our callbacks share during one fit."""

    def __init__(self, trainer: Any, module: Any) -> None:
        self._trainer = weakref.ref(trainer)
        self._module = weakref.ref(module)
        self.members: list[StallCallback] = []
        self._calls: dict[str, list[tuple[StallCallback, Any]]] = {}  # verb -> who has it, and what to call
        self._quiet_calls: dict[str, list[tuple[StallCallback, Any]]] = {}  # the same on quiet steps
        self.quiet = False  # no check, no early step, not the one after a check, and all numbers known so far finite
        self._reads_norms = self._reads_updates = True
        self._intervals: tuple[int, ...] = ()  # of the members' checks, each once
        self.journal = Journal()
        self.curve = LossCurve(horizon=planned_steps(trainer))
        self.twins = LossTwins()
        whole = not compiled(module)
        self.level = LossLevel(noted=whole)
        for moment in () if whole else ("before_backward", "after_backward", "before_optimizer_step", "guard"):
            # called from within a compiled step of manual optimisation, our code is not to be compiled with it
            setattr(self, moment, torch.compiler.disable(getattr(self, moment)))
        self.outcome = Outcome()
        self._looks: list[State] = []  # the last judgements, some steps apart
        self._looked_at = 0  # the step of the last of them
        self.well_at = 0  # the last step at which the outcome was not bad
        self.baseline: float | None = None
        self.mastered = math.nan  # share of the errors of a constant class that are made no more (see `Labels`)
        self.rate = RateScale()
        self.trials: Any = None  # a `trials.plan.Trials`, where StallReport may make trials: what remedies may ask
        self.world_size: int = trainer.world_size
        self.rank: int = trainer.global_rank
        self.log_every: int = trainer.log_every_n_steps
        # a collective: read here, where every rank is, and nowhere else
        self.log_dir: str | None = None if trainer.fast_dev_run else trainer.log_dir
        self.readings = Readings(
            self._module,
            list(trainer.optimizers),
            accumulate=trainer.accumulate_grad_batches if module.automatic_optimization else 1,
            scaler=getattr(trainer.precision_plugin, "scaler", None),
            yet_to_scale=self.rate.due,
        )
        # a checkpoint written at the end of the first batch does not count it yet; Lightning adds it after this
        self.step = self._steps_done(trainer) or int(trainer.global_step > 0)
        self.begun_at = self.step  # what the program does is looked at from here on, whatever step a checkpoint is of
        self.checks = 0  # since then, with the present one
        self._checked_at = self.step
        self.epoch = trainer.current_epoch
        self.batch_idx = 0
        self.batch: tuple[Any, int] = (None, 0)  # the present one, to be run once more; none after the fit
        self.ending = False  # the fit has made its last step
        self.bond: Signal | None = None  # what samples tell of their targets without the model, where that was asked
        self.mended: dict[str, int] = {}  # code -> the last step at which a remedy took hold of what it names
        self._losers: set[int] = set()  # optimizers before whose steps a loss of their own was seen
        self._undo = swap(trainer.strategy, "training_step", lambda step: self.level.noting(step, self._notes))
        self.first_steps = 0.0  # the largest median change of the weights in one of them, over their size
        self.spared: set[int] = set()  # steps left out for their samples: their losses tell nothing of the run
        self.cleared_at = 0  # the last step whose gradients a remedy took away, so that it was not made
        self.evaluates_apart = False  # the same batch fares far worse in evaluation than in training
        self.checking = False  # whether this step is one at which any callback checks
        self.active = True
        self.goes_on = not self.step  # or what was known of the steps so far is yet to be restored
        self.shared: dict[str, list[float]] = {}  # name -> one number a rank, as of the last check
        self.file: JsonlSink | None = None
        self.logbook = Logbook(trainer)
        self._pending: list[tuple[Finding, bool]] = []
        self._holding: set[str] = set()  # codes that hold on this rank
        self._changed = False  # and whether that has changed since the ranks met
        self.other_phases = 0  # steps whose losses were taken for those of another phase
        self._phases = 0  # times that the loss was taken for another one from then on
        self._epoch_seen = self.epoch  # of the last loss
        self._series: list[tuple[float, float]] = []  # (loss, rate) a step, until the ranks have met
        self._errors: dict[int, str] = {}
        if trainer.is_global_zero:
            self.journal.sinks.append(ConsoleSink())
            if self.log_dir is not None:
                self.file = JsonlSink(self.log_dir, resumed=self.step > 0)
                self.journal.sinks.append(self.file)
            if self.log_every:
                self.journal.sinks.append(self.logbook.loggers)

    @classmethod
    def of(cls, trainer: Any) -> Hub | None:
        """The hub of this Trainer's running fit."""
        return _HUBS.get(trainer)

    @classmethod
    def join(cls, trainer: Any, module: Any, member: StallCallback) -> Hub:
        """Enter a callback at the start of its fit; the first to come makes the hub and drives it."""
        hub = _HUBS.get(trainer)
        for other in [h for h in _HUBS.values() if h is not hub and h.broken_off]:
            other.close()
        if hub is None or not hub.active or hub.module is not module or member in hub.members:
            if hub is not None:
                hub.close()
            hub = _HUBS[trainer] = cls(trainer, module)
            hub.rate.install(trainer.optimizers)
        member.rest(driver=not hub.members)
        hub.members.append(member)
        hub._calls.clear()
        hub._quiet_calls.clear()
        return hub

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what all share from a checkpoint; where it cannot be read, say so and begin anew."""
        fresh = self.curve, self.journal, self.baseline, self.outcome
        self.curve, self.journal = LossCurve(horizon=self.curve.horizon), Journal(list(self.journal.sinks))
        try:
            self.load_state_dict(state)
            self.goes_on = True
        except Exception as error:
            self.curve, self.journal, self.baseline, self.outcome = fresh
            self.goes_on = True  # it was told
            tell(
                f"The loss curve and the findings that this checkpoint kept cannot be read ({error!r}), as where another "
                "version of lightning_stall wrote them: they begin anew at this step."
            )

    def go_on_from(self, other: Hub | None) -> None:
        """A second `fit` of one Trainer goes on where the first ended, and what was known then still is."""
        if other is None or self.goes_on or other.active or other.trainer is not self.trainer:
            return
        if other.step == self.step and not any(m.failed for m in other.members):
            self.restore(other.state_dict())

    @property
    def trainer(self) -> Any:
        return self._trainer()

    @property
    def module(self) -> Any:
        """The LightningModule; held weakly, so that a report that outlives its run keeps no model alive."""
        return self._module()

    @property
    def broken_off(self) -> bool:
        """Whether its fit ended without a word to us: a user's `on_exception` may raise before ours is called."""
        trainer = self.trainer
        return trainer is None or bool(trainer.state.status == "interrupted")

    @property
    def labels(self) -> Labels | SumLabels:
        """Of the loss that is trained."""
        return self.level.labels

    @property
    def distributed(self) -> bool:
        return self.world_size > 1

    @property
    def here(self) -> int:
        """Optimizer steps of this fit, with the present one: a resumed program is as new to us as any other."""
        return self.step - self.begun_at

    @property
    def looking(self) -> bool:
        """Whether this is an early step, or one of the first checks, of this fit."""
        return self.here in EARLY_CHECKS or (self.checking and self.checks <= len(EARLY_CHECKS))

    @property
    def may_wait(self) -> bool:
        """Whether numbers of the device may be read now: at a check, and at any step where the device is the host."""
        return self.checking or self.module.device.type == "cpu"

    # ------------------------------------------------------------------ one training step, called by the driver

    def batch_start(self, batch: Any, batch_idx: int) -> None:
        trainer = self.trainer
        if not self.goes_on:
            self.goes_on = True
            rank_zero_info(
                f"lightning_stall: the first {self.step} optimizer steps of this run were made without it, or their "
                "checkpoint does not hold them; what it says of the run begins here."
            )
        self.epoch, self.batch_idx = trainer.current_epoch, batch_idx
        self.batch = (batch, batch_idx)
        self.step = self._steps_done(trainer) + 1
        self.checking = self.step in EARLY_CHECKS or 0 in [self.step % every for every in self._every()]
        if self.checking and self.step > self._checked_at:
            self._checked_at = self.step
            self.checks += 1
        self.quiet = self.step > self._checked_at + 1 and self.here > LOOK_AT_LABELS + 1
        self.readings.new_batch()
        self._each("before_batch", batch, batch_idx)

    def before_backward(self, loss: Tensor) -> None:
        self._own(self._read_loss, loss)
        here = self.readings.loss_here
        if here is not None and not math.isfinite(here):
            self.quiet = False
        self._each("before_backward", loss)

    def after_backward(self) -> None:
        self._own(self.readings.after_backward, self._accumulating(), self._measuring)
        self._each("after_backward")

    def before_optimizer_step(self, optimizer: Optimizer) -> None:
        known = self._own(self.readings.post, optimizer, self.step, self.epoch, self.batch_idx, self._measuring)
        if known is not None and not math.isfinite(known):
            self.quiet = False
        if self.checking and self._reads_updates:
            self._own(self.readings.sample_weights, optimizer)
        self._each("before_step", optimizer)

    def batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._accumulating():
            self._each("micro_batch_end", outputs, batch, batch_idx)
            return
        if self.checking and self._reads_updates:
            self._own(self.readings.measure_updates)
        self._each("step_end", outputs, batch, batch_idx)
        self._own(self._observe, self.checking)
        if self.distributed:
            if self.checking:
                self._meet()
                self._each("judged")
                self._each("act")
        elif self.checking or self.step % JUDGE_EVERY == 0:
            self._own(self._judge)
            self._each("judged")
            if not self.checking:
                self._promote()
            self._each("act")
        if self.checking:
            self._check()

    # ------------------------------------------------------------------ other moments

    def validated(self) -> None:
        self._own(self._look_for_twins)
        self._each("validated")

    def _look_for_twins(self) -> None:
        trainer = self.trainer
        self.twins.update(logged_in_validation(trainer), trainer.callback_metrics, self.curve.recent)

    def epoch_end(self) -> None:
        self._each("epoch_end")

    def finish(self) -> None:
        """The fit ended as it should: a last look, the last words, and everything of ours taken out."""
        if not self.active:
            return
        self._own(self._observe, True)
        self.ending = True
        if self.distributed:
            self._meet()
        else:
            self._own(self._judge)
        self._promote_last()
        self._each("finish")
        self._promote_last()
        if self.distributed:
            self._meet()
        for member in sorted(self.members, key=lambda m: m.last_word):
            self.guard(member, "conclude")
        self._own(self.logbook.draw, self.step)
        self.close()

    def _promote(self) -> None:
        """Let what waits for a bad outcome speak once there is one, and what is strong a little before."""
        if self.gate_open:
            self.journal.promote(self.step, self.epoch)
        elif self.stands_still:
            self.journal.promote(self.step, self.epoch, least=RATHER_STRONG, meant=False)

    def _promote_last(self) -> None:
        if self.gate_open:
            self.journal.promote(self.step, self.epoch)
        elif self.mediocre and self.curve.n >= LONG_ENOUGH:
            self.journal.promote(self.step, self.epoch, least=RATHER_STRONG)
        elif self.half_way or "training-too-short" in self.journal.told:
            self.journal.promote(self.step, self.epoch, least=STRONG, meant=False)
        if self.curve.n >= LONG_ENOUGH:
            if self.explained < HALF_WAY:
                least = MODERATE if self.explained < SIX_TENTHS else FAIRLY_STRONG
                self.journal.promote(self.step, self.epoch, least=least, meant=False)
            elif self.explained < MASTERED:
                self.journal.promote(self.step, self.epoch, only=self._held_back)
            elif math.isnan(self.explained) and self.outcome.evidence.get("gain", 1.0) < 0:
                self.journal.promote(self.step, self.epoch, least=MODERATE, meant=False)
            if not self.explained >= MASTERED:
                self.journal.promote(self.step, self.epoch, only=self._born_so)
        if self.curve.n >= LONG_ENOUGH:  # whatever the run has come to: a copy came much further, and sooner
            self.journal.promote(self.step, self.epoch, only=self._far_ahead)

    def _held_back(self, finding: Finding) -> bool:
        return held_back(finding, self.explained)

    def _born_so(self, finding: Finding) -> bool:
        """Whether this is one of two strong signs of one fault: weights that start large, units they drive to their limits."""
        signs = [f for code in BORN_SO if (f := self.journal.held.get(code, (None,))[0]) is not None]
        strong = len(signs) == len(BORN_SO) and all(f.evidence.get("strength", 0.0) >= RATHER_STRONG for f in signs)
        return strong and finding.code in BORN_SO

    def _far_ahead(self, finding: Finding) -> bool:
        """Whether this shows that far more was to be learnt than the run has at its end."""
        return outdone(finding, self.outcome) or in_reach(finding, self.outcome)

    def abort(self, error: BaseException) -> None:
        """The fit died: say what is known, without the other ranks, and take everything out."""
        if not self.active:
            return
        self._own(self._observe, True)
        if not self.distributed:
            self._own(self._judge)
        self._each("aborted", error)
        for finding, statistical in self._pending:
            self.journal.submit(finding, statistical, self.gate_open)
        self._pending.clear()
        for member in sorted(self.members, key=lambda m: m.last_word):
            self.guard(member, "conclude")
        self._own(self.logbook.draw, self.step)
        self.close()

    def close(self) -> None:
        """Take our hooks out of the run; may be called again."""
        if self.active:
            self.active = False
            self.batch = (None, 0)  # a report may outlive its run by long
            for member in self.members:  # not by `_each`: this must work whatever is broken
                self.guard(member, "detach")
                member.wake()
            self._undo()  # after theirs, which may stand around it
            self.readings.release()
            self.rate.remove()
            trainer = self.trainer
            if trainer is not None and _HUBS.get(trainer) is self:
                del _HUBS[trainer]

    # ------------------------------------------------------------------ what callbacks ask for

    def submit(self, finding: Finding, statistical: bool) -> None:
        """Take a finding. With several ranks it waits for the next check, where all ranks write the same list."""
        if self.distributed:
            self._pending.append((finding, statistical))
            self._changed = self._changed or finding.code not in self._holding
            self._holding.add(finding.code)
        else:
            self.journal.submit(finding, statistical, self.gate_open)

    def retract(self, code: str) -> None:
        """What `code` said holds no more. Of several ranks, once it holds on none: all have one journal."""
        if not self.distributed:
            self.journal.retract(code)
        elif code in self._holding:
            self._holding.discard(code)
            self._changed = True

    def curves(self) -> Curves:
        """The loss at every step, binned, and the numbers of the checks: what a report draws."""
        return Curves.of(self.logbook.history, self.curve.means, self.curve.width, self.baseline)

    def mean_shared(self, name: str) -> float:
        """Mean over ranks of a number that callbacks share (see `StallCallback.share`); NaN before the first check."""
        values = self.shared.get(name, [])
        return sum(values) / len(values) if values else float("nan")

    def state_dict(self) -> dict[str, Any]:
        self._own(self._observe, True)
        return {
            "curve": self.curve.state_dict(),
            "journal": self.journal.state_dict(),
            "baseline": self.baseline,
            "outcome": [self.outcome.state, self.outcome.step, dict(self.outcome.evidence)],
            "looks": [self._looked_at, *self._looks],
            # of several ranks the first one's alone: what waits for them to meet
            "pending": [(finding.to_dict(), statistical) for finding, statistical in self._pending],
            "series": [list(pair) for pair in self._series],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.curve.load_state_dict(state["curve"])
        self.journal.load_state_dict(state["journal"])
        self.baseline = state["baseline"]
        verdict, step, evidence = state["outcome"]
        self.outcome = Outcome(verdict, step, evidence)
        self._looked_at, *self._looks = state.get("looks", [0])
        self._holding = set(self.journal.told)
        for loss, rate in state.get("series", []):
            if self.distributed:
                self._series.append((loss, rate))
            else:
                self.curve.update(loss, rate)
        for finding, statistical in state.get("pending", []) if self.rank == 0 else []:
            self.submit(Finding.from_dict(finding), statistical)

    # ------------------------------------------------------------------ how it is done

    def _steps_done(self, trainer: Any) -> int:
        return int(trainer.fit_loop.epoch_loop._batches_that_stepped)

    def _every(self) -> tuple[int, ...]:
        """The members' intervals between checks."""
        if not self._calls:
            self._intervals = tuple({m.every for m in self.members})
            self._calls = {v: [(m, getattr(m, v)) for m in self.members if v in m.verbs] for v in self._verbs()}
            readers = [m for m in self.members if m.verbs & {"before_step", "observe"}]
            there = self.module.device.type != "cpu"
            self._reads_norms = any(m.reads_norms or (there and m.reads_norms_there) for m in readers)
            self._reads_updates = any(m.reads_updates for m in self.members)
        return self._intervals

    @property
    def _measuring(self) -> bool:
        """Whether somebody reads this step's gradients."""
        return self._reads_norms or self.checking or self.here <= LOOK_AT_LABELS

    def _without_rare(self) -> dict[str, list[tuple[StallCallback, Any]]]:
        """Whom to call on quiet steps: not those whose verb, by its own word, does nothing then. A subclass's own does."""
        rare = {id(m): m.rare for m in self.members}

        def called(member: StallCallback, verb: str) -> bool:
            own = getattr(type(member), verb)
            return verb not in rare[id(member)] or not own.__module__.startswith("lightning_stall.")

        return {verb: [(m, call) for m, call in calls if called(m, verb)] for verb, calls in self._calls.items()}

    def _verbs(self) -> set[str]:
        return set().union(*(m.verbs for m in self.members))

    def _accumulating(self) -> bool:
        trainer = self.trainer
        if trainer.accumulate_grad_batches == 1:  # nearly always, and the question is asked twice a step
            return False
        return bool(self.module.automatic_optimization and trainer.fit_loop._should_accumulate())

    def _notes(self) -> bool:
        """Whether this step is one whose labels are looked at."""
        return self.active and (self.checking or self.here <= LOOK_AT_LABELS)

    def _read_loss(self, loss: Tensor) -> None:
        self.readings.before_backward(loss)
        if self._notes():
            whole = lambda: self.readings.undivided(loss)  # noqa: E731
            number = whole if loss.device.type == "cpu" else None
            self.level.look(loss, whole if self.checking else None, self.here >= SETTLED, number)

    def _observe(self, wait: bool) -> None:
        """Hand on the readings that have arrived."""
        for reading in self.readings.collect(wait):
            loss, spared = reading.loss, reading.step in self.spared
            if reading.first and loss is not None and self._is_the_loss(reading) and not spared:
                if self.distributed:
                    self._series.append((_bounded(loss), reading.rate))
                else:
                    self.curve.update(_bounded(loss), reading.rate, reading.epoch != self._epoch_seen)
                    self._epoch_seen = reading.epoch
            self._each("observe", reading)

    def _is_the_loss(self, reading: StepReading) -> bool:
        """Whether this is the one loss that the run minimises: several that pull different ways have no level."""
        self._losers.add(reading.optimizer)
        if len(self.readings.optimizers) > 1 and len(reading.losses) > 1:
            self._losers.add(-1)  # of several backward passes, each perhaps for another optimizer
        if len(self._losers) > 1 and self.curve.n:
            self.curve = LossCurve(horizon=self.curve.horizon)
        return len(self._losers) == 1

    def _judge(self) -> None:
        if self.checking and self.labels.kind is not None:
            self.baseline, self.mastered = self.labels.baseline(), self.labels.mastered()
        if self._phases < PHASES and (steps := self.curve.new_phase()) > 0:  # what came before was another loss
            self._phases += 1
            self.other_phases += self.curve.n - steps
            self.curve = self.curve.since(steps)
        outcome = judge(self.curve, self.step, self.baseline, self.labels.floor, self.mastered)
        if self.baseline is None and self.trials is not None and outcome.state in ASKED:
            asked = self.trials.pairing
            learnt, found = asked.learnt(self), asked.found
            exact = found is not None and found.exact
            outcome = paired(outcome, learnt, exact, found is not None, again=asked.looks > 1 or self.ending)
        elif self._minds_a_little(outcome):
            outcome = Outcome("stalled", outcome.step, outcome.evidence)
        elif self._shrinks_only(outcome):
            outcome = Outcome("never learned", outcome.step, outcome.evidence)
        self._set_outcome(outcome)

    def _shrinks_only(self, outcome: Outcome) -> bool:
        """A loss that falls by its penalty alone, while the rest of it stands where a constant predictor does."""
        late = self.curve.n >= LONG_ENOUGH and outcome.state == "learning"
        return late and self.level.penalty > 0 and outcome.evidence.get("explained", 1.0) < FAINT

    def _minds_a_little(self, outcome: Outcome) -> bool:
        """The best there is may be little: samples that are told apart at all are something learnt."""
        faint = outcome.state == "never learned" and outcome.evidence.get("explained", 0.0) > FAINT
        if not faint or self.trials is None:
            return False
        asked = self.trials.pairing
        waits = asked.found is None and not asked.declined and not self.ending  # it is asked at checks alone
        return bool(asked.minds(self)) or (waits and asked.found is None)

    def _set_outcome(self, outcome: Outcome) -> None:
        if self.step >= self._looked_at + JUDGE_EVERY // 2 or not self._looks:
            self._looks = [*self._looks[1 - LOOKS :], outcome.state]
            self._looked_at = self.step
        else:
            self._looks[-1] = outcome.state
        calm = self.outcome.state == "stalled" or not self.outcome.bad
        e = outcome.evidence
        beyond = e.get("level", 0.0) > FAR * max(e.get("start", math.inf), e.get("baseline", -math.inf))
        fleeting = outcome.state in FLEETING and not (
            outcome.state == "diverging" and beyond and not self.curve.leaps_now
        )
        new = fleeting and calm and not self.distributed and not self.ending
        if new and self._looks.count(outcome.state) < 2:
            outcome = Outcome(self.outcome.state, outcome.step, outcome.evidence)  # perhaps noise: the next look tells
        self.outcome = outcome
        if not outcome.bad:
            self.well_at = self.step

    @property
    def as_a_line(self) -> bool:
        """Whether little is there to be learnt, by what a line through the inputs finds, and the run has learnt as much."""
        bond = self.bond
        if bond is None or not bond.best >= NO_SIGNAL or not 0 < bond.line < FAINT_LINE:
            return False
        e = self.outcome.evidence
        error = e.get("noise", 0.0) / math.sqrt(LATELY) / max(abs(self.baseline or 0.0), 1e-30)
        return self.explained + error >= HALF_OF_LINE * bond.line

    @property
    def explained(self) -> float:
        """Share of a constant predictor's loss that the run has explained; NaN where no such level is known."""
        return self.outcome.evidence.get("explained", math.nan) if self.baseline is not None else math.nan

    def mended_last(self, codes: Iterable[str]) -> int:
        """The last step at which a remedy took hold of what any of these names; 0 where none did."""
        return max(self.mended.get(code, 0) for code in codes)

    @property
    def gate_open(self) -> bool:
        """Whether statistical findings may speak. A flat loss comes and goes with noise, so it must have stayed; where
        a schedule waits for just that, to lower the rate, it is none of ours before the end."""
        if not self.outcome.bad:
            return self.ending and self.unlearnt
        state = self.outcome.state
        if state in ("oscillating", "stalled") and self.schedule_waits:
            return False
        settled = self.step - self.well_at >= (JUDGE_EVERY if self.ending else max(20, self.curve.n // 10))
        return state != "stalled" or settled

    @property
    def schedule_waits(self) -> bool:
        """Whether a schedule looks for a loss that falls no more, to lower the rate by itself."""
        return not self.ending and any(c.reduce_on_plateau for c in self.trainer.lr_scheduler_configs)

    @property
    def half_way(self) -> bool:
        """Whether the run stands still well above its floor: perhaps the noise of the task, perhaps not."""
        return self.outcome.state == "converged" and self.explained < HALF_WAY

    @property
    def settled_badly(self) -> bool:
        """Whether steps that threw the weights about have brought the run to rest with some of its task before it."""
        return self.first_steps > THROWN and self.outcome.state == "converged" and self.explained < NEARLY

    @property
    def nothing_yet(self) -> bool:
        """Whether the steps at the full rate have gained next to nothing: too early for a verdict, and late enough for a
        remedy to be tried on a copy."""
        e = self.outcome.evidence
        if self.curve.warm < EARLY_ENOUGH:
            return False
        if self.baseline is None:
            return e.get("gain", 1.0) < LEAST_GAIN
        # an output layer that has found its level has gained something, and learnt nothing
        return e.get("explained", 1.0) < LEAST_GAIN and (e.get("gain", 1.0) < LEAST_GAIN or self.curve.level_lately)

    @property
    def stands_still(self) -> bool:
        """Whether a young run of known scale has gained nothing in its first steps, and is not about to."""
        e = self.outcome.evidence
        young = self.outcome.state == "too early" and self.baseline is not None and self.curve.warm >= STANDING
        return young and e.get("explained", 1.0) < LEAST_GAIN and e.get("fall", 1.0) < e.get("fall_error", 0.0)

    @property
    def mediocre(self) -> bool:
        """Whether a run of known scale, no longer young, still has most of its task before it."""
        return self.baseline is not None and self.outcome.evidence.get("explained", 1.0) < MEDIOCRE

    @property
    def unlearnt(self) -> bool:
        """Whether the run, as far as it went, is no better than a constant predictor, or much worse after few steps."""
        known = self.explained
        return known < UNLEARNT if self.curve.n >= LONG_ENOUGH else known < LOST and self.curve.n > FEW_STEPS

    def _check(self) -> None:
        self.readings.look_again()
        for member in self.members:
            if due(self.step, member.every):
                self.guard(member, "check")
        self._promote()
        self._own(self._log)

    def _log(self) -> None:
        numbers: dict[str, float] = {}
        for member in self.members:
            if not member.failed and due(self.step, member.every):
                numbers.update(self.guard(member, "numbers") or {})
        self.logbook.write(self.trainer, self.step, numbers, self._panels)

    def _panels(self) -> dict[str, list[str]]:
        panels: dict[str, list[str]] = {}
        for member in self.members:
            for title, tags in (self.guard(member, "panels") or {}).items():
                known = panels.setdefault(title, [])
                known += [tag for tag in tags if tag not in known]
        return panels

    def _meet(self) -> None:
        """One gather of a few numbers a rank; a second, of findings, only where some rank has any.

        No guard stands around the collectives and no rank can skip them: whoever failed takes part with what it has.
        The row: which members failed (a bit each), whether findings wait or hold no more, the local baseline, how many losses, the
        local floor and share of errors mastered, the losses, what is shared.
        """
        names = [name for member in self.members for name in member.shares]
        room = max(16, *(m.every for m in self.members)) + 1
        row = torch.zeros(_HEAD + room + len(names), dtype=torch.float64)
        self._own(self._fill, row, room, names)
        row[0] = float(sum(1 << i for i, m in enumerate(self.members) if m.failed))
        row[1] = float(len(self._pending) + self._changed)
        strategy = self.trainer.strategy
        rows = strategy.all_gather(row.float().to(strategy.root_device)).cpu().double()
        failed = 0
        for mask in rows[:, 0].tolist():
            failed |= int(mask)
        for index, member in enumerate(self.members):
            if failed >> index & 1 and not member.failed:
                member.failed = "it failed on another rank"
        if bool((rows[:, 1] > 0).any()):
            everyone: list[Any] = [None] * self.world_size
            torch.distributed.all_gather_object(everyone, (self._pending, self._holding))
            self._pending, self._changed = [], False
            holding = set().union(*(codes for _, codes in everyone))
            for code in [code for code in self.journal.told if code not in holding]:
                self._own(self.journal.retract, code)
            for finding, statistical in merge([told for told, _ in everyone]):
                self._own(self.journal.submit, finding, statistical, self.gate_open)
        self._own(self._take, rows, room, names)

    def _fill(self, row: Tensor, room: int, names: list[str]) -> None:
        losses = [loss for loss, _ in self._series[-room:]]
        baseline = self.labels.baseline() if self.labels.seen else None
        row[2] = math.nan if baseline is None else baseline
        row[3] = float(len(losses))
        row[4] = math.nan if self.labels.floor is None else self.labels.floor
        row[5] = self.labels.mastered()
        row[_HEAD : _HEAD + len(losses)] = torch.tensor(losses, dtype=torch.float64)
        shared = {k: v for m in self.members if m.shares for k, v in (self.guard(m, "share") or {}).items()}
        row[_HEAD + room :] = torch.tensor([float(shared.get(n, math.nan)) for n in names], dtype=torch.float64)

    def _take(self, rows: Tensor, room: int, names: list[str]) -> None:
        count = int(rows[:, 3].min())
        rates = [rate for _, rate in self._series[-count:]] if count else []
        for loss, rate in zip(rows[:, _HEAD : _HEAD + count].mean(0).tolist(), rates, strict=True):
            self.curve.update(loss, rate)
        self._series.clear()
        for i, name in enumerate(names):
            self.shared[name] = rows[:, _HEAD + room + i].tolist()
        baseline, floor, self.mastered = (_mean_known(rows[:, i]) for i in (2, 4, 5))
        self.baseline = baseline if math.isfinite(baseline) else None
        least = floor if math.isfinite(floor) else None
        self._set_outcome(judge(self.curve, self.step, self.baseline, least, self.mastered))

    def _each(self, verb: str, *args: Any) -> None:
        if not self._calls:
            self._every()
        calls = self._calls
        if self.quiet:
            calls = self._quiet_calls = self._quiet_calls or self._without_rare()
        for member, call in calls.get(verb, ()):
            if member.failed and verb != "detach":
                continue
            try:
                call(*args)
            except Exception as error:
                if of_a_worker(error):
                    raise
                member.fail(traceback.format_exc())

    def guard(self, member: StallCallback, verb: str, *args: Any, call: Any = None, **kwargs: Any) -> Any:
        """Call `member.verb(...)`, or `call(member, ...)`; an exception switches that member off, and ends there."""
        if member.failed and verb != "detach":
            return None
        try:
            return getattr(member, verb)(*args, **kwargs) if call is None else call(member, *args, **kwargs)
        except Exception as error:
            if of_a_worker(error) and verb not in LAST_VERBS:
                raise
            member.fail(traceback.format_exc())
            return None

    def _own(self, what: Any, *args: Any) -> Any:
        """Our own part, guarded: where it fails, every callback of ours stops and the training goes on."""
        try:
            return what(*args)
        except Exception as error:
            if of_a_worker(error) and self.active and not self.ending:
                raise
            self._stop(traceback.format_exc())
            return None

    def _stop(self, trace: str) -> None:
        told = all(member.failed for member in self.members)
        for member in self.members:
            member.failed = member.failed or f"what it shares with the others failed:\n{trace}"
        if not told:
            tell(
                "lightning_stall has a fault of its own and stops watching this run; the training goes on. "
                f"Please report it:\n{trace}"
            )

    def broke(self, trace: str) -> None:
        """An exception came out of the hub itself. Of several ranks this one goes on to meet the others."""
        self._stop(trace)
        if not self.distributed:
            self._own(self.close)
