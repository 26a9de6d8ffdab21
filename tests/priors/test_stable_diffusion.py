"""Stable Diffusion folders: every number is diffusers' own, and every wrong folder is one line."""

import copy
import gc
import pickle
import shutil
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_stable_diffusion import (
    BACK,
    FRONT,
    SIDE,
    UNET_WEIGHTS,
    edit,
    guess,
    make_pipeline,
    make_tiny_vae,
    make_unet,
    make_vae,
    on_torch,
    one_line,
    relative,
    save_pipeline,
)
from test_generate_device import OnDevice

from ddpo3d_fast.engines.libraries import library
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.priors import PriorSettings, find, load_prior
from ddpo3d_fast.priors import stable_diffusion as room
from ddpo3d_fast.priors.base import Call
from ddpo3d_fast.priors.embedded import FOLDER, EmbeddedPrior
from ddpo3d_fast.priors.stable_diffusion import Prompt, StableDiffusionPrior

KINDS = ("sd15", "sd21", "sdxl")


@pytest.fixture(scope="module")
def priors(folders):
    return {kind: on_torch(folders[kind]) for kind in KINDS}


@pytest.fixture(scope="module")
def pipelines(folders):
    """diffusers' own pipelines of the same folders."""
    diffusers = library("diffusers", "a test")
    diffusers.utils.logging.disable_progress_bar()
    library("transformers.utils.logging", "a test").disable_progress_bar()
    names = dict.fromkeys(KINDS, "StableDiffusionPipeline") | {"sdxl": "StableDiffusionXLPipeline"}
    return {kind: getattr(diffusers, name).from_pretrained(folders[kind]) for kind, name in names.items()}


def encode(pipeline, text, negative=None):
    """What diffusers' pipeline gives its UNet for one text: for it, and for the negative one."""
    with torch.no_grad():
        if hasattr(pipeline, "text_encoder_2"):
            tokens, away, pooled, pooled_away = pipeline.encode_prompt(
                text, negative_prompt=negative, device="cpu"
            )
            return {"tokens": tokens, "pooled": pooled}, {"tokens": away, "pooled": pooled_away}
        tokens, away = pipeline.encode_prompt(text, "cpu", 1, True, negative)
    return {"tokens": tokens}, {"tokens": away}


# Text


@pytest.mark.parametrize("negative", ["", "ugly"])
@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_are_those_of_diffusers_pipeline(priors, pipelines, kind, negative):
    prompt = priors[kind].prompt("a red view", negative)
    for i, view in enumerate(("front", "side", "back", "overhead")):
        wanted, away = encode(pipelines[kind], f"a red view, {view} view", negative or None)
        for name in wanted:
            assert relative(prompt.views[name][i], wanted[name][0]) < 1e-5
            assert torch.allclose(prompt.others[name][0], away[name][0], atol=1e-5)
    assert prompt.views.keys() == wanted.keys() == prompt.others.keys()


def test_the_published_padding_counts(priors):
    """SD 2.x and XL's second tokenizer pad with "!", SD 1.x with the end token: other embeddings."""
    sd15, sd21 = (priors[kind].prompt("a red view").views["tokens"] for kind in ("sd15", "sd21"))
    assert not torch.allclose(sd15[:, 70:], sd21[:, 70:], atol=1e-2)


def test_xls_empty_prompt_is_zeros_only_where_the_folder_says_so(priors, xl, pipelines):
    assert not bool(priors["sdxl"].prompt("a red view").others["pooled"].any())
    edit(xl / "model_index.json", force_zeros_for_empty_prompt=False)
    others = on_torch(xl).prompt("a red view").others
    wanted, _ = encode(pipelines["sdxl"], "")
    for name, tensor in wanted.items():
        assert relative(others[name], tensor) < 1e-5


def test_the_negative_prompt_has_no_view(priors):
    prior = priors["sd15"]
    away = prior.conditions(prior.prompt("a red view", "ugly"), torch.tensor([FRONT, BACK]))["tokens"][1]
    assert torch.equal(away[0], away[1])


