"""`init` and `check` on real files, without a model and with a tiny one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.data.chat.test_tokenizing import slow_tokenizer

from tunesmith.cli.docs import JSON_KEYS
from tunesmith.recipe.file import read_recipe

Command = Callable[..., Any]


@pytest.fixture
def rows(tmp_path: Path) -> str:
    """Forty good rows and a bad one."""
    good = [{"prompt": f"question {n}", "completion": "yes" if n % 2 else "no"} for n in range(40)]
    lines = [json.dumps(row) for row in [*good, {"prompt": "last", "completion": ""}]]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return "rows.jsonl"


def test_init_writes_a_recipe_that_can_be_read(command: Command, rows: str, tmp_path: Path) -> None:
    outcome = command("init", rows)
    assert outcome.code == 0
    assert outcome.out.splitlines() == [
        "40 rows: columns prompt, completion -> prompt_completion",
        "Wrote recipe.yaml. Next: `tunesmith check recipe.yaml --show 3`, then `tunesmith train recipe.yaml`",
    ]
    assert outcome.err == "warning: 1 row cannot be used: `tunesmith check recipe.yaml` lists it.\n"
    assert read_recipe(tmp_path / "recipe.yaml", []).recipe.output_dir == "runs/rows"


def test_init_overwrites_only_when_told_to(command: Command, rows: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("precious")
    for flags in ([], ["--overwrite"]):
        assert command("init", rows, "--out", "mine.yaml", *flags).code == 1
        assert (tmp_path / "mine.yaml").read_text() == "precious", "Tunesmith did not write it"
    assert command("init", rows, "--out", "made.yaml").code == 0
    outcome = command("init", rows, "--out", "made.yaml")
    assert outcome.code == 1 and "Add --overwrite, or name another --out." in outcome.err
    found = command("init", rows, "--out", "made.yaml", "--overwrite", "--model", "the/other", "--json").json
    assert list(found) == list(JSON_KEYS["init"])
    assert (found["model"], found["rows"], found["bad"], found["metrics"][0]) == ("the/other", 40, 1, "accuracy")


def test_init_replaces_the_recipe_that_it_wrote_although_it_was_edited(command: Command, rows: str) -> None:
    assert command("init", rows).code == 0
    recipe = Path("recipe.yaml")
    written = recipe.read_text()
    recipe.write_text(written.replace("output_dir: runs/rows", "output_dir: runs/mine") + "# my notes\n")
    assert recipe.read_text() != written
    refused = command("init", rows)
    assert refused.code == 1 and "Add --overwrite, or name another --out." in refused.err
    assert command("check", rows, "--html", "recipe.yaml").code == 1, "nobody asked for that"
    assert recipe.read_text().endswith("# my notes\n")
    assert command("init", rows, "--overwrite").code == 0
    assert recipe.read_text() == written


def test_the_report_may_be_all_of_standard_output(rows: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tunesmith", "check", rows, "--html", "/dev/stdout"]
    with (tmp_path / "page.html").open("w") as page:
        ended = subprocess.run(command, cwd=tmp_path, stdout=page, stderr=subprocess.PIPE, text=True, check=False)
    text = (tmp_path / "page.html").read_text()
    assert text.startswith("<!DOCTYPE html>") and text.count("</html>") == 1 and "Wrote" not in text
    assert "Wrote /dev/stdout" in ended.stderr


def test_init_says_in_flags_what_the_data_lacks(command: Command, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,category\nhello,greeting\n")
    outcome = command("init", "rows.csv")
    assert outcome.code == 1
    assert "--columns input=text,output=category with one --instruction" in outcome.err
    assert not (tmp_path / "recipe.yaml").exists()


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 1), ("", 1)])
def test_init_asks_in_a_terminal_before_it_takes_columns_by_their_names(tmp_path: Path, answer: str, code: int) -> None:
    lines = ["question;reply", *(f"What is {n} + 1?;It is {n + 1}." for n in range(40))]
    (tmp_path / "faq.csv").write_text("\n".join(lines) + "\n")
    screen, end = os.openpty()
    os.write(screen, f"{answer}\n".encode())
    done = subprocess.run(
        [sys.executable, "-m", "tunesmith", "init", "faq.csv", "--model", "me/m"],
        stdin=end, stderr=end, stdout=subprocess.PIPE, cwd=tmp_path, text=True, timeout=120,
    )  # fmt: skip
    os.close(end)
    shown = os.read(screen, 2**16).decode()
    os.close(screen)
    assert "Train the model to answer the first with the second? [y/N]" in shown
    assert "What is 0 + 1? -> It is 1." in done.stdout, "sample rows are shown before the question"
    assert done.returncode == code, shown
    assert (tmp_path / "recipe.yaml").exists() == (code == 0)
    assert ("--columns prompt=question,completion=reply" in shown) == (code == 1), "no: the exact command"


def test_init_makes_the_recipes_folder(command: Command, rows: str, tmp_path: Path) -> None:
    assert command("init", rows, "--out", "recipes/a.yaml").code == 0
    (tmp_path / "file").write_text("")
    outcome = command("init", rows, "--out", "file/a.yaml")
    assert outcome.code == 1
    assert "The output cannot be written" in outcome.err


def test_check_names_bad_rows_and_exits_with_1(command: Command, rows: str) -> None:
    outcome = command("check", rows)
    assert outcome.code == 1
    assert outcome.out.splitlines() == [
        "40 rows can be used, 1 cannot. Not ready to train on: invalid rows (1).",
        "rows.jsonl: columns prompt, completion -> prompt_completion",
        "                    read  invalid  trained",
        "rows of rows.jsonl    41        1       40",
        "characters of a row: 12 to 14, half below 13, 95% below 14; the longest is rows.jsonl:12",
        "  from  to  rows",
        "    12  12     5  ##########",
        "    13  13    20  ########################################",
        "    14  14    15  ##############################",
        "labels: 2 different answers; each in 20 rows: no, yes",
        "scripts: Latin 100.0%",
        "bad row rows.jsonl:41: completion is empty",
        "error invalid_rows: 1 row that cannot be read, or used as an example (rows.jsonl:41)",
        "  correct them, or set data.on_error: skip to set them aside",
        "info few_rows: 40 rows to train on; the guide says 1K-10K for LoRA and 10K or more for full fine-tuning",
        "  add rows if you can",
        "Not ready: fix the errors above first.",
    ]


def test_check_under_json_is_one_object(command: Command, rows: str) -> None:
    outcome = command("check", rows, "--json")
    assert outcome.code == 1
    assert outcome.out.count("\n") == 1
    assert list(outcome.json) == list(JSON_KEYS["check"])
    assert outcome.json["bad"][0]["source"] == "rows.jsonl:41"
    assert (outcome.json["schema"], outcome.json["good"]) == (1, False)
    ledger = outcome.json["ledger"]
    assert ledger["rows"] == {
        "read": 41,
        "invalid": 1,
        "duplicate": 0,
        "leaked": 0,
        "left_out": 0,
        "unbalanced": 0,
        "too_long": 0,
        "held_out": 0,
        "test": 0,
        "trained": 40,
    }
    assert (ledger["tokens"], ledger["supervised"], ledger["truncated"], ledger["epoch"]) == (None, None, 0, None)
    assert list(ledger["sources"]) == ["rows.jsonl"]
    (invalid,) = [finding for finding in outcome.json["findings"] if finding["severity"] == "error"]
    assert (invalid["id"], invalid["count"], invalid["rows"]) == ("invalid_rows", 1, ["rows.jsonl:41"])


def test_check_of_a_recipe_that_sets_bad_rows_aside_is_good(
    command: Command, rows: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "r.yaml").write_text(
        f"model: {tiny_model_dir}\ndata: {{train: {rows}, on_error: skip, eval: 0.2}}\noutput_dir: runs/x\n"
    )
    outcome = command("check", "r.yaml", "--show", "1")
    assert outcome.code == 0
    assert "[[no<|im_end|>]]" in outcome.out
    assert "Ready to train." in outcome.out
    found = command("check", "r.yaml", "--show", "1", "--json").json
    assert found["good"] is True
    assert ["no<|im_end|>", True] in found["shown"][0]["pieces"]
    assert found["shown"][0]["tokens"] > found["shown"][0]["supervised"] > 0
    assert found["ledger"]["rows"]["trained"] + found["ledger"]["rows"]["held_out"] == 40
    assert found["ledger"]["tokens"]["trained"] > found["ledger"]["supervised"]["trained"] > 0
    at = found["lengths"]["quantiles"]
    assert found["lengths"]["unit"] == "tokens"
    assert at["max"] >= at["p50"] >= at["min"] > 0
    assert sum(bar["rows"] for bar in found["lengths"]["histogram"]) == 40


def test_check_says_how_long_documents_are_split(command: Command, tiny_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("".join("word " * size + "\n\n" for size in (5, 100, 200)))
    (tmp_path / "r.yaml").write_text(
        f"model: {tiny_model_dir}\noutput_dir: x\n"
        "data: {train: text.txt, sample_by: paragraph, eval: 0, max_length: 64}\n"
    )
    outcome = command("check", "r.yaml", "--json")
    assert outcome.code == 0, outcome.out
    ledger = outcome.json["ledger"]
    assert (ledger["rows"]["trained"], ledger["split"], ledger["tokens"]["too_long"]) == (3, 2, 0)
    assert ledger["blocks"] > 4
    assert not {"long_rows", "too_long"} & {finding["id"] for finding in outcome.json["findings"]}
    shown = command("check", "r.yaml")
    assert f"{ledger['blocks']}" in next(line for line in shown.out.splitlines() if line.startswith("rows of"))
    strict = command("check", "r.yaml", "--json")  # once more, from the cache
    assert strict.json["ledger"] == ledger
    recipe = (tmp_path / "r.yaml").read_text()
    (tmp_path / "r.yaml").write_text(recipe.replace("eval: 0", "eval: 0, too_long: error"))
    refused = command("check", "r.yaml", "--json")
    (finding,) = [finding for finding in refused.json["findings"] if finding["severity"] == "error"]
    assert (refused.code, finding["id"], finding["count"]) == (1, "too_long", 2)
    assert "drop, split or truncate" in finding["remedy"]


def test_check_counts_rows_that_are_too_long_and_still_shows_the_rest(
    command: Command, rows: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    with (tmp_path / rows).open("a") as file:
        file.write(json.dumps({"prompt": "word " * 100, "completion": "yes"}) + "\n")
    (tmp_path / "r.yaml").write_text(
        f"model: {tiny_model_dir}\noutput_dir: x\ndata: {{train: {rows}, on_error: skip, eval: 0, max_length: 64}}\n"
    )
    outcome = command("check", "r.yaml", "--json")
    assert outcome.code == 1
    (finding,) = [finding for finding in outcome.json["findings"] if finding["severity"] == "error"]
    assert (finding["id"], finding["count"], finding["rows"]) == ("too_long", 1, ["rows.jsonl:42"])
    assert outcome.json["ledger"]["rows"]["too_long"] == 1
    assert outcome.json["ledger"]["rows"]["trained"] == 40


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps({"prompt": prompt, "completion": answer}) + "\n" for prompt, answer in rows))
    return path.name


@pytest.fixture
def good(tmp_path: Path) -> str:
    """Twelve different rows, none of them bad."""
    return write(tmp_path / "good.jsonl", *((f"question {n}", f"answer number {n}") for n in range(12)))


def test_check_against_other_rows_names_what_is_in_both(command: Command, good: str, tmp_path: Path) -> None:
    other = write(tmp_path / "test.jsonl", ("question 3", "another"), ("never asked", "x y"), ("question 7", "z z"))
    outcome = command("check", good, "--against", other, "--json")
    (leak,) = [finding for finding in outcome.json["findings"] if finding["id"] == "leakage"]
    assert sorted(leak["rows"]) == ["good.jsonl:4", "good.jsonl:8", "test.jsonl:1", "test.jsonl:3"]
    assert leak["count"] == 4
    assert outcome.json["ledger"]["rows"]["read"] == 12
    assert [source["path"] for source in outcome.json["sources"]] == [good]
    assert outcome.code == (0 if outcome.json["good"] else 1)
    alone = command("check", good, "--json")
    assert alone.code == 0
    assert "leakage" not in {finding["id"] for finding in alone.json["findings"]}


def test_rows_that_are_compared_with_are_not_part_of_the_data(
    command: Command, good: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    other = write(tmp_path / "test.jsonl", ("unlike the rest", "fine"), ("слово " * 3000, "да"))
    for model in ([], ["--model", str(tiny_model_dir)]):
        alone = command("check", good, *model, "--json").json
        beside = command("check", good, "--against", other, *model, "--json").json
        for part in ("good", "ledger", "lengths", "scripts", "labels", "languages", "diversity", "bad"):
            assert beside[part] == alone[part], part


def test_check_against_nothing_is_a_mistake(command: Command, good: str) -> None:
    outcome = command("check", good, "--against", "nowhere.jsonl")
    assert outcome.code == 1
    assert "nowhere.jsonl: there is no such file or folder" in outcome.err


def test_check_writes_its_report_as_a_page(command: Command, good: str, tmp_path: Path) -> None:
    outcome = command("check", good, "--html", "reports/page.html")
    assert outcome.code == 0
    assert outcome.out.splitlines()[-1] == "Wrote reports/page.html"
    page = (tmp_path / "reports" / "page.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>") or page.startswith("<!doctype html>")
    assert good in page
    found = command("check", good, "--html", f"{good}/page.html", "--json")
    assert (found.code, found.json["error"], found.json["where"]) == (1, "RecipeError", f"{good}/page.html")
    assert found.json["what"] == "The output cannot be written"


def test_a_page_is_written_of_data_that_is_not_good_too(command: Command, rows: str, tmp_path: Path) -> None:
    outcome = command("check", rows, "--html", "page.html", "--json")
    assert (outcome.code, outcome.json["good"]) == (1, False)
    assert "rows.jsonl:41" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_near_duplicates_are_looked_for_unless_told_not_to(command: Command, tmp_path: Path) -> None:
    text = " ".join(f"word{number}" for number in range(60))
    name = write(
        tmp_path / "near.jsonl", (text, "same answer"), (text.replace("word7 ", "word7x "), "same answer"), ("b", "c d")
    )
    near = command("check", name, "--json").json
    (finding,) = [finding for finding in near["findings"] if finding["id"] == "near_duplicates"]
    assert finding["rows"] == ["near.jsonl:1", "near.jsonl:2"]
    assert near["diversity"]["clusters"] == [{"rows": 2, "first": "near.jsonl:1"}]
    outcome = command("check", name, "--no-near", "--json")
    assert "near_duplicates" not in {finding["id"] for finding in outcome.json["findings"]}
    assert outcome.json["diversity"]["clusters"] == []


def test_prepare_writes_a_dataset_and_says_where_the_rows_went(command: Command, rows: str, tmp_path: Path) -> None:
    outcome = command("prepare", rows, "--out", "made", "on_error=skip", "eval=0.25", "--json")
    assert outcome.code == 0
    assert list(outcome.json) == list(JSON_KEYS["prepare"])
    splits, counts = outcome.json["splits"], outcome.json["ledger"]["rows"]
    assert splits == {"train": counts["trained"], "validation": counts["held_out"]}
    assert sum(splits.values()) == 40
    assert (outcome.json["folder"], outcome.json["rejected"], counts["invalid"]) == ("made", 1, 1)
    again = command("prepare", rows, "--out", "made", "on_error=skip", "eval=0.25", "--overwrite")
    assert again.out.splitlines()[2:] == [
        f"rows: 41 read: 1 invalid, {splits['validation']} held out, {splits['train']} trained",
        f"Wrote made: train {splits['train']}, validation {splits['validation']} rows. Next: `tunesmith init made`",
    ]
    assert command("init", "made").code == 0
    assert command("check", "made", "--json").json["ledger"]["rows"]["read"] == 40


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "DataError"),  # a bad row
        (["nonsense=1"], "RecipeError"),
        (["on_error=skip", "clean=[max_length]"], "RecipeError"),
        (["on_error=skip", "eval=0.9", "test=0.2"], "RecipeError"),
    ],
)
def test_prepare_refuses_what_can_be_mended_with_1(
    command: Command, rows: str, tmp_path: Path, arguments: list[str], error: str
) -> None:
    outcome = command("prepare", rows, "--out", "made", *arguments, "--json")
    assert (outcome.code, outcome.json["error"]) == (1, error)
    assert not (tmp_path / "made").exists()


def test_prepare_overwrites_only_when_told_to_and_only_its_own(command: Command, good: str, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("precious")
    for flags in ([], ["--overwrite"]):
        outcome = command("prepare", good, "--out", "mine", *flags)
        assert outcome.code == 1
        assert "the folder is not empty" in outcome.err
    assert (tmp_path / "mine" / "file").read_text() == "precious"
    assert command("prepare", good, "--out", "made").code == 0
    assert command("prepare", good, "--out", "made").code == 1
    assert command("prepare", good, "--out", "made", "--overwrite").code == 0


def test_prepare_needs_a_folder_to_write(command: Command, good: str) -> None:
    outcome = command("prepare", good)
    assert outcome.code == 2
    assert "--out" in outcome.err


def test_prepare_into_the_folder_it_runs_in_is_no_fault(
    command: Command, good: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    outcome = command("prepare", str(tmp_path / good), "--out", ".")
    assert "Traceback" not in outcome.err


def test_a_row_that_cannot_become_tokens_hides_nothing_else(
    command: Command, tmp_path: Path, tiny_model_dir: Path
) -> None:
    rows = [{"prompt": f"q {number % 9}", "completion": f"answer {number % 9}"} for number in range(10)]
    rows.append({"prompt": "forged <|im_end|> turn", "completion": "x"})
    (tmp_path / "forged.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = command("check", "forged.jsonl", "--model", str(tiny_model_dir), "--json")
    assert outcome.code == 1
    found = {finding["id"]: finding["rows"] for finding in outcome.json["findings"]}
    assert found["no_tokens"] == ["forged.jsonl:11"]
    assert found["template_tokens"] == ["forged.jsonl:11"]
    assert found["duplicate_rows"] == ["forged.jsonl:1", "forged.jsonl:10"]


def test_rows_that_cannot_become_tokens_are_named_all_and_by_their_reason(
    command: Command, tmp_path: Path, tiny_model_dir: Path
) -> None:
    texts = [f"question {number}" for number in range(10)] + [
        "a <|im_end|> turn",
        "another <|im_end|> turn",
        "<|im_start|>",
    ]
    rows = [{"prompt": text, "completion": f"answer {number}"} for number, text in enumerate(texts)]
    (tmp_path / "forged.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = command("check", "forged.jsonl", "--model", str(tiny_model_dir), "--json")
    assert outcome.code == 1
    found = [(each["severity"], each["rows"]) for each in outcome.json["findings"] if each["id"] == "no_tokens"]
    assert found == [("error", ["forged.jsonl:11", "forged.jsonl:12"]), ("error", ["forged.jsonl:13"])]
    assert outcome.json["ledger"]["rows"]["invalid"] == 3


def test_a_row_that_the_tokenizer_gives_up_on_is_named_in_one_message(
    command: Command, tmp_path: Path, tiny_model_dir: Path
) -> None:
    model = slow_tokenizer(tiny_model_dir, tmp_path / "model")
    rows = [{"prompt": f"q {number}", "completion": "yes"} for number in range(3)]
    rows.append({"prompt": "1" * 200, "completion": "x"})
    (tmp_path / "digits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = command("check", "digits.jsonl", "--model", str(model), "--json")
    assert outcome.code == 1
    assert {finding["id"]: finding["rows"] for finding in outcome.json["findings"]}["no_tokens"] == ["digits.jsonl:4"]
    assert "Traceback" not in outcome.err


def test_the_command_that_a_refusal_of_check_names_leads_out(command: Command, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("prompt;x|completion\n" + "why;y|so\n" * 3, encoding="utf-8")
    refused = command("check", "t.csv")
    assert refused.code == 1
    assert "run `tunesmith check t.csv 'data.delimiter=;'`" in refused.err
    followed = command("check", "t.csv", "data.delimiter=;", "--columns", "prompt=prompt,completion=x|completion")
    assert "3 rows can be used" in followed.out


def test_a_remedy_of_init_keeps_what_was_given(command: Command, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps({name: [{"prompt": "a", "completion": "b"}] * 20 for name in "xy"}))
    outcome = command("init", "rows.json", "--model", "me/m", "--out", "mine.yaml")
    assert "run `tunesmith init rows.json --model me/m --out mine.yaml data.key=x`" in " ".join(outcome.err.split())
    assert command("init", "rows.json", "--model", "me/m", "--out", "mine.yaml", "data.key=x").code == 0
    assert (tmp_path / "mine.yaml").is_file()


def test_check_masks_the_secrets_in_what_it_counts(command: Command, tmp_path: Path) -> None:
    key, address = "sk-proj-Zq81Tn5bXw0RkYp3VdLm7Hs", "jane.roe@mail.com"
    answers = [f"key {key}", f"write to {address}", "none"]
    rows = [
        {
            "messages": [
                {"role": "system", "content": f"token: {key}"},
                {"role": "user", "content": f"{address if n % 2 else key} {n}"},
                {"role": "assistant", "content": answers[n % 3]},
            ]
        }
        for n in range(60)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = command("check", "rows.jsonl")
    assert "key [secret]" in outcome.out and "write to [email]" in outcome.out
    found = command("check", "rows.jsonl", "--html", "page.html", "--json")
    assert found.json["labels"]["counts"][0]["rows"] == 20
    assert [each["text"].split()[0] for each in found.json["diversity"]["most_frequent"]] == ["email", "secret"]
    for text in (outcome.out, found.out, (tmp_path / "page.html").read_text()):
        assert key.lower() not in text.lower() and address not in text and "jane roe" not in text


def test_a_data_file_that_is_missing_comes_before_a_recipe_that_is_there(command: Command, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("mine\n")
    outcome = command("init", "rows.jsonl")
    assert outcome.code == 1 and "there is no such file or folder" in outcome.err
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    outcome = command("init", "rows.jsonl")
    assert outcome.code == 1 and "The file exists already" in outcome.err
    assert (tmp_path / "recipe.yaml").read_text() == "mine\n"
