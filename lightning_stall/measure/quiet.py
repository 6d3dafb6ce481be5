"""Hooks that look at a module while it runs, and can not be what ends the run."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def quiet(hook: Callable[..., Any]) -> Callable[..., Any]:
    """The same hook, which does nothing any more once it has raised: what was not measured is not known.

    A hook of a module runs inside the user's own forward pass, where no guard of ours stands around it. Tensors there
    may be of any kind: of a subclass, spread over ranks, without storage.
    """
    works = True

    @functools.wraps(hook, updated=())
    def safe(*args: Any, **kwargs: Any) -> Any:
        nonlocal works
        if works:
            try:
                return hook(*args, **kwargs)
            except Exception:
                works = False
        return None

    return safe


def compiled(module: Any) -> bool:
    """Whether any part of this module is compiled: hooks would make it compile again at every step."""
    if getattr(module, "_compiler_ctx", None) is not None:
        return True
    return any(
        type(m).__name__ == "OptimizedModule" or getattr(m, "_compiled_call_impl", None) is not None
        for m in module.modules()
    )


_OWN = frozenset({"_parameters", "_modules", "_buffers"})


@contextmanager
def untouched(module: Any) -> Iterator[None]:
    """Puts back what a step of the user's writes down on its modules: lists it appends to, counters, the last output.

    Lists, dicts, sets and deques get their items back, one level deep; other attributes their values. Tensors are not
    copied: what is changed in place inside one, other than a buffer, stays changed.
    """
    modules = list(module.modules())
    plain = [{k: v for k, v in vars(m).items() if k not in _OWN} for m in modules]
    values = [v for before in plain for v in before.values() if isinstance(v, list | deque | dict | set)]
    kept = [(v, list(v.items()) if isinstance(v, dict) else list(v)) for v in values]
    try:
        yield
    finally:
        for m, before in zip(modules, plain, strict=True):
            for name in [k for k in vars(m) if k not in before and k not in _OWN]:
                del m.__dict__[name]
            m.__dict__.update(before)
        for held, items in kept:
            now = list(held.items()) if isinstance(held, dict) else list(held)
            if not _same(now, items):
                held.clear()
                held.extend(items) if isinstance(held, list | deque) else held.update(items)


def _same(now: list[Any], before: list[Any]) -> bool:
    """Whether these are the very same items; pairs of a dict are made anew each time they are asked for."""
    pairs = zip(now, before, strict=False)
    alike = (a is b or (type(a) is type(b) is tuple and [*map(id, a)] == [*map(id, b)]) for a, b in pairs)
    return len(now) == len(before) and all(alike)
