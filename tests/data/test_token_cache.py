"""Examples to a kept file of token rows: the same rows, order and bytes however many processes make it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from tests.data.made_rows import REWRITES, STOP, example, examples, in_blocks, same
from tests.faults.damage import damages
from transformers import AutoTokenizer

from tunesmith.data import token_cache
from tunesmith.data.chat.notes import EMPTY_THINKING, IMPLIED_END, OWN_ROWS, Notes
from tunesmith.data.chat.template import ChatTemplate
from tunesmith.data.examples.example import Example
from tunesmith.data.token_cache import encode_rows, token_key, trim
from tunesmith.errors import DataError
from tunesmith.recipe.data import DataSettings
from tunesmith.runs import cache
from tunesmith.runs.progress import Silent

PRINTS_DATE = REWRITES + "{{ strftime_now('%d') if false else '' }}"


class Heard(Silent):
    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.done: list[int] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def task(self, title: str, total: int | None) -> Any:
        return nullcontext(lambda done, facts: self.done.append(done))


def nothing_is_read() -> Iterator[Any]:
    raise AssertionError("the rows are read although they are in the cache")
    yield


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model_dir)


@pytest.fixture(scope="module")
def make(tokenizer: Any) -> Callable[..., ChatTemplate]:
    def made(stop_ids: Sequence[int] = STOP, date: str = "2026-01-31", **section: Any) -> ChatTemplate:
        settings = DataSettings.model_validate({"train": "rows.jsonl", "chat_template": REWRITES, **section})
        return ChatTemplate(tokenizer, stop_ids=stop_ids, settings=settings, date=date)

    return made


@pytest.fixture
def run(make: Callable[..., ChatTemplate], tiny_model_dir: Path, tmp_path: Path) -> Callable[..., Any]:
    def encode(blocks: Any, **changes: Any) -> Any:
        given = {"template": make(), "folder": tiny_model_dir, "key": "k", "cache": tmp_path, "workers": 1}
        return encode_rows(blocks, **{**given, **changes})

    return encode


# ---- rows


def test_rows_are_those_of_the_template_in_order(run, make):
    rows, found = run(in_blocks(examples(50), 7))
    template = make()
    plain = [row for number, one in enumerate(examples(50)) for row in template.encode(one, number)]
    assert len(rows) == len(plain) == 67
    assert all(map(same, rows, plain))
    assert rows.lengths.tolist() == [len(row.ids) for row in plain]
    assert rows.supervised_counts.tolist() == [row.supervised.sum() for row in plain]
    assert rows.examples.tolist() == [row.example for row in plain]
    assert (rows.lengths.dtype, rows.supervised_counts.dtype, rows.examples.dtype) == (np.int32, np.int32, np.int64)
    assert found == template.findings
    assert [(finding.id, finding.count) for finding in found] == [("turns_in_own_rows", 17), ("turns_lost", 17)]


def test_several_processes_make_the_same_file_and_findings(run, tmp_path, monkeypatch):
    monkeypatch.setattr(token_cache, "POOL_FROM", 100)
    one, alone = run(in_blocks(examples(300), 20), cache=tmp_path / "one")
    heard = Heard()
    two, together = run(in_blocks(examples(300), 20), cache=tmp_path / "two", workers=2, listener=heard, total=300)
    assert two.path != one.path
    assert two.path.read_bytes() == one.path.read_bytes()
    assert together == alone
    assert together[0].rows == [f"rows.jsonl:{number}" for number in range(1, 301, 3)]
    assert together[0].count == 100
    assert heard.done == list(range(20, 301, 20))


def test_a_few_rows_start_no_process(run, monkeypatch):
    monkeypatch.setattr(token_cache, "_by_workers", None)
    rows, _ = run(in_blocks(examples(30), 10), workers=2)
    assert len(rows) == 40


def test_no_rows_are_no_rows(run):
    rows, found = run(iter([[]]))
    assert (len(rows), list(rows), found, rows.lengths.shape) == (0, [], [], (0,))


def test_the_notes_of_the_given_template_stay_as_they_are(run, make):
    template = make()
    run(in_blocks(examples(3), 3), template=template)
    assert template.findings == []


def refused(number: int) -> Example:
    return example(number, answer="=<|im_end|>")


def stops_after(rows: Sequence[Example], size: int, message: str) -> Iterator[Any]:
    yield from in_blocks(rows, size)
    raise DataError(message, where="rows.jsonl:999")


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_row_that_cannot_be_encoded_is_named(run, tmp_path, monkeypatch, workers):
    monkeypatch.setattr(token_cache, "POOL_FROM", 30)
    rows = examples(60)
    rows[47] = refused(47)  # in a block that is encoded beside a longer one
    rows[39] = refused(39)
    with pytest.raises(DataError) as caught:
        run(stops_after(rows, 10, "a bad row behind them"), workers=workers)
    assert caught.value.where == "rows.jsonl:40"
    assert "the control token <|im_end|> stands in the text" in caught.value.what
    assert not [path for path in (tmp_path / "tokens").iterdir() if path.suffix != ".lock"]


def test_a_row_before_the_one_that_cannot_be_read_comes_first(run):
    with pytest.raises(DataError, match="control token"):
        run(stops_after([example(0), refused(1)], 2, "unreadable"), workers=2)
    with pytest.raises(DataError, match="unreadable"):
        run(stops_after([example(0)], 2, "unreadable"), workers=2)


class Deadly:
    """Ends the process that receives it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (9,)


