"""The recommender of SMTPO without its parameters: what is recalled for a turn, what a policy reads, what its turns mean.

A turn infers what the seeker wants, lists items from the turn's candidates, and speaks (`data/reasoning.py`). Candidates
are what the retriever ranks highest among the items nobody has named in this conversation; they are found anew for every
turn.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Float32

from rlhf_jax.data.attributes import Attributes
from rlhf_jax.data.batching import pad_left
from rlhf_jax.data.reasoning import Reasoned, read_reasoning
from rlhf_jax.data.windows import prompt_tokens
from rlhf_jax.decoding.grammar import Opening
from rlhf_jax.interfaces import Message, PromptBatch, Rollout
from rlhf_jax.models.retriever import View
from rlhf_jax.recommenders import dual_view, mixture
from rlhf_jax.recommenders.contexts import Contexts, contexts_of
from rlhf_jax.recommenders.dual_view import DualView
from rlhf_jax.recommenders.scorer import ItemScorer, fit_scorer
from rlhf_jax.runtime.files import RunError, notice, read_object, write_json
from rlhf_jax.runtime.run import RunDirectory
from rlhf_jax.stages.agent import make_agent
from rlhf_jax.stages.setup import Setup
from rlhf_jax.stages.smtpo import retriever
from rlhf_jax.stages.smtpo.retriever import RetrieverConfig

TOWERS = "towers"
"""The trained retriever among the parts that recall."""
RETRIEVED, OPENING = "retriever", "opening"
"""What a prior may be told of them: the retriever's order of the conversation, and that of its opening."""


class Retrieval(NamedTuple):
    """What is recalled for a turn: the n highest of Σ_k w_k z_k(i, s) among the items that nobody has named.

    z are the closed forms', a training dialogue left out of its own, and the towers', which have learnt from all of them:
    in training dialogues they recall more than they will elsewhere.
    """

    scorer: ItemScorer
    """Gives z of the closed forms, and last −1 where an item was named."""
    towers: DualView | None
    """The trained retriever; None: the closed forms recall alone."""
    weights: Mapping[str, float]
    """w, by the scorer's parts and `towers`."""
    n: int
    """Candidates of a turn."""

    def look_up(
        self, contexts: Contexts, reads: ItemScorer
    ) -> tuple[Float32[np.ndarray, "N K I"], Float32[np.ndarray, "N I"]]:
        """What a policy's prior reads; and Σ_k w_k z_k, −∞ where an item was named. [N, K, I], [N, I]

        Args:
          reads: what that prior reads: this retrieval's scorer, or `telling_its_order` of it: then nothing is counted twice.
        """
        plain = self.scorer.item_scores(contexts)
        found = self._summed(plain[:, :-1], contexts)
        known = plain
        if reads is not self.scorer:
            order = mixture.standardised(found, "asinh"), mixture.standardised(of_openings(self, contexts), "asinh")
            known = np.concatenate([plain[:, :-1], np.stack(order, axis=1), plain[:, -1:]], axis=1)
        return known, np.where(plain[:, -1] < 0, -np.inf, found).astype(np.float32)

    def recalled(self, contexts: Contexts) -> Float32[np.ndarray, "N I"]:
        """Σ_k w_k z_k, also of items that were named. [N, I]"""
        return self._summed(mixture.features(self.scorer.parts, contexts, form="asinh"), contexts).astype(np.float32)

    def _summed(self, said: Float32[np.ndarray, "N K I"], contexts: Contexts) -> Float[np.ndarray, "N I"]:
        found = np.einsum("k,nki->ni", np.array([self.weights[name] for name in self.scorer.parts]), said)
        if self.towers is not None:
            towers = mixture.standardised(dual_view.scores(self.towers, contexts), "asinh")
            found = found + self.weights[TOWERS] * towers
        return found

    def candidates(self, scores: Float32[np.ndarray, "N I"]) -> Bool[np.ndarray, "N I"]:
        """True for the n highest scores of each row; where so many were named that fewer are left, for all that are left.

        Raises: RunError where every item was named: there is nothing to recommend.
        """
        n = min(self.n, scores.shape[1])
        kept = np.zeros(scores.shape, bool)
        np.put_along_axis(kept, np.argpartition(-scores, n - 1, axis=1)[:, :n], values=True, axis=1)
        kept &= np.isfinite(scores)
        if not kept.any(axis=1).all():
            raise RunError(f"a conversation has named all {scores.shape[1]} items: there is nothing left to recommend")
        return kept


def add_retriever(
    run: RunDirectory, setup: Setup, config: RetrieverConfig, *, view: View = "both"
) -> tuple[Setup, Retrieval]:
    """The stage `retriever` of a run, its weights beside the closed forms (`retrieval.json`), and the setup that has those.

    Args:
      view: what the towers read.
    Raises: ValueError if fewer items are recalled than a list holds.
    """
    if config.candidates < setup.data.max_items:
        raise ValueError(
            f"--retriever.candidates {config.candidates} cannot fill a list of --data.max-items {setup.data.max_items}"
        )
    sources = retriever.count_sources(setup.corpus, config)
    scorer = fit_scorer(setup.corpus, setup.vocab.item_ids)
    towers = retriever.train(run, sources, config, seed=setup.seed, view=view, layout=setup.layout)
    parts = {**scorer.parts, TOWERS: functools.partial(dual_view.scores, towers)}
    stored = run.path / "retrieval.json"
    if not stored.exists():
        notice("weights of the retriever's parts, on the validation split")
        found = mixture.fit_weights(parts, sources.validation, sources.gold, form="asinh")
        write_json(stored, found._asdict())
    weights = read_object(stored, "weights")["weights"]
    found = Retrieval(scorer, towers, weights, config.candidates)
    return setup._replace(scorer=telling_its_order(found) if config.in_prior else scorer), found


