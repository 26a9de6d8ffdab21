"""Guidances: each takes rendered views and returns the gradient of its loss with respect to them."""

from ddpo3d_fast.guidance.distillation import Guided, ScoreDistillation
from ddpo3d_fast.guidance.objectives import OBJECTIVES
from ddpo3d_fast.guidance.regularizers import alpha_penalty
from ddpo3d_fast.guidance.reward_guide import reward_guide

__all__ = ["OBJECTIVES", "Guided", "ScoreDistillation", "alpha_penalty", "reward_guide"]
