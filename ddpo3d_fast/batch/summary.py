"""What a batch leaves beside its runs: summary.csv, summary.html and a contact sheet."""

from __future__ import annotations

import csv
import html
import io
import math
import os
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from ddpo3d_fast.batch.jobs import Job
from ddpo3d_fast.batch.worker import Outcome
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.files import write_each, write_text
from ddpo3d_fast.run import RunFolder

CSV, HTML, SHEET = "summary.csv", "summary.html", "contact-sheet.png"
_WIDEST = 8192  # pixels of a sheet; the views of many runs are smaller for it


@dataclass
class Row:
    """A run, in a line of summary.csv. What is not known is empty."""

    prompt: str
    seed: int
    preset: str
    state: str  # done, failed, stopped or waiting
    folder: str  # relative to that of the summary
    seconds: str = ""  # of the run, in which it was made
    steps: str = ""  # done
    gaussians: str = ""
    loss: str = ""  # of the last step
    reward: str = ""  # of the last step that has one
    message: str = ""  # why it is not done


class Summary:
    """The rows of a batch's jobs in its folder, kept up to date as they end."""

    def __init__(self, output: Path, jobs: Sequence[Job]) -> None:
        self.output, self._jobs = output, jobs
        self._before = _seconds_of(output / CSV)
        self.rows = {job.folder: self._row(job, "waiting") for job in jobs}

    def note(self, job: Job, outcome: Outcome) -> None:
        """Something has become of a job."""
        state = "done" if outcome.state == "earlier" else outcome.state
        row = self.rows[job.folder] = self._row(job, state, outcome.message)
        if state == "done":
            row.seconds = self._before.get(row.folder, "")
            if outcome.state == "done":
                row.seconds = f"{outcome.seconds:.2f}"
        if state in ("done", "stopped"):
            self._read_metrics(job, row)

    def count(self, state: str) -> int:
        """How many jobs are in a state."""
        return sum(row.state == state for row in self.rows.values())

    def write_csv(self) -> None:
        """Writes the rows. Raises InputError where they cannot be written, as all below."""
        text, names = io.StringIO(), [field.name for field in fields(Row)]
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(vars(row) for row in self.rows.values())
        write_text(self.output / CSV, text.getvalue())

    def write(self) -> list[Path]:
        """Writes all three and returns their paths; no contact sheet where no run has pictures."""
        shown = [self.output / row.folder for row in self.rows.values() if row.state == "done"]
        writes = [self.write_csv, lambda: write_text(self.output / HTML, page(list(self.rows.values())))]
        names = [CSV, HTML]
        if shown:
            writes.append(lambda: write_sheet(self.output / SHEET, shown))
            names.append(SHEET)
        write_each(*writes)
        return [self.output / name for name in names]

    def _row(self, job: Job, state: str, message: str = "") -> Row:
        config, folder = job.config, os.path.relpath(job.folder, self.output)
        return Row(config.prompt, config.seed, config.preset, state, folder, message=message)

    def _read_metrics(self, job: Job, row: Row) -> None:
        try:
            metrics = RunFolder(job.folder, job.config).read_metrics()
        except InputError:
            return  # the run's own affair; its figures are not known
        if metrics:
            last = metrics[-1]
            row.steps, row.gaussians = str(last["step"]), str(last["gaussians"])
            row.loss = _number(last.get("loss"))
            rewards = [each["reward"] for each in metrics if each.get("reward") is not None]
            row.reward = _number(rewards[-1] if rewards else None)


def _seconds_of(path: Path) -> dict[str, str]:
    """What an earlier summary says that its runs took, by their folders."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return {row["folder"]: row["seconds"] for row in csv.DictReader(file)}
    except (OSError, ValueError, KeyError, csv.Error):
        return {}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em; color: #222; background: #fafafa; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(25em, 1fr)); gap: 1.2em; }
article { background: #fff; border: 1px solid #ddd; border-radius: 6px; padding: 0.8em; overflow: hidden; }
article img { width: 100%; display: block; }
h2 { font-size: 1em; margin: 0.5em 0 0; overflow-wrap: anywhere; }
p { margin: 0.2em 0; overflow-wrap: anywhere; }
.failed { border-color: #c33; } .figures { color: #666; }
"""


def page(rows: Sequence[Row]) -> str:
    """One HTML page that needs nothing but the runs' folders beside it."""
    done = sum(row.state == "done" for row in rows)
    body = "\n".join(_article(row) for row in rows)
    title = f"{done} of {len(rows)} runs done"
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f'<meta name="viewport" content="width=device-width">\n<style>{STYLE}</style>\n'
        f"<h1>{title}</h1>\n<main>\n{body}\n</main>\n</html>\n"
    )


def _article(row: Row) -> str:
    prompt, place = html.escape(row.prompt), urllib.parse.quote(Path(row.folder).as_posix())
    figures = {"seed": row.seed, "preset": row.preset, "seconds": row.seconds, "steps": row.steps}
    figures |= {"Gaussians": row.gaussians, "loss": row.loss, "reward": row.reward}
    known = ", ".join(f"{name} {html.escape(str(value))}" for name, value in figures.items() if value != "")
    parts = [f'<article class="{row.state}">']
    if row.state == "done":
        picture = f'<img src="{place}/preview.png" alt="{prompt}" loading="lazy">'
        parts.append(f'<a href="{place}/turntable.mp4">{picture}</a>')
    parts += [f"<h2>{prompt}</h2>", f'<p class="figures">{known}</p>']
    if row.state == "done":
        files = ("asset.ply", "turntable.mp4", "config.yaml")
        links = [f'<a href="{place}/{file}">{file}</a>' for file in files]
        parts.append(f"<p>{' '.join(links)}</p>")
    else:
        parts.append(f"<p>{row.state}{': ' if row.message else ''}{html.escape(row.message)}</p>")
    return "\n".join([*parts, "</article>"])


def write_sheet(path: Path, folders: Sequence[Path]) -> None:
    """Writes the first view of every run on one sheet, in their order. Raises InputError."""
    import numpy as np
    import torch
    from PIL import Image, UnidentifiedImageError

    from ddpo3d_fast.assets import contact_sheet, write_png
    from ddpo3d_fast.assets.exporters import PREVIEW_GAP, PREVIEW_SIZE

    box = (PREVIEW_GAP, PREVIEW_GAP, PREVIEW_GAP + PREVIEW_SIZE, PREVIEW_GAP + PREVIEW_SIZE)
    side = max(24, min(PREVIEW_SIZE, _WIDEST // math.ceil(math.sqrt(len(folders)))))
    views = []
    for folder in folders:
        try:
            with Image.open(folder / "preview.png") as preview:
                view = preview.convert("RGB").crop(box).resize((side, side))
            views.append(torch.from_numpy(np.array(view)) / 255)
        except (OSError, UnidentifiedImageError):  # it went in the meantime
            views.append(torch.ones(side, side, 3))
    write_png(path, contact_sheet(torch.stack(views)))
