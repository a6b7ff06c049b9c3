"""What a first recipe says of its rows: what they teach, how many judge and how, and what lets them train."""

from __future__ import annotations

import heapq
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.data.chat.packaged import CHATML_TOOLS, knows_chatml, writes_tool_calls
from tunesmith.data.chat.tokenizing import is_panic, tokenizing
from tunesmith.data.checks.facts import RULE_NUMBERS
from tunesmith.data.checks.scan import Scan
from tunesmith.data.examples.example import Example
from tunesmith.data.examples.row_shapes import PREFERENCES
from tunesmith.data.files.reader import ROWS_THAT_TELL_THE_SHAPE, Reader, open_source
from tunesmith.data.files.rows import LeftOut
from tunesmith.data.finding import rows_in_words
from tunesmith.data.placement import OUTCOME, place_rows
from tunesmith.data.report.findings import CHARACTERS_PER_TOKEN, different_labels
from tunesmith.data.survey import Survey
from tunesmith.errors import DataError, pip_install
from tunesmith.evaluation.metrics.classification import MOST_LABELS
from tunesmith.evaluation.metrics.json_answers import JsonFields, is_json_structure
from tunesmith.model.weights.foreign_tokenizer import refuse_odd_tokenizer
from tunesmith.model.weights.tokenizer_files import unreadable_tokenizer
from tunesmith.recipe.data import SourceSettings
from tunesmith.recipe.objectives import OBJECTIVE_SHAPES

SHARES = (0.1, 0.2, 0.3)
HALF = 0.5
ENOUGH_HELD_OUT = 20  # rows; fewer show large differences only
LEAST_HELD_OUT = 6  # rows that differ, below which no verdict is possible at 95% confidence
MOST_OF_SEVERAL_TURNS = 0.1  # of the rows; more, and the last turn does not stand for them
LONGEST_COUNTED = 20  # rows whose tokens are counted
LEAST_LENGTH, ROOM = 2048, 128  # tokens: the usual limit, and what a template puts around a row


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The share of rows for data.eval, None for a split of the data's own; why; and the rows of both splits."""

    share: float | None
    reason: str
    train: int
    rows: int


