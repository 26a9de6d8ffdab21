"""Guidances: each takes rendered views and returns the gradient of its loss with respect to them."""

from ddpo3d_fast.guidance.base import Gradient, Guidance, Seen
from ddpo3d_fast.guidance.distillation import ScoreDistillation
from ddpo3d_fast.guidance.objectives import OBJECTIVES
from ddpo3d_fast.guidance.regularizers import AlphaPenalty, alpha_penalty
from ddpo3d_fast.guidance.reward_guide import RewardGuide, reward_guide

__all__ = [
    "OBJECTIVES",
    "AlphaPenalty",
    "Gradient",
    "Guidance",
    "RewardGuide",
    "ScoreDistillation",
    "Seen",
    "alpha_penalty",
    "reward_guide",
]
