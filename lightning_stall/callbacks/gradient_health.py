"""GradientHealth: gradients that explode, vanish on their way to the input, or are not numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_stall.callback import StallCallback
from lightning_stall.detectors import Spike
from lightning_stall.measure.instability import find
from lightning_stall.readings import StepReading, plain_name, run_again
from lightning_stall.remedies import BufferSnapshot, StepControl, batchnorm_layers
from lightning_stall.sinks import clean_tag, themes

DECAY = 1e-4  # a gradient this much smaller at the input than at the output has vanished on the way
NOTHING = 1e-8  # root mean square gradient an element; Adam's epsilon, below which it does not move a weight either
GROWTH = 100.0  # times its first steps: gradients that grew so much before a non-finite loss led to it
SCALER_PATIENCE = 20  # non-finite steps in a row that a GradScaler needs to find its scale from 2**16 down
REMEMBER = 200  # optimizer steps for which a leap stays evidence

Layer = tuple[str, float]  # name, gradient norm


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
            one wait a step on an accelerator. With a GradScaler the step is the scaler's.
        every_n_steps: optimizer steps between checks; None takes the Trainer's `log_every_n_steps`.
        mute: codes never to be told.
    """

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
        self.told_bad = False  # of a non-finite step, and not retracted since
        self.first: list[float] = []  # total norms of the first steps
        self.recent: list[float] = []  # and of the last ones
        self.skipped = 0
        self.bad_in_a_row = 0
        self.leapt_at = 0
        self.decays: list[float] = []  # log10 of input over output gradient, last checks
        self.layers: list[Layer] = []
        self.last: StepReading | None = None
        self.ratio = math.nan
        self.searched = False  # for the operation that made the first value that is no number
        self.batch: tuple[Any, int] = (None, 0)
        self._control = StepControl()
        self._buffers: BufferSnapshot | None = None

    # ------------------------------------------------------------------ verbs

    def begin(self) -> None:
        restored = {k: getattr(self, k) for k in ("spikes", "first", "recent", "skipped", "leapt_at", "decays")}
        self._reset()
        if self.hub.step:
            vars(self).update(restored)
        if self.auto_remedy:
            self._buffers = BufferSnapshot([m for _, m in batchnorm_layers(self.hub.module)])

    def before_batch(self, batch: Any, batch_idx: int) -> None:
        self.batch = (batch, batch_idx)
        if self._buffers is not None and self.hub.readings.window_starts:
            self._buffers.take()

    def before_backward(self, loss: Tensor) -> None:
        if self.searched:
            return
        value = self.hub.readings.loss_here
        if value is None and self.hub.checking:  # it is on its way; only at a check may it be waited for
            value = float(loss.detach().float().mean())
        if value is not None and not math.isfinite(value):
            self._search(loss, in_gradient=False)

    def before_step(self, optimizer: Optimizer) -> None:
        reading, total = self.hub.readings.gradients(optimizer), None
        if not self.searched and not self.hub.readings.scaler:
            total = float(reading.total) if reading.known is None and self.hub.checking else reading.known
        if total is not None and not math.isfinite(total):
            again = run_again(self.hub.trainer, self.hub.module, self.batch)
            if again is not None and bool(again.isfinite().all()):
                self._search(again, in_gradient=True)
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
        if len(self.first) < 5:
            self.first.append(reading.total_norm)
        self.recent.append(reading.total_norm)
        del self.recent[:-5]
        spike = self.spikes.get(reading.optimizer)
        if spike is None:
            spike = self.spikes[reading.optimizer] = Spike(factor=30.0, sigmas=8.0)
        if spike.update(reading.total_norm):
            self._leapt(reading, spike)
        elif self.leapt_at and reading.step > self.leapt_at + REMEMBER:
            self.leapt_at = 0
            self.retract("exploding-gradients")

    def check(self) -> None:
        if self.last is None:
            return
        moved = [r for r in self.hub.readings.update_ratios().values() if 0 < r < math.inf]
        self.ratio = median(moved) if moved else 0.0
        self.layers = layers(self.last.names, self.last.norms, self._matrices())
        self._look_for_vanishing(self.last)

    def detach(self) -> None:
        self._control.remove()

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
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._reset()
        for index, spike in state["spikes"].items():
            self.spikes[int(index)] = Spike(factor=30.0, sigmas=8.0)
            self.spikes[int(index)].load_state_dict(spike)
        self.first, self.recent = list(state["first"]), list(state["recent"])
        self.skipped, self.leapt_at = state["skipped"], state["leapt_at"]
        self.decays = list(state["decays"])

    # ------------------------------------------------------------------ what it looks for

    def _observe_finite(self, reading: StepReading) -> bool:
        """Whether this step is made of numbers; tells it where not."""
        bad_losses = [i for i, v in enumerate(reading.losses) if not math.isfinite(v)]
        bad_params = []
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
        if bad_losses:
            self._tell_bad_loss(reading, bad_losses, remedy)
        elif not reading.scaled or self.bad_in_a_row > SCALER_PATIENCE:
            self._tell_bad_gradients(reading, bad_params, remedy)
        grown = self._grown()
        if grown > GROWTH and not self.leapt_at:
            self.leapt_at = reading.step
            self.tell(
                "exploding-gradients",
                f"Before the first non-finite value the gradient norm had grown {grown:.3g}-fold, from "
                f"{median(self.first):.3g} to {max(self.recent):.3g}; under {GROWTH:.0f}-fold is usual.",
                severity="critical",
                evidence={"growth": grown, "total_norm": max(self.recent), "first_norm": median(self.first)},
                step=reading.step,
            )
        return False

    def _tell_bad_loss(self, reading: StepReading, bad: list[int], remedy: str | None) -> None:
        value = reading.losses[bad[0]]
        batch = _micro_batch(reading, bad[0], len(reading.losses))
        self.tell(
            "nonfinite-loss",
            f"The loss is {value} in batch {batch} of epoch {reading.epoch} (step {reading.step}); a finite number would do.",
            severity="critical",
            evidence={"loss": value, "micro_batch": float(bad[0]), "batch_idx": float(batch)},
            where=[f"batch {batch}"],
            remedy=remedy,
            step=reading.step,
        )

    def _tell_bad_gradients(self, reading: StepReading, bad: list[str], remedy: str | None) -> None:
        partial = [i for i, v in enumerate(reading.partial_norms) if not math.isfinite(v)]
        micro = partial[0] if partial else max(len(reading.losses) - 1, 0)
        batch = _micro_batch(reading, micro, max(len(reading.losses), 1))
        nearest = bad[-1]  # the forward pass ends nearest to the loss, where a bad gradient starts from
        self.tell(
            "nonfinite-gradients",
            f"The loss is finite ({reading.loss if reading.loss is not None else math.nan:.4g}), yet {len(bad)} of "
            f"{len(reading.norms)} parameters have a non-finite gradient after batch {batch} of epoch {reading.epoch}; "
            f"nearest to the loss is `{nearest}`, so the fault lies in what uses its output, or in itself.",
            severity="critical",
            evidence={
                "nonfinite_parameters": float(len(bad)),
                "parameters": float(len(reading.norms)),
                "micro_batch": float(micro),
                "batch_idx": float(batch),
            },
            where=list(reversed(bad)),
            remedy=remedy,
            step=reading.step,
        )

    def _search(self, loss: Tensor, in_gradient: bool) -> None:
        """Name the operation that went wrong; not where values had grown until one overflowed."""
        self.searched = True
        if self._grown() > GROWTH or self.hub.curve.last > 10 * max(self.hub.curve.first[:3], default=math.inf):
            return
        found = find(loss, in_gradient)
        if found is None:
            return
        names = {id(p): plain_name(n) for n, p in self.hub.module.named_parameters()}
        layer = names.get(found.source, "").rpartition(".")[0]
        where = f"after `{layer}`" if layer else "in the loss"
        self.tell(
            "unstable-operation",
            f"Batch {self.batch[1]} of epoch {self.hub.epoch} met {found.operation}, {where}: what went in is finite, "
            f"what {'its gradient gives' if in_gradient else 'came out'} is not.",
            advice=f"Keep its input where it is defined:\n\n    {found.mend}",
            severity="critical",
            evidence={"batch_idx": float(self.batch[1]), "strength": 0.9},
            where=[layer or "the loss"],
        )

    def _grown(self) -> float:
        """How far the gradient norm has come from its first steps."""
        return max(self.recent, default=0.0) / max(median(self.first), 1e-30) if self.first else 0.0

    def _leapt(self, reading: StepReading, spike: Spike) -> None:
        self.leapt_at = reading.step
        usual, limit = spike.typical, math.exp(min(spike.threshold_log, 80.0))
        self.tell(
            "exploding-gradients",
            f"The gradient norm leapt to {reading.total_norm:.3g}, {reading.total_norm / usual:.3g} times its usual "
            f"{usual:.3g} over the last {len(spike.logs)} steps; up to {limit:.3g} would pass for noise.",
            statistical=True,
            evidence={
                "total_norm": reading.total_norm,
                "usual_norm": usual,
                "limit": limit,
                "batch_idx": float(reading.batch_idx),
            },
            where=_largest(self._layers_of(reading)),
            step=reading.step,
        )

    def _look_for_vanishing(self, reading: StepReading) -> None:
        moving = [(n, v) for n, v in self.layers if v > 0 and math.isfinite(v)]
        elements = self._elements()
        rms = reading.total_norm / math.sqrt(elements) if elements else math.nan
        if rms < NOTHING:
            self.tell(
                "vanishing-gradients",
                f"All gradients are near zero: {rms:.2g} an element (root mean square); {NOTHING:.0e} is Adam's epsilon, "
                "below which no optimizer moves a weight.",
                statistical=True,
                evidence={"rms": rms, "total_norm": reading.total_norm},
                where=[n for n, _ in self.layers],
            )
            return
        if len(moving) < 4:
            return
        third = max(1, len(moving) // 3)
        near_input = math.exp(sum(math.log(v) for _, v in moving[:third]) / third)
        near_output = math.exp(sum(math.log(v) for _, v in moving[-third:]) / third)
        self.decays.append(math.log10(near_input / near_output))
        del self.decays[:-5]
        decay = 10 ** median(self.decays)
        if len(self.decays) >= 3 and decay < DECAY:
            self.tell(
                "vanishing-gradients",
                f"Gradients shrink {1 / decay:.3g}-fold on the way from the output to the input (`{moving[-1][0]}` has "
                f"{moving[-1][1]:.2g}, `{moving[0][0]}` has {moving[0][1]:.2g}); less than {1 / DECAY:.0e}-fold would do.",
                statistical=True,
                evidence={"decay": decay, "input_norm": near_input, "output_norm": near_output, "limit": DECAY},
                where=[n for n, _ in moving[:third]],
            )
        elif len(self.decays) >= 3:
            self.retract("vanishing-gradients")

    # ------------------------------------------------------------------ the remedy

    def _leave_out(self, optimizer: Optimizer, total: Tensor) -> None:
        bad = ~torch.isfinite(total)
        if self._buffers is not None:
            self._buffers.restore(bad)
        if self.hub.readings.scaler is None:
            self._control.skip(optimizer, bad)

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

    def _layers_of(self, reading: StepReading) -> list[Layer]:
        return layers(reading.names, reading.norms, None)


def layers(names: Sequence[str], norms: Sequence[float], only: frozenset[str] | None) -> list[Layer]:
    """Gradient norm of each layer (the module that owns the parameters), in the order of `names`."""
    squares: dict[str, float] = {}
    for name, norm in zip(names, norms, strict=True):
        if only is None or name in only:
            layer = name.rpartition(".")[0] or name
            squares[layer] = squares.get(layer, 0.0) + norm * norm
    return [(layer, math.sqrt(square)) for layer, square in squares.items()]


def _largest(of: list[Layer]) -> list[str]:
    return [name for name, _ in sorted(of, key=lambda pair: -pair[1])]


def _micro_batch(reading: StepReading, micro: int, count: int) -> int:
    """The `batch_idx` of a micro-batch, counted back from the last of its window."""
    return reading.batch_idx - (count - 1 - micro)
