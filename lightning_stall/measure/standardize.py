"""A fitted standardisation of some fields of a batch: what `InputHealth(standardize=True)` puts in front of a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_stall.measure.batches import replace_tensors
from lightning_stall.measure.columns import FieldWatch


@dataclass
class Standardizer:
    """(x - mean) / std for each field it has statistics of. Makes new tensors: what a dataset holds is not changed."""

    statistics: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return name in self.statistics

    def fit(self, name: str, watch: FieldWatch) -> bool:
        """Take a field's statistics; False where there are none yet."""
        found = watch.statistics()
        if found is None:
            return False
        self.statistics[name] = found
        return True

    def __call__(self, batch: Any) -> Any:
        return replace_tensors(batch, {name: _Scale(*s) for name, s in self.statistics.items()})

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        return {name: {"mean": mean, "std": std} for name, (mean, std) in self.statistics.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        self.statistics = {name: (s["mean"], s["std"]) for name, s in state.items()}


@dataclass
class _Scale:
    mean: Tensor
    std: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        mean = self.mean.to(x.device, non_blocking=True)
        scaled = (x.to(torch.promote_types(x.dtype, torch.float32)) - mean) / self.std.to(x.device, non_blocking=True)
        return scaled.to(x.dtype)
