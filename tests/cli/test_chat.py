from __future__ import annotations

import io
import signal
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tunesmith.errors import ModelError

Command = Callable[..., Any]


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a text in the place of standard input, which is then no screen."""
    return lambda text: monkeypatch.setattr(sys, "stdin", io.StringIO(text))


@pytest.fixture
def keyboard(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Somebody types these lines; an exception in their place is raised, and the end of them is Ctrl-D."""

    def type_lines(*lines: Any) -> None:
        waiting = iter(lines)

        def read(prompt: str) -> str:
            line = next(waiting, EOFError())
            if isinstance(line, BaseException):
                raise line
            return line

        monkeypatch.setattr("builtins.input", read)
        monkeypatch.setattr(sys, "stdin", type("Screen", (io.StringIO,), {"isatty": lambda self: True})())

    return type_lines


def test_a_conversation_remembers_what_was_said(command: Command, tuned: Any, pipe: Any) -> None:
    pipe("hello\n\n  and now?  \n")
    outcome = command("chat", "x", "--system", "be brief", "max_new_tokens=5")
    assert outcome.code == 0
    assert outcome.out == "tuned 2\x07\ntuned 4\x07\n"
    assert tuned.asked[1]["messages"] == [
        ("system", "be brief"),
        ("user", "hello"),
        ("assistant", "tuned 2\x07"),
        ("user", "and now?"),
    ]
    assert tuned.asked[1]["settings"] == {"max_new_tokens": 5}


def test_the_newest_message_has_the_runs_instruction(command: Command, tuned: Any, pipe: Any) -> None:
    tuned.instruction = "Name it."
    pipe("hat\ncap\n")
    outcome = command("chat", "x")
    assert outcome.err.count("'Name it.' (--raw leaves it out)") == 1
    assert tuned.asked[1]["messages"] == [
        ("user", "hat"), ("assistant", "tuned 1\x07"), ("user", "Name it.\n\ncap")
    ]  # fmt: skip
    pipe("hat\n")
    command("chat", "x", "--raw")
    assert tuned.asked[2]["messages"] == [("user", "hat")]


def test_reset_begins_anew_and_exit_leaves(command: Command, tuned: Any, pipe: Any) -> None:
    pipe("one\n/reset\ntwo\n/exit\nthree\n")
    command("chat", "x", "--system", "s")
    assert [call["messages"] for call in tuned.asked] == [
        [("system", "s"), ("user", "one")],
        [("system", "s"), ("user", "two")],
    ]


def test_a_line_that_only_looks_like_a_command_is_a_message(command: Command, tuned: Any, pipe: Any) -> None:
    pipe("/etc/hosts\n")
    command("chat", "x")
    assert tuned.asked[0]["messages"] == [("user", "/etc/hosts")]


def test_ctrl_d_leaves(command: Command, tuned: Any, keyboard: Any) -> None:
    keyboard("hello")
    outcome = command("chat", "x")
    assert (outcome.code, outcome.out) == (0, "tuned 1\x07\n")
    assert "Ctrl-D ends the chat" in outcome.err


def test_ctrl_c_at_the_prompt_leaves_nobody_alone(command: Command, tuned: Any, keyboard: Any) -> None:
    keyboard(KeyboardInterrupt(), "hello")
    assert command("chat", "x").code == 0
    assert len(tuned.asked) == 1


def test_ctrl_c_stops_an_answer_and_the_conversation_goes_on(command: Command, tuned: Any, keyboard: Any) -> None:
    keyboard("one", "two")
    stops = iter([lambda: signal.raise_signal(signal.SIGINT)])
    tuned.act = lambda: next(stops, lambda: None)()
    outcome = command("chat", "x")
    assert outcome.code == 0
    assert outcome.out == "tunedtuned 3\x07\n"
    assert tuned.asked[1]["messages"] == [("user", "one"), ("assistant", "tuned"), ("user", "two")]


def test_a_termination_signal_ends_an_answer_and_the_chat(command: Command, tuned: Any, keyboard: Any) -> None:
    keyboard("one", "two")
    tuned.act = lambda: signal.raise_signal(signal.SIGTERM)
    assert command("chat", "x").code == 143
    assert len(tuned.asked) == 1


def test_ctrl_c_ends_a_chat_that_is_fed_by_a_pipe(command: Command, tuned: Any, pipe: Any) -> None:
    pipe("one\ntwo\n")
    tuned.act = lambda: signal.raise_signal(signal.SIGINT)
    assert command("chat", "x").code == 130


def refuse() -> None:
    raise ModelError("The prompt and its answer are longer than the model can read")


def test_a_mistake_is_said_and_forgotten_in_front_of_a_screen(command: Command, tuned: Any, keyboard: Any) -> None:
    keyboard("one", "two")
    faults = iter([refuse])
    tuned.act = lambda: next(faults, lambda: None)()
    outcome = command("chat", "x")
    assert outcome.code == 0
    assert "error: The prompt and its answer" in outcome.err
    assert tuned.asked[1]["messages"] == [("user", "two")]


def test_a_mistake_ends_a_chat_that_is_fed_by_a_pipe(command: Command, tuned: Any, pipe: Any) -> None:
    pipe("one\ntwo\n")
    tuned.act = refuse
    assert command("chat", "x").code == 1


def test_a_chat_has_one_answer_to_a_message(command: Command, tuned: Any, pipe: Any) -> None:
    pipe("one\n")
    outcome = command("chat", "x", "num_return_sequences=2", "do_sample=true")
    assert outcome.code == 1
    assert "A chat has one answer to each message" in outcome.err


def test_help_lists_the_commands(command: Command, tuned: Any, pipe: Any) -> None:
    pipe("/help\n")
    outcome = command("chat", "x")
    assert tuned.asked == []
    for line in ("/help   lists the commands", "/reset  starts over", "/exit   ends the chat"):
        assert f"\n{line}" in f"\n{outcome.err}"


def test_a_person_who_mistypes_a_command_is_told_which_there_are(command: Command, tuned: Any, keyboard: Any) -> None:
    keyboard("/quit", "/etc/hosts")
    outcome = command("chat", "x")
    assert "There is no command /quit. /help, /reset, /exit are the commands." in outcome.err
    assert [call["messages"] for call in tuned.asked] == [[("user", "/etc/hosts")]]
