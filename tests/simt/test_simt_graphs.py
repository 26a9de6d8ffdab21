"""A step that is recorded once and replayed with other numbers makes the scene that ordinary steps make.

The recording stands for a CUDA graph: it holds every torch operation, kernel launch and engine call of a step
with the very memory that they used, and a replay does them again there. What a step reads from Python, or
keeps in a tensor that is made anew, shows up as a scene that differs.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ddpo3d_fast import graphs
from ddpo3d_fast.engines.onnx import OnnxEngine
from ddpo3d_fast.engines.openvino import OpenVinoEngine
from ddpo3d_fast.graphs import StepGraphs
from ddpo3d_fast.kernels import _backend
from ddpo3d_fast.scene import Gaussians, splats

from .test_simt_generate import Run, run  # noqa: F401 (fixtures)

Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], Any]


class Recorder(TorchDispatchMode):
    """Does what it is told, and remembers it. `made` tensors are those that live on in the recording."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, made))
        return made

    @torch.no_grad()
    def replay(self) -> None:
        for function, args, kwargs, made in self.calls:
            given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if is_tensor(t)}
            again = function(*args, **kwargs)
            if "empty" in getattr(function, "__name__", ""):
                continue  # what is in it is for others to write
            for old, new in zip(tree_leaves(made), tree_leaves(again), strict=True):
                if is_tensor(old) and old.untyped_storage().data_ptr() not in given:
                    old.copy_(new)


def is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


class Recording:
    """`graphs.capture`, by a recorder. A capture runs the step, so the first replay does nothing."""

    def __init__(self) -> None:
        self.recorder: Recorder | None = None
        self.captures = self.replays = 0

    def capture(
        self, function: Callable[[], dict[str, Tensor]], pool: None
    ) -> tuple[Callable[[], None], dict[str, Tensor]]:
        recorder = self.recorder = Recorder()
        with recorder:
            outputs = function()
        self.recorder, first = None, True
        self.captures += 1

        def replay() -> None:
            nonlocal first
            if not first:
                recorder.replay()
                self.replays += 1
            first = False

        return replay, outputs

    def recorded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function that torch does not see, such as a kernel's launch."""

        def call(*args: Any, **kwargs: Any) -> Any:
            made = function(*args, **kwargs)
            if self.recorder is not None:
                self.recorder.calls.append((function, args, kwargs, made))
            return made

        return call


class Launches:
    """The extension, whose launches are recorded."""

    def __init__(self, module: ModuleType, recording: Recording) -> None:
        self._module, self._recording = module, recording

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        makes_work = name.endswith("_cuda") and "bytes" not in name
        return self._recording.recorded(found) if makes_work else found


@pytest.fixture
def recording(simt: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Recording:
    """Steps are captured, by a recording."""
    recording = Recording()

    def recorded(plain: Callable[..., dict[str, Tensor]]) -> Callable[..., dict[str, Tensor]]:
        def engine(self: object, **inputs: Tensor) -> dict[str, Tensor]:
            def call(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
                with torch.utils._python_dispatch._disable_current_modes():
                    return plain(self, **inputs)

            return recording.recorded(call)(inputs)

        return engine

    for kind in (OnnxEngine, OpenVinoEngine):
        monkeypatch.setattr(kind, "__call__", recorded(kind.__call__))
    monkeypatch.setattr(graphs, "capture", recording.capture)
    monkeypatch.setattr(_backend, "uses_cuda", lambda device, name="device": True)
    monkeypatch.setattr(_backend, "backend", lambda device: Launches(simt, recording))
    return recording


class Always(StepGraphs):
    """On the CPU, too, where the reward lets it."""

    allowed = True

    def __init__(self, device: torch.device, enabled: bool) -> None:
        super().__init__(device, self.allowed)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], tensor) for name, tensor in other.items())


STEPS = {"steps": 8, "max_timestep": 0.9, "min_timestep": 0.3}  # the policy acts from the fourth step on


@pytest.mark.parametrize("wishes", ["noise", "latent", "running", "view", "scene"])
def test_replayed_steps_make_the_scene_of_ordinary_ones(
    run: Run,  # noqa: F811
    recording: Recording,
    wishes: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = run("plain", False, wishes, **STEPS)
    assert not recording.captures
    monkeypatch.setattr("ddpo3d_fast.build.StepGraphs", Always)
    got = run("graph", False, wishes, **STEPS)
    # Rendering sizes change at step 5: before it steps 1 to 3 without policy and 4 with, after it 5 to 8. The
    # policies of view and scene act in all of them, so 4 is a replay, too.
    assert (recording.captures, recording.replays) == (2, 4 if wishes in ("view", "scene") else 3)
    assert same(got, expected)


@pytest.mark.parametrize(
    ("most", "expected_calls"),
    [
        # Captured are step 2 and, after a round behind step 3 for which there was no memory, step 4.
        (400, (2, 3)),
        # 128 rows are there from the start: captured is step 2.
        (128, (1, 4)),
    ],
)
def test_steps_are_captured_again_only_where_more_gaussians_need_new_memory(
    run: Run,  # noqa: F811
    recording: Recording,
    monkeypatch: pytest.MonkeyPatch,
    most: int,
    expected_calls: tuple[int, int],
) -> None:
    growing = {"steps": 6, "render_scales": (1.0,), "densify_every": 3, "densify_gradient": 1e-3}
    growing["max_gaussians"] = most
    expected = run("plain", False, "noise", **growing)
    monkeypatch.setattr("ddpo3d_fast.build.StepGraphs", Always)
    got = run("graph", False, "noise", **growing)
    assert (recording.captures, recording.replays) == expected_calls
    assert 100 < len(got["means"]) <= most
    assert same(got, expected)


def test_a_step_without_room_is_captured_again_with_more(
    run: Run,  # noqa: F811
    recording: Recording,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = run("room", False, "running", **STEPS)
    monkeypatch.setattr("ddpo3d_fast.build.StepGraphs", Always)
    monkeypatch.setattr(splats, "FIRST_CAPACITY", 10)
    assert same(run("little room", False, "running", **STEPS), expected)
    assert recording.captures == 2


def test_the_recording_would_show_a_number_that_is_frozen(
    run: Run,  # noqa: F811
    recording: Recording,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The test of the test: a step whose learning rate is Python's and not an input."""
    update = Gaussians.update

    def frozen(self: Any, *arguments: Any, rate_scale: Tensor, **options: Any) -> Tensor:
        return update(self, *arguments, rate_scale=torch.tensor(rate_scale.tolist()), **options)

    expected = run("plain", False, "noise", **STEPS)
    monkeypatch.setattr("ddpo3d_fast.build.StepGraphs", Always)
    monkeypatch.setattr(Gaussians, "update", frozen)
    assert not same(run("graph", False, "noise", **STEPS), expected)
