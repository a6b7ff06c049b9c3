"""`merge` against a fake library: what it asks of it, what it prints, and its exit code."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from tests.cli.conftest import replace_module

from tunesmith.cli.docs import JSON_KEYS
from tunesmith.errors import ExportError

Command = Callable[..., Any]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the library was asked; it merges at once, but nothing called bad."""
    calls: list[dict[str, Any]] = []

    def merge(target: str, out: str, *, listener: Any, **settings: Any) -> Any:
        calls.append({"target": target, "out": out, **settings})
        listener.say("comparing logits on 4 held-out rows")
        if target == "bad":
            raise ExportError("the merged model does not answer as the tuned model does", remedy="none")
        written = SimpleNamespace(relative=2.5e-6, largest=1e-5, agreement=0.9975, positions=1234)
        facts = dict.fromkeys(JSON_KEYS["merge"], 1)
        return SimpleNamespace(
            folder=out, written=written, tolerance=1e-4, files=2, bytes=3_210_000_000, dtype="bfloat16",
            to_json=lambda: facts,
        )  # fmt: skip

    replace_module(monkeypatch, "deploy.merge", SimpleNamespace(merge=merge))
    return calls


def test_merge_tells_how_close_it_is_and_what_was_written(command: Command, asked: list[dict[str, Any]]) -> None:
    outcome = command("merge", "runs/rows", "--out", "plain")
    assert outcome.code == 0
    assert outcome.out.splitlines() == [
        "comparing logits on 4 held-out rows",
        "logits differ by 2.5e-06 of their spread (limit 0.0001); the likeliest token is the same at 99.75% "
        "of 1,234 positions",
        "plain: 3.21 GB in 2 files, bfloat16. Next: `tunesmith generate plain --prompt TEXT`",
    ]
    defaults = {"dtype": "auto", "data": None, "max_shard_size": "5GB", "overwrite": False, "model": None}
    assert asked == [
        {"target": "runs/rows", "out": "plain", "trust_remote_code": False, "allow_changes": (), **defaults}
    ]


def test_every_flag_reaches_the_library(command: Command, asked: list[dict[str, Any]]) -> None:
    flags = [
        "--dtype",
        "float16",
        "--data",
        "rows.jsonl",
        "--max-shard-size",
        "500MB",
        "--overwrite",
        "--model",
        "base",
        "--trust-remote-code",
        "--allow-changes",
        "weights,config",
        "--json",
    ]
    outcome = command("merge", "adapter", "--out", "plain", *flags)
    assert list(outcome.json) == list(JSON_KEYS["merge"]) and len(outcome.out.splitlines()) == 1
    expected = {"dtype": "float16", "data": "rows.jsonl", "max_shard_size": "500MB", "overwrite": True, "model": "base"}
    allowed = {"trust_remote_code": True, "allow_changes": "weights,config"}
    assert asked == [{"target": "adapter", "out": "plain", **allowed, **expected}]


@pytest.mark.parametrize(
    "flags", [("--dtype", "float32"), ("--data", "x.csv"), ("--max-shard-size", "rubbish"), ("--data", "", "--json")]
)
def test_flags_of_a_merge_are_refused_where_nothing_is_merged(command: Command, flags: tuple[str, ...]) -> None:
    outcome = command("merge", "adapter", "--out", "both", "--keep-adapter", *flags)
    assert outcome.code == 2
    said = " ".join(f"{outcome.err} {outcome.out}".replace("│", " ").split())
    assert f"{flags[0]} goes with a merge, and --keep-adapter merges nothing" in said


def test_a_merge_that_is_refused_exits_with_1(command: Command, asked: list[dict[str, Any]]) -> None:
    outcome = command("merge", "bad", "--out", "plain", "--json")
    assert outcome.code == 1 and outcome.json["error"] == "ExportError"


def test_the_folder_and_a_known_dtype_are_needed(command: Command, asked: list[dict[str, Any]]) -> None:
    assert command("merge", "runs/rows").code == 2
    assert command("merge", "runs/rows", "--out", "plain", "--dtype", "int8").code == 2
    assert asked == []


def test_a_recipe_in_the_place_of_its_run_names_the_run_before_torch_is_needed(
    command: Command, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    replace_module(monkeypatch, "deploy.merge", SimpleNamespace())  # has nothing that could merge
    (tmp_path / "r.yaml").write_text("model: m\ndata: {train: rows.jsonl}\noutput_dir: runs/rows\n")
    outcome = command("merge", "r.yaml", "--out", "plain")
    assert outcome.code == 1
    assert "this is a recipe, and no run or model" in outcome.err
    assert "`tunesmith train r.yaml` makes its run, runs/rows" in outcome.err
    (tmp_path / "runs/rows").mkdir(parents=True)
    (tmp_path / "runs/rows/status.json").write_text("{}")
    for line in (["merge", "r.yaml", "--out", "plain"], ["eval", "r.yaml"], ["generate", "r.yaml", "--prompt", "x"]):
        assert "did you mean its run, runs/rows?" in command(*line).err
