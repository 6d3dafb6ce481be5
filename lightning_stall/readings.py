"""What is measured, once a backward pass, and shared by every callback: losses, gradient norms, the outcome.

Nothing here waits for the device, except at a check. On an accelerator each step's numbers travel through pinned
memory and are read when they have arrived, so a reading may be a step or two old; it carries its step.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import median
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.nn import Module, Parameter, SyncBatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lightning_stall.measure.gradients import (
    are_small,
    gradient_norms,
    is_dtensor,
    norms_of_small,
    norms_on_host,
    shard_copies,
    stored,
    total_norm,
)
from lightning_stall.measure.graph import forward_order
from lightning_stall.measure.quiet import untouched
from lightning_stall.measure.updates import WeightSample

_UNKNOWN = object()  # not yet looked at
_WRAPPERS = ("_fsdp_wrapped_module.", "_orig_mod.", "_checkpoint_wrapped_module.")


def plain_name(name: str) -> str:
    """A parameter's name as the user wrote it, without the parts that wrappers put in."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


@dataclass(frozen=True)
class GradientReading:
    """The complete, reduced and unscaled gradients of one optimizer at one step, as norms on the device."""

    params: Sequence[Parameter]
    values: list[float] | None  # the norms, where they are on the host
    on_device: Tensor | None = None  # the norms, shape (P,), where they are not

    @cached_property
    def norms(self) -> Tensor:
        """2-norm of each parameter's gradient, shape (P,), float32."""
        return torch.tensor(self.values) if self.on_device is None else self.on_device

    @cached_property
    def total(self) -> Tensor:
        """2-norm over all parameters, a scalar on the device."""
        return total_norm(self.norms)

    @cached_property
    def known(self) -> float | None:
        """The total as a number; None where only the device knows it."""
        if self.values is None:
            return None
        total = math.hypot(*self.values)
        # hypot lets an infinite value hide a NaN, which is the worse of the two
        return total if total < math.inf or not any(math.isnan(v) for v in self.values) else math.nan


NOT_MEASURED = GradientReading([], [])  # of a step whose gradients nobody reads


class StepReading(NamedTuple):
    """One optimizer step as plain numbers."""

    step: int  # from 1
    epoch: int
    batch_idx: int  # of the last micro-batch
    optimizer: int
    names: Sequence[str]
    norms: Sequence[float]  # gradient norm of each parameter; none where nobody reads them at this step
    total_norm: float  # NaN where nobody reads it
    losses: tuple[float, ...]  # of each micro-batch, undivided and unscaled
    partial_norms: tuple[float, ...]  # norm of what had been accumulated after each micro-batch but the last
    rate: float
    first: bool  # False for further closures of one step (LBFGS)
    scaled: bool  # a GradScaler is at work: a non-finite step is its business

    @property
    def loss(self) -> float | None:
        """Mean loss over the micro-batches; None where no backward of ours was seen."""
        losses = self.losses
        if len(losses) == 1:  # nearly always, and asked by several a step
            return losses[0]
        return sum(losses) / len(losses) if losses else None


@dataclass
class _Table:
    """The parameters an optimizer holds, named and in the order of the forward pass."""

    params: list[Parameter]
    names: list[str]
    size: int
    small: bool  # see `are_small`


class _Mail:
    """Numbers of optimizer steps on their way from the device to the host, oldest first."""

    def __init__(self) -> None:
        self.queue: deque[tuple[Callable[[list[float]], StepReading], Tensor, Any] | StepReading] = deque()
        self.free: dict[int, list[tuple[Tensor, Any]]] = {}

    def post(self, packed: Tensor, reading: Callable[[list[float]], StepReading]) -> None:
        """Send a tensor; what arrives is given to `reading`. What is on the host already goes into the queue as it is."""
        if packed.device.type != "cuda":
            self.queue.append(reading(packed.tolist()))
            return
        spare = self.free.setdefault(packed.numel(), [])
        slot = (
            spare.pop()
            if spare
            else (torch.empty(packed.numel(), dtype=torch.float32, pin_memory=True), torch.cuda.Event())
        )
        slot[0].copy_(packed, non_blocking=True)
        slot[1].record()
        self.queue.append((reading, *slot))

    def collect(self, wait: bool) -> list[StepReading]:
        """What has arrived; with `wait`, everything posted (at checks only: it waits for the device)."""
        arrived = []
        while self.queue:
            first = self.queue[0]
            if isinstance(first, StepReading):
                arrived.append(first)
                self.queue.popleft()
                continue
            reading, numbers, event = first
            if not event.query():
                if not wait:
                    break
                event.synchronize()
            self.queue.popleft()
            arrived.append(reading(numbers.tolist()))
            self.free[numbers.numel()].append((numbers, event))
        return arrived


