"""Adapters: every format's weights are what its own library makes of them."""

import copy
import itertools
import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_stable_diffusion import UNET_WEIGHTS, guess, make_unet, on_torch, one_line, relative
from torch import nn

from ddpo3d_fast.engines.cache import fingerprint
from ddpo3d_fast.engines.libraries import library
from ddpo3d_fast.priors import stable_diffusion as room
from ddpo3d_fast.priors.lora import Lora

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


# DoRA

WEIGHT = [[1.0, 2.0, -1.0], [0.5, -1.0, 2.0]]
DOWN, UP, ALPHA = [[1.0, -2.0, 0.5]], [[0.5], [2.0]], 0.5
# What lycoris-lora 4.1.3 (get_merged_weight) and peft 0.21.2 (scale_layer, merge_and_unload) make of them.
MERGED = {
    ("rows", 1.0): [[1.7526186, 2.1031423, -1.2268330], [0.1792843, -0.3585686, 0.2988071]],
    ("rows", 0.5): [[1.5013093, 1.8015711, -1.0509164], [0.8396421, -1.6792842, 1.3994036]],
    ("columns", 1.0): [[0.6401843, 0.8944271, -0.1651752], [0.7682213, -1.7888542, 0.4719292]],
    ("columns", 0.5): [[0.9450921, 1.1972135, -0.5200876], [1.1341106, -2.3944271, 1.4859647]],
    ("peft", 1.0): [[1.7526187, 2.1031425, -1.2268331], [0.1792843, -0.3585686, 0.2988071]],
    ("peft", 0.5): [[1.4790357, 2.3007224, -1.2325298], [0.1576221, -0.3152442, 0.3546497]],
}
MAGNITUDES = {"rows": [[3.0], [0.5]], "columns": [[1.0, 2.0, 0.5]], "peft": [3.0, 0.5]}


class Layers(nn.Module):
    """A network of one layer of every kind that can be adapted."""

    def __init__(self):
        super().__init__()
        self.config = {}
        torch.manual_seed(5)
        self.proj, self.conv = nn.Linear(6, 4), nn.Conv2d(3, 5, 3)


def fused(network, state, folder, scale, metadata=None):
    """A copy of the network with the adapter of these tensors in it."""
    save_file({k: t.contiguous() for k, t in state.items()}, folder / "x.safetensors", metadata)
    network = copy.deepcopy(network)
    Lora(folder / "x.safetensors", scale, ("unet",)).fuse(network, "unet")
    return network


@pytest.mark.parametrize(("form", "scale"), MERGED)
def test_dora_is_what_its_library_merges(tmp_path, form, scale):
    network = nn.Sequential(nn.Linear(3, 2))
    network.config, network[0].weight.data = {}, torch.tensor(WEIGHT)
    down, up, magnitude = (torch.tensor(each) for each in (DOWN, UP, MAGNITUDES[form]))
    if form == "peft":
        state = {
            "unet.0.lora_A.weight": down,
            "unet.0.lora_B.weight": up,
            "unet.0.lora_magnitude_vector": magnitude,
        }
        config = {"unet.lora_alpha": ALPHA, "unet.use_dora": True}
        metadata = {"lora_adapter_metadata": json.dumps(config)}
    else:
        state = {"lora_unet_0.lora_down.weight": down, "lora_unet_0.lora_up.weight": up}
        state |= {"lora_unet_0.alpha": torch.tensor(ALPHA), "lora_unet_0.dora_scale": magnitude}
        metadata = None
    got = fused(network, state, tmp_path, scale, metadata)[0].weight
    assert torch.allclose(got, torch.tensor(MERGED[form, scale]), rtol=1e-6, atol=3e-7)


def dora_by_hand(weight, delta, dora_scale, scale):
    """LyCORIS's, one row or column at a time, in float64."""
    changed = weight.double() + delta.double()
    axis = 0 if dora_scale.shape[0] == len(weight) else 1
    for i, length in enumerate(dora_scale.double().flatten()):
        part = changed.select(axis, i)
        part *= 1 + scale * (length / part.square().sum().sqrt() - 1)
    return changed.float()


