"""Texts that are safe to show and to store: without secrets, and without characters that act on what shows them.

This module owns both rules. Secrets are known by their place in a URL, by their form, by the name before them, or
because the environment or an address that is in use holds them. Messages, errors and run folders take
``without_secrets``; terminals ``escaped`` or ``one_line``; pages ``html_text``; cards ``markdown_text``.
"""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from urllib.parse import parse_qsl, unquote, urlsplit

# Secrets --------------------------------------------------------------------------------------------------------------

HIDDEN = "..."  # in a URL, in place of its query and of its user
MASK = "***"  # in place of a secret elsewhere
KNOWN_FROM = 6  # characters; a shorter secret would also hide common words
_KNOWN: set[str] = set()  # secrets of addresses that this process was given

_QUERY = re.compile(r"""(\w[\w+.-]*://[^\s?'"`<>]+)\?[^\s'"`<>]+""")
_BARE_QUERY = re.compile(r"""\?[\w%.~-]+=[^\s'"<>)]*""")  # of a URL in the words of a driver, which drops the scheme
_USER = re.compile(  # of these schemes every user, and of any other one with a password
    r"""\b((?:https?|ftp|sftp|ssh|smb|webdav)://(?=[^/\s'"`]+@)|\w[\w+.-]*://(?=[^/:\s'"`]*:[^/\s'"`]*@))[^/\s'"`]+@"""
)
_USER_WITH_SLASH = re.compile(r"""\b(\w[\w+.-]*://)[^/:@\s'"`\[]+:(?!\d+(?:[/?#]|$))[^@\s'"`]+@""")


def without_secrets(text: str) -> str:
    """A text without the secrets in it. What it gives depends on the text alone, so stored texts can be compared.

    The query and the user of a URL become ``...``: they may hold a password, a signature or a token. What has the form
    of a key, or stands behind a name such as ``password=``, becomes ``***``, unless it is plainly no secret.
    """
    if "://" in text:
        text = _USER_WITH_SLASH.sub(rf"\1{HIDDEN}@", text)
        text = _USER.sub(rf"\1{HIDDEN}@", _QUERY.sub(rf"\1?{HIDDEN}", text))
    if "?" in text:
        text = _BARE_QUERY.sub(f"?{HIDDEN}", text)
    pieces, at = [], 0
    for start, end in sorted([*secret_places(text), *_named(text)]):
        if start >= at:
            pieces += [text[at:start], MASK]
        at = max(at, end)
    return "".join([*pieces, text[at:]])


def without_known_secrets(text: str) -> str:
    """The same, and without the values that this process knows to be secret, in whatever form they stand there."""
    found = [*_KNOWN, *_of_environment()]
    for secret in sorted(found, key=len, reverse=True):
        if secret in text:
            text = text.replace(secret, MASK)
    return without_secrets(text)


def safe(text: str) -> str:
    """A line about what is done, for a terminal or a log: without secrets, and with control characters escaped."""
    return escaped(without_known_secrets(text))


def remember_secrets(address: str) -> None:
    """Notes the secrets of a URL that is in use, because drivers repeat them in words of their own."""
    try:
        parts = urlsplit(address)
        pieces = [parts.password or parts.username or ""]
        pieces += [value for name, value in parse_qsl(parts.query) if _is_secret_name(name) or _is_mixed(value)]
    except ValueError:  # an address that is no URL fails where it is opened
        return
    _KNOWN.update(form for piece in pieces for form in (piece, unquote(piece)) if len(form) >= KNOWN_FROM)


def remember_secret(value: str) -> None:
    """Notes a secret that is in use, such as a key from a variable that any name may have."""
    if len(value) >= KNOWN_FROM:
        _KNOWN.add(value)


