"""Files of OpenAI's Batch API: requests in one file and answers in another, which are joined by ``custom_id``.

A request is {custom_id, method, url, body: {messages, ...}}, and an answer {custom_id, response: {status_code, body},
error}, in any order. https://platform.openai.com/docs/guides/batch
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tunesmith.data.examples.message import describe
from tunesmith.data.files.rows import BadRow, Block, LeftOut, Row, blocks_of_rows, ready_rows
from tunesmith.data.files.source_part import SourcePart
from tunesmith.errors import DataError

Kind = Literal["requests", "answers"]
MARK = b'"custom_id"'
FAILED, UNANSWERED = "failed", "not answered"
STOPPED = {"length": "cut off at the limit of tokens", "content_filter": "cut off by the content filter"}
APART = "put the files of each batch into a folder of their own, and name the folders as sources"
Answer = Mapping[str, Any] | str  # the choices and what stands beside them, or why there is none
SUFFIXES = frozenset({".jsonl", ".ndjson"})


def batch_kind(line: bytes) -> Kind | None:
    """What a file holds, by its first line."""
    if MARK not in line:
        return None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, Mapping) or "custom_id" not in row:
        return None
    if "response" in row and "error" in row:
        return "answers"
    body = row.get("body")
    return "requests" if isinstance(body, Mapping) and "messages" in body and "response" not in row else None


def read_answers(rows: Iterable[Row | BadRow]) -> dict[str, Answer]:
    """Each answer by its custom_id; where a request was tried again, the answer that did not fail.

    Raises:
        DataError: a line cannot be read, or two answers belong to one request.
    """
    found: dict[str, Answer] = {}
    for row in rows:
        if isinstance(row, BadRow):
            raise DataError(
                "an answer of the batch cannot be read",
                where=row.source,
                why=row.reason,
                remedy="download the output file again",
            )
        name, answer = str(row.fields.get("custom_id")), _answer(row.fields)
        if not isinstance(answer, str) and not isinstance(found.get(name, FAILED), str):
            raise DataError(
                f"two answers have the custom_id {name!r}",
                where=row.source,
                remedy=APART,
            )
        if name not in found or not isinstance(answer, str):
            found[name] = answer
    return found


def _answer(row: Mapping[str, Any]) -> Answer:
    response = row.get("response")
    body = response.get("body") if isinstance(response, Mapping) else None
    failed = row.get("error") is not None or not isinstance(body, Mapping) or not body.get("choices")
    if failed or (isinstance(response, Mapping) and response.get("status_code", 200) != 200):
        return FAILED
    assert isinstance(body, Mapping)
    return {"choices": body["choices"]}


def joined(rows: Iterable[Row | BadRow], answers: Mapping[str, Answer] | None) -> Iterator[Row | BadRow]:
    """The requests as conversations that end with their answers; without any answers, as they were asked."""
    seen: set[str] = set()
    for row in rows:
        if isinstance(row, BadRow):
            yield row
            continue
        name, body = str(row.fields.get("custom_id")), row.fields.get("body")
        messages = body.get("messages") if isinstance(body, Mapping) else None
        answer = {} if answers is None else answers.get(name, UNANSWERED)
        if name in seen:
            yield _bad(row, "custom_id", f"{name!r} a second time", "each custom_id once")
        elif not isinstance(body, Mapping) or not isinstance(messages, list):
            yield _bad(row, "body.messages", describe(messages), "a list of messages")
        elif isinstance(answer, str):
            yield LeftOut(row.source, "row", answer, "an answer", json.dumps(row.fields, ensure_ascii=False))
        else:
            yield _conversation(row, name, body, messages, answer)
        seen.add(name)


def _conversation(
    row: Row, name: str, body: Mapping[str, Any], messages: list[Any], answer: Mapping[str, Any]
) -> Row | BadRow:
    fields: dict[str, Any] = {"messages": messages} if answer else {"custom_id": name, "messages": messages}
    if body.get("tools"):
        fields["tools"] = body["tools"]
    if answer:
        choices = answer["choices"]
        if not isinstance(choices, list) or len(choices) > 1:
            return _bad(row, "response.body.choices", describe(choices), "one answer")
        choice = choices[0] if isinstance(choices[0], Mapping) else {}
        if choice.get("finish_reason") in STOPPED:
            stopped = STOPPED[choice["finish_reason"]]
            return LeftOut(row.source, "row", stopped, "a whole answer", json.dumps(row.fields, ensure_ascii=False))
        fields["messages"] = [*messages, choice.get("message")]
    return Row(fields, row.source)


def _bad(row: Row, field: str, found: str, expected: str) -> BadRow:
    return BadRow(row.source, field, found, expected, json.dumps(row.fields, ensure_ascii=False))


@dataclass(slots=True, kw_only=True)
class BatchPart(SourcePart):
    """The requests of a batch with their answers; without answers, as they were asked. The answers are held."""

    requests: SourcePart
    outputs: list[SourcePart]
    answers: dict[str, Answer] | None

    @property
    def choices(self) -> tuple[str, ...]:
        """What was chosen about how it is read, in words for the user."""
        if self.answers is None:
            return ("requests of an OpenAI batch",)
        names = ", ".join(part.name.rpartition("/")[2] for part in self.outputs)
        return (f"an OpenAI batch: each request with its answer in {names}, by custom_id",)

    def blocks(self) -> Iterator[Block]:
        rows = joined(self.requests.rows(), self.answers)
        sized = ((int(row.source.rpartition(":")[2]), row, len(str(row))) for row in rows)
        return blocks_of_rows(sized, self.name)

    def _hash(self) -> None:
        parts = [self.requests, *self.outputs]
        self._digest = hashlib.sha256("".join(part.sha256 for part in parts).encode()).hexdigest()


def with_batches(
    parts: Sequence[tuple[SourcePart, Kind | None]],
    beside: Sequence[tuple[SourcePart, Kind | None]],
    *,
    where: str,
    answered: bool,
) -> list[SourcePart]:
    """The files, with the requests of a batch joined with their answers.

    Args:
        parts: what was named, with what it holds; some of it is of a batch.
        beside: if a file was named, the others of its folder.
        where: what was named.
        answered: the answers are needed; else requests can be read alone.

    Raises:
        DataError: a batch's other file is not there, or which one it is cannot be told.
    """
    named = next(kind for _, kind in parts if kind)
    partners = [(part, kind) for part, kind in beside if kind not in (None, named)]
    files = [*parts, *partners]
    requests = [part for part, kind in files if kind == "requests"]
    outputs = [part for part, kind in files if kind == "answers"]
    if not requests or (answered and not outputs):
        part, kind = next(each for each in parts if each[1])
        single = part.name == where
        raise _half(kind, part.name, (where.rpartition("/")[0] or ".") if single else where)
    if partners and (answered or named == "answers"):
        _refuse_several(where, [part for part, _ in partners], f"{named} of an OpenAI batch")
        _refuse_shared([*(part for part, _ in parts), *(part for part, kind in beside if kind == named)])
    elif answered:
        _refuse_shared(requests)
    answers = read_answers(row for part in outputs for row in part.rows()) if answered else None
    batches = [
        BatchPart(part.name, ready_rows, same_columns=False, requests=part, outputs=outputs, answers=answers)
        for part in requests
    ]
    return [*batches, *(part for part, kind in parts if kind is None)]


def _refuse_several(where: str, partners: Sequence[SourcePart], what: str) -> None:
    if len(partners) > 1:
        names = ", ".join(part.name.rpartition("/")[2] for part in partners)
        raise DataError(
            f"these are the {what}, and several files beside it may be the other half",
            where=where,
            why=names,
            remedy=f"if all of them are of this batch, name the folder: {where.rpartition('/')[0] or '.'}; otherwise "
            f"{APART}",
        )


def _refuse_shared(parts: Sequence[SourcePart]) -> None:
    """Raises DataError if a custom_id stands in two files: then nothing tells whose answer is whose."""
    first: dict[str, str] = {}
    for part in parts if len(parts) > 1 else ():
        for row in part.rows():
            if isinstance(row, BadRow):
                continue
            name = str(row.fields.get("custom_id"))
            before = first.setdefault(name, part.name)
            if before != part.name:
                raise DataError(
                    f"two files of batches have the custom_id {name!r}",
                    where=row.source,
                    why=f"{before} has it too, so nothing tells which request an answer belongs to",
                    remedy=APART,
                )


def _half(kind: Kind | None, name: str, folder: str) -> DataError:
    """The error that a batch's other file is not there."""
    found, missing = ("requests", "answers") if kind == "requests" else ("answers", "requests")
    where = "output file, which OpenAI's page of the batch has," if kind == "requests" else "input file"
    return DataError(
        f"these are the {found} of an OpenAI batch, and its {missing} are in another file",
        where=name,
        why="both are joined by custom_id, and no such file is beside it",
        remedy=f"put the {where} of the batch beside it, and run the same command again, or name the folder: {folder}",
    )
