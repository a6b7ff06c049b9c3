"""What stands in data and in runs of others cannot act on a terminal, a page, a picture or a card."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.cli.terminal.test_console import on_a_screen

from tunesmith.runs.folder import Run
from tunesmith.runs.overview import details

Command = Callable[..., Any]
# A title, a colour, a cleared screen, CSI in one byte, a link, a reversed line, an isolate, a new line, markup.
ATTACK = "\x1b]0;OWNED\x07\x1b[35m\x1b[2J\x9b35m\x1b]8;;http://x\x1b\\link\u202efdp\u2066a\r\nerror: x\x7f\b<script>"
ACTS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
OURS = re.compile(r"\x1b\[(?:0|1|2|3|[39][0-7]|1;3[0-7])?m")  # styles


def foreign_run(folder: Path, verdict: dict[str, Any]) -> Run:
    """A run whose every text is the attack."""
    run = Run(folder)
    run.folder.mkdir(parents=True)
    recipe = {"model": f"m{ATTACK}", "data": {"train": f"rows{ATTACK}.jsonl"}, "output_dir": "x"}
    run.write_text("recipe.yaml", json.dumps(recipe))
    facts = {"base": 0.0, "tuned": 1.0, "difference": 1.0, "interval": [0.5, 1.0], "verdict": ATTACK, "reason": ATTACK}
    found = {**verdict, "decided_by": ATTACK, "reason": ATTACK, "metrics": {ATTACK: facts}, "base_model": ATTACK}
    run.write_json("verdict.json", found)
    asked = {"time": ATTACK, "target": ATTACK, "data": ATTACK, "settings": [ATTACK]}
    run.write_lines("evaluations.jsonl", [{**found, **asked}])
    run.write_json("ledger.json", {"rows": {"read": 3, "held_out": 1, "trained": 2, ATTACK: 1}})
    steps = [{"step": step, "loss": 1.0 / step, "learning_rate": 0.1} for step in (1, 2)]
    run.write_lines("metrics.jsonl", [*steps, {"step": 2, "eval_loss": 1.0, "eval_loss_by_source": {ATTACK: 1.0}}])
    sample = {"step": 2, "source": ATTACK, "prompt": ATTACK, "truth": ATTACK, "answer": ATTACK, "stopped": True}
    run.write_lines("samples_during.jsonl", [sample])
    run.set_status("failed", step=2, total_steps=2, seconds=1.0, error={"what": ATTACK})  # and a time of its own
    run.write_json("status.json", {**run.status(), "updated": ATTACK})
    (run.folder / "checkpoints" / f"step-{ATTACK.replace('/', '')}").mkdir(parents=True)
    return run


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
