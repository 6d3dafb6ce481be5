"""Findings and causes as text: in the terminal, as `stall_report.md`, as one HTML page; of a dead run too.

Texts are written as the catalogue writes them: sentences, `names` in backticks, code in lines indented by four spaces.
Every form leaves code whole, escapes what is not code, and wraps nothing but sentences. Needs no torch and no Lightning.
"""

from lightning_stall.report.pages import render_fragment, render_html, render_markdown
from lightning_stall.report.terminal import NOTHING, WIDTH, render_finding, rich_table
from lightning_stall.report.words import NAMED, shown, where

__all__ = [
    "NAMED",
    "NOTHING",
    "WIDTH",
    "render_finding",
    "render_fragment",
    "render_html",
    "render_markdown",
    "rich_table",
    "shown",
    "where",
]
