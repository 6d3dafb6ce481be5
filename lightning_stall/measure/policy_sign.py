"""Policy gradients of the wrong sign: the chances of what pays are lowered, and what the run logs as its reward falls."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

from torch import Tensor

from lightning_stall.measure.loss_fault import Fault
from lightning_stall.measure.loss_graph import children, saved, short

MORE_IS_BETTER = re.compile(r"reward|return|payoff|payout|profit|utility|income")
LEAST = 12  # values of a metric by which its course is judged
KEPT = 256
SURE = 3.0  # standard errors
DEPTH = 10
_THROUGH = {"Mean", "Sum", "Div", "Squeeze", "View", "ReshapeAlias", "Unsqueeze", "ToCopy", "Clone", "Alias", "Expand"}


def raises_chances(loss: Tensor) -> bool | None:
    """Whether minimising the loss raises the chances of choices with a positive weight; None where it holds no such term.

    The term is a log-probability, of one of several choices, times a weight that needs no gradient (Williams, 1992:
    REINFORCE has minus that).
    """
    signs = set(_signs(loss.grad_fn, 1, False, DEPTH))
    return None if len(signs) != 1 else signs == {-1}


def _signs(node: Any, sign: int, weighted: bool, depth: int) -> Iterator[int]:
    if node is None or not depth:
        return
    name, below = short(node), children(node)
    if name in ("Gather", "Index"):
        if weighted and below and _log_chances(below[0][0]):
            yield sign
    elif name in ("Add", "Sub"):
        for place, edge in enumerate(below):
            yield from _signs(edge[0], -sign if name == "Sub" and place else sign, weighted, depth - 1)
    elif name == "Neg":
        yield from _signs(below[0][0], -sign, weighted, depth - 1)
    elif name == "Mul":
        factors = [f for f in (saved(node, "self"), saved(node, "other")) if isinstance(f, Tensor)]
        factors = [f for f in factors if not f.requires_grad]
        if len(factors) == 1 and len(below) == 1:
            number = factors[0]
            if number.numel() > 1:
                weighted = True
            elif number.device.type == "cpu" and float(number) < 0:
                sign = -sign
            yield from _signs(below[0][0], sign, weighted, depth - 1)
    elif name in _THROUGH and len(below) == 1:
        yield from _signs(below[0][0], sign, weighted, depth - 1)


def _log_chances(node: Any) -> bool:
    """Logarithms of chances: a log-softmax, or logits less their log-sum-exp, as `Categorical` makes them."""
    if short(node) == "LogSoftmax":
        return True
    return short(node) == "Sub" and any(short(edge[0]) == "Logsumexp" for edge in children(node))


@dataclass
class Rewards:
    """What a training step logs under a name of which more is better, check by check."""

    values: dict[str, list[float]] = field(default_factory=dict)
    lowered: bool | None = None  # whether the loss lowers the chances of what has a positive weight

    def look(self, loss: Tensor) -> None:
        """Take the sign of a loss; one that was ever the right one is."""
        raised = raises_chances(loss)
        if raised is not None:
            self.lowered = not raised and self.lowered is not False

    def update(self, metrics: Mapping[str, Any]) -> None:
        """Take what was logged; waits for the device."""
        if not self.lowered:
            return
        for name, value in metrics.items():
            if MORE_IS_BETTER.search(name.lower()):
                values = self.values.setdefault(name, [])
                values.append(float(value))
                del values[:-KEPT]

    def fault(self) -> Fault | None:
        """Healthy: weights that are costs (what is logged as a reward then rises), and minus the weighted logarithm."""
        for name, values in self.values.items():
            known = [v for v in values if math.isfinite(v)]
            if not self.lowered or len(known) < LEAST:
                continue
            # the worst choice is soon found: little time is needed to fall
            first, last = known[: max(4, len(known) // 8)], known[-len(known) // 3 :]
            noise = stdev(b - a for a, b in itertools.pairwise(known)) / math.sqrt(2)
            error = noise * math.sqrt(1 / len(first) + 1 / len(last))
            if fmean(first) - fmean(last) > SURE * error and fmean(last) < fmean(first):
                return Fault(
                    "wrong-loss-for-task",
                    f"The loss is the log-probability of what was chosen times its weight, with a plus, so that training "
                    f"makes rarer what pays: `{name}` fell from {fmean(first):.3g} to {fmean(last):.3g} "
                    f"(by chance {SURE * error:.2g} at most).",
                    "Minimise minus that:\n\n    loss = -(policy.log_prob(action) * advantage).mean()",
                    {"first": fmean(first), "last": fmean(last), "error": error},
                )
        return None
