"""A run drawn as inline SVG: the loss and other numbers as lines, gradient norms by depth and step as a heat map.

Each chart has the steps from left to right, and a numbered mark where a finding was told, explained below it.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from lightning_stall.finding import Finding
from lightning_stall.history import Curves, thin
from lightning_stall.report import words

WIDTH, HEIGHT = 900, 220  # of a line chart, in its own units: it scales with the page
LEFT, RIGHT, TOP, BOTTOM = 130, 14, 20, 22
MARKS = 12  # findings marked
COLUMNS = 64  # steps of a heat map
HUGE = 1e300  # what is larger is drawn as no number: scales are computed in floats, and need room beyond it
SHADES = 32
# viridis at nine points, from its published table: dark to light, the same order in grey, fit for colour-blind readers
_VIRIDIS = (
    (68, 1, 84), (71, 44, 122), (59, 81, 139), (44, 113, 142), (33, 144, 141),
    (39, 173, 129), (92, 200, 99), (170, 220, 50), (253, 231, 37),
)  # fmt: skip

Points = Sequence[tuple[float, float]]


def draw(curves: Curves, findings: Sequence[Finding]) -> Iterator[str]:
    """The pictures of a run, each a `<figure>`; those without data are left out."""
    told = [words.worst(group) for group in words.folded([f for f in findings if f.speaks])][:MARKS]
    last = max([step for step, _ in curves.loss] + list(curves.steps) + [f.step for f in told], default=0)
    if not last:
        return
    loss = [("loss", curves.loss)]
    if curves.baseline is not None and curves.loss:
        loss.append(("a constant predictor", [(0, curves.baseline), (last, curves.baseline)]))
    yield from _lines("Training loss", loss, told, last)
    lines = {tag: list(zip(curves.steps, values, strict=True)) for tag, values in curves.lines.items()}
    for title, tags in _CHARTS:
        yield from _lines(title, [(name, lines[tag]) for tag, name in tags.items() if tag in lines], told, last)
    yield from _heat("Gradient norm by layer, from the input down to the output", curves, told, last)
    if told:
        keys = "".join(
            f"<li><code>{html.escape(f.code)}</code> {html.escape(f'at step {f.step}: {f.summary}')}</li>" for f in told
        )
        yield f"<figure><figcaption>Marked in each chart:</figcaption><ol>{keys}</ol></figure>"


_CHARTS: tuple[tuple[str, Mapping[str, str]], ...] = (
    ("Gradient norm", {"stall/gradients/total_norm": "before clipping", "stall/clip/threshold": "threshold"}),
    (
        "Update-to-weight ratio of a step; from 0.0001 to 0.01 is usual",
        {"stall/updates/ratio": "median parameter", "stall/updates/largest_ratio": "largest"},
    ),
    ("Learning rate", {"stall/rate/schedule": "as set", "stall/rate/effective": "as used"}),
)


def colour(share: float) -> tuple[int, int, int]:
    """Red, green and blue (0 to 255) of a share from 0 (dark) to 1 (light).

    >>> colour(0.0), colour(1.0)
    ((68, 1, 84), (253, 231, 37))
    """
    place = min(max(share, 0.0), 1.0) * (len(_VIRIDIS) - 1)
    low = min(int(place), len(_VIRIDIS) - 2)
    mixed = [round(a + (b - a) * (place - low)) for a, b in zip(_VIRIDIS[low], _VIRIDIS[low + 1], strict=True)]
    return mixed[0], mixed[1], mixed[2]


def decades(rows: Iterable[Sequence[float]]) -> tuple[float, float] | None:
    """The range of the positive values that can be drawn as powers of ten; None where there are none."""
    logs = [math.log10(v) for row in rows for v in row if _drawable(v) and v > 0]
    return (min(logs), max(logs)) if logs else None


def _lines(title: str, series: Sequence[tuple[str, Points]], told: Sequence[Finding], last: float) -> Iterator[str]:
    values = [v for _, points in series for _, v in points if _drawable(v)]
    if not values:
        return
    low, high = min(values), max(values)
    log = low > 0 and high > 100 * low
    scale: Callable[[float], float] = math.log10 if log else float
    bottom, top = scale(low), scale(high)
    if top - bottom < 1e-9 * max(abs(top), abs(bottom), 1e-30):
        bottom, top = bottom - (abs(bottom) * 0.1 or 0.1), top + (abs(top) * 0.1 or 0.1)

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (top - scale(value)) / (top - bottom)

    parts = [_axis(last, HEIGHT)]
    for i in range(5):
        height = bottom + (top - bottom) * i / 4
        value = 10**height if log else height
        at = TOP + (HEIGHT - TOP - BOTTOM) * (1 - i / 4)
        parts.append(f'<path d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}" stroke="var(--line)"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    for index, (name, points) in enumerate(series):
        style = ('stroke="var(--ink)"', 'stroke="var(--soft)" stroke-dasharray="5 4"')[min(index, 1)]
        parts.append(f'<path d="{_path(points, last, y, log)}" fill="none" stroke-width="1.6" {style}/>')
        parts.append(f'<path d="M{LEFT + 8 + 190 * index} 10h22" fill="none" stroke-width="2" {style}/>')
        parts.append(f'<text x="{LEFT + 36 + 190 * index}" y="14">{html.escape(name)}</text>')
    yield _figure(title + (" (log scale)" if log else ""), [*parts, *_marks(told, last, HEIGHT)], HEIGHT)


def _path(points: Points, last: float, y: Callable[[float], float], log: bool) -> str:
    """Broken where a value is no number, or cannot be drawn on a log scale."""
    path, pen = [], "M"
    for step, value in points:
        if not _drawable(value) or (log and value <= 0):
            pen = "M"
            continue
        path.append(f"{pen}{_x(step, last):.1f} {y(value):.1f}")
        pen = "L"
    if len(path) == 1:
        path.append("h3")
    return "".join(path)


def _heat(title: str, curves: Curves, told: Sequence[Finding], last: float) -> Iterator[str]:
    names = list(curves.layers)
    span = decades(curves.layers.values())
    if span is None or len(names) < 2 or len(curves.steps) < 2:
        return
    low, high = span[0], max(span[1], span[0] + 1e-6)
    columns = [int(i) for i in thin([str(i) for i in range(len(curves.steps))], COLUMNS)]
    row = max(8, min(18, 320 // len(names)))
    height = TOP + BOTTOM + row * len(names)
    by_shade: dict[str, list[str]] = {}
    for r, name in enumerate(names):
        for i, c in enumerate(columns):
            left = _x(curves.steps[columns[i - 1]] if i else 0, last)
            value = curves.layers[name][c]
            if _drawable(value):
                share = (math.log10(value) - low) / (high - low) if value > 0 else 0.0
                shade = _hex(round(share * SHADES) / SHADES)
            else:
                shade = "var(--bad)"
            right = _x(curves.steps[c], last)
            by_shade.setdefault(shade, []).append(
                f"M{left:.1f} {TOP + r * row}h{right - left + 0.2:.1f}v{row}h{left - right - 0.2:.1f}z"
            )
    parts = [_axis(last, height)]
    parts += [f'<path d="{"".join(cells)}" fill="{shade}"/>' for shade, cells in by_shade.items()]
    for name in thin(names, max(2, row * len(names) // 14)):
        short = name if len(name) <= 20 else "..." + name[-18:]
        at = TOP + (names.index(name) + 0.5) * row + 4
        parts.append(f'<text x="{LEFT - 6}" y="{at:.1f}" text-anchor="end">{html.escape(short)}</text>')
    for i in range(SHADES):
        shade = _hex(i / (SHADES - 1))
        parts.append(f'<path d="M{LEFT + 60 + 5 * i} 4h5v9h-5z" fill="{shade}"/>')
    parts.append(f'<text x="{LEFT + 54}" y="13" text-anchor="end">{10**low:.2g}</text>')
    parts.append(f'<text x="{LEFT + 66 + 5 * SHADES}" y="13">{10**high:.2g}</text>')
    yield _figure(title, [*parts, *_marks(told, last, height)], height)


def _marks(told: Sequence[Finding], last: float, height: float) -> Iterator[str]:
    """A numbered line where a finding was told; those that would cover each other share one."""
    groups: list[list[int]] = []
    for index in sorted(range(len(told)), key=lambda i: told[i].step):
        if groups and _x(told[index].step, last) - _x(told[groups[-1][0]].step, last) < 18:
            groups[-1].append(index)
        else:
            groups.append([index])
    for group in groups:
        x = _x(told[group[0]].step, last)
        shade = "var(--bad)" if any(told[i].severity == "critical" for i in group) else "var(--warn)"
        note = html.escape("\n".join(f"{told[i].code} at step {told[i].step}: {told[i].summary}" for i in group))
        number = str(group[0] + 1) if len(group) == 1 else f"{min(group) + 1}-{max(group) + 1}"
        wide = 10 + 7 * len(number)
        yield (
            f'<g><title>{note}</title><path d="M{x:.1f} {TOP}V{height - BOTTOM}" stroke="{shade}" stroke-width="1.4"/>'
            f'<rect x="{x - wide / 2:.1f}" y="{TOP}" width="{wide}" height="14" rx="7" fill="{shade}"/>'
            f'<text x="{x:.1f}" y="{TOP + 11}" text-anchor="middle" style="fill:#fff">{number}</text></g>'
        )


def _drawable(value: float) -> bool:
    return abs(value) < HUGE  # False of NaN


def _x(step: float, last: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * step / last


def _axis(last: float, height: float) -> str:
    marks = [f'<text x="{LEFT}" y="{height - 6}">step 0</text>']
    for i in (1, 2, 3, 4):
        end = ' text-anchor="end"' if i == 4 else ' text-anchor="middle"'
        marks.append(f'<text x="{_x(last * i / 4, last):.1f}" y="{height - 6}"{end}>{last * i / 4:.0f}</text>')
    return "".join(marks)


def _figure(title: str, parts: Sequence[str], height: float) -> str:
    return (
        f'<figure><figcaption>{html.escape(title)}</figcaption><svg viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{html.escape(title)}">{"".join(parts)}</svg></figure>'
    )


def _hex(share: float) -> str:
    red, green, blue = colour(share)
    return f"#{red:02x}{green:02x}{blue:02x}"
