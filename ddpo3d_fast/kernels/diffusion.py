"""The fused diffusion arithmetic as torch functions: noising, denoising with an action, the score residual.

Conventions. An array of B = V * K items belongs to V views with K actions each; action k of view v is item
v * K + k. Latents may have any trailing shape. Inputs are float32, float16 or bfloat16; arithmetic and
outputs are float32. Noise is never stored: element i of an array of noise is a function of (seed, stream, i)
alone, so it is made again where it is needed. Outputs carry no autograd graph. Results are the same to the
bit for any number of threads.

All tensors of a call lie on one device, and the result on it too. A CPU and a GPU draw the same noise to
1e-6. The values of tensors are checked on the CPU only: on a GPU that would be a wait, and an abar out of
range gives what the formulas give, NaN or infinity.

A captured CUDA graph freezes the numbers that it was captured with, streams among them. So each function
takes a `stream_offset`, one int64 on the tensors' device that every replay reads anew: it is added, modulo
2**64, to the call's stream numbers.

Symbols: z latents, eps noise, abar = alphas_cumprod at the timestep, abar' = at the next, cleaner timestep.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import _backend
from ._backend import address, integer
from ._diffusion_arguments import (
    PREDICTION_TYPES,
    check_alphas,
    check_type,
    count_of,
    dims_of,
    divisor,
    latents_of,
    make_prediction,
    offset_streams,
    per_item,
    typed,
    uint64,
)
from ._launch import launch


class DenoisedAction(NamedTuple):
    """What `denoise_action` returns; None where an output was not asked for. "..." is the latents' shape."""

    guided_noise: Tensor | None  # [B, ...] eps^, after classifier-free guidance and clipping
    clean: Tensor | None  # [B, ...] z0^, the clean guess
    mean: Tensor | None  # [B, ...] mu of the DDIM step
    action: Tensor | None  # [B, ...] mu + sigma n
    log_prob: Tensor | None  # [B] log-density of the action under N(mu, sigma^2 I), summed over dimensions


def philox_normal(
    shape: Sequence[int],
    seed: int,
    stream: int,
    device: torch.device | str = "cpu",
    stream_offset: Tensor | None = None,
) -> Tensor:
    """Standard normal noise from a counter: Philox4x32-10 (Salmon et al., SC 2011) and Box-Muller.

    Args:
        shape: shape of the result.
        seed: key, 0 <= seed < 2**64.
        stream: which of the seed's independent sequences, 0 <= stream < 2**64.
        device: where the result is made.
        stream_offset: one int64 on the device that is added to `stream`; None: 0.

    Returns:
        float32 tensor on the device. Element i of the flattened tensor depends on (seed, stream, i) only, so
        a shorter tensor is a prefix of a longer one. |element| < 6.8.

    Raises:
        TypeError, ValueError: a negative size, a seed or stream out of range, a device without a backend.
    """
    sizes = tuple(integer("shape", size, "a sequence of ints") for size in shape)
    if any(size < 0 for size in sizes):
        raise ValueError(f"shape: expected sizes of 0 or more, got {sizes}")
    seed, stream = uint64("seed", seed), uint64("stream", stream)
    _backend.uses_cuda(torch.device(device))
    out = torch.empty(sizes, dtype=torch.float32, device=device)
    (stream,), offset = offset_streams(out.device, stream_offset, stream)
    launch(
        out.device,
        "philox_normal",
        {"stream_offset": offset},
        out=address(out),
        count=out.numel(),
        seed=seed,
        stream=stream,
    )
    return out


