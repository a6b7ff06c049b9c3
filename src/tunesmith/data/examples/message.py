"""One turn of a conversation: what a chat template sees of it, and how a row's turn becomes one.

Two spellings are read: OpenAI's {role, content, tool_calls, ...} and ShareGPT's {from, value}. Whether a turn is
learned is read under the names that several tools give it, and refused where a name has no certain meaning.
"""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool")
SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bard": "assistant",
    "chatgpt": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "function_call": "assistant",
    "tool_call": "assistant",
}
CALLS = ("function_call", "tool_call")  # roles of LLaMA-Factory and ms-swift whose text is a call, or a list of calls
OTHER_ROLES = {  # beside ROLES: of ms-swift, and of services and models whose words mean one thing only
    "tool_call": "assistant",
    "tool_response": "tool",
    "human": "user",
    "model": "assistant",
    "chatbot": "assistant",
    "gpt": "assistant",
}
# Keys of a turn that hold text which no Message can carry: reading past them would lose tokens in silence.
REFUSED_KEYS = {
    "function_call": "tool_calls, the form that replaced it",
    "refusal": "the refusal as the turn's content",
    "audio": "text",
    "thinking": "reasoning_content",
    "reasoning": "reasoning_content",
}
# Names by which tools say of a turn whether it is learned: `train` and `training` of Axolotl, `loss` of ms-swift and
# ChatGLM, `weight` of OpenAI and Mistral, `masked` of torchtune. In `mask`, tools mean opposite things by true.
SWITCHES = ("train", "training", "trainable", "train_on", "loss", "compute_loss", "learn", "supervise", "supervised")
WEIGHTS = ("weight", "loss_weight", "loss_scale")
MASKED = "masked"
UNCLEAR_MASKS = {
    name: "train: false on a turn that is not to be learned, in place of this key"
    for name in ("mask", "loss_mask", "is_masked", "ignore", "label_mask", "assistant_mask")
} | dict.fromkeys(
    ("train_detail", "training_detail"), "train: true or false for the whole turn; a part of a turn cannot be left out"
)
TURN_MASKS = frozenset((*SWITCHES, *WEIGHTS, MASKED, *UNCLEAR_MASKS))
# Columns in which tools say the same of a whole row.
ROW_MASKS = TURN_MASKS | {
    "assistant_masks", "completion_mask", "loss_weights", "mask_history", "sample_weight", "train_on_inputs",
    "train_on_prompt",
}  # fmt: skip
_TRUTHS = {"true": True, "yes": True, "1": True, "1.0": True, "false": False, "no": False, "0": False, "0.0": False}
MAX_DEPTH = 64
CALL_MARKS = "<tool_call>\n{}\n</tool_call>"  # those of the most common templates


