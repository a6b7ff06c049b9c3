"""`make audit` never passes in silence, and docs/licences.md has every dependency with an accepted licence."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def load() -> Any:
    spec = importlib.util.spec_from_file_location("audit", ROOT / "docs" / "audit.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


audit = load()
FINE = {"name": "A", "version": "1", "vulns": []}
SKIPPED = {"name": "b", "skip_reason": "not found"}
HOLE = {"name": "b", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}]}


@pytest.mark.parametrize(
    ("printed", "code", "said"),
    [
        (json.dumps({"dependencies": [FINE, {**FINE, "name": "b"}]}), 0, "No known hole in 2 packages."),
        (json.dumps({"dependencies": [FINE, HOLE]}), 3, "b 2: CVE-1, fixed in 3"),
        (json.dumps({"dependencies": [FINE, SKIPPED]}), 4, "did not answer for 1 of 2: b."),
        (json.dumps({"dependencies": [FINE]}), 4, "did not answer for 1 of 2: b."),
        ("", 4, "Nothing was compared."),
    ],
)
def test_what_was_not_compared_is_no_success(printed: str, code: int, said: str) -> None:
    found, lines = audit.judged(printed, ["a", "b"])
    assert found == code and said in lines[-1]


def test_the_page_of_licences_has_every_pin_with_an_accepted_licence() -> None:
    pins = audit.pinned((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    rows = [
        line.strip("| ").split(" | ") for line in audit.PAGE.read_text(encoding="utf-8").splitlines() if " | " in line
    ]
    licences = dict(rows[1:])
    assert list(licences) == list(pins) and len(pins) > 100
    assert audit.refused(licences) == []


def test_the_page_says_what_the_installed_packages_say() -> None:
    page = audit.PAGE.read_text(encoding="utf-8")
    for name in ("numpy", "typer", "safetensors", "certifi"):
        assert f"| {name} | {audit.licence_of(name)} |" in page
    assert audit.licence_of("there-is-no-such-package") is None


@pytest.mark.parametrize(
    ("licence", "accepted"),
    [
        ("MIT", True),
        ("Apache-2.0 WITH LLVM-exception AND MIT", True),
        ("GPL-3.0-only OR MIT", True),
        ("GPL-3.0-only", False),
        ("MIT AND AGPL-3.0-only", False),
        ("a text of its own", False),
        (None, False),
    ],
)
def test_a_licence_that_is_not_accepted_is_named(licence: str | None, accepted: bool) -> None:
    assert audit.is_accepted(licence) == accepted
    assert audit.refused({"x": licence}) == ([] if accepted else [f"x: {licence or 'no licence is known'}"])
