"""How imitation's cost grows, counted in the compiled step; nothing is run, so 100,000 items cost no more than a compilation."""

import dataclasses
import itertools
import os
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import pytest

from rlhf_jax.stages.items import ItemKnowledge, compose
from scale import growth, imitation
from scale.imitation import Imitation
from scale.plan import matmul_flops

# One head: attention's scores, [heads, tokens, tokens], alone grow with the square of the tokens, and are few here.
BASE = Imitation(layers=1, width=32, heads=1, texts=16, tokens=32, words=300, items=1_000, positions=64)
WIDE = Imitation(layers=2, width=128, heads=4, texts=64, tokens=64, words=1_000, items=100_000, positions=64)
SIZES = {
    "texts": (BASE, dataclasses.replace(BASE, texts=64)),
    "tokens": (BASE, dataclasses.replace(BASE, tokens=64)),
    "items": (dataclasses.replace(BASE, items=8_000), dataclasses.replace(BASE, items=32_000)),
}


@pytest.fixture(scope="module")
def counted() -> Mapping[Imitation, Mapping[str, float]]:
    """What the compiler says of every step, all in one process."""
    sizes = list(dict.fromkeys([*itertools.chain(*SIZES.values()), WIDE]))
    return dict(zip(sizes, imitation.apart("count", [dataclasses.asdict(one) for one in sizes]), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("axis", "least", "most"),
    # Texts are independent. Of tokens attention alone is quadratic, and small here. Not all of a step reads items.
    [("texts", 0.99, 1.01), ("tokens", 0.9, 1.1), ("items", 0.7, 1.0)],
)
def test_operations_grow_linearly(
    counted: Mapping[Imitation, Mapping[str, float]], axis: str, least: float, most: float
) -> None:
    assert least <= power(counted, axis, "operations") <= most


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["texts", "tokens", "items"])
def test_memory_grows_at_most_linearly(counted: Mapping[Imitation, Mapping[str, float]], axis: str) -> None:
    assert 0.2 < power(counted, axis, "temporaries") <= 1.05


@pytest.mark.slow
def test_a_step_over_100_000_items_has_room_in_eight_gigabytes(
    counted: Mapping[Imitation, Mapping[str, float]],
) -> None:
    found = counted[WIDE]
    # State and batch, then what the program asks for on top; the logits of all 12 places would be 3.7 GB forward and backward.
    assert found["arguments"] < 0.35e9
    assert found["temporaries"] < 1.5e9


def power(counted: Mapping[Imitation, Mapping[str, float]], axis: str, key: str) -> float:
    """Between the two sizes of an axis."""
    sizes = [float(getattr(one, axis)) for one in SIZES[axis]]
    return next(growth.slopes(sizes, [counted[one][key] for one in SIZES[axis]]))


def test_the_matmuls_of_a_loop_count_as_often_as_it_runs() -> None:
    def nested(x: jax.Array) -> jax.Array:
        once = jax.lax.fori_loop(0, 3, lambda _, x: jnp.tanh(x @ x), x)
        return jax.lax.cond(once[0, 0] > 0, lambda: once @ once.T, lambda: once)

    compiled = jax.jit(nested).lower(jnp.zeros((16, 16))).compile()
    assert matmul_flops(compiled.as_text()) == (3 + 1) * 2 * 16**3


def test_items_that_share_no_words_have_no_columns_to_gather() -> None:
    step = imitation.make(dataclasses.replace(BASE, items=64))
    params = step.state().params
    nothing = jnp.full((64, 12), -1, jnp.int32)
    with_columns = ItemKnowledge(titles=step.knowledge.titles, metadata=nothing, features=step.knowledge.features)
    one, other = (compose(params, known, 300) for known in (step.knowledge, with_columns))
    assert jnp.array_equal(one["wte"], other["wte"])


@pytest.mark.slow
def test_a_step_runs_and_says_its_cost() -> None:
    assert os.environ["JAX_PLATFORMS"] == "cpu"
    found = imitation.run(dataclasses.replace(BASE, texts=2, items=64), 1)
    assert found["tokens_per_second"] * found["step_seconds"] == pytest.approx(2 * 32)
    assert found["peak_mb"] > 50
