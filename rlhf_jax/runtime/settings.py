"""Configurations read back: the dataclass that `config.json` was written from."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from rlhf_jax.runtime import files

Settings = TypeVar("Settings")


def from_json(kind: type[Settings], stored: Mapping[str, Any], name: str = "config") -> Settings:
    """A frozen dataclass from what `files.as_json` made of it; a field that was added since takes its default.

    Args:
      kind: the dataclass; its fields may be dataclasses, tuples, paths, literals, numbers, text, or one of these or None.
      stored: field name to value.
      name: what messages call it.
    Raises: RunError naming a field that the dataclass does not have, or a value that does not fit.
    Examples:
      >>> from rlhf_jax.learners.ppo_config import PPOConfig
      >>> from_json(PPOConfig, files.as_json(PPOConfig(clip_eps=0.1))) == PPOConfig(clip_eps=0.1)
      True
    """
    if not isinstance(stored, Mapping):
        raise files.RunError(f"{name} is {stored!r}, the fields of {kind.__name__} are needed")
    kinds = typing.get_type_hints(kind)
    fields = {field.name for field in dataclasses.fields(kind) if field.init}  # pyright: ignore[reportArgumentType]
    unknown = [field for field in stored if field not in fields]
    if unknown:
        raise files.RunError(
            f"{name}.{unknown[0]} is not a field of {kind.__name__}: the run was started by another version of the code"
        )
    values = {field: _value(kinds[field], value, f"{name}.{field}") for field, value in stored.items()}
    try:
        return kind(**values)
    except TypeError as error:
        raise files.RunError(f"{name}: {error}") from error


def _value(kind: Any, value: Any, name: str) -> Any:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        (kind,) = (option for option in inner if option is not type(None))
        return _value(kind, value, name)
    if origin is Literal and value in inner:
        return value
    if origin is tuple and isinstance(value, list):
        kinds = [inner[0]] * len(value) if inner[1:] == (...,) else list(inner)
        if len(kinds) == len(value):
            return tuple(_value(*pair, f"{name}[{i}]") for i, pair in enumerate(zip(kinds, value, strict=True)))
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return from_json(kind, value, name)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind in (int, bool, str) and type(value) is kind:
        return value
    raise files.RunError(f"{name} is {value!r}, {kind} is needed")