def test_cameras_choose_and_mix_the_embeddings(priors, folders):
    prior = priors["sdxl"]
    prompt = prior.prompt("a red view")
    cameras = torch.tensor([FRONT, [0.7854, 0.0, 1.0], BACK, [0.7, 1.3, 0.0]])
    front, side, back, overhead = prompt.views["pooled"]
    seen = prior.conditions(prompt, cameras)
    assert seen["tokens"].shape == (2, 4, 77, 64)
    assert torch.allclose(
        seen["pooled"][0], torch.stack([front, (front + side) / 2, back, overhead]), atol=1e-4
    )
    hard = on_torch(folders["sdxl"], interpolate_views=False)
    cameras = torch.tensor([[0.78, 0.0, 1.0], [0.79, 0.0, 1.0]])
    assert torch.equal(hard.conditions(prompt, cameras)["pooled"][0], torch.stack([front, side]))


def test_three_conditions_are_the_prompt_nothing_and_the_negative_prompt(priors):
    prior, cameras = priors["sd21"], torch.tensor([FRONT, SIDE])
    three = prior.conditions(prior.prompt("a red view", "ugly", three=True), cameras)["tokens"]
    against_nothing = prior.conditions(prior.prompt("a red view"), cameras)["tokens"]
    against_negative = prior.conditions(prior.prompt("a red view", "ugly"), cameras)["tokens"]
    assert torch.allclose(three, torch.cat([against_nothing, against_negative[1:]]), atol=1e-5)
    noisy, timesteps = torch.randn(4, 4, 8, 8), torch.tensor([10, 200, 500, 900])
    predictions = prior.predict(noisy, timesteps, {"tokens": three})
    wanted, nothing = prior.predict(noisy, timesteps, {"tokens": against_nothing})
    _, away = prior.predict(noisy, timesteps, {"tokens": against_negative})
    for got, expected in zip(predictions, (wanted, nothing, away), strict=True):
        assert relative(got, expected) < 1e-5
    with pytest.raises(InputError, match="--negative-prompt: expected what to stay away from"):
        prior.prompt("a red view", three=True)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_text_encoders_are_gone_once_the_prompt_is_encoded(priors, kind, monkeypatch):
    transformers, alive = library("transformers", "a test"), []
    for name in ("CLIPTextModel", "CLIPTextModelWithProjection"):
        loader = getattr(transformers, name)

        def remember(*args, original=loader.from_pretrained, **options):
            loaded = original(*args, **options)
            alive.append(weakref.ref(loaded[0]))
            return loaded

        monkeypatch.setattr(loader, "from_pretrained", remember)
    gc.disable()  # gone at once, so that their memory is free for what comes
    try:
        prompt = priors[kind].prompt("a red view")
    finally:
        gc.enable()
    assert len(alive) == {"sd15": 1, "sdxl": 2}[kind]
    assert [reference() for reference in alive] == [None] * len(alive)
    assert not prompt.views["tokens"].requires_grad


def test_a_prompt_that_would_lose_its_view_is_refused(priors):
    words = "red " * 80
    with pytest.raises(
        InputError, match=r"expected at most 77 tokens with the view's words, got \d+: shorten"
    ):
        priors["sd15"].prompt(words)
    with pytest.raises(InputError, match="--negative-prompt: expected at most"):
        priors["sdxl"].prompt("a red view", words)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_a_prompt_that_is_too_long_is_told_before_weights_are_read(folders, monkeypatch, kind):
    longest = "r " * 75  # 77 tokens with start and end, and without a view's words
    prior = on_torch(folders[kind], prompts=("a red view", longest))
    prior.prompt("a red view", longest)
    monkeypatch.setattr(room, "load_network_part", lambda *_: pytest.fail("read weights"))
    for prompts, got in (((longest, ""), 84), (("a red view", longest + "r"), 78)):
        with pytest.raises(InputError, match=rf"at most 77 tokens with the view's words, got {got}: shorten"):
            on_torch(folders[kind], prompts=prompts)


