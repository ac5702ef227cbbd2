"""Another corpus: what is joined by title, what is ranked, and what stops a run before it begins."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import reasoned

from rlhf_jax.assessment import other_corpus, static_ranking
from rlhf_jax.assessment.other_corpus import OtherCorpus, TransferConfig, join, read_other
from rlhf_jax.assessment.static_ranking import RETRIEVER
from rlhf_jax.data.windows import ranking_rows
from rlhf_jax.interfaces import Item
from rlhf_jax.models import gpt2
from rlhf_jax.runtime.files import RunError
from rlhf_jax.runtime.run import open_run

TITLES = {1: "film 15 (1990)", 2: "Never Seen (1990)", 3: "Film 16", 4: "Film 11"}
"""Film 15 is of the decade that its catalogue entry says; Film 16 lacks the year that tells it from another one."""
CATALOGUE = {
    n: dataclasses.replace(item, title=f"Film {n}", year=1990 if n == 15 else None if n == 11 else 1980)
    for n, item in reasoned.ITEMS.items()
}


def write_corpus(folder: Path, titles: dict[int, str] = TITLES, *, forms: bool = True) -> Path:
    """Two test dialogues: hears item 4, is suggested 1 and 2, then 3."""
    folder.mkdir()
    texts = [(0, "hello @4"), (1, "try @1 or @2"), (0, "hello again"), (1, "or @3")]
    form: Any = {"1": {"suggested": 1, "seen": 0, "liked": 1}} if forms else []
    for split, numbers in (("train", (1, 2)), ("test", (3, 4))):
        lines = [
            {
                "conversationId": str(number),
                "initiatorWorkerId": 0,
                "respondentWorkerId": 1,
                "movieMentions": {},
                "initiatorQuestions": form,
                "respondentQuestions": [],
                "messages": [
                    {"messageId": place, "senderWorkerId": who, "text": text} for place, (who, text) in enumerate(texts)
                ],
            }
            for number in numbers
        ]
        (folder / f"{split}_data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with (folder / "movies_with_mentions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("movieId", "movieName"), *titles.items()])
    return folder


def read(folder: Path, **changes: Any) -> OtherCorpus:
    found = read_other(TransferConfig(dir=folder, **changes), own_name="world")
    assert found is not None
    return found


def test_items_are_joined_by_title_and_year(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    joined = join(read(write_corpus(tmp_path / "theirs")), CATALOGUE)
    assert (joined.name, joined.n_items, joined.n_shared, joined.n_cases, joined.n_known) == ("theirs", 4, 2, 6, 2)
    first = joined.dialogues[0]
    assert first.messages[0].parts == ("hello ", 11)
    # What the catalogue lacks is words; the year is part of a title.
    assert first.messages[1].parts == ("try ", 15, " or ", " Never Seen (1990) ")
    assert first.messages[3].parts == ("or ", " Film 16 ")
    assert {item: label.liked for item, label in first.seeker_labels.items()} == {15: 1}
    assert "theirs: 2 of 4 items named in 2 test dialogues are in the training catalogue" in capsys.readouterr().err
    assert len(join(read(tmp_path / "theirs", dialogues=1), CATALOGUE).dialogues) == 1


def test_of_two_items_with_one_title_the_first_is_meant(tmp_path: Path) -> None:
    twice = {**CATALOGUE, 9: Item(9, "Film 15", 1990)}
    assert join(read(write_corpus(tmp_path / "theirs")), twice).dialogues[0].messages[1].items == (9,)


def test_ranks_are_those_of_the_scores(tmp_path: Path) -> None:
    recommender = reasoned.make()
    setup = recommender.setup
    joined = join(read(write_corpus(tmp_path / "theirs")), CATALOGUE)
    params = {"trunk": gpt2.init(setup.network, jax.random.key(0))}
    with open_run(tmp_path / "run", {}, trackers=()) as run:
        found = other_corpus.measure(run, joined, recommender, {"sft": params}, {})
        again = other_corpus.measure(run, joined, recommender, {"sft": {}}, {})
    rows = [row for row in ranking_rows(joined.dialogues) if row.fresh_gold]
    assert [row.fresh_gold for row in rows] == [(15,), (15,)]
    scores = static_ranking.scores(recommender, {RETRIEVER: None, "sft": params}, rows)
    recalled, by_policy = scores[RETRIEVER], scores["sft"]
    # Three of six items are candidates, and nothing else has a score; what was named has none at all.
    assert np.isfinite(by_policy).sum(axis=1).tolist() == [3, 3] and np.isneginf(recalled[:, 0]).all()
    column = setup.vocab.item_index(15)
    for name, own in scores.items():
        ranks = [int((row >= row[column]).sum()) for row in own]
        assert found.tables[name]["fresh"].ranks.tolist() == ranks == again.tables[name]["fresh"].ranks.tolist()
    entries = {one.name: one for one in other_corpus.results({0: found})}
    assert {one.split for one in entries.values()} == {"theirs/test"}
    assert entries["sft/hr@1"].value == np.mean([row[column] == row.max() for row in by_policy])
    assert entries["sft-retriever/hr@5"].n == 2


@pytest.mark.parametrize("forms", [True, False])
def test_without_forms_it_is_said_that_seekers_are_not_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], forms: bool
) -> None:
    joined = join(read(write_corpus(tmp_path / "theirs", forms=forms)), CATALOGUE)
    with open_run(tmp_path / "run", {}, trackers=()) as run:
        other_corpus.measure(run, joined, reasoned.make(), {}, {})
    assert ("no form says what its seekers liked" in capsys.readouterr().err) != forms


def test_nothing_in_common_is_said_before_anything_is_trained(tmp_path: Path) -> None:
    nothing = write_corpus(tmp_path / "a", {n: f"Else {n}" for n in TITLES})
    with pytest.raises(
        RunError, match=r"--transfer\.dir .*/a: none of the 4 items .* for example 'Else 1' .* of the 6 items"
    ):
        join(read(nothing), CATALOGUE)
    only_heard = write_corpus(tmp_path / "b", TITLES | {1: "Else 1"})
    with pytest.raises(
        RunError, match="of the 1 items it shares .* no recommender of its test dialogues names one afresh"
    ):
        join(read(only_heard), CATALOGUE)


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        RunError, match=r"--transfer\.dir .*/absent: .*/absent/movies_with_mentions\.csv: the table of items"
    ):
        read(tmp_path / "absent")
    folder = write_corpus(tmp_path / "theirs")
    with (folder / "test_data.jsonl").open("a") as file:
        file.write('{"conversationId": "x"}\n')
    with pytest.raises(RunError, match=r"--transfer\.dir .*test_data\.jsonl, line 3: field"):
        read(folder)
    with pytest.raises(RunError, match=r"is called theirs, as the corpus trained on: give it a --transfer\.name"):
        read_other(TransferConfig(dir=folder), own_name="theirs")
    with pytest.raises(ValueError, match=r"--transfer\.name 'a/b'"):
        TransferConfig(dir=folder, name="a/b")
    with pytest.raises(ValueError, match=r"--transfer\.source world names no files"):
        TransferConfig(dir=folder, source="world")
    with pytest.raises(ValueError, match=r"--transfer\.domain movie is OpenDialKG's; --transfer\.source is redial"):
        TransferConfig(dir=folder, domain="movie")
    assert read_other(TransferConfig(), own_name="world") is None


def test_films_of_opendialkg_are_found_in_redials_catalogue(data_dir: Path) -> None:
    films = TransferConfig(dir=data_dir / "opendialkg", source="opendialkg", domain="movie")
    found = read_other(films, own_name="redial")
    assert found is not None and len(found.dialogues) == 485
    with (data_dir / "redial" / "movies_with_mentions.csv").open(newline="", encoding="utf-8") as file:
        titles = {int(row["movieId"]): row["movieName"].strip() for row in csv.DictReader(file)}
    joined = join(found, {item: Item(item, title) for item, title in titles.items()})
    assert (joined.n_items, joined.n_shared, joined.n_cases, joined.n_known) == (512, 288, 665, 390)
    named = {titles[item] for dialogue in joined.dialogues for said in dialogue.messages for item in said.items}
    assert len(named) == 288


def test_a_system_that_is_ranked_is_not_ranked_again_and_a_new_one_joins_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Contexts of more than one batch, whose last is filled up; each system's ranks are those that it has alone."""
    recommender = reasoned.make()
    one, other = ({"trunk": gpt2.init(recommender.setup.network, jax.random.key(seed))} for seed in (0, 1))
    dialogues = recommender.setup.corpus.test
    monkeypatch.setattr(static_ranking, "BATCH", 8)
    first = static_ranking.rank_all(tmp_path, recommender, {"a": one}, dialogues, corpus="toy")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(before) == 2
    both = static_ranking.rank_all(tmp_path, recommender, {"a": {}, "b": other}, dialogues, corpus="toy")
    assert {path: path.stat().st_mtime_ns for path in before} == before and list(both) == [RETRIEVER, "a", "b"]
    rows = [row for row in ranking_rows(dialogues) if row.fresh_gold]
    assert len(rows) % 8 and len(rows) > 8
    for name, params in ((RETRIEVER, None), ("a", one), ("b", other)):
        scores = static_ranking.scores(recommender, {name: params}, rows)[name]
        columns = [[recommender.setup.vocab.item_index(item) for item in row.fresh_gold] for row in rows]
        ranks = [int((row >= row[column]).sum()) for row, own in zip(scores, columns, strict=True) for column in own]
        assert both[name]["fresh"].ranks.tolist() == ranks
    assert first[RETRIEVER]["fresh"].ranks.tolist() == both[RETRIEVER]["fresh"].ranks.tolist()
