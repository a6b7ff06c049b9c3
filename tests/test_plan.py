"""What fits is arithmetic: the same sizes give the same choice."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from tunesmith import plan
from tunesmith.plan import Shape
from tunesmith.recipe import FullSettings, LoraSettings, QloraSettings

SMALL = Shape(
    parameters=1000, trainable=100, layers=2, hidden=8, intermediate=16, vocabulary=50, weight_bytes=2.0
)  # fmt: skip


def test_a_forward_pass_holds_the_budget_of_the_device_or_the_longest_row() -> None:
    assert plan.micro_batch_tokens("cpu", 100) == plan.CPU_TOKENS == 1024
    assert plan.micro_batch_tokens("cpu", 3000) == 3000
    assert plan.micro_batch_tokens("cuda:0", 3000) == plan.GPU_TOKENS == 8192
    assert plan.micro_batch_tokens("cuda", 9000) == 9000


def test_threads_are_the_processors_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 3, 5})
    assert plan.threads() == 3


def test_memory_is_all_of_the_machine_whatever_is_free() -> None:
    assert plan.total_memory("cpu") == plan.total_memory("cpu") > 2**28


def test_the_shape_of_a_model_is_read_from_its_config_and_its_parameters(tiny_model_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    model.requires_grad_(False)
    model.model.norm.weight.requires_grad_(True)
    attention = 64 * 64 * 2 + 64 * 32 * 2  # queries and output; keys and values with half the heads
    parameters = 400 * 64 + 2 * (attention + 3 * 64 * 128 + 2 * 64) + 64
    assert plan.shape(model, model.config, LoraSettings()) == Shape(
        parameters=parameters, trainable=64, layers=2, hidden=64, intermediate=128, vocabulary=400, weight_bytes=4
    )
    half = plan.shape(model.to(torch.bfloat16), model.config, FullSettings())
    assert half.weight_bytes == 2


def test_a_config_without_an_intermediate_size_has_four_times_the_hidden_one() -> None:
    config = GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    found = plan.shape(GPT2LMHeadModel(config), config, FullSettings())
    assert (found.layers, found.hidden, found.intermediate, found.vocabulary) == (1, 8, 32, 20)


def test_a_quantized_weight_takes_half_a_byte_and_its_constants() -> None:
    assert plan.weight_bytes(QloraSettings(), torch.float32) == 0.6
    assert plan.weight_bytes(LoraSettings(), torch.float32) == 4
    assert plan.weight_bytes(FullSettings(), torch.float16) == 2


def test_the_peak_is_weights_optimizer_activations_and_logits() -> None:
    layer = 10 * (10 * 8 + 4 * 16) * 4
    rest = 1000 * 2 + 100 * 16 + 4 * 10 * 50 * 4
    assert plan.peak_bytes(SMALL, tokens=10, checkpointing=False) == rest + 2 * layer == 23_120
    assert plan.peak_bytes(SMALL, tokens=10, checkpointing=True) == rest + 2 * 10 * 8 * 4 + layer == 18_000


def test_activations_are_recomputed_only_where_the_plain_step_does_not_fit() -> None:
    enough = int(23_120 / plan.SHARE)
    assert not plan.needs_checkpointing(SMALL, tokens=10, memory=enough)
    assert plan.needs_checkpointing(SMALL, tokens=10, memory=enough - 2)
    assert plan.needs_checkpointing(SMALL, tokens=11, memory=enough)


def test_the_unquantized_base_is_taken_where_it_fits_beside_the_tuned_model() -> None:
    assert plan.unquantized_base_fits(1_000, memory=6_251)
    assert not plan.unquantized_base_fits(1_000, memory=6_249)
