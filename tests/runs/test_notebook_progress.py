"""Progress in a notebook and in a plain program."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from tunesmith.runs.from_python import heard_by
from tunesmith.runs.notebook_progress import InNotebook, in_notebook
from tunesmith.runs.progress import Silent
from tunesmith.runs.progress_lines import Lines


class Page:
    """Stands for a notebook: each output with all that was ever in it."""

    def __init__(self) -> None:
        self.outputs: list[list[dict[str, str]]] = []

    def display(self, data: dict[str, str], *, raw: bool, display_id: bool) -> Any:
        assert raw and display_id
        versions = [data]
        self.outputs.append(versions)

        class Handle:
            def update(self, data: dict[str, str], *, raw: bool) -> None:
                versions.append(data)

        return Handle()

    def now(self, kind: str = "text/plain") -> list[str]:
        return [versions[-1][kind] for versions in self.outputs]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_lines_and_bars_are_in_the_order_of_the_work_and_a_bar_changes_in_place() -> None:
    page, clock = Page(), Clock()
    listener = InNotebook(page.display, clock=clock)
    listener.say("rows <read>")
    listener.warn("few rows")
    with listener.task("training", 20) as advance:
        advance(0, {})
        for step in range(1, 11):
            clock.now += 1.0
            advance(step, {"loss": f"{1 / step:.2f}"})
        assert page.now()[1] == "training  10/20  0:10 left  loss 0.10"
        assert '<progress value="10" max="20"' in page.now("text/html")[1]
        with listener.task("validation <b>", None) as inner:
            inner(3, {})
            assert page.now()[1].endswith("\nvalidation <b>  0")
        listener.say("half way")
    listener.say("done")
    assert page.now() == [
        "rows <read>\nwarning: few rows",
        "training  10/20  took 0:10  loss 0.10",
        "half way\ndone",
    ]
    first = page.now("text/html")[0]
    assert "rows &lt;read&gt;" in first and "<b>warning:</b> few rows" in first
    assert not any("<b>" in version["text/html"] for version in page.outputs[1])


def test_a_bar_that_advances_fast_is_sent_now_and_then() -> None:
    page, clock = Page(), Clock()
    with InNotebook(page.display, clock=clock).task("rows", 1000) as advance:
        for done in range(1001):
            clock.now += 0.001
            advance(done, {})
    assert len(page.outputs[0]) <= 6
    assert page.now() == ["rows  1,000/1,000  took 0:01"]


def test_a_bar_whose_work_failed_stays_where_it_was() -> None:
    page, listener = Page(), None
    listener = InNotebook(page.display)
    with pytest.raises(ValueError, match="x"), listener.task("training", 4) as advance:
        advance(1, {})
        raise ValueError("x")
    with listener.task("again", 1):
        pass
    assert page.now()[0].startswith("training  1/4") and "took" not in page.now()[0]
    assert page.now()[1] == "again  0/1  took 0:00"


def test_a_program_gets_lines_on_standard_error_or_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert not in_notebook()
    listener = heard_by(None, True)
    listener.say("a \x1b[2J")
    listener.warn("b")
    with listener.task("rows", 2) as advance:
        advance(2, {"loss": "0.5"})
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err == "a \\x1b[2J\nwarning: b\nrows  2/2 (100%)  loss 0.5\n"
    assert isinstance(listener, Lines) and isinstance(heard_by(None, False), Silent)
    assert heard_by(listener, False) is listener
