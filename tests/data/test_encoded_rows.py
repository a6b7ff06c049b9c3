"""Views of rows that stay in a file: slices, selections, blocks."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.data.made_rows import REWRITES, STOP, examples, in_blocks, same
from transformers import AutoTokenizer

from tunesmith.data.chat.template import ChatTemplate
from tunesmith.data.encoded_rows import EncodedRows
from tunesmith.data.token_cache import encode_rows
from tunesmith.recipe.data import DataSettings


@pytest.fixture
def run(tiny_model_dir: Path, tmp_path: Path) -> Any:
    def encode(blocks: Any) -> Any:
        settings = DataSettings.model_validate({"train": "rows.jsonl", "chat_template": REWRITES})
        tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
        template = ChatTemplate(tokenizer, stop_ids=STOP, settings=settings, date="2026-01-31")
        return encode_rows(blocks, template=template, folder=tiny_model_dir, key="k", cache=tmp_path, workers=1)

    return encode


def test_rows_are_sliced_selected_and_sent_by_path(run):
    rows, _ = run(in_blocks(examples(40), 9))
    every = list(rows)
    assert same(rows[-1], every[-1])
    assert same(rows[np.int64(3)], every[3])
    part = rows[5:40:3]
    assert isinstance(part, EncodedRows)
    chosen = part.select([4, 0, 4])
    for view, expected in ((part, every[5:40:3]), (chosen, [every[17], every[5], every[17]])):
        assert len(view) == len(expected)
        assert all(map(same, view, expected))
        assert view.lengths.tolist() == [len(row.ids) for row in expected]
        assert view.supervised_counts.tolist() == [row.supervised.sum() for row in expected]
        assert view.examples.tolist() == [row.example for row in expected]
    assert len(part.select([])) == 0
    sent = pickle.dumps(chosen)
    assert len(sent) < 1000
    again = pickle.loads(sent)  # noqa: S301
    assert all(map(same, again, chosen))
    for wrong in (len(rows), -len(rows) - 1):
        with pytest.raises(IndexError):
            rows[wrong]
    with pytest.raises(IndexError):
        part.select([len(part)])


def test_rows_cannot_be_changed_in_the_file(run):
    rows, _ = run(in_blocks(examples(3), 3))
    with pytest.raises(ValueError, match="read-only"):
        rows[0].ids[0] = 7


# ---- errors
