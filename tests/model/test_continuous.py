"""Greedy decoding over a cache of slots: token for token what a plain loop gives, whatever shares a pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import LONGROPE, config_for, tiny
from transformers import GenerationConfig

from tunesmith.model import continuous, greedy
from tunesmith.model.compute.rope import length_that_turns
from tunesmith.model.continuous import Decoded, admits, decode_continuously
from tunesmith.model.decoding import Job

NEW = 20
LARGE = {"initializer_range": 0.3}  # so that a random model's answers depend on what it has read
MODELS: dict[str, Any] = {
    "llama": {},
    "mistral": {"sliding_window": 8},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma3_text": {"sliding_window": 8, "head_dim": 8, "query_pre_attn_scalar": 8},
    "gpt2": {"n_positions": 128},
    "gpt_neox": {},
    "phi3": {},
    "olmo2": {},
    "cohere2": {"sliding_window": 8},
}


def prompts() -> list[tuple[int, ...]]:
    """Unequal lengths; most share a prefix, some share more, one is alone, one is another's beginning."""
    random = np.random.default_rng(3)
    common, more = random.integers(3, 90, 20).tolist(), random.integers(3, 90, 18).tolist()
    own = [random.integers(3, 90, size).tolist() for size in (1, 7, 3, 12, 5, 9, 2, 4)]
    found = [(*common, *each) for each in own[:4]]
    found += [(*common, *more, *each) for each in own[4:7]]
    return [*found, tuple(own[7]), tuple(common)]


def jobs(new_tokens: int = NEW) -> list[Job]:
    return [Job(prompt, new_tokens, [(number, 0)]) for number, prompt in enumerate(prompts())]


def plainly(model: Any, prompt: tuple[int, ...], *, stop: tuple[int, ...] = (), new_tokens: int = NEW) -> list[int]:
    """What transformers' own loop gives for one prompt alone, with the stop token."""
    line = torch.tensor([prompt])
    config = GenerationConfig(
        max_new_tokens=new_tokens, do_sample=False, pad_token_id=0, eos_token_id=list(stop) or None
    )
    with torch.no_grad():
        made = model.generate(input_ids=line, attention_mask=torch.ones_like(line), generation_config=config)
    return made[0, len(prompt) :].tolist()


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    made = tiny(config_for(request.param, **LARGE, **MODELS[request.param]))
    made.generation_config = GenerationConfig()
    return made


def test_answers_are_those_of_a_plain_loop_in_every_architecture_and_number_of_slots(model: Any) -> None:
    assert admits(model, jobs())
    expected = [plainly(model, prompt) for prompt in prompts()]
    assert len({tuple(each) for each in expected}) == len(expected)
    stop = (expected[0][5], expected[4][9], 400)  # several stop tokens, of which one never comes
    stopped = [plainly(model, prompt, stop=stop) for prompt in prompts()]
    assert len({len(each) for each in stopped}) > 1
    for slots in (1, 4, 16):
        found = decode_continuously(model, jobs(), stop_ids=(), slots=slots)
        assert found == [Decoded(each) for each in expected]
        found = decode_continuously(model, jobs(), stop_ids=stop, slots=slots)
        assert [each.ids for each in found] == stopped


@pytest.fixture(scope="module")
def llama() -> Any:
    made = tiny(config_for("llama", **LARGE))
    made.generation_config = GenerationConfig()
    return made


def nearly_tied(model: Any, apart: float) -> Any:
    """Every second token has nearly the output row of the one before it."""
    weight = model.get_output_embeddings().weight
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(2)
        weight[1::2] = weight[0::2] * (1 + apart * torch.randn_like(weight[0::2]))
    return model


@pytest.mark.parametrize("apart", [0.0, 1e-7, 1e-6])
def test_choices_within_rounding_are_those_of_the_row_alone(apart: float) -> None:
    model = nearly_tied(tiny(config_for("llama", **LARGE)), apart)
    model.generation_config = GenerationConfig()
    expected = [plainly(model, prompt) for prompt in prompts()]
    found = decode_continuously(model, jobs(), stop_ids=(), slots=4)
    assert [each.ids for each in found] == expected


def test_what_texts_share_is_computed_once_whatever_tree_they_form(llama: Any) -> None:
    sizes: list[int] = []
    handle = llama.get_input_embeddings().register_forward_pre_hook(lambda _, given: sizes.append(given[0].shape[1]))
    decode_continuously(llama, jobs(new_tokens=1), stop_ids=(), slots=16)
    handle.remove()
    distinct = 20 + 18 + sum((1, 7, 3, 12, 5, 9, 2, 4))
    # The prompt that is the beginning of others computes its last token again.
    assert distinct <= sum(sizes) <= distinct + 1


def test_a_true_reference_needs_few_passes_and_a_false_one_changes_nothing(llama: Any) -> None:
    expected = decode_continuously(llama, jobs(), stop_ids=(), slots=4)
    passes: list[int] = []
    handle = llama.register_forward_pre_hook(lambda *_: passes.append(1))
    decode_continuously(llama, jobs(), stop_ids=(), slots=16)
    unguessed = len(passes)
    passes.clear()
    true = [
        Job(job.prompt, NEW, job.answers, reference=tuple(of.ids)) for job, of in zip(jobs(), expected, strict=True)
    ]
    assert decode_continuously(llama, true, stop_ids=(), slots=16) == expected
    assert len(passes) < unguessed / 2
    handle.remove()
    false = [Job(job.prompt, NEW, job.answers, reference=tuple(expected[0].ids[::-1])) for job in jobs()]
    assert decode_continuously(llama, false, stop_ids=(), slots=4) == expected


