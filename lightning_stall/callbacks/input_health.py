"""`InputHealth`: what reaches the model and the loss, their scale, their order, and whether they belong together."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_stall import judge_inputs, judge_targets
from lightning_stall.callback import StallCallback, guarded
from lightning_stall.errors import require
from lightning_stall.judge_batches import BatchJudge, Context
from lightning_stall.judge_inputs import Verdict
from lightning_stall.measure.batch_watch import BadBatch, BatchWatch, draws_at_random, locate, recall
from lightning_stall.measure.batches import Field, column_names, fields, sample_count, validation_loss
from lightning_stall.measure.columns import extremes
from lightning_stall.measure.standardize import Standardizer
from lightning_stall.measure.updates import WeightSample
from lightning_stall.readings import StepReading
from lightning_stall.remedies import BufferSnapshot, StepControl, batchnorm_layers, swap

FITTED_ON = 8  # batches before a standardisation may be fitted
KEPT = 512  # optimizer steps whose loss and gradient norm are remembered
LONG_ENOUGH = 100  # optimizer steps after which the training set counts as seen, where epochs are endless
SCALES = frozenset({"unscaled-inputs", "disparate-feature-scales"})
STICKY = frozenset({"corrupt-samples", "unshuffled-data"})  # what was seen was there, though it may not come again
EVALUATIONS = {"validate": "validation", "test": "test", "predict": "predict"}


class InputHealth(StallCallback):
    """Watches the batches: inputs, targets, their order, and whether validation saw them too.

    Inputs and targets are told apart by what reaches the first layers and the loss. Every batch is looked at for values
    that are not finite and for outliers; the first 32 batches, and those of checks, are measured in full.

    Says: nonfinite-inputs, unscaled-inputs, disparate-feature-scales, categorical-as-numeric, constant-inputs,
    unscaled-targets, corrupt-samples, class-imbalance, unshuffled-data, train-val-leakage, too-little-data,
    uninformative-targets.

    Logs: `stall/inputs/mean/<field>`, `stall/inputs/std/<field>`, `stall/targets/share/<class>`, `stall/targets/mean`,
    `stall/targets/std`.

    Args:
        auto_remedy: leave out a step whose batch holds values that are not finite, where they reached the gradients, and
            put BatchNorm's running statistics back. On several devices every step with such gradients is left out.
        standardize: with `auto_remedy`, inputs that are far from unit scale are standardised with the numbers measured on
            the first batches, from then on: in training, and in validation, test and prediction with this Trainer. The
            statistics are kept in the checkpoint. Outside the Trainer standardise yourself (the finding prints how).
            Single process only.
        every_n_steps: optimizer steps between checks; None takes the Trainer's `log_every_n_steps`.
        mute: codes never to be told.
    """

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
        self.skipped = 0
        self.standardizer = Standardizer()
        self._undo: dict[str, Callable[[], None]] = {}
        self._reset()

    def _reset(self) -> None:
        self.watch = BatchWatch()
        self.judge = BatchJudge()
        self.ratio = math.nan  # change of the weights in a step, over their size
        self.best_val = math.inf
        self._last_val = math.nan
        self._found: list[Field] = []
        self._measured = True  # this batch, already
        self._measured_step = 0
        self._first_epoch = 0
        self._epoch_over = False
        self._losses: deque[tuple[int, float]] = deque(maxlen=KEPT)
        self._first_losses: list[float] = []
        self._norms: deque[tuple[int, float]] = deque(maxlen=KEPT)
        self._hurt: Tensor | None = None  # on an accelerator: the first step that such a batch spoilt, or -1
        self._before: Tensor | None = None  # the gradient norm of the step before
        self._bad_val: BadBatch | None = None
        self._unread = False  # a validation not yet read
        self._sample: WeightSample | None = None
        self._control = StepControl()
        self._buffers: BufferSnapshot | None = None

    # ------------------------------------------------------------------ gathering

    def begin(self) -> None:
        self._reset()
        if not self.hub.step:
            self.skipped = 0
            self.standardizer = Standardizer()
        self._first_epoch = self.hub.epoch
        if self.auto_remedy:
            self._buffers = BufferSnapshot([m for _, m in batchnorm_layers(self.hub.module)])
        if self.standardizer.statistics:
            self._standardize_steps(self.hub.trainer, ("training_step", "validation_step"))

    def before_batch(self, batch: Any, batch_idx: int) -> None:
        hub, watch = self.hub, self.watch
        self._found, self._measured = fields(batch), False
        if hub.readings.window_starts:
            watch.bad_here = False
        watch.look(self._found, hub.step, hub.epoch, batch_idx)
        if self._buffers is not None and self._snapshot_due():
            self._buffers.take()
        if hub.checking and hub.step <= 2:
            watch.watch_entries(hub.module, self._found)

    def _snapshot_due(self) -> bool:
        """On a CPU only before a bad batch; elsewhere the host does not know, so before each window."""
        if self.watch.bad_here is True:
            return not self._buffers_kept()
        on_host = isinstance(self.watch.bad_here, bool)
        if self.hub.readings.window_starts:
            self._buffers.kept = []  # type: ignore[union-attr]
            return not on_host or self.hub.distributed
        return False

    def _buffers_kept(self) -> bool:
        return bool(self._buffers is not None and self._buffers.kept and not self.hub.readings.window_starts)

    def before_backward(self, loss: Tensor) -> None:
        if self._measured:
            return
        self._measured = True
        hub, watch = self.hub, self.watch
        fresh = hub.epoch == self._first_epoch and not self._epoch_over
        if hub.checking and hub.step <= 8 and not watch.roles.certain:
            watch.settle(loss, self._found)
        if watch.starting or (hub.checking and self._measured_step != hub.step):
            self._measured_step = hub.step
            watch.measure(loss, self._found, keep_rows=fresh)
        elif self.judge.only_class and fresh:
            watch.measure_labels(loss, self._found, keep_rows=False)
        if fresh and not watch.overlap.full and self._has_validation() and (read := watch.hashed(self._found)):
            watch.overlap.train(read)
        self._found = []

    def before_step(self, optimizer: Optimizer) -> None:
        reading = self.hub.readings.gradients(optimizer)
        bad, total, before = self.watch.bad_here, reading.total, self._before
        self._before = total
        if self.hub.checking and reading.params:
            self._sample = WeightSample(reading.params)
            self._sample.take()
        if bad is False and not (self._buffers is not None and self.hub.distributed):
            return
        broken = ~torch.isfinite(total)
        # a run that was broken already shows nothing about this batch
        sound = torch.isfinite(before) if before is not None else ~torch.zeros_like(broken)
        spoilt = broken & sound if isinstance(bad, bool) else broken & sound & bad
        if isinstance(bad, Tensor):
            hurt = self._hurt if self._hurt is not None else torch.full((), -1.0, device=total.device)
            self._hurt = torch.where(spoilt & (hurt < 0), float(self.hub.step), hurt)
        elif bad and bool(spoilt):
            self._tell_nonfinite(self.watch.bad)
        self._leave_out(optimizer, broken if self.hub.distributed or isinstance(bad, bool) else broken & bad)

    def step_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._sample is not None:
            ratios = self._sample.ratios()
            moved = ratios[torch.isfinite(ratios) & (ratios > 0)]
            self.ratio = float(moved.median()) if moved.numel() else 0.0
            self._sample = None

    def observe(self, reading: StepReading) -> None:
        if reading.loss is not None:
            if len(self._first_losses) < 8 and math.isfinite(reading.loss):
                self._first_losses.append(reading.loss)
            self._losses.append((reading.step, reading.loss))
        self._norms.append((reading.step, reading.total_norm))

    def epoch_end(self) -> None:
        self._epoch_over = True

    # ------------------------------------------------------------------ judging

    def check(self) -> None:
        if self._unread:
            self._read_validation()
        if self._hurt is not None and float(self._hurt) >= 0:
            self._tell_nonfinite(recall(self.watch, int(self._hurt)))
            self._hurt = None
        if not self.watch.measured:
            return
        for code, verdict in self.judge.verdicts(self.watch, self._context(), frozenset(self.standardizer.statistics)):
            self._say(code, verdict)

    def finish(self) -> None:
        if self.hub.step:
            self.check()
            self._judge_amount()

    def aborted(self, error: BaseException) -> None:
        self.check()

    def _context(self) -> Context:
        hub = self.hub
        trainer, evidence = hub.trainer, hub.outcome.evidence
        baseline = hub.baseline or math.nan
        return Context(
            step=hub.step,
            loader=trainer.train_dataloader,
            shuffles=draws_at_random(trainer.train_dataloader),
            deliberate=bool(trainer.overfit_batches),
            epoch_over=self._epoch_over,
            losses=self._losses,
            norms=self._norms,
            first_loss=median(self._first_losses) if self._first_losses else math.nan,
            state=hub.outcome.state,
            explained=evidence.get("explained", math.nan) if hub.baseline is not None else math.nan,
            val_explained=1 - self.best_val / baseline if math.isfinite(self.best_val) else math.nan,
            update_ratio=self.ratio,
        )

    def _say(self, code: str, verdict: Verdict | None, remedy: str | None = None) -> None:
        """Tell a verdict, or take back what was said before."""
        if verdict is None:
            if code not in STICKY:
                self.retract(code)
            return
        if self.standardize and code in SCALES:
            remedy = self._fit(verdict)
        self.tell(
            code,
            verdict.summary,
            advice=verdict.advice,
            severity=verdict.severity,
            statistical=verdict.statistical and remedy is None,
            evidence=verdict.evidence,
            where=verdict.where,
            remedy=remedy,
        )

    def _tell_nonfinite(self, bad: BadBatch | None, validation: bool = False) -> None:
        if bad is None:
            return
        names = column_names(self.hub.trainer.train_dataloader, bad.width)
        verdict = judge_inputs.nonfinite_inputs(
            bad.field,
            bad.field in self.watch.roles.targets,
            f"{'validation ' if validation else ''}batch {bad.batch_idx} of epoch {bad.epoch}",
            bad.rows,
            bad.row,
            [names[i] for i in bad.columns],
            bad.share,
            validation,
        )
        skips = self.auto_remedy and not validation and self.hub.readings.scaler is None
        self._say(
            verdict.code,
            verdict,
            "left out each step with such a batch before it reached the weights, and put BatchNorm's statistics back"
            if skips
            else None,
        )

    # ------------------------------------------------------------------ the validation set, and how much there is

    @guarded
    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        found = fields(batch)
        if self._has_validation() and (read := self.watch.hashed(found)):
            self.watch.overlap.validate(read)
        for f in found:
            if f.floating and self._bad_val is None and f.tensor.device.type == "cpu":
                finite = bool(torch.isfinite(extremes(f.tensor)).all())
                self._bad_val = None if finite else locate(f, self.hub.step, self.hub.epoch, batch_idx)

    def _has_validation(self) -> bool:
        batches = self.hub.trainer.num_val_batches
        return len(batches) == 1 and bool(batches[0]) and not self.hub.trainer.overfit_batches

    def validated(self) -> None:
        self._unread = True
        if self.hub.module.device.type == "cpu":
            self._read_validation()

    def _read_validation(self) -> None:
        """What the last validation showed; waits for the device."""
        overlap, self._unread = self.watch.overlap, False
        if overlap.validation and (self._epoch_over or overlap.full or self.hub.step >= LONG_ENOUGH):
            verdict = judge_targets.leakage(*overlap.count(), overlap.kept)
            if verdict is not None:
                self._say(verdict.code, verdict)
        overlap.forget_validation()
        value = validation_loss(self.hub.trainer.callback_metrics)
        bad, self._bad_val = self._bad_val, None
        if value is None:
            return
        self._last_val = value
        if math.isfinite(value):
            self.best_val = min(self.best_val, value)
        elif bad is not None and self.hub.outcome.state != "non-finite":
            self._tell_nonfinite(bad, validation=True)

    def _judge_amount(self) -> None:
        """Whether there is enough to learn from, once the run is over."""
        trainer, evidence = self.hub.trainer, self.hub.outcome.evidence
        samples = sample_count(trainer.train_dataloader)
        if samples is None or trainer.overfit_batches:
            return
        batches = trainer.num_training_batches
        if self.watch.batches and math.isfinite(batches):
            samples = min(samples, int(batches * self.watch.rows / max(1, self.watch.measured)) + 1)
        labels = self.watch.labels
        classes = labels.classes()
        dense = sum(classes.counts) / max(1, labels.rows) if classes is not None else 1.0
        verdict = judge_targets.too_little_data(
            samples,
            samples * max(1.0, dense),
            sum(p.numel() for p in self.hub.module.parameters() if p.requires_grad),
            evidence.get("explained", math.nan) if self.hub.baseline is not None else math.nan,
            evidence.get("level", math.nan),
            self._last_val,
        )
        self._say("too-little-data", verdict)

    # ------------------------------------------------------------------ the remedies

    def _leave_out(self, optimizer: Optimizer, bad: Tensor) -> None:
        if self._buffers is None or self.hub.readings.scaler is not None:
            return
        self._buffers.restore(bad)
        if self._control.skip(optimizer, bad):
            self.skipped += 1
        if bad.device.type == "cpu":
            self._before = None  # the weights are as sound as before

    def _fit(self, verdict: Verdict) -> str | None:
        """Standardise the field of this verdict from the next step on; what was done, None where nothing was."""
        name = verdict.where[0].partition(":")[0]
        watch = self.watch.inputs.get(name)
        if watch is None or watch.batches < FITTED_ON or self.hub.distributed or not self.standardizer.fit(name, watch):
            return None
        self._standardize_steps(self.hub.trainer, ("training_step", "validation_step"))
        return (
            f"standardised `{name}` with the mean and deviation of {watch.rows} samples, from step {self.hub.step + 1} on, in "
            "this Trainer's training, validation, test and prediction"
        )

    def _standardize_steps(self, trainer: Any, steps: Sequence[str]) -> None:
        """Put the standardisation in front of these steps of the strategy (once)."""
        for step in steps:
            if step not in self._undo:
                self._undo[step] = swap(trainer.strategy, step, self._in_front)

    def _in_front(self, step: Callable[..., Any]) -> Callable[..., Any]:
        return lambda batch, *args, **kwargs: step(self.standardizer(batch), *args, **kwargs)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage in EVALUATIONS and self.standardizer.statistics:
            self._standardize_steps(trainer, [f"{EVALUATIONS[stage]}_step"])

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        self._put_back()

    def detach(self) -> None:
        self.watch.close()
        self._control.remove()
        self._put_back()

    def _put_back(self) -> None:
        for undo in self._undo.values():
            undo()
        self._undo.clear()

    # ------------------------------------------------------------------ what is logged and kept

    def numbers(self) -> Mapping[str, float]:
        values = dict(self.judge.logged)
        return {**values, "stall/inputs/skipped_steps": float(self.skipped)} if self.auto_remedy else values

    def panels(self) -> Mapping[str, Sequence[str]]:
        return {"inputs": ["stall/inputs/(mean|std)/.*"], "class shares": ["stall/targets/share/.*"]}

    def state(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "standardizer": self.standardizer.state_dict()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.skipped = state["skipped"]
        self.standardizer.load_state_dict(state["standardizer"])

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_undo": {}}
