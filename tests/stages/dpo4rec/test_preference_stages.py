"""DPO4Rec's stages on made-up ratings: who may see what, texts, feedback, pairs, and that the loop learns from them."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.data.preference_texts import LIKES, PreferenceText, full_text
from rlhf_jax.data.rating_lists import candidate_lists, read_part
from rlhf_jax.evaluation.reranking import list_values
from rlhf_jax.learners import dpo
from rlhf_jax.learners.dpo_config import DPOConfig
from rlhf_jax.models import gpt2, rerankers
from rlhf_jax.models.rerankers import ItemTable
from rlhf_jax.runtime.files import RunError
from rlhf_jax.runtime.metrics import read_metrics
from rlhf_jax.runtime.run import open_run
from rlhf_jax.stages.dpo4rec import preference, preference_setup, reranker, text_writer
from rlhf_jax.stages.dpo4rec.preference import PairsConfig, compared
from rlhf_jax.stages.dpo4rec.preference_setup import PreferenceSetup, RatingsConfig
from rlhf_jax.stages.dpo4rec.reranker import Lists, RerankConfig, Reranker, TextPool
from rlhf_jax.stages.dpo4rec.text_writer import WriterConfig
from rlhf_jax.stages.setup import ModelConfig

MODEL = ModelConfig(n_layer=1, n_embd=32, n_head=2, n_positions=128, dropout=0.0)


@pytest.fixture(scope="module")
def setup() -> PreferenceSetup:
    return preference_setup.set_up(RatingsConfig(source="world"), MODEL, seed=0)


@pytest.fixture(scope="module")
def writer(setup: PreferenceSetup) -> Any:
    return {"trunk": gpt2.init(setup.writer.network, jax.random.key(0))}


@pytest.fixture(scope="module")
def lists(setup: PreferenceSetup) -> dict[str, Lists]:
    counted = reranker.count(setup)
    return {
        name: reranker.known_lists(
            setup,
            counted,
            candidate_lists(setup.corpus, getattr(setup.split, name), negatives="uniform", popularity=setup.popularity),
        )
        for name in ("pairs", "validation", "test", "train")
    }


def of_kind(setup: PreferenceSetup, sizes: rerankers.RerankerConfig) -> Reranker:
    items = ItemTable(
        attributes=jnp.asarray(setup.attributes.has),
        text=jnp.asarray(reranker.encode_items(setup.code, setup.attributes)),
    )
    return Reranker(sizes, rerankers.init(sizes, jax.random.key(1), items, 2), items)


def test_no_window_of_a_text_holds_what_a_list_of_its_user_asks(setup: PreferenceSetup) -> None:
    histories = text_writer.windows_of(setup)
    n_scorer = len(setup.split.scorer)
    for user, history in zip(setup.split.pairs, histories[n_scorer:], strict=True):
        asked = candidate_lists(setup.corpus, np.array([user]), negatives="uniform", popularity=setup.popularity)
        assert not set(history.items.tolist()) & set(asked.items[asked.labels > 0].tolist())
    allowed = {tuple(one.items.tolist()) for one in histories}
    for user in (*setup.split.test, *setup.split.validation):
        assert tuple(setup.corpus.histories[user].items.tolist()) not in allowed
    counted = reranker.count(setup)
    assert counted.users.sum() == sum(len(setup.corpus.histories[user].items) for user in setup.split.train)


def test_counts_leave_the_lists_own_user_out(setup: PreferenceSetup, lists: dict[str, Lists]) -> None:
    known, counted = lists["train"], reranker.count(setup)
    logs = np.log1p(counted.users)
    for row in range(0, len(known.lists.users), 7):
        user = int(known.lists.users[row])
        for place, item in enumerate(known.lists.items[row]):
            others = [
                float(one.ratings[one.items == item][0])
                for other in setup.split.train
                if other != user and item in (one := setup.corpus.histories[other]).items
            ]
            n, mean = known.counts[row, place]
            assert n == pytest.approx((np.log1p(len(others)) - logs.mean()) / logs.std(), abs=1e-5)
            shrunk = (sum(others) + 5 * counted.mean) / (len(others) + 5)
            assert mean == pytest.approx(shrunk - counted.mean, abs=1e-5)


@pytest.mark.slow
def test_the_writer_learns_the_teachers_language_and_continues_to_the_bit(
    setup: PreferenceSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = WriterConfig(steps=12, batch_size=16, warmup_steps=2, evaluations=3, learning_rate=5e-3)
    with open_run(tmp_path / "whole", config, trackers=()) as run:
        whole = text_writer.train(run, setup, config)
        lines = (run.path / "metrics.jsonl").read_text().splitlines()
    losses = [float(line.split('"loss": ')[1].split(",")[0]) for line in lines if '"loss"' in line]
    assert losses[-1] < 0.93 * losses[0]
    # Killed after the first save, a second process ends with the same numbers.
    calls = {"n": 0}
    made = text_writer.teacher_batch

    def killed(*arguments: Any) -> Any:
        calls["n"] += 1
        if calls["n"] == 7:
            raise KeyboardInterrupt
        return made(*arguments)

    monkeypatch.setattr(text_writer, "teacher_batch", killed)
    with pytest.raises(KeyboardInterrupt), open_run(tmp_path / "cut", config, trackers=()) as run:
        text_writer.train(run, setup, config)
    monkeypatch.setattr(text_writer, "teacher_batch", made)
    with open_run(tmp_path / "cut", config, trackers=()) as run:
        again = text_writer.train(run, setup, config)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_text_hangs_on_user_and_number_not_on_the_batch(setup: PreferenceSetup, writer: Any) -> None:
    users = setup.split.test
    alone = text_writer.write(setup, writer, users[2:3], n=3, stream="x")
    among = text_writer.write(setup, writer, users, n=3, stream="x", batch_size=4)
    np.testing.assert_array_equal(alone[0], among[2])
    assert (text_writer.write(setup, writer, users, n=3, stream="y") != among).any()
    real = text_writer.real_tokens(setup, among)
    for row, mask in zip(among.reshape(-1, among.shape[2]), real.reshape(-1, among.shape[2]), strict=True):
        # What is judged of a text is all up to its end, and nothing behind it.
        ends = np.flatnonzero(row == setup.vocab.eos)
        n = ends[0] + 1 if len(ends) else len(row)
        assert mask.sum() == n and mask[:n].all() and (row[n:] == setup.vocab.pad).all()


def test_whatever_the_parameters_a_text_has_the_form_of_the_teachers(setup: PreferenceSetup, writer: Any) -> None:
    tokens = text_writer.write(setup, writer, setup.split.test, n=20, stream="form")
    assert preference.quality_of_texts(setup, tokens)["text/well_formed"] == 1.0
    said = {text.words for text in text_writer.read_texts(setup, tokens)}
    assert len(said) > 80 and {words[0] for words in said} == {"likes", "avoids", "from", "rates", "picks"}
    # And what the teacher writes is possible, whatever it draws.
    everyone = np.arange(len(setup.corpus.users))
    taught = text_writer.taught_tokens(setup, WriterConfig(spread=50.0), 8)[everyone]
    given = text_writer.given_rollout(
        tuple(np.repeat(array, 8, axis=0) for array in text_writer.prompts_of(setup, everyone)),
        (taught.reshape(-1, taught.shape[2]), text_writer.real_tokens(setup, taught).reshape(-1, taught.shape[2])),
    )
    assert np.isfinite(dpo.response_logprobs(setup.writer.policy, writer, given)).all()


@pytest.mark.slow
def test_a_text_is_paid_the_mean_of_its_users_lists(setup: PreferenceSetup, lists: dict[str, Lists]) -> None:
    found, known = of_kind(setup, RerankConfig(width=8).sizes("text")), lists["pairs"]
    users = np.unique(known.lists.users)
    draws = np.random.default_rng(0)
    texts = TextPool(users, draws.normal(size=(len(users), 3, setup.code.width)).astype(np.float32))
    same, paid = reranker.text_rewards(found, known, texts)
    np.testing.assert_array_equal(same, users)
    for row in (0, len(users) - 1):
        for text in range(3):
            own = np.flatnonzero(known.lists.users == users[row])
            inputs = known.inputs(own, np.repeat(texts.vectors[row, text][None], len(own), axis=0))
            inputs = jax.tree.map(jnp.asarray, inputs)
            scores = np.asarray(rerankers.scores(found.config, found.params, inputs, found.items))
            expected = list_values("ndcg@5", scores, known.lists.labels[own]).mean()
            assert paid[row, text] == pytest.approx(expected, abs=1e-6)
    assert len(np.unique(paid[0])) > 1


@pytest.mark.slow
def test_the_reranker_uses_a_text_that_tells(setup: PreferenceSetup, lists: dict[str, Lists], tmp_path: Path) -> None:
    everyone = np.arange(len(setup.corpus.users))
    told = reranker.pool(setup, everyone, [[full_text(one)] for one in setup.tastes(everyone)])
    config = RerankConfig(width=16, epochs=25, batch_size=32, learning_rate=3e-3, dropout=0.0, patience=None)
    with open_run(tmp_path / "run", config, trackers=()) as run:
        found = reranker.train(run, setup, (lists["train"], lists["train"]), (told, told), config, name="told")
        read = [one for one in read_metrics(run.path / "metrics.jsonl") if "validation/read" in one]
    # All passes are made, and what is logged says that the text is read.
    assert len(read) == 25 and read[-1]["validation/read"] > 0.02
    own = reranker.text_values(found, lists["train"], told).mean()
    others = TextPool(told.users, np.roll(told.vectors, 1, axis=0))
    assert own > reranker.text_values(found, lists["train"], others).mean() + 0.02


def test_shuffled_texts_are_the_same_texts_and_nobodys_own() -> None:
    vectors = np.arange(14, dtype=np.float32).reshape(7, 2, 1)
    found = reranker.shuffled(TextPool(np.arange(7), vectors), np.arange(7), seed=3)
    assert sorted(found.vectors.ravel()) == sorted(vectors.ravel())
    assert (found.vectors != vectors).all()
    some = reranker.shuffled(TextPool(np.arange(7), vectors), np.array([2, 5]), seed=3)
    assert some.vectors.ravel().tolist() == [10, 11, 4, 5] and some.users.tolist() == [2, 5]
    # A user's texts stay together.
    assert {tuple(own.ravel()) for own in found.vectors} == {tuple(own.ravel()) for own in vectors}


def test_pairs_leave_out_ties_and_compare_from_outside_in() -> None:
    rewards = np.array([[0.1, 0.4, 0.2, 0.3], [0.5, 0.5, 0.5, 0.5], [0.2, 0.2, 0.7, 0.2]])
    picked, of_user = compared(rewards, per_user=2, every=False)
    # The third user's second best and second worst are paid the same.
    assert picked.tolist() == [[1, 0], [3, 2], [2, 3]] and of_user.tolist() == [0, 0, 2]
    picked, of_user = compared(rewards, per_user=1, every=True)
    assert picked[:, 0].tolist() == [1, 2] and of_user.tolist() == [0, 2] and picked.shape == (2, 4)
    assert not len(compared(np.ones((3, 4)), per_user=1, every=False)[0])


def test_texts_that_are_all_paid_the_same_end_the_run(
    setup: PreferenceSetup, writer: Any, lists: dict[str, Lists]
) -> None:
    blind = of_kind(setup, RerankConfig(width=8).sizes("none"))
    with pytest.raises(RunError, match=r"the 2 texts of each of \d+ users are all paid the same"):
        preference.mine(
            setup, writer, blind, lists["pairs"], PairsConfig(samples=2, per_user=1), stream="x", every=False
        )


@pytest.mark.slow
def test_dpo_moves_the_writer_towards_what_is_paid(
    setup: PreferenceSetup, writer: Any, lists: dict[str, Lists], tmp_path: Path
) -> None:
    """The reward is made by hand, and says one thing: the shorter the text, the better."""
    known, found = lists["pairs"], of_kind(setup, RerankConfig(width=8).sizes("text"))
    users = np.unique(known.lists.users)
    tokens = text_writer.write(setup, writer, users, n=8, stream="x")
    rewards = -(tokens != setup.vocab.pad).sum(axis=2).astype(float)
    picked, of_user = compared(rewards, per_user=2, every=False)
    mined = preference.Mined(users, tokens, rewards, picked, of_user)
    assert mined.kept <= len(users) and (rewards.max(axis=1) > rewards.mean(axis=1)).any()
    batch = preference.preference_batch(setup, writer, mined)
    np.testing.assert_array_equal(batch.response_tokens[:, 0], tokens[of_user, picked[:, 0]])
    judged = dpo.response_logprobs(setup.writer.policy, writer, dpo.as_rollout(batch)).reshape(-1, 2)
    np.testing.assert_allclose(batch.ref_logprobs, judged, atol=1e-4)
    config = DPOConfig(beta=0.1, learning_rate=3e-3, epochs=4, batch_size=16)
    with open_run(tmp_path / "run", config, trackers=()) as run:
        moved = preference.train(
            run, setup, writer, batch, config, name="short", validation=(found, lists["validation"])
        )
        text = (run.path / "metrics.jsonl").read_text()
    assert "rewards/margin" in text and "validation/ndcg@5" in text and "text/well_formed" in text
    after = text_writer.write(setup, moved, users, n=8, stream="x")
    assert (after != setup.vocab.pad).sum() < 0.8 * (tokens != setup.vocab.pad).sum()


def test_titles_are_in_the_grammar_only_where_texts_may_name_them(setup: PreferenceSetup) -> None:
    assert all(opening.follows == "words" for opening in setup.writer.grammar.forms)
    named = preference_setup.set_up(RatingsConfig(source="world", titles=2, title_width=4), MODEL, seed=0)
    assert {opening.follows for opening in named.writer.grammar.forms} == {"list", "words"}
    assert named.code.width == setup.code.width + 4
    user = named.split.test[:1]
    taste = named.tastes(user)[0]
    text = full_text(taste, titles=2)
    read = read_part(named.corpus.histories[user[0]])
    assert set(text.titles) <= set(read.items.tolist()) and named.vocab.text(named.vocab.response(text)) == text
    vectors = preference.as_pool(named, user, np.array([[named.vocab.response(text)]])).vectors[0, 0]
    # The longest text that the teacher may write fits.
    longest = PreferenceText(
        tuple(
            word
            for section in ("likes", "avoids", "from")
            for word in (section, *named.attributes.kinds[:5])[: {"likes": 6, "avoids": 5, "from": 4}[section]]
        )
        + ("rates", "fairly", "picks", "known"),
        (0, 1),
    )
    assert len(named.vocab.response(longest)) == named.writer.response_tokens
    np.testing.assert_allclose(vectors[-4:], named.code.titles[list(text.titles)].mean(axis=0), rtol=1e-6)


def test_sections_keep_apart_what_a_bag_of_words_confuses(setup: PreferenceSetup) -> None:
    a, b = setup.attributes.kinds[:2]
    one, other = ((LIKES, a, "avoids", b), (LIKES, b, "avoids", a))
    vectors = reranker.encode_texts(setup.code, [PreferenceText(one), PreferenceText(other)])
    assert (vectors[0] != vectors[1]).any()
    item = int(np.flatnonzero(setup.attributes.has[:, 0] == 1)[0])
    items = reranker.encode_items(setup.code, setup.attributes)
    assert vectors[0] @ items[item] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "movielens"}, "--data.dir must name the folder"),
        ({"source": "movielens", "dir": Path("nowhere")}, "--data.dir nowhere: nowhere has neither u.data"),
        ({"source": "world", "max_users": 12}, "12 users: lists need at least 20"),
    ],
)
def test_ratings_that_cannot_be_read_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RunError, match=message):
        preference_setup.set_up(dataclasses.replace(RatingsConfig(source="world"), **change), MODEL, seed=0)
