"""Rewards by name: NAME[=WEIGHT], the user's own functions, sums, and one clear line for every mistake."""

import textwrap
from types import SimpleNamespace

import pytest
import torch

from ddpo3d_fast.engines.load import profiles
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.rewards import RewardSettings, embedded, make_reward, parse_rewards, tower
from ddpo3d_fast.rewards.embedded import EmbeddedReward

PROMPTS = ["a red ball", "a blue cube", "a duck"]
NAMES = (
    "--reward: expected one of embedded, jpeg, colour:NAME, contrast, symmetry, aesthetic, aesthetic-v1, "
    "clip, hps, pickscore"
)


@pytest.fixture(autouse=True)
def user_module(tmp_path, monkeypatch):
    """A module of the user's in the working directory."""
    source = """
        import torch
        LAST = []
        def redness(images, prompts):
            LAST[:] = prompts
            return (images[:, 0] ** 2).mean((1, 2))
        redness.differentiable = True
        def steps(images, prompts):
            return (images[:, 1].mean((1, 2)) * 8).round().detach()
        def counts(images, prompts): return torch.arange(len(images))
        def columns(images, prompts): return images.mean((2, 3))
        def words(images, prompts): return prompts
        def nan(images, prompts): return images.mean((1, 2, 3)) * float("nan")
        def broken(images, prompts): raise KeyError("weights")
        NUMBER = 3
    """
    (tmp_path / "user_rewards.py").write_text(textwrap.dedent(source))
    (tmp_path / "user_syntax.py").write_text("def f(:")
    (tmp_path / "user_needs.py").write_text("import no_such_package_at_all")
    (tmp_path / "clip.py").write_text("def score(images, prompts): return images.mean((1, 2, 3))")
    monkeypatch.chdir(tmp_path)
    yield
    import sys

    for name in ("user_rewards", "user_syntax", "user_needs", "clip"):
        sys.modules.pop(name, None)


@pytest.fixture
def images():
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_embedded_reward_is_the_embedded_scorer(images):
    reward = make_reward(["embedded"])
    assert (reward.name, reward.differentiable) == ("embedded", True)
    torch.testing.assert_close(reward.score(images, PROMPTS), EmbeddedReward().score(images))
    torch.testing.assert_close(reward.score_vjp(images, PROMPTS)[1], EmbeddedReward().score_vjp(images)[1])


def test_function_with_a_gradient(images):
    reward = make_reward(["user_rewards:redness"])
    assert reward.differentiable
    scores, gradient = reward.score_vjp(images, PROMPTS)
    torch.testing.assert_close(scores, (images[:, 0] ** 2).mean((1, 2)))
    expected = torch.zeros_like(images)
    expected[:, 0] = 2 * images[:, 0] / 64**2
    torch.testing.assert_close(gradient, expected)
    assert not scores.requires_grad
    assert not reward.score(images.requires_grad_(), PROMPTS).requires_grad
    import user_rewards

    assert user_rewards.LAST == PROMPTS


def test_function_without_a_gradient(images):
    reward = make_reward(["user_rewards:steps"])
    assert not reward.differentiable
    assert reward.score(images, PROMPTS).dtype == torch.float32
    with pytest.raises(InputError, match="no gradient"):
        reward.score_vjp(images, PROMPTS)
    assert make_reward(["user_rewards:counts"]).score(images, PROMPTS).tolist() == [0, 1, 2]


def test_weighted_sum_takes_its_gradient_from_the_parts_that_have_one(images):
    reward = make_reward(["embedded=2", "user_rewards:redness=-0.5", "user_rewards:steps=0.25"])
    alone = [make_reward([n]) for n in ("embedded", "user_rewards:redness", "user_rewards:steps")]
    weights = (2, -0.5, 0.25)
    expected = sum(w * r.score(images, PROMPTS) for w, r in zip(weights, alone, strict=True))
    scores, gradient = reward.score_vjp(images, PROMPTS)
    torch.testing.assert_close(reward.score(images, PROMPTS), expected)
    torch.testing.assert_close(scores, expected)
    parts = [w * r.score_vjp(images, PROMPTS)[1] for w, r in zip(weights[:2], alone[:2], strict=True)]
    torch.testing.assert_close(gradient, sum(parts))
    assert reward.differentiable
    assert "2 embedded" in reward.name
    assert not make_reward(["user_rewards:steps=2"]).differentiable


