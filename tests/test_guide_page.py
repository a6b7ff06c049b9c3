"""Every line of the tables in docs/guide.md has a command, and every command of them runs."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.recipe.test_guide_settings import FIRST_ARGUMENTS, GENERATE, LORA, QLORA, QUANTIZATION, SECOND_ARGUMENTS
from typer.testing import CliRunner

from tunesmith.cli.app import app

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
MODEL = "smollm2-135m-instruct"
COMMAND = re.compile(r"`(tunesmith [^`]+)`")
FILE = re.compile(r"```\w+\n# (\S+)\n(.*?)```", re.DOTALL)
FIRST = ("tunesmith train guide.yaml", "tunesmith prepare training_data.jsonl --out prepared_data eval=0 test=0.1")
QUICK = ["training.threads=1", "evaluation.max_new_tokens=8"]
WRITES = ("init", "prepare", "merge", "runs curves")  # they do not write over what is there


def lines_of_tables(page: str) -> Iterator[list[str]]:
    """The cells of every line of the tables whose last column is headed ``command``."""
    for table in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE):
        header, _, *lines = (
            [cell.strip() for cell in line.strip().strip("|").split("|")] for line in table.splitlines()
        )
        if header[-1] == "command":
            yield from lines


LINES = list(lines_of_tables(PAGE))
COMMANDS = list(dict.fromkeys(found[1] for line in LINES if (found := COMMAND.fullmatch(line[-1]))))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A folder with what the page speaks of: its own files, examples/, rows, and the run and dataset of ``FIRST``.

    The bundled model is a tiny one there.
    """
    folder = tmp_path_factory.mktemp("guide")
    shutil.copytree(ROOT / "examples", folder / "examples")
    for name, text in FILE.findall(PAGE):
        (folder / name).write_text(text)
    for recipe in (folder / "guide.yaml", *(folder / "examples").glob("*.yaml")):
        recipe.write_text(recipe.read_text().replace(MODEL, str(tiny_model_dir)))
    words = ["red", "green", "blue", "black"]
    for name, things in (("training_data.jsonl", range(40)), ("new_rows.jsonl", range(90, 102))):
        rows = [{"instruction": "Which colour?", "input": f"thing {n}", "output": words[n % 4]} for n in things]
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in FIRST:
            arguments = shlex.split(command)[1:]
            run([*arguments, *QUICK] if arguments[0] == "train" else arguments)
    return folder


def run(arguments: list[str]) -> str:
    outcome = CliRunner().invoke(app, arguments)
    assert outcome.exit_code == 0, outcome.output
    return outcome.output


def settings_of(command: str) -> dict[str, str]:
    """The keys of model, method, training and output that a line is about; nothing where it is about more than keys."""
    program, *arguments = shlex.split(command)[1:]
    found = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    about = ("training.", "method", "model", "output_dir")
    if program != "train" or len(found) < len(arguments) - 1 or not all(key.startswith(about) for key in found):
        return {}
    return {} if list(found) == ["method"] else found


def arguments_of(command: str, *, place: int, model: Path) -> list[str]:
    """A command of the page on the tiny model: it writes where no other does, or over what is there."""
    checkpoints = sorted(Path("results/checkpoints").iterdir())
    command = re.sub(r"step-\d{6}", checkpoints[-1].name, command.replace(MODEL, str(model)))
    arguments = shlex.split(command)[1:]
    if arguments[0] == "train":
        arguments += QUICK
        own = [number for number, argument in enumerate(arguments) if argument.startswith("training.output_dir=")]
        if own:
            arguments[own[0]] = f"training.output_dir=runs/{place}"
        elif "--resume" not in arguments:
            arguments.append(f"output_dir=runs/{place}")
    return arguments + ["--overwrite"] * command.startswith(tuple(f"tunesmith {name} " for name in WRITES))


@pytest.mark.parametrize("line", LINES, ids=lambda line: line[0])
def test_every_line_has_one_command(line: list[str]) -> None:
    assert len(line) == 3 and all(line)
    assert COMMAND.fullmatch(line[-1]), f"no command: {line[-1]!r}"


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_every_command_runs(
    command: str, workspace: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where keys of the recipe are all that a line is about, up to its first step: the next test trains with them."""
    monkeypatch.chdir(workspace)
    monkeypatch.delitem(sys.modules, "own_metrics", raising=False)
    place = COMMANDS.index(command)
    arguments = arguments_of(command, place=place, model=tiny_model_dir)
    sets = settings_of(command)
    output = run([*arguments, "--dry-run"] if sets else arguments)
    if sets:
        shown = {line.split()[0]: line for line in output.splitlines() if line}
        assert all("flag" in shown[key] for key in sets if key in shown)
    elif arguments[0] == "train" and not {"--resume", "--dry-run", "--lr-range"} & set(arguments):
        assert (workspace / "runs" / str(place) / "verdict.json").is_file()


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_the_settings_of_the_page_train_together(
    method: str, workspace: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace)
    own = [command for command in COMMANDS if ("method=qlora" in command) == (method == "qlora")]
    sets = {key: value for command in own for key, value in settings_of(command).items()}
    assert len(sets) > 5
    apart = ("method", "model", "training.output_dir", "training.warmup_ratio")  # warmup_steps says the same thing
    keys = [f"{key}={value}" for key, value in sets.items() if key not in apart]
    run(["train", "guide.yaml", f"method={method}", *keys, *QUICK, f"output_dir=runs/all-{method}"])
    assert (workspace / "runs" / f"all-{method}" / "verdict.json").is_file()


def test_the_page_has_every_name_of_the_guides_blocks() -> None:
    names = {*FIRST_ARGUMENTS, *SECOND_ARGUMENTS, *LORA, *QLORA, *QUANTIZATION, *GENERATE}
    said = " ".join(COMMANDS)
    assert [name for name in sorted(names) if f"{name}=" not in said] == []


def test_the_guides_values_are_the_recipe_of_the_page() -> None:
    recipe = dict(FILE.findall(PAGE))["guide.yaml"]
    for name, value in {**LORA, **SECOND_ARGUMENTS}.items():
        if name == "output_dir":
            continue  # at the recipe's top
        text = json.dumps(getattr(value, "value", value)).replace('"', "").replace("2e-05", "2e-5")
        assert f"\n  {name}: {text}\n" in recipe
