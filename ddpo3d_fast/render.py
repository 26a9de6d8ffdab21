"""The command `render`: from a file with a Gaussian splat to pictures of it."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ddpo3d_fast.errors import FallbackWarning, InputError
from ddpo3d_fast.settings import check_values

if TYPE_CHECKING:
    from torch import Tensor

    from ddpo3d_fast.commands import Render
    from ddpo3d_fast.scene import Cameras, Gaussians

FRAMES, STILLS = 90, 8  # views of a turntable, and of anything else
_LARGEST = 1e12  # of a number in --center
_SEEN = 0.01  # alpha of a pixel that shows something


def render(settings: Render) -> Path:
    """Writes the pictures and returns where they are. Raises InputError for wrong settings or a wrong file,
    with nothing written; warns of views that show nothing."""
    check_values(settings)
    from ddpo3d_fast.assets import splat_path

    settings = dataclasses.replace(settings, asset=splat_path(settings.asset, "asset"))
    output, background = _output(settings), parse_color(settings.background)
    center = parse_point(settings.center) if settings.center else None

    import torch

    from ddpo3d_fast.assets import contact_sheet, write_png, write_stills, write_turntable
    from ddpo3d_fast.scene import render_each

    count = settings.views or (FRAMES if output.suffix.lower() == ".mp4" else STILLS)
    gaussians, cameras = _set_up(settings, count, center)
    empty = 0

    def views() -> Iterator[Tensor]:
        nonlocal empty
        for view in render_each(gaussians, cameras, settings.size, torch.tensor(background)):
            empty += not bool((view.alpha > _SEEN).any())
            yield view.rgb

    if settings.stills or not output.suffix:
        write_stills(output, views())
    elif output.suffix.lower() == ".mp4":
        write_turntable(output, views())
    else:
        write_png(output, contact_sheet(torch.stack(list(views()))))
    if empty:
        warnings.warn(
            f"{empty} of {count} views show nothing of the {len(gaussians)} Gaussians: "
            "--center, --radius and --up move the camera",
            FallbackWarning,
            stacklevel=2,
        )
    return output


def _set_up(
    settings: Render, count: int, center: tuple[float, float, float] | None
) -> tuple[Gaussians, Cameras]:
    """The scene, moved to where cameras look, and the cameras."""
    import torch

    from ddpo3d_fast.assets import axes, read_splat
    from ddpo3d_fast.scene import Gaussians, frame_of, framed, orbit
    from ddpo3d_fast.scene.cameras import RADIUS

    raw, from_file = read_splat(settings.asset)
    gaussians = Gaussians(*raw)
    given = None if center is None else from_file @ torch.tensor(center, dtype=torch.float64)
    frame = frame_of(gaussians, given)
    if settings.radius is not None:
        frame = frame._replace(radius=settings.radius / RADIUS)
    cameras = orbit(count, math.radians(settings.elevation))
    if settings.up is not None:  # from this program's world to a file's, to one with y up
        cameras = cameras.turned(axes(settings.up) @ from_file.T)
    return framed(gaussians, frame), cameras


def _output(settings: Render) -> Path:
    """Where the views go; a path without a suffix, or of a folder, is a folder of stills."""
    asset, output = settings.asset, settings.output
    if output is None:
        return asset.with_name(f"{asset.stem}-stills") if settings.stills else asset.with_suffix(".mp4")
    if settings.stills or output.is_dir() or not output.suffix:
        if output.is_file() or output.suffix.lower() in (".mp4", ".png"):
            raise InputError(f"--output: expected a folder for stills, got {output}")
        return output
    if output.suffix.lower() not in (".mp4", ".png"):
        raise InputError(f"--output: expected FILE.mp4, FILE.png or a folder, got {output}")
    return output


def parse_color(text: str) -> tuple[float, float, float]:
    """Red, green and blue in [0, 1] of a colour's name, of #rrggbb or of three numbers. Raises InputError."""
    from PIL import ImageColor

    try:
        if text.count(",") == 2:
            red, green, blue = (float(part) for part in text.split(","))
        else:
            red, green, blue = (part / 255 for part in ImageColor.getrgb(text)[:3])
        if not all(0 <= part <= 1 for part in (red, green, blue)):
            raise ValueError
    except ValueError:
        expected = "a colour's name, #rrggbb, or r,g,b from 0 to 1"
        raise InputError(f"--background: expected {expected}, got {text!r}") from None
    return red, green, blue


def parse_point(text: str) -> tuple[float, float, float]:
    """The three coordinates of X,Y,Z. Raises InputError."""
    try:
        x, y, z = (float(part) for part in text.split(","))
        if not all(abs(part) <= _LARGEST for part in (x, y, z)):
            raise ValueError
    except ValueError:
        raise InputError(f"--center: expected X,Y,Z, three numbers, got {text[:60]!r}") from None
    return x, y, z
