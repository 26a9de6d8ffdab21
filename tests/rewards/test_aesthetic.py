"""LAION's predictors: folding changes nothing, scores are the unfolded ones, files are read with care."""

from __future__ import annotations

import json

import pytest
import torch
from small_clip import CONFIGS, PREPROCESS, Forbidden, pictures, predictor_v2, relative
from torch import nn
from torch.nn.functional import normalize

from ddpo3d_fast.engines.libraries import library
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.rewards import RewardSettings, make_reward, scores_of, scores_vjp_of
from ddpo3d_fast.rewards.aesthetic import PREDICTORS, aesthetic_reward, load_predictor

PROMPTS = ["a red ball", "a blue cube"]
V1, V2 = PREDICTORS["aesthetic-v1"], PREDICTORS["aesthetic"]


def predictor_v1(width, seed=0):
    torch.manual_seed(seed)
    linear = nn.Linear(width, 1).requires_grad_(False)
    return linear, linear.state_dict()


def test_v2_folds_into_one_vector(tmp_path):
    network, state = predictor_v2(768, (1024, 128, 64, 16))
    torch.save(state, tmp_path / V2[0])
    direction, bias = load_predictor(tmp_path / V2[0], V2[2], "aesthetic")
    assert direction.shape == (768,)
    embeddings = normalize(torch.randn(50, 768, generator=torch.Generator().manual_seed(1)), dim=-1)
    unfolded = network.double()(embeddings.double())[:, 0]
    folded = embeddings.double() @ direction.double() + bias
    assert relative(folded, unfolded) <= 1e-6
    # The embedding counts, beside the bias.
    assert relative(folded - bias, unfolded - bias) <= 1e-6
    assert float(unfolded.std()) > 1e-4


def test_v1_is_its_one_layer(tmp_path):
    network, state = predictor_v1(768)
    torch.save(state, tmp_path / V1[0])
    direction, bias = load_predictor(tmp_path / V1[0], V1[2], "aesthetic-v1")
    assert torch.equal(direction, network.weight[0])
    assert bias == float(network.bias)


@pytest.fixture(scope="module")
def folder(clip_folder, tmp_path_factory):
    """CLIP as the hub has it, whose configuration does not say quick GELU, and both predictors."""
    folder = tmp_path_factory.mktemp("aesthetic")
    for file in clip_folder("vit").iterdir():
        (folder / file.name).symlink_to(file)
    torch.save(predictor_v2(24)[1], folder / V2[0])
    torch.save(predictor_v1(24)[1], folder / V1[0])
    return folder


@pytest.fixture(scope="module")
def embed(folder, tmp_path_factory):
    """Embeddings of length 1 by open_clip alone, with the quick GELU, in float64."""
    quick = tmp_path_factory.mktemp("quick")
    config = {"model_cfg": CONFIGS["vit"] | {"quick_gelu": True}, "preprocess_cfg": PREPROCESS}
    (quick / "open_clip_config.json").write_text(json.dumps(config))
    (quick / "open_clip_model.safetensors").symlink_to(folder / "open_clip_model.safetensors")
    open_clip = library("open_clip", "test")
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{quick}")
    model.double().eval().requires_grad_(False)
    return lambda images: model.encode_image(torch.stack([preprocess(i) for i in images]), normalize=True)


@pytest.mark.parametrize(("name", "predictor"), [("aesthetic", predictor_v2), ("aesthetic-v1", predictor_v1)])
def test_score_is_the_predictors_of_openais_embedding(folder, embed, name, predictor):
    images = pictures(2, 48, 48)
    reward = make_reward([f"{name}@{folder}"], RewardSettings(runtime="torch"))
    assert reward.name == f"{name}@{folder}"
    leaf = images.double().requires_grad_()
    expected = predictor(24)[0].double()(embed(leaf))[:, 0]
    (expected_gradient,) = torch.autograd.grad(expected.sum(), leaf)
    scores, gradient = reward.score_vjp(images, PROMPTS)
    expected = expected.detach()
    assert float((reward.score(images, PROMPTS) - expected).abs().max()) <= 1e-5
    assert float((scores - expected).abs().max()) <= 1e-5
    assert relative(gradient, expected_gradient) <= 1e-4
    assert float(scores.std()) > 1e-4
    assert torch.equal(reward.score(images, PROMPTS[::-1]), reward.score(images, PROMPTS))


@pytest.mark.parametrize("name", ["aesthetic", "clip"])
def test_on_onnx_runtime_scores_and_gradients_are_torchs(folder, name):
    """The exported tower and its VJP, without a prompt and with one, at two batches and two sizes."""
    runtimes = ("onnxruntime", "torch")
    exported, on_its_own = (
        make_reward([f"{name}@{folder}"], RewardSettings(runtime=each)) for each in runtimes
    )
    for count, height, width in ((1, 32, 32), (3, 48, 40)):
        images, prompts = pictures(count, height, width), [*PROMPTS, "a duck"][:count]
        assert relative(exported.score(images, prompts), on_its_own.score(images, prompts)) <= 1e-5
        (scores, gradient), (expected, wanted) = (
            reward.score_vjp(images, prompts) for reward in (exported, on_its_own)
        )
        assert relative(scores, expected) <= 1e-5
        assert relative(gradient, wanted) <= 1e-4
    assert exported.runtime.startswith("ONNX Runtime ")


