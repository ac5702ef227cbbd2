"""From one domain to another: a model learns from dialogues about movies and is tested on dialogues about books, and back.

What the model may know of the other domain is its catalogue (titles, genres, people), never a dialogue: vocabulary,
TF-IDF, reward model and policy see training dialogues of one domain alone. Both forms of item embedding read the same
item descriptions; they differ in whether an item's embedding is composed of what it shares with others.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from rlhf_jax.assessment.assess import Assessment, AssessmentConfig, answer, item_score_chunks, load, save, test_rows
from rlhf_jax.data.opendialkg_sources import DOMAINS, DomainName
from rlhf_jax.data.windows import RankingRow, ranking_rows
from rlhf_jax.evaluation import baselines, ranking
from rlhf_jax.evaluation.ranking import RankingOutcome
from rlhf_jax.interfaces import Corpus, Item, Params
from rlhf_jax.runtime.run import RunDirectory
from rlhf_jax.stages.setup import Setup
from studies.foundation import FoundationConfig, Sentiment

Embeddings = Literal["shared", "separate"]
EMBEDDINGS: tuple[Embeddings, ...] = ("shared", "separate")
POLICIES = ("sft", "ppo")
PROTOCOLS = ("full", "fresh")


class Model(NamedTuple):
    """One training: where its dialogues come from, and how items are embedded."""

    train_domain: DomainName
    embeddings: Embeddings

    @property
    def name(self) -> str:
        """Names its folder."""
        return f"{self.train_domain}-{self.embeddings}"


class DomainTest(NamedTuple):
    """One policy on the test dialogues of one domain."""

    union: Assessment
    """Ranked against the items of both domains; with the greedy answers."""
    own: Assessment
    """Ranked against the items of the tested domain alone; no answers."""


def models(embeddings: Sequence[Embeddings]) -> Iterator[Model]:
    """Every training of the study: every form of embedding, both directions."""
    for form in embeddings:
        for domain in DOMAINS:
            yield Model(domain, form)


def foundation_config(config: FoundationConfig, model: Model, sentiment: Sentiment) -> FoundationConfig:
    """The foundation with one domain's dialogues; separate embeddings are a free vector per item."""
    data = dataclasses.replace(config.data, domain="both", train_domain=model.train_domain)
    sft = config.sft
    if model.embeddings == "separate":
        sft = dataclasses.replace(sft, title_embeddings=False, metadata_words=False, features_per_item=0)
    return dataclasses.replace(config, data=data, sft=sft, sentiments=(sentiment,))


def tested_on(setup: Setup, domain: DomainName) -> Setup:
    """The same with the test dialogues of one domain."""
    return setup.testing([dialogue for dialogue in setup.corpus.test if dialogue.domain == domain])


def assess(
    run: RunDirectory,
    policy: str,
    setup: Setup,
    params: Params,
    config: AssessmentConfig,
    *,
    domain: DomainName,
) -> None:
    """Measures a policy on one domain's test dialogues and stores it case by case; once per run, policy and domain."""
    union, own = _files(run.path, policy, domain)
    if own.exists():
        return
    union.parent.mkdir(exist_ok=True)
    part, name = tested_on(setup, domain), f"{policy} on {domain}s"
    rows = test_rows(part, config)
    scores = item_score_chunks(part, params, rows, config, name=f"{name}: ranking")
    in_union, in_own = rank(rows, scores, part.vocab.item_ids, part.corpus.items, domain)
    turns = answer(part, params, config, name=f"{name}: answers")
    save(union, Assessment(in_union, turns, {}))
    save(own, Assessment(in_own, [], {}))


def rank(
    rows: Sequence[RankingRow],
    scores: Iterable[np.ndarray],
    item_ids: Sequence[int],
    items: Mapping[int, Item],
    domain: DomainName,
) -> tuple[RankingOutcome, RankingOutcome]:
    """Ranks against the items of both domains, and against those of `domain` alone; holds one chunk of scores at a time.

    Args:
      rows: of test dialogues of `domain`.
      scores: of all items, for consecutive rows. each [n, I]
      item_ids: the columns' items. [I]
      items: the catalogue of both domains.
    """
    columns = np.array([column for column, item in enumerate(item_ids) if items[item].domain == domain])
    own_ids = [item_ids[column] for column in columns]
    in_union, in_own, done = [], [], 0
    for chunk in scores:
        part = rows[done : done + len(chunk)]
        in_union.append(ranking.rank_rows(part, [chunk], item_ids, protocols=PROTOCOLS))
        in_own.append(ranking.rank_rows(part, [chunk[:, columns]], own_ids, protocols=PROTOCOLS))
        done += len(chunk)
    if done != len(rows):
        raise ValueError(f"scores for {done} rows, but there are {len(rows)}")
    return ranking.joined(in_union), ranking.joined(in_own)


def read_stored(folder: Path, policy: str, domain: DomainName) -> DomainTest:
    """Reads what `assess` wrote into the run directory `folder`."""
    union, own = _files(folder, policy, domain)
    return DomainTest(load(union), load(own))


def _files(folder: Path, policy: str, domain: DomainName) -> tuple[Path, Path]:
    assessments = folder / "assessments"
    return assessments / f"{policy}-on-{domain}.npz", assessments / f"{policy}-on-{domain}-own-catalogue.npz"


def mentions(corpus: Corpus, domain: DomainName) -> Counter[int]:
    """How often each item is mentioned in the training and validation dialogues of a domain; never in the test split."""
    return baselines.mention_counts(d for d in (*corpus.train, *corpus.validation) if d.domain == domain)


def references(
    corpus: Corpus, config: AssessmentConfig, domain: DomainName
) -> dict[str, tuple[RankingOutcome, RankingOutcome]]:
    """Two rankings without a model, on one domain's test dialogues, in both catalogues.

    `popularity` in the tested domain's training and validation dialogues, which a transferred model does not have, and
    `copy`: the items of the context, which needs no training.

    Args:
      corpus: with the training dialogues of both domains.
    """
    test = tuple(dialogue for dialogue in corpus.test if dialogue.domain == domain)
    rows, ids = list(ranking_rows(test[: config.test_dialogues])), tuple(corpus.items)
    popularity = list(baselines.popularity_scores(rows, ids, mentions(corpus, domain)))
    return {
        "popularity": rank(rows, popularity, ids, corpus.items, domain),
        "copy": rank(rows, baselines.copy_scores(rows, ids, {}), ids, corpus.items, domain),
    }