# The UNet


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 12)])
def test_predictions_are_those_of_diffusers_unet(priors, pipelines, kind, height, width):
    """Two views of three actions, at the trained size and at another, which XL is told in pixels."""
    prior, pipeline = priors[kind], pipelines[kind]
    noisy = torch.randn(6, 4, height, width, generator=torch.Generator().manual_seed(1))
    timesteps = torch.tensor([0, 20, 300, 500, 980, 999])
    conditions = prior.conditions(prior.prompt("a red view", "ugly"), torch.tensor([FRONT, SIDE]))
    got = prior.predict(noisy, timesteps, conditions)
    (front, away), (side, _) = (
        encode(pipeline, f"a red view, {view} view", "ugly") for view in ("front", "side")
    )
    for prediction, texts in zip(got, ([front] * 3 + [side] * 3, [away] * 6), strict=True):
        added = {}
        if kind == "sdxl":
            size = (8 * height, 8 * width)
            ids = pipeline._get_add_time_ids(size, (0, 0), size, torch.float32, 24)
            added = {
                "text_embeds": torch.cat([text["pooled"] for text in texts]),
                "time_ids": ids.repeat(6, 1),
            }
        with torch.no_grad():
            expected = pipeline.unet(
                noisy,
                timesteps,
                encoder_hidden_states=torch.cat([text["tokens"] for text in texts]),
                added_cond_kwargs=added,
            ).sample
        assert relative(prediction, expected) < 1e-5


def test_xl_is_told_another_size_at_another_resolution(priors, monkeypatch):
    prior, told = priors["sdxl"], []
    monkeypatch.setattr(
        prior, "_unet", lambda **inputs: told.append(inputs["time_ids"]) or {"prediction": inputs["noisy"]}
    )
    conditions = prior.conditions(prior.prompt("a red view"), torch.tensor([FRONT]))
    prior.predict(torch.randn(2, 4, 32, 48), torch.tensor([1, 2]), conditions)
    assert told[0].tolist() == [[256, 384, 0, 0, 256, 384]] * 4


def test_latents_follow_the_size_of_the_pictures(priors):
    prior = priors["sd15"]
    assert prior.picture_size == 64
    latents, pull_back = prior.codec.encode_with_vjp(torch.rand(2, 3, 32, 32))
    conditions = prior.conditions(prior.prompt("a red view"), torch.tensor([FRONT, BACK]))
    wanted, away = prior.predict(latents, torch.tensor([300, 400]), conditions)
    assert wanted.shape == away.shape == (2, 4, 4, 4)
    assert pull_back(wanted - away).shape == (2, 3, 32, 32)


@pytest.mark.parametrize("interpolate", [True, False])
def test_nothing_is_read_back_from_the_device_nor_copied_to_it(priors, interpolate):
    """On torch's meta device there is nothing to be read, and every attempt raises."""
    prompt = priors["sdxl"].prompt("a red view", "ugly")
    prior = copy.copy(priors["sdxl"])
    prior.device, prior.interpolate_views = torch.device("meta"), interpolate
    prior._unet = lambda **inputs: {"prediction": inputs["noisy"]}
    away = Prompt(*({k: v.to("meta") for k, v in part.items()} for part in (prompt.views, prompt.others)))
    cameras = torch.tensor([FRONT, SIDE]).to("meta")
    noisy, timesteps = (
        torch.empty(4, 4, 8, 8, device="meta"),
        torch.empty(4, dtype=torch.int64, device="meta"),
    )
    with OnDevice():
        conditions = prior.conditions(away, cameras)
        assert prior.predict(noisy, timesteps, conditions)[1].shape == (4, 4, 8, 8)
    assert conditions["tokens"].shape[:3] == (2, 2, 77)


@pytest.mark.parametrize("kind", KINDS)
def test_engines_are_told_what_to_be_built_for(folders, monkeypatch, kind):
    """Examples that run, the axes that change, and the shapes of the calls to come."""
    networks, load = [], room.load_network
    monkeypatch.setattr(room, "load_network", lambda n, *args: networks.append(n) or load(n, *args))
    calls = [Call(views=2, actions=3, scale=0.5), Call(views=1, actions=1, scale=1.0, groups=3)]
    prior = on_torch(folders[kind], calls=calls)
    (network,) = networks
    with torch.no_grad():
        assert network.module(*network.inputs.values()).shape == network.inputs["noisy"].shape
    conditions = prior.conditions(prior.prompt("a red view"), torch.tensor([FRONT, SIDE]))
    called = []
    monkeypatch.setattr(
        prior, "_unet", lambda **inputs: called.append(inputs) or {"prediction": inputs["noisy"]}
    )
    prior.predict(torch.randn(6, 4, 4, 4), torch.arange(6), conditions)
    assert {name: tuple(tensor.shape) for name, tensor in called[0].items()} == network.shapes[0]
    assert {name: tensor.dtype for name, tensor in called[0].items()} == {
        name: tensor.dtype for name, tensor in network.inputs.items()
    }
    assert network.shapes[1]["noisy"] == (3, 4, 8, 8)
    for name, tensor in network.inputs.items():
        assert network.dynamic[name] == ((0, 2, 3) if tensor.ndim == 4 else (0,))


