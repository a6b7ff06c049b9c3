"""The rows that every trainer in the benchmark gets: token ids and labels, made once and written to a file.

    a  Banking77 with one instruction for all rows: short rows with a long common beginning
    b  instructions: rows that share the template's beginning alone
    c  restaurant descriptions, one instruction
    d  text without a system prompt or any other common prefix
    e  questions about documents behind one long system prompt: prefixes on two levels

a, b and c read real files (see bench/README.md) and fall back to generated rows of the same shape without them.
"""

from __future__ import annotations

import csv
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORDS = (  # noqa: SIM905
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work government number night point home water room mother "
    "area money story fact month lot right study book eye job word business issue side kind head house service friend "
    "father power hour game line end member law car city community name president team minute idea body information"
).split()


@dataclass(frozen=True, slots=True)
class Workload:
    """``rows``: {"input_ids", "labels"}, -100 where nothing is learned.

    ``batch``: rows of an optimizer step. ``peer_rows``: of a peer's forward pass, which must fit its memory.
    ``epoch_rows``: in the whole data, of which ``rows`` are some.
    """

    name: str
    source: str
    rows: list[dict[str, list[int]]]
    batch: int
    peer_rows: int
    epoch_rows: int

    @property
    def tokens(self) -> int:
        return sum(len(row["input_ids"]) for row in self.rows)

    @property
    def supervised(self) -> int:
        return sum(label != -100 for row in self.rows for label in row["labels"])


def make(name: str, tokenizer: Any, *, data: Path, steps: int) -> Workload:
    """The workload with enough rows for ``steps`` steps; the same each time."""
    batch = 32 if name == "e" else 16
    count, rng = steps * batch, random.Random(f"bench/{name}")
    source, items = BUILDERS[name](data, rng)
    assert count <= len(items), f"workload {name} has {len(items)} of {count} rows"
    encode = _encode_text if name == "d" else encode_chat
    rows = [encode(tokenizer, item) for item in items[:count]]
    return Workload(name, source, rows, batch, peer_rows=1 if name == "e" else batch, epoch_rows=len(items))


def encode_chat(tokenizer: Any, messages: list[dict[str, str]]) -> dict[str, list[int]]:
    prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template(messages, tokenize=False).rstrip("\n")
    assert whole.startswith(prompt)
    start = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    ids = start + tokenizer(whole[len(prompt) :], add_special_tokens=False)["input_ids"]
    return {"input_ids": ids, "labels": [-100] * len(start) + ids[len(start) :]}


def _encode_text(tokenizer: Any, text: str) -> dict[str, list[int]]:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return {"input_ids": ids, "labels": [-100, *ids[1:]]}


def _turn(instruction: str, given: str, answer: str) -> list[dict[str, str]]:
    asked = f"{instruction}\n\n{given}" if given else instruction
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


def _sentence(rng: random.Random, low: int, high: int) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(low, high))) + "."


def _banking(data: Path, rng: random.Random) -> tuple[str, list[Any]]:
    instruction = "Name the intent of this message to a bank. Answer with the intent alone, in snake_case."
    path = data / "banking77" / "train.csv"
    if not path.is_file():
        pairs = [(_sentence(rng, 8, 18), "_".join(rng.choices(WORDS, k=3))) for _ in range(4096)]
        return "generated", [_turn(instruction, *pair) for pair in pairs]
    with path.open(encoding="utf-8", newline="") as lines:
        found = [(row["text"], row["category"]) for row in csv.DictReader(lines)]
    rng.shuffle(found)
    return "Banking77", [_turn(instruction, *pair) for pair in found]


def _instruct(data: Path, rng: random.Random) -> tuple[str, list[Any]]:
    path = data / "instruct" / "instruction-data.json"
    if not path.is_file():
        made = [(_sentence(rng, 6, 14), _sentence(rng, 0, 10), _sentence(rng, 8, 30)) for _ in range(4096)]
        return "generated", [_turn(*item) for item in made]
    found = json.loads(path.read_text(encoding="utf-8"))
    rng.shuffle(found)
    return "instruction-data", [_turn(item["instruction"], item["input"], item["output"]) for item in found]


def _restaurant(data: Path, rng: random.Random) -> tuple[str, list[Any]]:
    instruction = "Describe the restaurant in one sentence that says all of this."
    path = data / "restaurant" / "train.json"
    if not path.is_file():
        made = [(_sentence(rng, 10, 24), _sentence(rng, 14, 30)) for _ in range(4096)]
        return "generated", [_turn(instruction, *item) for item in made]
    text = path.read_text(encoding="utf-8")
    found = json.loads(text[text.index("[") :])  # comment lines stand before the JSON
    rng.shuffle(found)
    return "restaurant", [_turn(instruction, act, reference) for act, reference, _ in found]


def _plain(data: Path, rng: random.Random) -> tuple[str, list[Any]]:
    return "generated", [_sentence(rng, 40, 160) for _ in range(4096)]


def _documents(data: Path, rng: random.Random) -> tuple[str, list[Any]]:
    """A system prompt of about 1,500 tokens, 20 documents of about 400, 10 short questions about each."""
    rules = " ".join(_sentence(rng, 12, 24) for _ in range(80))
    documents = [" ".join(_sentence(rng, 12, 24) for _ in range(21)) for _ in range(20)]
    made = []
    for document in documents:
        for _ in range(10):
            asked = f"{document}\n\nQuestion: {_sentence(rng, 6, 12)}"
            made.append([{"role": "system", "content": rules}, *_turn(asked, "", _sentence(rng, 6, 16))])
    rng.shuffle(made)
    return "generated", made


BUILDERS = {"a": _banking, "b": _instruct, "c": _restaurant, "d": _plain, "e": _documents}
