"""Asks a model behind an endpoint with OpenAI's API: POST base_url/chat/completions, with time limits and retries."""

from __future__ import annotations

import http.client
import json
import os
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.message import Message
from functools import partial
from http import HTTPStatus
from typing import Any

from tunesmith.data.files.web import plain_http
from tunesmith.errors import ModelError, RecipeError
from tunesmith.recipe.endpoint import JudgeSettings
from tunesmith.recipe.settings import EvaluationSettings
from tunesmith.safe_text import remember_secret

KEY = "evaluation.judge"
_MOST_BYTES = 1 << 20  # of a reply
_LONGEST_WAIT = 60.0  # seconds between attempts, whatever the endpoint asks for
_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)  # codes after which a new attempt may help


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A model behind an endpoint.

    Args:
        settings: address, model and limits.
        key: sent as a bearer token, or None.
        sleep: waits some seconds between attempts; None: until ``stop`` ends the wait.
    """

    settings: JudgeSettings
    key: str | None
    sleep: Callable[[float], None] | None = None

    def reply(self, prompt: str, stop: RequestStop | None = None) -> str:
        """The model's reply to one prompt, at temperature 0.

        Args:
            prompt: what is asked.
            stop: ends the request, and the wait for the next attempt, from another thread.

        Raises:
            ModelError: the endpoint cannot be reached, refuses the request, or replies in another form.
            StoppedError: ``stop`` was asked for.
        """
        settings, stop = self.settings, stop or RequestStop()
        for attempt in range(settings.retries + 1):
            last = attempt == settings.retries
            try:
                code, headers, found = self._ask(prompt, stop)
                if HTTPStatus.OK <= code < HTTPStatus.MULTIPLE_CHOICES:
                    return self._content(found)
                if code not in _AGAIN or last:
                    said = found[:500].decode(errors="replace").strip()
                    why = f"It replied with the code {code}: {said or _phrase(code)}"
                    raise self._failure(why, attempt) from None
                wait = _asked_wait(headers)
            except (OSError, http.client.HTTPException) as error:  # time limits and lost connections too
                stop.check()
                if last:
                    reason = error.reason if isinstance(error, urllib.error.URLError) else error
                    raise self._failure(f"{type(error).__name__}: {reason}", attempt) from None
                wait = None
            except UnicodeError as error:  # a host that no name server can be asked for
                raise self._failure(f"The address cannot be used: {error}", attempt) from None
            seconds = min(_LONGEST_WAIT, 2.0**attempt if wait is None else wait)
            if self.sleep is None:
                stop.wait(seconds)
            else:
                self.sleep(seconds)
            stop.check()
        raise AssertionError("the last attempt returns or raises")

    def _ask(self, prompt: str, stop: RequestStop) -> tuple[int, Message, bytes]:
        """The code, the headers and the body that the endpoint replies with. The body of an error may be cut off."""
        settings = self.settings
        body = {
            "model": settings.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": settings.max_tokens,
        }
        headers = {"Content-Type": "application/json", "User-Agent": "tunesmith"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        address = f"{settings.base_url}/chat/completions"
        request = urllib.request.Request(address, json.dumps(body).encode(), headers, method="POST")
        # A read has a time limit of its own, which an endpoint that sends byte by byte never reaches. So the
        # connection is ended by the clock, whatever is being read: handshake, headers, body, or that of an error.
        with stop.line() as line, _ended_after(settings.timeout, line):
            opener = urllib.request.build_opener(_NoRedirect, _Http(line), _Https(line))
            try:
                try:
                    with opener.open(request, timeout=settings.timeout) as response:
                        code, about, found = response.status, response.headers, self._whole(response)
                except urllib.error.HTTPError as error:
                    with error:
                        code, about, found = error.code, error.headers, _beginning(error)
            except (OSError, http.client.HTTPException):
                if not line.ended:
                    raise
                code, about, found = 0, Message(), b""
            if line.ended and code < HTTPStatus.BAD_REQUEST:  # what there is of it may be a part
                raise TimeoutError(f"no whole reply within {settings.timeout:g} seconds")
        return code, about, found

    def _whole(self, response: http.client.HTTPResponse) -> bytes:
        found = b""
        while piece := response.read1(1 << 16):
            found += piece
            if len(found) > _MOST_BYTES:
                raise self._failure(f"Its reply has more than {_MOST_BYTES:,} bytes", 0)
        if response.length:
            raise http.client.IncompleteRead(found, response.length)
        return found

    def _content(self, found: bytes) -> str:
        try:
            content = json.loads(found)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError):
            raise self._failure(f"Its reply has not the form of OpenAI's API: {found[:200]!r}", 0) from None
        return content if isinstance(content, str) else ""

    def _failure(self, why: str, attempt: int) -> ModelError:
        tried = f" It was tried {attempt + 1} times." if attempt else ""
        return ModelError(
            "The judge cannot be asked",
            where=f"{KEY}: {self.settings.base_url}",
            why=f"{why.strip()[:600].rstrip('.')}.{tried}",
            remedy="Check base_url, model and api_key_env, and whether the endpoint is up; or judge without it, with "
            "`tunesmith eval RUN 'metrics=[loss]'`. A trained run is kept: `tunesmith eval RUN` asks the judge again; "
            "add --allow-functions (in Python: allow_functions=True).",
        )


def endpoint_of(settings: JudgeSettings) -> Endpoint:
    """The endpoint, with the key of the environment. Raises RecipeError if the variable is not set."""
    if settings.api_key_env is None:
        return Endpoint(settings, None)
    key = os.environ.get(settings.api_key_env, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        raise RecipeError(
            f"The environment variable {settings.api_key_env} {'is no key' if key else 'is not set'}",
            where=f"{KEY}.api_key_env",
            why="It must hold the key of the endpoint.",
            remedy=f"Set it, such as with `export {settings.api_key_env}=...`, or leave api_key_env out if no key is "
            "needed.",
        )
    remember_secret(key)
    return Endpoint(settings, key)


def over_plain_http(evaluation: EvaluationSettings) -> list[str]:
    """What others on the network can read, in a sentence; none over https, and for an endpoint on this machine."""
    judge = evaluation.judge if "judge" in evaluation.metrics else None
    if judge is None or not plain_http(judge.base_url):
        return []
    key = "" if judge.api_key_env is None else f", and the key of {judge.api_key_env},"
    return [
        f"{KEY}: the rows and answers{key} go to {judge.base_url} over http://: others on the network can read them; "
        "prefer https://"
    ]


class StoppedError(Exception):
    """A request was ended because nobody waits for it any more. It never leaves this package."""


class RequestStop:
    """Ends the requests of some threads, and their waits, from another thread."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._lines: set[_Line] = set()
        self._lock = threading.Lock()

    def ask(self) -> None:
        """Ends what is under way; nothing begins any more."""
        self._asked.set()
        with self._lock:
            lines = [*self._lines]
        for line in lines:
            line.end()

    def check(self) -> None:
        """Raises StoppedError if it was asked for."""
        if self._asked.is_set():
            raise StoppedError

    def wait(self, seconds: float) -> None:
        """Waits, at most until it is asked for."""
        self._asked.wait(seconds)

    @contextmanager
    def line(self) -> Iterator[_Line]:
        """A connection that ``ask`` ends. Raises StoppedError if that was before."""
        line = _Line()
        with self._lock:
            self._lines.add(line)
        try:
            self.check()
            yield line
        finally:
            with self._lock:
                self._lines.discard(line)
            line.close()


