"""The fused guidance against the formulas of docs/method.md, written plainly in float64 for a toy prior."""

import dataclasses

import pytest
import torch

from ddpo3d_fast import settings
from ddpo3d_fast.guidance import Gradient, ScoreDistillation, Seen, alpha_penalty, reward_guide
from ddpo3d_fast.guidance.policy import group_advantages
from ddpo3d_fast.kernels import philox_normal
from ddpo3d_fast.priors.codec import PatchCodec
from ddpo3d_fast.step import Step, merged

VIEWS, NOISES, SEED, STEP = 3, 4, 11, 5
PLAIN = settings.Distillation(guidance_scale=3.0)


def encode_vjp(grad):
    return ToyPrior.codec.encode_with_vjp(torch.zeros(0, 3, 4, 4))[1](grad)


class ToyPrior:
    """Predicts the clean picture: a fixed function of the noisy one, the timestep and the condition."""

    prediction_type, clip, device = "sample", (-1.0, 1.0), torch.device("cpu")
    codec = PatchCodec(4)
    alphas_cumprod = torch.linspace(0.999, 0.001, 1000)

    def conditions(self, prompt, cameras):
        return {"shift": cameras[:, :1]}

    def predict(self, noisy, timesteps, conditions):
        actions = len(noisy) // len(conditions["shift"])
        shift = conditions["shift"].repeat_interleave(actions, 0).view(-1, 1, 1, 1).to(noisy)
        late = (timesteps / 1000).view(-1, 1, 1, 1).to(noisy)
        return torch.tanh(noisy * (1 - late) + 0.1 * shift), 0.5 * torch.tanh(noisy)


class Brightness:
    """A reward that prefers a bright left half."""

    name, differentiable = "brightness", True

    def score(self, images, prompts):
        return images[..., :8].mean((1, 2, 3)).float()

    def score_vjp(self, images, prompts):
        gradient = torch.zeros_like(images)
        gradient[..., :8] = 1 / (3 * 16 * 8)
        return self.score(images, prompts), gradient


class OneCall(ScoreDistillation):
    """A step from what a test knows of it."""

    def of(self, pictures, cameras, timesteps, step):
        drawn = Step(step, 0.0, None, *cameras.T[:2], cameras[:, 2:], timesteps, 16, 16, None)
        inputs = merged(self.inputs(drawn), {"timesteps": timesteps, "seen_from": cameras})
        return self(Seen(pictures, None, inputs, self.variant(drawn)), Gradient())


class ThreeFold(ToyPrior):
    """Predicts for a negative prompt, too."""

    def predict(self, noisy, timesteps, conditions):
        return *super().predict(noisy, timesteps, conditions), 0.3 * torch.tanh(noisy + 0.2)


def guidance(prior=ToyPrior, distillation=PLAIN, **wishes) -> OneCall:
    config = settings.Config(
        prompt="text",
        seed=SEED,
        schedule=settings.Schedule(noises=NOISES),
        distillation=distillation,
        reward=settings.Reward(**wishes),
    )
    return OneCall(prior(), None, Brightness(), config)


@pytest.fixture
def step():
    generator = torch.Generator().manual_seed(0)
    return {
        "pictures": torch.rand(VIEWS, 3, 16, 16, generator=generator),
        "cameras": torch.rand(VIEWS, 3, generator=generator),
        "timesteps": torch.tensor([100, 400, 650]),
        "step": STEP,
    }


def plain_terms(pictures, cameras, timesteps, step):
    """Of each action, in float64: sqrt(1 - abar) (z - z0^) [V, K, ...] and the reward of its z0^ [V, K]."""
    prior = ToyPrior()
    z = prior.codec.encode(pictures).double()[:, None].expand(-1, NOISES, -1, -1, -1)
    abar = prior.alphas_cumprod[timesteps].double().view(-1, 1, 1, 1, 1)
    noise = philox_normal(z.shape, SEED, 2 * step).double()
    noisy = abar.sqrt() * z + (1 - abar).sqrt() * noise
    cond, uncond = prior.predict(
        noisy.flatten(0, 1), timesteps.repeat_interleave(NOISES), {"shift": cameras[:, :1]}
    )
    clean = (uncond + 3.0 * (cond - uncond)).clamp(-1, 1)
    rewards = Brightness().score(prior.codec.decode(clean), [])
    return (1 - abar).sqrt() * (z - clean.view(z.shape)), rewards.view(VIEWS, NOISES)


