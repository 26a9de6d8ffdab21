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

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _backend
from ._backend import address, integer
from ._launch import device_number, launch, same_device

PREDICTION_TYPES = {"epsilon": 0, "v_prediction": 1, "sample": 2}
_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


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
    seed, stream = _uint64("seed", seed), _uint64("stream", stream)
    _backend.uses_cuda(torch.device(device))
    out = torch.empty(sizes, dtype=torch.float32, device=device)
    (stream,), offset = _offset_streams(out.device, stream_offset, stream)
    launch(out.device, "philox_normal", address(out), out.numel(), seed, stream, cuda=[offset])
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
    latents = _latents("latents", latents)
    actions = _count("actions", actions)
    views = latents.shape[0]
    alphas = _per_item("alphas_cumprod", alphas_cumprod, views * actions, latents, "latents")
    _check_alphas(alphas)
    seed, stream = _uint64("seed", seed), _uint64("stream", stream)
    (stream,), offset = _offset_streams(latents.device, stream_offset, stream)
    noisy = torch.empty((views * actions, *latents.shape[1:]), dtype=torch.float32, device=latents.device)
    launch(
        latents.device,
        "add_noise",
        address(latents),
        _DTYPES[latents.dtype],
        address(alphas),
        address(noisy),
        views,
        actions,
        _dims(latents),
        seed,
        stream,
        cuda=[offset],
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
    prediction, kept = _prediction(
        noisy, pred_cond, pred_uncond, alphas_cumprod, guidance_scale, prediction_type, clip, clean_scale
    )
    items, device = noisy.shape[0], noisy.device
    prev = _per_item("prev_alphas_cumprod", prev_alphas_cumprod, items, noisy, "noisy")
    if device.type == "cpu" and not bool(((prev >= kept[-1]) & (prev <= 1)).all()):
        raise ValueError("prev_alphas_cumprod: expected values from alphas_cumprod to 1, got some outside")
    seed, stream = _uint64("seed", seed), _uint64("stream", stream)
    (stream,), offset = _offset_streams(device, stream_offset, stream)

    shapes = dict.fromkeys(DenoisedAction._fields, tuple(noisy.shape)) | {"log_prob": (items,)}
    result = DenoisedAction(
        **{
            name: torch.empty(shape, dtype=torch.float32, device=device) if name in outputs else None
            for name, shape in shapes.items()
        }
    )
    squares = None  # what a GPU's blocks leave for the sum over each item
    if result.log_prob is not None and _backend.uses_cuda(device):
        count = _backend.backend(device).denoise_action_squares(items, _dims(noisy))
        squares = torch.empty(count, dtype=torch.float64, device=device)
    launch(
        device,
        "denoise_action",
        prediction,
        address(prev),
        float(eta),
        items,
        _dims(noisy),
        seed,
        stream,
        *(address(tensor) for tensor in result),
        cuda=[address(squares), offset],
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
    (`policy_gradient_coefficient`). Nothing is divided by K here. The sum runs over k in ascending order.

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
    prediction, _kept = _prediction(
        noisy, pred_cond, pred_uncond, alphas_cumprod, guidance_scale, prediction_type, clip, clean_scale
    )
    items, actions = noisy.shape[0], _divisor("actions", actions, noisy)
    weights = _per_item("residual_weight", residual_weight, items, noisy, "noisy")
    action_weights = None
    if action_weight is not None:
        action_weights = _per_item("action_weight", action_weight, items, noisy, "noisy")
        if action_stream is None:
            raise ValueError("action_stream: expected the actions' stream beside action_weight, got None")
        if action_stream == noise_stream:
            raise ValueError(
                f"action_stream: expected another stream than noise_stream, got {action_stream} for both"
            )
    seed, noise_stream = _uint64("seed", seed), _uint64("noise_stream", noise_stream)
    streams, offset = _offset_streams(
        noisy.device, stream_offset, noise_stream, _uint64("action_stream", action_stream or 0)
    )
    grad = torch.empty((items // actions, *noisy.shape[1:]), dtype=torch.float32, device=noisy.device)
    launch(
        noisy.device,
        "score_residual",
        prediction,
        address(weights),
        address(action_weights),
        items // actions,
        actions,
        _dims(noisy),
        seed,
        *streams,
        address(grad),
        cuda=[offset],
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
    _check_type(prediction_type)
    noisy = _latents("noisy", noisy)
    cond = _latents("pred_cond", pred_cond, noisy)
    uncond = _latents("pred_uncond", pred_uncond, noisy)
    negative = None if pred_negative is None else _latents("pred_negative", pred_negative, noisy)
    items, actions = noisy.shape[0], _divisor("actions", actions, noisy)
    alphas = _per_item("alphas_cumprod", alphas_cumprod, items, noisy, "noisy")
    _check_alphas(alphas)
    weights = _per_item("residual_weight", residual_weight, items, noisy, "noisy")
    mixture = _per_item("mixture", mixture, items, noisy, "noisy", columns=(3,))
    if negative is None and mixture.device.type == "cpu" and bool((mixture[:, 2] != 0).any()):
        raise ValueError("mixture: expected 0 as the coefficient of the absent pred_negative, got another")
    grad = torch.empty((items // actions, *noisy.shape[1:]), dtype=torch.float32, device=noisy.device)
    inputs = [None if prediction_type == "epsilon" else noisy, cond, uncond, negative]
    params = _backend.backend(noisy.device).MixedResidual(
        *(
            value
            for tensor in inputs
            for value in (address(tensor), 0 if tensor is None else _DTYPES[tensor.dtype])
        ),
        address(alphas),
        address(weights),
        address(mixture),
        PREDICTION_TYPES[prediction_type],
        items // actions,
        actions,
        _dims(noisy),
        address(grad),
    )
    launch(noisy.device, "mixed_residual", params)
    return grad


def csd_mixture(items: int, device: torch.device | str = "cpu") -> Tensor:
    """Classifier score distillation, eps_c - eps_u (Yu et al., arXiv 2310.19415), as the `mixture`
    [items, 3] of `mixed_residual`. It has no guidance scale: that would be another residual weight."""
    mixture = torch.zeros((items, 3), device=device)
    mixture[:, 0], mixture[:, 1] = 1, -1
    return mixture


def nfsd_mixture(timesteps: Tensor, guidance_scale: float, train_timesteps: int = 1000) -> Tensor:
    """Noise-free score distillation (Katzir et al., arXiv 2310.17590) as the `mixture` of `mixed_residual`.

        s (eps_c - eps_u) + delta_D,    delta_D = eps_u where t < 200 of 1000, eps_u - eps_n elsewhere

    with the empty prompt's eps_u and the negative prompt's eps_n, which need not be predicted where all
    timesteps are that early.

    Args:
        timesteps: [B] t of every item.
        guidance_scale: s.
        train_timesteps: how many timesteps the UNet was trained with, the 1000 above.

    Returns:
        [B, 3] float32 on the device of `timesteps`, made without a wait.

    Raises:
        TypeError, ValueError: `timesteps` no tensor or of another shape, a scale that is not finite.
    """
    timesteps = same_device("timesteps", timesteps)
    if timesteps.dim() != 1:
        raise ValueError(f"timesteps: expected shape [B], got {list(timesteps.shape)}")
    if not math.isfinite(guidance_scale):
        raise ValueError(f"guidance_scale: expected a finite number, got {guidance_scale}")
    mixture = torch.full((len(timesteps), 3), float(guidance_scale), device=timesteps.device)
    mixture[:, 1] = 1 - mixture[:, 0]
    mixture[:, 2] = -(5 * timesteps >= train_timesteps).float()
    return mixture


def guidance_rescale(clean_cond: Tensor, clean_guided: Tensor, rescale: float) -> Tensor:
    """How much the guided clean guess is to shrink, as the `clean_scale` of `score_residual` and
    `denoise_action`: strong guidance widens its spread, which over-saturates (Lin et al., arXiv 2305.08891,
    section 3.4).

        rescale std(z0^_cond) / std(z0^_guided) + 1 - rescale

    with the deviation over an item's elements. MVDream takes it over an object's views together: give it
    their guesses as one item, and repeat the factor.

    Args:
        clean_cond: [B, ...] clean guess from the conditional prediction alone: `denoise_action` with
            `pred_uncond=None` and `outputs=("clean",)`.
        clean_guided: [B, ...] clean guess after guidance, unclipped as the other.
        rescale: 0 (no change) to 1 (the deviation of `clean_cond`); the paper has 0.7, MVDream 0.5.

    Returns:
        [B] float32 on the tensors' device, made without a wait. 1 where the guided guess is constant.

    Raises:
        TypeError, ValueError: guesses of unlike shapes, devices or unknown dtypes, a rescale outside 0 to 1.
    """
    if not 0.0 <= rescale <= 1.0:
        raise ValueError(f"rescale: expected a number from 0 to 1, got {rescale}")
    guided = _latents("clean_guided", clean_guided)
    cond = _latents("clean_cond", clean_cond, guided, "clean_guided")
    of_cond, of_guided = (guess[:, None].flatten(1).float().std(1, correction=0) for guess in (cond, guided))
    ratio = torch.where(of_guided == 0, 1.0, of_cond / of_guided)
    return rescale * ratio + (1 - rescale)


def ddim_sigma(alphas_cumprod: Tensor, prev_alphas_cumprod: Tensor, eta: float = 1.0) -> Tensor:
    """sigma = eta sqrt((1 - abar') / (1 - abar) (1 - abar / abar')), DDIM eq. 16. Any shapes that broadcast;
    float32."""
    abar, prev = alphas_cumprod.double(), prev_alphas_cumprod.double()
    variance = (1 - prev) / (1 - abar).clamp_min(1e-300) * (1 - abar / prev)
    return (eta * variance.clamp_min(0).sqrt()).float()


def policy_gradient_coefficient(
    alphas_cumprod: Tensor, prev_alphas_cumprod: Tensor, eta: float = 1.0
) -> Tensor:
    """sqrt(abar') / sigma, with which grad_z log pi(action) = coefficient * n when the UNet's Jacobian is
    dropped.

    Any shapes that broadcast; float32. Where sigma is 0 the policy is deterministic and the coefficient 0.
    """
    sigma = ddim_sigma(alphas_cumprod, prev_alphas_cumprod, eta)
    return torch.where(sigma > 0, prev_alphas_cumprod.float().sqrt() / sigma, torch.zeros_like(sigma))


def _prediction(
    noisy: Tensor,
    pred_cond: Tensor,
    pred_uncond: Tensor | None,
    alphas_cumprod: Tensor,
    guidance_scale: float,
    prediction_type: str,
    clip: tuple[float, float] | None,
    clean_scale: Tensor | None,
) -> tuple[Any, list[Tensor]]:
    """Checks what every use of a prediction shares, and makes the backend's Prediction of it. The list keeps
    the tensors alive; its last one is abar."""
    _check_type(prediction_type)
    if not math.isfinite(guidance_scale):
        raise ValueError(f"guidance_scale: expected a finite number, got {guidance_scale}")
    low, high = (0.0, 0.0) if clip is None else (float(clip[0]), float(clip[1]))
    if clip is not None and not low < high:
        raise ValueError(f"clip: expected (low, high) with low < high, got {clip}")
    noisy = _latents("noisy", noisy)
    cond = _latents("pred_cond", pred_cond, noisy)
    uncond = None if pred_uncond is None else _latents("pred_uncond", pred_uncond, noisy)
    alphas = _per_item("alphas_cumprod", alphas_cumprod, noisy.shape[0], noisy, "noisy")
    _check_alphas(alphas)
    scales = None
    if clean_scale is not None:
        scales = _per_item("clean_scale", clean_scale, noisy.shape[0], noisy, "noisy")
    prediction = _backend.backend(noisy.device).Prediction(
        address(noisy),
        _DTYPES[noisy.dtype],
        address(cond),
        _DTYPES[cond.dtype],
        address(uncond),
        0 if uncond is None else _DTYPES[uncond.dtype],
        address(alphas),
        float(guidance_scale),
        PREDICTION_TYPES[prediction_type],
        clip is not None,
        low,
        high,
    )
    if scales is not None:
        prediction.clean_scale = address(scales)
    return prediction, [tensor for tensor in (noisy, cond, uncond, scales, alphas) if tensor is not None]


def _latents(name: str, value: object, noisy: Tensor | None = None, noisy_name: str = "noisy") -> Tensor:
    tensor = same_device(name, value, noisy, noisy_name)
    if tensor.dtype not in _DTYPES:
        raise TypeError(f"{name}: expected float32, float16 or bfloat16, got {tensor.dtype}")
    if tensor.dim() < 1:
        raise ValueError(f"{name}: expected [items, ...], got a scalar")
    if noisy is not None and tensor.shape != noisy.shape:
        raise ValueError(
            f"{name}: expected the shape {tuple(noisy.shape)} of {noisy_name}, got {tuple(tensor.shape)}"
        )
    return tensor.contiguous()


def _per_item(
    name: str, value: object, items: int, like: Tensor, like_name: str, columns: tuple[int, ...] = ()
) -> Tensor:
    tensor = same_device(name, value, like, like_name)
    if tensor.dtype != torch.float32:
        raise TypeError(f"{name}: expected float32, got {tensor.dtype}")
    if tensor.shape != (items, *columns):
        raise ValueError(f"{name}: expected shape {(items, *columns)}, got {tuple(tensor.shape)}")
    return tensor.contiguous()


def _check_type(prediction_type: str) -> None:
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"prediction_type: expected {', '.join(PREDICTION_TYPES)}, got {prediction_type!r}")


def _check_alphas(alphas: Tensor) -> None:
    if alphas.device.type == "cpu" and not bool(((alphas > 0) & (alphas <= 1)).all()):
        raise ValueError("alphas_cumprod: expected values in (0, 1], got some outside")


def _offset_streams(
    device: torch.device, offset: Tensor | None, *streams: int
) -> tuple[tuple[int, ...], int]:
    """The streams a backend is to be called with, and the address of the offset that it adds to them itself:
    only on a GPU is it not known yet."""
    if offset is None:
        return streams, 0
    offset = device_number("stream_offset", offset, torch.int64, device)
    if _backend.uses_cuda(device):
        return streams, address(offset)
    return tuple((stream + int(offset)) % 2**64 for stream in streams), 0


def _count(name: str, value: int) -> int:
    count = integer(name, value)
    if count < 1:
        raise ValueError(f"{name}: expected 1 or more, got {count}")
    return count


def _divisor(name: str, value: int, noisy: Tensor) -> int:
    count = _count(name, value)
    if noisy.shape[0] % count:
        raise ValueError(f"{name}: expected a divisor of the {noisy.shape[0]} items of noisy, got {count}")
    return count


def _uint64(name: str, value: int) -> int:
    word = integer(name, value)
    if not 0 <= word < 2**64:
        raise ValueError(f"{name}: expected 0 <= {name} < 2**64, got {word}")
    return word


def _dims(latents: Tensor) -> int:
    return math.prod(latents.shape[1:])
