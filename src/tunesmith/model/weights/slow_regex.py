"""Regular expressions for the names of modules that take too long, found by trying them in another process.

The form of an expression does not tell whether it ends in time: that depends on the names, too. So each expression is
matched with the very names of the model, by the same matcher, in a process whose computing time and memory are limited.
"""

from __future__ import annotations

import functools
import json
import re
import signal
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tunesmith.errors import ModelError
from tunesmith.runs.child_processes import clean_environment, python_command

SECONDS = 2  # of computing, for all expressions and all names together
_WAIT_S = 120  # for the process, whatever else the machine does
_LONGEST = 20_000  # characters
_PLAIN = re.compile(r"(?:[\w.$^-]|\\\.)*", re.ASCII)  # without a repetition or a choice
_NAMES = ("target_modules", "exclude_modules", "feedforward_modules", "trainable_modules")
UNQUANTIZED = ("llm_int8_skip_modules", "modules_to_not_convert")  # in a quantization_config
_FORMS = {
    "modules_to_save": r"(^|.*\.){}($|\..*)",
    "layers_pattern": r"(?:^|.*?\.){}\.(?P<idx>\d+)\.",
    **dict.fromkeys(UNQUANTIZED, r"(?:{})(?:(?<=\.)|(?=\.|$))"),  # transformers' should_convert_module
}
_CHILD = """
import json, re, resource, signal, sys
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
try:
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
except (ValueError, OSError):  # some systems have no such limit
    pass
asked = json.load(sys.stdin)
signal.setitimer(signal.ITIMER_PROF, asked["seconds"])  # then SIGPROF ends this process
for number, (whole, pattern) in enumerate(asked["patterns"]):
    print(number, flush=True)
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        sys.exit(str(error))
    match = compiled.fullmatch if whole else compiled.match
    for name in asked["names"]:
        match(name)
"""


class _UntriedError(Exception):
    """No expression is to blame: the process that tries them did not get so far."""


def refuse_slow_patterns(config: Mapping[str, Any], names: Iterable[str], where: str, *, remedy: str) -> None:
    """Refuses regular expressions that cannot be read, or do not end in time on the names of a model.

    Args:
        config: of an adapter, a method or a quantization, by the keys of PEFT and transformers.
        names: of the modules and weights of the model.
        where: what goes before the key in the message.
        remedy: what to do.

    Raises:
        ModelError: it names the key. It says so if the expressions could not be tried.
    """
    asked = [(key, whole, pattern) for key, whole, pattern in _patterns(config) if not _PLAIN.fullmatch(pattern)]
    try:
        slow = _first_slow(tuple(asked), tuple(dict.fromkeys(names))) if asked else None
    except _UntriedError as error:
        raise ModelError(
            "a regular expression for the names of modules could not be tried",
            where=f"{where}{asked[0][0]}",
            why=f"Another process tries it before it is used. {error}",
            remedy="Run it again when the machine has memory and processes to spare (`ulimit -a` shows your limits). "
            "Or write plain names in place of the expression, which need no trial.",
        ) from error
    if slow is not None:
        key, why = slow
        raise ModelError(
            "a regular expression for the names of modules cannot be used",
            where=f"{where}{key}",
            why=why,
            remedy=remedy,
        )


def _patterns(config: Mapping[str, Any]) -> Iterator[tuple[str, bool, str]]:
    """(key, whether a whole name has to match, expression), in the forms in which they are matched later."""
    for key in _NAMES:  # in a list they are plain names
        if isinstance(config.get(key), str):
            yield key, True, config[key]
    numbers = {key: r"(.*\.)?({})$" for key in config if key.endswith("_pattern") and key not in _FORMS}
    for key, form in (_FORMS | numbers).items():
        given = config.get(key) or ()
        for each in [given] if isinstance(given, str) else given if isinstance(given, Mapping | list) else ():
            yield key, False, str(each) if _PLAIN.fullmatch(str(each)) else form.replace("{}", str(each))


@functools.lru_cache(maxsize=16)
def _first_slow(asked: tuple[tuple[str, bool, str], ...], names: tuple[str, ...]) -> tuple[str, str] | None:
    """The key of the first expression that does not end in time, and what it is in words; None if all do.

    Raises:
        _UntriedError: they could not be tried. It is not cached.
    """
    for key, _, pattern in asked:
        if len(pattern) > _LONGEST:
            return key, f"It has {len(pattern):,} characters, and {_LONGEST:,} are read."
    patterns = [[whole, pattern] for _, whole, pattern in asked]
    text = json.dumps({"patterns": patterns, "names": names, "seconds": SECONDS})
    try:
        done = subprocess.run(
            python_command("-I", "-S", "-c", _CHILD),
            input=text,
            text=True,
            capture_output=True,
            timeout=_WAIT_S,
            env=clean_environment(),
            check=False,
        )
    except subprocess.TimeoutExpired:  # a slow expression has ended it by its computing time
        raise _UntriedError(f"It did not get {SECONDS} s of computing within {_WAIT_S} s.") from None
    except OSError as failed:
        raise _UntriedError(f"It cannot be started: {failed}") from failed
    code, tried = done.returncode, done.stdout.split()
    if code == 0:
        return None
    last = (done.stderr.strip().splitlines() or [f"exit {code}"])[-1]
    if code == -signal.SIGKILL or not tried:  # killed from outside, as for want of memory, or before the first one
        raise _UntriedError(f"It ended too early: {last}")
    key, _, pattern = asked[int(tried[-1])]
    shown = f"{pattern[:120]!r}{' ...' if len(pattern) > 120 else ''}"
    if code == -signal.SIGPROF:
        return key, f"Matching {shown} with the {len(names):,} names of the model took over {SECONDS} s of computing."
    return key, f"Matching {shown} with the {len(names):,} names of the model failed: {last}"
