"""Keeps what lesson 9 reads of two trained runs: the way of their training, and the same prompts answered before and after.

    python experiments/ppo_redial.py demo
    python experiments/ppo_redial.py hackable
    python tools/store_lesson.py runs/demo runs/hackable      # → notebooks/stored/lesson_9.json

One object a run, by the name of its folder:

- `setup`: seed, and the fields of the configuration that the lesson speaks of.
- `updates`: what PPO logged of every update, a list a metric.
- `evaluations`: true utility and proxy in front of users whom training does not meet, after so many updates.
- `difference`: PPO minus imitation at the end, with its 95 % interval.
- `gate`: the reward model's correlation with reactions it has not seen, by component and in sum.
- `replies`: for PROMPTS contexts of the test split, evenly spread, what imitation (`before`) and PPO (`after`) say, sampled with the
  same random numbers. Every token with its log-probability under policy and reference, its reward, value and advantage (the lists of
  `Credited`); both judged by the policy and the critic that PPO ends with.

Numbers have five significant digits, those of tokens six.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlhf_jax.assessment.assess import text_turns
from rlhf_jax.assessment.finished_run import Finished, open_finished, stage_policy, stage_proxy
from rlhf_jax.assessment.reply_tokens import context_messages, credit_of, token_texts
from rlhf_jax.data.items import spelled_titles
from rlhf_jax.feedback.weak_labels import weighted_sum
from rlhf_jax.keys import stream_key
from rlhf_jax.reporting.run_report import read_results
from rlhf_jax.runtime.files import read_object, write_text
from rlhf_jax.runtime.metrics import read_metrics
from rlhf_jax.stages.contexts import Windows

FILE = Path(__file__).resolve().parents[1] / "notebooks" / "stored" / "lesson_9.json"
PROMPTS = 24
LOGGED = {
    "score": "objective/score_raw",
    "kl": "objective/kl_k1",
    "length": "text/response_length",
    "ends": "text/eos_fraction",
    "explained": "value/explained_variance",
}
"""Name in the lesson → metric of every update."""
EVALUATED = {"truth": "world/mean_utility", "proxy": "world/proxy_score"}
STAGES = {"before": "sft", "after": "ppo"}
SETUP = {
    "data": ("world", "response_tokens"),
    "align": ("updates", "batch_size", "learning_rate"),
    "ppo": ("kl_coef", "gae_lambda", "gamma", "component_weights", "missing_eos_penalty"),
}


def rounded(values: Any, digits: int) -> Any:
    """A number, or a list of numbers, with so many significant digits."""
    if np.ndim(values) == 0:
        return float(f"{float(values):.{digits}g}")
    return [rounded(value, digits) for value in np.asarray(values).tolist()]


def training(lines: Sequence[Mapping[str, Any]]) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Updates and evaluations of the stage `ppo`.

    Raises: ValueError where a metric of every update is not there, or is not that of update 1, 2, 3 …
    """
    own = [line for line in lines if line["stage"] == "ppo"]
    logged = [line for line in own if LOGGED["score"] in line]
    if not logged or [line["step"] for line in logged] != list(range(1, len(logged) + 1)):
        raise ValueError("PPO's updates are not all logged, one by one")
    # The first line also tells what was measured before it: after 0 updates.
    measured = [(0 if LOGGED["score"] in line else line["step"], line) for line in own if EVALUATED["truth"] in line]
    if not measured or measured[0][0] != 0 or measured[-1][0] != len(logged):
        raise ValueError("true utility is not there before the first and after the last update")
    evaluations: dict[str, list[float]] = {"update": [step for step, _ in measured]}
    for name, metric in EVALUATED.items():
        evaluations[name] = rounded([line[metric] for _, line in measured], 5)
    return {name: rounded([line[metric] for line in logged], 5) for name, metric in LOGGED.items()}, evaluations


def difference(run_dir: Path) -> dict[str, dict[str, Any]]:
    """PPO minus imitation, of sampled replies to users nobody has met: value and interval."""
    found = {
        result.name.partition("/")[2]: result
        for result in read_results(run_dir)
        if result.name in ("ppo-sft/mean_utility", "ppo-sft/proxy_score") and result.split.endswith("-sampled")
    }
    return {
        name: {"value": rounded(r.value, 5), "interval": rounded(r.interval, 5), "n": r.n, "split": r.split}
        for name, r in sorted(found.items())
    }


