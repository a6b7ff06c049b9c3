"""Near-duplicates are found, what differs in meaning is not, and the cost stays linear."""

from __future__ import annotations

import json
import multiprocessing
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.checks import near_duplicates
from tunesmith.data.checks.near_duplicates import BANDS, NearIndex, normalised, signatures
from tunesmith.errors import DataError

SYLLABLES = ("ba", "den", "fo", "gri", "hal", "ke", "lum", "mi", "nor", "pes", "qua", "rit", "so", "tev", "ul", "zan")
WORDS = ["".join(parts) for count in (1, 2, 3) for parts in product(SYLLABLES, repeat=count)]


def words(random_: random.Random, count: int) -> list[str]:
    return random_.choices(WORDS, k=count)


def edited_words(text: str, random_: random.Random, share: float = 0.1) -> str:
    """A share of the words replaced, deleted or followed by a new one."""
    parts = text.split(" ")
    for at in random_.sample(range(len(parts)), max(1, round(share * len(parts)))):
        parts[at] = random_.choice(["", random_.choice(WORDS), parts[at] + " " + random_.choice(WORDS)])
    return " ".join(part for part in parts if part)


def edited_characters(text: str, random_: random.Random, share: float = 0.05) -> str:
    """A share of the characters replaced, deleted or followed by a new one."""
    parts = list(text)
    for at in random_.sample(range(len(parts)), round(share * len(parts))):
        letter = random_.choice("abcdefghijklmnopqrstuvwxyz")
        parts[at] = random_.choice(["", letter, parts[at] + letter])
    return "".join(parts)


def clusters(texts: Sequence[str], *, block: int = 1000, first: int = 0, **settings: Any) -> list[int]:
    with NearIndex(**settings) as index:
        fill(index, texts, block=block, first=first)
        return index.clusters().tolist()


def fill(index: NearIndex, texts: Sequence[str], *, block: int = 1000, first: int = 0) -> None:
    for start in range(0, len(texts), block):
        part = [normalised(text) for text in texts[start : start + block]]
        index.add(np.arange(first + start, first + start + len(part)), signatures(part), part)


def originals_and_copies(change: Callable[[str, random.Random], str], count: int) -> list[str]:
    """`count` unrelated texts of 30 to 200 words, then a changed copy of each, shuffled among themselves."""
    random_ = random.Random(11)
    texts = [" ".join(words(random_, random_.randint(30, 200))) for _ in range(count)]
    return texts + [change(text, random_) for text in texts]


@pytest.mark.parametrize("change, share", [(edited_words, 0.98), (edited_characters, 0.97)])
def test_edited_copies_are_found_and_nothing_else(change: Callable[[str, random.Random], str], share: float) -> None:
    count = 400
    found = clusters(originals_and_copies(change, count))
    assert found[:count] == list(range(count))
    pairs = list(zip(found[count:], range(count), strict=True))
    assert all(cluster in (at, count + at) for cluster, at in pairs)
    assert sum(cluster == at for cluster, at in pairs) >= share * count


@pytest.mark.parametrize(
    "one, other",
    [
        ("activate my card", "cancel my card"),
        ("How do I activate my new card in the app?", "How do I cancel my new card in the app?"),
        ("my transfer was declined yesterday", "my transfer was not declined yesterday"),
        ("What is 7 x 8?", "What is 7 x 9?"),
        ("convert 500 grams to kilograms: 500 grams are 0.5", "convert 800 grams to kilograms: 800 grams are 0.8"),
        ("cat", "car"),
        ("", "a"),
    ],
)  # fmt: skip
def test_a_short_text_with_another_meaning_is_no_duplicate(one: str, other: str) -> None:
    assert clusters([one, other]) == [0, 1]


def test_a_slip_in_a_sentence_is_a_duplicate_and_another_figure_is_not() -> None:
    sentence = "the atm keeps declining my card although there are 250 euros on the account, what can i do about it?"
    assert clusters([sentence, sentence.replace("declining", "declinig")]) == [0, 0]
    assert clusters([sentence, sentence.replace("250", "260")]) == [0, 1]


def test_letter_case_width_and_white_space_do_not_count() -> None:
    assert normalised("  Ｔｈｅ\u00a0ﬁrst\n\n\tSTRASSE  12 ") == "the first strasse 12"
    assert normalised("Straße") == normalised("STRASSE")
    assert clusters(["Where is my card?", "where  IS my\ncard?"]) == [0, 0]


def test_a_language_without_spaces_is_compared() -> None:
    random_ = random.Random(2)
    text = "".join(chr(random_.randint(0x4E00, 0x9FFF)) for _ in range(300))
    other = "".join(chr(random_.randint(0x4E00, 0x9FFF)) for _ in range(300))
    assert clusters([text, other, text[:100] + "新" + text[103:]]) == [0, 1, 0]


def test_the_cluster_is_the_lowest_row_number_and_numbers_may_have_gaps() -> None:
    text = " ".join(words(random.Random(5), 60))
    texts = ["alone", edited_words(text, random.Random(6), 0.05), text, "alone", text]
    keys = signatures(texts)
    with NearIndex() as index:
        index.add(np.array([3, 7, 20, 21, 50]), keys, texts)
        assert index.clusters().tolist() == [3, 7, 7, 3, 7]
        index.add(np.array([60]), keys[:1], texts[:1])
        assert index.clusters().tolist() == [3, 7, 7, 3, 7, 3]


