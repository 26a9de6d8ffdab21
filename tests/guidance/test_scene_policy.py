"""The scene policy's estimate against the mathematics, and what it does with rewards that say nothing."""

import dataclasses
import math

import pytest
import torch

from ddpo3d_fast import settings
from ddpo3d_fast.guidance import Gradient, ScenePolicy, Seen
from ddpo3d_fast.guidance.policy import pair_advantages
from ddpo3d_fast.guidance.scaling import score_function_gradient
from ddpo3d_fast.guidance.scene_policy import BAND_OF, FIELDS, NORMS, bands, fields, signal
from ddpo3d_fast.step import Step

ROWS, CHANNELS, VIEWS = 50, 4, 3


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class ToyScene:
    """Pictures [K, 2, 1, R, C] of the offsets themselves; the last row is not in use."""

    channels, views = CHANNELS, VIEWS
    positions = 0.5 * normal(ROWS, 3, seed=1)
    present = torch.ones(ROWS, 1).index_fill(0, torch.tensor([ROWS - 1]), 0.0)

    def __init__(self):
        self.seen = []

    def pictures_of(self, phi, actions, moves):
        offsets = torch.stack([phi @ actions, -(phi @ actions)], 1)
        self.seen += [(k % VIEWS, each) for k, pair in enumerate(offsets) for each in pair]
        return offsets[:, :, None]

    def shown(self, values):
        """Of 2 x 1 pixels, the first solid, the second half of it: the mean of the rows in use."""
        mean = (values * self.present).sum(0) / self.present.sum()
        return torch.stack([mean, mean / 2], 1)[None, :, :, None].expand(VIEWS, -1, -1, -1)


class Wanting:
    """A reward of offsets: of any function."""

    name = "wanting"

    def __init__(self, function):
        self.function = function

    def score(self, images, prompts):
        assert len(images) == len(prompts)
        return self.function(images[:, 0])


def first_channel(offsets):
    return offsets[..., 0].mean(1)


def steered(function, steps=30, seed=11, scene=None, **wishes):
    """The pulls on a toy scene in some steps, and what was reported."""
    reward = settings.Reward(policy="scene", **wishes)
    config = settings.Config(prompt="text", seed=seed, reward=reward)
    policy = ScenePolicy(Wanting(function), config, torch.ones(CHANNELS))
    pulls, metrics, drawn = [], [], Step(1, 0.0, *[None] * 8)
    for number in range(1, steps + 1):
        step = drawn._replace(number=number)
        seen = Seen(None, None, policy.inputs(step), policy.variant(step), scene or ToyScene())
        gradient = policy(seen, Gradient())
        assert gradient.pictures is None
        assert gradient.alpha is None
        pulls.append(gradient.scene)
        metrics.append({name: float(value) for name, value in gradient.metrics.items()})
    return pulls, metrics


def test_the_estimate_is_the_score_function_gradient_that_autograd_takes():
    actions, advantages = normal(16, FIELDS, 3, dtype=torch.float64), normal(16, seed=1, dtype=torch.float64)
    mean = torch.zeros(FIELDS, 3, dtype=torch.float64, requires_grad=True)
    log_prob = torch.distributions.Normal(mean, 1.0).log_prob(actions).sum((1, 2))
    written = -actions.square().sum((1, 2)) / 2 - 3 * FIELDS / 2 * math.log(2 * math.pi)  # docs/method.md
    torch.testing.assert_close(log_prob.detach(), written)
    (expected,) = torch.autograd.grad((advantages * log_prob).mean(), mean)
    got, _ = score_function_gradient(advantages, actions)
    assert (got - expected).norm() <= 1e-12 * expected.norm()


@pytest.mark.parametrize("kind", ["linear and square", "exponential", "cubic"])
def test_the_mean_of_the_estimate_is_the_gradient_of_the_expected_reward(kind):
    wanted = 0.3 * normal(FIELDS, 2, dtype=torch.float64)
    size = wanted.square().sum()

    def reward(actions):
        along = (actions * wanted).sum((1, 2))
        return {
            "linear and square": along + 3 * actions.square().sum((1, 2)),
            "exponential": along.exp(),
            "cubic": along**3,
        }[kind]

    truth = wanted * {"linear and square": 1, "exponential": (size / 2).exp(), "cubic": 3 * size}[kind]
    estimates, variances = [], []
    for seed in range(500):
        actions = normal(8, FIELDS, 2, seed=seed, dtype=torch.float64)
        estimate, variance = score_function_gradient((reward(actions) - reward(-actions)) / 2, actions)
        estimates.append(estimate)
        variances.append(variance)
    found = torch.stack(estimates)
    standard_error = found.std(0) / math.sqrt(len(found))
    assert ((found.mean(0) - truth).abs() <= 4 * standard_error).all()
    # What it says of its own variance is true in the mean, too.
    spread = found.var(0).sum()
    assert (
        abs(torch.stack(variances).mean(0).sum() - spread)
        <= (0.5 if kind != "linear and square" else 0.1) * spread
    )