@dataclass
class Readings:
    """The measurements of one fit. `measured` counts gradient readings: one a backward pass, however many ask."""

    owner: Any  # a weak reference to the module
    optimizers: list[Optimizer]
    accumulate: int = 1
    scaler: Any = None
    measured: int = 0
    order: dict[int, int] = field(default_factory=dict)
    _tables: dict[int, _Table] = field(default_factory=dict)
    _cache: dict[int, GradientReading] = field(default_factory=dict)
    _losses: list[Tensor | float] = field(default_factory=list)  # of each micro-batch so far, as Lightning divides them
    _partial: list[Tensor] = field(default_factory=list)
    _mail: _Mail = field(default_factory=_Mail)
    _posted: set[int] = field(default_factory=set)  # optimizers that have posted in this batch
    _rates: dict[int, float] = field(default_factory=dict)
    yet_to_scale: Callable[[Optimizer], float] = lambda _: 1.0  # what the rate in the groups is yet to be multiplied by
    updates: dict[str, Tensor] = field(default_factory=dict)  # parameter -> update-to-weight ratio, at the last check
    _ratios: dict[str, float] = field(default_factory=dict)  # the same on the host, once they were asked for
    _samples: dict[int, tuple[list[str], WeightSample]] = field(default_factory=dict)
    _copies: Any = _UNKNOWN

    @property
    def module(self) -> Module:
        """The LightningModule."""
        module: Module = self.owner()
        return module

    def new_batch(self) -> None:
        self._posted.clear()

    @property
    def window_starts(self) -> bool:
        """Whether the next micro-batch is the first of its accumulation window."""
        return not self._losses

    @property
    def loss_here(self) -> float | None:
        """The loss of this micro-batch, where it can be had without a wait for the device."""
        loss = self._losses[-1] if self._losses else None
        return loss if isinstance(loss, float) else None

    @property
    def copies(self) -> float | None:
        """How many ranks hold the same part of an FSDP1 model's gradients; None elsewhere."""
        if self._copies is _UNKNOWN:
            strategy = getattr(getattr(self.module, "_trainer", None), "strategy", None)
            model = getattr(strategy, "model", None)
            self._copies = shard_copies(model if isinstance(model, Module) else self.module)
        return self._copies

    def named(self, optimizer: Optimizer) -> tuple[list[str], list[Parameter]]:
        """Names and parameters of this optimizer that need a gradient, in the order of the forward pass."""
        table = self.table(optimizer)
        return table.names, table.params

    def before_backward(self, loss: Tensor) -> None:
        """Keep the loss of this micro-batch, on its device."""
        if not self.order:
            self.order = forward_order(loss) or {0: 0}
            self._tables.clear()
        if loss.is_cpu and not loss.ndim and self.scaler is None and loss.is_floating_point():
            self._losses.append(loss.item())
            return
        value = loss.detach()
        if value.is_complex():  # autograd will refuse it; it is nobody's business to warn of it first
            value = value.real
        if value.ndim:
            value = value.float().mean()
        if self.scaler is not None:
            value = value / self.scaler._scale
        self._losses.append(value.item() if value.device.type == "cpu" else value)

    def undivided(self, loss: Tensor) -> float:
        """A loss as Lightning hands it on, without what it divided and scaled it by. Waits for the device."""
        value = float(loss.detach().float().mean()) * self.accumulate
        return value / float(self.scaler.get_scale()) if self.scaler is not None else value

    def after_backward(self, more_to_come: bool, measure: bool = True) -> None:
        """Gradients have changed; while a window still accumulates, note what it amounts to so far."""
        self._cache.clear()
        # FSDP1 reduces its gradients with the last micro-batch only
        if more_to_come and measure and self.copies is None:
            params = [p for opt in self.optimizers for p in self.table(opt).params]
            self._partial.append(total_norm(gradient_norms([p.grad for p in params])))
            self.measured += 1

    def gradients(self, optimizer: Optimizer) -> GradientReading:
        """Norms of this optimizer's gradients; measured by the first who asks after a backward pass."""
        key = id(optimizer)
        if key not in self._cache:
            table = self.table(optimizer)
            params, values, norms = table.params, None, None
            if self.scaler is None and self.copies is None:
                values = norms_of_small(params) if table.small else norms_on_host(p.grad for p in params)
            if values is None:
                norms = gradient_norms([p.grad for p in params], copies=self.copies)
                if self.scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
                    norms = norms / self.scaler._scale  # a fused optimizer unscales inside its own step
                values = norms.tolist() if norms.device.type == "cpu" else None
            self._cache[key] = GradientReading(params, values, norms)
            self.measured += 1
        return self._cache[key]

    def table(self, optimizer: Optimizer) -> _Table:
        """This optimizer's parameters, made again when groups were added (unfreezing callbacks do)."""
        size = sum(len(group["params"]) for group in optimizer.param_groups)
        table = self._tables.get(id(optimizer))
        if table is None or table.size != size:
            names = {id(p): plain_name(n) for n, p in self.module.named_parameters()}
            params = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
            position = {id(p): i for i, p in enumerate(self.module.parameters())}
            last = len(position)
            params.sort(key=lambda p: (self.order.get(id(p), last), position.get(id(p), last)))
            known = [names.get(id(p), f"parameter {i}") for i, p in enumerate(params)]
            table = _Table(params, known, size, are_small(params))
            self._tables[id(optimizer)] = table
        return table

    def post(self, optimizer: Optimizer, step: int, epoch: int, batch_idx: int, measure: bool = True) -> float | None:
        """Send this step's numbers to the host, without waiting for them. Not told to `measure`, without gradients.

        Returns the total norm where the host has it already.
        """
        reading = self.gradients(optimizer) if measure else NOT_MEASURED
        index = next((i for i, o in enumerate(self.optimizers) if o is optimizer), 0)
        names = self._tables[id(optimizer)].names if measure else []
        first, rate, scaled = index not in self._posted, self._rate(optimizer), self.scaler is not None
        losses, partial, undivided = self._losses, self._partial, self.accumulate
        self._posted.add(index)
        self._losses, self._partial = [], []

        def read(losses: list[float], partial: list[float], total: float, norms: list[float]) -> StepReading:
            whole = tuple(losses) if undivided == 1 else tuple(v * undivided for v in losses)
            return StepReading(
                step, epoch, batch_idx, index, names, norms, total, whole, tuple(partial), rate, first, scaled
            )

        if reading.values is not None and all(map(_on_host, losses)) and all(map(_on_host, partial)):
            known = reading.known if measure else None  # nothing to wait for
            numbers = [float(v) for v in losses], [float(v) for v in partial]
            self._mail.queue.append(read(*numbers, math.nan if known is None else known, reading.values))
            return known
        count, whole = len(losses), len(losses) + len(partial)
        self._mail.post(
            _packed([*losses, *partial], reading),
            lambda found: read(found[:count], found[count:whole], found[whole], found[whole + 1 :]),
        )
        return None

    def _rate(self, optimizer: Optimizer) -> float:
        """The largest learning rate of the groups. A tensor rate on an accelerator is read once (it would wait)."""
        rates = [group.get("lr", 0.0) for group in optimizer.param_groups]
        factor = self.yet_to_scale(optimizer)
        if len(rates) == 1 and type(rates[0]) is float:
            return rates[0] * factor
        on_host = [float(r) for r in rates if not isinstance(r, Tensor) or r.device.type == "cpu"]
        if on_host:
            return max(on_host) * factor
        if id(optimizer) not in self._rates:
            self._rates[id(optimizer)] = max((float(r) for r in rates), default=0.0)
        return self._rates[id(optimizer)] * factor

    def collect(self, wait: bool) -> list[StepReading]:
        """The readings that have arrived on the host, oldest first."""
        return self._mail.collect(wait) if self._mail.queue else []

    def release(self) -> None:
        """Let go of what belongs to the device: an event that is left to the garbage collector may meet its end in a
        loader's worker, a fork in which CUDA cannot be called, and end it.
        """
        self._mail = _Mail()

    def sample_weights(self, optimizer: Optimizer) -> None:
        """Keep a sample of this optimizer's weights, before its step is made; `measure_updates` compares."""
        table = self.table(optimizer)
        if table.params:
            # a rank samples its own part of a parameter that is spread over several
            sample = WeightSample([stored(p.detach()) if is_dtensor(p) else p for p in table.params])
            sample.take()
            self._samples[id(optimizer)] = (table.names, sample)

    def measure_updates(self) -> None:
        """How far the steps since `sample_weights` have moved the weights; on the device until it is read."""
        self.updates, self._ratios = {}, {}
        for names, sample in self._samples.values():
            self.updates.update(zip(names, sample.ratios(), strict=False))
        self._samples.clear()

    def update_ratios(self) -> dict[str, float]:
        """Norm of the last measured change over the norm of the weights, by parameter (at checks only: it waits)."""
        if self.updates and not self._ratios:
            ratios = torch.stack(list(self.updates.values())).tolist()
            self._ratios = dict(zip(self.updates, ratios, strict=True))
        return self._ratios

    def usual_update(self) -> float:
        """The median of these over the parameters that moved; NaN where none did (at checks only: it waits)."""
        moved = [r for r in self.update_ratios().values() if 0 < r < math.inf]
        return median(moved) if moved else math.nan

    def look_again(self) -> None:
        """Read tensor rates anew at the next step, and ask again what kind of tensors weights are (called at checks)."""
        self._rates.clear()
        for table in self._tables.values():
            table.small = are_small(table.params)


