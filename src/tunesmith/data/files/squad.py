"""SQuAD's files: articles of paragraphs with questions, under a key -> a row for each question, with its number.

https://rajpurkar.github.io/SQuAD-explorer: {"data": [{title, paragraphs: [{context, qas: [{id, question, answers:
[{text, answer_start}]}]}]}]}. The rows are those of the hub's datasets: {id, title, context, question, answers}.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from tunesmith.data.examples.message import describe
from tunesmith.data.files.json_layouts import under_key
from tunesmith.data.files.json_rows import row_of
from tunesmith.data.files.rows import BadRow, Block, Row, blocks_of_rows


def is_article(value: object) -> bool:
    """Whether an element is an article with paragraphs, of which the first has questions."""
    paragraphs = value.get("paragraphs") if isinstance(value, Mapping) else None
    first = paragraphs[0] if isinstance(paragraphs, list) and paragraphs else None
    return isinstance(first, Mapping) and "context" in first and isinstance(first.get("qas"), list)


def question_blocks(file: BinaryIO, name: str, key: str) -> Iterator[Block]:
    """The questions of the articles under a key, as rows that are made.

    Raises:
        DataError: the syntax is broken, or an element does not end.
    """

    def numbered() -> Iterator[tuple[int, Row | BadRow, int]]:
        number = 0
        for position, text in under_key(file, name, key):
            article = row_of(text, name, position)
            for found in [article] if isinstance(article, BadRow) else _questions(article.fields):
                number += 1
                if isinstance(found, BadRow):
                    yield number, found, len(found.raw)
                elif isinstance(found, str):
                    yield (
                        number,
                        BadRow(f"{name}:{number}", "paragraphs", found, "{context, qas: [...]}", text),
                        len(text),
                    )
                else:
                    size = sum(len(part) for part in found.values() if isinstance(part, str))
                    yield number, Row(found, f"{name}:{number}"), size

    return blocks_of_rows(numbered(), name)


def _questions(article: Mapping[str, Any]) -> Iterator[dict[str, Any] | str]:
    """The fields of each question, or what stands where paragraphs with questions should."""
    paragraphs = article.get("paragraphs")
    for paragraph in paragraphs if isinstance(paragraphs, list) else [paragraphs]:
        questions = paragraph.get("qas") if isinstance(paragraph, Mapping) else None
        are_questions = isinstance(questions, list) and all(isinstance(each, Mapping) for each in questions)
        if not isinstance(paragraph, Mapping) or not isinstance(questions, list) or not are_questions:
            yield describe(paragraph)
            continue
        for each in questions:
            found = {"id": each.get("id"), "title": article.get("title"), "context": paragraph.get("context")}
            yield {**found, "question": each.get("question"), "answers": each.get("answers")}
