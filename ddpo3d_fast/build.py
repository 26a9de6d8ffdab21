"""From a configuration to a run: its models, its scene, its guidances; new, or as a checkpoint has it."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from ddpo3d_fast.control import Stopwatch
from ddpo3d_fast.errors import FallbackWarning, InputError
from ddpo3d_fast.files import write_each
from ddpo3d_fast.graphs import StepGraphs
from ddpo3d_fast.guidance import (
    OBJECTIVES,
    AlphaPenalty,
    Guidance,
    RewardGuide,
    ScenePolicy,
    ScoreDistillation,
    ViewPolicy,
)
from ddpo3d_fast.journal import Journal, Observer
from ddpo3d_fast.priors import PriorSettings, kind_of, load_prior
from ddpo3d_fast.priors.base import Prior
from ddpo3d_fast.rewards import Reward, RewardSettings, is_at_hand, make_reward, parse_rewards
from ddpo3d_fast.run import RunFolder
from ddpo3d_fast.scene import Representation, Splats
from ddpo3d_fast.schedule import Plan, calls_of
from ddpo3d_fast.settings import Config, adapter
from ddpo3d_fast.sources import record, recorded
from ddpo3d_fast.step import Step, Tensors, merged

PRECISIONS = {"auto": None, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
Made = TypeVar("Made")


class Models:
    """The models of the last run in a process that makes several, for the next one that asks for the same."""

    def __init__(self) -> None:
        self._kept: dict[type, tuple[Any, Any, list[Path]]] = {}  # what was asked for, what came, its files

    def __call__(self, asked: Any, make: Callable[[], Made]) -> Made:
        """What was made last time, if that was `asked` for in the same words, else what `make` makes now. The
        files that it was read from are told to `sources.record` either way."""
        before = self._kept.pop(type(asked), None)
        if before is None or before[0] != asked:
            del before  # there may be no room for both
            with recorded() as files:
                made = make()
            before = asked, made, list(files)
        self._kept[type(asked)] = before
        for file in before[2]:
            record(file)
        return before[1]


Scene = TypeVar("Scene", bound=Representation)


class Prepared(NamedTuple):
    """A step, and what `generate.advance` is given of it."""

    step: Step
    key: tuple[int, int, tuple[Hashable, ...]]  # pixels of a view, of a picture; a variant for each guidance
    inputs: Tensors  # on the CPU


@dataclass(frozen=True)
class Run(Generic[Scene]):
    """The parts of a run. What its steps change is in the scene, the guidances and the journal."""

    config: Config
    folder: RunFolder | None  # None: nothing is saved on the way
    clock: Stopwatch
    plan: Plan
    scene: Scene
    guidances: tuple[Guidance, ...]  # each sees the gradient of those before it
    graphs: StepGraphs
    journal: Journal
    first: int  # step to make

    def prepare(self, number: int) -> Prepared | None:
        """Draws a step, from 1; none beyond the last."""
        if number > self.config.schedule.steps:
            return None
        step = self.plan.draw(number)
        variants = tuple(guidance.variant(step) for guidance in self.guidances)
        inputs = (guidance.inputs(step) for guidance in self.guidances)
        key = step.rendered, step.picture, variants
        return Prepared(step, key, merged(step.inputs(), self.scene.inputs(step), *inputs))

    def kept(self) -> Tensors:
        """What the guidances change, in place."""
        return merged(*(guidance.state() for guidance in self.guidances))

    def save(self, step: int) -> None:
        """Writes metrics and a checkpoint, `step` being the last one done. Raises InputError for what could
        not be written."""
        folder = self.folder
        if folder is None:
            return
        lists = {name: tensor.tolist() for name, tensor in self.kept().items()}
        state = {"step": step} | lists | self.scene.state()
        write_each(lambda: folder.write_metrics(self.journal.rows), lambda: folder.save_checkpoint(state))


def build(
    config: Config,
    folder: RunFolder,
    device: torch.device,
    observer: Observer,
    clock: Stopwatch,
    resume: bool,
    models: Models | None = None,
) -> Run[Splats]:
    """The run of a configuration that `with_default_reward` has given, in its claimed folder, which begins.

    Raises InputError for what cannot be loaded or does not go together; then nothing is written.
    """
    state = folder.load_checkpoint(config.schedule.steps) if resume else None
    model, place = config.distillation.model, "the GPU" if device.type == "cuda" else "the CPU"
    observer({"stage": "load", "message": f"loading {model} on {place}"})
    with recorded() as files_read:
        prior, scorer = load_models(config, device, models)
        prompt = prior.prompt(config.prompt, config.negative_prompt, predictions(config) == 3)
    folder.identify(files_read)
    plan = Plan.of(config, prior)
    scene = Splats(config.scene, config.seed, device)
    guidances = guidances_of(config, prior, prompt, scorer, clock, scene)
    first, rows = 1, list[dict[str, Any]]()
    if state is not None:
        first, rows = state["step"] + 1, folder.read_metrics(until=state["step"])
        with folder.restoring():
            scene.load(state)
            for guidance in guidances:
                guidance.load(state)
    graphs = graphs_of(config, scorer, device)
    journal = Journal(observer, config, prior.runtime, rows)
    folder.begin(config, _facts(prior, scorer), resume)
    return Run(config, folder, clock, plan, scene, guidances, graphs, journal, first)


def refining(
    config: Config,
    scene: Scene,
    device: torch.device,
    observer: Observer,
    clock: Stopwatch,
) -> Run[Scene]:
    """A run of a configuration that `with_default_reward` has given, of a scene that is there already; it has
    no folder. Raises InputError for what cannot be loaded or does not go together."""
    prior, scorer = load_models(config, device)
    prompt = prior.prompt(config.prompt, config.negative_prompt, predictions(config) == 3)
    guidances = guidances_of(config, prior, prompt, scorer, clock, scene)
    graphs, journal = graphs_of(config, scorer, device), Journal(observer, config, prior.runtime, [])
    return Run(config, None, clock, Plan.of(config, prior), scene, guidances, graphs, journal, 1)


def graphs_of(config: Config, scorer: Reward | None, device: torch.device) -> StepGraphs:
    """Of a run's steps, where they can be captured."""
    capturable = scorer is None or scorer.capturable
    return StepGraphs(device, device.type == "cuda" and config.cuda_graph and capturable)


