"""When the policy acts, and what an advantage is."""

import pytest
import torch

from ddpo3d_fast.guidance.policy import (
    RunningBaseline,
    group_advantages,
    policy_schedule,
    ranked_advantages,
    shuffled,
)


def test_the_policy_is_off_at_high_noise_and_rises_as_the_timestep_falls():
    weight = policy_schedule(torch.tensor([0.9, 0.7, 0.6, 0.5, 0.1]), 0.7)
    assert weight.tolist() == pytest.approx([0, 0, 0.5, 1, 1], abs=1e-6)


def test_group_advantages_are_the_standardised_rewards_of_each_view():
    rewards = torch.tensor([[1.0, 2.0, 3.0], [10.0, 10.0, 40.0]])
    advantages = group_advantages(rewards)
    expected = (rewards - rewards.mean(1, keepdim=True)) / rewards.std(1, keepdim=True)
    assert torch.allclose(advantages, expected, atol=1e-5)
    assert torch.allclose(advantages.mean(1), torch.zeros(2), atol=1e-6)


def test_equal_rewards_have_no_advantage():
    assert group_advantages(torch.full((2, 4), 3.7)).abs().max() == 0


def test_group_advantages_do_not_depend_on_the_scale_of_the_reward():
    rewards = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(group_advantages(rewards), group_advantages(100 * rewards + 7), atol=1e-3)


def test_the_running_baseline_waits_for_sixteen_rewards_then_compares_with_them():
    baseline = RunningBaseline()
    rewards = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
    assert baseline.advantages(rewards).abs().max() == 0
    later = baseline.advantages(torch.tensor([[1.0, 99.0]]))
    assert later[0, 0].item() == pytest.approx(float((1 - rewards.mean()) / rewards.std()), rel=1e-4)
    assert later[0, 1].item() == 5.0  # clipped


def test_the_running_window_keeps_the_last_32_and_survives_a_checkpoint():
    baseline = RunningBaseline()
    for step in range(5):
        baseline.advantages(torch.full((1, 8), float(step)))
    assert baseline.window.tolist() == [1.0] * 8 + [2.0] * 8 + [3.0] * 8 + [4.0] * 8
    again, rewards = RunningBaseline(baseline.window), torch.tensor([[9.0, 1.0]])
    assert torch.equal(again.advantages(rewards), baseline.advantages(rewards))


def test_shuffling_keeps_the_advantages_of_a_view_and_changes_their_order():
    advantages = torch.randn(6, 8, generator=torch.Generator().manual_seed(2))
    mixed = shuffled(advantages, torch.rand(6, 8, generator=torch.Generator().manual_seed(3)))
    assert torch.equal(mixed.sort(1).values, advantages.sort(1).values)
    assert not torch.equal(mixed, advantages)


def test_ranked_advantages_make_rewardsds_of_the_noise_policy():
    """Its weights of seven noises: 0.45 for the best two, -0.05 for the worst two (arXiv 2503.09601)."""
    rewards = torch.tensor([[3.0, 1.0, 7.0, 5.0, 2.0, 6.0, 4.0]])
    weights = (1 + ranked_advantages(rewards)) / 7
    torch.testing.assert_close(weights, torch.tensor([[0.0, -0.05, 0.45, 0.0, -0.05, 0.45, 0.0]]))
