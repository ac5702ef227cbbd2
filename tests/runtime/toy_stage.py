"""A run of two small stages as a script: `toy_stage.py RUN_DIR [seconds per update] [signal to send itself] [at step]`.

Everything a real stage has is there: keys in the state and from the step, an optimiser, data by step, a best state.
"""

import os
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlhf_jax import keys
from rlhf_jax.runtime import files, interrupts, run, stage
from rlhf_jax.runtime.metrics import Sample

N_STEPS = 12
DATA = np.random.default_rng(0).normal(size=(N_STEPS * 8, 5)).astype(np.float32)
OPTIMIZER = optax.adam(0.05)


@jax.jit
def learn(state: dict, batch: jax.Array, noise_key: jax.Array) -> tuple[dict, dict]:
    """One noisy step of a regression on the sum of the inputs."""
    key, own = jax.random.split(state["key"])
    noise = jax.random.normal(noise_key, (8,)) + jax.random.normal(own, (8,))

    def loss(weights: jax.Array) -> jax.Array:
        return jnp.mean((batch @ weights - batch.sum(1) - 0.1 * noise) ** 2)

    value, gradient = jax.value_and_grad(loss)(state["weights"])
    updates, optimizer_state = OPTIMIZER.update(gradient, state["optimizer"])
    weights = optax.apply_updates(state["weights"], updates)
    return {"weights": weights, "optimizer": optimizer_state, "key": key}, {"loss": value, "skipped": 0}


def start(seed: int) -> dict:
    """The state before the first update."""
    weights = jnp.zeros(5)
    return {"weights": weights, "optimizer": OPTIMIZER.init(weights), "key": jax.random.key(seed)}


def main(path: str, pause: float = 0.0, signal_number: int = 0, signal_step: int = -1) -> None:
    """Runs both stages; the second starts from the first one's best state."""
    root = jax.random.key(1)

    def update(state: dict, step: int) -> tuple[dict, dict]:
        time.sleep(pause)
        if step == signal_step and signal_number:
            os.kill(os.getpid(), signal_number)
        return learn(state, DATA[step * 8 : (step + 1) * 8], keys.stream_key(root, "noise", step))

    def on_eval(state: dict, step: int) -> dict:
        return {"validation/loss": float(jnp.sum(state["weights"] ** 2) * (1000 if step == 4 else 1))}

    def draw_samples(state: dict) -> list[Sample]:
        weights = np.asarray(state["weights"]).tolist()
        return [Sample(f"prompt {place}", f"é {weight}", {"score": weight}) for place, weight in enumerate(weights[:2])]

    with run.open_run(path, {"steps": N_STEPS}, trackers=()) as directory, interrupts.exits_on_signals():
        state = start(7)
        for name in ("sft-first", "sft-second"):
            state = stage.run_stage(
                directory,
                state,
                update,
                stage.StagePlan(
                    name,
                    N_STEPS,
                    save_every=2,
                    log_every=3,
                    on_eval=on_eval,
                    eval_every=4,
                    draw_samples=draw_samples,
                    best=stage.Best("validation/loss", "max"),
                ),
            )
        result = {"weights": state["weights"], "key": jax.random.key_data(state["key"])}
        result["mu"] = state["optimizer"][0].mu
        files.write_json(directory.path / "results.json", {k: np.asarray(v).tobytes().hex() for k, v in result.items()})


if __name__ == "__main__":
    main(sys.argv[1], *(kind(value) for kind, value in zip((float, int, int), sys.argv[2:], strict=False)))
