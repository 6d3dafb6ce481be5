"""Several optimizers beside each other, as of a generator and its critic: no loss says how such a run fares, steps do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from lightning_stall.verdicts.inputs import Verdict

ABSURD = 2.0  # change of the weights in one of the first steps, over their size; what began at 0 moves by its own size
STANDING = 0.005  # the same over all steps of the run, with which an optimizer may as well be left out
BESIDE = 100.0  # times that, which another optimizer of the run goes
SETTLED = 40  # steps of all optimizers, after which each has shown its pace


@dataclass
class Rivals:
    """The pace of each optimizer: median over its weight matrices of a step's change, over their size."""

    early: dict[int, float] = field(default_factory=dict)  # the largest of the first steps
    most: dict[int, float] = field(default_factory=dict)  # and of all

    def read(self, ratios: Mapping[str, float], matrices: Sequence[Sequence[str]], young: bool) -> None:
        """Take the ratios of a check.

        Args:
            ratios: by name of the parameter.
            matrices: the names of those with two dimensions or more, by optimizer.
            young: whether these are among the first steps.
        """
        for i, names in enumerate(matrices if len(matrices) > 1 else ()):
            moved = [r for n in names if 0 < (r := ratios.get(n, 0.0)) < math.inf]
            if moved:
                ratio = median(moved)
                self.most[i] = max(self.most.get(i, 0.0), ratio)
                if young:
                    self.early[i] = max(self.early.get(i, 0.0), ratio)

    def verdicts(self, step: int, planned: float, kinds: Sequence[tuple[str, float]]) -> Iterator[Verdict]:
        """What is wrong with the pace of one of them.

        Args:
            step: all steps made so far.
            planned: in all.
            kinds: class and learning rate, by optimizer.
        """
        if step < SETTLED or len(self.most) < 2:
            return
        for i, ratio in self.early.items():
            if ratio > ABSURD and i < len(kinds):
                yield _too_high(i, ratio, *kinds[i])
                return
        slowest = min(self.most, key=lambda i: self.most[i])
        reach, others = self.most[slowest] * planned, max(self.most.values())
        if reach < STANDING and others > BESIDE * self.most[slowest] and slowest < len(kinds):
            yield _too_low(slowest, self.most[slowest], reach, others, *kinds[slowest])


def _too_high(index: int, ratio: float, kind: str, rate: float) -> Verdict:
    return Verdict(
        "learning-rate-too-high",
        f"One of the first steps of optimizer {index} ({kind}) changed its weights by {ratio:.2g} times their size; 0.05 is "
        f"much. Its rate is {rate:.3g}.",
        f"Lower its learning rate:\n\n    lr = {rate / 10:.2g}",
        {"ratio": ratio, "rate": rate, "optimizer": float(index), "strength": 0.6},
        (f"optimizer {index}",),
        statistical=False,
    )


def _too_low(index: int, ratio: float, reach: float, others: float, kind: str, rate: float) -> Verdict:
    return Verdict(
        "learning-rate-too-low",
        f"A step of optimizer {index} ({kind}) moves its weights by {ratio:.2g} of their size, so all steps of the run together "
        f"cannot move them by more than {100 * reach:.2g} %; {100 * STANDING:g} % would be the least. Another optimizer "
        f"moves its own by {others:.2g} a step. The rate is {rate:.3g}.",
        f"Raise its learning rate by about {others / ratio:.0e} times, so that both keep pace.",
        {"ratio": ratio, "reach": reach, "others": others, "rate": rate, "optimizer": float(index), "strength": 0.6},
        (f"optimizer {index}",),
        statistical=False,
    )
