"""The ops as torch functions: rasterization, fused diffusion arithmetic, Adam.

Needs torch, numpy and the extension only.
"""

from ._backend import build_info, get_num_threads, set_num_threads
from ._entries import TileCapacity, TooManyEntries
from .adam import AdamGroup, adam, adam_groups
from .density import gaussian_density
from .differentiable import rasterize
from .diffusion import add_noise, denoise_action, mixed_residual, philox_normal, score_residual
from .features import rasterize_features
from .footprints import (
    FootprintGradients,
    rasterize_footprints_backward,
    rasterize_footprints_forward,
)
from .mixtures import csd_mixture, guidance_rescale, nfsd_mixture
from .rasterizer import (
    Rasterization,
    RasterizeGradients,
    RasterizeState,
    rasterize_backward,
    rasterize_forward,
)
from .rules import Given, Rules
from .triangles import TriangleHits, rasterize_triangles, sample_texture, sample_texture_backward

__all__ = [
    "AdamGroup",
    "FootprintGradients",
    "Given",
    "Rasterization",
    "RasterizeGradients",
    "RasterizeState",
    "Rules",
    "TileCapacity",
    "TooManyEntries",
    "TriangleHits",
    "adam",
    "adam_groups",
    "add_noise",
    "build_info",
    "csd_mixture",
    "denoise_action",
    "gaussian_density",
    "get_num_threads",
    "guidance_rescale",
    "mixed_residual",
    "nfsd_mixture",
    "philox_normal",
    "rasterize",
    "rasterize_backward",
    "rasterize_features",
    "rasterize_footprints_backward",
    "rasterize_footprints_forward",
    "rasterize_forward",
    "rasterize_triangles",
    "sample_texture",
    "sample_texture_backward",
    "score_residual",
    "set_num_threads",
]
