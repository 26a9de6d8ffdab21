"""HPSv2 and PickScore: the scores of the models as they are published, read with care."""

from __future__ import annotations

import json

import pytest
import torch
from small_clip import CONFIGS, Forbidden, pictures, put_in_hub_cache, randomise, relative
from torch.nn.functional import cosine_similarity, interpolate

from ddpo3d_fast.engines.libraries import library
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.rewards import RewardSettings, make_reward
from ddpo3d_fast.rewards.preference import HPS_FILE, MEAN, STD, hps_reward, pickscore_reward

PROMPTS = ["a red ball", "a blue cube"]
WORDS = ["a", "red", "blue", "ball", "cube"]


def preprocessed(images, size=32):
    """float64 [B, 3, size, size] of square images, by torch's resize."""
    options = {"mode": "bicubic", "antialias": True, "align_corners": False}
    mean, std = (torch.tensor(t, dtype=torch.float64).view(3, 1, 1) for t in (MEAN, STD))
    return (interpolate(images, size=(size, size), **options) - mean) / std


@pytest.fixture
def hps_file(tmp_path, monkeypatch):
    """A checkpoint as HPSv2 publishes it, of an architecture `tiny-h`."""
    open_clip = library("open_clip", "test")
    factory = library("open_clip.factory", "test")
    monkeypatch.setitem(factory._MODEL_CONFIGS, "tiny-h", CONFIGS["vit"])
    model = randomise(open_clip.create_model("tiny-h"), seed=3)
    torch.save({"epoch": 1, "name": "hps", "state_dict": model.state_dict()}, tmp_path / HPS_FILE)
    return tmp_path / HPS_FILE


@pytest.mark.parametrize("as_folder", [False, True])
def test_hps_is_a_hundred_times_the_cosine(hps_file, as_folder):
    reward = hps_reward(
        str(hps_file.parent if as_folder else hps_file), RewardSettings(runtime="torch"), model="tiny-h"
    )
    images = pictures(2, 48, 48)
    open_clip = library("open_clip", "test")
    model = open_clip.create_model("tiny-h").eval().requires_grad_(False)
    model.load_state_dict(torch.load(hps_file, weights_only=True)["state_dict"])
    text = model.encode_text(open_clip.get_tokenizer("tiny-h")(PROMPTS)).double()
    leaf = images.double().requires_grad_()
    expected = 100 * cosine_similarity(model.double().encode_image(preprocessed(leaf)), text)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), leaf)
    scores, gradient = reward.score_vjp(images, PROMPTS)
    expected = expected.detach()
    assert float((scores - expected).abs().max()) <= 1e-4
    assert float((reward.score(images, PROMPTS) - expected).abs().max()) <= 1e-4
    assert relative(gradient, expected_gradient) <= 1e-4


def test_hps_without_a_file_says_where_it_is(offline, tmp_path):
    with pytest.raises(InputError, match=r"HPS_v2\.1_compressed\.pt of xswu/HPSv2 is not in the hub's cache"):
        make_reward(["hps"])
    with pytest.raises(
        InputError, match=r"expected HPS_v2\.1_compressed\.pt of xswu/HPSv2 on the hub, found no"
    ):
        make_reward([f"hps@{tmp_path}"])


def test_hps_file_of_something_else_is_one_line(hps_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"visual.proj": torch.ones(2, 2)}}, hps_file)
    with pytest.raises(InputError, match="open_clip cannot make tiny-h of") as caught:
        hps_reward(str(hps_file), model="tiny-h")
    assert "\n" not in str(caught.value)
    torch.save({"state_dict": Forbidden()}, hps_file)
    with pytest.raises(InputError, match="open_clip cannot make tiny-h of"):
        hps_reward(str(hps_file), model="tiny-h")
    assert not (tmp_path / "was-run").exists()


def make_pickscore(folder, tokenizer=True, safe=True):
    transformers = library("transformers", "test")
    vocabulary = {f"{word}</w>": k for k, word in enumerate(WORDS)}
    vocabulary |= {letter: len(vocabulary) + k for k, letter in enumerate("abcdelu")}
    vocabulary |= {f"{letter}</w>": len(vocabulary) + k for k, letter in enumerate("bcdelu")}
    merges = [
        "r e",
        "re d</w>",
        "b l",
        "bl u",
        "blu e</w>",
        "b a",
        "l l</w>",
        "ba ll</w>",
        "c u",
        "cu b",
        "cub e</w>",
    ]
    for merged in ("r", "re", "bl", "blu", "ba", "ll</w>", "cu", "cub"):
        vocabulary.setdefault(merged, len(vocabulary))
    vocabulary |= {"<|startoftext|>": len(vocabulary), "<|endoftext|>": len(vocabulary) + 1}
    size = len(vocabulary) if tokenizer else 49408
    if tokenizer:
        (folder / "vocab.json").write_text(json.dumps(vocabulary))
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
        transformers.CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)
    both = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32}
    text = both | {
        "vocab_size": size,
        "max_position_embeddings": 16,
        "bos_token_id": size - 2,
        "eos_token_id": size - 1,
        "hidden_act": "gelu",
    }
    vision = both | {"image_size": 32, "patch_size": 8, "hidden_act": "gelu"}
    config = transformers.CLIPConfig(
        text_config=text, vision_config=vision, projection_dim=12, logit_scale_init_value=4.0
    )
    torch.manual_seed(0)
    model = randomise(transformers.CLIPModel(config))
    if safe:
        model.save_pretrained(folder)
    else:
        config.save_pretrained(folder)
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return model


