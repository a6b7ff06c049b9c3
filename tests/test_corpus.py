"""From the data section to encoded rows: every row ends up in one place, and what belongs to it goes with it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tunesmith import corpus
from tunesmith.corpus import Corpus, Examples
from tunesmith.errors import DataError, RecipeError
from tunesmith.recipe import DataSettings

STOP = 2  # <|im_end|>, the end of a turn in the tiny model's ChatML


def rows(count: int, name: str = "q", **fields: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"{name} {number}", "completion": f"answer {number}", **fields} for number in range(count)]


def write(path: Path, content: Sequence[Mapping[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return str(path)


def data(**section: Any) -> DataSettings:
    return DataSettings.model_validate(section)


def read(settings: DataSettings, seed: int = 0) -> Examples:
    return corpus.read_examples(settings, seed=seed)


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model_dir)


def encoded(examples: Examples, settings: DataSettings, tokenizer: Any) -> Corpus:
    return corpus.encode(examples, corpus.make_template(settings, tokenizer, (STOP,)), settings)


def source_file(row: Any) -> str:
    return str(row.source).rpartition(":")[0]


# The ledger


def test_every_row_is_invalid_too_long_held_out_or_trained(tmp_path: Path, tokenizer: Any) -> None:
    long = [{"prompt": f"long {number}", "completion": "word " * 200} for number in range(6)]
    bad = [{"prompt": "no answer"}, {"prompt": 3, "completion": "x"}, {"prompt": "", "completion": "x"}]
    path = write(tmp_path / "rows.jsonl", [*rows(40), *long, *bad])
    settings = data(train=path, eval=0.25, on_error="skip", too_long="drop", max_length=100)
    examples = read(settings)
    made = encoded(examples, settings, tokenizer)
    counts = made.ledger.rows
    assert (counts.read, counts.invalid, counts.too_long, counts.truncated) == (49, 3, 6, 0)
    assert (counts.trained, counts.held_out) == (len(made.train), len(made.held_out))
    assert counts.trained + counts.held_out == 40
    assert counts.held_out > 0
    assert made.ledger.tokens.total == sum(len(row.ids) for row in made.train)
    assert made.ledger.tokens.supervised == sum(int(row.supervised.sum()) for row in made.train)
    assert set(made.ledger.sources) == {path}


def test_a_truncated_row_is_counted_where_it_stays(tmp_path: Path, tokenizer: Any) -> None:
    long = {"prompt": "long", "completion": "word " * 200}
    hopeless = {"prompt": "word " * 200, "completion": "behind the cut"}
    path = write(tmp_path / "rows.jsonl", [*rows(3), long, hopeless])
    settings = data(train=path, eval=0, too_long="truncate", max_length=100)
    counts = encoded(read(settings), settings, tokenizer).ledger.rows
    assert (counts.read, counts.trained, counts.truncated, counts.too_long, counts.held_out) == (5, 4, 1, 1, 0)


def test_each_source_has_counts_of_its_own(tmp_path: Path, tokenizer: Any) -> None:
    paths = [write(tmp_path / f"{name}.jsonl", rows(count, name)) for name, count in (("a", 3), ("b", 4), ("c", 5))]
    settings = data(train=paths[:2], eval=paths[2])
    ledger = encoded(read(settings), settings, tokenizer).ledger
    assert {path: (counts.read, counts.trained, counts.held_out) for path, counts in ledger.sources.items()} == {
        paths[0]: (3, 3, 0),
        paths[1]: (4, 4, 0),
        paths[2]: (5, 0, 5),
    }


def test_a_conversation_that_becomes_several_rows_is_one_row_of_the_file(tmp_path: Path, tokenizer: Any) -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
        "{{ m.content if m.role != 'assistant' or loop.last else m.content.split('=')[-1] }}{{ '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    turns = [("user", "one"), ("assistant", "think=1"), ("user", "two"), ("assistant", "think=2")]
    talk = {"messages": [{"role": role, "content": content} for role, content in turns]}
    settings = data(train=write(tmp_path / "rows.jsonl", [talk, talk]), eval=0, chat_template=template)
    made = encoded(read(settings), settings, tokenizer)
    assert [row.example for row in made.train] == [0, 0, 1, 1]
    assert made.weights == [1.0] * 4
    assert made.ledger.rows.trained == 2


# What trains and what is held out


def test_weights_follow_their_rows_through_the_split_and_the_fitting(tmp_path: Path, tokenizer: Any) -> None:
    long = {"prompt": "long", "completion": "word " * 200}
    often = write(tmp_path / "often.jsonl", [long, *rows(30, "a")])
    seldom = write(tmp_path / "seldom.jsonl", [*rows(15, "b"), long, *rows(15, "c")])
    sources = [{"path": often, "weight": 2.0}, {"path": seldom, "weight": 0.5}]
    settings = data(train=sources, eval=0.3, too_long="drop", max_length=100)
    made = encoded(read(settings), settings, tokenizer)
    assert len(made.weights) == len(made.train)
    expected = {often: 2.0, seldom: 0.5}
    assert [expected[source_file(row)] for row in made.train] == made.weights
    assert 0 < Counter(made.weights)[2.0] < 30


def test_a_share_holds_out_whole_prompts_by_seed(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [*rows(30), *rows(30, unused=1)])
    settings = data(train=path, eval=0.3)
    examples = read(settings)
    train, held_out = ({row.prompt_key() for row in side} for side in (examples.train, examples.held_out))
    assert train.isdisjoint(held_out)
    assert len(examples.train) == 2 * len(train)
    assert len(examples.held_out) == 2 * len(held_out)
    assert examples.notes[-1] == f"held out by prompt: {len(examples.held_out)} of 60 rows (share 0.3)"
    assert [row.source for row in read(settings).held_out] == [row.source for row in examples.held_out]
    assert [row.source for row in read(settings, seed=1).held_out] != [row.source for row in examples.held_out]


def test_a_tenth_is_held_out_where_nothing_is_said(tmp_path: Path) -> None:
    examples = read(data(train=write(tmp_path / "rows.jsonl", rows(200))))
    assert 8 <= len(examples.held_out) <= 35
    assert examples.notes[-1].endswith("(share 0.1)")


def test_a_file_of_its_own_is_held_out_whole(tmp_path: Path) -> None:
    train, held_out = write(tmp_path / "train.jsonl", rows(5)), write(tmp_path / "held.jsonl", rows(3, "other"))
    examples = read(data(train=train, eval=held_out))
    assert [source_file(row) for row in examples.train] == [train] * 5
    assert [source_file(row) for row in examples.held_out] == [held_out] * 3
    assert [(source["side"], source["rows"]) for source in examples.sources] == [("train", 5), ("eval", 3)]


def test_the_test_split_of_a_dataset_is_held_out_where_nothing_is_said(tmp_path: Path, tokenizer: Any) -> None:
    write(tmp_path / "set" / "train.jsonl", rows(6))
    write(tmp_path / "set" / "test.jsonl", rows(4, "other"))
    folder = str(tmp_path / "set")
    settings = data(train=folder)
    examples = read(settings)
    assert examples.notes[-1] == f"held out: the dataset's own {folder} split test"
    assert [source["split"] for source in examples.sources] == ["train", "test"]
    counts = encoded(examples, settings, tokenizer).ledger.sources[folder]
    assert (counts.read, counts.trained, counts.held_out) == (10, 6, 4)
    assert read(data(train=folder, eval=0)).held_out == []


def test_a_dataset_beside_one_without_a_test_split_gives_a_share(tmp_path: Path) -> None:
    write(tmp_path / "set" / "train.jsonl", rows(60))
    write(tmp_path / "set" / "test.jsonl", rows(4, "other"))
    examples = read(data(train=[str(tmp_path / "set"), write(tmp_path / "more.jsonl", rows(60, "more"))]))
    assert len(examples.train) + len(examples.held_out) == 120
    assert examples.notes[-1].startswith("held out by prompt")


def test_two_answers_to_one_prompt_are_one_group(tmp_path: Path, tokenizer: Any) -> None:
    held_out = [*rows(2), {"prompt": "q 0", "completion": "another answer"}, *rows(1, "new")]
    settings = data(train=write(tmp_path / "a.jsonl", rows(3, "a")), eval=write(tmp_path / "b.jsonl", held_out))
    made = encoded(read(settings), settings, tokenizer)
    assert made.groups == [0, 1, 0, 2]
    assert [row.example for row in made.held_out] == [0, 1, 2, 3]


def test_all_rows_can_be_taken_to_judge_on(tmp_path: Path, tokenizer: Any) -> None:
    settings = data(train=write(tmp_path / "a.jsonl", rows(3)), eval=0)
    examples = corpus.only_held_out(read(settings))
    made = encoded(examples, settings, tokenizer)
    assert (len(made.train), len(made.held_out), made.weights) == (0, 3, [])
    assert made.ledger.rows.held_out == 3


# Rows that cannot be used


def test_a_bad_row_stops_or_is_set_aside(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [*rows(2), {"prompt": "q", "completion": 5}, *rows(1, "b")])
    with pytest.raises(DataError) as caught:
        read(data(train=path, eval=0))
    assert f"{path}:3: completion" in str(caught.value)
    examples = read(data(train=path, eval=0, on_error="skip"))
    assert [row.source for row in examples.train] == [f"{path}:1", f"{path}:2", f"{path}:4"]
    (rejected,) = examples.rejected
    assert (rejected.source, rejected.field) == (f"{path}:3", "completion")
    assert json.loads(rejected.raw) == {"prompt": "q", "completion": 5}
    assert set(asdict(rejected)) == {"source", "field", "found", "expected", "raw"}
    assert (examples.sources[0]["rows"], examples.sources[0]["invalid"]) == (4, 1)


def test_bad_rows_of_the_held_out_file_are_set_aside_too(tmp_path: Path, tokenizer: Any) -> None:
    held_out = write(tmp_path / "held.jsonl", [{"prompt": "q"}, *rows(2, "b")])
    settings = data(train=write(tmp_path / "a.jsonl", rows(2)), eval=held_out, on_error="skip")
    examples = read(settings)
    assert [row.source for row in examples.rejected] == [f"{held_out}:1"]
    counts = encoded(examples, settings, tokenizer).ledger.sources[held_out]
    assert (counts.read, counts.invalid, counts.held_out) == (3, 1, 2)


def test_rows_that_are_all_too_long_are_told_before_the_model_is_loaded(tmp_path: Path, tokenizer: Any) -> None:
    settings = data(train=write(tmp_path / "a.jsonl", rows(2)), eval=0, too_long="drop", max_length=8)
    with pytest.raises(DataError, match="No row is left to train on"):
        encoded(read(settings), settings, tokenizer)


def test_a_row_that_is_too_long_is_refused_by_name_where_nothing_is_said(tmp_path: Path, tokenizer: Any) -> None:
    path = write(tmp_path / "a.jsonl", [*rows(2), {"prompt": "q", "completion": "word " * 200}])
    settings = data(train=path, eval=0, max_length=100)
    with pytest.raises(DataError) as caught:
        encoded(read(settings), settings, tokenizer)
    assert caught.value.where == f"{path}:3"


def test_raw_text_cannot_be_judged_by_its_answers(tmp_path: Path) -> None:
    text = write(tmp_path / "text.jsonl", [{"text": f"document {number}"} for number in range(3)])
    examples = read(data(train=text, eval=0))
    assert examples.raw_text
    with pytest.raises(RecipeError) as caught:
        corpus.check_metrics(["loss", "exact_match"], examples)
    assert (caught.value.where, caught.value.why) == ("evaluation.metrics", "The rows are raw text.")
    corpus.check_metrics(["loss", "perplexity"], examples)
    mixed = read(data(train=[text, write(tmp_path / "a.jsonl", rows(1))], eval=0))
    corpus.check_metrics(["exact_match"], mixed)


def test_raw_text_trains_on_all_but_its_first_token(tmp_path: Path, tokenizer: Any) -> None:
    settings = data(train=write(tmp_path / "text.jsonl", [{"text": "a document"}]), eval=0)
    (row,) = encoded(read(settings), settings, tokenizer).train
    assert row.supervised.tolist() == [False] + [True] * (len(row.ids) - 1)
    assert row.ids[-1] == STOP


# What is recorded


def test_sources_are_recorded_with_their_hashes(tmp_path: Path) -> None:
    import hashlib

    path = write(tmp_path / "rows.jsonl", rows(3))
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    examples = read(data(train=path, eval=0))
    assert examples.sources == [
        {
            "path": path,
            "side": "train",
            "split": None,
            "format": "prompt_completion",
            "rows": 3,
            "invalid": 0,
            "files": [{"path": path, "sha256": digest}],
            "ignored": [],
        }
    ]
    json.dumps(examples.sources)


def test_the_date_of_a_template_is_the_recipes_or_todays(tokenizer: Any) -> None:
    today = corpus.make_template(data(train="a"), tokenizer, (STOP,)).rules.date
    assert len(today) == 10
    assert corpus.make_template(data(train="a", date="2025-01-31"), tokenizer, (STOP,)).rules.date == "2025-01-31"
