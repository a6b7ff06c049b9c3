"""The ledger: where every row of every source went, in rows, in tokens and in supervised tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(slots=True)
class Counts:
    """What was read, and the places it went to, in the order in which a row can leave. Places are disjoint.

    ``invalid`` rows are no examples and have no tokens. ``duplicate`` to ``unbalanced`` are what ``data.clean`` took
    out; ``test`` is kept apart from training and verdict.
    """

    read: int = 0
    invalid: int = 0
    duplicate: int = 0
    leaked: int = 0
    unbalanced: int = 0
    too_long: int = 0
    held_out: int = 0
    test: int = 0
    trained: int = 0

    def check(self, name: str, unit: str = "rows") -> None:
        """Asserts that all that was read went to exactly one place."""
        counts = asdict(self)
        placed = sum(counts.values()) - self.read
        assert self.read == placed, f"{name}: {self.read} {unit} read, {placed} accounted for: {self}"
        assert min(counts.values()) >= 0, f"{name}: a negative count of {unit}: {self}"


PLACES = tuple(each.name for each in fields(Counts) if each.name != "read")


@dataclass(slots=True)
class Account:
    """One source, in three units. ``truncated`` rows are among the kept ones: trained, held out or test.

    So are ``split`` rows of raw text, longer than a row may be, which became ``blocks`` rows of tokens.
    """

    rows: Counts = field(default_factory=Counts)
    tokens: Counts = field(default_factory=Counts)
    supervised: Counts = field(default_factory=Counts)
    truncated: int = 0
    split: int = 0
    blocks: int = 0

    def check(self, name: str) -> None:
        """Asserts that each unit adds up, and that no place has more labels than tokens."""
        for unit in ("rows", "tokens", "supervised"):
            getattr(self, unit).check(name, unit)
        kept = self.rows.held_out + self.rows.test + self.rows.trained
        assert 0 <= self.truncated <= kept, f"{name}: more rows truncated than kept: {self}"
        assert 0 <= self.split <= kept, f"{name}: more rows split than kept: {self}"
        assert 2 * self.split <= self.blocks, f"{name}: a row split into one block: {self}"
        for place in PLACES:
            tokens, labels = getattr(self.tokens, place), getattr(self.supervised, place)
            assert labels <= tokens, f"{name}: {labels} labels among {tokens} tokens ({place})"


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
    def rows(self) -> Counts:
        """Rows, summed over the sources."""
        return _sum(account.rows for account in self.sources.values())

    @property
    def tokens(self) -> Counts:
        """Tokens, summed over the sources."""
        return _sum(account.tokens for account in self.sources.values())

    @property
    def supervised(self) -> Counts:
        """Tokens that are labels, summed over the sources."""
        return _sum(account.supervised for account in self.sources.values())

    @property
    def truncated(self) -> int:
        """Rows that were cut."""
        return sum(account.truncated for account in self.sources.values())

    @property
    def split(self) -> int:
        """Rows that were split."""
        return sum(account.split for account in self.sources.values())

    @property
    def blocks(self) -> int:
        """What split rows became."""
        return sum(account.blocks for account in self.sources.values())

    def check(self) -> None:
        """Asserts that everything adds up, source by source: a difference is a bug and never a user's mistake."""
        for name, account in self.sources.items():
            account.check(name)

    def in_words(self) -> list[str]:
        """A line for each unit that is known: what was read, and where it went; and one for rows that were split."""
        units = [("rows", self.rows)]
        if self.tokenized:
            units += [("tokens", self.tokens), ("supervised tokens", self.supervised)]
        lines = []
        for unit, counts in units:
            parts = [(place, getattr(counts, place)) for place in PLACES]
            went = ", ".join(f"{count:,} {place.replace('_', ' ')}" for place, count in parts if count)
            lines.append(f"{unit}: {counts.read:,} read: {went or 'none'}")
        if self.split:
            lines.append(f"split: {self.split:,} of the rows, which are raw text, into {self.blocks:,} blocks")
        return lines

    def to_json(self) -> dict[str, Any]:
        """``{rows, tokens, supervised, truncated, split, blocks, sources: {path: the same}, epoch}``.

        Tokens are null where they are not known.
        """
        whole = Account(self.rows, self.tokens, self.supervised, self.truncated, self.split, self.blocks)
        return {
            **self._units(whole),
            "sources": {name: self._units(account) for name, account in self.sources.items()},
            "epoch": asdict(self.epoch) if self.epoch else None,
        }

    def _units(self, account: Account) -> dict[str, Any]:
        known = self.tokenized
        return {
            "rows": asdict(account.rows),
            "tokens": asdict(account.tokens) if known else None,
            "supervised": asdict(account.supervised) if known else None,
            "truncated": account.truncated,
            "split": account.split,
            "blocks": account.blocks,
        }


def _sum(parts: Iterable[Counts]) -> Counts:
    parts = list(parts)
    return Counts(*(sum(getattr(part, each.name) for part in parts) for each in fields(Counts)))
