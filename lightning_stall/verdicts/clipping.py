"""What clipping leaves of the gradients: the last norms with their limits, and whether a limit is too tight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_stall.measure.clipping import NO_LIMIT
from lightning_stall.measure.gradients import gradient_norms, total_norm

WINDOW = 100  # optimizer steps that are remembered
TIGHT = 0.1  # of its norm: what is left of the usual step where a limit is too tight
NEARLY_ALL = 0.9  # share of steps cut, where it is nearly every step
ENOUGH = 20  # optimizer steps for a verdict
ENOUGH_MEASURED = 5  # checks for one on what others cut, which is measured at checks alone

Pairs = list[tuple[float, float]]  # (norm, limit) of the last steps

KEEP_ONE = "Keep one of them: take `gradient_clip_val` out of the Trainer, or AutoClip out of its callbacks."
SWITCH_ON = "To let it clip:\n\n    trainer = Trainer(callbacks=[AutoClip()])\n"


@dataclass
class Watched:
    """One optimizer: the rule it is clipped by, its last norms and limits, and what was left of them at checks.

    With a `device`, norms and limits stay there until somebody asks for `pairs`.
    """

    optimizer: Optimizer
    params: Sequence[Tensor]
    rule: Any
    device: torch.device | None = None
    steps: int = 0
    left: list[float] = field(default_factory=list)  # share of the norm that others left, of each check
    _rows: list[tuple[float, float]] = field(default_factory=list)
    _ring: Tensor | None = None
    _raw: Tensor | None = None
    _applied: Tensor | None = None

    def __post_init__(self) -> None:
        if self.device is not None:
            self._ring = torch.zeros(WINDOW, 2, device=self.device, dtype=torch.float32)

    def add(self, total: Any, limit: Any) -> None:
        """The norm of a step and the limit for it: floats, or device scalars."""
        if self._ring is None:
            self._rows.append((total, limit))
            del self._rows[:-WINDOW]
        else:
            torch.stack((total, limit), out=self._ring[self.steps % WINDOW])
        self.steps += 1

    def restart(self, norms: Sequence[float]) -> None:
        """Forget limits and norms; go on from these norms."""
        self.rule.restart(norms)
        self._rows.clear()
        if self._ring is not None:
            self._ring.zero_()

    def pairs(self) -> Pairs:
        """(norm, limit) of the last steps with a finite norm above 0 and a limit, oldest first; waits."""
        if self._ring is not None:
            rows, split = self._ring.tolist(), self.steps % WINDOW
            rows = rows[split:] + rows[:split] if self.steps >= WINDOW else rows[:split]
            self._rows = [(total, limit) for total, limit in rows]
        return [(total, limit) for total, limit in self._rows if 0.0 < total < math.inf and limit < NO_LIMIT]

    def backward_done(self) -> None:
        """The gradients as the backward pass left them (called at checks)."""
        self._raw = self._norm()

    def step_done(self) -> None:
        """The gradients as the step has used them (called at checks); only torch's own optimizers leave them alone."""
        if type(self.optimizer).__module__.startswith("torch.optim."):
            self._applied = self._norm()

    def measure(self, ours: float) -> None:
        """Note what others left of the norm at this check, apart from our own factor; waits for the device."""
        if self._raw is not None and self._applied is not None:
            raw, applied = float(self._raw), float(self._applied)
            if 0.0 < raw < math.inf and 0.0 < applied < math.inf:
                self.left = [*self.left, applied / raw / ours][-ENOUGH:]
        self._raw = self._applied = None

    def _norm(self) -> Tensor:
        return total_norm(gradient_norms([p.grad for p in self.params]))


@dataclass(frozen=True)
class Tightness:
    """A limit that leaves little of nearly every step."""

    left: float  # median share of the norm that is left
    share: float  # of steps that were cut
    steps: int

    def text(self, whose: str, usual: float) -> str:
        """The finding in a sentence; `usual` is the median norm."""
        return (
            f"{whose} cut {self.share:.0%} of the last {self.steps} steps, and usually left {self.left:.2g} of the "
            f"gradient norm, which is usually {usual:.3g}; {TIGHT:g} or more would be fine."
        )


def tight(left: Sequence[float], enough: int = ENOUGH) -> Tightness | None:
    """Whether nearly every step is cut to a small share of its norm.

    Args:
        left: what was left of each step's norm, as a share.
        enough: fewest steps for a verdict.
    """
    if len(left) < enough:
        return None
    share = sum(part < 1.0 for part in left) / len(left)
    usual = median(left)
    return Tightness(usual, share, len(left)) if share >= NEARLY_ALL and usual <= TIGHT else None


def shrinks_steps(optimizer: Optimizer, norm: float, elements: int) -> bool:
    """Whether gradients of this norm make this optimizer's steps small.

    Adam and its kin divide by the gradient's own size, so a constant factor does not reach the weights until the
    elements fall below `eps`; sign-based ones do not see it at all. SGD's steps are as small as its gradients.
    """
    rms = norm / math.sqrt(max(elements, 1))
    for group in optimizer.param_groups:
        if not {"eps", "betas", "etas"} & group.keys():
            return True
        eps = group.get("eps")
        if isinstance(eps, float) and rms < eps:
            return True
    return False


def share_cut(pairs: Pairs) -> float:
    """Share of the steps whose norm is above its limit."""
    return sum(total > limit for total, limit in pairs) / len(pairs)


def which_limit_rules(ours: float, trainers: float, by_norm: bool) -> str:
    """AutoClip's limit and the Trainer's are both set."""
    lower = "AutoClip's" if not by_norm or ours <= trainers else "the Trainer's"
    return (
        f"AutoClip and `Trainer(gradient_clip_val={trainers:g})` are both set. AutoClip cuts first, the Trainer cuts "
        f"what is left, so the lower limit rules: {lower}, since AutoClip's is now {ours:.3g}."
    )


def would_have_cut(pairs: Pairs) -> str:
    """What AutoClip would have done, had it been allowed to."""
    cut, largest = sum(total > limit for total, limit in pairs), max(total for total, _ in pairs)
    return (
        f"AutoClip is switched off by `auto_remedy=False`. It would have cut {cut} of the last {len(pairs)} steps; its "
        f"limit is now {pairs[-1][1]:.3g}, and the largest norm was {largest:.3g}."
    )
