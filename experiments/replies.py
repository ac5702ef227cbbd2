"""What did alignment change in the replies? One page of the same prompts under every stage of a run, tokens coloured.

    python experiments/replies.py runs/demo                        # writes runs/demo/replies.html, replies sampled
    python experiments/replies.py runs/demo --greedy --out demo.html --prompts 24

Each token is coloured by log π − log π_ref in nats: the aligned policy against what it started from. Replies of imitation are
coloured too, by what PPO's (or GRPO's) policy thinks of them. The page is one file, loads nothing and can be sent to others. Of the run
directory everything is read and nothing changed but the page itself; a run that is still training can be looked at.
A switch colours by advantage instead, where the run is PPO's with one response to a prompt: as its newest critic, reward model and
KL price see these replies.
"""

import quiet_start  # noqa: F401 - first, so that a signal while the rest is imported is one line

# isort: split
import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from command_line import options, start
from rlhf_jax.assessment.finished_run import open_finished
from rlhf_jax.assessment.reply_tokens import draw_replies
from rlhf_jax.ranges import Range, Seed, check_numbers
from rlhf_jax.reporting import replies_page
from rlhf_jax.runtime.files import RunError, storage_errors, write_text
from rlhf_jax.runtime.run import enable_compilation_cache


@dataclasses.dataclass(frozen=True)
class Config:
    """Which run, and how its replies are made."""

    run_dir: tyro.conf.Positional[Path]
    """Run directory of `ppo_redial.py` or `ppo_opendialkg.py`."""
    out: Path | None = None
    """The page; None is `replies.html` in the run directory."""
    prompts: Annotated[int, Range("[1, 1_000]")] = 12
    """Test contexts, evenly spread; all are answered in one batch."""
    greedy: bool = False
    """The likeliest token each time, instead of sampling as in training."""
    seed: Seed = 0
    """Of sampling."""

    def __post_init__(self) -> None:
        check_numbers(self)


def main(config: Config) -> None:
    """Writes the page and says where it lies."""
    run = open_finished(config.run_dir)
    out = config.out or config.run_dir / "replies.html"
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise RunError(f"--out {out}: expected a file in a folder that exists")
    enable_compilation_cache(beside=config.run_dir)
    replies = draw_replies(run, count=config.prompts, greedy=config.greedy, seed=config.seed)
    with storage_errors(out):
        write_text(out, replies_page.page(replies))
    print(f"{len(replies.prompts)} prompts, {', '.join(run.stages)}: {out}")


if __name__ == "__main__":
    start(main, options(Config, __doc__))
