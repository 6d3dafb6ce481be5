"""PlateauWatch: says how the run fares, and lowers the learning rate where that helps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median, stdev
from typing import Any, Literal

from lightning.fabric.utilities.rank_zero import rank_zero_info
from torch import Tensor

from lightning_stall.callback import StallCallback
from lightning_stall.detectors import LEFT_BEHIND, Overfitting, Plateau
from lightning_stall.errors import require
from lightning_stall.hub import MEDIOCRE
from lightning_stall.measure.validation_watch import validation_losses
from lightning_stall.outcome import LONG_ENOUGH, LossCurve
from lightning_stall.remedies import WeightsSnapshot
from lightning_stall.remedies_inputs import RESCALED
from lightning_stall.sinks import themes
from lightning_stall.sinks.console import tell

SHORT_COOLDOWN = 20  # optimizer steps after a cut for divergence or swings: these show at once
SURE = 3.0  # standard errors by which the second half of a brief run falls
BRIEF = 150  # optimizer steps under which a run that falls is asked whether it had hardly begun
COMING = 0.4  # share of the planned steps in which what was not learnt may yet be learnt
UNBEGUN = 0.1  # share of a constant predictor's loss that a run has explained which has not begun to learn
STEEP = 0.05  # share of what there was to gain that a run must still gain in its last quarter to be cut short
PATIENT = 30  # the same where each such step is left out anyway
THROWING = ("corrupt-samples", "exploding-gradients")  # what a remedy may end, and going back then undo
TOO_SLOW = ("learning-rate-too-low", "clipping-too-tight")  # causes of a plateau that a lower rate makes worse
THROWN = 3.0  # standard deviations over their robust kin, from which single values make the swings
THREW = 0.2  # change of the weights in a step, over their size, that leaves nothing of how they began
USUAL = 0.02  # and the most that is usual in first steps
LEAST_CUT = 0.02  # of the rate, at once
LOST = 3  # optimizer steps in a row without a finite loss after which the weights are given up
MEASURE = 20  # optimizer steps whose mean loss stands for "before" and "after" a cut

Reason = Literal["loss-plateau", "loss-diverging", "loss-oscillating"]


class PlateauWatch(StallCallback):
    """Tells loss-plateau, never-learned, loss-diverging, loss-oscillating, overfitting and, at the end,
    training-too-short; may reduce the learning rate.

    Without `monitor` it judges the training loss: against its noise, its own past and, where the loss is a built-in one,
    a constant predictor. With `monitor` a plateau of that metric counts too.

    Logs: `stall/loss/smoothed`, `stall/loss/best`, `stall/loss/baseline` (a constant predictor's loss),
    `stall/outcome/bad` (1 while the outcome is a bad one, else 0), `stall/rate/effective`, `stall/rate/factor`.

    Args:
        monitor: a metric the module logs, in steps, epochs or validation; None for the training loss.
        mode: "min" where smaller is better.
        patience: optimizer steps without improvement; None takes a tenth of the steps made, at least 100.
        factor: what the rate is multiplied by at each reduction, over 0 and under 1.
        cooldown: optimizer steps after a reduction before it is judged and another may come; None takes 50.
        min_lr: the effective rate is never brought below it.
        threshold: relative improvement that counts as one.
        rollback: with `auto_remedy`, after a divergence go back to the last good weights and optimizer state before
            training on at the lower rate. One copy of both is kept on the host, taken anew at ever longer intervals.
        auto_remedy: reduce the rate: at once on divergence and swings, after `patience` on a plateau. The schedule's own
            rate is left alone (the factor acts inside each optimizer step), and the factor is kept in the checkpoint. A
            reduction after which the loss is no better once `cooldown` is over is taken back. Beside a `StallReport` that makes
            trials a plateau is treated only where a copy is better for a lower rate, and at once at what it has borne.
        every_n_steps: optimizer steps between checks; None takes the Trainer's `log_every_n_steps`.
        mute: codes never to be told.

    Raises:
        MisconfigurationException: for a value out of these ranges.

    >>> from lightning_stall.testing import blobs, deep_sigmoid, watch
    >>> watch(deep_sigmoid(), blobs(), PlateauWatch()).outcome
    'never learned'
    """

    reads_norms = False
    codes = (
        "loss-plateau",
        "never-learned",
        "loss-diverging",
        "loss-oscillating",
        "overfitting",
        "training-too-short",
    )
    shares = ("monitor",)

    def __init__(
        self,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        *,
        patience: int | None = None,
        factor: float = 0.5,
        cooldown: int | None = None,
        min_lr: float = 0.0,
        threshold: float = 1e-3,
        rollback: bool = True,
        auto_remedy: bool = False,
        every_n_steps: int | None = None,
        mute: Sequence[str] = (),
    ) -> None:
        super().__init__(auto_remedy=auto_remedy, every_n_steps=every_n_steps, mute=mute)
        require(mode in ("min", "max"), "mode", mode, 'give "min" where smaller is better, else "max"')
        require(patience is None or patience >= 1, "patience", patience, "give optimizer steps of at least 1, or None")
        require(0 < factor < 1, "factor", factor, "give a number over 0 and under 1, such as 0.5")
        require(cooldown is None or cooldown >= 1, "cooldown", cooldown, "give optimizer steps of at least 1, or None")
        require(min_lr >= 0, "min_lr", min_lr, "give a learning rate of at least 0")
        require(threshold >= 0, "threshold", threshold, "give a relative improvement of at least 0, such as 1e-3")
        self.monitor = monitor
        self.mode: Literal["min", "max"] = mode
        self.patience = patience
        self.factor = factor
        self.cooldown = cooldown
        self.min_lr = min_lr
        self.threshold = threshold
        self.rollback = rollback
        self._reset()

    def _reset(self) -> None:
        self.scale = 1.0  # what the schedule's rate is multiplied by
        self.plateau = Plateau(threshold=self.threshold, mode=self.mode)
        self.seen_at = 0  # step of the last look at the monitored value
        self.fresh = False  # the monitored metric may have a new value
        self.changed_at = 0  # step of the last reduction; 0 when none awaits its verdict
        self.was_flat = False  # the last reduction was for a plateau
        self.level_before = math.nan
        self.rests_until = 0
        self.finite_then = -1  # steps with a finite loss when the rate was last reduced, less those gone back on
        self.value = math.nan
        self.warned = False
        self.good = WeightsSnapshot()
        self.flat = False  # whether the plateau holds, as of the last verdict
        self.mended_at = 0  # the last remedy of another's after which this one went back
        self.vain = 0  # plateaus at which a lower rate did a copy no good: each doubles the rest
        self.in_a_row = 0  # reductions for divergence, each right after the last
        self.first = WeightsSnapshot()  # where the run began, for when a trial says that it should begin again
        self.tried_at = 0  # step of the last trial that was heeded
        self.best: dict[str, WeightsSnapshot] = {}  # by validation loss, at its best
        self.good_curve: dict[str, Any] = {}
        self.overfit: dict[str, Overfitting] = {}  # by validation loss
        self.undone = 0  # reductions taken back: each doubles the patience with plateaus

    def identity(self) -> dict[str, Any]:
        return {"monitor": self.monitor, "mode": self.mode}

    # ------------------------------------------------------------------ verbs

    def begin(self) -> None:
        if not self.hub.step:
            self._reset()
        if self.auto_remedy:
            self._apply()
        elif self.scale != 1.0:
            rank_zero_info(
                f"PlateauWatch: the checkpoint's run went on at {self.scale:.3g} times the schedule's learning rate; with "
                "auto_remedy off the rate is the schedule's own again."
            )
            self.scale = 1.0
        if self.auto_remedy and self.rollback:
            self._keep()

    def validated(self) -> None:
        self.fresh = True
        hub = self.hub
        if hub.curve.n < MEASURE:
            return
        level = hub.curve.level(max(MEASURE, hub.curve.n // 20))
        for name, value in validation_losses(hub.trainer, hub.twins.names).items():
            watch = self.overfit.setdefault(name, Overfitting())
            if watch.update(value, level, abs(hub.curve.first[0]) if hub.baseline is None else hub.baseline):
                if hub.evaluates_apart:
                    continue  # the training data would fare as badly, evaluated
                self._tell_overfitting(name, watch, self._stop(name))
            elif hub.baseline is not None and watch.left_behind(hub.baseline) and not hub.evaluates_apart:
                self._tell_gap(name, watch, hub.baseline)
            elif self.auto_remedy and self.rollback and watch.since == 0:
                self.best[name] = WeightsSnapshot()
                self.best[name].take(hub.module, hub.readings.optimizers, hub.step)

    def epoch_end(self) -> None:
        self.fresh = True

    @property
    def rare(self) -> frozenset[str]:
        return frozenset({"before_batch"} if self.monitor is None else ())

    def before_batch(self, batch: Any, batch_idx: int) -> None:
        # a module may log in its own on_train_epoch_end, which runs after every callback's: look one batch later
        if self.fresh and self.monitor is not None:
            self.fresh = False
            self._read_monitor()

    def judged(self) -> None:
        hub = self.hub
        if self.monitor is not None:
            if hub.checking and not hub.distributed:
                self._read_monitor()
            if hub.distributed:
                self.value = hub.mean_shared("monitor")
        self._tell_outcome()
        self.flat = self._update_plateau()

    def act(self) -> None:
        if self.auto_remedy:
            self._judge_reduction()
            if not self._begin_again() and not self._heed_trial() and not self._heed_first_steps():
                self._treat(self.flat)
            well = self.hub.outcome.state in ("learning", "converged") and self.hub.step >= self.rests_until
            if self.rollback and (not self.good.taken or (well and self.hub.step > 1.5 * self.good.step + 50)):
                self._keep()

    def finish(self) -> None:
        if self.fresh and self.monitor is not None:
            self._read_monitor()
        self._tell_outcome()
        self._tell_too_short()

    def share(self) -> Mapping[str, float]:
        if self.monitor is not None:
            self._read_monitor()
        return {"monitor": self.value}

    def detach(self) -> None:
        self.good = self.first = WeightsSnapshot()
        self.best.clear()
        self.hub.rate.factors.pop(self.state_key, None)

    def numbers(self) -> Mapping[str, float]:
        evidence = self.hub.outcome.evidence
        names = {"level": "smoothed", "best": "best", "baseline": "baseline"}
        curve = self.hub.curve
        values = {"stall/outcome/bad": float(self.hub.outcome.bad)}
        if curve.n:  # from the first check on, so that EarlyStopping may monitor it
            values |= {"stall/loss/smoothed": curve.level(20), "stall/loss/best": min(curve.means)}
        values |= {f"stall/loss/{tag}": evidence[name] for name, tag in names.items() if name in evidence}
        values["stall/rate/effective"] = self._rate() * self.hub.rate.factor
        values["stall/rate/factor"] = self.scale
        return values

    def panels(self) -> Mapping[str, Sequence[str]]:
        return {themes.OUTCOME: ["stall/loss/.*", "stall/outcome/bad$"], themes.RATE: ["stall/rate/effective$"]}

    def state(self) -> dict[str, Any]:
        kept = (
            "in_a_row",
            "tried_at",
            "scale",
            "seen_at",
            "changed_at",
            "was_flat",
            "level_before",
            "rests_until",
            "finite_then",
            "value",
            "undone",
            "mended_at",
            "vain",
        )
        state = {name: getattr(self, name) for name in kept}
        overfit = {name: watch.state_dict() for name, watch in self.overfit.items()}
        return {**state, "plateau": self.plateau.state_dict(), "overfit": overfit}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._reset()
        for name, value in state.items():
            if name == "plateau":
                self.plateau.load_state_dict(value)
            elif name == "overfit":
                for metric, kept in value.items():
                    self.overfit[metric] = Overfitting()
                    self.overfit[metric].load_state_dict(kept)
            elif name in self.state():  # another version may have kept more
                setattr(self, name, value)

    # ------------------------------------------------------------------ how the run fares

    def _tell_outcome(self) -> None:
        hub = self.hub
        outcome, e = hub.outcome, hub.outcome.evidence
        verdicts = {
            "never learned": ("never-learned", self._never_learned),
            "diverging": ("loss-diverging", self._diverging),
            "oscillating": ("loss-oscillating", self._oscillating),
            "stalled": ("loss-plateau", self._stalled),
        }
        for state, (code, say) in verdicts.items():
            if outcome.state != state:
                self.retract(code)
                continue
            # a flat loss may be the noise floor of the task: only a cause can tell, so it stays a note; and a task may
            # be long in coming, so that nothing was learnt is one, too, while most of the run is to come
            young = state == "never learned" and not hub.ending and hub.curve.n < COMING * hub.curve.horizon < math.inf
            waits = state == "oscillating" and hub.schedule_waits
            faint = state == "never learned" and hub.as_a_line
            quiet = state == "stalled" or young or waits or faint
            severity: Literal["info", "warning"] = "info" if quiet else "warning"
            self.tell(code, say(e), severity=severity, evidence=e, where=[self.monitor or "training loss"])

    def _stop(self, name: str) -> str | None:
        """End a run whose validation has only worsened, with the weights of its best one; what was done."""
        if not self.auto_remedy or self.hub.distributed:  # ranks have losses of their own, and must stop together
            return None
        best = self.best.get(name)
        back = ""
        if best is not None and best.taken:
            best.restore(self.hub.readings.optimizers)
            back = f", with the weights of step {best.step}"
        self.hub.trainer.should_stop = True
        return f"stopped the run at step {self.hub.step}{back}"

    def _tell_overfitting(self, name: str, watch: Overfitting, remedy: str | None) -> None:
        self.tell(
            "overfitting",
            f"`{name}` rose to {watch.recent:.4g} from its best of {watch.best:.4g}, {watch.since} validations ago, while the "
            f"training loss went on falling from {watch.train_then:.4g} to {watch.train_now:.4g}; a rise of up to "
            f"{watch.allowed:.2g} would pass for noise.",
            evidence={
                "best": watch.best,
                "recent": watch.recent,
                "validations_since": float(watch.since),
                "train_then": watch.train_then,
                "train_now": watch.train_now,
            },
            where=[name],
            remedy=remedy,
        )

    def _tell_gap(self, name: str, watch: Overfitting, baseline: float) -> None:
        self.tell(
            "overfitting",
            f"`{name}` has stood at {watch.recent:.4g} for {len(watch.values) // 2} validations, while the training loss went "
            f"down to {watch.train_now:.4g}; a constant predictor has {baseline:.4g}, and a gap of {LEFT_BEHIND * baseline:.2g} would "
            "pass.",
            evidence={"recent": watch.recent, "train_now": watch.train_now, "baseline": baseline, "strength": 0.5},
            where=[name],
        )

    def _tell_too_short(self) -> None:
        outcome, e = self.hub.outcome, self.hub.outcome.evidence
        fall = -e.get("trend", 0.0)
        brief = self._cut_short()
        if not brief and (outcome.state != "learning" or fall < STEEP):
            return
        # a run that has explained most of its task may stop while it falls; one that has not has hardly begun
        begun = brief or e.get("explained", e.get("gain", 1.0)) < 0.3
        self.tell(
            "training-too-short",
            f"The run ends after {self.hub.step} steps while the loss still falls: by {100 * fall:.2g} % of what there was to "
            f"gain in its last quarter, to {_n(e, 'level')}; under {100 * STEEP:.0f} % would be an end.",
            advice="Train longer:\n\n    trainer = Trainer(max_epochs="
            f"{2 * (self.hub.epoch + 1)})\n\nor raise the learning rate, if the loss falls evenly.",
            severity="warning" if begun else "info",
            evidence=e,
        )

    def _cut_short(self) -> bool:
        """Whether a run of few steps ends in mid-fall, with most of its task before it."""
        curve, outcome = self.hub.curve, self.hub.outcome
        e = outcome.evidence
        if curve.n >= BRIEF or outcome.state not in ("learning", "too early", "stalled") or "baseline" not in e:
            return False
        young = curve.n < LONG_ENOUGH and outcome.state == "too early"
        if not (-0.5 if young else 0.0) < e["explained"] < 0.5:
            return False
        hardly = e["explained"] < 0.3  # one that has hardly begun may fall slowly as yet
        for fall, error in ((e["fall"], e["fall_error"]), curve.fall_of_half()):
            if young and fall > (0.0 if hardly else error):
                return True  # nothing can be said of so few steps, but that they were few
        # its last quarter shows it, or the straight line through its second half
        steep = max((1.0 if hardly else 2.0) * STEEP * abs(e["level"]), 1.5 * e["fall_error"])
        fall, error = curve.fall_of_half()
        slow = 0.5 if hardly else 2.0
        if curve.n < LONG_ENOUGH:  # too few steps to show much, and too few for a run to have ended by itself
            slow, error = 0.0 if e["explained"] < UNBEGUN else min(slow, 1.0), 0.65 * error
        return e["fall"] > steep or (fall > slow * STEEP * abs(e["level"]) and fall > SURE * error)

    def _never_learned(self, e: Mapping[str, float]) -> str:
        against = ""
        if "baseline" in e:
            against = f" A constant predictor reaches {e['baseline']:.4g} on the labels seen."
        return (
            f"After {self.hub.step} steps the loss is {_n(e, 'level')}, from {_n(e, 'start')} at the start: a gain of "
            f"{100 * e.get('gain', 0.0):.2g} %; 5 % would be the least sign of learning.{against}"
        )

    def _diverging(self, e: Mapping[str, float]) -> str:
        return (
            f"The loss rose to {_n(e, 'level')} from its best of {_n(e, 'best')}; it started at {_n(e, 'start')}. "
            f"Steps differ by {_n(e, 'noise')} through noise, so a rise of {6 * e.get('noise', 0.0):.3g} might pass."
        )

    def _oscillating(self, e: Mapping[str, float]) -> str:
        return (
            f"The loss swings by {_n(e, 'noise')} from step to step around {_n(e, 'level')} without falling "
            f"({100 * e.get('trend', 0.0):+.2g} % over the last quarter of the run; -1 % would be progress)."
        )

    def _stalled(self, e: Mapping[str, float]) -> str:
        return (
            f"The loss fell from {_n(e, 'start')} to {_n(e, 'level')} and falls no more "
            f"({100 * e.get('trend', 0.0):+.2g} % over the last quarter of the run; -1 % would be progress)."
        )

    # ------------------------------------------------------------------ the monitored value

    def _read_monitor(self) -> None:
        metrics = self.hub.trainer.callback_metrics
        if self.monitor in metrics:
            value = metrics[self.monitor]
            self.value = float(value) if isinstance(value, Tensor | float | int) else math.nan
        elif metrics and not self.warned and self.hub.epoch > 0 and math.isnan(self.value):
            self.warned = True
            tell(
                f"PlateauWatch(monitor={self.monitor!r}): the module logs no such metric, so only the training loss is "
                f"watched. It logs: {', '.join(sorted(metrics))}."
            )

    def _update_plateau(self) -> bool:
        """Whether the monitored value, or the smoothed loss, has not improved for `patience` steps."""
        hub = self.hub
        passed, self.seen_at = hub.step - self.seen_at, hub.step
        self.plateau.patience = (self.patience or max(100, hub.curve.n // 10)) * 2**self.undone
        if self.monitor is not None:
            if math.isnan(self.value):
                return False
            return self.plateau.update(self.value, passed)
        if hub.curve.n < MEASURE or hub.curve.bad_steps:
            return False
        noise = hub.outcome.evidence.get("noise", 0.0) / math.sqrt(MEASURE)
        value = hub.curve.level(MEASURE)
        return self.plateau.update(value if self.mode == "min" else -value, passed, noise)

    # ------------------------------------------------------------------ the remedy

    def _treat(self, plateau: bool) -> None:
        hub = self.hub
        if hub.step < self.rests_until:
            return
        reasons: dict[str, Reason] = {"diverging": "loss-diverging", "oscillating": "loss-oscillating"}
        reason = reasons.get(hub.outcome.state)
        e = hub.outcome.evidence
        if reason == "loss-oscillating" and thrown(hub.curve.recent, e.get("start", math.nan), e.get("best", math.nan)):
            return  # single batches throw the loss, and no rate is to blame for them
        # where another leaves such steps out, the weights are still what they were
        spared = any("nonfinite-gradients" in m.codes and m.auto_remedy and not m.failed for m in hub.members)
        if hub.curve.bad_steps >= (PATIENT if spared else LOST) and self.rollback:
            if self.finite_then == hub.curve.n:
                return  # not one step since the last cut has had a finite loss: no rate is to blame
            reason = "loss-diverging"  # no gradient leads back from weights that are not numbers
        # a plateau of the training loss needs a bad outcome too: a converged run has earned its plateau
        if reason is None and plateau and (self.monitor is not None or hub.gate_open):
            slow = any(f.code in TOO_SLOW for f in hub.journal.known())
            reason = None if slow else "loss-plateau"
        if reason is None:
            return
        if reason == "loss-plateau" and not self._borne_out():
            return
        rate = self._rate() * hub.rate.factor
        swift = reason != "loss-plateau"
        # what goes on to diverge right after a reduction is far too high: each in a row cuts twice as deep
        again = self.rests_until > 0 and hub.step - self.rests_until <= SHORT_COOLDOWN
        self.in_a_row = self.in_a_row + 1 if swift and again else 0
        factor = self.factor ** (2 ** min(self.in_a_row, 3))
        scale = self.scale * factor
        if rate * factor < self.min_lr:
            scale = self.scale * self.min_lr / rate if rate > 0 else self.scale
        if scale >= self.scale * 0.999:
            return
        self.rests_until = hub.step + (self.cooldown or (SHORT_COOLDOWN if swift else 50))
        self.changed_at = hub.step
        self.was_flat = not swift
        self.level_before = self._level()
        old, self.scale = self.scale, scale
        self._apply()
        back = self._go_back() if swift and self.rollback else ""
        self.finite_then = hub.curve.n
        self.plateau.since = self.plateau.failed = 0
        self.tell(
            reason,
            f"{self.monitor or 'The loss'} stood at {self.level_before:.4g}; the learning rate was {rate:.3g}.",
            severity="warning",
            evidence={"rate_before": rate, "rate_after": rate * scale / old, "level": self.level_before},
            remedy=f"reduced the learning rate from {rate:.3g} to {rate * scale / old:.3g} at step {hub.step}{back}",
        )

    def _borne_out(self) -> bool:
        """Whether a lower rate does a copy good, where one can be asked: many a run stands at the floor of its task."""
        hub = self.hub
        if self.monitor is not None or hub.trials is None:
            return True
        better = hub.trials.better_rate((self.factor, 0.1))
        if better is not None or hub.trials.declined is not None:
            return True
        self.vain += 1
        self.rests_until = hub.step + (self.cooldown or 50) * 2**self.vain
        return False

    def _begin_again(self) -> bool:
        """Another's remedy has taken hold of what threw the weights: go back to those before it; whether it did."""
        hub = self.hub
        if hub.mended.get("bad-initialization", 0) > max(self.good.step, self.mended_at):
            self._forget_the_past()
            return True
        at = hub.mended_last((*THROWING, *RESCALED))
        if at <= self.mended_at:
            return False
        first = self._beginning
        learnt = hub.outcome.evidence.get("explained", 0.0) >= MEDIOCRE  # so much is not begun anew for other inputs
        if first is not None and not learnt and at == hub.mended_last(RESCALED):
            self._begin_rescaled(at, first)
            return True
        self.mended_at = at
        self.rests_until = hub.step + (self.cooldown or SHORT_COOLDOWN)
        self.changed_at = self.plateau.since = self.plateau.failed = 0
        exploded = hub.mended.get("exploding-gradients") == at  # the weights are lost, whatever the loss may be
        thrown_about = hub.outcome.bad or hub.curve.bad_steps or exploded
        back = self._go_back() if self.rollback and self.good.taken and thrown_about else ""
        if back:
            self.tell(
                "loss-diverging",
                f"What had thrown the weights is taken care of since step {at}; the loss was {_level_of(hub)}.",
                severity="info",
                evidence={"mended_at": float(at)},
                remedy=back.removeprefix(", and "),
            )
        return True

    def _begin_rescaled(self, at: int, first: WeightsSnapshot) -> None:
        """The inputs are other ones since step `at`: begin with the weights that no step has moved yet."""
        self.mended_at = at
        level, back = _level_of(self.hub), self._begin_with(first)
        self._rest()
        self.tell(
            "loss-plateau",
            f"The inputs are standardised since step {at}; the loss was {level}.",
            severity="info",
            evidence={"mended_at": float(at)},
            remedy=back.removeprefix(", and "),
        )

    def _forget_the_past(self) -> None:
        """The weights were drawn anew: what was kept of the others is nothing to go back to."""
        self.mended_at = self.hub.mended["bad-initialization"]
        self.good = self.first = WeightsSnapshot()
        self.best.clear()
        self._rest()

    def _heed_trial(self) -> bool:
        """Do what a trial on a copy has done, where it learnt at a lower rate; whether there was one to heed."""
        hub = self.hub
        tried = [
            f
            for f in hub.journal.findings
            if f.code == "learning-rate-too-high" and f.evidence.get("trial", 0.0) > 0 and f.step > self.tried_at
        ]
        if not tried or not (hub.outcome.bad or hub.step - tried[-1].step <= SHORT_COOLDOWN):
            return False
        e, self.tried_at = tried[-1].evidence, tried[-1].step
        rate, old = self._rate() * hub.rate.factor, self.scale
        self.scale *= min(e.get("factor", 1.0), 1.0)
        self._apply()
        back = ""
        lost = e.get("fresh") or hub.outcome.state in ("diverging", "oscillating")
        if lost and (first := self._beginning) is not None:
            back = self._begin_with(first)  # what the high rate did to the weights no low one mends
        elif self.scale == old:
            return False
        self._rest()  # the trial has judged it already
        now = rate * self.scale / old
        self.tell(
            "loss-plateau",
            f"A copy of the model learnt at a learning rate of {now:.3g}, where the run stands still at {rate:.3g}.",
            severity="info",
            evidence={"rate_before": rate, "rate_after": now, "level": e.get("run", math.nan)},
            remedy=f"reduced the learning rate from {rate:.3g} to {now:.3g} at step {hub.step}{back}",
        )
        return True

    def _heed_first_steps(self) -> bool:
        """Where no copy can be asked: what the first steps threw about begins anew, with steps of a usual length."""
        hub = self.hub
        first = self._beginning
        asked = hub.trials is not None and hub.trials.declined is None
        if asked or self.tried_at or not hub.gate_open or first is None:
            return False
        high = next((f for f in hub.journal.known() if f.code == "learning-rate-too-high"), None)
        ratio = high.evidence.get("ratio", 0.0) if high is not None else 0.0
        if hub.outcome.state not in ("stalled", "never learned") or ratio < THREW:
            return False
        rate, self.tried_at = self._rate() * hub.rate.factor, hub.step
        self.scale *= max(LEAST_CUT, USUAL / ratio)
        self._apply()
        back = self._begin_with(first)
        self._rest()
        now = self._rate() * hub.rate.factor
        self.tell(
            "loss-plateau",
            f"The first steps moved the weights by {ratio:.2g} times their size; {USUAL:g} is usual at most.",
            severity="info",
            evidence={"rate_before": rate, "rate_after": now, "ratio": ratio},
            remedy=f"reduced the learning rate from {rate:.3g} to {now:.3g} at step {hub.step}{back}",
        )
        return True

    @property
    def _beginning(self) -> WeightsSnapshot | None:
        """The weights that the run began with, where they are kept and may be gone back to."""
        first = self.first if self.first.taken else self.good
        return first if self.rollback and first.taken and first.step == 0 else None

    def _begin_with(self, first: WeightsSnapshot) -> str:
        """Go back to these weights, as if no step had been made."""
        first.restore(self.hub.readings.optimizers)
        self.hub.curve.load_state_dict(LossCurve(horizon=self.hub.curve.horizon).state_dict())
        return ", and went back to the weights it began with"

    def _rest(self) -> None:
        """After a change that needs no verdict of its own: nothing more for a while."""
        self.changed_at, self.rests_until = 0, self.hub.step + (self.cooldown or 50)
        self.plateau.since = self.plateau.failed = 0

    def _keep(self) -> None:
        hub = self.hub
        if hub.trials is not None and self.good.taken and self.good.step == 0:
            self.first = self.good
            self.good = WeightsSnapshot()
        self.good.take(hub.module, hub.readings.optimizers, hub.step)
        self.good_curve = hub.curve.state_dict()

    def _go_back(self) -> str:
        """Restore the last good weights, and the loss curve that led to them: what came after did not happen."""
        hub = self.hub
        worst = hub.curve.level(MEASURE) if hub.curve.n else math.nan
        good = LossCurve()
        good.load_state_dict(self.good_curve)
        if good.n and worst <= good.level(MEASURE) + hub.outcome.evidence.get("noise", 0.0) and not hub.curve.bad_steps:
            return ""  # no worse than what is kept
        self.good.restore(hub.readings.optimizers)
        hub.curve.load_state_dict(self.good_curve)
        return f", and went back to the weights of step {self.good.step}"

    def _judge_reduction(self) -> None:
        hub = self.hub
        if not self.changed_at or hub.step < self.rests_until:
            return
        after, before = self._level(), self.level_before
        changed_at, self.changed_at = self.changed_at, 0
        noise = 0.0 if self.monitor else hub.outcome.evidence.get("noise", 0.0) / math.sqrt(MEASURE)
        gained = after - before if self.mode == "max" else before - after
        # a loss that rose or swung only has to stop; a flat one has to fall, beyond what two noisy means differ by
        better = gained > (2 * noise if self.was_flat else -2 * noise)
        if not better and (not self.was_flat or not math.isfinite(after)):
            return  # the rate at which it fell apart is no way back: if anything, it is lowered further
        if better:
            self.tell(
                "loss-plateau",
                f"{after:.4g} after the reduction of step {changed_at}, {before:.4g} before it.",
                severity="info",
                evidence={"before": before, "after": after, "factor": self.scale},
                remedy=f"kept the reduction of step {changed_at}",
            )
            return
        old, self.scale = self.scale, min(1.0, self.scale / self.factor)
        self.undone += 1
        self._apply()
        self.tell(
            "loss-plateau",
            f"{after:.4g} after the reduction of step {changed_at}, {before:.4g} before it: no better.",
            severity="info",
            evidence={"before": before, "after": after, "factor_before": old, "factor_after": self.scale},
            remedy=f"took the reduction of step {changed_at} back",
        )

    def _level(self) -> float:
        if self.monitor is not None and not math.isnan(self.value):
            return self.value
        return self.hub.curve.level(MEASURE) if self.hub.curve.n else math.nan

    def _rate(self) -> float:
        rates = [group.get("lr", 0.0) for o in self.hub.readings.optimizers for group in o.param_groups]
        return max((float(rate) for rate in rates), default=0.0)

    def _apply(self) -> None:
        self.hub.rate.set(self.state_key, self.scale)


def thrown(losses: Sequence[float], start: float, best: float) -> bool:
    """Whether a few far values, rather than most, make these losses swing, while the others stay near the best level."""
    if len(losses) < 20:
        return False
    middle = median(losses)
    robust = 1.4826 * median([abs(v - middle) for v in losses])
    return stdev(losses) > THROWN * robust and not middle - best > 0.25 * abs(start - best)


def _level_of(hub: Any) -> str:
    return f"{hub.curve.level(MEASURE):.4g}" if hub.curve.n else "not a number"


def _n(evidence: Mapping[str, float], name: str) -> str:
    return f"{evidence.get(name, math.nan):.4g}"
