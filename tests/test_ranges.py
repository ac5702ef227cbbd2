"""Every number of every script: it has a range, and what lies outside is refused by the option's name."""

import dataclasses
import functools
import importlib
import math
from pathlib import Path
from typing import Annotated, Any

import pytest

from rlhf_jax.ranges import Range, Share, check_numbers, named_by_flags, numbers_of

SCRIPTS = sorted(
    path.stem
    for path in (Path(__file__).resolve().parent.parent / "experiments").glob("*.py")
    if "class Config" in path.read_text(encoding="utf-8")
)


def presets(script: str) -> list[Any]:
    """The configurations a script can start with; of one without presets, what it is with nothing but the required."""
    module = importlib.import_module(script)
    if hasattr(module, "PRESETS"):
        return [preset for _, preset in module.PRESETS.values()]
    required = {
        "setting": "world",
        "run_dir": Path("run"),
        "out": Path("out"),
        "settings": ("a=b",),
        "policy_runs": (Path("run"),),
    }
    needed = [field.name for field in dataclasses.fields(module.Config) if field.default is dataclasses.MISSING]
    return [module.Config(**{name: required[name] for name in needed})]


def replaced(config: Any, path: tuple[str, ...], field: str, number: Any) -> Any:
    """`config` with another number in a field, or as the first of a tuple."""
    inner = functools.reduce(getattr, path, config)
    old = getattr(inner, field)
    inner = dataclasses.replace(inner, **{field: (number, *old[1:]) if isinstance(old, tuple) else number})
    for depth in reversed(range(len(path))):
        inner = dataclasses.replace(functools.reduce(getattr, path[:depth], config), **{path[depth]: inner})
    return inner


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_number_has_a_range_and_keeps_it(script: str) -> None:
    for config in presets(script):
        for path, field, kind, interval in numbers_of(type(config)):
            flag = "--" + ".".join((*path, field)).replace("_", "-")
            assert interval is not None, f"{script} {flag} has no range"
            least, most = interval.ends
            # Of a whole number NaN is no value; that it is refused too, `test_what_is_refused` sees.
            if kind is int:
                outside = (int(least) - 1, int(most) + 1, -(10**30), 10**30)
            else:
                step = 1e-3 * max(1.0, abs(most))
                outside = (least - step, most + step, math.nan, math.inf, -math.inf)
            for wrong in outside:
                with named_by_flags(type(config)), pytest.raises(ValueError) as error:
                    replaced(config, path, field, wrong)
                named, _, rest = str(error.value).partition(" must be ")
                assert flag in named.split(" or ") and f"in {interval}: got " in rest


def test_there_are_scripts_with_numbers() -> None:
    assert len(SCRIPTS) > 14 and sum(1 for _ in numbers_of(importlib.import_module("ppo_redial").Config)) > 80


@dataclasses.dataclass(frozen=True)
class Numbers:
    """One of each."""

    count: Annotated[int, Range("[1, 10)")] | None = None
    pair: tuple[Share, Annotated[int, Range("[0, 1_000]")]] = (0.5, 7)

    def __post_init__(self) -> None:
        check_numbers(self)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"count": 10}, r"Numbers.count must be in \[1, 10\): got 10"),
        ({"count": 2.5}, r"Numbers.count must be a whole number in \[1, 10\): got 2.5"),
        ({"count": True}, "a whole number .*: got True"),
        ({"pair": (math.nan, 7)}, r"Numbers.pair must be in \[0, 1\]: got nan"),
        ({"pair": (1, 1001)}, r"Numbers.pair must be in \[0, 1000\]: got 1001"),
        ({"pair": ("1", 7)}, r"Numbers.pair must be a number in \[0, 1\]: got '1'"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Numbers(**fields)
    assert Numbers(count=9, pair=(1, 1000)).count == 9


@pytest.mark.parametrize("interval", ["0, 1", "[1, 0]", "[0, inf)", "[nan, 1]", "[0 1]"])
def test_an_interval_has_two_finite_ends(interval: str) -> None:
    with pytest.raises(ValueError, match="interval"):
        Range(interval)
