"""What is fuzzed: each target takes bytes and may end in a TunesmithError, and in nothing else.

The first bytes may choose a format or a size, and the rest is the content.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tunesmith.errors import TunesmithError

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".md", ".html", ".parquet", ".xlsx", ".ods", ".jsonl.gz",
            ".csv.zst", ".json.bz2", ".txt.xz")  # fmt: skip
LONGEST_ROWS = 200
LAYOUTS: tuple[Literal["tree", "packed", "padded"], ...] = ("tree", "packed", "padded")


def reader(data: bytes) -> None:
    """A file of rows: opened, its shape found, every row read, as `check` and `train` do."""
    from tunesmith.data.files.reader import open_source
    from tunesmith.recipe.data import SourceSettings

    suffix = SUFFIXES[(data[0] if data else 0) % len(SUFFIXES)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows{suffix}"
        path.write_bytes(data[1:])
        with suppress(TunesmithError):
            for _ in zip(range(LONGEST_ROWS), open_source(SourceSettings(path=str(path))).examples(), strict=False):
                pass


def recipe(data: bytes) -> None:
    """A recipe file: read, checked and written again."""
    from tunesmith.recipe.file import dump, read_recipe

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.yaml"
        path.write_bytes(data)
        try:
            found = read_recipe(path).recipe
        except TunesmithError:
            return
        path.write_text(dump(found), encoding="utf-8")
        assert dump(read_recipe(path).recipe) == dump(found)


@cache
def _tokenizer() -> Any:
    from tests.conftest import build_tokenizer
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        build_tokenizer(Path(folder))
        return AutoTokenizer.from_pretrained(folder)


def template(data: bytes) -> None:
    """A chat template: built for a tokenizer, and a conversation encoded by it."""
    from tunesmith.data.chat.template import ChatTemplate
    from tunesmith.data.examples.example import Example
    from tunesmith.data.examples.message import Message
    from tunesmith.recipe.data import DataSettings, SourceSettings

    text = "{# #}{{ '' }}" + data.decode(errors="replace")
    turns = (Message("system", "be brief"), Message("user", "what is\n<b>?"), Message("assistant", "a thing"))
    with suppress(TunesmithError):
        settings = DataSettings(train=[SourceSettings(path="x")], chat_template=text)
        stops = [_tokenizer().eos_token_id]
        made = ChatTemplate(_tokenizer(), stop_ids=stops, settings=settings, date="2026-01-01")
        made.encode(Example(messages=turns, source="x:1"))


class Row:
    """A row of tokens."""

    def __init__(self, ids: list[int], supervised: list[bool]) -> None:
        self.ids, self.supervised = np.asarray(ids, dtype=np.int32), np.asarray(supervised, dtype=bool)


def layout(data: bytes) -> None:
    """Rows of few distinct tokens, in all layouts: no label is lost, added or moved."""
    from tunesmith.data.batches.layout import lay_out, micro_batches

    rows, at = [], 2
    while at < len(data) and len(rows) < 24:
        length = data[at] % 40 + 2
        piece = data[at + 1 : at + 1 + length]
        at += 1 + length
        if len(piece) >= 2:
            rows.append(Row([byte % 3 for byte in piece], [False, *(byte % 5 == 0 for byte in piece[1:])]))
    if not rows:
        return
    labels = Counter(
        (number, int(row.ids[place])) for number, row in enumerate(rows) for place in range(1, len(row.ids))
        if row.supervised[place]
    )  # fmt: skip
    budget, least = data[0] + 42, data[1] % 8 + 1
    for name in LAYOUTS:
        whole = [lay_out(rows, range(len(rows)), layout=name, least=least)]
        for batches in (whole, micro_batches(rows, budget=budget, layout=name, least=least)):
            edges = [each.edges for each in batches]
            found = [pair for each in edges for pair in zip(each.row.tolist(), each.target.tolist(), strict=True)]
            assert Counter(found) == labels, f"{name}: {Counter(found) - labels} more, {labels - Counter(found)} less"
            assert sum(each.tokens for each in batches) == sum(len(row.ids) for row in rows)


def run(data: bytes) -> None:
    """A run folder of somebody else: the first byte chooses the file that holds the rest."""
    from tunesmith.cli.runs import _report
    from tunesmith.cli.terminal.console import Terminal
    from tunesmith.runs.curves import draw
    from tunesmith.runs.folder import Run
    from tunesmith.runs.overview import details, summaries
    from tunesmith.runs.watching import Watcher

    with tempfile.TemporaryDirectory() as folder:
        made = Run(Path(folder) / "run")
        made.folder.mkdir()
        for name, value in FILES.items():
            (made.folder / name).write_text(value)  # past the manifest, which another would have made to match
        (made.folder / list(FILES)[(data[0] if data else 0) % len(FILES)]).write_bytes(data[1:])
        with suppress(TunesmithError):
            summaries(folder)
        with suppress(TunesmithError):
            found = details(made.folder)
            found._repr_html_(), str(found), json.dumps(found.to_json())
            with redirect_stdout(io.StringIO()):
                _report(found, Terminal())
        with suppress(TunesmithError):
            draw([made.folder], Path(folder) / "curves.html")
        with suppress(TunesmithError):
            list(Watcher(made.folder).look())


def gguf(data: bytes) -> None:
    """A GGUF file: its weights counted, and its tokenizer built as a conversion builds it."""
    from tunesmith.model.weights import gguf as reading

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        path.write_bytes(data)
        with suppress(TunesmithError):
            reading.parameters_in(path)  # of a file that it refuses nothing more is read
            reading.build_tokenizer(reading._read(path)[1], path)


FILES = {
    "verdict.json": json.dumps({
        "verdict": "better", "decided_by": "f1", "reason": None, "rows": 4, "confidence": 0.95,
        "metrics": {"f1": {"base": 0.1, "tuned": 0.9, "difference": 0.8, "interval": [0.5, 1.0], "verdict": "better"}},
    }),
    "status.json": json.dumps({"status": "finished", "step": 2, "total_steps": 2, "seconds": 1.5,
                               "tokens": {"rows": 9, "computed": 9, "supervised": 3}, "best": {"step": 2}}),
    "metrics.jsonl": '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n{"step": 2, "eval_loss": 1.5}\n',
    "ledger.json": json.dumps({"rows": {"read": 5, "trained": 4, "held_out": 1}}),
    "evaluations.jsonl": '{"time": "t", "target": "r", "data": null, "settings": [], "metrics": {}, "verdict": ""}\n',
    "samples_during.jsonl": '{"step": 2, "source": "r", "prompt": "p", "truth": "t", "answer": "a"}\n',
    "recipe.yaml": "model: m\ndata: {train: rows.jsonl}\noutput_dir: x\n",
}  # fmt: skip
TARGETS: dict[str, Callable[[bytes], None]] = {
    "reader": reader, "recipe": recipe, "template": template, "layout": layout, "run": run, "gguf": gguf,
}  # fmt: skip
