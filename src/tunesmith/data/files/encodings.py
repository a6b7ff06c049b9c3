"""The encoding of a text file, found from its bytes: a mark, UTF-8, or a code page."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from tunesmith.data.files.rows import BLOCK_BYTES, INVALID_BYTES
from tunesmith.errors import DataError

MARKS = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"))
MARKS += ((codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
MOST_SCANNED = 2**26  # bytes that are searched for the first that is not ASCII
ENOUGH = 200  # characters of several bytes without a fault: the file is UTF-8
SAMPLE = 2**20
CHAOS, COHERENCE = 0.01, 0.02  # charset-normalizer's measures differ by no more than this between equal candidates
USUAL = "cp1252"
CENTRAL = ("cp1250", "iso8859_2")  # whose words, such as Czech ones, may also look like western ones in cp1252
LATIN_PAGES = (USUAL, "cp1250", "cp1254", "cp850", "mac_roman")
# Other code pages, such as cp775 or johab, are found by chance in texts with few other letters.
COMMON = frozenset((
    "big5", "cp1250", "cp1251", "cp1252", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp850", "cp866", "cp932",
    "cp949", "euc_jp", "euc_kr", "gb18030", "gbk", "iso8859_15", "iso8859_2", "iso8859_5", "iso8859_7", "iso8859_9",
    "koi8_r", "koi8_u", "mac_roman", "shift_jis", "tis_620",
))  # fmt: skip
MOST_SHOWN = 5  # encodings
SURE = 0.5  # coherence
MOSTLY = 0.8  # ASCII
WESTERN = frozenset("äöüßàâæçéèêëîïôœùûüÿáíóúñãõìòøåÄÖÜÀÂÆÇÉÈÊËÎÏÔŒÙÛŸÁÍÓÚÑÃÕÌÒØÅ")
WITHIN_WORDS = "’‘´·–—\xad"  # marks that stand between letters, too
NO_LETTERS = "ºª²³¼½¾µ"  # which Python counts as letters or digits
ABOUT_WORDS = frozenset(f"{WITHIN_WORDS}{NO_LETTERS}€„“”‚…«»‹›°§£©®™•¡¿×±\xa0")
LONGEST_ALONE, FEW_FOREIGN = 2, 0.1  # letters of a word without ASCII, such as "à" and "öä"; share of longer ones
_WORD = re.compile(r"[^\W\d_]+")
_ODD_MARK = re.compile(rf"(?<=[A-Za-z])(?:[{NO_LETTERS}]|(?![{WITHIN_WORDS}])[^\x00-\x7f\w\s])(?=[A-Za-z])")
_ODD_CAPITAL = re.compile(rf"(?<=[a-z])[{''.join(filter(str.isupper, map(chr, range(0xC0, 0x180))))}]")
_HUNGARIAN = re.compile(r"\A[^ä]*õ(?!e)[^ä]*\Z")  # ő in cp1252: Portuguese has õ before e, Estonian has ä too
_HALF_WIDTH = re.compile("[\uff61-\uff9f]{3}")
_CELL_WORD, LONGEST_EXAMPLE = re.compile(r"[^\s;,|\"]+"), 40  # a word of a table's cell, and characters of it
CHARSET = re.compile(rb"""<meta[^>]+charset\s*=\s*["']?([\w.:-]+)""", re.IGNORECASE)
HEAD_OF_A_PAGE = 1024  # bytes in which HTML wants its charset
LATIN = ("iso-8859-1", "latin-1", "latin1", "ascii", "us-ascii")  # which HTML takes for cp1252


@dataclass(frozen=True, slots=True)
class Encoding:
    """``name`` is Python's; ``said`` tells the user, and is empty for UTF-8."""

    name: str
    said: str = ""


UTF8 = Encoding("utf-8")


def charset_of(head: bytes) -> Encoding | None:
    """The encoding that an HTML page names for itself, where it is known and is not UTF-8."""
    found = CHARSET.search(head[:HEAD_OF_A_PAGE])
    name = found[1].decode().lower() if found else ""
    try:
        name = codecs.lookup(USUAL if name in LATIN else name).name
        "".encode(name)
    except (LookupError, ValueError):
        return None
    return None if name == UTF8.name else Encoding(name, f"encoding {name}, as the page says")


