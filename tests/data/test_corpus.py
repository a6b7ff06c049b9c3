"""From the data section to encoded rows: every row ends up in one place, and what belongs to it goes with it."""

from __future__ import annotations

import copy
import json
import pickle
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tunesmith.data.batches.order import Order
from tunesmith.data.corpus import Corpus, encode_corpus
from tunesmith.data.examples.example import Example
from tunesmith.data.ledger import OUTCOMES, Account, RowCounts
from tunesmith.data.placement import OUTCOME
from tunesmith.data.survey import Survey, check_metrics, only_held_out, survey_rows
from tunesmith.errors import DataError, RecipeError
from tunesmith.model.weights.text_side import make_template
from tunesmith.recipe.data import DataSettings

STOP = 2  # <|im_end|>, the end of a turn in the tiny model's ChatML


def rows(count: int, name: str = "q", **fields: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"{name} {number}", "completion": f"answer {number}", **fields} for number in range(count)]


def write(path: Path, content: Sequence[Mapping[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return str(path)


def data(**section: Any) -> DataSettings:
    return DataSettings.model_validate(section)


def read(settings: DataSettings, seed: int = 0) -> Survey:
    return survey_rows(settings, seed=seed)


def placed(found: Survey, place: str) -> list[Example]:
    return [row for block in found.scan.examples() for number, row in block if found.outcome[number] == OUTCOME[place]]


def names(found: Survey, place: str) -> list[str]:
    return [row.source for row in placed(found, place)]


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model_dir)


def encoded(found: Survey, tokenizer: Any) -> Corpus:
    return encode_corpus(found, make_template(found.settings, tokenizer, (STOP,)))


def source_file(row: Any) -> str:
    return str(row.source).rpartition(":")[0]


def sums(rows: Sequence[Any]) -> tuple[int, int]:
    """Tokens and labels."""
    return sum(len(row.ids) for row in rows), sum(int(row.supervised.sum()) for row in rows)


# The ledger


def test_every_row_is_invalid_too_long_held_out_or_trained(tmp_path: Path, tokenizer: Any) -> None:
    long = [{"prompt": f"long {number}", "completion": "word " * 200} for number in range(6)]
    bad = [{"prompt": "no answer"}, {"prompt": 3, "completion": "x"}, {"prompt": "", "completion": "x"}]
    path = write(tmp_path / "rows.jsonl", [*rows(40), *long, *bad])
    settings = data(train=path, eval=0.25, on_error="skip", too_long="drop", max_length=100)
    examples = read(settings)
    made = encoded(examples, tokenizer)
    counts = made.ledger.total.rows
    assert (counts.read, counts.invalid, counts.too_long, made.ledger.total.truncated) == (49, 3, 6, 0)
    assert (counts.trained, counts.held_out) == (len(made.train), len(made.held_out))
    assert counts.trained + counts.held_out == 40
    assert counts.held_out > 0
    assert (made.ledger.total.tokens.trained, made.ledger.total.supervised.trained) == sums(made.train)
    assert (made.ledger.total.tokens.held_out, made.ledger.total.supervised.held_out) == sums(made.held_out)
    assert len(made.left_out) == 6
    assert set(made.ledger.sources) == {path}


def test_a_truncated_row_is_counted_where_it_stays(tmp_path: Path, tokenizer: Any) -> None:
    long = {"prompt": "long", "completion": "word " * 200}
    hopeless = {"prompt": "word " * 200, "completion": "behind the cut"}
    path = write(tmp_path / "rows.jsonl", [*rows(3), long, hopeless])
    settings = data(train=path, eval=0, too_long="truncate", max_length=100)
    ledger = encoded(read(settings), tokenizer).ledger
    counts = ledger.total.rows
    assert (counts.read, counts.trained, ledger.total.truncated, counts.too_long, counts.held_out) == (5, 4, 1, 1, 0)


def test_each_source_has_counts_of_its_own(tmp_path: Path, tokenizer: Any) -> None:
    paths = [write(tmp_path / f"{name}.jsonl", rows(count, name)) for name, count in (("a", 3), ("b", 4), ("c", 5))]
    settings = data(train=paths[:2], eval=paths[2])
    ledger = encoded(read(settings), tokenizer).ledger
    counts = {path: account.rows for path, account in ledger.sources.items()}
    assert {path: (each.read, each.trained, each.held_out) for path, each in counts.items()} == {
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
    made = encoded(read(settings), tokenizer)
    assert [row.example for row in made.train] == [0, 0, 1, 1]
    assert made.weights.tolist() == [1.0] * 4
    assert made.ledger.total.rows.trained == 2


KINDS = ("good", "again", "bad", "leaked", "long", "hopeless")
GOOD_KINDS = st.lists(st.sampled_from(["good", "long", "hopeless", "bad"]), max_size=4)
LIMIT = 60


def row_of(kind: str, name: str) -> dict[str, Any]:
    return {
        "good": {"prompt": f"{name}?", "completion": f"answer {name}"},
        "again": {"prompt": "always?", "completion": "the same"},
        "bad": {"prompt": f"{name}?", "completion": {"n": 7}},
        "leaked": {"prompt": "held?", "completion": f"guess {name}"},
        "long": {"prompt": f"{name}?", "completion": "word " * 40},
        "hopeless": {"prompt": "word " * 40 + name, "completion": "behind the cut"},
    }[kind]


def expected_account(content: Sequence[tuple[str, dict[str, Any]]], side: str, too_long: str, template: Any) -> Account:
    """One file's account, from what its rows were made to be and from the template alone."""
    account = Account()

    def add(place: str, *amounts: int) -> None:
        for unit, amount in zip(("rows", "tokens", "supervised"), amounts, strict=True):
            counts: RowCounts = getattr(account, unit)
            setattr(counts, place, getattr(counts, place) + amount)
            counts.read += amount

    for kind, row in content:
        if kind == "bad":
            add("invalid", 1, 0, 0)
            continue
        (made,) = template.encode(corpus_example(row), 0)
        whole, short = (len(made.ids), int(made.supervised.sum())), int(made.supervised[:LIMIT].sum())
        if kind in ("duplicate", "leaked"):
            add(kind, 1, *whole)
        elif len(made.ids) <= LIMIT:
            add(side, 1, *whole)
        elif too_long == "truncate" and short:
            add(side, 1, LIMIT, short)
            add("too_long", 0, len(made.ids) - LIMIT, whole[1] - short)
            account.truncated += 1
        else:
            add("too_long", 1, *whole)
    return account


def corpus_example(row: Mapping[str, Any]) -> Example:
    from tunesmith.data.examples.example import to_example

    return to_example(row, shape="prompt_completion", source="rows:1")


@hypothesis_settings(max_examples=25, deadline=None)
@given(
    sources=st.lists(st.lists(st.sampled_from(KINDS), max_size=7), min_size=1, max_size=3),
    held_out=GOOD_KINDS,
    test=GOOD_KINDS,
    too_long=st.sampled_from(["error", "drop", "truncate"]),
)
def test_rows_tokens_and_labels_add_up_source_by_source(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: Any,
    sources: list[list[str]],
    held_out: list[str],
    test: list[str],
    too_long: str,
) -> None:
    folder = tmp_path_factory.mktemp("mixture")
    sides = [("trained", ["good", *kinds]) for kinds in sources] + [("held_out", ["held", *held_out])]
    sides.append(("test", ["good", *test]))
    files: list[tuple[str, str, list[tuple[str, dict[str, Any]]]]] = []
    seen_again = False
    for number, (side, kinds) in enumerate(sides):
        content = []
        for line, kind in enumerate(kinds):
            row = {"prompt": "held?", "completion": "yes"} if kind == "held" else row_of(kind, f"{number} {line}")
            if kind == "again":
                kind, seen_again = "duplicate" if seen_again else "good", True
            content.append((kind, row))
        files.append((write(folder / f"{number}.jsonl", [row for _, row in content]), side, content))
    train, (evaluation, testing) = [path for path, side, _ in files if side == "trained"], [p for p, _, _ in files[-2:]]
    settings = data(
        train=train, eval=evaluation, test=testing, on_error="skip", too_long=too_long, max_length=LIMIT,
        clean=["dedupe", "drop_leaked"],
    )  # fmt: skip
    found = read(settings)
    long = sum(kind in ("long", "hopeless") for _, _, content in files for kind, _ in content)
    if too_long == "error" and long:
        kept = sum(kind not in ("bad", "duplicate", "leaked") for _, _, content in files for kind, _ in content)
        with pytest.raises(DataError, match=f"{long} of {kept} rows are longer"):
            encoded(found, tokenizer)
        return
    made = encoded(found, tokenizer)
    template = make_template(settings, tokenizer, (STOP,))
    expected = {path: expected_account(content, side, too_long, template) for path, side, content in files}
    assert made.ledger.sources == expected
    for name, rows in (("trained", made.train), ("held_out", made.held_out)):
        assert (getattr(made.ledger.total.tokens, name), getattr(made.ledger.total.supervised, name)) == sums(rows)
    for counts in (made.ledger.total.rows, made.ledger.total.tokens, made.ledger.total.supervised):
        assert counts.read == sum(getattr(counts, place) for place in OUTCOMES)
    assert made.ledger.total.rows.read == len(found.scan) == sum(len(content) for _, _, content in files)


@hypothesis_settings(max_examples=15, deadline=None)
@given(
    sources=st.lists(st.lists(st.sampled_from(KINDS), max_size=7), min_size=1, max_size=3),
    shares=st.sampled_from([(0.3, 0.0), (0.3, 0.3), (0.0, 0.3)]),
    too_long=st.sampled_from(["drop", "truncate"]),
    balance=st.sampled_from([None, 2]),
    seed=st.integers(0, 3),
)
def test_rows_tokens_and_labels_add_up_where_shares_are_held_out(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: Any,
    sources: list[list[str]],
    shares: tuple[float, float],
    too_long: str,
    balance: int | None,
    seed: int,
) -> None:
    folder = tmp_path_factory.mktemp("shares")
    contents = [
        [*rows(40, f"s{number}"), *(row_of(kind, f"{number} {line}") for line, kind in enumerate(kinds))]
        for number, kinds in enumerate(sources)
    ]
    paths = [write(folder / f"{number}.jsonl", content) for number, content in enumerate(contents)]
    clean = {"dedupe": True, "near_dedupe": True, "drop_leaked": True, "balance": balance}
    settings = data(
        train=paths, eval=shares[0], test=shares[1], on_error="skip", too_long=too_long, max_length=LIMIT, clean=clean
    )
    found = survey_rows(settings, seed=seed)
    made = encoded(found, tokenizer)
    template = make_template(settings, tokenizer, (STOP,))
    for path, content in zip(paths, contents, strict=True):
        account = made.ledger.sources[path]
        whole = [
            row
            for each in content
            if isinstance(each["completion"], str)
            for row in template.encode(corpus_example(each), 0)
        ]
        assert (account.rows.read, account.rows.invalid) == (len(content), len(content) - len(whole))
        assert (account.tokens.read, account.supervised.read) == sums(whole)
        for counts in (account.rows, account.tokens, account.supervised):
            assert counts.read == sum(getattr(counts, place) for place in OUTCOMES)
    for name, side in (("trained", made.train), ("held_out", made.held_out)):
        assert (getattr(made.ledger.total.tokens, name), getattr(made.ledger.total.supervised, name)) == sums(side)
        assert getattr(made.ledger.total.rows, name) == len(side)


# Rows that are too long

TILDES = (  # a tilde is a token of the tiny tokenizer, whatever stands beside it
    "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}{{ '<|im_end|>' }}{% endif %}{% endfor %}"
)
SIZES = [(60, 30), (90, 30), (90, 70), (120, 100), (70, 20)]  # tokens of a row, and of its prompt


def sized(path: Path, sizes: Sequence[tuple[int, int]], **section: Any) -> Survey:
    content = [{"prompt": "~" * prompt, "completion": "~" * (tokens - prompt - 1)} for tokens, prompt in sizes]
    return read(data(train=write(path / "rows.jsonl", content), eval=0, chat_template=TILDES, **section))


def test_rows_that_fit_are_kept_as_they_are(tmp_path: Path, tokenizer: Any) -> None:
    made = encoded(sized(tmp_path, SIZES, max_length=120), tokenizer)
    assert made.train.examples.tolist() == [0, 1, 2, 3, 4]
    assert [(len(row.ids), int((~row.supervised).sum())) for row in made.train] == SIZES
    assert (made.left_out.tolist(), made.ledger.total.truncated) == ([], 0)


def test_long_rows_are_refused_naming_the_longest_and_a_length_that_fits_them(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(DataError) as caught:
        encoded(sized(tmp_path, SIZES, max_length=60), tokenizer)
    error, path = caught.value, tmp_path / "rows.jsonl"
    assert "4 of 5 rows are longer than data.max_length (60 tokens)" in error.what
    assert error.where == f"{path}:4"
    assert (error.why or "").splitlines()[1:4] == [
        f"{path}:4: 120 tokens",
        f"{path}:2: 90 tokens",
        f"{path}:3: 90 tokens",
    ]
    assert "data.max_length: 120" in (error.remedy or "")


def test_only_the_longest_rows_are_named(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(DataError, match="and 7 more"):
        encoded(sized(tmp_path, [(20 + line, 3) for line in range(12)], max_length=10), tokenizer)


@pytest.mark.parametrize("section", [{"too_long": "drop"}, {"clean": ["max_length"]}])
def test_drop_sets_long_rows_aside_and_counts_them(tmp_path: Path, tokenizer: Any, section: dict[str, Any]) -> None:
    made = encoded(sized(tmp_path, SIZES, max_length=70, **section), tokenizer)
    assert made.train.examples.tolist() == [0, 4]
    assert made.left_out.tolist() == [1, 2, 3]
    assert (made.ledger.total.rows.too_long, made.ledger.total.tokens.too_long, made.ledger.total.truncated) == (
        3,
        300,
        0,
    )


def test_truncate_cuts_the_end_and_drops_what_has_no_label_left(tmp_path: Path, tokenizer: Any) -> None:
    whole = encoded(sized(tmp_path, SIZES, max_length=120), tokenizer).train
    made = encoded(sized(tmp_path, SIZES, max_length=70, too_long="truncate"), tokenizer)
    assert made.train.examples.tolist() == [0, 1, 4]
    assert made.left_out.tolist() == [2, 3]
    assert (made.ledger.total.rows.too_long, made.ledger.total.truncated) == (2, 1)
    assert (made.ledger.total.tokens.too_long, made.ledger.total.supervised.too_long) == (90 + 120 + 20, 20 + 20 + 20)
    cut = made.train[1]
    assert cut.ids.tolist() == whole[1].ids[:70].tolist()
    assert cut.supervised.tolist() == [False] * 30 + [True] * 40
    assert cut.source == f"{tmp_path / 'rows.jsonl'}:2"
    assert made.train.lengths.tolist() == [60, 70, 70]
    assert made.train.supervised_counts.tolist() == [30, 40, 50]


@pytest.mark.parametrize("too_long", ["drop", "truncate"])
def test_every_row_is_kept_or_left_out(tmp_path: Path, tokenizer: Any, too_long: str) -> None:
    made = encoded(sized(tmp_path, SIZES, max_length=70, too_long=too_long), tokenizer)
    assert sorted([*made.train.examples.tolist(), *made.left_out.tolist()]) == list(range(len(SIZES)))


def test_held_out_rows_that_are_all_too_long_are_told(tmp_path: Path, tokenizer: Any) -> None:
    held_out = write(tmp_path / "held.jsonl", [row_of("long", "a"), row_of("long", "b")])
    settings = data(train=write(tmp_path / "a.jsonl", rows(3)), eval=held_out, too_long="drop", max_length=LIMIT)
    with pytest.raises(DataError, match="No row is left to judge on") as caught:
        encoded(read(settings), tokenizer)
    assert caught.value.why == f"All 2 rows have more than {LIMIT} tokens."


# Rows that may be lost


def test_more_lost_rows_than_allowed_stop_a_run(tmp_path: Path, tokenizer: Any) -> None:
    content = [*rows(6), rows(1)[0], row_of("bad", "x"), row_of("long", "y"), row_of("long", "z")]
    section = {"train": write(tmp_path / "rows.jsonl", content), "eval": 0, "on_error": "skip", "too_long": "drop"}
    found = read(data(**section, max_length=LIMIT, clean=["dedupe"], max_lost=0.39))
    with pytest.raises(DataError) as caught:
        encoded(found, tokenizer)
    error = caught.value
    assert (error.what, error.where) == ("4 of 10 rows are lost before training (40.0%)", "data.max_lost")
    assert error.why == "1 invalid, 1 duplicate, 0 leaked, 0 unbalanced, 2 too long; data.max_lost allows 39.0%"
    for allowed in (0.4, None):
        made = encoded(replace(found, settings=found.settings.model_copy(update={"max_lost": allowed})), tokenizer)
        assert made.ledger.total.rows.trained == 6


def test_a_run_that_loses_nothing_may_allow_nothing(tmp_path: Path, tokenizer: Any) -> None:
    settings = data(train=write(tmp_path / "rows.jsonl", rows(20)), eval=0.2, max_lost=0)
    assert encoded(read(settings), tokenizer).ledger.total.rows.trained > 0


# What an epoch has of each source


def order_of(made: Corpus, seed: int = 0) -> Order:
    return Order(
        made.weights,
        sources=made.train_sources,
        quotas=made.quotas,
        batch_size=4,
        epochs=3.0,
        max_steps=None,
        seed=seed,
    )


def of_source(made: Corpus, drawn: np.ndarray, name: str) -> list[int]:
    return [row for row in drawn.tolist() if made.source_names[made.train_sources[row]] == name]


@pytest.mark.parametrize("wanted", [1, 7, 20, 45])
def test_a_source_gives_as_many_rows_an_epoch_as_the_recipe_says(tmp_path: Path, tokenizer: Any, wanted: int) -> None:
    fixed, other = write(tmp_path / "a.jsonl", rows(20, "a")), write(tmp_path / "b.jsonl", rows(9, "b"))
    made = encoded(read(data(train=[{"path": other}, {"path": fixed, "rows": wanted}], eval=0)), tokenizer)
    epochs = [order_of(made).epoch_rows(epoch) for epoch in range(4)]
    for drawn in epochs:
        assert len(of_source(made, drawn, fixed)) == wanted
        assert sorted(of_source(made, drawn, other)) == list(range(9))
        copies = Counter(of_source(made, drawn, fixed))
        assert set(copies.values()) <= {wanted // 20, wanted // 20 + 1}
        assert wanted < 20 or len(copies) == 20
    chosen = [Counter(of_source(made, drawn, fixed)) for drawn in epochs]
    if wanted % 20:
        assert any(one != chosen[0] for one in chosen[1:])
    assert all(np.array_equal(order_of(made).epoch_rows(epoch), drawn) for epoch, drawn in enumerate(epochs))
    assert not np.array_equal(order_of(made, seed=1).epoch_rows(0), epochs[0])
    shares = made.shares(epochs[0])
    assert [line.partition(" rows")[0] for line in shares] == [f"{other}: 9", f"{fixed}: {wanted}"]


def test_a_weight_says_how_often_an_epoch_has_the_rows_of_a_source(tmp_path: Path, tokenizer: Any) -> None:
    often, seldom = write(tmp_path / "a.jsonl", rows(10, "a")), write(tmp_path / "b.jsonl", rows(40, "b"))
    sources = [{"path": often, "weight": 2.0}, {"path": seldom, "weight": 0.5}]
    made = encoded(read(data(train=sources, eval=0)), tokenizer)
    assert made.quotas == {}
    epochs = [order_of(made).epoch_rows(epoch) for epoch in range(20)]
    assert all(Counter(of_source(made, drawn, often)) == dict.fromkeys(range(10), 2) for drawn in epochs)
    drawn = [of_source(made, rows, seldom) for rows in epochs]
    assert all(len(set(some)) == len(some) for some in drawn)
    assert 15 < np.mean([len(some) for some in drawn]) < 25


def test_one_source_has_no_shares_to_tell(tmp_path: Path, tokenizer: Any) -> None:
    made = encoded(read(data(train=write(tmp_path / "a.jsonl", rows(4)), eval=0)), tokenizer)
    assert made.shares(order_of(made).epoch_rows(0)) == []


# What trains and what is held out


def test_weights_follow_their_rows_through_the_split_and_the_fitting(tmp_path: Path, tokenizer: Any) -> None:
    long = {"prompt": "long", "completion": "word " * 200}
    often = write(tmp_path / "often.jsonl", [long, *rows(30, "a")])
    seldom = write(tmp_path / "seldom.jsonl", [*rows(15, "b"), long, *rows(15, "c")])
    sources = [{"path": often, "weight": 2.0}, {"path": seldom, "weight": 0.5}]
    settings = data(train=sources, eval=0.3, too_long="drop", max_length=100)
    made = encoded(read(settings), tokenizer)
    assert len(made.weights) == len(made.train)
    expected = {often: 2.0, seldom: 0.5}
    assert [expected[source_file(row)] for row in made.train] == made.weights.tolist()
    assert [made.source_names[number] for number in made.train_sources] == [source_file(row) for row in made.train]
    assert 0 < Counter(made.weights.tolist())[2.0] < 30


def test_a_share_holds_out_whole_prompts_by_seed(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [*rows(30), *rows(30, unused=1)])
    settings = data(train=path, eval=0.3)
    examples = read(settings)
    train, held_out = (Counter(row.prompt_key() for row in placed(examples, side)) for side in ("trained", "held_out"))
    assert train.keys().isdisjoint(held_out)
    assert len(train) + len(held_out) == 30
    assert set(train.values()) == set(held_out.values()) == {2}
    said = f"held out by prompt: {held_out.total()} of 60 rows (share 0.3)"
    drawn = f"it became {held_out.total() / 60:.2g}, because a hash draws rows; another training.seed draws others"
    assert abs(held_out.total() / 60 - 0.3) > 0.06
    assert examples.notes[-1] == f"{said}: {drawn}"
    assert names(read(settings), "held_out") == names(examples, "held_out")
    assert names(read(settings, seed=1), "held_out") != names(examples, "held_out")


def test_a_tenth_is_held_out_where_nothing_is_said(tmp_path: Path) -> None:
    examples = read(data(train=write(tmp_path / "rows.jsonl", rows(200))))
    assert 8 <= len(names(examples, "held_out")) <= 35
    assert examples.notes[-1].endswith("(share 0.1)")


def test_a_file_of_its_own_is_held_out_whole(tmp_path: Path) -> None:
    train, held_out = write(tmp_path / "train.jsonl", rows(5)), write(tmp_path / "held.jsonl", rows(3, "other"))
    examples = read(data(train=train, eval=held_out))
    assert [source_file(row) for row in placed(examples, "trained")] == [train] * 5
    assert [source_file(row) for row in placed(examples, "held_out")] == [held_out] * 3
    assert [(source["side"], source["rows"]) for source in examples.sources] == [("train", 5), ("eval", 3)]


def test_the_test_split_of_a_dataset_is_held_out_where_nothing_is_said(tmp_path: Path, tokenizer: Any) -> None:
    write(tmp_path / "set" / "train.jsonl", rows(6))
    write(tmp_path / "set" / "test.jsonl", rows(4, "other"))
    folder = str(tmp_path / "set")
    settings = data(train=folder)
    examples = read(settings)
    assert examples.notes[-1] == f"held out: the dataset's own {folder} split test"
    assert [source["split"] for source in examples.sources] == ["train", "test"]
    counts = encoded(examples, tokenizer).ledger.sources[folder].rows
    assert (counts.read, counts.trained, counts.held_out) == (10, 6, 4)
    assert names(read(data(train=folder, eval=0)), "held_out") == []


def test_a_dataset_beside_one_without_a_test_split_gives_a_share(tmp_path: Path) -> None:
    write(tmp_path / "set" / "train.jsonl", rows(60))
    write(tmp_path / "set" / "test.jsonl", rows(4, "other"))
    examples = read(data(train=[str(tmp_path / "set"), write(tmp_path / "more.jsonl", rows(60, "more"))]))
    assert len(names(examples, "trained")) + len(names(examples, "held_out")) == 120
    assert names(examples, "held_out")
    assert examples.notes[-1].startswith("held out by prompt")


def test_two_answers_to_one_prompt_are_one_group(tmp_path: Path, tokenizer: Any) -> None:
    held_out = [*rows(2), {"prompt": "q 0", "completion": "another answer"}, *rows(1, "new")]
    settings = data(train=write(tmp_path / "a.jsonl", rows(3, "a")), eval=write(tmp_path / "b.jsonl", held_out))
    made = encoded(read(settings), tokenizer)
    assert made.groups.tolist() == [0, 1, 2, 3, 4, 3, 6]
    assert made.held_out.examples.tolist() == [3, 4, 5, 6]


def test_all_rows_can_be_taken_to_judge_on(tmp_path: Path, tokenizer: Any) -> None:
    settings = data(train=write(tmp_path / "a.jsonl", rows(3)), eval=0)
    examples = only_held_out(read(settings))
    made = encoded(examples, tokenizer)
    assert (len(made.train), len(made.held_out), made.weights.tolist()) == (0, 3, [])
    assert made.ledger.total.rows.held_out == 3


# Rows that cannot be used


def test_a_source_without_a_good_row_is_refused_by_its_own_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(
        json.dumps([{"prompt": 1, "completion": "x"}, {"prompt": 2, "completion": "y"}])
    )
    beside = write(tmp_path / "rows.jsonl", [*rows(2), {"prompt": 3, "completion": "z"}])
    sources = [{"path": beside}, {"path": str(tmp_path / "rows.json")}]
    with pytest.raises(DataError) as caught:
        read(data(train=sources, eval=0, on_error="skip"))
    assert caught.value.what == "2 of 2 rows cannot be used"
    assert beside not in str(caught.value)


def test_a_bad_row_stops_or_is_set_aside(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [*rows(2), {"prompt": "q", "completion": [5]}, *rows(1, "b")])
    with pytest.raises(DataError) as caught:
        read(data(train=path, eval=0))
    assert f"{path}:3: completion" in str(caught.value)
    examples = read(data(train=path, eval=0, on_error="skip"))
    assert names(examples, "trained") == [f"{path}:1", f"{path}:2", f"{path}:4"]
    (rejected,) = examples.rejected
    assert (rejected.source, rejected.field) == (f"{path}:3", "completion")
    assert json.loads(rejected.raw) == {"prompt": "q", "completion": [5]}
    assert set(asdict(rejected)) == {"source", "field", "found", "expected", "raw"}
    assert (examples.sources[0]["rows"], examples.sources[0]["invalid"]) == (4, 1)


def test_bad_rows_of_the_held_out_file_are_set_aside_too(tmp_path: Path, tokenizer: Any) -> None:
    held_out = write(tmp_path / "held.jsonl", [{"prompt": "q"}, *rows(2, "b")])
    settings = data(train=write(tmp_path / "a.jsonl", rows(2)), eval=held_out, on_error="skip")
    examples = read(settings)
    assert [row.source for row in examples.rejected] == [f"{held_out}:1"]
    counts = encoded(examples, tokenizer).ledger.sources[held_out].rows
    assert (counts.read, counts.invalid, counts.held_out) == (3, 1, 2)


def test_one_prompt_cannot_be_divided_and_the_ways_out_work(tmp_path: Path, tokenizer: Any) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "Name a colour", "completion": f"Colour {n}"} for n in range(20)])
    with pytest.raises(DataError, match="the shares leave no row") as caught:
        read(data(train=path, eval=0.2))
    remedy = str(caught.value.remedy)
    assert "seed" not in remedy and "data.eval: 0" in remedy and "data.eval: held_out.jsonl" in remedy
    assert encoded(read(data(train=path, eval=0)), tokenizer).ledger.total.rows.trained == 20


def test_truncating_is_no_remedy_where_it_is_set(tmp_path: Path, tokenizer: Any) -> None:
    settings = data(train=write(tmp_path / "a.jsonl", rows(2)), eval=0, too_long="truncate", max_length=8)
    with pytest.raises(DataError, match="No row is left to train on") as caught:
        encoded(read(settings), tokenizer)
    assert caught.value.remedy == "Raise data.max_length."
    assert "nothing to learn" in str(caught.value.why)


def test_rows_that_are_all_too_long_are_told_before_the_model_is_loaded(tmp_path: Path, tokenizer: Any) -> None:
    settings = data(train=write(tmp_path / "a.jsonl", rows(2)), eval=0, too_long="drop", max_length=8)
    with pytest.raises(DataError, match="No row is left to train on"):
        encoded(read(settings), tokenizer)


def test_a_row_that_is_too_long_is_refused_by_name_where_nothing_is_said(tmp_path: Path, tokenizer: Any) -> None:
    path = write(tmp_path / "a.jsonl", [*rows(2), {"prompt": "q", "completion": "word " * 200}])
    settings = data(train=path, eval=0, max_length=100)
    with pytest.raises(DataError) as caught:
        encoded(read(settings), tokenizer)
    assert caught.value.where == f"{path}:3"


def test_raw_text_cannot_be_judged_by_its_answers(tmp_path: Path) -> None:
    text = write(tmp_path / "text.jsonl", [{"text": f"document {number}"} for number in range(3)])
    examples = read(data(train=text, eval=0))
    assert examples.raw_text
    with pytest.raises(RecipeError) as caught:
        check_metrics(["loss", "exact_match"], examples)
    assert (caught.value.where, caught.value.why) == ("evaluation.metrics", "The rows are raw text.")
    check_metrics(["loss", "perplexity"], examples)
    mixed = read(data(train=[text, write(tmp_path / "a.jsonl", rows(1))], eval=0))
    check_metrics(["exact_match"], mixed)


def test_raw_text_trains_on_all_but_its_first_token(tmp_path: Path, tokenizer: Any) -> None:
    settings = data(train=write(tmp_path / "text.jsonl", [{"text": "a document"}]), eval=0)
    (row,) = encoded(read(settings), tokenizer).train
    assert row.supervised.tolist() == [False] + [True] * (len(row.ids) - 1)
    assert row.ids[-1] == STOP


def text_of(path: Path, sizes: Sequence[int], **section: Any) -> DataSettings:
    """Documents of so many words, each of another word."""
    content = [{"text": " ".join([f"w{number}"] * size)} for number, size in enumerate(sizes)]
    return data(**{"train": write(path / "text.jsonl", content), "eval": 0, **section})


def with_bos(tokenizer: Any) -> Any:
    """Like llama's: a text begins with a token of its own."""
    from tokenizers.processors import TemplateProcessing

    made = copy.deepcopy(tokenizer)
    start = (tokenizer.bos_token, tokenizer.bos_token_id)
    made.backend_tokenizer.post_processor = TemplateProcessing(single=f"{start[0]} $A", special_tokens=[start])
    return made


@pytest.mark.parametrize("limit", [8, 9, 50, 51, 52, 1000])
def test_long_raw_text_is_split_so_that_each_token_is_learned_once(tmp_path: Path, tokenizer: Any, limit: int) -> None:
    tokenizer = with_bos(tokenizer)
    sizes = [25, 1, 40, 90]
    whole = encoded(read(text_of(tmp_path, sizes, max_length=10_000)), tokenizer)
    assert (whole.ledger.total.split, whole.ledger.total.blocks) == (0, 0)
    made = encoded(read(text_of(tmp_path, sizes, max_length=limit)), tokenizer)
    assert max(len(row.ids) for row in made.train) <= limit
    blocks = Counter(row.example for row in made.train)
    for number, document in enumerate(whole.train):
        own = [row for row in made.train if row.example == number]
        assert np.concatenate([row.ids[row.supervised] for row in own]).tolist() == document.ids[1:].tolist()
        assert document.ids[0] == tokenizer.bos_token_id and document.ids[-1] == STOP
        assert own[0].ids[0] == document.ids[0]
        for before, block in pairwise(own):
            assert len(before.ids) == limit
            assert block.ids[0] == before.ids[-1] != tokenizer.bos_token_id
            assert block.supervised.tolist() == [False] + [True] * (len(block.ids) - 1)
            assert block.source == document.source
    assert made.train.lengths.tolist() == [len(row.ids) for row in made.train]
    assert made.train.supervised_counts.tolist() == [int(row.supervised.sum()) for row in made.train]
    ledger, split = made.ledger, [count for count in blocks.values() if count > 1]
    assert (ledger.total.split, ledger.total.blocks) == (len(split), sum(split))
    assert ledger.total.rows == whole.ledger.total.rows and ledger.total.tokens == whole.ledger.total.tokens
    assert ledger.total.supervised == whole.ledger.total.supervised
    assert ledger.total.tokens.trained == sums(whole.train)[0]
    picked = pickle.loads(pickle.dumps(made.train[1:].select([-1, 0])))  # noqa: S301 - our own
    assert [row.ids.tolist() for row in picked] == [made.train[-1].ids.tolist(), made.train[1].ids.tolist()]


def test_the_blocks_of_a_document_are_on_one_side_and_in_one_group(tmp_path: Path, tokenizer: Any) -> None:
    made = encoded(read(text_of(tmp_path, range(20, 60), eval=0.5, max_length=16)), tokenizer)
    sides = [{row.example for row in side} for side in (made.train, made.held_out)]
    assert sides[0].isdisjoint(sides[1]) and len(sides[0] | sides[1]) == 40
    assert len(made.held_out) > len(sides[1])
    assert len(made.weights) == len(made.train_sources) == len(made.train)
    assert made.ledger.total.blocks == len(made.train) + len(made.held_out)


def test_only_raw_text_is_split(tmp_path: Path, tokenizer: Any) -> None:
    talk = write(tmp_path / "talk.jsonl", [*rows(2), {"prompt": "q", "completion": "word " * 200}])
    text = text_of(tmp_path, [100]).train[0].path
    for asked in ("auto", "split"):
        with pytest.raises(DataError, match="1 of 4 rows are longer") as caught:
            encoded(read(data(train=[text, talk], eval=0, max_length=50, too_long=asked)), tokenizer)
        assert caught.value.where == f"{talk}:3" and "split" not in str(caught.value.remedy)
    settings = data(train=[text, talk], eval=0, max_length=50, too_long="split", clean=["max_length"])
    made = encoded(read(settings), tokenizer)
    assert (made.ledger.sources[text].blocks, made.ledger.sources[talk].rows.too_long) == (len(made.train) - 2, 1)
    with pytest.raises(DataError, match="nothing to split: no row is raw text"):
        read(data(train=talk, eval=0, too_long="split"))


def test_raw_text_is_treated_as_any_row_where_the_recipe_says_so(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(DataError, match="1 of 2 rows are longer") as caught:
        encoded(read(text_of(tmp_path, [10, 100], max_length=50, too_long="error")), tokenizer)
    assert "data.too_long: split" in str(caught.value.remedy)
    for section in ({"too_long": "drop"}, {"clean": ["max_length"]}):
        made = encoded(read(text_of(tmp_path, [10, 100], max_length=50, **section)), tokenizer)
        assert (made.ledger.total.rows.too_long, made.ledger.total.split, len(made.train)) == (1, 0, 1)
    made = encoded(read(text_of(tmp_path, [10, 100], max_length=50, too_long="truncate")), tokenizer)
    assert (made.ledger.total.truncated, made.ledger.total.split, made.train.lengths.max()) == (1, 0, 50)


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
            "weight": 1.0,
            "systems": [None],
            "tools": [],
            "rows_an_epoch": None,
            "files": [{"path": path, "sha256": digest}],
            "ignored": [],
        }
    ]
    json.dumps(examples.sources)


def test_the_date_of_a_template_is_the_recipes_or_todays(tokenizer: Any) -> None:
    today = make_template(data(train="a"), tokenizer, (STOP,)).rules.date
    assert len(today) == 10
    assert make_template(data(train="a", date="2025-01-31"), tokenizer, (STOP,)).rules.date == "2025-01-31"


# Rows that the chat template refuses


def talks(*openings: str) -> list[dict[str, Any]]:
    """A conversation for each opening; one that starts with the assistant begins with a >."""
    made = []
    for number, opening in enumerate(openings):
        turns = [{"role": "user", "content": opening}, {"role": "assistant", "content": f"answer {number}"}]
        greeting = [{"role": "assistant", "content": "Hello"}]
        made.append({"messages": greeting + turns if opening.startswith(">") else turns})
    return made


@pytest.fixture(scope="module")
def strict(tiny_model_dir: Path) -> Any:
    """A tokenizer whose template looks at the first turn, as most do."""
    made = AutoTokenizer.from_pretrained(tiny_model_dir)
    made.chat_template = "{% if messages[0].role == 'system' %}{% endif %}" + made.chat_template
    return made


def test_a_conversation_that_starts_with_the_assistant_is_one_bad_row(tmp_path: Path, strict: Any) -> None:
    path = write(tmp_path / "talks.jsonl", talks("a", "b", ">c", "d", "e", "f"))
    made = encoded(read(data(train=path, eval=0.0, on_error="skip")), strict)
    assert (made.ledger.total.rows.read, made.ledger.total.rows.invalid, len(made.train)) == (6, 1, 5)
    [refused] = made.refused
    assert (refused.source, refused.example) == (f"{path}:3", 2)
    assert "starts with the assistant" in refused.bad_row().found
    assert refused.remedy.startswith("put a user turn before its first turn")
    mended = talks("a", ">c")
    mended[1]["messages"].insert(0, {"role": "user", "content": "Hi"})
    made = encoded(read(data(train=write(tmp_path / "mended.jsonl", mended), eval=0.0)), strict)
    assert len(made.train) == 2


def test_refused_rows_stop_a_run_with_the_first_and_the_number_of_others(tmp_path: Path, strict: Any) -> None:
    path = write(tmp_path / "talks.jsonl", talks("a", ">b", "c", ">d", ">e"))
    for _ in range(2):  # again from the cache of a run that skips
        with pytest.raises(DataError) as caught:
            encoded(read(data(train=path, eval=0.0)), strict)
        assert caught.value.where == f"{path}:2"
        assert f"2 more rows cannot be used either, such as {path}:4, {path}:5" in str(caught.value.why)
        assert str(caught.value.remedy).endswith(", or set data.on_error: skip to leave such rows out.")
        assert len(encoded(read(data(train=path, eval=0.0, on_error="skip")), strict).train) == 2


def test_rows_that_are_all_refused_stop_a_run_that_skips_bad_rows(tmp_path: Path, strict: Any) -> None:
    path = write(tmp_path / "talks.jsonl", talks(">a", ">b"))
    with pytest.raises(DataError) as caught:
        encoded(read(data(train=path, eval=0.0, on_error="skip")), strict)
    assert caught.value.where == f"{path}:1"
    assert "on_error" not in str(caught.value.remedy)


def test_max_lost_counts_refused_rows(tmp_path: Path, strict: Any) -> None:
    path = write(tmp_path / "talks.jsonl", talks("a", ">b", "c", ">d"))
    with pytest.raises(DataError, match="2 of 4 rows are lost before training"):
        encoded(read(data(train=path, eval=0.0, on_error="skip", max_lost=0.2)), strict)
