"""The user simulator: its texts, its losses against NumPy, what it may not say, what it learns."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.assessment import simulator as assessment
from rlhf_jax.assessment.seeker_talk import SeekerTalk, StoredSeeker
from rlhf_jax.data.attributes import Attributes, attributes
from rlhf_jax.data.spelled_titles import SpelledTitles
from rlhf_jax.data.vocabulary import Vocabulary
from rlhf_jax.evaluation.results import Result
from rlhf_jax.interfaces import Corpus, Dialogue, Item, ItemLabel, Message, Params
from rlhf_jax.models import gpt2
from rlhf_jax.recommenders import mixture
from rlhf_jax.recommenders.contexts import contexts_of
from rlhf_jax.recommenders.scorer import fit_scorer
from rlhf_jax.runtime.files import RunError
from rlhf_jax.runtime.run import open_run
from rlhf_jax.simulators.composed_feedback import Composer
from rlhf_jax.stages.agent import make_agent
from rlhf_jax.stages.items import ItemKnowledge
from rlhf_jax.stages.setup import DataConfig, Setup
from rlhf_jax.stages.smtpo import simulator as stage
from rlhf_jax.stages.smtpo.human_turns import openings_of
from rlhf_jax.stages.smtpo.seeker import SeekerSimulator
from rlhf_jax.stages.smtpo.seeker_loss import TaskWeights, init_attributes, simulator_loss
from rlhf_jax.stages.smtpo.seeker_texts import (
    Said,
    SeekerBatch,
    SeekerBatches,
    as_said,
    attribute_rates,
    composed_dialogues,
    seeker_descriptions,
    seeker_texts,
    suggestion_counts,
)
from rlhf_jax.stages.smtpo.simulator import SimulatorConfig
from rlhf_jax.stages.supervised import SupervisedConfig

WISHES = ("scary", "funny", "sad", "slow")
GENRES = ("horror", "comedy", "drama", "noir")
WIDTH = 32
CONFIG = SimulatorConfig(
    epochs=5,
    description_epochs=0,
    max_tokens=40,
    buckets=(40,),
    tokens_per_batch=160,
    learning_rate=0.003,
    warmup_steps=4,
    average_decay=0.8,
    patience=None,
    saves_per_epoch=1,
    response_tokens=8,
)


def talk(number: int) -> Dialogue:
    """Who wants 'scary' refuses item 20 and likes item 10, who wants 'funny' 11, …; items 14 to 17 are never spoken of."""
    wish = number % 4
    spoken: list[tuple[Any, tuple[str | int, ...]]] = [
        ("seeker", (f"something {WISHES[wish]}",)),
        ("recommender", ("try ", 20)),
        ("seeker", (f"not that, rather {WISHES[wish]}",)),
        ("recommender", ("or ", 10 + wish)),
        ("seeker", ("i take ", 10 + wish)),
    ]
    forms = {20: ItemLabel(1, 0, 0), 10 + wish: ItemLabel(1, 0, 1)}
    messages = tuple(Message(role, words, n) for n, (role, words) in enumerate(spoken))
    return Dialogue(f"d{number}", messages, forms, forms)


@pytest.fixture(scope="module")
def setup() -> Setup:
    items = {10 + n: Item(item_id=10 + n, title=f"Zigzag {n}", genres=(GENRES[n % 4],)) for n in range(8)}
    items[20] = Item(item_id=20, title="Matrix (1999)", year=1999)
    items[21] = Item(item_id=21, title="zzzzzzzz")
    dialogues = tuple(map(talk, range(48)))
    corpus = Corpus(
        train=dialogues[:32], validation=dialogues[32:40], test=dialogues[40:], items=items, provenance={"n_skipped": 0}
    )
    said = [part for one in dialogues for message in one.messages for part in message.parts if isinstance(part, str)]
    vocab = Vocabulary.train([*said, "the matrix"] * 2, items, 330, multiple=8)
    network = gpt2.GPT2Config(vocab_size=vocab.size, n_positions=48, n_embd=WIDTH, n_layer=1, n_head=2, dropout=0.0)
    data = DataConfig(window=6, context_tokens=40, response_tokens=8, max_items=2)
    return Setup(data, corpus, vocab, make_agent(vocab, network, max_items=2, response_tokens=8), seed=0)


@pytest.fixture(scope="module")
def known(setup: Setup) -> Attributes:
    return attributes(setup.corpus.items, setup.vocab.item_ids)


@pytest.fixture(scope="module")
def params(setup: Setup, known: Attributes) -> Params:
    trunk = gpt2.init(setup.network, jax.random.key(0))
    trunk = jax.tree.map(lambda leaf: leaf * 8.0 if leaf.ndim == 2 else leaf, trunk)
    head = init_attributes(jax.random.key(1), WIDTH, np.full(len(known.names), 0.3, np.float32))
    return {"trunk": trunk, "attributes": head}


def telling(setup: Setup) -> dict[int, tuple[int, ...]]:
    return SpelledTitles.of(setup.corpus.items).first_tokens(setup.vocab, setup.corpus.items)


def learnt_words(setup: Setup, said: Said) -> list[str]:
    (text,) = seeker_texts(setup.vocab, [said], max_tokens=60, telling=telling(setup))
    chosen = [token for token, learnt in zip(text.tokens, text.learnt, strict=True) if learnt]
    return setup.vocab.decode(chosen, placeholder="ITEM", specials=True).split()


def test_a_dialogue_as_a_row(setup: Setup) -> None:
    vocab = setup.vocab
    (text,) = seeker_texts(vocab, [as_said(talk(1))], max_tokens=60, telling={})
    markers = [place for place, token in enumerate(text.tokens) if token in (vocab.seeker, vocab.recommender)]
    # Asked at every message up to the one that names it; not after it.
    assert text.places == tuple(markers[:4]) and set(text.gold) == {(vocab.item_index(11),)}
    words = learnt_words(setup, as_said(talk(1)))
    assert " ".join(words) == "something funny <eos> not that, rather funny <eos> i take ITEM <eos>"
    pieces = seeker_texts(vocab, [as_said(talk(1))], max_tokens=12, telling={})
    assert len(pieces) > 1 and max(len(piece.tokens) for piece in pieces) <= 12
    assert sum(len(piece.places) for piece in pieces) == 4
    assert seeker_texts(vocab, [Said((Message("recommender", ("hi",), 0),), ((),))], max_tokens=9, telling={}) == []


def test_what_gives_a_target_away_is_no_target_of_training(setup: Setup) -> None:
    messages = (
        Message("recommender", ("hi",), 0),
        Message("seeker", ("the matrix, or ", 20), 1),
        Message("seeker", ("the matrix rather",), 2),
        Message("recommender", ("try ", 20), 3),
        Message("seeker", ("the matrix ", 20), 4),
    )
    words = learnt_words(setup, Said(messages, ((20,), (20,), (20,), (20,), ())))
    # The message that names it before the recommender is not learnt at all, the word of its title nowhere before.
    assert " ".join(words) == "the rather <eos> the matrix ITEM <eos>"


def test_descriptions_ask_for_their_item(setup: Setup) -> None:
    texts = seeker_descriptions(setup.vocab, setup.corpus.items, max_tokens=48)
    assert {text.gold[0][0] for text in texts} == set(range(setup.vocab.n_items))
    assert all(text.tokens[text.places[0]] == setup.vocab.recommender and not any(text.learnt) for text in texts)


def test_composed_dialogues_answer_what_was_never_suggested(setup: Setup) -> None:
    train, items = setup.corpus.train, setup.corpus.items
    composer = Composer(items, SpelledTitles.of(items))
    assert composed_dialogues(train, composer, share=0.0, most=2, seed=0) == []
    found = composed_dialogues(train, composer, share=0.5, most=2, seed=0)
    assert len(found) == 16
    assert [one.messages for one in found] == [
        one.messages for one in composed_dialogues(train, composer, share=0.5, most=2, seed=0)
    ]
    assert found != composed_dialogues(train, composer, share=0.5, most=2, seed=1)
    for said in found:
        suggested, gold = said.messages[-2].items, said.gold[-1]
        named = {item for message in said.messages[:-2] for item in message.items}
        assert 1 <= len(suggested) <= 2 and gold and not set(suggested) & ({*gold} | named)
        assert said.learnt_from == len(said.messages) - 2 and not any(said.gold[:-1])
        assert not composer.titles.tells(said.messages[-1].parts, gold)
        # Only the answer is learnt.
        assert " ".join(learnt_words(setup, said)[:-1]) == str(said.messages[-1].parts[0]).lower().strip()


def batch_of(setup: Setup, known: Attributes) -> SeekerBatch:
    """Two rows of other lengths, the second with two gold items at its first marker, and padding."""
    said = [as_said(talk(2)), Said(talk(3).messages[:3], ((13, 15), (13,), ()))]
    texts = seeker_texts(setup.vocab, said, max_tokens=40, telling={})
    batches = SeekerBatches.of(texts, known, setup.vocab, buckets=(40,), tokens_per_batch=120, seed=0)
    return batches.pack(texts, 40)


def nothing_shared(setup: Setup) -> ItemKnowledge:
    empty = jnp.zeros((setup.vocab.n_items, 0), jnp.int32)
    return ItemKnowledge(titles=empty, metadata=empty, features=empty)


def losses(setup: Setup, params: Params, batch: SeekerBatch, weights: TaskWeights) -> Any:
    def loss(params: Params) -> tuple[Any, Any]:
        sums = simulator_loss(
            {**params, "item_features": jnp.zeros((1, WIDTH))},
            batch,
            None,
            knowledge=nothing_shared(setup),
            network=setup.network,
            grammar=setup.agent.grammar,
            weights=weights,
        )
        return sums.loss, sums

    return jax.jit(jax.grad(loss, has_aux=True))(params)


def test_the_losses_are_those_of_their_definitions(setup: Setup, known: Attributes, params: Params) -> None:
    vocab, batch = setup.vocab, batch_of(setup, known)
    _, sums = losses(setup, params, batch, TaskWeights(1.0, 0.5, 3.0))
    hidden = np.asarray(gpt2.hidden_states(setup.network, params["trunk"], batch.tokens, batch.mask), np.float64)
    logits = hidden @ np.asarray(params["trunk"]["wte"], np.float64).T
    language, target, bce = [], [], []
    for row, tokens in enumerate(np.asarray(batch.tokens)):
        for place, learnt in enumerate(np.asarray(batch.learnt)[row]):
            if learnt:
                named = [token for token in set(tokens[: place + 1].tolist()) if vocab.is_item(token)]
                among = [*range(vocab.n_words), vocab.eos, *named]
                language.append(np.log(np.exp(logits[row, place, among]).sum()) - logits[row, place, tokens[place + 1]])
        for number, place in enumerate(np.asarray(batch.places)[row]):
            if place >= 0:
                fresh = [vocab.item_token(item) for item in vocab.item_ids]
                fresh = [token for token in fresh if token not in tokens[: place + 1]]
                gold = [int(column) for column in batch.gold[row, number] if column >= 0]
                scores = np.exp(logits[row, place])
                target.append(np.log(scores[fresh].sum()) - np.log(sum(scores[vocab.first_item + c] for c in gold)))
                wanted = known.of_items[gold].any(axis=0)
                odds = hidden[row, place] @ np.asarray(params["attributes"]["kernel"], np.float64)
                odds = odds + np.asarray(params["attributes"]["bias"])
                bce.append(-np.where(wanted, -np.log1p(np.exp(-odds)), -np.log1p(np.exp(odds))).sum())
    assert len(target) == 6 and len(language) > 10
    for name, values in (("language_nll", language), ("target_nll", target), ("attribute_bce", bce)):
        total, count = sums.parts[name]
        assert total == pytest.approx(sum(values), rel=1e-4), name
        assert count == len(values)
    assert sums.loss == pytest.approx(sum(language) + 0.5 * sum(bce) + 3.0 * sum(target), rel=1e-4)
    assert sums.count == pytest.approx(len(language) + 3.5 * len(target))


@pytest.mark.parametrize("task", [0, 1, 2])
def test_a_task_of_weight_0_is_off(setup: Setup, known: Attributes, params: Params, task: int) -> None:
    names = ("language_nll", "attribute_bce", "target_nll")
    weights = TaskWeights(*(2.0 * (place == task) for place in range(3)))
    gradient, sums = losses(setup, params, batch_of(setup, known), weights)
    assert [*sums.parts] == [names[task]]
    total, count = sums.parts[names[task]]
    assert sums.loss == pytest.approx(2.0 * total) and sums.count == pytest.approx(2.0 * count)
    assert bool(jnp.any(gradient["attributes"]["kernel"] != 0)) == (task == 1)


def saying(setup: Setup, params: Params, token: int) -> Params:
    """A trunk that wants to say one token and nothing else."""
    trunk = params["trunk"]
    direction = jnp.zeros(WIDTH).at[0].set(10.0)
    table = trunk["wte"].at[:, 0].set(0.0).at[token].set(direction)
    norm = {"scale": jnp.zeros(WIDTH), "bias": direction}
    return {**params, "trunk": {**trunk, "wte": table, "ln_f": norm}}


def test_a_hidden_target_is_not_said_however_much_it_wants_to_be(setup: Setup, params: Params) -> None:
    vocab, history = setup.vocab, talk(0).messages[:2]
    key = jax.random.key(0)

    def said(token: int, blocked: list[int]) -> Any:
        answers = SeekerSimulator(setup, saying(setup, params, token), CONFIG).say([history], [blocked], key)
        return answers, answers.messages[0].parts

    # Named items may be spoken of, hidden ones not, and those nobody has named never.
    assert said(vocab.item_token(20), [])[1] == (20,) * 8
    for token, blocked in ((vocab.item_token(20), [20]), (vocab.item_token(10), [])):
        answers, parts = said(token, blocked)
        assert (
            20 not in parts
            and 10 not in parts
            and (answers.leaks.tolist(), answers.leaks_left.tolist()) == ([False], [False])
        )
    # The word of its title, as one token.
    matrix = vocab.encode_text(" matrix")
    assert len(matrix) == 1 and "matrix" in said(matrix[0], [])[1][0]
    answers, parts = said(matrix[0], [20])
    assert "matrix" not in str(parts) and not answers.leaks.any()
    # Spelled letter by letter: no mask forbids z, so the text is cut.
    letter = vocab.encode_text("z")
    assert said(letter[0], [])[1] == ("zzzzzzzz",)
    answers, parts = said(letter[0], [21])
    assert parts == ("...",) and (answers.leaks.tolist(), answers.leaks_left.tolist()) == ([True], [False])


def test_it_reads_no_form_and_a_row_draws_for_itself(setup: Setup, known: Attributes, params: Params) -> None:
    simulator = SeekerSimulator(setup, params, CONFIG)
    dialogues = setup.corpus.test
    stripped = [dataclasses.replace(one, seeker_labels={}, recommender_labels={}) for one in dialogues]
    key = jax.random.key(3)
    found = []
    for group in (dialogues, stripped):
        histories = [one.messages[:2] for one in group]
        found.append(
            (
                simulator.say(histories, [[]] * len(histories), key).messages,
                *(array.tolist() for array in simulator.expects(histories)),
            )
        )
    assert found[0] == found[1]
    messages, logprobs, probabilities = found[0]
    assert {message.role for message in messages} == {"seeker"} and len({message.parts for message in messages}) > 2
    np.testing.assert_allclose(np.exp(logprobs).sum(axis=1), 1.0, rtol=1e-5)
    assert np.isneginf(np.array(logprobs)[:, setup.vocab.item_index(20)]).all()
    assert np.shape(probabilities) == (8, len(known.names))
    # Nine rows are padded to sixteen, three to eight.
    nine = simulator.say([one.messages[:2] for one in [*dialogues, dialogues[0]]], [[]] * 9, key).messages
    three = simulator.say([one.messages[:2] for one in dialogues[:3]], [[]] * 3, key).messages
    assert nine[:8] == messages and three == messages[:3]
    assert simulator.say([], [], key).messages == [] and simulator.expects([]).items.shape == (0, setup.vocab.n_items)
    with pytest.raises(ValueError, match="1 histories and 0 sets"):
        simulator.say([dialogues[0].messages], [], key)


@pytest.fixture
def kept_programs(program_cache: Path) -> Iterator[None]:
    """One step is compiled for three runs."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: jax.config.values[name] for name in names}
    for name, value in zip(names, (str(program_cache), 0), strict=True):
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def trained(setup: Setup, known: Attributes, folder: Path, config: SimulatorConfig, seed: int = 0) -> Params:
    """Each training dialogue four times an epoch: evaluations and checkpoints cost more than steps here."""
    with open_run(folder, config, trackers=()) as run:
        dialogues = setup.corpus.train * 4
        return stage.train(run, setup, dialogues, config, attributes=known, seed=seed, stage=f"simulator-seed{seed}")


