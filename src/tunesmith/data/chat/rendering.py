"""Renders chat templates to text as transformers does: in the same sandbox with limits, and with the date of the run.

The environment follows ``transformers.utils.chat_template_utils`` (5.23), where it is private. A test compares the
texts of both for every template that TRL ships.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from time import thread_time
from typing import Any

import jinja2.exceptions
import jinja2.ext
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.utils import Namespace

from tunesmith.data.chat.budget import MOST_SOURCE, SECONDS, SECONDS_A_TURN, TemplateLimitError
from tunesmith.data.chat.limits import LimitedEnvironment
from tunesmith.errors import DataError, ModelError


@dataclass(slots=True)
class TemplatedConversation:
    """Turns and the template that renders them. Its methods raise DataError if the template refuses the turns.

    They raise ModelError if the template uses up its time for all renderings of a conversation, or other limits.
    """

    renderer: Renderer
    dialect: Dialect
    turns: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]]
    source: str
    _used: float = 0.0  # seconds of computing

    def prompt(self, count: int) -> str:
        """The first ``count`` turns with the generation prompt."""
        return self._rendered(self.turns[:count], add_generation_prompt=True)[0]

    def full(self, count: int) -> tuple[str, list[tuple[int, int]]]:
        """The first ``count`` turns, and the character spans inside {% generation %} marks."""
        return self._rendered(self.turns[:count], add_generation_prompt=False)

    def with_turn(self, number: int, turn: Mapping[str, Any]) -> str:
        """The turns up to ``number``, with this turn in the place of that one."""
        return self._rendered([*self.turns[:number], turn], add_generation_prompt=False)[0]

    def _rendered(
        self, turns: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool
    ) -> tuple[str, list[tuple[int, int]]]:
        seen = [self.dialect.view(turn) for turn in turns]
        began, left = thread_time(), max(SECONDS, SECONDS_A_TURN * len(self.turns)) - self._used
        try:
            if add_generation_prompt:
                return self.renderer.render(seen, self.tools, add_generation_prompt=True, seconds=left), []
            return self.renderer.render_marked(seen, self.tools, seconds=left)
        except TemplateLimitError as error:
            raise TemplateLimitError(error.what, where=self.source, why=error.why, remedy=error.remedy) from error
        except RenderError as error:
            raise DataError(
                "the chat template refuses this conversation",
                where=self.source,
                why=f"the template says: {error}",
                remedy=_remedy(str(error)),
            ) from error
        finally:
            self._used += thread_time() - began


def _remedy(message: str) -> str:
    lowered = message.lower()
    if "alternate" in lowered:
        return "join neighbouring turns of one role, so that user and assistant alternate, or set data.chat_template."
    if "system" in lowered:
        return "put the system text at the beginning of the first user turn, or set data.chat_template."
    if "tool" in lowered:
        return "use a model whose template knows tools, or give such a template in data.chat_template."
    return "change the row to what the template accepts, or give another template in data.chat_template."


GENERATION_TAG = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_MARK = "\U000f0002generation\U000f0003"  # put before and after marked text while it is rendered
_PROBE = "tunesmith probe"
_LONGEST_FORM = 1000
# What a template's own code can raise on a row that it was not written for. RuntimeError: it calls itself for ever.
TEMPLATE_FAULTS = (
    jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError,
    MemoryError, AssertionError, StopIteration,
)  # fmt: skip
_LOOPS = "its parts call each other without an end, or lie too deep in each other"


class RenderError(ValueError):
    """A template refuses a conversation or fails on it. The text is the template's own message."""


