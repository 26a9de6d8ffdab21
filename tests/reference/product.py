"""The doors to the product, all of them: a run of it from a given state, told step by step.

A few names of the house are known here and nowhere else in these tests: where a run finds its prior, how
often it writes a checkpoint and what it calls there what the policies know, and the table with what
writes a turntable, which takes seconds.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddpo3d_fast.assets import EXPORTERS
from ddpo3d_fast.run import RunFolder
from ddpo3d_fast.settings import Config

from . import toys
from .scene import Tensors
from .step import State

ESTIMATE = ("scene_policy_mean", "scene_policy_variance")
KEPT = ("latent_signal", "latent_advantages", "latent_means", "view_signal")
loop = importlib.import_module("ddpo3d_fast.generate")


class _Enough(Exception):
    """Ends a run."""


def float64(gaussians: Tensors) -> Tensors:
    return {name: tensor.double() for name, tensor in gaussians.items()}


def run(
    config: Config,
    prior: Any,
    patch: pytest.MonkeyPatch,
    first: int,
    last: int,
    state: State | None = None,
) -> tuple[list[State], list[dict[str, Any]]]:
    """The states after the steps `first` to `last`, and the rows told of them.

    `state` is the one before `first`; None: the beginning of a run, or where its folder was left. A run of
    more steps ends by an exception in the step after `last`.
    """
    patch.setattr(loop, "CHECKPOINT_EVERY", 1)
    patch.setitem(EXPORTERS, "turntable.mp4", lambda path, _: path.write_bytes(b""))
    if prior is not None:
        patch.setattr("ddpo3d_fast.build.load_prior", lambda wanted: prior)
    for name, function in toys.REWARDS.items():
        module, _, attribute = name.partition(":")
        patch.setitem(sys.modules, module, SimpleNamespace(**{attribute: function}))
    if state is not None:  # a run that was left after the step before
        folder = RunFolder.create(config)
        with folder.claimed():
            folder.begin(config, {})
        gaussians = {name: tensor.float() for name, tensor in state.gaussians.items()}
        kept = {"gaussians": gaussians, "rows": len(gaussians["means"]), "rewards": state.rewards.tolist()}
        kept |= dict(zip(ESTIMATE, state.estimate.tolist(), strict=True))
        kept |= {name: tensor.tolist() for name, tensor in state.kept.items()}
        folder.save_checkpoint({"step": first - 1, "screen": state.screen.float(), **kept})
    resumed = state is not None or first > 1
    folder = RunFolder.open(config.output) if resumed else RunFolder.create(config)
    states: list[State] = []
    rows: list[dict[str, Any]] = []

    def saved(number: int) -> State:
        kept = torch.load(folder.path / "checkpoint.pt", weights_only=True)["state"]
        assert kept["step"] == number
        rewards = torch.tensor(kept["rewards"], dtype=torch.float64)
        of_policies = {name: torch.tensor(kept[name], dtype=torch.float64) for name in KEPT if name in kept}
        state = State(float64(kept["gaussians"]), rewards, kept["screen"].double(), of_policies)
        if ESTIMATE[0] not in kept:
            return state
        estimate = torch.tensor([kept[name] for name in ESTIMATE], dtype=torch.float64)
        return state._replace(estimate=estimate)

    def observe(row: dict[str, Any]) -> None:
        if row["stage"] != "distill":
            return
        if row["step"] > first:
            states.append(saved(row["step"] - 1))
        if row["step"] > last:
            raise _Enough
        rows.append(row)

    with contextlib.suppress(_Enough):
        loop.generate(config, folder, observe, resume=resumed)
        states.append(saved(last))
    assert [row["step"] for row in rows] == list(range(first, last + 1))
    return states, rows
