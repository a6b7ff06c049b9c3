"""Turns examples into token ids and labels by the model's chat template. Both are made here and nowhere else.

The prompt that a row trains on is the prompt that generation sends, token for token. Only assistant turns are learned,
each with the token that ends it; ``supervision.py`` decides which tokens these are.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from tunesmith.data.chat.encoding import ControlTokens, TextEncoder, control_texts
from tunesmith.data.chat.notes import CONTROL_IN_RAW_TEXT, Notes
from tunesmith.data.chat.packaged import PACKAGED
from tunesmith.data.chat.rendering import Dialect, Renderer, RenderError, TemplatedConversation
from tunesmith.data.chat.supervision import Supervisor, check_row
from tunesmith.data.chat.tokenizing import UnencodableError, tokenizing
from tunesmith.data.examples.example import Example
from tunesmith.data.examples.message import Message
from tunesmith.data.finding import Finding
from tunesmith.errors import DataError, ModelError, RecipeError
from tunesmith.recipe.paths import local

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tunesmith.recipe.data import DataSettings


# For a base model, which has no template: the instruction format of Stanford Alpaca. A system text comes first, a blank
# line separates turns, and an answer ends with the model's stop token. There are no tools.
_DEFAULT = (
    "@BOS@{% if tools %}{{ raise_exception('the default template knows no tools') }}{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{% if message['tool_calls'] %}{{ raise_exception('the default template knows no tool calls') }}{% endif %}"
    "{{ '### Response:\\n' + message['content'] + @STOP@ }}"
    "{% elif message['role'] == 'user' %}{{ '### Instruction:\\n' + message['content'] }}"
    "{% elif message['role'] == 'system' %}{{ message['content'] }}"
    "{% else %}{{ raise_exception('the default template knows no ' + message['role'] + ' turns') }}{% endif %}"
    "{% if not loop.last or add_generation_prompt %}{{ '\\n\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
)


_ANSWER = "tunesmith-answer"


def choose_templates(
    tokenizer: PreTrainedTokenizerBase, setting: str | None, *, stop_ids: Sequence[int]
) -> tuple[dict[str, str], str]:
    """The templates by name ("default" always, "tool_use" if the model has one), and where they come from.

    Args:
        setting: ``data.chat_template``: Jinja text, a file, or the name of one of the tokenizer's templates or of ours.

    Raises:
        RecipeError: the setting names no file.
        ModelError: the tokenizer has named templates and none is the default.
    """
    own = tokenizer.chat_template
    named: dict[str, str] = dict(own) if isinstance(own, dict) else {}
    if setting is not None:
        return {"default": named.get(setting) or PACKAGED.get(setting) or _read(setting)}, "recipe"
    if named and "default" not in named:
        names = ", ".join(sorted(named))
        raise ModelError(
            "the tokenizer has several chat templates and none is the default",
            why=f"found: {names}",
            remedy="name one of them in data.chat_template.",
        )
    if named:
        return {name: named[name] for name in ("default", "tool_use") if name in named}, "tokenizer"
    if isinstance(own, str) and own.strip():
        return {"default": own}, "tokenizer"
    return {"default": default_template(tokenizer, stop_ids=stop_ids)}, "default"


def default_template(tokenizer: PreTrainedTokenizerBase, *, stop_ids: Sequence[int]) -> str:
    """The instruction format for a model without a template.

    It begins with the beginning-of-text token if the tokenizer itself adds one. Its answers end with a token that
    generation stops on: the end-of-text token, or else the first stop token.
    """
    bos = tokenizer.bos_token_id
    begins = bos is not None and list(tokenizer("a")["input_ids"])[:1] == [bos]
    if tokenizer.eos_token_id in stop_ids:
        stop = "eos_token"
    else:
        stop = repr(tokenizer.convert_ids_to_tokens(int(stop_ids[0])))
    return _DEFAULT.replace("@BOS@", "{{ bos_token }}" if begins else "").replace("@STOP@", stop)


def is_jinja(setting: str) -> bool:
    """Whether ``data.chat_template`` is the text of a template, and not the name of one or of a file."""
    return "{%" in setting or "{{" in setting


def template_in_file(setting: str) -> str | None:
    """The text of the file that ``data.chat_template`` names; None if it names no file that is there.

    Raises:
        RecipeError: the file cannot be read.
    """
    return _read(setting) if setting not in PACKAGED and os.path.isfile(local(setting)) else None


def _read(setting: str) -> str:
    if is_jinja(setting):
        return setting
    try:
        return Path(local(setting)).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            "the chat template cannot be read",
            where="data.chat_template",
            why=f"{setting}: {error.strerror if isinstance(error, OSError) else 'not UTF-8 text'}",
            remedy="correct the path of the file; or give the template's text itself.",
        ) from error


@dataclass(frozen=True, slots=True)
class Encoded:
    """One row of tokens.

    Args:
        ids: int32 [n].
        supervised: bool [n]; True at t if ``ids[t]`` is a label, predicted from the tokens before it.
        source: ``file:line`` of the example.
        example: number of the example that the row comes from; an example can become several rows.
    """

    ids: np.ndarray
    supervised: np.ndarray
    source: str
    example: int


@dataclass(frozen=True, slots=True)
class TemplateRules:
    """All that determines the tokens of a run, except the tokenizer.

    ``origin`` of the templates: recipe, tokenizer or default. ``added_tokens``: texts that are encoded as tokens.
    ``stop_tokens``: those that the template ends an answer with and that the model's own settings do not stop on.
    """

    templates: Mapping[str, str]
    origin: str
    kwargs: Mapping[str, Any]
    date: str
    control_tokens: str
    train_on: str
    added_tokens: Sequence[str] = ()
    stop_tokens: Sequence[str] = ()


class ChatTemplate:
    """The chat template of a run.

    ``stop_ids`` are the ids that generation stops on: the model's own, and the token that the template ends an answer
    with. A base model often has the template of its chat model, whose answers end with ``<|im_end|>``, and settings
    that stop on ``<|endoftext|>`` alone.

    Args:
        tokenizer: any tokenizer of transformers; a fast one also gives the offsets that {% generation %} marks need.
        stop_ids: ids that the model's own settings stop on (``generation_config.eos_token_id``).
        settings: the recipe's data section.
        date: ISO date of the run, for templates that print one; ``data.date`` has precedence.
        added_tokens: the texts of the tokens that the recipe adds, which may stand in a message.

    Raises:
        ModelError: no stop ids, a template that is not valid Jinja, or several without a default.
        RecipeError: ``data.chat_template`` names no readable file.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        stop_ids: Sequence[int],
        settings: DataSettings,
        date: str,
        added_tokens: Sequence[str] = (),
    ) -> None:
        _require_stop_ids(stop_ids)
        templates, origin = choose_templates(tokenizer, settings.chat_template, stop_ids=stop_ids)
        kwargs, day = dict(settings.chat_template_kwargs), settings.date or date
        fixed = settings.control_tokens, settings.train_on, tuple(added_tokens)
        rules = TemplateRules(templates, origin, kwargs, day, *fixed)
        self._build(tokenizer, stop_ids, rules)
        end = self._unknown_end()
        if end is not None:
            self._build(tokenizer, stop_ids, replace(rules, stop_tokens=(end,)))

    @classmethod
    def restore(
        cls, tokenizer: PreTrainedTokenizerBase, recorded: Mapping[str, Any], *, stop_ids: Sequence[int]
    ) -> ChatTemplate:
        """The template of an earlier run, from what ``describe`` recorded.

        Raises:
            ModelError: no stop ids, or the record is not one that ``describe`` made.
        """
        _require_stop_ids(stop_ids)
        template = cls.__new__(cls)
        try:
            recorded = {"added_tokens": (), "stop_tokens": (), **recorded}  # a run of an earlier version has none
            rules = TemplateRules(**{name: recorded[name] for name in TemplateRules.__slots__})
        except KeyError as error:
            raise ModelError(
                f"the recorded chat template has no {error}", remedy="use the run as it was written."
            ) from error
        template._build(tokenizer, stop_ids, rules)
        return template

    def _build(self, tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int], rules: TemplateRules) -> None:
        self.tokenizer = tokenizer
        own = [int(number) for number in [*stop_ids, *map(tokenizer.convert_tokens_to_ids, rules.stop_tokens)]]
        self.stop_ids = tuple(dict.fromkeys(own))
        self.rules = rules
        self.notes = Notes()
        variables = {**tokenizer.special_tokens_map, **rules.kwargs}
        self._renderers = {
            name: Renderer(source, variables=variables, date=rules.date) for name, source in rules.templates.items()
        }
        self._dialects = {name: Dialect.of(renderer) for name, renderer in self._renderers.items()}
        self._control = ControlTokens(control_texts(tokenizer, self.stop_ids, self._frame(), rules.added_tokens))
        self._as_text = rules.control_tokens == "text"
        self._encoder = TextEncoder(tokenizer, self._control if self._as_text else None)
        self._supervisor = Supervisor(self._encoder, stop_ids=self.stop_ids, notes=self.notes)

    @property
    def findings(self) -> list[Finding]:
        """The notes taken while encoding, as findings."""
        return self.notes.findings()

    @property
    def text(self) -> str:
        """The template that is used for conversations without tools."""
        return self.rules.templates["default"]

    @property
    def stop_note(self) -> str | None:
        """A line about the stop tokens that the template adds to the model's own; None if it adds none."""
        if not self.rules.stop_tokens:
            return None
        added = " and ".join(self.rules.stop_tokens)
        texts = [str(token) for token in self.tokenizer.convert_ids_to_tokens(list(self.stop_ids))]
        own = ", ".join(text for text in texts if text not in self.rules.stop_tokens)
        return (
            f"stop tokens: the template ends answers with {added}, and the model's own settings stop on {own} alone; "
            f"answers end at {added} too, and generation_config.json beside the saved weights says so"
        )

    def encode(self, example: Example, number: int = 0) -> list[Encoded]:
        """The rows of an example: one, or one for each learned turn if the template rewrites earlier turns.

        An example with a rejected answer has two rows: the chosen and the rejected answer, each behind the prompt.

        Args:
            number: number of the example, for ``Encoded.example``.

        Raises:
            DataError: the example holds control tokens, the template refuses it, a turn cannot be learned, or the
                tokenizer gives up on it.
        """
        try:
            return self._rows(example, number)
        except UnencodableError as error:
            raise error.at(example.source) from error

    def _rows(self, example: Example, number: int) -> list[Encoded]:
        if example.text is not None:
            return [self._raw_text(example.text, example.source, number)]
        if example.rejected is not None:
            other = replace(example, messages=(*example.messages[:-1], example.rejected), rejected=None)
            return [*self._rows(replace(example, rejected=None), number), *self._rows(other, number)]
        conversation = self._conversation(example.messages, example.tools, example.source)
        try:
            rows = self._supervisor.rows(conversation, self._learned(example))
        except DataError as error:
            raise _starts_with_assistant(example, error) or error from error
        encoded = []
        for numbers, turns in rows:
            ids = np.array(numbers, dtype=np.int32)
            supervised = np.zeros(len(ids), dtype=bool)
            for turn in turns:
                supervised[len(turn.prompt) : turn.end + 1] = turn.labels
            check_row(ids, supervised, turns, self.stop_ids)
            encoded.append(Encoded(ids, supervised, example.source, number))
        return encoded

    def prompt_ids(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), *, source: str = "the prompt"
    ) -> list[int]:
        """The ids that generation sends: the messages with the generation prompt.

        Raises:
            DataError: the messages hold control tokens, the template refuses them, or the tokenizer gives up on them.
        """
        conversation = self._conversation(messages, tools, source)
        try:
            return self._encoder.tokens(conversation.prompt(len(messages))).ids
        except UnencodableError as error:
            raise error.at(source) from error

    def reference(self, example: Example) -> tuple[Sequence[Message], str]:
        """For evaluation by generation: the messages before the last learned turn, and that turn's content.

        Raises:
            DataError: the example is raw text, or has no turn to learn.
        """
        last = self._learned(example)[-1]
        return example.messages[:last], example.messages[last].content

    def apply_to(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Puts the templates in effect on a tokenizer, so that they are saved with it."""
        templates = dict(self.rules.templates)
        tokenizer.chat_template = cast(Any, templates if len(templates) > 1 else templates["default"])

    def describe(self) -> dict[str, Any]:
        """What is recorded with a run, plain JSON: the rules, and ``sha256`` of the default template's text."""
        recorded: dict[str, Any] = {name: getattr(self.rules, name) for name in TemplateRules.__slots__}
        recorded["templates"], recorded["kwargs"] = dict(self.rules.templates), dict(self.rules.kwargs)
        recorded["added_tokens"], recorded["stop_tokens"] = list(self.rules.added_tokens), list(self.rules.stop_tokens)
        return recorded | {"sha256": hashlib.sha256(self.text.encode()).hexdigest()}

    def _learned(self, example: Example) -> list[int]:
        """Indexes of the assistant turns to learn."""
        turns = [i for i, message in enumerate(example.messages) if message.role == "assistant" and message.train]
        if not turns:
            raise DataError(
                "no assistant turn to learn",
                where=example.source,
                remedy="give the row an assistant turn that is not train: false.",
            )
        return turns[-1:] if self.rules.train_on == "last" else turns

    def _conversation(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], source: str
    ) -> TemplatedConversation:
        name = "tool_use" if tools and "tool_use" in self._renderers else "default"
        turns = [message.to_template() for message in messages]
        if self._as_text:
            turns = [self._control.mark(turn, assistant=turn["role"] == "assistant") for turn in turns]
            tools = self._control.mark(tools)
        else:
            self._refuse_control_tokens(turns, tools, source)
        return TemplatedConversation(self._renderers[name], self._dialects[name], turns, tools, source)

    def _refuse_control_tokens(
        self, turns: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], source: str
    ) -> None:
        parts = [(f"a {turn['role']} turn", turn, turn["role"] == "assistant") for turn in turns]
        for part, value, assistant in [*parts, ("the tools", tools, False)]:
            found = self._control.find(value, assistant=assistant)
            if found is not None:
                raise DataError(
                    f"the control token {found} stands in the text of {part}",
                    where=source,
                    why="encoded as a token it would begin or end a turn in the middle of the text",
                    remedy="remove it, or set data.control_tokens: text to encode it as plain text.",
                )

    def text_ids(self, text: str, *, source: str = "the prompt") -> list[int]:
        """The ids that generation sends after training on raw text: the text with what the tokenizer puts before it.

        Raises:
            DataError: the tokenizer gives up on the text.
        """
        try:
            ids = self._text_ids(text)
        except UnencodableError as error:
            raise error.at(source) from error
        _, after = _own_special_ids(self.tokenizer)
        return ids[: len(ids) - len(after)]

    @property
    def text_end(self) -> int:
        """The token that ends a raw text."""
        eos = self.tokenizer.eos_token_id
        return eos if isinstance(eos, int) else self.stop_ids[0]

    def _text_ids(self, text: str) -> list[int]:
        """A raw text with the tokenizer's own special tokens."""
        if not self._as_text:
            with tokenizing(len(text)):
                return list(cast(Sequence[int], self.tokenizer(text, verbose=False)["input_ids"]))
        body = self._encoder.tokens(self._control.mark(text)).ids
        before, after = _own_special_ids(self.tokenizer)
        return [*before, *body, *after]

    def _raw_text(self, text: str, source: str, number: int) -> Encoded:
        """A text with the tokenizer's own special tokens and an end-of-text token. All but the first is learned."""
        if self._control.find(text) is not None and not self._as_text:
            self.notes.note(CONTROL_IN_RAW_TEXT, source)
        ids = self._text_ids(text)
        ids = ids if ids and ids[-1] == self.text_end else [*ids, self.text_end]
        supervised = np.ones(len(ids), dtype=bool)
        supervised[0] = False
        if not supervised.any():
            raise DataError("the text has no token to learn", where=source, remedy="remove the row.")
        return Encoded(np.array(ids, dtype=np.int32), supervised, source, number)

    def _unknown_end(self) -> str | None:
        """The control token that the template writes right behind an answer, if generation stops on nothing there."""
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _ANSWER}]
        views = [self._dialects["default"].view(turn) for turn in turns]
        try:
            text = self._renderers["default"].render(views, add_generation_prompt=False)
        except RenderError:
            return None
        _, found, tail = text.rpartition(_ANSWER)
        ids = TextEncoder(self.tokenizer).continuation(tail.lstrip()).ids
        if not found or not ids or not set(self.stop_ids).isdisjoint(ids):
            return None
        token = self.tokenizer.added_tokens_decoder.get(ids[0])
        return None if token is None else token.content

    def _frame(self) -> list[int]:
        """Ids that the template writes around a user turn: control tokens that no message may contain."""
        turn = self._dialects["default"].view({"role": "user", "content": "a"})
        try:
            text = self._renderers["default"].render([turn], add_generation_prompt=False)
        except RenderError:
            return []
        return TextEncoder(self.tokenizer).tokens(text).ids


