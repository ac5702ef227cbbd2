"""The mesh of devices: three axes, and whether sizes divide by them.

    data    rows of a batch; parameters are repeated
    fsdp    rows of a batch too; parameters and optimiser state are cut, and put together for each pass
    tensor  heads, hidden units and vocabulary of one row's computation

Neighbouring devices share `tensor`, because it talks most, then `fsdp`, then `data`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from rlhf_jax.ranges import Range, check_numbers

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")
"""The axes that cut the rows of a batch."""


Devices = Annotated[int, Range("[1, 65_536]")]


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices along each axis; 1 × 1 × 1 is one device, without any of this."""

    data: Devices = 1
    """Copies of the model that share the rows of a batch."""
    fsdp: Devices = 1
    """Devices that share rows, and hold one part each of parameters and optimiser state."""
    tensor: Devices = 1
    """Devices that share heads, hidden units and vocabulary."""

    def __post_init__(self) -> None:
        check_numbers(self)

    @property
    def size(self) -> int:
        """Devices in all."""
        return self.data * self.fsdp * self.tensor

    @property
    def row_parts(self) -> int:
        """Parts the rows of a batch are cut into."""
        return self.data * self.fsdp

    def __str__(self) -> str:
        return f"data {self.data} × fsdp {self.fsdp} × tensor {self.tensor}"


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The devices as an array [data, fsdp, tensor], partitioned automatically (`AxisType.Auto`).

    Args:
      devices: those to use; default all of all processes. One process may leave some unused, several may not.
    Raises: ValueError if there are too few devices, or if a process would be left out.
    """
    devices = jax.devices() if devices is None else devices
    if config.size > len(devices):
        raise ValueError(f"mesh {config} needs {config.size} devices, there are {len(devices)}")
    if jax.process_count() > 1 and config.size != len(devices):
        raise ValueError(
            f"mesh {config} has {config.size} devices, the {jax.process_count()} processes have {len(devices)}: "
            "every device of every process must be in it"
        )
    shape = (config.data, config.fsdp, config.tensor)
    if config.size < len(devices):
        return Mesh(np.asarray(devices[: config.size]).reshape(shape), AXES, axis_types=(AxisType.Auto,) * 3)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def check_sizes(config: MeshConfig, *, width: int, heads: int, vocabulary: int, rows: dict[str, int]) -> None:
    """Raises ValueError, naming all numbers that do not fit, unless everything that is cut can be cut evenly.

    Args:
      width: D.
      heads: H.
      vocabulary: rows of the embedding table, items and unused rows included.
      rows: sizes of the batches that are cut, by name.
    """
    cut = [
        ("heads", heads, "tensor", config.tensor),
        ("width", width, "fsdp × tensor", config.fsdp * config.tensor),
        ("vocabulary rows", vocabulary, "fsdp × tensor", config.fsdp * config.tensor),
        *((name, size, "data × fsdp", config.row_parts) for name, size in rows.items()),
    ]
    wrong = [f"{name} {size} by {axes} = {parts}" for name, size, axes, parts in cut if size % parts]
    if wrong:
        raise ValueError(f"mesh {config} cannot divide {'; '.join(wrong)}")
