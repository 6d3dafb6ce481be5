"""OptimizerHealth: whether what should be trained is trained, and at a rate that leads somewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_stall.callback import StallCallback
from lightning_stall.measure.batches import fields
from lightning_stall.measure.gradients import gradient_norms, in_parts
from lightning_stall.measure.graph import leaves
from lightning_stall.measure.loss_graph import penalised
from lightning_stall.measure.loss_sums import SumLabels
from lightning_stall.measure.steps import few, leftover, overshoot
from lightning_stall.measure.weights import untrained
from lightning_stall.outcome import LONG_ENOUGH
from lightning_stall.readings import StepReading, plain_name, run_again
from lightning_stall.remedies_rate import RateClimb
from lightning_stall.sinks import themes
from lightning_stall.trials.raising import RateHelp
from lightning_stall.verdicts import held as held_by
from lightning_stall.verdicts import rates, schedules
from lightning_stall.verdicts.inputs import Verdict
from lightning_stall.verdicts.rivals import Rivals

LOOK = 32  # optimizer steps in which the handling of gradients is watched at every step

_KEPT = (  # in a checkpoint
    *("largest_early", "top_rate", "rate", "scheduled", "alive_until", "steps_seen", "growth", "lowest"),
    *("medians", "cosines", "first_norms"),
)


class OptimizerHealth(StallCallback):
    """Watches rates, updates and what the optimizers hold.

    Says parameters-not-optimized, gradients-not-cleared and replicas-diverged, which are certain; and, once the run
    fares badly, learning-rate-too-high, learning-rate-too-low, learning-rate-decayed-early and excess-regularization.

    Logs: `stall/updates/median_ratio`, `stall/updates/largest_ratio`, `stall/updates/overshoot` (cosine between a step
    and the gradient after it: near 1 the step went too far), `stall/rate/schedule`.

    Args:
        auto_remedy: raise a learning rate that is too low, tenfold at a time, until steps move the weights by some 0.1 %
            or the loss is worse for it; the last raise is then taken back. The schedule's own rate is left alone (the
            factor acts inside each optimizer step), and the factor is kept in the checkpoint. Rates that are too high
            are lowered by `PlateauWatch(auto_remedy=True)`. A run whose ranks hold different weights is stopped.
        every_n_steps: optimizer steps between checks; None takes the Trainer's `log_every_n_steps`.
        mute: codes never to be told.

    >>> from lightning_stall.testing import blobs, healthy, watch
    >>> watch(healthy(rate=1e-7), blobs(), OptimizerHealth(), max_epochs=15).causes[0].code
    'learning-rate-too-low'
    """

    reads_norms = False
    reads_updates = True
    codes = (
        "learning-rate-too-high",
        "learning-rate-too-low",
        "learning-rate-decayed-early",
        "parameters-not-optimized",
        "gradients-not-cleared",
        "excess-regularization",
        "replicas-diverged",
    )
    shares = ("weights",)

    def __init__(
        self, *, auto_remedy: bool = False, every_n_steps: int | None = None, mute: Sequence[str] = ()
    ) -> None:
        super().__init__(auto_remedy=auto_remedy, every_n_steps=every_n_steps, mute=mute)
        self._reset()

    def _reset(self) -> None:
        self.top_rate = 0.0
        self.rate = 0.0  # the effective one
        self.scheduled = 0.0  # the schedule's own
        self.alive_until = 0  # the last step with a rate above schedules.DEAD of its height
        self.ratios: dict[str, float] = {}
        self.medians: list[float] = []  # median update-to-weight ratio of the last checks
        self.by_group: dict[int, tuple[float, float]] = {}  # the last of each parameter group, and its share of weights
        self.rivals = Rivals()
        self.largest_early = 0.0  # of these medians, in the first LOOK steps
        self.cosines: list[float] = []
        self.first_norms: dict[str, float] = {}
        self._monitored: dict[str, list[tuple[float, float]]] = {}  # metric of a schedule -> (value, loss) an epoch
        self._penalised: frozenset[str] = frozenset()  # weights whose size is a term of the loss
        self.steps_seen = 0
        self.growth = 1.0  # of the loss, from its least to its last finite value
        self.lowest = math.inf
        self.climb = RateClimb()
        self._loosened_at = 0  # the step at which a limit was loosened
        self._slow: float | None = None  # update-to-weight ratio of a rate that was just found too low
        self._look_anew()

    def _look_anew(self) -> None:
        """Forget what was seen of how the program handles its gradients: it is looked at in each fit."""
        self._before: list[Tensor] = []  # weights sampled before the step of a check
        self._moved: list[Tensor] = []  # and how that step moved them
        self._cosine: Tensor | None = None
        self._kept: dict[int, Tensor] = {}  # optimizer -> whether gradients survived every look since its last step
        self._uncleared: dict[int, Tensor] = {}
        self._stepped: dict[int, int] = {}
        self._found: set[int] = set()  # optimizers of which a step found a gradient
        self._there: dict[int, Tensor] = {}  # optimizer -> whether the last backward pass left it a gradient
        self._gone: dict[int, list[Tensor]] = {}  # and whether none of it was left for its step, at checks
        self._shown: dict[int, Tensor] = {}  # the same between our look before a step, and its end: in between come
        self._emptied: dict[int, list[Tensor]] = {}  # the user's own hooks
        self._hooks: list[Any] = []
        self._graph_params: list[nn.Parameter] | None = None
        self._with_grad: set[int] = set()
        self._lasting: dict[int, Tensor] = {}  # tensors, no parameters, that asked for a gradient in both first steps
        self._undropped = 0  # the step at which dropout's cost was last asked
        self._idle_looks = 0
        self._idle: set[int] = set()  # parameters that were told of as idle
        self.help = RateHelp(self)
        self._sloped: set[str] = set()  # parameters that had a gradient other than 0

    # ------------------------------------------------------------------ verbs

    def begin(self) -> None:
        if not self.hub.step:
            self._reset()
            self._look_at_schedules()
        self._look_anew()
        for optimizer in self.hub.readings.optimizers:
            if hasattr(optimizer, "register_step_post_hook") and self.hub.readings.scaler is None:
                self._hooks.append(optimizer.register_step_post_hook(self._step_made))
        if self.auto_remedy:
            self.hub.rate.set(self.state_key, self.climb.factor)

    @property
    def rare(self) -> frozenset[str]:
        return frozenset({"before_backward", "after_backward", "before_step", "step_end"})

    def before_backward(self, loss: Tensor) -> None:
        hub = self.hub
        if hub.here <= 2 and not hub.readings.scaler:
            found, others = leaves(loss)
            if found:
                known = {id(p) for p in self._graph_params or ()}
                self._graph_params = [*(self._graph_params or ()), *(p for p in found if id(p) not in known)]
            fresh = {id(t): t for t in others}
            self._lasting = fresh if hub.here == 1 else {i: t for i, t in self._lasting.items() if i in fresh}
            own = penalised(loss)
            self._penalised |= {plain_name(n) for n, p in hub.module.named_parameters() if id(p) in own}
        if hub.here <= LOOK:
            for optimizer in hub.readings.optimizers:
                left = leftover(optimizer)
                kept = self._kept.get(id(optimizer))
                self._kept[id(optimizer)] = left if kept is None else torch.logical_and(kept, left)

    def after_backward(self) -> None:
        if self.hub.looking or (self._idle and self.hub.checking):
            for optimizer in self.hub.readings.optimizers:
                self._with_grad.update(id(p) for g in optimizer.param_groups for p in g["params"] if p.grad is not None)
                if not self.hub.module.automatic_optimization:
                    self._there[id(optimizer)] = leftover(optimizer)

    def before_step(self, optimizer: Optimizer) -> None:
        hub = self.hub
        if hub.here <= LOOK:
            key = id(optimizer)
            kept = self._kept.pop(key, None)
            if kept is not None and self._stepped.get(key):
                count = self._uncleared.get(key)
                self._uncleared[key] = kept.float() if count is None else count + kept.float()
            if hub.cleared_at != hub.step:  # a step that a remedy has left out shows nothing
                self._stepped[key] = self._stepped.get(key, 0) + 1
            if key not in self._found and any(p.grad is not None for g in optimizer.param_groups for p in g["params"]):
                self._found.add(key)
            there = self._there.pop(key, None)
            if there is not None and hub.cleared_at != hub.step:
                # what the backward pass left, and the step does not find
                gone = torch.logical_and(there, ~leftover(optimizer))
                self._gone.setdefault(key, []).append(gone)
            if hub.looking and self._hooks:
                self._shown[key] = leftover(optimizer)
        if optimizer is hub.readings.optimizers[0]:
            if self._moved:
                self._cosine = overshoot(hub.readings.named(optimizer)[1], self._moved)
                self._moved = []
            if hub.checking:
                self._before = [few(p).clone() for p in hub.readings.named(optimizer)[1]]

    def _step_made(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Gradients are still there after a step, unless a hook of the user's has cleared them for it."""
        shown = self._shown.pop(id(optimizer), None)
        if shown is not None and self._hub is not None and self._hub.cleared_at != self._hub.step:

            def look(_: Any) -> None:
                self._emptied.setdefault(id(optimizer), []).append(torch.logical_and(shown, ~leftover(optimizer)))

            self._hub.guard(self, "step_made", call=look)

    def step_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._before:
            params = self.hub.readings.named(self.hub.readings.optimizers[0])[1]
            pairs = [(few(p), b) for p, b in zip(params, self._before, strict=False)]
            self._moved = [p - b for p, b in pairs if p.shape == b.shape]  # a weight may change its shape within a step
            if len(self._moved) < len(params):
                self._moved = []
            self._before = []

    def observe(self, reading: StepReading) -> None:
        hub, rate, loss = self.hub, reading.rate, reading.loss
        self.steps_seen += 1
        if reading.step - hub.begun_at <= LOOK:
            self._sloped.update(n for n, norm in zip(reading.names, reading.norms, strict=True) if norm != 0)
        self.rate = rate
        factor = hub.rate.factor
        self.scheduled = scheduled = rate / factor if factor > 0 else rate  # what we did to it is no schedule's doing
        if scheduled > self.top_rate:
            self.top_rate = scheduled
        if scheduled > schedules.DEAD * self.top_rate:
            self.alive_until = reading.step
        if loss is not None and math.isfinite(loss) and not hub.distributed:
            self._grow(loss, loss)

    def _grow(self, least: float, last: float) -> None:
        self.lowest = min(self.lowest, least)
        if self.lowest > 0:
            self.growth = last / self.lowest

    def check(self) -> None:
        self._read()
        if not self.first_norms:
            self.first_norms = self._norms()
        if not in_parts(self.hub.module, self.hub.readings.copies):
            self._look_at_what_is_held()
            self._look_at_what_is_idle()
            self._look_at_what_is_kept_apart()
        self._look_at_clearing()
        self._look_at_replicas()
        kinds = [
            (type(o).__name__, max((float(g.get("lr", 0.0)) for g in o.param_groups), default=0.0))
            for o in self.hub.readings.optimizers
        ]
        for verdict in self.rivals.verdicts(self.hub.step, self.planned, kinds):
            self._say(verdict)

    def judged(self) -> None:
        hub = self.hub
        if hub.distributed and hub.curve.recent:
            self._grow(min(hub.curve.recent), hub.curve.recent[-1])  # the mean of all ranks
        self.help.judge()
        if hub.outcome.bad:
            self._judge_rate()
            self._judge_first_steps()
        if hub.outcome.bad or hub.checking:
            self._judge_decay()
        if self.auto_remedy:
            self.help.early()  # before anybody acts on a verdict that tells less

    def act(self) -> None:
        ratio, self._slow = self._slow, None
        if not self.auto_remedy:
            return
        if ratio is not None:
            self.help.act(ratio)
        self.help.heed()

    @property
    def planned(self) -> float:
        """Optimizer steps in all; ten times those made where that is not known."""
        curve = self.hub.curve
        return curve.horizon if math.isfinite(curve.horizon) else 10.0 * max(curve.n, 1)

    def epoch_end(self) -> None:
        """What the schedules that follow a metric have been shown."""
        hub = self.hub
        for config in hub.trainer.lr_scheduler_configs:
            value = hub.trainer.callback_metrics.get(config.monitor) if config.reduce_on_plateau else None
            if value is None or not hub.curve.n:
                continue  # where there is one, the schedule itself waits for it here
            seen = self._monitored.setdefault(config.monitor, [])
            seen.append((float(value), hub.curve.level(max(8, round(hub.curve.n / (len(seen) + 1))))))
            if len(seen) <= 64:
                values, losses = zip(*seen, strict=True)
                shown = config.monitor, config.scheduler.mode, values, losses
                self._say(schedules.waits_for_worse(*shown, self.scheduled, self.top_rate))

    def finish(self) -> None:
        labels = self.hub.labels
        found = labels.outweighed() if isinstance(labels, SumLabels) else None
        if found is not None:
            self._say(rates.outweighed(*found))
        elif self.hub.half_way:
            self._judge_regularization()
        self._judge_first_steps()
        if self.hub.outcome.state == "never learned":  # which a rate that rose throughout shows only now
            self._judge_rate()

    def detach(self) -> None:
        self.hub.rate.factors.pop(self.state_key, None)
        for handle in self._hooks:
            handle.remove()
        self._hooks.clear()

    def numbers(self) -> Mapping[str, float]:
        values = {"stall/rate/schedule": self.scheduled}
        if self.medians:
            finite = [r for r in self.ratios.values() if math.isfinite(r)]
            values |= {
                "stall/updates/median_ratio": self.medians[-1],
                "stall/updates/largest_ratio": max(finite, default=0.0),
            }
            values |= {f"stall/updates/group_{i}_ratio": own for i, (own, _) in self.by_group.items()}
            values |= themes.updates("ratio", self.medians[-1])
            values |= themes.updates("largest_ratio", max(finite, default=0.0))
        if self.cosines:
            values["stall/updates/overshoot"] = self.cosines[-1]
        return values

    def panels(self) -> Mapping[str, Sequence[str]]:
        return {
            themes.UPDATES: ["stall/updates/log10_.*"],
            themes.RATE: ["stall/rate/schedule$"],
        }

    def share(self) -> Mapping[str, float]:
        return {"weights": self._fingerprint()}

    def state(self) -> dict[str, Any]:
        state = {name: getattr(self, name) for name in _KEPT}
        return {
            **{name: v.copy() if isinstance(v, list | dict) else v for name, v in state.items()},
            "climb": self.climb.state_dict(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._reset()
        for name, value in state.items():
            if name == "climb":
                self.climb.load_state_dict(value)
            elif name in _KEPT:
                setattr(self, name, value.copy() if isinstance(value, list | dict) else value)

    # ------------------------------------------------------------------ certain facts

    def _read(self) -> None:
        hub = self.hub
        self.ratios = hub.readings.update_ratios()
        tables = [hub.readings.table(optimizer) for optimizer in hub.readings.optimizers]
        names = [n for table in tables for n in table.names]
        params = [p for table in tables for p in table.params]
        # a bias starts near zero, so that its first steps are many times its size in any run
        matrices = {n for n, p in zip(names, params, strict=True) if p.ndim >= 2}
        moved = [r for n, r in self.ratios.items() if n in matrices and 0 < r < math.inf]
        loosened = hub.mended.get("clipping-too-tight", 0)
        if loosened > self._loosened_at:
            self._loosened_at = loosened
            self.medians.clear()  # steps were short because of a limit
        if moved:
            self.medians.append(median(moved))
            del self.medians[:-8]
            if hub.step <= LOOK:
                self.largest_early = max(self.largest_early, self.medians[-1])
            hub.first_steps = self.largest_early
        by_optimizer = [[n for n, p in zip(t.names, t.params, strict=True) if p.ndim >= 2] for t in tables]
        self.rivals.read(self.ratios, by_optimizer, hub.step <= LOOK)
        self.by_group = self._medians_by_group(dict(zip((id(p) for p in params), names, strict=True)))
        if self._cosine is not None:
            value = float(self._cosine)
            if math.isfinite(value):
                self.cosines.append(value)
                del self.cosines[:-8]
            self._cosine = None

    def _medians_by_group(self, names: Mapping[int, str]) -> dict[int, tuple[float, float]]:
        """Of each parameter group, where there are several: the median ratio, and its share of all weights."""
        groups = self.hub.readings.optimizers[0].param_groups
        found = {}
        held = sum(p.numel() for g in groups for p in g["params"] if p.ndim >= 2)
        for i, group in enumerate(groups if len(groups) > 1 else ()):
            own = [p for p in group["params"] if p.ndim >= 2 and id(p) in names]
            moved = [r for p in own if 0 < (r := self.ratios.get(names[id(p)], 0.0)) < math.inf]
            if moved:
                found[i] = median(moved), sum(p.numel() for p in own) / max(held, 1)
        return found

    def _look_at_what_is_held(self) -> None:
        """Parameters that the loss depends on and no optimizer holds."""
        if self._graph_params is None or not self.hub.looking:
            return
        held = {id(p) for o in self.hub.readings.optimizers for g in o.param_groups for p in g["params"]}
        loose = [p for p in self._graph_params if id(p) not in held]
        if not loose:
            return
        ids = {id(p) for p in loose}
        layers = [
            (plain_name(name), module)
            for name, module in self.hub.module.named_modules()
            if any(id(p) in ids for p in module.parameters(recurse=False))
        ]
        registered = {id(p) for p in self.hub.module.parameters()}
        hidden = [p for p in loose if id(p) not in registered]
        fresh = [name for name, module in layers if untrained(module)]
        count = sum(p.numel() for p in loose)
        total = sum(p.numel() for p in self._graph_params)
        where = [*fresh, *(name for name, _ in layers if name not in fresh)]
        if hidden:
            where.append(f"{len(hidden)} parameters that are no part of the LightningModule (kept in a plain list?)")
        # a loose layer with trained weights may be a frozen backbone; one straight from its initialisation is a slip
        self._say(held_by.loose(count, total, where, certain=bool(fresh or hidden)))

    def _look_at_what_is_kept_apart(self) -> None:
        """Tensors that ask for a gradient step after step, are no part of the module, and that no optimizer holds."""
        hub = self.hub
        if hub.here < 16 or not self._lasting:
            return
        held = {id(p) for o in hub.readings.optimizers for g in o.param_groups for p in g["params"]}
        given = {f.tensor.untyped_storage().data_ptr() for f in fields(hub.batch[0])}
        apart = [t for i, t in self._lasting.items() if i not in held and t.grad is not None]
        apart = [t for t in apart if t.untyped_storage().data_ptr() not in given]
        total = sum(p.numel() for p in hub.module.parameters()) + sum(t.numel() for t in apart)
        self._say(held_by.kept_apart([tuple(t.shape) for t in apart], sum(t.numel() for t in apart), total))
        self._lasting.clear()

    def _look_at_what_is_idle(self) -> None:
        """Layers as torch drew them that never get a gradient: frozen, detached, run without grad, or not used."""
        if self._idle & self._with_grad:  # frozen for a while only
            self._idle.clear()
            self.retract("parameters-not-optimized")
        if self.hub.here < 8 or self._idle_looks == 2 or not self._with_grad:
            return
        self._idle_looks += 1
        idle, still, tables = [], [], True
        self._idle.clear()
        params = (p for o in self.hub.readings.optimizers for g in o.param_groups for p in g["params"])
        wanted = {id(p) for p in params if p.requires_grad}
        for name, module in self.hub.module.named_modules():
            own = list(module.parameters(recurse=False))
            whole = plain_name(name)
            known = {f"{whole}.{n}" if whole else n for n, _ in module.named_parameters(recurse=False)}
            found = (whole, sum(p.numel() for p in own), not any(p.requires_grad for p in own))
            if not own:
                continue
            fresh = untrained(module)
            if not any(id(p) in self._with_grad for p in own):
                # what is to be trained and gets no gradient is idle, however its weights were drawn
                if fresh or all(id(p) in wanted for p in own):
                    idle.append(found)
                    tables = tables and isinstance(module, nn.Embedding | nn.EmbeddingBag)
                    self._idle.update(map(id, own))
            elif fresh and known and not known & self._sloped:
                still.append(found)  # each gradient so far was exactly 0
        total = sum(p.numel() for p in self.hub.module.parameters())
        self._say(held_by.idle(idle, total, tables) or held_by.without_slope(still, total))

    def _look_at_clearing(self) -> None:
        hub = self.hub
        if not hub.looking or hub.here < 4:
            return
        for i, optimizer in enumerate(hub.readings.optimizers):
            params = [p for g in optimizer.param_groups for p in g["params"]]
            steps = self._stepped.get(id(optimizer), 0) - 1
            uncleared = self._uncleared.get(id(optimizer))
            gone = self._gone.get(id(optimizer), [])
            emptied = self._emptied.get(id(optimizer), [])
            had = [p for p in params if id(p) in self._with_grad]
            if steps >= 3 and uncleared is not None and float(uncleared) >= 0.9 * steps:
                self._say(held_by.not_cleared(i, int(uncleared), steps))
            elif len(gone) >= 3 and bool(torch.stack(gone).all()):
                self._say(held_by.cleared_early(i, len(gone), to_zero=True))
            elif len(emptied) >= 3 and self.rate > 0 and self._still(optimizer) and bool(torch.stack(emptied).all()):
                self._say(held_by.cleared_early(i, len(emptied), to_zero=True))
            elif (
                steps < 3 or not params or id(optimizer) in self._found or type(optimizer).__name__ == "_MockOptimizer"
            ):
                continue
            elif had:
                # gradients were there after the backward pass, and not one weight has moved
                if self.ratios and not any(self.ratios.values()) and not optimizer.state and self.rate > 0:
                    self._say(held_by.cleared_early(i, steps, to_zero=False))
            elif steps >= 7 and (not hub.module.automatic_optimization or hub.curve.n or hub.curve.bad_steps):
                # a training step that returned no loss has left its batch out, and nothing was to be had from it
                ids = set(map(id, params))
                names = [plain_name(n) for n, p in hub.module.named_parameters() if id(p) in ids]
                self._say(held_by.without_gradient(i, steps, names, len(params)))

    def _still(self, optimizer: Optimizer) -> bool:
        """Whether the last step that was measured has moved no weight by more than its decay."""
        decay = max((float(g.get("weight_decay", 0.0)) for g in optimizer.param_groups), default=0.0)
        return bool(self.ratios) and max(self.ratios.values()) <= 1.01 * self.rate * decay

    def _fingerprint(self) -> float:
        """A sum over a few elements of every weight: equal on all replicas of a data-parallel run."""
        if "DDP" not in type(self.hub.trainer.strategy).__name__:
            return 0.0
        with torch.no_grad():
            parts = [few(p).double().sum() for p in self.hub.module.parameters() if p.is_floating_point()]
        return float(torch.stack(parts).sum().float()) if parts else 0.0

    def _look_at_replicas(self) -> None:
        values = self.hub.shared.get("weights", [])
        finite = [v for v in values if math.isfinite(v)]
        if len(finite) < 2:
            return
        spread = max(finite) - min(finite)
        if spread > 1e-6 * max(1.0, max(map(abs, finite))):
            middle, remedy = median(finite), None
            if self.auto_remedy:
                self.hub.trainer.should_stop = True  # all ranks know these numbers, so that all stop
                remedy = f"stopped the run at step {self.hub.step}"
            self.tell(
                "replicas-diverged",
                f"The ranks hold different weights: a sum over them spreads by {spread:.3g}; 0 would be right.",
                severity="critical",
                evidence={"spread": spread, "strength": 1.0},
                where=[f"rank {r}" for r, v in enumerate(values) if abs(v - middle) > 1e-6 * max(1.0, abs(middle))],
                remedy=remedy,
            )

    # ------------------------------------------------------------------ once the run fares badly

    def _judge_rate(self) -> None:
        hub = self.hub
        state, e = hub.outcome.state, hub.outcome.evidence
        if self.steps_seen and self.top_rate == 0 and state in ("never learned", "stalled"):
            self._say(rates.nought())
            return
        ratio = median(self.medians) if self.medians else math.nan
        planned = self.planned
        spent = self.scheduled <= schedules.DEAD * self.top_rate
        flat = state in ("never learned", "stalled") and not spent
        groups = hub.readings.optimizers[0].param_groups
        slow = {i: v for i, (r, _) in self.by_group.items() if (v := rates.too_low(r, planned, float(groups[i]["lr"])))}
        worst = max(slow, key=lambda i: self.by_group[i][1], default=None)
        if flat and worst is not None and len(slow) < len(self.by_group) and self.by_group[worst][1] >= rates.MOST_OF:
            self._say(rates.of_group(slow[worst], worst, self.by_group[worst][1]))
            return
        low = rates.too_low(ratio, planned, self.rate) if flat else None
        if low is not None:
            self._say(low)
            self._slow = ratio
            return
        unlearnt = state == "never learned" or (hub.baseline is not None and hub.explained < schedules.HARDLY)
        if (
            hub.ending
            and unlearnt
            and hub.curve.n >= LONG_ENOUGH
            and hub.curve.rising_until >= schedules.RISING * hub.curve.n
        ):
            self._say(schedules.never_risen(ratio, self.rate, hub.curve.n))
        overshoot = median(self.cosines) if self.cosines else 0.0
        self._say(rates.too_high(state, e, ratio, self.largest_early, overshoot, self.growth, self.rate))

    def _judge_first_steps(self) -> None:
        """Units where no gradient flows, in a run whose first steps were longer than the weights: these took them there."""
        hub = self.hub
        explained = hub.outcome.evidence.get("explained", 0.0) if hub.baseline is not None else 0.0
        stuck = [f for f in hub.journal.known() if f.code in rates.STUCK]
        # units that fired before the first step, and do no more, need no step as long as all the weights
        lived = any(f.evidence.get("dead_at_first", 1.0) < rates.ALIVE for f in stuck)
        long = rates.THROWN if lived else rates.ABSURD
        if stuck and self.largest_early > long and (hub.outcome.bad or explained < rates.NEARLY):
            self._say(rates.threw(self.largest_early, self.top_rate, stuck[0].code))

    def _judge_decay(self) -> None:
        hub = self.hub
        planned, state = hub.curve.horizon, hub.outcome.state
        if self.top_rate > 0 and schedules.spent_early(hub.step, self.alive_until, planned):
            flat = state in ("never learned", "stalled")
            falling = None if flat else schedules.still_falling(hub.curve, self.alive_until)
            gone = schedules.nothing_left(self.scheduled, self.top_rate, self.alive_until, planned)
            # a schedule that follows the loss lowers the rate for a reason
            follows = any(c.reduce_on_plateau for c in hub.trainer.lr_scheduler_configs)
            certain = falling is not None or (gone and not follows)
            explained = hub.outcome.evidence.get("explained", 0.0) if hub.baseline is not None else 0.0
            if (flat or certain) and explained < schedules.LEARNT:
                level = hub.curve.level(20) if hub.curve.n else math.nan
                early = self.scheduled, self.top_rate, self.alive_until, planned, level, falling, certain
                self._say(schedules.decayed_early(*early))
        if hub.may_wait:
            self._judge_regularization()

    def _look_at_schedules(self) -> None:
        """Before the first step: whether each schedule counts in the unit it is stepped in."""
        trainer, steps = self.hub.trainer, self.hub.curve.horizon
        epochs = steps / max(1.0, trainer.num_training_batches / trainer.accumulate_grad_batches)
        for config in trainer.lr_scheduler_configs if math.isfinite(steps) and steps > 0 else ():
            schedule = config.scheduler
            if getattr(schedule, "end_factor", 0.0) >= getattr(schedule, "start_factor", math.inf):
                continue  # LinearLR as a warm-up: it ends, and the rate stays
            if type(schedule).__name__ == "ConstantLR":
                continue
            lengths = (getattr(schedule, name, None) for name in ("total_steps", "T_max", "total_iters"))
            length = next((float(v) for v in lengths if isinstance(v, int | float) and v > 0), None)
            calls = (epochs if config.interval == "epoch" else steps) / config.frequency
            if length is not None and calls >= 1 and not config.reduce_on_plateau:
                kind = type(schedule).__name__
                self._say(schedules.wrong_unit(kind, length, config.interval, calls, steps, epochs))

    def _say(self, verdict: Verdict | None) -> None:
        if verdict is not None:
            self.tell(**vars(verdict))

    def _judge_regularization(self) -> None:
        hub = self.hub
        if hub.outcome.state not in ("never learned", "stalled", "oscillating") and not hub.ending:
            return
        groups = self.hub.readings.optimizers[0].param_groups
        decay = max(float(g.get("weight_decay", 0.0)) for g in groups)
        scaled = any(g.get("decoupled_weight_decay") is False and "betas" in g for g in groups)
        usual = rates.USUAL_IN_GRADIENT if scaled else rates.USUAL
        worn = rates.worn_away(self.first_norms, self._norms(), decay, self._penalised, usual)
        heavy = [
            (plain_name(n), m.p)
            for n, m in self.hub.module.named_modules()
            if isinstance(m, nn.modules.dropout._DropoutNd) and m.p > rates.DROPOUT
        ]
        self._say(worn or rates.dropped(heavy) or self._hidden_by_dropout())

    def _hidden_by_dropout(self) -> Verdict | None:
        """What dropout costs the loss of this batch, from the batch run again with it and without, now and then."""
        hub = self.hub
        layers = [
            m for m in hub.module.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.training and m.p > 0
        ]
        again = hub.step >= 2 * self._undropped or hub.ending
        if not layers or hub.baseline is None or self.hub.batch[0] is None or not again:
            return None
        self._undropped = hub.step
        dropped = run_again(hub.trainer, hub.module, self.hub.batch)
        for layer in layers:
            layer.training = False
        try:
            whole = run_again(hub.trainer, hub.module, self.hub.batch)
        finally:
            for layer in layers:
                layer.training = True
        if dropped is None or whole is None:
            return None
        noise = hub.outcome.evidence.get("noise", 0.0)
        return rates.hidden(
            float(dropped.detach()), float(whole.detach()), hub.baseline, noise, max(m.p for m in layers)
        )

    def _norms(self) -> dict[str, float]:
        """Norm of each weight matrix of the first optimizer."""
        names, params = self.hub.readings.named(self.hub.readings.optimizers[0])
        matrices = [(n, p) for n, p in zip(names, params, strict=True) if p.ndim >= 2 and p.layout is torch.strided]
        if not matrices:
            return {}
        norms = gradient_norms([p.detach() for _, p in matrices], copies=self.hub.readings.copies).tolist()
        return {name: norm for (name, _), norm in zip(matrices, norms, strict=True)}
