"""How every script reads its command line: a preset with options on top, and what the user can mend said in one line."""

import quiet_start

# isort: split
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import tyro

from rlhf_jax.runtime.files import errors_in_one_line

Config = TypeVar("Config")
Made = TypeVar("Made")


def preset_and_options(presets: Mapping[str, tuple[str, Config]], arguments: Sequence[str], description: Any) -> Config:
    """The named preset with options on top; none named means the first.

    Args:
      presets: name to what it is, in one line, and its configuration.
      arguments: what stands behind the script's name.
      description: the script's docstring, for `--help`.
    """
    arguments = list(arguments)
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        arguments = [next(iter(presets)), *arguments]
    return tyro.extras.overridable_config_cli(dict(presets), description=description, args=arguments)


def options(config: type[Config], description: Any) -> Callable[[Sequence[str]], Config]:
    """The parser of a script without presets: every field of `config` is an option."""
    return lambda arguments: tyro.cli(config, description=description, args=arguments)


@errors_in_one_line()
def start(main: Callable[[Config], Made], parse: Callable[[list[str]], Config]) -> Made:
    """What a script does when it is started: `main` of what the command line says. Exit code 1 where the user must mend it."""
    quiet_start.end()
    return main(parse(sys.argv[1:]))
