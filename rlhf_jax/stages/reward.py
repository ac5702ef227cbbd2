"""Stage 2: weak labels from users' reactions, and the reward model R_φ that predicts them from context and response.

The gate: R_φ must correlate with held-out weak labels above 0.6 (Pearson), each component too, before PPO may use it.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Key

from rlhf_jax.data.batching import batch_indices, wrapped_batches
from rlhf_jax.data.dialogue_store import evenly
from rlhf_jax.data.turns import answered_turns
from rlhf_jax.decoding import suggested
from rlhf_jax.evaluation import bootstrap
from rlhf_jax.evaluation.association import pearson
from rlhf_jax.evaluation.results import Result
from rlhf_jax.feedback import custom
from rlhf_jax.feedback.components import COMPONENTS, check_names, weights_of
from rlhf_jax.feedback.labelling import LabelOptions
from rlhf_jax.feedback.signals import check_signals
from rlhf_jax.feedback.weak_labels import LabelTable, WeakLabeller, fit_weak_labels, weighted_sum
from rlhf_jax.interfaces import Corpus, Params
from rlhf_jax.keys import stream_key
from rlhf_jax.learners import reward_model
from rlhf_jax.learners.optimizer import TrainState, falling_by_cosine, steps_taken
from rlhf_jax.learners.reward_model import RewardBatch
from rlhf_jax.ranges import Batch, Cases, Epochs, Range, Rate, Share, Steps, check_numbers
from rlhf_jax.runtime.files import DamagedFileError, RunError, check_npz, notice, write_json, write_npz
from rlhf_jax.runtime.metric_names import kind
from rlhf_jax.runtime.run import RunDirectory
from rlhf_jax.runtime.stage import Best, NonFiniteError, StagePlan, run_stage
from rlhf_jax.stages.agent import on_mesh, reward_params
from rlhf_jax.stages.labelled_turns import LabelledTurns, labelled_turns
from rlhf_jax.stages.setup import Setup

STAGE = "reward_model"


class GateError(RunError):
    """The reward model is not good enough to be optimised against."""


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """Stage 2: weak labels and the reward model."""

    labels: LabelOptions = LabelOptions()
    """Which form of engagement, relevance and sentiment."""
    function: tuple[str, ...] = ()
    """Rewards of your own, `package.module:name`: each is one more component, called by its name. `--ppo.component-weights`
    then has a number for each; left as they are, all weigh the same. See docs/howto/your_own_reward.md."""
    reads_policy: bool = False
    """Whether R_φ reads, beside its own trunk, what is known of the items that a reply lists, their chances under imitation
    (with its prior) among it (`decoding/suggested.py`); it then keeps the embeddings of items as imitation composed them. With
    `--data.rl-share` it learns from the dialogues that nobody imitated, since imitation knows its own by heart."""
    epochs: Epochs = 3
    """Passes over the labelled turns."""
    max_dialogues: Cases = 50_000
    """Training dialogues that are labelled, and ten times the validation dialogues that are; of more, so many that are evenly
    spread. They and their turns are in memory while labels are fitted."""
    max_turns: Cases | None = None
    """Labelled training turns used, drawn with the run's seed; None uses all."""
    validation_turns: Cases = 2000
    """Held-out turns, from validation dialogues, for early stopping and the gate."""
    batch_size: Batch = 32
    """Turns of one optimiser step."""
    learning_rate: Rate = 5e-4
    """Peak of the cosine schedule."""
    weight_decay: Share = 0.05
    """AdamW's, on matrices."""
    patience: Steps | None = 3
    """Evaluations without a gain in Pearson after which the stage stops."""
    evaluations_per_epoch: Steps = 2
    """Evaluations on held-out turns."""
    gate: Literal["stop", "warn"] = "stop"
    """What happens when a held-out Pearson is below `gate_pearson`: no PPO, or PPO with a warning in the report."""
    choice_gate: Literal["stop", "warn"] = "warn"
    """What happens when the items that it would choose are shown to be worse than the policy's own (`assessment.reward_choice`)."""
    gate_pearson: Annotated[float, Range("[-1, 1]")] = 0.6
    """Least held-out correlation of the weighted sum and of each component with a weight."""

    def __post_init__(self) -> None:
        check_numbers(self)
        check_signals(self.labels.signals)
        check_names(self.components)

    @property
    def components(self) -> tuple[str, ...]:
        """Names of the reward's components: signals of the package, then functions from outside."""
        return (*self.labels.signals, *(custom.parse(text).name for text in self.function))


