"""What the files of tasks would run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.evaluation.benchmarks.task_files import UNREADABLE, code_named

METRICS = {"acc", "exact_match"}


def named(folder: Path) -> list[tuple[str, str]]:
    return [(path.name, what) for path, what in code_named(folder, METRICS)]


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
        ("a: [\n", UNREADABLE),
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
    assert named(tmp_path / "tasks") == [("outside", "!function utils.text"), ("gone.yaml", UNREADABLE)]


def test_a_plain_task_names_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text('task: a\ndoc_to_text: "{{x}} !function"\nmetric_list: [{metric: acc}]\n')
    (tmp_path / "b.yaml").write_text("- a list\n- 1.5\n- 2024-01-01\n- &a [*a]\n")
    (tmp_path / "c.yaml").write_text("")
    (tmp_path / "d.txt").write_text("x: !function utils.x\n")
    assert named(tmp_path) == []
