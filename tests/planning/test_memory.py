"""The memory in all respects a container's limit; the peak is that of this process."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from tunesmith.planning import memory
from tunesmith.runs import machine_memory
from tunesmith.runs.machine_memory import group_limits


def lay_out(root: Path, files: dict[str, str]) -> tuple[Path, Path]:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root / "proc", root / "cgroup"


def test_memory_is_all_of_the_machine_whatever_is_free() -> None:
    assert memory.total_memory("cpu") == memory.total_memory("cpu") > 2**28


def test_the_limits_of_a_group_and_of_those_above_it_count(tmp_path: Path) -> None:
    places = lay_out(
        tmp_path,
        {
            "proc/cgroup": "0::/user/job\n",
            "cgroup/user/job/memory.max": "3000\n",
            "cgroup/user/memory.max": "2000\n",
            "cgroup/memory.max": "max\n",
        },
    )
    assert list(group_limits(*places)) == [3000, 2000]


def test_the_first_version_of_control_groups_counts_too(tmp_path: Path) -> None:
    places = lay_out(
        tmp_path,
        {
            "proc/cgroup": "5:cpu,cpuacct:/job\n4:memory:/job\n",
            "cgroup/memory/job/memory.limit_in_bytes": "5000\n",
            "cgroup/cpu/job/memory.limit_in_bytes": "1\n",
            "cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
    )
    assert list(group_limits(*places)) == [5000, 9223372036854771712]


def test_a_container_that_sees_only_its_own_folders_is_limited_by_them(tmp_path: Path) -> None:
    places = lay_out(tmp_path, {"proc/cgroup": "0::/host/name/of/it\n", "cgroup/memory.max": "700\n"})
    assert list(group_limits(*places)) == [700]


def test_without_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert list(group_limits(tmp_path / "proc", tmp_path / "cgroup")) == []


def test_the_lowest_limit_is_the_memory_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_memory, "group_limits", lambda: iter([2**62, 12_345]))
    assert memory.total_memory("cpu") == 12_345


def test_the_peak_holds_what_was_freed_meanwhile() -> None:
    before = memory.begin_peak("cpu")
    with mmap.mmap(-1, 2**26) as block:  # not from a heap that other tests have filled
        block.write(b"x" * 2**26)
    assert memory.peak("cpu") - before > 0.9 * 2**26


def test_the_peak_is_that_of_the_whole_process_where_no_other_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(memory, "PROC", tmp_path / "nowhere")
    assert memory.begin_peak("cpu") > 2**26
    assert memory.peak("cpu") > 2**26
