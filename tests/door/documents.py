"""Folders of documents, with the files that stand beside them in real life."""

from __future__ import annotations

import html
import struct
import textwrap
import zlib
from collections.abc import Callable
from pathlib import Path

from tests.door.content import articles
from tests.door.real_file import RealFile


def png() -> bytes:
    """A picture of one grey pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    chunks = (chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(b"\x00\x80")), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _write_folder(folder: Path, ending: str, page: Callable[[str, str, str], str]) -> None:
    """Each article in the folder of its language, an image beside them, and what the Finder leaves behind."""
    root = folder / "docs"
    for number, (title, body, language) in enumerate(articles(), 1):
        path = root / language / f"{number:02}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page(title, body, language), encoding="utf-8", newline="")
    (root / "img").mkdir()
    (root / "img" / "logo.png").write_bytes(png())
    (root / ".DS_Store").write_bytes(b"\x00\x00\x00\x01Bud1\x00\x00\x10\x00" + bytes(48))


def documents_markdown(folder: Path) -> None:
    """Pages for a static site (Jekyll, Hugo, MkDocs): front matter, headings, links, an image, a list, code.

    https://jekyllrb.com/docs/front-matter/
    """

    def page(title: str, body: str, language: str) -> str:
        return (
            f'---\ntitle: "{title}"\nlang: {language}\ntags: [shop, faq]\n---\n\n# {title}\n\n'
            f"![Logo](../img/logo.png)\n\n{body}\n\n- *in the shop*\n- [online](https://shop.example/?q=tea&l=en)\n\n"
            "```sh\ncurl https://shop.example\n```\n"
        )

    _write_folder(folder, ".md", page)


def documents_html(folder: Path) -> None:
    """Pages saved from a browser: doctype, style, script, navigation, entities; the text is in ``main``."""

    def page(title: str, body: str, language: str) -> str:
        paragraphs = "".join(f"<p>{html.escape(part)}&nbsp;</p>\n" for part in body.split("\n\n"))
        return (
            f'<!DOCTYPE html>\n<html lang="{language}">\n<head><meta charset="utf-8">\n'
            f"<title>{html.escape(title)}</title>\n<style>body {{ color: #222 }}</style>\n"
            "<script>window.dataLayer = [];</script></head>\n"
            '<body><nav><a href="/">Shop</a> &gt; <a href="/faq">FAQ</a></nav>\n'
            f"<main><h1>{html.escape(title)}</h1>\n{paragraphs}</main>\n"
            "<footer>&copy; 2026 Teapot &amp; Sons</footer></body></html>\n"
        )

    _write_folder(folder, ".html", page)


def documents_rst(folder: Path) -> None:
    """Sources of a Sphinx site: reStructuredText with a directive, a role and a target.

    https://www.sphinx-doc.org/en/master/usage/restructuredtext/basics.html
    """

    def page(title: str, body: str, language: str) -> str:
        return (
            f".. _page-{language}:\n\n{title}\n{'=' * len(title)}\n\n.. image:: ../img/logo.png\n   :alt: logo\n\n"
            f"{body}\n\n.. note::\n   See :ref:`page-{language}`.\n"
        )

    _write_folder(folder, ".rst", page)


def documents_pdf_text(folder: Path) -> None:
    """poppler's ``pdftotext``: lines cut at the page's width, words hyphenated, a form feed after each page.

    https://manpages.debian.org/stable/poppler-utils/pdftotext.1.en.html (``-nopgbrk`` leaves the form feeds out)
    """

    def page(title: str, body: str, language: str) -> str:
        lines = "\n".join(textwrap.wrap(body, 34))
        return f"{title}\n\n{lines}\n\n     1\n\fTeapot & Sons\n\nThe deliv-\nery takes 2 days.\n\n     2\n\f"

    _write_folder(folder, ".txt", page)


def _documents(write: Callable[[Path], None], *needs: str) -> RealFile:
    return RealFile(write, "docs", len(articles()), "text", "Keep green tea dry", says=("logo.png",), needs=needs)


DOCUMENTS = (
    _documents(documents_markdown),
    _documents(documents_html, "resiliparse"),
    _documents(documents_rst),
    _documents(documents_pdf_text),
)
