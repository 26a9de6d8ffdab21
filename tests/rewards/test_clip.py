"""CLIP towers: open_clip's own preprocessing and scores, exact gradients, and one line where weights lack."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_clip import CONFIGS, PREPROCESS, Forbidden, pictures, put_in_hub_cache, relative, save
from torch.nn.functional import cosine_similarity, normalize

from ddpo3d_fast.engines import load_network
from ddpo3d_fast.engines.libraries import library
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.resampling import Resize
from ddpo3d_fast.rewards import RewardSettings, make_reward
from ddpo3d_fast.rewards.clip import OPENAI, clip_reward, hub_file, load_open_clip
from ddpo3d_fast.rewards.tower import Tower, TowerReward

PROMPTS = ["a red ball", "a blue cube, studio light", "a red ball"]
SIZES = [(64, 64), (224, 224), (512, 512), (257, 257), (225, 301), (333, 97), (37, 51), (613, 401)]


def transform(size=224, **options):
    """open_clip's evaluation transform without the last step, mean and deviation."""
    library("open_clip", "test")
    whole = library("open_clip.transform", "test").image_transform(size, is_train=False, **options)
    whole.transforms.pop()
    return whole


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("mode", "interpolation"), [("shortest", "bicubic"), ("squash", "bicubic"), ("shortest", "bilinear")]
)
def test_resize_is_open_clips_transform_of_a_tensor(size, mode, interpolation):
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))
    theirs = transform(resize_mode=mode, interpolation=interpolation)
    exact = torch.stack([theirs(image) for image in images.double()])
    resize = Resize(224, interpolation, squash=mode == "squash")
    assert float((resize(images) - exact).abs().max()) <= 1e-6
    # torch's own resize in float32 is the less exact one: its weights are float32 as well.
    single = torch.stack([theirs(image) for image in images])
    assert float((resize(images) - single).abs().max()) <= 1e-4


@pytest.mark.parametrize("size", SIZES)
def test_resize_is_open_clips_transform_of_a_picture_but_for_its_rounding(size):
    """PIL rounds to a level after each of two passes. The first error, half a level, is weighted with at most
    1.25 (the absolute sum of bicubic weights between two pixels), the second one adds half a level."""
    image_module = library("PIL.Image", "test")
    levels = torch.randint(80, 176, (*size, 3), generator=torch.Generator().manual_seed(2)).to(torch.uint8)
    pil = transform()(image_module.fromarray(levels.numpy()).copy())
    ours = Resize(224)(levels.permute(2, 0, 1)[None].float() / 255)[0]
    assert 255 * float((ours - pil).abs().max()) <= 0.5 * 1.25 + 0.5 + 0.01


@pytest.mark.parametrize("size", [64, 512])
def test_a_hard_edge_overshoots_where_a_picture_of_eight_bits_is_cut_off(size):
    image_module = library("PIL.Image", "test")
    axis = np.linspace(-1, 1, size)
    disc = (axis[:, None] ** 2 + axis**2 < 0.5).astype(np.uint8)[..., None].repeat(3, 2) * 255
    pil = transform()(image_module.fromarray(disc))
    ours = Resize(224)(torch.from_numpy(disc).permute(2, 0, 1)[None].float() / 255)[0]
    assert 0.02 < float((ours - pil).abs().max()) < 0.15
    assert float((ours - pil).abs().mean()) < 0.01
    assert 255 * float((ours.clamp(0, 1) - pil).abs().mean()) < 0.5


@pytest.mark.parametrize("size", [(64, 64), (225, 301), (32, 48), (32, 32)])
def test_resize_vjp_is_the_gradient(size):
    images = pictures(2, *size)
    resize = Resize(32)
    grad = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    leaf = images.double().requires_grad_()
    theirs = torch.stack([transform(32)(image) for image in leaf])
    (expected,) = torch.autograd.grad(theirs, leaf, grad.double())
    assert relative(resize.vjp(images.shape, grad), expected) <= 1e-6


@pytest.fixture(params=["vit", "resnet", "coca"])
def folder(request, clip_folder):
    return clip_folder(request.param)


def reference(folder):
    """open_clip's own model, tokenizer and preprocessing of a folder."""
    open_clip = library("open_clip", "test")
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    return model.eval().requires_grad_(False), open_clip.get_tokenizer(f"local-dir:{folder}"), preprocess


