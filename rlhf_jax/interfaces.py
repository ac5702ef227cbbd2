"""What crosses a boundary between the parts: records, batches and callable types.

Layer 0: imports no other module of the package. Shape letters: B responses, P prompt, T response, S = P + T,
V vocabulary, I items, C reward components.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import chex
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

Params = Any
"""A pytree of float arrays; only the function that made it knows its structure."""

Role = Literal["seeker", "recommender"]
UNKNOWN = 2
"""ReDial's third answer, "did not say", in `ItemLabel`."""


class ItemLabel(NamedTuple):
    """One line of a worker's form about one item; 0 no, 1 yes, 2 did not say.

    `suggested`: 0 the seeker named it, 1 the recommender suggested it.
    """

    suggested: int
    seen: int
    liked: int


@dataclasses.dataclass(frozen=True)
class Message:
    """One message as sent; nothing is joined. `parts` alternates words (`str`) and item ids (`int`)."""

    role: Role
    parts: tuple[str | int, ...]
    message_id: int
    time_offset: int | None = None
    """Seconds since the dialogue began; None where the data does not say."""

    @property
    def items(self) -> tuple[int, ...]:
        """Item ids in order of mention, repeats included."""
        return tuple(part for part in self.parts if isinstance(part, int))


@dataclasses.dataclass(frozen=True)
class Dialogue:
    """A conversation between a seeker and a recommender, with both workers' forms (empty where missing)."""

    dialogue_id: str
    messages: tuple[Message, ...]
    seeker_labels: Mapping[int, ItemLabel]
    recommender_labels: Mapping[int, ItemLabel]
    provenance: str = "official"
    """`official`/`verbatim`, `forms` or `rebuilt` (then times and `seen` are absent), `world` for simulated ones."""
    domain: str = ""
    """What is talked about where a data set has several kinds of items (`movie`, `book`); empty where it has one."""


@dataclasses.dataclass(frozen=True)
class Item:
    """One catalogue entry with what is known about it (empty where unknown)."""

    item_id: int
    title: str
    year: int | None = None
    genres: tuple[str, ...] = ()
    people: tuple[str, ...] = ()
    plot: str = ""
    domain: str = ""
    """Kind of item where a data set has several (`movie`, `book`); empty where it has one."""


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Splits by dialogue and the catalogue: every item mentioned in any split, in ascending id."""

    train: Sequence[Dialogue]
    """In memory a tuple; of a store, dialogues that are read when they are asked for."""
    validation: Sequence[Dialogue]
    test: Sequence[Dialogue]
    items: Mapping[int, Item]
    provenance: Mapping[str, Any]
    """Name of the data set, files with sha256, counts, skipped lines."""


@chex.dataclass(frozen=True)
class PromptBatch:
    """Left-padded prompts; each ends with the `<recommender>` marker."""

    tokens: Int[Array, "B P"]
    mask: Bool[Array, "B P"]
    item_scores: Float[Array, "B K I"] | None = None
    """What K recommenders say of every item after this context, for policies with a prior (`decoding.prior`)."""
    candidates: Bool[Array, "B I"] | None = None
    """Items that a list may hold, at least one in each row; None: all of the catalogue."""


@chex.dataclass(frozen=True)
class Rollout:
    """Prompts and the responses sampled for them; everything about responses is aligned with `response_tokens`.

    A row is one turn. In a conversation of several turns every turn is a row of its own, whose prompt holds what was
    said before: then sampler, grammar and learner never meet a user's words inside a response (docs/decisions/0011).
    """

    prompt_tokens: Int[Array, "B P"]
    prompt_mask: Bool[Array, "B P"]
    response_tokens: Int[Array, "B T"]
    response_mask: Bool[Array, "B T"]
    """True on the response, which the policy chose, the `<eos>` included; False on the padding after it."""
    logprobs: Float[Array, "B T"]
    """Log-probability under the sampling policy, temperature and grammar mask applied, nats; 0 on padding."""
    finished: Bool[Array, " B"]
    """True where `<eos>` was sampled within the budget."""
    values: Float[Array, "B T"] | None = None
    """The sampling policy's value before each token, where the sampler knows it: then no pass is needed for it."""
    item_scores: Float[Array, "B K I"] | None = None
    """Those of the prompts."""
    candidates: Bool[Array, "B I"] | None = None
    """Those of the prompts."""


@chex.dataclass(frozen=True)
class ResponseGroups:
    """N responses to each of B prompts; a prompt stands once."""

    prompts: PromptBatch
    response_tokens: Int[Array, "B N T"]
    response_mask: Bool[Array, "B N T"]
    """As a rollout's."""


def check_rollout(rollout: Rollout) -> None:
    """Raises ValueError where a row's mask has a hole: what stands there would be neither read nor learnt.

    For rollouts that come from outside a compiled program; the values of the mask are looked at.
    """
    mask = np.asarray(rollout.response_mask)
    broken = np.flatnonzero((mask[:, 1:] & ~mask[:, :-1]).any(axis=1))
    if len(broken):
        raise ValueError(
            f"row {broken[0]} of the rollout: its response_mask is True after a False; a row is one turn, and a user's "
            "words belong into the prompt of the next row"
        )


@chex.dataclass(frozen=True)
class PolicyOutput:
    """What a policy says about given responses; position t is the distribution over, and the value before, token t."""

    logprobs: Float[Array, "B T"]
    entropy: Float[Array, "B T"]
    values: Float[Array, "B T"]


@runtime_checkable
class PolicyApply(Protocol):
    """Judges given responses: masked, tempered log-probabilities, entropy and values of every response token."""

    def __call__(self, params: Params, rollout: Rollout) -> PolicyOutput: ...


@dataclasses.dataclass(frozen=True)
class GroupPolicy:
    """A policy that reads each prompt once for all its responses, in the place of a `PolicyApply`."""

    logprobs: Callable[[Params, ResponseGroups], Float[Array, "B N T"]]
    """What `PolicyApply` says of the same responses row by row; 0 on padding."""


@runtime_checkable
class Sample(Protocol):
    """Draws one response per prompt; the same key gives the same responses, whatever the batch around a row."""

    def __call__(self, params: Params, prompts: PromptBatch, key: Key[Array, ""]) -> Rollout: ...


@runtime_checkable
class Score(Protocol):
    """Raw reward components of finished responses, in the reward model's z-units, in the order of its components' names."""

    def __call__(self, params: Params, rollout: Rollout) -> Float[Array, "B C"]: ...
