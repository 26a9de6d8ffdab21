"""gsplat's functions on this rasterizer: the names, arguments and results of gsplat 1.5.3 and 1.6.0.

    from ddpo3d_fast.compat import gsplat
    render_colors, render_alphas, meta = gsplat.rasterization(means, quats, scales, opacities, colors, ...)

`use` says which version is meant; they differ in the largest alpha (0.999 and 0.99), the least antialiasing
factor, the arguments of `spherical_harmonics` and those of `rasterization` behind with_eval3d.
`ddpo3d_fast.compat.install` puts these functions where `import gsplat` finds them.
"""

from .projection import fully_fused_projection, proj, quat_scale_to_covar_preci, world_to_cam
from .rasterization import rasterization
from .relocation import compute_relocation
from .sh import spherical_harmonics
from .tiles import isect_offset_encode, isect_tiles, rasterize_to_pixels
from .versions import use, version

__all__ = [
    "compute_relocation",
    "fully_fused_projection",
    "isect_offset_encode",
    "isect_tiles",
    "proj",
    "quat_scale_to_covar_preci",
    "rasterization",
    "rasterize_to_pixels",
    "spherical_harmonics",
    "use",
    "version",
    "world_to_cam",
]
