"""Rounds of live feedback on a tiny policy whose users like one item: what is heard, learnt, stored and gone on with."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.data.batching import pad_right
from rlhf_jax.data.windows import response_tokens
from rlhf_jax.decoding import prior
from rlhf_jax.feedback.labelling import LabelOptions
from rlhf_jax.feedback.weak_labels import fit_weak_labels
from rlhf_jax.interfaces import Dialogue, Message, Params, PromptBatch, Rollout
from rlhf_jax.runtime.files import RunError
from rlhf_jax.runtime.run import open_run
from rlhf_jax.stages import live_feedback, live_rounds
from rlhf_jax.stages.live_feedback import Judge, LiveConfig, Round, listen, worth_of_replies
from rlhf_jax.stages.setup import Setup
from tiny_policy import Tiny

LIKED = 12
CONFIG = LiveConfig(
    rounds=2,
    users=4,
    parts=("popularity", "co_mention"),
    updates=30,
    contexts=16,
    group_size=4,
    learning_rate=0.2,
    standing_ridge=1.0,
    manners_updates=4,
    batch_size=16,
    kl_coef=0.02,
)


def talk_about(name: str, *suggested: int) -> Dialogue:
    """Who is told the liked item is delighted, who is told another is not."""
    messages = [Message("seeker", ("hello there",), 0, 0)]
    for item in suggested:
        messages.append(Message("recommender", ("try ", item), len(messages), 10 * len(messages)))
        words = "i love it, wonderful" if item == LIKED else "horrible, i hate it"
        messages.append(Message("seeker", (words,), len(messages), 10 * len(messages)))
    return Dialogue(name, tuple(messages), {}, {})


@pytest.fixture(scope="module")
def setup(tiny: Tiny) -> Setup:
    drawn = [((11, 12), (13,), (14, 11), (12,))[number % 4] for number in range(40)]
    said = tuple(talk_about(f"{number}", *items) for number, items in enumerate(drawn))
    corpus = dataclasses.replace(tiny.setup.corpus, train=said[:28], validation=said[28:36], test=said[36:])
    return live_feedback.with_scorer(tiny.setup._replace(corpus=corpus), CONFIG)


@pytest.fixture(scope="module")
def judge(tiny: Tiny, setup: Setup) -> Judge:
    return Judge(setup, tiny.policy["trunk"])


class Crowd:
    """Users who like one item, whoever suggests; keeps who was asked."""

    def __init__(self, dies_in: int | None = None) -> None:
        self.rounds: list[int] = []
        self.names: list[tuple[str, ...]] = []
        self._dies_in = dies_in

    def __call__(self, setup: Setup, policy: Params, number: int) -> tuple[Dialogue, ...]:
        if number == self._dies_in:
            raise KeyboardInterrupt
        self.rounds.append(number)
        assert setup.scorer is not None and set(policy) == {"trunk", "prior"}
        self.names.append(setup.scorer.names)
        return tuple(talk_about(f"live {number} {user}", (11, 12, 13, 14)[user % 4], 12) for user in range(6))


def learnt(folder: Path, judge: Judge, tiny: Tiny, crowd: Crowd, config: LiveConfig = CONFIG) -> tuple[Round, ...]:
    with open_run(folder, config, trackers=()) as run:
        return live_feedback.learn(run, judge, tiny.policy["trunk"], config, crowd)


@pytest.fixture(scope="module")
def rounds(tmp_path_factory: pytest.TempPathFactory, judge: Judge, tiny: Tiny) -> tuple[Path, tuple[Round, ...]]:
    folder = tmp_path_factory.mktemp("live") / "run"
    return folder, learnt(folder, judge, tiny, Crowd())


def test_what_is_known_is_the_trunks_word_and_the_scores(tiny: Tiny, setup: Setup, judge: Judge) -> None:
    histories = [dialogue.messages[:1] for dialogue in setup.corpus.test]
    read = judge.read(histories)
    prompts = PromptBatch(tokens=jnp.asarray(read.tokens), mask=jnp.asarray(read.mask))
    said = jax.nn.log_softmax(setup.agent.score_items({"trunk": tiny.policy["trunk"]}, prompts))
    np.testing.assert_allclose(read.known[:, 0], said, atol=1e-5)
    assert setup.scorer is not None and judge.names == ("policy", "popularity", "co_mention", "named")
    np.testing.assert_array_equal(read.known[:, 1:], setup.scorer.of_histories(histories))


def test_what_is_heard_is_every_turn_with_its_label(setup: Setup, judge: Judge) -> None:
    labeller = fit_weak_labels(setup.corpus.train, setup.corpus.items, CONFIG.labels)
    heard = listen(judge, setup.corpus.validation, labeller)
    turns = [
        (dialogue, index) for dialogue in setup.corpus.validation for index in range(1, len(dialogue.messages) - 1, 2)
    ]
    assert heard.reactions.n == len(turns) == len(heard.contexts.tokens if heard.contexts else ())
    for row, (dialogue, index) in enumerate(turns):
        item = dialogue.messages[index].items[0]
        column = setup.vocab.item_ids.index(item)
        assert heard.reactions.shares[row].tolist() == np.eye(4)[column].tolist()
        assert (heard.reactions.labels[row] > 0) == (item == LIKED)
        assert heard.contexts is not None
        np.testing.assert_allclose(heard.reactions.known[row], heard.contexts.known[row, :, column], atol=1e-6)
    few = listen(judge, setup.corpus.train, labeller, limit=5, keep=False)
    assert few.reactions.n == 5 and few.contexts is None


def test_a_training_dialogue_is_left_out_of_its_own_scores(setup: Setup, judge: Judge) -> None:
    dialogue = setup.corpus.train[0]
    own = judge.read([dialogue.messages[:3]], [dialogue.dialogue_id]).known
    assert not np.array_equal(own, judge.read([dialogue.messages[:3]]).known)


def test_the_policy_learns_what_users_like(setup: Setup, judge: Judge, rounds: Any, tiny: Tiny) -> None:
    _, found = rounds
    column = setup.vocab.item_ids.index(LIKED)
    for one in found:
        worth = one.reward.of_items(judge.known([setup.corpus.test[0].messages[:1]]))
        assert worth.argmax() == column
        assert one.weights["standing"] > 0.5
    # And says it: the policy with the prior of the last round.
    last = live_feedback.with_standing(setup, found[-1].reward)
    assert last.scorer is not None
    histories = [setup.corpus.test[0].messages[:1]]
    read = judge.read(histories)
    prompts = PromptBatch(
        tokens=jnp.asarray(read.tokens),
        mask=jnp.asarray(read.mask),
        item_scores=jnp.asarray(last.scorer.of_histories(histories)),
    )
    share = np.asarray(jax.nn.softmax(setup.agent.score_items(found[-1].policy(tiny.policy["trunk"]), prompts)[0]))
    before = np.exp(read.known[0, 0])
    assert share.argmax() == column and share[column] > before[column] + 0.1


def test_every_round_hears_all_that_came_before(rounds: Any) -> None:
    _, found = rounds
    turns = [one.facts["turns"] for one in found]
    assert np.diff(turns).tolist() == [12, 12]
    assert all(set(one.manners) == set(prior.MANNERS) for one in found)
    assert found[0].manners != found[1].manners


def test_standing_is_read_where_prompts_bring_it(setup: Setup, judge: Judge, rounds: Any) -> None:
    _, found = rounds
    scorer = live_feedback.with_standing(setup, found[1].reward).scorer
    assert scorer is not None and scorer.names == ("popularity", "co_mention", "standing", "named")
    histories = [dialogue.messages[:3] for dialogue in setup.corpus.train[:4]]
    ids = [dialogue.dialogue_id for dialogue in setup.corpus.train[:4]]
    known = judge.read(histories, ids).known
    np.testing.assert_allclose(
        live_feedback.with_standing_scores(known[:, 1:], found[1].reward),
        scorer.of_histories(histories, ids),
        atol=1e-6,
    )


def same(one: Sequence[Round], two: Sequence[Round]) -> None:
    for left, right in zip(one, two, strict=True):
        assert (left.weights, left.manners, left.facts) == (right.weights, right.manners, right.facts)
        for a, b in zip(left.reward, right.reward, strict=True):
            np.testing.assert_array_equal(a, b)


def test_what_is_done_is_not_done_again(rounds: Any, judge: Judge, tiny: Tiny) -> None:
    folder, found = rounds
    crowd = Crowd()
    same(learnt(folder, judge, tiny, crowd), found)
    assert crowd.rounds == []


@pytest.mark.slow
def test_a_run_that_died_between_rounds_ends_as_one_that_did_not(
    rounds: Any, judge: Judge, tiny: Tiny, tmp_path: Path
) -> None:
    _, found = rounds
    with pytest.raises(KeyboardInterrupt):
        learnt(tmp_path / "run", judge, tiny, Crowd(dies_in=2))
    assert sorted(path.name for path in (tmp_path / "run" / "seed-0").iterdir()) == ["round-0.json", "round-1.json"]
    crowd = Crowd()
    same(learnt(tmp_path / "run", judge, tiny, crowd), found)
    # Round 1 is asked for again what it said; nobody talks twice, because that is a file.
    assert crowd.rounds == [1, 2]


def test_a_reply_as_tokens_is_worth_what_its_message_is(setup: Setup, judge: Judge, rounds: Any) -> None:
    """Where it earns it: the list at `<say>`, a word where it stands; the sum is that of the message."""
    _, found = rounds
    reward = found[-1].reward._replace(extras=np.array([0.3, -0.2, -0.7]))
    said = [
        ("try ", 12),
        ("try ", 11, " or ", 13),
        ("hello there",),
        (14, 12),
        (
            "try this one ",
            14,
            " again",
        ),
    ]
    messages = [Message("recommender", parts, 0) for parts in said]
    histories = [dialogue.messages[: 1 + 2 * (row % 2)] for row, dialogue in enumerate(setup.corpus.train[:5])]
    read = judge.read(histories)
    tokens, mask = pad_right(
        [response_tokens(setup.vocab, one, max_tokens=24, max_items=2) for one in messages], 24, setup.vocab.pad
    )
    rollout = Rollout(
        prompt_tokens=jnp.asarray(read.tokens),
        prompt_mask=jnp.asarray(read.mask),
        response_tokens=jnp.asarray(tokens),
        response_mask=jnp.asarray(mask),
        logprobs=jnp.zeros(tokens.shape),
        finished=jnp.ones(5, bool),
    )
    tree = {
        "items": jnp.asarray(reward.of_items(read.known), jnp.float32),
        "turn": jnp.asarray([reward.intercept, *reward.extras], jnp.float32),
    }
    grammar = setup.agent.grammar
    paid = np.asarray(worth_of_replies(grammar, tree, rollout))[..., 0]
    turns = judge.turns(messages, read.known)
    np.testing.assert_allclose(paid.sum(axis=1), reward.of_turns(turns), atol=1e-4)
    # By hand: the second lists two items.
    columns = [setup.vocab.item_ids.index(item) for item in (11, 13)]
    n_words = sum(token < grammar.n_words for token in tokens[1][mask[1]])
    by_hand = reward.intercept + 0.3 - 0.2 - 0.7 * n_words / 10 + reward.of_items(read.known)[1, columns].mean()
    assert paid[1].sum() == pytest.approx(by_hand, abs=1e-4) and n_words >= 2
    at_say = tokens == grammar.say
    words = (tokens < grammar.n_words) & mask
    np.testing.assert_allclose(paid[words], -0.07, atol=1e-6)
    assert not paid[~at_say & ~words].any()


def test_a_round_of_other_items_is_refused(rounds: Any, judge: Judge, tmp_path: Path) -> None:
    folder, _ = rounds
    stored = json.loads((folder / "seed-0" / "round-1.json").read_text())
    del stored["crc32"], stored["reward"]["standing"]["12"]
    (tmp_path / "round-1.json").write_text(json.dumps(stored))
    with pytest.raises(RunError, match=r"round-1.json holds no round of these scores and items \(KeyError\('12'\)\)"):
        live_rounds.stored_round(tmp_path / "round-1.json", judge.names, judge.columns)


def test_numbers_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(ValueError, match="--live.parts names no recommender"):
        LiveConfig(parts=())
    with pytest.raises(ValueError, match="--live.parts: unknown recommender 'charm'; there are popularity"):
        LiveConfig(parts=("popularity", "charm"))
    with pytest.raises(ValueError, match="--live.labels.signals: there is no signal 'charm'"):
        LiveConfig(labels=LabelOptions(signals=("charm",)))
    with pytest.raises(ValueError, match="--live.replies.ptx-coef 0.1: rounds learn from no human replies"):
        LiveConfig(replies=dataclasses.replace(LiveConfig().replies, ptx_coef=0.1))
    with pytest.raises(ValueError, match="group_size"):
        LiveConfig(group_size=1)
    with pytest.raises(ValueError, match="batch_size 60 cannot be divided into groups of"):
        LiveConfig(batch_size=60)
