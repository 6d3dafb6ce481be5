"""The numbers of a run over its steps, in bounded memory: what the report draws. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

ROOM = 256  # checks kept; a run with more keeps every second, fourth, eighth ... of them
ROWS = 64  # series kept of one group, such as the gradient norms by layer: taken evenly where there are more
LAYERS = "stall/gradients/layers/"  # the group that is drawn by depth

# what a report draws as lines, and a file of findings keeps
DRAWN = (
    "stall/gradients/total_norm",
    "stall/clip/threshold",
    "stall/updates/ratio",
    "stall/updates/largest_ratio",
    "stall/rate/schedule",
    "stall/rate/effective",
)


def group(tag: str) -> str:
    """What a tag shares with its fellows: "stall/gradients/layers/net.0" is of "stall/gradients/layers"."""
    return tag.rpartition("/")[0]


def thin(names: Sequence[str], most: int) -> list[str]:
    """At most `most` of the names, taken evenly, the first and the last among them; in the order given."""
    if len(names) <= most:
        return list(names)
    return [names[round(i * (len(names) - 1) / (most - 1))] for i in range(most)]


def fold(values: Mapping[str, float], most: int) -> dict[str, float]:
    """The values without the groups of more than `most` series: a thousand curves are no help to anybody."""
    sizes: dict[str, int] = {}
    for tag in values:
        sizes[group(tag)] = sizes.get(group(tag), 0) + 1
    return {tag: value for tag, value in values.items() if sizes[group(tag)] <= most}


@dataclass
class History:
    """Numbers by tag at the checks of a run; a tag that is missing at one is NaN there.

    >>> history = History()
    >>> history.add(1, {"stall/gradients/total_norm": 2.0})
    >>> history.add(2, {"stall/gradients/total_norm": 1.0, "stall/clip/threshold": 4.0})
    >>> history.steps, history.series["stall/clip/threshold"]
    ([1, 2], [nan, 4.0])
    """

    steps: list[int] = field(default_factory=list)  # optimizer steps
    series: dict[str, list[float]] = field(default_factory=dict)
    stride: int = 1  # checks for each one kept
    seen: int = 0  # checks
    left_out: set[str] = field(default_factory=set)  # tags of large groups that are not among the rows kept

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers of a check."""
        self.seen += 1
        if (self.seen - 1) % self.stride:
            return
        if len(self.steps) == ROOM:
            del self.steps[1::2]
            for kept in self.series.values():
                del kept[1::2]
            self.stride *= 2
            if (self.seen - 1) % self.stride:
                return
        known = len(self.steps)
        self.steps.append(step)
        for tag in self._new(values):
            self.series[tag] = [math.nan] * known
        for tag, kept in self.series.items():
            kept.append(float(values.get(tag, math.nan)))

    def _new(self, values: Mapping[str, float]) -> list[str]:
        groups: dict[str, list[str]] = {}
        for tag in values:
            if tag not in self.series and tag not in self.left_out:
                groups.setdefault(group(tag), []).append(tag)
        kept: list[str] = []
        for name, tags in groups.items():
            room = ROWS - sum(1 for tag in self.series if group(tag) == name)
            chosen = thin(tags, room) if room > 1 else []
            self.left_out.update(set(tags) - set(chosen))
            kept += chosen
        return kept


@dataclass(frozen=True)
class Curves:
    """What a report draws of a run: the loss at every step, binned, and other numbers at the checks.

    Attributes:
        loss: (optimizer step, mean loss of the steps up to it), in order.
        baseline: what a constant predictor would reach, or None where that is not known.
        steps: optimizer steps of `lines` and `layers`.
        lines: other numbers by tag, one a step.
        layers: gradient norms by layer, in the order of the forward pass, one a step.
    """

    loss: Sequence[tuple[float, float]] = ()
    baseline: float | None = None
    steps: Sequence[int] = ()
    lines: Mapping[str, Sequence[float]] = field(default_factory=dict)
    layers: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @classmethod
    def of(cls, history: History, means: Sequence[float], width: int, baseline: float | None) -> Curves:
        """From what a hub keeps: the history, and the loss as means over `width` optimizer steps each."""
        return cls(
            loss=[((i + 1) * width, mean) for i, mean in enumerate(means)],
            baseline=baseline,
            steps=list(history.steps),
            lines={t: list(v) for t, v in history.series.items() if t in DRAWN},
            layers={t[len(LAYERS) :]: list(v) for t, v in history.series.items() if t.startswith(LAYERS)},
        )

    def to_dict(self) -> dict[str, Any]:
        """Strict JSON: four digits, null for what is no number."""
        return {
            "loss": [[step, _short(value)] for step, value in self.loss],
            "baseline": None if self.baseline is None else _short(self.baseline),
            "steps": list(self.steps),
            "lines": {tag: [_short(v) for v in values] for tag, values in self.lines.items()},
            "layers": {name: [_short(v) for v in values] for name, values in self.layers.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Curves:
        """The curves `to_dict` wrote."""
        return cls(
            loss=[(float(step), _number(value)) for step, value in data["loss"]],
            baseline=data["baseline"],
            steps=[int(step) for step in data["steps"]],
            lines={tag: [_number(v) for v in values] for tag, values in data["lines"].items()},
            layers={name: [_number(v) for v in values] for name, values in data["layers"].items()},
        )


def _short(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
