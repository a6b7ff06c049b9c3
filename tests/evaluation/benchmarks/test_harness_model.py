"""Our model behind the harness's API, beside the harness's own model for transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

pytest.importorskip("lm_eval", reason="needs pip install 'tunesmith[benchmarks]'")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunesmith.errors import RecipeError
from tunesmith.evaluation.benchmarks.harness_model import HarnessModel, cut
from tunesmith.model.compute import attention
from tunesmith.runs.progress import Silent

SHOTS = "Question: what is the capital of Norway?\nAnswer: Oslo\n\nQuestion: what is the capital of France?\nAnswer:"
PAIRS = [
    *((SHOTS, f" {city}") for city in ("Paris", "Rome", "a city that is not named here", "P")),
    ("The sky is ", "blue"),  # a space that moves to the continuation
    ("", "A text without a context."),
    ("Hello", ","),
    ("<|im_start|>user", " said"),  # a text that begins with the special token itself
]
LONG = ("word " * 300, "and an end that must be kept")  # more than the model reads


def requests(kind: Any, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [
        Instance(request_type=kind, doc={}, arguments=each, idx=0, metadata=("task", number, 1))
        for number, each in enumerate(arguments)
    ]


@pytest.fixture(scope="module")
def theirs(tiny_model_dir: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    # The model has 512 positions. Ours also feeds the last token of a text, which predicts nothing.
    return cast("Any", HFLM)(pretrained=model, tokenizer=tokenizer, batch_size=4, max_length=511)


def ours(folder: Path, layout: Any = "tree") -> HarnessModel:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    attention.install(model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    facts: dict[str, Any] = {"stop_ids": (2,), "batch_size": 4, "budget": lambda longest: max(longest, 512)}
    return HarnessModel(model, tokenizer, layout=layout, name="tuned", listener=Silent(), **facts)


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_likelihoods_are_those_of_the_harness_itself(theirs: Any, tiny_model_dir: Path, layout: Any) -> None:
    pairs = [*PAIRS, LONG]
    found = ours(tiny_model_dir, layout).loglikelihood(requests("loglikelihood", pairs))
    expected = theirs.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True)
    for (logprob, greedy), (their_logprob, their_greedy) in zip(found, expected, strict=True):
        assert logprob == pytest.approx(their_logprob, abs=1e-4)
        assert greedy == their_greedy
    assert min(logprob for logprob, _ in found) < -20


def test_a_greedy_continuation_is_known_as_one(theirs: Any, tiny_model_dir: Path) -> None:
    model = ours(tiny_model_dir)
    (text,) = model.generate_until(requests("generate_until", [(SHOTS, {"max_gen_toks": 6})]))
    pair = [(SHOTS, text)]
    assert model.loglikelihood(requests("loglikelihood", pair))[0][1]
    assert theirs.loglikelihood(requests("loglikelihood", pair), disable_tqdm=True)[0][1]


def test_texts_longer_than_the_model_reads_are_scored_in_windows(theirs: Any, tiny_model_dir: Path) -> None:
    texts = [("A short text.",), ("Some words that go on. " * 120,), ("",)]
    found = ours(tiny_model_dir).loglikelihood_rolling(requests("loglikelihood_rolling", texts))
    assert found[2] == 0.0
    expected = theirs.loglikelihood_rolling(requests("loglikelihood_rolling", texts[:2]), disable_tqdm=True)
    assert found[0] == pytest.approx(expected[0], abs=1e-4)
    assert found[1] == pytest.approx(expected[1], rel=1e-6)
    assert found[1] < 10 * found[0] < 0


def test_answers_are_those_of_the_harness_itself(theirs: Any, tiny_model_dir: Path) -> None:
    asked = [
        (f"{SHOTS} {n}", {"until": ["\n\n"] if n % 2 else "Q", "max_gen_toks": 8 + n % 3, "do_sample": False})
        for n in range(9)
    ]
    found = ours(tiny_model_dir).generate_until(requests("generate_until", asked))
    expected = theirs.generate_until(requests("generate_until", asked), disable_tqdm=True)
    assert found == expected and any(found)


def test_an_answer_ends_at_the_text_that_ends_it(tiny_model_dir: Path) -> None:
    model = ours(tiny_model_dir)
    (whole,) = model.generate_until(requests("generate_until", [(SHOTS, {"max_gen_toks": 12})]))
    assert len(whole) > 6
    ends = whole[3:5]
    asked = [(f"{SHOTS}", {"max_gen_toks": 12, "until": [ends]})] * 4
    assert model.generate_until(requests("generate_until", asked)) == [whole.split(ends)[0]] * 4
    assert cut("one\ntwo. three", [".", "\n", ""]) == "one"


def test_an_answer_that_has_no_room_is_refused(tiny_model_dir: Path) -> None:
    with pytest.raises(RecipeError, match="answers of 600 tokens, and the model reads 512"):
        ours(tiny_model_dir).generate_until(requests("generate_until", [("x", {"max_gen_toks": 600})]))


@pytest.mark.parametrize(
    "given",
    [
        {"until": 5},
        {"until": [5]},
        {"max_gen_toks": "many"},
        {"max_gen_toks": float("inf")},
    ],
)
def test_values_that_cannot_be_used_are_one_message(tiny_model_dir: Path, given: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"(?s)by values that cannot be used.*until is a list of texts"):
        ours(tiny_model_dir).generate_until(requests("generate_until", [("x", given)]))
