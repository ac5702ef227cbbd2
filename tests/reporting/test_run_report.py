"""A report from stored files alone: tables say what may be claimed, pages show what was logged."""

import json
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from rlhf_jax.evaluation.results import DIFFERENCE, Result, sides_of
from rlhf_jax.reporting import diagnostics, gates, plots, result_tables, run_figures, run_report


def result(name: str, value: float, *, protocol: str = "full", half: float = 0.01, **changes) -> Result:
    fields = {"n": 100, "split": "toy/test", "interval": (value - half, value + half), "seeds": (0, 1, 2)}
    system, metric = name.split("/")
    text = f"definition of {metric}"
    fields |= {"definition": text if sides_of(system) is None else f"{DIFFERENCE}: {text}"} | changes
    return Result(name, value, protocol=protocol, **fields)


def metric_lines(n_updates: int = 8) -> list[dict]:
    lines = [{"stage": "sft", "step": step, "loss": 5.0 / step, "word_nll": 4.0 / step} for step in (1, 2, 3)]
    for update in range(1, n_updates + 1):
        line = {
            "stage": "ppo",
            "step": update,
            "objective/score_raw": 0.1 * update,
            "objective/kl_k1": float(update),
            "objective/kl_k3": None,  # Not finite.
            "text/response_length": 10.0 + update,
        }
        lines.append(line)
        if update % 2 == 0:
            lines.append({"stage": "ppo", "step": update, "world/mean_utility": 0.5 - 0.01 * (update - 4) ** 2})
    return lines


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metric_lines()))
    config = {
        "config": {"seed": 3, "ppo": {"kl_coef": 0.05}},
        "command": ["ppo_redial.py", "demo"],
        "commit": "0123abc",
    }
    (folder / "config.json").write_text(json.dumps(config))
    run_report.write_results(
        folder,
        [
            result("popularity/hr@10", 0.05, seeds=()),
            result("sft/hr@10", 0.15, std=0.002),
            result("ppo/hr@10", 0.16),
            result("ppo-sft/hr@10", 0.01, half=0.02),
            result("sft/mean_utility", 0.45, protocol="closed-loop"),
            result("ppo/mean_utility", 0.35, protocol="closed-loop"),
            result("ppo-sft/mean_utility", -0.1, protocol="closed-loop"),
            result("ppo-sft/proxy_score", 0.9, protocol="closed-loop"),
            result("reward_model/pearson_engagement", 0.7, protocol="held-out"),
            result("reward_model/pearson_sentiment", 0.4, protocol="held-out"),
        ],
    )
    said = {"human": "Try It!", "sft": "hello <movie>", "ppo": "a | b\nc"}
    run_report.write_samples(folder, [run_report.Conversation("17", ("seeker: hi", "recommender: <b>hello"), said)])
    run_report.write_report(folder, title="Toy run", notes=("A note.",))
    return folder


def test_report_has_every_section_in_order(finished_run: Path):
    text = (finished_run / "report.md").read_text(encoding="utf-8")
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings == [
        "## Results",
        "## Reward model",
        "## Supervised fine-tuning",
        "## Reward model training",
        "## PPO",
        "## Proxy reward and true satisfaction",
        "## Conversations before and after",
        "## Definitions",
        "## How to repeat this",
        "## Provenance",
    ]
    assert text.startswith("# Toy run\n\nA note.")
    assert "```\nppo_redial.py demo\n```" in text
    assert "| commit | `0123abc` |" in text and "| ppo.kl_coef | `0.05` |" in text


def test_tables_show_protocol_n_interval_seeds_and_claims(finished_run: Path):
    text = (finished_run / "report.md").read_text(encoding="utf-8")
    assert "### toy/test: `full`" in text and "(training seeds 0, 1, 2)" in text
    row = next(line for line in text.splitlines() if line.startswith("| hr@10"))
    assert row == (
        "| hr@10 | 100 | 0.050 [0.040, 0.060] | 0.150 ± 0.002 [0.140, 0.160] | 0.160 [0.150, 0.170] | "
        "+0.010 [-0.010, +0.030] (no difference shown) |"
    )
    assert "| pearson_engagement | 100 | 0.700 [0.690, 0.710] | > 0.6 | passes | toy/test |" in text
    assert "**below the gate**" in text
    assert "- `hr@10` (full): definition of hr@10" in text


def test_the_gate_is_the_run_s_own(finished_run: Path, tmp_path: Path):
    for name in ("results.json", "metrics.jsonl"):
        shutil.copy(finished_run / name, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"config": {"reward": {"gate_pearson": 0.3}}}))
    text = run_report.write_report(tmp_path).read_text(encoding="utf-8")
    assert "correlation exceeds 0.3." in text and "below the gate" not in text
    assert "| pearson_sentiment | 100 | 0.400 [0.390, 0.410] | > 0.3 | passes | toy/test |" in text


