"""What weights tell by themselves: whether they were ever trained, and how far decay has worn them."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from lightning_stall.measure.gradients import is_dtensor

FEW = 12  # weights under which nothing can be told
_LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def untrained(module: nn.Module) -> bool:
    """Whether this layer's weight is still what torch's default initialisation drew.

    Linear and convolution layers start uniform on (-1/sqrt(fan_in), 1/sqrt(fan_in)); recurrent ones on 1/sqrt(hidden);
    tables of embeddings are normal with deviation 1. Trained weights leave that interval or its spread. False for any
    layer too small to tell (under 12 weights), and for layers of other kinds. Waits for the device: call it at checks.
    """
    if any(is_dtensor(p) for p in module.parameters(recurse=False)):
        return False  # a look at the whole of it would wait for the other ranks
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return _normal(module.weight)
    if isinstance(module, _LINEAR) and not isinstance(module.weight, UninitializedParameter):
        if module.weight.ndim < 2 or not module.weight.numel():
            return False  # a rank's own part of it, which has lost its shape
        fan_in = module.weight[0].numel()
        return _uniform(module.weight, 1 / math.sqrt(fan_in))
    if isinstance(module, nn.RNNBase):
        return _uniform(cast(Tensor, module.weight_hh_l0), 1 / math.sqrt(module.hidden_size))
    return False


def _uniform(weight: Tensor, bound: float) -> bool:
    if isinstance(weight, UninitializedParameter) or weight.is_meta or weight.numel() < FEW:
        return False
    w = weight.detach().float().flatten()
    top, spread = torch.stack([w.abs().max(), w.std()]).tolist()
    slack = 3 / math.sqrt(w.numel())  # the sample's own error of the standard deviation, generously
    least = 0.9 if len(w) >= 64 else 0.7  # a dozen draws may all keep away from the end
    return bool(least * bound < top <= 1.0001 * bound and abs(spread * math.sqrt(3) / bound - 1) < slack)


def _normal(weight: Tensor) -> bool:
    if weight.is_meta or weight.numel() < 64 or not weight.is_floating_point():
        return False
    w = weight.detach().float()
    w = w[w.any(1)] if w.ndim == 2 else w  # a padding row stays at 0
    if w.numel() < 64:
        return False
    mean, spread = torch.stack([w.mean(), w.std()]).tolist()
    error = 1 / math.sqrt(w.numel())
    return abs(mean) < 4 * error and abs(spread - 1) < 3 * error
