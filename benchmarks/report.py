"""What a study leaves for a page: a plot, a section of its own, pictures that were kept."""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import paired
import torch
from PIL import Image
from torch import Tensor

from ddpo3d_fast.files import write_text
from ddpo3d_fast.info import machine

WIDTH, ROW, LABEL, GAP = 330, 20, 90, 26  # pixels: a panel, a line of it, its names, what is around it
COLUMNS = 2  # panels beside each other


def read_views(path: Path, count: int, size: int) -> Tensor:
    """[count, size, size, 3] of a strip of views; white where there is none."""
    if not path.exists():
        return torch.ones(count, size, size, 3)
    strip = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).float() / 255
    return torch.stack(strip.split(size, 1)[:count])


def plot(lines: list[paired.Row], measures: paired.Measures, base: str) -> str:
    """SVG: a panel a measure, in which each arm's difference to `base` has a dot and its interval a line."""
    panels = []
    for measure in measures:
        mine = [line for line in lines if line["measure"] == measure and "difference" in line]
        if mine:
            panels.append((measure, mine))
    tallest = max((len(mine) for _, mine in panels), default=0)
    height = ROW * (tallest + 1) + GAP
    drawn = [_panel(measure, mine, measures[measure], base) for measure, mine in panels]
    body = ""
    for at, each in enumerate(drawn):
        x, y = GAP + at % COLUMNS * (WIDTH + GAP), GAP + at // COLUMNS * height
        body += f'<g transform="translate({x},{y})">{each}</g>'
    rows = -(-len(drawn) // COLUMNS)
    size = f'width="{COLUMNS * (WIDTH + GAP) + GAP}" height="{rows * height + GAP}"'
    style = 'font-family="sans-serif" font-size="11"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}><rect width="100%" height="100%" '
        f'fill="white"/>{body}</svg>\n'
    )


def _panel(measure: str, lines: list[paired.Row], digits: int, base: str) -> str:
    """The arms of a measure, one under the other, around 0."""
    ends = [abs(end) for line in lines for end in (*(line["interval"] or ()), line["difference"])]
    reach = max(ends) or 1.0
    middle, unit = (LABEL + WIDTH) / 2, (WIDTH - LABEL) / 2.2 / reach
    parts = [f'<text x="{middle}" y="0" text-anchor="middle">{escape(measure)}, minus {escape(base)}</text>']
    bottom = ROW * (len(lines) + 0.5)
    parts.append(f'<line x1="{middle}" y1="6" x2="{middle}" y2="{bottom}" stroke="#999"/>')
    for row, line in enumerate(lines, 1):
        y, at = ROW * row, middle + unit * line["difference"]
        parts.append(f'<text x="{LABEL - 8}" y="{y + 4}" text-anchor="end">{escape(line["arm"])}</text>')
        if line["interval"]:
            low, high = (middle + unit * end for end in line["interval"])
            parts.append(
                f'<line x1="{low:.1f}" y1="{y}" x2="{high:.1f}" y2="{y}" stroke="#357" stroke-width="2"/>'
            )
        title = f"<title>{line['difference']:+.{digits}f}</title>"
        parts.append(f'<circle cx="{at:.1f}" cy="{y}" r="3.5" fill="#357">{title}</circle>')
    for x, anchor, end in ((LABEL, "start", -1.1 * reach), (WIDTH, "end", 1.1 * reach)):
        place = f'x="{x}" y="{bottom + 8}" text-anchor="{anchor}" fill="#666"'
        parts.append(f"<text {place}>{end:+.{digits + 1}f}</text>")
    return "".join(parts)


def section(
    rows: list[paired.Row],
    measures: paired.Measures,
    base: str,
    words: list[str],
    options: argparse.Namespace,
) -> str:
    """Markdown: what was run, a table of the arms, and the pictures, named from the page's own folder."""
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    prompts, seeds = (len({row[key] for row in rows}) for key in ("prompt", "seed"))
    lines = {(line["measure"], line["arm"]): line for line in paired.summary(rows, measures, base)}
    head = f"{len(rows)} assets: {prompts} prompts, {seeds} seed{'s' * (seeds > 1)}, preset "
    head += f"{options.preset}; {machine()}."
    text = ["## Arms beside each other", "", head, ""]
    text += [f"| | {' | '.join(arms)} |", f"|---|{'---|' * len(arms)}"]
    for measure in measures:
        cells = []
        for arm in arms:
            mean, difference, interval = paired.in_words(lines[measure, arm], measures)
            cells.append(f"{mean} ({difference}; {interval})" if difference else mean)
        text.append(f"| {measure} | {' | '.join(cells)} |")
    medians = {arm: statistics.median(row["IoU"] for row in rows if row["arm"] == arm) for arm in arms}
    iou = ", ".join(f"{arm} {median:.3f}" for arm, median in medians.items())
    text += ["", f"In brackets the paired difference to {base} and its 95 % interval. Median IoU: {iou}.", ""]
    page = options.results.parent
    for path, title in ((options.plot, "differences"), (options.gallery, f"columns: {', '.join(arms)}")):
        if path:
            text += [f"![{title}]({Path(os.path.relpath(path, page)).as_posix()})", ""]
    command = shlex.join(["python", "benchmarks/quality.py", *words])
    return "\n".join([*text, f"    {command}"])


def replace_section(page: Path, name: str, text: str) -> None:
    """Writes a page's section anew, between its two markers; at the end of the page where it has none yet."""
    before = page.read_text(encoding="utf-8") if page.exists() else "# Results\n"
    begin, end = f"<!-- {name}: written by benchmarks/{name}.py -->", f"<!-- end of {name} -->"
    section = f"{begin}\n{text}\n{end}"
    head, found, rest = before.partition(begin)
    if not found:
        write_text(page, f"{before.rstrip()}\n\n{section}\n")
        return
    _, closed, tail = rest.partition(end)
    if not closed:
        raise ValueError(f"{page}: expected {end!r} behind {begin!r}")
    write_text(page, head + section + tail)
