"""ActivationHealth: units that are dead or at their limits, weights that start badly, modules in the wrong mode."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode

from lightning_stall.callback import StallCallback, guarded
from lightning_stall.diagnosis import stands_alone
from lightning_stall.measure.activations import Kind, activations, at_the_edge, fired, spread
from lightning_stall.measure.batches import fields
from lightning_stall.measure.entries import EntryHooks
from lightning_stall.measure.initial import Start, starts
from lightning_stall.readings import plain_name, run_again
from lightning_stall.remedies import swap
from lightning_stall.remedies_start import Renewal
from lightning_stall.sinks import clean_tag, themes

DEAD = 0.9  # share of a layer's units that are zero for every sample seen; less is common in healthy nets
FEW = 8  # units of a layer, below which it weighs less that all of them are dead
CHOSEN = 0.3  # the same for the rows of a softmax before it has learnt what to look at
SATURATED = 0.6  # share of a layer's values at the limits
STUCK = 0.2  # share of what is trained that may be stuck at 0 before it is worth a word
EARLY = 16  # optimizer steps in which a model still is as it was made
DEEP = 5  # activations in a row from which on a signal may fade
FADED = 0.01  # share of the spread between samples that is left, under which it has
MEMORY = 4  # checks over which a unit must not have fired
FAR_ERROR = 1000.0  # times a constant predictor's loss, that the first loss of a regression may be
COME_DOWN = 0.5  # share of a constant predictor's loss, from which on a run has made up for its start
SQUARES = ("mse", "l1", "smooth l1")
# what a start far too large brings with it: steps that are nothing beside such weights
COMES_OF_IT = frozenset({"learning-rate-too-low", "exploding-gradients", "vanishing-gradients"})
FAR_OFF = 8.0  # times the loss of even odds, that a classifier's first loss may be
GAIN = (0.03, 8.0)  # standard deviation times sqrt(fan_in) within which training starts


@dataclass
class Layer:
    """What is known of one activation: the last checks, newest last."""

    name: str
    kind: Kind
    order: int
    masks: list[Tensor] = field(default_factory=list)  # which units fired, on the device
    edges: list[float] = field(default_factory=list)  # share of values at the limits
    dead: float = 0.0
    dead_at_first: float = math.nan  # by the first look alone


class ActivationHealth(StallCallback):
    """Looks at activations on checks, at weights before the first step, and at the modules' modes.

    Says mode-mismatch, which is certain; and, once the run fares badly, dead-activations, saturated-activations,
    bad-initialization, and vanishing-gradients where the forward pass loses what tells samples apart. It reads what autograd keeps anyway, so functional calls count and no hook is put on the model;
    a compiled or checkpointed part is not seen.

    Logs: `stall/activations/dead/<layer>`, `stall/activations/saturated/<layer>` (shares from 0 to 1).

    Args:
        auto_remedy: with `reinitialize`, give new weights to a dead layer, and to all that began badly.
        reinitialize: allow it: once, by the layers' own `reset_parameters`, their optimizer state cleared. All begin anew
            only where a copy has learnt from fresh weights what the run has not; where none can be asked, only the layers
            whose first weights were found unfit. One device only.
        every_n_steps: optimizer steps between checks; None takes the Trainer's `log_every_n_steps`.
        mute: codes never to be told.

    >>> from lightning_stall.testing import blobs, healthy, watch
    >>> watch(healthy(), blobs(), ActivationHealth()).findings
    []
    """

    reads_norms = False
    codes = (
        "dead-activations",
        "saturated-activations",
        "vanishing-gradients",
        "bad-initialization",
        "mode-mismatch",
    )

    def __init__(
        self,
        *,
        auto_remedy: bool = False,
        reinitialize: bool = False,
        every_n_steps: int | None = None,
        mute: Sequence[str] = (),
    ) -> None:
        super().__init__(auto_remedy=auto_remedy, every_n_steps=every_n_steps, mute=mute)
        self.reinitialize = reinitialize
        self._reset()

    def _reset(self) -> None:
        self.layers: dict[str, Layer] = {}
        self.renewed: list[str] = []  # layers given new weights
        self.renewal = Renewal(self)
        self.starts: list[Start] = []
        self.faded: list[float] = []  # spread over samples behind the last activation over that behind the first
        self.depth = 0  # activations in a row
        self._spreads: list[Tensor] = []
        self._fresh: list[tuple[Layer, Tensor | None, Tensor]] = []
        self._looked_at_validation = False
        self._looked_at_entry = False
        self._trained = 0  # parameters that ask for a gradient, at the last check
        self._undo: Any = None

    @property
    def may_begin_anew(self) -> bool:
        """Whether it is yet to be asked if other first weights would learn."""
        return self.renewal.waits

    # ------------------------------------------------------------------ verbs

    def begin(self) -> None:
        hub = self.hub
        if not hub.step:
            self._reset()
            self.starts = starts(hub.module)
        self._looked_at_validation = False

    @property
    def rare(self) -> frozenset[str]:
        return frozenset({"before_backward"})

    def before_backward(self, loss: Tensor) -> None:
        hub = self.hub
        if not hub.checking:
            return
        trained = sum(p.requires_grad for p in hub.module.parameters())
        if hub.checks <= 2 or trained != self._trained:  # what was frozen may have been woken
            self._look_at_modes()
        self._trained = trained
        names = {id(p): plain_name(n) for n, p in hub.module.named_parameters()}
        self._fresh = []
        found = activations(loss)
        for activation in found:
            if activation.kind != "relu" and (not activation.hidden or activation.gate):
                continue
            if activation.kind == "softmax" and hub.step > EARLY:
                continue  # attention may well learn to look at one place
            owner = names.get(activation.source, "").rpartition(".")[0]
            name = f"{activation.kind} after {owner}" if owner else f"{activation.kind} {len(self._fresh)}"
            layer = self.layers.setdefault(name, Layer(name, activation.kind, activation.order))
            if activation.kind == "relu":
                self._fresh.append(
                    (layer, fired(activation.output, activation.channel), activation.output.new_zeros(()))
                )
            else:
                edge = at_the_edge(activation.output, activation.kind, activation.channel)
                self._fresh.append((layer, None, edge))
        if hub.step <= EARLY:
            hidden = [a for a in found if a.kind != "softmax" and a.hidden and len(a.output) > 1]
            self._spreads = [spread(a.output) for a in hidden] if len(hidden) >= DEEP else []

    def check(self) -> None:
        for layer, mask, edge in self._fresh:
            if mask is not None:
                if layer.masks and layer.masks[-1].shape != mask.shape:
                    layer.masks.clear()
                layer.masks.append(mask)
                del layer.masks[:-MEMORY]
                layer.dead = 1.0 - float(torch.stack(layer.masks).any(0).float().mean())
                if math.isnan(layer.dead_at_first):
                    layer.dead_at_first = layer.dead
            else:
                layer.edges.append(float(edge))
                del layer.edges[:-MEMORY]
        self._fresh = []
        if self._spreads:
            first, *_, last = (float(v) for v in self._spreads)
            self.faded.append(last / first if first > 0 else math.nan)
            self.depth, self._spreads = len(self._spreads), []
        self._look_for_dead()
        self._look_for_saturated()
        self._look_at_start()
        if self.hub.step in (4, 8):
            self._look_at_zeros()

    def judged(self) -> None:
        if self.hub.outcome.state in ("never learned", "stalled"):
            self._look_for_faded()
        if self.hub.outcome.state == "never learned" and self.hub.may_wait and not self._looked_at_entry:
            self._looked_at_entry = True
            self._look_at_entry()
        if self.hub.gate_open:
            self._look_at_first_loss()

    def act(self) -> None:
        self.renewal.judge()

    def finish(self) -> None:
        if self.hub.gate_open or self._came_down_late():
            self._look_at_first_loss(certain=not self.hub.gate_open)

    def _came_down_late(self) -> bool:
        """Whether most of the run's steps went into coming down to what a classifier that knows nothing has."""
        curve, even = self.hub.curve, self.hub.labels.even_odds
        return even is not None and 2 * sum(mean > even for mean in curve.means) > len(curve.means)

    @guarded
    def on_validation_batch_start(self, trainer: Any, pl_module: Any, *rest: Any, **named: Any) -> None:
        """Watch one validation step for dropout that is still active."""
        if self._looked_at_validation or trainer.sanity_checking or getattr(pl_module, "_compiler_ctx", None):
            return
        self._looked_at_validation = True
        active = [n for n, m in pl_module.named_modules() if isinstance(m, _DropoutNd) and m.training and m.p > 0]
        seen = _Dropouts()

        def wrap(original: Any) -> Any:
            def watched(*args: Any, **kwargs: Any) -> Any:
                with seen:
                    return original(*args, **kwargs)

            return watched

        self._undo = swap(trainer.strategy, "validation_step", wrap)
        self._seen, self._active = seen, active

    @guarded
    def on_validation_batch_end(self, trainer: Any, pl_module: Any, *rest: Any, **named: Any) -> None:
        if self._undo is None:
            return
        self._undo()
        self._undo = None
        rates = self._seen.active
        if rates:
            self.tell(
                "mode-mismatch",
                f"Dropout was active in validation, {len(rates)} times in one step with a rate of {max(rates):.2g}; 0 times "
                "would be right.",
                advice="Pass the mode to the functional form, or use the module:\n\n"
                "    x = F.dropout(x, p=0.5, training=self.training)",
                evidence={"calls": float(len(rates)), "rate": max(rates), "strength": 0.8},
                where=[plain_name(n) for n in self._active] or ["a functional dropout"],
            )

    def detach(self) -> None:
        if self._undo is not None:
            self._undo()
            self._undo = None

    def numbers(self) -> Mapping[str, float]:
        values = {}
        for layer in self.layers.values():
            if layer.masks:
                values[f"stall/activations/dead/{clean_tag(layer.name)}"] = layer.dead
            elif layer.edges:
                values[f"stall/activations/saturated/{clean_tag(layer.name)}"] = layer.edges[-1]
        return values

    def panels(self) -> Mapping[str, Sequence[str]]:
        if not self.layers:
            return {}
        return {themes.ACTIVATIONS: ["stall/activations/dead/.*", "stall/activations/saturated/.*"]}

    def state(self) -> dict[str, Any]:
        return {
            "renewed": list(self.renewed),
            "begun_anew": self.renewal.done_at,
            "edges": {n: list(layer.edges) for n, layer in self.layers.items() if layer.edges},
            "starts": [[s.name, s.gain, s.alike] for s in self.starts],
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._reset()
        self.renewed = list(state["renewed"])
        self.renewal.done_at = state.get("begun_anew", 0)
        self.starts = [Start(*s) for s in state["starts"]]

    # ------------------------------------------------------------------ what it looks for

    def _look_for_dead(self) -> None:
        full = [x for x in self.layers.values() if len(x.masks) >= MEMORY]
        dead = sorted((x for x in full if x.dead >= DEAD), key=lambda x: -x.dead)
        if not dead:
            if full or not self.layers:  # or it is not known yet
                self.retract("dead-activations")
            return
        worst = dead[0]
        units = int(worst.masks[-1].numel())
        remedy = self.renewal.layer(worst.name.rpartition(" after ")[2])
        if remedy is not None:
            worst.masks.clear()
        # of a few units all may die by chance, and that they are so few is more to the point
        self.tell(
            "dead-activations",
            f"{100 * worst.dead:.0f} % of the {units} units of `{worst.name}` gave zero for every sample of the last "
            f"{MEMORY} checks; under {100 * DEAD:.0f} % is common.",
            advice="Lower the learning rate or the bias that killed them, or let a little through:\n\n    nn.LeakyReLU(0.01)",
            statistical=remedy is None,
            evidence={
                "dead": worst.dead,
                "dead_at_first": worst.dead_at_first,
                "units": float(units),
                "layers": float(len(dead)),
                "strength": worst.dead**4 * min(1.0, units / FEW),
            },
            where=[x.name for x in dead],
            remedy=remedy,
        )

    def _look_at_entry(self) -> None:
        """Whether the inputs die before the first layer: a ReLU on raw data leaves no trace in the graph."""
        hub, watched = self.hub, fields(self.hub.batch[0])
        hooks = EntryHooks()
        hooks.install(hub.module, watched)
        try:
            run_again(hub.trainer, hub.module, self.hub.batch)
            entries = hooks.read()
        finally:
            hooks.remove()
        given = [f for f in watched if f.floating and f.tensor.numel() and bool(f.tensor.detach().any())]
        if not given or not entries or any(e.rms != 0 for e in entries):
            return
        named = ", ".join(f"`{e.module}`" for e in entries[:3])
        self.tell(
            "dead-activations",
            f"All that enters {named} is 0, though `{given[0].name}` is not: what stands before it, such as a ReLU on "
            "values that are all negative, lets nothing through.",
            advice="Let the data reach a layer first, or standardise them:\n\n"
            "    nn.Sequential(nn.Linear(n, 64), nn.ReLU(), ...)  # no activation in front",
            statistical=True,
            evidence={"dead": 1.0, "entries": float(len(entries)), "strength": 1.0},
            where=[e.module for e in entries],
        )

    def _look_for_faded(self) -> None:
        """What tells samples apart at the first layer is gone at the last; gradients fade as much on their way back."""
        left = median(self.faded) if len(self.faded) >= MEMORY - 1 else math.nan
        if not left < FADED:
            return
        self.tell(
            "vanishing-gradients",
            f"What tells one sample from another shrinks {1 / max(left, 1e-30):.3g}-fold on its way through {self.depth} "
            f"activations, in the first {EARLY} steps, and gradients shrink as much on their way back; less than "
            f"{1 / FADED:.0f}-fold would do.",
            statistical=True,
            evidence={
                "left": left,
                "activations": float(self.depth),
                "strength": min(1.0, -math.log10(max(left, 1e-30)) / 6),
            },
            where=[layer.name for layer in sorted(self.layers.values(), key=lambda x: x.order)[-3:]],
        )

    def _look_for_saturated(self) -> None:
        full = [x for x in self.layers.values() if len(x.edges) >= MEMORY - 1]
        stuck = sorted((x for x in full if median(x.edges) >= _limit(x.kind)), key=lambda x: -median(x.edges))
        if not stuck:
            self.retract("saturated-activations")
            return
        worst = median(stuck[0].edges)
        self.tell(
            "saturated-activations",
            f"{100 * worst:.0f} % of the {'rows' if stuck[0].kind == 'softmax' else 'values'} of `{stuck[0].name}` stand at "
            f"its limits, where no gradient passes; under {100 * _limit(stuck[0].kind):.0f} % would do.",
            advice="Make the weights in front of it smaller, or normalise what goes in:\n\n"
            "    nn.init.xavier_uniform_(layer.weight)\n    # or put nn.LayerNorm(n) before the activation",
            statistical=True,
            evidence={"saturated": worst, "layers": float(len(stuck)), "strength": min(1.0, worst**2 + 0.1)},
            where=[x.name for x in stuck],
        )

    def _look_at_zeros(self) -> None:
        """Weights that are all 0 and whose gradients are, too: factors of one product, which nothing will ever move."""
        hub = self.hub
        if hub.distributed:
            return
        still, total = [], 0
        for optimizer in hub.readings.optimizers:
            names, params = hub.readings.named(optimizer)
            norms = hub.readings.gradients(optimizer).norms.tolist()
            total += sum(p.numel() for p in params)
            found = zip(names, params, norms, strict=True)
            still += [(n, p) for n, p, norm in found if p.ndim >= 2 and norm == 0.0 and p.grad is not None]
        if not still:
            return
        empty = (~torch.stack([p.detach().any() for _, p in still])).tolist()
        stuck = [name for (name, _), nothing in zip(still, empty, strict=True) if nothing]
        count = sum(p.numel() for (_, p), nothing in zip(still, empty, strict=True) if nothing)
        if len(stuck) < 2 or count < STUCK * total:
            return
        whole = count == total
        remedy = self.renewal.factors(stuck)
        self.tell(
            "bad-initialization",
            f"{len(stuck)} weights with {100 * count / total:.0f} % of what is trained are all 0, and so is each of their "
            f"gradients (step {hub.step}): in a product of two that are 0 neither ever moves; one of them may be.",
            advice="Start one of the two factors from random numbers, and only the other at 0:\n\n"
            "    nn.init.normal_(self.down, std=0.02)\n    nn.init.zeros_(self.up)",
            severity="critical" if whole else "warning",
            statistical=not whole and remedy is None,
            evidence={"weights": float(count), "of": float(total), "strength": 1.0},
            where=stuck,
            remedy=remedy,
        )

    def _look_at_start(self) -> None:
        if not self.starts:
            return
        hidden = self.starts[:-1] or self.starts
        alike = [s for s in hidden if s.alike]
        off = [s for s in self.starts if not s.alike and not GAIN[0] <= s.gain <= GAIN[1]]
        typical = median(s.gain for s in self.starts)
        most = len(alike) == len(hidden) or not GAIN[0] <= typical <= GAIN[1]
        if not (most or off):
            return
        if alike and len(alike) == len(hidden):
            seen = f"All weights of {len(alike)} of {len(self.starts)} layers started as one number, so their units stay alike"
            strength = 0.9
        elif off:
            worst = max(off, key=lambda s: abs(math.log(max(s.gain, 1e-12))))
            seen = (
                f"The weights of `{worst.name}` started with {worst.gain:.2g} / sqrt(fan_in) as their size; "
                f"{GAIN[0]:.2g} to {GAIN[1]:.2g} is where training starts, torch's default is 0.58"
            )
            far = max(GAIN[0] / max(worst.gain, 1e-12), worst.gain / GAIN[1])
            strength = min(1.0, 0.5 + 0.2 * math.log10(max(far, 1.0)) + 0.2 * most)
        else:
            return
        self.tell(
            "bad-initialization",
            f"{seen}.",
            advice="Leave torch's own initialisation, or fit it to the activation:\n\n"
            '    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu"); nn.init.zeros_(layer.bias)',
            statistical=True,
            evidence={"gain": typical, "layers": float(len(self.starts)), "strength": strength},
            where=[s.name for s in (*alike, *off)],
        )

    def _look_at_first_loss(self, certain: bool = False) -> None:
        """Where nothing else is known: before any step a classifier knows nothing, and should be as unsure as that."""
        hub = self.hub
        first, even = hub.curve.first[0] if hub.curve.first else math.nan, hub.labels.even_odds
        known = {f.code for f in hub.journal.known() if stands_alone(f)}
        if even is None:
            self._look_at_first_error(first, known)
            return
        if known or not FAR_OFF * even < first < math.inf:
            return
        self.tell(
            "bad-initialization",
            f"The first loss is {first:.4g}, where a classifier that knows nothing has {even:.4g}: its first outputs "
            f"are sure, and wrong; up to {FAR_OFF:g} times would pass.",
            advice="Make the last layer's weights smaller, so that it begins unsure:\n\n"
            "    nn.init.normal_(head.weight, std=0.02); nn.init.zeros_(head.bias)",
            statistical=not certain,
            evidence={
                "first_loss": first,
                "even_odds": even,
                "strength": min(0.9, 0.4 + 0.3 * math.log10(first / even / FAR_OFF)),
            },
            where=("the loss",),
        )

    def _look_at_first_error(self, first: float, known: set[str]) -> None:
        """The same of a regression: first outputs hundreds of times as far off as the targets' own spread."""
        hub = self.hub
        base = hub.baseline if hub.labels.kind in SQUARES else None
        if base is None or not known <= COMES_OF_IT or not hub.outcome.bad:
            return
        if not FAR_ERROR * base < first < math.inf or not hub.outcome.evidence.get("explained", 1.0) < COME_DOWN:
            return
        self.tell(
            "bad-initialization",
            f"The first loss is {first:.4g}, {first / base:.3g} times that of a constant prediction: the first outputs are "
            f"far larger than the targets, and the run has not made up for it; up to {FAR_ERROR:g} times would pass.",
            advice="Leave torch's own initialisation, or scale what adds up on its way through the layers:\n\n"
            "    x = x + layer(x) / depth**0.5",
            statistical=True,
            evidence={
                "first_loss": first,
                "baseline": base,
                "strength": min(0.9, 0.4 + 0.2 * math.log10(first / base / FAR_ERROR)),
            },
            where=("the loss",),
        )

    def _look_at_modes(self) -> None:
        """Subtrees in evaluation mode that are being trained. A BatchNorm frozen by itself is a choice, not a slip."""
        held = {
            id(p) for o in self.hub.readings.optimizers for g in o.param_groups for p in g["params"] if p.requires_grad
        }
        found: list[str] = []
        for name, module in self.hub.module.named_modules():
            if module.training or not any(True for _ in module.children()):
                continue
            params = list(module.parameters())
            trained = sum(id(p) in held for p in params)
            sensitive = [m for m in module.modules() if _acts_by_mode(m) and not m.training]
            if sensitive and trained > len(params) / 2 and not any(name.startswith(f"{up}.") or not up for up in found):
                found.append(name)
        if found:
            self.tell(
                "mode-mismatch",
                f"{len(found)} module(s) under training stand in evaluation mode, with dropout or BatchNorm inside; 0 would be "
                "right. Lightning leaves the mode as it finds it.",
                advice="Put them back before `fit`, or when it starts:\n\n    def on_train_epoch_start(self):\n        self.train()",
                evidence={"modules": float(len(found)), "strength": 0.8},
                where=[plain_name(n) or type(self.hub.module).__name__ for n in found],
            )


class _Dropouts(TorchFunctionMode):
    """Notes calls of a functional dropout that drops."""

    def __init__(self) -> None:
        super().__init__()
        self.active: list[float] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _DROPOUTS:
            rate = kwargs.get("p", args[1] if len(args) > 1 else 0.5)
            training = kwargs.get("training", kwargs.get("train", args[2] if len(args) > 2 else True))
            if training and rate > 0:
                self.active.append(float(rate))
        return func(*args, **kwargs)


_DROPOUTS = {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"}


def _limit(kind: Kind) -> float:
    """Share of its values, or rows, at the limits that passes."""
    return CHOSEN if kind == "softmax" else SATURATED


def _acts_by_mode(module: nn.Module) -> bool:
    if isinstance(module, _DropoutNd):
        return module.p > 0
    return isinstance(module, _BatchNorm) and module.track_running_stats
