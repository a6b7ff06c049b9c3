"""Examples: what a row of every accepted shape becomes.

The shapes, by their fields (those in brackets are optional, and absent when null):

- alpaca: instruction, output, [input, history, system, tools]. The user's turn is the instruction, a blank line and the
  input. The history is a list of earlier [question, answer] pairs, whose answers are learned too.
- prompt_completion: prompt, completion, [system, tools]. Two texts, or two lists of messages; only the completion
  is learned. An answer that is a number or a truth value is taken as text, as alpaca's output is.
- messages: messages, [system, tools]. A list or its JSON text, of OpenAI's roles, tool calls and text parts;
  `train: false`, or what other tools write for it (`weight: 0`, `loss: false`, ...), leaves a turn unlearned.
- sharegpt: conversations of {from, value}, [system, tools].
- text: text. A raw document without turns.
- preference: chosen, rejected, [prompt, instruction, input, system, tools]. Two answers to one prompt, each a text or a
  list of messages that ends with one assistant turn; without a prompt the turns that both lists begin with are it.
- unpaired_preference: prompt, completion, label, [system, tools]. One answer, and whether it is desirable: true or
  false, 1 or 0, yes or no, as a text too. Or messages and label: the last turn is the answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tunesmith.data.examples.labels import is_label, label_text
from tunesmith.data.examples.message import (
    Message,
    RowError,
    checked_json,
    checked_text,
    describe,
    openai_message,
    parsed_json,
    present,
    sharegpt_message,
    text_of_parts,
    truth,
    turns_in,
    with_joined_calls,
)
from tunesmith.data.examples.row_shapes import JUDGED, map_columns, required_fields

SOME_TEXT = "a text that is not empty"


@dataclass(frozen=True, slots=True)
class Example:
    """One row: a conversation, or a raw text (then `messages` is empty). `source` is ``file:line``, counted from 1.

    ``rejected`` is the answer that another was preferred to: it is an alternative to the last turn, the chosen one.
    ``label`` says of the last turn whether it is desirable, where the row says so.
    """

    messages: tuple[Message, ...]
    source: str
    tools: tuple[dict[str, Any], ...] = ()
    text: str | None = None
    rejected: Message | None = None
    label: bool | None = None

    def prompt_key(self) -> str:
        """Everything before the last assistant turn, tools included, as one stable text; the text of a raw row.

        Two answers to one prompt have one key, so a split by it keeps them together.
        """
        return self.keys()[0]

    def last_answer(self) -> int:
        """Index of the last assistant turn; the number of turns where there is none."""
        for index in range(len(self.messages) - 1, -1, -1):
            if self.messages[index].role == "assistant":
                return index
        return len(self.messages)

    def answer(self) -> str:
        """The text of the last assistant turn; none in a raw row."""
        return self.messages[self.last_answer()].content if self.text is None else ""

    def written_answer(self) -> str:
        """The last assistant turn with its tool calls, about as a template writes it; none in a raw row."""
        return self.messages[self.last_answer()].written() if self.text is None else ""

    def answers_with_calls(self) -> bool:
        """Whether the last assistant turn calls tools."""
        return self.text is None and bool(self.messages[self.last_answer()].tool_calls)

    def content_key(self) -> str:
        """The whole row as one stable text, with what is learned of it: equal for exact duplicates only."""
        return self.keys()[1]

    def keys(self) -> tuple[str, str]:
        """``(prompt_key, content_key)``, in little more time than one of them."""
        if self.text is not None:
            return self.text, self.text
        turns = [_canonical_turn(message) for message in self.messages]
        tools = _canonical(self.tools) if self.tools else "[]"
        prompt, content = ",".join(turns[: self.last_answer()]), ",".join(turns)
        unlearned = [index for index, turn in enumerate(self.messages) if turn.role == "assistant" and not turn.train]
        judged = "" if self.rejected is None else f",{_canonical_turn(self.rejected)}"
        judged += "" if self.label is None else f",{_canonical(self.label)}"
        return f"[[{prompt}],{tools}]", f"[[{content}],{tools}{judged}]{unlearned or ''}"

    def characters(self) -> int:
        """Length in characters, tool calls included, without tools and template: a rough measure of its tokens."""
        if self.text is not None:
            return len(self.text)
        turns = self.messages if self.rejected is None else (*self.messages, self.rejected)
        return sum(len(message.written()) + len(message.reasoning_content or "") for message in turns)


def to_example(
    row: Mapping[str, Any],
    *,
    shape: str,
    source: str,
    columns: Mapping[str, str] | None = None,
    instruction: str | None = None,
) -> Example:
    """One row of the named shape as an example.

    Args:
        row: column name to value, as the file has it.
        shape: a name of ``row_shapes.py``.
        source: ``file:line``, carried along.
        columns: canonical field to the file's column, for columns that have other names.
        instruction: the instruction of every row (alpaca only).

    Raises:
        RowError: a field is missing, has the wrong type or is empty, or the turns do not end with an answer.
    """
    fields = map_columns(row, columns) if columns else row
    if shape == "text":
        return Example(messages=(), source=source, text=_text(fields, "text"))
    tools = _tools(fields.get("tools"))
    if shape == "preference":
        chosen, rejected = _preference(fields)
        return Example(messages=tuple(chosen), source=source, tools=tools, rejected=rejected)
    messages = _alpaca(fields, instruction) if shape == "alpaca" else _CONVERSATIONS[shape](fields)
    label = _label(fields) if shape == "unpaired_preference" else None
    return Example(messages=tuple(messages), source=source, tools=tools, label=label)


def _alpaca(fields: Mapping[str, Any], instruction: str | None) -> list[Message]:
    given = fields.get("input")
    body = "" if given is None else checked_text(given, "input")
    head = instruction if instruction is not None else checked_text(present(fields, "instruction"), "instruction")
    text = user_text(head, body)
    if not text:
        raise RowError("instruction", describe(head), SOME_TEXT)
    turns = [Message("user", text), Message("assistant", _answer(fields, "output"))]
    return _with_system([*_history(fields), *turns], fields)


def user_text(instruction: str, body: str) -> str:
    """The text of a user turn with an instruction: a blank line is between the two, and blank parts are left out."""
    return "\n\n".join(part for part in (instruction, body) if part.strip())


def _history(fields: Mapping[str, Any]) -> list[Message]:
    """The earlier rounds of an alpaca row: a list of [question, answer], or its JSON text."""
    rounds = fields.get("history")
    if isinstance(rounds, str):
        rounds = parsed_json(rounds, "history") if rounds.strip() else None
    if rounds is None:
        return []
    if not isinstance(rounds, list):
        raise RowError("history", describe(rounds), "a list of [question, answer] pairs")
    turns = []
    for number, pair in enumerate(rounds):
        if not isinstance(pair, list) or len(pair) != 2:
            raise RowError(f"history[{number}]", describe(pair), "a pair [question, answer]")
        for part, (role, value) in enumerate(zip(("user", "assistant"), pair, strict=True)):
            where = f"history[{number}][{part}]"
            text = checked_text(value, where)
            if not text.strip():
                raise RowError(where, describe(text), SOME_TEXT)
            turns.append(Message(role, text))
    return turns


def _prompt_completion(fields: Mapping[str, Any]) -> list[Message]:
    prompt, completion = present(fields, "prompt"), present(fields, "completion")
    if not isinstance(prompt, list):
        turns = [Message("user", _text(fields, "prompt")), Message("assistant", _answer(fields, "completion"))]
        return _with_system(turns, fields)
    if not isinstance(completion, list) or not completion:
        raise RowError("completion", describe(completion), "a list of messages, as the prompt is one")
    # The prompt is given, so an assistant turn inside it is not learned.
    before = [replace(openai_message(turn, f"prompt[{i}]"), train=False) for i, turn in enumerate(prompt)]
    after = [openai_message(turn, f"completion[{i}]") for i, turn in enumerate(completion)]
    return _conversation(_with_system(before + after, fields), "completion")


def _preference(fields: Mapping[str, Any]) -> tuple[list[Message], Message]:
    """The conversation with the chosen answer, and the answer that was rejected."""
    chosen, rejected = present(fields, "chosen"), present(fields, "rejected")
    if isinstance(chosen, list) != isinstance(rejected, list):
        raise RowError("rejected", describe(rejected), f"the form that chosen has: {describe(chosen)}")
    if isinstance(chosen, list):
        before, answers = _turns_of_two(fields)
    else:
        before = _prompt_of_pair(fields)
        answers = [Message("assistant", _text(fields, name)) for name in ("chosen", "rejected")]
        if not before:
            raise RowError("prompt", "no such field", "a prompt, or an instruction, beside the answers")
    if answers[0] == answers[1]:
        raise RowError("rejected", "the same answer as chosen", "another answer, or no such row")
    # The prompt is given, so an assistant turn inside it is not learned.
    prompt = _with_system([replace(turn, train=False) for turn in before], fields)
    learned = [replace(answer, train=True) for answer in answers]
    for answer, name in zip(learned, ("chosen", "rejected"), strict=True):
        _conversation([*prompt, answer], name)
    return [*prompt, learned[0]], learned[1]


def _prompt_of_pair(fields: Mapping[str, Any]) -> list[Message]:
    """The turns before both answers, as far as fields of their own say them."""
    prompt = fields.get("prompt")
    if isinstance(prompt, list):
        return [openai_message(turn, f"prompt[{i}]") for i, turn in enumerate(prompt)]
    if prompt is not None:
        return [Message("user", _text(fields, "prompt"))]
    parts = [checked_text(fields[name], name) for name in ("instruction", "input") if fields.get(name) is not None]
    parts = [part for part in parts if part.strip()]
    return [Message("user", "\n\n".join(parts))] if parts else []


def _turns_of_two(fields: Mapping[str, Any]) -> tuple[list[Message], list[Message]]:
    """The turns before both answers and the two answers, of two lists of messages.

    A list is the answer alone, or the whole conversation: then what both lists begin with is the prompt, and a prompt
    in a field of its own is its last turn once more.
    """
    lists = [
        [openai_message(turn, f"{name}[{i}]") for i, turn in enumerate(_turns(fields, name))]
        for name in ("chosen", "rejected")
    ]
    shared = [one for one, other in zip(lists[0][:-1], lists[1][:-1], strict=False) if one == other]
    for name, turns in zip(("chosen", "rejected"), lists, strict=True):
        if turns[-1].role != "assistant":
            raise RowError(name, f"a {turns[-1].role} turn at the end", "an assistant turn at the end")
        if len(turns) != len(shared) + 1:
            raise RowError(name, f"{len(turns)} turns", "one assistant turn behind what both lists begin with")
    before = _prompt_of_pair(fields)
    if before and shared and before != shared and before[-1] != shared[-1]:
        raise RowError("prompt", "other turns than those that chosen and rejected begin with", "the same turns")
    return shared or before, [turns[-1] for turns in lists]


def _label(fields: Mapping[str, Any]) -> bool:
    """Whether the answer is desirable."""
    return truth(present(fields, "label"), "label", "true (desirable) or false, 1 or 0, yes or no")


def _openai(fields: Mapping[str, Any]) -> list[Message]:
    messages = [openai_message(turn, f"messages[{i}]") for i, turn in enumerate(_turns(fields, "messages"))]
    return _conversation(_with_system(messages, fields), "messages")


def _judged(fields: Mapping[str, Any]) -> list[Message]:
    """A prompt with an answer, or a conversation whose last turn is the answer: it alone is judged and learned."""
    there = [name for name, value in fields.items() if value is not None]
    if required_fields("unpaired_preference", among=there) != JUDGED:
        return _prompt_completion(fields)
    *before, answer = _openai(fields)
    return [*(replace(turn, train=False) for turn in before), replace(answer, train=True)]


def _sharegpt(fields: Mapping[str, Any]) -> list[Message]:
    turns = _turns(fields, "conversations")
    messages = [sharegpt_message(turn, f"conversations[{i}]") for i, turn in enumerate(turns)]
    return _conversation(_with_system(messages, fields), "conversations")


_CONVERSATIONS: Mapping[str, Callable[[Mapping[str, Any]], list[Message]]] = {
    "prompt_completion": _prompt_completion,
    "unpaired_preference": _judged,
    "messages": _openai,
    "sharegpt": _sharegpt,
}


def _conversation(messages: list[Message], field: str) -> list[Message]:
    """The turns, known to be a conversation that ends with an answer and has something to learn."""
    messages = with_joined_calls(messages)
    for number, message in enumerate(messages, start=1):
        if message.role in ("system", "developer") and number > 1:
            raise RowError(
                field, f"a {message.role} turn at position {number}", f"a {message.role} turn only at the start"
            )
        wanted = message.role == "user" or (message.role == "assistant" and message.train)
        if wanted and not message.content.strip() and not message.tool_calls:
            raise RowError(field, f"turn {number} ({message.role}) with {describe(message.content)}", SOME_TEXT)
    roles = [message.role for message in messages]
    if "assistant" not in roles:
        raise RowError(field, "no assistant turn", "a conversation that ends with an assistant turn")
    if roles[-1] != "assistant":
        raise RowError(field, f"a {roles[-1]} turn at the end", "an assistant turn at the end")
    if "user" not in roles:
        raise RowError(field, "no user turn", "a user turn before the last assistant turn")
    if not any(message.train for message in messages if message.role == "assistant"):
        raise RowError(field, "every assistant turn marked as not to be learned", "an assistant turn to learn")
    return messages


def _with_system(messages: list[Message], fields: Mapping[str, Any]) -> list[Message]:
    """The turns behind the row's own `system` text, where it has one."""
    given = fields.get("system")
    given = text_of_parts(given, "system") if isinstance(given, list) else given
    system = "" if given is None else checked_text(given, "system")
    if not system.strip():
        return messages
    if messages and messages[0].role in ("system", "developer"):
        raise RowError("system", "a system text beside a system turn", "one of the two")
    return [Message("system", system), *messages]


