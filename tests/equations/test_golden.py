"""Golden vectors: stored inputs, and results from sources that share no code with the package (tests/golden)."""

import importlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parent.parent / "golden"


def stored_cases() -> list[Any]:
    """Every case of every file; `published.json` names the module in the case, the others in the file's name."""
    found = []
    for path in sorted(FOLDER.glob("*.json")):
        for number, record in enumerate(json.loads(path.read_text(encoding="utf-8"))):
            module = record.get("module", path.stem)
            label = f"{path.stem}-{number}-{module}.{record['function']}"
            found.append(pytest.param(module, record, id=label))
    return found


def as_input(value: Any) -> Any:
    """Numbers become float32 arrays; flags and indices keep their kind."""
    array = np.asarray(value)
    return jnp.asarray(array, jnp.float32) if array.dtype.kind == "f" else jnp.asarray(array)


@pytest.mark.parametrize("module, record", stored_cases())
def test_golden(module: str, record: dict[str, Any]) -> None:
    function = getattr(importlib.import_module(f"rlhf_jax.equations.{module}"), record["function"])
    # Compiled as a whole: one program is built faster than one for each operation.
    call = jax.jit(lambda *arguments: function(*arguments, **record["options"]))
    got = call(*[as_input(a) for a in record["arguments"]])
    assert got.dtype == jnp.float32, record["source"]
    np.testing.assert_allclose(got, np.array(record["expected"]), rtol=3e-5, atol=2e-6, err_msg=record["source"])
