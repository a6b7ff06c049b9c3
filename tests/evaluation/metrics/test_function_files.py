"""A function comes from a named file below a folder, and from nothing else."""

from __future__ import annotations

import py_compile
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import pytest
from tests.canaries import Canary

from tunesmith.errors import RecipeError
from tunesmith.evaluation.metrics.answers import check_metrics_exist
from tunesmith.evaluation.metrics.answers import text_metrics as metrics_of
from tunesmith.evaluation.metrics.user_functions import function_files, functions_allowed, import_function
from tunesmith.recipe.settings import EvaluationSettings

FLAG = r"(?s)nobody allowed it.*--allow-functions"


def text_metrics(names):
    return metrics_of(EvaluationSettings(metrics=names))


def check_names(names):
    check_metrics_exist(EvaluationSettings(metrics=names))


def score(folder: Path, name: str, answer: str = "abc") -> float:
    with functions_allowed({name: folder}):
        return cast("Any", text_metrics([name])[0]).score(answer, "", "")


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    """A folder of recipes, with functions in it."""
    folder = tmp_path / "recipes"
    for name, source in {
        "score.py": "def score(answer): return len(answer)",
        "metrics/deep.py": "def score(answer): return 2.0",
        "my-metrics/v1.0/dashed.py": "def score(answer): return 3.0",
        "pack/__init__.py": "from .part import score",
        "pack/part.py": "from . import other\nfrom pack_helper import FOUR\ndef score(answer): return FOUR",
        "pack/other.py": "ZERO = 0.0",
        "pack_helper.py": "FOUR = 4.0",
        "uses.py": "import helper\nfrom deeper.more import SIX\ndef score(answer): return helper.FIVE + SIX - 6",
        "helper.py": "FIVE = 5.0",
        "deeper/more.py": "SIX = 6.0",
        "json.py": "def score(answer): return 7.0",
        "also_json.py": "import json\ndef score(answer): return float(json.loads('8'))",
        "package_function.py": "from numpy import size as score",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(source)
    return folder


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("score.py:score", 3.0),
        ("score:score", 3.0),
        ("./score.py:score", 3.0),
        ("metrics/deep.py:score", 2.0),
        ("metrics.deep:score", 2.0),
        ("metrics/../metrics/deep.py:score", 2.0),
        ("my-metrics/v1.0/dashed.py:score", 3.0),
        ("pack/__init__.py:score", 4.0),
        ("pack:score", 4.0),
        ("pack/part.py:score", 4.0),
        ("pack.part:score", 4.0),
        ("uses.py:score", 5.0),
        ("json.py:score", 7.0),
        ("also_json.py:score", 8.0),
        ("package_function.py:score", 1.0),
    ],
)
def test_a_named_file_gives_its_function(name: str, value: float, recipes: Path, tmp_path: Path) -> None:
    before, finders = list(sys.path), list(sys.meta_path)
    assert score(recipes, name) == value
    assert (sys.path, sys.meta_path) == (before, finders)
    assert "json" in sys.modules and Path(str(sys.modules["json"].__file__)).parent != recipes
    assert not list(recipes.rglob("*.pyc"))


PYTHONS = [
    "os:system", "builtins:eval", "sys:exit", "subprocess:run", "posix:system", "shutil:rmtree", "runpy:run_path",
    "importlib:import_module", "os.path:exists", "pty:spawn", "ctypes:CDLL", "code:interact", "pickle:loads",
    "socket:socket", "webbrowser:open", "urllib.request:urlopen", "multiprocessing:Process", "_io:open",
    "textwrap:dedent", "string:capwords", "timeit:main", "pdb:run", "http.server:test",
]  # fmt: skip


@pytest.mark.parametrize("name", PYTHONS)
def test_a_function_of_python_is_never_a_metric(name: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="of Python itself, which is never a metric"):
        score(tmp_path, name)


IMPORTED = [
    "from os import system as score", "from os import popen as score", "from subprocess import run as score",
    "from subprocess import Popen as score", "score = eval", "score = exec", "score = print", "score = open",
    "import os\nscore = os.environ.get", "from builtins import compile as score", "score = str.upper",
    "score = 'x'.count", "import functools, os\nscore = functools.partial(os.system)",
    "from functools import partial\nfrom os import system\nscore = partial(partial(system))",
    "from shutil import rmtree as score", "from math import sqrt as score", "import sys\nscore = sys.exit",
    "import sys\nscore = sys.__stdout__.write", "import operator\nscore = operator.attrgetter('x')",
    "from importlib import import_module as score", "score = [].append", "import io\nscore = io.open",
]  # fmt: skip


