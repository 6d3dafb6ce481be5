"""AutoClip: gradients cut to a limit that follows the run's own norms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_stall.callback import StallCallback
from lightning_stall.errors import MisconfigurationException, require
from lightning_stall.measure.clipping import PercentileOnDevice, PercentileOnHost, ZScoreOnDevice, ZScoreOnHost
from lightning_stall.measure.gradients import is_dtensor
from lightning_stall.readings import GradientReading, StepReading
from lightning_stall.remedies import BufferSnapshot, StepControl, batchnorm_layers
from lightning_stall.remedies_inputs import RESCALED
from lightning_stall.sinks import themes
from lightning_stall.sinks.console import tell
from lightning_stall.verdicts import clipping as clipped
from lightning_stall.verdicts.clipping import Pairs, Tightness, Watched

TIGHT = "clipping-too-tight"
# what another mends by other inputs or other weights: gradients have another size from then on
ANOTHER = (*RESCALED, "bad-initialization")
LOST = 8  # steps in a row without finite gradients
EARLY = 32  # the step until which these say something of how the run began
CUT_ALL = 0.65  # how sure steps that are nearly all cut explain a stall; of Adam they may be, and it learns
MADE_SO = ("unstable-operation", "nonfinite-inputs", "corrupt-samples")  # what makes gradients non-finite without end
USUAL = 1.0  # gradient norm that is most often clipped to
ANEW = "it learns anew what is usual, and clips nothing until then."


class AutoClip(StallCallback):
    """Cuts each optimizer's gradients to a limit taken from the history of their norms, before the step.

    `method="percentile"` (Seetharaman et al., 2020) cuts to a percentile of the last norms; at the default, the 10th,
    most steps are cut, by little. `method="zscore"` (ZClip, 2025) cuts only norms that stand out from their running
    mean. A step whose norm is not finite is left out and kept out of the history, and BatchNorm's statistics are put
    back; with a GradScaler it is the scaler's.

    Works where `Trainer(gradient_clip_val=...)` refuses: fused optimizers (the coefficient rides into their kernel, at
    no second pass over memory), manual optimisation, FSDP. Between checks it never waits for the device. The Trainer's
    own clipping comes after it, so where both are set the lower limit rules.

    Says: clipping-too-tight (its own limit, the Trainer's or the user's), nonfinite-gradients where it left a step out,
    and as exploding-gradients, for information, what it would have cut and which of two limits rules.

    Logs: `stall/clip/norm_before`, `stall/clip/norm_after`, `stall/clip/threshold`, `stall/clip/share_clipped` (of the
    last 100 steps), `stall/clip/skipped_steps`; with several optimizers `stall/clip/<index>/...`.

    Args:
        method: "percentile" or "zscore".
        percentile: 0 to 100, of the norms in the history.
        z_threshold: spreads above the mean that pass, for "zscore".
        history: norms kept, for "percentile". ZClip's mean reaches back about 33 steps, whatever this is.
        warmup: optimizer steps before the rule applies; until then only leaps over ten times the usual norm are cut, to
            the usual norm.
        auto_remedy: clip. Off, it changes nothing, logs what it would have done, and says so once if the run is not well.
        exact_skip: leave a non-finite step out altogether also on an accelerator with an optimizer that is not fused,
            at one wait for the device a step. Off, its gradients are zero there, and momentum still moves the weights.
        every_n_steps: optimizer steps between checks; None takes the Trainer's `log_every_n_steps`.
        mute: codes never to be told.

    Raises:
        MisconfigurationException: for an argument out of range, and under DeepSpeed, which clips in its own engine.

    >>> from lightning_stall.testing import blobs, healthy, watch
    >>> watch(healthy(), blobs(), AutoClip(percentile=90)).outcome
    'converged'
    """

    codes = ("exploding-gradients", "nonfinite-gradients", "clipping-too-tight")

    def __init__(
        self,
        *,
        method: Literal["percentile", "zscore"] = "percentile",
        percentile: float = 10.0,
        z_threshold: float = 2.5,
        history: int = 1000,
        warmup: int = 10,
        auto_remedy: bool = True,
        exact_skip: bool = False,
        every_n_steps: int | None = None,
        mute: Sequence[str] = (),
    ) -> None:
        super().__init__(auto_remedy=auto_remedy, every_n_steps=every_n_steps, mute=mute)
        require(method in ("percentile", "zscore"), "method", method, 'give "percentile" or "zscore"')
        require(0 <= percentile <= 100, "percentile", percentile, "give a number from 0 to 100")
        require(z_threshold > 0, "z_threshold", z_threshold, "give a number above 0, such as 2.5")
        require(isinstance(history, int) and history >= 2, "history", history, "give a whole number of at least 2")
        require(isinstance(warmup, int) and warmup >= 0, "warmup", warmup, "give a whole number of at least 0")
        self.method, self.percentile, self.z_threshold = method, percentile, z_threshold
        self.history, self.warmup, self.exact_skip = history, warmup, exact_skip
        self.skipped = 0
        self.most = math.inf  # a limit for all steps, once gradients have exploded from the start
        self.tightest = False  # a looser one has been tried, and was too loose
        self._rules: dict[int, Tensor] = {}  # of each optimizer, as a checkpoint kept it
        self._reset()

    def _reset(self) -> None:
        self._watched: dict[int, Watched] = {}
        self._control = StepControl()
        self._buffers: BufferSnapshot | None = None
        self._hooks: list[Any] = []
        self._numbers: dict[str, float] = {}
        self._introduced = False
        self._in_a_row = self._lost_at = 0  # steps whose gradients were not finite, and the first of them
        self._anew_at = 0  # the last step whose inputs or weights are other ones since
        self._trainers_left: float | None = None  # of the usual gradient, where the Trainer's limit is too tight
        self._undo: float | None = None  # the Trainer's own limit, where it was loosened
        self._alone = True  # nobody else tells of non-finite gradients

    # ------------------------------------------------------------------ verbs

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse what cannot work, before the fit starts."""
        deepspeed = any(kind.__name__ == "DeepSpeedStrategy" for kind in type(trainer.strategy).__mro__)
        if deepspeed and self.auto_remedy and stage == "fit":
            raise MisconfigurationException(
                "AutoClip cannot clip under DeepSpeed, whose engine partitions the gradients and clips them itself; "
                "take AutoClip out and set `Trainer(gradient_clip_val=1.0)`"
            )

    def begin(self) -> None:
        self._reset()
        if not self.hub.step:
            self._rules, self.skipped, self.most = {}, 0, math.inf
            self.tightest = False
        for optimizer in self.hub.readings.optimizers:
            if hasattr(optimizer, "register_step_post_hook"):
                self._hooks.append(optimizer.register_step_post_hook(self._step_used))

    @property
    def rare(self) -> frozenset[str]:
        return frozenset({"after_backward"} if self._buffers is not None else {"before_batch", "after_backward"})

    def before_batch(self, batch: Any, batch_idx: int) -> None:
        if not self._watched and self._buffers is None:  # the first batch: all callbacks have joined by now
            others = [m for m in self.hub.members if m is not self and "nonfinite-gradients" in m.codes]
            self._alone = not others
            layers = [m for _, m in batchnorm_layers(self.hub.module)]
            if self.auto_remedy and layers and not any(m.auto_remedy for m in others):
                self._buffers = BufferSnapshot(layers)
        if self._buffers is not None and self.hub.readings.window_starts:
            self._buffers.take()

    def after_backward(self) -> None:
        if self.hub.checking and self.hub.readings.scaler is None:
            for watched in self._watched.values():
                if not self._in_parts(watched):
                    watched.backward_done()

    def before_step(self, optimizer: Optimizer) -> None:
        reading = self.hub.readings.gradients(optimizer)
        if not reading.params:
            return
        watched = self._watched.get(id(optimizer)) or self._watch(optimizer, reading)
        total = reading.known
        if watched.device is not None or total is None:
            limit = watched.rule.update(reading.total)
            if self.most < math.inf:
                limit = limit.clamp(max=self.most)
            watched.add(reading.total, limit)
            if self.auto_remedy:
                self._act_on_device(optimizer, reading, limit)
            return
        limit = min(watched.rule.update(total), self.most)
        watched.add(total, limit)
        if self.auto_remedy and not math.isfinite(total):
            self._leave_out(optimizer, True)
        elif self.auto_remedy and total > limit:
            self._cut(optimizer, reading, limit / total)

    def observe(self, reading: StepReading) -> None:
        if not self.auto_remedy or reading.scaled:
            return
        if math.isfinite(reading.total_norm):
            self._in_a_row = 0
            if self._alone:
                self.retract("nonfinite-gradients")
            return
        self.skipped += 1
        self._in_a_row += 1
        self._lost_at = reading.step if self._in_a_row == 1 else self._lost_at
        if self._alone:
            bad = [n for n, v in zip(reading.names, reading.norms, strict=True) if not math.isfinite(v)]
            self.tell(
                "nonfinite-gradients",
                f"The gradient norm of step {reading.step} is {reading.total_norm}, for {len(bad)} of "
                f"{len(reading.norms)} parameters; a finite number would do.",
                severity="critical",
                evidence={"nonfinite_parameters": float(len(bad)), "batch_idx": float(reading.batch_idx)},
                where=list(reversed(bad)),
                remedy=f"left out step {reading.step} before it reached the weights",
                step=reading.step,
            )

    def judged(self) -> None:
        hub = self.hub
        known = hub.journal.known()
        steep = [
            f.evidence["steepness"] for f in known if f.code == "exploding-gradients" and "steepness" in f.evidence
        ]
        # or nothing but steps that are not finite from early on, and nothing known that makes them so
        lost = self._in_a_row >= LOST and self._lost_at <= EARLY and not any(f.code in MADE_SO for f in known)
        if self.auto_remedy and USUAL < self.most < math.inf and not self.tightest and hub.curve.bad_steps:
            self.most, self.tightest = max(USUAL, self.most / 10), True
            hub.mended["exploding-gradients"] = hub.step
        if not (steep or lost) or not self.auto_remedy or self.most < math.inf:
            return
        self.most, hub.mended["exploding-gradients"] = USUAL, hub.step
        self.tell(
            "exploding-gradients",
            f"The first gradients promised steps that no weights stand: {steep[-1]:.3g} times the loss for one as long as "
            f"the weights; {USUAL:g} is the usual limit of a norm."
            if steep
            else f"{self._in_a_row} steps in a row, from step {self._lost_at} on, had gradients that are not finite; none "
            "would be fine.",
            severity="info",
            evidence={"limit": USUAL},
            remedy=f"cut all gradients to a norm of {USUAL:g} from step {hub.step + 1} on",
        )

    def act(self) -> None:
        """Where the Trainer's limit is told to be too tight, loosen it; and forget the norms of what is no more."""
        hub, trainer = self.hub, self.hub.trainer
        at = hub.mended_last(ANOTHER)
        if at > self._anew_at:
            self._anew_at = at
            self._watched.clear()  # each is made anew at its optimizer's next step
        if not self.auto_remedy or TIGHT in hub.mended or self._trainers_left is None:
            return
        told = any(f.code == TIGHT and f.speaks for f in hub.journal.findings)
        seen = next((f for f in hub.journal.known() if f.code == TIGHT), None)
        if not trainer.gradient_clip_val or seen is None or not (told or hub.nothing_yet):
            return
        if not told:  # it is over as soon as it is mended, and was the cause nevertheless
            self.tell(TIGHT, seen.summary, advice=seen.advice, evidence=seen.evidence, where=seen.where)
        before = float(trainer.gradient_clip_val)
        self._undo = before
        trainer.gradient_clip_val = before / self._trainers_left
        hub.mended[TIGHT] = hub.step
        self.tell(
            TIGHT,
            f"`gradient_clip_val={before:g}` left {self._trainers_left:.2g} of the usual gradient.",
            severity="info",
            evidence={"limit_before": before, "limit_after": float(trainer.gradient_clip_val)},
            remedy=f"loosened the Trainer's limit to {trainer.gradient_clip_val:.3g} from step {hub.step + 1} on",
        )

    def check(self) -> None:
        for watched in self._watched.values():
            if pairs := watched.pairs():
                total, limit = pairs[-1]
                watched.measure(min(1.0, limit / total) if self.auto_remedy else 1.0)
                self._note(watched, pairs)
                self._look_for_tight(watched, pairs)
        if any(watched.steps > self.warmup for watched in self._watched.values()):
            self._introduce()

    def finish(self) -> None:
        self._introduce()
        if self.skipped and not self._alone:
            self.tell(
                "nonfinite-gradients",
                f"{self.skipped} steps had a gradient norm that is not finite; none would be fine.",
                severity="info",
                evidence={"skipped_steps": float(self.skipped)},
                remedy=f"left out {self.skipped} steps before they reached the weights",
            )

    def detach(self) -> None:
        if self._undo is not None:
            self.hub.trainer.gradient_clip_val, self._undo = self._undo, None
        self._control.remove()
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def numbers(self) -> Mapping[str, float]:
        skipped = {"stall/clip/skipped_steps": float(self.skipped)} if self.auto_remedy else {}
        return self._numbers | skipped

    def panels(self) -> Mapping[str, Sequence[str]]:
        return {themes.CLIPPING: ["stall/clip/.*norm_before$", "stall/clip/.*norm_after$", "stall/clip/.*threshold$"]}

    def state(self) -> dict[str, Any]:
        rules = self._rules | {self._index(w.optimizer): w.rule.save() for w in self._watched.values()}
        return {"rules": rules, "skipped": self.skipped, "method": self.method, "most": self.most}

    def load_state(self, state: Mapping[str, Any]) -> None:
        wrote = state.get("method", self.method)
        if wrote != self.method:
            tell(f"AutoClip(method={self.method!r}) cannot go on from a checkpoint of {wrote!r}: {ANEW}")
        self._rules = {int(index): saved for index, saved in state["rules"].items()} if wrote == self.method else {}
        self.skipped, self.most = state["skipped"], state.get("most", math.inf)

    # ------------------------------------------------------------------ clipping

    def _watch(self, optimizer: Optimizer, reading: GradientReading) -> Watched:
        home = torch.device("cpu") if reading.on_device is None else reading.on_device.device
        host = self._on_host(home)
        rule: PercentileOnHost | PercentileOnDevice | ZScoreOnHost | ZScoreOnDevice
        if self.method == "zscore":
            z = self.z_threshold, self.warmup
            rule = ZScoreOnHost(*z) if host else ZScoreOnDevice(*z, home)
        else:
            p = self.history, self.percentile, self.warmup
            rule = PercentileOnHost(*p) if host else PercentileOnDevice(*p, home)
        saved = self._rules.pop(self._index(optimizer), None)
        if saved is not None:
            try:
                rule.load(saved)
            except Exception as error:
                tell(f"AutoClip cannot go on from what this checkpoint kept ({error!r}): {ANEW}")
                return self._watch(optimizer, reading)
        watched = Watched(optimizer, reading.params, rule, None if host else home)
        self._watched[id(optimizer)] = watched
        return watched

    def _act_on_device(self, optimizer: Optimizer, reading: GradientReading, limit: Tensor) -> None:
        total, scaled = reading.total, self.hub.readings.scaler is not None
        if not scaled and self._control.clip_on_device(optimizer, total, limit):
            if self._buffers is not None:
                self._buffers.restore(~(total < math.inf))
            return
        self._cut(optimizer, reading, (limit / total).clamp(max=1.0))
        self._leave_out(optimizer, ~(total < math.inf))

    def _on_host(self, home: torch.device) -> bool:
        """Whether numbers of this device can be read without a wait."""
        return home.type == "cpu"

    def _cut(self, optimizer: Optimizer, reading: GradientReading, coefficient: Tensor | float) -> None:
        grads = (p.grad for p in reading.params if p.grad is not None)
        self._control.clip(optimizer, coefficient, grads, scaled=self.hub.readings.scaler is not None)

    def _leave_out(self, optimizer: Optimizer, bad: Tensor | bool) -> None:
        if self._buffers is not None:
            self._buffers.restore(bad)
        if self.hub.readings.scaler is None and self._control.skip(optimizer, bad, wait=self.exact_skip):
            self.hub.cleared_at = self.hub.step

    def _step_used(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        watched = self._watched.get(id(optimizer))
        if watched is not None and self.hub.checking and not self.failed and not self._in_parts(watched):
            self.hub.guard(self, "step_done", call=lambda _: watched.step_done())

    def _in_parts(self, watched: Watched) -> bool:
        """Whether a norm would take a collective, which must not depend on the order of a user's code."""
        return self.hub.readings.copies is not None or any(is_dtensor(p) for p in watched.params)

    def _index(self, optimizer: Optimizer) -> int:
        return next((i for i, o in enumerate(self.hub.readings.optimizers) if o is optimizer), 0)

    # ------------------------------------------------------------------ what it says

    def _trainers_limit(self) -> float | None:
        trainer = self.hub.trainer
        by_norm = getattr(trainer.gradient_clip_algorithm, "value", "norm") == "norm"
        return float(trainer.gradient_clip_val) if trainer.gradient_clip_val and by_norm else None

    def _note(self, watched: Watched, pairs: Pairs) -> None:
        total, limit = pairs[-1]
        index = f"{self._index(watched.optimizer)}/" if len(self.hub.readings.optimizers) > 1 else ""
        self._numbers |= {
            f"stall/clip/{index}norm_before": total,
            f"stall/clip/{index}norm_after": min(total, limit, self._trainers_limit() or math.inf),
            f"stall/clip/{index}threshold": limit,
            f"stall/clip/{index}share_clipped": clipped.share_cut(pairs),
        }

    def _look_for_tight(self, watched: Watched, pairs: Pairs) -> None:
        usual = median(total for total, _ in pairs)
        trainers, own, by_value = self._trainers_limit(), None, False
        suspects: list[tuple[str, Tightness | None]] = []
        if self.auto_remedy:
            own = clipped.tight([limit / total for total, limit in pairs])
            suspects.append(("AutoClip's limit", own))
        if trainers is not None:
            suspects.append(
                (f"`Trainer(gradient_clip_val={trainers:g})`", clipped.tight([trainers / t for t, _ in pairs]))
            )
        else:
            by_value = bool(self.hub.trainer.gradient_clip_val)
            whose = "`gradient_clip_algorithm='value'`" if by_value else "Clipping in your own code"
            suspects.append((whose, clipped.tight(watched.left, clipped.ENOUGH_MEASURED)))
        elements = sum(p.numel() for p in watched.params)
        for whose, found in suspects:
            if found is None or not clipped.shrinks_steps(watched.optimizer, found.left * usual, elements):
                continue
            remedy, capped = None, found is own and self.most < math.inf
            if capped:
                if not self._loosen(found.left):
                    return
                remedy = f"loosened its limit to {self.most:.3g}"
            elif found is own:
                watched.restart([total for total, _ in pairs[-clipped.ENOUGH :]])
                remedy = (
                    f"forgot all but the last {clipped.ENOUGH} norms, which loosens its limit of {pairs[-1][1]:.3g}"
                )
            if trainers is not None or by_value:
                self._trainers_left = found.left if found is not own else None
            self.tell(
                TIGHT,
                found.text(whose, usual),
                severity="info" if capped else "warning",  # its own tightness is no cause of anything
                statistical=not capped,
                evidence={"left": found.left, "share_clipped": found.share, "usual_norm": usual, "strength": CUT_ALL},
                where=[type(watched.optimizer).__name__],
                remedy=remedy,
            )
            return
        self.retract(TIGHT)

    def _loosen(self, left: float) -> bool:
        """Ten times as much, or as would be fine, while the run bears it; whether it was done."""
        if self.hub.outcome.state in ("diverging", "non-finite", "oscillating") or self.hub.curve.bad_steps:
            return False
        if self.tightest:
            return False
        self.most *= min(10.0, clipped.TIGHT / left)
        return True

    def _introduce(self) -> None:
        """Once: what it would do where it may not clip and the run is not well, or which of two limits rules."""
        trainers = self.hub.trainer.gradient_clip_val
        seen = {id(w): w.pairs() for w in self._watched.values()}
        if self._introduced or not any(seen.values()) or (self.auto_remedy and not trainers):
            return
        if not self.auto_remedy and not self.hub.outcome.bad:
            return
        self._introduced = True
        pairs = max(seen.values(), key=len)
        if self.auto_remedy:
            by_norm = self._trainers_limit() is not None
            summary, advice = clipped.which_limit_rules(pairs[-1][1], float(trainers), by_norm), clipped.KEEP_ONE
        else:
            summary, advice = clipped.would_have_cut(pairs), clipped.SWITCH_ON
        evidence = {"limit": pairs[-1][1], "share_clipped": clipped.share_cut(pairs)}
        self.tell("exploding-gradients", summary, advice=advice, severity="info", evidence={**evidence, "note": 1.0})
