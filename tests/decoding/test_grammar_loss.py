"""The two small heads against the masked softmax over the whole vocabulary that sampling and PPO use."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.data.vocabulary import Vocabulary
from rlhf_jax.decoding.grammar import Grammar, allowed_along
from rlhf_jax.decoding.grammar_loss import (
    FREE_ITEM,
    FREE_WORD,
    LIST,
    NO_TARGET,
    SAY,
    GrammarTargets,
    SoftTargets,
    grammar_losses,
    grammar_nll,
)
from rlhf_jax.equations.logprobs import token_logprobs
from rlhf_jax.stages.texts import Text, TextBatches, target_kinds

MAX_ITEMS = 3


@pytest.fixture(scope="module")
def vocab() -> Vocabulary:
    return Vocabulary.train(["a b c d e f", "see the film"], (7, 8, 9, 10, 11, 12), 300, multiple=8)


@pytest.fixture(scope="module")
def grammar(vocab: Vocabulary) -> Grammar:
    return Grammar(**vocab.grammar._asdict(), max_items=MAX_ITEMS, vocab_size=vocab.size)


def responses(vocab: Vocabulary) -> list[list[int]]:
    item = [vocab.item_token(i) for i in vocab.item_ids]
    return [
        [vocab.rec, item[0], item[4], vocab.say, 5, 6, item[4], 7, vocab.eos],
        [vocab.rec, item[5], item[1], item[2], vocab.say, 9, vocab.eos],  # a full list: `<say>` must follow
        [vocab.say, 3, 4, vocab.eos],
        [vocab.rec, item[3], vocab.say, item[3], item[3], vocab.eos],
    ]


def packed(
    vocab: Vocabulary, texts: list[list[int]], bucket: int, *, once: bool = False
) -> tuple[np.ndarray, GrammarTargets]:
    of = tuple(Text(tuple(text)) for text in texts)
    batches = TextBatches(of, vocab, (bucket,), bucket * len(texts), 0, MAX_ITEMS, once=once)
    tokens, _, targets = batches.pack(texts, bucket, None)
    return tokens, targets


@pytest.mark.parametrize("once", [False, True])
def test_recommender_turns_equal_the_masked_softmax_over_the_whole_vocabulary(
    vocab: Vocabulary, grammar: Grammar, once: bool
):
    found, grammar = responses(vocab), grammar._replace(once=once)
    if once:  # The last names its item twice, which that grammar cannot say.
        item = [vocab.item_token(i) for i in vocab.item_ids]
        found[-1] = [vocab.rec, item[3], item[0], vocab.say, item[3], 5, item[0], 6, vocab.eos]
    tokens, targets = packed(vocab, [[vocab.recommender, *response] for response in found], 24, once=once)
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(len(found), 24, 16)), jnp.float32)
    table = jnp.asarray(rng.normal(size=(vocab.size, 16)), jnp.float32)
    words, items = grammar_nll(hidden, table, targets, grammar)
    sums = np.asarray(words.sum(axis=1) + items.sum(axis=1))
    for row, response in enumerate(found):
        # The reference: every logit, masked by the rules, one response at a time.
        logits = hidden[row, : len(response)] @ table.T
        allowed = allowed_along(grammar, jnp.asarray([response]))[0]
        expected = -token_logprobs(logits, jnp.asarray(response), allowed=allowed)
        np.testing.assert_allclose(sums[row], float(expected.sum()), rtol=1e-5)
    assert tokens.shape == (4, 24)


def test_outside_the_grammar_words_and_items_are_two_softmaxes(vocab: Vocabulary, grammar: Grammar):
    item = vocab.item_token(9)
    text = [vocab.seeker, 5, item, 6, vocab.eos]
    _, targets = packed(vocab, [text, text], 20)
    rng = np.random.default_rng(1)
    hidden = jnp.asarray(rng.normal(size=(2, 20, 8)), jnp.float32)
    table = jnp.asarray(rng.normal(size=(vocab.size, 8)), jnp.float32)
    words, items = grammar_nll(hidden, table, targets, grammar)
    logits = np.asarray(hidden[0] @ table.T, np.float64)
    columns = [t for t in range(vocab.first_item) if t != vocab.pad]
    for position, target in ((0, 5), (2, 6), (3, vocab.eos)):
        expected = np.log(np.exp(logits[position, columns]).sum()) - logits[position, target]
        np.testing.assert_allclose(words[0, position], expected, rtol=1e-5)
    among = logits[1, vocab.first_item : vocab.first_item + vocab.n_items]
    np.testing.assert_allclose(items[0, 0], np.log(np.exp(among).sum()) - logits[1, item], rtol=1e-5)
    assert float(words[0, 1]) == 0.0


@pytest.mark.parametrize("most_logits", [1, 6 * 4 * 2, 6 * 4 * 3])
def test_items_in_pieces_are_the_same_softmax(vocab: Vocabulary, grammar: Grammar, most_logits: int):
    """Pieces of one, two and three of five positions; two and three do not divide them."""
    found = responses(vocab)
    _, targets = packed(vocab, [[vocab.recommender, *response] for response in found], 26)
    assert targets.item_positions.shape[1] == 5
    rng = np.random.default_rng(3)
    hidden = jnp.asarray(rng.normal(size=(len(found), 26, 16)), jnp.float32)
    table = jnp.asarray(rng.normal(size=(vocab.size, 16)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=targets.item_positions.shape), jnp.float32)

    def total(hidden: jax.Array, table: jax.Array, most: int) -> jax.Array:
        words, items = grammar_nll(hidden, table, targets, grammar, most_logits=most)
        return words.sum() + (weights * items).sum()

    whole, pieces = (jax.value_and_grad(total, argnums=(0, 1))(hidden, table, most) for most in (2**20, most_logits))
    for one, other in zip(jax.tree.leaves(pieces), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("most_logits", [6 * 4 * 2, 2**20])
def test_a_teachers_divergence_is_that_of_two_distributions(vocab: Vocabulary, grammar: Grammar, most_logits: int):
    found = responses(vocab)
    tokens, targets = packed(vocab, [[vocab.recommender, *response] for response in found], 26)
    rng = np.random.default_rng(4)
    hidden = jnp.asarray(rng.normal(size=(len(found), 26, 16)), jnp.float32)
    table = jnp.asarray(rng.normal(size=(vocab.size, 16)), jnp.float32)
    positions = np.asarray(targets.item_positions)
    begins = (np.asarray(targets.item_kinds) == LIST) & (np.take_along_axis(tokens, positions, 1) == vocab.rec)
    assert begins.sum() == 3
    said = rng.permuted(np.tile(np.arange(6), (*positions.shape, 1)), axis=-1)[..., :4]
    chances = rng.dirichlet(np.ones(4), positions.shape) * begins[..., None]
    chances[0, 0] = [0.5, 0.5, 0.0, 0.0]
    soft = SoftTargets(items=jnp.asarray(vocab.first_item + said), chances=jnp.asarray(chances, jnp.float32))

    def losses(hidden: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        return grammar_losses(hidden, table, targets, grammar, soft, most_logits=most_logits)

    words, items, divergence = losses(hidden)
    for one, other in zip((words, items), grammar_nll(hidden, table, targets, grammar), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    for row, place in np.ndindex(*positions.shape):
        if not begins[row, place]:
            assert float(divergence[row, place]) == 0.0
            continue
        logits = np.asarray(table, np.float64)[vocab.first_item :][:6] @ np.asarray(hidden[row, positions[row, place]])
        own = np.exp(logits) / np.exp(logits).sum()
        q = np.zeros(6)
        q[said[row, place]] = chances[row, place]
        expected = sum(p * np.log(p / own[item]) for item, p in enumerate(q) if p > 0)
        np.testing.assert_allclose(divergence[row, place], expected, rtol=2e-5)
    # Where all is certain, it is the likelihood of the one; the gradient is finite, also through chances of 0.
    sure = jnp.asarray(np.array([1.0, 0.0, 0.0, 0.0], np.float32) * begins[..., None])
    first = jnp.asarray(np.take_along_axis(np.asarray(targets.targets), positions, 1))
    certain = SoftTargets(items=jnp.asarray(soft.items).at[..., 0].set(first), chances=sure)
    _, items, divergence = grammar_losses(hidden, table, targets, grammar, certain, most_logits=most_logits)
    np.testing.assert_allclose(divergence, jnp.where(begins, items, 0.0), rtol=1e-5, atol=1e-6)
    assert np.isfinite(np.asarray(jax.grad(lambda hidden: losses(hidden)[2].sum())(hidden))).all()


def test_pieces_are_as_equal_as_can_be(vocab: Vocabulary, grammar: Grammar):
    """Five positions with room for four at a time: two pieces of three, not of four."""
    _, targets = packed(vocab, [[vocab.recommender, *response] for response in responses(vocab)], 26)
    hidden, table = jnp.zeros((4, 26, 8)), jnp.zeros((vocab.size, 8))

    def judged(hidden: jax.Array, table: jax.Array) -> tuple[jax.Array, jax.Array]:
        return grammar_nll(hidden, table, targets, grammar, most_logits=6 * 4 * 4)

    program = jax.make_jaxpr(judged)(hidden, table)
    loops = [one for one in program.eqns if one.primitive.name == "scan"]
    assert [one.params["length"] for one in loops] == [2]
    assert loops[0].outvars[0].aval.shape == (2, 4, 3)


def test_padding_has_no_loss_and_no_gradient(vocab: Vocabulary, grammar: Grammar):
    found = responses(vocab)
    tokens, targets = packed(vocab, [[vocab.recommender, *response] for response in found], 24)
    rng = np.random.default_rng(2)
    hidden = jnp.asarray(rng.normal(size=(len(found), 24, 4)), jnp.float32)
    table = jnp.asarray(rng.normal(size=(vocab.size, 4)), jnp.float32)

    def total(hidden: jax.Array) -> jax.Array:
        words, items = grammar_nll(hidden, table, targets, grammar)
        return words.sum() + items.sum()

    gradient = np.asarray(jax.grad(total)(hidden))
    lengths = (tokens != vocab.pad).sum(axis=1)
    for row, length in enumerate(lengths):
        assert np.isfinite(gradient).all()
        assert not gradient[row, length - 1 :].any()
        assert gradient[row, : length - 1].any(axis=1).sum() >= length - 2  # a forced `<say>` teaches nothing


def test_an_item_that_is_named_again_is_no_target_where_once_is_all(vocab: Vocabulary):
    item = vocab.item_token(9)
    text = [vocab.recommender, vocab.rec, item, vocab.say, item, item, 5, vocab.eos]
    assert target_kinds(text, vocab, MAX_ITEMS)[4:] == [(SAY, (item,))] * 3
    assert target_kinds(text, vocab, MAX_ITEMS, once=True)[3:] == [
        (SAY, (item,)),
        (NO_TARGET, ()),
        (SAY, ()),
        (SAY, ()),
    ]


def test_an_item_that_was_not_listed_is_no_target(vocab: Vocabulary):
    item = [vocab.item_token(i) for i in vocab.item_ids]
    text = [vocab.recommender, vocab.rec, item[0], vocab.say, item[1], 5, vocab.eos]
    kinds = [kind for kind, _ in target_kinds(text, vocab, MAX_ITEMS)]
    assert kinds[3] == 0 and kinds[4] != 0
    kinds = [kind for kind, _ in target_kinds([vocab.seeker, item[0], 5, vocab.eos], vocab, MAX_ITEMS)]
    assert kinds == [FREE_ITEM, FREE_WORD, FREE_WORD]
