"""Whether weights start where training can begin: not all alike, and of a size that fits their fan-in."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

_KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.RNNBase)


@dataclass(frozen=True)
class Start:
    """The first weights of one layer.

    Attributes:
        name: the layer's.
        gain: standard deviation times sqrt(fan_in): 0.58 for torch's default, 1.4 for He, 1 for LeCun (Glorot 2010, He
            2015). Near 0 the signal dies on its way, far above 1 it explodes.
        alike: all weights are one number, so that all units stay one unit.
        bias: mean absolute bias; 0 where there is none.
    """

    name: str
    gain: float
    alike: bool
    bias: float


def starts(module: nn.Module) -> list[Start]:
    """The linear, convolution and recurrent layers of a module that need a gradient. Waits for the device, once."""
    named = [(n, m) for n, m in module.named_modules() if isinstance(m, _KINDS)]
    layers, packed = [], []
    with torch.no_grad():
        for name, layer in named:
            weight = layer.weight_hh_l0 if isinstance(layer, nn.RNNBase) else layer.weight
            if not weight.requires_grad or weight.is_meta or weight.numel() < 16 or hasattr(weight, "placements"):
                continue
            w = weight.detach().float()
            recurrent = isinstance(layer, nn.RNNBase)
            bias = None if recurrent else layer.bias
            size = bias.detach().float().abs().mean() if bias is not None else w.new_zeros(())
            packed.append(torch.stack([w.square().mean().sqrt(), w.max() - w.min(), size]).cpu())
            layers.append((name, w[0].numel() if not recurrent else w.shape[1]))
    if not layers:
        return []
    numbers = torch.stack(packed).tolist()
    return [
        Start(name, rms * math.sqrt(fan_in), spread == 0.0, bias)
        for (name, fan_in), (rms, spread, bias) in zip(layers, numbers, strict=True)
    ]
