"""What is kept of a row so that rows can be compared without holding them: fingerprints, lengths and marks.

A block of rows is looked at in a worker process and comes back as columns, one entry a row, in the order of the file.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np

from tunesmith.data.checks import near_duplicates
from tunesmith.data.checks.personal import masked
from tunesmith.data.checks.rules import RULES, look
from tunesmith.data.checks.scripts import NO_SCRIPT, knows_languages, language_of, script_of
from tunesmith.data.examples.column_values import MISSING, value_of
from tunesmith.data.examples.example import Example
from tunesmith.data.examples.message import Message
from tunesmith.data.files.reader import example_of
from tunesmith.data.files.rows import BadRow, Block, LeftOut, Row, RowStream
from tunesmith.data.finding import Sample
from tunesmith.recipe.data import SourceSettings

LABEL_LENGTH = 100  # characters, up to which an answer may be a label
TEXTS_KEPT = 2_000  # different labels, and openings, whose text is kept
SAMPLES_KEPT = 5  # of a rule
TOOLS_KEPT = 8  # names, for a message
SYSTEMS_KEPT = 2  # they tell whether all rows have the same
OPENING_WORDS = 3
OPENING_LENGTH = 500  # characters in which personal data is looked for before the first words are kept
LANGUAGE_SHARE = 50  # of one in so many rows the language is looked at, chosen by the row's fingerprint
WORD = re.compile(r"\w+")
RULE_NUMBERS = {name: number for number, name in enumerate(RULES)}
_two_numbers = struct.Struct(">QQ").unpack  # of 16 bytes
_COLUMNS = np.dtype(
    [
        ("line", np.int64),
        ("good", np.bool_),
        ("content", np.uint64, 2),
        ("prompt", np.uint64, 2),
        ("answer", np.uint64),
        ("opening", np.uint64),
        ("unit", np.uint64),
        ("draw", np.uint64),
        ("characters", np.int32),
        ("answer_characters", np.int32),
        ("marks", np.uint64),
        ("raw_text", np.bool_),
        ("label", np.bool_),
        ("calls", np.bool_),
        ("script", np.uint8),
        ("plain", np.uint64),
        ("left_out", np.bool_),
    ]
)
COLUMNS = _COLUMNS.names or ()
_BAD_ROW = (False, (0, 0), (0, 0), 0, 0, 0, 0, 0, 0, 0, False, False, False, 0, 0)  # behind its line


@dataclass(frozen=True, slots=True)
class Reading:
    """How the rows of a file become examples and facts. ``before`` and ``behind``: what all prompts have in common.

    Args:
        parse: makes rows of a block of the file.
        source: its columns and instruction.
        shape: of its rows.
        export: the name of the layout of exports.py that they have.
        group: the column whose value keeps rows on one side; rows without one stand by their prompt.
        seed: of the draw that holds rows out.
        mask: kinds of personal data to mask.
        near: whether near duplicates are wanted.
    """

    parse: Callable[[Block], RowStream]
    source: SourceSettings
    shape: str
    export: str | None = None
    group: str | None = None
    seed: int = 0
    mask: tuple[str, ...] = ()
    near: bool = True
    before: str = ""
    behind: str = ""


@dataclass(slots=True, kw_only=True, eq=False)
class RowFacts:
    """What is known of rows: columns [n], bad rows among them with zeros, and texts of some rows.

    ``content``, ``prompt``: fingerprints, uint64 [n, 2]. ``answer``, ``opening``, ``unit``: short ones, uint64; the
    unit is what a split keeps together, its draw is ``draw``. ``marks``: bit i is the i-th of RULES. ``script``: an
    index of ``scripts``. ``label``: the row calls its answer desirable. ``calls``: its answer calls tools. ``plain``:
    of the prompt in one case and without odd white space. ``samples``: by rule, at most SAMPLES_KEPT. ``labels``,
    ``openings``: text by fingerprint, at most TEXTS_KEPT. ``systems``: different system texts, None for rows
    without one; at most SYSTEMS_KEPT. ``tools``: names of tools that rows have, at most TOOLS_KEPT.
    ``masked``: items of personal data that were masked, by kind.
    """

    line: np.ndarray
    good: np.ndarray
    content: np.ndarray
    prompt: np.ndarray
    answer: np.ndarray
    opening: np.ndarray
    unit: np.ndarray
    draw: np.ndarray
    characters: np.ndarray
    answer_characters: np.ndarray
    marks: np.ndarray
    raw_text: np.ndarray
    label: np.ndarray
    calls: np.ndarray
    script: np.ndarray
    plain: np.ndarray
    left_out: np.ndarray
    scripts: list[str] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    labels: dict[int, str] = field(default_factory=dict)
    openings: dict[int, str] = field(default_factory=dict)
    languages: Counter[str] = field(default_factory=Counter)
    systems: list[str | None] = field(default_factory=list)
    tools: list[str] = field(default_factory=list)
    masked: Counter[str] = field(default_factory=Counter)


def with_systems(known: list[str | None], *new: str | None) -> list[str | None]:
    """The different ones among both, at most SYSTEMS_KEPT, in their order."""
    if len(known) == SYSTEMS_KEPT or all(text in known for text in new):
        return known
    return list(dict.fromkeys([*known, *new]))[:SYSTEMS_KEPT]


def with_tools(known: list[str], *new: str) -> list[str]:
    """The different names among both, at most TOOLS_KEPT, in their order."""
    return known if all(name in known for name in new) else list(dict.fromkeys([*known, *new]))[:TOOLS_KEPT]


@dataclass(slots=True, kw_only=True, eq=False)
class BlockFacts(RowFacts):
    """Those of the rows of a block. ``keys``, ``texts``: for near duplicates, of good rows."""

    keys: np.ndarray | None = None
    texts: list[str] = field(default_factory=list)


def examples_of(
    block: Block, reading: Reading, counts: Counter[str] | None = None
) -> Iterator[tuple[Row | None, Example | BadRow]]:
    """Each row of a block as what it becomes, masked where that is asked for. ``counts`` counts what was masked."""
    for row in reading.parse(block):
        if isinstance(row, BadRow):
            yield None, row
            continue
        made = example_of(row, reading.source, reading.shape, reading.export)
        yield row, mask(made, reading.mask, counts) if reading.mask and isinstance(made, Example) else made


def mask(example: Example, kinds: Sequence[str], counts: Counter[str] | None = None) -> Example:
    """The same example with personal data of these kinds replaced by their names: in turns, tool calls and tools."""

    def hidden(text: str) -> str:
        return masked(text, kinds, counts)

    if example.text is not None:
        return replace(example, text=hidden(example.text))
    rejected = None if example.rejected is None else _masked_turn(example.rejected, hidden)
    turns = tuple(_masked_turn(message, hidden) for message in example.messages)
    return replace(example, messages=turns, rejected=rejected, tools=_masked_json(example.tools, hidden))


def _masked_turn(message: Message, hidden: Callable[[str], str]) -> Message:
    reasoning = message.reasoning_content
    return replace(
        message,
        content=hidden(message.content),
        reasoning_content=None if reasoning is None else hidden(reasoning),
        tool_calls=_masked_json(message.tool_calls, hidden),
    )


def _masked_json(value: Any, hidden: Callable[[str], str]) -> Any:
    """Every text in a value of JSON, but the names of its keys."""
    if isinstance(value, str):
        return hidden(value)
    if isinstance(value, Mapping):
        return {key: _masked_json(item, hidden) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_masked_json(item, hidden) for item in value)
    return value


def facts_of(block: Block, reading: Reading) -> BlockFacts:
    """Everything that is kept of a block's rows."""
    facts = BlockFacts(**columns_of([]))
    noted: list[tuple[Any, ...]] = []
    for row, example in examples_of(block, reading, facts.masked):
        line = int(example.source.rpartition(":")[2])
        if isinstance(example, BadRow):
            facts.bad.append(example)
            noted.append((line, *_BAD_ROW, isinstance(example, LeftOut)))
        else:
            assert row is not None
            noted.append((line, *_note(facts, example, row, reading)))
            if example.text is None:
                facts.systems = with_systems(facts.systems, _system(example))
            if example.tools:
                facts.tools = with_tools(facts.tools, *map(_tool_name, example.tools))
    for name, column in columns_of(noted).items():
        setattr(facts, name, column)
    if reading.near:
        facts.texts = [near_duplicates.normalised(text) for text in facts.texts]
        facts.keys = near_duplicates.signatures(facts.texts)
    return facts


