"""Each metric of answers and tokens against values by hand, and against the library that defines it."""

from __future__ import annotations

import json
import math
from typing import Any, cast

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score
from tests.evaluation.drawn import drawn_rows

from tunesmith.errors import DataError, RecipeError
from tunesmith.evaluation.intervals import bootstrap_differences
from tunesmith.evaluation.metrics import base
from tunesmith.evaluation.metrics.answers import check_truths, score_answers, text_metrics
from tunesmith.evaluation.metrics.classification import label_scores, labels_of, predicted_by_likelihood
from tunesmith.evaluation.metrics.number_match import last_number
from tunesmith.evaluation.metrics.tokens import TokenScores
from tunesmith.recipe.settings import EvaluationSettings

f1_of = cast("Any", f1_score)  # scikit-learn's annotations are narrower than what it takes

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "while",
    "two",
    "dogs",
    "ran",
    "away",
    "from",
    "it",
    "again",
    "and",
    "again",
]


def scores_of(name, answers, truths, **settings):
    metrics = text_metrics(EvaluationSettings(metrics=[name], **settings))
    check_truths(metrics, truths, [f"rows.jsonl:{n}" for n in range(len(truths))])
    return score_answers(metrics, answers=answers, truths=truths, prompts=[""] * len(truths))[name]


def score(name, answer, truth, **settings):
    return scores_of(name, [answer], [truth], **settings).value


def _texts(rows, seed):
    random = np.random.default_rng(seed)
    truths = [" ".join(random.choice(WORDS, random.integers(3, 14))) + "." for _ in range(rows)]
    answers = [" ".join(word for word in truth.split() if random.random() < 0.8) for truth in truths]
    return answers, truths


def test_tokens_give_loss_perplexity_bits_per_byte_and_accuracy():
    tokens = TokenScores(np.array([2.0, 6.0]), np.array([1.0, 2.0]), np.array([1.0, 3.0]))
    found = tokens.scores([0, 1], np.array([4.0, 12.0]))
    assert {name: each.value for name, each in found.items()} == {
        "loss": 2.0,
        "perplexity": pytest.approx(math.exp(2.0)),
        "bits_per_byte": pytest.approx(8 / math.log(2) / 16),
        "token_accuracy": 0.75,
    }
    assert found["perplexity"].of_rows.tolist() == pytest.approx([math.exp(2.0), math.exp(2.0)])


@pytest.mark.parametrize(
    ("answer", "truth", "forms", "expected"),
    [
        ("Card arrival", "card arrival", [], 0.0),
        ("Card arrival", "card arrival", ["case"], 1.0),
        ("STRASSE", "straße", ["case"], 1.0),
        ("card arrival.", "card arrival", ["punctuation"], 1.0),
        ("«card-arrival»", "cardarrival", ["punctuation"], 1.0),
        ("5 €", "5", ["punctuation"], 0.0),
        ("card \n arrival", "card arrival", ["space"], 1.0),
        ("card. ", "card .", ["punctuation"], 1.0),
        ("Card,  arrival", "card arrival", ["case", "punctuation", "space"], 1.0),
        ("Card,  arrival", "card arrival", ["case", "punctuation"], 0.0),
        ("cardarrival", "card arrival", ["case", "punctuation", "space"], 0.0),
    ],
)
def test_normalize_names_what_exact_match_overlooks(answer, truth, forms, expected):
    assert score("exact_match", answer, truth, normalize=forms) == expected


def test_labels_have_scikit_learns_accuracy_f1_and_confusion_matrix():
    random = np.random.default_rng(3)
    names = ["apple", "pear", "plum", "rare"]
    truths = [*random.choice(names[:3], 60), "rare"]
    answers = [str(random.choice([*names[:3], "nonsense", truth, truth])) for truth in truths]
    accuracy, f1 = (scores_of(name, answers, truths) for name in ("accuracy", "macro_f1"))
    assert accuracy.value == accuracy_score(truths, answers)
    expected = f1_of(truths, answers, labels=names, average="macro", zero_division=0.0)
    assert f1.value == pytest.approx(expected, abs=1e-12)
    assert accuracy.details == f1.details
    report = accuracy.details["classification"]
    assert [each["label"] for each in report["labels"]] == names
    assert [each["rows"] for each in report["labels"]] == [truths.count(name) for name in names]
    per_label = f1_of(truths, answers, labels=names, average=None, zero_division=0.0)
    assert [each["f1"] for each in report["labels"]] == pytest.approx(per_label.tolist())
    matrix = confusion_matrix(truths, answers, labels=[*names, "nonsense"])
    cells = {(each["truth"], each["answer"]): each["rows"] for each in report["confusion"]}
    order = [*names, None]
    assert [[cells.get((one, other), 0) for other in order] for one in order] == matrix.tolist()
    assert json.loads(json.dumps(report)) == report


def test_macro_f1_by_hand():
    """Of a: 2 right, 1 missed, 0 wrongly said: 4/5. Of b: 1 right, 0 missed, 1 wrongly said: 2/3."""
    found = scores_of("macro_f1", ["a", "a", "b", "b"], ["a", "a", "a", "b"])
    assert found.value == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert found.of_rows.tolist() == [1.0, 1.0, 0.0, 1.0]


