"""What fits is arithmetic: the same sizes give the same choice."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
from tests.tiny import Row

from tunesmith.errors import ModelError
from tunesmith.planning import budget as plan
from tunesmith.planning.budget import LIBRARIES, SHARE, Plan
from tunesmith.planning.step_shape import StepBytes
from tunesmith.recipe.settings import TrainingSettings

SMALL = StepBytes(
    device="cpu", method="lora", weights=4000, trained=400, beside=0, layers=2, kept=1000, mask=0, hidden=32, widest=64,
    vocabulary=50, head=0, unpacked=0,
)  # fmt: skip
WIDE = replace(SMALL, kept=1_000_000, hidden=10_000, layers=30)


def needs(tokens: int, checkpointing: bool = False, shape: StepBytes = WIDE) -> int:
    return plan.predict(shape, tokens=tokens, checkpointing=checkpointing, memory=2**40).training


def choose(memory: float, shape: StepBytes = WIDE, longest: int = 300, **training: object) -> Plan:
    settings = TrainingSettings.model_validate(training)
    return plan.choose(shape, settings, longest=longest, memory=int(memory), where="the model")


def test_a_forward_pass_holds_the_budget_of_the_device_or_the_longest_row() -> None:
    assert plan.micro_batch_tokens("cpu", 100) == plan.CPU_TOKENS == 1024
    assert plan.micro_batch_tokens("cpu", 3000) == 3000
    assert plan.micro_batch_tokens("cuda:0", 3000) == plan.GPU_TOKENS == 8192
    assert plan.micro_batch_tokens("cuda", 9000) == 9000


def test_the_ladder_goes_from_what_suits_the_device_down_to_the_longest_row() -> None:
    assert plan.ladder("cpu", 300) == [1024, 768, 512, 384, 300]
    assert plan.ladder("cpu", 1024) == [1024]
    assert plan.ladder("cuda", 3000) == [8192, 6144, 4096, 3072, 3000]
    assert plan.ladder("cuda", 10_000) == [10_000]


def test_a_budget_grows_where_rows_share_a_long_prefix_and_only_there() -> None:
    def rows(prefix: int, own: int) -> list[Row]:
        return [Row([*range(prefix), *range(10_000 + own * n, 10_000 + own * (n + 1))]) for n in range(16)]

    shared, apart = rows(1500, 300), rows(0, 300)
    assert plan.micro_batch_tokens("cpu", 1800) == 1800
    assert plan.micro_batch_tokens("cpu", 1800, [shared]) == 8192  # 1,500 and 16 times 300 are 6,300
    assert plan.micro_batch_tokens("cpu", 300, [apart]) == 1024
    assert plan.ladder("cpu", 1800, [shared]) == [8192, 6144, 4096, 3072, 2048, 1800]


@pytest.mark.parametrize(("said", "threads"), [("", 3), ("2", 2), ("1,4", 1), ("0", 3), ("many", 3)])
def test_threads_are_omp_num_threads_else_the_processors_that_this_process_may_use(
    said: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 3, 5})
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert plan.threads() == threads
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert plan.threads() == 3


def test_the_peak_is_weights_optimizer_activations_and_logits() -> None:
    peak = plan.predict(SMALL, tokens=10, checkpointing=False, memory=2**40)
    assert (peak.libraries, peak.weights, peak.gradients, peak.optimizer) == (LIBRARIES, 4000, 400, 2 * 400)
    assert peak.activations == 2 * 10 * 1000 * 1.7 == 34_000
    assert peak.logits == 3 * 10 * 50 * 4 + 2 * 10 * 32 == 6_640
    assert peak.judging == LIBRARIES + 4000 + 2 * 400 + 6_000 + 10 * (5 * 64 + 4 * 32)
    assert peak.total == peak.training == LIBRARIES + 45_840


def test_checkpointing_keeps_the_input_of_each_layer_and_one_layer_whole() -> None:
    peak = plan.predict(SMALL, tokens=10, checkpointing=True, memory=2**40)
    assert peak.activations == int((2 * 10 * 32 + 10 * 1000) * 1.1) == 11_704


def test_the_heap_of_a_cpu_gets_more_holes_after_the_first_micro_batch() -> None:
    heap = choose(2**40, SMALL, longest=10, batch_size=1)
    assert heap.later_holes(10) == int(0.3 * 34_000)
    assert replace(heap, checkpointing=True).later_holes(10) == 0
    assert replace(heap, shape=replace(SMALL, device="cuda")).later_holes(10) == 0


def test_what_trains_what_is_packed_and_a_dense_mask_count() -> None:
    def predicted(**changes: int) -> plan.Peak:
        return plan.predict(replace(SMALL, **changes), tokens=10, checkpointing=False, memory=2**40)  # type: ignore[arg-type]

    assert predicted(head=700).logits == 6_640 + 3 * 700
    assert predicted(unpacked=900).logits == 6_640 + 2 * 900
    assert predicted(mask=2).activations == int(2 * 10 * (1000 + 10 * 2) * 1.7)
    assert predicted(widest=500).logits == 5 * 10 * 500


def test_the_logits_of_a_chunk_are_all_there_are_at_a_time() -> None:
    peak = plan.predict(replace(SMALL, vocabulary=2**20), tokens=1000, checkpointing=False, memory=2**40)
    assert peak.logits == 3 * 4 * 2**23 + 2 * 1000 * 32


def test_a_quantized_base_is_judged_beside_the_unquantized_one_where_that_fits() -> None:
    shape = replace(SMALL, method="qlora", beside=4 * 10**9)
    fits, does_not = (plan.predict(shape, tokens=10, checkpointing=False, memory=n) for n in (7 * 10**9, 6 * 10**9))
    assert fits.judging == does_not.judging + 4 * 10**9
    assert fits.total == fits.judging


def test_the_prediction_rises_with_the_tokens_and_falls_with_checkpointing() -> None:
    tokens = [64, 256, 300, 384, 512, 768, 1024, 4096]
    for checkpointing in (False, True):
        found = [needs(count, checkpointing) for count in tokens]
        assert found == sorted(set(found))
    assert all(needs(count, True) < needs(count) for count in tokens)


@pytest.mark.parametrize("budget", [1024, 768, 512, 384, 300])
def test_the_largest_budget_that_fits_is_taken(budget: int) -> None:
    exactly = needs(budget) / SHARE
    found = choose(exactly + 2)
    assert (found.budget, found.checkpointing) == (budget, False)
    below = choose(exactly - 2)
    assert below.budget < budget or below.checkpointing


def test_checkpointing_comes_only_where_nothing_fits_without_it() -> None:
    found = choose(needs(300) / SHARE - 2)
    assert (found.budget, found.checkpointing) == (1024, True)
    tight = choose(needs(300, True) / SHARE + 2)
    assert (tight.budget, tight.checkpointing) == (300, True)


def test_the_same_inputs_give_the_same_plan() -> None:
    assert choose(20 * 2**30) == choose(20 * 2**30)


def test_what_the_recipe_gives_is_kept() -> None:
    given = choose(2**40, micro_batch_tokens=700, gradient_checkpointing=True)
    assert (given.budget, given.checkpointing) == (700, True)
    assert choose(needs(300, True) / SHARE + 2, micro_batch_tokens=300).checkpointing
    assert choose(needs(384) / SHARE + 2, gradient_checkpointing=False).budget == 384
    assert choose(needs(700) + 2, micro_batch_tokens=700, gradient_checkpointing=False).budget == 700


def test_no_micro_batch_is_larger_than_a_step_nor_smaller_than_a_row() -> None:
    assert choose(2**40, batch_size=2).tokens == 600
    assert choose(2**40, batch_size=16).tokens == 1024
    assert choose(2**40, micro_batch_tokens=100).tokens == 300


def test_what_cannot_fit_is_refused_with_its_figures() -> None:
    gib = 2**30
    with pytest.raises(ModelError) as caught:
        choose(gib)
    refusal = caught.value
    assert refusal.what == "This run does not fit into memory"
    assert refusal.where == "the model"
    needed = f"{needs(300, True) / gib:.1f} GB"
    assert f"300 tokens with gradient checkpointing needs {needed}, predicted (libraries 0.5 GB" in str(refusal.why)
    assert "0.8 GB of the 1.0 GB of cpu may be used" in str(refusal.why)
    assert refusal.remedy == (
        "use method: qlora; lower training.micro_batch_tokens (now 300) or data.max_length; or take a smaller model."
    )


def test_a_refusal_names_what_the_method_and_the_recipe_leave_to_do() -> None:
    with pytest.raises(ModelError, match="use method: lora or qlora"):
        choose(2**30, replace(WIDE, method="full"))
    with pytest.raises(ModelError, match=r"set training\.gradient_checkpointing: true"):
        choose(2**30, gradient_checkpointing=False)
    with pytest.raises(ModelError) as caught:
        choose(2**30, replace(WIDE, method="qlora"))
    assert "use method" not in str(caught.value)


def test_the_unquantized_base_is_taken_where_it_fits_beside_the_tuned_model() -> None:
    assert plan.unquantized_base_fits(1_000, memory=6_251)
    assert not plan.unquantized_base_fits(1_000, memory=6_249)


def test_a_plan_says_what_it_expects() -> None:
    said = str(choose(8 * 2**30, SMALL))
    assert (
        said == "memory: 0.5 GB predicted, of 8.0 GB, at 1,024 tokens in a micro-batch, without gradient checkpointing"
    )
