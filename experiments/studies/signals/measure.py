"""Which implicit signals order what people judged: every variant of engagement, relevance and sentiment, case by case.

Three judgements, none of which a signal may read:

    satisfaction   USS's score of the user turn that answers a system turn; one case an exchange
    liked          the seeker's form about an item the recommender named first; one case an item, at its first mention
    rating         a rater's 1–5 for a system's reply to a given context; one case a reply (no user turn follows)

TF-IDF and the latency scale are fitted on training dialogues that are judged nowhere.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlhf_jax.data.exchanges import JudgedExchange, exchanges
from rlhf_jax.data.turns import spell, turns
from rlhf_jax.feedback import engagement, relevance
from rlhf_jax.feedback.encoders import RobertaScorer, default_cache, minilm_encoder, roberta_scorer
from rlhf_jax.feedback.relevance import Encoder
from rlhf_jax.feedback.sentiment import Scorer, sentiment, spoken_around, vader_scorer
from rlhf_jax.interfaces import Corpus, Dialogue, Message
from rlhf_jax.ranges import Cases, Range, Size, check_numbers

Floats = NDArray[np.float64]
Table = dict[str, Floats]
"""Signal to one value a case; NaN where the data do not say."""
SIGNALS: Mapping[str, tuple[str, str]] = {
    "continuation": ("engagement", "1 if the user goes on after the reply or names a suggested item in it"),
    "dwell (log gap)": ("engagement", "log(1 + seconds until the reply), where real times exist"),
    "latency": ("engagement", "rank-normalised seconds until the reply, both lengths regressed out"),
    "TF-IDF": ("relevance", "cosine of reply and context, TF-IDF with SVD, titles with genres and people"),
    "TF-IDF, titles": ("relevance", "the same with titles alone"),
    "TF-IDF, no SVD": ("relevance", "the same without the SVD, titles with genres and people"),
    "MiniLM": ("relevance", "cosine of MiniLM's sentence vectors, titles alone"),
    "VADER shift": ("sentiment", "VADER of the user's turn after minus before"),
    "VADER level": ("sentiment", "VADER of the user's turn after"),
    "RoBERTa shift": ("sentiment", "the same difference by a RoBERTa classifier"),
    "RoBERTa level": ("sentiment", "RoBERTa of the user's turn after"),
    "VADER of the reply": ("control", "VADER of the system's own words"),
    "sum, shift": ("whole reward", "z(continuation) + z(TF-IDF) + z(VADER shift)"),
    "sum, level": ("whole reward", "z(continuation) + z(TF-IDF) + z(VADER level)"),
    "system words": ("control", "log(1 + words of the system's turn)"),
    "user words": ("control", "log(1 + words of the user's reply)"),
    "turns left": ("control", "user turns after the reply"),
}
"""Name to family and definition, in the order to show."""


@dataclasses.dataclass(frozen=True)
class SignalConfig:
    """What is measured, and on how much."""

    window: Annotated[int, Range("[1, 10_000]")] = 6
    """Messages of context relevance compares with."""
    n_components: Size = 64
    """Dimensions of the SVD after TF-IDF."""
    fit_dialogues: Cases = 1000
    """Training dialogues TF-IDF is fitted on; none of them is judged."""
    minilm: bool = False
    """Whether MiniLM's relevance is measured; needs the extra `minilm`, or `minilm_folder`."""
    minilm_folder: Path | None = None
    """Hugging Face folder; None takes the package."""
    minilm_dialogues: Cases | None = None
    """MiniLM only for the first so many dialogues of each judgement (it is the slow part); None is all."""
    roberta_folder: Path | None = None
    """Hugging Face folder of a sentiment classifier; None leaves RoBERTa's rows out."""

    def __post_init__(self) -> None:
        check_numbers(self)


class Instruments(NamedTuple):
    """What the signals need besides a case."""

    with_metadata: Mapping[int, str]
    titles: Mapping[int, str]
    encoders: Mapping[str, Encoder]
    """`TF-IDF`, `TF-IDF, titles`, `TF-IDF, no SVD`, and `MiniLM` where it is measured."""
    scorers: Mapping[str, Scorer]
    latency: engagement.LatencyScale | None


def fit(corpus: Corpus, judged: set[str], config: SignalConfig) -> Instruments:
    """Encoders and scales, fitted on training dialogues that are not `judged`."""
    unseen = [dialogue for dialogue in corpus.train if dialogue.dialogue_id not in judged]
    texts = [relevance.item_texts(corpus.items, metadata=metadata) for metadata in (True, False)]
    places = [(dialogue, index) for dialogue in unseen[: config.fit_dialogues] for index, _ in exchanges(dialogue)]
    whole, bare = (
        [text for dialogue, index in places for text in _texts(dialogue, index, table, config.window)]
        for table in texts
    )
    encoders: dict[str, Encoder] = {
        "TF-IDF": relevance.fit_tfidf(whole, n_components=config.n_components),
        "TF-IDF, titles": relevance.fit_tfidf(bare, n_components=config.n_components),
        "TF-IDF, no SVD": relevance.fit_tfidf(whole, n_components=None),
    }
    if config.minilm:
        encoders["MiniLM"] = minilm_encoder(config.minilm_folder, cache=default_cache())
    scorers: dict[str, Scorer] = {"VADER": vader_scorer()}
    if config.roberta_folder is not None:
        scorers["RoBERTa"] = roberta_scorer(config.roberta_folder, cache=default_cache())
    timed = [
        JudgedExchange(dialogue, index, reply, math.nan)
        for dialogue in unseen
        if dialogue.messages[0].time_offset is not None
        for index, reply in exchanges(dialogue)
    ]
    gaps, words, reply_words = _lengths(timed)
    latency = engagement.fit_latency(gaps, words, reply_words) if np.isfinite(gaps).sum() >= 10 else None
    return Instruments(texts[0], texts[1], encoders, scorers, latency)