def mark_of(head: bytes) -> str | None:
    """The encoding whose byte order mark a file begins with; None for UTF-8, with or without one."""
    return next((name for mark, name in MARKS if head.startswith(mark)), None)


def known_encoding(asked: str, where: str) -> Encoding:
    """The encoding of the recipe.

    Raises:
        DataError: there is none of this name.
    """
    try:
        name = codecs.lookup(asked).name
        "".encode(name)
    except (LookupError, ValueError):
        raise DataError(
            f"there is no encoding {asked!r}",
            where=where,
            remedy="set data.encoding to a name that Python knows, such as utf-8, cp1252, cp1250, cp932 or utf-16",
        ) from None
    return Encoding(name, f"encoding {asked}, as data.encoding says")


def find_encoding(chunks: Iterator[bytes], name: str) -> Encoding:
    """UTF-16 and UTF-32 by their mark, then UTF-8, then the code page that charset-normalizer finds.

    A few invalid bytes in UTF-8 do not make it another encoding: their rows are bad rows. Reading stops as soon as the
    bytes tell, and after MOST_SCANNED of them.

    Args:
        chunks: the file's bytes from its beginning.
        name: of the file, for the message.

    Raises:
        DataError: several code pages fit, and they give other letters.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    several = faults = scanned = kept = 0
    sample: list[bytes] = []
    rest = b""
    for number, chunk in enumerate(chunks):
        if number == 0 and (marked := mark_of(chunk)):
            return Encoding(marked, f"encoding {marked.upper()}, by its mark")
        if number == 0 and b"\0" in chunk[:1000]:
            return UTF8  # no code page has zeros; UTF-16 without a mark is refused later
        scanned += len(chunk)
        text = decoder.decode(chunk)
        if not text.isascii():
            found = len(INVALID_BYTES.findall(text))
            faults += found
            several += sum(char > "\x7f" for char in text) - found
            lines = (rest + chunk).splitlines(keepends=True)
            rest = lines.pop() if lines and not lines[-1].endswith(b"\n") else b""
            few = [line for line in lines if not line.isascii()] if scanned > SAMPLE else lines
            sample += few if kept < SAMPLE else []
            kept += sum(map(len, few))
        if (several >= ENOUGH and not faults) or kept >= SAMPLE or scanned >= MOST_SCANNED:
            break
    if faults <= several:  # in a code page hardly any two bytes look like a character of UTF-8
        return UTF8
    return _code_page(b"".join([*sample, rest])[: 2 * SAMPLE], name)


def _code_page(data: bytes, name: str) -> Encoding:
    from charset_normalizer import from_bytes

    matches = [match for match in from_bytes(data) if not match.encoding.startswith("utf")]
    western = _is_western(data)
    if not matches and not western:
        return UTF8  # its bad rows say so
    best = matches[0] if matches else None
    chosen = USUAL
    if best is not None and not (western and best.encoding not in CENTRAL):
        equal = [
            match
            for match in matches
            if match.chaos <= best.chaos + CHAOS and match.coherence >= best.coherence - COHERENCE
        ]
        usual = USUAL in best.could_be_from_charset or any(USUAL in match.could_be_from_charset for match in equal)
        same = USUAL in best.could_be_from_charset
        chosen = USUAL if same or (usual and not _speaks_against(data.decode(USUAL, "replace"))) else best.encoding
        rare = best.encoding not in COMMON and best.coherence < SURE and _is_latin(data)
        if chosen != USUAL and (usual or len(equal) > 1 or rare or _oddities(data.decode(chosen, "replace"))):
            raise _undecided(data, [match.encoding for match in equal], name)
    return Encoding(chosen, f"encoding {chosen} (for example {_example(data, chosen)!r})")


def _is_latin(data: bytes) -> bool:
    return sum(byte < 0x80 for byte in data) > len(data) * MOSTLY


def _speaks_against(text: str) -> bool:
    """Whether what was read as cp1252 has letters in places where no western language has them."""
    return _oddities(text) > 0 or _HUNGARIAN.search(text) is not None


def _oddities(text: str) -> int:
    """Marks within words, capitals behind small letters, and runs of half-width kana."""
    return sum(len(each.findall(text)) for each in (_ODD_MARK, _ODD_CAPITAL, _HALF_WIDTH))


def _is_western(data: bytes) -> bool:
    """Whether all of it is text of a western language in cp1252: its letters among others, and marks between words.

    Read as cp1252, Cyrillic and Greek are words of such letters alone, other code pages have marks within words, and
    those of DOS and the Mac capitals behind small letters.
    """
    try:
        text = data.decode(USUAL)
    except UnicodeDecodeError:
        return False
    others = {char for char in text if not char.isascii()}
    if not others <= WESTERN | ABOUT_WORDS or _speaks_against(text):
        return False
    words = [word for word in _WORD.findall(text) if not word.isascii()]
    foreign = sum(len(word) > LONGEST_ALONE and not any(map(str.isascii, word)) for word in words)
    return foreign <= FEW_FOREIGN * len(words)


def _undecided(data: bytes, encodings: list[str], name: str) -> DataError:
    """The error, with a line that differs in the encodings; of Latin text, in those that its programs write."""
    if _is_latin(data):
        read = {each: data.decode(each, "replace") for each in (*LATIN_PAGES, *encodings[:2])}
        encodings = sorted(read, key=lambda each: _oddities(read[each]) + read[each].count("\ufffd"))
    lines = [line for line in data.splitlines() if not line.isascii()] or [b""]
    differ = (line for line in lines if len({line.decode(each, "replace") for each in encodings[:2]}) > 1)
    line = next(differ, lines[0])
    shown = [f"{encoding}: {line.decode(encoding, 'replace')[:80]!r}" for encoding in encodings[:MOST_SHOWN]]
    return DataError(
        "the file is not UTF-8, and several encodings fit it",
        where=name,
        why="the same line in each: " + "; ".join(shown),
        remedy=f"set data.encoding: {encodings[0]}, or another of them, or save the file as UTF-8",
    )


def _example(data: bytes, encoding: str) -> str:
    """The first word that is not ASCII, whole, without the separators of a table around it."""
    for line in data.splitlines():
        if not line.isascii():
            text = line.decode(encoding, "replace")
            words = _CELL_WORD.findall(text)
            return next((word for word in words if not word.isascii()), (words or [""])[0])[:LONGEST_EXAMPLE]  # EBCDIC
    return ""


class _Transcoded(io.RawIOBase):
    """A file's text as UTF-8. What its encoding does not allow stays as it is, so its row is a bad row."""

    def __init__(self, file: BinaryIO, encoding: str, name: str) -> None:
        self._file, self._encoding, self._name = file, encoding, name
        self._decoder = codecs.getincrementaldecoder(encoding)("surrogateescape")
        self._ready = b""
        self._ended = False

    def readable(self) -> bool:
        """True: it is there to be read."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  (the base names no buffer's type)
        """Fills the buffer as far as there is something; 0 at the end."""
        while not self._ready and not self._ended:
            chunk = self._file.read(BLOCK_BYTES // 4)
            self._ended = not chunk
            try:
                text = self._decoder.decode(chunk, final=self._ended)
                self._ready = text.encode("utf-8", "surrogateescape")
            except UnicodeError as error:  # of UTF-16, UTF-32 and UTF-7, where what follows cannot be told either
                raise DataError(
                    f"the file cannot be read in the encoding {self._encoding}",
                    where=self._name,
                    why=str(error),
                    remedy="take data.encoding out if it is set, so that the encoding is found, or save the file as "
                    "UTF-8",
                ) from None
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        return size


def transcoded(file: BinaryIO, encoding: str, name: str) -> BinaryIO:
    """The same text in UTF-8; the file itself where it is that already."""
    if encoding in ("utf-8", "ascii", "utf-8-sig"):
        return file
    return io.BufferedReader(_Transcoded(file, encoding, name), 2**18)
