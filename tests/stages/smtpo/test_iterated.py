"""Iterated PPO: returns, the log of a round, what a forecast is worth, and that a killed run ends the same."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reasoned

from rlhf_jax.equations.group import turn_advantages
from rlhf_jax.interfaces import PromptBatch
from rlhf_jax.keys import stream_key
from rlhf_jax.learners.multi_turn_config import MultiTurnConfig
from rlhf_jax.models import gpt2
from rlhf_jax.runtime.run import open_run
from rlhf_jax.stages.agent import policy_params
from rlhf_jax.stages.smtpo import iterated
from rlhf_jax.stages.smtpo.episodes import converse
from rlhf_jax.stages.smtpo.human_turns import openings_of
from rlhf_jax.stages.smtpo.iterated import IteratedConfig, Log
from rlhf_jax.stages.smtpo.multi_turn import ConversationsConfig
from rlhf_jax.stages.smtpo.recommender import Recommender

TALK = ConversationsConfig(group_size=4, turns=2, learning_rate=2e-2, save_every=1)
CONFIG = IteratedConfig(
    rounds=2, logged=4, held_out=0.25, steps=6, batch_size=4, learning_rate=1e-2, evaluations=2, updates=2, states=2
)
WEIGHTS = (1.0, 2.0, 0.5)


@pytest.fixture(scope="module")
def recommender() -> Recommender:
    return reasoned.make()


def test_a_hit_that_ends_the_conversation_is_credited_above_a_miss_that_goes_on(recommender: Recommender) -> None:
    openings = openings_of(recommender.setup.corpus.train)
    pool = np.random.Generator(np.random.PCG64(np.random.SeedSequence([0, 0]))).permutation(len(openings))[:4]
    begun = [openings[row] for row in pool for _ in range(4)]
    others = [next(item for item in (11, 12, 14, 16) if item not in one.gold) for one in begun]
    first = [
        (one.gold[0] if row % 2 == 0 else other, other)
        for row, (one, other) in enumerate(zip(begun, others, strict=True))
    ]
    said = reasoned.Scripted(recommender, [first, [(other, other) for other in others]], "western")
    one = iterated._Round(recommender, reasoned.Quiet(), None, (TALK, MultiTurnConfig(), CONFIG), 0)
    recommender.setup.agent.programs["drawn turn"] = said
    try:
        log = one.log
    finally:
        del recommender.setup.agent.programs["drawn turn"]
    hit = np.arange(16) % 2 == 0
    assert log.first[:16].all() and len(log.credit) == 24
    # A miss is paid for form and attributes twice. Summed as they are, the misses would be above.
    assert log.credit[:16][hit].min() > log.credit[:16][~hit].max()
    np.testing.assert_allclose(log.credit[:16].reshape(4, 4).sum(axis=1), 0.0, atol=1e-5)


def test_a_round_logs_the_turns_of_its_own_policy(recommender: Recommender) -> None:
    params = {"trunk": gpt2.init(recommender.setup.network, jax.random.key(1))}
    learner = MultiTurnConfig(component_weights=WEIGHTS, gamma=0.5)
    one = iterated._Round(recommender, reasoned.Quiet(), params, (TALK, learner, CONFIG), 1)
    log = one.log
    assert log.opening.max() == 3 and log.first.sum() == 16
    # By hand: the same conversations once more.
    pool = openings_of(recommender.setup.corpus.train)
    draw = jax.jit(recommender.setup.agent.sample)
    order = np.random.Generator(np.random.PCG64(np.random.SeedSequence([0, 0]))).permutation(len(pool))
    begun = [pool[row] for row in order[4:8] for _ in range(4)]
    key = stream_key(one.key, "talk", 0)
    again = converse(recommender, draw, params, reasoned.Quiet(), begun, n_turns=2, key=key)
    for opening in range(4):
        rows = slice(4 * opening, 4 * opening + 4)
        running = jnp.asarray(again.running[rows])
        credit = turn_advantages(jnp.asarray(again.rewards[rows]), running, jnp.array(WEIGHTS), gamma=0.5)
        np.testing.assert_allclose(log.credit[rows], credit[:, 0], rtol=1e-5, atol=1e-6)
        second = log.credit[16:][log.opening[16:] == opening]
        np.testing.assert_allclose(second, credit[running[:, 1], 1], rtol=1e-5, atol=1e-6)
    second = np.asarray(again.rollouts[1].response_tokens)[again.running[:, 1]]
    np.testing.assert_array_equal(np.asarray(log.turns.response_tokens)[16:], second)
    np.testing.assert_array_equal(log.opening[16:], np.flatnonzero(again.running[:, 1]) // 4)
    learnt, held = one.parts
    assert set(log.opening[learnt]) == {0, 1, 2} and set(log.opening[held]) == {3}


def test_a_forecast_reads_window_and_reply_and_no_padding(recommender: Recommender) -> None:
    network = recommender.setup.network
    params = policy_params(gpt2.init(network, jax.random.key(2)), network.n_embd)
    params["value"]["kernel"] = jnp.arange(network.n_embd, dtype=jnp.float32)
    one = iterated._Round(recommender, reasoned.Quiet(), params, (TALK, MultiTurnConfig(), CONFIG), 0)
    turns = one.log.part(np.arange(6))
    found = one.values(params, np.arange(6), chunk=4)
    for row in range(6):
        kept = np.asarray(turns.prompt_mask[row]), np.asarray(turns.response_mask[row])
        tokens = np.concatenate(
            [np.asarray(turns.prompt_tokens[row])[kept[0]], np.asarray(turns.response_tokens[row])[kept[1]]]
        )
        hidden = gpt2.hidden_states(
            network, params["trunk"], jnp.asarray(tokens)[None], jnp.ones((1, len(tokens)), bool)
        )
        np.testing.assert_allclose(found[row], hidden[0, -1] @ params["value"]["kernel"], rtol=2e-3, atol=2e-3)


def test_what_a_forecast_is_worth() -> None:
    credit = np.array([1.0, 2.0, 4.0, 0.0, 3.0], np.float32) - 2.0
    log = Log(
        turns=None,  # pyright: ignore[reportArgumentType] - not read
        credit=credit,
        opening=np.array([0, 0, 0, 1, 1]),
        first=np.array([True, True, True, True, False]),
    )
    rows, standard = np.arange(5), credit / (credit.std() + 1e-6)
    perfect = iterated.judged_values(standard, log, rows)
    assert perfect["validation/explained"] == pytest.approx(1.0, abs=1e-5) and perfect["validation/ordered"] == 1.0
    knows_nothing = iterated.judged_values(np.zeros(5, np.float32), log, rows)
    assert knows_nothing["validation/explained"] == pytest.approx(0.0, abs=1e-6)
    assert knows_nothing["validation/ordered"] == 0.5
    # Of the three pairs of first replies to opening 0 one is turned around; opening 1 has no pair of first replies.
    turned = iterated.judged_values(standard[[1, 0, 2, 3, 4]], log, rows)
    assert turned["validation/ordered"] == pytest.approx(2 / 3)


@pytest.mark.slow
def test_a_forecast_learns_what_a_reply_shows(recommender: Recommender, tmp_path: Path) -> None:
    params = {"trunk": gpt2.init(recommender.setup.network, jax.random.key(1))}
    config = dataclasses.replace(CONFIG, logged=8, steps=80, batch_size=16, evaluations=4)
    one = iterated._Round(recommender, reasoned.Quiet(), params, (TALK, MultiTurnConfig(), config), 0)
    # Credit for how a reply begins, instead of what it earns.
    begins = np.asarray(one.log.turns.response_tokens)[:, 0] == recommender.setup.vocab.pref
    one.__dict__["log"] = one.log._replace(credit=np.where(begins, 1.0, -1.0).astype(np.float32))
    with open_run(tmp_path / "run", config, trackers=()) as run:
        found = one.forecast(run, params)
    learnt, _ = one.parts
    error = float(np.mean((one.values(found, learnt) - one.log.credit[learnt] / one.deviation) ** 2))
    assert error < 0.3, "1 is what the mean would leave"


@pytest.mark.slow
def test_replies_that_a_forecast_pays_for_become_likelier(recommender: Recommender, tmp_path: Path) -> None:
    params = {"trunk": gpt2.init(recommender.setup.network, jax.random.key(1))}
    config, talk = (
        dataclasses.replace(CONFIG, updates=10, states=8),
        dataclasses.replace(TALK, group_size=8, learning_rate=3e-2),
    )
    one = iterated._Round(recommender, reasoned.Quiet(), params, (talk, MultiTurnConfig(kl_coef=0.0), config), 0)
    agent = recommender.setup.agent
    # Short replies are worth more; random ones are nearly all as long as they may be.
    agent.programs["value of turns"] = lambda _, turns: -turns.response_mask.sum(axis=1).astype(jnp.float32)
    try:
        with open_run(tmp_path / "run", config, trackers=()) as run:
            improved = one.improve(run, params, params)
    finally:
        del agent.programs["value of turns"]
    states = one.log.part(np.repeat(np.arange(len(one.log.credit)), 8))
    prompts = PromptBatch(
        tokens=states.prompt_tokens,
        mask=states.prompt_mask,
        item_scores=states.item_scores,
        candidates=states.candidates,
    )
    before, after = (
        float(jax.jit(agent.sample)(own, prompts, jax.random.key(9)).response_mask.sum(axis=1).mean())
        for own in (params, improved)
    )
    assert before > 23 and after < before - 2


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(
    recommender: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the first round's improvement, whose log has to be made again."""
    params = {"trunk": gpt2.init(recommender.setup.network, jax.random.key(1))}
    config = dataclasses.replace(CONFIG, updates=3)

    def train(name: str) -> object:
        with open_run(tmp_path / name, config, trackers=()) as run:
            return iterated.train(run, recommender, reasoned.Quiet(), params, TALK, MultiTurnConfig(), config)

    whole = train("whole")
    moved = jax.tree.map(lambda one, other: float(np.abs(one - other).max()), whole, params)
    assert max(jax.tree.leaves(moved)) > 1e-3
    made, calls = iterated.PromptBatch, []

    def killed(**fields: object) -> object:
        calls.append(fields)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return made(**fields)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(iterated, "PromptBatch", killed)
    with pytest.raises(KeyboardInterrupt):
        train("killed")
    monkeypatch.setattr(iterated, "PromptBatch", made)
    jax.tree.map(np.testing.assert_array_equal, whole, train("killed"))


@pytest.mark.parametrize("wrong", [{"held_out": 0.0}, {"held_out": 0.01, "logged": 8}])
def test_a_log_without_a_part_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="leaves none to judge Q on"):
        IteratedConfig(**wrong)  # pyright: ignore[reportArgumentType]
