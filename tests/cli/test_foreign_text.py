"""What stands in data and in runs of others cannot act on a terminal, a page, a picture or a card."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.cli.foreign import ACTS, ATTACK, OURS, foreign_run
from tests.cli.terminal.test_console import on_a_screen

from tunesmith.runs.overview import details

Command = Callable[..., Any]


@pytest.mark.parametrize(
    "asked",
    [["runs", "show", "RUN"], ["runs", "list", "."], ["runs", "watch", "RUN"], ["eval", "RUN"], ["train", "RUN"]],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_a_foreign_run_prints_nothing_that_acts(
    command: Command, tmp_path: Path, verdict: dict[str, Any], asked: list[str], as_json: bool
) -> None:
    run = foreign_run(tmp_path / f"run{ATTACK.replace('/', '')}", verdict)
    done = command(*[str(run.folder) if part == "RUN" else part for part in asked], *["--json"] * as_json)
    assert len(done.out + done.err) > 100
    assert ACTS.findall(done.out + done.err) == []
    if not as_json:  # a name cannot begin a line of its own
        assert not re.search(r"^error: x", done.out, re.MULTILINE)


def test_on_a_screen_only_our_own_styles_are_written(tmp_path: Path, verdict: dict[str, Any]) -> None:
    run = foreign_run(tmp_path / "run", verdict)
    program = f"from tunesmith.cli.app import main\nmain(['runs', 'show', {str(run.folder)!r}])"
    said = on_a_screen(program).replace("\r\n", "\n")
    assert "\x1b[1mmodel" in said and "OWNED" in said  # our styles are there, and the text of the attack
    assert "\x1b[35m" not in said
    assert ACTS.findall(OURS.sub("", said)) == []


@pytest.mark.parametrize("kind", ["svg", "html"])
def test_pictures_and_pages_of_a_foreign_run_hold_only_text(
    command: Command, tmp_path: Path, verdict: dict[str, Any], kind: str
) -> None:
    run = foreign_run(tmp_path / f"run{ATTACK.replace('/', '')}", verdict)
    assert command("runs", "curves", str(run.folder), "--out", f"curves.{kind}").code == 0
    page = (tmp_path / f"curves.{kind}").read_text(encoding="utf-8")
    shown = details(run.folder)._repr_html_()
    for text in (page, shown):
        assert "OWNED" in text and "<script>" not in text and "&lt;script&gt;" in text
        assert ACTS.findall(text) == []


def test_the_report_and_the_card_of_a_foreign_run_hold_only_text(
    command: Command, tmp_path: Path, verdict: dict[str, Any]
) -> None:
    run = foreign_run(tmp_path / f"run{ATTACK.replace('/', '')}", verdict)
    done = command("runs", "report", str(run.folder), "--html", "page.html", "--card", "card.md")
    assert done.code == 0 and ACTS.findall(done.out + done.err) == []
    for name in ("page.html", "card.md"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert "OWNED" in text and ACTS.findall(text) == []
    assert "<script>" not in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_file_of_rows_prints_nothing_that_acts_and_the_override_is_found(command: Command, tmp_path: Path) -> None:
    name = f"rows{ATTACK.replace('/', '')}.jsonl"
    rows = [{"prompt": f"ask {n} {ATTACK}", "completion": f"say {ATTACK}", ATTACK: n} for n in range(8)]
    (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = command("check", name, "--html", "page.html")
    assert "control_characters" in done.out and "8 rows with invisible characters" in done.out
    assert ACTS.findall(done.out + done.err) == []
    found = command("check", name, "--json")
    assert ACTS.findall(found.out + found.err) == [] and found.json["findings"]
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert ACTS.findall(page) == [] and "<script>" not in page
    assert command("prepare", name, "--out", "prepared").code == 0
    card = (tmp_path / "prepared" / "README.md").read_text(encoding="utf-8")
    assert ACTS.findall(card) == []
    assert "<script>" not in card.replace("\\<script\\>", "").partition("```yaml")[0]
    assert html.unescape(card).count("\nerror: x") == 0


@pytest.mark.parametrize("sign", [*"\u202a\u202b\u202d\u202e\u2066\u2067\u2068", "\u200f\u202e"])
def test_check_finds_every_override_of_direction(command: Command, tmp_path: Path, sign: str) -> None:
    rows = [{"prompt": f"ask {n}", "completion": f"file{sign}fdp.exe {n}"} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    done = command("check", "rows.jsonl")
    assert "control_characters: 8 rows" in done.out and sign not in done.out
