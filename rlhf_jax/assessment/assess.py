"""Stage 4: what a policy is worth: ranking, text, and in the simulated world the truth.

Everything measured is stored case by case (`assessments/SYSTEM.npz`), so that systems and seeds can be compared
pair by pair later, and an interrupted run does not measure twice.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np

from rlhf_jax.assessment.users import Responder, meet_users
from rlhf_jax.data.batching import wrapped_batches
from rlhf_jax.data.vocabulary import Vocabulary
from rlhf_jax.data.windows import RankingRow, ranking_rows, response_message, response_parts
from rlhf_jax.evaluation import ranking, user_centric
from rlhf_jax.evaluation.ranking import RankingOutcome, RankTable
from rlhf_jax.evaluation.text import GeneratedTurn, is_grammatical, words_of
from rlhf_jax.interfaces import Dialogue, Message, Params
from rlhf_jax.ranges import Batch, Cases, Range, check_numbers
from rlhf_jax.runtime.files import DamagedFileError, notice, read_npz, write_npz
from rlhf_jax.runtime.progress import Progress
from rlhf_jax.runtime.run import RunDirectory
from rlhf_jax.stages.agent import Agent
from rlhf_jax.stages.contexts import Windows
from rlhf_jax.stages.reward import Proxy
from rlhf_jax.stages.setup import Setup

History = Sequence[Message]


@dataclasses.dataclass(frozen=True)
class AssessmentConfig:
    """Stage 4: the size of the evaluation on the test split."""

    test_dialogues: Cases | None = None
    """Test dialogues that are ranked; None is all."""
    text_turns: Cases = 500
    """Test turns that are answered for the text metrics."""
    batch_size: Batch = 64
    """Contexts of one forward pass."""
    users: Cases = 300
    """Users of the simulated world met in closed loop, none of whom the policy was trained on."""
    user_turns: Annotated[int, Range("[1, 1_000]")] = 4
    """System turns a user has patience for."""
    conversations: Annotated[int, Range("[1, 1_000]")] = 6
    """Test contexts shown in the report with the systems' replies."""

    def __post_init__(self) -> None:
        check_numbers(self)


class Assessment(NamedTuple):
    """One system's measurements, case by case."""

    ranking: RankingOutcome
    turns: list[GeneratedTurn]
    """Greedy answers to test contexts; empty for a baseline."""
    users: dict[str, dict[str, np.ndarray]]
    """Decoding (`sampled`, `greedy`) to closed-loop metric to one value per user; empty for real data."""


def assess(
    run: RunDirectory,
    system: str,
    setup: Setup,
    params: Params,
    config: AssessmentConfig,
    proxy: Proxy,
) -> Assessment:
    """Measures a policy on the test split, and on users where there is a world; once per run and system.

    Args:
      proxy: tells the proxy score beside the truth.
    """
    folder = run.path / "assessments"
    folder.mkdir(exist_ok=True)
    rows = test_rows(setup, config)
    stored = folder / f"{system}.npz"
    if stored.exists():
        try:
            return load(stored, rows)
        except DamagedFileError as error:
            notice(f"{error}: measuring again")
    scores = item_score_chunks(setup, params, rows, config, name=f"{system}: ranking")
    outcome = ranking.rank_rows(rows, scores, setup.vocab.item_ids)
    turns = answer(setup, params, config, name=f"{system}: answers")
    users: dict[str, dict[str, np.ndarray]] = {}
    if setup.world_seed is not None:
        for decoding in ("sampled", "greedy"):
            responder = Responder(setup, params, greedy=decoding == "greedy", proxy=proxy)
            users[decoding] = meet_users(responder, setup, n_users=config.users, n_turns=config.user_turns)
    assessment = Assessment(outcome, turns, users)
    save(stored, assessment)
    return assessment


class Systems(NamedTuple):
    """Policies by name, in the order to show, and what each is worth."""

    policies: Mapping[str, Params]
    cases: Mapping[str, Assessment]


def assess_all(
    run: RunDirectory, setup: Setup, policies: Mapping[str, Params], config: AssessmentConfig, proxy: Proxy
) -> Systems:
    """`assess` of every policy."""
    return Systems(
        policies, {name: assess(run, name, setup, params, config, proxy) for name, params in policies.items()}
    )


def test_rows(setup: Setup, config: AssessmentConfig) -> list[RankingRow]:
    """Rows of the ranking protocols on the test split."""
    return list(ranking_rows(setup.corpus.test[: config.test_dialogues]))


def item_score_chunks(
    setup: Setup, params: Params, rows: Sequence[RankingRow], config: AssessmentConfig, *, name: str
) -> Iterator[np.ndarray]:
    """Scores of all items for every row, from the context alone."""
    windows = Windows.of(setup, setup.corpus.test)
    number = {dialogue.dialogue_id: index for index, dialogue in enumerate(setup.corpus.test)}
    places = [(number[row.dialogue.dialogue_id], row.message_index) for row in rows]
    compiled = setup.agent.compiled("score_items", lambda: jax.jit(setup.agent.score_items))
    with Progress(name, 0, len(rows)) as progress:
        for chosen, own in wrapped_batches(len(rows), config.batch_size):
            yield np.asarray(compiled(params, windows.batch([places[row] for row in chosen])))[:own]
            progress.show(int(chosen[0]) + own, {})


