"""One vLLM server over HTTP: JSON to a route, JSON back, or an error that says where and what.

What may pass is tried again a few times, with pauses: a connection that broke, a server that is
busy or answers 500 for a while. What the server refuses is not. Deadlines are the caller's, over
all attempts: a server that never answers is not asked again.
"""

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from rnow.errors import EngineError

WhyEnded = Callable[[], str | None]  # a sentence once the server is known to have ended

PAUSES_S = (0.5, 2.0)  # before the second and the third attempt
_UNIX = "unix:"  # before the path of a socket, in place of http://
_PASSING = frozenset({429, 500, 502, 503, 504})
_KEEP_ALIVE_S = 4.0  # vLLM closes an idle connection after 5 s: ours must be the one to let go
_CONNECT_TIMEOUT_S = 30.0  # of loopback or a cluster's network; a server's work has other limits


class HttpError(EngineError):
    """The server answered with a status that is not success."""

    def __init__(self, message: str, *, status: int, text: str) -> None:
        super().__init__(message)
        self.status = status
        self.text = text  # what the server said


class UnreachableError(EngineError):
    """No connection was made, or it broke."""


class VllmClient:
    """Requests to one server, hundreds at once.

    client = VllmClient("http://127.0.0.1:8000")  # or "unix:/tmp/rnow-1f0c/http"
    answer = await client.post("/inference/v1/generate", {…})
    await client.aclose()
    """

    def __init__(
        self,
        url: str,
        *,
        why_ended: WhyEnded = lambda: None,
        pauses_s: Sequence[float] = PAUSES_S,
    ) -> None:
        self.url = url.rstrip("/")  # names the server in messages
        self._socket = url.removeprefix(_UNIX) if url.startswith(_UNIX) else None
        self._base = self.url if self._socket is None else "http://localhost"
        self.why_ended = why_ended
        self.answered_at = 0.0  # time.monotonic() of the last POST that succeeded
        self._pauses_s = tuple(pauses_s)
        self._session: aiohttp.ClientSession | None = None
        self._is_closed = False

    async def post(self, route: str, body: Mapping[str, Any]) -> Any:
        """Return the answer's JSON, or its text where it is none."""
        return await self._ask("POST", route, orjson.dumps(body))

    async def get(self, route: str) -> Any:
        return await self._ask("GET", route, None)

    async def deliver(self, folder: Path) -> str:
        """Bring a folder of weights to the server's machine; return its path there."""
        return str(folder)

    async def forget(self, folder: Path) -> None:
        """Take away what `deliver` brought."""

    async def exchange(self, method: str, route: str, body: bytes | None) -> tuple[int, bytes]:
        """Return status and content of one answer; raise OSError or ClientError where none came."""
        headers = {"Content-Type": "application/json"}
        async with self._opened().request(
            method, self._base + route, data=body, headers=headers
        ) as response:
            return response.status, await response.read()

    async def aclose(self) -> None:
        """Break off what is under way; closing twice is fine."""
        self._is_closed = True
        if self._session is not None:
            await self._session.close()

    async def _ask(self, method: str, route: str, body: bytes | None) -> Any:
        for pause_s in (*self._pauses_s, None):
            try:
                return await self._ask_once(method, route, body)
            except HttpError as error:
                if pause_s is None or error.status not in _PASSING:
                    raise
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                self._check_open()
                if pause_s is None:
                    raise UnreachableError(
                        f"{method} {self.url}{route}: {_sentence(error)} "
                        f"({len(self._pauses_s) + 1} attempts)"
                    ) from error
            await asyncio.sleep(pause_s)
            self._check_open()
        raise AssertionError("unreachable")

    async def _ask_once(self, method: str, route: str, body: bytes | None) -> Any:
        self._check_open()
        status, content = await self.exchange(method, route, body)
        if not 200 <= status < 300:
            text = _message(content)
            raise HttpError(
                f"{method} {self.url}{route} answered {status}: {text}", status=status, text=text
            )
        if method == "POST":
            self.answered_at = time.monotonic()
        return _parse(content)

    def _opened(self) -> aiohttp.ClientSession:
        self._check_open()
        if self._session is None:
            options: dict[str, Any] = {"limit": 0, "keepalive_timeout": _KEEP_ALIVE_S}
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(**options)
                if self._socket is None
                else aiohttp.UnixConnector(path=self._socket, **options),
                timeout=aiohttp.ClientTimeout(total=None, connect=_CONNECT_TIMEOUT_S),
                cookie_jar=aiohttp.DummyCookieJar(),  # looking for none takes 0.2 ms a request
            )
        return self._session

    def _check_open(self) -> None:
        if self._is_closed:
            raise EngineError("the engine was closed")
        sentence = self.why_ended()
        if sentence is not None:
            raise EngineError(sentence)


def _parse(content: bytes) -> Any:
    try:
        return orjson.loads(content)
    except ValueError:
        text = content.decode(errors="replace")
    try:
        return json.loads(text)  # which knows NaN
    except ValueError:  # some routes answer with a sentence
        return text


def _message(content: bytes) -> str:
    """Return the sentence in vLLM's error object, or the body as it is."""
    match _parse(content):
        case {"error": {"message": str(message)}}:
            return message[:1000]
    return content.decode(errors="replace").strip()[:1000] or "(no text)"


def _sentence(error: Exception) -> str:
    return str(error) or type(error).__name__