def guidances_of(
    config: Config,
    prior: Prior,
    prompt: Any,
    scorer: Reward | None,
    clock: Stopwatch,
    scene: Representation,
) -> tuple[Guidance, ...]:
    """What pulls at the views of a run and at its scene, in the order in which they add up."""
    wishes, distilled, device = config.reward, config, prior.device
    if wishes.policy in ("view", "scene"):  # a guidance of its own, beside plain distillation
        distilled = dataclasses.replace(config, reward=dataclasses.replace(wishes, policy_weight=0.0))
    guidances: list[Guidance] = [ScoreDistillation(prior, prompt, scorer, distilled, clock)]
    if scorer is not None and wishes.policy == "view" and wishes.policy_weight > 0:
        guidances.append(ViewPolicy(scorer, config, device, clock))
    if scorer is not None and scorer.differentiable and wishes.guide_weight > 0:
        guidances.append(RewardGuide(scorer, config.prompt, wishes.guide_weight, clock))
    if scorer is not None and wishes.policy == "scene" and wishes.policy_weight > 0:
        moved = scene.moved_channels(wishes.policy_moves)  # last: the others make way for it
        guidances.append(ScenePolicy(scorer, config, moved, device, clock))
    return (*guidances, AlphaPenalty(config.scene.alpha_penalty))


def predictions(config: Config) -> int:
    """How many an item needs: for the prompt and for nothing or the negative prompt, or for all three."""
    return 1 + len(OBJECTIVES[config.distillation.residual].against)