def without_secret_arguments(arguments: Sequence[str]) -> list[str]:
    """A command line in which the value of ``--password X``, ``--api-key=X`` and ``TOKEN=X`` is hidden."""
    shown: list[str] = []
    for number, argument in enumerate(arguments):
        name, equals, _ = argument.partition("=")
        before = arguments[number - 1] if number else ""
        if equals and _is_secret_name(name):
            shown.append(f"{name}={MASK}")
        elif _is_secret_flag(before) and argument[:1] != "-":
            shown.append(MASK)
        else:
            shown.append(without_known_secrets(argument))
    return shown


def hide_causes(error: BaseException) -> None:
    """Cuts the chain of causes where one of them says a secret, because a traceback would print it."""
    while (cause := error.__cause__ or error.__context__) is not None:
        said = "".join([str(cause), *getattr(cause, "__notes__", ())])
        if without_known_secrets(said) != said:
            error.__cause__, error.__suppress_context__ = None, True
            return
        error = cause


_NAME_OF_SECRET = re.compile(
    r"(?:^|[^A-Za-z]|(?<=[a-z])(?=[A-Z]))"
    r"(?:(?i:passwor[dt]|passwd|passphrase|pwd|secret|credentials?|pat|authorization|sig(?:nature)?)"
    r"|(?i:(?:api|access|secret|private|auth|account|encryption|signing|wandb|sas|subscription|master|judge|deploy"
    r"|storage|client|license)[ _-]?(?:access)?[ _-]?key|apikey|passkey)"
    r"|(?<!eos[_ -])(?<!bos[_ -])(?<!pad[_ -])(?<!unk[_ -])(?<!sep[_ -])(?<!cls[_ -])(?<!mask[_ -])(?<!image[_ -])"
    r"(?<!video[_ -])(?<!audio[_ -])(?<!special[_ -])(?<!per[_ -])(?<!next[_ -])(?<!end[_ -])(?<!start[_ -])"
    r"(?<!stop[_ -])(?<!first[_ -])(?<!last[_ -])(?<!tool[_ -])(?<!expected[_ -])(?i:token))$"
)
# How each of these names ends: a name without such an end is not looked at any closer.
_ENDS_OF_NAMES = (
    "password", "passwort", "passwd", "passphrase", "pwd", "secret", "credential", "credentials", "pat", "token", "key",
    "authorization", "sig", "signature",
)  # fmt: skip


def _is_secret_name(name: str) -> bool:
    name = name.lstrip("-")
    return name.lower().endswith(_ENDS_OF_NAMES) and _NAME_OF_SECRET.search(name) is not None


def _is_secret_flag(name: str) -> bool:
    """Whether the next argument is a secret: ``--password`` and, whatever it opens, ``--some-key``."""
    return name.startswith("-") and "=" not in name and (name.endswith(("-key", "_key")) or _is_secret_name(name))


def _is_mixed(text: str) -> bool:
    return any(sign.isdigit() for sign in text) and any(sign.isalpha() for sign in text)


def _of_environment() -> Iterator[str]:
    """The values of variables such as HF_TOKEN, and the passwords of URLs such as those of proxies."""
    for name, value in os.environ.items():
        if "://" in value:
            user, _, password = value.partition("://")[2].partition("/")[0].rpartition("@")[0].partition(":")
            if len(password or user) >= KNOWN_FROM:
                yield password or user
        elif len(value) >= KNOWN_FROM + 2 and not value.startswith("/") and _is_secret_name(name):
            yield value


