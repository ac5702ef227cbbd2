"""A judge of replies: predicts how satisfied people said a user was after one, from the context and the reply alone.

    ŝ = clip(b + Σ_c w_c · tfidf_c(text_c), 1, 5),    w = argmin Σ (s − ŝ)² + λ‖w‖²

with one TF-IDF vector of length 1 for each part c of the exchange: what the system says now (`reply`), what the user said
last (`user`), and everything before that (`earlier`). The vectors have length 1 so that saying more is not worth more by
itself. An item is the token `<movie>` followed by the words of its title, each marked `t:`, in people's messages and in a
policy's alike.

The judge is for evaluation. It stands outside everything that trains, and being linear it compares two replies to one
context by their words only.

Source: Sun et al. 2021, SIGIR, arXiv:2105.03748, for the scores and for TF-IDF as a baseline; the split into parts is ours.
"""

import dataclasses
import functools
import itertools
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, hstack

from rlhf_jax.data.typography import plain
from rlhf_jax.evaluation.association import spearman
from rlhf_jax.interfaces import Message

Floats = NDArray[np.float64]
Part = Literal["reply", "user", "earlier", "answer"]
READS: tuple[Part, ...] = ("user", "reply", "earlier")
"""What a policy's reply offers; `answer`, the user's next turn, exists for logged replies only."""
LOWEST, HIGHEST = 1.0, 5.0
MIN_DF = 3
"""Turns a term must occur in."""
PENALTIES = (3.0, 10.0, 30.0, 100.0, 300.0)
"""λ tried where none is given."""
_WORD = re.compile(r"[a-z0-9']+|[?!]")
_ITEM = "<movie>"


class JudgedTurn(NamedTuple):
    """A system turn with what people said about the user's satisfaction after it."""

    dialogue: str
    history: tuple[Message, ...]
    """Messages before `reply`; those of the recommender at its end belong to the same turn."""
    reply: Message
    answer: tuple[Message, ...]
    """The user's next turn, to which the score belongs."""
    satisfaction: float
    """Mean over annotators, 1 to 5."""


