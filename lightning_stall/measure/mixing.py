"""Does one sample's output depend on its neighbours in the batch? Asked of the model itself, and all put back."""

from __future__ import annotations

import random
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_stall.measure.loss_fault import Fault, softmax_size
from lightning_stall.measure.loss_graph import Edge, shape, short, walk
from lightning_stall.measure.quiet import quiet, untouched

SAMPLES = 16  # of the batch; enough to see a neighbour change, and cheap
CHANGED = 1e-2  # of the outputs' spread: above what one scale for all of them (8-bit inputs) may do, below real mixing
_RECURRENT = (nn.RNNBase,)
_DEPENDENT = (nn.EmbeddingBag,)  # takes offsets into one long row: its first dimension is no sample


@dataclass
class Seen:
    """What one forward pass of the user's model showed, while `Watch` was in place."""

    called: nn.Module | None = None  # the outermost module that took a tensor of the batch, and nothing else
    value: Tensor | None = None
    first: list[tuple[str, nn.Module, tuple[int, ...]]] = field(default_factory=list)  # time-first layers, their input


@dataclass
class Watch:
    """Hooks the module, its children, and layers that take time first, for one batch."""

    module: nn.Module
    batch: list[Tensor] = field(default_factory=list)
    seen: Seen = field(default_factory=Seen)
    _handles: list[Any] = field(default_factory=list)

    def start(self, batch: list[Tensor]) -> None:
        self.batch = batch
        for child in (self.module, *self.module.children()):
            self._handles.append(child.register_forward_pre_hook(quiet(self._called), with_kwargs=True))
        for path, layer in self.module.named_modules():
            if isinstance(layer, (nn.MultiheadAttention, *_RECURRENT)) and not layer.batch_first:
                self._handles.append(layer.register_forward_pre_hook(quiet(self._note(path)), with_kwargs=True))

    def _called(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.seen.called is None and len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
            value = args[0]
            if any(value is t for t in self.batch) and value.ndim >= 1:
                self.seen.called, self.seen.value = module, value

    def _note(self, path: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            value = args[0] if args else kwargs.get("query", kwargs.get("input"))
            if isinstance(value, Tensor):
                self.seen.first.append((path, module, tuple(value.shape)))

        return note

    def stop(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.batch = []


@dataclass(frozen=True)
class Mixing:
    """Samples left alone whose output moved when others were replaced: their share, and by how many spreads."""

    share: float
    size: float
    samples: int


def probe(module: nn.Module, value: Tensor, context: Callable[[], Any]) -> Mixing | None:
    """Replace half of the samples by copies of one of them and see whether the other half's outputs change.

    In evaluation mode, so that BatchNorm and dropout have no part in it; random numbers, buffers, modes and plain
    attributes are as before afterwards.

    Args:
        module: what takes `value` alone and gives one tensor with the same first dimension.
        value: a batch; a tensor whose first dimension counts samples.
        context: opens the precision that the training runs in.

    Returns:
        None where it can not be asked safely, or gives no clear answer.
    """
    if not safe(module):
        return None
    x = value.detach()[:SAMPLES]
    n, half = len(x), len(x) // 2
    if half < 2:
        return None
    later, earlier = x.clone(), x.clone()
    later[half:] = x[half]  # copies of one: a mere exchange would leave a sum over the batch as it was
    earlier[:half] = x[0]
    if torch.equal(later, x) or torch.equal(earlier, x):
        return None
    with isolated(module), torch.no_grad(), context():
        try:
            first, again, one, two = (module(v) for v in (x, x, later, earlier))
        except Exception:  # whatever the model does not like about such a batch: there is no answer
            return None
    if not isinstance(first, Tensor) or first.ndim < 1 or len(first) != n or not first.is_floating_point():
        return None
    first, again, one, two = (t.float().reshape(n, -1) for t in (first, again, one, two))
    noise = (first - again).abs().max()
    moved = (first - torch.cat([one[:half], two[half:]])).abs().amax(1)
    spread = first.std(0).mean()
    numbers = torch.stack([noise, (moved > CHANGED * spread).float().mean(), moved.max(), spread]).tolist()
    noise_, share, size, spread_ = numbers
    if not all(map(_finite, numbers)) or size <= 0 or size <= 100 * noise_:
        return Mixing(0.0, 0.0, n)
    if spread_ <= 0:  # all samples have one output, made of all of them
        return Mixing(share, 1.0, n)
    return Mixing(share, size / spread_, n)


def _finite(number: float) -> bool:
    return number == number and abs(number) != float("inf")


def safe(module: nn.Module) -> bool:
    """Whether calling this module in evaluation mode changes nothing that is not put back."""
    for m in module.modules():
        if isinstance(m, (nn.Embedding, nn.EmbeddingBag)) and m.max_norm is not None:
            return False  # looking a row up rescales it
        if isinstance(m, _DEPENDENT):
            return False
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and not m.track_running_stats:
            return False  # mixes in evaluation, too, and is meant to
        if getattr(m, "_compiled_call_impl", None) is not None or type(m).__name__ in (
            "OptimizedModule",
            "ScriptModule",
        ):
            return False
        hooks = [*m._forward_hooks.values(), *m._forward_pre_hooks.values()]
        if any(not _ours(h) for h in hooks):
            return False  # may count, record or change: not ours to call
    return True


def _ours(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith("lightning_stall.")


@contextmanager
def isolated(module: nn.Module) -> Iterator[None]:
    """Puts back everything that a forward pass in evaluation mode may touch, and silences our own hooks meanwhile."""
    modules = list(module.modules())
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    numpy = sys.modules.get("numpy")
    states = (random.getstate(), torch.get_rng_state(), _cuda_state(device), numpy and numpy.random.get_state())
    tensors = [
        (v, v.clone()) for m in modules for v in vars(m).values() if isinstance(v, Tensor) and not v.requires_grad
    ]
    buffers = [(m, dict(m._buffers), {k: b.clone() for k, b in m._buffers.items() if b is not None}) for m in modules]
    try:
        with untouched(module):
            for m in modules:
                m.training = False
                m._forward_hooks, m._forward_pre_hooks = OrderedDict(), OrderedDict()
                if hasattr(m, "log_dict") and hasattr(m, "log"):  # a LightningModule that logs in forward
                    m.__dict__["log"] = m.__dict__["log_dict"] = _silent
            yield
    finally:
        for tensor, copied in tensors:
            _put_back(tensor, copied)
        for m, held, copies in buffers:
            m._buffers.update(held)
            for name, copied in copies.items():
                _put_back(held[name], copied)
        random.setstate(states[0])
        torch.set_rng_state(states[1])
        if numpy is not None:
            numpy.random.set_state(states[3])
        if states[2] is not None:
            torch.cuda.set_rng_state(states[2], device)


def _put_back(tensor: Tensor | None, copied: Tensor) -> None:
    if tensor is not None and not torch.equal(tensor, copied):
        tensor.copy_(copied)


def _silent(*args: Any, **kwargs: Any) -> None:
    """Takes the place of `log` for a moment."""


def _cuda_state(device: torch.device) -> Tensor | None:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def softmax_across(edge: Edge, samples: int) -> Edge | None:
    """The softmax below a prediction that runs over dimension 0 where that has as many entries as the batch."""
    for found in walk(edge):
        softmax = short(found[0]) in ("Softmax", "LogSoftmax") and len(shape(found)) > 1
        if softmax and softmax_size(found) == (0, samples):
            return found
    return None


def verdict(found: Mixing, seen: Seen, samples: int, shuffled: bool, across: str | None = None) -> Fault | None:
    """What the probe means.

    Certain where a layer that takes time first was given the samples there and their order holds nothing, or where a
    softmax runs over them (`across` names it). Otherwise the model may compare samples on purpose (attention between
    rows, experts of bounded capacity, a graph over all rows), and the run has to fare badly before it is told.
    """
    if found.share <= 0:
        return None
    number = (
        f"With other neighbours in the batch, {found.share:.0%} of {found.samples} samples got another output, by up "
        f"to {found.size:.2g} of the outputs' spread; 0% would be right."
    )
    evidence = {"share": found.share, "size": found.size, "samples": float(found.samples)}
    # most samples, by most of what tells outputs apart: as sure as an experiment is
    strength = 0.5 + 0.5 * max(0.0, min(found.share, found.size, 1.0))
    for path, layer, size in seen.first:
        flat = len(size) == 2
        if size[0] != samples or (not flat and size[1] in (1, samples)):
            continue
        kind = type(layer).__name__
        text = ", ".join(map(str, size))
        return Fault(
            "batch-mixing",
            f"`nn.{kind}` at `{path}` takes time first and received ({text}), with the {samples} samples there. "
            f"{number}",
            f"Give it samples first, with a time dimension:\n\n    nn.{kind}(..., batch_first=True)  # (N, time, "
            "features)",
            evidence,
            [path],
            certain=shuffled and (not flat or isinstance(layer, _RECURRENT)),
        )
    if across is not None:
        return Fault(
            "batch-mixing",
            f"{across} runs over dimension 0, the {samples} samples of the batch. {number}",
            "Normalise within a sample:\n\n    weights = scores.softmax(dim=-1)  # not dim=0",
            evidence,
        )
    return Fault(
        "batch-mixing",
        f"{number} Something in `forward` works across dimension 0.",
        evidence={**evidence, "strength": strength},
        certain=False,
    )
