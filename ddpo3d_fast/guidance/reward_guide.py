"""The reward guide: a differentiable scorer's own gradient on the views (the paper's aesthetic guide)."""

from __future__ import annotations

from torch import Tensor

from ddpo3d_fast.guidance.base import Gradient, Guidance, Seen, Timer, told_of, untimed
from ddpo3d_fast.rewards import Reward, Scores, scores_vjp_of


class RewardGuide(Guidance):
    """Raises the score of the pictures, as much as the guidances before it pull."""

    def __init__(self, scorer: Reward, text: str, weight: float, timer: Timer = untimed) -> None:
        """`scorer` has a gradient; `text` is the prompt."""
        self.scorer, self.text, self.weight, self.timer = scorer, text, weight, timer

    def __call__(self, seen: Seen, so_far: Gradient) -> Gradient:
        assert so_far.pictures is not None, "the guide is relative to a gradient"
        with self.timer("reward"):
            ascent, scores = reward_guide(seen.pictures, self.text, self.scorer, self.weight, so_far.pictures)
        return Gradient(ascent, metrics=told_of("guide", scores))


def reward_guide(
    pictures: Tensor, text: str, scorer: Reward, weight: float, pull: Tensor
) -> tuple[Tensor, Scores]:
    """Gradient [V, 3, H, W] that raises the score of pictures [V, 3, H, W], and their scores [V].

    Scorers differ by orders of magnitude in the size of their gradients, so each view's is scaled to `weight`
    times the norm of `pull` [V, 3, H, W], the distillation's gradient: a weight means the same for every one.
    """
    scores, ascent = scores_vjp_of(scorer, pictures, [text] * len(pictures))
    norm = ascent.flatten(1).norm(dim=1).clamp_min(1e-20)
    scale = weight * pull.flatten(1).norm(dim=1) / norm
    return -scale.view(-1, 1, 1, 1) * ascent, scores
