"""What a run depends on may change under it: it is refused by name, or allowed by its kind and then recorded."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from tunesmith.cli.app import main
from tunesmith.deploy.plain_weights import MARK
from tunesmith.errors import RecipeError, RunError
from tunesmith.recipe.file import read_recipe
from tunesmith.runs.drift import FILE, OF_BASE, Fingerprint
from tunesmith.runs.edited_recipe import judges_only
from tunesmith.runs.folder import Run
from tunesmith.runs.progress import Advance, Silent
from tunesmith.workflows import same_run
from tunesmith.workflows.evaluate import evaluate
from tunesmith.workflows.finetune import train

WORDS = ["red", "green", "blue", "black"]
ADAPTER = "adapter_model.safetensors"
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }} {{ m['content'] }}<|im_end|>{% endfor %}"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A finished run, and the same one stopped after half of its steps."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copytree(tiny_model_dir, folder / "base")
    rows = [{"prompt": f"thing {n}?", "completion": WORDS[n % 4]} for n in range(24)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe: dict[str, Any] = {
        "model": str(folder / "base"),
        "data": {"train": str(folder / "rows.jsonl"), "eval": 0.25},
        "method": {"name": "lora", "r": 2},
        "training": {
            "learning_rate": 1e-2, "max_steps": 4, "batch_size": 4, "micro_batch_tokens": 160, "eval_steps": 2,
            "save_steps": 2, "save_optimizer": "all", "report_to": "none", "threads": 1,
        },
        "evaluation": {"resamples": 100, "samples": 0, "max_new_tokens": 2},
        "output_dir": str(folder / "whole"),
    }  # fmt: skip
    train(recipe)
    recipe["output_dir"] = str(folder / "own-template")
    (folder / "own.jinja").write_text(TEMPLATE)
    train({**recipe, "data": {**recipe["data"], "chat_template": str(folder / "own.jinja")}})
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it all, with `stopped` beside `whole`, in which the run's recipe names the new places."""
    shutil.copytree(made, tmp_path / "here")
    folder = tmp_path / "here"
    monkeypatch.chdir(folder)
    for name, stopped in {"whole": "stopped", "own-template": "own-stopped"}.items():
        run = Run(folder / name)
        stored = folder / name / "recipe.yaml"
        for place in ("base", "rows.jsonl"):
            stored.write_text(stored.read_text().replace(str(made / place), str(folder / place)))
        shutil.copytree(run.folder, folder / stopped)
        half = Run(folder / stopped)
        shutil.rmtree(half.checkpoints[-1])
        (half.folder / "verdict.json").unlink()
        half.write_json("status.json", {**half.status(), "status": "stopped", "judged_step": None})
    return folder


def said(capsys: pytest.CaptureFixture[str], *argv: str, code: int) -> str:
    with pytest.raises(SystemExit) as ended:
        main(list(argv))
    captured = capsys.readouterr()
    assert (ended.value.code or 0) == code, captured.out + captured.err
    return captured.err if code else captured.out


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tensor_files(run: Run) -> dict[str, bytes]:
    return {name: each for name, each in contents(run.checkpoints[-1]).items() if name.endswith(".safetensors")}


def adapter(run: str) -> bytes:
    return (Run(run).checkpoints[-1] / ADAPTER).read_bytes()


def recorded(run: str) -> list[dict[str, Any]]:
    return json.loads(Path(run, FILE).read_text())["changes"]


def other_weights(here: Path, patch: Any = None) -> None:
    file = here / "base" / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("q_proj.weight"))
    times = file.stat()
    save_file({**tensors, name: tensors[name] + 0.05}, file, metadata={"format": "pt"})
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # as an old copy that is put there with its times


def change_json(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}, indent=1))


def other_config(here: Path, patch: Any = None) -> None:
    change_json(here / "base" / "config.json", rms_norm_eps=0.1)


def other_tokenizer(here: Path, patch: Any = None) -> None:
    file = here / "base" / "tokenizer.json"
    found = json.loads(file.read_text())
    found["model"]["merges"] = found["model"]["merges"][:5]
    file.write_text(json.dumps(found))


def other_template(here: Path, patch: Any = None) -> None:
    (here / "base" / "chat_template.jinja").write_text(TEMPLATE)


