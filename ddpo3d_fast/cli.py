"""The commands. Each imports what it needs when it runs, so that help comes at once."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import gc
import importlib.util
import itertools
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ddpo3d_fast import __version__
from ddpo3d_fast.errors import FallbackWarning, InputError, check_text, suggestion

if TYPE_CHECKING:
    from ddpo3d_fast.commands import Generate
    from ddpo3d_fast.generate import AfterStep, Result
    from ddpo3d_fast.journal import Observer
    from ddpo3d_fast.progress import Progress, Style
    from ddpo3d_fast.settings import Config

HELP = f"""ddpo3d-fast {__version__}: text in, 3D asset out

usage: ddpo3d-fast COMMAND [OPTIONS]

commands:
  generate    make a 3D asset from a prompt
  batch       many assets side by side, from a list of prompts
  render      turntable, contact sheet or stills of a Gaussian splat
  export      a Gaussian splat in other formats: .spz, .splat, .sog, .glb, .usdz and more
  mesh        textured mesh (glb, obj, ply) of a run or a Gaussian splat
  view        an asset, a mesh or a folder of runs in the browser
  info        hardware, runtimes and models: what is found, what is used
  engines     list, build or clear the cache of exported graphs and built engines

examples:
  ddpo3d-fast generate --prompt "a red mushroom"
  ddpo3d-fast generate --prompt "a blue car" --preset draft --seed 3
  ddpo3d-fast generate --resume outputs/a-blue-car-3
  ddpo3d-fast render outputs/a-red-mushroom-0/asset.ply --size 512
  ddpo3d-fast export outputs/a-red-mushroom-0 .spz .glb
  ddpo3d-fast mesh outputs/a-red-mushroom-0
  ddpo3d-fast batch prompts.txt --preset draft --seeds 0-3
  ddpo3d-fast engines list

Each command has its own --help; --help-all shows every setting. --version prints the version.
Exit codes: 0 done, 1 failed, 2 wrong input, 130 interrupted.
"""
# Packages of the extra `generate`, and their modules: what a command needs beside torch and numpy. Those that
# load other models than the embedded ones are asked for where one is named (engines.libraries).
PACKAGES = {
    "onnxruntime": "onnxruntime",
    "safetensors": "safetensors",
    "tyro": "tyro",
    "docstring_parser": "docstring_parser",
    "pyyaml": "yaml",
    "pillow": "PIL",
    "av": "av",
    "tqdm": "tqdm",
}
# What a path of the user's may bring about, wherever it is looked at.
_USERS_ERRORS = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code; wrong input and failures are one line on stderr."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    verbose = "-v" in words or "--verbose" in words
    # Threads that spin while they wait take the cores from the kernels: ten times slower on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.captureWarnings(True)
    logging.basicConfig(level=logging.INFO if verbose else logging.CRITICAL, format="%(name)s: %(message)s")
    try:
        with _fallbacks_shown(quiet="-q" in words or "--quiet" in words):
            code = _run(words)
        sys.stdout.flush()
        return code
    except InputError as error:
        if verbose and error.__cause__ is not None:
            traceback.print_exception(error.__cause__)
        return _fail(str(error), 2)
    except KeyboardInterrupt as interrupt:
        return _fail(f"interrupted: {str(interrupt) or 'nothing was made'}", 130)
    except BrokenPipeError:  # the reader of stdout is gone; Python must not flush into it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SystemExit as end:  # of --help
        return int(end.code or 0)
    except Exception as error:
        if verbose:
            traceback.print_exc()
        if isinstance(error, OSError) and error.errno in _USERS_ERRORS:
            return _fail(f"{error.filename}: {error.strerror}", 2)
        if isinstance(error, (ValueError, TypeError)) and _raised_by_kernels(error):
            return _fail(str(error), 2)
        return _fail(f"{type(error).__name__}: {error}{'' if verbose else ' (-v shows where)'}", 1)
    finally:
        if arguments is None:  # the process ends: to look for garbage in torch's modules takes half a second
            gc.freeze()


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """For imports: what they make stays, and to look for garbage in it takes a tenth of a second."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextlib.contextmanager
def _fallbacks_shown(quiet: bool, say: Callable[[str], None] | None = None) -> Iterator[None]:
    """Says, by default on stderr, what a run has to do without; other warnings go where they went."""
    say = say or functools.partial(print, file=sys.stderr)
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any) -> None:
            if not issubclass(category, FallbackWarning):
                others(message, category, *where)
            elif not quiet:
                say(f"ddpo3d-fast: {message}")

        warnings.showwarning = show  # type: ignore[assignment]
        yield


