"""Baselines: what a bag of words can solve and what it cannot, and what the verdict says of it."""

from __future__ import annotations

import random
from importlib.util import find_spec
from typing import Any

import pytest
from tests.workflows.test_damaged_runs import Heard

from tunesmith.cli.terminal.tables import baseline_lines
from tunesmith.errors import RecipeError
from tunesmith.evaluation import baselines as module
from tunesmith.evaluation.baselines import Baselines, TrainingPairs, answers_of, check_baselines, chosen
from tunesmith.evaluation.metrics.answers import score_answers, text_metrics
from tunesmith.evaluation.wording import baseline_outcome, baseline_sentences
from tunesmith.recipe.settings import EvaluationSettings
from tunesmith.runs.stored_shapes import baselines_fault

TOPICS = {
    "card": "my card was swallowed blocked stolen lost plastic chip",
    "transfer": "transfer money send wire payee abroad pending arrived",
    "rate": "exchange rate currency euro dollar convert margin",
}
FRAME = "user\nName the topic of this message in one word: {}\nassistant\n"


def topics(count: int, seed: int) -> TrainingPairs:
    """A task that a bag of words solves: the words tell the label."""
    drawn = random.Random(seed)
    labels = [drawn.choice([*TOPICS, "card"]) for _ in range(count)]  # card is the most frequent
    texts = [" ".join(drawn.sample(TOPICS[label].split(), 4)) for label in labels]
    return TrainingPairs([FRAME.format(text) for text in texts], labels, count, are_labels=True)


def sums(count: int, seed: int) -> TrainingPairs:
    """A task that it cannot: whether the sum of two numbers is even, which no part of the prompt tells."""
    drawn = random.Random(seed)
    pairs = [(drawn.randrange(100, 1000), drawn.randrange(100, 1000)) for _ in range(count)]
    prompts = [FRAME.format(f"{one} {other}") for one, other in pairs]
    return TrainingPairs(prompts, ["odd" if sum(pair) % 2 else "even" for pair in pairs], count, are_labels=True)


def settings(**changes: Any) -> EvaluationSettings:
    return EvaluationSettings.model_validate({"metrics": ["exact_match"], "resamples": 500, **changes})


def judged(learned: TrainingPairs, asked: TrainingPairs, tuned: list[str], **changes: Any) -> dict[str, Any]:
    evaluation = settings(**changes)
    groups = list(range(len(asked.answers)))
    scores = score_answers(
        text_metrics(evaluation), answers=tuned, truths=asked.answers, prompts=asked.prompts, groups=groups
    )
    names, left_out = chosen(evaluation, learned, asked.answers)
    assert not left_out
    found = Baselines(names, learned, evaluation)
    return found.result(scores, prompts=asked.prompts, truths=asked.answers, groups=groups, decided_by="exact_match")


def test_a_linear_model_over_words_solves_what_words_decide_and_the_verdict_says_so() -> None:
    learned, asked = topics(120, 0), topics(80, 1)
    tuned = [*asked.answers[:-1], "none"]  # all right but one
    found = judged(learned, asked, tuned)
    assert [each["name"] for each in found["results"]] == ["majority", "nearest", "linear"]
    majority, nearest, linear = (each["metrics"]["exact_match"] for each in found["results"])
    assert linear["value"] > 0.95 and nearest["value"] > 0.9
    assert majority["value"] == asked.answers.count("card") / 80
    assert majority["interval"][0] < majority["value"] < majority["interval"][1]
    assert majority["difference"] == pytest.approx(79 / 80 - majority["value"])
    assert [each["outcome"] for each in found["results"]] == ["worse", *["not shown to be worse"] * 2]
    (of_nearest, of_linear) = baseline_sentences({"baselines": found})
    assert of_nearest.startswith("The answer of the nearest training prompt is not shown to be worse: exact_match ")
    said = "A linear model over words is not shown to be worse: exact_match "
    assert of_linear.startswith(f"{said}{linear['value']:.4g}, tuned ")
    assert baselines_fault(found) is None


