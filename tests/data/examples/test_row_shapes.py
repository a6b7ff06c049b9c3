"""The shape of rows is found from their fields, or refused with the choices."""

from __future__ import annotations

import pytest

from tunesmith.data.examples.row_shapes import check_columns, detect_shape, did_you_mean, other_shape, unused_masks
from tunesmith.errors import DataError


@pytest.mark.parametrize(
    ("row", "shape"),
    [
        ({"instruction": 1, "output": 1}, "alpaca"),
        ({"instruction": 1, "input": 1, "output": 1, "text": 1}, "alpaca"),
        ({"prompt": 1, "completion": 1}, "prompt_completion"),
        ({"messages": 1, "prompt": 1}, "messages"),
        ({"conversations": 1, "id": 1}, "sharegpt"),
        ({"text": 1}, "text"),
        ({"text": 1, "url": 1, "meta": 1}, "text"),
    ],
)
def test_the_fields_tell_the_shape(row: dict, shape: str):
    assert detect_shape([row])[0] == shape


def test_the_reason_names_the_columns_used_and_those_not_used():
    rows = [{"instruction": "a", "input": "b", "output": "c", "chosen": "d"}]
    assert detect_shape(rows)[1] == "columns instruction, input, output -> alpaca; not used: chosen"
    labelled = detect_shape([{"prompt": "a", "completion": "b", "label": True}])[1]
    assert labelled.endswith("-> prompt_completion; not used: label (objective: kto learns from label)")
    reason = detect_shape(
        [{"text": "a", "category": "b"}], columns={"input": "text", "output": "category"}, instruction="Classify."
    )[1]
    assert reason == "columns text (input), category (output) -> alpaca"


def test_columns_in_which_other_tools_say_what_is_learned_are_named():
    row = {"prompt": "a", "completion": "b", "loss": 0, "mask": 1, "id": 3}
    said = unused_masks([row], "prompt_completion", {})
    assert said.startswith("; loss, mask do not change what is learned: write train: false on a turn")
    assert unused_masks([row], "prompt_completion", {"completion": "mask"}).startswith("; loss does not change")
    assert unused_masks([{"prompt": "a", "completion": "b", "id": 3}], "prompt_completion", {}) == ""


def test_some_rows_without_a_field_do_not_change_the_shape():
    assert detect_shape([{"prompt": "a"}, {"prompt": "a", "completion": "b"}, {}])[0] == "prompt_completion"


def test_rows_of_two_shapes_are_refused_with_both_names():
    with pytest.raises(DataError) as caught:
        detect_shape([{"messages": 1}, {"prompt": 1, "completion": 1}])
    assert caught.value.what == "the rows fit more than one shape: messages and prompt_completion"
    assert caught.value.remedy == "name the shape: data.format: messages"
    assert str(caught.value.why).startswith("messages has messages, as 1 of the first 2 rows have; ")


def test_text_beside_a_label_is_the_users_decision():
    with pytest.raises(DataError) as caught:
        detect_shape([{"text": "a", "category": "b"}])
    assert caught.value.what == "ambiguous: is `text` raw text, or a prompt that another column answers (category)?"
    assert "data.format: text" in str(caught.value.remedy)
    assert "data.columns: {input: text, output: category}" in str(caught.value.remedy)
    assert detect_shape([{"body": "a", "category": "b"}], columns={"text": "body"})[0] == "text"


def test_unknown_columns_are_named_with_a_mapping_to_copy():
    with pytest.raises(DataError) as caught:
        detect_shape([{"id": 1, "Question": "a", "Answer 100%": "c", "answer": "b"}])
    assert "the columns are id, Question, Answer 100%, answer" in str(caught.value.why)
    assert "data.columns: {prompt: Question, completion: answer}" in str(caught.value.remedy)


def checked(rows: list[dict], shape: str, columns: dict[str, str], instruction: str | None = None) -> DataError:
    with pytest.raises(DataError) as caught:
        check_columns(rows, shape=shape, columns=columns, instruction=instruction)
    return caught.value


def test_a_mistyped_column_is_one_error_with_the_nearest_name():
    error = checked([{"text": 1, "category": 1}], "alpaca", {"input": "txt", "output": "category"}, "x")
    assert error.what == "data.columns: there is no column 'txt'"
    assert str(error.why).startswith("the columns are text, category")
    assert str(error.remedy).startswith("did you mean text?")


def test_a_mistyped_field_is_one_error_with_the_nearest_name():
    error = checked([{"a": 1}], "alpaca", {"imput": "a"})
    assert error.what == "data.columns: 'imput' is not a field of any shape"
    assert str(error.remedy).startswith("did you mean input?")


def test_a_mapping_that_is_turned_around_is_recognised():
    error = checked([{"category": 1}], "alpaca", {"category": "output"})
    assert error.remedy == "field and column are swapped: data.columns: {output: category}"


def test_a_field_that_no_row_has_is_one_error():
    error = checked([{"instruction": 1, "outputs": 1}], "alpaca", {})
    assert error.what == "no row has the field 'output' that the shape alpaca needs"
    assert error.remedy == "name the column that holds it: data.columns: {output: outputs}"


def test_an_instruction_beside_the_rows_own_is_refused_and_so_is_one_without_a_place():
    own = checked([{"instruction": 1, "input": 1, "output": 1}], "alpaca", {}, "Classify.")
    assert "column 'instruction' of their own" in own.what
    nowhere = checked([{"messages": 1}], "messages", {}, "Classify.")
    assert nowhere.what == "data.instruction cannot be used with rows of the shape messages"


def test_did_you_mean_knows_other_letter_case_and_gives_nothing_far_away():
    assert did_you_mean("TEXT", ["text", "label"]) == "text"
    assert did_you_mean("zzz", ["text", "label"]) is None


def test_another_shape_is_named_where_a_tenth_of_the_first_rows_have_it():
    rows = [{"prompt": 1, "completion": 1}] * 18 + [{"instruction": 1, "output": 1}] * 2
    given = {"shape": "prompt_completion", "columns": {}, "instruction": None}
    said = "2 of the first 20 rows have the shape alpaca (instruction, output), and are read as prompt_completion"
    assert other_shape(rows, **given) == said
    assert other_shape(rows[:19], **given) is None
    assert other_shape([{"prompt": 1, "completion": 1, "text": 1}], **given) is None
    assert other_shape([{"prompt": 1}], **given) is None
