"""What the divergence at single positions says of texts."""

from __future__ import annotations

import numpy as np
import pytest

from tunesmith.evaluation.compare import Level
from tunesmith.evaluation.divergence.scoring import measured
from tunesmith.evaluation.divergence.texts import PROMPTS, GeneralText, general_texts
from tunesmith.evaluation.divergence.wording import divergence_lines

TEXTS = [GeneralText(f"text/{n}", "code" if n % 2 else "prose", "en" if n < 4 else "de", "") for n in range(6)]
LEVEL = Level(resamples=1000)


def shown(ids: object) -> str:
    return " ".join(map(str, ids))  # type: ignore[call-overload]


def scored(kl: np.ndarray, nll: np.ndarray | None = None, rows: np.ndarray | None = None) -> dict[str, object] | None:
    row = np.repeat(np.arange(6), 4) if rows is None else rows
    likeliest = np.stack([np.zeros(len(row), int), (kl > 1).astype(int)], axis=1)
    at = np.tile(np.arange(1, 5), len(row) // 4)
    ids = [[10 * n + k for k in range(5)] for n in range(6)]
    return measured(TEXTS, ids, row, at, kl, likeliest, nll, level=LEVEL, shown=shown)


def test_the_mean_is_over_tokens_and_the_interval_over_texts() -> None:
    kl = np.repeat([0.0, 0.1, 0.2, 0.3, 0.4, 2.0], 4)
    found = scored(kl)
    assert found is not None
    assert (found["texts"], found["tokens"], found["kl"]) == (6, 24, pytest.approx(0.5))
    low, high = found["interval"]  # type: ignore[misc]
    assert 0.05 < low < 0.5 < high < 2.0
    assert found["changed"] == pytest.approx(1 / 6)
    assert found["by"][0] == {"by": "language", "name": "de", "tokens": 8, "kl": pytest.approx(1.2)}  # type: ignore[index]
    worst = found["worst_texts"][0]  # type: ignore[index]
    assert (worst["id"], worst["kl"], worst["text"]) == ("text/5", 2.0, "50 51 52 53 54")
    token = found["worst_tokens"][0]  # type: ignore[index]
    assert token == {"id": "text/5", "before": "50", "token": "51", "base": "0", "tuned": "1", "kl": 2.0}


def test_a_loss_that_rose_is_worse_and_one_that_stayed_is_no_evidence() -> None:
    random = np.random.default_rng(0)
    base = random.uniform(1, 3, 24)
    rose = scored(np.full(24, 0.1), np.stack([base, base + random.uniform(0.2, 0.4, 24)], axis=1))
    assert rose is not None and rose["loss"]["verdict"] == "worse"  # type: ignore[index]
    assert rose["perplexity"]["base"] == pytest.approx(np.exp(base.mean()))  # type: ignore[index]
    same = scored(np.zeros(24), np.stack([base, base], axis=1))
    assert same is not None and same["loss"]["verdict"] == "no evidence"  # type: ignore[index]
    assert (same["kl"], same["interval"], same["changed"]) == (0.0, [0.0, 0.0], 0.0)


def test_one_text_says_nothing() -> None:
    assert scored(np.ones(4), rows=np.zeros(4, int)) is None


def test_the_lines_name_the_figures() -> None:
    each = {"texts": 52, "tokens": 4000, "kl": 0.031, "interval": [0.02, 0.05], "changed": 0.041}
    loss = {"base": 2.0, "tuned": 2.1, "difference": 0.1, "interval": [0.05, 0.15], "verdict": "worse"}
    general = {**each, "loss": loss, "perplexity": {"base": 7.4, "tuned": 8.2}, "by": [{"name": "code", "kl": 0.2}]}
    assert divergence_lines({}) == []
    general["worst_texts"] = [{"id": "code/sql", "kl": 0.6}, {"id": "prose/de", "kl": 0.25}]
    general["worst_tokens"] = [{"before": "LIMIT ", "base": "10", "tuned": "20"}, {}]
    assert divergence_lines({"divergence": {"general": general, "own_answers": each, "confidence": 0.95}}) == [
        "Divergence from the base on general text: 0.031 nats per token (95% interval 0.02 to 0.05; 4,000 tokens of 52 "
        "texts). The likeliest token changed at 4.1% of them.",
        "Divergence from the base on the base's own answers: 0.031 nats per token (95% interval 0.02 to 0.05; 4,000 "
        "tokens of 52 texts). The likeliest token changed at 4.1% of them.",
        "  perplexity of general text 7.4 -> 8.2 (loss +0.1, interval +0.05 to +0.15); largest divergence: code 0.2",
        "  texts that moved most: code/sql 0.6, prose/de 0.25; most of all behind 'LIMIT ', where the base expects "
        "'10' and the tuned model '20'",
    ]


def test_where_both_models_expect_the_same_token_it_is_not_said_twice() -> None:
    loss = {"base": 2.0, "tuned": 2.0, "difference": 0.0, "interval": [0.0, 0.0]}
    each = {"texts": 52, "tokens": 4000, "kl": 0.01, "interval": [0.0, 0.02], "changed": 0.0, "by": [], "loss": loss}
    general = {**each, "perplexity": {"base": 7.4, "tuned": 7.4}, "worst_texts": [{"id": "code/sql", "kl": 0.6}]}
    general["worst_tokens"] = [{"before": "vacances :", "base": "\n", "tuned": "\n"}]
    lines = divergence_lines({"divergence": {"general": general, "confidence": 0.95}})
    assert lines[-1] == "  texts that moved most: code/sql 0.6; most of all behind 'vacances :'"


def test_the_texts_are_of_many_forms_and_languages() -> None:
    texts, prompts = general_texts(), general_texts(PROMPTS)
    assert len({each.id for each in [*texts, *prompts]}) == len(texts) + len(prompts)
    assert {each.form for each in texts} == {"prose", "dialogue", "code", "list"}
    assert len({each.language for each in texts if each.form != "code"}) >= 15
    assert len(texts) >= 50 and all(each.text == each.text.strip() for each in texts)
