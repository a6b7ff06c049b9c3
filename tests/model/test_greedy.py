"""Greedy decoding in batches, where a model cannot use slots: choices within rounding are those of the row alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import config_for, tiny
from transformers import GenerationConfig

from tunesmith.model import greedy
from tunesmith.model.decoding import Job, decode
from tunesmith.model.greedy import decode_greedily

NEW = 20


def prompts() -> list[tuple[int, ...]]:
    random = np.random.default_rng(3)
    common = random.integers(3, 90, 20).tolist()
    return [(*common, *random.integers(3, 90, size).tolist()) for size in (1, 7, 3, 12, 5, 9)]


def nearly_tied(name: str, **changes: Any) -> Any:
    """Every second token has nearly the output row of the one before it."""
    model = tiny(config_for(name, initializer_range=0.3, tie_word_embeddings=False, **changes))
    model.generation_config = GenerationConfig()
    weight = model.get_output_embeddings().weight
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(2)
        weight[1::2] = weight[0::2] * (1 + 1e-6 * torch.randn_like(weight[0::2]))
    return model


@pytest.mark.parametrize("slots", [True, False])
@pytest.mark.parametrize("known", [0, 3])
def test_near_ties_are_decided_by_the_row_alone(slots: bool, known: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nearly_tied("llama")
    if not slots:
        monkeypatch.setattr(greedy, "admits", lambda *_: False)
    jobs = [Job(prompt, NEW, [(number, 0)]) for number, prompt in enumerate(prompts())]
    expected = [decode(model, [job], stop_ids=(), plain=True)[0] for job in jobs]
    begun = [
        Job(job.prompt, NEW, job.answers, known=tuple(answer[:known]))
        for job, answer in zip(jobs, expected, strict=True)
    ]
    found = decode_greedily(model, begun, stop_ids=(), batch_size=4, limit=128, settled=None, on_done=lambda _: None)
    assert [each.ids for each in found] == expected
