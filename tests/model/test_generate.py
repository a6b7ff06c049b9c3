"""Decoding: the same answers whatever the batch, the model's own defaults or the state around it."""

from __future__ import annotations

import threading
from typing import Any, cast

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MptConfig,
    MptForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from tunesmith.errors import ModelError, RecipeError
from tunesmith.model.compute import attention
from tunesmith.model.generate import Generation, check_prompts, generate, stream
from tunesmith.model.modes import evaluation_mode
from tunesmith.recipe.generation import GenerationSettings

STOP = (2,)
PROMPTS = [[5, 6, 7], [11, 12, 13, 14, 15, 16, 17, 18, 19], [40], [33, 34, 35, 36, 37], [90, 91, 92, 93, 94, 95, 96]]


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir):
    return AutoTokenizer.from_pretrained(tiny_model_dir)


@pytest.fixture
def model(tiny_model_dir):
    return AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)


def sharpened(model):
    """Larger weights, so that a random model's answers depend on the prompt and do not settle on one token."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def greedy_by_hand(model, prompt, steps, stop=STOP):
    """Without a cache, without padding: the likeliest token, again and again."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(steps):
            token = int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
            if token in stop:
                break
            ids.append(token)
    return ids[len(prompt) :]


def ids_of(results):
    return [[list(answer.tokens) for answer in answers] for answers in results]


def test_batched_greedy_answers_equal_decoding_one_prompt_at_a_time_without_a_cache(model, tokenizer):
    sharpened(model).eval()
    expected = [[greedy_by_hand(model, prompt, 12)] for prompt in PROMPTS]
    assert len({tuple(row[0]) for row in expected}) == len(PROMPTS)
    for batch_size in (1, 2, 16):
        found = generate(
            model,
            tokenizer,
            PROMPTS,
            settings=GenerationSettings(max_new_tokens=12),
            stop_ids=STOP,
            batch_size=batch_size,
        )
        assert ids_of(found) == expected


@pytest.mark.parametrize(
    ("model_class", "config"),
    [
        (GPT2LMHeadModel, GPT2Config(vocab_size=100, n_positions=32, n_embd=32, n_layer=2, n_head=2)),
        (
            GPTNeoXForCausalLM,
            GPTNeoXConfig(
                vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
            ),
        ),
        (
            Qwen2ForCausalLM,
            Qwen2Config(
                vocab_size=100,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
            ),
        ),
    ],
)
def test_padding_on_the_left_moves_no_position_in_other_architectures(model_class, config, tokenizer):
    config.bos_token_id = config.eos_token_id = None
    model = sharpened(model_class(config).eval())
    prompts = [[3, 4], [9, 8, 7, 6, 5, 4, 3], [50, 51, 52]]
    found = generate(model, tokenizer, prompts, settings=GenerationSettings(max_new_tokens=8), stop_ids=())
    assert ids_of(found) == [[greedy_by_hand(model, prompt, 8, stop=())] for prompt in prompts]


SHARED = [[*range(40, 60), *own] for own in ([13], [13, 14, 15, 16], [30, 31], [12, 12, 12])]


@pytest.mark.parametrize("sliding", [False, True])
def test_what_all_prompts_begin_with_is_computed_once_unless_a_window_slides_over_it(sliding, tokenizer):
    window = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0} if sliding else {}
    config = Qwen2Config(
        vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, bos_token_id=None, eos_token_id=None, **window,
    )  # fmt: skip
    model = sharpened(Qwen2ForCausalLM(config).eval())
    expected = [[greedy_by_hand(model, prompt, 8, stop=())] for prompt in SHARED]
    generate(model, tokenizer, SHARED, settings=GenerationSettings(max_new_tokens=1), stop_ids=())  # tries a gap, once
    shapes = []
    model.get_input_embeddings().register_forward_pre_hook(lambda module, given: shapes.append(tuple(given[0].shape)))
    found = generate(model, tokenizer, SHARED, settings=GenerationSettings(max_new_tokens=8), stop_ids=())
    assert ids_of(found) == expected
    assert shapes[:2] == [(4, 24), (4, 1)] if sliding else shapes[:2] == [(1, 20), (4, 4)]


