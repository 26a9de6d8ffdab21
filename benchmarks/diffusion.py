"""Milliseconds of the fused diffusion arithmetic and Adam beside the same expressions in plain torch.

    python benchmarks/diffusion.py [--repeats 15] [--json FILE]

Bytes are those that must cross memory once: every input read once, every output written once. The torch
expressions are given their noise for nothing (it is drawn beforehand), which flatters them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from ddpo3d_fast.files import write_text
from ddpo3d_fast.info import machine
from ddpo3d_fast.kernels import adam, add_noise, denoise_action, philox_normal, score_residual


def milliseconds(function: Callable[[], object], repeats: int) -> float:
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def cases(views: int, actions: int, shape: tuple[int, ...]) -> list[tuple[str, int, Callable, Callable]]:
    """(name, bytes, fused, plain torch) of every operation on views * actions latents of a shape."""
    items = views * actions
    latents, scale = torch.randn(views, *shape), 7.5
    noisy, cond, uncond, noise, normal = (torch.randn(items, *shape) for _ in range(5))
    abar = torch.rand(items) * 0.8 + 0.1
    prev, weight = abar + (1 - abar) / 2, torch.rand(items)
    elements, of_views = 4 * noisy.numel(), 4 * latents.numel()

    def column(values: torch.Tensor) -> torch.Tensor:
        return values.reshape(-1, *[1] * len(shape))

    a, b, w = column(abar), column(prev), column(weight)

    def torch_noise() -> torch.Tensor:
        return a.sqrt() * latents.repeat_interleave(actions, 0) + (1 - a).sqrt() * noise

    def torch_denoise() -> tuple[torch.Tensor, ...]:
        guided = uncond + scale * (cond - uncond)
        clean = ((noisy - (1 - a).sqrt() * guided) / a.sqrt()).clamp(-1, 1)
        guided = (noisy - a.sqrt() * clean) / (1 - a).sqrt()
        sigma = ((1 - b) / (1 - a) * (1 - a / b)).sqrt()
        mean = b.sqrt() * clean + (1 - b - sigma**2).sqrt() * guided
        action = mean + sigma * normal
        log_prob = torch.distributions.Normal(mean, sigma, validate_args=False).log_prob(action)
        return guided, clean, mean, action, log_prob.flatten(1).sum(1)

    def torch_clean() -> torch.Tensor:
        guided = uncond + scale * (cond - uncond)
        return ((noisy - (1 - a).sqrt() * guided) / a.sqrt()).clamp(-1, 1)

    def torch_residual() -> torch.Tensor:
        clean = torch_clean()
        guided = (noisy - a.sqrt() * clean) / (1 - a).sqrt()
        return (w * (guided - noise) - w * normal).unflatten(0, (views, actions)).sum(1)

    def fused_denoise(outputs: tuple[str, ...]) -> object:
        return denoise_action(
            noisy, cond, uncond, abar, prev, scale, "epsilon", 1.0, (-1, 1), seed=1, stream=2, outputs=outputs
        )

    everything = ("guided_noise", "clean", "mean", "action", "log_prob")
    return [
        ("philox_normal", elements, lambda: philox_normal(normal.shape, 1, 2), normal.normal_),
        ("add_noise", of_views + elements, lambda: add_noise(latents, abar, 1, 2, actions), torch_noise),
        ("denoise_action, all", 7 * elements, lambda: fused_denoise(everything), torch_denoise),
        ("denoise_action, clean", 4 * elements, lambda: fused_denoise(("clean",)), torch_clean),
        (
            "score_residual",
            3 * elements + of_views,
            lambda: score_residual(
                noisy, cond, uncond, abar, weight, scale, "epsilon", (-1, 1),
                seed=1, noise_stream=2, actions=actions, action_weight=weight, action_stream=3,
            ),
            torch_residual,
        ),
    ]  # fmt: skip


def adam_case(rows: int) -> tuple[str, int, Callable, Callable]:
    param, grad, exp_avg, exp_avg_sq = (torch.rand(rows, 14) for _ in range(4))
    twin = param.clone().requires_grad_()
    twin.grad = grad
    optimizer = torch.optim.Adam([twin], lr=1e-3, betas=(0.9, 0.99), eps=1e-15)
    return (
        "adam",
        7 * 4 * param.numel(),
        lambda: adam(param, grad, exp_avg, exp_avg_sq, 1, 1e-3),
        optimizer.step,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=15, help="timed calls, of which the median counts")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    sizes = [(2, 4, (48, 16, 16)), (4, 8, (4, 64, 64)), (8, 8, (4, 128, 128))]
    problems = [(f"{v} x {k} x {shape}", case) for v, k, shape in sizes for case in cases(v, k, shape)]
    problems += [(f"{rows} x 14", adam_case(rows)) for rows in (2_000, 100_000)]
    print(f"{machine()}, torch {torch.__version__}")
    print(f"{'operation':22} {'size':22} {'MB':>8} {'fused ms':>9} {'GB/s':>6} {'torch ms':>9} {'ratio':>6}")
    rows = []
    for size, (name, count, fused, plain) in problems:
        fused_ms, torch_ms = milliseconds(fused, arguments.repeats), milliseconds(plain, arguments.repeats)
        row = {
            "operation": name,
            "size": size,
            "megabytes": count / 1e6,
            "fused_ms": fused_ms,
            "torch_ms": torch_ms,
        }
        rows.append(row)
        print(
            f"{name:22} {size:22} {count / 1e6:8.2f} {fused_ms:9.3f} {count / fused_ms / 1e6:6.1f}"
            f" {torch_ms:9.3f} {torch_ms / fused_ms:6.1f}"
        )
    if arguments.json:
        facts = {"machine": machine(), "torch": torch.__version__, "rows": rows}
        write_text(arguments.json, json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
