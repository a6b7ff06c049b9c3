"""A damaged file is noticed, whichever it is. A kill, a file that grows and a removal on purpose are no damage."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.faults.damage import damages

from tunesmith.errors import RunError
from tunesmith.runs import manifest
from tunesmith.runs.folder import Run
from tunesmith.runs.manifest import MANIFEST, changes, damage, refuse_damaged, sha256_of, take_off, write_manifest


def filled(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(os.urandom(200))
    (folder / "inner").mkdir()
    (folder / "inner" / "config.json").write_text('{"a": 1}\n')
    (folder / "empty").touch()
    write_manifest(folder)
    return folder


def a_run(folder: Path) -> Run:
    folder.mkdir()
    run = Run(folder)
    run.write_text("recipe.yaml", "model: m\n")
    run.set_status("running", step=0)
    for step in (1, 2):
        run.append("metrics.jsonl", {"step": step})
    run.seal("metrics.jsonl", "samples_during.jsonl")
    run.append("metrics.jsonl", {"step": 3})
    run.write_json("verdict.json", {"verdict": "better"})
    run.set_status("finished")
    return run


def spoil(path: Path, content: bytes | None) -> None:
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)


def test_every_damage_to_a_folder_is_noticed_and_named(tmp_path: Path) -> None:
    folder = filled(tmp_path / "step")
    assert damage(folder) == {}
    for name in ("weights", "inner/config.json", "empty", MANIFEST):
        whole = (folder / name).read_bytes()
        for what, content in damages(whole):
            spoil(folder / name, content)
            if (name, content) == (MANIFEST, None):
                assert not manifest.has_manifest(folder), "this is a folder without a manifest"
                continue
            assert list(damage(folder)) == [name], what
        (folder / name).write_bytes(whole)
    assert damage(folder) == {}


def test_every_damage_to_a_run_is_noticed_and_named(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    assert (changes(run.folder), run.notes()) == ({}, [])
    sealed = len(b'{"step": 1}\n{"step": 2}\n')
    for name in ("recipe.yaml", "status.json", "metrics.jsonl", "verdict.json", MANIFEST):
        whole = (run.folder / name).read_bytes()
        for what, content in damages(whole, within=sealed if name == "metrics.jsonl" else None):
            spoil(run.folder / name, content)
            if (name, content) == (MANIFEST, None):
                assert "has no manifest.json" in run.notes()[0]
                continue
            assert list(changes(run.folder)) == [name], what
            assert len(run.notes()) == 1
            assert name in run.notes()[0]
        spoil(run.folder / name, whole)
    assert run.notes() == []


def test_a_file_that_is_read_is_verified_and_the_way_out_works(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    (run.folder / "verdict.json").write_text('{"verdict": "worse"}\n')
    with pytest.raises(RunError, match=r"verdict\.json is damaged") as caught:
        run.read_json("verdict.json")
    assert f"remove {run.folder / MANIFEST}" in str(caught.value.remedy)
    (run.folder / MANIFEST).unlink()
    assert run.read_json("verdict.json") == {"verdict": "worse"}


def test_lines_that_are_gone_or_changed_are_noticed_and_new_ones_are_not_damage(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    assert [line["step"] for line in run.read_lines("metrics.jsonl")] == [1, 2, 3]
    (run.folder / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(RunError, match=r"metrics\.jsonl is damaged"):
        run.drop_after("metrics.jsonl", 1)
    (run.folder / "metrics.jsonl").unlink()
    with pytest.raises(RunError, match="It is missing"):
        run.read_lines("metrics.jsonl")
    run.drop_after("metrics.jsonl", 0)  # the run starts again from its first step
    assert run.read_lines("metrics.jsonl") == []
    assert run.notes() == []


def test_a_kill_at_any_moment_of_a_write_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file that is written whole, the manifest among them, is there or not when the process dies."""

    def work(run: Run) -> None:
        run.write_json("verdict.json", {"verdict": "worse"})
        run.write_json("new.json", {})
        run.drop_after("metrics.jsonl", 1)
        run.append("metrics.jsonl", {"step": 2})
        run.seal("metrics.jsonl")
        run.set_status("finished", step=2)

    real, count = manifest.write_whole, 0
    for last in range(40):
        run, left = a_run(tmp_path / str(last)), [last]

        def dies(path: Path, content: Any, left: list[int] = left) -> None:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            real(path, content)

        monkeypatch.setattr(manifest, "write_whole", dies)
        monkeypatch.setattr("tunesmith.runs.folder.write_whole", dies)
        try:
            work(run)
        except KeyboardInterrupt:
            count += 1
        monkeypatch.undo()
        assert changes(run.folder) == {}, last
        assert run.read_json("verdict.json")["verdict"] in ("better", "worse")
        work(run)
        assert changes(run.folder) == {}, last
    assert 8 <= count < 40, "every moment was tried"


