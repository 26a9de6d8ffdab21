"""The command `engines`: what the cache of graphs and engines has, gets and loses; helps without torch."""

from __future__ import annotations

import json

from ddpo3d_fast.arguments import generate_settings, parse, to_config
from ddpo3d_fast.commands import EnginesBuild, EnginesClear, EnginesList
from ddpo3d_fast.configure import validate
from ddpo3d_fast.errors import choose

HELP = """usage: ddpo3d-fast engines ACTION [OPTIONS]

actions:
  list        what is in the cache
  build       build now what a run would build when it starts
  clear       empty the cache

The cache is $DDPO3D_CACHE, or ddpo3d-fast in the user's cache folder. Each action has its own --help.
"""


def engines(words: list[str]) -> None:
    """Does what the words after `engines` say; InputError where they say nothing."""
    actions = {"list": _list_engines, "build": _build_engines, "clear": _clear_engines}
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return
    choose(actions, words[0], "engines")(words[1:])


def _list_engines(words: list[str]) -> None:
    settings = parse(EnginesList, words)
    from ddpo3d_fast.engines.cache import cache_folder, entries

    found = entries()
    if settings.json:
        facts = [{"folder": entry.path.name, "bytes": entry.size, **entry.facts} for entry in found]
        print(json.dumps({"folder": str(cache_folder()), "engines": facts}, indent=2))
        return
    print(cache_folder())
    for entry in found:
        print(f"  {entry}")
    print(f"{len(found)} in all, {sum(entry.size for entry in found) / 2**20:.1f} MiB")


def _build_engines(words: list[str]) -> None:
    parse(EnginesBuild, words)
    config = validate(to_config(generate_settings(["--prompt", "anything", *words])))
    import torch

    from ddpo3d_fast.build import load_models, with_default_reward
    from ddpo3d_fast.engines.cache import entries
    from ddpo3d_fast.info import choose_device

    config = with_default_reward(config)
    device = choose_device(config.device)[0]
    before = {entry.path for entry in entries()}
    prior, scorer = load_models(config, device)
    # Each is tried, too.
    size = prior.picture_size
    pictures = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    latents, pull_back = prior.codec.encode_with_vjp(pictures)
    pull_back(torch.ones_like(latents))
    prior.codec.decode(latents)
    if scorer is not None:
        scorer.score(pictures, [""])
        if scorer.differentiable:
            scorer.score_vjp(pictures, [""])
    for entry in entries():
        if entry.path not in before:
            print(f"built {entry}")
    print(f"{config.distillation.model}: {prior.runtime}")


def _clear_engines(words: list[str]) -> None:
    parse(EnginesClear, words)
    from ddpo3d_fast.engines.cache import cache_folder, clear

    print(f"{cache_folder()}: {clear()} removed")