def _tools(value: object) -> tuple[dict[str, Any], ...]:
    """The row's tools as they stand: a list of objects, or its JSON text."""
    if isinstance(value, str):
        value = parsed_json(value, "tools") if value.strip() else None
    if value is None:
        return ()
    if not isinstance(value, list):
        raise RowError("tools", describe(value), "a list of tools, or its JSON text")
    for index, tool in enumerate(value):
        if not isinstance(tool, dict):
            raise RowError(f"tools[{index}]", describe(tool), "an object that describes a function")
        checked_json(tool, f"tools[{index}]")
    return tuple(value)


def _turns(fields: Mapping[str, Any], field: str) -> list[Any]:
    value = turns_in(present(fields, field), field)
    if not isinstance(value, list) or not value:
        raise RowError(field, describe(value), "a list of turns")
    return value


def _text(fields: Mapping[str, Any], field: str) -> str:
    value = checked_text(present(fields, field), field)
    if not value.strip():
        raise RowError(field, describe(value), SOME_TEXT)
    return value


def _answer(fields: Mapping[str, Any], field: str) -> str:
    """The answer's text; a label may be a number."""
    value = present(fields, field)
    return label_text(value, field) if is_label(value) else _text(fields, field)


def _canonical_turn(message: Message) -> str:
    """``_canonical(message.to_template())``; most turns have nothing but a role and content, and are written faster."""
    is_plain = message.tool_call_id is None and message.name is None and message.reasoning_content is None
    if is_plain and not message.tool_calls:
        return f'{{"content":{_canonical(message.content)},"role":{_canonical(message.role)}}}'
    return _canonical(message.to_template())


_canonical = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode
