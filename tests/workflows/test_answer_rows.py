"""Many rows at once: read as for training, answered as one by one, and written beside the rows."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tunesmith.data.files.prompt_rows import open_prompts
from tunesmith.data.files.reader import open_source
from tunesmith.data.files.rows import Row
from tunesmith.deploy import tuned
from tunesmith.errors import DataError, ExportError, RecipeError
from tunesmith.recipe.data import SourceSettings
from tunesmith.runs.progress import Silent
from tunesmith.workflows import answer_rows as module
from tunesmith.workflows.answer_rows import AnsweredRows, answer_rows
from tunesmith.workflows.answers_so_far import place_of
from tunesmith.workflows.finetune import train

WORDS = ["red", "green", "blue", "white"]
ASKED = "Which colour is it?"
SHORT: dict[str, Any] = {"max_new_tokens": 4}


def run_of(folder: Path, model: Path, rows: Sequence[dict[str, Any]], **data: Any) -> Path:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values: dict[str, Any] = {
        "model": str(model),
        "data": {"train": str(folder / "rows.jsonl"), "eval": 0.25, **data},
        "method": {"name": "lora", "r": 2},
        "training": {"max_steps": 1, "batch_size": 4, "report_to": "none", "threads": 1},
        "evaluation": {"resamples": 100, "samples": 0},
        "output_dir": str(folder / "run"),
    }
    return train(values).run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A run whose rows are texts with labels, under one instruction."""
    rows = [{"thing": f"{WORDS[n % 4]} hat {n}", "colour": WORDS[n % 4]} for n in range(16)]
    columns = {"input": "thing", "output": "colour"}
    return run_of(tmp_path_factory.mktemp("rows"), tiny_model_dir, rows, columns=columns, instruction=ASKED)


class Heard(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    warn = say


def things(folder: Path, count: int = 6) -> Path:
    """A table with the question's column only, and one that training did not have."""
    file = folder / "in.csv"
    file.write_text("id,thing\n" + "".join(f'{n},"{WORDS[n % 4]} hat, size {n}"\n' for n in range(count)))
    return file


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as text:
        return list(csv.DictReader(text))


def test_each_row_has_the_answer_that_it_gets_alone(run: Path, tmp_path: Path) -> None:
    data, out = things(tmp_path, 20), tmp_path / "out.csv"
    heard = Heard()
    found = answer_rows(run, str(data), out, settings=SHORT, listener=heard)
    model, rows = tuned.load(run), read(out)
    assert [{name: row[name] for name in ("id", "thing")} for row in rows] == read(data)
    assert [row["answer"] for row in rows] == [model.generate(row["thing"], **SHORT)[0].text for row in rows]
    assert (found.rows, found.columns, found.bad, found.instruction) == (20, ["answer"], [], ASKED)
    assert any(ASKED in line for line in heard.lines), "what goes before each prompt is said"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "out.csv"], "nothing else is left"


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "ndjson", "json", "parquet", "xlsx"])
def test_every_format_holds_the_same_answers_and_can_be_trained_on(run: Path, tmp_path: Path, ending: str) -> None:
    out = tmp_path / f"out.{ending}"
    answer_rows(run, str(things(tmp_path)), out, settings=SHORT)
    answer_rows(run, str(things(tmp_path)), tmp_path / "plain.csv", settings=SHORT)
    source = SourceSettings(path=str(out), columns={"prompt": "thing", "completion": "answer"})
    back = [row.fields for part in open_source(source).parts for row in part.rows() if isinstance(row, Row)]
    assert back == read(tmp_path / "plain.csv")


def test_values_of_all_kinds_go_through_every_format(run: Path, tmp_path: Path) -> None:
    rows = [
        {"thing": "=1+1\n\u00e9 \u0007", "nested": {"a": [1, None]}, "number": 1, "mixed": "x", "empty": None},
        {"thing": "a\tb,\"c\"", "nested": {"a": []}, "number": 2.5, "mixed": 3},
    ]  # fmt: skip
    data = tmp_path / "in.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for ending in ("jsonl", "json", "parquet", "csv", "tsv", "xlsx"):
        out = tmp_path / f"out.{ending}"
        answer_rows(run, str(data), out, settings=SHORT)
        source = SourceSettings(path=str(out), columns={"prompt": "thing", "completion": "answer"})
        back = [row.fields for part in open_source(source).parts for row in part.rows() if isinstance(row, Row)]
        if ending != "xlsx":  # where a control character is written as _x0007_
            assert [row["thing"] for row in back] == [row["thing"] for row in rows], ending
        assert len(back) == 2 and str(back[0]["thing"]).startswith("=1+1"), "a text, no formula"
        if ending in ("jsonl", "json"):
            assert [{name: row[name] for name in row if name != "answer"} for row in back] == rows