@pytest.mark.parametrize("second", ["aesthetic-v1", "clip"])
def test_rewards_on_one_tower_run_it_once(folder, tmp_path, second):
    quick = {"model_cfg": CONFIGS["vit"] | {"quick_gelu": True}, "preprocess_cfg": PREPROCESS}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(quick))
    for file in folder.iterdir():
        if file.name != "open_clip_config.json":
            (tmp_path / file.name).symlink_to(file)
    images = pictures(2, 48, 48)
    alone = [
        make_reward([f"{name}@{tmp_path}"], RewardSettings(runtime="torch")) for name in ("aesthetic", second)
    ]
    both = make_reward(
        [f"aesthetic@{tmp_path}=-2", f"{second}@{tmp_path}=0.3"], RewardSettings(runtime="torch")
    )
    assert both.name == f"-2 aesthetic@{tmp_path} + 0.3 {second}@{tmp_path}"
    assert len(both.parts) == 1
    scores, gradient = both.score_vjp(images, PROMPTS)
    torch.testing.assert_close(both.score(images, PROMPTS), scores)
    one, other = (reward.score_vjp(images, PROMPTS) for reward in alone)
    for each in (scores_of(both, images, PROMPTS).each, scores_vjp_of(both, images, PROMPTS)[0].each):
        for reward, (wanted, _) in zip(alone, (one, other), strict=True):
            torch.testing.assert_close(each[reward.name], wanted, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(scores, -2 * one[0] + 0.3 * other[0], rtol=1e-5, atol=1e-4)
    assert relative(gradient, -2 * one[1] + 0.3 * other[1]) < 1e-5


def test_a_tower_of_another_activation_is_another_one(folder):
    """CLIP's own configuration here has the plain GELU."""
    assert (
        len(make_reward([f"aesthetic@{folder}", f"clip@{folder}"], RewardSettings(runtime="torch")).parts)
        == 2
    )


def test_a_predictor_may_be_named_by_its_file(folder, offline):
    """CLIP is then the hub's."""
    with pytest.raises(InputError, match=r"vit_large_patch14_clip_224\.openai is not in the hub's cache"):
        aesthetic_reward("aesthetic", str(folder / V2[0]))


def test_without_a_source_torchs_cache_has_it(folder, offline, monkeypatch):
    monkeypatch.chdir(folder)  # is no source
    cached = offline.parent / "torch" / "checkpoints" / V1[0]
    cached.parent.mkdir(parents=True)
    cached.symlink_to(folder / V1[0])
    with pytest.raises(InputError, match=r"vit_large_patch14_clip_224\.openai is not in the hub's cache"):
        aesthetic_reward("aesthetic-v1")


@pytest.mark.parametrize("kind", ["aesthetic", "aesthetic-v1"])
def test_a_missing_predictor_is_one_line_that_says_where_it_is(kind, offline, tmp_path):
    file, url, _ = PREDICTORS[kind]
    with pytest.raises(InputError) as caught:
        aesthetic_reward(kind)
    line = str(caught.value)
    assert line.startswith(
        f"--reward: {kind}: {offline.parent}/torch/checkpoints/{file} is missing and cannot"
    )
    assert f"get it from {url}, or name a local copy as {kind}@PATH" in line
    assert "\n" not in line
    with pytest.raises(InputError, match=r"expected .*\.pth from https://github\.com/.*, found no"):
        aesthetic_reward(kind, str(tmp_path))


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"weight": torch.ones(1, 24)}, r"expected bias, weight in .*, got weight"),
        (predictor_v2(24)[1], r"expected bias, weight in .*, got layers\.0\.bias, layers\.0\.weight"),
        ([torch.ones(24)], r"expected bias, weight in .*, got list"),
        ({"weight": torch.ones(2, 24), "bias": torch.ones(2)}, "make no predictor"),
        ({"weight": torch.ones(24), "bias": torch.ones(1)}, "make no predictor"),
        ({"weight": torch.ones(1, 24), "bias": 1.0}, "make no predictor"),
        ({"weight": torch.ones(1, 25), "bias": torch.ones(1)}, r"a predictor of 24 features.*, got 25 in"),
        (
            {"weight": torch.full((1, 24), torch.nan), "bias": torch.ones(1)},
            r"make no predictor \(not finite\)",
        ),
        ({"weight": Forbidden()}, r"cannot read .*\.pth"),
    ],
)
def test_a_file_of_something_else_is_one_line(folder, tmp_path, monkeypatch, stored, message):
    monkeypatch.chdir(tmp_path)
    for part in folder.iterdir():
        if part.suffix != ".pth":
            (tmp_path / part.name).symlink_to(part)
    torch.save(stored, tmp_path / V1[0])
    with pytest.raises(InputError, match=message) as caught:
        aesthetic_reward("aesthetic-v1", str(tmp_path))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "was-run").exists()


def test_a_cut_file_is_one_line(folder, tmp_path):
    (tmp_path / V2[0]).write_bytes((folder / V2[0]).read_bytes()[:200])
    with pytest.raises(InputError, match=r"--reward: aesthetic@.*: cannot read .*\.pth") as caught:
        aesthetic_reward("aesthetic", str(tmp_path))
    assert "\n" not in str(caught.value)
