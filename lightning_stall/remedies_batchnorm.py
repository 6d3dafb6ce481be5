"""What the program may do for BatchNorm: spare it a batch, leave a batch out, put another layer in its place."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_stall.remedies import swap

CHANNELS_A_GROUP = 8  # at least: fewer would make the group's statistics as poor as those they replace
SLOPES = 0.05  # share of a batch in the running means of slopes
SOUND = 20  # values per channel whose statistics move the running ones by their whole momentum
MOST_GROUPS = 32
KEEP_BATCHES = 16
KEEP_BYTES = 256 << 20  # of device memory for batches kept to re-estimate with


@dataclass
class RunningInstead:
    """Lets layers normalise a batch by their running statistics, and puts their training flags back after it."""

    layers: list[_BatchNorm]
    forced: list[_BatchNorm] = field(default_factory=list, init=False)
    always: list[_BatchNorm] = field(default_factory=list, init=False)  # every batch is too small for these
    _drifts: dict[int, _Drift] = field(default_factory=dict, init=False, repr=False)
    _handles: list[Any] = field(default_factory=list, init=False, repr=False)

    def install(self) -> None:
        """Watch each layer's input: one value per channel, which PyTorch refuses, is met before it is refused."""
        self._handles = [layer.register_forward_pre_hook(self._meet) for layer in self.layers]

    def remove(self) -> None:
        self.release()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._drifts.clear()

    def force(self, layer: _BatchNorm) -> bool:
        """Normalise this layer's next batch by its running statistics, where it keeps any of its own."""
        if layer.training and layer.running_mean is not None and not isinstance(layer, nn.SyncBatchNorm):
            layer.training = False
            self.forced.append(layer)
            return True
        return False

    def release(self) -> list[_BatchNorm]:
        """Put the flags back. After the backward pass, for a checkpointed block runs again in it."""
        released, self.forced = self.forced, []
        for layer in released:
            layer.training = True
        return released

    def _meet(self, layer: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        x = args[0] if args else None
        if not isinstance(x, Tensor) or x.ndim < 2:
            return None
        if any(layer is m for m in self.always):
            if self.force(layer):
                _follow(layer, x)
            # a checkpointed block runs a second time, and must make the same graph
            ours = any(layer is m for m in self.forced)
            if ours and x.requires_grad and not torch.compiler.is_compiling():
                return (_Centred.apply(x, layer, self._drifts.setdefault(id(layer), _Drift())), *args[1:])
        elif x.numel() == x.shape[1]:
            self.force(layer)
        return None


@dataclass
class _Drift:
    """What slopes have been let through of a shift and of a scale of each channel, summed; it is given back bit by bit."""

    shift: Tensor | float = 0.0
    scale: Tensor | float = 0.0


class _Centred(torch.autograd.Function):
    """The input as it is; its gradient without what a shift or a scale of the whole channel would undo.

    By statistics of the batch, BatchNorm's backward pass takes the mean of the slopes out, and their part along the
    normalised values. Where the statistics are running ones nothing does, and weights in front drift without an end.
    Where a batch is too small for its own means, what was let through is taken back over the next ones, as in Online
    Normalization (Chiley et al., 2019, section 3.2).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: _BatchNorm, drift: _Drift) -> Tensor:
        shape = [1, -1, *[1] * (x.ndim - 2)]
        assert layer.running_mean is not None
        assert layer.running_var is not None
        scale = (layer.running_var + layer.eps).sqrt().view(shape)
        ctx.save_for_backward(((x - layer.running_mean.view(shape)) / scale).to(x.dtype), scale)
        ctx.drift = drift
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        out, scale = ctx.saved_tensors
        shape, across = scale.shape, [d for d in range(out.ndim) if d != 1]
        drift = ctx.drift
        slope = grads[0].to(scale.dtype) * scale
        slope = slope - SLOPES * out * _as(drift.scale, shape)
        drift.scale = drift.scale + _finite((slope * out).mean(across))
        slope = slope / scale - SLOPES * _as(drift.shift, shape)
        drift.shift = drift.shift + _finite(slope.mean(across))
        return slope.to(out.dtype), None, None


def _finite(value: Tensor) -> Tensor:
    """What a step that is not finite has let through is not taken back: it is left out, or has ended the run."""
    return torch.nan_to_num(value, 0.0, 0.0, 0.0)


def _as(value: Tensor | float, shape: torch.Size) -> Tensor | float:
    return value.view(shape) if isinstance(value, Tensor) else value


@torch.no_grad()
def _follow(layer: _BatchNorm, x: Tensor) -> None:
    """Move the running statistics towards those of this input, as the layer does in training."""
    if x.numel() == x.shape[1] or layer.running_mean is None or layer.running_var is None:
        return
    # few values move the averages the less, so that what they are made of stays enough values
    few = min(1.0, x.numel() / x.shape[1] / SOUND)
    share = few * (0.1 if layer.momentum is None else layer.momentum)
    across = [d for d in range(x.ndim) if d != 1]
    var, mean = torch.var_mean(x.float(), across)
    layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), share)
    layer.running_var.lerp_(var.to(layer.running_var.dtype), share)


def shorten_epoch(trainer: Any, batches: int) -> Callable[[], None]:
    """End each epoch after so many batches, for Lightning's loop, its fetcher and its validation schedule alike.

    Returns:
        Lets loaders that are made anew in a later epoch be whole again.
    """
    loop = trainer.fit_loop

    def shorten() -> None:
        combined, fetcher = loop._combined_loader, loop._data_fetcher
        combined.limits = [min(limit, batches) for limit in combined.limits]
        if combined._iterator is not None:
            combined._iterator.limits = combined.limits
        every = trainer.val_check_interval
        if isinstance(trainer.val_check_batch, int) and trainer.val_check_batch > 0:
            if isinstance(every, float):
                trainer.val_check_batch = max(1, int(batches * every))
            elif trainer.check_val_every_n_epoch is not None:
                trainer.val_check_batch = min(trainer.val_check_batch, batches)
        loop.max_batches = batches
        fetcher.length = batches

    def wrap(setup_data: Any) -> Any:
        def again() -> None:
            setup_data()
            if loop.max_batches > batches:
                shorten()

        return again

    shorten()
    return swap(loop, "setup_data", wrap)


@dataclass
class Conversion:
    """Puts other layers in the place of BatchNorm, before the model is wrapped and optimizers hold its parameters."""

    names: list[str] = field(default_factory=list)  # of the layers replaced and not yet told of
    kind: str = ""

    def convert(self, remedy: str, trainer: Any, module: nn.Module) -> None:
        """Do as the remedy says; SyncBatchNorm only where there are several accelerators."""
        if remedy == "group-norm":
            self.names, self.kind = to_group_norm(module), "GroupNorm"
        elif remedy == "sync" and trainer.world_size > 1 and trainer.strategy.root_device.type != "cpu":
            self.names, self.kind = to_sync(module), "SyncBatchNorm"

    def done(self) -> str | None:
        """What was done, in the past tense; None where nothing was."""
        return f"put {self.kind} in their place before training, with the same scale and shift" if self.names else None


def to_group_norm(module: nn.Module) -> list[str]:
    """Replace every BatchNorm inside `module` by GroupNorm with the same scale and shift; returns their names.

    The parameters are the same objects under the same names. At the start both normalise to zero mean and unit
    variance, over other sets of values; running statistics of a pretrained model are lost.
    """
    return _replace(module, _group_norm)


def to_sync(module: nn.Module) -> list[str]:
    """Replace every BatchNorm inside `module` by SyncBatchNorm with the same parameters and statistics."""
    return _replace(module, lambda bn: nn.SyncBatchNorm.convert_sync_batchnorm(bn))


def _group_norm(bn: _BatchNorm) -> nn.GroupNorm:
    channels = bn.num_features
    flat = isinstance(bn, nn.BatchNorm1d)  # its input may have no space: a group is then made of its channels alone
    fits = [g for g in range(1, MOST_GROUPS + 1) if channels % g == 0 and channels // g >= CHANNELS_A_GROUP]
    norm = nn.GroupNorm(1 if flat or not fits else max(fits), channels, eps=bn.eps, affine=bn.affine)
    if bn.affine:
        norm.weight, norm.bias = bn.weight, bn.bias
    return norm.train(bn.training)


def _replace(module: nn.Module, make: Callable[[_BatchNorm], nn.Module]) -> list[str]:
    made: dict[int, nn.Module] = {}
    names: list[str] = []
    for path, parent in list(module.named_modules()):
        for name, child in list(parent._modules.items()):
            if not isinstance(child, _BatchNorm) or isinstance(child, nn.SyncBatchNorm):
                continue
            if child.num_features:  # a lazy one has no size yet
                if id(child) not in made:
                    made[id(child)] = make(child)
                    names.append(f"{path}.{name}" if path else name)
                setattr(parent, name, made[id(child)])
    return names


@dataclass
class KeptBatches:
    """The last training batches, as many as fit into `KEEP_BYTES`, to re-estimate running statistics with."""

    batches: deque[tuple[Any, int]] = field(default_factory=deque, init=False)

    def keep(self, batch: Any, batch_idx: int) -> None:
        self.batches.append((batch, batch_idx))
        most = max(1, min(KEEP_BATCHES, KEEP_BYTES // max(1, _bytes(batch))))
        while len(self.batches) > most:
            self.batches.popleft()


def _bytes(batch: Any) -> int:
    if isinstance(batch, Tensor):
        return batch.numel() * batch.element_size()
    if isinstance(batch, dict):
        batch = list(batch.values())
    return sum(_bytes(part) for part in batch) if isinstance(batch, (list, tuple)) else 0