def test_each_resample_of_macro_f1_is_that_of_its_rows():
    random = np.random.default_rng(8)
    names = ["a", "b", "c"]
    truths = random.choice(names, 40, p=[0.7, 0.25, 0.05]).tolist()
    base_answers, tuned_answers = ([str(random.choice([truth, *names])) for truth in truths] for _ in range(2))
    before, after = (scores_of("macro_f1", answers, truths) for answers in (base_answers, tuned_answers))
    found = bootstrap_differences(before, after, resamples=40, seed=5)
    drawn = drawn_rows(before, after, resamples=40, seed=5)
    truth_array = np.array(truths)
    for difference, rows in zip(found, drawn, strict=True):
        here = truth_array[rows]
        before_f1, after_f1 = (
            f1_of(here, np.array(answers)[rows], labels=np.unique(here), average="macro", zero_division=0.0)
            for answers in (base_answers, tuned_answers)
        )
        assert difference == pytest.approx(after_f1 - before_f1, abs=1e-12)


def test_labels_are_compared_as_exact_match_compares():
    found = scores_of(
        "accuracy", ["card arrival.", "Refund"], ["Card arrival", "refund"], normalize=["case", "punctuation"]
    )
    assert found.value == 1.0
    assert [each["label"] for each in found.details["classification"]["labels"]] == ["card arrival", "refund"]


def test_the_likelihood_of_each_label_gives_the_same_metrics():
    labels = labels_of(["yes", "no", "no"])
    predicted = predicted_by_likelihood(np.array([[-1.0, -2.0], [-3.0, -0.5], [-0.1, -9.0]]))
    found = label_scores("accuracy", predicted, np.array([1, 1, 0]), labels)
    assert labels == ["no", "yes"] and predicted.tolist() == [0, 1, 0]
    assert found.value == pytest.approx(2 / 3)


def test_too_many_labels_are_refused_before_training():
    with pytest.raises(DataError, match=r"macro_f1\n.*1,001 different texts, and 1,000 labels fit"):
        scores_of("macro_f1", [""] * 1001, [str(n) for n in range(1001)])


@pytest.mark.parametrize(("name", "library"), [("bleu", BLEU), ("chrf", CHRF)])
def test_corpus_scores_are_sacrebleus_with_its_signature_in_every_resample(name, library):
    answers, truths = _texts(30, seed=1)
    nothing = [answer.split(" ")[0] for answer in answers]
    found, base_scores = scores_of(name, answers, truths), scores_of(name, nothing, truths)
    whole = library()
    assert found.value == pytest.approx(whole.corpus_score(answers, [truths]).score, abs=1e-9)
    assert found.details[name]["signature"] == str(whole.get_signature())
    assert "|version:" in found.details[name]["signature"]
    differences = bootstrap_differences(base_scores, found, resamples=20, seed=2)
    for difference, rows in zip(differences, drawn_rows(base_scores, found, resamples=20, seed=2), strict=True):
        refs = [[truths[row] for row in rows]]
        one, other = (library().corpus_score([texts[row] for row in rows], refs).score for texts in (nothing, answers))
        assert difference == pytest.approx(other - one, abs=1e-9)
    sentence = BLEU(effective_order=True) if name == "bleu" else CHRF()
    each = [sentence.sentence_score(answer, [truth]).score for answer, truth in zip(answers, truths, strict=True)]
    assert found.of_rows.tolist() == pytest.approx(each, abs=1e-9)


def test_an_empty_answer_scores_0_by_every_comparison_of_texts():
    for name in ("bleu", "chrf", "rouge1", "rouge2", "rougeL", "edit_similarity", "answer_length"):
        assert score(name, "", "two words here now") == 0.0


@pytest.mark.parametrize("name", ["rouge1", "rouge2", "rougeL"])
def test_rouge_is_rouge_scores_for_english(name):
    from rouge_score.rouge_scorer import RougeScorer

    answers, truths = _texts(20, seed=4)
    library = RougeScorer([name])
    expected = [library.score(truth, answer)[name].fmeasure for answer, truth in zip(answers, truths, strict=True)]
    found = scores_of(name, answers, truths)
    assert found.of_rows.tolist() == pytest.approx(expected)
    assert found.value == pytest.approx(np.mean(expected)) and 0.3 < found.value < 1


def test_rouge_by_hand_and_beyond_english():
    """Common words in order: a c d, of 4 in the answer and 4 in the truth."""
    assert score("rougeL", "a b c d", "a c x d") == pytest.approx(0.75)
    assert score("rouge2", "a b c", "a b d") == pytest.approx(0.5)
    assert score("rouge1", "Žlutý kůň", "žlutý pes") == pytest.approx(0.5)
    assert score("rougeL", "我爱你", "我爱他") == pytest.approx(2 / 3)


