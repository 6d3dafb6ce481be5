"""Gradients measured on the device: tensors in, tensors out, no wait for the host."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def dense_values(grad: Tensor) -> Tensor:
    """The stored values of a gradient as a real dense tensor: a sparse one's coalesced values, a complex one as pairs."""
    if grad.layout is not torch.strided:
        grad = grad.coalesce().values() if grad.layout is torch.sparse_coo else grad.values()
    return torch.view_as_real(grad) if grad.is_complex() else grad


def gradient_norms(grads: Sequence[Tensor | None], device: torch.device | None = None) -> Tensor:
    """2-norm of each gradient, in float32.

    Args:
        grads: one gradient a parameter, of any shape, type, layout and device; None reads as 0.
        device: where the answer lies; by default the first gradient's device.

    Returns:
        Tensor of shape (len(grads),), float32. A non-finite gradient gives a non-finite norm.
    """
    present = [i for i, g in enumerate(grads) if g is not None]
    if not present:
        return torch.zeros(len(grads), device=device)
    values = [dense_values(g) for g in (grads[i] for i in present) if g is not None]
    home = device or values[0].device
    # bfloat16 and half gradients are summed in float32: in their own type a norm has 3 digits, or overflows
    norms = _foreach_norm(values)
    packed = torch.stack([n if n.device == home else n.to(home, non_blocking=True) for n in norms])
    if len(present) == len(grads):
        return packed
    full = torch.zeros(len(grads), device=home)
    return full.index_copy_(0, _index(tuple(present), home), packed)


def total_norm(norms: Tensor) -> Tensor:
    """2-norm over all parameters, from the norms of each: shape (P,) to shape ()."""
    return torch.linalg.vector_norm(norms)


_INDEX: dict[tuple[tuple[int, ...], torch.device], Tensor] = {}


def _index(present: tuple[int, ...], home: torch.device) -> Tensor:
    """The same parameters have a gradient step after step: their index goes to the device once."""
    key = (present, home)
    if key not in _INDEX:
        if len(_INDEX) > 64:
            _INDEX.clear()
        _INDEX[key] = torch.tensor(present).to(home)
    return _INDEX[key]


def _foreach_norm(values: list[Tensor]) -> list[Tensor]:
    """`torch._foreach_norm`, grouped by device and type, since one call takes one of each."""
    first = values[0]
    if all(v.device == first.device and v.dtype == first.dtype for v in values):
        return _norms_of_a_kind(values)
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, v in enumerate(values):
        groups.setdefault((v.device, v.dtype), []).append(i)
    norms: list[Tensor] = [first] * len(values)
    for members in groups.values():
        for i, n in zip(members, _norms_of_a_kind([values[i] for i in members]), strict=True):
            norms[i] = n
    return norms


def _norms_of_a_kind(values: list[Tensor]) -> list[Tensor]:
    if values[0].dtype == torch.float32:
        return list(torch._foreach_norm(values))
    if values[0].dtype == torch.float64:
        return [n.float() for n in torch._foreach_norm(values)]
    return list(torch._foreach_norm(values, 2, dtype=torch.float32))
