"""From the words of a command line to settings, or to the one line that says which word is wrong."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import tyro

from ddpo3d_fast.commands import EVERYDAY, EXAMPLES, POSITIONAL, Export, Generate
from ddpo3d_fast.configure import preset
from ddpo3d_fast.errors import InputError, suggestion
from ddpo3d_fast.help import show_help
from ddpo3d_fast.run import read_config
from ddpo3d_fast.settings import Config, absolute_adapter, flag, renamed

Settings = TypeVar("Settings")
_KEPT_ON_RESUME = (
    *("--resume", "--steps", "--mesh", "--refine-steps", "--view", "--port"),
    *("--quiet", "--json", "--verbose"),
)


def parse(kind: type[Settings], words: Sequence[str], default: Settings | None = None) -> Settings:
    """The settings that the words after a command's name stand for; `default` fills what they leave out.

    Raises InputError for a wrong word. For --help and --help-all, prints it and raises SystemExit.
    """
    command = f"ddpo3d-fast {_name(kind)}"
    if not {"-h", "--help", "--help-all"}.isdisjoint(words):
        everyday = EVERYDAY if kind is Generate and "--help-all" not in words else ()
        show_help(kind, command, default, everyday, EXAMPLES[kind])
    options: dict[str, Any] = {} if default is None else {"default": default}
    with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit):
        return tyro.cli(kind, args=list(words), console_outputs=False, **options)
    raise InputError(
        _explain(kind, words) or f"cannot make sense of {shlex.join(words)}; see {command} --help"
    )


def _name(kind: type) -> str:
    """The words of a command: those of its class."""
    return re.sub("(?<=[a-z])(?=[A-Z])", " ", kind.__name__).lower()


def generate_settings(words: Sequence[str]) -> Generate:
    """The settings of `generate`: flags, before --config's file or --preset's values. Raises InputError."""
    if _value_of("--resume", words) is not None and (other := _given(Generate, words) - {*_KEPT_ON_RESUME}):
        raise InputError(
            f"{min(other)}: expected only --steps beside --resume: the other settings are those of the run"
        )
    name, file = _value_of("--preset", words), _value_of("--config", words)
    if file is None:
        base = preset(name or "standard", model=_value_of("--model", words) or "embedded")
    elif name is None:
        base = read_config(file, "--config")
    else:
        raise InputError("--preset: expected no --config beside it: the file has a preset of its own")
    default = Generate(**{field.name: getattr(base, field.name) for field in dataclasses.fields(Config)})
    settings = parse(Generate, words, default)
    if settings.quiet and settings.json:
        raise InputError("--quiet: expected no --json beside it")
    return settings


def to_config(settings: Generate) -> Config:
    """The configuration of the run, without what concerns the command alone. Raises InputError, as `absolute`
    does."""
    return absolute(
        Config(**{field.name: getattr(settings, field.name) for field in dataclasses.fields(Config)})
    )


def absolute(config: Config) -> Config:
    """The configuration with the absolute paths of what it names on this machine, so that it is the same run
    from everywhere. Raises InputError for a scale or a weight that is none."""
    model, codec = (_absolute(name) for name in (config.distillation.model, config.distillation.codec))
    lora = tuple(absolute_adapter(text) for text in config.distillation.lora)
    distillation = dataclasses.replace(config.distillation, model=model, codec=codec, lora=lora)
    reward = config.reward
    if reward.reward:
        # With torch, which what begins a run need not wait for.
        from ddpo3d_fast.rewards import absolute_reward

        named = tuple(absolute_reward(text) for text in reward.reward)
        reward = dataclasses.replace(reward, reward=named)
    return dataclasses.replace(config, distillation=distillation, reward=reward)


def _absolute(name: str) -> str:
    """A model's name, the absolute path where it is that of a folder."""
    folder = os.path.expanduser(name)
    return os.path.abspath(folder) if name and name != "embedded" and os.path.isdir(folder) else name


def _value_of(option: str, words: Sequence[str]) -> str | None:
    """The last value given to an option, None if it is not there or has no value."""
    found = None
    for word, after in itertools.zip_longest(words, words[1:], fillvalue=""):
        name, equals, value = word.partition("=")
        if name == option and (equals or after):
            found = value if equals else after
    return found


def _options(kind: type) -> dict[str, Any]:
    """The type of every option of a command, by its spelling. Positional arguments are left out."""
    options: dict[str, Any] = {}
    for name, hint in get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            options |= _options(hint)  # type: ignore[arg-type]
        elif name not in (*POSITIONAL, "outputs"):
            options[flag(name)] = hint
    return options


def _given(kind: type, words: Sequence[str]) -> set[str]:
    """The options of a command that the words set."""
    names = {word.partition("=")[0].replace("_", "-") for word in words if word.startswith("--")}
    return {name for option in _options(kind) for name in (option, f"--no-{option[2:]}") if name in names}


def _explain(kind: type, words: Sequence[str]) -> str:
    """What is wrong with the words that tyro would not take; empty if nothing is found."""
    options, left, strays = _options(kind), list(words), []
    while left:
        word = left.pop(0)
        if not word.startswith("-") or not word.lstrip("-"):
            strays.append(word)
            continue
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")
        if name in ("-q", "-v"):
            continue
        if options.get(f"--{name.removeprefix('--no-')}") is bool:
            continue
        if name not in options:
            close = suggestion(name, [*options, "--help", "--help-all"])
            return f"{name}: no such option of {_name(kind)}{close}"
        hint = options[name]
        if hint is bool:
            if equals:
                return f"{name}: expected no value, got {value!r}"
            continue
        expected, convert = _expectation(hint)
        many = get_origin(hint) is tuple and name not in ("--reward", "--lora")  # they are repeated
        values = [value] if equals else []
        while left and not left[0].startswith("--") and (many or not values):
            values.append(left.pop(0))
        for given in values:
            try:
                convert(given)
            except ValueError:
                return f"{name}: expected {expected}, got {given!r}{renamed(given)}"
        if not values:
            return f"{name}: expected {expected}, got nothing"
    if kind is Export:
        return "" if strays else f"asset: expected {POSITIONAL['asset']}, got none"
    for name, expected in POSITIONAL.items():
        if name in get_type_hints(kind):
            return (
                ""
                if len(strays) == 1
                else f"{name}: expected {expected}, got {' and '.join(strays) or 'none'}"
            )
    if strays:
        return f"{strays[0]}: expected only options that begin with --; quote a prompt of several words"
    return ""


def _expectation(hint: Any) -> tuple[str, Any]:
    """What a value of this type is called, and what turns a word into it or raises ValueError."""
    kinds = (hint, *get_args(hint))
    if choices := [str(name) for part in kinds if get_origin(part) is Literal for name in get_args(part)]:
        return f"one of {', '.join(choices)}", choices.index
    if int in kinds:
        return "whole numbers" if get_origin(hint) is tuple else "a whole number", int
    if float in kinds:
        return "numbers" if get_origin(hint) is tuple else "a number", float
    return ("a path" if Path in kinds else "some text"), str
