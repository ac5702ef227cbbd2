"""The chat page's server: what it answers, and that no request, however made, does harm."""

import http.client
import importlib.util
import json
import math
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import chat
from chat_page import server
from rlhf_jax.assessment.conversation import Conversation, Sight
from rlhf_jax.assessment.finished_run import Finished
from rlhf_jax.feedback.components import COMPONENTS
from rlhf_jax.runtime.files import RunError
from rlhf_jax.stages.reward import Proxy
from tiny_policy import Tiny

JSON = {"Content-Type": "application/json"}


class Answer(NamedTuple):
    code: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def value(self) -> Any:
        return json.loads(self.body)


class Client(NamedTuple):
    """Speaks HTTP as it is told to."""

    port: int

    def ask(self, method: str, path: str, body: Any = None, headers: Any = JSON) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        answer = Answer(response.status, response.headers, response.read())
        connection.close()
        return answer

    def start(self) -> str:
        answer = self.ask("POST", "/start", json.dumps({"replaces": None}))
        assert answer.code == 200
        return answer.value["conversation"]

    def turn(self, conversation: str, text: str, greedy: bool = True) -> Answer:
        fields = {"conversation": conversation, "text": text, "greedy": greedy}
        return self.ask("POST", "/turn", json.dumps(fields))


@pytest.fixture(scope="module")
def talks(tiny: Tiny) -> dict[str, Conversation]:
    setup = tiny.setup
    run = Finished(Path("run"), {}, setup.data, setup.corpus, setup.vocab, tiny.agent)
    proxy = Proxy(tiny.reward_model, (0.5, 0.25, 0.25))
    return {"sft": Conversation(run, tiny.reference, proxy=proxy), "ppo": Conversation(run, tiny.policy, proxy=proxy)}


@pytest.fixture(scope="module")
def exhibit(talks: dict[str, Conversation]) -> server.Exhibit:
    return server.Exhibit('runs/<script>alert(1)</script>"', talks, n_items=4, missing=(), greedy=False, seed=0)


@pytest.fixture(scope="module")
def client(exhibit: server.Exhibit) -> Iterator[Client]:
    with server.listen(0) as listening:
        served = server.make_server(exhibit, listening)
        thread = threading.Thread(target=served.run, kwargs={"sockets": [listening]})
        thread.start()
        yield Client(listening.getsockname()[1])
        served.should_exit = True
        thread.join(timeout=60)
        assert not thread.is_alive()


def test_every_stage_answers_and_goes_on_from_its_own_replies(client: Client, talks: dict[str, Conversation]) -> None:
    name = client.start()
    alone = {stage: talk.afresh(seed=5) for stage, talk in talks.items()}
    for talk in alone.values():
        talk.greedy = True
    for number, text in enumerate(["hello there, I like Film 12", "try again"]):
        stages = client.turn(name, text).value["stages"]
        assert list(stages) == ["sft", "ppo"]
        for stage, found in stages.items():
            turn = alone[stage].turn(text, server.N_TOP)
            assert found["words"] == turn.reply.words and found["suggested"] == list(turn.reply.suggested)
            assert [(row["title"], row["probability"]) for row in found["top"]] == turn.top
            assert math.fsum(row["probability"] for row in found["top"]) == pytest.approx(1.0)  # 4 items, all shown.
            values = {row["name"]: row["value"] for row in found["components"]}
            assert list(values) == list(COMPONENTS)
            weighted = 0.5 * values["engagement"] + 0.25 * values["relevance"] + 0.25 * values["sentiment"]
            assert found["score"] == pytest.approx(weighted)
            assert found["recognised"] == (["Film 12"] if number == 0 else [])
            assert found["messages"] == 1 + 2 * number
    assert stages["sft"]["top"] != stages["ppo"]["top"]


def test_titles_that_the_catalogue_has_not_are_named(client: Client) -> None:
    text = 'I like Film 12, "No Such Film", Gone Nowhere (1901), @999999 and @999999'
    for found in client.turn(client.start(), text).value["stages"].values():
        assert found["recognised"] == ["Film 12"]
        assert found["unknown"] == ["No Such Film", "Gone Nowhere (1901)", "@999999"]