@dataclasses.dataclass(frozen=True, eq=False)
class Channel:
    """TF-IDF of one part of the exchange and the weights of its terms."""

    terms: tuple[str, ...]
    idf: Floats
    """[terms]"""
    weights: Floats
    """Satisfaction per unit of TF-IDF. [terms]"""

    @functools.cached_property
    def _vectorizer(self) -> Any:
        """Scikit-learn's, imported where it is used: that takes longer than all of this package."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(analyzer=_terms, sublinear_tf=True, vocabulary=self.terms)
        vectorizer.idf_ = self.idf
        return vectorizer

    def __call__(self, texts: Sequence[str]) -> Floats:
        """What each text adds to the prediction. [N] -> [N]"""
        return csr_array(self._vectorizer.transform(texts)) @ self.weights


@dataclasses.dataclass(frozen=True, eq=False)
class TextRegression:
    """A ridge regression of satisfaction on the parts of an exchange."""

    channels: Mapping[Part, Channel]
    intercept: float

    def __call__(self, texts: Mapping[Part, Sequence[str]]) -> Floats:
        """Predicted satisfaction, 1 to 5. [N] texts a part -> [N]"""
        total = sum((channel(texts[part]) for part, channel in self.channels.items()), start=np.zeros(1))
        return np.clip(self.intercept + total, LOWEST, HIGHEST)


@dataclasses.dataclass(frozen=True, eq=False)
class SatisfactionJudge:
    """The judge of policies, with the dialogues it knows."""

    model: TextRegression
    fitted_on: frozenset[str]
    """Ids of the dialogues it was fitted on: nothing is to be evaluated on them (`assessment.satisfaction.check_unread`)."""

    def __post_init__(self) -> None:
        if "answer" in self.model.channels:
            raise ValueError("a judge of policies reads context and reply; this one reads the user's answer as well")

    def __call__(
        self, histories: Sequence[Sequence[Message]], replies: Sequence[Message], titles: Mapping[int, str]
    ) -> Floats:
        """Predicted satisfaction, 1 to 5, of the user after each reply. [N]

        Args:
          histories: messages before each reply. [N]
          replies: what a policy, or a person, says there. [N]
          titles: of the items; one that is missing is `<movie>` alone.
        Raises: ValueError if there are not as many histories as replies.
        """
        if len(histories) != len(replies):
            raise ValueError(f"{len(histories)} histories for {len(replies)} replies")
        if not replies:
            return np.zeros(0)
        turns = [
            JudgedTurn("", tuple(history), reply, (), float("nan"))
            for history, reply in zip(histories, replies, strict=True)
        ]
        return self.model(part_texts(turns, titles))

    def arrays(self) -> dict[str, NDArray]:
        """What is stored of the judge, for an npz file."""
        arrays: dict[str, NDArray] = {
            "intercept": np.array(self.model.intercept),
            "fitted_on": np.array(sorted(self.fitted_on), np.str_),
        }
        for part, channel in self.model.channels.items():
            arrays |= {
                f"{part}/terms": np.array(channel.terms, np.str_),
                f"{part}/idf": channel.idf,
                f"{part}/weights": channel.weights,
            }
        return arrays

    @classmethod
    def load(cls, path: Path) -> "SatisfactionJudge":
        """Reads an npz file of `arrays`. Raises ValueError naming a file that is damaged or holds no judge."""
        try:
            return cls._read(path)
        except (EOFError, KeyError, OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            if isinstance(error, FileNotFoundError) or str(error).startswith(str(path)):
                raise
            raise ValueError(f"{path}: no readable satisfaction judge ({error})") from error

    @classmethod
    def _read(cls, path: Path) -> "SatisfactionJudge":
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            parts = [name.removesuffix("/terms") for name in arrays if name.endswith("/terms")]
            if not parts or "intercept" not in arrays or "fitted_on" not in arrays:
                raise ValueError(f"{path}: no satisfaction judge, it holds {', '.join(arrays) or 'nothing'}")
            channels = {
                part: Channel(
                    tuple(map(str, arrays[f"{part}/terms"])), arrays[f"{part}/idf"], arrays[f"{part}/weights"]
                )
                for part in parts
            }
            model = TextRegression(channels, float(arrays["intercept"]))  # type: ignore[arg-type]
            return cls(model, frozenset(map(str, arrays["fitted_on"])))


def fit_judge(turns: Sequence[JudgedTurn], titles: Mapping[int, str], *, penalty: float) -> SatisfactionJudge:
    """The judge of the given turns.

    Args:
      turns: of the dialogues to fit on, and of no others.
      titles: of the items.
      penalty: λ, for instance `choose_penalty`'s.
    """
    model = fit_regression(turns, titles, READS, penalty=penalty)
    return SatisfactionJudge(model, frozenset(turn.dialogue for turn in turns))


def fit_regression(
    turns: Sequence[JudgedTurn],
    titles: Mapping[int, str],
    reads: Sequence[Part],
    *,
    penalty: float,
    min_df: int = MIN_DF,
) -> TextRegression:
    """A ridge regression that reads the given parts.

    Args:
      min_df: turns a term must occur in, within a part.
    Raises: ValueError without a turn, or where no term of any part is frequent enough.
    """
    if not turns:
        raise ValueError("no judged turn to fit on")
    counts, terms = _count(turns, titles, reads)
    forms = _tfidf(counts, np.arange(len(turns)), min_df)
    ridge = _ridge(_matrix(counts, forms, np.arange(len(turns))), _scores(turns), penalty)
    ends = np.cumsum([len(form.columns) for form in forms.values()])[:-1]
    channels: dict[Part, Channel] = {
        part: Channel(tuple(terms[part][form.columns].tolist()), np.asarray(form.scale.idf_, np.float64), weights)
        for (part, form), weights in zip(forms.items(), np.split(ridge.coef_, ends), strict=True)
    }
    return TextRegression(channels, float(ridge.intercept_))


def choose_penalty(
    turns: Sequence[JudgedTurn],
    titles: Mapping[int, str],
    reads: Sequence[Part],
    *,
    penalties: Sequence[float] = PENALTIES,
    folds: int = 5,
    seed: int = 0,
) -> tuple[float, dict[float, float]]:
    """λ with the best rank correlation over folds of dialogues, each predicted by a model that did not see it.

    Returns: λ, and the correlation of every one tried.
    Raises: ValueError for fewer dialogues than folds.
    """
    names = sorted({turn.dialogue for turn in turns})
    if len(names) < folds:
        raise ValueError(f"{len(names)} dialogues cannot make {folds} folds")
    order = np.random.Generator(np.random.PCG64([seed, folds])).permutation(len(names))
    fold_of = {names[place]: number % folds for number, place in enumerate(order)}
    fold = np.array([fold_of[turn.dialogue] for turn in turns])
    truth = _scores(turns)
    counts, _ = _count(turns, titles, reads)
    predicted = np.zeros((len(penalties), len(turns)))
    for number in range(folds):
        inside, outside = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        forms = _tfidf(counts, inside, MIN_DF)
        seen, unseen = _matrix(counts, forms, inside), _matrix(counts, forms, outside)
        for row, penalty in enumerate(penalties):
            predicted[row, outside] = _ridge(seen, truth[inside], penalty).predict(unseen)
    scores = {penalty: spearman(row, truth) for penalty, row in zip(penalties, predicted, strict=True)}
    return max(scores, key=lambda penalty: np.nan_to_num(scores[penalty], nan=-1.0)), scores


class _Form(NamedTuple):
    """TF-IDF of one part, as fitted on some turns."""

    columns: NDArray[np.int64]
    """Terms that are frequent enough."""
    scale: Any
    """A `TfidfTransformer`."""


def _count(
    turns: Sequence[JudgedTurn], titles: Mapping[int, str], reads: Sequence[Part]
) -> tuple[dict[Part, csr_array], dict[Part, NDArray]]:
    """How often each term occurs in each part of each turn [N, terms], and the terms; parts that say nothing left out."""
    from sklearn.feature_extraction.text import CountVectorizer

    counts: dict[Part, csr_array] = {}
    terms: dict[Part, NDArray] = {}
    texts = part_texts(turns, titles)
    for part in reads:
        if any(texts[part]):
            vectorizer = CountVectorizer(analyzer=_terms)
            counts[part] = csr_array(vectorizer.fit_transform(texts[part]))
            terms[part] = vectorizer.get_feature_names_out()
    return counts, terms


def _tfidf(counts: Mapping[Part, csr_array], rows: NDArray[np.int64], min_df: int) -> dict[Part, _Form]:
    """Fits the TF-IDF of every part on the given turns. Raises ValueError where no term is frequent enough."""
    from sklearn.feature_extraction.text import TfidfTransformer

    forms: dict[Part, _Form] = {}
    for part, count in counts.items():
        own = count[rows]
        columns = np.flatnonzero(np.asarray((own > 0).sum(axis=0)).ravel() >= min_df)
        if len(columns):
            forms[part] = _Form(columns, TfidfTransformer(sublinear_tf=True).fit(own[:, columns]))
    if not forms:
        raise ValueError(f"no term occurs in at least {min_df} of the {len(rows)} judged turns")
    return forms


def _matrix(counts: Mapping[Part, csr_array], forms: Mapping[Part, _Form], rows: NDArray[np.int64]) -> csr_array:
    """TF-IDF of the given turns, all parts side by side."""
    blocks = [form.scale.transform(counts[part][rows][:, form.columns]) for part, form in forms.items()]
    return csr_array(hstack(blocks, format="csr"))


def _ridge(matrix: csr_array, target: Floats, penalty: float) -> Any:
    """The fitted `Ridge`."""
    from sklearn.linear_model import Ridge

    return Ridge(alpha=penalty, solver="sparse_cg", tol=1e-5).fit(matrix, target)


def _scores(turns: Sequence[JudgedTurn]) -> Floats:
    return np.array([turn.satisfaction for turn in turns], np.float64)


def part_texts(turns: Sequence[JudgedTurn], titles: Mapping[int, str]) -> dict[Part, list[str]]:
    """What each part of every exchange says, as tokens with spaces between. [N] a part"""
    spelled = {item: _title_tokens(title) for item, title in titles.items()}
    texts: dict[Part, list[str]] = {"user": [], "reply": [], "earlier": [], "answer": []}
    for turn in turns:
        said = [message for message in turn.history if message.parts]
        begins = len(said)
        while begins and said[begins - 1].role == "recommender":
            begins -= 1
        asked = begins
        while asked and said[asked - 1].role == "seeker":
            asked -= 1
        texts["reply"].append(_tokens([*said[begins:], turn.reply], spelled))
        texts["user"].append(_tokens(said[asked:begins], spelled))
        texts["earlier"].append(_tokens(said[:asked], spelled, marked=True))
        texts["answer"].append(_tokens(turn.answer, spelled))
    return texts


def _tokens(messages: Sequence[Message], titles: Mapping[int, str], *, marked: bool = False) -> str:
    """Words of the messages; `marked` puts the speaker's initial before each, where both speak."""
    found: list[str] = []
    for message in messages:
        mark = f"{message.role[0]}:" if marked else ""
        for part in message.parts:
            titled = [_ITEM, *titles.get(part, "").split()] if isinstance(part, int) else []
            words = _WORD.findall(plain(part).lower()) if isinstance(part, str) else titled
            found.extend(mark + word for word in words)
    return " ".join(found)


def _title_tokens(title: str) -> str:
    return " ".join(f"t:{word}" for word in _WORD.findall(plain(title).lower()))


def _terms(text: str) -> list[str]:
    """Words, and pairs of neighbouring ones that are not of a title."""
    words = text.split()
    spoken = [word for word in words if not word.startswith(("t:", "s:t:", "r:t:"))]
    return words + [f"{left} {right}" for left, right in itertools.pairwise(spoken)]
