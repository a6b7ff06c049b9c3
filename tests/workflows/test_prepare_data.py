"""Rows as a dataset folder: whole or not there, told in full, and the same to train on as what it was made of."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import load_from_disk
from datasets.arrow_writer import ArrowWriter
from transformers import AutoTokenizer

from tunesmith.data.corpus import encode_corpus
from tunesmith.data.examples.example import Example
from tunesmith.data.placement import OUTCOME
from tunesmith.data.survey import survey_rows
from tunesmith.errors import DataError, RecipeError
from tunesmith.model.weights.text_side import make_template
from tunesmith.recipe.data import DataSettings
from tunesmith.workflows import prepare_data as module
from tunesmith.workflows.prepare_data import PreparedData, prepare_data

STOP = 2
TELLS_ALL = (  # a template that writes whatever a row can hold
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{{ m.tool_call_id or '' }}{{ m.name or '' }}"
    "{{ m.reasoning_content or '' }}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call.id }}{{ call.function | tojson }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def rows(count: int, name: str = "q") -> list[dict[str, Any]]:
    return [{"prompt": f"{name} {number}", "completion": f"answer {number}"} for number in range(count)]


def write(path: Path, content: Sequence[Mapping[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content), encoding="utf-8")
    return str(path)


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_splits(folder: Path) -> dict[str, list[dict[str, Any]]]:
    stored: Any = load_from_disk(str(folder))
    return {name: list(split) for name, split in stored.items()}


def in_folder(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def side(settings: Mapping[str, Any], place: str, seed: int = 0) -> list[Example]:
    """What a run of a data section has on one side."""
    found = survey_rows(DataSettings.model_validate(settings), seed=seed)
    return [row for block in found.scan.examples() for number, row in block if found.outcome[number] == OUTCOME[place]]


def seen(example: Example) -> tuple[Any, ...]:
    """All that a run sees of an example; whether a turn is learned means something on answers only."""
    turns = [replace(turn, train=turn.train or turn.role != "assistant") for turn in example.messages]
    return turns, example.tools, example.text


def call(name: str, arguments: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **more}


def talk(*turns: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": list(turns), **more}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
TALKS = [
    talk(user("Wie wäre es?"), answer("Schön, 好 🙂")),
    talk(
        {"role": "system", "content": "Be brief."}, user("q"), answer("unlearned", train=False), user("r"), answer("a")
    ),
    talk(user("w"), answer("weight", weight=0), user("more"), answer("learned", weight=1)),
    talk(user("think"), answer("42", reasoning_content="6 times 7\n is it")),
    talk(
        user("Weather?"),
        answer(
            "",
            tool_calls=[
                call("weather", {"city": "Zürich", "days": 2, "at": {"x": [1.5, None, True, "a"]}}, id="call_1"),
                call("weather", {}, id="call_2"),
            ],
        ),
        {"role": "tool", "content": '{"sun": true}', "tool_call_id": "call_1", "name": "weather"},
        {"role": "tool", "content": "none", "tool_call_id": "call_2"},
        answer("Sunny."),
        tools=TOOLS,
    ),
    talk(user("as text"), answer("on it", tool_calls=[call("weather", {"big": 10**15})]), tools=json.dumps(TOOLS)),
    *(talk(user(f"number {number}"), answer(f"it is {number}")) for number in range(40)),
]


def test_a_folder_with_three_splits_is_written(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", rows(60))
    made = prepare_data(path, tmp_path / "out", settings=["eval=0.2", "test=0.2"])
    assert in_folder(tmp_path / "out") == [
        "README.md",
        "dataset_dict.json",
        "rejected.jsonl",
        "test",
        "train",
        "validation",
    ]
    stored: Any = load_from_disk(str(tmp_path / "out"))
    assert {name: len(split) for name, split in stored.items()} == made.splits
    assert list(made.splits) == ["train", "validation", "test"]
    assert sum(made.splits.values()) == 60
    counts = made.ledger.total.rows
    assert (counts.trained, counts.held_out, counts.test) == tuple(made.splits.values())
    sources = [source for split in stored.values() for source in split["source"]]
    assert sorted(sources) == sorted(f"{path}:{line}" for line in range(1, 61))
    first = stored["train"][0]
    line = int(first["source"].rpartition(":")[2])
    turns = [(turn["role"], turn["content"]) for turn in first["messages"]]
    assert turns == [("user", f"q {line - 1}"), ("assistant", f"answer {line - 1}")]
    assert (made.folder, made.rejected) == (tmp_path / "out", 0)
    json.dumps(made.to_json())


def test_plain_data_holds_nothing_out_unless_asked(tmp_path: Path) -> None:
    made = prepare_data(write(tmp_path / "rows.jsonl", rows(5)), tmp_path / "out")
    assert made.splits == {"train": 5}
    assert list(load_from_disk(str(tmp_path / "out"))) == ["train"]


def test_the_same_rows_and_settings_give_the_same_splits(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", rows(60))
    for name in ("one", "two"):
        prepare_data(path, tmp_path / name, settings=["eval=0.3"])
    one, two = (read_splits(tmp_path / name) for name in ("one", "two"))
    assert one == two


# What it says of itself


def test_the_card_names_hashes_ledger_and_settings(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [*rows(20), rows(1)[0]])
    made = prepare_data(path, tmp_path / "out", settings=["eval=0.25", "clean=[dedupe]"])
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert hashlib.sha256(Path(path).read_bytes()).hexdigest() in card
    for line in made.ledger.in_words():
        assert line in card
    assert "21 read: 1 duplicate" in card
    for split, count in made.splits.items():
        assert f"| {split} | {count} |" in card
    import yaml

    section = yaml.safe_load(card.partition("```yaml\n")[2].partition("```")[0])["data"]
    assert (section["eval"], section["clean"]["dedupe"]) == (0.25, True)
    assert DataSettings.model_validate(section).sources("train")[0].path == path


def lossy(tmp_path: Path) -> tuple[str, list[str], dict[str, str]]:
    """A file, settings, and the reason of each row that goes into no split, by its name."""
    held_out = write(tmp_path / "held.jsonl", [*rows(2, "held"), {"prompt": "bad", "completion": [5]}])
    content = [
        *rows(4),
        {"prompt": "no answer"},
        rows(1)[0],
        {"prompt": "held 1", "completion": "another"},
        *({"prompt": f"same {number}", "completion": "ok"} for number in range(3)),
        {"prompt": "long", "completion": "word " * 40},
    ]
    path = write(tmp_path / "rows.jsonl", content)
    clean = "clean={dedupe: true, drop_leaked: true, balance: 2, max_length: true}"
    settings = [f"eval={held_out}", clean, "on_error=skip", "max_length=60"]
    reasons = {5: "invalid", 6: "duplicate", 7: "leaked", 11: "too_long"}
    return (
        path,
        settings,
        {**{f"{path}:{line}": reason for line, reason in reasons.items()}, f"{held_out}:3": "invalid"},
    )


def test_every_row_that_is_in_no_split_is_named_with_its_reason(tmp_path: Path, tiny_model_dir: Path) -> None:
    path, settings, expected = lossy(tmp_path)
    made = prepare_data(path, tmp_path / "out", settings=settings, model=str(tiny_model_dir))
    lines = read_lines(tmp_path / "out" / "rejected.jsonl")
    reasons = {line["source"]: line["reason"] for line in lines}
    (unbalanced,) = [source for source, reason in reasons.items() if reason == "unbalanced"]
    assert unbalanced in {f"{path}:{line}" for line in (8, 9, 10)}
    assert reasons == {**expected, unbalanced: "unbalanced"}
    assert made.rejected == len(lines) == 6
    bad = next(line for line in lines if line["source"] == f"{path}:5")
    assert (bad["field"], json.loads(bad["raw"])) == ("completion", {"prompt": "no answer"})
    stored: Any = load_from_disk(str(tmp_path / "out"))
    written = {source for split in stored.values() for source in split["source"]}
    assert written.isdisjoint(reasons)
    assert len(written) + len(lines) == made.ledger.total.rows.read == 14


def test_with_a_model_the_ledger_counts_tokens(tmp_path: Path, tiny_model_dir: Path) -> None:
    path, settings, _ = lossy(tmp_path)
    made = prepare_data(path, tmp_path / "out", settings=settings, model=str(tiny_model_dir))
    assert made.ledger.tokenized
    assert made.ledger.total.tokens.trained > made.ledger.total.supervised.trained > 0
    assert f"{made.ledger.total.tokens.read:,} read" in (tmp_path / "out" / "README.md").read_text()


def test_a_length_in_tokens_needs_a_model(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no model is named") as caught:
        prepare_data(write(tmp_path / "rows.jsonl", rows(3)), tmp_path / "out", settings=["clean=[max_length]"])
    assert caught.value.where == "data.clean"
    assert in_folder(tmp_path) == ["rows.jsonl"]


# Trained on, it is the same as what it was made of


@pytest.mark.parametrize(
    "section",
    [
        {},
        {"eval": 0.3},
        {"eval": 0.2, "test": 0.2},
        {"eval": 0.2, "clean": ["dedupe", "near_dedupe", "drop_leaked", "mask_pii"]},
    ],
)
def test_a_run_on_the_folder_sees_what_a_run_on_the_original_does(tmp_path: Path, section: dict[str, Any]) -> None:
    repeated = talk(user("write to jane.roe@mail.example.org"), answer("done, jane.roe@mail.example.org"))
    path = write(tmp_path / "talks.jsonl", [*TALKS, TALKS[0], repeated, repeated])
    recipe = {"model": "unused", "data": {"train": path, **section}, "output_dir": "unused"}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    import tunesmith.workflows.prepare_data as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_with_tokens", lambda survey, model, listener: (survey.outcome, survey.ledger(), {}))
        prepare_data(str(tmp_path / "recipe.yaml"), tmp_path / "out")
    for place in ("trained", "held_out"):
        before = [seen(row) for row in side({"train": path, **section}, place)]
        after = [seen(row) for row in side({"train": str(tmp_path / "out")}, place)]
        assert before == after
        assert before


def test_its_tokens_and_labels_are_the_same(tmp_path: Path, tiny_model_dir: Path) -> None:
    path = write(tmp_path / "talks.jsonl", TALKS)
    data = {"train": path, "eval": 0.2, "chat_template": TELLS_ALL}
    recipe = {"model": str(tiny_model_dir), "data": data, "output_dir": "unused"}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    prepare_data(str(tmp_path / "recipe.yaml"), tmp_path / "out")
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_model_dir)
    made = []
    for section in (data, {"train": str(tmp_path / "out"), "chat_template": TELLS_ALL}):
        found = survey_rows(DataSettings.model_validate(section), seed=0)
        made.append(encode_corpus(found, make_template(found.settings, tokenizer, (STOP,))))
    for one, two in zip((made[0].train, made[0].held_out), (made[1].train, made[1].held_out), strict=True):
        assert len(one) > 0
        assert [(row.ids.tolist(), row.supervised.tolist()) for row in one] == [
            (row.ids.tolist(), row.supervised.tolist()) for row in two
        ]


def test_a_tool_call_without_arguments_and_a_turn_that_is_not_learned_keep_their_sense(tmp_path: Path) -> None:
    prepare_data(write(tmp_path / "talks.jsonl", TALKS[1:6]), tmp_path / "out")
    unlearned, weighted, thinks, calls, as_text = side({"train": str(tmp_path / "out"), "eval": 0.0}, "trained")
    assert [turn.train for turn in unlearned.messages if turn.role == "assistant"] == [False, True]
    assert [turn.train for turn in weighted.messages if turn.role == "assistant"] == [False, True]
    assert thinks.messages[1].reasoning_content == "6 times 7\n is it"
    one, two = (made["function"]["arguments"] for made in calls.messages[1].tool_calls)
    assert (one, two) == ({"city": "Zürich", "days": 2, "at": {"x": [1.5, None, True, "a"]}}, {})
    assert calls.tools == as_text.tools == tuple(TOOLS)
    assert calls.messages[2].tool_call_id == "call_1"


def test_raw_text_stays_raw_text(tmp_path: Path) -> None:
    texts = [f"Document {number},\nwith a line.\n\n" for number in range(20)]
    path = write(tmp_path / "text.jsonl", [{"text": text} for text in texts])
    prepare_data(path, tmp_path / "out", settings=["eval=0.2"])
    stored: Any = load_from_disk(str(tmp_path / "out"))
    assert set(stored["train"].column_names) == {"text", "source"}
    assert sorted([*stored["train"]["text"], *stored["validation"]["text"]]) == sorted(texts)
    section = {"train": str(tmp_path / "out")}
    assert [row.text for row in side(section, "trained")] == stored["train"]["text"][:]
    assert [row.text for row in side(section, "held_out")] == stored["validation"]["text"][:]


def test_documents_beside_conversations_are_refused_and_not_lost(tmp_path: Path) -> None:
    text = write(tmp_path / "text.jsonl", [{"text": "a document"}])
    with pytest.raises(DataError):
        prepare_data(
            write(tmp_path / "a.jsonl", rows(3)), tmp_path / "out", settings=[f"train=[{tmp_path}/a.jsonl, {text}]"]
        )
    assert in_folder(tmp_path) == ["a.jsonl", "text.jsonl"]


# The folder


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    path, out = write(tmp_path / "rows.jsonl", rows(3)), tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(DataError, match="the folder is not empty") as caught:
            prepare_data(path, out, overwrite=overwrite)
        assert "--overwrite" not in str(caught.value)
    assert (in_folder(out), (out / "mine.txt").read_text()) == (["mine.txt"], "precious")
    with pytest.raises(DataError, match="the folder is not empty"):
        prepare_data(path, out / "mine.txt", overwrite=True)
    assert (out / "mine.txt").read_text() == "precious"


def test_an_empty_folder_is_filled_and_a_missing_one_made(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", rows(3))
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "empty", tmp_path / "some" / "where"):
        assert prepare_data(path, out).splits == {"train": 3}
        assert len(load_from_disk(str(out))["train"]) == 3


def test_its_own_dataset_is_replaced_only_when_told_to(tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare_data(write(tmp_path / "rows.jsonl", rows(3)), out)
    more = write(tmp_path / "more.jsonl", rows(5))
    with pytest.raises(DataError) as caught:
        prepare_data(more, out)
    assert "--overwrite" in (caught.value.remedy or "")
    assert len(load_from_disk(str(out))["train"]) == 3
    prepare_data(more, out, overwrite=True)
    assert len(load_from_disk(str(out))["train"]) == 5
    assert in_folder(tmp_path) == ["more.jsonl", "out", "rows.jsonl"]


def failing(error: BaseException) -> Any:
    def write_batch(*_: Any, **__: Any) -> None:
        raise error

    return write_batch


def prepare_again(tmp_path: Path) -> PreparedData:
    return prepare_data(str(tmp_path / "rows.jsonl"), tmp_path / "out", overwrite=True)


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize(
    ("error", "raised"), [(OSError(errno.ENOSPC, "No space left on device"), DataError), (KeyboardInterrupt(), None)]
)
def test_a_failure_leaves_nothing_new_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool, error: BaseException, raised: type | None
) -> None:
    write(tmp_path / "rows.jsonl", rows(3))
    if before:
        prepare_again(tmp_path)
    stood = {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))}
    with monkeypatch.context() as patch:
        patch.setattr(ArrowWriter, "write_batch", failing(error))
        with pytest.raises(raised or type(error), match="No space left" if raised else None):
            prepare_again(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*")) if path != tmp_path} == stood
    assert prepare_again(tmp_path).splits == {"train": 3}


def test_data_that_is_refused_leaves_no_folder(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [*rows(3), {"prompt": "x"}])
    with pytest.raises(DataError, match="1 of 4 rows cannot be used"):
        prepare_data(path, tmp_path / "a" / "out")
    assert in_folder(tmp_path) == ["rows.jsonl"]


def test_more_lost_rows_than_allowed_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [*rows(3), {"prompt": "x"}])
    with pytest.raises(DataError, match="are lost before training") as caught:
        prepare_data(path, tmp_path / "out", settings=["on_error=skip", "max_lost=0.2"])
    assert caught.value.where == "data.max_lost"
    assert in_folder(tmp_path) == ["rows.jsonl"]
    assert prepare_data(path, tmp_path / "out", settings=["on_error=skip", "max_lost=0.25"]).rejected == 1


def test_a_row_that_cannot_become_tokens_is_in_no_split_and_is_named(tmp_path: Path, tiny_model_dir: Path) -> None:
    forged = talk(user("a forged <|im_end|> turn"), answer("no"))
    path = write(tmp_path / "talks.jsonl", [*[talk(user(f"q {n}"), answer(f"a {n}")) for n in range(12)], forged])
    made = prepare_data(
        path, tmp_path / "out", settings=["eval=0.0", "on_error=skip", "max_length=200"], model=str(tiny_model_dir)
    )
    assert (made.ledger.total.rows.invalid, made.splits, made.rejected) == (1, {"train": 12}, 1)
    [line] = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert (line["source"], line["reason"]) == (f"{path}:13", "invalid")
    assert "the control token <|im_end|> stands in the text of a user turn" in line["found"]
    assert "a forged <|im_end|> turn" in line["raw"]


def test_what_comes_to_the_folder_during_the_work_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, out = tmp_path / "rows.jsonl", tmp_path / "out"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows(8)))
    write = module._write

    def slow(*given: Any) -> Any:
        out.mkdir()
        (out / "mine").write_text("mine")
        return write(*given)

    monkeypatch.setattr(module, "_write", slow)
    for overwrite in (False, True):
        with pytest.raises(DataError, match="the folder is not empty"):
            prepare_data(str(file), out, overwrite=overwrite)
        assert sorted(path.name for path in tmp_path.rglob("*")) == ["mine", "out", "rows.jsonl"]
        (out / "mine").unlink()
        out.rmdir()


@pytest.mark.parametrize("name", [".replacing", ".tunesmith-replacing"])
def test_a_folder_of_the_user_s_is_not_taken_for_one_that_was_being_replaced(tmp_path: Path, name: str) -> None:
    file, out = tmp_path / "rows.jsonl", tmp_path / "out"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows(8)))
    out.mkdir()
    (out / name).touch()
    (out / "mine").write_text("mine")
    with pytest.raises(DataError, match="files that Tunesmith did not write"):
        prepare_data(str(file), out, overwrite=True)
    assert (out / "mine").read_text() == "mine"
    (out / "mine").unlink()
    prepare_data(str(file), out)
    assert not (out / name).exists() and (out / "dataset_dict.json").is_file()
