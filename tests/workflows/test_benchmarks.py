"""Tasks of lm-evaluation-harness from local files, with a run and with a model."""

from __future__ import annotations

import gzip
import io
import json
import logging
from pathlib import Path
from typing import Any, cast

import pytest

pytest.importorskip("lm_eval", reason="needs pip install 'tunesmith[benchmarks]'")

from tests.workflows.test_damaged_runs import Heard
from tqdm import tqdm

from tunesmith.errors import DataError, RecipeError
from tunesmith.runs.folder import Run
from tunesmith.runs.overview import details
from tunesmith.workflows import benchmarks
from tunesmith.workflows.benchmarks import benchmark
from tunesmith.workflows.finetune import train

CHOICE = """task: colours
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "The colour of {{{{thing}}}} is"
doc_to_choice: ["red", "blue"]
doc_to_target: colour
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
FREE = """task: colours_free
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{thing}}}}?"
doc_to_target: "{{{{ ['red', 'blue'][colour] }}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 4}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
TEXT = """task: colours_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{thing}}}} is a thing"
metric_list: [{{metric: word_perplexity}}, {{metric: bits_per_byte}}]
"""


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rows = [{"thing": f"thing {n}", "colour": n % 2} for n in range(40)]
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in (("choice", CHOICE), ("free", FREE), ("text", TEXT)):
        found = text.format(data=folder / "items.jsonl")
        (folder / f"{name}.yaml").write_text(found)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    folder = tmp_path_factory.mktemp("run")
    rows = [{"prompt": f"thing {n}?", "completion": "red" if n % 2 else "blue"} for n in range(20)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    training = {"max_steps": 4, "batch_size": 4, "learning_rate": 0.05, "report_to": "none", "threads": 1}
    values = {
        "model": str(tiny_model_dir),
        "data": {"train": str(folder / "rows.jsonl"), "eval": 0.3},
        "method": {"name": "lora", "r": 4},
        "training": training,
        "evaluation": {"resamples": 200, "samples": 0},
        "output_dir": str(folder / "run"),
    }
    return train(values, progress=False).run


def test_a_run_does_tasks_of_each_kind_beside_its_base_and_keeps_the_result(run: Path, tasks: Path) -> None:
    names = ["colours", "colours_free", "colours_text"]
    found = benchmark(run, names, include_path=tasks, limit=30, progress=False)
    assert [(each["task"], each["metric"], each["items"]) for each in found["benchmarks"]] == [
        ("colours", "acc", 30),
        ("colours_free", "exact_match", 30),
        ("colours_text", "word_perplexity", 30),
        ("colours_text", "bits_per_byte", 30),
    ]
    for each in found["benchmarks"]:
        low, high = each["interval"]
        assert low <= each["difference"] <= high and each["difference"] == pytest.approx(each["tuned"] - each["base"])
    perplexity = found["benchmarks"][2]
    assert perplexity["difference"] != 0 and perplexity["verdict"] in ("better", "worse", "no evidence")
    assert details(run).benchmarks == Run(run).read_lines("benchmarks.jsonl") == [found]
    again = benchmark(run, names[:1], include_path=tasks, limit=30, progress=False)
    assert again["benchmarks"][0]["tuned"] == found["benchmarks"][0]["tuned"]
    assert len(details(run).benchmarks) == 2
    Run(run).append("benchmarks.jsonl", {**found, "benchmarks": [{"task": "x"}]})
    Run(run).seal("benchmarks.jsonl")
    assert details(run).benchmarks == []
    named = "benchmarks.jsonl is not shown (A result has no task, metric or filter)"
    assert ("damaged", named) in details(run).facts


def test_the_harness_gives_the_same_value_by_its_own_model(tiny_model_dir: Path, tasks: Path) -> None:
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    found = benchmark(tiny_model_dir, ["colours", "colours_text"], include_path=tasks, progress=False)
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    theirs: Any = evaluator.evaluate(
        lm=cast("Any", HFLM)(pretrained=str(tiny_model_dir), batch_size=8, device="cpu"),
        task_dict=manager.load(["colours", "colours_text"]),
        bootstrap_iters=0,
    )
    for each in found["benchmarks"]:
        assert each["value"] == pytest.approx(theirs["results"][each["task"]][f"{each['metric']},none"], rel=1e-4)
    assert len(found["benchmarks"]) == 3


def test_a_name_that_is_not_known_is_one_message(tiny_model_dir: Path, tasks: Path, monkeypatch: Any) -> None:
    # The harness's own files are many.
    monkeypatch.setattr("lm_eval.tasks.manager.TaskIndex.build", lambda self, paths: {})
    with pytest.raises(RecipeError, match=r"(?s)There is no task 'colors'.*Close to it are colours"):
        benchmark(tiny_model_dir, ["colors"], include_path=tasks, progress=False)
    with pytest.raises(RecipeError, match="There is no such folder of tasks"):
        benchmark(tiny_model_dir, ["colours"], include_path=tasks / "gone", progress=False)


def test_files_that_name_code_are_refused_unless_that_is_allowed(tiny_model_dir: Path, tasks: Path) -> None:
    ran = tasks.parent / "ran"
    (tasks / "utils.py").write_text(f"open({str(ran)!r}, 'w').close()\ndef words(doc):\n    return doc['thing']\n")
    text = (tasks / "choice.yaml").read_text().replace('"The colour of {{thing}} is"', "!function utils.words")
    (tasks / "choice.yaml").write_text(text)
    with pytest.raises(
        RecipeError, match=r"(?s)would run Python code.*choice\.yaml: !function utils\.words.*--allow-f"
    ):
        benchmark(tiny_model_dir, ["colours"], include_path=tasks, progress=False)
    assert not ran.exists()
    found = benchmark(tiny_model_dir, ["colours"], include_path=tasks, allow_functions=True, progress=False)
    assert ran.exists() and found["benchmarks"][0]["items"] == 40


def test_templates_run_in_a_sandbox(tiny_model_dir: Path, tasks: Path) -> None:
    text = (tasks / "choice.yaml").read_text().replace("{{thing}}", "{{ ''.__class__.__mro__[1].__subclasses__() }}")
    (tasks / "choice.yaml").write_text(text)
    with pytest.raises(RecipeError, match="A template of a task cannot be filled in"):
        benchmark(tiny_model_dir, ["colours"], include_path=tasks, progress=False)


def test_a_file_that_is_replaced_after_it_was_checked_is_not_opened_again(
    tiny_model_dir: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = benchmarks.read_task_files

    def then_replaced(folder: Path, metrics: Any) -> Any:
        found = checked(folder, metrics)
        (tasks / "utils.py").write_text(
            f"open({str(tasks.parent / 'ran')!r}, 'w').close()\ndef words(doc): return ''\n"
        )
        (tasks / "choice.yaml").write_text("task: colours\ndoc_to_text: !function utils.words\n")
        return found

    monkeypatch.setattr(benchmarks, "read_task_files", then_replaced)
    found = benchmark(tiny_model_dir, ["colours"], include_path=tasks, limit=4, progress=False)
    assert found["benchmarks"][0]["items"] == 4 and not (tasks.parent / "ran").exists()


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{% for i in range(9999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "takes more than 2 s for one row",
        ),
        ("{{ ('a' * 2000000000)[:1] }}", "makes more than"),
        ("{{ 'a' * 2000000 }}", "writes more than 1,048,576 characters"),
        ("{{ 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!' | regex_replace('(a+)+$', '') }}", "regex_replace"),
        (
            "{{ ['aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!'] | map('regex_' ~ 'replace', '(a+)+$', '') | list }}",
            "regex_",
        ),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "lie too deep"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "without an end"),
    ],
)
def test_templates_have_limits(tiny_model_dir: Path, tasks: Path, template: str, message: str) -> None:
    text = (tasks / "choice.yaml").read_text().replace("The colour of {{thing}} is", template)
    (tasks / "choice.yaml").write_text(text)
    with pytest.raises(RecipeError, match=message):
        benchmark(tiny_model_dir, ["colours"], include_path=tasks, progress=False)


