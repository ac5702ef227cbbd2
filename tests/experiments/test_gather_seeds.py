"""What `gather_seeds.py` makes of runs built by hand on real data's formats; the simulated world is tested end to end."""

import json
from pathlib import Path

import numpy as np
import pytest

import gather_seeds
from rlhf_jax.assessment import assess, comparison
from rlhf_jax.assessment.assess import Assessment
from rlhf_jax.data.sources import read_corpus
from rlhf_jax.data.windows import ranking_rows
from rlhf_jax.evaluation import item_choice
from rlhf_jax.evaluation.ranking import rank_rows
from rlhf_jax.evaluation.results import Result, Sides
from rlhf_jax.evaluation.text import GeneratedTurn
from rlhf_jax.learners.ppo_config import PPOConfig
from rlhf_jax.reporting.run_report import read_results, write_results
from rlhf_jax.runtime.files import RunError, write_json
from rlhf_jax.simulators.world import WorldConfig
from rlhf_jax.simulators.world_dialogues import write_world
from rlhf_jax.stages.setup import DataConfig

COMPARED = Sides("ppo", "sft")
TITLES = ("Emma", "Persuasion", "Dracula", "Ulysses")


@pytest.fixture
def redial(tmp_path: Path) -> DataConfig:
    """A few dialogues in ReDial's format, with the seekers' forms."""
    folder = write_world(tmp_path / "redial", WorldConfig(n_items=40, n_train=20, n_test=8, n_users=20), 0)
    return DataConfig(source="redial", dir=folder)


@pytest.fixture
def books(tmp_path: Path) -> DataConfig:
    """A few dialogues about books in OpenDialKG's format."""
    folder = tmp_path / "opendialkg"
    folder.mkdir()
    lines = []
    for number in range(40):
        liked, other = TITLES[number % 4], TITLES[(number + 1) % 4]
        messages = [
            {"role": "user", "text": f"I liked {liked}", "item": [liked]},
            {"role": "assistant", "text": f"Try {other}", "item": [other]},
        ]
        lines.append(json.dumps({"dialog_id": number, "domain": "book", "messages": messages}))
    (folder / "dialogues.jsonl").write_text("\n".join(lines))
    info = {str(number): {"name": title} for number, title in enumerate(TITLES)}
    (folder / "id2info.json").write_text(json.dumps(info))
    return DataConfig(source="opendialkg", dir=folder, domain="book")


def write_run(
    folder: Path,
    data: DataConfig,
    *,
    seed: int,
    split: str,
    policies: tuple[str, ...] = ("sft", "ppo"),
    pairs: tuple[Sides, ...] = (),
    **fields: object,
) -> Path:
    """What a finished run leaves behind, its systems scoring items at random; `fields` are of its configuration."""
    corpus, random = read_corpus(Path(str(data.dir)), data), np.random.default_rng(seed)
    rows, ids = list(ranking_rows(corpus.test)), tuple(corpus.items)
    ranked = {
        name: rank_rows(rows, [random.normal(size=(len(rows), len(ids)))], ids)
        for name in (*policies, "popularity", "copy")
    }
    turns = [
        GeneratedTurn(row.dialogue.dialogue_id, "try <movie>", "hello", n_tokens=4, n_items=1, grammatical=True)
        for row in rows
    ]
    systems = {name: {seed: Assessment(ranked.pop(name), turns, {})} for name in policies}
    (folder / "assessments").mkdir(parents=True)
    for name, measured in systems.items():
        assess.save(folder / "assessments" / f"{name}.npz", measured[seed])
    write_json(
        folder / "config.json", {"config": {"seed": seed, "data": data, "assess": {"test_dialogues": None}, **fields}}
    )
    write_results(folder, comparison.results(systems, ranked, split=split, further=pairs))
    return folder


def values(results: list[Result], system: str) -> dict[tuple[str, str], float]:
    """Value by protocol and user-centric metric."""
    return {(r.protocol, r.metric): r.value for r in results if r.system == system and r.metric in ("sr", "rdl")}