def measured(setup: Setup, known: Attributes, params: Params) -> dict[str, Result]:
    simulator = SeekerSimulator(setup, params, CONFIG)
    threshold = assessment.choose_threshold(simulator, setup.corpus.validation, known)
    counts = suggestion_counts(setup.corpus.train)
    found = assessment.measure(
        simulator, setup.corpus.test, counts=counts, attributes=known, threshold=threshold, seeds=(0,)
    )
    return {one.name: one for one in found}


@pytest.mark.slow
@pytest.mark.usefixtures("kept_programs")
def test_a_killed_run_ends_the_same_and_is_measured(
    setup: Setup, known: Attributes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(CONFIG, epochs=1, tokens_per_batch=640, saves_per_epoch=4, composed_share=0.1)
    whole = trained(setup, known, tmp_path / "whole", config)
    assert sorted(whole) == ["attributes", "trunk"]
    made = SeekerBatches.batch

    def killed(self: SeekerBatches, step: int) -> SeekerBatch:
        if step == 5:
            raise KeyboardInterrupt
        return made(self, step)

    monkeypatch.setattr(SeekerBatches, "batch", killed)
    with pytest.raises(KeyboardInterrupt):
        trained(setup, known, tmp_path / "killed", config)
    monkeypatch.setattr(SeekerBatches, "batch", made)
    jax.tree.map(np.testing.assert_array_equal, trained(setup, known, tmp_path / "killed", config), whole)
    other = trained(setup, known, tmp_path / "other", config, seed=1)
    assert not np.array_equal(other["trunk"]["wpe"], whole["trunk"]["wpe"])
    assert not np.array_equal(other["attributes"]["kernel"], whole["attributes"]["kernel"])
    found = measured(setup, known, whole)
    assert {one.partition("/")[2] for one in found} == {"attribute_f1", "hr@1", "hr@10", "hr@50", "auc", "perplexity"}
    assert "popularity/perplexity" not in found and found["popularity/auc"].seeds == ()
    assert found["simulator/auc"].n == 16 and found["simulator/perplexity"].n > 100


@pytest.mark.slow
def test_it_learns_the_wish(setup: Setup, known: Attributes, tmp_path: Path) -> None:
    """Who knows what is popular finds the wish one time in four; the simulator has heard it."""
    found = measured(setup, known, trained(setup, known, tmp_path / "run", CONFIG))
    assert found["simulator/hr@1"].value > 0.9
    assert found["popularity/hr@1"].value < 0.4
    assert found["simulator/auc"].value > 0.95
    assert found["simulator/attribute_f1"].value > 0.9 > found["popularity/attribute_f1"].value
    # `i take` and what was offered, `something` and one of four wishes: little is left to guess.
    assert found["simulator/perplexity"].value < 2.0


@pytest.mark.slow
@pytest.mark.usefixtures("kept_programs")
def test_it_begins_with_a_network_that_imitated_the_same_dialogues(
    setup: Setup, known: Attributes, tmp_path: Path
) -> None:
    asked = dataclasses.replace(CONFIG, epochs=1, start="imitation", learning_rate=1e-9, warmup_steps=0)
    imitation = SupervisedConfig(
        epochs=2, description_epochs=0, max_tokens=40, buckets=(40,), tokens_per_batch=640, warmup_steps=1
    )
    half = setup.corpus.train[:6]
    seen: list[str] = []

    class Watched(tuple[Dialogue, ...]):
        def __iter__(self) -> Iterator[Dialogue]:
            seen.extend(one.dialogue_id for one in super().__iter__())
            return super().__iter__()

    with open_run(tmp_path / "run", asked, trackers=()) as run:
        assert stage.begin(run, setup, half, CONFIG, imitation, seed=3) is None
        begun = stage.begin(run, setup, Watched(half), asked, imitation, seed=3)
        assert begun is not None and set(seen) == {one.dialogue_id for one in half}
        assert {path.name for path in run.checkpoints.iterdir()} == {"sft-simulator"}
        found = stage.train(run, setup, half, asked, attributes=known, seed=3, begun=begun)
    # At a rate of next to nothing it ends where it begins: items composed of their titles' words again.
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-5), found["trunk"], begun)


