"""Adapters' files: what is none, or only in part, is one line that says what the file is."""

import json
import warnings

import pytest
import torch
from safetensors.torch import save_file
from small_stable_diffusion import UNET_WEIGHTS, guess, make_unet, on_torch, one_line
from test_lora import MODULES, TEXT_MODULES, add_by_hand, in_diffusers_format, in_kohyas_format, pairs

from ddpo3d_fast.engines.libraries import library
from ddpo3d_fast.errors import FallbackWarning, InputError
from ddpo3d_fast.priors import stable_diffusion as room
from ddpo3d_fast.priors.lora import Lora

MODULE = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
DOTTED = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
PLAIN = {
    f"lora_unet_{MODULE}.lora_down.weight": torch.ones(2, 16),
    f"lora_unet_{MODULE}.lora_up.weight": torch.ones(16, 2),
    f"lora_unet_{MODULE}.alpha": torch.tensor(2.0),
}
# By a tensor's name, as lycoris-lora 4.1.3, peft 0.21.2, kohya's scripts and others save it.
KINDS = {
    f"lora_unet_{MODULE}.hada_w1_a": "is a LoHa",
    f"unet.{DOTTED}.hada_w2_b": "is a LoHa",
    f"lycoris_{MODULE}.lokr_w1": "is a LoKr",
    f"lora_unet_{MODULE}.lokr_w2_a": "is a LoKr",
    f"lora_unet_{MODULE}.oft_blocks": "is an OFT or BOFT",
    f"unet.{DOTTED}.oft_R.weight": "is an OFT or BOFT",
    f"unet.{DOTTED}.boft_s": "is an OFT or BOFT",
    f"lora_unet_{MODULE}.a1.weight": "is a GLoRA",
    f"lora_unet_{MODULE}.on_input": "is an (IA)3",
    f"unet.{DOTTED}.ia3_l": "is an (IA)3",
    f"lora_unet_{MODULE}.lambda_layer": "is a relative of LoRA",
    f"unet.{DOTTED}.vera_lambda_b": "is a relative of LoRA",
    f"lora_unet_{MODULE}.diff": "is a change of whole weights, at least in part",
    "lora_unet_conv_norm_out.w_norm": "is a change of whole weights, at least in part",
    "emb_params": "is a textual inversion",
    "clip_g": "is a textual inversion",
    "<toad>": "is a textual inversion",
    "text_encoder.embeddings.token_embedding.lora_embedding_A": "is a LoRA of words' embeddings too",
    "lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": "is for a diffusion transformer",
    "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": "is for a diffusion transformer",
    "lora_te3_encoder_block_0_layer_0_SelfAttention_q.alpha": "is for a diffusion transformer",
    "diffusion_model.blocks.0.self_attn.q.lora_A.weight": "is for a diffusion transformer",
    "model.diffusion_model.input_blocks.0.0.weight": "is a whole checkpoint",
    "down_blocks.0.motion_modules.0.proj_in.weight": "is for a video's motion",
    "something.lora_down.weight": "has no LoRA weights for a UNet or a text encoder, only something",
}


@pytest.fixture
def file(tmp_path):
    return tmp_path / "style.safetensors"


def refusal(file, parts=("unet", "text_encoder")):
    with pytest.raises(InputError) as caught:
        Lora(file, 1.0, parts)
    line = str(caught.value)
    assert line.startswith(f"--lora: {file}: ")
    assert "\n" not in line
    return line


@pytest.mark.parametrize("key", KINDS)
def test_what_is_no_lora_is_named(file, key):
    save_file({key: torch.ones(2, 2)}, file)
    line = refusal(file)
    assert KINDS[key] in line
    assert line.endswith("expected a LoRA or DoRA of Stable Diffusion 1.x, 2.x or XL")


@pytest.mark.parametrize("end", ["hada_w1_a", "on_input", "diff_b", "lora_E"])
def test_a_file_that_is_something_else_in_part_is_not_fused_in_part(file, end):
    save_file(PLAIN | {f"lora_unet_mid_block_attentions_0_proj_in.{end}": torch.ones(2)}, file)
    assert "expected a LoRA or DoRA" in refusal(file)


