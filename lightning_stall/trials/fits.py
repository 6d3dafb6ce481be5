"""One short fit of one arm, on a copy, within a deadline."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lightning_stall.measure.by_hand import LossNotes
from lightning_stall.measure.losses import recognise
from lightning_stall.trials.batches import (
    InputScale,
    Kept,
    Known,
    cloned,
    find_target,
    shuffled,
    tensors,
    without_model,
)
from lightning_stall.trials.pairing import find_targets
from lightning_stall.trials.records import Arm, Fit
from lightning_stall.trials.sandbox import SEED, DeclinedError, Sandbox

MANY = 40  # optimizer steps from which a fit is judged on its way too
LOOKS = 3  # times a fit is judged on its way: at a quarter, a half and the end
JUDGED = 5  # batches that it is judged on at most
BY_HEART = 0.25  # of its first loss: a batch that has come so far need not be fitted on
LOST = 1e6  # times its first loss, at which a fit is broken off


class OutOfTimeError(Exception):
    """The deadline passed in the middle of a fit."""


@dataclass
class Bench:
    """What all arms of one occasion share: the run, the batches, and when to stop (`time.perf_counter`)."""

    trainer: Any
    module: Any
    fitted: list[Kept]
    judged: list[Kept]
    deadline: float
    rate: float = 1.0  # factor of remedies on the optimizer's own rate
    target: int | None = None
    targets: int = 0  # numbers in the targets of one batch
    inputs: InputScale = field(default_factory=lambda: InputScale({}, {}))
    known: Known = field(default_factory=Known)  # what the samples tell of their targets without the model
    cost: float = math.nan  # seconds a micro-batch, forward and backward and step

    @property
    def window(self) -> int:
        """Micro-batches an optimizer step."""
        return int(self.trainer.accumulate_grad_batches)

    def look(self) -> list[float]:
        """Find the targets in a batch and the scale of the inputs, time a step, and return the run's own losses.

        Raises:
            DeclinedError: where the copy does not work.
        """
        box = Sandbox(self.trainer, self.module)
        torch.manual_seed(SEED)
        first = cloned(self.fitted[0].batch)
        with LossNotes():
            loss = box.loss(first, self.fitted[0].index)
        seen = recognise(loss)
        if seen is not None:
            self.target = find_target(first, seen.target)
            self.targets = seen.target.numel()
        if self.target is None:  # made into something else on its way to the loss
            found, _ = find_targets(Sandbox(self.trainer, self.module), self.fitted[0].batch, self.fitted[0].index)
            if found is not None and len(found) == 1:
                self.target = found[0]
                self.targets = self.targets or tensors(first)[found[0]].numel()
        self.inputs = InputScale.of([k.batch for k in self.fitted], self.target)
        classes = seen is not None and seen.kind in ("cross-entropy", "binary cross-entropy")
        self.known = without_model([k.batch for k in (*self.fitted, *self.judged)], self.target, classes)
        level = self.losses(box, self.judged or self.fitted, Arm())
        start = time.perf_counter()
        self._step(box, self.fitted[:1], Arm())
        self._step(box, self.fitted[:1], Arm())
        self.cost = (time.perf_counter() - start) / 2
        return level

    def fit(self, arm: Arm, steps: int) -> Fit:
        """Make `steps` optimizer steps in this arm on a new copy.

        Raises:
            OutOfTimeError: at the deadline.
            DeclinedError: where the copy does not work.
        """
        start = time.perf_counter()
        box = Sandbox(self.trainer, self.module, self.rate * arm.factor)
        torch.manual_seed(SEED)
        if arm.start == "fresh":
            box.forget()
        if arm.free:
            box.free()
        if arm.adam:
            box.plain_adam(arm.adam)
        fitted = self.fitted if arm.one < 0 else [self.fitted[arm.one]]
        judged = (self.judged or self.fitted) if arm.one < 0 else fitted
        before = self.losses(box, judged, arm)
        losses: list[float] = []
        best = before
        looks = self._looks(steps)
        for step in range(steps):
            chosen = [fitted[(step * self.window + i) % len(fitted)] for i in range(min(self.window, len(fitted)))]
            losses.append(self._step(box, chosen, arm))
            if not math.isfinite(losses[-1]) or abs(losses[-1]) > LOST * max(1.0, abs(losses[0])):
                return Fit(arm, step + 1, time.perf_counter() - start, (*losses, math.inf), tuple(before), ())
            if arm.one >= 0 and losses[-1] < BY_HEART * losses[0]:
                steps, looks = step + 1, {step + 1}
            if step + 1 in looks:
                now = self.losses(box, judged, arm)
                if best is before or not sum(now) >= sum(best):
                    best = now
            if step + 1 == steps:
                break
        return Fit(arm, steps, time.perf_counter() - start, tuple(losses), tuple(before), tuple(best))

    def steps_in(self, seconds: float) -> int:
        """How many steps a fit can make in this time, with its looks at the judged batches."""
        look = min(JUDGED, len(self.judged) or len(self.fitted)) * self.cost / 2  # no backward pass and no step
        step = max(self.cost * self.window, 1e-6)
        many = int((seconds - (LOOKS + 1) * look) / step)
        return many if many >= MANY else min(MANY, int((seconds - 2 * look) / step))

    def _looks(self, steps: int) -> set[int]:
        return {math.ceil(steps / 2**i) for i in range(LOOKS if steps >= MANY else 1)}

    def losses(self, box: Sandbox, kept: Sequence[Kept], arm: Arm) -> list[float]:
        """The loss of each of these batches, in training mode without dropout; statistics of the copy move on."""
        state = torch.get_rng_state()
        torch.manual_seed(SEED)
        out = []
        with box.undisturbed():
            for k in kept[:JUDGED]:
                self._check_time()
                out.append(box.loss(self._batch(k, arm), k.index).detach().float().mean())
        torch.set_rng_state(state)
        return [float(v) for v in torch.stack(out).tolist()]

    def _step(self, box: Sandbox, chosen: Sequence[Kept], arm: Arm) -> float:
        """One optimizer step over these micro-batches; the mean loss before it. Waits for the device."""
        total: list[torch.Tensor] = []

        def closure() -> torch.Tensor:
            box.optimizer.zero_grad()
            total.clear()
            for k in chosen:
                self._check_time()
                loss = box.loss(self._batch(k, arm), k.index)
                loss = loss.float().mean() if loss.ndim else loss
                (loss / len(chosen)).backward()
                total.append(loss.detach().float())
            if not arm.adam:
                box.clip()
            return loss

        box.optimizer.step(closure)  # type: ignore[arg-type]
        if not total:
            raise DeclinedError("the optimizer makes no use of its closure")
        return float(torch.stack(total).mean())

    def _batch(self, kept: Kept, arm: Arm) -> Any:
        batch = cloned(kept.batch)
        if arm.scaled:
            batch = self.inputs.standardise(batch)
        if arm.shuffled and self.target is not None:
            batch = shuffled(batch, self.target, SEED + kept.index)
        return batch

    def _check_time(self) -> None:
        if time.perf_counter() > self.deadline:
            raise OutOfTimeError