def test_closed_forms_stand_beside_it(setup: Setup, known: Attributes, params: Params) -> None:
    simulator = SeekerSimulator(setup, params, CONFIG)
    scorer = fit_scorer(setup.corpus, setup.vocab.item_ids)
    numbers: dict[str, Any] = {"counts": suggestion_counts(setup.corpus.train), "attributes": known, "threshold": 0.5}
    found = assessment.cases(simulator, setup.corpus.test, closed=scorer, **numbers)
    assert set(found.closed_forms) == {"hr@1", "hr@10", "hr@50", "auc"}
    # By hand: the sum of the fixed weights times z, ranked among what nobody has named.
    asked = assessment.asked_of(simulator, setup.corpus.test)
    hits = []
    for history, gold, named in zip(asked.histories, asked.gold, asked.named, strict=True):
        contexts = contexts_of([history], scorer.catalogue)
        scores = sum(
            weight * mixture.standardised(scorer.parts[name](contexts))[0] for name, weight in mixture.WEIGHTS.items()
        )
        scores = np.where(np.isin(np.arange(setup.vocab.n_items), named), -np.inf, scores)
        hits += [(scores > scores[column]).sum() + (scores == scores[column]).sum() <= 1 for column in gold]
    assert float(found.closed_forms["hr@1"].sums.sum()) == sum(hits)
    assert assessment.cases(simulator, setup.corpus.test, **numbers).closed_forms == {}
    names = {one.system for one in assessment.measure(simulator, setup.corpus.test, closed=scorer, **numbers)}
    assert names == {"simulator", *assessment.RIVALS}


