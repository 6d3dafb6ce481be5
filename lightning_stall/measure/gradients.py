"""Gradients measured on the device: tensors in, tensors out, no wait for the host.

One formula serves every strategy. A rank adds the squares of what it holds, each divided by the number of ranks that
hold the same, and the sums are added over all ranks: the norm of the whole gradient, the same on every rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from operator import attrgetter, or_
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import Module

# bfloat16 and half gradients are summed in float32: in their own type a norm has 3 digits, or overflows
_SUMMED_IN_FLOAT32 = frozenset({torch.float32, torch.bfloat16, torch.float16})
# The CPU adds up in one float32 sum, which is off by 1e-7 for a thousand numbers and by 3e-4 for ten million
LONG = 65536  # elements that it may add up so, off by 5e-7; beyond, row by row
ROW = 1024  # elements
MANY = 16  # tensors of a GPU, from which on a kernel of our own is cheaper than one answer for each
ALIGNED = 16  # bytes that it reads at once
LAYOUTS = 16  # sets of sizes that are remembered
_BYTES, _DTYPE = attrgetter("nbytes"), attrgetter("dtype")


def gradient_norms(
    grads: Sequence[Tensor | None], device: torch.device | None = None, copies: float | None = None
) -> Tensor:
    """2-norm of each gradient, in float32. A collective where gradients lie in parts on several ranks.

    Args:
        grads: one gradient a parameter, of any shape, type, layout and device; None reads as 0.
        device: where the answer lies; by default the first gradient's device.
        copies: for plain tensors that are a rank's own part of a gradient (FSDP1), the number of ranks that hold the
            same part; None where each rank holds them whole. A DTensor knows by itself.

    Returns:
        Tensor of shape (len(grads),), float32. A non-finite gradient gives a non-finite norm.
    """
    present = [g for g in grads if g is not None]
    norms = _norms_of_plain(present)
    plain = norms is not None
    if norms is None:
        norms = _norms_of_any(present, device)
    elif device is not None:
        norms = norms.to(device, non_blocking=True)
    if len(present) < len(grads):
        where = tuple(i for i, g in enumerate(grads) if g is not None)
        full = torch.zeros(len(grads), device=norms.device, dtype=norms.dtype)
        norms = full.index_copy_(0, _index(where, norms.device), norms) if where else full
    if copies is not None or (not plain and any(is_dtensor(g) for g in present)):
        norms = _over_ranks(norms, [_copies(g, copies) for g in grads])
    return norms


def norms_on_host(grads: Iterable[Tensor | None]) -> list[float] | None:
    """The numbers of `gradient_norms`, where all gradients are ordinary CPU tensors; None for any others.

    Tensor by tensor: `torch._foreach_norm` does no more on a CPU, and takes half as long again.
    """
    norm, float32, found = torch.linalg.vector_norm, torch.float32, list[float]()
    try:
        for g in grads:
            if g is None:
                found.append(0.0)
            elif type(g) is not Tensor or not g.is_cpu or g.dtype not in _SUMMED_IN_FLOAT32:
                return None
            else:
                found.append((_by_rows(g) if g.numel() > LONG else norm(g, dtype=float32)).item())
    except RuntimeError:  # a sparse one among them
        return None
    return found


def norms_of_small(params: Sequence[Tensor]) -> list[float] | None:
    """The same for the gradients of these, where `are_small` has said that they are: with nothing asked of each."""
    norm = torch.linalg.vector_norm
    try:
        return [0.0 if (g := p.grad) is None else norm(g).item() for p in params]
    except RuntimeError:
        return None


def are_small(params: Sequence[Tensor]) -> bool:
    """Whether all are float32 tensors of a CPU that one sum is exact enough for."""
    return all(p.is_cpu and p.dtype is torch.float32 and p.numel() <= LONG and not is_dtensor(p) for p in params)


def total_norm(norms: Tensor) -> Tensor:
    """2-norm over all parameters, from the norms of each: shape (P,) to shape (), float32."""
    return torch.linalg.vector_norm(norms)


def gradient_is_finite(loss: Tensor, params: Sequence[Tensor]) -> bool:
    """Whether the slopes of this loss are numbers, on this rank alone. Waits for the device; keeps the graph."""
    grads = torch.autograd.grad(loss, list(params), retain_graph=True, allow_unused=True)
    return bool(gradient_norms(grads).isfinite().all())


def stored(grad: Tensor) -> Tensor:
    """What this rank stores of a gradient, to be changed in place: a sparse one's values, a DTensor's own part."""
    if is_dtensor(grad):
        grad = grad.to_local()  # type: ignore[attr-defined]
    if grad.layout is torch.strided:
        return grad
    return grad._values() if grad.layout is torch.sparse_coo else grad.values()


def is_dtensor(grad: Tensor | None) -> bool:
    """Whether this is a tensor spread over a mesh of ranks (FSDP2, tensor parallel)."""
    return grad is not None and type(grad) is not Tensor and hasattr(grad, "placements")


def in_parts(model: Module, copies: float | None) -> bool:
    """Whether weights lie in parts on several ranks: no layer's is whole, and the graph holds others than optimizers do.

    Args:
        model: of any kind.
        copies: the answer of `shard_copies` for what wraps it.
    """
    return copies is not None or any(is_dtensor(p) for p in model.parameters())


def shard_copies(model: Module) -> float | None:
    """How many ranks hold the same part of an FSDP1 model; None where it is not one, or every rank holds it whole."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy

    for module in model.modules():
        if isinstance(module, FullyShardedDataParallel):
            if module.sharding_strategy is ShardingStrategy.NO_SHARD:
                return None
            group = module.process_group
            return dist.get_world_size() / (group.size() if group is not None else 1)
    return None