class Renderer:
    """One compiled chat template.

    Args:
        source: the Jinja text.
        variables: what the template gets with the messages: special tokens, ``chat_template_kwargs``.
        date: ISO date that ``strftime_now`` prints, at midnight.

    Raises:
        ModelError: the text is not valid Jinja.
    """

    def __init__(self, source: str, *, variables: Mapping[str, Any], date: str) -> None:
        if len(source) > MOST_SOURCE:
            raise ModelError(
                f"the chat template has more than {MOST_SOURCE:,} characters",
                why=f"It has {len(source):,}. Templates of models have under 50,000.",
                remedy="give another in data.chat_template.",
            )
        self.source = source
        self.has_marks = GENERATION_TAG.search(source) is not None
        self._variables = {"documents": None, **variables}
        try:
            self._template = _environment(GenerationTag, date).from_string(source)
            self._marked = _environment(MarkedGenerationTag, date).from_string(source) if self.has_marks else None
        except jinja2.TemplateSyntaxError as error:
            raise ModelError(
                "the chat template is not valid Jinja",
                why=f"line {error.lineno}: {error.message}",
                remedy="correct it, or give another in data.chat_template.",
            ) from error
        except (SyntaxError, RecursionError, MemoryError, ValueError, TypeError) as error:  # of Python's own compiler
            deep = isinstance(error, (RecursionError, MemoryError)) or "nested" in str(error) or "indent" in str(error)
            raise ModelError(
                "the chat template cannot be compiled",
                why="Its blocks or brackets lie too deep in each other." if deep else f"It says: {error}",
                remedy="give another in data.chat_template.",
            ) from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] = (),
        *,
        add_generation_prompt: bool,
        seconds: float = SECONDS,
    ) -> str:
        """The conversation as text.

        Args:
            seconds: of computing that the template may use.

        Raises:
            RenderError: the template raised.
            TemplateLimitError: it takes more time or memory than it may.
        """
        return self._render(self._template, messages, tools, add_generation_prompt, seconds)

    def render_marked(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] = (), *, seconds: float = SECONDS
    ) -> tuple[str, list[tuple[int, int]]]:
        """The conversation as text, and the character spans inside {% generation %} marks.

        Raises:
            RenderError: the template raised.
            TemplateLimitError: it takes more time or memory than it may.
        """
        if self._marked is None:
            return self.render(messages, tools, add_generation_prompt=False, seconds=seconds), []
        parts = self._render(self._marked, messages, tools, False, seconds).split(_MARK)
        ends = [0]
        for part in parts:
            ends.append(ends[-1] + len(part))
        return "".join(parts), [(ends[i], ends[i + 1]) for i in range(1, len(parts), 2)]

    def _render(
        self,
        template: jinja2.Template,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any],
        prompt: bool,
        seconds: float,
    ) -> str:
        given = {"messages": list(messages), "tools": list(tools) or None, "add_generation_prompt": prompt}
        environment = template.environment
        assert isinstance(environment, LimitedEnvironment)
        environment.budget.begin(given, seconds)
        try:
            text = template.render({**self._variables, **given})
            text.encode()  # a template can write half a character, which no tokenizer takes
        except RecursionError as error:
            raise RenderError(_LOOPS) from error
        except TEMPLATE_FAULTS as error:
            raise RenderError(str(error) or type(error).__name__) from error
        return text


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a template reads messages that can be written in several ways.

    Args:
        parts: content is a list of parts, as in templates of vision models.
        text_arguments: arguments of tool calls are JSON text (DeepSeek), not an object.
        developer: the template knows the role developer; otherwise such a turn becomes a system turn.
    """

    parts: bool
    text_arguments: bool
    developer: bool

    @classmethod
    def of(cls, renderer: Renderer) -> Dialect:
        """The template's dialect, found by rendering short conversations."""
        dialect = cls(parts=False, text_arguments=False, developer="developer" in renderer.source)
        user = {"role": "user", "content": _PROBE}
        # 1. Content that the template writes only if it comes in parts.
        if _PROBE not in (_rendered_probe(renderer, dialect, [user]) or ""):
            in_parts = replace(dialect, parts=True)
            if _PROBE in (_rendered_probe(renderer, in_parts, [user]) or ""):
                dialect = in_parts
        # 2. Tool calls that the template writes only if their arguments are text.
        call = {"type": "function", "function": {"name": "probe", "arguments": {"key": _PROBE}}}
        turns = [user, {"role": "assistant", "content": "", "tool_calls": [call]}]
        if _rendered_probe(renderer, dialect, turns) is None:
            as_text = replace(dialect, text_arguments=True)
            if _PROBE in (_rendered_probe(renderer, as_text, turns) or ""):
                dialect = as_text
        return dialect

    def view(self, turn: Mapping[str, Any]) -> dict[str, Any]:
        """A turn as the template reads it. Reasoning has both of its names, as in transformers."""
        seen = dict(turn)
        if seen.get("reasoning_content") is not None:
            seen["thinking"] = seen["reasoning_content"]
        if seen["role"] == "developer" and not self.developer:
            seen["role"] = "system"
        if self.parts:
            seen["content"] = [{"type": "text", "text": seen["content"]}]
        if self.text_arguments and "tool_calls" in seen:
            seen["tool_calls"] = [_with_text_arguments(call) for call in seen["tool_calls"]]
        return seen


def _rendered_probe(renderer: Renderer, dialect: Dialect, turns: Sequence[Mapping[str, Any]]) -> str | None:
    """The turns in a dialect as text; None where the template refuses them."""
    try:
        return renderer.render([dialect.view(turn) for turn in turns], add_generation_prompt=False)
    except RenderError:
        return None


def _with_text_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}


class GenerationTag(jinja2.ext.Extension):
    """{% generation %}...{% endgeneration %}: renders what is inside."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own declaration)

    def parse(self, parser: Parser) -> nodes.Node:
        """The tag as a call with a body, so that names set inside stay inside, as in transformers."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

    def _written(self, caller: Macro) -> str:
        return caller()


class MarkedGenerationTag(GenerationTag):
    """The same tag, which puts a mark before and after the text."""

    def _written(self, caller: Macro) -> str:
        return f"{_MARK}{caller()}{_MARK}"


def _environment(tag: type[GenerationTag], date: str) -> LimitedEnvironment:
    environment = LimitedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[tag, jinja2.ext.loopcontrols])
    environment.add_filter("tojson", _tojson)
    environment.globals.update(
        raise_exception=_raise_exception, strftime_now=_strftime(date), dict=_Dict(), namespace=_SafeNamespace
    )
    return environment


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The filter ``tojson``: unlike Jinja's own it does not escape HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime(date: str) -> Callable[[str], str]:
    day = datetime.fromisoformat(date)
    return lambda form: day.strftime(_short(form))  # no bound method: a template must not reach the object behind it


def _short(form: str) -> str:
    if len(form) > _LONGEST_FORM or re.search(r"\d{3}", form):
        raise ValueError("strftime_now is asked for a text of an unusual length")
    return form


class _Dict:
    """``dict`` without the attributes by which a template could leave the sandbox."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _SafeNamespace(Namespace):
    """``namespace`` that refuses names beginning with an underscore. It does not print what it holds."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # `self` is positional, so that namespace(self=...) works
        self, rest = args[0], args[1:]
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __repr__(self) -> str:
        return "<Namespace>"

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        Namespace.__setitem__(self, name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a chat template cannot store {name!r} on a namespace")
