"""The evidence for the policy gradient: what its arms change, and the arithmetic of its table."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from ddpo3d_fast.configure import preset, validate
from ddpo3d_fast.guidance import ScoreDistillation
from ddpo3d_fast.guidance.policy import policy_schedule
from ddpo3d_fast.schedule import timestep_at

ROW = {
    "reward": 0.5, "other reward": 0.25, "class": -0.1, "colour": -0.2, "IoU": 0.75,
    "steps": 70, "evaluations": 280, "seconds": 3.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def benchmark(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("policy_gradient")


def assets(benchmark: ModuleType, gains: list[float], seeds: int = 2) -> list[dict]:
    """Rows of prompts whose own levels differ far more than the arms: gain k at prompt k."""
    return [
        {**ROW, "prompt": f"prompt {k}", "seed": seed, "arm": arm, "reward": 10.0 * k + seed + gain}
        for k, gain_k in enumerate(gains)
        for seed in range(seeds)
        for arm, gain in (("sds", 0.0), ("all", gain_k))
    ]


def test_differences_are_paired_and_average_the_seeds_of_a_prompt(benchmark: ModuleType) -> None:
    rows = assets(benchmark, [0.1, 0.2, 0.3])
    rows[3]["reward"] += 0.4  # of prompt 0, seed 1, all
    assert benchmark.paired_differences(rows, "all", "reward") == pytest.approx([0.3, 0.2, 0.3])


def test_an_asset_without_its_partner_does_not_count(benchmark: ModuleType) -> None:
    rows = assets(benchmark, [0.1, 0.2], seeds=1)
    assert benchmark.paired_differences(rows[:3], "all", "reward") == pytest.approx([0.1])
    assert benchmark.paired_differences(rows[1:], "all", "reward") == pytest.approx([0.2])


def test_the_summary_sees_a_small_gain_under_large_differences_between_prompts(benchmark: ModuleType) -> None:
    lines = benchmark.summary(assets(benchmark, [0.01, 0.03] * 4))
    base, arm = (line for line in lines if line["measure"] == "reward")
    assert base == {"measure": "reward", "arm": "sds", "assets": 16, "mean": pytest.approx(35.5)}
    assert (arm["mean"], arm["difference"]) == (pytest.approx(35.52), pytest.approx(0.02))
    low, high = arm["interval"]
    assert 0.01 < low < 0.02 < high < 0.03


def test_the_table_has_a_line_for_every_measure_and_arm(benchmark: ModuleType) -> None:
    lines = benchmark.table(assets(benchmark, [0.5] * 6)).splitlines()
    assert lines[1].split() == ["reward", "sds", "12", "25.500"]
    assert lines[2].split() == ["all", "12", "26.000", "+0.500", "+0.500", "to", "+0.500"]
    assert len(lines) == 1 + 2 * len(benchmark.MEASURES)


def test_the_control_keeps_each_views_advantages_and_changes_their_order(benchmark: ModuleType) -> None:
    rewards = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))

    def advantages(arm: str) -> torch.Tensor:
        config = benchmark.arm_config(preset("draft", "a red ball"), arm)
        fields = {"prediction_type": "sample", "clip": (-1.0, 1.0), "alphas_cumprod": torch.ones(1000)}
        prior = SimpleNamespace(**fields, device="cpu")
        distill = ScoreDistillation(prior, None, None, config)
        return distill.judge.advantages(
            rewards, {"lots": torch.rand(6, 8, generator=torch.Generator().manual_seed(2))}
        )

    plain, control = advantages("sds+policy"), advantages("sds+shuffled")
    assert torch.equal(control.sort(1).values, plain.sort(1).values)
    torch.testing.assert_close(control.mean(1), plain.mean(1), atol=1e-6, rtol=0)
    assert (control != plain).any(1).all()


def test_the_control_differs_from_its_arm_in_the_shuffling_alone(benchmark: ModuleType) -> None:
    config = preset("draft", "a red ball")
    plain, control = (benchmark.arm_config(config, arm) for arm in ("sds+policy", "sds+shuffled"))
    unshuffled = dataclasses.replace(control.reward, shuffle_advantages=False)
    assert plain == dataclasses.replace(control, reward=unshuffled)
    schedule = dataclasses.replace(config.schedule, noises=2)
    assert benchmark.arm_config(config, "all") == dataclasses.replace(config, schedule=schedule)
    base = benchmark.arm_config(config, "sds").reward
    assert (base.policy_weight, base.guide_weight) == (0, 0)


@pytest.mark.parametrize(("name", "changes"), [("draft", {}), ("standard", {"noises": 4, "views": 3})])
def test_every_arm_has_the_same_unet_evaluations(benchmark: ModuleType, name: str, changes: dict) -> None:
    config = preset(name, "a red ball")
    config = dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, **changes))
    budget = config.schedule.steps * config.schedule.views * config.schedule.actions(True)
    for arm in benchmark.ARMS:
        made = validate(benchmark.arm_config(config, arm))
        schedule, generator = made.schedule, torch.Generator().manual_seed(0)
        count = 0
        for step in range(schedule.steps):  # as the loop and the guidance have it
            jitter = schedule.timestep_jitter * (2 * torch.rand(schedule.views, generator=generator) - 1)
            fraction, low, high = step / schedule.steps, schedule.min_timestep, schedule.max_timestep
            timesteps = timestep_at(fraction, 1000, low, high, jitter)
            acts = bool((policy_schedule(timesteps / 1000, made.reward.policy_max_timestep) > 0).any())
            further = made.reward.policy == "latent" and made.reward.policy_weight > 0 and acts
            count += schedule.views * (schedule.noises + further)
        assert count == pytest.approx(budget, rel=0.02), arm
        assert made.reward.policy == "latent" or count == budget


def test_unet_calls_are_counted_as_noisy_latents(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark.EmbeddedPrior, "predict", lambda prior, noisy, *others: (noisy, noisy))
    untouched = benchmark.EmbeddedPrior.predict
    with benchmark.counted_evaluations() as counts:
        guess, _ = benchmark.EmbeddedPrior.predict(None, torch.ones(6, 2), torch.ones(6), {})
    assert (counts, guess.shape) == ([6], (6, 2))
    assert benchmark.EmbeddedPrior.predict is untouched


def test_an_interrupted_run_keeps_what_it_has(
    benchmark: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    made: list[tuple[str, int]] = []

    def make_asset(config):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append((config.prompt, config.seed))
        return None, {"steps": 70, "evaluations": 280, "seconds": 3.0}

    monkeypatch.setattr(benchmark, "make_asset", make_asset)
    monkeypatch.setattr(benchmark, "Judges", lambda scorer: lambda *asset: dict(ROW))
    monkeypatch.setattr(benchmark, "true_coverage", lambda name: None)
    file = tmp_path / "figures.json"
    assert benchmark.main(["--arms", "sds+shuffled", "--seeds", "5", "6", "--json", str(file)]) == 130
    assert made == [("a red mushroom", 5)] * 2 + [("a red mushroom", 6)]
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["reward", "sds", "2", "0.500"]
    assert lines[3].split() == ["sds+shuffled", "1", "0.500", "+0.000", "-"]
    assert [row["arm"] for row in json.loads(file.read_text())["rows"]] == ["sds", "sds+shuffled", "sds"]


def test_flags_of_generate_are_checked_before_the_first_asset(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "make_asset", lambda config: pytest.fail("made an asset"))
    assert benchmark.main(["--arms", "sds+policy", "--", "--noises", "1"]) == 2
    message = "--noises: expected at least 2 for a policy gradient with the group baseline, got 1"
    assert capsys.readouterr().err.strip() == message
