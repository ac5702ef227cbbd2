"""Serves the chat page on 127.0.0.1: one page, and two calls that a page of the same origin may make.

    GET  /        the page
    POST /start   {"replaces": id or null}        -> {"conversation": id}
    POST /turn    {"conversation": id, "text": …, "greedy": …}  -> what every stage answers

No path leads to a file. A request is answered only if it was meant for this address (its Host header, against DNS
rebinding) and comes from the page itself (its Origin header). Whatever is wrong with it ends as
{"error": text} with a 4xx code. The conversations live here, as tokens; there are at most `MAX_CONVERSATIONS`.
"""

import base64
import collections
import hashlib
import html
import json
import logging
import math
import re
import secrets
import socket
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from rlhf_jax.assessment.conversation import Conversation, Turn
from rlhf_jax.runtime.files import RunError

MAX_BODY = 2**16
"""Bytes of a request's body: `MAX_CHARACTERS` in JSON's longest spelling, and some."""
MAX_DRAINED = 2**24
"""Bytes that are still taken from a client whose body is too long, before it is cut off."""
MAX_CHARACTERS = 4000
"""Of one message."""
MAX_WORDS = 500
"""Of one message."""
MAX_CONVERSATIONS = 64
"""Kept at a time; the one that was silent longest is forgotten first."""
N_TOP = 5
"""Items of a stage's ranking that are shown."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_PAGE = Path(__file__).with_name("page.html")


class Exhibit(NamedTuple):
    """What the page shows."""

    run: str
    """The run directory, as people call it."""
    talks: Mapping[str, Conversation]
    """Stage to a conversation that others are made from."""
    n_items: int
    """Of the catalogue."""
    missing: Sequence[str]
    """Stages that the run will have and has not reached."""
    greedy: bool
    """How the switch stands at first."""
    seed: int
    """Of the first conversation's sampling; each further one takes the next."""
    examples: Sequence[str] = ()
    """What could be said: titles of the catalogue, how somebody began."""


class Conversations:
    """The conversations of all open pages: in each, one with every stage, which hear the same."""

    def __init__(self, exhibit: Exhibit) -> None:
        self._exhibit = exhibit
        self._kept: collections.OrderedDict[str, dict[str, Conversation]] = collections.OrderedDict()
        self._started = 0
        # One turn at a time: the devices are busy with it, and the two sides of a conversation alternate.
        self._lock = threading.Lock()

    def start(self, replaces: str | None) -> str:
        """Begins a conversation, in place of another if one is named; returns its id."""
        with self._lock:
            self._kept.pop(replaces or "", None)
            name = secrets.token_urlsafe(16)
            seed = self._exhibit.seed + self._started
            self._kept[name] = {stage: talk.afresh(seed=seed) for stage, talk in self._exhibit.talks.items()}
            self._started += 1
            while len(self._kept) > MAX_CONVERSATIONS:
                self._kept.popitem(last=False)
            return name

    def turn(self, name: str, text: str, greedy: bool) -> dict[str, Turn]:
        """What every stage answers.

        Raises: HTTPException 404 where the conversation is not kept.
        """
        with self._lock:
            if name not in self._kept:
                raise HTTPException(404, "this conversation is no longer kept here; start again")
            self._kept.move_to_end(name)
            turns = {}
            for stage, talk in self._kept[name].items():
                talk.greedy = greedy
                turns[stage] = talk.turn(text, N_TOP)
            return turns


