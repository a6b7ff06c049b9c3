"""Rows with known faults among clean ones, made without any of the package's own rules, to measure what finds them.

Every set is a function of its seed. What is planted stands in ``faults``: for each finding the names of its rows,
``file:line``, as the file has them in the end.
"""

from __future__ import annotations

import base64
import json
import random
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any


def _words(text: str, mark: str = " ") -> list[str]:
    return text.split(mark)


NOUNS = _words(
    "anchor apple arch balcony barn basket beacon bench bicycle blanket boat book bottle branch bread bridge brush "
    "bucket candle canal canvas carpet castle chair cherry chimney cinema circle clock cloud coat coffee column comet "
    "copper corner cotton cradle crane curtain desert desk diamond drawer drum eagle engine feather fence field flute "
    "forest fountain frame garden gate glacier glove grain hammer harbour hedge helmet hill horse island jacket jewel "
    "kettle kitchen ladder lantern leaf lemon letter library lighthouse lizard magnet map maple market meadow mirror "
    "monument mountain museum needle notebook oak ocean orchard oven paddle painting palace paper path pepper piano "
    "pillow pine planet plate pocket pond quarry quilt rabbit railway ribbon river rocket roof rope saddle sail school "
    "shelf ship shore silver spoon spring square stable statue stone storm stream street summit table tailor teapot "
    "temple theatre thread ticket tower tractor tunnel turtle umbrella valley vessel village violin wagon wall walnut "
    "water wheel willow window winter wool workshop"
)
VERBS = _words(
    "admires balances borrows builds carries changes circles cleans collects compares counts covers crosses decorates "
    "delivers describes discovers divides draws exchanges explores fills finds follows gathers guards hides holds "
    "improves inspects joins keeps lifts loads measures mends moves observes offers opens orders paints passes plants "
    "polishes prepares protects pulls pushes reaches records repairs replaces sketches sorts stores studies supports "
    "surrounds tests touches trades visits washes watches weighs wraps"
)
ADJECTIVES = _words(
    "amber ancient bitter blue bold bright broad calm careful clever cold crooked curious dark deep dusty early empty "
    "faint famous fresh gentle golden grand green heavy hidden hollow humble jolly large light little lonely loud "
    "modern narrow neat new northern old pale patient plain polite proud quick quiet rare red remote rough round rusty "
    "sharp short silent simple slender slow small smooth soft southern steady steep strange strong sudden sweet tall "
    "thin tidy tiny useful warm weary western wide wild wise wooden yellow young"
)
TIMES = _words(
    "in the morning|after lunch|before sunset|during the harvest|at noon|all year|on most days|once a month|in autumn|"
    "late in spring|through the night|when the rain stops|since last summer|for several weeks|every other week",
    mark="|",
)
QUESTIONS = (
    "What happens when the {a} {n} {v} the {m}?",
    "Why would a {n} that {v} the {a} {m} matter {t}?",
    "Describe how the {a} {n} {v} each {m} {t}.",
    "Which {m} belongs to the {n} that {v} the {b} {o}?",
    "Tell a short story in which a {a} {n} {v} a {b} {m} {t}.",
    "Explain to a child how one {n} {v} {k} other things, among them the {m} and the {o}.",
)
STATEMENTS = (
    "The {a} {n} {v} the {b} {m} {t}.",
    "{T}, a {n} near the {m} {v} the {o}.",
    "Nobody knows why the {n} {v} a {a} {m}, yet the {o} stays {b}.",
    "If the {m} is {a}, then the {n} {v} it {t}.",
    "Between the {n} and the {m} there are {k} steps, and the {o} {v} them all.",
    "A {a} {n} rarely {v} any {m}, but a {b} one does so {t}.",
    "It is the {n}, not the {m}, that {v} the {a} {o}.",
)
RUSSIAN = _words("река гора дом лес берег окно мост город сад хлеб зима письмо дорога камень ветер снег озеро дерево")
GREEK = _words("θάλασσα βουνό σπίτι δάσος παράθυρο γέφυρα πόλη κήπος ψωμί χειμώνας γράμμα δρόμος πέτρα άνεμος χιόνι")
CHINESE = "河流高山房子森林海岸窗户桥梁城市花园面包冬天信件道路石头风雪湖泊树木"
LABELS = ("order status", "refund", "opening hours", "delivery address", "gift card", "complaint", "careers", "other")
RARE_LABELS = {"press": 3, "wholesale": 7}


