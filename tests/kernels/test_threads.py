"""The CPU backend's thread pool: callers from several threads, forked processes, changes of size."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch

from ddpo3d_fast import kernels

from .scenes import random_scene

SCENE = random_scene(50, count=2000, width=80, height=60, cameras=2)


def image() -> torch.Tensor:
    return kernels.rasterize_forward(**SCENE.arguments())[0].rgb


def test_callers_from_several_threads_get_what_one_gets() -> None:
    expected, results = image(), []
    threads = [threading.Thread(target=lambda: results.extend(image() for _ in range(5))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 20
    assert all(result.equal(expected) for result in results)


def test_the_number_of_threads_can_change_between_calls() -> None:
    before, expected = kernels.get_num_threads(), image()
    try:
        for count in (3, 1, 7, 2):
            kernels.set_num_threads(count)
            assert kernels.get_num_threads() == count
            assert image().equal(expected)
    finally:
        kernels.set_num_threads(before)


FORK = """
import os
import torch
from ddpo3d_fast import kernels
torch.set_num_threads(1)
kernels.set_num_threads(3)
n = 3000
scene = dict(
    means=torch.linspace(-0.5, 0.5, 3 * n).reshape(n, 3), quats=torch.ones(n, 4),
    scales=torch.full((n, 3), 0.05),
    opacities=torch.full((n,), 0.3), colors=torch.linspace(0, 1, 3 * n).reshape(n, 3),
    viewmats=torch.eye(4)[None] + 2 * torch.eye(4)[2, :, None] * torch.eye(4)[3],
    intrinsics=torch.tensor([[[60.0, 0, 32], [0, 60, 32], [0, 0, 1]]]), width=64, height=64,
)
expected = kernels.rasterize_forward(**scene)[0].rgb
assert expected.max() > 0.1
child = os.fork()
same = kernels.rasterize_forward(**scene)[0].rgb.equal(expected)
if child == 0:
    os._exit(0 if same else 3)
assert same
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_gets_what_its_parent_gets() -> None:
    result = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


def test_by_default_there_is_a_thread_for_each_core_of_the_process() -> None:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system cannot bind a process to cores")
    core = min(os.sched_getaffinity(0))
    script = f"import os; os.sched_setaffinity(0, [{core}])\n" + (
        "from ddpo3d_fast import kernels; print(kernels.get_num_threads())"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert result.stdout.strip() == "1", result.stderr
