"""BatchNorm layers of a moving copy (of an average of weights, a teacher): do their statistics follow as their weights do?"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel


@dataclass
class MovingCopies:
    """Compares layers that no optimizer trains with what they were; waits for the device only in `left_behind`."""

    layers: Sequence[tuple[str, _BatchNorm]] = ()
    _began: dict[str, list[Tensor]] = field(default_factory=dict, repr=False)  # weight, mean and variance by layer
    _followers: list[str] = field(default_factory=list)
    brought: dict[str, str] = field(default_factory=dict)  # layers that were brought up to others' statistics: whose

    @classmethod
    def of(
        cls, module: Module, layers: Iterable[tuple[str, _BatchNorm]], optimizers: Iterable[Optimizer]
    ) -> MovingCopies:
        """As they are before the first step; nothing is kept where an optimizer trains every layer."""
        held = {id(p) for o in optimizers for g in o.param_groups for p in g["params"] if p.requires_grad}
        # torch's own average has its statistics made anew at the end
        apart = [f"{name}." for name, m in module.named_modules() if isinstance(m, AveragedModel)]
        known = [(n, m) for n, m in layers if _numbers(m) is not None and not any(n.startswith(a) for a in apart)]
        followers = [n for n, m in known if id(m.weight) not in held]
        if not followers or len(followers) == len(known):
            return cls()
        began = {n: [t.detach().clone() for t in _numbers(m) or ()] for n, m in known}
        return cls(known, began, followers)

    def left_behind(self) -> list[str]:
        """Layers whose weights have moved without a step, and whose statistics have not, as a trained one's have."""
        moved = {name: self._moved(name, layer) for name, layer in self.layers}
        sizes = {m.num_features for n, m in self.layers if n not in self._followers and any(moved[n][1:])}
        own = [(n, m) for n, m in self.layers if n in self._followers and m.num_features in sizes]
        return [n for n, _ in own if moved[n][0] and not any(moved[n][1:])]

    def bring(self, names: Iterable[str]) -> int:
        """Give these layers the statistics of the trained ones that they copy, and do so again; how many there are.

        Which one is copied is told by the end of its name and by its size.
        """
        trained = {n: m for n, m in self.layers if n not in self._followers}
        sizes = dict(self.layers)
        for name in names:
            alike = [n for n, m in trained.items() if m.num_features == sizes[name].num_features]
            whose = max(alike, key=lambda n: _shared_end(n, name), default=None)
            if whose is not None and _shared_end(whose, name):
                self.brought[name] = whose
        with torch.no_grad():
            for name, whose in self.brought.items():
                for own, theirs in zip(sizes[name].buffers(), trained[whose].buffers(), strict=False):
                    own.copy_(theirs)
        return len(self.brought)

    def _moved(self, name: str, layer: _BatchNorm) -> list[bool]:
        now = _numbers(layer)
        if now is None:
            return [False] * 3
        return [a.shape == b.shape and not torch.equal(a, b) for a, b in zip(now, self._began[name], strict=True)]


def _shared_end(one: str, other: str) -> int:
    """How many parts of two dotted names agree, from the last on."""
    pairs = zip(reversed(one.split(".")), reversed(other.split(".")), strict=False)
    return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))


def _numbers(layer: _BatchNorm) -> list[Tensor] | None:
    """Its weight, running mean and running variance; None where it has not all three."""
    found = [layer.weight, layer.running_mean, layer.running_var]
    return None if any(t is None or is_lazy(t) for t in found) else [t.detach() for t in found if t is not None]
