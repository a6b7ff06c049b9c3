"""No output takes the place of an input, nor of a file that Tunesmith did not write; and every command asks here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import ExportError, RunError
from tunesmith.runs.outputs import (
    RECIPE_MARK,
    check_file,
    output_file,
    refuse_inputs,
    refuse_strangers,
    write_output,
    wrote,
)


@pytest.fixture(autouse=True)
def _own_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))


def what(out: Path, **how) -> str | None:
    try:
        check_file(out, **how)
    except ExportError as error:
        return error.what
    return None


OF_OTHERS = "The file exists already, and is not known to be written by Tunesmith"
INPUT = "The output would replace an input"


def test_a_file_of_the_user_stays_whatever_the_flags(tmp_path: Path) -> None:
    mine = tmp_path / "mine.csv"
    mine.write_text("a,b\n")
    for overwrite in (False, True):
        assert what(mine, overwrite=overwrite) == OF_OTHERS
    mine.unlink()
    assert what(mine) is None, "as the remedy says"


def test_what_tunesmith_wrote_is_replaced_when_asked_wherever_it_lies_now(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "report.html"
    write_output(out, "<p>é</p>")
    assert what(out) == "The file exists already" and what(out, overwrite=True) is None
    out.rename(tmp_path / "moved.html")
    assert what(tmp_path / "moved.html", overwrite=True) is None


def test_a_page_is_known_by_its_own_mark_once_the_cache_is_gone_unless_it_was_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, note = tmp_path / "report.html", tmp_path / "notes.txt"
    write_output(page, "<!DOCTYPE html>\n<html><p>é</p></html>")
    write_output(note, "text")
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "new"))
    assert what(page, overwrite=True) is None and what(note, overwrite=True) == OF_OTHERS
    for other in ("ê", "e"):
        changed = page.read_text().replace("é", other)
        (tmp_path / "changed.html").write_text(changed)
        assert what(tmp_path / "changed.html", overwrite=True) == OF_OTHERS
    (tmp_path / "more.html").write_text(page.read_text() + "mine")
    assert what(tmp_path / "more.html", overwrite=True) == OF_OTHERS


def test_a_marked_file_that_was_edited_is_replaced_only_where_its_mark_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    for end in ("\n", "\r\n"):
        file.write_bytes((RECIPE_MARK + "model: mine\n").replace("\n", end).encode())
        assert what(file, overwrite=True, mark=RECIPE_MARK) is None
        assert what(file, mark=RECIPE_MARK) == "The file exists already"
        assert what(file, overwrite=True) == OF_OTHERS
        assert what(file, overwrite=True, mark=RECIPE_MARK, inputs=[file]) == INPUT
    file.write_text("model: mine\n" + RECIPE_MARK)
    assert what(file, overwrite=True, mark=RECIPE_MARK) == OF_OTHERS


def test_a_file_that_was_changed_since_is_the_user_s_own(tmp_path: Path) -> None:
    out = tmp_path / "recipe.yaml"
    write_output(out, "model: m\n")
    with out.open("a") as file:
        file.write("# my notes\n")
    assert what(out, overwrite=True) == OF_OTHERS
    assert out.read_text() == "model: m\n# my notes\n"


@pytest.mark.parametrize(
    "how", ["itself", "hard link", "link", "link to a link", "through a linked folder", "relative"]
)
def test_no_output_replaces_an_input_under_any_of_its_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    rows, out = tmp_path / "data" / "rows.jsonl", tmp_path / "out.jsonl"
    write_output(rows, "{}\n")  # Tunesmith wrote it, and now it is an input
    if how == "itself":
        out = rows
    elif how == "hard link":
        os.link(rows, out)
    elif how == "link":
        out.symlink_to(rows)
    elif how == "link to a link":
        (tmp_path / "first").symlink_to(rows)
        out.symlink_to("first")
    elif how == "through a linked folder":
        (tmp_path / "other").symlink_to(rows.parent)
        out = tmp_path / "other" / "rows.jsonl"
    else:
        monkeypatch.chdir(tmp_path)
        out = Path("data/../data/rows.jsonl")
    assert what(out, inputs=[str(rows)], overwrite=True) == INPUT
    assert rows.read_text() == "{}\n"


def test_a_folder_to_write_holds_no_input(tmp_path: Path) -> None:
    rows = tmp_path / "made" / "train" / "rows.jsonl"
    rows.parent.mkdir(parents=True)
    rows.touch()
    for out in (tmp_path / "made", tmp_path / "made" / "train", rows):
        with pytest.raises(RunError, match=INPUT):
            refuse_inputs(out, [None, "hub/name", "https://x/y", "\0", "x" * 5000, rows], kind=RunError)
    refuse_inputs(tmp_path / "made" / "new", [rows, tmp_path / "made"])


def test_a_link_to_nothing_and_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    assert what(tmp_path / "link", overwrite=True) == "The output is a link to a file that is not there"
    assert what(tmp_path, overwrite=True) == "The output is a folder"


def test_a_place_that_takes_no_files_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    assert what(tmp_path / "file" / "out.csv") == "The output cannot be written"
    assert what(tmp_path / "new" / "deep" / "out.csv") is None
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as on a disk for reading only; root may do the rest
    assert what(tmp_path / "out.csv") == "The output cannot be written"


def test_a_device_is_written_to_and_stays_a_device() -> None:
    with output_file(Path("/dev/null")) as file:
        file.write(b"text")
    assert what(Path("/dev/null")) is None and not Path("/dev/null").is_file()


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_a_stream_of_the_shell_is_a_device_also_where_a_file_is_behind_it(tmp_path: Path, name: str) -> None:
    code = (
        "import sys; from pathlib import Path; from tunesmith.runs.outputs import check_file, write_output\n"
        "out = Path(sys.argv[1]); check_file(out); print('before'); write_output(out, 'page\\n'); print('after')"
    )
    with (tmp_path / "page.html").open("w") as file:
        subprocess.run([sys.executable, "-c", code, name], stdout=file, check=True)
    assert (tmp_path / "page.html").read_text() == "before\npage\nafter\n"


def test_without_a_cache_the_file_is_written_and_not_replaced_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "file" / "cache"))
    write_output(tmp_path / "out", "x")
    assert (tmp_path / "out").read_text() == "x" and not wrote(tmp_path / "out")


def test_what_fails_is_not_there_and_the_old_file_stays(tmp_path: Path) -> None:
    write_output(tmp_path / "out", "old")
    with pytest.raises(ZeroDivisionError), output_file(tmp_path / "out") as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert (tmp_path / "out").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "out"]


def test_a_folder_with_files_of_the_user_is_not_replaced(tmp_path: Path) -> None:
    folder, known = tmp_path / "run", ["status.json", "checkpoints/step-*", ".*"]
    (folder / "checkpoints" / "step-000001").mkdir(parents=True)
    for name in ("status.json", ".lock", "checkpoints/step-000001/anything"):
        (folder / name).touch()
    (folder / "empty").mkdir()
    write_output(folder / "curves.svg", "<svg/>")
    refuse_strangers(folder, known)
    for name in ("thesis.txt", "checkpoints/notes.md", "plots/a.png"):
        own = folder / name
        own.parent.mkdir(exist_ok=True)
        own.write_text(name)
        with pytest.raises(ExportError) as caught:
            refuse_strangers(folder, known)
        named = name if name.startswith(("thesis", "checkpoints")) else "plots"
        assert caught.value.why == f"They are {named}."
        own.unlink()
    refuse_strangers(tmp_path / "not there", known)


def test_every_writer_of_a_named_output_asks_the_one_owner(pytestconfig: pytest.Config) -> None:
    """A new command that writes to a place that a user names must be added here, and must ask."""
    source = pytestconfig.rootpath / "src" / "tunesmith"
    asks = re.compile(r"\b(check_file|refuse_inputs|refuse_strangers)\(")
    asking = {str(path.relative_to(source)) for path in source.rglob("*.py") if asks.search(path.read_text())}
    assert asking == {
        "runs/outputs.py", "runs/curves.py", "cli/data.py", "workflows/interactive.py", "workflows/answer_rows.py",
        "workflows/prepare_data.py", "workflows/lr_range.py", "workflows/starting.py", "workflows/demo/story.py",
            "deploy/report/files.py",
        "deploy/plain_weights.py",
    }  # fmt: skip
    takes = re.compile(r"\bplace_for\(")
    naming = {str(path.relative_to(source)) for path in source.rglob("*.py") if takes.search(path.read_text())}
    through_plain_weights = {"deploy/merge.py", "deploy/adapter_folder.py"}
    assert naming - {"runs/whole_files.py"} <= asking | through_plain_weights


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.write_text("mine")], ids=["folder", "file"])
def test_what_comes_to_the_output_during_the_work_stays_and_the_remedy_works(tmp_path: Path, make: Any) -> None:
    out = tmp_path / "answers.csv"
    assert what(out) is None
    with pytest.raises(ExportError, match="during the work"), output_file(out) as file:
        file.write(b"answers")
        make(out)
    assert out.is_dir() or out.read_text() == "mine"
    out.rename(tmp_path / "moved")
    write_output(out, "answers")
    assert out.read_text() == "answers"
    out.write_text("what the user changed")
    with pytest.raises(ExportError, match="during the work"):
        write_output(out, "new")
    assert out.read_text() == "what the user changed"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.csv", "cache", "moved"]


def test_what_tunesmith_wrote_or_what_is_the_same_is_replaced_at_the_end_too(tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    out.write_text("same")
    write_output(out, "same")
    write_output(out, "other")
    out.write_text(RECIPE_MARK + "edited")
    write_output(out, RECIPE_MARK, mark=RECIPE_MARK)
    assert out.read_text() == RECIPE_MARK
