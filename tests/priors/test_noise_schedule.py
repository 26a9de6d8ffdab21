"""Noise schedules, as folders in diffusers' format have them."""

import json

import pytest
import torch
from small_stable_diffusion import edit, on_torch, one_line

from ddpo3d_fast.engines.libraries import library


@pytest.mark.parametrize("kind", ["sd15", "sd21", "sdxl"])
def test_the_noise_schedule_is_the_schedulers(folders, kind):
    prior, diffusers = on_torch(folders[kind]), library("diffusers", "a test")
    folder = folders[kind] / "scheduler"
    name = json.loads((folder / "scheduler_config.json").read_text())["_class_name"]
    own = getattr(diffusers, name).from_pretrained(folder)
    assert torch.allclose(prior.alphas_cumprod, own.alphas_cumprod, rtol=1e-6)
    assert prior.prediction_type == {"sd21": "v_prediction"}.get(kind, "epsilon")
    assert prior.clip is None


@pytest.mark.parametrize(
    "changes",
    [
        {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 500},
        {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"},
        {"trained_betas": [0.1, 0.2, 0.3]},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    ],
)
def test_other_noise_schedules_are_read_from_the_configuration(sd, changes):
    scheduler = library("diffusers", "a test").DDIMScheduler
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"} | changes
    scheduler(**config).save_pretrained(sd / "scheduler")
    prior = on_torch(sd)
    expected = scheduler(**config).alphas_cumprod
    assert torch.allclose(prior.alphas_cumprod, expected, rtol=1e-6, atol=2**-24)
    assert prior.alphas_cumprod.min() > 0  # at zero terminal SNR, too
    assert prior.prediction_type == changes.get("prediction_type", "epsilon")


def test_a_schedule_without_a_prediction_type_is_of_the_noise(sd):
    """As SD 1.x was published."""
    path = sd / "scheduler/scheduler_config.json"
    config = json.loads(path.read_text())
    del config["prediction_type"]
    path.write_text(json.dumps(config))
    assert on_torch(sd).prediction_type == "epsilon"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prediction_type": "flow"}, "expected prediction_type epsilon, v_prediction, sample, got 'flow'"),
        ({"beta_schedule": "cubic"}, "is no noise schedule"),
        ({"num_train_timesteps": "many"}, "is no noise schedule"),
    ],
)
def test_a_wrong_schedule_is_one_line(sd, changes, words):
    edit(sd / "scheduler/scheduler_config.json", **changes)
    line = one_line(sd)
    assert words in line
    assert "scheduler_config.json" in line