def relative(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


def test_without_a_policy_it_is_the_mean_residual_of_the_noises(step):
    residual, _ = plain_terms(**step)
    expected = encode_vjp(residual.mean(1))
    assert relative(guidance(policy_weight=0.0).of(**step).pictures, expected) < 1e-5


def test_the_noise_policy_weighs_each_residual_by_its_advantage(step):
    residual, rewards = plain_terms(**step)
    ramp = ((0.7 - step["timesteps"] / 1000) / 0.2).clamp(0, 1)
    weight = 1 + 2.0 * ramp[:, None] * group_advantages(rewards)
    expected = encode_vjp((weight.view(VIEWS, NOISES, 1, 1, 1) * residual).mean(1))
    assert relative(guidance(policy_weight=2.0).of(**step).pictures, expected) < 1e-4


def test_the_noise_policy_moves_towards_the_rewarded_guesses(step):
    plain = guidance(policy_weight=0.0).of(**step).pictures
    pulled = guidance(policy_weight=1.0).of(**step).pictures
    brighter = -(pulled - plain)  # descent
    assert Brightness().score(brighter, []).sum() > 0


def test_dreamfusions_weight_is_one_minus_abar_times_the_noise_residual(step):
    plain = guidance(distillation=dataclasses.replace(PLAIN, residual="sds"), policy_weight=0.0)
    residual, _ = plain_terms(**step)
    abar = ToyPrior.alphas_cumprod[step["timesteps"]].double().view(-1, 1, 1, 1)
    expected = encode_vjp(residual.mean(1) * abar.sqrt())
    assert relative(plain.of(**step).pictures, expected) < 1e-5


def noises_said(prior, pictures, cameras, timesteps, step):
    """Of each action, in float64: what every prediction says of the noise, [V, K, ...] each, and abar."""
    z = prior.codec.encode(pictures).double()[:, None].expand(-1, NOISES, -1, -1, -1)
    abar = prior.alphas_cumprod[timesteps].double().view(-1, 1, 1, 1, 1)
    noisy = abar.sqrt() * z + (1 - abar).sqrt() * philox_normal(z.shape, SEED, 2 * step).double()
    clean = prior.predict(noisy.flatten(0, 1), timesteps.repeat_interleave(NOISES), {"shift": cameras[:, :1]})
    return [(noisy - abar.sqrt() * guess.view(z.shape)) / (1 - abar).sqrt() for guess in clean], abar


def test_classifier_score_distillation_is_the_difference_the_prompt_makes(step):
    (cond, uncond), abar = noises_said(ToyPrior(), **step)
    wanted = settings.Distillation(guidance_scale=3.0, residual="csd")
    got = guidance(distillation=wanted, policy_weight=0.0).of(**step).pictures
    assert relative(got, encode_vjp(((1 - abar) * (cond - uncond)).mean(1))) < 1e-5


def test_noise_free_score_distillation_stays_away_from_the_negative_prompt_at_high_noise(step):
    (cond, uncond, negative), abar = noises_said(ThreeFold(), **step)
    late = (step["timesteps"] >= 200).double().view(-1, 1, 1, 1, 1)
    expected = (1 - abar) * (3.0 * (cond - uncond) + uncond - late * negative)
    wanted = settings.Distillation(guidance_scale=3.0, residual="nfsd")
    got = guidance(ThreeFold, wanted, policy_weight=0.0).of(**step).pictures
    assert relative(got, encode_vjp(expected.mean(1))) < 1e-5


@pytest.mark.parametrize("residual", ["csd", "nfsd"])
def test_the_noise_policy_weighs_the_residuals_without_noise_too(step, residual):
    wanted = settings.Distillation(guidance_scale=3.0, residual=residual)
    plain, pulled = (
        guidance(ThreeFold, wanted, policy_weight=weight).of(**step).pictures for weight in (0.0, 1.0)
    )
    assert 0.01 < relative(pulled, plain) < 2


def test_the_rescaled_guess_has_the_spread_it_is_told(step):
    """z0^ times rescale std(cond) / std(guided) + 1 - rescale, before the clip."""
    prior = ToyPrior()
    (cond, uncond), abar = noises_said(prior, **step)
    z = prior.codec.encode(step["pictures"]).double()[:, None].expand(cond.shape)
    noisy = abar.sqrt() * z + (1 - abar).sqrt() * philox_normal(z.shape, SEED, 2 * STEP).double()
    plain, other = ((noisy - (1 - abar).sqrt() * eps) / abar.sqrt() for eps in (cond, uncond))
    guided = other + 3.0 * (plain - other)
    ratio = plain.flatten(2).std(2, correction=0) / guided.flatten(2).std(2, correction=0)
    clean = (guided * (0.5 * ratio + 0.5)[..., None, None, None]).clamp(-1, 1)
    wanted = settings.Distillation(guidance_scale=3.0, guidance_rescale=0.5)
    got = guidance(distillation=wanted, policy_weight=0.0).of(**step).pictures
    assert relative(got, encode_vjp(((1 - abar).sqrt() * (z - clean)).mean(1))) < 1e-5


def test_what_is_scored_may_have_another_guidance(step):
    same = guidance(reward_guidance_scale=3.0).of(**step)
    assert torch.equal(same.pictures, guidance().of(**step).pictures)
    other = guidance(reward_guidance_scale=1.0).of(**step)
    assert other.metrics["reward"] != same.metrics["reward"]


def test_the_reward_of_the_render_gives_a_running_baseline_only(step):
    """All actions of a view share their render, so a group has no advantage: the running window decides."""
    shared = guidance(reward_of="render", baseline="running", policy_weight=1.0)
    plain = guidance(policy_weight=0.0).of(**step).pictures
    assert relative(shared.of(**step).pictures, plain) < 1e-6  # too few rewards seen
    shared.judge.baseline.window = torch.tensor([0.0, 0.1] * 16)
    assert relative(shared.of(**step).pictures, plain) > 1e-2


def test_one_noise_a_view_is_an_action_whose_rewards_have_no_spread(step, recwarn):
    alone = guidance(baseline="running", policy_weight=1.0)
    alone.schedule = settings.Schedule(noises=1)
    assert float(alone.of(**step).metrics["advantage_spread"]) == 0
    assert not recwarn.list


def test_shuffled_advantages_are_a_different_gradient_of_like_size(step):
    plain = guidance(policy_weight=0.0).of(**step).pictures
    real = guidance(policy_weight=1.0).of(**step).pictures - plain
    control = guidance(policy_weight=1.0, shuffle_advantages=True).of(**step).pictures - plain
    assert relative(control, real) > 0.1
    assert 0.2 < float(control.norm() / real.norm()) < 5


def test_the_same_step_gives_the_same_gradient_and_another_step_another(step):
    first, second = guidance().of(**step), guidance().of(**step)
    assert torch.equal(first.pictures, second.pictures)
    assert not torch.equal(first.pictures, guidance().of(**step | {"step": STEP + 1}).pictures)


def test_the_reward_guide_climbs_the_score_at_a_size_set_by_the_pull(step):
    pull = torch.randn(step["pictures"].shape, generator=torch.Generator().manual_seed(4))
    gradient, scores = reward_guide(step["pictures"], "text", Brightness(), 0.25, pull)
    assert torch.allclose(gradient.flatten(1).norm(dim=1), 0.25 * pull.flatten(1).norm(dim=1), rtol=1e-5)
    assert Brightness().score(step["pictures"] - 0.01 * gradient, []).mean() > scores.total.mean()


def test_the_alpha_penalty_is_the_gradient_of_its_loss():
    alpha = torch.rand(2, 5, 5, dtype=torch.float64, requires_grad=True)
    (0.3 * (alpha * (1 - alpha)).sum()).backward()
    assert torch.allclose(alpha_penalty(alpha.detach(), 0.3), alpha.grad)