class RowError(ValueError):
    """One row cannot become an example; the reader adds file and line.

    Args:
        field: where in the row, such as ``messages[2].content``.
        found: what stands there, in words.
        expected: what should stand there.
    """

    def __init__(self, field: str, found: str, expected: str) -> None:
        self.field, self.found, self.expected = field, found, expected
        super().__init__(f"{field}: found {found}, expected {expected}")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. `train` says whether an assistant turn is learned; it means nothing on other turns.

    `asked` is set on a turn of another role that the file asks to learn, which is never done.
    `tool_calls` are {"type": "function", "function": {"name": str, "arguments": dict}}, with "id" where it was given.
    """

    role: str
    content: str
    train: bool = True
    tool_calls: tuple[dict[str, Any], ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    reasoning_content: str | None = None
    asked: bool = False

    def written(self) -> str:
        """The text of this turn with its tool calls, about as templates write them: each as JSON between marks."""
        calls = (json.dumps(call["function"], ensure_ascii=False) for call in self.tool_calls)
        return "\n".join([*filter(None, [self.content]), *(CALL_MARKS.format(call) for call in calls)])

    def to_template(self) -> dict[str, Any]:
        """What a chat template sees of this turn: role and content, and the other keys only where they are set."""
        turn: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            turn["tool_calls"] = list(self.tool_calls)
        if self.tool_call_id is not None:
            turn["tool_call_id"] = self.tool_call_id
        if self.name is not None:
            turn["name"] = self.name
        if self.reasoning_content is not None:
            turn["reasoning_content"] = self.reasoning_content
        return turn


def openai_message(turn: object, where: str) -> Message:
    """A turn in OpenAI's form; `where` names it in errors, such as ``messages[2]``.

    Raises:
        RowError: an unknown role, content that is not text, or tool calls that are none.
    """
    if not isinstance(turn, Mapping):
        raise RowError(where, describe(turn), "a message: an object with role and content")
    if "role" not in turn:
        expected = "role and content" + ("; from and value are the shape sharegpt" if "from" in turn else "")
        raise RowError(f"{where}.role", describe(turn), expected)
    said = turn["role"]
    if not isinstance(said, str) or said.lower() not in (*ROLES, *OTHER_ROLES):
        raise RowError(f"{where}.role", describe(said), f"one of {', '.join(ROLES)}")
    role = OTHER_ROLES.get(said.lower(), said.lower())
    for key in REFUSED_KEYS.keys() & turn.keys():
        if turn[key] is not None:
            raise RowError(f"{where}.{key}", describe(turn[key]), REFUSED_KEYS[key])
    calls = _tool_calls(turn.get("tool_calls"), f"{where}.tool_calls")
    if calls and role != "assistant":
        raise RowError(f"{where}.tool_calls", f"tool calls of a {role} turn", "tool calls of assistant turns only")
    train, asked = _train(turn, where, role)
    if said in CALLS:
        return _of_calls(turn, "content", where, train)
    return Message(
        role=role,
        content=_content(turn, where, may_be_null=bool(calls)),
        train=train,
        tool_calls=calls,
        tool_call_id=_optional(turn, "tool_call_id", where),
        name=_optional(turn, "name", where),
        reasoning_content=_optional(turn, "reasoning_content", where),
        asked=asked,
    )


def sharegpt_message(turn: object, where: str) -> Message:
    """A turn in ShareGPT's form; the value of a call is JSON: {name, arguments}, or a list of those.

    Raises:
        RowError: an unknown speaker, a value that is not text, or a function call that is none.
    """
    if not isinstance(turn, Mapping):
        raise RowError(where, describe(turn), "a turn: an object with from and value")
    if "from" not in turn:
        hint = "; role and content are the shape messages: data.columns: {messages: conversations}"
        raise RowError(f"{where}.from", describe(turn), "from and value" + (hint if "role" in turn else ""))
    speaker = turn["from"]
    if not isinstance(speaker, str) or speaker.lower() not in SHAREGPT_ROLES:
        raise RowError(f"{where}.from", describe(speaker), f"one of {', '.join(SHAREGPT_ROLES)}")
    value = checked_text(present(turn, "value", f"{where}.value"), f"{where}.value")
    role = SHAREGPT_ROLES[speaker.lower()]
    train, asked = _train(turn, where, role)
    if speaker.lower() in CALLS:
        return _of_calls(turn, "value", where, train)
    return Message(role, value, train, asked=asked)


def with_joined_calls(turns: list[Message]) -> list[Message]:
    """The turns, where a turn that only calls tools is part of the assistant turn before it, as ms-swift means it."""
    joined: list[Message] = []
    for turn in turns:
        before = joined[-1] if joined else None
        if before is not None and before.role == turn.role == "assistant" and not turn.content and turn.tool_calls:
            alone = replace(turn, tool_calls=()) == Message("assistant", "", train=before.train)
            if alone:
                joined[-1] = replace(before, tool_calls=(*before.tool_calls, *turn.tool_calls))
                continue
        joined.append(turn)
    return joined


def present(fields: Mapping[str, Any], field: str, where: str | None = None) -> Any:
    """The field's value, whatever it is.

    Raises:
        RowError: there is no such field.
    """
    if field not in fields:
        raise RowError(where or field, "no such field", "a text")
    return fields[field]


def checked_text(value: object, where: str) -> str:
    """The value, known to be a text that can be written as UTF-8.

    Raises:
        RowError: it is no text, or holds a lone surrogate.
    """
    if not isinstance(value, str):
        raise RowError(where, describe(value), "a text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            half = value[error.start]
            raise RowError(where, f"the lone surrogate {half!r} (half of a character)", "whole characters") from None
    return value


def checked_json(value: object, where: str, depth: int = 0) -> None:
    """Refuses what a template could not print: lone surrogates, infinite numbers, nesting without end.

    Raises:
        RowError: one of these is in the value.
    """
    if depth > MAX_DEPTH:
        raise RowError(where, f"more than {MAX_DEPTH} levels of nesting", "fewer levels")
    if isinstance(value, str):
        checked_text(value, where)
    elif isinstance(value, float) and not math.isfinite(value):
        raise RowError(where, "a number that is not finite", "a finite number")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            checked_text(key, where)
            checked_json(item, where, depth + 1)
    elif isinstance(value, list):
        for item in value:
            checked_json(item, where, depth + 1)


def parsed_json(text: str, where: str) -> Any:
    """The value that a JSON text inside a row stands for.

    Raises:
        RowError: the text is not JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise RowError(where, describe(text), "JSON") from None


