"""What a run depends on may be moved: the message names the key, and each way out that it gives leads out."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tunesmith.cli.app import main
from tunesmith.recipe.file import read_recipe
from tunesmith.runs.folder import Run
from tunesmith.workflows.finetune import train

WORDS = ["red", "green", "blue", "black"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
TRAINING = {
    "learning_rate": 1e-2, "max_steps": 2, "batch_size": 8, "micro_batch_tokens": 160, "save_steps": 1,
    "save_optimizer": "all", "report_to": "none", "threads": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A finished run, one that is stopped after its first step, and what both were made of."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copytree(tiny_model_dir, folder / "models" / "base")
    (folder / "data").mkdir()
    for name, count in {"rows": 16, "held": 6, "test": 4}.items():
        rows = [{"prompt": f"{name} {n}?", "completion": WORDS[n % 4]} for n in range(count)]
        (folder / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "chat.jinja").write_text(TEMPLATE)
    data = {"train": "data/rows.jsonl", "eval": "data/held.jsonl", "test": "data/test.jsonl"}
    recipe = {
        "model": "models/base",
        "data": {**data, "chat_template": "chat.jinja"},
        "method": {"name": "lora", "r": 2},
        "training": TRAINING,
        "evaluation": {"resamples": 100, "samples": 0},
        "output_dir": "runs/first",
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    goes_on = {**recipe, "method": {"name": "lora", "adapter_name_or_path": "runs/first"}, "output_dir": "runs/second"}
    (folder / "second.yaml").write_text(json.dumps(goes_on))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train("recipe.yaml")
        train("second.yaml")
    for name in ("first", "second"):
        stopped = Run(folder / "runs" / f"{name}-stopped")
        shutil.copytree(folder / "runs" / name, stopped.folder)
        shutil.rmtree(stopped.checkpoints[-1])
        stopped.write_json("status.json", {**stopped.status(), "status": "stopped", "judged_step": None})
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place to move things in, which is then as it was: paths in the runs are absolute."""
    kept = tmp_path / "kept"
    shutil.copytree(made, kept, symlinks=True)
    monkeypatch.chdir(made)
    yield made
    for entry in made.iterdir():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    shutil.copytree(kept, made, dirs_exist_ok=True, symlinks=True)


@contextmanager
def gone(path: str) -> Iterator[None]:
    away = Path(f"{path}-away")
    Path(path).rename(away)
    yield
    away.rename(path)


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(list(argv))
    captured = capsys.readouterr()
    assert ended.value.code == 1, captured.out + captured.err
    return captured.err[captured.err.index("error: ") :].removeprefix("error: ")


NEW = ("train", "recipe.yaml", "output_dir=runs/new")
RESUME = ("train", "runs/first-stopped", "--resume")
JUDGE = ("eval", "runs/first")
STORED = "runs/first/recipe.yaml: "
HALF = "runs/first-stopped/recipe.yaml: "
CASES = [
    ("models/base", NEW, "model: models/base cannot be fetched", "did you mean models/base-away?"),
    ("models/base", RESUME, f"{HALF}model.path: the model", "or a link to it; or write its new place as model.path"),
    ("models/base", JUDGE, f"{STORED}model.path: the model", "Add --model MODEL"),
    ("models/base", ("merge", "runs/first", "--out", "m"), f"{STORED}model.path: the model", "Add --model MODEL"),
    ("models/base", ("chat", "runs/first"), f"{STORED}model.path: the model", "Add --model MODEL"),
    ("data/rows.jsonl", NEW, "data.train: data/rows.jsonl: there is no", "Then correct data.train"),
    ("data/held.jsonl", NEW, "data.eval: data/held.jsonl: there is no", "Then correct data.eval"),
    ("data/test.jsonl", ("check", "recipe.yaml"), "data.test: data/test.jsonl: there is no", "Then correct data.test"),
    ("data", ("plan", "recipe.yaml"), "data.train: data/rows.jsonl: there is no", "correct data.train"),
    ("data", ("prepare", "recipe.yaml", "--out", "p"), "data.train: data/rows.jsonl", "correct data.train"),
    ("data", RESUME, f"{HALF}data.train: the rows data/rows.jsonl", "write its new place as data.train"),
    ("data/held.jsonl", JUDGE, f"{STORED}data.eval: the rows", "write its new place as data.eval into that file; or"),
    ("chat.jinja", NEW, "data.chat_template: the chat template cannot be read", "correct the path"),
    ("runs/first", ("train", "second.yaml", "output_dir=x"), "method.adapter_name_or_path: there is no", "runs/first-"),
    ("runs", ("train", "second.yaml", "output_dir=x"), "method.adapter_name_or_path: there is no folder", "correct"),
    ("runs/first/checkpoints", ("train", "second.yaml", "output_dir=x"), "method.adapter_name_or_path: the", "back"),
    ("runs/first/checkpoints", JUDGE, "runs/first: This run has no checkpoint yet", "--overwrite"),
    ("runs/first", JUDGE, "TARGET: there is no model, file or folder called 'runs/first'", "did you mean runs/first-"),
    ("runs", JUDGE, "runs/first: There are no rows to judge on", "--data"),
    ("runs/first", ("runs", "show", "runs/first"), "runs/first: This folder holds no run", "Did you mean runs/first-"),
    ("runs/first", ("train", "runs/first", "--resume"), "runs/first: This folder holds no run", "Did you mean"),
    ("runs/first/recipe.yaml", JUDGE, "runs/first: This run has no recipe.yaml", "Put it back"),
    ("runs/first/recipe.yaml", ("runs", "show", "runs/first"), "runs/first: This run has no recipe.yaml", "Put"),
    ("runs/first/status.json", ("train", "runs/first", "--resume"), "runs/first: This folder holds no run", "missing"),
    ("runs/first/template.json", JUDGE, "runs/first: This run has no template.json", "Put template.json back, or"),
    ("runs/second/start", ("generate", "runs/second", "--prompt", "a"), "runs/second/start: the run has lost", "copy"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "command", "what", "remedy"), CASES)