@pytest.mark.parametrize(
    ("model_class", "config"),
    [
        (MptForCausalLM, MptConfig(vocab_size=100, d_model=32, n_heads=2, n_layers=2, max_seq_len=64)),
        (
            GPTNeoForCausalLM,
            GPTNeoConfig(
                vocab_size=100, hidden_size=32, num_layers=2, num_heads=2, window_size=4,
                attention_types=[[["global", "local"], 1]], max_position_embeddings=64,
            ),
        ),
        (
            Gemma2ForCausalLM,
            Gemma2Config(
                vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                num_key_value_heads=1, head_dim=16, sliding_window=64,
            ),
        ),
    ],
)  # fmt: skip
def test_models_that_count_places_or_cap_their_scores_answer_as_if_alone(model_class, config, tokenizer):
    config.bos_token_id = config.eos_token_id = None
    model = sharpened(model_class(config).eval())
    attention.install(model)
    expected = [[greedy_by_hand(model, prompt, 8, stop=())] for prompt in SHARED]
    found = generate(model, tokenizer, SHARED, settings=GenerationSettings(max_new_tokens=8), stop_ids=())
    assert ids_of(found) == expected


def test_an_answer_ends_before_the_stop_token_and_says_so(model, tokenizer):
    sharpened(model)
    (whole,) = generate(model, tokenizer, [PROMPTS[1]], settings=GenerationSettings(max_new_tokens=10), stop_ids=())[0]
    assert not whole.stopped and len(whole.tokens) == 10
    stop = whole.tokens[4]
    end = whole.tokens.index(stop)
    (cut,) = generate(model, tokenizer, [PROMPTS[1]], settings=GenerationSettings(max_new_tokens=10), stop_ids=(stop,))[
        0
    ]
    assert cut == Generation(tokenizer.decode(list(whole.tokens[:end])), whole.tokens[:end], stopped=True)


def test_an_answer_that_stops_early_keeps_no_padding_of_its_batch(model, tokenizer):
    sharpened(model)
    settings = GenerationSettings(max_new_tokens=10)
    whole = generate(model, tokenizer, PROMPTS, settings=settings, stop_ids=())
    stop = whole[0][0].tokens[2]
    together = generate(model, tokenizer, PROMPTS, settings=settings, stop_ids=(stop, 399))
    alone = [generate(model, tokenizer, [prompt], settings=settings, stop_ids=(stop, 399))[0] for prompt in PROMPTS]
    assert together == alone
    assert together[0][0].tokens == whole[0][0].tokens[: whole[0][0].tokens.index(stop)]
    assert any(not answers[0].stopped for answers in together)


def test_special_tokens_are_skipped_and_spaces_are_kept_as_they_are(tokenizer):
    from tunesmith.model.generate import _finish

    ids = [*tokenizer.encode("a , b . c 's\n "), 1]
    assert _finish(tokenizer, [*ids, 2, 7, 7], STOP) == Generation("a , b . c 's\n ", tuple(ids), stopped=True)


def test_results_come_in_the_order_of_the_prompts_and_equal_prompts_are_decoded_once(model, tokenizer):
    calls = []
    original = model.generate
    model.generate = lambda **kwargs: (calls.append(tuple(kwargs["input_ids"].shape)), original(**kwargs))[1]
    done = []
    prompts = [PROMPTS[0], PROMPTS[1], PROMPTS[0], PROMPTS[2], PROMPTS[1]]
    found = generate(
        model,
        tokenizer,
        prompts,
        settings=GenerationSettings(max_new_tokens=4),
        stop_ids=STOP,
        batch_size=2,
        on_batch=done.append,
    )
    assert calls == [(2, 9), (1, 1)]  # the longest prompts first
    assert done == [4, 1]
    assert found[0] == found[2] and found[1] == found[4] and found[0] is not found[2]
    alone = [
        generate(model, tokenizer, [p], settings=GenerationSettings(max_new_tokens=4), stop_ids=STOP)[0]
        for p in prompts
    ]
    assert found == alone


