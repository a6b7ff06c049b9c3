"""Secrets of every kind are planted around real processes. Then every byte that these wrote is searched for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import tests.workflows.planted_store as planted_store

import tunesmith

MARK = b"pl4nt"  # stands in every planted secret, in any case
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJwbDRudCI6InBsNG50In0.Pl4ntJ3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
HUB_TOKEN = "hf_Pl4nt" + "abcd0" * 6
ADDRESSES = {
    "a password": "https://me:Pl4nt01@one.example/rows.jsonl",
    "a password with an at sign": "https://me:x@Pl4nt02@two.example/rows.jsonl",
    "a password that is percent-encoded": "https://me:Pl4nt%4003@three.example/rows.jsonl",
    "a token as the user": "https://Pl4nt04@four.example/rows.jsonl",
    "a password of another scheme": "webdavs://me:Pl4nt05@five.example/rows.jsonl",
    "a signature": "https://six.example/rows.jsonl?X-Amz-Credential=Pl4nt06a&X-Amz-Signature=Pl4nt06b",
    "a shared access signature": "https://seven.example/rows.jsonl?sv=2024-01-01&sig=Pl4nt07%2Fabc%3D",
    "a token in the query": "https://eight.example/rows.jsonl?token=Pl4nt08",
    "a hub token in the path": f"https://nine.example/{HUB_TOKEN}/rows.jsonl",
    "a web token in the query": f"https://ten.example/rows.jsonl?jwt={JWT}",
    "an access key in the path": "https://eleven.example/AKIAPL4NT0PL4NT0PL4N/rows.jsonl",
    "a web hook": "https://hooks.slack.com/services/T0PL4NTED/B0PL4NTED/Pl4ntPl4ntPl4ntPl4nt/rows.jsonl",
    "a password before a slash": "https://me:Pl4/nt13Pl4nt@thirteen.example/rows.jsonl",
}
ENVIRONMENT = {
    "HF_TOKEN": "hf_Pl4ntenv" + "abcd0" * 6,
    "WANDB_API_KEY": "Pl4nt0000000000000000000000000000000000f",
    "MLFLOW_TRACKING_PASSWORD": "Pl4nt-of-mlflow",
    "AWS_SECRET_ACCESS_KEY": "Pl4nt/of/aws",
    "https_proxy": "http://me:Pl4ntproxy@127.0.0.1:9",
}
ARGUMENTS = ["--db-password", "Pl4nt-of-arguments", "--hf-token=Pl4nt", "API_KEY=Pl4nt0", "postgres://me:Pl4nt@db/x"]


def planted(folder: Path, commands: Sequence[Sequence[str]], *arguments: str) -> tuple[str, int]:
    """What a process prints that runs the commands with secrets around it, and its exit code."""
    environment: Mapping[str, str] = {
        **os.environ,
        **ENVIRONMENT,
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "temporary"),
        "TUNESMITH_CACHE": str(folder / "cache"),
        "HF_HOME": str(folder / "hub"),
        "PYTHONPATH": f"{Path(tunesmith.__file__).parents[1]}:{Path(__file__).parents[2]}",
    }
    (folder / "temporary").mkdir(exist_ok=True)
    (folder / "home").mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, planted_store.__file__, *arguments],
        input=json.dumps(list(commands)), capture_output=True, text=True, cwd=folder, env=environment, timeout=300,
    )  # fmt: skip
    return done.stdout + done.stderr, done.returncode


def files_with_a_secret(folder: Path, besides: set[str]) -> list[str]:
    """The files below a folder that hold a planted secret, in their content or their name."""
    found = []
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        content = path.read_bytes() if path.is_file() else b""
        if MARK in name.lower().encode() + content.lower() and name not in besides:
            found.append(name)
    return found


def repository(folder: Path) -> None:
    """A git repository with a commit, whose remote and settings hold a token."""
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.example"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    subprocess.run([*git, "remote", "add", "origin", "https://x:Pl4ntgit@git.example/a.git"], check=True)
    subprocess.run([*git, "config", "http.extraheader", "AUTHORIZATION: basic Pl4ntgit"], check=True)


@pytest.mark.slow
def test_no_planted_secret_is_in_a_run_a_cache_a_card_a_report_or_what_is_printed(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    assert len(ADDRESSES) + len(ENVIRONMENT) + len(ARGUMENTS) + 2 >= 20
    repository(tmp_path)
    recipe = {
        "model": str(tiny_model_dir),
        "data": {"train": list(ADDRESSES.values()), "eval": 0.2},
        "training": {"max_steps": 2, "save_steps": 1, "logging_steps": 1, "batch_size": 8, "threads": 1},
        "evaluation": {"max_new_tokens": 4, "resamples": 100, "samples": 2},
        "output_dir": "run",
    }
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    (tmp_path / "bad.yaml").write_text(json.dumps({**recipe, "wandb_api_key": "Pl4nt0000000000", "method": "x"}))
    signed, wrong = ADDRESSES["a signature"], "https://me:Pl4ntwrong@one.example/wrong.jsonl?sig=Pl4ntwrong"
    commands = [
        ["check", "r.yaml", "--html", "report.html", "--show", "1"],
        ["check", signed, "--json"],
        ["prepare", "r.yaml", "--out", "prepared"],
        ["init", signed, "--model", str(tiny_model_dir), "--out", "made.yaml", "--json"],
        ["train", "r.yaml", "--dry-run"],
        ["train", "r.yaml"],
        ["train", "r.yaml", "--resume"],
        ["eval", "run", "--data", ADDRESSES["a password"], "evaluation.max_rows=4"],
        ["generate", "run", "--data", signed, "--out", "answers.csv", "max_new_tokens=2"],
        ["merge", "run", "--out", "merged"],
        ["runs", "show", "run"],
        ["runs", "list", ".", "--json"],
        ["runs", "curves", "run", "--out", "curves.html"],
    ]
    failing = [
        ["check", wrong],
        ["check", wrong, "--json"],
        ["train", "bad.yaml"],
        ["train", "r.yaml", f"data.trian={wrong}"],
        ["eval", "run", "--data", wrong],
        ["generate", "run", "--data", wrong, "--out", "other.csv"],
    ]
    said, code = planted(tmp_path, [*commands, *failing], *ARGUMENTS)
    assert code == 0, said
    assert said.count("exit 0") == len(commands) and said.count("exit 1") == len(failing), said
    assert MARK.decode() not in said.lower()
    assert files_with_a_secret(tmp_path, {"r.yaml", "bad.yaml", "made.yaml", ".git/config"}) == []
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["command"][1:] == [
        "--db-password", "***", "--hf-token=***", "API_KEY=***", "postgres://...@db/x",
    ]  # fmt: skip
    assert environment["git"]["commit"]
    assert "https://six.example/rows.jsonl?..." in (tmp_path / "prepared" / "README.md").read_text()


BUG = """
import sys
from tests.workflows.planted_store import install
import tunesmith.cli.data as data
install()
def broken(out):
    raise RuntimeError("no " + {address!r} + " \\x1b[31m") from KeyError({address!r})
