"""Tables whose columns have other names than Tunesmith's own fields."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial, update_wrapper
from pathlib import Path

from tests.door.content import ALL_TICKETS, LANGUAGES, TICKETS, articles, questions, translations
from tests.door.real_file import RealFile
from tests.door.spreadsheets import delimited


def write_json_lines(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """One object a line, with the characters as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def text_label(folder: Path) -> None:
    """A table for a classifier: text and label."""
    rows = [("text", "label"), *((ticket.body, ticket.label) for ticket in ALL_TICKETS)]
    (folder / "tickets.csv").write_bytes(delimited(rows, ",").encode())


def question_answer(folder: Path) -> None:
    """A list of questions: question and answer."""
    (folder / "faq.csv").write_bytes(delimited([("question", "answer"), *questions()], ",").encode())


def title_body(folder: Path) -> None:
    """Pages of a shop, as a content management system exports them: title and body among dates and addresses."""
    rows: list[tuple[object, ...]] = [("id", "title", "body", "language", "published", "url")]
    rows += [
        (number, title, body, language, f"2026-02-{number:02}", f"https://shop.example/{number}")
        for number, (title, body, language) in enumerate(articles(), 1)
    ]
    (folder / "pages.csv").write_bytes(delimited(rows, ",").encode())


def source_target(folder: Path) -> None:
    """Sentences and their translations: source and target."""
    (folder / "en-de.tsv").write_bytes(delimited([("source", "target"), *translations()], "\t", end="\n").encode())


def columns_in(folder: Path, language: str) -> None:
    """Questions and answers whose columns are named in the language of the rows."""
    rows = [LANGUAGES[language][0], *questions(language)]
    (folder / "faq.csv").write_bytes(delimited(rows, ",").encode())


def nested_columns(folder: Path) -> None:
    """Objects in objects, as an API answers: ticket.message.body is the text, ticket.triage.label the label."""
    rows: list[dict[str, object]] = [
        {
            "id": f"tck_{number:04}",
            "ticket": {
                "subject": ticket.subject,
                "message": {"body": ticket.body, "language": ticket.language},
                "triage": {"label": ticket.label, "confidence": 0.9},
            },
        }
        for number, ticket in enumerate(ALL_TICKETS)
    ]
    write_json_lines(folder / "tickets.jsonl", rows)


def two_columns_joined(folder: Path) -> None:
    """An input in two columns, subject and body, and the label: the prompt is both."""
    rows = [("subject", "body", "label"), *((ticket.subject, ticket.body, ticket.label) for ticket in ALL_TICKETS)]
    (folder / "mails.csv").write_bytes(delimited(rows, ",").encode())


def _language(language: str) -> RealFile:
    write: Callable[[Path], None] = update_wrapper(partial(columns_in, language=language), columns_in)
    write.__name__ = f"columns_in_{language}"
    (question, answer), rows = LANGUAGES[language][0], questions(language)
    return RealFile(
        write=write,
        path="faq.csv",
        rows=len(rows),
        shape="prompt_completion",
        columns={"prompt": question, "completion": answer},
        prompt=rows[0][0],
        answer=rows[0][1],
    )


_FIRST, _PAGE, _SENTENCE = questions()[0], articles()[0], translations()[0]

COLUMN_FILES = (
    RealFile(
        text_label,
        "tickets.csv",
        len(ALL_TICKETS),
        "prompt_completion",
        TICKETS[0].body,
        "billing",
        {"prompt": "text", "completion": "label"},
    ),
    RealFile(
        question_answer,
        "faq.csv",
        len(questions()),
        "prompt_completion",
        *_FIRST,
        {"prompt": "question", "completion": "answer"},
    ),
    RealFile(
        title_body,
        "pages.csv",
        len(articles()),
        "prompt_completion",
        *_PAGE[:2],
        {"prompt": "title", "completion": "body"},
        refusal="a title may be what is asked for, not what is given",
    ),
    RealFile(
        source_target,
        "en-de.tsv",
        len(translations()),
        "prompt_completion",
        *_SENTENCE,
        {"prompt": "source", "completion": "target"},
    ),
    *(_language(language) for language in LANGUAGES if language != "english"),
    RealFile(
        nested_columns,
        "tickets.jsonl",
        len(ALL_TICKETS),
        "prompt_completion",
        TICKETS[0].body,
        "billing",
        {"prompt": "ticket.message.body", "completion": "ticket.triage.label"},
    ),
    RealFile(
        two_columns_joined,
        "mails.csv",
        len(ALL_TICKETS),
        "prompt_completion",
        f"{TICKETS[0].subject}\n\n{TICKETS[0].body}",
        "billing",
        {"prompt": "{subject}\n\n{body}", "completion": "label"},
    ),
)
