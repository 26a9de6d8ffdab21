"""The study: its prompts, arms, judging and statistics, and what it leaves behind."""

from __future__ import annotations

import dataclasses
import json
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from ddpo3d_fast import build
from ddpo3d_fast.assets import EXPORTERS
from ddpo3d_fast.configure import preset
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.priors import load_prior
from ddpo3d_fast.priors.caption import Vocabulary
from ddpo3d_fast.priors.prompts import Caption, parse_prompt
from ddpo3d_fast.training.objects import CLASS_NAMES, COLOR_NAMES, material_colors


@pytest.fixture(scope="module")
def paired(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("paired")


@pytest.fixture(scope="module")
def quality(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("quality")


@pytest.fixture(scope="module")
def report(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("report")


def test_the_interval_of_ten_coins_is_that_of_the_binomial(paired: ModuleType) -> None:
    # Binomial(10, 1/2): P(X <= 1) = 0.011, P(X <= 2) = 0.055, so that its 2.5 % quantile is 2.
    assert paired.bootstrap_interval([0.0, 1.0] * 5) == pytest.approx((0.2, 0.8))


def test_the_interval_of_many_values_is_the_normal_one(paired: ModuleType) -> None:
    values = torch.randn(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    half = 1.96 * values.std(correction=0) / 200**0.5
    expected = float(values.mean() - half), float(values.mean() + half)
    assert paired.bootstrap_interval(values.tolist()) == pytest.approx(expected, abs=0.01)


def test_the_interval_repeats_and_shrinks_to_a_constant(paired: ModuleType) -> None:
    values = [0.1, 0.4, -0.2, 0.3, 0.0, 0.2]
    assert paired.bootstrap_interval(values) == paired.bootstrap_interval(values)
    assert paired.bootstrap_interval([0.3] * 6) == pytest.approx((0.3, 0.3))


def test_too_few_prompts_have_no_interval(paired: ModuleType) -> None:
    assert paired.bootstrap_interval([0.1] * 5) is None


def assets(gains: list[float], seeds: int = 2) -> list[dict]:
    """Rows of prompts whose own levels differ far more than the arms: gain k at prompt k."""
    return [
        {"prompt": f"prompt {k}", "seed": seed, "arm": arm, "reward": 10.0 * k + seed + gain}
        for k, gain_k in enumerate(gains)
        for seed in range(seeds)
        for arm, gain in (("sds", 0.0), ("all", gain_k))
    ]


def test_differences_are_paired_and_average_the_seeds_of_a_prompt(paired: ModuleType) -> None:
    rows = assets([0.1, 0.2, 0.3])
    rows[3]["reward"] += 0.4  # of prompt 0, seed 1, all
    assert paired.paired_differences(rows, "all", "reward", "sds") == pytest.approx([0.3, 0.2, 0.3])
    del rows[0]  # its partner does not count then
    assert paired.paired_differences(rows, "all", "reward", "sds") == pytest.approx([0.5, 0.2, 0.3])


def test_the_summary_sees_a_small_gain_under_large_differences_between_prompts(paired: ModuleType) -> None:
    base, arm = paired.summary(assets([0.01, 0.03] * 4), {"reward": 3}, "sds")
    assert base == {"measure": "reward", "arm": "sds", "assets": 16, "mean": pytest.approx(35.5)}
    assert (arm["mean"], arm["difference"]) == (pytest.approx(35.52), pytest.approx(0.02))
    low, high = arm["interval"]
    assert 0.01 < low < 0.02 < high < 0.03


def test_the_table_has_a_line_for_every_measure_and_arm(paired: ModuleType) -> None:
    lines = paired.table(assets([0.5] * 6), {"reward": 3}, "sds").splitlines()
    assert lines[1].split() == ["reward", "sds", "12", "25.500"]
    assert lines[2].split() == ["all", "12", "26.000", "+0.500", "+0.500", "to", "+0.500"]
    assert len(lines) == 3


def test_what_an_asset_has_none_of_does_not_count(paired: ModuleType) -> None:
    values = {"sds": [1.0, None, 3.0], "all": [2.0, 5.0, None]}
    rows = [
        {"prompt": str(at), "seed": 0, "arm": arm, "reward": value}
        for arm, found in values.items()
        for at, value in enumerate(found)
    ]
    base, arm = paired.summary(rows, {"reward": 1}, "sds")
    assert (base["assets"], base["mean"], arm["mean"], arm["difference"]) == (2, 2.0, 3.5, 1.0)


def test_prompts_drawn_at_random_are_what_the_prior_understands(quality: ModuleType) -> None:
    words = Vocabulary(CLASS_NAMES, COLOR_NAMES)
    drawn = quality.random_prompts(48, 0)
    assert drawn == quality.random_prompts(48, 0)
    assert drawn != quality.random_prompts(48, 1)
    assert len(set(drawn)) == 48
    for wanted in drawn:
        assert parse_prompt(wanted.prompt, words, "") == Caption(wanted.name, wanted.color, wanted.second)
    many = quality.random_prompts(400, 2)
    assert {wanted.name for wanted in many} == set(CLASS_NAMES)
    assert {wanted.color for wanted in many} == set(COLOR_NAMES)
    pairs = Counter(wanted.second is not None for wanted in many if wanted.name == "mushroom")
    assert min(pairs[True], pairs[False]) >= 2
    assert all(wanted.second is None for wanted in many if wanted.name in ("ball", "cube", "cone"))


def test_a_second_colour_is_read_where_the_true_object_shows_it(quality: ModuleType) -> None:
    materials = quality.true_materials("donut")
    for second in ("blue", "white", "brown"):
        palette = torch.from_numpy(material_colors("donut", "green", second))
        views = torch.einsum("vkhw,kc->vchw", materials[:, :4], palette) + 1 - materials[:, 4:]
        noisy = views + 0.05 * torch.randn(views.shape, generator=torch.Generator().manual_seed(0))
        assert quality.second_named(noisy, "donut", "green") == second


def test_an_arm_changes_what_its_name_says(quality: ModuleType) -> None:
    config = preset("draft", "a red ball")
    assert quality.arm_config(config, "all") == config
    weights = {arm: quality.arm_config(config, arm).reward for arm in quality.ARMS if arm != "nfsd"}
    assert {arm for arm, w in weights.items() if not w.policy_weight and not w.guide_weight} == {
        *("sds", "sds7", "csd", "ism", "sdi")
    }
    for arm, its_control in (("scene", "shuffled"), ("noise", "unordered")):
        plain, control = weights[arm], weights[its_control]
        assert plain == dataclasses.replace(control, shuffle_advantages=False) != control
    plain = weights["scene"]
    heavy = quality.arm_config(config, "scene*4").reward
    assert heavy == dataclasses.replace(plain, policy_weight=4 * plain.policy_weight)
    assert quality.arm_config(config, "guide*0.5").reward.guide_weight == 0.5 * config.reward.guide_weight
    for wrong in ("scene*much", "scenes"):
        with pytest.raises(InputError, match="--arms: expected"):
            quality.arm_config(config, wrong)


def test_evaluations_are_noisy_latents_with_and_without_the_prompt(
    quality: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    prior = SimpleNamespace(predict=lambda noisy, timesteps, conditions: (noisy,))
    monkeypatch.setattr(build, "load_prior", lambda settings: prior)
    with quality.counted_evaluations() as counts:
        loaded = build.load_prior(None)
        for groups in (2, 1, 3):
            loaded.predict(torch.ones(6, 2), torch.ones(6), {"words": torch.ones(groups, 3, 4)})
    assert counts == [6, 3, 9]
    assert load_prior is not build.load_prior


def test_a_study_goes_on_where_it_was_left_and_leaves_its_page(
    quality: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(EXPORTERS, "turntable.mp4", lambda path, _: path.write_bytes(b""))
    page = tmp_path / "results.md"
    page.write_text("# Results\n\nOf others.\n")
    files = {name: str(tmp_path / file) for name, file in (("json", "f.json"), ("pictures", "views"))}
    files |= {name: str(tmp_path / f"{name}.png") for name in ("sheet", "gallery")}
    files |= {"plot": str(tmp_path / "p.svg"), "results": str(page)}
    words = [f"--{name}={path}" for name, path in files.items()]
    words += ["--preset", "draft", "--random", "1", "--seeds", "0", "--arms"]
    run = ["--", "--steps", "2", "--noises", "2", "--gaussians", "60", "--device", "cpu"]
    assert quality.main([*words, "sds", *run]) == 0
    first = json.loads((tmp_path / "f.json").read_text())["rows"]
    made = []
    monkeypatch.setattr(quality, "make", lambda task, make=quality.make: made.append(task.arm) or make(task))
    assert quality.main([*words, "sds", "guide", *run]) == 0
    rows = json.loads((tmp_path / "f.json").read_text())["rows"]
    assert made == ["guide"]
    assert rows[:1] == first
    assert [row["evaluations"] for row in rows] == [8, 8]
    assert all(row["seconds"] > 0 and row["rewards"] == {"embedded": row["reward"]} for row in rows)
    once = page.read_text()
    assert "Of others." in once
    assert once.count("## Arms beside each other") == 1  # not one for each run
    assert "| | sds | guide |" in once
    assert "](p.svg)" in once
    assert "](gallery.png)" in once
    assert (tmp_path / "sheet.png").is_file()
    assert (tmp_path / "gallery.png").is_file()
    ElementTree.parse(tmp_path / "p.svg")
    capsys.readouterr()
    assert quality.main([*words, "sds", "--", "--steps", "3"]) == 2
    assert capsys.readouterr().err.startswith("--json: expected figures of ")


def test_a_section_is_replaced_and_nothing_else(report: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    report.replace_section(page, "one", "first")
    report.replace_section(page, "two", "other")
    page.write_text(page.read_text() + "\ntail\n")
    before = page.read_text()
    report.replace_section(page, "one", "second")
    assert page.read_text() == before.replace("first", "second")
    assert page.read_text().startswith("# Results\n")
