"""Commands against a library of fakes: what they ask of it, what they print where, and their exit codes."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.cli.conftest import replace_module

import tunesmith
from tunesmith.cli.docs import ERROR_KEYS, JSON_KEYS
from tunesmith.data.examples.row_shapes import check_mapping
from tunesmith.errors import ModelError, TrainError
from tunesmith.runs.folder import Run
from tunesmith.runs.stopping import Terminated

Command = Callable[..., Any]
HEAVY = {"torch", "transformers", "numpy", "datasets", "peft", "ruamel", "rich"}


@pytest.mark.parametrize(
    ("arguments", "expected", "unwanted"),
    [
        (["--help"], "0", HEAVY | {"pydantic"}),
        (["--version"], "0", HEAVY | {"pydantic"}),
        (["train", "--help"], "0", HEAVY),  # typer itself reads a command's arguments with pydantic
        (["trian", "x"], "2", HEAVY),
        (["train"], "2", HEAVY),
        (["train", "x", "--resum"], "2", HEAVY),
    ],
)
def test_help_and_usage_errors_import_nothing_heavy(arguments: list[str], expected: str, unwanted: set[str]) -> None:
    program = (
        "import sys, tunesmith.cli.app\n"
        f"try: tunesmith.cli.app.main({arguments!r})\n"
        "except SystemExit as stop: print(stop.code, *sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    code, *modules = done.stderr.splitlines()[-1].split()
    assert code == expected
    assert unwanted.intersection(modules) == set()


@pytest.mark.parametrize("name", ["train", "plan", "check"])
def test_a_mistake_in_a_recipe_is_told_before_anything_heavy_is_imported(name: str, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("model: m\ndata:\n  trian: rows.jsonl\nmethod: lora\noutput_dir: run\n", encoding="utf-8")
    program = (
        "import sys, tunesmith.cli.app\n"
        f"try: tunesmith.cli.app.main([{name!r}, {str(recipe)!r}])\n"
        "except SystemExit as stop: print(stop.code, *sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "r.yaml:3" in done.stderr and "trian" in done.stderr
    code, *modules = done.stderr.splitlines()[-1].split()
    assert code == "1"
    assert {"torch", "transformers"}.intersection(modules) == set()


def test_the_version_is_the_packages(command: Command) -> None:
    assert command("--version").out == f"tunesmith {tunesmith.__version__}\n"


def test_no_command_shows_the_help(command: Command) -> None:
    outcome = command()
    assert outcome.code == 2
    assert "Usage: tunesmith" in outcome.out + outcome.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian", "recipe.yaml"], "train"),
        (["train"], "RECIPE"),
        (["train", "r.yaml", "--overwite"], "--overwrite"),
        (["train", "r.yaml", "--resume", "--overwrite"], "give one of them"),
        (["generate", "runs/x"], "--prompt"),
        (["check", "rows.jsonl", "--show", "3"], "--model"),
        (["check", "rows.jsonl", "--show", "-1", "--model", "m"], "greater than or equal to 0"),
        (["check", "rows.jsonl", "--format", "csv"], "alpaca"),
        (["init", "rows.jsonl", "--columns", "input"], "FIELD=COLUMN"),
        (["train", "r.yaml", "--all"], "--dry-run"),
    ],
)
def test_a_command_that_is_not_understood_exits_with_2(command: Command, arguments: list[str], said: str) -> None:
    outcome = command(*arguments)
    assert outcome.code == 2
    assert said in outcome.err
    assert outcome.out == ""


def test_train_hands_recipe_and_overrides_to_the_library(command: Command, recipe: str, finetune: Any) -> None:
    outcome = command("train", recipe, "training.seed=1", "--resume", "method.r=4")
    assert outcome.code == 0
    assert finetune.asked == [
        {"recipe": recipe, "overrides": ["training.seed=1", "method.r=4"], "resume": True, "overwrite": False}
    ]
    assert outcome.out.splitlines() == [
        "the story",
        "a library's own line",
        "Better than the base: exact_match 0.05 -> 0.85 on 40 held-out rows "
        "(difference +0.8, 95% interval +0.65 to +0.925).",
        "metric       base  tuned  difference  interval         verdict",
        "exact_match  0.05   0.85        +0.8  +0.65 to +0.925  better",
        "The run is runs/rows. Next: `tunesmith runs show runs/rows`, `tunesmith chat runs/rows`",
    ]
    assert outcome.err == "warning: few rows\ntraining  4/4 (100%)  loss 0.5\n"


def test_train_under_json_prints_one_line_and_the_rest_on_standard_error(
    command: Command, recipe: str, finetune: Any
) -> None:
    outcome = command("train", recipe, "--json")
    assert outcome.out.count("\n") == 1
    assert list(outcome.json) == list(JSON_KEYS["train"])
    assert "the story\n" in outcome.err and "a library's own line\n" in outcome.err


def test_a_run_folder_can_be_resumed(command: Command, finetune: Any, tmp_path: Path) -> None:
    run = Run(tmp_path / "runs")
    run.folder.mkdir()
    run.write_text("recipe.yaml", "model: m\n")
    run.set_status("stopped", asked={"model": "m", "data": {"train": "rows.jsonl"}, "output_dir": "runs"})
    assert command("train", "runs", "--resume").code == 0
    assert finetune.asked[0]["recipe"] == "runs"


def test_dry_run_shows_what_was_set_first_and_defaults_only_when_asked(
    command: Command, recipe: str, finetune: Any
) -> None:
    lines = [
        "key                     value   source",
        'model.path              "m"     recipe.yaml:1',
        "training.learning_rate  0.0002  auto",
    ]
    assert command("train", recipe, "--dry-run").out.splitlines() == [
        *lines,
        "Not shown: 1 defaults; --all shows them.",
    ]
    assert command("train", recipe, "--dry-run", "--all").out.splitlines() == [
        *lines,
        "training.seed           0       default",
    ]
    found = command("train", recipe, "--dry-run", "--json").json
    assert found["settings"][0] == {"key": "training.seed", "value": 0, "source": "default"}
    assert found["settings"][2] == {"key": "training.learning_rate", "value": 0.0002, "source": "auto"}
    assert finetune.asked == []


def test_a_missing_recipe_is_a_mistake_with_a_remedy(command: Command, recipe: str, finetune: Any) -> None:
    outcome = command("train", "recipes.yaml")
    assert outcome.code == 1
    assert outcome.err == ("error: recipes.yaml: This recipe does not exist\n  What to do: Did you mean recipe.yaml?\n")
    assert finetune.asked == []


def test_an_unknown_key_is_a_mistake_with_file_and_line(command: Command, recipe: str, tmp_path: Path) -> None:
    with (tmp_path / recipe).open("a") as file:
        file.write("training: {learning_rat: 1e-4}\n")
    outcome = command("train", recipe, "--json")
    assert outcome.code == 1
    assert list(outcome.json) == list(ERROR_KEYS)
    assert outcome.json["where"] == "recipe.yaml:4"
    assert outcome.json["remedy"] == "Did you mean `learning_rate`?"
    assert outcome.err.startswith("error: recipe.yaml:4: `training.learning_rat` is not a setting")


@pytest.mark.parametrize("flag", ["--learning-rate", "--lr=1e-4", "--training.learning_rate"])
def test_a_flag_that_names_a_key_is_told_how_to_write_it(
    command: Command, recipe: str, finetune: Any, flag: str
) -> None:
    outcome = command("train", recipe, flag, "1e-4")
    assert outcome.code == 2 and finetune.asked == []
    assert "did you mean training.learning_rate=VALUE?" in " ".join(outcome.err.split())
    assert "No such option" in command("train", recipe, "--zebra").err


@pytest.mark.parametrize(("error", "code"), [(ModelError("no"), 1), (TrainError("nan"), 3)])
def test_the_exit_code_is_the_errors(command: Command, recipe: str, finetune: Any, error: Exception, code: int) -> None:
    def fail() -> None:
        raise error

    finetune.act = fail
    outcome = command("train", recipe, "--json")
    assert outcome.code == code
    assert outcome.json["error"] == type(error).__name__


def test_a_bug_keeps_its_traceback(recipe: str, finetune: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    monkeypatch.chdir(tmp_path)
    finetune.act = fail
    with pytest.raises(ZeroDivisionError):
        tunesmith_main(["train", recipe])


def tunesmith_main(arguments: list[str]) -> None:
    from tunesmith.cli.app import main

    main(arguments)


def test_ctrl_c_exits_with_130(command: Command, recipe: str, finetune: Any) -> None:
    finetune.act = lambda: signal.raise_signal(signal.SIGINT)
    outcome = command("train", recipe, "--json")
    assert (outcome.code, outcome.out) == (130, "")
    assert outcome.err.endswith("Stopped.\n")


@pytest.mark.parametrize(("stopped", "code"), [(KeyboardInterrupt(), 130), (Terminated(signal.SIGHUP), 129)])
def test_a_signal_outside_of_a_commands_work_has_its_code(
    command: Command, monkeypatch: pytest.MonkeyPatch, stopped: BaseException, code: int
) -> None:
    def stop(*given: Any, **named: Any) -> None:
        raise stopped

    with monkeypatch.context() as patch:  # typer hears it, and says so by an exception of its own
        patch.setattr("tunesmith.cli.app.typer.echo", stop)
        assert command("--version").code == code
    monkeypatch.setattr("tunesmith.cli.app.typer.main.get_command", stop)
    assert command("--version").code == code


def test_a_termination_signal_unwinds_as_ctrl_c_does_and_exits_with_143(
    command: Command, recipe: str, finetune: Any
) -> None:
    unwound = []

    def work() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            signal.raise_signal(signal.SIGTERM)  # the second one, which `timeout` sends, does not disturb
            unwound.append(True)
            raise

    finetune.act = work
    outcome = command("train", recipe, "--json")
    assert (outcome.code, outcome.out, unwound) == (143, "", [True])
    assert outcome.err.endswith("Stopped by a termination signal.\n")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_eval_hands_its_settings_on(command: Command, finetune: Any) -> None:
    outcome = command("eval", "runs/x", "max_rows=5", "--data", "new.jsonl")
    assert finetune.asked == [{"target": "runs/x", "data": "new.jsonl", "settings": ["max_rows=5"], "probe": None}]
    assert outcome.out.startswith("Better than the base: exact_match 0.05 -> 0.85 on 40 held-out rows")
    assert list(command("eval", "runs/x", "--json").json)[:2] == ["target", "verdict"]


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        (["runs/x"], None),
        (["runs/x", "--probe"], True),
        (["--probe", "runs/x"], True),
        (["runs/x", "--probe", "--json"], True),
        (["runs/x", "--probe", "max_rows=5"], True),
        (["runs/x", "--probe", "own.jsonl"], "own.jsonl"),
        (["runs/x", "--probe", "questions"], "questions"),
        (["runs/x", "--probe=odd"], "odd"),
    ],
)
def test_a_probe_is_the_built_in_one_unless_a_file_follows(
    command: Command, finetune: Any, tmp_path: Path, given: list[str], asked: Any
) -> None:
    (tmp_path / "questions").touch()
    assert command("eval", *given).code == 0
    assert [each["probe"] for each in finetune.asked] == [asked]


def test_eval_hands_tasks_on_and_shows_a_table(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    entry = {"task": "arc", "metric": "acc", "filter": "none", "shots": 0, "higher_is_better": True, "items": 50}
    entry |= {"base": 0.6, "tuned": 0.4, "difference": -0.2, "interval": [-0.3, -0.05], "verdict": "worse"}
    found = {**dict.fromkeys(JSON_KEYS["eval --tasks"]), "tasks": ["arc"], "benchmarks": [entry]}

    def benchmark(target: Any, tasks: Any, *, listener: Any, **how: Any) -> Any:
        asked.append({"target": target, "tasks": tasks, **how})
        return found

    replace_module(monkeypatch, "workflows.benchmarks", SimpleNamespace(benchmark=benchmark))
    outcome = command("eval", "runs/x", "--tasks", "arc, hella", "--include-path", "mine", "--limit", "50")
    assert asked[0]["tasks"] == ["arc", "hella"]
    assert (asked[0]["target"], asked[0]["include_path"], asked[0]["limit"]) == ("runs/x", "mine", 50)
    assert outcome.out.splitlines() == [
        "task  metric  items  base  tuned  difference  interval       verdict",
        "arc   acc        50   0.6    0.4        -0.2  -0.3 to -0.05  worse",
    ]
    assert list(command("eval", "runs/x", "--tasks", "arc", "--json").json) == list(JSON_KEYS["eval --tasks"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--limit", "5"], "this flag needs --tasks"),
        (["--include-path", "x"], "this flag needs --tasks"),
        (["--tasks", "arc", "--data", "x.jsonl"], "--data has no effect with --tasks"),
        (["--tasks", "arc", "max_rows=5"], "KEY=VALUE has no effect with --tasks"),
        (["--tasks", "arc", "--probe"], "--probe has no effect with --tasks"),
    ],
)
def test_flags_of_tasks_and_of_rows_do_not_go_together(command: Command, given: list[str], message: str) -> None:
    outcome = command("eval", "runs/x", *given)
    assert outcome.code == 2 and message in " ".join(outcome.err.split())


def test_eval_of_rows_with_other_columns_says_what_to_add(command: Command, finetune: Any) -> None:
    def columns_are_missing() -> None:
        check_mapping([{"frage": "a", "answer": "b"}], {"prompt": "question", "completion": "answer"})

    finetune.act = columns_are_missing
    outcome = command("eval", "runs/x", "--data", "other.csv")
    assert outcome.code == 1
    assert "say which column is what: 'data.columns={prompt: <column>, completion: answer}'" in outcome.err


def test_generate_streams_one_answer_with_the_systems_message(command: Command, tuned: Any) -> None:
    outcome = command("generate", "runs/x", "--prompt", "hello", "--system", "be brief", "max_new_tokens=5")
    assert outcome.out == "tuned 2\x07\n", "a file gets what the model said"
    assert tuned.asked == [{"messages": [("system", "be brief"), ("user", "hello")], "settings": {"max_new_tokens": 5}}]


def test_generate_says_which_instruction_goes_before_the_prompt(command: Command, tuned: Any) -> None:
    tuned.instruction = "Name it."
    outcome = command("generate", "runs/x", "--prompt", "hat")
    assert outcome.out == "tuned 1\x07\n"
    assert outcome.err.splitlines() == [
        "prompt: before your text goes the run's instruction 'Name it.' (--raw leaves it out)"
    ]
    assert command("generate", "runs/x", "--prompt", "hat", "--raw").err == ""
    found = command("generate", "runs/x", "--prompt", "hat", "--instruction", "Say.", "--json")
    assert found.json["instruction"] == "Say."
    assert [call["messages"] for call in tuned.asked] == [
        [("user", "Name it.\n\nhat")], [("user", "hat")], [("user", "Say.\n\nhat")],
    ]  # fmt: skip


def test_generate_reads_the_prompt_from_standard_input(
    command: Command, tuned: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(read=lambda: "two\nlines\n"))
    command("generate", "runs/x", "--prompt", "-")
    assert tuned.asked[0]["messages"] == [("user", "two\nlines")]


def test_generate_shows_several_answers_and_the_base(command: Command, tuned: Any) -> None:
    outcome = command("generate", "x", "--prompt", "p", "--base", "num_return_sequences=2", "do_sample=true")
    assert outcome.out == "base:\n1:\nbase 1\x07\n2:\nbase 1\x07\ntuned:\n1:\ntuned 1\x07\n2:\ntuned 1\x07\n"


def test_generate_under_json_has_every_answer(command: Command, tuned: Any) -> None:
    found = command("generate", "x", "--prompt", "p", "--json").json
    assert set(found) == set(JSON_KEYS["generate"])
    assert found["answers"] == [{"text": "tuned 1\x07", "tokens": 2, "stopped": True}]
    assert found["base"] is None
    assert command("generate", "x", "--prompt", "p", "--base", "--json").json["base"][0]["text"] == "base 1\x07"


def test_a_mistaken_generation_setting_is_refused_before_the_model_is_loaded(command: Command, tuned: Any) -> None:
    outcome = command("generate", "x", "--prompt", "p", "temprature=1", "--json")
    assert outcome.code == 1
    assert outcome.json["remedy"] == "Did you mean `temperature`?"
    assert tuned.asked == []


def test_demo_runs_the_story_in_runs_demo(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith.workflows import demo

    asked: list[Any] = []

    def run(folder: Path, *, overwrite: bool, listener: Any) -> dict[str, Any]:
        asked.append((folder, overwrite))
        listener.say("five rows")
        return dict.fromkeys(JSON_KEYS["demo"], 0)

    fake = SimpleNamespace(run=run)
    monkeypatch.setitem(sys.modules, "tunesmith.workflows.demo.story", fake)
    monkeypatch.setattr(demo, "story", fake, raising=False)
    assert command("demo").out == "five rows\n"
    assert list(command("demo", "--overwrite", "--json").json) == list(JSON_KEYS["demo"])
    assert asked == [(Path("runs/demo"), False), (Path("runs/demo"), True)]


SLEEPER = """
import sys, time, types, tunesmith
def train_in(start, listener):
    try:
        listener.say("begun")
        time.sleep(60)
    except BaseException as error:
        print("recorded", isinstance(error, KeyboardInterrupt), file=sys.stderr)
        raise
