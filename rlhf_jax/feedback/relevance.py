"""Relevance: cosine of the embedded response and the embedded context window.

    relevance = cos(e(response with titles spelled out), e(last `window` messages before it))

With the option `relevant_items fresh` titles that were named before are left out of the response: the context holds them, and
on ReDial a turn that does nothing but repeat one would be the most relevant of all.

Source: arXiv:2508.05289 (sentence embeddings). The encoder here is TF-IDF, optionally reduced by SVD (latent semantic
analysis), fitted on the training split; any callable from texts to vectors takes its place (`encoders.minilm_encoder`).
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from rlhf_jax.data.items import spoken_decade
from rlhf_jax.data.turns import AnsweredTurn, spell
from rlhf_jax.feedback.encoders import default_cache, minilm_encoder
from rlhf_jax.feedback.labelling import Signal, Training
from rlhf_jax.interfaces import Item, Message

Floats = NDArray[np.float64]
Encoder = Callable[[Sequence[str]], Floats]
"""Texts to vectors, one row a text; a zero row means that nothing is known about the text."""


def fit(training: Training) -> Signal:
    """Cosines by the encoder of the options; TF-IDF is fitted on the training turns, MiniLM comes as it is."""
    options, texts = training.options, item_texts(training.items, metadata=training.options.item_metadata)

    def pairs(turns: Sequence[AnsweredTurn]) -> tuple[list[str], list[str]]:
        contexts = [context_text(turn.context, texts, window=options.window) for turn in turns]
        return contexts, [response_text(turn, texts, fresh=options.relevant_items == "fresh") for turn in turns]

    encoder = training.encoder
    if encoder is None and options.relevance == "minilm":
        encoder = minilm_encoder(options.minilm, cache=default_cache())
    elif encoder is None:
        contexts, responses = pairs(training.turns)
        encoder = fit_tfidf([*contexts, *responses], n_components=options.n_components)
    return lambda turns: cosine_relevance(encoder, *pairs(turns))


def item_texts(items: Mapping[int, Item], *, metadata: bool) -> dict[int, str]:
    """What stands for an item in a text: its title, and with `metadata` also genres, people and decade."""
    if not metadata:
        return {item_id: item.title for item_id, item in items.items()}
    return {
        item_id: " ".join([item.title, *item.genres, *item.people, spoken_decade(item.year)])
        for item_id, item in items.items()
    }


def context_text(messages: Sequence[Message], texts: Mapping[int, str], *, window: int) -> str:
    """The last `window` messages as one text; empty if there are none."""
    return " ".join(spell(message.parts, texts, placeholder="") for message in messages[-window:]).strip()


def response_text(turn: AnsweredTurn, texts: Mapping[int, str], *, fresh: bool = False) -> str:
    """The system's message as one text; with `fresh` items that were named before it are left out."""
    named = {item for message in turn.context for item in message.items} if fresh else set()
    parts = [part for part in turn.message.parts if isinstance(part, str) or part not in named]
    return spell(parts, texts, placeholder="")


def fit_tfidf(texts: Sequence[str], *, n_components: int | None = 64, min_df: int = 2) -> Encoder:
    """TF-IDF encoder (sublinear counts, English stop words left out, unit rows), reduced to `n_components` by SVD unless None.

    The SVD takes at most as many components as the vocabulary has words less one.

    Raises: ValueError if no word occurs in `min_df` texts.
    """
    # Imported where it is used: scikit-learn takes longer to import than all of this package.
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=min_df, lowercase=True, stop_words="english")
    try:
        matrix = vectorizer.fit_transform(texts)
    except ValueError as error:
        raise ValueError(f"no word occurs in at least {min_df} of the {len(texts)} texts") from error
    if n_components is None:
        return lambda new: csr_array(vectorizer.transform(new)).toarray()
    svd = TruncatedSVD(max(1, min(n_components, len(vectorizer.vocabulary_) - 1)), random_state=0).fit(matrix)

    def encode(new: Sequence[str]) -> Floats:
        return svd.transform(csr_array(vectorizer.transform(new)))

    return encode


def cosine_relevance(encoder: Encoder, contexts: Sequence[str], responses: Sequence[str]) -> Floats:
    """Cosine of each response with its context, in [-1, 1]; NaN where either vector is zero. [N]

    Raises: ValueError if the two lists differ in length.
    """
    if len(contexts) != len(responses):
        raise ValueError(f"{len(contexts)} contexts for {len(responses)} responses")
    if not contexts:
        return np.zeros(0)
    left, right = np.asarray(encoder(contexts), float), np.asarray(encoder(responses), float)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    defined = norms > 1e-12
    return np.where(defined, np.einsum("nd,nd->n", left, right) / np.where(defined, norms, 1.0), np.nan)
