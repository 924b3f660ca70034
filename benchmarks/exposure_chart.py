"""Draws exposure over the migration as one SVG: added up since the start, on a logarithmic scale, a line a policy."""

import math
from itertools import accumulate

__all__ = ["draw_exposure"]

WIDTH, HEIGHT = 860, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 130, 24, 44
COLOURS = {
    "round-robin": "#c0392b",
    "oldest-first": "#e08e0b",
    "live-first": "#8e44ad",
    "ours": "#1f7a4d",
    "oracle": "#7f8c8d",
}
HOURS_A_DAY = 24


def draw_exposure(by_hour_min: dict[str, list[float]]) -> str:
    """Return the chart.

    Args:
        by_hour_min: for each policy, minutes of exposure in each hour of the migration.
    """
    sums = {policy: list(accumulate(hours)) for policy, hours in by_hour_min.items()}
    hours = max(len(line) for line in sums.values())
    highest = max(1, math.ceil(math.log10(max(10.0, *(line[-1] for line in sums.values())))))
    lowest = -1

    def x(hour: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * hour / hours

    def y(minutes: float) -> float:
        place = (math.log10(max(minutes, 10.0**lowest)) - lowest) / (highest - lowest)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * place

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="13" fill="#444">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
    ]
    for power in range(lowest, highest + 1):
        at = y(10.0**power)
        parts.append(f'<line x1="{LEFT}" y1="{at:.1f}" x2="{WIDTH - RIGHT}" y2="{at:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{10.0**power:,.10g}</text>')
    for day in range(0, hours // HOURS_A_DAY + 1, 2):
        at = x(day * HOURS_A_DAY)
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">day {day}</text>')
    parts.append(f'<text x="{LEFT}" y="{TOP - 8}">minutes of exposure since the start</text>')
    taken: list[float] = []
    for policy, line in sorted(sums.items(), key=lambda item: -item[1][-1]):
        colour = COLOURS.get(policy, "#2c3e50")
        points = " ".join(f"{x(hour + 1):.1f},{y(minutes):.1f}" for hour, minutes in enumerate(line))
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{points}"/>')
        label_y = y(line[-1]) + 4
        while any(abs(label_y - other) < 15 for other in taken):
            label_y += 15
        taken.append(label_y)
        parts.append(f'<text x="{WIDTH - RIGHT + 8}" y="{label_y:.1f}" fill="{colour}">{policy} {line[-1]:,.0f}</text>')
    parts.append("</svg>")
    return "\n".join(parts) + "\n"
