"""A file or a folder takes its name when it is whole, and the old one stays until then."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith.errors import ExportError
from tunesmith.runs.whole_files import (
    is_half_replaced,
    place_for,
    put_in_place,
    recover_folder,
    remove_folder,
    whole_file,
    whole_folder,
    write_whole,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_by_text_or_bytes(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", "é\n")
    assert (tmp_path / "a").read_bytes() == "é\n".encode()
    write_whole(tmp_path / "a", b"\x00")
    assert (tmp_path / "a").read_bytes() == b"\x00"
    assert names(tmp_path) == ["a"]


def test_what_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", "old")
    with pytest.raises(ValueError, match="broken"), whole_file(tmp_path / "a") as file:
        file.write(b"half")
        raise ValueError("broken")
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "old"


def test_a_folder_is_replaced_when_it_is_whole_and_readable_as_the_umask_says(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with whole_folder(tmp_path / "deep" / "made") as beside:
            (beside / "inner").mkdir()
            (beside / "inner" / "file").write_text(content)
            (beside / "inner" / "file").chmod(0o600)
            assert content == "old" or (tmp_path / "deep" / "made" / "inner" / "file").read_text() == "old"
    file = tmp_path / "deep" / "made" / "inner" / "file"
    mask = os.umask(0)
    os.umask(mask)
    assert file.read_text() == "new" and file.stat().st_mode & 0o777 == 0o666 & ~mask
    assert names(tmp_path / "deep") == ["made"]


def test_a_folder_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    with pytest.raises(ValueError, match="broken"), whole_folder(tmp_path / "made") as beside:
        (beside / "half").touch()
        raise ValueError("broken")
    assert names(tmp_path) == ["made"] and names(tmp_path / "made") == []


def test_with_a_last_file_a_folder_stays_the_same_folder(tmp_path: Path) -> None:
    made = tmp_path / "made"
    (made / "old").mkdir(parents=True)
    before = made.stat().st_ino
    with whole_folder(made, last="done") as beside:
        for name in ("a", "done", "z"):
            (beside / name).touch()
    assert made.stat().st_ino == before and names(made) == ["a", "done", "z"]
    assert names(tmp_path) == ["made"]


def test_the_old_folder_comes_back_if_a_process_was_killed_between_two_renames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("made", "beside"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()

    def killed(self: Path, to: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        put_in_place(tmp_path / "beside", tmp_path / "made")
    assert not (tmp_path / "made").exists()
    recover_folder(tmp_path / "made")
    assert names(tmp_path / "made") == ["made"]


def test_a_folder_gets_another_name_before_it_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(path: Path) -> None:
        assert names(path) == ["file"], "it is still whole"
        raise KeyboardInterrupt

    for _ in range(2):  # what the first one left is in the way of nothing
        (tmp_path / "made").mkdir()
        (tmp_path / "made" / "file").touch()
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("tunesmith.runs.whole_files.shutil.rmtree", killed)
            remove_folder(tmp_path / "made")
        assert not (tmp_path / "made").exists()
        recover_folder(tmp_path / "made")
        assert names(tmp_path) == []


def test_two_processes_do_not_fill_one_folder(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "made") as beside:
        (beside / "file").touch()
        with pytest.raises(BlockingIOError, match="another process is writing it"), whole_folder(tmp_path / "made"):
            pass
    assert names(tmp_path / "made") == ["file"] and names(tmp_path) == ["made"]


def test_a_folder_whose_entries_were_being_replaced_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tmp_path / "made"
    made.mkdir()

    def killed(self: Path, to: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), whole_folder(made, last="done") as beside:
        (beside / "done").touch()
        patch.setattr(Path, "replace", killed)
    assert is_half_replaced(made)
    with whole_folder(made, last="done") as beside:
        (beside / "done").touch()
    assert not is_half_replaced(made) and names(made) == ["done"]


def test_a_rename_that_was_done_and_is_said_to_have_failed_counts_as_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, done = Path.replace, [True]

    def says_it_failed(self: Path, to: Path) -> Path:
        if done[0]:
            replace(self, to)
        raise FileNotFoundError(2, "No such file or directory", str(self))

    write_whole(tmp_path / "file", "old")
    monkeypatch.setattr(Path, "replace", says_it_failed)
    write_whole(tmp_path / "file", "new")
    with whole_folder(tmp_path / "made") as beside:
        (beside / "a").touch()
    assert (tmp_path / "file").read_text() == "new" and names(tmp_path) == ["file", "made"]
    done[0] = False
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "file", "newer")
    assert (tmp_path / "file").read_text() == "new" and names(tmp_path) == ["file", "made"]


def test_files_and_folders_are_flushed_before_they_get_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    flush, replace = os.fsync, Path.replace

    def flushed(descriptor: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        flush(descriptor)

    def renamed(self: Path, to: Path) -> Path:
        done.append(f"-> {to.name}")
        return replace(self, to)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "replace", renamed)
    write_whole(tmp_path / "a", "x")
    assert done[0].startswith(".a.tunesmith-")
    assert done[1:] == ["-> a", tmp_path.name]
    done.clear()
    with whole_folder(tmp_path / "made") as beside:
        (beside / "inner").mkdir()
        (beside / "inner" / "file").touch()
    assert done == ["inner", "file", ".made.tunesmith-tmp", "-> made", tmp_path.name]


def test_a_name_that_is_too_long_is_refused_with_its_length(tmp_path: Path) -> None:
    assert place_for(tmp_path / "recipe.yaml") == tmp_path / "recipe.yaml"
    assert place_for(".") == Path() == place_for(""), "the folder you are in"
    for name in ("x" * 260, "x" * 253, f"{'x' * 260}/recipe.yaml"):  # also the file beside it, that is written first
        with pytest.raises(ExportError, match="it cannot be written") as failed:
            place_for(str(tmp_path / name))
        assert failed.value.why == f"The name {'x' * 20}... has {len(name.split('/')[0])} bytes, which is too long."
        assert failed.value.remedy == "Choose a shorter name."


def test_what_the_user_has_beside_an_output_stays(tmp_path: Path) -> None:
    for name in ("file", "made"):
        for end in ("old", "del"):
            (tmp_path / f".{name}.{end}").mkdir()
            (tmp_path / f".{name}.{end}" / "mine").write_text("mine")
        (tmp_path / f".{name}.tmp").write_text("mine")
    (tmp_path / ".made.tmp").unlink()
    (tmp_path / ".made.tmp").mkdir()
    before = names(tmp_path)
    recover_folder(tmp_path / "made", earlier=["manifest"])
    assert names(tmp_path) == before, "nothing there is known to be Tunesmith's"
    for _ in range(2):
        write_whole(tmp_path / "file", "x")
        with whole_folder(tmp_path / "made") as beside:
            (beside / "a").touch()
        recover_folder(tmp_path / "made")
    remove_folder(tmp_path / "made")
    assert names(tmp_path) == sorted([*before, "file"])
    assert [path.read_text() for path in tmp_path.rglob("mine")] == ["mine"] * 4
    assert (tmp_path / ".file.tmp").read_text() == "mine"


@pytest.mark.parametrize("end", ["tmp", "old", "del"])
def test_a_link_at_a_name_of_our_own_is_removed_and_not_followed(tmp_path: Path, end: str) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "mine").touch()
    link = tmp_path / f".made.tunesmith-{end}"
    for act in (whole_folder, recover_folder, whole_folder, remove_folder):
        if not link.is_symlink():
            link.symlink_to(tmp_path / "victim")
        if act is whole_folder:
            with whole_folder(tmp_path / "made") as beside:
                (beside / "a").touch()
        else:
            act(tmp_path / "made")
    link.unlink(missing_ok=True)
    assert names(tmp_path) == ["victim"] and names(tmp_path / "victim") == ["mine"]


def test_a_folder_where_a_file_is_to_be_stays(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine").touch()
    with pytest.raises(IsADirectoryError):
        write_whole(tmp_path / "a", "x")
    assert names(tmp_path) == ["a"] and names(tmp_path / "a") == ["mine"]


def test_what_a_kill_left_of_a_file_goes_and_what_is_being_written_stays(tmp_path: Path) -> None:
    code = "import sys, time\nfrom pathlib import Path\nfrom tunesmith.runs.whole_files import whole_file\n"
    code += "with whole_file(Path(sys.argv[1])) as file:\n    print(file.name, flush=True)\n    time.sleep(60)\n"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    writer = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "a")], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert writer.stdout is not None
    beside = Path(writer.stdout.readline().strip())
    write_whole(tmp_path / "a", "of another process")
    assert names(tmp_path) == sorted([beside.name, "a"])
    writer.kill()
    writer.wait()
    writer.stdout.close()
    assert names(tmp_path) == sorted([beside.name, "a"])
    write_whole(tmp_path / "a", "again")
    assert names(tmp_path) == ["a"]


def test_many_processes_write_one_file_at_once(tmp_path: Path) -> None:
    code = "import sys\nfrom pathlib import Path\nfrom tunesmith.runs.whole_files import write_whole\n"
    code += "for _ in range(150): write_whole(Path(sys.argv[1]), sys.argv[2] * 50000)\n"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "a"), letter], env=environment) for letter in "abc"
    ]
    while any(writer.poll() is None for writer in writers):
        if (tmp_path / "a").exists():
            content = (tmp_path / "a").read_text()
            assert content == content[0] * 50000
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert names(tmp_path) == ["a"]


def test_a_folder_that_another_process_begins_at_once_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / ".made.tunesmith-tmp"

    def put(beside: Path, path: Path) -> None:
        put_in_place(beside, path)
        other.mkdir()
        (other / "file").touch()

    monkeypatch.setattr("tunesmith.runs.whole_files.put_in_place", put)
    with whole_folder(tmp_path / "made") as beside:
        (beside / "a").touch()
    assert names(tmp_path) == [other.name, "made"] and names(other) == ["file"]


def test_a_folder_that_another_process_removes_before_it_is_locked_is_said_to_be_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Path.mkdir

    def removed(self: Path, **how: bool) -> None:
        make(self, **how)
        self.rmdir()

    monkeypatch.setattr(Path, "mkdir", removed)
    with pytest.raises(BlockingIOError, match="another process is writing it"), whole_folder(tmp_path / "made"):
        pass
    assert names(tmp_path) == []
