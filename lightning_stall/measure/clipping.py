"""Limits for the gradient norm that follow a run's own norms: a percentile of them, or their mean and spread.

Each rule comes twice, with the same answers: in plain floats for the CPU, where reading a tensor costs nothing and a
tensor operation microseconds, and in tensors for an accelerator, where a float would wait for the device.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

NO_LIMIT = 2.0**126  # a norm that no run has; infinity would make NaN where two limits are interpolated
LEAP = 10.0  # times the usual norm: where a step is cut while the rule still warms up
ENTRY = 100.0  # times the limit: the most that one step counts for in the history, so that no outlier can own it
EARLY = 10  # norms in which a far outlier, which may have come first, is brought back to `LEAP * ENTRY` times the least
ALPHA = 0.97  # how much of the running mean a step keeps (ZClip's value): it reaches back about 33 steps


class PercentileOnHost:
    """Limit at a percentile of the last `size` norms, the present one among them (Seetharaman et al., 2020).

    During the first `warmup` norms the limit is `LEAP` times their (lower) median. A norm that is zero or not finite is
    not kept.

    Args:
        size: norms kept.
        percentile: 0 to 100, interpolated linearly as NumPy does.
        warmup: norms before the percentile rules.
    """

    def __init__(self, size: int, percentile: float, warmup: int) -> None:
        self.size, self.share, self.warmup = size, percentile / 100, warmup
        self.recent: deque[float] = deque()
        self.ordered: list[float] = []
        self.seen = 0
        self.limit = NO_LIMIT

    def update(self, total: float) -> float:
        """Take the norm of this step; returns the limit for it."""
        if not 0.0 < total < math.inf:
            return self.limit
        self._enter(min(total, self.limit * ENTRY))
        self.seen += 1
        cap = LEAP * ENTRY * self.ordered[0]
        if self.seen <= max(EARLY, self.warmup) and self.ordered[-1] > cap:
            self.recent = deque(min(v, cap) for v in self.recent)
            self.ordered = sorted(self.recent)
        self.limit = self._limit()
        return self.limit

    def _enter(self, value: float) -> None:
        if len(self.recent) == self.size:
            del self.ordered[bisect_left(self.ordered, self.recent.popleft())]
        self.recent.append(value)
        insort(self.ordered, value)

    def _limit(self) -> float:
        if self.seen < self.warmup:
            return LEAP * self.ordered[(len(self.ordered) - 1) // 2]
        return _quantile(self.ordered, self.share)

    def restart(self, norms: Sequence[float]) -> None:
        """Forget the history; go on from these norms, oldest first."""
        self.load(torch.tensor([self.seen, _quantile(sorted(norms), self.share), *norms], dtype=torch.float64))

    def save(self) -> Tensor:
        """Everything it knows as one vector on the host: norms seen, limit, the norms kept, oldest first."""
        return torch.tensor([self.seen, self.limit, *self.recent], dtype=torch.float64)

    def load(self, saved: Tensor) -> None:
        """Take back what `save` gave, on either kind of device."""
        seen, self.limit, *norms = saved.tolist()
        self.seen = int(seen)
        self.recent = deque(norms[-self.size :])
        self.ordered = sorted(self.recent)


class PercentileOnDevice:
    """`PercentileOnHost` without a wait for the device.

    Which step was not finite is known to the device alone, so such a step, and one of norm zero, enters the history as
    the limit it met, which moves a percentile least.
    """

    def __init__(self, size: int, percentile: float, warmup: int, device: torch.device) -> None:
        self.size, self.share, self.warmup = size, percentile / 100, warmup
        self.ring = torch.full((size,), NO_LIMIT, device=device)
        self.limit = torch.full((), NO_LIMIT, device=device)
        self.seen = 0
        self.start = 0  # norms before this one are forgotten

    def update(self, total: Tensor) -> Tensor:
        """Take the norm of this step, a device scalar; returns the limit for it, on the device."""
        value = torch.nan_to_num(total, nan=0.0, posinf=0.0)
        entry = torch.minimum(value, self.limit * ENTRY)
        torch.where(value > 0, entry, self.limit, out=self.ring[(self.seen - self.start) % self.size])
        self.seen += 1
        count = min(self.seen - self.start, self.size)
        ordered = self.ring[:count].sort().values
        if self.seen <= max(EARLY, self.warmup):
            cap = ordered[0] * (LEAP * ENTRY)
            ordered.clamp_(max=cap)
            self.ring[:count].clamp_(max=cap)
        if self.seen < self.warmup:
            self.limit = (ordered[(count - 1) // 2] * LEAP).clamp_(max=NO_LIMIT)
        else:
            place, weight = _place(count, self.share)
            self.limit = torch.lerp(ordered[place], ordered[place + 1], weight) if weight else ordered[place].clone()
        return self.limit

    def restart(self, norms: Sequence[float]) -> None:
        """Forget the history; go on from these norms, oldest first."""
        self.load(torch.tensor([self.seen, _quantile(sorted(norms), self.share), *norms], dtype=torch.float64))

    def save(self) -> Tensor:
        """As `PercentileOnHost.save`; waits for the device."""
        entered = self.seen - self.start
        norms = self.ring.cpu().double()
        norms = norms[:entered] if entered < self.size else norms.roll(-(entered % self.size))
        known = norms[norms < NO_LIMIT]
        return torch.cat([torch.tensor([self.seen, float(self.limit)], dtype=torch.float64), known])

    def load(self, saved: Tensor) -> None:
        """Take back what `save` gave, on either kind of device."""
        norms = saved[2:][-self.size :].float()
        self.ring.fill_(NO_LIMIT)
        self.ring[: len(norms)] = norms.to(self.ring.device)
        self.limit = saved[1].float().to(self.ring.device)
        self.seen = int(saved[0])
        self.start = self.seen - len(norms)


class ZScoreOnHost:
    """Limit from the running mean and spread of the norms after clipping (ZClip, 2025).

    A norm whose z-score lies above `threshold` is cut to `mean + threshold**2 / z * spread`: the further out, the
    nearer to the mean. During the first `warmup` norms the limit is `LEAP` times their mean.
    """

    def __init__(self, threshold: float, warmup: int) -> None:
        self.threshold, self.warmup = threshold, warmup
        self.seen, self.mean, self.variance = 0, 0.0, 0.0

    def update(self, total: float) -> float:
        """Take the norm of this step; returns the limit for it."""
        limit = self._limit(total)
        if 0.0 < total < math.inf:
            self.seen += 1
            weight = max(1 / self.seen, 1 - ALPHA)
            distance = min(total, limit) - self.mean
            self.mean += weight * distance
            self.variance = (1 - weight) * (self.variance + weight * distance * distance)
        return limit

    def _limit(self, total: float) -> float:
        if self.seen < self.warmup:
            return LEAP * self.mean if self.seen else NO_LIMIT
        spread = math.sqrt(self.variance)
        z = max(self.threshold, (total - self.mean) / spread if spread else 0.0)  # NaN is not above anything
        return self.mean + self.threshold**2 / z * spread

    def restart(self, norms: Sequence[float]) -> None:
        """Nothing to do: the mean follows the clipped norms upwards by itself."""

    def save(self) -> Tensor:
        """Norms seen, mean, variance: three numbers on the host."""
        return torch.tensor([self.seen, self.mean, self.variance], dtype=torch.float64)

    def load(self, saved: Tensor) -> None:
        """Take back what `save` gave, on either kind of device."""
        seen, self.mean, self.variance = saved.tolist()
        self.seen = int(seen)


class ZScoreOnDevice:
    """`ZScoreOnHost` without a wait for the device."""

    def __init__(self, threshold: float, warmup: int, device: torch.device) -> None:
        self.threshold, self.warmup = threshold, warmup
        self.seen, self.mean, self.variance = torch.zeros(3, device=device).unbind()

    def update(self, total: Tensor) -> Tensor:
        """Take the norm of this step, a device scalar; returns the limit for it, on the device."""
        spread = self.variance.sqrt()
        z = torch.nan_to_num((total - self.mean) / spread, nan=0.0).clamp(min=self.threshold)
        early = torch.where(self.seen > 0, self.mean * LEAP, NO_LIMIT)
        limit = torch.where(self.seen < self.warmup, early, self.mean + self.threshold**2 / z * spread)
        good = ((total > 0) & (total < math.inf)).float()
        self.seen = self.seen + good
        weight = self.seen.clamp(min=1).reciprocal().clamp(min=1 - ALPHA) * good
        distance = torch.nan_to_num(torch.minimum(total, limit) - self.mean, nan=0.0) * good
        self.mean = self.mean + weight * distance
        self.variance = (1 - weight) * (self.variance + weight * distance * distance)
        return limit

    def restart(self, norms: Sequence[float]) -> None:
        """Nothing to do: the mean follows the clipped norms upwards by itself."""

    def save(self) -> Tensor:
        """As `ZScoreOnHost.save`; waits for the device."""
        return torch.stack([self.seen, self.mean, self.variance]).cpu().double()

    def load(self, saved: Tensor) -> None:
        """Take back what `save` gave, on either kind of device."""
        self.seen, self.mean, self.variance = saved.float().to(self.mean.device).unbind()


def _place(count: int, share: float) -> tuple[int, float]:
    """Where a quantile stands among `count` ordered numbers: an index, and how far on towards the next one."""
    place = share * (count - 1)
    index = min(int(place), count - 1)
    return index, place - index


def _quantile(ordered: Sequence[float], share: float) -> float:
    place, weight = _place(len(ordered), share)
    return ordered[place] + weight * (ordered[place + 1] - ordered[place]) if weight else ordered[place]
