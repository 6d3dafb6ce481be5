"""Gradient norms as a picture: a row a layer, a column a check, shades for powers of ten."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lightning_stall.history import thin
from lightning_stall.report.charts import colour, decades

LABEL = 150  # pixels for the names of layers
LINE = 12  # pixels a line of text takes


def heatmap(steps: Sequence[int], layers: Mapping[str, Sequence[float]]) -> np.ndarray[Any, Any] | None:
    """(height, width, 3) uint8: layers from the input (top) to the output, steps from left to right.

    None where there is nothing to draw, or no Pillow to write the names with (TensorBoard brings it).
    A value that is not a number is red; zero is the darkest shade.
    """
    try:
        from PIL import Image, ImageDraw
    except ImportError:
        return None
    span = decades(layers.values())
    if span is None or not steps:
        return None
    low, high = span[0], max(span[1], span[0] + 1e-6)
    cells = np.zeros((len(layers), len(steps), 3), dtype=np.uint8)
    for r, values in enumerate(layers.values()):
        for c, value in enumerate(values):
            share = (math.log10(value) - low) / (high - low) if math.isfinite(value) and value > 0 else 0.0
            cells[r, c] = colour(share) if math.isfinite(value) else (207, 34, 46)
    tall, wide = max(6, min(24, 480 // len(layers))), max(3, min(24, 640 // len(steps)))
    cells = cells.repeat(tall, axis=0).repeat(wide, axis=1)
    picture = Image.new("RGB", (LABEL + max(cells.shape[1], 300) + 10, cells.shape[0] + 4 * LINE), "white")
    picture.paste(Image.fromarray(cells), (LABEL, 2 * LINE))
    pen = ImageDraw.Draw(picture)
    bar = np.array([[colour(i / 99) for i in range(100)]] * (LINE - 4), dtype=np.uint8)
    picture.paste(Image.fromarray(bar), (LABEL + 60, 6))
    pen.text((4, 4), "gradient norm by layer", fill="black")
    pen.text((LABEL + 54, 4), f"{10**low:.1e}", fill="black", anchor="ra")
    pen.text((LABEL + 166, 4), f"{10**high:.1e}", fill="black")
    names = list(layers)
    for name in thin(names, max(2, tall * len(names) // LINE)):
        short = name if len(name) <= 22 else "..." + name[-19:]
        pen.text((4, 2 * LINE + int((names.index(name) + 0.5) * tall) - LINE // 2), short, fill="black")
    foot = 2 * LINE + cells.shape[0] + 4
    pen.text((LABEL, foot), f"step {steps[0]}", fill="black")
    pen.text((LABEL + max(cells.shape[1], 120), foot), f"step {steps[-1]}", fill="black", anchor="ra")
    return np.asarray(picture)
