"""The noise schedule that a UNet was trained with, and where its predictions say something."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from torch import Tensor

from ddpo3d_fast.engines.libraries import library
from ddpo3d_fast.errors import InputError, first_line, suggestion
from ddpo3d_fast.priors.parts import quietly, read_config

PREDICTIONS = ("epsilon", "v_prediction", "sample")
# What of a scheduler's configuration makes its noise schedule; the rest is about sampling.
_SCHEDULE = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
    "snr_shift_scale",
    "prediction_type",
    "use_flow_sigmas",
    "timestep_type",
)
_SUPPORTED = "as DDPM, DDIM, PNDM, EulerDiscrete, DPMSolverMultistep, UniPCMultistep have it"
_SMALLEST = 2**-24  # as diffusers' Euler has it where zero terminal SNR would be 0
# In the clean guess that epsilon gives, an error of 2 % of the noise is 0.02 / sqrt(abar): below this abar
# larger than the picture. Stable Diffusion's schedule ends at 0.0047, a cosine one comes here at 0.987.
_LOWEST_FOR_EPSILON = 0.02**2


def read_noise_schedule(folder: Path) -> tuple[Tensor, str]:
    """The cumulative product of 1 - beta, [T] float32 in (0, 1], and what the UNet predicts.

    As the scheduler's own class in diffusers makes it, with that class's values where its configuration has
    none. Zero terminal SNR counts whichever the class, as some keep the key and go without it: they are about
    sampling, the key about how the UNet was trained.

    Args:
        folder: of the model. The class is what scheduler_config.json names, else what model_index.json does.

    Raises:
        InputError: one line that names the file: no noise schedule, or one of another kind than DDPM's, such
            as EDM's or flow matching's.
    """
    path = folder / "scheduler" / "scheduler_config.json"
    config = read_config(path)
    scheduler = _scheduler(config, path, _class_name(config, folder))
    made: Any = scheduler.config
    prediction = made.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise InputError(f"{path}: expected prediction_type {', '.join(PREDICTIONS)}, got {prediction!r}")
    if config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in made:
        betas = {"trained_betas": scheduler.betas.tolist(), "rescale_betas_zero_snr": True}
        scheduler = _scheduler(betas, path, "DDPMScheduler")
    alphas = scheduler.alphas_cumprod.float().clamp_min(_SMALLEST)
    if not len(alphas):
        raise InputError(f"{path}: expected at least one timestep, got none")
    if not bool((alphas <= 1).all()):  # nor NaN
        raise InputError(f"{path}: expected betas from 0 to 1, got some outside")
    if prediction == "epsilon" and alphas[0] < _LOWEST_FOR_EPSILON:
        raise InputError(f"{path}: expected a picture in the noise at the first timestep, got noise alone")
    return alphas, prediction


def highest_timestep(alphas_cumprod: Tensor, prediction_type: str) -> float:
    """The highest timestep whose prediction says something of the clean picture, as a fraction of the last.

    1 for `v_prediction` and `sample`. The clean guess from `epsilon` divides its error by sqrt(abar), which
    is 0 at zero terminal SNR: epsilon cannot be learnt there (Lin et al., arXiv 2305.08891, section 3.2).
    """
    if prediction_type != "epsilon":
        return 1.0
    said = int((alphas_cumprod >= _LOWEST_FOR_EPSILON).sum())
    return (said - 1) / max(len(alphas_cumprod) - 1, 1) if said < len(alphas_cumprod) else 1.0


def _class_name(config: dict[str, Any], folder: Path) -> Any:
    entry = read_config(folder / "model_index.json").get("scheduler")
    listed = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    return config.get("_class_name", listed)


def _scheduler(config: dict[str, Any], path: Path, name: Any) -> Any:
    """diffusers' scheduler of this class, made from what of `config` makes its noise schedule."""
    schedulers = library("diffusers.schedulers", str(path))
    expected = f"{path}: expected a scheduler of diffusers with a noise schedule, {_SUPPORTED}"
    known = [each for each in dir(schedulers) if each.endswith("Scheduler")]
    if name not in known:
        like = suggestion(name, known) if isinstance(name, str) else ""
        raise InputError(f"{expected}, got {str(name)[:80]!r}{like}")
    kind = getattr(schedulers, name)
    settings = {key: config[key] for key in _SCHEDULE if key in config}
    takes = inspect.signature(kind.__init__).parameters
    try:
        with quietly():
            scheduler = kind(**{key: value for key, value in settings.items() if key in takes})
    except Exception as error:  # each class has its own checks, and some want more libraries or arguments
        raise InputError(
            f"{path}: is no noise schedule that diffusers' {name} can make ({first_line(error)})"
        ) from error
    made: Any = scheduler.config
    continuous = made.get("timestep_type", "discrete") != "discrete"
    switch = ", which use_flow_sigmas turns off" if made.get("use_flow_sigmas") else ""
    switch = ", which timestep_type turns off" if continuous else switch
    if switch or getattr(scheduler, "alphas_cumprod", None) is None:
        raise InputError(f"{expected}, got {name}{switch or ', which noises in another way'}")
    return scheduler
