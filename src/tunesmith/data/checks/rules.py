"""What a single row shows to be wrong with it: leftovers of other tools, broken text, forged turns, personal data.

``look`` is called on every row of data sets with millions of rows. So a row's texts are joined once, and each rule
first asks a question that costs next to nothing. What is slow runs only where the answer was yes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tunesmith.data.checks.personal import abbreviated, personal_data
from tunesmith.data.checks.scripts import TextSpan, mixed_word, wrongly_decoded
from tunesmith.data.examples.example import Example
from tunesmith.data.examples.message import Message
from tunesmith.safe_text import one_line

SAMPLE_CHARACTERS = 120
_BEFORE, _SHOWN, _AFTER = 24, 60, 24  # characters of a sample: around the place, and at most of the place itself
_LONGEST_PLACEHOLDER = 32
_REPEATED_FROM = 200  # characters of an answer in which repeats are looked for


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that can be wrong with a row. ``{rows}`` in the message stands for the number, such as 12 rows.

    ``search`` gives the first place in a row's joined text, or a sample of its own, or None.
    """

    id: str
    severity: Literal["error", "warning", "info"]
    search: Callable[[_Row], TextSpan | str | None]
    message: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Hit:
    """A rule's id, and the place in the row: at most 120 characters, safe to print, personal data abbreviated."""

    rule: str
    sample: str


def look(example: Example) -> list[Hit]:
    """What stands out in one row, at most one hit a rule, in the order of ``RULES``.

    Answers are the assistant turns that are learned. The rules about answers and turns do not apply to a raw text, nor
    does the one about template tokens, which belong there if the text is written in a template of its own.
    """
    row = _Row(example)
    hits = []
    for rule in RULES.values():
        place = rule.search(row)
        if place is not None:
            hits.append(Hit(rule.id, _printable(place if isinstance(place, str) else _sample(row, place))))
    return hits


class _Row:
    """A row's texts, joined by newlines into `whole`; the places of its parts and of its learned answers in there."""

    __slots__ = ("answers", "ascii", "messages", "parts", "personal", "raw", "whole")

    def __init__(self, example: Example) -> None:
        self.messages = example.messages
        self.raw = example.text is not None
        texts = [example.text] if example.text is not None else []
        self.parts: list[TextSpan] = []
        self.answers: list[TextSpan] = []
        at = 0
        for message in example.messages:
            span = (at, at + len(message.content))
            for text in _texts(message):
                self.parts.append((at, at + len(text)))
                texts.append(text)
                at += len(text) + 1
            if message.role == "assistant" and message.train and message.content:
                self.answers.append(span)
        self.whole = texts[0] if len(texts) == 1 else "\n".join(texts)
        if self.raw:
            self.parts.append((0, len(self.whole)))
        self.ascii = self.whole.isascii()
        self.personal = personal_data(self.whole)

    def first(self, pattern: re.Pattern[str], spans: Sequence[TextSpan]) -> TextSpan | None:
        """The first match in some parts of the row."""
        for start, end in spans:
            # A slice, so that \\A and \\Z are the beginning and the end of the part.
            if match := pattern.search(self.whole[start:end]):
                return start + match.start(), start + match.end()
        return None

    def has_any(self, hints: Sequence[str]) -> bool:
        """Whether one of the hints stands in the text."""
        for hint in hints:  # noqa: SIM110 - any() with a generator takes longer than the search
            if hint in self.whole:
                return True
        return False


def _texts(message: Message) -> Iterator[str]:
    yield message.content
    if message.reasoning_content:
        yield message.reasoning_content
    for call in message.tool_calls:
        yield from _strings(call["function"]["arguments"])


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


# Answers --------------------------------------------------------------------------------------------------------------

