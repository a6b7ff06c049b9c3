"""Inputs for fuzzing: good documents of each target, torn and spliced with what parsers stumble over."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, cast

from hypothesis import strategies as st
from tests.fuzz.targets import FILES, SUFFIXES

SEEDS = Path(__file__).with_name("seeds")
PIECES = (
    b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\\ud800", "\u202e".encode(), "\u2028".encode(),
    b"\x1b[31m", b"NaN", b"1e999", b"-0", b"9" * 5000, b"1_0", b"0x10", b"null", b"true", b'""', b"[]", b"{}",
    b"[" * 3000, b"{\"a\":" * 3000, b"&a ", b"*a", b"<<: ", b"!!python/object:os.system", b"!!binary |", b"? ",
    b"--- ", b"\n...\n", b"%YAML 9.9\n", b"\t", b"{{", b"}}", b"{% for m in messages %}", b"{% endfor %}",
    b"{% generation %}", b"{{ messages[9] }}", b"{{ 1/0 }}", b"{{ ''.join }}", b"{{ x.y.z }}", b"{% include 'x' %}",
    b"{% macro f() %}", b"{{ namespace() }}", b"{{ 'a'|tojson(9) }}", b"'", b'"', b"\r", b"\r\n", b",", b";",
    b"=cmd|", b"${x}", b"\\", b"<b>", b"]]>", b"PAR1", b"PK\x03\x04", b"\x1f\x8b",
)  # fmt: skip


@cache
def documents(target: str) -> tuple[bytes, ...]:
    """Good inputs of a target, and what was kept as a seed."""
    kept = tuple(path.read_bytes() for path in sorted((SEEDS / target).glob("*")))
    return (*_GOOD[target](), *kept)


def _of_reader() -> list[bytes]:
    rows = [{"prompt": f"ask {n}", "completion": f"say {n}"} for n in range(6)]
    turns = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}] * 3
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    table = b"prompt,completion\n" + b"".join(b'"ask, %d",say\n' % n for n in range(6))
    content: dict[str, list[bytes]] = {
        ".jsonl": [lines, "".join(json.dumps(row) + "\n" for row in turns).encode()],
        ".json": [json.dumps(rows).encode(), json.dumps({"data": rows}, indent=1).encode()],
        ".csv": [table, table.replace(b",", b";"), table.decode().encode("utf-16")],
        ".tsv": [table.replace(b",", b"\t")],
        ".txt": [b"one\n\ntwo\n", lines], ".md": [b"# title\n\ntext\n"], ".html": [b"<html><body><p>a</p></body>"],
        ".parquet": [_parquet()], ".xlsx": [_workbook()], ".ods": [b"PK\x03\x04"],
        ".jsonl.gz": [gzip.compress(lines, mtime=0)], ".csv.zst": [_zst(table)], ".json.bz2": [bz2.compress(lines)],
        ".txt.xz": [lzma.compress(lines)],
    }  # fmt: skip
    return [bytes([SUFFIXES.index(suffix)]) + each for suffix, many in content.items() for each in many]


def _parquet() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = io.BytesIO()
    pq.write_table(pa.table({"prompt": ["a", "b"], "completion": ["c", "d"]}), file)
    return file.getvalue()


def _workbook() -> bytes:
    import openpyxl

    book, file = openpyxl.Workbook(), io.BytesIO()
    for row in (("prompt", "completion"), ("a", "b"), ("c", 1.5)):
        cast("Any", book.active).append(row)
    book.save(file)
    return file.getvalue()


def _zst(data: bytes) -> bytes:
    import pyarrow as pa

    return pa.Codec("zstd").compress(data, asbytes=True)


def _of_recipe() -> list[bytes]:
    examples = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
    odd = (
        b"model: {path: m, dtype: float32}\ndata: {train: [{path: a, weight: 2}, b], eval: 0.1, columns: {input: q}}\n"
    )
    return [*(path.read_bytes() for path in examples), odd + b"method: {name: full}\noutput_dir: runs/x\n"]


def _of_template() -> list[bytes]:
    from tests.conftest import CHATML

    marked = CHATML.replace("message['content']", "message.content | trim").encode()
    alpaca = b"{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}"
    return [CHATML.encode(), marked, alpaca + b"{% endgeneration %}{% else %}{{ m.content }}\n{% endif %}{% endfor %}"]


def _of_layout() -> list[bytes]:
    shared = bytes([20, *range(22)])
    return [bytes([9, 2]) + shared * 4, bytes([0, 7]) + b"\x05abcdefg" * 3 + shared, bytes(range(200))]


def _of_run() -> list[bytes]:
    return [bytes([number]) + content.encode() for number, content in enumerate(FILES.values())]


def _of_gguf() -> list[bytes]:
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFWriter

    with tempfile.TemporaryDirectory() as folder:
        writer = GGUFWriter(Path(folder) / "model.gguf", "llama")
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(["a", "b", "ab", "<s>"])
        writer.add_token_types([1, 1, 1, 3])
        writer.add_token_merges(["a b"])
        writer.add_bos_token_id(3)
        writer.add_eos_token_id(3)
        writer.add_add_bos_token(True)
        writer.add_context_length(64)
        writer.add_tensor("token_embd.weight", np.ones((4, 8), dtype=np.float32))
        writer.add_tensor("output.weight", np.zeros((2, 34), dtype=np.uint8), raw_dtype=GGMLQuantizationType.Q8_0)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return [(Path(folder) / "model.gguf").read_bytes()]


_GOOD: dict[str, Callable[[], list[bytes]]] = {
    "reader": _of_reader, "recipe": _of_recipe, "template": _of_template, "layout": _of_layout, "run": _of_run,
    "gguf": _of_gguf,
}  # fmt: skip


@st.composite
def torn(draw: st.DrawFn, target: str) -> bytes:
    """A good document after a few cuts, copies, flipped bytes and pieces put in."""
    data = draw(st.sampled_from(documents(target)))
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 40)))
        how = draw(st.integers(0, 5))
        if how == 0:
            data = data[:start] + draw(st.sampled_from(PIECES)) + data[end if draw(st.booleans()) else start :]
        elif how == 1:
            data = data[:start] + data[end:]
        elif how == 2:
            data = data[:end] + data[start:end] * draw(st.integers(1, 3)) + data[end:]
        elif how == 3:
            data = data[:start] + draw(st.binary(min_size=1, max_size=8)) + data[start + 1 :]
        elif how == 4:
            other = draw(st.sampled_from(documents(target)))
            data = data[:start] + other[draw(st.integers(0, len(other))) :]
        else:
            data = data[: max(start, 1)]
    return data


def inputs(target: str) -> st.SearchStrategy[bytes]:
    """Torn documents mostly, and plain bytes."""
    return st.one_of(torn(target), torn(target), torn(target), st.binary(max_size=400))
