"""Hooks that look at a module while it runs, and can not be what ends the run."""

from __future__ import annotations

import functools
from collections.abc import Callable
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
