"""Random number generators seen from outside: fingerprints of their states, which no reading changes."""

from __future__ import annotations

import hashlib
import pickle
import random
import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch

DEPTH = 3  # how deep into a dataset's attributes to look for generators
WIDTH = 50  # and how many elements of each collection
GLOBALS = ("random", "numpy.random", "torch")
SAMPLES = "samples"  # stands beside the generators for what a batch holds


def generators(root: Any, name: str = "dataset") -> dict[str, Any]:
    """The generators an object holds, by the path to them: `dataset.transform.rng`. The three global ones are added.

    Args:
        root: mostly a dataset; its attributes, lists and dicts are searched three levels deep.
    """
    found: dict[str, Any] = {path: path for path in GLOBALS}
    seen: set[int] = set()
    stack = [(name, root, DEPTH)]
    while stack:
        path, thing, depth = stack.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if _is_generator(thing):
            found[path] = thing
        elif depth > 0:
            stack += [(inner_path, inner, depth - 1) for inner_path, inner in _inside(path, thing)]
    return found


def _inside(path: str, thing: Any) -> list[tuple[str, Any]]:
    if isinstance(thing, (str, bytes, int, float, torch.Tensor, type)) or thing is None:
        return []
    if isinstance(thing, dict):
        return [(f"{path}[{k!r}]", v) for k, v in list(thing.items())[:WIDTH]]
    if isinstance(thing, (list, tuple)):
        return [(f"{path}[{i}]", v) for i, v in enumerate(thing[:WIDTH])]
    return [(f"{path}.{k}", v) for k, v in list(getattr(thing, "__dict__", {}).items())[:WIDTH]]


def _is_generator(thing: Any) -> bool:
    if isinstance(thing, (random.Random, torch.Generator)):
        return True
    numpy_random = sys.modules.get("numpy.random")
    return numpy_random is not None and isinstance(thing, (numpy_random.Generator, numpy_random.RandomState))


def fingerprint(generator: Any) -> int:
    """63 bits that stand for a generator's state, the same in every process; 0 where the state cannot be read."""
    state = _state(generator)
    if state is None:
        return 0
    return int.from_bytes(hashlib.blake2b(state, digest_size=8).digest(), "little") >> 1 or 1


def content(batch: Any) -> int:
    """63 bits that stand for what a batch holds: the first 4096 elements of each tensor or array in it."""
    digest = hashlib.blake2b(digest_size=8)
    stack = [batch]
    while stack:
        thing = stack.pop()
        if isinstance(thing, dict):
            stack += thing.values()
        elif isinstance(thing, (list, tuple)):
            stack += thing
        elif isinstance(thing, torch.Tensor):
            digest.update(thing.detach().reshape(-1)[:4096].contiguous().view(torch.uint8).numpy().tobytes())
        elif hasattr(thing, "tobytes"):
            digest.update(thing.reshape(-1)[:4096].tobytes())
        else:
            digest.update(repr(thing).encode())
    return int.from_bytes(digest.digest(), "little") >> 1 or 1


def _state(generator: Any) -> bytes | None:
    if generator == "torch":
        return bytes(torch.get_rng_state().numpy().tobytes())
    if isinstance(generator, torch.Generator):
        return bytes(generator.get_state().numpy().tobytes()) if generator.device.type == "cpu" else None
    if generator == "random" or isinstance(generator, random.Random):
        state = random.getstate() if generator == "random" else generator.getstate()
        return array("L", state[1]).tobytes()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is None:
        return None
    if generator == "numpy.random" or isinstance(generator, numpy_random.RandomState):
        state = numpy_random.get_state() if generator == "numpy.random" else generator.get_state()
        return bytes(state[1].tobytes()) + bytes([state[2] % 256, state[2] // 256])
    return pickle.dumps(generator.bit_generator.state)


def moves(states: Sequence[int]) -> list[int]:
    """The states after the first that differ from the one before: a generator that is not drawn from does not move.

    Args:
        states: fingerprints at the start and after each batch; zeros where there was none.
    """
    known = [s for s in states if s]
    return [b for a, b in pairwise(known) if a != b]


@dataclass
class Alike:
    """Two workers that draw the same numbers, and how often they were seen to."""

    name: str
    one: int
    other: int
    common: int = 0  # batches after which both had the generator in the same state
    batches: int = 0  # batches in which both drew from it
    again: bool = False  # new workers went through the states of earlier ones


@dataclass
class AlikeWatch:
    """Gathers, iterator by iterator, whether workers draw alike.

    A generator that a worker seeds by the sample's index, one it never draws from, and one it drew from only once go
    through no, or too few, common states.
    """

    seen: dict[tuple[str, int, int], Alike] = field(default_factory=dict)
    before: dict[str, set[int]] = field(default_factory=dict)  # states of earlier iterators' first worker

    def add(self, by_name: Mapping[str, Sequence[Sequence[int]]]) -> None:
        """Take what the workers of one iterator did, when they are done or have been seen long enough."""
        for name, workers in by_name.items():
            first = set(workers[0]) if workers else set()
            again = bool(first) and first <= self.before.get(name, set())
            self.before.setdefault(name, set()).update(first)
            for j, other in enumerate(workers):
                for i, one in enumerate(workers[:j]):
                    fewest = min(len(one), len(other))
                    if fewest >= 2:  # one draw may be the worker making itself ready, alike on purpose
                        pair = self.seen.setdefault((name, i, j), Alike(name, i, j))
                        pair.common += len(set(one) & set(other))
                        pair.batches += fewest
                        pair.again = pair.again or again

    def found(self, same_samples: bool) -> Alike | None:
        """A pair that was in the same state after at least three batches, and after most of those seen.

        Args:
            same_samples: the batches themselves must have been equal as well. Workers of an iterable dataset may
                shuffle alike on purpose, each to take its own share.
        """
        sure = [a for a in self.seen.values() if a.common >= 3 and 2 * a.common > a.batches]
        equal = {(a.one, a.other) for a in sure if a.name == SAMPLES}
        drawn = [a for a in sure if a.name != SAMPLES and (not same_samples or (a.one, a.other) in equal)]
        if not drawn and same_samples:  # a generator made anew in `__iter__` is out of sight; what it drew is not
            drawn = [a for a in sure if a.name == SAMPLES and a.common > 3]
        return max(drawn, key=lambda a: a.common, default=None)
