"""What the program may do about a stall. Each remedy is small, reversible, and does nothing until it is told to."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from lightning_stall.measure.gradients import stored


@dataclass
class RateScale:
    """Multiplies the learning rate that each optimizer step uses, and nothing else.

    The rate is scaled inside `optimizer.step` and put back after it, so that a scheduler, a checkpoint and other
    callbacks only ever see the schedule's own rate: exact under every scheduler, and a resumed run needs the factor
    alone. There is one a Trainer; each callback that changes the rate owns a factor in it.
    """

    factors: dict[str, float] = field(default_factory=dict)
    _handles: list[Any] = field(default_factory=list, repr=False)
    _saved: dict[int, list[Any]] = field(default_factory=dict, repr=False)
    _optimizers: list[Optimizer] = field(default_factory=list, repr=False)

    @property
    def factor(self) -> float:
        """What the schedule's rate is multiplied by."""
        return math.prod(self.factors.values())

    def due(self, optimizer: Optimizer) -> float:
        """What the rate in this optimizer's groups is yet to be multiplied by: 1 within a step, where it has been."""
        return 1.0 if not self.factors or id(optimizer) in self._saved else self.factor

    def install(self, optimizers: Iterable[Optimizer]) -> None:
        """Act on these optimizers' steps, by a hook pair that is put on them as soon as there is a factor."""
        self.remove()
        self._optimizers = list(optimizers)
        if self.factor != 1.0:
            self._hook()

    def set(self, name: str, factor: float) -> None:
        """Make `factor` the one that `name` owns."""
        self.factors[name] = factor
        if factor != 1.0 and not self._handles:
            self._hook()

    def _hook(self) -> None:
        for optimizer in self._optimizers:
            raw = getattr(optimizer, "optimizer", optimizer)
            if hasattr(raw, "register_step_pre_hook"):
                self._handles += [
                    raw.register_step_pre_hook(self._scale),
                    raw.register_step_post_hook(self._restore),
                ]

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._saved.clear()
        self._optimizers = []

    def _scale(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        factor = self.factor
        if factor == 1.0:
            return
        rates = [group["lr"] for group in optimizer.param_groups]
        saved = self._saved.get(id(optimizer), ())
        # a `step` that calls that of its base class runs these hooks twice, and one that was broken off left them behind
        if saved and all(isinstance(r, Tensor) or r == s * factor for r, s in zip(rates, saved, strict=False)):
            return
        self._saved[id(optimizer)] = [r.clone() if isinstance(r, Tensor) else r for r in rates]
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            if isinstance(rate, Tensor):
                rate.mul_(factor)
            else:
                group["lr"] = rate * factor

    def _restore(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for group, rate in zip(optimizer.param_groups, self._saved.pop(id(optimizer), []), strict=False):
            if isinstance(rate, Tensor):
                group["lr"].copy_(rate)
            else:
                group["lr"] = rate


def fused(optimizer: Optimizer) -> bool:
    """Whether the optimizer's own step takes `grad_scale` and `found_inf`, and may be skipped by them now.

    The first step of fused SGD with momentum is left out: skipped, it would keep an uninitialised buffer.
    """
    if not getattr(optimizer, "_step_supports_amp_scaling", False):
        return False
    return bool(optimizer.state) or not any(group.get("momentum") for group in optimizer.param_groups)


@dataclass
class StepControl:
    """Clips or skips the step that is about to be made.

    With a fused optimizer both ride into its kernel (`grad_scale`, `found_inf`): no second pass over the gradients and
    no wait for the device. Otherwise clipping is one multiplication in place, and a skip needs the answer on the host.
    The attributes would freeze the training if they stayed, so a hook takes them off after each step. Several may act
    on one step, in any order: the last coefficient counts, and a step is left out where anyone says so.
    """

    _handles: list[Any] = field(default_factory=list, repr=False)
    _marked: list[Optimizer] = field(default_factory=list, repr=False)

    def clip(
        self, optimizer: Optimizer, coefficient: Tensor | float, grads: Iterable[Tensor], scaled: bool = False
    ) -> None:
        """Multiply the gradients by a coefficient of at most 1: a float, or a device scalar.

        Args:
            optimizer: whose step is about to be made.
            coefficient: what to multiply by.
            grads: its gradients; looked at only where they must be multiplied in place.
            scaled: a GradScaler is at work; it sets and takes off a fused optimizer's attributes itself.
        """
        if fused(optimizer) and not scaled:
            self._mark(optimizer)
            if isinstance(coefficient, Tensor):
                scale = coefficient.float().reciprocal()
            else:
                scale = torch.full((), 1 / coefficient, device=_home(optimizer), dtype=torch.float32)
            optimizer.grad_scale = scale  # type: ignore[attr-defined]
            if not hasattr(optimizer, "found_inf"):
                optimizer.found_inf = torch.zeros_like(scale)  # type: ignore[attr-defined]
            return
        for device, group in _by_device(grads).items():
            on_device = isinstance(coefficient, Tensor)
            factor = coefficient.to(device, non_blocking=True) if on_device else coefficient  # type: ignore[union-attr]
            torch._foreach_mul_(group, factor)

    def clip_on_device(self, optimizer: Optimizer, total: Tensor, limit: Tensor) -> bool:
        """Cut a norm, a device scalar, to a limit, and leave out a step whose norm is not finite, in four launches.

        Returns:
            False where this optimizer takes no coefficient: then nothing was done.
        """
        if not fused(optimizer):
            return False
        self._mark(optimizer)
        optimizer.grad_scale = torch.div(total, limit).clamp_(min=1.0)  # type: ignore[attr-defined]
        # a finite number less itself is 0, and any other is NaN, which is not
        found, others = torch.ne(total - total, 0.0, out=torch.empty_like(total)), getattr(optimizer, "found_inf", None)
        optimizer.found_inf = found if others is None else torch.maximum(found, others)  # type: ignore[attr-defined]
        return True

    def skip(self, optimizer: Optimizer, bad: Tensor | bool, wait: bool = True) -> bool | None:
        """Leave this step out where `bad` is true: a device scalar, or a bool where the host knows.

        Returns:
            Whether it was left out; None where only the device knows. Without `wait`, an optimizer that is not fused
            has its gradients set to zero instead, which lets momentum and decay still move the weights.
        """
        if isinstance(bad, Tensor) and fused(optimizer):
            self._mark(optimizer)
            found, others = bad.float(), getattr(optimizer, "found_inf", None)
            optimizer.found_inf = found if others is None else torch.maximum(found, others)  # type: ignore[attr-defined]
            if not hasattr(optimizer, "grad_scale"):
                optimizer.grad_scale = torch.ones_like(found)  # type: ignore[attr-defined]
            return None
        if isinstance(bad, Tensor) and not wait and bad.device.type != "cpu":
            _zero_where(bad, [p.grad for group in optimizer.param_groups for p in group["params"]])
            return None
        skipped = bool(bad)
        if skipped:
            for group in optimizer.param_groups:
                for p in group["params"]:
                    p.grad = None
        return skipped

    def _mark(self, optimizer: Optimizer) -> None:
        if optimizer in self._marked:
            return
        self._marked.append(optimizer)
        self._handles.append(optimizer.register_step_post_hook(lambda opt, args, kwargs: _unmark(opt)))

    def remove(self) -> None:
        """Take the hooks and whatever a broken step left behind off."""
        for handle in self._handles:
            handle.remove()
        for optimizer in self._marked:
            _unmark(optimizer)
        self._handles.clear()
        self._marked.clear()


def _unmark(optimizer: Optimizer) -> None:
    for name in ("grad_scale", "found_inf"):
        if hasattr(optimizer, name):
            delattr(optimizer, name)


def _home(optimizer: Optimizer) -> torch.device:
    return next(p.device for group in optimizer.param_groups for p in group["params"])


def _zero_where(bad: Tensor, grads: Iterable[Tensor | None]) -> None:
    """Zero all gradients in place where `bad`; a product would keep NaN."""
    for grad in grads:
        if grad is not None:
            values = stored(grad)
            flag = bad.to(values.device, non_blocking=True)
            torch.where(flag, torch.zeros((), device=values.device, dtype=values.dtype), values, out=values)


def _by_device(grads: Iterable[Tensor]) -> dict[torch.device, list[Tensor]]:
    groups: dict[torch.device, list[Tensor]] = {}
    for grad in grads:
        values = stored(grad)
        groups.setdefault(values.device, []).append(values)
    return groups


def batchnorm_layers(module: Module) -> list[tuple[str, _BatchNorm]]:
    """Every BatchNorm of a module with its name, SyncBatchNorm and lazy ones included."""
    return [(name, m) for name, m in module.named_modules() if isinstance(m, _BatchNorm)]


@dataclass
class BufferSnapshot:
    """BatchNorm's running statistics before a batch, to be put back when its step is left out."""

    layers: list[_BatchNorm]
    taken: bool = False
    buffers: list[Tensor] = field(default_factory=list, repr=False)
    copies: list[Tensor] = field(default_factory=list, repr=False)

    def take(self) -> None:
        """Copy the statistics as they are now, in two calls however many layers there are."""
        now = [b for m in self.layers for b in m._buffers.values() if b is not None and not is_lazy(b)]
        now.sort(key=torch.is_floating_point)  # the counts first
        if len(now) == len(self.buffers) and all(map(operator.is_, now, self.buffers)):
            counts = sum(not b.is_floating_point() for b in now)
            with torch.no_grad():
                for part in (slice(counts), slice(counts, None)):
                    if now[part]:
                        torch._foreach_copy_(self.copies[part], now[part])
        else:
            self.buffers, self.copies = now, [b.detach().clone() for b in now]
        self.taken = True

    def restore(self, bad: Tensor | bool) -> None:
        """Put the copies back where `bad` is true, and where a statistic overflowed; on a device without a wait."""
        for buffer, copy in zip(self.buffers, self.copies, strict=True) if self.taken else ():
            lost = torch.full((), bad, device=buffer.device) if isinstance(bad, bool) else bad.to(buffer.device)
            if buffer.is_floating_point():
                lost = lost | ~buffer.isfinite().all()
            buffer.copy_(torch.where(lost, copy, buffer))


@dataclass
class WeightsSnapshot:
    """Weights, buffers and optimizer state as they were, on the host, to go back to after a divergence.

    Shards are copied as they lie on each rank, so every rank must take and restore at the same step.
    """

    step: int = 0
    tensors: list[tuple[Tensor, Tensor]] = field(default_factory=list, repr=False)  # (of the model, its copy)
    states: list[dict[Any, dict[str, Any]]] = field(default_factory=list, repr=False)  # one an optimizer

    @property
    def taken(self) -> bool:
        """Whether there is anything to go back to."""
        return bool(self.tensors)

    def take(self, module: Module, optimizers: Iterable[Optimizer], step: int) -> None:
        """Copy everything. Waits for the device."""
        with torch.no_grad():
            alive = [*module.parameters(), *(b for _, b in module.named_buffers())]
            if any(map(is_lazy, alive)):
                return  # the first forward pass will make them
            own = [stored(t.detach()) for t in alive]  # of weights that are spread over ranks, this one's part
            self.tensors = [(t, t.to("cpu", copy=True)) for t in own]
            self.states = [
                {p: {k: _copied(v) for k, v in state.items()} for p, state in optimizer.state.items()}
                for optimizer in optimizers
            ]
        self.step = step

    def restore(self, optimizers: Iterable[Optimizer]) -> None:
        """Put everything back, in place."""
        with torch.no_grad():
            for tensor, copy in self.tensors:
                tensor.copy_(copy)
        for optimizer, kept in zip(optimizers, self.states, strict=True):
            for p in list(optimizer.state):
                if p not in kept:
                    del optimizer.state[p]
            for p, state in kept.items():
                for name, value in state.items():
                    now = optimizer.state[p].get(name)
                    if isinstance(now, Tensor) and isinstance(value, Tensor):
                        now.copy_(value)
                    else:
                        optimizer.state[p][name] = _copied(value)


def _copied(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value


def swap(owner: Any, name: str, wrap: Callable[[Any], Any]) -> Callable[[], None]:
    """Replace the bound method `name` on this one instance by `wrap(original)`; call the answer to put it back.

    Several may wrap the same method and leave in any order: one that is no longer outermost stays in place as a plain
    call of what it wrapped.
    """
    original = getattr(owner, name)
    had = name in vars(owner)
    inner = wrap(original)
    active = True

    def replaced(*args: Any, **kwargs: Any) -> Any:
        return inner(*args, **kwargs) if active else original(*args, **kwargs)

    setattr(owner, name, replaced)

    def undo() -> None:
        nonlocal active
        active = False
        if vars(owner).get(name) is replaced:
            if had:
                setattr(owner, name, original)
            else:
                delattr(owner, name)

    return undo
