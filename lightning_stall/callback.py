"""`StallCallback`, the one base class: what every callback of this package, and every third party's, is made of."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from torch import Tensor
from torch.optim import Optimizer

from lightning_stall.catalogue import CATALOGUE, check_codes
from lightning_stall.errors import LightningCallback, of_a_worker, require
from lightning_stall.finding import Finding, Severity
from lightning_stall.hub import DEFAULT_EVERY, Hub
from lightning_stall.readings import StepReading
from lightning_stall.sinks.console import tell

_F = TypeVar("_F", bound=Callable[..., Any])

# What the hub calls. Each is a no-op in the base class and is called only where a subclass overrides it.
VERBS = (
    "before_batch",
    "before_backward",
    "after_backward",
    "before_step",
    "micro_batch_end",
    "step_end",
    "observe",
    "judged",
    "act",
    "check",
    "validated",
    "epoch_end",
    "finish",
    "aborted",
    "conclude",
    "detach",
)

# What Lightning calls at every batch. It asks each callback for each of these, and passes over what is not callable.
_BATCH_HOOKS = (
    "on_train_batch_start",
    "on_train_batch_end",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_before_zero_grad",
    "on_validation_batch_start",
    "on_validation_batch_end",
)


class StallCallback(LightningCallback):
    """Watches a part of training, tells findings, and applies a remedy where it is told to.

    Override the verbs below, not Lightning's hooks; a hook that has no verb may be overridden with `@guarded` on it. No
    exception of a verb reaches the training: it switches this callback off, with one warning.

    Args:
        auto_remedy: apply this callback's remedy. Off, the run is bitwise the run without it.
        every_n_steps: optimizer steps between checks; None takes the Trainer's `log_every_n_steps`. Checks also fall on
            steps 1, 2, 4, 8, 16 and 32.
        mute: codes never to be told, as in `mute=("class-imbalance",)`.

    Raises:
        MisconfigurationException: for an unknown code or an `every_n_steps` below 1.

    >>> class LossWatch(StallCallback):
    ...     codes = ("loss-diverging",)
    ...
    ...     def observe(self, reading):
    ...         if reading.loss is not None and reading.loss > 100:
    ...             self.tell("loss-diverging", f"The loss is {reading.loss:.3g}; under 100 would be fine.")
    >>> from lightning_stall.testing import blobs, healthy, watch
    >>> watch(healthy(), blobs(), LossWatch()).findings
    []
    """

    codes: ClassVar[tuple[str, ...]] = ()  # what this callback may say
    shares: ClassVar[tuple[str, ...]] = ()  # names of the numbers `share` gives, one of each a rank and check
    reads_norms: ClassVar[bool] = True  # `before_step` or `observe` read each step's gradient norms, not checks' alone
    reads_norms_there: ClassVar[bool] = False  # the same where the model is on an accelerator, though not on a CPU
    reads_updates: ClassVar[bool] = False  # `check` reads `hub.readings.update_ratios()`
    last_word: ClassVar[bool] = False  # concludes after all others (the report)
    stands_aside = False  # set by the entry point: where one of this class was given by hand, this one does nothing

    def __init__(
        self, *, auto_remedy: bool = False, every_n_steps: int | None = None, mute: Sequence[str] = ()
    ) -> None:
        super().__init__()
        require(isinstance(auto_remedy, bool), "auto_remedy", auto_remedy, "give True or False")
        require(
            every_n_steps is None or (isinstance(every_n_steps, int) and every_n_steps >= 1),
            "every_n_steps",
            every_n_steps,
            "give a whole number of optimizer steps of at least 1, or None for the Trainer's log_every_n_steps",
        )
        self.auto_remedy = auto_remedy
        self.every_n_steps = every_n_steps
        self.mute = check_codes(mute)
        self.failed: str | None = None
        self._hub: Hub | None = None
        self._key: str | None = None
        self._restored: dict[str, Any] | None = None
        self.verbs = frozenset(v for v in VERBS if getattr(type(self), v) is not getattr(StallCallback, v))

    @property
    def rare(self) -> frozenset[str]:
        """Verbs that do nothing on quiet steps (see `Hub.quiet`), as things stand once the run is no longer young."""
        return frozenset()

    # ------------------------------------------------------------------ verbs, for subclasses

    def begin(self) -> None:
        """The fit starts; weights, optimizers, step and state are as the first step will find them."""

    def before_batch(self, batch: Any, batch_idx: int) -> None:
        """A batch is on the device, its forward pass not yet run."""

    def before_backward(self, loss: Tensor) -> None:
        """The loss of a micro-batch, with its graph; divided by accumulation and scaled by a GradScaler."""

    def after_backward(self) -> None:
        """Gradients of a micro-batch have been added."""

    def before_step(self, optimizer: Optimizer) -> None:
        """Gradients are whole and reduced, the weights not yet changed. Device tensors only: do not wait for them."""

    def micro_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """A micro-batch ended and no optimizer step was made."""

    def step_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """An optimizer step was made."""

    def observe(self, reading: StepReading) -> None:
        """The numbers of one step have reached the host; perhaps a step or two later."""

    def judged(self) -> None:
        """There is a new verdict on the outcome, the same on every rank."""

    def act(self) -> None:
        """Everybody has judged: the remedies that weigh what the others have found. The same moment on every rank."""

    def check(self) -> None:
        """A check is due (`every`): waiting for the device is allowed here, and every rank is here."""

    def validated(self) -> None:
        """A validation ended (not the sanity check)."""

    def epoch_end(self) -> None:
        """A training epoch ended."""

    def finish(self) -> None:
        """The fit ends as it should; last findings."""

    def aborted(self, error: BaseException) -> None:
        """The fit ends by an exception; no collectives from here."""

    def conclude(self) -> None:
        """After everybody's last findings, whichever way the fit ended."""

    def detach(self) -> None:
        """Take out whatever was put into the model, the Trainer or the loader. Called once, even after a failure."""

    def numbers(self) -> Mapping[str, float]:
        """What to log at this check, by tag."""
        return {}

    def panels(self) -> Mapping[str, Sequence[str]]:
        """TensorBoard panels: title to regular expressions of tags."""
        return {}

    def share(self) -> Mapping[str, float]:
        """This rank's numbers for the next gather, by the names in `shares`."""
        return {}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: plain values and tensors. Of several ranks the first one's is written, and serves all."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave; called before `begin`."""

    # ------------------------------------------------------------------ for subclasses to call

    @property
    def hub(self) -> Hub:
        """What all callbacks of this fit share: step, epoch, outcome, readings, journal, rate."""
        if self._hub is None:
            raise RuntimeError(f"{type(self).__name__} is in no running fit; pass it to Trainer(callbacks=[...])")
        return self._hub

    @property
    def every(self) -> int:
        """Optimizer steps between checks."""
        return self.every_n_steps or (self._hub.log_every if self._hub is not None else 0) or DEFAULT_EVERY

    def tell(
        self,
        code: str,
        summary: str,
        *,
        advice: str = "",
        severity: Severity = "warning",
        statistical: bool = False,
        evidence: Mapping[str, float] | None = None,
        where: Sequence[str] = (),
        remedy: str | None = None,
        step: int | None = None,
    ) -> None:
        """Report a finding. It is written once while it holds: call `retract` when it does not any more.

        Args:
            code: one of the catalogue's.
            summary: what was seen, with the number that decided it and the one that would have been fine.
            advice: what to change; the catalogue's general advice where empty.
            severity: "info", "warning" or "critical".
            statistical: told only once the outcome is bad, kept as "info" until then. False for certain facts.
            evidence: numbers by name.
            where: places, worst first.
            remedy: what was done about it, in the past tense. A finding with a remedy is always written.
            step: the optimizer step it was seen at; the present one by default.
        """
        if code in self.mute:
            return
        hub = self.hub
        finding = Finding(
            code=code,
            step=hub.step if step is None else step,
            epoch=hub.epoch,
            severity=severity,
            summary=summary,
            advice=advice or CATALOGUE[code].advice,
            evidence={k: float(v) for k, v in (evidence or {}).items()},
            where=tuple(where),
            remedy=remedy,
        )
        hub.submit(finding, statistical)

    def retract(self, code: str) -> None:
        """What `code` said does not hold any more; it may speak again."""
        self.hub.retract(code)

    def fail(self, trace: str) -> None:
        """Switch this callback off after an exception in it, with one warning; the training goes on."""
        if self.failed is None:
            self.failed = trace
            tell(
                f"{type(self).__name__} failed and is switched off for this run; the training goes on as without it. "
                f"Please report it:\n{trace}"
            )

    # ------------------------------------------------------------------ Lightning's hooks

    def rest(self, driver: bool) -> None:
        """Take this callback out of Lightning's calls at every batch, but for what its class makes of them itself.

        A call of an empty hook costs a microsecond and a half, and a family makes dozens of them a step. The first of
        our callbacks, the `driver`, keeps those that pass the step on.
        """
        for hook in _BATCH_HOOKS:
            own = getattr(type(self), hook)
            passes_on = own is getattr(StallCallback, hook)
            empty = passes_on and hook not in vars(StallCallback)
            if empty or (passes_on and not driver):
                vars(self).setdefault(hook, None)

    def wake(self) -> None:
        """Back into Lightning's calls."""
        for hook in self._resting():
            del vars(self)[hook]

    def _resting(self) -> list[str]:
        return [hook for hook in _BATCH_HOOKS if vars(self).get(hook, self) is None]

    def _drive(self, moment: str, *args: Any) -> None:
        """Pass a moment of the run on to the hub, where this is the one that does; nothing of ours escapes."""
        hub = self._hub
        if hub is not None and hub.active and hub.members[0] is self:
            try:
                getattr(hub, moment)(*args)
            except Exception as error:
                if of_a_worker(error) and moment not in ("abort", "close"):
                    raise
                hub.broke(traceback.format_exc())

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.failed = None
        self.wake()
        before, self._hub = self._hub, None
        if self.stands_aside and any(type(c) is type(self) and not c.stands_aside for c in trainer.callbacks):
            return
        try:
            self._hub = Hub.join(trainer, pl_module, self)
            self._hub.go_on_from(before)
        except Exception:
            if any(getattr(c, "failed", None) for c in trainer.callbacks if isinstance(c, StallCallback)):
                self.failed = traceback.format_exc()  # said once
            else:
                self.fail(traceback.format_exc())
            return
        restored, self._restored = self._restored, None
        if restored is not None:
            self._restore(self._hub, restored)
        self._hub.guard(self, "begin")

    def _restore(self, hub: Hub, state: Mapping[str, Any]) -> None:
        """Go on with what a checkpoint kept; what cannot be read is told, and begins anew."""
        if state.get("shared"):
            hub.restore(state["shared"])
        kept = dict(vars(self))
        try:
            own = state.get("own", {})
            _require_alike(own, self.state())
            self.load_state(own)
        except Exception as error:
            vars(self).clear()
            vars(self).update(kept)
            tell(
                f"{type(self).__name__} cannot read what this checkpoint kept of it ({error!r}), as where another version "
                "or other settings wrote it: its history begins anew at this step."
            )

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._drive("batch_start", batch, batch_idx)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        self._drive("before_backward", loss)

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        self._drive("after_backward")

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self._drive("before_optimizer_step", optimizer)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._drive("batch_end", outputs, batch, batch_idx)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self._drive("validated")

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._drive("epoch_end")

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._drive("finish")

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._drive("abort", exception)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            self._drive("close")

    # ------------------------------------------------------------------ checkpoints and pickles

    @property
    def state_key(self) -> str:
        if self._key is None:  # Lightning asks for it at every hook
            aside = {"entry_point": True} if self.stands_aside else {}
            self._key = self._generate_state_key(**self.identity(), **aside)
        return self._key

    def identity(self) -> dict[str, Any]:
        """The settings that tell two instances of one class apart in a checkpoint."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        hub = self._hub
        if hub is None:
            return self._restored or {"own": self.state()}
        state: dict[str, Any] = {}
        if hub.members[0] is self:
            shared = hub._own(hub.state_dict)
            if shared is not None:
                state["shared"] = shared
        try:
            state["own"] = self.state()
        except Exception as error:  # a checkpoint must be written whatever we do
            self.fail(repr(error))
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict

    def __getstate__(self) -> dict[str, Any]:
        resting = self._resting()
        return {**{k: v for k, v in vars(self).items() if k not in resting}, "_hub": None}

    def __repr__(self) -> str:
        return f"{type(self).__name__}(auto_remedy={self.auto_remedy}, every_n_steps={self.every_n_steps})"


def guarded(hook: _F) -> _F:
    """For a Lightning hook that a subclass overrides: runs only within a fit of ours, and never raises."""

    @functools.wraps(hook)
    def safe(self: StallCallback, *args: Any, **kwargs: Any) -> Any:
        hub = self._hub
        if hub is None or not hub.active or self.failed:
            return None
        return hub.guard(self, hook.__name__, *args, call=hook, **kwargs)

    return safe  # type: ignore[return-value]


def _require_alike(kept: Mapping[str, Any], fresh: Mapping[str, Any]) -> None:
    """Raise `TypeError` where a state from a checkpoint holds a value of another kind than the present one does."""

    def kind(value: Any) -> type:
        return next((k for k in (str, Tensor, Mapping, Sequence) if isinstance(value, k)), float)

    for name, value in fresh.items():
        if name in kept and value is not None and kept[name] is not None and kind(value) is not kind(kept[name]):
            raise TypeError(f"`{name}` is {kept[name]!r:.60}, not a value like {value!r:.60}")
