"""Metrics over answers, down to what counts as JSON, and the functions that a user may name."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import unicodedata
from typing import Any, cast

import numpy as np
import pytest

from tunesmith.data.files.json_rows import parse_json
from tunesmith.errors import DataError, RecipeError
from tunesmith.evaluation.metrics.answers import check_metrics_exist as check_exist
from tunesmith.evaluation.metrics.answers import (
    check_truths,
    score_answers,
)
from tunesmith.evaluation.metrics.answers import text_metrics as metrics_of
from tunesmith.evaluation.metrics.classification import LabelMetric
from tunesmith.evaluation.metrics.exact_match import ExactMatch
from tunesmith.evaluation.metrics.json_answers import same_json
from tunesmith.evaluation.metrics.user_functions import functions_allowed
from tunesmith.recipe.settings import EvaluationSettings


def text_metrics(names):
    return metrics_of(EvaluationSettings(metrics=names))


def check_names(names):
    check_exist(EvaluationSettings(metrics=names))


def score(name, answer, truth):
    (metric,) = text_metrics([name])
    return cast("Any", metric).score(answer, truth, "a prompt")


@pytest.mark.parametrize(
    ("answer", "truth", "expected"),
    [
        ("card_arrival", "card_arrival", 1.0),
        ("  card_arrival\n", "card_arrival ", 1.0),
        ("Caf\u0065\u0301", "Caf\u00e9", 1.0),
        ("Card_arrival", "card_arrival", 0.0),
        ("card  arrival", "card arrival", 0.0),
        ("card_arrival.", "card_arrival", 0.0),
        ("", "", 1.0),
    ],
)
def test_exact_match_is_equality_of_stripped_nfc_text(answer, truth, expected):
    assert score("exact_match", answer, truth) == expected


@pytest.mark.parametrize(
    "text", ['{"a": 1}', " [1, 2]\n", '"text"', "null", "true", "-1.5e3", "{}", '{"a": {"a": 1}, "b": [{"a": 2}]}']
)
def test_json_is_valid_with_nothing_but_white_space_around_it(text):
    assert score("json_valid", text, "") == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Here it is: {}",
        "{} done",
        '```json\n{"a": 1}\n```',
        "{'a': 1}",
        '{"a": 1,}',
        '{"a": 1, "a": 1}',
        '[{"b": {"a": 1, "a": 2}}]',
        "NaN",
        '{"a": Infinity}',
        "-Infinity",
        "1e999",
        "01",
        '"line\nbreak"',
        "{} {}",
        "[" * 100_000,
        "9" * 5000,
        "\ufeff{}",
    ],
)
def test_anything_else_is_no_valid_json(text):
    assert score("json_valid", text, "") == 0.0
    assert score("json_exact", text, "{}") == 0.0
    assert score("json_fields", text, '{"a": 1}') == 0.0
    with pytest.raises(ValueError):
        parse_json(text)


@pytest.mark.parametrize(
    ("answer", "truth", "expected"),
    [
        ('{"a": 1, "b": "x"}', '{"b":"x","a":1}', 1.0),
        ('{"a": 1.0}', '{"a": 1}', 1.0),
        ('{"a": 1e2}', '{"a": 100}', 1.0),
        ('{"a": true}', '{"a": 1}', 0.0),
        ('{"a": 0}', '{"a": false}', 0.0),
        ('{"a": true}', '{"a": true}', 1.0),
        ('{"a": "1"}', '{"a": 1}', 0.0),
        ('{"a": null}', "{}", 0.0),
        ('{"a": null}', '{"a": null}', 1.0),
        ("[1, 2]", "[2, 1]", 0.0),
        ("[1, [2]]", "[1.0, [2.0]]", 1.0),
        ("[1]", "[1, 1]", 0.0),
        ("[]", "{}", 0.0),
        ("12345678901234567890", "12345678901234567891", 0.0),
        ('"\\u00e9"', '"é"', 1.0),
    ],
)
def test_json_exact_compares_values_not_spelling(answer, truth, expected):
    assert score("json_exact", answer, truth) == expected
    assert same_json(parse_json(truth), parse_json(answer)) is bool(expected)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('{"number": "A1", "amount": 12.5, "date": null}', 1.0),
        ('{"date": null, "amount": 12.50, "number": "A1"}', 1.0),
        ('{"number": "A1", "amount": 13, "date": null}', 2 / 3),
        ('{"number": "A1", "amount": 12.5}', 2 / 3),
        ('{"number": "A1", "amount": 12.5, "date": null, "extra": 1}', 3 / 4),
        ('{"number": "A1", "sum": 12.5, "date": null}', 2 / 4),
        ("{}", 0.0),
        ("[]", 0.0),
        ('"number"', 0.0),
    ],
)
def test_json_fields_is_the_share_of_equal_fields_among_those_that_either_has(answer, expected):
    truth = '{"number": "A1", "amount": 12.5, "date": null}'
    assert score("json_fields", answer, truth) == pytest.approx(expected)


def test_two_empty_objects_have_equal_fields():
    assert score("json_fields", "{}", "{}") == 1.0


def test_names_are_sorted_into_token_and_text_metrics():
    names = ["json_exact", "loss", "exact_match", "perplexity", "token_accuracy"]
    assert [metric.name for metric in text_metrics(names)] == ["json_exact", "exact_match"]


@pytest.mark.parametrize(
    ("name", "meant"), [("exact_mach", "exact_match"), ("Loss", "loss"), ("json-exact", "json_exact")]
)
def test_an_unknown_name_is_refused_with_a_suggestion(name, meant):
    with pytest.raises(RecipeError, match=f"no metric '{name}'; did you mean '{meant}'") as caught:
        check_names(["loss", name])
    assert caught.value.where == "evaluation.metrics"


def test_a_name_like_no_other_is_refused_with_the_list():
    with pytest.raises(RecipeError, match=r"(?s)no metric 'quality'\n.*json_fields.*score\.py:my_function"):
        check_names(["quality"])


def test_names_are_checked_without_torch():
    code = """
        import sys
        from tunesmith.evaluation.metrics.answers import check_metrics_exist
        from tunesmith.recipe.settings import EvaluationSettings
        names = ["loss", "json_exact", "accuracy", "bleu", "rougeL"]
        check_metrics_exist(EvaluationSettings(metrics=names))
        assert not {"torch", "transformers", "datasets", "sklearn", "sacrebleu", "rouge_score"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_a_truth_that_is_no_json_is_named_by_file_and_line_before_training():
    metrics = text_metrics(["json_valid", "exact_match", "json_exact"])
    check_truths(metrics, ["{}", "[1]"], ["rows.jsonl:1", "rows.jsonl:2"])
    with pytest.raises(DataError, match=r"^rows.jsonl:2: .*json_exact\n.*It is not JSON: .*'oops'"):
        check_truths(metrics, ["{}", "oops"], ["rows.jsonl:1", "rows.jsonl:2"])


def test_a_truth_that_is_no_object_has_no_fields():
    with pytest.raises(DataError, match="not an object"):
        check_truths(text_metrics(["json_fields"]), ["[1]"], ["rows.jsonl:1"])


def test_scores_keep_the_order_of_rows_and_their_groups():
    scores: dict[str, Any] = score_answers(
        text_metrics(["exact_match", "loss", "json_valid"]),
        answers=["1", "b", "c"],
        truths=["1", "2", "c"],
        prompts=["", "", ""],
        groups=[0, 0, 1],
    )
    assert list(scores) == ["exact_match", "json_valid"]
    assert scores["exact_match"].total.tolist() == [1, 0, 1] and scores["json_valid"].total.tolist() == [1, 0, 0]
    assert scores["exact_match"].weight.tolist() == [1, 1, 1]
    assert scores["exact_match"].value == pytest.approx(2 / 3)
    groups = scores["exact_match"].groups
    assert groups is not None and groups.tolist() == [0, 0, 1]


@pytest.fixture
def module(tmp_path, monkeypatch, request):
    """Writes a module of a name of its own into the current folder; returns what the recipe would say of a function."""
    name = f"metrics_{abs(hash(request.node.name))}"
    monkeypatch.chdir(tmp_path)

    def write(source):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
        return name

    with functions_allowed({f"{name}:score": tmp_path}):
        yield write


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def score(answer, truth, prompt): return len(answer) + 10 * len(truth) + 100 * len(prompt)", 321.0),
        ("def score(truth, answer): return len(answer) + 10 * len(truth)", 21.0),
        ("def score(answer): return len(answer)", 1.0),
        ("def score(*, prompt): return len(prompt)", 3.0),
        ("def score(prediction, reference): return len(prediction) + 10 * len(reference)", 21.0),
        ("def score(answer, truth, scale=2): return scale * len(truth)", 4.0),
        ("def score(prediction, scale=2): return scale * len(prediction)", 2.0),
        ("def score(*texts): return len(texts)", 3.0),
        ("def score(answer, **more): return len(more)", 0.0),
        ("def score(answer, truth): return answer != truth", 1.0),
        ("class Score:\n    def __call__(self, answer): return 7\nscore = Score()", 7.0),
        ("import numpy\ndef score(answer): return numpy.float32(0.5)", 0.5),
    ],
)
def test_a_function_takes_what_its_parameters_ask_for(module, source, expected):
    (metric,) = text_metrics([f"{module(source)}:score"])
    assert metric.name.endswith(":score")
    assert cast("Any", metric).score("a", "tt", "ppp") == expected


