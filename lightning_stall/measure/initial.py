"""Whether weights start where training can begin: not all alike, and of a size that fits their fan-in."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

_KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.RNNBase, nn.Embedding)
_DEFAULT = 3**-0.5  # torch's own of a linear layer
LEAST_SIDE = 4  # rows and columns of a matrix
_WIDE = 14.0  # root mean square of an embedding, 1 of torch's own, up to which it is not looked at: many start small


@dataclass(frozen=True)
class Start:
    """The first weights of one layer.

    Attributes:
        name: the layer's.
        gain: standard deviation times sqrt(fan_in): 0.58 for torch's default, 1.4 for He, 1 for LeCun (Glorot 2010, He
            2015). Near 0 the signal dies on its way, far above 1 it explodes.
        alike: all weights are one number, so that all units stay one unit.
    """

    name: str
    gain: float
    alike: bool


def starts(module: nn.Module) -> list[Start]:
    """The linear, convolution and recurrent layers that need a gradient, and embeddings that are very wide.

    Waits for the device, once.
    """
    named = [(n, m) for n, m in module.named_modules() if isinstance(m, _KINDS)]
    layers, packed = [], []
    with torch.no_grad():
        for name, layer in named:
            recurrent = isinstance(layer, nn.RNNBase)
            weight = cast(Tensor, layer.weight_hh_l0 if recurrent else layer.weight)
            unborn = isinstance(weight, UninitializedParameter) or weight.is_meta  # a lazy layer before its first batch
            in_parts = weight.ndim < 2 or hasattr(weight, "placements")  # this rank's own, of FSDP
            if unborn or in_parts or not weight.requires_grad or weight.numel() < 16:
                continue
            w = weight.detach().float()
            packed.append(torch.stack([w.square().mean().sqrt(), w.max() - w.min()]).cpu())
            fan_in = w.shape[1] if recurrent else w[0].numel()
            layers.append((name, fan_in, isinstance(layer, nn.Embedding)))
        for name, weight in _matrices(module):
            w = weight.detach().float()
            packed.append(torch.stack([w.square().mean().sqrt(), w.max() - w.min()]).cpu())
            layers.append((name, 0, False))
    if not layers:
        return []
    numbers = torch.stack(packed).tolist()
    found = []
    for (name, fan_in, table), (rms, spread) in zip(layers, numbers, strict=True):
        if not fan_in:  # one's own matrix, which may be used either way round: 0 is a start for some
            found.append(Start(name, _DEFAULT, spread == 0.0 and rms > 0))
        elif not table:
            found.append(Start(name, rms * math.sqrt(fan_in), spread == 0.0))
        elif rms > _WIDE:
            found.append(Start(name, rms * _DEFAULT, False))
    return found


def _matrices(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters of two dimensions that the user's own modules hold, and that are trained."""
    for path, owner in module.named_modules():
        if type(owner).__module__.startswith("torch."):
            continue
        for name, p in owner.named_parameters(recurse=False):
            unfit = isinstance(p, UninitializedParameter) or p.is_meta or hasattr(p, "placements")
            if not unfit and p.requires_grad and p.ndim == 2 and min(p.shape) >= LEAST_SIDE and p.is_floating_point():
                yield f"{path}.{name}" if path else name, p