def expected_scores(folder, images, prompts):
    """[B] in float64, by open_clip alone, with a graph back to float64 images."""
    model, tokenizer, preprocess = reference(folder)
    text = model.encode_text(tokenizer(prompts), normalize=True).double()
    features = model.double().encode_image(torch.stack([preprocess(image) for image in images]))
    return 100 * cosine_similarity(features, text)


@pytest.mark.parametrize("size", [(32, 32), (48, 48), (100, 75)])
def test_score_is_open_clips_cosine_times_a_hundred(folder, size):
    images = pictures(3, *size)
    reward = clip_reward(str(folder), RewardSettings(runtime="torch"))
    assert (reward.name, reward.differentiable) == (f"clip@{folder}", True)
    scores = reward.score(images, PROMPTS)
    assert scores.dtype == torch.float32
    assert not scores.requires_grad
    assert float((scores.double() - expected_scores(folder, images.double(), PROMPTS)).abs().max()) <= 1e-4
    assert float(scores.std()) > 0.1  # not all the same: the pictures and the prompts count


def test_another_prompt_scores_otherwise(clip_folder):
    reward, images = (
        clip_reward(str(clip_folder("vit")), RewardSettings(runtime="torch")),
        pictures(1, 32, 32),
    )
    one, other = (reward.score(images, [prompt]) for prompt in PROMPTS[:2])
    assert float((one - other).abs()) > 0.1


@pytest.mark.parametrize("size", [(32, 32), (48, 48), (100, 75)])
def test_gradient_is_float64_autograds(folder, size):
    images = pictures(3, *size)
    reward = clip_reward(str(folder), RewardSettings(runtime="torch"))
    scores, gradient = reward.score_vjp(images, PROMPTS)
    leaf = images.double().requires_grad_()
    (expected,) = torch.autograd.grad(expected_scores(folder, leaf, PROMPTS).sum(), leaf)
    assert not gradient.requires_grad
    assert relative(gradient, expected) <= 1e-4
    torch.testing.assert_close(scores, reward.score(images, PROMPTS), rtol=1e-5, atol=1e-4)


def test_each_image_has_its_own_score_and_gradient(folder):
    images = pictures(3, 48, 48)
    reward = clip_reward(str(folder), RewardSettings(runtime="torch"))
    scores, gradient = reward.score_vjp(images, PROMPTS)
    for k in range(3):
        score, own = reward.score_vjp(images[k : k + 1], PROMPTS[k : k + 1])
        torch.testing.assert_close(score, scores[k : k + 1], rtol=1e-5, atol=1e-4)
        assert relative(own, gradient[k : k + 1]) <= 1e-5


def in_both_precisions(network, output):
    """An output for the example inputs in float32, and in float16, which the engine has to accept."""
    engines = [load_network(network, "cpu", "torch", dtype) for dtype in (torch.float32, torch.float16)]
    assert [engine.runtime.rpartition(" ")[2] for engine in engines] == ["float32", "float16"]
    return [engine(**network.inputs)[output] for engine in engines]


class Faint(torch.nn.Module):
    """A tower whose embeddings hardly differ, so that gradients are small."""

    def __init__(self, tower):
        super().__init__()
        self.tower = tower

    def forward(self, images):
        return 10000 + self.tower(images)


def test_gradient_in_half_precision_keeps_its_small_parts(clip_folder):
    tower, embed = load_open_clip(str(clip_folder("vit")), "clip")
    tower = dataclasses.replace(tower, module=Faint(tower.module))
    network = TowerReward("clip", tower, embed, 1.0).network(gradient=True)
    exact, half = in_both_precisions(network, "gradient")
    assert float(exact.abs().median()) < 1e-6  # fp16 knows multiples of 6e-8
    assert relative(half, exact) <= 0.02


def test_scores_in_half_precision_are_not_rounded_to_it(clip_folder):
    """A score near 30 would be a multiple of 1/64, and pictures of one prompt hardly differ by more."""
    network = clip_reward(str(clip_folder("vit"))).network(gradient=False)
    exact, half = in_both_precisions(network, "scores")
    assert float((half - exact).abs().max()) <= 0.1
    assert not torch.equal(half, half.half().float())


def test_a_prompt_is_embedded_once():
    asked = []

    def embed(prompt):
        asked.append(prompt)
        return normalize(torch.tensor([len(prompt), 1.0]), dim=0)

    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 4 * 4, 2))
    reward = TowerReward(
        "x", Tower(module, 2, 4, (0.5,) * 3, (0.5,) * 3), embed, wanted=RewardSettings(runtime="torch")
    )
    for _ in range(2):
        reward.score(pictures(3, 8, 8), PROMPTS)
        reward.score_vjp(pictures(3, 8, 8), PROMPTS)
    assert len(asked) == len(set(asked))
    assert set(PROMPTS) <= set(asked)


