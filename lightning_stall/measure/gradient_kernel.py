"""The norms of many tensors of one GPU in two launches, whatever their number.

`torch._foreach_norm` makes a tensor for each of its answers and hands them over in dozens of launches, which a step of a
few milliseconds feels. Here a table on the device says where the tensors lie. How they are cut does not change from step to
step, so that only their addresses are sent. Needs Triton, which comes with PyTorch's builds for GPUs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 65536  # elements that one program adds up
BLOCK = 4096  # of them at a time
PARTS = 256  # sums of chunks at a time
WARPS = 8
TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
ALIGNED = tl.constexpr(16)  # bytes: an allocation begins at a multiple of 512, but a tensor may be a view into another


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _squares(  # type: ignore[no-untyped-def]
    addresses, sizes, owners, starts, sums, kind: tl.constexpr, size_of_chunk: tl.constexpr, block: tl.constexpr
):
    """The sum of squares of one chunk of one tensor."""
    chunk = tl.program_id(0)
    owner = tl.load(owners + chunk)
    start = tl.multiple_of(tl.load(starts + chunk), size_of_chunk)
    size = tl.load(sizes + owner)
    first = tl.multiple_of(tl.load(addresses + owner).to(tl.pointer_type(kind)), ALIGNED) + start
    lanes = tl.arange(0, block)
    total = tl.zeros((block,), tl.float32)
    left = tl.minimum(size - start, size_of_chunk).to(tl.int32)
    if left == size_of_chunk:
        for done in range(0, size_of_chunk, block):
            values = tl.load(first + done + lanes).to(tl.float32)
            total += values * values
    else:
        for done in range(0, left, block):
            values = tl.load(first + done + lanes, mask=done + lanes < left, other=0.0).to(tl.float32)
            total += values * values
    tl.store(sums + chunk, tl.sum(total, axis=0))


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _roots(sums, begins, norms, parts: tl.constexpr):  # type: ignore[no-untyped-def]
    """The root of the sum of one tensor's chunks."""
    owner = tl.program_id(0)
    begin, end = tl.load(begins + owner), tl.load(begins + owner + 1)
    lanes = tl.arange(0, parts)
    total = tl.zeros((parts,), tl.float32)
    for part in range(begin, end, parts):
        total += tl.load(sums + part + lanes, mask=part + lanes < end, other=0.0)
    tl.store(norms + owner, tl.sqrt(tl.sum(total, axis=0)))


@dataclass
class Layout:
    """How tensors of given sizes and one type are cut into chunks; its tables lie on their device."""

    dtype: torch.dtype
    sizes: Tensor  # (tensors,), int64: elements
    owners: Tensor  # (chunks,), int32: whose chunk it is
    starts: Tensor  # (chunks,), int64: its first element
    begins: Tensor  # (tensors + 1,), int32: which chunks are whose

    @staticmethod
    def of(tensors: Sequence[Tensor]) -> Layout:
        """Of dense tensors of one type and device."""
        device = tensors[0].device
        sizes = torch.tensor([t.numel() for t in tensors])
        counts = (sizes + (CHUNK - 1)) // CHUNK
        begins = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        owners = torch.repeat_interleave(torch.arange(len(tensors)), counts)
        starts = (torch.arange(len(owners)) - begins[owners]) * CHUNK
        return Layout(
            tensors[0].dtype,
            _sent(sizes, device),
            _sent(owners.int(), device),
            _sent(starts, device),
            _sent(begins.int(), device),
        )

    def norms(self, addresses: Sequence[int]) -> Tensor:
        """The 2-norms, shape (tensors,), float32, of the tensors of these sizes that lie at `addresses`.

        They lie on the current GPU at multiples of `ALIGNED` bytes.
        """
        found = torch.empty_like(self.sizes, dtype=torch.float32)
        sums = torch.empty_like(self.owners, dtype=torch.float32)
        if sums.numel():
            _squares[(sums.numel(),)](
                torch.tensor(addresses, pin_memory=True).to(self.sizes.device, non_blocking=True),
                self.sizes,
                self.owners,
                self.starts,
                sums,
                kind=TYPES[self.dtype],
                size_of_chunk=CHUNK,
                block=BLOCK,
                num_warps=WARPS,
            )
        _roots[(found.numel(),)](sums, self.begins, found, parts=PARTS)
        return found


def _sent(table: Tensor, device: torch.device) -> Tensor:
    """A table of the host on `device`, which nobody waits for."""
    return table.pin_memory().to(device, non_blocking=True)