def add_noise(
    latents: Tensor,
    alphas_cumprod: Tensor,
    seed: int,
    stream: int,
    actions: int = 1,
    stream_offset: Tensor | None = None,
) -> Tensor:
    """Noise every view's latents once for each of its actions: z_t = sqrt(abar) z + sqrt(1 - abar) eps (DDPM
    eq. 4).

    Args:
        latents: [V, ...] clean latents z.
        alphas_cumprod: [V * actions] float32, abar of every item, in (0, 1].
        seed, stream: of eps, which is `philox_normal((V * actions, ...), seed, stream)`.
        actions: K, noises a view.
        stream_offset: one int64 on the latents' device that is added to `stream`; None: 0.

    Returns:
        [V * actions, ...] float32 noisy latents.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or range.
    """
    latents = latents_of("latents", latents)
    actions = count_of("actions", actions)
    views = latents.shape[0]
    alphas = per_item("alphas_cumprod", alphas_cumprod, views * actions, latents, "latents")
    check_alphas(alphas)
    seed, stream = uint64("seed", seed), uint64("stream", stream)
    (stream,), offset = offset_streams(latents.device, stream_offset, stream)
    noisy = torch.empty((views * actions, *latents.shape[1:]), dtype=torch.float32, device=latents.device)
    launch(
        latents.device,
        "add_noise",
        {"stream_offset": offset},
        **typed("latents", latents),
        alphas_cumprod=address(alphas),
        noisy=address(noisy),
        views=views,
        actions=actions,
        dims=dims_of(latents),
        seed=seed,
        stream=stream,
    )
    return noisy


def denoise_action(
    noisy: Tensor,
    pred_cond: Tensor,
    pred_uncond: Tensor | None,
    alphas_cumprod: Tensor,
    prev_alphas_cumprod: Tensor,
    guidance_scale: float,
    prediction_type: str,
    eta: float = 1.0,
    clip: tuple[float, float] | None = None,
    seed: int = 0,
    stream: int = 0,
    outputs: Sequence[str] = DenoisedAction._fields,
    stream_offset: Tensor | None = None,
    clean_scale: Tensor | None = None,
) -> DenoisedAction:
    """One stochastic denoising step of the UNet as a policy, from its two predictions, in one pass.

    Guidance: p = p_u + s (p_c - p_u) (Ho and Salimans, eq. 6). Clean guess z0^ and noise eps^ follow from p
    by the prediction type (v: Salimans and Ho, appendix D). The step is DDIM's, eq. 12 and 16:

        sigma^2 = eta^2 (1 - abar') / (1 - abar) (1 - abar / abar')
        mu = sqrt(abar') z0^ + sqrt(1 - abar' - sigma^2) eps^,    action = mu + sigma n

    Where sigma is 0 the action is mu and its log-probability is defined as 0.

    Args:
        noisy: [B, ...] noisy latents z_t.
        pred_cond: [B, ...] the UNet's prediction for the prompt.
        pred_uncond: [B, ...] its prediction for the negative prompt; None: no guidance, `pred_cond` as it is.
        alphas_cumprod: [B] float32, abar, in (0, 1].
        prev_alphas_cumprod: [B] float32, abar', in [abar, 1].
        guidance_scale: s.
        prediction_type: "epsilon", "v_prediction" or "sample".
        eta: 0 (deterministic DDIM) to 1 (DDPM's variance).
        clip: (low, high) range of the clean guess; None: no clip.
        seed, stream: of n, which is `philox_normal(noisy.shape, seed, stream)`.
        outputs: names of the wanted fields of the result; the others are neither computed nor written.
        stream_offset: one int64 on the tensors' device that is added to `stream`; None: 0.
        clean_scale: [B] float32, factor of the clean guess before the clip (`guidance_rescale`); None: 1.

    With `clip` or `clean_scale`, eps^ follows from the clean guess that they leave:
    eps^ = (z_t - sqrt(abar) z0^) / sqrt(1 - abar).

    Returns:
        DenoisedAction of float32 tensors; fields not in `outputs` are None.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or range.
    """
    unknown = [name for name in outputs if name not in DenoisedAction._fields]
    if unknown or isinstance(outputs, str):
        got = outputs if isinstance(outputs, str) else unknown[0]
        raise ValueError(f"outputs: expected a sequence of {', '.join(DenoisedAction._fields)}, got {got!r}")
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta: expected a number from 0 to 1, got {eta}")
    prediction, kept = make_prediction(
        noisy, pred_cond, pred_uncond, alphas_cumprod, guidance_scale, prediction_type, clip, clean_scale
    )
    items, device = noisy.shape[0], noisy.device
    prev = per_item("prev_alphas_cumprod", prev_alphas_cumprod, items, noisy, "noisy")
    if device.type == "cpu" and not bool(((prev >= kept[-1]) & (prev <= 1)).all()):
        raise ValueError("prev_alphas_cumprod: expected values from alphas_cumprod to 1, got some outside")
    seed, stream = uint64("seed", seed), uint64("stream", stream)
    (stream,), offset = offset_streams(device, stream_offset, stream)

    shapes = dict.fromkeys(DenoisedAction._fields, tuple(noisy.shape)) | {"log_prob": (items,)}
    result = DenoisedAction(
        **{
            name: torch.empty(shape, dtype=torch.float32, device=device) if name in outputs else None
            for name, shape in shapes.items()
        }
    )
    squares = None  # what a GPU's blocks leave for the sum over each item
    if result.log_prob is not None and _backend.uses_cuda(device):
        count = _backend.backend(device).denoise_action_squares(items, dims_of(noisy))
        squares = torch.empty(count, dtype=torch.float64, device=device)
    launch(
        device,
        "denoise_action",
        {"squares": address(squares), "stream_offset": offset},
        prediction=prediction,
        prev_alphas_cumprod=address(prev),
        eta=float(eta),
        items=items,
        dims=dims_of(noisy),
        seed=seed,
        stream=stream,
        **{name: address(tensor) for name, tensor in result._asdict().items()},
    )
    return result