def test_no_prompts_give_no_answers(model, tokenizer):
    assert generate(model, tokenizer, [], settings=GenerationSettings(), stop_ids=STOP) == []


def test_the_models_own_generation_config_does_not_leak_in_and_is_restored(model, tokenizer):
    sharpened(model)
    settings = GenerationSettings(max_new_tokens=8)
    expected = generate(model, tokenizer, PROMPTS, settings=settings, stop_ids=STOP)
    first = expected[0][0].tokens[0]
    own = GenerationConfig(
        do_sample=True,
        temperature=5.0,
        top_k=3,
        min_p=0.5,
        repetition_penalty=3.0,
        no_repeat_ngram_size=1,
        suppress_tokens=[first],
        forced_eos_token_id=7,
        max_length=11,
        use_cache=False,
        eos_token_id=[0],
    )
    model.generation_config = own
    assert generate(model, tokenizer, PROMPTS, settings=settings, stop_ids=STOP) == expected
    assert model.generation_config is own
    sampled = GenerationSettings(max_new_tokens=8, do_sample=True)
    with_own = generate(model, tokenizer, PROMPTS, settings=sampled, stop_ids=STOP)
    model.generation_config = GenerationConfig()
    assert generate(model, tokenizer, PROMPTS, settings=sampled, stop_ids=STOP) == with_own


def test_the_generation_config_is_restored_after_an_error(model, tokenizer):
    own = model.generation_config
    model.generate = None
    with pytest.raises(TypeError):
        generate(model, tokenizer, PROMPTS, settings=GenerationSettings(), stop_ids=STOP)
    assert model.generation_config is own and not model.training


def test_the_cache_is_used_though_the_config_says_no_and_checkpointing_is_on(model, tokenizer):
    expected = generate(model, tokenizer, PROMPTS[:1], settings=GenerationSettings(max_new_tokens=5), stop_ids=())
    model.config.use_cache = False
    model.activation_checkpointing_enable()
    model.train()
    lengths = []
    handle = model.model.embed_tokens.register_forward_hook(
        lambda module, args, output: lengths.append(output.shape[1])
    )
    found = generate(model, tokenizer, PROMPTS[:1], settings=GenerationSettings(max_new_tokens=5), stop_ids=())
    handle.remove()
    assert found == expected
    assert lengths == [3, 1, 1, 1, 1]
    assert model.training and model.is_activation_checkpointing


def test_the_mode_of_every_module_and_the_random_state_are_kept(model, tokenizer):
    model.train()
    model.model.norm.eval()
    before = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    settings = GenerationSettings(max_new_tokens=3, do_sample=True)
    generate(model, tokenizer, PROMPTS, settings=settings, stop_ids=STOP)
    list(stream(model, tokenizer, PROMPTS[0], settings=settings, stop_ids=STOP))
    assert [module.training for module in model.modules()] == before
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()


def test_evaluation_mode_turns_dropout_off_and_allows_training_afterwards(model):
    model.train()
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())
        assert not model(torch.tensor([[3, 4]])).logits.requires_grad
    model(torch.tensor([[3, 4]])).logits.sum().backward()
    assert model.model.embed_tokens.weight.grad is not None


