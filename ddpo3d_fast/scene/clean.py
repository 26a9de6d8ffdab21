"""What of a scene is worth exporting."""

from __future__ import annotations

from ddpo3d_fast.scene.gaussians import DEAD_OPACITY, Gaussians
from ddpo3d_fast.scene.hull import outside_hull, unsupported

EXPORT_OPACITY = 0.02  # fainter Gaussians are left out


def clean(gaussians: Gaussians) -> Gaussians:
    """A new scene without the faint and the not finite, and without haze: what nothing solid is near to, and
    what lies outside of the visual hull. Where all would be haze, it stays."""
    kept = prune(gaussians, EXPORT_OPACITY)
    for haze in (unsupported, outside_hull):  # in this order: a clump of faint ones would be its own hull
        if len(solid := kept[~haze(kept)]):
            kept = solid
    return kept


def prune(gaussians: Gaussians, dead_opacity: float = DEAD_OPACITY) -> Gaussians:
    """A new scene without what nobody would see, or no viewer could read: the faint and the not finite."""
    return gaussians[(gaussians.logit_opacities.sigmoid() >= dead_opacity) & gaussians.finite()]
