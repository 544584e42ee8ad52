"""Figures as inline SVG, coloured by the page's own style sheet."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from html import escape

from qertify.campaign.summary import Summary

WIDTH, HEIGHT = 520, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 16, 46
"""Margins, in the figure's own units."""
CURVE_POINTS = 400
"""A longer curve is thinned out to so many points."""

Curve = Sequence[tuple[float, float]]


def certified_curve(summary: Summary, unit: str) -> str:
    """Certified accuracy against the radius, with the band that unknowns leave open."""
    rows = [(float(Fraction(row.radius)), *row.certified, row.radius) for row in summary.radii]
    if not rows:
        return ""
    largest = max(rows[-1][0], 1e-9)
    x, y = _scale(0, largest, LEFT, WIDTH - RIGHT), _scale(0, 1, HEIGHT - BOTTOM, TOP)
    start = [] if summary.correct is None else [(0.0, summary.correct / summary.inputs)]
    if start and rows[0][0] == 0:
        start = []
    low = start + [(radius, least) for radius, least, _, _ in rows]
    high = start + [(radius, most) for radius, _, most, _ in rows]
    band = _points(x, y, high) + " " + _points(x, y, low[::-1])
    marks = "".join(
        f'<circle class="mark robust" cx="{x(radius):.1f}" cy="{y(least):.1f}" r="4">'
        f"<title>radius {escape(text)}: {_share(least, most)}</title></circle>"
        for radius, least, most, text in rows
    )
    clean = ""
    if summary.correct is not None:
        level = y(summary.correct / summary.inputs)
        clean = (
            f'<line class="clean" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{level:.1f}" y2="{level:.1f}"/>'
            f'<text class="note" x="{WIDTH - RIGHT}" y="{level - 5:.1f}" text-anchor="end">clean accuracy</text>'
        )
    ticks = _thin([(x(radius), text) for radius, _, _, text in rows])
    body = (
        _grid([(y(share / 4), f"{25 * share}%") for share in range(5)], ticks, f"radius ({unit})")
        + f'{clean}<polygon class="band" points="{band}"/><polyline class="line robust" points="{_points(x, y, low)}"/>{marks}'
    )
    return _svg("Certified accuracy against the radius", body)


def cactus(seconds: Iterable[float]) -> str:
    """How many questions are decided within a time, on a logarithmic axis."""
    times = sorted(max(value, 1e-3) for value in seconds)
    if not times:
        return ""
    first, last = math.floor(math.log10(times[0])), max(math.ceil(math.log10(times[-1])), math.floor(math.log10(times[0])) + 1)
    x, y = _scale(first, last, LEFT, WIDTH - RIGHT), _scale(0, len(times), HEIGHT - BOTTOM, TOP)
    points: list[tuple[float, float]] = [(first, 0.0)]
    for position in sorted({round(step * (len(times) - 1) / CURVE_POINTS) for step in range(CURVE_POINTS + 1)}):
        at = math.log10(times[position])
        points += [(at, points[-1][1]), (at, position + 1.0)]
    points.append((last, len(times)))
    ticks = [(x(power), _seconds(power)) for power in range(first, last + 1)]
    levels = [(y(value), f"{value:,}") for value in _round_steps(len(times))]
    body = _grid(levels, ticks, "time for one question") + f'<polyline class="line decided" points="{_points(x, y, points)}"/>'
    return _svg("Questions decided within a time", body)