def test_a_peft_model_generates_with_its_adapter(model, tokenizer):
    from peft import LoraConfig, get_peft_model

    plain = generate(model, tokenizer, PROMPTS, settings=GenerationSettings(max_new_tokens=6), stop_ids=STOP)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        tuned = get_peft_model(
            model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        )
    own = model.generation_config
    found = generate(tuned, tokenizer, PROMPTS, settings=GenerationSettings(max_new_tokens=6), stop_ids=STOP)
    tuned.eval()
    assert ids_of(found) == [[greedy_by_hand(tuned, prompt, 6)] for prompt in PROMPTS]
    assert found != plain
    assert model.generation_config is own
    with tuned.disable_adapter():
        assert (
            generate(tuned, tokenizer, PROMPTS, settings=GenerationSettings(max_new_tokens=6), stop_ids=STOP) == plain
        )
    pieces = stream(tuned, tokenizer, PROMPTS[1], settings=GenerationSettings(max_new_tokens=6), stop_ids=STOP)
    assert "".join(pieces) == found[1][0].text


def test_a_peft_model_with_a_prompt_of_its_own_generates(model, tokenizer):
    from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model

    for config in (PromptTuningConfig, PrefixTuningConfig):
        tuned = get_peft_model(model, config(task_type="CAUSAL_LM", num_virtual_tokens=3))
        settings = GenerationSettings(max_new_tokens=4)
        together = generate(tuned, tokenizer, SHARED, settings=settings, stop_ids=())
        alone = [generate(tuned, tokenizer, [prompt], settings=settings, stop_ids=())[0] for prompt in SHARED]
        assert ids_of(together) == ids_of(alone)
        model = tuned.get_base_model()


def test_the_tree_attention_of_training_generates_the_same_text(model, tokenizer):
    from tunesmith.model.compute.attention import install

    sharpened(model)
    settings = GenerationSettings(max_new_tokens=10)
    expected = generate(model, tokenizer, PROMPTS, settings=settings, stop_ids=STOP)
    install(model)
    assert generate(model, tokenizer, PROMPTS, settings=settings, stop_ids=STOP) == expected


SAMPLED = GenerationSettings(max_new_tokens=6, do_sample=True, num_return_sequences=3, seed=5)


def test_sampling_depends_on_the_seed_alone(model, tokenizer):
    first = generate(model, tokenizer, PROMPTS, settings=SAMPLED, stop_ids=STOP)
    torch.manual_seed(99)
    np.random.seed(99)
    for batch_size in (1, 4):
        again = generate(model, tokenizer, PROMPTS, settings=SAMPLED, stop_ids=STOP, batch_size=batch_size)
        assert again == first
    other = GenerationSettings(max_new_tokens=6, do_sample=True, num_return_sequences=3, seed=6)
    assert generate(model, tokenizer, PROMPTS, settings=other, stop_ids=STOP) != first
    assert [len(answers) for answers in first] == [3] * len(PROMPTS)
    assert len({answer.tokens for answers in first for answer in answers}) == 3 * len(PROMPTS)


def test_equal_prompts_get_answers_of_their_own_when_sampled(model, tokenizer):
    one, other = generate(model, tokenizer, [PROMPTS[0]] * 2, settings=SAMPLED, stop_ids=STOP)
    assert one != other


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 0.6)])
def test_samples_follow_the_distribution_of_temperature_and_top_p(model, tokenizer, temperature, top_p):
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(12)
    draws = 3000
    settings = GenerationSettings(
        max_new_tokens=1, do_sample=True, temperature=temperature, top_p=top_p, num_return_sequences=draws
    )
    (answers,) = generate(model, tokenizer, [PROMPTS[0]], settings=settings, stop_ids=(), batch_size=draws)
    counts = np.bincount([answer.tokens[0] for answer in answers], minlength=400)
    with torch.no_grad():
        logits = model(torch.tensor([PROMPTS[0]])).logits[0, -1] / temperature
    expected = logits.softmax(-1).double().numpy()
    order = np.argsort(-expected)
    keep = order[np.cumsum(expected[order]) - expected[order] < top_p]
    kept = np.zeros(400)
    kept[keep] = expected[keep] / expected[keep].sum()
    assert not counts[kept == 0].any()
    error = np.sqrt(draws * kept * (1 - kept))
    assert (np.abs(counts - draws * kept) <= 4.5 * error + 1).all()