def measure(cases: Sequence[JudgedExchange], fitted: Instruments, config: SignalConfig) -> Table:
    """Every signal of every case; signals that have no value anywhere, or one only, are left out. [N] each"""
    table: Table = {}
    gaps, words, reply_words = _lengths(cases)
    if any(case.reply is not None for case in cases):
        table["continuation"] = np.array([_continuation(case) for case in cases], float)
        table["dwell (log gap)"] = engagement.dwell_sim(gaps)
        if fitted.latency is not None:
            table["latency"] = fitted.latency(gaps, words, reply_words)
        table["user words"] = np.log1p(reply_words)
        table["turns left"] = np.array([_turns_left(case) for case in cases], float)
    for name, encoder in fitted.encoders.items():
        texts = fitted.titles if name in ("TF-IDF, titles", "MiniLM") else fitted.with_metadata
        some = _first_dialogues(cases, config.minilm_dialogues if name == "MiniLM" else None)
        table[name] = _relevance(encoder, cases, some, texts, config.window)
    for name, scorer in fitted.scorers.items():
        table |= _sentiment(name, scorer, cases)
    own = fitted.scorers["VADER"]
    table["VADER of the reply"] = np.array([own(spell(_message(case).parts, {}, placeholder="it")) for case in cases])
    table["system words"] = np.log1p(words)
    for form in ("shift", "level"):
        if "continuation" in table:
            parts = [table[name] for name in ("continuation", "TF-IDF", f"VADER {form}")]
            table[f"sum, {form}"] = np.sum([_standard(part) for part in parts], axis=0)
    return {name: table[name] for name in SIGNALS if name in table and len(np.unique(_finite(table[name]))) > 1}


def _message(case: JudgedExchange) -> Message:
    return case.dialogue.messages[case.message_index]


def _continuation(case: JudgedExchange) -> float:
    if case.reply is None:
        return math.nan
    return engagement.continuation(case.dialogue, case.message_index, case.reply)


def _turns_left(case: JudgedExchange) -> float:
    if case.reply is None:
        return math.nan
    rest = dataclasses.replace(case.dialogue, messages=case.dialogue.messages[case.reply.message_indices[-1] + 1 :])
    return float(sum(turn.role == "seeker" for turn in turns(rest)))


def _lengths(cases: Sequence[JudgedExchange]) -> tuple[Floats, Floats, Floats]:
    """Seconds until the reply, words of the system message, words of the reply; NaN where there is none. [N] each"""
    rows = []
    for case in cases:
        words = float(len(spell(_message(case).parts).split()))
        if case.reply is None:
            rows.append((math.nan, words, math.nan))
        else:
            gap = engagement.reply_gap(case.dialogue, case.message_index, case.reply)
            rows.append((gap, words, float(len(spell(case.reply.parts).split()))))
    gaps, words, reply_words = np.array(rows, float).reshape(-1, 3).T
    return gaps, words, reply_words


def _texts(dialogue: Dialogue, index: int, texts: Mapping[int, str], window: int) -> tuple[str, str]:
    """Context and response as relevance reads them."""
    context = relevance.context_text(dialogue.messages[:index], texts, window=window)
    return context, spell(dialogue.messages[index].parts, texts, placeholder="")


def _relevance(
    encoder: Encoder, cases: Sequence[JudgedExchange], some: NDArray[np.int64], texts: Mapping[int, str], window: int
) -> Floats:
    values = np.full(len(cases), np.nan)
    # In pieces: without the SVD a row is as wide as the vocabulary.
    for start in range(0, len(some), 1024):
        rows = some[start : start + 1024]
        pairs = [_texts(cases[row].dialogue, cases[row].message_index, texts, window) for row in rows]
        values[rows] = relevance.cosine_relevance(encoder, [left for left, _ in pairs], [right for _, right in pairs])
    return values


def _sentiment(name: str, scorer: Scorer, cases: Sequence[JudgedExchange]) -> Table:
    if isinstance(scorer, RobertaScorer):
        around = [spoken_around(case.dialogue, case.message_index) for case in cases]
        scorer.prepare(text for pair in around for text in pair if text is not None)
    return {
        f"{name} shift": np.array(
            [sentiment(case.dialogue, case.message_index, scorer=scorer) for case in cases], float
        ),
        f"{name} level": np.array(
            [sentiment(case.dialogue, case.message_index, scorer=scorer, form="level") for case in cases], float
        ),
    }


def _first_dialogues(cases: Sequence[JudgedExchange], limit: int | None) -> NDArray[np.int64]:
    """Rows of the first so many dialogues."""
    kept = set(list(dict.fromkeys(case.dialogue.dialogue_id for case in cases))[:limit])
    return np.array([row for row, case in enumerate(cases) if case.dialogue.dialogue_id in kept], np.int64)


def _finite(values: Floats) -> Floats:
    return values[np.isfinite(values)]


def _standard(values: Floats) -> Floats:
    return (values - np.nanmean(values)) / max(float(np.nanstd(values)), 1e-9)
