"""The page in the browser: a viser server of this machine alone, and what stands on it."""

from __future__ import annotations

import contextlib
import html
import io
import logging
import math
import socket
from typing import Any

from ddpo3d_fast import extras
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.scene import Gaussians
from ddpo3d_fast.scene.cameras import FOV_Y, RADIUS
from ddpo3d_fast.view.splats import packed

HOST = "127.0.0.1"
ELEVATION = 15.0  # degrees above the horizon, of the camera that a page begins with


class Page:
    """One scene, and a panel beside it, for whoever has the page open; a page that is opened later shows the
    same. `close` it at the end."""

    def __init__(self, port: int, title: str, purpose: str) -> None:
        """Serves at once, on this machine alone; port 0 is any free one. Raises InputError where the extra
        `viewer` is missing, which `purpose` needs, or the port is taken."""
        viser = extras.load("viewer", "viser", purpose)
        _check_free(port)
        logging.getLogger("websockets").setLevel(logging.CRITICAL)  # of browsers that go away
        with _silence():
            self._viser = viser.ViserServer(host=HOST, port=port, label=title, verbose=False)
        self.port = self._viser.get_port()
        if port not in (0, self.port):  # viser takes the next one where somebody was quicker
            self.close()
            raise _taken(port)
        self.url = f"http://{HOST}:{self.port}"
        self.gui = self._viser.gui
        self.gui.configure_theme(dark_mode=False, show_share_button=False)
        self._viser.scene.set_up_direction("+y")
        camera, height = self._viser.initial_camera, math.radians(ELEVATION)
        camera.fov, camera.look_at = FOV_Y, (0.0, 0.0, 0.0)
        camera.position = (0.0, RADIUS * math.sin(height), RADIUS * math.cos(height))

    def watched(self) -> bool:
        """Whether anybody has the page open."""
        return bool(self._viser.get_clients())

    def show_gaussians(self, gaussians: Gaussians) -> None:
        """Shows Gaussians, in this program's world, in place of what was shown. The page knows no colour that
        depends on the view: the constant ones are shown."""
        splats = packed(gaussians)
        with self._viser.atomic():
            self._viser.scene.add_gaussian_splats("/scene", **splats._asdict())

    def show_mesh(self, mesh: Any) -> None:
        """Shows trimesh's mesh, or its scene, in place of what was shown."""
        with self._viser.atomic():
            self._viser.scene.add_mesh_trimesh("/scene", mesh)

    def close(self) -> None:
        """Ends the server; whoever has the page open sees that it has gone."""
        with _silence():
            self._viser.stop()


def _silence() -> contextlib.AbstractContextManager[object]:
    """viser prints that it begins and ends, whether or not it is to be verbose."""
    return contextlib.redirect_stdout(io.StringIO())


def markdown_text(text: str) -> str:
    """Text as Markdown that shows it as it is."""
    escaped = "".join(f"\\{letter}" if letter in "\\`*_{}[]()#+-.!|~$:" else letter for letter in text)
    return html.escape(" ".join(escaped.split()), quote=False)


def table(figures: dict[str, Any]) -> str:
    """Names and numbers as a table in Markdown."""
    shown = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in figures.items()}
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in shown.items())])


def _check_free(port: int) -> None:
    """Raises InputError for a port that is taken, or that this user may not take."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server has it
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise _taken(port, error) from error


def _taken(port: int, error: OSError | None = None) -> InputError:
    reason = f" ({error.strerror})" if error else ""
    return InputError(f"--port: expected one that is free, or 0 for any, got {port}{reason}")
