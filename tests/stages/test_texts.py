"""Training batches: what is a target, what is shuffled, and that everything is a function of (seed, step)."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_jax.data.vocabulary import Vocabulary
from rlhf_jax.decoding.grammar_loss import FIRST, FREE_ITEM, FREE_WORD, LIST, NO_TARGET, SAY, GrammarTargets
from rlhf_jax.interfaces import Dialogue, Message
from rlhf_jax.stages.texts import Text, TextBatches, dialogue_texts, shuffled_lists, target_kinds

BUCKETS = (8, 16)


def make_batches(vocab: Vocabulary, *, seed: int = 3, described: int = 1, shuffle: bool = True) -> TextBatches:
    """Nine dialogues of two lengths, and three descriptions, told apart by their first word."""
    item = vocab.item_token
    texts = [
        Text((vocab.recommender, vocab.rec, *map(item, (11, 12, 13)), vocab.say, number, *[number] * more, vocab.eos))
        for number, more in enumerate((0, 0, 0, 0, 0, 3, 4, 5, 6))
    ]
    texts += [Text((number, item(14)), description=True) for number in (20, 21, 22)]
    return TextBatches(
        tuple(texts), vocab, BUCKETS, 32, seed, max_listed=3, shuffle_lists=shuffle, description_epochs=described
    )


def test_target_kinds(vocab: Vocabulary) -> None:
    a, b, c = map(vocab.item_token, (11, 12, 13))
    sequence = [
        *(vocab.seeker, 5, a, vocab.eos),
        *(vocab.recommender, vocab.rec, a, b, vocab.say, 6, b, c, vocab.eos),
        *(vocab.recommender, vocab.say, vocab.eos),
    ]
    expected = [
        *((FREE_WORD, ()), (FREE_ITEM, ()), (FREE_WORD, ()), (FREE_WORD, ())),  # 5 a <eos> <recommender>
        (FIRST, ()),  # <rec>
        *((LIST, ()), (LIST, (a,)), (LIST, (a, b))),  # a b <say>
        *((SAY, (a, b)), (SAY, (a, b)), (NO_TARGET, ()), (SAY, (a, b))),  # 6 b; c was not listed; <eos>
        *((FREE_WORD, ()), (FIRST, ()), (SAY, ())),  # <recommender> <say> <eos>
    ]
    assert target_kinds(sequence, vocab, 3) == expected


def test_what_exceeds_the_longest_list_is_no_target(vocab: Vocabulary) -> None:
    a, b, c = map(vocab.item_token, (11, 12, 13))
    kinds = target_kinds([vocab.recommender, vocab.rec, a, b, c, vocab.say, a, c, vocab.eos], vocab, 2)
    assert kinds[1:5] == [(LIST, ()), (LIST, (a,)), (NO_TARGET, ()), (NO_TARGET, ())]
    assert kinds[5:] == [(SAY, (a, b)), (NO_TARGET, ()), (SAY, (a, b))]


@given(order=st.permutations([11, 12, 13, 14]), n=st.integers(0, 4), seed=st.integers(0, 50))
def test_shuffled_lists_keep_the_items_and_all_else(vocab: Vocabulary, order: list[int], n: int, seed: int) -> None:
    items = [vocab.item_token(i) for i in order[:n]]
    text = [vocab.seeker, 1, vocab.eos, vocab.recommender, vocab.rec, *items, vocab.say, *items, 2, vocab.eos]
    shuffled = shuffled_lists(text, vocab, np.random.default_rng(seed))
    assert Counter(shuffled[5 : 5 + n]) == Counter(items)
    assert shuffled[:5] + shuffled[5 + n :] == text[:5] + text[5 + n :]


def test_shuffling_reaches_every_order(vocab: Vocabulary) -> None:
    text = [vocab.rec, *map(vocab.item_token, (11, 12, 13)), vocab.say]
    order = np.random.default_rng(0)
    assert len({tuple(shuffled_lists(text, vocab, order)) for _ in range(60)}) == 6


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_an_epoch_holds_every_text_once(vocab: Vocabulary, epoch: int) -> None:
    batches = make_batches(vocab)
    plan = batches.plan(epoch)
    expected = range(12) if epoch == 0 else range(9)
    assert sorted(index for _, indices in plan for index in indices) == list(expected)
    for bucket, indices in plan:
        assert 0 < len(indices) <= batches.rows(bucket)
        assert all(len(batches.texts[index].tokens) <= bucket for index in indices)


def test_the_plan_is_a_function_of_seed_and_epoch(vocab: Vocabulary) -> None:
    one, same, other = make_batches(vocab), make_batches(vocab), make_batches(vocab, seed=4)
    later = same.plan(5)
    assert [one.plan(epoch) for epoch in range(4)] == [same.plan(epoch) for epoch in range(4)]
    assert one.plan(5) == later != one.plan(4)
    assert one.plan(0) != other.plan(0)


@pytest.mark.parametrize("described", [0, 1, 2])
def test_steps_and_batches_run_through_the_epochs(vocab: Vocabulary, described: int) -> None:
    batches = make_batches(vocab, described=described, shuffle=False)
    places = [(epoch, place) for epoch in range(3) for place in range(len(batches.plan(epoch)))]
    assert batches.steps(3) == len(places)
    for step, (epoch, place) in reversed(list(enumerate(places))):
        bucket, indices = batches.plan(epoch)[place]
        tokens, mask, targets = batches.batch(step)
        assert tokens.shape == mask.shape == targets.kinds.shape == (batches.rows(bucket), bucket)
        rows = [tuple(row[keep].tolist()) for row, keep in zip(tokens, mask, strict=True)]
        assert rows[: len(indices)] == [batches.texts[index].tokens for index in indices]
        assert rows[len(indices) :] == [()] * (len(rows) - len(indices))
        has_description = any(batches.texts[index].description for index in indices)
        assert epoch < described or not has_description


@pytest.mark.parametrize("described", [0, 2])
def test_a_late_batch_draws_the_order_of_its_own_epoch_alone(vocab: Vocabulary, described: int) -> None:
    batches = make_batches(vocab, described=described)
    first = batches.steps(9)
    before = TextBatches.plan.cache_info().misses
    for step in range(first, batches.steps(10)):
        batches.batch(step)
    assert TextBatches.plan.cache_info().misses == before + 1


def test_the_same_step_is_the_same_batch(vocab: Vocabulary) -> None:
    one, same = make_batches(vocab), make_batches(vocab)
    for step in (9, 0, 4):
        a, b = one.batch(step), same.batch(step)
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[2].item_listed, b[2].item_listed)


def test_epochs_shuffle_lists_differently(vocab: Vocabulary) -> None:
    batches = make_batches(vocab, described=0)
    per_epoch = len(batches.plan(0))
    first = {tuple(row) for step in range(per_epoch) for row in batches.batch(step)[0].tolist()}
    second = {tuple(row) for step in range(per_epoch, 2 * per_epoch) for row in batches.batch(step)[0].tolist()}
    assert first != second


def learnt_items(batch: GrammarTargets, row: int, vocab: Vocabulary) -> list[int]:
    """Items among the targets of the items' head, read off the arrays as the loss reads them."""
    targets, places, kinds = (np.asarray(x)[row] for x in (batch.targets, batch.item_positions, batch.item_kinds))
    found = [int(targets[place]) for place, kind in zip(places, kinds, strict=True) if kind != NO_TARGET]
    return [token for token in found if vocab.is_item(token)]


