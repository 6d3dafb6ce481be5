"""Every reason for a stalled training that this package names, as data, and the pages and checks made from it.

Standard library only, so that a report can be read and a code explained where torch is not installed.
"""

from __future__ import annotations

import difflib
import re
import textwrap
from collections.abc import Iterable
from typing import NoReturn

from lightning_stall.catalogue.data import DATA
from lightning_stall.catalogue.entry import CODE_INDENT, Entry, Kind, paragraphs
from lightning_stall.catalogue.loss import LOSS
from lightning_stall.catalogue.numerics import BATCHNORM, NUMERICS
from lightning_stall.catalogue.optimisation import OPTIMISATION
from lightning_stall.catalogue.pipeline import PIPELINE

__all__ = ["CATALOGUE", "Entry", "Kind", "check_codes", "explain", "table"]

CATALOGUE: dict[str, Entry] = {
    entry.code: entry for family in (NUMERICS, DATA, LOSS, OPTIMISATION, BATCHNORM, PIPELINE) for entry in family
}

_WIDTH = 96  # columns of a page made by `explain`
_GLUE = "\0"  # stands for a space inside code while prose is wrapped: broken there, it could not be pasted
_KINDS: dict[Kind, str] = {
    "symptom": "symptom (what is seen; look for the cause named beside it)",
    "cause": "cause (why training stalls)",
}


def explain(code: str) -> str:
    """A page of plain text on one code, for a terminal.

    Raises:
        MisconfigurationException: the catalogue has no such code; the message names the closest ones.

    >>> print(explain("loss-plateau").splitlines()[0])
    loss-plateau: The loss has stopped falling
    """
    if not isinstance(code, str) or code not in CATALOGUE:
        _refuse(code, "explain")
    entry = CATALOGUE[code]
    mute = [f'{CODE_INDENT}{place}(mute=("{code}",))' for place in (*entry.callbacks, "stall_callbacks")]
    from lightning_stall.catalogue.reference import PAGES  # which imports this module

    page = PAGES[code]
    sections = {
        "What it means": entry.means,
        "Seen when": page.seen,
        "Not seen": page.not_seen,
        "Why it stalls training": entry.why,
        "An example": textwrap.indent(page.sick, CODE_INDENT),
        "The same, mended": textwrap.indent(page.mended, CODE_INDENT),
        "What to do": entry.advice,
        "What auto_remedy=True may do": entry.remedy
        or "Nothing: only a person can mend this. Follow the advice above.",
        "How to mute it": "\n".join(mute),
    }
    head = f"{code}: {entry.title}\nkind: {_KINDS[entry.kind]}\nsaid by: {', '.join(entry.callbacks)}"
    return "\n\n".join([head, *(f"{title}\n{_indented(text)}" for title, text in sections.items())]) + "\n"


def check_codes(codes: Iterable[str]) -> tuple[str, ...]:
    """The codes of a mute list as a tuple, in the order given.

    Raises:
        MisconfigurationException: a bare string, something that is no collection, or an unknown code.
    """
    if isinstance(codes, str) or not isinstance(codes, Iterable):
        from lightning_stall.errors import MisconfigurationException

        way_out = f'Write mute=("{codes}",), with the comma.' if isinstance(codes, str) else "Write mute=() for none."
        raise MisconfigurationException(f"mute takes a tuple of codes, got {codes!r}. {way_out}")
    checked = tuple(codes)
    for code in checked:
        if not isinstance(code, str) or code not in CATALOGUE:
            _refuse(code, "mute")
    return checked


def table() -> str:
    """The catalogue as a Markdown table: code, kind, meaning and remedy, a row each."""
    rows = [("code", "kind", "means", "remedy"), ("---",) * 4]
    rows += [(f"`{e.code}`", e.kind, e.means, e.remedy or "advice") for e in CATALOGUE.values()]
    # a paragraph break inside a cell would end the table
    return "\n".join("| " + " | ".join(" ".join(c.split()).replace("|", r"\|") for c in row) + " |" for row in rows)


def _indented(text: str) -> str:
    blocks = [
        textwrap.indent(block, "  ")
        if block.startswith(CODE_INDENT)
        else textwrap.fill(
            re.sub("`[^`]+`", lambda code: code[0].replace(" ", _GLUE), block),
            _WIDTH,
            initial_indent="  ",
            subsequent_indent="  ",
            break_on_hyphens=False,
            break_long_words=False,
        )
        for block in paragraphs(text)
    ]
    return "\n\n".join(blocks).replace(_GLUE, " ")


def _refuse(code: object, asker: str) -> NoReturn:
    from lightning_stall.errors import MisconfigurationException

    wanted = str(code).strip().lower().replace("_", "-").replace(" ", "-")
    close = difflib.get_close_matches(wanted, CATALOGUE, n=3, cutoff=0.6)
    closest = f" The closest: {', '.join(repr(c) for c in close)}." if close else ""
    raise MisconfigurationException(
        f"{asker} got {code!r}, which is none of the {len(CATALOGUE)} codes.{closest}"
        " List them all with `print(lightning_stall.catalogue.table())`."
    )
