"""Where a thread is, seen from another: which part of making a batch, and which line of the user's own code."""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any

from torch.utils.data import default_collate

PARTS = ("fetch", "transform", "collate")  # "fetch" is all of `__getitem__` that is no transform
EVERY = 0.005  # seconds between two looks
LOOKS = 100  # enough for shares within a few percent

_TRANSFORMS = ("transform", "transforms", "target_transform", "augment", "augmentation", "augmentations", "preprocess")
_LOADER = (
    os.path.join("_utils", "fetch.py"),
    os.path.join("data", "dataloader.py"),
    os.path.join("utilities", "combined_loader.py"),
)
_NOT_USERS = (
    "site-packages",
    "dist-packages",
    os.path.dirname(os.__file__),
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
    "<frozen",
)


def codes_of(thing: Any) -> set[CodeType]:
    """The code that runs when `thing` is called."""
    thing = getattr(thing, "func", thing)  # functools.partial
    found = (getattr(thing, "__code__", None), getattr(getattr(thing, "__func__", None), "__code__", None))
    methods = (getattr(getattr(type(thing), name, None), "__code__", None) for name in ("__call__", "forward"))
    # the call of an nn.Module is the same for all of them, and goes on to its `forward`
    module_call = getattr(getattr(type(thing), "_wrapped_call_impl", None), "__code__", None)
    return {code for code in (*found, *methods) if isinstance(code, CodeType) and code is not module_call}


@dataclass
class PartCodes:
    """What code belongs to which part of making a batch."""

    transform: set[CodeType] = field(default_factory=set)
    collate: set[CodeType] = field(default_factory=set)

    @classmethod
    def of(cls, dataset: Any, collate_fn: Any) -> PartCodes:
        """Of a dataset (and those it wraps) with the transforms it holds under their usual names."""
        transforms: set[CodeType] = set()
        for _ in range(4):
            for name in _TRANSFORMS:
                held = getattr(dataset, name, None)
                if callable(held):
                    transforms |= codes_of(held)
            dataset = getattr(dataset, "dataset", None)
            if dataset is None:
                break
        return cls(transforms, codes_of(collate_fn) | {default_collate.__code__})

    def part(self, frames: list[FrameType]) -> str:
        """Which part a stack is in."""
        codes = {f.f_code for f in frames}
        if codes & self.collate:
            return "collate"
        return "transform" if codes & self.transform else "fetch"


def frames_of(thread_id: int) -> list[FrameType]:
    """The stack of a thread from its innermost call out to the loader's; empty where it has ended."""
    return list(_walk(sys._current_frames().get(thread_id)))


def _walk(frame: FrameType | None) -> Iterator[FrameType]:
    # further out stands the training, and in a forked worker the whole stack of the process it was forked from
    while frame is not None and not frame.f_code.co_filename.endswith(_LOADER):
        yield frame
        frame = frame.f_back


def users_line(frames: list[FrameType]) -> str:
    """The innermost line that is not a library's: "data.py:41 in load"; "" where there is none."""
    for frame in frames:
        name = frame.f_code.co_filename
        if not any(part in name for part in _NOT_USERS):
            return f"{os.path.basename(name)}:{frame.f_lineno} in {frame.f_code.co_name}"
    return ""


@dataclass
class Looks:
    """What a number of looks saw."""

    parts: Counter[str] = field(default_factory=Counter)
    lines: Counter[str] = field(default_factory=Counter)

    @property
    def count(self) -> int:
        return sum(self.parts.values())

    def part(self) -> str:
        """The part that took most, or "" with too few looks to say."""
        return self.parts.most_common(1)[0][0] if self.count >= 10 else ""

    def line(self) -> str:
        """The line that took most, with its share, where one takes at least a quarter."""
        if self.count < 10 or not self.lines:
            return ""
        line, times = self.lines.most_common(1)[0]
        return f"{line} ({times / self.count:.0%})" if line and times >= self.count / 4 else ""


class StackSampler(threading.Thread):
    """Looks at one thread every few milliseconds while `busy()`, until it has looked often enough.

    It draws no random number and takes about 20 us a look.
    """

    def __init__(self, codes: PartCodes, busy: Callable[[], bool], thread_id: int, looks: int = LOOKS) -> None:
        super().__init__(name="lightning-stall-sampler", daemon=True)
        self.codes, self.busy, self.thread_id, self.wanted = codes, busy, thread_id, looks
        self.looks = Looks()
        self.ended = threading.Event()

    def run(self) -> None:
        while self.looks.count < self.wanted and not self.ended.wait(EVERY):
            if self.busy():
                self.look()

    def look(self) -> None:
        """Take one look."""
        frames = frames_of(self.thread_id)
        if frames and self.busy():
            self.looks.parts[self.codes.part(frames)] += 1
            self.looks.lines[users_line(frames)] += 1

    def stop(self) -> None:
        self.ended.set()
