"""The sizes of the batches that a loader is about to give, known without drawing one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, IterableDataset


@dataclass(frozen=True)
class LoaderPlan:
    """The sizes of the batches that a loader is about to give, known without drawing one."""

    samples: int | None  # in all; None where the batches are listed one by one
    usual: int  # samples of a full batch
    batches: int
    odd: tuple[tuple[int, int], ...]  # (batch index, samples) of those that hold fewer

    @classmethod
    def of(cls, loader: Any) -> LoaderPlan | None:
        """None where the sizes are not known beforehand: an iterable dataset, a batch sampler with a way of its own."""
        if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
            return None
        sampler = loader.batch_sampler
        if isinstance(sampler, (list, tuple)):
            sizes = [len(indices) for indices in sampler]
            usual = max(sizes, default=0)
            return cls(None, usual, len(sizes), tuple((i, n) for i, n in enumerate(sizes) if n < usual))
        # a subclass that makes its batches in another way cannot be counted without drawing random numbers
        if not isinstance(sampler, BatchSampler) or type(sampler).__iter__ is not BatchSampler.__iter__:
            return None
        try:
            samples = len(sampler.sampler)  # type: ignore[arg-type]
        except TypeError:
            return None
        full, rest = divmod(samples, sampler.batch_size)
        if not rest or sampler.drop_last:
            return cls(samples, sampler.batch_size, full, ())
        return cls(samples, sampler.batch_size, full + 1, ((full, rest),))


def small_batches(plans: Sequence[LoaderPlan | None], limits: Sequence[float]) -> Iterator[tuple[int, int, int]]:
    """Batches that hold fewer samples than usual: (batch index in the epoch, loader, samples).

    Args:
        plans: one a loader, in the order of `CombinedLoader.flattened`. They stand side by side (the only way that
            Lightning trains with several), so a loader's own batch index is the epoch's.
        limits: batches that may be taken of each loader.
    """
    for i, (plan, limit) in enumerate(zip(plans, limits, strict=True)):
        for index, samples in plan.odd if plan is not None else ():
            if index < limit:
                yield index, i, samples


def ways_out(plan: LoaderPlan, loader: str = "train_loader") -> str:
    """Advice against an incomplete last batch: leave it out, or choose a size that makes none."""
    line = f"    {loader} = DataLoader(dataset, batch_size={{}}, shuffle=True{{}})"
    drop = "Leave that batch out:\n\n" + line.format(plan.usual, ", drop_last=True")
    if plan.samples is None:
        return "Leave the batches of one sample out of your batch sampler's list, or join them to their neighbours."
    nearest = sorted(range(2, 2 * plan.usual + 1), key=lambda size: abs(size - plan.usual))
    rest = {size: plan.samples % size or size for size in nearest}
    better = next((size for size in nearest if rest[size] >= max(2, size // 2)), None)
    if better is None:
        return drop
    return f"{drop}\n\nor choose a batch size that leaves more over (here {rest[better]}):\n\n{line.format(better, '')}"
