"""A run, a recipe or a model of somebody else runs no code unless the user says so."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.canaries import Canary

import tunesmith
from tunesmith.cli.app import main
from tunesmith.errors import TunesmithError

ROWS = [
    {"prompt": f"Say {word}.", "completion": word}
    for word in ["one", "two", "three", "four", "five", "six", "seven", "eight"]
]
ASK_CODE, ASK_FUNCTIONS = "--trust-remote-code", "--allow-functions"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A folder with a finished run whose recipe names a function, its rows and its model."""
    folder = tmp_path_factory.mktemp("sender")
    shutil.copytree(tiny_model_dir, folder / "model")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "score.py").write_text("from helper import LONG\ndef score(answer): return min(len(answer), LONG)")
    (folder / "helper.py").write_text("LONG = 50.0")
    recipe = {
        "model": {"path": str(folder / "model"), "device": "cpu"},
        "data": {"train": str(folder / "rows.jsonl"), "eval": 0.5},
        "training": {"max_steps": 2, "batch_size": 2, "report_to": [], "save_strategy": "steps", "save_steps": 1},
        "evaluation": {"metrics": ["score.py:score"], "max_new_tokens": 2, "samples": 0},
        "output_dir": str(folder / "run"),
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    tunesmith.train(folder / "recipe.yaml", progress=False)
    return folder


@pytest.fixture
def sent(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, which is not finished and is opened in another folder. Its recipe has no function."""
    folder = tmp_path / "sent"
    shutil.copytree(trained, folder)
    for name in ("run/recipe.yaml", "run/status.json", "run/data.json", "recipe.yaml"):
        file = folder / name
        file.write_text(file.read_text().replace(str(trained), str(folder)))
    for name in ("fingerprint.json", "manifest.json"):  # the sender's would be of what he sends
        (folder / "run" / name).unlink(missing_ok=True)
    rewrite(folder, lambda text: text.replace("score.py:score", "loss"), status="stopped")
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    return folder


@pytest.fixture
def canary(tmp_path: Path) -> Canary:
    return Canary(tmp_path / "sang")


def rewrite(folder: Path, change: Callable[[str], str], **status: Any) -> None:
    """Changes the recipes that the run holds: that which was asked for, and that which was resolved."""
    recipe, state = folder / "run" / "recipe.yaml", folder / "run" / "status.json"
    recipe.write_text(change(recipe.read_text()))
    state.write_text(json.dumps({**json.loads(change(state.read_text())), **status}))
    (folder / "recipe.yaml").write_text(change((folder / "recipe.yaml").read_text()))


def with_code(folder: Path, canary: Canary) -> None:
    """The model brings its own class, and the run's recipe trusts it."""
    config = folder / "model" / "config.json"
    values = {"model_type": "own", "architectures": ["Own"]}
    values["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}  # type: ignore[assignment]
    config.write_text(json.dumps({**json.loads(config.read_text()), **values}))
    (folder / "model" / "own.py").write_text(
        canary.python()
        + "from transformers import LlamaConfig, LlamaForCausalLM\n"
        + "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        + "class Own(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    rewrite(folder, trusting)


def trusting(text: str) -> str:
    return (
        text.replace("trust_remote_code: false", "trust_remote_code: true")
        .replace('"trust_remote_code": false', '"trust_remote_code": true')
        .replace('"device": "cpu"}', '"device": "cpu", "trust_remote_code": true}')
    )


def run(*argv: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(list(argv))
    return int(stopped.value.code or 0)


@pytest.fixture(autouse=True)
def _no_input(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with open("/dev/null", encoding="utf-8") as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        yield


COMMANDS: dict[str, list[str]] = {
    "generate": ["generate", "{run}", "--prompt", "hi", "max_new_tokens=1"],
    "generate a checkpoint": ["generate", "{run}/checkpoints/step-000002", "--prompt", "hi", "max_new_tokens=1"],
    "generate rows": ["generate", "{run}", "--data", "{rows}", "--out", "out.csv", "max_new_tokens=1"],
    "generate with the base": ["generate", "{run}", "--prompt", "hi", "--base", "max_new_tokens=1"],
    "chat": ["chat", "{run}", "max_new_tokens=1"],
    "eval": ["eval", "{run}", "max_new_tokens=1"],
    "eval on rows": ["eval", "{run}", "--data", "{rows}"],
    "merge": ["merge", "{run}", "--out", "merged"],
    "keep adapter": ["merge", "{run}", "--out", "merged", "--keep-adapter"],
    "resume": ["train", "{run}", "--resume"],
    "train the stored recipe": ["train", "{run}/recipe.yaml", "output_dir=new"],
    "dry run": ["train", "{run}/recipe.yaml", "--dry-run", "output_dir=new"],
    "range test": ["train", "{run}/recipe.yaml", "--lr-range", "--lr-steps", "10", "output_dir=new"],
    "check the stored recipe": ["check", "{run}/recipe.yaml", "--no-near"],
    "prepare the stored recipe": ["prepare", "{run}/recipe.yaml", "--out", "prepared"],
    "plan the stored recipe": ["plan", "{run}/recipe.yaml"],
    "plan by tokens": ["plan", "{run}/recipe.yaml", "--exact"],
}


def filled(name: str, folder: Path) -> list[str]:
    return [part.format(run=folder / "run", rows=folder / "rows.jsonl") for part in COMMANDS[name]]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_code_of_a_model_is_asked_for_again(
    name: str, sent: Path, canary: Canary, capsys: pytest.CaptureFixture[str]
) -> None:
    with_code(sent, canary)
    assert run(*filled(name, sent)) == 1
    said = capsys.readouterr().err
    assert canary.heard == []
    assert "asks to run Python code that comes with its model" in said and ASK_CODE in said
    assert not (Path.cwd() / "new").exists()


@pytest.mark.parametrize("name", ["generate", "eval", "resume", "check the stored recipe"])
def test_what_the_message_says_works(name: str, sent: Path, canary: Canary) -> None:
    with_code(sent, canary)
    assert run(*filled(name, sent), ASK_CODE) in (0, 1 if name.startswith("check") else 0)
    assert canary.heard == (["sang"] if not name.startswith("check") else canary.heard)


def test_a_recipe_of_the_users_own_is_not_asked_for(sent: Path, canary: Canary) -> None:
    with_code(sent, canary)
    assert run("train", str(sent / "recipe.yaml"), "--resume") == 0
    assert canary.heard == ["sang"]


def test_a_finished_run_needs_nothing(sent: Path, canary: Canary) -> None:
    with_code(sent, canary)
    rewrite(
        sent, lambda text: text.replace("- loss", "- os:system").replace('"loss"]', '"os:system"]'), status="finished"
    )
    assert run("train", str(sent / "run"), "--resume") == 0
    assert canary.heard == []


def test_a_stored_recipe_that_says_more_than_was_asked_for_is_noticed(
    sent: Path, canary: Canary, capsys: pytest.CaptureFixture[str]
) -> None:
    with_code(sent, canary)
    state = sent / "run" / "status.json"
    state.write_text(state.read_text().replace('"trust_remote_code": true', '"trust_remote_code": false'))
    assert run("train", str(sent / "run"), "--resume") == 1
    assert canary.heard == [] and ASK_CODE in capsys.readouterr().err


@pytest.mark.parametrize("command", ["generate", "chat", "eval", "merge"])
def test_a_model_with_code_is_opened_with_the_flag_only(
    command: str, sent: Path, canary: Canary, capsys: pytest.CaptureFixture[str]
) -> None:
    with_code(sent, canary)
    model = str(sent / "model")
    more = {"generate": ["--prompt", "hi"], "eval": ["--data", str(sent / "rows.jsonl")], "merge": ["--out", "x"]}
    assert run(command, model, *more.get(command, [])) == 1
    said = capsys.readouterr().err
    assert canary.heard == []
    if command == "merge":
        return
    assert ASK_CODE in said
    assert run(command, model, *more.get(command, []), ASK_CODE) == 0
    assert canary.heard == ["sang"]


PYTHON: dict[str, Callable[[Path], object]] = {
    "load": lambda run: tunesmith.load(run),
    "evaluate": lambda run: tunesmith.evaluate(run, progress=False),
    "merge": lambda run: tunesmith.merge(run, "merged", progress=False),
    "train": lambda run: tunesmith.train(run, resume=True, progress=False),
    "train the recipe": lambda run: tunesmith.train(run / "recipe.yaml", ["output_dir=new"], progress=False),
    "lr_range": lambda run: tunesmith.lr_range(run / "recipe.yaml", ["output_dir=new"], progress=False),
    "check": lambda run: tunesmith.check(str(run / "recipe.yaml"), progress=False),
    "prepare": lambda run: tunesmith.prepare(str(run / "recipe.yaml"), "prepared", progress=False),
    "plan": lambda run: tunesmith.plan(run / "recipe.yaml", progress=False),
}


@pytest.mark.parametrize("name", PYTHON)
def test_python_asks_again_too(name: str, sent: Path, canary: Canary) -> None:
    with_code(sent, canary)
    with pytest.raises(TunesmithError, match="trust_remote_code=True"):
        PYTHON[name](sent / "run")
    assert canary.heard == []


STORED = ["score.py:score", "score:score", "../score.py:score", "os:system", "builtins:print", "subprocess:run",
          "posix:system", "functions/score.py:score", "/etc/score.py:score", "shutil:rmtree"]  # fmt: skip
WITH_FUNCTIONS = ["eval", "eval on rows", "resume", "train the stored recipe", "dry run", "range test"]


def naming(function: str, key: str) -> Callable[[str], str]:
    if key == "metrics":
        return lambda text: (
            text.replace("- loss", f"- {function}")
            .replace('"loss"]', f'"{function}"]')
            .replace('"loss"\n', f'"{function}"\n')
        )
    return lambda text: text.replace("compute_metrics: null", f"compute_metrics: {function}").replace(
        '"compute_metrics": null', f'"compute_metrics": "{function}"'
    )


def plant(sent: Path, canary: Canary) -> None:
    for place in (Path.cwd(), sent, sent / "run", sent / "run" / "functions"):
        place.mkdir(exist_ok=True)
        for name in ("score", "os", "builtins", "subprocess", "posix", "shutil"):
            code = canary.python(name, then="def score(*given): return 1.0\nsystem = run = rmtree = print = score")
            (place / f"{name}.py").write_text(code)


@pytest.mark.parametrize("key", ["metrics", "compute_metrics"])
@pytest.mark.parametrize("function", STORED)
def test_a_function_of_a_stored_recipe_is_asked_for_again(
    function: str, key: str, sent: Path, canary: Canary, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(sent, naming(function, key))
    plant(sent, canary)
    for name in WITH_FUNCTIONS:
        assert run(*filled(name, sent)) == 1
        said = capsys.readouterr().err
        assert "asks to run Python functions that its recipe names" in said and ASK_FUNCTIONS in said
    assert run(*filled("check the stored recipe", sent)) in (0, 1)
    for call in (lambda: tunesmith.evaluate(sent / "run"), lambda: tunesmith.train(sent / "run", resume=True)):
        with pytest.raises(TunesmithError, match="allow_functions=True"):
            call()
    assert canary.heard == []


@pytest.mark.parametrize("function", ["os:system", "builtins:print", "subprocess:run", "posix:system", "shutil:rmtree"])
def test_a_function_of_python_is_refused_with_the_flag_too(
    function: str, sent: Path, canary: Canary, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(sent, naming(function, "metrics"))
    plant(sent, canary)
    assert run(*filled("eval", sent), ASK_FUNCTIONS) == 1
    assert "of Python itself, which is never a metric" in capsys.readouterr().err
    assert canary.heard == []


def test_an_allowed_function_comes_from_the_run_and_not_from_the_working_folder(sent: Path, canary: Canary) -> None:
    rewrite(sent, naming("score.py:score", "metrics"))
    for name in ("score", "helper"):
        Path(f"{name}.py").write_text(canary.python(name, then="LONG = 1.0\ndef score(answer): return 9.0"))
    (sent / "score.py").unlink()
    assert run(*filled("eval", sent), ASK_FUNCTIONS) == 0
    found = tunesmith.evaluate(sent / "run", allow_functions=True, progress=False)
    assert found["decided_by"] == "score.py:score" and found["metrics"]["score.py:score"]["tuned"] != 9.0
    assert canary.heard == []


@pytest.mark.parametrize("when", ["imported", "called"])
def test_a_file_that_a_function_reads_is_put_beside_the_run_s_copy_as_the_message_says(
    when: str, sent: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(sent, naming("score.py:score", "metrics"))
    reads = "float((Path(__file__).parent / 'limit.txt').read_text())"
    code = {"imported": f"L = {reads}\ndef score(answer): return L", "called": f"def score(answer): return {reads}"}
    kept = sent / "run" / "functions"
    (kept / "score.py").write_text(f"from pathlib import Path\n{code[when]}\n")
    assert run(*filled("eval", sent), ASK_FUNCTIONS) == 1
    message = " ".join(capsys.readouterr().err.split())
    assert f"Put {kept / 'limit.txt'} there. A run keeps only the code of its functions" in message
    (kept / "limit.txt").write_text("2.5")
    assert run(*filled("eval", sent), ASK_FUNCTIONS) == 0


def test_a_run_keeps_the_files_of_its_functions(trained: Path) -> None:
    kept = trained / "run" / "functions"
    assert {file.name: file.read_text() for file in kept.iterdir()} == {
        name: (trained / name).read_text() for name in ("score.py", "helper.py")
    }


def test_a_function_that_the_user_types_comes_from_the_working_folder(sent: Path) -> None:
    Path("own.py").write_text("def score(answer): return 0.25\n")
    settings = ["metrics=[own.py:score]", "max_new_tokens=1"]
    found = tunesmith.evaluate(sent / "run", settings=settings, progress=False)
    assert found["metrics"]["own.py:score"]["tuned"] == 0.25


def test_functions_of_a_recipe_lie_below_its_own_folder(sent: Path, canary: Canary) -> None:
    rewrite(sent, naming("score.py:score", "metrics"))
    Path("score.py").write_text(canary.python(then="def score(answer): return 9.0"))
    assert run("train", str(sent / "recipe.yaml"), "--resume") == 0
    assert canary.heard == []
    (sent / "score.py").unlink()
    assert run("train", str(sent / "recipe.yaml"), "--overwrite") == 1
    assert canary.heard == []
