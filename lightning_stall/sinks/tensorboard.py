"""TensorBoard: names that every logger takes, and panels under "Custom Scalars"."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakSet

from lightning.fabric.utilities.rank_zero import rank_zero_only

from lightning_stall.sinks.console import tell

CATEGORY = "lightning_stall"

_laid_out: WeakSet[Any] = WeakSet()  # experiments that have their panels; a second `fit` finds them there


def clean_tag(name: str) -> str:
    """`name` in the letters that every logger keeps, `[a-zA-Z0-9_/.-]`; "_" for each other one, no "/" at the ends."""
    return re.sub(r"[^a-zA-Z0-9_/.-]", "_", name).strip("/") or "_"


def layout(groups: Mapping[str, Sequence[str]], prefix: str = "") -> dict[str, dict[str, list[Any]]]:
    """Panels in the form that `add_custom_scalars` takes, in the order given.

    Args:
        groups: from a panel's title to regular expressions of tags. TensorBoard matches each from the start of a tag
            on; end it with "$" to mean one tag only.
        prefix: what a logger puts in front of every tag.

    Raises:
        ValueError: where an expression does not compile; TensorBoard would draw an empty panel and say nothing.
    """
    for title, tags in groups.items():
        for tag in tags:
            try:
                re.compile(tag)
            except re.error as error:
                raise ValueError(
                    f"panel {title!r}: {tag!r} is no regular expression ({error}); escape the tag"
                ) from None
    start = re.escape(prefix)
    return {
        CATEGORY: {
            title: ["Multiline", [f"{start}(?:{t})" if start else t for t in tags]] for title, tags in groups.items()
        }
    }


@rank_zero_only
def write_layout(loggers: Iterable[Any], groups: Mapping[str, Sequence[str]]) -> None:
    """Give each logger that has a "Custom Scalars" page its panels, once; the first call decides which.

    Asking for `experiment` creates TensorBoard's writer and its directory, so call this no sooner than the fit starts.
    A failing logger is warned about and passed over.
    """
    layout(groups)  # a wrong expression is our caller's mistake: raise it here, not as a logger's trouble below
    for logger in loggers:
        try:
            experiment: Any = getattr(logger, "experiment", None)
            if hasattr(experiment, "add_custom_scalars") and experiment not in _laid_out:
                experiment.add_custom_scalars(layout(groups, _prefix(logger)))
                _laid_out.add(experiment)
        except Exception as error:  # panels are a comfort: no logger's trouble with them may end a training
            tell(f"{type(logger).__name__} could not be given its panels: {error!r}")


def _prefix(logger: Any) -> str:
    """What Lightning's loggers put in front of each tag: `TensorBoardLogger(prefix="a")` writes "a-loss"."""
    prefix = getattr(logger, "_prefix", "")
    return f"{prefix}{getattr(logger, 'LOGGER_JOIN_CHAR', '-')}" if isinstance(prefix, str) and prefix else ""
