"""OpenAI's own CLIP files: the embeddings of open_clip's own reader, read without running what is in them."""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from small_clip import Forbidden, pictures, predictor_v2, randomise
from torch import nn

from ddpo3d_fast.engines.libraries import library
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.rewards import RewardSettings, make_reward
from ddpo3d_fast.rewards.aesthetic import PREDICTORS, load_predictor
from ddpo3d_fast.rewards.clip import load_open_clip
from ddpo3d_fast.rewards.torchscript import is_torchscript, read_torchscript

PROMPTS = ["a red ball", "a blue cube"]
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
VIT = {"image_size": 32, "layers": 2, "width": 64, "head_width": 64, "patch_size": 8}
RESNET = {"image_size": 64, "layers": [1, 2, 1, 1], "width": 8, "patch_size": None, "head_width": 64}
SMALL = {"vit": VIT, "resnet": RESNET}
NUMBERS = {"context_length": 77, "vocab_size": 49408}


def openai_model(kind="vit", **text):
    """A small CLIP of OpenAI's layout, in half precision where OpenAI's is, with the numbers beside it."""
    open_clip = library("open_clip", "test")
    torch.manual_seed(0)
    model = open_clip.CLIP(24, SMALL[kind], TEXT | text, quick_gelu=True)
    open_clip.convert_weights_to_fp16(randomise(model))
    model.attn_mask = model._buffers.pop("attn_mask")  # there too, but in no state dict
    for name, number in ({"input_resolution": SMALL[kind]["image_size"]} | NUMBERS).items():
        if hasattr(model, name):
            delattr(model, name)
        model.register_buffer(name, torch.tensor(number))
    return model


def save_archive(model, file):
    """As OpenAI's are: TorchScript."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.script(model).save(str(file))
    return file


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    folder = tmp_path_factory.mktemp("openai")
    return {kind: save_archive(openai_model(kind), folder / f"{kind}.pt") for kind in SMALL}


@pytest.fixture(scope="module")
def archive(archives):
    return archives["vit"]


def expected_scores(file, images, prompts, normalized=False):
    """[B] by open_clip alone, which runs the archive; or the pictures' embeddings of length 1 [B, D]."""
    open_clip = library("open_clip", "test")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = open_clip.load_openai_model(str(file), precision="fp32", device="cpu").requires_grad_(False)
    transform = library("open_clip.transform", "test").image_transform(
        model.visual.image_size, False, model.visual.image_mean, model.visual.image_std
    )
    features = model.encode_image(torch.stack([transform(image) for image in images]), normalize=True)
    text = model.encode_text(open_clip.tokenize(prompts), normalize=True)
    return features if normalized else 100 * (features * text).sum(-1)


def test_an_archives_tensors_are_those_of_torchs_own_reader(archives):
    for file in archives.values():
        assert is_torchscript(file)
        tensors = read_torchscript(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = torch.jit.load(file, map_location="cpu").state_dict()
        assert tensors.keys() - theirs.keys() == {"attn_mask"}
        for name, tensor in theirs.items():
            assert tensors[name].dtype == tensor.dtype
            assert torch.equal(tensors[name], tensor)
    assert tensors["visual.conv1.weight"].dtype == torch.float16


class Views(nn.Module):
    """Its tensors are parts of one storage, and not in the order in which it has their numbers."""

    def __init__(self):
        super().__init__()
        whole = torch.arange(24.0)
        self.register_buffer("end", whole[16:])
        self.register_buffer("columns", whole[4:16].view(3, 4).T)
        self.register_buffer("one", whole[5])

    def forward(self):
        return self.end


def test_tensors_that_share_a_storage_are_each_its_own_part(tmp_path):
    file = save_archive(Views(), tmp_path / "views.pt")
    tensors, expected = read_torchscript(file), Views().state_dict()
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("kind", SMALL)
def test_scores_of_an_archive_are_open_clips_own(archives, kind):
    images = pictures(2, 64, 64)
    reward = make_reward([f"clip@{archives[kind]}"], RewardSettings(runtime="torch"))
    expected = expected_scores(archives[kind], images, PROMPTS)
    assert float((reward.score(images, PROMPTS) - expected).abs().max()) <= 1e-3  # of 100 times a cosine
    tower, _ = load_open_clip(str(archives[kind]), "clip")
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (tower.mean, tower.std))
    images = pictures(2, tower.size, tower.size)
    embeddings = nn.functional.normalize(tower.module((images - mean) / std), dim=-1)
    theirs = expected_scores(archives[kind], images, PROMPTS, normalized=True)
    assert float((embeddings - theirs).abs().max()) <= 1e-5