def replies(run: Finished, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Every prompt with the person's reply, and what the policies before and after say.

    Raises: ValueError where the run has no critic to credit tokens with.
    """
    proxy, policy, reference = stage_proxy(run), stage_policy(run, "ppo"), stage_policy(run, "sft")
    credit = credit_of(run, policy, reference, proxy)
    if proxy is None or credit is None:
        raise ValueError(f"{run.path}: tokens cannot be credited; expected a run of PPO with one reply to a prompt")
    windows = Windows(run.vocab, run.corpus.test, run.data)
    turns = text_turns(windows, count)
    prompts, titles = windows.batch(turns), spelled_titles(run.corpus.items)
    key = stream_key(jax.random.key(seed), "replies", 0)
    sample, judge, score = (jax.jit(call) for call in (run.agent.sample, run.agent.policy, run.agent.score))
    told: list[dict[str, Any]] = []
    for (dialogue, index), row, kept in zip(turns, np.asarray(prompts.tokens), np.asarray(prompts.mask), strict=True):
        parts = windows.dialogues[dialogue].messages[index].parts
        person = "".join(part if isinstance(part, str) else titles.get(part, f"@{part}") for part in parts).strip()
        told.append({"prompt": context_messages(run.vocab, row[kept].tolist(), titles), "person": person})
    for name, stage in STAGES.items():
        rollout = sample(stage_policy(run, stage), prompts, key)
        components = score(proxy.model, rollout)
        columns = {
            "logprob": judge(policy, rollout).logprobs,
            "ref_logprob": judge(reference, rollout).logprobs,
            **{field.removesuffix("s"): array for field, array in credit(rollout, components)._asdict().items()},
        }
        proxies = weighted_sum(np.asarray(components, np.float64), proxy.weights)
        for n, mask in enumerate(np.asarray(rollout.response_mask)):
            tokens = np.asarray(rollout.response_tokens)[n][mask].tolist()
            told[n][name] = {
                "tokens": token_texts(run.vocab, tokens, titles),
                "finished": bool(rollout.finished[n]),
                "proxy": rounded(proxies[n], 5),
                "components": rounded(components[n], 5),
                **{column: rounded(np.asarray(array)[n][mask], 6) for column, array in columns.items()},
            }
    return told


def stored(run_dir: Path, count: int = PROMPTS) -> dict[str, Any]:
    """What the lesson reads of one run. Raises: RunError or ValueError naming what the run lacks."""
    run = open_finished(run_dir)
    updates, evaluations = training(list(read_metrics(run_dir / "metrics.jsonl")))
    config = run.config
    return {
        "setup": {
            "seed": config["seed"],
            **{part: {name: config[part][name] for name in names} for part, names in SETUP.items()},
        },
        "updates": updates,
        "evaluations": evaluations,
        "difference": difference(run_dir),
        "gate": {
            name: rounded(value, 5)
            for name, value in read_object(run_dir / "reward_model.json", "pearson")["pearson"].items()
        },
        "replies": replies(run, count),
    }


def as_json(runs: Mapping[str, Any]) -> str:
    """A line for every run and every prompt, so that changes can be read as changes."""
    parts = []
    for name, run in runs.items():
        fields = [
            f'  "{field}": {json.dumps(value, ensure_ascii=False)}'
            for field, value in run.items()
            if field != "replies"
        ]
        told = ",\n   ".join(json.dumps(reply, ensure_ascii=False) for reply in run["replies"])
        fields.append(f'  "replies": [\n   {told}]')
        parts.append(f" {json.dumps(name)}: {{\n" + ",\n".join(fields) + "}")
    return "{\n" + ",\n".join(parts) + "}\n"


def main(arguments: Sequence[str]) -> Path:
    """Writes the file. Raises: SystemExit without run directories."""
    if not arguments:
        raise SystemExit(__doc__)
    FILE.parent.mkdir(exist_ok=True)
    write_text(FILE, as_json({Path(folder).name: stored(Path(folder)) for folder in arguments}))
    return FILE


if __name__ == "__main__":
    print(main(sys.argv[1:]))
