"""What the studies share: verdicts as numbers allow them, seeds kept apart, contexts counted token by token."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from rlhf_jax.assessment.assess import Assessment
from rlhf_jax.data.windows import is_empty, utterance_tokens
from rlhf_jax.evaluation.ranking import RankingOutcome, RankTable
from rlhf_jax.evaluation.results import Result
from rlhf_jax.evaluation.user_centric import TopOne
from rlhf_jax.reporting import gates
from rlhf_jax.runtime.files import RunError
from rlhf_jax.runtime.run import RunDirectory, open_run
from rlhf_jax.stages.contexts import Windows
from rlhf_jax.stages.supervised import SupervisedConfig
from studies import common, reward_ablation, tables, windows
from studies.common import Measurements
from studies.foundation import FoundationConfig, facts
from studies.reward_ablation import VARIANTS, Comparison
from studies.tables import Measure
from tiny_policy import DATA, Tiny


def difference(
    name: str, value: float, interval: tuple[float, float], seeds=(0, 1, 2), place: str = "", **other
) -> Result:
    protocol = other.get("protocol", "full")
    return Result(
        f"{name}", value, 10, protocol, f"toy/test{place}", interval, seeds, "difference of: a number", std=0.01
    )


def test_verdicts_claim_no_more_than_the_numbers() -> None:
    up, zero = difference("full-sft/hr@5", 0.1, (0.05, 0.15)), difference("full-sft/hr@5", 0.1, (-0.05, 0.15))
    assert tables.verdict(up) == "higher, +0.100 ± 0.010 [+0.050, +0.150]"
    assert tables.verdict(zero) == "no difference shown, +0.100 ± 0.010 [-0.050, +0.150]"
    two = dataclasses.replace(up, seeds=(0, 1))
    assert tables.verdict(two) == "no claim with 2 seeds, +0.100 ± 0.010 [+0.050, +0.150]"
    unlike = dataclasses.replace(up, std=0.05)
    assert tables.verdict(unlike) == "no claim because the seeds differ, +0.100 ± 0.050 [+0.050, +0.150]"
    assert tables.verdict(dataclasses.replace(up, value=-0.1, interval=(-0.2, -0.01))).startswith("lower, -0.100")


def test_claims_of_the_ablation() -> None:
    found = [
        difference("full-sft/hr@5", 0.1, (0.05, 0.15)),
        difference("full-sft/ndcg@5", -0.1, (-0.15, -0.05)),
        difference("full-sft/bleu4", -1.0, (-1.5, -0.5), protocol="text"),
        difference("full-sft/bleu4", 0.1, (-0.1, 0.3), protocol="text", place="-sampled"),
        difference("full-sft/judge", 0.1, (0.05, 0.15), protocol="sampled", place="-sampled"),
        difference("full-engagement/hr@5", 0.1, (-0.05, 0.15)),
        difference("full-best_of_8/hr@5", 0.1, (0.05, 0.15), protocol="listed", place="-sampled"),
    ]
    lines = reward_ablation.verdicts(found, Comparison(("full", "engagement"), "best_of_8", 1.2), "toy/test")
    assert lines[0].startswith(
        "Verdict, full reward above SFT: by the paper's measures shown on 1, the opposite on 1 of 2: HR@5 `full` higher"
    )
    # What the paper says nothing about is counted apart: it must not add to what is shown, or take from it.
    assert lines[0].count("Beside them") == 1 and "shown on 1, the opposite on 0 of 1: judge higher" in lines[0]
    assert lines[1].startswith(
        "Verdict, full reward above engagement alone: by the paper's measures no difference shown on any of 1: HR@5"
    )
    assert lines[2].startswith(
        "Verdict, full reward above best_of_8: beside them, not corrected for their number shown on 1, the opposite on 0 of 1"
    )
    assert lines[3].startswith(
        "Verdict, BLEU-4 does not fall under the full reward: does not hold. BLEU-4, greedy lower, -1.00"
    )
    more = [*found, difference("full-noise/hr@5", -0.1, (-0.15, -0.05))]
    compared = Comparison(("full", "engagement", "noise"), "best_of_8", 1.2)
    assert reward_ablation.verdicts(more, compared, "toy/test")[2].startswith(
        "Verdict, full reward above a reward of noise: by the paper's measures shown on 0, the opposite on 1 of 1: HR@5"
    )
    assert ("full", "noise") in compared.pairs["Full reward against others"]
    unharmed = reward_ablation.verdicts([found[3]], Comparison(("full",), "best_of_8", 1.2), "toy/test")
    assert "does not fall under the full reward: no fall shown. BLEU-4, sampled no difference shown" in unharmed[-1]
    assert (
        "none of the claims was tested"
        in reward_ablation.verdicts(found, Comparison(("level",), "best_of_8", 1.2), "toy/test")[0]
    )


def test_variants_are_all_subsets_with_equal_weights() -> None:
    rewards = {name: reward for name, reward in VARIANTS.items() if reward.control is None}
    assert set(VARIANTS) - set(rewards) == set(reward_ablation.CONTROLS)
    shifts = [reward.weights for reward in rewards.values() if reward.sentiment == "shift"]
    subsets = {tuple(weight > 0 for weight in weights) for weights in shifts}
    assert len(shifts) == len(subsets) == 7
    for name, (weights, _, _) in rewards.items():
        assert sum(weights) == pytest.approx(1)
        assert len({weight for weight in weights if weight > 0}) == 1, name
        if name not in ("full", "level"):
            used = {
                signal
                for signal, weight in zip(("engagement", "relevance", "sentiment"), weights, strict=True)
                if weight
            }
            assert used == set(name.split("_"))


def assessed(ranks: list[int]) -> Assessment:
    table = RankTable("full", np.array(ranks, np.int32), np.arange(len(ranks), dtype=np.int32), ("d0", "d0", "d1"))
    return Assessment(RankingOutcome({"full": table}, TopOne((), (), ())), [], {})


def test_worlds_are_not_taken_for_one_another() -> None:
    """Dialogue d0 of two worlds are two dialogues: with opposite luck in them, a shared draw would find no spread."""
    measured = Measurements({0: assessed([1, 1, 9]), 1: assessed([9, 9, 1])}, {})
    tables = [common._parts(measured.assessed, same_test)[0] for same_test in (True, False)]
    assert tables[0][1]["full"].dialogues == ("d0", "d0", "d1")
    assert tables[1][1]["full"].dialogues == ("seed 1, d0", "seed 1, d0", "seed 1, d1")


def test_seeds_are_done_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    @dataclasses.dataclass(frozen=True)
    class Config:
        run_dir: Path = tmp_path / "study"
        seeds: tuple[int, ...] = (3, 5)
        only_seed: int | None = 5
        runs: Path = Path("runs")
        size: str = "full"

    done: list[int] = []

    def work(run: RunDirectory, seed: int) -> None:
        assert run.path == tmp_path / "study" / f"seed-{seed}"
        if seed == 3 and len(done) == 1:
            done.append(-1)
            raise KeyboardInterrupt  # The first attempt at seed 3 is killed.
        done.append(seed)

    def none(seed: int) -> dict[str, int]:
        return {}

    common.run_seeds(Config(), work, none)
    with pytest.raises(KeyboardInterrupt):
        common.run_seeds(Config(only_seed=None), work, none)
    common.run_seeds(Config(only_seed=None, runs=Path("elsewhere")), work, none)
    assert done == [5, -1, 3]
    assert "seed 5 is done" in capsys.readouterr().err
    with pytest.raises(ValueError, match="size was 'full', now 'quick'"):
        common.run_seeds(Config(size="quick"), work, none)
    # What a size stands for has changed: the seed that is done is of the old one.
    common.run_seeds(Config(only_seed=None), work, lambda _: {"updates": 40})
    with pytest.raises(ValueError, match="updates was 40, now 12"):
        common.run_seeds(Config(), work, lambda _: {"updates": 12})
    assert done == [5, -1, 3]


def test_a_table_has_only_columns_that_were_measured() -> None:
    found = [difference("full-sft/hr@5", 0.1, (0.05, 0.15)), difference("level-sft/hr@5", 0.0, (-0.05, 0.05))]
    measures = (Measure("HR@5", "full", "hr@5"), Measure("judge", "sampled", "judge", "sampled"))
    lines = tables.table(found, ["full-sft", "level-sft", "sentiment-sft"], measures, "toy/test").splitlines()
    assert lines[0] == "|  | HR@5 |"
    assert lines[2] == "| full − sft | +0.100 ± 0.010 [+0.050, +0.150] **▲** |"
    assert lines[4] == "| sentiment − sft | – |"


def lengths_by_hand(tiny: Tiny, window: int) -> list[int]:
    """Tokens of the last turns before every answered message, speaker by speaker."""
    found = []
    for dialogue in tiny.setup.corpus.test:
        for index, message in enumerate(dialogue.messages):
            before = [m for m in dialogue.messages[:index] if not is_empty(m)]
            if message.role != "recommender" or is_empty(message) or not before:
                continue
            turns: list[list[int]] = []
            speaker = None
            for m in before:
                tokens = len(utterance_tokens(tiny.setup.vocab, m))
                if m.role == speaker:
                    turns[-1].append(tokens)
                else:
                    turns.append([tokens])
                speaker = m.role
            found.append(1 + sum(sum(turn) for turn in turns[-window:]))
    return found


@pytest.mark.parametrize("window", [1, 2, 4])
def test_contexts_are_counted_whole(tiny: Tiny, window: int) -> None:
    contexts_of = Windows(tiny.setup.vocab, tiny.setup.corpus.test, DATA)
    expected = lengths_by_hand(tiny, window)
    assert windows.context_lengths(contexts_of, window).tolist() == expected
    small = dataclasses.replace(DATA, window=window, context_tokens=sorted(expected)[1])
    contexts = windows.measured_contexts(tiny.setup._replace(data=small))
    assert contexts.cut == np.mean([length > small.context_tokens for length in expected])
    assert contexts.n == len(expected)


def test_prompts_are_as_long_as_the_window_asks_for(tiny: Tiny) -> None:
    data = windows.fitted_data(tiny.setup, 4, max_cut=0.0)
    assert (data.window, data.context_tokens) == (4, 32)
    assert max(lengths_by_hand(tiny, 4)) <= 32
    assert windows.measured_contexts(tiny.setup._replace(data=data)).cut == 0.0
    network = dataclasses.replace(tiny.setup.network, n_positions=20)
    smaller = tiny.setup._replace(agent=dataclasses.replace(tiny.agent, network=network))
    assert windows.fitted_data(smaller, 4, max_cut=0.0).context_tokens == 12


def test_a_seed_is_done_when_all_it_ends_with_is_there(tmp_path: Path) -> None:
    written = ("diagnostics.md", "cases/truth-shift.npz")
    (tmp_path / "cases").mkdir()
    for name in written:
        assert not common.is_done(tmp_path, written)
        (tmp_path / name).touch()
    assert common.is_done(tmp_path, written)


def test_a_seed_that_is_done_belongs_to_its_foundation(tmp_path: Path) -> None:
    """Another imitation, or other data under the same configuration, must not stand beside it in one mean."""
    laid, config = tmp_path / "foundation", FoundationConfig()
    first, other = facts(laid, config), facts(laid, dataclasses.replace(config, sft=SupervisedConfig(epochs=9)))
    with open_run(tmp_path / "seed-0", {"seed": 0}, trackers=()) as run:
        run.record(**first)
        with pytest.raises(RunError, match=r"foundation\.sft\.epochs was 3, now 9"):
            run.record(**other)
        # Once the foundation is laid, what it read counts as well; where it was cleaned away, the rest still does.
        for sha, known in (("abc", True), ("def", False)):
            laid.mkdir(exist_ok=True)
            (laid / "config.json").write_text(json.dumps({"data": {"sha256": sha}}))
            if known:
                run.record(**facts(laid, config))
                continue
            with pytest.raises(RunError, match=r"foundation_data\.sha256 was 'abc', now 'def'"):
                run.record(**facts(laid, config))
        (laid / "config.json").unlink()
        run.record(**facts(laid, config))


def test_what_the_gate_said_stands_in_the_report(tmp_path: Path) -> None:
    for seed, reward in enumerate((0.42, 0.65, 0.48)):
        folder = tmp_path / f"seed-{seed}"
        with open_run(folder, {"seed": seed}, trackers=()) as run:
            pearson = {"reward": reward, "engagement": 0.7, "relevance": 0.61, "sentiment": 0.3}
            failed = [name for name, value in pearson.items() if value < 0.6]
            gates.save(run, {"shift": {"pearson": pearson, "threshold": 0.6, "failed": failed}})
    text = "\n".join(gates.section(gates.read([tmp_path / f"seed-{seed}" for seed in (0, 1, 2)])))
    assert "| shift | 0.52 (0.42, 0.65, 0.48) | 0.70 (0.70, 0.70, 0.70) |" in text
    assert "> 0.6 | **below it**: weighted sum in 2 of 3, sentiment in 3 of 3 |" in text
    assert gates.section(gates.read([tmp_path / "nothing"])) == []