@pytest.mark.parametrize("source", IMPORTED)
def test_a_function_of_python_stays_one_if_a_file_imports_it(source: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(source)
    with pytest.raises(RecipeError, match=r"(?s)of Python itself, which is never a metric.*into own\.py"):
        score(tmp_path, "own.py:score")


def test_a_class_with_a_call_a_cached_function_and_a_bound_method_are_functions_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import functools\n"
        "class Score(dict):\n"
        "    def __call__(self, answer): return 1.0\n"
        "    def method(self, answer): return 2.0\n"
        "called, bound = Score(), Score().method\n"
        "@functools.lru_cache\n"
        "def cached(answer): return 3.0\n"
        "partial = functools.partial(lambda number, answer: number, 4.0)\n"
    )
    assert [score(tmp_path, f"own.py:{name}") for name in ("called", "bound", "cached", "partial")] == [1, 2, 3, 4]


OUTSIDE = {
    "above": "../outside.py:score",
    "absolute": "{root}/outside.py:score",
    "above from inside": "metrics/../../outside.py:score",
    "link": "link.py:score",
    "linked folder": "linked/outside.py:score",
    "linked package": "linked.outside:score",
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_file_outside_the_folder_is_refused_and_not_run(name: str, recipes: Path, tmp_path: Path) -> None:
    canary = Canary(tmp_path / "sang")
    (tmp_path / "outside.py").write_text(canary.python(then="def score(answer): return 1.0"))
    (recipes / "link.py").symlink_to(tmp_path / "outside.py")
    (recipes / "linked").symlink_to(tmp_path)
    with pytest.raises(RecipeError, match="not below the folder of the recipe"):
        score(recipes, OUTSIDE[name].format(root=tmp_path))
    assert canary.heard == []


HELPERS = {
    "a link": ("import link", "link.py"),
    "a linked folder": ("from linked import outside", "linked/outside.py"),
    "byte code": ("import bytes_only", "bytes_only.pyc"),
    "byte code in a package": ("from pack import bytes_only", "pack/bytes_only.pyc"),
    "byte code in a folder": ("from deeper import bytes_only", "deeper/bytes_only.pyc"),
    "a link in a package": ("import pack.link", "pack/link.py"),
    "a link in a folder": ("import deeper.link", "deeper/link.py"),
}


@pytest.mark.parametrize("name", HELPERS)
def test_a_function_imports_no_file_from_outside_and_no_byte_code(name: str, recipes: Path, tmp_path: Path) -> None:
    canary = Canary(tmp_path / "sang")
    (tmp_path / "outside.py").write_text(canary.python())
    (recipes / "linked").symlink_to(tmp_path)
    if name.startswith("byte"):
        py_compile.compile(str(tmp_path / "outside.py"), cfile=str(recipes / HELPERS[name][1]))
    elif not (recipes / HELPERS[name][1]).exists():
        (recipes / HELPERS[name][1]).symlink_to(tmp_path / "outside.py")
    (recipes / "own.py").write_text(f"{HELPERS[name][0]}\ndef score(answer): return 1.0")
    with pytest.raises(RecipeError, match="cannot be imported"):
        score(recipes, "own.py:score")
    assert canary.heard == []


def test_byte_code_beside_a_file_is_not_run(recipes: Path, tmp_path: Path) -> None:
    canary = Canary(tmp_path / "sang")
    for name in ("uses", "helper", "score"):
        shown, hidden = recipes / f"{name}.py", tmp_path / "hidden" / f"{name}.py"
        hidden.parent.mkdir(exist_ok=True)
        hidden.write_text(canary.python(then="FIVE = 5.0\ndef score(answer): return 1.0"))
        kept = recipes / "__pycache__" / f"{name}.{sys.implementation.cache_tag}.pyc"
        unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
        py_compile.compile(str(hidden), cfile=str(kept), invalidation_mode=unchecked)
        assert kept.is_file() and shown.is_file()
    assert (score(recipes, "uses.py:score"), score(recipes, "score.py:score")) == (5.0, 3.0)
    assert canary.heard == []


def test_modules_of_the_working_folder_are_not_taken_for_a_function(
    recipes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary, work = Canary(tmp_path / "sang"), tmp_path / "work"
    work.mkdir()
    for name in ("score", "helper", "pack_helper", "uses"):
        (work / f"{name}.py").write_text(canary.python(name, then="def score(answer): return 0.0"))
    monkeypatch.chdir(work)
    assert [score(recipes, name) for name in ("score:score", "uses.py:score", "pack:score")] == [3.0, 5.0, 4.0]
    assert canary.heard == []


@pytest.mark.parametrize("name", ["score.py:score", "os:system", "score:score"])
def test_a_function_that_nobody_allowed_is_not_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = Canary(tmp_path / "sang")
    (tmp_path / "score.py").write_text(canary.python(then="def score(answer): return 1.0"))
    monkeypatch.chdir(tmp_path)
    for look in (lambda: check_names([name]), lambda: import_function(name)):
        with pytest.raises(RecipeError, match=FLAG):
            look()
    with functions_allowed({"other.py:score": tmp_path}), pytest.raises(RecipeError, match=FLAG):
        check_names([name])
    assert canary.heard == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing.py:score", r"(?s)no file missing\.py.*Put missing\.py into that folder"),
        ("numpy:size", r"(?s)no file numpy\.py.*write a file that calls it"),
        ("metrics:score", r"no file metrics\.py"),
        ("score.py:scoer", r"score\.py has no function 'scoer'"),
        ("helper.py:FIVE", "is not a function but float"),
        ("score.py:__builtins__", "is not a function but"),
        ("score.py:__class__", "has no function '__class__'"),
        ("my-module:score", "does not name a Python function"),
        (":score", "does not name a Python function"),
        ("a:b:c", "does not name a Python function"),
        ("score.py:", "does not name a Python function"),
        ("score.py:a.b", "does not name a Python function"),
        ("score\0.py:score", "does not name a Python function"),
    ],
)
def test_a_function_that_is_not_there_is_refused(name: str, words: str, recipes: Path) -> None:
    with pytest.raises(RecipeError, match=words):
        score(recipes, name)


