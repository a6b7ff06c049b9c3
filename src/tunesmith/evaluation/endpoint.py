"""Asks a model behind an endpoint with OpenAI's API: POST base_url/chat/completions, with time limits and retries."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from typing import Any

from tunesmith.errors import ModelError, RecipeError
from tunesmith.recipe.endpoint import JudgeSettings
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
        sleep: waits some seconds.
    """

    settings: JudgeSettings
    key: str | None
    sleep: Callable[[float], None] = time.sleep

    def reply(self, prompt: str) -> str:
        """The model's reply to one prompt, at temperature 0.

        Raises:
            ModelError: the endpoint cannot be reached, refuses the request, or replies in another form.
        """
        settings = self.settings
        for attempt in range(settings.retries + 1):
            last = attempt == settings.retries
            try:
                return self._ask(prompt)
            except urllib.error.HTTPError as error:
                with error:
                    said = error.read(500).decode(errors="replace")
                if error.code not in _AGAIN or last:
                    why = f"It replied with the code {error.code}: {said or error.reason}"
                    raise self._failure(why, attempt) from None
                wait = _asked_wait(error.headers)
            except (OSError, http.client.HTTPException) as error:  # time limits and lost connections too
                if last:
                    reason = error.reason if isinstance(error, urllib.error.URLError) else error
                    raise self._failure(f"{type(error).__name__}: {reason}", attempt) from None
                wait = None
            self.sleep(min(_LONGEST_WAIT, 2.0**attempt if wait is None else wait))
        raise AssertionError("the last attempt returns or raises")

    def _ask(self, prompt: str) -> str:
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
        ends = time.monotonic() + settings.timeout
        opener = urllib.request.build_opener(_NoRedirect)
        with opener.open(request, timeout=settings.timeout) as response:
            found = b""
            # A read has its own time limit, so an endpoint that sends byte by byte is stopped by the clock.
            while piece := response.read1(1 << 16):
                found += piece
                if time.monotonic() > ends:
                    raise TimeoutError(f"no whole reply within {settings.timeout:g} seconds")
                if len(found) > _MOST_BYTES:
                    raise self._failure(f"Its reply has more than {_MOST_BYTES:,} bytes", 0)
            if response.length:
                raise http.client.IncompleteRead(found, response.length)
        return self._content(found)

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
            "`tunesmith eval RUN 'metrics=[loss]'`. The trained weights are kept, and "
            "`tunesmith train RECIPE --resume` judges again.",
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