def test_attributes_begin_with_how_often_they_are_wanted(setup: Setup, known: Attributes) -> None:
    texts = seeker_texts(setup.vocab, [as_said(talk(0)), as_said(talk(4))], max_tokens=40, telling={})
    batches = SeekerBatches.of(texts, known, setup.vocab, buckets=(40,), tokens_per_batch=80, seed=0)
    rates = dict(zip(known.names, attribute_rates(batches).tolist(), strict=True))
    assert rates["genre:horror"] == pytest.approx(8.5 / 9) and rates["genre:comedy"] == pytest.approx(0.5 / 9)
    head = init_attributes(jax.random.key(0), 4, np.array([0.2, 0.5], np.float32))
    np.testing.assert_allclose(jax.nn.sigmoid(head["bias"]), [0.2, 0.5], rtol=1e-5)


def test_what_cannot_work_is_refused(setup: Setup, known: Attributes, params: Params, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing is learnt"):
        SimulatorConfig(language_weight=0.0, attribute_weight=0.0, target_weight=0.0)
    with pytest.raises(ValueError, match="must hold SimulatorConfig.max_tokens 600"):
        SimulatorConfig(max_tokens=600)
    with pytest.raises(ValueError, match="does not hold one text"):
        SimulatorConfig(tokens_per_batch=100)
    with pytest.raises(ValueError, match="take 63 positions: the network has 48"):
        SeekerSimulator(setup, params, dataclasses.replace(CONFIG, response_tokens=24))
    silent = Dialogue("d", (Message("recommender", ("hi",), 0),), {}, {})
    with open_run(tmp_path / "run", CONFIG, trackers=()) as run, pytest.raises(RunError, match="nothing to learn"):
        stage.train(run, setup, [silent], CONFIG, attributes=known, seed=0)
    simulator = SeekerSimulator(setup, params, CONFIG)
    with pytest.raises(ValueError, match="after which something is liked"):
        assessment.asked_of(simulator, [silent])
    with pytest.raises(ValueError, match="expected hr@k"):
        assessment.definition("ndcg@1", 0.5)


def test_a_person_recommends_until_it_is_found(setup: Setup, params: Params, known: Attributes) -> None:
    openings = openings_of(setup.corpus.test)
    assert openings[0].gold == (10,)
    stored = StoredSeeker(SeekerSimulator(setup, params, CONFIG), known, openings)
    talk_on = SeekerTalk(stored, openings[0], seed=3)
    assert talk_on.said == [["seeker", "something scary"]]
    heard = talk_on.recommend("do you know Matrix (1999)?")
    assert heard.recognised == ("Matrix (1999)",) and heard.liked == () and heard.answer is not None
    assert [role for role, _ in talk_on.said] == ["seeker", "recommender", "seeker"]
    hidden = talk_on.reveal(2)
    assert hidden.liked == ("Zigzag 0",) and hidden.wanted == ("horror",)
    # What was named is not expected any more; the rest is a distribution.
    everything = dict(talk_on.reveal(100).items)
    assert everything["Matrix (1999)"] == 0 and sum(everything.values()) == pytest.approx(1, abs=1e-5)
    assert [*hidden.items] == sorted(everything.items(), key=lambda pair: -pair[1])[:2]
    # The same words to the same seeker are answered in the same way.
    assert SeekerTalk(stored, openings[0], seed=3).recommend("do you know Matrix (1999)?") == heard
    found = talk_on.recommend("then @10")
    assert found.liked == ("Zigzag 0",) and found.answer is None and talk_on.over
    with pytest.raises(ValueError, match="the conversation is over"):
        talk_on.recommend("and @11")


@pytest.mark.parametrize(("part", "named"), [("wte", "table of tokens"), ("bias", "attributes' bias")])
def test_a_stored_simulator_of_another_vocabulary_is_refused(
    setup: Setup, params: Params, monkeypatch: pytest.MonkeyPatch, part: str, named: str
) -> None:
    features = jnp.zeros((4, WIDTH))
    average = {"trunk": dict(params["trunk"]), "attributes": dict(params["attributes"]), "item_features": features}
    monkeypatch.setattr(stage, "stage_arrays", lambda directory, name: {"average": average})
    n = len(params["attributes"]["bias"])
    whole = stage.stored(Path("run"), setup, CONFIG, n_attributes=n)
    assert jax.tree.all(jax.tree.map(np.array_equal, whole["attributes"], params["attributes"]))
    holder = average["trunk" if part == "wte" else "attributes"]
    holder[part] = holder[part][:-1]
    wrong = re.escape(str(holder[part].shape))
    with pytest.raises(
        RunError, match=rf"run/checkpoints/simulator: the {named} is {wrong}.* {setup.vocab.size} tokens"
    ):
        stage.stored(Path("run"), setup, CONFIG, n_attributes=n)