def stopped_after(monkeypatch: pytest.MonkeyPatch, chunks: int) -> None:
    """Makes the work end as by Ctrl-C after some chunks."""
    right, calls = module.generate, []

    def generate(*args: Any, **how: Any) -> Any:
        calls.append(1)
        if len(calls) > chunks:
            raise KeyboardInterrupt
        return right(*args, **how)

    monkeypatch.setattr(module, "generate", generate)


@pytest.mark.parametrize("sampled", [{}, {"do_sample": True, "num_return_sequences": 2}])
def test_a_second_call_goes_on_and_gives_the_same_bytes(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampled: dict[str, Any]
) -> None:
    monkeypatch.setattr(module, "CHUNK", 3)
    data, settings = str(things(tmp_path, 10)), {**SHORT, **sampled}
    answer_rows(run, data, tmp_path / "whole.csv", settings=settings)
    out = tmp_path / "out.csv"
    with monkeypatch.context() as patch:
        stopped_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            answer_rows(run, data, out, settings=settings)
    assert not out.exists(), "a part is never taken for the whole"
    with place_of(out).open("ab") as file:
        file.write(b'{"answers": [["cut o')  # as a kill in the middle of a line leaves it
    found = answer_rows(run, data, out, settings=settings)
    assert found.resumed == 6 and found.rows == 10
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not place_of(out).exists()


