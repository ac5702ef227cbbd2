"""Checkpoints: everything comes back, and what is broken is found."""

import json
import os
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from rlhf_jax.runtime.checkpoint import Checkpoints
from rlhf_jax.runtime.files import RunError, read_object


def make_state(value: float) -> dict[str, Any]:
    params = {"w": jnp.full((3, 2), value), "half": jnp.full((4,), value, jnp.bfloat16)}
    return {
        "params": params,
        "optimizer": optax.adamw(1e-3).init(params),
        "key": jax.random.key(int(value)),
        "moments": np.full((2,), value + 1e-12),
        "count": int(value),
    }


def bits(state: Any) -> list[bytes]:
    leaves = [
        jax.random.key_data(leaf) if jnp.issubdtype(jnp.asarray(leaf).dtype, jax.dtypes.prng_key) else leaf
        for leaf in jax.tree.leaves(state)
    ]
    return [np.asarray(leaf).tobytes() for leaf in leaves]


def break_newest(folder: Path, step: int) -> Path:
    largest = max((f for f in (folder / str(step) / "state").rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    return largest


def test_every_kind_of_leaf_comes_back_bitwise(tmp_path: Path) -> None:
    checkpoints, state = Checkpoints(tmp_path), make_state(3.0)
    checkpoints.save(5, state, {"sum": 0.1 + 0.2})
    restored = checkpoints.restore(make_state(0.0))
    assert restored is not None
    assert (restored.step, restored.extra) == (5, {"sum": 0.1 + 0.2})
    assert jax.tree.structure(restored.state) == jax.tree.structure(state)
    assert bits(restored.state) == bits(state)
    assert restored.state["moments"].dtype == np.float64
    assert restored.state["params"]["half"].dtype == jnp.bfloat16


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "absent").restore(make_state(0.0)) is None


def test_the_newest_and_what_they_pin_are_kept(tmp_path: Path) -> None:
    checkpoints, state = Checkpoints(tmp_path, keep=2), {"w": jnp.zeros(2)}
    for step, pinned in ((1, []), (2, [2]), (3, [2]), (4, [2]), (5, [5])):
        checkpoints.save(step, state, {}, pinned=pinned)
    assert checkpoints.steps() == [2, 4, 5]
    checkpoints.save(6, state, {}, pinned=[5])
    assert checkpoints.steps() == [5, 6]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["5", "6"]


def test_a_truncated_newest_falls_back_and_is_put_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make_state(1.0), {})
    checkpoints.save(2, make_state(2.0), {})
    broken = break_newest(tmp_path, 2)
    restored = checkpoints.restore(make_state(0.0))
    assert restored is not None and restored.step == 1
    assert bits(restored.state) == bits(make_state(1.0))
    text = capsys.readouterr().err
    assert f"{broken.name} has" in text and "continuing from 1" in text
    assert checkpoints.steps() == [1]
    assert len(list(tmp_path.glob("unreadable-2-*"))) == 1
    checkpoints.save(2, make_state(2.0), {})
    assert checkpoints.restore(make_state(0.0)).step == 2


def test_none_readable_is_an_error_and_nothing_moves(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"w": jnp.zeros(2)}, {})
    break_newest(tmp_path, 1)
    with pytest.raises(RunError, match=r"no checkpoint in .* can be read \(1: .* bytes.*nothing was overwritten"):
        checkpoints.restore({"w": jnp.zeros(2)})
    assert checkpoints.steps() == [1]


def test_a_state_of_another_form_is_an_error(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"w": jnp.zeros(2)}, {})
    with pytest.raises(RunError, match="no checkpoint in .* can be read"):
        checkpoints.restore({"w": jnp.zeros(3)})
    with pytest.raises(RunError, match="no checkpoint in .* can be read"):
        checkpoints.restore({"v": jnp.zeros(2)})


def test_a_full_disk_is_seen_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"w": jnp.zeros(2)}, {})
    usage = namedtuple("usage", "total used free")(10**9, 10**9 - 10, 10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(RunError, match=r"disk full: the checkpoint .*2 needs 1.0 MiB and 0.0 MiB are free"):
        checkpoints.save(2, {"w": jnp.zeros(2)}, {})
    assert checkpoints.steps() == [1]


def test_a_disk_that_fills_while_writing_keeps_the_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"w": jnp.zeros(2)}, {})
    save = ocp.StandardCheckpointer.save

    def fill(self: ocp.StandardCheckpointer, path: Path, state: Any) -> None:
        save(self, path, state)
        self.wait_until_finished()
        raise ValueError("RESOURCE_EXHAUSTED: Error writing local file: No space left on device")

    monkeypatch.setattr(ocp.StandardCheckpointer, "save", fill)
    with pytest.raises(RunError, match="disk full while writing .*make room and start the same command again"):
        checkpoints.save(2, {"w": jnp.ones(2)}, {})
    assert [entry.name for entry in tmp_path.iterdir()] == ["1"]


def test_what_a_killed_save_left_is_removed_by_the_next(tmp_path: Path) -> None:
    (tmp_path / "unfinished-abc" / "state").mkdir(parents=True)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.restore({"w": jnp.zeros(2)}) is None
    checkpoints.save(1, {"w": jnp.zeros(2)}, {})
    assert [entry.name for entry in tmp_path.iterdir()] == ["1"]


def test_a_complete_checkpoint_is_never_overwritten(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"w": jnp.zeros(2)}, {})
    checkpoints.save(1, {"w": jnp.ones(2)}, {})
    assert checkpoints.restore({"w": jnp.zeros(2)}).state["w"].tolist() == [0.0, 0.0]


def test_keep_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep = 0"):
        Checkpoints(tmp_path, keep=0)


def test_a_changed_bit_falls_back_and_old_sizes_alone_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make_state(1.0), {})
    checkpoints.save(2, make_state(2.0), {})
    file = max((f for f in (tmp_path / "2" / "state").rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    sizes = {name: written["bytes"] for name, written in read_object(tmp_path / "1" / "files.json").items()}
    (tmp_path / "1" / "files.json").write_text(json.dumps(sizes))
    with pytest.raises(RunError, match=rf"{file.name} was changed after it was written"):
        checkpoints.arrays(2)
    restored = checkpoints.restore(make_state(0.0))
    assert restored is not None and restored.step == 1
    assert bits(restored.state) == bits(make_state(1.0))
    assert f"{file.name} was changed" in (said := capsys.readouterr().err) and "continuing from 1" in said
