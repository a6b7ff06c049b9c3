"""What stands out in the data, computed from a scan: repeats, contradictions, leaks, balance, and marks of single rows.

Every finding names all of its rows: both of a pair, and those on both sides of a leak.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tunesmith.data.checks.facts import LABEL_LENGTH, RULE_NUMBERS
from tunesmith.data.checks.rules import RULES
from tunesmith.data.checks.scan import SIDES, Scan, first_of
from tunesmith.data.checks.scripts import NO_SCRIPT
from tunesmith.data.examples.row_shapes import PREFERENCES
from tunesmith.data.finding import Finding, Severity, rows_in_words
from tunesmith.data.placement import AGAINST, PLACE
from tunesmith.recipe.methods import FULL_ROWS, LORA_ROWS

CHARACTERS_PER_TOKEN = 4
LABELS, ROWS_A_LABEL = 500, 3  # answers are labels if there are few, and each is given several times
FEW_OF_A_LABEL = 10
MOST_LEAKED = 0.05  # share of the held-out rows, beyond which a verdict on them says nothing
MINOR_SCRIPT = 0.05


@dataclass(frozen=True, slots=True)
class Label:
    """An answer that is given again and again, and how many good rows of all sides give it."""

    text: str
    rows: int
    number: int


def findings(
    scan: Scan,
    place: np.ndarray,
    *,
    method: str | None = None,
    max_length: int = 2048,
    split: bool = False,
    stops: bool = True,
) -> list[Finding]:
    """What the owner of the data should know, the gravest first.

    Args:
        place: what becomes of each row, of ``clean.place_rows``.
        method: full, freeze, lora or qlora, for the advice on the number of rows.
        max_length: tokens in a row; without a tokenizer, four characters count as one.
        split: whether raw text may be longer, because it is split.
        stops: whether bad rows stop a run.
    """
    labels = labels_of(scan)
    made = [
        *_invalid(scan, stops),
        *_repeats(scan, place, are_labels=labels is not None),
        *_leaks(scan, place),
        *_marks(scan, are_labels=labels is not None),
        _few_of_a_label(scan, labels or []),
        _minor_script(scan),
        _size(place, method),
        _length(scan, max_length, split),
    ]
    order = {"error": 0, "warning": 1, "info": 2}
    return sorted((finding for finding in made if finding is not None), key=lambda each: order[each.severity])


def labels_of(scan: Scan) -> list[Label] | None:
    """The answers, the most frequent first, where they are few, short and repeated; else None."""
    rows = scan.own & ~scan.raw_text
    if not rows.any() or scan.answer_characters[rows].max() > LABEL_LENGTH:
        return None
    numbers, counts = np.unique(scan.answer[rows], return_counts=True)
    if len(numbers) > min(LABELS, rows.sum() / ROWS_A_LABEL):
        return None
    made = [
        Label(scan.labels[number], count, number)
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True)
    ]
    return sorted(made, key=lambda label: (-label.rows, label.text))


def _finding(
    scan: Scan, identity: str, severity: Severity, rows: np.ndarray, words: str, remedy: str
) -> Finding | None:
    """``rows``: numbers, or bool [rows]. ``{rows}`` in the words is their count."""
    numbers = np.flatnonzero(rows) if rows.dtype == bool else rows
    if not len(numbers):
        return None
    message = words.replace("{rows}", rows_in_words(len(numbers)))
    return Finding(identity, severity, scan.places(numbers), message, remedy)


def _invalid(scan: Scan, stops: bool) -> Iterator[Finding | None]:
    other = scan.side == SIDES.index("against")
    yield _finding(
        scan,
        "invalid_rows",
        "error" if stops else "warning",
        ~scan.good & ~other,
        "{rows} that cannot be read, or used as an example",
        "correct them, or set data.on_error: skip to set them aside",
    )
    yield _finding(
        scan,
        "invalid_rows_against",
        "warning",
        ~scan.good & other,
        "{rows} of what the data is held against cannot be read or used",
        "correct them: what stands in them was not looked for",
    )


def _repeats(scan: Scan, place: np.ndarray, *, are_labels: bool) -> Iterator[Finding | None]:
    train = np.flatnonzero(scan.side_is("train"))
    content, prompt = first_of(scan.content[train]), first_of(scan.prompt[train])
    again = _in_groups(content)
    several = len(np.unique(content[again]))
    yield _finding(
        scan,
        "duplicate_rows",
        "warning",
        train[again],
        f"{{rows}} to train on are only {several:,} different ones, each given several times",
        "data.clean: [dedupe] keeps the first of each; leave them if they should count more than once",
    )
    different = _distinct_in_group(prompt, content) & ~scan.raw_text[train]
    if any(each.reader.shape in PREFERENCES for each in scan.sources):  # that is what such rows are for
        different[:] = False
    yield _finding(
        scan,
        "contradicting_labels" if are_labels else "conflicting_answers",
        "warning",
        train[different],
        f"{len(np.unique(prompt[different])):,} prompts to train on have several answers ({{rows}})"
        if not are_labels
        else f"{len(np.unique(prompt[different])):,} prompts to train on have several labels ({{rows}})",
        "if there is one right answer, correct the others; if several are right, leave them",
    )
    if scan.near is not None:
        cluster = scan.near[train]
        near = _distinct_in_group(cluster, prompt)  # one prompt with several answers is a contradiction
        yield _finding(
            scan,
            "near_duplicates",
            "warning",
            train[near],
            f"{{rows}} to train on are {len(np.unique(cluster[near])):,} texts in slightly different words",
            "data.clean: [near_dedupe] keeps the first of each",
        )


def _leaks(scan: Scan, place: np.ndarray) -> Iterator[Finding | None]:
    """Rows of both sides. What was taken out of the training rows already leaks no more."""
    train = place == PLACE["trained"]
    away = scan.good & np.isin(place, [PLACE["held_out"], PLACE["test"], AGAINST])
    if not away.any():
        return
    prompt = first_of(scan.prompt)
    yield _leak(
        scan, "leakage", [prompt], train, away, "{count} of {of} held-out rows have a prompt that training sees"
    )
    if scan.near is not None:
        known = np.isin(prompt, prompt[train]) & away
        words = "{count} of {of} held-out rows have a near duplicate among the rows to train on"
        yield _leak(scan, "near_leakage", [scan.near, scan.plain], train, away & ~known, words, of=int(away.sum()))


def _leak(
    scan: Scan,
    identity: str,
    groups: Sequence[np.ndarray],
    train: np.ndarray,
    away: np.ndarray,
    words: str,
    of: int | None = None,
) -> Finding | None:
    """``groups``: rows of one number in any of them are the same."""
    leaked, source = np.zeros(len(scan), bool), np.zeros(len(scan), bool)
    for group in groups:
        found = away & np.isin(group, group[train])
        leaked |= found
        source |= train & np.isin(group, group[found])
    count, of = int(leaked.sum()), int(away.sum()) if of is None else of
    return _finding(
        scan,
        identity,
        "error" if identity == "leakage" and count > MOST_LEAKED * of else "warning",
        leaked | source,
        words.format(count=f"{count:,}", of=f"{of:,}"),
        "data.clean: [drop_leaked] takes them out of training"
        if identity == "leakage"
        else "data.clean: [near_dedupe, drop_leaked] takes them out of training",
    )


def _marks(scan: Scan, *, are_labels: bool) -> Iterator[Finding | None]:
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
    named = ", ".join(f"{label.text!r} ({label.rows})" for label in reversed(few[-5:]))
    return _finding(
        scan,
        "rare_labels",
        "info",
        scan.own & np.isin(scan.answer, np.array([label.number for label in few], np.uint64)),
        f"{len(few)} of {len(labels)} labels have fewer than {FEW_OF_A_LABEL} rows ({{rows}}); the smallest: {named}",
        "add rows of these, or join labels; what is seen seldom is seldom learned",
    )


def _minor_script(scan: Scan) -> Finding | None:
    counts = np.bincount(scan.script[scan.own], minlength=len(scan.scripts))
    if not counts.sum() or counts.max() < (1 - MINOR_SCRIPT) * counts.sum():
        return None
    main = int(counts.argmax())
    other = scan.own & (scan.script != main)
    if NO_SCRIPT in scan.scripts:
        other &= scan.script != scan.scripts.index(NO_SCRIPT)
    return _finding(
        scan,
        "other_script",
        "info",
        other,
        f"{{rows}} are written in another script than the rest, which is {scan.scripts[main]}",
        "look at them: a model learns little from a handful of rows in another script",
    )


def _size(place: np.ndarray, method: str | None) -> Finding | None:
    wanted = FULL_ROWS if method == "full" else LORA_ROWS
    count = int((place == PLACE["trained"]).sum())
    if count >= wanted:
        return None
    advice = "add rows, or take method lora, which needs fewer" if method == "full" else "add rows if you can"
    message = f"{rows_in_words(count)} to train on; the guide says 1K-10K for LoRA and 10K or more for full fine-tuning"
    return Finding("few_rows", "info", [], message, advice)


def _length(scan: Scan, max_length: int, split: bool) -> Finding | None:
    longest = max_length * CHARACTERS_PER_TOKEN
    rows = scan.own & ~scan.raw_text if split else scan.own
    return _finding(
        scan,
        "long_rows",
        "info",
        rows & (scan.characters > longest),
        f"{{rows}} of more than {longest:,} characters, so probably of more than {max_length:,} tokens",
        "raise data.max_length, shorten them, or choose data.too_long: drop or truncate",
    )


def _in_groups(group: np.ndarray) -> np.ndarray:
    """Rows that are not the only one of their group, bool [n]."""
    _, inverse, counts = np.unique(group, return_inverse=True, return_counts=True)
    return counts[inverse] > 1


def _distinct_in_group(group: np.ndarray, content: np.ndarray) -> np.ndarray:
    """Rows of groups that hold more than one content, bool [n]."""
    pairs = np.unique(np.stack([group, content]), axis=1)
    groups, counts = np.unique(pairs[0], return_counts=True)
    return np.isin(group, groups[counts > 1])
