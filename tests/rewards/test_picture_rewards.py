"""Rewards that need no weights: jpeg, colour, contrast, symmetry. The object counts, not the background."""

from __future__ import annotations

import io
import json
import re
import shlex
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ddpo3d_fast.assets import EXPORTERS
from ddpo3d_fast.cli import main
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.priors import embedded as prior
from ddpo3d_fast.rewards import make_reward, scores_of, scores_vjp_of
from ddpo3d_fast.rewards.colour import COLOURS, likeness
from ddpo3d_fast.rewards.contrast import rms_contrast
from ddpo3d_fast.rewards.picture import object_weight
from ddpo3d_fast.rewards.symmetry import mirrored
from ddpo3d_fast.training.objects import COLORS

WHITE, BLACK, GREY, TEAL = (1.0,) * 3, (0.0,) * 3, (0.6,) * 3, (0.1, 0.6, 0.6)
EDGE = 0.03  # what the pixels of the disc's edge, which are of both colours, may add to a score
BACKGROUNDS = (WHITE, BLACK, GREY, TEAL)


def disc(left: tuple, right: tuple | None = None, background: tuple = WHITE, radius: float = 0.3) -> Tensor:
    """[1, 3, 64, 64], a disc of one or two colours, with an edge of a pixel."""
    at = (torch.arange(64) + 0.5) / 64 - 0.5
    distance = (at[:, None].square() + at.square()).sqrt()
    inside = ((radius - distance) * 64 + 0.5).clamp(0, 1)
    left_, right_, behind = (torch.tensor(c).view(3, 1, 1) for c in (left, right or left, background))
    return (inside * torch.where(at < 0, left_, right_) + (1 - inside) * behind)[None]


def score(name: str, picture: Tensor) -> float:
    return float(make_reward([name]).score(picture, [""]))


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("name", ["red", "blue", "yellow", "brown", "pink", "gray"])
def test_of_the_priors_colours_an_objects_own_scores_highest_on_any_background(name, background):
    picture = disc(COLOURS[name], background=background)
    scores = {other: score(f"colour:{other}", picture) for other in COLORS}
    assert max(scores, key=scores.get) == name
    assert scores[name] > 0.93


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_a_background_of_the_wanted_colour_is_worth_nothing(background):
    green, red = COLOURS["green"], COLOURS["red"]
    alone = score("colour:red", disc(green))
    assert score("colour:red", disc(green, background=red)) == pytest.approx(alone, abs=EDGE)
    assert score("colour:red", disc(green, background=background)) == pytest.approx(alone, abs=EDGE)
    for name in ("colour:red", "colour:white", "contrast", "symmetry"):  # a picture of nothing
        nothing = disc(background, background=background)
        assert score(name, nothing) < 1e-3
        assert score(name, disc(green, red, background)) > 0.1


def test_how_large_the_object_is_does_not_count():
    for name in ("colour:red", "contrast", "symmetry"):
        sizes = [score(name, disc(COLOURS["red"], COLOURS["green"], radius=r)) for r in (0.15, 0.3, 0.4)]
        assert max(sizes) - min(sizes) < EDGE


def test_the_nearer_to_the_colour_the_higher():
    blue, red = (torch.tensor(COLOURS[name]) for name in ("blue", "red"))
    scores = [score("colour:blue", disc(tuple(torch.lerp(red, blue, f).tolist()))) for f in (0, 0.3, 0.6, 1)]
    assert scores == sorted(scores)
    assert min(np.diff(scores)) > 0.1


def test_every_colour_of_the_embedded_vocabulary_has_its_own_value():
    known = json.loads((prior.FOLDER / "text_encoder" / "config.json").read_text())["colors"]
    assert {name: COLOURS[name] for name in known} == COLORS