def test_hundreds_of_labels_are_learned_without_weights_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = random.Random(0)
    words = ["".join(drawn.choices("abcdefghijklmnop", k=6)) for _ in range(900)]

    def labelled(count: int) -> TrainingPairs:
        """Two of the three words of a label, among words that say nothing."""
        numbers = [drawn.randrange(200) for _ in range(count)]
        texts = [[*drawn.sample(words[3 * n : 3 * n + 3], 2), *drawn.sample(words[600:], 3)] for n in numbers]
        return TrainingPairs(
            [FRAME.format(" ".join(each)) for each in texts], [f"label {n}" for n in numbers], count, True
        )

    learned, asked = labelled(2400), labelled(300)
    found = answers_of("linear", learned, asked.prompts)
    assert sum(map(str.__eq__, found, asked.answers)) > 0.95 * 300
    assert answers_of("linear", learned, asked.prompts) == found
    monkeypatch.setattr(module, "MOST_LINEAR", 600)
    fewer = answers_of("linear", learned, asked.prompts, seed=1)
    assert fewer == answers_of("linear", learned, asked.prompts, seed=1) != found


def test_rows_that_the_linear_model_leaves_out_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_LINEAR", 60)
    learned, asked, heard = topics(120, 0), topics(80, 1), Heard()
    scores = score_answers(
        text_metrics(settings()), answers=asked.answers, truths=asked.answers, prompts=asked.prompts, groups=range(80)
    )
    simple = Baselines(["linear"], learned, settings(), listener=heard)
    found = simple.result(
        scores, prompts=asked.prompts, truths=asked.answers, groups=range(80), decided_by="exact_match"
    )
    assert found["results"][0]["metrics"]["exact_match"]["value"] > 0.95
    assert any("linear learns from 60 of 120 training rows" in text for text in heard.said)


def test_only_what_lies_within_the_margin_does_as_well() -> None:
    """80 rows that are all right on both sides leave 4.6 points to either side; 2 points take 400 rows."""
    learned = topics(120, 0)
    for rows, changes, outcome in (
        (80, {}, "not shown to be worse"),
        (80, {"margin": 0.1}, "as well"),
        (400, {}, "as well"),
        (400, {"margin": 0.001}, "not shown to be worse"),
    ):
        asked = topics(rows, 1)
        found = judged(learned, asked, answers_of("linear", learned, asked.prompts), **changes)
        linear = next(each for each in found["results"] if each["name"] == "linear")
        assert linear["metrics"]["exact_match"]["verdict"] == "no evidence" and linear["outcome"] == outcome
        assert found["margin"] == changes.get("margin", 0.02)
        within = max(map(abs, linear["metrics"]["exact_match"]["difference_interval"])) <= found["margin"]
        assert within is (outcome == "as well")
        said = " ".join(baseline_sentences({"baselines": found}))
        how = f"does as well, within {found['margin']:g}" if within else "is not shown to be worse"
        assert f"A linear model over words {how}: " in said


def test_a_baseline_of_an_earlier_version_does_not_do_as_well_by_lack_of_evidence() -> None:
    found = judged(topics(120, 0), topics(80, 1), ["card"] * 80)
    for verdict, outcome in (("worse", "better"), ("no evidence", "not shown to be worse"), ("better", "worse")):
        values = {**found["results"][2]["metrics"]["exact_match"], "verdict": verdict}
        earlier = {"name": "linear", "metrics": {"exact_match": values}, "does_as_well": verdict != "better"}
        assert baseline_outcome(earlier, "exact_match") == outcome
        assert baselines_fault({"metric": "exact_match", "results": [earlier]}) is None