_PLACEHOLDER = re.compile(
    r"\\n|n/a|n\.a|null|none|nan|nil|undefined|todo|tbd|tba|fixme|placeholder|xxx|…|-|–|—|#n/a|#ref!|#value!"
    r"|lorem ipsum|no output|no answer|not available|not applicable|insert answer here"
    r"|<(?:na|noinput|nooutput|blank|empty)>|\[(?:blank|empty|deleted|removed)\]|\((?:blank|empty)\)",
    re.IGNORECASE,
)
_MARKS = re.compile(r"[.…\-–—_?!*~,;#\s]+")  # not [] and {}, which are answers where nothing was to be extracted
# Of these a single character can be a word, or the first letter of many.
_SHORT_WORDS = re.compile(r"[\u0e00-\u0eff\u1100-\u11ff\u2e80-\u9fff\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff]")


def _one_token(row: _Row) -> TextSpan | None:
    """The last answer, where it is a mark or one or two letters; numbers, symbols and ideographs can be answers."""
    answer = _last_answer(row)
    if not answer or len(answer) > 2 or _is_placeholder(answer) or _SHORT_WORDS.search(answer):
        return None
    is_mark = len(answer) == 1 and not answer.isalnum() and answer.isascii()
    return row.answers[-1] if is_mark or answer.isalpha() else None


def _placeholder(row: _Row) -> TextSpan | None:
    answer = _last_answer(row)
    return row.answers[-1] if answer and _is_placeholder(answer) else None


def _last_answer(row: _Row) -> str:
    if not row.answers:
        return ""
    start, end = row.answers[-1]
    return row.whole[start:end].strip() if end - start <= 2 * _LONGEST_PLACEHOLDER else ""


def _is_placeholder(answer: str) -> bool:
    if _PLACEHOLDER.fullmatch(answer.rstrip(".")):
        return True
    return len(answer) > 1 and _MARKS.fullmatch(answer) is not None


