"""Secrets of 25 kinds, and a real process among them: in its addresses, arguments, environment and repository."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

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


IN_GIT = {"a token in the remote": "https://x:Pl4ntgit@git.example/a.git", "a header of git": "basic Pl4nthead"}
SECRETS = {
    **ADDRESSES,
    **{f"the variable {name}": value for name, value in ENVIRONMENT.items()},
    **{f"the argument {value.partition('=')[0]}": value for value in ARGUMENTS if "l4nt" in value},
    **IN_GIT,
}


def forms(secret: str) -> list[bytes]:
    """How a secret may be written in a file."""
    return [form.encode() for form in re.findall(r"[\w%@-]*[Pp][Ll]4[Nn]?[Tt]?[\w%@-]*", secret)]


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
    remote, header = IN_GIT.values()
    subprocess.run([*git, "remote", "add", "origin", remote], check=True)
    subprocess.run([*git, "config", "http.extraheader", f"AUTHORIZATION: {header}"], check=True)


def recipe_of(model: str) -> dict[str, object]:
    """A recipe whose rows are at all the addresses."""
    return {
        "model": model,
        "data": {"train": list(ADDRESSES.values()), "eval": 0.2},
        "training": {"max_steps": 2, "save_steps": 1, "logging_steps": 1, "batch_size": 8, "threads": 1},
        "evaluation": {"max_new_tokens": 4, "resamples": 100, "samples": 2},
        "output_dir": "run",
    }


def commands_of(model: str) -> list[list[str]]:
    """Everything that a user does with r.yaml, the recipe."""
    signed = ADDRESSES["a signature"]
    return [
        ["check", signed, "--json"],
        ["check", "r.yaml", "--html", "report.html", "--show", "1"],
        ["prepare", "r.yaml", "--out", "prepared"],
        ["init", signed, "--model", model, "--out", "made.yaml", "--json"],
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
