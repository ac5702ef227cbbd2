"""What do scripts answer to numbers nobody could mean? Every number of every script, set to NaN, out of range, huge.

    python tools/wrong_numbers.py                     # all scripts; writes its table into docs/wrong_input.md
    python tools/wrong_numbers.py chat replies        # some scripts; writes their rows alone
    python tools/wrong_numbers.py ppo_redial --list   # prints what each answered

Each value is given on the command line of the smallest preset. The script runs in this process as a user would start it,
until it would begin to train (or to measure, where nothing is trained), and stops there. Every answer is one of

    refused     exit code 1 or 2, and the message names the option
    unclear     exit code 1 or 2, and it does not
    accepted    the work would begin; right where the value lies in the option's range
    outside     the work would begin with a value outside the range
    traceback   an exception that no user should see

Seeded: the random values beyond a range are the same every time. Fails unless there is nothing unclear, outside or a traceback.
"""

import argparse
import contextlib
import functools
import importlib
import io
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "experiments")]

import jax

import command_line
from page_parts import replace_part
from rlhf_jax.ranges import Range, numbers_of

PAGE = REPOSITORY / "docs" / "wrong_input.md"
OUTCOMES = ("refused", "accepted", "unclear", "outside", "traceback")
STARTS: dict[str, tuple[str, ...]] = {
    "align_prior": ("run",),
    "bench_dpo": ("tiny",),
    "bench_grpo": ("tiny",),
    "bench_ppo": ("tiny",),
    "chat": ("run",),
    "evidence": ("debug",),
    "lay_foundation": ("world", "debug"),
    "live_feedback": ("run",),
    "plan_scale": (),
    "replies": ("run",),
}
"""What stands behind the names of the scripts that have no preset `debug`."""
WORK = {
    "align_prior": ("align_prior.open_finished",),
    "bench_dpo": ("bench_dpo.bench",),
    "bench_grpo": ("bench_grpo.bench",),
    "bench_growth": ("bench_growth.counted",),
    "bench_ppo": ("bench_ppo.bench",),
    "bench_recommenders": ("bench_recommenders.multiprocessing.get_context",),
    "chat": ("chat.open_finished",),
    "cross_domain": ("rlhf_jax.stages.setup.read_corpus",),
    "dpo4rec_movielens": ("dpo4rec_movielens.one_seed",),
    "evidence": ("evidence.with_data",),
    "live_feedback": ("live_feedback.open_finished",),
    "plan_scale": ("plan_scale.plan",),
    "ppo_opendialkg": ("rlhf_jax.stages.setup.read_corpus",),
    "rank_closed_forms": ("rank_closed_forms.read_training",),
    "rank_retriever": ("rank_retriever.read_dialogues",),
    "replies": ("replies.open_finished",),
    "smtpo_redial": ("smtpo_redial.one_seed",),
    "validate_signals": ("validate_signals.read_redial",),
}
"""What is not begun: of scripts that read real data, reading them. All others stop where imitation is trained."""
FOLDERS = ("run_dir", "runs", "out")


class Begun(BaseException):
    """The script would begin its work."""


class Answer(NamedTuple):
    """What a script answered to one value."""

    flag: str
    value: str
    outcome: str
    text: str


def scripts() -> list[str]:
    """Names of all scripts with options."""
    files = sorted((REPOSITORY / "experiments").glob("*.py"))
    return [file.stem for file in files if "class Config" in file.read_text(encoding="utf-8")]


def values(kind: type, interval: Range, draw: random.Random) -> Iterator[str]:
    """NaN, infinities, −1, 0, just beyond both ends, far beyond."""
    least, most = interval.ends
    yield from ("nan", "inf", "-inf", "-1", "0")
    far = [10 ** draw.randrange(9, 30) * max(1, round(most)) for _ in range(2)]
    if kind is int:
        yield from map(str, (int(least) - 1, int(most) + 1, far[0], -far[1], "1" * 5000))
    else:
        step = 1e-3 * max(1.0, abs(most))
        yield from map(str, (least - step, most + step, float(far[0]), -float(far[1]), 1e308))


def lies_in(value: str, kind: type, interval: Range) -> bool:
    """Whether the text is a number of the range."""
    with contextlib.suppress(ValueError):
        return kind(value) in interval
    return False


