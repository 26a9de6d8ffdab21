"""Noise schedules: each is what its own class in diffusers makes of it, or one line."""

import inspect
import json
import warnings

import pytest
import torch
from small_stable_diffusion import edit, on_torch, one_line

from ddpo3d_fast.engines.libraries import library
from ddpo3d_fast.errors import FallbackWarning, InputError
from ddpo3d_fast.priors.noise_schedule import highest_timestep, read_noise_schedule
from ddpo3d_fast.schedule import timestep_range
from ddpo3d_fast.settings import Schedule

CONFIG = "scheduler/scheduler_config.json"
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PLAYGROUND = {
    "_class_name": "EDMDPMSolverMultistepScheduler",
    "algorithm_type": "dpmsolver++",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "rho": 7.0,
    "sigma_data": 0.5,
    "sigma_max": 80.0,
    "sigma_min": 0.002,
    "solver_order": 2,
}
COSXL = {
    "_class_name": "EDMEulerScheduler",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "sigma_data": 1.0,
    "sigma_max": 120.0,
    "sigma_min": 0.002,
    "sigma_schedule": "exponential",
}
FOLLOWED = {
    f"{name}Scheduler"
    for name in (
        *("CogVideoXDDIM", "DDIM", "DDPM", "DPMSolverMultistep", "EulerDiscrete", "HeunDiscrete"),
        *("KDPM2Discrete", "LCM", "PNDM", "TCD", "UniPCMultistep"),
    )
}
REFUSED = {
    f"{name}Scheduler"
    for name in (
        "EDMDPMSolverMultistep",
        "EDMEuler",
        "FlowMatchEulerDiscrete",
        "IPNDM",
        "KarrasVe",
        "ScoreSdeVe",
    )
}
# What diffusers' own code has against numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def schedulers():
    return library("diffusers.schedulers", "a test")


def classes():
    """The names of all schedulers of the installed diffusers."""
    names = [name for name in dir(schedulers()) if name.endswith("Scheduler")]
    assert len(names) > 40
    return names


def make(name, **settings):
    """diffusers' own scheduler; None where it wants others, or another library."""
    try:
        return getattr(schedulers(), name)(**settings)
    except (TypeError, ValueError, ImportError):
        return None


@pytest.fixture
def folder(tmp_path):
    """A model's folder without a model; `write` puts a scheduler's configuration in it."""
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "model_index.json").write_text("{}")
    return tmp_path


def write(folder, **config):
    (folder / CONFIG).write_text(json.dumps(config))
    return folder


def refusal(folder):
    with pytest.raises(InputError) as caught:
        read_noise_schedule(folder)
    line = str(caught.value)
    assert "\n" not in line
    assert str(folder / CONFIG) in line
    return line


@pytest.mark.parametrize("kind", ["sd15", "sd21", "sdxl"])
def test_the_noise_schedule_is_the_schedulers(folders, kind):
    alphas, prediction = read_noise_schedule(folders[kind])
    config = json.loads((folders[kind] / CONFIG).read_text())
    own = getattr(schedulers(), config["_class_name"]).from_pretrained(folders[kind] / "scheduler")
    assert torch.allclose(alphas, own.alphas_cumprod, rtol=1e-6)
    assert prediction == {"sd21": "v_prediction"}.get(kind, "epsilon")
    prior = on_torch(folders[kind])
    assert torch.equal(prior.alphas_cumprod, alphas)
    assert prior.prediction_type == prediction
    assert prior.clip is None


