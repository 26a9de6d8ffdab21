"""A list of prompts: which runs it asks for, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddpo3d_fast.batch.jobs import Job, parse_seeds, read_jobs
from ddpo3d_fast.configure import preset
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.run import RunFolder


def jobs_of(text: str, folder: Path, name: str = "list.txt", **flags: str) -> list[Job]:
    (folder / name).write_text(text, encoding="utf-8")
    return read_jobs(folder / name, folder / "out", **flags)


def test_a_text_has_a_prompt_a_line(tmp_path: Path) -> None:
    text = "\ufeff# animals\n\n  a red ball \r\na blue cube # with no comment\n#a green tree\n"
    jobs = jobs_of(text, tmp_path)
    assert [job.config.prompt for job in jobs] == ["a red ball", "a blue cube # with no comment"]
    assert [job.where for job in jobs] == ["line 3", "line 4"]
    assert jobs[0].config == preset_at(tmp_path / "out" / "a-red-ball-0", "standard", "a red ball")


def preset_at(folder: Path, name: str, prompt: str):
    from dataclasses import replace

    return replace(preset(name, prompt), output=folder)


def test_each_prompt_has_each_seed_and_each_run_its_own_folder(tmp_path: Path) -> None:
    jobs = jobs_of("a red ball\na blue cube\na red ball\n", tmp_path, preset="draft", seeds="0-1,7")
    names = [
        "a-red-ball-0",
        "a-red-ball-1",
        "a-red-ball-7",
        "a-blue-cube-0",
        "a-blue-cube-1",
        "a-blue-cube-7",
    ]
    assert [job.folder.name for job in jobs] == names
    assert {job.config.preset for job in jobs} == {"draft"}


YAML = """
preset: draft
schedule: {steps: 12, views: 3}
runs:
  - a red ball
  - prompt: a blue cube
    seed: 2-3
    schedule: {views: 1}
  - prompt: a red ball
    preset: high
    seed: [0, 5-6]
"""


def test_a_run_in_yaml_has_settings_of_its_own_before_those_for_all(tmp_path: Path) -> None:
    jobs = jobs_of(YAML, tmp_path, "list.yaml")
    assert [(job.where, job.config.prompt, job.config.seed) for job in jobs] == [
        ("run 1", "a red ball", 0),
        ("run 2", "a blue cube", 2),
        ("run 2", "a blue cube", 3),
        ("run 3", "a red ball", 0),
        ("run 3", "a red ball", 5),
        ("run 3", "a red ball", 6),
    ]
    assert [job.config.schedule.views for job in jobs] == [3, 1, 1, 3, 3, 3]
    assert {job.config.schedule.steps for job in jobs} == {12}
    assert [job.config.scene.gaussians for job in jobs][::3] == [1500, 6000]
    # The same prompt and seed with other settings is another run.
    assert [job.folder.name for job in jobs][::3] == ["a-red-ball-0", "a-red-ball-0-2"]
    assert jobs == jobs_of(YAML, tmp_path, "list.yaml")


def test_a_list_alone_is_yaml_too_and_a_runs_own_file_can_be_in_it(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", preset("draft", "a red ball"))
    folder.begin(folder.config, {})
    text = (folder.path / "config.yaml").read_text().replace("\n", "\n  ")
    (job,) = jobs_of(f"- {text}", tmp_path, "list.yml")
    assert job.config == preset_at(tmp_path / "out" / "a-red-ball-0", "draft", "a red ball")


def test_what_is_wrong_with_one_run_is_an_error_of_it_alone(tmp_path: Path) -> None:
    text = "- a red ball\n- {prompt: a blue cube, schedule: {steps: 0}}\n- {prompt: ' '}\n- {seed: 3}\n"
    good, steps, blank, none = jobs_of(text, tmp_path, "list.yaml")
    assert good.error == ""
    assert steps.error == "--steps: expected a number from 1 to 100000, got 0"
    assert blank.error == none.error == "--prompt: expected some words, got nothing"
    (nul,) = jobs_of("a red \0 ball\n", tmp_path)
    assert nul.error.startswith("--prompt: expected text without NUL")


def test_seeds() -> None:
    assert parse_seeds("0-3", "seed") == [0, 1, 2, 3]
    assert parse_seeds("3, 1-2,2", "seed") == [3, 1, 2]
    assert parse_seeds([5, "0-1"], "seed") == [5, 0, 1]
    assert parse_seeds(4294967295, "seed") == [4294967295]
    for wrong in ("", "a", "3-1", "-1", -1, "1.5", 1.5, True, None, [], [[1]], 4294967296, {"a": 1}):
        with pytest.raises(InputError, match=r"^seed: expected numbers or ranges like 0-3"):
            parse_seeds(wrong, "seed")
    with pytest.raises(InputError, match="at most 100000 seeds, got 0-4294967295"):
        parse_seeds("0-4294967295", "seed")


WRONG = {
    "": "prompts: expected at least one prompt in",
    "# none\n\n": "prompts: expected at least one prompt in",
}
WRONG_YAML = {
    "": "prompts: expected a list of runs in",
    "[]": "prompts: expected at least one prompt in",
    "a red ball": "prompts: expected a list of runs in",
    "preset: draft": "prompts: expected a list in runs of",
    "runs: 3": "prompts: expected a list in runs of",
    "- 3": "run 1: expected a prompt or settings, got 3",
    "- {prompt: a ball, step: 3}": "run 1: unknown setting 'step'",
    "- a cube\n- {prompt: a ball, seed: x}": "run 2: seed: expected numbers or ranges",
    "- {prompt: a ball, output: here}": "run 1: output: expected none",
    "- {prompt: a ball, schedule: {steps: x}}": "run 1: schedule: steps: expected int, got 'x'",
    "- {prompt: a ball, preset: ultra}": "run 1: preset: expected one of draft, standard",
    "- {": "is not YAML",
    "- {prompt: a ball, seed: 0-99999}\n- {prompt: a cube, seed: 0-9}": "expected at most 100000 runs",
}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [("a.txt", *each) for each in WRONG.items()] + [("a.yaml", *each) for each in WRONG_YAML.items()],
)
def test_a_wrong_list_is_one_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(InputError) as raised:
        jobs_of(text, tmp_path, name)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_no_text_or_is_not_there_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("ein grüner Ball\n".encode("latin-1"))
    for name, message in (
        ("latin.txt", "expected UTF-8 text"),
        ("none.txt", "No such file"),
        (".", "directory"),
    ):
        with pytest.raises(InputError, match=message):
            read_jobs(tmp_path / name, tmp_path)


def test_a_list_in_yaml_has_its_preset_and_seeds_itself(tmp_path: Path) -> None:
    for flags in ({"preset": "draft"}, {"seeds": "0-3"}):
        with pytest.raises(InputError, match="which says it itself"):
            jobs_of("- a red ball", tmp_path, "list.yaml", **flags)


def test_a_folder_with_another_run_is_left_alone(tmp_path: Path) -> None:
    old = RunFolder(tmp_path / "out" / "a-red-ball-0", preset("high", "a red ball"))
    old.begin(old.config, {})
    (job,) = jobs_of("a red ball", tmp_path)
    assert job.folder.name == "a-red-ball-0-2"
    (job,) = jobs_of("- {prompt: a red ball, preset: high}", tmp_path, "list.yaml")
    assert job.folder == old.path
