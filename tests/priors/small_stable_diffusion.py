"""Small Stable Diffusion folders of random weights, made and saved by diffusers and transformers."""

import json
import shutil

import pytest
import torch

from ddpo3d_fast.engines.libraries import library
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.priors import PriorSettings
from ddpo3d_fast.priors.stable_diffusion import StableDiffusionPrior

CHARACTERS = [chr(code) for code in range(33, 127)]  # "!" is first, as in CLIP's vocabulary: id 0
MERGES = ["v i", "e w</w>", "vi ew</w>", "r e", "re d</w>"]
START, END = "<|startoftext|>", "<|endoftext|>"
VOCABULARY = [
    *CHARACTERS,
    *(character + "</w>" for character in CHARACTERS),
    *(merge.replace(" ", "") for merge in MERGES),
    START,
    END,
]
LENGTH = 77
FRONT, SIDE, BACK = [0.0, 0.0, 1.0], [1.5708, 0.0, 0.5], [3.1416, 0.2, 0.0]
UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def write_tokenizer(folder, pad):
    """A CLIP tokenizer of single characters and a few merges, in the four files of the published models."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad}
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(VOCABULARY)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(special | {"model_max_length": LENGTH, "tokenizer_class": "CLIPTokenizer"})
    )
    return folder


def randomize(module, scale=1.0):
    """Norms and biases away from their ones and zeros, so that each of them counts."""
    for name, parameter in module.named_parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * scale * torch.randn_like(parameter)
        elif "conv_out" in name:
            parameter.data = 0.2 * torch.randn_like(parameter)
    return module.eval().requires_grad_(False)


def make_text_encoder(pooled=False):
    transformers = library("transformers", "a test")
    config = transformers.CLIPTextConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        projection_dim=24,
        hidden_act="gelu" if pooled else "quick_gelu",
        bos_token_id=0,
        eos_token_id=2,  # as the published configs have it: not the tokenizer's
    )
    kind = transformers.CLIPTextModelWithProjection if pooled else transformers.CLIPTextModel
    return randomize(kind(config))


def make_vae(**changes):
    settings = {
        "block_out_channels": (8, 16, 16, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "norm_num_groups": 4,
        "layers_per_block": 1,
        "sample_size": 64,
        "scaling_factor": 0.18215,
    }
    return randomize(library("diffusers", "a test").AutoencoderKL(**settings | changes))


def make_tiny_vae():
    return randomize(
        library("diffusers", "a test").AutoencoderTiny(
            encoder_block_out_channels=(8,) * 4,
            decoder_block_out_channels=(8,) * 4,
            num_encoder_blocks=(1,) * 4,
            num_decoder_blocks=(1,) * 4,
        )
    )


def make_unet(xl=False, **changes):
    settings = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": 8,
        "norm_num_groups": 8,
        "cross_attention_dim": 32,
    }
    if xl:
        settings |= {
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": 64,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 24,
        }
    return randomize(library("diffusers", "a test").UNet2DConditionModel(**settings | changes))


def make_pipeline(kind):
    """A pipeline of the class and scheduler that `sd15`, `sd21` (v-prediction) or `sdxl` come with."""
    diffusers = library("diffusers", "a test")
    transformers = library("transformers", "a test")
    library("transformers.utils.logging", "a test").disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    tokenizer = transformers.CLIPTokenizer(
        {word: i for i, word in enumerate(VOCABULARY)}, [tuple(merge.split()) for merge in MERGES]
    )
    if kind == "sdxl":
        return diffusers.StableDiffusionXLPipeline(
            vae=make_vae(scaling_factor=0.13025, force_upcast=True),
            text_encoder=make_text_encoder(),
            text_encoder_2=make_text_encoder(pooled=True),
            tokenizer=tokenizer,
            tokenizer_2=tokenizer,
            unet=make_unet(xl=True),
            scheduler=diffusers.EulerDiscreteScheduler(**betas, steps_offset=1),
        )
    scheduler = (
        diffusers.DDIMScheduler(**betas, prediction_type="v_prediction", steps_offset=1, clip_sample=False)
        if kind == "sd21"
        else diffusers.PNDMScheduler(**betas, skip_prk_steps=True, steps_offset=1)
    )
    return diffusers.StableDiffusionPipeline(
        vae=make_vae(),
        text_encoder=make_text_encoder(),
        tokenizer=tokenizer,
        unet=make_unet(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def save_pipeline(kind, folder, **options):
    make_pipeline(kind).save_pretrained(folder, **options)
    # Published: SD 1.x pads with the end token; SD 2.x, and the second tokenizer of XL, with "!".
    write_tokenizer(folder / "tokenizer", "!" if kind == "sd21" else END)
    if kind == "sdxl":
        write_tokenizer(folder / "tokenizer_2", "!")
    return folder


def on_torch(folder, **options):
    return StableDiffusionPrior(folder, PriorSettings(str(folder), runtime="torch", **options))


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def relative(got, expected):
    return float(((got - expected).norm() / expected.norm()).detach())


def guess(prior, size=8, text="a red view", seed=0):
    """The two predictions of a prompt from the front."""
    conditions = prior.conditions(prior.prompt(text), torch.tensor([FRONT]))
    noisy = torch.randn(1, 4, size, size, generator=torch.Generator().manual_seed(seed))
    return torch.cat(prior.predict(noisy, torch.tensor([500]), conditions))


def one_line(folder, **options):
    with pytest.raises(InputError) as caught:
        on_torch(folder, **options).prompt("a red view")
    assert "\n" not in str(caught.value)
    return str(caught.value)