def test_data_from_elsewhere_and_keys_of_datasets_are_refused(tiny_model_dir: Path, tasks: Path) -> None:
    text = (tasks / "choice.yaml").read_text()
    outside = tasks.parent / "outside"
    (tasks / "choice.yaml").write_text(text.replace("{data_files:", f"{{cache_dir: {outside}, data_files:"))
    with pytest.raises(
        RecipeError, match=r"(?s)choice\.yaml: dataset_kwargs\.cache_dir: what is let .*--allow-functions"
    ):
        benchmark(tiny_model_dir, ["colours"], include_path=tasks, progress=False)
    assert not outside.exists()
    rows = (tasks / "items.jsonl").read_bytes()
    (tasks / "items.jsonl").write_bytes(gzip.compress(rows))
    (tasks / "choice.yaml").write_text(text)
    with pytest.raises(RecipeError, match=r"items\.jsonl: it is packed; unpack it"):
        benchmark(tiny_model_dir, ["colours"], include_path=tasks, progress=False)


@pytest.mark.slow  # the harness's own index
def test_a_group_gives_a_task_of_the_harness_no_other_data(tiny_model_dir: Path, tasks: Path) -> None:
    group = "group: mine\ntask:\n  - {task: arc_easy, dataset_path: someone/data}\n  - colours\n"
    (tasks / "group.yaml").write_text(group)
    with pytest.raises(RecipeError, match="dataset_path: set for arc_easy, a task of the harness itself"):
        benchmark(tiny_model_dir, ["mine", "arc_challenge"], include_path=tasks, progress=False)


