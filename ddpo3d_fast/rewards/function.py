"""Rewards that are a function of the user's, with whatever it returns."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpo3d_fast.errors import InputError, first_line, suggestion
from ddpo3d_fast.rewards.kinds import REWARDS
from ddpo3d_fast.rewards.paths import is_module_of, locate_function
from ddpo3d_fast.sources import record

PROBE_SIZE = 64  # pixels of the pictures on which a function is tried before a run

Function = Callable[[Tensor, list[str]], Any]


class _NoGradient(Exception):
    """Why scores give the images no gradient."""


class _OneNumber(InputError):
    """One score came for several pictures."""


class FunctionReward:
    """A function of the user's: images [B, 3, H, W] in [0, 1] and prompts -> scores [B], higher is better.

    Scores may be a tensor of any real dtype and device, an array, or a list or tuple of numbers or of tensors
    of one number; a column [B, 1] counts as [B]. A function that gives one number for two pictures is called
    for one picture at a time. It gets copies, which it may change, and it is tried on two small pictures. No
    gradient is asked of it, unless it has an attribute `differentiable` that is True: then it is tried with
    one, too, and must score each image by itself. InputError for a wrong result, an exception of its own, or
    a gradient that it declares and does not give.
    """

    capturable = False  # its scores are looked at in every step
    runtime = "a function of the user's"

    def __init__(self, name: str, function: Function, device: torch.device | str = "cpu") -> None:
        self.name, self.function = name, function
        probe = torch.rand(2, 3, PROBE_SIZE, PROBE_SIZE, generator=torch.Generator().manual_seed(0))
        images, prompts = probe.to(device), ["a red ball", "a blue cube"]
        self._one_by_one = False
        try:
            self.score(images, prompts)
        except _OneNumber:
            self._one_by_one = True
            self.score(images, prompts)
        self.differentiable = bool(getattr(function, "differentiable", False))
        if self.differentiable:
            self.score_vjp(images, prompts)

    def prepare(self, gradient: bool) -> None:
        """Nothing to make."""

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        with torch.no_grad():
            return self._call(images.detach().clone(), prompts)

    def score_vjp(self, images: Tensor, prompts: list[str]) -> tuple[Tensor, Tensor]:
        if not self.differentiable:
            raise InputError(f"--reward: {self.name}: has no gradient with respect to the images")
        try:
            return self._scores_and_gradient(images, prompts)
        except _NoGradient as error:
            raise InputError(f"--reward: {self.name}: says that it is differentiable, and {error}") from error

    def _scores_and_gradient(self, images: Tensor, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """[B], and [B, 3, H, W]. InputError where the function fails, else _NoGradient."""
        with torch.enable_grad():
            leaf = images.detach().clone().requires_grad_()
            scores = self._call(leaf.clone(), prompts)  # a leaf could not be changed in place
            if not scores.requires_grad:
                raise _NoGradient("its scores have no graph")
            try:
                (gradient,) = torch.autograd.grad(scores.sum(), leaf, allow_unused=True)
            except Exception as error:
                raise _NoGradient(f"its gradient raised {_line(error)}") from error
        if gradient is None:
            raise _NoGradient("the graph of its scores does not reach the images")
        if not bool(torch.isfinite(gradient).all()):
            raise _NoGradient("its gradient is not finite")
        return scores.detach(), gradient

    def _call(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores float32 [B] on the images' device."""
        size = 1 if self._one_by_one else len(prompts)
        parts = [slice(first, first + size) for first in range(0, len(prompts), size)]
        return torch.cat([self._call_once(images[part], prompts[part]) for part in parts])

    def _call_once(self, images: Tensor, prompts: list[str]) -> Tensor:
        try:
            with _talk_to_stderr():
                result = self.function(images, list(prompts))
        except (Exception, SystemExit) as error:
            raise InputError(f"--reward: {self.name}: raised {_line(error)}") from error
        count = len(prompts)
        try:
            scores = as_tensor(result)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"--reward: {self.name}: expected {count} scores, a tensor, an array or a list of numbers, "
                f"got {type(result).__name__} ({first_line(error)})"
            ) from error
        shape = tuple(scores.shape)
        if shape not in ((count,), (count, 1)) and (shape, count) != ((), 1):
            kind = _OneNumber if shape == () else InputError
            raise kind(f"--reward: {self.name}: expected scores of shape ({count},), got {shape}")
        scores = scores.reshape(count).to(images.device, torch.float32, copy=True)
        wrong = scores.detach()[~torch.isfinite(scores.detach())]
        if len(wrong):
            raise InputError(
                f"--reward: {self.name}: expected finite scores, got {wrong[0]:g} for {len(wrong)} of {count}"
            )
        return scores


def as_tensor(result: Any) -> Tensor:
    """What a function returned, as a tensor: with its graph, where tensors have one.

    TypeError, ValueError or RuntimeError, which say what it is, where it holds anything but real numbers.
    """
    if isinstance(result, (list, tuple)) and result and all(isinstance(each, Tensor) for each in result):
        result = torch.stack([each.reshape(()) for each in result])
    if isinstance(result, Tensor):
        if result.is_complex() or result.layout is not torch.strided:
            raise TypeError(f"{result.dtype}, {result.layout}")
        return result
    array = np.asarray(result)
    # V: numpy has no bfloat16 of its own, jax's is one.
    if array.dtype.kind not in "biufV":
        raise TypeError(f"{array.dtype} of shape {array.shape}")
    return torch.from_numpy(array.astype(np.float64))


def find_function(name: str) -> Function:
    """The function of module:function, found on the Python path or in the working directory, or of
    FOLDER/module:function, found in that folder. InputError where there is none."""
    folder, module_name, function_name = locate_function(name)
    here, before = folder or os.getcwd(), {*sys.modules}
    sys.path.insert(0, here)  # an installed command does not look in the working directory by itself
    try:
        with _talk_to_stderr():
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if module_name == missing or module_name.startswith(missing + "."):
            raise InputError(
                f"--reward: {name}: no module {module_name!r} here or on the Python path"
                f"{suggestion(module_name, [kind for kind in REWARDS if REWARDS[kind].choices])}"
            ) from error
        raise InputError(
            f"--reward: {name}: module {module_name!r} needs {missing!r}, which is not installed"
        ) from error
    except (Exception, SystemExit) as error:
        raise InputError(f"--reward: {name}: importing {module_name!r} raised {_line(error)}") from error
    finally:
        if here in sys.path:
            sys.path.remove(here)
        sys.path.append(here)  # last: for what the function imports when it is called
    if file := getattr(module, "__file__", None):
        record(file)
    for other in {*sys.modules} - before:
        file_of_other = getattr(sys.modules[other], "__file__", None)
        if file_of_other and is_module_of(here, other, file_of_other):
            record(file_of_other)
    if folder and not (file and is_module_of(folder, module_name, file)):
        raise InputError(f"--reward: {name}: {module_name!r} is another module here, {file}: rename yours")
    function = getattr(module, function_name, None)
    if not callable(function):
        raise InputError(f"--reward: {name}: module {module_name!r} has no function {function_name!r}")
    return function


def _talk_to_stderr() -> contextlib.AbstractContextManager[Any]:
    """What the user's code prints goes to stderr: stdout is the program's own, one JSON object a line."""
    return contextlib.redirect_stdout(sys.stderr)


def _line(error: BaseException) -> str:
    """The exception's name and the first line of its message, 200 characters of it at the most."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
