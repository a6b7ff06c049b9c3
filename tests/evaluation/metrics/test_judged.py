"""A judge behind an endpoint: both orders, ties, time limits, bad replies, and codes after which it is asked again."""

from __future__ import annotations

import re
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, cast

import pytest
from pydantic import ValidationError
from tests.judge_server import Server, said

from tunesmith.errors import ModelError, RecipeError
from tunesmith.evaluation.endpoint import Endpoint, endpoint_of, over_plain_http
from tunesmith.evaluation.metrics.answers import check_functions
from tunesmith.evaluation.metrics.base import AnswerRows
from tunesmith.evaluation.metrics.judged import choice_in, judged
from tunesmith.recipe.endpoint import PROMPT, JudgeSettings
from tunesmith.recipe.settings import EvaluationSettings

SHORT = "{first}|{second}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    made = Server()
    yield made
    made.drip = False
    made.http.shutdown()
    made.http.server_close()


def settings_of(server: Server, **values: Any) -> JudgeSettings:
    return JudgeSettings(base_url=server.url, model="strict-7b", **{"prompt": SHORT, "timeout": 5.0, **values})


def ask(server: Server, base: list[str], tuned: list[str], waits: list[float] | None = None, **values: Any):
    endpoint = Endpoint(settings_of(server, **values), None, sleep=[].append if waits is None else waits.append)
    truths, prompts = ["true"] * len(base), [f"prompt {n}" for n in range(len(base))]
    rows = [AnswerRows(answers, truths, prompts, list(range(len(base)))) for answers in (base, tuned)]
    return judged(endpoint, *rows)


def by_length(request: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    """A judge that likes the longer answer, and the first one of two equally long."""
    first, second = request["messages"][0]["content"].split("|")
    return said("Let me see. [[B]]" if len(second) > len(first) else "[[A]]")


def test_the_judge_is_asked_in_both_orders_and_a_contradiction_is_a_tie(server):
    server.answer = by_length
    found = ask(server, base=["a", "aaa", "aa", "same"], tuned=["bb", "b", "bb", " same"])
    assert found.tuned.total.tolist() == [1.0, 0.0, 0.5, 0.5]
    assert found.base.total.tolist() == [0.0, 1.0, 0.5, 0.5]
    assert found.tuned.groups is not None and found.tuned.groups.tolist() == [0, 1, 2, 3]
    details = found.tuned.details["judge"]
    assert details["rows"] == {"base": 1, "tie": 2, "tuned": 1} and details["contradictions"] == 1
    assert (details["prompt"], details["model"], details["unreadable"]) == (SHORT, "strict-7b", 0)
    assert found.replies[0] == ("Let me see. [[B]]", "[[A]]") and found.replies[3] == ("", "")
    asked = sorted(request["messages"][0]["content"] for request in server.seen)
    assert asked == sorted(["a|bb", "bb|a", "aaa|b", "b|aaa", "aa|bb", "bb|aa"]), "equal answers are not asked about"
    assert {(each["path"], each["model"], each["temperature"]) for each in server.seen} == {
        ("/v1/chat/completions", "strict-7b", 0)
    }


@pytest.mark.parametrize(
    ("reply", "choice"),
    [
        ("[[A]]", "A"),
        ("First [[A]]? No: [[b]]", "B"),
        ("[[ TIE ]]", "TIE"),
        ("B.", "B"),
        ("**tie**", "TIE"),
        ("A is better", None),
        ("", None),
    ],
)
def test_the_last_choice_of_a_reply_counts(reply, choice):
    assert choice_in(reply) == choice


def test_texts_stay_as_they_are_in_the_prompt():
    settings = JudgeSettings(base_url="http://localhost", model="m")
    found = settings.filled(prompt="a {first} \\1", reference="r", first="{second}", second="{x}")
    assert "[request]\na {first} \\1\n" in found and "[answer A]\n{second}\n" in found and "[answer B]\n{x}\n" in found
    assert "[[TIE]]" in PROMPT


def test_after_429_and_500_it_is_asked_again_as_late_as_the_endpoint_says(server):
    codes = [(429, {"Retry-After": "7"}), (429, {}), (500, {"Retry-After": "9999"}), (503, {"Retry-After": "soon"})]

    def answer(_: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        return (*codes.pop(0), b"later") if codes else said("[[B]]")

    server.answer = answer
    waits: list[float] = []
    endpoint = Endpoint(settings_of(server), None, sleep=waits.append)
    assert endpoint.reply("x") == "[[B]]"
    assert waits == [7.0, 2.0, 60.0, 8.0] and len(server.seen) == 5


def test_an_endpoint_that_keeps_refusing_is_one_message(server):
    server.answer = lambda _: (429, {}, b"slow down")
    with pytest.raises(ModelError, match=r"code 429: slow down\. It was tried 3 times\."):
        ask(server, ["a"], ["b"], retries=2, parallel=1)
    assert len(server.seen) in (3, 6), "the second request may have begun"


@pytest.mark.parametrize("code", [400, 401, 404])
def test_a_request_that_is_wrong_is_not_repeated(server, code):
    server.answer = lambda _: (code, {}, b'{"error": "no such model"}')
    with pytest.raises(ModelError, match=rf"(?s)evaluation.judge: {server.url}.*code {code}.*no such model") as caught:
        Endpoint(settings_of(server), None, sleep=cast("Any", pytest.fail)).reply("x")
    assert "Check base_url, model and api_key_env" in (caught.value.remedy or "")


def test_a_redirect_is_not_followed_with_the_key(server):
    server.answer = lambda _: (302, {"Location": f"{server.url}/elsewhere"}, b"")
    with pytest.raises(ModelError, match="code 302"):
        Endpoint(settings_of(server), "secret-key", sleep=cast("Any", pytest.fail)).reply("x")
    assert [request["path"] for request in server.seen] == ["/v1/chat/completions"]


@pytest.mark.parametrize("drip", [False, True])
def test_a_reply_that_takes_too_long_ends(server, drip):
    """It says nothing, or a byte now and then, which no time limit of a read would stop."""
    server.drip = drip
    server.answer = lambda _: (200, {}, b" ") if drip else (time.sleep(1.5), said("[[A]]"))[1]
    began = time.monotonic()
    with pytest.raises(ModelError, match=r"(?i)TimeoutError.*It was tried 2 times"):
        Endpoint(settings_of(server, timeout=0.4, retries=1), None, sleep=lambda _: None).reply("x")
    assert time.monotonic() - began < 1.4


def test_a_lost_connection_is_tried_again_and_named(server):
    url = server.url
    server.http.shutdown()
    server.http.server_close()
    waits: list[float] = []
    settings = JudgeSettings(base_url=url, model="m", retries=2)
    with pytest.raises(ModelError, match=r"ConnectionRefusedError|URLError"):
        Endpoint(settings, None, sleep=waits.append).reply("x")
    assert waits == [1.0, 2.0]


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'{"choices": []}', b"[" * 99999, b'{"choices": [{"message": 1}]}'])
def test_a_reply_of_another_form_is_named(server, body):
    server.answer = lambda _: (200, {}, body)
    with pytest.raises(ModelError, match="has not the form of OpenAI's API"):
        Endpoint(settings_of(server), None).reply("x")


