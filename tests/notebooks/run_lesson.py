"""Runs one lesson as plain Python, and every exercise of it that is filled in three times over; started by `test_notebooks.py`.

    python run_lesson.py LESSON.py MISTAKES       # MISTAKES: [[function, place in its solution, what is written there instead]] as JSON

What the lesson gives to be filled in must not pass, its solution must, and whoever answers a little beside it, or makes one
of the mistakes, must be told. The last line that is printed is {function: number of wrong answers that were told} as JSON.
"""

import ast
import json
import runpy
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from rlhf_jax import lessons

Asserts = Callable[[Callable[..., Any]], None]


def beside(value: Any) -> Any:
    """An answer near the right one."""
    if isinstance(value, tuple):
        return tuple(map(beside, value))
    if value is None:
        return 1
    if isinstance(value, int) and not isinstance(value, bool):
        return None if value > 100 else value + 100
    # More than rounding, and away from zero: a value that is only scaled would not show at 0.
    return np.asarray(value) * 1.2 + 0.1


def refuses(asserts: Asserts, answer: Callable[..., Any]) -> bool:
    """Whether a function is told that it is wrong."""
    try:
        asserts(answer)
    except AssertionError:
        return True
    return False


def main(lesson: str, mistakes: list[list[str]]) -> None:
    """Runs the lesson with a `check` that also tries wrong answers."""
    given, solved, told = [], {}, {}
    original = lessons.check

    def check(function: Callable[..., Any], asserts: Asserts) -> bool:
        name = function.__name__
        if not original(function, asserts):
            given.append(name)
            return False
        assert name in given, f"{name} was never there to be filled in"
        assert refuses(asserts, lambda *arguments: beside(function(*arguments))), f"{name}: asserts pass a wrong answer"
        solved[name], told[name] = asserts, 1
        return True

    lessons.check = check
    names = runpy.run_path(lesson, run_name="__main__")
    assert sorted(given) == sorted(solved), f"given {given}, solved {list(solved)}"
    with open(lesson, encoding="utf-8") as file:
        source = file.read()
    solutions = {
        node.name: ast.get_source_segment(source, node)
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name in solved
    }
    for name, place, instead in mistakes:
        solution = solutions[name]
        assert solution is not None and solution.count(place) == 1, f"{name}: {place!r} is not there once"
        exec(compile(solution.replace(place, instead), "mistake", "exec"), wrong := dict(names))  # noqa: S102
        assert refuses(solved[name], wrong[name]), f"{name}: asserts pass {instead!r} in the place of {place!r}"
        told[name] += 1
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
