"""The mixture: a weighted sum of recommenders, each brought to one scale within every context.

    z_m(i | s) = (s_m(i) − mean_i s_m) / std_i s_m,  0 where all scores are equal        s(i) = Σ_m w_m f(z_m(i | s))

f is the identity (`z`, the default) or the area hyperbolic sine (`asinh`), which is z around 0 and ± log 2|z| far out: z
has tails of 30 and more. Weights are the fixed ones of `WEIGHTS`, or fitted (`fit_weights`).
Source: fusion of scores by standardising and adding, Fox and Shaw 1994 (CombSUM), z-scores after Montague and Aslam 2001,
doi:10.1145/502585.502657.

Cost: that of the parts, and 4·M·I bytes a context for M parts while it is scored.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int
from scipy.sparse import csr_array

from rlhf_jax.interfaces import Item
from rlhf_jax.recommenders import bm25, co_mention, context_knn, ease, knowledge, popularity, stated
from rlhf_jax.recommenders.contexts import BLOCK_ENTRIES, Contexts, Recommender, Training, entries_at, in_blocks
from rlhf_jax.recommenders.words import with_data

WEIGHTS: Mapping[str, float] = {
    "popularity": 1.0,
    "co_mention": 1.0,
    "ease": 1.0,
    "knowledge": 1.0,
    "context_knn": 1.0,
    "bm25": 0.6,
}
"""The default: set by hand, on no data."""
Form = Literal["z", "asinh"]


class Numbers(NamedTuple):
    """The numbers of the parts that matter; the others keep their defaults."""

    shrinkage: float = 5.0
    """Of co_mention."""
    ridge: float = 60.0
    """Of EASE."""
    min_dialogues: int = 3
    """Of EASE."""
    neighbours: int = 200
    """Of context_knn."""


REDIAL_NUMBERS = Numbers(shrinkage=20.0, ridge=400.0, min_dialogues=2, neighbours=400)
"""Chosen on ReDial's validation split, each form alone by its mean reciprocal rank."""


class Mixture(NamedTuple):
    """Recommenders with their weights."""

    parts: Mapping[str, Recommender]
    weights: Mapping[str, float]
    form: Form


class FittedWeights(NamedTuple):
    """What maximum likelihood found."""

    weights: dict[str, float]
    sharpness: float
    """a, the exponent of the tail."""
    log_likelihood: float
    """Nats per gold item."""
    n: int
    """Gold items."""


NAMES = (*WEIGHTS, "context_knn_titles", *(f"stated_{kind}" for kind in stated.KINDS))
"""All that `fit_parts` knows."""


def check_names(names: Sequence[str], option: str = "") -> None:
    """Raises ValueError for a name that `fit_parts` does not know; `option` is what people call the names."""
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise ValueError(
            f"{option}{': ' * bool(option)}unknown recommender {unknown[0]!r}; there are {', '.join(NAMES)}"
        )


def fit_parts(
    training: Training,
    items: Mapping[int, Item],
    names: Sequence[str] = tuple(WEIGHTS),
    *,
    numbers: Numbers = Numbers(),  # noqa: B008
) -> dict[str, Recommender]:
    """Recommenders fitted on the training split.

    Args:
      training: the training split.
      items: what is known about the catalogue.
      names: which, in this order: those of `WEIGHTS`; `context_knn_titles`, which compares titles too; and `stated_genre`,
        `stated_person`, `stated_decade`, what the seeker asked for.
      numbers: of the forms; other data may want others.
    Raises: ValueError for another name.
    """
    item_ids = training.catalogue.item_ids
    fits: dict[str, Callable[[], Recommender]] = {
        "popularity": lambda: partial(popularity.scores, popularity.fit(training, count="fresh", log=True)),
        "co_mention": lambda: partial(co_mention.scores, co_mention.fit(training, shrinkage=numbers.shrinkage)),
        "ease": lambda: partial(
            ease.scores, ease.fit(training, ridge=numbers.ridge, min_dialogues=numbers.min_dialogues)
        ),
        "knowledge": lambda: partial(knowledge.scores, knowledge.fit(items, item_ids)),
        "context_knn": lambda: partial(context_knn.scores, context_knn.fit(training, neighbours=numbers.neighbours)),
        "bm25": lambda: partial(bm25.scores, bm25.fit(items, item_ids)),
        "context_knn_titles": lambda: partial(
            context_knn.scores, context_knn.fit(training, neighbours=numbers.neighbours, titles=True)
        ),
        **{
            f"stated_{kind}": partial(lambda kind: partial(stated.scores, stated.fit(items, item_ids, kind)), kind)
            for kind in stated.KINDS
        },
    }
    check_names(names)
    return {name: fits[name]() for name in names}


def mix(parts: Mapping[str, Recommender], weights: Mapping[str, float] = WEIGHTS, *, form: Form = "z") -> Mixture:
    """A mixture of given parts.

    Raises: ValueError if a part has no weight or a weight no part, there is none, or the form is another.
    """
    if not parts or set(parts) != set(weights):
        raise ValueError(f"parts {', '.join(parts) or 'none'}; weights for {', '.join(weights) or 'none'}")
    if form not in ("z", "asinh"):
        raise ValueError(f"form is {form!r}; it must be 'z' or 'asinh'")
    return Mixture(dict(parts), {name: float(weights[name]) for name in parts}, form)