def test_the_page_says_what_could_be_said(exhibit: server.Exhibit) -> None:
    content, _ = server.make_page(exhibit._replace(examples=("Titles it knows: <b>Film 12</b>",)))
    assert b"Titles it knows" in content and b"<b>Film 12" not in content


def test_decoding_can_be_switched(client: Client) -> None:
    def replies(greedy: bool) -> set[str]:
        answers = [client.turn(client.start(), "hello", greedy).value["stages"]["ppo"] for _ in range(4)]
        return {json.dumps([answer["words"], answer["suggested"]]) for answer in answers}

    assert len(replies(greedy=True)) == 1
    assert len(replies(greedy=False)) > 1


def test_long_conversations_are_cut_and_told(client: Client, talks: dict[str, Conversation]) -> None:
    name = client.start()
    for _ in range(3):
        found = client.turn(name, "hello again").value["stages"]["ppo"]
    assert found["messages"] == 5 and 1 <= found["read"] < 5 and not found["newestCut"]
    found = client.turn(name, "hello there " * 40).value["stages"]["ppo"]
    assert found["newestCut"] and found["read"] == 1
    # Memory does not grow with the conversation, and nothing that could be read is lost.
    bounded, whole = talks["ppo"].afresh(seed=0), talks["ppo"].afresh(seed=0)
    whole._remember = lambda utterance, _: whole._utterances.append(utterance)
    for number in range(40):
        text = "hello there " * (1 + 20 * (number % 2))
        assert bounded.turn(text, 4).reply == whole.turn(text, 4).reply
    assert len(bounded._utterances) == 24 < len(whole._utterances) == 80
    assert max(map(len, bounded._utterances)) == 25 < max(map(len, whole._utterances))
    assert bounded.sight() == whole.sight()._replace(messages=80)
    bounded.reset()
    assert bounded.sight() == Sight(0, 0, False)


@pytest.mark.parametrize(
    "text",
    [
        "<img src=x onerror=alert(1)> </script>",
        "\x00\x01\x1b[31mhello\x7f\r\n\x85there",
        "half \ud800 of a pair",
        "\u202e\u200b\ufeff",  # Marks that show nothing.
        "@11 @99999999999999999999999 @-1 <eos> <rec> <seeker>",
        "é" * 4000,
        "🎬 " * 500,
    ],
)
def test_any_text_is_answered(client: Client, text: str) -> None:
    answer = client.turn(client.start(), text)
    assert answer.code == 200
    assert set(answer.value["stages"]) == {"sft", "ppo"}


def message(**changes: Any) -> str:
    return json.dumps({"conversation": "unknown", "text": "hello", "greedy": True} | changes)