def test_no_images_have_no_scores(clip_folder):
    reward, none = (
        clip_reward(str(clip_folder("vit")), RewardSettings(runtime="torch")),
        torch.zeros(0, 3, 8, 8),
    )
    assert reward.score(none, []).shape == (0,)
    assert [tuple(t.shape) for t in reward.score_vjp(none, [])] == [(0,), (0, 3, 8, 8)]


@pytest.mark.parametrize(
    ("images", "prompts", "error", "message"),
    [
        (
            torch.zeros(3, 8, 8),
            PROMPTS,
            ValueError,
            r"images: expected shape \[B, 3, H, W\], got \[3, 8, 8\]",
        ),
        (torch.zeros(3, 4, 8, 8), PROMPTS, ValueError, r"got \[3, 4, 8, 8\]"),
        (torch.zeros(3, 3, 8, 0), PROMPTS, ValueError, r"got \[3, 3, 8, 0\]"),
        (torch.zeros(3, 3, 8, 8).double(), PROMPTS, TypeError, "expected float32, got torch.float64"),
        (torch.zeros(3, 3, 8, 8).to("meta"), PROMPTS, ValueError, "expected device cpu, got meta"),
        (torch.zeros(3, 3, 8, 8), PROMPTS[:2], ValueError, "one for each of 3 images, got 2"),
    ],
)
def test_wrong_images_are_named(clip_folder, images, prompts, error, message):
    reward = clip_reward(str(clip_folder("vit")), RewardSettings(runtime="torch"))
    for call in (reward.score, reward.score_vjp):
        with pytest.raises(error, match=message):
            call(images, prompts)


@pytest.fixture
def tagged(clip_folder, offline, monkeypatch):
    """`tiny` of open_clip's models, whose weights `published` were trained with the quick GELU, and are in
    the hub's cache."""
    factory = library("open_clip.factory", "test")
    pretrained = library("open_clip.pretrained", "test")
    tag = {"hf_hub": "someone/tiny-clip/", "quick_gelu": True, "resize_mode": "shortest"}
    monkeypatch.setitem(factory._MODEL_CONFIGS, "tiny", CONFIGS["vit"])
    monkeypatch.setitem(pretrained._PRETRAINED, "tiny", {"published": tag | PREPROCESS})
    put_in_hub_cache(offline, "someone/tiny-clip", *clip_folder("vit").iterdir())
    return offline


def test_a_tag_brings_its_weights_activation_mean_and_deviation(clip_folder, tagged, tmp_path):
    images = pictures(2, 32, 32)
    quick = tmp_path / "quick"
    quick.mkdir()
    config = {"model_cfg": CONFIGS["vit"] | {"quick_gelu": True}, "preprocess_cfg": PREPROCESS}
    (quick / "open_clip_config.json").write_text(json.dumps(config))
    weights = clip_folder("vit") / "open_clip_model.safetensors"
    (quick / weights.name).symlink_to(weights)
    expected = expected_scores(quick, images.double(), PROMPTS[:2])
    scores = clip_reward("tiny:published", RewardSettings(runtime="torch")).score(images, PROMPTS[:2])
    assert float((scores - expected).abs().max()) <= 1e-4
    plain = expected_scores(clip_folder("vit"), images.double(), PROMPTS[:2])
    assert float((plain - expected).abs().max()) > 0.01


def test_the_default_is_openais_vit_l_14_with_the_quick_gelu(offline):
    with pytest.raises(
        InputError, match=r"of timm/vit_large_patch14_clip_224\.openai is not in the hub's cache"
    ):
        clip_reward()
    assert OPENAI.startswith("ViT-L-14-quickgelu:")


