"""The shipped prior: its parts load, agree with each other, and know their words."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open

from ddpo3d_fast.engines.libraries import library
from ddpo3d_fast.engines.load import profiles
from ddpo3d_fast.errors import FallbackWarning, InputError
from ddpo3d_fast.priors import PriorSettings, load_prior
from ddpo3d_fast.priors import embedded as room
from ddpo3d_fast.priors.base import Call
from ddpo3d_fast.priors.codec import PatchCodec
from ddpo3d_fast.priors.embedded import FOLDER
from ddpo3d_fast.training.objects import CLASS_NAMES, COLOR_NAMES

LATENTS = (48, 16, 16)


@pytest.fixture(scope="module")
def prior():
    return load_prior(PriorSettings("embedded", dtype=torch.float32))


def test_an_engine_is_told_the_shapes_of_a_call(monkeypatch):
    networks, engine = [], SimpleNamespace(runtime="another")
    monkeypatch.setattr(room, "load_network", lambda network, *_: networks.append(network) or engine)
    load_prior(PriorSettings(str(FOLDER), runtime="torch", calls=[Call(views=64, actions=2, scale=1.0)]))
    (shapes,) = networks[0].shapes
    assert shapes["noisy"] == (256, 48, 16, 16)
    assert shapes.keys() == networks[0].inputs.keys()
    (bounds,) = profiles(networks[0])
    assert bounds["noisy"][0] == (1, 48, 16, 16)


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(FOLDER, tmp_path / "prior", ignore=shutil.ignore_patterns("scorer"))


def test_the_codec_is_exact_and_its_vjp_its_transpose():
    codec, pictures = PatchCodec(4), torch.rand(2, 3, 16, 16, dtype=torch.float64)
    latents, pull_back = codec.encode_with_vjp(pictures)
    assert torch.equal(latents, codec.encode(pictures))
    assert latents.shape == (2, 48, 4, 4)
    assert torch.allclose(codec.decode(latents), pictures)
    grad = torch.randn_like(latents)
    shift = 1e-3 * torch.randn_like(pictures)
    moved = (grad * (codec.encode(pictures + shift) - latents)).sum()
    assert torch.allclose(moved, (pull_back(grad) * shift).sum())


def test_it_knows_every_object_and_color_of_the_training_set(prior):
    assert prior.vocabulary.objects == CLASS_NAMES
    assert prior.vocabulary.colors == COLOR_NAMES


def test_the_noise_schedule_is_the_one_that_diffusers_makes_of_the_shipped_config(prior):
    DDPMScheduler = library("diffusers", "a test").DDPMScheduler

    scheduler = DDPMScheduler.from_pretrained(FOLDER, subfolder="scheduler")
    assert scheduler.config.prediction_type == prior.prediction_type
    assert torch.allclose(scheduler.alphas_cumprod, prior.alphas_cumprod, rtol=1e-5)


def test_the_shipped_graph_is_the_unet_that_diffusers_loads_from_the_same_weights(prior):
    UNet2DConditionModel = library("diffusers", "a test").UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(FOLDER, subfolder="unet").float().eval()
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn(3, *LATENTS, generator=generator)
    timesteps, cameras = torch.tensor([5, 500, 990]), torch.rand(3, 3, generator=generator)
    conditions = prior.conditions(prior.prompt("a red mushroom"), cameras)
    got = prior.predict(noisy, timesteps, conditions)
    with torch.no_grad():
        expected = [
            unet(
                torch.cat([noisy, conditions["layout"][k]], 1),
                timesteps,
                encoder_hidden_states=conditions["tokens"][k],
                class_labels=conditions["pooled"][k],
            ).sample
            for k in range(2)
        ]
    for guess, wanted in zip(got, expected, strict=True):
        assert float((guess - wanted).norm() / wanted.norm()) < 1e-5


def test_actions_of_a_view_share_its_condition(prior):
    cameras = torch.tensor([[0.0, 0.2, 1.0], [3.0, 0.2, 0.5]])
    conditions = prior.conditions(prior.prompt("a blue car"), cameras)
    noisy = torch.randn(2, *LATENTS).repeat_interleave(2, 0)
    cond, _ = prior.predict(noisy, torch.full((4,), 700), conditions)
    assert torch.allclose(cond[0], cond[1], atol=1e-5)
    assert not torch.allclose(cond[1], cond[2], atol=1e-2)


def test_color_view_and_negative_prompt_change_the_conditions(prior):
    front, back = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[3.1, 0.0, 1.0]])
    red = prior.conditions(prior.prompt("a red car"), front)
    assert not torch.equal(red["tokens"][0], prior.conditions(prior.prompt("a blue car"), front)["tokens"][0])
    assert not torch.equal(red["tokens"][0], prior.conditions(prior.prompt("a red car"), back)["tokens"][0])
    away = prior.conditions(prior.prompt("a red car", negative="a blue car"), front)
    assert torch.equal(away["tokens"][0], red["tokens"][0])
    assert not torch.equal(away["tokens"][1], red["tokens"][1])


def test_the_clean_guess_at_low_noise_is_the_picture(prior):
    """A trained prior denoises: at 30 % of the timesteps it is far nearer to the picture than its input."""
    from ddpo3d_fast.training.objects import material_colors, mean_object
    from ddpo3d_fast.training.render import Field, colorize, render_materials

    masks = render_materials(Field(mean_object("mushroom")), 0.3, 0.2)[None]
    picture = colorize(masks, torch.from_numpy(material_colors("mushroom", "red"))[None], torch.ones(1, 3))
    latents = prior.codec.encode(picture)
    abar = prior.alphas_cumprod[300]
    noisy = abar.sqrt() * latents + (1 - abar).sqrt() * torch.randn(
        latents.shape, generator=torch.Generator().manual_seed(0)
    )
    conditions = prior.conditions(prior.prompt("a red mushroom"), torch.tensor([[0.3, 0.2, 1.0]]))
    cond, _ = prior.predict(noisy, torch.tensor([300]), conditions)
    assert (cond - latents).square().mean() < 0.05 * (noisy / abar.sqrt() - latents).square().mean()


def test_weights_are_fp16_under_20_mb_each():
    files = sorted(FOLDER.rglob("*.safetensors"))
    assert len(files) >= 2
    for path in files:
        assert path.stat().st_size < 20_000_000
        with safe_open(path, "pt") as weights:
            assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.float16}  # noqa: SIM118


@pytest.mark.parametrize(
    ("part", "damage"),
    [
        ("unet/config.json", None),
        ("unet/model.onnx", None),
        ("unet/diffusion_pytorch_model.safetensors", b"short"),
        ("text_encoder/diffusion_pytorch_model.safetensors", b"short"),
        ("text_encoder/diffusion_pytorch_model.safetensors", None),
        ("codec/config.json", b"{"),
        ("scheduler/scheduler_config.json", None),
    ],
)
def test_a_missing_or_damaged_part_is_one_line_that_names_it(copy, part, damage):
    if damage is None:
        (copy / part).unlink()
    else:
        (copy / part).write_bytes(damage)
    with pytest.raises(InputError) as caught:
        load_prior(PriorSettings(str(copy)))
    assert "\n" not in str(caught.value)
    assert str(copy) in str(caught.value)


def test_another_beta_schedule_is_refused(copy):
    path = copy / "scheduler/scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"beta_schedule": "linear"}))
    with pytest.raises(InputError, match="squaredcos_cap_v2, got 'linear'"):
        load_prior(PriorSettings(str(copy)))


def test_weights_that_were_tampered_with_fail_the_probe(copy):
    path = copy / "unet/diffusion_pytorch_model.safetensors"
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    noise = np.random.default_rng(0).standard_normal(100_000).astype(np.float16).tobytes()
    data[middle : middle + len(noise)] = noise
    path.write_bytes(data)
    with pytest.raises(
        InputError, match=r"relative error .*; torch cannot run it instead \(unet: torch"
    ) as caught:
        load_prior(PriorSettings(str(copy), dtype=torch.float32))  # which bf16 would round away
    assert "\n" not in str(caught.value)


def test_a_graph_that_disagrees_gives_way_to_torch_unless_it_was_asked_for(copy, prior):
    path = copy / "unet/model.onnx"
    data = path.read_bytes()
    assert data.count(b"Sin") == 1  # that of the timestep's embedding
    path.write_bytes(data.replace(b"Sin", b"Cos"))
    with pytest.warns(FallbackWarning) as caught:
        fallen = load_prior(PriorSettings(str(copy)))
    (line,) = (str(warning.message) for warning in caught if warning.category is FallbackWarning)
    assert line.startswith(f"{copy / 'unet/probe.npz'}: ONNX Runtime ")  # tried last
    assert line.endswith(f"; {fallen.runtime} runs it instead")
    assert fallen.runtime.startswith("torch ")
    conditions = prior.conditions(prior.prompt("a red car"), torch.tensor([[0.0, 0.2, 1.0]]))
    noisy = torch.randn(1, *LATENTS)
    got, expected = (torch.cat(p.predict(noisy, torch.tensor([300]), conditions)) for p in (fallen, prior))
    assert float((got - expected).norm() / expected.norm()) < 1e-5
    with pytest.raises(InputError, match=r"ONNX Runtime .* gives another prediction"):
        load_prior(PriorSettings(str(copy), runtime="onnxruntime"))


def test_an_unknown_model_name_says_what_is_expected():
    with pytest.raises(InputError, match="--model: expected `embedded` or a folder"):
        load_prior(PriorSettings("sd99"))