def test_the_threshold_decides() -> None:
    texts = originals_and_copies(edited_words, 20)
    assert clusters(texts, threshold=0.8) == [*range(20), *range(20)]
    assert clusters(texts, threshold=0.99) == list(range(40))


def test_block_sizes_do_not_change_the_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [*originals_and_copies(edited_words, 60), "short", "", "short"]
    whole = clusters(texts)
    assert whole[-3:] == [120, 121, 120]
    for block in (1, 7, 64):
        assert clusters(texts, block=block) == whole
    monkeypatch.setattr(near_duplicates, "BLOCK", 6000)
    monkeypatch.setattr(near_duplicates, "RECENT", 10)
    assert clusters(texts, block=7) == whole


def test_signatures_do_not_depend_on_the_process_nor_on_neighbours() -> None:
    texts = ["", "a", "four", "fives", "Größe 12 \ud800 😀", " ".join(words(random.Random(1), 100))]
    program = (
        "import sys, json; from tunesmith.data.checks.near_duplicates import signatures; "
        "print(json.dumps(signatures(json.loads(sys.argv[1])).tolist()))"
    )
    run = [sys.executable, "-c", program, json.dumps(texts)]
    other = subprocess.run(run, check=True, capture_output=True, text=True, env={"PYTHONHASHSEED": "123"})
    keys = signatures(texts)
    assert keys.shape == (6, BANDS)
    assert keys.dtype == np.uint64
    assert json.loads(other.stdout) == keys.tolist()
    for at, text in enumerate(texts):
        assert signatures([text]).tolist() == [keys[at].tolist()]


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="the system does not fork")
@pytest.mark.parametrize("texts", [["word " * 200] * 400, ["a"] * 1000, ["long " * 20_000] * 8])
def test_a_process_forked_after_signatures_can_make_them_too(texts: list[str]) -> None:
    keys = signatures(texts)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert np.array_equal(pool.apply_async(signatures, (texts,)).get(timeout=30), keys)


def test_signatures_keep_their_values() -> None:
    assert signatures(["near-duplicates are found"])[0, :2].tolist() == [3548034760247508758, 17059018099285050362]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=12), max_size=12))
def test_equal_texts_are_one_cluster_and_short_others_are_none(texts: list[str]) -> None:
    plain = [normalised(text) for text in texts]
    assert clusters(texts) == [plain.index(text) for text in plain]


def test_exact_copies_cost_nothing() -> None:
    text = " ".join(words(random.Random(3), 150))
    with NearIndex() as index:
        fill(index, [text] * 5000)
        assert set(index.clusters().tolist()) == {0}
        assert index.comparisons == 0
        spooled = sum(file.stat().st_size for file in index._folder.iterdir())
    assert spooled == len(text) + BANDS * 8


@pytest.mark.parametrize("count", [1000, 4000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_rows_of_one_template_take_linear_time_and_copies_among_them_are_found(count: int) -> None:
    """Comparisons are counted, as a time would depend on the machine."""
    random_ = random.Random(4)
    template = " ".join(words(random_, 80))
    texts = [f"{template} {' '.join(words(random_, 20))}" for _ in range(count)]
    assert 0.75 < len(template) / np.mean([len(text) for text in texts]) < 0.85
    planted = list(range(0, count, count // 50))
    with NearIndex(threshold=0.9) as index:
        fill(index, texts + [edited_words(texts[at], random_, 0.03) for at in planted])
        found = index.clusters()
        per_row = index.comparisons / len(found)
    assert 10 < per_row < near_duplicates.ATTEMPTS + 2  # they do share buckets
    assert (found[count:] == found[planted]).mean() >= 0.9
    assert (found == np.arange(len(found))).mean() > 0.8  # rows are like no other, but for those planted


def test_long_texts_are_compared_by_their_beginning_and_their_length() -> None:
    random_ = random.Random(8)
    text = " ".join(words(random_, 5000))
    assert len(text) > near_duplicates.COMPARED_LENGTH
    assert clusters([text, text + " " + edited_words(text[:500], random_), text + text]) == [0, 0, 2]


def test_no_rows_and_no_texts() -> None:
    assert clusters([]) == []
    assert clusters([""]) == [0]
    assert clusters(["", "x", ""], first=5) == [5, 6, 5]
    assert signatures([]).shape == (0, BANDS)
    with NearIndex() as index:
        index.add(np.empty(0, dtype=np.int64), signatures([]), [])
        assert index.clusters().dtype == np.int64


def test_the_temporary_folder_goes_even_after_an_exception(tmp_path: Path) -> None:
    with pytest.raises(KeyError), NearIndex(folder=tmp_path) as index:
        fill(index, ["one", "two"])
        assert len(list(tmp_path.iterdir())) == 1
        raise KeyError("inside")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be written or read"), NearIndex(folder=tmp_path / "missing"):
        pass


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_named() -> None:
    with NearIndex() as index, Path("/dev/full").open("wb", buffering=0) as full:
        index._text_file = cast("Any", full)
        with pytest.raises(DataError, match="No space left") as raised:
            fill(index, ["one", "two"])
    assert raised.value.remedy is not None