data.place_for = broken
from tunesmith.cli.app import main
main(["init", "rows.jsonl"])
"""
CAUSE = """
from tests.workflows.planted_store import install
import tunesmith
install()
tunesmith.check({address!r}, progress=False)
"""


@pytest.mark.parametrize(("program", "ends"), [(BUG, "RuntimeError: no https://..."), (CAUSE, "DataError")])
def test_no_traceback_has_a_secret(program: str, ends: str) -> None:
    address = "https://me:Pl4nt%40wrong@one.example/wrong.jsonl?sig=Pl4ntwrong"
    path = f"{Path(tunesmith.__file__).parents[1]}:{Path(__file__).parents[2]}"
    done = subprocess.run(
        [sys.executable, "-c", program.format(address=address)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" in done.stderr and ends in done.stderr
    assert MARK.decode() not in done.stderr.lower() and "\x1b" not in done.stderr


@pytest.mark.slow
def test_no_output_of_a_notebook_has_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ipykernel", reason="needs ipykernel")
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient")
    nbformat = pytest.importorskip("nbformat", reason="needs nbformat")
    monkeypatch.setenv("PYTHONPATH", f"{Path(tunesmith.__file__).parents[1]}:{Path(__file__).parents[2]}")
    address = "https://me:Pl4nt%40a@one.example/rows.jsonl?sig=Pl4nt0"
    cells = [
        "from tests.workflows.planted_store import install\nimport os, tunesmith\ninstall()",
        "address = os.environ['ADDRESS']",
        "tunesmith.check(address)",
        "tunesmith.check(address.replace('rows', 'wrong'))",
    ]
    monkeypatch.setenv("ADDRESS", address)
    made = nbformat.v4.new_notebook()
    made.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
    client = nbclient.NotebookClient(
        made, timeout=120, allow_errors=True, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [json.dumps(cell.outputs) for cell in made.cells]
    assert "12 rows" in outputs[2] and "it cannot be read" in outputs[3] and "DataError" in outputs[3]
    assert MARK.decode() not in "".join(outputs).lower()
