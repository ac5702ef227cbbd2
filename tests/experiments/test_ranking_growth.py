"""How the cost of scoring all items grows, counted in the compiled program; nothing is run."""

import jax
import jax.numpy as jnp
import pytest

from rlhf_jax.interfaces import PromptBatch
from rlhf_jax.models import gpt2
from rlhf_jax.stages.agent import make_agent
from rlhf_jax.stages.setup import ModelConfig, size_network
from scale import growth
from scale.plan import matmul_flops
from scale.program import numbered_vocabulary


def counted(batch: int, prompt: int, items: int) -> tuple[float, float]:
    """Operations of the matmuls, bytes of temporaries and result."""
    vocab = numbered_vocabulary(300, items)
    model = ModelConfig(n_layer=2, n_embd=64, n_head=1, n_positions=128, dropout=0.0)
    network = size_network(model, vocab)
    agent = make_agent(vocab, network, max_items=5, response_tokens=8)
    trunk = jax.eval_shape(lambda: gpt2.init(network, jax.random.key(0)))
    prompts = PromptBatch(tokens=jnp.zeros((batch, prompt), jnp.int32), mask=jnp.ones((batch, prompt), bool))
    made = jax.jit(agent.score_items).lower({"trunk": trunk}, prompts).compile()
    memory = made.memory_analysis()
    assert memory is not None
    return matmul_flops(made.as_text()), float(memory.temp_size_in_bytes + memory.output_size_in_bytes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("small", "large", "least", "most"),
    [
        # Contexts are independent.
        ((8, 31, 1_000), (32, 31, 1_000), 0.99, 1.01),
        # With `<rec>` 32 and 64 tokens: attention's square is a small part.
        ((8, 31, 1_000), (8, 63, 1_000), 0.9, 1.1),
        # One row of logits a context, whatever the context's length.
        ((8, 31, 25_000), (8, 31, 100_000), 0.2, 1.0),
    ],
    ids=["batch", "prompt", "catalogue"],
)
def test_scores_of_all_items_grow_at_most_linearly(
    small: tuple[int, int, int], large: tuple[int, int, int], least: float, most: float
) -> None:
    axis = next(place for place in range(3) if small[place] != large[place])
    sizes = [float(one[axis] + (axis == 1)) for one in (small, large)]
    operations, memory = zip(counted(*small), counted(*large), strict=True)
    assert least <= next(growth.slopes(sizes, list(operations))) <= most
    assert next(growth.slopes(sizes, list(memory))) <= 1.05


@pytest.mark.slow
def test_scores_over_100_000_items_take_little_more_than_themselves() -> None:
    _, memory = counted(64, 31, 100_000)
    scores = 4 * 64 * 100_000
    assert memory < 2.5 * scores