class _Line:
    """The connection of one request, which another thread may end: then whatever reads from it goes on at once."""

    def __init__(self) -> None:
        self.ended = False
        self._lock = threading.Lock()
        self._twin: socket.socket | None = None

    def connect(self, *address: Any, **how: Any) -> socket.socket:
        """``socket.create_connection``, of which a twin is kept: TLS takes the socket itself over."""
        made = socket.create_connection(*address, **how)
        with self._lock:
            self.close()
            self._twin = made.dup()
        if self.ended:
            self.end()
        return made

    def end(self) -> None:
        """Ends it."""
        self.ended = True
        with self._lock:
            if self._twin is not None:
                with suppress(OSError):  # the other side was first
                    self._twin.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Gives the twin back."""
        if self._twin is not None:
            self._twin.close()


class _Http(urllib.request.HTTPHandler):
    """Opens addresses over a line."""

    def __init__(self, line: _Line) -> None:
        super().__init__()
        self._line = line

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """Opens one."""
        return self.do_open(partial(_over, self._line, http.client.HTTPConnection), req)  # pyright: ignore[reportArgumentType]


class _Https(urllib.request.HTTPSHandler):
    """The same with TLS."""

    def __init__(self, line: _Line) -> None:
        super().__init__()
        self._line = line

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """Opens one."""
        return self.do_open(partial(_over, self._line, http.client.HTTPSConnection), req)  # pyright: ignore[reportArgumentType]


def _over(line: _Line, kind: type[http.client.HTTPConnection], host: str, **how: Any) -> http.client.HTTPConnection:
    """A connection whose socket the line knows."""
    made = kind(host, **how)
    made._create_connection = line.connect  # pyright: ignore[reportAttributeAccessIssue]
    return made


@contextmanager
def _ended_after(seconds: float, line: _Line) -> Iterator[None]:
    """Inside, the line is ended after some seconds."""
    clock = threading.Timer(min(seconds, threading.TIMEOUT_MAX), line.end)
    clock.daemon = True
    clock.start()
    try:
        yield
    finally:
        clock.cancel()


def _beginning(error: urllib.error.HTTPError) -> bytes:
    """The first bytes of an error's body: none where they do not come, as the code says enough."""
    try:
        return error.read(500)
    except (OSError, http.client.HTTPException):
        return b""


def _phrase(code: int) -> str:
    try:
        return HTTPStatus(code).phrase
    except ValueError:
        return "it says no more"


def _asked_wait(headers: Message) -> float | None:
    """The seconds of Retry-After, if it gives some."""
    try:
        return max(0.0, float(headers.get("Retry-After", "")))
    except ValueError:
        return None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: the key must not go to another address."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None
