"""Small networks of the classes that people's models have, with random weights."""

import torch
from torch import nn

from ddpo3d_fast.engines import Network
from ddpo3d_fast.engines.libraries import library

LATENTS = 4  # channels


class Encoder(nn.Module):
    def __init__(self, codec):
        super().__init__()
        self.codec = codec

    def forward(self, pictures):
        made = self.codec.encode(pictures * 2 - 1)
        return made.latents if hasattr(made, "latents") else 0.18 * made.latent_dist.mean


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


def vision_tower():
    transformer = library("open_clip.transformer", "a test").VisionTransformer
    return transformer(image_size=16, patch_size=8, width=16, layers=1, heads=2, mlp_ratio=2, output_dim=8)


def scorer_vjp(tower, size):
    images = {"images": torch.rand(2, 3, size, size)}
    module = ScorerVjp(Scorer(tower, 8))
    return Network("scorer_vjp", module, images, ("scores", "grad_images"), {"images": (0,)}, True)


KINDS = {
    "encoder": lambda: encoder(autoencoder()),
    "encoder-tiny": lambda: encoder(tiny_autoencoder()),
    "encoder-vjp-tiny": lambda: encoder_vjp(tiny_autoencoder()),
    "scorer-vjp-vit": lambda: scorer_vjp(vision_tower(), 16),
}


def make(kind):
    torch.manual_seed(0)
    network = KINDS[kind]()
    network.module.eval().requires_grad_(False)
    return network


def inputs_of(network, batch):
    """Other inputs of a network, for another batch."""
    return {name: torch.randn(batch, *example.shape[1:]) for name, example in network.inputs.items()}