def other_data(here: Path, patch: Any = None) -> None:
    file = here / "rows.jsonl"
    file.write_text(file.read_text().replace("thing 7?", "thing seven?").replace("thing 8?", "thing eight?"))


def other_seed(here: Path, patch: Any = None) -> None:
    file = here / "stopped" / "recipe.yaml"
    assert "  seed: 0\n" in file.read_text()
    (here / "stopped" / "manifest.json").unlink(missing_ok=True)  # as its message tells those who change the file
    file.write_text(file.read_text().replace("  seed: 0\n", "  seed: 7\n"))


def other_version(name: str) -> Callable[..., None]:
    def change(here: Path, patch: pytest.MonkeyPatch) -> None:
        versions = same_run.package_versions()
        assert versions[name]
        patch.setattr(same_run, "package_versions", lambda: {**versions, name: "99.0"})

    return change


def other_code(here: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(same_run, "source_digest", lambda: "0" * 64)


BASE = {
    "weights": (other_weights, "model.safetensors: was sha256 "),
    "config": (other_config, "config.json: rms_norm_eps: was 1e-06, is 0.1"),
    "tokenizer": (other_tokenizer, "tokenizer.json: was sha256 "),
    "template": (other_template, "default: was sha256 "),
}
ALL = {
    **BASE,
    "data": (other_data, "rows.jsonl: was sha256 "),
    "recipe": (other_seed, "recipe.yaml: training.seed: was 0, is 7"),
    "packages": (other_version("torch"), "torch: was "),
    "code": (other_code, "the code of tunesmith: was sha256 "),
}


@pytest.mark.parametrize("kind", ALL)
def test_a_change_is_refused_with_what_it_was_and_is_or_allowed_and_recorded(
    kind: str, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    change, named = ALL[kind]
    change(here, monkeypatch)
    before = contents(here / "stopped")
    message = said(capsys, "train", "stopped", "--resume", code=1)
    assert named in message and f"`--allow-changes {kind}`" in message
    assert contents(here / "stopped") | {".lock": b""} == before | {".lock": b""}, "nothing is written"
    other = "data" if kind != "data" else "weights"
    assert named in said(capsys, "train", "stopped", "--resume", "--allow-changes", other, code=1)

    said(capsys, "train", "stopped", "--resume", "--allow-changes", kind, code=0)
    assert Run("stopped").status()["status"] == "finished"
    [record] = recorded("stopped")
    assert record["step"] == 2 and {each["kind"] for each in record["changes"]} == {kind}
    assert any(f"{each['key']}: was {each['was']}, is {each['now']}".startswith(named) for each in record["changes"])
    assert "changed" in said(capsys, "runs", "show", "stopped", code=0)
    same = adapter("stopped") == adapter("whole")
    assert same == (kind in ("packages", "code")), "what changed did matter"


def test_a_seed_that_is_asked_for_later_is_refused_or_taken_and_stored(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = said(capsys, "train", "stopped", "training.seed=7", "--resume", code=1)
    assert "another recipe" in message and "training.seed: was 0, is 7" in message
    said(capsys, "train", "stopped", "training.seed=7", "--resume", "--allow-changes", "recipe", code=0)
    assert adapter("stopped") != adapter("whole")
    assert "  seed: 7\n" in Path("stopped/recipe.yaml").read_text()
    assert Run("stopped").status()["asked"]["training"]["seed"] == 7
    assert [each["key"] for each in recorded("stopped")[0]["changes"]] == ["training.seed"]
    assert "finished already" in said_by_train("stopped")


def test_how_a_run_is_judged_may_change_without_a_flag_and_changes_no_weights(here: Path) -> None:
    heard = Heard()
    asked = ["evaluation.max_rows=2", "evaluation.confidence=0.9", "evaluation.metrics=[exact_match]"]
    train("stopped", [*asked, "evaluation.seed=5"], resume=True, listener=heard)
    assert adapter("stopped") == adapter("whole")
    assert "evaluation.max_rows: was None, is 2. It changes no weights and is recorded" in "\n".join(heard.lines)
    assert json.loads(Path("stopped/verdict.json").read_text())["rows"] == 2
    keys = {each["key"] for each in recorded("stopped")[0]["changes"]}
    assert {"evaluation.max_rows", "evaluation.confidence", "evaluation.seed"} <= keys
    assert all(key.startswith("evaluation.") for key in keys)
    assert Run("stopped").status()["asked"]["evaluation"]["max_rows"] == 2
    assert "max_rows: 2\n" in Path("stopped/recipe.yaml").read_text()
    assert "finished already" in said_by_train("stopped")


@pytest.mark.parametrize(("method", "objective"), [("lora", "dpo"), ("full", "sft"), ("full", "dpo")])
def test_a_run_that_is_judged_otherwise_ends_with_the_same_bytes(here: Path, method: str, objective: str) -> None:
    recipe = {**Run("whole").status()["asked"], "output_dir": "run"}
    recipe |= {"model": str(here / "base"), "method": {"name": method}}
    if objective == "dpo":
        rows = [{"prompt": f"thing {n}?", "chosen": WORDS[n % 4], "rejected": WORDS[(n + 1) % 4]} for n in range(24)]
        Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        recipe |= {"objective": "dpo", "data": {"train": "pairs.jsonl", "eval": 0.25}}
    else:
        recipe |= {"data": {"train": "rows.jsonl", "eval": 0.25}}
    train(recipe)
    run, refers = Run("run"), objective == "dpo"
    before = tensor_files(run)
    assert set(before) == {ADAPTER if method == "lora" else "model.safetensors", "optimizer.safetensors"}
    references = dict(np.load("run/reference.npz")) if refers else {}
    shutil.rmtree(run.checkpoints[-1])
    Path("run/verdict.json").unlink()
    run.write_json("status.json", {**run.status(), "status": "stopped", "judged_step": None})
    heard = Heard()
    train("run", ["evaluation.max_rows=2", "evaluation.seed=5"], resume=True, listener=heard)
    assert tensor_files(run) == before
    assert json.loads(Path("run/verdict.json").read_text())["rows"] == 2
    assert {each["key"] for each in recorded("run")[0]["changes"]} == {"evaluation.max_rows", "evaluation.seed"}
    assert ("untuned model: reference" in heard.tasks) == refers  # again, for other held-out rows
    for name, values in references.items():
        again = np.load("run/reference.npz")[name]
        assert len(again) < len(values) if name == "held_out" else np.array_equal(again, values, equal_nan=True)


def test_a_finished_run_keeps_its_verdict(here: Path) -> None:
    before = Path("whole/verdict.json").read_bytes()
    with pytest.raises(RunError, match=r"evaluation.max_rows: was None, is 2"):
        train("whole", ["evaluation.max_rows=2"], resume=True)
    assert Path("whole/verdict.json").read_bytes() == before


@pytest.mark.parametrize("key", ["max_rows", "seed", "compute_metrics", "samples"])
def test_what_selects_the_step_needs_the_flag(key: str) -> None:
    assert judges_only(f"evaluation.{key}", selects=False)
    assert judges_only(f"evaluation.{key}", selects=True) == (key == "samples")
    assert not judges_only(f"training.{key}", selects=False)


@pytest.mark.parametrize("key", ["during", "during_rows", "normalize", "max_new_tokens", "json_schema"])
def test_what_a_step_is_selected_by_needs_the_flag_where_answers_select_it(key: str) -> None:
    assert judges_only(f"evaluation.{key}", selects=True)
    assert not judges_only(f"evaluation.{key}", selects=True, by_answers=True)


def test_rows_that_select_the_step_are_refused_without_the_flag(here: Path) -> None:
    recipe = {**Run("stopped").status()["asked"], "output_dir": str(here / "selecting")}
    shutil.copytree("stopped", "selecting")
    run = Run("selecting")
    recipe["training"] = {**recipe["training"], "load_best_model_at_end": True}
    run.write_json("status.json", {**run.status(), "asked": recipe})
    with pytest.raises(RunError, match="another recipe") as caught:
        train(recipe, ["evaluation.max_rows=2", "evaluation.samples=1"], resume=True)
    assert "evaluation.max_rows" in str(caught.value.why) and "samples" not in str(caught.value.why)


class Heard(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.tasks: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    @contextmanager
    def task(self, title: str, total: int | None) -> Iterator[Advance]:
        self.tasks.append(title)
        with super().task(title, total) as advance:
            yield advance

    warn = say


def said_by_train(run: str) -> str:
    heard = Heard()
    train(run, resume=True, listener=heard)
    return "\n".join(heard.lines)


def test_more_steps_are_taken_if_the_recipe_may_change(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "train", "stopped", "training.max_steps=6", "--resume", "--allow-changes", "recipe", code=0)
    assert Run("stopped").status()["step"] == 6


def test_fewer_steps_than_were_taken_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ("train", "stopped", "training.max_steps=1", "--resume", "--allow-changes", "recipe")
    before = contents(here / "stopped")
    message = said(capsys, *argv, code=1)
    assert "fewer steps than it has taken" in message and "step 2" in message
    assert contents(here / "stopped") | {".lock": b""} == before | {".lock": b""}


@pytest.mark.parametrize("setting", ["method.r=4", "training.optim=sgd", "data.eval=0.5", "objective=dpo"])
def test_what_a_checkpoint_fits_only_as_it_was_is_refused_with_any_flag(setting: str, here: Path) -> None:
    recipe = {**Run("stopped").status()["asked"], "output_dir": str(here / "stopped")}
    with pytest.raises(RunError, match="another recipe") as caught:
        train(recipe, [setting], resume=True, allow_changes="all")
    assert setting.partition("=")[0] in str(caught.value) and "--allow-changes" not in str(caught.value)


def test_changes_of_several_kinds_are_named_together_and_the_remedy_allows_them_all(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other_weights(here)
    other_config(here)
    other_version("numpy")(here, monkeypatch)
    other_data(here)
    message = said(capsys, "train", "stopped", "--resume", code=1)
    flags = message.partition("`")[2].partition("`")[0]
    assert flags == "--allow-changes weights,config,packages"
    message = said(capsys, "train", "stopped", "--resume", *flags.split(), code=1)  # the rows are read after that
    flags = message.partition("`")[2].partition("`")[0]
    assert flags == "--allow-changes weights,config,data,packages"
    said(capsys, "train", "stopped", "--resume", *flags.split(), code=0)
    assert {each["kind"] for each in recorded("stopped")[0]["changes"]} == {"weights", "config", "data", "packages"}


def test_a_change_that_was_allowed_is_not_refused_again_and_the_way_back_is_one_more(
    here: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_weights(here)
    with monkeypatch.context() as patch:
        patch.setattr("tunesmith.training.trainer.Trainer.run_steps", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train("stopped", resume=True, allow_changes=["weights"])
        with pytest.raises(KeyboardInterrupt):
            train("stopped", resume=True)
    assert len(recorded("stopped")) == 1
    shutil.copy(made / "base" / "model.safetensors", here / "base")
    with pytest.raises(RunError, match=r"model\.safetensors: was sha256"):
        train("stopped", resume=True)
    train("stopped", resume=True, allow_changes="all")
    assert [each["step"] for each in recorded("stopped")] == [2, 2]
    assert adapter("stopped") == adapter("whole"), "no step was taken on the other weights"


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_what_cannot_change_a_byte_is_no_change(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = here / "base"
    shutil.copytree(base, here / "copy")  # other times and inodes
    shutil.rmtree(base)
    (here / "copy").rename(base)
    change_json(base / "config.json", transformers_version="4.0.0")  # written by another version, with other spaces
    change_json(base / "tokenizer_config.json", name_or_path="elsewhere")
    (base / "README.md").write_text("# A model\n")
    (base / "eval_results.json").write_text("{}")
    other_version("safetensors")(here, monkeypatch)
    other_version("datasets")(here, monkeypatch)
    train("stopped", resume=True)
    assert adapter("stopped") == adapter("whole") and recorded("stopped") == []


def test_the_template_of_the_base_does_not_matter_to_a_run_with_its_own(here: Path) -> None:
    other_template(here)
    train("own-stopped", resume=True)
    assert adapter("own-stopped") == adapter("own-template") and recorded("own-stopped") == []
    assert evaluate("own-template")["changes"] == []


def test_a_template_file_that_was_edited_is_refused_or_taken_and_recorded(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = here / "other.jinja"
    stored = here / "own-stopped" / "recipe.yaml"
    [setting] = [line for line in stored.read_text().splitlines() if "chat_template:" in line]
    stored.write_text(stored.read_text().replace(setting, f"  chat_template: {file}"))
    asked = Run("own-stopped").status()
    asked["asked"]["data"]["chat_template"] = str(file)
    Run("own-stopped").write_json("status.json", asked)
    fingerprint = json.loads((here / "own-stopped" / FILE).read_text())
    fingerprint["recipe"]["data"]["chat_template"] = str(file)
    (here / "own-stopped" / FILE).write_text(json.dumps(fingerprint))
    (here / "own-stopped" / "manifest.json").unlink(missing_ok=True)
    shutil.copytree("own-stopped", "own-gone")
    file.write_text(TEMPLATE.replace("content'] }}", "content'] | upper }}"))
    message = said(capsys, "train", "own-stopped", "--resume", code=1)
    assert f"data.chat_template: {file}: was sha256 " in message and "`--allow-changes template`" in message
    said(capsys, "train", "own-stopped", "--resume", "--allow-changes", "template", code=0)
    [record] = recorded("own-stopped")
    assert [each["key"] for each in record["changes"]] == [f"data.chat_template: {file}"]
    assert "upper" in json.loads(Path("own-stopped/template.json").read_text())["templates"]["default"]
    assert adapter("own-stopped") != adapter("own-template")
    file.unlink()  # the run has the text of its own
    said(capsys, "train", "own-gone", "--resume", code=0)
    assert adapter("own-gone") == adapter("own-template") and recorded("own-gone") == []


def test_packages_that_an_earlier_version_did_not_note_are_no_difference(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Fingerprint.read(Run("stopped"))
    assert before is not None and "liger-kernel" in before.packages

    def changed(now: dict[str, str | None], before: Fingerprint = before, *, noted: bool = True) -> list[str]:
        packages = {**before.packages, "liger-kernel": "0.5.0"}
        then = replace(before, packages=packages if noted else {"torch": packages["torch"]})
        found = same_run._code_changes(recipe, then, replace(then, packages={**packages, **now}))
        return [each.key for each in found]

    recipe = read_recipe(dict(before.recipe)).recipe
    assert changed({"liger-kernel": "0.6.0"}) == []  # a processor does not use it
    recipe = recipe.with_values(model={"device": "cuda"})
    assert changed({"liger-kernel": "0.6.0"}) == ["liger-kernel"]
    assert changed({"liger-kernel": "0.6.0"}, noted=False) == []
    assert changed({"torch": "99"}, noted=False) == ["torch"]


def test_another_gpu_is_said_where_one_computed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(same_run, "gpu_name", lambda device: "Another GPU 9")
    assert "Another GPU 9" not in said_by_train("stopped")  # none is noted
    shutil.copytree("own-stopped", "on-a-gpu")
    run = Run("on-a-gpu")
    run.write_json("environment.json", {**run.read_json("environment.json"), "gpu": "GPU 8"})
    assert "the run began on GPU 8, and this machine has Another GPU 9" in said_by_train("on-a-gpu")


def test_a_run_of_an_earlier_version_goes_on_with_a_note_and_has_a_fingerprint_then(here: Path) -> None:
    Path("stopped", FILE).unlink()
    assert "this run has no fingerprint" in said_by_train("stopped")
    assert adapter("stopped") == adapter("whole")
    found = json.loads(Path("stopped", FILE).read_text())
    assert found["step"] == 2 and found["changes"] == []
    assert found["base"] == json.loads(Path("whole", FILE).read_text())["base"]


def test_a_run_of_an_earlier_version_is_judged_with_a_note(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("whole", FILE).unlink()
    other_weights(here)
    with pytest.raises(SystemExit):
        main(["eval", "whole"])
    assert "has no fingerprint" in capsys.readouterr().err


def test_a_damaged_fingerprint_is_refused_and_the_remedy_works(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("stopped", FILE).write_text('{"base": []}')
    assert f"{FILE} is damaged" in said(capsys, "train", "stopped", "--resume", code=1)
    Path("stopped", FILE).unlink()
    said(capsys, "train", "stopped", "--resume", code=0)


@pytest.mark.parametrize("kind", OF_BASE)
@pytest.mark.parametrize("command", ["eval", "generate", "generate --data", "chat", "merge", "merge --keep-adapter"])
def test_every_command_that_loads_a_run_notices_another_base(
    command: str, kind: str, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = {
        "eval": ["eval", "whole", "--json"],
        "generate": ["generate", "whole", "--prompt", "thing 3?", "max_new_tokens=1", "--json"],
        "generate --data": [
            "generate", "whole", "--data", "rows.jsonl", "--out", "answers.csv", "max_new_tokens=1", "--json",
        ],
        "chat": ["chat", "whole", "max_new_tokens=1"],
        "merge": ["merge", "whole", "--out", "merged", "--json"],
        "merge --keep-adapter": ["merge", "whole", "--keep-adapter", "--out", "merged", "--json"],
    }[command]  # fmt: skip
    change, named = BASE[kind]
    change(here)
    message = said(capsys, *argv, code=1)
    assert named in message and f"`--allow-changes {kind}`" in message and "--model MODEL" in message
    assert not Path("merged").exists() and not Path("answers.csv").exists()
    assert not Path("whole/evaluations.jsonl").exists()

    with open(os.devnull) as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        out = said(capsys, *argv, "--allow-changes", kind, code=0)
    if command == "chat":
        return
    [found] = json.loads(out.splitlines()[-1])["changes"]
    assert found["kind"] == kind and f"{found['key']}: was {found['was']}, is {found['now']}".startswith(named)
    if command == "eval":
        assert json.loads(Path("whole/evaluations.jsonl").read_text())["changes"] == [found]
    if command.startswith("merge"):
        assert json.loads(Path("merged", MARK).read_text())["changes"] == [found]


def test_a_function_that_judges_is_code_that_may_change(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {**Run("whole").status()["asked"], "output_dir": "scored"}
    recipe["evaluation"] = {**recipe["evaluation"], "metrics": ["score.py:score"]}
    Path("scored.yaml").write_text(json.dumps(recipe))
    Path("score.py").write_text("def score(answer): return len(answer)\n")
    with monkeypatch.context() as patch:
        patch.setattr("tunesmith.training.trainer.Trainer.run_steps", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train("scored.yaml")
    Path("score.py").write_text("def score(answer): return -len(answer)\n")
    message = said(capsys, "train", "scored.yaml", "--resume", code=1)
    assert "score.py: was sha256 " in message and "`--allow-changes code`" in message
    said(capsys, "train", "scored.yaml", "--resume", "--allow-changes", "code", code=0)
    assert [each["key"] for each in recorded("scored")[0]["changes"]] == ["score.py"]
    assert "return -len" in Path("scored/functions/score.py").read_text()


def test_the_right_base_at_another_place_is_taken_and_another_one_is_refused(here: Path, made: Path) -> None:
    other_weights(here)
    assert evaluate("whole", model=str(made / "base"))["changes"] == []
    with pytest.raises(RunError, match="base model has changed"):
        evaluate("whole", model=str(here / "base"))


def test_rows_that_changed_are_judged_only_if_that_is_allowed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other_data(here)
    message = said(capsys, "eval", "whole", code=1)
    assert "rows.jsonl: was sha256" in message and "--data FILE" in message
    out = said(capsys, "eval", "whole", "--allow-changes", "data", "--json", code=0)
    assert [each["key"] for each in json.loads(out.splitlines()[-1])["changes"]] == ["rows.jsonl"]


def test_a_kind_that_is_none_is_refused_and_the_nearest_is_named() -> None:
    with pytest.raises(RecipeError, match="Did you mean weights"):
        train("stopped", resume=True, allow_changes="wieghts")


def test_the_flag_needs_a_run_that_goes_on(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "needs --resume" in said(capsys, "train", "whole", "--allow-changes", "data", code=2)


def test_another_processor_is_said_and_not_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(same_run, "processor", lambda: "Another Chip 9")
    assert "this machine has Another Chip 9" in said_by_train("stopped")
    assert adapter("stopped") == adapter("whole")