def test_contrast_is_the_deviation_of_the_luma_over_the_object():
    for background in BACKGROUNDS[2:]:
        assert score("contrast", disc(TEAL[::-1], background=background)) < 0.06  # the disc's smooth edge
        assert score("contrast", disc(WHITE, BLACK, background)) == pytest.approx(0.5, abs=EDGE)
        assert score("contrast", disc((0.8,) * 3, (0.2,) * 3, TEAL)) == pytest.approx(0.3, abs=EDGE)


def test_symmetry_is_likeness_to_the_mirror_image():
    for background in BACKGROUNDS:
        assert score("symmetry", disc(COLOURS["red"], background=background)) > 0.99
        assert score("symmetry", disc(COLOURS["red"], COLOURS["pink"], background)) == pytest.approx(
            1 - np.linalg.norm(np.subtract(COLOURS["red"], COLOURS["pink"])) / 3**0.5, abs=EDGE
        )
    shifted = disc(COLOURS["red"]).roll(8, 3)  # the object itself is symmetric, the picture is not
    assert score("symmetry", shifted) < score("symmetry", disc(COLOURS["red"])) - 0.1


FORMULAS = {
    "colour:orange": lambda images, weight: likeness(images, weight, COLOURS["orange"]),
    "contrast": rms_contrast,
    "symmetry": mirrored,
}


@pytest.mark.parametrize("name", FORMULAS)
def test_the_gradient_is_each_scores_own_and_leaves_the_background_alone(name):
    generator = torch.Generator().manual_seed(0)
    images = torch.cat([disc(COLOURS["red"], COLOURS["blue"], background) for background in BACKGROUNDS])
    images = (images + 0.1 * torch.randn(images.shape, generator=generator)).clamp(0, 1)
    images[..., :16, :] = torch.tensor(GREY).view(3, 1, 1)
    scores, gradient = make_reward([name]).score_vjp(images, [""] * 4)
    weight = object_weight(images).double()
    leaf = images.double().requires_grad_()
    wanted = FORMULAS[name](leaf, weight)
    (expected,) = torch.autograd.grad(wanted.sum(), leaf)
    assert float((gradient - expected).norm() / expected.norm()) < 1e-5
    torch.testing.assert_close(scores.double(), wanted.detach(), rtol=1e-5, atol=1e-6)
    direction = torch.randn(images.shape, generator=generator).double()
    ahead, behind = (FORMULAS[name](images + s * direction, weight).sum() for s in (1e-5, -1e-5))
    assert float((ahead - behind) / 2e-5) == pytest.approx(float((expected * direction).sum()), rel=1e-4)
    background = disc(COLOURS["red"]).expand(1, 3, 64, 64)
    _, gradient = make_reward([name]).score_vjp(background, [""])
    assert float(gradient[..., :6, :].abs().max()) == 0  # far above the disc


@pytest.mark.parametrize("name", ["colour:red", "contrast", "symmetry", "jpeg"])
def test_pictures_of_any_size_and_number_are_scored_and_others_refused(name):
    reward = make_reward([name])
    for shape in ((0, 3, 64, 64), (2, 3, 1, 1), (1, 3, 5, 40)):
        images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        scores = reward.score(images, [""] * len(images))
        assert (scores.shape, scores.dtype) == ((len(images),), torch.float32)
        assert bool(torch.isfinite(scores).all())
    with pytest.raises(ValueError, match=r"images: expected shape \[B, 3, H, W\]"):
        reward.score(torch.rand(2, 4, 8, 8), ["", ""])
    with pytest.raises(TypeError, match="images: expected float32"):
        reward.score(torch.rand(2, 3, 8, 8).double(), ["", ""])


