"""The report in a real browser: no error, nothing fetched, accessible, and no page wider than a telephone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.deploy.report.made_run import made_run

from tunesmith.deploy.report.page import run_report
from tunesmith.deploy.report.run_facts import run_facts

playwright = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs pip install axe-playwright-python")
SIZES = {"telephone": (360, 740), "screen": (1280, 800)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium: Debian's, or else the one that playwright installs."""
    own = shutil.which("chromium")
    with playwright.sync_playwright() as started:
        try:
            found = started.chromium.launch(executable_path=own, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no browser is here: {str(error).splitlines()[0]}")
        yield found
        found.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    long = "word " * 30 + "x" * 300
    path = folder / "report.html"
    path.write_text(run_report(run_facts(made_run(folder / "run", f"<b>{long[:200]}"))), encoding="utf-8")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_the_page_is_accessible_and_fits(browser: Any, file: Path, size: str, scheme: str) -> None:
    width, height = SIZES[size]
    # The policy of the page forbids scripts, and axe is one. Without the bypass, the page itself is looked at first.
    for bypass in (False, True):
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, bypass_csp=bypass
        )
        page = context.new_page()
        said, asked = [], []
        page.on("console", lambda message, said=said: said.append(message.text))
        page.on("pageerror", lambda error, said=said: said.append(str(error)))
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.goto(file.as_uri())
        assert asked == [file.as_uri()]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        if bypass:
            found = axe.Axe().run(page)
            assert found.violations_count == 0, found.generate_report()
        assert said == []
        context.close()
