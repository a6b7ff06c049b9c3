"""A signed URL goes from `init` to a verdict, and its query is in no message and in no file of the run."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.registry import _registry
from fsspec.spec import AbstractFileSystem
from tests.door.opening import tunesmith

from tunesmith.errors import DataError
from tunesmith.workflows.finetune import train

ADDRESS = "signed://store.example/tickets.jsonl?X-Signature=s3cretkey&Expires=9"
ROWS = "".join(json.dumps({"prompt": f"ask {n}", "completion": f"say {n}"}) + "\n" for n in range(40)).encode()


class Signed(AbstractFileSystem):
    """A store that gives its one file to those who know the signature, and complains with the whole URL."""

    protocol = "signed"
    cachable = False

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        if not path.endswith("?X-Signature=s3cretkey&Expires=9"):
            raise PermissionError(
                f"403, message='Forbidden', url='signed://{path}' (/tickets.jsonl?X-Signature=s3cret)"
            )
        return {"name": path, "size": len(ROWS), "type": "file"}

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: Any = None,
        **kwargs: Any,
    ) -> Any:
        self.info(path)
        return io.BytesIO(ROWS)

    def isfile(self, path: str) -> bool:
        return self.info(path)["type"] == "file"

    def isdir(self, path: str) -> bool:
        return False


@pytest.fixture(autouse=True)
def store() -> Iterator[None]:
    fsspec.register_implementation("signed", Signed, clobber=True)
    yield
    _registry.pop("signed", None)


def files_with(folder: Path, word: str) -> list[str]:
    found = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return [str(path.relative_to(folder)) for path in found if word.encode() in path.read_bytes() or word in str(path)]


@pytest.mark.slow
def test_the_query_of_a_url_is_in_no_message_and_in_no_file_of_a_run(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    said = tunesmith("init", ADDRESS, "--model", str(tiny_model_dir), "--out", "r.yaml")
    assert said.code == 0, said.said
    assert "The recipe holds the whole address of signed://store.example/tickets.jsonl?..." in " ".join(
        said.said.split()
    )
    flags = ["training.max_steps=2", "evaluation.max_new_tokens=4", "output_dir=run"]
    for command in (
        ("check", ADDRESS, "--html", "report.html", "--json"),
        ("check", "r.yaml", "--show", "1"),
        ("prepare", ADDRESS, "--out", "prepared"),
        ("train", "r.yaml", *flags, "--dry-run"),
        ("train", "r.yaml", *flags, "--json"),
        ("train", "r.yaml", *flags, "--resume"),
        ("runs", "show", "run"),
    ):
        done = tunesmith(*command)
        assert done.code == 0, done.said
        assert "s3cret" not in done.said, command
    assert files_with(tmp_path, "s3cret") == ["r.yaml"]
    for command in (("eval", "run", "--data", ADDRESS, "evaluation.max_rows=4"), ("runs", "show", "run")):
        done = tunesmith(*command)
        assert done.code == 0 and "s3cret" not in done.said, done.said
    assert '"data": "signed://store.example/tickets.jsonl?..."' in (tmp_path / "run/evaluations.jsonl").read_text()
    assert files_with(tmp_path, "s3cret") == ["r.yaml"]
    again = tunesmith("eval", "run")
    assert again.code == 1 and "the query of this URL was not stored" in again.said
    wrong = tunesmith("check", ADDRESS.replace("s3cretkey", "s3cretkee"))
    assert wrong.code == 1 and "403" in wrong.said and "s3cret" not in wrong.said


@pytest.mark.slow
def test_a_stopped_run_on_a_signed_url_continues_with_its_recipe(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    recipe = {
        "model": str(tiny_model_dir),
        "data": {"train": ADDRESS, "eval": 0.2},
        "training": {"max_steps": 2, "save_steps": 1, "report_to": "none"},
        "output_dir": str(tmp_path / "run"),
    }
    finished = train(recipe)
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    (tmp_path / "run" / "status.json").write_text(json.dumps({**status, "status": "stopped"}))
    with pytest.raises(DataError, match="the query of this URL was not stored"):
        train(str(tmp_path / "run"), resume=True)
    assert train(recipe, resume=True).verdict["metrics"] == finished.verdict["metrics"]