def test_a_kill_while_the_file_is_written_is_mended_by_the_next_call(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = str(things(tmp_path)), tmp_path / "out.csv"
    with monkeypatch.context() as patch:
        patch.setattr(module.AnswersSoFar, "remove", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            answer_rows(run, data, out, settings=SHORT)
    before = out.read_bytes()
    assert answer_rows(run, data, out, settings=SHORT).resumed == 6
    assert out.read_bytes() == before and not place_of(out).exists()


def test_answers_that_were_asked_for_otherwise_are_not_mixed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 3)
    data, out = str(things(tmp_path)), tmp_path / "out.csv"
    with monkeypatch.context() as patch:
        stopped_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            answer_rows(run, data, out, settings=SHORT)
    with pytest.raises(ExportError, match="asked for in another way") as failed:
        answer_rows(run, data, out, settings=SHORT, instruction="Say the colour.")
    assert f"instruction: {ASKED!r} before, 'Say the colour.' now" in str(failed.value.why)
    with pytest.raises(ExportError, match="asked for in another way"):
        things(tmp_path, 7)
        answer_rows(run, data, out, settings=SHORT)
    assert answer_rows(run, data, out, settings=SHORT, overwrite=True).rows == 7, "as the remedy says"


def test_answers_under_one_key_are_not_given_to_the_rows_under_another(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 3)
    data, out = tmp_path / "in.json", tmp_path / "out.jsonl"
    data.write_text(json.dumps({key: [{"prompt": f"{key} hat {n}"} for n in range(6)] for key in ("red", "blue")}))
    with monkeypatch.context() as patch:
        stopped_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            answer_rows(tiny_model_dir, str(data), out, settings=SHORT, keys=["data.key=red"])
    with pytest.raises(ExportError, match="asked for in another way") as failed:
        answer_rows(tiny_model_dir, str(data), out, settings=SHORT, keys=["data.key=blue"])
    assert "data.key: 'red' before, 'blue' now" in str(failed.value.why)
    assert answer_rows(tiny_model_dir, str(data), out, settings=SHORT, keys=["data.key=red"]).resumed == 3


def test_a_copied_run_goes_on_and_one_with_other_weights_does_not(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 3)
    data, out, copied = str(things(tmp_path)), tmp_path / "out.csv", tmp_path / "copied"
    with monkeypatch.context() as patch:
        stopped_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            answer_rows(run, data, out, settings=SHORT)
    shutil.copytree(run, copied, copy_function=shutil.copyfile)
    [weights] = copied.glob("checkpoints/*/adapter_model.safetensors")
    os.mkfifo(weights.parent / "pipe.safetensors")  # nobody loads it, and opening it would wait for ever
    kept = place_of(out).read_bytes()
    assert answer_rows(copied, data, out, settings=SHORT).resumed == 3
    place_of(out).write_bytes(kept)
    changed = bytearray(weights.read_bytes())
    changed[-3] ^= 1
    weights.write_bytes(changed)
    (weights.parent / "manifest.json").unlink()  # as the remedy says for files that one has changed oneself
    out.unlink()
    with pytest.raises(ExportError, match="asked for in another way") as failed:
        answer_rows(copied, data, out, settings=SHORT)
    assert failed.value.why == "weights changed"


def prompts_of(monkeypatch: pytest.MonkeyPatch, *args: Any, **how: Any) -> list[str]:
    """The prompts that the model gets of some rows."""
    seen: list[list[int]] = []
    right = module.generate

    def generate(model: Any, tokenizer: Any, prompts: list[list[int]], **rest: Any) -> Any:
        seen.extend(prompts)
        return right(model, tokenizer, prompts, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(module, "generate", generate)
        answer_rows(*args, settings=SHORT, **how)
    return [str(tuned.load(args[0]).tokenizer.decode(ids)) for ids in seen]


def test_a_row_without_an_input_is_asked_as_in_training(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "in.jsonl"
    data.write_text('{"thing": ""}\n{"thing": "red hat"}\n')
    alone, other = prompts_of(monkeypatch, run, str(data), tmp_path / "out.jsonl")
    assert alone.count(ASKED) == 1 and other.count(f"{ASKED}\n\nred hat") == 1 == other.count(ASKED)


def test_an_instruction_of_the_row_stands_alone(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out, heard = tmp_path / "in.jsonl", tmp_path / "out.jsonl", Heard()
    data.write_text('{"instruction": "Name the hat.", "input": "red hat"}\n')
    how: dict[str, Any] = {"keys": ["data.columns={}"]}
    [asked] = prompts_of(monkeypatch, run, str(data), out, listener=heard, **how)
    assert "Name the hat.\n\nred hat" in asked and ASKED not in asked
    assert f"each row has its own instruction; the run's is left out: {ASKED!r}" in heard.lines
    assert not any("before your text goes" in line for line in heard.lines)
    with pytest.raises(DataError, match="have a column 'instruction' of their own") as failed:
        answer_rows(run, str(data), tmp_path / "2.csv", settings=SHORT, instruction="Now.", **how)
    assert "Leave --instruction out" in str(failed.value.remedy)


def test_answers_go_neither_over_a_part_of_the_data_nor_beside_it(tiny_model_dir: Path, tmp_path: Path) -> None:
    (folder := tmp_path / "parts").mkdir()
    for name in ("p1.csv", "p2.csv"):
        (folder / name).write_text("prompt\nred hat\n")
    before = (folder / "p2.csv").read_bytes()
    for out in (folder / "p2.csv", folder / "new.csv"):
        with pytest.raises(ExportError, match="cannot go into the folder of the data"):
            answer_rows(tiny_model_dir, str(folder), out, settings=SHORT, overwrite=True)
    (tmp_path / "link.csv").hardlink_to(folder / "p2.csv")
    with pytest.raises(ExportError, match="The file exists already"):
        answer_rows(tiny_model_dir, str(folder), tmp_path / "link.csv", settings=SHORT, overwrite=True)
    assert (folder / "p2.csv").read_bytes() == before and len([*folder.iterdir()]) == 2
    assert answer_rows(tiny_model_dir, str(folder), tmp_path / "new.csv", settings=SHORT).rows == 2


@pytest.mark.parametrize("letters", [256, 243])
def test_a_name_that_is_too_long_is_refused_before_any_answer(
    tiny_model_dir: Path, tmp_path: Path, letters: int
) -> None:
    (tmp_path / "in.csv").write_text("prompt\nred hat\n")
    name = "x" * letters + ".parquet"
    with pytest.raises(ExportError, match="the answers cannot be written") as failed:
        answer_rows(tiny_model_dir, str(tmp_path / "in.csv"), tmp_path / name, settings=SHORT)
    assert failed.value.why == f"The name {'x' * 20}... has {len(name)} bytes, which is too long."
    assert failed.value.remedy == "Name another --out."


def test_rows_without_a_header_name_the_key_that_reads_them(tiny_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("where does the red hat lie today?,x\nwhere is the blue one?,y\n")
    with pytest.raises(DataError) as failed:
        answer_rows(tiny_model_dir, str(tmp_path / "in.csv"), tmp_path / "out.csv", settings=SHORT)
    assert str(failed.value.remedy).endswith("or, if the first line is a row, set data.header=false")
    keys = ["data.header=false"]
    with pytest.raises(DataError) as failed:
        answer_rows(tiny_model_dir, str(tmp_path / "in.csv"), tmp_path / "out.csv", settings=SHORT, keys=keys)
    assert str(failed.value.remedy).endswith("data.columns={prompt: column1}")
    keys = [*keys, "data.columns={prompt: column1}"]
    assert (
        answer_rows(tiny_model_dir, str(tmp_path / "in.csv"), tmp_path / "out.csv", settings=SHORT, keys=keys).rows == 2
    )


def test_a_file_that_is_there_stays_unless_asked(run: Path, tmp_path: Path) -> None:
    data, out = str(things(tmp_path)), tmp_path / "out.csv"
    out.write_text("mine")
    with pytest.raises(ExportError, match="The file exists already"):
        answer_rows(run, data, out, settings=SHORT)
    with pytest.raises(ExportError, match="The file exists already"):
        answer_rows(run, data, out, settings=SHORT, overwrite=True)
    assert out.read_text() == "mine"
    out.unlink()
    answer_rows(run, data, out, settings=SHORT)
    with pytest.raises(ExportError, match=r"The file exists already"):
        answer_rows(run, data, out, settings=SHORT)
    answer_rows(run, data, out, settings=SHORT, overwrite=True)
    assert len(read(out)) == 6
    with pytest.raises(ExportError, match="cannot replace the data"):
        answer_rows(run, data, data, overwrite=True)
    with pytest.raises(ExportError, match=r"\.docx files are not written"):
        answer_rows(run, data, tmp_path / "out.docx")
    with pytest.raises(ExportError, match="this is a folder"):
        (tmp_path / "folder.csv").mkdir()
        answer_rows(run, data, tmp_path / "folder.csv")


def test_bad_rows_are_named_before_any_answer_and_left_out_when_asked(run: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [{"thing": "red hat"}, {"thing": 3}, {"thing": "<|im_start|>"}, {"thing": "blue " * 600}]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    with pytest.raises(DataError, match="4 of 5 rows cannot be answered") as failed:
        answer_rows(run, str(data), out, settings=SHORT)
    why = str(failed.value.why)
    assert f"{data}:2: thing: found the number 3" in why and f"{data}:3: prompt: found the control token" in why
    assert f"{data}:4: prompt: found The prompt and its answer are longer" in why and f"{data}:5: row:" in why
    assert "data.on_error=skip" in str(failed.value.remedy)
    found = answer_rows(run, str(data), out, settings=SHORT, keys=["data.on_error=skip"])
    assert [bad.source for bad in found.bad] == [f"{data}:{n}" for n in (2, 3, 4, 5)]
    assert [json.loads(line)["thing"] for line in out.read_text().splitlines()] == ["red hat"]


def test_other_columns_are_named_by_a_key(run: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "in.csv", tmp_path / "out.csv"
    data.write_text("what;answer\nred hat;?\n")
    with pytest.raises(DataError, match="there is no column 'thing'") as failed:
        answer_rows(run, str(data), out)
    assert str(failed.value.remedy).endswith("data.columns={input: what}")
    found = answer_rows(run, str(data), out, settings=SHORT, keys=["data.columns={input: what}"])
    assert found.columns == ["model_answer"], "the rows have an answer of their own"
    with pytest.raises(RecipeError, match=r"data\.eval does not change how new rows are read"):
        answer_rows(run, str(data), out, keys=["data.eval=0.5"], overwrite=True)


def test_conversations_are_answered_at_their_end(run: Path, tmp_path: Path) -> None:
    asked = [{"role": "user", "content": "red hat"}]
    rows = [{"messages": asked}, {"messages": [*asked, {"role": "assistant", "content": "no matter what"}]}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answer_rows(run, str(tmp_path / "in.jsonl"), tmp_path / "out.json", settings=SHORT)
    [one, other] = json.loads((tmp_path / "out.json").read_text())
    [alone] = tuned.load(run).generate("red hat", **SHORT)
    assert one["answer"] == other["answer"] == alone.text


ROWS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "prompt_completion": ({"prompt": "red hat", "completion": "red"}, {"prompt": "red hat"}),
    "messages in a prompt": (
        {
            "prompt": [{"role": "user", "content": "red hat"}],
            "completion": [{"role": "assistant", "content": "red"}],
        },
        {"prompt": [{"role": "user", "content": "red hat"}]},
    ),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "red hat"}, {"from": "gpt", "value": "red"}]},
        {"conversations": [{"from": "human", "value": "red hat"}]},
    ),
    "alpaca": (
        {"instruction": "Which?", "input": "red hat", "output": "red"},
        {"instruction": "Which?", "input": "red hat"},
    ),
    "text": ({"text": "The red hat is on the table."}, {"text": "The red hat"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("shape", ROWS)
def test_rows_of_every_shape_need_no_answer(tmp_path: Path, tiny_model_dir: Path, shape: str) -> None:
    trained, asked = ROWS[shape]
    rows = [json.loads(json.dumps(trained).replace("hat", f"hat {n}")) for n in range(8)]
    run = run_of(tmp_path, tiny_model_dir, rows)
    (tmp_path / "in.jsonl").write_text(json.dumps(asked) + "\n")
    found: AnsweredRows = answer_rows(run, str(tmp_path / "in.jsonl"), tmp_path / "out.jsonl", settings=SHORT)
    text = {"alpaca": "Which?\n\nred hat", "text": "The red hat"}.get(shape, "red hat")
    [alone] = tuned.load(run).generate(text, **SHORT)
    [row] = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert found.rows == 1 and row == {**asked, "answer": alone.text}


def test_a_plain_model_answers_rows_too(tiny_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("prompt\nred hat\n")
    assert answer_rows(tiny_model_dir, str(tmp_path / "in.csv"), tmp_path / "out.csv", settings=SHORT).rows == 1
    (tmp_path / "in.txt").write_text("red hat\nblue hat\n")
    with pytest.raises(DataError, match="which holds the prompt") as failed:
        answer_rows(tiny_model_dir, str(tmp_path / "in.txt"), tmp_path / "lines.csv", settings=SHORT)
    assert str(failed.value.remedy).endswith("data.columns={prompt: text}")
    key = ["data.columns={prompt: text}"]
    assert answer_rows(tiny_model_dir, str(tmp_path / "in.txt"), tmp_path / "lines.csv", settings=SHORT, keys=key).rows


TASK = {"data": {"thing": "red hat"}, "id": 1}
CHOICE = {"from_name": "colour", "type": "choices", "value": {"choices": ["red"]}}


@pytest.mark.parametrize(
    "row",
    [
        {**TASK, "annotations": [{"result": [CHOICE]}]},
        {**TASK, "annotations": []},
        {"fields": {"thing": "red hat"}, "responses": {}},
        {"text": "red hat", "label": []},
        {"text": "red hat", "_task_hash": 1, "answer": "ignore", "label": "red"},
    ],
    ids=["annotated", "not annotated", "argilla", "doccano", "prodigy"],
)
def test_rows_of_an_annotation_tool_are_answered_by_their_text(
    tiny_model_dir: Path, tmp_path: Path, row: dict[str, Any]
) -> None:
    (tmp_path / "export.json").write_text(json.dumps([row]))
    heard, out = Heard(), tmp_path / "out.jsonl"
    answer_rows(tiny_model_dir, str(tmp_path / "export.json"), out, settings=SHORT, listener=heard)
    [alone] = tuned.load(tiny_model_dir).generate("red hat", **SHORT)
    [answered] = [json.loads(line) for line in out.read_text().splitlines()]
    assert answered.pop("model_answer" if "answer" in row else "answer") == alone.text
    assert answered == row
    assert any("an export of" in line for line in heard.lines)


def test_an_export_with_two_texts_is_answered_by_the_one_that_a_key_names(tiny_model_dir: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "export.json", tmp_path / "out.jsonl"
    path.write_text(json.dumps([{"data": {"title": "a hat", "thing": "red hat"}, "annotations": []}]))
    with pytest.raises(DataError) as caught:
        answer_rows(tiny_model_dir, str(path), out, settings=SHORT)
    assert "data.columns: {prompt: title}" in str(caught.value.remedy)
    answer_rows(tiny_model_dir, str(path), out, keys=["data.columns={prompt: thing}"], settings=SHORT)
    [alone] = tuned.load(tiny_model_dir).generate("red hat", **SHORT)
    assert json.loads(out.read_text())["answer"] == alone.text


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("ticket;question;owner\n1;My kettle is on fire;Ann\n2;Which size?;Bo\n", "question"),
        ("ticket;owner;what happened\nSUP-1;Ann;My kettle is on fire\nSUP-2;Bo;Which size is it?\n", "what happened"),
        ("nr;Frage\n1;2\n2;Wo?\n", "Frage"),
    ],
)
def test_the_column_of_the_prompt_is_proposed_by_its_name_or_its_texts(tmp_path: Path, table: str, column: str) -> None:
    path = tmp_path / "new.csv"
    path.write_text(table)
    for columns in ({}, {"prompt": "gone"}):
        source = SourceSettings(path=str(path), columns=columns)
        with pytest.raises(DataError, match="prompt") as caught:
            open_prompts(source, wanted="prompt_completion", instruction=None)
        assert f"data.columns={{prompt: {column}}}" in str(caught.value.remedy)