@pytest.mark.parametrize(
    "source",
    [
        "def score(): return 1",
        "def score(truth, prediction): return 1",
        "def score(a, b, c, d): return 1",
        "def score(a, *, b): return 1",
        "def score(*texts, needed): return 1",
        "def score(scale=2): return 1",
    ],
)
def test_a_function_whose_parameters_do_not_fit_is_refused_before_it_is_called(module, source):
    with pytest.raises(RecipeError, match=r"(?s)cannot be called.*score\(answer, truth, prompt\)"):
        check_names([f"{module(source)}:score"])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return 1 / 0", "raised ZeroDivisionError: division by zero"),
        ("return 'good'", "returned 'good', which is not a finite number"),
        ("return '1'", "returned '1', which is not a finite number"),
        ("return None", "returned None"),
        ("return float('nan')", "returned nan"),
        ("return float('inf')", "returned inf"),
    ],
)
def test_a_function_that_fails_is_refused_with_the_row(module, body, words):
    source = f"""
        def score(answer):
            if answer == "bad":
                {body}
            return 1.0
    """
    metrics = text_metrics([f"{module(source)}:score"])
    with pytest.raises(RecipeError) as caught:
        score_answers(metrics, answers=["fine", "bad"], truths=["", ""], prompts=["", ""])
    assert words in caught.value.what
    assert caught.value.where == "evaluation.metrics, row 2 of 2"
    assert "'bad'" in str(caught.value)


