"""Steps that are captured once and replayed, by a capture that stands for CUDA's."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from ddpo3d_fast import graphs
from ddpo3d_fast.control import own_stream
from ddpo3d_fast.errors import FallbackWarning
from ddpo3d_fast.graphs import Staging, StepGraphs

CPU = torch.device("cpu")


def double(tensors):
    return {"twice": 2 * tensors["number"]}


def number(value):
    return {"number": torch.tensor([float(value)])}


@pytest.fixture
def captured(monkeypatch):
    """Keys of what was captured, in order; a replay calls the function again, into the same tensors."""
    functions = []

    def capture(function, pool):
        outputs = {name: torch.zeros_like(tensor) for name, tensor in function().items()}
        functions.append(function)

        def replay():
            for name, tensor in function().items():
                outputs[name].copy_(tensor)

        return replay, outputs

    monkeypatch.setattr(graphs, "capture", capture)
    return functions


def test_the_first_call_is_an_ordinary_one_the_second_is_captured_and_all_give_their_own_numbers(captured):
    steps = StepGraphs(CPU)
    results = []
    for value in (1, 2, 3, 4):
        results.append(float(steps("key", double, number(value))["twice"]))
        assert len(captured) == min(value - 1, 1)
    assert results == [2, 4, 6, 8]


def test_every_key_has_its_graph_until_all_are_forgotten_and_captured_anew_by_the_next_call(captured):
    steps = StepGraphs(CPU)
    for _ in range(3):
        steps("one", double, number(1))
        steps("other", double, number(2))
    assert len(captured) == 2
    steps.forget()
    assert float(steps("one", double, number(5))["twice"]) == 10
    assert len(captured) == 3  # the key has run: no ordinary call is needed again
    assert float(steps("one", double, number(6))["twice"]) == 12
    assert len(captured) == 3


def test_graphs_share_a_pool_and_never_one_whose_graphs_are_gone(monkeypatch):
    """On a GPU; here its device is the meta device under another name."""
    pools = []

    class Device:
        type = "cuda"

    def capture(function, pool):
        pools.append(pool)
        return lambda: None, {}

    monkeypatch.setattr(graphs, "capture", capture)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object, raising=False)
    monkeypatch.setattr(graphs, "Staging", lambda like, device: Staging(like, CPU))
    steps = StepGraphs(Device())
    for _ in range(2):
        for key in ("one", "other"):
            for _ in range(3):
                steps(key, lambda tensors: {}, {})
        steps.forget()
    assert pools[0] is pools[1] is not pools[2]
    assert pools[2] is pools[3] is not None


def test_inputs_are_copied_so_that_the_callers_tensors_are_theirs(captured):
    steps, inputs = StepGraphs(CPU), number(1)

    def spoil(tensors):
        tensors["number"].zero_()
        return {}

    steps("key", spoil, inputs)
    StepGraphs(CPU, enabled=False)("key", spoil, inputs)
    assert inputs["number"] == 1


def test_what_cannot_be_captured_runs_on_with_one_warning_that_says_why(monkeypatch):
    def refuse(function, pool):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(graphs, "capture", refuse)
    steps = StepGraphs(CPU)
    assert float(steps("key", double, number(1))["twice"]) == 2
    with pytest.warns(FallbackWarning, match=r"cannot be captured .*\(operation not permitted") as warned:
        results = [float(steps("key", double, number(value))["twice"]) for value in (2, 3, 4)]
    assert results == [4, 6, 8]
    assert len(warned) == 1


def test_staged_tensors_of_all_kinds_arrive_in_one_place_that_stays():
    def values(seed):
        generator = torch.Generator().manual_seed(seed)
        return {
            "number": torch.tensor(0.5 + seed),
            "step": torch.tensor([2**40 + seed]),
            "views": torch.randn(3, 4, 4, generator=generator),
            "odd": torch.randint(256, (5,), generator=generator, dtype=torch.uint8),
            "transposed": torch.randn(2, 3, generator=generator).T,
            "none": torch.zeros(0, 3),
        }

    staging = Staging(values(0), CPU)
    places = {name: tensor.data_ptr() for name, tensor in staging.tensors.items()}
    for seed in (0, 1):
        staging.fill(values(seed))
        for name, expected in values(seed).items():
            assert torch.equal(staging.tensors[name], expected)
            assert staging.tensors[name].dtype == expected.dtype
    assert places == {name: tensor.data_ptr() for name, tensor in staging.tensors.items()}
    assert len({tensor.untyped_storage().data_ptr() for tensor in staging.tensors.values()}) == 1


def test_staged_memory_is_written_when_its_last_copy_is_over_and_told_of_when_the_next_is_queued(monkeypatch):
    """A copy from pinned memory goes on behind the host's back: here its event tells what it then sees."""
    empty, told, pinned = torch.empty, [], []

    def on_cpu(size, dtype, device=None, pin_memory=False):
        pinned.append(pin_memory)
        return empty(size, dtype=dtype).zero_()

    class Event:
        def synchronize(self):
            told.append(("waits", float(staging._views["number"])))

        def record(self):
            told.append(("recorded", float(staging.tensors["number"])))

    monkeypatch.setattr(torch, "empty", on_cpu)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    staging = Staging(number(0), torch.device("cuda"))
    for value in (1, 2):
        staging.fill(number(value))
    assert pinned == [True, False]
    assert told == [("waits", 0), ("recorded", 1), ("waits", 1), ("recorded", 2)]