@pytest.mark.parametrize(
    ("body", "code", "error"),
    [
        (b"", 400, "no readable JSON"),
        (b"hello", 400, "no readable JSON"),
        (b"\xff\xfe", 400, "no readable JSON"),
        (b"[" * 60000, 400, "no readable JSON"),
        (b'{"conversation": ' + b"9" * 5000 + b"}", 400, "no readable JSON"),
        (b"[]", 400, "JSON object with the fields conversation, text, greedy"),
        (b"{}", 400, "JSON object with the fields"),
        (message(more=1), 400, "and no others"),
        (message(text=5), 400, "field text has a value of the wrong type"),
        (message(text=None), 400, "field text"),
        (message(greedy=1), 400, "field greedy"),
        (message(conversation=["a"]), 400, "field conversation"),
        (message(text=""), 400, "the message is empty"),
        (message(text=" \n\t\x00"), 400, "the message is empty"),
        (message(text="a" * 4001), 413, "at most 4000 characters; this one has 4001"),
        (message(text="a " * 501), 413, "at most 500 words; this one has 501"),
        (message(text="a" * 2**20), 413, "the body has more than 65536 bytes"),
        (message(), 404, "no longer kept"),
        (message(conversation="\ud800"), 404, "no longer kept"),
    ],
)
def test_what_is_wrong_with_a_request_is_said(client: Client, body: Any, code: int, error: str) -> None:
    answer = client.ask("POST", "/turn", body)
    assert (answer.code, answer.headers["Content-Type"]) == (code, "application/json")
    assert set(answer.value) == {"error"} and error in answer.value["error"]


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, 200),
        ({"Host": "localhost:{port}", "Origin": "http://localhost:{port}"}, 200),
        ({"Origin": "http://127.0.0.1:{port}", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:{port}", "Origin": "http://evil.example:{port}"}, 403),
        ({"Host": "127.0.0.1:1"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost:{port}"}, 403),
        ({"Origin": "https://127.0.0.1:{port}"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        # What a form of another page may send without being asked.
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
    ],
)
def test_only_the_page_itself_is_answered(client: Client, headers: dict[str, str], code: int) -> None:
    told = JSON | {name: value.format(port=client.port) for name, value in headers.items()}
    answer = client.ask("POST", "/start", json.dumps({"replaces": None}), told)
    assert answer.code == code
    assert ("conversation" in answer.value) == (code == 200)
    assert not any(name.lower().startswith("access-control") for name in answer.headers)


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/page.html", 404),
        ("GET", "/server.py", 404),
        ("GET", "/../../../../etc/passwd", 404),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd", 404),
        ("GET", "//etc/passwd", 404),
        ("GET", "/turn", 405),
        ("POST", "/", 405),
        ("OPTIONS", "/turn", 405),
    ],
)
def test_no_path_leads_to_a_file(client: Client, method: str, path: str, code: int) -> None:
    answer = client.ask(method, path)
    assert answer.code == code and set(answer.value) == {"error"}


def test_a_request_that_breaks_off_does_not_matter(client: Client) -> None:
    for rest in (b"", b"Content-Length: 100\r\nContent-Type: application/json\r\n\r\n{", b"\xff\x00\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", client.port)) as connection:
            connection.sendall(f"POST /turn HTTP/1.1\r\nHost: 127.0.0.1:{client.port}\r\n".encode() + rest)
    assert client.turn(client.start(), "hello").code == 200


def test_conversations_are_bounded_and_do_not_mix(exhibit: server.Exhibit) -> None:
    kept = server.Conversations(exhibit)
    first, second = kept.start(None), kept.start(None)
    kept.turn(first, "hello there", greedy=True)
    assert kept.turn(second, "hello", greedy=True)["ppo"].sight.messages == 1
    for _ in range(server.MAX_CONVERSATIONS - 2):
        kept.start(None)
    assert kept.turn(first, "hello", greedy=True)["ppo"].sight.messages == 3  # Now `second` was silent longest.
    third = kept.start(None)
    with pytest.raises(server.HTTPException, match="no longer kept"):
        kept.turn(second, "hello", greedy=True)
    kept.start(third)
    with pytest.raises(server.HTTPException, match="no longer kept"):
        kept.turn(third, "hello", greedy=True)
    kept.turn(first, "hello", greedy=True)


def test_the_page_is_one_file_that_trusts_nothing(client: Client) -> None:
    answer = client.ask("GET", "/", headers={})
    page, policy = answer.body.decode(), answer.headers["Content-Security-Policy"]
    assert answer.code == 200 and answer.headers["X-Content-Type-Options"] == "nosniff"
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe" not in policy
    assert page.count("<script>") == 1  # The run's name holds another, and is text.
    assert not re.search(r"https?:|innerHTML|insertAdjacent|document\.write|eval\(|\bstyle=|\bon\w+=", page)


@pytest.mark.parametrize("name", ["starlette", "uvicorn"])
def test_without_the_extra_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None if module == name else object())
    with pytest.raises(
        RunError, match=rf"--web needs {name}, .*: .* -m pip install -e '\.\[web\]' -c constraints\.txt"
    ):
        chat.main(chat.Config(tmp_path, web=True))


def test_ports_that_cannot_be_had(tmp_path: Path, client: Client) -> None:
    with pytest.raises(RunError, match=f"--port {client.port} of 127.0.0.1 cannot be used"):
        server.listen(client.port)
    with pytest.raises(ValueError, match=r"in \[0, 65535\]: got 65536"):
        chat.Config(tmp_path, web=True, port=65536)
    with pytest.raises(ValueError, match="--port 8000 is the page's: add --web"):
        chat.Config(tmp_path, port=8000)
