"""What a call from Python says in place of flags and keys of a recipe: the names of its own arguments."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from tunesmith.data.examples.column_names import ColumnsUnclear
from tunesmith.errors import DataError, TunesmithError

ROWS = "the rows"  # what a message calls those that are no file of the user's
_COLUMNS = re.compile(r"data\.columns: \{((?:[^{}]|\{[^{}]*\})*)\}")
_READING = re.compile(r'data\.(header|delimiter|encoding|sheet|key|sample_by): ("[^"]*"|[^\s,;]+)')
_FLAG = re.compile(r"(?<![\w`=-])--(resume|overwrite|trust-remote-code|allow-functions)\b")
_COMMAND = re.compile(r"`tunesmith train ([^`]+?) --(resume|overwrite)`")
_ALLOW = re.compile(r"`?(?<![\w=-])--allow-changes ([a-z]+(?:,[a-z]+)*)`?")
_VALUE_FLAG = re.compile(r"(?<![\w`=-])--(model|method|out|html|card|data)\b(?: (?=[A-Z]{2}))?")
_KEY = re.compile(
    r"\bdata\.(columns|format|instruction|on_error|header|delimiter|encoding|sheet|key|sample_by): "
    r'(\{(?:[^{}]|\{[^{}]*\})*\}|"[^"]*"|[^\s,;]+)'
)


@contextmanager
def remedies_in_python(
    *,
    of_rows: bool = False,
    of_file: bool = False,
    reading: str = "settings",
    stored: Mapping[Path, str] = MappingProxyType({}),
) -> Iterator[None]:
    """Makes errors name arguments of a function.

    Args:
        of_rows: whether the call takes ``columns``, ``format`` and ``instruction``. Else they are keys of a recipe.
        of_file: whether the call takes such keys of other rows with their section, in the argument ``reading``.
        reading: the argument that takes what is said of how a file is read.
        stored: files of rows that were handed over, and what messages call them.
    """
    try:
        yield
    except TunesmithError as error:
        if of_file and error.remedy:
            error.remedy = _KEY.sub(lambda found: f"{reading}={_key(found[1], found[2])}", error.remedy)
        raise _translated(error, of_rows=of_rows, reading=reading, stored=stored) from error.__cause__


def _key(name: str, value: str) -> str:
    """``["data.columns={prompt: a}"]``."""
    return f"[{json.dumps(f'data.{name}={value.strip(chr(34))}', ensure_ascii=False)}]"


def _translated(error: TunesmithError, *, of_rows: bool, reading: str, stored: Mapping[Path, str]) -> TunesmithError:
    where, why, remedy = error.where, error.why, error.remedy
    if remedy and of_rows:
        remedy = _in_arguments(remedy, reading)
    if remedy and "in Python" not in remedy:
        remedy = _COMMAND.sub(lambda found: f"`tunesmith.train({_argument(found[1])}, {found[2]}=True)`", remedy)
        remedy = _ALLOW.sub(lambda found: f"allow_changes={json.dumps(found[1].split(','))}", remedy)
        remedy = _FLAG.sub(lambda found: f"{found[1].replace('-', '_')}=True", remedy)
        remedy = _VALUE_FLAG.sub(r"\1=", remedy)
    if isinstance(error, ColumnsUnclear) and error.proposal is not None and of_rows:
        proposal = error.proposal
        given = f"columns={json.dumps(dict(proposal.columns), ensure_ascii=False)}"
        settings = [key.removeprefix("data.").partition("=") for key in proposal.keys]
        keys = "".join(f" and {reading}=[{_setting(name, value, reading)}]" for name, _, value in settings)
        why = "\n".join([f"{proposal.reason}:", *(f"  {sample}" for sample in proposal.samples)])
        otherwise = _in_arguments(proposal.otherwise, reading) if proposal.otherwise else remedy
        remedy = f"if that is right, set {given}{keys}; otherwise {otherwise}"
    for file, name in stored.items():
        where, why, remedy = (part and _named(part, file, name) for part in (where, why, remedy))
    if (where, why, remedy) == (error.where, error.why, error.remedy):
        return error
    kind = DataError if isinstance(error, ColumnsUnclear) else type(error)
    return kind(error.what, where=where, why=why, remedy=remedy)


def _in_arguments(remedy: str, reading: str) -> str:
    """The remedy with arguments of a function in place of keys of a recipe."""
    remedy = _COLUMNS.sub(lambda found: f"columns={_mapping(found[1])}", remedy)
    remedy = _READING.sub(lambda found: f"{reading}=[{_setting(found[1], found[2], reading)}]", remedy)
    remedy = re.sub(r"data\.format: (\w+)", r'format="\1"', remedy)
    remedy = remedy.replace("one data.instruction for", "one instruction=... for")
    return re.sub(r"data\.(format|instruction)\b", r"\1", remedy)


def _named(text: str, file: Path, name: str) -> str:
    """The text with the name of a file of rows, and ``row 3`` for its third line."""
    of = name.removeprefix(ROWS)
    return re.sub(
        rf"{re.escape(str(file))}(?::(\d+))?", lambda found: f"row {found[1]}{of}" if found[1] else name, text
    )


def _argument(word: str) -> str:
    """What a shell's word names, as Python writes it; RECIPE stands for what the caller has."""
    return "recipe" if word == "RECIPE" else json.dumps(" ".join(shlex.split(word)), ensure_ascii=False)


def _mapping(pairs: str) -> str:
    """``prompt: a, completion: b`` as a dict is written."""
    found = dict(part.strip().split(":", 1) for part in pairs.split(",") if ":" in part)
    return json.dumps({field: column.strip() for field, column in found.items()}, ensure_ascii=False)


def _setting(key: str, value: str, reading: str) -> str:
    """``"data.header=false"``: `init` takes keys with their section, `check` and `prepare` those of the section."""
    value = value.strip(chr(34))
    return json.dumps(f"{'data.' if reading == 'overrides' else ''}{key}={value}", ensure_ascii=False)
