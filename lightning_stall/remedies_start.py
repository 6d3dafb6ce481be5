"""New weights: for one layer whose units are dead, or for a whole model that began where nothing can be learnt."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Module

from lightning_stall.outcome import LossCurve
from lightning_stall.readings import plain_name

if TYPE_CHECKING:
    from lightning_stall.callbacks.activation_health import ActivationHealth
    from lightning_stall.finding import Finding
    from lightning_stall.trials.records import Conclusion

YOUNG = 30  # optimizer steps of a suspicious start before a copy is asked
TRIES = 4  # times that one is, each after twice as many steps
TO_COME = 0.25  # share of the planned steps that must be left for new weights to learn in
LEARNT = 0.5  # share of a constant predictor's loss, from which on a run has outgrown its start
STEPS = 100  # optimizer steps that a copy may take to show that it learns from another start


def start_afresh(modules: Iterable[Module], optimizer_states: Iterable[dict[Any, Any]]) -> int:
    """Draw these modules' weights anew, and forget what optimizers know of them; how many modules were drawn."""
    drawn = draw_anew(modules)
    forget((p for module in drawn for p in module.parameters(recurse=False)), optimizer_states)
    return len(drawn)


def draw_anew(modules: Iterable[Module]) -> list[Module]:
    """Give these modules the weights that they draw themselves; those that hold no trained weights keep what they have.

    Returns the modules that were drawn.
    """
    drawn = []
    for module in modules:
        own = list(module.parameters(recurse=False))
        reset = own_draw(module)
        if reset is not None and (not own or any(p.requires_grad for p in own)):
            with torch.no_grad():
                reset()
            drawn.append(module)
    return drawn


def forget(parameters: Iterable[Tensor], optimizer_states: Iterable[dict[Any, Any]]) -> None:
    """Take what optimizers know of these out of their states."""
    gone = list(parameters)
    for state in optimizer_states:
        for p in gone:
            state.pop(p, None)


def own_draw(module: Module) -> Callable[[], Any] | None:
    """The method by which a module draws its first weights."""
    reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    return reset if callable(reset) else None


class Renewal:
    """Draws weights anew where the user allows it: those of a dead layer, or, on the word of a copy, all of them.

    Args:
        owner: the `ActivationHealth` that found what is wrong, and speaks.
    """

    def __init__(self, owner: ActivationHealth) -> None:
        self.owner = owner
        self.asked_at = 0  # optimizer step at which a copy was asked last
        self.tries = 0
        self.done_at = 0  # optimizer step at which all weights were drawn anew; 0 where they were not

    @property
    def allowed(self) -> bool:
        return self.owner.auto_remedy and self.owner.reinitialize and not self.owner.hub.distributed

    @property
    def waits(self) -> bool:
        """Whether a start is under suspicion that a copy may yet speak on: no rate is to be raised meanwhile."""
        undecided = self.allowed and not self.done_at and self.tries == 0 and self._time_left
        return undecided and bool(self._known)

    def layer(self, name: str) -> str | None:
        """Give a dead layer new weights, once; what was done."""
        owner, hub = self.owner, self.owner.hub
        if not self.allowed or name in owner.renewed:
            return None
        module = dict(hub.module.named_modules()).get(name)
        if module is None or own_draw(module) is None:
            return None
        if not self._time_left or any(f.code == "learning-rate-too-high" for f in hub.journal.known()):
            return None  # steps as long as those that killed its units would kill them again
        owner.renewed.append(name)
        start_afresh([module], self._states)
        return f"gave `{name}` new weights by its own `reset_parameters` at step {hub.step}, and cleared its optimizer state"

    def factors(self, names: Iterable[str]) -> str | None:
        """Of weights that are all 0 in products with each other, draw one a module, as a linear layer would; what was done."""
        if not self.allowed:
            return None
        hub, first = self.owner.hub, dict[str, str]()
        for name in names:
            first.setdefault(name.rpartition(".")[0], name)
        held = {plain_name(n): p for n, p in hub.module.named_parameters()}
        drawn = [held[name] for name in first.values() if name in held]
        for p in drawn:
            with torch.no_grad():
                torch.nn.init.kaiming_uniform_(p, a=math.sqrt(5))
        forget(drawn, self._states)
        return f"drew {len(drawn)} of these weights as a linear layer does, at step {hub.step}" if drawn else None

    def judge(self) -> None:
        """At each verdict on the run: begin anew where the start is known to be bad, and fresh weights do learn."""
        if not self.allowed or self.done_at or not self._time_left or not self._suspected:
            return
        hub = self.owner.hub
        if self._shown is not None:
            self._draw(hub.module.modules(), None)
            return
        if self.tries >= TRIES or hub.step < max(YOUNG, 2 * self.asked_at):
            return
        if hub.trials is None or hub.trials.declined is not None:
            self._by_what_was_measured()
        elif hub.trials.ready:
            self.asked_at, self.tries = hub.step, self.tries + 1
            said = hub.trials.fresh_start(STEPS)
            if said:
                self._draw(hub.module.modules(), said[0])
            elif hub.trials.declined is not None:
                self._by_what_was_measured()

    # ------------------------------------------------------------------ what speaks for it

    @property
    def _states(self) -> list[dict[Any, Any]]:
        return [o.state for o in self.owner.hub.readings.optimizers]

    @property
    def _known(self) -> list[Finding]:
        """What is known of a bad start, spoken of or not."""
        return [f for f in self.owner.hub.journal.known() if f.code == "bad-initialization"]

    @property
    def _time_left(self) -> bool:
        curve, hub = self.owner.hub.curve, self.owner.hub
        return not hub.ending and hub.step <= (1 - TO_COME) * curve.horizon

    @property
    def _suspected(self) -> bool:
        hub = self.owner.hub
        outgrown = hub.explained >= LEARNT and not hub.gate_open
        return not outgrown and bool(self._known)

    @property
    def _shown(self) -> Any:
        """A trial that has borne the suspicion out."""
        told = self.owner.hub.journal.findings
        return next((f for f in told if f.code == "bad-initialization" and f.evidence.get("trial", 0.0) > 0), None)

    def _by_what_was_measured(self) -> None:
        """Where no copy can be asked: the layers whose first weights were found unfit, once the run fares badly."""
        hub = self.owner.hub
        if not hub.gate_open or hub.outcome.state not in ("never learned", "diverging", "stalled"):
            return
        places = {place for f in self._known for place in f.where}
        found = [m for name, m in hub.module.named_modules() if name and name in places]
        if found:
            self._draw(found, None)

    def _draw(self, modules: Iterable[Module], why: Conclusion | None) -> None:
        """Draw these anew, and tell it as the cause, with what a copy has shown where one was asked just now."""
        hub = self.owner.hub
        count = start_afresh(modules, self._states)
        if not count:
            return
        level = hub.curve.level(min(20, hub.curve.n)) if hub.curve.n else math.nan
        self.done_at = hub.mended["bad-initialization"] = hub.step
        hub.curve.load_state_dict(LossCurve(horizon=hub.curve.horizon).state_dict())
        stands = f"The loss stands at {level:.4g} at step {hub.step}, with the weights that this run began with."
        self.owner.tell(
            "bad-initialization",
            why.summary if why is not None else stands,
            evidence=why.evidence if why is not None else {"level": level},
            remedy=f"gave {count} layers new weights by their own `reset_parameters` at step {hub.step}",
        )