def text_turns(windows: Windows, limit: int) -> Sequence[tuple[int, int]]:
    """Evenly spread recommender turns of the test split."""
    turns = windows.turns()
    if len(turns) <= limit:
        return turns
    return [turns[index] for index in np.linspace(0, len(turns) - 1, limit).astype(int)]


def answer(setup: Setup, params: Params, config: AssessmentConfig, *, name: str) -> list[GeneratedTurn]:
    """Greedy answers to test contexts, beside what the human said there."""
    windows = Windows.of(setup, setup.corpus.test[: config.test_dialogues])
    turns = text_turns(windows, config.text_turns)
    responses = greedy_responses(setup.agent, params, windows, turns, config.batch_size, name=name)
    return [
        generated_turn(setup.vocab, setup.agent, windows.dialogues[dialogue], index, response)
        for (dialogue, index), response in zip(turns, responses, strict=True)
    ]


def generated_turn(
    vocab: Vocabulary, agent: Agent, dialogue: Dialogue, index: int, response: Sequence[int]
) -> GeneratedTurn:
    """A response (padding removed) in the place of a dialogue's message, beside what the human said there."""
    ids = vocab.grammar
    return GeneratedTurn(
        dialogue=dialogue.dialogue_id,
        text=words_of(response_message(vocab, response)),
        reference=words_of(dialogue.messages[index]),
        n_tokens=len(response),
        n_items=len(response_parts(vocab, response).items),
        grammatical=is_grammatical(
            response,
            n_words=ids.n_words,
            eos=ids.eos,
            rec=ids.rec,
            say=ids.say,
            items=range(ids.first_item, ids.first_item + ids.n_items),
            max_items=agent.grammar.max_items,
            once=agent.grammar.once,
        ),
    )


def greedy_responses(
    agent: Agent,
    params: Params,
    windows: Windows,
    turns: Sequence[tuple[int, int]],
    batch_size: int,
    *,
    name: str,
) -> list[list[int]]:
    """The likeliest response to every context, padding removed."""
    compiled = agent.compiled(
        "greedy", lambda: jax.jit(lambda params, prompts, key: agent.greedy(params, prompts, key, None))
    )
    responses: list[list[int]] = []
    with Progress(name, 0, len(turns)) as progress:
        for chosen, own in wrapped_batches(len(turns), batch_size):
            rollout = compiled(params, windows.batch([turns[row] for row in chosen]), jax.random.key(0))
            said = zip(np.asarray(rollout.response_tokens)[:own], np.asarray(rollout.response_mask)[:own], strict=True)
            responses += [row[keep].tolist() for row, keep in said]
            progress.show(len(responses), {})
    return responses


def save(path: Path, assessment: Assessment) -> None:
    """Writes the cases as arrays."""
    arrays: dict[str, Any] = {}
    for protocol, table in assessment.ranking.tables.items():
        arrays[f"ranks/{protocol}"], arrays[f"rows/{protocol}"] = table.ranks, table.rows
        arrays[f"dialogues/{protocol}"] = np.array(table.dialogues, np.str_)
    arrays["top/whole"] = np.array(json.dumps(assessment.ranking.top.whole))
    arrays["top/filtered"] = np.array(json.dumps(assessment.ranking.top.filtered))
    arrays["turns"] = np.array(json.dumps([list(turn) for turn in assessment.turns]))
    for decoding, values in assessment.users.items():
        arrays |= {f"users/{decoding}/{metric}": value for metric, value in values.items()}
    write_npz(path, arrays)


def load(path: Path, rows: Sequence[RankingRow] = ()) -> Assessment:
    """Reads what `save` wrote; `rows`, the same test rows, are needed for the user-centric metrics only.

    Raises: DamagedFileError naming a file that is not what was written.
    """
    arrays = read_npz(path)
    tables = {}
    try:
        for name, array in arrays.items():
            kind, _, protocol = name.partition("/")
            if kind == "ranks":
                dialogues = tuple(map(str, arrays[f"dialogues/{protocol}"]))
                tables[protocol] = RankTable(protocol, array, arrays[f"rows/{protocol}"], dialogues)
        whole, filtered = (
            tuple(tuple(items) for items in json.loads(str(arrays[f"top/{kind}"]))) for kind in ("whole", "filtered")
        )
        turns = [GeneratedTurn(*fields) for fields in json.loads(str(arrays["turns"]))]
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(f"{path} holds no assessment ({error}): restore it or remove it") from error
    users: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        if name.startswith("users/"):
            _, decoding, metric = name.split("/", 2)
            users.setdefault(decoding, {})[metric] = array
    top = user_centric.TopOne(tuple(rows), whole, filtered)
    return Assessment(RankingOutcome(tables, top), turns, users)