@pytest.mark.parametrize("scale", [1.0, 0.4, -0.5])
@pytest.mark.parametrize("tucker", [False, True])
@pytest.mark.parametrize("kept", ["rows", "columns"])
@pytest.mark.parametrize("prefix", ["lora_unet_", "lycoris_"])
def test_dora_of_linear_layers_and_convolutions_keeps_rows_or_columns(tmp_path, prefix, kept, tucker, scale):
    network, rank, alpha, state, expected = Layers(), 2, 3.0, {}, {}
    for name, layer in (("proj", network.proj), ("conv", network.conv)):
        weight = layer.weight.detach()
        rows, columns, *kernel = weight.shape
        up, ones = torch.randn(rows, rank), [1] * len(kernel)
        made = {"alpha": torch.tensor(alpha), "lora_up.weight": up.view(rows, rank, *ones)}
        if kernel and tucker:
            down, mid = torch.randn(rank, columns), torch.randn(rank, rank, *kernel)
            made |= {"lora_down.weight": down.view(rank, columns, *ones), "lora_mid.weight": mid}
            ranks = itertools.product(range(rank), repeat=2)
            delta = sum(up[:, p, None, None, None] * mid[p, q] * down[q, :, None, None] for p, q in ranks)
        else:
            down = torch.randn(rank, columns, *kernel)
            made["lora_down.weight"] = down
            delta = sum(up[:, p].view(rows, 1, *ones) * down[p] for p in range(rank))
        axes = [axis for axis in range(weight.ndim) if axis != (kept == "columns")]
        made["dora_scale"] = (0.5 + torch.rand(rows if kept == "rows" else columns)).view(
            [1 if axis in axes else -1 for axis in range(weight.ndim)]
        )
        state |= {f"{prefix}{name}.{key}": tensor for key, tensor in made.items()}
        expected[name] = dora_by_hand(weight, alpha / rank * delta, made["dora_scale"], scale)
    got = fused(network, state, tmp_path, scale)
    for name, weight in expected.items():
        assert relative(getattr(got, name).weight, weight) < 1e-6
    assert torch.equal(got.proj.bias, network.proj.bias)


