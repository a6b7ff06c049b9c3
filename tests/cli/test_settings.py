from __future__ import annotations

import pytest
import typer

from tunesmith.cli.options import generation_settings, in_flags, parse_columns, written_columns
from tunesmith.errors import DataError, RecipeError


def test_settings_are_read_as_yaml_values() -> None:
    found = generation_settings(["max_new_tokens=64", "do_sample=true", "temperature=1", "top_p=9e-1", "seed=3"])
    assert found == {"max_new_tokens": 64, "do_sample": True, "temperature": 1.0, "top_p": 0.9, "seed": 3}
    assert type(found["temperature"]) is float


def test_no_settings_are_no_settings() -> None:
    assert generation_settings(None) == {}


@pytest.mark.parametrize(
    ("argument", "what", "remedy"),
    [
        ("max_new_token=4", "`max_new_token` is not a generation setting", "Did you mean `max_new_tokens`?"),
        ("beams=4", "`beams` is not a generation setting", "The settings are max_new_tokens, "),
        ("64", "This argument is not KEY=VALUE", "Write KEY=VALUE without spaces, such as max_new_tokens=64."),
        ("max_new_tokens=many", "`max_new_tokens` must be a whole number, found 'many'", None),
        ("max_new_tokens=true", "`max_new_tokens` must be a whole number, found 'true'", None),
        ("max_new_tokens=", "`max_new_tokens` must be a whole number, found ''", None),
        ("temperature=true", "`temperature` must be a number, found 'true'", None),
        ("do_sample=1", "`do_sample` must be true or false, found '1'", None),
        ("seed=[1", "The value of this argument is not YAML", None),
    ],
)
def test_a_mistaken_setting_is_refused_by_name(argument: str, what: str, remedy: str | None) -> None:
    with pytest.raises(RecipeError) as raised:
        generation_settings([argument])
    assert raised.value.what == what
    assert raised.value.where == argument
    assert (raised.value.remedy or "").startswith(remedy or "")


def test_a_setting_given_twice_is_refused() -> None:
    with pytest.raises(RecipeError, match="`seed` is given twice"):
        generation_settings(["seed=1", "seed=2"])


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(RecipeError, match="both limit the answer"):
        generation_settings(["max_new_tokens=5", "max_length=9"])


def test_columns_are_pairs_of_field_and_column() -> None:
    assert parse_columns("input=text, output=the category") == {"input": "text", "output": "the category"}
    assert parse_columns(None) == {}
    assert parse_columns(r"prompt={title}, {body}\n{date},completion=a.b") == {
        "prompt": "{title}, {body}\n{date}",
        "completion": "a.b",
    }
    assert parse_columns(r"""{prompt: "{a}, c={b}\n", completion: d}""") == {
        "prompt": "{a}, c={b}\n",
        "completion": "d",
    }
    assert parse_columns(r"prompt=C:\new") == {"prompt": r"C:\new"}


@pytest.mark.parametrize("text", ["input", "input=", "=text", "input=a,input=b", "input=a,"])
def test_columns_that_are_no_pairs_are_a_usage_error(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        parse_columns(text)


@pytest.mark.parametrize(
    ("remedy", "expected"),
    [
        ("such as data.columns: {input: text, output: label}", "such as --columns input=text,output=label"),
        ("data.columns: {input: my text}", "--columns 'input=my text'"),
        ("raw text: data.format: text", "raw text: --format text"),
        ("as raw text, set data.format: text; or", "as raw text, add `--format text`; or"),
        ("with one data.instruction for all rows", "with one --instruction for all rows"),
        ("name the file .json", "name the file .json"),
    ],
)
def test_a_remedy_for_a_recipe_is_said_in_flags(remedy: str, expected: str) -> None:
    error = in_flags(DataError("what", where="where", why="why", remedy=remedy))
    assert (error.what, error.where, error.why, error.remedy) == ("what", "where", "why", expected)


def test_an_error_without_a_remedy_stays_as_it_is() -> None:
    error = DataError("what")
    assert in_flags(error) is error


def test_columns_that_are_written_as_an_argument_are_read_as_they_were() -> None:
    columns = {"prompt": "{subject}\n\n{body}", "completion": "answer.text"}
    written = written_columns(columns)
    assert written == r"prompt={subject}\n\n{body},completion=answer.text"
    assert parse_columns(written) == columns