def telling_its_order(retrieval: Retrieval) -> ItemScorer:
    """The closed forms and, after them, what the retriever says of the conversation so far, and what it said of its opening.

    In a first turn the two are one. What they are worth apart, a policy can learn from later turns alone.
    """
    scorer = retrieval.scorer
    return scorer._replace(
        parts={**scorer.parts, RETRIEVED: retrieval.recalled, OPENING: functools.partial(of_openings, retrieval)},
        catalogue=scorer.catalogue._replace(openings=True),
    )


def telling_towers(retrieval: Retrieval) -> ItemScorer:
    """The closed forms and, after them, the trained retriever by itself.

    Raises: ValueError where nothing was trained.
    """
    if retrieval.towers is None:
        raise ValueError(f"{TOWERS}: this retrieval has closed forms alone")
    scorer, towers = retrieval.scorer, functools.partial(dual_view.scores, retrieval.towers)
    return scorer._replace(parts={**scorer.parts, TOWERS: towers})


def of_openings(retrieval: Retrieval, contexts: Contexts) -> Float32[np.ndarray, "N I"]:
    """What the retriever says of what came before the recommender named anything. [N, I]

    Raises: ValueError where contexts were made without it.
    """
    if contexts.openings is None:
        raise ValueError(f"{OPENING}: these contexts were made without their openings (Catalogue.openings)")
    return retrieval.recalled(contexts.openings)


class ListsBefore(NamedTuple):
    """Which imitated turns stand after full lists."""

    chance: float
    """Of a turn, `ReasoningConfig.listed_before`."""
    most: int
    """Lists before it at most: a conversation of T turns has T − 1 before its last."""


NO_LISTS_BEFORE = ListsBefore(0.0, 1)


class Recommender(NamedTuple):
    """A reasoning policy without its parameters: what it reads, and what its turns mean."""

    setup: Setup
    """Its agent speaks the reasoning form."""
    attributes: Attributes
    """A row an item, in the order of the policy's tokens."""
    retrieval: Retrieval
    said: int = 4
    """Attributes that an imitated turn names at most."""
    lists_before: ListsBefore = NO_LISTS_BEFORE
    """Which imitated turns have full lists before them."""

    @property
    def list_length(self) -> int:
        """Items of a well-formed list."""
        return self.setup.agent.grammar.max_items

    def prompts(
        self,
        histories: Sequence[Sequence[Message]],
        dialogue_ids: Sequence[str] | None = None,
        *,
        also: Sequence[Sequence[int]] = (),
    ) -> tuple[PromptBatch, Float32[np.ndarray, "N I"]]:
        """Conversations so far as a policy reads them, with the turn's candidates; and the retriever's scores. [N, I]

        Args:
          histories: messages of each, oldest first. [N]
          dialogue_ids: as `ItemScorer.of_histories`.
          also: columns that are candidates whatever the retriever says, by row; none for a policy that is measured. [N]
        """
        data, vocab = self.setup.data, self.setup.vocab
        sequences = [
            prompt_tokens(vocab, history, window=data.window, context_tokens=data.context_tokens)
            for history in histories
        ]
        tokens, mask = pad_left(sequences, data.context_tokens, vocab.pad)
        scorer = self.retrieval.scorer
        numbers = scorer.training.numbers
        own = None if dialogue_ids is None else [numbers.get(one, -1) for one in dialogue_ids]
        reads = scorer if self.setup.scorer is None else self.setup.scorer
        known, scores = self.retrieval.look_up(contexts_of(histories, reads.catalogue, own=own), reads)
        kept = self.retrieval.candidates(scores)
        for row, columns in enumerate(also):
            kept[row, list(columns)] = True
        prompts = PromptBatch(
            tokens=jnp.asarray(tokens),
            mask=jnp.asarray(mask),
            item_scores=jnp.asarray(known) if self.setup.prior else None,
            candidates=jnp.asarray(kept),
        )
        return prompts, scores

    def read(self, rollout: Rollout) -> list[Reasoned]:
        """The responses taken apart. [B]"""
        rows = zip(np.asarray(rollout.response_tokens), np.asarray(rollout.response_mask), strict=True)
        return [read_reasoning(self.setup.vocab, self.attributes, row[kept].tolist()) for row, kept in rows]


def make_recommender(
    setup: Setup,
    attributes: Attributes,
    retrieval: Retrieval,
    *,
    said: int = 4,
    lists_before: ListsBefore = NO_LISTS_BEFORE,
    temperature: float = 1.0,
) -> Recommender:
    """A recommender that speaks the reasoning form beside the two usual ones.

    Args:
      said: attributes that an imitated turn names at most.
      lists_before: which imitated turns have full lists before them.
    Raises: ValueError naming the numbers, where fewer items are recalled than a list holds.
    """
    vocab, data = setup.vocab, setup.data
    if min(retrieval.n, vocab.n_items) < data.max_items:
        raise ValueError(
            f"--retriever.candidates {retrieval.n} of {vocab.n_items} items cannot fill a list of --data.max-items "
            f"{data.max_items}"
        )
    openings = (Opening(vocab.rec, "list"), Opening(vocab.say, "words"), Opening(vocab.pref, "preferences"))
    agent = make_agent(
        vocab,
        setup.agent.network,
        max_items=data.max_items,
        response_tokens=data.response_tokens,
        temperature=temperature,
        openings=openings,
        once=data.items_once,
    )
    return Recommender(setup._replace(agent=agent), attributes, retrieval, said, lists_before)
