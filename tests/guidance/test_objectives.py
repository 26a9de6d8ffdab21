"""The table of objectives: its names are the settings', and a new line in it is all that a new one takes."""

import dataclasses
from typing import get_args, get_type_hints

import pytest
import torch

from ddpo3d_fast import configure, settings
from ddpo3d_fast.generate import generate
from ddpo3d_fast.guidance import OBJECTIVES
from ddpo3d_fast.guidance.objectives import Objective
from ddpo3d_fast.run import RunFolder


def test_the_settings_name_the_objectives_of_the_table():
    assert get_args(get_type_hints(settings.Distillation)["residual"]) == tuple(OBJECTIVES)


def test_a_new_objective_is_a_line_in_the_table(tmp_path, monkeypatch):
    seen = []

    def towards_grey(denoised, weight, arithmetic):
        views, noises = len(denoised.noisy) // denoised.noises, denoised.noises
        seen.append((len(denoised.guesses), arithmetic.guidance_scale, float(weight.sum())))
        return (weight[:, None, None, None] * denoised.noisy).unflatten(0, (views, noises)).sum(1)

    monkeypatch.setitem(OBJECTIVES, "grey", Objective(("nothing",), torch.ones_like, towards_grey))
    draft = configure.preset("draft", "a red ball")
    config = dataclasses.replace(
        draft,
        output=tmp_path,
        device="cpu",
        schedule=dataclasses.replace(draft.schedule, steps=2, views=2),
        scene=dataclasses.replace(draft.scene, gaussians=100),
        distillation=dataclasses.replace(draft.distillation, residual="grey"),
        reward=dataclasses.replace(draft.reward, policy_weight=0.0, guide_weight=0.0),
    )
    rows = []
    generate(config, RunFolder.create(config), rows.append)
    assert seen == [(2, config.distillation.guidance_scale, pytest.approx(2.0))] * 2
    assert all(row["loss"] > 0 for row in rows if row["stage"] == "distill")
