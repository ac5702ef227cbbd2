"""What the lessons of the course share: exercises that check themselves, quick compilation, stored runs."""

import importlib.metadata
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

STORED = Path(__file__).resolve().parents[1] / "notebooks" / "stored"
"""Runs that lessons read; they lie in the checkout, beside the lessons."""


def check(function: Callable[..., Any], asserts: Callable[[Callable[..., Any]], None]) -> bool:
    """Runs the asserts of an exercise on a function that a student fills in.

    Args:
      function: as the lesson has it, it raises NotImplementedError.
      asserts: calls what it is given and compares; written with `assert` or `numpy.testing`.
    Returns: False while the function is not done yet, True when it is right. Both are printed.
    Raises: AssertionError with what was expected and what came, where it is wrong.
    Examples:
      >>> def double(x):
      ...     raise NotImplementedError("your turn")
      >>> def asserts(double):
      ...     assert double(3) == 6
      >>> check(double, asserts)
      double: not done yet
      False
      >>> def double(x):
      ...     return x + x
      >>> check(double, asserts)
      double: right
      True
    """
    try:
        asserts(function)
    except NotImplementedError:
        print(f"{function.__name__}: not done yet")
        return False
    print(f"{function.__name__}: right")
    return True


def compile_quickly() -> None:
    """For programs that run a few times on tiny networks: compiling fast counts for more than running fast.

    To be called before anything is computed. Half of it asks XLA for its older emitters of loops (jaxlib 0.10 has a switch,
    0.11 an option of its backend in its place); the other half leaves out every optimisation that can be left out.
    """
    has_switch = importlib.metadata.version("jaxlib").startswith("0.10.")
    later = "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false" if has_switch else later)
    jax.config.update("jax_disable_most_optimizations", True)


def stored_runs(lesson: int) -> dict[str, Any]:
    """What `tools/store_lesson.py` kept for a lesson, by the name of the run.

    Raises: FileNotFoundError saying where it is looked for.
    """
    file = STORED / f"lesson_{lesson}.json"
    if not file.exists():
        raise FileNotFoundError(
            f"{file}: stored runs lie in a checkout of the repository, installed with pip install -e"
        )
    return json.loads(file.read_text(encoding="utf-8"))
