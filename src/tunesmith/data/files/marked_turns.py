"""A .txt file of questions and answers behind marks, such as ``Q:`` and ``A:`` -> rows, if its format asks for them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import BinaryIO

from tunesmith.data.examples.column_names import ANSWERED, LETTERS, pair_names, short
from tunesmith.data.files.formats import Format
from tunesmith.data.files.rows import (
    INVALID_BYTES,
    NOT_UTF8,
    BadRow,
    Block,
    Row,
    blocks_of_rows,
    line_blocks,
    printed,
    ready_rows,
    refuse_too_large,
    text_chunks,
)

FEWEST, MOST_OTHERS = 3, 0.1  # pairs; share of questions and answers that stand alone
PAIRS, CONVERSATIONS, INPUTS = "prompt_completion", "messages", "alpaca"  # formats in which such a file has rows
MARK = re.compile(r"[\s>*#_-]*([^\W\d_]{1,14})(?:\s*\d{1,6})?[*_]*\s?[:：][*_]*\s*(.*)", re.DOTALL)
RULE = re.compile(r"\s*([-=*_])\1{2,}\s*")
SPEAKERS = (
    "user human customer client benutzer nutzer kunde usuario usuário utente utilisateur gebruiker użytkownik "
    "пользователь 用户 ユーザー",
    "assistant ai bot chatbot agent model gpt chatgpt assistent asistente assistente asystent ассистент помощник 助手 "
    "アシスタント",
)


@dataclass(frozen=True, slots=True)
class Marks:
    """The words before questions and answers, and what the beginning of the file shows of them.

    ``sure``: the file has pairs. ``speakers``: the words name people. ``several``: a paragraph, or the whole text, may
    be a conversation of several turns. ``sample``: the first pair.
    """

    question: str
    answer: str
    sure: bool
    speakers: bool
    several: bool
    sample: tuple[str, str]

    @property
    def shown(self) -> str:
        """The first pair, for the user."""
        return f"{short(self.sample[0])!r} -> {short(self.sample[1])!r}"


@dataclass(slots=True)
class _Turn:
    line: int
    asks: bool
    lines: list[str]
    after_gap: bool  # a blank line or a rule stands before it

    @property
    def text(self) -> str:
        return "\n".join(self.lines).strip()


def find_marks(text: str) -> Marks | None:
    """The marks of a text that begins with a question; None where it does not, or has too few pairs.

    Args:
        text: the beginning of a file.
    """
    found = [match for line in text.splitlines() if (match := MARK.match(line))]
    if not found or MARK.match(text.lstrip()) is None:
        return None
    question = found[0][1].casefold()
    answer = next((word for match in found if (word := match[1].casefold()) != question), "")
    if not _belong(question, answer):
        return None
    found_turns = _turns(enumerate(text.splitlines(), start=1), question, answer)
    turns = [turn for turn in found_turns if not isinstance(turn, BadRow)]
    pairs = [(one, other) for one, other in pairwise(turns) if one.asks and not other.asks]
    if len(pairs) < FEWEST:
        return None
    speakers = question in SPEAKERS[0].split()
    others = len(turns) - 2 * len(pairs)
    gaps = sum(turn.after_gap for turn in turns[1:] if turn.asks)
    several = speakers and (gaps < len(pairs) - 1 or any(answered.after_gap for _, answered in pairs))
    return Marks(
        question=found[0][1],
        answer=next(match[1] for match in found if match[1].casefold() == answer),
        sure=others <= MOST_OTHERS * len(turns) and not several,
        speakers=speakers,
        several=several,
        sample=(pairs[0][0].text, pairs[0][1].text),
    )


def turns_format(marks: Marks, shape: str) -> Format:
    """How the file becomes rows of the shape: PAIRS, CONVERSATIONS or INPUTS."""
    blocks = partial(_blocks, question=marks.question.casefold(), answer=marks.answer.casefold(), shape=shape)
    return Format(blocks, ready_rows, same_columns=True)


def _belong(question: str, answer: str) -> bool:
    names = pair_names(ANSWERED)
    return f"{question} {answer}" in LETTERS or any(
        question in asking.split() and answer in answering.split() for asking, answering in (names, SPEAKERS)
    )


def _turns(lines: Iterable[tuple[int, str]], question: str, answer: str, name: str = "") -> Iterator[_Turn | BadRow]:
    """The turns in order. A line without a mark belongs to the turn before it; a rule ends one."""
    turn: _Turn | None = None
    gap = False
    for number, line in lines:
        match = MARK.match(line)
        word = match[1].casefold() if match else ""
        if match and word in (question, answer):
            if turn is not None:
                yield turn
            turn = _Turn(number, word == question, [match[2]], gap)
            gap = False
        elif not line.strip() or RULE.fullmatch(line):
            gap = True
            if turn is not None and not line.strip():
                turn.lines.append("")
        else:
            gap = False
            if turn is None:
                yield BadRow(f"{name}:{number}", "row", "a text before the first question", "a question", line)
                continue
            turn.lines.append(line.rstrip())
    if turn is not None:
        yield turn


def _lines(file: BinaryIO, name: str) -> Iterator[tuple[int, str]]:
    number = 0
    for block in line_blocks(text_chunks(file, name), name):
        lines = block.payload.decode(errors="surrogateescape").split("\n")
        for number, line in enumerate(lines[: -1 if lines[-1] == "" else None], start=block.start):
            yield number, line.rstrip("\r")


def _blocks(file: BinaryIO, name: str, *, question: str, answer: str, shape: str) -> Iterator[Block]:
    """Blocks of rows that are made.

    Raises:
        DataError: the file is UTF-16, or a row does not end.
    """
    turns = _turns(_lines(file, name), question, answer, name)
    rows = _conversations(turns, name) if shape == CONVERSATIONS else _pairs(turns, name, shape)
    return blocks_of_rows(((line, _checked(row), size) for line, row, size in rows), name)


def _pairs(turns: Iterator[_Turn | BadRow], name: str, shape: str) -> Iterator[tuple[int, Row | BadRow, int]]:
    fields = ("input", "output") if shape == INPUTS else ("prompt", "completion")
    asked: _Turn | None = None
    for turn in turns:
        if isinstance(turn, BadRow):
            yield _line(turn), turn, len(turn.raw)
        elif turn.asks:
            if asked is not None:
                yield asked.line, _alone(asked, name), len(asked.text)
            asked = turn
        elif asked is None:
            yield turn.line, _alone(turn, name), len(turn.text)
        else:
            row = Row({fields[0]: asked.text, fields[1]: turn.text}, f"{name}:{asked.line}")
            yield asked.line, row, len(asked.text) + len(turn.text)
            asked = None
    if asked is not None:
        yield asked.line, _alone(asked, name), len(asked.text)


def _conversations(turns: Iterator[_Turn | BadRow], name: str) -> Iterator[tuple[int, Row | BadRow, int]]:
    """A blank line or a rule before a question, behind an answer, ends a conversation."""
    taken: list[_Turn] = []
    for turn in turns:
        if isinstance(turn, BadRow):
            yield _line(turn), turn, len(turn.raw)
            continue
        if taken and turn.asks and turn.after_gap and not taken[-1].asks:
            yield _conversation(taken, name)
            taken = []
        taken.append(turn)
        refuse_too_large(sum(len(each.text) for each in taken), name, taken[0].line)
    if taken:
        yield _conversation(taken, name)


def _conversation(turns: list[_Turn], name: str) -> tuple[int, Row, int]:
    messages = [{"role": "user" if turn.asks else "assistant", "content": turn.text} for turn in turns]
    row = Row({"messages": messages}, f"{name}:{turns[0].line}")
    return turns[0].line, row, sum(len(turn.text) for turn in turns)


def _alone(turn: _Turn, name: str) -> BadRow:
    found, expected = ("a question", "an answer behind it") if turn.asks else ("an answer", "a question before it")
    return BadRow(f"{name}:{turn.line}", "row", f"{found} alone", expected, turn.text)


def _checked(row: Row | BadRow) -> Row | BadRow:
    """The row, or that its text is not UTF-8."""
    if isinstance(row, Row):
        turns = row.fields.get("messages")
        texts = [turn["content"] for turn in turns] if turns else row.fields.values()
        raw = "\n".join(texts)
        if not raw.isascii() and INVALID_BYTES.search(raw):
            return BadRow(row.source, "row", NOT_UTF8, "UTF-8", printed(raw))
        return row
    return BadRow(row.source, row.field, row.found, row.expected, printed(row.raw))


def _line(row: BadRow) -> int:
    return int(row.source.rpartition(":")[2])
