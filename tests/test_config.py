"""Presets are for the model that is named, and settings that do not go together are refused."""

import dataclasses
import json
from typing import get_args

import pytest

from ddpo3d_fast.configure import from_dict, preset, validate
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.priors import PRIORS, kind_of
from ddpo3d_fast.priors.embedded import FOLDER
from ddpo3d_fast.scene.splats import rate_scales_at
from ddpo3d_fast.settings import Config, Preset, adapter, to_dict

EMBEDDED, STABLE = ("draft", "standard", "high"), ("csd", "nfsd", "rescaled", "thrifty")


def embedded(model):
    return kind_of(model) is PRIORS["embedded"]


def test_every_preset_of_a_kind_is_a_name_that_settings_know():
    names = [name for kind in PRIORS.values() for name in kind.presets]
    assert tuple(dict.fromkeys(names)) == get_args(Preset)


def test_a_folder_says_itself_whether_it_is_of_the_embedded_kind(tmp_path, monkeypatch):
    assert embedded("embedded")
    monkeypatch.setenv("HOME", str(FOLDER.parent))
    assert embedded("~/embedded")
    assert embedded(str(FOLDER))
    assert not embedded("sd21")
    for text in (json.dumps({"_class_name": "StableDiffusionPipeline"}), "[]", "{"):
        (tmp_path / "model_index.json").write_text(text)
        assert not embedded(str(tmp_path))


@pytest.mark.parametrize("model", ["embedded", "sd21"])
@pytest.mark.parametrize("name", EMBEDDED + STABLE)
def test_every_preset_is_one_of_its_model_and_a_valid_one(name, model):
    if model == "embedded" and name in STABLE:
        with pytest.raises(InputError, match="expected one of draft, standard, high for the embedded prior"):
            preset(name, "a", model)
        return
    config = validate(preset(name, "a prompt", model))
    assert (config.preset, config.distillation.model) == (name, model)


def test_stable_diffusion_has_dreamgaussians_recipe():
    config = preset("standard", "a", "some/model")
    assert config.schedule.steps == 500
    assert config.schedule.render_scales == (0.25,) * 3 + (0.5,) * 3 + (1.0,) * 4
    assert (config.schedule.camera_radius, config.schedule.fov) == (2.5, 49.1)
    assert (config.schedule.min_elevation, config.schedule.max_elevation) == (-30.0, 30.0)
    assert (config.schedule.overhead_fraction, config.schedule.backgrounds) == (0.0, "black-white")
    means = [config.scene.means_rate * rate_scales_at(at, config.scene)[0].item() for at in (0, 0.6, 0.9)]
    assert means == pytest.approx([1e-2, 2e-4, 2e-4])
    assert rate_scales_at(0.9, config.scene)[1:].tolist() == [1.0] * 4
    assert (config.scene.gaussians, config.scene.cloud) == (5000, "ball")
    assert (config.scene.densify_every, config.scene.densify_gradient) == (50, 0.01)
    assert (config.scene.split_above, config.scene.dead_opacity) == (0.04, 0.01)
    assert (config.distillation.guidance_scale, config.distillation.residual) == (100.0, "sds")
    assert preset("rescaled", "a", "some/model").distillation.guidance_rescale == 0.5
    assert preset("thrifty", "a", "some/model").schedule.picture_scales == (0.5,) * 7 + (1.0,) * 3
    for name in ("csd", "nfsd"):
        low = preset(name, "a", "some/model")
        assert (low.distillation.residual, low.distillation.guidance_scale) == (name, 7.5)
        assert low.negative_prompt


def test_a_written_configuration_comes_back_whatever_its_model():
    for config in (preset("draft", "a"), preset("nfsd", "a", "sd21")):
        assert from_dict(to_dict(config)) == config
    partial = {"prompt": "a", "preset": "csd", "distillation": {"model": "sdxl"}}
    assert from_dict(partial) == preset("csd", "a", "sdxl")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"residual": "nfsd"}, "--negative-prompt: expected what to stay away from, for --residual nfsd"),
        ({"residual": "csd", "guidance_rescale": 0.5}, "--guidance-rescale: expected 0 with --residual csd"),
        ({"guidance_rescale": 1.5}, "--guidance-rescale: expected a number from 0 to 1, got 1.5"),
        ({"picture_scales": (1.0, 0.5)}, "--picture-scales: expected 1 with the embedded prior"),
        ({"min_elevation": 50.0}, r"--min-elevation: expected at most --max-elevation \(45\), got 50"),
        ({"camera_radius": 1.0}, "--camera-radius: expected a number from 1.2 to 100, got 1.0"),
        ({"dead_opacity": 0.0}, "--dead-opacity: expected a number from 1e-06 to 0.999, got 0.0"),
        (
            {"model": "sd21", "residual": "csd", "preset": "ultra"},
            "--preset: expected one of draft, standard",
        ),
        ({"lora": ("a.safetensors=inf",)}, "--lora: expected FILE or FILE=SCALE with a finite number"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes, message):
    config = Config(prompt="a", preset=changes.get("preset", "standard"))
    for name in ("schedule", "scene", "distillation"):
        part = getattr(config, name)
        fields = {field: value for field, value in changes.items() if hasattr(part, field)}
        config = dataclasses.replace(config, **{name: dataclasses.replace(part, **fields)})
    with pytest.raises(InputError, match=message):
        validate(config)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.safetensors", ("a.safetensors", 1.0)),
        ("dir/a=0.5", ("dir/a", 0.5)),
        ("a=b=-2", ("a=b", -2.0)),
        ("a=b/c", ("a=b/c", 1.0)),
    ],
)
def test_an_adapter_is_a_file_and_a_scale(text, expected):
    assert adapter(text) == expected