def test_a_moved_folder_is_named_by_its_key_with_a_way_out(
    here: Path, path: str, command: tuple[str, ...], what: str, remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with gone(path):
        message = said(capsys, *command)
    assert message.startswith(what)
    assert remedy in message.partition("What to do:")[2] or remedy in message


def test_a_stopped_run_goes_on_with_its_model_behind_a_link_or_named_anew(here: Path) -> None:
    expected = [path.read_bytes() for path in sorted(Run("runs/first").checkpoints[-1].iterdir())]
    shutil.copytree("runs/first-stopped", "runs/other")
    Path("models/base").rename("models/elsewhere")
    os.symlink("elsewhere", "models/base")
    linked = train("runs/first-stopped", resume=True).run
    os.unlink("models/base")
    stored = Path("runs/other/recipe.yaml")
    stored.write_text(stored.read_text().replace("models/base", "models/elsewhere"))
    named = train("runs/other", resume=True).run
    for run in (linked, named):
        assert [path.read_bytes() for path in sorted(Run(run).checkpoints[-1].iterdir())] == expected


def test_a_stopped_run_goes_on_with_rows_of_another_name_and_without_its_template_file(here: Path) -> None:
    expected = (Run("runs/first").checkpoints[-1] / "adapter_model.safetensors").read_bytes()
    Path("data/rows.jsonl").rename("other rows.jsonl")
    Path("chat.jinja").unlink()
    stored = Path("runs/first-stopped/recipe.yaml")
    stored.write_text(stored.read_text().replace("data/rows.jsonl", "other rows.jsonl"))
    assert read_recipe(stored).recipe.data.train[0].path == "other rows.jsonl"
    run = train("runs/first-stopped", resume=True).run
    assert (Run(run).checkpoints[-1] / "adapter_model.safetensors").read_bytes() == expected


def test_the_other_base_and_other_rows_that_messages_speak_of_are_taken(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with gone("models/base"):
        assert said(capsys, *JUDGE, "--model", "nowhere/at/all").startswith("--model: there is no model")
        with pytest.raises(SystemExit) as ended:
            main(["generate", "runs/first", "--prompt", "a", "max_new_tokens=1", "--model", "models/base-away"])
        assert ended.value.code == 0
    with gone("data/held.jsonl"), pytest.raises(SystemExit) as ended:
        main(["eval", "runs/first", "--data", "data/test.jsonl"])
    assert ended.value.code == 0


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        (("runs", "curves", "runs/first", "--out", "chat.jinja/c.svg"), "--out"),
        (("check", "data/rows.jsonl", "--html", "chat.jinja/c.html"), "--html"),
        (("init", "data/rows.jsonl", "--out", "chat.jinja/r.yaml"), "--out"),
        (("merge", "runs/first", "--out", "chat.jinja/m"), "--out"),
        (("generate", "runs/first", "--data", "data/test.jsonl", "--out", "chat.jinja/a.csv"), "--out"),
        (("train", "recipe.yaml", "output_dir=chat.jinja/run"), "output_dir"),
    ],
)  # fmt: skip
def test_a_place_inside_a_file_cannot_be_written_and_the_flag_is_named(
    here: Path, command: tuple[str, ...], flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    message = said(capsys, *command)
    assert "chat.jinja is a file" in message and flag in message.partition("What to do:")[2]