def test_a_reply_without_end_is_cut(server):
    server.answer = lambda _: (200, {}, b" " * (2 << 20))
    with pytest.raises(ModelError, match="more than 1,048,576 bytes"):
        Endpoint(settings_of(server), None).reply("x")


def test_few_replies_that_cannot_be_read_are_ties_and_many_are_refused(server):
    server.answer = lambda request: said("[[B]]" if request["messages"][0]["content"] != "a0|b0" else "hm")
    rows = [f"a{n}" for n in range(10)], [f"b{n}" for n in range(10)]
    found = ask(server, *rows)
    assert found.tuned.details["judge"]["unreadable"] == 1 and found.tuned.total[0] == 0.5
    server.answer = lambda _: said("I cannot say")
    with pytest.raises(ModelError, match=r"20 of 20 replies lack \[\[A\]\].*'I cannot say'"):
        ask(server, *rows)


def test_the_key_comes_from_the_environment_and_is_in_no_message(server, monkeypatch):
    evaluation = EvaluationSettings(metrics=["judge"], judge=settings_of(server, api_key_env="MY_OWN_NAME"))
    monkeypatch.delenv("MY_OWN_NAME", raising=False)
    with pytest.raises(RecipeError, match="MY_OWN_NAME is not set") as caught:
        check_functions(evaluation)
    assert "export MY_OWN_NAME=" in (caught.value.remedy or "")
    monkeypatch.setenv("MY_OWN_NAME", "quartz-lantern-742")
    check_functions(evaluation)
    assert evaluation.judge is not None and "quartz" not in evaluation.model_dump_json()
    endpoint = endpoint_of(evaluation.judge)
    assert endpoint.reply("x") == "[[TIE]]" and server.seen[-1]["key"] == "Bearer quartz-lantern-742"
    server.answer = lambda _: (401, {}, b"bad key quartz-lantern-742")
    with pytest.raises(ModelError, match=r"bad key \*\*\*") as refused:
        endpoint.reply("x")
    assert "quartz" not in str(refused.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"base_url": "ftp://host"}, "must begin with http"),
        ({"base_url": "https://user:word@host/v1"}, "must hold no user"),
        ({"base_url": "https://host/v1?key=1"}, "must hold no user"),
        ({"prompt": "which? {first}"}, "lacks {second}"),
        ({"api_key_env": "sk-123 456"}, "should match pattern"),
    ],
)
def test_settings_that_cannot_work_are_refused(values, words):
    with pytest.raises(ValidationError, match=words):
        JudgeSettings(**{"base_url": "https://host/v1", "model": "m", **values})
    with pytest.raises(ValueError, match=r"the metric judge needs evaluation\.judge"):
        EvaluationSettings(metrics=["judge"])