def test_a_process_that_is_ended_is_one_clear_message(run, monkeypatch):
    monkeypatch.setattr(token_cache, "POOL_FROM", 20)
    with pytest.raises(DataError, match="a process that turns rows into tokens was ended") as caught:
        run(in_blocks([*examples(50), Deadly()], 10), workers=2)
    assert "memory" in caught.value.render()


def test_a_cache_that_is_a_file_is_told(run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="the cache of encoded rows cannot be written"):
        run(in_blocks(examples(3), 3), cache=tmp_path / "file")


# ---- the cache


def test_rows_in_the_cache_are_not_encoded_again(run, make, monkeypatch):
    made, found = run(in_blocks(examples(9), 4))
    calls: list[Any] = []
    monkeypatch.setattr(ChatTemplate, "encode", lambda *given: calls.append(given))
    rows, findings = run(nothing_is_read())
    assert calls == []
    assert all(map(same, rows, made))
    assert findings == found != []


def altered_folder(folder: Path, to: Path, name: str, text: str) -> Path:
    shutil.copytree(folder, to)
    (to / name).parent.mkdir(exist_ok=True)
    (to / name).write_text(text)
    return to


CHANGES: dict[str, dict[str, Any]] = {
    "template": {"chat_template": REWRITES + " "},
    "kwargs": {"chat_template_kwargs": {"enable_thinking": False}},
    "control tokens": {"control_tokens": "text"},
    "train on": {"train_on": "last"},
    "stop ids": {"stop_ids": (2, 0)},
    "order of stop ids": {"stop_ids": (0, 2)},
    "printed date": {"chat_template": PRINTS_DATE},
    "next day": {"chat_template": PRINTS_DATE, "date": "2026-02-01"},
}


def test_everything_that_changes_tokens_changes_the_key(make, tiny_model_dir, tmp_path, monkeypatch):
    keys = {"same": token_key("k", make(), tiny_model_dir), "rows": token_key("other", make(), tiny_model_dir)}
    keys |= {name: token_key("k", make(**change), tiny_model_dir) for name, change in CHANGES.items()}
    files = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "additional_chat_templates/a.jinja")
    for number, name in enumerate(files):
        folder = altered_folder(tiny_model_dir, tmp_path / str(number), name, "{}")
        keys[name] = token_key("k", make(), folder)
    with monkeypatch.context() as patch:
        patch.setattr(token_cache, "TOKEN_FORMAT", token_cache.TOKEN_FORMAT + 1)
        keys["format"] = token_key("k", make(), tiny_model_dir)
    for library in ("tokenizers", "transformers"):
        with monkeypatch.context() as patch:
            patch.setattr(token_cache, "version", lambda name, library=library: "new" if name == library else "old")
            keys[library] = token_key("k", make(), tiny_model_dir)
    assert len(set(keys.values())) == len(keys), keys


def test_what_changes_no_token_keeps_the_key(make, tiny_model_dir, tmp_path):
    key = token_key("k", make(), tiny_model_dir)
    trained = altered_folder(tiny_model_dir, tmp_path / "trained", "model.safetensors", "other weights")
    assert token_key("k", make(), trained) == key
    assert token_key("k", make(date="2026-02-01"), tiny_model_dir) == key  # the template prints no date
    assert token_key("k", make(max_length=77, too_long="drop"), tiny_model_dir) == key