def test_over_optimisation_is_said_in_words(finished_run: Path):
    text = (finished_run / "report.md").read_text(encoding="utf-8")
    assert "the truth was highest (0.500) at update 4 of 8, KL 4.0 nats" in text
    assert "**Over-optimised: the proxy rose while the truth fell.**" in text


@pytest.mark.parametrize(
    ("proxy", "truth", "half", "sentence"),
    [
        (0.5, 0.1, 0.01, "**Both rose.**"),
        (0.5, 0.1, 0.2, "**The proxy rose without a gain in truth that could be shown.**"),
        (-0.5, 0.1, 0.01, "**The proxy did not rise, so the truth was not put to the test.**"),
    ],
)
def test_verdicts(proxy: float, truth: float, half: float, sentence: str):
    results = [result("ppo-sft/proxy_score", proxy, half=half), result("ppo-sft/mean_utility", truth, half=half)]
    assert sentence in run_figures.verdict([], results)
    assert run_figures.verdict([], []) == "Too few evaluations to compare the two."


def test_conversations_cannot_break_the_markdown(finished_run: Path):
    text = (finished_run / "report.md").read_text(encoding="utf-8")
    assert "> recommender: &lt;b&gt;hello" in text
    assert "| **ppo** | a \\| b c |" in text


def test_every_image_is_there_in_both_forms(finished_run: Path):
    text = (finished_run / "report.md").read_text(encoding="utf-8")
    names = {path.stem for path in (finished_run / "plots").iterdir()}
    assert names == {"comparison", "sft", "ppo", "proxy_and_truth", "kl_path"}
    for name in names:
        assert f"](plots/{name}.png)" in text
        assert (finished_run / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert ElementTree.parse(finished_run / "plots" / f"{name}.svg").getroot().tag.endswith("svg")


def test_the_page_needs_no_other_file(finished_run: Path):
    page = (finished_run / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg ") == 5 and "Over-optimised" in page and "<title>Toy run</title>" in page
    links = re.findall(r"""\b(?:href|src|action|url)\s*[=(]\s*["']?([^"')\s>]*)""", page)
    ids = re.findall(r' id="([^"]*)"', page)
    # Inside figures alone: to their own parts, and colour bars.
    assert links and {link[:1] for link in links} <= {"#", "d"}
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    assert not any(link.startswith("d") and not link.startswith("data:image/png;base64,") for link in links)
    assert len(ids) == len(set(ids))
    assert "<script" not in page and "@import" not in page


def test_report_of_an_empty_run_says_what_is_missing(tmp_path: Path):
    text = run_report.write_report(tmp_path).read_text(encoding="utf-8")
    for sentence in (
        "No result has been written yet.",
        "It was not measured in this run.",
        "Nothing of this was logged in this run.",
        "No conversation was stored.",
        "has no `config.json`",
    ):
        assert sentence in text
    assert not (tmp_path / "plots").exists()


def test_results_round_trip_and_refuse_doubles(tmp_path: Path):
    results = [result("sft/hr@1", 0.1), result("sft/hr@1", 0.2, protocol="fresh", interval=None)]
    run_report.write_results(tmp_path, results)
    assert run_report.read_results(tmp_path) == results
    with pytest.raises(ValueError, match="'sft/hr@1' under 'full' on 'toy/test' occurs twice"):
        run_report.write_results(tmp_path, [results[0], results[0]])
    (tmp_path / "results.json").write_text('[{"name": "sft/hr@1"}]')
    (tmp_path / "checksums.json").unlink()
    with pytest.raises(ValueError, match=r"results.json, entry 0: result 'sft/hr@1': missing value, n"):
        run_report.read_results(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"results.json": ["a"]}', "must hold a list"),
        ('["text"]', "entry 0: 'text', expected an object"),
        ('[{"dialogue": "1", "context": "said", "replies": {}}]', "entry 0"),
        ('[{"dialogue": "1", "context": []}]', "entry 0"),
    ],
)
def test_stored_conversations_that_are_something_else_are_named(tmp_path: Path, text: str, said: str):
    (tmp_path / "samples.json").write_text(text)
    with pytest.raises(ValueError, match=rf"samples\.json.*{said}"):
        run_report.read_samples(tmp_path)


@pytest.mark.parametrize(
    "other",
    [
        '{"results.json": 7}',
        '{"results.json": "text"}',
        '{"results.json": null}',
        '{"results.json": {"a": 1}}',
        "[1, 2]",
    ],
)
def test_checksums_that_are_something_else_say_nothing(tmp_path: Path, other: str):
    run_report.write_results(tmp_path, [result("sft/hr@1", 0.1)])
    (tmp_path / "checksums.json").write_text(other)
    assert [found.value for found in run_report.read_results(tmp_path)] == [0.1]
    run_report.write_results(tmp_path, [result("sft/hr@1", 0.2)])
    assert [found.value for found in run_report.read_results(tmp_path)] == [0.2]


