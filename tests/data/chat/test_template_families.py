"""Every major family's template, as TRL ships it: what is learned, and that training and generation agree."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.chat.template import ChatTemplate
from tunesmith.data.examples.example import Example
from tunesmith.data.examples.message import Message
from tunesmith.errors import DataError
from tunesmith.recipe.data import DataSettings

TRL = importlib.util.find_spec("trl")
FOLDER = Path(TRL.origin).parent / "chat_templates" if TRL is not None and TRL.origin else None
CONTROL = re.compile(
    r"<[|｜][^<>\s'\"+]*[|｜]>|</?s>|</?(?:start|end)_of_(?:turn|utterance)>|\[gMASK\]|<sop>|<turn\|>|<channel\|>"
)
OWN = {
    "smollm2": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "mistral": (
        "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
        "{% elif m['role'] == 'assistant' %}{{ m['content'] + eos_token }}"
        "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
    ),
}


@dataclass(frozen=True)
class Family:
    """stop: the end of a turn; before, after: what is learned around an answer without reasoning.

    own_rows: the template rewrites earlier turns. same_ids: a row of one turn is what apply_chat_template gives.
    """

    name: str
    stop: str
    before: str = ""
    after: str = ""
    eos: str = ""
    stops: tuple[str, ...] = ()
    system: bool = True
    own_rows: bool = False
    same_ids: bool = True
    kwargs: dict[str, Any] = field(default_factory=dict)
    findings: frozenset[str] = frozenset()


EMPTY = "<think>\n\n</think>\n\n"
NO_REASONING = frozenset({"no_reasoning"})
IN_PROMPT = frozenset({"marks_in_prompt"})
R1_STOP = "<｜end▁of▁sentence｜>"
FAMILIES = [
    Family("smollm2", "<|im_end|>"),
    Family("mistral", "</s>", eos="</s>", system=False),
    Family("llama3", "<|eot_id|>"),
    Family("llama3_training", "<|eot_id|>"),
    Family("llama3_1", "<|eot_id|>", stops=("<|eom_id|>",)),
    Family("llama3_2", "<|eot_id|>", stops=("<|eom_id|>",)),
    Family("qwen2_5", "<|im_end|>", stops=("<|endoftext|>",)),
    Family("qwen2_5_training", "<|im_end|>", findings=IN_PROMPT),
    Family("qwen3", "<|im_end|>", before=EMPTY, own_rows=True, findings=NO_REASONING),
    Family("qwen3", "<|im_end|>", own_rows=True, kwargs={"enable_thinking": False}),
    Family("qwen3_training", "<|im_end|>", before=EMPTY, findings=NO_REASONING),
    Family("qwen3_instruct_2507", "<|im_end|>"),
    Family("qwen3_instruct_2507_training", "<|im_end|>"),
    Family("qwen3_vl", "<|im_end|>"),
    # Their prompt ends with one newline and the answer begins with one: a prompt encoded alone has no token for both.
    Family("qwen3_5_think", "<|im_end|>", "\n</think>\n\n", own_rows=True, same_ids=False, findings=NO_REASONING),
    Family("qwen3_6", "<|im_end|>", "\n</think>\n\n", own_rows=True, same_ids=False, findings=NO_REASONING),
    Family("qwen3_8", "<|im_end|>", "\n</think>\n\n", own_rows=True, same_ids=False, findings=NO_REASONING),
    Family("qwen3_5_nothink", "<|im_end|>", own_rows=True),
    Family("qwen3_5_nothink_training", "<|im_end|>", findings=IN_PROMPT),
    Family("gemma", "<end_of_turn>", system=False),
    Family("gemma_training", "<end_of_turn>", system=False),
    Family("gemma3", "<end_of_turn>"),
    Family("gemma3_training", "<end_of_turn>"),
    Family("gemma4", "<turn|>"),
    Family("phi3", "<|end|>", eos="<|endoftext|>", stops=("<|assistant|>",)),
    Family("phi3_training", "<|end|>", eos="<|endoftext|>", stops=("<|assistant|>",)),
    Family("phi3_5", "<|end|>", eos="<|endoftext|>", stops=("<|assistant|>",)),
    Family("phi3_5_training", "<|end|>", eos="<|endoftext|>", stops=("<|assistant|>",)),
    Family(
        "deepseek_r1_distill",
        R1_STOP,
        "\n</think>\n\n",
        eos=R1_STOP,
        own_rows=True,
        same_ids=False,
        findings=NO_REASONING,
    ),
    Family("deepseekv3", R1_STOP, "\n</think>\n\n", eos=R1_STOP, own_rows=True, same_ids=False, findings=NO_REASONING),
    Family(
        "deepseek_r1_distill_training",
        R1_STOP,
        "\n</think>\n\n",
        eos=R1_STOP,
        own_rows=True,
        same_ids=False,
        findings=NO_REASONING | {"marks_unused"},
    ),
    Family("gptoss", "<|return|>", "<|channel|>final<|message|>", stops=("<|call|>",), own_rows=True),
    Family(
        "gptoss_training",
        "<|return|>",
        "<|channel|>final<|message|>",
        stops=("<|call|>",),
        own_rows=True,
        findings=IN_PROMPT,
    ),
    Family(
        "glm4moe",
        "<|user|>",
        "\n<think></think>\n",
        eos="<|endoftext|>",
        stops=("<|observation|>",),
        own_rows=True,
        same_ids=False,
        findings=NO_REASONING | {"implied_end_of_turn"},
    ),
    Family("glm4moe_training", "<|user|>", "\n<think></think>\n", stops=("<|observation|>",), findings=NO_REASONING),
    Family("cohere", "<|END_OF_TURN_TOKEN|>"),
    Family("cohere_training", "<|END_OF_TURN_TOKEN|>"),
    Family("cohere2", "<|END_OF_TURN_TOKEN|>", after="<|END_RESPONSE|>"),
    Family("cohere2_training", "<|END_OF_TURN_TOKEN|>", after="<|END_RESPONSE|>"),
    Family("lfm2", "<|im_end|>"),
    Family("lfm2_training", "<|im_end|>"),
    Family("lfm2_2_5", "<|im_end|>"),
    Family("nemotron_3_nano", "<|im_end|>", "</think>", own_rows=True, same_ids=False, findings=NO_REASONING),
    Family("muse_glimmer", "<|eot|>", " to=user<|message|>"),
    Family("smolvlm", "<end_of_utterance>", " ", same_ids=False),
    Family("llava_next", "</s>", " ", same_ids=False),
]


def source_of(name: str) -> str:
    if name in OWN:
        return OWN[name]
    if FOLDER is None:
        pytest.skip("TRL is not installed")
    return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


@pytest.fixture
def built(make_tokenizer):
    """built(family, **settings): its tokenizer and template."""

    def build(family: Family, **values):
        source = source_of(family.name)
        special = sorted({*CONTROL.findall(source), family.stop, *family.stops})
        eos = family.eos or family.stop
        tokenizer = make_tokenizer(
            source, special, eos=eos, added=["<think>", "</think>", "<tool_call>", "</tool_call>"]
        )
        stops = [tokenizer.convert_tokens_to_ids(token) for token in dict.fromkeys((family.stop, eos, *family.stops))]
        recipe = DataSettings(train=["x"], chat_template_kwargs=family.kwargs, **values)  # type: ignore[arg-type]
        return tokenizer, ChatTemplate(tokenizer, stop_ids=stops, settings=recipe, date="2024-05-06")

    return build


def decode(tokenizer, ids) -> str:
    return tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def learned(tokenizer, row) -> str:
    return decode(tokenizer, row.ids[row.supervised].tolist())


SINGLE = (Message("user", "Quokka?"), Message("assistant", "It is two."))
MULTI = (*SINGLE, Message("user", "Zebra!"), Message("assistant", "Four."))
every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def check_against_generation(template: ChatTemplate, tokenizer, example: Example, rows) -> None:
    """Every learned turn of every row lies right behind the prompt that generation would send for it."""
    answers = [i for i, message in enumerate(example.messages) if message.role == "assistant"]
    prompts = [template.prompt_ids(example.messages[:i], example.tools) for i in answers]
    expected = [prompts] if len(rows) == 1 else [[prompt] for prompt in prompts]
    for row, before in zip(rows, expected, strict=True):
        for prompt in before:
            assert row.ids[: len(prompt)].tolist() == prompt
            assert row.supervised[len(prompt)] and not row.supervised[len(prompt) - 1]
        starts = np.flatnonzero(np.diff(row.supervised.astype(int)) == 1) + 1
        assert starts.tolist() == [len(prompt) for prompt in before]
    context = decode(tokenizer, rows[-1].ids[~rows[-1].supervised].tolist())
    assert all(message.content.strip() in context for message in example.messages if message.role == "user")


@every_family
@pytest.mark.parametrize("turns", [SINGLE, MULTI], ids=["single", "multi"])
@pytest.mark.parametrize("with_system", [False, True], ids=["", "system"])
def test_each_family_learns_the_answers_and_their_end_of_turn(family, turns, with_system, built):
    tokenizer, template = built(family)
    messages = (Message("system", "Be brief."), *turns) if with_system else turns
    example = Example(messages, "rows.jsonl:2")
    if with_system and not family.system:
        with pytest.raises(DataError, match=r"rows.jsonl:2: the chat template refuses this conversation"):
            template.encode(example)
        return
    rows = template.encode(example)
    wanted = [family.before + m.content + family.after + family.stop for m in messages if m.role == "assistant"]
    split = family.own_rows and len(wanted) > 1
    assert [learned(tokenizer, row) for row in rows] == (wanted if split else ["".join(wanted)])
    check_against_generation(template, tokenizer, example, rows)
    assert {finding.id for finding in template.findings} == family.findings | (
        {"turns_in_own_rows"} if split else set()
    )


@every_family
def test_each_family_gives_the_ids_of_apply_chat_template(family, built, monkeypatch):
    from datetime import datetime

    from transformers.utils import chat_template_utils

    class Frozen(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2024, 5, 6)

    monkeypatch.setattr(chat_template_utils, "datetime", Frozen)
    tokenizer, template = built(family)
    talk = [{"role": message.role, "content": message.content} for message in SINGLE]
    if family.name in ("smolvlm", "llava_next"):
        talk = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in talk]
    prompt = tokenizer.apply_chat_template(talk[:1], add_generation_prompt=True, **family.kwargs)["input_ids"]
    assert template.prompt_ids(SINGLE[:1]) == prompt
    if family.same_ids:
        [row] = template.encode(Example(SINGLE, "f:1"))
        assert row.ids.tolist() == tokenizer.apply_chat_template(talk, **family.kwargs)["input_ids"]


def family(name: str) -> Family:
    return next(one for one in FAMILIES if one.name == name)


# ---- thinking


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("qwen3", "<think>\nHm, one.\n</think>\n\nTwo.<|im_end|>"),
        ("qwen3_5_think", "Hm, one.\n</think>\n\nTwo.<|im_end|>"),
        ("deepseek_r1_distill", f"Hm, one.\n</think>\n\nTwo.{R1_STOP}"),
        ("deepseek_r1_distill_training", f"Hm, one.\n</think>\n\nTwo.{R1_STOP}"),
        (
            "gptoss",
            "<|channel|>analysis<|message|>Hm, one.<|end|><|start|>assistant<|channel|>final<|message|>Two.<|return|>",
        ),
        ("glm4moe", "\n<think>Hm, one.</think>\nTwo.<|user|>"),
        ("nemotron_3_nano", "Hm, one.\n</think>\nTwo.<|im_end|>"),
    ],
)
def test_reasoning_is_learned_in_every_turn_although_history_drops_it(name, wanted, built):
    tokenizer, template = built(family(name))
    answer = Message("assistant", "Two.", reasoning_content="Hm, one.")
    example = Example((Message("user", "a"), answer, Message("user", "b"), answer), "f:1")
    rows = template.encode(example)
    assert [learned(tokenizer, row) for row in rows] == [wanted, wanted]
    for row, count in zip(rows, (1, 3), strict=True):
        prompt = template.prompt_ids(example.messages[:count])
        assert row.ids[: len(prompt)].tolist() == prompt
    assert decode(tokenizer, rows[1].ids[~rows[1].supervised].tolist()).count("Hm, one.") == 0


@pytest.mark.parametrize(
    "content", ["<think>\nHm.\n</think>\n\nTwo.", "<think>Hm.\n</think>\n\nTwo.", "Hm.\n</think>\n\nTwo."]
)
def test_reasoning_inside_the_content_follows_the_thinking_that_the_prompt_opens(content, built):
    tokenizer, template = built(family("deepseek_r1_distill"))
    [row] = template.encode(Example((Message("user", "a"), Message("assistant", content)), "f:1"))
    assert (
        decode(tokenizer, row.ids.tolist()) == f"<B><｜User｜>a<｜Assistant｜><think>\nHm.\n</think>\n\nTwo.{R1_STOP}"
    )
    assert learned(tokenizer, row) == f"Hm.\n</think>\n\nTwo.{R1_STOP}"


def test_reasoning_behind_a_prompt_that_closes_thinking_is_refused(built):
    quick = Family("qwen3", "<|im_end|>", kwargs={"enable_thinking": False})
    _, template = built(quick)
    with pytest.raises(DataError) as caught:
        template.encode(Example((Message("user", "a"), Message("assistant", "b", reasoning_content="Hm.")), "f:7"))
    assert caught.value.where == "f:7"
    assert "enable_thinking: true" in (caught.value.remedy or "")


def test_an_answer_that_the_prompt_cannot_lead_to_is_refused(built):
    _, template = built(
        Family("mistral", "</s>", eos="</s>"),
        chat_template="{% for m in messages %}{{ '<' + m.role + '>' + m.content + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<assistant>Sure: ' }}{% endif %}",
    )
    [row] = template.encode(Example((Message("user", "a"), Message("assistant", "Sure: b")), "f:1"))
    assert learned(template.tokenizer, row) == "b</s>"
    with pytest.raises(DataError, match="differently from how its generation prompt begins it"):
        template.encode(Example((Message("user", "a"), Message("assistant", "b")), "f:1"))


# ---- tools

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "d",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
WITH_TOOL = (
    Message("user", "Weather?"),
    Message("assistant", "", tool_calls=(CALL,)),
    Message("tool", "sunny", name="weather"),
    Message("assistant", "Sun."),
)
QWEN_CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call><|im_end|>'


@pytest.mark.parametrize(
    ("name", "call", "answer"),
    [
        ("qwen2_5", f"\n{QWEN_CALL}", "Sun.<|im_end|>"),
        ("qwen3", f"{EMPTY}{QWEN_CALL}", f"{EMPTY}Sun.<|im_end|>"),
        ("llama3_1", '{"name": "weather", "parameters": {"city": "Bern"}}<|eot_id|>', "Sun.<|eot_id|>"),
        (
            "glm4moe",
            "\n<think></think>\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Bern</arg_value>\n</tool_call><|observation|>",
            "\n<think></think>\nSun.<|user|>",
        ),
        (
            "gptoss",
            ' to=functions.weather<|channel|>commentary json<|message|>{"city": "Bern"}<|call|>',
            "<|channel|>final<|message|>Sun.<|return|>",
        ),
    ],
)
def test_tool_calls_are_learned_and_tool_results_are_not(name, call, answer, built):
    tokenizer, template = built(family(name))
    rows = template.encode(Example(WITH_TOOL, "f:1", tools=(TOOL,)))
    text = "".join(learned(tokenizer, row) for row in rows)
    if name == "qwen2_5":  # its prompt ends with the newline that its tool calls begin with
        call = call.lstrip("\n")
    assert text == call + answer
    context = "".join(decode(tokenizer, row.ids[~row.supervised].tolist()) for row in rows)
    assert "sunny" in context and "city" in context
    assert "tools_lost" not in {finding.id for finding in template.findings}


def test_deepseek_gets_arguments_as_json_text(built):
    tokenizer, template = built(family("deepseekv3"))
    text = decode(tokenizer, template.prompt_ids(WITH_TOOL[:3]))
    assert 'weather\n```json\n{"city": "Bern"}\n```' in text


def test_a_template_that_drops_tool_calls_is_refused(built):
    _, template = built(family("lfm2"))
    with pytest.raises(DataError, match="does not write tool calls"):
        template.encode(Example(WITH_TOOL, "f:1"))


# ---- any text

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\U000f0000\U000f0001"), max_size=20)
NAUGHTY = st.lists(
    TEXT | st.sampled_from(["<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<｜User｜>", "<|end|>", "{{", "\n\n", " "]),
    max_size=4,
)


@pytest.mark.parametrize(
    "name", ["llama3_1", "qwen3", "gemma3_training", "deepseek_r1_distill", "gptoss", "glm4moe", "phi3_training"]
)
def test_any_text_keeps_training_and_generation_alike(name, built):
    one = family(name)
    tokenizer, template = built(one, control_tokens="text")
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    plain = sum(number in special for number in template.encode(Example(SINGLE, "f:1"))[0].ids.tolist())

    @settings(max_examples=25, deadline=None)
    @given(NAUGHTY.map("".join), NAUGHTY.map("".join).filter(lambda text: "think>" not in text))
    def check(user, answer):
        turns = (Message("user", user), Message("assistant", answer))
        for row in template.encode(Example(turns, "f:1")):
            prompt = template.prompt_ids(turns[:1])
            assert row.ids[: len(prompt)].tolist() == prompt
            assert not row.supervised[: len(prompt)].any()
            text = learned(tokenizer, row)
            assert text.startswith(one.before.rstrip("\n")) and text.endswith(one.after + one.stop)
            assert text.count(answer.strip()) >= 1
            assert user.strip() in decode(tokenizer, row.ids.tolist())
            assert sum(number in special for number in row.ids.tolist()) == plain

    check()
