"""The file of the answers so far: what somebody else put in its place is refused in one message and stays as it is."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import ExportError
from tunesmith.runs.outputs import check_file, write_output
from tunesmith.workflows.answer_rows import _check_out
from tunesmith.workflows.answers_so_far import answers_so_far, check_place, place_of, was_written

ASKED = {"versions": {"tunesmith": "1"}, "rows": 2}
FIRST = f"{json.dumps(ASKED)}\n".encode()
LINE = b'{"answers": [["a"]], "cut": 0}\n'


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """A test that waits for a pipe fails."""
    signal.alarm(60)
    yield
    signal.alarm(0)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "answers.csv"


def begun(out: Path, *, anew: bool = False, asked: dict[str, Any] = ASKED) -> int:
    with answers_so_far(out, asked, anew=anew) as made:
        return made.rows


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("anew", [True, False])
def test_a_link_is_not_followed_and_the_remedy_works(out: Path, tmp_path: Path, anew: bool, there: bool) -> None:
    victim = tmp_path / "victim"
    if there:
        victim.write_bytes(FIRST + LINE)
    place_of(out).symlink_to(victim)
    for act in (lambda: begun(out, anew=anew), lambda: check_place(out)):
        with pytest.raises(ExportError, match="Tunesmith did not write") as caught:
            act()
        assert str(caught.value.why).startswith("It is a link.")
    assert victim.exists() == there
    assert not there or victim.read_bytes() == FIRST + LINE
    place_of(out).rename(tmp_path / "elsewhere")
    assert begun(out, anew=anew) == 0


def test_a_file_with_another_name_stays_as_it_is(out: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(FIRST + LINE)
    os.link(tmp_path / "kept", place_of(out))
    with pytest.raises(ExportError, match="Tunesmith did not write"):
        begun(out, anew=True)
    assert (tmp_path / "kept").read_bytes() == FIRST + LINE


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_a_pipe_or_a_folder_is_refused_at_once(out: Path, make: Any) -> None:
    make(place_of(out))
    for act in (lambda: begun(out), lambda: check_place(out)):
        with pytest.raises(ExportError, match="Tunesmith did not write"):
            act()
    assert not was_written(out)


@pytest.mark.parametrize("anew", [True, False])
@pytest.mark.parametrize(
    "content",
    [b"my notes", b"my notes\n", b"[1]\n", b'{"a": 1}\n{}\n', b"\xff\n", b'{"versions": 1}\n', b"[" * 100_000 + b"\n",
     b'{"written": "answers.csv"}', b'{"written": "answers.csv"}\n'],
    ids=str,
)  # fmt: skip
def test_a_file_of_somebody_else_stays_as_it_is(out: Path, content: bytes, anew: bool) -> None:
    place_of(out).write_bytes(content)
    with pytest.raises(ExportError, match="Tunesmith did not write"):
        begun(out, anew=anew)
    assert place_of(out).read_bytes() == content
    assert not was_written(out)


@pytest.mark.parametrize(
    "line",
    [b"x\n", b"{}\n", b"[]\n", b"\xff\n", b'{"answers": "ab", "cut": 0}\n', b'{"answers": [[1]], "cut": 0}\n',
     b'{"answers": [["a", "b"]], "cut": 0}\n', b'{"answers": [["a"]], "cut": null}\n', LINE * 3],
    ids=str,
)  # fmt: skip
def test_damaged_answers_are_named_and_the_remedy_works(out: Path, line: bytes) -> None:
    place_of(out).write_bytes(FIRST + line)
    with pytest.raises(ExportError, match="are damaged") as caught:
        begun(out)
    assert "--overwrite" in str(caught.value.remedy)
    was_written(out)  # raises nothing
    assert begun(out, anew=True) == 0
    assert place_of(out).read_bytes() == FIRST


@pytest.mark.parametrize("cut", [0, 1, len(FIRST) // 2, len(FIRST) - 1])
def test_a_first_line_that_a_kill_cut_off_is_written_again(out: Path, cut: int) -> None:
    place_of(out).write_bytes(FIRST[:cut])
    check_place(out)
    assert begun(out) == 0
    assert place_of(out).read_bytes() == FIRST


def test_answers_are_counted_again(out: Path) -> None:
    place_of(out).write_bytes(FIRST + LINE + LINE[:9])
    assert begun(out) == 1
    assert place_of(out).read_bytes() == FIRST + LINE


def test_what_the_user_changed_after_a_kill_is_not_replaced(out: Path) -> None:
    with answers_so_far(out, ASKED, anew=False) as made:
        made.finish(out)
    write_output(out, "answers")
    assert was_written(out)
    with pytest.raises(ExportError, match="exists already"):
        check_file(out)
    _check_out(out, "rows.csv", overwrite=False, inputs=[])
    out.write_text("what the user wrote")
    with pytest.raises(ExportError, match="not known to be written by Tunesmith"):
        _check_out(out, "rows.csv", overwrite=False, inputs=[])


def test_a_process_that_waits_for_a_file_that_goes_makes_another(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process opens the file just before another one, which is done, removes it."""
    import fcntl

    lock, calls = fcntl.flock, []

    def removed(descriptor: int, how: int) -> None:
        calls.append(how)
        if len(calls) == 1:
            place_of(out).unlink()
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", removed)
    assert begun(out) == 0
    assert place_of(out).read_bytes() == FIRST