def _starts_with_assistant(example: Example, error: DataError) -> DataError | None:
    """The message for a conversation that was refused and starts with the assistant; None if it does not.

    Most templates take no such conversation, and say of it something else: that roles must alternate, or an error of
    their own code, as there is no turn to write a prompt from.
    """
    roles = [message.role for message in example.messages if message.role not in ("system", "developer")]
    if roles[0] != "assistant":
        return None
    return DataError(
        "the conversation starts with the assistant, which the chat template cannot write",
        where=example.source,
        why=f"{error.what}: {error.why}" if error.why else error.what,
        remedy="put a user turn before its first turn, or remove that turn.",
    )


def _own_special_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer itself puts before and behind a text."""
    bare = list(cast(Sequence[int], tokenizer("a", add_special_tokens=False)["input_ids"]))
    framed = list(cast(Sequence[int], tokenizer("a")["input_ids"]))
    at = next(i for i in range(len(framed)) if framed[i : i + len(bare)] == bare)
    return framed[:at], framed[at + len(bare) :]


def _require_stop_ids(stop_ids: Sequence[int]) -> None:
    if not stop_ids:
        raise ModelError(
            "the model names no token that generation stops on",
            why="neither generation_config.json nor the tokenizer has an end-of-text token",
            remedy="set eos_token_id in the model's generation_config.json.",
        )
