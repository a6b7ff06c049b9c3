"""A dataset of the hub whose card names files elsewhere; the hub is a server here."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tunesmith.data.files.hub_datasets import _leads_elsewhere, _places, _settings
from tunesmith.errors import DataError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
READ = """
from tunesmith.errors import DataError
from tunesmith.errors import DataError
from tunesmith.data.files.hub_datasets import load_from_hub
try:
    load_from_hub("user/rows", None, split=None, revision=None)
except DataError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("place", "elsewhere"),
    [
        ("http://127.0.0.1/rows.jsonl", True),
        ("HTTPS://example.org/rows.jsonl", True),
        ("file:///etc/hosts", True),
        ("/etc/hosts", True),
        ("C:/rows.jsonl", True),
        ("~/rows.jsonl", True),
        ("data/../../other/rows.jsonl", True),
        ("..\\rows.jsonl", True),
        ("zip://rows.jsonl::http://127.0.0.1/rows.zip", True),
        ("simplecache::hf://datasets/user/rows/rows.jsonl", True),
        ("rows.jsonl", False),
        ("data/train-*.parquet", False),
        ("**/a..b.jsonl", False),
        ("zip://rows.jsonl::data/rows.zip", False),
        ("hf://datasets/user/other/rows.jsonl", False),
    ],
)
def test_a_place_leads_elsewhere_unless_it_is_of_the_hub(place: str, elsewhere: bool) -> None:
    assert _leads_elsewhere(place) is elsewhere


def test_a_card_whose_lists_stand_in_themselves_or_often_is_read_once(tmp_path: Path) -> None:
    bomb = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 40))
    own = "a0: &a0 [rows.jsonl]\n" + bomb + "configs:\n- data_files: &own [*a39, *own, http://h/x]\n"
    (tmp_path / ".huggingface.yaml").write_text(own)
    found = list(_places(_settings(str(tmp_path / ".huggingface.yaml"), "user/rows")))
    assert sorted(place for _, place in found) == ["http://h/x", "rows.jsonl"]


@pytest.fixture
def hub() -> Iterator[tuple[str, dict[str, bytes], list[str]]]:
    """The address of a hub, the files of its one dataset, and what was asked of it."""
    files: dict[str, bytes] = {}
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            asked.append(self.path)
            body = files.get(self.path.rpartition("/")[2]) if "/resolve/" in self.path else None
            self.send_response(404 if body is None else 200)
            if body is None:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", '"1"')
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body or b"")

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", files, asked
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("file", ["README.md", ".huggingface.yaml"])
def test_a_card_that_names_an_address_is_refused_before_the_address_is_asked(
    file: str, hub: tuple[str, dict[str, bytes], list[str]], tmp_path: Path
) -> None:
    address, files, asked = hub
    configs = f"configs:\n- config_name: default\n  data_files: {address}/inside/rows.jsonl\n"
    files[file] = (f"---\n{configs}---\nRows.\n" if file.endswith(".md") else configs).encode()
    said = subprocess.run(
        [sys.executable, "-P", "-c", READ],
        env={**os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    assert f"user/rows: {file}: configs.data_files" in said and "/inside/rows.jsonl" in said
    assert any(file in path for path in asked) and not any("inside" in path for path in asked)


BAD_CARDS = ["configs: [", "a: b: c", "configs: &a [*a", "- x\n y", "\x00", "configs: !!python/object:os.system x"]


@pytest.mark.parametrize("name", ["README.md", ".huggingface.yaml"])
@pytest.mark.parametrize("text", BAD_CARDS)
def test_a_card_that_cannot_be_read_is_one_message(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(f"---\n{text}\n---\nRows.\n" if name.endswith(".md") else text)
    try:
        found = list(_places(_settings(str(tmp_path / name), "user/rows")))
    except DataError as error:
        assert error.what == "the card of this dataset cannot be read"
    else:
        assert found == [] and text == "- x\n y"  # YAML without configs
