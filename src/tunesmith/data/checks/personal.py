"""Personal data and secrets inside a text: found without a network and without a model, and masked.

Precision comes first, since every find is a row that somebody has to look at: bank accounts and cards count only with
valid check digits, phone numbers only in a form that nothing else has.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from importlib.util import find_spec

from tunesmith.data.checks.scripts import TextSpan
from tunesmith.errors import DataError, pip_install
from tunesmith.safe_text import secret_places

KINDS = ("email", "phone", "iban", "card", "secret")


@dataclass(frozen=True, slots=True)
class Found:
    """One item: its kind, one of ``KINDS``, and its place ``text[start:end]``."""

    kind: str
    start: int
    end: int


def personal_data(text: str, kinds: Collection[str] = KINDS) -> list[Found]:
    """The personal data of a text, sorted by place and without overlaps.

    What looks like two kinds at once, such as a password with an ``@``, is of the first kind in this order: secret,
    email, iban, card, phone. Phone numbers are looked for if ``finds_phones``.
    """
    finders = {"secret": secret_places}
    if "@" in text:
        finders["email"] = _emails
    if _has_long_number(text):
        finders |= {"iban": _ibans, "card": _cards}
        if finds_phones():
            finders["phone"] = _phones
    spans = [(kind, span) for kind, finder in finders.items() if kind in kinds for span in finder(text)]
    if not spans:
        return []
    taken = bytearray(len(text))
    found = []
    for kind, (start, end) in spans:
        if 1 not in taken[start:end]:
            taken[start:end] = b"\1" * (end - start)
            found.append(Found(kind, start, end))
    return sorted(found, key=lambda item: item.start)


def masked(text: str, kinds: Collection[str] = KINDS, counts: Counter[str] | None = None) -> str:
    """The same text with ``[email]``, ``[phone]``, ``[iban]``, ``[card]`` or ``[secret]`` in place of each item.

    ``counts`` counts the items by kind.

    Masking twice changes nothing: where a mask frees its neighbour to be recognised, that is masked too.
    """
    assert set(kinds) <= set(KINDS), f"unknown kinds: {kinds}"
    while found := personal_data(text, kinds):
        pieces, at = [], 0
        for item in found:
            pieces += [text[at : item.start], f"[{item.kind}]"]
            at = item.end
            if counts is not None:
                counts[item.kind] += 1
        text = "".join([*pieces, text[at:]])
    return text


@functools.cache
def finds_phones() -> bool:
    """Whether the package phonenumbers is installed, which knows the numbers of each country."""
    return find_spec("phonenumbers") is not None


def check_mask(mask: Collection[str], *, otherwise: str | None = None) -> None:
    """Raises DataError if a kind of personal data cannot be found, because what finds it is not installed.

    ``otherwise``: what a user can do instead of an installation; by default, to mask less.
    """
    if "phone" in mask and not finds_phones():
        others = ", ".join(kind for kind in mask if kind != "phone")
        otherwise = otherwise or (f"set mask_pii: [{others}]" if others else "leave mask_pii out")
        raise DataError(
            "phone numbers cannot be masked: phonenumbers is not installed",
            where="data.clean.mask_pii",
            remedy=f"{pip_install('check')}, or {otherwise}",
        )


def abbreviated(item: str) -> str:
    """What may be shown of an item: its first two and last two characters, of a short one the first only."""
    return f"{item[:2]}…{item[-2:]}" if len(item) >= 8 else f"{item[:1]}…"


# E-mail addresses -----------------------------------------------------------------------------------------------------

_EMAIL = re.compile(
    r"(?<![A-Za-z0-9À-ɏ_%+@/-])"
    r"[A-Za-z0-9À-ɏ_](?:[A-Za-z0-9À-ɏ_.%+'-]{0,62}[A-Za-z0-9À-ɏ_%+-])?"
    r"@(?:[A-Za-z0-9À-ɏ](?:[A-Za-z0-9À-ɏ-]{0,61}[A-Za-z0-9À-ɏ])?\.){1,8}"
    r"([A-Za-z]{2,24})(?![A-Za-z0-9À-ɏ_(@]|-[A-Za-z0-9])"
)
_IN_ADDRESS = re.compile(r"://[^\s/@]*:$")
_FILE_ENDING = re.compile("png|jpe?g|gif|svg|webp|ico|css|js|ts|json|html|php|py|rb|xml|txt", re.IGNORECASE)


def _emails(text: str) -> Iterator[TextSpan]:
    for match in _EMAIL.finditer(text):
        address = match[0]
        # icon@2x.png is a file, git@host:path a repository, and in scheme://user:password@host the name is a password.
        repository = address.startswith("git@") and text[match.end() : match.end() + 1] == ":"
        password = _IN_ADDRESS.search(text, max(0, match.start() - 80), match.start())
        if not (_FILE_ENDING.fullmatch(match[1]) or repository or password or ".." in address):
            yield match.span()


# Numbers --------------------------------------------------------------------------------------------------------------

_DIGITS = b"0123456789"
_FEWEST_DIGITS = 7
_LONG_NUMBER = re.compile(r"\d(?:[ \xa0()/.-]{0,3}\d){6}", re.ASCII)
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?:[ \xa0-]?[A-Z0-9]{4}){2,7}(?:[ \xa0-]?[A-Z0-9]{1,3})?(?!\w)", re.ASCII)
_BREAKS = re.compile(r"[ \xa0-]|$")
_CARD = re.compile(
    r"(?<![\w.+/#-])(?:\d{13,19}|\d{4}([ -])(?:\d{4}\1\d{4}\1\d{4}|\d{6}\1\d{4,5}|\d{3}\1\d{3}\1\d{3}))"
    r"(?![\w/]|[.,-]\d)",
    re.ASCII,
)
_CARD_CUE = re.compile(r"(?:card|visa)[^\n]{0,30}$", re.IGNORECASE)
_ISSUERS = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})"  # Visa
    r"|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}"  # Mastercard
    r"|3[47]\d{13}"  # American Express
    r"|3(?:0[0-5]|[689]\d)\d{11}"  # Diners Club
    r"|(?:6011|64[4-9]\d|65\d\d|62\d\d|35[3-8]\d|352[89])\d{12,15}"  # Discover, UnionPay, JCB
)
_INTERNATIONAL = re.compile(r"(?<![\w+.@=-])\+(?:[ .()/\xa0-]{0,2}\d){7,17}(?!\w)", re.ASCII)
_AMERICAN = re.compile(
    r"(?<![\w.+/#)-])(?:1[ .-])?"
    r"(?:(?P<bracketed>\(\d{3}\)[ \xa0]?\d{3}[-. ]\d{4})|\d{3}(?P<mark>[-. ])\d{3}(?P=mark)\d{4})"
    r"(?![\w/]|[.,-]\d|-\w| \d)",
    re.ASCII,
)
_PHONE_CUE = re.compile(
    r"\b(?:phone|tel|telephone|mobile|cell|call|fax|whatsapp|dial|sms)\b[^\n\d]{0,20}$", re.IGNORECASE
)


def _has_long_number(text: str) -> bool:
    """Whether there is anything to read as a number of an account, a card or a phone; most texts have nothing."""
    data = text.encode("utf-8", "surrogatepass")
    few = len(data) - len(data.translate(None, _DIGITS)) < _FEWEST_DIGITS
    return not few and _LONG_NUMBER.search(text) is not None


def _ibans(text: str) -> Iterator[TextSpan]:
    from stdnum import iban

    for match in _IBAN.finditer(text):
        # Words in capitals behind the number look like a part of it: shorter and shorter, down to the shortest IBAN.
        ends = [brk.start() for brk in _BREAKS.finditer(match[0]) if brk.start() >= 15]
        for end in reversed(ends):
            number = re.sub(r"[ \xa0-]", "", match[0][:end])
            if iban.is_valid(number, check_country=False):
                yield match.start(), match.start() + end
                break


def _cards(text: str) -> Iterator[TextSpan]:
    from stdnum import luhn

    for match in _CARD.finditer(text):
        number = re.sub(r"[ -]", "", match[0])
        # Thirteen digits are almost always a bar code.
        likely = len(number) > 13 or _CARD_CUE.search(text, max(0, match.start() - 40), match.start())
        if likely and _ISSUERS.fullmatch(number) and luhn.is_valid(number):
            yield match.span()


def _phones(text: str) -> Iterator[TextSpan]:
    if "+" in text:
        for match in _INTERNATIONAL.finditer(text):
            # Digits behind the number look like a part of it: shorter and shorter, group by group.
            ends = [i for i in range(len(match[0]), 7, -1) if not match[0][i : i + 1].isdigit()]
            end = next((end for end in ends if match[0][end - 1].isdigit() and _is_phone(match[0][:end], None)), None)
            if end is not None:
                yield match.start(), match.start() + end
    for match in _AMERICAN.finditer(text):
        if match["bracketed"]:
            good = match["bracketed"][1] in "23456789"
        else:
            good = match["mark"] != " " and (match[0].startswith("555") or _is_phone(match[0], "US"))
        if good or _PHONE_CUE.search(text, max(0, match.start() - 40), match.start()):
            yield match.span()


def _is_phone(number: str, region: str | None) -> bool:
    import phonenumbers

    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(number, region))
    except phonenumbers.NumberParseException:
        return False