class SameOrigin:
    """Lets through what was meant for this address and, where something is asked to be done, comes from its own page."""

    def __init__(self, app: ASGIApp, hosts: frozenset[str]) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refusal := self._refusal(scope)):
            await refusal(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        def values(name: bytes) -> list[str]:
            return [value.decode("latin-1") for key, value in scope["headers"] if key == name]

        hosts, origins = values(b"host"), values(b"origin")
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            return _error(403, "this server answers only to 127.0.0.1 and localhost, on its own port")
        if any(origin.lower() != f"http://{hosts[0].lower()}" for origin in origins):
            return _error(403, "another page's requests are not answered")
        if any(site not in ("same-origin", "none") for site in values(b"sec-fetch-site")) and scope["method"] != "GET":
            return _error(403, "another site's requests are not answered")
        return None


def make_app(exhibit: Exhibit, hosts: frozenset[str]) -> ASGIApp:
    """The server's logic.

    Args:
      exhibit: what is shown.
      hosts: values of the Host header that mean this server, `127.0.0.1:8000` for example.
    """
    conversations = Conversations(exhibit)
    content, policy = make_page(exhibit)

    async def page(request: Request) -> Response:
        del request
        return _respond(200, content, "text/html; charset=utf-8", {"Content-Security-Policy": policy})

    async def start(request: Request) -> Response:
        fields = await _fields(request, {"replaces": (str, type(None))})
        return _json(200, {"conversation": conversations.start(fields["replaces"])})

    async def turn(request: Request) -> Response:
        fields = await _fields(request, {"conversation": (str,), "text": (str,), "greedy": (bool,)})
        text = _said(fields["text"])
        turns = await run_in_threadpool(conversations.turn, fields["conversation"], text, fields["greedy"])
        return _json(200, {"stages": {stage: _as_json(found) for stage, found in turns.items()}})

    async def refuse(request: Request, error: Exception) -> Response:
        del request
        assert isinstance(error, HTTPException)
        return _error(error.status_code, error.detail, error.headers)

    async def leave(request: Request, error: Exception) -> Response:
        del request, error
        return _error(400, "the request broke off")

    return SameOrigin(
        Starlette(
            routes=[
                Route("/", page, methods=["GET"]),
                Route("/start", start, methods=["POST"]),
                Route("/turn", turn, methods=["POST"]),
            ],
            exception_handlers={HTTPException: refuse, ClientDisconnect: leave},
        ),
        hosts,
    )


def make_page(exhibit: Exhibit) -> tuple[bytes, str]:
    """The page with what it shows written in, and the security policy that lets run what stands in it and nothing else."""
    shown = {
        "run": exhibit.run,
        "stages": list(exhibit.talks),
        "missing": list(exhibit.missing),
        "items": exhibit.n_items,
        "greedy": exhibit.greedy,
        "examples": list(exhibit.examples),
        "maxCharacters": MAX_CHARACTERS,
    }
    # In an attribute, quoted: a folder's name may hold markup.
    content = _PAGE.read_text(encoding="utf-8").replace("{{EXHIBIT}}", html.escape(json.dumps(shown)))

    def hashes(tag: str) -> str:
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", content, re.DOTALL)
        return " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in found
        )

    policy = (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return content.encode(), policy


async def _fields(request: Request, kinds: Mapping[str, tuple[type, ...]]) -> dict[str, Any]:
    """The JSON object a request brings: these fields and no others."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "the body must be JSON, with Content-Type: application/json")
    body, n_bytes = bytearray(), 0
    async for chunk in request.stream():
        n_bytes += len(chunk)
        body += chunk[: MAX_BODY + 1 - len(body)]
        # The rest is read and dropped: who is cut off while sending does not see the answer.
        if n_bytes > MAX_DRAINED:
            break
    if n_bytes > MAX_BODY:
        raise HTTPException(413, f"the body has more than {MAX_BODY} bytes", {"Connection": "close"})
    try:
        fields = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError):
        raise HTTPException(400, "the body is no readable JSON") from None
    if not isinstance(fields, dict) or set(fields) != set(kinds):
        raise HTTPException(400, f"the body must be a JSON object with the fields {', '.join(kinds)}, and no others")
    for name, kind in kinds.items():
        if not isinstance(fields[name], kind):
            raise HTTPException(400, f"the field {name} has a value of the wrong type")
    return fields


def _said(text: str) -> str:
    """What the person says, in one line."""
    if len(text) > MAX_CHARACTERS:
        raise HTTPException(413, f"a message has at most {MAX_CHARACTERS} characters; this one has {len(text)}")
    words = _CONTROL.sub(" ", text).split()
    if not words:
        raise HTTPException(400, "the message is empty")
    if len(words) > MAX_WORDS:
        raise HTTPException(413, f"a message has at most {MAX_WORDS} words; this one has {len(words)}")
    return " ".join(words)


def _as_json(turn: Turn) -> dict[str, Any]:
    reply = turn.reply
    return {
        "recognised": turn.recognised,
        "unknown": turn.unknown,
        "top": [{"title": title, "probability": _number(probability)} for title, probability in turn.top],
        "messages": turn.sight.messages,
        "read": turn.sight.read,
        "newestCut": turn.sight.newest_cut,
        "words": reply.words,
        "suggested": reply.suggested,
        "components": [{"name": name, "value": _number(value)} for name, value in reply.components.items()],
        "score": None if reply.score is None else _number(reply.score),
    }


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None


def _error(code: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    return _json(code, {"error": text}, headers)


def _json(code: int, value: Any, headers: Mapping[str, str] | None = None) -> Response:
    return _respond(code, json.dumps(value, allow_nan=False).encode(), "application/json", headers)


def _respond(code: int, content: bytes, kind: str, headers: Mapping[str, str] | None) -> Response:
    safe = {
        "Cache-Control": "no-store",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    return Response(content, code, safe | dict(headers or {}), kind)


def listen(port: int) -> socket.socket:
    """A socket on 127.0.0.1; port 0 takes one that is free.

    Raises: RunError where another program has the port, or it may not be had.
    """
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError as error:
        raise RunError(f"--port {port} of 127.0.0.1 cannot be used ({error.strerror}): 0 takes a free one") from error


def make_server(exhibit: Exhibit, listening: socket.socket) -> uvicorn.Server:
    """Uvicorn, to be run with `sockets=[listening]`."""
    port = listening.getsockname()[1]
    hosts = frozenset(f"{name}:{port}" for name in ("127.0.0.1", "localhost"))
    hosts |= {"127.0.0.1", "localhost"} if port == 80 else frozenset()
    return uvicorn.Server(
        uvicorn.Config(
            make_app(exhibit, hosts),
            http="h11",
            ws="none",
            loop="asyncio",
            lifespan="off",
            proxy_headers=False,
            server_header=False,
            access_log=False,
            log_level=logging.WARNING,
            limit_concurrency=MAX_CONVERSATIONS,
            timeout_graceful_shutdown=2,
        )
    )


def serve(exhibit: Exhibit, port: int) -> None:
    """Serves the page until Ctrl-C."""
    with listen(port) as listening:
        server = make_server(exhibit, listening)
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        print(f"{' and '.join(exhibit.talks)} of {exhibit.run}: {address} (Ctrl-C ends)", flush=True)
        try:
            server.run(sockets=[listening])
        except KeyboardInterrupt:  # Uvicorn has closed everything and passes it on.
            print()
