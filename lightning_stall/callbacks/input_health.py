"""`InputHealth`: what reaches the model and the loss, their scale, their order, and whether they belong together."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_stall.callback import StallCallback, guarded
from lightning_stall.errors import require
from lightning_stall.finding import Finding
from lightning_stall.measure.batch_watch import BadBatch, BatchWatch, draws_at_random, recall
from lightning_stall.measure.batches import Field, fields
from lightning_stall.measure.validation_watch import ValidationWatch
from lightning_stall.readings import StepReading
from lightning_stall.remedies_inputs import RESCALED, InputFill, LeaveOut, Standardizer
from lightning_stall.sinks import themes
from lightning_stall.trials.pairing import computed_targets
from lightning_stall.verdicts import inputs as judge_inputs
from lightning_stall.verdicts import targets as judge_targets
from lightning_stall.verdicts.batches import BatchJudge, Context, nonfinite, too_little
from lightning_stall.verdicts.inputs import Verdict

MINDED = 0.05  # share of a constant predictor's validation loss, of which chance explains less
FITTED_ON = 8  # batches before a standardisation may be fitted
LATELY = 20  # optimizer steps in which a thrown loss makes it look for outliers before the next check
FEW_LEFT_OUT = 4  # batches that train nothing for values that are not finite, fewer of which cost nobody anything
MUCH_LEFT_OUT = 0.2  # of all batches, and
KEPT = 512  # optimizer steps whose loss and gradient norm are remembered
LONG_ENOUGH = 100  # optimizer steps after which the training set counts as seen, where epochs are endless
STICKY = frozenset({"corrupt-samples", "unshuffled-data"})  # what was seen was there, though it may not come again
NOW_AND_THEN = 8  # steps between gradient norms that are read for comparison alone
LOOKED_AT = 64  # batches that are all looked at
ENOUGH_LOSSES = 32  # of the last steps, that tell which loss is odd
MANY_BAD = 4  # batches with values that are not finite, from which on those are filled where most batches hold some
FITTING = ("training", "validation")
EVALUATIONS = {"validate": "validation", "test": "test", "predict": "predict"}
LEFT_OUT = "left out each step with such a batch before it reached the weights, and put BatchNorm's statistics back"


class InputHealth(StallCallback):
    """Watches the batches: inputs, targets, their order, and whether validation saw them too.

    Inputs and targets are told apart by what reaches the first layers and the loss. Every batch is looked at for values
    that are not finite and for outliers (on a CPU, after the first 64, every eighth, and each whose loss is odd); the first
    32 batches, and those of checks, are measured in full.

    Says: nonfinite-inputs, unscaled-inputs, disparate-feature-scales, categorical-as-numeric, constant-inputs,
    unscaled-targets, corrupt-samples, class-imbalance, unshuffled-data, train-val-leakage, too-little-data,
    uninformative-targets.

    Logs: `stall/inputs/mean/<field>`, `stall/inputs/std/<field>`, `stall/targets/share/<class>`, `stall/targets/mean`,
    `stall/targets/std`.

    Args:
        auto_remedy: leave out a step whose batch holds values that are not finite, where they reached the gradients,
            and put BatchNorm's running statistics back. On several devices every step with such gradients is left out.
            Where most batches hold such values and spoil their steps, put the mean of the others in their place from then
            on, in front of the layer that the field enters, as `standardize` does (single process only).
        standardize: with `auto_remedy`, inputs that are far from unit scale are standardised with the numbers measured
            on the first batches, from then on, in front of the layer that they enter: the fitted module takes the data
            as they are. Where they reach no layer as they are (or the model is compiled), in front of this Trainer's
            training, validation, test and prediction steps instead. The statistics are kept in the checkpoint with
            this callback, not in the module's `state_dict`. Single process only.
        every_n_steps: optimizer steps between checks; None takes the Trainer's `log_every_n_steps`.
        mute: codes never to be told.

    >>> from lightning_stall.testing import blobs, healthy, watch
    >>> loader = blobs()
    >>> loader.dataset.tensors[0][7, 2] = float("nan")
    >>> watch(healthy(), loader, InputHealth()).findings[0].code
    'nonfinite-inputs'
    """

    reads_norms, reads_norms_there = False, True
    reads_updates = True
    codes = (
        "nonfinite-inputs",
        "unscaled-inputs",
        "disparate-feature-scales",
        "categorical-as-numeric",
        "constant-inputs",
        "unscaled-targets",
        "corrupt-samples",
        "class-imbalance",
        "unshuffled-data",
        "train-val-leakage",
        "too-little-data",
        "uninformative-targets",
    )

    def __init__(
        self,
        *,
        auto_remedy: bool = False,
        standardize: bool = False,
        every_n_steps: int | None = None,
        mute: Sequence[str] = (),
    ) -> None:
        super().__init__(auto_remedy=auto_remedy, every_n_steps=every_n_steps, mute=mute)
        require(isinstance(standardize, bool), "standardize", standardize, "give True or False")
        require(
            auto_remedy or not standardize, "standardize", standardize, "set `auto_remedy=True` as well: it is a remedy"
        )
        self.standardize = standardize
        self.standardizer, self.filler = Standardizer(), Standardizer(InputFill)
        self.skipped = 0  # of earlier fits of this run
        self.kept_limits: dict[str, Tensor] = {}
        self._reset()

    def _reset(self) -> None:
        self.watch = BatchWatch()
        self.judge = BatchJudge()
        self.validation = ValidationWatch()
        self.ratio = math.nan  # change of the weights in a step, over their size
        self._fields: list[Field] | None = None  # of the present batch, once they were asked for
        self._measured = True  # this batch, already
        self._on_host = False  # the model, at the last check
        self._measured_step = 0
        self._validates = False  # on one set
        self._first_epoch: int | None = None  # the first that this fit trains in
        self._epoch_over = False
        self._first_losses: list[float] = []
        self._losses: deque[tuple[int, float]] = deque(maxlen=KEPT)
        self._usual, self._usual_until = (math.inf, -math.inf), 0  # of these the usual ones, and for how many steps
        self._norms: deque[tuple[int, float]] = deque(maxlen=KEPT)
        self._seen = self._bad_batches = 0  # batches looked at for values that are not finite, and those that had some
        self._backward_seen = False  # the last batch came to a backward pass that is told of
        self._passed = False  # the present batch has not been looked at
        self._harmed = False  # such a batch has spoilt a step
        self._hurt: Tensor | None = None  # on an accelerator: the first step that such a batch spoilt, or -1
        self._before: Tensor | float | None = None  # the gradient norm of the step before
        self._remedy: LeaveOut | None = None
        self._begun = self._without_loss = 0  # batches of this fit, and those that no backward pass followed
        self._left_out: Tensor | int = 0  # of these, those that held values that are not finite
        self._first_left_out: BadBatch | None = None

    # ------------------------------------------------------------------ gathering

    def begin(self) -> None:
        self._reset()
        hub = self.hub
        self.watch.limits, self.kept_limits = (dict(self.kept_limits) if hub.step else {}), {}
        if not hub.step:
            self.skipped = 0
            self.standardizer, self.filler = Standardizer(), Standardizer(InputFill)
        if self.auto_remedy:
            self._remedy = LeaveOut(hub.module, self.skipped, hub.readings.scaler is not None)
        if any(each.statistics for each in self._in_front.values()):
            self._stand_in_front(FITTING)

    def before_batch(self, batch: Any, batch_idx: int) -> None:
        hub, watch = self.hub, self.watch
        if self._first_epoch is None:
            self._first_epoch = hub.epoch
        self._on_host = hub.module.device.type == "cpu" if hub.checking else self._on_host
        # what the training step does to a list of tensors is seldom anything
        self._fields, self._measured = None if type(batch) in (list, tuple) else fields(batch), False
        if hub.checking or not self._losses:
            self._validates = self._one_validation()
        starts = hub.readings.window_starts
        if starts:
            watch.bad_here, watch.bad, watch.far_here = False, None, False
        self._passed = not self._looks_now()
        self._backward_seen = False
        self._begun += 1
        if self._passed:
            watch.pass_by(hub.step)
        else:
            watch.look(self._found, hub.step, hub.epoch, batch_idx)
        if self._remedy is not None and hub.may_wait and not hub.distributed:
            self._count_bad()
        if self._remedy is not None:
            self._remedy.before_batch(starts, watch.bad_here | watch.far_here, always=hub.distributed)
        if hub.checking and hub.checks <= 2 and not watch.roles.certain:
            watch.watch_entries(hub.module, self._found)
        else:
            watch.close()

    @property
    def _found(self) -> list[Field]:
        """The tensors of the present batch."""
        if self._fields is None:
            batch = self.hub.batch[0]
            self._fields = [] if batch is None else fields(batch)
        return self._fields

    def _looks_now(self) -> bool:
        """Whether this batch is looked at before its forward pass; where the host has its loss, that may tell later."""
        known = self._on_host and self._backward_seen and len(self._losses) >= ENOUGH_LOSSES
        return not known or self.watch.batches < LOOKED_AT or self._now_and_then

    @property
    def _now_and_then(self) -> bool:
        """Whether this step is one of those that are looked at without a reason; a remedy looks at all of them."""
        return self._remedy is not None or self.hub.checking or self.hub.step % NOW_AND_THEN == 0

    def _loss_is_odd(self) -> bool:
        """Whether the loss of this micro-batch is none of those that the last steps had, of which some are beyond all."""
        readings = self.hub.readings
        loss = readings.loss_here
        if loss is None:
            return True
        loss *= readings.accumulate
        if self.hub.step < self._usual_until and self._usual[0] <= loss <= self._usual[1]:
            return False
        last = sorted(v for _, v in list(self._losses)[-ENOUGH_LOSSES:] if math.isfinite(v))
        if len(last) < ENOUGH_LOSSES // 2:
            return True
        middle = last[len(last) // 2]
        spread = last[3 * len(last) // 4] - last[len(last) // 4]
        self._usual, self._usual_until = (middle - 2 * spread, middle + 2 * spread), self.hub.step + NOW_AND_THEN
        return not self._usual[0] <= loss <= self._usual[1]

    def _count_bad(self) -> None:
        """Where most batches hold values that are not finite, leaving them out would leave nothing: fill them."""
        self._seen += 1
        if self.watch.bad_here is False:
            return
        holes = [f for f in self._found if f.floating and not bool(f.tensor.isfinite().all())]
        self._bad_batches += bool(holes)
        if self._bad_batches < MANY_BAD or 2 * self._bad_batches < self._seen or not self._harmed:
            return  # a model may know how to read such values
        fresh = [f for f in holes if f.name in self.watch.roles.inputs and f.name not in self.filler.statistics]
        for f in fresh:
            self.filler.fit_finite(f.name, f.tensor, self.watch.entries)
        if fresh:
            self._stand_in_front(FITTING)
            self.tell(
                "nonfinite-inputs",
                f"{self._bad_batches} of {self._seen} batches held values that are not finite: too many to leave out.",
                severity="warning" if self._first_left_out is not None else "info",  # else it has been told already
                evidence={"batches": float(self._bad_batches), "of": float(self._seen)},
                where=[f.name for f in fresh],
                remedy=f"put the mean of the others in the place of such values, from step {self.hub.step} on",
            )

    def before_backward(self, loss: Tensor) -> None:
        if self._measured:
            return
        self._measured = self._backward_seen = True
        if self._passed and self._loss_is_odd():
            self._passed = False
            self.watch.look(self._found, self.hub.step, self.hub.epoch, self.hub.batch_idx, again=True)
        hub, watch = self.hub, self.watch
        fresh = hub.epoch == self._first_epoch and not self._epoch_over
        if hub.checking and hub.checks <= 4 and not watch.roles.certain:
            watch.settle(loss, self._found)
        if watch.starting or (hub.checking and self._measured_step != hub.step):
            self._measured_step = hub.step
            watch.measure(loss, self._found, keep_rows=fresh)
        elif self.judge.only_class and fresh:
            watch.measure_labels(loss, keep_rows=False)
        if fresh and self._validates and not watch.overlap.full and (read := watch.hashed(self._found)):
            watch.overlap.train(read)
        self._fields = []

    def before_step(self, optimizer: Optimizer) -> None:
        bad, odd, step = self.watch.bad_here, self.watch.odd, self.hub.step
        if not (odd or self._now_and_then or isinstance(bad, Tensor)):
            return
        reading, before = self.hub.readings.gradients(optimizer), self._before
        if reading.known is not None and (not self._norms or self._norms[-1][0] != step):
            self._norms.append((step, reading.known))
        self._before = reading.total if reading.known is None else reading.known
        together = self._remedy is not None and self.hub.distributed  # all ranks leave a step out, or none
        if self._remedy is not None and self.watch.far_here is not False:
            self._apply(optimizer, torch.as_tensor(self.watch.far_here, device=reading.total.device))
            if self.watch.far_here is True:
                self.hub.spared.add(self.hub.step)
                self._before = before
                return
        if bad is False and not together:
            return
        total = reading.total
        broken = ~torch.isfinite(total)
        # a run that was broken already shows nothing about this batch
        if isinstance(bad, Tensor):
            sound = torch.as_tensor(before).isfinite() if before is not None else True
            hurt = torch.full_like(total, -1.0) if self._hurt is None else self._hurt
            self._hurt = torch.where(broken & bad & sound & (hurt < 0), float(step), hurt)
        elif bad and bool(broken) and all(bool(p.isfinite().all()) for p in reading.params):
            self._tell_nonfinite(self.watch.bad)
        if self._remedy is not None:
            self._apply(optimizer, broken if together else broken & bad)
            self._before = before  # what this step would have done was not done

    def _apply(self, optimizer: Optimizer, bad: Tensor) -> None:
        if self._remedy is not None and self._remedy.apply(optimizer, bad):
            self.hub.cleared_at = self.hub.step
            self._harmed = True

    def micro_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._look_at_what_was_left_out(batch)

    def step_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._look_at_what_was_left_out(batch)

    def _look_at_what_was_left_out(self, batch: Any) -> None:
        """Whether a batch that no backward pass followed, as where a step returns no loss, held what is not finite."""
        if self._measured:
            return
        self._measured = True
        self._without_loss += 1
        watch, hub = self.watch, self.hub
        if self._passed:
            self._passed = False
            watch.look(fields(batch), hub.step, hub.epoch, hub.batch_idx, again=True)
        bad = watch.bad_here
        self._left_out = self._left_out + (bad.int() if isinstance(bad, Tensor) else int(bad))
        self._first_left_out = self._first_left_out or watch.bad
        self._harmed = self._harmed or self._first_left_out is not None

    def _tell_of_what_is_left_out(self) -> None:
        """Batches with values that are not finite, of which a training step makes nothing: right, and a loss of data."""
        if self._without_loss < max(FEW_LEFT_OUT, MUCH_LEFT_OUT * self._begun):
            return
        count = int(self._left_out)
        if count >= max(FEW_LEFT_OUT, MUCH_LEFT_OUT * self._begun):
            bad = self._first_left_out
            verdict = judge_inputs.left_out(count, self._begun, "" if bad is None else bad.field)
            self._say(verdict.code, verdict)

    def observe(self, reading: StepReading) -> None:
        loss = reading.loss
        if loss is not None:
            if len(self._first_losses) < 8 and math.isfinite(loss):
                self._first_losses.append(loss)
            self._losses.append((reading.step, loss))
        # one that nobody has read is no number, as the one of a step that was spoilt is
        if len(reading.norms) and (not self._norms or self._norms[-1][0] < reading.step):
            self._norms.append((reading.step, reading.total_norm))

    def epoch_end(self) -> None:
        self._epoch_over = True

    @guarded
    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        found = fields(batch)
        self.validation.look(found, self.hub.step, self.hub.epoch, batch_idx)
        if self._one_validation() and (read := self.watch.hashed(found)):
            self.watch.overlap.validate(read)

    def _one_validation(self) -> bool:
        """Whether there is one validation set (of several, one may be training data on purpose)."""
        batches = self.hub.trainer.num_val_batches
        return len(batches) == 1 and bool(batches[0]) and not self.hub.trainer.overfit_batches

    def validated(self) -> None:
        self.validation.unread = True
        if self.hub.module.device.type == "cpu":
            self._read_validation()

    # ------------------------------------------------------------------ judging

    def judged(self) -> None:
        """Between checks, where a remedy waits for it: whether a single batch has thrown the loss."""
        hub = self.hub
        if self._remedy is None or hub.checking or not hub.may_wait or hub.distributed:
            return
        recent = [loss for _, loss in self._losses][-LATELY:]
        if recent and not max(map(abs, recent)) < judge_inputs.THROWN * median(map(abs, recent)):
            self._say("corrupt-samples", self.judge.corrupt(self.watch, self._context()))

    def check(self) -> None:
        ratios = self.hub.readings.update_ratios()
        if ratios:
            moved = [r for r in ratios.values() if 0 < r < math.inf]
            self.ratio = median(moved) if moved else 0.0
        if self.validation.unread:
            self._read_validation()
        if self._hurt is not None and float(self._hurt) >= 0:
            self._harmed = True
            self._tell_nonfinite(recall(self.watch, int(self._hurt)))
            self._hurt = None
        self._tell_of_what_is_left_out()
        if self.watch.computed is None and not self.watch.roles.certain:
            self._ask_for_targets()
        if self.watch.measured:
            leave = frozenset(self.standardizer.statistics)
            for code, verdict in self.judge.verdicts(self.watch, self._context(), leave):
                self._say(code, verdict)
            self.hub.bond = self.judge.bond

    def finish(self) -> None:
        if self.hub.step:
            self.check()
            context = self._context()
            self._say("too-little-data", too_little(self.watch, context, self.validation.last))
            self._take_back_uninformative(context.val_explained)

    def aborted(self, error: BaseException) -> None:
        self.check()

    def _ask_for_targets(self) -> None:
        """Where all targets are of one class and no field of the batch holds them: whether a step makes them of one."""
        classes, (batch, index) = self.watch.labels.classes(), self.hub.batch
        if classes is None or batch is None or sum(c > 0 for c in classes.counts) != 1:
            return
        self.watch.computed = computed_targets(self.hub.trainer, self.hub.module, batch, index)

    def _take_back_uninformative(self, found: float) -> None:
        """Samples that were not trained on have come to be predicted: the inputs do tell something of the targets."""
        hub, code = self.hub, "uninformative-targets"
        told = any(f.code == code and f.speaks for f in hub.journal.findings)
        if told and found > MINDED and hub.outcome.evidence.get("explained", 0.0) > MINDED:
            said = (
                f"The last validations explain {found:.1%} of the targets, which speaks against it: inputs that say nothing "
                "would explain none."
            )
            hub.journal.note(
                Finding(code, hub.step, hub.epoch, "info", said, evidence={"trial": -1.0, "explained": found})
            )

    def _context(self) -> Context:
        hub = self.hub
        trainer, best = hub.trainer, self.validation.best
        explained = hub.outcome.evidence.get("explained", math.nan)
        return Context(
            step=hub.step,
            loader=trainer.train_dataloader,
            shuffles=draws_at_random(trainer.train_dataloader),
            deliberate=bool(trainer.overfit_batches or trainer.fast_dev_run),
            epoch_over=self._epoch_over,
            batches=trainer.num_training_batches,
            parameters=sum(p.numel() for p in hub.module.parameters() if p.requires_grad),
            losses=self._losses,
            norms=self._norms,
            first_loss=median(self._first_losses) if self._first_losses else math.nan,
            level=hub.outcome.evidence.get("level", math.nan),
            explained=explained if hub.baseline is not None else math.nan,
            val_explained=1 - best / hub.baseline if hub.baseline and math.isfinite(best) else math.nan,
            update_ratio=self.ratio,
        )

    def _read_validation(self) -> None:
        """What the last validation showed; waits for the device."""
        overlap, hub = self.watch.overlap, self.hub
        if overlap.validation and (self._epoch_over or overlap.full or hub.step >= LONG_ENOUGH):
            verdict = judge_targets.leakage(*overlap.count(), overlap.kept)
            if verdict is not None:
                self._say(verdict.code, verdict)
        overlap.forget_validation()
        bad = self.validation.read(hub.trainer.callback_metrics, hub.step, hub.epoch, hub.twins.names)
        if bad is not None and hub.outcome.state != "non-finite":
            self._tell_nonfinite(bad, validation=True)

    def _say(self, code: str, verdict: Verdict | None, remedy: str | None = None, step: int | None = None) -> None:
        """Tell a verdict, or take back what was said before."""
        if verdict is None:
            if code not in STICKY:
                self.retract(code)
            return
        if self.standardize and code in RESCALED:
            remedy = self._fit(code, verdict.where[0].partition(":")[0])
        if code == "corrupt-samples" and self._remedy is not None and not self.hub.distributed:
            remedy = self._leave_out_such(verdict)
        self.tell(
            code,
            verdict.summary,
            advice=verdict.advice,
            severity=verdict.severity,
            statistical=verdict.statistical and remedy is None,
            evidence=verdict.evidence,
            where=verdict.where,
            remedy=remedy,
            step=step,
        )

    def _leave_out_such(self, verdict: Verdict) -> str | None:
        """From here on leave out each step with a batch as far out; where only a bad run tells, once it is one."""
        if verdict.statistical and not self.hub.gate_open:
            return None
        where = {place.partition(":")[0].partition(", column")[0] for place in verdict.where}
        fresh = [name for name in where - self.watch.limits.keys() if self.watch.set_limits(name)]
        if not fresh:
            return None
        self.hub.mended["corrupt-samples"] = self.hub.step
        return f"left out each such batch from step {self.hub.step + 1} on"

    def _tell_nonfinite(self, bad: BadBatch | None, validation: bool = False) -> None:
        if bad is not None:
            verdict = nonfinite(bad, self.watch, self.hub.trainer.train_dataloader, validation)
            self._say(verdict.code, verdict, None if self._remedy is None or validation else LEFT_OUT, bad.step)

    # ------------------------------------------------------------------ the standardisation

    def _fit(self, code: str, name: str) -> str | None:
        """Standardise this field from the next step on; what was done, None where nothing was."""
        watch = self.watch.inputs.get(name)
        if watch is None or watch.batches < FITTED_ON or self.hub.distributed or self.watch.ids.get(name):
            return None  # ids are no numbers to be moved
        if name not in self.standardizer.statistics:
            if not self.standardizer.fit(name, watch, self.watch.entries):
                return None
            self.hub.mended[code] = self.hub.step
        self._stand_in_front(FITTING)
        layers = ", ".join(f"`{layer}`" for layer in self.standardizer.layers.get(name, ()))
        return (
            f"standardised `{name}` with the mean and deviation of {watch.rows} samples, from step {self.hub.step + 1} "
            f"on, {f'in front of {layers}' if layers else 'in training, validation, test and prediction'}"
        )

    def _stand_in_front(self, stages: Sequence[str]) -> None:
        hub = self.hub
        for each in self._in_front.values():
            each.attach(hub.module)
            each.install(hub.trainer.strategy, stages)

    @property
    def _in_front(self) -> dict[str, Standardizer]:
        """What may stand in front of the model, in the order in which it is installed, by its name in a checkpoint."""
        return {"standardizer": self.standardizer, "filler": self.filler}

    @property
    def _wanted(self) -> list[Standardizer]:
        return [*[self.standardizer] * self.standardize, *[self.filler] * self.auto_remedy]

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage in EVALUATIONS:
            for each in self._wanted:
                each.install(trainer.strategy, [EVALUATIONS[stage]])

    def _evaluate(self, trainer: Any, pl_module: Any) -> None:
        """A checkpoint has been read by now, for a test of its own."""
        with suppress(Exception):  # layers of another model, which has its own
            for each in self._wanted:
                each.attach(pl_module)

    on_validation_start = on_test_start = on_predict_start = _evaluate

    def _step_aside(self) -> None:
        for each in reversed(self._in_front.values()):  # the last to be installed is the first to go
            each.remove()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        self._step_aside()

    def detach(self) -> None:
        self.watch.close()
        self._step_aside()
        if self._remedy is not None:
            self._remedy.remove()
            self.skipped = self._remedy.skipped

    # ------------------------------------------------------------------ what is logged and kept

    def numbers(self) -> Mapping[str, float]:
        skips = {} if self._remedy is None else {"stall/inputs/skipped_steps": float(self._remedy.skipped)}
        return {**self.judge.logged, **skips}

    def panels(self) -> Mapping[str, Sequence[str]]:
        return {themes.INPUTS: ["stall/inputs/(mean|std)/.*", "stall/targets/share/.*"]}

    def state(self) -> dict[str, Any]:
        skipped = self._remedy.skipped if self._remedy is not None else self.skipped
        return {
            "skipped": skipped,
            **{name: each.state_dict() for name, each in self._in_front.items()},
            "limits": dict(self.watch.limits),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.skipped = state["skipped"]
        self.kept_limits = state.get("limits", {})
        for name, each in self._in_front.items():
            each.load_state_dict(state.get(name, {}))  # the second came later than the first checkpoints

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        with suppress(Exception):  # a fit loads it again, and says what it cannot read
            for name, each in self._in_front.items():  # for a test of its own
                each.load_state_dict(state_dict["own"].get(name, {}))