def test_weights_by_file_and_by_hub_name_are_those_of_the_folder(clip_folder, tagged):
    images, folder = pictures(2, 32, 32), clip_folder("vit")
    of_folder = clip_reward(str(folder), RewardSettings(runtime="torch")).score(images, PROMPTS[:2])
    of_hub = clip_reward("hf-hub:someone/tiny-clip", RewardSettings(runtime="torch")).score(
        images, PROMPTS[:2]
    )
    assert torch.equal(of_hub, of_folder)
    tower, _ = load_open_clip(f"tiny:{folder / 'open_clip_model.safetensors'}", "clip")
    ours, theirs = tower.module.state_dict(), reference(folder)[0].visual.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("ViT-B-33:openai", "got 'ViT-B-33:openai'; did you mean ViT-B-32?"),
        ("ViT-B-32", "expected weights of ViT-B-32, a file or one of openai, laion400m_e31, "),
        ("ViT-B-32:mine", "got 'mine'"),
        ("ViT-B-32:openai", "open_clip_model.safetensors of timm/vit_base_patch32_clip_224.openai is not in"),
        (
            "hf-hub:someone/clip",
            "run `hf download someone/clip` where there is a network, or name a local copy",
        ),
        ("hf-hub:clip", "expected a local path or OWNER/NAME on the hub, found no 'clip'"),
    ],
)
def test_a_model_that_cannot_be_had_is_one_line(offline, source, message):
    with pytest.raises(InputError) as caught:
        clip_reward(source)
    line = str(caught.value)
    assert line.startswith(f"--reward: clip@{source}: ")
    assert message in line
    assert "\n" not in line


def test_of_a_hubs_repository_the_first_file_that_is_there_is_fetched(offline, monkeypatch):
    hub = library("huggingface_hub", "test")
    there = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in ("c.bin", "b.bin")])
    monkeypatch.setattr(hub.HfApi, "model_info", lambda *_, **__: there)
    monkeypatch.setattr(hub, "hf_hub_download", lambda repository, file: f"/cache/{repository}/{file}")
    fetched = hub_file("someone/clip", ("a.bin", "b.bin", "c.bin"), "clip")
    assert str(fetched) == "/cache/someone/clip/b.bin"
    with pytest.raises(InputError, match=r"cannot be fetched \(no such file\)"):
        hub_file("someone/clip", ("a.bin", "d.bin"), "clip")


@pytest.mark.parametrize("name", ["clip", "hps", "pickscore"])
def test_a_hub_that_does_not_answer_is_one_line_soon(offline, monkeypatch, caplog, name):
    """The hub's client would try again for half a minute, and report every try."""
    constants = library("huggingface_hub.constants", "test")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    hub = library("huggingface_hub", "test")
    monkeypatch.setattr(hub, "hf_hub_download", lambda *_: pytest.fail("tried"))
    with pytest.raises(InputError, match=f"^--reward: {name}: .*Connection refused") as caught:
        make_reward([name], RewardSettings(runtime="torch"))
    assert "\n" not in str(caught.value)
    assert not caplog.records


def test_a_folder_without_a_part_or_with_a_damaged_one_is_one_line(clip_folder, tmp_path):
    (tmp_path / "open_clip_config.json").symlink_to(clip_folder("vit") / "open_clip_config.json")
    with pytest.raises(
        InputError, match=r"expected open_clip_config\.json and open_clip_model\.safetensors in"
    ):
        clip_reward(str(tmp_path))
    weights = tmp_path / "open_clip_model.safetensors"
    weights.write_bytes((clip_folder("vit") / weights.name).read_bytes()[:5000])
    with pytest.raises(InputError, match="open_clip cannot make local-dir") as caught:
        clip_reward(str(tmp_path))
    assert "\n" not in str(caught.value)
    weights.unlink()
    weights.symlink_to(clip_folder("resnet") / weights.name)
    with pytest.raises(InputError, match=r"open_clip cannot make .*Error\(s\) in loading state_dict"):
        clip_reward(str(tmp_path))


def test_weights_never_run_code(clip_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "open_clip_config.json").symlink_to(clip_folder("vit") / "open_clip_config.json")
    torch.save({"visual.proj": Forbidden()}, tmp_path / "open_clip_pytorch_model.bin")
    with pytest.raises(InputError, match="open_clip cannot make"):
        clip_reward(str(tmp_path))
    assert not (tmp_path / "was-run").exists()


def test_a_tower_of_oblong_pictures_is_refused(tmp_path):
    config = CONFIGS["vit"] | {"vision_cfg": CONFIGS["vit"]["vision_cfg"] | {"image_size": [32, 48]}}
    with pytest.raises(InputError, match=r"expected a tower of square pictures.*got size \[32, 48\]"):
        clip_reward(str(save(tmp_path / "oblong", config)))
    config = CONFIGS["vit"] | {"vision_cfg": CONFIGS["vit"]["vision_cfg"] | {"image_size": [32, 32]}}
    assert clip_reward(str(save(tmp_path / "square", config))).network(gradient=False).inputs[
        "images"
    ].shape == (
        2,
        3,
        32,
        32,
    )