_B64 = r"[A-Za-z0-9+/=]"
_GAP = r"(?:\s|\\[nr])"
# What must stand in the text as it is, and the pattern that is then worth its time.
_FORMS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (hint, re.compile(pattern))
    for hint, pattern in (
        ("AKIA", r"(?<![A-Za-z0-9])AKIA[A-Z0-9]{16}(?![A-Za-z0-9])"),
        ("ASIA", r"(?<![A-Za-z0-9])ASIA[A-Z0-9]{16}(?![A-Za-z0-9])"),
        *((f"gh{kind}_", rf"(?<![A-Za-z0-9])gh{kind}_[A-Za-z0-9]{{36,255}}") for kind in "pousr"),
        ("github_pat_", r"(?<![A-Za-z0-9])github_pat_[A-Za-z0-9_]{50,255}"),
        ("glpat-", r"(?<![A-Za-z0-9])glpat-[A-Za-z0-9_-]{20,}"),
        ("sk-", r"(?<![A-Za-z0-9_-])sk-(?:(?:ant|proj|svcacct|admin|or)-[A-Za-z0-9_-]{20,}|[A-Za-z0-9]{32,})"),
        ("k_live_", r"(?<![A-Za-z0-9])[sr]k_live_[A-Za-z0-9]{16,}"),
        ("xox", r"(?<![A-Za-z0-9])xox[abeoprs]-[A-Za-z0-9-]{10,}"),
        ("hooks.slack.com/services/", r"hooks\.slack\.com/services/T\w{6,}/B\w{6,}/\w{16,}"),
        ("AIza", r"(?<![A-Za-z0-9])AIza[A-Za-z0-9_-]{35}"),
        ("hf_", r"(?<![A-Za-z0-9_])hf_[A-Za-z0-9]{30,}"),
        ("npm_", r"(?<![A-Za-z0-9_])npm_[A-Za-z0-9]{30,}"),
        ("pypi-", r"(?<![A-Za-z0-9_-])pypi-AgE[A-Za-z0-9_-]{13,}"),
        ("SG.", r"(?<![A-Za-z0-9_.-])SG\.[A-Za-z0-9_-]{16,64}\.[A-Za-z0-9_-]{16,64}"),
        ("gsk_", r"(?<![A-Za-z0-9_])gsk_[A-Za-z0-9]{32,}"),
        ("r8_", r"(?<![A-Za-z0-9_])r8_[A-Za-z0-9]{30,}"),
        ("xai-", r"(?<![A-Za-z0-9_-])xai-[A-Za-z0-9]{40,}"),
        ("nvapi-", r"(?<![A-Za-z0-9_-])nvapi-[A-Za-z0-9_-]{40,}"),
        ("pplx-", r"(?<![A-Za-z0-9_-])pplx-[A-Za-z0-9]{32,}"),
        ("dop_v1_", r"(?<![A-Za-z0-9_])dop_v1_[a-f0-9]{32,}"),
        ("dckr_pat_", r"(?<![A-Za-z0-9_])dckr_pat_[A-Za-z0-9_-]{20,}"),
        ("wandb_v1_", r"(?<![A-Za-z0-9_])wandb_v1_[A-Za-z0-9_]{20,}"),
        (":AA", r"(?<![0-9])[0-9]{8,12}:AA[A-Za-z0-9_-]{33}(?![A-Za-z0-9_-])"),
        ("api.telegram.org/bot", r"(?<=api\.telegram\.org/bot)[0-9]{3,}:[A-Za-z0-9_-]{3,}"),
        ("/api/webhooks/", r"(?<=/api/webhooks/)[0-9]{10,}/[A-Za-z0-9_-]{20,}"),
        ("eyJ", r"(?<![A-Za-z0-9])eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{10,}"),
        ("earer ", r"(?<=[Bb]earer )(?=[A-Za-z._~+/-]{0,200}\d)[A-Za-z0-9._~+/-]{20,}=*"),
        ("asic ", r"(?<=[Bb]asic )(?=[A-Za-z+/]{0,200}[\d=])[A-Za-z0-9+/]{12,}={0,2}"),
        ("://", r"(?<=://)[^\s/:@\"'<>]{1,64}:(?!//)[^\s/:@\"'<>\[\]]{3,64}(?=@[A-Za-z0-9\[])"),
        (
            "-----BEGIN",
            r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----"
            rf"{_GAP}*+(?:[A-Za-z-]+: [^\n\\]*+{_GAP}+)*{_B64}{{32,}}+(?:{_GAP}++{_B64}{{16,}}+)*+"
            rf"(?:{_GAP}*+{_B64}*+{_GAP}*+-----END [A-Z0-9 ]{{3,40}}-----)?",
        ),
    )
)
# Of each hint the character that is rarest in prose: a single one is looked for many times as fast as a word.
_MARKS = "_-/JAGx "
_MARKED_FORMS = tuple((next(mark for mark in _MARKS if mark in hint), hint, pattern) for hint, pattern in _FORMS)
_ASSIGNED = re.compile(r"[:=]>?[ \t]{0,4}[\"'`]?(?P<value>[A-Za-z0-9!@#%^&*_+/.~?=$-]{6,256})(?![\w(\[<{])")
_NAME = re.compile(
    r"(?:passwor[dt]|passwd|passphrase|pwd"
    r"|(?P<key>(?:api|access|secret|private|auth)[ _-]?(?:access[_-]?)?(?:key|token)|client[_-]?secret|secret|token))"
    r"[\"']?[ \t]{0,4}:?$",
    re.IGNORECASE,
)
_LONGEST_SHORT_NAME = 32
_NOT_A_SECRET = re.compile(
    r"[$*%#.<-]|sha-?\d|md5|base64|utf-?\d|aes|rsa|bcrypt|argon|oauth|pbkdf|https?:|\d+[-.]|[\d.,]+\w?$"
    r"|.*(?:your|example|placeholder|changeme|xxx|\*\*\*|\.\.\.|environ|getenv|config)",
    re.IGNORECASE,
)
_PLAIN_PASSWORDS = frozenset({"password", "passwd", "pass", "pwd", "secret", "xxx", "xxxx"})


