"""Trains the embedded diffusion prior on the procedural objects; resumes; uses a GPU where there is one.

    python -m ddpo3d_fast.training.dataset --output runs/dataset
    python -m ddpo3d_fast.training.prior --dataset runs/dataset --output runs/prior
    python -m ddpo3d_fast.training.export --prior runs/prior

It predicts the clean picture (the data lie on a thin manifold, the noise does not) with a weight that stays
at high noise, where the prompt decides.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_unshuffle

from ddpo3d_fast.engines.libraries import library
from ddpo3d_fast.files import atomic_path
from ddpo3d_fast.priors.caption import CaptionEncoder
from ddpo3d_fast.training.batches import VOCABULARY, Batches
from ddpo3d_fast.training.dataset import load_shards

diffusers = library("diffusers", "training the prior")
attention = library("diffusers.models.attention_processor", "training the prior")

PATCH = 4  # the codec: pixels of a 4x4 patch become channels
TIMESTEPS = 1000
WARM_UP = 32_000  # samples
DECAY_FROM = 0.7  # of all samples: the learning rate is flat until here, then falls to zero
EMA_DECAY = 0.999


def make_unet() -> Any:  # a module; diffusers' classes have no types
    unet: Any = diffusers.UNet2DConditionModel(
        sample_size=16,
        in_channels=3 * PATCH**2 + CaptionEncoder.layout_channels,
        out_channels=3 * PATCH**2,
        layers_per_block=1,
        block_out_channels=(128, 128, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2D",  # one residual block: the parameters do more good elsewhere
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=CaptionEncoder.token_dim,
        attention_head_dim=4,  # diffusers' name for the number of heads
        norm_num_groups=16,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=CaptionEncoder.pooled_dim,
        resnet_time_scale_shift="scale_shift",
    )
    # Batched matrix products: several times faster to train on a CPU than the fused attention's backward.
    unet.set_attn_processor(attention.AttnProcessor())
    return unet


def make_scheduler() -> Any:
    return diffusers.DDPMScheduler(
        num_train_timesteps=TIMESTEPS,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        clip_sample=True,
    )


class Denoiser(nn.Module):
    """The UNet with the layout beside the noisy latents; positional tensors in, one tensor out."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = make_unet()

    def forward(
        self, noisy: Tensor, timesteps: Tensor, tokens: Tensor, pooled: Tensor, layout: Tensor
    ) -> Tensor:
        """The clean latents [B, 48, 16, 16] of noisy ones.

        noisy [B, 48, 16, 16], timesteps int64 [B], tokens [B, 6, 128], pooled [B, 256] and layout
        [B, 16, 16, 16] of the caption encoder.
        """
        placed = torch.cat([noisy, layout.to(noisy)], 1)
        return self.unet(placed, timesteps, encoder_hidden_states=tokens, class_labels=pooled).sample


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.denoiser = Denoiser()
        self.text_encoder = CaptionEncoder(VOCABULARY)

    def forward(
        self, noisy: Tensor, timesteps: Tensor, words: Tensor, cameras: Tensor, known: Tensor
    ) -> Tensor:
        return self.denoiser(noisy, timesteps, **self.text_encoder(words, cameras, known))


def learning_rate(samples: int, total: int, peak: float) -> float:
    """Warm-up, plateau, linear decay to zero: a run can be lengthened by resuming before the decay."""
    decay = (total - samples) / (total * (1 - DECAY_FROM))
    return peak * max(0.0, min(1.0, samples / WARM_UP, decay))


def train(arguments: argparse.Namespace) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(arguments.seed)
    model = Model().to(device)
    parameters = list(model.parameters())
    average = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=0.0, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    alphas_cumprod = make_scheduler().alphas_cumprod.to(device)
    arguments.output.mkdir(parents=True, exist_ok=True)
    checkpoint, samples = arguments.output / "checkpoint.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average, samples = state["average"], state["samples"]
        print(f"resuming at {samples} samples", flush=True)
    batches = Batches(*load_shards(arguments.dataset), seed=arguments.seed + samples, device=device)
    print(
        f"{len(batches.masks)} views, {sum(p.numel() for p in parameters) / 1e6:.2f} M parameters, {device}",
        flush=True,
    )

    def save() -> None:
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "average": average,
            "samples": samples,
        }
        with atomic_path(checkpoint) as beside:
            torch.save(state, beside)

    forward = torch.compile(model) if arguments.compile else model
    started, first, running, step = time.time(), samples, 0.0, 0
    while samples < arguments.samples:
        batch = batches.draw(arguments.batch)
        clean = pixel_unshuffle(batch.pictures * 2 - 1, PATCH)
        # Density rising with the timestep: what the prompt decides is decided at high noise.
        chance = torch.rand(len(clean), generator=batches.generator, device=device)
        timesteps = (TIMESTEPS * chance.sqrt()).long().clamp_max(TIMESTEPS - 1)
        noise = torch.randn(clean.shape, generator=batches.generator, device=device)
        level = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        noisy = level.sqrt() * clean + (1 - level).sqrt() * noise
        with torch.autocast(device.type, torch.bfloat16):
            guess = forward(noisy, timesteps, batch.words, batch.cameras, batch.known)
        weight = (1 / (1 - level)).clamp(1, 5)
        loss = (weight * (guess.float() - clean) ** 2).mean()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(samples, arguments.samples, arguments.learning_rate)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        samples, step = samples + len(clean), step + 1
        decay = min(EMA_DECAY, (1 + samples / len(clean)) / (10 + samples / len(clean)))
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - decay)
        running += float(loss.detach())
        if step % 200 == 0:
            rate = (samples - first) / (time.time() - started)
            print(f"{samples} samples  loss {running / 200:.4f}  {rate:.1f} samples/s", flush=True)
            running = 0.0
            save()
    save()


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the embedded prior.")
    parser.add_argument("--dataset", type=Path, default=Path("runs/dataset"))
    parser.add_argument("--output", type=Path, default=Path("runs/prior"))
    parser.add_argument("--samples", type=int, default=600_000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--compile", action="store_true", help="fuse with torch.compile (needs a compiler)")
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