def test_a_changed_template_does_not_meet_rows_of_the_old_one(run, make):
    first, _ = run(in_blocks(examples(4), 4))
    second, _ = run(in_blocks(examples(4), 4), template=make(train_on="last"))
    assert (len(first), len(second)) == (6, 4)
    assert len(run(nothing_is_read())[0]) == 6


def other_key(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(path.stem.encode(), path.stem[::-1].encode()))


def without_a_batch(path: Path) -> None:
    with pa.memory_map(str(path)) as mapped:
        reader = pa.ipc.open_file(mapped)
        last = reader.get_batch_with_custom_metadata(reader.num_record_batches - 1)
        with pa.ipc.new_file(path.with_suffix(".new"), reader.schema) as writer:
            writer.write_batch(reader.get_batch(0))
            writer.write_batch(last.batch, custom_metadata=last.custom_metadata)
    path.with_suffix(".new").replace(path)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "empty": lambda path: path.write_bytes(b""),
    "short": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "text": lambda path: path.write_text("nothing like it"),
    "other key": other_key,
    "without a batch": without_a_batch,
    "without its end": lambda path: path.write_bytes(path.read_bytes().replace(b"findings", b"findingz")),
}


@pytest.mark.parametrize("of_earlier_version", [False, True])  # which has no sha256
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_made_again_with_a_word(run, damage, of_earlier_version):
    rows, _ = run(in_blocks(examples(6), 4))
    whole = rows.path.read_bytes()
    if of_earlier_version:
        rows.path.with_suffix(".sha256").unlink()
    DAMAGE[damage](rows.path)
    heard = Heard()
    again, _ = run(in_blocks(examples(6), 4), listener=heard)
    assert len(heard.warnings) == 1
    assert "the cached tokens are damaged" in heard.warnings[0]
    assert again.path.read_bytes() == whole


def test_every_damage_to_kept_rows_or_to_their_sha256_is_noticed(run):
    rows, _ = run(in_blocks(examples(6), 4))
    for path in (rows.path, rows.path.with_suffix(".sha256")):
        whole = path.read_bytes()
        for what, damaged in damages(whole):
            if damaged is None:
                continue
            path.write_bytes(damaged)
            heard = Heard()
            run(in_blocks(examples(6), 4), listener=heard)
            assert len(heard.warnings) == 1, what
            assert path.read_bytes() == whole, what


def test_what_a_killed_run_left_is_not_taken_for_whole(run, tmp_path):
    folder = tmp_path / "tokens"
    finished, _ = run(in_blocks(examples(6), 4))
    whole = finished.path.read_bytes()
    finished.path.rename(finished.path.with_suffix(".partial"))  # killed just before the file took its name
    (folder / "old.partial").write_bytes(whole[:100])
    (folder / "busy.partial").write_bytes(b"being written")
    with FileLock(folder / "busy.lock"):
        rows, _ = run(in_blocks(examples(6), 4))
    assert len(rows) == 8
    assert sorted(path.name for path in folder.glob("*.partial")) == ["busy.partial"]


def test_rows_that_another_process_is_encoding_are_waited_for(run, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "WAIT_BEFORE_SAYING_S", 0.01)
    made, _ = run(in_blocks(examples(6), 4))
    unfinished = made.path.rename(tmp_path / "unfinished")
    lock = FileLock(made.path.with_suffix(".lock"))

    class Finishing(Silent):
        def say(self, text: str) -> None:
            assert text == "Another process encodes the same rows; waiting for it."
            unfinished.rename(made.path)
            lock.release()

    lock.acquire()
    rows, _ = run(nothing_is_read(), listener=Finishing())
    assert not unfinished.exists()
    assert all(map(same, rows, made))