@pytest.mark.parametrize("given", [{}, BETAS, {"num_train_timesteps": 500}], ids=["nothing", "betas", "500"])
def test_every_scheduler_of_diffusers_is_followed_or_refused(folder, given):
    """With its own class's values for what a configuration leaves out."""
    followed, refused = set(), set()
    for name in classes():
        write(folder, _class_name=name, **given)
        takes = set(inspect.signature(getattr(schedulers(), name).__init__).parameters)
        own = make(name, **{key: value for key, value in given.items() if key in takes})
        if getattr(own, "alphas_cumprod", None) is None:
            assert name in refusal(folder)
            refused.add(name)
        else:
            alphas, prediction = read_noise_schedule(folder)
            assert torch.allclose(alphas, own.alphas_cumprod.float().clamp_min(2**-24), rtol=1e-6, atol=0), (
                name
            )
            assert prediction == own.config.get("prediction_type", "epsilon")
            followed.add(name)
    assert followed >= FOLLOWED
    assert refused >= REFUSED


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("DDIM", 4.0358e-5),
        ("LCM", 4.6601e-3),
        ("HeunDiscrete", 1.5790e-3),
        ("UnCLIP", 2**-24),
        ("CogVideoXDDIM", 1.5582e-3),
    ],
)
def test_what_a_configuration_leaves_out_is_its_classs(folder, name, last):
    alphas, _ = read_noise_schedule(write(folder, _class_name=f"{name}Scheduler"))
    assert float(alphas[-1]) == pytest.approx(last, rel=1e-4)


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
    scheduler(**BETAS | changes).save_pretrained(sd / "scheduler")
    prior = on_torch(sd)
    expected = scheduler(**BETAS | changes).alphas_cumprod
    assert torch.allclose(prior.alphas_cumprod, expected, rtol=1e-6, atol=2**-24)
    assert prior.alphas_cumprod.min() > 0  # at zero terminal SNR, too
    assert prior.prediction_type == changes.get("prediction_type", "epsilon")


def test_a_snr_shift_counts(folder):
    """CogVideoX's, which only its classes have."""
    settings = {"snr_shift_scale": 1.5, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    alphas, _ = read_noise_schedule(write(folder, _class_name="CogVideoXDPMScheduler", **settings))
    own = schedulers().CogVideoXDPMScheduler(**settings).alphas_cumprod.float().clamp_min(2**-24)
    assert torch.allclose(alphas, own, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "name",
    [
        "PNDM",
        "LMSDiscrete",
        "KDPM2Discrete",
        "HeunDiscrete",
        "DEISMultistep",
        "DPMSolverSinglestep",
        "SASolver",
    ],
)
def test_zero_terminal_snr_counts_where_the_sampler_goes_without_it(folder, name):
    """These keep the key, taken over with another scheduler's configuration, and do not act on it; but it is
    how the UNet was trained."""
    config = BETAS | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    kept = getattr(schedulers(), f"{name}Scheduler").from_config(schedulers().DDIMScheduler(**config).config)
    assert kept.config["rescale_betas_zero_snr"]
    assert kept.alphas_cumprod[-1] > 1e-3
    kept.save_pretrained(folder / "scheduler")
    trained = schedulers().DDIMScheduler(**config).alphas_cumprod
    assert torch.allclose(read_noise_schedule(folder)[0], trained, rtol=1e-5, atol=2**-24)


def test_without_a_class_in_it_the_class_is_the_one_that_the_folder_lists(folder):
    (folder / "model_index.json").write_text(json.dumps({"scheduler": ["diffusers", "LCMScheduler"]}))
    alphas, prediction = read_noise_schedule(write(folder))
    assert torch.allclose(alphas, schedulers().LCMScheduler().alphas_cumprod, rtol=1e-6)
    assert prediction == "epsilon"  # as SD 1.x was published, without a prediction_type
    (folder / "model_index.json").write_text(json.dumps({"scheduler": ["diffusers", "EDMEulerScheduler"]}))
    assert "got EDMEulerScheduler, which noises in another way" in refusal(folder)


@pytest.mark.parametrize("config", [PLAYGROUND, COSXL], ids=["Playground v2.5", "CosXL"])
def test_a_model_of_another_kind_of_noise_is_one_line(xl, config):
    (xl / CONFIG).write_text(json.dumps(config))
    line = one_line(xl)
    assert line.startswith(
        f"{xl / CONFIG}: expected a scheduler of diffusers with a noise schedule, as DDPM, "
    )
    assert line.endswith(f"got {config['_class_name']}, which noises in another way")


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("UniPCMultistepScheduler", {"use_flow_sigmas": True}, "which use_flow_sigmas turns off"),
        ("SASolverScheduler", {"use_flow_sigmas": True}, "which use_flow_sigmas turns off"),
        ("EulerDiscreteScheduler", {"timestep_type": "continuous"}, "which timestep_type turns off"),
        ("DEISMultistepScheduler", {"prediction_type": "flow_prediction"}, "got 'flow_prediction'"),
        ("DDIMScheduler", {"trained_betas": [0.1, -9.0]}, "expected betas from 0 to 1"),
        ("DDIMScheduler", {"trained_betas": [0.9999, 0.1]}, "expected a picture in the noise"),
        ("DDIM", {}, "got 'DDIM'"),
        ("PNDMSheduler", {}, "got 'PNDMSheduler'; did you mean PNDMScheduler?"),
        ("StableDiffusionPipeline", {}, "got 'StableDiffusionPipeline'"),
        (["DDIMScheduler"] * 99, {}, "got "),
        (None, {}, "got 'None'"),
    ],
)
def test_what_is_no_such_schedule_is_one_line(folder, name, settings, words):
    line = refusal(write(folder, _class_name=name, **settings))
    assert words in line
    assert len(line) < 500


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prediction_type": "flow"}, "expected prediction_type epsilon, v_prediction, sample, got 'flow'"),
        ({"beta_schedule": "cubic"}, "is no noise schedule"),
        ({"num_train_timesteps": "many"}, "is no noise schedule"),
    ],
)
def test_a_wrong_schedule_is_one_line(sd, changes, words):
    edit(sd / CONFIG, **changes)
    line = one_line(sd)
    assert words in line
    assert "scheduler_config.json" in line