@dataclass(frozen=True, slots=True)
class Texts:
    """What a pass over the examples has shown: bytes of the longest answer, whether all are JSON objects, JSON objects
    and lists, or numbers, whether a turn calls a tool, whether an answer does, and the longest conversations.

    ``earlier``: rows by the characters of the longest turn that is learned before the answer, of those that have one.
    ``earlier_calls``: such a turn calls tools.
    """

    answer_bytes: int
    json_objects: bool
    json_structures: bool
    numbers: bool
    calls: bool
    answer_calls: bool
    longest: tuple[str, ...]
    earlier: Mapping[int, int] = field(default_factory=dict)
    earlier_calls: bool = False


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Metrics with the reason for them, and tokens of the longest answer."""

    metrics: tuple[str, ...]
    reason: str
    new_tokens: int | None


@dataclass(frozen=True, slots=True)
class Length:
    """The limit on the tokens of a row with its reason, and a warning where the model is too short for the longest."""

    tokens: int
    reason: str
    warning: str | None = None


def preferred_objective(source: SourceSettings) -> tuple[str, str] | None:
    """The objective that learns which answers are better, with the other shape that the rows have; None if none does.

    A file may hold both: chosen and rejected beside messages, or a verdict on each completion.
    """
    if source.format != "auto":
        return None
    plain = open_source(source)
    if plain.shape in PREFERENCES:
        return None
    for objective in ("dpo", "kto"):
        reader = open_source(source, wanted=OBJECTIVE_SHAPES[objective])
        if reader.shape == OBJECTIVE_SHAPES[objective] and (objective == "dpo" or _has_verdicts(reader)):
            return objective, plain.shape
    return None


def _has_verdicts(reader: Reader) -> bool:
    """Whether the labels of the first rows are true and false, and both occur."""
    first = list(islice(reader.examples(), ROWS_THAT_TELL_THE_SHAPE))
    good = [row for row in first if isinstance(row, Example)]
    return 10 * len(good) >= 9 * len(first) and {row.label for row in good} == {True, False}


def held_out(found: Survey) -> HeldOut:
    """The dataset's own split; else the smallest share that holds out enough rows, else the largest of the usual ones.

    Half of the rows judge only where fewer could show nothing.
    """
    train, rows = (counts(found.scan, each.rows)[0] for each in (found.scan.sources[0], found.scan.sources[-1]))
    if len(found.scan.sources) > 1:
        split = found.scan.sources[-1].reader.split
        return HeldOut(None, f"eval: the data's own split {split} ({rows_in_words(rows)}) is held out", train, rows)
    best = HeldOut(0, "too few different prompts to hold any out, so there will be no verdict", train, 0)
    for share in (*SHARES, HALF):
        if best.rows >= (LEAST_HELD_OUT if share == HALF else ENOUGH_HELD_OUT):
            break
        try:
            outcome = place_rows(found.scan, found.settings, eval_share=share, test_share=0.0)
        except DataError:
            continue
        rows = int((outcome == OUTCOME["held_out"]).sum())
        if rows > best.rows:
            best = HeldOut(share, _why_held_out(share, rows), train - rows, rows)
    return best


def _why_held_out(share: float, rows: int) -> str:
    are = "is held out, chosen by its prompt," if rows == 1 else "are held out, chosen by their prompts,"
    said = f"{rows_in_words(rows)} {are} to judge on"
    if share == HALF:
        return f"{said}: fewer than {LEAST_HELD_OUT} can show no difference"
    return said if rows >= ENOUGH_HELD_OUT else f"{said}: so few show large differences only"


def counts(scan: Scan, rows: slice) -> tuple[int, int]:
    """Good and bad rows among some."""
    good = int(scan.good[rows].sum())
    return good, rows.stop - rows.start - good - int(scan.left_out[rows].sum())


def texts_of(scan: Scan) -> Texts:
    """One pass over the conversations."""
    answer_bytes, json_objects, json_structures, numbers, calls, answer_calls = 0, True, True, True, False, False
    longest: list[tuple[int, int, str]] = []
    earlier, earlier_calls = Counter[int](), False
    for block in scan.examples():
        for number, example in block:
            if example.text is not None:
                continue
            answer = example.written_answer()
            answer_bytes = max(answer_bytes, len(answer.encode(errors="replace")))
            json_objects = json_objects and JsonFields().fault_of(answer) is None
            json_structures = json_structures and (json_objects or is_json_structure(answer))
            numbers = numbers and _is_number(answer)
            before = [
                turn for turn in example.messages[: example.last_answer()] if turn.role == "assistant" and turn.train
            ]
            earlier.update([max(len(turn.written()) for turn in before)] if before else [])
            earlier_calls = earlier_calls or any(turn.tool_calls for turn in before)
            calls = calls or any(turn.tool_calls for turn in example.messages)
            answer_calls = answer_calls or example.answers_with_calls()
            text = _whole(example)
            entry = (len(text.encode(errors="replace")), -number, text)
            (heapq.heappush if len(longest) < LONGEST_COUNTED else heapq.heappushpop)(longest, entry)
    texts = tuple(text for *_, text in longest)
    return Texts(
        answer_bytes=answer_bytes,
        json_objects=json_objects,
        json_structures=json_structures,
        numbers=numbers,
        calls=calls,
        answer_calls=answer_calls,
        longest=texts,
        earlier=earlier,
        earlier_calls=earlier_calls,
    )


def _whole(example: Example) -> str:
    """The texts of a conversation; of two answers, the longer."""
    turns = [*example.messages]
    if example.rejected is not None and len(example.rejected.content) > len(turns[-1].content):
        turns[-1] = example.rejected
    texts = [text for turn in turns for text in (turn.content, turn.reasoning_content or "")]
    calls = [call for turn in turns for call in turn.tool_calls]
    return "\n".join([*texts, *(json.dumps(each, ensure_ascii=False) for each in (*calls, *example.tools))])


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def only_documents(scan: Scan) -> bool:
    """Whether the rows are raw texts."""
    return not (scan.good & ~scan.raw_text).any()


def evaluation_of(scan: Scan, texts: Texts) -> Evaluation:
    """Metrics by what the answers look like."""
    shape = scan.sources[0].reader.shape
    if shape == "preference":
        return Evaluation(("preference_accuracy",), "how often the model finds the chosen answer likelier", None)
    if shape == "unpaired_preference":
        return Evaluation(("loss",), "kto's own: there are no pairs to compare", None)
    if only_documents(scan):
        return Evaluation((), "raw text has no answers to compare, so the verdict is by loss", None)
    new_tokens = min(1024, 32 * math.ceil((texts.answer_bytes / 2 + 16) / 32))  # few tokenizers need one for two bytes
    if texts.answer_calls:
        reason = "answers call tools, whose JSON has many right spellings, so the verdict is by loss"
        return Evaluation((), reason, new_tokens)
    labels, longest = different_labels(scan), int(scan.answer_characters.max())
    more = sum(rows for characters, rows in texts.earlier.items() if characters > longest)
    if more > MOST_OF_SEVERAL_TURNS * int((scan.own & ~scan.raw_text).sum()):
        taught = "turns before the last call tools" if texts.earlier_calls else "turns before the last say more"
        reason = f"{taught} and are learned, too; metrics read the last turn alone, so the verdict is by loss"
        return Evaluation((), reason, new_tokens)
    if texts.json_objects:
        reason = "every answer is a JSON object: equal as a whole, field by field, and whether it is JSON"
        return Evaluation(("json_exact", "json_fields", "json_valid"), reason, new_tokens)
    if texts.json_structures:
        reason = "every answer is a JSON object or list: equal as a whole, value by value, and whether it is JSON"
        return Evaluation(("json_exact", "json_field_f1", "json_valid"), reason, new_tokens)
    if labels is not None:
        ones = "one" if labels == 1 else f"{labels:,} different ones"
        reason = f"the answers are labels: {ones}, of at most {longest} character{'s' if longest > 1 else ''}"
        if labels > MOST_LABELS:
            return Evaluation(("exact_match",), reason, new_tokens)
        if find_spec("sklearn") is None:
            return Evaluation(("exact_match",), f"{reason}; figures by label: {pip_install('metrics')}", new_tokens)
        return Evaluation(("accuracy", "macro_f1"), reason, new_tokens)
    if texts.numbers:
        return Evaluation(("exact_match",), "every answer is a number", new_tokens)
    reason = "free text has many right answers, so the verdict is by loss; or name a function: [my_module:score]"
    return Evaluation((), reason, new_tokens)


def length_of(scan: Scan, texts: Texts, config: Mapping[str, Any] | None, folder: Path | None) -> Length:
    """``data.max_length``, so that no row is refused for its length where the model has room for it.

    Args:
        scan: the rows.
        texts: the longest conversations.
        config: of the model, if it is at hand.
        folder: the model's, whose tokenizer counts if there is one.
    """
    positions = _positions(config or {})
    if only_documents(scan):
        return Length(min(LEAST_LENGTH, positions), "tokens; a longer document is split into blocks, none is lost")
    counted = _counted(texts.longest, folder)
    if counted is None:
        about = max(max(map(len, texts.longest)) // CHARACTERS_PER_TOKEN, 1)
        most, reason = max(len(text.encode(errors="replace")) for text in texts.longest) / 2, "by its characters"
    else:
        about = most = max(counted, 1)
        reason = "by the model's tokenizer"
    wanted = 2 ** math.ceil(math.log2(max(LEAST_LENGTH, 1.25 * most + ROOM)))
    reason = f"tokens; the text of the longest row has about {about:,}, {reason}"
    if about + ROOM > positions:
        return Length(
            int(positions),
            f"{reason}; the model has {positions:,} positions",
            f"The longest row has about {about:,} tokens, and the model has {positions:,} positions: rows that are "
            "longer are left out of training and counted (data.too_long: drop)",
        )
    return Length(int(min(wanted, positions)), reason)


def _positions(config: Mapping[str, Any]) -> int:
    """Those that the model has; more than any row needs where the config does not say it."""
    inner = config.get("text_config")
    for values in (inner, config):
        found = values.get("max_position_embeddings") if isinstance(values, Mapping) else None
        if isinstance(found, int) and found > 0:
            return found
    return 2**31


def _counted(texts: Iterable[str], folder: Path | None) -> int | None:
    """Tokens of the longest text; None where there is no tokenizer to count with."""
    if folder is None or not (folder / "tokenizer.json").is_file():
        return None
    from tokenizers import Tokenizer

    file = str(folder / "tokenizer.json")
    refuse_odd_tokenizer(folder)
    try:
        tokenizer = Tokenizer.from_file(file)
    except BaseException as error:
        if is_panic(error):
            raise unreadable_tokenizer(folder, RuntimeError(str(error))) or error from error
        if isinstance(error, Exception):
            return None  # the library raises no other class; the run itself says what is wrong
        raise
    tokenizer.no_truncation()
    tokenizer.no_padding()
    most = 0
    for text in texts:
        with tokenizing(len(text), where=file):
            most = max(most, len(tokenizer.encode(text).ids))
    return most


def template_for_calls(texts: Texts, folder: Path | None) -> tuple[str | None, str | None]:
    """The chat template that writes the rows' tool calls where the model's own does not, or a warning if none does.

    ``folder``: the model's, if it is at hand.
    """
    if not texts.calls or folder is None or writes_tool_calls(folder):
        return None, None
    if knows_chatml(folder):
        return CHATML_TOOLS, None
    return None, (
        "The model's chat template does not write tool calls, so `train` refuses the rows that have some. Name another "
        "model with --model, or give a template in data.chat_template."
    )


def needed_keys(scan: Scan, template: str | None) -> dict[str, tuple[str, str]]:
    """Keys of the data section without which a run would refuse these rows, each with its value and the reason.

    ``template``: the name of a chat template, if the model's own does not do.
    """
    found = {}
    if template is not None:
        found["chat_template"] = template, "the model's own template does not write the tool calls of the rows"
    bad = sum(not isinstance(row, LeftOut) for row in scan.bad)
    if bad:
        said = f"{rows_in_words(bad)} cannot be used (`tunesmith check` says why) and {'is' if bad == 1 else 'are'}"
        found["on_error"] = "skip", f"{said} set aside in rejected.jsonl"
    marked = int((scan.marks[scan.own] >> np.uint64(RULE_NUMBERS["template_tokens"]) & np.uint64(1)).sum())
    if marked:
        said = f"{rows_in_words(marked)} with control tokens of templates in the text: encoded as plain text"
        found["control_tokens"] = "text", said
    return found
