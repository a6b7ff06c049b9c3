"""Writes the report and the model card of a run: at its end into its folder, and later wherever the user says."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tunesmith.deploy.model_card import run_card
from tunesmith.deploy.report.page import run_report
from tunesmith.deploy.report.run_facts import RunFacts, run_facts
from tunesmith.errors import ExportError, RunError, TunesmithError
from tunesmith.runs.disk import disk_errors
from tunesmith.runs.folder import Run
from tunesmith.runs.outputs import check_file, write_output, wrote
from tunesmith.runs.plain_files import refuse_links
from tunesmith.runs.progress import Listener
from tunesmith.runs.run_files import CARD, REPORT
from tunesmith.runs.whole_files import place_for, why_not

_FLAGS = {REPORT: "--html", CARD: "--card"}


def report_run(run: str | Path, *, html: str | Path | None = None, card: str | Path | None = None) -> list[Path]:
    """Writes the report and the model card of a run, and gives the files that were written.

    Without a file, both are made again in the folder of the run. A file that Tunesmith did not write, or that was
    changed since, is never replaced.

    Args:
        run: the run folder.
        html: the file for the report, one HTML page that needs nothing else.
        card: the file for the model card, Markdown with the metadata that model hubs read.

    Raises:
        RunError: there is no run, or a file of it is damaged.
        ExportError: the file cannot be written, or is not Tunesmith's.
    """
    opened = Run.open(run)
    refuse_links(opened.folder, (REPORT, CARD))
    named: list[tuple[str | Path, str]] = [(file, flag) for file, flag in ((html, "--html"), (card, "--card")) if file]
    if not named:
        named = [(opened.folder / name, flag) for name, flag in _FLAGS.items()]
    places = [(place_for(file), flag) for file, flag in named]
    own = [path for path in opened.folder.rglob("*") if path.name not in (REPORT, CARD)]
    for place, flag in places:
        check_file(place, inputs=own, overwrite=True, flag=flag)
    if len(places) > 1 and places[0][0].absolute() == places[1][0].absolute():
        raise ExportError("Both files have the same name", where=str(card), remedy="Name another --card.")
    facts = run_facts(opened)
    for place, flag in places:
        _write(facts, place, flag)
    return [place for place, _ in places]


def report_at_end(run: Run, listener: Listener) -> None:
    """Writes both into the folder of a run that has ended. Whatever goes wrong is said, and the run stays complete.

    A file that the user changed stays as it is, which is said. A bug is told with its type and text, and `runs report`
    shows it whole.
    """
    _report(run, (REPORT, CARD), listener)


def report_again(run: Run, listener: Listener) -> None:
    """The same for those of the two that the run has, once there is more to tell, such as a result of `eval`."""
    names = [name for name in (REPORT, CARD) if os.path.lexists(run.folder / name)]
    if names:
        _report(run, names, listener)


def _report(run: Run, names: Sequence[str], listener: Listener) -> None:
    try:
        with disk_errors(run.folder, RunError):
            refuse_links(run.folder, names)
            files = {run.folder / name: _FLAGS[name] for name in names}
            kept = [file for file in files if os.path.lexists(file) and not wrote(file)]
            facts = run_facts(run) if len(kept) < len(files) else None
            for file, flag in files.items():
                if facts is not None and file not in kept:
                    _write(facts, file, flag)
            for file in kept:
                listener.say(
                    f"{file} stays as it is: Tunesmith did not write it, or it was changed since. "
                    f"`tunesmith runs report {run.folder} {files[file]} FILE` writes one of now"
                )
    except TunesmithError as error:
        why = f" ({error.why.rstrip('.')})" if error.why else ""
        listener.warn(
            f"{REPORT} and {CARD} were not written: {error.what}{why}. The run is complete without them. "
            f"`tunesmith runs report {run.folder}` makes them again"
        )
    except Exception as error:  # noqa: BLE001 - a bug must not make a finished run look like one that failed
        listener.warn(
            f"{REPORT} and {CARD} were not written: this is a bug in Tunesmith ({type(error).__name__}: {error}). The "
            f"run is complete without them. Please report the bug: `tunesmith runs report {run.folder}` shows it whole"
        )


def lacks_report(run: Run) -> bool:
    """Whether one of the files that are made at the end is missing."""
    return not all(os.path.lexists(run.folder / name) for name in (REPORT, CARD))


def _write(facts: RunFacts, file: Path, flag: str) -> None:
    content = run_report(facts) if flag == "--html" else run_card(facts)
    try:
        write_output(file, content, marked=flag == "--card")
    except OSError as error:
        raise ExportError(
            "the file cannot be written", where=str(file), why=why_not(file, error), remedy=f"Name another {flag}."
        ) from error
