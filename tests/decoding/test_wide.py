"""A wide catalogue: heads that look at a few items say what the head over all items says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.decoding import policy, prior, wide
from rlhf_jax.decoding.grammar import Grammar, Opening
from rlhf_jax.decoding.sections import Section
from rlhf_jax.interfaces import Params, PolicyOutput, PromptBatch, Rollout
from rlhf_jax.models import gpt2

CONFIG = gpt2.GPT2Config(vocab_size=40, n_positions=32, n_embd=16, n_layer=1, n_head=2)
GRAMMAR = Grammar(n_words=6, pad=20, eos=21, rec=24, say=25, first_item=26, n_items=9, max_items=4, vocab_size=40)
BATCH, PROMPT, RESPONSE = 48, 7, 13
GRAMMARS = {
    "plain": GRAMMAR,
    "once": GRAMMAR._replace(once=True),
    "reasons": GRAMMAR._replace(
        openings=(Opening(23, "preferences"), Opening(GRAMMAR.rec, "list"), Opening(GRAMMAR.say, "words"))
    ),
    "sections": GRAMMAR._replace(sections=(Section(0, (2, 3), 2), Section(1, (3, 4, 5), 3))),
}


def drawn_and_judged(grammar: Grammar, *, manners: bool, chunk: int | None = None) -> tuple[Rollout, PolicyOutput]:
    """Responses, and what the learner says of them."""
    config = dataclasses.replace(CONFIG, head_chunk=chunk)
    params: Params = {"trunk": jax.tree.map(lambda leaf: 4 * leaf, gpt2.init(CONFIG, jax.random.key(0)))}
    tokens = jax.random.randint(jax.random.key(2), (BATCH, PROMPT), 0, 6)
    scores = None
    if manners:
        params[prior.NAME] = prior.init(2) | {"scores": jnp.array([0.5, -1.0]), "manners": jnp.array([1.0, -0.5, 0.25])}
        scores = jax.random.normal(jax.random.key(4), (BATCH, 2, 9))
    prompts = PromptBatch(tokens=tokens, mask=jnp.ones_like(tokens, bool), item_scores=scores)
    rollout = jax.jit(policy.make_sample(config, grammar, max_tokens=RESPONSE))(params, prompts, jax.random.key(3))
    return rollout, jax.jit(policy.make_policy_apply(config, grammar))(params, rollout)


@pytest.mark.parametrize(
    ("name", "manners", "chunk"),
    [
        ("plain", True, 3),
        ("plain", False, None),
        ("once", True, None),
        ("reasons", False, None),
        ("sections", False, None),
    ],
)
def test_the_few_items_of_a_list_give_what_the_whole_catalogue_gives(
    name: str, manners: bool, chunk: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, whole_judged = drawn_and_judged(GRAMMARS[name], manners=manners)
    monkeypatch.setattr(wide, "WIDE", 1)
    narrow, narrow_judged = drawn_and_judged(GRAMMARS[name], manners=manners, chunk=chunk)
    # Some lists are full, some turns have none, and words name items: every kind of place is among the rows.
    listed = np.asarray(whole.response_tokens >= GRAMMAR.first_item).sum(axis=1)
    assert listed.max() >= 4 and listed.min() == 0
    np.testing.assert_array_equal(narrow.response_tokens, whole.response_tokens)
    np.testing.assert_allclose(narrow.logprobs, whole.logprobs, atol=2e-6)
    np.testing.assert_allclose(narrow_judged.logprobs, whole_judged.logprobs, atol=2e-6)
    np.testing.assert_allclose(narrow_judged.entropy, whole_judged.entropy, atol=2e-6)


def test_gradients_of_the_few_items_are_those_of_the_whole_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    rollout, _ = drawn_and_judged(GRAMMAR, manners=False)
    params = {"trunk": jax.tree.map(lambda leaf: 4 * leaf, gpt2.init(CONFIG, jax.random.key(0)))}

    def gradient() -> Params:
        judge = policy.make_policy_apply(CONFIG, GRAMMAR)
        return jax.jit(jax.grad(lambda params: judge(params, rollout).logprobs.sum()))(params)

    whole = gradient()
    monkeypatch.setattr(wide, "WIDE", 1)
    for one, other in zip(jax.tree.leaves(gradient()), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-4 * float(jnp.abs(other).max()) + 1e-6)


def test_the_loop_over_tokens_carries_nothing_of_the_catalogues_size() -> None:
    grammar = GRAMMAR._replace(n_items=5_000, vocab_size=5_056)
    config = dataclasses.replace(CONFIG, vocab_size=5_056)
    trunk = jax.eval_shape(lambda key: gpt2.init(config, key), jax.random.key(0))
    prompts = PromptBatch(tokens=jnp.zeros((2, PROMPT), jnp.int32), mask=jnp.ones((2, PROMPT), bool))
    draw = policy.make_sample(config, grammar, max_tokens=RESPONSE)
    program = jax.make_jaxpr(draw)({"trunk": trunk}, prompts, jax.random.key(0))
    loops = [one for one in program.eqns if one.primitive.name == "while"]
    assert len(loops) == 1
    carried = [var.aval.shape for var in loops[0].outvars]
    assert (2, RESPONSE) in carried and not any(5_056 in shape or 5_000 in shape for shape in carried)


def test_a_catalogue_among_the_words_is_not_taken_for_a_wide_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not wide.is_wide(GRAMMAR)
    assert wide.is_wide(GRAMMAR._replace(n_items=wide.WIDE, vocab_size=2 * wide.WIDE))
    monkeypatch.setattr(wide, "WIDE", 1)
    assert wide.is_wide(GRAMMAR) and not wide.is_wide(GRAMMAR._replace(say=36))
