"""The settings of a run: which there are, what each may be, and how they are written. Free of torch."""

from ddpo3d_fast.settings.check import check_values
from ddpo3d_fast.settings.config import Config, Distillation, Preset, Range, Reward, Scene, Schedule
from ddpo3d_fast.settings.plain import Changes, changed, parse_values, to_dict
from ddpo3d_fast.settings.words import absolute_adapter, adapter, flag, renamed

__all__ = [
    "Changes",
    "Config",
    "Distillation",
    "Preset",
    "Range",
    "Reward",
    "Scene",
    "Schedule",
    "absolute_adapter",
    "adapter",
    "changed",
    "check_values",
    "flag",
    "parse_values",
    "renamed",
    "to_dict",
]
