"""No file is ever read in a way that can run a program: a lint over the source, by its syntax tree."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "tunesmith"
MODULES = sorted(SOURCE.rglob("*.py"))
NEVER_IMPORTED = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "yaml", "imp"}
NEVER_CALLED = {"eval", "exec", "compile", "__import__", "execfile"}
NEVER_METHODS = {
    ("torch", "load"), ("torch", "save"), ("torch.hub", "load"), ("np", "fromregex"), ("os", "system"), ("os", "popen"),
    ("subprocess", "getoutput"), ("subprocess", "getstatusoutput"), ("pd", "read_pickle"), ("joblib", "load"),
    ("runpy", "run_path"), ("runpy", "run_module"), ("code", "interact"),
}  # fmt: skip
NEVER_GIVEN = {"shell": True, "allow_pickle": True, "weights_only": False, "trust_remote_code": True}
ALLOWED = {
    ("planning/shape_from_model.py", "trust_remote_code=True"),  # behind the user's own model.trust_remote_code
    ("data/checks/pool.py", "import pickle"),  # what this run has made itself, on its way through the user's own Ray
}


def dotted(node: ast.expr) -> str:
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def offences(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [f"import {name.name}" for name in node.names if name.name.split(".")[0] in NEVER_IMPORTED]
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").split(".")[0] in NEVER_IMPORTED:
                found.append(f"from {node.module} import")
            found += [
                f"from {node.module} import {name.name}"
                for name in node.names
                if (node.module, name.name) in NEVER_METHODS
            ]
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in NEVER_CALLED:
                found.append(f"{node.func.id}()")
            if isinstance(node.func, ast.Attribute) and (dotted(node.func.value), node.func.attr) in NEVER_METHODS:
                found.append(f"{dotted(node.func)}()")
            if isinstance(node.func, ast.Name) and node.func.id == "YAML":
                kind = next((word.value for word in node.keywords if word.arg == "typ"), None)
                if isinstance(kind, ast.Constant) and kind.value not in ("safe", "rt"):
                    found.append(f"YAML(typ={kind.value!r})")
            for word in node.keywords:
                value = word.value.value if isinstance(word.value, ast.Constant) else None
                if word.arg in NEVER_GIVEN and value is NEVER_GIVEN[word.arg]:
                    found.append(f"{word.arg}={value}")
    return found


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_module_reads_no_pickle_and_runs_no_text(module: Path) -> None:
    name = module.relative_to(SOURCE).as_posix()
    found = [each for each in offences(ast.parse(module.read_text(encoding="utf-8"))) if (name, each) not in ALLOWED]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import loads", "import yaml\nyaml.load(x)", "eval(x)", "exec(x)", "torch.load(f)",
        "from torch import load", "import marshal", "import joblib", "np.load(f, allow_pickle=True)",
        "subprocess.run(x, shell=True)", "os.system(x)", "YAML(typ='unsafe')", "torch.load(f, weights_only=False)",
        "import cloudpickle as c", "__import__(x)", "compile(x, '', 'exec')", "load(f, trust_remote_code=True)",
    ],
)  # fmt: skip
def test_the_lint_finds_what_it_is_there_for(source: str) -> None:
    assert offences(ast.parse(source))


def test_what_is_allowed_is_still_there() -> None:
    for name, what in ALLOWED:
        assert what in offences(ast.parse((SOURCE / name).read_text(encoding="utf-8")))