def test_half_precision_computes_the_same_to_its_digits(priors, folders):
    half = on_torch(folders["sdxl"], dtype=torch.float16)
    assert half.runtime.endswith("float16")
    assert half.codec.dtype == torch.float32  # XL's autoencoder overflows in fp16
    got = guess(half)
    assert got.dtype == torch.float32
    assert 1e-6 < relative(got, guess(priors["sdxl"])) < 1e-2


@pytest.mark.parametrize("kind", ["sd21", "sdxl"])
def test_on_onnx_runtime_every_number_is_torchs(folders, tmp_path, kind):
    """The exported UNet, encoder, VJP and decoder, at two batches and two resolutions."""
    folder, codec = folders[kind], None
    if kind == "sdxl":  # an export takes seconds for every block: XL's words stay in the middle alone
        folder, codec = shutil.copytree(folder, tmp_path / "sdxl"), tmp_path / "tiny"
        torch.manual_seed(1)
        plain = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
        make_unet(xl=True, **plain).save_pretrained(folder / "unet")
        make_tiny_vae().save_pretrained(codec)
    runtimes = ("onnxruntime", "torch")
    exported, on_its_own = (
        StableDiffusionPrior(folder, PriorSettings(str(folder), runtime=name, codec=codec))
        for name in runtimes
    )
    prompt = on_its_own.prompt("a red view")
    for views, actions, height, width in ((1, 1, 8, 8), (2, 2, 4, 6)):
        conditions = on_its_own.conditions(prompt, torch.tensor([FRONT, SIDE][:views]))
        noisy, timesteps = (
            torch.randn(views * actions, 4, height, width),
            torch.arange(5, 5 + views * actions),
        )
        pictures, grad = torch.rand(views, 3, 8 * height, 8 * width), torch.randn(views, 4, height, width)
        got, expected = [], []
        for prior, made in ((exported, got), (on_its_own, expected)):
            latents, pull_back = prior.codec.encode_with_vjp(pictures)
            predictions = prior.predict(noisy, timesteps, conditions)
            made += [*predictions, prior.codec.encode(pictures), latents, prior.codec.decode(noisy)]
            made.append(pull_back(grad))
        errors = [relative(*pair) for pair in zip(got, expected, strict=True)]
        assert max(errors[:-1]) <= 1e-5
        assert errors[-1] <= 1e-4
    runs = {"unet": exported.runtime} | exported.codec.runtimes
    assert runs.keys() == {"unet", "encoder", "encoder_vjp", "decoder"}
    assert all(name.startswith("ONNX Runtime ") for name in runs.values())


# Formats


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"safe_serialization": False}, 1e-6),
        ({"max_shard_size": "100KB"}, 1e-6),
        ({"variant": "fp16"}, 1e-6),
        ({"variant": "fp16", "max_shard_size": "100KB", "safe_serialization": False}, 1e-6),
    ],
    ids=["bin", "sharded", "fp16", "fp16 in bin shards"],
)
@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_every_format_gives_the_same_numbers(priors, tmp_path, kind, options, tolerance):
    folder = save_pipeline(kind, tmp_path / "model", **options)
    if not options.get("safe_serialization", True):  # transformers saves no other format any more
        for part in folder.glob("text_encoder*"):
            for path in part.glob("model*.safetensors"):
                name = path.name.replace("model", "pytorch_model", 1).replace(".safetensors", ".bin")
                torch.save(load_file(path), part / name)
                path.unlink()
            for path in part.glob("model*.json"):
                index = path.read_text().replace("model", "pytorch_model").replace(".safetensors", ".bin")
                name = path.name.replace("model", "pytorch_model", 1).replace(".safetensors", ".bin")
                (part / name).write_text(index)
                path.unlink()
        assert not list(folder.rglob("*.safetensors"))
    prior = on_torch(folder)
    assert relative(guess(prior), guess(priors[kind])) < tolerance
    pictures = torch.rand(1, 3, 32, 32)
    assert relative(prior.codec.encode(pictures), priors[kind].codec.encode(pictures)) < tolerance


