"""Gaussians and meshes in the browser, on viser: what is on the disk, or a run while it is made."""

from ddpo3d_fast.view.command import view
from ddpo3d_fast.view.live import LiveView

__all__ = ["LiveView", "view"]
