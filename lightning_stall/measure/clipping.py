"""Limits for the gradient norm that follow a run's own norms: a percentile of them, or their mean and spread.

Each rule comes twice, with the same answers: in plain floats for the CPU, where reading a tensor costs nothing and a
tensor operation microseconds, and in tensors for an accelerator, where a float would wait for the device.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

NO_LIMIT = 2.0**126  # a norm that no run has; infinity would make NaN where two limits are interpolated
LEAP = 10.0  # times the usual norm: where a step is cut while the rule still warms up
ENTRY = 100.0  # times the limit: the most that one step counts for in the history, so that no outlier can own it
OFTEN = 64  # norms kept, up to which the percentile is taken anew at each step
SHARE = 16  # with more, it is once new ones are more than one in so many of them
EARLY = 10  # norms in which a far outlier, which may have come first, is brought back to `LEAP * ENTRY` times the least
ALPHA = 0.97  # how much of the running mean a step keeps (ZClip's value): it reaches back about 33 steps


class PercentileOnHost:
    """Limit at a percentile of the last `size` norms, the present one among them (Seetharaman et al., 2020).

    During the first `warmup` norms the limit is `LEAP` times their (lower) median, and what is above it is cut to the
    median itself. A norm that is zero or not finite is not kept. While up to `OFTEN` norms are kept the percentile is
    taken at each; with more it hardly moves from one to the next, and is taken once as many new ones have come as a
    share of `1 / SHARE` of them.

    Args:
        size: norms kept.
        percentile: 0 to 100, interpolated linearly as NumPy does.
        warmup: norms before the percentile rules.
    """

    def __init__(self, size: int, percentile: float, warmup: int) -> None:
        self.size, self.share, self.warmup = size, percentile / 100, warmup
        self.recent: deque[float] = deque()
        self.ordered: list[float] = []
        self.fresh: list[float] = []  # not yet among them
        self.seen = 0
        self.limit = NO_LIMIT

    def update(self, total: float) -> float:
        """Take the norm of this step; returns the limit for it."""
        if not 0.0 < total < math.inf:
            return self.limit
        limit = self._after(total)
        # while it warms up, what leaps over the limit is no larger step than the others
        return limit / LEAP if self.seen < self.warmup and total > limit else limit

    def _after(self, total: float) -> float:
        """The limit once this norm is known."""
        self.fresh.append(total)
        self.seen += 1
        if not _due(len(self.fresh), len(self.recent)):
            return self.limit
        for value in self.fresh:
            self._enter(min(value, self.limit * ENTRY))
        self.fresh.clear()
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
        self.load(_packed(self.seen, _quantile(sorted(norms), self.share), norms, ()))

    def save(self) -> Tensor:
        """Everything it knows as one vector on the host: norms seen, limit, how many are fresh, all norms by age."""
        return _packed(self.seen, self.limit, self.recent, self.fresh)

    def load(self, saved: Tensor) -> None:
        """Take back what `save` gave, on either kind of device."""
        self.seen, self.limit, kept, self.fresh = _unpacked(saved)
        self.recent = deque(kept[-self.size :])
        self.ordered = sorted(self.recent)


class PercentileOnDevice:
    """`PercentileOnHost` without a wait for the device.

    Which step was not finite is known to the device alone, so such a step, and one of norm zero, enters the history as
    the limit it met, which moves a percentile least.
    """

    def __init__(self, size: int, percentile: float, warmup: int, device: torch.device) -> None:
        self.size, self.share, self.warmup = size, percentile / 100, warmup
        self.ring = torch.full((size,), NO_LIMIT, device=device, dtype=torch.float32)
        self.fresh = torch.zeros(size // SHARE + 1, device=device, dtype=torch.float32)  # not yet in the ring
        self.limit = torch.full((), NO_LIMIT, device=device, dtype=torch.float32)
        self.seen = 0
        self.waiting = 0  # how many are fresh
        self.start = 0  # norms before this one are forgotten

    def update(self, total: Tensor) -> Tensor:
        """Take the norm of this step, a device scalar; returns the limit for it, on the device."""
        self.fresh[self.waiting].copy_(total)
        self.waiting += 1
        self.seen += 1
        if _due(self.waiting, min(self.seen - self.waiting - self.start, self.size)):
            self._enter()
        if self.seen < self.warmup:
            return torch.where(total > self.limit, self.limit / LEAP, self.limit)
        return self.limit

    def _enter(self) -> None:
        """Put the fresh norms into the ring, and take the percentile anew."""
        values = torch.nan_to_num(self.fresh[: self.waiting], nan=0.0, posinf=0.0)
        values = torch.where(values > 0, torch.minimum(values, self.limit * ENTRY), self.limit)
        first = (self.seen - self.waiting - self.start) % self.size
        room = min(self.waiting, self.size - first)
        self.ring[first : first + room] = values[:room]
        if room < self.waiting:
            self.ring[: self.waiting - room] = values[room:]
        self.waiting = 0
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

    def restart(self, norms: Sequence[float]) -> None:
        """Forget the history; go on from these norms, oldest first."""
        self.load(_packed(self.seen, _quantile(sorted(norms), self.share), norms, ()))

    def save(self) -> Tensor:
        """As `PercentileOnHost.save`; waits for the device."""
        entered = self.seen - self.waiting - self.start
        norms = self.ring.cpu().double()
        norms = norms[:entered] if entered < self.size else norms.roll(-(entered % self.size))
        fresh = self.fresh[: self.waiting].tolist()
        return _packed(self.seen, float(self.limit), norms[norms < NO_LIMIT].tolist(), fresh)

    def load(self, saved: Tensor) -> None:
        """Take back what `save` gave, on either kind of device."""
        self.seen, limit, norms, fresh = _unpacked(saved)
        norms = norms[-self.size :]
        self.ring.fill_(NO_LIMIT)
        self.ring[: len(norms)] = torch.tensor(norms, dtype=torch.float32).to(self.ring.device)
        self.limit = torch.tensor(limit, dtype=torch.float32).to(self.ring.device)
        self.waiting = len(fresh)
        self.fresh[: self.waiting] = torch.tensor(fresh, dtype=torch.float32).to(self.ring.device)
        self.start = self.seen - len(norms) - self.waiting


def _due(fresh: int, kept: int) -> bool:
    """Whether so many new norms are enough for the percentile to be taken anew."""
    return kept <= OFTEN or fresh * SHARE > kept


def _packed(seen: int, limit: float, kept: Iterable[float], fresh: Sequence[float]) -> Tensor:
    return torch.tensor([seen, limit, len(fresh), *kept, *fresh], dtype=torch.float64)


def _unpacked(saved: Tensor) -> tuple[int, float, list[float], list[float]]:
    seen, limit, fresh, *norms = saved.tolist()
    kept = len(norms) - int(fresh)
    return int(seen), limit, norms[:kept], norms[kept:]


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
        self.seen, self.mean, self.variance = torch.zeros(3, device=device, dtype=torch.float32).unbind()

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
