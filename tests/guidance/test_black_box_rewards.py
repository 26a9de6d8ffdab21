"""Runs whose reward is a black box: it answers yes or no, takes its time, or is one of two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ddpo3d_fast.assets import EXPORTERS, read_ply
from ddpo3d_fast.cli import main
from ddpo3d_fast.scene.gaussians import SH_C0

REWARDS = """
    import time
    from pathlib import Path

    def bluer(images, prompts):
        return (images[:, 2] - images[:, 0]).mean((1, 2)).tolist()

    def greener(images, prompts):
        return (images[:, 1] - images[:, 0]).mean((1, 2)).tolist()

    def is_blue(images, prompts):  # the median of many, so that a yes is neither rare nor sure
        blueness = (images[:, 2] - images[:, 0]).mean((1, 2)).numpy()
        return (blueness > sorted(blueness)[len(blueness) // 2]).astype(int)

    def slow(images, prompts):
        time.sleep(0.2)
        with Path(__file__).with_suffix(".calls").open("a") as calls:
            calls.write(f"{len(images)}\\n")
        return bluer(images, prompts)
"""


@pytest.fixture(scope="module")
def rewards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rewards") / "boxes.py"
    file.write_text("\n".join(line[4:] for line in REWARDS.splitlines()))
    return file


@pytest.fixture(scope="module")
def plain(rewards: Path) -> list[float]:
    return colors(rewards, "--policy-weight", "0")[0]


def colors(file: Path, *flags: str) -> tuple[list[float], list[dict[str, Any]]]:
    """Mean red, green and blue of the Gaussians that a short run makes, and what it told of its steps."""
    output = file.parent / f"run-{len(list(file.parent.iterdir()))}"
    words = ["--prompt", "a mushroom", "--preset", "draft", "--gaussians", "150", "--guide-weight", "0"]
    words += ["--steps", "12", "--views", "1", "--noises", "1", "--policy", "scene", "--colors-rate", "0.2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(EXPORTERS, "turntable.mp4", lambda path, _: path.write_bytes(b""))
        assert main(["generate", *words, "--quiet", "--device", "cpu", "--output", str(output), *flags]) == 0
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    means = 0.5 + SH_C0 * read_ply(output / "asset.ply").sh[:, 0].mean(0)
    return means.tolist(), rows


def named(file: Path, function: str) -> tuple[str, ...]:
    return "--reward", f"{file.with_suffix('')}:{function}", "--policy-weight", "4"


def test_a_reward_that_answers_yes_or_no_steers(rewards: Path, plain: list[float]) -> None:
    red, _, blue = colors(rewards, *named(rewards, "is_blue"))[0]
    assert blue - red > plain[2] - plain[0] + 0.1


def test_a_slow_reward_is_asked_now_and_then_and_steers(rewards: Path, plain: list[float]) -> None:
    (red, _, blue), rows = colors(rewards, *named(rewards, "slow"), "--policy-every", "5")
    asked = rewards.with_suffix(".calls").read_text().split()
    assert asked.count("64") == 3  # in steps 1, 6 and 11; the others are trials before the run
    assert [row["step"] for row in rows if "reward" in row] == [1, 6, 11]
    assert blue - red > plain[2] - plain[0] + 0.1


def test_two_rewards_at_once_steer_towards_both(rewards: Path, plain: list[float]) -> None:
    both = colors(rewards, *named(rewards, "bluer"), *named(rewards, "greener"))[0]
    red, green, blue = (one - other for one, other in zip(both, plain, strict=True))
    assert min(green, blue) - red > 0.05
