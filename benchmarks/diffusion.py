"""Milliseconds of the fused diffusion arithmetic and Adam beside the same expressions in plain torch.

    python benchmarks/diffusion.py [--device cpu|cuda] [--repeats 15] [--json FILE]

Bytes of the fused operation are those that must cross memory once: every input read once, every output
written once. Bytes of the torch expression are what all its operators read and write. It is given its noise
for nothing (it is drawn beforehand), which flatters it. On a GPU both are replayed from a CUDA graph, so that
no figure contains Python; what fits the L2 cache never crosses memory there, and its GB/s show it.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timing import milliseconds
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ddpo3d_fast.files import write_text
from ddpo3d_fast.info import machine
from ddpo3d_fast.kernels import add_noise, denoise_action, philox_normal, score_residual
from ddpo3d_fast.kernels.adam import AdamGroup, adam_groups

GAUSSIAN = {"means": 3, "quats": 4, "scales": 3, "opacities": 1, "colors": 3}  # columns


class BytesMoved(TorchDispatchMode):
    """Adds up the bytes that every operator reads and writes; views move none."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            written = [
                value
                for value, argument in zip(args, func._schema.arguments, strict=False)
                if argument.alias_info and argument.alias_info.is_write
            ]
            read = tree_leaves((args, kwargs))
            made = [leaf for leaf in tree_leaves(result) if not any(leaf is other for other in read)]
            tensors = [t for t in [*read, *tree_leaves(written), *made] if isinstance(t, torch.Tensor)]
            self.total += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result


def bytes_moved(function: Callable[[], object]) -> int:
    with BytesMoved() as moved:
        function()
    return moved.total


def graph_milliseconds(function: Callable[[], object], repeats: int, calls: int = 20) -> float:
    """Median of `repeats` replays of a CUDA graph of `calls` calls, for one call."""
    function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            function()
    times = []
    for _ in range(repeats + 1):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / calls)
    return statistics.median(times[1:])


def cases(
    views: int, actions: int, shape: tuple[int, ...], device: str
) -> list[tuple[str, int, Callable, Callable]]:
    """(name, bytes, fused, plain torch) of every operation on views * actions latents of a shape."""
    items = views * actions
    latents, scale = torch.randn(views, *shape, device=device), 7.5
    noisy, cond, uncond, noise, normal = (torch.randn(items, *shape, device=device) for _ in range(5))
    abar = torch.rand(items, device=device) * 0.8 + 0.1
    prev, weight = abar + (1 - abar) / 2, torch.rand(items, device=device)
    elements, of_views = 4 * noisy.numel(), 4 * latents.numel()

    def column(values: torch.Tensor) -> torch.Tensor:
        return values.reshape(-1, *[1] * len(shape))

    a, b, w = column(abar), column(prev), column(weight)

    def torch_normal() -> torch.Tensor:
        return torch.randn(normal.shape, device=device)

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
        ("philox_normal", elements, lambda: philox_normal(normal.shape, 1, 2, device), torch_normal),
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


def adam_case(rows: int, device: str) -> tuple[str, int, Callable, Callable]:
    """The parameters of `rows` Gaussians; torch's fastest Adam for the device."""
    shapes = [(rows, columns) for columns in GAUSSIAN.values()]
    groups = [AdamGroup(*(torch.rand(4, *shape, device=device)), lr=1e-3) for shape in shapes]
    twins = [group.param.clone().requires_grad_() for group in groups]
    for twin, group in zip(twins, groups, strict=True):
        twin.grad = group.grad
    optimizer = torch.optim.Adam(
        twins, lr=1e-3, betas=(0.9, 0.99), eps=1e-15, fused=True, capturable=device == "cuda"
    )
    count = 7 * 4 * sum(twin.numel() for twin in twins)
    return "adam", count, lambda: adam_groups(groups, 1), optimizer.step


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=15, help="timed calls, of which the median counts")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    device, repeats = arguments.device, arguments.repeats
    clock = graph_milliseconds if device == "cuda" else milliseconds
    sizes = [(2, 4, (48, 16, 16)), (4, 8, (4, 64, 64)), (8, 8, (4, 128, 128))]
    problems = [
        (f"{v} x {k} x {shape}", case) for v, k, shape in sizes for case in cases(v, k, shape, device)
    ]
    problems += [(f"{rows} Gaussians", adam_case(rows, device)) for rows in (2_000, 100_000)]
    print(f"{machine()}, torch {torch.__version__}, on {device}")
    print(
        f"{'operation':22} {'size':22} {'MB':>8} {'fused ms':>9} {'GB/s':>6} "
        f"{'torch MB':>9} {'torch ms':>9} {'ratio':>6}"
    )
    rows = []
    for size, (name, count, fused, plain) in problems:
        fused_ms, torch_ms = clock(fused, repeats), clock(plain, repeats)
        row = {
            "operation": name,
            "size": size,
            "megabytes": count / 1e6,
            "fused_ms": fused_ms,
            "torch_megabytes": bytes_moved(plain) / 1e6,
            "torch_ms": torch_ms,
        }
        rows.append(row)
        print(
            f"{name:22} {size:22} {count / 1e6:8.2f} {fused_ms:9.4f} {count / fused_ms / 1e6:6.1f} "
            f"{row['torch_megabytes']:9.2f} {torch_ms:9.4f} {torch_ms / fused_ms:6.1f}"
        )
    if arguments.json:
        facts = {"machine": machine(), "torch": torch.__version__, "device": device, "rows": rows}
        write_text(arguments.json, json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