def test_words_cannot_tell_whether_a_sum_is_even_and_the_verdict_is_silent() -> None:
    learned, asked = sums(200, 0), sums(200, 1)
    found = judged(learned, asked, list(asked.answers))
    for each in found["results"]:
        assert each["metrics"]["exact_match"]["value"] < 0.75, each["name"]
        assert each["metrics"]["exact_match"]["verdict"] == "better"
        assert each["outcome"] == "worse"
    assert baseline_sentences({"baselines": found}) == []


def test_a_tuned_model_that_is_worse_than_words_hears_that_they_do_better() -> None:
    asked = topics(80, 1)
    found = judged(topics(120, 0), asked, ["card"] * 80)
    linear = next(each for each in found["results"] if each["name"] == "linear")
    assert linear["metrics"]["exact_match"]["verdict"] == "worse" and linear["outcome"] == "better"
    assert "A linear model over words does better: " in " ".join(baseline_sentences({"baselines": found}))


def test_the_words_around_every_prompt_do_not_hide_what_differs() -> None:
    frame = "system\n" + "You are a helpful assistant of a bank. " * 20 + "\nuser\n{}\nassistant\n"
    learned = TrainingPairs([frame.format("stolen card"), frame.format("exchange rate")], ["card", "rate"], 2, False)
    assert answers_of("nearest", learned, [frame.format("the rate"), frame.format("a card")]) == ["rate", "card"]


def test_prompts_without_words_have_a_nearest_row_too() -> None:
    learned = TrainingPairs(["+ +", "? ?"], ["plus", "question"], 2, False)
    assert answers_of("nearest", learned, ["? ? ?", "+"]) == ["question", "plus"]


def test_auto_takes_what_the_answers_and_the_installation_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, free = topics(20, 0), TrainingPairs(["a", "b"], ["one thing", "another"], 2, are_labels=False)
    assert chosen(settings(), labels, ["card"]) == (["majority", "nearest", "linear"], {})
    assert chosen(settings(), free, ["x"]) == (["majority", "nearest"], {})
    assert chosen(settings(), free, ["x" * 101]) == ([], {})  # no short answer
    assert chosen(settings(metrics=["loss"]), labels, ["card"]) == ([], {})
    assert chosen(settings(baselines="none"), labels, ["card"]) == ([], {})
    named = settings(baselines=["linear", "few_shot"])
    assert chosen(named, free, ["x" * 101]) == (["few_shot"], {"linear": "the answers are not labels"})
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "sklearn" else find_spec(name))
    assert chosen(settings(), labels, ["card"]) == (["majority"], {})
    check_baselines(settings())
    with pytest.raises(RecipeError, match=r"nearest needs a package .*") as caught:
        check_baselines(settings(baselines=["majority", "nearest"]))
    assert "pip install 'tunesmith[metrics]'" in str(caught.value)


def test_baselines_without_a_metric_of_answers_are_refused() -> None:
    with pytest.raises(ValueError, match="baselines need a metric of answers"):
        settings(metrics=["token_accuracy"], baselines=["majority"])


def test_a_table_of_baselines_fits_into_80_columns() -> None:
    asked = topics(80, 1)
    verdict = {"baselines": judged(topics(120, 0), asked, list(asked.answers))}
    lines = baseline_lines(verdict, width=80)
    assert lines[0].split() == ["baseline", "exact_match", "interval", "difference", "interval", "tuned", "is"]
    assert [line.split()[0] for line in lines[1:]] == ["majority", "nearest", "linear"]
    assert max(map(len, lines)) <= 80
    assert baseline_lines({}) == []


@pytest.mark.parametrize(
    "odd",
    [
        {"results": None},
        {"results": [{"name": 3}]},
        {"results": [{"name": "linear", "outcome": 1, "metrics": {}}]},
        {"metric": "bleu", "results": [{"name": "linear", "outcome": "as well", "metrics": {}}]},
        {"metric": "bleu", "margin": "2", "results": []},
    ],
)
def test_odd_baselines_of_a_verdict_are_named(odd: dict[str, Any]) -> None:
    assert baselines_fault(odd) is not None
