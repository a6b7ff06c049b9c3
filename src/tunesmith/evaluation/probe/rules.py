"""The rules that check an answer of the probe. A check is a mapping of rules to their values; all of them must hold.

To add a rule, add it to RULES with a name, what its value must be, and a function of the answer and the value. This
module does not import torch.
"""

from __future__ import annotations

import functools
import math
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import regex

from tunesmith.data.checks.scripts import script_of
from tunesmith.data.files.json_rows import parse_json
from tunesmith.errors import DataError
from tunesmith.evaluation.metrics.json_answers import same_json
from tunesmith.evaluation.metrics.number_match import last_number
from tunesmith.evaluation.refusals import refuses

SLOWEST = 1.0  # seconds that a pattern may search in one answer
LONGEST_PATTERN = 1000  # characters
_SCRIPTS_WITH_SPACES = ("Latin", "Cyrillic", "Greek")  # whose words are found as wholes; others add endings to words
_THOUGHTS = regex.compile(r"<think>.*?(?:</think>|\Z)", regex.DOTALL)
_FENCE = regex.compile(r"\A```[\w+-]*[ \t]*\n(.*?)\n?```\Z", regex.DOTALL)
_NOT_WORDS_AROUND = regex.compile(r"\A[\W_]+|[\W_]+\Z")
_SPACES = regex.compile(r"\s+")
_ITEM = regex.compile(r"^[ \t]*(?:[-*•–]|[0-9]+[.)])[ \t]+\S", regex.MULTILINE)


@dataclass(frozen=True, slots=True)
class AnswerRule:
    """One rule: what its value must be, whether a value is so, and whether an answer keeps the rule."""

    expected: str
    fits: Callable[[Any], bool]
    holds: Callable[[str, Any], bool]


def is_right(check: Mapping[str, Any], answer: str) -> bool:
    """Whether an answer keeps all rules of a check. What stands in ``<think>`` is not the answer.

    Raises:
        DataError: a pattern searches longer than SLOWEST.
    """
    text = unicodedata.normalize("NFC", _THOUGHTS.sub("", answer)).strip()
    return bool(text) and all(RULES[name].holds(text, value) for name, value in check.items())


def plain(text: str) -> str:
    """A text for comparison: small letters, single spaces, and no punctuation around it."""
    text = _spaced(text)
    return _NOT_WORDS_AROUND.sub("", text) or text.strip()


def _spaced(text: str) -> str:
    return _SPACES.sub(" ", unicodedata.normalize("NFC", text)).casefold()


@functools.lru_cache(maxsize=4096)
def _found(part: str) -> regex.Pattern[str]:
    """A pattern for a part of an answer. At a letter of a script with spaces, a word must begin or end there."""
    part = _spaced(part).strip()
    before = r"(?<!\w)" if _needs_an_end(part[0]) else ""
    after = r"(?!\w)" if _needs_an_end(part[-1]) else ""
    return regex.compile(f"{before}{regex.escape(part, literal_spaces=True)}{after}")


def _needs_an_end(character: str) -> bool:
    return character.isdigit() or script_of(character) in _SCRIPTS_WITH_SPACES


def _contains(answer: str, part: str) -> bool:
    return _found(part).search(_spaced(answer)) is not None


def _matches(answer: str, pattern: str) -> bool:
    try:
        return regex.search(pattern, answer, timeout=SLOWEST) is not None
    except TimeoutError:
        raise DataError(
            f"A pattern of the probe searches an answer for more than {SLOWEST:g} second",
            where=pattern[:200],
            why=f"The answer begins with {answer[:80]!r}. Repeats inside repeats can take time without end.",
            remedy="Make the pattern simpler, such as without + inside a group with +.",
        ) from None


def _is_pattern(value: Any) -> bool:
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST_PATTERN:
        return False
    try:
        regex.compile(value)
    except (regex.error, RecursionError, OverflowError):
        return False
    return True


def _json_holds(answer: str, wanted: Mapping[str, Any]) -> bool:
    fence = _FENCE.match(answer)
    try:
        found = parse_json(fence[1] if fence else answer)
    except ValueError:
        return False
    if "keys" in wanted and (not isinstance(found, dict) or found.keys() != set(wanted["keys"])):
        return False
    return "equals" not in wanted or same_json(found, wanted["equals"])


def _is_json_wanted(value: Any) -> bool:
    return isinstance(value, Mapping) and value.keys() <= {"keys", "equals"} and _is_texts(value.get("keys", ["x"]))


def _words(text: str) -> int:
    return sum(regex.search(r"\w", part) is not None for part in text.split())


def _has_case(answer: str, case: str) -> bool:
    wanted, other = (answer.upper(), answer.lower()) if case == "upper" else (answer.lower(), answer.upper())
    return answer == wanted and wanted != other


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_text, value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_range(value: Any) -> bool:
    if _is_count(value):
        return True
    return isinstance(value, list) and len(value) == 2 and all(map(_is_count, value)) and value[0] <= value[1]


def _in_range(number: int, wanted: Any) -> bool:
    low, high = wanted if isinstance(wanted, list) else (wanted, wanted)
    return low <= number <= high


def _list(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]


def _one_or_more(value: Any) -> bool:
    return _is_text(value) or _is_texts(value)


_RANGE = "a whole number, or [least, most]"
RULES: dict[str, AnswerRule] = {
    "exact": AnswerRule("a text", _is_text, lambda answer, text: plain(answer) == plain(text)),
    "one_of": AnswerRule("a list of texts", _is_texts, lambda answer, texts: plain(answer) in map(plain, texts)),
    "contains": AnswerRule(
        "a text, or a list of texts that all must be there",
        _one_or_more,
        lambda answer, texts: all(_contains(answer, text) for text in _list(texts)),
    ),
    "contains_any": AnswerRule(
        "a list of texts", _is_texts, lambda answer, texts: any(_contains(answer, text) for text in texts)
    ),
    "lacks": AnswerRule(
        "a text, or a list of texts of which none may be there",
        _one_or_more,
        lambda answer, texts: not any(_contains(answer, text) for text in _list(texts)),
    ),
    "regex": AnswerRule(f"a regular expression of at most {LONGEST_PATTERN} characters", _is_pattern, _matches),
    "number": AnswerRule("a number", _is_number, lambda answer, number: last_number(answer) == Decimal(str(number))),
    "json": AnswerRule(
        "an object with keys (a list of texts), equals (any value), or neither", _is_json_wanted, _json_holds
    ),
    "words": AnswerRule(_RANGE, _is_range, lambda answer, wanted: _in_range(_words(answer), wanted)),
    "lines": AnswerRule(
        _RANGE, _is_range, lambda answer, wanted: _in_range(sum(map(bool, map(str.strip, answer.splitlines()))), wanted)
    ),
    "items": AnswerRule(_RANGE, _is_range, lambda answer, wanted: _in_range(len(_ITEM.findall(answer)), wanted)),
    "case": AnswerRule("upper or lower", lambda value: value in ("upper", "lower"), _has_case),
    "starts_with": AnswerRule("a text", _is_text, lambda answer, text: answer.startswith(text)),
    "ends_with": AnswerRule("a text", _is_text, lambda answer, text: answer.endswith(text)),
    "refusal": AnswerRule(
        "true or false", lambda value: isinstance(value, bool), lambda answer, wanted: refuses(answer) == wanted
    ),
}