def _system(example: Example) -> str | None:
    """The text of the system turn that a conversation begins with."""
    return example.messages[0].content if example.messages[0].role == "system" else None


def _tool_name(tool: Mapping[str, Any]) -> str:
    """The name in a tool's definition, as OpenAI writes it or without ``function`` around it."""
    inner = tool.get("function")
    return str((inner if isinstance(inner, Mapping) else tool).get("name"))


def columns_of(noted: list[tuple[Any, ...]]) -> dict[str, Any]:
    """Arrays [n] by name, of rows that have their values in the order of COLUMNS."""
    table = np.array(noted, _COLUMNS)
    return {name: np.ascontiguousarray(table[name]) for name in COLUMNS}


def _note(facts: BlockFacts, example: Example, row: Row, reading: Reading) -> tuple[Any, ...]:
    """What the columns behind the line say of one row; whatever else is kept of it goes into the facts."""
    (prompt_key, content_key), answer = example.keys(), example.answer()
    prompt = prompt_text(example)
    own = prompt.removeprefix(reading.before).removesuffix(reading.behind)
    value = None if reading.group is None else value_of(row.fields, reading.group)
    value = None if value is MISSING else value
    value = int(value) if isinstance(value, float) and value.is_integer() else value
    together = prompt_key if value is None or value == "" else f"{value}"
    draw, unit = _two_numbers(hashlib.sha256(f"{reading.seed}\n{together}".encode(errors="replace")).digest()[:16])
    content, short = _fingerprint(content_key), _short(answer)
    if len(answer) <= LABEL_LENGTH and len(facts.labels) < TEXTS_KEPT:
        facts.labels[short] = answer
    marks = 0
    for hit in look(example):
        marks |= 1 << RULE_NUMBERS[hit.rule]
        samples = facts.samples.setdefault(hit.rule, [])
        if len(samples) < SAMPLES_KEPT:
            samples.append(Sample(example.source, hit.sample))
    script = script_of(own)
    if script == NO_SCRIPT:
        script = script_of(prompt)
    if script not in facts.scripts:
        facts.scripts.append(script)
    if content[0] % LANGUAGE_SHARE == 0 and knows_languages():
        facts.languages[language_of(own or prompt)] += 1
    if reading.near:
        facts.texts.append(f"{own}\n{answer}")
    return (
        True, content, _fingerprint(prompt_key), short, _opening(own, facts.openings), unit, draw,
        example.characters(), len(example.written_answer()), marks, example.text is not None, bool(example.label),
        example.answers_with_calls(), facts.scripts.index(script),
        _short(near_duplicates.normalised(prompt)) if reading.near else 0, False,
    )  # fmt: skip


def prompt_text(example: Example) -> str:
    """What stands before the last answer, turn by turn; a raw text as a whole."""
    if example.text is not None:
        return example.text
    return "\n".join(message.content for message in example.messages[: example.last_answer()])


def _opening(prompt: str, openings: dict[int, str]) -> int:
    number = _short(_first_words(prompt))
    if len(openings) < TEXTS_KEPT and number not in openings:
        openings[number] = _first_words(masked(prompt[:OPENING_LENGTH]))
    return number


def _first_words(text: str) -> str:
    return " ".join(match[0] for match in islice(WORD.finditer(text), OPENING_WORDS)).casefold()


def _fingerprint(text: str) -> tuple[int, int]:
    return _two_numbers(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest())


def _short(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "big")