def test_half_weights_are_read_where_half_is_wanted(sd):
    """Both files are there, as published; other numbers in the half one show which was read."""
    weights = load_file(sd / UNET_WEIGHTS)
    half = {
        name: (2 * tensor if name == "conv_out.weight" else tensor).half() for name, tensor in weights.items()
    }
    save_file(half, sd / "unet/diffusion_pytorch_model.fp16.safetensors", {"format": "pt"})
    full = guess(on_torch(sd))
    assert relative(guess(on_torch(sd, dtype=torch.bfloat16)), full) > 0.5
    (sd / UNET_WEIGHTS).unlink()
    assert relative(guess(on_torch(sd)), full) > 0.5  # rather than nothing


def test_the_names_of_the_first_published_weights_are_known(priors, sd):
    """CLIP's with `text_model.` and position_ids, the autoencoder's attention as `query` and `proj_attn`."""
    path = sd / "text_encoder/model.safetensors"
    weights = {f"text_model.{name.removeprefix('text_model.')}": w for name, w in load_file(path).items()}
    save_file(
        weights | {"text_model.embeddings.position_ids": torch.arange(77)[None]}, path, {"format": "pt"}
    )
    path = sd / "vae/diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(path)
    for new, name in old.items():
        weights = {key.replace(f".{new}.", f".{name}."): tensor for key, tensor in weights.items()}
    assert any(".proj_attn." in key for key in weights)
    save_file(weights, path, {"format": "pt"})
    prior, pictures = on_torch(sd), torch.rand(1, 3, 64, 64)
    assert relative(guess(prior), guess(priors["sd15"])) < 1e-6
    assert relative(prior.codec.encode(pictures), priors["sd15"].codec.encode(pictures)) < 1e-6


