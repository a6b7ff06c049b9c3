"""Makes the pictures of docs/watching.md from a real run: ``make screenshots``, some minutes on a CPU.

The command runs on a pseudo-terminal, and what it sends there is kept as a screen would show it: in the middle of the
training and at the end. rich writes both as SVG; the curves are those of ``tunesmith runs curves``.

``python docs/screenshots.py RUN NAME PART ...`` makes those of docs/report.md from the report of a run: report-NAME.png
on a wide screen in light, and report-NAME-PART.png. A part is ``narrow`` (on a telephone in dark) or the id of a
section. It needs playwright and Chromium.
"""

from __future__ import annotations

import codecs
import fcntl
import io
import os
import pty
import re
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME
from rich.text import Text

HERE = Path(__file__).parent
COLUMNS, LINES = 100, 50
TRAIN = "tunesmith train examples/lora.yaml training.logging_steps=1 training.eval_steps=6"
CURVES = "tunesmith runs curves runs/example-lora --out curves.svg"
BAR = re.compile(r"training .* (\d+)/(\d+)")
TOKEN = re.compile(r"\x1b\[(?P<numbers>[?\d;]*)(?P<name>[A-Za-z])|(?P<move>[\r\n])|(?P<text>[^\x1b\r\n]+)")
WITHOUT_FONTS = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)  # they would be fetched


class Screen:
    """What a terminal shows of what it was sent, as far as rich and plain programs go. Rows never scroll away."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.rows: list[list[tuple[str, str]]] = [[]]  # (letter, the codes of its style)
        self._row = self._column = 0
        self._style = self._rest = ""

    def feed(self, text: str) -> None:
        """Takes what was sent next; a control sequence that is cut off waits for its end."""
        text = self._rest + text
        end = len(text) - 1 if text.endswith("\x1b") else text.rfind("\x1b[")
        cut = end >= 0 and TOKEN.match(text, end) is None
        self._rest, text = (text[end:], text[:end]) if cut else ("", text)
        for token in TOKEN.finditer(text):
            if token["text"]:
                self._write(token["text"])
            elif token["move"]:
                self._move(token["move"])
            else:
                self._control(token["name"], token["numbers"], token[0])

    def texts(self) -> list[str]:
        """The rows without their styles."""
        return ["".join(letter for letter, _ in row).rstrip() for row in self.rows]

    def styled(self) -> list[Text]:
        """The rows with their styles."""
        return [
            Text.from_ansi("".join(f"{style}{''.join(letter for letter, _ in run)}\x1b[0m" for style, run in groups))
            for groups in (groupby(row, key=lambda cell: cell[1]) for row in self.rows)
        ]

    def _write(self, text: str) -> None:
        for letter in text:
            if self._column >= self.columns:
                self._move("\r")
                self._move("\n")
            row = self.rows[self._row]
            row += [(" ", "")] * (self._column + 1 - len(row))
            row[self._column] = letter, self._style
            self._column += 1

    def _move(self, move: str) -> None:
        if move == "\r":
            self._column = 0
            return
        self._row += 1
        self.rows += [[] for _ in range(self._row + 1 - len(self.rows))]

    def _control(self, name: str, numbers: str, whole: str) -> None:
        if name == "m":
            self._style = "" if numbers in ("", "0") else self._style + whole
        elif name == "A":
            self._row = max(self._row - int(numbers or 1), 0)
        elif name == "K":
            self.rows[self._row] = [] if numbers == "2" else self.rows[self._row][: self._column]


def shown(command: str, folder: Path) -> tuple[list[Text], list[Text]]:
    """What a terminal shows of a training: when half of its steps are done, and when it has ended."""
    keeper, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}
    environment.pop("NO_COLOR", None)
    program, *arguments = shlex.split(command)
    argv = [str(Path(sys.executable).with_name(program)), *arguments]
    screen, halfway = Screen(COLUMNS), None
    decode = codecs.getincrementaldecoder("utf-8")().decode
    with subprocess.Popen(
        argv, stdin=terminal, stdout=terminal, stderr=terminal, cwd=folder, env=environment
    ) as process:
        os.close(terminal)
        while True:
            try:
                sent = os.read(keeper, 1 << 16)
            except OSError:  # Linux: the other side is closed
                break
            if not sent:
                break
            screen.feed(decode(sent))
            halfway = halfway or _if_halfway(screen)
    os.close(keeper)
    if process.returncode or halfway is None:
        raise SystemExit("\n".join([*screen.texts(), f"{command} ended with {process.returncode}"]))
    return halfway, screen.styled()


def _if_halfway(screen: Screen) -> list[Text] | None:
    for row, below in zip(screen.texts(), screen.texts()[1:], strict=False):
        if (bar := BAR.match(row)) and "eval loss" in below and 2 * int(bar[1]) >= int(bar[2]):
            return screen.styled()
    return None


def picture(rows: list[Text], title: str) -> str:
    """Rows of a terminal as SVG that fetches nothing."""
    while rows and not rows[-1].plain.strip():
        rows = rows[:-1]
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, highlight=False)
    for row in rows:
        console.print(row, no_wrap=True, overflow="crop", crop=True)
    console.print()  # else the letters of the last row are cut at their feet
    name = re.sub(r"\W+", "-", title)
    return console.export_svg(title=title, theme=SVG_EXPORT_THEME, code_format=WITHOUT_FONTS, unique_id=name)


def pages(run: Path, name: str, parts: list[str]) -> None:
    """The first screen of the report of a run, and parts of it."""
    from playwright.sync_api import sync_playwright  # pyright: ignore[reportMissingImports]  # only this needs it

    from tunesmith.deploy.report.files import report_run

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as started:
        (file,) = report_run(run, html=Path(folder) / "report.html")
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for part in ("", *parts):
            width, scheme = (390, "dark") if part == "narrow" else (1180, "light")
            page = browser.new_page(viewport={"width": width, "height": 1180}, color_scheme=scheme)
            page.goto(f"{file.as_uri()}#{part}")
            page.screenshot(path=HERE / f"report-{name}{part and '-'}{part}.png")
        browser.close()


def main() -> None:
    """Trains examples/lora.yaml in a folder of its own and writes the pictures beside this file."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(HERE.parent / "examples", folder / "examples")
        halfway, end = shown(TRAIN, folder)
        for file, rows in (("watching-training.svg", halfway), ("watching-verdict.svg", end)):
            (HERE / file).write_text(picture(rows, TRAIN), encoding="utf-8")
        for suffix in (".svg", *([".png"] if find_spec("matplotlib") else [])):
            program, *arguments = shlex.split(CURVES.replace(".svg", suffix))
            subprocess.run([Path(sys.executable).with_name(program), *arguments], cwd=folder, check=True)
            shutil.copy(folder / f"curves{suffix}", HERE / f"watching-curves{suffix}")


if __name__ == "__main__":
    pages(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]) if len(sys.argv) > 2 else main()
