"""Documents -> rows {text}: plain text, Markdown, reStructuredText, HTML, and the text of a PDF's pages."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import BinaryIO

from tunesmith.data.files.rows import BadRow, Block, Row, RowStream, line_blocks, refuse_too_large, text_chunks
from tunesmith.errors import DataError, pip_install

TEXT = ".txt"
MARKUP = (".md", ".markdown", ".rst")
HTML = (".html", ".htm")
DOCUMENTS = (TEXT, *MARKUP, *HTML)
LEFT_OUT = ("script", "style", "noscript", "template", "nav", "[hidden]")  # of a page, beside what no browser shows
BLANK_LINE = re.compile(rb"\n[^\S\n]*\n")
PAGE_END = re.compile(r"\n\f|\f\n")
LINES_OF_A_PAGE = 200  # more lines for each form feed: they are in the text by chance
PAGE_NUMBER = re.compile(r"\W*(?:(?:page|seite|p\.) )?(\d{1,5})(?: ?(?:/|of|von) ?\d{1,5})?\W*", re.IGNORECASE)


def text_blocks(file: BinaryIO, name: str) -> Iterator[Block]:
    """The lines of a text file.

    Raises:
        DataError: the file is UTF-16, or a line does not end.
    """
    return line_blocks(text_chunks(file, name), name)


def text_rows(block: Block) -> RowStream:
    """One document a line that is not blank, as {text}."""
    for number, line in enumerate(block.payload.split(b"\n"), start=block.start):
        yield from _document(line, f"{block.name}:{number}")


def paragraph_blocks(file: BinaryIO, name: str) -> Iterator[Block]:
    """The lines of a text file, cut at blank ones.

    Raises:
        DataError: the file is UTF-16, or a paragraph does not end.
    """
    start, size, rest = 1, 0, []  # rest: lines of a paragraph that has not ended
    for block in text_blocks(file, name):
        before = b"\n" if size else b""  # the lines before have ended
        cut = max((match.end() for match in BLANK_LINE.finditer(before + block.payload)), default=0) - len(before)
        if cut > 0:
            lines = b"".join([*rest, block.payload[:cut]])
            yield Block(name, start, lines)
            start += lines.count(b"\n")
            rest, size = [], 0
        rest.append(block.payload[max(cut, 0) :])
        size += len(rest[-1])
        refuse_too_large(size, name, start, "leave a blank line between paragraphs")
    if size:
        yield Block(name, start, b"".join(rest))


def paragraph_rows(block: Block) -> RowStream:
    """One document a run of lines that are not blank, as {text}; it is named by its first line."""
    lines: list[bytes] = []
    for number, line in enumerate([*block.payload.split(b"\n"), b""], start=block.start):
        if line.strip():
            lines.append(line)
        elif lines:
            yield from _document(b"\n".join(lines), f"{block.name}:{number - len(lines)}")
            lines = []


def document_blocks(file: BinaryIO, name: str) -> Iterator[Block]:
    """The whole file.

    Raises:
        DataError: the file is UTF-16, or too large for one document.
    """
    chunks, size = [], 0
    for chunk in text_chunks(file, name):
        chunks.append(chunk)
        size += len(chunk)
        refuse_too_large(size, name, 1, "cut the file into several, or set data.sample_by: paragraph")
    yield Block(name, 1, b"".join(chunks))


def document_rows(block: Block) -> RowStream:
    """One document, as {text}, without blank lines around it; none of a blank file."""
    yield from _document(block.payload, f"{block.name}:1")


def _document(data: bytes, source: str) -> RowStream:
    """One row, or none where nothing but white space is in it. Line ends of Windows become plain ones."""
    try:
        text = data.decode().replace("\r\n", "\n").lstrip("\n").rstrip("\r\n")
    except UnicodeDecodeError as error:
        begin = data.rfind(b"\n", 0, error.start) + 1
        line, number = data[begin:].partition(b"\n")[0], data.count(b"\n", 0, begin) + 1
        found = f"the byte 0x{data[error.start]:02x} at byte {error.start - begin + 1} of the line"
        within = "" if number == 1 else f", line {number} of the document"
        yield BadRow(source, "row", found + within, "UTF-8", line.rstrip(b"\r").decode(errors="backslashreplace"))
        return
    if text.strip():
        yield Row({"text": text}, source)


def has_pages(text: str) -> bool:
    """Whether it is the text of a PDF: form feeds between lines, one for each page."""
    ends = len(PAGE_END.findall(text))
    return bool(ends) and ends == text.count("\f") and text.count("\n") <= LINES_OF_A_PAGE * (ends + 1)


def page_blocks(file: BinaryIO, name: str) -> Iterator[Block]:
    """The whole text of a PDF, without form feeds and page numbers; each line keeps its number.

    Raises:
        DataError: the file is too large for one document.
    """
    for block in document_blocks(file, name):
        text = block.payload.decode(errors="surrogateescape")
        yield Block(name, 1, _without_pages(text).encode(errors="surrogateescape"))


def _without_pages(text: str) -> str:
    """A number goes only where it counts the pages: it is the first or last line of each, and grows by one.

    A page without one is passed over. Half of the pages must have one, and at least two of them.
    """
    pages = [page.split("\n") for page in text.split("\f")]
    for first in (False, True):
        found = {}  # page: (line, number)
        for index, lines in enumerate(pages):
            filled = [number for number, line in enumerate(lines) if line.strip()]
            if filled and (match := PAGE_NUMBER.fullmatch(lines[filled[0 if first else -1]].strip())):
                found[index] = filled[0 if first else -1], int(match[1])
        starts = [number - index for index, (_, number) in found.items()]
        usual = max(set(starts), key=starts.count, default=0)
        counting = {index: line for index, (line, number) in found.items() if number - index == usual}
        if len(counting) >= max(2, sum(any(line.strip() for line in lines) for lines in pages) / 2):
            for index, line in counting.items():
                pages[index][line] = ""
    return "".join("\n".join(lines) for lines in pages)


def html_rows(block: Block, rows: Callable[[Block], RowStream]) -> RowStream:
    """The text of a page: without scripts, styles and navigation; paragraphs, lists and tables stay apart.

    Raises:
        DataError: the library that reads HTML is not installed.
    """
    try:
        from resiliparse.extract.html2text import extract_plain_text  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise DataError(
            f"{error.name} reads HTML, and it is not installed",
            where=block.name,
            remedy=f"{pip_install('html')}, or save the pages as .txt",
        ) from error
    try:
        page = block.payload.decode()
    except UnicodeDecodeError:
        yield from document_rows(block)  # which says where
        return
    text = extract_plain_text(page, preserve_formatting=True, alt_texts=False, skip_elements=list(LEFT_OUT))
    yield from rows(Block(block.name, 1, text.encode()))
