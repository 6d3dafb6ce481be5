"""The training loaders as Lightning runs them: their settings and their workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, IterableDataset


@dataclass(frozen=True)
class Loader:
    """One loader of the training; `name` is how a user knows it."""

    name: str
    it: Any

    @property
    def is_loader(self) -> bool:
        """Whether it is PyTorch's DataLoader: a list or a generator has nothing to set."""
        return isinstance(self.it, DataLoader)

    @property
    def iterable(self) -> bool:
        return self.is_loader and isinstance(self.it.dataset, IterableDataset)

    @property
    def workers(self) -> int:
        return int(self.it.num_workers) if self.is_loader else 0

    def of(self, iterator: Any) -> bool:
        """Whether this iterator is one of this loader's."""
        return self.is_loader and getattr(iterator, "_dataset", None) is self.it.dataset

    @property
    def persistent(self) -> bool:
        return self.is_loader and bool(self.it.persistent_workers)

    def settings(self) -> str:
        """The settings that decide how fast it is, as a person would write them."""
        if not self.is_loader:
            return f"a {type(self.it).__name__}, which prepares batches in the training process"
        it = self.it
        parts = [f"batch_size={it.batch_size}", f"num_workers={it.num_workers}"]
        if it.num_workers:
            parts += [f"prefetch_factor={it.prefetch_factor}", f"persistent_workers={it.persistent_workers}"]
        return ", ".join([*parts, f"pin_memory={it.pin_memory}"])


def train_loaders(trainer: Any) -> list[Loader]:
    """The loaders of the running fit, after Lightning has put its samplers in."""
    combined = trainer.fit_loop._combined_loader
    leaves = list(combined.flattened) if combined is not None else []
    if len(leaves) == 1:
        return [Loader("training loader", leaves[0])]
    return [Loader(f"training loader {i}", leaf) for i, leaf in enumerate(leaves)]


def live_iterators(trainer: Any, ended: bool = False) -> list[Any]:
    """The iterators of the training that run worker processes now, in the order of the loaders.

    Args:
        ended: also those whose workers have been sent home.
    """
    combined = trainer.fit_loop._combined_loader
    modes = getattr(combined, "_iterator", None)
    found = list(getattr(modes, "iterators", []))
    if combined is not None:
        found += [getattr(leaf, "_iterator", None) for leaf in combined.flattened]
    alive = [i for i in found if getattr(i, "_workers", None) and (ended or not getattr(i, "_shutdown", False))]
    return list({id(i): i for i in alive}.values())


def ms(seconds: float) -> str:
    """A duration as a person reads it: "4.2 ms", "310 ms", "2.5 s"."""
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms"


def plural(count: int, what: str) -> str:
    """ "1 core", "2 cores"."""
    return f"{count} {what}{'s' * (count != 1)}"
