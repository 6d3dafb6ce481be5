"""What the reference page of one code says beyond its entry: when it is seen, and code that has it and has it no more."""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import dedent


@dataclass(frozen=True)
class Page:
    """One code's page.

    Attributes:
        code: of the catalogue.
        seen: when the finding is made: what is measured, and against what.
        usually: what is usually behind it.
        not_seen: what looks like it and is left alone.
        sick: a few lines that have the fault, as a person would write them.
        mended: the same lines without it.
    """

    code: str
    seen: str
    usually: str
    not_seen: str
    sick: str
    mended: str

    def __post_init__(self) -> None:
        for name in ("seen", "usually", "not_seen"):
            object.__setattr__(self, name, " ".join(getattr(self, name).split()))
        for name in ("sick", "mended"):
            object.__setattr__(self, name, dedent(getattr(self, name)).strip("\n"))
