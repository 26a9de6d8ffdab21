"""Entries of the cache appear whole or not at all, are built once, and are found by what they depend on."""

import copy
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import small_networks
import torch
from torch import nn

from ddpo3d_fast.engines import Network, cache
from ddpo3d_fast.engines.cache import (
    MANIFEST,
    cache_folder,
    clear,
    discard,
    entries,
    find_or_build,
    fingerprint,
)
from ddpo3d_fast.errors import InputError

PROCESSES = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DDPO3D_CACHE", str(tmp_path))
    return tmp_path / "engines"


def build(path):
    (path / "model.onnx").write_bytes(b"graph")
    return {"runtime": "ONNX graph"}


def never(path):
    raise AssertionError("built again")


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def test_it_lies_in_the_users_cache_folder_unless_told_otherwise(folder, monkeypatch, tmp_path):
    assert cache_folder() == folder
    monkeypatch.delenv("DDPO3D_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert cache_folder() == tmp_path / "user" / "ddpo3d-fast" / "engines"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "ddpo3d-fast" / "engines"
    assert not (tmp_path / "user").exists()


def test_an_entry_is_built_once_and_says_what_it_is():
    path = find_or_build("unet-onnx", {"weights": "a"}, build)
    assert find_or_build("unet-onnx", {"weights": "a"}, never) == path
    assert (path / "model.onnx").read_bytes() == b"graph"
    (entry,) = entries()
    assert entry.path == path
    assert entry.facts["name"] == "unet-onnx"
    assert entry.facts["key"] == {"weights": "a"}
    assert entry.facts["runtime"] == "ONNX graph"
    assert entry.facts["files"] == {"model.onnx": 5}
    assert time.strptime(entry.facts["created"], "%Y-%m-%d %H:%M:%S")


def test_another_key_is_another_entry():
    made = {
        find_or_build("unet", {"weights": w, "dtype": d}, build) for w in "ab" for d in ("half", "single")
    }
    assert len(made) == 4 == len(entries())


def test_names_of_any_kind_make_folders_inside_the_cache(folder):
    path = find_or_build("../clip: ViT-L.14", {}, build)
    assert path.parent == folder
    assert entries()[0].facts["name"] == "../clip: ViT-L.14"


@pytest.mark.parametrize("error", [InputError("no"), KeyboardInterrupt()])
def test_a_build_that_fails_leaves_nothing(folder, error):
    def fail(path):
        (path / "model.onnx").write_bytes(b"gra")
        raise error

    with pytest.raises(type(error)):
        find_or_build("unet", {}, fail)
    assert names(folder) == []
    assert find_or_build("unet", {}, build).is_dir()


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: (path / MANIFEST).unlink(),
        lambda path: (path / MANIFEST).write_text("{"),
        lambda path: (path / MANIFEST).write_text("[]"),
        lambda path: (path / "model.onnx").unlink(),
        lambda path: (path / "model.onnx").write_bytes(b"gra"),
    ],
    ids=["no manifest", "half a manifest", "another manifest", "no file", "half a file"],
)
def test_a_half_written_entry_is_not_used_and_is_built_again(damage):
    path = find_or_build("unet", {}, build)
    damage(path)
    assert entries() == []
    assert find_or_build("unet", {}, build) == path
    assert (path / "model.onnx").read_bytes() == b"graph"
    find_or_build("unet", {}, never)


def build_slowly(path):
    with (path.parent.parent / "builds").open("a") as log:
        log.write(f"{os.getpid()}\n")
    (path / "model.onnx").write_bytes(b"gra")
    time.sleep(0.5)
    return build(path)


def build_in_a_process(barrier, results):
    barrier.wait()
    path = find_or_build("unet", {"weights": "a"}, build_slowly)
    results.put((path / "model.onnx").read_bytes())