@pytest.fixture(params=[(True, True), (False, False)], ids=["safetensors", "bin-no-tokenizer"])
def pickscore(request, tmp_path):
    folder = tmp_path / "pickscore"
    folder.mkdir()
    return folder, make_pickscore(folder, *request.param)


def expected_logits(folder, model, images):
    """float64 [B], by transformers alone: logits_per_image of each picture and its prompt."""
    if (folder / "vocab.json").is_file() or (folder / "tokenizer.json").is_file():
        tokenizer = library("transformers", "test").CLIPTokenizer.from_pretrained(folder)
        tokens = tokenizer(PROMPTS, padding="max_length", max_length=16, return_tensors="pt")
        tokens = {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}
    else:
        tokenizer = library("open_clip", "test").get_tokenizer("ViT-H-14", context_length=16)
        tokens = {"input_ids": tokenizer(PROMPTS)}
    logits = model.double()(pixel_values=preprocessed(images), **tokens).logits_per_image
    return logits.diagonal()


def test_pickscore_is_the_models_logit(pickscore):
    folder, model = pickscore
    reward = pickscore_reward(str(folder), RewardSettings(runtime="torch"))
    images = pictures(2, 48, 48)
    leaf = images.double().requires_grad_()
    expected = expected_logits(folder, model, leaf)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), leaf)
    scores, gradient = reward.score_vjp(images, PROMPTS)
    expected = expected.detach()
    assert float((scores - expected).abs().max()) <= 1e-4
    assert float((reward.score(images, PROMPTS) - expected).abs().max()) <= 1e-4
    assert relative(gradient, expected_gradient) <= 1e-4
    swapped = reward.score(images, PROMPTS[::-1])
    assert float((swapped - scores).abs().min()) > 1e-3  # prompts count


def test_a_prompt_of_any_length_has_a_score(pickscore):
    reward = pickscore_reward(str(pickscore[0]), RewardSettings(runtime="torch"))
    scores = reward.score(pictures(2, 32, 32), ["", "a red ball " * 50])
    assert bool(torch.isfinite(scores).all())


def test_pickscore_from_the_hubs_cache(offline, tmp_path):
    folder = tmp_path / "pickscore"
    folder.mkdir()
    make_pickscore(folder)
    put_in_hub_cache(offline, "yuvalkirstain/PickScore_v1", *folder.iterdir())
    images = pictures(2, 32, 32)
    of_folder = pickscore_reward(str(folder), RewardSettings(runtime="torch")).score(images, PROMPTS)
    reward = make_reward(["pickscore"], RewardSettings(runtime="torch"))
    assert reward.name == "pickscore"
    assert torch.equal(reward.score(images, PROMPTS), of_folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pickscore", r"model\.safetensors of yuvalkirstain/PickScore_v1 is not in the hub's cache"),
        ("pickscore@someone/else", "model.safetensors of someone/else is not in the hub's cache"),
        (
            "pickscore@/no/such/folder",
            "expected a local path or OWNER/NAME on the hub, found no '/no/such/folder'",
        ),
    ],
)
def test_pickscore_that_cannot_be_had_is_one_line(offline, name, message):
    with pytest.raises(InputError, match=message) as caught:
        make_reward([name])
    assert str(caught.value).startswith(f"--reward: {name}: ")
    assert "\n" not in str(caught.value)


def test_half_a_model_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="cannot read a CLIPModel in"):
        pickscore_reward(str(tmp_path))
    model = make_pickscore(tmp_path, safe=False)
    state = model.state_dict()
    del state["visual_projection.weight"]
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"visual_projection\.weight is missing") as caught:
        pickscore_reward(str(tmp_path))
    assert "\n" not in str(caught.value)
    torch.save({"visual_projection.weight": Forbidden()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot read a CLIPModel in") as caught:
        pickscore_reward(str(tmp_path))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "was-run").exists()
