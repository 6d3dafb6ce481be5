"""Whether weights start where training can begin: not all alike, and of a size that fits their fan-in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

_KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.RNNBase)


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
    """The linear, convolution and recurrent layers of a module that need a gradient. Waits for the device, once."""
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
            layers.append((name, w.shape[1] if recurrent else w[0].numel()))
    if not layers:
        return []
    numbers = torch.stack(packed).tolist()
    return [
        Start(name, rms * math.sqrt(fan_in), spread == 0.0)
        for (name, fan_in), (rms, spread) in zip(layers, numbers, strict=True)
    ]
