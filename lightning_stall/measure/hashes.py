"""Samples told apart by a number: whether those of the validation set stand in the training set as well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

READ = 256  # values of a sample that make its number, at an even stride
DISTINCT = 8  # different values a sample needs, or half as many that are no whole numbers, to be told from others
TRAINING_ROWS = 1 << 17  # remembered: 1 MiB
VALIDATION_ROWS = 1 << 13
LOOKUPS = 2


def row_hashes(tensors: Sequence[Tensor]) -> Tensor:
    """A 64-bit number a sample, (N,) int64, equal for equal samples; 0 for one of too few different values.

    Args:
        tensors: float fields (N, ...) of one batch. Rows of a few small whole numbers (counts, one-hot columns) repeat
            by nature, so they get 0.
    """
    parts = [_read(t) for t in tensors]
    rows = torch.cat(parts, 1)
    bits = rows.view(torch.int32).long()
    places = torch.arange(1, rows.shape[1] + 1, device=rows.device)
    mixed = (bits ^ (bits >> 15)) * (places * 0x9E3779B97F4A7C15 % (1 << 62) | 1)
    number = (mixed ^ (mixed >> 29)).sum(1) * 0x2545F4914F6CDD1D
    number = number ^ (number >> 32)
    ordered = rows.sort(1).values
    steps = ordered[:, 1:] != ordered[:, :-1]
    graded = ordered[:, 1:] != ordered[:, 1:].round()
    rich = (steps.sum(1) + 1 >= DISTINCT) | ((steps & graded).sum(1) >= DISTINCT // 2)
    return torch.where(rich, torch.where(number == 0, torch.ones_like(number), number), torch.zeros_like(number))


def _read(tensor: Tensor) -> Tensor:
    flat = tensor.detach().reshape(len(tensor), -1)
    flat = flat[:, :: -(-flat.shape[1] // READ)].float()
    return flat + 0.0  # minus zero is zero


@dataclass
class Overlap:
    """Training samples remembered by number, and validation samples looked up among them."""

    training: list[Tensor] = field(default_factory=list, repr=False)
    validation: list[Tensor] = field(default_factory=list, repr=False)
    kept: int = 0
    looked_up: int = 0
    counted: int = 0  # lookups made; the set does not change, so a few are enough

    @property
    def full(self) -> bool:
        return self.kept >= TRAINING_ROWS

    def train(self, tensors: Sequence[Tensor]) -> None:
        self.training.append(row_hashes(tensors))
        self.kept += len(self.training[-1])

    def validate(self, tensors: Sequence[Tensor]) -> None:
        if self.looked_up < VALIDATION_ROWS and self.counted < LOOKUPS:
            self.validation.append(row_hashes(tensors))
            self.looked_up += len(self.validation[-1])

    def count(self) -> tuple[int, int]:
        """(validation samples that stand in the training set, validation samples told apart); waits for the device."""
        if not self.training or not self.validation:
            return 0, 0
        self.counted += 1
        self.training = [torch.cat(self.training)]
        seen = torch.cat(self.validation)
        seen = seen[seen != 0]
        return int(torch.isin(seen, self.training[0].to(seen.device)).sum()), len(seen)

    def forget_validation(self) -> None:
        self.validation, self.looked_up = [], 0