def raw(*pieces: bytes, pause: float = 0.0, times: int = 1, reset: bool = False) -> tuple[str, list[bytes]]:
    """An endpoint that sends these bytes, the last of them ``times`` times, and the requests that it has heard."""
    listening, heard = socket.create_server(("127.0.0.1", 0)), []

    def serve(one: socket.socket) -> None:
        heard.append(one.recv(1 << 16))
        with suppress(OSError), one:
            for piece in [*pieces[:-1], *pieces[-1:] * times]:
                one.sendall(piece)
                time.sleep(pause)
            if reset:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def accept() -> None:
        while True:
            threading.Thread(target=serve, args=[listening.accept()[0]], daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return f"http://127.0.0.1:{listening.getsockname()[1]}/v1", heard


@pytest.mark.parametrize(
    ("pieces", "how", "words"),
    [
        ([b"HTTP/1.1 500 X\r\nContent-Length: 400\r\n\r\nabc"], {"pause": 5}, "code 500"),
        ([b"HTTP/1.1 500 X\r\nContent-Length: 400\r\n\r\nabc"], {"pause": 0.1, "reset": True}, "code 500"),
        ([b"HTTP/1.1 503 X\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc"], {}, "code 503"),
        ([b"HTTP/1.1 200 OK\r\nX: ", b"a"], {"pause": 0.1, "times": 50}, "no whole reply within 0.4 seconds"),
        ([b"HTTP/1.1 500 X\r\nContent-Length: 500\r\n\r\n", b"a"], {"pause": 0.1, "times": 50}, "code 500"),
        ([b"HTTP/1.1 200 OK\r\n\r\n", b" "], {"pause": 0.1, "times": 50}, "no whole reply within 0.4 seconds"),
        ([b"nonsense\r\n"], {}, "BadStatusLine"),
    ],
    ids=["stalls", "reset", "bad chunk", "slow headers", "slow error", "no length", "no HTTP"],
)
def test_an_endpoint_that_breaks_off_or_drips_is_asked_again_in_time_and_is_one_message(
    pieces: list[bytes], how: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    url, heard = raw(*pieces, **how)
    settings, waits = JudgeSettings(base_url=url, model="m", timeout=0.4, retries=1), []
    began = time.monotonic()
    with pytest.raises(ModelError, match=rf"{words}[^$]*It was tried 2 times"):
        Endpoint(settings, None, sleep=waits.append).reply("x")
    assert (len(heard), waits) == (2, [1.0]) and time.monotonic() - began < 2.5


@pytest.mark.parametrize("code", [200, 503])
def test_ctrl_c_ends_what_is_asked_and_every_wait_at_once(server: Server, code: int) -> None:
    """Of requests that get no reply, and of those that wait for another attempt."""
    gone = threading.Event()
    server.answer = lambda _: (503, {"Retry-After": "60"}, b"") if code == 503 else (gone.wait(30), said("[[A]]"))[1]
    endpoint = Endpoint(settings_of(server, timeout=30.0), None)
    rows = AnswerRows(["a"] * 9, ["t"] * 9, ["p"] * 9), AnswerRows(["b"] * 9, ["t"] * 9, ["p"] * 9)
    threading.Timer(0.5, lambda: signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        judged(endpoint, *rows)
    assert time.monotonic() - began < 1.5 and len(server.seen) == 4
    gone.set()
    time.sleep(0.2)
    assert len(server.seen) == 4, "nothing is asked any more"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://judge.example/v1", r"and the key of MY_KEY, go to http://judge\.example/v1 over http://"),
        ("https://judge.example/v1", None),
        ("http://localhost:8000/v1", None),
    ],
)
def test_a_key_that_others_on_the_network_can_read_is_told_of(url: str, words: str | None) -> None:
    judge = JudgeSettings(base_url=url, model="m", api_key_env="MY_KEY")
    found = over_plain_http(EvaluationSettings(metrics=["judge"], judge=judge))
    assert found == [] if words is None else re.search(words, found[0])
    assert over_plain_http(EvaluationSettings(metrics=["loss"], judge=judge)) == []
