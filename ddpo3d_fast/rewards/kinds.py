"""The table of what --reward may name, beside functions of the user's."""

from __future__ import annotations

from functools import partial

from ddpo3d_fast.rewards.aesthetic import aesthetic_reward
from ddpo3d_fast.rewards.base import RewardKind
from ddpo3d_fast.rewards.clip import clip_reward
from ddpo3d_fast.rewards.colour import COLOURS, colour_reward
from ddpo3d_fast.rewards.contrast import contrast_reward
from ddpo3d_fast.rewards.embedded import embedded_reward
from ddpo3d_fast.rewards.jpeg import jpeg_reward
from ddpo3d_fast.rewards.preference import hps_reward, pickscore_reward
from ddpo3d_fast.rewards.symmetry import symmetry_reward

REWARDS: dict[str, RewardKind] = {
    "embedded": RewardKind(embedded_reward, sourced=False),
    "jpeg": RewardKind(jpeg_reward, sourced=False),
    "colour": RewardKind(colour_reward, sourced=False, choices=COLOURS),
    "contrast": RewardKind(contrast_reward, sourced=False),
    "symmetry": RewardKind(symmetry_reward, sourced=False),
    "aesthetic": RewardKind(partial(aesthetic_reward, "aesthetic")),
    "aesthetic-v1": RewardKind(partial(aesthetic_reward, "aesthetic-v1")),
    "clip": RewardKind(clip_reward),
    "hps": RewardKind(hps_reward),
    "pickscore": RewardKind(pickscore_reward),
}
