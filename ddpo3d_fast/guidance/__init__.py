"""Guidances: each takes rendered views and returns its loss's gradient, with respect to them or the scene."""

from ddpo3d_fast.guidance.base import Gradient, Guidance, Seen
from ddpo3d_fast.guidance.distillation import ScoreDistillation
from ddpo3d_fast.guidance.objectives import OBJECTIVES
from ddpo3d_fast.guidance.regularizers import AlphaPenalty, alpha_penalty
from ddpo3d_fast.guidance.reward_guide import RewardGuide, reward_guide
from ddpo3d_fast.guidance.scene_policy import ScenePolicy
from ddpo3d_fast.guidance.view_policy import ViewPolicy

__all__ = [
    "OBJECTIVES",
    "AlphaPenalty",
    "Gradient",
    "Guidance",
    "RewardGuide",
    "ScenePolicy",
    "ScoreDistillation",
    "Seen",
    "ViewPolicy",
    "alpha_penalty",
    "reward_guide",
]
