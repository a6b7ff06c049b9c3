"""The run folder: the recipe, the data, the versions and the results of a run, as plain files.

recipe.yaml        every setting, resolved          ledger.json     where each row went
environment.json   versions, git, threads           metrics.jsonl   a line each logging step and evaluation
data.json          sources and their hashes         samples.jsonl   answers of base and tuned model, side by side
template.json      the chat template as used        verdict.json    better, no evidence, or worse
memory.json        peak, predicted and measured     status.json     the state of the run
samples_during.jsonl   an answer at each validation
evaluations.jsonl      what `eval` measured later
comparisons.jsonl      what `compare` measured with this run as the first
evaluation_samples.jsonl   the answers of the newest of these
report.html, model_card.md   the report and the model card, made from the other files
manifest.json      size and sha256 of each of these files
checkpoints/step-NNNNNN/   each with its own manifest.json
set_aside/         damaged checkpoints, which are not used
"""

from __future__ import annotations

import difflib
import json
import os
import shlex
import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO, Literal

from tunesmith.errors import RunError
from tunesmith.recipe.paths import expanded
from tunesmith.runs.checkpoint_names import checkpoint_name, checkpoints_in
from tunesmith.runs.disk import naming
from tunesmith.runs.locks import holder, is_locked, is_shared, locked, stand_in
from tunesmith.runs.manifest import (
    GROWING,
    MANIFEST,
    changes,
    expect,
    has_manifest,
    in_words,
    open_checked,
    read_checked,
    seal,
    settle,
    unlisted,
)
from tunesmith.runs.plain_files import FOLDERS, refuse_links
from tunesmith.runs.run_files import (
    ANSWERS,
    COMPARISONS,
    DATABASE,
    HALF_WRITTEN,
    KEEPING,
    LATER,
    LOCK,
    OF_LOCK,
    PROBE,
    RECIPE,
    STATUS,
    WRITTEN_WHOLE,
)
from tunesmith.runs.stored_json import most_text, parsed, too_large, whole_lines
from tunesmith.runs.whole_files import is_half_written, part_from_others, remove_half_written, why_not, write_whole

_KEEPING_TRIES = 80  # of a quarter of a second each (see ``locks``)
State = Literal["starting", "running", "finished", "failed", "stopped"]
_FACTS: dict[str, type | tuple[type, ...]] = {  # of status.json, where they are known
    "status": str, "updated": str, "asked": dict, "started_in": str, "step": int, "total_steps": int,
    "judged_step": int, "seconds": (int, float), "tokens": dict, "best": dict, "selection": dict, "error": dict,
}  # fmt: skip


