import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.equations.running import initial_moments
from rlhf_jax.learners.shaping import combine_components, penalise

PLAIN = {"weights": (1.0, 0.5), "normalise_components": False, "normalise_score": False, "score_clip": None}


def test_components_are_normalised_over_everything_seen_then_weighed_then_clipped() -> None:
    rng = np.random.default_rng(0)
    batches = [rng.normal([5.0, -1.0], [10.0, 0.1], size=(8, 2)) for _ in range(3)]
    moments, score_moments, weighed = initial_moments((2,)), initial_moments(), []
    settings = PLAIN | {"normalise_components": True, "normalise_score": True, "score_clip": 0.5}
    for n, batch in enumerate(batches):
        seen = np.concatenate(batches[: n + 1])
        combined = combine_components(jnp.asarray(batch, jnp.float32), moments, score_moments, **settings)
        z = (batch - seen.mean(axis=0)) / seen.std(axis=0, ddof=1)
        np.testing.assert_allclose(combined.components, z, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(combined.raw, batch @ [1.0, 0.5], rtol=1e-5)
        weighed.extend(z @ [1.0, 0.5])
        score = (np.array(weighed[-8:]) - np.mean(weighed)) / np.std(weighed, ddof=1)
        np.testing.assert_allclose(combined.normalised, np.clip(score, -0.5, 0.5), rtol=1e-3, atol=1e-4)
        moments, score_moments = combined.component_moments, combined.score_moments
    assert float(moments.count) == float(score_moments.count) == 24.0


def test_without_normalisation_the_score_is_the_weighted_sum() -> None:
    components = jnp.array([[0.73, 2.0], [-1.0, 0.0]])
    combined = combine_components(components, initial_moments((2,)), initial_moments(), **PLAIN)
    np.testing.assert_allclose(combined.normalised, [1.73, -1.0], rtol=1e-6)


def test_non_finite_component_leaves_the_moments() -> None:
    components = jnp.array([[1.0, jnp.inf], [2.0, 0.0]])
    combined = combine_components(components, initial_moments((2,)), initial_moments(), **PLAIN)
    assert float(combined.component_moments.count) == float(combined.score_moments.count) == 0.0
    np.testing.assert_array_equal(combined.component_moments.mean, 0.0)


@pytest.mark.parametrize(("mode", "unfinished"), [("subtract", 2.0 - 1.5), ("replace", -1.5)])
def test_missing_end_and_length_are_priced(mode: str, unfinished: float) -> None:
    scores = penalise(
        jnp.array([2.0, 2.0, 2.0]),
        jnp.array([True, True, False]),
        jnp.array([3, 10, 10]),
        missing_eos_penalty=1.5,
        missing_eos_mode=mode,
        length_coef=0.1,
        length_free=4,
    )
    np.testing.assert_allclose(scores, [2.0, 2.0 - 0.6, unfinished - 0.6], rtol=1e-6)
