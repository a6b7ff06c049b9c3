"""Data at a URL: where redirects may lead, and what is said of plain HTTP."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tunesmith.data.files import web
from tunesmith.data.files.locations import parts_of
from tunesmith.data.files.web import Redirects, plain_http, refuse_schemes
from tunesmith.errors import DataError
from tunesmith.recipe.data import SourceSettings

pytest.importorskip("aiohttp")
ROWS = b"".join(json.dumps({"prompt": f"ask {n}", "completion": "say"}).encode() + b"\n" for n in range(5))


MOST_SENT = 2**27  # bytes


class Site(BaseHTTPRequestHandler):
    """/rows.jsonl has rows, /to/ADDRESS leads there, /elsewhere.jsonl to ``target``, /endless.jsonl never ends.

    /more.jsonl answers for a range with far more, and /listing first with an error and then with a page.
    """

    seen: list[str] = []  # noqa: RUF012
    target = ""
    sent = 0

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.seen.append(self.path)
        if self.path == "/elsewhere.jsonl":
            self.send_response(302)
            self.send_header("Location", self.target)
            self.end_headers()
        elif self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/").removesuffix("#.jsonl"))
            self.end_headers()
        elif self.path == "/more.jsonl":
            self.more()
        elif self.path == "/listing":
            self.send_response(404 if self.seen.count(self.path) < 3 else 200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(b"<a" + b" " * 20_000)
        elif self.path.startswith("/endless"):
            self.send_response(200)
            self.end_headers()
            if self.command == "GET":
                try:
                    while True:
                        self.wfile.write(ROWS * 1000)
                except OSError:
                    return
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(ROWS)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(ROWS)

    def more(self) -> None:
        ranged = "Range" in self.headers
        self.send_response(206 if ranged else 200)
        if ranged:
            self.send_header("Content-Range", "bytes 0-5242879/400000000")
        else:
            self.send_header("Content-Length", "400000000")
            self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if self.command == "GET":
            block = ROWS * 4000
            Site.sent = 0
            try:
                while Site.sent < MOST_SENT:
                    Site.sent += self.wfile.write(block)
            except OSError:
                return

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    Site.seen.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """127.0.0.1 is a public address; localhost, and the rest, are what they are."""
    real = web._place

    async def place(host: str | None) -> int:
        return web._PUBLIC if host == "127.0.0.1" else await real(host)

    monkeypatch.setattr(web, "_place", place)


def rows_at(url: str) -> int:
    (part,), _, _ = parts_of(SourceSettings(path=url), "train")
    return sum(1 for _ in part.rows())


def test_rows_and_redirects_of_one_place_are_read(site: str) -> None:
    assert rows_at(f"{site}/rows.jsonl") == 5
    assert rows_at(f"{site}/to/{site}/rows.jsonl") == 5
    assert rows_at(f"{site}/to//rows.jsonl") == 5


INSIDE = {
    "this machine by name": "http://localhost:{port}/rows.jsonl",
    "this machine in IPv6": "http://[::1]:{port}/rows.jsonl",
    "this machine as an IPv4 address in IPv6": "http://[::ffff:127.0.0.2]:{port}/rows.jsonl",
    "another loopback address": "http://127.9.9.9:{port}/rows.jsonl",
    "no address": "http://0.0.0.0:{port}/rows.jsonl",
    "the metadata of a cloud": "http://169.254.169.254/latest/meta-data/rows.jsonl",
    "a private network": "http://10.1.2.3/rows.jsonl",
    "another private network": "http://192.168.0.1/rows.jsonl",
    "a file": "file:///etc/passwd.jsonl",
    "another scheme": "ftp://example.com/rows.jsonl",
}


@pytest.mark.parametrize("target", INSIDE.values(), ids=INSIDE)
def test_a_redirect_from_outside_to_the_inside_is_refused_and_not_followed(
    site: str, outside: None, target: str
) -> None:
    Site.target = target.format(port=site.rpartition(":")[2])  # the address itself would be read as a chain: [::1]
    with pytest.raises(DataError, match="the address leads elsewhere") as caught:
        rows_at(f"{site}/elsewhere.jsonl")
    assert "name the address itself" in str(caught.value.remedy)
    assert not any(path.startswith("/rows") for path in Site.seen)


def test_the_remedy_of_a_redirect_works(site: str, outside: None) -> None:
    target = f"http://localhost:{site.rpartition(':')[2]}/rows.jsonl"
    with pytest.raises(DataError) as caught:
        rows_at(f"{site}/to/{target}?secret=1")
    assert "secret" not in str(caught.value)
    assert "with its query, which is not shown" in str(caught.value.remedy)
    assert rows_at(str(caught.value.remedy).rpartition(": ")[2]) == 5


def test_a_redirect_of_this_machine_does_not_lead_to_the_metadata_of_a_cloud(site: str) -> None:
    with pytest.raises(DataError, match="leads elsewhere"):
        rows_at(f"{site}/to/http://169.254.169.254/rows.jsonl")


def test_a_redirect_to_plain_http_is_refused() -> None:
    class Answer:
        class url:
            scheme, host = "https", "example.com"
            join = staticmethod(lambda other: other)

        class response:
            headers = {"Location": "http://example.com/rows.jsonl"}  # noqa: RUF012

    redirects = Redirects("a")
    with pytest.raises(DataError, match="leads elsewhere"):
        asyncio.run(redirects._look(None, None, Answer))  # type: ignore[arg-type]
    with pytest.raises(DataError):
        redirects.check()


def test_a_file_without_an_end_is_stopped(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_MAX_DOWNLOAD_GB", "0.02")
    with pytest.raises(DataError, match="or has no end") as caught:
        rows_at(f"{site}/endless.jsonl")
    assert "TUNESMITH_MAX_DOWNLOAD_GB" in str(caught.value.remedy)
    monkeypatch.setenv("TUNESMITH_MAX_DOWNLOAD_GB", "much")
    with pytest.raises(DataError, match="no number of GB"):
        rows_at(f"{site}/rows.jsonl")


def test_an_answer_that_is_longer_than_the_range_asked_for_is_not_kept_in_memory(site: str) -> None:
    with pytest.raises(DataError, match="sends more than it was asked for") as caught:
        rows_at(f"{site}/more.jsonl")
    assert "name the file" in str(caught.value.remedy)
    assert Site.sent < MOST_SENT // 2


def test_an_answer_that_is_copied_to_the_disk_first_has_an_end(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_MAX_DOWNLOAD_GB", "0.02")
    with pytest.raises(DataError, match="or has no end"):
        rows_at(f"simplecache::{site}/endless.jsonl")


def test_no_links_are_looked_for_in_a_page(site: str) -> None:
    with pytest.raises(DataError):
        rows_at(f"{site}/listing")


@pytest.mark.parametrize("url", ["reference::file:///tmp/a.json", "reference://", "dask::https://e.com/a.jsonl"])
def test_a_driver_that_opens_what_a_file_names_is_not_used(url: str) -> None:
    with pytest.raises(DataError, match="is not read") as caught:
        parts_of(SourceSettings(path=url), "train")
    assert caught.value.remedy


@pytest.mark.parametrize("url", ["https://e.com/a.jsonl", "s3://b/a.jsonl", "simplecache::https://e.com/a.jsonl"])
def test_other_drivers_are(url: str) -> None:
    refuse_schemes(url, url)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://example.com/a.jsonl", True),
        ("http://user:p@example.com/a.jsonl", True),
        ("simplecache::http://example.com/a.jsonl", True),
        ("https://example.com/a.jsonl", False),
        ("http://localhost:80/a.jsonl", False),
        ("http://127.0.0.1:8000/a.jsonl", False),
        ("http://[::1]:8000/a.jsonl", False),
    ],
)
def test_plain_http_over_a_network_is_said(url: str, said: bool) -> None:
    assert plain_http(url) is said