def label(
    run: RunDirectory, corpus: Corpus, config: RewardConfig, *, folder_name: str = "labels"
) -> tuple[LabelTable, LabelTable, WeakLabeller]:
    """Weak labels of the training and validation split (`labelled`); raw values and statistics are stored with the run."""
    corpus = labelled(corpus, config)
    labeller = fit_weak_labels(corpus.train, corpus.items, config.labels, functions=config.function)
    tables = []
    folder = run.path / folder_name
    folder.mkdir(exist_ok=True)
    for name, dialogues in (("train", corpus.train), ("validation", corpus.validation)):
        path = folder / f"{name}.npz"
        table = _stored_labels(path)
        if table is None:
            table = labeller(dialogues)
            write_npz(path, table.arrays())
        tables.append(table)
    labeller.standardiser.save(folder / "standardiser.json")
    return tables[0], tables[1], labeller


def labelled(corpus: Corpus, config: RewardConfig) -> Corpus:
    """The corpus with the dialogues that are labelled: all, or `max_dialogues` and a tenth as many, evenly spread."""
    return dataclasses.replace(
        corpus,
        train=evenly(corpus.train, config.max_dialogues),
        validation=evenly(corpus.validation, max(1, config.max_dialogues // 10)),
    )


def _stored_labels(path: Path) -> LabelTable | None:
    """Labels of an earlier start; None where there are none or they are damaged."""
    if not path.exists():
        return None
    try:
        check_npz(path)
    except DamagedFileError as error:
        notice(f"{error}: labelling again")
        return None
    return LabelTable.load(path)


def labels_folder(stage: str) -> str:
    """Where the labels lie that a stage of this kind is trained on.

    Raises: ValueError for a stage of another kind.
    Examples:
      >>> labels_folder("reward_model"), labels_folder("reward_model-shift")
      ('labels', 'labels-shift')
    """
    if kind(stage) != STAGE:
        raise ValueError(f"stage {stage!r} trains no reward model: its name must begin with {STAGE!r}")
    return f"labels{stage.removeprefix(STAGE)}"


class Proxy(NamedTuple):
    """What stands for a user's satisfaction while nobody is asked: R_φ and the weights of its components."""

    model: Params
    """R_φ's tree."""
    weights: tuple[float, ...]
    """α, β, γ. [C]"""
    names: tuple[str, ...] = COMPONENTS
    """Of its components. C entries"""


def check_functions(corpus: Corpus, config: RewardConfig) -> None:
    """Tries the functions from outside on turns of the training split, before anything is trained.

    Raises: ValueError in one line.
    """
    if config.function:
        turns = answered_turns(labelled(corpus, config).train)
        for text in config.function:
            custom.probe(text, turns, corpus.items)


def train(
    run: RunDirectory,
    setup: Setup,
    trunk: Params,
    config: RewardConfig,
    *,
    weights: tuple[float, ...],
    stage: str = STAGE,
) -> tuple[Proxy, dict[str, Any]]:
    """Labels the turns, trains R_φ from the supervised trunk, and measures it on held-out turns.

    Args:
      trunk: supervised GPT-2, where R_φ starts.
      weights: α, β, γ; the default, a third each, stands for equal weights of whatever components `config` has.
      stage: names checkpoints, report and labels; a run with several reward models names each.
    Returns: the reward model (its tree whole, on one device) with the weights, and the gate's report (also in `STAGE.json`).
    Raises: GateError where the gate is `stop` and a held-out correlation is too low.
    """
    names = config.components
    weights = weights_of(names, weights)
    agent, seed, layout = setup.agent, setup.seed, setup.layout
    whole = setup.corpus
    if config.reads_policy and setup.data.rl_share:
        whole = dataclasses.replace(whole, train=setup.training_parts()[1])
    elif config.reads_policy:
        notice(
            f"stage {stage} reads chances of items that imitation has learnt by heart: --data.rl-share .2 keeps dialogues apart"
        )
    corpus = labelled(whole, config)
    folder = labels_folder(stage)
    train_table, held_out_table, _ = label(run, corpus, config, folder_name=folder)
    # What is read stays as it is, and so do the embeddings of items; all else of R_φ moves.
    read = {"trunk": trunk, **setup.prior} if config.reads_policy else None
    training, held_out = (
        labelled_turns(setup, dialogues, table, limit, read=read, stored=run.path / folder / f"read-{name}.npz")
        for name, dialogues, table, limit in (
            ("train", corpus.train, train_table, config.max_turns),
            ("validation", corpus.validation, held_out_table, config.validation_turns),
        )
    )
    for kind_of, turns in (("training", training), ("validation", held_out)):
        if not len(turns):
            raise RunError(
                f"stage {stage}: no {kind_of} dialogue has a turn with a context and a reaction to it: more dialogues are needed"
            )
    key = jax.random.key(seed)
    params = reward_params(
        trunk,
        agent.network.n_embd,
        stream_key(key, "reward_model/init", 0),
        len(names),
        n_read=0 if read is None else suggested.N_NUMBERS,
    )
    items = None
    if training.read is not None:
        params = reward_model.reading(params, training.read, training.labels, training.label_mask)
        token = jnp.arange(len(trunk["wte"]))
        items = (token >= setup.vocab.first_item) & (token < setup.vocab.first_item + setup.vocab.n_items)
    per_epoch = -(-len(training) // config.batch_size)
    steps = per_epoch * config.epochs
    rate, optimizer = falling_by_cosine(
        config.learning_rate,
        warmup_steps=min(50, steps // 4),
        total_steps=steps,
        weight_decay=config.weight_decay,
    )

    spread = on_mesh(agent, layout)

    def score(params: Params, inputs: Any, key: Key[Array, ""]) -> Array:
        tokens, mask, numbers = inputs
        return spread.score_tokens(holding(params, items), tokens, mask, key, numbers)

    state = layout.place(reward_model.init(params, optimizer, averaged=True))

    def learn(state: TrainState, batch: RewardBatch, key: Key[Array, ""]) -> tuple[TrainState, dict[str, Array]]:
        used = jnp.asarray(rate(steps_taken(state.opt_state)))
        after, metrics = reward_model.update(state, batch, key, score_fn=score, optimizer=optimizer, names=names)
        # Without a gradient, weight decay would shrink them all the same.
        kept = {name: with_rows_of(getattr(after, name), getattr(state, name), items) for name in ("params", "average")}
        return dataclasses.replace(after, **kept), metrics | {"learning_rate": used}

    step = layout.together(layout.step(learn, state), STAGE)

    def update(state: TrainState, index: int) -> tuple[TrainState, dict[str, Any]]:
        rows = batch_indices(len(training), seed=seed, step=index, batch_size=config.batch_size)
        batch = layout.batch(len(rows), lambda own: training.batch(rows[own]))
        return step(state, batch, layout.same(stream_key(key, "reward_model/dropout", index)))

    def predicted_of(params: Params, inputs: Any) -> Array:
        tokens, mask, numbers = inputs
        return agent.score_tokens(params, tokens, mask, None, numbers)

    predict = jax.jit(predicted_of)

    def evaluate(state: TrainState, index: int) -> Mapping[str, float]:
        del index
        report = judged(_predictions(predict, layout.fetch(state.average), held_out), held_out, weights)
        return {f"validation/{_metric(name)}": value for name, value in report.items()}

    final = run_stage(
        run,
        state,
        update,
        StagePlan(
            stage,
            steps,
            save_every=max(1, per_epoch // 4),
            log_every=max(1, min(20, per_epoch // 5)),
            on_eval=evaluate,
            eval_every=max(1, per_epoch // config.evaluations_per_epoch),
            best=Best("validation/pearson", "max", config.patience),
            advice="a lower --reward.learning-rate",
        ),
    )
    trained = layout.fetch(final.average)
    predicted = _predictions(predict, trained, held_out)
    if not (known := np.isfinite(predicted).all(axis=1)).all():
        raise NonFiniteError(
            f"stage {stage}: {(~known).sum()} of {len(known)} scores of held-out turns are not finite; a lower "
            "--reward.learning-rate usually helps (in another run directory)"
        )
    report = {
        "n": len(held_out),
        "training_turns": len(training),
        "interval": _intervals(predicted, held_out, weights),
        "unmeasured": unmeasured(predicted, held_out.labels, held_out.label_mask, weights, names),
    }
    found = judged(predicted, held_out, weights)
    model = trained if read is None else trained | {suggested.NAME: read}
    return Proxy(model, weights, names), check_gate(run.path / f"{stage}.json", found, report, config, weights)


def holding(params: Params, rows: Bool[Array, " V"] | None) -> Params:
    """The tree, the given rows of its token table without a gradient."""
    return params if rows is None else with_rows_of(params, jax.lax.stop_gradient(params), rows)


def with_rows_of(params: Params, others: Params, rows: Bool[Array, " V"] | None) -> Params:
    """The tree, the given rows of its token table as another tree has them."""
    if rows is None:
        return params
    # Row by row, so that a table that is cut over devices stays where it is.
    table: Array = jnp.where(rows[:, None], others["trunk"]["wte"], params["trunk"]["wte"])
    return {**params, "trunk": {**params["trunk"], "wte": table}}


def _predictions(predict: Any, params: Params, turns: LabelledTurns, batch_size: int = 128) -> np.ndarray:
    batches = wrapped_batches(len(turns), batch_size)
    return np.concatenate([np.asarray(predict(params, turns.batch(rows).inputs))[:own] for rows, own in batches])


def _metric(name: str) -> str:
    return "pearson" if name == "reward" else f"pearson_{name}"


def judged(
    predicted: np.ndarray, turns: LabelledTurns, weights: tuple[float, ...], rows: np.ndarray | slice = slice(None)
) -> dict[str, float]:
    """`correlations` of predictions with the labels of some turns."""
    return correlations(predicted[rows], turns.labels[rows], turns.label_mask[rows], weights, turns.names)


def correlations(
    predicted: np.ndarray,
    labels: np.ndarray,
    label_mask: np.ndarray,
    weights: tuple[float, ...],
    names: tuple[str, ...] = COMPONENTS,
) -> dict[str, float]:
    """Pearson of every component over the rows that have it, and of the weighted sum where all weighted ones exist.

    Args:
      predicted: the reward model's output. [N, C]
      labels: z-scored weak labels. [N, C]
      label_mask: True where a label is defined. [N, C]
    Returns: correlation by component name, and under `reward` the weighted sum's; 0 where a side does not vary.
    """
    predicted, labels = predicted.astype(np.float64), labels.astype(np.float64)
    found = {name: _gated(predicted[label_mask[:, c], c], labels[label_mask[:, c], c]) for c, name in enumerate(names)}
    needed = [index for index, weight in enumerate(weights) if weight != 0]
    whole = label_mask[:, needed].all(axis=1)
    return found | {"reward": _gated(weighted_sum(predicted[whole], weights), weighted_sum(labels[whole], weights))}


def unmeasured(
    predicted: np.ndarray,
    labels: np.ndarray,
    label_mask: np.ndarray,
    weights: tuple[float, ...],
    names: tuple[str, ...] = COMPONENTS,
) -> dict[str, str]:
    """Why a correlation says nothing, by the names of `correlations`; those that say something are left out.

    Args: as for `correlations`.
    """
    predicted, labels = predicted.astype(np.float64), labels.astype(np.float64)
    needed = [index for index, weight in enumerate(weights) if weight != 0]
    whole = label_mask[:, needed].all(axis=1)
    sides = {name: (predicted[label_mask[:, c], c], labels[label_mask[:, c], c]) for c, name in enumerate(names)}
    sides["reward"] = weighted_sum(predicted[whole], weights), weighted_sum(labels[whole], weights)
    reasons = {}
    for name, (scores, known) in sides.items():
        if len(known) < 2:
            reasons[name] = f"{len(known)} of {len(labels)} held-out turns have a label"
        elif np.ptp(known) == 0:
            reasons[name] = f"all {len(known)} held-out labels are equal"
        elif np.ptp(scores) == 0:
            reasons[name] = f"all {len(known)} scores are equal"
    return reasons


def _gated(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson; 0 where a side does not vary, because what says nothing must not pass the gate."""
    constant = len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0
    return 0.0 if constant else pearson(x, y)


def _intervals(
    predicted: np.ndarray, turns: LabelledTurns, weights: tuple[float, ...]
) -> dict[str, tuple[float, float]]:
    """95 % bootstrap intervals of `correlations`, resampling dialogues."""

    def compute(name: str) -> Any:
        return lambda cases, _: judged(predicted, turns, weights, cases)[name]

    return {
        name: bootstrap.statistic(turns.dialogues, compute(name), replicates=200) for name in ("reward", *turns.names)
    }


def check_gate(
    path: Path,
    found: dict[str, float],
    report: dict[str, Any],
    config: RewardConfig,
    weights: tuple[float, ...],
) -> dict[str, Any]:
    """Writes what was found, and judges it.

    Args:
      path: of the report, JSON.
      found: held-out correlations, by component and of the sum (`reward`).
      report: what else is reported, `unmeasured` among it.
    Returns: the whole report.
    Raises: GateError where the gate is `stop` and a correlation with a weight is too low, or could not be measured.
    """
    judged = ["reward", *(name for name, weight in zip(config.components, weights, strict=True) if weight != 0)]
    failed = [name for name in judged if not found[name] > config.gate_pearson]
    report = report | {"pearson": found, "threshold": config.gate_pearson, "judged": judged, "failed": failed}
    write_json(path, report)
    reasons = {name: reason for name, reason in report["unmeasured"].items() if name in judged}
    numbers = ", ".join(f"{name} {found[name]:.3f}" for name in judged if name not in reasons) or "none"
    notice(f"reward model, held-out Pearson: {numbers}")
    if reasons:
        why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        text = f"the reward model's held-out Pearson could not be measured ({why})"
        if config.gate == "stop":
            raise GateError(
                f"{text}. More validation dialogues or --reward.validation-turns give more labels, --reward.epochs other "
                "scores; the weight of the component may be 0 (--ppo.component-weights), or --reward.gate warn goes on"
            )
        notice(f"warning: {text}; the report counts it as 0")
        failed = [name for name in failed if name not in reasons]
    if failed and config.gate == "stop":
        raise GateError(
            f"the reward model's held-out Pearson is below {config.gate_pearson} for {', '.join(failed)} ({numbers}): "
            "PPO would optimise noise. Give it more data or epochs, set the weight of the component to 0 "
            "(--ppo.component-weights), or go on knowingly with --reward.gate warn"
        )
    if failed:
        notice(f"warning: below the gate of {config.gate_pearson}: {', '.join(failed)}; the report says so")
    return report


def results(report: Mapping[str, Any], *, split: str, seed: int) -> list[Result]:
    """Entries of `results.json`: the gate's correlations."""
    text = "Pearson correlation of the reward model with held-out weak labels of {}"
    names = {"reward": "the weighted sum"}
    return [
        Result(
            name=f"reward_model/{_metric(name)}",
            value=value,
            n=report["n"],
            protocol="held-out",
            split=split,
            interval=report["interval"][name],
            seeds=(seed,),
            definition=text.format(names.get(name, name)),
        )
        for name, value in report["pearson"].items()
    ]
