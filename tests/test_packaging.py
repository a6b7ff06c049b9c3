"""The dependency ranges of pyproject.toml and the pins of constraints.txt say the same thing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
UNPINNED = ("gpu", "reporters")  # which `make setup` does not install
REQUIREMENTS = [*PROJECT["dependencies"], *(line for name in EXTRAS if name not in UNPINNED for line in EXTRAS[name])]
LINES = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
DATA_FILES = [
    "src/tunesmith/py.typed",
    "src/tunesmith/cli/json_keys.yaml",
    "src/tunesmith/data/report/ledger.html.j2",
    "src/tunesmith/data/report/page.html.j2",
    "src/tunesmith/deploy/report/run.html.j2",
    "src/tunesmith/evaluation/divergence/prompts.jsonl",
    "src/tunesmith/evaluation/divergence/texts.jsonl",
    "src/tunesmith/evaluation/probe/items.jsonl",
    "src/tunesmith/runs/pages/macros.html.j2",
    "src/tunesmith/runs/pages/shell.html.j2",
    "src/tunesmith/workflows/demo/train.jsonl",
    "src/tunesmith/workflows/demo/test.jsonl",
]
PINS = {canonicalize_name(name): version for name, version in (line.split("==") for line in LINES if line[0] != "#")}


@pytest.mark.parametrize("line", [line for line in REQUIREMENTS if not line.startswith("tunesmith")])
def test_every_requirement_is_pinned_inside_its_range(line: str) -> None:
    requirement = Requirement(line)
    assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)])


def test_torch_is_pinned_without_a_local_version_so_that_the_machine_chooses_the_build() -> None:
    assert PINS[canonicalize_name("torch")] == "2.13.0"


def test_the_continuous_integration_script_runs_what_the_readme_says() -> None:
    assert (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1] == "exec make test"


def test_the_wheel_has_the_data_files_of_the_package() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    assert build["targets"]["wheel"] == {"packages": ["src/tunesmith"]}, "hatchling takes every file of the folder"
    ignored = subprocess.run(["git", "check-ignore", *DATA_FILES], cwd=ROOT, capture_output=True, check=False)
    assert ignored.stdout == b"", "hatchling leaves out what git ignores"
    assert all((ROOT / name).is_file() for name in DATA_FILES)


def make(folder: Path, *arguments: str, gpu: bool = False) -> str:
    """Runs make for PyTorch in a folder with a stand-in for pip, which has what the file `index` names."""
    (folder / ".venv").mkdir(exist_ok=True)
    for name in ("Makefile", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    (folder / ".venv" / ".python").touch()
    (folder / "pip").write_text('echo "$@" >> asked; grep -qxFf index <<END\n$(printf "%s\\n" "$@")\nEND\n')
    smi = folder / "nvidia-smi"
    smi.write_text("echo 'GPU 0: NVIDIA H200'\n" if gpu else "exit 9\n")
    smi.chmod(0o755)
    ran = subprocess.run(
        ["make", "--silent", "PIP=bash pip", ".venv/.torch", *arguments],
        cwd=folder,
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    (folder / ".venv" / ".torch").unlink()
    return ran.stderr


def asked(folder: Path) -> list[str]:
    """What pip was asked for, one call a line."""
    lines = (folder / "asked").read_text().splitlines()
    (folder / "asked").unlink()
    return lines


@pytest.mark.skipif(sys.platform != "linux" or Path("/dev/nvidia0").exists(), reason="a GPU is seen here")
def test_make_takes_the_cpu_build_of_torch_where_no_gpu_is_seen(tmp_path: Path) -> None:
    own, pytorchs = "--no-deps torch==2.13.0+cpu", "--no-deps --index-url https://download.pytorch.org/whl/cpu"
    (tmp_path / "index").write_text("torch==2.13.0+cpu\n")
    assert make(tmp_path) == ""
    assert asked(tmp_path) == [own]
    (tmp_path / "index").write_text("https://download.pytorch.org/whl/cpu\n")
    assert make(tmp_path) == ""
    assert asked(tmp_path) == [own, f"{pytorchs} torch==2.13.0+cpu"]
    (tmp_path / "index").write_text("torch==2.13.0\n")
    assert make(tmp_path) == "The CPU build of PyTorch cannot be fetched; the default build is taken.\n"
    assert asked(tmp_path)[-1] == "torch==2.13.0"


def test_make_takes_the_default_build_of_torch_for_a_gpu_or_when_told_to(tmp_path: Path) -> None:
    (tmp_path / "index").write_text("torch==2.13.0\n")
    make(tmp_path, gpu=True)
    make(tmp_path, "TORCH=default")
    assert asked(tmp_path) == ["torch==2.13.0", "torch==2.13.0"]
