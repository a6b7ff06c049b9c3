"""The likelihood of labels: which labels a task has, how they are spelled, and what a judge makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import config_for, tiny
from transformers import AutoTokenizer, GenerationConfig

from tunesmith.data.chat.template import Encoded
from tunesmith.errors import DataError, ModelError
from tunesmith.evaluation import label_likelihoods
from tunesmith.evaluation.during import during_judge, measured_during
from tunesmith.evaluation.judge import Judge
from tunesmith.evaluation.label_set import Spelling, spellings
from tunesmith.evaluation.metrics.by_likelihood import LikelihoodRows
from tunesmith.evaluation.metrics.calibration import BrierScore
from tunesmith.evaluation.task import make_task, task_batches
from tunesmith.recipe.settings import LIKELIHOOD_METRICS, EvaluationSettings
from tunesmith.runs.progress import Silent

STOP = 2
LABELS = [[5, 6, 8, STOP], [5, 7, STOP], [40, STOP], [41, 42, 43, STOP]]


def rows_of(answers: Sequence[Sequence[int]]) -> list[Encoded]:
    random = np.random.default_rng(5)
    found = []
    for number, answer in enumerate(answers):
        ids = np.array([*random.integers(3, 90, 6), *answer], np.int32)
        found.append(Encoded(ids, np.arange(len(ids)) >= 6, f"held.jsonl:{number + 1}", number))
    return found


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model_dir)


@pytest.fixture(scope="module")
def model() -> Any:
    made = tiny(config_for("llama", initializer_range=0.3))
    made.generation_config = GenerationConfig()
    return made


def judge_of(rows: Sequence[Encoded], tokenizer: Any, *, trained: Sequence[Spelling] = (), **changes: Any) -> Judge:
    settings = EvaluationSettings.model_validate(
        {"metrics": [*LIKELIHOOD_METRICS], "max_new_tokens": 4, "samples": 2, "resamples": 100, **changes}
    )
    task = make_task(rows, list(range(99)), tokenizer=tokenizer, stop_ids=[STOP], settings=settings, trained=trained)
    return Judge(task, task_batches(task, budget=100, layout="tree"), tokenizer, [STOP], settings)


def alone(model: Any, prompt: Sequence[int], label: Sequence[int]) -> float:
    """The log-probability of a label behind a prompt, from one plain pass."""
    line = torch.tensor([[*prompt, *label]])
    with torch.no_grad():
        logprobs = model(input_ids=line, attention_mask=torch.ones_like(line)).logits[0].log_softmax(-1)
    return sum(float(logprobs[len(prompt) + at - 1, token]) for at, token in enumerate(label))


def text(tokenizer: Any, label: Sequence[int]) -> str:
    return tokenizer.decode([token for token in label if token != STOP], clean_up_tokenization_spaces=False)


def test_labels_are_the_answers_of_training_rows_and_of_the_judged_rows(tokenizer: Any) -> None:
    trained = spellings(rows_of([LABELS[3], LABELS[0], LABELS[3]]), tokenizer, [STOP])
    assert [each.ids for each in trained] == [tuple(LABELS[0]), tuple(LABELS[3])]
    assert [each.text for each in trained] == [text(tokenizer, LABELS[0]), text(tokenizer, LABELS[3])]
    task = judge_of(rows_of([LABELS[1], LABELS[2], LABELS[1]]), tokenizer, trained=trained).task
    assert [each.ids for each in task.labels] == sorted(map(tuple, LABELS))
    assert judge_of(rows_of(LABELS), tokenizer, metrics=["exact_match"]).task.labels == (), "no metric wants them"


def test_a_judge_measures_what_plain_passes_give(model: Any, tokenizer: Any) -> None:
    answers = [LABELS[number % 3] for number in range(9)]
    judge = judge_of(rows_of(answers), tokenizer, trained=spellings(rows_of([LABELS[3]]), tokenizer, [STOP]))
    judge.check_questions(model)
    measured = judge.measure(model, "tuned", listener=Silent())
    names = [text(tokenizer, label) for label in LABELS]
    expected = np.array([[alone(model, each.prompt, label) for label in LABELS] for each in judge.task.questions])
    likeliest = expected.argmax(1)
    right = np.array([names[each] for each in likeliest]) == np.array([text(tokenizer, each) for each in answers])
    assert measured.scores["likelihood_accuracy"].of_rows.tolist() == right.tolist()
    probabilities = np.exp(expected) / np.exp(expected).sum(1, keepdims=True)
    truth = np.array([number % 3 for number in range(9)])
    brier = ((probabilities - np.eye(4)[truth]) ** 2).sum(1)
    np.testing.assert_allclose(measured.scores["brier_score"].of_rows, brier, rtol=1e-4)
    report = measured.scores["likelihood_accuracy"].details["classification_by_likelihood"]
    assert {each["label"]: each["rows"] for each in report["labels"]} == dict(zip(names, [3, 3, 3, 0], strict=True))
    assert len(measured.answers) == 2, "only the samples are generated"


def test_the_likelihood_of_the_right_label_is_the_loss_of_its_row(model: Any, tokenizer: Any) -> None:
    judge = judge_of(rows_of(LABELS), tokenizer)
    nll = judge.token_scores(model, title="loss", listener=Silent()).nll_sum
    found = [alone(model, each.prompt, each.reference) for each in judge.task.questions]
    np.testing.assert_allclose(found, -nll, rtol=1e-4)


def test_spellings_of_one_label_add_up_and_a_cut_one_does_not_count(model: Any, tokenizer: Any) -> None:
    judge = judge_of(rows_of([LABELS[0], LABELS[2]]), tokenizer)
    labels = [Spelling("Yes", (5, 6, STOP)), Spelling("yes", (7, STOP)), Spelling("no", (8, STOP))]
    labels += [Spelling("no", (8,)), *judge.task.labels]
    rows = label_likelihoods.label_likelihoods(
        model, judge.task.questions, labels, forms=["case"], stop_ids=[STOP], wanted="likeliest", on_rows=lambda _: None
    )
    assert rows.known == "probabilities", "the likeliest label need not have the likeliest spelling"
    prompt = judge.task.questions[0].prompt
    yes = np.logaddexp(alone(model, prompt, (5, 6, STOP)), alone(model, prompt, (7, STOP)))
    assert rows.log_likelihoods[0, list(rows.labels).index("yes")] == pytest.approx(yes, rel=1e-4)
    no = alone(model, prompt, (8, STOP))
    assert rows.log_likelihoods[0, list(rows.labels).index("no")] == pytest.approx(no, rel=1e-4)


def test_only_what_the_metrics_need_of_the_labels_is_computed(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    scored = label_likelihoods.label_logprobs
    monkeypatch.setattr(
        label_likelihoods,
        "label_logprobs",
        lambda *given, **named: (asked.append(named["wanted"]), scored(*given, **named))[1],
    )
    answers = [LABELS[number % 4] for number in range(9)]
    known, predicted = [], []
    for metrics in (["likelihood_accuracy", "likelihood_macro_f1"], ["likelihood_accuracy", "brier_score"]):
        judge = judge_of(rows_of(answers), tokenizer, metrics=metrics)
        for all_labels in (False, True):
            of_labels = judge.respond(model, "tuned", listener=Silent(), all_labels=all_labels).of_labels
            assert of_labels is not None
            known.append(of_labels.known)
            predicted.append(of_labels.log_likelihoods.argmax(1).tolist())
    assert known == asked == ["likeliest", "all", "probabilities", "all"]
    assert predicted == predicted[:1] * 4


def test_bounds_are_neither_probabilities_nor_a_choice_among_fewer_labels() -> None:
    rows = LikelihoodRows(np.array([[-1.0, -5.0]]), np.array([0]), ["a", "b"], known="likeliest")
    assert rows.only(np.array([0]), ["b", "a"], np.array([0])).truths.tolist() == [1]
    with pytest.raises(AssertionError):
        rows.only(np.array([0]), ["a"], np.array([0]))
    with pytest.raises(AssertionError):
        BrierScore().scores(rows)


def test_a_verdict_has_the_report_the_table_and_intervals_of_both_models(model: Any, tokenizer: Any) -> None:
    judge = judge_of(rows_of([LABELS[number % 4] for number in range(12)]), tokenizer)
    verdict, samples = judge.verdict(model, nullcontext(model), listener=Silent())
    compared = [name for name in LIKELIHOOD_METRICS if name != "calibration_error"]
    assert list(verdict["metrics"]) == [*compared, "loss"]
    for side in ("base", "tuned"):
        assert len(verdict["details"]["classification_by_likelihood"][side]["labels"]) == 4
        table = verdict["details"]["calibration"][side]
        assert sum(each["rows"] for each in table["bins"]) == 12
        low, high = table["brier_score"]["interval"]
        assert table["brier_score"]["value"] == verdict["metrics"]["brier_score"][side] and 0 <= low <= high
        assert table["calibration_error"].keys() == {"value"} and 0 <= table["calibration_error"]["value"] <= 1
    assert all("scores" not in line for line in samples), "nothing is said of the generated samples"
    alone_, _ = judge.verdict(model, None, listener=Silent())
    assert alone_["metrics"]["brier_score"]["value"] == verdict["metrics"]["brier_score"]["tuned"]


def test_validations_measure_likelihoods_among_all_labels(model: Any, tokenizer: Any) -> None:
    rows = rows_of([LABELS[number % 4] for number in range(12)])
    judge = judge_of(rows, tokenizer, metrics=["loss"], during=["likelihood_accuracy", "brier_score"], during_rows=5)
    during = during_judge(judge)
    assert during is not None and len(during.task.questions) == 5 and len(during.task.labels) == 4
    scores = judge.token_scores(model, title="loss", listener=Silent())
    found = measured_during(during, model, scores)
    whole = judge_of(rows, tokenizer, metrics=["brier_score"]).measure(model, "tuned", listener=Silent())
    places = [judge.task.questions.index(each) for each in during.task.questions]
    assert found["brier_score"] == pytest.approx(whole.scores["brier_score"].of_rows[places].mean(), rel=1e-5)


def test_too_many_labels_are_refused_where_likelihoods_need_them_all(
    tokenizer: Any, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunesmith.evaluation import label_set, task

    for module in (label_set, task):
        monkeypatch.setattr(module, "MOST_LABELS", 3)
    assert len(spellings(rows_of([*LABELS, [9, STOP]]), tokenizer, [STOP])) == 4
    with pytest.raises(DataError, match="more than 3 different texts"):
        judge_of(rows_of(LABELS[:1]), tokenizer, trained=spellings(rows_of(LABELS), tokenizer, [STOP]))
    with pytest.raises(DataError, match="more than 3 different texts"):
        judge_of(rows_of(LABELS), tokenizer)
    assert judge_of(rows_of(LABELS), tokenizer, metrics=["accuracy"]).task.labels == ()


def test_a_label_that_does_not_fit_behind_a_prompt_is_refused_before_training(tokenizer: Any, model: Any) -> None:
    long = [Spelling("long", (*[9] * 125, STOP))]
    with pytest.raises(ModelError, match="A prompt and its longest label are longer than the model can read"):
        judge_of(rows_of(LABELS), tokenizer, trained=long).check_questions(model)
