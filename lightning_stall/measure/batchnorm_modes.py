"""How far BatchNorm's running statistics are from the batch's: in standard deviations, and in the loss."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

LEAST_SHARE = 1e-3  # weight of the batch in a running average below which rounding hides the batch

Gap = tuple[float, float]  # (distance of the means in standard deviations, |log| of the ratio of variances)


def gap(mean: Tensor, var: Tensor, running_mean: Tensor, running_var: Tensor, eps: float) -> Tensor:
    """Distance of a batch's statistics, each (C,), from the running ones: a pair as in `Gap`, over all channels."""
    mean, var, running_mean, running_var = (t.detach().float() for t in (mean, var, running_mean, running_var))
    distance = ((mean - running_mean).square() / (torch.maximum(var, running_var) + eps)).mean().sqrt()
    return torch.stack([distance, ((var.clamp(min=0) + eps) / (running_var + eps)).log().abs().mean()])


def readable(layer: _BatchNorm) -> bool:
    """Whether a training batch can be read off this layer's buffers, before and after: float32, and a sane momentum."""
    mean = layer.running_mean
    return (
        layer.training
        and layer.track_running_stats
        and isinstance(mean, Tensor)
        and mean.dtype in (torch.float32, torch.float64)
        and (layer.momentum is None or layer.momentum >= LEAST_SHARE)
    )


@dataclass
class RunningGap:
    """Batch against running statistics of each layer, with no hook and no look at an activation.

    A running average moves by a known share of the way to the batch's statistic, so the batch's own follow from the
    buffers before and after: in compiled, checkpointed and synchronised layers alike.
    """

    layers: list[_BatchNorm]
    _before: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)

    def take(self) -> None:
        """Copy the running statistics before a batch."""
        self._before = {
            i: (m.running_mean.clone(), m.running_var.clone(), m.num_batches_tracked.clone())  # type: ignore[union-attr]
            for i, m in enumerate(self.layers)
            if readable(m) and m.num_batches_tracked is not None
        }

    def read(self) -> dict[int, Gap]:
        """The gaps of the layers that were updated since `take`. Waits for the device."""
        if not self._before:
            return {}
        rows = [self._gap(self.layers[i], *kept) for i, kept in self._before.items()]
        numbers = torch.stack([r.to(rows[0].device) for r in rows]).tolist()
        pairs = zip(self._before, numbers, strict=True)
        return {i: (z, v) for i, (z, v, updates) in pairs if updates and z == z and v == v}

    def _gap(self, layer: _BatchNorm, mean: Tensor, var: Tensor, tracked: Tensor) -> Tensor:
        assert layer.running_mean is not None
        assert layer.running_var is not None
        updates = (layer.num_batches_tracked - tracked).float()  # type: ignore[operator]
        if layer.momentum is None:
            share = updates / layer.num_batches_tracked.clamp(min=1)  # type: ignore[union-attr]
        else:
            share = 1 - (1 - layer.momentum) ** updates
        batch_mean = mean + (layer.running_mean - mean) / share
        batch_var = var + (layer.running_var - var) / share
        return torch.cat([gap(batch_mean, batch_var, mean, var, layer.eps), updates.reshape(1)])


def understudy(module: nn.Module, seen: dict[int, Any] | None = None) -> nn.Module:
    """A copy of a module that shares its weights and owns its buffers and state, to be run without leaving a trace.

    Lists, dicts and sets kept as attributes are copied one level deep; what a module copies in its own way (metrics do)
    is copied so; compiled modules are copied without their compilation, and hooks stay behind. Nothing in it knows the
    Trainer, and what it logs goes nowhere.
    """
    seen = {} if seen is None else seen
    if id(module) in seen:
        return seen[id(module)]
    inner = module._modules.get("_orig_mod")
    if inner is not None:
        seen[id(module)] = understudy(inner, seen)
        return seen[id(module)]
    if any(hasattr(type(module), name) for name in ("__deepcopy__", "_defaults")) or "_defaults" in vars(module):
        seen[id(module)] = copy.deepcopy(module)
        return seen[id(module)]
    twin = type(module).__new__(type(module))
    seen[id(module)] = twin
    for name, value in vars(module).items():
        if name.endswith("_hooks") and isinstance(value, dict):
            twin.__dict__[name] = type(value)()
        elif isinstance(value, (list, dict, set)):
            twin.__dict__[name] = copy.copy(value)
        elif not (callable(value) and hasattr(type(module), name)):  # a method put in place of the class's own
            twin.__dict__[name] = value
    twin.__dict__["_compiled_call_impl"] = None
    if "_trainer" in vars(module):
        twin.__dict__.update(_trainer=None, _fabric=None, log=_nothing, log_dict=_nothing)
    twin._buffers = {n: b.clone() if isinstance(b, Tensor) else b for n, b in module._buffers.items()}
    twin._modules = {n: understudy(m, seen) if m is not None else None for n, m in module._modules.items()}
    return twin


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Put every random number generator back as it was, and keep no graph."""
    numpy = sys.modules.get("numpy")
    python, rows = random.getstate(), numpy.random.get_state() if numpy is not None else None
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
        try:
            yield
        finally:
            random.setstate(python)
            if numpy is not None:
                numpy.random.set_state(rows)


def loss_of(output: Any) -> float | None:
    """The loss in what a `training_step` returned."""
    loss = output.get("loss") if isinstance(output, dict) else output
    return float(loss.detach().float().mean()) if isinstance(loss, Tensor) else None


def losses_both_ways(module: nn.Module, step: Callable[[nn.Module], Any]) -> tuple[float, float] | None:
    """Loss of one batch normalised by its own statistics, and by the running ones. All else is in evaluation mode.

    Args:
        module: left as it is; a copy that shares its weights runs.
        step: runs a training step on the module it is given, and returns what that returns.

    Returns:
        (with batch statistics, with running statistics); None where a step gave no loss.
    """
    twins: dict[int, Any] = {}
    twin = understudy(module, twins)
    own = [twins[id(m)] for m in module.modules() if isinstance(m, _BatchNorm) and m.training and id(m) in twins]
    losses: list[float] = []
    for training in (False, True):  # running statistics first: training mode moves them
        for part in twin.modules():
            part.training = False
        for layer in own:
            layer.training = training
        with undisturbed(next(module.parameters()).device):
            loss = loss_of(step(twin))
        if loss is None:
            return None
        losses.append(loss)
    return losses[1], losses[0]


def reestimate(module: nn.Module, layers: list[_BatchNorm], steps: list[Callable[[nn.Module], Any]]) -> int:
    """Set these layers' running statistics to the plain average over training steps, at the weights as they are now.

    Returns:
        How many layers were set.
    """
    twins: dict[int, Any] = {}
    twin = understudy(module, twins)
    for part in twin.modules():
        part.training = False
    pairs = [(m, twins[id(m)]) for m in layers if m.num_batches_tracked is not None and id(m) in twins]
    for _, layer in pairs:
        layer.training, layer.momentum = True, None
        layer.num_batches_tracked.zero_()
    with undisturbed(next(module.parameters()).device):
        for step in steps:
            step(twin)
        done = [(m, t) for m, t in pairs if int(t.num_batches_tracked)]
        for layer, estimate in done:
            layer.running_mean.copy_(estimate.running_mean)  # type: ignore[union-attr]
            layer.running_var.copy_(estimate.running_var)  # type: ignore[union-attr]
    return len(done)
