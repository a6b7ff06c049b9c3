"""A run of somebody else makes this machine ask no address, unless the user says so."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.workflows.test_foreign_runs import COMMANDS, _no_input, filled, rewrite, run, sent, trained

pytest.importorskip("aiohttp")
__all__ = ["_no_input", "sent", "trained"]  # fixtures

READS_ROWS = [
    "eval", "resume", "train the stored recipe", "dry run", "range test",
    "check the stored recipe", "prepare the stored recipe", "plan the stored recipe", "plan by tokens",
]  # fmt: skip
READS_NONE = [name for name in COMMANDS if name not in READS_ROWS]


@pytest.fixture
def asked(sent: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of the rows of the run that was sent, on this machine, and what was asked of it."""
    paths: list[str] = []
    rows = (sent / "rows.jsonl").read_bytes()

    class Site(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(rows)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(rows)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/rows.jsonl"
    rewrite(sent, lambda text: text.replace(str(sent / "rows.jsonl"), address))
    yield address, paths
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", READS_ROWS)
def test_an_address_is_asked_for_again(
    name: str, sent: Path, asked: tuple[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    address, paths = asked
    assert run(*filled(name, sent)) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert paths == []
    assert f"asks to read rows from {address}" in said and f"add data.train={address}" in said
    assert not (Path.cwd() / "new").exists() and not (Path.cwd() / "prepared").exists()


@pytest.mark.parametrize("name", READS_NONE)
def test_a_command_that_reads_other_rows_asks_no_address_of_the_run(
    name: str, sent: Path, asked: tuple[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*filled(name, sent)) == 0, capsys.readouterr().err
    assert asked[1] == []


@pytest.mark.parametrize("name", [name for name in READS_ROWS if name not in ("eval", "resume")])
def test_the_key_that_the_message_names_works(name: str, sent: Path, asked: tuple[str, list[str]]) -> None:
    assert run(*filled(name, sent), f"data.train={asked[0]}") in (0, 1 if name.startswith("check") else 0)
    assert asked[1] != []


@pytest.mark.parametrize("name", ["eval", "resume"])
def test_the_flag_that_the_message_names_works(
    name: str, sent: Path, asked: tuple[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*filled(name, sent), "--allow-functions") == 0, capsys.readouterr().err
    assert asked[1] != []


def test_merge_compares_on_questions_or_on_the_rows_that_are_named(
    sent: Path, asked: tuple[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("merge", str(sent / "run"), "--out", "merged") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert f"asks to read rows from {asked[0]}" in said and "a few plain questions" in said
    assert run("merge", str(sent / "run"), "--out", "again", "--data", str(sent / "rows.jsonl")) == 0
    assert asked[1] == []


def test_a_run_that_began_here_is_not_asked_about(
    sent: Path, asked: tuple[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", str(sent / "recipe.yaml"), f"output_dir={Path.cwd() / 'own'}") == 0
    paths = asked[1]
    paths.clear()
    assert run("eval", "own") == 0, capsys.readouterr().err
    assert paths != []
