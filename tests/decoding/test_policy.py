"""GPT-2 as the learners' callables: what the sampler says of its draws is what the learner says."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.decoding import policy, prior
from rlhf_jax.decoding.grammar import Grammar, Opening
from rlhf_jax.decoding.sampler import Decoding
from rlhf_jax.interfaces import PolicyApply, PolicyOutput, PromptBatch, ResponseGroups, Rollout, check_rollout
from rlhf_jax.models import gpt2, heads

CONFIG = gpt2.GPT2Config(vocab_size=40, n_positions=32, n_embd=16, n_layer=1, n_head=2)
GRAMMAR = Grammar(n_words=6, pad=20, eos=21, rec=24, say=25, first_item=26, n_items=9, max_items=4, vocab_size=40)
TEMPERATURE = 0.8
BATCH, PROMPT, RESPONSE = 6, 7, 10


@pytest.fixture(scope="module")
def params() -> dict:
    trunk = jax.tree.map(lambda leaf: 4 * leaf, gpt2.init(CONFIG, jax.random.key(0)))
    # Not constant: behind a layer norm a constant kernel would give the bias whatever the tokens.
    value = {"kernel": jnp.linspace(-0.3, 0.4, 16), "bias": jnp.array(0.5)}
    return {"trunk": trunk, "value": value, "reward": heads.init_reward_heads(jax.random.key(1), 16, 3)}


@pytest.fixture(scope="module")
def prompts() -> PromptBatch:
    tokens = jax.random.randint(jax.random.key(2), (BATCH, PROMPT), 0, 20)
    mask = jnp.arange(PROMPT)[None, :] >= jnp.array([0, 1, 2, 3, 4, 5])[:, None]
    return PromptBatch(tokens=jnp.where(mask, tokens, GRAMMAR.pad), mask=mask)


@pytest.fixture(scope="module")
def rollout(params: dict, prompts: PromptBatch) -> Rollout:
    draw = policy.make_sample(CONFIG, GRAMMAR, max_tokens=RESPONSE, temperature=TEMPERATURE)
    return jax.jit(draw)(params, prompts, jax.random.key(3))


whole_head = policy.make_policy_apply(CONFIG, GRAMMAR, temperature=TEMPERATURE)
judge = jax.jit(whole_head)


@pytest.fixture(scope="module")
def judged(params: dict, rollout: Rollout) -> PolicyOutput:
    return judge(params, rollout)


def test_sampler_and_learner_log_probabilities_are_equal(rollout: Rollout, judged: PolicyOutput) -> None:
    np.testing.assert_allclose(judged.logprobs, rollout.logprobs, atol=1e-5)
    assert float(rollout.logprobs.min()) < -2
    assert bool(rollout.finished.any()) and not bool(rollout.finished.all())


def test_values_and_entropy_stand_before_each_token(params: dict, rollout: Rollout, judged: PolicyOutput) -> None:
    tokens = jnp.concatenate([rollout.prompt_tokens, rollout.response_tokens], axis=1)
    mask = jnp.concatenate([rollout.prompt_mask, rollout.response_mask], axis=1)
    hidden = jax.jit(gpt2.hidden_states, static_argnums=0)(CONFIG, params["trunk"], tokens, mask)
    values = heads.value(params["value"], hidden)[:, PROMPT - 1 : PROMPT + RESPONSE - 1]
    np.testing.assert_allclose(judged.values, jnp.where(rollout.response_mask, values, 0), atol=1e-5)
    assert (np.asarray(judged.entropy) >= 0).all()
    # The first token is <rec> or <say>: at most log 2.
    assert (np.asarray(judged.entropy[:, 0]) <= np.log(2) + 1e-6).all()
    last = jnp.sum(rollout.response_mask, axis=1) + PROMPT - 1
    expected = heads.reward_components(params["reward"], hidden[jnp.arange(BATCH), last])
    np.testing.assert_allclose(jax.jit(policy.make_score(CONFIG, GRAMMAR))(params, rollout), expected, atol=1e-5)


def test_a_group_reads_its_prompt_once_and_answers_as_single_rows_would(params: dict, prompts: PromptBatch) -> None:
    options = {"max_tokens": RESPONSE, "temperature": TEMPERATURE}
    grouped = jax.jit(policy.make_sample(CONFIG, GRAMMAR, **options, group_size=3))
    single = jax.jit(policy.make_sample(CONFIG, GRAMMAR, **options))
    repeated = jax.tree.map(lambda leaf: jnp.repeat(leaf, 3, axis=0), prompts)
    found = grouped(params, prompts, jax.random.key(3))
    expected = single(params, repeated, jax.random.key(3))
    for name in ("prompt_tokens", "prompt_mask", "response_tokens", "response_mask", "finished"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-5)
    np.testing.assert_allclose(found.values, expected.values, atol=1e-5)
    assert len({tuple(row) for row in np.asarray(found.response_tokens[:3]).tolist()}) > 1
    # No matrix product has as many rows as the repeated prompts have tokens; those of the prompts it has.
    text = grouped.lower(params, prompts, jax.random.key(3)).as_text()
    rows = {int(n) for n in re.findall(r"stablehlo\.dot_general [^\n]*: \(tensor<(\d+)x", text)}
    assert BATCH * PROMPT in rows and 3 * BATCH * PROMPT not in rows


def by_threes(prompts: PromptBatch, rollout: Rollout) -> tuple[ResponseGroups, Rollout]:
    """Each prompt with the responses of three rows, its own first: as groups, and row by row."""
    picked = (np.arange(BATCH)[:, None] + np.arange(3)) % BATCH
    tokens, mask = rollout.response_tokens[picked], rollout.response_mask[picked]
    assert len(set(rollout.response_mask.sum(axis=1).tolist())) > 2
    groups = ResponseGroups(prompts=prompts, response_tokens=tokens, response_mask=mask)
    return groups, Rollout(
        prompt_tokens=jnp.repeat(prompts.tokens, 3, axis=0),
        prompt_mask=jnp.repeat(prompts.mask, 3, axis=0),
        response_tokens=tokens.reshape(-1, RESPONSE),
        response_mask=mask.reshape(-1, RESPONSE),
        logprobs=jnp.zeros((3 * BATCH, RESPONSE)),
        finished=jnp.ones(3 * BATCH, bool),
    )


@pytest.mark.parametrize("attention", ["masked", "xla"])
def test_replies_to_one_prompt_are_scored_as_rows_of_their_own(
    params: dict, prompts: PromptBatch, rollout: Rollout, attention: str
) -> None:
    config = dataclasses.replace(CONFIG, attention=attention, attention_dropout=False)
    groups, rows = by_threes(prompts, rollout)
    found = jax.jit(policy.make_score_replies(config, GRAMMAR))(params, groups)
    expected = jax.jit(policy.make_score(CONFIG, GRAMMAR))(params, rows).reshape(BATCH, 3, 3)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert float(jnp.ptp(expected, axis=1).min()) > 1e-3


def test_a_group_is_judged_as_its_rows_are_and_the_prompt_is_read_once(prompts: PromptBatch, rollout: Rollout) -> None:
    """Numbers and gradients, with prompts and responses of several lengths, and NaN where padding would be read."""
    config = dataclasses.replace(CONFIG, n_layer=2)
    trunk = jax.tree.map(lambda leaf: 4 * leaf, gpt2.init(config, jax.random.key(9)))
    trunk["wte"] = trunk["wte"].at[GRAMMAR.pad].set(jnp.nan)
    groups, row_by_row = by_threes(prompts, rollout)
    mask = groups.response_mask
    rows = policy.make_policy_apply(config, GRAMMAR, temperature=TEMPERATURE)
    together = policy.make_group_policy(
        dataclasses.replace(config, layers="scan", head_chunk=4), GRAMMAR, temperature=TEMPERATURE
    )
    shares = jnp.linspace(-1.0, 1.0, mask.size).reshape(mask.shape)

    def theirs(trunk: dict) -> tuple[jax.Array, jax.Array]:
        said = rows({"trunk": trunk}, row_by_row).logprobs.reshape(mask.shape)
        return jnp.sum(shares * said), said

    def ours(trunk: dict) -> tuple[jax.Array, jax.Array]:
        said = together.logprobs({"trunk": trunk}, groups)
        return jnp.sum(shares * said), said

    (slope, said), (expected_slope, expected) = (jax.jit(jax.grad(f, has_aux=True))(trunk) for f in (ours, theirs))
    np.testing.assert_allclose(said, expected, atol=1e-5)
    assert float(expected.min()) < -2 and np.isfinite(expected).all()
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-4, rtol=1e-3), slope, expected_slope)
    # One row a prompt, whose last response tokens are not read; the rows of single texts are nowhere.
    text = jax.jit(together.logprobs).lower({"trunk": trunk}, groups).as_text()
    sizes = {int(n) for n in re.findall(r"stablehlo\.dot_general [^\n]*: \(tensor<(\d+)x", text)}
    assert BATCH * (PROMPT + 3 * (RESPONSE - 1)) in sizes and 3 * BATCH * (PROMPT + RESPONSE - 1) not in sizes


def test_a_rollout_of_whole_groups_is_judged_as_its_rows_are(params: dict, prompts: PromptBatch) -> None:
    drawn = jax.jit(policy.make_sample(CONFIG, GRAMMAR, max_tokens=RESPONSE, temperature=TEMPERATURE, group_size=3))(
        params, prompts, jax.random.key(3)
    )
    together = jax.jit(policy.make_policy_apply(CONFIG, GRAMMAR, temperature=TEMPERATURE, group_size=3))
    found, expected = together(params, drawn), judge(params, drawn)
    for name in ("logprobs", "entropy", "values"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-5, err_msg=name)
    assert float(np.ptp(expected.values)) > 0.01
    # Each prompt is one row beside what was said after it.
    text = together.lower(params, drawn).as_text()
    sizes = {int(n) for n in re.findall(r"stablehlo\.dot_general [^\n]*: \(tensor<(\d+)x", text)}
    assert BATCH * (PROMPT + 3 * (RESPONSE - 1)) in sizes and 3 * BATCH * (PROMPT + RESPONSE - 1) not in sizes
    with pytest.raises(ValueError, match="18 responses are no whole groups of 4"):
        policy.grouped(drawn, 4)


def test_groups_need_room_for_the_longest_text_and_an_attention_that_knows_them(
    params: dict, prompts: PromptBatch
) -> None:
    groups = ResponseGroups(
        prompts=prompts,
        response_tokens=jnp.full((BATCH, 2, RESPONSE), GRAMMAR.say),
        response_mask=jnp.ones((BATCH, 2, RESPONSE), bool),
    )
    for change, said in (
        ({"n_positions": PROMPT + RESPONSE - 2}, "16 tokens exceed n_positions 15"),
        ({"attention": "xla", "attention_dropout": False}, "attention 'xla'.*attention 'masked', are needed"),
    ):
        config = dataclasses.replace(CONFIG, **change)
        with pytest.raises(ValueError, match=said):
            jax.eval_shape(policy.make_group_policy(config, GRAMMAR).logprobs, params, groups)


def test_a_row_keeps_its_response_whatever_the_batch_and_the_padding(
    params: dict, prompts: PromptBatch, rollout: Rollout
) -> None:
    chosen = jnp.array([4, 1])
    tokens = jnp.pad(prompts.tokens[chosen], ((0, 0), (3, 0)), constant_values=GRAMMAR.pad)
    mask = jnp.pad(prompts.mask[chosen], ((0, 0), (3, 0)))
    decode = policy.make_decode(CONFIG, GRAMMAR, Decoding(RESPONSE, TEMPERATURE))
    again = jax.jit(decode)(params, PromptBatch(tokens=tokens, mask=mask), jax.random.key(3), chosen)
    np.testing.assert_array_equal(again.response_tokens, rollout.response_tokens[chosen])
    np.testing.assert_allclose(again.logprobs, rollout.logprobs[chosen], atol=1e-5)


def test_nan_in_the_padding_row_reaches_no_response(params: dict, rollout: Rollout) -> None:
    poisoned = {**params, "trunk": {**params["trunk"], "wte": params["trunk"]["wte"].at[GRAMMAR.pad].set(jnp.nan)}}
    output = judge(poisoned, rollout)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(output))
    np.testing.assert_allclose(output.logprobs, rollout.logprobs, atol=1e-5)


def test_the_sampler_knows_the_values_of_its_trunk(rollout: Rollout, judged: PolicyOutput) -> None:
    assert rollout.values is not None
    np.testing.assert_allclose(rollout.values, judged.values, atol=1e-5)
    assert float(jnp.abs(rollout.values).max()) > 0.1


def test_a_critic_of_its_own_gives_the_values_and_only_them(
    params: dict, prompts: PromptBatch, rollout: Rollout, judged: PolicyOutput
) -> None:
    critic = jax.tree.map(lambda leaf: 4 * leaf, gpt2.init(CONFIG, jax.random.key(9)))
    separate = {**params, "critic": critic}
    output = judge(separate, rollout)
    np.testing.assert_allclose(output.logprobs, judged.logprobs, atol=1e-5)
    np.testing.assert_allclose(output.values, judge({**params, "trunk": critic}, rollout).values, atol=1e-5)
    assert float(jnp.abs(output.values - judged.values).max()) > 0.1
    drawn = jax.jit(policy.make_sample(CONFIG, GRAMMAR, max_tokens=RESPONSE, temperature=TEMPERATURE))(
        separate, prompts, jax.random.key(3)
    )
    np.testing.assert_array_equal(drawn.response_tokens, rollout.response_tokens)
    np.testing.assert_allclose(drawn.values, output.values, atol=1e-5)
    reference = policy.with_critic_values(CONFIG, {"trunk": params["trunk"]}, rollout.replace(values=None))
    assert reference.values is None


@pytest.mark.parametrize("chunk", [1, 4, RESPONSE])
def test_a_chunked_head_changes_no_number_and_no_gradient(
    params: dict, rollout: Rollout, judged: PolicyOutput, chunk: int
) -> None:
    chunked = policy.make_policy_apply(dataclasses.replace(CONFIG, head_chunk=chunk), GRAMMAR, temperature=TEMPERATURE)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), jax.jit(chunked)(params, rollout), judged)

    def loss(params: dict, apply: PolicyApply) -> jax.Array:
        said = apply(params, rollout)
        return jnp.sum(jnp.sin(said.logprobs)) + jnp.sum(said.entropy) + jnp.sum(said.values)

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4),
        gradient(params, chunked),
        gradient(params, whole_head),
    )


def casts_in_loop(lowered: str) -> set[str]:
    """Shapes of the float32 arrays that the largest loop of a lowered program casts to bfloat16 in every step."""
    start = max(
        (match.start() for match in re.finditer(r"stablehlo\.while", lowered)),
        key=lambda at: lowered[at : lowered.index("\n", at)].count("iterArg"),
    )
    indent = re.search(r"\n( *)[^\n]*$", lowered[:start])
    assert indent is not None
    # The loop ends at the first brace that closes at its own depth after the body began.
    loop = lowered[start : lowered.index(f"\n{indent[1]}}}", lowered.index("} do {", start))]
    return set(re.findall(r"stablehlo\.convert %\S+ : \(tensor<(\S*)xf32>\) -> tensor<\S*xbf16>", loop))


def test_bfloat16_weights_are_cast_before_the_loop_over_tokens(
    params: dict, prompts: PromptBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = dataclasses.replace(CONFIG, compute_dtype="bfloat16")
    # In steps of bfloat16 exactly: left alone, a CPU keeps more digits where a cast and its reversal meet.
    options = {
        "xla_allow_excess_precision": False,
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    }

    def lowered() -> jax.stages.Lowered:
        return jax.jit(policy.make_sample(network, GRAMMAR, max_tokens=RESPONSE)).lower(
            params, prompts, jax.random.key(3)
        )

    once = lowered()
    monkeypatch.setattr(gpt2, "with_cast_weights", lambda config, params: params)
    every_step = lowered()
    weights = {"16x48", "16x16", "16x64", "64x16", "48", "16", "64"}
    assert weights <= casts_in_loop(every_step.as_text())
    # What is left are activations; the head's table, 40x16, is not among them.
    assert casts_in_loop(once.as_text()) == casts_in_loop(every_step.as_text()) - weights == {"6x16", "6x2x1x16"}
    drawn, expected = (
        program.compile(compiler_options=options)(params, prompts, jax.random.key(3)) for program in (once, every_step)
    )
    jax.tree.map(np.testing.assert_array_equal, drawn, expected)


def test_words_in_a_hole_of_the_mask_would_not_be_read_and_are_refused(params: dict, rollout: Rollout) -> None:
    holes = np.asarray(rollout.response_mask).copy()
    holes[:, 1] = False  # As if a user had said the second token.
    row = int(np.flatnonzero(np.asarray(rollout.response_mask).sum(axis=1) > 3)[0])
    said = [
        rollout.replace(response_mask=jnp.asarray(holes), response_tokens=rollout.response_tokens.at[:, 1].set(word))
        for word in (1, 2)
    ]
    first, second = (judge(params, one).logprobs[row, 2:] for one in said)
    # What was said changes nothing behind it: the fault that a row of several turns would have.
    np.testing.assert_array_equal(first, second)
    with pytest.raises(ValueError, match="row 0 of the rollout: its response_mask is True after a False"):
        check_rollout(said[0])
    check_rollout(rollout)


@pytest.mark.parametrize(("chunk", "once"), [(None, False), (4, False), (None, True), (4, True)])
def test_reasoned_turns_list_candidates_alone_and_are_judged_as_they_were_drawn(
    params: dict, prompts: PromptBatch, chunk: int | None, once: bool
) -> None:
    config = dataclasses.replace(CONFIG, head_chunk=chunk)
    reasoning = GRAMMAR._replace(openings=(Opening(24, "list"), Opening(22, "preferences")), once=once)
    candidates = jnp.arange(9)[None] % 3 == jnp.arange(BATCH)[:, None] % 3
    # As it was drawn: nearly uniform, so that both forms come.
    trunk = jax.tree.map(lambda leaf: leaf / 4, params["trunk"])
    own = {"trunk": trunk, prior.NAME: {"policy": jnp.float32(0.5), "scores": jnp.array([2.0])}}
    scores = jax.random.normal(jax.random.key(5), (BATCH, 1, 9))
    asked = dataclasses.replace(prompts, candidates=candidates, item_scores=scores)
    draw = policy.make_sample(config, reasoning, max_tokens=RESPONSE, temperature=TEMPERATURE)
    drawn = jax.jit(draw)(own, asked, jax.random.key(3))
    said = jax.jit(policy.make_policy_apply(config, reasoning, temperature=TEMPERATURE))(own, drawn)
    np.testing.assert_allclose(said.logprobs, drawn.logprobs, atol=1e-5)
    assert np.isfinite(np.asarray(said.entropy)).all()
    tokens = np.asarray(drawn.response_tokens)
    row, place = np.nonzero((tokens >= 26) & (tokens < 35))
    assert len(row) > 2
    assert np.asarray(candidates)[row, tokens[row, place] - 26].all()
    assert 22 in tokens[:, 0]
    named = [[token for token in turn[turn.index(25) :] if 26 <= token < 35] for turn in tokens.tolist() if 25 in turn]
    assert any(named)
    assert not once or all(len(set(items)) == len(items) for items in named)