def test_series_are_of_one_stage_and_null_is_a_gap():
    lines = [
        {"stage": "ppo", "step": 1, "objective/kl_k1": 1.0},
        {"stage": "ppo", "step": 2, "objective/kl_k1": None},
        {"stage": "sft", "step": 3, "objective/kl_k1": 3.0},
    ]
    steps, values = run_figures.series(lines, "ppo", "objective/kl_k1")
    assert steps == [1.0, 2.0]
    assert values[0] == 1.0 and np.isnan(values[1])


def test_single_seed_claims_nothing():
    assert result_tables.claim(result("ppo-sft/hr@1", 0.1, seeds=(0,))) == "(one seed: no claim)"
    assert result_tables.claim(result("ppo-sft/hr@1", 0.1, std=0.01)) == "**▲**"
    assert result_tables.claim(result("ppo-sft/hr@1", -0.1, std=0.01)) == "**▼**"
    assert result_tables.claim(result("ppo-sft/hr@1", 0.1, std=0.05)) == "(seeds differ: no claim)"
    assert result_tables.claim(result("ppo-sft/hr@1", 0.1, seeds=(0, 1), std=0.01)) == "(2 seeds: no claim)"
    assert result_tables.claim(result("ppo-sft/hr@1", 0.1, half=0.2)) == "(no difference shown)"


def test_running_mean_leaves_gaps_out():
    y = np.array([1.0, np.nan, 3.0, 5.0])
    np.testing.assert_allclose(plots.running_mean(y, 3), [1.0, 2.0, 4.0, 4.0])
    assert np.isnan(plots.running_mean(np.array([np.nan, np.nan]), 3)).all()


def test_a_study_has_a_column_per_group_and_a_line_per_run():
    figure = run_figures.study({"plain": [metric_lines(), metric_lines()], "hackable": [metric_lines()]})
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles[:4] == [
        "plain: proxy reward",
        "hackable: proxy reward",
        "plain: true utility",
        "hackable: true utility",
    ]
    assert [len(axes.lines) for axes in figure.axes] == [2, 1, 2, 1, 2, 1]


def test_a_study_without_a_known_truth_has_no_panel_of_it():
    lines = [{k: v for k, v in line.items() if "utility" not in k} for line in metric_lines()]
    figure = run_figures.study({"redial": [lines, lines]})
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["redial: proxy reward", "redial: KL"]


def test_stages_of_one_kind_have_pages_of_their_own(tmp_path: Path):
    lines = metric_lines()
    names = ("ppo-kl0", "grpo-kl1")
    variants = [line | {"stage": name} for name in names for line in lines if line["stage"] == "ppo"]
    models = [{"stage": "reward_model-shift", "step": 1, "loss": 1.0, "loss/sentiment": 0.5}]
    titles = [section.title for section in run_figures.sections([*models, *variants], [])]
    assert titles[1:4] == ["Reward model training: reward_model-shift", "PPO: ppo-kl0", "GRPO: grpo-kl1"]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in variants))
    text = diagnostics.write_diagnostics(tmp_path, title="Toy").read_text(encoding="utf-8")
    # Means of the last five of eight updates: score .1 a step, KL 1 a step.
    assert "| grpo-kl1 | 0.6 | 6 |" in text and "(plots/ppo-kl0.png)" in text
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {
        f"{name}.{form}" for name in names for form in ("png", "svg")
    }
    (tmp_path / "metrics.jsonl").write_text(json.dumps(models[0]) + "\n")
    with pytest.raises(ValueError, match="no line of a PPO or GRPO stage"):
        diagnostics.write_diagnostics(tmp_path, title="Toy")


def test_figures_are_reproducible(tmp_path: Path):
    panel = plots.Panel("A", [plots.Line("a", [1, 2, 3], [1.0, 2.0, 3.0])])
    for folder in ("a", "b"):
        plots.save(plots.small_multiples([panel]), tmp_path / folder, "x")
    assert (tmp_path / "a" / "x.svg").read_bytes() == (tmp_path / "b" / "x.svg").read_bytes()


def test_curves_and_gates_follow_the_names_of_the_components():
    lines = [{"stage": "ppo-own", "step": 1, "objective/wit_raw": 1.0, "objective/sentiment_raw": 2.0}]
    lines[0]["objective/score_raw"] = 3.0
    assert run_figures.components(lines, "ppo-own", "objective/*_raw") == ["sentiment", "wit"]
    assert run_figures.spelled_out({"objective/*_raw": "*", "loss": "all"}, lines, "ppo-own") == {
        "objective/sentiment_raw": "sentiment",
        "objective/wit_raw": "wit",
        "loss": "all",
    }
    gate = {"pearson": {"sentiment": 0.7, "wit": 0.2, "reward": 0.6}, "failed": ["wit"], "threshold": 0.6}
    _, _, table = gates.section({"own": [gate]})
    assert "weighted sum" in table and "| sentiment" in table and "wit in 1 of 1" in table
