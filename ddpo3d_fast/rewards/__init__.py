"""Rewards: what a view is worth. The embedded scorer, CLIP's, the user's own functions, weighted sums."""

from __future__ import annotations

import functools
import importlib
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ddpo3d_fast.engines import choose_runtime
from ddpo3d_fast.errors import InputError, suggestion
from ddpo3d_fast.rewards.aesthetic import aesthetic_reward
from ddpo3d_fast.rewards.clip import TowerReward, clip_reward, sum_on_one_tower, tower_key
from ddpo3d_fast.rewards.embedded import EmbeddedScorer
from ddpo3d_fast.rewards.preference import hps_reward, pickscore_reward

PROBE_SIZE = 64  # pixels of the pictures on which a user's function is tried before a run
# By name: from what follows the @ of NAME@SOURCE, a device and a runtime to the reward. No module of the
# user's can be called NAME@SOURCE, so that `clip:score` stays a function of theirs.
TOWER_REWARDS: dict[str, Callable[[str, torch.device | str, str], TowerReward]] = {
    "aesthetic": functools.partial(aesthetic_reward, "aesthetic"),
    "aesthetic-v1": functools.partial(aesthetic_reward, "aesthetic-v1"),
    "clip": clip_reward,
    "hps": hps_reward,
    "pickscore": pickscore_reward,
}


class Reward(Protocol):
    """Scores pictures of a prompt; higher is better. No autograd graph leaves or enters a reward."""

    name: str
    differentiable: bool  # whether score_vjp can be called
    capturable: bool  # whether a CUDA graph can hold its calls: they neither wait nor copy from the host

    @property
    def runtime(self) -> str:
        """For people: what runs it."""

    def prepare(self, gradient: bool) -> None:
        """Makes now what the first call of `score`, or with `gradient` of `score_vjp`, would make."""

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """images float32 [B, 3, H, W] in [0, 1], one prompt each -> float32 [B]."""

    def score_vjp(self, images: Tensor, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Scores [B], and the gradient [B, 3, H, W] of each image's own score with respect to that image."""


class EmbeddedReward:
    """The embedded scorer of how clean a render looks, whatever its prompt."""

    name, differentiable, capturable = "embedded", True, True

    def __init__(
        self,
        device: torch.device | str = "cpu",
        runtime: str = "auto",
        batches: tuple[int, int] | None = None,
    ) -> None:
        self.scorer = EmbeddedScorer(device=device, runtime=runtime, batches=batches)
        self.runtime = self.scorer.runtime

    def prepare(self, gradient: bool) -> None:
        """Nothing to make."""

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.scorer.score(images)

    def score_vjp(self, images: Tensor, prompts: list[str]) -> tuple[Tensor, Tensor]:
        return self.scorer.score_vjp(images)


def _line(error: Exception) -> str:
    """The exception's name and the first line of its message."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _no_gradient(name: str) -> InputError:
    return InputError(f"--reward: {name}: has no gradient with respect to the images")


class FunctionReward:
    """A function of the user's: images [B, 3, H, W] in [0, 1] and prompts -> scores [B], higher is better.

    It is tried once on two small pictures. When its result carries an autograd graph back to the images it
    counts as differentiable; it must then score each image by itself. InputError for a wrong result or an
    exception of its own.
    """

    capturable = False  # its scores are looked at in every step
    runtime = "a function of the user's"

    def __init__(
        self, name: str, function: Callable[[Tensor, list[str]], Tensor], device: torch.device | str = "cpu"
    ) -> None:
        self.name, self.function = name, function
        probe = torch.rand(2, 3, PROBE_SIZE, PROBE_SIZE, generator=torch.Generator().manual_seed(0))
        with torch.enable_grad():
            scores = self._call(probe.to(device).requires_grad_(), ["a red ball", "a blue cube"])
        self.differentiable = scores.requires_grad

    def prepare(self, gradient: bool) -> None:
        """Nothing to make."""

    def _call(self, images: Tensor, prompts: list[str]) -> Tensor:
        try:
            scores = self.function(images, prompts)
        except Exception as error:
            raise InputError(f"--reward: {self.name}: raised {_line(error)}") from error
        if not isinstance(scores, Tensor):
            got = type(scores).__name__
            raise InputError(f"--reward: {self.name}: expected a tensor of {len(images)} scores, got {got}")
        if scores.shape != (len(images),):
            raise InputError(
                f"--reward: {self.name}: expected scores of shape ({len(images)},), got {tuple(scores.shape)}"
            )
        if not bool(torch.isfinite(scores.detach()).all()):
            raise InputError(f"--reward: {self.name}: expected finite scores, got {scores.detach().tolist()}")
        return scores.to(images.device, torch.float32)

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        with torch.no_grad():
            return self._call(images.detach(), prompts)

    def score_vjp(self, images: Tensor, prompts: list[str]) -> tuple[Tensor, Tensor]:
        if not self.differentiable:
            raise _no_gradient(self.name)
        with torch.enable_grad():
            leaf = images.detach().clone().requires_grad_()
            scores = self._call(leaf, prompts)
            if not scores.requires_grad:
                raise InputError(f"--reward: {self.name}: had a gradient when it was tried, and has none now")
            (gradient,) = torch.autograd.grad(scores.sum(), leaf)
        return scores.detach(), gradient


class WeightedReward:
    """The sum of rewards times their weights. Its gradient is that of the differentiable ones alone.

    An image tower that several of them share runs once.
    """

    def __init__(self, parts: Sequence[tuple[Reward, float]]) -> None:
        self.name = " + ".join(f"{weight:g} {reward.name}" for reward, weight in parts)
        self.parts = _on_shared_towers(parts)
        self.differentiable = any(reward.differentiable for reward, _ in self.parts)
        self.capturable = all(reward.capturable for reward, _ in self.parts)
        self.runtime = " + ".join(dict.fromkeys(reward.runtime for reward, _ in self.parts))

    def prepare(self, gradient: bool) -> None:
        for reward, _ in self.parts:
            reward.prepare(gradient and reward.differentiable)

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        return torch.stack([weight * reward.score(images, prompts) for reward, weight in self.parts]).sum(0)

    def score_vjp(self, images: Tensor, prompts: list[str]) -> tuple[Tensor, Tensor]:
        if not self.differentiable:
            raise _no_gradient(self.name)
        scores, gradient = torch.zeros(len(images), device=images.device), torch.zeros_like(images)
        for reward, weight in self.parts:
            if reward.differentiable:
                part, part_gradient = reward.score_vjp(images, prompts)
                gradient += weight * part_gradient
            else:
                part = reward.score(images, prompts)
            scores += weight * part
        return scores, gradient


def _on_shared_towers(parts: Sequence[tuple[Reward, float]]) -> list[tuple[Reward, float]]:
    """The same sum, with one reward for those of CLIP's whose towers are the same."""
    others = [(reward, weight) for reward, weight in parts if not isinstance(reward, TowerReward)]
    towers = [(reward, weight) for reward, weight in parts if isinstance(reward, TowerReward)]
    if len(towers) < 2:
        return list(parts)
    groups: dict[str, list[tuple[TowerReward, float]]] = {}
    for reward, weight in towers:
        groups.setdefault(tower_key(reward.tower), []).append((reward, weight))
    summed = (group[0] if len(group) == 1 else (sum_on_one_tower(group), 1.0) for group in groups.values())
    return [*others, *summed]


def _find_function(name: str) -> Callable[[Tensor, list[str]], Tensor]:
    module_name, _, function_name = name.partition(":")
    here = os.getcwd()
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)  # an installed command does not look in the working directory by itself
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if module_name == missing or module_name.startswith(missing + "."):
            raise InputError(
                f"--reward: {name}: no module {module_name!r} here or on the Python path"
            ) from error
        raise InputError(
            f"--reward: {name}: module {module_name!r} needs {missing!r}, which is not installed"
        ) from error
    except Exception as error:
        raise InputError(f"--reward: {name}: importing {module_name!r} raised {_line(error)}") from error
    finally:
        if added:
            sys.path.remove(here)
    function = getattr(module, function_name, None)
    if not callable(function):
        raise InputError(f"--reward: {name}: module {module_name!r} has no function {function_name!r}")
    return function


