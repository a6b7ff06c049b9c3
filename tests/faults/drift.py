"""What a run depends on changes under it: each command that uses it names the change, and goes on only if told to."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

from tests.faults.processes import Command, Ended
from tests.faults.table import Fault, Try
from tests.faults.world import hashes, make_world, recipe

import tunesmith

GENERATE = ["generate", "run", "--prompt", "red 1", "max_new_tokens=1", "--json"]
COMMANDS = {
    "train --resume": ["train", "stopped", "--resume", "--json"],
    "eval": ["eval", "run", "max_rows=2", "--json"],
    "generate": GENERATE,
    "generate --data": [
        "generate", "run", "--data", "rows.jsonl", "--out", "answers.csv", "max_new_tokens=1", "--json",
    ],
    "chat": ["chat", "run", "max_new_tokens=1"],
    "merge": ["merge", "run", "--out", "merged", "--json"],
    "merge --keep-adapter": ["merge", "run", "--keep-adapter", "--out", "merged", "--json"],
}  # fmt: skip


def _bit_of_weights(world: Path) -> dict[str, str]:
    file = world / "model" / "model.safetensors"
    times = file.stat()
    with file.open("r+b") as weights:
        weights.seek(-3, os.SEEK_END)
        byte = weights.read(1)[0]
        weights.seek(-3, os.SEEK_END)
        weights.write(bytes([byte ^ 1]))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    return {}


def _value(name: str, key: str, value: object) -> Callable[[Path], dict[str, str]]:
    def change(world: Path) -> dict[str, str]:
        file = world / "model" / name
        file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
        return {}

    return change


def _merges(world: Path) -> dict[str, str]:
    file = world / "model" / "tokenizer.json"
    found = json.loads(file.read_text())
    found["model"]["merges"].pop()
    file.write_text(json.dumps(found))
    return {}


def _template(world: Path) -> dict[str, str]:
    file = world / "model" / "chat_template.jinja"
    file.write_text(" " + file.read_text())
    return {}


def _rows(world: Path) -> dict[str, str]:
    file = world / "rows.jsonl"
    file.write_text(file.read_text().replace("green 1", "green one"))
    return {}


def _seed(world: Path) -> dict[str, str]:
    return {"argument": "training.seed=9"}


def _numpy(world: Path) -> dict[str, str]:
    """Another version of numpy is what the process finds first."""
    folder = world / "packages" / f"numpy-{version('numpy')}9.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: numpy\nVersion: {version('numpy')}9\n")
    return {"PYTHONPATH": f"{world / 'packages'}{os.pathsep}{_source()}"}


def _code(world: Path) -> dict[str, str]:
    """Tunesmith with one more line in its loop."""
    shutil.copytree(_source() / "tunesmith", world / "src" / "tunesmith")
    with (world / "src" / "tunesmith" / "training" / "loop.py").open("a") as file:
        file.write("\n# one more line\n")
    return {"PYTHONPATH": str(world / "src")}


def _source() -> Path:
    assert tunesmith.__file__ is not None
    return Path(tunesmith.__file__).parents[1]


CHANGES: list[tuple[str, str, Callable[[Path], dict[str, str]]]] = [
    ("weights", "one bit, with the old time", _bit_of_weights),
    ("config", "config.json", _value("config.json", "rms_norm_eps", 0.01)),
    ("config", "generation_config.json", _value("generation_config.json", "eos_token_id", 1)),
    ("tokenizer", "tokenizer.json", _merges),
    ("tokenizer", "tokenizer_config.json", _value("tokenizer_config.json", "add_prefix_space", True)),
    ("template", "chat_template.jinja", _template),
    ("data", "a row", _rows),
    ("recipe", "another seed", _seed),
    ("packages", "numpy", _numpy),
    ("code", "one line of Tunesmith", _code),
]
OF_BASE = ("weights", "config", "tokenizer", "template")


def _made(folder: Path) -> Path:
    """A world with a finished run, and one that was stopped by SIGTERM after a save."""
    world = make_world(folder / "world")
    (world / "recipe.yaml").write_text(json.dumps(recipe(world)))
    for name in ("run", "stopped"):
        training = Command(["train", "recipe.yaml", f"output_dir={name}"], world)
        while name == "stopped" and not (world / name / "checkpoints" / "step-000003").exists():
            time.sleep(0.005)
        if name == "stopped":
            training.signal(15)
        ended = training.wait()
        assert ended.code == (0 if name == "run" else 143), ended.said
    return world


def _tries(folder: Path, whole: bool) -> Iterator[Try]:
    world = _made(folder)
    for kind, what, change in CHANGES:
        for name, argv in COMMANDS.items():
            concerned = name == "train --resume" or kind in OF_BASE or (kind == "data" and name == "eval")
            shortly = (kind, name) in (
                ("weights", "generate"),
                ("data", "train --resume"),
                ("recipe", "train --resume"),
            )
            if not concerned or not (whole or shortly):
                continue
            place = world.rename(folder / "here")  # a copy would have other paths than the recipes
            shutil.copytree(place, world)
            try:
                yield Try(f"{kind} ({what}), {name}", _lost(world, kind, argv, change(world)))
            finally:
                shutil.rmtree(world)
                place.rename(world)


def _lost(world: Path, kind: str, argv: list[str], given: dict[str, str]) -> str | None:
    """What goes wrong: the change is not refused by name, something is written, or the way on does not lead on."""
    argv = [*argv, *([given.pop("argument")] if "argument" in given else [])]

    def run(*more: str) -> Ended:
        return Command([*argv, *more], world, anew=bool(given), environment=given or None).wait()

    before = _of_runs(world)
    refused = run()
    if refused.code != 1 or f"`--allow-changes {kind}`" not in refused.said or ": was " not in refused.said:
        return f"exit {refused.code}: {refused.said[-300:]}"
    if _of_runs(world) != before or (world / "merged").exists() or (world / "answers.csv").exists():
        return "something was written although the change was refused"
    allowed = run("--allow-changes", kind)
    if allowed.code != 0:
        return f"allowed, and exit {allowed.code}: {allowed.said[-300:]}"
    if argv[0] == "train":
        record = json.loads((world / "stopped" / "fingerprint.json").read_text())["changes"]
        kinds = {each["kind"] for time in record for each in time["changes"]}
        return None if kinds == {kind} else f"the run records {kinds}"
    if argv[0] == "chat":
        return None if "allowed: " in allowed.said else "the change is not said"
    changes = json.loads(allowed.said.strip().splitlines()[-1])["changes"]
    return None if changes and {each["kind"] for each in changes} == {kind} else f"the result records {changes}"


def _of_runs(world: Path) -> dict[str, str]:
    """What the run folders hold, but for their locks."""
    found = {f"{run}/{name}": digest for run in ("run", "stopped") for name, digest in hashes(world / run).items()}
    return {name: digest for name, digest in found.items() if not Path(name).name.startswith(".lock")}


FAULTS = [Fault("drift", _tries)]
