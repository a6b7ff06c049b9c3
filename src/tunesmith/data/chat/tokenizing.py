"""What is said of a text that a tokenizer cannot encode.

A tokenizer is made from the files of a model, which may be anybody's. Its regular expressions give up on a text after
ten million steps of one match, with an error of Rust that no ``except Exception`` sees.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import thread_time

from tunesmith.errors import DataError

SECONDS = 10.0  # of computing for one text
CHARACTERS_A_SECOND = 10_000  # in place of it for a long one
_REMEDY = "change or leave out this text, or use the tokenizer of the original model."


class UnencodableError(DataError):
    """The tokenizer gives up on a text, or takes far too long for it."""

    def at(self, where: str) -> UnencodableError:
        """The same with the place of the text."""
        return UnencodableError(self.what, where=where, why=self.why, remedy=self.remedy)


def is_panic(error: BaseException) -> bool:
    """Whether Rust gave up. Its error is no Exception, and its class cannot be imported."""
    return type(error).__name__ == "PanicException"


@contextmanager
def tokenizing(characters: int, *, where: str | None = None) -> Iterator[None]:
    """Inside, a text of so many characters is encoded, or decoded.

    Args:
        where: of the text. Who knows it later gives it by ``UnencodableError.at``.

    Raises:
        UnencodableError: the tokenizer gave up, or took so long that a run would not end.
    """
    began = thread_time()
    try:
        yield
    except BaseException as error:
        if not is_panic(error):
            raise
        raise UnencodableError(
            "the tokenizer gives up on this text",
            where=where,
            why=f"It says: {error}. Most often one of its regular expressions takes too many steps on it.",
            remedy=_REMEDY,
        ) from error
    used, most = thread_time() - began, max(SECONDS, characters / CHARACTERS_A_SECOND)
    if used > most:
        raise UnencodableError(
            "the tokenizer takes too long for this text",
            where=where,
            why=f"It took {used:,.0f} s for {characters:,} characters; those of models take under a millisecond for "
            "a thousand.",
            remedy=_REMEDY,
        )
