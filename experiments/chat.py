"""What does the model say to me? Talk with any stage of a run in the terminal, or with all of them in the browser.

    python experiments/chat.py runs/demo                      # the newest stage, sampled as in training
    python experiments/chat.py runs/demo --stage sft --greedy
    python experiments/chat.py runs/demo --web                # a local page: imitation and aligned side by side
    python experiments/chat.py runs/smtpo --as simulator      # you recommend, the seeker that the run has trained answers

It needs the environment of the run: after `make run` that is `.venv/bin/python` in the place of `python`.

Titles of the catalogue are recognised in what you type, as is `@id`; five of them and a sentence to begin with are shown, and what looks like
a title and is not in the catalogue is named. After each of your turns you see the items the
model would suggest first, given the conversation so far, its reply, and what the reward model says of the reply.
`/top 20` shows more items, `/reset` begins again, `/quit` (or end of file) leaves. Only reads the run directory; a run
that is still training can be talked to.

As a recommender (`--as simulator`, runs of `smtpo_redial.py`) you meet the seeker of a logged dialogue, up to its first
recommendation. It answers from the conversation alone. Naming what it likes ends the conversation; `/reveal` shows what
that is and what the trained seeker expects, `/next` goes on to another one, `/reset` begins the same one again.

The page needs the extra `web` (`pip install -e ".[web]" -c constraints.txt`). It is served to this machine alone, loads
nothing from elsewhere and sends nothing elsewhere.
"""

import quiet_start  # noqa: F401 - first, so that a signal while the rest is imported is one line

# isort: split
import dataclasses
import importlib.util
import io
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro

from command_line import options, python, start
from rlhf_jax.assessment.conversation import Conversation
from rlhf_jax.assessment.finished_run import Finished, open_finished, stage_policy, stage_proxy
from rlhf_jax.assessment.seeker_talk import OpeningSplit, Revealed, SeekerStage, SeekerTalk, open_seeker
from rlhf_jax.ranges import Range, Seed, check_numbers
from rlhf_jax.runtime.files import RunError
from rlhf_jax.runtime.run import enable_compilation_cache

COMMANDS = "/top [n], /reset, /quit"
SEEKERS = get_args(SeekerStage)
SEEKER_COMMANDS = "/reveal, /next, /reset, /quit"


@dataclasses.dataclass(frozen=True)
class Config:
    """Whom to talk with, and where."""

    run_dir: tyro.conf.Positional[Path]
    """Run directory of `ppo_redial.py`; of `smtpo_redial.py` to talk with its seeker."""
    speaks: Annotated[Literal["recommender", "simulator"], tyro.conf.arg(name="as")] = "recommender"
    """Whose part the model takes: it recommends to you, or is the simulated seeker to whom you recommend."""
    stage: Literal["sft", "prior", "ppo", "grpo", "reactions", "simulator", "simulator-scoring"] | None = None
    """Which stage's model; None takes the last that has a checkpoint, and for the page all of them. Of a seeker None takes
    `simulator`, which trains policies; `simulator-scoring` is the one that scores them."""
    opening: Annotated[int, Range("[0, 1_000_000]")] | None = None
    """Number of the seeker's conversation among those of the split; None draws one by `seed`."""
    split: OpeningSplit = "test"
    """Whose dialogues the seekers are taken from."""
    greedy: bool = False
    """The likeliest token each time, instead of sampling; the page can switch."""
    seed: Seed = 0
    """Of sampling."""
    web: bool = False
    """Serves a page on 127.0.0.1 instead of reading from the terminal."""
    port: Annotated[int, Range("[0, 65_535]")] | None = None
    """Of the page; None or 0 takes one that is free."""

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.port is not None and not self.web:
            raise ValueError(f"--port {self.port} is the page's: add --web")
        if self.speaks == "simulator" and self.web:
            raise ValueError("--web shows recommenders alone: leave it out to talk with --as simulator")
        if self.speaks == "simulator" and self.greedy:
            raise ValueError("--greedy is a recommender's: a seeker answers as --simulator.temperature of its run says")
        if self.stage is not None and (self.stage in SEEKERS) != (self.speaks == "simulator"):
            raise ValueError(f"--stage {self.stage} does not go with --as {self.speaks}")
        if self.speaks != "simulator" and (self.opening is not None or self.split != "test"):
            raise ValueError("--opening and --split choose a seeker: add --as simulator")


def main(config: Config) -> None:
    """Serves the page until Ctrl-C, or reads lines until there are no more."""
    missing = [name for name in ("starlette", "uvicorn") if config.web and importlib.util.find_spec(name) is None]
    if missing:
        raise RunError(
            f"--web needs {' and '.join(missing)}, the extra `web`: {python()} -m pip install -e '.[web]' -c constraints.txt"
        )
    # The cache comes after it is known that there is a run to put it beside.
    if config.speaks == "simulator":
        recommend_in_terminal(config)
        return
    run = open_finished(config.run_dir)
    if not run.stages:
        raise RunError(f"{config.run_dir} has no model yet: no stage has a checkpoint")
    enable_compilation_cache(beside=config.run_dir)
    if config.web:
        serve_page(config, run)
    else:
        talk_in_terminal(config, run)


def serve_page(config: Config, run: Finished) -> None:
    """Every stage the run has, or the one that was asked for, each in a column of the page."""
    from chat_page.server import Exhibit, serve  # The extra.

    proxy = stage_proxy(run)
    stages = [config.stage] if config.stage else run.stages
    talks = {
        stage: Conversation(run, stage_policy(run, stage), proxy=proxy, greedy=config.greedy, seed=config.seed)
        for stage in stages
    }
    missing = [] if config.stage else [stage for stage in run.expected if stage not in stages]
    serve(
        Exhibit(
            str(config.run_dir),
            talks,
            len(run.vocab.item_ids),
            missing,
            config.greedy,
            config.seed,
            tuple(examples(run, talks[stages[0]])),
        ),
        config.port or 0,
    )


