"""Items composed of titles and features are folded into a plain GPT-2 tree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.data.vocabulary import Vocabulary
from rlhf_jax.decoding.grammar import Grammar
from rlhf_jax.interfaces import Corpus, Item
from rlhf_jax.learners.microbatch import LossSums
from rlhf_jax.models import gpt2
from rlhf_jax.stages.items import ItemKnowledge, compose, item_knowledge, taken_apart
from rlhf_jax.stages.supervised import SupervisedConfig, TextBatch, TextWeights, text_batch, text_loss
from rlhf_jax.stages.texts import TextBatches

FIRST_ITEM, N_ITEMS, WIDTH = 5, 3, 4


def knowledge(
    titles: list[list[int]], features: list[list[int]], metadata: list[list[int]] | None = None
) -> ItemKnowledge:
    return ItemKnowledge(
        metadata=jnp.array(metadata or [[]] * N_ITEMS, jnp.int32).reshape(N_ITEMS, -1),
        titles=jnp.array(titles, jnp.int32).reshape(N_ITEMS, -1),
        features=jnp.array(features, jnp.int32).reshape(N_ITEMS, -1),
    )


def params(n_features: int) -> dict:
    draw = np.random.default_rng(0)
    wte = jnp.asarray(draw.normal(size=(10, WIDTH)).astype(np.float32))
    features = jnp.asarray(draw.normal(size=(n_features, WIDTH)).astype(np.float32))
    return {"trunk": {"wte": wte, "wpe": jnp.ones((2, WIDTH))}, "item_features": features}


def test_compose_adds_the_means_of_title_words_metadata_words_and_features() -> None:
    tree = params(2)
    titles, features = [[0, 1, -1], [4, -1, -1], [-1, -1, -1]], [[1, -1], [0, 1], [-1, -1]]
    folded = compose(tree, knowledge(titles, features, metadata=[[2, 3], [-1, -1], [-1, -1]]), FIRST_ITEM)
    wte, table = np.asarray(tree["trunk"]["wte"]), np.asarray(tree["item_features"])
    expected = wte.copy()
    expected[5] += (wte[0] + wte[1]) / 2 + (wte[2] + wte[3]) / 2 + table[1]
    expected[6] += wte[4] + (table[0] + table[1]) / 2
    assert set(folded) == {"wte", "wpe"}
    np.testing.assert_allclose(folded["wte"], expected, rtol=1e-6)
    np.testing.assert_array_equal(folded["wte"][:5], wte[:5])
    np.testing.assert_array_equal(folded["wte"][7:], wte[7:])


def test_compose_without_titles_and_features_changes_nothing() -> None:
    tree = params(0)
    folded = compose(tree, knowledge([[], [], []], [[], [], []]), FIRST_ITEM)
    np.testing.assert_array_equal(folded["wte"], tree["trunk"]["wte"])


def test_a_tree_taken_apart_is_composed_to_itself() -> None:
    tree = params(2)
    titles, features = [[0, 1, -1], [4, -1, -1], [-1, -1, -1]], [[1, -1], [0, 1], [-1, -1]]
    known = knowledge(titles, features, metadata=[[2, 3], [-1, -1], [-1, -1]])
    apart = taken_apart(tree["trunk"], known, FIRST_ITEM)
    assert not np.allclose(apart["wte"], tree["trunk"]["wte"])
    whole = compose({"trunk": apart, "item_features": jnp.zeros((2, WIDTH))}, known, FIRST_ITEM)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-6), whole, tree["trunk"])


def test_item_knowledge_is_in_the_order_of_the_vocabulary(vocab: Vocabulary) -> None:
    items = {
        11: Item(item_id=11, title="Hello (1990)", year=1990, genres=("drama",)),
        12: Item(item_id=12, title="", genres=("drama", "crime")),
        13: Item(item_id=13, title="Again (1991)", year=1991, genres=("crime",)),
        14: Item(item_id=14, title="There"),
    }
    corpus = Corpus(train=(), validation=(), test=(), items=items, provenance={})
    found, n_features = item_knowledge(vocab, corpus, SupervisedConfig(features_per_item=4))
    assert n_features == 3  # drama, crime and the nineties: two items each
    assert [int((row >= 0).sum()) for row in found.features] == [2, 2, 2, 0]
    assert (found.titles[1] == -1).all()
    words = [token for token in found.titles[2].tolist() if token >= 0]
    assert vocab.decode(words).strip() == "again"
    assert (found.metadata == -1).all()
    off = SupervisedConfig(features_per_item=0, title_embeddings=False, metadata_words=True)
    found, n_features = item_knowledge(vocab, corpus, off)
    assert n_features == 0 and (found.titles == -1).all() and (found.features == -1).all()
    words = [token for token in found.metadata[0].tolist() if token >= 0]
    assert vocab.decode(words).strip().startswith("drama")


def test_a_suggestion_named_before_weighs_what_it_is_told_to(vocab: Vocabulary) -> None:
    said, new, other = map(vocab.item_token, (11, 12, 13))
    opening = [vocab.seeker, 5, said, vocab.eos, vocab.recommender, vocab.rec]
    grammar = Grammar(**vocab.grammar._asdict(), max_items=3, vocab_size=vocab.size)
    network = gpt2.GPT2Config(vocab_size=vocab.size, n_positions=32, n_embd=8, n_layer=1, n_head=2)
    tree = {"trunk": gpt2.init(network, jax.random.key(0)), "item_features": jnp.zeros((0, 8))}
    nothing = ItemKnowledge(**{name: jnp.zeros((4, 0), jnp.int32) for name in ("titles", "metadata", "features")})

    @jax.jit
    def loss(batch: TextBatch, weight: float) -> LossSums:
        weights = TextWeights(3.0, weight, "all")
        return text_loss(tree, batch, None, knowledge=nothing, network=network, grammar=grammar, weights=weights)

    def sums(suggested: list[int], weight: float) -> LossSums:
        text = (*opening, *suggested, vocab.say, 6, *suggested, vocab.eos)
        return loss(text_batch(*TextBatches((), vocab, (32,), 32, seed=0, max_listed=3).pack([text], 32, None)), weight)

    whole, light = sums([said, new], 1.0), sums([said, new], 0.25)
    (item_nll, n_items), (fresh_nll, n_fresh) = whole.parts["item_nll"], whole.parts["fresh_item_nll"]
    assert (n_items, n_fresh) == (2, 1)
    np.testing.assert_allclose(whole.loss - light.loss, 0.75 * 3.0 * (item_nll - fresh_nll), rtol=1e-4)
    np.testing.assert_allclose(whole.count - light.count, 0.75 * 3.0, rtol=1e-4)
    # Listed and then spoken of is no repetition: what comes later does not make the suggestion old.
    assert sums([other, new], 0.0).loss == sums([other, new], 1.0).loss


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"buckets": (64, 32)}, "must rise"),
        ({"buckets": (64,), "max_tokens": 65}, "must hold SupervisedConfig.max_tokens 65"),
        ({"epochs": 0}, r"epochs must be in \[1, 10000\]: got 0"),
        ({"tokens_per_batch": 100}, "tokens_per_batch 100 does not hold one text of the longest .* 512"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SupervisedConfig(**changes)