@pytest.mark.parametrize(
    "key",
    [f"lora_unet_{MODULE}.scale", f"unet.{DOTTED}.lora_B.bias", "lora_te_text_model_x.initial", "unet.x"],
)
def test_what_is_not_understood_in_a_part_is_an_error(file, key):
    save_file(PLAIN | {key: torch.ones(2)}, file)
    assert refusal(file).endswith(f"has 1 tensors that are none of LoRA's, first {key}")


def test_what_is_left_out_is_said_and_the_rest_is_used(sd, file):
    """Embeddings bundled with a LoRA, and what is for none of the networks: one line."""
    bundled = {f"bundle_emb.{name}.string_to_param.*": torch.ones(1, 32) for name in ("toad", "frog")}
    save_file(PLAIN, file)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        expected = guess(on_torch(sd, lora=[(file, 1.0)]))
    save_file(PLAIN | bundled | {"first": torch.ones(1), "second.lora_up.weight": torch.ones(1)}, file)
    with pytest.warns(FallbackWarning) as said:
        got = guess(on_torch(sd, lora=[(file, 1.0)]))
    (line,) = (str(each.message) for each in said if each.category is FallbackWarning)
    assert line == (
        f"--lora: {file}: left out: its embeddings of frog, toad, which a prompt cannot call; 2 tensors for "
        "nothing that is adapted here, first first"
    )
    assert torch.equal(got, expected)


def test_embeddings_alone_are_no_lora(file):
    save_file({"bundle_emb.toad.string_to_param.*": torch.ones(1, 32)}, file)
    assert "has no LoRA weights for a UNet or a text encoder, only bundle_emb.toad" in refusal(file)


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_an_adapter_of_a_text_encoder_alone_is_one(sd, file, form):
    """Even where it changes but one of its projections."""
    path = sd / "text_encoder/model.safetensors"
    weights = {f"{name}.weight": torch.zeros(32, 32) for name in TEXT_MODULES[:1]}
    adapter = pairs(weights, TEXT_MODULES[:1], rank=2, seed=1)
    state = in_diffusers_format({}, adapter)
    if form == "kohya":
        state = in_kohyas_format("lora_te_text_model", adapter, [2.0])
    save_file(state, file)
    got = guess(on_torch(sd, lora=[(file, 1.0)]))
    add_by_hand(path, adapter, [1.0])
    assert torch.allclose(got, guess(on_torch(sd)), atol=1e-5)