@pytest.fixture
def tiny(monkeypatch):
    """Models of open_clip's: the archive's architecture with the plain GELU, and with its own."""
    factory = library("open_clip.factory", "test")
    config = {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": TEXT}
    monkeypatch.setitem(factory._MODEL_CONFIGS, "tiny", config)
    monkeypatch.setitem(factory._MODEL_CONFIGS, "tiny-quickgelu", config | {"quick_gelu": True})


def test_beside_its_architecture_an_archive_keeps_its_own_activation(archive, tiny):
    images = pictures(2, 64, 64)
    alone = make_reward([f"clip@{archive}"], RewardSettings(runtime="torch")).score(images, PROMPTS)
    for model in ("tiny", "tiny-quickgelu"):
        assert torch.equal(
            make_reward([f"clip@{model}:{archive}"], RewardSettings(runtime="torch")).score(images, PROMPTS),
            alone,
        )
    with pytest.raises(InputError, match=r"open_clip cannot make ViT-B-32 of .*vit\.pt \(Error"):
        make_reward([f"clip@ViT-B-32:{archive}"])


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_weights_alone_are_read_with_their_architecture(archive, tiny, tmp_path, suffix):
    """As `torch.save(model.state_dict())` of a loaded model leaves them."""
    file = tmp_path / f"weights.{suffix}"
    state = {name: t for name, t in read_torchscript(archive).items() if t.ndim and name != "attn_mask"}
    state["logit_scale"] = torch.tensor(2.0)
    (torch.save if suffix == "pt" else save_file)(state, file)
    images = pictures(2, 64, 64)
    alone = make_reward([f"clip@{archive}"], RewardSettings(runtime="torch")).score(images, PROMPTS)
    named = make_reward([f"clip@tiny-quickgelu:{file}"], RewardSettings(runtime="torch")).score(
        images, PROMPTS
    )
    torch.testing.assert_close(named, alone)
    plain = make_reward([f"clip@tiny:{file}"], RewardSettings(runtime="torch")).score(images, PROMPTS)
    assert float((plain - alone).abs().max()) > 0.01
    with pytest.raises(InputError, match=r"got weights alone, which do not tell their activation") as caught:
        make_reward([f"clip@{file}"])
    assert "\n" not in str(caught.value)


def test_weights_in_single_precision_are_not_rounded(tmp_path, archive):
    """open_clip's builder rounds to half precision, as OpenAI's are."""
    state = {name: t for name, t in read_torchscript(archive).items() if t.ndim and name != "attn_mask"}
    state |= {"logit_scale": torch.tensor(2.0), "visual.proj": torch.randn(64, 24)}
    torch.save(state, tmp_path / "tuned.pt")
    tower, _ = load_open_clip(str(tmp_path / "tuned.pt"), "aesthetic", quick_gelu=True)
    assert torch.equal(tower.module.proj, state["visual.proj"])


@pytest.fixture
def laion(archive, tmp_path):
    """A folder with the predictor and CLIP as OpenAI publishes it."""
    (tmp_path / "ViT-L-14.pt").symlink_to(archive)
    torch.save(predictor_v2(24)[1], tmp_path / PREDICTORS["aesthetic"][0])
    return tmp_path


def test_the_predictor_takes_clip_from_its_folder_or_from_behind_a_comma(
    laion, archive, offline, tmp_path, monkeypatch
):
    images, predictor = pictures(2, 64, 64), laion / PREDICTORS["aesthetic"][0]
    direction, bias = load_predictor(predictor, PREDICTORS["aesthetic"][2], "aesthetic")
    expected = expected_scores(archive, images, PROMPTS, normalized=True) @ direction + bias
    comma = tmp_path / "a,b"
    comma.mkdir()
    (comma / "c,d.pth").symlink_to(predictor)
    (comma / "e,f.pt").symlink_to(archive)
    monkeypatch.setenv("HOME", str(laion))
    for where in (laion, f"{predictor},{archive}", f"{predictor},{laion}", f"{comma}/c,d.pth,{comma}/e,f.pt",
                  f"~/{predictor.name},~/ViT-L-14.pt"):  # fmt: skip
        scores = make_reward([f"aesthetic@{where}"], RewardSettings(runtime="torch")).score(images, PROMPTS)
        assert float((scores - expected).abs().max()) <= 1e-5, where
    clip = make_reward([f"clip@{laion}"], RewardSettings(runtime="torch")).score(images, PROMPTS)
    assert float((clip - expected_scores(archive, images, PROMPTS)).abs().max()) <= 1e-3
    with pytest.raises(
        InputError, match=r"is not in the hub's cache .* local copy as aesthetic@PREDICTOR,CLIP"
    ):
        make_reward([f"aesthetic@{predictor}"])
    with pytest.raises(InputError, match=r"expected a model of open_clip .*, got '/no/clip\.pt'"):
        make_reward([f"aesthetic@{predictor},/no/clip.pt"])
    with pytest.raises(InputError, match=r"expected the predictor's file, got a TorchScript archive"):
        make_reward([f"aesthetic@{archive}"])


def with_pickle(archive, file, data):
    """The archive with another data.pkl."""
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(file, "w") as new:
        for entry in old.infolist():
            is_data = entry.filename.endswith("/data.pkl")
            new.writestr(entry.filename, data if is_data else old.read(entry))
    return file


def pickled(value):
    stream = io.BytesIO()
    pickle.Pickler(stream, 2).dump(value)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (lambda: pickled({"weight": Forbidden()}), "which is no tensor"),
        (lambda: b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R.", "posix.system"),
        (lambda: b"\x80\x02c__builtin__\neval\nX\x01\x00\x00\x001\x85R.", "__builtin__.eval"),
        (lambda: b"\x80\x04\x8c\x05torch\x8c\x04load\x93.", "torch.load"),
        (lambda: b"\x80\x02ctorch.hub\nload\n.", "torch.hub.load"),
        (lambda: b"\x80\x02c__torch__.A\nB\n)\x81}b.", "no text_projection"),  # harmless, and no CLIP
        (lambda: b"\x80\x02K\x07Q.", "TypeError"),  # a storage that is none
        (lambda: b"\x80\x02", "EOFError"),
        (lambda: b"", "EOFError"),
    ],
)
def test_an_archive_that_asks_for_anything_else_is_one_line(archive, tmp_path, monkeypatch, data, named):
    monkeypatch.chdir(tmp_path)
    file = with_pickle(archive, tmp_path / "ViT-B-32.pt", data())
    assert is_torchscript(file)
    with pytest.raises(InputError, match="expected a CLIP model as OpenAI publishes them, got") as caught:
        make_reward([f"clip@{file}"])
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "was-run").exists()