def _parse(spec: str) -> tuple[str, float]:
    name, equals, text = spec.rpartition("=")
    try:
        weight = float(text) if equals else 1.0
    except ValueError:
        weight = math.nan
        if "@" in name or ":" in text:  # a path's own =, or a module's
            equals, weight = "", 1.0
    if not math.isfinite(weight):
        raise InputError(f"--reward: expected NAME or NAME=WEIGHT with a finite number, got {spec!r}")
    return (name if equals else spec).strip(), weight


def parse_rewards(specs: Sequence[str]) -> list[tuple[str, float]]:
    """Names and weights of NAME or NAME=WEIGHT (1 if left out), before anything is loaded. What follows the
    last = of a path or a module and is no number is part of the name.

    InputError for a bad weight or a name that can be none.
    """
    parsed = [_parse(spec) for spec in specs]
    for name, _ in parsed:
        kind, at, source = name.partition("@")
        known = name == "embedded" or (kind in TOWER_REWARDS and (source or not at))
        if not known and not all(name.partition(":")):
            raise InputError(
                f"--reward: expected `embedded` or module:function of your own, got {name!r}, which is none "
                f"of {', '.join(TOWER_REWARDS)} either{suggestion(kind, [*TOWER_REWARDS, 'embedded'])}"
            )
    if not parsed:
        raise InputError("--reward: expected at least one NAME[=WEIGHT], got none")
    return parsed


def make_reward(
    specs: Sequence[str],
    device: torch.device | str = "cpu",
    runtime: str = "auto",
    dtype: torch.dtype | None = None,
    batches: tuple[int, int] | None = None,
) -> Reward:
    """The reward that `specs` name, each NAME or NAME=WEIGHT (1 if left out); several are summed.

    NAME is `embedded`; one of TOWER_REWARDS, alone or with the source of its weights as NAME@SOURCE (their
    functions' docstrings say which there are); or `module:function` of the user's, found on the Python path
    or in the working directory. `runtime`, one of `load_network`'s, runs all but the user's, and what CLIP's
    towers compute in is `dtype` (None: fp16 on CUDA, else fp32). `batches` are the pictures that a call of
    `score` and one of `score_vjp` will bring, where that is known, for the engines' profiles. InputError for
    an unknown name, a bad weight, a runtime that is not to be had, weights that cannot be had or read, a
    missing module or function, or a function that does not score.
    """
    parts: list[tuple[Reward, float]] = []
    for name, weight in parse_rewards(specs):
        kind, _, source = name.partition("@")
        if name == "embedded":
            parts.append((EmbeddedReward(device, runtime, batches), weight))
        elif kind in TOWER_REWARDS:
            choose_runtime(runtime, torch.device(device), dtype)  # before a download, or a long load
            tower = TOWER_REWARDS[kind](os.path.expanduser(source), device, runtime)
            tower.dtype, tower.batches = dtype, batches
            parts.append((tower, weight))
        else:
            parts.append((FunctionReward(name, _find_function(name), device), weight))
    if len(parts) == 1 and parts[0][1] == 1:
        return parts[0][0]
    return WeightedReward(parts)