def test_trained_systems_keep_their_user_centric_metrics(redial: DataConfig, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"run-{seed}", redial, seed=seed, split="redial/test") for seed in (0, 1)]
    found = gather_seeds.gather_setting("plain", runs)
    for system in ("sft", "ppo"):
        alone = [values(read_results(run), system) for run in runs]
        mean = {key: pytest.approx((value + alone[1][key]) / 2) for key, value in alone[0].items()}
        assert len(mean) == 6 and values(found, system) == mean
    assert values(found, "copy") == values(read_results(runs[0]), "copy")


def test_every_policy_is_gathered_and_the_pairs_that_runs_compare(redial: DataConfig, tmp_path: Path) -> None:
    pairs = (Sides("grpo", "prior"),)
    kept: dict[str, object] = {"policies": ("prior", "sft", "grpo"), "pairs": pairs, "algorithm": "grpo"}
    runs = [write_run(tmp_path / str(seed), redial, seed=seed, split="redial/test", **kept) for seed in (0, 1)]
    results = gather_seeds.gather_setting("small", runs)
    ranked = [r.system for r in results if (r.protocol, r.metric) == ("full", "hr@5")]
    assert ranked[:3] == ["sft", "prior", "grpo"]
    assert {"grpo-sft", "grpo-prior"} <= set(ranked)
    assert "prior-sft" not in ranked


def test_a_policy_that_one_run_lacks_is_left_out_aloud(
    redial: DataConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [write_run(tmp_path / str(seed), redial, seed=seed, split="redial/test") for seed in (0, 1)]
    some = runs[0] / "assessments" / "sft.npz"
    (runs[0] / "assessments" / "prior.npz").write_bytes(some.read_bytes())
    assert gather_seeds.systems_of(runs) == ["sft", "ppo"]
    assert "not gathered, as not all runs measured them: prior" in "".join(capsys.readouterr())
    assert gather_seeds.systems_of(runs[:1]) == ["sft", "prior", "ppo"]


def test_a_field_that_a_run_does_not_know_has_its_default(redial: DataConfig, tmp_path: Path) -> None:
    default = PPOConfig().epochs
    settings: list[dict[str, object]] = [{}, {"ppo": {"epochs": default}}, {"ppo": {"epochs": default + 1}}]
    runs = [
        write_run(tmp_path / str(seed), redial, seed=seed, split="redial/test", **fields)
        for seed, fields in enumerate(settings)
    ]
    assert list(gather_seeds.runs_by_seed("small", runs[:2])) == [0, 1]
    for others in (runs, runs[::-1], [runs[0], runs[2]]):
        with pytest.raises(RunError, match=r"does not belong with .*: its configuration differs in ppo\.epochs"):
            gather_seeds.runs_by_seed("small", others)
    with pytest.raises(RunError, match="seed 0 occurs twice"):
        gather_seeds.runs_by_seed("small", [runs[0], runs[0]])


def test_runs_of_two_learners_are_not_gathered(redial: DataConfig, tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / name, redial, seed=seed, split="redial/test", policies=("sft", name), **fields)
        for seed, (name, fields) in enumerate({"ppo": {}, "grpo": {"algorithm": "grpo"}}.items())
    ]
    with pytest.raises(RunError, match="its configuration differs in algorithm"):
        gather_seeds.runs_by_seed("small", runs)


def test_runs_of_one_domain_share_the_table_of_their_own_split(books: DataConfig, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"run-{seed}", books, seed=seed, split="opendialkg-book/test") for seed in (0, 1)]
    found = gather_seeds.gather_setting("books", runs)
    assert {r.split for r in found} == {"books: opendialkg-book/test"}
    systems = {"sft", "ppo", "ppo-sft"}
    assert {r.system for r in found if r.protocol == "full"} == systems | {"popularity", "copy"}
    assert {r.system for r in found if r.protocol == "fresh, nothing named"} == systems
    # The figure of differences asks for the same split: with another one it would find nothing.
    figure = gather_seeds.differences(found, {"books": gather_seeds.split_of("books", runs)}, {"books": COMPARED})
    assert "HR@5 full" in {axes.get_title("left") for axes in figure.axes}