def _run(words: list[str]) -> int:
    commands: dict[str, Callable[[list[str]], int | None]] = {
        "generate": _generate,
        "batch": _batch,
        "render": _render,
        "export": _export,
        "mesh": _mesh,
        "view": _view,
        "info": _info,
        "engines": _engines,
    }
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if words[0] == "--version":
        print(f"ddpo3d-fast {__version__}")
        return 0
    if words[0] not in commands:
        close = suggestion(words[0], list(commands))
        raise InputError(f"{words[0]}: expected a command ({', '.join(commands)}){close}")
    if missing := [name for name, module in PACKAGES.items() if importlib.util.find_spec(module) is None]:
        raise InputError(
            f"{words[0]} needs more packages (missing: {', '.join(missing)}): "
            "pip install 'ddpo3d-fast[generate]'"
        )
    for before, word in itertools.pairwise(words):
        option, equals, value = word.partition("=")
        given = (option, value) if equals and option.startswith("--") else (before, word)
        check_text(given[0] if given[0].startswith("--") else words[0], given[1])
    return commands[words[0]](words[1:]) or 0


def _generate(words: list[str]) -> None:
    with _without_collection():
        from ddpo3d_fast.arguments import generate_settings, to_config
        from ddpo3d_fast.configure import validate
        from ddpo3d_fast.priors import kind_of
        from ddpo3d_fast.progress import Progress
        from ddpo3d_fast.run import RunFolder

        settings = generate_settings(words)
        _check_mesh(settings)
        if settings.resume is not None:
            folder = RunFolder.open(settings.resume)
            kind_of(folder.config.distillation.model).ahead(folder.config)
            config = validate(_with_steps(folder.config, settings, words))
        else:
            config = to_config(settings)
            kind_of(config.distillation.model).ahead(config)
            from ddpo3d_fast.build import with_default_reward

            config = with_default_reward(validate(config))
            folder = RunFolder.create(config, settings.overwrite)

        from ddpo3d_fast.generate import generate

    progress = Progress(_style(settings.quiet, settings.json, settings.verbose))
    try:
        with _fallbacks_shown(settings.quiet, progress.say), _shown(settings, progress) as after_step:
            resume = settings.resume is not None
            result = generate(config, folder, progress, resume, after_step=after_step)
    except KeyboardInterrupt:
        progress.close()
        if progress.step == 0:
            raise KeyboardInterrupt from None
        made = f"{progress.step} steps are in {folder.path}; go on with --resume {folder.path}"
        raise KeyboardInterrupt(made) from None
    finally:
        progress.close()
    if settings.mesh:
        from ddpo3d_fast.mesh import with_mesh

        with _progress(settings.quiet, settings.json, settings.verbose) as observer:
            result = with_mesh(result, settings.refine_steps, observer)
    _say_done(result, settings.quiet, settings.json)


def _check_mesh(settings: Generate) -> None:
    """What a mesh needs, before a run begins that is to have one."""
    if settings.mesh or settings.refine_steps:
        from ddpo3d_fast.settings import check_values

        check_values(settings)
    if settings.refine_steps and not settings.mesh:
        raise InputError(f"--refine-steps: expected --mesh with it, got {settings.refine_steps} alone")
    if settings.mesh:
        from ddpo3d_fast.mesh import check_packages

        check_packages("--mesh")


@contextlib.contextmanager
def _shown(settings: Generate, progress: Progress) -> Iterator[AfterStep | None]:
    """With --view a page of the run, while it lasts."""
    if not settings.view:
        yield None
        return
    from ddpo3d_fast.settings import check_values
    from ddpo3d_fast.view import LiveView

    check_values(settings)
    with contextlib.closing(LiveView(settings.port)) as page:
        progress.tell({"stage": "view", "message": f"{page.url} shows the run", "url": page.url})
        yield page


