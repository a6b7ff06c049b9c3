"""Regular expressions for the names of modules: what ends on a model's names is taken, what does not is refused."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import ModelError
from tunesmith.model.weights.slow_regex import refuse_slow_patterns

PARTS = (
    *(f"self_attn.{each}_proj" for each in "qkvo"),
    *(f"mlp.{each}_proj" for each in ("gate", "up", "down")),
    *(f"mlp.experts.{expert}.{each}_proj" for expert in range(128) for each in ("gate", "up", "down")),
)
NAMES = ["model.embed_tokens", "lm_head", *(f"model.layers.{layer}.{part}" for layer in range(60) for part in PARTS)]
REMEDY = "Write a list."

GOOD = (
    r"(\w+\.)+(q_proj|v_proj)",
    r"(?:[a-z_]+\.)*q_proj",
    r".*\.(q|v)_proj",
    r".*\.(q_proj|v_proj)$",
    r"^(?!.*patch_embed).*(?:fc|Wqkv|down_blocks.*(attn|mlp))$",
    r"(?:.*\.)?(q_proj|v_proj)",
    r"(?:[^.]+[.])+q_proj",
    r"model\.(?:layers\.\d+\.)+[a-z_.]*q_proj",
    r"(a+)+$",  # no name has such a text
    r"(?i:.*Q_PROJ)",
)
BAD = (
    r"(\w+\.?)+!",
    r"([a-z_.0-9]+)*=",
    r"(?:.|.){26}!",
    r".*.*.*.*.*.*.*.*.*.*.*!",
    r"(?=([\w.]+)+!)x",
    r"((.{1,8}){1,8}){1,8}!",
    "a" * 30_000 + "*",
)


def refused_as_targets(pattern: str) -> None:
    refuse_slow_patterns({"target_modules": pattern}, NAMES, "adapter_config.json: ", remedy=REMEDY)


def test_patterns_of_real_adapters_are_taken_with_the_24000_names_of_a_large_model() -> None:
    assert len(NAMES) > 23_000
    for pattern in GOOD:
        refused_as_targets(pattern)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.model.weights.slow_regex.SECONDS", 0.4)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("pattern", BAD)
def test_a_pattern_that_takes_too_long_is_refused(pattern: str) -> None:
    began = time.perf_counter()
    with pytest.raises(ModelError, match="cannot be used") as caught:
        refused_as_targets(pattern)
    assert caught.value.where == "adapter_config.json: target_modules"
    assert caught.value.remedy == REMEDY
    assert ("0.4 s of computing" in str(caught.value.why)) == (len(pattern) < 1000)
    assert time.perf_counter() - began < 60  # half a second, and a busy machine


SLOW = r"(\w+\.?)+!"
PLACES: dict[str, dict[str, Any]] = {
    "exclude_modules": {"exclude_modules": SLOW},
    "feedforward_modules": {"feedforward_modules": SLOW},
    "trainable_modules": {"trainable_modules": SLOW},
    "modules_to_save": {"modules_to_save": ["lm_head", SLOW]},
    "layers_pattern": {"layers_pattern": ["layers", SLOW]},
    "rank_pattern": {"rank_pattern": {"q_proj": 4, SLOW: 8}},
    "alpha_pattern": {"alpha_pattern": {SLOW: 8}},
    "block_size_pattern": {"block_size_pattern": {SLOW: 8}},
    "llm_int8_skip_modules": {"llm_int8_skip_modules": ["lm_head", SLOW]},
    "modules_to_not_convert": {"modules_to_not_convert": [SLOW]},
}


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("key", PLACES)
def test_every_key_that_a_library_matches_as_a_pattern_is_tried(key: str) -> None:
    with pytest.raises(ModelError) as caught:
        refuse_slow_patterns({"r": 8, **PLACES[key]}, NAMES, "method.", remedy=REMEDY)
    assert caught.value.where == f"method.{key}"


def test_plain_names_start_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("a process was started"))
    plain = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"], "rank_pattern": {r"^layers\.0.q_proj$": 4}}
    refuse_slow_patterns({**plain, "layers_pattern": "layers"}, NAMES, "method.", remedy=REMEDY)


def test_a_pattern_that_is_none_is_one_message() -> None:
    with pytest.raises(ModelError, match="cannot be used") as caught:
        refused_as_targets("(q_proj|v_proj")
    assert "unterminated subpattern" in str(caught.value.why)


@contextmanager
def no_files_left() -> Iterator[None]:
    """Inside, no other file can be opened, and so no process can be started."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_without_room_for_a_process_no_expression_is_blamed() -> None:
    pattern = r".*\.(never_seen|before)"
    with no_files_left():
        with pytest.raises(ModelError, match="could not be tried") as caught:
            refused_as_targets(pattern)
        refuse_slow_patterns({"target_modules": ["q_proj"]}, NAMES, "method.", remedy=REMEDY)  # as the message says
    assert caught.value.where == "adapter_config.json: target_modules"
    assert "cannot be started: [Errno 24] Too many open files" in str(caught.value.why)
    assert "plain names" in str(caught.value.remedy)
    refused_as_targets(pattern)  # once there is room


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("exit 127", "It ended too early: exit 127"),
        ("echo Cannot allocate memory >&2; exit 1", "It ended too early: Cannot allocate memory"),
        ("echo 0; kill -9 $$", "It ended too early: exit -9"),
        ("exec sleep 60", "within 0.5 s"),
    ],
)
def test_a_process_that_ends_before_it_has_tried_blames_no_expression(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, why: str
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\ncat > /dev/null\n{program}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    if "sleep" in program:
        monkeypatch.setattr("tunesmith.model.weights.slow_regex._WAIT_S", 0.5)
    with pytest.raises(ModelError, match="could not be tried") as caught:
        refused_as_targets(rf".*\.(q|{len(program)})_proj")
    assert why in str(caught.value.why)
