"""What one update of conversations costs: seconds of all of it (`scale.cost`), policy, seeker, candidates and learning, and peak memory.

    python -m scale.conversations JSON        # of a `Talk` with `"repeats"`

The stage is SMTPO's own (`stages/smtpo/multi_turn.py`) in the simulated world; `scale.endurance` looks at the process between its
updates. Policy and seeker have fresh weights, so that they speak to the last token; few conversations end
early, and ended ones stay in the batch: the cost is that of all turns. Closed forms alone recall the candidates.
"""

import dataclasses
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from rlhf_jax.learners.multi_turn_config import MultiTurnConfig
from rlhf_jax.models import gpt2
from rlhf_jax.parallel.mesh import MeshConfig
from rlhf_jax.recommenders.scorer import fit_scorer
from rlhf_jax.runtime.allocator import keep_memory
from rlhf_jax.runtime.run import open_run
from rlhf_jax.simulators.world import WorldConfig
from rlhf_jax.stages.setup import DataConfig, ModelConfig, set_up
from rlhf_jax.stages.smtpo import multi_turn, reasoning
from rlhf_jax.stages.smtpo.multi_turn import ConversationsConfig
from rlhf_jax.stages.smtpo.reasoning import ReasoningConfig
from rlhf_jax.stages.smtpo.recommender import Retrieval, make_recommender
from rlhf_jax.stages.smtpo.seeker import SeekerSimulator
from rlhf_jax.stages.smtpo.simulator import SimulatorConfig
from scale import cost, endurance
from scale.program import Program

EPOCHS = 2
"""Of an update; what is counted is told apart by its loops, so it must have one."""


@dataclasses.dataclass(frozen=True)
class Talk:
    """One update: everything its cost depends on besides the code."""

    layers: int
    width: int
    heads: int
    openings: int
    group: int
    """Conversations from an opening."""
    turns: int
    candidates: int
    """Of a turn."""
    prompt: int
    response: int
    """Tokens of a turn's window and reply, at most."""
    words: int
    items: int
    dialogues: int
    """Written as the training file, a tenth of which becomes validation; closed forms count the others."""

    @property
    def program(self) -> Program:
        """The same update on paper, where its seeker is left out."""
        return Program(
            name="conversations",
            layers=self.layers,
            width=self.width,
            heads=self.heads,
            mesh=MeshConfig(),
            batch=self.openings * self.group * self.turns,
            prompt=self.prompt,
            response=self.response,
            epochs=EPOCHS,
            minibatches=1,
            microbatches=1,
            words=self.words,
            items=self.items,
            positions=self.prompt + self.response,
            steps="multi-turn",
            group=self.group,
            turns=self.turns,
        )


def run(talk: Talk, repeats: int) -> dict[str, float]:
    """Seconds of an update, the least of `repeats` after one that compiles; the share of the wall's clock outside compiled
    programs, as the stage itself logs it (all of the seeker's time counts as inside), the least too; and peak memory."""
    data = DataConfig(
        world=WorldConfig(n_items=talk.items, n_train=talk.dialogues, n_test=8, n_users=16),
        n_words=talk.words,
        context_tokens=talk.prompt,
        response_tokens=talk.response,
        max_items=2,
    )
    model = ModelConfig(
        n_layer=talk.layers,
        n_embd=talk.width,
        n_head=talk.heads,
        n_positions=talk.prompt + talk.response,
        dropout=0.0,
        attention_dropout=False,
    )
    # The first update compiles, and after the last there is no look.
    talks = ConversationsConfig(
        updates=repeats + 2,
        openings=talk.openings,
        group_size=talk.group,
        turns=talk.turns,
        learning_rate=1e-9,
        save_every=repeats + 2,
        evaluations=1,
        validation_openings=1,
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        endurance.watching() as watch,
        open_run(Path(folder) / "run", talks, trackers=()) as own,
    ):
        setup = set_up(own, data, model, seed=0)._replace(layout=watch)
        attributes = reasoning.attributes_of(setup, ReasoningConfig())
        scorer = fit_scorer(setup.corpus, setup.vocab.item_ids)
        retrieval = Retrieval(scorer, None, dict.fromkeys(scorer.parts, 1.0), talk.candidates)
        recommender = make_recommender(setup._replace(scorer=scorer), attributes, retrieval)
        trunk = jax.jit(lambda key: gpt2.init(setup.network, key))(jax.random.key(0))
        seeker = SeekerSimulator(setup, {"trunk": trunk}, SimulatorConfig())
        multi_turn.train(own, recommender, seeker, {"trunk": trunk}, talks, MultiTurnConfig(epochs=EPOCHS))
        lines = [json.loads(line) for line in (own.path / "metrics.jsonl").read_text().splitlines()]
    # A look before every call of `learn`: between two lie one update's learning and the next one's conversations.
    seconds = [after.seconds - before.seconds for before, after in itertools.pairwise(watch.looks)]
    outside = [line["seconds/outside_share"] for line in lines if "seconds/outside_share" in line]
    return {
        "update_seconds": min(seconds[1:]),
        "outside_percent": 100 * min(outside[1:]),
        "peak_mb": cost.peak_mb(),
    }


def apart(talk: Talk, repeats: int) -> dict[str, float]:
    """`run` in a process of its own. Raises ValueError with the end of its words where it failed."""
    path = os.pathsep.join([str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")])
    given: Mapping[str, Any] = {**dataclasses.asdict(talk), "repeats": repeats}
    command = [sys.executable, "-m", "scale.conversations", json.dumps(given)]
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise ValueError(f"{talk} failed:\n{done.stderr.strip()[-1500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _main(text: str) -> None:
    keep_memory()
    given = json.loads(text)
    repeats = given.pop("repeats")
    print(json.dumps(run(Talk(**given), repeats)), flush=True)


if __name__ == "__main__":
    _main(sys.argv[1])