def secret_places(text: str) -> Iterator[tuple[int, int]]:
    """Where keys, tokens and passwords stand in a text, as ``text[start:end]``."""
    marks = {mark for mark in _MARKS if mark in text}
    for mark, hint, pattern in _MARKED_FORMS:
        if mark in marks and hint in text:
            for match in pattern.finditer(text):
                # Manuals write user:password@host, and sk-xxxxxxxx.
                if hint == "://":
                    real = match[0].rpartition(":")[2].lower() not in _PLAIN_PASSWORDS
                else:
                    real = len(set(match[0])) >= 8
                if real:
                    yield match.span()
    if ":" in text or "=" in text:
        yield from _assigned(text)


def _assigned(text: str) -> Iterator[tuple[int, int]]:
    """The values of ``password: ...`` and the like, in prose, code and settings."""
    for match in _ASSIGNED.finditer(text):
        value = match["value"].rstrip(".!?")
        if value.isalpha() or value.isdigit() or _NOT_A_SECRET.match(value):
            continue
        name = _NAME.search(text, max(0, match.start() - _LONGEST_SHORT_NAME), match.start())
        # A key or a token has no words in it, so only a long one counts; a password may be a word with a digit.
        if name and _is_mixed(value) and len(value) >= (16 if name["key"] else 6):
            yield match.start("value"), match.start("value") + len(value)