def score_residual(
    noisy: Tensor,
    pred_cond: Tensor,
    pred_uncond: Tensor | None,
    alphas_cumprod: Tensor,
    residual_weight: Tensor,
    guidance_scale: float,
    prediction_type: str,
    clip: tuple[float, float] | None = None,
    seed: int = 0,
    noise_stream: int = 0,
    actions: int = 1,
    action_weight: Tensor | None = None,
    action_stream: int | None = None,
    stream_offset: Tensor | None = None,
    clean_scale: Tensor | None = None,
) -> Tensor:
    """The gradient on the latents, score distillation and policy gradient together, in one pass.

        grad_v = sum over k of  residual_weight_k (eps^_k - eps_k) - action_weight_k n_k

    The first term with weight w(t) / K is SDS (DreamFusion eq. 3) and with w(t) A_k / K the noise policy;
    the second with weight lambda A_k sqrt(abar') / (K sigma) is the DDIM policy, whose actions had noise n
    (without the UNet's Jacobian, grad_z log pi is sqrt(abar') n / sigma). Nothing is divided by K here. The
    sum runs over k in ascending order.

    Args:
        noisy, pred_cond, pred_uncond, alphas_cumprod, guidance_scale, prediction_type, clip, clean_scale: as
            in `denoise_action`.
        residual_weight: [B] float32.
        seed: of both noises.
        noise_stream: of eps, the stream that `add_noise` was called with.
        actions: K; B must be a multiple of it.
        action_weight: [B] float32; None: no second term.
        action_stream: of n, the stream that `denoise_action` was called with; needed with `action_weight`.
        stream_offset: one int64 on the tensors' device that is added to both streams; None: 0.

    Returns:
        [B / actions, ...] float32 gradient of the loss with respect to every view's clean latents.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or range.
    """
    prediction, _kept = make_prediction(
        noisy, pred_cond, pred_uncond, alphas_cumprod, guidance_scale, prediction_type, clip, clean_scale
    )
    items, actions = noisy.shape[0], divisor("actions", actions, noisy)
    weights = per_item("residual_weight", residual_weight, items, noisy, "noisy")
    action_weights = None
    if action_weight is not None:
        action_weights = per_item("action_weight", action_weight, items, noisy, "noisy")
        if action_stream is None:
            raise ValueError("action_stream: expected the actions' stream beside action_weight, got None")
        if action_stream == noise_stream:
            raise ValueError(
                f"action_stream: expected another stream than noise_stream, got {action_stream} for both"
            )
    seed, noise_stream = uint64("seed", seed), uint64("noise_stream", noise_stream)
    streams, offset = offset_streams(
        noisy.device, stream_offset, noise_stream, uint64("action_stream", action_stream or 0)
    )
    grad = torch.empty((items // actions, *noisy.shape[1:]), dtype=torch.float32, device=noisy.device)
    launch(
        noisy.device,
        "score_residual",
        {"stream_offset": offset},
        prediction=prediction,
        residual_weight=address(weights),
        action_weight=address(action_weights),
        views=items // actions,
        actions=actions,
        dims=dims_of(noisy),
        seed=seed,
        noise_stream=streams[0],
        action_stream=streams[1],
        grad=address(grad),
    )
    return grad


def mixed_residual(
    noisy: Tensor,
    pred_cond: Tensor,
    pred_uncond: Tensor,
    pred_negative: Tensor | None,
    alphas_cumprod: Tensor,
    residual_weight: Tensor,
    mixture: Tensor,
    prediction_type: str,
    actions: int = 1,
) -> Tensor:
    """The gradient on the latents of a score distillation without injected noise, in one pass.

        grad_v = sum over k of  residual_weight_k (m_c eps_c + m_u eps_u + m_n eps_n)_k

    eps_c, eps_u and eps_n are what the predictions say of the noise, and m is the item's row of `mixture`:
    `csd_mixture`, `nfsd_mixture`, or any other. Nothing is divided by K; the sum runs over k in ascending
    order. There is no clip and no scale of a clean guess here: several predictions have no one clean guess.

    Args:
        noisy: [B, ...] noisy latents z_t; not read where `prediction_type` is "epsilon".
        pred_cond: [B, ...] the UNet's prediction for the prompt.
        pred_uncond: [B, ...] its prediction for the empty prompt.
        pred_negative: [B, ...] its prediction for a negative prompt; None: not needed, m_n is 0.
        alphas_cumprod: [B] float32, abar, in (0, 1].
        residual_weight: [B] float32.
        mixture: [B, 3] float32, m_c, m_u and m_n of every item.
        prediction_type: "epsilon", "v_prediction" or "sample".
        actions: K; B must be a multiple of it.

    Returns:
        [B / actions, ...] float32 gradient of the loss with respect to every view's clean latents.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or range; on the CPU also
            an m_n that is not 0 without `pred_negative`, which a GPU takes for 0.
    """
    check_type(prediction_type)
    noisy = latents_of("noisy", noisy)
    cond = latents_of("pred_cond", pred_cond, noisy)
    uncond = latents_of("pred_uncond", pred_uncond, noisy)
    negative = None if pred_negative is None else latents_of("pred_negative", pred_negative, noisy)
    items, actions = noisy.shape[0], divisor("actions", actions, noisy)
    alphas = per_item("alphas_cumprod", alphas_cumprod, items, noisy, "noisy")
    check_alphas(alphas)
    weights = per_item("residual_weight", residual_weight, items, noisy, "noisy")
    mixture = per_item("mixture", mixture, items, noisy, "noisy", columns=(3,))
    if negative is None and mixture.device.type == "cpu" and bool((mixture[:, 2] != 0).any()):
        raise ValueError("mixture: expected 0 as the coefficient of the absent pred_negative, got another")
    grad = torch.empty((items // actions, *noisy.shape[1:]), dtype=torch.float32, device=noisy.device)
    params = _backend.backend(noisy.device).MixedResidual(
        **typed("noisy", None if prediction_type == "epsilon" else noisy),
        **typed("conditional", cond),
        **typed("unconditional", uncond),
        **typed("negative", negative),
        alphas_cumprod=address(alphas),
        residual_weight=address(weights),
        mixture=address(mixture),
        type=PREDICTION_TYPES[prediction_type],
        views=items // actions,
        actions=actions,
        dims=dims_of(noisy),
        grad=address(grad),
    )
    launch(noisy.device, "mixed_residual", params=params)
    return grad