def test_what_reward_models_know_of_items_is_kept_seed_by_seed(redial: DataConfig, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"run-{seed}", redial, seed=seed, split="redial/test") for seed in (0, 1)]
    for seed, run in enumerate(runs):
        candidates = item_choice.candidates_of(np.array([3.0, 2.0, 1.0]), 1, named=[])
        cases = item_choice.cases_of([candidates], [np.array([0.0, 1.0 - seed, 0.5])], ["one"])
        said = item_choice.choice_results(cases, split="redial/validation", seed=seed)
        write_results(run, [*read_results(run), *said])
    found = gather_seeds.gather_setting("plain", runs)
    auc = {result.split: result.value for result in found if result.name == "reward/matched_auc"}
    assert auc == {"plain, seed 0: redial/validation": 1.0, "plain, seed 1: redial/validation": 0.25}
    systems = {result.system for result in found if result.protocol == "choice"}
    assert systems == {"reward", "policy", "reward-policy"}


def test_runs_on_different_splits_are_not_gathered(books: DataConfig, tmp_path: Path) -> None:
    splits = ("opendialkg/test", "opendialkg-book/test")
    runs = [write_run(tmp_path / f"run-{seed}", books, seed=seed, split=split) for seed, split in enumerate(splits)]
    with pytest.raises(
        RunError, match=rf"setting books: {runs[1]} was measured on {splits[1]}, {runs[0]} on {splits[0]}"
    ):
        gather_seeds.gather_setting("books", runs)


def test_without_the_dialogues_what_needs_them_is_left_out(
    books: DataConfig, redial: DataConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = {
        "books": (books, "is not split by what the context names"),
        "plain": (redial, "has no SR and RDL of trained"),
    }
    for name, (data, said) in lost.items():
        run = write_run(tmp_path / name, data, seed=0, split=f"{name}/test")
        folder = Path(str(data.dir))
        folder.rename(tmp_path / f"{name}, moved")
        found = gather_seeds.gather_setting(name, [run])
        assert {"sft", "ppo", "copy"} <= {r.system for r in found}
        assert not values(found, "sft") and not any("named" in r.protocol for r in found)
        notice = capsys.readouterr().err
        assert f"setting {name} {said}" in notice and str(folder) in notice


def test_dialogues_that_changed_since_are_refused(redial: DataConfig, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", redial, seed=0, split="redial/test")
    file = Path(str(redial.dir)) / "test_data.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(RunError, match=r"sft.npz ranks other rows than the dialogues now have"):
        gather_seeds.gather_setting("plain", [run])


def test_a_name_is_given_once() -> None:
    with pytest.raises(ValueError, match=r"repeated: \['plain'\]"):
        gather_seeds.Config(Path("summary"), ("plain=a", "hackable=b", "plain=c"))


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        (None, "study: no config.json; expected a finished run of ppo_redial.py or ppo_opendialkg.py"),
        ({"config": {"data": {}}}, "study/config.json: no field seed, assess in 'config'; expected a finished run of"),
        ([], "study/config.json: no field seed, data, assess in 'config'; expected a finished run of"),
        (
            {"config": {"seed": 0, "data": {}, "assess": {}}},
            "study/assessments/ppo.npz is not there; expected a finished run of",
        ),
    ],
)
def test_folders_of_studies_are_refused(tmp_path: Path, stored: object, words: str) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "results.json").write_text("[]")
    if stored is not None:
        (folder / "config.json").write_text(json.dumps(stored))
    with pytest.raises(RunError, match=words):
        gather_seeds.runs_by_seed("plain", [folder])


def test_a_run_without_a_ranking_has_no_split(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(RunError, match="results.json: no result under the protocol 'full'; expected a finished run of"):
        gather_seeds.split_of("plain", [tmp_path])