def standardised(scores: Float[np.ndarray, "*N I"], form: Form = "z") -> Float32[np.ndarray, "*N I"]:
    """z (or asinh z) of every score among the scores of its context; 0 where all are equal. [..., I]

    Examples:
      >>> standardised(np.array([[1., 1., 4.], [2., 2., 2.]])).round(3)
      array([[-0.707, -0.707,  1.414],
             [ 0.   ,  0.   ,  0.   ]], dtype=float32)
    """
    scores = np.asarray(scores, np.float64)
    centred = scores - scores.mean(-1, keepdims=True)
    spread = np.sqrt(np.square(centred).mean(-1, keepdims=True))
    # Equal scores differ from their mean by rounding alone.
    equal = spread <= 1e-9 * np.abs(scores).max(-1, keepdims=True, initial=0.0)
    z = np.where(equal, 0.0, centred / np.where(equal, 1.0, spread))
    return (np.arcsinh(z) if form == "asinh" else z).astype(np.float32)


def features(parts: Mapping[str, Recommender], contexts: Contexts, form: Form = "z") -> Float32[np.ndarray, "N M I"]:
    """The standardised scores of all parts, in their order: what a policy can take as prior. [N, M, I]"""
    out = np.empty((len(contexts), len(parts), contexts.n_items), np.float32)
    for place, part in enumerate(parts.values()):
        out[:, place] = standardised(part(contexts), form)
    return out


def scores(fitted: Mixture, contexts: Contexts) -> Float32[np.ndarray, "N I"]:
    """Σ_m w_m f(z_m), higher is better; without its own dialogue as its parts. [N, I]

    Examples:
      >>> parts = {"a": lambda contexts: np.array([[0., 3.]], np.float32), "b": lambda contexts: np.array([[2., 0.]], np.float32)}
      >>> contexts = Contexts(2, np.zeros(0, np.int32), np.array([0, 0]), ("",), ("",), np.array([-1]))
      >>> scores(mix(parts, {"a": 1., "b": .5}), contexts)
      array([[-0.5,  0.5]], dtype=float32)
    """
    weights = np.array(list(fitted.weights.values()), np.float32)

    def block(part: Contexts) -> Float[np.ndarray, "n I"]:
        return weighted(weights, features(fitted.parts, part, fitted.form))

    return in_blocks(block, contexts, 3 * len(weights) * contexts.n_items)


def weighted(weights: Float32[np.ndarray, " M"], found: Float32[np.ndarray, "n M I"]) -> Float32[np.ndarray, "n I"]:
    """Σ_m w_m f(z_m). [n, I]"""
    return np.matmul(weights[None, None, :], found)[:, 0]