@pytest.mark.parametrize("scale", [1.0, 0.4])
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("root", [False, True])
@pytest.mark.parametrize("home", ["peft", "diffusers"])
def test_an_adapter_of_pefts_is_what_peft_merges(tmp_path, home, root, dora, scale):
    """Its own adapter_model.safetensors beside adapter_config.json, or diffusers' metadata with the same."""
    peft = library("peft", "a test")
    config = peft.LoraConfig(
        r=2, lora_alpha=5, target_modules=["proj", "conv"], use_dora=dora, use_rslora=root,
        alpha_pattern={"pro.": 3}, rank_pattern={"conv": 3},
    )  # fmt: skip
    model = peft.get_peft_model(Layers(), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    if home == "diffusers":
        state = {key.replace("base_model.model.", "unet."): t for key, t in load_file(file).items()}
        settings = {
            f"unet.{key}": value for key, value in config.to_dict().items() if key != "target_modules"
        }
        file = tmp_path / "pytorch_lora_weights.safetensors"
        save_file(state, file, {"lora_adapter_metadata": json.dumps(settings, default=str)})
    network = Layers()
    Lora(file, scale, ("unet",)).fuse(network, "unet")
    for module in model.modules():
        if hasattr(module, "scale_layer"):
            module.scale_layer(scale)
    merged = model.merge_and_unload()
    for layer in ("proj", "conv"):
        assert relative(getattr(network, layer).weight, getattr(merged, layer).weight) < 1e-6
        assert relative(Layers().get_parameter(f"{layer}.weight"), getattr(merged, layer).weight) > 1e-2


def test_an_adapter_of_scale_0_changes_nothing(tmp_path):
    """Though in both libraries a DoRA of scale 0 does."""
    down, up, length = torch.randn(2, 6), torch.randn(4, 2), torch.rand(4)
    for state in (
        {
            "unet.proj.lora_A.weight": down,
            "unet.proj.lora_B.weight": up,
            "unet.proj.lora_magnitude_vector": length,
        },
        {"lora_unet_proj.lora_down.weight": down, "lora_unet_proj.lora_up.weight": up}
        | {"lora_unet_proj.dora_scale": length[:, None]},
    ):
        assert torch.equal(fused(Layers(), state, tmp_path, 0.0).proj.weight, Layers().proj.weight)
        assert not torch.equal(fused(Layers(), state, tmp_path, 0.1).proj.weight, Layers().proj.weight)


def test_a_dora_changes_the_picture_of_a_model_and_of_its_words(sd, tmp_path):
    """Through the whole prior: a length of another size is another guess than plain LoRA's."""
    weights = load_file(sd / UNET_WEIGHTS)
    adapter, words = pairs(weights, MODULES, rank=2, seed=1), load_file(sd / "text_encoder/model.safetensors")
    state = in_kohyas_format("lora_unet", adapter, [2.0] * len(MODULES))
    spoken = pairs(words, TEXT_MODULES, rank=2, seed=2)
    state |= in_kohyas_format("lora_te_text_model", spoken, [2.0] * len(TEXT_MODULES))
    save_file(state, tmp_path / "plain.safetensors")
    for adapters, source, path in (
        (adapter, weights, UNET_WEIGHTS),
        (spoken, words, "text_encoder/model.safetensors"),
    ):
        prefix = "lora_unet" if path == UNET_WEIGHTS else "lora_te_text_model"
        for name, (down, up) in adapters.items():
            length = 0.5 + torch.rand(len(up), 1)
            state[f"{prefix}_{name}".replace(".", "_") + ".dora_scale"] = length
            source[f"{name}.weight"] = dora_by_hand(source[f"{name}.weight"], up @ down, length, 1.0)
    save_file(state, tmp_path / "dora.safetensors")
    plain, got = (
        guess(on_torch(sd, lora=[(tmp_path / f"{name}.safetensors", 1.0)])) for name in ("plain", "dora")
    )
    save_file(weights, sd / UNET_WEIGHTS, {"format": "pt"})
    save_file(words, sd / "text_encoder/model.safetensors", {"format": "pt"})
    assert relative(got, guess(on_torch(sd))) < 1e-5
    assert relative(plain, got) > 1e-3


# Names


def test_the_first_published_names_of_xls_modules_are_known(tmp_path):
    """kohya's scripts keep them for XL. Against diffusers' own reading of the same file."""
    diffusers = library("diffusers", "a test")
    sizes = {"block_out_channels": (16, 32, 32), "layers_per_block": 2}
    down = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
    unet = make_unet(
        xl=True, down_block_types=down, up_block_types=("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",), **sizes
    )
    shapes = {
        "input_blocks_0_0": (16, 4, 3, 3),
        "input_blocks_2_0_in_layers_2": (16, 16, 3, 3),
        "input_blocks_3_0_op": (16, 16, 3, 3),
        "input_blocks_4_0_skip_connection": (32, 16, 1, 1),
        "input_blocks_4_0_emb_layers_1": (32, 64),
        "input_blocks_7_1_proj_in": (32, 32),
        "input_blocks_8_1_transformer_blocks_0_attn1_to_q": (32, 32),
        "middle_block_0_out_layers_3": (32, 32, 3, 3),
        "middle_block_1_transformer_blocks_0_attn2_to_out_0": (32, 32),
        "middle_block_2_in_layers_2": (32, 32, 3, 3),
        "output_blocks_0_0_skip_connection": (32, 64, 1, 1),
        "output_blocks_2_1_transformer_blocks_0_ff_net_2": (32, 128),
        "output_blocks_2_2_conv": (32, 32, 3, 3),
        "output_blocks_5_1_proj_out": (32, 32),
        "output_blocks_8_0_out_layers_3": (16, 16, 3, 3),
        "time_embed_0": (64, 16),
        "label_emb_0_2": (64, 64),
        "out_2": (4, 16, 3, 3),
    }
    state = {}
    for name, (rows, columns, *kernel) in shapes.items():
        state[f"lora_unet_{name}.lora_down.weight"] = torch.randn(2, columns, *kernel)
        state[f"lora_unet_{name}.lora_up.weight"] = torch.randn(rows, 2, *[1] * len(kernel))
        state[f"lora_unet_{name}.alpha"] = torch.tensor(2.0)
    got = fused(unet, state, tmp_path, 0.5)
    pipeline = diffusers.StableDiffusionXLPipeline
    expected, before = copy.deepcopy(unet), unet.state_dict()
    converted, alphas = pipeline.lora_state_dict(tmp_path / "x.safetensors", unet_config=unet.config)
    pipeline.load_lora_into_unet(converted, alphas, expected)
    expected.fuse_lora(lora_scale=0.5)
    expected.unload_lora()
    for name, weight in expected.state_dict().items():
        assert torch.allclose(got.state_dict()[name], weight, atol=1e-5), name
    changed = [name for name, weight in got.state_dict().items() if not torch.equal(weight, before[name])]
    assert len(changed) == len(shapes)


@pytest.mark.parametrize(
    ("end", "part"),
    [
        ("attn1.processor.to_q_lora.{}.weight", "unet."),
        ("attn1.processor.to_q_lora.{}.weight", ""),  # before text encoders could be adapted
        ("attn1.to_q.lora.{}.weight", "unet."),
        ("attn1.to_out_lora.{}.weight", "unet."),
        ("self_attn.to_q_lora.{}.weight", "text_encoder.text_model."),
        ("self_attn.q_proj.lora_linear_layer.{}.weight", "text_encoder.text_model."),
    ],
)
def test_diffusers_former_names_are_known(sd, tmp_path, end, part):
    unet = not part.startswith("text")
    block = "down_blocks.0.attentions.0.transformer_blocks.0." if unet else "encoder.layers.0."
    path = sd / (UNET_WEIGHTS if unet else "text_encoder/model.safetensors")
    module = "self_attn.q_proj" if not unet else "attn1.to_out.0" if "out" in end else "attn1.to_q"
    adapter = pairs(load_file(path), [block + module], rank=2, seed=3)
    ((down, up),) = adapter.values()
    state = {part + block + end.format("down"): down, part + block + end.format("up"): up}
    save_file(state, tmp_path / "old.safetensors")
    got = guess(on_torch(sd, lora=[(tmp_path / "old.safetensors", 1.0)]))
    assert relative(guess(on_torch(sd)), got) > 1e-5
    add_by_hand(path, adapter, [1.0])
    assert relative(got, guess(on_torch(sd))) < 1e-5