def test_one_draw_takes_the_first_token_whose_cumulative_probability_exceeds_the_uniform():
    from tunesmith.model.generate import _Draw

    scores = torch.tensor([[0.5, 0.25, 0.0, 0.25]]).log()
    prompt = torch.zeros(1, 4)
    for uniform, token in (
        (0.0, 0),
        (0.49, 0),
        (0.5, 1),
        (0.74, 1),
        (0.75, 3),
        (np.nextafter(1, 0, dtype=np.float32), 3),
    ):
        drawn = _Draw(np.array([[uniform]], dtype=np.float32), width=4)(prompt, scores)
        assert int(drawn.argmax()) == token and int(torch.isfinite(drawn).sum()) == 1


def test_max_length_counts_the_prompt_of_each_row(model, tokenizer):
    found = generate(model, tokenizer, PROMPTS, settings=GenerationSettings(max_length=12), stop_ids=())
    assert [len(answers[0].tokens) for answers in found] == [12 - len(prompt) for prompt in PROMPTS]
    longer = generate(model, tokenizer, PROMPTS, settings=GenerationSettings(max_new_tokens=12), stop_ids=())
    assert all(
        long[0].tokens[: len(short[0].tokens)] == short[0].tokens for short, long in zip(found, longer, strict=True)
    )


def test_max_length_up_to_the_last_position_of_learned_embeddings_never_goes_beyond_them(tokenizer):
    config = GPT2Config(
        vocab_size=100, n_positions=16, n_embd=32, n_layer=1, n_head=2, bos_token_id=None, eos_token_id=None
    )
    model = GPT2LMHeadModel(config).eval()
    prompts = [[3] * 14, [4], [5] * 8]
    found = generate(model, tokenizer, prompts, settings=GenerationSettings(max_length=16), stop_ids=())
    assert ids_of(found) == [[greedy_by_hand(model, prompt, 16 - len(prompt), stop=())] for prompt in prompts]


def test_256_new_tokens_are_the_default():
    assert GenerationSettings().new_tokens(10) == 256
    assert GenerationSettings(max_new_tokens=7).new_tokens(10) == 7
    assert GenerationSettings(max_length=100).new_tokens(10) == 90


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"temperature": 0.7}, ["temperature 0.7 has no effect while do_sample is false", "do_sample: true"]),
        ({"top_p": 0.9}, ["top_p 0.9 has no effect"]),
        ({"temperature": 0.0, "do_sample": True}, ["temperature 0", "do_sample: false"]),
        ({"temperature": 0.0}, ["temperature 0", "do_sample: false"]),
        ({"temperature": -1.0, "do_sample": True}, ["temperature must be above 0"]),
        ({"temperature": float("nan"), "do_sample": True}, ["temperature must be above 0"]),
        ({"top_p": 0.0, "do_sample": True}, ["top_p must be above 0 and at most 1, found 0"]),
        ({"num_return_sequences": 2}, ["num_return_sequences 2", "do_sample: true"]),
        ({"max_new_tokens": 0}, ["max_new_tokens must be at least 1, found 0"]),
        ({"max_new_tokens": 5, "max_length": 9}, ["max_new_tokens 5 and max_length 9", "Give one of them"]),
        ({"seed": -1}, ["seed must be at least 0"]),
    ],
)
def test_contradictions_are_refused(values, words):
    with pytest.raises(RecipeError) as caught:
        GenerationSettings(**values)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("prompts", "settings", "error", "words"),
    [
        ([[3], [3] * 9], {"max_length": 9}, RecipeError, ["prompt 2", "max_length 9", "9 tokens"]),
        ([[3], []], {}, ModelError, ["prompt 2", "no tokens"]),
        ([[3], [4] * 500], {"max_new_tokens": 13}, ModelError, ["prompt 2", "513", "512 positions", "to 12 or less"]),
        ([[4] * 512], {"max_new_tokens": 1}, ModelError, ["Shorten the prompt"]),
    ],
)
def test_prompts_that_cannot_be_answered_are_refused_before_any_work(model, tokenizer, prompts, settings, error, words):
    model.generate = None
    with pytest.raises(error) as caught:
        generate(model, tokenizer, prompts, settings=GenerationSettings(**settings), stop_ids=STOP)
    assert all(word in str(caught.value) for word in words)
    with pytest.raises(error) as beforehand:
        check_prompts(model, prompts, settings=GenerationSettings(**settings))
    assert str(beforehand.value) == str(caught.value)
    with pytest.raises(error):
        stream(model, tokenizer, prompts[-1], settings=GenerationSettings(**settings), stop_ids=STOP)


