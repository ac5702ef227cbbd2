"""Warnings on series whose departure is known, and what a line of the log says about which policy."""

import math

import pytest

from rlhf_jax.evaluation.failure_signatures import SIGNATURES, Band, Warnings, band, departure, logged, warnings

LINES = [
    {"stage": "ppo-kl0", "step": 1, "loss": 0.1, "text/response_length": 8.0, "text/bleu4": 5.0},
    {"stage": "ppo-kl0", "step": 2, "loss": 0.1, "text/response_length": 9.0},
    {"stage": "ppo-kl0", "step": 2, "text/bleu4": 4.0},
    {"stage": "ppo-kl0", "step": 3, "loss": 0.1, "text/response_length": None},
    {"stage": "ppo-kl0-length", "step": 1, "loss": 0.1, "text/response_length": 7.0},
]


def test_a_line_of_an_update_is_about_the_policy_before_it() -> None:
    length = logged(LINES, "ppo-kl0", "text/response_length")
    assert length[:2] == [(0, 8.0), (1, 9.0)] and length[2][0] == 2 and math.isnan(length[2][1])
    assert logged(LINES, "ppo-kl0", "text/bleu4") == [(0, 5.0), (2, 4.0)]
    assert logged(LINES, "ppo-kl0-length", "text/response_length") == [(0, 7.0)]


def test_the_band_is_robust() -> None:
    limits = band([10.0, 10.2, 9.8, 10.1, 9.9, 50.0, math.nan])
    assert limits.low == pytest.approx(10.05 - 3 * 1.4826 * 0.15) and limits.high < 11
    with pytest.raises(ValueError, match="at least three values"):
        band([1.0, math.nan, 2.0])


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([0.0, 0.5, 1.5, 1.6, 1.7], (2, 1)),
        ([0.0, -1.5, 0.0, -1.5, -1.6], (3, -1)),  # One batch alone is no warning.
        ([0.0, 1.5, -1.5, 1.5, 0.0], None),  # Nor are two on different sides.
        ([0.0, 0.0, 0.0, 0.0, 9.0], None),  # Nothing confirms the last one.
        ([0.0, math.nan, 1.5, math.nan, 1.5], None),
    ],
)
def test_departure(values: list[float], found: tuple[int, int] | None) -> None:
    assert departure(list(enumerate(values)), Band(-1.0, 1.0)) == found


def test_warnings_by_seed() -> None:
    def run(longer_from: int) -> list[dict]:
        lines = []
        for step in range(1, 11):
            values: dict[str, float] = dict.fromkeys(SIGNATURES, 1.0)
            values["text/response_length"] = 3.0 if step - 1 >= longer_from else 1.0
            lines.append({"stage": "ppo-kl0", "step": step, "loss": 0.0, **values})
        return lines

    start = {metric: [0.9, 1.0, 1.1, 1.0] for metric in SIGNATURES}
    found = {one.metric: one for one in warnings([run(3), run(5), run(99)], "ppo-kl0", [start] * 3)}
    length = found["text/response_length"]
    assert length.at == (3, 5, None) and length.directions == (1, 1, 0)
    assert length.median == 5 and length.lead(8) == 3
    assert found["objective/entropy"].at == (None,) * 3
    assert found["objective/entropy"].lead(8) == -math.inf


def test_an_odd_start_is_no_warning() -> None:
    values = [2.0, 2.0, 1.9, 2.1, 2.2]
    lines = [{"stage": "ppo", "step": n + 1, "loss": 0.0, **dict.fromkeys(SIGNATURES, v)} for n, v in enumerate(values)]
    start = {metric: [0.9, 1.0, 1.1, 1.0] for metric in SIGNATURES}
    # Only from update 3 on does it lie beyond both the band and where the way began.
    assert {one.at for one in warnings([lines], "ppo", [start])} == {(3,)}
    assert Band(0.0, 1.0).holding([math.nan]) == Band(0.0, 1.0)


def test_half_of_the_seeds_must_warn() -> None:
    assert Warnings("text/repetition", (2, None, None), (1, 0, 0)).median == math.inf
