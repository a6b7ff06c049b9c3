"""A function of the user's gets the logits that predicted each label, and its numbers are checked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from tests.tiny import config_for, make_rows, tiny

from tunesmith.data.batches.layout import LayoutName, micro_batches
from tunesmith.errors import RecipeError
from tunesmith.evaluation.metrics.base import COMPUTE_METRICS_KEY
from tunesmith.evaluation.metrics.computed import (
    MOST_LOGIT_BYTES,
    check_size,
    computed_metrics,
    predictions,
)
from tunesmith.evaluation.metrics.tokens import row_losses
from tunesmith.evaluation.metrics.user_functions import functions_allowed, import_function

MODULE = """
import numpy as np

def compute_metrics(eval_pred):
    logits, labels = eval_pred
    predictions = np.argmax(logits, axis=-1)
    return {"eval_accuracy": (predictions == labels).mean(), "labels": len(labels)}

def no_dict(eval_pred):
    return 0.5

def no_number(eval_pred):
    return {"accuracy": "high"}

def infinite(eval_pred):
    return {"accuracy": float("nan")}

def fails(eval_pred):
    return {"accuracy": 1 / 0}
"""


@pytest.fixture
def module(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "guide_metrics.py").write_text(MODULE)
    names = re.findall(r"def (\w+)", MODULE)
    allowed = [f"guide_metrics:{name}" for name in [*names, "computemetrics"]]
    with functions_allowed({name: tmp_path for name in [*allowed, "compute_metrics"]}):
        yield "guide_metrics"


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_logits_are_the_models_own_where_they_predict_the_labels(layout: LayoutName) -> None:
    model, rows = tiny(config_for("llama")), make_rows()
    found = predictions(model, micro_batches(rows, budget=120, layout=layout), device="cpu")
    logits, labels = cast("Any", found)
    expected = {}
    for row in rows:
        ids = torch.tensor(row.ids)[None].long()
        with torch.no_grad():
            own = model(input_ids=ids).logits[0]
        for place in np.flatnonzero(row.supervised).tolist():
            expected.setdefault(int(row.ids[place]), []).append(own[place - 1].numpy())
    assert len(labels) == sum(int(row.supervised[1:].sum()) for row in rows)
    for line, label in zip(logits, labels.tolist(), strict=True):
        assert min(float(np.abs(line - own).max()) for own in expected[label]) < 1e-4


def test_the_guides_function_gives_the_accuracy_that_we_measure(module: str) -> None:
    model, rows = tiny(config_for("llama")), make_rows()
    batches = micro_batches(rows, budget=120, layout="tree")
    model.train()
    found = computed_metrics(f"{module}:compute_metrics", model, batches, device="cpu")
    scores = row_losses(model, batches, rows=len(rows), device="cpu")
    assert found == {"accuracy": pytest.approx(scores.token_accuracy), "labels": scores.tokens.sum()}
    assert model.training


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("no_dict", "returned 0.5, which is not a dict"),
        ("no_number", "which is not a dict of numbers by name"),
        ("infinite", "accuracy is not finite"),
        ("fails", "raised ZeroDivisionError"),
    ],
)
def test_a_function_that_gives_no_numbers_is_refused(module: str, function: str, said: str) -> None:
    batches = micro_batches(make_rows(2), budget=120, layout="tree")
    with pytest.raises(RecipeError) as error:
        computed_metrics(f"{module}:{function}", tiny(config_for("llama")), batches, device="cpu")
    assert said in error.value.what
    assert error.value.where == "evaluation.compute_metrics"


def test_a_function_that_is_not_there_is_refused_under_its_own_setting(module: str) -> None:
    with pytest.raises(RecipeError, match="has no function 'computemetrics'") as error:
        import_function(f"{module}:computemetrics", where=COMPUTE_METRICS_KEY)
    assert error.value.where == "evaluation.compute_metrics"


def test_more_logits_than_may_be_held_are_refused() -> None:
    check_size(MOST_LOGIT_BYTES // 400, 100)
    with pytest.raises(RecipeError, match="too many logits") as error:
        check_size(MOST_LOGIT_BYTES // 400 + 1, 100)
    assert error.value.remedy is not None
    assert "evaluation.max_rows" in error.value.remedy


def test_the_setting_is_a_name_of_a_function(module: str) -> None:
    fine: Any = import_function(f"{module}:compute_metrics")
    assert callable(fine)
    with pytest.raises(RecipeError, match="does not name a Python function"):
        import_function("compute_metrics")
