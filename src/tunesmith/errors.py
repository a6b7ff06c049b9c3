"""The errors that a user can cause. A bug is never one of these, so it keeps its traceback."""

from __future__ import annotations

import errno

from tunesmith.safe_text import without_known_secrets

_NO_MEMORY = (  # of torch, CUDA, its libraries, C++, and Python, whose threads need memory for their stacks
    "allocate memory", "out of memory", "ALLOC_FAILED", "bad_alloc", "can't start new thread",
)  # fmt: skip
_NOT_MAPPED = "failed to map segment"  # what glibc says of a library for which there is no memory


def ran_out(error: BaseException) -> bool:
    """Whether an error means that memory ran out. torch's errors are told by name and text, so torch is not needed."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if kinds & {"MemoryError", "OutOfMemoryError"}:
        return True
    text = str(error)
    if "ImportError" in kinds:
        return _NOT_MAPPED in text
    return bool(kinds & {"RuntimeError", "SafetensorError"}) and any(part in text for part in _NO_MEMORY)


def pip_install(extra: str) -> str:
    """The command that installs what an extra of pyproject.toml needs."""
    return f"pip install 'tunesmith[{extra}]'"


class TunesmithError(Exception):
    """A message in four parts: what happened, where, why, and what to do.

    Args:
        what: what happened, in one sentence. Secrets are left out of all four parts.
        where: ``file:line``, a recipe key or a folder.
        why: what was found and what was expected.
        remedy: what the user can do now.
    """

    exit_code = 1

    def __init__(
        self, what: str, *, where: str | None = None, why: str | None = None, remedy: str | None = None
    ) -> None:
        self.what = without_known_secrets(what)
        self.where, self.why, self.remedy = (part and without_known_secrets(part) for part in (where, why, remedy))
        super().__init__(self.render())

    def render(self) -> str:
        """The message as the command line prints it, with one line for each part."""
        head = f"{self.where}: {self.what}" if self.where else self.what
        rest = [self.why, f"What to do: {self.remedy}" if self.remedy else None]
        return "\n".join([head, *(f"  {line}" for part in rest if part for line in part.splitlines())])

    def to_json(self) -> dict[str, str | None]:
        """The same parts for ``--json``."""
        return {
            "error": type(self).__name__,
            "what": self.what,
            "where": self.where,
            "why": self.why,
            "remedy": self.remedy,
        }


class RecipeError(TunesmithError):
    """A setting is unknown, of the wrong type, out of bounds or contradicts another."""


class DataError(TunesmithError):
    """The data cannot be read, or a row cannot be used as it stands."""


class ModelError(TunesmithError):
    """The model or its tokenizer cannot be found, read or used."""


class RunError(TunesmithError):
    """A run folder is missing, in use, finished, or belongs to another recipe."""


class TrainError(TunesmithError):
    """Training started and cannot continue: memory or disk is full, or a value is not finite."""

    exit_code = 3


class NotFiniteError(TrainError):
    """A loss, a gradient, a weight or the optimizer's state became infinite or not a number, and the run stopped."""

    exit_code = 4


class ExportError(TunesmithError):
    """A trained model cannot be written in the requested form."""