class Malice:
    """Unpickled, it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "pytorch_model"),
    ],
)
@pytest.mark.parametrize("save", [torch.save, lambda data, path: path.write_bytes(pickle.dumps(data, 2))])
def test_no_code_in_pickled_weights_runs(sd, tmp_path, part, name, save):
    for path in (sd / part).glob("*.safetensors"):
        path.unlink()
    marker = tmp_path / "ran"
    save({"weight": Malice(marker)}, sd / part / f"{name}.bin")
    assert str(sd / part) in one_line(sd)
    assert not marker.exists()


# Folders that are wrong


@pytest.mark.parametrize(
    "part",
    [
        "model_index.json",
        "unet/config.json",
        UNET_WEIGHTS,
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "text_encoder_2/model.safetensors",
        "tokenizer/vocab.json",
        "tokenizer_2/vocab.json",
        "scheduler/scheduler_config.json",
    ],
)
@pytest.mark.parametrize("damage", [None, b"", b"{", b"\x00 short", b"[]"])
def test_a_missing_or_damaged_part_is_one_line_that_names_it(xl, part, damage):
    if damage is None:
        (xl / part).unlink()
    else:
        (xl / part).write_bytes(damage)
    assert str(xl / part.rpartition("/")[0]) in one_line(xl)


@pytest.mark.parametrize("part", [UNET_WEIGHTS, "text_encoder/model.safetensors"])
def test_weights_that_lack_some_are_refused(sd, part):
    weights = load_file(sd / part)
    lost = sorted(name for name in weights if "norm1.weight" in name)
    save_file({name: w for name, w in weights.items() if name not in lost}, sd / part, {"format": "pt"})
    line = one_line(sd)
    assert f"{len(lost)} weights are missing" in line
    assert str((sd / part).parent) in line


def test_weights_of_another_shape_are_refused(sd):
    edit(sd / "unet/config.json", cross_attention_dim=48)
    assert "is no UNet2DConditionModel that diffusers can load" in one_line(sd)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"in_channels": 9}, "in_channels and out_channels 4"),  # inpainting
        ({"cross_attention_dim": 48}, "expected cross_attention_dim 32, as the text encoder has, got 48"),
        ({"class_embed_type": "timestep"}, "got one that wants more"),
        ({"xl": True, "projection_class_embeddings_input_dim": 5 * 8 + 24}, "text_encoder_2"),
    ],
)
def test_a_unet_that_wants_something_else_is_one_line(sd, changes, words):
    make_unet(**changes).save_pretrained(sd / "unet")
    assert words in one_line(sd)


def test_a_refiner_with_five_numbers_is_one_line(xl):
    make_unet(xl=True, projection_class_embeddings_input_dim=5 * 8 + 24).save_pretrained(xl / "unet")
    assert "expected projection_class_embeddings_input_dim for six numbers" in one_line(xl)


# Another codec


def test_a_tiny_autoencoder_takes_the_place_of_the_folders(folders, tmp_path):
    tiny = make_tiny_vae()
    tiny.save_pretrained(tmp_path)
    prior, pictures = on_torch(folders["sd15"], codec=tmp_path), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert relative(prior.codec.encode(pictures), tiny.encode(2 * pictures - 1).latents) < 1e-5
    assert prior.picture_size == 64


def test_a_pipelines_folder_is_no_codec_but_has_one(sd, folders):
    assert one_line(sd, codec=folders["sd21"]) == (
        f"--codec: expected an autoencoder's folder, got a pipeline's; its own is {folders['sd21'] / 'vae'}"
    )


def test_a_codec_of_other_channels_is_one_line(sd, tmp_path):
    make_vae(latent_channels=16).save_pretrained(tmp_path / "other")
    line = one_line(sd, codec=tmp_path / "other")
    assert f"expected in_channels and out_channels 16, as {tmp_path / 'other'} has them, got 4 and 4" in line
    assert "--codec: expected a folder, one of taesd, taesdxl, or" in one_line(sd, codec="tesd")


# By name


def test_load_prior_tells_the_kinds_apart(folders, tmp_path):
    assert isinstance(load_prior(PriorSettings(str(folders["sdxl"]), runtime="torch")), StableDiffusionPrior)
    assert isinstance(load_prior(PriorSettings("embedded")), EmbeddedPrior)
    assert isinstance(load_prior(PriorSettings(str(FOLDER))), EmbeddedPrior)
    with pytest.raises(InputError, match="--codec: expected none with the embedded prior, got 'taesd'"):
        load_prior(PriorSettings("embedded", codec="taesd"))
    with pytest.raises(InputError, match=r"model_index\.json"):
        load_prior(PriorSettings(str(tmp_path)))


def test_a_wrong_runtime_is_told_before_a_model_is_looked_for(monkeypatch):
    monkeypatch.setattr(find, "find_model", lambda *_: pytest.fail("looked for a model"))
    with pytest.raises(InputError, match=r"^--runtime: .*, got tensorrt: runs on cuda alone, not on cpu$"):
        load_prior(PriorSettings("sd21", runtime="tensorrt"))


def test_load_prior_hands_everything_on(folders, tmp_path):
    make_tiny_vae().save_pretrained(tmp_path)
    prior = load_prior(
        PriorSettings(
            str(folders["sd21"]), "cpu", torch.bfloat16, "torch", codec=tmp_path, interpolate_views=False
        )
    )
    assert prior.runtime.endswith("bfloat16")
    assert prior.codec.latent_channels == 4
    weights = prior.conditions(prior.prompt("a red view"), torch.tensor([[0.5, 0.0, 1.0]]))["tokens"][0, 0]
    assert torch.equal(weights, prior.prompt("a red view").views["tokens"][0])


def test_the_pipelines_of_the_tests_have_the_published_layout(folders):
    names = {path.relative_to(folders["sdxl"]).as_posix() for path in folders["sdxl"].rglob("*.*")}
    assert {"tokenizer_2/merges.txt", "text_encoder_2/model.safetensors", UNET_WEIGHTS} <= names
    assert type(make_pipeline("sdxl").scheduler).__name__ == "EulerDiscreteScheduler"