def talk_in_terminal(config: Config, run: Finished) -> None:
    """Reads lines until there are no more."""
    stage = config.stage or run.stages[-1]
    talk = Conversation(run, stage_policy(run, stage), proxy=stage_proxy(run), greedy=config.greedy, seed=config.seed)
    print(f"{stage} of {config.run_dir}, {len(run.vocab.item_ids)} items. {COMMANDS}")
    for line in examples(run, talk):
        print(line)
    for text in typed():
        command, _, argument = text.partition(" ")
        if command == "/reset":
            talk.reset()
            print("Forgotten; a new conversation begins.")
        elif command == "/top" and (not argument or (argument.isdecimal() and len(argument) < 10)):
            show_top(talk.top(int(argument or 5)))
        elif command.startswith("/"):
            print(f"No command {text!r}; there are {COMMANDS}")
        elif text:
            answer(talk, text)


def examples(run: Finished, talk: Conversation) -> Iterator[str]:
    """Five titles, evenly spread over the catalogue, and what somebody of the test split began with."""
    ids = run.vocab.item_ids
    titles = [talk.title(ids[place * len(ids) // 5]) for place in range(min(5, len(ids)))]
    yield f"Titles it knows: {'; '.join(titles)}"
    for dialogue in run.corpus.test:
        for message in dialogue.messages:
            words = "".join(part if isinstance(part, str) else talk.title(part) for part in message.parts).strip()
            if message.role == "seeker" and len(words.split()) > 3:
                yield f"Somebody began with: {words}"
                return


def typed() -> Iterator[str]:
    """What a person types, line by line, until `/quit` or the end of the file."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # What is not the terminal's encoding is no reason to end.
    while True:
        try:
            text = input("\nyou> ").strip()
        except EOFError:
            print()
            return
        if not sys.stdin.isatty():
            print(text)
        if text.partition(" ")[0] == "/quit":
            return
        yield text


def recommend_in_terminal(config: Config) -> None:
    """The person recommends; reads lines until there are no more."""
    stage: SeekerStage = "simulator-scoring" if config.stage == "simulator-scoring" else "simulator"
    stored = open_seeker(config.run_dir, stage=stage, split=config.split)
    enable_compilation_cache(beside=config.run_dir)
    n = len(stored.openings)
    if config.opening is not None and config.opening >= n:
        raise RunError(f"--opening {config.opening}: the {config.split} split of {config.run_dir} has {n}, from 0")
    number = random.Random(config.seed).randrange(n) if config.opening is None else config.opening

    def begin() -> SeekerTalk:
        talk = SeekerTalk(stored, stored.openings[number], seed=config.seed)
        print(f"\nSeeker {number} of {n}:")
        for role, words in talk.said:
            print(f"{role}> {words}")
        return talk

    print(f"{stage} of {config.run_dir}, {config.split} split. You recommend. {SEEKER_COMMANDS}")
    talk = begin()
    for text in typed():
        if text == "/reset":
            talk = begin()
        elif text == "/next":
            number = (number + 1) % n
            talk = begin()
        elif text == "/reveal":
            reveal(talk.reveal())
        elif text.startswith("/"):
            print(f"No command {text!r}; there are {SEEKER_COMMANDS}")
        elif text and talk.over:
            print("This seeker has found what it likes: /next goes on to another one, /reset begins again")
        elif text:
            recommend(talk, text)


def recommend(talk: SeekerTalk, text: str) -> None:
    """One turn of each side; what was hidden is shown once it is found."""
    heard = talk.recommend(text)
    if heard.recognised:
        print(f"     recognised: {', '.join(heard.recognised)}")
    if heard.answer is not None:
        print(f"seeker> {heard.answer}")
    else:
        print(f"     found: {', '.join(heard.liked)}")
        reveal(talk.reveal())


def reveal(hidden: Revealed) -> None:
    """The target, and what the seeker expects of items and of attributes."""
    print(f"     likes: {', '.join(hidden.liked)}")
    print(f"     which is: {', '.join(hidden.wanted) or '(nothing that the catalogue says)'}")
    print("     expects to like, of what nobody has named:")
    show_top(hidden.items)
    print(f"     expects: {', '.join(f'{word} {probability:.0%}' for word, probability in hidden.attributes)}")


def answer(talk: Conversation, text: str) -> None:
    """One turn of each side."""
    turn = talk.turn(text, 5)
    if turn.recognised:
        print(f"     recognised: {', '.join(turn.recognised)}")
    if turn.unknown:
        print(f"     not in the catalogue: {', '.join(turn.unknown)}")
    if turn.sight.newest_cut:
        print("     this is longer than the model's context: only its end was read")
    show_top(turn.top)
    print(f"model> {turn.reply.words or '(no words)'}")
    if turn.reply.suggested:
        print(f"     suggests: {', '.join(turn.reply.suggested)}")
    if turn.reply.score is not None:
        components = ", ".join(f"{name} {value:+.2f}" for name, value in turn.reply.components.items())
        print(f"     reward model: {components}; weighted {turn.reply.score:+.2f}")


def show_top(top: Sequence[tuple[str, float]]) -> None:
    """Items with their probabilities."""
    for place, (title, probability) in enumerate(top, start=1):
        print(f"     {place:3}. {probability:6.1%}  {title}")


if __name__ == "__main__":
    try:
        start(main, options(Config, __doc__))
    except KeyboardInterrupt:
        sys.exit(130)
