"""Asks git for the state of a folder, and lets nothing run that the repository configures.

A repository may be somebody else's, and its `.git/config` names programs: core.fsmonitor, filters, hooks, remote
helpers. `git rev-parse` runs none of them. `git status` would, so it gets a git folder of our own, which has the commit
and a few harmless settings. The real one lends its objects and its index, and nothing is written to it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tunesmith.runs.child_processes import clean_environment, find_program
from tunesmith.runs.temporary import temporary_folder

SECONDS = 10.0
LARGEST_EXCLUDE = 2**20  # bytes of .git/info/exclude
# Settings that change what counts as a change, and that name no program.
HARMLESS = (
    "core.filemode", "core.symlinks", "core.ignorecase", "core.precomposeunicode", "core.autocrlf", "core.eol",
    "core.excludesfile", "extensions.objectformat",
)  # fmt: skip


def git_state(folder: Path) -> dict[str, Any] | None:
    """The commit, and whether the work tree differs from it. None outside a repository or without git."""
    program = find_program("git")
    if program is None:
        return None
    try:
        asked = ("--show-toplevel", "--absolute-git-dir", "--git-common-dir", "HEAD")
        root, own, common, commit = _ask(program, folder, "rev-parse", *asked).rstrip("\n").split("\n")
        settings = _settings(_ask(program, folder, "config", "--list", "-z"))
        with temporary_folder("tunesmith-git-") as scratch:
            lender = Path(os.path.abspath(folder), common)  # which may be relative to the folder
            changes = _changes(program, Path(root), Path(own), lender, commit, settings, scratch)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": bool(changes.strip())}


def _ask(program: str, folder: Path, *arguments: str, **variables: str) -> str:
    """What git prints. It asks nobody, fetches nothing and takes no lock."""
    quiet = {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "GIT_NO_LAZY_FETCH": "1", "GIT_PAGER": "cat"}
    safe = ["-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}"]
    done = subprocess.run(
        [program, "-C", os.path.abspath(folder), *safe, *arguments],
        env=clean_environment(**quiet, **variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        timeout=SECONDS,
        check=True,
    )
    return done.stdout


def _settings(listed: str) -> dict[str, str]:
    """The harmless ones among all settings. The last value of a name counts."""
    found = {}
    for entry in listed.split("\0"):
        name, line_end, value = entry.partition("\n")
        if name in HARMLESS:
            found[name] = value if line_end else "true"
    return found


def _as_setting(name: str, value: str) -> str:
    """A setting as git's file of settings has it. Nothing in the value ends the value."""
    section, _, key = name.partition(".")
    for character, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\t", "\\t")):
        value = value.replace(character, escaped)
    return f'[{section}]\n\t{key} = "{value}"\n'


def _changes(
    program: str, root: Path, own: Path, common: Path, commit: str, settings: dict[str, str], scratch: Path
) -> str:
    """`git status`, from a git folder that is written into ``scratch``."""
    (scratch / "refs").mkdir()
    (scratch / "HEAD").write_text(f"{commit}\n", encoding="ascii")
    version = "1" if "extensions.objectformat" in settings else "0"
    written = {"core.repositoryformatversion": version, "core.bare": "false", **settings}
    text = "".join(map(_as_setting, written, written.values()))
    (scratch / "config").write_text(text, encoding="utf-8", errors="surrogateescape")
    exclude = common / "info" / "exclude"
    if exclude.is_file() and exclude.stat().st_size <= LARGEST_EXCLUDE:
        (scratch / "info").mkdir()
        shutil.copyfile(exclude, scratch / "info" / "exclude")
    for shared in own.glob("sharedindex.*"):
        (scratch / shared.name).symlink_to(shared)
    return _ask(
        program,
        root,
        "status",
        "--porcelain",
        "--ignore-submodules=dirty",  # else git runs in each submodule, with its settings
        GIT_DIR=str(scratch),
        GIT_WORK_TREE=str(root),
        GIT_OBJECT_DIRECTORY=str(common / "objects"),
        GIT_INDEX_FILE=str(own / "index"),
        GIT_CONFIG_GLOBAL=os.devnull,
        GIT_CONFIG_NOSYSTEM="1",
        GIT_ATTR_NOSYSTEM="1",
    )