def _with_steps(config: Config, settings: Generate, words: list[str]) -> Config:
    """The configuration of a run to go on with, with --steps if that was given."""
    if not any(word.partition("=")[0] == "--steps" for word in words):
        return config
    return dataclasses.replace(
        config, schedule=dataclasses.replace(config.schedule, steps=settings.schedule.steps)
    )


def _style(quiet: bool, as_json: bool, verbose: bool) -> Style:
    if quiet or as_json:
        return "quiet" if quiet else "json"
    return "bar" if sys.stderr.isatty() and not verbose else "lines"


@contextlib.contextmanager
def _progress(quiet: bool, as_json: bool, verbose: bool) -> Iterator[Observer]:
    """Shows what it is told, and what has to be done without."""
    from ddpo3d_fast.progress import Progress

    progress = Progress(_style(quiet, as_json, verbose))
    try:
        with _fallbacks_shown(quiet, progress.say):
            yield progress
    finally:
        progress.close()


def _say_done(result: Result, quiet: bool, as_json: bool) -> None:
    if as_json:
        files = [str(path) for path in result.files]
        done = {"stage": "done", "folder": str(result.folder), "files": files, "seconds": result.seconds}
        print(json.dumps(done), flush=True)
    elif not quiet:
        names = ", ".join(path.name for path in result.files)
        print(f"{result.folder}: {names} in {result.seconds['total']:.1f} s")
        parts = sorted(result.seconds.items(), key=lambda part: -part[1])
        text = ", ".join(f"{name} {seconds:.2f}" for name, seconds in parts if name != "total")
        logging.getLogger("ddpo3d_fast").info("seconds: %s", text)


def _batch(words: list[str]) -> int:
    from ddpo3d_fast.arguments import parse
    from ddpo3d_fast.commands import Batch

    settings = parse(Batch, words)
    from ddpo3d_fast.batch import batch

    return batch(settings, _style(settings.quiet, settings.json, settings.verbose))


def _render(words: list[str]) -> None:
    from ddpo3d_fast.arguments import parse
    from ddpo3d_fast.commands import Render
    from ddpo3d_fast.render import render

    print(render(parse(Render, words)))


def _export(words: list[str]) -> None:
    from ddpo3d_fast.arguments import parse
    from ddpo3d_fast.commands import Export
    from ddpo3d_fast.convert import convert

    settings = parse(Export, words)
    for path in convert(settings):
        if not settings.quiet:
            print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


def _mesh(words: list[str]) -> None:
    from ddpo3d_fast.arguments import parse
    from ddpo3d_fast.commands import Mesh

    settings = parse(Mesh, words)
    from ddpo3d_fast.mesh import mesh

    with _progress(settings.quiet, False, settings.verbose) as observer:
        path = mesh(settings, observer)
    if not settings.quiet:
        print(path)


def _view(words: list[str]) -> None:
    from ddpo3d_fast.arguments import parse
    from ddpo3d_fast.commands import View

    settings = parse(View, words)
    from ddpo3d_fast.view import view

    view(settings, (lambda line: None) if settings.quiet else functools.partial(print, flush=True))


def _info(words: list[str]) -> None:
    from ddpo3d_fast.arguments import parse
    from ddpo3d_fast.commands import Info

    settings = parse(Info, words)
    from ddpo3d_fast.info import describe, report

    facts = report()
    print(json.dumps(facts, indent=2) if settings.json else describe(facts))


def _engines(words: list[str]) -> None:
    from ddpo3d_fast.engines_command import engines

    engines(words)


def _raised_by_kernels(error: BaseException) -> bool:
    """Whether the kernels refused their arguments, which come from the user here."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last is not None and last.tb_frame.f_globals.get("__name__", "").startswith("ddpo3d_fast.kernels")


def _fail(message: str, code: int) -> int:
    print(f"ddpo3d-fast: {' '.join(message.splitlines())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
