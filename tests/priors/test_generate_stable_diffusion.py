"""The whole program on small Stable Diffusion folders: presets, the same asset every time, wrong input."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from small_stable_diffusion import make_tiny_vae, make_unet

from ddpo3d_fast import generate as loop
from ddpo3d_fast.assets import EXPORTERS, read_ply
from ddpo3d_fast.cli import main
from ddpo3d_fast.configure import preset
from ddpo3d_fast.engines.cache import entries
from ddpo3d_fast.engines.openvino import unavailable
from ddpo3d_fast.rewards.aesthetic import PREDICTORS
from ddpo3d_fast.run import RunFolder

PRESETS = ("draft", "standard", "high", "csd", "nfsd", "rescaled", "thrifty")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No turntable: that of other tests will do."""
    monkeypatch.setitem(EXPORTERS, "turntable.mp4", lambda path, _: path.write_bytes(b""))


def run(folder, name, output, **changes):
    """A few steps of a preset, over all of its sizes; the rows of its metrics."""
    config = preset(name, "a red view", str(folder))
    few = {
        "schedule": dataclasses.replace(config.schedule, steps=10, views=2),
        "scene": dataclasses.replace(config.scene, gaussians=200, densify_every=4),
        "distillation": dataclasses.replace(config.distillation, **{"runtime": "torch"} | changes),
        "reward": dataclasses.replace(config.reward, reward=("embedded",)),
    }
    config = dataclasses.replace(config, output=output, device="cpu", **few)
    rows = []
    loop.generate(config, RunFolder.create(config), rows.append)
    return [row for row in rows if row["stage"] == "distill"]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_makes_an_asset(folders, tmp_path, name):
    rows = run(folders["sd21"], name, tmp_path / "run")
    assert len(rows) == 10
    assert all(math.isfinite(row["loss"]) and row["loss"] > 0 for row in rows)
    assert any("reward" in row for row in rows)
    assert len(read_ply(tmp_path / "run" / "asset.ply").means) > 0


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_the_other_kinds_do_too_and_a_second_run_is_the_same_to_the_byte(folders, tmp_path, kind):
    for name in ("first", "second"):
        run(folders[kind], "thrifty", tmp_path / name)
    assets = [(tmp_path / name / "asset.ply").read_bytes() for name in ("first", "second")]
    assert assets[0] == assets[1]
    run(folders[kind], "thrifty", tmp_path / "hard", interpolate_views=False)
    assert (tmp_path / "hard" / "asset.ply").read_bytes() != assets[0]