class Resetting(nn.Module):
    """A module whose archive has code that reading it would run."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.training = False

    @torch.jit.export
    def __getstate__(self):
        return self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]):
        self.weight = state[0] + 1
        self.training = state[1]

    def forward(self, x: torch.Tensor):
        return x + self.weight


def test_code_of_an_archive_is_not_run(tmp_path):
    """torch's own reader calls a module's __setstate__."""
    file = save_archive(Resetting(), tmp_path / "code.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.jit.load(str(file)).weight.tolist() == [1, 1]
    assert read_torchscript(file) == {}


def test_a_damaged_archive_is_one_line(archive, tmp_path):
    for name, change in (
        ("cut.pt", lambda data: data[:-2000]),
        ("flipped.pt", lambda data: data[:60_000] + bytes([data[60_000] ^ 255]) + data[60_001:]),
        ("empty.pt", lambda data: b""),
        ("text.pt", lambda data: b"<html>Not found</html>"),
    ):
        (tmp_path / name).write_bytes(change(archive.read_bytes()))
        with pytest.raises(InputError, match="expected a CLIP model as OpenAI publishes them, got") as caught:
            make_reward([f"clip@{tmp_path / name}"])
        assert "\n" not in str(caught.value)


def test_a_traced_archive_is_read_too(tmp_path):
    """OpenAI's are traced: what is no tensor is not in them."""

    class Both(nn.Module):
        def __init__(self, model):
            super().__init__()
            for name, child in model.named_children():
                setattr(self, name, child)
            for name, value in [*model.named_parameters(recurse=False), *model.named_buffers(recurse=False)]:
                self.register_parameter(name, value) if isinstance(value, nn.Parameter) else (
                    self.register_buffer(name, value)
                )

        def forward(self, images):
            return self.visual(images)

    model = Both(openai_model()).float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(model, torch.zeros(1, 3, 32, 32), check_trace=False).save(str(tmp_path / "traced.pt"))
    tensors = read_torchscript(tmp_path / "traced.pt")
    assert all(torch.equal(tensors[name], tensor) for name, tensor in model.state_dict().items())
    tower, _ = load_open_clip(str(tmp_path / "traced.pt"), "clip")
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(tower.module(images), model(images))


def test_a_model_of_other_words_is_one_line(tmp_path):
    file = save_archive(openai_model(vocab_size=1000), tmp_path / "other.pt")
    with pytest.raises(InputError, match="of 1000 words, CLIP's vocabulary has 49408"):
        make_reward([f"clip@{file}"])
