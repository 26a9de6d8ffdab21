"""Random models have the real architectures' sizes and formats, and appear whole or not at all."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ddpo3d_fast.errors import InputError
from ddpo3d_fast.priors import PriorSettings, load_prior
from ddpo3d_fast.rewards import RewardSettings, make_reward

# Of the published weights.
PARAMETERS = {
    "sd15": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sd21": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "sdxl": {
        "unet": 2_567_463_684,
        "vae": 83_653_863,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
    },
}


@pytest.fixture(scope="module")
def random_models(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("random_models")


@pytest.mark.parametrize("kind", PARAMETERS)
def test_a_real_size_has_as_many_parameters_as_the_published_one(
    random_models: ModuleType, kind: str
) -> None:
    counts = {}
    for name, make in random_models.architecture(kind).items():
        with torch.device("meta"):
            counts[name] = sum(parameter.numel() for parameter in make().parameters())
    assert counts == PARAMETERS[kind]


def test_a_small_model_is_a_prior_of_half_precision_weights(small_model: Path) -> None:
    for name in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
        weights = load_file(small_model / f"{name}.fp16.safetensors")
        assert {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()} == {torch.float16}
    assert sum(file.stat().st_size for file in small_model.rglob("*")) < 4e6
    prior = load_prior(PriorSettings(str(small_model), runtime="torch"))
    conditions = prior.conditions(prior.prompt("a cube"), torch.zeros(1, 3))
    latents = prior.codec.encode(torch.rand(1, 3, 64, 64))
    wanted, unwanted = prior.predict(latents, torch.tensor([500]), conditions)
    assert wanted.isfinite().all()
    assert (wanted - unwanted).norm() > 1e-3 * wanted.norm()  # the words count


def test_xl_has_both_its_encoders(
    random_models: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder's form, with small networks in it."""
    small = random_models._small()
    parts = {
        "unet": functools.partial(small.make_unet, xl=True),
        "vae": small.make_vae,
        "text_encoder": small.make_text_encoder,
        "text_encoder_2": functools.partial(small.make_text_encoder, pooled=True),
    }
    monkeypatch.setattr(random_models, "architecture", lambda kind: parts)
    prior = load_prior(PriorSettings(random_models.find_model("random:sdxl", tmp_path), runtime="torch"))
    conditions = prior.conditions(prior.prompt("a cube"), torch.zeros(1, 3))
    assert conditions.keys() == {"tokens", "pooled"}
    wanted, _ = prior.predict(torch.randn(1, 4, 8, 8), torch.tensor([500]), conditions)
    assert wanted.isfinite().all()


def test_a_model_is_a_function_of_its_name(
    random_models: ModuleType, small_model: Path, tmp_path: Path
) -> None:
    torch.rand(7)
    again = Path(random_models.find_model("random:small", tmp_path))
    files = [file.relative_to(again) for file in again.rglob("*") if file.is_file()]
    assert len(files) > 8
    assert all((again / file).read_bytes() == (small_model / file).read_bytes() for file in files)


def test_what_is_there_is_not_made_again(random_models: ModuleType, small_model: Path) -> None:
    before = small_model.stat().st_mtime_ns
    assert random_models.find_model("random:small", small_model.parent) == str(small_model)
    assert small_model.stat().st_mtime_ns == before


def test_a_model_that_was_not_finished_is_not_there(
    random_models: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(kind: str, folder: Path) -> Path:
        (folder / "unet").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(random_models, "write_stable_diffusion", interrupted)
    with pytest.raises(KeyboardInterrupt):
        random_models.find_model("random:small", tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_unknown_model_is_named(random_models: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^--model: expected random: and one of small.*got random:sd3$"):
        random_models.find_model("random:sd3", tmp_path)
    assert not list(tmp_path.iterdir())


def test_other_names_are_left_alone(random_models: ModuleType, tmp_path: Path) -> None:
    assert random_models.find_model("sd21", tmp_path) == "sd21"
    assert random_models.find_reward("clip=0.5", tmp_path) == "clip=0.5"
    assert not list(tmp_path.iterdir())


def test_an_aesthetic_scorer_scores(
    random_models: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "rewards")
    from small_clip import CONFIGS

    write: Callable[..., Any] = random_models.write_aesthetic
    monkeypatch.setattr(random_models, "write_aesthetic", lambda folder: write(folder, CONFIGS["vit"]))
    spec = random_models.find_reward("random:aesthetic=0.5", tmp_path)
    assert spec == f"aesthetic@{tmp_path / 'aesthetic'}=0.5"
    images = torch.rand(3, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    scores, gradient = make_reward([spec], RewardSettings(runtime="torch")).score_vjp(images, ["a cube"] * 3)
    assert len(set(scores.tolist())) == 3
    assert gradient.isfinite().all()
    assert gradient.abs().amax() > 0


@pytest.mark.parametrize(
    ("model", "reward"),
    [
        ("embedded", "embedded"),
        ("random:small", "embedded"),
        ("random:sd21", "random:aesthetic"),
        ("random:sdxl", "random:aesthetic"),
    ],
)
def test_a_real_size_is_measured_with_a_scorer_of_the_real_size(
    random_models: ModuleType, model: str, reward: str
) -> None:
    assert random_models.default_reward(model) == reward
