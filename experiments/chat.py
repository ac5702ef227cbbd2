"""What does the model say to me? Talk with any stage of a run in the terminal.

    python experiments/chat.py runs/demo                      # the newest stage, sampled as in training
    python experiments/chat.py runs/demo --stage sft --greedy

Titles of the catalogue are recognised in what you type, as is `@id`. After each of your turns you see the items the
model would suggest first, given the conversation so far, and its reply. `/top 20` shows more items, `/reset` begins
again, `/quit` (or end of file) leaves. Only reads the run directory; a run that is still training can be talked to.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Literal

import tyro

from command_line import options, start
from rlhf_jax.assessment.conversation import Conversation
from rlhf_jax.assessment.finished_run import open_finished, stage_policy
from rlhf_jax.ranges import Seed, check_numbers
from rlhf_jax.runtime.files import RunError
from rlhf_jax.runtime.run import enable_compilation_cache

COMMANDS = "/top [n], /reset, /quit"


@dataclasses.dataclass(frozen=True)
class Config:
    """Whom to talk with."""

    run_dir: tyro.conf.Positional[Path]
    """Run directory of `ppo_redial.py`."""
    stage: Literal["sft", "ppo"] | None = None
    """Which stage's model; None takes the last that has a checkpoint."""
    greedy: bool = False
    """The likeliest token each time, instead of sampling."""
    seed: Seed = 0
    """Of sampling."""

    def __post_init__(self) -> None:
        check_numbers(self)


def main(config: Config) -> None:
    """Reads lines until there are no more."""
    enable_compilation_cache(beside=config.run_dir)
    run = open_finished(config.run_dir)
    if not run.stages:
        raise RunError(f"{config.run_dir} has no model yet: no stage has a checkpoint")
    stage = config.stage or run.stages[-1]
    talk = Conversation(run, stage_policy(run, stage), greedy=config.greedy, seed=config.seed)
    print(f"{stage} of {config.run_dir}, {len(run.vocab.item_ids)} items. {COMMANDS}")
    while True:
        try:
            text = input("\nyou> ").strip()
        except EOFError:
            print()
            return
        if not sys.stdin.isatty():
            print(text)
        command, _, argument = text.partition(" ")
        if command == "/quit":
            return
        if command == "/reset":
            talk.reset()
            print("Forgotten; a new conversation begins.")
        elif command == "/top" and (not argument or argument.isdecimal()):
            show_top(talk, int(argument or 5))
        elif command.startswith("/"):
            print(f"No command {text!r}; there are {COMMANDS}")
        elif text:
            answer(talk, text)


def answer(talk: Conversation, text: str) -> None:
    """One turn of each side."""
    recognised = talk.hear(text)
    if recognised:
        print(f"     recognised: {', '.join(map(talk.title, recognised))}")
    show_top(talk, 5)
    reply = talk.reply()
    print(f"model> {reply.words or '(nothing)'}")
    if reply.suggested:
        print(f"     suggests: {', '.join(reply.suggested)}")


def show_top(talk: Conversation, n: int) -> None:
    """Items with the probability of being suggested first."""
    for place, (title, probability) in enumerate(talk.top(n), start=1):
        print(f"     {place:3}. {probability:6.1%}  {title}")


if __name__ == "__main__":
    try:
        start(main, options(Config, __doc__))
    except KeyboardInterrupt:
        sys.exit(130)