# Where a prediction says something


def test_epsilon_says_nothing_where_the_picture_drowns():
    """At zero terminal SNR and just below, where its clean guess is divided by next to nothing."""
    for settings, drowned in (
        (BETAS, False),  # Stable Diffusion's
        (BETAS | {"rescale_betas_zero_snr": True}, True),
        ({"beta_schedule": "squaredcos_cap_v2"}, True),
        ({}, True),
    ):
        alphas = schedulers().DDIMScheduler(**settings).alphas_cumprod
        for count in (alphas, alphas[::50]):
            assert highest_timestep(count, "v_prediction") == highest_timestep(count, "sample") == 1
        highest = highest_timestep(alphas, "epsilon")
        assert (highest < 1) == drowned
        last = round(highest * (len(alphas) - 1))
        assert alphas[last].sqrt() >= 0.02  # where 2 % of the noise are as much as the picture
        assert last == len(alphas) - 1 or alphas[last + 1].sqrt() < 0.02


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_timesteps_of_a_run_stay_where_the_prediction_says_something(sd, prediction):
    config = BETAS | {"rescale_betas_zero_snr": True, "prediction_type": prediction}
    schedulers().DDIMScheduler(**config).save_pretrained(sd / "scheduler")
    prior = on_torch(sd)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", FallbackWarning)
        low, high = timestep_range(Schedule(max_timestep=1.0), prior)
        whole = timestep_range(Schedule(max_timestep=0.9), prior)
    lines = [str(each.message) for each in said if each.category is FallbackWarning]
    assert whole == (Schedule().min_timestep, 0.9)
    assert low == Schedule().min_timestep
    if prediction == "epsilon":
        assert 0.95 < high < 0.96
        (line,) = lines
        assert line.startswith("--max-timestep 1: this model predicts the noise")
        assert line.endswith("0.958 takes its place")
        with pytest.warns(FallbackWarning):
            assert timestep_range(Schedule(min_timestep=0.99, max_timestep=1.0), prior) == (high, high)
    else:
        assert high == 1
        assert not lines
