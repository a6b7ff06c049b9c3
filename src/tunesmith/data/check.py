"""The ledger of where every row went, what stands out in the data, and the split of held-out rows."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from tunesmith.data.example import Example
from tunesmith.errors import DataError

ROWS_NAMED = 20
LORA_ROWS, FULL_ROWS = 1_000, 10_000  # the guide: 1K-10K examples for LoRA, 10K and more for full fine-tuning
CHARACTERS_PER_TOKEN = 4


@dataclass(slots=True)
class RowCounts:
    """Rows by where they went. `truncated` are among the trained and held-out ones; every other count is disjoint."""

    read: int = 0
    invalid: int = 0
    duplicate: int = 0
    too_long: int = 0
    truncated: int = 0
    held_out: int = 0
    trained: int = 0

    def check(self, name: str) -> None:
        """Asserts that every row read went to exactly one place."""
        placed = self.invalid + self.duplicate + self.too_long + self.held_out + self.trained
        assert self.read == placed, f"{name}: {self.read} rows read, {placed} accounted for: {self}"
        assert self.truncated <= self.held_out + self.trained, f"{name}: more rows truncated than kept: {self}"
        assert min(asdict(self).values()) >= 0, f"{name}: a negative count: {self}"


@dataclass(slots=True)
class TokenCounts:
    """Tokens of the training rows, once through: all of them, those that are labels, those the layout computes."""

    total: int = 0
    supervised: int = 0
    computed: int = 0


@dataclass(slots=True)
class Ledger:
    """Where every row of every source went, and the tokens of those that train."""

    sources: dict[str, RowCounts] = field(default_factory=dict)
    tokens: TokenCounts = field(default_factory=TokenCounts)

    def source(self, name: str) -> RowCounts:
        """The counts of one source, to add to."""
        return self.sources.setdefault(name, RowCounts())

    @property
    def rows(self) -> RowCounts:
        """The sums over all sources."""
        return RowCounts(*(sum(getattr(c, f.name) for c in self.sources.values()) for f in fields(RowCounts)))

    def check(self) -> None:
        """Asserts that the counts add up, source by source: a difference is a bug and never a user's mistake."""
        for name, counts in self.sources.items():
            counts.check(name)
        assert 0 <= self.tokens.supervised <= self.tokens.total, f"more labels than tokens: {self.tokens}"

    def to_json(self) -> dict[str, Any]:
        """{"rows": sums, "tokens": ..., "sources": {path: counts}}, for ledger.json."""
        sources = {name: asdict(counts) for name, counts in self.sources.items()}
        return {"rows": asdict(self.rows), "tokens": asdict(self.tokens), "sources": sources}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about the data that its owner should know.

    An error makes the run's verdict worthless; a warning is probably a mistake; an info is advice. `count` is exact,
    `rows` name the first of them.
    """

    id: str
    severity: Literal["error", "warning", "info"]
    count: int
    rows: list[str]
    message: str
    remedy: str


def findings(
    train: Sequence[Example],
    evaluation: Sequence[Example] = (),
    *,
    method: str | None = None,
    max_length: int = 2048,
) -> list[Finding]:
    """What stands out: duplicates, one prompt with several answers, prompts on both sides, few rows, long rows.

    Args:
        train: rows to train on.
        evaluation: held-out rows.
        method: full, lora or qlora, for the advice on the number of rows.
        max_length: tokens in a row; without a tokenizer, four characters count as one.
    """
    found = [
        _duplicates(train),
        _conflicts(train),
        _leakage(train, evaluation),
        _size(train, method),
        _length([*train, *evaluation], max_length),
    ]
    return [finding for finding in found if finding is not None]


def split(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """(train, held out), by a hash of the seed and the prompt: each prompt is held out with probability `share`.

    Rows with the same prompt stay together, and rows added later move no other row to the other side.

    Raises:
        DataError: one side would be empty.
    """
    assert 0 < share < 1, f"a share of {share}"
    sides: tuple[list[Example], list[Example]] = ([], [])
    for example in examples:
        digest = hashlib.sha256(f"{seed}\n{example.prompt_key()}".encode()).digest()
        sides[int.from_bytes(digest[:8], "big") < share * 2**64].append(example)
    if not sides[0] or not sides[1]:
        prompts = len({example.prompt_key() for example in examples})
        raise DataError(
            f"a share of {share} leaves no row for {'evaluation' if sides[0] else 'training'}",
            why=f"{len(examples)} rows with {prompts} different prompts, held out by a hash of the prompt",
            remedy="give more rows, another share or seed, or a file of its own: data.eval: held_out.jsonl",
        )
    return sides


def _duplicates(train: Sequence[Example]) -> Finding | None:
    seen: set[str] = set()
    again = []
    for example in train:
        key = example.content_key()
        if key in seen:
            again.append(example)
        seen.add(key)
    return _finding(
        "duplicate_rows",
        "warning",
        again,
        f"{_rows(len(again))} in training repeat an earlier row exactly",
        "remove them, or leave them if they should count more than once",
    )


def _conflicts(train: Sequence[Example]) -> Finding | None:
    by_prompt: defaultdict[str, list[Example]] = defaultdict(list)
    for example in train:
        by_prompt[example.prompt_key()].append(example)
    groups = [group for group in by_prompt.values() if len(group) > 1 and len({row.content_key() for row in group}) > 1]
    return _finding(
        "conflicting_answers",
        "warning",
        [row for group in groups for row in group],
        f"{len(groups):,} prompt{'' if len(groups) == 1 else 's'} in training with different answers",
        "if there is one right answer, correct the others; if several are right, leave them",
    )


def _leakage(train: Sequence[Example], evaluation: Sequence[Example]) -> Finding | None:
    prompts = {example.prompt_key() for example in train}
    leaked = [example for example in evaluation if example.prompt_key() in prompts]
    return _finding(
        "leakage",
        "error" if 2 * len(leaked) > len(evaluation) else "warning",
        leaked,
        f"{len(leaked):,} of {len(evaluation):,} held-out rows have a prompt that training sees",
        "remove them from one side; data.eval: 0.1 holds out whole prompts",
    )


def _size(train: Sequence[Example], method: str | None) -> Finding | None:
    wanted = FULL_ROWS if method == "full" else LORA_ROWS
    if len(train) >= wanted:
        return None
    advice = "add rows, or take method lora, which needs fewer" if method == "full" else "add rows if you can"
    message = f"{_rows(len(train))} to train on; the guide says 1K-10K for LoRA and 10K or more for full fine-tuning"
    return Finding("few_rows", "info", len(train), [], message, advice)


def _length(examples: Iterable[Example], max_length: int) -> Finding | None:
    longest = max_length * CHARACTERS_PER_TOKEN
    return _finding(
        "long_rows",
        "info",
        [example for example in examples if example.characters() > longest],
        f"rows of more than {longest:,} characters, so probably of more than {max_length:,} tokens",
        "raise data.max_length, shorten them, or choose data.too_long: drop or truncate",
    )


def _finding(
    identity: str,
    severity: Literal["error", "warning", "info"],
    rows: Sequence[Example],
    message: str,
    remedy: str,
) -> Finding | None:
    if not rows:
        return None
    return Finding(identity, severity, len(rows), [row.source for row in rows[:ROWS_NAMED]], message, remedy)


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"