class Run:
    """One run folder. Files are replaced as a whole or appended to line by line, so no reader sees half a file."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(expanded(folder))

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """An existing run. Raises RunError if there is none."""
        run = cls(folder)
        if not run.exists():
            raise run._no_run(str(folder))
        return run

    def _no_run(self, named: str) -> RunError:
        missing = not self.folder.exists()
        near = difflib.get_close_matches(self.folder.name, [run.folder.name for run in find_runs(self.folder.parent)])
        remedy = (
            "Name a folder that `tunesmith train` has written; `tunesmith runs list FOLDER` shows those in a folder."
        )
        if not missing and (self.folder / RECIPE).is_file():
            remedy = "If it was copied or moved, put the missing file into it, too."
        elif near:
            remedy = f"Did you mean {' or '.join(str(self.folder.parent / name) for name in near)}?"
        return RunError(
            "This folder holds no run",
            where=named,
            why="There is no such folder." if missing else "A run folder has a recipe.yaml and a status.json.",
            remedy=remedy,
        )

    def exists(self) -> bool:
        """Whether a run has begun in this folder. One that was killed during its set-up has not."""
        try:
            return self.status().get("status", "starting") != "starting"
        except RunError:  # damaged, but still a run: reading it says so
            return True

    def check_free(self, *, overwrite: bool) -> None:
        """Raises RunError if a new run here would overwrite anything that the user has not given up."""
        with _access(self.folder):
            if not self.folder.exists() or (self.folder.is_dir() and _is_empty(self.folder)):
                return
        if not self.folder.is_dir():
            raise RunError("The output folder is a file", where=str(self.folder), remedy="Name another output_dir.")
        try:
            ours = bool(self.status())
        except RunError as error:
            if overwrite and (self.folder / RECIPE).is_file():
                return
            raise RunError(
                "The output folder already holds a run",
                where=str(self.folder),
                why=f"{error.what}: {error.why}",
                remedy="Add --overwrite to replace it, or name another output_dir."
                if (self.folder / RECIPE).is_file()
                else "Name another output_dir.",
            ) from None
        if not ours:
            raise RunError(
                "The output folder holds files that are not a run",
                where=str(self.folder),
                why="Tunesmith overwrites only its own runs.",
                remedy="Name another output_dir.",
            )
        if self.exists() and not overwrite:
            raise RunError(
                "The output folder already holds a run",
                where=str(self.folder),
                why=f"Its status is: {self.status().get('status', 'unknown')}.",
                remedy="Add --resume to continue or finish it, --overwrite to replace it, or name another output_dir.",
            )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Reserves the folder for this process. A folder that was made for it goes again if nothing was written to it.

        Raises RunError if another process works in it, it takes no files, or what is written there is a link.
        """
        existed, lock = self.folder.exists(), self.folder / LOCK
        with ExitStack() as held:
            with _access(self.folder):
                refuse_links(self.folder, (*OF_LOCK, *GROWING, *DATABASE), FOLDERS)
                try:
                    held.enter_context(locked(lock))
                except BlockingIOError:
                    raise self._held() from None
                with self.keeping() if (self.folder / KEEPING).exists() else nullcontext():
                    remove_half_written(self.folder, HALF_WRITTEN)
                for name in DATABASE:
                    part_from_others(self.folder / name)
            try:
                yield
            except BaseException:
                if not existed:
                    with suppress(OSError):  # it holds more, or is not there any more
                        if _is_empty(self.folder):
                            lock.unlink()  # while it is held: whoever waits for it looks whether it is still there
                            self.folder.rmdir()
                raise

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Inside, no other process adds a result to this run. A training does not hold it, and goes on beside it.

        Raises OSError if the folder takes no files, or another process has held it for too long.
        """
        with ExitStack() as held:
            for left in reversed(range(_KEEPING_TRIES)):
                try:
                    held.enter_context(locked(self.folder / KEEPING))
                    break
                except BlockingIOError:
                    if not left:
                        raise
            yield

    def _held(self) -> RunError:
        lock, ended = self.folder / LOCK, stand_in(self.folder / LOCK)
        shared = is_shared(lock)
        return RunError(
            "Another process works in this run folder",
            where=str(self.folder),
            why=f"It is held by process {self.holder()}."
            + (f" {lock} is also in another folder (a hard link, as of cp -al)." if shared else ""),
            remedy="Wait for it, stop it, or name another output_dir."
            + (f" If that process has ended, remove {ended}." if ended.exists() else "")
            + (f" If that process works in the other folder, and not in this one, remove {lock}." if shared else ""),
        )

    def is_held(self) -> bool:
        """Whether a process works in the folder. It keeps the lock until it ends, in whatever way."""
        return is_locked(self.folder / LOCK)

    def holder(self) -> str:
        """The process that works in the folder, such as `123 on host`, or `unknown`."""
        return holder(self.folder / LOCK)

    def clear(self, *, keep: Collection[str] = ()) -> None:
        """Removes what a run has written. After a kill in the middle, the folder still counts as Tunesmith's."""
        (self.folder / MANIFEST).unlink(missing_ok=True)  # else it would call the new status damaged
        write_whole(self.folder / STATUS, '{"status": "starting"}\n')  # the first file, so not in a manifest
        for entry in self.folder.iterdir():
            if entry.name in (*OF_LOCK, STATUS, *keep):
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def write_json(self, name: str, value: Any) -> None:
        """Replaces a JSON file whole."""
        self.write_bytes(name, _encoded(json.dumps(value, indent=2, ensure_ascii=False) + "\n"))

    def write_text(self, name: str, text: str) -> None:
        """Replaces a text file whole."""
        self.write_bytes(name, text.encode())

    def write_bytes(self, name: str, content: bytes) -> None:
        """Replaces a file whole, and notes its sha256."""
        expect(self.folder, name, content)
        write_whole(self.folder / name, content)

    def seal(self, *names: str) -> dict[str, str]:
        """Notes the sha256 of files that lines are added to. Lines that are added later count from the next seal on.

        Returns the files of which it is not noted, because their earlier lines have changed, or the manifest has.
        """
        return seal(self.folder, *names)

    def settle(self) -> None:
        """Call it after the last file that a command writes: from then on its former content is damage."""
        settle(self.folder)

    def check(self, name: str) -> bytes | None:
        """The content of a file, None if there is none. Raises RunError if it is not as the run wrote it."""
        content, why = read_checked(self.folder, name)
        if why is not None:
            raise self.damaged(name, f"It {why}.", own=True)
        return content

    def way_to_start_over(self, *, lacks: str | None = None) -> str:
        """The command that does it, which needs nothing but this folder if the recipe there is not what it lacks."""
        kept = lacks != RECIPE and (self.folder / RECIPE).is_file()
        named = shlex.quote(str(self.folder)) if kept else "RECIPE"
        return f"`tunesmith train {named} --overwrite`"

    def damaged(self, name: str, why: str, *, own: bool = False) -> RunError:
        """That a file of this run cannot be used, and what to do about it. ``own``: the user may have changed it."""
        changed = f" If you changed it yourself, remove {self.folder / MANIFEST}: the files are then used as they are."
        other = (
            f"start over with {self.way_to_start_over(lacks=name)}. Checkpoints are not affected: copy this folder "
            "first to keep them."
        )
        if name in (*LATER, ANSWERS, PROBE):
            command = "compare" if name == COMPARISONS else "eval"
            other = f"remove it: the next `tunesmith {command}` makes it anew. The training and its verdict are whole."
        return RunError(
            f"{name} is damaged",
            where=str(self.folder / name),
            why=why,
            remedy=f"Put a good copy of {name} back, or {other}{changed if own else ''}",
        )

    def unverified(self) -> list[str]:
        """Files of the run that its manifest does not list, because it was begun after them. They are not compared."""
        found = unlisted(self.folder, (*(name for name in WRITTEN_WHOLE if name != MANIFEST), *LATER))
        return found if any(name not in GROWING for name in found) else []

    def notes(self, *, besides: Collection[str] = ()) -> list[str]:
        """Files that are not as the run wrote them, in one sentence, if there are any; or that this is not known."""
        if not has_manifest(self.folder):
            return [f"{self.folder} has no {MANIFEST}, as runs of earlier versions: its files cannot be verified"]
        found = {name: why for name, why in changes(self.folder).items() if name not in besides}
        notes = []
        if MANIFEST in found:
            notes = [
                f"{self.folder / MANIFEST} {found.pop(MANIFEST)}, so no file of the run can be verified. Put a good "
                "copy of it back, or remove it: the files are then used as they are"
            ]
        if found:
            notes.append(
                f"{self.folder} has files that are not as the run wrote them: {in_words(found)}. If the change is "
                f"yours, remove {self.folder / MANIFEST}"
            )
        if names := self.unverified():
            notes.append(f"{self.folder / MANIFEST} does not list {', '.join(names)}: they cannot be verified")
        return notes

    def notes_on(self, checkpoint: Path) -> list[str]:
        """That a checkpoint of this run cannot be verified, if its run can."""
        if has_manifest(checkpoint) or not has_manifest(self.folder):
            return []
        return [f"{checkpoint} has no {MANIFEST}, so its files cannot be verified"]

    def read_json(self, name: str) -> Any:
        """A JSON file of this run. Raises RunError if it is missing or damaged."""
        content, changed = read_checked(self.folder, name)
        if content is None and changed is not None and (self.folder / name).exists():
            raise self.damaged(name, f"It {changed}.")
        if content is None:
            raise RunError(
                f"This run has no {name}",
                where=str(self.folder),
                why=f"Its status is: {self.status().get('status', 'unknown')}." if name != STATUS else None,
                remedy=f"Put {name} back, or train again with {self.way_to_start_over(lacks=name)}."
                if self.status().get("status") == "finished"
                else "Finish the run with `tunesmith train RECIPE --resume`.",
            )
        if changed is not None and name != STATUS:  # a status that can be read is used, and ``notes`` says so
            raise self.damaged(name, f"It {changed}.", own=True)
        try:
            return parsed(content)
        except (ValueError, RecursionError) as error:
            raise self.damaged(name, str(error)) from None

    def write_lines(self, name: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Replaces a file of JSON lines as a whole."""
        self.write_bytes(name, lines_of_json(records))

    def append(self, name: str, record: Mapping[str, Any]) -> None:
        """Adds one JSON line. An unfinished last line, as a kill or a full disk leaves it, goes first."""
        assert name in GROWING, "else a kill before the next seal would be damage"
        line = _encoded(json.dumps(record, ensure_ascii=False) + "\n")
        refuse_links(self.folder, [name])
        part_from_others(self.folder / name)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with naming(self.folder / name), open(os.open(self.folder / name, flags, 0o666), "ab+") as file:
            end = file.seek(0, 2)
            file.seek(max(end - 1, 0))
            if file.read() not in (b"", b"\n"):
                file.truncate(_end_of_lines(file, end))
            file.write(line)

    def read_lines(self, name: str) -> list[dict[str, Any]]:
        """The JSON lines of a file, without an unfinished last line. It is empty if there is no such file.

        Raises RunError if a line is damaged.
        """
        return list(self.lines(name))

    def lines(self, name: str) -> Iterator[dict[str, Any]]:
        """The same, one at a time, so that no more is read after a line that the caller refuses."""
        with open_checked(self.folder, name) as (file, why):
            if why is None and file is not None:
                why = too_large(os.fstat(file.fileno()).st_size, most_text())
            if why is not None:
                raise self.damaged(name, f"It {why}.", own=True)
            try:
                for line in whole_lines(file) if file is not None else ():
                    record = parsed(line)
                    if not isinstance(record, dict):
                        raise ValueError("Some line is not a JSON object.")
                    yield record
            except (ValueError, RecursionError) as error:
                raise self.damaged(name, str(error)) from None

    def drop_after(self, name: str, step: int, *, validated: bool = True) -> None:
        """Keeps the JSON lines up to a step. A run that continues computes the later ones again.

        Args:
            validated: whether the step's own validation is done; otherwise its lines are dropped, too.
        """

        def stays(line: Mapping[str, Any]) -> bool:
            of_validation = "eval_loss" in line or "answer" in line
            return line.get("step", 0) < step + (validated or not of_validation)

        self.write_lines(name, filter(stays, self.read_lines(name)) if step else [])

    def status(self) -> dict[str, Any]:
        """The content of status.json. It is empty before the run has begun. Raises RunError if it is damaged."""
        if not (self.folder / STATUS).is_file():
            return {}
        status = self.read_json(STATUS)
        if not isinstance(status, dict):
            raise self.damaged(STATUS, "It is not a JSON object.")
        for name, kind in _FACTS.items():
            if status.get(name) is not None and not isinstance(status[name], kind):
                raise self.damaged(STATUS, f"{name} is {json.dumps(status[name])[:60]}.")
        return status

    def fact(self, name: str) -> Any:
        """A fact that status.json of such a run must have. Raises RunError if it is not there."""
        value = self.status().get(name)
        if value is None:
            raise self.damaged(STATUS, f"It lacks {name}.")
        return value

    def set_status(self, status: State, **facts: Any) -> None:
        """Records the state of the run. Earlier facts stay, except the error of an earlier attempt."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        known = {name: value for name, value in self.status().items() if name != "error"}
        self.write_json(STATUS, {**known, "status": status, "updated": now, **facts})

    def checkpoint(self, step: int) -> Path:
        """The folder of a step's checkpoint, whether it is there or not."""
        return self.folder / "checkpoints" / checkpoint_name(step)

    @property
    def checkpoints(self) -> list[Path]:
        """Complete checkpoint folders, oldest first."""
        return checkpoints_in(self.folder / "checkpoints")

    @property
    def result(self) -> Path | None:
        """The checkpoint of the judged step once that is known, or the newest one."""
        judged = self.status().get("judged_step")
        if judged is not None and self.checkpoint(judged) in self.checkpoints:
            return self.checkpoint(judged)
        return (self.checkpoints or [None])[-1]


def way_to_checkpoint(run: Run) -> str:
    """What to do about a run without a checkpoint."""
    if run.status().get("status") == "finished":
        return f"Put its folder `checkpoints` back, or train again with {run.way_to_start_over()}."
    return "Let it train to its first save, or finish it with `tunesmith train RECIPE --resume`."


@contextmanager
def _access(folder: Path) -> Iterator[None]:
    """An OSError becomes a RunError that names the run folder."""
    try:
        yield
    except OSError as error:
        raise RunError(
            "Nothing can be written to the output folder",
            where=str(folder),
            why=why_not(folder, error),
            remedy="Set output_dir to a folder that you can write to, such as output_dir=runs/new.",
        ) from error


def lines_of_json(records: Iterable[Mapping[str, Any]]) -> bytes:
    """A file of JSON lines."""
    return _encoded("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def _encoded(text: str) -> bytes:
    """JSON in UTF-8. Half a character, as in a name that is not UTF-8, is written as JSON does: ``\\udcff``."""
    return text.encode(errors="backslashreplace")


def _end_of_lines(file: BinaryIO, end: int) -> int:
    """Where the last whole line ends. It is looked for from the end, in parts."""
    while end > 0:
        begin = max(end - 2**20, 0)
        file.seek(begin)
        if (found := file.read(end - begin).rfind(b"\n")) >= 0:
            return begin + found + 1
        end = begin
    return 0


def _is_empty(folder: Path) -> bool:
    """Whether nothing is in the folder but what a process left that was killed before its first file was whole."""
    return all(entry.name in OF_LOCK or is_half_written(entry, [STATUS]) for entry in folder.iterdir())


def find_runs(folder: str | Path) -> list[Run]:
    """Runs in a folder and one level below it, by name."""
    root = Path(expanded(folder))
    candidates = [root, *sorted(path for path in root.iterdir() if path.is_dir())] if root.is_dir() else []
    return [run for run in map(Run, candidates) if run.exists()]