def test_processes_that_want_the_same_entry_build_it_once(folder):
    barrier, results = PROCESSES.Barrier(4), PROCESSES.Queue()
    workers = [
        PROCESSES.Process(target=build_in_a_process, args=(barrier, results), daemon=True) for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    assert [results.get(timeout=60) for _ in workers] == [b"graph"] * 4
    for worker in workers:
        worker.join()
    assert len((folder.parent / "builds").read_text().splitlines()) == 1
    assert len(names(folder)) == 1


def build_forever(path):
    (path / "model.onnx").write_bytes(b"gra")
    (path.parent.parent / "begun").touch()
    time.sleep(600)


def test_what_a_killed_builder_left_is_removed_and_its_lock_is_free(folder):
    worker = PROCESSES.Process(target=find_or_build, args=("unet", {}, build_forever), daemon=True)
    worker.start()
    while not (folder.parent / "begun").exists():
        time.sleep(0.01)
    (left,) = names(folder)
    assert left.startswith(".unet-")
    assert entries() == []
    other = find_or_build("scorer", {}, build)  # does not wait, and leaves what is being written alone
    assert left in names(folder)
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    assert (folder / left / "model.onnx").is_file()
    path = find_or_build("decoder", {}, build)  # any later build sweeps
    assert names(folder) == sorted([other.name, path.name])
    assert (find_or_build("unet", {}, build) / "model.onnx").read_bytes() == b"graph"


def used(*names):
    """The entries of these names, built where they are not there."""
    found = []
    for name in names:
        find_or_build(name, {}, build, found)
    return found


def test_what_was_kept_and_is_of_no_use_is_removed_with_all_that_depends_on_it(folder):
    assert [entry.fresh for entry in used("graph")] == [True]
    both = used("graph", "plan")
    assert [entry.fresh for entry in both] == [False, True]
    assert discard(both)
    assert names(folder) == []


def test_what_was_just_built_and_is_of_no_use_stays_and_is_not_built_again():
    assert not discard(used("plan"))
    assert not discard(used("plan"))
    assert not discard([])
    assert discard(used("plan", "graph") + used("graph"))  # the graph's turn has not come yet
    assert not discard(used("plan", "graph"))


def test_what_another_process_has_built_anew_is_not_removed(folder):
    mine, others = used("plan") and used("plan"), used("plan")
    assert discard(others)
    (new,) = used("plan")
    assert discard(mine)
    assert entries()[0].stamp == new.stamp
    assert not discard(used("plan"), again=False)
    assert entries()[0].refused


def test_clear_removes_everything_and_says_how_much(folder):
    find_or_build("unet", {}, build)
    (find_or_build("scorer", {}, build) / MANIFEST).unlink()
    (folder / ".decoder-0123.abc").mkdir()
    (folder / "timings-11.4").touch()
    assert clear() == 1
    assert list(folder.iterdir()) == []
    assert clear() == 0
    assert find_or_build("unet", {}, build).is_dir()


def test_clear_without_a_cache_is_nothing():
    assert clear() == 0


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("DDPO3D_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"cannot write .*Not a directory"):
        find_or_build("unet", {}, build)


class Wrapper(nn.Module):
    def __init__(self, scale=0.18, activation=None):
        super().__init__()
        self.scale = scale
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), activation or nn.GELU(), nn.GroupNorm(2, 4))
        self.register_buffer("place", torch.arange(4), persistent=False)

    def forward(self, x):
        return self.scale * self.body(x)


def network(**changes):
    torch.manual_seed(0)
    example = {"x": torch.randn(2, 3, 8, 8)}
    return replace(Network("unet", Wrapper().eval(), example, ("y",), {"x": (0,)}), **changes)


def with_weights(change):
    made = network()
    change(made.module)
    return made


def nudge(tensor):
    tensor.data.reshape(-1)[-1] += 1


OTHERS = {
    "a weight": lambda: with_weights(lambda m: nudge(m.body[0].weight)),
    "a buffer": lambda: with_weights(lambda m: nudge(m.place)),
    "a weight's dtype": lambda: with_weights(lambda m: m.body[0].half()),
    "a weight's name": lambda: with_weights(lambda m: setattr(m, "body", nn.ModuleList(m.body))),
    "a setting": lambda: with_weights(lambda m: setattr(m, "scale", 0.13)),
    "a layer without weights": lambda: with_weights(lambda m: m.body.__setitem__(1, nn.SiLU())),
    "a layer's setting": lambda: with_weights(lambda m: setattr(m.body[2], "eps", 1e-6)),
    "a shape": lambda: network(inputs={"x": torch.randn(2, 3, 16, 16)}),
    "an input's name": lambda: network(inputs={"z": torch.randn(2, 3, 8, 8)}),
    "an input's dtype": lambda: network(inputs={"x": torch.ones(2, 3, 8, 8, dtype=torch.int64)}),
    "an output": lambda: network(outputs=("z",)),
    "a dynamic axis": lambda: network(dynamic={"x": (0, 2, 3)}),
    "the gradient": lambda: network(gradient=True),
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_network_has_another_fingerprint(what):
    assert fingerprint(OTHERS[what]()) != fingerprint(network())


def test_a_fingerprint_tells_versions(monkeypatch):
    before = fingerprint(network())
    assert before["versions"]["torch"] == torch.__version__
    monkeypatch.setattr(torch, "__version__", "9.9")
    assert fingerprint(network()) != before


def test_the_same_network_has_the_same_fingerprint_in_another_place():
    one = network()
    moved = replace(one, module=copy.deepcopy(one.module).to(memory_format=torch.channels_last))
    assert fingerprint(moved) == fingerprint(one)
    assert json.loads(json.dumps(fingerprint(one))) == fingerprint(one)


@pytest.mark.parametrize("seed", ["1", "2"])
def test_the_same_network_has_the_same_fingerprint_in_another_process(seed):
    code = """
import json, small_networks
from ddpo3d_fast.engines.cache import fingerprint
print(json.dumps(fingerprint(small_networks.make("encoder-tiny"))))
"""
    environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.path.dirname(__file__)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == fingerprint(small_networks.make("encoder-tiny"))


def test_where_a_model_came_from_does_not_matter():
    class Config(dict):
        pass

    one, other = network(), network()
    one.module.config = Config(width=4, _name_or_path="/here")
    other.module.config = Config(width=4, _name_or_path="/there")
    assert fingerprint(one) == fingerprint(other)
    other.module.config["width"] = 5
    assert fingerprint(one) != fingerprint(other)


def test_every_kind_of_tensor_has_a_hash():
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.bool):
        for shape in ((), (0,), (3, 2)):
            assert len(cache._digest(torch.ones(shape, dtype=dtype))) == 32
    transposed = torch.arange(6.0).reshape(2, 3).T
    assert cache._digest(transposed) == cache._digest(transposed.contiguous())