# ---- A capture that fails, by classes that stand for torch's, which fail as they do


class Cuda:
    """torch.cuda with its streams, and its allocator's list of captures that are under way."""

    def __init__(self, monkeypatch, ends_allocation, name="_cuda_endAllocateToPool"):
        self.stream = SimpleNamespace(device_index=0)
        self.underway, self.ends_allocation = [], ends_allocation
        fakes = {
            "CUDAGraph": lambda: SimpleNamespace(replay=lambda: None),
            "graph": self.graph,
            "graph_pool_handle": object,
            "current_stream": lambda: self.stream,
            "set_stream": lambda stream: setattr(self, "stream", stream),
        }
        for fake, function in fakes.items():
            monkeypatch.setattr(torch.cuda, fake, function)
        for known in ("_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool"):
            monkeypatch.delattr(torch._C, known, raising=False)
        monkeypatch.setattr(torch._C, name, self.end_allocation, raising=False)

    def end_allocation(self, device, pool):
        if pool not in self.underway:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.underway.remove(pool)

    @contextlib.contextmanager
    def graph(self, graph, pool):
        before, self.stream = self.stream, SimpleNamespace(device_index=0)
        self.underway.append(pool)
        failure = None
        try:
            yield
        except RuntimeError as error:
            failure = error
        if failure is None:
            self.underway.remove(pool)
            self.stream = before
            return
        # The function's error has made the capture invalid: its end fails, too, and what follows is left out.
        if self.ends_allocation:
            self.underway.remove(pool)
        try:
            raise failure
        finally:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")


@pytest.mark.parametrize(
    ("ends_allocation", "name"),
    [
        (True, "_cuda_endAllocateToPool"),  # torch 2.12 and newer
        (False, "_cuda_endAllocateToPool"),
        (False, "_cuda_endAllocateCurrentStreamToPool"),  # before torch 2.8
    ],
)
def test_a_capture_that_fails_leaves_stream_and_allocator_as_they_were_and_says_what_failed_first(
    monkeypatch, ends_allocation, name
):
    cuda = Cuda(monkeypatch, ends_allocation, name)
    before, streams = cuda.stream, []

    def waits_when_captured(tensors):
        streams.append(cuda.stream)
        if cuda.stream is not before:
            raise RuntimeError("operation not permitted when stream is capturing")
        return double(tensors)

    steps = StepGraphs(CPU)
    steps("key", waits_when_captured, number(1))
    with pytest.warns(FallbackWarning, match=r"\(operation not permitted when stream is capturing\)"):
        assert float(steps("key", waits_when_captured, number(2))["twice"]) == 4
    assert float(steps("key", waits_when_captured, number(3))["twice"]) == 6
    assert cuda.stream is before
    assert [stream is before for stream in streams] == [True, False, True, True]
    assert not cuda.underway


def test_a_capture_that_succeeds_ends_its_own_allocation(monkeypatch):
    cuda = Cuda(monkeypatch, ends_allocation=True)
    before = cuda.stream
    graphs.capture(lambda: {}, object())
    assert (cuda.stream, cuda.underway) == (before, [])


def test_a_run_on_a_gpu_has_a_stream_of_its_own(monkeypatch):
    entered = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: f"stream of {device}")

    @contextlib.contextmanager
    def stream(stream):
        entered.append(stream)
        yield

    monkeypatch.setattr(torch.cuda, "stream", stream)
    for device in ("cpu", "meta", "cuda"):
        with own_stream(torch.device(device)):
            pass
    assert entered == ["stream of cuda"]


# ---- On a GPU


@pytest.fixture
def on_gpu():
    with own_stream(torch.device("cuda")):
        yield torch.device("cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_after_a_capture_that_failed_on_a_gpu_others_succeed_and_memory_is_freed(on_gpu):
    before, scratch = torch.cuda.current_stream(), []

    def waits(tensors):
        scratch.append(tensors["number"].expand(1 << 20).clone())
        return {"twice": double(tensors)["twice"] + 0 * tensors["number"].item()}

    steps = StepGraphs(on_gpu)
    steps("key", waits, number(1))
    with pytest.warns(FallbackWarning, match=r"cannot be captured .*\(.*captur"):
        assert steps("key", waits, number(2))["twice"].item() == 4
    assert torch.cuda.current_stream() == before
    scratch.clear()
    torch.cuda.empty_cache()  # raises where the allocator takes the capture for unfinished
    others = StepGraphs(on_gpu)
    results = [others("key", double, number(value))["twice"].item() for value in (1, 2, 3)]
    assert results == [2, 4, 6]
    assert others.enabled
