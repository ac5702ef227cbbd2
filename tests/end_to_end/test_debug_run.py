"""The preset `debug` from data to report, once; what it leaves behind, and what interruptions change: nothing."""

import dataclasses
import html
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import chat
import store_lesson
from chat_page import server
from fingerprint import fingerprint
from rlhf_jax.assessment import comparison
from rlhf_jax.assessment.conversation import Conversation
from rlhf_jax.assessment.finished_run import open_finished, stage_policy, stage_proxy
from rlhf_jax.assessment.reply_tokens import credit_of, draw_replies
from rlhf_jax.feedback.components import COMPONENTS
from rlhf_jax.reporting import replies_page
from rlhf_jax.reporting.run_report import read_results
from rlhf_jax.runtime.files import write_json
from rlhf_jax.runtime.metric_names import STAGES as STAGES_OF_TABLE
from rlhf_jax.runtime.metric_names import check
from rlhf_jax.runtime.metrics import read_metrics
from rlhf_jax.runtime.stage import stage_arrays
from rlhf_jax.stages.contexts import Windows

STAGES = ("sft", "reward_model", "ppo")


@dataclasses.dataclass(frozen=True)
class Lab:
    """Starts the experiments as a person would; `program_cache` makes all starts but the first fast."""

    repository: Path

    def start(self, script: str, *arguments: str) -> subprocess.Popen[str]:
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(self.repository),
        }
        command = [sys.executable, str(self.repository / "experiments" / script), *arguments]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )

    def run(self, script: str, *arguments: str, stdin: str = "") -> tuple[int, str]:
        """Exit code and output."""
        with self.start(script, *arguments) as process:
            output, _ = process.communicate(stdin)
        return process.returncode, output

    def debug(self, folder: Path, *options: str) -> tuple[int, str]:
        return self.run("ppo_redial.py", "debug", "--run-dir", str(folder), *options)

    def interrupt(self, folder: Path, number: signal.Signals, when: Callable[[], bool]) -> tuple[int, str]:
        """Sends a signal as soon as `when` holds."""
        with self.start("ppo_redial.py", "debug", "--run-dir", str(folder)) as process:
            while process.poll() is None and not when():
                time.sleep(0.005)
            process.send_signal(number)
            output, _ = process.communicate()
        return process.returncode, output


@pytest.fixture(scope="module")
def lab(repository: Path) -> Lab:
    return Lab(repository)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, lab: Lab) -> Path:
    """One uninterrupted run."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    code, output = lab.debug(folder)
    assert code == 0, output
    assert f"report: {folder / 'report.md'}" in output
    # A table of zeros is not the last word of a run that cannot have learnt.
    assert "too small to learn" in output.split("PPO against imitation")[1]
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy that may be spoilt."""
    return Path(shutil.copytree(finished, tmp_path / "copied"))


def forget(folder: Path, *stages: str) -> None:
    """Makes the run as if these stages and the evaluation had not been reached."""
    for stage in stages:
        shutil.rmtree(folder / "checkpoints" / stage)
    shutil.rmtree(folder / "assessments")
    (folder / "results.json").unlink()


def test_the_configuration_is_stored_with_its_surroundings(finished: Path) -> None:
    stored = json.loads((finished / "config.json").read_text())
    assert stored["config"]["model"]["n_layer"] == 1
    assert stored["environment"]["versions"]["jax"]
    assert stored["data"]["n_train"] + stored["data"]["n_validation"] == 60
    assert all(len(sha256) == 64 for sha256 in stored["data"]["files"].values())


def test_every_logged_metric_is_in_the_table(finished: Path) -> None:
    entries = read_metrics(finished / "metrics.jsonl")
    assert {entry["stage"] for entry in entries} == set(STAGES)
    for entry in entries:
        for name in set(entry) - {"stage", "step"}:
            check(entry["stage"], name)


