"""Sampled answers against plain loops: distance, ends, listed items, and what comes back from disk."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.assessment.sampled import (
    Against,
    Judge,
    Listed,
    SampledAnswers,
    SampledConfig,
    draw_answers,
    load,
    sampled_answers,
    save,
)
from rlhf_jax.assessment.sampled_results import sampled_differences, sampled_results
from rlhf_jax.evaluation.text import GeneratedTurn
from rlhf_jax.interfaces import Message, PromptBatch
from rlhf_jax.keys import stream_key
from rlhf_jax.models import gpt2
from rlhf_jax.runtime.run import open_run
from rlhf_jax.stages.contexts import Windows
from rlhf_jax.stages.reward import Proxy
from tiny_policy import DATA, Tiny

WEIGHTS = (0.5, 0.25, 0.25)
CONFIG = SampledConfig(turns=3, batch_size=2)


@pytest.fixture(scope="module")
def answers(tiny: Tiny) -> SampledAnswers:
    return draw_answers(tiny.setup, tiny.policy, CONFIG, against(tiny))


def against(tiny: Tiny, judge: Judge | None = None) -> Against:
    return Against(tiny.reference, Proxy(tiny.reward_model, WEIGHTS), judge)


def said_tokens(tiny: Tiny, answers: SampledAnswers) -> list[list[int]]:
    """The responses themselves, drawn again."""
    windows = Windows(tiny.setup.vocab, tiny.setup.corpus.test, DATA)
    tokens, mask = windows.prompts(windows.turns())
    found = []
    for start, rows in ((0, [0, 1]), (2, [2, 0])):
        prompts = PromptBatch(tokens=jnp.asarray(tokens[rows]), mask=jnp.asarray(mask[rows]))
        key = stream_key(jax.random.key(0), "sampled_answers", start)
        rollout = tiny.sample(tiny.policy, prompts, key)
        for row, keep in zip(np.asarray(rollout.response_tokens), np.asarray(rollout.response_mask), strict=True):
            found.append(row[keep].tolist())
    return found[: len(answers.turns)]


def all_logits(tiny: Tiny, trunk, prompt: list[int], response: list[int]) -> np.ndarray:
    """Logits before every token of the response: one pass over the whole text, padded behind."""
    text = [*prompt, *response[:-1]]
    tokens = np.full((1, DATA.context_tokens + DATA.response_tokens), tiny.setup.vocab.pad, np.int32)
    tokens[0, : len(text)] = text
    mask = jnp.arange(tokens.shape[1])[None, :] < len(text)
    forward = _forward(tiny.agent.network)
    return np.asarray(forward(trunk, jnp.asarray(tokens), mask)[0, len(prompt) - 1 : len(text)], np.float64)


@functools.cache
def _forward(network: gpt2.GPT2Config):
    return jax.jit(functools.partial(gpt2.forward, network))


def log_distribution(tiny: Tiny, logits: np.ndarray, before: list[int]) -> np.ndarray:
    """log π of every token after `before`, the rules of the grammar spelled out."""
    vocab = tiny.setup.vocab
    listed = [token for token in (before[: before.index(vocab.say)] if vocab.say in before else before)[1:]]
    words = set(range(vocab.n_words)) - {vocab.pad, vocab.eos, vocab.rec, vocab.say}
    items = {vocab.item_token(item) for item in vocab.item_ids}
    if not before:
        allowed = {vocab.rec, vocab.say}
    elif vocab.say in before:
        allowed = words | set(listed) | {vocab.eos}
    else:
        allowed = (items - set(listed) if len(listed) < DATA.max_items else set()) | ({vocab.say} if listed else set())
    masked = np.full(len(logits), -np.inf)
    masked[list(allowed)] = logits[list(allowed)]
    return masked - masked.max() - np.log(np.exp(masked - masked.max()).sum())


def test_distance_and_entropy_by_hand(tiny: Tiny, answers: SampledAnswers) -> None:
    windows = Windows(tiny.setup.vocab, tiny.setup.corpus.test, DATA)
    tokens, mask = windows.prompts(windows.turns())
    for row, response in enumerate(said_tokens(tiny, answers)):
        prompt = tokens[row][mask[row]].tolist()
        ratio, entropy = 0.0, 0.0
        logits = [all_logits(tiny, tree["trunk"], prompt, response) for tree in (tiny.policy, tiny.reference)]
        for place, token in enumerate(response):
            policy, reference = (log_distribution(tiny, one[place], response[:place]) for one in logits)
            ratio += policy[token] - reference[token]
            kept = policy[np.isfinite(policy)]
            entropy -= float((np.exp(kept) * kept).sum())
        assert answers.kl[row] == pytest.approx(ratio, abs=2e-3)
        assert answers.entropy[row] == pytest.approx(entropy / len(response), abs=1e-3)
        assert answers.turns[row].n_tokens == len(response)
        assert bool(answers.finished[row]) == (response[-1] == tiny.setup.vocab.eos)
    np.testing.assert_allclose(answers.proxy, answers.components @ np.array(WEIGHTS), rtol=1e-5)


def test_listed_items_by_hand(tiny: Tiny, answers: SampledAnswers) -> None:
    """The test dialogues suggest 11 and 12 in the first answered turn, nothing in the second, 14 in the third."""
    vocab = tiny.setup.vocab
    lists = []
    for response in said_tokens(tiny, answers):
        head = response[: response.index(vocab.say)] if vocab.say in response else response
        lists.append([vocab.item_id(token) for token in head[1:]])
    gold = [(0, 11), (0, 12), (2, 14)]
    expected = [lists[turn].index(item) + 1 if item in lists[turn] else vocab.n_items + 1 for turn, item in gold]
    assert answers.listed.ranks.tolist() == expected
    assert answers.listed.turns.tolist() == [0, 0, 2]
    assert answers.listed.fresh.tolist() == [True, True, True]


def test_a_reference_equal_to_the_policy_is_at_no_distance(tiny: Tiny) -> None:
    itself = against(tiny)._replace(reference={"trunk": tiny.policy["trunk"]})
    near = draw_answers(tiny.setup, tiny.policy, CONFIG, itself)
    np.testing.assert_allclose(near.kl, 0.0, atol=1e-5)


def test_stored_once_and_judged_later(tmp_path: Path, tiny: Tiny, answers: SampledAnswers) -> None:
    asked = []

    def judge(histories, replies, titles):
        asked.append((histories, replies, titles))
        return np.array([len(history) + 0.5 for history in histories])

    def stored(run, policy, judge=None) -> SampledAnswers:
        return sampled_answers(run, "sft", tiny.setup, policy, CONFIG, against(tiny, judge))

    with open_run(tmp_path / "run", {"seed": 0}, trackers=()) as run:
        first = stored(run, tiny.policy)
        assert first.judge is None
        again = stored(run, tiny.reference, judge=judge)  # Another policy: what is stored is not drawn again.
        third = stored(run, tiny.reference, judge=judge)
    assert len(asked) == 1
    histories, replies, titles = asked[0]
    messages = [dialogue.messages for dialogue in tiny.setup.corpus.test]
    assert [list(history) for history in histories] == [
        list(messages[0][:2]),
        list(messages[0][:4]),
        list(messages[1][:2]),
    ]
    assert [reply.parts for reply in replies] == [reply.parts for reply in answers.replies]
    assert titles[14] == "Film 14"
    for found in (again, third):
        assert found.turns == answers.turns and found.replies == answers.replies
        np.testing.assert_array_equal(found.judge, [2.5, 4.5, 2.5])
        np.testing.assert_array_equal(found.kl, answers.kl)
        np.testing.assert_array_equal(found.listed.ranks, answers.listed.ranks)


def made_up(seed: int, *, n: int = 6, judged: bool = True) -> SampledAnswers:
    """Numbers without a model: dialogue d has two turns; odd turns have one gold item."""
    generator = np.random.default_rng(seed)
    turns = [
        GeneratedTurn(f"d{place // 2}", "try <movie> now", f"reference {place}", int(generator.integers(3, 9)), 1, True)
        for place in range(n)
    ]
    return SampledAnswers(
        turns=turns,
        replies=[Message("recommender", ("try",), 0)] * n,
        components=generator.normal(size=(n, 3)).astype(np.float32),
        proxy=generator.normal(size=n),
        kl=generator.normal(size=n),
        entropy=generator.uniform(size=n),
        finished=generator.uniform(size=n) < 0.7,
        listed=Listed(
            generator.integers(1, 9, size=n // 2).astype(np.int32),
            np.arange(1, n, 2, dtype=np.int32),
            np.array([True] + [False] * (n // 2 - 1)),
        ),
        judge=generator.uniform(1, 5, size=n) if judged else None,
    )


def test_results_and_differences_are_plain_means() -> None:
    a, b = {0: made_up(1), 1: made_up(2)}, {0: made_up(3), 1: made_up(4)}
    found = {(r.protocol, r.metric): r for r in sampled_results("full", a, split="toy/test")}
    both = np.concatenate([a[0].proxy, a[1].proxy])
    assert found["sampled", "proxy_score"].value == pytest.approx(both.mean())
    assert found["sampled", "kl"].n == 6 and found["sampled", "kl"].split == "toy/test-sampled"
    hits = [float(np.mean(run.listed.ranks <= 5)) for run in a.values()]
    assert found["listed", "hr@5"].value == pytest.approx(np.mean(hits)) and found["listed", "hr@5"].n == 3
    gains = [np.mean(np.where(run.listed.ranks <= 5, 1 / np.log2(run.listed.ranks + 1.0), 0)) for run in a.values()]
    assert found["listed", "ndcg@5"].value == pytest.approx(np.mean(gains))
    first = [float(run.listed.ranks[0] <= 5) for run in a.values()]
    assert found["listed-fresh", "hr@5"].value == np.mean(first) and found["listed-fresh", "hr@5"].n == 1
    assert found["text", "response_length"].value == np.mean([[t.n_tokens for t in run.turns] for run in a.values()])
    gain = {(r.protocol, r.metric): r for r in sampled_differences("full-sft", a, b, split="toy/test")}
    judged = [run.judge.mean() for run in (*a.values(), *b.values()) if run.judge is not None]
    assert gain["sampled", "judge"].value == pytest.approx(np.mean(judged[:2]) - np.mean(judged[2:]))
    assert gain["sampled", "judge"].seeds == (0, 1)
    unjudged = sampled_differences("full-sft", a, {0: b[0], 1: made_up(4, judged=False)}, split="toy/test")
    assert "judge" not in {result.metric for result in unjudged}


def test_worlds_of_their_own_are_resampled_apart() -> None:
    """Dialogue d0 of one world is not d0 of the other: a draw shared by both worlds would tie their luck together."""
    up = made_up(1)._replace(proxy=np.array([6.0, 6.0, 0.0, 0.0, 0.0, 0.0]))
    down = made_up(1)._replace(proxy=np.array([-6.0, -6.0, 0.0, 0.0, 0.0, 0.0]))

    def interval(same_test: bool) -> tuple[float, float]:
        found = sampled_results("sft", {0: up, 1: up}, split="toy/test", same_test=same_test)
        return next(r.interval for r in found if r.metric == "proxy_score")

    shared, own = interval(True), interval(False)
    assert own[1] - own[0] < shared[1] - shared[0]
    other = [turn._replace(reference="another place") for turn in down.turns]
    with pytest.raises(ValueError, match="different places"):
        sampled_results("sft", {0: up, 1: down._replace(turns=other)}, split="toy/test")
    found = sampled_results("sft", {0: up, 1: down._replace(turns=other)}, split="toy/test", same_test=False)
    assert all(np.isfinite(result.value) for result in found)


def test_seeds_must_agree() -> None:
    with pytest.raises(ValueError, match=r"full-sft: seeds \(0,\) against \(1,\)"):
        sampled_differences("full-sft", {0: made_up(1)}, {1: made_up(2)}, split="toy/test")


def test_saved_whole(tmp_path: Path) -> None:
    made = made_up(1, judged=False)
    save(tmp_path / "sft-sampled.npz", made)
    assert [file.name for file in tmp_path.iterdir()] == ["sft-sampled.npz"]
    assert load(tmp_path / "sft-sampled.npz").judge is None


def test_chosen_replies_have_no_kl_and_no_entropy() -> None:
    """Best-of-n's replies are no draws from the policy: a bound must not stand where others have a measurement."""
    unknown = np.full(6, np.nan)
    best = {0: made_up(1)._replace(kl=unknown, entropy=unknown)}
    for found in (
        sampled_results("best_of_8", best, split="toy/test"),
        sampled_differences("full-best_of_8", {0: made_up(2)}, best, split="toy/test"),
    ):
        metrics = {r.metric for r in found if r.protocol == "sampled"}
        assert metrics == {"proxy_score", "eos_share", "judge"}
    # One NaN among measurements is a fault, and said.
    faulty = made_up(1)._replace(kl=np.array([0.0, np.nan, *np.zeros(4)]))
    with pytest.raises(ValueError, match="value nan of case 1"):
        sampled_results("full", {0: faulty}, split="toy/test")