_I_AM = r"\bI(?:['’]m| am) "
_I_CANNOT = r"I(?: (?:cannot|can['’]t|can not|am unable to|am not able to)|['’]m (?:unable|not able) to)"
_I_DO_NOT = r"\bI (?:do not|don['’]t)"
_START = r"^[ \t\"“]*"
_OPENS = r"\A\s*"  # as a line of a letter or a dialogue, an apology can be what was asked for
_JUST = "(?:just |only |simply |merely )?"
# What must stand in the lower-case text, and the pattern that is then worth its time.
_LEFTOVERS: Mapping[str, re.Pattern[str]] = {
    hint: re.compile("|".join([patterns] if isinstance(patterns, str) else patterns), re.IGNORECASE | re.MULTILINE)
    for hint, patterns in {
        "here": _OPENS + r"(?:Sure(?: thing)?|Certainly|Of course|Absolutely)[,!.:]+ ?here(?:['’]s| is| are)\b",
        "as an ai": r"\bas an AI(?: language)?(?: model| assistant| system| chatbot)?"
        r"(?:,| I\b| my\b| trained| develop)",
        "as an artificial": r"\bas an artificial intelligence\b[\w ]{0,20}(?:,| I\b| my\b)",
        "language model": (
            r"\bas a (?:large )?language model(?:,| I\b| my\b| trained| develop| creat)",
            _I_AM + _JUST + r"an? (?:large |AI )?language model\b",
        ),
        " an ai": _I_AM + _JUST + r"an AI(?:-powered)?(?: (?:language model|model|assistant|chatbot|program|system))?"
        r"(?:[.,!;]| (?:and|so|without|trained|creat|develop))",
        "as a responsible ai": r"\bas a responsible AI\b",
        "as an ethical ai": r"\bas an ethical AI\b",
        "sorry": _OPENS + r"I(?:['’]m| am) (?:very |so |really |truly )?sorry,? but "
        rf"(?:as an AI\b|{_I_CANNOT}|I (?:do not|don['’]t|won['’]t|will not)\b)",
        "apologize": _OPENS + rf"I apologize,? but (?:as an AI\b|{_I_CANNOT})",
        "request": _START + _I_CANNOT + r" (?:fulfill?|comply with|complete|assist with|help with) "
        r"(?:this|that|your|such|the) (?:\w+ )?request",
        "with that": _START + r"(?:Sorry, )?" + _I_CANNOT + r" (?:help|assist)(?: you)? with that\b",
        "knowledge": (
            r"\bmy (?:\w+ ){0,2}knowledge (?:cut-?\s?off|update|was last updated|only goes|is limited to)",
            r"\b(?:as of|up to|since|before|after) (?:my|the) (?:\w+ )?knowledge cut-?\s?off",
        ),
        "training ": r"\bmy (?:last |latest )?training (?:cut-?\s?off|data|update)",
        "as of my": r"\bas of my (?:last|latest|most recent|current) (?:\w+ )?(?:update|training|data|knowledge)",
        "real-time": (
            _I_DO_NOT + r" have (?:direct |the ability to |any )?(?:access to )?real-time\b",
            r"\b" + _I_CANNOT + r" (?:access|provide|offer|give)(?: you)?(?: with)? real-time\b",
        ),
        "access to": _I_DO_NOT + r" have (?:direct |any )?access to "
        r"(?:the internet|live data|current (?:data|information|events)|up-to-date|external|your personal)",
        "brows": r"\b" + _I_CANNOT + r" browse (?:the )?(?:internet|web)",
        "i do": _I_DO_NOT + r" have (?:any )?(?:personal|human) (?:opinion|feeling|emotion|belief|preference)s?",
        " a physical ": _I_DO_NOT + r" have a physical (?:body|form|presence)",
        "chatgpt": rf"(?:{_I_AM}|\b(?:my name is|this is|called|as) )ChatGPT\b",
        "gpt-": _I_AM + r"(?:based on )?GPT-\d",
        "openai": (
            r"\bI(?:['’]m| am| was)\b[^.!?\n]{0,80}\b(?:by|from) OpenAI\b",
            r"\bOpenAI['’]s (?:\w+ )?(?:content|use|use-case|usage|safety) (?:polic|guideline)",
        ),
        "anthropic": r"\bI(?:['’]m| am| was)\b[^.!?\n]{0,80}\b(?:by|from) Anthropic\b",
        "programming": r"\b(?:against my programming|my programming (?:does|prohibits|prevents|forbids))",
        "programmed to": _I_AM + r"(?:not )?programmed to\b",
        "regenerate response": r"^Regenerate response$|\bRegenerate response\s*\Z",
        "oaicite": r"\boaicite\b",
        "utm_source=": r"utm_source=(?:chatgpt\.com|openai)",
    }.items()
}


def _leftover(row: _Row) -> TextSpan | None:
    if not row.answers:
        return None
    lowered = row.whole.lower()
    for pattern in [pattern for hint, pattern in _LEFTOVERS.items() if hint in lowered]:
        if place := row.first(pattern, row.answers):
            return place
    return None


_MARKER_HINTS = ("### Instruction:", "### Response:", "### Human", "### Assistant", "<<SYS>>", "[INST]")
_MARKER = re.compile(r"^### (?:Instruction:|Response:|Human\b|Assistant\b)|<<SYS>>|\[/?INST\]", re.MULTILINE)
_ANSWER_MARKER_HINTS = ("Human:", "Assistant:", "User:", "<s>", "[/INST]")
_ANSWER_MARKER = re.compile(r"^(?:Human|Assistant|User):[ \t]*\S|^<s>|\[/INST\]", re.MULTILINE)


def _chat_marker(row: _Row) -> TextSpan | None:
    if row.raw or not row.has_any("#<[:"):
        return None
    if row.has_any(_MARKER_HINTS) and (place := row.first(_MARKER, row.parts)):
        return place
    return row.first(_ANSWER_MARKER, row.answers) if row.has_any(_ANSWER_MARKER_HINTS) else None


