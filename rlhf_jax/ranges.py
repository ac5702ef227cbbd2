"""The range of every number of a configuration: written beside its type, checked when it is set, named as its option.

    @dataclasses.dataclass(frozen=True)
    class WalkConfig:
        steps: Annotated[int, Range("[1, 1000]")] = 10
        drift: Share = 0.5

        def __post_init__(self) -> None:
            check_numbers(self)

NaN lies in no range, and no range is without end: what is beyond any use is a slip of the hand. A script says with
`named_by_flags` how its options are called, so that a message names what was typed.
"""

import contextlib
import contextvars
import dataclasses
import functools
import numbers
import re
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Union

_INTERVAL = re.compile(r"([\[(])(\S+), (\S+)([\])])")
_prefixes: contextvars.ContextVar[Mapping[type, tuple[str, ...]]] = contextvars.ContextVar(
    "prefixes", default=types.MappingProxyType({})
)


@dataclasses.dataclass(frozen=True)
class Range:
    """An interval as one writes it: `[0, 1)` holds 0 and not 1.

    Raises: ValueError where the text is no interval with two finite ends.
    Examples:
      >>> 0 in Range("[0, 1)"), 1 in Range("[0, 1)"), float("nan") in Range("[0, 1)")
      (True, False, False)
    """

    interval: str

    def __post_init__(self) -> None:
        least, most = self.ends
        if not -float("inf") < least <= most < float("inf"):
            raise ValueError(f"{self.interval!r} is no interval with two finite ends")

    @functools.cached_property
    def ends(self) -> tuple[float, float]:
        """Least and largest number, whether they are inside or not."""
        found = _INTERVAL.fullmatch(self.interval)
        if found is None:
            raise ValueError(f"{self.interval!r} is no interval: write [0, 1), for example")
        return float(found[2].replace("_", "")), float(found[3].replace("_", ""))

    def __contains__(self, number: Any) -> bool:
        least, most = self.ends
        above = number > least if self.interval[0] == "(" else number >= least
        return above and (number < most if self.interval[-1] == ")" else number <= most)

    def __str__(self) -> str:
        return self.interval.replace("_", "")


Seed = Annotated[int, Range("[0, 4_294_967_295]")]
"""What a JAX key is made of: 32 bits. More would be cut, and two seeds would be one."""
Share = Annotated[float, Range("[0, 1]")]
Rate = Annotated[float, Range("(0, 1]")]
"""A learning rate: Adam moves a parameter by about this much a step."""
Weight = Annotated[float, Range("[0, 1_000]")]
"""What a term counts, or a price; 0 is off."""
Norm = Annotated[float, Range("(0, 1e6]")]
"""A bound that is not 0."""
Epochs = Annotated[int, Range("[1, 10_000]")]
Steps = Annotated[int, Range("[1, 1_000_000]")]
"""Optimiser steps, updates, evaluations."""
Cases = Annotated[int, Range("[1, 10_000_000]")]
"""Dialogues, turns, users: what is counted in data."""
Batch = Annotated[int, Range("[1, 65_536]")]
"""Rows of one step; more do not fit any machine this runs on."""
Tokens = Annotated[int, Range("[1, 65_536]")]
"""Tokens of one text."""
Size = Annotated[int, Range("[1, 65_536]")]
"""A size of a network."""
Group = Annotated[int, Range("[1, 1_024]")]
"""Responses to one prompt."""
Decay = Annotated[float, Range("(0, 1)")]
"""Of a moving average."""
Replicates = Annotated[int, Range("[2, 100_000]")]
"""Bootstrap replicates; an interval of one has no width."""


def check_numbers(config: Any) -> None:
    """Checks every number of a dataclass against the range beside its type; for its `__post_init__`.

    Raises: ValueError naming the option (or the field, outside a script), the range and the value.
    Examples:
      >>> from rlhf_jax.parallel.mesh import MeshConfig
      >>> MeshConfig(data=0)
      Traceback (most recent call last):
      ValueError: MeshConfig.data must be in [1, 65536]: got 0
    """
    for field, hint in _hints(type(config)).items():
        _check(hint, getattr(config, field), option(config, field))


def option(config: Any, field: str) -> str:
    """How a message calls a field: `--data.window` in a script, `DataConfig.window` elsewhere.

    Where a script has several of a kind (`--grpo.*`, `--live.replies.*`), all options that it may be.
    """
    prefixes = _prefixes.get().get(type(config), ())
    flags = " or ".join(f"--{prefix}{field.replace('_', '-')}" for prefix in prefixes)
    return flags or f"{type(config).__name__}.{field}"


@contextlib.contextmanager
def named_by_flags(config: type) -> Iterator[None]:
    """Within, messages call a field of `config`, or of a dataclass inside it, by its option on the command line."""
    found: dict[type, tuple[str, ...]] = {}
    for path, kind in _dataclasses(config):
        found[kind] = (*found.get(kind, ()), ".".join([*path, ""]).replace("_", "-"))
    token = _prefixes.set(found)
    try:
        yield
    finally:
        _prefixes.reset(token)


def numbers_of(config: type) -> Iterator[tuple[tuple[str, ...], str, type, Range | None]]:
    """(path of the dataclass, field, int or float, its range) of every number in a dataclass and those inside it."""
    for path, kind in _dataclasses(config):
        for field, hint in _hints(kind).items():
            for number, interval in _numbers(hint):
                yield path, field, number, interval


def _dataclasses(config: type, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], type]]:
    yield path, config
    for field, hint in _hints(config).items():
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield from _dataclasses(hint, (*path, field))


@functools.cache
def _hints(config: type) -> Mapping[str, Any]:
    hints = typing.get_type_hints(config, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(config)}


def _numbers(hint: Any, interval: Range | None = None) -> Iterator[tuple[type, Range | None]]:
    """Every number a type has room for, with its range."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint in (int, float):
        yield hint, interval
    elif origin is Annotated:
        yield from _numbers(inner[0], next((extra for extra in inner[1:] if isinstance(extra, Range)), interval))
    elif origin in (Union, types.UnionType, tuple):
        for part in inner:
            yield from _numbers(part, interval)


def _check(hint: Any, value: Any, name: str, interval: Range | None = None) -> None:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        _check(inner[0], value, name, next((extra for extra in inner[1:] if isinstance(extra, Range)), interval))
    elif origin in (Union, types.UnionType):
        for part in inner:
            if value is not None and part is not type(None):
                _check(part, value, name, interval)
    elif origin is tuple and isinstance(value, tuple):
        for part, entry in zip(inner[:1] * len(value) if inner[-1] is Ellipsis else inner, value, strict=False):
            _check(part, entry, name, interval)
    elif hint in (int, float) and interval is not None:
        is_one = isinstance(value, numbers.Integral if hint is int else numbers.Real) and not isinstance(value, bool)
        if not is_one or value not in interval:
            kind = "" if is_one else "a whole number " if hint is int else "a number "
            raise ValueError(f"{name} must be {kind}in {interval}: got {value!r}")