def pictures_scored(config: Config) -> int:
    """How many the policy has scored in a step."""
    schedule, wishes = config.schedule, config.reward
    if wishes.policy in ("view", "scene"):
        return 2 * wishes.policy_pairs
    return schedule.views * (schedule.actions(True) if wishes.reward_of == "action" else 1)


def compares(config: Config) -> bool:
    """Whether the policy compares actions of a view, so that the prior sees as many of it."""
    wishes = config.reward
    if wishes.policy == "latent":
        return wishes.policy_weight > 0
    return wishes.policy == "noise" and wishes.policy_weight > 0 and wishes.reward_of == "action"


def load_models(
    config: Config, device: torch.device, models: Models | None = None
) -> tuple[Prior, Reward | None]:
    """The prior of a run and, where it uses one, its reward, all engines made: to build one takes long, which
    is no step's business. Takes what `with_default_reward` gives; `models` are those of the run before.
    Raises InputError."""
    models = models or Models()
    model, wishes, schedule = config.distillation, config.reward, config.schedule
    dtype, judged = PRECISIONS[model.precision], wishes.policy_weight or wishes.guide_weight
    rewards = (wishes.reward or ("embedded",)) if judged else ()
    if rewards:
        parse_rewards(rewards)  # what is wrong with a name is told before a long load
    wanted = PriorSettings(
        model.model,
        device,
        dtype,
        model.runtime,
        codec=model.codec,
        lora=[adapter(text) for text in model.lora],
        interpolate_views=model.interpolate_views,
        calls=calls_of(schedule, predictions(config), compares(config)),
    )
    prompts = config.prompt, config.negative_prompt
    prior = models(wanted, lambda: load_prior(dataclasses.replace(wanted, prompts=prompts)))
    prior.codec.prepare(decodes=wishes.policy_weight > 0 and wishes.policy in ("noise", "latent"))
    if not rewards:
        return prior, None
    scored = pictures_scored(config)
    asked = RewardSettings(device, model.runtime, dtype, batches=(scored, schedule.views))
    reward = models((rewards, asked), lambda: make_reward(rewards, asked))
    if not (wishes.policy_weight or reward.differentiable):
        raise InputError(
            f"--policy-weight: expected more than 0, got 0: {reward.name} has no gradient for the guide, so "
            "that nothing would follow it (docs/rewards.md says how a function declares one)"
        )
    reward.prepare(gradient=reward.differentiable and wishes.guide_weight > 0)
    return prior, reward


def _facts(prior: Prior, scorer: Reward | None) -> dict[str, Any]:
    """What runs the networks of a run, for its config.yaml."""
    facts = {"engine": prior.runtime, "reward": "none"}
    facts |= {f"{name}_engine": runtime for name, runtime in prior.codec.runtimes.items()}
    if scorer is not None:
        facts |= {"reward": scorer.name, "reward_engine": scorer.runtime}
    return facts


def with_default_reward(config: Config) -> Config:
    """The configuration with what judges where no reward is named, or where nothing can, without a judge.

    Beside the embedded prior that is the embedded scorer, which needs no naming; beside a Stable Diffusion by
    name `aesthetic`, which may download it. Beside a folder, which never downloads, `aesthetic` where its
    files are at hand; else the weights of policy and guide become 0, and a FallbackWarning says so.
    """
    wishes, model = config.reward, config.distillation.model
    judge = kind_of(model).reward
    if wishes.reward or not (wishes.policy_weight or wishes.guide_weight) or not judge:
        return config
    if not (Path(model).expanduser() / "model_index.json").is_file() or is_at_hand(judge):
        return dataclasses.replace(config, reward=dataclasses.replace(wishes, reward=(judge,)))
    warnings.warn(
        f"--reward: none was named, and {judge}'s files are not on this machine: {model} runs without one, "
        f"by distillation alone (--reward {judge} may download them, docs/rewards.md has others)",
        FallbackWarning,
        stacklevel=2,
    )
    unjudged = dataclasses.replace(wishes, policy_weight=0.0, guide_weight=0.0)
    return dataclasses.replace(config, reward=unjudged)
