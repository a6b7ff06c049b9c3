"""What the files of tasks would run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.evaluation.benchmarks.task_files import MOST_INCLUDED, read_task_files

METRICS = {"acc", "exact_match"}


def named(folder: Path) -> list[tuple[str, str]]:
    return [(path.name, what) for path, what in read_task_files(folder, METRICS).code]


def unread(folder: Path) -> list[tuple[str, str]]:
    found = read_task_files(folder, METRICS)
    assert not found.unread or not found.configs  # nothing is used
    return [(path.name, why) for path, why in found.unread]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("task: a\nprocess_docs: !function utils.process\n", "!function utils.process"),
        ("task: a\nfewshot_config:\n  samples: !function utils.shots\n", "!function utils.shots"),
        ("class: mine.Task\ntask: a\n", "class: mine.Task"),
        ("task: a\nuse_prompt: other.yaml:x\n", "use_prompt: other.yaml:x"),
        ("task: a\nmetric_list:\n  - metric: ./evil.py\n", "metric: ./evil.py"),
        ("task: a\nmetric_list:\n  - metric: acc\n    hf_evaluate: true\n", "metric: acc"),
        ("task: a\nx: !!python/object/apply:os.system [ls]\n", "tag:yaml.org,2002:python/object/apply:os.system"),
        ("%TAG !f! !func\n---\ntask: a\nx: !f!tion utils.x\n", "!function utils.x"),
        ("y: &y {class: mine.Task}\nz:\n  <<: *y\n", "class: mine.Task"),
        ("group: g\ntask:\n  - task: b\n    metric_list: [{metric: mine}]\n", "metric: mine"),
        ("metric: acc\nmetric: mine\n", "metric: mine"),
    ],
)
def test_each_way_to_name_code_is_found(tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "task.yaml").write_text(text)
    assert named(tmp_path) == [("task.yaml", what)]


def test_what_a_file_includes_counts_too_also_in_a_circle_or_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "a.yaml").write_text("task: a\ninclude: [b.yaml, ../outside]\n")
    (tmp_path / "tasks" / "b.yaml").write_text("include: a.yaml\nmetric_list: [{metric: acc}]\n")
    (tmp_path / "outside").write_text("doc_to_text: !function utils.text\ninclude: gone.yaml\n")
    assert named(tmp_path / "tasks") == [("outside", "!function utils.text")]
    assert unread(tmp_path / "tasks") == [("gone.yaml", "There is no such file.")]


def test_a_chain_of_more_files_than_are_followed_is_refused(tmp_path: Path) -> None:
    for number in range(MOST_INCLUDED + 1):
        (tmp_path / f"{number}.inc").write_text(f"include: {number + 1}.inc\n")
    (tmp_path / f"{MOST_INCLUDED + 1}.inc").write_text("doc_to_text: !function utils.text\n")
    (tmp_path / "a.yaml").write_text("task: a\ninclude: 0.inc\n")
    assert unread(tmp_path) == [("a.yaml", "It includes more than 100 files.")]
    (tmp_path / "a.yaml").write_text("task: a\ninclude: 2.inc\n")
    assert named(tmp_path) == [("101.inc", "!function utils.text")]
    (tmp_path / "101.inc").write_text("doc_to_text: x\n")
    assert read_task_files(tmp_path, METRICS).configs == [(tmp_path / "a.yaml", {"task": "a", "doc_to_text": "x"})]


def merges(levels: int) -> str:
    lines = [f"a{n}: &a{n}\n  <<: [*a{n - 1}, *a{n - 1}]" for n in range(1, levels)]
    return "\n".join(["task: merge", "a0: &a0 {x: 1}", *lines]) + "\n"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: [\n", "It is no YAML that can be read"),
        ("include: a.yaml\n", "or includes itself"),
        ("include: [b, b]\n", "included twice"),
        ("include: list\n", "is no mapping"),
        ("include: /dev/zero\n", "There is no such file"),
        ("include: {b: c}\n", "What it includes is no path"),
        ("x: !!set {a}\n", "tag:yaml.org,2002:set is not read"),
        ("x: 1\nx: 2\n", "duplicate key"),
        ("x: 2024-13-45\n", "month must be in 1..12"),
        (merges(40), "The values are more than 20,000, with what aliases (*name) stand for"),
        (f"x: {'[' * 50}{']' * 50}\n", "More than 40 levels"),
        ("x: &x [*x]\n", "stands inside what it stands for"),
        (f"x: '{'a' * 2**20}'\n", "It has more than 1,048,576 bytes"),
    ],
)
def test_what_cannot_be_read_as_a_whole_is_refused(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "b").write_text("x: 1\n")
    (tmp_path / "list").write_text("- 1\n")
    (tmp_path / "a.yaml").write_text(text)
    ((_, found),) = unread(tmp_path)
    assert why in found


def test_values_are_those_of_the_harness_with_what_is_included(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.yaml").write_text("include: [../b, ../c]\ntask: a\nx: no\nq: 'no'\n")
    (tmp_path / "b").write_text("x: 1\ny: 2\nz: [012, 1e-5, 1.5e+3, .5, n]\ntask_list: [1]\n")
    (tmp_path / "c").write_text("y: 3\nm: &m {k: on}\nn: {<<: *m, l: ~}\n")
    ((_, values),) = read_task_files(tmp_path, METRICS).configs
    z, n = [10, "1e-5", 1500.0, 0.5, "n"], {"k": True, "l": None}
    assert values == {"x": False, "y": 3, "z": z, "m": {"k": True}, "n": n, "task": "a", "q": "no"}


def test_a_line_break_that_only_one_version_of_yaml_knows_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("task: a\n# a comment\u2028x: !function utils.text\n", encoding="utf-8")
    assert named(tmp_path) == [("a.yaml", "!function utils.text")] or unread(tmp_path)


def test_a_plain_task_names_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text('task: a\ndoc_to_text: "{{x}} !function"\nmetric_list: [{metric: acc}]\n')
    (tmp_path / "b.yaml").write_text("- a list\n- 1.5\n- 2024-01-01\n")
    (tmp_path / "c.yaml").write_text("")
    (tmp_path / "d.txt").write_text("x: !function utils.x\n")
    assert named(tmp_path) == []
    assert unread(tmp_path) == []
