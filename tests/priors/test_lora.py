"""Adapters: fused, they are the weights that their file means."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_stable_diffusion import UNET_WEIGHTS, guess, on_torch, one_line, relative

from ddpo3d_fast.engines.cache import fingerprint
from ddpo3d_fast.engines.libraries import library
from ddpo3d_fast.priors import stable_diffusion as room

MODULES = [
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_out.0",
    "up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_v",
]
TEXT_MODULES = ["encoder.layers.0.self_attn.q_proj", "encoder.layers.2.mlp.fc1"]


def pairs(weights, modules, rank, seed):
    """Random `down` [r, in] and `up` [out, r] for modules' weights."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name in modules:
        rows, columns = weights[f"{name}.weight"].shape
        down = torch.randn(rank, columns, generator=generator)
        made[name] = down, torch.randn(rows, rank, generator=generator)
    return made


def add_by_hand(path, adapters, scales):
    """A part's weights + scale up @ down; one scale a module."""
    weights = load_file(path)
    for (name, (down, up)), scale in zip(adapters.items(), scales, strict=True):
        weights[f"{name}.weight"] += scale * up @ down
    save_file(weights, path, {"format": "pt"})


def in_diffusers_format(unet, text):
    """Names as published: CLIP's modules stood in `text_model` then."""
    return {
        f"{part}.{name}.lora_{letter}.weight": tensor
        for part, adapters in (("unet", unet), ("text_encoder.text_model", text))
        for name, pair in adapters.items()
        for letter, tensor in zip("AB", pair, strict=True)
    }


def in_kohyas_format(prefix, adapters, alphas):
    """`prefix` is that of a part: lora_unet, lora_te_text_model (in XL te1 and te2)."""
    state = {}
    for (name, (down, up)), alpha in zip(adapters.items(), alphas, strict=True):
        name = f"{prefix}_{name}".replace(".", "_")
        state |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        state[f"{name}.alpha"] = torch.tensor(alpha)
    return state


@pytest.mark.parametrize("form", ["diffusers", "metadata", "kohya"])
@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_an_adapter_is_fused_as_base_plus_scale_times_up_times_down(sd, tmp_path, part, form):
    path = sd / {"unet": UNET_WEIGHTS, "text_encoder": "text_encoder/model.safetensors"}[part]
    modules = {"unet": MODULES, "text_encoder": TEXT_MODULES}[part]
    adapter, metadata = pairs(load_file(path), modules, rank=3, seed=1), {"format": "pt"}
    alphas = [3.0] * len(modules)  # the rank, where a file says nothing else
    if form == "kohya":
        alphas = [1.5, 0.5, 2.0][: len(modules)]
        state = in_kohyas_format("lora_unet" if part == "unet" else "lora_te_text_model", adapter, alphas)
    else:
        state = in_diffusers_format(*((adapter, {}) if part == "unet" else ({}, adapter)))
    if form == "metadata":
        alphas = [1.5] * len(modules)
        config = library("peft", "a test").LoraConfig(r=3, lora_alpha=1.5, target_modules=modules).to_dict()
        config = {f"{part}.{key}": value for key, value in (config | {"target_modules": modules}).items()}
        metadata["lora_adapter_metadata"] = json.dumps(config, default=str)
    save_file(state, tmp_path / "style.safetensors", metadata)
    base, got = guess(on_torch(sd)), guess(on_torch(sd, lora=[(tmp_path / "style.safetensors", 0.4)]))
    add_by_hand(path, adapter, [0.4 * alpha / 3 for alpha in alphas])
    expected = guess(on_torch(sd))
    assert relative(got, expected) < 1e-5
    assert relative(base, expected) > 1e-3


def test_an_adapter_of_xl_is_fused_into_all_three_networks(xl, tmp_path):
    state, alphas = {}, [1.0, 3.0]
    for part, prefix in (("unet", "unet"), ("text_encoder", "te1"), ("text_encoder_2", "te2")):
        path = xl / (UNET_WEIGHTS if part == "unet" else f"{part}/model.safetensors")
        weights = load_file(path)
        modules = [
            name.removesuffix(".weight") for name in weights if name.endswith(("to_q.weight", "fc1.weight"))
        ]
        adapter = pairs(weights, modules[:2], rank=2, seed=7)
        clip = "" if part == "unet" or modules[0].startswith("text_model") else "_text_model"
        state |= in_kohyas_format(f"lora_{prefix}{clip}", adapter, alphas)
        changed = path.with_suffix(".changed")
        shutil.copy(path, changed)
        add_by_hand(changed, adapter, [0.5 * alpha / 2 for alpha in alphas])
    save_file(state, tmp_path / "style.safetensors", {"format": "pt"})
    prior = on_torch(xl, lora=[(tmp_path / "style.safetensors", 0.5)])
    got, views, base = guess(prior), prior.prompt("a red view").views, guess(on_torch(xl))
    for changed in xl.rglob("*.changed"):
        changed.replace(changed.with_suffix(".safetensors"))
    expected = on_torch(xl)
    assert relative(got, guess(expected)) < 1e-5 < relative(base, got)
    for name, tensor in expected.prompt("a red view").views.items():
        assert relative(views[name], tensor) < 1e-5


