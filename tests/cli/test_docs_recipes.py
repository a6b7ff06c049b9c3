"""The commands and recipes of docs/pretraining.md and docs/instruction-tuning.md, in the order of the page."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunesmith.runs.folder import Run

Command = Callable[..., Any]
ROOT = Path(__file__).parents[2]
RECIPE = re.compile(r"^```yaml\n(# (\S+\.yaml)\n.*?)^```$", re.DOTALL | re.MULTILINE)
LINE = re.compile(r"^    (tunesmith .*?)(?:  +#.*)?$", re.MULTILINE)
WORDS = ["kettle", "lamp", "drill", "scale", "headset"]


def page(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


@pytest.fixture
def followed(
    command: Command, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], dict[str, Any]]:
    """Does what a page says, in a folder like the repository's, with the tiny model; outcomes by command."""
    monkeypatch.setattr("tunesmith.planning.budget.threads", lambda: 1)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / "books").mkdir()
    for number in range(12):
        lines = [f"The {WORDS[(number + n) % 5]} of chapter {n} stood on shelf {number}." for n in range(16)]
        (tmp_path / "books" / f"{number}.txt").write_text("\n\n".join(lines))
    (tmp_path / "new.txt").write_text("".join(f"The {word} stands on shelf 7, box 2.\n" for word in WORDS))

    def follow(name: str) -> dict[str, Any]:
        for text, file in RECIPE.findall(page(name)):
            (tmp_path / file).write_text(text)
        for recipe in [*tmp_path.glob("*.yaml"), *(tmp_path / "examples").glob("*.yaml")]:
            recipe.write_text(recipe.read_text().replace("smollm2-135m-instruct", str(tiny_model_dir)))
        found = {}
        for line in LINE.findall(page(name)):
            monkeypatch.setattr(sys, "stdin", io.StringIO("Where is my scale?\n/exit\n"))
            found[line] = command(*shlex.split(line)[1:])
            assert found[line].code == 0, f"{line}\n{found[line].err}"
        return found

    return follow


@pytest.mark.slow
def test_continued_pretraining(followed: Callable[[str], dict[str, Any]], tmp_path: Path) -> None:
    found = followed("pretraining")
    assert len(found) == 7
    ledger = Run(tmp_path / "runs" / "books").read_json("ledger.json")
    books = ledger["sources"]["books"]
    shown = [
        line.strip() for line in page("pretraining").splitlines() if line.startswith(("    rows: ", "    split: "))
    ]
    assert shown == [
        f"rows: 12 read: {books['rows']['held_out']} held out, {books['rows']['trained']} trained",
        f"split: 12 of the rows, which are raw text, into {books['blocks']} blocks",
    ]
    assert books["tokens"]["too_long"] == 0 and books["split"] == 12
    verdict = Run(tmp_path / "runs" / "books").read_json("verdict.json")
    assert set(verdict["by_source"]) == {"books", "examples/tasks.jsonl"}
    lines = (tmp_path / "runs" / "books" / "samples.jsonl").read_text().splitlines()
    assert lines and all(json.loads(line)["source"].startswith("examples/tasks.jsonl:") for line in lines)
    assert Run(tmp_path / "runs" / "raw-text-full").read_json("verdict.json")["decided_by"] == "perplexity"


@pytest.mark.slow
def test_instruction_tuning(followed: Callable[[str], dict[str, Any]], tmp_path: Path) -> None:
    found = followed("instruction-tuning")
    assert len(found) == 8
    verdict = Run(tmp_path / "runs" / "mixed").read_json("verdict.json")
    assert list(verdict["metrics"]) == ["loss", "examples/rouge_l.py:rouge_l"]
    assert set(verdict["by_source"]) == {"examples/tasks.jsonl", "examples/tickets.jsonl"}
    (judged,) = [outcome for line, outcome in found.items() if line.startswith("tunesmith eval")]
    assert "rouge_l" in judged.out
    (talk,) = [outcome for line, outcome in found.items() if line.startswith("tunesmith chat")]
    assert talk.out, "an answer, of which a random model says nothing sure"


@pytest.mark.parametrize(
    ("answer", "truth", "score"),
    [
        ("the cat sat", "The cat sat.", 1.0),
        ("police killed the gunman", "police kill the gunman", 0.75),  # Lin 2004, section 3.1
        ("the gunman kill police", "police kill the gunman", 0.5),
        ("", "anything", 0.0),
        ("other", "words", 0.0),
    ],
)
def test_the_example_of_a_metric_is_rouge_l(answer: str, truth: str, score: float) -> None:
    sys.path.insert(0, str(ROOT))
    try:
        from examples.rouge_l import rouge_l
    finally:
        sys.path.remove(str(ROOT))
    assert rouge_l(answer, truth) == score