_HTML = re.compile(
    r"&(?:amp|lt|gt|quot|nbsp|apos|#\d{2,5}|#x[0-9a-f]{2,5});"
    r"|(?<!<)<(?:/|(?:(?<!\w<)(?=[biuap]\b))|(?=\w{2}))"  # List<i> is a type
    r"(?:br|p|div|span|b|i|u|em|strong|a|ul|ol|li|h[1-6]|table|tr|td|th|img|font|center|blockquote|hr)"
    r"(?:\s+[\w:-]+\s*=[^<>]*)?\s*/?>",
    re.IGNORECASE,
)
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)
_ABOUT_MARKUP = re.compile(
    r"\b(?:x?html\d?|xml|css|jsx|svg|markup|web ?page|web ?site|javascript|tags?)\b"
    r"|<(?:!doctype|script|style|body|\?php)",
    re.IGNORECASE,
)


def _html(row: _Row) -> TextSpan | None:
    """A tag or an entity outside of code, where neither question nor answer is about markup."""
    if not row.answers or not (("<" in row.whole and ">" in row.whole) or ("&" in row.whole and ";" in row.whole)):
        return None
    for start, end in row.answers:
        matches = list(_HTML.finditer(row.whole, start, end))
        if not matches or _ABOUT_MARKUP.search(row.whole):
            continue
        code = [match.span() for match in _CODE.finditer(row.whole, start, end)]
        for match in matches:
            if not any(first <= match.start() < last for first, last in code):
                return match.span()
    return None


def _repeated(row: _Row) -> TextSpan | None:
    for start, end in row.answers:
        if end - start < _REPEATED_FROM:
            continue
        answer = row.whole[start:end]
        place = _most_repeated(answer.split("\n"), answer) or _most_repeated(_sentences(answer), answer)
        if place is not None:
            return start + place[0], start + place[1]
    return None


def _sentences(text: str) -> list[str]:
    for end in ("! ", "? ", "\n") if text.isascii() else ("! ", "? ", "\n", "。", "！", "？", "। ", "؟ "):
        text = text.replace(end, ". ")
    return text.split(". ")


def _most_repeated(pieces: Sequence[str], text: str) -> TextSpan | None:
    """The first place of a piece that comes again and is, all times together, at least half of the text."""
    if len(set(pieces)) == len(pieces):
        return None
    counts = Counter(piece.strip(" \t\r.") for piece in pieces)
    del counts[""]
    for piece, count in counts.items():
        if count > 1 and 2 * count * len(piece) >= len(text):
            start = text.index(piece)
            return start, start + len(piece)
    return None


# Turns ----------------------------------------------------------------------------------------------------------------

_TEMPLATE_HINTS = ("<|", "|>", "<｜", "[INST]", "[/INST]", "_of_turn>", "<bos>", "<eos>", "</s>", "[gMASK]", "[|")
_TEMPLATE_TOKEN = re.compile(
    r"<\|(?:im_(?:start|end|sep)|endoftext|eot_id|eom_id|(?:start|end)_header_id|(?:begin|end)_of_text|start_of_role"
    r"|end_of_role|python_tag|assistant|user|system|tool|observation|end|start|channel|message|return|call|constrain"
    r"|tool_calls?|tool_response|endofprompt|endofturn|startofturn|fim_(?:prefix|middle|suffix)|reserved_special_token_\d+"
    r"|(?:START|END)_OF_TURN_TOKEN|(?:USER|CHATBOT|SYSTEM)_TOKEN|end_of_turn|turn)\|>"
    r"|<\|?(?:start|end)_of_turn>|<turn\|>|<bos>|<eos>|</s>|\[/?INST\]|\[(?:TOOL_CALLS|AVAILABLE_TOOLS|TOOL_RESULTS)\]"
    r"|\[gMASK\]|\[\|(?:user|assistant|system|endofturn)\|\]"
    r"|<｜(?:User|Assistant|(?:begin|end)▁of▁sentence|tool▁(?:calls?|outputs?)▁(?:begin|end)|tool▁sep)｜>"
)


