"""How every script reads its command line: a preset with options on top, and what the user can mend said in one line."""

import quiet_start

# isort: split
import contextlib
import dataclasses
import io
import operator
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from rlhf_jax.ranges import named_by_flags
from rlhf_jax.runtime.files import errors_in_one_line

Config = TypeVar("Config")
Made = TypeVar("Made")


def words_for_types(text: str) -> str:
    """A help text in which an option that may be left empty says so without braces, at the width it had.

    Examples:
      >>> words_for_types("--data.dir {None}|PATH  │")
      '--data.dir PATH|None    │'
    """
    text = re.sub(
        r"\{None\}\|([\w{},.\[\] -]+?)(?=  | │|$)",
        lambda at: f"{at[1]}|None".ljust(len(at[0])),
        text,
        flags=re.MULTILINE,
    )
    # Nothing by default is nothing to say.
    return re.sub(r" \(default: \)", lambda at: " " * len(at[0]), text)


@contextlib.contextmanager
def readable_help(arguments: Sequence[str]) -> Iterator[None]:
    """Where help is asked for, prints it in words."""
    if not {"-h", "--help"} & set(arguments):
        yield
        return
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        print(words_for_types(printed.getvalue()), end="")


def preset_and_options(presets: Mapping[str, tuple[str, Config]], arguments: Sequence[str], description: Any) -> Config:
    """The named preset with options on top; none named means the first.

    Args:
      presets: name to what it is, in one line, and its configuration.
      arguments: what stands behind the script's name.
      description: the script's docstring, for `--help`.
    """
    name, *rest = arguments or [""]
    first = next(iter(presets))
    if name not in presets:
        if not name or (name.startswith("-") and name not in ("-h", "--help")):
            name, rest = first, list(arguments)
        else:
            # Shows the presets, and refuses a name that is none of them.
            kinds = tyro.extras.subcommand_type_from_defaults(
                {name: preset for name, (_, preset) in presets.items()},
                {name: what for name, (what, _) in presets.items()},
            )
            return tyro.cli(kinds, default=presets[first][1], description=description, args=list(arguments))
    what, preset = presets[name]
    with named_by_flags(type(preset)), readable_help(rest):
        config = tyro.cli(type(preset), prog=f"{sys.argv[0]} {name}", description=what, args=rest, default=preset)
    _check_read(config, preset)
    return config


def _check_read(config: Any, preset: Any) -> None:
    """Ends with code 2 at an option of a group that these choices leave unread, as that of the learner that does not run."""
    for group, why in getattr(config, "unread", {}).items():
        given, own = operator.attrgetter(group)(config), operator.attrgetter(group)(preset)
        for field in dataclasses.fields(given):
            flag, value = f"--{group}.{field.name}".replace("_", "-"), getattr(given, field.name)
            if value != getattr(own, field.name) and flag not in why:
                print(f"error: {flag} {value} is not read: {why}", file=sys.stderr)
                raise SystemExit(2)


def options(config: type[Config], description: Any) -> Callable[[Sequence[str]], Config]:
    """The parser of a script without presets: every field of `config` is an option."""

    def parse(arguments: Sequence[str]) -> Config:
        with named_by_flags(config), readable_help(arguments):
            return tyro.cli(config, description=description, args=arguments)

    return parse


def python() -> str:
    """What stands before a script in a command that a user is told: `python`, where that is the one that runs this.

    `make` runs the environment's own without activating it; then its path.
    """
    found = shutil.which("python")
    own = Path(sys.executable).absolute()
    if found is not None and Path(found).absolute().parent == own.parent:
        return "python"
    return os.path.relpath(own) if own.is_relative_to(Path.cwd()) else str(own)


@errors_in_one_line()
def start(main: Callable[[Config], Made], parse: Callable[[list[str]], Config]) -> Made:
    """What a script does when it is started: `main` of what the command line says. Exit code 1 where the user must mend it."""
    quiet_start.end()
    return main(parse(sys.argv[1:]))
