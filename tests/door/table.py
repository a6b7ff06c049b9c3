"""What Tunesmith does with each real file, as a Markdown table.

    python -m tests.door.table [--out FILE] [--train] [NAME ...]

Each file is written into a temporary folder and opened as a user does in a pipe. ``--train`` trains the recipe on a
tiny random model through to a verdict; without it only the dry run is made.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from tests.door.files import FILES, write
from tests.door.opening import Opened, build_tiny_model, open_file, train
from tests.door.real_file import RealFile

HEADINGS = ("file", "what init said", "recipe trains unchanged", "rows as meant", "verdict or message")
LONGEST = 260  # characters of a cell


def table(files: list[RealFile], folder: Path, *, trains: bool) -> list[tuple[str, ...]]:
    """A row for each file."""
    model = folder / "model"
    build_tiny_model(model)
    return [_row(file, folder, model, trains=trains) for file in files]


def _row(file: RealFile, folder: Path, model: Path, *, trains: bool) -> tuple[str, ...]:
    missing = [name for name in file.needs if find_spec(name) is None]
    if missing:
        return (file.name, f"not written: {', '.join(missing)} is not installed", "", "", "")
    path = write(file, folder / "files")
    print(file.name, file=sys.stderr)
    home = folder / "work" / file.name
    opened = open_file(file, path, model=model, home=home)
    said = opened.first.line.replace(str(path), file.path).replace(str(folder), "")
    return (file.name, said, *_result(file, opened, home, trains=trains))


def _result(file: RealFile, opened: Opened, home: Path, *, trains: bool) -> tuple[str, str, str]:
    if opened.init.code:
        return "refused", "", f"exit code {opened.init.code}"
    second = "" if opened.init is opened.first else "after the named command: "
    if not opened.trains:
        said = opened.dry_run.line if opened.dry_run else ""
        return f"{second}no", _rows_in_words(file, opened), said
    if not trains:
        return f"{second}yes (dry run)", _rows_in_words(file, opened), ""
    done, verdict = train(home)
    return (
        f"{second}yes" if done.code == 0 else f"{second}no",
        _rows_in_words(file, opened),
        verdict or done.line[-LONGEST:],
    )


def _rows_in_words(file: RealFile, opened: Opened) -> str:
    if not opened.rows:
        return "NO: no row could be prepared"
    found = opened.init.json["rows"]
    count = "" if found == file.rows else f", {found} for {file.rows} rows"
    shape = f"{opened.shape}, not {file.shape}" if opened.shape != file.shape else opened.shape
    return ("yes" if opened.holds(file) else "NO") + f": {shape}{count}"


def in_markdown(rows: list[tuple[str, ...]]) -> str:
    """The table as text."""
    lines = [HEADINGS, tuple("---" for _ in HEADINGS), *rows]
    return "".join("| " + " | ".join(map(_cell, line)) + " |\n" for line in lines)


def _cell(text: str) -> str:
    text = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
    return text.replace("|", "¦").replace("\n", " ")


def main() -> None:
    """Reads the command line and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.door.table")
    parser.add_argument("names", nargs="*", help="only these files")
    parser.add_argument("--out", type=Path, help="write the table into this file too")
    parser.add_argument("--train", action="store_true", help="train each recipe on a tiny model")
    asked = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    files = [file for file in FILES if not asked.names or file.name in asked.names]
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("TUNESMITH_CACHE", str(Path(folder) / "cache"))
        text = in_markdown(table(files, Path(folder), trains=asked.train))
    print(text)
    if asked.out:
        asked.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
