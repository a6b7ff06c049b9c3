"""The dependency ranges of pyproject.toml and the pins of constraints.txt say the same thing."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = [*PROJECT["dependencies"], *EXTRAS["test"], *EXTRAS["dev"]]
LINES = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
DATA_FILES = [
    "src/tunesmith/py.typed",
    "src/tunesmith/cli/json_keys.yaml",
    "src/tunesmith/data/report/page.html.j2",
    "src/tunesmith/workflows/demo/train.jsonl",
    "src/tunesmith/workflows/demo/test.jsonl",
]
PINS = {canonicalize_name(name): version for name, version in (line.split("==") for line in LINES if line[0] != "#")}


@pytest.mark.parametrize("line", [line for line in REQUIREMENTS if not line.startswith("tunesmith")])
def test_every_requirement_is_pinned_inside_its_range(line: str) -> None:
    requirement = Requirement(line)
    assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)])


def test_torch_is_pinned_without_a_local_version_so_that_the_machine_chooses_the_build() -> None:
    assert PINS["torch"] == "2.13.0"


def test_the_continuous_integration_script_runs_what_the_readme_says() -> None:
    assert (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1] == "exec make test"


def test_the_wheel_has_the_data_files_of_the_package() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    assert build["targets"]["wheel"] == {"packages": ["src/tunesmith"]}, "hatchling takes every file of the folder"
    ignored = subprocess.run(["git", "check-ignore", *DATA_FILES], cwd=ROOT, capture_output=True, check=False)
    assert ignored.stdout == b"", "hatchling leaves out what git ignores"
    assert all((ROOT / name).is_file() for name in DATA_FILES)
