"""The benchmark's arithmetic: counts of work, turns, disturbed rounds, ratios, and what the report says of them."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bench_grpo
from benchmark import ceilings, dpo_step, grpo_step, interleaving, memory, networks, one_step, report
from benchmark.interleaving import Round
from benchmark.workload import ACCELERATOR_WORKLOADS, CPU_WORKLOADS, FORMS, PHASES, Workload
from rlhf_jax.interfaces import Rollout
from rlhf_jax.models import gpt2

SMALL = Workload("small", n_layer=2, n_embd=32, n_head=2, vocab_size=2048, batch=4, prompt=6, response=3, epochs=2)


def test_counts_of_parameters_and_operations_are_those_of_the_network() -> None:
    drawn = networks.draw_networks(SMALL).policy
    assert SMALL.trunk_parameters == sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(drawn))
    tokens = jax.ShapeDtypeStruct((SMALL.batch, SMALL.length), np.int32)
    config = networks.network_config(SMALL)
    program = jax.jit(gpt2.forward, static_argnums=0).lower(config, drawn, tokens, tokens.update(dtype=bool))
    counted = program.compile().cost_analysis()["flops"]
    paper = SMALL.trunk_flops(SMALL.batch, SMALL.length) + SMALL.head_flops(SMALL.batch * SMALL.length)
    # Norms, softmax and GELU are not in the paper's count; in a network this narrow they are a noticeable part.
    assert paper < counted < 1.15 * paper


def test_a_phase_costs_the_passes_it_needs() -> None:
    trunk, head = SMALL.trunk_flops(4, 9), SMALL.head_flops(12)
    assert SMALL.phase_flops("rollout", "shared") == SMALL.phase_flops("rollout", "separate") == trunk + head
    assert SMALL.phase_flops("scoring", "shared") == 2 * trunk + head
    assert SMALL.phase_flops("scoring", "separate") == 3 * trunk + head
    assert SMALL.phase_flops("update", "shared") == 2 * 3 * (trunk + head)
    assert SMALL.phase_flops("update", "separate") == 2 * 3 * (2 * trunk + head)
    for form in FORMS:
        assert SMALL.phase_flops("whole", form) == sum(SMALL.phase_flops(phase, form) for phase in PHASES)
    with pytest.raises(ValueError, match="scoring"):
        SMALL.phase_flops("score", "shared")


def test_floors_of_the_large_network_are_the_published_arithmetic() -> None:
    # GPT-2 345M, batch 256, 256 + 64 tokens, four epochs at 790 TFLOP/s and 4.3 TB/s: 118 ms of decoding, 131 ms of
    # scoring (195 separate), 797 ms of update (1,568 separate), as worked out by hand before this was written.
    large = ACCELERATOR_WORKLOADS["gpt2-345m"]

    def floor(phase: str, form: str) -> float:
        return 1e3 * large.floor_seconds(phase, form, matmul=790e12, bandwidth=4.3e12, bytes_per_number=2)

    assert floor("scoring", "shared") == pytest.approx(131, rel=0.05)
    assert floor("scoring", "separate") == pytest.approx(195, rel=0.05)
    assert floor("update", "shared") == pytest.approx(797, rel=0.05)
    assert floor("update", "separate") == pytest.approx(1568, rel=0.05)
    assert floor("rollout", "shared") == pytest.approx(118 + 51, rel=0.1)
    assert floor("whole", "shared") == pytest.approx(1100, rel=0.05)


def test_decoding_is_bound_by_reading_or_by_arithmetic_whichever_is_slower() -> None:
    work = CPU_WORKLOADS["gpt2-124m"]
    prefill = work.trunk_flops(work.batch, work.prompt) + work.head_flops(work.batch)
    reading = work.floor_seconds("rollout", "shared", matmul=1e30, bandwidth=1e9, bytes_per_number=4)
    assert reading == pytest.approx(work.decode_bytes(4) / 1e9)
    # 124 million numbers of four bytes, 31 times, and little else.
    assert work.decode_bytes(4) == pytest.approx(31 * 124e6 * 4, rel=0.12)
    computing = work.floor_seconds("rollout", "shared", matmul=1e9, bandwidth=1e30, bytes_per_number=4)
    assert computing == pytest.approx(work.phase_flops("rollout", "shared") / 1e9)
    assert prefill < work.phase_flops("rollout", "shared")


@pytest.mark.parametrize(
    ("change", "said"),
    [({"batch": 5, "minibatches": 2}, "batch 5"), ({"n_head": 3}, "n_embd 32"), ({"response": 0}, "response")],
)
def test_impossible_workloads_are_refused_with_their_numbers(change: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(SMALL, **change)


class Recorded:
    """An implementation whose seconds are known, and which notes when it is called."""

    def __init__(self, name: str, seconds: list[float], calls: list[str]) -> None:
        self.name, self.form, self.seconds, self.calls = name, "shared", iter(seconds), calls
        self.first_call: dict[str, float] = {"whole": 9.0}

    def iterate(self) -> dict[str, float]:
        self.calls.append(self.name)
        whole = next(self.seconds)
        return {"rollout": 0.25 * whole, "scoring": 0.25 * whole, "update": 0.5 * whole, "whole": whole}


def test_turns_rotate_and_stop_after_enough_quiet_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    shares = iter([0.0, 0.5, 0.01, 0.01, 0.02, 0.0, 0.3, 0.3])
    monkeypatch.setattr(interleaving, "foreign_share", lambda turn: (turn(), next(shares)))
    two = [Recorded("ours_shared", [1, 2, 1, 1], calls), Recorded("torch_shared", [3, 4, 2, 1], calls)]
    rounds = interleaving.interleave(two, repeats=2, foreign_limit=0.05, most_rounds=4)
    assert calls == ["ours_shared", "torch_shared", "torch_shared", "ours_shared", "ours_shared", "torch_shared"]
    kept, quiet = interleaving.kept_rounds(rounds, repeats=2, foreign_limit=0.05)
    assert quiet and [one.seconds["torch_shared"]["whole"] for one in kept] == [4, 2]
    # With nothing quiet enough, the least disturbed rounds are kept, and it is said.
    kept, quiet = interleaving.kept_rounds(rounds, repeats=1, foreign_limit=0.001)
    assert not quiet and kept == [rounds[1]]


def test_foreign_share_is_what_others_used_of_all_cores() -> None:
    busy, own, clock = iter([100.0, 104.0]), iter([10.0, 13.0]), iter([0.0, 2.0])
    call = {"busy": lambda: next(busy), "own": lambda: next(own), "clock": lambda: next(clock), "cores": 2}
    seconds, share = interleaving.foreign_share(lambda: {"whole": 2.0}, **call)
    assert seconds == {"whole": 2.0} and share == pytest.approx((4 - 3) / (2 * 2))
    unknown = interleaving.foreign_share(dict, busy=lambda: None)
    assert unknown == ({}, 0.0)


def rounds_of(**seconds: list[float]) -> list[Round]:
    """Rounds in which every phase of an implementation takes the same time."""
    number = len(next(iter(seconds.values())))
    return [
        Round(
            {name: {phase: wholes[i] for phase in report.SHOWN} for name, wholes in seconds.items()},
            dict.fromkeys(seconds, 0.0),
        )
        for i in range(number)
    ]


def test_ratios_are_taken_within_rounds_and_between_like_forms() -> None:
    # A machine twice as slow in the second round changes no ratio.
    rounds = rounds_of(
        ours_shared=[1.0, 2.0],
        ours_separate=[2.0, 4.0],
        torch_shared=[1.5, 3.0],
        torch_separate=[3.0, 6.0],
        trl=[4.0, 9.0],
    )
    found = interleaving.ratios(rounds, phases=report.SHOWN)
    assert found["whole_vs_trl_shared"].pairs == (4.0, 4.5)
    assert found["whole_vs_trl_shared"].median == 4.25
    assert found["whole_vs_trl_separate"].pairs == (2.0, 2.25)
    assert found["update_vs_torch_shared"].spread == (1.5, 1.5)
    assert found["update_vs_torch_separate"].pairs == (1.5, 1.5)
    assert found["rollout_vs_trl"].pairs == (4.0, 4.5)
    assert "whole_vs_torch" not in found and not any("ours" in name for name in found)


def test_types_of_numbers_are_compared_like_with_like() -> None:
    accelerator = interleaving.ratios(rounds_of(ours_shared_bf16=[1.0], trl_bf16=[3.0]), phases=["whole", "rollout"])
    assert accelerator["whole_vs_trl_shared"].median == 3.0
    cpu = interleaving.ratios(rounds_of(ours_shared=[1.0], trl=[3.0], trl_bf16=[2.0]), phases=["whole", "rollout"])
    assert cpu["whole_vs_trl_shared"].median == 3.0 and cpu["whole_vs_trl_bf16_shared"].median == 2.0
    assert interleaving.parse_name("torch_separate_bf16") == ("torch", "separate", True)


@pytest.fixture
def measured() -> report.Measurement:
    limits = ceilings.Ceilings(matmul=1e9, bandwidth=1e9, dtype="float32", by_framework={"jax read": 1e9})
    forms = {"ours_shared": "shared", "ours_separate": "separate", "trl": "separate"}
    return report.Measurement(
        workload=SMALL,
        rounds=rounds_of(ours_shared=[1.0, 2.0, 3.0], ours_separate=[2.0, 4.0, 6.0], trl=[4.0, 8.0, 15.0]),
        quiet=False,
        forms=forms,
        first_call={name: {"whole": 12.5} for name in forms},
        peak_bytes={"ours_shared": 3 * 2**30},
        ceilings={"float32": limits},
        environment={"commit": "abc"},
    )


def test_the_json_has_the_agreed_keys_and_keeps_other_sizes(measured: report.Measurement, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text('{"tiny": {"ratios": {}}, "small": "old"}')
    report.write_json(path, [measured])
    found = json.loads(path.read_text())
    assert found["tiny"] == {"ratios": {}}
    small = found["small"]
    assert small["seconds"]["trl"]["update"] == [4.0, 8.0, 15.0]
    assert small["ratios"]["whole_vs_trl_shared"] == 4.0
    assert {"whole_vs_trl_separate", "rollout_vs_trl"} <= set(small["ratios"])
    assert small["tokens_per_second"]["ours_shared"]["whole"] == SMALL.batch * SMALL.response / 2.0
    assert small["share_of_ceiling"]["ours_shared"]["update"] == pytest.approx(
        SMALL.phase_flops("update", "shared") / 1e9 / 2.0
    )


def test_the_table_says_what_was_measured_and_that_it_was_disturbed(measured: report.Measurement) -> None:
    text = report.markdown([measured])
    assert "| whole_vs_trl_shared | 4.00× | 4.00–5.00 |" in text
    assert "| ours_shared | 2 (1–3)" in text and "3.00 GiB" in text
    assert "other processes were running" in text
    assert "other processes" not in report.markdown([dataclasses.replace(measured, quiet=True)])


def test_the_picture_stacks_the_three_phases_of_each_implementation(measured: report.Measurement) -> None:
    figure = report.picture([measured, measured])
    panels = figure.axes
    assert len(panels) == 2
    bars = panels[0].patches
    assert len(bars) == len(PHASES) * 3
    trl = [bar for bar in bars if round(bar.get_y() + bar.get_height() / 2) == 2]
    assert [bar.get_x() for bar in trl] == [0.0, 8.0, 16.0] and {bar.get_width() for bar in trl} == {8.0}


def test_what_does_not_fit_is_refused_before_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["ours_shared", "ours_separate", "torch_shared", "torch_separate", "trl"]
    monkeypatch.setattr(memory, "available_bytes", lambda: 24 * 2**30)
    memory.check(CPU_WORKLOADS["gpt2-124m"], names)
    with pytest.raises(ValueError, match="24.0 GiB are free"):
        memory.check(CPU_WORKLOADS["gpt2-345m"], names)
    memory.check(CPU_WORKLOADS["gpt2-345m"], ["ours_shared"])


def test_the_best_of_several_timings_is_kept() -> None:
    assert 0 < ceilings.best_seconds(lambda: sum(range(1000)), repeats=2, least_seconds=0.001) < 0.05


def test_a_dpo_step_is_three_passes_over_each_prompt_and_both_responses() -> None:
    # 2 prompts of 6 tokens with 2 × 3 of responses; attention reaches over the 9 that a response sees.
    trunk = 2 * 12 * 2 * 32 * (24 * 32 + 4 * 9)
    assert dpo_step.floor_flops(SMALL) == pytest.approx(3 * (trunk + SMALL.head_flops(12)))


def test_pairs_end_and_stand_on_the_networks_prompts() -> None:
    drawn = networks.draw_networks(SMALL)
    pairs = dpo_step.draw_pairs(SMALL, drawn)
    np.testing.assert_array_equal(pairs.prompts, drawn.prompts[:2])
    assert pairs.responses.shape == (2, 2, 3) and np.all(pairs.responses[..., -1] == networks.grammar(SMALL).eos)
    assert not np.array_equal(pairs.responses[:, 0], pairs.responses[:, 1])
    with pytest.raises(ValueError, match="5 responses are no whole pairs"):
        dpo_step.draw_pairs(dataclasses.replace(SMALL, batch=5), drawn)


def test_our_dpo_step_learns_the_pairs_it_is_timed_on() -> None:
    ours = dpo_step.OurStep(SMALL, networks.draw_networks(SMALL), learning_rate=1e-2)
    ours.warm_up()
    before = float(ours.metrics["loss"])
    for _ in range(5):
        seconds = ours.iterate()
    assert set(seconds) == {"whole"} and seconds["whole"] > 0 and ours.first_call["whole"] > 0
    assert float(ours.metrics["loss"]) < before - 0.05 and int(ours.state.step) == 7


def test_the_table_of_dpo_steps_compares_like_with_like() -> None:
    rounds = [
        Round({"trl": {"whole": 3.0}, "ours": {"whole": 2.0}}, {}),
        Round({"ours": {"whole": 2.0}, "trl": {"whole": 5.0}}, {}),
    ]
    text = dpo_step.markdown(SMALL, rounds, quiet=False, matmul={"float32": dpo_step.floor_flops(SMALL)})
    rows = [line for line in text.splitlines() if line.startswith(("| ours |", "| trl |"))]
    assert rows == ["| ours | 2 (2–2) | 50 % | – |", "| trl | 4 (3–5) | 25 % | 2.00× (1.50–2.50) |"]
    assert "2 pairs" in text and "other processes were running" in text
    by_cpu = dpo_step.markdown(SMALL, rounds, quiet=True, matmul=None)
    assert "step, CPU s" in by_cpu and "| ours | 2 (2–2) | – | – |" in by_cpu
    assert one_step.ratios([Round({"ours_bf16": {"whole": 1.0}, "trl": {"whole": 3.0}}, {})]) == {}


def test_a_grpo_step_is_five_passes_over_each_prompt_and_its_eight_responses() -> None:
    # 2 prompts of 6 tokens with 8 × 3 of responses; attention reaches over the 9 that a response sees.
    two = dataclasses.replace(SMALL, batch=16)
    trunk = 2 * 30 * 2 * 32 * (24 * 32 + 4 * 9)
    assert grpo_step.floor_flops(two) == pytest.approx(5 * (trunk + two.head_flops(48)))


def test_what_a_response_is_paid_is_its_share_of_even_tokens() -> None:
    tokens, mask = np.array([[2, 4, 7, 8], [1, 6, 9, 0]]), np.array([[1, 1, 1, 1], [1, 1, 1, 0]], bool)
    rollout = Rollout(
        prompt_tokens=jnp.zeros((2, 1), jnp.int32),
        prompt_mask=jnp.ones((2, 1), bool),
        response_tokens=jnp.asarray(tokens, jnp.int32),
        response_mask=jnp.asarray(mask),
        logprobs=jnp.zeros((2, 4)),
        finished=jnp.ones(2, bool),
    )
    expected = [[sum(t % 2 == 0 for t in row[real]) / real.sum()] for row, real in zip(tokens, mask, strict=True)]
    np.testing.assert_allclose(grpo_step.even_share({}, rollout), expected)


def test_our_grpo_step_draws_groups_and_learns_from_them() -> None:
    work = dataclasses.replace(SMALL, n_layer=1, batch=16)
    ours = grpo_step.OurStep(work, networks.draw_networks(work), learning_rate=1e-2)
    before = np.array(ours.state.params["trunk"]["wte"])
    ours.warm_up()
    seconds = ours.iterate()
    assert set(seconds) == {"whole"} and seconds["whole"] > 0 and ours.first_call["whole"] > 0
    assert int(ours.state.update) == 3 and int(ours.state.skipped) == 0
    assert np.abs(ours.state.params["trunk"]["wte"] - before).max() > 1e-3
    # What the sampler says of a token is what is said where the prompt is read once for its group.
    assert float(ours.metrics["policy/first_ratio_max_deviation"]) < 1e-4
    assert float(ours.metrics["policy/kl_penalty"]) > 0


def test_responses_that_are_no_whole_groups_are_refused() -> None:
    with pytest.raises(ValueError, match=r"workload tiny: 12 responses in 1 microbatch\(es\) are no whole groups of 8"):
        bench_grpo.Config(sizes=("tiny",), batch=12)
    assert [one.batch for one in one_step.workloads(bench_grpo.Config(batch=16))] == [16, 16]
    with pytest.raises(ValueError, match="--most-rounds 2 cannot hold --repeats 9"):
        bench_grpo.Config(most_rounds=2)


def test_the_table_of_grpo_steps_says_what_was_drawn() -> None:
    work = dataclasses.replace(SMALL, batch=16)
    rounds = [Round({"trl": {"whole": 3.0}, "ours": {"whole": 1.0}}, {})]
    text = grpo_step.markdown(work, rounds, quiet=True, matmul={"float32": grpo_step.floor_flops(work)})
    assert "| ours | 1 (1–1) | 100 % | – |" in text and "| trl | 3 (3–3) | 33 % | 3.00× (3.00–3.00) |" in text
    assert "One GRPO step, small" in text and "2 prompt(s) of 6 tokens, 8 responses of 3 to each" in text