def test_a_known_beginning_is_not_decoded_again(llama: Any) -> None:
    expected = decode_continuously(llama, jobs(), stop_ids=(), slots=4)
    known = [
        Job(job.prompt, NEW, job.answers, known=tuple(of.ids[: 5 + number]))
        for number, (job, of) in enumerate(zip(jobs(), expected, strict=True))
    ]
    assert decode_continuously(llama, known, stop_ids=(), slots=4) == expected


def test_a_settled_answer_leaves_unfinished_and_frees_its_slot(llama: Any) -> None:
    whole = decode_continuously(llama, jobs(), stop_ids=(), slots=4)
    odd = [job.answers[0][0] % 2 for job in jobs()]
    found = decode_continuously(
        llama, jobs(), stop_ids=(), slots=2, settled=lambda job, ids: bool(job.answers[0][0] % 2) and len(ids) >= 3
    )
    for short, of, is_odd in zip(found, whole, odd, strict=True):
        assert short.settled == bool(is_odd)
        assert short.ids == (of.ids[: len(short.ids)] if is_odd else of.ids)
        assert not is_odd or 3 <= len(short.ids) < NEW


def test_a_model_with_more_than_keys_and_values_is_not_admitted() -> None:
    assert not admits(tiny(config_for("mamba", **LARGE)), jobs())


def test_texts_on_both_sides_of_a_change_of_rope_are_decoded_as_alone() -> None:
    """phi3 takes other frequencies for all texts of a pass once one of them has more than 32 tokens."""
    model = tiny(config_for("phi3", **LARGE, **LONGROPE))
    model.generation_config = GenerationConfig()
    sizes = [len(prompt) for prompt in prompts()]
    assert min(sizes) + NEW <= 32 and 32 - NEW < sorted(sizes)[1] <= 32 < max(sizes)
    assert not admits(model, jobs())
    short = [job for job in jobs(new_tokens=2) if len(job.prompt) <= 30]
    assert len(short) > 3 and admits(model, short)
    limits: dict[str, Any] = {"stop_ids": (), "limit": None, "settled": None, "on_done": lambda _: None}
    found = greedy.decode_greedily(model, jobs(), batch_size=4, **limits)
    assert [each.ids for each in found] == [plainly(model, prompt) for prompt in prompts()]
    found = greedy.decode_greedily(model, short, batch_size=4, **limits)
    assert [each.ids for each in found] == [plainly(model, job.prompt, new_tokens=2) for job in short]


def test_the_length_at_which_rope_changes_is_read_from_each_way_to_write_it() -> None:
    assert length_that_turns(config_for("phi3", **LONGROPE)) == 32
    assert length_that_turns(config_for("llama")) is None and length_that_turns(config_for("gpt2")) is None
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    assert length_that_turns(config_for("llama", rope_parameters=dynamic)) == 128
    assert length_that_turns(config_for("llama", rope_scaling={"type": "dynamic", "factor": 2.0})) == 128
    of_layers = {"full_attention": {**dynamic}, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
    assert length_that_turns(config_for("gemma3_text", rope_parameters=of_layers)) == 128


def test_a_model_whose_window_does_not_follow_the_mask_is_not_admitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask that forgets the window shows in a trial that is as long as the texts can become."""
    model = tiny(config_for("mistral", **LARGE, sliding_window=30))
    assert admits(model, jobs())
    other = tiny(config_for("mistral", **LARGE, sliding_window=30))
    of_window = continuous.SlotPass.mask
    from transformers.masking_utils import causal_mask_function

    monkeypatch.setattr(continuous.SlotPass, "mask", lambda fed, sees: of_window(fed, causal_mask_function))
    assert not admits(other, jobs())


def test_more_texts_than_asked_for_are_decoded_at_a_time_where_their_keys_fit(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def noted(*given: Any, slots: int, **more: Any) -> list[Decoded]:
        asked.append(slots)
        return decode_continuously(*given, slots=slots, **more)

    monkeypatch.setattr(greedy, "decode_continuously", noted)
    limits: dict[str, Any] = {"stop_ids": (), "limit": None, "settled": None, "on_done": lambda _: None}
    wide = greedy.decode_greedily(llama, jobs(), batch_size=2, **limits)
    # 2 layers with keys and values of 2 heads of width 8 in fp32, in 51 columns
    room = 3 * 2 * 2 * 2 * 8 * 4 * max(len(job.prompt) + NEW for job in jobs())
    monkeypatch.setattr(greedy, "bytes_of_keys", lambda: room)
    narrow = greedy.decode_greedily(llama, jobs(), batch_size=2, **limits)
    wanted = greedy.decode_greedily(llama, jobs(), batch_size=5, **limits)
    assert asked == [64, 3, 5]
    assert wide == narrow == wanted