def test_an_interrupted_run_leaves_no_file(run, tmp_path):
    def interrupted() -> Iterator[Any]:
        yield from in_blocks(examples(6), 3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(interrupted())
    assert not [path for path in (tmp_path / "tokens").iterdir() if path.suffix != ".lock"]


KILLED = """
import os, sys, time
from pathlib import Path
from transformers import AutoTokenizer
from tests.data.made_rows import STOP, REWRITES, examples, in_blocks
from tunesmith.data import token_cache
from tunesmith.data.chat.template import ChatTemplate
from tunesmith.recipe.data import DataSettings

token_cache.POOL_FROM = 20
folder, cache = map(Path, sys.argv[1:])
settings = DataSettings.model_validate({"train": "rows.jsonl", "chat_template": REWRITES})
template = ChatTemplate(AutoTokenizer.from_pretrained(folder), stop_ids=STOP, settings=settings, date="2026-01-31")


def endless():
    while True:
        yield from in_blocks(examples(20), 10)
        if (cache / "tokens").is_dir() and any(p.stat().st_size > 4096 for p in (cache / "tokens").glob("*.partial")):
            print("half", flush=True)
        time.sleep(0.01)


token_cache.encode_rows(endless(), template=template, folder=folder, key="k", cache=cache, workers=2)
"""


@pytest.mark.slow
def test_a_run_killed_half_way_leaves_neither_a_file_nor_processes(run, tiny_model_dir, tmp_path):
    command = [sys.executable, "-c", KILLED, str(tiny_model_dir), str(tmp_path)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root, start_new_session=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "half\n"
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        assert list((tmp_path / "tokens").glob("*.partial"))
        assert not list((tmp_path / "tokens").glob("*.arrow"))
        until = time.monotonic() + 30
        while _in_session(parent.pid) and time.monotonic() < until:
            time.sleep(0.1)
        assert _in_session(parent.pid) == []
    rows, _ = run(in_blocks(examples(6), 4))
    assert len(rows) == 8
    assert not list((tmp_path / "tokens").glob("*.partial"))


def _in_session(session: int) -> list[int]:
    """Processes of a session that have not ended."""
    import psutil

    found = []
    for process in psutil.process_iter(["status"]):
        try:
            if os.getsid(process.pid) == session and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except ProcessLookupError:
            continue
    return found


def test_the_files_used_longest_ago_go_first(tmp_path):
    for age, name in enumerate(("new", "middle", "old", "oldest")):
        path = tmp_path / f"{name}.arrow"
        path.write_bytes(bytes(100))
        os.utime(path, (10_000 - age, 10_000 - age))
    trim(tmp_path, 250, keep=tmp_path / "oldest.arrow")
    assert {path.stem for path in tmp_path.iterdir()} == {"new", "oldest"}
    trim(tmp_path, 200, keep=tmp_path / "new.arrow")
    assert {path.stem for path in tmp_path.iterdir()} == {"new", "oldest"}
    trim(tmp_path, 0, keep=tmp_path / "oldest.arrow")
    assert {path.stem for path in tmp_path.iterdir()} == {"oldest"}


def test_the_cache_stays_below_its_limit_and_a_use_counts(run, tmp_path, monkeypatch):
    used, _ = run(in_blocks(examples(6), 6), key="used")
    unused, _ = run(in_blocks(examples(6), 6), key="unused")
    for rows in (used, unused):
        os.utime(rows.path, (1000, 1000))
    run(nothing_is_read(), key="used")
    monkeypatch.setattr(token_cache, "CACHE_LIMIT", int(2.5 * used.path.stat().st_size))
    new, _ = run(in_blocks(examples(6), 6), key="new")
    assert set((tmp_path / "tokens").glob("*.arrow")) == {used.path, new.path}
    assert len(list(unused)) == 8  # a file that is in use can be read to its end


# ---- notes of several processes

SIGHTINGS = st.lists(
    st.tuples(st.sampled_from([OWN_ROWS, EMPTY_THINKING, IMPLIED_END]), st.integers(0, 40).map("rows.jsonl:{}".format)),
    max_size=120,
)


@given(SIGHTINGS, st.lists(st.integers(0, 120), max_size=4))
def test_notes_taken_in_parts_and_merged_are_those_of_one_pass(sightings, cuts):
    whole, source, merged = Notes(), Notes(), Notes()
    for kind, row in sightings:
        whole.note(kind, row)
    borders = [0, *sorted(cuts), len(sightings)]
    for start, end in pairwise(borders):
        for kind, row in sightings[start:end]:
            source.note(kind, row)
        merged.merge(source.take())
    assert merged.findings() == whole.findings()
    assert source.findings() == []