def test_a_prompt_that_just_fits_is_answered(model, tokenizer):
    ((answer,),) = generate(model, tokenizer, [[4] * 500], settings=GenerationSettings(max_new_tokens=12), stop_ids=())
    assert len(answer.tokens) == 12


@pytest.mark.parametrize("settings", [GenerationSettings(), GenerationSettings(do_sample=True)])
def test_logits_that_are_not_finite_are_refused(model, tokenizer, settings):
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        generate(model, tokenizer, PROMPTS, settings=settings, stop_ids=STOP)


def test_running_out_of_memory_names_the_remedy(model, tokenizer):
    def fail(**kwargs):
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")

    model.generate = fail
    with pytest.raises(ModelError, match=r"(?s)2 answers.*20 GiB.*Lower batch_size"):
        generate(model, tokenizer, PROMPTS, settings=GenerationSettings(), stop_ids=STOP, batch_size=2)


@pytest.mark.parametrize(
    "settings", [GenerationSettings(max_new_tokens=40), GenerationSettings(max_new_tokens=40, do_sample=True, seed=3)]
)
def test_streamed_pieces_join_to_the_text_of_generate(model, tokenizer, settings):
    sharpened(model)
    for prompt in PROMPTS:
        ((answer,),) = generate(model, tokenizer, [prompt], settings=settings, stop_ids=STOP)
        pieces = list(stream(model, tokenizer, prompt, settings=settings, stop_ids=STOP))
        assert "".join(pieces) == answer.text
        assert all(pieces)


def test_streaming_holds_back_the_bytes_of_an_unfinished_character(tokenizer):
    from tunesmith.model.generate import _text_pieces

    ids = tokenizer.encode("é€🙂x")
    assert len(ids) == 2 + 3 + 4 + 1
    assert list(_text_pieces(tokenizer, iter(ids))) == ["é", "€", "🙂", "x"]
    assert list(_text_pieces(tokenizer, iter(ids[:4]))) == ["é", "\N{REPLACEMENT CHARACTER}"]
    stray = [*ids[:1], *ids[-1:], *ids[-2:-1], *ids[-1:]]
    assert "".join(_text_pieces(tokenizer, iter(stray))) == tokenizer.decode(stray)


def test_an_error_of_the_decoding_thread_reaches_the_reader(model, tokenizer):
    def fail(**kwargs):
        raise RuntimeError("the device is on fire")

    model.generate = fail
    pieces = stream(model, tokenizer, PROMPTS[0], settings=GenerationSettings(), stop_ids=STOP)
    with pytest.raises(RuntimeError, match="on fire"):
        next(pieces)


def test_closing_a_stream_ends_its_thread_soon_and_restores_the_mode(model, tokenizer):
    steps = []
    model.model.embed_tokens.register_forward_hook(lambda *_: steps.append(1))
    model.train()
    pieces = stream(model, tokenizer, [40, 41], settings=GenerationSettings(max_new_tokens=500), stop_ids=())
    next(pieces)
    cast("Any", pieces).close()
    assert not [thread for thread in threading.enumerate() if thread.name == "tunesmith-stream"]
    assert model.training
    assert len(steps) < 400


def test_several_answers_cannot_be_streamed(model, tokenizer):
    with pytest.raises(RecipeError, match="cannot be streamed"):
        stream(model, tokenizer, PROMPTS[0], settings=SAMPLED, stop_ids=STOP)