# ---------------------------------------------------------------------- one rank


def _norms_of_plain(grads: list[Tensor]) -> Tensor | None:
    """Norms of ordinary tensors of one type on one device, as one vector; None for any others."""
    if len(grads) >= MANY and grads[0].is_cuda:
        together = _norms_on_gpu(grads)
        if together is not None:
            return together
    norms = _each_norm(grads) if grads else None
    try:
        return None if norms is None else torch.stack(norms)
    except RuntimeError:  # one on another device among them
        return None


_LAYOUTS: dict[tuple[torch.dtype, int, tuple[int, ...]], Any] = {}
_without_kernel = False  # there is no Triton here, or it failed once


def _norms_on_gpu(grads: list[Tensor]) -> Tensor | None:
    """Norms of dense tensors of one type on the current GPU, by a kernel of our own; None for any others."""
    global _without_kernel
    addresses = None if _without_kernel else _readable(grads)
    if addresses is None:
        return None
    key = grads[0].dtype, grads[0].get_device(), tuple(map(_BYTES, grads))
    try:
        layout = _LAYOUTS.get(key)
        if layout is None:
            from lightning_stall.measure.gradient_kernel import Layout

            if len(_LAYOUTS) >= LAYOUTS:
                del _LAYOUTS[next(iter(_LAYOUTS))]
            layout = _LAYOUTS[key] = Layout.of(grads)
        norms: Tensor = layout.norms(addresses)
    except Exception:  # no Triton, or no compiler that it could build its launcher with
        _without_kernel = True
        return None
    return norms


def _readable(grads: list[Tensor]) -> list[int] | None:
    """Where these lie, if the kernel can read them: plain, dense, of one type summed in float32, on the current GPU."""
    dtype, home = grads[0].dtype, grads[0].get_device()
    if dtype not in _SUMMED_IN_FLOAT32 or set(map(type, grads)) != {Tensor} or set(map(_DTYPE, grads)) != {dtype}:
        return None
    if home != torch.cuda.current_device() or set(map(Tensor.get_device, grads)) != {home}:
        return None
    try:
        addresses = list(map(Tensor.data_ptr, grads))
        dense = all(map(Tensor.is_contiguous, grads))
    except RuntimeError:  # a sparse one among them
        return None
    return addresses if dense and not reduce(or_, addresses) % ALIGNED else None


def _each_norm(grads: list[Tensor]) -> list[Tensor] | None:
    """Norms of ordinary tensors of one type, in float32; None for any others."""
    dtypes = {g.dtype for g in grads}
    if len(dtypes) > 1 or not dtypes <= _SUMMED_IN_FLOAT32 or set(map(type, grads)) != {Tensor}:
        return None
    try:
        return list(_norms(grads))
    except RuntimeError:  # a sparse one, or one on another device, among them
        return None


