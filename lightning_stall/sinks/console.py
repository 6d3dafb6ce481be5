"""Findings in the terminal, as Python warnings of one class."""

from __future__ import annotations

import sys
from types import FrameType

from lightning.fabric.utilities.rank_zero import rank_zero_warn  # importing it from Lightning sets the rank it asks for

from lightning_stall.finding import Finding
from lightning_stall.report import render_finding, shown

# Nobody can mend a line in these: a warning points at the first caller outside them, mostly the user's `trainer.fit`.
_MACHINERY = {
    "lightning_stall",
    "lightning",
    "pytorch_lightning",
    "lightning_fabric",
    "lightning_utilities",
    "torch",
    "threading",
}
_TELL_ITSELF = 4  # the stack level at which `rank_zero_warn` names the function that called it


class StallWarning(UserWarning):
    """What this package warns with. `warnings.simplefilter("ignore", StallWarning)` silences all of it."""


def tell(text: str) -> None:
    """Warn on rank zero and never raise: where a user made warnings errors, print `text` on stderr instead."""
    text = shown(text)
    try:
        rank_zero_warn(text, stacklevel=_TELL_ITSELF + _frames_to_user(), category=StallWarning)
    except StallWarning:  # a training must not end because somebody was told about it
        print(text, file=sys.stderr)


class ConsoleSink:
    """Warns of a finding in five parts. An "info" finding waits for the report and is not printed."""

    def __call__(self, finding: Finding) -> None:
        if finding.speaks:
            tell(render_finding(finding))


def _frames_to_user() -> int:
    """How many callers above `tell` the user's line stands; 0 where there is none, as in a thread of ours."""
    frame: FrameType | None = sys._getframe(1)
    depth = 0
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] not in _MACHINERY:
            return depth
        frame, depth = frame.f_back, depth + 1
    return 0