def test_xls_adapter_on_another_model_is_told_before_weights_are_read(sd, file, monkeypatch):
    monkeypatch.setattr(room, "load_network_part", lambda *_: pytest.fail("read weights"))
    second = {"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(2, 32)}
    second["lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"] = torch.ones(48, 2)
    save_file(PLAIN | second, file)
    line = one_line(sd, lora=[(file, 1.0)])
    assert line.endswith("is for Stable Diffusion XL, it adapts text_encoder_2, which this model has none of")


@pytest.mark.parametrize(
    "metadata",
    [{"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, {"ss_base_model_version": "sdxl_base"}],
)
@pytest.mark.parametrize(
    ("key", "columns", "words"),
    [
        (
            "lora_unet_input_blocks_8_1_proj_in",
            16,
            "has weights that fit nothing in the unet: input_blocks_8_1",
        ),
        (
            f"lora_unet_{MODULE}",
            64,
            "does not fit the unet: expected matrices for [16, 16], got [16, 2] by [2, 64]",
        ),
    ],
)
def test_what_fits_another_model_says_for_which_it_was_trained(file, key, columns, words, metadata):
    state = {f"{key}.lora_down.weight": torch.ones(2, columns), f"{key}.lora_up.weight": torch.ones(16, 2)}
    save_file(state, file, metadata)
    with pytest.raises(InputError) as caught:
        Lora(file, 1.0, ("unet",)).fuse(make_unet(), "unet")
    assert words in str(caught.value)
    assert str(caught.value).endswith(f"; it was trained for {next(iter(metadata.values()))}")


@pytest.mark.parametrize("shape", [(3, 1), (16, 2), (2,)])
@pytest.mark.parametrize("name", ["dora_scale", "lora_magnitude_vector"])
def test_a_dora_of_another_size_is_one_line(file, name, shape):
    save_file(PLAIN | {f"lora_unet_{MODULE}.{name}": torch.ones(shape)}, file)
    with pytest.raises(InputError, match=r"does not fit the unet: expected matrices for \[16, 16\]"):
        Lora(file, 1.0, ("unet",)).fuse(make_unet(), "unet")


def test_a_module_that_is_adapted_twice_is_one_line(file):
    twice = {key.replace(f"lora_unet_{MODULE}", f"unet.{DOTTED}"): t.clone() for key, t in PLAIN.items()}
    save_file(PLAIN | twice, file)
    assert "twice" in refusal(file)


# peft's


def save_pefts(folder, changes):
    """A UNet's adapter as peft saves it; the file."""
    peft = library("peft", "a test")
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=[DOTTED])
    peft.get_peft_model(make_unet(), config).save_pretrained(folder)
    beside = folder / "adapter_config.json"
    if changes is None:
        beside.unlink()
    else:
        beside.write_text(json.dumps(json.loads(beside.read_text()) | changes))
    return folder / "adapter_model.safetensors"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (None, "is peft's, expected adapter_config.json beside it, which says alpha"),
        ({"peft_type": "LOHA"}, "is peft's LOHA; expected a LoRA or DoRA"),
        ({"init_lora_weights": "pissa_niter_4"}, "was trained on a base that pissa_niter_4 had changed"),
        ({"lora_alpha": "much"}, "expected a number for alpha of down_blocks.0"),
        ({"alpha_pattern": {"(": 1}}, "expected a number for alpha of down_blocks.0"),
    ],
)
def test_what_pefts_settings_forbid_is_one_line(tmp_path, changes, words):
    assert words in refusal(save_pefts(tmp_path, changes))


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_the_folder_of_pefts_file_says_for_which_network_it_is(sd, tmp_path, part):
    """As peft's own training script for Stable Diffusion saves both."""
    peft, transformers = library("peft", "a test"), library("transformers", "a test")
    unet = part == "unet"
    network = make_unet() if unet else transformers.CLIPTextModel.from_pretrained(sd / part)
    modules = MODULES[:1] if unet else ["q_proj"]
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=modules, init_lora_weights=False)
    peft.get_peft_model(network, config).save_pretrained(tmp_path / part)
    lora = [(tmp_path / part / "adapter_model.safetensors", 1.0)]
    assert not torch.allclose(guess(on_torch(sd, lora=lora)), guess(on_torch(sd)), atol=1e-5)
    text = tmp_path / "text_encoder" / "adapter_model.safetensors"
    if not unet:
        other = tmp_path / "unknown"
        other.mkdir()
        for path in text.parent.glob("adapter_*"):
            (other / path.name).write_bytes(path.read_bytes())
        assert "fit nothing in the unet" in one_line(sd, lora=[(other / text.name, 1.0)])
    assert (sd / UNET_WEIGHTS).is_file()


@pytest.mark.parametrize("metadata", ["{", "[]", '{"unet.lora_alpha": "much"}', '{"unet.alpha_pattern": 3}'])
def test_damaged_metadata_is_one_line(file, metadata):
    state = {
        f"unet.{DOTTED}.lora_A.weight": torch.ones(2, 16),
        f"unet.{DOTTED}.lora_B.weight": torch.ones(16, 2),
    }
    save_file(state, file, {"lora_adapter_metadata": metadata})
    refusal(file)


@pytest.mark.parametrize("name", ["lora_down.weight", "lora_up.weight", "alpha"])
@pytest.mark.parametrize("shape", [(0,), (2,), (0, 16), (2, 2, 2, 2, 2)])
def test_tensors_of_no_sense_are_one_line(file, name, shape):
    save_file(PLAIN | {f"lora_unet_{MODULE}.{name}": torch.ones(shape)}, file)
    with pytest.raises(InputError, match="--lora: "):
        Lora(file, 1.0, ("unet",)).fuse(make_unet(), "unet")


def test_an_alpha_of_zero_is_the_rank(file):
    """As kohya's scripts and LyCORIS read it; as a number it would leave the adapter out."""
    fused = []
    for alpha in (0.0, 2.0, 1.0):
        save_file(PLAIN | {f"lora_unet_{MODULE}.alpha": torch.tensor(alpha)}, file)
        unet = make_unet()
        weight = unet.get_submodule(DOTTED).weight
        weight.data.zero_()
        Lora(file, 1.0, ("unet",)).fuse(unet, "unet")
        fused.append(weight.detach().clone())
    assert torch.equal(fused[0], fused[1])
    assert torch.equal(fused[1], 2 * fused[2])
    assert fused[2].any()
