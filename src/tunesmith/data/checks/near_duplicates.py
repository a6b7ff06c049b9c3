"""Rows that say nearly the same: MinHash bands find candidates, edit distance confirms them, in bounded memory.

A pair counts as near-duplicate when the Levenshtein similarity of its normalised texts reaches the threshold. In short
texts one word or one figure can turn the meaning ("activate my card", "cancel my card"; "what is 7 x 8"), so less may
differ there: the part of a text that may differ falls with the square of its length below `FULL_LENGTH`. With the
default threshold 10 characters may differ at 140, 3 at 100, 1 at 65, and none below. In texts shorter than
`FIGURES_LENGTH` all figures must be the same and in the same order.
"""

from __future__ import annotations

import os
import re
import unicodedata
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Self

import numpy as np
import xxhash
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cpdist
from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue] (compiled, without types)

from tunesmith.errors import DataError
from tunesmith.runs.temporary import temporary_folder

# 40 bands of 5: a pair whose shingles have the Jaccard similarity 0.7 (a word in ten edited) is found with probability
# 0.999, one of 0.63 (5% of the characters edited) with 0.98, and one of 0.06 (unrelated prose) with 0.00003.
THRESHOLD = 0.85
BANDS, BAND_ROWS, SEED = 40, 5, 7
SHINGLE = 5
FULL_LENGTH = 200
FIGURES_LENGTH = 500  # in longer texts a figure is a detail
FIGURES = re.compile(r"\d+")
COMPARED_LENGTH = 20_000
NEIGHBOURS = 2  # a row is compared with so many others of its bucket, the most alike by another band
CROWD = 16  # rows of a bucket from which on sharing it says little
ATTEMPTS = 32  # comparisons in vain that a row may cost; bounds the whole at ATTEMPTS + 1 a row
BLOCK = 1 << 23  # characters of the pairs compared at once, which are in memory
# Characters signed at once. From 65,536 shingles or 256 texts on, rensa 0.5 starts threads of its own, and a process
# forked after that would wait for them without end.
SIGNED = 1 << 15
RECENT = 1 << 16  # hashes in a set, before they go to the sorted array
FACTOR = np.uint64(0x9E3779B97F4A7C15)
PAIR = tuple[np.ndarray, np.ndarray]


