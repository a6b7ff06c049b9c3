from __future__ import annotations

import importlib.util
import re
from datetime import datetime
from itertools import product
from pathlib import Path

import pytest
from transformers.utils import chat_template_utils

from tunesmith.data.chat.rendering import Dialect, Renderer, RenderError
from tunesmith.errors import ModelError

TRL = importlib.util.find_spec("trl")
FOLDER = Path(TRL.origin).parent / "chat_templates" if TRL is not None and TRL.origin else None
OLDER = re.compile(r"_v\d$|^diffusion_gemma")  # revisions of a template that is here anyway
TEMPLATES = [path for path in sorted(FOLDER.glob("*.jinja")) if not OLDER.search(path.stem)] if FOLDER else []
SPECIAL = {"bos_token": "<B>", "eos_token": "<E>"}
TALK = [
    {"role": "user", "content": "  What is <1+1>? "},
    {"role": "assistant", "content": "It is two.", "reasoning_content": "One and one."},
    {"role": "user", "content": "And 2+2?"},
    {"role": "assistant", "content": "Four."},
]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich", "days": 2}}}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "d",
            "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "c"}}},
        },
    }
]
WITH_CALL = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "name": "weather", "content": "sunny"},
    {"role": "assistant", "content": "Sun."},
]


class Frozen(datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2024, 5, 6)


def renderer(source: str, **variables) -> Renderer:
    return Renderer(source, variables={**SPECIAL, **variables}, date="2024-05-06")


def theirs(source: str, messages: list[dict], tools: list | None, *, prompt: bool, spans: bool = False, **variables):
    texts, indices = chat_template_utils.render_jinja_template(
        [messages],
        tools=tools,
        chat_template=source,
        add_generation_prompt=prompt,
        return_assistant_tokens_mask=spans,
        **{**SPECIAL, **variables},
    )
    return texts[0], (indices[0] if spans else [])


CASES = {
    "talk": (TALK, None),
    "system": ([{"role": "system", "content": "Be brief."}, *TALK], None),
    "call": (WITH_CALL, TOOLS),
}
AS_IT_IS = Dialect(parts=False, text_arguments=False, developer=True)


def with_variables() -> list:
    """Every template as it is, and those that know enable_thinking with it off."""
    plain = [pytest.param(path, {}, id=path.stem) for path in TEMPLATES]
    thinking = [path for path in TEMPLATES if "enable_thinking" in path.read_text(encoding="utf-8")]
    return plain + [pytest.param(path, {"enable_thinking": False}, id=f"{path.stem} quick") for path in thinking]


@pytest.mark.parametrize(("path", "variables"), with_variables())
def test_text_is_what_transformers_renders(path, variables, monkeypatch):
    monkeypatch.setattr(chat_template_utils, "datetime", Frozen)
    source = path.read_text(encoding="utf-8")
    ours = renderer(source, **variables)
    rendered = 0
    for case, prompt in product(CASES, [True, False]):
        messages, tools = CASES[case]
        seen = [AS_IT_IS.view(message) for message in messages]
        try:
            wanted, _ = theirs(source, messages, tools, prompt=prompt, **variables)
        except Exception:  # noqa: BLE001 (whatever theirs raises, ours must raise too)
            with pytest.raises(RenderError):
                ours.render(seen, tools or (), add_generation_prompt=prompt)
            continue
        assert ours.render(seen, tools or (), add_generation_prompt=prompt) == wanted
        rendered += 1
    assert rendered or "llava" in path.stem


@pytest.mark.parametrize("path", [p for p in TEMPLATES if "_training" in p.stem], ids=lambda path: path.stem)
def test_marked_spans_are_those_of_transformers(path, monkeypatch):
    monkeypatch.setattr(chat_template_utils, "datetime", Frozen)
    source = path.read_text(encoding="utf-8")
    ours = renderer(source)
    view = Dialect.of(ours).view
    messages = [view(message) for message in TALK]
    text, spans = theirs(source, messages, None, prompt=False, spans=True)
    assert ours.render_marked(messages) == (text, [tuple(span) for span in spans])
    assert spans


def test_spans_are_right_inside_a_macro():
    source = (
        "{% macro say(m) %}{{ m.role }}: {% generation %}{{ m.content }}!{% endgeneration %};{% endmacro %}"
        "{% for m in messages %}{{ say(m) }}{% endfor %}"
    )
    text, spans = renderer(source).render_marked([{"role": "a", "content": "xy"}, {"role": "b", "content": "z"}])
    assert text == "a: xy!;b: z!;"
    assert [text[first:last] for first, last in spans] == ["xy!", "z!"]


def test_the_date_is_that_of_the_run():
    assert renderer("{{ strftime_now('%d %b %Y') }}").render([], add_generation_prompt=True) == "06 May 2024"


def test_special_tokens_and_keyword_arguments_are_seen_and_keyword_arguments_win():
    source = "{{ bos_token }}|{{ eos_token }}|{{ date_string is defined }}"
    assert renderer(source).render([], add_generation_prompt=True) == "<B>|<E>|False"
    assert renderer(source, eos_token="x").render([], add_generation_prompt=True) == "<B>|x|False"


def test_tojson_keeps_html_and_other_scripts():
    source = "{{ messages[0].content | tojson }}"
    assert renderer(source).render([{"content": "<b>ü</b>"}], add_generation_prompt=False) == '"<b>ü</b>"'


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{% set n = namespace(_x=1) %}",
        "{% set n = namespace() %}{% set n._x = 1 %}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ strftime_now.__closure__[0] }}",
        "{{ dict.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os }}",
    ],
)
def test_the_sandbox_holds(source):
    with pytest.raises(RenderError, match=r"unsafe|underscore|cannot store"):
        renderer(source).render([{"role": "user"}], add_generation_prompt=False)


def test_a_fault_of_the_template_keeps_its_own_words():
    with pytest.raises(RenderError, match="no system here"):
        renderer("{{ raise_exception('no system here') }}").render([], add_generation_prompt=False)


def test_a_template_that_is_not_jinja_is_refused_with_its_line():
    with pytest.raises(ModelError, match="line 2"):
        renderer("a\n{% for %}")


def test_dialect_hands_over_parts_text_arguments_and_known_roles_only_where_wanted():
    plain = Dialect.of(renderer("{% for m in messages %}{{ m.role + m.content }}{% endfor %}"))
    assert plain == Dialect(parts=False, text_arguments=False, developer=False)
    assert plain.view({"role": "developer", "content": "x"}) == {"role": "system", "content": "x"}
    parts = Dialect.of(renderer("{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"))
    assert parts.view({"role": "user", "content": "x"})["content"] == [{"type": "text", "text": "x"}]
    source = (
        "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}"
        "{{ '>' + c.function.arguments }}{% endfor %}{% endfor %}developer"
    )
    text = Dialect.of(renderer(source))
    assert text == Dialect(parts=False, text_arguments=True, developer=True)
    seen = text.view({"role": "assistant", "content": "", "tool_calls": [CALL]})
    assert seen["tool_calls"][0]["function"]["arguments"] == '{"city": "Zürich", "days": 2}'
    assert CALL["function"]["arguments"] == {"city": "Zürich", "days": 2}
