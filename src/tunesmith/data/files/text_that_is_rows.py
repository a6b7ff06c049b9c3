"""Lines of a .txt file that look like the rows of a table or of JSON: what they are for, the user says."""

from __future__ import annotations

import json
import shlex
from itertools import islice

from tunesmith.data.examples.column_names import known_names
from tunesmith.data.files.locations import parts_of
from tunesmith.data.files.marked_turns import CONVERSATIONS, INPUTS, PAIRS, find_marks
from tunesmith.data.files.opening import suffix_of
from tunesmith.data.files.quoting import fits, records_of
from tunesmith.data.files.rows import BLOCK_BYTES, Row
from tunesmith.data.files.tables import DELIMITERS, NAMES
from tunesmith.errors import DataError
from tunesmith.recipe.data import SourceSettings

LINES, FEWEST = 100, 3
PARAGRAPHS = 1000  # in which marks are looked for
_FASTTEXT = "__label__"


def refuse_rows_in_text(source: SourceSettings) -> None:
    """Stops at a .txt file whose lines would be learned as raw text although they look like rows.

    Args:
        source: nothing is refused where it says how the file is read.

    Raises:
        DataError: with both ways to read it.
    """
    plain = source.format == "auto" and not source.columns and source.delimiter is None
    if not plain or source.sample_by != "auto" or suffix_of(source.path)[0] != ".txt":
        return
    part = parts_of(source, "train")[0][0]
    found = [row.fields for row in islice(part.rows(), LINES) if isinstance(row, Row)]
    lines = [str(fields["text"]) for fields in found if fields.keys() == {"text"}]
    looks = _looks(lines, source.path) if len(lines) >= FEWEST and len(lines) == len(found) else None
    if looks is None:
        return
    what, remedy = looks
    raise DataError(
        f"the lines of this text file look like {what}",
        where=source.path,
        why=f"the first is {lines[0]!r:.80}; a .txt file is raw text, of which each line is learned as it stands",
        remedy=f"to read them as rows, {remedy}; to learn the lines as raw text, add data.format: text",
    )


def with_marked_turns(source: SourceSettings) -> SourceSettings:
    """The source with the format of questions and answers, where a .txt file surely holds those behind marks.

    Args:
        source: it is not changed where it says how the file is read.

    Raises:
        DataError: the file has such marks, and may be read in several ways.
    """
    plain = source.format == "auto" and not source.columns and source.delimiter is None
    if not plain or source.sample_by != "auto" or suffix_of(source.path)[0] != ".txt":
        return source
    part = parts_of(source.model_copy(update={"sample_by": "paragraph"}), "train")[0][0]
    try:
        found = [row.fields for row in islice(part.rows(), PARAGRAPHS) if isinstance(row, Row)]
    except DataError:  # it has no paragraphs
        return source
    marks = find_marks("\n\n".join(str(fields["text"]) for fields in found if fields.keys() == {"text"})[:BLOCK_BYTES])
    if marks is None:
        return source
    shape = PAIRS if source.instruction is None else INPUTS
    if marks.sure:
        return source.model_copy(update={"format": shape})
    ways = [f"if each {marks.answer}: answers what stands before it, set data.format: {shape}"]
    if marks.speakers and source.instruction is None:
        ways.append(f"if a blank line ends a conversation of several turns, set data.format: {CONVERSATIONS}")
    ways.append("to learn each line as raw text, set data.format: text")
    raise DataError(
        f"the lines of this text file look like {marks.question}: and {marks.answer}: in turn, and how they belong "
        "together is not sure",
        where=source.path,
        why=f"the first two are {marks.shown}",
        remedy="; ".join(ways),
    )


def _looks(lines: list[str], path: str) -> tuple[str, str] | None:
    """What the lines look like, and what reads them so."""
    if all(line.startswith(_FASTTEXT) for line in lines):
        table, at = shlex.quote(f"{path.removesuffix('.txt')}.tsv"), len(_FASTTEXT) + 1
        parts = f'{{l = substr($1, {at}); $1 = ""; print l "\\t" substr($0, 2)}}'
        command = f"(printf 'label\\ttext\\n'; awk '{parts}' {shlex.quote(path)}) > {table}"
        return "fastText's labels before texts", f"make a table of them: {command}"
    if all(map(_is_object, lines)):
        return "JSON objects", "give the file the ending .jsonl"
    text = "".join(f"{line}\n" for line in lines)
    for each in DELIMITERS:
        header = (records_of(lines[0], each) or [[]])[0]
        if fits(text, each) and (each == "\t" or len(known_names(header)) > 1):
            key = "tab" if each == "\t" else f'"{each}"'
            return f"a table with the separator {NAMES[each]}", f"set data.delimiter: {key}"
    return None


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
