"""The reward's choice among items: scores of single replies row by row, and stored once."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.assessment import reward_choice
from rlhf_jax.data.batching import pad_left
from rlhf_jax.data.windows import prompt_tokens
from rlhf_jax.evaluation import item_choice
from rlhf_jax.evaluation.results import Result
from rlhf_jax.interfaces import Message, PromptBatch, Rollout
from rlhf_jax.runtime.files import write_json
from rlhf_jax.runtime.run import open_run
from rlhf_jax.stages.contexts import Windows
from rlhf_jax.stages.reward import GateError, Proxy
from rlhf_jax.stages.setup import Setup
from tiny_policy import Tiny

WEIGHTS = (0.5, 0.3, 0.2)


@pytest.fixture
def setup(tiny: Tiny) -> Setup:
    """With something to validate on."""
    return tiny.setup._replace(corpus=dataclasses.replace(tiny.setup.corpus, validation=tiny.setup.corpus.test))


@pytest.fixture
def proxy(tiny: Tiny) -> Proxy:
    return Proxy(tiny.reward_model, WEIGHTS)


def prompt_of(setup: Setup, history: list[Message]) -> PromptBatch:
    tokens = prompt_tokens(setup.vocab, history, window=setup.data.window, context_tokens=setup.data.context_tokens)
    padded, mask = pad_left([tokens], setup.data.context_tokens, setup.vocab.pad)
    return PromptBatch(tokens=jnp.asarray(padded), mask=jnp.asarray(mask))


def by_single_replies(setup: Setup, tiny: Tiny, prompts: PromptBatch, columns: list[int]) -> np.ndarray:
    grammar = setup.agent.grammar
    tokens = np.array([[grammar.rec, grammar.first_item + c, grammar.say, grammar.eos] for c in columns], np.int32)
    rows = Rollout(
        prompt_tokens=jnp.repeat(prompts.tokens, len(columns), axis=0),
        prompt_mask=jnp.repeat(prompts.mask, len(columns), axis=0),
        response_tokens=jnp.asarray(tokens),
        response_mask=jnp.ones(tokens.shape, bool),
        logprobs=jnp.zeros(tokens.shape),
        finished=jnp.ones(len(columns), bool),
    )
    return np.asarray(tiny.score(tiny.reward_model, rows)) @ np.array(WEIGHTS)


def test_cases_are_the_fresh_items_of_validation_scored_as_single_replies(
    setup: Setup,
    tiny: Tiny,
    proxy: Proxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = reward_choice._cases(setup, tiny.policy, proxy)
    # Items 11 and 12 in one message, 14 in another; 13 is the seeker's.
    assert found.dialogues == ("0", "0", "1")
    windows = Windows.of(setup, setup.corpus.validation)
    logits = jax.jit(setup.agent.score_items)(tiny.policy, windows.batch([(0, 2), (1, 2)]))
    scores = by_single_replies(setup, tiny, windows.batch([(1, 2)]), [0, 1, 2, 3])
    assert found.ranks["reward"][2] == np.sum(scores >= scores[3])
    assert found.ranks["policy"][2] == np.sum(np.asarray(logits[1]) >= float(logits[1, 3]))
    assert found.auc[2] == pytest.approx(np.mean(scores[:3] < scores[3]))
    with open_run(tmp_path / "run", {}, trackers=()) as run:
        results = reward_choice.measure(run, setup, tiny.policy, proxy, n_users=4, n_turns=2)
        assert {one.protocol for one in results} == {"choice"} and results[0].n == 3
        assert "which item is right: rank-matched AUC" in "".join(capsys.readouterr())
        # A second start reads what was found.
        monkeypatch.setattr(reward_choice, "_cases", None)
        assert reward_choice.measure(run, setup, tiny.policy, proxy, n_users=4, n_turns=2) == results


def test_a_judge_that_chooses_worse_is_not_followed(
    setup: Setup, tiny: Tiny, proxy: Proxy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    order = item_choice.candidates_of(np.array([4.0, 3.0, 2.0, 1.0, 0.5, 0.4, 0.3]), 0, named=[])
    worst = np.array([0.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    for scores, reason in ((worst, "ranks worse than the policy's own: HR@5 -1.000 [-1.000, -1.000]"), (-worst, "")):
        cases = item_choice.cases_of([order] * 3, [scores] * 3, ["a", "b", "c"])
        found = item_choice.choice_results(cases, split="redial/validation", seed=0)
        assert item_choice.falls_behind(found).endswith(reason) and bool(reason) == bool(
            item_choice.falls_behind(found)
        )
        with open_run(tmp_path / f"run-{bool(reason)}", {}, trackers=()) as run:
            write_json(run.path / reward_choice.FILE, [one.to_json() for one in found])
            size: Any = {"n_users": 4, "n_turns": 2}
            assert reward_choice.measure(run, setup, tiny.policy, proxy, **size) == found
            assert ("warning: its order" in "".join(capsys.readouterr())) == bool(reason)
            if reason:
                with pytest.raises(
                    GateError, match=r"none was started: see .*; a new --run-dir with --reward.choice-gate warn goes on"
                ):
                    reward_choice.measure(run, setup, tiny.policy, proxy, **size, gate="stop")
            else:
                assert reward_choice.measure(run, setup, tiny.policy, proxy, **size, gate="stop") == found


@pytest.mark.parametrize(("value", "interval", "behind"), [(-0.1, (-0.2, -0.05), True), (-0.1, (-0.2, 0.01), False)])
def test_in_the_world_users_judge_the_first_choice(value: float, interval: tuple[float, float], behind: bool) -> None:
    name = "choice_reward-choice_policy/mean_utility"
    said = item_choice.falls_behind([Result(name, value, 4, "closed-loop", "world/test", interval, (0,), "")])
    assert said == (
        "its first choice is worth less to users than the policy's: -0.100 [-0.200, -0.050]" if behind else ""
    )


def test_the_first_choice_is_the_best_fresh_item(setup: Setup, tiny: Tiny, proxy: Proxy) -> None:
    named = [Message("seeker", ("hello ", 12), 0)]
    histories = [[Message("seeker", ("hello there",), 0)], named, [Message("seeker", (11, 12, 13, 14), 0)]]
    logits = np.array(reward_choice._item_logits(setup, tiny.policy, prompt_of(setup, named)))[0]
    fresh = [0, 2, 3]
    said = reward_choice._first_choice(setup, tiny.policy, None, histories[1:2], (0,))
    assert said[0].items == (setup.vocab.item_ids[fresh[int(np.argmax(logits[fresh]))]],)
    # Where all were named, the best of them.
    logits = np.array(reward_choice._item_logits(setup, tiny.policy, prompt_of(setup, histories[2])))[0]
    said = reward_choice._first_choice(setup, tiny.policy, None, histories[2:], (0,))
    assert said[0].items == (setup.vocab.item_ids[int(np.argmax(logits))],)
    for judge in (None, proxy):
        said = reward_choice._first_choice(setup, tiny.policy, judge, histories, (0, 1, 2))
        assert [message.role for message in said] == ["recommender"] * 3
        assert all(len(message.items) == 1 for message in said) and said[1].items != (12,)
    best = reward_choice._first_choice(setup, tiny.policy, proxy, histories[1:2], (0,))[0].items[0]
    scores = by_single_replies(setup, tiny, prompt_of(setup, named), fresh)
    assert best == setup.vocab.item_ids[fresh[int(np.argmax(scores))]]