def _norms_of_any(grads: list[Tensor], device: torch.device | None) -> Tensor:
    """Norms of what this rank holds of any tensors, as one vector."""
    if not grads:
        return torch.zeros(0, device=device, dtype=torch.float32)
    values = [_dense(g) for g in grads]
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, v in enumerate(values):
        groups.setdefault((v.device, v.dtype), []).append(i)
    found = list(values)
    for members in groups.values():
        for i, n in zip(members, _norms([values[i] for i in members]), strict=True):
            found[i] = n
    home = device or values[0].device
    return torch.stack([n.to(home, non_blocking=True) for n in found])


def _dense(grad: Tensor) -> Tensor:
    """A gradient's values on this rank as a real dense tensor: a sparse one coalesced, a complex one as pairs."""
    if is_dtensor(grad):
        placements = grad.placements  # type: ignore[attr-defined]
        if any(p.is_partial() for p in placements):  # ranks hold summands, and a norm is not a sum
            from torch.distributed.tensor import Replicate

            grad = grad.redistribute(placements=[Replicate() if p.is_partial() else p for p in placements])  # type: ignore[attr-defined]
        grad = grad.to_local()  # type: ignore[attr-defined]
    if grad.layout is not torch.strided:
        grad = grad.coalesce().values() if grad.layout is torch.sparse_coo else grad.values()
    return torch.view_as_real(grad) if grad.is_complex() else grad


def _norms(values: list[Tensor]) -> Sequence[Tensor]:
    """Norms of real dense tensors of one type, in float32."""
    dtype = values[0].dtype
    if dtype is torch.float64:
        return [n.float() for n in torch._foreach_norm(values)]
    if values[0].device.type == "cpu" and any(v.numel() > LONG for v in values):
        short = iter(_norms([v for v in values if v.numel() <= LONG]) if any(v.numel() <= LONG for v in values) else ())
        return [_by_rows(v) if v.numel() > LONG else next(short) for v in values]
    if dtype is torch.float32:
        return torch._foreach_norm(values)
    return torch._foreach_norm(values, 2, dtype=torch.float32)


def _by_rows(value: Tensor) -> Tensor:
    """The norm of the norms of short rows."""
    flat = value.flatten()
    whole = flat.numel() // ROW * ROW
    rows = torch.linalg.vector_norm(flat[:whole].view(-1, ROW), dim=1, dtype=torch.float32)
    norm = torch.linalg.vector_norm(rows)
    if whole == flat.numel():
        return norm
    return torch.hypot(norm, torch.linalg.vector_norm(flat[whole:], dtype=torch.float32))


_INDEX: dict[tuple[tuple[int, ...], torch.device], Tensor] = {}


def _index(present: tuple[int, ...], home: torch.device) -> Tensor:
    """The same parameters have a gradient step after step: their index goes to the device once."""
    key = (present, home)
    if key not in _INDEX:
        if len(_INDEX) > 64:
            _INDEX.clear()
        _INDEX[key] = torch.tensor(present).to(home)
    return _INDEX[key]


# ---------------------------------------------------------------------- all ranks


def _copies(grad: Tensor | None, plain: float | None) -> float:
    """How many ranks hold the same values as this one."""
    if not is_dtensor(grad):
        return dist.get_world_size() if plain is None else plain
    mesh, parts = grad.device_mesh, 1  # type: ignore[union-attr]
    for size, placement in zip(mesh.shape, grad.placements, strict=True):  # type: ignore[union-attr]
        if not (placement.is_replicate() or placement.is_partial()):  # a partial one was completed before
            parts *= size
    return dist.get_world_size() / parts


_WEIGHTS: dict[tuple[tuple[float, ...], torch.device], Tensor] = {}


def _over_ranks(norms: Tensor, copies: list[float]) -> Tensor:
    """Norms of whole gradients from those of each rank's parts: one all-reduce of as many numbers as parameters."""
    key = (tuple(copies), norms.device)
    if key not in _WEIGHTS:
        if len(_WEIGHTS) > 64:
            _WEIGHTS.clear()
        _WEIGHTS[key] = torch.tensor([1 / c for c in copies], dtype=torch.float64).to(norms.device)
    squares = norms.double().square_().mul_(_WEIGHTS[key])
    dist.all_reduce(squares)
    return squares.sqrt_().float()