def test_edit_similarity_counts_characters_that_change():
    assert score("edit_similarity", "kitten", "sitting") == pytest.approx(1 - 3 / 7)
    assert score("edit_similarity", "", "") == 1.0


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 42.", "42"),
        ("1,234.50 dollars", "1234.5"),
        ("first 3, then -7", "-7"),
        ("3-2", "2"),
        ("x = .5", "0.5"),
        ("6.02e23", "602000000000000000000000"),
        ("\u22124 degrees", "-4"),
        ("1,2", "2"),
        ("no number", None),
        ("1e99999999999999999999999", None),
    ],
)
def test_the_last_number_of_an_answer_counts(text, number):
    from decimal import Decimal

    assert last_number(text) == (None if number is None else Decimal(number))


def test_numbers_are_compared_as_numbers():
    assert score("number_match", "So it is $1,000.", "1000.0") == 1.0
    assert score("number_match", "0.1", "0.10000000000000001") == 0.0
    with pytest.raises(DataError, match=r"rows.jsonl:0: The reference answer cannot be judged by number_match"):
        score("number_match", "1", "none")


def test_a_pattern_picks_what_is_compared():
    pattern = r"####\s*(.+)"
    assert score("regex_match", "thinking\n#### Paris", "#### Paris", answer_pattern=pattern) == 1.0
    assert score("regex_match", "#### paris", "Paris", answer_pattern=pattern, normalize=["case"]) == 1.0
    assert score("regex_match", "Paris", "#### Paris", answer_pattern=pattern) == 0.0
    assert score("regex_match", "a 12 b", "it is 12", answer_pattern=r"\d+") == 1.0


def test_a_pattern_that_is_none_or_never_ends_is_refused():
    with pytest.raises(RecipeError, match=r"answer_pattern: The pattern is no regular expression") as caught:
        score("regex_match", "", "", answer_pattern="(")
    assert "'Answer: (.+)'" in (caught.value.remedy or "")
    with pytest.raises(RecipeError, match="searches a text for more than 1 second"):
        score("regex_match", "a" * 40 + "!", "x", answer_pattern=r"^(a|a|aa)+$")


def test_answer_length_compares_with_the_truth():
    found = scores_of("answer_length", ["abcd", " abcdefgh "], ["ab", "abcdefgh"])
    assert found.of_rows.tolist() == [0.5, 1.0]
    assert found.details == {"answer_length": {"mean_characters": {"answers": 6.0, "truths": 5.0}}}


SCHEMA = {
    "type": "object",
    "required": ["name"],
    "properties": {"name": {"type": "string"}, "age": {"$ref": "#/$defs/age"}},
    "$defs": {"age": {"type": "integer", "minimum": 0}},
}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('{"name": "Ann", "age": 3}', 1.0),
        ('{"name": "Ann"}', 1.0),
        ('{"age": 3}', 0.0),
        ('{"name": "Ann", "age": -1}', 0.0),
        ('{"name": 5}', 0.0),
        ("[]", 0.0),
        ("Ann", 0.0),
    ],
)
def test_json_schema_is_the_librarys(answer, expected):
    assert score("json_schema", answer, '{"name": "Bo"}', json_schema=SCHEMA) == expected


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "thing"}, "is not valid under any of the given schemas"),
        ({"$ref": "https://example.org/schema.json"}, "which is outside of it"),
        ({"$ref": "#/$defs/none"}, "which it does not have"),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused(schema, words):
    with pytest.raises(RecipeError, match="The schema cannot be used") as caught:
        score("json_schema", "{}", "{}", json_schema=schema)
    assert words in (caught.value.why or "")


def test_a_truth_that_does_not_match_the_schema_is_named():
    with pytest.raises(DataError, match=r"(?s)rows.jsonl:0.*'name' is a required property"):
        score("json_schema", "{}", "{}", json_schema=SCHEMA)


def test_json_field_f1_counts_values_at_paths_over_all_rows():
    """Row 1: a.b.0 equal, a.b.1 wrong, c equal: 2, 1, 1. Row 2 is no JSON: 0, 0, 1."""
    found = scores_of(
        "json_field_f1", ['{"a": {"b": [1, 3]}, "c": "x"}', "no"], ['{"a": {"b": [1, 2]}, "c": "x"}', "{}"]
    )
    assert found.statistics.tolist() == [[2, 1, 1], [0, 0, 1]]
    assert found.value == pytest.approx(4 / 7)
    assert found.of_rows.tolist() == pytest.approx([2 / 3, 0.0])
    assert score("json_field_f1", '{"x": []}', '{"x": []}') == 1.0


def test_a_metric_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    for name, package in [("accuracy", "sklearn"), ("bleu", "sacrebleu"), ("rougeL", "rouge_score")]:
        with pytest.raises(RecipeError, match=rf"{package} cannot be found") as caught:
            text_metrics(EvaluationSettings(metrics=[name]))
        assert "pip install 'tunesmith[metrics]'" in (caught.value.remedy or "")


def test_a_metric_that_lacks_its_setting_is_refused():
    with pytest.raises(ValueError, match=r"json_schema needs evaluation\.json_schema"):
        EvaluationSettings(metrics=["json_schema"])
    with pytest.raises(ValueError, match=r"regex_match needs evaluation\.answer_pattern"):
        EvaluationSettings(metrics=["regex_match"])
