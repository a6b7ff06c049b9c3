"""The house: what the layout of ``src/tunesmith`` promises and import contracts cannot say."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "tunesmith"
MODULES = sorted(SOURCE.rglob("*.py"))
LONGEST = 500  # lines of a module
TOP = {
    "__init__.py", "__main__.py", "py.typed", "safe_text.py", "errors.py", "recipe", "runs", "data", "model", "methods",
    "planning", "evaluation", "training", "deploy", "workflows", "cli",
}  # fmt: skip


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_module_is_longer_than_500_lines(module: Path) -> None:
    assert len(module.read_text(encoding="utf-8").splitlines()) <= LONGEST


def test_the_top_has_the_entries_of_the_layout_and_no_other() -> None:
    assert {path.name for path in SOURCE.iterdir() if path.name != "__pycache__"} == TOP


def test_a_packages_init_is_empty() -> None:
    filled = [path for path in SOURCE.rglob("__init__.py") if path.parent != SOURCE and path.read_text().strip()]
    assert filled == []


def test_only_its_owner_makes_temporary_files_that_have_a_name() -> None:
    makers = {"mkdtemp", "mkstemp", "mktemp", "TemporaryDirectory", "NamedTemporaryFile"}
    found = {
        str(module.relative_to(SOURCE)): node.lineno
        for module in MODULES
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8")))
        if {getattr(node, key, None) for key in ("id", "attr", "name")} & makers
        and isinstance(node, ast.Name | ast.Attribute | ast.alias)
    }
    assert found == {}, "use tunesmith.runs.temporary, which removes them also when a signal ends the process at once"


def test_a_public_class_name_stands_in_one_package_only() -> None:
    packages: dict[str, set[str]] = defaultdict(set)
    for module in MODULES:
        package = module.relative_to(SOURCE).parts[0]
        for statement in ast.parse(module.read_text(encoding="utf-8")).body:
            if isinstance(statement, ast.ClassDef) and not statement.name.startswith("_"):
                packages[statement.name].add(package)
    assert packages["Recipe"] == {"recipe"}  # the search finds classes
    assert {name: sorted(found) for name, found in packages.items() if len(found) > 1} == {}