def test_the_mean_of_the_estimate_is_zero_where_the_reward_ignores_the_action():
    generator = torch.Generator().manual_seed(0)
    found = torch.stack(
        [
            score_function_gradient(
                pair_advantages(torch.randn(8, 2, generator=generator)), normal(8, FIELDS, 2, seed=seed)
            )[0]
            for seed in range(1000)
        ]
    )
    assert (found.mean(0).abs() <= 4 * found.std(0) / math.sqrt(len(found))).all()


def test_an_advantage_is_half_the_difference_in_units_of_its_size():
    rewards = torch.tensor([[3.0, 1.0], [0.0, 4.0], [7.0, 7.0]])
    size = math.sqrt((1 + 4 + 0) / 3)
    assert pair_advantages(rewards).tolist() == pytest.approx([1 / size, -2 / size, 0.0], rel=1e-5)
    assert torch.allclose(pair_advantages(100 * rewards + 5), pair_advantages(rewards), atol=1e-4)
    assert pair_advantages(torch.full((4, 2), 0.7)).abs().max() == 0
    outlier = torch.zeros(64, 2)
    outlier[0, 0] = 1
    assert pair_advantages(outlier)[0] == 5  # clipped


def test_fields_are_smooth_and_of_one_size_everywhere():
    waves, positions = normal(3, 12), normal(100, 3, seed=1)
    phi = fields(positions, waves)
    assert phi.shape == (100, FIELDS)
    assert torch.allclose(phi.square().sum(1), torch.ones(100), atol=1e-6)
    near = fields(positions + 1e-4, waves)
    assert (near - phi).abs().max() < 1e-3
    assert (phi[:, 0] == phi[0, 0]).all()