def test_the_folder_of_a_function_does_not_stay_on_the_path(module):
    before = list(sys.path)
    check_names([f"{module('def score(answer): return 1.0')}:score"])
    assert sys.path == before


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import no_such_package_here", "ModuleNotFoundError: No module named 'no_such_package_here'"),
        ("def score(:", "SyntaxError"),
        ("raise OSError('no licence')", "OSError: no licence"),
    ],
)
def test_a_module_that_cannot_be_imported_is_refused_with_its_error(module, source, words):
    with pytest.raises(RecipeError) as caught:
        check_names([f"{module(source)}:score"])
    assert "cannot be imported" in caught.value.what and words in str(caught.value)


def test_scores_are_float64():
    scores: dict[str, Any] = score_answers(text_metrics(["json_fields"]), answers=["{}"], truths=["{}"], prompts=[""])
    assert scores["json_fields"].total.dtype == np.float64


@pytest.mark.parametrize(
    ("beginning", "truth", "lost"),
    [
        ("", "yes", False),
        ("ye", "yes", False),
        ("yes", "yes", False),
        ("  yes \n", "yes", False),
        ("yes, ", "yes", True),
        ("no", "yes", True),
        ("n", "yes", False),  # the last letter may still get marks
        ("e", "\u00e9t\u00e9", False),  # an accent may follow
        ("e\u0301te", "\u00e9t\u00e9", False),
        ("\u1112\u1161", "\ud55c", False),  # the last part of a Korean syllable may follow
        ("Yes ", "yes", True),
        (" a  bc", "a b", True),
        ("x", "", False),
        ("xy", "", True),
    ],
)
def test_an_answer_is_lost_once_no_end_can_make_it_match(beginning: str, truth: str, lost: bool) -> None:
    is_lost = ExactMatch().ends_early([truth])
    assert is_lost is not None and is_lost(beginning, truth) is lost


def test_no_beginning_of_a_matching_answer_is_lost() -> None:
    metric = ExactMatch()
    is_lost = metric.ends_early([])
    assert is_lost is not None
    truths = ("été à Noël", "\u1112\u1161\u11ab\u1100\u116e\u11a8", "a\u0323\u0307b", "  two words ", "e\u0301")
    for truth in truths:
        for form in ("NFC", "NFD"):
            written = f"\n{unicodedata.normalize(form, truth)}  "  # type: ignore[arg-type]
            assert metric.score(written, truth, "") == 1
            assert not any(is_lost(written[:end], truth) for end in range(len(written) + 1))


def test_with_normalization_no_answer_is_left_early() -> None:
    assert ExactMatch(["case"]).ends_early(["right"]) is None
    assert LabelMetric("accuracy", ["case"]).ends_early(["right"]) is None


@pytest.mark.parametrize(
    ("beginning", "none"),
    [
        ("", False),
        ("card a", False),
        ("card arrival", False),
        ("card arrival, ", True),
        ("card arri", False),  # of another truth, but still of a label
        ("lost ", False),
        ("lost c", False),  # the last letter may still get marks
        ("lost ca", True),
        ("z", False),
        ("zz", True),
        ("A ", True),
    ],
)
def test_an_answer_is_no_label_once_no_label_begins_like_it(beginning: str, none: bool) -> None:
    for name in ("accuracy", "macro_f1"):
        is_none = LabelMetric(name, ()).ends_early(["refund", "card arrival", "lost phone", "refund"])  # type: ignore[arg-type]
        assert is_none is not None and is_none(beginning, "refund") is none
