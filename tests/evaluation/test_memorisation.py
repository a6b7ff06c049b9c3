"""Passages of rows, and which of them come back from their first tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import Row, config_for, tiny
from transformers import AutoTokenizer

from tunesmith.data.chat.template import Encoded
from tunesmith.evaluation.memorisation import MemorisationPass, Passage, come_back, passages
from tunesmith.evaluation.not_measured import NotMeasured
from tunesmith.recipe.settings import EvaluationSettings
from tunesmith.runs.progress import Silent

STOP = (2,)


def encoded(ids: list[int], supervised: list[bool], source: str = "rows:1") -> Encoded:
    row = Row(ids, supervised)
    return Encoded(row.ids, row.supervised, source, 0)


def test_a_passage_keeps_the_prompt_and_half_of_a_short_answer_and_drops_the_stop_token() -> None:
    row = encoded([*range(10, 15), *range(30, 50), 2], [False] * 5 + [True] * 21)
    (passage,) = passages([row], stop_ids=STOP, seed=0)
    assert passage.ids.tolist() == [*range(10, 15), *range(30, 50)]
    assert passage.rest == tuple(range(40, 50))


def test_a_long_text_gives_sixteen_tokens_and_asks_for_sixty_four() -> None:
    (passage,) = passages([encoded([*range(3, 90), *range(3, 90)], [False] + [True] * 173)], stop_ids=STOP, seed=0)
    assert (passage.start, len(passage.rest)) == (17, 64)


def test_short_answers_have_no_passage_and_the_longest_run_counts() -> None:
    assert passages([encoded(list(range(3, 15)), [False] * 4 + [True] * 8)], stop_ids=STOP, seed=0) == []
    runs = [False] * 3 + [True] * 5 + [False] * 3 + [True] * 30
    (passage,) = passages([encoded(list(range(3, 44)), runs)], stop_ids=STOP, seed=0)
    assert passage.start == 11 + 15


def test_of_rows_that_belong_together_the_first_is_taken() -> None:
    rows = [encoded([9, *range(30, 60)], [False] + [True] * 30, f"rows:{n}") for n in range(8)]
    found = passages(rows, stop_ids=STOP, seed=0, together=2)
    assert sorted(each.source for each in found) == ["rows:0", "rows:2", "rows:4", "rows:6"]


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model_dir)


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_what_comes_back_is_what_a_plain_loop_gives(tokenizer: Any, layout: Any) -> None:
    model = tiny(config_for("llama"))
    random = np.random.default_rng(3)
    asked, expected = [], []
    for number in range(24):
        start = random.integers(3, 90, 12).tolist()
        ids = list(start)
        with torch.no_grad():
            for _ in range(10):
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        wrong = number % 3  # none, the last token, or one in the middle
        if wrong:
            ids[-1 if wrong == 1 else 16] = 3 if ids[-1 if wrong == 1 else 16] != 3 else 4
        asked.append(Passage(np.array(ids, np.int32), 12, f"rows:{number}"))
        expected.append(not wrong and 2 not in ids[12:])
    found = come_back(model, asked, tokenizer, STOP, budget=256, layout=layout)
    assert found.tolist() == expected
    assert sum(expected) >= 6


def test_choices_that_rounding_could_turn_are_decoded(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(config_for("llama"))
    with torch.no_grad():
        for own in model.parameters():
            own.zero_()  # all tokens are equally likely, and decoding takes the first
    asked = [Passage(np.array([5] * 12 + [0] * 10, np.int32), 12, "same"), Passage(np.arange(3, 25), 12, "other")]
    asked += [Passage(np.array([6] * 12 + [0] * 10, np.int32), 12, "same")]
    assert come_back(model, asked, tokenizer, STOP, budget=256, layout="padded").tolist() == [True, False, True]


def test_a_passage_near_the_models_limit_is_decoded_beside_one_with_a_longer_rest(tokenizer: Any) -> None:
    model = tiny(config_for("llama"))  # 128 positions
    with torch.no_grad():
        model.lm_head.weight.zero_()
    random = np.random.default_rng(0)
    near = np.array([*random.integers(3, 90, 110), *[0] * 10], np.int32)
    early = np.array([*random.integers(3, 90, 10), *[0] * 50], np.int32)
    asked = [Passage(near, 110, "near"), Passage(early, 10, "early"), Passage(near + 1, 110, "another")]
    assert come_back(model, asked, tokenizer, STOP, budget=512, layout="padded").tolist() == [True, True, False]


def returned(
    tokenizer: Any, base: list[bool], tuned: list[bool], trained: int, left_out: NotMeasured | None = None
) -> dict[str, Any] | None:
    each = [Passage(np.arange(10, 40, dtype=np.int32), 16, f"rows:{n}") for n in range(len(base))]
    settings = EvaluationSettings(resamples=200)
    found = MemorisationPass(each[:trained], each[trained:], tokenizer, STOP, settings, Silent(), 256, "tree")
    found.returned = {"base": np.array(base), "tuned": np.array(tuned)}
    return found.result(left_out or NotMeasured())


def test_rows_that_come_back_are_memorised_only_if_held_out_rows_do_not(tokenizer: Any) -> None:
    alone = returned(tokenizer, [False] * 40, [True] * 30 + [False] * 10, 40)
    assert alone is not None and alone["memorised"] and alone["held_out"] is None
    assert (alone["rows"], alone["base"], alone["tuned"], len(alone["examples"])) == (40, 0.0, 0.75, 5)
    assert alone["examples"][0]["source"] == "rows:0"
    task = returned(tokenizer, [False] * 80, ([True] * 30 + [False] * 10) * 2, 40)
    assert task is not None and not task["memorised"]
    assert task["held_out"] == {"rows": 40, "base": 0.0, "tuned": 0.75, "p_value": pytest.approx(0.6, abs=0.1)}
    learned = returned(tokenizer, [False] * 80, [True] * 30 + [False] * 50, 40)
    assert learned is not None and learned["memorised"] and learned["held_out"]["p_value"] < 1e-6
    few = "19 training rows have learned texts of 16 tokens or more, and it takes 20"
    left_out = NotMeasured()
    assert returned(tokenizer, [False] * 19, [True] * 19, 19, left_out) is None
    assert left_out.reasons == {"memorisation": few}
