"""What a step did, from a few elements of each weight: how far it went along the gradient after it, what it left."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_stall.measure.gradients import stored


def few(p: Tensor, count: int = 256) -> Tensor:
    """Up to `count` elements, evenly spaced; a view where that can be. Of a tensor spread over ranks, this rank's own."""
    flat = stored(p.detach()).reshape(-1)
    return flat[:: max(1, flat.numel() // count)][:count]


def leftover(optimizer: Optimizer) -> Tensor:
    """Whether any of an optimizer's gradients is there and not zero, from its first few parameters, on their device."""
    grads = [p.grad for g in optimizer.param_groups for p in g["params"][:4] if p.grad is not None][:4]
    dense = [g for g in grads if _plain(g) and g.numel()]
    if not dense:
        device = optimizer.param_groups[0]["params"][0].device if optimizer.param_groups[0]["params"] else "cpu"
        return torch.zeros((), dtype=torch.bool, device=device)
    return torch.stack([g.detach().abs().max() > 0 for g in dense]).any()


def overshoot(params: Sequence[Tensor], moved: Sequence[Tensor]) -> Tensor:
    """Cosine between a step and the gradient after it, over the sampled elements: positive where the step overshot."""
    pairs = [
        (few(p.grad).float(), m.float())
        for p, m in zip(params, moved, strict=False)
        if p.grad is not None and _plain(p.grad)
    ]
    if not pairs:
        return torch.tensor(math.nan, dtype=torch.float32)
    home = pairs[0][0].device
    grad = torch.cat([g.to(home) for g, _ in pairs])
    step = torch.cat([m.to(home) for _, m in pairs])
    return (grad @ step) / (grad.norm() * step.norm())


def _plain(grad: Tensor) -> bool:
    return grad.layout is torch.strided and not hasattr(grad, "placements")
