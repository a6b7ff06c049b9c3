"""`compare`: runs, checkpoints and models beside their base, on which rows, what is kept, and what is refused."""

from __future__ import annotations

import json
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

import tunesmith
from tunesmith.cli.app import main
from tunesmith.errors import RunError
from tunesmith.evaluation.judge import Judge
from tunesmith.runs.folder import Run
from tunesmith.workflows.evaluate import evaluate
from tunesmith.workflows.finetune import train


@pytest.fixture
def values(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    rows = [{"input": f"thing {n}", "output": f"word {n % 3}"} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    training = {"learning_rate": 0.01, "max_steps": 4, "save_steps": 2, "batch_size": 4}
    quiet = {"eval_strategy": "no", "report_to": "none", "threads": 1}
    return {
        "model": str(tiny_model_dir),
        "data": {"train": "rows.jsonl", "eval": 0.5, "instruction": "Say it."},
        "method": {"name": "lora", "r": 4},
        "training": {**training, **quiet},
        "evaluation": {"metrics": ["exact_match"], "max_new_tokens": 4, "resamples": 200, "samples": 0},
        "output_dir": "a",
    }


def changed(values: dict[str, Any], output_dir: str, **sections: Any) -> dict[str, Any]:
    merged = {
        name: {**values[name], **section} if isinstance(section, dict) else section
        for name, section in sections.items()
    }
    return {**values, **merged, "output_dir": output_dir}


def passes(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The titles of every pass over the rows that is really made from here on."""
    made: dict[str, list[str]] = {"answers": [], "token_scores": []}
    for name, titles in made.items():
        whole = getattr(Judge, name)

        def counted(self: Any, *given: Any, whole: Any = whole, titles: list[str] = titles, **named: Any) -> Any:
            titles.append(named["title"])
            return whole(self, *given, **named)

        monkeypatch.setattr(Judge, name, counted)
    return made


def test_two_runs_and_a_checkpoint_are_compared_with_their_base_and_each_other(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train(values)
    train(changed(values, "b", training={"learning_rate": 1e-6}))
    made = passes(monkeypatch)
    found = tunesmith.compare(["a", "b", "a/checkpoints/step-000002"], progress=False)
    names = ["base", "a", "b", "a/checkpoints/step-000002"]
    assert [model["name"] for model in found["models"]] == names
    assert [(pair["from"], pair["to"]) for pair in found["pairs"]] == [
        *(("base", name) for name in names[1:]), ("a", "b"), ("a", names[3]), ("b", names[3]),
    ]  # fmt: skip
    # The base is measured once, and only the checkpoint that no run has judged makes answers.
    assert made["token_scores"] == ["a: loss", "base: loss", "b: loss", f"{names[3]}: loss"]
    assert made["answers"] == [f"{names[3]}: answers"]
    assert [model["answers"] for model in found["models"]] == [
        "a/samples.jsonl, of step 4", "a/samples.jsonl, of step 4", "b/samples.jsonl, of step 4", "made",
    ]  # fmt: skip
    assert found["notes"] == [] and found["rows"] == len(Run("a").read_lines("samples.jsonl"))
    for run in ("a", "b"):
        alone = evaluate(run, progress=False)["metrics"]
        for name, model in (("base", "base"), ("tuned", run)):
            assert found["metrics"]["loss"][model] == pytest.approx(alone["loss"][name], rel=1e-6)
            assert found["metrics"]["exact_match"][model] == alone["exact_match"][name]
    (kept,) = Run("a").read_lines("comparisons.jsonl")
    assert {name: kept[name] for name in found} == json.loads(json.dumps(found))
    assert not Run("a").notes()
    assert "a -> b: " in str(found) and "<td>a</td>" in found._repr_html_()
    # The command prints the same, in 80 columns.
    monkeypatch.setenv("COLUMNS", "80")
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["compare", "a", "b", "max_rows=12", "--json"])
    printed = capsys.readouterr()
    assert not ended.value.code
    described = YAML(typ="safe").load((files("tunesmith.cli") / "json_keys.yaml").read_text())["commands"]["compare"]
    assert list(json.loads(printed.out.splitlines()[-1])) == list(described)
    lines = printed.err.splitlines()
    table = lines[next(number for number, line in enumerate(lines) if line.split()[:1] == ["model"]) :][:9]
    assert [line.split()[1] for line in table[1:4]] == ["base", "a", "b"]
    assert [line.split()[:3] for line in table[6:9]] == [["1", "->", "2"], ["1", "->", "3"], ["2", "->", "3"]]
    assert max(map(len, table)) <= 80
    # Other decoding makes every answer again.
    made["answers"].clear()
    again = tunesmith.compare("a", settings=["max_new_tokens=3"], progress=False)
    assert made["answers"] == ["a: answers", "base: answers"]
    assert [model["answers"] for model in again["models"]] == ["made", "made"]


def test_runs_that_hold_out_other_rows_are_compared_on_those_that_both_hold_out(values: dict[str, Any]) -> None:
    train(values)
    train(changed(values, "c", training={"seed": 1}))
    held = {run: {line["source"] for line in Run(run).read_lines("samples.jsonl")} for run in ("a", "c")}
    both = held["a"] & held["c"]
    found = tunesmith.compare(["a", "c"], progress=False)
    assert 0 < found["rows"] == len(both) < len(held["a"])
    assert found["notes"] == [
        f"Compared on {len(both)} rows that all targets hold out. Rows that each holds out: "
        f"a {len(held['a'])}, c {len(held['c'])}."
    ]
    kept = {line["source"]: line["scores"]["exact_match"] for line in Run("c").read_lines("samples.jsonl")}
    assert found["metrics"]["exact_match"]["c"] == pytest.approx(sum(kept[each] for each in both) / len(both))
    # Labels are those of all rows, as in the verdict of each run, also where they are scored by their likelihood.
    named = ["accuracy", "macro_f1", "likelihood_accuracy"]
    by_label = tunesmith.compare(["a", "c"], settings=[f"metrics=[{', '.join(named)}]"], progress=False)
    assert list(by_label["metrics"]) == [*named, "loss"] and by_label["rows"] == len(both)
    assert by_label["metrics"]["likelihood_accuracy"]["base"] >= 1 / len(both)
    assert by_label["notes"] == found["notes"]
    # No row in common: refused, and what the message advises works.
    (Path("other.jsonl")).write_text(Path("rows.jsonl").read_text().replace("thing", "number"))
    train(changed(values, "e", data={"train": "other.jsonl"}))
    with pytest.raises(RunError, match="a and e cannot be compared: no row is held out by all of them") as caught:
        tunesmith.compare(["a", "e"], progress=False)
    assert "data=FILE" in str(caught.value.remedy)
    rows = [{"input": f"new {n}", "output": f"word {n % 3}"} for n in range(8)]
    on_others = tunesmith.compare(["a", "e"], data=rows, progress=False)
    assert (on_others["rows"], on_others["data"]) == (8, "rows given in Python")


def test_a_pair_has_the_interval_of_the_runs_own_verdict(values: dict[str, Any]) -> None:
    rows = [{"input": f"thing {n // 2}", "output": f"word {n % 3}"} for n in range(80)]  # two rows of each prompt
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    named = ["macro_f1", "exact_match", "likelihood_macro_f1", "edit_similarity", "loss"]
    made = train({**values, "evaluation": {**values["evaluation"], "metrics": named}}, progress=False)
    (pair,) = tunesmith.compare("a", progress=False)["pairs"]
    assert list(pair["verdict"]["metrics"]) == named
    for name, found in pair["verdict"]["metrics"].items():
        own = made.verdict["metrics"][name]
        for fact in ("base", "tuned", "difference", "interval", "p_value"):
            assert found[fact] == pytest.approx(own[fact], rel=1e-5, abs=1e-6), name


def test_runs_with_other_labels_are_compared_on_those_that_they_share(values: dict[str, Any]) -> None:
    rows = [{"input": f"thing {n}", "output": f"word {n % 4}"} for n in range(40)]
    Path("four.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluation = {"metrics": ["likelihood_accuracy", "accuracy"]}
    train(changed(values, "a", evaluation=evaluation))
    train(changed(values, "g", evaluation=evaluation, data={"train": "four.jsonl"}))
    new = [{"input": f"new {n}", "output": f"word {n % 2}"} for n in range(12)]
    found = tunesmith.compare(["a", "g"], data=new, progress=False)
    (note,) = found["notes"]
    assert note == (
        "Labels are the 3 that all have: 'word 3' is left out. Labels of each: base 3, a 3, g 4. So values of "
        "likelihood_accuracy, accuracy can differ from those of a run's verdict."
    )
    alone = evaluate("a", data=new, progress=False)["metrics"]  # which has these three labels
    for name in evaluation["metrics"]:
        assert found["metrics"][name]["a"] == alone[name]["tuned"]
        assert found["metrics"][name]["base"] == alone[name]["base"]
    same = tunesmith.compare("a", data=new, progress=False)
    assert same["notes"] == []


def test_a_checkpoint_that_was_copied_out_of_its_run_may_know_the_rows_and_a_note_says_so(
    values: dict[str, Any],
) -> None:
    train(values)
    shutil.copytree("a/checkpoints/step-000002", "copy")
    rows = [{"input": f"new {n}", "output": f"word {n % 3}"} for n in range(8)]
    for data in (None, rows):
        found = tunesmith.compare(["a", "copy"], data=data, progress=False)
        assert found["notes"] == ["It is not known whether copy was trained on these rows: it has no run here."]
        assert [model["trained_on"] for model in found["models"] if model["name"] == "copy"] == [None]
    assert "decided_by" not in found and all(pair["verdict"]["decided_by"] for pair in found["pairs"])


def test_other_prompts_and_another_base_are_named_and_a_named_base_is_compared_once(
    values: dict[str, Any], tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other-base"
    shutil.copytree(tiny_model_dir, other)
    train(values)
    train(changed(values, "d", data={"instruction": "Be brief."}))
    train(changed(values, "f", model=str(other)))
    made = passes(monkeypatch)
    found = tunesmith.compare(["a", "d", "f", str(tiny_model_dir)], progress=False)
    names = ["base", "a", "base of d", "d", "base of f", "f"]
    assert [model["name"] for model in found["models"]] == names
    assert len(made["token_scores"]) == len(names)
    assert f"{tiny_model_dir} is base: it is compared once." in found["notes"]
    assert ("base of d", "d") in [(pair["from"], pair["to"]) for pair in found["pairs"]]
    assert any(note.startswith("The prompts of base of d, d differ from those of base") for note in found["notes"])
    assert found["metrics"]["loss"]["base"] == pytest.approx(found["metrics"]["loss"]["base of f"], rel=1e-6)


def test_a_target_that_is_named_twice_or_not_at_all_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    name = str(tiny_model_dir)
    with pytest.raises(RunError, match="is named twice"):
        tunesmith.compare([name, name], progress=False)
    with pytest.raises(RunError, match="are the same checkpoint"):
        tunesmith.compare([name, f"{name}/."], progress=False)
    with pytest.raises(RunError, match="There is nothing to compare"):
        tunesmith.compare([], progress=False)
    rows = [{"prompt": f"say {n}", "completion": f"word {n}"} for n in range(6)]
    with pytest.raises(RunError, match=r"There is nothing to compare .* with"):
        tunesmith.compare(name, data=rows, progress=False)
