#!/usr/bin/env python
"""Meta-train an update rule on families of inner problems.

Example:
    python scripts/meta_train.py --out runs/mine --task.images digits --rule mlp --rule-options lr=0.01 'hidden=[8]'
    python scripts/meta_train.py --out runs/celo2 --recipe celo2 --minutes 60
    torchrun --nproc-per-node 2 scripts/meta_train.py --out runs/celo2 --recipe celo2
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import torch
import tyro

from nfn_opt.meta import MetaTrainConfig, MetaTrainResult, load_recipe, meta_train
from nfn_opt.meta.guards import DivergenceError
from nfn_opt.meta.processes import joined_processes
from nfn_opt.optim import UpdateRule

registry = tyro.constructors.ConstructorRegistry()


@registry.primitive_rule
def _options_rule(
    info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
    """How options of a rule are written on the command line: NAME=VALUE, the value in JSON or plain text."""
    if info.type_origin is not Mapping:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="[NAME=VALUE ...]",
        instance_from_str=_parse_options,
        is_instance=lambda value: isinstance(value, Mapping),
        str_from_instance=lambda value: [f"{name}={json.dumps(item)}" for name, item in value.items()],
    )


def _parse_options(words: Sequence[str]) -> dict[str, Any]:
    options = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"{word!r} is not of the form NAME=VALUE")
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError:
            options[name] = value
    return options


def rule_help() -> str:
    """What each kind of rule can be given as --rule-options, with defaults."""
    lines = ["Options of the rules, for --rule-options NAME=VALUE (VALUE in JSON):", ""]
    for cls in sorted(_rules(UpdateRule), key=lambda cls: cls.kind):
        lines.append(f"--rule {cls.kind}")
        texts = documented(cls.config_class)
        default = cls.config_class()
        for name in default.__dataclass_fields__:
            lines.append(f"  {name}={json.dumps(getattr(default, name))}  {texts.get(name, '')}")
        lines.append("")
    return "\n".join(lines)


def _rules(base: Any) -> Iterator[type[UpdateRule]]:
    for cls in base.__subclasses__():
        if not inspect.isabstract(cls):
            yield cls
        yield from _rules(cls)


def documented(config: type) -> dict[str, str]:
    """Descriptions of the fields of a dataclass and of those it inherits from, from their docstrings."""
    texts: dict[str, str] = {}
    for cls in reversed(config.__mro__):
        section = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")[2]
        for name, text in re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE):
            texts[name] = re.sub(r":\w+:|`", "", " ".join(text.split()))
    return texts


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from command-line arguments, those of the process by default; the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = shlex.join(["python", "scripts/meta_train.py", *words])
    try:
        default = starting_point(words)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    def run(
        config: Annotated[MetaTrainConfig, tyro.conf.arg(name="")] = default,
        recipe: str | None = None,
        resume: bool = False,
        threads: int | None = None,
    ) -> int:
        """Run.

        Args:
            config: The run.
            recipe: Where all options come from that are not given here: a file .toml, the config.json of a run, or
                the name of a recipe that comes with the library.
            resume: Go on with the run in the folder given by --out; all other options as at its start.
            threads: Number of CPU threads; PyTorch's choice if not given.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        with joined_processes() as processes:
            try:
                result = meta_train(config, resume=resume, command=command, processes=processes)
            except (OSError, ValueError, TypeError, ModuleNotFoundError, DivergenceError) as error:
                who = "" if processes.main else f" (process {processes.rank})"
                print(f"error{who}: {error}", file=sys.stderr)
                return 3 if isinstance(error, DivergenceError) else 2
            return _report(result, command if resume else f"{command} --resume") if processes.main else 0

    return tyro.cli(
        run,
        args=words,
        prog="meta_train.py",
        description=f"{inspect.getdoc(sys.modules[__name__])}\n\n{rule_help()}",
        registry=registry,
    )


def starting_point(words: Sequence[str]) -> MetaTrainConfig:
    """The options before those of the command line: of the recipe that it names, or the defaults.

    Raises:
        ValueError: If there is no such recipe, or it is refused.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--recipe")
    try:
        recipe = parser.parse_known_args(list(words))[0].recipe
    except argparse.ArgumentError as error:
        raise ValueError(f"{error}; give a recipe") from error
    out: Any = tyro.MISSING
    return MetaTrainConfig(out=out) if recipe is None else load_recipe(recipe, out=out)


def _report(result: MetaTrainResult, resume: str) -> int:
    folder = result.folder
    if not result.finished:
        by = "the end of its time" if result.stopped_by is None else signal.Signals(result.stopped_by).name
        print(f"stopped by {by} after outer step {result.step}; everything is saved. To go on:\n  {resume}")
        return 0 if result.stopped_by is None else 128 + result.stopped_by
    for name, value in result.metrics.items():
        print(f"{name:32} {value}")
    print(f"rule    {folder.rule}\ncurves  {folder.curves}\nresult  {folder.result}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
