"""What the latent policy asks of the prior, in one update of a batch of actions and in several."""

import pytest
import torch

from ddpo3d_fast import settings
from ddpo3d_fast.guidance import Gradient, ScoreDistillation, Seen
from ddpo3d_fast.priors.codec import PatchCodec
from ddpo3d_fast.step import Step, merged

VIEWS, ACTIONS = 2, 4


class Prior:
    prediction_type, clip, device, picture_size = "sample", None, torch.device("cpu"), 16
    codec = PatchCodec(4)
    alphas_cumprod = torch.linspace(0.999, 0.01, 1000)

    def __init__(self):
        self.asked = []  # how many latents, and at which timesteps

    def conditions(self, prompt, cameras):
        return {}

    def predict(self, noisy, timesteps, conditions):
        self.asked.append((len(noisy), sorted(set(timesteps.tolist()))))
        return torch.tanh(noisy), 0.5 * torch.tanh(noisy)


class Bright:
    name = "bright"
    scored = 0

    def score(self, images, prompts):
        self.scored += len(images)
        return images.mean((1, 2, 3))


def step_of(number):
    return Step(number, 0.0, None, None, None, None, torch.tensor([300, 500]), 16, 16, None)


def policy_of(prior, scorer, **wishes):
    wishes = {"policy": "latent", "policy_max_timestep": 1.0} | wishes
    config = settings.Config(
        prompt="text",
        seed=3,
        schedule=settings.Schedule(noises=ACTIONS, views=VIEWS),
        reward=settings.Reward(**wishes),
    )
    return ScoreDistillation(prior, None, scorer, config)


def called(policy, number, pictures):
    step = step_of(number)
    inputs = merged({"timesteps": step.timesteps, "seen_from": torch.zeros(VIEWS, 3)}, policy.inputs(step))
    return policy(Seen(pictures, None, inputs, policy.variant(step)), Gradient())


@pytest.fixture
def pictures():
    return torch.rand(VIEWS, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_a_clean_guess_comes_of_as_many_evaluations_as_there_are_ddim_steps(pictures):
    prior = Prior()
    called(policy_of(prior, Bright()), 1, pictures)
    assert prior.asked == [(VIEWS, [300, 500]), (VIEWS * ACTIONS, [200, 400])]
    prior = Prior()
    called(policy_of(prior, Bright(), policy_ddim_steps=4), 1, pictures)
    later = [[200, 400], [150, 300], [100, 200], [50, 100]]
    assert prior.asked == [(VIEWS, [300, 500]), *((VIEWS * ACTIONS, at) for at in later)]


def test_a_batch_of_actions_is_judged_once_and_updated_by_several_times(pictures):
    prior, scorer = Prior(), Bright()
    policy = policy_of(prior, scorer, policy_estimator="ppo", policy_updates=3, policy_clip=0.01)
    told = []
    for number in range(1, 7):
        moved = pictures + 0.004 * (number - 1)
        told.append({name: float(value) for name, value in called(policy, number, moved).metrics.items()})
    assert [len_ for len_, _ in prior.asked] == 2 * [VIEWS, VIEWS * ACTIONS, VIEWS, VIEWS]
    assert scorer.scored == 2 * VIEWS * ACTIONS
    assert ["reward" in row for row in told] == 2 * [True, False, False]
    kl = [row["approximate_kl"] for row in told]
    assert kl[0] == kl[3] == 0
    assert 0 < kl[1] < kl[2]
    assert 0 < kl[4] < kl[5]
    assert told[0]["clip_fraction"] == told[3]["clip_fraction"] == 0


def test_where_every_ratio_is_clipped_the_actions_pull_no_more(pictures):
    policy = policy_of(Prior(), Bright(), policy_estimator="ppo", policy_updates=2, policy_clip=0.0)
    plain = policy_of(Prior(), None, policy_weight=0.0)
    plain.noises = 1
    policy.latent.signal.sums[:2] = torch.tensor([1.0, 0.0])
    first = called(policy, 1, pictures).pictures
    assert (first - called(plain, 1, pictures).pictures).norm() > 0.1 * first.norm()
    # Far towards what is rewarded, every ratio has left 1 the way that its advantage wants.
    gradient = called(policy, 2, pictures - 0.05 * first / first.abs().max())
    assert float(gradient.metrics["clip_fraction"]) == 1


def test_a_step_draws_what_the_first_of_its_batch_drew():
    policy = policy_of(Prior(), Bright(), policy_estimator="ppo", policy_updates=3, shuffle_advantages=True)
    first, second, fourth = (policy.inputs(step_of(number)) for number in (1, 2, 4))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["stream_offset"], fourth["stream_offset"])
    assert [policy.variant(step_of(number)) for number in range(1, 8)] == 2 * ["draw", "update", "update"] + [
        "draw"
    ]


def test_batches_are_counted_where_the_policy_acts_now_and_then():
    policy = policy_of(Prior(), Bright(), policy_estimator="ppo", policy_updates=2, policy_every=2)
    acts = [policy.variant(step_of(number)) for number in range(1, 7)]
    assert acts == ["draw", "update", "nothing", "nothing", "draw", "update"]


def test_the_state_is_all_that_an_update_needs_of_the_step_that_drew(pictures):
    whole, begun = (
        policy_of(Prior(), Bright(), policy_estimator="ppo", policy_updates=2, policy_clip=1.0)
        for _ in range(2)
    )
    for policy in (whole, begun):
        policy.latent.signal.sums[:2] = torch.tensor([1.0, 0.1])
        called(policy, 1, pictures)
    resumed = policy_of(Prior(), Bright(), policy_estimator="ppo", policy_updates=2, policy_clip=1.0)
    resumed.load({name: tensor.tolist() for name, tensor in begun.state().items()})
    moved = pictures + 0.01
    assert torch.equal(called(resumed, 2, moved).pictures, called(whole, 2, moved).pictures)
    with pytest.raises(LookupError):
        resumed.load({"rewards": []})


def test_actions_of_smaller_pictures_fit_into_the_memory_of_larger_ones(pictures):
    """As where --picture-scales change: a captured graph knows where it lies."""
    policy = policy_of(Prior(), Bright(), policy_estimator="ppo", policy_updates=2)
    called(policy, 1, pictures)
    place = policy.latent.means.data_ptr()
    called(policy, 3, pictures[:, :, :8, :8])
    called(policy, 4, pictures[:, :, :8, :8] + 0.01)
    called(policy, 5, pictures)
    assert policy.latent.means.data_ptr() == place