def normalised(text: str) -> str:
    """What is compared: NFKC, casefolded, white space as single spaces; digits and punctuation stay."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


def signatures(texts: Sequence[str]) -> np.ndarray:
    """Band keys of normalised texts, the same in every process and on every machine.

    The shingles are runs of 5 characters among the first `COMPARED_LENGTH`, so languages without spaces need nothing of
    their own; a shorter text is its own shingle.

    Returns:
        uint64 [texts, BANDS]: two texts that share a key in a column are candidates.
    """
    padded = [text[:COMPARED_LENGTH].ljust(SHINGLE, "\0") for text in texts]
    parts = _cuts([max(len(text), 512) for text in padded], SIGNED)
    return np.concatenate([np.empty((0, BANDS), dtype=np.uint64), *(_band_keys(padded[part]) for part in parts)])


def _band_keys(padded: list[str]) -> np.ndarray:
    """Band keys of texts that have a shingle each: few, see `SIGNED`."""
    # 1. All texts as one run of code points [characters]; ends [texts] says where each text stops.
    points = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
    ends = np.cumsum([len(text) for text in padded])
    # 2. A polynomial hash of the 5 characters that begin at each position.
    hashes = np.zeros(len(points) - SHINGLE + 1, dtype=np.uint64)
    for shift in range(SHINGLE):
        hashes *= FACTOR
        hashes += points[shift : shift + len(hashes)]
    # 3. Drop the shingles that run over the end of a text into the next one.
    inside = np.ones(len(hashes), dtype=bool)
    for back in range(1, SHINGLE):
        inside[ends[:-1] - back] = False
    # 4. MinHash: for each of the 200 hash functions the lowest value among the shingles of a text.
    offsets = np.zeros(len(padded) + 1, dtype=np.uint64)
    offsets[1:] = ends - (SHINGLE - 1) * np.arange(1, len(padded) + 1)
    digests = RMinHash.digest_matrix_from_flat_token_hashes(_mixed(hashes[inside]), offsets, BANDS * BAND_ROWS, SEED)
    minima = np.array(digests.to_rows(), dtype=np.uint64).reshape(len(padded), BANDS, BAND_ROWS)
    # 5. The 5 minima of a band become one key: texts share it only if they share all 5 (almost surely).
    keys = np.zeros((len(padded), BANDS), dtype=np.uint64)
    for row in range(BAND_ROWS):
        keys = _mixed(keys + minima[:, :, row])
    return keys


class NearIndex:
    """Rows as they come, spooled to a temporary folder that lives as long as the `with` block.

    Texts that are equal are kept once. On disk a text of 1 KB takes 1.3 KB; in memory a row takes about 140 bytes.

    Args:
        threshold: Levenshtein similarity, from 0 to 1, that makes two texts of `FULL_LENGTH` characters or more
            near-duplicates. Only the first `COMPARED_LENGTH` characters are compared, and whole lengths must agree as
            well. At 0.85 a text with a word in ten replaced, deleted or inserted is found.
        folder: where the temporary folder is made; None: where the system has them.
    """

    def __init__(self, *, threshold: float = THRESHOLD, folder: Path | None = None) -> None:
        self.comparisons = 0  # pairs of texts compared by `clusters`
        self._threshold, self._parent = threshold, folder
        self._rows, self._hashes = array("q"), array("Q")  # of every row added
        self._firsts, self._lengths, self._ends = array("q"), array("q"), array("q")  # of every text that is new
        self._seen, self._recent = np.empty(0, dtype=np.uint64), set[int]()  # hashes: sorted, and since the last sort

    def __enter__(self) -> Self:
        with ExitStack() as stack, _disk():
            self._folder = stack.enter_context(temporary_folder("near-", self._parent))
            self._text_file = stack.enter_context((self._folder / "texts").open("w+b"))
            self._key_files = [
                stack.enter_context((self._folder / f"band-{band}").open("w+b")) for band in range(BANDS)
            ]
            self._open = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        with _disk():
            self._open.close()

    def add(self, rows: np.ndarray, keys: np.ndarray, texts: Sequence[str]) -> None:
        """Takes the next rows.

        Args:
            rows: int64 [n], numbers that increase from call to call.
            keys: uint64 [n, BANDS], the `signatures` of the texts.
            texts: normalised, n of them.

        Raises:
            DataError: the disk is full or cannot be written.
        """
        assert len(rows) == len(keys) == len(texts)
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        hashes = [xxhash.xxh3_64_intdigest(text) for text in encoded]
        new = self._new(hashes)
        # Each row keeps the hash of its text; only a text that is new is stored and compared.
        self._rows.extend(rows.tolist())
        self._hashes.extend(hashes)
        compared: list[bytes] = []
        end = self._ends[-1] if self._ends else 0
        for at in new:
            text, short = texts[at], encoded[at]
            if len(text) > COMPARED_LENGTH:
                short = text[:COMPARED_LENGTH].encode("utf-8", "surrogatepass")
            compared.append(short)
            end += len(short)
            self._firsts.append(len(self._rows) - len(rows) + at)
            self._lengths.append(len(text))
            self._ends.append(end)
        with _disk():
            self._text_file.write(b"".join(compared))
            for file, column in zip(self._key_files, np.ascontiguousarray(keys[new].T), strict=True):
                file.write(column.tobytes())

    def clusters(self) -> np.ndarray:
        """For each row, in order of adding, the lowest row number of its cluster: its own where it is like no other.

        Rows are in one cluster when a chain of near-duplicate pairs joins them.

        Returns:
            int64 [rows added]

        Raises:
            DataError: the disk is full or cannot be read.
        """
        self.comparisons = 0
        search = _Search(len(self._firsts))  # over texts that differ, numbered in the order of adding
        lengths = np.array(self._lengths, dtype=np.int64)
        with _disk():
            for file in (self._text_file, *self._key_files):
                file.flush()
            # 1. Candidates share a key of one band; the next band says which of a bucket stand side by side.
            for band in range(BANDS):
                for pairs in _neighbours(self._keys(band), self._keys((band + 1) % BANDS)):
                    self._compare(search, pairs, lengths)
        hashes, rows = np.array(self._hashes, dtype=np.uint64), np.array(self._rows, dtype=np.int64)
        firsts = np.array(self._firsts, dtype=np.int64)
        # 2. row -> its text (by hash) -> the lowest text of the cluster -> the first row with that text.
        order = np.argsort(hashes[firsts])
        of_row = order[np.searchsorted(hashes[firsts], hashes, sorter=order)]  # [rows], numbers of texts
        return rows[firsts[search.roots(of_row)]]

    def _new(self, hashes: list[int]) -> list[int]:
        """Positions of the hashes that were not there before, nor earlier among these."""
        # 1. Those in the sorted array, by binary search.
        wanted = np.array(hashes, dtype=np.uint64)
        at = np.searchsorted(self._seen, wanted)
        known = np.zeros(len(wanted), dtype=bool)
        inside = at < len(self._seen)
        known[inside] = self._seen[at[inside]] == wanted[inside]
        # 2. Those in the set of recent hashes, which takes what is new.
        new: list[int] = []
        for position in np.flatnonzero(~known).tolist():
            if hashes[position] not in self._recent:
                self._recent.add(hashes[position])
                new.append(position)
        # 3. A full set is merged into the sorted array: it takes 8 bytes a hash there.
        if len(self._recent) > RECENT:
            recent = np.fromiter(self._recent, dtype=np.uint64, count=len(self._recent))
            self._seen = np.sort(np.concatenate([self._seen, recent]))
            self._recent.clear()
        return new

    def _keys(self, band: int) -> np.ndarray:
        return np.fromfile(self._folder / f"band-{band}", dtype=np.uint64)

    def _compare(self, search: _Search, pairs: PAIR, lengths: np.ndarray) -> None:
        """Joins the pairs that are near-duplicates and are not of one cluster yet."""
        earlier, later = search.open_pairs(pairs)
        read = np.minimum(lengths, COMPARED_LENGTH)  # characters of each text that are read from disk
        for part in _cuts(read[earlier] + read[later], BLOCK):
            block = search.open_pairs((earlier[part], later[part]))  # blocks before this one closed some pairs
            sizes = np.stack([lengths[side] for side in block])  # [2, pairs]
            longest = sizes.max(axis=0)
            # The similarity that a pair must reach: the share that may differ falls with the square of its length.
            needed = 1 - (1 - self._threshold) * np.minimum(1, longest / FULL_LENGTH) ** 2 - 1e-9
            # Similarity is at most shortest / longest, and a pair of which no whole character may differ is none.
            able = (sizes.min(axis=0) >= needed * longest) & ((1 - needed) * longest >= 1)
            block = block[0][able], block[1][able]
            search.settle(block, self._alike(block, needed[able], longest[able]))

    def _alike(self, pairs: PAIR, needed: np.ndarray, longest: np.ndarray) -> np.ndarray:
        """Whether texts, by their numbers, have the similarity that is needed: bool [pairs]."""
        self.comparisons += len(needed)
        # 1. Read each text once, however many pairs it is in.
        wanted, places = np.unique(np.concatenate(pairs), return_inverse=True)
        texts = [self._text(number) for number in wanted.tolist()]
        one, other = ([texts[at] for at in side] for side in np.split(places, 2))
        # 2. The edit distance of all pairs, on all cores.
        scorer, cutoff = Levenshtein.normalized_similarity, self._threshold
        alike = cpdist(one, other, scorer=scorer, score_cutoff=cutoff, dtype=np.float64, workers=-1) >= needed
        # 3. In short texts the figures must agree.
        for at in np.flatnonzero(alike & (longest < FIGURES_LENGTH)).tolist():
            alike[at] = FIGURES.findall(one[at]) == FIGURES.findall(other[at])
        return alike

    def _text(self, number: int) -> str:
        start = self._ends[number - 1] if number else 0
        read = os.pread(self._text_file.fileno(), self._ends[number] - start, start)
        return read.decode("utf-8", "surrogatepass")


class _Search:
    """Clusters found so far (a union-find whose roots are the lowest numbers), and what was compared in vain.

    Args:
        count: texts, numbered from 0.
    """

    def __init__(self, count: int) -> None:
        self._parents = np.arange(count)
        self._attempts = np.zeros(count, dtype=np.uint8)
        self._last_failed = np.full(count, -1, dtype=np.int64)

    def roots(self, numbers: np.ndarray) -> np.ndarray:
        """The lowest number in the cluster of each."""
        roots = self._parents[numbers]
        # Climb until nobody has a parent above; then point every number straight at its root.
        while ((above := self._parents[roots]) != roots).any():
            roots = above
        self._parents[numbers] = roots
        return roots

    def open_pairs(self, pairs: PAIR) -> PAIR:
        """The pairs that may still join two clusters, without those that failed just before or too often."""
        earlier, later = pairs
        worth = (self._attempts[later] < ATTEMPTS) & (self._last_failed[later] != earlier)
        # Roots are looked up only for pairs that passed the cheaper test.
        worth[worth] = self.roots(earlier[worth]) != self.roots(later[worth])
        return earlier[worth], later[worth]

    def settle(self, pairs: PAIR, alike: np.ndarray) -> None:
        """Takes the verdict on pairs: bool [pairs]."""
        earlier, later = pairs
        np.add.at(self._attempts, later[~alike], 1)
        self._last_failed[later[~alike]] = earlier[~alike]
        for first, second in zip(earlier[alike].tolist(), later[alike].tolist(), strict=True):
            one, other = self._root(first), self._root(second)
            self._parents[max(one, other)] = min(one, other)

    def _root(self, number: int) -> int:
        while (parent := int(self._parents[number])) != number:
            number = parent
        return number


def _neighbours(keys: np.ndarray, others: np.ndarray) -> Iterator[PAIR]:
    """Pairs (earlier, later) of one bucket, each row with those next to it when a bucket is sorted by another band.

    Near-duplicates share more bands than one, so they stand side by side. In a crowded bucket, where chance brings rows
    together, only those that share the other band are paired.
    """
    # 1. Keep the texts that share their key with another one.
    order = np.argsort(keys)
    repeated = keys[order][1:] == keys[order][:-1]
    shared = np.zeros(len(keys), dtype=bool)
    shared[order[1:][repeated]] = shared[order[:-1][repeated]] = True
    numbers = np.flatnonzero(shared)
    # 2. Sort them by bucket, and within a bucket by the other band.
    numbers = numbers[np.lexsort((others[numbers], keys[numbers]))]
    buckets, parts = keys[numbers], others[numbers]
    # 3. Mark those in crowded buckets, bool [numbers].
    _, sizes = np.unique(buckets, return_counts=True)
    crowded = np.repeat(sizes > CROWD, sizes)
    # 4. Pair each with those that stand 1 and 2 places behind it in the same bucket.
    for distance in range(1, NEIGHBOURS + 1):
        same = buckets[distance:] == buckets[:-distance]
        same &= ~crowded[distance:] | (parts[distance:] == parts[:-distance])
        first, second = numbers[:-distance][same], numbers[distance:][same]
        yield np.minimum(first, second), np.maximum(first, second)


def _cuts(sizes: Sequence[int] | np.ndarray, limit: int) -> list[slice]:
    """Slices that share the whole among themselves, each of about `limit` in all."""
    starts = np.flatnonzero(np.diff(np.cumsum(sizes) // limit, prepend=-1))
    return [slice(start, end) for start, end in pairwise([*starts.tolist(), len(sizes)])]


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: every bit of the result depends on every bit given."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@contextmanager
def _disk() -> Iterator[None]:
    """What the disk refuses, as an error that says what to do."""
    try:
        yield
    except OSError as error:
        raise DataError(
            "the temporary files of the near-duplicate search cannot be written or read",
            why=f"{error.strerror or error}; they take about as much room as the texts",
            remedy="make room in the temporary folder, or point TMPDIR to another disk",
        ) from error
