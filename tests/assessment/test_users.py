"""A crowd is answered in passes of one size: the same words, and one program, however it shrinks."""

import pytest

from rlhf_jax.assessment import users
from rlhf_jax.interfaces import Message
from rlhf_jax.stages.agent import make_agent
from rlhf_jax.stages.reward import Proxy
from tiny_policy import DATA, Tiny


@pytest.mark.parametrize("greedy", [False, True])
def test_a_crowd_in_parts_says_what_it_says_at_once(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, greedy: bool) -> None:
    histories = [[Message("seeker", ("hello " * (1 + n % 4), 11 + n % 4), 0)] for n in range(21)]
    proxy = Proxy(tiny.reward_model, (0.5, 0.3, 0.2))
    setup = tiny.setup._replace(
        agent=make_agent(
            tiny.setup.vocab,
            tiny.agent.network,
            max_items=DATA.max_items,
            response_tokens=DATA.response_tokens,
        )
    )

    def talk() -> tuple[list[list[Message]], dict[str, list[float]]]:
        responder = users.Responder(setup, tiny.policy, greedy=greedy, proxy=proxy)
        # The second crowd is what is left of the first.
        said = [responder(histories, range(21)), responder(histories[5:11], range(5, 11))]
        return said, {name: values.tolist() for name, values in responder.measured.items()}

    at_once, measured = talk()
    monkeypatch.setattr(users, "ROWS", 8)
    in_parts, measured_in_parts = talk()
    assert in_parts == at_once
    assert measured_in_parts["proxy_score"] == pytest.approx(measured["proxy_score"], abs=1e-5)
    assert len(measured["proxy_score"]) == 21
    if not greedy:
        assert len({message.parts for message in at_once[0]}) > 5
    # Widths 32 at once, 8 in parts: the crowd that shrank needed no program of its own.
    (program,) = [one for name, one in setup.agent.programs.items() if name[0] == "turn"]
    assert program._cache_size() == 2