import tunesmith.workflows
fake = types.SimpleNamespace(train_in=train_in)
sys.modules["tunesmith.workflows.finetune"] = tunesmith.workflows.finetune = fake
from tunesmith.cli.app import main
main(["train", "recipe.yaml", *sys.argv[1:]])
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_to_the_process_stops_it_with_its_code(number: int, code: int, recipe: str, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", SLEEPER], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == code
    assert err.startswith("recorded True\n") and "Traceback" not in err


def test_a_terminal_that_closes_stops_the_work_as_a_termination_signal_does(recipe: str, tmp_path: Path) -> None:
    program = SLEEPER.replace("    except BaseException as error:", "    except KeyboardInterrupt:") + "\n"
    program = program.replace(
        'print("recorded", isinstance(error, KeyboardInterrupt), file=sys.stderr)', SAYS_AND_NOTES
    )
    pid, screen = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execv(sys.executable, [sys.executable, "-u", "-c", program])
    heard = b""
    while b"begun" not in heard:
        heard += os.read(screen, 1000)
    os.close(screen)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 129
    assert (tmp_path / "noted").read_text() == "stopped"


SAYS_AND_NOTES = 'listener.say("stopped"); listener.warn("stopped"); open("noted", "w").write("stopped")'
LISTING = "from tunesmith.cli.app import main; main(['runs', 'list', 'runs'])"


def test_a_reader_that_goes_away_is_no_reason_for_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", LISTING], cwd=tmp_path, stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_work_goes_on_where_nobody_reads_its_story(recipe: str, tmp_path: Path) -> None:
    program = SLEEPER.replace("time.sleep(60)", "open('trained', 'w').close(); sys.exit(0)")
    read, write = os.pipe()
    os.close(read)
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, stdout=write, stderr=write, check=False)
    os.close(write)
    assert (tmp_path / "trained").exists()


def test_an_encoding_that_lacks_a_character_is_no_reason_for_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("modél: x\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", "from tunesmith.cli.app import main; main(['train', 'r.yaml', '--json'])"],
        cwd=tmp_path,
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert done.returncode == 1
    assert "mod\\xe9l" in done.stderr.decode("ascii")
    assert json.loads(done.stdout.decode("ascii"))["remedy"].endswith("Did you mean `model`?")