def test_every_metric_of_the_table_is_logged(finished: Path) -> None:
    logged = {
        (entry["stage"], check(entry["stage"], name))
        for entry in read_metrics(finished / "metrics.jsonl")
        for name in set(entry) - {"stage", "step"}
    }
    table = {
        (stage, metric): name for stage in STAGES for group in STAGES_OF_TABLE[stage] for name, metric in group.items()
    }
    # What a way is measured by in `reward_hacking.py` alone, and what options that are off would log.
    measured = {
        "policy/ptx_loss",
        "teacher_kl",
        "objective/flat_group_share",
        "text/bleu4",
        "text/bleu4_one_hot",
        "judge/score",
        "validation/score_raw",
        "validation/kl_k1",
        "validation/response_length",
    }
    assert {name for key, name in table.items() if key not in logged} == measured


def test_results_are_complete(finished: Path) -> None:
    results = read_results(finished)
    assert {r.protocol for r in results} == {
        "full",
        "fresh",
        "fresh-filtered",
        "text",
        "closed-loop",
        "choice",
        "held-out",  # 40 items: no 99 negatives
    }
    assert {"popularity", "copy", "mixture", "sft", "ppo", "ppo-sft", "reward_model"} <= {r.system for r in results}
    closed_loop = {r.system for r in results if r.name.endswith("/mean_utility")}
    known = {"random", "popularity", "logged", "oracle"}
    choices = {"choice_reward", "choice_policy", "choice_reward-choice_policy"}
    of_reward = {"reward", "policy", "reward-policy", *choices}
    assert closed_loop == known | {"sft", "ppo", "ppo-sft", *choices}
    for result in results:
        assert math.isfinite(result.value) and result.n > 0 and result.definition and result.split.startswith("world/")
        trained = result.system in {"sft", "ppo", "ppo-sft", "reward_model"} | of_reward
        assert result.seeds == ((0,) if trained else ()), result.name
        # Counts of different n-grams have no interval over dialogues.
        assert result.interval is not None or result.metric.startswith("distinct_"), result.name


def test_the_report_shows_plots_that_exist(finished: Path) -> None:
    report = (finished / "report.md").read_text()
    files = re.findall(r"\((plots/[^)]+)\)", report)
    assert {f"plots/{stage}.png" for stage in STAGES} <= set(files)
    assert "plots/proxy_and_truth.png" in files
    for file in files:
        head = (finished / file).read_bytes()[:400]
        assert head.startswith(b"\x89PNG") or b"<svg" in head, file
    assert "**below the gate**" in report
    assert "## Conversations before and after" in report


def test_the_first_ratio_is_one_and_the_sampler_agrees(finished: Path) -> None:
    updates = [entry for entry in read_metrics(finished / "metrics.jsonl") if entry["stage"] == "ppo"]
    ratios = [entry["policy/first_ratio_max_deviation"] for entry in updates if "policy/loss" in entry]
    mismatches = [entry["policy/sampler_mismatch"] for entry in updates if "policy/loss" in entry]
    assert len(ratios) == json.loads((finished / "config.json").read_text())["config"]["align"]["updates"]
    assert max(ratios) < 1e-5
    assert max(mismatches) < 1e-4


