"""How cost grows: counted in compiled programs, which no busy neighbour changes; the seconds are the benchmark's own matter."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

import bench_growth
from rlhf_jax.data.redial import read_redial
from rlhf_jax.simulators.world import WorldConfig
from rlhf_jax.simulators.world_dialogues import write_world
from scale import conversations, growth, starts
from scale.conversations import Talk

SMALL = bench_growth.Config(
    layers=2,
    depths=(2, 4, 6),
    width=64,
    words=300,
    batches=(16, 64),
    prompts=(32, 64),
    responses=(16, 32),
    catalogues=(1_000, 8_000, 15_000),
    turns=(1, 4),
    groups=(4, 8),
    candidates=(8, 16),
    reply=48,
    devices=(1, 4),
)


Counts = dict[str, tuple[list[float], list[dict[str, float]]]]


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> Counts:
    """Axis to its sizes, and to what is counted at each."""
    folder, found = tmp_path_factory.mktemp("programs"), {}
    talks = {
        axis: [(size, talk.program) for size, talk in points]
        for axis, points in bench_growth.talk_axes(SMALL).items()
        if axis != "conversations, candidates"  # They are masks: the program is the same.
    }
    axes = bench_growth.axes_of(SMALL) | talks
    # All programs of one device at once, in one process.
    bench_growth.counted([one for axis, points in axes.items() if axis != "devices" for _, one in points], folder)
    for axis, points in axes.items():
        said = [one for _, program in points for one in bench_growth.counted([program], folder)]
        found[axis] = ([float(size) for size, _ in points], said)
    return found


@pytest.fixture(scope="module")
def powers(counts: Counts) -> dict[str, dict[str, float]]:
    """Axis to what is counted to the power with which it grows between the first two sizes."""
    return {
        axis: {key: next(growth.slopes(sizes, [one[key] for one in said])) for key in said[0]}
        for axis, (sizes, said) in counts.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["layers", "catalogue"])
@pytest.mark.parametrize("phase", ["decode", "passes", "update"])
def test_every_further_block_and_item_costs_the_same(counts: Counts, axis: str, phase: str) -> None:
    """What does not grow with them (heads, embedding, a last block that computes what is read of it alone; all blocks) is a
    constant: the cost of one more is the same everywhere."""
    sizes, said = counts[axis]
    first, second = np.diff([one[phase] for one in said]) / np.diff(sizes)
    assert first > 0 and second == pytest.approx(first, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("axis", "phase", "least", "most"),
    [
        # Rows are independent: twice as many, twice the work.
        ("batch", "decode", 0.99, 1.01),
        ("batch", "passes", 0.99, 1.01),
        ("batch", "update", 0.99, 1.01),
        # Of a longer prompt the passes read all; attention alone is quadratic, and small at these lengths.
        ("prompt", "passes", 0.3, 1.1),
        ("prompt", "update", 0.3, 1.1),
        # Every further token attends to all before it.
        ("response", "decode", 0.9, 1.25),
        ("response", "update", 0.3, 1.1),
        # Turns are rows, and so are conversations; each is drawn, judged and learnt once.
        ("conversations, turns", "decode", 0.99, 1.01),
        ("conversations, turns", "passes", 0.99, 1.01),
        # What is computed again in the backward pass is chosen by size: 1.019 from one turn to four.
        ("conversations, turns", "update", 0.99, 1.03),
        ("conversations, group", "decode", 0.99, 1.01),
        ("conversations, group", "update", 0.99, 1.01),
        # Devices share out the batch: each does less in the same proportion.
        ("devices", "decode", -1.01, -0.99),
        ("devices", "update", -1.01, -0.9),
    ],
)
def test_operations_grow_at_most_linearly(
    powers: dict[str, dict[str, float]], axis: str, phase: str, least: float, most: float
) -> None:
    assert least <= powers[axis][phase] <= most


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["batch", "prompt", "response", "layers", "catalogue"])
def test_memory_grows_at_most_linearly(powers: dict[str, dict[str, float]], axis: str) -> None:
    assert powers[axis]["temporaries"] <= 1.05


@pytest.mark.slow
def test_devices_share_out_the_memory_of_a_batch(powers: dict[str, dict[str, float]]) -> None:
    assert powers["devices"]["temporaries"] < -0.5


@pytest.mark.slow
def test_an_update_over_100_000_items_keeps_within_a_gigabyte(tmp_path: Path) -> None:
    largest = dict(bench_growth.axes_of(bench_growth.Config())["catalogue"])[100_000]
    (said,) = bench_growth.counted([dataclasses.replace(largest, batch=64, response=32)], tmp_path)
    assert said["temporaries"] < 2**30


def test_a_power_is_the_slope_between_logarithms() -> None:
    assert list(growth.slopes([1.0, 2.0, 8.0], [3.0, 12.0, 12.0])) == [2.0, 0.0]


def test_a_larger_corpus_has_the_same_dialogues_under_ids_of_their_own(tmp_path: Path) -> None:
    write_world(tmp_path / "one", WorldConfig(n_items=16, n_train=6, n_test=2, n_users=4), 0)
    growth.enlarge(tmp_path / "one", tmp_path / "three", 3)
    one, three = (read_redial(tmp_path / name) for name in ("one", "three"))
    count = len(one.train) + len(one.validation)
    assert len(three.train) + len(three.validation) == 3 * count
    assert len({dialogue.dialogue_id for dialogue in (*three.train, *three.validation)}) == 3 * count
    texts = [
        {message.parts for dialogue in (*found.train, *found.validation) for message in dialogue.messages}
        for found in (one, three)
    ]
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_a_corpus_is_read_in_a_process_of_its_own(tmp_path: Path) -> None:
    write_world(tmp_path / "one", WorldConfig(n_items=16, n_train=12, n_test=2, n_users=4), 0)
    found = growth.apart("corpus", {"folder": str(tmp_path / "one"), "n_words": 300, "window": 6, "context_tokens": 64})
    assert 0 < found["dialogues"] <= 12 and found["prompts"] > found["dialogues"]
    assert all(np.isfinite(value) and value > 0 for value in found.values())
    with pytest.raises(ValueError, match="corpus of .* failed"):
        growth.apart("corpus", {"folder": "no such folder", "n_words": 300, "window": 6, "context_tokens": 64})


@pytest.mark.slow
def test_an_update_of_conversations_runs_and_says_its_cost() -> None:
    small = Talk(
        layers=1,
        width=32,
        heads=2,
        openings=2,
        group=2,
        turns=2,
        candidates=8,
        prompt=64,
        response=48,
        words=300,
        items=40,
        dialogues=60,
    )
    found = conversations.apart(small, 1)
    assert found["update_seconds"] > 0 and 0 < found["outside_percent"] < 100 and found["peak_mb"] > 50
    with pytest.raises(ValueError, match="cannot fill a list"):
        conversations.apart(dataclasses.replace(small, candidates=1), 1)


@pytest.mark.slow
def test_a_start_is_measured_until_its_first_step_and_again(tmp_path: Path) -> None:
    world = write_world(tmp_path / "world", WorldConfig(n_items=16, n_train=40, n_test=4, n_users=4), 0)
    first, again = (starts.first_step(world, tmp_path / "store", tmp_path / name) for name in ("first", "again"))
    parts = {"read_seconds", "vocabulary_seconds", "texts_seconds", "step_seconds"}
    assert set(first) - set(again) == parts and min(first.values()) > 0
    assert sum(first[part] for part in parts) == pytest.approx(first["start_seconds"])
    # It ended as a run that was asked to stop: the same command would continue.
    assert "stopped and saved at step" in (tmp_path / "first.log").read_text()
    with pytest.raises(ValueError, match="a start needs a run directory of its own"):
        starts.first_step(world, tmp_path / "store", tmp_path / "again")
    with pytest.raises(ValueError, match=r"was not started:\n.*neither this file nor"):
        starts.first_step(tmp_path, tmp_path / "store", tmp_path / "none")


def test_the_report_has_a_table_an_axis_with_its_powers() -> None:
    points = [
        {"size": size, "decode": 1e9 * size, "update_seconds": 2.0 * size**2, "peak_mb": 900.0} for size in (1, 2, 4)
    ]
    text = bench_growth.axis_table("batch", points, {**bench_growth.COUNTED, **bench_growth.MEASURED})
    lines = text.splitlines()
    assert "decoding, GFLOP" in lines[0] and "whole update, s" in lines[0] and "learning" not in lines[0]
    assert [cell.strip() for cell in lines[-1].strip("| ").split("|")] == ["power", "1.00", "2.00", "0.00"]


@pytest.mark.slow
def test_the_command_writes_its_tables_and_its_figure(tmp_path: Path) -> None:
    config = dataclasses.replace(
        bench_growth.PRESETS["debug"][1], run_dir=tmp_path / "run", axes=("batch", "dialogues"), batches=(4, 8)
    )
    report = bench_growth.main(config)
    text = report.read_text(encoding="utf-8")
    assert (
        f"Measured on: {growth.device_kind()} (" in text
        and f", JAX {jax.__version__}, commit " in text
        and "## Batch" in text
        and "## Dialogues" in text
        and "## Prompt" not in text
    )
    assert "![Cost over that of the smallest size](plots/growth.png)" in text
    assert (tmp_path / "run/plots/growth.svg").stat().st_size > 10_000
    found = json.loads((tmp_path / "run/growth.json").read_text(encoding="utf-8"))
    assert [point["size"] for point in found["batch"]] == [4, 8] and len(found["dialogues"]) == 2
    assert all(point["update_seconds"] > 0 and point["decode"] > 0 for point in found["batch"])


def test_sizes_must_ascend_from_the_base() -> None:
    with pytest.raises(ValueError, match=r"--batches must be ascending numbers"):
        bench_growth.Config(batches=(4, 2))
    with pytest.raises(ValueError, match=r"--depths .* must begin with --layers 3"):
        bench_growth.Config(layers=3)
    assert json.dumps([one for one, _ in bench_growth.axes_of(SMALL)["devices"]]) == "[1, 4]"