@pytest.mark.parametrize("source", ["import sys\nsys.exit(0)", "def score(answer): raise SystemExit(0)"])
def test_a_file_that_ends_the_program_is_a_message(source: str, tmp_path: Path) -> None:
    (tmp_path / "ends.py").write_text(source)
    with pytest.raises(RecipeError, match=r"raised SystemExit: 0"):
        score(tmp_path, "ends.py:score")


def test_the_files_that_were_imported_are_known(recipes: Path) -> None:
    with functions_allowed({"uses.py:score": recipes, "pack:score": recipes}):
        check_names(["uses.py:score", "pack:score"])
        found = function_files()
    assert sorted(found) == sorted([
        "uses.py", "helper.py", "deeper/more.py", "pack/__init__.py", "pack/part.py", "pack/other.py", "pack_helper.py",
    ])  # fmt: skip
    assert all(file == recipes / name for name, file in found.items())


def test_compiled_code_that_a_function_imports_is_known_again_and_again(tmp_path: Path) -> None:
    library = Path(str(find_spec("_json").origin))  # pyright: ignore[reportOptionalMemberAccess]
    if library.suffix not in (".so", ".pyd"):
        pytest.skip("this Python has its modules built in")
    (tmp_path / library.name).write_bytes(library.read_bytes())
    (tmp_path / "uses.py").write_text(
        "from . import _json\ndef score(answer): return len(_json.encode_basestring(answer))"
    )
    for _ in range(2):
        with functions_allowed({"uses.py:score": tmp_path}):
            check_names(["uses.py:score"])
            assert function_files() == {name: tmp_path / name for name in ("uses.py", library.name)}
        assert score(tmp_path, "uses.py:score") == 5.0


def test_a_file_that_changed_is_read_again_by_the_next_command(recipes: Path) -> None:
    assert score(recipes, "uses.py:score") == 5.0
    (recipes / "helper.py").write_text("FIVE = 50.0")
    assert score(recipes, "uses.py:score") == 50.0


def test_two_files_of_one_name_are_refused(recipes: Path, tmp_path: Path) -> None:
    (tmp_path / "score.py").write_text("def other(answer): return 1.0")
    with functions_allowed({"score.py:score": recipes, "score.py:other": tmp_path}):
        check_names(["score.py:score", "score.py:other"])
        with pytest.raises(RecipeError, match=r"two files of functions are called score\.py"):
            function_files()