@pytest.mark.slow
def test_an_interrupted_run_ends_bit_for_bit_as_an_uninterrupted_one(finished: Path, lab: Lab, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    metrics, ppo = folder / "metrics.jsonl", folder / "checkpoints" / "ppo"
    code, output = lab.interrupt(folder, signal.SIGTERM, lambda: metrics.exists() and metrics.stat().st_size > 900)
    assert code == 75, output
    assert "sft: stopped and saved at step" in output
    code, output = lab.interrupt(folder, signal.SIGKILL, lambda: (ppo / "2").exists())
    assert code == -signal.SIGKILL, output
    assert "sft: continues at step" in output
    code, output = lab.debug(folder)
    assert code == 0, output
    assert "sft: done before" in output and "ppo: continues at step" in output
    for stage in STAGES:
        assert fingerprint(stage_arrays(folder, stage)) == fingerprint(stage_arrays(finished, stage)), stage
    assert (folder / "results.json").read_bytes() == (finished / "results.json").read_bytes()
    assert (folder / "samples.json").read_bytes() == (finished / "samples.json").read_bytes()
    said = (folder / "samples.jsonl").read_bytes()
    assert said == (finished / "samples.jsonl").read_bytes() and b'"stage": "sft"' in said and b'"stage": "ppo"' in said


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_a_person_can_talk_with_the_model(finished: Path, run_here: Callable[..., tuple[int, str]], stage: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    name, title = (finished / "data" / "movies_with_mentions.csv").read_text().splitlines()[1].split(",")[:2]
    unknown = 'and "No Such Film", Gone Nowhere (1901) and @999999'
    typed = (
        f"hi, i liked {title.lower()} and @{name}\n{title} {unknown}\n/top 3\n/nonsense\n/reset\n/quit\nnever read\n"
    )
    code, output = run_here("chat.py", str(finished), "--stage", stage, "--greedy", stdin=typed)
    assert code == 0, output
    assert f"recognised: {title}\n" in output
    assert output.count("not in the catalogue: ") == 1
    assert "     not in the catalogue: No Such Film, Gone Nowhere (1901), @999999\n" in output
    # Five titles that it knows, and a sentence that somebody said.
    titles = re.search(r"^Titles it knows: (.+)$", output, re.MULTILINE)
    catalogue = (finished / "data" / "movies_with_mentions.csv").read_text()
    assert titles and len(set(titles[1].split("; "))) == 5 and all(one in catalogue for one in titles[1].split("; "))
    assert re.search(r"^Somebody began with: \w+,? \w+", output, re.MULTILINE)
    assert "model> " in output
    assert re.search(r"^     reward model: engagement [+-]\d\.\d\d, .*; weighted [+-]\d", output, re.MULTILINE)
    assert "No command '/nonsense'" in output and "Forgotten" in output and "never read" not in output
    assert len(re.findall(r"^ +\d+\. +\d+\.\d%  .+ \(\d{4}\)$", output, re.MULTILINE)) == 5 + 5 + 3
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


@pytest.mark.slow
def test_a_run_from_a_store_is_the_run_from_memory(finished: Path, lab: Lab, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code, output = lab.debug(folder, "--data.store", str(tmp_path / "store"))
    assert code == 0, output
    assert list(tmp_path.glob("store/*/texts-*/texts.values"))
    for stage in STAGES:
        assert fingerprint(stage_arrays(folder, stage)) == fingerprint(stage_arrays(finished, stage)), stage
    lines = [read_metrics(one / "metrics.jsonl") for one in (folder, finished)]
    for line in (*lines[0], *lines[1]):
        line.pop("seconds_per_update", None)
    assert lines[0] == lines[1]
    assert (folder / "results.json").read_bytes() == (finished / "results.json").read_bytes()
    assert (folder / "samples.jsonl").read_bytes() == (finished / "samples.jsonl").read_bytes()


@pytest.mark.slow
def test_a_prior_is_learnt_and_ranked(finished: Path, run_here: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    out = tmp_path / "prior"
    options = ("--prior.updates", "20", "--prior.held-out", "0", "--assess.text-turns", "4")
    code, output = run_here("align_prior.py", str(finished), "--run-dir", str(out), *options)
    assert code == 0, output
    learnt = json.loads((out / "weights.json").read_text())["seed 0"]
    assert set(learnt) == {"likelihood", "grpo"} and list(learnt["grpo"]["weights"])[-1] == "named"
    results = {(r.system, r.metric, r.protocol): r for r in read_results(out)}
    # Without the prior it is the policy that the run has ranked, and told by hand it is that without what was named.
    of_run = {(r.system, r.metric, r.protocol): r for r in read_results(finished)}
    for metric in ("hr@5", "mrr"):
        assert results["sft", metric, "fresh"].value == of_run["sft", metric, "fresh"].value
        filtered = results["sft_filtered", metric, "fresh"].value
        assert filtered == pytest.approx(results["sft", metric, "fresh-filtered"].value)
    assert ("grpo-likelihood", "hr@5", "fresh") in results and ("grpo-sft", "bleu4", "text") in results
    assert "## Greedy replies beside the human's" in (out / "report.md").read_text()
    code, output = run_here("align_prior.py", str(finished), str(finished), "--run-dir", str(tmp_path / "twice"))
    assert code == 1 and "seed 0 is that of" in output and "Traceback" not in output
    code, output = run_here("align_prior.py", str(finished), "--run-dir", str(out), *options, "--judge-data", "nowhere")
    assert code == 1 and "--judge-data nowhere: the judge was fitted on ReDial" in output and "Traceback" not in output


@pytest.mark.slow
def test_a_run_with_a_prior_speaks_with_it_in_every_stage(
    run_here: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    options = ("--algorithm", "grpo", "--align.trainable", "prior", "--align.updates", "2", "--align.evaluations", "1")
    sizes = ("--prior.learner", "grpo", "--prior.updates", "4", "--assess.users", "4", "--assess.text-turns", "4")
    code, output = run_here("ppo_redial.py", "debug", "--run-dir", str(out), "--trackers", *options, *sizes)
    assert code == 0, output
    run = open_finished(out)
    assert run.stages == ["sft", "prior", "grpo"] == list(run.expected)
    policies = {stage: stage_policy(run, stage) for stage in run.stages}
    assert "prior" not in policies["sft"] and {"trunk", "prior"} == set(policies["grpo"])
    # What may move is the prior alone, and it did.
    jax.tree.map(np.testing.assert_array_equal, policies["grpo"]["trunk"], policies["prior"]["trunk"])
    assert not np.array_equal(policies["grpo"]["prior"]["scores"], policies["prior"]["prior"]["scores"])
    first = next(entry for entry in read_metrics(out / "metrics.jsonl") if entry["stage"] == "grpo")
    assert first["policy/first_ratio_max_deviation"] < 1e-4 and abs(first["objective/kl_k1"]) < 1e-4
    # A person meets the same policies, and what he says reaches the recommenders.
    title = next(iter(run.corpus.items.values())).title
    tops = {}
    for stage, policy in policies.items():
        turn = Conversation(run, policy, greedy=True).turn(f"I liked {title}", 5)
        assert len(turn.recognised) == 1 and sum(share for _, share in turn.top) <= 1.0 + 1e-6
        tops[stage] = turn.top
    assert tops["sft"] != tops["prior"]
    measured = {r.name for r in read_results(out)}
    assert {"sft/hr@5", "prior/hr@5", "grpo/hr@5", "grpo-sft/hr@5", "grpo-prior/hr@5", "prior-sft/hr@5"} <= measured


@pytest.mark.slow
def test_replies_of_both_stages_on_one_page(
    finished: Path, run_here: Callable[..., tuple[int, str]], tmp_path: Path, chromium: Any
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    run, page = open_finished(finished), tmp_path / "replies.html"
    found = draw_replies(run, count=3, greedy=False, seed=5)
    for prompt in found.prompts:
        for stage, reply in prompt.replies.items():
            assert 0 < len(reply.tokens) <= run.data.response_tokens and set(reply.components) == set(COMPONENTS), stage
            assert all(token.logprob <= 0 and token.ref_logprob <= 0 for token in reply.tokens)
            assert all(token.advantage is not None for token in reply.tokens)
    for options in (("--seed", "5"), ("--greedy",)):
        code, output = run_here("replies.py", str(finished), "--out", str(page), "--prompts", "3", *options)
        assert (code, output) == (0, f"3 prompts, sft, ppo: {page}\n")
        assert ("3 contexts of the test split, greedy" in page.read_text()) == (options == ("--greedy",))
        if options != ("--greedy",):
            # The same seed says the same.
            assert page.read_text() == replies_page.page(found)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before
    chromium.get(page.as_uri())
    visible = "return [...document.querySelectorAll('section')].map(part => part.checkVisibility())"
    assert chromium.execute_script(visible) == [True, False, False]
    buttons = {button.text: button for button in chromium.find_elements("tag name", "button")}
    buttons["Next"].click()
    assert chromium.execute_script(visible) == [False, True, False]
    buttons["advantage"].click()
    classes = (
        "return [...document.querySelectorAll('.t')].map(token => [token.className, `t ${token.dataset.advantage}`])"
    )
    assert all(now == by_advantage for now, by_advantage in chromium.execute_script(classes))
    token = next(token for token in chromium.find_elements("css selector", ".t") if token.is_displayed())
    token.click()
    assert token.get_attribute("title") in [detail.text for detail in chromium.find_elements("css selector", ".detail")]
    assert chromium.get_log("browser") == []


@pytest.mark.slow
def test_advantages_of_replies_are_those_of_the_box(finished: Path) -> None:
    run = open_finished(finished)
    policy, reference = stage_policy(run, "ppo"), stage_policy(run, "sft")
    credit = credit_of(run, policy, reference, stage_proxy(run))
    windows = Windows(run.vocab, run.corpus.test, run.data)
    rollout = jax.jit(run.agent.sample)(policy, windows.batch(windows.turns()[:4]), jax.random.key(2))
    credited = credit(rollout, jax.jit(run.agent.score)(stage_proxy(run).model, rollout))
    advantages = np.asarray(credited.advantages)
    judge = jax.jit(run.agent.policy)
    own, ref = judge(policy, rollout), judge(reference, rollout)
    values, log_ratios = np.asarray(own.values), np.asarray(own.logprobs - ref.logprobs)
    config, kl_coef = (
        json.loads((finished / "config.json").read_text())["config"]["ppo"],
        stage_arrays(finished, "ppo")["kl_coef"],
    )
    lengths = np.asarray(rollout.response_mask).sum(axis=1)
    assert lengths.min() > 1 and np.abs(log_ratios).max() > 1e-4
    for n, length in enumerate(lengths):
        for t in range(length - 1):
            # Before the last token, which is paid the score, a token is paid −κ times its log-ratio.
            delta = -kl_coef * log_ratios[n, t] + config["gamma"] * values[n, t + 1] - values[n, t]
            expected = delta + config["gamma"] * config["gae_lambda"] * advantages[n, t + 1]
            assert advantages[n, t] == pytest.approx(float(expected), abs=1e-5)
            assert credited.rewards[n, t] == pytest.approx(float(-kl_coef * log_ratios[n, t]), abs=1e-5)
            assert credited.values[n, t] == pytest.approx(float(values[n, t]), abs=1e-5)


@pytest.mark.slow
def test_what_a_lesson_reads_of_a_run(finished: Path, copied: Path) -> None:
    kept = store_lesson.stored(finished, 3)
    assert json.loads(store_lesson.as_json({"debug": kept}))["debug"] == json.loads(json.dumps(kept))
    logged = [line for line in read_metrics(finished / "metrics.jsonl") if line["stage"] == "ppo"]
    assert kept["evaluations"]["update"] == [0, 2, 4] and len(kept["updates"]["kl"]) == 4
    # After two updates: a line of its own, before that of the update.
    alone = next(line for line in logged if line["step"] == 2 and "objective/kl_k1" not in line)
    assert kept["evaluations"]["truth"][1] == pytest.approx(alone["world/mean_utility"], rel=1e-4)
    assert kept["updates"]["length"][-1] == pytest.approx(logged[-1]["text/response_length"], rel=1e-4)
    found = draw_replies(open_finished(finished), count=3, greedy=False, seed=0)
    for asked, prompt in zip(kept["replies"], found.prompts, strict=True):
        # What the browser of replies shows of the same prompts.
        for when, stage in store_lesson.STAGES.items():
            reply = prompt.replies[stage]
            assert asked[when]["tokens"] == [token.text for token in reply.tokens]
            for name in ("logprob", "ref_logprob", "advantage"):
                shown = [getattr(token, name) for token in reply.tokens]
                np.testing.assert_allclose(asked[when][name], shown, rtol=1e-4, atol=1e-5)
    lines = (copied / "metrics.jsonl").read_text().splitlines(keepends=True)
    only = [line for line in lines if '"objective/kl_k1"' not in line or '"step": 3' not in line]
    with pytest.raises(ValueError, match="updates are not all logged"):
        store_lesson.training([json.loads(line) for line in only])


def test_replies_need_a_run_and_a_place(copied: Path, run_here: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    code, output = run_here("replies.py", str(tmp_path / "nothing"), "--out", str(tmp_path / "page.html"))
    assert code == 1 and f"{tmp_path / 'nothing'} is no run directory: it has no config.json" in output
    code, output = run_here("replies.py", str(copied), "--out", str(tmp_path / "no" / "page.html"))
    assert code == 1 and "expected a file in a folder that exists" in output
    forget(copied, "reward_model", "ppo")
    found = draw_replies(open_finished(copied), count=2, greedy=True, seed=0)
    assert list(found.prompts[0].replies) == ["sft"] and found.prompts[0].replies["sft"].score is None
    assert "no aligned policy yet" in replies_page.page(found)
    shutil.rmtree(copied / "checkpoints")
    code, output = run_here("replies.py", str(copied))
    assert code == 1 and "has no model yet: no stage has a checkpoint" in output and "Traceback" not in output


def test_two_stages_answer_side_by_side_in_a_browser(finished: Path, lab: Lab, chromium: Any) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    title = (finished / "data" / "movies_with_mentions.csv").read_text().splitlines()[1].split(",")[1]
    typed = f"<img src=x onerror=alert(1)> <b>{title}</b>"

    def shown(selector: str) -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0])].map((element) => element.innerText)"
        return chromium.execute_script(script, selector)

    def wait_for_turns(n: int) -> None:
        deadline = time.monotonic() + 120
        while len(shown("article")) != n or not shown("#send:enabled"):
            assert time.monotonic() < deadline, (shown("#alert"), shown("#status"))
            time.sleep(0.05)

    with lab.start("chat.py", str(finished), "--web") as process:
        try:
            lines = []
            while not (lines and "http://" in lines[-1]):
                lines.append(process.stdout.readline())
                assert lines[-1], lines
            assert f"sft and ppo of {finished}: " in lines[-1]
            address = re.findall(r"http://127\.0\.0\.1:\d+/", lines[-1])[0]
            chromium.get(address)
            wait_for_turns(0)
            assert str(finished) in shown("h1")[0]
            assert shown(".empty")[1].startswith("Titles it knows: ")
            chromium.find_element("id", "text").send_keys(typed + "\n")
            wait_for_turns(1)
            assert shown(".said") == [typed] and not shown("#log img, #log b")
            assert shown(".recognised") == [f"recognised: {title}"]
            assert shown(".side h2") == ["Imitation (sft)", "Aligned (ppo)"]
            assert len(shown(".top li")) == 2 * 5 and shown(".reward dt") == 2 * [
                "engagement",
                "relevance",
                "sentiment",
                "weighted sum",
            ]
            for reply in ("again", "again"):
                chromium.find_element("id", "again").click()
                wait_for_turns(0)
                chromium.find_element("id", "greedy").click()
                chromium.find_element("id", "text").send_keys(reply)
                chromium.find_element("id", "send").click()
                wait_for_turns(1)
                lines.append(str(shown(".side")))
            assert lines[-1] == lines[-2]  # Greedy: another conversation with another seed, the same replies.
            events = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
            asked = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
            # The browser's own first page is not ours.
            urls = {one["request"]["url"] for one in asked if not one["documentURL"].startswith("chrome")}
            assert urls - {"data:,"} == {address, f"{address}start", f"{address}turn"}
            assert chromium.get_log("browser") == []
        finally:
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=60)
    assert (process.returncode, output.strip()) == (0, "")
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_a_run_with_imitation_alone_has_one_column(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget(copied, "reward_model", "ppo")
    shown: list[server.Exhibit] = []
    monkeypatch.setattr(server, "serve", lambda exhibit, port: shown.append(exhibit))
    chat.serve_page(chat.Config(copied, web=True), open_finished(copied))
    (exhibit,) = shown
    assert (list(exhibit.talks), exhibit.missing) == (["sft"], ["ppo"])
    page, _ = server.make_page(exhibit)
    assert json.loads(html.unescape(re.findall('data-exhibit="(.*?)"', page.decode())[0]))["missing"] == ["ppo"]
    turn = exhibit.talks["sft"].turn("hello", 3)
    assert len(turn.top) == 3 and (turn.reply.components, turn.reply.score) == ({}, None)


def test_another_configuration_is_refused(copied: Path, run_here: Callable[..., tuple[int, str]]) -> None:
    before = (copied / "config.json").read_bytes()
    code, output = run_here("ppo_redial.py", "debug", "--run-dir", str(copied), "--ppo.clip-eps", "0.1", "--seed", "5")
    assert code == 1
    assert "belongs to a run of another configuration: seed was 0, now 5; ppo.clip_eps was 0.2, now 0.1" in output
    assert "Traceback" not in output
    assert (copied / "config.json").read_bytes() == before


def test_a_truncated_checkpoint_is_named(copied: Path, run_here: Callable[..., tuple[int, str]]) -> None:
    folder = copied / "checkpoints" / "sft"
    step = json.loads((folder / "done.json").read_text())["step"]
    file = max((folder / str(step)).rglob("d/*"), key=lambda path: path.stat().st_size)
    file.write_bytes(file.read_bytes()[:-10])
    code, output = run_here("ppo_redial.py", "debug", "--run-dir", str(copied))
    assert code == 1
    assert "no checkpoint in" in output and file.name in output and "were written" in output
    assert "nothing was overwritten" in output
    assert "Traceback" not in output


def test_the_gate_stops_before_ppo(copied: Path, run_here: Callable[..., tuple[int, str]]) -> None:
    forget(copied, "ppo")
    stored = json.loads((copied / "config.json").read_text())
    stored["config"]["reward"]["gate"] = "stop"
    write_json(copied / "config.json", stored)
    code, output = run_here("ppo_redial.py", "debug", "--run-dir", str(copied), "--reward.gate", "stop")
    assert code == 1
    assert "the reward model's held-out Pearson is below 0.6 for " in output
    assert "--reward.gate warn" in output
    assert "Traceback" not in output
    assert not (copied / "checkpoints" / "ppo").exists()


def copy_of(finished: Path, folder: Path, seed: int, **changes: object) -> Path:
    """The finished run under another seed: what `gather_seeds.py` finds of another training."""
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("checkpoints", "data"))
    stored = json.loads((folder / "config.json").read_text())
    stored["config"] |= {"seed": seed, **changes}
    write_json(folder / "config.json", stored)
    return folder


def test_runs_are_gathered_over_seeds(finished: Path, run_here: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    other = copy_of(finished, tmp_path / "other", 1)
    code, output = run_here("gather_seeds.py", str(tmp_path / "summary"), f"plain={finished},{other}")
    assert code == 0, output
    for name in ("study", "ppo", "differences"):
        assert (tmp_path / "summary" / "plots" / f"{name}.svg").stat().st_size > 5000
    page = (tmp_path / "summary" / "report.md").read_text()
    assert "(plots/ppo.png)" in page and "No conversation was stored" not in page
    results = read_results(tmp_path / "summary")
    # Each seed has a world of its own: what its users lived through is gathered; reward models are shown seed by seed.
    assert {r.protocol for r in results} == {"closed-loop", "held-out", "choice"}
    alone = {(r.name, r.split.rpartition("-")[2]): r for r in read_results(finished) if r.protocol == "closed-loop"}
    of_rewards = [r for r in results if r.system in comparison.OF_THE_REWARD]
    assert {"reward_model", "choice_reward-choice_policy"} <= {r.system for r in of_rewards}
    assert {r.split.partition(":")[0] for r in of_rewards} == {"plain, seed 0", "plain, seed 1"}
    lived = [r for r in results if r.protocol == "closed-loop" and r not in of_rewards]
    assert {r.system for r in lived} == {"sft", "ppo", "ppo-sft", "random", "popularity", "logged", "oracle"}
    for result in lived:
        assert result.seeds == (0, 1)
        if result.system in ("random", "popularity", "logged", "oracle"):
            continue  # They met the users of both worlds; the copied run's world is another one.
        assert result.value == pytest.approx(alone[result.name, result.split.rpartition("-")[2]].value)
        assert result.std == 0.0


def test_runs_that_do_not_belong_together_are_not_gathered(
    finished: Path, run_here: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    other = copy_of(finished, tmp_path / "other", 1, sft={"epochs": 99})
    code, output = run_here("gather_seeds.py", str(tmp_path / "summary"), f"plain={finished},{other}")
    assert code == 1 and "its configuration differs in sft.epochs" in output
    (other / "results.json").unlink()
    code, output = run_here("gather_seeds.py", str(tmp_path / "summary"), f"plain={other}")
    assert code == 1 and "let the run finish first" in output


@pytest.mark.slow
def test_rounds_of_live_feedback(finished: Path, run_here: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    out = tmp_path / "live"
    sizes = ("--live.rounds", "1", "--live.users", "8", "--live.turns", "2", "--live.updates", "4")
    sizes += ("--live.manners-updates", "2", "--live.batch-size", "16", "--assess.users", "8")
    sizes += ("--assess.user-turns", "2", "--assess.text-turns", "4")
    code, output = run_here("live_feedback.py", str(finished), "--run-dir", str(out), *sizes)
    assert code == 0, output
    results = {(r.system, r.metric, r.split): r for r in read_results(out)}
    greedy, sampled = "world/test-users-greedy", "world/test-users-sampled"
    for system in ("sft", "sft_filtered", "likelihood", "round_0", "round_1"):
        assert {(system, "mean_utility", greedy), (system, "kl_k1", sampled), (system, "bleu4", "world/test")} <= set(
            results
        )
    assert {("oracle", "mean_utility", greedy), ("best_of_8", "proxy_score", sampled)} <= set(results)
    assert {("choice_sft", "mean_utility", greedy), ("choice_1", "mean_utility", greedy)} <= set(results)
    assert ("round_1-sft_filtered", "mean_utility", greedy) in results
    # Imitation at no distance from itself; its replies are those that the run itself has measured.
    assert abs(results["sft", "kl_k1", sampled].value) < 1e-4
    said = (out / "seed-0" / "live-1.jsonl").read_text().splitlines()
    assert len(said) == 8 and all(json.loads(line)["initiatorQuestions"] == {} for line in said)
    report = (out / "report.md").read_text()
    assert "## Rounds" in report and "## Greedy replies" in report
    assert "Learnt from what users said next, against imitation told not to repeat itself" in output
    assert "As chosen greedily: " in output and "told not to repeat 0." in report
    # Four users; the words are theirs and the system's.
    openings = json.loads((out / "seed-0" / "assessments" / "round_1-said.json").read_text())["openings"]
    assert [[role for role, _ in one] for one in openings] == [["seeker", "recommender"]] * 4
    assert all(one[0][1].strip() in report for one in openings)
    # As if it had died while the last round was improved: the same end, and nobody talks again.
    before, talked = (out / "results.json").read_bytes(), (out / "seed-0" / "live-1.jsonl").stat().st_mtime_ns
    (out / "seed-0" / "round-1.json").unlink()
    shutil.rmtree(out / "checkpoints" / "grpo-seed0-round1")
    shutil.rmtree(out / "seed-0" / "assessments")
    code, output = run_here("live_feedback.py", str(finished), "--run-dir", str(out), *sizes)
    assert code == 0 and "round 0 was done before" in output
    assert (out / "results.json").read_bytes() == before
    assert (out / "seed-0" / "live-1.jsonl").stat().st_mtime_ns == talked
    code, output = run_here("live_feedback.py", str(finished), str(finished), "--run-dir", str(tmp_path / "twice"))
    assert code == 1 and "seed 0 is that of" in output and "Traceback" not in output