def test_a_single_weight_scales(images):
    once, thrice = make_reward(["embedded"]), make_reward([" embedded = 3 "])
    torch.testing.assert_close(thrice.score(images, PROMPTS), 3 * once.score(images, PROMPTS))


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([], "expected at least one"),
        ([""], f"{NAMES}, or module:function of your own, got ''"),
        (["aesthetics"], f"{NAMES}, or .* of your own, got 'aesthetics'; did you mean aesthetic?"),
        (["jpg"], "got 'jpg'; did you mean jpeg?"),
        (["jpeg@90"], f"{NAMES}, or module:function of your own, got 'jpeg@90'; did you mean jpeg?"),
        (["clip@"], f"{NAMES}, or module:function of your own, got 'clip@'"),
        (["aestetic@/a/folder"], "got 'aestetic@/a/folder'; did you mean aesthetic?"),
        (["colour:blu"], "--reward: colour: expected one of red, .*, got 'blu'; did you mean blue?"),
        (["colour"], "--reward: colour: expected one of red, .*, got ''"),
        (["color:blue"], "no module 'color' here or on the Python path; did you mean colour?"),
        (["beauty@module:function"], "no module 'beauty@module'"),
        (["=2"], f"{NAMES}, or module:function of your own, got ''"),
        (["user_rewards:"], f"{NAMES}, or module:function of your own, got 'user_rewards:'"),
        ([":redness"], f"{NAMES}, or module:function of your own, got ':redness'"),
        (["embedded="], "--reward: expected NAME or NAME=WEIGHT with a finite number, got 'embedded='"),
        (
            ["embedded=much"],
            "--reward: expected NAME or NAME=WEIGHT with a finite number, got 'embedded=much'",
        ),
        (["embedded=nan"], "--reward: expected NAME or NAME=WEIGHT with a finite number, got 'embedded=nan'"),
        (["embedded=inf"], "--reward: expected NAME or NAME=WEIGHT with a finite number, got 'embedded=inf'"),
        (["embedded=1=2"], f"{NAMES}, or module:function of your own, got 'embedded=1'"),
        (["clip@a=b=nan"], "--reward: expected NAME or NAME=WEIGHT with a finite number, got 'clip@a=b=nan'"),
        (["user_rewards:redness=much"], "--reward: expected NAME or NAME=WEIGHT with a finite number, got"),
        (["embedded", "no_such_module:f"], "no module 'no_such_module'"),
        (["user_rewards:nothing"], "has no function 'nothing'"),
        (["user_rewards:NUMBER"], "has no function 'NUMBER'"),
        (["user_syntax:f"], "importing 'user_syntax' raised SyntaxError"),
        (["user_needs:f"], "needs 'no_such_package_at_all', which is not installed"),
        (["user_rewards:columns"], r"expected scores of shape \(2,\), got \(2, 3\)"),
        (["user_rewards:words"], "expected 2 scores, .* got list"),
        (["user_rewards:nan"], "expected finite scores"),
        (["user_rewards:broken"], "raised KeyError: 'weights'"),
    ],
)
def test_a_mistake_is_one_clear_line(specs, message):
    with pytest.raises(InputError, match=message) as caught:
        make_reward(specs)
    assert str(caught.value).startswith("--reward: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "name", "weight"),
    [
        (" embedded = 0.5 ", "embedded", 0.5),
        ("user_rewards:redness=-2", "user_rewards:redness", -2.0),
        ("odd=module:score", "odd=module:score", 1.0),
        ("odd=module:score=3", "odd=module:score", 3.0),
        ("clip@runs/lr=0.1/vit", "clip@runs/lr=0.1/vit", 1.0),
        ("clip@runs/lr=0.1/vit=2", "clip@runs/lr=0.1/vit", 2.0),
        ("clip@runs/kind=vit", "clip@runs/kind=vit", 1.0),
        ("clip@runs/lr=0.1", "clip@runs/lr", 0.1),
        ("clip@runs/lr=0.1=1", "clip@runs/lr=0.1", 1.0),
    ],
)
def test_a_weight_is_the_number_behind_the_last_equals_sign(spec, name, weight):
    assert parse_rewards([spec]) == [(name, weight)]


