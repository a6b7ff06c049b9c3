"""The ledger: where every row of every source went, in rows, in tokens and in supervised tokens."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(slots=True)
class RowCounts:
    """What was read, and where it went, in the order in which a row can leave. Each row has one outcome.

    ``invalid`` rows are no examples and have no tokens; so are ``left_out`` rows, which the tool that wrote the file
    marks as not to be used. ``duplicate`` to ``unbalanced`` are what ``data.clean`` took
    out; ``test`` is kept apart from training and verdict.
    """

    read: int = 0
    invalid: int = 0
    left_out: int = 0
    duplicate: int = 0
    leaked: int = 0
    unbalanced: int = 0
    too_long: int = 0
    held_out: int = 0
    test: int = 0
    trained: int = 0

    def check(self, name: str, unit: str = "rows") -> None:
        """Asserts that all that was read has exactly one outcome."""
        counts = asdict(self)
        placed = sum(counts.values()) - self.read
        assert self.read == placed, f"{name}: {self.read} {unit} read, {placed} accounted for: {self}"
        assert min(counts.values()) >= 0, f"{name}: a negative count of {unit}: {self}"

    def __add__(self, other: RowCounts) -> RowCounts:
        return RowCounts(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))


OUTCOMES = tuple(each.name for each in fields(RowCounts) if each.name != "read")
KEPT_OUTCOMES = ("trained", "held_out", "test")
LOST_OUTCOMES = tuple(name for name in OUTCOMES if name not in (*KEPT_OUTCOMES, "left_out"))


@dataclass(slots=True)
class Account:
    """One source, in three units. ``truncated`` rows are among the kept ones: trained, held out or test.

    So are ``split`` rows of raw text, longer than a row may be, which became ``blocks`` rows of tokens.
    """

    rows: RowCounts = field(default_factory=RowCounts)
    tokens: RowCounts = field(default_factory=RowCounts)
    supervised: RowCounts = field(default_factory=RowCounts)
    truncated: int = 0
    split: int = 0
    blocks: int = 0

    def check(self, name: str) -> None:
        """Asserts that each unit adds up, and that no outcome has more labels than tokens."""
        for unit in ("rows", "tokens", "supervised"):
            getattr(self, unit).check(name, unit)
        kept = self.rows.held_out + self.rows.test + self.rows.trained
        assert 0 <= self.truncated <= kept, f"{name}: more rows truncated than kept: {self}"
        assert 0 <= self.split <= kept, f"{name}: more rows split than kept: {self}"
        assert 2 * self.split <= self.blocks, f"{name}: a row split into one block: {self}"
        for outcome in OUTCOMES:
            tokens, labels = getattr(self.tokens, outcome), getattr(self.supervised, outcome)
            assert labels <= tokens, f"{name}: {labels} labels among {tokens} tokens ({outcome})"

    def __add__(self, other: Account) -> Account:
        return Account(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))


@dataclass(slots=True)
class EpochTokens:
    """Tokens of the first epoch: in its rows, learned, and computed once prefixes are shared."""

    total: int = 0
    supervised: int = 0
    computed: int = 0


@dataclass(slots=True)
class Ledger:
    """All sources. ``tokenized``: tokens are known. ``epoch`` is filled once the rows are laid out."""

    sources: dict[str, Account] = field(default_factory=dict)
    tokenized: bool = False
    epoch: EpochTokens | None = None

    def source(self, name: str) -> Account:
        """The account of one source, to add to."""
        return self.sources.setdefault(name, Account())

    @property
    def total(self) -> Account:
        """The sum over the sources."""
        return sum(self.sources.values(), Account())

    def check(self) -> None:
        """Asserts that everything adds up, source by source: a difference is a bug and never a user's mistake."""
        for name, account in self.sources.items():
            account.check(name)

    def in_words(self) -> list[str]:
        """A line for each unit that is known: what was read, and where it went; and one for rows that were split."""
        total = self.total
        units = [("rows", total.rows)]
        if self.tokenized:
            units += [("tokens", total.tokens), ("supervised tokens", total.supervised)]
        lines = []
        for unit, counts in units:
            parts = [(outcome, getattr(counts, outcome)) for outcome in OUTCOMES]
            went = ", ".join(f"{count:,} {outcome.replace('_', ' ')}" for outcome, count in parts if count)
            lines.append(f"{unit}: {counts.read:,} read: {went or 'none'}")
        if total.split:
            lines.append(f"split: {total.split:,} of the rows, which are raw text, into {total.blocks:,} blocks")
        return lines

    def to_json(self) -> dict[str, Any]:
        """``{rows, tokens, supervised, truncated, split, blocks, sources: {path: the same}, epoch}``.

        Tokens are null where they are not known.
        """
        return {
            **self._units(self.total),
            "sources": {name: self._units(account) for name, account in self.sources.items()},
            "epoch": asdict(self.epoch) if self.epoch else None,
        }

    def _units(self, account: Account) -> dict[str, Any]:
        units = asdict(account)
        return units if self.tokenized else {**units, "tokens": None, "supervised": None}