# What no secret is: an empty value, the name of a type, a word of a sentence that goes on, a place-holder, a variable.
_PLAIN_WORDS = frozenset({
    "none", "null", "nil", "undefined", "true", "false", "yes", "no", "on", "off", "str", "string", "text", "int",
    "integer", "float", "number", "bool", "boolean", "bytes", "object", "any", "list", "dict", "array", "optional",
    "required", "empty", "missing", "invalid", "unknown", "wrong", "incorrect", "hidden", "redacted", "masked",
    "secret", "secrets", "password", "passwd", "pass", "pwd", "token", "tokens", "key", "keys", "credentials",
    "default", "unset", "set", "needed", "given", "changeme", "placeholder", "example", "a", "an", "the", "this",
    "that", "is", "are", "was", "were", "be", "been", "has", "have", "must", "should", "may", "can", "cannot",
    "could", "will", "not", "of", "in", "at", "to", "for", "from", "with", "and", "or", "if", "it", "its", "every",
    "each", "one", "two", "expected", "unexpected", "found",
})  # fmt: skip
_NO_SECRET = re.compile(
    r"\$\{?[A-Za-z_]\w*\}?|%\(?\w*\)?s?|\$?\{\{.*|\{\w*\}|<.*>|<\|.*|\[[A-Z_]*|[*.\u2026x]+|your[-_ ].*|https?:.*"
    r"|(?:os\.|environ|getenv|getpass|self\.|tokenizer\.|config\.|settings\.).*|sha-?\d+|md5|bcrypt|base64"
    r"|[\w./~-]+\.(?:md|py|ya?ml|jsonl?|html|txt|csv|toml|pem|key)(?::\d+)?",
    re.IGNORECASE,
)
_OF_A_SENTENCE = re.compile(r"\b(?:an?|the|this|that|each|every|no|as) [a-z]+$", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?\d{1,5}|[+-]?\d*\.\d+(?:e[+-]?\d+)?|\d{1,3}(?:[.,]\d{3})+", re.IGNORECASE)
_SIGN = re.compile(r"[:=]")
_LONGEST_NAME, _LONGEST_PLAIN = 48, 200
# The end of a name and what stands around the sign: `"name": "`, `name=`, `name := `, `"name\": \"`.
_QUOTES = " \t\"'`\\"
_VALUE = re.compile(
    r"(?:=?>|=)?[ \t]{0,8}(?:(?:str|bytes|SecretStr)(?:[ \t]?\|[ \t]?None)?[ \t]{0,4}=[ \t]{0,4})?"
    r"(?:(?P<inner>\\[\"'])|(?P<quote>[\"'`]))?(?:(?:Basic|Bearer|Token|Digest|ApiKey)(?: |%20)[ \t]{0,4})?"
    r"(?P<value>(?(inner)[^\n\\\"']+"  # in a text that is in quotes itself
    r"|(?(quote)(?:(?!(?P=quote))[^\n\\]|\\[^\n])+"
    r"|(?:(?:\$?\{\w*\}|<\w[^<>\n]{0,60}>)(?!\w)|(?:[^\s\"'`,;&)\]}<|]|[,)\]}|](?=\w)|&(?!\w{1,40}=)|<(?!\s))+))))",
    re.IGNORECASE,
)
_FLAG = re.compile(r"(?<![\w-])(?P<name>--?\w[\w-]{0,47})[ \t]{1,4}(?P<value>[^\s\"'`,;-][^\s\"'`,;]{0,4095})")


def _named(text: str) -> Iterator[tuple[int, int]]:
    """The values of whatever is called password, secret, token or key, in whatever form. Wider than ``_assigned``.

    It is for messages and records, in which a hidden word costs less than a shown secret. Rows are searched by form.
    """
    at = 0
    for sign in _SIGN.finditer(text):
        if sign.start() < at:  # in a value
            continue
        name = text[max(0, sign.start() - _LONGEST_NAME) : sign.start()].rstrip(_QUOTES)
        if name.lower().endswith(_ENDS_OF_NAMES) and _NAME_OF_SECRET.search(name):
            match = _VALUE.match(text, sign.end())
            of_words = sign[0] == ":" and (name.lower().endswith("signature") or _goes_on(text, name, match))
            if match and not of_words and not _is_plain(match["value"], name):
                yield match.span("value")
                at = match.end()
    if "-" in text:
        for match in _FLAG.finditer(text):
            if _is_secret_flag(match["name"]) and not _is_plain(match["value"], "") and not match["value"].isupper():
                yield match.span("value")


def _goes_on(text: str, name: str, match: re.Match[str] | None) -> bool:
    """Whether the colon is one of a sentence: "it may be a secret: keep it to yourself"."""
    if match is None or _OF_A_SENTENCE.search(name) is None:
        return False
    value, rest = match["value"], text[match.end() : match.end() + 2]
    return value.isalpha() and value.islower() and rest[:1] == " " and rest[1:].islower()


def _is_plain(value: str, name: str) -> bool:
    """Whether a value is plainly no secret."""
    if len(value) > _LONGEST_PLAIN:
        return False
    value = value.strip().rstrip(".!?:")
    if not value or value.lower() in _PLAIN_WORDS or _NO_SECRET.fullmatch(value):
        return True
    if value.isupper() and "_" in value and _is_secret_name(value):  # the name of a variable
        return True
    return name.lower().endswith(("token", "secret")) and _NUMBER.fullmatch(value) is not None


# Characters -----------------------------------------------------------------------------------------------------------

# Bytes that move the cursor, overrides and isolates of direction, line ends beside \n, tags, lone surrogates: what acts
# on a terminal. The marks that Arabic and Hebrew texts need act on their neighbours only, and stay.
_ACTS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u206f\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
# On a page also what no reader sees: other format characters (the joiners that scripts and emoji need are kept),
# fillers, separators and noncharacters.
_NONCHARACTERS = "".join(chr(plane << 16 | low) for plane in range(17) for low in (0xFFFE, 0xFFFF))
_UNSEEN = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\xad\\u034f\\u061c\\u115f\\u1160\\u17b4\\u17b5\\u180e\\u200b\\u200e\\u200f"
    "\\u2028-\\u202e\\u2060-\\u206f\\u3164\\ufeff\\uffa0\\ufff0-\\ufffb\\ud800-\\udfff\\ufdd0-\\ufdef"
    f"\\U000e0000-\\U000e0fff{_NONCHARACTERS}]"
)
_LINE_ENDS = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_OF_MARKDOWN = re.compile(r"[\\`*\[\]|<>~&]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def escaped(text: str) -> str:
    """The text for a terminal: what acts on it is written out, such as ``\\x1b``. Newlines and tabs stay."""
    if text.isprintable():
        return text
    return _ACTS.sub(lambda match: _code(match[0]), text)


def one_line(text: str) -> str:
    """The same on one line, with everything written out that has no picture: for names."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else _LINE_ENDS.get(sign) or _code(sign) for sign in text)


def escaped_json(line: str) -> str:
    """A line of JSON with the same value, in which no string acts on a terminal."""
    return line if line.isprintable() else _ACTS.sub(lambda match: _json_code(match[0]), line)


def visible(text: str) -> str:
    """The text for a page, with what cannot be seen written out: ␀ for NUL, \\u202E for a right-to-left override."""
    return text if text.isascii() and text.isprintable() else _UNSEEN.sub(lambda match: _picture(ord(match[0])), text)


def html_text(text: str) -> str:
    """The text as a part of HTML or SVG, in an element or in quotes."""
    return html.escape(visible(text))


def markdown_text(text: str) -> str:
    """The text as a part of a line or of a table of Markdown, read as it stands: no markup, no link, no new line."""
    return _OF_MARKDOWN.sub(r"\\\g<0>", one_line(visible(" ".join(text.split()))))


def markdown_code(text: str) -> str:
    """The text as code within a line or a table of Markdown."""
    shown = one_line(" ".join(text.split()))
    fence = _fence(shown, shortest=1)
    return f"{fence} {shown} {fence}" if "`" in shown else f"{fence}{shown}{fence}"


def _fence(content: str, *, shortest: int) -> str:
    longest = max(map(len, re.findall("`+", content)), default=0)
    return "`" * max(longest + 1, shortest)


def fenced(lines: Iterable[str], language: str = "") -> list[str]:
    """Lines of Markdown with a block of code, which its content cannot end."""
    content = "\n".join(lines)
    fence = _fence(content, shortest=3)
    return [f"{fence}{language}", escaped(content), fence]


def _code(sign: str) -> str:
    code = ord(sign)
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def _json_code(sign: str) -> str:
    units = sign.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


def _picture(code: int) -> str:
    if code < 0x20:
        return chr(0x2400 + code)
    return f"\\u{code:04X}" if code <= 0xFFFF else f"\\U{code:08X}"
