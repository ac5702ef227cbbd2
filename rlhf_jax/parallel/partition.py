"""A mesh applied to callables: parameters are put together for each pass, rows are cut, gradients go back to their place.

The callables stay what they are on one device; the compiler adds the collectives that these few constraints imply. A
pass gathers a parameter over `fsdp` once, outside any loop over tokens, and its gradient is summed over `data` and
`fsdp` on the way back to the parts that are stored.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from rlhf_jax.interfaces import Params
from rlhf_jax.parallel import processes, rules
from rlhf_jax.parallel.mesh import ROWS


@runtime_checkable
class Layout(Protocol):
    """What a training stage asks for: one device and many answer alike."""

    @property
    def tensor(self) -> int:
        """Parts that heads are cut into; the network's `qkv_groups`."""
        ...

    def place(self, tree: Any) -> Any:
        """Parameters or states where they are kept between steps."""
        ...

    def same(self, tree: Any) -> Any:
        """Arrays that every device reads whole: keys, tables."""
        ...

    def fetch(self, tree: Any) -> Any:
        """The whole of every array on one device of this process."""
        ...

    def batch(self, n_rows: int, make: Callable[[slice], Any]) -> Any:
        """A batch of `n_rows` rows, of which this process makes those it is asked for."""
        ...

    def loss(self, loss: Callable[..., Any], *, whole_table: bool = False) -> Callable[..., Any]:
        """`loss(params, batch, *rest)`, which sums over the rows of `batch`."""
        ...

    def by_row(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function(params, batch, *rest)`, whose results have one row per row of the batch."""
        ...

    def step(self, function: Callable[..., Any], state: Any) -> Callable[..., Any]:
        """`function(state, …) -> (state, metrics)` compiled, the old state's memory given to the new one."""
        ...

    def together(self, program: Any, name: str) -> Any:
        """A jitted function that all processes compile before any runs it; `name` is used once."""
        ...

    def outputs(self, state: Any) -> Any:
        """Shardings of (state, metrics, batch), for `jax.jit`."""
        ...


class OneDevice:
    """No mesh: everything stays as it is."""

    tensor = 1

    def place(self, tree: Any) -> Any:
        """The same."""
        return tree

    def same(self, tree: Any) -> Any:
        """The same."""
        return tree

    def fetch(self, tree: Any) -> Any:
        """The same."""
        return tree

    def batch(self, n_rows: int, make: Callable[[slice], Any]) -> Any:
        """All rows, on the device."""
        return jax.tree.map(jnp.asarray, make(slice(0, n_rows)))

    def loss(self, loss: Callable[..., Any], *, whole_table: bool = False) -> Callable[..., Any]:
        """The same."""
        del whole_table
        return loss

    def by_row(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same."""
        return function

    def step(self, function: Callable[..., Any], state: Any) -> Callable[..., Any]:
        """`jax.jit` with the state donated."""
        del state
        return jax.jit(function, donate_argnums=0)

    def together(self, program: Any, name: str) -> Any:
        """The same."""
        del name
        return program

    def outputs(self, state: Any) -> Any:
        """Left to the compiler."""
        del state


ONE_DEVICE = OneDevice()


@dataclasses.dataclass(frozen=True)
class Partition:
    """How arrays lie on one mesh; hashable."""

    mesh: Mesh | AbstractMesh
    """Abstract where only shapes and programs are wanted."""

    @property
    def tensor(self) -> int:
        """Parts that heads are cut into; the network's `qkv_groups`."""
        return self.mesh.shape["tensor"]

    @property
    def rows(self) -> NamedSharding:
        """Batches: rows over `data` and `fsdp`."""
        return NamedSharding(self.mesh, P(ROWS))

    @property
    def whole(self) -> NamedSharding:
        """The same on every device."""
        return NamedSharding(self.mesh, P())

    def stored(self, tree: Any) -> Any:
        """Shardings of parameters, optimiser states or learner states between steps."""
        return rules.shardings(self.mesh, tree)

    def place(self, tree: Any) -> Any:
        """Parameters or states, whole on this process, as stored on the mesh; the originals stay alive."""
        return jax.tree.map(_put, tree, self.stored(tree))

    def same(self, tree: Any) -> Any:
        """Arrays that every device reads whole: keys, tables."""
        return jax.tree.map(lambda leaf: _put(leaf, self.whole), tree)

    def fetch(self, tree: Any) -> Any:
        """The whole of every array on one device of this process; all processes must call it."""
        return processes.fetch(tree)

    def step(self, function: Callable[..., Any], state: Any) -> Callable[..., Any]:
        """`jax.jit` with the state donated, and laid out after the step as before it."""
        return jax.jit(function, donate_argnums=0, out_shardings=(self.stored(state), self.whole))

    def together(self, program: Any, name: str) -> Any:
        """See `processes.together`."""
        return processes.together(program, name)

    def outputs(self, state: Any) -> Any:
        """The state as before, metrics whole, rows cut."""
        return (self.stored(state), self.whole, self.rows)

    def batch(self, n_rows: int, make: Callable[[slice], Any]) -> Any:
        """A batch on the mesh of which this process makes its own rows only.

        Args:
          n_rows: rows of the whole batch, over all processes.
          make: the given rows as a tree of host arrays, rows first.
        Raises: ValueError if the rows cannot be cut evenly.
        """
        parts = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        if n_rows % parts:
            raise ValueError(f"a batch of {n_rows} rows cannot be cut into data × fsdp = {parts} parts")
        indices = self.rows.addressable_devices_indices_map((n_rows,)).values()
        places = [index[0] for index in indices if index is not None]
        first = min(place.start or 0 for place in places)
        last = max(n_rows if place.stop is None else place.stop for place in places)

        def spread(own: Any) -> Array:
            own = np.asarray(own)

            def part(index: tuple[slice, ...]) -> np.ndarray:
                start, stop, _ = index[0].indices(n_rows)
                return own[start - first : stop - first]

            return jax.make_array_from_callback((n_rows, *own.shape[1:]), self.rows, part)

        return jax.tree.map(spread, make(slice(first, last)))

    def cut_rows(self, batch: Any) -> Any:
        """`batch` with the rows of every leaf over the devices, inside a compiled program."""
        return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, self.rows), batch)

    def in_use(self, params: Params, *, whole_table: bool = False) -> Params:
        """Parameters as one pass needs them: together over `fsdp`, cut over `tensor` by heads and hidden units.

        Their gradients are constrained to where the parameters are stored, so that every device receives the part it
        keeps and no more.

        Args:
          whole_table: repeat the embedding table on `tensor` too, for losses that cut it at arbitrary rows.
        """

        @jax.custom_vjp
        def used(params: Params) -> Params:
            return _by_path(functools.partial(self._use, whole_table=whole_table), params)

        def forward(params: Params) -> tuple[Params, None]:
            return used(params), None

        def backward(_: None, gradient: Params) -> tuple[Params]:
            return (_by_path(self._store, gradient),)

        used.defvjp(forward, backward)
        return used(params)

    def _put(self, x: Array, spec: P) -> Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))

    def _use(self, path: str, x: Array, *, whole_table: bool) -> Array:
        if path.endswith("wte") and whole_table:
            return self._put(x, P())
        if "c_attn" in path and self.tensor > 1:
            x = x.reshape(*x.shape[:-1], 3, -1)
            if path.endswith("kernel"):
                # First from rows to heads (all-to-all over `tensor`, on parts), then together over `fsdp`.
                x = self._put(x, P("fsdp", None, "tensor"))
            x = self._put(x, P(*(None,) * (x.ndim - 1), "tensor"))
            x = jnp.moveaxis(x.reshape(*x.shape[:-1], self.tensor, -1), -3, -2)
            x = x.reshape(*x.shape[:-3], -1)
        return self._put(x, rules.spec(rules.IN_USE, path))

    def _store(self, path: str, x: Array) -> Array:
        # Summed where it was used, then cut (together a reduce-scatter): without the first constraint the cut spreads
        # into the computation of the gradient, and rows are moved instead.
        x = self._put(x, rules.spec(rules.IN_USE, path))
        if "c_attn" in path and self.tensor > 1:
            x = jnp.moveaxis(x.reshape(*x.shape[:-1], self.tensor, 3, -1), -3, -2)
            x = x.reshape(*x.shape[:-2], -1)
            if path.endswith("kernel"):
                x = self._put(x, P("fsdp", None, "tensor"))
                x = self._put(x, P(("fsdp", "tensor"), None, None))
            x = x.reshape(*x.shape[:-2], -1)
        return self._put(x, rules.spec(rules.STORED, path))

    def loss(self, loss: Callable[..., Any], *, whole_table: bool = False) -> Callable[..., Any]:
        """`loss(params, batch, *rest)` on this mesh; sums over rows become sums over devices."""

        def on_mesh(params: Params, batch: Any, *rest: Any, **named: Any) -> Any:
            return loss(self.in_use(params, whole_table=whole_table), self.cut_rows(batch), *rest, **named)

        return on_mesh

    def by_row(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function(params, batch, *rest)`, whose results have one row per row of the batch, on this mesh."""

        def on_mesh(params: Params, batch: Any, *rest: Any) -> Any:
            return self.cut_rows(function(self.in_use(params), self.cut_rows(batch), *rest))

        return on_mesh


def _put(leaf: Any, sharding: NamedSharding) -> Any:
    """A host or single-device array on the mesh, in memory of its own."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_put(jax.random.key_data(leaf), sharding), impl=jax.random.key_impl(leaf))
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding, may_alias=False)
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def _by_path(function: Callable[[str, Array], Array], tree: Any) -> Any:
    return jax.tree.map_with_path(
        lambda path, leaf: function(jax.tree_util.keystr(path, simple=True, separator="/"), leaf), tree
    )
