"""Every real file goes to a run without being edited: `init` opens it or names the command that does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from tests.door.dataset_files import DATASET_FILES
from tests.door.files import FILES, write
from tests.door.more_json_files import MORE_JSON_FILES
from tests.door.opening import Opened, build_tiny_model, open_file, train, yaml_of
from tests.door.quoted_tables import QUOTED_TABLES
from tests.door.real_file import RealFile
from tests.door.service_files import SERVICE_FILES

# Files that Tunesmith does not open yet. Take a name out once it does; TUNESMITH_DOOR=all runs them all the same.
NOT_YET: frozenset[str] = frozenset()
ALL = os.environ.get("TUNESMITH_DOOR") == "all"


def _marked(file: RealFile) -> object:
    marks = [pytest.mark.slow]
    if file.name in NOT_YET and not ALL:
        marks.append(pytest.mark.skip(reason="src does not open this file yet"))
    return pytest.param(file, marks=marks, id=file.name)


# Of these files some are trained here; `python -m tests.door.table --train` trains all, test_read.py reads all.
SAMPLED = (*QUOTED_TABLES, *DATASET_FILES, *SERVICE_FILES, *MORE_JSON_FILES)
SAMPLE = (
    "header_in_two_languages",
    "header_twice",
    "excel_tab_text",
    "squad",
    "oasst_messages",
    "question_answer_object",
)
TRAINED = [file for file in FILES if file not in SAMPLED or file.name in SAMPLE]
every_file = pytest.mark.parametrize("file", [_marked(file) for file in TRAINED])


def test_what_is_not_opened_yet_is_named_by_files_that_exist() -> None:
    assert {*NOT_YET, *SAMPLE}.issubset(file.name for file in FILES)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    build_tiny_model(folder)
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def opened_or_refused(file: RealFile, model: Path, tmp_path: Path) -> Opened:
    for module in file.needs:
        pytest.importorskip(module)
    opened = open_file(file, write(file, tmp_path / "files"), model=model, home=tmp_path / "home")
    if opened.init.code and file.refusal:
        assert "tunesmith" in opened.init.said, f"a refusal names the command to run: {opened.init.said}"
        pytest.skip(f"refused, which is right too: {file.refusal}")
    return opened


@every_file
def test_init_opens_it_and_train_takes_what_it_wrote(file: RealFile, model: Path, tmp_path: Path, home: Path) -> None:
    opened = opened_or_refused(file, model, tmp_path)
    assert opened.init.code == 0, opened.init.said
    assert opened.trains, opened.dry_run
    for word in file.says:
        assert word.lower() in opened.init.said.lower(), f"init says aloud {word}: {opened.init.said}"
    for why, count in file.left_out.items():
        assert str(count) in opened.init.said, f"init says that {count} rows are left out ({why}): {opened.init.said}"
    assert opened.init.json["rows"] == file.rows
    assert opened.holds(file), f"{opened.shape}: {opened.rows[:3]}"
    source = yaml_of(home)["data"]
    if file.columns:
        assert _columns(source) == dict(file.columns)
    done, verdict = train(home)
    assert done.code == 0, done.said
    assert verdict in ("better", "no evidence", "worse"), done.said


def _columns(data: dict[str, Any]) -> object:
    """The mapping that `init` wrote, beside the path or in the data section."""
    sources = data["train"] if isinstance(data["train"], list) else [data["train"]]
    own = sources[0] if isinstance(sources[0], dict) else {}
    return dict(own.get("columns") or data.get("columns") or {})


@pytest.mark.slow
@pytest.mark.parametrize("file", [file for file in FILES if file.name in NOT_YET], ids=lambda file: file.name)
def test_train_takes_what_init_wrote_or_init_says_what_to_do(file: RealFile, model: Path, tmp_path: Path) -> None:
    for module in file.needs:
        pytest.importorskip(module)
    opened = open_file(file, write(file, tmp_path / "files"), model=model, home=tmp_path / "home")
    assert "TRACEBACK" not in opened.init.said
    if opened.init.code:
        assert "What to do: " in opened.init.said
    else:
        assert opened.trains, opened.dry_run
