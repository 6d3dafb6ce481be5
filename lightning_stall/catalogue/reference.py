"""`docs/codes/CODE.md`, a page a code, made from the catalogue: `python -m lightning_stall.catalogue.reference docs/codes`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_stall.catalogue import CATALOGUE
from lightning_stall.catalogue.page import Page
from lightning_stall.catalogue.pages_model import MODEL
from lightning_stall.catalogue.pages_training import TRAINING

PAGES: dict[str, Page] = {page.code: page for page in (*TRAINING, *MODEL)}

_FILES = {
    "ActivationHealth": "activation_health",
    "AutoClip": "auto_clip",
    "BatchNormBatchSizeGuard": "batchnorm_guard",
    "DataStarvationMonitor": "data_starvation",
    "GradientHealth": "gradient_health",
    "InputHealth": "input_health",
    "LossCheck": "loss_check",
    "OptimizerHealth": "optimizer_health",
    "PlateauWatch": "plateau_watch",
    "StallReport": "stall_report",
}


def render(code: str) -> str:
    """The page of a code as Markdown."""
    entry, page = CATALOGUE[code], PAGES[code]
    sources = ", ".join(f"[`{name}`](../../lightning_stall/callbacks/{_FILES[name]}.py)" for name in entry.callbacks)
    return (
        "\n\n".join(
            [
                f"# {code}: {entry.title}",
                entry.means,
                f"A {entry.kind}, said by {', '.join(f'`{name}`' for name in entry.callbacks)}.",
                f"**Seen when** {page.seen}",
                f"**Usually** {_lower(page.usually)}",
                f"**Not seen:** {_lower(page.not_seen)}",
                f"**Why it stalls training.** {entry.why}",
                "## Example",
                f"```python\n{page.sick}\n```",
                "## Mended",
                f"```python\n{page.mended}\n```",
                "## What to do",
                entry.advice,
                f"**`auto_remedy=True`:** {entry.remedy or 'nothing; only a person can mend this.'}",
                f'**Mute only this:** `{entry.callbacks[0]}(mute=("{code}",))` or `stall_callbacks(mute=("{code}",))`.',
                f"**Source:** {sources}; `lightning-stall explain {code}` prints this page's text.",
            ]
        ).rstrip()
        + "\n"
    )


def index() -> str:
    """The list of all pages."""
    rows = [f"| [`{e.code}`]({e.code}.md) | {e.kind} | {e.title} |" for e in CATALOGUE.values()]
    head = "# The codes\n\nMade from the catalogue by `make docs`; edit `lightning_stall/catalogue/` instead.\n\n"
    return head + "| code | kind | title |\n| --- | --- | --- |\n" + "\n".join(rows) + "\n"


def pages() -> dict[str, str]:
    """Every file by its name."""
    return {"README.md": index(), **{f"{code}.md": render(code) for code in CATALOGUE}}


def main(argv: Sequence[str]) -> int:
    """Write all pages into the directory named, and remove those of codes that are no more."""
    folder = Path(argv[0] if argv else "docs/codes")
    folder.mkdir(parents=True, exist_ok=True)
    made = pages()
    for old in folder.glob("*.md"):
        if old.name not in made:
            old.unlink()
    for name, text in made.items():
        (folder / name).write_text(text, encoding="utf-8")
    return 0


def _lower(text: str) -> str:
    """The first letter small, unless it begins a name or an abbreviation."""
    return text if text[:1] == "`" or text[1:2].isupper() or text.startswith(_NAMES) else text[0].lower() + text[1:]


_NAMES = ("Adam", "BatchNorm", "PyTorch", "Infinity as")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
