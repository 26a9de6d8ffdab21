"""Whatever the policy: the mean of its estimate is the gradient of a reward that is known, and nothing where
the reward says nothing. The prior is linear, so the truth can be written down."""

import dataclasses
import math

import pytest
import torch

from ddpo3d_fast import settings
from ddpo3d_fast.guidance import Gradient, ScoreDistillation, Seen, ViewPolicy
from ddpo3d_fast.guidance.exploration import Exploration
from ddpo3d_fast.guidance.scaling import NORMS, RunningSignal, beyond_chance
from ddpo3d_fast.priors.codec import PatchCodec
from ddpo3d_fast.step import Step, merged

VIEWS, SIDE, PATCH = 2, 16, 4
POLICIES = {
    "noise": {"policy": "noise"},
    "latent white": {"policy": "latent", "policy_exploration": "white"},
    "latent lowpass": {"policy": "latent", "policy_grid": 3},
    "latent, two steps": {"policy": "latent", "policy_grid": 3, "policy_ddim_steps": 2},
    "view": {"policy": "view", "policy_grid": 3, "policy_pairs": 8, "policy_sigma": 0.02},
}


class LinearPrior:
    """Half of what is noisy is clean."""

    prediction_type, clip, device, picture_size = "sample", None, torch.device("cpu"), SIDE
    codec = PatchCodec(PATCH)
    alphas_cumprod = torch.linspace(0.999, 0.5, 1000)

    def __init__(self):
        self.asked = []

    def conditions(self, prompt, cameras):
        return {}

    def predict(self, noisy, timesteps, conditions):
        self.asked.append((len(noisy), timesteps))
        return 0.5 * noisy, 0.5 * noisy


class Leaning:
    """A linear reward: its gradient is `likes`."""

    name = "leaning"

    likes = torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(5)).cumsum(2) / 100

    def score(self, images, prompts):
        assert ((images > 0) & (images < 1)).all(), "a picture at its limit is not linear any more"
        return (images * self.likes).sum((1, 2, 3))


class Chance:
    """A reward that has nothing to do with the picture."""

    name = "chance"

    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)

    def score(self, images, prompts):
        return torch.randn(len(images), generator=self.generator)


class Silent:
    name = "silent"

    def score(self, images, prompts):
        return torch.full((len(images),), 0.3)