@pytest.fixture
def clip(tmp_path, monkeypatch):
    """A folder of CLIP's with the aesthetic predictor beside it."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "rewards")
    from small_clip import CONFIGS, predictor_v2, save

    folder = save(tmp_path / "clip", CONFIGS["vit"])
    torch.save(predictor_v2(CONFIGS["vit"]["embed_dim"])[1], folder / PREDICTORS["aesthetic"][0])
    return folder


def test_stable_diffusion_and_an_aesthetic_scorer_make_an_asset_and_its_configuration_the_same_again(
    folders, clip, tmp_path, capsys
):
    words = f"--model {folders['sd15']} --preset draft --steps 2 --gaussians 50 --runtime torch --json"
    words += f" --reward aesthetic@{clip} --reward clip@{clip}=0.3 --output {tmp_path / 'run'} --device cpu"
    assert main(["generate", "--prompt", "a red view", *words.split()]) == 0
    *rows, last = map(json.loads, capsys.readouterr().out.splitlines())
    step = [row for row in rows if row["stage"] == "distill"][-1]
    assert all(math.isfinite(step[name]) and step[name] != 0 for name in ("reward", "guide"))
    assert last["seconds"]["total"] > 0
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert written["provenance"]["engine"].startswith("torch ")
    assert written["distillation"]["model"] == str(folders["sd15"])
    assert written["reward"]["reward"] == [f"aesthetic@{clip}", f"clip@{clip}=0.3"]
    again = ["--config", str(tmp_path / "run" / "config.yaml"), "--output", str(tmp_path / "again")]
    assert main(["generate", *again, "--quiet"]) == 0
    assets = [(tmp_path / name / "asset.ply").read_bytes() for name in ("run", "again")]
    assert assets[0] == assets[1]


def test_on_the_runtime_of_a_cpu_the_steps_are_those_on_torch(sd, tmp_path):
    """What a CPU chooses by itself: every network exported, built before the first step, and used."""
    # An export takes seconds for every block: the words stay in the middle, and the codec is a small one.
    plain = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    make_unet(**plain).save_pretrained(sd / "unet")
    make_tiny_vae().save_pretrained(tmp_path / "tiny")
    torch_rows = run(sd, "draft", tmp_path / "torch", codec=str(tmp_path / "tiny"))
    rows = run(sd, "draft", tmp_path / "onnx", codec=str(tmp_path / "tiny"), runtime="auto", precision="fp32")
    assert rows[0]["loss"] == pytest.approx(torch_rows[0]["loss"], rel=1e-4)
    written = yaml.safe_load((tmp_path / "onnx" / "config.yaml").read_text())["provenance"]
    for name in ("engine", "encoder_engine", "encoder_vjp_engine", "decoder_engine"):
        assert written[name].startswith("ONNX Runtime " if unavailable() else "OpenVINO ")
    assert {entry.facts["name"].partition("-")[0] for entry in entries()} >= {"unet", "encoder", "decoder"}


def test_a_model_that_gives_no_numbers_is_given_up(folders, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(folders["sd15"], folder)
    (weights,) = (folder / "unet").glob("*.safetensors")
    tensors = {name: tensor.clone() for name, tensor in load_file(weights).items()}
    tensors["conv_in.bias"].fill_(math.nan)
    save_file(tensors, weights, {"format": "pt"})
    words = (
        f"--model {folder} --steps 20 --gaussians 50 --runtime torch --reward embedded --device cpu --quiet"
    )
    assert main(["generate", "--prompt", "a red", "--output", str(tmp_path / "run"), *words.split()]) == 2
    line = capsys.readouterr().err
    assert "has given no number in 10 steps on end, the last of them step 10" in line
    assert line.count("\n") == 1
    assert not (tmp_path / "run" / "asset.ply").exists()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_run_from_zero_terminal_snr_begins_where_the_prediction_says_something(
    sd, tmp_path, capsys, prediction
):
    """A clean guess from epsilon would be thousands of times too large there; the other two begin at once."""
    losses, steps = [], []
    for zero in (False, True):
        path = sd / "scheduler" / "scheduler_config.json"
        changes = {
            "_class_name": "DDIMScheduler",
            "rescale_betas_zero_snr": zero,
            "prediction_type": prediction,
        }
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        words = f"--model {sd} --residual clean --max-timestep 1 --timestep-jitter 0 --steps 1 --gaussians 50"
        words += f" --runtime torch --reward embedded --device cpu --json --output {tmp_path / str(zero)}"
        assert main(["generate", "--prompt", "a red view", *words.split()]) == 0
        out, err = capsys.readouterr()
        (row,) = (row for row in map(json.loads, out.splitlines()) if row["stage"] == "distill")
        losses.append(row["loss"])
        steps.append(row["timestep"])
    assert losses[1] < 20 * losses[0]  # without a limit 80,000 times
    assert steps[0] == 999
    if prediction == "epsilon":
        assert steps[1] == 957
        assert "--max-timestep 1: this model predicts the noise" in err
        assert err.count("\n") == 1
    else:
        assert steps[1] == 999
        assert not err


@pytest.mark.parametrize(
    ("kind", "part", "name", "value"),
    [
        ("sd15", "vae/config.json", "scaling_factor", None),
        ("sd15", "vae/config.json", "scaling_factor", "a"),
        ("sd15", "unet/config.json", "cross_attention_dim", [32, 32]),
        ("sd15", "scheduler/scheduler_config.json", "num_train_timesteps", 0),
        ("sd15", "scheduler/scheduler_config.json", "trained_betas", []),
        ("sdxl", "text_encoder_2/config.json", "projection_dim", None),
        ("sdxl", "unet/config.json", "addition_time_embed_dim", None),
    ],
)
def test_a_damaged_configuration_is_one_line_that_names_it(
    folders, tmp_path, capsys, kind, part, name, value
):
    folder = tmp_path / "model"
    shutil.copytree(folders[kind], folder)
    config = json.loads((folder / part).read_text())
    (folder / part).write_text(json.dumps(config | {name: value}))
    words = ["generate", "--prompt", "a red view", "--model", str(folder), "--runtime", "torch"]
    assert main([*words, "--reward", "embedded", "--output", str(tmp_path / "run")]) == 2
    line = capsys.readouterr().err
    assert str(folder / part.partition("/")[0]) in line
    assert line.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--preset nfsd --negative-prompt", "--negative-prompt: expected what to stay away from"),
        ("--codec ./nowhere", "--codec: expected "),
        ("--reward clip@./nowhere", "--reward: clip@./nowhere: expected "),
        ("--codec nowhere", "--codec: "),
        ("--lora nowhere.safetensors", "nowhere.safetensors"),
        ("--picture-scales 0.3", "--render-scales, --picture-scales: expected pictures"),
        ("--render-scales 1.5", "--render-scales, --picture-scales: expected pictures"),
        ("--reward embedded --preset ultra", "--preset: expected one of draft, standard, high, csd, nfsd, "),
    ],
)
def test_wrong_input_is_one_line(folders, tmp_path, capsys, words, message):
    arguments = [*words.split(), ""] if words.endswith("-prompt") else words.split()
    output = tmp_path / "run"
    assert main(
        ["generate", "--prompt", "a red view", "--model", str(folders["sd15"]), "--runtime", "torch",
         "--reward", "embedded", "--output", str(output), *arguments]
    ) == 2  # fmt: skip
    line = capsys.readouterr().err
    assert message in line
    assert line.count("\n") == 1
    assert not output.exists()
