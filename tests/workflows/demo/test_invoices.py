"""The demo's rows are certain, deterministic, and held out by phrasing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from tests.workflows.demo.invoices import (
    CURRENCIES,
    DAYS,
    FIRST_DAY,
    FOREIGN,
    HELD_OUT_ROWS,
    INSTRUCTION,
    MONTH_FIRST,
    PHRASINGS,
    SEED,
    TRAIN_ROWS,
    amount_text,
    date_text,
    phrasing_of,
    rows,
    write,
)

from tunesmith.workflows.demo.story import ROWS

TRAINING = {template for phrasing in PHRASINGS.values() for template in phrasing.training}
HELD_OUT = {template for phrasing in PHRASINGS.values() for template in phrasing.held_out}


def test_there_are_twelve_locales_and_each_language_has_ten_training_and_four_held_out_templates() -> None:
    assert len(CURRENCIES) == 12
    assert {locale.partition("_")[0] for locale in CURRENCIES} == set(PHRASINGS)
    assert {(len(p.training), len(p.held_out)) for p in PHRASINGS.values()} == {(10, 4)}
    assert sum(len(p.held_out) for p in PHRASINGS.values()) == len(HELD_OUT)


@pytest.mark.parametrize("template", sorted(TRAINING | HELD_OUT))
def test_a_template_names_each_field_once(template: str) -> None:
    assert sorted(re.findall(r"\{(\w+)\}", template)) == ["amount", "date", "number"]


def test_no_held_out_template_nor_any_line_of_one_occurs_in_training_of_any_locale() -> None:
    lines = {line for template in HELD_OUT for line in template.split("\n")}
    assert [(part, template) for part in HELD_OUT | lines for template in TRAINING if part in template] == []


def test_no_held_out_header_has_the_wording_of_a_training_header() -> None:
    training = rows(1800, seed=0, held_out=False)
    held_out = rows(300, seed=0, held_out=True)
    assert {row["input"] for row in training}.isdisjoint(row["input"] for row in held_out)
    training_lines = {line for row in training for line in _wording(row).split("\n")}
    held_out_lines = {line for row in held_out for line in _wording(row).split("\n")}
    assert training_lines.isdisjoint(held_out_lines)


def test_the_text_of_a_date_decides_the_date_in_every_locale() -> None:
    meanings: dict[str, set[date]] = {}
    for day in (FIRST_DAY + timedelta(days=number) for number in range(DAYS)):
        if day.year in (2020, 2026) or (day.day <= 12 and day.month % 5 == 1):
            for text in _dates(day):
                meanings.setdefault(text, set()).add(day)
    assert len(meanings) > 5000
    assert {text: days for text, days in meanings.items() if len(days) > 1} == {}


def test_the_text_of_an_amount_decides_amount_and_currency_in_every_locale() -> None:
    meanings: dict[str, set[tuple[Decimal, str]]] = {}
    values = [Decimal(cents).scaleb(-2) for cents in (500, 505, 1249, 12490, 100000, 124900, 124950, 1249500, 9999999)]
    for locale, home in CURRENCIES.items():
        for currency in {home, *FOREIGN}:
            for value in values:
                for iso_code in (False, True):
                    text = amount_text(value, currency, locale=locale, iso_code=iso_code)
                    meanings.setdefault(text, set()).add((value, currency))
    assert len(meanings) > 300
    assert {text: truths for text, truths in meanings.items() if len(truths) > 1} == {}


def test_two_rows_with_the_same_text_would_have_the_same_truth_and_none_repeats() -> None:
    made = rows(3000, seed=1, held_out=False) + rows(1000, seed=1, held_out=True)
    assert len({row["input"] for row in made}) == len(made) == 4000


@pytest.mark.parametrize("held_out", [False, True])
def test_a_truth_is_in_canonical_form_and_can_be_read_off_its_header(held_out: bool) -> None:
    for row in rows(400, seed=2, held_out=held_out):
        truth = json.loads(row["output"])
        assert list(truth) == ["number", "date", "amount", "currency"]
        assert truth["number"] in row["input"]
        assert date.fromisoformat(truth["date"]).isoformat() == truth["date"]
        assert any(text in row["input"] for text in _dates(date.fromisoformat(truth["date"])))
        assert re.fullmatch(r"[1-9]\d*\.\d\d", truth["amount"])
        assert Decimal(5) <= Decimal(truth["amount"]) < Decimal(100_000)
        assert any(text in row["input"] for text in _amounts(Decimal(truth["amount"]), truth["currency"]))
        assert row["output"] == json.dumps(truth, separators=(",", ":"))


def test_the_instruction_names_the_four_keys_and_is_the_same_for_all_rows() -> None:
    assert all(f'"{key}"' in INSTRUCTION for key in ("number", "date", "amount", "currency"))
    assert {row["instruction"] for row in rows(50, seed=0, held_out=True)} == {INSTRUCTION}


def test_the_locales_and_their_templates_take_turns() -> None:
    wordings = [_wording(row) for row in rows(36, seed=3, held_out=True)]
    templates = [phrasing_of(locale).held_out[turn] for turn in range(3) for locale in CURRENCIES]
    assert wordings == [re.sub(r"\{\w+\}", "_", template) for template in templates]


def test_headers_are_written_as_the_cldr_has_it() -> None:
    day, amount = date(2024, 3, 4), Decimal("1249.50")
    assert date_text(day, locale="es_EC", numeric=False) == "4 de marzo de 2024"
    assert date_text(day, locale="de_AT", numeric=True) == "04.03.2024"
    assert amount_text(amount, "EUR", locale="fr_FR", iso_code=False) == "1\u202f249,50\xa0€"
    assert amount_text(amount, "CHF", locale="de_CH", iso_code=False) == "CHF\xa01’249.50"
    assert amount_text(amount, "CAD", locale="en_GB", iso_code=False) == "CA$1,249.50"
    assert amount_text(amount, "USD", locale="de_DE", iso_code=True) == "USD 1.249,50"


def test_american_headers_name_the_month_because_english_has_two_orders_for_numeric_dates() -> None:
    assert date_text(date(2024, 3, 4), locale="en_US", numeric=True) == "3/4/2024"
    assert date_text(date(2024, 3, 4), locale="en_GB", numeric=True) == "04/03/2024"
    headers = [row["input"] for row in rows(600, seed=0, held_out=False)][::12]
    assert len(headers) == 50 and next(iter(CURRENCIES)) == MONTH_FIRST
    assert not any(re.search(r"\d/\d{1,2}/\d{4}\b", header) for header in headers)


def test_the_same_seed_gives_the_same_rows_and_another_seed_others() -> None:
    assert rows(60, seed=4, held_out=False) == rows(60, seed=4, held_out=False)
    assert rows(24, seed=4, held_out=False) == rows(60, seed=4, held_out=False)[:24]
    assert rows(60, seed=4, held_out=False) != rows(60, seed=5, held_out=False)


def test_write_gives_the_same_bytes_each_time_in_two_files(tmp_path: Path) -> None:
    train, test = write(tmp_path / "demo", train=30, held_out=12, seed=0)
    first = train.read_bytes(), test.read_bytes()
    assert (train.name, test.name) == ("train.jsonl", "test.jsonl")
    assert [json.loads(line) for line in first[0].decode().splitlines()] == rows(30, seed=0, held_out=False)
    assert [json.loads(line) for line in first[1].decode().splitlines()] == rows(12, seed=0, held_out=True)
    write(tmp_path / "demo", train=30, held_out=12, seed=0)
    assert (train.read_bytes(), test.read_bytes()) == first


def test_the_rows_in_the_package_are_what_the_generator_makes(tmp_path: Path) -> None:
    made = write(tmp_path, train=TRAIN_ROWS, held_out=HELD_OUT_ROWS, seed=SEED)
    assert [ROWS.joinpath(file.name).read_bytes() for file in made] == [file.read_bytes() for file in made]


def _dates(day: date) -> Iterator[str]:
    return (
        date_text(day, locale=locale, numeric=numeric)
        for locale in CURRENCIES
        for numeric in (False, True)
        if not (numeric and locale == MONTH_FIRST)
    )


def _amounts(amount: Decimal, currency: str) -> Iterator[str]:
    return (
        amount_text(amount, currency, locale=locale, iso_code=iso_code)
        for locale in CURRENCIES
        for iso_code in (False, True)
    )


def _wording(row: dict[str, str]) -> str:
    """The header with its three values blanked, the longest matching text of each first."""
    truth = json.loads(row["output"])
    header = row["input"].replace(truth["number"], "_", 1)
    for texts in (_amounts(Decimal(truth["amount"]), truth["currency"]), _dates(date.fromisoformat(truth["date"]))):
        header = header.replace(max((text for text in texts if text in header), key=len), "_", 1)
    return header
