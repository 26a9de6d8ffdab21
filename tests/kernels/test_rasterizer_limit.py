"""What a scene takes is known before it is taken: the pairs of a tile and a Gaussian, against a limit."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ddpo3d_fast import kernels

from .scenes import Scene, random_scene

HELP = "fewer cameras a call, smaller images"


def thin_and_faint() -> Scene:
    """Needles that hide so little that their pixels lie apart: they touch rows of tiles with gaps."""
    scene = random_scene(81, count=900, cameras=2, width=300, height=90, opacity=(0.00394, 0.0042))
    scales = scene.tensors["scales"].clone()
    scales[:, 0], scales[:, 1:] = 20.0, 1e-4
    return scene.changed(scales=scales)


SCENES = {
    "small": random_scene(80, count=900, cameras=3, width=90, height=60),
    "all_sizes": random_scene(82, count=900, cameras=2, width=130, height=70, scale=(0.002, 20.0)),
    "thin": thin_and_faint(),
}


def too_many(scene: Scene, max_entries: int) -> kernels.TooManyEntries:
    with pytest.raises(kernels.TooManyEntries) as caught:
        kernels.rasterize_forward(**scene.arguments(), max_entries=max_entries)
    return caught.value


@pytest.mark.parametrize("name", SCENES)
def test_the_number_that_is_needed_is_the_least_that_suffices(name: str) -> None:
    scene = SCENES[name]
    needed = too_many(scene, 1).needed
    assert needed > scene.cameras * 900 / 2
    assert too_many(scene, needed - 1).needed == needed
    out, state = kernels.rasterize_forward(**scene.arguments(), max_entries=needed)
    expected, _ = kernels.rasterize_forward(**scene.arguments())
    assert out.rgb.equal(expected.rgb)
    assert kernels.rasterize_backward(state, torch.ones_like(out.rgb)).means.isfinite().all()


def test_too_many_is_a_value_error_that_says_what_is_needed_and_what_to_do() -> None:
    error = too_many(SCENES["small"], 7)
    assert isinstance(error, ValueError)
    assert error.max_entries == 7
    assert error.bytes_needed >= 20 * error.needed
    for said in (str(error), str(pickle.loads(pickle.dumps(error)))):
        assert said.startswith(f"rasterize: {error.needed} pairs of a tile and a Gaussian, ")
        assert said.endswith(f"expected at most 7 (max_entries): {HELP} or a higher limit")
        assert "\n" not in said
    beyond = kernels.TooManyEntries(2**32, 2**32 - 1, 28 * 2**32)
    assert str(beyond).endswith(f"120 GB; expected at most 4294967295 (max_entries): {HELP}")


def test_a_scene_can_be_drawn_after_one_that_was_refused() -> None:
    expected, _ = kernels.rasterize_forward(**SCENES["small"].arguments())
    too_many(SCENES["all_sizes"], 100)
    assert kernels.rasterize_forward(**SCENES["small"].arguments())[0].rgb.equal(expected.rgb)


def test_every_capacity_has_a_number_of_its_own_that_nobody_gets_after_it() -> None:
    """A device may write to it as long as the process lives."""
    device, capacities = torch.device("cpu"), [kernels.TileCapacity(10) for _ in range(3)]
    assert [capacity.needed for capacity in capacities] == [0, 0, 0]
    numbers = [capacity.reported_by(device) for capacity in capacities]
    numbers[1].fill_(11)
    assert [capacity.needed for capacity in capacities] == [0, 11, 0]
    assert [capacity.overflowed for capacity in capacities] == [False, True, False]
    assert capacities[1].reported_by(device) is numbers[1]
    places = {number.data_ptr() for number in numbers}
    del capacities
    later = [kernels.TileCapacity(10).reported_by(device) for _ in range(600)]  # more than a block has
    assert len({number.data_ptr() for number in later} | places) == 603
    assert not any(later)


MEMORY = """
import resource
import torch
from ddpo3d_fast import kernels
from kernels.scenes import random_scene
kernels.rasterize_forward(**random_scene(0).arguments())
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
now = lambda: int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() // 1024
# 20,000 Gaussians of scale e in eight views of 1024 px
scene = random_scene(1, count=20_000, cameras=8, width=1024, height=1024, scale=(2.718, 2.719)).arguments()
before = peak(), now()
try:
    kernels.rasterize_forward(**scene, max_entries=10_000_000)
except kernels.TooManyEntries as error:
    print(error.needed, (peak() - before[0]) // 1024, (now() - before[1]) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is in other units elsewhere")
def test_enormous_gaussians_are_refused_before_their_memory_is_taken() -> None:
    tests = str(Path(__file__).parents[1])
    script = f"import sys; sys.path.insert(0, {tests!r})\n{MEMORY}"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    needed, mebibytes, kept = map(int, result.stdout.split())
    assert needed > 600_000_000  # 12 GB
    assert mebibytes < 400  # twice ten million hits of 8 bytes, 160,000 projected Gaussians
    assert kept < 40  # the Gaussians alone, while the error is still in somebody's hands
