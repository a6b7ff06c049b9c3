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


NEW_FOLDER = "into a folder that whole_folder makes, and that has no name yet"
OWN_FOLDER = "into a temporary folder that this user alone may enter"
DIRECT_WRITES = {  # modules that write a file themselves, and why they need no owner of whole files
    "data/checks/near_duplicates.py": OWN_FOLDER,
    "data/files/given_rows.py": "for its owner alone, with O_EXCL; the name is known when all is written",
    "data/token_cache.py": "under a lock, with O_EXCL; it takes its name by put_in_place",
    "deploy/adapter_folder.py": NEW_FOLDER,
    "deploy/merge.py": NEW_FOLDER,
    "deploy/plain_weights.py": NEW_FOLDER,
    "methods/lora.py": NEW_FOLDER,
    "model/weights/bundled.py": NEW_FOLDER,
    "model/weights/load.py": NEW_FOLDER,
    "model/weights/text_side.py": NEW_FOLDER,
    "planning/memory.py": "/proc/self/clear_refs is no file",
    "runs/built_folders.py": NEW_FOLDER,
    "runs/file_hashes.py": "with O_EXCL, a name of its own, and a rename; the owner would need this module's layer",
    "runs/folder.py": "a line is appended without following a link",
    "runs/git.py": OWN_FOLDER,
    "runs/manifest.py": NEW_FOLDER,
    "runs/outputs.py": "a device or a stream, which cannot be replaced",
    "runs/whole_files.py": "the owner",
    "training/checkpoint.py": NEW_FOLDER,
    "workflows/answers_so_far.py": "lines are appended without following a link",
    "workflows/finetune.py": NEW_FOLDER,
    "workflows/prepare_data.py": NEW_FOLDER,
    "workflows/trial.py": OWN_FOLDER,
}


def test_files_are_written_by_the_owner_of_whole_files_or_for_a_reason_that_is_known() -> None:
    found = {
        str(module.relative_to(SOURCE))
        for module in MODULES
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and _writes(node)
    }
    assert sorted(found) == sorted(DIRECT_WRITES)


def _writes(call: ast.Call) -> bool:
    """Whether this opens a file to write, writes a path, or copies a file to one."""
    name = ast.unparse(call.func)
    owner, _, method = name.rpartition(".")
    if method in ("write_text", "write_bytes"):
        return owner.removesuffix("()") not in ("run", "self", "self.run") and not owner.startswith("Run(")
    if method == "fdopen" or (method == "open" and owner not in ("os", "archive")):
        given = [*call.args, *[key.value for key in call.keywords]]
        return any(set(ast.literal_eval(each)) & set("wax+") for each in given if _is_mode(each))
    return name in ("shutil.copyfile", "shutil.copy", "shutil.copy2", "shutil.move")


def _is_mode(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and set(node.value) <= set("rwaxbt+")