@pytest.mark.parametrize("n_items", [1, 3, 12, 13, 40, 60])
@pytest.mark.parametrize("known", [True, False])
def test_no_item_target_is_dropped(n_items: int, known: bool) -> None:
    """A user lists many films, then comes the suggestion; texts of the plan, and others that are packed."""
    vocab = Vocabulary.train(["i liked", "then see"] * 5, range(1, 80), 300)
    listed, suggestion = [vocab.item_token(number) for number in range(1, n_items + 1)], vocab.item_token(70)
    dense = (
        *(vocab.seeker, *listed, vocab.eos),
        *(vocab.recommender, vocab.rec, suggestion, vocab.say, suggestion, vocab.eos),
    )
    sparse = (vocab.seeker, 5, listed[0], vocab.eos)
    texts = tuple(map(Text, (sparse, dense) if known else (sparse,)))
    batches = TextBatches(texts, vocab, (64, 128), 256, 0)
    bucket = 64 if len(dense) <= 64 else 128
    _, _, batch = batches.pack([dense, sparse], bucket, np.random.default_rng(0))
    assert learnt_items(batch, 0, vocab) == [*listed, suggestion]
    assert learnt_items(batch, 1, vocab) == [listed[0]]
    # A bucket whose texts fit has its share of the length, whatever the other bucket needs.
    needed = n_items + 2  # And the end of the list.
    share = {64: 12, 128: 25}
    assert batches.rooms == (share | {bucket: max(share[bucket], needed)} if known else share)
    assert batch.item_positions.shape[1] == max(share[bucket], needed)


def test_what_cannot_be_learnt_is_said(caplog: pytest.LogCaptureFixture) -> None:
    vocab = Vocabulary.train(["i liked", "then see"] * 5, range(1, 41), 300)
    said = (
        Message("seeker", tuple(range(1, 31)), 0),
        Message("recommender", ("then see ", 31, 32, 33, " ", 33), 1),
        Message("recommender", ("or ", 34), 2),
    )
    dialogue = Dialogue("1", said, {}, {})
    dialogue_texts(vocab, [dialogue], max_tokens=64, max_listed=3)
    assert not caplog.text
    dialogue_texts(vocab, [dialogue, dialogue], max_tokens=21, max_listed=2)
    assert "2 suggestions come after the first 2 of their message" in caplog.text
    # Marker and twenty items fit; ten items and <eos> do not.
    assert "2 utterances are longer than 21 tokens and lose their end, 20 items in it" in caplog.text


def test_long_dialogues_are_cut_at_utterances(vocab: Vocabulary, dialogues: tuple[Dialogue, ...]) -> None:
    whole = dialogue_texts(vocab, dialogues, max_tokens=512, max_listed=5)
    longest = max(len(text.tokens) for text in whole)
    pieces = dialogue_texts(vocab, dialogues, max_tokens=longest - 1, max_listed=5)
    assert len(pieces) > len(whole) == 2
    assert [token for text in pieces for token in text.tokens] == [token for text in whole for token in text.tokens]
    for text in pieces:
        assert text.tokens[0] in (vocab.seeker, vocab.recommender)
        assert text.tokens[-1] == vocab.eos
