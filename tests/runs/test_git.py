"""git is asked for the state of a folder, and nothing that the folder configures runs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.canaries import Canary

from tunesmith.runs.git import git_state

AS_AUTHOR = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}


def git(folder: Path, *arguments: str, check: bool = True) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    settings = ["-c", "protocol.file.allow=always", "-c", "init.defaultBranch=main"]
    done = subprocess.run(
        ["git", "-C", str(folder), *settings, *arguments],
        env={**clean, **AS_AUTHOR, "GIT_CONFIG_NOSYSTEM": "1"},
        capture_output=True,
        text=True,
        check=check,
        timeout=60,
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return new_repository(tmp_path / "repository")


def new_repository(folder: Path) -> Path:
    """A repository with two files and one commit."""
    folder.mkdir(parents=True)
    git(folder, "init", "-q")
    (folder / "rows.jsonl").write_text("{}\n")
    (folder / "note.txt").write_text("note\n")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "first")
    return folder


@pytest.fixture
def canary(tmp_path: Path) -> Canary:
    return Canary(tmp_path / "sang")


def touched(folder: Path) -> None:
    """The files look changed, so that git reads them again."""
    for file in folder.rglob("*"):
        if file.is_file() and ".git" not in file.parts:
            os.utime(file, (1, 1))


Payload = Callable[[Path, Canary], None]
PAYLOADS: dict[str, tuple[Payload, bool]] = {}  # the flag: plain `git status` runs it, which shows that the bait works


def payload(*, status_runs_it: bool) -> Callable[[Payload], Payload]:
    def keep(function: Payload) -> Payload:
        PAYLOADS[function.__name__] = (function, status_runs_it)
        return function

    return keep


@payload(status_runs_it=True)
def file_monitor(folder: Path, canary: Canary) -> None:
    git(folder, "config", "core.fsmonitor", f"{canary.shell()}; false")


@payload(status_runs_it=True)
def file_monitor_script(folder: Path, canary: Canary) -> None:
    git(folder, "config", "core.fsmonitor", str(canary.script(folder / ".git" / "monitor")))


@payload(status_runs_it=True)
def clean_filter(folder: Path, canary: Canary) -> None:
    (folder / ".gitattributes").write_text("* filter=own\n")
    git(folder, "config", "filter.own.clean", f"{canary.shell()}; cat")


@payload(status_runs_it=True)
def process_filter(folder: Path, canary: Canary) -> None:
    (folder / ".gitattributes").write_text("* filter=own\n")
    git(folder, "config", "filter.own.process", canary.shell())
    git(folder, "config", "filter.own.required", "true")


@payload(status_runs_it=True)
def filter_of_hidden_attributes(folder: Path, canary: Canary) -> None:
    (folder / ".git" / "info").mkdir(exist_ok=True)
    (folder / ".git" / "info" / "attributes").write_text("* filter=own\n")
    git(folder, "config", "filter.own.clean", f"{canary.shell()}; cat")


@payload(status_runs_it=True)
def filter_named_like_a_known_one(folder: Path, canary: Canary) -> None:
    (folder / ".gitattributes").write_text("* filter=lfs diff=lfs merge=lfs -text\n")
    git(folder, "config", "filter.lfs.clean", f"{canary.shell()}; cat")


@payload(status_runs_it=True)
def filter_of_an_attributes_file(folder: Path, canary: Canary) -> None:
    (folder / ".git" / "more").write_text("* filter=own\n")
    git(folder, "config", "core.attributesFile", str(folder / ".git" / "more"))
    git(folder, "config", "filter.own.clean", f"{canary.shell()}; cat")


@payload(status_runs_it=True)
def hook_after_the_index(folder: Path, canary: Canary) -> None:
    canary.script(folder / ".git" / "hooks" / "post-index-change")


@payload(status_runs_it=True)
def hooks_elsewhere(folder: Path, canary: Canary) -> None:
    canary.script(folder / "hooks" / "post-index-change")
    git(folder, "config", "core.hooksPath", str(folder / "hooks"))


@payload(status_runs_it=True)
def included_settings(folder: Path, canary: Canary) -> None:
    git(folder, "config", "--file", str(folder / "more"), "core.fsmonitor", f"{canary.shell()}; false")
    git(folder, "config", "include.path", str(folder / "more"))


@payload(status_runs_it=True)
def included_by_a_condition(folder: Path, canary: Canary) -> None:
    git(folder, "config", "--file", str(folder / "more"), "core.fsmonitor", f"{canary.shell()}; false")
    git(folder, "config", f"includeIf.gitdir:{folder}/.path", str(folder / "more"))


@payload(status_runs_it=True)
def settings_of_a_work_tree(folder: Path, canary: Canary) -> None:
    git(folder, "config", "extensions.worktreeConfig", "true")
    git(folder, "config", "--worktree", "core.fsmonitor", f"{canary.shell()}; false")


@payload(status_runs_it=True)
def git_folder_elsewhere(folder: Path, canary: Canary) -> None:
    (folder / ".git").rename(folder / "hidden")
    (folder / ".git").write_text("gitdir: hidden\n")
    git(folder, "config", "core.fsmonitor", f"{canary.shell()}; false")


@payload(status_runs_it=True)
def settings_of_a_submodule(folder: Path, canary: Canary) -> None:
    other = folder.with_name("other")
    other.mkdir()
    git(other, "init", "-q")
    (other / "file").write_text("x")
    git(other, "add", "-A")
    git(other, "commit", "-qm", "x")
    git(folder, "submodule", "add", "-q", str(other), "part")
    git(folder, "commit", "-qm", "with a part")
    git(folder / "part", "config", "core.fsmonitor", f"{canary.shell()}; false")


@payload(status_runs_it=True)
def objects_of_a_remote(folder: Path, canary: Canary) -> None:
    git(folder, "config", "remote.origin.url", f"ext::sh -c {canary.shell().replace(' ', '% ')}")
    git(folder, "config", "remote.origin.promisor", "true")
    git(folder, "config", "protocol.ext.allow", "always")
    git(folder, "config", "extensions.partialClone", "origin")
    git(folder, "config", "core.repositoryFormatVersion", "1")
    tree = git(folder, "rev-parse", "HEAD^{tree}")
    (folder / ".git" / "objects" / tree[:2] / tree[2:]).unlink()


def named_program(*settings: str) -> Payload:
    def plant(folder: Path, canary: Canary) -> None:
        (folder / ".gitattributes").write_text("* diff=own merge=own\n")
        for name in settings:
            git(folder, "config", name, canary.shell())

    return plant


def _own_status(folder: Path, canary: Canary) -> None:
    git(folder, "config", "alias.status", f"!{canary.shell()}")


OTHER_PROGRAMS = [
    "core.pager", "pager.status", "core.editor", "core.sshCommand", "core.askPass", "core.gitProxy",
    "credential.helper", "diff.external", "diff.own.command", "diff.own.textconv", "merge.own.driver", "gpg.program",
    "sequence.editor", "uploadpack.packObjectsHook", "core.alternateRefsCommand", "interactive.diffFilter",
]  # fmt: skip
PAYLOADS |= {name: (named_program(name), False) for name in OTHER_PROGRAMS}
PAYLOADS["alias.status"] = (_own_status, False)


@pytest.mark.parametrize("name", PAYLOADS)
def test_no_program_that_a_repository_names_runs(name: str, repository: Path, canary: Canary) -> None:
    plant, status_runs_it = PAYLOADS[name]
    plant(repository, canary)
    canary.mark.unlink(missing_ok=True)  # what git itself ran while this was prepared
    touched(repository)
    found = git_state(repository)
    assert canary.heard == []
    assert found is None or len(found["commit"]) == 40
    if status_runs_it:
        touched(repository)
        git(repository, "status", "--porcelain", check=False)
        assert canary.heard != []


ENVIRONMENTS = {
    "GIT_EXEC_PATH": "{folder}/programs",
    "GIT_CONFIG_GLOBAL": "{folder}/settings",
    "GIT_CONFIG_SYSTEM": "{folder}/settings",
    "GIT_DIR": "{folder}/.git",
    "GIT_EXTERNAL_DIFF": "{folder}/programs/own",
    "GIT_SSH_COMMAND": "{folder}/programs/own",
    "GIT_ASKPASS": "{folder}/programs/own",
    "GIT_PAGER": "{folder}/programs/own",
    "PATH": ".:/usr/bin:/bin",
    "PATH ": ":/usr/bin:/bin",
    "PATH  ": "programs:/usr/bin:/bin",
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_no_program_that_the_environment_finds_in_the_folder_runs(
    name: str, repository: Path, canary: Canary, monkeypatch: pytest.MonkeyPatch
) -> None:
    for program in ("git", "git-status", "git-rev-parse", "git-config", "own"):
        canary.script(repository / program)
        canary.script(repository / "programs" / program)
    git(repository, "config", "--file", str(repository / "settings"), "core.fsmonitor", f"{canary.shell()}; false")
    monkeypatch.setenv(name.strip(), ENVIRONMENTS[name].format(folder=repository))
    monkeypatch.chdir(repository)
    found = git_state(Path.cwd())
    assert canary.heard == []
    assert found is not None and found["dirty"]


def test_changes_are_those_that_git_reports(repository: Path) -> None:
    commit = git(repository, "rev-parse", "HEAD")

    def dirty() -> bool:
        found = git_state(repository / "inside")
        assert found is not None and found["commit"] == commit
        assert found["dirty"] == bool(git(repository, "status", "--porcelain"))
        return found["dirty"]

    (repository / "inside").mkdir()
    assert not dirty()
    touched(repository)
    assert not dirty()
    (repository / "rows.jsonl").write_text("[]\n")
    assert dirty()
    git(repository, "checkout", "-q", "rows.jsonl")
    assert not dirty()
    (repository / "new").write_text("x")
    assert dirty()
    (repository / ".git" / "info").mkdir(exist_ok=True)
    (repository / ".git" / "info" / "exclude").write_text("new\n")
    assert not dirty()
    (repository / "note.txt").chmod(0o755)
    assert dirty()
    git(repository, "config", "core.fileMode", "false")
    assert not dirty()
    (repository / "note.txt").write_bytes(b"note\r\n")
    assert dirty()
    git(repository, "config", "core.autocrlf", "true")
    git(repository, "update-index", "--really-refresh", check=False)
    assert dirty() == bool(git(repository, "status", "--porcelain"))


def test_a_value_of_a_setting_ends_where_it_ends(repository: Path, canary: Canary) -> None:
    (repository / 'odd "name\\').write_text("rows.jsonl\n")
    for path in (
        'odd "name\\',
        f'x"\n[core]\n\tfsmonitor = "{canary.shell()}',
        f"x\n[core]\n\tfsmonitor = {canary.shell()}",
    ):
        git(repository, "config", "core.excludesFile", path)
        touched(repository)
        assert git_state(repository) is not None
        assert canary.heard == []
    git(repository, "rm", "-q", "--cached", "rows.jsonl")
    git(repository, "commit", "-qm", "second")
    git(repository, "config", "core.excludesFile", str(repository / 'odd "name\\'))
    (repository / ".git" / "info" / "exclude").write_text("odd*\n")
    assert git_state(repository) == {"commit": git(repository, "rev-parse", "HEAD"), "dirty": False}


def test_a_linked_work_tree_and_another_kind_of_hash_are_read(tmp_path: Path, repository: Path) -> None:
    git(repository, "worktree", "add", "-q", str(tmp_path / "linked"), "-b", "linked")
    found = git_state(tmp_path / "linked")
    assert found == {"commit": git(repository, "rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "linked" / "new").write_text("x")
    found = git_state(tmp_path / "linked")
    assert found is not None and found["dirty"]
    longer = tmp_path / "longer"
    longer.mkdir()
    git(longer, "init", "-q", "--object-format=sha256")
    (longer / "file").write_text("x")
    git(longer, "add", "-A")
    git(longer, "commit", "-qm", "x")
    assert git_state(longer) == {"commit": git(longer, "rev-parse", "HEAD"), "dirty": False}


def test_nothing_is_written_to_the_repository(repository: Path) -> None:
    touched(repository)
    before = {file: file.stat().st_mtime_ns for file in (repository / ".git").rglob("*")}
    git_state(repository)
    assert {file: file.stat().st_mtime_ns for file in (repository / ".git").rglob("*")} == before
