"""The plot of `estimator.py`: what an estimate costs, and how well it points, a panel a reward."""

from __future__ import annotations

import math
from typing import Any

WIDTH, HEIGHT, MARGIN = 420, 300, 50  # of a panel, and around its axes
COLORS = {
    "noise": "#666666",
    "latent white": "#9467bd",
    "latent lowpass": "#1f77b4",
    "view": "#ff7f0e",
    "scene": "#2ca02c",
    "scene all": "#d62728",
}


def svg(rows: list[dict[str, Any]], stage: str = "midway") -> str:
    """A line an estimator, over its numbers of actions: cosine in the scene against seconds, as one SVG."""
    rows = [row for row in rows if row["varied"] == "actions" and row["stage"] == stage]
    rewards = list(dict.fromkeys(row["reward"] for row in rows))
    seconds = [max(row["seconds"], 1e-3) for row in rows]
    low, high = math.floor(math.log10(min(seconds))), math.ceil(math.log10(max(seconds)))
    top = max(0.1, *(row["scene"] for row in rows))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH * len(rewards)}" height="{HEIGHT}" '
        'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
    ]
    for panel, reward in enumerate(rewards):
        parts.append(f'<g transform="translate({panel * WIDTH},0)">')
        parts += _axes(reward, low, high, top)
        for number, (estimator, color) in enumerate(COLORS.items()):
            mine = [row for row in rows if (row["reward"], row["estimator"]) == (reward, estimator)]
            points = [
                (_x(math.log10(max(row["seconds"], 1e-3)), low, high), _y(row["scene"], top), row)
                for row in mine
            ]
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in points)
            parts.append(f'<polyline points="{line}" fill="none" stroke="{color}"/>')
            for x, y, row in points:
                error = row["scene error"] * (HEIGHT - 2 * MARGIN) / top
                parts.append(
                    f'<path d="M{x:.1f} {y - error:.1f}V{y + error:.1f}" stroke="{color}"/>'
                    f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>'
                    f'<text x="{x + 5:.1f}" y="{y - 4:.1f}" fill="{color}">{row["actions"]:g}</text>'
                )
            if panel == 0:
                at = MARGIN + 14 * number
                parts.append(f'<text x="{MARGIN + 8}" y="{at}" fill="{color}">{estimator}</text>')
        parts.append("</g>")
    return "\n".join([*parts, "</svg>\n"])


def _axes(reward: str, low: int, high: int, top: float) -> list[str]:
    bottom, right = HEIGHT - MARGIN, WIDTH - MARGIN / 2
    parts = [
        f'<path d="M{MARGIN} {MARGIN / 2}V{bottom}H{right}" fill="none" stroke="black"/>',
        f'<text x="{WIDTH / 2}" y="{MARGIN / 2 - 6}" text-anchor="middle">{reward}</text>',
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 12}" text-anchor="middle">processor seconds an estimate</text>',
        f'<text transform="translate(14,{HEIGHT / 2}) rotate(-90)" text-anchor="middle">cosine, scene</text>',
    ]
    for power in range(low, high + 1):
        x = _x(power, low, high)
        parts.append(f'<text x="{x:.1f}" y="{bottom + 14}" text-anchor="middle">{10.0**power:g}</text>')
    for part in range(5):
        value = top * part / 4
        y = _y(value, top) + 4
        parts.append(f'<text x="{MARGIN - 5}" y="{y:.1f}" text-anchor="end">{value:.2f}</text>')
    return parts


def _x(power: float, low: int, high: int) -> float:
    return MARGIN + (power - low) / max(1, high - low) * (WIDTH - 1.5 * MARGIN)


def _y(value: float, top: float) -> float:
    return HEIGHT - MARGIN - value / top * (HEIGHT - 2 * MARGIN)
