"""The files that a run is made from: found again from everywhere, and known from others of the same name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from ddpo3d_fast.assets import EXPORTERS
from ddpo3d_fast.cli import main
from ddpo3d_fast.rewards.aesthetic import PREDICTORS
from ddpo3d_fast.run import RunFolder

PREDICTOR = PREDICTORS["aesthetic"][0]
WORDS = (
    "--model model --codec codec --lora style.safetensors=0.5 --reward aesthetic@clip --reward clip@clip=0.3 "
)
WORDS += (
    "--reward my_rewards:bright --runtime torch --preset draft --gaussians 50 --device cpu --quiet --steps 2"
)


@pytest.fixture
def work(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with one of everything that a run can name."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "rewards")
    from small_clip import CONFIGS, predictor_v2, save

    monkeypatch.setitem(EXPORTERS, "turntable.mp4", lambda path, _: path.write_bytes(b""))
    work = tmp_path / "work"
    shutil.copytree(folders["sd15"], work / "model")
    shutil.copytree(folders["sd15"] / "vae", work / "codec")
    save(work / "clip", CONFIGS["vit"])
    torch.save(predictor_v2(CONFIGS["vit"]["embed_dim"])[1], work / "clip" / PREDICTOR)
    (work / "my_rewards.py").write_text("def bright(images, prompts):\n    return images.mean((1, 2, 3))\n")
    unet = load_file(next((work / "model" / "unet").glob("*.safetensors")))
    name = next(name for name in unet if name.endswith("attn1.to_q.weight"))
    (rows, columns), name = unet[name].shape, f"unet.{name.removesuffix('.weight')}"
    matrices = {f"{name}.lora_A.weight": torch.ones(2, columns), f"{name}.lora_B.weight": torch.ones(rows, 2)}
    save_file(matrices, work / "style.safetensors")
    monkeypatch.chdir(work)
    return work


def retrained(path: Path) -> None:
    """The same tensors, a little off."""
    tensors = {name: tensor + 1e-4 for name, tensor in load_file(path).items()}
    save_file(tensors, path, {"format": "pt"})


def retrained_predictor(path: Path) -> None:
    torch.save({name: tensor + 1e-4 for name, tensor in torch.load(path).items()}, path)


def edited(path: Path) -> None:
    path.write_text(path.read_text() + "\n")


CHANGES: dict[str, Callable[[Path], None]] = {
    "style.safetensors": retrained,
    "model/unet/diffusion_pytorch_model.safetensors": retrained,
    "model/text_encoder/model.safetensors": retrained,
    "model/scheduler/scheduler_config.json": edited,
    "model/tokenizer/vocab.json": edited,
    "codec/diffusion_pytorch_model.safetensors": retrained,
    "clip/open_clip_model.safetensors": retrained,
    f"clip/{PREDICTOR}": retrained_predictor,
    "my_rewards.py": edited,
}


def test_a_run_is_the_same_from_everywhere_and_no_other_file_takes_the_place_of_one_of_its_own(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "--prompt", "a red view", "--output", "run", *WORDS.split()]) == 0
    written = yaml.safe_load((work / "run" / "config.yaml").read_text())
    assert written["distillation"]["model"] == str(work / "model")
    assert written["distillation"]["codec"] == str(work / "codec")
    assert written["distillation"]["lora"] == [f"{work / 'style.safetensors'}=0.5"]
    assert written["reward"]["reward"] == [
        f"aesthetic@{work / 'clip'}",
        f"clip@{work / 'clip'}=0.3",
        f"{work / 'my_rewards'}:bright",
    ]

    elsewhere, run = tmp_path / "elsewhere", work / "run"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    again = ["--config", str(run / "config.yaml"), "--output", str(tmp_path / "again"), "--quiet"]
    assert main(["generate", *again]) == 0
    assert (tmp_path / "again" / "asset.ply").read_bytes() == (run / "asset.ply").read_bytes()
    assert main(["generate", "--resume", str(run), "--quiet"]) == 0

    for name, change in CHANGES.items():
        shutil.copy(work / name, tmp_path / "kept")
        change(work / name)
        before = {path: path.read_bytes() for path in run.iterdir()}
        assert main(["generate", "--resume", str(run)]) == 2, name
        line = capsys.readouterr().err
        assert line.startswith(
            f"ddpo3d-fast: --resume: {work / name} is not the file that {run / 'checkpoint.pt'}"
        )
        assert line.count("\n") == 1
        assert {path: path.read_bytes() for path in run.iterdir()} == before
        shutil.copy(tmp_path / "kept", work / name)
    assert main(["generate", "--resume", str(run), "--quiet"]) == 0


def test_the_embedded_models_files_are_known_too(tmp_path: Path) -> None:
    words = "--preset draft --steps 1 --gaussians 50 --device cpu --quiet"
    assert (
        main(["generate", "--prompt", "a red ball", "--output", str(tmp_path / "run"), *words.split()]) == 0
    )
    folder = RunFolder.open(tmp_path / "run")
    folder.load_checkpoint()
    names = {"/".join(Path(path).parts[-2:]) for path in folder._stored_sources}
    assert names >= {
        "unet/model.onnx",
        "unet/diffusion_pytorch_model.safetensors",
        "scorer/model.safetensors",
    }
    assert names >= {"text_encoder/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json"}
