"""What stands out in the data, computed from a scan: repeats, contradictions, leaks, balance, and marks of single rows.

Every finding names all of its rows: both of a pair, and those of both splits for a leak.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tunesmith.data.checks.facts import LABEL_LENGTH, RULE_NUMBERS
from tunesmith.data.checks.personal import masked
from tunesmith.data.checks.rules import RULES
from tunesmith.data.checks.scan import SOURCE_SIDES, Scan, first_of
from tunesmith.data.checks.scripts import NO_SCRIPT
from tunesmith.data.examples.column_names import is_label_name
from tunesmith.data.examples.labels import ANSWER
from tunesmith.data.examples.row_shapes import PREFERENCES
from tunesmith.data.finding import Finding, Severity, rows_in_words
from tunesmith.data.placement import NO_OUTCOME, OUTCOME
from tunesmith.recipe.methods import FULL_ROWS, LORA_ROWS

CHARACTERS_PER_TOKEN = 4
LABELS, ROWS_A_LABEL = 500, 3  # answers are labels if there are few, and each is given several times
SHORT_LABEL, ROWS_OF_A_LABEL = 60, 1.5  # of a column that is called label, or the like
FEW_OF_A_LABEL = 10
LEAST_OF_ONE_ANSWER = 3  # rows
MOST_LEAKED = 0.05  # share of the held-out rows, beyond which a verdict on them says nothing
MINOR_SCRIPT = 0.05

# Severity, message and remedy of each finding. ``{rows}`` stands for the number of rows, such as 12 rows.
# fmt: off
_FINDINGS: dict[str, tuple[Severity, str, str]] = {
    "invalid_rows": (
        "warning", "{rows} that cannot be read, or used as an example",
        "{remedy}"),
    "one_answer": (
        "warning", "{rows} to train on all end with the same answer, {answer}",
        "add rows with other answers, or name the column that holds the answers: the model learns to say this always"),
    "invalid_rows_against": (
        "warning", "{rows} of the data to compare with cannot be read or used",
        "correct them: their contents were not compared"),
    "duplicate_rows": (
        "warning", "{rows} to train on are only {several:,} different ones, each given several times",
        "data.clean: [dedupe] keeps the first of each; leave them if they should count more than once"),
    "contradicting_labels": (
        "warning", "{prompts:,} prompts to train on have several labels ({rows})",
        "if there is one right answer, correct the others; if several are right, leave them"),
    "conflicting_answers": (
        "warning", "{prompts:,} prompts to train on have several answers ({rows})",
        "if there is one right answer, correct the others; if several are right, leave them"),
    "near_duplicates": (
        "warning", "{rows} to train on are {texts:,} texts in slightly different words",
        "data.clean: [near_dedupe] keeps the first of each"),
    "leakage": (
        "warning", "{count:,} of {held_out:,} held-out rows have a prompt that training sees",
        "data.clean: [drop_leaked] takes them out of training"),
    "near_leakage": (
        "warning", "{count:,} of {held_out:,} held-out rows have a near duplicate among the rows to train on",
        "data.clean: [near_dedupe, drop_leaked] takes them out of training"),
    "rare_labels": (
        "info", "{few} of {labels} labels have fewer than {least} rows ({rows}); the smallest: {named}",
        "add rows of these, or join labels; the model learns rare labels poorly"),
    "one_sided_labels": (
        "warning",
        "{rows} to train on are all labelled {kind}; kto learns from the difference between good and bad answers",
        "{remedy}"),
    "other_script": (
        "info", "{rows} are written in another script than the rest, which is {main}",
        "look at them: a model learns little from a handful of rows in another script"),
    "long_rows": (
        "info", "{rows} of more than {characters:,} characters, so probably of more than {tokens:,} tokens",
        "raise data.max_length, shorten them, or choose data.too_long: drop or truncate"),
}
# fmt: on


@dataclass(frozen=True, slots=True)
class Label:
    """An answer that is given again and again, without personal data, and how many good rows of all sources give it."""

    text: str
    rows: int
    number: int


def findings(
    scan: Scan,
    outcome: np.ndarray,
    *,
    method: str | None = None,
    max_length: int = 2048,
    split: bool = False,
    stops: bool = True,
) -> list[Finding]:
    """What the owner of the data should know, the gravest first.

    Args:
        outcome: what becomes of each row, of ``placement.place_rows``.
        method: full, freeze, lora or qlora, for the advice on the number of rows.
        max_length: tokens in a row; without a tokenizer, four characters count as one.
        split: whether raw text may be longer, because it is split.
        stops: whether bad rows stop a run.
    """
    labels = labels_of(scan)
    made = [
        *_invalid(scan, stops),
        *_repeats(scan, are_labels=labels is not None),
        *_leaks(scan, outcome),
        *_marks(scan, are_labels=labels is not None),
        _few_of_a_label(scan, labels or []),
        _one_kind_of_answer(scan),
        _one_answer(scan),
        _minor_script(scan),
        _size(outcome, method),
        _length(scan, max_length, split),
    ]
    order = {"error": 0, "warning": 1, "info": 2}
    return sorted((finding for finding in made if finding is not None), key=lambda each: order[each.severity])


def labels_of(scan: Scan) -> list[Label] | None:
    """The answers, the most frequent first, where they are few, short and repeated and none calls a tool; else None."""
    rows = scan.own & ~scan.raw_text
    if not rows.any() or scan.calls[rows].any() or scan.answer_characters[rows].max() > LABEL_LENGTH:
        return None
    numbers, counts = np.unique(scan.answer[rows], return_counts=True)
    if len(numbers) > min(LABELS, rows.sum() / ROWS_A_LABEL):
        return None
    pairs = zip(numbers.tolist(), counts.tolist(), strict=True)
    made = [Label(masked(scan.labels[number]), count, number) for number, count in pairs]
    return sorted(made, key=lambda label: (-label.rows, label.text))


def different_labels(scan: Scan) -> int | None:
    """The number of different labels; None where the answers are none.

    A column that is called label, category or the like needs fewer repeats to be one.
    """
    known = labels_of(scan)
    if known is not None:
        return len(known)
    reader, rows = scan.sources[0].reader, scan.own & ~scan.raw_text
    field = ANSWER.get(reader.shape)
    if field is None or not is_label_name(reader.source.columns.get(field, field)):
        return None
    if scan.calls[rows].any():
        return None
    different = len(np.unique(scan.answer[rows]))
    short = scan.answer_characters[rows].max() <= SHORT_LABEL
    return different if short and different * ROWS_OF_A_LABEL <= rows.sum() else None


def _finding(
    scan: Scan, identity: str, rows: np.ndarray, *, grave: bool = False, **figures: int | str
) -> Finding | None:
    """A finding of the table; None without rows.

    Args:
        rows: numbers, or bool [rows].
        grave: it is an error, whatever the table says.
        figures: what the message and the remedy name.
    """
    numbers = np.flatnonzero(rows) if rows.dtype == bool else rows
    if not len(numbers):
        return None
    severity, message, remedy = _FINDINGS[identity]
    words = message.format(rows=rows_in_words(len(numbers)), **figures)
    return Finding(identity, "error" if grave else severity, scan.places(numbers), words, remedy.format(**figures))


def _invalid(scan: Scan, stops: bool) -> Iterator[Finding | None]:
    other = scan.side == SOURCE_SIDES.index("against")
    remedy = "correct them, or set data.on_error: skip to set them aside"
    if not stops:
        remedy = "they are set aside in rejected.jsonl; correct them if they should be learned"
    yield _finding(scan, "invalid_rows", ~scan.good & ~scan.left_out & ~other, grave=stops, remedy=remedy)
    yield _finding(scan, "invalid_rows_against", ~scan.good & ~scan.left_out & other)


def _repeats(scan: Scan, *, are_labels: bool) -> Iterator[Finding | None]:
    train = np.flatnonzero(scan.side_is("train"))
    content, prompt = first_of(scan.content[train]), first_of(scan.prompt[train])  # [training rows]
    _, inverse, counts = np.unique(content, return_inverse=True, return_counts=True)
    again = counts[inverse] > 1
    yield _finding(scan, "duplicate_rows", train[again], several=len(np.unique(content[again])))
    different = _distinct_in_group(prompt, content) & ~scan.raw_text[train]
    if any(each.reader.shape in PREFERENCES for each in scan.sources):  # that is what such rows are for
        different[:] = False
    identity = "contradicting_labels" if are_labels else "conflicting_answers"
    yield _finding(scan, identity, train[different], prompts=len(np.unique(prompt[different])))
    if scan.near is not None:
        cluster = scan.near[train]
        near = _distinct_in_group(cluster, prompt)  # one prompt with several answers is a contradiction
        yield _finding(scan, "near_duplicates", train[near], texts=len(np.unique(cluster[near])))


def _leaks(scan: Scan, outcome: np.ndarray) -> Iterator[Finding | None]:
    """Rows of both splits. What was taken out of the training rows already leaks no more."""
    train = outcome == OUTCOME["trained"]
    away = scan.good & np.isin(outcome, [OUTCOME["held_out"], OUTCOME["test"], NO_OUTCOME])
    held_out = int(away.sum())
    if not held_out:
        return
    prompt = first_of(scan.prompt)
    leaked = away & np.isin(prompt, prompt[train])
    sources = train & np.isin(prompt, prompt[leaked])
    count = int(leaked.sum())
    grave = count > MOST_LEAKED * held_out
    yield _finding(scan, "leakage", leaked | sources, grave=grave, count=count, held_out=held_out)
    if scan.near is not None:
        away &= ~leaked
        near, sources = np.zeros((2, len(scan)), bool)
        for group in (scan.near, scan.plain):  # rows with one number in any of them are nearly the same
            found = away & np.isin(group, group[train])
            near |= found
            sources |= train & np.isin(group, group[found])
        yield _finding(scan, "near_leakage", near | sources, count=int(near.sum()), held_out=held_out)


def _marks(scan: Scan, *, are_labels: bool) -> Iterator[Finding]:
    for name, rule in RULES.items():
        if name == "answer_one_token" and are_labels:
            continue
        rows = np.flatnonzero(scan.own & (scan.marks & np.uint64(1 << RULE_NUMBERS[name]) != 0))
        if len(rows):
            message = rule.message.replace("{rows}", rows_in_words(len(rows)))
            samples = tuple(scan.samples.get(name, ()))
            yield Finding(name, rule.severity, scan.places(rows), message, rule.remedy, samples)


def _few_of_a_label(scan: Scan, labels: list[Label]) -> Finding | None:
    few = [label for label in labels if label.rows < FEW_OF_A_LABEL]
    if not few or len(few) == len(labels):
        return None
    rows = scan.own & np.isin(scan.answer, np.array([label.number for label in few], np.uint64))
    named = ", ".join(f"{label.text!r} ({label.rows})" for label in reversed(few[-5:]))
    return _finding(scan, "rare_labels", rows, few=len(few), labels=len(labels), least=FEW_OF_A_LABEL, named=named)


def _one_kind_of_answer(scan: Scan) -> Finding | None:
    """Of rows that say whether their answer is desirable: all to train on say the same."""
    judged = [each.reader.shape == "unpaired_preference" for each in scan.sources]
    rows = scan.side_is("train") & np.array(judged, bool)[scan.source]
    said = np.unique(scan.label[rows])
    if len(said) != 1:
        return None
    kind, remedy = "undesirable", "add rows with label: true"
    if said[0]:
        kind, remedy = "desirable", "add rows with label: false, or set objective: sft, which needs no others"
    return _finding(scan, "one_sided_labels", rows, kind=kind, remedy=remedy)


def _one_answer(scan: Scan) -> Finding | None:
    """The rows to train on, where all end with one answer and nothing else is learned of them but turns before it."""
    preferences = [each.reader.shape in PREFERENCES for each in scan.sources]
    rows = scan.side_is("train") & ~scan.raw_text & ~np.array(preferences, bool)[scan.source]
    if rows.sum() < LEAST_OF_ONE_ANSWER or len(answers := np.unique(scan.answer[rows])) != 1:
        return None
    text = scan.labels.get(int(answers[0]))
    return _finding(scan, "one_answer", rows, answer="a long text" if text is None else repr(masked(text)))


def _minor_script(scan: Scan) -> Finding | None:
    counts = np.bincount(scan.script[scan.own], minlength=len(scan.scripts))
    if not counts.sum() or counts.max() < (1 - MINOR_SCRIPT) * counts.sum():
        return None
    main = int(counts.argmax())
    other = scan.own & (scan.script != main)
    if NO_SCRIPT in scan.scripts:
        other &= scan.script != scan.scripts.index(NO_SCRIPT)
    return _finding(scan, "other_script", other, main=scan.scripts[main])


def _size(outcome: np.ndarray, method: str | None) -> Finding | None:
    count = int((outcome == OUTCOME["trained"]).sum())
    if count >= (FULL_ROWS if method == "full" else LORA_ROWS):
        return None
    advice = "add rows, or take method lora, which needs fewer" if method == "full" else "add rows if you can"
    message = f"{rows_in_words(count)} to train on; the guide says 1K-10K for LoRA and 10K or more for full fine-tuning"
    return Finding("few_rows", "info", [], message, advice)


def _length(scan: Scan, max_length: int, split: bool) -> Finding | None:
    longest = max_length * CHARACTERS_PER_TOKEN
    rows = scan.own & ~scan.raw_text if split else scan.own
    return _finding(scan, "long_rows", rows & (scan.characters > longest), characters=longest, tokens=max_length)


def _distinct_in_group(group: np.ndarray, content: np.ndarray) -> np.ndarray:
    """Rows of groups that hold more than one content, bool [n]."""
    pairs = np.unique(np.stack([group, content]), axis=1)
    groups, counts = np.unique(pairs[0], return_counts=True)
    return np.isin(group, groups[counts > 1])