def _on_host(value: Tensor | float) -> bool:
    return isinstance(value, float) or value.device.type == "cpu"


def _packed(losses: Sequence[Tensor | float], reading: GradientReading) -> Tensor:
    """Losses, total norm and norms as one vector, on the device where the first of them lies that is on one."""
    measured = reading is not NOT_MEASURED
    elsewhere = (v.device for v in losses if isinstance(v, Tensor) and v.device.type != "cpu")
    home = reading.norms.device if measured else next(elsewhere)
    numbers = [*losses, reading.total if measured else math.nan]
    there = [
        v.to(home, torch.float32, non_blocking=True).view(1)
        if isinstance(v, Tensor)
        else torch.full((1,), v, device=home, dtype=torch.float32)
        for v in numbers
    ]
    return torch.cat([*there, reading.norms] if measured else there)


def planned_steps(trainer: Any) -> float:
    """Optimizer steps this fit was told to make in all; infinite where neither steps nor epochs are bounded."""
    bounded = trainer.max_steps is not None and trainer.max_steps > 0
    by_steps = float(trainer.max_steps) if bounded else math.inf
    if trainer.max_epochs is None or trainer.max_epochs < 0:
        return by_steps
    batches = float(trainer.num_training_batches)
    steps = math.ceil(batches / trainer.accumulate_grad_batches) if math.isfinite(batches) else math.inf
    return min(by_steps, trainer.max_epochs * steps)


