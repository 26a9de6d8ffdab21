"""The command `view`: shows what lies at a path, until Ctrl-C."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ddpo3d_fast.errors import InputError
from ddpo3d_fast.settings import check_values
from ddpo3d_fast.view.page import Page, markdown_text
from ddpo3d_fast.view.shown import ASSET, load

if TYPE_CHECKING:
    from ddpo3d_fast.commands import View

LOOK = 2.0  # seconds between two looks for new runs in a folder


def view(settings: View, say: Callable[[str], None]) -> None:
    """Serves a page with an asset, a mesh, a run, or the runs of a folder, until Ctrl-C; `say` is given its
    address. Raises InputError for a path with nothing to see, and as `Page` does."""
    check_values(settings)
    path = settings.path
    chooses = path.is_dir() and not (path / ASSET).is_file()
    runs = runs_in(path) if chooses else {}
    if chooses and not runs:
        raise InputError(f"path: expected a run or a folder of runs, got {path}, where no {ASSET} is")
    first = load(next(iter(runs.values())) if chooses else path)
    page = Page(settings.port, f"ddpo3d-fast view {path}", "view")
    with contextlib.closing(page), contextlib.suppress(KeyboardInterrupt):
        choice = page.gui.add_dropdown("Run", tuple(runs)) if chooses else None
        told = page.gui.add_markdown(first.text)
        first.show(page)
        if choice is not None:

            @choice.on_update
            def _(event: object) -> None:
                try:
                    shown = load(path / choice.value)
                except InputError as error:  # it went in the meantime
                    told.content = markdown_text(str(error))
                else:
                    shown.show(page)
                    told.content = shown.text

        say(f"{page.url} shows {path}; Ctrl-C ends it")
        while True:
            time.sleep(LOOK)
            if choice is not None and (now := tuple(runs_in(path))) and now != choice.options:
                choice.options = now


def runs_in(folder: Path) -> dict[str, Path]:
    """The folders of runs in a folder, or one level deeper as a batch has them, by their names; those with an
    asset, the youngest first."""
    ages = dict[Path, int]()
    for asset in (*folder.glob(f"*/{ASSET}"), *folder.glob(f"*/*/{ASSET}")):
        with contextlib.suppress(OSError):  # it went in the meantime
            ages[asset.parent] = asset.stat().st_mtime_ns
    return {str(run.relative_to(folder)): run for run in sorted(ages, key=lambda run: (-ages[run], run))}
