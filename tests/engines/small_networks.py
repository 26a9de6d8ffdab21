"""Small networks of the classes that people's models have, with random weights."""

import torch
from torch import nn

from ddpo3d_fast.engines import Network
from ddpo3d_fast.engines.libraries import library
from ddpo3d_fast.rewards.embedded import make_tower

LATENTS, TOKENS = 4, 7  # channels; words of a prompt


class Unet(nn.Module):
    def __init__(self, unet):
        super().__init__()
        self.unet = unet

    def forward(self, noisy, timesteps, tokens, pooled=None, time_ids=None):
        added = None if pooled is None else {"text_embeds": pooled, "time_ids": time_ids}
        return self.unet(noisy, timesteps, encoder_hidden_states=tokens, added_cond_kwargs=added).sample


class Encoder(nn.Module):
    def __init__(self, codec):
        super().__init__()
        self.codec = codec

    def forward(self, pictures):
        made = self.codec.encode(pictures * 2 - 1)
        return made.latents if hasattr(made, "latents") else 0.18 * made.latent_dist.mean


class Decoder(nn.Module):
    def __init__(self, codec):
        super().__init__()
        self.codec = codec

    def forward(self, latents):
        return self.codec.decode(latents).sample


class Scorer(nn.Module):
    def __init__(self, tower, width):
        super().__init__()
        self.tower, self.head = tower, nn.Linear(width, 1)
        nn.init.constant_(self.head.bias, 5.0)  # scores of pictures lie around 5, as an aesthetic predictor's

    def forward(self, images):
        return self.head(nn.functional.normalize(self.tower(images), dim=-1))[:, 0]


class EncoderVjp(nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, pictures, grad):
        leaf = pictures.detach().requires_grad_()
        return torch.autograd.grad(self.encoder(leaf), leaf, grad)[0]


class ScorerVjp(nn.Module):
    def __init__(self, scorer):
        super().__init__()
        self.scorer = scorer

    def forward(self, images):
        leaf = images.detach().requires_grad_()
        scores = self.scorer(leaf)
        return scores.detach(), torch.autograd.grad(scores.sum(), leaf)[0]


def unet_inputs(batch, height, width, large):
    made = {
        "noisy": torch.randn(batch, LATENTS, height, width),
        "timesteps": torch.randint(1000, (batch,)),
        "tokens": torch.randn(batch, TOKENS, 16),
    }
    sizes = torch.tensor([8.0 * height, 8.0 * width, 0, 0, 512, 512]).repeat(batch, 1)
    return made | ({"pooled": torch.randn(batch, 16), "time_ids": sizes} if large else {})


def unet(large):
    """A UNet of Stable Diffusion's kind, or of XL's: conditioned on sizes and pooled text, too."""
    kinds = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 16 + 6 * 8,
        "transformer_layers_per_block": (1, 2),
        "use_linear_projection": True,
    }
    # An export takes seconds for every block, so there are words in the middle alone.
    made = library("diffusers", "a test").UNet2DConditionModel(
        sample_size=8,
        in_channels=LATENTS,
        out_channels=LATENTS,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=8,
        norm_num_groups=8,
        **(kinds if large else {}),
    )
    inputs = unet_inputs(2, 8, 8, large)
    dynamic = {name: (0, 2, 3) if name == "noisy" else (0,) for name in inputs}
    return Network("unet", Unet(made), inputs, ("prediction",), dynamic)


def autoencoder():
    return library("diffusers", "a test").AutoencoderKL(
        latent_channels=LATENTS,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    )


def tiny_autoencoder():
    return library("diffusers", "a test").AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )


def encoder(codec):
    pictures = {"pictures": torch.rand(2, 3, 16, 16)}
    return Network("encoder", Encoder(codec), pictures, ("latents",), {"pictures": (0, 2, 3)})


def encoder_vjp(codec):
    inputs = {"pictures": torch.rand(2, 3, 16, 16), "grad": torch.randn(2, LATENTS, 8, 8)}
    dynamic = dict.fromkeys(inputs, (0, 2, 3))
    return Network("encoder_vjp", EncoderVjp(Encoder(codec)), inputs, ("grad_pictures",), dynamic, True)


def decoder(codec):
    latents = {"latents": torch.randn(2, LATENTS, 8, 8)}
    return Network("decoder", Decoder(codec), latents, ("pictures",), {"latents": (0, 2, 3)})


def vision_tower():
    transformer = library("open_clip.transformer", "a test").VisionTransformer
    return transformer(image_size=16, patch_size=8, width=16, layers=1, heads=2, mlp_ratio=2, output_dim=8)


def convolution_tower():
    return nn.Sequential(make_tower((8, 8), (1, 1), normalize=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def scorer(tower, size):
    images = {"images": torch.rand(2, 3, size, size)}
    return Network("scorer", Scorer(tower, 8), images, ("scores",), {"images": (0,)})


def scorer_vjp(tower, size):
    images = {"images": torch.rand(2, 3, size, size)}
    module = ScorerVjp(Scorer(tower, 8))
    return Network("scorer_vjp", module, images, ("scores", "grad_images"), {"images": (0,)}, True)


KINDS = {
    "unet": lambda: unet(False),
    "unet-xl": lambda: unet(True),
    "encoder": lambda: encoder(autoencoder()),
    "encoder-tiny": lambda: encoder(tiny_autoencoder()),
    "decoder": lambda: decoder(autoencoder()),
    "decoder-tiny": lambda: decoder(tiny_autoencoder()),
    "scorer-vit": lambda: scorer(vision_tower(), 16),
    "scorer-convolutions": lambda: scorer(convolution_tower(), 16),
    "encoder-vjp": lambda: encoder_vjp(autoencoder()),
    "encoder-vjp-tiny": lambda: encoder_vjp(tiny_autoencoder()),
    "scorer-vjp-vit": lambda: scorer_vjp(vision_tower(), 16),
    "scorer-vjp-convolutions": lambda: scorer_vjp(convolution_tower(), 16),
}


def make(kind):
    torch.manual_seed(0)
    network = KINDS[kind]()
    network.module.eval().requires_grad_(False)
    return network


def inputs_of(network, batch, height, width):
    """Other inputs of a network: batch and, where it takes any, pictures or latents of another size.

    `height` and `width` are in units of those of the examples.
    """
    made = {}
    for name, example in network.inputs.items():
        shape = [batch, *example.shape[1:]]
        if example.ndim == 4 and 2 in network.dynamic[name]:
            shape[2:] = int(height * shape[2]), int(width * shape[3])
        random = torch.randn(shape) if example.is_floating_point() else torch.randint(1000, shape)
        made[name] = random
    return made