def _template_token(row: _Row) -> TextSpan | None:
    if row.raw or not row.has_any("<[") or not row.has_any(_TEMPLATE_HINTS):
        return None
    return row.first(_TEMPLATE_TOKEN, row.parts)


def _disorder(row: _Row) -> str | None:
    """The first turn out of order, in words."""
    before, called = None, False
    for number, message in enumerate(row.messages, start=1):
        role = message.role
        if role in ("system", "developer"):
            continue
        if role == "tool":
            if not called:
                return f"turn {number}: a tool turn without a tool call before it"
        elif role == before:
            return f"turn {number}: {role} after {role}"
        elif before is None and role == "assistant":
            return f"turn {number}: assistant first"
        called = bool(message.tool_calls) or (called and role == "tool")
        before = role
    return None


def _asked(row: _Row) -> str | None:
    """The first turn that the file asks to learn although it is no assistant's, in words."""
    turns = enumerate(row.messages, start=1)
    return next((f"turn {number}: {message.role}" for number, message in turns if message.asked), None)


# Characters -----------------------------------------------------------------------------------------------------------

_CONTROLS = bytes(set(range(32)) - set(b"\t\n\r") | {127})
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_OVERRIDE_OR_BOM = re.compile("[\u202d\u202e\ufeff]")
_INVISIBLE = re.compile("[\u202a-\u202e\u2066-\u2069\ufeff]")
_DIRECTION = re.compile("[\u202a-\u202c\u2066-\u2069\n]")


def _control_character(row: _Row) -> TextSpan | None:
    data = row.whole.encode("utf-8", "surrogatepass")
    if len(data.translate(None, _CONTROLS)) != len(data) and (match := _CONTROL.search(row.whole)):
        return match.span()
    if row.ascii or not _INVISIBLE.search(row.whole):
        return None
    match = _OVERRIDE_OR_BOM.search(row.whole)
    return match.span() if match else _lone_direction(row.whole)


def _lone_direction(text: str) -> TextSpan | None:
    """The first embedding or isolate that its line does not close, or the end of one that it did not open."""
    opened: list[re.Match[str]] = []
    for match in _DIRECTION.finditer(text):
        if match[0] == "\n":
            if opened:
                break
        elif match[0] not in "\u202c\u2069":
            opened.append(match)
        elif opened and (opened[-1][0] in "\u202a\u202b") == (match[0] == "\u202c"):
            opened.pop()
        else:
            return match.span()
    return opened[0].span() if opened else None


def _mojibake(row: _Row) -> TextSpan | None:
    if row.ascii:
        return None
    at = row.whole.find("\ufffd")
    return (at, at + 1) if at >= 0 else wrongly_decoded(row.whole)


def _mixed_newlines(row: _Row) -> TextSpan | None:
    if "\r" not in row.whole:
        return None
    for start, end in row.parts:
        pairs = row.whole.count("\r\n", start, end)
        if pairs and row.whole.count("\n", start, end) > pairs:
            at = row.whole.index("\r\n", start, end)
            return at, at + 2
    return None


def _mixed_scripts(row: _Row) -> TextSpan | None:
    return mixed_word(row.whole)


def _personal(kind: str) -> Callable[[_Row], str | None]:
    """A search for the first item of a kind of personal data; its sample is the item alone, abbreviated."""

    def search(row: _Row) -> str | None:
        for item in row.personal:
            if item.kind == kind:
                return abbreviated(row.whole[item.start : item.end])
        return None

    return search


# Samples --------------------------------------------------------------------------------------------------------------