def radius_histogram(bars: Sequence[tuple[str, int, int]], unit: str) -> str:
    """Inputs by the largest radius proved: (radius, settled, could be larger), in the order of the radii."""
    highest = max((settled + more for _, settled, more in bars), default=0)
    if not highest:
        return ""
    y = _scale(0, highest, HEIGHT - BOTTOM, TOP)
    slot = (WIDTH - LEFT - RIGHT) / len(bars)
    parts: list[str] = []
    ticks: list[tuple[float, str]] = []
    for position, (radius, settled, more) in enumerate(bars):
        left, width = LEFT + (position + 0.12) * slot, 0.76 * slot
        ticks.append((left + width / 2, radius))
        for kind, base, count in (("robust", 0, settled), ("unknown", settled, more)):
            if count:
                top, height = y(base + count), y(base) - y(base + count)
                what = "exactly known" if kind == "robust" else "or larger, not decided"
                parts.append(
                    f'<rect class="bar {kind}" x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}" rx="2">'
                    f"<title>radius {escape(radius)}, {what}: {count} inputs</title></rect>"
                )
    levels = [(y(value), f"{value:,}") for value in _round_steps(highest)]
    body = _grid(levels, _thin(ticks), f"largest radius proved ({unit})") + "".join(parts)
    return _svg("Inputs by the largest radius proved", body)


def apart(intervals: Iterable[tuple[float, float | None]]) -> str:
    """One bar an input from the attained to the proved difference, sorted; an open end where nothing is proved."""
    known = sorted(intervals, key=lambda ends: (ends[0] if ends[1] is None else ends[1], ends[0]))
    highest = max((end for ends in known for end in ends if end is not None), default=0.0)
    if highest <= 0:
        return ""
    y, slot = _scale(0, highest, HEIGHT - BOTTOM, TOP), (WIDTH - LEFT - RIGHT) / len(known)
    parts: list[str] = []
    for position, (least, greatest) in enumerate(known):
        left, top = LEFT + (position + 0.15) * slot, TOP if greatest is None else y(greatest)
        kind, above = ("unknown", "nothing is proved") if greatest is None else ("robust", f"at most {greatest:.6g}")
        parts.append(
            f'<rect class="bar {kind}" x="{left:.1f}" y="{top:.1f}" width="{0.7 * slot:.2f}" '
            f'height="{max(y(least) - top, 1.5):.1f}"><title>{least:.6g} is attained, {above}</title></rect>'
        )
    levels = [(y(highest * step / 4), f"{highest * step / 4:.3g}") for step in range(5)]
    return _svg("Differences around each input", _grid(levels, [], f"{len(known)} inputs") + "".join(parts))


def _svg(label: str, body: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{body}</svg>'


class _Scale:
    """A linear map."""

    def __init__(self, first: float, last: float, start: float, end: float) -> None:
        self.first, self.start, self.slope = first, start, (end - start) / ((last - first) or 1.0)

    def __call__(self, value: float) -> float:
        return self.start + (value - self.first) * self.slope


_scale = _Scale


def _points(x: _Scale, y: _Scale, curve: Curve) -> str:
    return " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in curve)


def _grid(levels: Sequence[tuple[float, str]], ticks: Sequence[tuple[float, str]], name: str) -> str:
    """Horizontal lines with their values, marks below with theirs, and the name of the axis."""
    rows = "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        f'<text class="tick" x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{escape(text)}</text>'
        for at, text in levels
    )
    marks = "".join(
        f'<text class="tick" x="{at:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{escape(text)}</text>'
        for at, text in ticks
    )
    middle = (LEFT + WIDTH - RIGHT) / 2
    return f'{rows}{marks}<text class="axis" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(name)}</text>'


def _thin(ticks: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Without those that would touch the one before."""
    kept: list[tuple[float, str]] = []
    for at, text in ticks:
        if not kept or at - kept[-1][0] > 4 * (len(text) + len(kept[-1][1])) + 8:
            kept.append((at, text))
    return kept


def _round_steps(highest: int) -> list[int]:
    """0 … highest in up to five round steps."""
    step = next(
        size for power in range(20) for size in (10**power, 2 * 10**power, 5 * 10**power) if highest <= 5 * size
    )  # fmt: skip
    return list(range(0, highest + 1, step))


def _seconds(power: int) -> str:
    return f"{10**power:,} s" if power >= 0 else f"{10 ** (power + 3):g} ms"


def _share(low: float, high: float) -> str:
    return f"{low:.1%}" if low == high else f"{low:.1%} … {high:.1%}"