def test_adapters_add_up_and_are_fused_in_full_precision(sd, tmp_path):
    """In half precision, too: what is small beside a weight must not be lost before it is added."""
    adapters = [pairs(load_file(sd / UNET_WEIGHTS), MODULES, rank=2, seed=seed) for seed in (4, 5)]
    files = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    for file, adapter in zip(files, adapters, strict=True):
        save_file(in_diffusers_format(adapter, {}), file, {"format": "pt"})
    lora = list(zip(files, (0.5, -0.25), strict=True))
    single, half = on_torch(sd, lora=lora), on_torch(sd, lora=lora, dtype=torch.bfloat16)
    for adapter, scale in zip(adapters, (0.5, -0.25), strict=True):
        add_by_hand(sd / UNET_WEIGHTS, adapter, [scale] * len(MODULES))
    assert relative(guess(single), guess(on_torch(sd))) < 1e-5
    assert torch.equal(guess(half), guess(on_torch(sd, dtype=torch.bfloat16)))


def test_adapters_of_text_encoders_add_up_too(sd, tmp_path):
    path, lora = sd / "text_encoder/model.safetensors", []
    adapters = [pairs(load_file(path), TEXT_MODULES, rank=2, seed=seed) for seed in (4, 5)]
    for adapter, scale in zip(adapters, (0.5, -0.25), strict=True):
        lora.append((tmp_path / f"{scale}.safetensors", scale))
        save_file(in_diffusers_format({}, adapter), lora[-1][0], {"format": "pt"})
    base, got = guess(on_torch(sd)), guess(on_torch(sd, lora=lora))
    for adapter, scale in zip(adapters, (0.5, -0.25), strict=True):
        add_by_hand(path, adapter, [scale] * len(TEXT_MODULES))
    assert relative(got, guess(on_torch(sd))) < 1e-5
    assert relative(base, got) > 1e-4


@pytest.mark.parametrize("runtime", ["tensorrt", "torch"])
def test_tensorrt_alone_gets_the_unet_before_its_adapters(sd, tmp_path, monkeypatch, runtime):
    """To the bit as a run without adapters has it, so that both use one graph."""
    networks, load = [], room.load_network
    monkeypatch.setattr(room, "load_network", lambda n, *args: networks.append(n) or load(n, *args))
    monkeypatch.setattr(room, "choose_runtime", lambda *_: runtime)
    weights = load_file(sd / UNET_WEIGHTS)
    half = {name: (1.01 * tensor).half() for name, tensor in weights.items()}  # other numbers than the full
    save_file(half, sd / "unet/diffusion_pytorch_model.fp16.safetensors", {"format": "pt"})
    file, adapter = tmp_path / "style.safetensors", pairs(weights, MODULES, rank=2, seed=8)
    save_file(in_diffusers_format(adapter, {}), file, {"format": "pt"})
    for lora in ([(file, 0.5)], []):
        on_torch(sd, dtype=torch.bfloat16, lora=lora)
    adapted, plain = networks
    assert plain.base is None
    if runtime == "torch":
        assert adapted.base is None
    else:
        assert fingerprint(replace(adapted, module=adapted.base)) == fingerprint(plain)
        assert fingerprint(adapted)["weights"] != fingerprint(plain)["weights"]


HALVES = {"lora_A": "up", "lora_B": "down", "lora_down": "up", "lora_up": "down"}  # what is left: what lacks


@pytest.mark.parametrize("damage", ["none", "bin", "garbage", "another", "misfit", "lost", *HALVES])
def test_a_wrong_adapter_is_one_line_that_names_the_file(sd, tmp_path, monkeypatch, damage):
    file = tmp_path / ("style.bin" if damage == "bin" else "style.safetensors")
    adapter = pairs(load_file(sd / UNET_WEIGHTS), MODULES, rank=2, seed=6)
    if damage in ("bin", "garbage"):
        file.write_bytes(b"garbage")
    elif damage == "another":
        save_file({"weight": torch.ones(2)}, file)
    elif damage == "misfit":
        bigger = {name: (torch.ones(2, 7), torch.ones(5, 2)) for name in adapter}
        save_file(in_diffusers_format(bigger, {}), file)
    elif damage == "lost":
        save_file(
            in_diffusers_format(adapter | {"down_blocks.7.conv": (torch.ones(2, 7), torch.ones(5, 2))}, {}),
            file,
        )
    elif damage in HALVES:
        kohya = in_kohyas_format("lora_unet", adapter, [1.0] * len(MODULES))
        state = in_diffusers_format(adapter, {}) | kohya
        save_file({name: t for name, t in state.items() if name.endswith(f".{damage}.weight")}, file)
    if damage not in ("misfit", "lost"):  # with what, the network has to be there to tell
        monkeypatch.setattr(room, "load_network_part", lambda *_: pytest.fail("read weights"))
    line = one_line(sd, lora=[(file, 1.0)])
    assert line.startswith("--lora: ")
    assert str(file) in line
    if damage in HALVES:
        assert f"lacks the {HALVES[damage]} matrix of " in line
        assert line.endswith(("attn1.to_q", "attn1_to_q"))