def describe(value: object) -> str:
    """What a value is, in a few words that are safe to print: the `found` of a message."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        if not value.strip():
            return "a text of white space" if value else "an empty text"
        return f"the text {value!r}" if len(value) <= 40 else f"the text {value[:37]!r}..."
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value!r}, which is not a number" if math.isnan(value) else f"{value!r}, which is not finite"
    if isinstance(value, int | float):
        return f"the number {value!r}" if abs(value) < 1e15 else "a very large number"
    if isinstance(value, Mapping):
        return f"an object with {', '.join(printable(key) for key in list(value)[:6])}" if value else "an empty object"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}" if value else "an empty list"
    return f"a value of type {type(value).__name__}"


def printable(name: object) -> str:
    """A name from a file as it stands, or escaped where it would disturb a terminal or not be seen."""
    text = str(name)
    return text if text.isprintable() and text.strip() else repr(text)


def _content(turn: Mapping[str, Any], where: str, *, may_be_null: bool) -> str:
    content = turn.get("content")
    if content is None and may_be_null:
        return ""
    if not isinstance(content, list):
        return checked_text(present(turn, "content", f"{where}.content"), f"{where}.content")
    return text_of_parts(content, f"{where}.content")


def text_of_parts(parts: Sequence[object], where: str) -> str:
    """The text of {type: text, text} parts, of which Amazon Nova's have no type.

    Raises:
        RowError: a part is anything else.
    """
    texts = []
    for index, part in enumerate(parts):
        part_where = f"{where}[{index}]"
        if not isinstance(part, Mapping) or part.get("type", "text" if [*part] == ["text"] else None) != "text":
            found = f"a part of type {describe(part.get('type'))}" if isinstance(part, Mapping) else describe(part)
            raise RowError(part_where, found, 'a text part: {"type": "text", "text": ...}')
        texts.append(checked_text(present(part, "text", f"{part_where}.text"), f"{part_where}.text"))
    return "".join(texts)


def turns_in(value: object, where: str) -> object:
    """The list that a text holds, as JSON or as Python writes it: tables have turns so. Another value as it is.

    Raises:
        RowError: the text is neither.
    """
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        raise RowError(where, describe(value), "a list of turns, or its JSON text") from None


def truth(value: object, where: str, expected: str = "true or false") -> bool:
    """The value of a field that is true or false: a boolean, 1 or 0, or one of these or yes or no as a text.

    Raises:
        RowError: it is none of them.
    """
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    known = _TRUTHS.get(value.strip().lower()) if isinstance(value, str) else None
    if known is None:
        raise RowError(where, describe(value), expected)
    return known


def _train(turn: Mapping[str, Any], where: str, role: str) -> tuple[bool, bool]:
    """Whether a turn is learned, and whether the file asks to learn a turn that is no assistant's."""
    keys = [key for key in turn if key in TURN_MASKS and turn[key] is not None and turn[key] != []]
    said = {key: _learned(turn[key], key, f"{where}.{key}") for key in keys}
    if len(set(said.values())) > 1:
        found = " and ".join(f"{key}: {describe(turn[key])}" for key in said)
        raise RowError(where, found, "one of these keys, as they contradict each other")
    learned = not said or all(said.values())
    return learned, bool(said) and learned and role != "assistant"


def _learned(value: object, key: str, where: str) -> bool:
    if key in UNCLEAR_MASKS:
        raise RowError(where, describe(value), UNCLEAR_MASKS[key])
    if key in WEIGHTS:
        return truth(value, where, "0 (not learned) or 1 (learned)")
    return truth(value, where) is not (key == MASKED)


def _of_calls(turn: Mapping[str, Any], field: str, where: str, train: bool) -> Message:
    """An assistant turn whose text is the JSON of its calls."""
    where = f"{where}.{field}"
    calls = parsed_json(checked_text(present(turn, field, where), where), where)
    return Message("assistant", "", train, _tool_calls(calls if isinstance(calls, list) else [calls], where))


def _tool_calls(value: object, where: str) -> tuple[dict[str, Any], ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise RowError(where, describe(value), "a list of tool calls")
    return tuple(_tool_call(call, f"{where}[{index}]") for index, call in enumerate(value))


def _tool_call(call: object, where: str) -> dict[str, Any]:
    """{id, type, function: {name, arguments}}, or {name, arguments} alone; arguments as an object or its JSON text."""
    function = call.get("function", call) if isinstance(call, Mapping) else call
    if not isinstance(call, Mapping) or not isinstance(function, Mapping):
        raise RowError(where, describe(function), "a function with name and arguments")
    name = checked_text(present(function, "name", f"{where}.name"), f"{where}.name")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = parsed_json(arguments, f"{where}.arguments") if arguments.strip() else {}
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, Mapping):
        raise RowError(f"{where}.arguments", describe(arguments), "an object, or its JSON text")
    checked_json(arguments, f"{where}.arguments")
    identity = _optional(call, "id", where)
    head = {} if identity is None else {"id": identity}
    return head | {"type": "function", "function": {"name": name, "arguments": dict(arguments)}}


def _optional(turn: Mapping[str, Any], key: str, where: str) -> str | None:
    value = turn.get(key)
    return None if value is None else checked_text(value, f"{where}.{key}")
