"""Every process starts by way of ``runs/child_processes.py``: a new way to start one is noticed here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import tunesmith

SOURCE = Path(tunesmith.__file__).parent
OWNER = SOURCE / "runs" / "child_processes.py"
WAYS = {"run", "Popen", "call", "check_call", "check_output", "getoutput", "getstatusoutput"}
OTHER_WAYS = ("os.system", "os.popen", "os.exec", "os.spawn", "os.posix_spawn", "os.fork", "os.startfile", "pty.")
MODULES = {
    "multiprocessing",
    "concurrent",
    "joblib",
    "pexpect",
    "sh",
    "pty",
    "webbrowser",
    "pickle",
    "shelve",
    "marshal",
}
STARTED_ELSEWHERE = {
    "data/checks/pool.py": {"pickle"},  # Ray sends our own bytes
    "evaluation/metrics/judged.py": {"concurrent"},  # threads that wait for answers of a server
}


def starts(tree: ast.AST) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if node.func.attr in WAYS and ast.unparse(node.func.value) == "subprocess":
            yield node


def faults(file: Path, text: str) -> list[str]:
    tree, found = ast.parse(text), []
    for call in starts(tree):
        settings = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        command = ast.unparse(call.args[0])
        if not settings.get("env", "").startswith("clean_environment("):
            found.append(f"{call.lineno}: env is not clean_environment()")
        if not command.startswith(("python_command(", "[program,")):
            found.append(f"{call.lineno}: {command} is neither python_command() nor find_program()")
        if "shell" in settings:
            found.append(f"{call.lineno}: a shell")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith(OTHER_WAYS):
            found.append(f"{node.lineno}: {ast.unparse(node)}")
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        imported = {name.partition(".")[0] for name in names}
        allowed = STARTED_ELSEWHERE.get(str(file.relative_to(SOURCE)), set())
        line = getattr(node, "lineno", 0)
        found += [f"{line}: imports {name}" for name in sorted((imported & MODULES) - allowed)]
        if isinstance(node, ast.ImportFrom) and any(alias.name == "ProcessPoolExecutor" for alias in node.names):
            found += [] if file == OWNER else [f"{node.lineno}: ProcessPoolExecutor"]
    return found


@pytest.mark.parametrize("file", sorted(SOURCE.rglob("*.py")), ids=lambda file: str(file.relative_to(SOURCE)))
def test_every_process_of_a_module_starts_clean(file: Path) -> None:
    assert faults(file, file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "subprocess.run(['git', 'status'], env=clean_environment())",
        "subprocess.run(python_command('-c', 'x'))",
        "subprocess.run(python_command('-c', 'x'), env={**os.environ})",
        "subprocess.Popen([sys.executable, '-c', 'x'], env=clean_environment())",
        "subprocess.check_output('git', shell=True, env=clean_environment())",
        "os.system('x')",
        "os.execv('x', [])",
        "import multiprocessing",
        "from concurrent.futures import ProcessPoolExecutor",
        "from loky import ProcessPoolExecutor",
    ],
)
def test_what_does_not_start_clean_is_noticed(line: str) -> None:
    assert faults(SOURCE / "new.py", line)