def run_again(trainer: Any, module: Any, batch: tuple[Any, int]) -> Tensor | None:
    """The loss of this batch once more, with its graph, and nothing changed by it; None where that cannot be promised.

    Random numbers, BatchNorm's statistics and what the step writes down on its modules are put back, and nothing is
    logged. Manual optimisation would make steps, metrics inside the module would count twice, and a compiled step hides
    its graph: there it is not run. Of several ranks one may run it alone: what wraps the module, and would wait for the
    others, is left out.
    """
    compiled = getattr(module, "_compiler_ctx", None) is not None
    counts = any(hasattr(m, "_update_count") for m in module.modules())  # a torchmetrics metric
    shared = isinstance(getattr(trainer.strategy, "model", None), DistributedDataParallel)
    sharded = not shared and trainer.world_size > 1
    waits = trainer.world_size > 1 and any(isinstance(m, SyncBatchNorm) for m in module.modules())
    if not module.automatic_optimization or compiled or counts or sharded or waits:
        return None
    # copies take the place of the buffers: written to, the graph that still waits for its backward pass would be spoilt
    buffers = [(m, name, b) for m in module.modules() for name, b in m._buffers.items() if b is not None]
    arguments = trainer.fit_loop.epoch_loop._build_kwargs(OrderedDict(), *batch)
    quiet = {name: vars(module).get(name) for name in ("log", "log_dict")}
    module.__dict__.update({name: lambda *args, **kwargs: None for name in quiet})
    for part, name, buffer in buffers:
        part._buffers[name] = buffer.detach().clone()
    try:
        context = trainer.precision_plugin.train_step_context()
        with isolate_rng(), untouched(module), torch.enable_grad(), context:
            output = module.training_step(*arguments.values())
    except Exception:  # what failed twice is the user's to see, in the run itself
        return None
    finally:
        for name, kept in quiet.items():
            if kept is None:
                del module.__dict__[name]
            else:
                module.__dict__[name] = kept
        for part, name, buffer in buffers:
            part._buffers[name] = buffer
    loss = output.get("loss") if isinstance(output, dict) else output
    return loss if isinstance(loss, Tensor) and loss.requires_grad else None