def test_waves_of_a_band_are_as_fine_as_its_number_says():
    config = settings.Config(prompt="text", seed=4, reward=settings.Reward(policy="scene"))
    waves = ScenePolicy(Wanting(first_channel), config, torch.ones(CHANNELS)).waves
    assert waves.shape == (3, (FIELDS - 1) // 2)
    lengths = torch.stack(
        [waves[:, [b == band for b in BAND_OF[1:13]]].norm(dim=0).mean() for band in range(3)]
    )
    assert torch.allclose(lengths, math.sqrt(8 / math.pi) * torch.tensor([1.5, 6.0, 24.0]), rtol=0.5)
    assert BAND_OF[1:13] == BAND_OF[13:]  # cosines and sines


def test_a_band_of_chance_has_no_signal_in_a_channel_and_a_sure_one_has_all():
    variance = torch.full((FIELDS, 1000), 0.04)
    assert (signal(0.2 * normal(FIELDS, 1000), variance, bands()) > 0).float().mean() < 0.02
    mean, band = torch.zeros(FIELDS, 2), torch.tensor(BAND_OF)
    mean[band == 1, 1] = 1.0
    sure = signal(mean + 1e-3, torch.full_like(mean, 1e-4), bands())
    assert (sure[band == 1, 1] > 0.99).all()
    assert (sure[band != 1] == 0).all()
    assert (sure[:, 0] == 0).all()
    assert signal(torch.zeros(FIELDS, 1), torch.zeros(FIELDS, 1), bands()).abs().max() == 0


def test_the_pull_raises_what_the_reward_wants_and_leaves_the_rest():
    pulls, metrics = steered(first_channel)
    assert all(pull.shape == (ROWS, CHANNELS) for pull in pulls)
    last = -pulls[-1]  # a gradient is of a loss
    assert last[:-1, 0].mean() > 0.3 * NORMS
    assert last[:, 1:].norm() < 0.1 * last.norm()
    assert (last[-1] == 0).all()  # a row that is not in use
    lengths = last[:-1].norm(dim=1) / NORMS
    assert 0.25 < lengths.square().mean() <= 1
    assert metrics[-1]["signal"] == pytest.approx(float(lengths.square().mean().sqrt()), rel=1e-5)
    assert metrics[-1]["advantage_spread"] > 0


def test_distillation_makes_way_for_the_wanted_colour_where_there_is_solid_object():
    config = settings.Config(prompt="text", seed=1, reward=settings.Reward(policy="scene"))
    policy = ScenePolicy(Wanting(first_channel), config, torch.ones(CHANNELS))
    drawn, opposed = Step(1, 0.0, *[None] * 8), torch.ones(VIEWS, 3, 2, 1)
    for number in range(1, 31):  # what is wanted is more of the first channel, red
        seen = Seen(None, None, policy.inputs(drawn._replace(number=number)), True, ToyScene())
        against, along = (policy(seen, Gradient(pictures=sign * opposed)) for sign in (1, -1))
    made = (against.pictures / against.metrics["signal"])[..., 0]
    assert torch.allclose(made[:, 0, 0], -torch.ones(VIEWS), atol=0.05)  # a loss that falls with less red
    assert made[:, 1:].abs().max() < 0.2  # of the others next to nothing
    assert torch.allclose(made[:, :, 1], made[:, :, 0] / 2**4, rtol=0.05, atol=1e-4)
    assert along.pictures.abs().max() == 0  # what goes there by itself stays


def test_distillation_makes_no_way_for_chance():
    config = settings.Config(prompt="text", seed=1, reward=settings.Reward(policy="scene"))
    policy = ScenePolicy(Wanting(lambda offsets: torch.zeros(len(offsets))), config, torch.ones(CHANNELS))
    seen = Seen(None, None, policy.inputs(Step(1, 0.0, *[None] * 8)), True, ToyScene())
    assert policy(seen, Gradient(pictures=torch.ones(VIEWS, 3, 2, 1))).pictures.abs().max() == 0


def test_a_channel_that_is_not_to_move_stays():
    config = settings.Config(prompt="text", seed=1, reward=settings.Reward(policy="scene"))
    policy = ScenePolicy(Wanting(first_channel), config, torch.tensor([1.0, 0, 0, 1]))
    scene, step = ToyScene(), Step(1, 0.0, *[None] * 8)
    pull = policy(Seen(None, None, policy.inputs(step), True, scene), Gradient()).scene
    for offsets in [pull] + [offsets for _, offsets in scene.seen]:
        assert (offsets[:, 1:3] == 0).all()
    assert (scene.seen[0][1][:-1, [0, 3]] != 0).all()


def test_the_pull_does_not_depend_on_the_scale_of_the_reward_but_on_the_weight():
    pull = steered(first_channel, 5)[0][-1]
    larger = steered(lambda offsets: 100 * first_channel(offsets) + 7, 5)[0][-1]
    assert (larger - pull).norm() < 1e-3 * pull.norm()
    weighted = steered(first_channel, 5, policy_weight=0.5)[0][-1]
    assert torch.allclose(weighted, 0.5 * pull)


@pytest.mark.parametrize("answer", ["the same", "chance", "shuffled"])
def test_a_reward_that_says_nothing_does_nothing(answer):
    generator = torch.Generator().manual_seed(0)
    functions = {
        "the same": lambda offsets: torch.full((len(offsets),), 0.3),
        "chance": lambda offsets: torch.randn(len(offsets), generator=generator),
        "shuffled": first_channel,
    }
    pulls, _ = steered(functions[answer], 100, shuffle_advantages=answer == "shuffled")
    lengths = torch.stack([pull.norm() for pull in pulls]) / math.sqrt(ROWS) / NORMS
    assert lengths.mean() < (1e-12 if answer == "the same" else 0.05)


def test_a_yes_or_no_is_reward_enough():
    last = -steered(lambda offsets: (first_channel(offsets) > 0.1).float())[0][-1]
    assert last[:-1, 0].mean() > 0.3


def test_between_the_steps_that_ask_the_pull_stays():
    scene = ToyScene()
    pulls, metrics = steered(first_channel, 7, scene=scene, policy_every=3)
    assert len(scene.seen) == 3 * 2 * 32  # in steps 1, 4 and 7
    assert ["reward" in each for each in metrics] == [True, False, False, True, False, False, True]
    assert torch.equal(pulls[1], pulls[2])
    assert not torch.equal(pulls[2], pulls[3])
    assert torch.equal(pulls[3], pulls[5])


def test_actions_follow_from_the_seed_and_come_in_opposite_pairs_of_the_views_in_turn():
    scenes = [ToyScene() for _ in range(3)]
    for scene, seed in zip(scenes, (11, 11, 12), strict=True):
        steered(first_channel, 1, seed, scene, policy_pairs=5)
    one, again, other = (torch.stack([offsets for _, offsets in scene.seen]) for scene in scenes)
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)
    assert torch.equal(one[::2], -one[1::2])
    assert [view for view, _ in scenes[0].seen] == [0, 0, 1, 1, 2, 2, 0, 0, 1, 1]
    # Every channel of every row has a deviation of 1.
    many = ToyScene()
    steered(first_channel, 1, 11, many, policy_pairs=1000)
    spread = torch.stack([offsets for _, offsets in many.seen])[:, :-1].std(0)
    assert torch.allclose(spread, torch.ones_like(spread), atol=0.15)


def test_the_state_is_all_that_a_step_needs_of_those_before():
    config = settings.Config(prompt="text", seed=1, reward=settings.Reward(policy="scene"))
    whole, begun = (ScenePolicy(Wanting(first_channel), config, torch.ones(CHANNELS)) for _ in range(2))
    drawn = Step(1, 0.0, *[None] * 8)

    def call(policy, number):
        inputs = policy.inputs(drawn._replace(number=number))
        return policy(Seen(None, None, inputs, True, ToyScene()), Gradient()).scene

    call(whole, 1)
    call(begun, 1)
    resumed = ScenePolicy(Wanting(first_channel), dataclasses.replace(config), torch.ones(CHANNELS))
    resumed.load({name: tensor.tolist() for name, tensor in begun.state().items()})
    assert torch.equal(call(resumed, 2), call(whole, 2))
