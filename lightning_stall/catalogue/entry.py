"""What one code of the catalogue says. Texts are kept as a person reads them; nothing here knows torch or Lightning."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import cleandoc
from typing import Literal

Kind = Literal["symptom", "cause"]
CODE_INDENT = "    "  # a line of advice that starts so is code to paste; it is never wrapped


@dataclass(frozen=True)
class Entry:
    """One code: what it means, why it stalls training and what to do.

    Texts may be written over several lines, as a docstring is: they are dedented and their prose is unwrapped. Code
    stands in lines of its own, indented by four spaces, with an empty line before and after: valid Markdown.

    Attributes:
        code: in kebab-case, never renamed.
        title: a few words, for a heading.
        kind: "symptom" (what is seen) or "cause" (why).
        callbacks: the public callbacks that say it, the main owner first. StallReport repeats every code and is
            listed only where the verdict is its own.
        means: one sentence, what the code means.
        why: why it stalls training.
        advice: what a person should change, in imperatives, with code.
        remedy: what `auto_remedy=True` may do and in which callback, or None where only a person can mend it.
    """

    code: str
    title: str
    kind: Kind
    callbacks: tuple[str, ...]
    means: str
    why: str
    advice: str
    remedy: str | None = None

    def __post_init__(self) -> None:
        for name in ("means", "why", "advice", "remedy"):
            text = getattr(self, name)
            if text is not None:
                object.__setattr__(self, name, _unwrap(text))


def paragraphs(text: str) -> list[str]:
    """The blocks of an entry's text: prose in one line each, or code with its indent and line breaks."""
    return text.split("\n\n") if text else []


def _unwrap(text: str) -> str:
    """Dedents, joins the lines of a paragraph, and keeps blocks of code as they are."""
    blocks: list[list[str]] = []
    previous = ""  # "code", "prose", or empty between paragraphs
    for line in cleandoc(text).splitlines():
        kind = "code" if line.startswith(CODE_INDENT) else "prose" if line.strip() else ""
        if kind and kind == previous:
            blocks[-1].append(line)
        elif kind:
            blocks.append([line])
        previous = kind
    return "\n\n".join(("\n" if block[0].startswith(CODE_INDENT) else " ").join(block) for block in blocks)
