"""The preset `debug` of the cross-domain study on real dialogues: seeds apart, then together, then done."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

import cross_domain
from rlhf_jax.reporting.run_report import read_results
from rlhf_jax.runtime.files import RunError
from rlhf_jax.runtime.run import open_run
from studies.foundation import stored_config
from studies.transfer import measure as transfer
from studies.transfer.measure import Model


@pytest.mark.slow
def test_debug_from_data_to_report(run_here: Callable[..., tuple[int, str]], data_dir: Path, tmp_path: Path) -> None:
    run = tmp_path / "cross-domain"
    options = ("--data-dir", str(data_dir), "--run-dir", str(run), "--embeddings", "shared")
    code, output = run_here("cross_domain.py", "debug", *options, "--only-seed", "0")
    assert code == 0, output
    assert not (run / "report.md").exists()
    # Gathering trains nothing again.
    code, output = run_here("cross_domain.py", "debug", *options)
    assert code == 0 and "starts" not in output, output
    assert f"report: {run / 'report.md'}" in output
    results = read_results(run)
    splits = {f"opendialkg-{d}/test, catalogue {c}" for d in ("movie", "book") for c in (d, "movie+book")}
    assert {result.split for result in results} == splits
    alone = {result.system for result in results if "-" not in result.system}
    trained = {f"{where}, shared, {policy}" for where in ("in domain", "transferred") for policy in ("SFT", "PPO")}
    assert alone == trained | {"popularity", "copy"}
    report = (run / "report.md").read_text()
    assert "Verdict, movies → books" in report and "**▲**" not in report  # One seed claims nothing.
    for figure in ("transfer.png", "transfer.svg", "transfer_text.png"):
        assert (run / "plots" / figure).exists()
    # The foundation knows its files by content: the folder may have moved since.
    moved = cross_domain.command_line(["debug", "--run-dir", str(run), "--data-dir", str(tmp_path / "moved")])
    model = Model("movie", "shared")
    chosen = transfer.foundation_config(cross_domain.setting_of(moved).foundation, model, moved.sentiment)
    laid = cross_domain.model_folder(moved, model, 0) / "foundation"
    open_run(laid, {"seed": 0, **stored_config(chosen)}, trackers=()).close()
    diagnostics = (run / "seed-0" / "movie-shared" / "ppo" / "diagnostics.md").read_text()
    assert "Explained variance" in diagnostics or "plots/ppo.png" in diagnostics


def test_other_options_do_not_take_what_is_done(tmp_path: Path) -> None:
    config = cross_domain.command_line(["debug", "--run-dir", str(tmp_path / "run"), "--data-dir", str(tmp_path)])
    setting, model = cross_domain.setting_of(config), Model("movie", "shared")
    folder = cross_domain.model_folder(config, model, 0) / "ppo"
    chosen = transfer.foundation_config(setting.foundation, model, config.sentiment)
    with open_run(folder, cross_domain.facts(setting, chosen, 0), trackers=()):
        (folder / "diagnostics.md").touch()
    # Done: nothing is read, wherever the data lie now. A model of other labels or dialogues is another model.
    moved = dataclasses.replace(config, data_dir=tmp_path / "elsewhere")
    cross_domain.train_and_test(moved, cross_domain.setting_of(moved), model, 0)
    for changes, message in (({"sentiment": "level"}, "sentiments"), ({"max_dialogues": 50}, "max_dialogues was 60")):
        changed = dataclasses.replace(config, **changes)
        with pytest.raises(RunError, match=message):
            cross_domain.train_and_test(changed, cross_domain.setting_of(changed), model, 0)


def test_wrong_options() -> None:
    with pytest.raises(ValueError, match="--only-seed 7 is not one of --seeds"):
        cross_domain.Config(only_seed=7)
    with pytest.raises(ValueError, match=r"max_dialogues must be in \[1, 10000000\]: got 0"):
        cross_domain.Config(max_dialogues=0)


def test_data_that_are_not_there(run_here: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    folders = ("--data-dir", str(tmp_path), "--run-dir", str(tmp_path / "run"))
    code, output = run_here("cross_domain.py", "debug", *folders)
    assert code == 1 and "neither this file nor opendialkg.csv" in output and "Traceback" not in output
