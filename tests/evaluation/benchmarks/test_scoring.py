"""Results of the harness for two models, compared item by item."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tunesmith.evaluation.benchmarks.scoring import compared, values
from tunesmith.evaluation.benchmarks.wording import benchmark_rows
from tunesmith.evaluation.compare import Level

LEVEL = Level(resamples=1000)


def result(metric: str, items: list[Any], value: float, higher: bool | None = True) -> dict[str, Any]:
    lines = [{"doc_id": n, "filter": "none", metric: each} for n, each in enumerate(items)]
    return {
        "samples": {"task": lines[::-1]},  # the harness gives them in any order
        "results": {"task": {"alias": "task", f"{metric},none": value, f"{metric}_stderr,none": "N/A"}},
        "higher_is_better": {"task": {metric: higher}},
        "n-shot": {"task": 2},
    }


def test_a_rate_is_compared_item_by_item() -> None:
    base = [1.0] * 30 + [0.0] * 20
    tuned = [0.0] * 12 + [1.0] * 20 + [0.0] * 18
    found = compared(result("acc", base, 0.6), result("acc", tuned, 0.4), {"task": {"acc": "mean"}}, LEVEL)
    (each,) = found
    assert (each["task"], each["metric"], each["items"], each["shots"]) == ("task", "acc", 50, 2)
    assert (each["base"], each["tuned"], each["difference"]) == pytest.approx((0.6, 0.4, -0.2))
    # 12 items only the base has right, 2 only the tuned model: by McNemar's exact test.
    assert each["p_value"] == pytest.approx(0.01294, abs=1e-4)
    assert each["adjusted_p_value"] == each["p_value"]
    assert each["verdict"] == "worse" and each["interval"][1] < 0


def test_a_perplexity_is_the_exponential_of_a_ratio_and_lower_is_better() -> None:
    random = np.random.default_rng(0)
    words = random.integers(5, 50, 40)
    before, after = -3.0 * words, -2.5 * words + random.normal(0, 0.1, 40)
    sides: Any = [
        result("word_perplexity", list(zip(of, words, strict=True)), math.exp(-of.sum() / words.sum()), False)
        for of in (before, after)
    ]
    (each,) = compared(sides[0], sides[1], {"task": {"word_perplexity": "weighted_perplexity"}}, LEVEL)
    assert each["base"] == pytest.approx(math.exp(3.0)) and each["tuned"] == pytest.approx(math.exp(2.5), rel=0.01)
    assert each["verdict"] == "better" and each["interval"][1] < 0


def test_a_lower_error_is_better() -> None:
    random = np.random.default_rng(0)
    base = random.uniform(1, 2, 30)
    sides: Any = [
        result("error", of.tolist(), float(of.mean()), False) for of in (base, base - random.uniform(0.1, 0.3, 30))
    ]
    assert compared(sides[0], sides[1], {"task": {"error": "mean"}}, LEVEL)[0]["verdict"] == "better"


def test_where_no_direction_is_better_nothing_is_judged() -> None:
    sides: Any = [result("length", [float(n) for n in range(start, start + 20)], start, None) for start in (0, 5)]
    (each,) = compared(sides[0], sides[1], {"task": {"length": "mean"}}, LEVEL)
    assert (each["difference"], each["verdict"]) == (5.0, None) and each["interval"] == pytest.approx([5.0, 5.0])


@pytest.mark.parametrize(("items", "aggregation"), [([(1, 0)] * 10, "f1"), ([1.0] * 10, None), (["a"] * 10, "mean")])
def test_what_is_no_mean_over_items_has_values_alone(items: list[Any], aggregation: str | None) -> None:
    ways = {"task": {"odd": aggregation}} if aggregation else {}
    (each,) = compared(result("odd", items, 0.5), result("odd", items, 0.7), ways, LEVEL)  # type: ignore[arg-type]
    assert (each["base"], each["tuned"], each["difference"]) == pytest.approx((0.5, 0.7, 0.2))
    assert each["interval"] is each["p_value"] is each["verdict"] is None


def test_a_model_alone_has_values() -> None:
    (each,) = values(result("acc", [1.0, 0.0], 0.5))
    assert (each["value"], each["items"]) == (0.5, 2)
    assert benchmark_rows({"benchmarks": [each]}) == [("task", "acc", 2, None, 0.5, None, None, None)]
