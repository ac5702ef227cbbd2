"""What a policy says while it is trained: its replies to the same few validation contexts at every evaluation."""

from collections.abc import Callable

import jax
import numpy as np

from rlhf_jax.data.items import spelled_titles
from rlhf_jax.interfaces import Params
from rlhf_jax.keys import stream_key
from rlhf_jax.runtime.metrics import Sample
from rlhf_jax.stages.contexts import Windows
from rlhf_jax.stages.reward import Proxy
from rlhf_jax.stages.setup import Setup

SCORE = "score"
"""The weighted sum of the components; no component can be called so."""
Drawer = Callable[[Params], list[Sample]]
"""A policy's parameters, whole on one device, to its replies."""


def reply_drawer(setup: Setup, count: int, proxy: Proxy | None = None) -> Drawer | None:
    """Samples a policy's replies to `count` contexts that are evenly spread over the validation split.

    Contexts and key are the same at every call, so that replies differ by what was learnt alone. The key is of a stream of
    its own (`samples`), which training never draws from. One program draws, whatever the stage.

    Args:
      count: contexts; all there are where there are fewer.
      proxy: scores the replies by component and in sum, z, as the reward model says it: no penalty, no normalisation.
    Returns: None where `count` is 0 or no validation message has a context.
    """
    whole = Windows.of(setup, setup.corpus.validation)
    turns = whole.turns() if count else []
    if not turns:
        return None
    places = np.linspace(0, len(turns) - 1, min(count, len(turns))).astype(int)
    chosen = [turns[place] for place in places]
    # Only dialogues that are shown are encoded.
    few = Windows.of(setup, [whole.dialogues[number] for number, _ in chosen])
    prompts = few.batch([(row, index) for row, (_, index) in enumerate(chosen)])
    titles = spelled_titles(setup.corpus.items)
    key = stream_key(jax.random.key(setup.seed), "samples", 0)
    draw = setup.agent.compiled("samples", lambda: jax.jit(setup.agent.sample))
    score = setup.agent.compiled("scores of samples", lambda: jax.jit(setup.agent.score))

    def text(row: np.ndarray, kept: np.ndarray) -> str:
        return setup.vocab.decode(row[kept], titles, specials=True)

    asked = [text(row, kept) for row, kept in zip(np.asarray(prompts.tokens), np.asarray(prompts.mask), strict=True)]

    def samples(params: Params) -> list[Sample]:
        rollout = draw(params, prompts, key)
        rows = zip(np.asarray(rollout.response_tokens), np.asarray(rollout.response_mask), strict=True)
        said = [text(row, kept) for row, kept in rows]
        scores: list[dict[str, float]] = [{} for _ in said]
        if proxy is not None:
            found = np.asarray(score(proxy.model, rollout), np.float64)
            totals = found @ np.asarray(proxy.weights)
            names = (*proxy.names, SCORE)
            scores = [
                dict(zip(names, map(float, row), strict=True))
                for row in np.concatenate([found, totals[:, None]], axis=1)
            ]
        return [Sample(*each) for each in zip(asked, said, scores, strict=True)]

    return samples