def test_a_file_that_was_written_and_is_gone_is_noticed_although_it_was_new(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    (run.folder / "verdict.json").unlink()
    assert changes(run.folder) == {"verdict.json": "is missing"}


def test_the_last_file_that_a_command_writes_is_missed_when_it_is_gone(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for name in ("first.json", "last.json"):
        run.write_json(name, {"a": 1})
    run.settle()
    assert changes(tmp_path) == {}
    (tmp_path / "last.json").unlink()
    assert changes(tmp_path) == {"last.json": "is missing"}


def test_processes_that_write_at_once_lose_no_entry(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    code = (
        "import sys\nfrom tunesmith.runs.folder import Run\nrun = Run(sys.argv[1])\n"
        "for number in range(20):\n    run.write_json(f'{sys.argv[2]}-{number}.json', number)\n"
    )
    working = [subprocess.Popen([sys.executable, "-c", code, str(run.folder), name]) for name in "abc"]
    assert [process.wait(60) for process in working] == [0, 0, 0]
    listed = manifest._parse((run.folder / MANIFEST).read_bytes())[0]
    assert {f"{name}-{number}.json" for name in "abc" for number in range(20)} <= listed.keys()
    assert changes(run.folder) == {}


def test_a_file_that_is_taken_off_is_no_damage_and_one_that_is_lost_is(tmp_path: Path) -> None:
    folder = filled(tmp_path / "step")
    take_off(folder, "empty")
    assert not (folder / "empty").exists()
    assert damage(folder) == {}
    (folder / "weights").unlink()
    assert damage(folder) == {"weights": "is missing"}


def test_a_refusal_names_the_newest_other_checkpoint_that_is_whole(tmp_path: Path) -> None:
    first, second, third = (filled(tmp_path / "run" / "checkpoints" / f"step-00000{n}") for n in (1, 2, 3))
    for folder in (second, third):
        (folder / "weights").write_bytes(b"x" * 200)
    with pytest.raises(RunError) as caught:
        refuse_damaged(third)
    assert caught.value.what == "The checkpoint is damaged"
    assert caught.value.where == str(third)
    assert caught.value.why == "weights has other content than was written."
    assert caught.value.remedy is not None
    assert caught.value.remedy.startswith(f"Name {first}, which is whole. ")
    assert f"`tunesmith train {tmp_path / 'run'} --resume`" in caught.value.remedy
    (third / MANIFEST).unlink()
    assert refuse_damaged(third) == {}, "as the message says"


def test_a_foreign_manifest_reads_nothing_outside_of_its_folder(tmp_path: Path) -> None:
    folder = filled(tmp_path / "step")
    os.mkfifo(folder / "pipe")
    facts = {"bytes": 0, "sha256": "0" * 64}
    for name in ("../secret", "/etc/passwd"):
        (folder / MANIFEST).write_text(manifest._render({name: facts}, {}))
        assert "outside of the folder" in damage(folder)[MANIFEST]
    (folder / MANIFEST).write_text(manifest._render({"pipe": facts}, {}))
    assert damage(folder) == {"pipe": "is missing"}  # and nobody waits for somebody to write to it
    for text in ("[" * 100_000, "[]", '{"files": []}', '{"files": {"a": 1}, "sha256": "x"}', "\x00"):
        (folder / MANIFEST).write_text(text)
        assert list(damage(folder)) == [MANIFEST]


def test_a_large_file_is_hashed_once_in_a_process_while_it_stays_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, read = tmp_path / "weights", []
    real = manifest._sha256
    monkeypatch.setattr(manifest, "_sha256", lambda path: read.append(path) or real(path))
    file.write_bytes(b"one")
    assert sha256_of(file) == sha256_of(file)
    assert len(read) == 2, "it has just been written and may change within a tick of the clock"
    os.utime(file, (1, 1))
    assert sha256_of(file) == sha256_of(file)
    assert len(read) == 3
    file.write_bytes(b"two")
    os.utime(file, (2, 2))
    assert sha256_of(file) == real(file)


def test_a_damaged_manifest_is_never_written_anew(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    whole = (run.folder / MANIFEST).read_bytes()
    for what, content in damages(whole):
        if content is None:
            continue
        spoil(run.folder / MANIFEST, content)
        run.append("evaluations.jsonl", {"a": 1})
        assert list(run.seal("evaluations.jsonl")) == [MANIFEST], what
        run.write_lines("evaluation_samples.jsonl", [{"a": 1}])
        run.set_status("finished", step=2)
        run.settle()
        assert (run.folder / MANIFEST).read_bytes() == content, what
        assert "so no file of the run can be verified" in run.notes()[0]
    spoil(run.folder / MANIFEST, whole)  # a good copy, as the note says
    run.set_status("finished")
    assert changes(run.folder) == {}
    assert run.unverified() == ["evaluation_samples.jsonl", "evaluations.jsonl"]


def test_a_manifest_that_was_begun_after_the_run_says_what_it_does_not_list(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    assert run.unverified() == []
    (run.folder / MANIFEST).unlink()
    run.append("evaluations.jsonl", {"a": 1})
    run.seal("evaluations.jsonl")
    names = ["recipe.yaml", "metrics.jsonl", "verdict.json", "status.json"]
    assert run.unverified() == names
    assert run.notes() == [f"{run.folder / MANIFEST} does not list {', '.join(names)}: they cannot be verified"]


@pytest.mark.parametrize("name", manifest.GROWING)
def test_a_line_that_changed_is_not_sealed_over(tmp_path: Path, name: str) -> None:
    run = a_run(tmp_path / "run")
    run.append(name, {"loss": 5.7})
    assert run.seal(name) == {}
    whole = (run.folder / name).read_bytes()
    for what, content in damages(whole):
        if content is not None:
            spoil(run.folder / name, content)
            run.append(name, {"loss": 1.0})
            assert list(run.seal(name)) == [name], what
            assert list(changes(run.folder)) == [name], what
    spoil(run.folder / name, whole)
    run.append(name, {"loss": 1.0})
    assert run.seal(name) == {}
    assert changes(run.folder) == {}


@pytest.mark.parametrize("name", manifest.GROWING)
def test_a_kill_between_a_line_and_its_seal_is_no_damage(tmp_path: Path, name: str) -> None:
    run = a_run(tmp_path / "run")
    run.append(name, {"a": 1})
    run.seal(name)
    code = (
        "import os, signal, sys\nfrom tunesmith.runs.folder import Run\nrun = Run(sys.argv[1])\n"
        "run.append(sys.argv[2], {'a': 2})\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(run.folder), name]).returncode == -9
    assert (changes(run.folder), run.notes()) == ({}, [])
    assert run.read_lines(name)[-2:] == [{"a": 1}, {"a": 2}]
    assert run.seal(name) == {}
    assert changes(run.folder) == {}