def likeliest(
    parts: Mapping[str, Recommender], fitted: "FittedWeights", contexts: Contexts, n: int, *, form: Form = "z"
) -> tuple[Int[np.ndarray, "N n"], Float32[np.ndarray, "N n"]]:
    """The n items that a fitted mixture holds likeliest among those that a context has not named, and their chances.

        p(i | s) = softmax_{i not in s}(a · asinh(v_i)),  of the n likeliest, divided by their sum

    Args:
      parts: as `fit_weights` was given.
      n: cut to the items there are.
    Returns: columns, likeliest first, of equal ones the lower column first; chances, 0 of items that are named, for whom fewer
      than n are left. [N, n]
    """
    weights = np.array([fitted.weights[name] for name in parts], np.float32)
    n = min(n, contexts.n_items)
    columns = np.empty((len(contexts), n), np.int32)
    chances = np.empty((len(contexts), n), np.float32)
    size = max(1, BLOCK_ENTRIES // (4 * len(parts) * contexts.n_items))
    for start in range(0, len(contexts), size):
        part = contexts.part(start, start + size)
        tail = np.arcsinh(weighted(weights, features(parts, part, form)).astype(np.float64))
        tail[part.rows, part.items] = -np.inf
        best = np.argsort(-tail, axis=1, kind="stable")[:, :n]
        logits = fitted.sharpness * np.take_along_axis(tail, best, axis=1)
        # Where everything is named nobody is likely: no chance at all, and no 0/0.
        top = np.where(np.isfinite(logits[:, :1]), logits[:, :1], 0.0)
        exp = np.exp(logits - top)
        columns[start : start + size] = best
        chances[start : start + size] = exp / np.maximum(exp.sum(axis=1, keepdims=True), 1e-300)
    return columns, chances


def fit_weights(
    parts: Mapping[str, Recommender],
    contexts: Contexts,
    gold: csr_array,
    *,
    form: Form = "z",
    start: Mapping[str, float] | None = None,
    keep_bytes: int = 2**30,
) -> FittedWeights:
    """Weights of maximum likelihood: what makes gold items likely among the items that the context has not named.

        max_{w ≥ 0, a > 0}  (1/n) Σ_s Σ_{g in gold(s)} log p(g | s)
        p(i | s) = softmax_{i not in s}(a · asinh(v_i)),    v_i = Σ_m w_m f(z_m(i | s))

    The order of items is that of v; asinh makes the model's tail a power, p ~ v^a. A plain softmax of v would pay for its few
    huge scores with small weights everywhere, and rank worse than the fixed weights. Found by L-BFGS from `start`.
    Fit on the validation split: on training rows the parts know too much, unless their own dialogues are left out.

    Cost: a pass reads N·M·I float32; they are kept where they fit into `keep_bytes`, and else computed anew in each of the
    twenty or so passes.

    Args:
      parts: M fitted recommenders.
      contexts: of N rows that no part was fitted on.
      gold: 1 where an item is gold; items that the context names do not count. [N, I]
      form: what is weighted.
      start: weights to begin with; None takes .3 for each.
      keep_bytes: memory for the standardised scores.
    Raises: ValueError if shapes or names differ, or there is no gold item that its context does not name.
    """
    # Imported where used: it costs every importer a tenth of what starting an experiment takes.
    from scipy.optimize import minimize

    if gold.shape != (len(contexts), contexts.n_items):
        raise ValueError(f"gold has shape {gold.shape} for {len(contexts)} contexts and {contexts.n_items} items")
    if not parts or (start is not None and set(start) != set(parts)):
        raise ValueError(f"parts {', '.join(parts) or 'none'}; start for {', '.join(start or ()) or 'none'}")
    blocks = _Blocks(parts, contexts, gold, form, keep_bytes)
    if not blocks.n:
        raise ValueError(f"{len(contexts)} contexts have no gold item that they do not name")
    first = [0.3 if start is None else start[name] for name in parts]
    found = minimize(
        blocks.loss,
        np.array([*first, 0.5]),
        jac=True,
        method="L-BFGS-B",
        bounds=[*[(0.0, None)] * len(parts), (-5.0, 5.0)],
        options={"maxiter": 60, "ftol": 1e-7},
    )
    weights = {name: float(weight) for name, weight in zip(parts, found.x, strict=False)}
    return FittedWeights(weights, float(np.exp(found.x[-1])), -float(found.fun), blocks.n)


class _Blocks:
    """The standardised scores of contexts with gold, block by block, kept or computed anew."""

    def __init__(
        self, parts: Mapping[str, Recommender], contexts: Contexts, gold: csr_array, form: Form, keep_bytes: int
    ) -> None:
        self._parts, self._contexts, self._form = parts, contexts, form
        ones = np.ones(len(contexts.items), np.float32)
        self._named = csr_array((ones, contexts.items, contexts.starts), (len(contexts), contexts.n_items))
        self._gold = with_data(gold, (gold.data != 0).astype(np.float32))
        self._gold.data[entries_at(self._named, self._gold) > 0] = 0.0
        self._gold.eliminate_zeros()
        self.n = self._gold.nnz
        entries = len(parts) * contexts.n_items
        self._size = max(1, BLOCK_ENTRIES // (4 * entries))
        self._kept = list(self._compute()) if 4 * entries * len(contexts) <= keep_bytes else None

    def _compute(self) -> Iterator[tuple[np.ndarray, np.ndarray, csr_array]]:
        """Scores, what is named, and gold, of the contexts that have gold."""
        for start in range(0, len(self._contexts), self._size):
            stop = min(start + self._size, len(self._contexts))
            gold = csr_array(self._gold[start:stop])
            used = np.flatnonzero(np.diff(gold.indptr))
            if len(used):
                found = features(self._parts, self._contexts.part(start, stop), self._form)[used]
                named = csr_array(self._named[start:stop])[used].toarray() > 0
                yield found, named, csr_array(gold[used])

    def loss(self, numbers: Float[np.ndarray, " M1"]) -> tuple[float, Float[np.ndarray, " M1"]]:
        """Nats per gold item, and their gradient, at M weights and the logarithm of a."""
        weights, sharpness = numbers[:-1].astype(np.float32), float(np.exp(numbers[-1]))
        value, slope = 0.0, np.zeros(len(numbers))
        for found, named, gold in self._compute() if self._kept is None else self._kept:
            summed = weighted(weights, found).astype(np.float64)
            tail = np.arcsinh(summed)
            logits = np.where(named, -np.inf, sharpness * tail)
            logits -= logits.max(1, keepdims=True)
            exp = np.exp(logits)
            total = exp.sum(1, keepdims=True)
            n_gold = np.diff(gold.indptr)
            rows = np.repeat(np.arange(len(n_gold)), n_gold)
            value -= float((logits[rows, gold.indices] - np.log(total)[rows, 0]).sum())
            excess = exp / total * n_gold[:, None]  # Expected minus seen. [n, I]
            excess[rows, gold.indices] -= 1.0
            slope[-1] += sharpness * float((excess * tail).sum())
            excess *= sharpness / np.sqrt(1.0 + summed**2)
            slope[:-1] += np.matmul(found, excess.astype(np.float32)[:, :, None])[:, :, 0].sum(0)
        return value / self.n, slope / self.n
