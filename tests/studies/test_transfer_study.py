"""Cross-domain: what a model of one domain may know of the other, two catalogues, and what the report says."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from rlhf_jax.assessment.assess import Assessment, AssessmentConfig
from rlhf_jax.data.opendialkg import read_opendialkg, split_of
from rlhf_jax.data.sources import learnt_on, read_corpus
from rlhf_jax.data.vocabulary import Vocabulary
from rlhf_jax.data.windows import ranking_rows, training_texts
from rlhf_jax.evaluation.ranking import RankingOutcome, RankTable
from rlhf_jax.evaluation.results import Result
from rlhf_jax.evaluation.text import GeneratedTurn
from rlhf_jax.evaluation.user_centric import TopOne
from rlhf_jax.feedback.labelling import LabelOptions
from rlhf_jax.feedback.weak_labels import fit_weak_labels
from rlhf_jax.interfaces import Corpus, Dialogue
from rlhf_jax.models.gpt2 import GPT2Config
from rlhf_jax.runtime.run import open_run
from rlhf_jax.stages import supervised
from rlhf_jax.stages.agent import make_agent
from rlhf_jax.stages.items import compose, item_knowledge
from rlhf_jax.stages.setup import DataConfig, Setup
from rlhf_jax.stages.supervised import SupervisedConfig
from studies.foundation import FoundationConfig
from studies.transfer import measure as transfer
from studies.transfer import report as transfer_report
from studies.transfer.measure import Model

TITLES = ("Red Comet", "Blue Harbour", "Green Song", "Silver Moon")
REPLIES = ("great, thanks a lot", "I hated that one", "perfect, I love it", "boring, what else")


def write_folder(folder: Path, words: Callable[[str, str], str]) -> Path:
    """Movie and book dialogues in turn; `words(domain, split)` is said in every message of a dialogue."""
    folder.mkdir()
    lines = []
    for number in range(80):
        domain = ("movie", "book")[number % 2]
        extra = words(domain, split_of(str(number), 0, 0.15))
        first, second = TITLES[number % 4], TITLES[(number // 4) % 4]
        said = [
            ("user", f"I liked {first}, {extra}", [first]),
            ("assistant", f"there is {second} {extra}", [second]),
            ("user", f"{REPLIES[number // 2 % 4]} {extra}", []),
            ("assistant", f"or {first}", [first]),
            ("user", REPLIES[(number // 3) % 4], []),
        ]
        messages = [{"role": role, "text": text, "item": items} for role, text, items in said]
        lines.append(json.dumps({"dialog_id": number, "domain": domain, "messages": messages}))
    (folder / "dialogues.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    info = {str(number): {"name": title, "genre": ["drama"]} for number, title in enumerate(TITLES)}
    (folder / "id2info.json").write_text(json.dumps(info), encoding="utf-8")
    return folder


def data(folder: Path, train_domain: str = "both") -> DataConfig:
    return DataConfig(source="opendialkg", dir=folder, train_domain=train_domain)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("plain") / "data", lambda domain, split: "please friend")


def ids(dialogues: tuple[Dialogue, ...]) -> set[str]:
    return {dialogue.dialogue_id for dialogue in dialogues}


def test_one_domain_is_learnt_and_both_are_tested(plain: Path) -> None:
    both, movies = read_corpus(plain, data(plain)), read_corpus(plain, data(plain, "movie"))
    assert {d.domain for d in (*movies.train, *movies.validation)} == {"movie"}
    assert movies.train == tuple(d for d in both.train if d.domain == "movie") and movies.validation
    assert movies.test == both.test and {d.domain for d in movies.test} == {"movie", "book"}
    # The catalogue is the union; no dialogue is in two splits.
    assert movies.items == both.items and {item.domain for item in movies.items.values()} == {"movie", "book"}
    assert not ids(movies.train) & ids(movies.test) and not ids(movies.validation) & ids(movies.test)
    assert movies.provenance["n_train"] == len(movies.train) < both.provenance["n_train"]
    assert movies.provenance["train_domain"] == "movie"


def learnt(corpus: Corpus) -> tuple[str, object, np.ndarray, list[np.ndarray]]:
    """Everything that is fitted on dialogues before a network is: BPE, item knowledge, labels, TF-IDF."""
    vocab = Vocabulary.train(training_texts(corpus.train), corpus.items, 330)
    knowledge, _ = item_knowledge(vocab, corpus, SupervisedConfig(metadata_words=True))
    labeller = fit_weak_labels(corpus.train, corpus.items, LabelOptions(engagement="continuation", n_components=4))
    tables = [labeller(split).raw for split in (corpus.train, corpus.validation)]
    return vocab.tokenizer.to_str(), knowledge, labeller.standardiser.mean, tables


def test_nothing_is_learnt_from_the_other_domain_or_from_a_test_dialogue(plain: Path, tmp_path: Path) -> None:
    def other_words(domain: str, split: str) -> str:
        return "zebra zebra quartz" if domain == "book" or split == "test" else "please friend"

    changed = write_folder(tmp_path / "data", other_words)
    one, other = (learnt(read_corpus(folder, data(folder, "movie"))) for folder in (plain, changed))
    assert one[0] == other[0]
    assert all(map(np.array_equal, jax.tree.leaves(one[1]), jax.tree.leaves(other[1])))
    np.testing.assert_array_equal(one[2], other[2])
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(one[3], other[3], strict=True))
    # The change is one that would be seen: a model of books learns other words.
    books, changed_books = (learnt(read_corpus(folder, data(folder, "book"))) for folder in (plain, changed))
    assert books[0] != changed_books[0] and "zebra" in changed_books[0]


def test_popularity_and_item_knowledge_know_no_test_dialogue(plain: Path) -> None:
    corpus = read_corpus(plain, data(plain))
    counts = transfer.mentions(corpus, "book")
    known = [d for d in (*corpus.train, *corpus.validation) if d.domain == "book"]
    assert sum(counts.values()) == 3 * len(known) and {corpus.items[item].domain for item in counts} == {"book"}
    emptied = dataclasses.replace(corpus, test=tuple(dataclasses.replace(d, messages=()) for d in corpus.test))
    assert transfer.mentions(emptied, "book") == counts
    vocab = Vocabulary.train(training_texts(corpus.train), corpus.items, 300)
    told, untold = (item_knowledge(vocab, one, SupervisedConfig(metadata_words=True))[0] for one in (corpus, emptied))
    assert all(map(np.array_equal, jax.tree.leaves(told), jax.tree.leaves(untold)))


def test_real_dialogues_of_a_domain_stay_in_their_split(data_dir: Path) -> None:
    corpus = read_opendialkg(data_dir / "opendialkg", max_dialogues=400)
    for domain in ("movie", "book"):
        one = learnt_on(corpus, domain)
        n_test = sum(d.domain == domain for d in corpus.test)
        assert n_test > 40 and one.test == corpus.test
        assert not ids(one.train) & ids(one.test) and not ids(one.train) & ids(one.validation)
        named = {item for d in (*one.train, *one.validation) for message in d.messages for item in message.items}
        assert {corpus.items[item].domain for item in named} == {domain}
        assert set(transfer.mentions(one, domain)) == named


def test_wrong_combinations_are_told() -> None:
    with pytest.raises(ValueError, match="--data.train-domain movie needs --data.domain both"):
        DataConfig(source="opendialkg", dir=Path("d"), domain="book", train_domain="movie")
    with pytest.raises(ValueError, match="--data.train-domain movie is OpenDialKG's"):
        DataConfig(train_domain="movie")
    with pytest.raises(ValueError, match="no training dialogue about sports"):
        learnt_on(Corpus(train=(), validation=(), test=(), items={}, provenance={}), "sports")


def test_separate_embeddings_share_nothing_and_read_the_same_texts(plain: Path) -> None:
    base = FoundationConfig(data=data(plain), sft=SupervisedConfig(metadata_words=True, description_epochs=2))
    shared, separate = (transfer.foundation_config(base, Model("movie", form), "level") for form in transfer.EMBEDDINGS)
    assert shared.sft == base.sft and shared.sentiments == ("level",)
    assert shared.data == separate.data == data(plain, "movie")
    assert separate.sft.description_epochs == 2
    corpus = read_corpus(plain, separate.data)
    vocab = Vocabulary.train(training_texts(corpus.train), corpus.items, 300)
    for config, composed in ((shared, True), (separate, False)):
        knowledge, n_features = item_knowledge(vocab, corpus, config.sft)
        table = jax.random.normal(jax.random.key(0), (vocab.size, 4))
        features = jax.random.normal(jax.random.key(1), (n_features, 4))
        found = compose({"trunk": {"wte": table}, "item_features": features}, knowledge, vocab.first_item)["wte"]
        items = slice(vocab.first_item, vocab.first_item + vocab.n_items)
        assert bool((found[items] != table[items]).any()) is composed


def test_imitation_with_separate_embeddings_is_stored_and_read_again(plain: Path, tmp_path: Path) -> None:
    sft = SupervisedConfig(
        epochs=1, description_epochs=0, max_tokens=64, buckets=(64,), tokens_per_batch=1024, validation_dialogues=4
    )
    base = FoundationConfig(data=data(plain), sft=sft)
    config = transfer.foundation_config(base, Model("book", "separate"), "shift")
    corpus = read_corpus(plain, config.data)
    vocab = Vocabulary.train(training_texts(corpus.train), corpus.items, 300)
    network = GPT2Config(vocab_size=vocab.size, n_positions=64, n_embd=8, n_layer=1, n_head=1)
    agent = make_agent(vocab, network, max_items=2, response_tokens=8)
    setup = Setup(config.data, corpus, vocab, agent, seed=0)
    found = []
    for _ in range(2):
        with open_run(tmp_path / "run", {}, trackers=()) as run:
            found.append(supervised.train(run, setup, config.sft))
    assert all(map(np.array_equal, jax.tree.leaves(found[0]), jax.tree.leaves(found[1])))


def test_two_catalogues(plain: Path) -> None:
    corpus = read_corpus(plain, data(plain))
    rows = list(ranking_rows(d for d in corpus.test if d.domain == "book"))
    item_ids = tuple(corpus.items)
    # Every movie scores above every book; among the books the gold ones come first.
    scores = np.zeros((len(rows), len(item_ids)))
    for line, row in zip(scores, rows, strict=True):
        line[:] = [2.0 if corpus.items[item].domain == "movie" else float(item in row.gold) for item in item_ids]
    union, own = transfer.rank(rows, [scores[:3], scores[3:]], item_ids, corpus.items, "book")
    n_movies = sum(item.domain == "movie" for item in corpus.items.values())
    assert set(own.tables["full"].ranks) == {1}
    np.testing.assert_array_equal(union.tables["full"].ranks, own.tables["full"].ranks + n_movies)


def test_references_know_the_tested_domain_alone(plain: Path) -> None:
    corpus = read_corpus(plain, data(plain))
    found = transfer.references(corpus, AssessmentConfig(), "book")
    assert list(found) == ["popularity", "copy"]
    # Every row's second gold item was named before: copying the context finds it first or second.
    ranks = found["copy"][1].tables["full"].ranks
    assert (ranks <= 2).mean() >= 0.5
    # What was not named before is the last to come for one who only copies.
    assert set(found["copy"][1].tables["fresh"].ranks.tolist()) == {4}


def cases(firsts: int) -> transfer.DomainTest:
    """Twenty dialogues, a case each; in the first `firsts` the gold item comes first, in the others never."""
    names = tuple(f"{number:02}" for number in range(20))
    ranks = np.where(np.arange(20) < firsts, 1, 50).astype(np.int32)
    tables = {p: RankTable(p, ranks, np.arange(20, dtype=np.int32), names) for p in transfer.PROTOCOLS}
    turns = [GeneratedTurn(name, "you may like <movie>", "try <movie> it is good", 5, 1, True) for name in names]
    outcome = RankingOutcome(tables, TopOne((), (), ()))
    return transfer.DomainTest(Assessment(outcome, turns, {}), Assessment(outcome, [], {}))


@pytest.fixture(scope="module")
def found() -> list[Result]:
    """Shared embeddings transfer, separate ones do not; PPO changes nothing."""
    measured = {}
    for model in transfer.models(transfer.EMBEDDINGS):
        for policy in transfer.POLICIES[: 2 if model.embeddings == "shared" else 1]:
            for tested in ("movie", "book"):
                firsts = 18 if model.train_domain == tested else {"shared": 12, "separate": 2}[model.embeddings]
                measured[model, policy, tested] = {seed: cases(firsts) for seed in range(3)}
    nothing = {name: (cases(3).union.ranking, cases(3).own.ranking) for name in ("popularity", "copy")}
    return transfer_report.results(measured, {"movie": nothing, "book": nothing})


def test_differences_are_those_that_the_study_asks_for(found: list[Result]) -> None:
    systems = [
        f"{w}, {e}, {p}" for w in ("in domain", "transferred") for e in transfer.EMBEDDINGS for p in ("SFT", "PPO")
    ]
    pairs = transfer_report.pairs(systems)
    assert len(pairs) == 12 and ("transferred, shared, SFT", "in domain, shared, SFT") in pairs
    assert ("transferred, shared, PPO", "transferred, shared, SFT") in pairs
    assert ("in domain, shared, SFT", "transferred, shared, SFT") not in pairs
    values = {(r.name, r.protocol, r.split): r for r in found}
    gap = values[
        "transferred, shared, SFT-transferred, separate, SFT/hr@5", "full", "opendialkg-book/test, catalogue book"
    ]
    assert gap.value == pytest.approx(0.5) and gap.shows_difference and gap.seeds == (0, 1, 2)
    copied = values["transferred, shared, SFT-copy/hr@5", "fresh", "opendialkg-movie/test, catalogue movie+book"]
    assert copied.value == pytest.approx(0.45) and copied.shows_difference


def test_verdicts_say_what_the_numbers_say(found: list[Result]) -> None:
    lines = transfer_report.verdicts(found)
    assert len(lines) == 8 and all(line.startswith("Verdict, ") for line in lines)
    by_question = {line.partition(": ")[0]: line for line in lines}
    transfers = by_question["Verdict, movies → books, SFT with shared embeddings − copying the context"]
    assert "`full` +0.450 ± 0.000 [" in transfers and transfers.count("**▲**") == 2
    missing = by_question["Verdict, books → movies, transferred − in domain, SFT with shared embeddings"]
    assert "-0.300" in missing and "**▼**" in missing
    ppo = by_question["Verdict, movies → books, PPO − SFT with shared embeddings"]
    assert ppo.count("no difference shown") == 2
    one_seed = [dataclasses.replace(r, seeds=(0,)) for r in found]
    assert not any("**" in line for line in transfer_report.verdicts(one_seed))


def test_report_and_figures(found: list[Result], plain: Path, tmp_path: Path) -> None:
    corpus = read_corpus(plain, data(plain))
    text = transfer_report.report_text(found, corpus, ["## Reward models", "All below."], command="python x.py")
    assert "which a transferred model does not have" in text and "a random order has HR@5 1.0000" in text
    assert text.index("## Reward models\n\nAll below.") < text.index("## Tested on movies")
    assert "## Tested on books" in text and "| transferred, shared, SFT − transferred, separate, SFT |" in text
    assert "| popularity | 0.150 [" in text and "seeds 0, 1, 2" in text and "python x.py" in text
    lines = [{"stage": "ppo", "step": s, "objective/entropy": 1.0 / s} for s in (1, 2)]
    transfer_report.figures(found, tmp_path, {"movies, shared": [lines]})
    for name in ("transfer", "transfer_text", "ppo"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG") and (tmp_path / f"{name}.svg").exists()