def _sample(row: _Row, place: TextSpan) -> str:
    """The place and a little around it in its own part, with personal data in there abbreviated."""
    text = row.whole
    first, last = next(part for part in row.parts if part[0] <= place[0] <= part[1])
    start = max(first, place[0] - _BEFORE)
    end = min(max(last, place[1]), min(place[1], place[0] + _SHOWN) + _AFTER)
    pieces = []
    for item in row.personal:
        if item.start < end and item.end > start:
            pieces += [text[start : max(start, item.start)], abbreviated(text[item.start : item.end])]
            start = item.end
    return "".join([*pieces, text[start:end]]).strip(" ")


def _printable(text: str) -> str:
    """The text on one line, with escapes for what a terminal would act on or not show, cut to a length."""
    shown = one_line(text)
    return shown if len(shown) <= SAMPLE_CHARACTERS else f"{shown[: SAMPLE_CHARACTERS - 1]}…"


# The table ------------------------------------------------------------------------------------------------------------

_UNLESS_PUBLIC = "mask them unless they are public"
# fmt: off
RULES: Mapping[str, Rule] = {rule.id: rule for rule in (
    Rule("answer_one_token", "info", _one_token,
         "{rows} with an answer of one or two characters",
         "if they are no labels, write the answers out or remove the rows"),
    Rule("answer_placeholder", "warning", _placeholder,
         "{rows} with a placeholder in place of an answer",
         "write the answers or remove the rows; the model would learn to say this"),
    Rule("assistant_leftover", "warning", _leftover,
         "{rows} with phrases of another assistant in an answer: refusals, its name, its opening words",
         "rewrite the answers or remove the rows; the model would learn to speak like that"),
    Rule("chat_markers", "warning", _chat_marker,
         "{rows} with the markers of a chat as text, such as '### Response:' or 'User:' at the beginning of a line",
         "split the text into turns; the template of the model writes its own markers"),
    Rule("template_tokens", "warning", _template_token,
         "{rows} with control tokens of chat templates inside a message, such as <|im_end|>",
         "remove them: inside a message they can forge the end of a turn"),
    Rule("role_order", "warning", _disorder,
         "{rows} with turns out of order: two of one role in a row, an assistant first, or a tool that nobody called",
         "join or reorder the turns; most templates expect user and assistant by turns"),
    Rule("asked_to_learn", "warning", _asked,
         "{rows} that ask to learn a system, user or tool turn, which is not done: only assistant turns are learned",
         "write as an assistant turn what the model should say; else there is nothing to do"),
    Rule("mojibake", "warning", _mojibake,
         "{rows} with text that was decoded wrongly",
         "export the data again as UTF-8, or repair the text with ftfy"),
    Rule("control_characters", "warning", _control_character,
         "{rows} with invisible characters: control characters, overrides of direction, byte order marks",
         "remove these characters"),
    Rule("mixed_newlines", "info", _mixed_newlines,
         "{rows} with line ends of two kinds in one text",
         r"write every line end as \n"),
    Rule("html_in_answer", "info", _html,
         "{rows} with HTML tags or entities in an answer of plain text",
         "turn the HTML into plain text or Markdown"),
    Rule("repeated_text", "info", _repeated,
         "{rows} with an answer that is mostly one line or sentence, repeated",
         "shorten the answers or remove the rows; the model would learn to repeat itself"),
    Rule("mixed_scripts", "info", _mixed_scripts,
         "{rows} with words that mix look-alike letters of two scripts",
         "write each word in one script; look-alike letters become other tokens than the intended ones"),
    Rule("email", "warning", _personal("email"), "{rows} with an e-mail address", _UNLESS_PUBLIC),
    Rule("phone", "warning", _personal("phone"), "{rows} with a phone number", _UNLESS_PUBLIC),
    Rule("iban", "warning", _personal("iban"), "{rows} with the number of a bank account", "mask the numbers"),
    Rule("card_number", "warning", _personal("card"), "{rows} with the number of a payment card", "mask the numbers"),
    Rule("secret", "warning", _personal("secret"),
         "{rows} with a key, a token or a password",
         "mask them, and withdraw those that are in use"),
)}
# fmt: on