def test_scores_that_turn_nan_during_a_run_are_an_input_error(images):
    reward = make_reward(["user_rewards:redness"])
    with pytest.raises(InputError, match="expected finite scores"):
        reward.score(images * torch.nan, PROMPTS)


def test_a_function_in_a_module_that_is_called_like_a_reward_is_the_users(images):
    reward = make_reward(["clip:score=1"])
    assert reward.name == "clip:score"
    torch.testing.assert_close(reward.score(images, PROMPTS), images.mean((1, 2, 3)))


def test_rewards_on_clip_add_up_with_others(images, clip_folder, monkeypatch):
    folder = clip_folder("vit")
    monkeypatch.setenv("HOME", str(folder.parent))
    reward = make_reward(
        [f"clip@~/{folder.name}=0.3", "embedded", "user_rewards:steps=2"], RewardSettings(runtime="torch")
    )
    assert reward.name == f"0.3 clip@{folder} + 1 embedded + 2 user_rewards:steps"
    parts = [make_reward([name]) for name in ("embedded", "user_rewards:steps")]
    clip = make_reward([f"clip@{folder}"], RewardSettings(runtime="torch"))
    others, steps = (part.score(images, PROMPTS) for part in parts)
    scores, gradient = reward.score_vjp(images, PROMPTS)
    torch.testing.assert_close(scores, 0.3 * clip.score(images, PROMPTS) + others + 2 * steps)
    expected = 0.3 * clip.score_vjp(images, PROMPTS)[1] + parts[0].score_vjp(images, PROMPTS)[1]
    torch.testing.assert_close(gradient, expected)
    assert not reward.capturable  # the user's function is looked at
    assert make_reward([f"clip@{folder}", "embedded"], RewardSettings(runtime="torch")).capturable


def test_engines_are_told_how_many_pictures_a_call_brings(clip_folder, monkeypatch):
    networks, engine = [], SimpleNamespace(runtime="another")
    for room in (embedded, tower):
        monkeypatch.setattr(room, "load_network", lambda network, *_: networks.append(network) or engine)
    specs = ["embedded", f"clip@{clip_folder('vit')}"]
    make_reward(specs, RewardSettings(runtime="onnxruntime", batches=(128, 64))).prepare(gradient=True)
    assert sorted(network.name for network in networks) == 2 * ["scorer"] + 2 * ["scorer_vjp"]
    for network in networks:
        (shapes,), batch = network.shapes, 64 if network.gradient else 128
        assert shapes == {name: (batch, *t.shape[1:]) for name, t in network.inputs.items()}
        assert [bounds["images"][2][0] for bounds in profiles(network)] == [batch]


def test_a_wrong_runtime_is_told_before_weights_are_looked_for(offline):
    with pytest.raises(InputError, match=r"^--runtime: .*, got tensorrt: runs on cuda alone"):
        make_reward(["clip"], RewardSettings(runtime="tensorrt"))


def test_rewards_on_clip_need_open_clip(monkeypatch):
    """None in sys.modules is what an import finds of a package that is not installed."""
    import sys

    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(InputError, match=r"--reward: clip: needs open_clip_torch .*ddpo3d-fast\[generate\]"):
        make_reward(["clip"])