def answers(script: str, seed: int, folder: Path) -> Iterator[Answer]:
    """One for every value of every number of a script."""
    module = importlib.import_module(script)
    draw = random.Random(f"{seed} {script}")
    parse = getattr(module, "command_line", None) or command_line.options(module.Config, module.__doc__)
    with stopped(WORK.get(script, ("rlhf_jax.stages.supervised.train",))):
        for path, field, kind, interval in numbers_of(module.Config):
            flag = "--" + ".".join((*path, field)).replace("_", "-")
            for number, value in enumerate(values(kind, interval or Range("[0, 0]"), draw)):
                arguments = [*STARTS.get(script, ("debug",)), *places(module.Config, folder / f"{flag}{number}")]
                value = (
                    value
                    if width(module.Config, path, field) == 1
                    else " ".join([value] * width(module.Config, path, field))
                )
                outcome, text = answer(module.main, parse, [script, *arguments, flag, *value.split()])
                if outcome == "accepted" and not (interval and lies_in(value.split()[0], kind, interval)):
                    outcome = "outside"
                elif outcome == "refused" and flag not in " ".join(text.split()):
                    outcome = "unclear"
                yield Answer(flag, value, outcome, text)


def places(config: type, folder: Path) -> list[str]:
    """Options that keep everything a start writes inside `folder`."""
    fields = config.__dataclass_fields__
    named = [name for name in FOLDERS if name in fields and "run" not in STARTS.get(config.__module__, ())]
    return [part for name in named for part in (f"--{name.replace('_', '-')}", str(folder / name))]


def width(config: type, path: tuple[str, ...], field: str) -> int:
    """How many numbers an option takes: those of a tuple of fixed length, else one."""
    default = functools.reduce(lambda kind, name: kind.__dataclass_fields__[name].type, path, config)
    hint = str(default.__dataclass_fields__[field].type)
    if not hint.startswith("tuple[") or "..." in hint:
        return 1
    return len(default.__dataclass_fields__[field].default)


@contextlib.contextmanager
def stopped(work: Sequence[str]) -> Iterator[None]:
    """Within, what `work` names raises `Begun` instead of doing anything."""
    with contextlib.ExitStack() as stack:
        for name in work:
            stack.enter_context(mock.patch(name, side_effect=Begun))
        yield


def answer(main: Callable[[Any], Any], parse: Callable[[Sequence[str]], Any], argv: list[str]) -> tuple[str, str]:
    """Starts a script; (outcome, everything it printed)."""
    said = io.StringIO()
    with mock.patch.object(sys, "argv", argv), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            command_line.start(main, parse)
        except Begun:
            return "accepted", said.getvalue()
        except SystemExit as error:
            return ("accepted" if error.code in (0, None) else "refused"), plain(said.getvalue())
        except Exception as error:  # noqa: BLE001 - whatever it is, a user would see a traceback
            return "traceback", f"{type(error).__name__}: {error}"
    return "accepted", said.getvalue()


def plain(text: str) -> str:
    """A message without the frame around it."""
    return " ".join(text.translate(dict.fromkeys(map(ord, "│╭╮╰╯─"), " ")).split())


def table(counted: Mapping[str, Counter[str]]) -> str:
    """Markdown: scripts down, outcomes across."""
    rows = [("script", *OUTCOMES), ("---",) * (len(OUTCOMES) + 1)]
    rows += [(f"`{name}.py`", *(str(counted[name][outcome]) for outcome in OUTCOMES)) for name in sorted(counted)]
    rows.append(("all", *(str(sum(found[outcome] for found in counted.values())) for outcome in OUTCOMES)))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def counted_before(page: Path) -> dict[str, Counter[str]]:
    """What a table of these says of the scripts that are still there."""
    rows = re.findall(r"^\| `(\w+)\.py` \| ([\d |]+) \|$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {
        name: Counter(dict(zip(OUTCOMES, map(int, cells.split(" | ")), strict=True)))
        for name, cells in rows
        if name in scripts()
    }


def main() -> int:
    """Asks every script, prints what is wrong, writes the table. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scripts", nargs="*", help="some scripts alone, by name; other rows stay as they are")
    parser.add_argument("--seed", type=int, default=0, help="of the random values")
    parser.add_argument("--list", action="store_true", help="print every answer, not only the wrong ones")
    given = parser.parse_args()
    counted = {}
    with tempfile.TemporaryDirectory() as folder:
        for script in given.scripts or scripts():
            counted[script] = Counter()
            for found in answers(script, given.seed, Path(folder) / script):
                counted[script][found.outcome] += 1
                if given.list or found.outcome not in ("refused", "accepted"):
                    shown = found.value if len(found.value) < 40 else f"{found.value[:40]}…"
                    print(f"{script} {found.flag} {shown}: {found.outcome}: {found.text[-300:]}", flush=True)
            print(script, dict(counted[script]), flush=True)
    print(table(counted))
    replace_part(PAGE, "numbers", table({**counted_before(PAGE), **counted} if given.scripts else counted))
    return int(any(found[outcome] for found in counted.values() for outcome in ("unclear", "outside", "traceback")))


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    sys.exit(main())
