"""Chat templates rendered to text as transformers renders them: the same sandbox, but the date of the run.

The environment follows ``transformers.utils.chat_template_utils`` (5.23), which keeps it private; a test holds both to
the same text for every template that TRL ships.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jinja2.exceptions
import jinja2.ext
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from tunesmith.errors import DataError, ModelError


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns as the template will see them, rendered as far as is asked."""

    renderer: Renderer
    dialect: Dialect
    turns: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]]
    source: str

    def prompt(self, count: int) -> str:
        """The first ``count`` turns with the generation prompt.

        Raises:
            DataError: the template refuses them.
        """
        return self._guarded(self.turns[:count], add_generation_prompt=True)[0]

    def full(self, count: int) -> tuple[str, list[tuple[int, int]]]:
        """The first ``count`` turns, and the characters that {% generation %} marks hold.

        Raises:
            DataError: the template refuses them.
        """
        return self._guarded(self.turns[:count], add_generation_prompt=False)

    def with_turn(self, number: int, turn: Mapping[str, Any]) -> str:
        """The turns up to ``number`` with another one in its place.

        Raises:
            DataError: the template refuses them.
        """
        return self._guarded([*self.turns[:number], turn], add_generation_prompt=False)[0]

    def _guarded(
        self, turns: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool
    ) -> tuple[str, list[tuple[int, int]]]:
        seen = [self.dialect.view(turn) for turn in turns]
        try:
            if add_generation_prompt:
                return self.renderer.render(seen, self.tools, add_generation_prompt=True), []
            return self.renderer.render_marked(seen, self.tools)
        except RenderError as error:
            raise DataError(
                "the chat template refuses this conversation",
                where=self.source,
                why=f"the template says: {error}",
                remedy=_remedy(str(error)),
            ) from error


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
_MARK = "\U000f0002generation\U000f0003"  # stands around marked text while it is rendered
_PROBE = "tunesmith probe"
# What a template's own code can raise on a row that it was not written for.
_TEMPLATE_FAULTS = (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)


class RenderError(ValueError):
    """A template refuses a conversation, or fails on it; the text is the template's own message."""


class Renderer:
    """One compiled chat template.

    Args:
        source: the Jinja text.
        variables: what the template sees beside the messages: special tokens, ``chat_template_kwargs``.
        date: ISO date that ``strftime_now`` prints, at midnight.

    Raises:
        ModelError: the text is not valid Jinja.
    """

    def __init__(self, source: str, *, variables: Mapping[str, Any], date: str) -> None:
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

    def render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] = (), *, add_generation_prompt: bool
    ) -> str:
        """The conversation as text.

        Raises:
            RenderError: the template raised.
        """
        return self._render(self._template, messages, tools, add_generation_prompt)

    def render_marked(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] = ()
    ) -> tuple[str, list[tuple[int, int]]]:
        """The conversation as text, and the character spans inside {% generation %} marks.

        Raises:
            RenderError: the template raised.
        """
        if self._marked is None:
            return self.render(messages, tools, add_generation_prompt=False), []
        parts = self._render(self._marked, messages, tools, False).split(_MARK)
        ends = [0]
        for part in parts:
            ends.append(ends[-1] + len(part))
        return "".join(parts), [(ends[i], ends[i + 1]) for i in range(1, len(parts), 2)]

    def _render(
        self, template: jinja2.Template, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any], prompt: bool
    ) -> str:
        given = {"messages": list(messages), "tools": list(tools) or None, "add_generation_prompt": prompt}
        try:
            return template.render({**self._variables, **given})
        except _TEMPLATE_FAULTS as error:
            raise RenderError(str(error) or type(error).__name__) from error


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a template wants messages that can be written in several ways.

    Args:
        parts: content as a list of parts, as templates of vision models read it.
        text_arguments: arguments of tool calls as JSON text (DeepSeek) rather than an object.
        developer: the role developer is known; otherwise such a turn is handed over as a system turn.
    """

    parts: bool
    text_arguments: bool
    developer: bool

    @classmethod
    def of(cls, renderer: Renderer) -> Dialect:
        """The template's dialect, found by rendering short conversations."""
        plain = cls(parts=False, text_arguments=False, developer="developer" in renderer.source)
        in_parts = cls(parts=True, text_arguments=False, developer=plain.developer)
        user = {"role": "user", "content": _PROBE}
        if not _writes(renderer, [plain.view(user)], _PROBE) and _writes(renderer, [in_parts.view(user)], _PROBE):
            plain = in_parts
        call = {"type": "function", "function": {"name": "probe", "arguments": {"key": _PROBE}}}
        turns = [user, {"role": "assistant", "content": "", "tool_calls": [call]}]
        as_text = cls(parts=plain.parts, text_arguments=True, developer=plain.developer)
        if _fails(renderer, [plain.view(turn) for turn in turns]) and _writes(
            renderer, [as_text.view(turn) for turn in turns], _PROBE
        ):
            return as_text
        return plain

    def view(self, turn: Mapping[str, Any]) -> dict[str, Any]:
        """A turn as the template shall see it. Reasoning goes by both of its names, as in transformers."""
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


def _writes(renderer: Renderer, turns: Sequence[Mapping[str, Any]], text: str) -> bool:
    try:
        return text in renderer.render(turns, add_generation_prompt=False)
    except RenderError:
        return False


def _fails(renderer: Renderer, turns: Sequence[Mapping[str, Any]]) -> bool:
    try:
        renderer.render(turns, add_generation_prompt=False)
    except RenderError:
        return True
    return False


def _with_text_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}


class GenerationTag(jinja2.ext.Extension):
    """{% generation %}...{% endgeneration %}: renders what it holds."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own declaration)

    def parse(self, parser: Parser) -> nodes.Node:
        """The tag as a call with a body, so that names set inside stay inside, as in transformers."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

    def _written(self, caller: Macro) -> str:
        return caller()


class MarkedGenerationTag(GenerationTag):
    """The same, with a mark before and after."""

    def _written(self, caller: Macro) -> str:
        return f"{_MARK}{caller()}{_MARK}"


def _environment(tag: type[GenerationTag], date: str) -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[tag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
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
    """Jinja's own filter would escape HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime(date: str) -> Callable[[str], str]:
    day = datetime.fromisoformat(date)
    return lambda form: day.strftime(form)  # no bound method: a template must not reach the object behind it


class _Dict:
    """``dict`` without the attributes by which a template could leave the sandbox."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _SafeNamespace(Namespace):
    """``namespace`` that refuses names beginning with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # `self` is positional, so that namespace(self=...) works
        self, rest = args[0], args[1:]
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        Namespace.__setitem__(self, name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a chat template cannot store {name!r} on a namespace")