def test_data_that_is_not_there_and_programs_of_the_model_are_one_message(tiny_model_dir: Path, tasks: Path) -> None:
    text = (tasks / "choice.yaml").read_text()
    (tasks / "choice.yaml").write_text(text.replace("items.jsonl", "gone.jsonl"))
    with pytest.raises(DataError, match="The tasks cannot be loaded"):
        benchmark(tiny_model_dir, ["colours"], include_path=tasks, progress=False)
    on_hub = "dataset_path: nobody/nothing\n" + text.replace("dataset_path: json\ndataset_kwargs", "metadata")
    (tasks / "choice.yaml").write_text(on_hub)
    with pytest.raises(DataError, match="needs a network once"):
        benchmark(tiny_model_dir, ["colours"], include_path=tasks, progress=False)
    (tasks / "choice.yaml").write_text(text + "unsafe_code: true\n")
    with pytest.raises(RecipeError, match="runs programs that the model writes"):
        benchmark(tiny_model_dir, ["colours"], include_path=tasks, progress=False)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("fewshot_split: test\nnum_fewshot: 60\n", "ValueError: Sample larger than population"),
        ("fewshot_config: {sampler: balanced}\nnum_fewshot: 1\nfewshot_split: test\n", "NotImplementedError|sampler"),
        ("fewshot_config: {samples: [{thing: x}]}\nnum_fewshot: 1\n", "task"),
    ],
)
def test_examples_that_are_not_there_are_one_message(
    tiny_model_dir: Path, tasks: Path, more: str, message: str
) -> None:
    (tasks / "choice.yaml").write_text((tasks / "choice.yaml").read_text() + more)
    with pytest.raises(
        (DataError, RecipeError), match=rf"(?s)(The task's questions cannot be made|cannot be).*({message})"
    ):
        benchmark(tiny_model_dir, ["colours"], include_path=tasks, progress=False)


@pytest.mark.slow
def test_a_metric_of_the_hub_is_not_run_from_the_working_folder(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f1").mkdir()
    (tmp_path / "f1" / "f1.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="The metric f1 is a program that is fetched"):
        benchmark(tiny_model_dir, ["kobest_boolq"], progress=False)  # a task of the harness itself
    assert not (tmp_path / "ran").exists()


def test_a_harness_that_is_not_installed_is_named_with_its_extra(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmarks, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="pip install 'tunesmith\\[benchmarks\\]'"):
        benchmark(tiny_model_dir, ["colours"], progress=False)


def test_nothing_that_the_harness_writes_itself_reaches_the_user(
    run: Path, tasks: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tqdm, "monitor_interval", 0)
    heard, titles = Heard(), []
    task_of = heard.task
    monkeypatch.setattr(heard, "task", lambda title, total: (titles.append((title, total)), task_of(title, total))[1])
    benchmark(run, ["colours", "colours_free"], include_path=tasks, limit=5, listener=heard)
    assert capfd.readouterr() == ("", "")
    assert "reading tasks: colours, colours_free" in heard.said
    assert ("tasks: questions", 5) in titles  # our progress stands for the harness's bar
    assert not tqdm([1], file=io.StringIO()).disable and logging.getLogger("lm_eval").level < logging.CRITICAL
