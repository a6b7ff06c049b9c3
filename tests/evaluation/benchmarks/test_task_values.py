"""Values of tasks that are let through, and those that are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunesmith.evaluation.benchmarks.task_values import MOST_TASKS, changed_tasks, growing_groups, refused_values

PACKAGED = {"json", "csv", "parquet", "text", "pandas", "webdataset"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tasks" / "data").mkdir(parents=True)
    for name in ("a", "b"):
        (tmp_path / "tasks" / "data" / f"{name}.jsonl").write_text("{}")
    (tmp_path / "packed").write_text("{}")
    (tmp_path / "tasks" / "link").symlink_to(tmp_path / "packed")
    return tmp_path / "tasks"


def refused(config: dict[str, Any], folder: Path) -> list[str]:
    return list(refused_values(config, folder, PACKAGED, lambda file: "packed" if file.name == "b.jsonl" else None))


def test_files_below_the_folder_are_data(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    files = {"test": "tasks/data/a.jsonl", "train": [str(folder / "data" / "[a].jsonl"), "tasks/gone.jsonl"]}
    config: dict[str, Any] = {"dataset_path": "json", "dataset_kwargs": {"data_files": files, "field": "rows"}}
    assert refused(config, folder) == []
    a = str(folder / "data" / "a.jsonl")
    found = {"test": [a], "train": [a, str(folder / "gone.jsonl")]}
    assert config["dataset_kwargs"] == {"data_files": found, "field": "rows"}


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("data/../../packed", "does not lie below"),
        ("/etc/passwd", "does not lie below"),
        ("/dev/zero", "does not lie below"),
        ("{folder}/link", "does not lie below"),
        ("{folder}/lin?", "does not lie below"),
        ("{folder}/data", "it is no file"),
        ("{folder}/data/*.jsonl", "packed"),
        ("https://example.org/a.jsonl", "an address is not read"),
        ("zip://a.jsonl::{folder}/data/a.zip", "an address is not read"),
        ("file:///etc/passwd", "an address is not read"),
        (3, "an address is not read"),
    ],
)
def test_other_files_are_refused(folder: Path, name: Any, why: str) -> None:
    name = name.replace("{folder}", str(folder)) if isinstance(name, str) else name
    for files in (name, [name], {"test": name}):
        (found,) = refused({"dataset_path": "json", "dataset_kwargs": {"data_files": files}}, folder)
        assert why in found
        inner = {"group": "g", "task": [{"task": "x", "dataset_kwargs": {"data_files": files}}]}
        assert refused(inner, folder) == [found]


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"dataset_path": "pandas"}, "dataset_path: pandas: what is let through is a name on the hub, json"),
        ({"dataset_path": "tasks"}, "dataset_path: tasks: a folder or address"),
        ({"dataset_path": "../tasks"}, "a folder or address"),
        ({"dataset_path": "hf://datasets/a/b"}, "a folder or address"),
        ({"dataset_path": ["json"]}, "a folder or address"),
        ({"dataset_path": "json"}, "without dataset_kwargs.data_files reads the working folder"),
        ({"dataset_path": "json", "dataset_kwargs": {"data_dir": "x"}}, "dataset_kwargs.data_dir"),
        ({"dataset_path": "a/b", "dataset_kwargs": {"data_files": "/etc/passwd"}}, "no place in the data on the hub"),
        ({"dataset_path": "a/b", "dataset_kwargs": {"data_dir": "x/../.."}}, "no place in the data on the hub"),
        ({"dataset_path": "a/b", "dataset_kwargs": {"revision": "../../x"}}, "no place in the data on the hub"),
        ({"dataset_kwargs": {"cache_dir": "x"}}, "dataset_kwargs.cache_dir: what is let through is data_files"),
        ({"dataset_path": "a/b", "dataset_kwargs": {"trust_remote_code": True}}, "asks for code"),
        ({"dataset_kwargs": "x"}, "it is no mapping"),
        ({"filter_list": [{"filter": [{"function": "regex", "regex_pattern": "(a+)+$"}]}]}, "regex_pattern: a regular"),
        ({"metric_list": [{"metric": "exact_match", "regexes_to_ignore": ["(a+)+$"]}]}, "regexes_to_ignore: a regular"),
        ({"repeats": 10**9}, "repeats: 1000000000 is more than 200"),
        ({"task": [{"num_fewshot": 10**9}]}, "num_fewshot: 1000000000 is more than 200"),
    ],
)
def test_each_value_that_is_not_let_through_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], why: str
) -> None:
    monkeypatch.chdir(folder.parent)
    assert why in refused(config, folder)[0]


def test_data_on_the_hub_and_plain_filters_are_let_through(folder: Path) -> None:
    kwargs = {"data_files": {"test": "data/*.jsonl"}, "revision": "main", "trust_remote_code": False}
    filters = [{"name": "x", "filter": [{"function": "lowercase"}, {"function": "take_first"}]}]
    assert refused({"dataset_path": "allenai/ai2_arc", "dataset_kwargs": kwargs, "filter_list": filters}, folder) == []
    assert refused({"dataset_path": "gsm8k", "num_fewshot": 8}, folder) == []


def group(name: str, *members: Any, **values: Any) -> tuple[Path, dict[str, Any]]:
    return Path(f"{name}.yaml"), {"group": name, "task": list(members), **values}


def test_groups_that_grow_or_have_no_end_are_refused() -> None:
    doubling = [group("g0"), *(group(f"g{n}", f"g{n - 1}", {"group": f"g{n - 1}"}) for n in range(1, 40))]
    assert [path.name for path, _ in growing_groups(doubling)] == [f"g{n}.yaml" for n in range(10, 40)]
    assert len(list(growing_groups([group("a", "b"), group("b", "a")]))) == 2
    inline = {"group": "x", "task": ["a"]}
    assert len(list(growing_groups([group("a", inline)]))) == 1
    assert list(growing_groups([group("a", "b", *map(str, range(1000))), group("b", "x", "y")])) == []
    for odd in (group("a", 5), (Path("5"), {"group": 5, "task": ["x"]}), group("a", {"group": None, "task": ["x"]})):
        ((_, why),) = growing_groups([odd])
        assert "is no text" in why
    many = [(Path("t"), {"task": str(n), "tag": "all"}) for n in range(MOST_TASKS)]
    assert len(list(growing_groups([*many, group("a", "all")]))) == 1


def test_a_group_changes_its_own_tasks_and_none_of_the_harness() -> None:
    known = {"arc", "mmlu"}
    fine = [
        group("a", "arc", {"task": "arc", "num_fewshot": 5}, {"task": "mine", "dataset_path": "x/y"}, version=1),
        group("b", "mine", dataset_path="x/y"),
    ]
    assert list(changed_tasks(fine, known)) == []
    for bad in (
        [group("a", {"task": "arc", "dataset_path": "x/y"})],
        [group("a", {"group": "mmlu", "dataset_path": "x/y"})],
        [group("a", "arc", dataset_path="x/y")],
        [group("a", {"group": "inner", "task": ["arc"], "dataset_path": "x/y"})],
        [group("a", "b", dataset_path="x/y"), group("b", "arc")],
        [group("a", {"group": "b", "dataset_path": "x/y"}), group("b", "arc")],
        [group("a", {"group": "b", "dataset_path": "x/y"}), group("b", "arc"), group("b")],  # the first counts
    ):
        ((_, why),) = changed_tasks(bad, known)
        assert why.startswith("dataset_path: set for ")
