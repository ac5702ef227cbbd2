"""Signals against judgements: which cases there are, what a signal may not read, and a planted relation that is found."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from rlhf_jax.data.exchanges import liked_cases, rating_cases, satisfaction_cases
from rlhf_jax.data.human_ratings import RatedReply, ScoredMessage
from rlhf_jax.interfaces import Corpus, Dialogue, Item, ItemLabel, Message
from studies.signals import measure as signal_study
from studies.signals import report as signal_report
from studies.signals.measure import SignalConfig

ITEMS = {n: Item(n, f"Title {n}") for n in (5, 6, 7)}
CONFIG = SignalConfig(fit_dialogues=60, n_components=4)


def test_numbers_that_cannot_be() -> None:
    """A window of 0 would be the whole context, Python counts it from the end."""
    with pytest.raises(ValueError, match=r"SignalConfig.window must be in \[1, 10000\]: got 0"):
        SignalConfig(window=0)
    with pytest.raises(ValueError, match=r"SignalConfig.minilm_dialogues must be in \[1, "):
        SignalConfig(minilm_dialogues=0)


def dialogue(number: int, reply: str = "ok", *, gap: int | None = 5, liked: int = 1) -> Dialogue:
    spoken = [
        ("seeker", ("i like western horse stories ", 7)),
        ("recommender", ("hello",)),
        ("recommender", ("try a western with horse ", 5)),
        ("seeker", (reply,)),
        ("recommender", ("or space rocket ", 6, " and ", 7)),
        ("seeker", ("bye",)),
    ]
    times = [None if gap is None else gap * place for place in range(6)]
    messages = tuple(
        Message(role, parts, place, time_offset=time)  # type: ignore[arg-type]
        for place, ((role, parts), time) in enumerate(zip(spoken, times, strict=True))
    )
    labels = {5: ItemLabel(1, 2, liked), 6: ItemLabel(1, 2, 2), 7: ItemLabel(0, 1, 1)}
    return Dialogue(str(number), messages, labels, {})


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    train = tuple(dialogue(n, ("great", "awful")[n % 2], gap=n % 7 + 1) for n in range(40))
    return Corpus(train=train, validation=(), test=(), items=ITEMS, provenance={})


def scores(found: Dialogue, value: float) -> tuple[ScoredMessage, ...]:
    return tuple(
        ScoredMessage(said.role, "", value + place if said.role == "seeker" else None)
        for place, said in enumerate(found.messages)
    )


def test_an_exchange_is_a_system_turn_with_its_answer() -> None:
    one = dialogue(1)
    cases = satisfaction_cases([one, dialogue(2)], {"1": scores(one, 1.0)})
    assert [(case.message_index, case.judgement) for case in cases] == [(2, 4.0), (4, 6.0)]
    with pytest.raises(ValueError, match="dialogue 1: 6 messages whose speakers are not those of USS's 5"):
        satisfaction_cases([one], {"1": scores(one, 1.0)[:-1]})


def test_liked_items_are_those_the_recommender_named_first() -> None:
    cases = liked_cases([dialogue(1, liked=0)])
    # 6 has no answer in the form, 7 was the seeker's own.
    assert [(case.message_index, case.judgement) for case in cases] == [(2, 0.0)]


def test_no_signal_reads_the_form(corpus: Corpus) -> None:
    fitted = signal_study.fit(corpus, set(), CONFIG)
    tables = []
    for liked in (0, 1):
        found = [dialogue(n, "hm", liked=liked) for n in range(3)]
        cases = [*liked_cases(found), *satisfaction_cases(found, {"0": scores(found[0], 1)})]
        tables.append(signal_study.measure(cases, fitted, CONFIG))
    assert tables[0].keys() == tables[1].keys()
    for name, values in tables[0].items():
        np.testing.assert_array_equal(values, tables[1][name], err_msg=name)


def test_nothing_is_fitted_on_judged_dialogues(corpus: Corpus) -> None:
    strange = dialogue(99, "zebra")
    strange = dataclasses.replace(
        strange, messages=(*strange.messages[:2], Message("recommender", ("zebra quagga",), 2), *strange.messages[3:])
    )
    twice = (strange, dataclasses.replace(strange, dialogue_id="98"))
    larger = dataclasses.replace(corpus, train=(*corpus.train, *twice))
    judged = signal_study.fit(larger, {"98", "99"}, SignalConfig(n_components=4))
    alone = signal_study.fit(larger, set(), SignalConfig(n_components=4))
    assert not judged.encoders["TF-IDF, no SVD"](["zebra quagga"]).any()
    assert alone.encoders["TF-IDF, no SVD"](["zebra quagga"]).any()


def test_times_that_are_not_recorded_leave_no_latency(corpus: Corpus) -> None:
    fitted = signal_study.fit(corpus, set(), CONFIG)
    cases = liked_cases([dialogue(1, "great", gap=None), dialogue(2, "awful", gap=None)])
    table = signal_study.measure(cases, fitted, CONFIG)
    assert "latency" not in table and "dwell (log gap)" not in table and "VADER level" in table
    waits = [dialogue(1, "great", gap=5), dialogue(2, "awful", gap=9)]
    timed = signal_study.measure(liked_cases(waits), fitted, CONFIG)
    assert "latency" in timed and timed["dwell (log gap)"][0] == pytest.approx(np.log1p(5))


def test_ratings_have_no_user_turn(corpus: Corpus) -> None:
    context = (("recommender", "hello"), ("seeker", "a western with a horse"))
    replies = [
        RatedReply(f"s/{n}", n, system, context, text, rating)
        for n in range(4)
        for system, text, rating in (("a", "western horse canyon", 5), ("b", "space rocket", 1))
    ]
    cases = rating_cases(replies)
    fitted = signal_study.fit(corpus, set(), CONFIG)
    table = signal_study.measure(cases, fitted, CONFIG)
    # The replies have no mood: a signal that never varies is left out.
    assert set(table) == {"TF-IDF", "TF-IDF, titles", "TF-IDF, no SVD", "system words"}
    groups = np.array([reply.line for reply in replies])
    found = signal_report.associations("rating", cases, table, groups=groups, split="r", replicates=20)
    by_name = {result.system: result for result in found}
    assert by_name["TF-IDF, no SVD"].value == 1.0 and by_name["TF-IDF, no SVD"].n == 4


def test_a_planted_relation_is_found_and_shown(corpus: Corpus, tmp_path: Path) -> None:
    fitted = signal_study.fit(corpus, set(), CONFIG)
    rng = np.random.default_rng(0)
    moods = rng.integers(0, 2, 40)
    found = [
        dialogue(n, ("i hate it, terrible", "i love it, great")[mood], gap=int(rng.integers(1, 60)), liked=int(mood))
        for n, mood in enumerate(moods)
    ]
    scored = {one.dialogue_id: scores(one, 1.0 + 2 * mood) for one, mood in zip(found, moods, strict=True)}
    results = {}
    for name, cases in (
        ("satisfaction", satisfaction_cases(found, scored)),
        ("liked", liked_cases(found)),
    ):
        table = signal_study.measure(cases, fitted, CONFIG)
        results[name] = signal_report.associations(
            name, cases, table, groups=np.arange(len(cases)), split="toy", replicates=40
        )
    liked = {result.system: result for result in results["liked"]}
    assert liked["VADER level"].value == 1.0 and signal_report.informative(liked["VADER level"])
    assert not signal_report.informative(liked["latency"])
    text = signal_report.report_text(results)
    assert "| VADER level | sentiment | " in text and "**1.000** [1.000, 1.000], n 40" in text
    verdict = next(line for line in text.splitlines() if line.startswith("- Verdict, liked, AUC: "))
    follow, _, nothing = verdict.partition("liked, AUC: ")[2].rstrip(".").split("; ")
    assert follow.startswith("follow it: ") and "VADER level 1.000" in follow
    assert nothing.startswith("say nothing: ") and "latency" in nothing and "user words" not in verdict
    path = signal_report.figure(results, tmp_path)
    assert path.read_bytes().startswith(b"\x89PNG") and b"VADER level" in (tmp_path / "signals.svg").read_bytes()