def test_jpeg_is_the_size_of_the_file_in_kilobytes():
    noise = torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(0))
    flat = torch.full_like(noise, 0.3)
    for images in (noise, flat):
        sizes = []
        for picture in images:
            file = io.BytesIO()
            array = (picture.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
            Image.fromarray(array).save(file, "JPEG", quality=95)
            sizes.append(len(file.getvalue()) / 1000)
        found = make_reward(["jpeg"]).score(images, ["", ""])
        torch.testing.assert_close(found, torch.tensor(sizes))
        torch.testing.assert_close(make_reward(["jpeg=-1"]).score(images, ["", ""]), -found)
    assert make_reward(["jpeg"]).score(noise, ["", ""]).min() > 2 * found.max()
    assert not make_reward(["jpeg=-1"]).differentiable
    with pytest.raises(InputError, match="has no gradient"):
        make_reward(["jpeg=-1"]).score_vjp(noise, ["", ""])


def test_they_add_up_and_each_is_told_without_its_weight():
    images = torch.cat([disc(COLOURS["red"], COLOURS["blue"], b) for b in BACKGROUNDS])
    names = {"jpeg": -1.0, "colour:blue": 2.0, "contrast": -0.5, "symmetry": 0.25, "embedded": 0.0}
    reward = make_reward([f"{name}={weight}" for name, weight in names.items()])
    alone = {name: make_reward([name]).score(images, [""] * 4) for name in names}
    total, each = scores_of(reward, images, [""] * 4)
    torch.testing.assert_close(total, sum(weight * alone[name] for name, weight in names.items()))
    torch.testing.assert_close(each, alone)
    (guided, parts), gradient = scores_vjp_of(reward, images, [""] * 4)
    torch.testing.assert_close((guided, parts), (total, each))
    differentiable = {name: make_reward([name]) for name in names if name != "jpeg"}
    expected = [names[n] * r.score_vjp(images, [""] * 4)[1] for n, r in differentiable.items()]
    torch.testing.assert_close(gradient, sum(expected))


@pytest.mark.parametrize("policy", ["noise", "latent", "view", "scene"])
def test_a_run_reports_each_by_name(policy, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setitem(EXPORTERS, "turntable.mp4", lambda path, _: path.write_bytes(b""))
    module = f"mine_{policy}"
    (tmp_path / f"{module}.py").write_text(
        "def plain(images, prompts): return images.numpy().mean((1, 2, 3))"
    )
    monkeypatch.chdir(tmp_path)
    words = ["--prompt", "a mushroom", "--preset", "draft", "--steps", "3", "--gaussians", "100"]
    words += ["--max-timestep", "0.3", "--device", "cpu", "--output", "run"]
    words += ["--policy", policy, "--policy-pairs", "4"]
    for reward in ("jpeg=-1", "colour:blue=2", "contrast", f"{module}:plain=0.5"):
        words += ["--reward", reward]
    assert main(["generate", *words]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    for row in rows:
        for kind in ("reward", "guide"):
            each = [row[f"{kind}.{name}"] for name in ("jpeg", "colour:blue", "contrast", f"{module}:plain")]
            assert row[kind] == pytest.approx(np.dot(each, [-1, 2, 1, 0.5]), abs=1e-5)
            assert each[0] > 0.5
    assert "reward " in (told := capsys.readouterr().err)
    assert "(jpeg " in told
    assert ", colour:blue " in told
    assert f", {module}:plain " in told


def test_the_ten_lines_of_the_manual_run(tmp_path: Path, monkeypatch):
    """All but the installation, with fewer steps."""
    monkeypatch.setitem(EXPORTERS, "turntable.mp4", lambda path, _: path.write_bytes(b""))
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text()
    lines = textwrap.dedent(re.search(r"\n\n((?:    .*\n){10})\n", text).group(1)).splitlines()
    assert lines[2] == "cat > my_rewards.py <<'END'"
    (tmp_path / "my_rewards.py").write_text("\n".join(lines[3 : lines.index("END")]))
    few = ["--steps", "2", "--gaussians", "60", "--device", "cpu", "--policy-pairs", "2"]
    for line in lines[lines.index("END") + 1 : -1]:
        assert main([*shlex.split(line)[1:], *few]) == 0
    assert lines[-1].startswith('grep -o \'"reward": ')
    rows = (tmp_path / "blue" / "metrics.jsonl").read_text().splitlines()
    assert all('"reward": ' in row for row in rows)
    assert (tmp_path / "plain" / "preview.png").is_file()