@dataclass(frozen=True, slots=True)
class Planted:
    """A file with faults, the file it is held against, and for each finding the rows that it should name."""

    path: Path
    against: Path | None
    faults: dict[str, set[str]]


@dataclass(slots=True)
class _Line:
    """A line to be, and the findings that it is for."""

    content: bytes
    kinds: tuple[str, ...] = ()


@dataclass(slots=True)
class _Draw:
    """Clean text from a seed. No sentence is said twice, and none has a fault in it."""

    random: random.Random
    said: set[str] = field(default_factory=set)

    def sentence(self, patterns: Sequence[str] = STATEMENTS) -> str:
        while True:
            pick = self.random.choice
            n, m, o = self.random.sample(NOUNS, 3)
            a, b = self.random.sample(ADJECTIVES, 2)
            t = pick(TIMES)
            words = {"n": n, "m": m, "o": o, "a": a, "b": b, "v": pick(VERBS), "t": t, "T": t.capitalize()}
            made = pick(patterns).format(**words, k=self.random.randint(2, 90))
            if made not in self.said:
                self.said.add(made)
                return made

    def prompt(self) -> str:
        context = [self.sentence() for _ in range(self.random.randint(0, 3))]
        return " ".join([*context, self.sentence(QUESTIONS)])

    def answer(self) -> str:
        sentences = [self.sentence() for _ in range(self.random.randint(3, 8))]
        return self.random.choice(["\n", " ", " ", " "]).join(sentences)

    def row(self) -> dict[str, Any]:
        return {"prompt": self.prompt(), "completion": self.answer()}

    def characters(self, alphabet: str, count: int) -> str:
        return "".join(self.random.choices(alphabet, k=count))

    def inside(self, text: str, piece: str) -> str:
        """The text with a piece between two of its sentences."""
        sentences = text.split(". ")
        at = self.random.randint(1, len(sentences))
        joined = ". ".join(sentences[:at]).removesuffix(".")
        return f"{joined}. {piece} " + ". ".join(sentences[at:])


def _line(row: Any) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode()


# The set of prompts and answers ---------------------------------------------------------------------------------------