def pulls(scorer, steps, prior=None, noises=6, **wishes):
    """[steps, V, 3, S, S] what the policy adds to the descent of a step; what it tells of it, and
    distillation's own gradient [V, 3, S, S]."""
    config = settings.Config(
        prompt="text",
        schedule=settings.Schedule(noises=noises, views=VIEWS),
        distillation=settings.Distillation(guidance_scale=1.0),
        reward=settings.Reward(**wishes),
    )
    of_view = wishes["policy"] == "view"
    silent = dataclasses.replace(config, reward=dataclasses.replace(config.reward, policy_weight=0.0))
    prior = prior or LinearPrior()
    few = dataclasses.replace(silent, schedule=dataclasses.replace(config.schedule, noises=1))
    plain = ScoreDistillation(prior, None, None, silent if wishes["policy"] == "noise" else few)
    policy = ViewPolicy(scorer, config) if of_view else ScoreDistillation(prior, None, scorer, config)
    pictures = 0.5 + 0.1 * torch.rand(VIEWS, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    drawn = Step(1, 0.0, None, None, None, None, torch.tensor([60, 90]), SIDE, SIDE, None)
    found, told = [], []
    for number in range(1, steps + 1):
        step = drawn._replace(number=number)
        inputs = {"timesteps": step.timesteps, "seen_from": torch.zeros(VIEWS, 3)}
        inputs = merged(inputs, policy.inputs(step))
        seen = Seen(pictures, torch.ones(VIEWS, SIDE, SIDE), inputs)
        inputs_alone = seen.inputs | plain.inputs(step)
        alone = plain(seen._replace(inputs=inputs_alone, variant="nothing"), Gradient())
        gradient = policy(seen._replace(variant=policy.variant(step)), alone if of_view else Gradient())
        assert gradient.pictures is not None
        found.append(-gradient.pictures if of_view else alone.pictures - gradient.pictures)
        told.append(gradient.metrics | {"distilled": alone.pictures})
    return torch.stack(found), told


@pytest.fixture
def all_signal(monkeypatch):
    """Nothing is held to be chance."""
    monkeypatch.setattr(
        "ddpo3d_fast.guidance.scaling.beyond_chance", lambda square, *_: torch.ones_like(square)
    )


def within_error(samples, allowed=4.5):
    """Whether the mean of [N, ...] is 0 within its standard error, in every number."""
    error = samples.std(0) / math.sqrt(len(samples))
    return bool((samples.mean(0).abs() <= allowed * error + 1e-7).all())


@pytest.mark.parametrize("name", POLICIES)
def test_the_mean_of_the_estimate_is_the_gradient_of_the_reward_in_what_is_explored(name, all_signal):
    wishes = POLICIES[name]
    found, _ = pulls(Leaning(), 400, **wishes)
    grid = wishes.get("policy_grid", 0)
    explored = Exploration(grid)
    truth = explored.fields(explored.coefficients(Leaning.likes), SIDE)
    samples = found.double().flatten(2)
    # With respect to a basis whose first vector is the truth, only that one's mean is not 0.
    unit = (truth / truth.norm()).flatten().double()
    along = samples @ unit
    assert (along.mean(0) > 10 * along.std(0) / math.sqrt(len(samples))).all()
    assert within_error(samples - along[..., None] * unit)


@pytest.mark.parametrize("name", POLICIES)
def test_the_mean_of_the_estimate_is_zero_where_the_reward_ignores_the_action(name, all_signal):
    found, _ = pulls(Chance(), 300, **POLICIES[name])
    assert found.norm() > 0
    assert within_error(found)


@pytest.mark.parametrize("name", [name for name in POLICIES if name != "noise"])
@pytest.mark.parametrize("scorer", [Chance, Silent])
def test_a_reward_that_says_nothing_does_nothing(name, scorer):
    found, told = pulls(scorer(), 60, **POLICIES[name])
    pulled = sum(row["signal"] for row in told) / len(told)
    assert pulled < 0.02
    if scorer is Silent:
        assert found.abs().max() < 1e-7


@pytest.mark.parametrize("name", ["latent lowpass", "view"])
def test_a_pull_is_as_long_as_signal_and_weight_say_whatever_the_rewards_scale(name):
    class Louder(Leaning):
        def score(self, images, prompts):
            return 1000 * super().score(images, prompts) + 7

    wishes = POLICIES[name] | {"policy_pairs": 40, "policy_grid": 2}
    found, told = pulls(Leaning(), 12, noises=16, **wishes)
    assert told[-1]["signal"] > 0.05
    louder, _ = pulls(Louder(), 12, noises=16, **wishes)
    assert (louder[-1] - found[-1]).norm() < 0.02 * found[-1].norm()
    halved, _ = pulls(Leaning(), 12, noises=16, policy_weight=0.5, **wishes)
    assert (halved[-1] - 0.5 * found[-1]).norm() < 1e-4 * found[-1].norm()
    for own, pull in zip(told[-1]["distilled"], found[-1], strict=True):
        across = own - (own * pull).sum() / pull.square().sum() * pull
        wanted = NORMS * told[-1]["signal"] * across.norm()
        assert float(pull.norm()) == pytest.approx(float(wanted), rel=1e-4)


def test_the_control_has_the_same_rewards_and_no_signal():
    for name in ("view", "latent lowpass"):
        found, told = pulls(Leaning(), 40, shuffle_advantages=True, **POLICIES[name])
        assert sum(row["signal"] for row in told) / 40 < 0.02, name
        assert all(row["advantage_spread"] > 0 for row in told)
        assert found.norm() < 0.1 * pulls(Leaning(), 40, **POLICIES[name])[0].norm()


def test_a_signal_is_told_from_chance_by_all_steps_together():
    """Of one estimate of 48 numbers a square that is half as large again says nothing."""
    generator, signal, nothing = torch.Generator().manual_seed(0), RunningSignal(), RunningSignal()
    assert beyond_chance(torch.tensor(1.4), torch.tensor(1.0), 48) == 0
    for _ in range(40):
        square = torch.randn(2, 48, generator=generator).square().mean(1)
        signal.add(1.4 * square, torch.ones(2))
        nothing.add(square, torch.ones(2))
    assert 0.1 < signal(96) < 0.3
    assert nothing(96) == 0
