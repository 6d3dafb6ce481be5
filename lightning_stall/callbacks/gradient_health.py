"""GradientHealth: gradients that explode, vanish on their way to the input, or are not numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_stall.callback import StallCallback
from lightning_stall.detectors import Spike
from lightning_stall.journal import MADE_HERE
from lightning_stall.measure.batches import fields
from lightning_stall.measure.gradients import gradient_is_finite, gradient_norms, stored, total_norm
from lightning_stall.measure.instability import BreakWatch, ModuleWatch, find, take_for_zero
from lightning_stall.measure.sequences import Sequences
from lightning_stall.readings import StepReading, plain_name, run_again
from lightning_stall.remedies import BufferSnapshot, StepControl, batchnorm_layers
from lightning_stall.remedies_operations import OperationGuard
from lightning_stall.sinks import clean_tag, themes
from lightning_stall.verdicts import gradients as judge
from lightning_stall.verdicts.gradients import Layer
from lightning_stall.verdicts.inputs import Verdict

OFTEN = 2  # steps that the slopes of one operation have spoilt, from which on it is done without them
NEVER = 3  # the same where it is not known which operation, and no step has had a finite gradient
SCALER_PATIENCE = 20  # non-finite steps in a row that a GradScaler needs to find its scale from 2**16 down
KEPT = ("spikes", "first", "recent", "skipped", "leapt_at", "decays", "decay_at_first")  # across a checkpoint
REMEMBER = 200  # optimizer steps for which a leap stays evidence


class GradientHealth(StallCallback):
    """Watches the gradients of every optimizer, once a step, without a wait for the device.

    Says: exploding-gradients (against the run's own history), vanishing-gradients (layer by layer, in the order of the
    forward pass: the total norm misses it), nonfinite-loss and nonfinite-gradients (with parameter, micro-batch and
    step), unstable-operation (which one made the first value that is no number; on an accelerator only at a check).

    Logs: `stall/gradients/total_norm`, `stall/gradients/layers/<layer>`, `stall/updates/ratio` (norm of the change of
    the weights over their norm, on up to 1024 elements a parameter), `stall/gradients/skipped_steps`.

    Args:
        auto_remedy: leave out a step whose gradients are not finite, before it reaches the weights, and put BatchNorm's
            running statistics back. A fused optimizer is told on the device; any other needs the answer on the host,
            one wait a step on an accelerator. With a GradScaler the step is the scaler's. Where the slopes of one operation
            spoil step after step (a root at 0), those that are not finite are taken for 0; where its values do (a logarithm
            of 0), it is given only what it is defined for, in the training step.
        every_n_steps: optimizer steps between checks; None takes the Trainer's `log_every_n_steps`.
        mute: codes never to be told.

    >>> from lightning_stall.testing import blobs, deep_sigmoid, watch
    >>> watch(deep_sigmoid(), blobs(), GradientHealth()).causes[0].code
    'vanishing-gradients'
    """

    reads_updates = True
    codes = (
        "exploding-gradients",
        "vanishing-gradients",
        "nonfinite-loss",
        "nonfinite-gradients",
        "unstable-operation",
    )

    def __init__(
        self, *, auto_remedy: bool = False, every_n_steps: int | None = None, mute: Sequence[str] = ()
    ) -> None:
        super().__init__(auto_remedy=auto_remedy, every_n_steps=every_n_steps, mute=mute)
        self._reset()

    def _reset(self) -> None:
        self.spikes: dict[int, Spike] = {}
        self.told_vanished = False
        self.told_bad = False  # of a non-finite step, and not retracted since
        self.first: list[float] = []  # total norms of the first steps
        self.recent: list[float] = []  # and of the last ones
        self.skipped = 0
        self.bad_in_a_row = 0
        self.leapt_at = 0
        self.decays: list[float] = []  # log10 of input over output gradient, last checks
        self.decay_at_first = math.nan
        self.layers: list[Layer] = []
        self.last: StepReading | None = None
        self.ratio = math.nan
        self.weights = 0.0  # their norm before the first step
        self.steepness = 0.0  # of the first gradient: its norm times that of the weights over the loss
        self.looked_along = False  # the sequences it reads
        self.found_operation = False
        self.slope: str | None = None  # the operation whose slope is infinite, empty where it is not known which
        self.filling = False  # such slopes are taken for 0
        self.broken: str | None = None  # the operation that made the first value that is no number
        self.bad_losses = 0  # steps that such an operation has spoilt, since one was guarded
        self._guard = OperationGuard()
        self.bad_slopes = 0  # steps that such slopes have spoilt
        self.runs_again = False  # a module is to be searched for before the next step
        self.searched = False  # for the operation that made the first value that is no number
        self.made_here: bool | None = None  # of several ranks, whether this one's batch made the gradient that is bad
        self._control = StepControl()
        self._buffers: BufferSnapshot | None = None

    # ------------------------------------------------------------------ verbs

    def begin(self) -> None:
        restored = {k: getattr(self, k) for k in KEPT}
        self._reset()
        if self.hub.step:
            vars(self).update(restored)
        if self.auto_remedy:
            self._buffers = BufferSnapshot([m for _, m in batchnorm_layers(self.hub.module)])

    @property
    def rare(self) -> frozenset[str]:
        return frozenset() if self.auto_remedy else frozenset({"before_batch", "before_backward", "before_step"})

    def before_batch(self, batch: Any, batch_idx: int) -> None:
        if self._buffers is not None and self.hub.readings.window_starts:
            self._buffers.take()

    def before_backward(self, loss: Tensor) -> None:
        if self.filling and self.slope is not None:
            take_for_zero(loss, self.slope)
        if self.searched:
            return
        value = self.hub.readings.loss_here
        if value is None and self.hub.checking:  # it is on its way; only at a check may it be waited for
            value = float(loss.detach().float().mean())
        if value is not None and not math.isfinite(value):
            self._search(loss, in_gradient=False)

    def before_step(self, optimizer: Optimizer) -> None:
        if self.runs_again:
            self.runs_again = False
            self._search_modules()
        reading, total = self.hub.readings.gradients(optimizer), None
        if not self.searched and not self.hub.readings.scaler:
            total = float(reading.total) if reading.known is None and self.hub.checking else reading.known
        if total is not None and not math.isfinite(total):
            again = run_again(self.hub.trainer, self.hub.module, self.hub.batch)
            if again is not None and bool(again.isfinite().all()):
                self._search(again, in_gradient=True)
                if self.hub.distributed:
                    self.made_here = not gradient_is_finite(again, reading.params)
        if self.hub.step == 1 and not self.weights:  # a check, where it may wait
            copies = self.hub.readings.copies
            self.weights = float(total_norm(gradient_norms([p.detach() for p in reading.params], copies=copies)))
        if self._buffers is not None:
            self._leave_out(optimizer, reading.total)

    def observe(self, reading: StepReading) -> None:
        if not reading.names:
            self.tell(
                "exploding-gradients",
                "Gradients are not observable in this run: its optimizer holds no parameter that needs one, as where "
                "`configure_optimizers` returns None and each parameter is updated, and its gradient freed, inside the "
                "backward pass. Nothing will be said about gradients; 1 parameter would be watched.",
                advice="Return the optimizer from `configure_optimizers` while you look for a fault in the gradients.",
                severity="info",
                evidence={"parameters": 0.0, "note": 1.0},
            )
            return
        finite = self._observe_finite(reading)
        if not finite:
            return
        self.last = reading
        if reading.step == 1 and reading.loss and not self.steepness:
            self.steepness = reading.total_norm * self.weights / abs(reading.loss)
        if len(self.first) < 5:
            self.first.append(reading.total_norm)
        self.recent.append(reading.total_norm)
        del self.recent[:-5]
        spike = self.spikes.get(reading.optimizer)
        if spike is None:
            spike = self.spikes[reading.optimizer] = Spike(factor=30.0, sigmas=8.0)
        if spike.update(reading.total_norm):
            self.leapt_at = reading.step
            limit = math.exp(min(spike.threshold_log, 80.0))
            of = judge.layers(reading.names, reading.norms)
            leap = judge.leapt(reading.total_norm, spike.typical, limit, len(spike.logs), reading.batch_idx, of)
            self._say(leap, reading.step)
        elif self.leapt_at and reading.step > self.leapt_at + REMEMBER:
            self.leapt_at = 0
            self.retract("exploding-gradients")

    def check(self) -> None:
        if self.last is None:
            return
        usual = self.hub.readings.usual_update()
        self.ratio = 0.0 if math.isnan(usual) else usual
        self.layers = judge.layers(self.last.names, self.last.norms, self._matrices())
        self._look_for_vanishing(self.last)

    def judged(self) -> None:
        if self.hub.gate_open and not self.looked_along:
            self._look_along_sequences()

    def detach(self) -> None:
        self._control.remove()
        self._guard.remove()

    def numbers(self) -> Mapping[str, float]:
        if self.last is None:
            return {}
        values = {"stall/gradients/total_norm": self.last.total_norm}
        values |= {f"stall/gradients/layers/{clean_tag(name)}": norm for name, norm in self.layers}
        if not math.isnan(self.ratio):
            values["stall/updates/ratio"] = self.ratio
            values |= themes.updates("ratio", self.ratio)
        if self.auto_remedy:
            values["stall/gradients/skipped_steps"] = float(self.skipped)
        return values

    def panels(self) -> Mapping[str, Sequence[str]]:
        return {
            themes.DEPTH: ["stall/gradients/layers/.*"],
            themes.CLIPPING: ["stall/gradients/total_norm$"],
            themes.UPDATES: ["stall/updates/log10_.*"],
        }

    def state(self) -> dict[str, Any]:
        return {
            "spikes": {i: s.state_dict() for i, s in self.spikes.items()},
            "first": list(self.first),
            "recent": list(self.recent),
            "skipped": self.skipped,
            "leapt_at": self.leapt_at,
            "decays": list(self.decays),
            "decay_at_first": self.decay_at_first,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._reset()
        for index, spike in state["spikes"].items():
            self.spikes[int(index)] = Spike(factor=30.0, sigmas=8.0)
            self.spikes[int(index)].load_state_dict(spike)
        self.first, self.recent = list(state["first"]), list(state["recent"])
        self.skipped, self.leapt_at = state["skipped"], state["leapt_at"]
        self.decays = list(state["decays"])
        self.decay_at_first = state.get("decay_at_first", math.nan)

    # ------------------------------------------------------------------ what it looks for

    def _observe_finite(self, reading: StepReading) -> bool:
        """Whether this step is made of numbers; tells it where not."""
        bad_losses, bad_params = [], []
        if not all(map(math.isfinite, reading.losses)):
            bad_losses = [i for i, v in enumerate(reading.losses) if not math.isfinite(v)]
        if not math.isfinite(reading.total_norm):
            bad_params = [n for n, v in zip(reading.names, reading.norms, strict=True) if not math.isfinite(v)]
        if not bad_losses and not bad_params:
            self.bad_in_a_row = 0
            if self.told_bad:
                self.told_bad = False
                self.retract("nonfinite-loss")
                self.retract("nonfinite-gradients")
            return True
        self.told_bad = True
        self.bad_in_a_row += 1
        remedy = self._remedy_done(reading, bool(bad_params))
        if remedy is not None:
            remedy = (self._keep_defined(reading) if bad_losses else self._fill_slopes(reading)) or remedy
        if bad_losses:
            self._tell_bad_loss(reading, bad_losses, remedy)
        elif not reading.scaled or self.bad_in_a_row > SCALER_PATIENCE:
            self._tell_bad_gradients(reading, bad_params, remedy)
        if not self.leapt_at and not self.found_operation:
            found = judge.burst(self.first, self.recent, self.steepness * self._above(), reading.step, self.layers)
            if self._say(found, reading.step):
                self.leapt_at = reading.step
        return False

    def _above(self) -> float:
        """Times a constant predictor's loss, that the first one was; 1 where it was less, or none is known."""
        first, base = next(iter(self.hub.curve.first), math.nan), self.hub.baseline
        return max(1.0, abs(first) / base) if base and base > 0 and math.isfinite(first) else 1.0

    def _tell_bad_loss(self, reading: StepReading, bad: list[int], remedy: str | None) -> None:
        batch = _micro_batch(reading, bad[0], len(reading.losses))
        self._say(
            judge.bad_loss(reading.losses[bad[0]], bad[0], batch, reading.epoch, reading.step), reading.step, remedy
        )

    def _tell_bad_gradients(self, reading: StepReading, bad: list[str], remedy: str | None) -> None:
        partial = [i for i, v in enumerate(reading.partial_norms) if not math.isfinite(v)]
        micro = partial[0] if partial else max(len(reading.losses) - 1, 0)
        batch = _micro_batch(reading, micro, max(len(reading.losses), 1))
        loss = math.nan if reading.loss is None else reading.loss
        found = judge.bad_gradients(loss, bad, len(reading.norms), micro, batch, reading.epoch)
        if self.made_here is not None:
            found = replace(found, evidence={**found.evidence, MADE_HERE: float(self.made_here)})
            self.made_here = None
        self._say(found, reading.step, remedy)

    def _search(self, loss: Tensor, in_gradient: bool) -> None:
        """Name the operation that went wrong; not where values had grown until one overflowed."""
        self.searched = True
        steep = self.steepness > judge.STEEP and self.hub.step <= judge.SOON
        if (
            steep
            or judge.grown(self.first, self.recent) > judge.GROWTH
            or self.hub.curve.last > 10 * max(self.hub.curve.first[:3], default=math.inf)
        ):
            return
        found = find(loss, in_gradient)
        if found is None:
            # not here: between a forward pass and its backward pass nothing may touch the buffers
            self.runs_again = not in_gradient
            if in_gradient and not self.hub.readings.scaler:
                self._search_modules()  # a value that is not finite may have been squashed on its way to the loss
            return
        self.found_operation = True
        self.slope = found.kind if in_gradient else None
        self.broken = found.kind if not in_gradient else self.broken
        names = {id(p): plain_name(n) for n, p in self.hub.module.named_parameters()}
        layer = names.get(found.source, "").rpartition(".")[0]
        where = f"after `{layer}`" if layer else "in the loss"
        self.tell(
            "unstable-operation",
            f"Batch {self.hub.batch[1]} of epoch {self.hub.epoch} met {found.operation}, {where}: what went in is finite, "
            f"what {'its gradient gives' if in_gradient else 'came out'} is not.",
            advice=f"Keep its input where it is defined:\n\n    {found.mend}",
            severity="critical",
            evidence={"batch_idx": float(self.hub.batch[1]), "strength": 0.9},
            where=[layer or "the loss"],
        )

    def _search_modules(self) -> None:
        """What the graph did not show: the first module that made it, found by running the batch once more."""
        watch, breaks = ModuleWatch(self.hub.module), BreakWatch()
        try:
            with breaks:
                run_again(self.hub.trainer, self.hub.module, self.hub.batch)
        finally:
            watch.release()
        whole = all(bool(f.tensor.isfinite().all()) for f in fields(self.hub.batch[0]) if f.floating)
        if watch.found is not None:
            self.found_operation = True
            self._say(judge.broken_module(watch.found, self.hub.batch[1], self.hub.epoch))
        elif watch.handed and not watch.name and whole and breaks.operation:
            self.found_operation = True
            self._say(judge.broken_step(breaks.operation, watch.handed, self.hub.batch[1], self.hub.epoch))

    def _say(self, verdict: Verdict | None, step: int | None = None, remedy: str | None = None) -> bool:
        """Tell it; whether there was anything to tell."""
        if verdict is not None:
            self.tell(**vars(verdict), step=step, remedy=remedy)
        return verdict is not None

    def _look_for_vanishing(self, reading: StepReading) -> None:
        # a single batch may have nothing to teach, as where rewards are rare
        if self._say(
            judge.near_zero(max(self.recent, default=reading.total_norm), self._elements(), self.layers, self.first)
        ):
            self.told_vanished = True
            return
        ends = judge.ends(self.layers)
        if ends is None:
            if self.told_vanished:
                self.told_vanished = False
                self.retract("vanishing-gradients")
            return
        self.decays = [*self.decays, math.log10(ends[0] / ends[1])][-5:]
        if math.isnan(self.decay_at_first) or reading.step == 2:
            self.decay_at_first = self.decays[-1]  # of the second step: the first often has a last layer of zeros
        unlearnt = self.hub.outcome.state == "never learned"
        if self._say(judge.vanished(self.decays, self.layers, self.decay_at_first, unlearnt)):
            self.told_vanished = True
        elif self.told_vanished and len(self.decays) >= judge.LOOKS:
            self.told_vanished = False
            self.retract("vanishing-gradients")

    def _look_along_sequences(self) -> None:
        """Once the run is bad: whether the loss feels both ends of what the model reads. Runs one batch again."""
        hub = self.hub
        self.looked_along = True
        if hub.distributed or self.hub.batch[0] is None:
            return
        sequences = Sequences(self.hub.batch[0], hub.module)
        try:
            loss = run_again(hub.trainer, hub.module, (sequences.batch, self.hub.batch[1]))
            for where, profile in sequences.profiles(loss) if loss is not None else ():
                if self._say(judge.vanished_in_time(profile, where)):
                    return
        finally:
            sequences.release()

    # ------------------------------------------------------------------ the remedy

    def _leave_out(self, optimizer: Optimizer, total: Tensor) -> None:
        bad = ~torch.isfinite(total)
        if self._buffers is not None:
            self._buffers.restore(bad)
        if self.hub.readings.scaler is None and self._control.skip(optimizer, bad):
            self.hub.cleared_at = self.hub.step

    def _keep_defined(self, reading: StepReading) -> str | None:
        """Where one operation spoils step after step, give it only values that it is defined for; what was done."""
        self.bad_losses += 1
        kind = self.broken
        if self.bad_losses < OFTEN or kind is None or kind in self._guard.kinds or not self._guard.knows(kind):
            return None
        self._guard.add(kind, self.hub.trainer.strategy)
        self.searched, self.bad_losses = False, 0  # behind it there may be another
        name = kind.partition("Backward")[0].lower()
        return f"kept what `{name}` is given in the training step where it is defined, from step {reading.step + 1} on"

    def _fill_slopes(self, reading: StepReading) -> str | None:
        """Where one operation spoils step after step, do without its slopes that are not finite; what was done."""
        self.bad_slopes += 1
        never = not self.first and self.bad_slopes == NEVER and self.slope is None and not self.runs_again
        if never and all(bool(stored(p.detach()).isfinite().all()) for p in self.hub.module.parameters()):
            self.slope = ""
        if self.filling or self.slope is None or self.bad_slopes < OFTEN:
            return None
        self.filling = True
        return f"took slopes that are not finite for 0, from step {reading.step + 1} on"

    def _remedy_done(self, reading: StepReading, bad_gradients: bool) -> str | None:
        if not self.auto_remedy or not bad_gradients or reading.scaled:
            return None
        self.skipped += 1
        return f"left out step {reading.step} before it reached the weights, and put BatchNorm's statistics back"

    # ------------------------------------------------------------------ names

    def _matrices(self) -> frozenset[str]:
        """Parameters with two dimensions or more: biases and normalisation weights have gradients of another kind."""
        return frozenset(
            name
            for optimizer in self.hub.readings.optimizers
            for name, p in zip(*self.hub.readings.named(optimizer), strict=True)
            if p.ndim >= 2
        )

    def _elements(self) -> int:
        return sum(p.numel() for o in self.hub.readings.optimizers for p in self.hub.readings.named(o)[1])


def _micro_batch(reading: StepReading, micro: int, count: int) -> int:
    """The `batch_idx` of a micro-batch, counted back from the last of its window."""
    return reading.batch_idx - (count - 1 - micro)
