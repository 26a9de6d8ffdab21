"""The scene: Gaussians or a texture, cameras, the first cloud and its densification. Knows nothing of
diffusion."""

from ddpo3d_fast.scene.base import Representation, Verdict
from ddpo3d_fast.scene.cameras import Cameras, look_at_origin, orbit, sample_cameras
from ddpo3d_fast.scene.clean import clean, prune
from ddpo3d_fast.scene.densification import Densification, ScreenGradients
from ddpo3d_fast.scene.framing import Frame, frame_of, framed
from ddpo3d_fast.scene.gaussians import Gaussians, LearningRates, Views
from ddpo3d_fast.scene.hull import outside_hull, unsupported
from ddpo3d_fast.scene.initialise import initial_ball, initial_cloud
from ddpo3d_fast.scene.relocation import Relocation
from ddpo3d_fast.scene.splats import Splats
from ddpo3d_fast.scene.textured import Shape, Textured
from ddpo3d_fast.scene.units import CHANNELS, moved_channels
from ddpo3d_fast.scene.view_batches import View, render_each

__all__ = [
    "CHANNELS",
    "Cameras",
    "Densification",
    "Frame",
    "Gaussians",
    "LearningRates",
    "Relocation",
    "Representation",
    "ScreenGradients",
    "Shape",
    "Splats",
    "Textured",
    "Verdict",
    "View",
    "Views",
    "clean",
    "frame_of",
    "framed",
    "initial_ball",
    "initial_cloud",
    "look_at_origin",
    "moved_channels",
    "orbit",
    "outside_hull",
    "prune",
    "render_each",
    "sample_cameras",
    "unsupported",
]
