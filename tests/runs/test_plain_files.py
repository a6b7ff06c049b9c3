"""Links and pipes in a run of somebody else: nothing outside of it is written, and nothing waits without an end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tunesmith.errors import RunError, TunesmithError
from tunesmith.runs import manifest
from tunesmith.runs.folder import Run, find_runs
from tunesmith.runs.manifest import MANIFEST, changes, damage, facts_of
from tunesmith.runs.overview import details, summaries
from tunesmith.runs.whole_files import whole_folder, write_whole
from tunesmith.training.checkpoint import prune

OWN = "what is the user's own\n"


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """A test that waits for a pipe fails."""
    signal.alarm(60)
    yield
    signal.alarm(0)


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    file = tmp_path / "home" / "profile"
    file.parent.mkdir()
    file.write_text(OWN)
    return file


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    run.write_text("recipe.yaml", "model: m\n")
    run.set_status("running", step=0)
    return run


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_link_that_looks_like_what_a_kill_left_is_not_followed(run: Run, victim: Path) -> None:
    for name in ("status.json", MANIFEST, "verdict.json"):
        for end in ("tmp", "tunesmith-0123abcd"):  # the first as earlier versions had it
            (run.folder / f".{name}.{end}").symlink_to(victim)
    run.write_json("verdict.json", {"verdict": "better"})
    run.set_status("finished")
    assert victim.read_text() == OWN
    assert run.read_json("verdict.json") == {"verdict": "better"}
    assert changes(run.folder) == {}


def test_a_link_where_a_folder_is_filled_first_is_replaced_and_not_followed(tmp_path: Path, victim: Path) -> None:
    (tmp_path / ".made.tunesmith-tmp").symlink_to(victim.parent)
    with whole_folder(tmp_path / "made") as folder:
        (folder / "a").write_text("a")
    assert names(tmp_path / "made") == ["a"]
    assert names(victim.parent) == ["profile"]


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("name", ["evaluations.jsonl", "metrics.jsonl", "samples_during.jsonl"])
def test_a_line_is_not_added_through_a_link(run: Run, victim: Path, name: str, there: bool) -> None:
    if not there:
        victim.unlink()
    (run.folder / name).symlink_to(victim)
    with pytest.raises(RunError, match="is a link") as caught:
        run.append(name, {"step": 1})
    assert str(victim) in str(caught.value.why)
    assert str(run.folder / name) == caught.value.where
    assert victim.exists() == there
    assert not there or victim.read_text() == OWN


ENTRIES = (
    ".lock", ".lock.held", "metrics.jsonl", "evaluations.jsonl", "checkpoints", "set_aside", "functions", "start",
    "tensorboard", "checkpoints/step-000001", "checkpoints/.step-000001.tunesmith-old",
    "checkpoints/.step-000001.old", "functions/score.py", "start/a/b",
    "set_aside/step-000001", "mlflow.db", "wandb", "mlflow", "wandb/latest-run",
)  # fmt: skip


@pytest.mark.parametrize("name", ENTRIES)
def test_a_run_is_not_trained_in_whose_own_entry_is_a_link_and_the_remedy_works(
    run: Run, victim: Path, name: str
) -> None:
    for step in (1, 2, 3):
        (victim.parent / f"step-{step:06d}").mkdir()
    before = names(victim.parent)
    link = run.folder / name
    shutil.rmtree(link) if link.is_dir() else link.unlink(missing_ok=True)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(victim.parent if "." not in link.name[1:] else victim)
    with pytest.raises(RunError, match="is a link") as caught, run.lock():
        prune(run.folder / "checkpoints", keep=1, best=None)
    assert caught.value.where == str(link)
    assert "Remove the link" in str(caught.value.remedy)
    assert (names(victim.parent), victim.read_text()) == (before, OWN)
    link.unlink()
    with run.lock():
        assert run.is_held()


@pytest.mark.parametrize("linked", [False, True])
def test_checkpoints_that_were_moved_to_another_disk_go_on_as_the_message_says(
    run: Run, tmp_path: Path, linked: bool
) -> None:
    place = tmp_path / "a big disk" / "moved"
    (place / "step-000001").mkdir(parents=True)
    (place / "step-000001" / "weights").write_text("weights")
    (run.folder / "checkpoints").symlink_to(place)
    if linked:
        run.folder.rename(tmp_path / "elsewhere")
        run.folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="is a link") as caught, run.lock():
        pass
    told = str(caught.value.remedy)
    assert "output_dir on another disk" in told
    command = told.partition("make its name a link: ")[2].partition(". A new run")[0]
    subprocess.run(["sh", "-c", command], check=True, cwd=tmp_path)
    with run.lock():
        run.set_status("finished")
    assert [path.name for path in run.checkpoints] == ["step-000001"]
    assert (place.with_name("moved.run") / "checkpoints" / "step-000001" / "weights").read_text() == "weights"
    assert changes(run.folder) == {}


def test_a_run_folder_may_be_a_link_and_hold_links_of_the_user(run: Run, victim: Path, tmp_path: Path) -> None:
    (tmp_path / "big disk").mkdir()
    moved = run.folder.rename(tmp_path / "big disk" / "run")
    run.folder.symlink_to(moved)
    (run.folder / "checkpoints" / "step-000001").mkdir(parents=True)
    (run.folder / "checkpoints" / "best").symlink_to("step-000001")
    (run.folder / "notes").symlink_to(victim)
    (run.folder / "wandb" / "run-1").mkdir(parents=True)
    (run.folder / "wandb" / "latest-run").symlink_to("run-1")
    with run.lock():
        run.append("metrics.jsonl", {"step": 1})
        run.set_status("finished")
    assert run.status()["status"] == "finished"
    assert run.read_lines("metrics.jsonl") == [{"step": 1}]


WRITTEN = {
    "metrics.jsonl": lambda run: run.append("metrics.jsonl", {"step": 1}),
    "samples_during.jsonl": lambda run: run.append("samples_during.jsonl", {"step": 1}),
    "evaluations.jsonl": lambda run: run.append("evaluations.jsonl", {"step": 1}),
    "status.json": lambda run: run.set_status("finished"),
    "verdict.json": lambda run: run.write_json("verdict.json", {}),
    "recipe.yaml": lambda run: run.write_text("recipe.yaml", "model: m\n"),
    "manifest.json": lambda run: run.write_json("verdict.json", {}),
    ".status.json.tunesmith-0123abcd": lambda run: run.set_status("finished"),
    ".lock": lambda run: locked_once(run),
    "mlflow.db": lambda run: database_changed(run),
}


def locked_once(run: Run) -> None:
    for _ in range(2):
        with run.lock():
            assert run.is_held()
            assert run.holder() == f"{os.getpid()} on {os.uname().nodename}"
            with pytest.raises(RunError, match="Another process"), run.lock():
                pass


def database_changed(run: Run) -> None:
    with run.lock(), (run.folder / "mlflow.db").open("r+") as file:
        assert file.read() == OWN
        file.write("more")


@pytest.mark.parametrize("name", WRITTEN)
def test_a_file_of_the_users_that_has_a_name_in_the_run_too_stays_as_it_is(run: Run, victim: Path, name: str) -> None:
    own = '{"status": "running"}\n' if name == "status.json" else OWN
    victim.write_text(own)
    (run.folder / name).unlink(missing_ok=True)
    os.link(victim, run.folder / name)
    WRITTEN[name](run)
    assert victim.read_text() == own
    untouched = name == "manifest.json"  # it is no manifest, and a damaged one is never written
    assert not (run.folder / name).exists() or (run.folder / name).samefile(victim) == untouched
    if name in ("metrics.jsonl", "evaluations.jsonl", "samples_during.jsonl"):
        assert (run.folder / name).read_text() == own + '{"step": 1}\n'


def test_a_copy_of_a_run_by_hard_links_goes_on_without_changing_the_original(run: Run, tmp_path: Path) -> None:
    with run.lock():
        run.append("metrics.jsonl", {"step": 1})
    shutil.copytree(run.folder, tmp_path / "copy", copy_function=os.link)
    copy = Run(tmp_path / "copy")
    with copy.lock(), run.lock():
        copy.append("metrics.jsonl", {"step": 2})
        copy.set_status("finished")
    assert run.read_lines("metrics.jsonl") == [{"step": 1}]
    assert run.status()["status"] == "running"
    assert copy.read_lines("metrics.jsonl") == [{"step": 1}, {"step": 2}]


PLAIN = ("weights", "a/b.json", "$(touch x)", "a b")
ODD = ("", ".", "a//b", "./a", "a/", "/etc/passwd", "../x", "a/../../x", "a\nb", "a\x1b[31m", "a\x00b", "\u202ex")


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("part", ["files", "before"])
def test_a_manifest_with_a_name_that_is_none_is_damaged(tmp_path: Path, name: str, part: str) -> None:
    files = {"a": facts_of(b"a"), name: facts_of(b"x")}
    before = {name: None} if part == "before" else {}
    (tmp_path / "a").write_text("a")
    (tmp_path / MANIFEST).write_text(manifest._render(files, before))
    found = damage(tmp_path)
    assert list(found) == [MANIFEST]
    assert found[MANIFEST].isprintable()


def test_plain_names_that_are_not_there_are_missing(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(manifest._render({name: facts_of(b"x") for name in PLAIN}, {}))
    assert damage(tmp_path) == dict.fromkeys(PLAIN, "is missing")


def test_a_manifest_whose_former_file_is_in_no_list_is_damaged(run: Run) -> None:
    (run.folder / MANIFEST).write_text(manifest._render({}, {"status.json": facts_of(b"")}))
    assert list(changes(run.folder)) == [MANIFEST]
    run.set_status("finished")
    assert run.status()["status"] == "finished"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
@pytest.mark.parametrize(
    "name", [MANIFEST, "status.json", "recipe.yaml", "metrics.jsonl", "verdict.json", "evaluations.jsonl", ".lock"]
)
def test_a_pipe_or_a_folder_in_the_place_of_a_file_ends_in_a_message(run: Run, name: str, make: object) -> None:
    (run.folder / name).unlink(missing_ok=True)
    make(run.folder / name)  # type: ignore[operator]
    for act in (lambda: details(run.folder), lambda: summaries(run.folder), lambda: find_runs(run.folder), run.holder):
        try:
            act()
        except TunesmithError as error:
            assert error.remedy


@pytest.mark.parametrize("name", [".lock", "metrics.jsonl"])
def test_a_pipe_that_would_be_written_to_is_refused_and_the_remedy_works(run: Run, name: str) -> None:
    (run.folder / name).unlink(missing_ok=True)
    os.mkfifo(run.folder / name)
    assert not run.is_held()
    with pytest.raises(RunError, match="no plain file") as caught, run.lock():
        pass
    assert caught.value.where == str(run.folder / name)
    (run.folder / name).unlink()
    with run.lock():
        run.append("metrics.jsonl", {"step": 1})


def test_a_pipe_is_not_taken_for_the_file_that_a_manifest_lists(run: Run) -> None:
    run.write_json("verdict.json", {"verdict": "better"})
    (run.folder / "verdict.json").unlink()
    os.mkfifo(run.folder / "verdict.json")
    assert changes(run.folder) == {"verdict.json": "is no plain file"}
    assert json.loads((run.folder / MANIFEST).read_text())["files"].keys() >= {"verdict.json"}


def test_a_file_can_be_written_again_and_again(tmp_path: Path) -> None:
    for text in ("a", "b"):
        write_whole(tmp_path / "file", text)
    assert (names(tmp_path), (tmp_path / "file").read_text()) == (["file"], "b")
