"""What the reward says of a policy's actions: the scores of what they lead to, and the advantages."""

from __future__ import annotations

from torch import Tensor

from ddpo3d_fast.guidance.base import Timer, untimed
from ddpo3d_fast.guidance.objectives import Arithmetic
from ddpo3d_fast.guidance.policy import RunningBaseline, group_advantages, ranked_advantages, shuffled
from ddpo3d_fast.priors.base import Prior
from ddpo3d_fast.rewards import Reward, Scores, scores_of
from ddpo3d_fast.settings import Config
from ddpo3d_fast.step import Tensors


class Judge:
    """Compares the K actions of every view, whose states are noisy latents."""

    def __init__(
        self,
        prior: Prior,
        scorer: Reward | None,
        arithmetic: Arithmetic,
        config: Config,
        timer: Timer = untimed,
    ) -> None:
        """`scorer` may be None where nothing is judged."""
        self.prior, self.scorer, self.arithmetic, self.timer = prior, scorer, arithmetic, timer
        self.text, self.settings = config.prompt, config.reward
        self.scale = config.reward.reward_guidance_scale or config.distillation.guidance_scale
        self.baseline = RunningBaseline(device=prior.device)

    def rewards(self, noisy: Tensor, guesses: tuple[Tensor, ...], levels: Tensor, pictures: Tensor) -> Scores:
        """[V, K] rewards of the clean guesses that the actions lead to, or of the rendered views.

        Args:
            noisy: [V K, ...] latents.
            guesses: [V K, ...] each, the prior's predictions for them.
            levels: [V K] their abar.
            pictures: [V, 3, S, S] the rendered views.
        """
        assert self.scorer is not None, "a policy gradient needs a scorer"
        views, actions = len(pictures), len(noisy) // len(pictures)
        if self.settings.reward_of == "render":
            with self.timer("reward"):
                scores = scores_of(self.scorer, pictures, [self.text] * views)
            return scores._replace(total=scores.total[:, None].expand(views, actions))
        with self.timer("residual"):
            clean = self.arithmetic.denoise_action(
                noisy, guesses[0], guesses[1], levels, levels, outputs=("clean",), guidance_scale=self.scale
            ).clean
        assert clean is not None
        with self.timer("reward"):
            guessed = self.prior.codec.decode(clean).clamp(0, 1)
            scores = scores_of(self.scorer, guessed, [self.text] * len(clean))
        return scores._replace(total=scores.total.view(views, actions))

    def advantages(self, rewards: Tensor, inputs: Tensors) -> Tensor:
        """[V, K] of rewards [V, K]; those of the control with `lots`, of the step's inputs."""
        compare = {
            "group": group_advantages,
            "running": self.baseline.advantages,
            "rewardsds": ranked_advantages,
        }
        advantages = compare[self.settings.baseline](rewards)
        return shuffled(advantages, inputs["lots"]) if self.settings.shuffle_advantages else advantages
