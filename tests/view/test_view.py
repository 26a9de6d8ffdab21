"""What a person sees and does in a browser: the real one, without a window."""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from interrupts import heed_interrupts

from ddpo3d_fast.assets import write_ply
from ddpo3d_fast.cli import main
from ddpo3d_fast.configure import preset
from ddpo3d_fast.run import RunFolder, results
from ddpo3d_fast.scene import Gaussians, initial_cloud, orbit
from ddpo3d_fast.view.page import ELEVATION

from .browser import Tab, eventually, tab

trimesh = pytest.importorskip("trimesh", reason="trimesh is not installed: viser brings it")
pytest.importorskip("viser", reason="viser is not installed: pip install 'ddpo3d-fast[viewer]'")
SIZE = 512
GENERATE = ["generate", "--preset", "draft", "--gaussians", "200", "--device", "cpu", "--view", "--port", "0"]


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with tab(tmp_path_factory.mktemp("chromium"), SIZE) as page:
        yield page


@contextlib.contextmanager
def served(*words: str | Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A command that serves a page, and the page's address."""
    line = [sys.executable, "-m", "ddpo3d_fast", *map(str, words)]

    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=heed_interrupts
    ) as process:
        try:
            assert process.stdout is not None
            told = next((line for line in process.stdout if "http://" in line), "")
            yield process, re.search(r"http://127\.0\.0\.1:\d+", told)[0]  # type: ignore[index]
        finally:
            process.kill()


def scene(seed: int = 0) -> Gaussians:
    """Gaussians of all shapes and colours, a little off the centre."""
    cloud = initial_cloud(300, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    cloud.means[:] = (0.3 * cloud.means / cloud.means.std()).clamp(-0.7, 0.7) + torch.tensor(
        [0.04, -0.03, 0.02]
    )
    cloud.log_scales[:] = torch.rand(300, 3, generator=generator) * 3 - 5
    cloud.quats[:] = torch.randn(300, 4, generator=generator)
    cloud.logit_opacities[:] = torch.rand(300, generator=generator) * 6 - 2
    cloud.sh[:] = 1.7 * (2 * torch.rand(300, 1, 3, generator=generator) - 1)
    return cloud


def write(folder: Path, cloud: Gaussians) -> Path:
    path = folder / "asset.ply"
    write_ply(path, cloud.means, cloud.quats, cloud.log_scales, cloud.logit_opacities, cloud.sh)
    return path


def psnr(page: Tab, cloud: Gaussians) -> float:
    """Of the page against our own picture of a scene, in dB."""
    cameras = orbit(1, math.radians(ELEVATION))
    ours = cloud.render(cameras, SIZE, SIZE, torch.ones(1, 3)).rgb[0].clamp(0, 1).numpy()
    return -10 * math.log10(((page.picture() - ours) ** 2).mean())


def test_an_asset_is_seen_as_render_shows_it(chromium: Tab, tmp_path: Path) -> None:
    with served("view", write(tmp_path, scene()), "--port", "0") as (process, url):
        chromium.open(url)
        eventually(lambda: psnr(chromium, scene()) >= 35, "35 dB")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


def test_a_run_is_chosen_from_a_folder(chromium: Tab, tmp_path: Path) -> None:
    for seed, name in enumerate(("list/a-red-ball-0", "a-blue-cube-0")):
        prompt = name[name.index("a-") : -2].replace("-", " ")
        folder = RunFolder(tmp_path / name, preset("draft", prompt))
        folder.begin(folder.config, {})
        os.utime(write(folder.path, scene(seed)), (seed, seed))
    with served("view", tmp_path, "--port", "0") as (_, url):
        chromium.open(url)
        eventually(lambda: "a blue cube" in chromium.text(), "the youngest run")
        eventually(lambda: psnr(chromium, scene(1)) >= 35, "its asset")
        chromium.open(url)
        chromium.choose("list/a-red-ball-0")
        eventually(lambda: "a red ball" in chromium.text(), "the run that was chosen")
        eventually(lambda: psnr(chromium, scene(0)) >= 35, "its asset")


def test_a_mesh_is_seen(chromium: Tab, tmp_path: Path) -> None:
    path = tmp_path / "box.glb"
    trimesh.creation.box(bounds=[[90, 90, 90], [110, 130, 110]]).export(path)
    with served("view", path, "--port", "0") as (_, url):
        chromium.open(url)
        eventually(lambda: "faces\t12" in chromium.text(), "its number of faces")
        eventually(lambda: 0.05 < (chromium.picture() < 0.9).any(2).mean() < 0.6, "a box")
        seen = (chromium.picture() < 0.9).any(2)
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    assert np.ptp(rows) > 1.3 * np.ptp(columns)  # upright


def step(page: Tab) -> int:
    """The one that the page of a run tells."""
    found = re.search(r"step\s+(\d+) of \d+", page.text())
    return int(found[1]) if found else 0


def test_a_run_is_seen_and_its_button_does_what_ctrl_c_does(chromium: Tab, tmp_path: Path) -> None:
    """The page can be opened again meanwhile; nothing of the run changes by all that."""
    words = [*GENERATE, "--prompt", "a red ball", "--views", "1", "--steps", "200"]
    with served(*words, "--output", tmp_path / "run") as (process, url):
        chromium.open(url)
        first = eventually(lambda: step(chromium), "a step")
        assert all(word in chromium.text() for word in ("a red ball", "loss"))
        chromium.reload()
        eventually(lambda: step(chromium) > first, "a later step, after a reload")
        eventually(lambda: "reward" in chromium.text(), "the reward, which is not asked at first")
        chromium.press("Stop")
        rest = process.stdout.read() if process.stdout else ""
        assert process.wait(60) == 130
    assert re.search(r"interrupted: \d+ steps are in \S+; go on with --resume \S+\n$", rest), rest
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.yaml", *results()}
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert first < len(rows) < 200
    assert main(["generate", "--resume", str(tmp_path / "run"), "--quiet"]) == 0
    unbroken = [word for word in words if word not in ("--view", "--port", "0")]
    assert main([*unbroken, "--output", str(tmp_path / "unbroken"), "--quiet"]) == 0
    for name in results()[1:]:
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes()


def test_two_runs_have_a_page_each(chromium: Tab, tmp_path: Path) -> None:
    red = ("--prompt", "a red ball", "--steps", "5000", "--output", tmp_path / "red")
    blue = ("--prompt", "a blue cube", "--steps", "5000", "--output", tmp_path / "blue")
    with served(*GENERATE, *red) as (_, one), served(*GENERATE, *blue) as (_, other):
        assert one != other
        for url, prompt in ((one, "a red ball"), (other, "a blue cube"), (one, "a red ball")):
            chromium.open(url)
            eventually(lambda: step(chromium), "a step")
            assert prompt in chromium.text()


@pytest.mark.parametrize("words", [["view", "asset.ply"], [*GENERATE[:-2], "--prompt", "a red ball"]])
def test_a_port_that_is_taken_is_one_line(
    tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, scene())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main([*words, "--port", str(port)]) == 2
    line = (
        f"ddpo3d-fast: --port: expected one that is free, or 0 for any, got {port} (Address already in use)\n"
    )
    assert capsys.readouterr().err == line
    assert [path.name for path in tmp_path.iterdir()] == ["asset.ply"]
