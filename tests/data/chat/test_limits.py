from __future__ import annotations

import os
import resource
import signal
import time

import pytest
from tests.data.chat.template_bombs import BOMBS, ESCAPES, FAULTS

from tunesmith.data.chat.budget import DEEPEST, TemplateLimitError, weigh
from tunesmith.data.chat.limits import LimitedEnvironment
from tunesmith.data.chat.rendering import Dialect, Renderer, RenderError, TemplatedConversation
from tunesmith.errors import ModelError, TunesmithError

TALK = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes"}]


def rendered(source: str, messages=TALK, **options) -> str:
    return Renderer(source, variables={"eos_token": "</s>"}, date="2024-01-01").render(
        messages, add_generation_prompt=False, **options
    )


def in_a_child(source: str) -> tuple[str, float, int]:
    """What came out (refused, message or the text), CPU seconds and the memory that it took more, in MB."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        outcome = "TRACEBACK"
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (10, 11))
            before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
            try:
                outcome = f"rendered {rendered(source)[:200]}"
            except RenderError:
                outcome = "refused"
            except TunesmithError as error:
                outcome = "message" if error.remedy else "no remedy"
            except BaseException as error:  # noqa: BLE001 (that is what the test looks for)
                outcome = f"TRACEBACK {type(error).__name__}"
            used = time.process_time() - began
            more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            os.write(write, f"{used}|{more >> 10}|{outcome}".encode(errors="replace"))
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        said = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    if status or not said:
        return f"KILLED {status}", 99.0, 9999
    used, more, outcome = said.split("|", 2)
    return outcome, float(used), int(more)


@pytest.mark.parametrize("name", BOMBS)
def test_a_template_that_does_not_end_or_fills_the_memory_is_stopped(name):
    outcome, seconds, megabytes = in_a_child(BOMBS[name])
    assert outcome == "message"
    assert seconds < 5
    assert megabytes < 450


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_a_template_is_one_message(name):
    outcome, seconds, megabytes = in_a_child(FAULTS[name])
    assert outcome in ("refused", "message")
    assert seconds < 5
    assert megabytes < 200


@pytest.mark.parametrize("name", ESCAPES)
def test_a_template_reaches_nothing_behind_what_it_is_given(name):
    outcome, _, _ = in_a_child(ESCAPES[name])
    assert not outcome.startswith(("TRACEBACK", "KILLED"))
    for word in ("<class", "<module", "<function", "__globals__':", "root:", "<built-in"):
        assert word not in outcome


def test_the_message_of_a_stopped_template_names_the_row_and_what_to_do():
    renderer = Renderer("{% for m in messages %}{{ m.content * 10**9 }}{% endfor %}", variables={}, date="2024-01-01")
    dialect = Dialect(parts=False, text_arguments=False, developer=False)
    conversation = TemplatedConversation(renderer, dialect, TALK, (), "rows.jsonl:7")
    with pytest.raises(TemplateLimitError) as caught:
        conversation.full(2)
    assert caught.value.where == "rows.jsonl:7"
    assert caught.value.what == "the chat template makes more than 268 MB of text and lists"
    assert "data.chat_template" in str(caught.value.remedy)


def test_a_stopped_template_is_one_message_already_where_its_dialect_is_looked_for():
    renderer = Renderer("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
                        variables={}, date="2024-01-01")  # fmt: skip
    began = time.process_time()
    with pytest.raises(ModelError, match="takes more than 2 s"):
        Dialect.of(renderer)
    assert time.process_time() - began < 4


def test_all_renderings_of_a_conversation_share_two_seconds():
    slow = "{% for a in range(99999) %}{% for b in range(6) %}{% if a == b %}{% endif %}{% endfor %}{% endfor %}ok"
    renderer = Renderer(slow, variables={}, date="2024-01-01")
    conversation = TemplatedConversation(renderer, Dialect(False, False, False), TALK, (), "rows.jsonl:7")
    began = time.process_time()
    with pytest.raises(TemplateLimitError):
        for _ in range(1000):
            conversation.full(2)
    assert time.process_time() - began < 6


def test_a_long_conversation_may_take_longer_and_write_more():
    long = [{"role": "user", "content": "x" * 200_000} for _ in range(200)]
    source = "{% set ns = namespace(out='') %}{% for m in messages %}{% set ns.out = ns.out + m.content %}{% endfor %}"
    with pytest.raises(TemplateLimitError):
        rendered(source + "{{ ns.out }}", [{"role": "user", "content": "x"}] * 50_000 + long)
    some = [{"role": "user", "content": "x" * 1000} for _ in range(1000)]
    assert len(rendered(source + "{{ ns.out }}", some, seconds=100.0)) == 1_000_000
    assert len(rendered("{% for m in messages %}{{ m.content }}{% endfor %}", long)) == 40_000_000


def test_a_machine_that_is_busy_stops_no_template(monkeypatch):
    clock = iter(range(0, 10**9, 5))
    monkeypatch.setattr("tunesmith.data.chat.budget.monotonic", lambda: float(next(clock)))
    assert rendered("{% for a in range(50) %}{{ a }}{% endfor %}").endswith("4849")


def test_a_machine_that_stalls_between_or_in_renderings_fails_no_row(monkeypatch):
    monkeypatch.setattr("tunesmith.data.chat.rendering.SECONDS", 0.5)
    renderer = Renderer(
        "{% for m in messages %}{{ m.content }}{{ stall() }}{% endfor %}", variables={}, date="2024-01-01"
    )
    stalled: list[int] = []

    def stall(number: int, frame: object) -> None:
        stalled.append(number)
        time.sleep(0.8)

    renderer._variables["stall"] = lambda: signal.raise_signal(signal.SIGUSR1) or ""
    before = signal.signal(signal.SIGUSR1, stall)
    try:
        conversation = TemplatedConversation(renderer, Dialect(False, False, False), TALK, (), "rows.jsonl:7")
        first = conversation.full(1)[0]
        assert conversation.full(1)[0] == first == TALK[0]["content"]
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(stalled) == 2
    assert conversation._used < 0.5


def test_limits_change_no_text():
    source = (
        "{% set ns = namespace(n=0, seen=[]) %}{% macro shout(t) %}{{ t|upper ~ '!' * 3 }}{% endmacro %}"
        "{% for m in messages if m.role != 'system' %}{% set ns.n = ns.n + 1 %}{% set ns.seen = ns.seen + [m.role] %}"
        "{{ shout(m.content) }}{{ '%s=%05.1f' % (m.role, ns.n) }}{{ '{:>6}|{}'.format(m.role, ns.n) }}"
        "{{ m.content.replace('l', 'L').split('L')[-1:] }}{{ m.content[::-1] }}"
        "{{ {'a': m, 'b': (1, m.role)} | tojson(indent=2) }}{{ 7 % 4 }}{{ 2 ** 10 }}{{ none }}"
        "{{ ns.seen | join(', ') }}{{ 'x' in m.content }}{{ m.content.center(11, '.') }}"
        "{{ m.content | indent(3) | replace('h', 'H') | trim }}{{ m.content.encode('utf-8') }}{% endfor %}{{ ns.seen }}"
    )
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    limited = LimitedEnvironment(trim_blocks=True, lstrip_blocks=True)
    limited.budget.begin(TALK, 2.0)
    assert limited.from_string(source).render(messages=TALK) == plain.from_string(source).render(messages=TALK)


def test_weighing_counts_what_is_shared_as_often_as_it_stands_there_and_stops():
    shared = ["x" * 1000]
    assert weigh([shared] * 10, 10**9) > 10_000
    for _ in range(60):
        shared = [shared, shared]
    assert weigh(shared, 10_000) == 10_001
    deep: list = []
    for _ in range(DEEPEST + 1):
        deep = [deep]
    with pytest.raises(TemplateLimitError, match="deep"):
        weigh(deep, 10**9)
