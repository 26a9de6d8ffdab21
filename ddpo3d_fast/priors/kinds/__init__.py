"""The kinds of priors, a file each. Free of torch until one is loaded, since settings are made of presets."""

from ddpo3d_fast.priors.kinds.kind import PriorKind, PriorSettings

__all__ = ["PriorKind", "PriorSettings"]