def plant(folder: Path, *, seed: int = 0, clean: int = 2_500, each: int = 24) -> Planted:
    """Writes prompts and answers with ``each`` rows of each fault among ``clean`` ones, and a file to hold against."""
    draw = _Draw(random.Random(seed))
    lines = [_Line(_line(draw.row())) for _ in range(clean)]
    other = [_Line(_line(draw.row())) for _ in range(clean // 10)]
    lines += [_Line(content, ("invalid_rows",)) for _ in range(max(1, each // 8)) for content in _invalid(draw)]
    for _ in range(each):
        lines += _duplicates(draw)
        lines += _conflict(draw)
        lines += _near_pair(draw)
        _leak(draw, lines, other)
    for kind, make in _ROWS.items():
        lines += [_Line(_line(make(draw, number)), (kind,)) for number in range(each)]
    planted = _write(folder / "rows.jsonl", lines, draw.random)
    against = _write(folder / "held_out.jsonl", other, draw.random)
    faults = {kind: planted.get(kind, set()) | against.get(kind, set()) for kind in planted}
    return Planted(folder / "rows.jsonl", folder / "held_out.jsonl", faults)


def _write(path: Path, lines: list[_Line], shuffled: random.Random) -> dict[str, set[str]]:
    """The lines in a random order, with blank ones between them now and then."""
    shuffled.shuffle(lines)
    faults: dict[str, set[str]] = {}
    number = 0
    with path.open("wb") as file:
        for line in lines:
            if shuffled.random() < 0.02:
                file.write(b"\n")
                number += 1
            file.write(line.content + b"\n")
            number += 1
            for kind in line.kinds:
                faults.setdefault(kind, set()).add(f"{path}:{number}")
    return faults


def _invalid(draw: _Draw) -> Iterator[bytes]:
    row = draw.row()
    good = json.dumps(row)
    prompt, answer = json.dumps(row["prompt"]), json.dumps(row["completion"])
    yield good[:-1].encode()  # the bracket that ends it is missing
    yield good.replace('"', "'", 4).encode()
    yield (good + ",").encode()
    yield good.replace(": ", ":\t", 1).replace(" the ", " \t the ", 1).encode()  # a raw tab inside a string
    yield _line({"prompt": row["prompt"]})
    yield _line({"completion": row["completion"]})
    yield _line({**row, "completion": {"n": 7}})
    yield _line({**row, "prompt": {"text": row["prompt"]}})
    yield _line({**row, "completion": None})
    yield _line({**row, "completion": ""})
    yield _line({**row, "completion": " \n\t "})
    yield _line({**row, "prompt": ""})
    yield f'{{"prompt": {prompt}, "completion": NaN}}'.encode()
    yield f'{{"prompt": {prompt}, "completion": {answer}, "score": 1e999}}'.encode()
    yield f'{{"prompt": {prompt}, "completion": {answer}, "score": -1e999}}'.encode()
    yield f'{{"prompt": {prompt}, "completion": {answer}, "completion": {answer}}}'.encode()
    yield good.encode().replace(b" the ", b" caf\xe9 ", 1)
    yield good.encode().replace(b" the ", b" \xc3 ", 1)
    yield _line([row["prompt"], row["completion"]])
    yield prompt.encode()
    yield b"null"


def _duplicates(draw: _Draw) -> list[_Line]:
    """A row two or three times; its JSON may be written another way."""
    row = draw.row()
    ways = [_line(row), json.dumps(dict(reversed(row.items())), separators=(",", ":")).encode(), _line(row)]
    return [_Line(way, ("duplicate_rows",)) for way in ways[: draw.random.randint(2, 3)]]


def _conflict(draw: _Draw) -> list[_Line]:
    prompt = draw.prompt()
    count = draw.random.randint(2, 3)
    return [
        _Line(_line({"prompt": prompt, "completion": draw.answer()}), ("conflicting_answers",)) for _ in range(count)
    ]


def _near_pair(draw: _Draw) -> list[_Line]:
    row = draw.row()
    both = row, _edited_row(draw, row)
    return [_Line(_line(each), ("near_duplicates",)) for each in both]


def _leak(draw: _Draw, lines: list[_Line], other: list[_Line]) -> None:
    """One prompt that both files have, with the same answer or another, and one row that both have nearly."""
    row = draw.row()
    lines.append(_Line(_line(row), ("leakage",)))
    answer = draw.random.choice([row["completion"], draw.answer()])
    other.append(_Line(_line({**row, "completion": answer}), ("leakage",)))
    row = draw.row()
    lines.append(_Line(_line(row), ("near_leakage",)))
    other.append(_Line(_line(_edited_row(draw, row)), ("near_leakage",)))


def _edited_row(draw: _Draw, row: dict[str, Any]) -> dict[str, Any]:
    """The row with a tenth of its words replaced, deleted, or joined by others; at least one in the prompt."""
    return {name: edited(text, draw.random) for name, text in row.items()}


def edited(text: str, chance: random.Random, share: float = 0.1) -> str:
    """The text after so many word edits as are this share of its words; figures are left alone."""
    words = text.split(" ")
    for _ in range(max(1, round(share * len(words)))):
        at = chance.randrange(len(words))
        way = chance.choice(("replace", "delete", "insert"))
        word = chance.choice(chance.choice((NOUNS, VERBS, ADJECTIVES)))
        if way == "insert" or words[at].isdigit():
            words.insert(at, word)
        elif way == "delete":
            del words[at]
        else:
            words[at] = word
    return " ".join(words)


# One row with one fault -----------------------------------------------------------------------------------------------


def _in_either(draw: _Draw, piece: str) -> dict[str, Any]:
    """A row with the piece in its prompt or in its answer."""
    row = draw.row()
    name = draw.random.choice(["prompt", "completion"])
    return {**row, name: draw.inside(row[name], piece)}


def _one_token(draw: _Draw, number: int) -> dict[str, Any]:
    return {**draw.row(), "completion": ("k", "Y", ".", "ok", "No", "?", " x\n", "!", "it")[number % 9]}


def _placeholder(draw: _Draw, number: int) -> dict[str, Any]:
    words = ("N/A", "TODO", "...", "null", "None", "TBD", "n/a.", "[deleted]", "undefined", "----", "NaN", "No answer")
    return {**draw.row(), "completion": words[number % len(words)]}


LEFTOVERS = (
    "As an AI language model, I cannot choose between them.",
    "As an AI, I do not sleep.",
    "I'm sorry, but I can't help with this one.",
    "I apologize, but I cannot answer that.",
    "I cannot fulfill this request.",
    "I can't assist with that.",
    "As of my last knowledge update in September 2021, it was closed.",
    "My knowledge cutoff is in the past.",
    "I don't have access to real-time information about it.",
    "I do not have personal opinions about it.",
    "I am an AI assistant, so it is hard to say.",
    "I’m a large language model trained on much text.",
    "I was trained by OpenAI to be brief.",
    "I am ChatGPT, and it is a pleasure.",
)
OPENINGS = ("Certainly! Here is a story.", "Sure! Here's the text.", "Of course! Here are the steps.")


def _leftover(draw: _Draw, number: int) -> dict[str, Any]:
    row = draw.row()
    phrases = (*LEFTOVERS, *OPENINGS)
    return {**row, "completion": f"{phrases[number % len(phrases)]} {row['completion']}"}


def _markers(draw: _Draw, number: int) -> dict[str, Any]:
    row, more = draw.row(), draw.row()
    answers = (
        f"{row['completion']}\n\n### Instruction:\n{more['prompt']}\n\n### Response:\n{more['completion']}",
        f"{row['completion']}\nUser: {more['prompt']}\nAssistant: {more['completion']}",
        f"{row['completion']}\n\nHuman: {more['prompt']}",
        f"### Response:\n{row['completion']}",
        f"{row['completion']}\n### Human: {more['prompt']}\n### Assistant: {more['completion']}",
    )
    return {**row, "completion": answers[number % len(answers)]}


TEMPLATE_TOKENS = (
    "<|im_end|>", "<|im_start|>system", "<|endoftext|>", "<|eot_id|>", "<|start_header_id|>assistant<|end_header_id|>",
    "</s>", "<end_of_turn>", "<start_of_turn>model", "<|assistant|>", "<|user|>", "<|begin_of_text|>", "<eos>",
    "<｜end▁of▁sentence｜>",
)  # fmt: skip


def _template_token(draw: _Draw, number: int) -> dict[str, Any]:
    row = draw.row()
    return {**row, "prompt": draw.inside(row["prompt"], TEMPLATE_TOKENS[number % len(TEMPLATE_TOKENS)])}


def _mojibake(draw: _Draw, number: int) -> dict[str, Any]:
    words = ("café", "naïve", "the gate’s", "“hello", "Müller", "el niño", "smörgås", "forty – fifty", "garçon", "7 €")
    wrong = words[number % len(words)].encode().decode("cp1252") if number % 11 else "caf\ufffd"
    return _in_either(draw, f"And it was {wrong} that came.")


def _control(draw: _Draw, number: int) -> dict[str, Any]:
    marks = ("\0", "\x07", "\x08", "\x1b[0m", "\x7f", "\x0c", "\x01", "\ufeff", "\u202e", "\u202d")
    return _in_either(draw, f"One thing{marks[number % len(marks)]} more.")


def _newlines(draw: _Draw, number: int) -> dict[str, Any]:
    row = draw.row()
    name = ("prompt", "completion")[number % 2]
    return {**row, name: f"{draw.sentence()}\r\n{draw.sentence()}\n{row[name]}"}


def _html(draw: _Draw, number: int) -> dict[str, Any]:
    row = draw.row()
    pieces = (
        "<p>It is so.</p>",
        "It was<br>so.",
        "<b>Mind</b> it.",
        "Salt &amp; bread.",
        "Salt&nbsp;only.",
        "Mind&#39;s eye.",
    )
    return {**row, "completion": draw.inside(row["completion"], pieces[number % len(pieces)])}


def _repeated(draw: _Draw, number: int) -> dict[str, Any]:
    sentence = f"{draw.sentence()} "
    return {**draw.row(), "completion": (f"{draw.sentence()} " + sentence * (6 + number % 5)).strip()}


def _mixed_word(draw: _Draw, number: int) -> dict[str, Any]:
    looks = str.maketrans("aeocp", "аеоср")  # to Cyrillic letters
    word = ("paypal", "account", "apple", "secure", "people")[number % 5]
    at = next(place for place, letter in enumerate(word) if letter in "aeocp")
    return _in_either(draw, f"Please open {word[:at]}{word[at].translate(looks)}{word[at + 1 :]} now.")


def _email(draw: _Draw, number: int) -> dict[str, Any]:
    name = f"{draw.random.choice(NOUNS)}.{draw.random.choice(ADJECTIVES)}"
    addresses = (
        f"{name}@mailbox.org", f"{name}+list@post.co.uk", f"{name[0]}_{number}@sub.domain.museum", f"<{name}@web.de>",
        f"mailto:{name}@firm.io,", f"({name}@university.edu)", f"{name.upper()}@COMPANY.COM.", f"'{name}-7@x-y.net'",
    )  # fmt: skip
    return _in_either(draw, f"Write to {addresses[number % len(addresses)]} about it.")


def _phone(draw: _Draw, number: int) -> dict[str, Any]:
    def digits(count: int) -> str:
        return draw.characters("23456789", count)

    numbers = (
        f"+1 212 {digits(3)} {digits(4)}", f"(415) {digits(3)}-{digits(4)}", f"+44 20 7{digits(3)} {digits(4)}",
        f"+49 30 {digits(8)}", f"303-{digits(3)}-{digits(4)}", f"+33 1 42 {digits(2)} {digits(2)} {digits(2)}",
        f"617.{digits(3)}.{digits(4)}", f"+91 98{digits(3)} {digits(5)}", f"1-312-{digits(3)}-{digits(4)}",
        f"+41 44 {digits(3)} {digits(2)} {digits(2)}",
    )  # fmt: skip
    return _in_either(draw, f"The number is {numbers[number % len(numbers)]}, until five.")


def _iban(draw: _Draw, number: int) -> dict[str, Any]:
    country, length = (("DE", 18), ("FR", 23), ("NL", 14), ("ES", 20), ("AT", 16), ("CH", 17), ("GB", 18))[number % 7]
    head = {"NL": "ABNA", "GB": "NWBK"}.get(country, "")
    account = head + draw.characters(string.digits, length - len(head))
    as_number = int("".join(str(int(character, 36)) for character in f"{account}{country}00"))
    whole = f"{country}{98 - as_number % 97:02d}{account}"
    if number % 2:
        whole = " ".join(whole[at : at + 4] for at in range(0, len(whole), 4))
    return _in_either(draw, f"The account is {whole}, as before.")


def _card(draw: _Draw, number: int) -> dict[str, Any]:
    start, length = (("4", 16), ("53", 16), ("37", 15), ("6011", 16))[number % 4]
    number_without = start + draw.characters(string.digits, length - len(start) - 1)
    total = 0
    for place, digit in enumerate(reversed(number_without)):
        double = int(digit) * (2 if place % 2 == 0 else 1)
        total += double - 9 if double > 9 else double
    whole = number_without + str(-total % 10)
    if number % 3:
        cuts = (0, 4, 10, 15) if length == 15 else (0, 4, 8, 12, 16)
        whole = " -"[number % 2].join(whole[first:last] for first, last in pairwise(cuts))
    return _in_either(draw, f"It was paid with {whole} at the counter.")


def _secret(draw: _Draw, number: int) -> dict[str, Any]:
    letters = string.ascii_letters + string.digits

    def part(count: int) -> str:
        return draw.characters(letters, count)

    token = ".".join(
        base64.urlsafe_b64encode(text.encode()).decode().rstrip("=") for text in ('{"alg":"HS256"}', '{"sub":"7"}')
    )
    key = "\n".join(part(64) for _ in range(4))
    makers: tuple[Callable[[], str], ...] = (
        lambda: f"AKIA{draw.characters(string.ascii_uppercase + string.digits, 16)}",
        lambda: f"ghp_{part(36)}",
        lambda: f"sk-proj-{part(40)}",
        lambda: f"xoxb-{draw.characters(string.digits, 12)}-{part(24)}",
        lambda: f"AIza{part(35)}",
        lambda: f"hf_{part(34)}",
        lambda: f"{token}.{part(43)}",
        lambda: f"postgres://admin:{part(12)}@db.internal:5432/shop",
        lambda: f"api_key = '{part(16)}7{part(15)}'",
        lambda: f"password: {part(6)}7x{part(4)}",
        lambda: f"-----BEGIN RSA PRIVATE KEY-----\n{key}\n-----END RSA PRIVATE KEY-----",
        lambda: f"Authorization: Bearer {part(20)}5{part(20)}",
    )
    return _in_either(draw, f"The settings are:\n{makers[number % len(makers)]()}\nand no more.")


def _other_script(draw: _Draw, number: int) -> dict[str, Any]:
    pick = draw.random.choices
    if number % 3 == 2:
        return {"prompt": "".join(pick(CHINESE, k=40)) + "？", "completion": "".join(pick(CHINESE, k=90)) + "。"}
    words = (RUSSIAN, GREEK)[number % 3]
    return {"prompt": " ".join(pick(words, k=14)) + "?", "completion": " ".join(pick(words, k=30)) + "."}


def _long(draw: _Draw, number: int) -> dict[str, Any]:
    answer = ""
    while len(answer) < 9_000 + 100 * number:
        answer += draw.sentence() + " "
    return {**draw.row(), "completion": answer.strip()}


_ROWS: dict[str, Callable[[_Draw, int], dict[str, Any]]] = {
    "answer_one_token": _one_token,
    "answer_placeholder": _placeholder,
    "assistant_leftover": _leftover,
    "chat_markers": _markers,
    "template_tokens": _template_token,
    "mojibake": _mojibake,
    "control_characters": _control,
    "mixed_newlines": _newlines,
    "html_in_answer": _html,
    "repeated_text": _repeated,
    "mixed_scripts": _mixed_word,
    "email": _email,
    "phone": _phone,
    "iban": _iban,
    "card_number": _card,
    "secret": _secret,
    "other_script": _other_script,
    "long_rows": _long,
}
PLANTED = (
    "invalid_rows", "duplicate_rows", "conflicting_answers", "near_duplicates", "leakage", "near_leakage", *_ROWS,
)  # fmt: skip


# Labels, and turns ----------------------------------------------------------------------------------------------------


def plant_labels(folder: Path, *, seed: int = 1, each: int = 120, contradictions: int = 20) -> Planted:
    """Writes questions with a label each, some with two, and two labels that are rare."""
    draw = _Draw(random.Random(seed))

    def question() -> str:
        return draw.sentence(QUESTIONS)

    lines = [_Line(_line({"prompt": question(), "completion": label})) for label in LABELS for _ in range(each)]
    for label, count in RARE_LABELS.items():
        lines += [_Line(_line({"prompt": question(), "completion": label}), ("rare_labels",)) for _ in range(count)]
    for _ in range(contradictions):
        prompt = question()
        for label in draw.random.sample(LABELS, 2):
            lines.append(_Line(_line({"prompt": prompt, "completion": label}), ("contradicting_labels",)))
    return Planted(folder / "labels.jsonl", None, _write(folder / "labels.jsonl", lines, draw.random))


def plant_turns(folder: Path, *, seed: int = 2, clean: int = 1_000, each: int = 6) -> Planted:
    """Writes conversations, some with turns that are out of order."""
    draw = _Draw(random.Random(seed))
    lines = [_Line(_line({"messages": _turns(draw, number)})) for number in range(clean)]
    for _ in range(each):
        lines += [_Line(_line({"messages": turns}), ("role_order",)) for turns in _disordered(draw)]
    return Planted(folder / "turns.jsonl", None, _write(folder / "turns.jsonl", lines, draw.random))


def _turn(draw: _Draw, role: str) -> dict[str, Any]:
    return {"role": role, "content": draw.prompt() if role == "user" else draw.answer()}


def _turns(draw: _Draw, number: int) -> list[dict[str, Any]]:
    turns = [_turn(draw, role) for _ in range(1 + number % 3) for role in ("user", "assistant")]
    if number % 4 == 1:
        turns.insert(0, {"role": "system", "content": draw.sentence()})
    if number % 4 == 2:
        call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at": "the map"}'}}
        turns[1:1] = [
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": draw.sentence()},
        ]
    return turns


def _disordered(draw: _Draw) -> Iterator[list[dict[str, Any]]]:
    for roles in (
        "user user assistant",
        "user assistant assistant",
        "assistant user assistant",
        "system assistant user assistant",
        "user assistant user user assistant",
        "user tool assistant",
    ):
        yield [_turn(draw, role) for role in roles.split()]


# What looks like a fault and is none ----------------------------------------------------------------------------------

_IMAGE = base64.b64encode(bytes((7 * number * number + 31) % 251 for number in range(240))).decode()
TEMPTING: dict[str, tuple[str, str]] = {
    "dates": (
        "When was it signed?",
        "On 2024-03-01 at 10:15:30, and again on 01.04.2024, 5/6/2024 and 20240301T101530Z.",
    ),
    "order numbers": (
        "Where is order 4711-2024-000123?",
        "Order 4711-2024-000123 left on Monday; the parcel is 00340434161094042557.",
    ),
    "version numbers": (
        "Which version is it?",
        "Version 2.10.3.1, built from 1.0.0-rc.1+build.20240301 with CUDA 12.4.131.",
    ),
    "isbn": ("What is the ISBN?", "It is 978-3-16-148410-0, and that of the second edition is 9780306406157."),
    "a man of the field": (
        "Who are you?",
        "As an AI researcher I have worked on planning for ten years, and as a linguist before.",
    ),
    "what a language model is": (
        "What is a language model?",
        "A language model predicts the next word. An AI assistant may be built on one.",
    ),
    "an apology in a letter": (
        "Write an apology.",
        "Dear Ann, I am sorry that I missed your party. I was held up at work. Yours, Tom",
    ),
    "a refusal in a letter": (
        "Tell Ann that Monday is no good.",
        "Dear Ann,\nI'm sorry, but I cannot come on Monday.\nYours, Tom",
    ),
    "a refusal in a dialogue": ("What did the computer say?", "\"I'm sorry, but I can't do that,\" it said."),
    "what somebody cannot do": (
        "Did he come?",
        "No. He said: it is far, and the train was late, so he could not help with the boxes.",
    ),
    "c++": (
        "Sort a vector.",
        "#include <algorithm>\nstd::vector<int> v{3};\nstd::sort(v.begin(), v.end());\nif (a < b && b > c) x = v[i];",
    ),
    "generics": (
        "Give a type.",
        "Map<String, List<Integer>> counts = new HashMap<>();\nfor (T item : items) { use(item); }",
    ),
    "html that was asked for": ("Write an HTML paragraph.", "<p>Hello, <b>world</b> &amp; all</p>"),
    "html in code": ("How do I break a line?", "Write `<br>` where it should break:\n```\n<p>one<br>two</p>\n```"),
    "prices": (
        "What does it cost?",
        "It costs $1,234,567.89, or 1.234.567,89 €, or £12.50 a month; 15% off until Friday.",
    ),
    "uuid": ("Which id is it?", "It is 123e4567-e89b-12d3-a456-426614174000, in short 426614174000."),
    "image in code": (
        "Load the picture.",
        f'data = b64decode("{_IMAGE}")\n' + f".logo {{ background: url(data:image/png;base64,{_IMAGE}); }}",
    ),
    "hashes": (
        "What is the digest?",
        "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08, "
        "commit 3f786850e387550fdab836ed7e6dc881de23001b.",
    ),
    "german": (
        "Wie heißt die größte Straße?",
        "Die Königstraße, gleich hinter der Brücke über den Fluss; früher hieß sie anders.",
    ),
    "french": (
        "Où se trouve la forêt ?",
        "À côté de l’église : elle est très âgée, « magnifique », dit-on, même là-bas ; ça dépend du cœur.",
    ),
    "vietnamese": ("Tiếng Việt có khó không?", "Không khó lắm, nhưng cần luyện tập mỗi ngày với người bản xứ."),
    "polish and turkish": ("Jak się masz, źdźbło?", "Dziękuję, świetnie! İstanbul’da güneşli bir gün, değil mi?"),
    "icelandic and spanish": ("¿Qué tal, señor Þórður?", "Ágætt, þakka þér fyrir. ¡Mañana será otro día!"),
    "emoji with joiners": ("How was it?", "Great 👩‍👩‍👧‍👦 and 🏳️‍🌈, thanks 👍🏽! We ate 🍕 and saw 🇫🇷 win."),
    "typographic marks": (
        "Quote her.",
        "“It’s here — at last…”, she said; ‘so it is’. Temperatures of −5 °C to 10 °C ± 1 µm, ½ × ¾ ≤ 1.",
    ),
    "formulas": ("What is the area?", "A = π r², so Δx → 0 gives f′(x) ≈ 2πr; in μm² and kΩ it is ∑ xᵢ ≤ ∞."),
    "addresses of the net": (
        "Where is the host?",
        "At 192.168.100.200:8080, 10.0.0.1 and fe80::1ff:fe23:4567:890a, port 5432, see http://localhost:3000/a?b=1.",
    ),
    "coordinates": ("Where is it?", "At 48.858844, 2.294351 (EPSG 4326), or 40.748817,-73.985428; height 324.5 m."),
    "large numbers": (
        "How many people?",
        "About 8,045,311,447 in 2023; 1 000 000 000 more by 2037. Pi is 3.14159265358979323846.",
    ),
    "numbers one to a line": ("Count.", "1\n2\n3\n4\n5\n6\n7\n8\n9\n10"),
    "a sum": ("What is 4111 times 11111111?", "4111 x 11111111 = 45677777321. Check: 45677777321 / 4111 = 11111111."),
    "a card number with a wrong digit": (
        "Is 4111 1111 1111 1112 a card?",
        "No: the last digit is wrong, so 4111 1111 1111 1112 is none.",
    ),
    "an iban with a wrong digit": (
        "Is DE00 3704 0044 0532 0130 00 good?",
        "No, the check digits of DE00 3704 0044 0532 0130 00 are wrong.",
    ),
    "decorators and handles": (
        "Write a test.",
        "import pytest\n\n@pytest.fixture\ndef x():\n    return 1\n# by @someone, see @org/package@1.2.3",
    ),
    "an ssh remote": ("How do I clone it?", "git clone git@github.com:owner/project.git && cd project"),
    "a password that is read": (
        "Connect to it.",
        "password = os.environ['DB_PASSWORD']\ntoken = get_token(user)\nsecret: ${SECRET}",
    ),
    "advice on passwords": (
        "What is a good password?",
        "A good password: long, unique, and never shared. The password should be 12 characters.",
    ),
    "roles in a play": ("Write a scene.", "ROMEO: It is the east.\nJULIET: Good night.\nNURSE: Madam!"),
    "a heading": ("Write a heading.", "### Summary\n\nAll went well.\n\n### Next steps\n\nRest."),
    "a list": ("Which ones?", "- one\n- two\n- three\n\n1. first\n2. second"),
    "a table": ("Show a table.", "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |"),
    "a number as an answer": ("What is six times seven?", "42"),
    "a single figure": ("How many legs has a dog?", "4"),
    "a longer word as an answer": ("Is snow white?", "Yes"),
    "an empty list": ("List the errors in the last log.", "[]"),
    "none with more": ("How many remain of the cakes?", "None of them remain."),
    "a refrain": (
        "Sing.",
        "Row, row, row your boat\nGently down the stream\nMerrily, merrily, merrily, merrily\nLife is but a dream",
    ),
    "windows line ends only": ("Write two lines of a verse.", "The sun is low,\r\nthe day is done."),
    "tabs": ("Show columns.", "name\tage\nann\t7\nbob\t8"),
    "less and greater": ("Order them.", "a < b and b > c, so i<j; see <https://example.org> or x <- 5 |> sqrt()."),
    "shell pipes": (
        "Count the lines.",
        "cat a.txt | grep -v '^#' | wc -l > out.txt 2>&1; echo $? && [ -f b ] || exit 1",
    ),
    "latex": ("Write a matrix.", "\\begin{bmatrix} a & b \\\\ c & d \\end{bmatrix} and $x \\in [0, 1]$"),
    "chords and dna": ("Give a sequence.", "ATGGCCATTGTAATGGGCCGCTGAAAGGGTGCCCGATAG, or in chords: Am F C G Am F C G"),
    "japanese names in latin": ("Who wrote it?", "Ōe Kenzaburō wrote it; Tōkyō is where he lived."),
    "a model's name in the news": (
        "Who made it?",
        "OpenAI released ChatGPT in November 2022; Anthropic and others followed.",
    ),
    "sure, without an opening": (
        "Are you sure?",
        "Sure, the bridge was built before the tower, as the chronicle says.",
    ),
}


def plant_temptations(folder: Path, *, seed: int = 3, clean: int = 1_000) -> Planted:
    """Writes rows without a fault; ``faults`` holds, by name, the row of each that looks like one."""
    draw = _Draw(random.Random(seed))
    lines = [_Line(_line(draw.row())) for _ in range(clean)]
    lines += [
        _Line(_line({"prompt": prompt, "completion": answer}), (name,)) for name, (prompt, answer) in TEMPTING.items()
    ]
    return Planted(folder / "tempting.jsonl", None, _write(folder / "tempting.jsonl", lines, draw.random))
