"""How far a step moves the weights, from a fixed sample of them: bounded memory, no wait, whatever the optimizer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SAMPLE = 1024  # elements a parameter, evenly spaced


class WeightSample:
    """The same few elements of every parameter, before and after a step.

    Args:
        params: parameters of any shape, type and device; more than `SAMPLE` elements are read at an even stride.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        self.params = [p for p in params if p.layout is torch.strided]
        self.before: list[Tensor] = []

    def take(self) -> None:
        """Copy the sample as it is now."""
        with torch.no_grad():
            self.before = [_sample(p).clone() for p in self.params]

    def ratios(self) -> Tensor:
        """Per parameter, norm of the change since `take` over the norm before it; shape (P,), float32.

        A weight that was exactly zero has no ratio: 0 if it stayed, infinite if it moved. NaN where the parameter has
        another shape by now.
        """
        with torch.no_grad():
            moved = [_change(p, b) for p, b in zip(self.params, self.before, strict=True)]
            home = self.before[0].device
            changes = torch.stack([n.to(home) for n in torch._foreach_norm(_real(moved), 2)]).float()
            sizes = torch.stack([n.to(home) for n in torch._foreach_norm(_real(self.before), 2)]).float()
        self.before = []
        return torch.where(changes == 0, torch.zeros_like(changes), changes / sizes)


def _change(p: Tensor, before: Tensor) -> Tensor:
    now = _sample(p)
    return now.sub(before) if now.shape == before.shape else torch.full_like(before, torch.nan)


def _sample(p: Tensor) -> Tensor:
    flat = p.detach().reshape(-1) if p.is_contiguous() else p.detach().flatten()
    stride = max(1, flat.numel() // SAMPLE)
    return flat[::stride][:SAMPLE]


def _real(values: Sequence[Tensor]) -> list[Tensor]:
    return [torch.view_as_real(v).float() if v.is_complex() else v.float() for v in values]
