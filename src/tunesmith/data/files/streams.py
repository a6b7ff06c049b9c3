"""Bytes as they come: from a store, hashed on the way, unpacked, and never more than a buffer of them at once."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import shutil
import tempfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import BinaryIO, Protocol, cast

from tunesmith.data.files.downloads import READ_AT_ONCE, refuse_endless
from tunesmith.data.files.expansion import Expansion
from tunesmith.data.files.rows import BLOCK_BYTES
from tunesmith.errors import DataError

BUFFER_BYTES = 2**18
IN_MEMORY_BYTES = 2**24  # a larger packed file that must be unpacked whole lies on the disk meanwhile
DICTIONARY_BYTES = 2**28  # that unpacking may need: four times what `xz -9` makes; zstd's reader has half of it
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"


class HashedFile(io.RawIOBase):
    """A store's file: what is read in order is hashed, and the driver's errors come as data errors.

    ``most``: the bytes after which it has no end, for files of the network.
    """

    def __init__(
        self,
        file: BinaryIO,
        reading: Callable[[], AbstractContextManager[None]],
        *,
        name: str = "",
        most: int | None = None,
    ) -> None:
        self.digest = hashlib.sha256()
        self.in_order = True
        self._name, self._most, self._taken = name, most, 0
        self._file, self._reading = file, reading

    def readable(self) -> bool:
        """True: it is there to be read."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  (the base names no buffer's type)
        """Fills the buffer as far as the store gives; 0 at the end."""
        with self._reading():
            data = self._file.read(min(len(buffer), READ_AT_ONCE))
        self._taken += len(data)
        if self._most is not None:
            refuse_endless(self._taken, self._most, self._name)
        self.digest.update(data)
        buffer[: len(data)] = data
        return len(data)

    def seekable(self) -> bool:
        """Whether the store can go back and forth."""
        with self._reading():
            return self._file.seekable()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Goes elsewhere; the digest is then none of the whole file."""
        self.in_order = False
        with self._reading():
            return self._file.seek(offset, whence)

    def tell(self) -> int:
        """The position in bytes."""
        with self._reading():
            return self._file.tell()


class _Reads(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Counted(io.RawIOBase):
    """A packed file, with the bytes that were read of it."""

    def __init__(self, file: io.BufferedReader) -> None:
        self.taken = 0
        self._file = file

    def readable(self) -> bool:
        """True: it is there to be read."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  (the base names no buffer's type)
        """Fills the buffer as far as there is something; 0 at the end."""
        found = self._file.readinto(buffer)
        self.taken += found
        return found


class _Unpacked(io.RawIOBase):
    """A packed file's contents; damage, and far more of them than a packed file has, is a data error."""

    def __init__(self, file: io.BufferedReader, suffix: str, name: str) -> None:
        counted = _Counted(file)
        self._file = COMPRESSIONS[suffix](io.BufferedReader(counted, BUFFER_BYTES))
        self._suffix, self._name = suffix, name
        self._expansion = Expansion(name, lambda: counted.taken, "unpack it yourself and name the unpacked file")

    def readable(self) -> bool:
        """True: it is there to be read."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  (the base names no buffer's type)
        """Fills the buffer as far as there is something; 0 at the end."""
        try:
            data = self._file.read(len(buffer))
        except (OSError, EOFError, ValueError, MemoryError, zlib.error, lzma.LZMAError) as error:
            if isinstance(error, MemoryError) or _asks_for_memory(error):
                raise DataError(
                    f"the {self._suffix} file needs too much memory to be unpacked",
                    where=self._name,
                    why="it was packed with a dictionary that is larger than usual" if str(error) else None,
                    remedy=f"unpack it yourself ({_UNPACK[self._suffix]}), and name the unpacked file",
                ) from error
            raise DataError(f"the {self._suffix} file is damaged", where=self._name, why=str(error)) from error
        self._expansion.add(len(data))
        buffer[: len(data)] = data
        return len(data)


class _Lzma:
    """What an .xz or .lzma file holds, stream by stream, with a limit on the dictionary that its head asks for."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._stream: lzma.LZMADecompressor | None = None
        self._began = False

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes, none at the end. Raises LZMAError or EOFError for a damaged file."""
        while True:
            # 1. A stream that has ended may be followed by zeros, in fours, and by another one.
            if self._stream is None or self._stream.eof:
                left = (b"" if self._stream is None else self._stream.unused_data).lstrip(b"\0")
                while not left and (data := self._file.read(BUFFER_BYTES)):
                    left = data.lstrip(b"\0") if self._began else data
                if not left:
                    if not self._began:
                        raise EOFError("Compressed file ended before the end-of-stream marker was reached")
                    return b""
                self._stream, self._began = lzma.LZMADecompressor(memlimit=DICTIONARY_BYTES), True
            # 2. More of its bytes, where it asks for some.
            else:
                left = self._file.read(BUFFER_BYTES) if self._stream.needs_input else b""
                if self._stream.needs_input and not left:
                    raise EOFError("Compressed file ended before the end-of-stream marker was reached")
            found = self._stream.decompress(left, max_length=size)
            if found:
                return found


def _asks_for_memory(error: BaseException) -> bool:
    """Whether a file was refused for the size of its dictionary: the words of liblzma and of zstd."""
    return any(words in str(error) for words in ("Memory usage limit", "too much memory"))


def _zstd(file: BinaryIO) -> _Reads:
    import pyarrow as pa  # its reader refuses a file that is cut off, and the package zstandard's does not

    return pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd")


COMPRESSIONS: Mapping[str, Callable[[BinaryIO], _Reads]] = {
    ".gz": lambda file: gzip.GzipFile(fileobj=file),
    ".bz2": bz2.BZ2File,
    ".xz": _Lzma,
    ".zst": _zstd,
}

_UNPACK = {".gz": "gunzip", ".bz2": "bunzip2", ".xz": "xz -d", ".zst": "zstd -d --long=31"}


def buffered(raw: io.RawIOBase) -> io.BufferedReader:
    """The same bytes, in as large pieces as are asked for."""
    return io.BufferedReader(raw, BUFFER_BYTES)


def unpacked(file: io.BufferedReader, compression: str | None, name: str) -> io.BufferedReader:
    """What a file holds, by the ending that says how it is packed."""
    if compression is None:
        return file
    return buffered(_Unpacked(file, compression, name))


def seekable(file: BinaryIO) -> BinaryIO:
    """The file, or, where it cannot go back and forth, a copy that can: in memory if it is small, else on the disk."""
    if file.seekable():
        return file
    copy = tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES)  # noqa: SIM115 - it is handed on
    shutil.copyfileobj(file, copy, BLOCK_BYTES)
    copy.seek(0)
    return cast(BinaryIO, copy)


def refuse_pointer(file: io.BufferedReader, name: str) -> None:
    """A repository that was cloned without git-lfs holds a few lines of text in place of each large file.

    Raises:
        DataError: the file is such a pointer.
    """
    if file.peek(len(LFS_POINTER))[: len(LFS_POINTER)] == LFS_POINTER:
        raise DataError(
            "this is a git-lfs pointer, not the data",
            where=name,
            why="the repository was cloned without its large files",
            remedy="run `git lfs pull` in it",
        )


def drain(file: io.BufferedReader) -> None:
    """Reads to the end."""
    while file.read(BLOCK_BYTES):
        pass
