"""OpenAI's batches: requests and answers are two files, which are read as conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.data.examples.example import Example
from tunesmith.data.files.prompt_rows import open_prompts
from tunesmith.data.files.reader import Reader, open_source
from tunesmith.data.files.rows import BadRow
from tunesmith.errors import DataError
from tunesmith.recipe.data import SourceSettings


def request(name: str, text: str = "Which bus?", **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": {"messages": messages, **body}}


def answer(
    name: str, text: str = "The 7.", *, status: int = 200, reason: str = "stop", many: int = 1
) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "refusal": None}
    body = {"choices": [{"index": n, "message": message, "finish_reason": reason} for n in range(many)]}
    response = {"status_code": status, "body": body if status == 200 else {"error": {"message": "too many"}}}
    return {"id": f"r-{name}", "custom_id": name, "response": response, "error": None}


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def opened(path: Path) -> Reader:
    return open_source(SourceSettings(path=str(path)))


def said(reader: Reader) -> list[str]:
    return [
        f"{each.source.rpartition(':')[2]} {each.found}"
        if isinstance(each, BadRow)
        else " | ".join(turn.content for turn in each.messages)
        for each in reader.examples()
    ]


def test_a_folder_of_requests_and_answers_is_joined_by_custom_id(tmp_path: Path) -> None:
    lines(tmp_path / "b" / "in.jsonl", [request("a", "Bus?"), request("b", "Tram?")])
    lines(tmp_path / "b" / "out.jsonl", [answer("b", "The 2."), answer("a", "The 7.")])
    reader = opened(tmp_path / "b")
    assert said(reader) == ["Bus? | The 7.", "Tram? | The 2."]
    assert reader.shape == "messages"
    assert "an OpenAI batch: each request with its answer in out.jsonl, by custom_id" in reader.reason
    assert [name.rpartition("/")[2] for name, _ in reader.files()] == ["in.jsonl"]


@pytest.mark.parametrize("named", ["in.jsonl", "out.jsonl"])
def test_the_other_file_is_taken_from_beside_the_one_that_is_named(
    tmp_path: Path, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines(tmp_path / "in.jsonl", [request("a", "Bus?")])
    lines(tmp_path / "out.jsonl", [answer("a", "The 7.")])
    lines(tmp_path / "rows.jsonl", [{"prompt": "p", "completion": "c"}])
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / named, Path(named)):
        assert said(opened(path)) == ["Bus? | The 7."]


@pytest.mark.parametrize(
    ("row", "missing"), [(request("a"), "output file"), (answer("a"), "input file")], ids=["requests", "answers"]
)
def test_half_a_batch_is_refused_and_what_the_message_says_leads_out(
    tmp_path: Path, row: dict[str, Any], missing: str
) -> None:
    path = lines(tmp_path / "b" / "first.jsonl", [row])
    for named in (path, path.parent):
        with pytest.raises(DataError) as caught:
            opened(named)
        assert f"put the {missing}" in str(caught.value.remedy)
        assert str(caught.value.remedy).endswith(f"or name the folder: {path.parent}")
    lines(tmp_path / "b" / "second.jsonl", [answer("a") if missing == "output file" else request("a")])
    assert said(opened(path)) == said(opened(path.parent)) == ["Which bus? | The 7."]


def test_what_has_no_whole_answer_is_left_out_by_its_reason(tmp_path: Path) -> None:
    lines(tmp_path / "b" / "in.jsonl", [request(name) for name in "abcdea"])
    answers = [answer("a"), answer("b", status=429), answer("c", reason="length"), answer("d", many=2)]
    lines(tmp_path / "b" / "out.jsonl", answers)
    assert said(opened(tmp_path / "b")) == [
        "Which bus? | The 7.",
        "2 failed",
        "3 cut off at the limit of tokens",
        "4 a list of 2",
        "5 not answered",
        "6 'a' a second time",
    ]


def test_a_request_that_was_tried_again_has_the_answer_that_came(tmp_path: Path) -> None:
    lines(tmp_path / "b" / "in.jsonl", [request("a")])
    lines(tmp_path / "b" / "out1.jsonl", [answer("a", status=500)])
    lines(tmp_path / "b" / "out2.jsonl", [answer("a")])
    assert said(opened(tmp_path / "b")) == ["Which bus? | The 7."]
    lines(tmp_path / "b" / "out3.jsonl", [answer("a", "The 9.")])
    with pytest.raises(DataError, match="two answers have the custom_id 'a'"):
        opened(tmp_path / "b")


def test_requests_alone_can_be_answered_and_columns_of_ones_own_are_kept(tmp_path: Path) -> None:
    path = lines(tmp_path / "in.jsonl", [request("a", "Bus?")])
    rows = list(open_prompts(SourceSettings(path=str(path)), wanted=None, instruction=None).rows())
    [(row, example)] = [each for each in rows if not isinstance(each, BadRow)]
    assert isinstance(example, Example)
    assert [turn.content for turn in example.messages] == ["Bus?"]
    assert row.fields["custom_id"] == "a"
    columns = {"prompt": "body.messages.0.content", "completion": "url"}
    raw = open_source(SourceSettings(path=str(path), columns=columns))
    assert said(raw) == ["Bus? | /v1/chat/completions"]


@pytest.mark.parametrize("named", ["", "one_in.jsonl", "two_in.jsonl", "one_out.jsonl"])
def test_two_batches_that_share_custom_ids_are_refused_and_folders_of_their_own_lead_out(
    tmp_path: Path, named: str
) -> None:
    for name in ("one", "two"):
        lines(tmp_path / "b" / f"{name}_in.jsonl", [request("request-0", f"{name}?")])
    lines(tmp_path / "b" / "one_out.jsonl", [answer("request-0", "One.")])
    with pytest.raises(DataError) as caught:
        opened(tmp_path / "b" / named)
    assert "put the files of each batch into a folder of their own" in str(caught.value.remedy)
    for file in ("one_in.jsonl", "one_out.jsonl"):
        (tmp_path / "one").mkdir(exist_ok=True)
        (tmp_path / "b" / file).rename(tmp_path / "one" / file)
    assert said(opened(tmp_path / "one")) == ["one? | One."]


def test_batches_of_one_folder_whose_custom_ids_differ_are_joined(tmp_path: Path) -> None:
    for name in ("one", "two"):
        lines(tmp_path / "b" / f"{name}_in.jsonl", [request(name, f"{name}?")])
        lines(tmp_path / "b" / f"{name}_out.jsonl", [answer(name, name.upper())])
    assert said(opened(tmp_path / "b")) == ["one? | ONE", "two? | TWO"]
    with pytest.raises(DataError, match="several files beside it may be the other half") as caught:
        opened(tmp_path / "b" / "one_in.jsonl")
    assert caught.value.why == "one_out.jsonl, two_out.jsonl"
    assert f"name the folder: {tmp_path / 'b'};" in str(caught.value.remedy)
