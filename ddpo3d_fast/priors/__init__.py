"""Diffusion priors: what they know, what they predict. Free of torch until one is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ddpo3d_fast.errors import InputError
from ddpo3d_fast.files import read_json
from ddpo3d_fast.priors.kinds import PriorKind, PriorSettings
from ddpo3d_fast.priors.kinds.embedded import KIND as EMBEDDED
from ddpo3d_fast.priors.kinds.stable_diffusion import KIND as STABLE_DIFFUSION

if TYPE_CHECKING:
    from ddpo3d_fast.priors.base import Prior

PRIORS: dict[str, PriorKind] = {
    "embedded": EMBEDDED,
    "stable_diffusion": STABLE_DIFFUSION,
}
OTHERS = "stable_diffusion"  # what a model is that neither its name nor its folder says


def kind_of(model: str) -> PriorKind:
    """The kind of a model: of a folder by its model_index.json, else by its name."""
    try:
        said = read_json(Path(model).expanduser() / "model_index.json", "parts").get("_class_name")
    except InputError:  # what is wrong with a folder is for its loading to say
        said = None
    kinds = PRIORS.values()
    of_folder, of_name = [k for k in kinds if said in k.classes], [k for k in kinds if model in k.models]
    return (of_folder + of_name + [PRIORS[OTHERS]])[0]


def load_prior(wanted: PriorSettings) -> Prior:
    """The prior that is wanted. Raises InputError: no such model, a part of it is missing or damaged, or
    something is asked of it that its kind does not have."""
    return kind_of(wanted.model).load(wanted)


__all__ = ["PRIORS", "PriorKind", "PriorSettings", "kind_of", "load_prior"]
